"""An image whose style changes from place to place: from left to right, or as painted (MSCA, Fig. 7).

    mixsyn-fast msca spatial --sheet spatial.png                             pictures drawn by code, the shipped model
    mixsyn-fast msca spatial --image a.jpg --exemplar b.jpg --exemplar c.jpg --kind folder --direction vertical
    mixsyn-fast msca spatial --label-map a_labels.png --exemplar b.jpg --exemplar c.jpg --weight-map mask.png --kind folder

A weight map is a grey picture of the label map's size. One for two exemplars: black is the first, white the second. Or one
for each exemplar, in their order: at every pixel they are divided by their sum. --kind and label maps: see
`mixsyn-fast msca synthesize --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.files import read_image
from ..pictures.options import check_outputs, check_png, write_image, write_sheet
from ..pictures.picture import Picture
from ..pictures.sheets import captioned, cell_size, enlarged, region_legend, source_colour
from ..settings import repeated
from ..sheets import contact_sheet
from .model import MSCA, Mixed
from .pictures import (
    PairOptions,
    exemplar_files,
    exemplar_size_in,
    image_cell,
    labels_cell,
    numbers,
    scene_of,
    timed,
    write_report,
)

_DRAWN = 3  # exemplars that are drawn where none are given


@dataclass(frozen=True)
class Options(PairOptions):
    """Options of the command."""

    weight_map: tuple[str, ...] = repeated()
    """grey picture: how much of an exemplar there is at every pixel; once per exemplar, or one for two; none: --direction"""
    direction: Literal["horizontal", "vertical"] = "horizontal"  # where to the style changes, from the first to the last
    out: Path = Path("spatial.png")  # the image

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        check_png(self, "out")
        if self.weight_map and not self.exemplar:
            raise ValueError("exemplar: expected the pictures that the weight maps are of, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = exemplar_files(options.exemplar, 2)
    if options.weight_map and len(options.weight_map) != len(files) and (len(options.weight_map), len(files)) != (1, 2):
        raise ValueError(
            f"weight_map: expected one for each of {len(files)} exemplars, or one for two, got {len(options.weight_map)}"
        )
    inputs = [*files, *options.weight_map, *([options.target] if options.target else [])]
    check_outputs({"out": options.out, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    painted = [read_grey(file) for file in options.weight_map]
    check_painted(options.weight_map, painted)
    msca = options.open()
    target, exemplars = options.pair(msca, files, _DRAWN)
    for file, each in zip(options.weight_map, painted, strict=True):
        if each.shape != target.labels.shape:
            (height, width), (rows, columns) = target.labels.shape, each.shape
            raise ValueError(
                f"weight_map: {file} is {columns} x {rows} but the label map is {width} x {height} (width x height)"
            )
    maps = None if not painted else painted[0] if len(painted) == 1 else painted
    scenes = [scene_of(exemplar) for exemplar in exemplars]
    with progress("synthesizing"):
        made, seconds = timed(msca.spatial, target.labels, scenes, maps, options.direction, size=options.height_and_width)
    shares = made.weights.mean((1, 2))
    for exemplar, share in zip(exemplars, shares, strict=True):
        print(f"{exemplar.name}: {100 * share:.0f} % of the image")
    write_image(made.image, options.out)
    if options.sheet:
        write_sheet(sheet(msca, target, exemplars, made), options.sheet)
    names = [exemplar.name for exemplar in exemplars]
    found = {"label_map": target.name, "exemplars": names, "shares": [float(share) for share in shares]}
    write_report(options, msca, {**found, **numbers(made, seconds)})
    return 0


def read_grey(file: str) -> np.ndarray:
    """Read a grey picture, (H, W) uint8; FileNotFoundError or ValueError where it is none."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"weight_map: {file}: no such file")
    picture = read_image(file)
    if (picture != picture[..., :1]).any():
        raise ValueError(f"weight_map: {file}: expected a grey picture, got one with colours")
    return np.ascontiguousarray(picture[..., 0])


def check_painted(files: Sequence[str], painted: Sequence[np.ndarray]) -> None:
    """ValueError, naming the files, where weight maps, one for each exemplar, leave a pixel to nobody."""
    if len(painted) < 2 or len({each.shape for each in painted}) > 1:
        return
    empty = int((np.max(painted, 0) == 0).sum())
    if empty:
        raise ValueError(
            f"weight_map: expected one above 0 (black) at every pixel of {', '.join(files)}, got none at {empty} pixels"
        )


def sheet(msca: MSCA, target: Picture, exemplars: Sequence[Picture], made: Mixed) -> np.ndarray:
    """Draw the label map, the exemplars, each with a colour, which colour has what share where, and the image.

    Returns:
        (H, W, 3) uint8.
    """
    size = cell_size((made.image.shape[0], made.image.shape[1]))
    first = [labels_cell(msca, made.labels, f"label map {target.name}")]
    for i, exemplar in enumerate(exemplars):
        shown = msca.seen(exemplar)
        first.append(captioned(enlarged(shown.image, exemplar_size_in(msca, shown)), exemplar.name, source_colour(i)))
    colours = np.array([source_colour(i) for i in range(len(exemplars))], np.float32)
    where = np.einsum("jhw,jc->hwc", made.weights, colours).round().clip(0, 255).astype(np.uint8)
    second = [
        image_cell(made.image, "image"),
        captioned(enlarged(where, size), "whose style is where"),
        region_legend([made.labels], msca.classes, size[0]),
    ]
    return contact_sheet([first, second])
