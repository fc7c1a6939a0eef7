"""Give regions of a picture the colours of brush strokes (Sec. 5, Fig. 10 b).

    mixsyn-fast harmonized recolour --sheet sheet.png                        a picture and strokes drawn by code
    mixsyn-fast harmonized recolour --image me.jpg --strokes strokes.png --kind folder --sheet sheet.png

Draw in a layer of its own above the picture, in any paint program, and save that layer alone as PNG with its transparency,
at the picture's size. A stroke paints the region in which most of it lies. --image and --strokes take files and folders;
strokes of several pictures are called as these. Label maps and --kind: see `mixsyn-fast harmonized transfer --help`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    pictures_at,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import lines_for
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Harmonized, Made, listed
from .pictures import (
    GAIN,
    change_cell,
    change_of,
    drawn_pictures,
    image_cell,
    line,
    numbers,
    partners,
    result_files,
    size_of,
)

_DRAWN = {"hair": (196, 62, 38), "u_lip": (150, 40, 160), "l_lip": (150, 40, 160), "skin": (226, 178, 140)}
"""Colours of strokes that are drawn where none are given; of other models the largest region's is the first."""


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()
    """picture to recolour, or a folder of them; once per picture; none: picture and strokes drawn by code"""
    strokes: tuple[str, ...] = repeated()
    """PNG with transparency, of the picture's size; of several pictures one called as each, or a folder of them"""
    out: Path = Path("recoloured.png")  # the image; of several pictures a folder of them, called as this without .png
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
    files = pictures_at(options.image, "image")
    layers = partners(files, options.strokes, "strokes")
    _outputs(options, [Path(file).stem for file in files], [*files, *layers])
    given = [read_layer(layer) for layer in layers]
    model = open_model(Harmonized, options.model, options.device)
    reader = Reader(model.classes, model.size, options, options.device)
    work: list[tuple[Picture, np.ndarray]] = []
    with progress("reading pictures"):
        for file, layer, strokes in zip(files, layers, given, strict=True):
            picture = reader.read(file)
            size = read_image(file).shape[:2]
            if strokes.shape[:2] != size:
                (height, width), (rows, columns) = size, strokes.shape[:2]
                raise ValueError(
                    f"strokes: {layer}: expected {width} x {height} (width x height), the picture's size, got "
                    f"{columns} x {rows}"
                )
            work.append((picture, model.fitted_strokes(strokes)))
    if not work:
        picture = drawn_pictures(model, 1, options.seed)[0]
        work.append((picture, drawn_strokes(model, picture, options.seed)))
    reader.check_labels_used()
    colours = [model.stroke_colours(picture.labels, strokes) for picture, strokes in work]
    paths = _outputs(options, [picture.name for picture, _ in work], [*files, *layers])
    cells: list[list[np.ndarray]] = []
    table: list[dict[str, Any]] = []
    with progress("recolouring") as at:
        for (picture, strokes), painted, path in zip(work, colours, paths.values(), strict=True):
            at(len(table), len(work))
            before = model.reconstruct(picture.image, picture.labels)
            begin = time.perf_counter()
            made = model.recolour(picture.image, picture.labels, strokes)
            seconds = time.perf_counter() - begin
            change = change_of(model, before.image, made, made.regions)
            print(line(picture.name, change, made, seconds))
            write_image(made.image, path)
            cells.append(cells_of(model, picture, strokes, before, made))
            said = {name: colour.tolist() for name, colour in painted.items()}
            table.append({"picture": picture.name, "colours": said, **numbers(change, made, seconds)})
    if options.sheet:
        write_sheet(contact_sheet(cells), options.sheet)
    if options.json:
        write_json(options.json, {"model": options.model or "shipped", "images": table})
        print(f"written: {options.json}")
    return 0


def _outputs(options: Options, names: Sequence[str], inputs: Sequence[str]) -> dict[str, Path]:
    """Return the files of images; ValueError where they cannot be."""
    images = result_files(options.out, names)
    check_outputs({**images, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    return images


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


def cells_of(model: Harmonized, picture: Picture, strokes: np.ndarray, before: Made, made: Made) -> list[np.ndarray]:
    """Draw the picture with the strokes on it, what was encoded for their colours, reconstruction, result and change.

    Args:
        model: the model.
        picture: that was recoloured, at the model's size.
        strokes: (H, W, 4) uint8, at the model's size.
        before: the reconstruction.
        made: the result.

    Returns:
        Cells of a row of a sheet.
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
    return row
