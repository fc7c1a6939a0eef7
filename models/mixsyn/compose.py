"""Compose a new picture from regions of several ones: a new label map and a new image (MixSyn).

    mixsyn-fast mixsyn compose --sheet sheet.png                            pictures drawn by code, the shipped model
    mixsyn-fast mixsyn compose --region window=a.jpg --region door=b.jpg --base c.jpg --kind folder --sheet sheet.png
    mixsyn-fast mixsyn compose --region door=none --base c.jpg --kind folder --keep
    mixsyn-fast mixsyn compose --table compositions.csv --kind folder --out-dir composed

Label maps stand beside the images (a_labels.png, or ../labels/a.png), are named with --labels, or are parsed from face
photos with --parser. --kind says what their pixel values mean: "folder" 0 to N - 1 in the order of the model's regions,
"cmp_facade" 1 to 12 as that set stores them. What no --region names comes from the base; without a base it is absent. The
shipped model knows facades; train your own with `mixsyn-fast train mixsyn`.

A base alone is made anew. With a base the result has its size and shape: the image that the model made is scaled to it, the
label map by its weights, and what a centre crop cuts off stays as it was (--crop none: the model sees all of it, squeezed).
--keep takes the base's own pixels where its regions stay. A table (CSV) has the columns name and base, and one per region: a
file, "none", or nothing; as JSON it is a list of {"name": ..., "base": ..., "regions": {"window": "a.jpg", "door": null}}.
Every row becomes name.png and name_labels.png in --out-dir; all is checked before anything is made.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.reading import read_text

from ..pictures.copy_paste import copy_paste
from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    check_region,
    drawn_source,
    files_named,
    open_model,
    region_sources,
    write_image,
    write_labels,
    write_sheet,
)
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, enlarged, region_legend, soft_colours, source_cells
from ..settings import at_least, one_of, repeated
from ..sheets import contact_sheet
from .competitors import open_runs, rows_of
from .model import Composed, MixSyn
from .sequential import sequential as transfer

_ROW = 6  # source pictures in a row of the sheet
_DRAWN = 4  # sources that are drawn where none are given


@dataclass(frozen=True)
class MixSynOptions(PictureOptions, ModelOptions):
    """What composing and editing share: the model, how pictures are read, and what becomes of the base's size."""

    crop: Literal["auto", "center", "none"] = "auto"
    """what the model sees of a picture of other proportions: the box in the middle, or all of it, squeezed; auto: as it was
    trained"""
    out_size: Literal["own", "model"] = "own"  # size of what is written: the base's own, or the model's
    keep: bool = False
    """where regions of the base stay, write the base's own pixels, blended at the border: a paste, not made by the model"""

    beside: tuple[str, ...] = repeated()
    """with --compare, NAME=RUN: also what a run of SPADE, CLADE or SEAN makes of copy-paste and of the composition (Fig. 6),
    and SEAN's transfer of one segment after another (Fig. 7); once per run"""

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        if self.beside and not getattr(self, "compare", False):
            raise ValueError("beside: needs --compare, whose part it is")
        one_of(self, crop=("auto", "center", "none"), out_size=("own", "model"))


class Opened:
    """The model of a command, and its pictures: each file read and fitted once.

    Args:
        options: of the command.
    """

    def __init__(self, options: MixSynOptions) -> None:
        self.options = options
        self.mixsyn = open_model(MixSyn, options.model, options.device)
        if options.crop != "auto":
            self.mixsyn.crop = options.crop
        self.beside = open_runs(options.beside, self.mixsyn.classes, self.mixsyn.size, options.device)
        self.reader = Reader(self.mixsyn.classes, None, options, options.device)
        self._fitted: dict[int, Picture] = {}

    def picture(self, file: str) -> Picture:
        """Return a picture at the model's size."""
        stored = self.reader.read(file)
        return self._fitted.setdefault(id(stored), self.mixsyn.fitted(stored))

    def regions(self, files: Mapping[str, str | None]) -> dict[str, Picture | None]:
        """Return region -> picture of region -> file; None stays None."""
        return {name: None if file is None else self.picture(file) for name, file in files.items()}

    def others(
        self, made: Composed, base: Picture | None, start: Picture, replacements: Sequence[tuple[str, Picture]]
    ) -> list[list[np.ndarray]]:
        """Return rows of a sheet: what the runs of --beside make of the same sources.

        Args:
            made: the composition.
            base: picture below the copy-paste; None: grey.
            start: picture whose label map the transfers keep.
            replacements: (region, its source), in order.
        """
        size = cell_size(self.mixsyn.size)
        own = Picture(made.image, made.labels, "made")
        found = rows_of(self.beside, pasted_from(self.mixsyn, made, base), own, start, replacements)
        return [
            [
                sequential_cell(what.rpartition(" ")[2], None, size)
                if image is None
                else captioned(enlarged(image, size), f"{name}: {what}")
                for what, image in row
            ]
            for name, row in found.items()
        ]

    def result(self, made: Composed, base: str | None) -> Picture:
        """Return what is written of a result: at its base's size, where there is one and options say so.

        --keep at the model's size keeps the pixels of the fitted base.
        """
        options = self.options
        if base is None or (options.out_size == "model" and not options.keep):
            return Picture(made.image, made.labels, "made")
        stored = self.reader.read(base) if options.out_size == "own" else self.picture(base)
        return self.mixsyn.at_own_size(made, stored, keep=options.keep)


