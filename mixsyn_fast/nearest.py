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


def resize_nearest(t: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-resize the last two dimensions of a tensor of any dtype; the tensor itself where the size is right already.

    Args:
        t: (..., H, W).
        size: (h, w).
    """
    height, width = t.shape[-2:]
    if (height, width) == size:
        return t
    rows, columns = nearest_source(size[0], height, t.device), nearest_source(size[1], width, t.device)
    return t.index_select(-2, rows).index_select(-1, columns)


def resize_area(t: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a floating map (B, C, H, W) to (h, w) by the mean over the pixels below; itself where it has that size.

    Sizes that divide evenly keep the mean of every channel. A larger size repeats pixels, as nearest resizing does.
    """
    height, width = t.shape[-2:]
    if (height, width) == size:
        return t
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(t, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(t, size)
