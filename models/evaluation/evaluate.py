"""Judge outputs against what they should have been: PSNR, SSIM, RMSE, LPIPS, FID, diversity; whole pictures and regions.

    mixsyn-fast evaluate --run runs/sean                                        a trained model, on its validation set
    mixsyn-fast evaluate --images outputs --data datasets/cmp_facade --split val --size 128 --regions
    mixsyn-fast evaluate --images outputs --reference originals --metrics psnr,fid
    mixsyn-fast evaluate --samples draws --metrics diversity                    draws/<input>/*.png, several each
    torchrun --nproc-per-node 2 -m mixsyn_fast.cli evaluate --run runs/sean --device cuda     the work shared

Outputs and references belong together by their names: the path in their folder, without the suffix. Writes report.json,
report.md, plots, and the best and worst pictures. What cannot be computed is listed with its reason; a metric whose files
you name must work. Exit status 1: files are missing, left over, unreadable or of another size (all named), or nothing at
all could be computed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

import mixsyn_fast
from mixsyn_fast.progress import progress

from ..data import DataOptions, ReaderOptions, RegionDataset, open_source
from ..data.files import partners
from ..metrics.diversity import class_diversity, pairwise_lpips, top1_similarity
from ..metrics.lpips import LPIPS
from ..metrics.score import Score
from ..metrics.table import CHOICES, DEFAULT, METRICS, TOOLS, Tools
from ..pictures.files import list_pictures, read_image, save_image, to_tensor
from ..settings import at_least, from_dict
from ..sheets import contact_sheet
from ..training import distributed
from ..training.distributed import World
from .compare import Compared, Comparison, batches, gather_scores
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


_DAY = 86400.0


@dataclass(frozen=True)
class Options(ReaderOptions):
    """Options of the command."""

    images: str | None = None  # folder of outputs
    run: str | None = None  # run folder of mixsyn-fast train: its newest model makes the outputs
    samples: str | None = None  # several outputs per input: DIR/<input>/*.png; with one class drawn anew: .../<class>/
    reference: str | None = None  # folder of pictures to compare with
    data: str | None = None  # data set to compare with, with label maps; none with --run: the run's own
    kind: str | None = None  # layout of the data set; none: the run's, else auto
    split: str | None = None  # part of the data set; none: the run's validation set, else val
    unknown: str | None = None  # pixels without a known class: class or none; by default the run's, else class
    size: tuple[int, ...] | None = None
    """height and width in pixels that the data is cropped and scaled to; none: the run's, else as stored"""
    limit: int | None = None  # only the first so many names of the reference; none: all
    metrics: tuple[Literal[CHOICES], ...] = DEFAULT  # type: ignore[valid-type]
    """what to compute"""
    regions: bool = False  # score every class of the label maps as well
    step: str = "newest"  # with --run: newest, best, or a step number
    live: bool = False  # with --run: the weights themselves, not their moving average
    draws: int = 8  # with --run and diversity: outputs per input
    diversity_network: Literal["alexnet", "vgg16"] = "alexnet"  # LPIPS of diversity
    diversity_rule: Literal["masked", "mean"] = "masked"
    """mCSD and mOCD of masked pictures, or of the mean over the class's pixels"""
    lpips_vgg: str | None = None  # weights of VGG-16; none: found where a package brought them
    lpips_alex: str | None = None  # weights of AlexNet; none: found where a package brought them
    style_vgg: str | None = None  # weights of VGG-19 or VGG-16 for style; none: found where a package brought them
    inception: str | None = None  # TorchScript feature network for FID; it holds code: name only a trusted file
    batch_size: int = 8  # pictures at a time
    device: str = "cpu"  # torch device
    seed: int = 0  # of the model's noise and of the bootstrap
    out: str = "evaluation"  # folder of the report

    def __post_init__(self) -> None:
        """Check that the options fit together."""
        super().__post_init__()
        if not self.metrics:
            raise ValueError(f"metrics: expected some of {', '.join(CHOICES)}, got none")
        for one, other in (("images", "run"), ("reference", "data")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"{one}: expected it or --{other}, got both")
        if not (self.images or self.run or self.samples):
            raise ValueError("expected --images, --run or --samples: what is to be judged")
        if self.images and not (self.reference or self.data):
            raise ValueError("images: expected --reference or --data to compare with")
        if self.run and self.reference:
            raise ValueError("run: expected --data (a model needs label maps), got --reference")
        for name, given in (("regions", self.regions), ("metrics", "fid_regions" in self.metrics)):
            if given and not (self.data or self.run):
                raise ValueError(f"{name}: expected --data for scores of regions, for they need label maps")
        if self.samples and "diversity" not in self.metrics and self.metrics != DEFAULT:
            raise ValueError("samples: expected diversity among --metrics, for nothing else reads them")
        defaults = {field.name: field.default for field in fields(self)}
        for names, there, needed in (
            (("size", "kind", "split"), self.data or self.run, "--data or --run"),
            (("step", "live", "draws"), self.run, "--run"),
        ):
            for name in names:
                if not there and getattr(self, name) != defaults[name]:
                    raise ValueError(f"{name}: goes with {needed} only")
        at_least(self, limit=1, batch_size=1, draws=2, seed=0)
        if self.size is not None and (len(self.size) not in (1, 2) or min(self.size) < 1):
            raise ValueError(f"size: expected one or two positive numbers (height,width), got {self.size}")
        if self.step not in ("newest", "best") and not self.step.isdigit():
            raise ValueError(f"step: expected newest, best or a step number, got {self.step!r}")

    @property
    def asked(self) -> tuple[str, ...]:
        """The metrics to compute: samples alone are judged by their diversity."""
        if self.samples and "diversity" not in self.metrics:
            return (*(self.metrics if self.images or self.run else ()), "diversity")
        return self.metrics


