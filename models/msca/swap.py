"""All label maps in the styles of all pictures: a matrix whose diagonal makes every picture of itself (MSCA, Fig. 9, 14).

    mixsyn-fast msca swap --sheet swap.png                                   pictures drawn by code, the shipped model
    mixsyn-fast msca swap --picture photos --kind folder --sheet swap.png    a folder of pictures with label maps
    mixsyn-fast msca swap --picture a.jpg --picture b.jpg --exemplar c.jpg --kind folder

Each picture's half, as label map and as exemplar, is computed once. --kind and label maps: see
`mixsyn-fast msca synthesize --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.options import Reader, check_outputs, files_of, picture_files, write_image, write_sheet
from ..pictures.picture import Picture
from ..pictures.sheets import region_legend
from ..settings import repeated
from ..sheets import contact_sheet
from .model import MSCA, Made
from .pictures import (
    ReportOptions,
    check_size,
    drawn_pictures,
    exemplar_size_in,
    image_cell,
    labels_cell,
    scene_of,
    timed,
    write_report,
)

_DRAWN = 4  # pictures that are drawn where none are given


@dataclass(frozen=True)
class Options(ReportOptions):
    """Options of the command."""

    picture: tuple[str, ...] = repeated()
    """picture whose label map is made, or a folder of such; once per picture; none: pictures drawn by code"""
    exemplar: tuple[str, ...] = repeated()
    """picture that gives a style, or a folder of such; once per exemplar; none: those of --picture"""
    size: tuple[int, ...] | None = None
    """height and width of the images in pixels, multiples of 16; one number for both; none: the model's"""
    out: Path = Path("swapped")  # folder of the images, <label map>_as_<exemplar>.png

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        check_size(self.size)
        if self.exemplar and not self.picture:
            raise ValueError("picture: expected at least one picture whose label map takes the styles, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files, theirs = picture_files(options.picture), picture_files(options.exemplar)
    check_files(options, [*files, *theirs], *([Path(file).stem for file in each] for each in (files, theirs or files)))
    msca = options.open()
    reader = Reader(msca.classes, None, options, options.device)
    pictures, exemplars = ([reader.read(file) for file in each] for each in (files, theirs or files))
    reader.check_labels_used()
    size = None if options.size is None else (options.size[0], options.size[-1])
    if not pictures:
        pictures = exemplars = drawn_pictures(msca, _DRAWN, options.seed, size)
    names = [[picture.name for picture in each] for each in (pictures, exemplars)]
    paths = check_files(options, [*files, *theirs], *names)
    with progress("swapping styles"):
        maps, scenes = [picture.labels for picture in pictures], [scene_of(exemplar) for exemplar in exemplars]
        made, seconds = timed(msca.swap, maps, scenes, size=size)
    for each, path in zip([each for row in made for each in row], paths, strict=True):
        write_image(each.image, path)
    found = {
        "label_maps": names[0],
        "exemplars": names[1],
        "seconds": seconds,
        "exemplars_computed": sum(each.exemplars for row in made for each in row),
        "label_maps_computed": sum(each.layouts for row in made for each in row),
    }
    print(f"{len(paths)} images in {seconds:.2f} s")
    if options.sheet:
        write_sheet(sheet(msca, pictures, exemplars, made), options.sheet)
    write_report(options, msca, found)
    return 0


def check_files(options: Options, files: Sequence[str], names: Sequence[str], styles: Sequence[str]) -> list[Path]:
    """Return the files of the images, row by row; ValueError where they cannot be."""
    images = files_of(options.out, [f"{name}_as_{style}" for name in names for style in styles], ".png", "out")
    check_outputs({**images, "sheet": options.sheet, "json": options.json}, files, options.labels)
    return list(images.values())


def sheet(
    msca: MSCA, pictures: Sequence[Picture], exemplars: Sequence[Picture], made: Sequence[Sequence[Made]]
) -> np.ndarray:
    """Draw the exemplars in the first row, the label maps in the first column, their images where they meet.

    Returns:
        (H, W, 3) uint8.
    """
    shown = [msca.seen(exemplar) for exemplar in exemplars]
    legend = region_legend([row[0].labels for row in made], msca.classes, msca.size[0])
    sizes = [exemplar_size_in(msca, exemplar) for exemplar in shown]
    styles = [
        image_cell(exemplar.image, f"style of {exemplar.name}", size=size)
        for exemplar, size in zip(shown, sizes, strict=True)
    ]
    rows = [[legend, *styles]]
    for picture, row in zip(pictures, made, strict=True):
        cells = [labels_cell(msca, row[0].labels, f"label map {picture.name}")]
        for exemplar, each in zip(exemplars, row, strict=True):
            cells.append(image_cell(each.image, "of itself" if exemplar is picture else f"as {exemplar.name}"))
        rows.append(cells)
    return contact_sheet(rows)
