"""Resizing of maps: nearest by the pixel rule of ``F.interpolate(mode="nearest")``, for integers as well, or by area."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_source(size: int, full: int, device: torch.device | str | None = None) -> Tensor:
    """Source positions of ``F.interpolate(mode="nearest")`` from ``full`` to ``size`` pixels.

    Args:
        size: pixels of the result.
        full: pixels of the source.
        device: where the result lives.

    Returns:
        (size,) int64: ``min(floor(i * float32(full / size)), full - 1)``. Integer division differs, e.g. at 133 -> 49.
    """
    # a number, not a tensor to be moved: nothing waits for the device, and a CUDA graph can hold it
    scale = float(torch.tensor(full, dtype=torch.float32) / torch.tensor(max(size, 1), dtype=torch.float32))
    source = torch.floor(torch.arange(size, dtype=torch.float32, device=device) * scale).to(torch.int64)
    return source.clamp_(max=max(full - 1, 0))


def resize_nearest(t: Tensor, size: tuple[int, ...]) -> Tensor:
    """Nearest-resize the last dimensions of a tensor of any dtype; the tensor itself where the size is right already.

    Args:
        t: (..., H, W), or as many dimensions as the size has.
        size: (h, w).
    """
    for dimension, side in zip(range(-len(size), 0), size, strict=True):
        if t.shape[dimension] != side:
            t = t.index_select(dimension, nearest_source(side, t.shape[dimension], t.device))
    return t


def resize_area(t: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a floating map (B, C, [D,] H, W) by the mean over the pixels below; itself where it has that size.

    Sizes that divide evenly keep the mean of every channel. A larger size repeats pixels, as nearest resizing does.
    """
    full = tuple(t.shape[2:])
    if full == tuple(size):
        return t
    volume = len(full) == 3
    if all(side % small == 0 for side, small in zip(full, size, strict=True)):
        window = [side // small for side, small in zip(full, size, strict=True)]
        return F.avg_pool3d(t, window) if volume else F.avg_pool2d(t, window)
    return F.adaptive_avg_pool3d(t, size) if volume else F.adaptive_avg_pool2d(t, size)
