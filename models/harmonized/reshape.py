"""A picture in another shape: its styles with an edited label map (Sec. 5, Fig. 10 a).

    mixsyn-fast harmonized reshape --sheet sheet.png                         pictures drawn by code, the shipped model
    mixsyn-fast harmonized reshape --image me.jpg --new-labels edited.png --kind folder --sheet sheet.png

Edit the picture's label map in any paint program (`mixsyn-fast parse` makes one of a photo), save it as PNG with the same
pixel values, and give it as --new-labels. A region that the picture lacks takes its style from --reference, else from the
mapping network of its group; where there is neither, the command says so. Without pictures the shape is that of another
drawn one, which is the reference too. Label maps and --kind: see `mixsyn-fast harmonized transfer --help`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

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
from ..pictures.sheets import region_legend
from ..settings import at_least
from ..sheets import contact_sheet
from .model import Harmonized, Made, listed
from .pictures import drawn_pictures, image_cell, labels_cell, size_of


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: str | None = None  # picture whose styles are kept; none: one drawn by code
    new_labels: str | None = None  # the edited label map (PNG), of the picture's size
    reference: str | None = None  # picture that gives the styles of regions that the picture lacks
    out: Path = Path("reshaped.png")  # the image
    sheet: Path | None = None  # also write a contact sheet: picture, both label maps, reconstruction, result (PNG)
    json: Path | None = None  # also write where new regions have their styles from, and the seconds it took (JSON)
    seed: int = 0  # of styles that are drawn, and of the pictures that are drawn where none are given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")
        if bool(self.image) != bool(self.new_labels):
            name, needed = ("new_labels", "an edited label map") if self.image else ("image", "the picture to reshape")
            raise ValueError(f"{name}: expected {needed}, got none")
        if self.reference and not self.image:
            raise ValueError("image: expected the picture to reshape, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    inputs = [file for file in (options.image, options.new_labels, options.reference) if file]
    check_outputs({"out": options.out, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    model = open_model(Harmonized, options.model, options.device)
    alone = (f"{options.new_labels}={options.new_labels}",) if options.new_labels else ()
    reader = Reader(model.classes, model.size, replace(options, labels=(*options.labels, *alone)), options.device)
    reference: Picture | None = None
    if options.image and options.new_labels:
        picture, shape = reader.read(options.image), reader.read(options.new_labels)
        reference = reader.read(options.reference) if options.reference else None
    else:
        picture, shape = drawn_pictures(model, 2, options.seed)
        reference = shape
    reader.check_labels_used()
    before = model.reconstruct(picture.image, picture.labels)
    begin = time.perf_counter()
    with progress("reshaping"):
        made = model.reshape(
            picture.image,
            picture.labels,
            shape.labels,
            reference=None if reference is None else reference.image,
            reference_labels=None if reference is None else reference.labels,
            seed=options.seed,
        )
    seconds = time.perf_counter() - begin
    there = () if reference is None else model.present(reference.labels)
    sources = {name: "reference" if name in there else "mapping network" for name in made.regions}
    print(f"{seconds * 1e3:.0f} ms ({listed(made.ran)}); new regions: {listed([f'{n} ({s})' for n, s in sources.items()])}")
    write_image(made.image, options.out)
    if options.sheet:
        write_sheet(sheet(model, picture, before, made), options.sheet)
    if options.json:
        about: dict[str, Any] = {"model": options.model or "shipped", "image": options.image or picture.name}
        write_json(options.json, {**about, "seconds": seconds, "ran": list(made.ran), "new": sources})
        print(f"written: {options.json}")
    return 0


def sheet(model: Harmonized, picture: Picture, before: Made, made: Made) -> np.ndarray:
    """Draw the picture, its label map, the reconstruction; the new label map, the result.

    Returns:
        (H, W, 3) uint8.
    """
    first = [
        image_cell(model, picture.image, f"picture {picture.name}"),
        labels_cell(model, picture.labels),
        image_cell(model, before.image, "reconstruction"),
    ]
    moved = picture.labels != made.labels
    second = [
        image_cell(
            model, np.where(moved[..., None], 255, picture.image // 2).astype(np.uint8), "white: pixels of another region"
        ),
        labels_cell(model, made.labels, "new label map"),
        image_cell(model, made.image, "result"),
    ]
    first.append(region_legend([picture.labels, made.labels], model.classes, size_of(model)[0]))
    return contact_sheet([first, second])
