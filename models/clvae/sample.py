"""Many images of one label map: global code and codes of all classes drawn from the prior (CLVAE, Fig. 1 and 7).

    mixsyn-fast clvae sample --sheet sheet.png                               a label map drawn by code, the shipped model
    mixsyn-fast clvae sample --image a.jpg --kind folder --count 12 --seed 3 --sheet sheet.png
    mixsyn-fast clvae sample --label-map a_labels.png --kind folder --sheet sheet.png

Image i is that of seed + i, whatever the count. --kind and label maps: see `mixsyn-fast clvae reconstruct --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.options import (
    TargetOptions,
    check_outputs,
    check_png,
    files_of,
    open_model,
    write_image,
    write_sheet,
)
from ..pictures.sheets import region_legend
from ..settings import at_least
from ..sheets import contact_sheet
from .model import CLVAE, Made
from .pictures import drawn_pictures, image_cell, labels_cell, size_of

_ROW = 7  # cells in a row of the sheet


@dataclass(frozen=True)
class Options(TargetOptions):
    """Options of the command."""

    count: int = 6  # number of images
    seed: int = 0  # of the first image's codes, and of the picture that is drawn where none is given
    out: Path = Path("samples")  # folder of the images, which are called sample_<seed>.png
    codes_out: Path | None = None  # folder to write the codes of every image to (safetensors)
    sheet: Path | None = None  # also write a contact sheet: label map, then the images (PNG)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, count=1)
        check_png(self, "sheet")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    names = [f"sample_{options.seed + i}" for i in range(options.count)]
    images = files_of(options.out, names, ".png", "out")
    codes = files_of(options.codes_out, names, ".safetensors", "codes_out") if options.codes_out else {}
    inputs = [options.target] if options.target else []
    check_outputs({**images, **codes, "sheet": options.sheet}, inputs, options.labels)
    clvae = open_model(CLVAE, options.model, options.device)
    reader = options.reader(clvae.classes, clvae.size)
    target = reader.read(options.target) if options.target else drawn_pictures(clvae, 1, options.seed)[0]
    reader.check_labels_used()
    with progress("sampling"):
        made = clvae.sample(target.labels, options.count, options.seed)
    for each, path in zip(made, images.values(), strict=True):
        write_image(each.image, path)
    for each, path in zip(made, codes.values(), strict=False):
        each.codes.save(path)
        print(f"written: {path}")
    if options.sheet:
        write_sheet(sheet(clvae, made, options.seed), options.sheet)
    return 0


def sheet(clvae: CLVAE, made: Sequence[Made], seed: int) -> np.ndarray:
    """Draw the label map, then its images, the first of which is that of `seed`.

    Returns:
        (H, W, 3) uint8.
    """
    labels = made[0].labels
    cells = [image_cell(clvae, each.image, f"seed {seed + i}") for i, each in enumerate(made)]
    cells = [labels_cell(clvae, labels), *cells]
    rows = [cells[i : i + _ROW] for i in range(0, len(cells), _ROW)]
    rows[0].append(region_legend([labels], clvae.classes, size_of(clvae)[0]))
    return contact_sheet(rows)
