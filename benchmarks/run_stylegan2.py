"""Measure StyleGAN2's generator: s to image, and with the gradients of s and of all weights.

    python -m benchmarks.run_stylegan2 [--size 256] [--channel-base 16384] [--batch 1,8] [--repeat N] [--cpu avx2]

Contenders share weights and noise, and take turns:

* published: weights per sample and grouped convolutions, plain PyTorch, NCHW (use_plan("dense"), use_backend("reference"));
* compile: torch.compile of that;
* ours: styles on the inputs, demodulation in the pass of noise, bias and activation;
* floor: the convolutions of all layers alone, each of the whole batch on inputs of the right size in channels_last.

Gate: the image by the rule of mixsyn_fast/measure/gate.py, published as the reference; with gradients in the 2-norm,
with the floor KINKS.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mixsyn_fast.models.plain import dense_reference
from mixsyn_fast.models.stylegan2 import Config, Generator
from torch import Tensor

from mixsyn_fast.measure.clock import Call, interleave
from mixsyn_fast.measure.gate import gate
from mixsyn_fast.progress import progress
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .run_training import merged
from .schema import RESULTS, Goal, Measured
from .timing import heading, machine_line, save

# An activation whose argument float32 puts on the other side of its kink: in a layer of few pixels one of them moves the
# gradient of s by 6e-4 of its norm (batch 1; the plain form may as well meet none).
KINKS = 4e-3
UNSOUND = 0.05  # what the published form may be off by in float32, so that it can be the measure of the others
LEAST = {1: 1.5, 8: 2.0}  # forward: times faster than published, by batch


class Bench:
    """A generator with weights that make every branch count, and codes."""

    def __init__(self, config: Config, batch: int) -> None:
        torch.manual_seed(0)
        self.generator = Generator(config).to(memory_format=torch.channels_last)
        with torch.no_grad():
            for name, value in self.generator.named_parameters():
                if name.endswith(("noise.weight", "activate.bias")):
                    value.normal_(std=0.3)
            self.s = self.generator.styles(self.generator.map(torch.randn(batch, config.z_dim)))
        self.seen = torch.randn(batch, 3, config.size, config.size)
        self.floor_inputs = self._inputs()

    @torch.no_grad()
    def _inputs(self) -> list[tuple[Tensor, Tensor, bool]]:
        """(modulated input, folded weight, up) of every convolution."""
        _, found = self.generator.activations(self.s)
        modules = [each.conv for each in (*self.generator._convs(), *self.generator._rgbs())]
        layout = torch.channels_last
        return [
            (x.contiguous(memory_format=layout), m.folded().contiguous(memory_format=layout), m.up)
            for x, m in zip(found, modules, strict=True)
        ]

    def run(self, network: Any, backward: bool, plain: bool, of: Generator | None = None) -> dict[str, Tensor]:
        """Return the image, and with `backward` the gradients; `network` is the synthesis of `of`, None: of the own one."""
        generator = self.generator if of is None else of
        with torch.set_grad_enabled(backward), dense_reference() if plain else nullcontext():
            s = self.s.to(generator.input.input.dtype).requires_grad_(backward)
            image = network(s)
            if not backward:
                return {"image": image}
            weights = {n: p for n, p in generator.named_parameters() if "modulation" not in n and not n.startswith("style.")}
            grads = torch.autograd.grad((image * self.seen.to(image)).sum(), [s, *weights.values()])
            found = dict(zip(("s", *weights), grads, strict=True))
            # one number a layer, which may be near 0 by chance: all of them together have a size to be judged by
            strengths = torch.cat([found.pop(name) for name in list(found) if name.endswith("noise.weight")])
            return {"image": image.detach(), "strengths of noise": strengths, **found}

    def floor(self, backward: bool) -> None:
        """Run the convolutions alone."""
        with torch.set_grad_enabled(backward):
            for x, weight, up in self.floor_inputs:
                x, weight = x.detach().requires_grad_(backward), weight.detach().requires_grad_(backward)
                if up:
                    y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
                else:
                    y = F.conv2d(x, weight, padding=weight.shape[2] // 2)
                if backward:
                    torch.autograd.grad(y, (x, weight), torch.ones_like(y))


def measure(options: argparse.Namespace, batch: int, mode: str) -> dict[str, Any]:
    """Return the row of a batch size and a mode."""
    config = Config(size=options.size, channel_base=options.channel_base)
    bench, backward = Bench(config, batch), mode == "both"
    bench.generator.train(backward)
    double = copy.deepcopy(bench.generator).double()
    plain = copy.deepcopy(bench.generator).to(memory_format=torch.contiguous_format)
    networks: dict[str, Any] = {"published": plain.synthesis, "ours": bench.generator.synthesis}
    if options.compile:
        networks["compile"] = torch.compile(plain.synthesis)
    of = dict.fromkeys(("published", "compile"), plain)
    with progress(f"gates of batch {batch}, {mode}"):
        exact = bench.run(double.synthesis, backward, True, double)
        found = {n: bench.run(network, backward, n != "ours", of.get(n)) for n, network in networks.items()}
        rule: dict[str, Any] = {"floor": KINKS, "elements": False} if backward else {}
        verdicts = {name: gate(own, found["published"], exact, **rule) for name, own in found.items()}
    if verdicts["published"].error > UNSOUND:
        raise RuntimeError(
            f"the published form is off by {verdicts['published'].error:.1e} itself: nothing can be judged by it"
        )
    del exact, found, double
    calls: dict[str, Call] = {
        name: (lambda name=name: bench.run(networks[name], backward, name != "ours", of.get(name)))
        for name, verdict in verdicts.items()
        if verdict.passed
    }
    calls["floor"] = lambda: bench.floor(backward)
    with progress(f"timing batch {batch}, {mode}"):
        timings = interleave(calls, repeat=options.repeat, warmup=2, budget_s=options.seconds)
    entries = {}
    for name in (*verdicts, "floor"):
        verdict = verdicts.get(name)
        wrong = "" if verdict is None or verdict.passed else f"wrong result: {verdict.what} off by {verdict.error:.1e}"
        entries[name] = Measured(gate=verdict, timing=timings.get(name), note=wrong)
    row = schema.row(
        op="stylegan2",
        case=f"stylegan2/{options.size} base {options.channel_base} b{batch}",
        mode=mode,
        settings={"size": options.size, "channel_base": options.channel_base, "batch": batch},
        contenders=entries,
        baseline="published",
    )
    least = LEAST.get(batch)
    if mode == "forward" and least and {"ours", "published"} <= timings.keys():
        got = timings["published"].median / timings["ours"].median
        row["targets"] = [Goal("ours", "published", least, None, got, got >= least)]
    return row


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_stylegan2", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the image (default %(default)s)")
    parser.add_argument("--channel-base", type=int, default=16384, help="16384: channel multiplier 1 (default)")
    parser.add_argument("--batch", default="1,8", help="batch sizes (default %(default)s)")
    parser.add_argument("--modes", default="forward,both", help="forward, both: with gradients (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=9, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=90.0, help="soft limit for the timing of a row (default 90)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/stylegan2_cpu.json)")
    options = parser.parse_args(arguments)
    batches = options.batch.split(",")
    if not all(text.isdigit() and int(text) > 0 for text in batches):
        parser.error(f"--batch: expected positive numbers, got {options.batch!r}")
    options.batch = [int(text) for text in batches]
    options.modes = options.modes.split(",")
    if not set(options.modes) <= {"forward", "both"}:
        parser.error(f"--modes: expected forward, both, got {','.join(options.modes)!r}")
    options.compile = options.compile and not options.cpu
    options.out = options.out or RESULTS / f"stylegan2_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
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
    result = heading("stylegan2", labels="", repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    result["rows"] = jsonable([measure(options, batch, mode) for mode in options.modes for batch in options.batch])
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
