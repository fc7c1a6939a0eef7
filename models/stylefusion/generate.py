"""Random images, one code for all regions of each (StyleFusion).

    mixsyn-fast stylefusion generate --sheet sheet.png                  the shipped model
    mixsyn-fast stylefusion generate --seed 7 --count 4 --codes-out codes --sheet sheet.png

Image i is that of seed + i, whatever the count; its codes are written with --codes-out, one file an image, for `fuse`,
`pose` and `edit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixsyn_fast.progress import progress

from ..pictures.options import ModelOptions, check_outputs, check_png, open_model, write_image, write_sheet
from ..settings import at_least
from ..sheets import contact_sheet
from .model import StyleFusion
from .pictures import cell, mask_cell, region_key, save_codes

_ROW = 6  # images in a row of the sheet


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    count: int = 6  # number of images
    seed: int = 0  # of the first image
    out: Path = Path("generated")  # folder of the images, which are called seed_<seed>.png
    codes_out: Path | None = None  # folder to write the codes of every image to (safetensors)
    sheet: Path | None = None  # also write a contact sheet: images, and below them their regions (PNG)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, count=1)
        check_png(self, "sheet")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    names = [f"seed_{options.seed + i}" for i in range(options.count)]
    images = {f"out: {name}": options.out / f"{name}.png" for name in names}
    codes = {f"codes_out: {name}": options.codes_out / f"{name}.safetensors" for name in names if options.codes_out}
    check_outputs({**images, **codes, "sheet": options.sheet})
    fusion = open_model(StyleFusion, options.model, options.device)
    with progress("generating"):
        made = [fusion.generate(options.seed + i) for i in range(options.count)]
    for each, path in zip(made, images.values(), strict=True):
        write_image(each.image, path)
    for each, path in zip(made, codes.values(), strict=False):
        save_codes(fusion, each.codes, path)
    if options.sheet:
        rows = []
        for begin in range(0, len(made), _ROW):
            part = list(enumerate(made))[begin : begin + _ROW]
            rows.append([cell(fusion, each.image, f"seed {options.seed + i}") for i, each in part])
            masks = [mask_cell(fusion, each.codes) for _, each in part]
            if masks[0] is not None:
                rows.append([mask for mask in masks if mask is not None])
        key = region_key(fusion)
        write_sheet(contact_sheet([[*rows[0], *([] if key is None else [key])], *rows[1:]]), options.sheet)
    return 0
