"""Tables 1 to 5 of the paper: reconstructions, transfers of regions and their harmony, random styles; models side by side.

    mixsyn-fast harmonized evaluate                                      the shipped model, pictures drawn by code
    mixsyn-fast harmonized evaluate --model runs/mine --data datasets/celebamask_hq --harmony runs/harmony
    mixsyn-fast harmonized evaluate --model runs/mine --compare sean=runs/sean --data my_set --out judged
    mixsyn-fast harmonized evaluate --model runs/style --compare kl=runs/kl --compare image=runs/image --tasks samples

What is judged, 8-bit pictures throughout, means over pictures with a 95 % bootstrap interval:

* reconstruction (Table 1): PSNR, SSIM, LPIPS of the image of a picture's own codes against the picture; FID of all of them.
* transfer of a group (Tables 2 and 3): the first half of the pictures are targets, the second half references, in the order
  of the set; with --references all pictures are targets, and those of that set references. A pair one of which lacks all of
  the group's regions is left out. FID is that of the results against all pictures. The harmony score is the probability by
  which a classifier of photographs and composites (--harmony, `mixsyn-fast train harmony`) takes the transferred regions for
  their own; that of the targets as they are stands in the note.
* samples of a group (Tables 4 and 5): --styles images of every picture that has a region of the group, with random styles
  of it. mCSD is their mean pairwise LPIPS inside the group's regions, mOCD outside; FID that of all against all pictures.

Columns: the model; the same without its attention, where it has one; those of --compare (a run of `mixsyn-fast train sean`,
an ablation), which must have its regions and size; and of samples those by the flows of all that have some ("by flow" of
the model, "NAME by flow" of NAME), beside those by mapping networks, or of a model trained with --mapping-by kl by N(0, I);
none without attention. Groups are the model's; of a model without groups hair, and skin with nose. --tasks leaves tasks
out. The paper does not say which network its LPIPS looks through: --network, AlexNet by default.

The folder of the report gets report.json, report.md, scores.png and transfers.png (the first pairs); with --images also
every result, in images/<group>/<model>/<target>_<reference>.png, which `mixsyn-fast harmonized study` takes. Exit status 1:
there are pictures that cannot be read or have no region (all named), or nothing could be judged.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import mixsyn_fast
from mixsyn_fast.progress import progress

from ..data import Item
from ..evaluation.columns import Columns
from ..evaluation.compare import Compared, Comparison
from ..evaluation.inputs import DataReference, JudgedModelOptions, reference_of_model
from ..evaluation.report import Report
from ..harmony import load_classifier
from ..metrics import class_diversity, fid_of_features
from ..metrics.fid import FIDResult
from ..metrics.harmony import HarmonyClassifier, harmony_score
from ..metrics.score import Score
from ..metrics.table import Tools
from ..pictures.files import save_image, to_tensor
from ..pictures.options import check_outputs, device_of, name_and_file, open_model
from ..pictures.picture import Picture
from ..settings import at_least, read_json, repeated
from ..sheets import contact_sheet, save_png
from .config import GeneratorConfig
from .model import By, Harmonized, listed
from .pictures import KINDS, image_cell, regions_cell
from .task import DEFAULT_GROUPS

OURS, WITHOUT, BY_FLOW = "ours", "without attention", "by flow"
Task = Literal["reconstruction", "transfer", "samples"]
TASKS: tuple[Task, ...] = ("reconstruction", "transfer", "samples")
_TOOLS = {"alexnet": "lpips_alex", "vgg16": "lpips_vgg"}
_BATCH = 16  # pictures that the features of FID are made of at once
_SHOWN = 6  # pairs on the sheet
_DRAWN = 4  # pictures that are drawn where there is no data set: the command is to be seen at work in some seconds


@dataclass
class _Set:
    """Images that have no pair: their features for FID, and scores."""

    features: list[Tensor] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    count: int = 0

    def score(self, metric: str, name: str, value: float) -> None:
        """Note the value of a picture."""
        score = self.scores.setdefault(metric, Score())
        score.names.append(name)
        score.values.append(value)


class Judge:
    """Judges models on one set of pictures.

    Args:
        models: name -> model, of the same regions and size; the others are compared with the first.
        items: the pictures, at the models' size.
        tools: LPIPS and the features for FID, as far as they are there.
        classifier: for the harmony score; None: there is none.
        groups: group -> its regions.
        styles: random styles of a picture and a group, at least 2.
        seed: of the styles and of the bootstrap; a picture's styles depend on it and on the picture's place alone.
        images: folder that gets every transfer; None: none are kept.
        tasks: what is judged.
        references: pictures that give the styles of transfers to `items`; None: the first half of these are targets, the
            second half references.
    """

    def __init__(
        self,
        models: Mapping[str, Harmonized],
        items: Sequence[Item],
        tools: Tools,
        classifier: HarmonyClassifier | None,
        groups: Mapping[str, tuple[str, ...]],
        *,
        styles: int = 10,
        seed: int = 0,
        images: Path | None = None,
        tasks: Collection[Task] = TASKS,
        references: Sequence[Item] | None = None,
    ) -> None:
        self.models, self.items, self.tools, self.classifier = dict(models), list(items), tools, classifier
        self.groups, self.styles, self.seed, self.images, self.tasks = dict(groups), styles, seed, images, tasks
        self.device = next(iter(models.values())).device
        half = len(self.items) // 2
        targets, giving = (self.items[:half], self.items[half:]) if references is None else (self.items, references)
        self.pairs = list(zip(targets, giving, strict=False))
        self.shown: list[tuple[str, Item, Item, dict[str, np.ndarray]]] = []
        self.harmony_of_targets: dict[str, list[float]] = {}
        with progress("features of the pictures"):
            self._real = self._features([item.image for item in self.items])

    def reports(self) -> dict[str, dict[str, Report]]:
        """Return task -> model -> scores and FID; every task has every model."""
        samplers = self.samplers()
        found: dict[str, dict[str, Report]] = {}
        if "reconstruction" in self.tasks:
            found["reconstruction"] = {name: self.reconstruction(name) for name in self.models}
        for group in self.groups if "transfer" in self.tasks else ():
            found[f"transfer of {group}"] = self.transfers(group)
        for group in self.groups if "samples" in self.tasks else ():
            made = {name: self.samples(name, model, group, by) for name, (model, by) in samplers.items()}
            found[f"samples of {group}"] = {name: self._report(each) for name, each in made.items()}
        columns = [*self.models, *(name for name in samplers if name not in self.models and "samples" in self.tasks)]
        nothing = self._report(_Set())
        return {task: {name: reports.get(name, nothing) for name in columns} for task, reports in found.items()}

    def samplers(self) -> dict[str, tuple[Harmonized, By]]:
        """Return what draws random codes: the models, then those with flows by these.

        Not again without attention: no table of the paper has that, and it takes as long as another model.
        """
        models = {name: model for name, model in self.models.items() if name != WITHOUT}
        found: dict[str, tuple[Harmonized, By]] = {name: (model, "mapping") for name, model in models.items()}
        return found | {by_flow(name): (model, "flow") for name, model in models.items() if model.flows}

    def without_codes(self) -> dict[str, str]:
        """Return models of which no random code can be drawn but by flows -> why, where samples are judged at all."""
        lacking: dict[str, str] = {}
        for name, (model, by) in self.samplers().items() if "samples" in self.tasks else ():
            if model.drawable(by):
                continue
            sean = not isinstance(model.config, GeneratorConfig)
            lacking[f"samples, {name}"] = "SEAN has none" if sean else f"no mapping network{model.missing(by)}"
        return lacking

    def reconstruction(self, name: str) -> Report:
        """Judge the images of pictures' own codes."""
        model = self.models[name]
        comparison = Comparison(self.tools.pairs, None, None, device=self.device, keep=0)
        made = _Set()
        with progress(f"reconstruction, {name}") as at:
            for place, item in enumerate(self.items):
                at(place, len(self.items))
                image = model.reconstruct(item.image, item.labels).image
                comparison.add([Compared(item.name, image, item.image, item.labels)])
                made.features += self._features([image])
                made.count += 1
        made.scores = comparison.scores
        return self._report(made)

    def transfers(self, group: str) -> dict[str, Report]:
        """Judge the transfers of a group's regions, by every model."""
        found = {name: _Set() for name in self.models}
        with progress(f"transfer of {group}") as at:
            for place, (target, reference) in enumerate(self.pairs):
                at(place, len(self.pairs))
                regions = self._both(group, target, reference)
                if not regions:
                    continue
                name = f"{target.name}_{reference.name}"
                made = {
                    way: model.transfer(target.image, target.labels, reference.image, reference.labels, regions).image
                    for way, model in self.models.items()
                }
                inside = self._inside(target, regions)
                if self.classifier is not None:
                    self.harmony_of_targets.setdefault(group, []).append(self._harmony(target.image, inside))
                for way, image in made.items():
                    each = found[way]
                    each.count += 1
                    each.features += self._features([image])
                    if self.classifier is not None:
                        each.score("harmony", name, self._harmony(image, inside))
                    if self.images is not None:
                        save_image(self.images / group / way / f"{name}.png", image)
                if sum(shown == group for shown, *_ in self.shown) < _SHOWN:
                    self.shown.append((group, target, reference, made))
        return {name: self._report(each) for name, each in found.items()}

    def samples(self, name: str, model: Harmonized, group: str, by: By) -> _Set:
        """Judge random styles of a group's regions; nothing where the model has none."""
        found = _Set()
        regions = tuple(region for region in self.groups[group] if region in model.drawable(by))
        if not regions:
            return found
        with progress(f"samples of {group}, {name}") as at:
            for place, item in enumerate(self.items):
                at(place, len(self.items))
                present = model.present(item.labels)
                here = tuple(region for region in regions if region in present)
                if not here:
                    continue
                seed = int(np.random.SeedSequence((self.seed, place)).generate_state(1)[0])
                made = [each.image for each in model.sample(item.image, item.labels, here, self.styles, seed, by=by)]
                found.count += 1
                found.features += self._features(made)
                if self.tools.diversity is not None:
                    outputs = to_tensor(made).to(self.device).float() / 127.5 - 1
                    labels = torch.from_numpy(self._inside(item, here).astype(np.int64)).to(self.device)
                    specific, other = class_diversity(self.tools.diversity, outputs, labels, 1)
                    found.score("mcsd", item.name, specific)
                    found.score("mocd", item.name, other)
        return found

    # --- parts --------------------------------------------------------------------------------------------------------

    def _both(self, group: str, target: Item, reference: Item) -> tuple[str, ...]:
        """Regions of a group that both pictures have."""
        model = next(iter(self.models.values()))
        there = set(model.present(target.labels)) & set(model.present(reference.labels))
        return tuple(region for region in self.groups[group] if region in there)

    def _inside(self, item: Item, regions: Sequence[str]) -> np.ndarray:
        classes = next(iter(self.models.values())).classes
        return np.isin(item.labels, [classes.index(name) for name in regions])

    def _harmony(self, image: np.ndarray, inside: np.ndarray) -> float:
        assert self.classifier is not None
        picture = to_tensor([image]).to(self.device).float() / 127.5 - 1
        mask = torch.from_numpy(inside)[None, None].to(self.device).float()
        return float(harmony_score(self.classifier, picture, mask))

    def _features(self, pictures: Sequence[np.ndarray]) -> list[Tensor]:
        if self.tools.inception is None:
            return []
        parts = (pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH))
        found = [self.tools.inception.features(to_tensor(list(part)).to(self.device)) for part in parts]
        return [row for each in found for row in each.split(1)]

    def _report(self, made: _Set) -> Report:
        fid: dict[str, FIDResult] = {}
        if self.tools.inception is not None and min(len(made.features), len(self._real)) >= 2:
            # a sample's pictures are several, so the count of the first set is that of images
            fid[""] = fid_of_features(torch.cat(made.features), torch.cat(self._real), self.tools.inception.notes)
        classes = next(iter(self.models.values())).classes
        return Report("", {}, classes, {"pictures": made.count}, made.scores, fid, seed=self.seed)


