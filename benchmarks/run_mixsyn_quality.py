"""Train variants of MixSyn, one change each, with equal steps and seed, and judge them: one table, one sheet.

    python -m benchmarks.run_mixsyn_quality causes --data DIR --steps 600 --runs runs/causes
    python -m benchmarks.run_mixsyn_quality ablations --data DIR --steps 600 --runs runs/ablations
    python -m benchmarks.run_mixsyn_quality judge --data DIR best=runs/best --lpips auto --beside SEAN=runs/sean

`causes` are what may keep the paper's plain recipe from pictures that people accept: discriminator, losses, data, rates,
texture, compositions. `ablations` are the paper's (section 5.3). Both train what `--only REGEX` matches, in `--runs`, each a
run of `mixsyn-fast train mixsyn` that the same command resumes; words behind `--` go to every training. What fails is left
out, named at the end (status 1) and tried again by the same command. `judge` trains none, and takes files of weights as
well. With `-- --size 64 --validate-images 8` a step takes half a second to a second of one core and a variant one or two
minutes besides: 17 causes of 200 steps about an hour, the ablations of 300 steps 40 minutes.

A row holds the change, scores of `mixsyn-fast mixsyn evaluate` (with `--inception` FID, with `--lpips` LPIPS; the first row
also those of `--beside`, runs of SPADE, CLADE and SEAN on the same pictures), how deep the image discriminator's loss fell
below chance, the spread of its logits untrained, the curves of that spread and of its part of the gradient
(models/training/judged.py), and texture: the mean |Laplacian| of grey inside the most frequent region, in grey levels, of
pictures and of what was made. They are printed as a table (`COLUMNS`). Nothing is timed here; seconds are the log's.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mixsyn_fast.models.data import Batch
from mixsyn_fast.models.evaluation.inputs import DataReference, ModelOnDataOptions, reference_of_model
from mixsyn_fast.models.metrics.fid import InceptionFeatures
from mixsyn_fast.models.metrics.lpips import LPIPS
from mixsyn_fast.models.mixsyn import evaluate
from mixsyn_fast.models.mixsyn.competitors import open_runs
from mixsyn_fast.models.mixsyn.discriminator import image_discriminator, mean_logits
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.sheets import contact_sheet, save_png, to_uint8
from mixsyn_fast.models.training import command
from mixsyn_fast.models.training.run import read_log
from torch import Tensor

from mixsyn_fast.writing import jsonable

from . import schema
from .timing import machine, save

SMALL = (
    "--size 128 --crop random --batch-size 3 --amp bf16 --seed 0 --structure.width 8 --structure.code-channels 64 "
    "--structure.decoder-width 192 --style.code-length 64 --style.encoder-width 8 --style.encoder-largest 64 "
    "--style.width 16 --style.largest 256 --style.hidden 16 --structure-discriminator.width 16 "
    "--structure-discriminator.largest 128 --image-discriminator.width 24 --image-discriminator.largest 192 "
    "--ema-decay 0.99 --validate-images 40 --keep-last 1 --sheet-every 0"
)
"""What every variant shares: networks that a processor trains, the paper's rates."""
PATCHES = "--image-discriminator.kind patches --image-discriminator.norm instance --image-discriminator.no-spectral"
_COMPOSITIONS = (
    "--structure-reconstruction 5 --structure-cross-entropy 2 --structure-dice 2 --structure-balance 4 --soften-real 1 "
    "--structure-discriminator.norm instance --structure-discriminator.no-spectral"
)
CAUSES: dict[str, str] = {
    "plain": "",
    "frozen": "--generator-lr 1e-12 --init-from {runs}/plain",  # the discriminators alone, against plain's generators
    "drawings": "--also procedural_facades --count 280",
    "rates": "--generator-lr 5e-4 --discriminator-lr 3e-4",
    "no_spectral": "--image-discriminator.no-spectral",
    "instance": "--image-discriminator.norm instance",
    "patches": PATCHES,
    "patches_map": f"{PATCHES} --image-discriminator.sees-map",
    "feature_matching": f"{PATCHES} --feature-matching 5",
    "perceptual": "--vgg 10 --vgg-taps 3 --vgg-images known",
    "noise": "--style.noise",
    "cross_entropy": "--structure-cross-entropy 2",
    "balanced_l1": "--structure-balance 4",
    "dice": "--structure-dice 2",
    "area": "--style.soft-resize area",
    "softened": "--soften-real 1",
    "best": f"{PATCHES} --image-discriminator.sees-map --feature-matching 5 --vgg 10 --vgg-taps 3 --vgg-images known "
    f"--reconstruction 2.5 --style.noise --style.soft-resize area {_COMPOSITIONS}",
}
"""Name -> words of the training beside `SMALL`."""
ABLATIONS: dict[str, str] = {
    "full": "",
    "adversarial_only": "--reconstruction 0 --structure-reconstruction 0 --style-weight 0",
    "no_reconstruction": "--reconstruction 0 --structure-reconstruction 0",
    "no_style": "--style-weight 0",
    "no_region_adaptive": "--style.normalisation global",
    "uncoupled": "--coupled none",
    "compact": "--merge compact",
}
"""Section 5.3 and Fig. 8 to 10, likewise."""
SETS = {"causes": CAUSES, "ablations": ABLATIONS}
_KINDS = ("known", "composed", "approximated", "random", "structure", "random_structure")
_SHOWN = 6  # pictures on the sheet


