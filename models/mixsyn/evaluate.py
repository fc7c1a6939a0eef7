"""Table 1 of the MixSyn paper: SSIM, RMSE, PSNR and FID of compositions and images, whole and per region.

    mixsyn-fast mixsyn evaluate                                             the shipped model, pictures drawn by code
    mixsyn-fast mixsyn evaluate --model runs/mixsyn --data datasets/cmp_facade
    mixsyn-fast mixsyn evaluate --model facades.safetensors --kind procedural_facades --limit 50 --json table.json

What is compared with what, 8-bit pictures throughout:

* structure: the known composition G_M(M') with the label map M. As pictures: every region in its colour of the palette, in
  the composition mixed by its weights. Pixel accuracy and IoU are those of the composition's largest weight. Per region:
  its channel (weights, not rounded) with its mask, over the whole frame. All of this over the pixels that have a region,
  but for SSIM, which compares windows: there pixels without a region are white (channels: zero) in both, and agree.
* images, with the picture I, over all pixels. known image: G_I(I, M), label map and own styles. composed image: the
  composition G_M(M') with the same styles, what `mixsyn-fast mixsyn compose` makes of one picture alone. approximated
  image: the composition with the styles that its own segments of I have, as training sees it. Per region in two ways: over
  the pixels that the label map gives to it ("pixels"), and as segments, both pictures black outside of it ("segments"): the
  paper's k_i, and the likely meaning of its "metrics applied per region". Black agrees with black, so segments score far
  higher than whole pictures: a generator that was never trained reaches SSIM 0.94 and 26 dB on CMP Facade.
* random compositions and images: no picture is their truth; their FID against all label maps and pictures, with a seed. And
  their similarity to their sources, region by region (the paper's Supp. D): over the pixels where the composition has a
  region that lies there in its source as well, the image against that source.
* --beside NAME=RUN: a run of SPADE, CLADE or SEAN trained on the same classes, on the same pictures: its image of the label
  map (SEAN: in the picture's own styles), the other rows of the paper's table. --lpips adds LPIPS to all images.

Every picture's score is averaged; a mean over regions averages the regions' means. Regions that a picture lacks are not
scored in it. PSNR of equal pictures is infinite: counted, and left out of means.

RMSE is that of images in [0, 1]. The paper does not state its units: 33.06 dB PSNR is an RMSE of 0.022 of the value range
and of 5.7 on a scale of 255, neither of which is near its 1.15, so only SSIM and PSNR can be put beside it.

A model may be judged on another set than it was trained on if that set, after --merge, has the same classes: the paper's
Helen columns are --kind helen for a model of CelebAMask-HQ's types (--merge meta). A picture of whose pixels none has a
region is left out. Exit status 1: there are such pictures or unreadable ones (all named), or nothing could be judged.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mixsyn_fast
from mixsyn_fast import RegionMap
from mixsyn_fast.progress import progress
from mixsyn_fast.writing import jsonable, write_json, write_whole

from ..data import Batch, Collate, colorize, palette
from ..evaluation.compare import GREY
from ..evaluation.inputs import DataReference, JudgedModelOptions, reference_of_model
from ..metrics.fid import FIDResult, InceptionFeatures, fid_of_features
from ..metrics.lpips import LPIPS
from ..metrics.regions import channel_scores, confusion, iou, labelled_scores, region_mean, segment_scores
from ..metrics.score import Score
from ..metrics.table import METRICS, PIXEL_METRICS, PairMetric
from ..pictures.options import check_outputs, device_of, open_model
from ..settings import at_least, repeated
from ..sheets import to_uint8
from ..training import distributed
from ..training.distributed import World
from ..training.trained import Trained
from .competitors import open_runs
from .compositions import Composition, known_compositions, random_compositions
from .model import MixSyn

_BYTES = (0.0, 255.0)
_DAY = 86400.0
_COLUMNS = ("ssim", "rmse", "psnr")
_TITLES = {
    "structure": "composition",
    "known": "known image",
    "composed": "composed image",
    "approximated": "approximated image",
    "random_structure": "random composition",
    "random": "random image",
}
_REAL = {"structure": "labels", "random_structure": "labels"}  # what a row's FID is taken against; the rest: pictures
PAPER = (
    "Paper, Table 1 (SSIM, RMSE, PSNR, FID), CelebAMask-HQ: composition 0.97, 1.15, 33.06, 18.13; image 0.95, 1.89, 31.32, "
    "14.41; Helen: composition 0.98, 0.92, 36.00; image 0.96, 1.46, 32.13. Its metrics are per region and its RMSE has no "
    "stated units; here RMSE is of images in [0, 1]."
)

# ------------------------------------------------------------------------------------------------------ what is made


def render(composition: Tensor, unlabelled: Tensor | None = None) -> Tensor:
    """Draw a composition in the colours of its classes, mixed by the weights.

    Args:
        composition: (B, N, H, W) floating weights that sum to one, or one-hot.
        unlabelled: (B, H, W) bool, pixels that belong to no region: white, as `colorize` draws them.

    Returns:
        (B, 3, H, W) uint8.
    """
    colours = torch.from_numpy(palette(composition.shape[1])).to(composition.device, composition.dtype)
    mixed = torch.einsum("bnhw,nc->bchw", composition, colours)
    if unlabelled is not None:
        mixed = torch.where(unlabelled[:, None], 255.0, mixed)
    return mixed.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def known(model: MixSyn, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make the known composition and the three images of every picture of a batch.

    Args:
        model: both generators.
        batch: B pictures with their label maps, of the model's size and classes.

    Returns:
        Known compositions G_M(M') (B, N, H, W) that sum to one over N; then images (B, 3, H, W) in (-1, 1): known images
        G_I(I, M); composed images of G_M(M') with the same styles, as :meth:`MixSyn.compose` makes of a base alone; and
        approximated images G_I(I, G_M(M')). As in training, the styles of an approximated image are those of its own
        segments, k' = G_M(M') * I ("we push the extraction of the style matrix per composition").
    """
    composition = known_compositions(batch.regions.areas() > 0)
    soft = model.structure.decode(composition.gather(model.structure.encode(batch.regions)))
    weights = RegionMap.soft(soft)
    own = composition.gather(model.style.encode(batch.image, batch.regions))
    again = composition.gather(model.style.encode(batch.image, weights, present=composition.present))
    return soft, model.style(batch.regions, own), model.style(weights, own), model.style(weights, again)


