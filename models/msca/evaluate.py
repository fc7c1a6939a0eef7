"""Table 1 of the paper: duplicating, mirroring and retrieving, for any number of models beside each other.

    mixsyn-fast msca evaluate                                           the shipped model, pictures drawn by code
    mixsyn-fast msca evaluate --model runs/full --data datasets/cmp_facade --compare gap=runs/gap --compare vae=runs/spade
    mixsyn-fast msca evaluate --model runs/full --data datasets/cmp_facade --pool train --tasks retrieving

Every task makes a picture again from its label map and an exemplar:

* duplicating: the exemplar is the picture itself;
* mirroring: it is the mirrored picture with its mirrored label map, left and right classes exchanged;
* retrieving: it is another picture of the pool (--pool, a part of the data set; the judged part itself by default). Of the
  --candidates pictures with the greatest intersection of label histograms it is the one that dense matching likes best
  (models/evaluation/retrieval.py: TV-L1 flow and DAISY, where the paper has SIFT Flow). The truth then takes the exemplar's
  colours (models/pictures/colours.py: the linear map of least change that makes mean and covariance of RGB equal, where the
  paper has WCT2, a network that matches mean and covariance of features); --no-colour-correction leaves it as it is.

PSNR, LPIPS (VGG-16, linearly calibrated), FID, and style distance: the mean over VGG's relu1_1 to relu5_1 of the squared
difference of Gram matrices, each divided by channels and positions, and by the number of its elements. All of 8-bit
pictures; means over pictures with 95 % bootstrap intervals, and differences to the first model over the same pictures.

--compare takes models of this paper (ablations), and runs of SPADE or CLADE with --generator.use-vae, whose code is that of
the exemplar ("SPADE VAE"). The table's other columns, cI2I and EGSC-IT, have no implementation here.

The folder of the report gets report.json (with the exemplar that every picture got, and all its candidates), report.md,
scores.png, and a sheet of every task. Exit status 1: there are pictures that cannot be used (all named), or nothing could be
judged.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

import mixsyn_fast
from mixsyn_fast.progress import progress

from ..data import Collate, Item
from ..evaluation.columns import Columns
from ..evaluation.compare import Compared, Comparison
from ..evaluation.inputs import DataReference, JudgedModelOptions, load_vae, reference_of_model
from ..evaluation.report import Report
from ..evaluation.retrieval import Candidate, Pool
from ..metrics.style import StyleDistance
from ..metrics.table import Tools
from ..pictures.colours import transfer_colours
from ..pictures.options import check_outputs, device_of, name_and_file, open_model
from ..pictures.sheets import captioned, cell_size, coloured, enlarged
from ..settings import at_least, repeated
from ..sheets import contact_sheet, save_png, to_uint8
from ..training import Trained
from .model import MSCA
from .pictures import VGGOptions

Task = Literal["retrieving", "mirroring", "duplicating"]
TASKS: tuple[Task, ...] = ("retrieving", "mirroring", "duplicating")
"""In the order of Table 1."""
METRICS = ("psnr", "lpips_vgg", "style", "fid")
OURS = "model"
"""The first column."""
_POOL = 24  # pictures that are drawn to retrieve from, where no data set is given


# ------------------------------------------------------------------------------------------------------ what is judged


class Judged(Protocol):
    """A model that makes an image of a label map and an exemplar."""

    classes: tuple[str, ...]
    """Names of its classes."""
    size: tuple[int, int]
    """Height and width of its images in pixels."""

    def synthesize(self, item: Item, exemplar: Item) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of the label map of `item`, in the style of `exemplar`."""
        ...


class ByExemplar:
    """A model of this paper.

    Args:
        model: the model.
    """

    def __init__(self, model: MSCA) -> None:
        self.model = model
        self.classes, self.size = model.classes, model.size

    def synthesize(self, item: Item, exemplar: Item) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of the label map of `item`, in the style of `exemplar`."""
        return self.model.synthesize(item.labels, exemplar.image, exemplar.labels).image


class ByGlobalCode:
    """SPADE or CLADE with the image encoder of a VAE: the mean of the exemplar's code is all that it takes.

    Args:
        trained: a run with the network "encoder".
    """

    def __init__(self, trained: Trained) -> None:
        self.classes = tuple(trained.config["classes"])
        config: Any = trained.task.config  # type: ignore[attr-defined]
        self.size: tuple[int, int] = config.generator.output_size
        self._trained = trained
        self._device = next(trained.networks["generator"].parameters()).device
        self._collate = Collate(len(self.classes), tuple(trained.task.plans))

    def synthesize(self, item: Item, exemplar: Item) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of the label map of `item`, with the code of `exemplar`."""
        batch = self._collate([replace(item, image=exemplar.image)]).to(self._device)
        image: np.ndarray = to_uint8(self._trained.generate(batch))[0]
        return image


