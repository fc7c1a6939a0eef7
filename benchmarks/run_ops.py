"""Measure region_norm and label_patterns against eager, torch.compile and the physical floor.

    python -m benchmarks.run_ops [--quick] [--cases REGEX] [--repeat N] [--out FILE] [--markdown] [--no-compile]
                                 [--data DIR] [--device cuda] [--dtype bfloat16] [--seconds S] [--budget S]

Contenders of one row run in one process, taking turns: `eager` (the reference), `compile` (torch.compile of it), the
package's backends (`native`, `triton`), and `copy` (y.copy_(x) of the same tensor). floor = passes * bytes of x /
copy bandwidth, once with the copy of this very row ("floor": for small tensors a copy inside the cache), once with
the bandwidth of a large copy ("memory floor").
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch
from mixsyn_fast.models.data import NUM_CLASSES
from torch import Tensor

from mixsyn_fast import backend
from mixsyn_fast.ops.label_patterns import label_patterns
from mixsyn_fast.ops.region_norm import NORM_BATCH, NORM_GIVEN, NORM_INSTANCE, region_norm, region_norm_reference
from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.runtime import keep_memory

from . import tables
from .cases import DTYPES, LAYOUTS, Labels, NormCase, PatternCase, label_source, norm_cases, pattern_cases, select
from .timing import (
    RESULTS,
    Call,
    Entry,
    Gate,
    compare,
    gate,
    machine,
    machine_line,
    measure_rates,
    save,
    to_plain,
)

MODES = ("forward", "backward", "both")
_CODES = {"instance": NORM_INSTANCE, "batch": NORM_BATCH, "given": NORM_GIVEN}
_COMPILE_ALLOWED = 1e-5  # float32
_EPS = 1e-5


def backends_for(op: str, device: torch.device | str) -> list[str]:
    """The package's backends that would really run `op` on `device`."""
    found = []
    for name in ("native", "triton"):
        with backend.use_backend(name):
            if backend.explain(op, device)[0] == name:
                found.append(name)
    return found


