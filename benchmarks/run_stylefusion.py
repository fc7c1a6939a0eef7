"""Measure StyleFusion: one slider move, codes of a region to the next frame; a training step of each stage.

    python -m benchmarks.run_stylefusion [move] [--size 256] [--channel-base 16384] [--hidden 1536] [--repeat N] [--cpu avx2]
    python -m benchmarks.run_stylefusion step [--domain faces] [--batch 8] [--repeat N] [--cpu avx2]

**move**: the tree of faces over a StyleGAN2 with random weights (the work is that of trained ones). The code of one leaf
moves to and fro:

* published: every FusionNet, layer by layer, and the generator with weights per sample, in plain PyTorch;
* full: ours, every FusionNet anew, and the generator;
* ours: `StyleFusion.fuse`: the FusionNets between the leaf and the root alone, and the generator;
* floor: the generator alone, of a code that is there.

Gate: the image of a move before it becomes bytes, by the rule of mixsyn_fast/measure/gate.py; ours and full are
bit-identical.

**step**: the three stages of the root node of a shipped tree, with the shipped generator, segments, weights, width and
batch, and the settings of the weights' card: losses, gradients and optimiser, with peak memory. *dense* is the same training
under use_plan("dense") and use_backend("reference") with NCHW weights. Gate: losses and gradients of the first step, in the
2-norm, with the floor FLIPS; masks and M are of float32 in all. The parts are a step's own calls, made again with the inputs
and gradients that they had: *generator* (images and activations), *fusion* (FusionNets), *masks* (soft and hard masks, M).
The rest are codes, losses and optimiser.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mixsyn_fast.models.data import LatentBatch
from mixsyn_fast.models.plain import dense_reference
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.stylefusion import task as stylefusion_task
from mixsyn_fast.models.stylefusion.config import Config as TrainingConfig
from mixsyn_fast.models.stylefusion.model import StyleFusion
from mixsyn_fast.models.stylefusion.networks import make_net
from mixsyn_fast.models.stylefusion.segments import Segments
from mixsyn_fast.models.stylefusion.task import StyleFusionTask
from mixsyn_fast.models.stylefusion.trees import FACES
from mixsyn_fast.models.stylegan2 import Config, Generator
from mixsyn_fast.models.training.trainer import make_optimizer
from mixsyn_fast.models.unconditional import load_generator
from torch import Tensor

from mixsyn_fast.measure.clock import Call, interleave
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .run_clvae import step_row, timed
from .run_training import merged
from .schema import RESULTS, Measured
from .timing import heading, machine_line, memory_of, save

LEAVES = ("eyes", "mouth", "hair")
DOMAINS = {"faces": "drawn_faces", "facades": "facades"}  # shipped weights -> their tree
REST = "rest"
# A pixel between two clusters that a rounding gives to the other one moves the M of a channel by 1 / 64^2, and max(M, 0.5)
# has a kink: room for a few such pixels.
FLIPS = 1e-4


def model_of(options: argparse.Namespace) -> StyleFusion:
    """Return a StyleFusion whose weights make every part count."""
    torch.manual_seed(0)
    generator = Generator(Config(size=options.size, channel_base=options.channel_base))
    generator.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for name, value in generator.named_parameters():
            if name.endswith(("noise.weight", "activate.bias")):
                value.normal_(std=0.3)
    nets = {node: make_net(generator, options.hidden, 5, "b", True) for node in FACES.tree}
    return StyleFusion(generator, FACES, nets)


def measure_moves(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of all sliders."""
    fusion = model_of(options)
    plain, double = copy.deepcopy(fusion), copy.deepcopy(fusion)
    plain.generator.to(memory_format=torch.contiguous_format)
    double.generator.double()
    double.hierarchy.double()
    return [measure(fusion, plain, double, leaf, options) for leaf in LEAVES]


