"""Measure accelerate() on whole models of other people: MONAI, diffusers, a semantic diffusion U-Net, a portrait decoder.

    python -m benchmarks.run_libraries [--cases REGEX] [--repeat N] [--seconds S] [--out FILE] [--no-compile] [--data DIR]
                                       [--cpu avx2] [--markdown]

Models of a package are its own classes (`make build/compat/.installed` installs pinned ones beside the environment); where
there is no package, the networks of examples/ are written from the papers. Weights are random, widths smaller than published
where a row would take too long; the row says what share of the multiply-accumulates the conditioning has, and the share is
near the published one. Label maps are real (faces of CelebAMask-HQ, scenes of ADE20K), volumes are nested shells.

Contenders of a row take turns in one process, with the same weights and inputs:

* eager: the model as it is; compile: torch.compile of it;
* ours: a copy after accelerate(); ours+kept: a copy inside constant_conditioning(), a sampler's later steps;
* floor: eager without the layers that read the map, whose whole work it leaves out: what nobody can be faster than by making
  those layers faster, nor smaller. 1 - floor / eager is the conditioning's share of the time before, 1 - floor / ours after.

Gate: the output by the rule of mixsyn_fast/measure/gate.py, eager in float64 being exact, with the floor of
benchmarks/run_models.py for dozens of layers. Targets: a sampler's step, or peak memory of a decoder, against eager.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mixsyn_fast.models.plain import shared_copy
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from examples.accelerate_portrait import PortraitDecoder, settle
from examples.accelerate_sdm import SemanticUNet
from mixsyn_fast import accelerate, constant_conditioning
from mixsyn_fast.accelerate import AccelerationReport
from mixsyn_fast.machine import time_limit
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .cases import Labels, label_source, select
from .ops.base import Target
from .schema import RESULTS, Measured
from .timing import compare, heading, machine_line, save

LIBRARIES = Path(__file__).resolve().parents[1] / "build" / "compat"
_FLOOR = 1e-5  # of the gate, as benchmarks/run_models.py: dozens of layers, each with a floor of its own
KEPT = "ours+kept"


@dataclass(frozen=True)
class LibraryCase:
    """A model on one map."""

    model: str  # a key of MODELS
    size: int  # pixels of a side: of the output, of a decoder's latent or features
    widths: dict[str, Any] = field(default_factory=dict)  # arguments of the model's class
    regions: int = 0  # of the label map
    labels: str = ""  # face, street, volume

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        return f"{self.model}/{self.size}"


@dataclass(frozen=True)
class Model:
    """How a model is made, called and judged."""

    title: str  # in documents
    reads: str  # class of the layers that read the map
    build: Callable[[LibraryCase], nn.Module]
    inputs: Callable[[LibraryCase, Labels], tuple[Tensor, ...]]
    call: Callable[..., Tensor]  # of the model and its inputs
    packages: tuple[str, ...] = ()
    sampler: bool = False  # called many times with one map
    goals: tuple[tuple[str, Target], ...] = ()  # contender, target; what "memory" is peak memory against eager's


def shells(size: int, regions: int) -> Tensor:
    """Return labels (1, size, size, size) of nested, dented shells, 0 outside, as organs lie in a scan."""
    side = torch.linspace(-1, 1, size)
    where = torch.stack(torch.meshgrid(side / 0.9, side / 0.75, side / 0.8, indexing="ij"))
    dents = torch.randn(1, 1, 5, 5, 5, generator=torch.Generator().manual_seed(3))
    dents = F.interpolate(dents, size=(size, size, size), mode="trilinear", align_corners=True)[0, 0]
    radius = where.norm(dim=0) + 0.12 * dents
    return (regions - 1 - torch.bucketize(radius, torch.linspace(0.3, 1.0, regions - 1)))[None]


def one_hot(case: LibraryCase, labels: Labels) -> Tensor:
    """Return the map of a case, (1, K, size, size) or (1, K, size, size, size) float32."""
    if case.labels == "volume":
        found = shells(case.size, case.regions)
    else:
        found = labels.tensors(case.labels, 1, case.size)[1]
    return F.one_hot(found, case.regions).movedim(-1, 1).float().contiguous()


def _denoising(case: LibraryCase, labels: Labels) -> tuple[Tensor, ...]:
    segmap = one_hot(case, labels)
    channels = 1 if case.labels == "volume" else 3
    return torch.randn(1, channels, *segmap.shape[2:]), torch.tensor([500]), segmap


def _latent(channels: int, *frames: int) -> Callable[[LibraryCase, Labels], tuple[Tensor, ...]]:
    """Inputs of a decoder: a latent, of a video with a number of frames, wider than it is high."""

    def inputs(case: LibraryCase, labels: Labels) -> tuple[Tensor, ...]:
        size = (case.size, case.size * 3 // 2) if frames else (case.size, case.size)
        return (torch.randn(1, channels, *frames, *size),)

    return inputs


def _called(model: nn.Module, *inputs: Tensor) -> Tensor:
    found: Tensor = model(*inputs)
    return found


def _portrait(case: LibraryCase) -> nn.Module:
    decoder = PortraitDecoder(**case.widths)
    settle(decoder, decoder.fc.in_channels)
    return decoder


def _unet(case: LibraryCase) -> nn.Module:
    from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet

    dimensions, channels = (3, 1) if case.labels == "volume" else (2, 3)
    return SPADEDiffusionModelUNet(dimensions, channels, channels, case.regions, **case.widths)


def _spadenet(case: LibraryCase) -> nn.Module:
    from monai.networks.nets.spade_network import SPADENet

    return SPADENet(2, 3, 3, case.regions, [case.size, case.size], **case.widths)


def _movq(case: LibraryCase) -> nn.Module:
    from diffusers import VQModel

    levels = len(case.widths["block_out_channels"]) - 1
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * levels,
        latent_channels=4, vq_embed_dim=4, norm_type="spatial", **case.widths,
    )  # fmt: skip


def _cogvideox(case: LibraryCase) -> nn.Module:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(**case.widths)


_MONAI = ("monai", "einops")
_TWICE = Target("eager", least=2.0)
_SAMPLER: dict[str, Any] = {"inputs": _denoising, "call": _called, "sampler": True}
_SMALL = (("ours", Target("memory", most=0.6)),)
MODELS: dict[str, Model] = {
    "sdm": Model(
        "semantic diffusion U-Net, a step", "SPADEGroupNorm", lambda case: SemanticUNet(case.regions, **case.widths),
        goals=((KEPT, Target("eager", least=1.4)),), **_SAMPLER,
    ),
    "monai_unet": Model(
        "MONAI SPADEDiffusionModelUNet, a step", "SPADE", _unet, packages=_MONAI, goals=((KEPT, _TWICE),), **_SAMPLER
    ),
    "monai_unet_fused": Model(
        "MONAI SPADEDiffusionModelUNet with its fused attention, a step", "SPADE", _unet, packages=_MONAI,
        goals=((KEPT, _TWICE),), **_SAMPLER,
    ),
    "monai_unet_3d": Model(
        "MONAI SPADEDiffusionModelUNet in 3-D, a step", "SPADE", _unet, packages=_MONAI, goals=((KEPT, _TWICE),), **_SAMPLER
    ),
    "monai_spadenet": Model(
        "MONAI SPADENet", "SPADE", _spadenet, lambda case, labels: (one_hot(case, labels),),
        lambda model, segmap: model(segmap)[0], packages=_MONAI, goals=(("ours", _TWICE),),
    ),
    "movq": Model(
        "diffusers VQModel (MoVQ), decoding", "SpatialNorm", _movq, _latent(4),
        lambda model, z: model.decode(z, force_not_quantize=True).sample, packages=("diffusers",), goals=_SMALL,
    ),
    "cogvideox": Model(
        "diffusers AutoencoderKLCogVideoX, decoding", "CogVideoXSpatialNorm3D", _cogvideox, _latent(16, 3),
        lambda model, z: model.decode(z).sample, packages=("diffusers",), goals=_SMALL,
    ),
    "portrait": Model(
        "portrait decoder, a frame", "SPADE", _portrait,
        lambda case, labels: (torch.randn(1, case.widths["features"], case.size, case.size),), _called,
        goals=(("ours", Target("eager", least=1.2)),),
    ),
}  # fmt: skip


def cases() -> list[LibraryCase]:
    """The rows: half of the published widths where the whole would take minutes, hidden layers of maps included."""
    half: dict[str, Any] = {"channels": 128, "hidden": 64}
    volume: dict[str, Any] = {"channels": (16, 32, 32, 32), "norm_num_groups": 16, "num_head_channels": 4}
    return [
        LibraryCase("sdm", 64, half, 151, "street"),
        LibraryCase("sdm", 128, half, 151, "street"),
        LibraryCase("monai_unet", 128, {}, 19, "face"),
        LibraryCase("monai_unet", 256, {}, 19, "face"),
        LibraryCase("monai_unet_fused", 256, {"use_flash_attention": True}, 19, "face"),
        LibraryCase("monai_unet_3d", 48, volume | {"spade_intermediate_channels": 64}, 6, "volume"),
        LibraryCase("monai_spadenet", 256, {"channels": [128, 64, 32, 16], "is_vae": False}, 19, "face"),
        LibraryCase("movq", 32, {"block_out_channels": (64, 128, 128, 256), "layers_per_block": 2}),
        LibraryCase("cogvideox", 12, {"block_out_channels": (32, 64, 64, 128)}),
        LibraryCase("portrait", 64, {"features": 128, "hidden": 64}),
    ]


# ---------------------------------------------------------------------------------------------------------- one row


def missing(packages: Iterable[str]) -> str | None:
    """Return what is said where a package cannot be imported, from the environment or from build/compat; else None."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            if LIBRARIES.is_dir() and str(LIBRARIES) not in sys.path:
                sys.path.append(str(LIBRARIES))  # behind the environment's own packages
            try:
                importlib.import_module(package)
            except ImportError as error:
                return (
                    f"{package} is not installed ({error}): `make build/compat/.installed` puts it beside the environment; "
                    "rows that need no package: --cases '^(sdm|portrait)'"
                )
    return None


