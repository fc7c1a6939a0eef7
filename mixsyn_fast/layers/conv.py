"""Convolutions that keep their weight in the form the processor wants, in eval on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backend import current_backend
from .derived import derived, may_keep


def settings_are_pairs(module: nn.Conv2d) -> bool:
    """Say whether stride, padding and dilation are pairs of numbers, as the packed convolution wants them."""
    return all(isinstance(value, tuple) for value in (module.stride, module.padding, module.dilation))


def _can_prepack(module: nn.Conv2d, x: Tensor) -> bool:
    weight = module.weight
    return (
        may_keep(module, weight, module.bias)
        and x.device.type == "cpu"
        and x.dtype == torch.float32 == weight.dtype
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()  # the packed convolution answers in channels_last whatever comes in
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and module.groups == 1
        and module.padding_mode == "zeros"
        and settings_are_pairs(module)
        and current_backend() != "reference"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def conv2d(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Forward of a convolution; in eval, without gradient, its weight is packed once for oneDNN.

    That is for float32 in channels_last on a CPU.

    Packing saves reordering the weight at every call, half the time of the layers at 8 x 8 and 16 x 16. Everywhere else
    this is the plain convolution of the module.

    Args:
        module: the convolution.
        x: (B, C, H, W).

    Returns:
        (B, O, H', W'), in the memory layout that the plain convolution gives.
    """
    y: Tensor
    if not _can_prepack(module, x):
        y = module._conv_forward(x, module.weight, module.bias)
        return y
    how = (module.padding, module.stride, module.dilation, 1)

    def pack() -> Tensor:
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # torch's stub lacks the size of the input
        weight: Tensor = reorder(module.weight.detach().to_mkldnn(), *how, list(x.shape))
        return weight

    # oneDNN picks the form for the first size and takes it at every other one
    packed = derived(module, "prepacked", (module.weight, *how), pack)
    bias = None if module.bias is None else module.bias.detach()
    y = torch.ops.mkldnn._convolution_pointwise(x.detach(), packed, bias, *how, "none", [], "")
    return y


class FastConv2d(nn.Conv2d):
    """``nn.Conv2d`` (same parameters, same state_dict) whose forward is :func:`conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d's argument
        """Convolve (B, C, H, W)."""
        return conv2d(self, input)
