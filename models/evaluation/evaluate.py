"""Judge outputs against what they should have been: PSNR, SSIM, RMSE, LPIPS, FID, diversity; whole pictures and regions.

    mixsyn-fast evaluate --run runs/sean                                        a trained model, on its validation set
    mixsyn-fast evaluate --images outputs --data datasets/cmp_facade --split val --size 128 --regions
    mixsyn-fast evaluate --images outputs --reference originals --metrics psnr,fid
    mixsyn-fast evaluate --samples draws --metrics diversity                    draws/<input>/*.png, several each

Outputs and references belong together by the stem of their names. Writes report.json, report.md, plots, and the best and
worst pictures. What cannot be computed is listed with its reason; a metric whose files you name must work. Exit status 1:
files are missing, left over, unreadable or of another size (all named), or nothing at all could be computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import mixsyn_fast
from mixsyn_fast.progress import progress

from ..data import RegionDataset, open_source
from ..data.sets import add_reader_arguments, reader_options
from ..metrics.diversity import class_diversity, pairwise_lpips, top1_similarity
from ..metrics.lpips import LPIPS
from ..metrics.score import Score
from ..metrics.table import CHOICES, DEFAULT, METRICS, TOOLS, Tools
from ..pictures.files import list_pictures, read_image, save_image, to_tensor
from ..sheets import contact_sheet
from .compare import Compared, Comparison, batches
from .inputs import (
    DataReference,
    Drawn,
    PictureReference,
    Reference,
    match,
    outputs_of_run,
    pairs_of_files,
    samples_of_folder,
)
from .report import Report

if TYPE_CHECKING:
    from ..training import Trained

_DEFAULT = ",".join(DEFAULT)
_UNSET = {"size": None, "kind": None, "split": None, "step": "newest", "live": False, "draws": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--images", metavar="DIR", help="folder of outputs")
    what.add_argument("--run", metavar="DIR", help="run folder of mixsyn-fast train: its newest model makes the outputs")
    add(
        "--samples",
        metavar="DIR",
        help="several outputs per input: DIR/<input>/*.png; with one class drawn anew: .../<class>/",
    )
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--reference", metavar="DIR", help="folder of pictures to compare with")
    by.add_argument(
        "--data", metavar="DIR", help="data set to compare with, with label maps (default for --run: the run's own)"
    )
    add("--kind", help="layout of the data set (default: the run's, else auto)")
    add("--split", help="part of the data set (default: the run's validation set, else val)")
    add("--unknown", help="pixels without a known class: class or none (default: the run's, else class)")
    add_reader_arguments(parser)
    add(
        "--size",
        metavar="N[,N]",
        help="height and width in pixels that the data is cropped and scaled to (default: the run's, else as stored)",
    )
    add("--limit", type=int, metavar="N", help="only the first N names of the reference (default: all)")
    add("--metrics", default=_DEFAULT, help=f"out of {', '.join(CHOICES)} (default: %(default)s)")
    add("--regions", action="store_true", help="score every class of the label maps as well")
    add("--step", default="newest", help="with --run: newest, best, or a step number (default: %(default)s)")
    add("--live", action="store_true", help="with --run: the weights themselves, not their moving average")
    add(
        "--draws",
        type=int,
        default=8,
        metavar="N",
        help="with --run and diversity: outputs per input (default: %(default)s)",
    )
    add(
        "--diversity-network",
        choices=("alexnet", "vgg16"),
        default="alexnet",
        help="LPIPS of diversity (default: %(default)s)",
    )
    add(
        "--diversity-rule",
        choices=("masked", "mean"),
        default="masked",
        help="mCSD and mOCD of masked pictures, or of the mean over the class's pixels (default: %(default)s)",
    )
    add("--lpips-vgg", metavar="FILE", help="weights of VGG-16 (default: found where a package brought them)")
    add("--lpips-alex", metavar="FILE", help="weights of AlexNet (default: found where a package brought them)")
    add("--inception", metavar="FILE", help="TorchScript feature network for FID; it holds code: name only a trusted file")
    add("--batch-size", type=int, default=8, help="pictures at a time (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the model's noise and of the bootstrap (default: %(default)s)")
    add("--out", default="evaluation", metavar="DIR", help="folder of the report (default: %(default)s)")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 2) or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--size: expected one or two positive numbers (height,width), got {text!r}")
    return int(parts[0]), int(parts[-1])


def _check(arguments: argparse.Namespace) -> list[str]:
    """Return the metrics asked for; ValueError for options that do not fit together."""
    metrics = [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    unknown = [name for name in metrics if name not in CHOICES]
    if unknown or not metrics:
        raise ValueError(f"--metrics: expected some of {', '.join(CHOICES)}, got {', '.join(unknown) or 'none'}")
    if not (arguments.images or arguments.run or arguments.samples):
        raise ValueError("expected --images, --run or --samples: what is to be judged")
    if arguments.images and not (arguments.reference or arguments.data):
        raise ValueError("--images: expected --reference or --data to compare with")
    if arguments.run and arguments.reference:
        raise ValueError("--run: expected --data (a model needs label maps), got --reference")
    if (arguments.regions or "fid_regions" in metrics) and not (arguments.data or arguments.run):
        raise ValueError("--regions, fid_regions: expected --data, for they need label maps")
    if arguments.samples and "diversity" not in metrics:
        if arguments.metrics != _DEFAULT:
            raise ValueError("--samples: expected diversity among --metrics, for nothing else reads them")
        metrics = [*(metrics if arguments.images or arguments.run else []), "diversity"]
    of_data, of_run = not (arguments.data or arguments.run), not arguments.run
    useless = {name: of_data for name in ("size", "kind", "split")} | {name: of_run for name in ("step", "live", "draws")}
    for name, refused in useless.items():
        if refused and getattr(arguments, name) != _UNSET[name]:
            needed = "--run" if name in ("step", "live", "draws") else "--data or --run"
            raise ValueError(f"--{name}: goes with {needed} only")
    for name, least in (("limit", 1), ("batch_size", 1), ("draws", 2), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if arguments.step not in ("newest", "best") and not arguments.step.isdigit():
        raise ValueError(f"--step: expected newest, best or a step number, got {arguments.step!r}")
    return metrics


def _tools(arguments: argparse.Namespace, metrics: list[str]) -> Tools:
    """Return what computes the metrics asked for; those that cannot be computed are named with their reasons."""
    files = {name: getattr(arguments, name) for name in TOOLS}
    of_draws = {"alexnet": "lpips_alex", "vgg16": "lpips_vgg"}[arguments.diversity_network]
    tools = Tools(metrics, files, diversity=of_draws, device=arguments.device)
    if not (arguments.images or arguments.run):  # --samples alone
        tools.missing |= {name: "it needs --images or --run" for name in metrics if METRICS[name].of != "draws"}
    return tools


def _data_reference(arguments: argparse.Namespace, saved: dict[str, Any] | None) -> DataReference:
    """Open the data set of the options; what they leave open is as in a run's configuration, if there is one."""
    size, split = _size(arguments.size), arguments.split
    if saved is None:
        unknown = arguments.unknown or "class"
        own = reader_options(arguments)
        source = open_source(arguments.data, arguments.kind or "auto", split or "val", unknown, **own)
        return DataReference(source, None if size is None else RegionDataset(source, size, crop="center"))
    from .. import settings as config
    from ..data import DataOptions

    given: dict[str, Any] = {"kind": arguments.kind, "unknown": arguments.unknown, "size": size, **reader_options(arguments)}
    if arguments.data:  # another set: of the run's own layout nothing holds
        given |= {"data": arguments.data, "kind": arguments.kind or "auto"}
        split = split or "val"
    changes = {name: value for name, value in given.items() if value is not None}
    dataset = replace(config.from_dict(DataOptions, saved), **changes).validation_set(split)
    if dataset is None:
        raise ValueError("--run: it had no validation set; give --split")
    return DataReference(dataset.source, dataset)


