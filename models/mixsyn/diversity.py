"""Many pictures from few: a grid of random combinations of the regions of some pictures of a folder (MixSyn, Fig. 11).

    mixsyn-fast diversity --data my_facades --regions window,door,shop --sources 4 --count 12 --out grid.png

The first source is the base; each of the regions comes from any of the sources that have it. With R regions and S sources
there are up to S^R combinations. The coloured stripes below a picture are its regions in the order given; a stripe's colour
is that of the source.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress

from ..data import KINDS, Source, open_source
from ..data.region_types import merge_of, merged
from ..data.sets import add_reader_arguments, classes_differ, reader_options
from ..data.sheets import contact_sheet, text
from .compose import (
    add_model_arguments,
    cell_size,
    check_png,
    check_region,
    open_model,
    pasted_from,
    write_sheet,
)
from .model import Composed, MixSyn
from .pictures import Picture, fit, pictures_of
from .sheets import captioned, enlarged, outlined, soft_colours, source_colour

_TRIED = 40  # pictures looked at per source that is wanted, for their regions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `mixsyn-fast diversity`."""
    parser.add_argument("--data", metavar="DIR", help="folder of the data set; none for the kinds drawn by code")
    parser.add_argument("--kind", default="auto", choices=("auto", *KINDS), help="what set it is (default: %(default)s)")
    parser.add_argument(
        "--split", default="all", choices=("train", "val", "test", "all"), help="part of the set (default: %(default)s)"
    )
    add_reader_arguments(parser)
    parser.add_argument("--regions", metavar="NAME,NAME", help="regions that are varied (default: all that the base has)")
    parser.add_argument("--sources", type=int, default=4, help="number of source pictures (default: %(default)s)")
    parser.add_argument("--count", type=int, default=12, help="number of combinations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sources and combinations")
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("diversity.png"), help="the grid (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="copy-paste below every combination (Fig. 5)")


def main(options: argparse.Namespace) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_png(options.out, "--out")
    for name, least in (("sources", 2), ("count", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    mixsyn = open_model(options)
    names = None
    if options.regions is not None:
        names = [name.strip() for name in options.regions.split(",") if name.strip()]
        for name in names:
            check_region(name, "--regions", mixsyn.classes)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"--regions: expected one or more regions, each once, got {options.regions!r}")
    source = open_for(mixsyn, options)
    sources = choose_sources(mixsyn, source, names, options.sources, options.seed)
    regions = names or list(mixsyn.regions_of(sources[0]))
    found = combinations(mixsyn, sources, regions, options.count, options.seed)
    with progress("composing"):
        made = [compose(mixsyn, sources, dict(zip(regions, choice, strict=True))) for choice in found]
    total = math.prod(len(_owners(mixsyn, sources, name)) for name in regions)
    print(f"{len(made)} of {total} combinations of {', '.join(regions)} from {len(sources)} pictures")
    write_sheet(sheet(mixsyn, sources, regions, found, made, options.compare), options.out)
    return 0


def open_for(mixsyn: MixSyn, options: argparse.Namespace) -> Source:
    """Open --data as a set with the classes of the model, merged as the model's.

    Raises:
        ValueError: the set has other classes; the message names those that differ.
        FileNotFoundError: as :func:`open_source`.
    """
    drawn = {} if options.data else {"seed": options.seed, "count": _TRIED * options.sources, "size": mixsyn.size}
    drawn |= reader_options(options)
    for unknown in ("none", "class"):  # a model may have been trained with a last class "unknown"
        source = merged(open_source(options.data, options.kind, options.split, unknown, **drawn), merge_of(mixsyn.classes))
        if tuple(source.classes) == mixsyn.classes:
            return source
    raise ValueError(f"--data: {source.name} has not the model's regions: {classes_differ(source.classes, mixsyn.classes)}")


def choose_sources(mixsyn: MixSyn, source: Source, regions: Sequence[str] | None, count: int, seed: int) -> list[Picture]:
    """Draw source pictures, the base first; every one has at least one of the regions, the base as many as can be had.

    Args:
        mixsyn: the model.
        source: the set.
        regions: that are varied; None: any.
        count: how many pictures.
        seed: of the draw.

    Raises:
        ValueError: fewer than `count` pictures have one of the regions among those looked at.
    """
    order = np.random.default_rng(seed).permutation(len(source))[: _TRIED * count]
    found: list[tuple[int, Picture]] = []
    for index in order:
        picture = fit(pictures_of(source, [int(index)])[0], mixsyn.size)
        has = set(mixsyn.regions_of(picture))
        share = len(has & set(regions)) if regions is not None else len(has)
        if share:
            found.append((share, picture))
        if len(found) >= count:
            break
    if len(found) < count:
        wanted = ", ".join(regions) if regions is not None else "any region"
        raise ValueError(f"--sources: expected {count} pictures with {wanted}, found {len(found)} in {source.name}")
    base = max(range(count), key=lambda i: found[i][0])
    return [found[base][1], *(picture for i, (_, picture) in enumerate(found) if i != base)]


def _owners(mixsyn: MixSyn, sources: Sequence[Picture], region: str) -> list[int]:
    """Return the sources that have a region; -1, absent, where none has it."""
    return [i for i, picture in enumerate(sources) if region in mixsyn.regions_of(picture)] or [-1]


def combinations(
    mixsyn: MixSyn, sources: Sequence[Picture], regions: Sequence[str], count: int, seed: int
) -> list[tuple[int, ...]]:
    """Draw different combinations: per region the index of its source, out of those that have it (-1: none has it).

    Args:
        mixsyn: the model.
        sources: the pictures.
        regions: that are varied.
        count: how many; fewer where there are fewer.
        seed: of the draw.
    """
    choices = [_owners(mixsyn, sources, name) for name in regions]
    rng = np.random.default_rng([seed, 1])
    if math.prod(len(owners) for owners in choices) <= 4 * count:  # few: shuffle them all
        every = list(itertools.product(*choices))
        return [every[i] for i in rng.permutation(len(every))[:count]]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(int(rng.choice(owners)) for owners in choices)] = None
    return list(found)


