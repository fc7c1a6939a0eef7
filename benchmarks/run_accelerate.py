"""Measure accelerate() on models of other people, with the maps that they really get: label noise, a SEAN being edited.

    python -m benchmarks.run_accelerate [--quick] [--cases REGEX] [--repeat N] [--seconds S] [--out FILE] [--data DIR]
                                        [--cpu avx2] [--markdown]

Two contenders take turns in one process: *published*, a layer or generator in the published form (the test-suite's
yardstick), and *ours*, a copy of it after accelerate(). Rows:

* noise: one SPADE layer alone on labels drawn anew for every cell of 1, 2, 4, 8 pixels. Alone it pays for the analysis of
  its map by itself: the worst case. Never slower than 0.95 times the published form.
* features: the same layer on 256 channels of dense features, enlarged from 64 pixels a side (face animation).
* columns: the same layer on a map of class vectors in cells; beside it (*told*) ``spade_norm(class_vectors=)``, which knows
  the classes: at most 1.3 times its time.
* sean: the whole generator, from a style image ("test" mode) and with the codes of an editor in ``obj_dic`` ("ui" mode).

Gate: 2x rule (mixsyn_fast/measure/gate.py) of the output against the published form in float64, and gradients of x in
training; for whole generators with the floor of benchmarks/run_models.py.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mixsyn_fast import RegionMap, accelerate
from mixsyn_fast.layers import spade_norm
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .cases import Labels, label_source, select
from .ops.base import Target
from .run_models import published_forms
from .schema import RESULTS
from .timing import compare, heading, machine_line, save

LEAST = 0.95  # of the published form's speed, on any map
TOLD = 1 / 1.3  # of the speed of what is told the classes
FEATURES, VECTOR = 64, 64  # pixels a side; length of a class vector


@dataclass(frozen=True)
class AccelerateCase:
    """A layer on a map of cells (cell > 0), or a whole SEAN generator in a mode of its layers."""

    what: str  # noise, features, columns, sean_test, sean_ui
    regions: int = 19  # of features their channels
    channels: int = 64
    size: int = 256
    cell: int = 0
    mode: str = "forward"  # or training: forward and backward

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        layer = f"/k{self.regions}/{self.channels}x{self.size}x{self.size}/cell{self.cell}" if self.cell else f"/{self.size}"
        return f"{self.what}{layer}/{self.mode}"


def cases(*, quick: bool = False) -> list[AccelerateCase]:
    """The rows."""
    shapes = ((19, 256, 64), (19, 128, 128), (19, 64, 256), (151, 128, 128))
    rows = [AccelerateCase("noise", k, c, size, cell) for k, c, size in shapes for cell in (1, 2, 4, 8)]
    rows += [AccelerateCase("noise", 19, 128, 128, cell, "training") for cell in (1, 2, 4, 8)]
    for mode in ("forward", "training"):
        rows += [
            AccelerateCase("features", 256, c, FEATURES * s, s, mode) for c, s in ((512, 1), (256, 2), (256, 4), (64, 4))
        ]
    rows.append(AccelerateCase("columns", 8, 128, 256, 16))
    return rows[:4] if quick else [*rows, AccelerateCase("sean_test"), AccelerateCase("sean_ui")]


def _cells(case: AccelerateCase) -> Tensor:
    """Label noise (1, size, size)."""
    count = -(-case.size // case.cell)
    drawn = torch.randint(0, case.regions, (1, count, count), generator=torch.Generator().manual_seed(case.cell))
    wide = drawn.repeat_interleave(case.cell, 1).repeat_interleave(case.cell, 2)
    return wide[:, : case.size, : case.size]


def _vectors(case: AccelerateCase) -> Tensor:
    """A vector per class (1, K, D)."""
    return torch.randn(1, case.regions, VECTOR, generator=torch.Generator().manual_seed(case.regions))


class Told(nn.Module):
    """A layer of SPADE that is told the classes of its map."""

    def __init__(self, layer: nn.Module, labels: Tensor, vectors: Tensor) -> None:
        super().__init__()
        self.layer, self.labels, self.vectors = layer, labels, vectors

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Read the labels anew, as the accelerated layer its map."""
        regions = RegionMap(self.labels, self.vectors.shape[1])
        layer: Any = self.layer
        return spade_norm(layer, x, regions, class_vectors=self.vectors)


def _onehot(labels: Tensor, regions: int) -> Tensor:
    return nn.functional.one_hot(labels, regions).permute(0, 3, 1, 2).float().contiguous()


def _modal(forms: ModuleType) -> type[nn.Module]:
    """A SEAN layer with the published modes: "ui" takes the codes of the regions from obj_dic."""

    class Modal(forms.ACE):  # type: ignore[name-defined, misc]
        status = "test"

        def forward(self, x: Tensor, segmap: Tensor, style_codes: Any = None, obj_dic: Any = None) -> Tensor:
            if vars(self).get("status") == "ui" and self.use_rgb:
                codes = x.new_zeros(1, self.label_nc, self.style)
                for k in range(self.label_nc):
                    if bool((segmap[0, k] != 0).any()):
                        codes[0, k] = obj_dic[str(k)]["ACE"]
                style_codes = codes
            result: Tensor = super().forward(x, segmap, style_codes)
            return result

    return Modal


