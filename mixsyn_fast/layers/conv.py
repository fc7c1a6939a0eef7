"""Convolutions that keep their weight in the form the processor wants, in eval on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_backend, is_ordinary
from .derived import Owner, derived, may_keep

_FEW_PIXELS = 64  # of a batch of planes, and
_WIDE_WEIGHT = 1 << 16  # elements: reordering the weight at every call then takes longer than laying out input and output


def settings_are_pairs(module: nn.Conv2d) -> bool:
    """Say whether stride, padding and dilation are pairs of numbers, as the packed convolution wants them."""
    return all(isinstance(value, tuple) for value in (module.stride, module.padding, module.dilation))


def _takes_packed(module: Owner, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> bool:
    """Say whether a call may take a packed weight that is kept: in eval, without gradients, in float32."""
    return (
        may_keep(module, weight, bias)
        and is_ordinary(x)
        and x.device.type == "cpu"
        and x.dtype == torch.float32 == (x if weight is None else weight).dtype
        and x.dim() == 4
        and x.numel() > 0
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and current_backend() != "reference"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format | None:
    """Return the memory layout in which the plain convolution answers, where a packed weight pays; else None.

    The packed convolution answers in channels_last whatever comes in. Of small planes the answer is copied.
    """
    last = x.is_contiguous(memory_format=torch.channels_last)
    if last or not x.is_contiguous():
        return torch.channels_last if last and not x.is_contiguous() else None
    few = x.shape[0] * x.shape[2] * x.shape[3] <= _FEW_PIXELS and weight.numel() >= _WIDE_WEIGHT
    # of a weight in channels_last the plain convolution answers in it
    return torch.contiguous_format if few and weight.is_contiguous() and weight.stride(-1) == 1 else None


def _laid_out(y: Tensor, layout: torch.memory_format) -> Tensor:
    """What a packed convolution answers, in a memory layout; in planes with no other's strides, of a single pixel too."""
    return y if layout == torch.channels_last else y.contiguous().flatten().view(y.shape)


def _can_prepack(module: nn.Conv2d, x: Tensor) -> bool:
    return (
        module.groups == 1
        and module.padding_mode == "zeros"
        and settings_are_pairs(module)
        and _takes_packed(module, x, module.weight, module.bias)
    )


def _packed(weight: Tensor, how: tuple[tuple[int, ...], ...], x: Tensor) -> Tensor:
    """Lay a weight out as oneDNN wants it for a convolution with (padding, stride, dilation) of inputs like x."""
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # torch's stub lacks the size of the input
    # oneDNN picks the form for the first size and takes it at every other one
    packed: Tensor = reorder(weight.to_mkldnn(), *how, 1, list(x.shape))
    return packed


def conv2d(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Forward of a convolution; in eval, without gradient, its weight is packed once for oneDNN.

    That is for float32 on a CPU, in channels_last, or of so few pixels that the weight is most of the work.

    Packing saves reordering the weight at every call, half the time of the layers at 8 x 8 and 16 x 16. Everywhere else
    this is the plain convolution of the module.

    Args:
        module: the convolution.
        x: (B, C, H, W).

    Returns:
        (B, O, H', W'), in the memory layout that the plain convolution gives.
    """
    y: Tensor
    layout = _layout(x, module.weight) if _can_prepack(module, x) else None
    if layout is None:
        y = module._conv_forward(x, module.weight, module.bias)
        return y
    how: Any = (module.padding, module.stride, module.dilation)
    packed = derived(module, "prepacked", (module.weight, *how), lambda: _packed(module.weight.detach(), how, x))
    bias = None if module.bias is None else module.bias.detach()
    y = torch.ops.mkldnn._convolution_pointwise(x.detach(), packed, bias, *how, 1, "none", [], "")
    return _laid_out(y, layout)


def packed_conv2d(
    module: Owner, name: str, x: Tensor, weight: Tensor, bias: Tensor, sources: tuple[Tensor | None, ...]
) -> Tensor:
    """Convolve at stride 1 with a weight that is made of parameters; in eval it is packed for oneDNN once.

    Args:
        module: owner of the parameters.
        name: which weight of the module.
        x: (B, I, H, W).
        weight: (O, I, k, k), k odd; padding keeps the size.
        bias: (O,).
        sources: the parameters that weight and bias were made of.

    Returns:
        (B, O, H, W).
    """
    how: Any = ((weight.shape[2] // 2,) * 2, (1, 1), (1, 1))
    takes = may_keep(module, *sources) and _takes_packed(module, x, None) and x.dtype == weight.dtype
    layout = _layout(x, weight) if takes else None
    if layout is None:
        return F.conv2d(x, weight, bias, padding=how[0])
    packed = derived(module, ("prepacked", name), (*sources, *how), lambda: _packed(weight.detach(), how, x))
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x.detach(), packed, bias.detach(), *how, 1, "none", [], "")
    return _laid_out(y, layout)


def scaled_conv2d(module: Owner, x: Tensor, weight: Tensor, folded: Callable[[], Tensor], up: bool) -> Tensor:
    """Convolve with a weight that is made of a parameter; in eval it is made, and packed for oneDNN, once.

    Args:
        module: owner of the parameter.
        x: (B, I, H, W).
        weight: the parameter.
        folded: makes the weight (O, I, k, k) of it, k odd.
        up: as a transposed convolution of stride 2 without padding, (2H + k - 2, 2W + k - 2); else with the padding that
            keeps the size.

    Returns:
        (B, O, H', W').
    """
    pad = weight.shape[2] // 2
    zero, one, two = (0, 0), (1, 1), (2, 2)
    y: Tensor
    packs = _takes_packed(module, x, weight) and _layout(x, weight) == torch.channels_last
    if not packs or (up and not hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise")):
        made = folded()
        y = F.conv_transpose2d(x, made.transpose(0, 1), stride=2) if up else F.conv2d(x, made, padding=pad)
    elif up:

        def turned() -> Tensor:
            made = folded().detach().transpose(0, 1).contiguous()
            reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
            packed: Tensor = reorder(made, zero, zero, two, one, 1, list(x.shape))
            return packed

        packed = derived(module, "prepacked", (weight,), turned)
        how: Any = (zero, zero, two, one, 1, "none", [], "")
        y = torch.ops.mkldnn._convolution_transpose_pointwise(x.detach(), packed, None, *how)
    else:
        packed = derived(module, "prepacked", (weight,), lambda: _packed(folded().detach(), ((pad, pad), one, one), x))
        y = torch.ops.mkldnn._convolution_pointwise(x.detach(), packed, None, (pad, pad), one, one, 1, "none", [], "")
    return y


class FastConv2d(nn.Conv2d):
    """``nn.Conv2d`` (same parameters, same state_dict) whose forward is :func:`conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d's argument
        """Convolve (B, C, H, W)."""
        return conv2d(self, input)
