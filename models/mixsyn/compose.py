"""Compose a new picture from regions of several ones: a new label map and a new image (MixSyn).

    mixsyn-fast mixsyn compose --sheet sheet.png                            pictures drawn by code, the shipped model
    mixsyn-fast mixsyn compose --region window=a.jpg --region door=b.jpg --base c.jpg --kind folder --sheet sheet.png

Label maps stand beside the images (a_labels.png, or ../labels/a.png), are named with --labels, or are parsed from face
photos with --parser. --kind says what their pixel values mean: "folder" 0 to N - 1 in the order of the model's regions,
"cmp_facade" 1 to 12 as that set stores them. What no --region names comes from the base; without a base it is absent. The
shipped model knows facades; train your own with `mixsyn-fast train mixsyn`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pictures.copy_paste import copy_paste
from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    drawn_source,
    open_model,
    region_files,
    write_image,
    write_labels,
    write_sheet,
)
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, enlarged, region_legend, soft_colours, source_cells
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Composed, MixSyn
from .sequential import sequential as transfer

_ROW = 6  # source pictures in a row of the sheet
_DRAWN = 4  # sources that are drawn where none are given


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    region: tuple[str, ...] = repeated()
    """REGION=FILE: take this region from this image; once per region, e.g. --region window=a.jpg"""
    base: str | None = None  # image that all other regions come from; none: they are absent
    out: Path = Path("composed.png")  # the new image
    labels_out: Path | None = None  # also write the new label map (palette PNG, pixel value = region)
    sheet: Path | None = None  # also write a contact sheet: sources, composition, copy-paste, new image (PNG)
    compare: bool = False
    """on the sheet, also transfer one segment after the other onto the base's own label map, as editors of one source do
    (Fig. 7); without --base, onto the first source"""
    seed: int = 0  # of the pictures that are drawn where none are given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "out", "labels_out", "sheet")
        if self.base and not self.region:
            raise ValueError("region: expected at least one REGION=FILE, got none")
        if self.compare and self.sheet is None:
            raise ValueError("compare: needs --sheet FILE.png to draw on")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    inputs = [entry.partition("=")[2].strip() for entry in options.region] + [options.base or ""]
    outputs = {name: getattr(options, name) for name in ("out", "labels_out", "sheet")}
    check_outputs(outputs, [file for file in inputs if file], options.labels)
    mixsyn = open_model(MixSyn, options.model, options.device)
    files = region_files(options.region, "region", mixsyn.classes)
    reader = Reader(mixsyn.classes, mixsyn.size, options, options.device)
    regions = {name: reader.read(file) for name, file in files.items()}
    base = reader.read(options.base) if options.base else None
    reader.check_labels_used()
    if not files:
        regions = share_out(mixsyn, drawn_pictures(mixsyn, _DRAWN, options.seed), np.random.default_rng(options.seed))
    composed = mixsyn.compose(regions, base)
    write_image(composed.image, options.out)
    if options.labels_out:
        write_labels(composed.labels, len(mixsyn.classes), options.labels_out)
    if options.sheet:
        start = base or next(iter(regions.values()))
        steps = sequential_steps(mixsyn, start, list(regions.items())) if options.compare else ()
        write_sheet(sheet(mixsyn, composed, regions, steps), options.sheet)
    return 0


# ------------------------------------------------------------------------------------ what other commands use as well


def drawn_pictures(mixsyn: MixSyn, count: int, seed: int) -> list[Picture]:
    """Draw pictures that fit a model, for who has none; ValueError where nothing drawn has its regions."""
    return pictures_of(drawn_source(mixsyn.classes, mixsyn.size, count, seed))


def share_out(mixsyn: MixSyn, pictures: Sequence[Picture], rng: np.random.Generator) -> dict[str, Picture]:
    """Decide which picture gives which regions: coupled ones come from one, and every picture has a large part.

    Groups of coupled regions are dealt from the largest to the smallest, each to the picture that has given least so far
    among those that have it; what is equal is drawn. What the picture does not have of a group is absent.

    Returns:
        region -> picture, for :meth:`MixSyn.compose`.
    """
    count = len(mixsyn.classes)
    areas = np.stack([np.bincount(p.labels[p.labels >= 0], minlength=count) for p in pictures])  # (S, N) pixels
    given = [0] * len(pictures)
    table: dict[str, Picture] = {}
    for group in sorted(mixsyn.config.groups, key=lambda group: -int(areas[:, list(group)].sum())):
        owners = [s for s in range(len(pictures)) if areas[s, list(group)].any()]
        if not owners:
            continue
        taken = min(owners, key=lambda s: (given[s], rng.random()))
        given[taken] += 1
        table |= {mixsyn.classes[k]: pictures[taken] for k in group if areas[taken, k]}
    return table


def split_regions(step: str) -> list[str]:
    """Split "door=b.jpg,shop=b.jpg" at the commas that another REGION= follows: commas in file names stay."""
    return re.split(r",(?=[^,=/\\]+=)", step)


def sequential_cell(name: str, step: Picture | None, size: tuple[int, int]) -> np.ndarray:
    """Draw a step of the sequential transfer; blank where the base has no such region."""
    if step is None:
        return captioned(np.full((*size, 3), 24, np.uint8), f"sequential: base has no {name}")
    return captioned(enlarged(step.image, size), f"sequential: {name}")


def pasted_from(mixsyn: MixSyn, composed: Composed, base: Picture | None) -> Picture:
    """Return the copy-paste of a composition's segments; `base`: picture below all of them, grey without one."""
    return copy_paste(composed.sources, composed.table, mixsyn.size, mixsyn.classes, base=base)