@torch.no_grad()
def random(model: MixSyn, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Composition]:
    """Make one random composition per picture of a batch, every group of coupled regions from one of its pictures.

    Args:
        model: both generators.
        batch: B pictures, the sources.
        generator: of random numbers.

    Returns:
        Compositions (B, N, H, W), images (B, 3, H, W) in (-1, 1), and which picture every region comes from.
    """
    composition = random_compositions(batch.regions.areas() > 0, model.config.groups, generator)
    soft = model.structure.decode(composition.gather(model.structure.encode(batch.regions)))
    styles = composition.gather(model.style.encode(batch.image, batch.regions))
    return soft, model.style(RegionMap.soft(soft), styles), composition


def from_sources(soft: Tensor, composition: Composition, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what random images can be held against: their sources, where a region is in both places.

    Args:
        soft: (B, N, H, W) compositions.
        composition: which picture of the batch every region comes from.
        batch: the pictures.

    Returns:
        Pictures (B, 3, H, W) uint8, every pixel from the source of the composition's strongest region there; and labels
        (B, H, W): that region, or -1 where it does not lie there in its source.
    """
    strongest = soft.argmax(1)  # (B, H, W)
    source = composition.source.gather(1, strongest.flatten(1)).view_as(strongest)
    rows, columns = (torch.arange(n, device=soft.device) for n in strongest.shape[1:])
    at = source.clamp(min=0), rows[:, None], columns
    there = (source >= 0) & (batch.regions.labels_at()[at] == strongest)
    return _bytes(batch.image)[at[0], :, at[1], at[2]].movedim(-1, 1), torch.where(there, strongest, -1)


# ---------------------------------------------------------------------------------------------------- what is counted


class _Features:
    """Features for FID by what they are of ("pictures", "known", ...) and region (-1: whole pictures)."""

    def __init__(self, network: InceptionFeatures, by_region: bool) -> None:
        self.network, self.by_region = network, by_region
        self.found: dict[tuple[str, int], list[Tensor]] = {}

    def add(self, what: str, pictures: Tensor, labels: Tensor | None = None) -> None:
        """Take features of pictures (B, 3, H, W) uint8, and with labels of every region with grey around it."""
        self.found.setdefault((what, -1), []).append(self.network.features(pictures))
        for region in labels.unique().tolist() if labels is not None and self.by_region else ():
            if region >= 0:
                inside = labels == region
                cut = torch.where(inside[:, None], pictures, GREY)[inside.flatten(1).any(1)]
                self.found.setdefault((what, region), []).append(self.network.features(cut))

    def join(self, parts: Sequence[Mapping[tuple[str, int], Sequence[Tensor]]]) -> None:
        """Hold what all processes found in place of the own."""
        keys = dict.fromkeys(key for part in parts for key in part)
        self.found = {key: [each for part in parts for each in part.get(key, ())] for key in keys}

    def distances(self, what: str, real: str) -> dict[int, FIDResult]:
        """Return region (-1: whole) -> distance of two sets, where either has at least two pictures."""
        result = {}
        for (kind, region), features in sorted(self.found.items()):
            others = self.found.get((real, region))
            if kind == what and others is not None:
                first, second = torch.cat(features), torch.cat(others)
                if min(len(first), len(second)) >= 2:
                    result[region] = fid_of_features(first, second, self.network.notes)
        return result


@dataclass
class Row:
    """Scores of one kind of output."""

    scores: dict[str, Score] = field(default_factory=dict)
    """By name in `METRICS`: whole pictures and, by region, the region's pixels (structure: its channel)."""
    segments: dict[str, Score] = field(default_factory=dict)
    """Images only: by region, both pictures black outside of it."""
    accuracy: Score | None = None
    """Structure only: share of pixels whose largest weight is their region's, per picture."""
    iou: Tensor | None = None
    """Structure only: (N,) over all pictures together."""
    fid: dict[int, FIDResult] = field(default_factory=dict)
    """By region, -1 for whole pictures."""


def _note(
    scores: dict[str, Score], names: Sequence[str], whole: Mapping[str, Tensor], regions: Mapping[str, Tensor]
) -> None:
    for name in regions:
        score = scores.setdefault(name, Score())
        score.names += names
        if name in whole:
            score.values += whole[name].tolist()
        score.by_region += list(regions[name].cpu().numpy())


def _joined(parts: Sequence[Mapping[str, Score]], order: Sequence[str]) -> dict[str, Score]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: Score.joined([part[name] for part in parts if name in part], order) for name in names}


