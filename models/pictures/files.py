"""Folders of pictures: listing them by stem, reading them as arrays, writing pictures and label maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast.writing import written_whole

from ..data import palette
from ..data.files import IMAGE_SUFFIXES, open_picture


def list_pictures(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Map stem -> file for the pictures right inside a folder, sorted; of its subfolder images/ when it holds none itself.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: two files with one stem.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for place in (root, root / "images"):
        found: dict[str, Path] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                if path.stem in found:
                    raise ValueError(f"{place}: expected one picture per name, got {found[path.stem].name}, {path.name}")
                found[path.stem] = path
        if found:
            return found
    raise FileNotFoundError(f"{root}: holds no picture ({', '.join(IMAGE_SUFFIXES)})")


def read_image(path: str | os.PathLike[str], *, upright: bool = False) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB.

    Args:
        path: the file.
        upright: turn a photo as its camera noted (EXIF orientation); else the stored rows are taken as they are.

    Raises:
        ValueError: not readable as an image; the message names the file. ImportError without pillow.
    """
    picture = open_picture(Path(path))
    if upright:
        from PIL import ImageOps

        picture = ImageOps.exif_transpose(picture)
    return np.asarray(picture.convert("RGB"))


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Stack pictures (H, W, 3) uint8 of one size: (B, 3, H, W) uint8."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def save_image(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 in the format of the file's suffix, whole or not at all; folders are made."""
    from PIL import Image

    with written_whole(path) as temporary:
        Image.fromarray(picture).save(temporary)


def save_labels(path: str | os.PathLike[str], labels: np.ndarray, num_classes: int) -> None:
    """Write labels (H, W) in [0, num_classes), at most 256 classes, as a palette PNG: pixel value = class id, in colours."""
    from PIL import Image

    plane = Image.fromarray(labels.astype(np.uint8))
    plane.putpalette(palette(num_classes).reshape(-1).tolist())
    with written_whole(path) as temporary:
        plane.save(temporary)
