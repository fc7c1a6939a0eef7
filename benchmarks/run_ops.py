"""Measure the ops against eager, torch.compile and the physical floor.

    python -m benchmarks.run_ops [--quick | --all] [--cases REGEX] [--repeat N] [--out FILE] [--markdown] [--no-compile]
                                 [--data DIR] [--device cuda] [--dtype bfloat16] [--seconds S] [--budget S] [--cpu avx2]

The rows, contenders and floors of an op are described in its file in benchmarks/ops. Contenders of one row run in one
process, taking turns: forms in PyTorch (`eager` and the like), `compile` (torch.compile), the package's backends
(`native`, `triton`), and plain reading, writing or copying of memory. None is timed unless its result and its gradients
are as close to float64 as the 2x rule asks: ours at most twice the error of the op's reference in the row's own dtype.

Floor: bytes that must move / measured bandwidth, or operations / best measured rate of matrix products, whichever is
longer; once with the bandwidth at this very row's size ("floor": small tensors stay in the cache), once with that of a
large transfer ("memory floor").

Verdict: ours against the fastest of plain PyTorch; a row that ours loses is printed as LOSS (benchmarks/tables.py says what
is noise), and one with a wrong result as such. With any of them the exit status is 1.

--cpu avx2 (or baseline) runs all of it as on a machine that has no more (benchmarks/cpu.py); the targets are then others.

Memory: the peak of all tensors, and of the temporary ones alone (not part of the result), from torch's allocation events;
on Linux also the growth of the process, which sees the scratch memory of kernels and libraries too (about 1 MB accurate).
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch

from mixsyn_fast.measure.contest import MODES, is_ours
from mixsyn_fast.measure.gate import Gate
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, ops, schema, tables
from .cases import DTYPES, Labels, label_source, select
from .ops import OpBench
from .schema import RESULTS, Goal, Measured
from .timing import compare, heading, machine_line, measure_rates, save, transfer_rates, transfers

LARGEST_PROBE = 2**27  # no cache holds more
SCRATCH_SEEN = 2**20  # bytes beyond its tensors by which a process grows before they count as scratch memory


def _seconds(entry: Measured | None) -> float | None:
    return entry.timing.median if entry is not None and entry.timing is not None else None


def scratch(entry: Measured) -> int:
    """Bytes that a call took beside its tensors: the growth of the process beyond their peak, if it can be told."""
    if entry.resident_bytes is None or entry.peak_bytes is None:
        return 0
    beyond = entry.resident_bytes - entry.peak_bytes
    return beyond if beyond > SCRATCH_SEEN else 0


def measured(what: str, own: str, entries: Mapping[str, Measured], row: Mapping[str, Any], baseline: str) -> float | None:
    """The value that a target speaks of, for our contender `own`; None where it was not measured.

    Args:
        what: floor, memory_floor, temporary, seconds, or the name of a contender.
        own: one of ours.
        entries: of all contenders.
        row: holds the floors.
        baseline: whose temporary memory ours is a share of.
    """
    seconds = _seconds(entries.get(own))
    if seconds is None or what == "seconds":
        return seconds
    if what in ("floor", "memory_floor"):
        floor = row.get(f"{what}_s")
        return seconds / floor if floor else None
    if what == "temporary":
        ours, theirs = (entries[n].temporary_bytes if n in entries else None for n in (own, baseline))
        return (ours + scratch(entries[own])) / theirs if ours is not None and theirs else None
    other = _seconds(entries.get(what))
    return other / seconds if other else None


def run_mode(
    bench: OpBench, mode: str, verdicts: Mapping[str, Gate], rates: Mapping[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """One mode of one row as JSON."""
    passing = {name: verdict for name, verdict in verdicts.items() if verdict.passed}
    parts = bench.parts(mode)
    kinds = {kind for part in parts for kind in part.kinds}
    probe = min(bench.probe_bytes, LARGEST_PROBE)
    entries = compare(
        bench.calls(mode, list(passing)),
        passing,
        device=options.device,
        repeat=options.repeat,
        budget_s=options.seconds,
        seldom=bench.seldom,
        probes=transfers(probe, options.device, kinds),
        resident=options.resident,
        what=f"{bench.case.name} {mode}",
    )
    medians = {name: _seconds(entries.pop(name)) for name in list(entries) if name not in verdicts}
    own_rates = transfer_rates(probe, {name: value for name, value in medians.items() if value is not None})
    for name, verdict in verdicts.items():
        if name not in entries:
            note = f"wrong result: {verdict.what}, error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
            entries[name] = Measured(gate=verdict, note=note)
    row = schema.row(
        op=bench.op, case=bench.case.name, mode=mode, settings=bench.case, contenders=entries, baseline=bench.baseline
    )
    row["facts"] = bench.facts()
    if parts:
        sums = {"bytes": sum(part.bytes for part in parts), "operations": sum(part.operations for part in parts)}
        row["facts"] |= {**sums, "own_rates": own_rates}
        row["floor_s"] = sum(part.seconds({**rates, **own_rates}) for part in parts)
        row["memory_floor_s"] = sum(part.seconds(rates) for part in parts)
    row["targets"] = [
        Goal(own, target.what, target.least, target.most, got, target.met(got))
        for own in entries
        if is_ours(own)
        for target in bench.targets(mode)
        if (got := measured(target.what, own, entries, row, bench.baseline)) is not None
    ]
    return row


def run_case(
    kind: type[OpBench],
    case: Any,
    labels: Labels,
    rates: Mapping[str, float],
    options: argparse.Namespace,
    without: Collection[str] = (),
) -> list[dict[str, Any]]:
    """All modes of one case as JSON rows; `without` names contenders that are left out."""
    bench = kind(case, labels, options.device, compiled=options.compile and (options.every or kind.compiles(case)))
    for name in without:
        bench.functions.pop(name, None)
    with bench.thread_count():
        verdicts = bench.gates()
        gc.collect()
        rows = []
        for mode in bench.modes:
            if mode in options.modes:
                rows.append(run_mode(bench, mode, verdicts, rates, options))
                gc.collect()
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_ops", description=(__doc__ or "").split("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few small rows")
    size.add_argument("--all", dest="every", action="store_true", help="every row, other layouts and batch sizes too")
    parser.add_argument("--cases", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated: forward, backward, both")
    parser.add_argument("--repeat", type=int, default=15, help="rounds per row (default 15)")
    parser.add_argument("--seconds", type=float, default=2.5, help="soft limit for the timing of one row and mode")
    parser.add_argument("--budget", type=float, default=3600.0, help="soft limit for the whole run: later rows are left out")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default benchmarks/results/ops_<device>.json)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--no-resident", dest="resident", action="store_false", help="do not measure growth of the process")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown at the end")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    parser.add_argument("--device", default="cpu")
    cpu.add_option(parser)
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument(
        "--default-allocator", action="store_true", help="do not call mixsyn_fast.keep_memory() for all contenders first"
    )
    options = parser.parse_args(arguments)
    options.compile &= options.cpu is None  # see cpu.py
    if options.device == "cpu" and not options.default_allocator:
        keep_memory()  # for every contender alike: fresh pages for each large result would drown the rest
    options.modes = [m for m in options.modes.split(",") if m]
    unknown = [m for m in options.modes if m not in MODES]
    if unknown:
        parser.error(f"--modes: expected some of {', '.join(MODES)}, got {', '.join(unknown)}")
    options.device = torch.device(options.device)
    options.out = options.out or RESULTS / f"ops_{cpu.suffix(options.device, options.cpu)}.json"
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen rows, printing each as it comes; returns the result that is written."""
    functorch.donated_buffer = False  # backward is timed with retain_graph=True
    labels = label_source(options.data)
    result = heading("ops", options.device, labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    result["rates"] = rates = measure_rates(options.device, DTYPES[options.dtype])
    print(f"{labels.text}; " + ", ".join(f"{k} {v:.1f}" for k, v in rates.items()))
    start = time.perf_counter()
    rows = ops.all_cases(quick=options.quick, every=options.every, dtype=options.dtype)
    chosen = {id(case) for case in select([case for _, case in rows], options.cases)}
    for kind, case in rows:
        if id(case) not in chosen or (options.device.type == "cuda" and getattr(case, "threads", 1) > 1):
            continue
        if time.perf_counter() - start > options.budget:
            result["left_out"].append(case.name)
            continue
        for row in run_case(kind, case, labels, rates, options):
            plain = jsonable(row)
            result["rows"].append(plain)
            print(tables.row_line(plain), flush=True)
        result["seconds"] = round(time.perf_counter() - start, 1)
        save(result, options.out)
    if result["left_out"]:
        print(f"left out after {options.budget:.0f} s: {', '.join(result['left_out'])}", file=sys.stderr)
    result |= tables.faults(result["rows"])
    save(result, options.out)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    try:
        cpu.restrict(options.cpu, options.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    result = run(options)
    if not result["rows"]:
        print(f"--cases: no row matches {options.cases!r}", file=sys.stderr)
        return 2
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
