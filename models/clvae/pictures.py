"""What the commands of the class- and layer-wise VAE share: drawn pictures, codes from a file, cells of sheets."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..pictures.options import drawn_source
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, coloured, enlarged
from .codes import GLOBAL, ImageCodes
from .model import CLVAE


def drawn_pictures(clvae: CLVAE, count: int, seed: int) -> list[Picture]:
    """Draw pictures that fit a model, for who has none; ValueError where nothing drawn has its classes."""
    return pictures_of(drawn_source(clvae.classes, clvae.size, count, seed))


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
    return captioned(coloured(labels, len(clvae.classes), size_of(clvae)), caption, lines=lines)


def listed(names: Collection[str]) -> str:
    """Return names as text."""
    return ", ".join(names) or "none"
