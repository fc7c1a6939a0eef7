"""Give regions of a picture the style that they have in another one, in harmony with the rest (Sec. 4.4, Fig. 7).

    mixsyn-fast harmonized transfer --sheet sheet.png                        pictures drawn by code, the shipped model
    mixsyn-fast harmonized transfer --image me.jpg --reference her.jpg --region hair --kind folder --sheet sheet.png
    mixsyn-fast harmonized transfer --image photos --reference looks --region skin,hair --parser parser.pth --compare

Every target takes the regions of every reference. --region names regions or groups of the model; a group stands for all its
regions that both pictures have. The attention corrects what is taken by the target's own codes; --compare shows the result
without it as well. --image and --reference take files and folders. Label maps stand beside the pictures (a_labels.png, or
../labels/a.png), are named with --labels, or found by a face parser (--parser, `mixsyn-fast parse`). --kind says what their
pixel values mean. The lines printed say how far pixels moved from the reconstruction (grey levels, 0 to 255).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..metrics import Change
from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    open_model,
    pictures_at,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import lines_for
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Harmonized, Made, listed
from .pictures import (
    GAIN,
    change_cell,
    change_of,
    drawn_pictures,
    files_of,
    image_cell,
    line,
    numbers,
    regions_cell,
    regions_of,
    size_of,
)

_DRAWN = 3  # references that are drawn where no pictures are given


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()  # target, or a folder of them; once per target; none: pictures drawn by code
    reference: tuple[str, ...] = repeated()  # picture that gives its style, or a folder of them; once per reference
    region: tuple[str, ...] = ("hair",)  # regions or groups that are transferred
    compare: bool = False  # also make every image without attention, beside it as <name>_without.png
    out: Path = Path("transferred")  # folder of the images, which are called <target>_<reference>.png
    sheet: Path | None = None  # also write a contact sheet: target, reference, result, its change (PNG)
    json: Path | None = None  # also write what every image took and changed (JSON; seconds, grey levels 0 to 255)
    seed: int = 0  # of the pictures that are drawn where none are given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")
        if not self.region:
            raise ValueError("region: expected at least one region or group, got none")
        for given, other, what in ((self.image, self.reference, "reference"), (self.reference, self.image, "image")):
            if given and not other:
                raise ValueError(f"{what}: expected at least one picture, got none")


@dataclass(frozen=True)
class Transferred:
    """An image of a target and a reference."""

    target: Picture
    reference: Picture
    before: Made
    """The target as the model makes it of its own codes."""
    made: Made
    without: Made | None
    """The same without attention, where it was asked for."""
    seconds: float
    change: Change

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.target.name}_{self.reference.name}"


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    targets, references = pictures_at(options.image, "image"), pictures_at(options.reference, "reference")
    _outputs(options, [f"{Path(a).stem}_{Path(b).stem}" for a in targets for b in references])
    model = open_model(Harmonized, options.model, options.device)
    reader = Reader(model.classes, model.size, options, options.device)
    with progress("reading pictures"):
        own, theirs = ([reader.read(file) for file in files] for files in (targets, references))
    reader.check_labels_used()
    if not own:
        own, theirs = (lambda drawn: (drawn[:1], drawn[1:]))(drawn_pictures(model, _DRAWN + 1, options.seed))
    pairs = [(a, b) for a in own for b in theirs]
    for pair in pairs:
        regions_of(model, options.region, pair, "region")
    paths = _outputs(options, [f"{a.name}_{b.name}" for a, b in pairs])
    plain = model.without_attention() if options.compare else None
    with progress(f"transferring, {len(pairs)} images"):
        found = [transferred(model, plain, a, b, options.region) for a, b in pairs]
    for each in found:
        print(line(each.name, each.change, each.made, each.seconds))
        write_image(each.made.image, paths[f"out: {each.name}"])
        if each.without is not None:
            write_image(each.without.image, paths[f"out: {each.name}_without"])
    if options.sheet:
        write_sheet(sheet(model, found), options.sheet)
    if options.json:
        about: dict[str, Any] = {
            "model": options.model or "shipped",
            "size": list(model.size),
            "region": list(options.region),
        }
        rows = [
            {"target": each.target.name, "reference": each.reference.name, **numbers(each.change, each.made, each.seconds)}
            for each in found
        ]
        write_json(options.json, {**about, "images": rows})
        print(f"written: {options.json}")
    return 0


def transferred(
    model: Harmonized, plain: Harmonized | None, target: Picture, reference: Picture, regions: tuple[str, ...]
) -> Transferred:
    """Transfer regions of a reference to a target; `plain`: the model without attention, to compare with."""
    before = model.reconstruct(target.image, target.labels)
    given = (target.image, target.labels, reference.image, reference.labels, regions)
    begin = time.perf_counter()
    made = model.transfer(*given)
    seconds = time.perf_counter() - begin
    without = plain.transfer(*given) if plain is not None else None
    return Transferred(target, reference, before, made, without, seconds, change_of(model, before.image, made, made.regions))


def _outputs(options: Options, names: list[str]) -> dict[str, Path]:
    """Return the files of the images; ValueError where they cannot be."""
    images = files_of(options.out, names, "out")
    if options.compare:
        images |= files_of(options.out, [f"{name}_without" for name in names], "out")
    outputs = {**images, "sheet": options.sheet, "json": options.json}
    check_outputs(
        outputs, [*pictures_at(options.image, "image"), *pictures_at(options.reference, "reference")], options.labels
    )
    return images


def sheet(model: Harmonized, found: list[Transferred]) -> np.ndarray:
    """Draw a row per image: target and reference with the regions outlined, reconstruction, result, change.

    Returns:
        (H, W, 3) uint8.
    """
    size = size_of(model)
    gives = [f"{each.reference.name}: its {listed(each.made.regions)}" for each in found]
    moved = [f"change x {GAIN}: {each.change.inside:.0f} inside, {each.change.outside:.0f} outside" for each in found]
    lines = lines_for([*gives, *moved, *(f"target {each.target.name}" for each in found)], size[1])
    rows = []
    for i, each in enumerate(found):
        regions = each.made.regions
        row = [
            regions_cell(model, each.target, regions, f"target {each.target.name}", lines),
            regions_cell(model, each.reference, regions, gives[i], lines, 1),
            image_cell(model, each.before.image, "target, reconstructed", lines),
        ]
        if each.without is not None:
            row.append(image_cell(model, each.without.image, "result without attention", lines))
        row += [
            image_cell(model, each.made.image, "result", lines),
            change_cell(model, each.before.image, each.made, regions, moved[i], lines),
        ]
        rows.append(row)
    return contact_sheet(rows)