def open_judged(model: str | None, device: str, vgg_weights: str = "auto") -> Judged:
    """Load a model of this paper (file, run folder, None: the shipped one), or a run of SPADE or CLADE with a VAE.

    `vgg_weights` as of `MSCA.load`.

    Raises:
        ValueError, FileNotFoundError: it is not there, damaged, or takes no exemplar; the message names the path.
    """
    vae = load_vae(model, device_of(device)) if model else None
    return ByExemplar(open_model(MSCA, model, device, vgg_weights=vgg_weights)) if vae is None else ByGlobalCode(vae)


# ------------------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True, eq=False)
class Posed:
    """One picture as a task asks for it."""

    item: Item
    """Whose label map is given."""
    exemplar: Item
    truth: np.ndarray
    """(H, W, 3) uint8: what the image is compared with."""
    candidates: tuple[Candidate, ...] = ()
    """Of retrieving: all that were matched, the exemplar first."""


def posed(
    task: str,
    item: Item,
    reference: DataReference,
    pool: Pool | None = None,
    *,
    candidates: int = 20,
    colour_correction: bool = True,
) -> Posed | None:
    """Return a picture as a task asks for it; None where the pool has no other picture.

    Args:
        task: one of `TASKS`.
        item: a picture of `reference`.
        reference: says which classes a mirror exchanges.
        pool: needed for retrieving.
        candidates: how many pictures are matched.
        colour_correction: the truth of retrieving takes the exemplar's colours.

    Raises:
        ValueError: another task, or retrieving without a pool.
    """
    if task == "duplicating":
        return Posed(item, item, item.image)
    if task == "mirroring":
        assert reference.dataset is not None
        return Posed(item, reference.dataset.mirrored(item), item.image)
    if task != "retrieving":
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    if pool is None:
        raise ValueError("pool: expected one for retrieving, got none")
    found = pool.candidates(item, candidates)
    if not found:
        return None
    exemplar = pool.read(found[0])
    truth = transfer_colours(item.image, exemplar.image) if colour_correction else item.image
    return Posed(item, exemplar, truth, tuple(found))


def sheet_row(given: Posed, made: Mapping[str, np.ndarray], psnr: Mapping[str, float], num_classes: int) -> list[np.ndarray]:
    """Draw one picture of a task: label map, exemplar, truth (before and after its colours were corrected), images.

    Args:
        given: the picture as the task asks for it.
        made: model -> image.
        psnr: model -> dB, where it is known; it stands below the image.
        num_classes: of the label maps.

    Returns:
        Cells (H, W, 3) uint8.
    """
    size = cell_size((given.truth.shape[0], given.truth.shape[1]))
    labels = coloured(given.item.labels, num_classes, size)
    exemplar = f"exemplar {given.exemplar.name}"
    if given.candidates:
        best = given.candidates[0]
        exemplar += f": labels {best.intersection:.2f}, matching {best.cost:.3f}"
    cells = [(labels, f"labels of {given.item.name}"), (given.exemplar.image, exemplar), (given.item.image, "the picture")]
    if given.truth is not given.item.image:
        cells.append((given.truth, "truth: its colours corrected"))
    cells += [(image, name + (f": {psnr[name]:.2f} dB" if name in psnr else "")) for name, image in made.items()]
    return [captioned(enlarged(picture, size), text, lines=2) for picture, text in cells]


@dataclass
class Judgement:
    """What an evaluation found."""

    columns: Columns
    rows: dict[str, list[list[np.ndarray]]] = field(default_factory=dict)
    """Task -> rows of its sheet."""