def words_of(change: str, args: argparse.Namespace, out: Path) -> list[str]:
    """Return the words of a training: shared ones, the change, the caller's; later ones win."""
    shared = f"{SMALL} --data {shlex.quote(args.data)} --steps {args.steps} --validate-every {max(args.steps // 4, 1)}"
    given = shlex.split(f"{shared} {change.format(runs=shlex.quote(str(args.runs)))}")
    return [*given, *args.rest, "--out", str(out)]


def train(change: str, args: argparse.Namespace, out: Path) -> bool:
    """Train a variant, or go on with it; False where that fails."""
    words = ["mixsyn", *words_of(change, args, out)]
    print(f"mixsyn-fast train {shlex.join(words)}", flush=True)
    return command.run(words) == 0


def texture(images: Tensor, inside: Tensor) -> float:
    """Return the mean |Laplacian| of grey in grey levels, at pixels whose neighbours are inside as well; NaN without any.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        inside: (B, H, W) bool.
    """
    grey = images.float().clamp(-1, 1).add(1).mul(127.5).mean(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    change = F.conv2d(grey, kernel.to(grey)).abs()[:, 0]
    deep = -F.max_pool2d(-inside[:, None].float(), 3, stride=1)[:, 0] > 0
    return float(change[deep].mean()) if bool(deep.any()) else math.nan


def chance(task: Mapping[str, Any]) -> float:
    """Return the image discriminator's loss (Eq. 3) where all its logits are 0."""
    beta, eta = float(task["beta"]), float(task["eta"])
    return math.log(2) * (beta + (1 - beta) * (2 * eta + 1 - eta))


def curves(log: Sequence[Mapping[str, Any]], task: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's log says of its discriminator of images, and the seconds of a step at the end."""
    judged = [
        {"step": line["step"], **{key[7:]: line[key] for key in line if key.startswith("judged/")}}
        for line in log
        if any(key.startswith("judged/") for key in line)
    ]
    names = ("discriminators/image_gan", "image_discriminator/image_gan")  # of joint and of staged training
    losses = [line[name] for line in log for name in names if name in line]
    steps = [line["step_ms"] for line in log if "step_ms" in line]
    last, lately = (values[-max(len(values) // 4, 1) :] for values in (losses, steps))
    return {
        "judged": judged,
        "loss_below_chance": chance(task) - float(np.mean(last)) if last else math.nan,
        "step_seconds": float(np.median(lately)) / 1e3,
        "steps": max(line["step"] for line in log),
    }


def scores(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means of a table of `mixsyn evaluate`, as JSON: by kind of output, and IoU by region."""
    found: dict[str, Any] = {}
    for kind in (kind for kind in table["rows"] if kind in _KINDS or kind.startswith("beside: ")):
        row = table["rows"][kind]
        found[kind] = {name: score["mean"] for name, score in row["metrics"].items()}
        if row["fid"]:
            found[kind]["fid"] = row["fid"]["value"]
    structure = table["rows"]["structure"]
    found["structure"] |= {"mean_iou": structure["mean_iou"], "pixel_accuracy": structure["pixel_accuracy"]["mean"]}
    return found | {"iou": structure["iou"]}


def judged(
    name: str,
    run: Path,
    args: argparse.Namespace,
    inception: InceptionFeatures | None,
    lpips: LPIPS | None = None,
    beside: Sequence[str] = (),
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the row of a run or a file, and pictures of it: the first `_SHOWN`, known image above composed image."""
    model = MixSyn.load(run)
    options = ModelOnDataOptions(data=args.data, kind=args.kind, limit=args.limit, seed=args.seed)
    reference = reference_of_model(options, model.classes, model.size, crop=model.crop)
    table = evaluate.evaluate(
        model,
        reference,
        inception,
        limit=args.limit,
        seed=args.seed,
        name=name,
        split="val",
        lpips=lpips,
        beside=open_runs(beside, model.classes, model.size),
    )
    if table is None or not table.rows:
        raise SystemExit(f"{name}: nothing could be judged")
    found, cells = of_pictures(model, reference, args)
    facts = {
        "scores": scores(table.as_json()),
        "texture": found,
        "untrained_spread": untrained_spread(model, reference, args),
    }
    settings: dict[str, Any] = {"task": asdict(model.config)}  # of a file, which knows nothing of its training
    if run.is_dir():
        config = json.loads((run / "config.json").read_text())
        facts |= curves(read_log(run), config["task"])
        settings = {"options": config["options"], "data": config["data"], "task": config["task"]}
    row = schema.row(
        op="mixsyn", case=f"quality/{name}", mode="evaluation", settings=settings, contenders={}, facts=jsonable(facts)
    )
    return row, cells


@torch.no_grad()
def untrained_spread(model: MixSyn, reference: DataReference, args: argparse.Namespace) -> float:
    """Return the standard deviation of the logits that an image discriminator gives photographs before its first step."""
    with torch.random.fork_rng([]):
        torch.manual_seed(args.seed)
        network = image_discriminator(model.config).eval().to(model.device)
    logits = []
    for batch in evaluate.batches_of(reference, reference.names()[: args.limit], 4, model.device, []):
        assert isinstance(batch, Batch)
        logits.append(mean_logits(network(batch.image, batch.regions.without_edges())))
    return float(torch.cat(logits).double().std())


def of_pictures(
    model: MixSyn, reference: DataReference, args: argparse.Namespace
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return texture of pictures, known and composed images, and cells of a sheet."""
    found: dict[str, list[float]] = {"picture": [], "known": [], "composed": []}
    cells: list[np.ndarray] = []
    problems: list[str] = []
    for batch in evaluate.batches_of(reference, reference.names()[: args.limit], 4, model.device, problems):
        assert isinstance(batch, Batch)
        _, known, composed, _ = evaluate.known(model, batch)
        labels = batch.regions.labels_at()
        largest = batch.regions.areas().argmax(1)
        inside = labels == largest[:, None, None]
        for name, images in (("picture", batch.image), ("known", known), ("composed", composed)):
            found[name] += [texture(images[i : i + 1], inside[i : i + 1]) for i in range(len(batch))]
        shown = zip(to_uint8(batch.image), to_uint8(known), to_uint8(composed), strict=True)
        cells += [np.concatenate(three) for three in shown][: max(_SHOWN - len(cells), 0)]
    return {name: float(np.nanmean(values)) for name, values in found.items()}, cells


COLUMNS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "spread untrained": lambda facts: facts.get("untrained_spread"),
    "spread last": lambda facts: _judged(facts, -1, "image_real_logit_std"),
    "gradient ratio first": lambda facts: _judged(facts, 0, "image_gan_gradient_ratio"),
    "gradient ratio last": lambda facts: _judged(facts, -1, "image_gan_gradient_ratio"),
    "below chance": lambda facts: facts.get("loss_below_chance"),
    "known SSIM": lambda facts: _score(facts, "known", "ssim"),
    "known LPIPS": lambda facts: _score(facts, "known", "lpips_vgg"),
    "known FID": lambda facts: _score(facts, "known", "fid"),
    "composed SSIM": lambda facts: _score(facts, "composed", "ssim"),
    "composed LPIPS": lambda facts: _score(facts, "composed", "lpips_vgg"),
    "composed FID": lambda facts: _score(facts, "composed", "fid"),
    "mean IoU": lambda facts: _score(facts, "structure", "mean_iou"),
    "worst IoU": lambda facts: min(_numbers(facts["scores"]["iou"].values()), default=None),
    "texture known": lambda facts: facts["texture"]["known"],
    "texture composed": lambda facts: facts["texture"]["composed"],
    "s a step": lambda facts: facts.get("step_seconds"),
}
"""Columns of the table, and where a row's facts have them. Spread: of the image discriminator's logits of photographs.
Gradient ratio: of the adversarial loss to all others (in the plain recipe L1 and the style loss), on the image."""


def _judged(facts: Mapping[str, Any], at: int, name: str) -> float | None:
    lines = [line[name] for line in facts.get("judged", ()) if name in line]
    return lines[at] if lines else None


def _score(facts: Mapping[str, Any], kind: str, name: str) -> float | None:
    value: float | None = facts["scores"].get(kind, {}).get(name)
    return value


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return all rows as a Markdown table, those of --beside below the row that has them, without columns that none has."""
    found: dict[str, dict[str, float | None]] = {}
    for row in rows:
        found[row["case"].removeprefix("quality/")] = {name: of(row["facts"]) for name, of in COLUMNS.items()}
        for kind, other in row["facts"]["scores"].items():
            if kind.startswith("beside: "):  # their image of the label map stands in the columns of known images
                found[kind.removeprefix("beside: ")] = dict.fromkeys(COLUMNS) | {
                    f"known {shown}": other.get(name)
                    for shown, name in (("SSIM", "ssim"), ("LPIPS", "lpips_vgg"), ("FID", "fid"))
                }
    shown = [name for name in COLUMNS if any(_numbers([cells[name]]) for cells in found.values())]
    lines = ["| | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for name, cells in found.items():
        texts = [f"{cells[column]:.3g}" if _numbers([cells[column]]) else "-" for column in shown]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> options."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run_mixsyn_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=(*SETS, "judge"), help="what to train and judge; judge: runs that are there")
    parser.add_argument("given", nargs="*", metavar="NAME=RUN", help="judge: run folders of train mixsyn, or files")
    parser.add_argument("--data", required=True, help="data set: trained on, and its validation split judged on")
    parser.add_argument("--kind", default="auto", help="its layout (default: by what it holds)")
    parser.add_argument("--steps", type=int, default=600, help="of every training (default %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only variants whose name matches")
    parser.add_argument("--limit", type=int, default=40, help="pictures to judge by (default %(default)s)")
    parser.add_argument("--inception", help="TorchScript feature network for FID; none: no FID")
    parser.add_argument("--lpips", help="VGG-16 for LPIPS; auto: one that a package brought; none: no LPIPS")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=RUN", help="runs of SPADE, CLADE, SEAN")
    parser.add_argument("--seed", type=int, default=0, help="of the judgement")
    parser.add_argument("--sheet", type=Path, help="PNG: a column per picture and, per variant, known and composed images")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/mixsyn_quality.json)")
    args = parser.parse_args(given[:at])
    args.rest = given[at + 1 :]
    args.out = args.out or schema.RESULTS / "mixsyn_quality.json"
    if (args.what == "judge") != bool(args.given):
        parser.error("NAME=RUN: expected run folders for judge, and for judge alone")
    args.variants = {} if args.what == "judge" else {n: w for n, w in SETS[args.what].items() if re.search(args.only, n)}
    args.given = dict(entry.partition("=")[::2] for entry in args.given)
    for name, run in args.given.items():
        if not (Path(run).is_file() or (Path(run) / "config.json").is_file()):
            parser.error(f"{name}: expected a run folder or a file of weights, got {run!r}")
    if args.what != "judge" and not args.variants:
        parser.error(f"--only: no variant matches {args.only!r}; there are {', '.join(SETS[args.what])}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge, write the file after every row."""
    args = parse(argv)
    began = time.monotonic()
    inception = InceptionFeatures(args.inception) if args.inception else None
    lpips = LPIPS("vgg16", None if args.lpips == "auto" else args.lpips) if args.lpips else None
    words = [
        args.what,
        *(f"{name}={Path(run).name if Path(run).is_file() else f'runs/{name}'}" for name, run in args.given.items()),
        *(f"--beside {entry.partition('=')[0]}=runs/{entry.partition('=')[0]}" for entry in args.beside),
        "--data",
        f"$MIXSYN_FAST_DATA/{Path(args.data).name}",
    ]
    words += [] if args.given else ["--steps", str(args.steps), *(["--", *args.rest] if args.rest else [])]
    result: dict[str, Any] = {
        "kind": "evaluation", "command": f"run_mixsyn_quality {' '.join(words)}", "machine": machine(), "rates": {},
        "labels": Path(args.data).name, "repeat": None, "seconds": None, "rows": [], "left_out": [], "losses": [],
        "wrong": [],
    }  # fmt: skip
    rows: list[list[np.ndarray]] = []
    failed: list[str] = []
    for name in args.variants or args.given:
        run = args.runs / name if args.variants else Path(args.given[name])
        if args.variants and not train(args.variants[name], args, run):
            failed.append(name)  # the others need not wait for who mends it
            continue
        row, cells = judged(name, run, args, inception, lpips, () if result["rows"] else args.beside)
        row["settings"]["change"] = args.variants.get(name, "")
        result["rows"].append(row)
        result["seconds"] = round(time.monotonic() - began, 1)
        save(result, args.out)
        print(f"{table_of([row])}\n", flush=True)
        rows.append(cells)
    names = [row["case"].removeprefix("quality/") for row in result["rows"]]
    if names:
        print(table_of(result["rows"]))
    if args.sheet and names:
        save_png(contact_sheet(rows), args.sheet)
        print(f"written: {args.sheet} (rows: {', '.join(names)}; picture, known, composed)")
    if names:
        print(f"written: {args.out}")
    if failed:
        print(f"training failed, the same command goes on: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
