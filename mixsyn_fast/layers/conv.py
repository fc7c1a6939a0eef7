"""Convolutions that keep their weight in the form the processor wants, in eval on a CPU."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..backend import current_backend

_SAMPLE = 512


class Fingerprint:
    """Tells whether a tensor still holds what it held: identity, storage, version counter, and a sample of the values.

    The version counter sees every in-place edit through the tensor itself (optimisers, ``load_state_dict``, ``copy_``),
    also inside ``inference_mode``. Edits through ``.data`` or a detached alias leave it alone: those are found by a sample
    of 512 values, which any update of the whole tensor (an averaged copy, an optimiser that works on ``.data``) changes.
    An edit of single elements through ``.data`` can escape: call :func:`forget` after one. A tensor made inside
    ``inference_mode`` has no version counter: nothing derived from it is kept.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.key = self._key(tensor)
        self.sample = self._sampled(tensor).clone()

    @staticmethod
    def _key(tensor: Tensor) -> tuple[Any, ...]:
        return id(tensor), tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype

    @staticmethod
    def _sampled(tensor: Tensor) -> Tensor:
        """At most 512 elements spread over the storage (the tensors concerned are dense)."""
        tensor = tensor.detach()
        step = max(1, tensor.numel() // _SAMPLE)
        count = (tensor.numel() + step - 1) // step
        return tensor.as_strided((count,), (step,))

    def matches(self, tensor: Tensor) -> bool:
        """True while the tensor is the same, with the same contents."""
        return self.key == self._key(tensor) and torch.equal(self.sample, self._sampled(tensor))


_prepacked: WeakKeyDictionary[nn.Module, tuple[Fingerprint, tuple[int, ...], Tensor]] = WeakKeyDictionary()


def forget(module: nn.Module) -> None:
    """Drop everything derived from the weights of a module and its children.

    Needed only after an edit of single weights through ``.data``; every other change is noticed.

    Args:
        module: the model.
    """
    for child in module.modules():
        _prepacked.pop(child, None)


def _can_prepack(module: nn.Conv2d, x: Tensor) -> bool:
    weight = module.weight
    return (
        not module.training
        and x.device.type == "cpu"
        and x.dtype == torch.float32 == weight.dtype
        and x.dim() == 4
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and isinstance(weight, nn.Parameter)
        and not weight.is_inference()
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and current_backend() != "reference"
        and weight.is_contiguous() | weight.is_contiguous(memory_format=torch.channels_last)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
    )


def conv2d(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Forward of a convolution; in eval, without gradient, in float32 on a CPU its weight is packed once for oneDNN.

    Packing saves reordering the weight at every call, half the time of the layers at 8 x 8 and 16 x 16. Everywhere else
    this is the plain convolution of the module.

    Args:
        module: the convolution.
        x: (B, C, H, W).

    Returns:
        (B, O, H', W'), in channels_last where x is.
    """
    if not _can_prepack(module, x):
        return module._conv_forward(x, module.weight, module.bias)
    size = tuple(x.shape)
    kept = _prepacked.get(module)
    if kept is None or kept[1] != size or not kept[0].matches(module.weight):
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
            module.weight.detach().to_mkldnn(), module.padding, module.stride, module.dilation, 1, list(size)
        )
        kept = (Fingerprint(module.weight), size, packed)
        _prepacked[module] = kept
    bias = None if module.bias is None else module.bias.detach()
    return torch.ops.mkldnn._convolution_pointwise(
        x.detach(), kept[2], bias, module.padding, module.stride, module.dilation, 1, "none", [], ""
    )


class FastConv2d(nn.Conv2d):
    """``nn.Conv2d`` (same parameters, same state_dict) whose forward is :func:`conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d's argument
        """Convolve (B, C, H, W)."""
        return conv2d(self, input)