def by_flow(name: str) -> str:
    """Return the column of a model's random styles by its flows."""
    return BY_FLOW if name == OURS else f"{name} {BY_FLOW}"


def sheet(models: Mapping[str, Harmonized], judge: Judge) -> np.ndarray | None:
    """Draw the first pairs of every group: target, reference, and the result of every model; None without a pair.

    Returns:
        (H, W, 3) uint8.
    """
    model = next(iter(models.values()))
    rows = []
    for group, target, reference, made in judge.shown:
        regions = judge._both(group, target, reference)
        row = [
            regions_cell(model, Picture(each.image, each.labels.astype(np.int32), each.name), regions, caption, place=place)
            for place, (each, caption) in enumerate(((target, f"{target.name}: {group}"), (reference, reference.name)))
        ]
        rows.append([*row, *(image_cell(model, image, name) for name, image in made.items())])
    if not rows:
        return None
    return contact_sheet(rows)


# ---------------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Options(JudgedModelOptions):
    """Options of the command."""

    compare: tuple[str, ...] = repeated()
    """NAME=MODEL: another model beside it, an ablation or a run of SEAN; once per model"""
    styles: int = 10  # random styles of every picture and group
    network: Literal["alexnet", "vgg16"] = "alexnet"  # what LPIPS looks through
    lpips: str | None = None  # weights of that network; none: found where a package brought them
    harmony: str | None = None
    """classifier for the harmony score: a run of `mixsyn-fast train harmony`, or its file; none: no score"""
    images: bool = False  # also write every transferred image
    out: Path = Path("evaluation")  # folder of the report
    tasks: tuple[Task, ...] = TASKS  # what is judged: Table 1; Tables 2 and 3; Tables 4 and 5
    references: str | None = None
    """data set whose pictures give the styles of transfers, as in Table 3; none: the second half of the set itself"""
    references_kind: str = "auto"  # its layout

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, styles=2)
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks: expected some of {', '.join(TASKS)}, got {listed(self.tasks)}")


