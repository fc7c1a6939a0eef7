r"""The picture of a pool that is most like a given one: by labels first, then by dense matching.

Zheng et al. (MSCA, Sec. 4, "retrieving") take the candidates whose label histograms have the greatest intersection with
the picture's, and of them the one that SIFT Flow matches best. SIFT Flow's code is not to be had as a library; here its
parts are those of scikit-image:

* label histogram: share of the pixels of every class; the intersection of two is :math:`\sum_k \min(h_k, h'_k)`, 1 for
  equal ones without unlabelled pixels;
* dense flow: TV-L1 (Zach, Pock, Bischof, DAGM 2007; Wedel et al., 2009) from the picture to the candidate on grey values,
  the shorter side at most `SIDE` pixels;
* matching cost: the candidate is warped by the flow, and what is left is the mean distance of DAISY descriptors (Tola,
  Lepetit, Fua, PAMI 2010), dense histograms of gradients like SIFT's, so that brightness and colours hardly count.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import Item, RegionDataset

SIDE = 64
"""Pixels of the shorter side at which pictures are matched, where they have more."""
_DAISY = {"step": 2, "radius": 6, "rings": 2, "histograms": 6, "orientations": 8}
_GREY = np.array([0.2125, 0.7154, 0.0721])  # luminance of linear RGB, as scikit-image weighs it


def label_histogram(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the share of all pixels that every class has, (K,) float64; pixels of no class (-1) are in none."""
    return np.bincount(labels[labels >= 0], minlength=num_classes) / labels.size


def histogram_intersection(histogram: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return sum_k min(h_k, h'_k) of one histogram (K,) with each of others (N, K): (N,)."""
    found: np.ndarray = np.minimum(histogram, others).sum(-1)
    return found


def _skimage() -> Any:
    try:
        import skimage.feature
        import skimage.registration
        import skimage.transform
    except ImportError as error:
        raise ImportError("dense matching needs scikit-image: pip install 'mixsyn_fast[models]'") from error
    return skimage


def grey_for_matching(image: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 as grey values (h, w) float32 in [0, 1], the shorter side at most `SIDE`.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: a picture too small for its descriptors.
    """
    resize = _skimage().transform.resize
    grey: np.ndarray = (image.astype(np.float64) @ _GREY / 255).astype(np.float32)
    scale = SIDE / min(grey.shape)
    least = 2 * _DAISY["radius"] + 1
    if scale < 1:
        size = tuple(max(least, round(side * scale)) for side in grey.shape)
        grey = resize(grey, size, anti_aliasing=True).astype(np.float32)
    if min(grey.shape) < least:
        raise ValueError(
            f"image: expected at least {least} x {least} pixels to match, got {grey.shape[0]} x {grey.shape[1]}"
        )
    return grey


def matching_cost(target: np.ndarray, candidate: np.ndarray) -> float:
    """Return what differs between two pictures after the candidate was warped onto the target; 0 for equal ones.

    Args:
        target: (h, w) float32, of :func:`grey_for_matching`.
        candidate: the same shape.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: shapes that differ.
    """
    if candidate.shape != target.shape:
        raise ValueError(f"candidate: expected the target's size {target.shape}, got {candidate.shape}")
    skimage = _skimage()
    flow = skimage.registration.optical_flow_tvl1(target, candidate)
    places = np.meshgrid(*(np.arange(side) for side in target.shape), indexing="ij")
    warped = skimage.transform.warp(
        candidate, np.stack([at + move for at, move in zip(places, flow, strict=True)]), mode="edge"
    )
    ours, theirs = (skimage.feature.daisy(grey, **_DAISY) for grey in (target, warped.astype(np.float32)))
    return float(np.linalg.norm(ours - theirs, axis=2).mean())


@dataclass(frozen=True)
class Candidate:
    """A picture of the pool, judged."""

    name: str
    index: int
    """In the data set."""
    intersection: float
    """Of label histograms, 0 to 1."""
    cost: float
    """Of dense matching."""


class Pool:
    """The pictures among which is searched; each is read once for its histogram and grey values.

    Args:
        dataset: pictures with label maps, all at one size.
        problems: the files that cannot be read are named here, and left out.

    Raises:
        ImportError: scikit-image is not installed.
    """

    def __init__(self, dataset: RegionDataset, problems: list[str]) -> None:
        self.dataset = dataset
        self._indices: list[int] = []
        self._greys: list[np.ndarray] = []
        self._contents: list[bytes] = []
        histograms = []
        for index, name in enumerate(dataset.source.names()):
            try:
                item = dataset[index]
            except (ValueError, OSError) as error:
                problems.append(f"pool: {name}: {error}")
                continue
            self._indices.append(index)
            self._greys.append(grey_for_matching(item.image))
            self._contents.append(_content(item))
            histograms.append(label_histogram(item.labels, dataset.num_regions))
        self._histograms = np.array(histograms).reshape(len(histograms), dataset.num_regions)

    def __len__(self) -> int:
        return len(self._indices)

    def candidates(self, item: Item, count: int = 20) -> list[Candidate]:
        """Return the `count` pictures with the greatest intersection of label histograms, the best match first.

        A picture with the very pixels of `item` is none of them.

        Args:
            item: the picture, of the pool's classes and size.
            count: how many are matched; ties of the intersection go by the order of the pool.
        """
        own = _content(item)
        shares = histogram_intersection(label_histogram(item.labels, self.dataset.num_regions), self._histograms)
        others = [at for at in np.argsort(-shares, kind="stable").tolist() if self._contents[at] != own][:count]
        grey, names = grey_for_matching(item.image), self.dataset.source.names()
        judged = [
            Candidate(names[self._indices[at]], self._indices[at], float(shares[at]), matching_cost(grey, self._greys[at]))
            for at in others
        ]
        return sorted(judged, key=lambda candidate: candidate.cost)

    def read(self, candidate: Candidate) -> Item:
        """Return the picture of a candidate."""
        return self.dataset[candidate.index]


def _content(item: Item) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(item.image).data).digest()