def evaluate(
    models: Mapping[str, Judged],
    reference: DataReference,
    tools: Tools,
    pool: Pool | None = None,
    *,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    candidates: int = 20,
    colour_correction: bool = True,
    show: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Judgement:
    """Judge models on a data set.

    Args:
        models: name -> model; all of the same classes and size, which are those of `reference`.
        reference: pictures with label maps.
        tools: what can be computed; what cannot is named in the report's `not_computed`.
        pool: where exemplars are retrieved from; needed for that task.
        tasks: some of `TASKS`.
        limit: only the first so many pictures; None: all.
        candidates: pictures that are matched with each one.
        colour_correction: the truth of retrieving takes the exemplar's colours.
        show: pictures in the sheets.
        seed: of the bootstrap.
        device: where metrics are computed.
    """
    comparisons = {
        task: {name: Comparison(tools.pairs, None, tools.inception, device=device, keep=0) for name in models}
        for task in tasks
    }
    columns = Columns(
        "MSCA: duplicating, mirroring, retrieving (Table 1)", {}, {}, not_computed=dict(tools.missing), seed=seed
    )
    judgement = Judgement(columns, {task: [] for task in tasks})
    retrieved: dict[str, Any] = {}
    names = reference.names()[:limit]
    assert reference.dataset is not None
    with progress(f"evaluating, {len(names)} pictures"):
        for name in names:
            try:
                item = reference.dataset[reference.index[name]]
            except (ValueError, OSError) as error:
                columns.problems.append(f"{name}: {error}")
                continue
            if not (item.labels >= 0).any():
                columns.problems.append(f"{name}: no pixel of its label map has a class")
                continue
            for task in tasks:
                given = posed(task, item, reference, pool, candidates=candidates, colour_correction=colour_correction)
                if given is None:
                    columns.problems.append(f"{name}: no other picture in the pool to retrieve")
                    continue
                if given.candidates:
                    retrieved[name] = {
                        "exemplar": given.candidates[0].name,
                        "candidates": [asdict(candidate) for candidate in given.candidates],
                    }
                made = {key: model.synthesize(item, given.exemplar) for key, model in models.items()}
                for key, image in made.items():
                    comparisons[task][key].add([Compared(name, image, given.truth, item.labels)])
                if len(judgement.rows[task]) < show:
                    psnr = {
                        key: found.scores["psnr"].values[-1]
                        for key, found in comparisons[task].items()
                        if "psnr" in found.scores
                    }
                    judgement.rows[task].append(sheet_row(given, made, psnr, len(reference.classes)))
    columns.reports = {
        task: {
            name: Report(
                f"{task}: {name}",
                {},
                counts={"pictures": comparison.count},
                scores={metric: score for metric, score in comparison.scores.items() if score.names},
                fid=comparison.fid(),
                seed=seed,
            )
            for name, comparison in found.items()
        }
        for task, found in comparisons.items()
    }
    if tools.inception is not None and not any(
        report.fid for reports in columns.reports.values() for report in reports.values()
    ):
        columns.not_computed["fid"] = "it needs at least two pictures on either side"
    columns.counts = {f"pictures, {task}": max(each.count for each in found.values()) for task, found in comparisons.items()}
    columns.details = {"retrieved": retrieved}
    return judgement


# ---------------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Options(JudgedModelOptions, VGGOptions):
    """Options of the command."""

    compare: tuple[str, ...] = repeated()  # NAME=MODEL: another column, an ablation or a run of spade with a VAE, say
    tasks: tuple[Task, ...] = TASKS
    """what the models have to do"""
    pool: str | None = None  # part of the data set that exemplars are retrieved from; none: the part that is judged
    candidates: int = 20  # pictures with the most similar label histograms, of which one is matched best
    colour_correction: bool = True  # the truth of retrieving takes the exemplar's colours
    lpips: str | None = None  # weights of VGG-16 for LPIPS; none: found where a package brought them
    style: str | None = None  # weights of VGG-19 or VGG-16 for style distance; none: found where a package brought them
    show: int = 4  # pictures in the sheet of every task
    out: Path = Path("evaluation")  # folder of the report

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, candidates=1, show=0)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: expected some of {', '.join(TASKS)}, each once, got {', '.join(self.tasks) or 'none'}")
        if self.pool is not None and not self.data:
            raise ValueError("pool: goes with --data only")


