"""Measure MSCA: its forward and a training step, part by part, against K, against the exemplar's size, with kept halves.

    python -m benchmarks.run_msca PART [--size 256] [--batch 1] [--width 64] [--trunk vgg] [--quick] [--cpu avx2]

PART is one of

* forward: label map, exemplar and its label map to image; and its parts: the exemplar's features (VGG or an own trunk), its
  half (pyramid and attention), the label map's half, the synthesis; of the synthesis the first convolutions of all
  normalisations, and their gamma and beta;
* step: a training step on two patches: the generator's phase, the discriminator's, both optimisers; no perceptual loss;
* maps: alignment with the first convolutions, and the whole forward, for K = 4 to 64 maps at every scale;
* exemplar: the exemplar's half, from features that are there, for exemplars of 64 to 512 pixels a side;
* keep: a new label map with a kept exemplar, a new exemplar with a kept label map, against all of it.

Contenders share weights and inputs, take turns, and start from raw labels (a fresh RegionMap):

* dense: our networks under use_plan("dense") and use_backend("reference"), channels_last: as published, in plain PyTorch;
* ours;
* full (keep alone): ours, all of it; there ours is what is left to do, and dense all of it in plain PyTorch;
* floor: ours without the normalisations, which stay out of the synthesis with all their convolutions; of the exemplar's half
  its features alone, which are the same for all.

What to expect: MSCA saves at the normalisations' first convolutions, the pyramid and the attention. gamma and beta (128 to C
channels, twice) and the blocks' own convolutions are the same on both sides, and they are most of the work: with N = M = 64,
K = 16 and 128 hidden channels a scale's first convolution costs (K + M) / (N + M) = 5/8 of itself, so the whole can hardly
be more than a fifth faster by algebra alone.

Gate: the image before tanh (of parts, what they give) by the rule of mixsyn_fast/measure/gate.py, dense as the reference; of
a step losses and gradients in the 2-norm with the floor KINKS. Rows of another part, or of other settings, in the same
file are kept where machine and commit are the same.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from mixsyn_fast.models.discriminators import DiscriminatorConfig
from mixsyn_fast.models.feature_networks import FeatureNetwork
from mixsyn_fast.models.msca import task as training
from mixsyn_fast.models.msca.config import SCALES, GeneratorConfig, sizes_of
from mixsyn_fast.models.msca.features import image_features
from mixsyn_fast.models.msca.networks import Alignment, Exemplar, Layout, Synthesis
from mixsyn_fast.models.plain import calibrate, dense_reference, randomise, without_norms
from torch import Tensor, nn

from mixsyn_fast.layers.attended import Attended, AttendedSPADENorm, attended_conv2d
from mixsyn_fast.layers.attention import Gathered
from mixsyn_fast.measure.clock import Call, Timing, interleave
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .cases import Labels, label_source
from .run_clvae import KINKS, Step, goal, numbers
from .run_training import merged
from .schema import RESULTS, Measured
from .timing import heading, machine_line, memory_of, save

PARTS = ("forward", "step", "maps", "exemplar", "keep")
LEAST = 2.0  # goal of forward and step: times faster than dense
CLASSES = 19
Outputs = dict[str, Tensor]


class Bench:
    """The networks, with weights of which every branch counts, and inputs: target and exemplar are different pictures.

    Args:
        options: of the command.
        labels: where pictures come from.
        maps: K of every scale; None: the paper's.
    """

    def __init__(self, options: argparse.Namespace, labels: Labels, maps: int | None = None) -> None:
        torch.manual_seed(0)
        self.config = config_of(options, maps)
        self.size, batch = (options.size, options.size), options.batch
        self.alignment: Alignment = Alignment(self.config).eval().requires_grad_(False)
        self.synthesis: Synthesis = Synthesis(self.config).eval().requires_grad_(False)
        self.vgg = FeatureNetwork("vgg19").eval() if options.trunk == "vgg" else None  # random: only its time counts
        with torch.no_grad():
            for weight in self.alignment.aligners.parameters():
                weight.mul_(3)  # far from even attention
        randomise(self.synthesis, 0)
        images, maps_of = labels.tensors("face", 2 * batch, options.size)
        self.image, self.theirs, self.ours = images[:batch].contiguous(), maps_of[:batch], maps_of[batch:]
        self.image = self.image.contiguous(memory_format=torch.channels_last)
        self.kept: list[Tensor] = []
        with torch.no_grad():
            calibrate(self.synthesis, self.attended())

    def plain(self) -> Bench:
        """The same for plain PyTorch: weights in channels_last, with which it is a quarter faster than without.

        Ours keeps its activations in channels_last itself, and the weights as they are loaded.
        """
        made = copy.deepcopy(self)
        for network in (made.alignment, made.synthesis):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made

    def double(self) -> Bench:
        """The same in float64."""
        made = copy.deepcopy(self)
        for network in (made.alignment, made.synthesis, *(() if made.vgg is None else (made.vgg,))):
            network.double()
        made.image = self.image.double()
        return made

    def regions(self, labels: Tensor) -> RegionMap:
        """A region map of which nothing is known yet."""
        return RegionMap(labels, self.config.label_nc)

    def features(self) -> list[Tensor]:
        """The exemplar's features."""
        return image_features(self.alignment, self.vgg, self.image)

    def half(self, features: Sequence[Tensor] | None = None) -> Exemplar:
        """The exemplar's half."""
        return self.alignment.exemplar(self.features() if features is None else features, self.regions(self.theirs))

    def layout(self) -> Layout:
        """The label map's half."""
        return self.alignment.layout(self.regions(self.ours), self.size)

    def attended(self) -> list[Attended]:
        """What the synthesis reads."""
        return self.alignment.attend(self.half(), self.layout())

    def forward(self) -> Outputs:
        """The image before tanh."""
        return {"image": self.synthesis.forward_features(self.attended())}

    @torch.no_grad()
    def keep_features(self) -> None:
        """Compute the exemplar's features once."""
        self.kept = self.features()

    def align(self) -> Outputs:
        """What depends on K: both halves, from kept features, and the first convolutions of all normalisations."""
        return dict(enumerate_(self.hidden(self.alignment.attend(self.half(self.kept), self.layout()))))

    def norms(self) -> list[tuple[int, AttendedSPADENorm]]:
        """(scale, normalisation) of all there are."""
        found = []
        for scale, block in enumerate(self.synthesis.blocks):
            found += [(scale, each) for each in block.modules() if isinstance(each, AttendedSPADENorm)]
        return found

    def hidden(self, attended: Sequence[Attended]) -> list[Tensor]:
        """The first convolutions of all normalisations."""
        return [
            attended_conv2d(attended[scale], cast(nn.Conv2d, norm.mlp_shared[0])).relu_() for scale, norm in self.norms()
        ]


