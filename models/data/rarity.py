r"""Rare colours of classes: which pictures to draw more often, and which pixels weigh more in a loss.

Conditional IMLE (Li, Zhang, Malik, ICCV 2019), which the class- and layer-wise VAE takes over for street scenes (Sec. 4.2).
With m_k(i) the mean colour of class k in picture i, and D_k the density of these colours over the pictures that have the
class, one Gaussian kernel a picture,

.. math::

    R_k(i) = 1 / D_k(m_k(i)), \qquad
    P(i) = \frac{1}{|C|} \sum_{k \in C} \frac{R_k(i)}{\sum_j R_k(j)}, \qquad
    w_k(i) = R_k(i) / \max_j R_k(j)

R is the rarity of a picture for a class, P the chance of a picture to be drawn (a class of C, each as often as the others,
then a picture by its rarity for it), w the weight of the class's pixels. C are the classes that gain most by it:
E[R^2] / E[R]^2 is how much rarer, on average, their pictures become.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.reading import read_text
from mixsyn_fast.writing import write_whole

from .source import Source, fingerprint
from .statistics import in_threads

_LEVEL = 1.0  # a mean colour is known to a grey level: the least width of a kernel, added to its covariance
_PAIRS = 1 << 20  # differences of colours at a time


@dataclass(frozen=True)
class Rarity:
    """Mean colours of the classes of a source, and how rare they are."""

    source: str
    """Kind of the set."""
    classes: list[str]
    """K names."""
    pictures: str
    """Fingerprint of the names of the pictures."""
    count: int
    """N pictures, bad ones among them."""
    bandwidth: float
    """Of the kernels; see :func:`densities`."""
    presence: list[list[int]]
    """Per class, indices of the pictures in which it occurs."""
    colours: list[list[list[float]]]
    """Per class, its mean RGB in each of them, 0 to 255."""
    scores: list[list[float]]
    """Per class, R of each of them."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all."""
        write_whole(path, json.dumps({part.name: getattr(self, part.name) for part in fields(self)}, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Rarity:
        """Read what :meth:`save` wrote. ValueError, naming the file, for anything else."""
        try:
            data = json.loads(read_text(path))
            if not isinstance(data, dict) or set(data) != {part.name for part in fields(cls)}:
                raise ValueError(f"expected {', '.join(part.name for part in fields(cls))}")
            made = cls(**data)
            made._table(made.scores, 0.0)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{os.fspath(path)}: not saved rarities ({error})") from error
        return made

    def gains(self) -> list[float]:
        """Return E[R^2] / E[R]^2 per class, 1 or more: how much rarer its pictures become on average; 0: it never occurs."""
        return [float(np.mean(np.square(r)) / np.mean(r) ** 2) if r else 0.0 for r in self.scores]

    def chances(self, classes: int = 5) -> np.ndarray:
        """Return P (N,) float64, whose sum is 1; a picture that has none of the classes, or cannot be read, has 0.

        Args:
            classes: number of classes with the largest gain that count (the first ones of equal ones); 0: all that occur.

        Raises:
            ValueError: a negative number, or no picture has a class.
        """
        if classes < 0:
            raise ValueError(f"classes: expected 0 or more, got {classes}")
        gains = self.gains()
        chosen = sorted((k for k, gain in enumerate(gains) if gain), key=lambda k: -gains[k])[: classes or None]
        if not chosen:
            raise ValueError(f"{self.source}: expected pictures with label maps, got none in which a class occurs")
        found = np.zeros(self.count)
        for k in chosen:
            scores = np.array(self.scores[k])
            found[self.presence[k]] += scores / scores.sum() / len(chosen)
        return found

    def class_weights(self, normalisation: Literal["maximum", "mean"] = "maximum") -> np.ndarray:
        """Return (N, K + 1) float32: w of every class, and the weight of pixels of no class.

        What has no rarity of its own weighs as the picture's classes do on average: classes that it does not have, and no
        class; 1 in a picture without any.

        Args:
            normalisation: "maximum": as above, in (0, 1]; "mean": R divided by its mean over the class's pictures, so that a
                class weighs 1 on average.

        Raises:
            ValueError: another normalisation.
        """
        if normalisation not in ("maximum", "mean"):
            raise ValueError(f"normalisation: expected 'maximum' or 'mean', got {normalisation!r}")
        by = np.max if normalisation == "maximum" else np.mean
        own = self._table([(np.array(r) / by(r)).tolist() if r else [] for r in self.scores], math.nan)
        there = np.isfinite(own)
        sums, counts = np.where(there, own, 0).sum(1), there.sum(1)
        usual = np.where(counts, sums / np.maximum(counts, 1), 1)[:, None]
        return np.concatenate((np.where(there, own, usual), usual), 1).astype(np.float32)

    def _table(self, values: Sequence[Sequence[float]], absent: float) -> np.ndarray:
        """Return values per class and picture that has it as (N, K)."""
        table = np.full((self.count, len(self.classes)), absent)
        for k, (where, found) in enumerate(zip(self.presence, values, strict=True)):
            table[where, k] = found
        return table


def densities(colours: np.ndarray, bandwidth: float = 0.0) -> np.ndarray:
    """Return the density of every colour under the kernels of all: Gaussian kernel density estimation.

    Args:
        colours: (n, 3), 0 to 255.
        bandwidth: standard deviation of the kernels in grey levels; 0: Scott's rule, the covariance of the colours times
            n^(-2/7). To either one grey level is added, so that equal colours have a density.

    Returns:
        (n,) float64, per cubic grey level.

    Raises:
        ValueError: another shape, colours that are not finite, or a bandwidth below 0.
    """
    colours = np.asarray(colours, np.float64)
    if colours.ndim != 2 or colours.shape[1] != 3:
        raise ValueError(f"colours: expected shape (n, 3), got {colours.shape}")
    if not np.isfinite(colours).all():
        raise ValueError("colours: expected finite numbers, got others")
    if not 0 <= bandwidth < math.inf:
        raise ValueError(f"bandwidth: expected 0 or more grey levels, got {bandwidth}")
    count = len(colours)
    if bandwidth:
        covariance = bandwidth**2 * np.eye(3)
    else:
        covariance = np.cov(colours.T) * count ** (-2 / 7) if count > 1 else np.zeros((3, 3))
    root = np.linalg.cholesky(covariance + _LEVEL**2 * np.eye(3))
    points = np.linalg.solve(root, colours.T)  # (3, n), in units of the kernel
    found = np.empty(count)
    step = max(1, _PAIRS // max(count, 1))
    for start in range(0, count, step):
        apart = sum((axis[start : start + step, None] - axis) ** 2 for axis in points)
        found[start : start + step] = np.exp(-0.5 * apart).mean(1)
    found /= math.tau**1.5 * float(np.prod(np.diagonal(root)))
    return found


def mean_colours(image: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colour of every class in a picture.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) integers in [0, K), or -1 for no class.
        num_classes: K.

    Returns:
        (K, 3) float64, 0 for an absent class, and pixels per class (K,) int64.
    """
    flat = labels.ravel() + 1
    counts = np.bincount(flat, minlength=num_classes + 1)[1:]
    sums = [np.bincount(flat, channel, num_classes + 1)[1:] for channel in image.reshape(-1, 3).T]
    return np.stack(sums, 1) / np.maximum(counts, 1)[:, None], counts


def rarity(source: Source, bandwidth: float = 0.0) -> Rarity:
    """Read all pictures of a source once; bad ones are passed over.

    Args:
        source: the set, with classes.
        bandwidth: see :func:`densities`.

    Raises:
        ValueError: a set without classes, or none of whose pictures can be read; a bad bandwidth.
    """
    densities(np.zeros((1, 3)), bandwidth)
    regions = len(source.classes)
    if not regions:
        raise ValueError(f"source: expected a set with label maps, got {source.name}, without")
    presence: list[list[int]] = [[] for _ in range(regions)]
    colours: list[list[list[float]]] = [[] for _ in range(regions)]

    def look(index: int) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            sample = source.read(index)
        except (ValueError, OSError) as error:
            return str(error)
        return mean_colours(sample.image, sample.labels, regions)

    reasons = []
    for index, found in enumerate(in_threads(look, len(source))):
        if isinstance(found, str):
            reasons.append(found)
            continue
        for k in np.flatnonzero(found[1]).tolist():
            presence[k].append(index)
            colours[k].append([round(value, 3) for value in found[0][k].tolist()])
    if len(reasons) == len(source):
        raise ValueError(f"{source.name}: none of its {len(source)} pictures can be used; the first one: {reasons[0]}")
    scores = [(1 / densities(np.array(each), bandwidth)).tolist() if each else [] for each in colours]
    names = fingerprint(source.names())
    return Rarity(source.name, list(source.classes), names, len(source), bandwidth, presence, colours, scores)


def kept_rarity(path: str | os.PathLike[str], source: Source, bandwidth: float = 0.0) -> Rarity:
    """Return what :func:`rarity` finds, from a file where that is of the same pictures, classes and bandwidth, else anew.

    Args:
        path: the file; written, with its folder, where it was not there or of something else.
        source: the set.
        bandwidth: see :func:`densities`.

    Raises:
        ValueError: as :func:`rarity`, or the file holds something else than rarities.
    """
    path = Path(path)
    if path.exists():
        found = Rarity.load(path)
        of = (found.source, found.classes, found.pictures, found.bandwidth)
        if of == (source.name, list(source.classes), fingerprint(source.names()), bandwidth):
            return found
    with progress(f"colours of the classes in {len(source)} pictures"):
        found = rarity(source, bandwidth)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found
