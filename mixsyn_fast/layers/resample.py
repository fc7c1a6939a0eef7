"""Resampling by two with the filter [1, 3, 3, 1] of StyleGAN2 (Karras et al., CVPR 2020, appendix B), exact and cheap.

The filter is symmetric, so correlation and convolution agree. It is evaluated at the kept positions alone, and of an image
with zeros between the pixels it reads the pixels alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = (1.0, 3.0, 3.0, 1.0)


def filter_2d(gain: float = 1.0, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the 4 x 4 filter, whose values sum to ``gain``."""
    taps = torch.tensor(TAPS, device=device, dtype=dtype)
    square = torch.outer(taps, taps)
    return square * (gain / square.sum())


def _depthwise(x: Tensor, gain: float) -> Tensor:
    return filter_2d(gain, x.device, x.dtype).expand(x.shape[1], 1, 4, 4)


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Filter (B, C, H, W) with ``padding`` zeros at every side: (B, C, H + 2 padding - 3, W + 2 padding - 3)."""
    return F.conv2d(x, _depthwise(x, gain), padding=padding, groups=x.shape[1])


def upsample_2d(x: Tensor) -> Tensor:
    """Enlarge (B, C, H, W) to (B, C, 2H, 2W): zeros between the pixels, then the filter with gain 4, in one step.

    Of the 16 taps only 4 meet a pixel; the transposed convolution takes those alone.
    """
    return F.conv_transpose2d(x, _depthwise(x, 4.0), stride=2, padding=1, groups=x.shape[1])


def downsample_2d(x: Tensor) -> Tensor:
    """Reduce (B, C, H, W), H and W even, to (B, C, H/2, W/2): the filter at every second position, in one step."""
    return F.conv2d(x, _depthwise(x, 1.0), stride=2, padding=1, groups=x.shape[1])
