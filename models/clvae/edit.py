"""Edit objects and materials of a picture step by step: new latent codes for some classes or levels (CLVAE, Fig. 14, 15).

    mixsyn-fast clvae edit --sheet chain.png                                 pictures drawn by code, the shipped model
    mixsyn-fast clvae edit --image a.jpg --step door=sample --step window=b.jpg,wall=codes.safetensors@1,2 --sheet chain.png
    mixsyn-fast clvae edit --image a.jpg --material window --material-sheet material.png

A step gives classes new codes: "sample" (drawn from the prior; other ones at every step), those of another picture, or those
of a file of --codes-out; "global" stands for the global code. @1,2 after a step, or --levels for all steps, changes these
levels alone: 1 is the finest. Every step begins with the codes of the one before: what it does not name keeps its codes bit
for bit, and only blocks of the generator from the first changed level on run. A step that takes a class from the picture
itself undoes its edits. The table says how far pixels moved inside and outside the classes that a step names (grey levels,
0 to 255). --kind and label maps: see `mixsyn-fast clvae reconstruct --help`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..metrics import Change, change_of_edit
from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    check_suffix,
    name_and_file,
    open_model,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import (
    captioned,
    contour,
    enlarged,
    enlarged_labels,
    lines_for,
    outlined,
    region_legend,
    source_colour,
)
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .codes import GLOBAL, ImageCodes
from .model import CLVAE, Edit, Made
from .pictures import check_class, drawn_pictures, image_cell, labels_cell, listed, load_codes, size_of

_GAIN = 4  # of the differences on the sheet
_SAMPLE = "sample"
_WALK = 3  # drawn codes that a row of the material sheet passes
_FORM = "CLASS=sample, CLASS=picture or CLASS=codes.safetensors"


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: str | None = None  # picture to edit; none: pictures drawn by code
    step: tuple[str, ...] = repeated()
    """CLASS=sample|FILE[,CLASS=...][@LEVEL,...]: new codes for these classes; once per step, in the order of the steps"""
    levels: tuple[int, ...] | None = None  # levels that steps without @ change, 1 is the finest; none: all
    codes: str | None = None  # file of --codes-out to begin with, instead of the picture's own codes
    keep: tuple[str, ...] = ()
    """classes whose pixels are copied from the picture into the results, as the paper does with faces (Sec. 4.4.2)"""
    interpolate: int = 0  # images on the way from the first codes to the last, beside --out as <name>_1.png and so on
    material: str | None = None  # class to draw the material sheet of: what every level alone changes of it (Fig. 15)
    material_sheet: Path = Path("material.png")  # the material sheet
    out: Path = Path("edited.png")  # image of the last step
    codes_out: Path | None = None  # also write the codes of the last step (safetensors)
    sheet: Path | None = None  # also write a contact sheet of all steps (PNG)
    json: Path | None = None  # also write the table (JSON; seconds, grey levels 0 to 255)
    seed: int = 0  # of codes that are drawn (step i takes seed + i), and of the pictures that are drawn where none are given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, interpolate=0)
        check_png(self, "out", "sheet", "material_sheet")
        check_suffix(self, ".safetensors", "codes_out")
        if self.image and not self.step and not self.material:
            raise ValueError(f"step: expected at least one {_FORM}, or --material CLASS; got none")
        if self.image is None and (self.step or self.codes):
            raise ValueError("image: expected a picture to edit, got none")
        if not self.step and self.image:
            for name in ("sheet", "json", "codes_out", "interpolate"):
                if getattr(self, name):
                    raise ValueError(f"{name}: needs --step, got none")


@dataclass(frozen=True)
class Wanted:
    """A step as it was asked for, inputs read."""

    edits: dict[str, str | ImageCodes | Picture]
    levels: tuple[int, ...] | None

    def __str__(self) -> str:
        """As text, for tables and sheets."""
        parts = [f"{name} = {_source(edit)}" for name, edit in self.edits.items()]
        levels = ", ".join(map(str, self.levels or ()))
        return ", ".join(parts) + (f" at level{'s' if ',' in levels else ''} {levels}" if levels else "")


@dataclass(frozen=True)
class Step:
    """One edit of a chain and what it took."""

    wanted: Wanted
    made: Made
    seconds: float
    change: Change
    """From the image before to this one, in grey levels (0 to 255)."""


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    asked = [split_step(step, options.levels) for step in options.step]
    files = [file for given, _ in asked for _, file in given if file != _SAMPLE]
    frames = [options.out.with_name(f"{options.out.stem}_{i + 1}.png") for i in range(options.interpolate)]
    outputs: dict[str, Path | None] = {name: getattr(options, name) for name in ("codes_out", "sheet", "json")}
    if options.material:
        outputs["material_sheet"] = options.material_sheet
    if options.step or options.image is None:
        outputs |= {"out": options.out} | {f"interpolate: {i + 1}": frame for i, frame in enumerate(frames)}
    check_outputs(outputs, [file for file in (options.image, options.codes, *files) if file], options.labels)
    clvae = open_model(CLVAE, options.model, options.device)
    reader = Reader(clvae.classes, clvae.size, options, options.device)
    for _, levels in (*asked, ((), options.levels)):
        check_levels(clvae, levels)
    if options.image:
        picture, file = reader.read(options.image), options.image
        wanted = [Wanted(read_step(clvae, reader, picture, file, given), levels) for given, levels in asked]
    else:
        picture, wanted = drawn_steps(clvae, options.seed, options.levels)
        file = picture.name
    reader.check_labels_used()
    for option, name in (*(("keep", name) for name in options.keep), ("material", options.material)):
        if name is not None:
            check_class(clvae, name, picture, file, option)
    check_kept(options.keep, wanted)
    if options.material and (options.material == GLOBAL or not clvae.levels):
        raise ValueError(
            f"material: expected a class of a model with levels, got {options.material}; levels: {clvae.levels}"
        )
    codes = load_codes(clvae, options.codes, "codes") if options.codes else None
    with progress("editing"):
        start, steps = chain(clvae, picture, wanted, options.seed, codes)
        between = frames_of(clvae, start, steps[-1].made, options.interpolate) if steps else []
    with_kept = [kept(clvae, made.image, picture, options.keep) for made in (start, *(step.made for step in steps))]
    between = [kept(clvae, image, picture, options.keep) for image in between]
    material = None
    if options.material:
        with progress("drawing the material sheet"):
            material = material_sheet(clvae, picture, options.material, options.seed, codes)
    if steps:
        print(table(steps))
        for image, path in zip((with_kept[-1], *between), (options.out, *frames), strict=True):
            write_image(image, path)
    if steps and options.codes_out:
        steps[-1].made.codes.save(options.codes_out)
        print(f"written: {options.codes_out}")
    if options.sheet:
        write_sheet(sheet(clvae, picture, start, steps, with_kept, between, options.keep), options.sheet)
    if material is not None:
        write_sheet(material, options.material_sheet)
    if options.json:
        found: dict[str, Any] = {
            "model": options.model or "shipped",
            "size": list(clvae.size),
            "image": file,
            "keep": list(options.keep),
            "steps": [numbers(step) for step in steps],
        }
        write_json(options.json, found)
        print(f"written: {options.json}")
    return 0


# --------------------------------------------------------------------------------------------------- what is asked for


def split_step(step: str, levels: tuple[int, ...] | None) -> tuple[list[tuple[str, str]], tuple[int, ...] | None]:
    """Split "door=sample,window=b.jpg@1,2" into (class, source) pairs and levels, those given where the step names none.

    Raises:
        ValueError: another form, or a class twice.
    """
    at = re.search(r"@(\d+(?:,\d+)*)$", step)  # "a@2.jpg" is a file
    if at:
        step, levels = step[: at.start()], tuple(map(int, at[1].split(",")))
    pairs = [name_and_file(entry, "step", _FORM) for entry in re.split(r",(?=[^,=/\\]+=)", step)]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"step: expected every class once in a step, got {step!r}")
    return pairs, levels


def check_levels(clvae: CLVAE, levels: Sequence[int] | None) -> None:
    """ValueError for levels that a model does not have."""
    if levels is not None and (not levels or not set(levels) <= set(clvae.levels)):
        there = listed(tuple(map(str, clvae.levels)))
        raise ValueError(f"levels: expected some of {there} (1 is the finest), got {listed(tuple(map(str, levels)))}")


def read_step(
    clvae: CLVAE, reader: Reader, picture: Picture, file: str, given: Sequence[tuple[str, str]]
) -> dict[str, str | ImageCodes | Picture]:
    """Read the sources of a step, and check that the picture and they have the classes.

    Raises:
        FileNotFoundError, ValueError: the message names the option, the file, what was expected and what came.
    """
    edits: dict[str, str | ImageCodes | Picture] = {}
    for name, source in given:
        check_class(clvae, name, picture, file, "step")
        if source == _SAMPLE:
            edits[name] = source
        elif source.endswith(".safetensors"):
            edits[name] = load_codes(clvae, source, "step")
        else:
            found = reader.read(source)
            check_class(clvae, name, found, source, "step")
            edits[name] = found
    return edits


def check_kept(keep: Sequence[str], wanted: Sequence[Wanted]) -> None:
    """ValueError for classes that are edited and kept."""
    both = sorted(set(keep) & {name for step in wanted for name in step.edits})
    if both or GLOBAL in keep:
        raise ValueError(f"keep: expected classes that no step edits, got {listed(both or [GLOBAL])}")


def drawn_steps(clvae: CLVAE, seed: int, levels: tuple[int, ...] | None = None) -> tuple[Picture, list[Wanted]]:
    """Draw a picture and edits of it, for who has none: large classes from the prior, from another picture, at one level.

    Raises:
        ValueError: nothing drawn has the model's classes.
    """
    picture, other = drawn_pictures(clvae, 2, seed)
    areas = np.bincount(picture.labels[picture.labels >= 0], minlength=len(clvae.classes))
    names = [clvae.classes[k] for k in np.argsort(-areas) if areas[k]]
    both = [name for name in names if name in clvae.present(other.labels)]
    steps = [Wanted({names[0]: _SAMPLE}, levels)]
    if both:
        steps.append(
            Wanted({both[min(2, len(both) - 1)]: other}, levels)
        )  # not the first step's again, where there are others
    if clvae.levels:
        steps.append(Wanted({names[0]: _SAMPLE}, levels or clvae.levels[:1]))
    return picture, steps


# ---------------------------------------------------------------------------------------------------------- the edits


def chain(
    clvae: CLVAE, picture: Picture, wanted: Sequence[Wanted], seed: int = 0, codes: ImageCodes | None = None
) -> tuple[Made, list[Step]]:
    """Edit a picture step by step.

    Args:
        clvae: the model.
        picture: to edit.
        wanted: the steps.
        seed: of what step 0 draws; the next one takes seed + 1 and so on.
        codes: to begin with; None: the picture's own.

    Returns:
        The start (the picture as the model makes it), and the steps.

    Raises:
        ValueError: as :meth:`CLVAE.edit`.
    """
    start = before = clvae.reconstruct(picture.image, picture.labels)
    if codes is not None:
        start = before = clvae.generate(picture.labels, codes)
    steps = []
    for i, step in enumerate(wanted):
        edits: dict[str, Edit] = {
            name: (edit.image, edit.labels) if isinstance(edit, Picture) else edit  # type: ignore[misc]
            for name, edit in step.edits.items()
        }
        begin = time.perf_counter()
        made = clvae.edit(picture.image, picture.labels, edits, step.levels, seed=seed + i, codes=before.codes)
        seconds = time.perf_counter() - begin
        steps.append(Step(step, made, seconds, change_of(clvae, before.image, made, tuple(step.edits))))
        before = made
    return start, steps


def change_of(clvae: CLVAE, before: np.ndarray, made: Made, names: Sequence[str]) -> Change:
    """Return how far pixels moved from an image to the next, inside and outside some classes ("global": everywhere)."""
    return change_of_edit(before, made.image, np.isin(made.labels, _regions(clvae, names)) | (GLOBAL in names))


def frames_of(clvae: CLVAE, start: Made, end: Made, count: int) -> list[np.ndarray]:
    """Return images (H, W, 3) of codes on the straight way from one image's to another's, neither end included."""
    codes = [start.codes.interpolated(end.codes, (i + 1) / (count + 1)) for i in range(count)]
    return [clvae.generate(end.labels, each).image for each in codes]


def kept(clvae: CLVAE, image: np.ndarray, picture: Picture, names: Sequence[str]) -> np.ndarray:
    """Copy the pixels of some classes from a picture into an image of its label map."""
    inside = np.isin(picture.labels, _regions(clvae, names))
    return np.where(inside[..., None], picture.image, image)


def numbers(step: Step) -> dict[str, Any]:
    """Return what was measured about a step, for JSON."""
    return {
        "edits": {name: _source(edit) for name, edit in step.wanted.edits.items()},
        "levels": None if step.wanted.levels is None else list(step.wanted.levels),
        "seconds": step.seconds,
        "encoded": step.made.encoded,
        "blocks": list(step.made.blocks),
        "change": step.change._asdict(),
    }


def table(steps: Sequence[Step]) -> str:
    """Return what every step took and changed, as text."""
    rows = [["step", "time", "blocks run", "encoded", "change inside", "outside", "share inside", "of pixels"]]
    for number, step in enumerate(steps, 1):
        change = step.change
        rows.append(
            [
                f"{number} {step.wanted}",
                f"{step.seconds * 1e3:.1f} ms",
                f"{len(step.made.blocks)}",
                f"{step.made.encoded}",
                f"{change.inside:.2f}",
                f"{change.outside:.2f}",
                f"{change.locality:.1%}",
                f"{change.region_share:.1%}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


# ------------------------------------------------------------------------------------------------------------- sheets


def sheet(
    clvae: CLVAE,
    picture: Picture,
    start: Made,
    steps: Sequence[Step],
    images: Sequence[np.ndarray],
    between: Sequence[np.ndarray] = (),
    keep: Sequence[str] = (),
) -> np.ndarray:
    """Draw the chain: picture, label map, reconstruction; per step image before and after, its change, and what was taken.

    Args:
        clvae: the model.
        picture: that is edited.
        start: the chain's first image.
        steps: its edits.
        images: of start and steps as they are written.
        between: images of an interpolation from the first to the last.
        keep: classes whose pixels are the picture's.

    Returns:
        (H, W, 3) uint8.
    """
    size = size_of(clvae)
    after = f"; {listed(keep)} copied from the picture" if keep else ""
    says = [f"{i}: {step.wanted}{after}" for i, step in enumerate(steps, 1)]
    moved = [f"change x {_GAIN}: {step.change.locality:.0%} inside {listed(tuple(step.wanted.edits))}" for step in steps]
    sources = [[(name, edit) for name, edit in step.wanted.edits.items() if isinstance(edit, Picture)] for step in steps]
    lines = lines_for([*says, *moved], size[1])
    legend = region_legend([start.labels], clvae.classes, size[0])
    rows = [
        [
            image_cell(clvae, picture.image, f"picture {picture.name}", lines),
            labels_cell(clvae, start.labels, lines=lines),
            image_cell(clvae, images[0], f"reconstruction{after}", lines),
            legend,
        ]
    ]
    for i, step in enumerate(steps):
        row = [
            image_cell(clvae, images[i], "before", lines),
            image_cell(clvae, images[i + 1], says[i], lines),
            _change_cell(clvae, images[i], images[i + 1], start.labels, tuple(step.wanted.edits), moved[i], lines),
        ]
        row += [_outlined(clvae, taken, (name,), f"{name} of {taken.name}", lines) for name, taken in sources[i]]
        rows.append(row)
    if between:
        on_the_way = [images[0], *between, images[-1]]
        weights = np.linspace(0, 1, len(on_the_way))
        cells = [image_cell(clvae, each, f"codes {w:.0%} of the way") for each, w in zip(on_the_way, weights, strict=True)]
        rows += [cells[i : i + 6] for i in range(0, len(cells), 6)]
    return contact_sheet(rows)


def material_sheet(clvae: CLVAE, picture: Picture, name: str, seed: int = 0, codes: ImageCodes | None = None) -> np.ndarray:
    """Draw what each level alone changes of a class (Fig. 15): a row per level, and one where all levels move together.

    A row walks the class's codes from the picture's own to three drawn ones, one after the other, half way and whole; below
    an image stands how far pixels inside and outside the class are from the first one, in grey levels. The last cell is the
    change from the first image to the last.

    Args:
        clvae: the model.
        picture: whose class it is.
        name: the class.
        seed: of the first drawn codes.
        codes: to begin with; None: the picture's own.

    Returns:
        (H, W, 3) uint8.
    """
    own = clvae.encode(picture.image, picture.labels) if codes is None else codes
    stops = [own, *(own.replaced({name: clvae.prior(seed + i)}) for i in range(_WALK))]
    first = clvae.generate(picture.labels, own)
    cells = [
        _outlined(clvae, picture, (name,), f"picture {picture.name}: {name}", 2),
        labels_cell(clvae, first.labels, lines=2),
    ]
    rows = [[*cells, region_legend([first.labels], clvae.classes, size_of(clvae)[0])]]
    for levels in (*((level,) for level in clvae.levels), clvae.levels):
        which = "all levels" if len(levels) > 1 else f"level {levels[0]}"
        row = [image_cell(clvae, first.image, f"{which}: own codes", 2)]
        for i in range(_WALK):
            for weight in (0.5, 1.0):
                there = stops[i].interpolated(stops[i + 1], weight, [name])
                made = clvae.generate(picture.labels, own.replaced({name: there}, levels))
                change = change_of(clvae, first.image, made, (name,))
                where = f"sample {i + 1}" if weight == 1 else f"half way to sample {i + 1}"
                row.append(image_cell(clvae, made.image, f"{where}: {change.inside:.1f} in, {change.outside:.1f} out", 2))
        says = f"change x {_GAIN} at sample {_WALK}: {change.locality:.0%} inside {name}"
        row.append(_change_cell(clvae, first.image, made.image, first.labels, (name,), says, 2))
        rows.append(row)
        if len(clvae.levels) == 1:
            break  # all levels are this one
    return contact_sheet(rows)


def _regions(clvae: CLVAE, names: Sequence[str]) -> list[int]:
    """Classes by number; the global code belongs to all of them."""
    return [k for k, name in enumerate(clvae.classes) if name in names or GLOBAL in names]


def _outlined(clvae: CLVAE, picture: Picture, names: Sequence[str], caption: str, lines: int) -> np.ndarray:
    drawn = outlined(picture, _regions(clvae, names), source_colour(0), size_of(clvae))
    return captioned(drawn, caption, lines=lines)


def _change_cell(
    clvae: CLVAE, before: np.ndarray, after: np.ndarray, labels: np.ndarray, names: Sequence[str], caption: str, lines: int
) -> np.ndarray:
    """The change, with the classes that it should lie in outlined."""
    change = (np.abs(after.astype(np.int16) - before) * _GAIN).clip(0, 255).astype(np.uint8)
    drawn = enlarged(change, size_of(clvae)).copy()
    inside = np.isin(enlarged_labels(labels, size_of(clvae)), _regions(clvae, names))
    drawn[contour(inside, 1)] = source_colour(0)
    return captioned(drawn, caption, lines=lines)


def _source(edit: str | ImageCodes | Picture) -> str:
    return edit if isinstance(edit, str) else edit.name if isinstance(edit, Picture) else "codes of a file"