@dataclass(frozen=True)
class Options(MixSynOptions):
    """Options of the command."""

    region: tuple[str, ...] = repeated()
    """REGION=FILE: take this region from this image; once per region, e.g. --region window=a.jpg. REGION=none: it goes"""
    base: str | None = None  # image that all other regions come from; none: they are absent
    out: Path = Path("composed.png")  # the new image
    labels_out: Path | None = None  # also write the new label map (palette PNG, pixel value = region)
    sheet: Path | None = None  # also write a contact sheet: sources, composition, copy-paste, new image (PNG)
    compare: bool = False
    """on the sheet, also transfer one segment after the other onto the base's own label map, as editors of one source do
    (Fig. 7); without --base, onto the first source"""
    seed: int = 0  # of the pictures that are drawn where none are given
    coupled: bool = False  # regions that training couples with a named one come along: an eye, and the other one
    table: str | None = None  # CSV or JSON file of many compositions, in place of --region, --base and --out
    out_dir: Path | None = None  # with --table: folder for their images and label maps

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "out", "labels_out", "sheet")
        if self.compare and self.sheet is None:
            raise ValueError("compare: needs --sheet FILE.png to draw on")
        if (self.table is None) != (self.out_dir is None):
            missing, there = ("out_dir", "--table") if self.out_dir is None else ("table", "--out-dir")
            raise ValueError(f"{missing}: expected one with {there}, got none")
        if self.table is not None:
            for name in ("region", "base", "labels_out", "sheet"):
                if getattr(self, name):
                    raise ValueError(f"{name}: expected none with --table, whose rows say it, got {getattr(self, name)!r}")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    if options.table is not None:
        return _many(options)
    outputs = {name: getattr(options, name) for name in ("out", "labels_out", "sheet")}
    check_outputs(outputs, [*files_named(options.region), *([options.base] if options.base else [])], options.labels)
    opened = Opened(options)
    mixsyn = opened.mixsyn
    regions = opened.regions(region_sources(options.region, "region", mixsyn.classes))
    base = opened.picture(options.base) if options.base else None
    opened.reader.check_labels_used()
    if not regions and base is None:
        regions |= share_out(mixsyn, drawn_pictures(mixsyn, _DRAWN, options.seed), np.random.default_rng(options.seed))
    elif options.coupled:
        regions = mixsyn.coupled(regions)  # type: ignore[assignment]
    composed = mixsyn.compose(regions, base)
    result = opened.result(composed, options.base)
    write_image(result.image, options.out)
    if options.labels_out:
        write_labels(result.labels, len(mixsyn.classes), options.labels_out)
    if options.sheet:
        named = {name: picture for name, picture in regions.items() if picture is not None}
        start = base or next(iter(named.values()))
        steps = sequential_steps(mixsyn, start, list(named.items())) if options.compare else ()
        others = opened.others(composed, base, start, list(named.items()))
        write_sheet(sheet(mixsyn, composed, named, steps, others), options.sheet)
    return 0


# ------------------------------------------------------------------------------------------------- many compositions


@dataclass(frozen=True)
class TableRow:
    """One composition of a table."""

    name: str
    """Of its files."""
    base: str | None
    regions: dict[str, str | None]
    """Region -> file; None: it is absent."""


