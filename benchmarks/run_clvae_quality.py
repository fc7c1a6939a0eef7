"""Judge trained class- and layer-wise VAEs beside each other: the paper's tables, locality, and what each level changes.

    python -m benchmarks.run_clvae_quality --data DIR --limit 20 --samples 40 full=runs/full no_class=runs/no_class ...

Every run is judged by `mixsyn-fast clvae evaluate` with the same pictures and seed (a run of `train spade
--generator.use-vae` as well). A row holds the run's settings, the scores with their 95 % intervals over pictures, the curve
of its validation, and for a model with codes of classes at several levels what each level changes ("material"): of every
picture each class with 1 to 60 % of its pixels gets codes from the prior at that level alone; `change` is the mean absolute
change inside it in grey levels, `colour` the share of the squared change there that a shift of the class's mean colour is
(1: the colour of the whole object, 0: texture and shapes alone). Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mixsyn_fast.models.clvae import evaluate
from mixsyn_fast.models.clvae.model import CLVAE
from mixsyn_fast.models.data import DataOptions
from mixsyn_fast.models.training.run import read_log

from mixsyn_fast.writing import jsonable

from . import schema
from .timing import machine, save

SHARES = (0.01, 0.6)


def scores(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return mean, interval and number of pictures of every metric of a report."""
    kept = ("mean", "low", "high", "count")
    found = {name: {key: score[key] for key in kept} for name, score in report["metrics"].items()}
    if report["fid"]:
        found["fid"] = {"mean": report["fid"]["value"], "count": report["fid"]["first_count"]}
    return found


def material(model: CLVAE, pictures: Sequence[Any], seed: int) -> dict[str, dict[str, float]]:
    """Return what codes of one level change inside the class: level -> change in grey levels, share of colour."""
    found: dict[int, list[tuple[float, float]]] = {level: [] for level in model.levels}
    for picture in pictures:
        before = model.reconstruct(picture.image, picture.labels).image.astype(np.float64)
        for name in model.present(picture.labels):
            inside = picture.labels == model.classes.index(name)
            if not SHARES[0] <= inside.mean() <= SHARES[1]:
                continue
            for level in model.levels:
                made = model.edit(picture.image, picture.labels, {name: "sample"}, [level], seed=seed)
                change = made.image[inside] - before[inside]  # (pixels, 3)
                energy = float((change**2).mean())
                if energy:
                    found[level].append((float(np.abs(change).mean()), float((change.mean(0) ** 2).mean()) / energy))
    return {
        str(level): dict(zip(("change", "colour", "edits"), (*np.mean(values, 0).tolist(), len(values)), strict=True))
        for level, values in found.items()
        if values
    }


def judged(name: str, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the row of a run."""
    config = json.loads((run / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        counts = {"samples": args.samples, "limit": args.limit, "seed": args.seed}
        options = evaluate.Options(model=str(run), data=args.data, inception=args.inception, out=Path(folder), **counts)
        if evaluate.main(options) != 0:
            raise SystemExit(f"{name}: mixsyn-fast clvae evaluate --model {run} failed")
        report = json.loads((Path(folder) / "report.json").read_text())
    log = read_log(run)
    facts: dict[str, Any] = {
        "scores": scores(report),
        "not_computed": report["not_computed"],
        "validation": [
            {"step": line["step"], **{key[11:]: line[key] for key in line if key.startswith("validation/")}}
            for line in log
            if "validation/psnr" in line
        ],
        "steps": max(line["step"] for line in log),
    }
    if config["model"] == "clvae" and args.material:
        model = CLVAE.load(run)
        if len(model.levels) > 1 and model.config.generator.class_wise:
            dataset = DataOptions(data=args.data, size=model.size).validation_set("val")
            assert dataset is not None
            facts["material"] = material(model, [dataset[i] for i in range(min(args.material, len(dataset)))], args.seed)
    settings = {"model": config["model"], "options": config["options"], "data": config["data"], "task": config["task"]}
    return schema.row(op="clvae", case=f"quality/{name}", mode="evaluation", settings=settings, contenders={}, facts=facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the runs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="run folders of mixsyn-fast train")
    parser.add_argument("--data", required=True, help="data set whose validation split is judged on")
    parser.add_argument("--limit", type=int, default=40, help="pictures")
    parser.add_argument("--samples", type=int, default=40, help="images of every label map")
    parser.add_argument("--material", type=int, default=10, help="pictures for what each level changes; 0: none")
    parser.add_argument("--inception", help="TorchScript feature network for FID; none: no FID")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=schema.RESULTS / "clvae_quality.json")
    args = parser.parse_args(argv)
    runs = dict(given.partition("=")[::2] for given in args.runs)
    for name, run in runs.items():
        if not (Path(run) / "config.json").is_file():
            parser.error(f"{name}: expected a run folder, got {run!r}")
    began = time.monotonic()
    rows = [judged(name, Path(run), args) for name, run in runs.items()]
    words = " ".join(f"{name}=runs/{name}" for name in runs)
    command = f"run_clvae_quality --data $MIXSYN_FAST_DATA/{Path(args.data).name} --limit {args.limit} "
    command += f"--samples {args.samples} --material {args.material} {words}"
    result = {
        "kind": "evaluation",
        "command": command,
        "machine": machine(),
        "rates": {},
        "labels": Path(args.data).name,
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