def main(options: Options) -> int:
    """Evaluate as the options say, write and print the report, and return the exit status (see the module).

    Raises:
        ValueError, FileNotFoundError: a model, data set or network that is not there or cannot be used, classes that differ,
            an --out that is no folder.
    """
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {options.out}")
    check_outputs({"out": options.out / "report.json"})
    classifier = None if options.harmony is None else load_classifier(options.harmony, device_of(options.device))
    models = open_models(options)
    first = models[OURS]
    groups = first.groups or {
        name: there
        for name, regions in DEFAULT_GROUPS.items()
        if (there := tuple(region for region in regions if region in first.classes))
    }
    reference = reference_of_model(options, first.classes, first.size, _DRAWN, KINDS)
    tool = _TOOLS[options.network]
    files = {tool: options.lpips, "inception": options.inception}
    tools = Tools(["psnr", "ssim", tool, "diversity", "fid"], files, diversity=tool, device=first.device)
    with progress("reading pictures"):
        items, problems = readable(reference, options.limit)
        references = None
        if options.references:
            given = replace(options, data=options.references, kind=options.references_kind)
            references, more = readable(reference_of_model(given, first.classes, first.size), options.limit)
            problems += [f"references: {problem}" for problem in more]
    images = options.out / "images" if options.images else None
    how: dict[str, Any] = {"styles": options.styles, "seed": options.seed, "images": images, "tasks": options.tasks}
    how["references"] = references
    judge = Judge(models, items, tools, classifier, groups, **how)
    reports = judge.reports() if items else {}
    missing = dict(tools.missing)
    if "diversity" in missing:
        missing["mcsd, mocd"] = missing.pop("diversity")
    if classifier is None and "transfer" in options.tasks:
        missing["harmony"] = "no classifier was given: --harmony RUN, of `mixsyn-fast train harmony`"
    missing |= judge.without_codes()
    missing |= {task: "no picture, or no pair, has its regions" for task, made in reports.items() if not _judged(made)}
    source = reference.source
    found = Columns(
        "Reconstruction, transfer and random styles of regions (Tables 1 to 5)",
        {
            "model": options.model or "shipped",
            "compare": ", ".join(options.compare) or None,
            "data set": f"{source.name}, {options.split if options.data else 'drawn by code'}, {len(source)} pictures",
            "references": options.references,
            "groups": "; ".join(f"{name}: {listed(regions)}" for name, regions in groups.items()),
            "size": f"{first.size[0]} x {first.size[1]} (height x width)",
            "LPIPS": None if tools.diversity is None else options.network,
            "FID features": None if tools.inception is None else str(tools.inception.path),
            "harmony classifier": options.harmony and f"{options.harmony}{trained_at(options.harmony, first.size)}",
            "seed": options.seed,
            "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
        },
        reports,
        {"pictures": len(items), "random styles of every picture and group": options.styles},
        {"harmony score of the targets themselves": {name: _mean(each) for name, each in judge.harmony_of_targets.items()}},
        missing,
        problems,
        [
            "FID is against all pictures of the set: " + ("the targets." if references else "targets and references."),
            *(
                f"Harmony score of the targets as they are, regions of {name}: {_mean(each):.3f}"
                for name, each in judge.harmony_of_targets.items()
            ),
        ],
        options.seed,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = sheet(models, judge)
    path = options.out / "transfers.png"
    path.unlink(missing_ok=True)  # of another evaluation: the report would show it
    if drawn is not None:
        save_png(drawn, path)
    print(found.write(options.out, [path] if drawn is not None else []), end="")
    print(f"\n{options.out / 'report.json'}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if not items:
        print("nothing could be judged: no picture is readable and has a region", file=sys.stderr)
    return 1 if problems or not items else 0


def trained_at(harmony: str, size: tuple[int, int]) -> str:
    """Return what is to be said of a classifier of another size than the pictures; "" where it fits or is no run folder."""
    config = Path(harmony, "config.json")
    given = read_json(config)["data"].get("size") or () if config.is_file() else ()
    own = (given[0], given[-1]) if given else size
    if own == size:
        return ""
    return f", trained at {own[0]} x {own[1]}, not at the pictures' size: its accuracy there says little of these scores"


def open_models(options: Options) -> dict[str, Harmonized]:
    """Load the model, and those beside it.

    Raises:
        ValueError, FileNotFoundError: one of other regions or of another size; a name that is taken; what loading says.
    """
    given = [name_and_file(entry, "compare", "NAME=MODEL") for entry in options.compare]
    names = [OURS, WITHOUT, BY_FLOW, *(each for name, _ in given for each in (name, by_flow(name)))]
    taken = next((name for name in names if names.count(name) > 1), None)
    if taken is not None:
        raise ValueError(f"compare: expected other names, each once, got {taken}")
    first = open_model(Harmonized, options.model, options.device)
    models = {OURS: first}
    if first.attention is not None:
        models[WITHOUT] = first.without_attention()
    for name, file in given:
        models[name] = other = open_model(Harmonized, file, options.device)
        if (other.classes, other.size) != (first.classes, first.size):
            height, width = first.size
            raise ValueError(
                f"compare: {name}: expected the model's regions at {width} x {height} (width x height), got "
                f"{listed(other.classes)} at {other.size[1]} x {other.size[0]}"
            )
    return models


def readable(reference: DataReference, limit: int | None) -> tuple[list[Item], list[str]]:
    """Return the pictures of a set that can be read and have a region, and what is wrong with the others."""
    items: list[Item] = []
    problems: list[str] = []
    assert reference.dataset is not None
    for name in reference.names()[:limit]:
        try:
            item = reference.dataset[reference.index[name]]
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {error}")
            continue
        if (item.labels >= 0).any():
            items.append(item)
        else:
            problems.append(f"{name}: no pixel of its label map has a region")
    return items, problems


def _judged(reports: Mapping[str, Report]) -> bool:
    return any(report.counts.get("pictures", 0) for report in reports.values())


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values))
