"""Reconstruct pictures from their latent codes: one per class and per level, and a global one (CLVAE, Fig. 6).

    mixsyn-fast clvae reconstruct --sheet sheet.png                          pictures drawn by code, the shipped model
    mixsyn-fast clvae reconstruct --image a.jpg --image b.jpg --kind folder --sheet sheet.png --codes-out codes
    mixsyn-fast clvae reconstruct --data datasets/cmp_facade --limit 8 --sheet sheet.png --json figures.json

Label maps stand beside the images (a_labels.png, or ../labels/a.png), or are named with --labels. --kind says what their
pixel values mean: "folder" 0 to N - 1 in the order of the model's classes, "cmp_facade" 1 to 12 as that set stores them.
Codes are read again by `mixsyn-fast clvae edit --codes FILE`, and by ImageCodes.load.
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
    files_of,
    open_model,
    pictures_of_set,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import region_legend
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import CLVAE, Made
from .pictures import drawn_pictures, image_cell, labels_cell, size_of

_DRAWN = 4  # pictures that are drawn where none are given


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()  # picture to reconstruct; once per picture
    data: str | None = None  # folder of a data set, whose pictures are reconstructed
    split: Literal["train", "val", "test", "all"] = "all"  # part of the set of --data
    limit: int = 8  # pictures of the set, the first ones
    out: Path = Path("reconstructed")  # folder of the images, which are called as their pictures
    codes_out: Path | None = None  # folder to write the codes of every picture to (safetensors)
    sheet: Path | None = None  # also write a contact sheet: label map, picture, reconstruction (PNG)
    seed: int = 0  # of the pictures that are drawn where none are given
    json: Path | None = None  # also write how far each picture is from its reconstruction (JSON; grey levels 0 to 255, dB)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, limit=1)
        check_png(self, "sheet")
        if self.image and self.data:
            raise ValueError(f"data: expected it or --image, got both: {self.data} and {', '.join(self.image)}")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_files(options, [Path(file).stem for file in options.image])
    clvae = open_model(CLVAE, options.model, options.device)
    reader = Reader(clvae.classes, clvae.size, options, options.device)
    pictures = [reader.read(file) for file in options.image]
    reader.check_labels_used()
    if options.data:
        pictures = pictures_of_set(clvae.classes, clvae.size, options.data, options, options.split, options.limit)
    elif not pictures:
        pictures = drawn_pictures(clvae, _DRAWN, options.seed)
    images, codes = check_files(options, [picture.name for picture in pictures])
    with progress("reconstructing"):
        made = [clvae.reconstruct(picture.image, picture.labels) for picture in pictures]
    found = [numbers(clvae, picture, each) for picture, each in zip(pictures, made, strict=True)]
    for row in found:
        print(
            f"{row['name']}: mean difference {row['mean_difference']:.1f} of 255 grey levels, PSNR {row['psnr']:.1f} dB; "
            f"{len(row['classes'])} classes"
        )
    for each, path in zip(made, images, strict=True):
        write_image(each.image, path)
    for each, path in zip(made, codes, strict=False):
        each.codes.save(path)
        print(f"written: {path}")
    if options.sheet:
        write_sheet(sheet(clvae, pictures, made), options.sheet)
    if options.json:
        about = {"model": options.model or "shipped", "size": list(clvae.size)}
        write_json(options.json, {**about, "pictures": found})
        print(f"written: {options.json}")
    return 0


def numbers(clvae: CLVAE, picture: Picture, made: Made) -> dict[str, Any]:
    """Return how far a reconstruction is from its picture: mean absolute difference in grey levels, PSNR in dB."""
    about = byte_difference(made.image, picture.image)
    return {"name": picture.name, **about, "classes": list(clvae.present(made.labels))}


def check_files(options: Options, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the files of images and of codes, none of these unless asked for; ValueError where they cannot be."""
    images = files_of(options.out, names, ".png", "out")
    codes = files_of(options.codes_out, names, ".safetensors", "codes_out") if options.codes_out else {}
    check_outputs({**images, **codes, "sheet": options.sheet, "json": options.json}, options.image, options.labels)
    return list(images.values()), list(codes.values())


def sheet(clvae: CLVAE, pictures: Sequence[Picture], made: Sequence[Made]) -> np.ndarray:
    """Draw a row per picture: label map, picture, reconstruction.

    Returns:
        (H, W, 3) uint8.
    """
    rows = [
        [
            labels_cell(clvae, picture.labels),
            image_cell(clvae, picture.image, picture.name),
            image_cell(clvae, each.image, "reconstruction"),
        ]
        for picture, each in zip(pictures, made, strict=True)
    ]
    rows[0].append(region_legend([picture.labels for picture in pictures], clvae.classes, size_of(clvae)[0]))
    return contact_sheet(rows)
