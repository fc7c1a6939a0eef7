"""Layers with equalised learning rate (Karras et al.: Progressive Growing of GANs, ICLR 2018, section 4.1).

Weights are kept at unit variance and scaled in every forward, so that an optimiser with a per-parameter step size (Adam)
moves all layers at the same relative speed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops._common import check_integer, check_number, fail

SLOPE = 0.2
"""Of every leaky ReLU in StyleGAN2."""
GAIN = math.sqrt(2.0)
"""After every leaky ReLU: what came in with unit variance leaves with about that."""


class EqualizedLinear(nn.Module):
    """Linear layer with equalised learning rate; with ``activate`` leaky ReLU 0.2 times sqrt 2 follows.

    ``y = x @ (weight * lr_mul / sqrt(fan_in)).T + bias * lr_mul``, then ``sqrt(2) * leaky_relu(y)``; the parameters are
    drawn from N(0, 1 / lr_mul^2), the bias is ``bias / lr_mul``.

    Args:
        in_features: length of the input.
        out_features: length of the output.
        lr_mul: factor of the learning rate.
        activate: leaky ReLU and gain after the linear part.
        bias: first value of the bias, as the layer adds it.
    """

    def __init__(
        self, in_features: int, out_features: int, lr_mul: float = 0.01, activate: bool = True, bias: float = 0.0
    ) -> None:
        super().__init__()
        in_features = check_integer("EqualizedLinear", "in_features", in_features, 1, None)
        out_features = check_integer("EqualizedLinear", "out_features", out_features, 1, None)
        lr_mul = check_number("EqualizedLinear", "lr_mul", lr_mul)
        if lr_mul <= 0:
            fail("EqualizedLinear", "lr_mul", "a positive number", lr_mul)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_mul))
        self.scale = lr_mul / math.sqrt(in_features)
        self.lr_mul = lr_mul
        self.activate = activate

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the plain linear layer (before the leaky ReLU), all factors included."""
        gain = GAIN if self.activate else 1.0
        return self.weight * (self.scale * gain), self.bias * (self.lr_mul * gain)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (..., in_features)."""
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(y, SLOPE) * GAIN if self.activate else y


class EqualizedConv2d(nn.Module):
    """Convolution with equalised learning rate: ``conv(x, weight / sqrt(fan_in)) + bias``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: odd, or what ``padding`` wants.
        stride: of the convolution.
        padding: zeros around the input.
        bias: with a bias, drawn as 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)
