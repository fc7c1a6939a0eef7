"""Colours of classes: how label maps are shown."""

from __future__ import annotations

import numpy as np

from .drawn.raster import Array, rgb


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
