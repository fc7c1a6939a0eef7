"""Many pictures from few: a grid of random combinations of the regions of some pictures of a folder (MixSyn, Fig. 11).

    mixsyn-fast mixsyn diversity                                            pictures drawn by code, the shipped model
    mixsyn-fast mixsyn diversity --data datasets/cmp_facade --regions window,door,shop --sources 4 --count 12 --out grid.png

The first source is the base; each of the regions comes from any of the sources that have it. Regions that the model couples
(left and right of a face; windows, cornices and sills) come from one source, and what that one lacks of them is absent;
--no-coupled draws every region for itself. With G groups of regions and S sources there are up to S^G combinations. The
coloured stripes below a picture are its regions in the order given; a stripe's colour is that of the source, grey: absent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mixsyn_fast.progress import progress

from ..data import KINDS, ReaderOptions, Source
from ..pictures.options import (
    ModelOptions,
    check_outputs,
    check_png,
    check_region,
    drawn_source,
    open_matching,
    open_model,
    write_sheet,
)
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, enlarged, outlined, soft_colours, source_colour
from ..settings import at_least
from ..sheets import contact_sheet, text
from .compose import pasted_from
from .model import Composed, MixSyn

_TRIED = 40  # pictures looked at per source that is wanted, for their regions


@dataclass(frozen=True)
class Options(ReaderOptions, ModelOptions):
    """Options of the command."""

    data: str | None = None  # folder of the data set; none: pictures drawn by code
    kind: Literal[("auto", *KINDS)] = "auto"  # type: ignore[valid-type]
    """what set it is; auto: by what the folder holds, and without a folder what the model knows"""
    split: Literal["train", "val", "test", "all"] = "all"  # part of the set
    regions: tuple[str, ...] | None = None  # regions that are varied; none: all that the base has
    coupled: bool = True  # coupled regions come from one source, as in the model's training
    sources: int = 4  # number of source pictures
    count: int = 12  # number of combinations
    seed: int = 0  # of the choice of sources and combinations, and of drawings
    out: Path = Path("diversity.png")  # the grid
    sheet: Path | None = None  # also write the grid with copy-paste below every combination (PNG)
    compare: bool = False  # copy-paste below every combination (Fig. 5)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        check_png(self, "out", "sheet")
        at_least(self, sources=2, count=1, seed=0)
        names = self.regions
        if names is not None and (not all(names) or not names or len(set(names)) < len(names)):
            raise ValueError(f"regions: expected one or more regions, each once, got {','.join(names)!r}")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_outputs({"out": options.out, "sheet": options.sheet})
    mixsyn = open_model(MixSyn, options.model, options.device)
    for name in options.regions or ():
        check_region(name, "regions", mixsyn.classes)
    source = open_for(mixsyn, options)
    sources = choose_sources(mixsyn, source, options.regions, options.sources, options.seed)
    regions = list(options.regions or mixsyn.regions_of(sources[0]))
    groups = region_groups(mixsyn, regions, options.coupled)
    found = combinations(mixsyn, sources, groups, options.count, options.seed)
    with progress("composing"):
        made = [compose(mixsyn, sources, choice) for choice in found]
    total = math.prod(len(_owners(mixsyn, sources, group)) for group in groups)
    print(f"{len(made)} of {total} combinations of {', '.join(regions)} from {len(sources)} pictures")
    write_sheet(sheet(mixsyn, sources, regions, found, made, options.compare), options.out)
    if options.sheet:
        write_sheet(sheet(mixsyn, sources, regions, found, made, True), options.sheet)
    return 0


def open_for(mixsyn: MixSyn, options: Options) -> Source:
    """Open the data set of the options as a set with the classes of the model, merged as the model's; else draw pictures.

    Raises:
        ValueError: the set has other classes; the message names those that differ.
        FileNotFoundError: as :func:`open_source`.
    """
    count = _TRIED * options.sources
    if options.data is None and options.kind == "auto":
        return drawn_source(mixsyn.classes, mixsyn.size, count, options.seed)
    drawn = {} if options.data else {"seed": options.seed, "count": count, "size": mixsyn.size}
    return open_matching(mixsyn.classes, options.data, options.kind, options.split, **drawn, **options.reader_options())


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
        picture = mixsyn.fitted(pictures_of(source, [int(index)])[0])
        has = set(mixsyn.regions_of(picture))
        share = len(has & set(regions)) if regions is not None else len(has)
        if share:
            found.append((share, picture))
        if len(found) >= count:
            break
    if len(found) < count:
        wanted = ", ".join(regions) if regions is not None else "any region"
        raise ValueError(f"sources: expected {count} pictures with {wanted}, found {len(found)} in {source.name}")
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