def compose(mixsyn: MixSyn, sources: Sequence[Picture], choice: dict[str, int]) -> Composed:
    """Compose one combination: the named regions from their sources, all others from the first."""
    return mixsyn.compose({name: sources[index] for name, index in choice.items() if index >= 0}, sources[0])


def sheet(
    mixsyn: MixSyn,
    sources: Sequence[Picture],
    regions: Sequence[str],
    found: Sequence[Sequence[int]],
    made: Sequence[Composed],
    compare: bool = False,
) -> np.ndarray:
    """Draw the sources, their varied regions outlined, and below them the combinations: composition, image, colours.

    Returns:
        (H, W, 3) uint8.
    """
    size = cell_size(mixsyn.size)
    numbers = [mixsyn.classes.index(name) for name in regions]
    rows: list[list[np.ndarray]] = [[]]
    for index, picture in enumerate(sources):
        drawn = outlined(picture, numbers, source_colour(index), size, apart=True)
        rows[0].append(captioned(drawn, f"{picture.name}{': base' if index == 0 else ''}", source_colour(index)))
    key = ["stripes, from left to right:", *regions]
    rows[0].append(np.concatenate([text(line, 14, size[1]) for line in key]))
    columns = max(4, min(6, len(rows[0])))
    for i in range(0, len(made), columns):
        block, choices = made[i : i + columns], found[i : i + columns]
        rows.append([soft_colours(one.composition, size) for one in block])
        if compare:
            pasted = [pasted_from(mixsyn, one, sources[0]) for one in block]
            rows.append([captioned(enlarged(picture.image, size), "copy-paste") for picture in pasted])
        rows.append([_striped(enlarged(one.image, size), choice) for one, choice in zip(block, choices, strict=True)])
    return contact_sheet(rows)


def _striped(cell: np.ndarray, choice: Sequence[int]) -> np.ndarray:
    """Put a stripe of one field per region, in its source's colour, below a picture; grey: no source has it."""
    stripe = np.full((12, cell.shape[1], 3), 24, np.uint8)
    edges = np.linspace(0, cell.shape[1], len(choice) + 1).round().astype(int)
    for index, left, right in zip(choice, edges[:-1], edges[1:], strict=True):
        stripe[2:10, left + 1 : right - 1] = source_colour(index) if index >= 0 else (90, 90, 90)
    return np.concatenate([cell, stripe])
