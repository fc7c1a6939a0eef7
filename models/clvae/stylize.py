"""The image of a label map in the style of other pictures: classes that both have take their codes (CLVAE, Fig. 12).

    mixsyn-fast clvae stylize --sheet sheet.png                              pictures drawn by code, the shipped model
    mixsyn-fast clvae stylize --image a.jpg --style b.jpg --style c.jpg --kind folder --sheet sheet.png

Codes of classes that a style picture lacks are drawn from the prior. On the sheet, the classes that it shares are outlined.
--kind and label maps: see `mixsyn-fast clvae reconstruct --help`.
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
from ..pictures.picture import Picture
from ..pictures.sheets import captioned, lines_for, outlined, region_legend, source_colour
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import CLVAE, Made
from .pictures import drawn_pictures, image_cell, labels_cell, listed, size_of

_DRAWN = 3  # styles that are drawn where none are given


@dataclass(frozen=True)
class Options(TargetOptions):
    """Options of the command."""

    style: tuple[str, ...] = repeated()  # picture whose style is taken; once per result
    seed: int = 0  # of codes that no style picture has, and of the pictures that are drawn where none are given
    out: Path = Path("stylized")  # folder of the images, which are called as their style pictures
    sheet: Path | None = None  # also write a contact sheet: per style label map, style picture, image (PNG)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")
        if self.target and not self.style:
            raise ValueError("style: expected at least one picture, got none")
        if self.style and not self.target:
            raise ValueError("image: expected a picture or --label-map to give the styles to, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_files(options, [Path(file).stem for file in options.style])
    clvae = open_model(CLVAE, options.model, options.device)
    reader = options.reader(clvae.classes, clvae.size)
    target = reader.read(options.target) if options.target else None
    styles = [reader.read(file) for file in options.style]
    reader.check_labels_used()
    if target is None:
        target, *styles = drawn_pictures(clvae, _DRAWN + 1, options.seed)
    paths = check_files(options, [style.name for style in styles])
    with progress("stylizing"):
        made = [clvae.stylize(target.labels, style.image, style.labels, options.seed) for style in styles]
    for each, style in zip(made, styles, strict=True):
        print(f"{style.name}: gives {listed(shared(clvae, each))}; drawn: {listed(each.sampled)}")
    for each, path in zip(made, paths, strict=True):
        write_image(each.image, path)
    if options.sheet:
        write_sheet(sheet(clvae, target, styles, made), options.sheet)
    return 0


def check_files(options: Options, names: Sequence[str]) -> list[Path]:
    """Return the files of the images; ValueError where they cannot be."""
    images = files_of(options.out, names, ".png", "out")
    inputs = [file for file in (options.target, *options.style) if file]
    check_outputs({**images, "sheet": options.sheet}, inputs, options.labels)
    return list(images.values())


def shared(clvae: CLVAE, made: Made) -> list[str]:
    """Return the classes of a result that came from its style picture."""
    return [name for name in clvae.present(made.labels) if name not in made.sampled]


def sheet(clvae: CLVAE, target: Picture, styles: Sequence[Picture], made: Sequence[Made]) -> np.ndarray:
    """Draw a row per style: label map, style picture with the classes that it gives outlined, image.

    Returns:
        (H, W, 3) uint8.
    """
    size = size_of(clvae)
    given = [shared(clvae, each) for each in made]
    says = [f"style {style.name}: {listed(names)}" for style, names in zip(styles, given, strict=True)]
    after = [f"drawn: {listed(each.sampled)}" for each in made]
    lines = lines_for([*says, *after], size[1])
    rows = []
    for i, (style, each) in enumerate(zip(styles, made, strict=True)):
        regions = [clvae.classes.index(name) for name in given[i]]
        drawn = outlined(style, regions, source_colour(i), size)
        rows.append(
            [
                labels_cell(clvae, target.labels, f"label map {target.name}", lines),
                captioned(drawn, says[i], lines=lines),
                image_cell(clvae, each.image, after[i], lines),
            ]
        )
    rows[0].append(region_legend([target.labels, *(style.labels for style in styles)], clvae.classes, size[0]))
    return contact_sheet(rows)