def sequential_steps(
    mixsyn: MixSyn, base: Picture, regions: Sequence[tuple[str, Picture]]
) -> list[tuple[str, Picture | None]]:
    """Transfer segments one after the other onto the base's own label map.

    Args:
        mixsyn: the model.
        base: picture to start from.
        regions: (region, picture that it is taken from), in order.

    Returns:
        (region, image after its transfer), in order; None for a region that the base's label map has no place for.
    """
    possible = set(mixsyn.regions_of(base))
    usable = [(name, picture) for name, picture in regions if name in possible]
    done = iter(transfer(mixsyn, base, usable) if usable else ())
    return [(name, next(done) if name in possible else None) for name, _ in regions]


def sheet(
    mixsyn: MixSyn, composed: Composed, named: Mapping[str, Picture], sequential: Sequence[tuple[str, Picture | None]] = ()
) -> np.ndarray:
    """Draw sources with their regions outlined, then composition, copy-paste and result, then the sequential transfer.

    Args:
        mixsyn: the model.
        composed: what it made.
        named: the regions that were named, as opposed to those of the base.
        sequential: of :func:`sequential_steps`.

    Returns:
        (H, W, 3) uint8.
    """
    size = cell_size(mixsyn.size)
    base = next((index for name, index in composed.table.items() if name not in named), None)
    cells = source_cells(composed.sources, composed.table, mixsyn.classes, size, base)
    rows = [cells[i : i + _ROW] for i in range(0, len(cells), _ROW)]
    pasted = pasted_from(mixsyn, composed, None if base is None else composed.sources[base])
    made = [
        captioned(soft_colours(composed.composition, size), "composition"),
        captioned(enlarged(pasted.image, size), "copy-paste, for comparison"),
        captioned(enlarged(composed.image, size), "new image"),
        region_legend([composed.labels, *(source.labels for source in composed.sources)], mixsyn.classes, size[0]),
    ]
    rows.append(made)
    after = [sequential_cell(name, step, size) for name, step in sequential]
    rows += [after[i : i + _ROW] for i in range(0, len(after), _ROW)]
    return contact_sheet(rows)