class Judge:
    """Collects the scores of Table 1 while batches stream by.

    Args:
        model: both generators.
        inception: feature network for FID; None for no FID.
        fid_regions: FID of every region of the images as well (one run of the network per region).
        lpips: LPIPS, to be computed of all images; None: it is not.
        beside: name -> run of another generator, judged on the same pictures.
    """

    def __init__(
        self,
        model: MixSyn,
        inception: InceptionFeatures | None = None,
        fid_regions: bool = False,
        lpips: PairMetric | None = None,
        beside: Mapping[str, Trained] | None = None,
    ) -> None:
        self.model, self.num_regions, self.beside = model, len(model.classes), dict(beside or {})
        self.metrics = {**PIXEL_METRICS, **({} if lpips is None else {"lpips_vgg": lpips})}
        self._features = None if inception is None else _Features(inception, fid_regions)
        self._rows = {name: Row() for name in ("structure", "known", "composed", "approximated", *map(_beside, self.beside))}
        self._random = Row()
        self._rows["structure"].accuracy = Score()
        self._counts = torch.zeros(self.num_regions, self.num_regions, dtype=torch.int64)
        self.names: list[str] = []
        """Pictures that were judged."""
        self.random_count = 0

    @property
    def count(self) -> int:
        """Number of pictures that were judged."""
        return len(self.names)

    def add(self, batch: Batch) -> None:
        """Make and score the known compositions and images of a batch of the model's size and classes.

        Every picture has a region somewhere.
        """
        labels, names = batch.regions.labels_at(), list(batch.names)
        soft, *images = known(self.model, batch)
        real, unlabelled = _bytes(batch.image), labels < 0
        truth = torch.from_numpy(colorize(labels.cpu().numpy(), self.num_regions)).movedim(-1, 1).to(labels.device)
        drawn, predicted = render(soft, unlabelled), soft.argmax(1)
        row = self._rows["structure"]
        _note(row.scores, names, labelled_scores(drawn, truth, labels), channel_scores(soft, labels))
        assert row.accuracy is not None
        row.accuracy.names += names
        right = ((predicted == labels) & ~unlabelled).flatten(1).sum(1) / (~unlabelled).flatten(1).sum(1)
        row.accuracy.values += right.tolist()
        self._counts += confusion(predicted, labels, self.num_regions)
        self._add_features("labels", truth)
        self._add_features("structure", drawn)
        self._add_features("pictures", real, labels)
        others = [trained.generate(batch) for trained in self.beside.values()]
        kinds = ("known", "composed", "approximated", *map(_beside, self.beside))
        for kind, image in zip(kinds, (*images, *others), strict=True):
            made, row = _bytes(image), self._rows[kind]
            whole = {name: metric(made, real, value_range=_BYTES) for name, metric in self.metrics.items()}
            regions = self._by_region(made, real, labels)
            _note(row.scores, names, whole, regions)
            _note(row.segments, names, {}, segment_scores(made, real, labels, self.num_regions))
            self._add_features(kind, made, labels)
        self.names += names

    def add_random(self, batch: Batch, generator: torch.Generator, count: int | None = None) -> None:
        """Make random compositions and images of a batch; take the first `count`: features, likeness to their sources."""
        soft, image, composition = random(self.model, batch, generator)
        soft, made = soft[:count], _bytes(image[:count])
        sources, labels = from_sources(soft, Composition(composition.source[:count]), batch)
        names = [f"random {self.random_count + i}" for i in range(len(soft))]
        _note(self._random.scores, names, {}, self._by_region(made, sources, labels))
        self._add_features("random_structure", render(soft))
        self._add_features("random", made)
        self.random_count += len(soft)

    def _by_region(self, made: Tensor, real: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {
            name: metric(made, real, labels, self.num_regions, value_range=_BYTES) for name, metric in self.metrics.items()
        }

    def gather(self, order: Sequence[str]) -> None:
        """Take over what the other processes judged: the first process then stands as if it had seen all pictures.

        Every process must call it, one that has seen none as well. In the others nothing changes.

        Args:
            order: names of all pictures, in the order in which one process judges them. FID alone depends on the order in
                which the processes come, in the last bits.
        """
        found = None if self._features is None else self._features.found
        parts = distributed.gather((self._rows, self._counts, self.names, found))
        if not parts:
            return
        rows, counts, names, features = zip(*parts, strict=True)
        for name, row in self._rows.items():
            every = [part[name] for part in rows]
            row.scores = _joined([each.scores for each in every], order)
            row.segments = _joined([each.segments for each in every], order)
            if row.accuracy is not None:
                row.accuracy = Score.joined([each.accuracy for each in every if each.accuracy is not None], order)
        self._counts = torch.stack(counts).sum(0)
        place = {name: i for i, name in enumerate(order)}
        self.names = sorted((name for part in names for name in part), key=place.__getitem__)
        if self._features is not None:
            self._features.join(features)

    def _add_features(self, what: str, pictures: Tensor, labels: Tensor | None = None) -> None:
        if self._features is not None:
            self._features.add(what, pictures, labels)

    def rows(self) -> dict[str, Row]:
        """Return "structure", "known", "composed", "approximated"; after `add_random` "random_structure", "random" too."""
        found = dict(self._rows)
        found["structure"].iou = iou(self._counts)
        if self.random_count:
            found |= {"random_structure": Row(), "random": self._random}
        if self._features is not None:
            for name, row in found.items():
                row.fid = self._features.distances(name, _REAL.get(name, "pictures"))
        return found


def _beside(name: str) -> str:
    """Return the row of a run that is judged beside the model."""
    return f"beside: {name}"


def _title(row: str) -> str:
    return _TITLES.get(row, row.removeprefix("beside: "))


def _bytes(image: Tensor) -> Tensor:
    """Turn images (B, 3, H, W) in [-1, 1] into uint8."""
    return torch.from_numpy(to_uint8(image)).movedim(-1, 1).to(image.device)


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass
class Table:
    """Table 1 for one model on one data set."""

    classes: tuple[str, ...]
    settings: dict[str, Any]
    rows: dict[str, Row]
    not_computed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seed: int = 0
    """Of the bootstrap."""

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON types: means with intervals, regions, and the value of every picture."""
        rows: dict[str, Any] = {}
        for name, row in self.rows.items():
            entry: dict[str, Any] = {"title": _title(name), "metrics": {}}
            for metric, score in row.scores.items():
                entry["metrics"][metric] = {
                    **METRICS[metric].as_json(),
                    **jsonable(score.whole(self.seed)),
                    "mean_over_regions": jsonable(region_mean(score)),
                    "regions": jsonable(score.regions(self.classes, self.seed)),
                    "pictures": jsonable(dict(zip(score.names if score.values else (), score.values, strict=True))),
                }
            entry["segments"] = {
                metric: {
                    "mean_over_regions": jsonable(region_mean(score)),
                    "regions": jsonable(score.regions(self.classes, self.seed)),
                }
                for metric, score in row.segments.items()
            }
            if row.accuracy is not None and row.iou is not None:
                entry["pixel_accuracy"] = jsonable(row.accuracy.whole(self.seed))
                entry["mean_iou"] = jsonable(float(row.iou.nanmean()))
                entry["iou"] = jsonable(dict(zip(self.classes, row.iou.tolist(), strict=True)))
            entry["fid"] = jsonable(row.fid.get(-1))
            entry["fid_regions"] = {self.classes[k]: jsonable(found) for k, found in row.fid.items() if k >= 0}
            rows[name] = entry
        more = ("settings", "not_computed", "problems")
        return {"classes": list(self.classes), "rows": rows, **{name: jsonable(getattr(self, name)) for name in more}}

    def as_markdown(self) -> str:
        """Return the table and its parts by region as Markdown; intervals are 95 % over pictures."""
        lines = ["# Compositions and images (Table 1)", ""]
        lines += [f"* {name}: {value}" for name, value in self.settings.items() if value not in (None, "")]
        columns = self._columns()
        titles = [METRICS[name].heading for name in (*columns, "fid")]
        lines += ["", f"| | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
        for name, row in self.rows.items():
            fid = row.fid.get(-1)
            cells = [_cell(row.scores[m].whole(self.seed)) if m in row.scores else "–" for m in columns]
            lines.append(f"| {_title(name)} | {' | '.join(cells)} | {_number(fid.value if fid else math.nan)} |")
            of_regions = {"structure": "channels", "random": "pixels that lie so in the source"}.get(name, "pixels")
            for what, scores in ((of_regions, row.scores), ("segments", row.segments)):
                if scores:
                    cells = [_number(region_mean(scores[m])) if m in scores else "–" for m in columns]
                    lines.append(f"| {_title(name)}, mean over regions ({what}) | {' | '.join(cells)} | |")
        structure = self.rows.get("structure")
        if structure is not None and structure.accuracy is not None and structure.iou is not None:
            accuracy = _cell(structure.accuracy.whole(self.seed))
            lines += ["", f"Composition: pixel accuracy {accuracy}, mean IoU {_number(float(structure.iou.nanmean()))}."]
        for name, row in self.rows.items():
            lines += self._regions(name, row)
        never = [c for k, c in enumerate(self.classes) if not self._seen(k)]
        if never:
            lines += ["", f"In no picture: {', '.join(never)}."]
        warnings = dict.fromkeys(w for row in self.rows.values() for found in row.fid.values() for w in found.warnings)
        notes = [*(f"FID: {warning}" for warning in warnings), PAPER]
        lines += ["", *(f"* not computed: {what}: {reason}" for what, reason in self.not_computed.items())]
        lines += [f"* {note}" for note in notes]
        if self.problems:
            lines += ["", f"## Problems ({len(self.problems)})", "", *(f"* {problem}" for problem in self.problems)]
        return "\n".join(lines) + "\n"

    def _columns(self) -> list[str]:
        """Return the metrics of the table: LPIPS where it was computed."""
        extra = any("lpips_vgg" in row.scores for row in self.rows.values())
        return [*_COLUMNS, *(["lpips_vgg"] if extra else [])]

    def _seen(self, region: int) -> bool:
        scores = [score for row in self.rows.values() for score in row.scores.values()]
        return any(not math.isnan(values[region]) for score in scores for values in score.by_region)

    def _regions(self, name: str, row: Row) -> list[str]:
        if not row.scores:
            return []
        found = {(m, part): s[m].regions(self.classes, self.seed) for part, s in
                 (("", row.scores), (", segment", row.segments)) if s for m in self._columns() if m in s}  # fmt: skip
        columns = [f"{METRICS[metric].heading}{part}" for metric, part in found]
        columns += ["IoU ↑"] * (row.iou is not None) + ["FID ↓"] * any(k >= 0 for k in row.fid)
        titled = f"## {_title(name).capitalize()} by region"
        lines = ["", titled, "", f"| region | pictures | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
        pictures = np.isfinite(np.stack(row.scores["rmse"].by_region)).sum(0)
        for k, region in enumerate(self.classes):
            if not pictures[k]:
                continue
            cells = [_number(regions[region].mean) for regions in found.values()]
            cells += [_number(float(row.iou[k]))] if row.iou is not None else []
            if any(k >= 0 for k in row.fid):
                cells.append(_number(row.fid[k].value if k in row.fid else math.nan))
            lines.append(f"| {region} | {pictures[k]} | {' | '.join(cells)} |")
        return lines


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _cell(found: Any) -> str:
    spread = "" if math.isnan(found.low) else f" [{found.low:.4g}, {found.high:.4g}]"
    return f"{_number(found.mean)}{spread}{f', {found.infinite} infinite' * (found.infinite > 0)}"


# ---------------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Options(JudgedModelOptions):
    """Options of the command."""

    random: int | None = None  # random compositions for FID; none: as many as pictures
    fid_regions: bool = False  # FID of every region of the images as well (slow)
    batch_size: int = 4  # pictures at a time, and to mix at random
    json: Path | None = None  # write the table with the scores of every picture
    markdown: Path | None = None  # write what is printed
    lpips: str | None = None  # LPIPS of images by VGG-16 in this file; auto: one that a package brought; none: no LPIPS
    beside: tuple[str, ...] = repeated()
    """NAME=RUN: judge a run of SPADE, CLADE or SEAN on the same pictures as well; once per run"""

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, batch_size=1, random=0)
        if self.random and self.batch_size < 2:
            raise ValueError("batch_size: expected at least 2 for random compositions, got 1: they mix pictures of a batch")


def batches_of(
    reference: DataReference, names: Sequence[str], size: int, device: torch.device | str, problems: list[str]
) -> Iterator[Batch]:
    """Read pictures in batches; those that are unreadable or without any region are named in `problems` and left out."""
    collate = Collate(len(reference.classes))
    assert reference.dataset is not None
    for start in range(0, len(names), size):
        items = []
        for name in names[start : start + size]:
            try:
                item = reference.dataset[reference.index[name]]
            except (ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
                continue
            if (item.labels >= 0).any():
                items.append(item)
            else:
                problems.append(f"{name}: no pixel of its label map has a region")
        if items:
            yield collate(items).to(device)


def features(options: Options, device: torch.device | str, not_computed: dict[str, str]) -> InceptionFeatures | None:
    """Return the feature network for FID, or None and the reason where nothing that was asked for needs it.

    Raises:
        FileNotFoundError: it was named, or needed, and is not there.
        ValueError: a file that holds something else.
    """
    try:
        return InceptionFeatures(options.inception).to(device)
    except FileNotFoundError as error:
        if options.inception is not None or options.random or options.fid_regions:
            raise
        not_computed["FID, random compositions"] = str(error)
        return None


def evaluate(
    model: MixSyn,
    reference: DataReference,
    inception: InceptionFeatures | None = None,
    *,
    limit: int | None = None,
    random: int | None = None,
    fid_regions: bool = False,
    batch_size: int = 4,
    seed: int = 0,
    name: str = "",
    split: str = "",
    world: World | None = None,
    lpips: PairMetric | None = None,
    beside: Mapping[str, Trained] | None = None,
) -> Table | None:
    """Judge a model on a data set; among several processes each judges its part, and the first one has the table.

    Args:
        model: both generators.
        reference: pictures with label maps, in the model's classes and size.
        inception: feature network for FID and random compositions; None: neither.
        limit: only the first so many pictures; None: all.
        random: random compositions for FID; None: as many as pictures.
        fid_regions: FID of every region of the images as well.
        batch_size: pictures at a time, and to mix at random.
        seed: of random compositions and of the bootstrap.
        name: of the model, for the table.
        split: of the data set, likewise.
        world: the processes (`distributed.init`); None: this one alone. Random compositions, whose random numbers follow on
            one another, are made by the first.
        lpips: LPIPS, of all images; None: it is not computed.
        beside: name -> run of another generator with the model's classes and size, judged on the same pictures.

    Returns:
        The table; None in other processes than the first.
    """
    world = world or World(0, 1, 0, torch.device(model.device))
    not_computed: dict[str, str] = {}
    problems: list[str] = []
    judge = Judge(model, inception, fid_regions, lpips, beside)
    names = reference.names()[:limit]
    mine = [names[i] for i in distributed.part(len(names), world, batch_size)]
    with progress("evaluating") if world.rank == 0 else contextlib.nullcontext(_silent) as at:
        for batch in batches_of(reference, mine, batch_size, model.device, problems):
            judge.add(batch)
            at(judge.count, len(mine))
    judge.gather(names)
    every = distributed.gather(problems)
    if world.rank:
        return None
    problems = [problem for part in every for problem in part]
    wanted = 0 if inception is None else judge.count if random is None else random
    if wanted and min(judge.count, batch_size) < 2:
        not_computed["random compositions"] = "they mix pictures of a batch: it needs two pictures and --batch-size 2"
        wanted = 0
    with progress("making random compositions") as at:
        _mix(judge, reference, wanted, batch_size, seed, problems, at)
    rows = judge.rows() if judge.count else {}
    if inception is not None and not any(row.fid for row in rows.values()):
        not_computed["FID"] = "it needs at least two pictures on either side"
    source = reference.source
    settings = {
        "model": name,
        "data set": f"{source.name}, {split}, {judge.count} of {len(source)} pictures",
        "size": f"{model.size[0]} x {model.size[1]} (height x width)",
        "random compositions": judge.random_count or None,
        "seed": seed,
        "FID features": str(inception.path) if inception is not None else None,
        "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
    }
    return Table(tuple(model.classes), settings, rows, not_computed, problems, seed)


def _silent(done: int, total: int) -> None:
    """Say nothing of how far it is: the first process does."""


def _mix(
    judge: Judge,
    reference: DataReference,
    wanted: int,
    batch_size: int,
    seed: int,
    problems: list[str],
    at: Callable[[int, int], None],
) -> None:
    """Make random compositions of the pictures that were judged, in ever new batches."""
    generator, order = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    while judge.random_count < wanted:
        before = judge.random_count
        mixed = [judge.names[i] for i in order.permutation(judge.count)]
        for batch in batches_of(reference, mixed, batch_size, judge.model.device, problems):
            if len(batch) > 1 and judge.random_count < wanted:
                judge.add_random(batch, generator, wanted - judge.random_count)
                at(judge.random_count, wanted)
        if judge.random_count == before:
            raise ValueError("data: its pictures were readable once, and are not any more")


def main(options: Options) -> int:
    """Evaluate as the options say, print the table, and return the exit status (see the module).

    Raises:
        ValueError, FileNotFoundError: a model, data set or network that is not there or cannot be used, classes that differ,
            or --random, --fid-regions without a feature network.
    """
    check_outputs({"json": options.json, "markdown": options.markdown})
    device_of(options.device)
    world = distributed.init(options.device, timeout=_DAY)  # they meet at the end only; one that dies ends the others
    try:
        return _main(options, world)
    finally:
        distributed.shutdown()


def _main(options: Options, world: World) -> int:
    model = open_model(MixSyn, options.model, str(world.device))
    reference = reference_of_model(options, model.classes, model.size, crop=model.crop)
    missing: dict[str, str] = {}
    beside = open_runs(options.beside, model.classes, model.size, model.device)
    lpips = None
    if options.lpips is not None:
        lpips = LPIPS("vgg16", None if options.lpips == "auto" else options.lpips).to(model.device)
    table = evaluate(
        model,
        reference,
        features(options, model.device, missing),
        limit=options.limit,
        random=options.random,
        fid_regions=options.fid_regions,
        batch_size=options.batch_size,
        seed=options.seed,
        name=options.model or "shipped",
        split=options.split if options.data else "drawn by code",
        world=world,
        lpips=lpips,
        beside=beside,
    )
    if table is None:  # the first process reports
        return 0
    table.not_computed |= missing
    text = table.as_markdown()
    print(text, end="")
    if options.json is not None:
        write_json(options.json, table.as_json())
    if options.markdown is not None:
        write_whole(options.markdown, text)
    for problem in table.problems:
        print(problem, file=sys.stderr)
    if not table.rows:
        print("nothing could be judged: no picture is readable and has a region", file=sys.stderr)
    return 1 if table.problems or not table.rows else 0