def config_of(options: argparse.Namespace, maps: int | None) -> GeneratorConfig:
    """Return the settings of the networks."""
    found = GeneratorConfig(label_nc=CLASSES, trunk=options.trunk, ngf=options.width, trunk_width=max(1, options.width // 2))
    if options.width < 64:  # a small model is small throughout
        found = replace(found, features=options.width, condition=options.width, hidden=2 * options.width)
    return found if maps is None else replace(found, maps=(maps,) * SCALES)


@torch.no_grad()
def judged(call: Callable[[Bench], Outputs], bench: Bench, double: Bench) -> dict[str, Gate]:
    """Judge dense and ours by what they give; dense once more as it is timed, for a convolution rounds otherwise there."""
    with dense_reference():
        exact, dense, timed = call(double), call(bench), call(bench.plain())
    return {"dense": gate(dense, dense, exact), "ours": gate(call(bench), dense, exact, also=timed)}


def timed_calls(calls: Mapping[str, Callable[[], object]]) -> dict[str, Call]:
    """Return the calls without gradients; those called <part>/dense in plain PyTorch."""

    def made(name: str, call: Callable[[], object]) -> Call:
        def run() -> object:
            with torch.no_grad(), dense_reference() if name.endswith("/dense") else nullcontext():
                return call()

        return run

    return {name: made(name, call) for name, call in calls.items()}


def timed(calls: Mapping[str, Call], options: argparse.Namespace, what: str) -> dict[str, Timing]:
    """Time calls in turns."""
    with progress(f"timing {what}"):
        return interleave(calls, repeat=options.repeat, warmup=1, budget_s=options.seconds)


def row_of(
    case: str,
    mode: str,
    asked: Mapping[str, Any],
    verdicts: Mapping[str, Gate],
    timings: Mapping[str, Timing],
) -> dict[str, Any]:
    """A row from timings "<part>/<contender>" of one part; a contender that failed its gate has a note and no timing."""
    entries: dict[str, Measured] = {}
    for key, timing in timings.items():
        name = key.split("/")[-1]
        verdict = verdicts.get("ours" if name == "full" else name)
        wrong = verdict is not None and not verdict.passed
        note = f"wrong result: {verdict.what} off by {verdict.error:.1e}" if verdict is not None and wrong else ""
        entries[name] = Measured(gate=verdict, timing=None if wrong else timing, note=note)
    return schema.row(op="msca", case=case, mode=mode, settings=dict(asked), contenders=entries, baseline="dense")


def named(options: argparse.Namespace) -> str:
    """The settings that tell rows of one part apart."""
    return f"{options.trunk} {options.size} w{options.width} b{options.batch}"


def asked_of(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What was asked for."""
    size = [options.size, options.size]
    return {"trunk": options.trunk, "width": options.width, "batch": options.batch, "size": size, **more}


# ------------------------------------------------------------------------------------------------------------ forward


def run_forward(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """The whole forward, with memory, and its parts."""
    bench = Bench(options, labels)
    double = bench.double()
    with progress("gates of the forward"):
        verdicts = {
            "forward": judged(Bench.forward, bench, double),
            "exemplar": judged(lambda b: gathered(b.half()), bench, double),
            "layout": judged(lambda b: targets(b.layout()), bench, double),
            "hidden": judged(lambda b: dict(enumerate_(b.hidden(b.attended()))), bench, double),
        }
    del double
    verdicts |= {"synthesis": verdicts["forward"], "modulation": {}, "features": {}}
    with torch.no_grad():
        features, half, layout = bench.features(), bench.half(), bench.layout()
        attended = bench.alignment.attend(half, layout)
        hidden = bench.hidden(attended)
    bare = without_norms(bench.synthesis)

    def modulation() -> None:
        for (_, norm), given in zip(bench.norms(), hidden, strict=True):
            norm.mlp_gamma(given)
            norm.mlp_beta(given)

    parts: dict[str, Callable[[Bench], object]] = {
        "forward": Bench.forward,
        "features": Bench.features,
        "exemplar": lambda b: b.half(features),
        "layout": Bench.layout,
        "synthesis": lambda b: b.synthesis.forward_features(attended),
        "hidden": lambda b: b.hidden(attended),
        "modulation": lambda _: modulation(),
    }
    common = ("features", "modulation")  # the same for all
    both = {"dense": bench.plain(), "ours": bench}
    calls: dict[str, Callable[[], object]] = {
        f"{part}/{name}": functools.partial(call, b) for part, call in parts.items() for name, b in both.items()
    }
    calls = {key: call for key, call in calls.items() if key.split("/")[0] not in common}
    calls |= {f"{part}/floor": functools.partial(parts[part], bench) for part in common}
    calls["synthesis/floor"] = lambda: bare.forward_features(attended)
    calls["forward/floor"] = lambda: bare.forward_features(bench.attended())
    calls_ = timed_calls(calls)
    timings = timed(calls_, options, "the forward and its parts")
    rows = []
    for part in parts:
        own = {key: timing for key, timing in timings.items() if key.startswith(f"{part}/")}
        row = row_of(f"msca/{part} {named(options)}", "forward", asked_of(options, part=part), verdicts[part], own)
        if part == "forward":
            row["facts"] = {"shares": shares(timings)}
            memorise(row, calls_, "forward", options)
            row["targets"] = goals(own, "forward")
        rows.append(row)
    return rows


def shares(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """Share of every part in the forward of dense and of ours; what the synthesis does besides is its convolutions."""
    found: dict[str, dict[str, float]] = {}
    for name in ("dense", "ours"):
        whole = timings[f"forward/{name}"].median
        of = {part: timings[f"{part}/{name}"].median / whole for part in ("exemplar", "layout", "hidden")}
        of |= {part: timings[f"{part}/floor"].median / whole for part in ("features", "modulation")}
        of["convolutions"] = timings["synthesis/floor"].median / whole
        found[name] = of
    return found


def gathered(half: Exemplar) -> Outputs:
    """What an exemplar gives, by name."""
    return {f"{name} {i}": getattr(each, name) for i, each in enumerate(half.gathered) for name in Gathered._fields}


def targets(layout: Layout) -> Outputs:
    """What a label map asks, by name."""
    return {f"{name} {i}": getattr(each, name) for i, each in enumerate(layout.targets) for name in ("condition", "maps")}


def enumerate_(values: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Tensors by number."""
    return [(str(i), value) for i, value in enumerate(values)]


def memorise(row: dict[str, Any], calls: Mapping[str, Call], part: str, options: argparse.Namespace) -> None:
    """Put peak memory into a row."""
    for name in ("dense", "ours") if options.memory else ():
        memory = memory_of(calls[f"{part}/{name}"])
        row["contenders"][name].peak_bytes = None if memory is None else memory.peak


def goals(timings: Mapping[str, Timing], part: str) -> list[schema.Goal]:
    """What became of the goal of a row."""
    pair = [timings.get(f"{part}/{name}") for name in ("dense", "ours")]
    if pair[0] is None or pair[1] is None:
        return []
    return [goal("dense", pair[0].median / pair[1].median, least=LEAST)]


# --------------------------------------------------------------------------------------------------------------- step


def build(options: argparse.Namespace) -> training.MSCATask:
    """Return the training task, in its second stage; its VGG, where it has one, is random."""
    torch.manual_seed(0)
    small = config_of(options, None)
    config = training.Config(
        generator=replace(small, spectral_norm=True),
        discriminator=DiscriminatorConfig(ndf=options.width, exemplar=True),
        vgg=0.0,
        pretrain_steps=0,
        init_gain=0.0,  # weights of which every branch counts
    )
    vgg = FeatureNetwork("vgg19").eval()
    with mock.patch.object(training, "load_vgg", lambda *_: vgg):
        names = [str(k) for k in range(CLASSES)]
        task = training.MSCATask(training.fitted(config, names, (2 * options.size, 2 * options.size), False))
    randomise(task.networks["synthesis"], 0)
    task.networks["discriminator"].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return task


def first_of(step: Step) -> Outputs:
    """Losses and gradients of a first step, whose patches are everyone's."""
    torch.manual_seed(1)
    return step.first()


def run_step(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A whole step, with memory."""
    image, map_ = labels.tensors("face", options.batch, 2 * options.size)
    image = image.contiguous(memory_format=torch.channels_last)
    task = build(options)
    steps: dict[str, Step] = {}
    for name in ("dense", "floor", "ours"):
        own = task if name == "ours" else copy.deepcopy(task)
        if name != "ours":  # see Bench.plain
            for network in (own.networks["alignment"], own.networks["synthesis"]):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if name == "floor":
            own.networks["synthesis"] = without_norms(own.networks["synthesis"])
        steps[name] = Step(cast(Any, own), image, map_, dense=name == "dense")
    with progress("gates of the step"):
        double = copy.deepcopy(task)
        for network in (*double.networks.values(), *(() if double.vgg is None else (double.vgg,))):
            network.double()
        exact = first_of(Step(cast(Any, double), image.double(), map_, dense=True))
        del double
        reference = first_of(steps["dense"])
        found = {"dense": reference, "ours": first_of(steps["ours"])}
        verdicts = {name: gate(own, reference, exact, floor=KINKS, elements=False) for name, own in found.items()}
    del exact, reference, found
    calls: dict[str, Call] = {f"step/{name}": step for name, step in steps.items()}
    timings = timed(calls, options, "the step")
    row = row_of(f"msca/step {named(options)}", "training", asked_of(options, part="step"), verdicts, timings)
    memorise(row, calls, "step", options)
    row["targets"] = goals(timings, "step")
    return [row]


# ------------------------------------------------------------------------------------------------- K, exemplar's size


def run_maps(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """Two rows for every K."""
    rows = []
    for count in options.maps:
        bench = Bench(options, labels, count)
        double = bench.double()
        for each in (bench, double):
            each.keep_features()
        with progress(f"gates of K {count}"):
            verdicts = {"align": judged(Bench.align, bench, double), "whole": judged(Bench.forward, bench, double)}
        del double
        both = {"dense": bench.plain(), "ours": bench}
        calls: dict[str, Callable[[], object]] = {f"align/{name}": b.align for name, b in both.items()}
        calls |= {f"whole/{name}": b.forward for name, b in both.items()}
        timings = timed(timed_calls(calls), options, f"K {count}")
        for part in ("align", "whole"):
            own = {key: timing for key, timing in timings.items() if key.startswith(f"{part}/")}
            asked = asked_of(options, part=part, maps=count)
            rows.append(row_of(f"msca/maps {part} k{count} {named(options)}", "forward", asked, verdicts[part], own))
        del bench, calls
        gc.collect()
    return rows


def run_exemplar(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A row for every size of the exemplar; it may have another one than the image."""
    rows = []
    for side in options.sides:
        given = argparse.Namespace(**{**vars(options), "size": side})
        bench = Bench(given, labels)
        double = bench.double()
        for each in (bench, double):
            each.keep_features()
        with progress(f"gates of {side} x {side}"):
            verdicts = judged(lambda b: gathered(b.half(b.kept)), bench, double)
        del double
        calls: dict[str, Callable[[], object]] = {
            f"exemplar/{name}": (lambda b=b: b.half(b.kept)) for name, b in {"dense": bench.plain(), "ours": bench}.items()
        }
        calls["exemplar/floor"] = bench.features
        timings = timed(timed_calls(calls), options, f"exemplar of {side}")
        asked = asked_of(given, part="exemplar", sizes=[list(size) for size in sizes_of(side, side)])
        rows.append(row_of(f"msca/exemplar half {named(given)}", "forward", asked, verdicts, timings))
        del bench, calls
        gc.collect()
    return rows


# --------------------------------------------------------------------------------------------------------------- keep


def run_keep(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A row for each half that is kept, and one where both are."""
    bench = Bench(options, labels)
    double = bench.double()
    with torch.no_grad():
        halves = {each: (each.half(), each.layout()) for each in (bench, double)}

    def image(b: Bench, half: Exemplar, layout: Layout) -> Outputs:
        return {"image": b.synthesis.forward_features(b.alignment.attend(half, layout))}

    ways: dict[str, Callable[[Bench], Outputs]] = {
        "new label map": lambda b: image(b, halves[b][0], b.layout()),
        "new exemplar": lambda b: image(b, b.half(), halves[b][1]),
        "nothing new": lambda b: image(b, *halves[b]),
    }
    rows = []
    with progress("gates of kept halves"):
        with torch.no_grad(), dense_reference():
            exact, dense = double.forward(), bench.forward()
        with torch.no_grad():
            found = {name: way(bench) for name, way in ways.items()}
            whole = bench.forward()
    for name, given in found.items():
        if not torch.equal(given["image"], whole["image"]):
            raise ValueError(f"{name}: expected the image of a full pass bit for bit")
    verdicts = {"dense": gate(dense, dense, exact), "ours": gate(whole, dense, exact)}
    calls: dict[str, Callable[[], object]] = {"all/dense": bench.plain().forward, "all/full": bench.forward}
    calls |= {f"{name}/ours": (lambda way=way: way(bench)) for name, way in ways.items()}
    timings = timed(timed_calls(calls), options, "kept halves")
    common = {key: timings[key] for key in ("all/dense", "all/full")}
    for name in ways:
        own = {**common, f"{name}/ours": timings[f"{name}/ours"]}
        rows.append(row_of(f"msca/{name} {named(options)}", "forward", asked_of(options, part=name), verdicts, own))
    return rows


# ------------------------------------------------------------------------------------------------------------ command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_msca", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS, help="what is measured")
    parser.add_argument("--size", type=int, default=256, help="side of the images (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="ngf, and from 63 down all widths (default %(default)s)")
    parser.add_argument("--trunk", choices=("vgg", "own"), default="vgg", help="what gives features (default %(default)s)")
    parser.add_argument("--maps", type=numbers, default=[4, 8, 16, 32, 64], help="K (default 4,8,16,32,64)")
    parser.add_argument("--sides", type=numbers, default=[64, 128, 256, 512], help="of exemplars (default 64,128,256,512)")
    parser.add_argument("--repeat", type=int, default=9, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="soft limit for the timing of a table (default 120)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--quick", action="store_true", help="32 x 32, width 4, own trunk, three rounds: does it run?")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/msca_cpu.json; needed with --quick)")
    options = parser.parse_args(arguments)
    if options.quick:
        if options.out is None:
            parser.error("--out: expected a file, for --quick measures nothing that is worth keeping; got none")
        options.size, options.width, options.trunk, options.repeat = 32, 4, "own", 3
        options.maps, options.sides = [4, 8], [32, 64]
    for name in ("width", "batch", "repeat"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive number, got {getattr(options, name)}")
    for side in (options.size, *options.sides):
        try:
            sizes_of(side, side)
        except ValueError as error:
            parser.error(str(error))
    options.out = options.out or RESULTS / f"msca_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
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
    labels = label_source(options.data)
    result = heading("msca", labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    runs = {"forward": run_forward, "step": run_step, "maps": run_maps, "exemplar": run_exemplar, "keep": run_keep}
    result["rows"] = jsonable(runs[options.part](options, labels))
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
