"""Distinct neighbourhoods of a hard map behind each of several same-size convolutions: what tables are made by."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..region_map import RegionMap

Size = tuple[int, ...]


class Neighbourhoods(NamedTuple):
    """What a stack of same-size convolutions needs of a hard map at one size: one row per distinct neighbourhood.

    Stage 0 are the map's own columns: a row per region, one of pixels of no region, with edges the same again with the edge.
    Stage i is what comes out of convolution i: its rows are the distinct neighbourhoods of rows of stage i - 1.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    """(B, h, w) int32: row of every pixel at the last stage."""
    counts: tuple[int, ...]
    """Rows of every stage."""
    taps: tuple[Tensor | None, ...]
    """Per convolution (P, k * k) int32: indices into a table of (rows of the stage before, and one more) x taps; the row
    after the last is for positions outside the image. None for a 1 x 1 convolution, which leaves the rows as they are."""
    shares: tuple[Tensor | None, ...]
    """Per stage (B, P) float64: which share of an image's pixels has the row; only with rows of their own per image."""
    images: tuple[Tensor | None, ...]
    """Per stage (P,) int64: the image of every row; as ``shares``."""


_kept: WeakKeyDictionary[RegionMap, dict[Hashable, Neighbourhoods]] = WeakKeyDictionary()


def neighbourhoods(regions: RegionMap, size: Size, kernels: Sequence[int], per_image: bool = False) -> Neighbourhoods:
    """Return the distinct neighbourhoods behind each convolution; kept while the map lives.

    Args:
        regions: a hard map.
        size: (h, w).
        kernels: their kernel sizes, odd.
        per_image: rows are not shared between images, and their shares of the pixels are counted.

    Raises:
        TypeError: on a soft map.
    """
    entries, key = _kept.setdefault(regions, {}), (size, tuple(kernels), per_image)
    if key not in entries:
        with torch.inference_mode(False), torch.no_grad():
            entries[key] = _made(regions, size, kernels, per_image)
    return entries[key]


def _made(regions: RegionMap, size: Size, kernels: Sequence[int], per_image: bool) -> Neighbourhoods:
    index: Tensor | None = None
    rows = (regions.num_regions + 1) * (1 if regions.edges is None else 2)
    own, radius, started = per_image and regions.batch_size > 1, 0, False
    counts, taps = [rows], list[Tensor | None]()
    shares, images = list[Tensor | None]([None]), list[Tensor | None]([None])
    for kernel in kernels:
        if kernel == 1 and (started or not own):
            taps.append(None)
        else:
            before, before_rows, radius = index, rows, radius + kernel // 2
            index, rows = _index(regions, size, radius, own)
            if not started and radius <= 2:
                taps.append(_taps_of_labels(regions, regions.patterns(size, radius, own).patterns, before_rows))
            else:
                before = _columns(regions, size) if before is None else before
                taps.append(_taps_around(before, before_rows, _pixel_of_row(index, rows), kernel))
            started = True
        counts.append(rows)
        share: Tensor | None = None
        image: Tensor | None = None
        if per_image:
            index = _columns(regions, size) if index is None else index
            share, image = _shares(index, rows)
        shares.append(share)
        images.append(image)
    index = _columns(regions, size) if index is None else index
    return Neighbourhoods(index, tuple(counts), tuple(taps), tuple(shares), tuple(images))


def _columns(regions: RegionMap, size: Size) -> Tensor:
    """Stage 0: (B, h, w) int32 row of every pixel."""
    labels, edges = regions.labels_at(size), regions.edges_at(size)
    start = torch.where(labels < 0, regions.num_regions, labels)
    if edges is not None:
        start = start + edges * (regions.num_regions + 1)
    return start.to(torch.int32)


def _taps_of_labels(regions: RegionMap, patterns: Tensor, rows: int) -> Tensor:
    """As :func:`_taps_around`, of stage 0, from the codes of label neighbourhoods (:mod:`..ops.label_patterns`)."""
    count, device = regions.num_regions, patterns.device
    of_code = torch.arange(count + 2, device=device, dtype=torch.int32)
    of_code[count], of_code[count + 1] = rows, count  # outside, no region
    if regions.edges is not None:
        of_code = torch.cat((of_code, of_code + (count + 1)))
    taps = patterns.shape[1]
    found = of_code.index_select(0, patterns.reshape(-1)).view(-1, taps)
    return found * taps + torch.arange(taps, device=device, dtype=torch.int32)


def _index(regions: RegionMap, size: Size, radius: int, per_image: bool) -> tuple[Tensor, int]:
    """Which distinct label neighbourhood every pixel has, (B, h, w) int32, and how many there are; of any radius.

    A window is what windows of a smaller radius around its centre and its borders say together: those inside the image cover
    all of it that is inside.
    """
    if radius <= 2:
        found = regions.patterns(size, radius, per_image)
        return found.index, len(found.patterns)
    step = min(radius - 2, 2)
    index, rows = _index(regions, size, radius - step, per_image)
    for dim in range(1, index.dim()):
        index, rows = _together(index, rows, step, dim)
    return index, rows


def _together(index: Tensor, rows: int, step: int, dim: int) -> tuple[Tensor, int]:
    """Number the distinct triples of a pixel's row and those ``step`` before and behind it along a dimension."""
    frame = [0, 0] * (index.dim() - 1 - dim) + [step, step]
    framed, numbers = F.pad(index.to(torch.int64), frame, value=rows), index.to(torch.int64)
    count = rows
    for first in (0, 2 * step):  # two pairs, so that no number is too large
        pairs = numbers * (rows + 1) + framed.narrow(dim, first, index.shape[dim])
        found, numbers = torch.unique(pairs, return_inverse=True)
        count = len(found)
    return numbers.to(torch.int32), count


def _pixel_of_row(index: Tensor, rows: int) -> Tensor:
    """Return (P,): a pixel of every row. Any pixel stands for its row: all have the same surroundings."""
    pixel = torch.zeros(rows, dtype=torch.int64, device=index.device)
    flat = index.reshape(-1).to(torch.int64)
    pixel[flat] = torch.arange(len(flat), device=flat.device)
    return pixel


def _taps_around(index: Tensor, rows: int, pixel: Tensor, kernel: int) -> Tensor:
    """Return (P, k * k) int32: the rows of ``index`` around ``pixel`` (P,), times the number of taps, plus the tap.

    A frame around the image holds row ``rows``: what is outside.
    """
    size, reach, device = index.shape[1:], kernel // 2, index.device
    framed = F.pad(index, (reach, reach) * len(size), value=rows)
    offset = torch.arange(kernel, device=device)
    pixels = prod(size)
    corner, around = pixel // pixels, offset[:1]
    for side in size:
        pixels //= side
        corner = corner * (side + 2 * reach) + pixel // pixels % side
        around = (around[:, None] * (side + 2 * reach) + offset).reshape(-1)
    tap = torch.arange(len(around), device=device, dtype=torch.int32)
    return framed.reshape(-1)[corner[:, None] + around] * len(around) + tap


def _shares(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return (B, P) float64 shares of every image's pixels by row, and (P,) the image of every row."""
    pixels = prod(index.shape[1:])
    image = _pixel_of_row(index, rows) // pixels
    counted = torch.bincount(index.reshape(-1), minlength=rows).to(torch.float64)
    owns = torch.arange(index.shape[0], device=index.device)[:, None] == image
    return owns * (counted / pixels), image