def image_of(fusion: StyleFusion, codes: Mapping[str, Tensor], plain: bool = False) -> Tensor:
    """Return the image (1, 3, H, W) of codes, every node anew."""
    dtype = fusion.generator.input.input.dtype
    given = {name: value[None].to(dtype) for name, value in codes.items()}
    with torch.no_grad():
        if plain:
            with dense_reference():
                return fusion.generator.synthesis(fusion.hierarchy(given))
        return fusion.generator.synthesis(fusion.hierarchy(given))


def measure(
    fusion: StyleFusion, plain: StyleFusion, double: StyleFusion, leaf: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the row of a leaf's slider; `plain` has NCHW weights, `double` float64 ones."""
    base = dict(zip(fusion.nodes, (fusion.code(i) for i in range(len(fusion.nodes))), strict=True))
    ends = (base, base | {leaf: fusion.code(100)})
    with progress(f"gates of {leaf}"):
        exact = {"image": image_of(double, ends[1], True)}
        found = {"published": image_of(plain, ends[1], True)}
        fusion.generate(codes=ends[0])
        made = fusion.generate(codes=ends[1])
        with torch.no_grad():
            found["ours"] = fusion.generator.synthesis(made.s[None])
        fusion._forget()
        again = fusion.generate(codes=ends[1])
        if not torch.equal(again.s, made.s) or not np.array_equal(again.image, made.image):
            raise ValueError(f"{leaf}: expected a move to give the image of a full pass bit for bit")
        reference = {"image": found["published"]}
        verdicts = {name: gate({"image": value}, reference, exact) for name, value in found.items()}
        verdicts["full"] = verdicts["ours"]
    turns: dict[str, Iterator[dict[str, Tensor]]] = {n: itertools.cycle(ends) for n in ("published", "full", "ours")}

    def full() -> object:
        fusion._fused.clear()
        return fusion.generate(codes=next(turns["full"]))

    def floor() -> object:
        with torch.no_grad():
            return to_uint8(fusion.generator.synthesis(made.s[None]))

    held = copy.copy(fusion)  # what ours remembers is not what full forgets
    held._fused = {}
    calls: dict[str, Call] = {
        "published": lambda: to_uint8(image_of(plain, next(turns["published"]), True)),
        "full": full,
        "ours": lambda: held.generate(codes=next(turns["ours"])),
        "floor": floor,
    }
    calls = {name: call for name, call in calls.items() if name == "floor" or verdicts[name].passed}
    with progress(f"timing {leaf}"):
        timings = interleave(calls, repeat=options.repeat, warmup=2, budget_s=options.seconds)
    entries = {}
    for name in (*verdicts, "floor"):
        verdict = verdicts.get(name)
        wrong = "" if verdict is None or verdict.passed else f"wrong result: {verdict.what} off by {verdict.error:.1e}"
        entries[name] = Measured(gate=verdict, timing=timings.get(name), note=wrong)
    fused = fusion.tree.ancestors(leaf)
    return schema.row(
        op="stylefusion",
        case=f"stylefusion/move of {leaf}, {options.size}",
        mode="forward",
        settings={"size": options.size, "channel_base": options.channel_base, "hidden": options.hidden, "leaf": leaf},
        contenders=entries,
        baseline="published",
        facts={"fused": list(fused), "nodes": len(fusion.tree.tree)},
    )


# ---------------------------------------------------------------------------------------------------- a training step


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [each for part in value for each in tensors_of(part)] if isinstance(value, list | tuple) else []


def fresh(value: Any) -> Any:
    """Return the same with leaves in place of tensors, that want a gradient where those did."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return type(value)(map(fresh, value)) if type(value) in (list, tuple) else value


@dataclass
class Part:
    """Calls of a step that can be made again alone, forward and backward."""

    calls: list[Callable[[], None]] = field(default_factory=list)

    def recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function; every call of it is put down, with the gradients that come back to its outputs."""

        def call(*inputs: Any, **options: Any) -> Any:
            given, wanted, grads = fresh(list(inputs)), torch.is_grad_enabled(), dict[int, Tensor]()
            outputs = function(*inputs, **options)
            for i, each in enumerate(tensors_of(outputs)):
                if each.requires_grad:
                    each.register_hook(lambda grad, i=i: grads.update({i: grad}))

            def again() -> None:
                with torch.set_grad_enabled(wanted):
                    made = tensors_of(function(*fresh(given), **options))
                if grads:
                    torch.autograd.backward([made[i] for i in grads], list(grads.values()))

            self.calls.append(again)
            return outputs

        return call

    def __call__(self) -> None:
        """Make all calls again."""
        for call in self.calls:
            call()


class Step:
    """One contender's step of a stage: its phase, its optimiser, its mode."""

    def __init__(self, task: StyleFusionTask, batch: LatentBatch, phase: str, *, dense: bool = False) -> None:
        self.task, self.batch, self.phase = task, batch, phase
        self.mode: Callable[[], AbstractContextManager[Any]] = dense_reference if dense else nullcontext
        networks = task.phases[phase].networks
        self.parameters = [p for name in networks for p in task.networks[name].parameters()]
        self.optimizer = make_optimizer(task.phases[phase], self.parameters)

    def backward(self) -> dict[str, Tensor]:
        """Losses, whose gradients are then there."""
        for name, network in self.task.networks.items():
            network.requires_grad_(name in self.task.phases[self.phase].networks)
        losses = self.task.losses(self.phase, self.batch, 1)
        torch.stack(list(losses.values())).sum().backward()
        return {name: value.detach() for name, value in losses.items()}

    def __call__(self) -> None:
        """One step, after which no gradient is left."""
        with self.mode():
            self.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def first(self) -> dict[str, Tensor]:
        """Losses and gradients of the first step; the weights stay."""
        with self.mode():
            found = self.backward()
        found["gradients"] = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        self.optimizer.zero_grad()
        return found

    def parts(self) -> dict[str, Call]:
        """Return the parts of a step."""
        task, parts = self.task, {name: Part() for name in ("generator", "fusion", "masks")}
        (net,) = task.nets.values()
        places: list[tuple[str, Any, str]] = [("generator", task.generator, "activations")]
        places += [("fusion", net, name) for name in ("align", "fuse")] + [("fusion", net.blender_segments, "forward")]
        places += [("masks", Segments, name) for name in ("masks", "hard_masks")]
        places += [("masks", stylefusion_task, "correlation")]
        with ExitStack() as stack, self.mode():
            for name, owner, attribute in places:
                function = parts[name].recorded(getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, function))
            self.backward()
            self.optimizer.zero_grad()

        def timed_alone(part: Part) -> Call:
            def call() -> None:
                with self.mode():
                    part()
                self.optimizer.zero_grad()

            return call

        return {name: timed_alone(part) for name, part in parts.items() if part.calls}