def read_table(path: str) -> list[TableRow]:
    """Read a table of compositions, CSV or (a file that ends in .json) JSON; see the module.

    Raises:
        ValueError: another form, a name that is no file's, or two of one name; the message names file and row.
        OSError: it cannot be read.
    """
    content = read_text(path)
    try:
        entries = _of_json(content) if path.lower().endswith(".json") else _of_csv(content)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"table: {path}: {error}") from None
    rows: list[TableRow] = []
    for number, entry in enumerate(entries, 1):
        where = f"table: {path}: row {number}"
        name = entry.name
        if not name or Path(name).name != name:
            raise ValueError(f"{where}: name: expected the name of a file without a folder, got {name!r}")
        if any(row.name == name for row in rows):
            raise ValueError(f"{where}: name: expected every name once, got {name!r} again")
        if not entry.base and not any(entry.regions.values()):
            raise ValueError(f"{where}: expected a base or a region with a file, got neither")
        rows.append(entry)
    if not rows:
        raise ValueError(f"table: {path}: expected at least one composition, got none")
    return rows


def _of_csv(content: str) -> list[TableRow]:
    lines = [line for line in csv.reader(io.StringIO(content, newline=""), strict=True) if any(map(str.strip, line))]
    heads = [head.strip() for head in lines[0]] if lines else []
    if "name" not in heads or len(set(heads)) < len(heads):
        raise ValueError(f"expected a first line of different columns, name among them, got {', '.join(heads) or 'nothing'}")
    rows = []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(heads):
            raise ValueError(f"row {number}: expected {len(heads)} cells, got {len(line)}")
        cells = {head: cell.strip() for head, cell in zip(heads, line, strict=True) if cell.strip()}
        name, base = cells.pop("name", ""), cells.pop("base", None)
        rows.append(TableRow(name, base, {head: None if cell == "none" else cell for head, cell in cells.items()}))
    return rows


def _of_json(content: str) -> list[TableRow]:
    given = json.loads(content)
    if not isinstance(given, list):
        raise ValueError(f"expected a list of compositions, got {type(given).__name__}")
    return [_entry(number, entry) for number, entry in enumerate(given, 1)]


def _entry(number: int, entry: Any) -> TableRow:
    found = entry.get("regions", {}) if isinstance(entry, dict) else None
    regions: dict[str, Any] = found if isinstance(found, dict) else {"": 0}
    right = isinstance(entry, dict) and entry.keys() <= {"name", "base", "regions"} and isinstance(entry.get("name"), str)
    texts = [entry.get("base"), *regions.values()] if right else []
    if not right or not all(isinstance(text, str | None) for text in texts):
        raise ValueError(f"row {number}: expected name, base and regions (region: file or null), got {entry!r:.80}")
    return TableRow(entry["name"], entry.get("base"), {n: None if f == "none" else f for n, f in regions.items()})


def _many(options: Options) -> int:
    """Make the compositions of a table."""
    assert options.table is not None and options.out_dir is not None
    rows = read_table(options.table)
    given = [file for row in rows for file in (row.base, *row.regions.values()) if file]
    files = {row.name: (options.out_dir / f"{row.name}.png", options.out_dir / f"{row.name}_labels.png") for row in rows}
    outputs = {f"out_dir: {path.name}": path for pair in files.values() for path in pair}
    check_outputs(outputs, [options.table, *given], options.labels)
    opened = Opened(options)
    work: list[tuple[TableRow, dict[str, Any], Picture | None]] = []
    for number, row in enumerate(rows, 1):
        try:
            for name in row.regions:
                check_region(name, "regions", opened.mixsyn.classes)
            regions: dict[str, Any] = dict(opened.regions(row.regions))
            if options.coupled:
                regions = opened.mixsyn.coupled(regions)
            base = opened.picture(row.base) if row.base else None
            opened.mixsyn.sources_of(regions, base)
        except ValueError as error:
            raise ValueError(f"table: {options.table}: row {number} ({row.name}): {error}") from None
        work.append((row, regions, base))
    opened.reader.check_labels_used()
    with progress("composing") as at:
        for done, (row, regions, base) in enumerate(work):
            at(done, len(work))
            result = opened.result(opened.mixsyn.compose(regions, base), row.base)
            image, labels = files[row.name]
            write_image(result.image, image)
            write_labels(result.labels, len(opened.mixsyn.classes), labels)
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
    mixsyn: MixSyn,
    composed: Composed,
    named: Mapping[str, Picture],
    sequential: Sequence[tuple[str, Picture | None]] = (),
    others: Sequence[Sequence[np.ndarray]] = (),
) -> np.ndarray:
    """Draw sources with their regions outlined, then composition, copy-paste and result, then the sequential transfer.

    Args:
        mixsyn: the model.
        composed: what it made.
        named: the regions that were named, as opposed to those of the base.
        sequential: of :func:`sequential_steps`.
        others: further rows, of other generators.

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
    for row in (after, *map(list, others)):
        rows += [row[i : i + _ROW] for i in range(0, len(row), _ROW)]
    return contact_sheet(rows)
