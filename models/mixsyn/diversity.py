"""Many pictures from few: a grid of random combinations of the regions of some pictures of a folder (MixSyn, Fig. 11).

    mixsyn-fast diversity --data datasets/cmp_facade --regions window,door,shop --sources 4 --count 12 --out grid.png

The first source is the base; each of the regions comes from any of the sources that have it. Regions that the model couples
(left and right of a face; windows, cornices and sills) come from one source, and what that one lacks of them is absent;
--no-coupled draws every region for itself. With G groups of regions and S sources there are up to S^G combinations. The
coloured stripes below a picture are its regions in the order given; a stripe's colour is that of the source, grey: absent.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress

from ..data import KINDS, Source, open_source
from ..data.region_types import merge_of, merged
from ..data.sets import add_reader_arguments, classes_differ, reader_options
from ..pictures.picture import Picture, fit, pictures_of
from ..pictures.sheets import captioned, enlarged, outlined, soft_colours, source_colour
from ..sheets import contact_sheet, text
from .compose import (
    add_model_arguments,
    cell_size,
    check_outputs,
    check_png,
    check_region,
    open_model,
    pasted_from,
    write_sheet,
)
from .model import Composed, MixSyn

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
    parser.add_argument(
        "--coupled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="coupled regions come from one source, as in the model's training (default: yes)",
    )
    parser.add_argument("--sources", type=int, default=4, help="number of source pictures (default: %(default)s)")
    parser.add_argument("--count", type=int, default=12, help="number of combinations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sources and combinations")
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("diversity.png"), help="the grid (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="copy-paste below every combination (Fig. 5)")


def main(options: argparse.Namespace) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_png(options.out, "--out")
    check_outputs({"--out": options.out})
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
    groups = region_groups(mixsyn, regions, options.coupled)
    found = combinations(mixsyn, sources, groups, options.count, options.seed)
    with progress("composing"):
        made = [compose(mixsyn, sources, choice) for choice in found]
    total = math.prod(len(_owners(mixsyn, sources, group)) for group in groups)
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
    return open_matching(mixsyn, options.data, options.kind, options.split, **drawn, **reader_options(options))


def open_matching(mixsyn: MixSyn, root: str | None, kind: str, split: str, **options: Any) -> Source:
    """Open a set with the classes of a model, merged as the model's; arguments and errors as :func:`open_source`.

    Pixels of no class are no region, or where the model has one, the last class "unknown".

    Raises:
        ValueError: the set has other classes; the message names those that differ.
    """
    for unknown in ("none", "class"):
        source = merged(open_source(root, kind, split, unknown, **options), merge_of(mixsyn.classes))
        if tuple(source.classes) == mixsyn.classes:
            return source
    raise ValueError(f"--data: {source.name} has not the model's regions: {classes_differ(source.classes, mixsyn.classes)}")


def choose_sources(mixsyn: MixSyn, source: Source, regions: Sequence[str] | None, count: int, seed: int) -> list[Picture]:
    """Draw source pictures that have at least one of the regions; the one among them that has most comes first, as base.

    Args:
        mixsyn: the model.
        source: the set.
        regions: that are varied; None: any.
        count: how many pictures.
        seed: of the draw.

    Raises:
        ValueError: fewer than `count` pictures have one of the regions, among the 40 times as many that are looked at.
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


def region_groups(mixsyn: MixSyn, regions: Sequence[str], coupled: bool) -> list[tuple[str, ...]]:
    """Return the groups of regions that come from one source: the model's, as far as they are among `regions`."""
    if not coupled:
        return [(name,) for name in regions]
    groups = ([mixsyn.classes[k] for k in group] for group in mixsyn.config.groups)
    found = (tuple(name for name in group if name in regions) for group in groups)
    return [group for group in found if group]


def _owners(mixsyn: MixSyn, sources: Sequence[Picture], group: Sequence[str]) -> list[int]:
    """Return the sources that have a region of a group; -1, absent, where none has one."""
    return [i for i, picture in enumerate(sources) if not set(group).isdisjoint(mixsyn.regions_of(picture))] or [-1]


def combinations(
    mixsyn: MixSyn, sources: Sequence[Picture], groups: Sequence[Sequence[str]], count: int, seed: int
) -> list[dict[str, int]]:
    """Draw different combinations: every group comes from one source, out of those that have a region of it.

    Args:
        mixsyn: the model.
        sources: the pictures.
        groups: regions that are varied, those of a group together.
        count: how many; fewer where there are fewer.
        seed: of the draw.

    Returns:
        Per combination, region -> index of its source; -1: absent, for its group's source lacks it.
    """
    choices = [_owners(mixsyn, sources, group) for group in groups]
    rng = np.random.default_rng([seed, 1])
    if math.prod(len(owners) for owners in choices) <= 4 * count:  # few: shuffle them all
        every = list(itertools.product(*choices))
        drawn = [every[i] for i in rng.permutation(len(every))[:count]]
    else:
        found: dict[tuple[int, ...], None] = {}
        while len(found) < count:
            found[tuple(int(rng.choice(owners)) for owners in choices)] = None
        drawn = list(found)
    has = [{*mixsyn.regions_of(picture)} for picture in sources]
    return [
        {
            name: index if index >= 0 and name in has[index] else -1
            for group, index in zip(groups, choice, strict=True)
            for name in group
        }
        for choice in drawn
    ]


def compose(mixsyn: MixSyn, sources: Sequence[Picture], choice: Mapping[str, int]) -> Composed:
    """Compose one combination: its regions from their sources or, at -1, absent; all others from the first source."""
    kept = {name: sources[0] for name in mixsyn.regions_of(sources[0]) if name not in choice}
    return mixsyn.compose(kept | {name: sources[index] for name, index in choice.items() if index >= 0})


def sheet(
    mixsyn: MixSyn,
    sources: Sequence[Picture],
    regions: Sequence[str],
    found: Sequence[Mapping[str, int]],
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
        block = made[i : i + columns]
        choices = [[choice[name] for name in regions] for choice in found[i : i + columns]]
        rows.append([soft_colours(one.composition, size) for one in block])
        if compare:
            pasted = [pasted_from(mixsyn, one, sources[0]) for one in block]
            rows.append([captioned(enlarged(picture.image, size), "copy-paste") for picture in pasted])
        rows.append([_striped(enlarged(one.image, size), choice) for one, choice in zip(block, choices, strict=True)])
    return contact_sheet(rows)


def _striped(cell: np.ndarray, choice: Sequence[int]) -> np.ndarray:
    """Put a stripe of one field per region, in its source's colour, below a picture; grey: absent."""
    stripe = np.full((12, cell.shape[1], 3), 24, np.uint8)
    edges = np.linspace(0, cell.shape[1], len(choice) + 1).round().astype(int)
    for index, left, right in zip(choice, edges[:-1], edges[1:], strict=True):
        stripe[2:10, left + 1 : right - 1] = source_colour(index) if index >= 0 else (90, 90, 90)
    return np.concatenate([cell, stripe])
