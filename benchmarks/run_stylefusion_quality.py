"""Judge trained StyleFusions: how local the control of every region is, beside ablations and simpler ways.

    python -m benchmarks.run_stylefusion_quality faces=faces.safetensors facades=runs/b --compare faces:no_global=runs/c

Every model (a file or a run folder) is judged by `mixsyn-fast stylefusion evaluate` with the models that are compared with
it, from the same codes. There is a row for every model and way (FusionNets: the model itself): the mean scores, and in
"regions" those of every region, with 95 % intervals over samples and their counts. Nothing here is timed.
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

from mixsyn_fast.models.settings import read_json
from mixsyn_fast.models.stylefusion import evaluate

from mixsyn_fast.writing import jsonable

from . import schema, tables
from .timing import heading, model_place, save


def given(entries: Sequence[str], option: str) -> dict[str, str]:
    """Return name -> file of NAME=FILE texts; ValueError for another form, a name twice, or a file that is not there."""
    found: dict[str, str] = {}
    for entry in entries:
        name, _, file = entry.partition("=")
        if not name or not file:
            raise ValueError(f"{option}: expected NAME=FILE, got {entry!r}")
        if name in found:
            raise ValueError(f"{option}: expected every name once, got {name} again")
        if not Path(file).exists():
            raise ValueError(f"{option}: {name}: expected a file or a run folder, got {file!r}")
        found[name] = file
    return found


def training(model: str) -> dict[str, Any]:
    """Return what a run folder says of its training: "steps" and "task"; nothing for a file."""
    config = Path(model, "config.json")
    if not config.is_file():
        return {}
    saved = read_json(config)
    task = {key: model_place(value) if isinstance(value, str) else value for key, value in saved["task"].items()}
    return {"steps": saved["options"]["steps"], "task": task}


def judged(
    name: str, model: str, compare: Mapping[str, str], regions: tuple[str, ...], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of a model, one for every way; no `regions`: all nodes but the root."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.reports is None else args.reports / name
        options = evaluate.Options(
            model=model,
            compare=tuple(f"{way}={file}" for way, file in compare.items()),
            region=regions,
            count=args.count,
            images=args.images,
            seed=args.seed,
            out=folder,
        )
        if evaluate.main(options) != 0:
            raise SystemExit(f"{name}: mixsyn-fast stylefusion evaluate --model {model} failed")
        report = json.loads((folder / "report.json").read_text())
    rows = []
    for way, found in report["ways"].items():
        file = compare.get(way, model)  # simpler ways use the model itself
        settings = {**report["settings"], "model": model_place(file), "compare": way, "samples": args.count}
        facts = {"scores": found["whole"], "regions": found["regions"], "not_computed": report["not_computed"]}
        case = f"quality/{name}/{way}"
        facts |= training(file)
        rows.append(
            schema.row(op="stylefusion", case=case, mode="evaluation", settings=settings, contenders={}, facts=facts)
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the models and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE", help="models: files, or runs of mixsyn-fast train")
    parser.add_argument("--compare", action="append", default=[], metavar="NAME:WAY=FILE", help="an ablation of model NAME")
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=NODE,NODE",
        help="nodes of model NAME that are judged; none: all but the root",
    )
    parser.add_argument("--count", type=int, default=500, help="samples of every region")
    parser.add_argument("--images", type=int, default=64, help="images over which channels are correlated with regions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reports", type=Path, help="folder that keeps the reports, heat maps and plots")
    parser.add_argument("--out", type=Path, default=schema.RESULTS / "stylefusion_quality.json")
    args = parser.parse_args(argv)
    try:
        models = given(args.models, "models")
        compare: dict[str, dict[str, str]] = {name: {} for name in models}
        for entry, file in given(args.compare, "compare").items():
            name, _, way = entry.partition(":")
            if name not in models or not way:
                raise ValueError(f"compare: expected NAME:WAY=FILE with NAME among {', '.join(models)}, got {entry!r}")
            compare[name][way] = file
        regions = {name: tuple(nodes.split(",")) for name, _, nodes in (entry.partition("=") for entry in args.region)}
        if not set(regions) <= set(models) or len(regions) < len(args.region):
            raise ValueError(
                f"region: expected NAME=NODE,NODE once a model of {', '.join(models)}, got {', '.join(args.region)}"
            )
    except ValueError as error:
        parser.error(str(error))
    began = time.monotonic()
    result = heading("evaluation")
    try:
        result["rows"] = [
            row for name, model in models.items() for row in judged(name, model, compare[name], regions.get(name, ()), args)
        ]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    words = [f"{name}={model_place(file)}" for name, file in models.items()]
    words += [f"--region {entry}" for entry in args.region]
    words += [f"--compare {name}:{way}={model_place(file)}" for name, ways in compare.items() for way, file in ways.items()]
    result["command"] = f"run_stylefusion_quality --count {args.count} --images {args.images} {' '.join(words)}"
    result["seconds"] = time.monotonic() - began
    result = jsonable(result)
    print(tables.render_scores(result))
    print(save(result, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