def task_of(domain: str) -> StyleFusionTask:
    """Return the training of the root node as the shipped weights were trained, with these weights."""
    fusion = StyleFusion.shipped(name=domain)
    assert fusion.segments is not None
    root: Any = fusion.hierarchy.nets[fusion.tree.root]
    config = TrainingConfig(
        tree=DOMAINS[domain],
        nodes=(fusion.tree.root,),
        hidden=root.blender_segments.linears[0].weight.shape[0],
        lr=0.1,
        local_norm="rms",
        mask3=30_000.0,
    )
    task = StyleFusionTask(config, load_generator(domain), fusion.segments)
    task.nets[fusion.tree.root].load_state_dict(root.state_dict())
    return task


def measure_step(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of all stages: the step, then its parts."""
    ours = task_of(options.domain)
    dense, double = copy.deepcopy(ours), copy.deepcopy(ours)
    dense.generator.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for network in (double.generator, *double.networks.values()):
        network.double()
    latents = torch.randn(options.batch, *ours.code_size, generator=torch.Generator().manual_seed(0))
    names = tuple(map(str, range(options.batch)))
    batch = LatentBatch(latents, names, torch.arange(options.batch))
    wide = LatentBatch(latents.double(), names, torch.arange(options.batch))
    asked = {"domain": options.domain, "size": ours.generator.config.size, "hidden": ours.config.hidden}
    rows: list[dict[str, Any]] = []
    every: dict[str, tuple[dict[str, Step], dict[str, Gate]]] = {}
    for phase, stage in ours.stages.items():  # before anything is timed, which moves the weights
        steps = {"dense": Step(dense, batch, phase, dense=True), "ours": Step(ours, batch, phase)}
        with progress(f"gates of stage {stage.number}"):
            exact = Step(double, wide, phase, dense=True).first()
            first = {name: step.first() for name, step in steps.items()}
            every[phase] = (
                steps,
                {name: gate(own, first["dense"], exact, floor=FLIPS, elements=False) for name, own in first.items()},
            )
    for phase, stage in ours.stages.items():
        steps, verdicts = every[phase]
        passing = {name: step for name, step in steps.items() if verdicts[name].passed}
        calls: dict[str, Call] = {}
        for name, step in passing.items():
            calls |= {f"{part}/{name}": call for part, call in {"step": step, **step.parts()}.items()}
        found = timed(calls, options, f"stage {stage.number}")
        shares: dict[str, dict[str, float]] = {name: {} for name in passing}
        whole: dict[str, Any] = {}
        for part in dict.fromkeys(name.split("/")[0] for name in calls):
            own = {name.split("/")[1]: timing for name, timing in found.items() if name.startswith(f"{part}/")}
            settings = {**asked, "batch": options.batch, "stage": stage.number, "part": part}
            case = f"stylefusion/stage {stage.number}, {part}"
            row = step_row(case, settings, verdicts, own, op="stylefusion")
            if part == "step":
                whole = row
                for name, step in passing.items() if options.memory else ():
                    memory = memory_of(step)
                    row["contenders"][name].peak_bytes = None if memory is None else memory.peak
            else:
                for name, timing in own.items():
                    shares[name][part] = timing.median / found[f"step/{name}"].median
            rows.append(row)
        for own_shares in shares.values():
            own_shares[REST] = 1 - sum(own_shares.values())
        whole["facts"] = {"share of the step": shares}
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_stylefusion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", nargs="?", choices=("move", "step"), default="move", help="what is measured (default move)")
    parser.add_argument("--size", type=int, default=256, help="side of the image (default %(default)s)")
    parser.add_argument("--channel-base", type=int, default=16384, help="16384: channel multiplier 1 (default)")
    parser.add_argument(
        "--hidden", type=int, default=1536, help="width of the FusionNets (default %(default)s, the paper's)"
    )
    parser.add_argument(
        "--domain", choices=sorted(DOMAINS), default="faces", help="step: the shipped weights (default faces)"
    )
    parser.add_argument("--batch", type=int, default=8, help="step: samples (default %(default)s, as they were trained)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="step: skip peak memory")
    parser.add_argument("--repeat", type=int, default=9, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="soft limit for the timing of a row (default 60)")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/stylefusion_cpu.json)")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch: expected at least 1, got {options.batch}")
    options.out = options.out or RESULTS / f"stylefusion_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    try:
        cpu.restrict(options.cpu)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    keep_memory()  # for every contender alike
    result = heading("stylefusion", labels="", repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    result["rows"] = jsonable(measure_step(options) if options.part == "step" else measure_moves(options))
    result["seconds"] = round(time.perf_counter() - start, 1)
    for row in result["rows"]:
        print(tables.row_line(row))
    if options.out.is_file():
        result["rows"] = merged(schema.load(options.out), result)
    result |= tables.faults(result["rows"])
    save(result, options.out)
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
