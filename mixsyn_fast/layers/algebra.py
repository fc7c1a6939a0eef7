"""Exact algebra shared by the table layers: gather-sums, convolution weights as stacks of taps, and the matrix product.

A 3x3 convolution of a piecewise-constant map is a sum over its nine taps of rows of a small table (docs/exact_algebra.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gather_sum(source: Tensor, index: Tensor) -> Tensor:
    """Sum rows: ``out[i] = sum_j source[index[i, j]]``.

    Args:
        source: (R, C) floating.
        index: (P, J) integer, values in [0, R).

    Returns:
        (P, C), differentiable in ``source``.
    """
    if index.shape[0] == 0:
        return source.new_zeros((0, source.shape[1])) + source[:0].sum()
    return F.embedding_bag(index, source, mode="sum")


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32 == weight.dtype
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
    )


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    """x @ weight.T through oneDNN, which on some processors runs at twice the rate of the BLAS behind torch.mm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = _onednn_linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = _onednn_linear(grad.t(), x.t()) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Matrix product ``x @ weight.T`` at the best rate of the machine.

    Args:
        x: (M, K).
        weight: (N, K).

    Returns:
        (M, N). Float32 on a CPU with oneDNN takes its matrix product (no second derivative); all else torch's.
    """
    if not _onednn_takes(x, weight):
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _OneDnnLinear.apply(x, weight)
    return _onednn_linear(x.detach(), weight.detach())


def _tap_strides(shape: torch.Size) -> tuple[int, int, int, int]:
    out, inner, height, width = shape
    return inner, 1, width * out * inner, out * inner


def tap_major_(weight: Tensor) -> None:
    """Lay a convolution weight (O, I, kh, kw) out in memory as (kh, kw, O, I), in place; shape and values stay.

    The matrix products of the table plan then read it without a copy. An optimiser, ``state_dict`` and ``load_state_dict``
    see the same parameter; only its strides differ.

    Args:
        weight: a parameter, modified in place (its storage is replaced).
    """
    if type(weight) not in (Tensor, nn.Parameter) or weight.numel() == 0:
        return  # a subclass (sharded, quantised, ...) keeps its own layout
    if weight.stride() == _tap_strides(weight.shape):
        return
    with torch.no_grad():
        weight.data = weight.detach().permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def taps(weight: Tensor) -> Tensor:
    """View a convolution weight (O, I, kh, kw) as the matrix (kh * kw * O, I), without a copy after :func:`tap_major_`."""
    out, inner, height, width = weight.shape
    if weight.is_leaf and not torch.compiler.is_compiling():
        tap_major_(weight)
    return weight.permute(2, 3, 0, 1).reshape(height * width * out, inner)


def taps_of(rows: Tensor, weight: Tensor) -> Tensor:
    """Apply every tap of a convolution to every row: (R, I), (O, I, kh, kw) -> (R * kh * kw, O)."""
    return linear(rows, taps(weight)).reshape(-1, weight.shape[0])