def lively(model: nn.Module) -> nn.Module:
    """Draw anew what begins with zero and would hide every difference: last convolutions of blocks, biases."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                size = parameter[0].numel() if parameter.dim() > 1 else 100
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size**-0.5)
    return model.eval().requires_grad_(False)


def layers_that_read(model: nn.Module, reads: str) -> dict[str, nn.Module]:
    """Return the layers of a class by name; of an accelerated model too, for its classes keep their names."""
    return {name: module for name, module in model.named_modules() if type(module).__name__ == reads}


def operations(call: Callable[[], Any], layers: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Return multiply-accumulates of a call, and those within the given layers; attention counts as its two products."""
    counter, entered, inside = FlopCounterMode(display=False), [0], [0]

    def enter(*_: Any) -> None:
        entered[0] = counter.get_total_flops()

    def leave(*_: Any) -> None:
        inside[0] += counter.get_total_flops() - entered[0]

    hooks = [layer.register_forward_pre_hook(enter) for layer in layers.values()]
    hooks += [layer.register_forward_hook(leave) for layer in layers.values()]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # the CPU's fused kernel is not counted
        call()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2, inside[0] // 2


def without(model: nn.Module, reads: str) -> nn.Module:
    """Return the model without what the layers of a class do; weights are shared.

    A layer that returns a pair (with a cache) is known by what its class is called.
    """
    bare: nn.Module = shared_copy(model)
    pair = reads == "CogVideoXSpatialNorm3D"
    for layer in layers_that_read(bare, reads).values():
        layer.forward = (lambda x, *_, **__: (x, {})) if pair else (lambda x, *_, **__: x)  # type: ignore[method-assign]
    return bare


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _share(inside: float, total: float) -> float:
    return inside / total if total else 0.0


