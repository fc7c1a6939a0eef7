r"""Judge trained MSCA models beside each other: the paper's Table 1, and what their attention hands to which labels.

    python -m benchmarks.run_msca_quality --data DIR --limit 40 full=runs/full gap=runs/gap labels=runs/labels \
      no_fm=runs/no_fm no_global=runs/no_global spade_vae=runs/spade_vae

All runs are judged by one `mixsyn-fast msca evaluate` with the same pictures, exemplars and seed; the first one is what
the others are compared with. A run of `train spade --generator.use-vae` is one of them, at the size of the patches that the
others were trained on. A row holds the run's settings, of every task the scores with their 95 % intervals over pictures and
the differences to the first run on the same pictures, the curves of its validation and of what its discriminator taught
(docs/training.md), and, of a run of this paper, how much of what a label of the exemplar hands over its own label receives
(`own`, the mean over labels that targets have too, weighed by their pixels), beside what global average pooling would
give it (`even`). Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixsyn_fast.models.evaluation.inputs import reference_of_model
from mixsyn_fast.models.msca import evaluate
from mixsyn_fast.models.msca.label_transfer import Transfer, transfer_of
from mixsyn_fast.models.msca.model import MSCA
from mixsyn_fast.models.msca.transfer import look_at
from mixsyn_fast.models.training.run import read_log

from mixsyn_fast.writing import jsonable

from . import schema
from .timing import machine, save


def scores(report: dict[str, Any], model: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return mean, interval and number of pictures of a model's metrics, and its differences, task by task."""
    kept = ("mean", "low", "high", "count")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, models in report["tasks"].items():
        entry = models[model]
        own = {name: {key: score[key] for key in kept} for name, score in entry["metrics"].items()}
        for name, difference in entry.get("differences", {}).items():
            own[name]["difference"] = {key: difference[key] for key in kept}
        if entry["fid"]:
            own["fid"] = {"mean": entry["fid"]["value"], "count": entry["fid"]["first_count"]}
        found[task] = own
    return found


def own_labels(transfer: Transfer) -> dict[str, float]:
    """Return the share of what labels hand over that their own label receives, and that of global average pooling."""
    with np.errstate(invalid="ignore", divide="ignore"):
        even = transfer.even.diagonal() / transfer.even.sum(1)
    ours = transfer.ratios.diagonal()
    met = (even > 0) & np.isfinite(ours)
    weights = np.where(met, transfer.shares, 0)
    if not weights.sum():
        return {"own": float("nan"), "even": float("nan"), "pairs": transfer.pairs}
    weights = weights / weights.sum()
    return {
        "own": float((weights[met] * ours[met]).sum()),
        "even": float((weights[met] * even[met]).sum()),
        "pairs": transfer.pairs,
    }


def curve(log: Sequence[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """Return the figures of a log whose names begin with a prefix, without it, by step."""
    found = [
        {"step": line["step"], **{key.removeprefix(prefix): line[key] for key in line if key.startswith(prefix)}}
        for line in log
    ]
    return [each for each in found if len(each) > 1]


def judged(name: str, run: Path, report: dict[str, Any], column: str, options: evaluate.Options) -> dict[str, Any]:
    """Return the row of a run."""
    config = json.loads((run / "config.json").read_text())
    log = read_log(run)
    facts: dict[str, Any] = {
        "scores": scores(report, column),
        "not_computed": report["not_computed"],
        "validation": curve(log, "validation/"),
        "judged": curve(log, "judged/"),
        "steps": max(line["step"] for line in log),
    }
    if config["model"] == "msca":
        model = MSCA.load(run)
        with torch.no_grad():
            pictures = look_at(model, reference_of_model(options, model.classes, model.size), [], limit=options.limit)
            if len(pictures) > 1:
                facts["labels"] = own_labels(transfer_of(pictures, model.alignment.aligner(0).gate))
    settings = {"model": config["model"], "options": config["options"], "data": config["data"], "task": config["task"]}
    return schema.row(op="msca", case=f"quality/{name}", mode="evaluation", settings=settings, contenders={}, facts=facts)


def there(given: Sequence[str], skip: bool, parser: argparse.ArgumentParser) -> tuple[dict[str, str], list[str]]:
    """Return the runs by name, and the names of those that are not there: the command ends, or (`skip`) leaves them out."""
    runs = dict(each.partition("=")[::2] for each in given)
    absent = [name for name, run in runs.items() if not (Path(run) / "config.json").is_file()]
    for name in absent:
        if not skip or name == next(iter(runs)):
            parser.error(f"{name}: expected a run folder, got {runs[name]!r}")
    return {name: run for name, run in runs.items() if name not in absent}, absent


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the runs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="run folders of mixsyn-fast train, the full model first")
    parser.add_argument("--data", required=True, help="data set whose validation split is judged on")
    parser.add_argument("--kind", default="auto", help="layout of the data set")
    parser.add_argument("--limit", type=int, default=40, help="pictures")
    parser.add_argument("--pool", help="part of the data set that is retrieved from; none: the validation split")
    parser.add_argument("--inception", help="TorchScript feature network for FID; none: no FID")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-absent", action="store_true", help="leave out runs, but for the first, that are not there")
    parser.add_argument("--out", type=Path, default=schema.RESULTS / "msca_quality.json")
    args = parser.parse_args(argv)
    runs, absent = there(args.runs, args.skip_absent, parser)
    for name in absent:
        print(f"left out: {name}, which is not there", file=sys.stderr)
    began = time.monotonic()
    (_, first), *others = runs.items()
    options = evaluate.Options(
        model=first,
        compare=tuple(f"{name}={run}" for name, run in others),
        data=args.data,
        kind=args.kind,
        limit=args.limit,
        pool=args.pool,
        inception=args.inception,
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        if evaluate.main(replace(options, out=Path(folder))) != 0:
            raise SystemExit("mixsyn-fast msca evaluate failed")
        report = json.loads((Path(folder) / "report.json").read_text())
    columns = [evaluate.OURS, *(name for name, _ in others)]
    rows = [
        judged(name, Path(run), report, column, options) for (name, run), column in zip(runs.items(), columns, strict=True)
    ]
    words = " ".join(f"{name}=runs/{name}" for name in runs)
    command = f"run_msca_quality --data $MIXSYN_FAST_DATA/{Path(args.data).name} --limit {args.limit} "
    command += f"--pool {args.pool} {words}" if args.pool else words
    result = {
        "kind": "evaluation",
        "command": command,
        "machine": machine(),
        "rates": {},
        "labels": Path(args.data).name,
        "repeat": None,
        "seconds": time.monotonic() - began,
        "rows": rows,
        "left_out": absent,
        "losses": [],
        "wrong": [],
    }
    print(save(jsonable(result), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
