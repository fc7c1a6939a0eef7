"""Faces, facades and streets drawn by code: label maps and images for demos, tests and benchmarks.

No data set is needed and none is imitated in detail; what matters is that the label maps behave like real
ones (smooth outlines, small parts beside large ones, about as many distinct 5x5 label neighbourhoods per
pixel) and that the pictures can be looked at. A picture depends on (kind, seed, size) alone; the size only
samples the scene.

    image, labels = draw("face", seed=3, size=256)          # (256, 256, 3) uint8, (256, 256) uint8
    images, labels = draw_batch("street", 4, size=(128, 256))
"""

from __future__ import annotations

import numpy as np

from .facades import FACADE_CLASSES, draw_facade
from .faces import FACE_CLASSES, draw_face
from .raster import Array, frame_size, rgb
from .streets import STREET_CLASSES, draw_street

__all__ = [
    "FACADE_CLASSES",
    "FACE_CLASSES",
    "NUM_CLASSES",
    "STREET_CLASSES",
    "colorize",
    "draw",
    "draw_batch",
    "draw_facade",
    "draw_face",
    "draw_street",
    "palette",
]

NUM_CLASSES = {"face": 19, "facade": 12, "street": 151}


def palette(num_classes: int) -> Array:
    """Distinct colours for label maps: (num_classes, 3) uint8, class 0 dark grey."""
    colours = [
        rgb(0.07 + 0.381966 * k, 0.45 + 0.35 * ((k * 7) % 3) / 2, 0.95 - 0.3 * ((k * 5) % 4) / 3) for k in range(num_classes)
    ]
    table = (np.array(colours, np.float32).reshape(-1, 3) * 255).astype(np.uint8)
    if num_classes:
        table[0] = (38, 40, 46)
    return table


def colorize(labels: Array, num_classes: int) -> Array:
    """Colour a label map; ids outside [0, num_classes) become white.

    Args:
        labels: (..., H, W) integers.
        num_classes: size of the palette.

    Returns:
        (..., H, W, 3) uint8.
    """
    table = np.concatenate([palette(num_classes), np.full((1, 3), 255, np.uint8)])
    known = (labels >= 0) & (labels < num_classes)
    return table[np.where(known, labels, num_classes)]


_DRAW = {"face": draw_face, "facade": draw_facade, "street": draw_street}


def draw(kind: str, seed: int = 0, size: int | tuple[int, int] = 256) -> tuple[Array, Array]:
    """Draw one picture.

    Args:
        kind: "face", "facade" or "street".
        seed: any non-negative integer.
        size: side of a square, or (height, width), at least 8 x 8.

    Returns:
        image (H, W, 3) uint8 and labels (H, W) uint8 in [0, NUM_CLASSES[kind]).

    Raises:
        ValueError: unknown kind, size too small.
    """
    if kind not in _DRAW:
        raise ValueError(f"kind: expected one of {', '.join(_DRAW)}, got {kind!r}")
    return _DRAW[kind](seed, size)


def draw_batch(kind: str, count: int, size: int | tuple[int, int] = 256, *, seed: int = 0) -> tuple[Array, Array]:
    """Draw `count` pictures with consecutive seeds.

    Returns:
        images (count, H, W, 3) uint8 and labels (count, H, W) uint8.
    """
    pairs = [draw(kind, seed + i, size) for i in range(count)]
    height, width = frame_size(size)
    if not pairs:
        return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, height, width), np.uint8)
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
