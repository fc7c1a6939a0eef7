"""Weights of a walk from style to style, of styles at every pixel, of windows that cover a scene (Sec. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_OVERLAP = 4  # neighbours share at least a quarter of their length


def window_places(
    scene: tuple[int, ...], window: tuple[int, int], others: int = 10, seed: int = 0
) -> tuple[tuple[int, int], ...]:
    """Return (row, column) of the upper left corners of windows that cover a scene.

    Those in the corners of the scene come first, then those of an even grid in which neighbours overlap by at least a
    quarter, then random ones.

    Args:
        scene: (H, W).
        window: (h, w), no larger.
        others: windows beside those in the corners; there are more where the grid has more.
        seed: of the random ones.

    Raises:
        ValueError: a window larger than the scene, or a number below 0.
    """
    if window[0] > scene[0] or window[1] > scene[1]:
        raise ValueError(f"scene: expected at least {window}, the window's size, got {tuple(scene)}")
    if others < 0 or seed < 0:
        raise ValueError(f"others, seed: expected 0 or more, got {others} and {seed}")
    lines = [_even(length, side) for length, side in zip(scene, window, strict=True)]
    ends = [sorted({line[0], line[-1]}) for line in lines]
    corners = [(y, x) for y in ends[0] for x in ends[1]]
    grid = [(y, x) for y in lines[0] for x in lines[1] if (y, x) not in corners]
    found = [*corners, *grid]
    rng = np.random.default_rng(seed)
    if tuple(scene) != tuple(window):
        for _ in range(others - len(grid)):
            y, x = (int(rng.integers(length - side + 1)) for length, side in zip(scene, window, strict=True))
            found.append((y, x))
    return tuple(found)


def _even(length: int, side: int) -> list[int]:
    if length == side:
        return [0]
    overlap = side // _OVERLAP
    count = max(2, math.ceil((length - overlap) / (side - overlap)))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def blending_weights(scene: tuple[int, ...], window: tuple[int, int], places: Sequence[tuple[int, int]]) -> Tensor:
    """Return the weight of every window at each of its pixels, (N, h, w) float32: smooth, and summing to one over the scene.

    Each is the product of two squared sines, least at the window's border, divided by the sum of all at that pixel.

    Args:
        scene: (H, W).
        window: (h, w).
        places: of the windows.

    Raises:
        ValueError: a pixel that no window covers, or a window that leaves the scene.
    """
    height, width = window
    lines = [torch.sin((torch.arange(side, dtype=torch.float64) + 0.5) * (math.pi / side)) ** 2 for side in window]
    bump = lines[0][:, None] * lines[1][None]
    total = torch.zeros(scene[0], scene[1], dtype=torch.float64)
    for y, x in places:
        if not (0 <= y <= scene[0] - height and 0 <= x <= scene[1] - width):
            raise ValueError(f"places: expected windows inside {tuple(scene)}, got one at {(y, x)}")
        total[y : y + height, x : x + width] += bump
    if bool((total == 0).any()):
        raise ValueError(f"places: expected every pixel in a window, got {int((total == 0).sum())} in none")
    return torch.stack([bump / total[y : y + height, x : x + width] for y, x in places]).float()


def weights_of_walk(count: int, between: int) -> list[tuple[float, ...]]:
    """Return the weights of `count` exemplars on the way over all of them, with `between` mixtures of every two neighbours.

    Raises:
        ValueError: a negative number.
    """
    if between < 0:
        raise ValueError(f"between: expected 0 or more, got {between}")
    found = []
    for j in range(count - 1):
        for step in range(between + 1):
            share = step / (between + 1)
            found.append(tuple(1 - share if i == j else share if i == j + 1 else 0.0 for i in range(count)))
    return [*found, tuple(1.0 if i == count - 1 else 0.0 for i in range(count))]


def gradient_maps(count: int, size: tuple[int, ...], direction: str) -> np.ndarray:
    """Return weight maps (count, H, W) float32 that change linearly from one exemplar to the next, and sum to one.

    Args:
        count: of exemplars, 2 or more.
        size: (H, W).
        direction: "horizontal" (left to right) or "vertical" (top to bottom).

    Raises:
        ValueError: another direction.
    """
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"direction: expected 'horizontal' or 'vertical', got {direction!r}")
    length = size[1] if direction == "horizontal" else size[0]
    place = np.linspace(0, count - 1, length)
    line = np.clip(1 - np.abs(place[None] - np.arange(count)[:, None]), 0, 1).astype(np.float32)
    lines = line[:, None, :] if direction == "horizontal" else line[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(lines, (count, size[0], size[1])))


def patch_border(size: tuple[int, int]) -> Tensor:
    """Return the weights (H, W) float32 of a patch put into a scene: 1, falling to 0 over an eighth at its border."""
    lines = []
    for length in size:
        place = torch.arange(length, dtype=torch.float64) + 0.5
        edge = torch.minimum(place, length - place) / (length / 8)
        lines.append(torch.sin(edge.clamp(max=1) * (math.pi / 2)) ** 2)
    return (lines[0][:, None] * lines[1][None]).float()