def _open_models(options: Options) -> dict[str, Judged]:
    """Open the columns; all have the classes and the size of the first one."""
    given = [name_and_file(entry, "compare", "NAME=MODEL") for entry in options.compare]
    names = [name for name, _ in given]
    if len(set(names)) < len(names) or OURS in names:
        raise ValueError(f"compare: expected other names than {OURS}, each once, got {', '.join(names)}")
    models = {OURS: open_judged(options.model, options.device, options.vgg_weights)}
    for name, path in given:
        models[name] = open_judged(path, options.device, options.vgg_weights)
        for what in ("classes", "size"):
            ours, theirs = getattr(models[OURS], what), getattr(models[name], what)
            if ours != theirs:
                raise ValueError(f"compare: {name}: expected the {what} of the first model, {ours}, got {theirs}")
    return models


def _open_pool(options: Options, reference: DataReference, model: Judged, problems: list[str]) -> Pool:
    """Open what is retrieved from; drawn pictures that are not judged, where no data set is given."""
    assert reference.dataset is not None
    if options.data and options.pool in (None, options.split):
        return Pool(reference.dataset, problems)
    other = replace(options, split=options.pool or options.split, seed=options.seed + len(reference.dataset))
    opened = reference_of_model(other, model.classes, model.size, _POOL)
    assert opened.dataset is not None
    return Pool(opened.dataset, problems)


def main(options: Options) -> int:
    """Evaluate as the options say, write and print the report, and return the exit status (see the module).

    Raises:
        ValueError, FileNotFoundError: a model, data set or network that is not there or cannot be used, classes that differ,
            an --out that is no folder.
    """
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {options.out}")
    check_outputs({"out": options.out / "report.json"})
    models = _open_models(options)
    first = models[OURS]
    reference = reference_of_model(options, first.classes, first.size)
    files = {"lpips_vgg": options.lpips, "style_vgg": options.style, "inception": options.inception}
    device = device_of(options.device)
    tools = Tools(METRICS, files, device=device)
    tasks, problems = list[str](options.tasks), list[str]()
    pool: Pool | None = None
    if "retrieving" in tasks:
        try:
            with progress("reading the pool"):
                pool = _open_pool(options, reference, first, problems)
        except ImportError as error:
            tools.missing["retrieving"] = str(error)
            tasks.remove("retrieving")
    judgement = evaluate(
        models,
        reference,
        tools,
        pool,
        tasks=tasks,
        limit=options.limit,
        candidates=options.candidates,
        colour_correction=options.colour_correction,
        show=options.show,
        seed=options.seed,
        device=device,
    )
    columns, source = judgement.columns, reference.source
    columns.problems += problems
    style = tools.pairs.get("style")
    columns.settings = {
        OURS: options.model or "shipped",
        **dict(name_and_file(entry, "compare", "NAME=MODEL") for entry in options.compare),
        "data set": f"{source.name}, {options.split if options.data else 'drawn by code'}, {len(source)} pictures",
        "pool": None if pool is None else f"{pool.dataset.source.name}, {_pool_of(options)}, {len(pool)} pictures",
        "candidates": options.candidates if pool else None,
        "truth of retrieving": _truth(options) if pool else None,
        "size": f"{first.size[0]} x {first.size[1]} (height x width)",
        "style distance through": style.network.kind if isinstance(style, StyleDistance) else None,
        "FID features": None if tools.inception is None else str(tools.inception.path),
        "seed": options.seed,
        "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
    }
    columns.notes = [
        "Retrieving and mirroring ask for what the exemplar has elsewhere, duplicating for what it has there.",
        "Dense matching: TV-L1 flow and DAISY in place of SIFT Flow; colours corrected by a linear map in place of WCT2.",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    sheets = []
    for task in TASKS:
        path = options.out / f"{task}.png"
        path.unlink(missing_ok=True)  # of another evaluation
        if judgement.rows.get(task):
            save_png(contact_sheet(judgement.rows[task]), path)
            sheets.append(path)
    print(columns.write(options.out, sheets), end="")
    print(f"\n{options.out / 'report.json'}")
    for problem in columns.problems:
        print(problem, file=sys.stderr)
    judged = any(report.scores for reports in columns.reports.values() for report in reports.values())
    if not judged:
        print("nothing could be judged: no picture is readable and has a class", file=sys.stderr)
    return 1 if columns.problems or not judged else 0


def _pool_of(options: Options) -> str:
    return options.pool or (options.split if options.data else "other ones drawn by code")


def _truth(options: Options) -> str:
    return "the picture in the exemplar's colours" if options.colour_correction else "the picture as it is"
