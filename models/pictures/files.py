"""Folders of pictures: listing them by name, reading them as arrays, writing pictures and label maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast.writing import written_whole

from ..data import palette
from ..data.files import PICTURES, find, open_layer, open_picture, say_left_over
from ..data.layouts import SPLITS, is_simple


def list_pictures(
    folder: str | os.PathLike[str], *, deep: bool = True, without: str | os.PathLike[str] | None = None
) -> dict[str, Path]:
    """Map name -> file for the pictures of a folder, sorted; of its subfolder images/ when it has one and holds none itself.

    A name is the path in the folder without the suffix. Files that are no pictures are named once, in a warning.

    Args:
        folder: where.
        deep: in subfolders too.
        without: a folder that is passed over: where the command writes to.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: two files with one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    place = root
    if not find(root, deep=False).named:
        split = next((split for split in SPLITS if is_simple(root / split)), None)
        if split is not None:
            example = root / split / "images"
            raise FileNotFoundError(f"{root}: holds no picture itself, but a data set: expected {example}, say")
        place = root / "images" if find(root / "images", deep=deep).named else root
    found = find(place, deep=deep, without=None if without is None else Path(without))
    if not found.named:
        raise FileNotFoundError(f"{root}: holds no picture ({', '.join(PICTURES)})")
    say_left_over(place, found.left)
    return found.named


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB, as a viewer shows it: see :func:`~mixsyn_fast.models.data.files.open_picture`.

    Raises:
        ValueError: not readable as an image; the message names the file. ImportError without pillow.
    """
    return np.asarray(open_picture(Path(path)))


def read_layer(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture with its transparency as (H, W, 4) uint8 RGBA: strokes that somebody drew above another one, say.

    Raises:
        FileNotFoundError: no such file.
        ValueError: see :func:`~mixsyn_fast.models.data.files.open_layer`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image")
    return np.asarray(open_layer(Path(path)))


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
