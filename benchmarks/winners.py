"""Measure where the native CPU kernels win, and write the table that the backend `auto` reads.

    python -m benchmarks.winners [--cpu avx2|baseline] [--seconds S] [--repeat N]   measure, then write the table
    python -m benchmarks.winners --table                                            write the table alone

What is measured are the small rows of mixsyn_fast.measure (one per op, layout and dtype, forward alone and with backward,
each behind its gate), on the instruction set in force: benchmarks/results/winners_cpu.json, winners_cpu_avx2.json and
winners_cpu_baseline.json. mixsyn_fast/cpu_winners.json is made of these files and of nothing else: a test makes it again.

Ratios: seconds of the reference backend / of the native kernel ("reference": what `auto` decides by), and of the fastest
form in plain PyTorch / of the native kernel ("plain"; "fastest" is its name).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mixsyn_fast import backend
from mixsyn_fast.measure import rows
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable, write_whole

from . import cpu, schema, tables
from .cases import DTYPES
from .schema import RESULTS, Measured
from .timing import heading, machine_line, save


def table(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table of some results.

    Raises:
        ValueError: a native kernel was wrong, or two results are of one instruction set.
    """
    measured: dict[str, str] = {}
    ratios: dict[str, Any] = {}
    for result in results:
        isa = result["machine"]["instruction_set"]
        if isa in measured:
            raise ValueError(f"two results of {isa}: {measured[isa]}; {machine_line(result['machine'])}")
        measured[isa] = machine_line(result["machine"])
        for row in result["rows"]:
            seconds = {name: entry["timing"]["median"] for name, entry in row["contenders"].items() if entry["timing"]}
            if "native" not in seconds:
                why = row["contenders"].get("native", {}).get("note", "no native kernel")
                raise ValueError(f"{row['case']} {row['mode']} on {isa}: {why}")
            fastest = min((name for name in seconds if name != "native"), key=seconds.__getitem__)
            entry = {
                "reference": round(seconds["reference"] / seconds["native"], 3),
                "plain": round(seconds[fastest] / seconds["native"], 3),
                "fastest": fastest,
            }
            layout, dtype = (row["settings"][name] for name in ("layout", "dtype"))
            by_dtype = ratios.setdefault(row["op"], {}).setdefault(isa, {}).setdefault(layout, {})
            by_dtype.setdefault(dtype, {})[row["mode"]] = entry
    return {"measured": measured, "ratios": ratios}


def text(table: Mapping[str, Any]) -> str:
    """Return a table as JSON, with one line for every mode."""
    mode = re.compile(r'\{\s+("reference": [^{}]*?)\s+\}')
    return mode.sub(lambda found: "{" + " ".join(found[1].split()) + "}", json.dumps(table, indent=1)) + "\n"


def committed() -> list[dict[str, Any]]:
    """Return the results that the table is made of."""
    return [schema.load(path) for path in sorted(RESULTS.glob("winners_cpu*.json"))]


def as_row(measured: rows.Row) -> dict[str, Any]:
    """Return what was measured as a row of the schema."""
    contenders = {name: Measured(note=why) for name, why in measured.wrong.items()}
    contenders |= {name: Measured(timing=timing) for name, timing in measured.timings.items()}
    settings = {name: getattr(measured, name) for name in ("layout", "dtype", "device")}
    return schema.row(op=measured.op, case=measured.case, mode=measured.mode, settings=settings, contenders=contenders)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.winners", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", action="store_true", help="measure nothing: write the table from the results there are")
    parser.add_argument("--seconds", type=float, default=0.5, help="soft limit for the timing of one row and mode")
    parser.add_argument("--repeat", type=int, default=25, help="rounds per row (default 25)")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/winners_<cpu>.json); no table is written")
    cpu.add_option(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, printing each row as it comes; returns the result that is written."""
    result = heading("winners", repeat=options.repeat)
    print(machine_line(result["machine"]), flush=True)
    keep_memory()
    start = time.perf_counter()
    for row in rows.measure(backend.registered_ops(), list(DTYPES), seconds=options.seconds, repeat=options.repeat):
        result["rows"].append(jsonable(as_row(row)))
        print(row.line(), flush=True)
    result["seconds"] = round(time.perf_counter() - start, 1)
    result |= tables.faults(result["rows"])
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    try:
        cpu.restrict(options.cpu)
        if not options.table:
            out = options.out or RESULTS / f"winners_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
            print(f"written: {save(run(options), out)}")
        if options.out is None:
            write_whole(backend.WINNERS, text(table(committed())))
            print(f"written: {backend.WINNERS}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
