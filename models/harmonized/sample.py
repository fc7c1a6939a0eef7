"""New styles for regions of a picture, drawn at random; the rest stays (Sec. 4.6, Fig. 8).

    mixsyn-fast harmonized sample --sheet sheet.png                          a picture drawn by code, the shipped model
    mixsyn-fast harmonized sample --image me.jpg --region skin --count 12 --seed 3 --kind folder --sheet sheet.png

Codes are made by the mapping network of each group of regions, or with --by flow by its flow, which is slower. Image i is
that of seed + i, whatever the count, and of several pictures (--image takes files and folders) the styles of a seed are the
same in all. Label maps and --kind: see `mixsyn-fast harmonized transfer --help`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Harmonized, Made, listed
from .pictures import change_of, drawn_pictures, files_of, image_cell, numbers, regions_cell, regions_of

_ROW = 6  # cells in a row of the sheet


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()
    """picture whose regions get new styles, or a folder of them; once per picture; none: one drawn by code"""
    region: tuple[str, ...] = ("hair",)  # regions or groups that get new styles
    count: int = 6  # number of images
    by: Literal["mapping", "flow"] = "mapping"  # what makes the codes: mapping networks, or flows from their Gaussian
    seed: int = 0  # of the first image, and of the picture that is drawn where none is given
    out: Path = Path("samples")  # folder of the images: sample_<seed>.png; of several pictures <picture>/sample_<seed>.png
    sheet: Path | None = None  # also write a contact sheet: picture, reconstruction, images (PNG)
    json: Path | None = None  # also write what every image changed (JSON; seconds, grey levels 0 to 255)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, count=1)
        check_png(self, "sheet")
        if not self.region:
            raise ValueError("region: expected at least one region or group, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = pictures_at(options.image, "image")
    _outputs(options, [Path(file).stem for file in files], files)
    model = open_model(Harmonized, options.model, options.device)
    reader = Reader(model.classes, model.size, options, options.device)
    with progress("reading pictures"):
        pictures = [reader.read(file) for file in files] or drawn_pictures(model, 1, options.seed)
    reader.check_labels_used()
    for picture in pictures:
        chosen = regions_of(model, options.region, [picture], "region")
        without = [name for name in chosen if name not in model.drawable(options.by)]
        if without:
            what = "mapping network" if options.by == "mapping" else "flow"
            known = f"{listed(model.drawable(options.by))}{model.missing(options.by)}"
            raise ValueError(f"region: no {what} makes codes of {listed(without)}; there are some of {known}")
    paths = iter(_outputs(options, [picture.name for picture in pictures], files).values())
    cells: list[list[np.ndarray]] = []
    rows: list[dict[str, Any]] = []
    with progress("sampling") as at:
        for number, picture in enumerate(pictures):
            at(number, len(pictures))
            before = model.reconstruct(picture.image, picture.labels)
            begin = time.perf_counter()
            made = model.sample(picture.image, picture.labels, options.region, options.count, options.seed, by=options.by)
            seconds = (time.perf_counter() - begin) / options.count
            changes = [change_of(model, before.image, each, each.regions) for each in made]
            inside, outside = (np.mean([getattr(change, name) for change in changes]) for name in ("inside", "outside"))
            print(
                f"{f'{picture.name}: ' * (len(pictures) > 1)}{listed(made[0].regions)}: changed by {inside:.1f} grey levels "
                f"inside, {outside:.1f} outside; {seconds * 1e3:.0f} ms an image"
            )
            for each in made:
                write_image(each.image, next(paths))
            cells += rows_of(model, picture, before, made, options.seed)
            measured = [numbers(change, each, seconds) for change, each in zip(changes, made, strict=True)]
            rows += [{"picture": picture.name, "seed": options.seed + i, **row} for i, row in enumerate(measured)]
    if options.sheet:
        write_sheet(contact_sheet(cells), options.sheet)
    if options.json:
        about = {"model": options.model or "shipped", "pictures": files or [pictures[0].name], "by": options.by}
        write_json(options.json, {**about, "images": rows})
        print(f"written: {options.json}")
    return 0


def _outputs(options: Options, names: Sequence[str], inputs: Sequence[str]) -> dict[str, Path]:
    """Return the files of images, those of a picture one after the other; ValueError where they cannot be."""
    seeds = [f"sample_{options.seed + i}" for i in range(options.count)]
    images = files_of(options.out, [f"{name}/{each}" for name in names for each in seeds] if names[1:] else seeds, "out")
    check_outputs({**images, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    return images


def rows_of(model: Harmonized, picture: Picture, before: Made, made: Sequence[Made], seed: int) -> list[list[np.ndarray]]:
    """Draw the picture with its regions outlined, the reconstruction, then the images, the first of which is that of `seed`.

    Returns:
        Rows of cells of a sheet.
    """
    regions = made[0].regions
    cells = [
        regions_cell(model, picture, regions, f"{picture.name}: {listed(regions)}"),
        image_cell(model, before.image, "reconstruction"),
    ]
    cells += [image_cell(model, each.image, f"seed {seed + i}") for i, each in enumerate(made)]
    return [cells[i : i + _ROW] for i in range(0, len(cells), _ROW)]