def _diversity(
    inputs: Iterable[Drawn], lpips: LPIPS, arguments: argparse.Namespace, num_classes: int, problems: list[str]
) -> dict[str, Score]:
    """Score several outputs per input: diversity, top1, mcsd, mocd, those that the inputs allow."""
    scores = {row.name: Score() for row in METRICS.values() if row.of == "draws"}

    def note(metric: str, name: str, value: float) -> None:
        scores[metric].names.append(name)
        scores[metric].values.append(value)

    def scaled(pictures: list[np.ndarray]) -> Tensor:
        return to_tensor(pictures).to(arguments.device).float() / 127.5 - 1

    for drawn in inputs:
        if len(drawn.outputs) > 1:
            outputs = scaled(drawn.outputs)
            note("diversity", drawn.name, pairwise_lpips(lpips, outputs))
            if drawn.target is not None:
                note("top1", drawn.name, top1_similarity(lpips, outputs, scaled([drawn.target])[0]))
        elif drawn.outputs or not drawn.by_class:
            problems.append(f"{drawn.name}: expected at least 2 outputs, got {len(drawn.outputs)}")
        table = np.full((2, num_classes), np.nan)
        for region, pictures in drawn.by_class.items():
            if len(pictures) < 2 or drawn.labels is None or not (drawn.labels == region).any():
                problems.append(f"{drawn.name}: expected pixels of class {region}, and at least 2 outputs for it")
                continue
            labels = torch.from_numpy(drawn.labels.astype(np.int64)).to(arguments.device)
            table[:, region] = class_diversity(lpips, scaled(pictures), labels, region, rule=arguments.diversity_rule)
        for metric, row in zip(("mcsd", "mocd"), table, strict=True):
            if np.isfinite(row).any():
                note(metric, drawn.name, float(np.nanmean(row)))
                scores[metric].by_region.append(row)
    return {name: score for name, score in scores.items() if score.names}