class NormBench:
    """One region_norm row: inputs, contenders, gates."""

    def __init__(
        self, case: NormCase, labels: Labels, device: torch.device | str = "cpu", *, compiled: bool = False
    ) -> None:
        self.case, self.device = case, torch.device(device)
        dtype, layout = DTYPES[case.dtype], LAYOUTS[case.layout]
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
            return torch.randn(*shape, generator=generator).mul_(scale).add_(offset).to(self.device, dtype)

        shape = (case.batch, case.channels, case.side, case.side)
        self.x = normal(*shape, offset=0.3).contiguous(memory_format=layout)
        self.grad = normal(*shape).contiguous(memory_format=layout)
        self.mean = self.variance = self.index = None
        if case.statistics == "given":
            self.mean = normal(1, case.channels, scale=0.3).float()
            self.variance = normal(1, case.channels, scale=0.2).float().exp()
        if case.modulation == "table":
            classes = NUM_CLASSES[case.labels]
            _, maps = labels.tensors(case.labels, case.batch, 256, self.device)
            patterns = RegionMap(maps, classes).patterns((case.side, case.side), 2, per_image=True)
            self.index = patterns.index
            table = normal(patterns.patterns.shape[0], 2 * case.channels, scale=0.3)
            table[:, : case.channels] += 1
            self.modulation: tuple[Tensor, ...] = (table,)
            self.modulation_names: tuple[str, ...] = ("table",)
        else:
            maps_shape = (normal(*shape, scale=0.3, offset=1.0), normal(*shape, scale=0.3))
            self.modulation = tuple(m.contiguous(memory_format=layout) for m in maps_shape)
            self.modulation_names = ("scale", "shift")
        self._keep_off_the_kink()
        self.functions: dict[str, Callable[..., Tensor]] = {"eager": self._reference}
        if compiled and not self._compiler_corrupts_memory:
            torch._dynamo.reset()
            self.functions["compile"] = torch.compile(self._reference, dynamic=False)
        for name in backends_for("region_norm", self.device):
            self.functions[name] = self._ours(name)

    def _reference(self, x: Tensor, *modulation: Tensor) -> Tensor:
        table, scale, shift = self._split(modulation)
        code = _CODES[self.case.statistics]
        return region_norm_reference(
            x,
            self.mean,
            self.variance,
            self.index,
            table,
            scale,
            shift,
            None,
            None,
            code,
            _EPS,
            self.case.negative_slope,
        )[0]

    @property
    def _compiler_corrupts_memory(self) -> bool:
        """Torch 2.13's CPU compiler writes out of bounds on the plain reference with a table in contiguous layout.

        The heap check of the C library aborts the process ("invalid next size"), without any kernel of ours in it.
        """
        case = self.case
        return self.device.type == "cpu" and case.modulation == "table" and case.layout == "contiguous"

    def _keep_off_the_kink(self) -> None:
        """Zero the incoming gradient where rounding may decide on which side of LeakyReLU's kink a value lies."""
        if self.case.negative_slope is None:
            return
        inputs = [t.double() for t in (self.x, *self.modulation)]
        value = self._reference(*inputs)
        slack = 16 * torch.finfo(self.x.dtype).eps * value.abs().max()
        self.grad.masked_fill_(value.abs() <= slack, 0.0)

    def _split(self, modulation: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return (modulation[0], None, None) if self.case.modulation == "table" else (None, *modulation)

    def _ours(self, name: str) -> Callable[..., Tensor]:
        case = self.case
        running = {}
        if self.mean is not None and self.variance is not None:
            running = {"running_mean": self.mean[0], "running_var": self.variance[0]}

        def call(x: Tensor, *modulation: Tensor) -> Tensor:
            table, scale, shift = self._split(modulation)
            with backend.use_backend(name):
                return region_norm(
                    x,
                    self.index,
                    table,
                    scale=scale,
                    shift=shift,
                    norm="instance" if case.statistics == "instance" else "batch",
                    training=case.statistics == "batch",
                    eps=_EPS,
                    negative_slope=case.negative_slope,
                    **running,
                )

        return call

    def _results(self, function: Callable[..., Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Y and all gradients."""
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (self.x, *self.modulation)]
        y = function(*leaves)
        grads = torch.autograd.grad(y, leaves, self.grad.to(y.dtype))
        names = ("x", *self.modulation_names)
        return {"y": y.detach(), **{f"grad_{n}": g for n, g in zip(names, grads, strict=True)}}

    def gates(self) -> dict[str, Gate]:
        """Every contender against float64; a contender that raises fails its gate and says why."""
        exact = self._results(self._reference, torch.float64)
        eager = self._results(self._reference)
        verdicts: dict[str, Gate] = {"eager": gate(eager, eager, exact)}
        for name, function in self.functions.items():
            if name == "eager":
                continue
            try:
                with progress(f"{name} of {self.case.name}: first call"):
                    verdicts[name] = gate(self._results(function), eager, exact)
                if name == "compile" and verdicts[name].error < _COMPILE_ALLOWED:
                    # torch's own rounding is not on trial: its variance takes another order of sums
                    verdicts[name] = Gate(True, verdicts[name].error, _COMPILE_ALLOWED, verdicts[name].what)
            except Exception as error:  # the row goes on without this contender
                verdicts[name] = Gate(False, float("inf"), 0.0, f"{type(error).__name__}: {str(error)[:200]}")
        return verdicts

    def contenders(self, mode: str, names: list[str] | None = None) -> dict[str, Call]:
        """Calls without arguments for a mode: forward (no graph), backward (alone), both."""
        calls: dict[str, Call] = {}
        for name, function in self.functions.items():
            if names is not None and name not in names:
                continue
            if mode == "forward":
                calls[name] = lambda f=function: f(self.x, *self.modulation)
                continue
            leaves = [t.detach().requires_grad_() for t in (self.x, *self.modulation)]
            if mode == "backward":
                y = function(*leaves)
                calls[name] = lambda y=y, leaves=leaves: torch.autograd.grad(y, leaves, self.grad, retain_graph=True)
            else:
                calls[name] = lambda f=function, leaves=leaves: torch.autograd.grad(f(*leaves), leaves, self.grad)
        target = torch.empty_like(self.x)
        calls["copy"] = lambda: target.copy_(self.x)
        return calls


def run_norm(case: NormCase, labels: Labels, rates: dict[str, float], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All modes of one region_norm case as JSON rows."""
    bench = NormBench(case, labels, options.device, compiled=options.compile)
    verdicts = bench.gates()
    gc.collect()
    passing = [name for name, verdict in verdicts.items() if verdict.passed]
    rows = []
    for mode in options.modes:
        entries = compare(
            bench.contenders(mode, passing),
            {name: verdicts[name] for name in passing},
            device=options.device,
            repeat=options.repeat,
            budget_s=options.seconds,
            what=f"{case.name} {mode}",
        )
        for name, verdict in verdicts.items():
            if name not in entries:
                note = f"wrong result: {verdict.what}, error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
                entries[name] = Entry(gate=verdict, note=note)
        size = bench.x.nbytes
        copy = entries.pop("copy").timing
        assert copy is not None
        bytes_moved = case.passes(mode) * size
        rows.append(
            {
                "op": "region_norm",
                "case": case.name,
                "mode": mode,
                "settings": case,
                "rows_of_table": 0 if bench.index is None else bench.modulation[0].shape[0],
                "bytes": bytes_moved,
                "copy_gb_s": 2 * size / copy.median / 1e9,
                "floor_s": case.passes(mode) / 2 * copy.median,
                "memory_floor_s": bytes_moved / (rates["copy_gb_s"] * 1e9),
                "contenders": entries,
            }
        )
        gc.collect()
    return rows


def run_patterns(case: PatternCase, labels: Labels, options: argparse.Namespace) -> dict[str, Any]:
    """One label_patterns case as a JSON row; the gate is equality with the reference."""
    classes = NUM_CLASSES[case.labels]
    _, maps = labels.tensors(case.labels, case.batch, case.side, options.device)
    maps = maps.to(torch.int32)

    def call(name: str) -> Call:
        def run() -> Any:
            with backend.use_backend(name):
                return label_patterns(maps, classes, case.radius, per_image=case.per_image)

        return run

    names = backends_for("label_patterns", options.device)
    expected = call("reference")()
    verdicts = {}
    for name in names:
        same = all(torch.equal(a, b) for a, b in zip(call(name)(), expected, strict=True))
        verdicts[name] = Gate(same, 0.0 if same else 1.0, 0.0, "" if same else "index or patterns differ")
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        entries = compare(
            {"eager": call("reference"), **{name: call(name) for name in names}},
            verdicts,
            device=options.device,
            repeat=options.repeat,
            budget_s=options.seconds,
            what=case.name,
        )
    finally:
        torch.set_num_threads(threads)
    count = int(expected[1].shape[0])
    return {
        "op": "label_patterns",
        "case": case.name,
        "mode": "forward",
        "settings": case,
        "distinct_patterns": count,
        "share": count / maps.numel(),
        "contenders": entries,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_ops", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few small rows")
    parser.add_argument("--cases", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated: forward, backward, both")
    parser.add_argument("--repeat", type=int, default=15, help="rounds per row (default 15)")
    parser.add_argument("--seconds", type=float, default=6.0, help="soft limit for the timing of one row and mode")
    parser.add_argument("--budget", type=float, default=3600.0, help="soft limit for the whole run: later rows are left out")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default benchmarks/results/ops_<device>.json)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown at the end")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument(
        "--default-allocator", action="store_true", help="do not call mixsyn_fast.keep_memory() for all contenders first"
    )
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.default_allocator:
        keep_memory()  # for every contender alike: fresh pages for each large result would drown the rest
    options.modes = [m for m in options.modes.split(",") if m]
    unknown = [m for m in options.modes if m not in MODES]
    if unknown:
        parser.error(f"--modes: expected some of {', '.join(MODES)}, got {', '.join(unknown)}")
    options.device = torch.device(options.device)
    options.out = options.out or RESULTS / f"ops_{options.device.type}.json"
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen rows, printing each as it comes; returns the result that is written."""
    functorch.donated_buffer = False  # backward is timed with retain_graph=True
    labels = label_source(options.data)
    facts = machine(options.device)
    print(machine_line(facts))
    rates = measure_rates(options.device, DTYPES[options.dtype])
    print(f"{labels.text}; " + ", ".join(f"{k} {v:.1f}" for k, v in rates.items()))
    result: dict[str, Any] = {
        "kind": "ops",
        "machine": facts,
        "rates": rates,
        "labels": labels.text,
        "repeat": options.repeat,
        "rows": [],
        "left_out": [],
    }
    start = time.perf_counter()
    chosen = select(
        [*pattern_cases(quick=options.quick), *norm_cases(quick=options.quick, dtype=options.dtype)], options.cases
    )
    if options.device.type == "cuda":
        chosen = [c for c in chosen if not (isinstance(c, PatternCase) and c.threads > 1)]
    for case in chosen:
        if time.perf_counter() - start > options.budget:
            result["left_out"].append(case.name)
            continue
        if isinstance(case, PatternCase):
            rows = [run_patterns(case, labels, options)]
        else:
            rows = run_norm(case, labels, rates, options)
        for row in rows:
            plain = to_plain(row)
            result["rows"].append(plain)
            print(tables.row_line(plain), flush=True)
        save(result, options.out)
    if result["left_out"]:
        print(f"left out after {options.budget:.0f} s: {', '.join(result['left_out'])}", file=sys.stderr)
    result["summary"] = tables.summarise_ops(result["rows"])
    save(result, options.out)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)
    result = run(options)
    if not result["rows"]:
        print(f"--cases: no row matches {options.cases!r}", file=sys.stderr)
        return 2
    print(tables.render(result, markdown=options.markdown))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
