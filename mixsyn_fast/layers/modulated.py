r"""Modulated convolution of StyleGAN2 (Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020).

.. math::

    w'_{b,o,i,t} = s_{b,i}\, w_{o,i,t}, \qquad
    w''_{b,o,i,t} = w'_{b,o,i,t} \Big/ \sqrt{\textstyle\sum_{i,t} (w'_{b,o,i,t})^2 + \epsilon}          (Eq. 1, 3)

As published, every sample gets weights of its own, (B, O, I, k, k), and a convolution with B groups. Convolution is linear
in its input and its output channels, so the same numbers come from one ordinary convolution of the whole batch, with the
style on its input and the demodulation on its output (docs/exact_algebra.md, 11):

    y[b] = d[b] * conv(s[b] * x[b], w),    d[b,o] = 1 / sqrt(sum_i s[b,i]^2 W2[o,i] + eps),    W2[o,i] = sum_t w[o,i,t]^2

No weight tensor per sample is made, forward or backward, and the factor d goes into the pass of noise, bias and activation.
The filter that follows an up-convolution acts on each channel alone, so d commutes with it too.

Under ``use_plan("dense")`` the layer runs as published.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_plan
from ..ops._common import check_integer, check_tensor, fail
from .conv import scaled_conv2d
from .derived import derived, may_keep
from .equalized import EqualizedLinear
from .resample import blur, filter_2d

EPSILON = 1e-8


def _check(x: Tensor, weight: Tensor, style: Tensor) -> None:
    own = "modulated_conv2d"
    for name, value, form in (("x", x, "(B, I, H, W)"), ("weight", weight, "(O, I, k, k)"), ("style", style, "(B, I)")):
        check_tensor(own, name, value)
        if value.dim() != form.count(",") + 1:
            fail(own, name, f"shape {form}", tuple(value.shape))
    if weight.shape[2] != weight.shape[3] or weight.shape[2] not in (1, 3):
        fail(own, "weight", "shape (O, I, k, k), k 1 or 3", tuple(weight.shape))
    if x.shape[1] != weight.shape[1]:
        fail(own, "x", f"{weight.shape[1]} channels, as the weight's input has", x.shape[1])
    if style.shape != x.shape[:2]:
        fail(own, "style", f"shape {tuple(x.shape[:2])}, as batch and channels of x", tuple(style.shape))


def demodulation(style: Tensor, squares: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Return d (B, O) from the style (B, I) and W2 (O, I), at least in float32: a square needs twice the range."""
    with torch.autocast(style.device.type, enabled=False):
        wide = style if style.dtype.itemsize >= 4 else style.float()
        return torch.rsqrt(F.linear(wide.square(), squares.to(wide.dtype)) + epsilon)


def _spread(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    """Convolve; with ``up`` as a transposed convolution of stride 2, (2H + 1, 2W + 1), before the filter."""
    if up:
        return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def modulated_conv2d_reference(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool) -> Tensor:
    """As published: a weight tensor per sample, one convolution with as many groups as samples. See `modulated_conv2d`."""
    batch, channels, height, width = x.shape
    own = weight * style[:, None, :, None, None]  # (B, O, I, k, k)
    if demodulate:
        own = own * torch.rsqrt(own.square().sum((2, 3, 4), keepdim=True) + EPSILON)
    x = x.reshape(1, batch * channels, height, width)
    if up:
        own = own.transpose(1, 2).reshape(batch * channels, -1, *weight.shape[2:])
        y = F.conv_transpose2d(x, own, stride=2, groups=batch)
    else:
        # contiguous: with the strides that weights of a channels_last network give here, torch 2.13 takes wrong gradients
        y = F.conv2d(x, own.flatten(0, 1).contiguous(), padding=weight.shape[2] // 2, groups=batch)
    y = y.view(batch, -1, *y.shape[2:])
    return blur(y, 1, 4.0) if up else y


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True, up: bool = False) -> Tensor:
    """Convolve every sample with weights scaled by its style.

    Args:
        x: (B, I, H, W).
        weight: (O, I, k, k), k 1 or 3, all constant factors included.
        style: (B, I).
        demodulate: divide by the norm of each output channel's weights (Eq. 3).
        up: enlarge by two: a transposed convolution of stride 2, then the filter [1, 3, 3, 1] with gain 4.

    Returns:
        (B, O, H, W), or (B, O, 2H, 2W) with ``up``. Twice differentiable.

    Raises:
        ValueError, TypeError: shapes that do not fit each other.
    """
    _check(x, weight, style)
    if current_plan() == "dense":
        return modulated_conv2d_reference(x, weight, style, demodulate, up)
    y = _spread(x * style[:, :, None, None], weight, up)
    if up:
        y = blur(y, 1, 4.0)
    return y * demodulation(style, weight.square().sum((2, 3)))[:, :, None, None] if demodulate else y


class ModulatedConv2d(nn.Module):
    """A modulated convolution and the affine layer that makes its style of w.

    Entries of the state_dict are named as in the common PyTorch port: ``weight`` (O, I, k, k) (there with one more
    dimension, of 1, in front), ``modulation.{weight,bias}``, with ``up`` also ``blur.kernel``.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: 1 or 3.
        w_dim: length of w.
        demodulate: see `modulated_conv2d`.
        up: see `modulated_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        w_dim: int,
        demodulate: bool = True,
        up: bool = False,
    ) -> None:
        super().__init__()
        own = "ModulatedConv2d"
        in_channels = check_integer(own, "in_channels", in_channels, 1, None)
        out_channels = check_integer(own, "out_channels", out_channels, 1, None)
        if kernel_size not in (1, 3) or (up and kernel_size != 3):
            fail(own, "kernel_size", "3" if up else "1 or 3", kernel_size)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualizedLinear(w_dim, in_channels, 1.0, activate=False, bias=1.0)
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate, self.up = demodulate, up
        if up:
            self.blur = Filter(4.0)

    def folded(self) -> Tensor:
        """Return the weight (O, I, k, k) with its constant factor."""
        return self.weight * self.scale

    def squares(self) -> Tensor:
        """Return W2 (O, I), the sums over the taps of the folded weight's squares; kept in eval."""

        def make() -> Tensor:
            return self.folded().square().sum((2, 3))

        return derived(self, "squares", (self.weight,), make) if may_keep(self, self.weight) else make()

    def parts(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the modulated input s x, the convolution before demodulation, and d (B, O).

        Whoever adds noise, bias and activation multiplies by d in the same pass. d is None where there is nothing left to
        multiply: no demodulation, or ``use_plan("dense")``.

        Args:
            x: (B, I, H, W).
            style: (B, I), the layer's part of an S code.
        """
        modulated = x * style[:, :, None, None]
        if current_plan() == "dense":
            return modulated, modulated_conv2d_reference(x, self.folded(), style, self.demodulate, self.up), None
        y = scaled_conv2d(self, modulated, self.weight, self.folded, self.up)
        if self.up:
            y = blur(y, 1, 4.0)
        return modulated, y, demodulation(style, self.squares()) if self.demodulate else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, O, H, W), or (B, O, 2H, 2W) with ``up``; see `modulated_conv2d`."""
        _check(x, self.weight, style)
        _, y, factor = self.parts(x, style)
        return y if factor is None else y * factor[:, :, None, None]


class Filter(nn.Module):
    """The filter [1, 3, 3, 1] as the common PyTorch port stores it: a buffer ``kernel`` (4, 4), which must be this one."""

    kernel: Tensor

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.register_buffer("kernel", filter_2d(gain))