def _judge_unpaired(
    comparison: Comparison, outputs: dict[str, Path], reference: Reference, limit: int | None, problems: list[str]
) -> None:
    """Take FID's features of two sets that share no name."""
    for side, names, read in (
        (0, list(outputs)[:limit], lambda name: read_image(outputs[name])),
        (1, reference.names()[:limit], lambda name: reference.read(name)[0]),
    ):
        for name in names:
            try:
                picture = to_tensor([read(name)]).to(comparison.device)
            except (ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
                continue
            comparison.add_sets(*((picture, None) if side == 0 else (None, picture)))


def _sheet(comparison: Comparison, path: Path) -> str | None:
    """Write the best and the worst pictures beside their references; return by which metric, or None without pictures."""
    best, worst = comparison.extremes()
    if not best:
        return None
    rows = [[b.target, b.output, w.target, w.output] for b, w in zip(best, worst, strict=True)]
    save_image(path, contact_sheet(rows, ["best: reference", "output", "worst: reference", "output"]))
    return list(comparison.metrics)[-1]


@dataclass(frozen=True)
class _Inputs:
    """What the options name, opened."""

    trained: Trained | None
    reference: Reference | None
    outputs: dict[str, Path]

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> _Inputs:
        trained, saved = None, None
        if arguments.run:
            from ..training import load_trained

            step = int(arguments.step) if arguments.step.isdigit() else arguments.step
            trained = load_trained(arguments.run, step=step, averaged=not arguments.live, device=arguments.device)
            saved = trained.config["data"]
        reference: Reference | None = None
        if trained is not None or arguments.data:
            reference = _data_reference(arguments, saved)
            if trained is not None and tuple(trained.config["classes"]) != reference.classes:
                expected, got = trained.config["classes"], list(reference.classes)
                raise ValueError(f"--data: expected the classes of the run, {expected}, got {got}")
        elif arguments.reference:
            reference = PictureReference(arguments.reference)
        return cls(trained, reference, list_pictures(arguments.images) if arguments.images else {})

    def draw(self, arguments: argparse.Namespace, problems: list[str], draws: int = 1) -> Iterator[Drawn]:
        """Run the model on the data set."""
        assert self.trained is not None and isinstance(self.reference, DataReference)
        return outputs_of_run(
            self.trained,
            self.reference,
            self.reference.names()[: arguments.limit],
            problems,
            batch_size=arguments.batch_size,
            device=arguments.device,
            seed=arguments.seed,
            draws=draws,
        )

    def settings(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Return what the report says about them."""
        own = self.trained.config["data"]["data"] or None if self.trained is not None else None
        data = self.reference if isinstance(self.reference, DataReference) else None
        size = data.dataset.size if data is not None and data.dataset is not None else None
        return {
            "reference": arguments.reference or arguments.data or own,
            "data set": f"{data.source.name}, {len(data.source)} pictures" if data is not None else None,
            "size": f"{size[0]} x {size[1]} (height x width)" if size is not None else "as stored",
            "step": self.trained.step if self.trained is not None else None,
            "weights": None if self.trained is None else "live" if arguments.live else "averaged",
            "seed": arguments.seed,
            "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
        }


def _compare(
    inputs: _Inputs, metrics: list[str], tools: Tools, arguments: argparse.Namespace, report: Report, out: Path
) -> None:
    """Score one output per input against its reference."""
    reference, problems = inputs.reference, report.problems
    assert reference is not None
    classes = reference.classes if arguments.regions or "fid_regions" in metrics else None
    comparison = Comparison(tools.pairs, classes, tools.inception, "fid_regions" in metrics, arguments.device)
    pairs: Iterable[Compared] = ()
    if inputs.trained is not None:
        drawn = inputs.draw(arguments, problems)
        pairs = (Compared(d.name, d.outputs[0], d.target, d.labels) for d in drawn if d.target is not None)
    else:
        names = match(list(inputs.outputs), reference.names(), arguments.limit, problems)
        if names:
            pairs = pairs_of_files(inputs.outputs, reference, names, problems)
        elif tools.inception is None:
            raise ValueError(
                f"--images: no output has the name of a reference; outputs: {', '.join(list(inputs.outputs)[:3])} ..., "
                f"references: {', '.join(reference.names()[:3])} ..."
            )
        else:
            report.notes.append("No output has the name of a reference: FID compares the two sets, unpaired.")
            tools.missing |= dict.fromkeys(tools.pairs, "no output has the name of a reference")
            _judge_unpaired(comparison, inputs.outputs, reference, arguments.limit, problems)
    for batch in batches(pairs, arguments.batch_size):
        comparison.add(batch)
    report.counts["pictures compared"] = comparison.count
    report.scores |= {name: score for name, score in comparison.scores.items() if score.names}
    report.fid = comparison.fid()
    if tools.inception is not None:
        whole = report.fid.get("") if "fid" in metrics else report.fid.pop("", None)
        for name, has in (("fid", whole is not None), ("fid_regions", any(report.fid))):
            if name in metrics and not has:
                tools.missing[name] = "it needs at least two pictures on either side"
    by = _sheet(comparison, out / "extremes.png")
    if by is not None:
        report.notes.append(f"extremes.png: the best and the worst pictures by {by}.")


def _compare_draws(inputs: _Inputs, tools: Tools, arguments: argparse.Namespace, report: Report) -> None:
    """Score several outputs of every input."""
    assert tools.diversity is not None
    drawn: Iterable[Drawn] = ()
    if arguments.samples:
        drawn = samples_of_folder(arguments.samples, inputs.reference, arguments.limit, report.problems)
    elif inputs.trained is not None:
        drawn = inputs.draw(arguments, [], arguments.draws)  # its problems are known by now
        tools.missing["mcsd, mocd"] = "a run draws everything anew; they need --samples with one class drawn anew"
    else:
        tools.missing["diversity"] = "there is one output per input; give several with --samples"
    found = _diversity(drawn, tools.diversity, arguments, len(report.classes), report.problems)
    report.scores |= found
    if "diversity" in found:
        report.counts["inputs with several outputs"] = len(found["diversity"].names)
        if max(found["diversity"].values) == 0:
            report.notes.append("Diversity is zero: all outputs of an input are equal.")


def main(arguments: argparse.Namespace) -> int:
    """Evaluate as the options say, print the report, and return the exit status (see the module).

    Raises:
        ValueError, FileNotFoundError: options that do not fit together, files or folders that are not there, a file that is
            named for a metric and holds something else, or nothing to compare.
    """
    metrics = _check(arguments)
    inputs = _Inputs.open(arguments)
    tools = _tools(arguments, metrics)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "extremes.png").unlink(missing_ok=True)
    features = {} if tools.inception is None else {"FID features": str(tools.inception.path)}
    report = Report(
        title=f"Evaluation of {arguments.images or arguments.run or arguments.samples}",
        settings=inputs.settings(arguments) | features,
        classes=inputs.reference.classes if inputs.reference is not None else (),
        not_computed=tools.missing,
        seed=arguments.seed,
    )
    with progress("evaluating"):
        if arguments.images or arguments.run:
            _compare(inputs, metrics, tools, arguments, report, out)
        if tools.diversity is not None:
            _compare_draws(inputs, tools, arguments, report)
    print(report.write(out), end="")
    print(f"\n{out / 'report.json'}")
    for problem in report.problems:
        print(problem, file=sys.stderr)
    computed = bool(report.scores or report.fid)
    if not computed:
        print("nothing could be computed; the report says why", file=sys.stderr)
    return 1 if report.problems or not computed else 0
