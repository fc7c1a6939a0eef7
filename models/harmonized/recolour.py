"""Give regions of a picture the colours of brush strokes (Sec. 5, Fig. 10 b).

    mixsyn-fast harmonized recolour --sheet sheet.png                        a picture and strokes drawn by code
    mixsyn-fast harmonized recolour --image me.jpg --strokes strokes.png --kind folder --sheet sheet.png

Draw in a layer of its own above the picture, in any paint program, and save that layer alone as PNG with its transparency,
at the picture's size. A stroke paints the region in which most of it lies. Label maps and --kind: see `mixsyn-fast
harmonized transfer --help`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..pictures.files import read_image, read_layer
from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    open_model,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import lines_for
from ..settings import at_least
from ..sheets import contact_sheet
from .model import Harmonized, Made, listed
from .pictures import GAIN, change_cell, change_of, drawn_pictures, image_cell, line, numbers, size_of

_DRAWN = {"hair": (196, 62, 38), "u_lip": (150, 40, 160), "l_lip": (150, 40, 160), "skin": (226, 178, 140)}
"""Colours of strokes that are drawn where none are given; of other models the largest region's is the first."""


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: str | None = None  # picture to recolour; none: picture and strokes drawn by code
    strokes: str | None = None  # PNG with transparency, of the picture's size
    out: Path = Path("recoloured.png")  # the image
    sheet: Path | None = None  # also write a contact sheet: picture with strokes, reconstruction, result, change (PNG)
    json: Path | None = None  # also write the colours and what changed (JSON; seconds, grey levels 0 to 255)
    seed: int = 0  # of the picture that is drawn where none is given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")
        if bool(self.image) != bool(self.strokes):
            name, needed = ("strokes", "a picture with strokes") if self.image else ("image", "the picture to recolour")
            raise ValueError(f"{name}: expected {needed}, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    inputs = [file for file in (options.image, options.strokes) if file]
    check_outputs({"out": options.out, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    strokes = read_layer(options.strokes) if options.strokes else None
    model = open_model(Harmonized, options.model, options.device)
    reader = Reader(model.classes, model.size, options, options.device)
    if options.image and strokes is not None:
        picture = reader.read(options.image)
        size = read_image(options.image).shape[:2]
        if strokes.shape[:2] != size:
            (height, width), (rows, columns) = size, strokes.shape[:2]
            raise ValueError(
                f"strokes: {options.strokes}: expected {width} x {height} (width x height), the picture's size, got "
                f"{columns} x {rows}"
            )
        strokes = model.fitted_strokes(strokes)
    else:
        picture = drawn_pictures(model, 1, options.seed)[0]
        strokes = drawn_strokes(model, picture, options.seed)
    reader.check_labels_used()
    colours = model.stroke_colours(picture.labels, strokes)
    before = model.reconstruct(picture.image, picture.labels)
    begin = time.perf_counter()
    with progress("recolouring"):
        made = model.recolour(picture.image, picture.labels, strokes)
    seconds = time.perf_counter() - begin
    change = change_of(model, before.image, made, made.regions)
    print(line(picture.name, change, made, seconds))
    write_image(made.image, options.out)
    if options.sheet:
        write_sheet(sheet(model, picture, strokes, before, made), options.sheet)
    if options.json:
        about: dict[str, Any] = {"model": options.model or "shipped", "image": options.image or picture.name}
        about["colours"] = {name: colour.tolist() for name, colour in colours.items()}
        write_json(options.json, {**about, **numbers(change, made, seconds)})
        print(f"written: {options.json}")
    return 0


def drawn_strokes(model: Harmonized, picture: Picture, seed: int) -> np.ndarray:
    """Draw strokes on a picture of the model's size: a bar through the middle of each region of :data:`_DRAWN` there is.

    Returns:
        (H, W, 4) uint8.
    """
    present = model.present(picture.labels)
    areas = {name: int((picture.labels == model.classes.index(name)).sum()) for name in present}
    colours = {name: colour for name, colour in _DRAWN.items() if name in present and name != "skin"}
    if not colours:
        colours = {max(areas, key=lambda name: areas[name]): _DRAWN["hair"]}
    strokes = np.zeros((*picture.labels.shape, 4), np.uint8)
    turn = np.roll(np.arange(3), seed)  # other colours for other seeds
    for name, colour in colours.items():
        inside = picture.labels == model.classes.index(name)
        rows = np.flatnonzero(inside.any(1))
        thick = max(1, len(rows) // 6)
        middle = rows[len(rows) // 3]
        bar = np.zeros_like(inside)
        bar[middle : middle + thick] = True
        strokes[bar & inside] = (*np.array(colour)[turn].tolist(), 255)
    return strokes


def sheet(model: Harmonized, picture: Picture, strokes: np.ndarray, before: Made, made: Made) -> np.ndarray:
    """Draw the picture with the strokes on it, what was encoded for their colours, reconstruction, result and change.

    Args:
        model: the model.
        picture: that was recoloured, at the model's size.
        strokes: (H, W, 4) uint8, at the model's size.
        before: the reconstruction.
        made: the result.

    Returns:
        (H, W, 3) uint8.
    """
    on = np.where(strokes[..., 3:] >= 128, strokes[..., :3], picture.image)
    change = change_of(model, before.image, made, made.regions)
    says = [
        f"strokes paint {listed(made.regions)}",
        f"change x {GAIN}: {change.inside:.0f} inside, {change.outside:.0f} outside",
    ]
    lines = lines_for(says, size_of(model)[1])
    shifted = model.recoloured(picture.image, picture.labels, strokes)
    row = [
        image_cell(model, picture.image, f"picture {picture.name}", lines),
        image_cell(model, on, says[0], lines),
        image_cell(model, shifted, "encoded for the new styles", lines),
        image_cell(model, before.image, "reconstruction", lines),
        image_cell(model, made.image, "result", lines),
        change_cell(model, before.image, made, made.regions, says[1], lines),
    ]
    return contact_sheet([row])
