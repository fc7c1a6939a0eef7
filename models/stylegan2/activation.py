"""Bias and leaky ReLU after a convolution, with everything else that goes into the same pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.layers.equalized import GAIN, SLOPE


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    slope: float = SLOPE,
    gain: float = GAIN,
) -> Tensor:
    """Return gain * leaky_relu(x * scale[:, :, None, None] + strength * noise + bias)."""
    if scale is not None:
        x = x * scale[:, :, None, None]
    if noise is not None:
        x = x + noise * strength
    if bias is not None:
        x = x + bias[:, None, None]
    return F.leaky_relu(x, slope) * gain


class Bias(nn.Module):
    """The bias of a layer with an activation, (C), first 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias and apply leaky ReLU and gain."""
        return bias_act(x, self.bias)
