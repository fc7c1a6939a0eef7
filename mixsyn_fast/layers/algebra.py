"""Algebra shared by the table layers: gather-sums, convolution weights as stacks of taps, and the matrix product.

A 3x3 convolution of a piecewise-constant map is a sum over its nine taps of rows of a small table (docs/exact_algebra.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# The gradient's way back, by index: an index of a plan serves several products of every layer of its size.
_WAYS_BACK: Any = WeakTensorKeyDictionary()


def _way_back(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return which rows of the sum every row of the source is in, one after the other, and where each one's begin."""
    if index not in _WAYS_BACK or len(_WAYS_BACK[index][1]) != rows:
        flat = index.detach().reshape(-1)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=rows)
        _WAYS_BACK[index] = order.div_(index.shape[1], rounding_mode="floor"), counts.cumsum(0) - counts
    found: tuple[Tensor, Tensor] = _WAYS_BACK[index]
    return found


class _GatherSum(torch.autograd.Function):
    """Sums of rows whose gradient is sums of rows, too: torch's own sorts the index anew for every backward pass."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.rows = index, source.shape[0]  # the object: what is known about it is found by it
        return F.embedding_bag(index, source, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        members, begins = _way_back(ctx.index, ctx.rows)
        return F.embedding_bag(members, grad.contiguous(), begins, mode="sum"), None


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
    if (
        source.device.type == "cpu"
        and torch.is_grad_enabled()
        and source.requires_grad
        and not torch.compiler.is_compiling()
    ):
        total: Tensor = _GatherSum.apply(source, index)
        return total
    return F.embedding_bag(index, source, mode="sum")


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    """The weight may be one that :func:`packed` returned."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32 == weight.dtype
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def padded_count(count: int) -> int:
    """Return the number of rows that a product of so many is made with: rows that are as many need no copy for it."""
    step = max(1, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def _padded(rows: Tensor) -> Tensor:
    """Rows padded with zeros to one of sixteen sizes per octave, dense.

    oneDNN makes and keeps a kernel for every shape that it meets, and label maps bring ever new numbers of patterns: without
    this a process grows by some megabytes with every new label map, and spends part of its time on making kernels.
    """
    count, wanted = rows.shape[0], padded_count(rows.shape[0])
    if wanted == count:
        return rows.contiguous()
    result = rows.new_zeros((wanted, rows.shape[1]))
    result[:count] = rows
    return result


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _shortened(result: Tensor, count: int) -> Tensor:
    return result.resize_(count, result.shape[1])  # no slice: autograd refuses to change a view in place


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _shortened(_onednn_product(_padded(x), weight, bias), x.shape[0])


def _onednn_gradients(x: Tensor, grad: Tensor, weight: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x @ weight.T by x and weight, where needed. Dense rows: a strided x (one region's codes) costs 16 ms.

    That of the weight by the BLAS: oneDNN wants both factors transposed in memory, and the copies take longer than either
    product. Both are differentiable where they are to be differentiated again.
    """
    if torch.is_grad_enabled():
        return torch.mm(grad, weight) if needs[0] else None, torch.mm(grad.t(), x) if needs[1] else None
    grad_x = _onednn_linear(grad, weight.t()) if needs[0] else None
    return grad_x, torch.mm(grad.t(), x.contiguous()) if needs[1] else None


class _OneDnnLinear(torch.autograd.Function):
    """x @ weight.T + bias by oneDNN, which on some processors runs at twice the rate of the BLAS behind torch.mm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = _onednn_gradients(x, grad, weight, ctx.needs_input_grad[:2])
        return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix product ``x @ weight.T + bias`` at the best rate of the machine.

    Args:
        x: (M, K).
        weight: (N, K), or what :func:`packed` made of one.
        bias: (N,) or None.

    Returns:
        (M, N). Float32 on a CPU with oneDNN takes its matrix product (but for second derivatives); all else torch's.
    """
    if not _onednn_takes(x, weight):
        return F.linear(x, weight.to_dense() if weight.is_mkldnn else weight, bias)
    wants_gradient = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and wants_gradient:
        product: Tensor = _OneDnnLinear.apply(x, weight, bias)
        return product
    return _onednn_linear(x.detach(), weight.detach(), None if bias is None else bias.detach())


def packed(matrix: Tensor) -> Tensor:
    """Return a matrix (N, K) in oneDNN's own order where :func:`linear` will use it there, else as it is.

    For matrices that serve many products: a third faster with few rows on the other side.
    """
    if not _onednn_takes(matrix, matrix):
        return matrix
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, 64)
    return reordered


def _lies_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _tap_matrix(weight: Tensor) -> Tensor:
    out, inner, height, width = weight.shape
    if _lies_last(weight):
        return weight.permute(2, 3, 0, 1).reshape(height * width * out, inner)
    # stacking nine strided slices is four times faster than one permuted copy
    slices = weight.reshape(out * inner, height * width).unbind(1)
    return torch.stack(slices).view(height * width * out, inner)


def _weight_of_taps(matrix: Tensor, size: torch.Size, last: bool) -> Tensor:
    """The way back: (O, I, kh, kw), channels_last if `last`."""
    out, inner, height, width = size
    result = matrix.reshape(height, width, out, inner).permute(2, 3, 0, 1)
    return result.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class _Taps(torch.autograd.Function):
    """Deinterleave a weight by taps."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.size, ctx.last = weight.shape, _lies_last(weight)
        return _tap_matrix(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _weight_of_taps(grad, ctx.size, ctx.last)


class _TapLinear(torch.autograd.Function):
    """linear(x, taps(weight)) that keeps no copy of the weight for backward: they were a quarter of what a SEAN kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, _tap_matrix(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad_x, grad_matrix = _onednn_gradients(x, grad, taps(weight), ctx.needs_input_grad)
            return grad_x, None if grad_matrix is None else _weight_of_taps(grad_matrix, weight.shape, _lies_last(weight))
        matrix = _tap_matrix(weight) if ctx.needs_input_grad[0] else weight
        grad_x, grad_matrix = _onednn_gradients(x, grad, matrix, ctx.needs_input_grad)
        return grad_x, None if grad_matrix is None else _weight_of_taps(grad_matrix, weight.shape, _lies_last(weight))


def taps(weight: Tensor) -> Tensor:
    """Write a convolution weight (O, I, kh, kw) as the matrix (kh * kw * O, I) of its taps (a copy, differentiable).

    Of a weight (O, I, kd, kh, kw) the matrix (kd * kh * kw * O, I).
    """
    if weight.numel() == 0:
        return weight.reshape(-1, weight.shape[1])
    matrix: Tensor = _Taps.apply(weight.flatten(2, -2))
    return matrix


def tap_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Apply every tap of a convolution weight to every row.

    Args:
        rows: (R, I).
        weight: (O, I, kh, kw) or (O, I, kd, kh, kw).

    Returns:
        (R * kh * kw, O), or (R * kd * kh * kw, O), differentiable in both.
    """
    weight = weight.flatten(2, -2)
    trains = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    product: Tensor
    if trains and weight.numel() > 0 and _onednn_takes(rows, weight):
        product = _TapLinear.apply(rows, weight)
    else:
        product = linear(rows, taps(weight))
    return product.reshape(rows.shape[0] * weight.shape[2] * weight.shape[3], weight.shape[0])


def low_rank_kernels(vectors: Tensor, weight: Tensor) -> Tensor:
    """Return the per-image kernels ``weight vectors_k`` of :func:`low_rank_conv2d`, (B, O, K, kh, kw).

    Args:
        vectors: (B, K, S).
        weight: (O, S, kh, kw).
    """
    batch, count, size = vectors.shape
    out, _, height, width = weight.shape
    # no copy of a channels_last weight, which lies in memory as these rows
    rows = weight.permute(0, 2, 3, 1).reshape(out * height * width, size)
    kernels = linear(vectors.reshape(batch * count, size), rows)
    return kernels.view(batch, count, out, height, width).transpose(1, 2)


def conv2d_per_image(maps: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every image with kernels of its own, zero padding that keeps the size.

    Args:
        maps: (B, K, H, W), converted to the dtype of ``kernels``.
        kernels: (B, O, K, kh, kw), kh and kw odd.

    Returns:
        (B, O, H, W), differentiable in both.
    """
    batch, out, count, kernel_height, kernel_width = kernels.shape
    height, width = maps.shape[2:]
    if batch == 0 or count == 0 or height * width == 0:
        return kernels.new_zeros((batch, out, height, width)) + kernels.sum() * 0 + maps.sum() * 0
    flat = maps.to(kernels.dtype).reshape(1, batch * count, height, width)
    rows = kernels.reshape(batch * out, count, kernel_height, kernel_width)
    padding = (kernel_height // 2, kernel_width // 2)
    return F.conv2d(flat, rows, padding=padding, groups=batch).reshape(batch, out, height, width)


def low_rank_conv2d(vectors: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """Convolve ``x = sum_k maps_k vectors_k`` without making x: per-image kernels ``weight vectors_k`` on the K maps.

    Exact, with zero padding that keeps the size; K channels in place of S (docs/exact_algebra.md, 5 and 7).

    Args:
        vectors: (B, K, S).
        maps: (B, K, H, W), converted to the dtype of ``vectors``.
        weight: (O, S, kh, kw), kh and kw odd.

    Returns:
        (B, O, H, W) in the dtype of ``vectors``, differentiable in all three.
    """
    return conv2d_per_image(maps, low_rank_kernels(vectors, weight))


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Bias of a convolution, (C,), zero where it has none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def both_taps(
    gamma: nn.Conv2d, beta: nn.Conv2d, factor_gamma: Tensor | float = 1, factor_beta: Tensor | float = 1
) -> Tensor:
    """Taps of both convolutions side by side, (9 * 2C, I), packed."""
    return packed(taps(torch.cat((gamma.weight * factor_gamma, beta.weight * factor_beta))))


def apply_taps(rows: Tensor, matrix: Tensor, count: int = 9) -> Tensor:
    """Every tap, of ``count``, applied to every row: (R, I), (count * C, I) -> (R * count, C)."""
    return linear(rows, matrix).reshape(rows.shape[0] * count, -1)


def add_to_centre(rows: Tensor, addend: Tensor, count: int = 9) -> Tensor:
    """Add (2C,) or (R', 2C) to the centre taps of (R * count, 2C) rows, in place.

    Every pattern sums exactly one centre tap, so this adds to every pattern, with far fewer rows to touch.
    """
    centre = rows.view(-1, count, rows.shape[1])[:, count // 2]
    centre[: addend.shape[0] if addend.dim() == 2 else None].add_(addend)
    return rows
