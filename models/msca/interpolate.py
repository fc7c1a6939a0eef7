"""A label map in mixtures of styles: on the way from the first exemplar to the last, or as weighed (MSCA, Fig. 5).

    mixsyn-fast msca interpolate --sheet walk.png                            pictures drawn by code, the shipped model
    mixsyn-fast msca interpolate --image a.jpg --exemplar b.jpg --exemplar c.jpg --kind folder --between 4 --sheet walk.png
    mixsyn-fast msca interpolate --label-map a_labels.png --exemplar b.jpg --exemplar c.jpg --weights 0.3,0.7 --kind folder

Images are called walk_0.png and so on, or mixture.png with --weights. At its ends a walk has the images of
`msca synthesize`. --kind and label maps: see `mixsyn-fast msca synthesize --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.options import check_outputs, write_image, write_sheet
from ..pictures.picture import Picture
from ..pictures.sheets import captioned, cell_size, enlarged, region_legend, source_colour
from ..settings import at_least
from ..sheets import contact_sheet
from .blending import check_weights, weights_of_walk
from .model import MSCA, Made
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
_ROW = 7  # images in a row of the sheet


@dataclass(frozen=True)
class Options(PairOptions):
    """Options of the command."""

    weights: tuple[float, ...] | None = None  # one for each exemplar: a single mixture instead of a walk
    between: int = 3  # images between two neighbours of a walk
    out: Path = Path("interpolated")  # folder of the images

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, between=0)


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = exemplar_files(options.exemplar, 2)
    count = len(files) or _DRAWN
    if options.weights is None:
        weights = weights_of_walk(count, options.between)
        paths = [options.out / f"walk_{i}.png" for i in range(len(weights))]
    else:
        check_weights(options.weights, count)
        weights, paths = [options.weights], [options.out / "mixture.png"]
    inputs = [*files, *([options.target] if options.target else [])]
    outputs = {f"out: {path.name}": path for path in paths}
    check_outputs({**outputs, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    msca = options.open()
    target, exemplars = options.pair(msca, files, count)
    made, rows = [], []
    with progress("interpolating"):
        scenes = [scene_of(exemplar) for exemplar in exemplars]
        for given in weights:
            image, seconds = timed(msca.interpolate, target.labels, scenes, given, size=options.height_and_width)
            made.append(image)
            rows.append({"weights": list(given), **numbers(image, seconds)})
    for each, path in zip(made, paths, strict=True):
        write_image(each.image, path)
    print(f"{len(made)} images in {sum(row['seconds'] for row in rows):.2f} s")
    if options.sheet:
        write_sheet(sheet(msca, target, exemplars, weights, made), options.sheet)
    found = {"label_map": target.name, "exemplars": [exemplar.name for exemplar in exemplars], "images": rows}
    write_report(options, msca, found)
    return 0


def sheet(
    msca: MSCA,
    target: Picture,
    exemplars: Sequence[Picture],
    weights: Sequence[Sequence[float]],
    made: Sequence[Made],
) -> np.ndarray:
    """Draw the label map and the exemplars, each with a colour, then the images with the colours of what they are made of.

    Returns:
        (H, W, 3) uint8.
    """
    first = [labels_cell(msca, made[0].labels, f"label map {target.name}")]
    for i, exemplar in enumerate(exemplars):
        shown = msca.seen(exemplar)
        drawn = enlarged(shown.image, exemplar_size_in(msca, shown))
        first.append(captioned(drawn, f"{chr(65 + i % 26)}: {exemplar.name}", source_colour(i)))
    first.append(region_legend([made[0].labels], msca.classes, first[0].shape[0]))
    cells = []
    for given, each in zip(weights, made, strict=True):
        shares = np.array(given) / sum(given)
        caption = ", ".join(f"{chr(65 + i % 26)} {100 * share:.0f} %" for i, share in enumerate(shares) if share > 0)
        bar = share_bar(shares, cell_size((each.image.shape[0], each.image.shape[1]))[1])
        cell = image_cell(each.image, caption)
        cells.append(np.concatenate((bar, cell)))
    return contact_sheet([first, *(cells[i : i + _ROW] for i in range(0, len(cells), _ROW))])


def share_bar(shares: np.ndarray, width: int, height: int = 6) -> np.ndarray:
    """Draw shares (J) that sum to one as a bar of the exemplars' colours, (height, width, 3) uint8."""
    ends = np.round(np.cumsum(shares) * width).astype(int)
    bar = np.zeros((height, width, 3), np.uint8)
    for i, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        bar[:, begin:end] = source_colour(i)
    return bar
