"""Reading `<dir>/images/*` + `<dir>/labels/*.png`: one label map per image, pixel value = class id.

Label files are palette or grey PNGs (8 or 16 bit). Every complaint names the file.
Pillow is imported on first use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_MODES = ("P", "L", "1", "I", "I;16", "I;16B")


@dataclass(frozen=True)
class Pair:
    """One image file and its label file."""

    image: Path
    labels: Path


def list_pairs(directory: str | os.PathLike[str]) -> list[Pair]:
    """Find the pairs of a folder, sorted by name.

    Args:
        directory: folder with `images/` and `labels/`; a label file has its image's stem and ends in .png.

    Returns:
        At least one pair.

    Raises:
        FileNotFoundError: the folder, its subfolders, any image, or the label of an image is missing.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for part in ("images", "labels"):
        if not (root / part).is_dir():
            raise FileNotFoundError(f"{root / part}: no such folder (expected {root}/images/*.jpg and {root}/labels/*.png)")
    images = sorted(p for p in (root / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"{root / 'images'}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    pairs = [Pair(p, root / "labels" / f"{p.stem}.png") for p in images]
    missing = [p for p in pairs if not p.labels.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0].labels}: no label map for {missing[0].image}{more}")
    return pairs


def open_picture(path: Path) -> Image.Image:
    """Read an image file into a Pillow image. ValueError, naming the file, when that fails; ImportError without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("reading image files needs pillow: pip install 'mixsyn_fast[models]'") from error
    try:
        picture = Image.open(path)
        picture.load()
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # decoders raise all kinds on damaged files: OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(f"{path}: not a readable image file ({error})") from error
    return picture


def _crop_box(width: int, height: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Largest centred box with the aspect ratio of `size` (height, width)."""
    ratio = size[1] / size[0]
    w, h = (height * ratio, float(height)) if width > height * ratio else (float(width), width / ratio)
    return ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)


def read_pair(
    pair: Pair,
    *,
    size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    label_offset: int = 0,
    ignore_label: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its label map, centre-cropped and resized together.

    Args:
        pair: the two files.
        size: side of a square or (height, width); images are resized smoothly, labels by nearest pixel.
            None: as stored.
        num_classes: when given, ids must lie in [0, num_classes) after the offset.
        label_offset: subtracted from every stored id (1 for sets whose ids begin at 1).
        ignore_label: stored id that means "no class"; it becomes -1 and is exempt from the range check.

    Returns:
        image (H, W, 3) uint8 and labels (H, W) int32.

    Raises:
        ValueError: unreadable file, colour label map, sizes that differ, ids out of range; the message
            names the file.
    """
    picture, plane = open_picture(pair.image), open_picture(pair.labels)
    if plane.mode not in LABEL_MODES:
        raise ValueError(f"{pair.labels}: expected a palette or grey PNG (pixel value = class id), got mode {plane.mode}")
    if picture.size != plane.size:
        raise ValueError(
            f"{pair.labels}: label map is {plane.size[0]} x {plane.size[1]} but {pair.image.name} is "
            f"{picture.size[0]} x {picture.size[1]} (width x height)"
        )
    stored = np.asarray(plane).astype(np.int32)
    labels = stored - label_offset
    known = np.ones(labels.shape, bool) if ignore_label is None else stored != ignore_label
    if num_classes is not None:
        bad = known & ((labels < 0) | (labels >= num_classes))
        if bad.any():
            row, column = (int(v) for v in np.argwhere(bad)[0])
            raise ValueError(
                f"{pair.labels}: expected class ids in {label_offset}..{num_classes - 1 + label_offset}, "
                f"got {int(stored[row, column])} at row {row}, column {column}"
            )
    labels = np.where(known, labels, -1).astype(np.int32)
    picture = picture.convert("RGB")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ValueError(f"size: expected positive height and width, got {height} x {width}")
        from .dataset import resample
        from .source import Sample

        sample = Sample(np.asarray(picture), labels, None, pair.image.stem)
        image, labels, _ = resample(sample, _crop_box(*picture.size, (height, width)), (height, width))
        return image, labels
    return np.asarray(picture), labels


def load_folder(
    directory: str | os.PathLike[str],
    count: int,
    size: int | tuple[int, int],
    *,
    num_classes: int | None = None,
    label_offset: int = 0,
    ignore_label: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` pairs of a folder as arrays; a smaller folder is repeated.

    Returns:
        images (count, H, W, 3) uint8 and labels (count, H, W) int32.
    """
    pairs = list_pairs(directory)
    options = {
        "size": size,
        "num_classes": num_classes,
        "label_offset": label_offset,
        "ignore_label": ignore_label,
    }
    read = [read_pair(pair, **options) for pair in pairs[:count]]  # type: ignore[arg-type]
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    chosen = [read[i % len(read)] for i in range(count)]
    return np.stack([c[0] for c in chosen]), np.stack([c[1] for c in chosen])
