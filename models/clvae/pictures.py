"""What the commands of the class- and layer-wise VAE share: a label map from a file, codes from a file, cells of sheets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data import colorize
from ..pictures.options import ModelOptions, PictureOptions, Reader, drawn_source
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, enlarged, enlarged_labels
from .codes import GLOBAL, ImageCodes
from .model import CLVAE


@dataclass(frozen=True)
class TargetOptions(PictureOptions, ModelOptions):
    """The label map that a command makes images of."""

    image: str | None = None  # picture whose label map is taken; none: pictures drawn by code
    label_map: str | None = None  # a label map alone (PNG), instead of --image

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        if self.image and self.label_map:
            raise ValueError(f"label_map: expected it or --image, got both: {self.label_map} and {self.image}")

    @property
    def target(self) -> str | None:
        """The file."""
        return self.image or self.label_map

    def reader(self, clvae: CLVAE) -> Reader:
        """Return a reader of pictures at the model's size, which takes a label map alone for its own label map."""
        alone = (f"{self.label_map}={self.label_map}",) if self.label_map else ()
        return Reader(clvae.classes, clvae.size, replace(self, labels=(*self.labels, *alone)), self.device)


def drawn_pictures(clvae: CLVAE, count: int, seed: int) -> list[Picture]:
    """Draw pictures that fit a model, for who has none; ValueError where nothing drawn has its classes."""
    return pictures_of(drawn_source(clvae.classes, clvae.size, count, seed))


def files_of(folder: Path, names: Sequence[str], suffix: str, option: str) -> dict[str, Path]:
    """Return what is written where: `option: name` -> file in a folder; ValueError for two pictures of one name."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{option}: expected pictures of different names, for that is what files are called; {twice} twice")
    return {f"{option}: {name}": folder / f"{name}{suffix}" for name in names}


def check_class(clvae: CLVAE, name: str, picture: Picture, file: str, option: str) -> None:
    """ValueError, naming option and file, for a class that a model does not know or a picture does not have."""
    if name not in clvae.classes and name != GLOBAL:
        known = ", ".join((*clvae.classes, GLOBAL))
        raise ValueError(f"{option}: unknown class {name!r}; the model's classes are {known}")
    there = clvae.present(picture.labels)
    if name not in there and name != GLOBAL:
        height, width = clvae.size
        raise ValueError(f"{option}: {file} has no {name} at {width} x {height} (width x height); it has {', '.join(there)}")


def load_codes(clvae: CLVAE, file: str, option: str) -> ImageCodes:
    """Read codes that fit a model; FileNotFoundError or ValueError name option and file."""
    try:
        codes = ImageCodes.load(file)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{option}: {error}") from error
    clvae.prior().check_like(codes, f"{option}: {file}")
    return codes


# ---------------------------------------------------------------------------------------------------- cells of sheets


def size_of(clvae: CLVAE) -> tuple[int, int]:
    """Return the size (H, W) of a picture on a sheet."""
    return cell_size(clvae.size)


def image_cell(clvae: CLVAE, image: np.ndarray, caption: str, lines: int = 1) -> np.ndarray:
    """Draw an image (H, W, 3) with a line below it."""
    return captioned(enlarged(image, size_of(clvae)), caption, lines=lines)


def labels_cell(clvae: CLVAE, labels: np.ndarray, caption: str = "label map", lines: int = 1) -> np.ndarray:
    """Draw a label map (H, W) in colours, white where there is no class."""
    drawn = colorize(enlarged_labels(labels, size_of(clvae)), len(clvae.classes))
    return captioned(drawn, caption, lines=lines)


def listed(names: Collection[str]) -> str:
    """Return names as text."""
    return ", ".join(names) or "none"