def _tools(options: Options, metrics: Sequence[str]) -> Tools:
    """Return what computes the metrics asked for; those that cannot be computed are named with their reasons."""
    files = {name: getattr(options, name) for name in TOOLS}
    of_draws = {"alexnet": "lpips_alex", "vgg16": "lpips_vgg"}[options.diversity_network]
    tools = Tools(list(metrics), files, diversity=of_draws, device=options.device)
    if not (options.images or options.run):  # --samples alone
        tools.missing |= {name: "it needs --images or --run" for name in metrics if METRICS[name].of != "draws"}
    return tools


def _data_reference(options: Options, saved: dict[str, Any] | None) -> DataReference:
    """Open the data set of the options; what they leave open is as in a run's configuration, if there is one."""
    size = None if options.size is None else (options.size[0], options.size[-1])
    split = options.split
    if saved is None:
        unknown = options.unknown or "class"
        own = options.reader_options()
        source = open_source(options.data, options.kind or "auto", split or "val", unknown, **own)
        return DataReference(source, None if size is None else RegionDataset(source, size, crop="center"))
    given: dict[str, Any] = {"kind": options.kind, "unknown": options.unknown, "size": size, **options.reader_options()}
    if options.data:  # another set: of the run's own layout nothing holds
        given |= {"data": options.data, "kind": options.kind or "auto"}
        split = split or "val"
    changes = {name: value for name, value in given.items() if value is not None}
    dataset = replace(from_dict(DataOptions, saved), **changes).validation_set(split)
    if dataset is None:
        raise ValueError("run: it had no validation set; give --split")
    return DataReference(dataset.source, dataset)


def _diversity(
    inputs: Iterable[Drawn], lpips: LPIPS, options: Options, num_classes: int, problems: list[str]
) -> dict[str, Score]:
    """Score several outputs per input: diversity, top1, mcsd, mocd, those that the inputs allow."""
    scores = {row.name: Score() for row in METRICS.values() if row.of == "draws"}

    def note(metric: str, name: str, value: float) -> None:
        scores[metric].names.append(name)
        scores[metric].values.append(value)

    def scaled(pictures: list[np.ndarray]) -> Tensor:
        return to_tensor(pictures).to(options.device).float() / 127.5 - 1

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
            labels = torch.from_numpy(drawn.labels.astype(np.int64)).to(options.device)
            table[:, region] = class_diversity(lpips, scaled(pictures), labels, region, rule=options.diversity_rule)
        for metric, row in zip(("mcsd", "mocd"), table, strict=True):
            if np.isfinite(row).any():
                note(metric, drawn.name, float(np.nanmean(row)))
                scores[metric].by_region.append(row)
    return {name: score for name, score in scores.items() if score.names}


