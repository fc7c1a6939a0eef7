"""Outputs against their targets, one batch after the other: the scores of every picture, region and set.

Pictures are 8-bit throughout, as if read from PNG files, whether they come from files or from a model.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..metrics.fid import FIDResult, InceptionFeatures, fid_of_features
from ..metrics.score import Score
from ..metrics.table import METRICS, PairMetric
from ..pictures.files import to_tensor
from ..training import distributed

GREY = 128  # what surrounds a region in FID per region
_BYTES = (0.0, 255.0)


@dataclass(frozen=True)
class Compared:
    """One output with what it is compared with."""

    name: str
    output: np.ndarray
    """(H, W, 3) uint8."""
    target: np.ndarray
    """The same shape."""
    labels: np.ndarray | None = None
    """(H, W) integer class, -1 for none."""


class _Extreme(NamedTuple):
    """A picture among the best or the worst; ordered by goodness, then by age."""

    goodness: float
    age: int
    picture: Compared


class Comparison:
    """Collects scores while pictures stream by.

    Args:
        metrics: name in `METRICS` -> function.
        classes: names of the regions, to score them as well (every picture then needs labels); None for whole pictures.
        inception: network for FID; None for no FID.
        fid_regions: FID of every region too: all other pixels of both pictures are grey, pictures without it are left out.
        device: where the metrics are computed.
        keep: how many of the best and of the worst pictures are kept (by the last of `metrics`).
    """

    def __init__(
        self,
        metrics: Mapping[str, PairMetric],
        classes: Sequence[str] | None = None,
        inception: InceptionFeatures | None = None,
        fid_regions: bool = False,
        device: torch.device | str = "cpu",
        keep: int = 4,
    ) -> None:
        self.metrics, self.classes, self.inception = dict(metrics), classes, inception
        self.fid_regions, self.device, self.keep = fid_regions and classes is not None, device, keep
        self.scores = {name: Score() for name in self.metrics}
        self._features: dict[int, tuple[list[Tensor], list[Tensor]]] = {}  # region, -1 for the whole picture
        self._best: list[_Extreme] = []
        self._worst: list[_Extreme] = []
        self._age = itertools.count()
        self.count = 0

    def add(self, batch: Sequence[Compared]) -> None:
        """Score pictures of one size.

        Raises:
            ValueError: sizes that differ, labels missing or out of range, or a picture too small for a metric.
        """
        outputs, targets = (to_tensor([getattr(c, part) for c in batch]).to(self.device) for part in ("output", "target"))
        labels = None
        if self.classes is not None:
            maps = [c.labels for c in batch if c.labels is not None]
            if len(maps) < len(batch):
                raise ValueError(f"labels: expected one for every picture, got {len(maps)} for {len(batch)}")
            labels = torch.from_numpy(np.stack(maps).astype(np.int64)).to(self.device)
        worth = np.zeros(len(batch))
        for name, metric in self.metrics.items():
            score = self.scores[name]
            values = metric(outputs, targets, value_range=_BYTES).tolist()
            score.names += [c.name for c in batch]
            score.values += values
            if labels is not None and self.classes is not None:
                score.by_region += list(
                    metric(outputs, targets, labels, len(self.classes), value_range=_BYTES).cpu().numpy()
                )
            worth = np.array(values) * (1 if METRICS[name].higher_is_better else -1)
        if self.metrics:
            for value, compared in zip(worth.tolist(), batch, strict=True):
                self._remember(value, compared)
        self.add_sets(outputs, targets, labels)
        self.count += len(batch)

    def add_sets(self, outputs: Tensor | None, targets: Tensor | None, labels: Tensor | None = None) -> None:
        """Take features of pictures (B, 3, H, W) uint8 for FID alone; they need not be pairs."""
        if self.inception is None:
            return
        for side, pictures in enumerate((outputs, targets)):
            if pictures is None:
                continue
            self._features.setdefault(-1, ([], []))[side].append(self.inception.features(pictures))
            for region in labels.unique().tolist() if labels is not None and self.fid_regions else ():
                if region >= 0:
                    inside = labels == region
                    has = inside.flatten(1).any(1)
                    cut = torch.where(inside[:, None], pictures, GREY)[has]
                    self._features.setdefault(region, ([], []))[side].append(self.inception.features(cut))

    def fid(self) -> dict[str, FIDResult]:
        """Return "" (whole pictures) or class name -> distance, for sets with at least two pictures on either side."""
        notes = self.inception.notes if self.inception is not None else ()
        result = {}
        for region, sides in sorted(self._features.items()):
            outputs, targets = (torch.cat(side) if side else torch.empty(0, 0) for side in sides)
            if min(len(outputs), len(targets)) >= 2:
                name = "" if region < 0 or self.classes is None else self.classes[region]
                result[name] = fid_of_features(outputs, targets, notes)
        return result

    def gather(self, order: Sequence[str]) -> None:
        """Take over what the other processes compared: the first process then stands as if it had seen all pictures.

        Every process must call it, one that has seen none as well. In the others nothing changes.

        Args:
            order: names of all pictures, in the order in which one process compares them. FID alone depends on the order in
                which the processes come, in the last bits.
        """
        parts = distributed.gather((self.scores, self._features, self._best, self._worst, self.count))
        if not parts:
            return
        scores, features, best, worst, counts = zip(*parts, strict=True)
        self.scores = {name: Score.joined([part[name] for part in scores], order) for name in self.scores}
        self._features = {}
        for part in features:
            for region, sides in part.items():
                for mine, given in zip(self._features.setdefault(region, ([], [])), sides, strict=True):
                    mine.extend(given)
        place = {name: -i for i, name in enumerate(order)}
        self._best, self._worst = (
            sorted(heapq.nlargest(self.keep, (e._replace(age=place[e.picture.name]) for part in heaps for e in part)))
            for heaps in (best, worst)
        )
        self.count = sum(counts)

    def _remember(self, goodness: float, compared: Compared) -> None:
        age = -next(self._age)  # unequal, so that pictures themselves are never compared
        for heap, value in ((self._best, goodness), (self._worst, -goodness)):
            heapq.heappush(heap, _Extreme(value, age, compared))
            if len(heap) > self.keep:
                heapq.heappop(heap)

    def extremes(self) -> tuple[list[Compared], list[Compared]]:
        """Return the best and the worst pictures by the last metric, the most extreme first; none is in both."""
        some = max(1, self.count // 2)
        best, worst = ([e.picture for e in sorted(heap, reverse=True)][:some] for heap in (self._best, self._worst))
        return best, worst


def gather_scores(found: Mapping[str, Score]) -> dict[str, Score]:
    """Return the scores of all processes in the first one, pictures sorted by name, none in the others (all call it)."""
    parts = distributed.gather(dict(found))
    order = sorted({name for part in parts for score in part.values() for name in score.names})
    present = [name for name in METRICS if any(name in part for part in parts)]
    return {name: Score.joined([part[name] for part in parts if name in part], order) for name in present}


def batches(pictures: Iterable[Compared], size: int) -> Iterator[list[Compared]]:
    """Group consecutive pictures of equal height and width, at most `size` at a time."""
    group: list[Compared] = []
    for compared in pictures:
        if group and (len(group) == size or compared.output.shape != group[0].output.shape):
            yield group
            group = []
        group.append(compared)
    if group:
        yield group
