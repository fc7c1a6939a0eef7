"""The image of a label map in the style of other scenes, which may have other things in them (MSCA, Fig. 1).

    mixsyn-fast msca synthesize --sheet sheet.png                            pictures drawn by code, the shipped model
    mixsyn-fast msca synthesize --image a.jpg --exemplar b.jpg --exemplar c.jpg --kind folder --sheet sheet.png
    mixsyn-fast msca synthesize --label-map a_labels.png --exemplar photos --kind folder --size 384,512

Label maps stand beside the images (a_labels.png, or ../labels/a.png), or are named with --labels. --kind says what their
pixel values mean: "folder" 0 to N - 1 in the order of the model's classes, "cmp_facade" 1 to 12 as that set stores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.options import check_outputs, files_of, write_image, write_sheet
from ..pictures.picture import Picture
from ..pictures.sheets import lines_for, region_legend
from ..sheets import contact_sheet
from .model import MSCA, Made
from .pictures import (
    PairOptions,
    exemplar_files,
    exemplar_size_in,
    image_cell,
    labels_cell,
    missing,
    numbers,
    scene_of,
    timed,
    write_report,
)

_DRAWN = 3  # exemplars that are drawn where none are given


@dataclass(frozen=True)
class Options(PairOptions):
    """Options of the command."""

    out: Path = Path("synthesized")  # folder of the images, which are called as their exemplars


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = exemplar_files(options.exemplar)
    check_files(options, files, [Path(file).stem for file in files])
    msca = options.open()
    target, exemplars = options.pair(msca, files, _DRAWN)
    paths = check_files(options, files, [exemplar.name for exemplar in exemplars])
    made: list[Made] = []
    rows = []
    with progress("synthesizing"):
        for exemplar in exemplars:
            image, seconds = timed(msca.synthesize, target.labels, *scene_of(exemplar), size=options.height_and_width)
            made.append(image)
            lacks = missing(msca, image.labels, exemplar)
            rows.append({"exemplar": exemplar.name, "lacks": lacks, **numbers(image, seconds)})
    for row in rows:
        print(f"{row['exemplar']}: {row['seconds']:.2f} s; of the label map's classes it lacks {listed(row['lacks'])}")
    for each, path in zip(made, paths, strict=True):
        write_image(each.image, path)
    if options.sheet:
        write_sheet(sheet(msca, target, exemplars, made), options.sheet)
    write_report(options, msca, {"label_map": target.name, "images": rows})
    return 0


def listed(names: Sequence[str]) -> str:
    """Return names as text."""
    return ", ".join(names) or "none"


def check_files(options: Options, files: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Return the files of the images; ValueError where they cannot be."""
    images = files_of(options.out, names, ".png", "out")
    inputs = [*files, *([options.target] if options.target else [])]
    check_outputs({**images, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    return list(images.values())


def sheet(msca: MSCA, target: Picture, exemplars: Sequence[Picture], made: Sequence[Made]) -> np.ndarray:
    """Draw a row per exemplar: the exemplar, its label map, the target's label map, the image.

    Returns:
        (H, W, 3) uint8.
    """
    shown = [msca.seen(exemplar) for exemplar in exemplars]
    lacking = [missing(msca, made[0].labels, exemplar) for exemplar in exemplars]
    says = ["its label map" + (f"; it lacks {listed(names)}" if names else "") for names in lacking]
    lines = lines_for(says, msca.size[1])
    rows = []
    for exemplar, each, lacks in zip(shown, made, says, strict=True):
        size = exemplar_size_in(msca, exemplar)
        rows.append(
            [
                image_cell(exemplar.image, f"exemplar {exemplar.name}", lines, size),
                labels_cell(msca, exemplar.labels, lacks, lines, size),
                labels_cell(msca, each.labels, f"label map {target.name}", lines),
                image_cell(each.image, "image", lines),
            ]
        )
    maps = [*(each.labels for each in shown), made[0].labels]
    rows[0].append(region_legend(maps, msca.classes, rows[0][0].shape[0]))
    return contact_sheet(rows)
