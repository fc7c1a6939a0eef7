"""The composing part of `mixsyn-fast demo`: new pictures from three to six sources each, and what composing costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from mixsyn_fast.machine import now

from ..data import Source
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import enlarged, soft_colours, source_cells
from ..plain import dense_reference
from ..sheets import contact_sheet, text
from .compose import pasted_from, share_out
from .model import Composed, MixSyn, Seconds

SOURCES = (3, 4, 5, 6)
"""Numbers of sources of the rows of the sheet, in turns."""
_POOL = 24  # pictures of a set that sources are chosen from
_SIDE = 160  # longer side of a picture on the sheet in pixels


def pool(mixsyn: MixSyn, source: Source, seed: int) -> list[Picture]:
    """Read pictures to choose from, at the model's size, spread over the set.

    Raises:
        ValueError: fewer than two pictures, or a bad file.
    """
    if len(source) < 2:
        raise ValueError(f"{source.name}: expected at least 2 pictures to compose from, got {len(source)}")
    chosen = np.random.default_rng([seed, 2]).permutation(len(source))[:_POOL]
    return [mixsyn.fitted(picture) for picture in pictures_of(source, [int(i) for i in chosen])]


def compositions(mixsyn: MixSyn, pictures: Sequence[Picture], rows: int, seed: int) -> list[Composed]:
    """Compose `rows` new pictures of 3, 4, 5 and 6 of the pictures, in turns (of all where there are fewer)."""
    rng = np.random.default_rng([seed, 3])
    made = []
    for row in range(rows):
        count = min(SOURCES[row % len(SOURCES)], len(pictures))
        chosen = [pictures[i] for i in rng.permutation(len(pictures))[:count]]
        made.append(mixsyn.compose(share_out(mixsyn, chosen, rng)))
    return made


def sheet(mixsyn: MixSyn, made: Sequence[Composed]) -> np.ndarray:
    """Draw a row per composition: its sources with what is used of them outlined, composition, copy-paste, new image.

    Returns:
        (H, W, 3) uint8.
    """
    scale = _SIDE / max(mixsyn.size)
    size = round(mixsyn.size[0] * scale), round(mixsyn.size[1] * scale)
    most = max(len(one.sources) for one in made)
    blank = np.full((*size, 3), 24, np.uint8)
    titles = ["sources, used regions outlined", *[""] * (most - 1), "composition", "(copy-paste)", "new image"]
    rows = [[text(title, 16, size[1]) for title in titles]]
    for one in made:
        cells = source_cells(one.sources, one.table, mixsyn.classes, size, named=False)
        pasted = pasted_from(mixsyn, one, None)
        results = [soft_colours(one.composition, size), enlarged(pasted.image, size), enlarged(one.image, size)]
        rows.append([*cells, *[blank] * (most - len(cells)), *results])
    return contact_sheet(rows)


@dataclass(frozen=True)
class Cost:
    """Time of one composition in plain PyTorch and with mixsyn_fast, and how far the results are apart."""

    sources: int
    regions: int
    repeated: int
    """Timed passes of each form after the first; 0: the times are those of the first."""
    plain: Seconds
    fast: Seconds
    difference: float
    """Largest absolute difference of the images, which lie in (-1, 1), or of the compositions, in [0, 1]."""
    relative: float
    """Largest absolute difference of the images / their largest absolute value."""


def cost(mixsyn: MixSyn, composed: Composed, rounds: Iterable[int]) -> Cost:
    """Measure a composition: every source encoded anew, decoder, generator. Both forms take turns.

    Plain PyTorch is the dense form of every layer with torch's own operations: `use_plan("dense")` and
    `use_backend("reference")`.

    Args:
        mixsyn: the model.
        composed: what is composed again.
        rounds: both forms run once in each of them. The results of the first are compared; times are medians of the others,
            and those of the first where it is alone, for it pays one-time costs.
    """
    regions = {name: composed.sources[index] for name, index in composed.table.items()}
    seconds: dict[bool, list[Seconds]] = {True: [], False: []}
    results: dict[bool, tuple[torch.Tensor, torch.Tensor]] = {}
    for _ in rounds:
        for plain in (True, False):
            with dense_reference() if plain else nullcontext():
                composition, image, spent = _pass(mixsyn, regions)
            seconds[plain].append(spent)
            results.setdefault(plain, (composition.double(), image.double()))
    (exact_composition, exact), (composition, image) = results[True], results[False]
    apart = float((image - exact).abs().max())
    return Cost(
        sources=len(composed.sources),
        regions=len(regions),
        repeated=len(seconds[True]) - 1,
        plain=_median(seconds[True][1:] or seconds[True]),
        fast=_median(seconds[False][1:] or seconds[False]),
        difference=max(apart, float((composition - exact_composition).abs().max())),
        relative=apart / max(float(exact.abs().max()), 1e-12),
    )


def _pass(mixsyn: MixSyn, regions: Mapping[str, Picture]) -> tuple[torch.Tensor, torch.Tensor, Seconds]:
    """Soft composition (N, H, W), image (3, H, W) and time of one pass."""
    times = [now(mixsyn.device)]
    structure, style = [], []
    order: list[int] = []
    for picture in {id(picture): picture for picture in regions.values()}.values():
        names = [name for name, own in regions.items() if own is picture]
        codes = mixsyn.encode(picture, names)
        structure.append(codes.structure)
        style.append(codes.style)
        order += [mixsyn.classes.index(name) for name in names]
    known = torch.tensor(order, device=mixsyn.device)
    placed = [found.new_zeros(len(mixsyn.classes), *found.shape[1:]).index_copy_(0, known, found)
              for found in (torch.cat(structure), torch.cat(style))]  # fmt: skip
    times.append(now(mixsyn.device))
    composition = mixsyn.decode(placed[0])
    times.append(now(mixsyn.device))
    image = mixsyn.generate(composition, placed[1])
    times.append(now(mixsyn.device))
    return composition, image, Seconds(*(after - before for before, after in zip(times, times[1:], strict=False)))


def _median(samples: Sequence[Seconds]) -> Seconds:
    """The sample with the median total: its parts add up."""
    return sorted(samples, key=lambda sample: sample.total)[len(samples) // 2]