def _judge_unpaired(
    comparison: Comparison, inputs: _Inputs, reference: Reference, limit: int | None, problems: list[str]
) -> None:
    """Take FID's features of two sets that share no name."""
    for side, names, read in (
        (0, list(inputs.outputs)[:limit], lambda name: read_image(inputs.outputs[name])),
        (1, reference.names()[:limit], lambda name: reference.read(name)[0]),
    ):
        for name in names[inputs.world.rank :: inputs.world.size]:
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
    world: World
    """The processes that share the work."""

    @classmethod
    def open(cls, options: Options, world: World) -> _Inputs:
        trained, saved = None, None
        if options.run:
            from ..training import load_trained

            step = int(options.step) if options.step.isdigit() else options.step
            trained = load_trained(options.run, step=step, averaged=not options.live, device=options.device)
            if "data" not in trained.config:
                name = trained.config["model"]
                raise ValueError(
                    f"run: expected a run on pictures, got one of {name}: mixsyn-fast {name} evaluate judges it"
                )
            saved = trained.config["data"]
        reference: Reference | None = None
        if trained is not None or options.data:
            reference = _data_reference(options, saved)
            if trained is not None and tuple(trained.config["classes"]) != reference.classes:
                expected, got = trained.config["classes"], list(reference.classes)
                raise ValueError(f"data: expected the classes of the run, {expected}, got {got}")
        elif options.reference:
            reference = PictureReference(options.reference)
        outputs = list_pictures(options.images, without=options.out) if options.images else {}
        if reference is not None:  # outputs go by the names of their references
            theirs = partners(outputs, reference.names())
            outputs = {theirs.get(name, name): file for name, file in outputs.items()}
        return cls(trained, reference, outputs, world)

    def draw(self, options: Options, problems: list[str], draws: int = 1) -> Iterator[Drawn]:
        """Run the model on the data set."""
        assert self.trained is not None and isinstance(self.reference, DataReference)
        return outputs_of_run(
            self.trained,
            self.reference,
            self.reference.names()[: options.limit],
            problems,
            batch_size=options.batch_size,
            device=options.device,
            seed=options.seed,
            draws=draws,
            rank=self.world.rank,
            size=self.world.size,
        )

    def settings(self, options: Options) -> dict[str, Any]:
        """Return what the report says about them."""
        own = self.trained.config["data"]["data"] or None if self.trained is not None else None
        data = self.reference if isinstance(self.reference, DataReference) else None
        size = data.dataset.size if data is not None and data.dataset is not None else None
        return {
            "reference": options.reference or options.data or own,
            "data set": f"{data.source.name}, {len(data.source)} pictures" if data is not None else None,
            "size": f"{size[0]} x {size[1]} (height x width)" if size is not None else "as stored",
            "step": self.trained.step if self.trained is not None else None,
            "weights": None if self.trained is None else "live" if options.live else "averaged",
            "seed": options.seed,
            "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
        }


