"""Light of a whole picture: its colour, how strong it is, and the side that it comes from."""

from __future__ import annotations

import numpy as np

from .faces import draw_face
from .raster import Array

_GAMMA = 2.2


def relight(image: Array, seed: int) -> Array:
    """Return a picture under another light, which all its regions share.

    Intensities (the stored values to the power 2.2) are multiplied by a colour between candle and overcast sky, by 0.75 to
    1.25, and by a ramp across the picture: the darker side gets at least 0.4 of what the brighter one gets.

    Args:
        image: (H, W, 3) uint8.
        seed: any non-negative integer; equal seeds give equal lights.

    Returns:
        (H, W, 3) uint8.
    """
    rng = np.random.default_rng([seed, 0x1197])
    warmth, strength = rng.uniform(-1, 1), rng.uniform(0.75, 1.25)
    colour = strength * np.exp(warmth * np.array([0.35, 0.0, -0.45]))
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4)
    height, width = image.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    ramp = 1 + depth * np.clip(np.cos(angle) * x + 0.5 * np.sin(angle) * y, -1, 1)
    intensity = (image / np.float32(255)) ** np.float32(_GAMMA) * (ramp[..., None] * colour).astype(np.float32)
    return np.rint(255 * np.clip(intensity, 0, 1) ** np.float32(1 / _GAMMA)).astype(np.uint8)


def draw_lit_face(seed: int, size: int | tuple[int, int] = 256) -> tuple[Array, Array]:
    """A portrait of `draw_face` under a light of its own: in these, what one region tells of the others is the light.

    Args, returns: as `draw_face`.
    """
    image, labels = draw_face(seed, size)
    return relight(image, seed), labels
