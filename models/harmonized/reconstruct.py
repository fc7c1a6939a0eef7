"""Reconstruct pictures from the codes of their regions (Sec. 4.3, Fig. 6).

    mixsyn-fast harmonized reconstruct --sheet sheet.png                     pictures drawn by code, the shipped model
    mixsyn-fast harmonized reconstruct --image photos --parser parser.pth --sheet sheet.png --json figures.json
    mixsyn-fast harmonized reconstruct --data datasets/celebamask_hq --limit 8 --sheet sheet.png

--image takes files and folders. Label maps and --kind: see `mixsyn-fast harmonized transfer --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..metrics import byte_difference
from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    open_model,
    pictures_at,
    pictures_of_set,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import region_legend
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Harmonized, Made
from .pictures import drawn_pictures, files_of, image_cell, labels_cell, size_of

_DRAWN = 4  # pictures that are drawn where none are given


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()  # picture to reconstruct, or a folder of them; once per picture
    data: str | None = None  # folder of a data set, whose pictures are reconstructed
    split: Literal["train", "val", "test", "all"] = "all"  # part of the set of --data
    limit: int = 8  # pictures of the set, the first ones
    out: Path = Path("reconstructed")  # folder of the images, which are called as their pictures
    sheet: Path | None = None  # also write a contact sheet: label map, picture, reconstruction (PNG)
    json: Path | None = None  # also write how far each picture is from its reconstruction (JSON; grey levels 0 to 255, dB)
    seed: int = 0  # of the pictures that are drawn where none are given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, limit=1)
        check_png(self, "sheet")
        if self.image and self.data:
            raise ValueError(f"data: expected it or --image, got both: {self.data} and {', '.join(self.image)}")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = pictures_at(options.image, "image")
    _outputs(options, [Path(file).stem for file in files], files)
    model = open_model(Harmonized, options.model, options.device)
    reader = Reader(model.classes, model.size, options, options.device)
    with progress("reading pictures"):
        pictures = [reader.read(file) for file in files]
        reader.check_labels_used()
        if options.data:
            pictures = pictures_of_set(model.classes, model.size, options.data, options, options.split, options.limit)
    pictures = pictures or drawn_pictures(model, _DRAWN, options.seed)
    images = _outputs(options, [picture.name for picture in pictures], files)
    with progress("reconstructing"):
        made = [model.reconstruct(picture.image, picture.labels) for picture in pictures]
    found = [numbers(model, picture, each) for picture, each in zip(pictures, made, strict=True)]
    for row in found:
        print(
            f"{row['name']}: mean difference {row['mean_difference']:.1f} of 255 grey levels, PSNR {row['psnr']:.1f} dB; "
            f"{len(row['regions'])} regions"
        )
    for each, path in zip(made, images.values(), strict=True):
        write_image(each.image, path)
    if options.sheet:
        write_sheet(sheet(model, pictures, made), options.sheet)
    if options.json:
        about = {"model": options.model or "shipped", "size": list(model.size)}
        write_json(options.json, {**about, "pictures": found})
        print(f"written: {options.json}")
    return 0


def numbers(model: Harmonized, picture: Picture, made: Made) -> dict[str, Any]:
    """Return how far a reconstruction is from its picture: mean absolute difference in grey levels, PSNR in dB."""
    about = byte_difference(made.image, picture.image)
    return {"name": picture.name, **about, "regions": list(model.present(made.labels))}


def _outputs(options: Options, names: Sequence[str], inputs: Sequence[str]) -> dict[str, Path]:
    """Return the files of images; ValueError where they cannot be."""
    images = files_of(options.out, names, "out")
    check_outputs({**images, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    return images


def sheet(model: Harmonized, pictures: Sequence[Picture], made: Sequence[Made]) -> np.ndarray:
    """Draw a row per picture: label map, picture, reconstruction.

    Returns:
        (H, W, 3) uint8.
    """
    rows = [
        [
            labels_cell(model, picture.labels),
            image_cell(model, picture.image, picture.name),
            image_cell(model, each.image, "reconstruction"),
        ]
        for picture, each in zip(pictures, made, strict=True)
    ]
    rows[0].append(region_legend([picture.labels for picture in pictures], model.classes, size_of(model)[0]))
    return contact_sheet(rows)
