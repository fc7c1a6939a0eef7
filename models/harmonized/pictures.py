"""What the commands of harmonized transfer share: drawn pictures, checks of names, cells of sheets, what an edit changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import colorize
from ..data.sets import DRAWN_KINDS
from ..metrics import Change, change_of_edit
from ..pictures.files import list_pictures
from ..pictures.options import drawn_source
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, contour, enlarged, enlarged_labels, outlined, source_colour
from .model import Harmonized, Made, listed

GAIN = 4  # of the differences on sheets
KINDS = ("procedural_lit_faces", *DRAWN_KINDS)  # of drawings, those that are preferred first


def drawn_pictures(model: Harmonized, count: int, seed: int) -> list[Picture]:
    """Draw pictures that fit a model, for who has none; ValueError where nothing drawn has its regions."""
    return pictures_of(drawn_source(model.classes, model.size, count, seed, KINDS))


def files_of(folder: Path, names: Sequence[str], option: str) -> dict[str, Path]:
    """Return what is written where: `option: name` -> PNG in a folder."""
    return {f"{option}: {name}": folder / f"{name}.png" for name in names}


def result_files(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return what is written where by a command of one result a picture: the file `out`, or of several a folder of them.

    The folder is called as the file without .png; the keys are `out` and, of several, `out: name`.
    """
    folder = out.with_suffix("") if out.suffix.lower() == ".png" else out
    return files_of(folder, names, "out") if names[1:] else {"out": out}


def partners(files: Sequence[str], given: Sequence[str], option: str) -> list[str]:
    """Return what belongs to every picture: the file that is called as it is, or of one picture the one file there is.

    Args:
        files: pictures of different names.
        given: files, and folders of them.
        option: named in errors.

    Raises:
        ValueError: a picture without one, two of one name, or a file of no picture; the message names option and files.
        FileNotFoundError: a folder without a picture.
    """
    others = [str(each) for path in given for each in (list_pictures(path).values() if Path(path).is_dir() else [path])]
    if len(files) == len(others) == 1:
        return others
    known: dict[str, str] = {}
    for other in others:
        if known.setdefault(Path(other).stem, other) != other:
            raise ValueError(f"{option}: expected files of different names, got {known[Path(other).stem]} and {other}")
    names = [Path(file).stem for file in files]
    lacking = next((file for file, name in zip(files, names, strict=True) if name not in known), None)
    if lacking is not None:
        raise ValueError(f"{option}: expected a file of every picture's name, got none for {lacking}")
    more = sorted(set(known) - set(names))
    if more:
        raise ValueError(f"{option}: expected a picture for every file, got none for {known[more[0]]}")
    return [known[name] for name in names]


def check_names(model: Harmonized, names: Collection[str], option: str) -> None:
    """ValueError, listing all there are, for a name that is neither a region nor a group."""
    known = [*model.groups, *(name for name in model.classes if name not in model.groups)]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{option}: unknown region {unknown!r}; the model has {', '.join(known)}")


def regions_of(model: Harmonized, names: Collection[str], pictures: Sequence[Picture], option: str) -> tuple[str, ...]:
    """Return the regions that names of regions and groups stand for in pictures that must have them.

    Raises:
        ValueError: an unknown name, or a region that a picture lacks; the message names option and picture.
    """
    check_names(model, names, option)
    there = {picture.name: model.present(picture.labels) for picture in pictures}
    for name in names:
        wanted = model.groups.get(name, (name,))
        for picture, regions in there.items():
            if not set(wanted) & set(regions):
                raise ValueError(f"{option}: {picture} has no {name} at half the model's size; it has {listed(regions)}")
    every = {region for name in names for region in model.groups.get(name, (name,))}
    return tuple(name for name in model.classes if name in every and all(name in regions for regions in there.values()))


def change_of(model: Harmonized, before: np.ndarray, made: Made, regions: Collection[str]) -> Change:
    """Return how far pixels moved from an image to another, in grey levels, inside and outside some regions."""
    return change_of_edit(before, made.image, inside_of(model, made.labels, regions))


def numbers(change: Change, made: Made, seconds: float) -> dict[str, Any]:
    """Return what was measured about an image, for JSON."""
    return {"regions": list(made.regions), "seconds": seconds, "ran": list(made.ran), "change": change._asdict()}


def line(name: str, change: Change, made: Made, seconds: float) -> str:
    """Return the same as text."""
    return (
        f"{name}: {seconds * 1e3:.0f} ms ({listed(made.ran)}); {listed(made.regions)}: "
        f"changed by {change.inside:.1f} grey levels inside, {change.outside:.1f} outside"
    )


def inside_of(model: Harmonized, labels: np.ndarray, regions: Collection[str]) -> np.ndarray:
    """Return the pixels (H, W) bool of some regions."""
    return np.isin(labels, [model.classes.index(name) for name in regions])


# ---------------------------------------------------------------------------------------------------- cells of sheets


def size_of(model: Harmonized) -> tuple[int, int]:
    """Return the size (H, W) of a picture on a sheet."""
    return cell_size(model.size)


def image_cell(model: Harmonized, image: np.ndarray, caption: str, lines: int = 1) -> np.ndarray:
    """Draw an image (H, W, 3) with a line below it."""
    return captioned(enlarged(image, size_of(model)), caption, lines=lines)


def labels_cell(model: Harmonized, labels: np.ndarray, caption: str = "label map", lines: int = 1) -> np.ndarray:
    """Draw a label map (H, W) in colours, white where there is no region."""
    drawn = colorize(enlarged_labels(labels, size_of(model)), len(model.classes))
    return captioned(drawn, caption, lines=lines)


def regions_cell(
    model: Harmonized, picture: Picture, regions: Collection[str], caption: str, lines: int = 1, place: int = 0
) -> np.ndarray:
    """Draw a picture with some regions outlined in the colour of source `place`, all else faded."""
    numbers = [model.classes.index(name) for name in regions]
    return captioned(outlined(picture, numbers, source_colour(place), size_of(model)), caption, lines=lines)


def change_cell(
    model: Harmonized, before: np.ndarray, made: Made, regions: Collection[str], caption: str, lines: int = 1
) -> np.ndarray:
    """Draw the change from an image to another, enlarged in strength, the regions that it should lie in outlined."""
    change = (np.abs(made.image.astype(np.int16) - before) * GAIN).clip(0, 255).astype(np.uint8)
    drawn = enlarged(change, size_of(model)).copy()
    drawn[contour(enlarged_labels(inside_of(model, made.labels, regions), size_of(model)), 1)] = source_colour(0)
    return captioned(drawn, caption, lines=lines)
