"""Judge trained models of harmonized transfer beside each other: the paper's Tables 1 to 5, and how their training went.

    python -m benchmarks.run_harmonized_quality --data DIR --harmony runs/harmony full=runs/full sean=runs/sean ...
    python -m benchmarks.run_harmonized_quality --data DIR --tasks samples style=runs/style kl=runs/kl image=runs/image

All runs are judged in one call of `mixsyn-fast harmonized evaluate`, by the same pictures, styles and seed: the first one
also without its attention, and the samples of all that have flows by these as well ("NAME, by flow"); runs of SEAN and
ablations stand beside it. --tasks judges some of reconstruction, transfer and samples alone. A row holds a model's scores,
by task, with their 95 % intervals over pictures, their differences to the first model on the same pictures, the run's
settings, and the curve of its validation. --sheets FOLDER: side-by-side sheets of the transfers by every model,
the first one's with and without attention among them, and of a walk in z and one in style space. Nothing here is timed.

The `walks` of every run that has flows say which kind of walk stays nearer to real codes: from the codes of every picture
a step along random directions in z, and one along random directions in style space that goes as far; `nearest` is the mean
distance to the nearest code of another picture, `moved` that to the codes the step began with, both in deviations of a
number (root of the mean square); `real` is the nearest distance of the pictures' own codes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mixsyn_fast.models.data import Item
from mixsyn_fast.models.evaluation.inputs import reference_of_model
from mixsyn_fast.models.harmonized import evaluate, tune
from mixsyn_fast.models.harmonized.model import Harmonized
from mixsyn_fast.models.pictures.picture import Picture
from mixsyn_fast.models.sheets import contact_sheet, save_png
from mixsyn_fast.models.training.run import read_log
from torch import Tensor

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
    """Return a row per model of a report: the runs by their names, and what they were judged as besides.

    Args:
        report: of `mixsyn-fast harmonized evaluate`, as JSON.
        runs: name -> run folder, the first one the report's first model.
    """
    first = next(iter(runs))
    names = {evaluate.OURS if name == first else name: name for name in runs}
    flowing = {evaluate.by_flow(column): name for column, name in names.items()}
    rows = []
    for model in next(iter(report["tasks"].values())):
        name = names.get(model) or flowing.get(model) or first
        run = runs[name]
        config = json.loads((run / "config.json").read_text())
        settings = {"model": config["model"], "options": config["options"], "data": config["data"], "task": config["task"]}
        facts = {"scores": scores(report, model), "differences": differences(report, model), **training(run)}
        case = f"quality/{name}"
        if model not in names:
            case += f", {evaluate.BY_FLOW if model in flowing else model}"
        rows.append(schema.row(op="harmonized", case=case, mode="evaluation", settings=settings, contenders={}, facts=facts))
    rows[0]["facts"] |= {"not_computed": report["not_computed"], "details": report["details"]}
    return rows


AMOUNTS = (0.25, 0.5, 1.0)
DIRECTIONS = 8


def having(model: Harmonized, items: Sequence[Item], group: str) -> list[Item]:
    """Return the pictures that have all regions of a group."""
    wanted = set(model.groups[group])
    return [item for item in items if wanted <= set(model.present(item.labels))]


@torch.no_grad()
def walks(model: Harmonized, items: Sequence[Item], group: str) -> dict[str, Any]:
    """Return how near to real codes walks in z and in style space stay (see the module); nothing of a single picture."""
    there = having(model, items, group)
    if len(there) < 2:
        return {"pictures": len(there)}
    flow, rows = model.flows[group], [model.classes.index(name) for name in model.groups[group]]
    codes = torch.stack([model.encode(item.image, item.labels)[rows].flatten() for item in there]).to(model.device)
    real = codes / flow.scale()
    own = torch.eye(len(real), dtype=torch.bool, device=model.device)

    def nearest(moved: Tensor) -> float:
        return float((torch.cdist(moved, real) / math.sqrt(flow.size)).masked_fill(own, torch.inf).min(1).values.mean())

    z = flow.encode(codes)
    found: dict[str, Any] = {"pictures": len(there), "real": nearest(real), "z": {}, "style": {}}
    source = torch.Generator().manual_seed(0)
    for amount in AMOUNTS:
        figures: dict[str, list[tuple[float, float]]] = {"z": [], "style": []}
        for _ in range(DIRECTIONS):
            step, straight = torch.randn(2, *z.shape, generator=source).to(model.device).unbind()
            in_z = flow.decode(z + amount * math.sqrt(flow.size) * step / step.norm(dim=1, keepdim=True)) / flow.scale()
            length = (in_z - real).norm(dim=1, keepdim=True)
            in_style = real + length * straight / straight.norm(dim=1, keepdim=True)
            for space, moved in (("z", in_z), ("style", in_style)):
                far = float(((moved - real).norm(dim=1) / math.sqrt(flow.size)).mean())
                figures[space].append((nearest(moved), far))
        for space, each in figures.items():
            near, far = (sum(values) / len(values) for values in zip(*each, strict=True))
            found[space][f"{amount:g}"] = {"nearest": near, "moved": far}
    return found


def write_walks(model: Harmonized, items: Sequence[Item], folder: Path) -> None:
    """Write a sheet per group: rows in z and in style space, of the first picture that has the group."""
    amounts = tune.Options().amounts
    for group in model.flows:
        for item in having(model, items, group)[:1]:
            picture = Picture(item.image, item.labels, item.name)
            made = {
                (space, 0): model.tune(picture.image, picture.labels, group, 0, amounts, space=space)
                for space in tune.Options(space="both").spaces
            }
            save_png(contact_sheet(tune.rows_of(model, picture, group, made, amounts)), folder / f"walks_{group}.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the runs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="run folders of mixsyn-fast train; the first is ours")
    parser.add_argument("--data", help="data set whose validation split is judged on; none: faces drawn by code")
    parser.add_argument("--kind", default="auto", help="layout of the data set")
    parser.add_argument("--sheets", type=Path, help="folder for side-by-side sheets; none: none")
    parser.add_argument("--tasks", default="", help=f"out of {','.join(evaluate.TASKS)}; none: all")
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
    tasks = tuple(args.tasks.split(",")) if args.tasks else evaluate.TASKS
    if not set(tasks) <= set(evaluate.TASKS):
        parser.error(f"tasks: expected some of {', '.join(evaluate.TASKS)}, got {args.tasks}")
    began = time.monotonic()
    first, *others = runs.items()
    with tempfile.TemporaryDirectory() as folder:
        options = evaluate.Options(
            model=str(first[1]),
            compare=tuple(f"{name}={run}" for name, run in others),
            data=args.data,
            kind=args.kind,
            limit=args.limit,
            styles=args.styles,
            harmony=args.harmony,
            inception=args.inception,
            seed=args.seed,
            out=Path(folder),
            tasks=tasks,
        )
        if evaluate.main(options) != 0:
            raise SystemExit("mixsyn-fast harmonized evaluate failed")
        report = json.loads((Path(folder) / "report.json").read_text())
        model = Harmonized.load(first[1])
        items, _ = evaluate.readable(reference_of_model(options, model.classes, model.size), options.limit)
        rows = rows_of(report, runs)
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            if (Path(folder) / "transfers.png").is_file():
                shutil.copy(Path(folder) / "transfers.png", args.sheets / "transfers.png")
        for name, run in runs.items():
            model = Harmonized.load(run)
            row = next(row for row in rows if row["case"] == f"quality/{name}")
            if model.flows:
                row["facts"]["walks"] = {group: walks(model, items, group) for group in model.flows}
                if args.sheets:
                    write_walks(model, items, args.sheets if name == first[0] else args.sheets / name)
    words = " ".join(f"{name}=runs/{name}" for name in runs)
    command = "run_harmonized_quality " + f"--data $MIXSYN_FAST_DATA/{Path(args.data or '').name} " * bool(args.data)
    command += f"--kind {args.kind} " * (args.kind != "auto") + f"--tasks {args.tasks} " * bool(args.tasks)
    command += f"--limit {args.limit} --styles {args.styles} " + "--harmony runs/harmony " * bool(args.harmony)
    command += "--inception FILE " * bool(args.inception) + f"--seed {args.seed} " * (args.seed != 0) + words
    result = {
        "kind": "evaluation",
        "command": command,
        "machine": machine(),
        "rates": {},
        "labels": Path(args.data).name if args.data else "faces drawn by code",
        "repeat": None,
        "seconds": time.monotonic() - began,
        "rows": rows,
        "left_out": [],
        "losses": [],
        "wrong": [],
    }
    print(save(jsonable(result), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
