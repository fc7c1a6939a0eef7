"""A picture in another shape: its styles with an edited label map (Sec. 5, Fig. 10 a).

    mixsyn-fast harmonized reshape --sheet sheet.png                         pictures drawn by code, the shipped model
    mixsyn-fast harmonized reshape --image me.jpg --new-labels edited.png --kind folder --sheet sheet.png

Edit the picture's label map in any paint program (`mixsyn-fast parse` makes one of a photo), save it as PNG with the same
pixel values, and give it as --new-labels; --image and --new-labels take files and folders, and maps of several pictures are
called as these. A region that the picture lacks takes its style from --reference, else from the
mapping network of its group; where there is neither, the command says so. Without pictures the shape is that of another
drawn one, which is the reference too. Label maps and --kind: see `mixsyn-fast harmonized transfer --help`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    pictures_at,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import region_legend
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Harmonized, Made, listed
from .pictures import drawn_pictures, image_cell, labels_cell, partners, result_files, size_of


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()
    """picture whose styles are kept, or a folder of them; once per picture; none: one drawn by code"""
    new_labels: tuple[str, ...] = repeated()
    """the edited label map (PNG), of the picture's size; of several pictures one called as each, or a folder of them"""
    reference: str | None = None  # picture that gives the styles of regions that a picture lacks
    out: Path = Path("reshaped.png")  # the image; of several pictures a folder of them, called as this without .png
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
    files = pictures_at(options.image, "image")
    maps = partners(files, options.new_labels, "new_labels")
    inputs = [*files, *maps, *([options.reference] if options.reference else [])]
    _outputs(options, [Path(file).stem for file in files], inputs)
    model = open_model(Harmonized, options.model, options.device)
    alone = tuple(f"{file}={file}" for file in maps)
    reader = Reader(model.classes, model.size, replace(options, labels=(*options.labels, *alone)), options.device)
    with progress("reading pictures"):
        work = [(reader.read(file), reader.read(new)) for file, new in zip(files, maps, strict=True)]
        reference = reader.read(options.reference) if options.reference else None
    if not work:
        picture, shape = drawn_pictures(model, 2, options.seed)
        work, reference = [(picture, shape)], shape
    reader.check_labels_used()
    there = () if reference is None else model.present(reference.labels)
    for picture, shape in work:
        lacking = [name for name in model.present(shape.labels) if name not in model.present(picture.labels)]
        without = [name for name in lacking if name not in there and name not in model.drawable()]
        if without:
            raise ValueError(
                f"new_labels: {listed(without)}: {picture.name} has no such region to take a style from, and no mapping "
                f"network makes one (of {listed(model.drawable())}); give a --reference that has it"
            )
    paths = _outputs(options, [picture.name for picture, _ in work], inputs)
    cells: list[list[np.ndarray]] = []
    table: list[dict[str, Any]] = []
    with progress("reshaping") as at:
        for (picture, shape), path in zip(work, paths.values(), strict=True):
            at(len(table), len(work))
            before = model.reconstruct(picture.image, picture.labels)
            begin = time.perf_counter()
            made = model.reshape(
                picture.image,
                picture.labels,
                shape.labels,
                reference=None if reference is None else reference.image,
                reference_labels=None if reference is None else reference.labels,
                seed=options.seed,
            )
            seconds = time.perf_counter() - begin
            sources = {name: "reference" if name in there else "mapping network" for name in made.regions}
            new = listed([f"{name} ({source})" for name, source in sources.items()])
            print(f"{picture.name}: {seconds * 1e3:.0f} ms ({listed(made.ran)}); new regions: {new}")
            write_image(made.image, path)
            cells += rows_of(model, picture, before, made)
            table.append({"picture": picture.name, "seconds": seconds, "ran": list(made.ran), "new": sources})
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


def rows_of(model: Harmonized, picture: Picture, before: Made, made: Made) -> list[list[np.ndarray]]:
    """Draw the picture, its label map, the reconstruction; the new label map, the result.

    Returns:
        Rows of cells of a sheet.
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
    return [first, second]