def build(case: AccelerateCase, labels: Labels, forms: ModuleType, **width: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the published form and its inputs; ``width``: of a generator, for tests (ngf, style, hidden, width)."""
    torch.manual_seed(0)
    if case.what == "noise":
        layer = forms.randomise(forms.SPADE(case.channels, case.regions, "instance"))
        return layer.train(case.mode == "training"), (
            torch.randn(1, case.channels, case.size, case.size),
            _onehot(_cells(case), case.regions),
        )
    if case.what in ("features", "columns"):
        count = case.regions if case.what == "features" else VECTOR
        layer = forms.randomise(forms.SPADE(case.channels, count, "instance")).train(case.mode == "training")
        segmap = torch.randn(1, count, case.size // case.cell, case.size // case.cell)
        if case.what == "columns":
            segmap = _vectors(case)[0][_cells(case)].permute(0, 3, 1, 2).contiguous()
        return layer, (torch.randn(1, case.channels, case.size, case.size), segmap)
    ngf = width.pop("ngf", 64)
    model = forms.randomise(forms.SEANGenerator(ngf, case.regions, (case.size, case.size), **width)).eval()
    image, found = labels.tensors("face", 1, case.size)
    _calibrate(model, _onehot(found, case.regions), image)
    for layer in model.modules():
        if isinstance(layer, forms.ACE):
            layer.__class__ = _modal(forms)
            layer.status = case.what.removeprefix("sean_")
    length = next(layer.style for layer in model.modules() if isinstance(layer, forms.ACE))
    stored = {str(k): {"ACE": torch.randn(length)} for k in range(case.regions)}
    return model, (_onehot(found, case.regions), image, stored if case.what == "sean_ui" else ["picture.jpg"])


def _calibrate(model: nn.Module, *inputs: Tensor) -> None:
    """Let running statistics be those of the inputs: with random ones the last tanh saturates, and hides every error."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(*inputs)
    model.eval()
    for norm in norms:
        norm.momentum = 0.1


class _Step:
    """A model's forward, and backward in training; always with the same noise."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> None:
        self.model, self.inputs, self.training = model, inputs, training

    def __call__(self) -> dict[str, Tensor]:
        torch.manual_seed(1)
        if not self.training:
            with torch.no_grad():
                return {"output": self.model(*self.inputs)}
        x, *rest = self.inputs
        x = x.detach().requires_grad_()
        self.model.zero_grad()
        y = self.model(x, *rest)
        y.square().mean().backward()
        return {"output": y.detach(), "grad_x": x.grad} | {
            f"grad_{name}": parameter.grad for name, parameter in self.model.named_parameters() if parameter.grad is not None
        }


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return {key: _double(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def run_case(case: AccelerateCase, labels: Labels, options: argparse.Namespace, forms: ModuleType) -> dict[str, Any]:
    """One row."""
    with progress(f"building {case.name}"):
        published, inputs = build(case, labels, forms)
        ours = copy.deepcopy(published)
        begin = time.perf_counter()
        report = accelerate(ours)
        seconds = time.perf_counter() - begin
    training = case.mode == "training"
    step: dict[str, Callable[[], dict[str, Tensor]]] = {
        "published": _Step(published, inputs, training),
        "ours": _Step(ours, inputs, training),
    }
    if case.what == "columns":
        step["told"] = _Step(Told(published, _cells(case), _vectors(case)), inputs, training)
    with progress(f"checking {case.name}"):
        exact = _Step(copy.deepcopy(published).double(), tuple(map(_double, inputs)), training)()
        reference = step["published"]()
        floor = 1e-5 if case.what.startswith("sean") else None  # as benchmarks/run_models.py: dozens of layers
        gates = {name: gate(step[name](), reference, exact, floor=floor) for name in step if name != "published"}
        gates["published"] = Gate(True, 0.0, 0.0)
    del exact, reference
    entries = compare(step, gates, repeat=options.repeat, budget_s=options.seconds, what=case.name)
    timed = {name: entry.timing.median for name, entry in entries.items() if entry.timing is not None}
    goals = []
    for other, least in (("published", LEAST), ("told", TOLD)):
        if {other, "ours"} <= set(timed) and not case.what.startswith("sean"):
            target, got = Target(other, least=least), timed[other] / timed["ours"]
            goals.append({"contender": "ours", **asdict(target), "got": got, "met": target.met(got)})
    kinds = {kind: report.count(kind) for kind in ("spade", "sean", "style_encoder") if report.count(kind)}
    return schema.row(
        op="accelerate", case=case.name, mode=case.mode, settings=asdict(case), contenders=entries, baseline="published",
        targets=goals, facts={"accelerate_seconds": seconds, "changed": kinds, "left": len(report.left)},
    )  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_accelerate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four rows of noise")
    parser.add_argument("--cases", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--repeat", type=int, default=15, help="rounds per row (default 15)")
    parser.add_argument("--seconds", type=float, default=30.0, help="soft limit for the timing of one row")
    parser.add_argument("--out", type=Path, default=None, help="JSON (default benchmarks/results/accelerate_<device>.json)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    cpu.add_option(parser)
    options = parser.parse_args(arguments)
    options.device = torch.device("cpu")
    options.out = options.out or RESULTS / f"accelerate_{cpu.suffix(options.device, options.cpu)}.json"
    return options


def run(options: argparse.Namespace, forms: ModuleType) -> dict[str, Any]:
    """Run the chosen rows, printing each as it comes; returns the result that is written."""
    keep_memory()  # for both contenders alike
    labels = label_source(options.data)
    result = heading("accelerate", labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    for case in select(cases(quick=options.quick), options.cases):
        row = jsonable(run_case(case, labels, options, forms))
        result["rows"].append(row)
        print(tables.row_line(row), flush=True)
        result["seconds"] = round(time.perf_counter() - start, 1)
        gc.collect()
    result |= tables.faults(result["rows"])
    save(result, options.out)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    forms = published_forms()
    if forms is None:
        print("the published forms are in tests/models/published.py: run this in a clone", file=sys.stderr)
        return 2
    try:
        cpu.restrict(options.cpu, options.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    result = run(options, forms)
    if not result["rows"]:
        print(f"--cases: no row matches {options.cases!r}", file=sys.stderr)
        return 2
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
