"""Measure the training loop: our plans and kernels against the same loop with `--plan dense --backend reference`.

    python -m benchmarks.run_training [--model sean] [--rounds 2] [--steps 8] [--out FILE] [options of mixsyn-fast train]

Every contender is a process of its own (`mixsyn-fast train ...`, real data, all losses, optimisers, averaged weights); they
take turns. The first step of a process is left out (it compiles and allocates). Reported: median time of a step, images per
second, time a step waited for its data, peak resident memory (on a GPU: peak device memory).

Gate: both start from the same weights, data and noise, so the losses of the first step agree within 1e-3 of each other.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixsyn_fast.measure.clock import summarise
from mixsyn_fast.measure.gate import Gate
from mixsyn_fast.writing import jsonable

from . import schema, tables
from .schema import RESULTS, Measured
from .timing import heading, machine_line, portable, save

CONTENDERS = {"ours": [], "dense": ["--plan", "dense", "--backend", "reference"]}
ALLOWED = 1e-3  # relative difference of the first step's losses, float32


def train_once(model: str, options: list[str], steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train `steps` steps in a process of its own; return the lines of its log."""
    once = ["--steps", str(steps), "--log-every", "1", "--sheet-every", "0", "--validate-every", "0", "--resume", "no"]
    once += ["--save-every", "0", "--out", str(folder)]
    command = [sys.executable, "-m", "mixsyn_fast.models.training", model, *options, *once]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(line: dict[str, Any]) -> dict[str, float]:
    """The losses of a log line: <phase>/<loss>, for every phase (each logs its learning rate as lr/<phase>)."""
    phases = {name.removeprefix("lr/") for name in line if name.startswith("lr/")}
    return {
        name: value for name, value in line.items() if name.split("/")[0] in phases and not name.endswith("gradient_norm")
    }


def largest_difference(ours: dict[str, float], dense: dict[str, float]) -> float:
    """Largest relative difference of the first step's losses; inf where they are not the same losses."""
    if ours.keys() != dense.keys() or not ours:
        return float("inf")
    return max(abs(value - dense[name]) / max(abs(dense[name]), 1e-3) for name, value in ours.items())


def measure(model: str, options: list[str], *, rounds: int, steps: int) -> dict[str, Any]:
    """Let the contenders take turns; return figures by contender and their ratios."""
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    first: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(rounds):
            for name, extra in CONTENDERS.items():
                log = train_once(model, [*options, *extra], steps + 1, Path(scratch) / f"{name}{turn}")
                first.setdefault(name, losses_of(log[0]))
                lines[name] += log[1:]
    difference = largest_difference(first["ours"], first["dense"])
    if difference > ALLOWED:
        raise RuntimeError(f"the losses of the first step differ by {difference:.1e} (allowed {ALLOWED}): {first}")
    entries = {
        name: Measured(
            gate=Gate(True, difference if name == "ours" else 0.0, ALLOWED, "losses of the first step"),
            timing=summarise([line["step_ms"] / 1e3 for line in found]),
            peak_bytes=round(max(line["peak_gb"] for line in found) * 1e9),
        )
        for name, found in lines.items()
    }
    step = lines["ours"][0]
    facts = {
        "images": round(step["images_per_second"] * step["step_ms"] / 1e3),
        "data_s": {name: statistics.median(line["data_ms"] / 1e3 for line in found) for name, found in lines.items()},
    }
    asked = {"model": model, "options": list(map(portable, options))}
    name = f"training/{model}/{shlex.join(asked['options'])}"
    row = schema.row(op="training", case=name, mode="training", settings=asked, contenders=entries, facts=facts)
    return {**row, "baseline": "dense"}


def merged(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of both: a file holds a row for every model and set of options, measured on one machine and commit."""
    facts = [{key: value for key, value in r["machine"].items() if key != "date"} for r in (earlier, result)]
    new = {row["case"] for row in result["rows"]}
    kept = [row for row in earlier["rows"] if row["case"] not in new] if facts[0] == facts[1] else []
    return [*kept, *result["rows"]]


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="sean", help="as in mixsyn-fast train (default sean)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each contender (default 2)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a process (default 8)")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_cpu.json", help="JSON file of the results")
    options, more = parser.parse_known_args(arguments)
    result = heading("training")
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    result["rows"] = [jsonable(measure(options.model, more, rounds=options.rounds, steps=options.steps))]
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(tables.model_line(result["rows"][0]))
    if options.out.is_file():
        result["rows"] = merged(schema.load(options.out), result)
    result |= tables.faults(result["rows"])
    print(save(result, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