def _compare(inputs: _Inputs, metrics: Sequence[str], tools: Tools, options: Options, report: Report, out: Path) -> None:
    """Score one output per input against its reference."""
    reference, problems = inputs.reference, report.problems
    assert reference is not None
    classes = reference.classes if options.regions or "fid_regions" in metrics else None
    comparison = Comparison(tools.pairs, classes, tools.inception, "fid_regions" in metrics, options.device)
    pairs: Iterable[Compared] = ()
    if inputs.trained is not None:
        drawn = inputs.draw(options, problems)
        pairs = (Compared(d.name, d.outputs[0], d.target, d.labels) for d in drawn if d.target is not None)
    else:
        names = match(list(inputs.outputs), reference.names(), options.limit, problems)
        if names:
            mine = distributed.part(len(names), inputs.world, options.batch_size)
            pairs = pairs_of_files(inputs.outputs, reference, [names[i] for i in mine], problems)
        elif tools.inception is None:
            raise ValueError(
                f"images: no output has the name of a reference; outputs: {', '.join(list(inputs.outputs)[:3])} ..., "
                f"references: {', '.join(reference.names()[:3])} ..."
            )
        else:
            report.notes.append("No output has the name of a reference: FID compares the two sets, unpaired.")
            tools.missing |= dict.fromkeys(tools.pairs, "no output has the name of a reference")
            _judge_unpaired(comparison, inputs, reference, options.limit, problems)
    for batch in batches(pairs, options.batch_size):
        comparison.add(batch)
    comparison.gather(reference.names())
    if inputs.world.rank:
        return
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


def _compare_draws(inputs: _Inputs, tools: Tools, options: Options, report: Report) -> None:
    """Score several outputs of every input."""
    assert tools.diversity is not None
    drawn: Iterable[Drawn] = ()
    if options.samples:
        among = inputs.world.rank, inputs.world.size
        drawn = samples_of_folder(options.samples, inputs.reference, options.limit, report.problems, *among)
    elif inputs.trained is not None:
        drawn = inputs.draw(options, [], options.draws)  # its problems are known by now
        tools.missing["mcsd, mocd"] = "a run draws everything anew; they need --samples with one class drawn anew"
    else:
        tools.missing["diversity"] = "there is one output per input; give several with --samples"
    found = gather_scores(_diversity(drawn, tools.diversity, options, len(report.classes), report.problems))
    report.scores |= found
    if "diversity" in found:
        report.counts["inputs with several outputs"] = len(found["diversity"].names)
        if max(found["diversity"].values) == 0:
            report.notes.append("Diversity is zero: all outputs of an input are equal.")


def evaluate(options: Options) -> Report | None:
    """Judge outputs or a trained model; the best and the worst pictures are written into the folder of the report.

    Among processes that torchrun started each judges its part, and the first one has the report; the others get None.

    Raises:
        ValueError, FileNotFoundError: files or folders that are not there, a file that is named for a metric and holds
            something else, or nothing to compare.
    """
    world = distributed.init(options.device, timeout=_DAY)  # they meet at the end only; one that dies ends the others
    try:
        return _evaluate(options, world)
    finally:
        distributed.shutdown()


def _evaluate(options: Options, world: World) -> Report | None:
    inputs = _Inputs.open(options, world)
    tools = _tools(options, options.asked)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "extremes.png").unlink(missing_ok=True)
    features = {} if tools.inception is None else {"FID features": str(tools.inception.path)}
    report = Report(
        title=f"Evaluation of {options.images or options.run or options.samples}",
        settings=inputs.settings(options) | features,
        classes=inputs.reference.classes if inputs.reference is not None else (),
        not_computed=tools.missing,
        seed=options.seed,
    )
    with contextlib.nullcontext() if world.rank else progress("evaluating"):
        if options.images or options.run:
            _compare(inputs, options.asked, tools, options, report, out)
        if tools.diversity is not None:
            _compare_draws(inputs, tools, options, report)
    problems = distributed.gather(report.problems)
    if world.rank:
        return None
    report.problems = list(dict.fromkeys(problem for part in problems for problem in part))
    return report


def main(options: Options) -> int:
    """Evaluate as the options say, print the report, and return the exit status (see the module); raises as `evaluate`."""
    report = evaluate(options)
    if report is None:  # the first process reports
        return 0
    out = Path(options.out)
    print(report.write(out), end="")
    print(f"\n{out / 'report.json'}")
    for problem in report.problems:
        print(problem, file=sys.stderr)
    computed = bool(report.scores or report.fid)
    if not computed:
        print("nothing could be computed; the report says why", file=sys.stderr)
    return 1 if report.problems or not computed else 0
