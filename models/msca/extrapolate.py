"""A whole scene in the style of a patch of it: what lies beyond a picture's border (MSCA, Fig. 8).

    mixsyn-fast msca extrapolate --sheet scene.png                           a scene drawn by code, the shipped model
    mixsyn-fast msca extrapolate --image scene.jpg --kind folder --size 512  its middle is the patch
    mixsyn-fast msca extrapolate --label-map scene_labels.png --patch p.jpg --kind folder --keep

The scene may have any size from the model's on. It is made of windows of the model's size, four in its corners and --others,
whose weights fall off towards their borders and sum to one at every pixel. --keep puts the patch itself into the middle,
with a soft border: right where the middle of the label map is that of the patch. Without it all of the image is the model's.
--kind and label maps: see `mixsyn-fast msca synthesize --help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.options import TargetOptions, check_outputs, check_png, write_image, write_sheet
from ..pictures.picture import Picture, fit
from ..pictures.sheets import region_legend
from ..settings import at_least
from ..sheets import contact_sheet
from .model import MSCA, Made
from .pictures import (
    ReportOptions,
    drawn_pictures,
    exemplar_size_in,
    image_cell,
    labels_cell,
    numbers,
    timed,
    write_report,
)


@dataclass(frozen=True)
class Options(ReportOptions, TargetOptions):
    """Options of the command."""

    patch: str | None = None  # picture with a label map, whose style the scene takes; none: the middle of --image
    size: tuple[int, ...] | None = None
    """height and width of the scene in pixels, at least the model's; one number for both; none: the label map's own"""
    others: int = 10  # windows beside those in the corners; more where the scene is large
    keep: bool = False  # put the patch into the middle of the scene
    out: Path = Path("extrapolated.png")  # the scene

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, others=0)
        check_png(self, "out")
        if self.size is not None and (len(self.size) not in (1, 2) or min(self.size) < 1):
            raise ValueError(f"size: expected one or two positive numbers, got {self.size}")
        if self.patch and not self.target:
            raise ValueError("image: expected a picture or --label-map of the whole scene, got none")
        if self.label_map and not self.patch:
            raise ValueError("patch: expected a picture whose style the label map takes, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    inputs = [file for file in (options.target, options.patch) if file]
    check_outputs({"out": options.out, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    msca = options.open()
    reader = options.reader(msca.classes, None)
    scene = reader.read(options.target) if options.target else None
    patch = reader.read(options.patch) if options.patch else None
    reader.check_labels_used()
    size = None if options.size is None else (options.size[0], options.size[-1])
    if scene is None:
        scene = drawn_pictures(msca, 1, options.seed, size or (2 * msca.size[0], 2 * msca.size[1]))[0]
    scene = scene if size is None else fit(scene, size)
    height, width = scene.labels.shape
    if height < msca.size[0] or width < msca.size[1]:
        rows, columns = msca.size
        least = f"expected a scene of at least {columns} x {rows}, the model's size, got {width} x {height} (width x height)"
        raise ValueError(f"size: {least}" if size else f"{options.target}: {least}; --size scales it")
    patch = msca.seen(middle(scene, msca.size) if patch is None else patch)
    with progress("extrapolating"):
        made, seconds = timed(
            msca.extrapolate,
            patch.image,
            patch.labels,
            scene.labels,
            others=options.others,
            seed=options.seed,
            keep=options.keep,
        )
    print(f"{len(made.windows)} windows for {width} x {height} (width x height) in {seconds:.2f} s")
    write_image(made.image, options.out)
    if options.sheet:
        write_sheet(sheet(msca, scene, patch, made), options.sheet)
    found = {"label_map": scene.name, "patch": patch.name, "scene": [height, width], "keep": options.keep}
    windows = [list(place) for place in made.windows]
    write_report(options, msca, {**found, "windows": windows, **numbers(made, seconds)})
    return 0


def middle(scene: Picture, size: tuple[int, int]) -> Picture:
    """Cut a patch of `size` (H, W) out of the middle of a picture that is at least as large."""
    top, left = ((length - side) // 2 for length, side in zip(scene.labels.shape, size, strict=True))
    inside = (slice(top, top + size[0]), slice(left, left + size[1]))
    return Picture(scene.image[inside], scene.labels[inside], f"middle of {scene.name}")


def sheet(msca: MSCA, scene: Picture, patch: Picture, made: Made) -> np.ndarray:
    """Draw the patch, the scene's label map with the windows' borders, and the scene.

    Returns:
        (H, W, 3) uint8.
    """
    legend = region_legend([patch.labels, made.labels], msca.classes, msca.size[0])
    size = exemplar_size_in(msca, patch)
    first = [
        image_cell(patch.image, f"patch: {patch.name}", size=size),
        labels_cell(msca, patch.labels, "its label map", size=size),
        legend,
    ]
    second = [
        labels_cell(msca, made.labels, f"label map {scene.name}: {len(made.windows)} windows"),
        image_cell(made.image, "scene"),
    ]
    return contact_sheet([first, second])
