"""Tables 1 to 4 of the paper: reconstructions, transfers of regions and their harmony, random styles; models side by side.

    mixsyn-fast harmonized evaluate                                      the shipped model, pictures drawn by code
    mixsyn-fast harmonized evaluate --model runs/mine --data datasets/celebamask_hq --harmony runs/harmony
    mixsyn-fast harmonized evaluate --model runs/mine --compare sean=runs/sean --data my_set --out judged

What is judged, 8-bit pictures throughout, means over pictures with a 95 % bootstrap interval:

* reconstruction (Table 1): PSNR, SSIM, LPIPS of the image of a picture's own codes against the picture; FID of all of them.
* transfer of a group (Tables 2 and 3): the first half of the pictures are targets, the second half references, in the order
  of the set; a pair one of which lacks all of the group's regions is left out. FID is that of the results against all
  pictures. The harmony score is the probability by which a classifier of photographs and composites (--harmony, `mixsyn-fast
  train harmony`) takes the transferred regions for their own; that of the targets as they are stands in the note.
* samples of a group (Table 4): --styles images of every picture that has a region of the group, with random styles of it.
  mCSD is their mean pairwise LPIPS inside the group's regions, mOCD outside; FID that of all of them against all pictures.

Columns: the model; the same without its attention, where it has one; those of --compare (a run of `mixsyn-fast train sean`,
an ablation), which must have its regions and size; and of samples those by its flows. Groups are the model's; of a model
without groups hair, and skin with nose. The paper does not say which network its LPIPS looks through: --network, AlexNet by
default.

The folder of the report gets report.json, report.md, scores.png and transfers.png (the first pairs); with --images also
every result, in images/<group>/<model>/<target>_<reference>.png, which `mixsyn-fast harmonized study` takes. Exit status 1:
there are pictures that cannot be read or have no region (all named), or nothing could be judged.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from ..settings import at_least, repeated
from ..sheets import contact_sheet, save_png
from .model import By, Harmonized, listed
from .pictures import KINDS, image_cell, regions_cell
from .task import DEFAULT_GROUPS

OURS, WITHOUT, BY_FLOW = "ours", "without attention", "by flow"
_TOOLS = {"alexnet": "lpips_alex", "vgg16": "lpips_vgg"}
_SHOWN = 6  # pairs on the sheet


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
    ) -> None:
        self.models, self.items, self.tools, self.classifier = dict(models), list(items), tools, classifier
        self.groups, self.styles, self.seed, self.images = dict(groups), styles, seed, images
        self.device = next(iter(models.values())).device
        self.pairs = list(zip(self.items[: len(self.items) // 2], self.items[len(self.items) // 2 :], strict=False))
        self.shown: list[tuple[str, Item, Item, dict[str, np.ndarray]]] = []
        self.harmony_of_targets: dict[str, list[float]] = {}
        self._real = self._features([item.image for item in self.items])

    def reports(self) -> dict[str, dict[str, Report]]:
        """Return task -> model -> scores and FID."""
        first = next(iter(self.models.values()))
        samplers: dict[str, tuple[Harmonized, By]] = {name: (model, "mapping") for name, model in self.models.items()}
        if first.flows:
            samplers[BY_FLOW] = (first, "flow")
        found: dict[str, dict[str, Report]] = {"reconstruction": {name: self.reconstruction(name) for name in self.models}}
        for group in self.groups:
            found[f"transfer of {group}"] = self.transfers(group)
        for group in self.groups:
            made = {name: self.samples(name, model, group, by) for name, (model, by) in samplers.items()}
            found[f"samples of {group}"] = {name: self._report(each) for name, each in made.items()}
        for reports in found.values():
            for name in samplers:  # every task has every model
                reports.setdefault(name, self._report(_Set()))
        return found

    def reconstruction(self, name: str) -> Report:
        """Judge the images of pictures' own codes."""
        model = self.models[name]
        comparison = Comparison(self.tools.pairs, None, None, device=self.device, keep=0)
        made = _Set()
        with progress(f"reconstruction, {name}"):
            for item in self.items:
                image = model.reconstruct(item.image, item.labels).image
                comparison.add([Compared(item.name, image, item.image, item.labels)])
                made.features += self._features([image])
                made.count += 1
        made.scores = comparison.scores
        return self._report(made)

    def transfers(self, group: str) -> dict[str, Report]:
        """Judge the transfers of a group's regions, by every model."""
        found = {name: _Set() for name in self.models}
        with progress(f"transfer of {group}"):
            for target, reference in self.pairs:
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
        with progress(f"samples of {group}, {name}"):
            for place, item in enumerate(self.items):
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
        return [self.tools.inception.features(to_tensor([picture]).to(self.device)) for picture in pictures]

    def _report(self, made: _Set) -> Report:
        fid: dict[str, FIDResult] = {}
        if self.tools.inception is not None and min(len(made.features), len(self._real)) >= 2:
            # a sample's pictures are several, so the count of the first set is that of images
            fid[""] = fid_of_features(torch.cat(made.features), torch.cat(self._real), self.tools.inception.notes)
        classes = next(iter(self.models.values())).classes
        return Report("", {}, classes, {"pictures": made.count}, made.scores, fid, seed=self.seed)


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

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, styles=2)


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
    reference = reference_of_model(options, first.classes, first.size, kinds=KINDS)
    tool = _TOOLS[options.network]
    files = {tool: options.lpips, "inception": options.inception}
    tools = Tools(["psnr", "ssim", tool, "diversity", "fid"], files, diversity=tool, device=first.device)
    items, problems = readable(reference, options.limit)
    images = options.out / "images" if options.images else None
    judge = Judge(models, items, tools, classifier, groups, styles=options.styles, seed=options.seed, images=images)
    reports = judge.reports() if items else {}
    missing = dict(tools.missing)
    if "diversity" in missing:
        missing["mcsd, mocd"] = missing.pop("diversity")
    if classifier is None:
        missing["harmony"] = "no classifier was given: --harmony RUN, of `mixsyn-fast train harmony`"
    missing |= {task: "no picture, or no pair, has its regions" for task, made in reports.items() if not _judged(made)}
    source = reference.source
    found = Columns(
        "Reconstruction, transfer and random styles of regions (Tables 1 to 4)",
        {
            "model": options.model or "shipped",
            "compare": ", ".join(options.compare) or None,
            "data set": f"{source.name}, {options.split if options.data else 'drawn by code'}, {len(source)} pictures",
            "groups": "; ".join(f"{name}: {listed(regions)}" for name, regions in groups.items()),
            "size": f"{first.size[0]} x {first.size[1]} (height x width)",
            "LPIPS": None if tools.diversity is None else options.network,
            "FID features": None if tools.inception is None else str(tools.inception.path),
            "harmony classifier": options.harmony,
            "seed": options.seed,
            "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
        },
        reports,
        {"pictures": len(items), "random styles of every picture and group": options.styles},
        {"harmony score of the targets themselves": {name: _mean(each) for name, each in judge.harmony_of_targets.items()}},
        missing,
        problems,
        [
            "FID is against all pictures of the set: targets and references.",
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


def open_models(options: Options) -> dict[str, Harmonized]:
    """Load the model, and those beside it.

    Raises:
        ValueError, FileNotFoundError: one of other regions or of another size; a name that is taken; what loading says.
    """
    given = [name_and_file(entry, "compare", "NAME=MODEL") for entry in options.compare]
    names = [OURS, WITHOUT, BY_FLOW, *(name for name, _ in given)]
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
