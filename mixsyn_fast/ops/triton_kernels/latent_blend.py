"""Triton kernels of latent_blend: the same two functions as the ops in ``mixsyn_fast.ops.latent_blend``.

They run wherever Triton does, without a CUDA compiler, and on the CPU in its interpreter (TRITON_INTERPRET=1), which is how
they are tested without a GPU. Arguments, results and formulas are those of the ops. One kernel for all layers and one for
the gradient: the layers are constants of the compiled kernel, so a new list of widths compiles anew and nothing is copied to
the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import device_of

_TILE = 2048  # logits of a program


# --- kernels ---------------------------------------------------------------------------------------------------------
# A program owns one image, one layer, and BLOCK_C of its channels with BLOCK_G >= g logits each, g = D / width. BEGINS are
# the first channels of the layers, then S: a tuple of constants.


@triton.jit
def _channels(BEGINS: tl.constexpr, LAYERS: tl.constexpr, BLOCK_C: tl.constexpr):
    """First channel of the layer, its width, and the program's channels within the layer."""
    layer = tl.program_id(1)
    begin = layer * 0
    end = layer * 0
    for i in tl.static_range(LAYERS):
        begin = tl.where(layer == i, BEGINS[i], begin)
        end = tl.where(layer == i, BEGINS[i + 1], end)
    return begin, end - begin, tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _decisive(x, i, g, largest, BLOCK_G: tl.constexpr, DOUBLE: tl.constexpr):
    """First index of the largest (else smallest) of each row's first g values, or of its first NaN; and the value there."""
    plain = tl.where(x == 0, 0.0, x)
    if DOUBLE:
        bits = plain.to(tl.int64, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
    else:
        bits = plain.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    # NaN above everything, the places beyond the group below: a number's order never reaches the ends of the range, which
    # belong to NaN
    order = tl.where(largest[:, None], order, ~order)
    order = tl.where(x != x, 0x7FFFFFFFFFFFFFFF, order)
    order = tl.where((i < g)[None, :], order, -0x7FFFFFFFFFFFFFFF - 1)
    top = tl.max(order, 1)
    first = tl.min(tl.where(order == top[:, None], i[None, :], BLOCK_G), 1)
    value = tl.sum(tl.where(i[None, :] == first[:, None], x, 0.0), 1)
    return first, value


@triton.jit
def _forward_kernel(
    a, b, logits, blended, q_out, S, D,
    BEGINS: tl.constexpr, LAYERS: tl.constexpr, Q_ON_B: tl.constexpr, DOUBLE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """blended, q (B, S)."""
    image = tl.program_id(0).to(tl.int64)
    begin, width, c = _channels(BEGINS, LAYERS, BLOCK_C)
    g = D // width
    mask = c < width
    at = image * S + begin + c
    i = tl.arange(0, BLOCK_G)
    group = (image * LAYERS + tl.program_id(1)) * D + c[:, None] * g + i[None, :]
    x = tl.load(logits + group, mask=mask[:, None] & (i < g)[None, :], other=0).to(ACC)
    first = tl.load(a + at, mask=mask, other=0).to(ACC)
    second = tl.load(b + at, mask=mask, other=0).to(ACC)
    largest = second > first
    if not Q_ON_B:
        largest = ~largest
    _, logit = _decisive(x, i, g, largest, BLOCK_G, DOUBLE)
    q = 1 / (1 + tl.exp(-logit))
    if Q_ON_B:
        value = first + q * (second - first)
    else:
        value = second + q * (first - second)
    tl.store(blended + at, value.to(blended.dtype.element_ty), mask=mask)
    tl.store(q_out + at, q.to(q_out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad, grad_q, a, b, logits, grad_a, grad_b, grad_logits, S, D,
    BEGINS: tl.constexpr, LAYERS: tl.constexpr, Q_ON_B: tl.constexpr, GRAD: tl.constexpr, GRAD_Q: tl.constexpr,
    DOUBLE: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """grad_a, grad_b (B, S), grad_logits (B, L, D), written completely. GRAD, GRAD_Q: whether they are given."""
    image = tl.program_id(0).to(tl.int64)
    begin, width, c = _channels(BEGINS, LAYERS, BLOCK_C)
    g = D // width
    mask = c < width
    at = image * S + begin + c
    i = tl.arange(0, BLOCK_G)
    group = (image * LAYERS + tl.program_id(1)) * D + c[:, None] * g + i[None, :]
    mask_g = mask[:, None] & (i < g)[None, :]
    x = tl.load(logits + group, mask=mask_g, other=0).to(ACC)
    first = tl.load(a + at, mask=mask, other=0).to(ACC)
    second = tl.load(b + at, mask=mask, other=0).to(ACC)
    largest = second > first
    if not Q_ON_B:
        largest = ~largest
    index, logit = _decisive(x, i, g, largest, BLOCK_G, DOUBLE)
    q = 1 / (1 + tl.exp(-logit))
    dq = tl.zeros([BLOCK_C], ACC)
    rest = tl.zeros([BLOCK_C], ACC)
    share = tl.zeros([BLOCK_C], ACC)
    if GRAD:
        y = tl.load(grad + at, mask=mask, other=0).to(ACC)
        rest = y * (1 - q)
        share = y * q
        if Q_ON_B:
            dq = y * (second - first)
        else:
            dq = y * (first - second)
    if GRAD_Q:
        dq += tl.load(grad_q + at, mask=mask, other=0).to(ACC)
    dlogit = q * (1 - q) * dq
    if Q_ON_B:
        tl.store(grad_a + at, rest.to(grad_a.dtype.element_ty), mask=mask)
        tl.store(grad_b + at, share.to(grad_b.dtype.element_ty), mask=mask)
    else:
        tl.store(grad_a + at, share.to(grad_a.dtype.element_ty), mask=mask)
        tl.store(grad_b + at, rest.to(grad_b.dtype.element_ty), mask=mask)
    found = tl.where(i[None, :] == index[:, None], dlogit[:, None], 0.0)
    tl.store(grad_logits + group, found.to(grad_logits.dtype.element_ty), mask=mask_g)


# --- launchers -------------------------------------------------------------------------------------------------------


def _plan(a: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Grid, and the constants of the kernels."""
    begins = [0]
    for width in channels:
        begins.append(begins[-1] + width)
    double = a.dtype == torch.float64
    block_g = triton.next_power_of_2(max(logits.shape[2] // width for width in channels))
    block_c = min(triton.next_power_of_2(max(channels)), max(_TILE // block_g, 1))
    constants = {
        "BEGINS": tuple(begins),
        "LAYERS": len(channels),
        "Q_ON_B": q_on_b,
        "DOUBLE": double,
        "ACC": tl.float64 if double else tl.float32,
        "BLOCK_C": block_c,
        "BLOCK_G": block_g,
    }
    return (a.shape[0], len(channels), -(-max(channels) // block_c)), constants


def latent_blend(a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool) -> tuple[Tensor, Tensor]:
    """Blended and q (B, S): see op ``latent_blend``."""
    a, b, logits = a.contiguous(), b.contiguous(), logits.contiguous()
    blended, q = torch.empty_like(a), torch.empty_like(a)
    if a.numel() == 0:
        return blended, q
    grid, constants = _plan(a, logits, channels, q_on_b)
    with device_of(a):
        _forward_kernel[grid](a, b, logits, blended, q, a.shape[1], logits.shape[2], **constants)
    return blended, q


def latent_blend_backward(
    grad: Tensor | None,
    grad_q: Tensor | None,
    a: Tensor,
    b: Tensor,
    logits: Tensor,
    channels: Sequence[int],
    q_on_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_a, grad_b (B, S) and grad_logits (B, L, D): see op ``latent_blend_backward``."""
    a, b, logits = a.contiguous(), b.contiguous(), logits.contiguous()
    grad_a, grad_b, grad_logits = torch.empty_like(a), torch.empty_like(b), torch.empty_like(logits)
    if a.numel() == 0:
        return grad_a, grad_b, grad_logits.zero_()
    grad = None if grad is None else grad.contiguous()
    grad_q = None if grad_q is None else grad_q.contiguous()
    grid, constants = _plan(a, logits, channels, q_on_b)
    with device_of(a):
        _backward_kernel[grid](
            grad, grad_q, a, b, logits, grad_a, grad_b, grad_logits, a.shape[1], logits.shape[2],
            GRAD=grad is not None, GRAD_Q=grad_q is not None, **constants,
        )  # fmt: skip
    return grad_a, grad_b, grad_logits
