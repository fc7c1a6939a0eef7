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

from .facades import draw_facade
from .faces import draw_face
from .raster import Array, frame_size
from .streets import draw_street

NUM_CLASSES = {"face": 19, "facade": 12, "street": 151}


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
