"""Judge trained models of harmonized transfer beside each other: the paper's Tables 1 to 4, and how their training went.

    python -m benchmarks.run_harmonized_quality --data DIR --harmony runs/harmony full=runs/full sean=runs/sean ...

All runs are judged in one call of `mixsyn-fast harmonized evaluate`, by the same pictures, styles and seed: the first one
also without its attention, and its samples by its flows as well; runs of SEAN and ablations stand beside it. A row holds a
model's scores, by task, with their 95 % intervals over pictures, their differences to the first model on the same pictures,
the run's settings, and the curve of its validation. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsyn_fast.models.harmonized import evaluate
from mixsyn_fast.models.training.run import read_log

from mixsyn_fast.writing import jsonable

from . import schema
from .timing import machine, save

_KEPT = ("mean", "low", "high", "count")


def scores(report: Mapping[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Return "task: metric" -> mean, interval and number of pictures of a model of a report; FID has no interval."""
    found: dict[str, dict[str, Any]] = {}
    for task, models in report["tasks"].items():
        for name, score in models[model]["metrics"].items():
            found[f"{task}: {name}"] = {key: score[key] for key in _KEPT}
        if models[model]["fid"]:
            fid = models[model]["fid"]
            found[f"{task}: fid"] = {"mean": fid["value"], "count": fid["first_count"]}
    return found


def differences(report: Mapping[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Return "task: metric" -> mean difference to the first model, with its interval, over the pictures that both have."""
    return {
        f"{task}: {name}": {key: score[key] for key in _KEPT}
        for task, models in report["tasks"].items()
        for name, score in models[model].get("differences", {}).items()
    }


def training(run: Path) -> dict[str, Any]:
    """Return steps and validation curve of a run."""
    log = read_log(run)
    curve = [
        {"step": line["step"], **{key[11:]: line[key] for key in line if key.startswith("validation/")}}
        for line in log
        if any(key.startswith("validation/") for key in line)
    ]
    return {"steps": max(line["step"] for line in log), "validation": curve}


def rows_of(report: Mapping[str, Any], runs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return a row per model of a report: the runs by their names, and what the first one was judged as besides.

    Args:
        report: of `mixsyn-fast harmonized evaluate`, as JSON.
        runs: name -> run folder, the first one the report's first model.
    """
    first = next(iter(runs))
    rows = []
    for model in next(iter(report["tasks"].values())):
        name = first if model == evaluate.OURS else model
        run = runs.get(name, runs[first])
        config = json.loads((run / "config.json").read_text())
        settings = {"model": config["model"], "options": config["options"], "data": config["data"], "task": config["task"]}
        facts = {"scores": scores(report, model), "differences": differences(report, model), **training(run)}
        case = f"quality/{name}" if name in runs else f"quality/{first}, {name}"
        rows.append(schema.row(op="harmonized", case=case, mode="evaluation", settings=settings, contenders={}, facts=facts))
    rows[0]["facts"] |= {"not_computed": report["not_computed"], "details": report["details"]}
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the runs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="run folders of mixsyn-fast train; the first is ours")
    parser.add_argument("--data", required=True, help="data set whose validation split is judged on")
    parser.add_argument("--limit", type=int, default=200, help="pictures")
    parser.add_argument("--styles", type=int, default=10, help="random styles of every picture and group")
    parser.add_argument("--harmony", help="classifier of mixsyn-fast train harmony; none: no harmony score")
    parser.add_argument("--inception", help="TorchScript feature network for FID; none: no FID")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=schema.RESULTS / "harmonized_quality.json")
    args = parser.parse_args(argv)
    runs = {name: Path(run) for name, _, run in (given.partition("=") for given in args.runs)}
    for name, run in runs.items():
        if not (run / "config.json").is_file():
            parser.error(f"{name}: expected a run folder, got {str(run)!r}")
    began = time.monotonic()
    first, *others = runs.items()
    with tempfile.TemporaryDirectory() as folder:
        options = evaluate.Options(
            model=str(first[1]),
            compare=tuple(f"{name}={run}" for name, run in others),
            data=args.data,
            limit=args.limit,
            styles=args.styles,
            harmony=args.harmony,
            inception=args.inception,
            seed=args.seed,
            out=Path(folder),
        )
        if evaluate.main(options) != 0:
            raise SystemExit("mixsyn-fast harmonized evaluate failed")
        report = json.loads((Path(folder) / "report.json").read_text())
    words = " ".join(f"{name}=runs/{name}" for name in runs)
    command = f"run_harmonized_quality --data $MIXSYN_FAST_DATA/{Path(args.data).name} --limit {args.limit} "
    command += f"--styles {args.styles} " + "--harmony runs/harmony " * bool(args.harmony) + words
    result = {
        "kind": "evaluation",
        "command": command,
        "machine": machine(),
        "rates": {},
        "labels": Path(args.data).name,
        "repeat": None,
        "seconds": time.monotonic() - began,
        "rows": rows_of(report, runs),
        "left_out": [],
        "losses": [],
        "wrong": [],
    }
    print(save(jsonable(result), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