def conditioning(report: AccelerationReport, whole: int, inside: int) -> dict[str, float]:
    """Return the conditioning's operations in the last call of an accelerated model, and its share of all of them."""
    saved = sum(of.published_macs - of.macs for of in report.work().values())
    left = max(inside - saved, 0)
    return {"conditioning_macs": left, "share": _share(left, whole - inside + left)}


def run_case(case: LibraryCase, labels: Labels, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    model = MODELS[case.model]
    with progress(f"building {case.name}"):
        torch.manual_seed(0)
        eager = lively(model.build(case))
        inputs = model.inputs(case, labels)
        networks = {"eager": eager, "ours": copy.deepcopy(eager)}
        begin = time.perf_counter()
        reports = {"ours": accelerate(networks["ours"])}
        facts: dict[str, Any] = {"accelerate_seconds": time.perf_counter() - begin}
        if model.sampler and reports["ours"].changed:
            networks[KEPT] = copy.deepcopy(eager)
            reports[KEPT] = accelerate(networks[KEPT])
        networks["floor"] = without(eager, model.reads)

    def step(network: nn.Module) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return model.call(network, *inputs)

        return call

    calls = {name: step(network) for name, network in networks.items()}
    if options.compile:
        torch._dynamo.reset()
        compiled = torch.compile(functools.partial(model.call, eager), dynamic=False)
        calls["compile"] = torch.no_grad()(functools.partial(compiled, *inputs))
    with constant_conditioning(networks[KEPT]) if KEPT in networks else nullcontext():
        shape, verdicts = _judged(case, model, eager, inputs, calls, options.compile_seconds)
        reading = layers_that_read(eager, model.reads)
        macs, inside = operations(calls["eager"], reading)
        facts |= {"macs": macs, "conditioning_macs": inside, "share": _share(inside, macs), "output": shape}
        for name, report in reports.items():
            if verdicts[name].passed:
                calls[name]()  # a second call: what is kept was made in the first
                facts[name] = conditioning(report, macs, inside)
        changed = {entry.name for entry in reports["ours"].changed}
        facts |= {"layers": len(reading), "accelerated": len(changed & set(reading))}
        gates: dict[str, Gate | None] = {**verdicts, "floor": None}
        running = {name: call for name, call in calls.items() if (verdict := gates[name]) is None or verdict.passed}
        entries = compare(
            running, {name: verdicts[name] for name in running if name in verdicts}, repeat=options.repeat,
            budget_s=options.seconds, warmup=1, resident=True, what=case.name,
        )  # fmt: skip
    for name, verdict in verdicts.items():
        if name not in entries:
            note = f"wrong result or failure: {verdict.what}, error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
            entries[name] = Measured(gate=verdict, note=note)
    goals = [goal for contender, target in model.goals if (goal := _goal(contender, target, entries)) is not None]
    return schema.row(
        op="libraries", case=f"libraries/{case.name}", mode="forward", settings=asdict(case), contenders=entries,
        baseline="eager", targets=goals, facts=facts,
    )  # fmt: skip


def _judged(
    case: LibraryCase,
    model: Model,
    eager: nn.Module,
    inputs: tuple[Tensor, ...],
    calls: Mapping[str, Callable[[], Tensor]],
    compile_seconds: float,
) -> tuple[list[int], dict[str, Gate]]:
    """Return the output's shape, and everybody's gate but the floor's; one that raises fails its gate and says why."""
    with progress(f"{case.name} in float64"), torch.no_grad():
        exact = {"output": model.call(copy.deepcopy(eager).double(), *map(_double, inputs))}
    reference = {"output": calls["eager"]()}
    verdicts = {"eager": gate(reference, reference, exact, floor=_FLOOR)}
    for name in (name for name in calls if name not in ("eager", "floor")):
        try:
            with progress(f"{name} of {case.name}: first call"), time_limit(compile_seconds):
                verdicts[name] = gate({"output": calls[name]()}, reference, exact, floor=_FLOOR)
        except Exception as error:  # the row goes on without this contender
            verdicts[name] = Gate(False, float("inf"), 0.0, f"{type(error).__name__}: {str(error)[:160]}")
    return list(reference["output"].shape), verdicts


def _goal(contender: str, target: Target, entries: Mapping[str, Measured]) -> dict[str, Any] | None:
    contender = contender if contender in entries else "ours"  # nothing of the model was changed
    own, other = entries[contender], entries["eager"]
    if own.timing is None or other.timing is None:
        return None
    got = other.timing.median / own.timing.median
    if target.what == "memory":
        if own.peak_bytes is None or not other.peak_bytes:
            return None
        got = own.peak_bytes / other.peak_bytes
    return {"contender": contender, **asdict(target), "got": got, "met": target.met(got)}


def told(row: tables.Row) -> str:
    """Return in words what share the conditioning has, before and after, of operations and time, and what is left to win."""
    facts = row["facts"]
    text = f"  conditioning {facts['share']:.0%} of {facts['macs'] / 1e9:.3g} G multiply-accumulates"
    for name in ("ours", KEPT):
        if name in facts:
            text += f", {name} {facts[name]['share']:.0%}"
    before, *after = (tables.ratio(row, "floor", name) for name in ("eager", "ours", KEPT))
    if before is not None:
        text += f"; of the time {1 - before:.0%}" + "".join(f", then {1 - rest:.0%}" for rest in after if rest is not None)
        text += f": at most {1 / before:.2f} x by it alone"
    least, most = (row["contenders"].get(name, {}).get("peak_bytes") for name in ("floor", "eager"))
    if least and most:
        text += f"; memory at least {least / most:.2f} x"
    return f"{text}; {facts['accelerated']} of {facts['layers']} layers accelerated"


# --------------------------------------------------------------------------------------------------------- the run


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_libraries", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--repeat", type=int, default=7, help="rounds per row (default 7)")
    parser.add_argument("--seconds", type=float, default=45.0, help="soft limit for the timing of one row")
    parser.add_argument("--out", type=Path, default=None, help="JSON (default benchmarks/results/libraries_<device>.json)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--compile-seconds", type=float, default=400.0, help="give a first call this long")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    cpu.add_option(parser)
    options = parser.parse_args(arguments)
    options.compile &= options.cpu is None  # see cpu.py
    options.out = options.out or RESULTS / f"libraries_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
    return options


def run(options: argparse.Namespace, chosen: list[LibraryCase]) -> dict[str, Any]:
    """Run the rows, printing each as it comes; returns the result that is written."""
    keep_memory()  # for every contender alike
    labels = label_source(options.data)
    result = heading("libraries", labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    for case in chosen:
        row = jsonable(run_case(case, labels, options))
        result["rows"].append(row)
        print(tables.row_line(row), told(row), sep="\n", flush=True)
        result["seconds"] = round(time.perf_counter() - start, 1)
        save(result, options.out)
        gc.collect()
    result |= tables.faults(result["rows"])
    save(result, options.out)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    chosen = select(cases(), options.cases)
    if not chosen:
        print(f"--cases: no row matches {options.cases!r}", file=sys.stderr)
        return 2
    if problem := missing(package for case in chosen for package in MODELS[case.model].packages):
        print(problem, file=sys.stderr)
        return 2
    try:
        cpu.restrict(options.cpu)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    result = run(options, chosen)
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
