"""Triton kernels of bias_act: the same two functions as the ops in ``mixsyn_fast.ops.bias_act``.

Arguments, results and formulas are those of the ops. Loads are cast to the accumulation type at once (float32, or float64
for float64). Deterministic: sums are taken per block, then over blocks in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import device_of

_TILE = 2048  # elements of a tile
_BLOCKS = 512  # blocks aimed at by the backward; a constant, so that sums are split alike everywhere
_STREAM_BLOCKS = 4096


# --- kernels ---------------------------------------------------------------------------------------------------------
# Common arguments: C channels, N pixels (H*W) of an image; the element (b, c, p) of a map lies at b*C*N + c*SC + p*SP
# with (SC, SP) = (1, C) channels_last or (N, 1) contiguous. A program owns CHUNK pixels of one image (block `part` of
# PARTS) and BLOCK_C channels. HIGH and LOW: the factor where u >= 0, and elsewhere.


@triton.jit
def _forward_kernel(
    x, bias, scale, noise, strength, y, C, N, SC, SP, CHUNK, PARTS, NOISE_STRIDE, BIAS: tl.constexpr, SCALE: tl.constexpr,
    NOISE: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Y as x. BIAS, SCALE, NOISE: they are there."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = tl.zeros([BLOCK_C], ACC)
    if BIAS:
        shift = tl.load(bias + c, mask=c < C, other=0)
    if SCALE:
        factor = tl.load(scale + image * C + c, mask=c < C, other=0)
    if NOISE:
        sigma = tl.load(strength)
    high = tl.full([BLOCK_P, BLOCK_C], HIGH, ACC)
    low = tl.full([BLOCK_P, BLOCK_C], LOW, ACC)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        at = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        u = tl.load(x + at, mask=mask, other=0).to(ACC)
        if SCALE:
            u = u * factor[None, :]
        if NOISE:
            n = tl.load(noise + image * NOISE_STRIDE + pixel, mask=mask_p, other=0).to(ACC)
            u += (n * sigma)[:, None]
        u += shift[None, :]
        tl.store(y + at, (u * tl.where(u >= 0, high, low)).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad, y, x, scale, grad_x, part_bias, part_scale, part_sums, C, N, SC, SP, CHUNK, PARTS, ALL_PIXELS,
    SCALE: tl.constexpr, GRAD_SCALE: tl.constexpr, SUMS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of h = factor * grad: grad_x as x; part_bias, part_scale (B, PARTS, C); part_sums (channel blocks, B, N)."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    channel_block = tl.program_id(1).to(tl.int64)
    c = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    if SCALE:
        factor = tl.load(scale + image * C + c, mask=c < C, other=0)
    sum_h = tl.zeros([BLOCK_C], ACC)
    sum_hx = tl.zeros([BLOCK_C], ACC)
    high = tl.full([BLOCK_P, BLOCK_C], HIGH, ACC)
    low = tl.full([BLOCK_P, BLOCK_C], LOW, ACC)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        at = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        h = tl.load(grad + at, mask=mask, other=0).to(ACC)
        value = tl.load(y + at, mask=mask, other=0).to(ACC)
        h = h * tl.where(value >= 0, high, low)
        sum_h += tl.sum(h, 0)
        if GRAD_SCALE:
            sum_hx += tl.sum(h * tl.load(x + at, mask=mask, other=0).to(ACC), 0)
        if SUMS:
            tl.store(part_sums + channel_block * ALL_PIXELS + image * N + pixel, tl.sum(h, 1), mask=mask_p)
        if SCALE:
            h = h * factor[None, :]
        tl.store(grad_x + at, h.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(part_bias + block * C + c, sum_h, mask=c < C)
    if GRAD_SCALE:
        tl.store(part_scale + block * C + c, sum_hx, mask=c < C)


# --- launchers -------------------------------------------------------------------------------------------------------


class _Plan:
    """Layout of x and the split into blocks.

    Args:
        x: (B, C, H, W), contiguous or channels_last, not empty.
        target: number of blocks aimed at.
        pixels: of a tile at most, in contiguous layout.
    """

    def __init__(self, x: Tensor, target: int, pixels: int = 256) -> None:
        self.batch, self.channels, height, width = x.shape
        self.pixels = height * width
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        self.strides = (1, self.channels) if channels_last else (self.pixels, 1)
        self.acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        c2, n2 = triton.next_power_of_2(self.channels), triton.next_power_of_2(self.pixels)
        if channels_last:
            self.block_c = min(c2, 128)
            self.block_p = min(n2, _TILE // self.block_c)
        else:
            self.block_p = min(n2, pixels)
            self.block_c = min(c2, _TILE // self.block_p)
        self.channel_blocks = triton.cdiv(self.channels, self.block_c)
        tiles = triton.cdiv(self.pixels, self.block_p)
        parts = min(max(target // (self.batch * self.channel_blocks), 1), tiles)
        self.chunk = triton.cdiv(tiles, parts) * self.block_p
        self.parts = triton.cdiv(self.pixels, self.chunk)

    @property
    def grid(self) -> tuple[int, int]:
        return self.batch * self.parts, self.channel_blocks

    @property
    def sizes(self) -> tuple[int, ...]:
        """C, N, SC, SP, CHUNK and PARTS."""
        return self.channels, self.pixels, *self.strides, self.chunk, self.parts

    @property
    def blocks(self) -> dict[str, Any]:
        acc = tl.float64 if self.acc == torch.float64 else tl.float32
        return {"ACC": acc, "BLOCK_P": self.block_p, "BLOCK_C": self.block_c}


def bias_act(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    slope: float,
    gain: float,
) -> Tensor:
    """Y (B, C, H, W): see op ``bias_act``."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    plan = _Plan(x, _STREAM_BLOCKS)
    with device_of(x):
        _forward_kernel[plan.grid](
            x, bias, scale, noise, strength, y, *plan.sizes, 0 if noise is None or noise.shape[0] == 1 else plan.pixels,
            BIAS=bias is not None, SCALE=scale is not None, NOISE=noise is not None, HIGH=gain, LOW=gain * slope,
            **plan.blocks,
        )  # fmt: skip
    return y


def bias_act_backward(
    grad: Tensor, y: Tensor, x: Tensor | None, scale: Tensor | None, slope: float, gain: float, per_pixel: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_x, grad_bias (C,), grad_scale (B, C) and sums over channels (B, 1, H, W): see op ``bias_act_backward``."""
    batch, channels, height, width = y.shape
    acc = torch.float64 if y.dtype == torch.float64 else torch.float32
    grad_x = torch.empty_like(y)
    absent = [y.new_empty(0, dtype=acc) for _ in range(2)]
    if y.numel() == 0:
        grad_scale = absent[0] if x is None else y.new_zeros((batch, channels), dtype=acc)
        sums = y.new_zeros((batch, 1, height, width), dtype=acc) if per_pixel else absent[1]
        return grad_x, y.new_zeros(channels, dtype=acc), grad_scale, sums
    plan = _Plan(y, _BLOCKS, 64 if per_pixel else 256)  # of many channels a program leaves few partial sums of pixels

    def parts(wanted: bool, *shape: int) -> Tensor | None:
        return y.new_empty(shape, dtype=acc) if wanted else None

    part_bias = y.new_empty((batch, plan.parts, channels), dtype=acc)
    part_scale = parts(x is not None, batch, plan.parts, channels)
    part_sums = parts(per_pixel, plan.channel_blocks, batch, 1, height, width)
    with device_of(y):
        _backward_kernel[plan.grid](
            grad, y, x, scale, grad_x, part_bias, part_scale, part_sums, *plan.sizes, batch * plan.pixels,
            SCALE=scale is not None, GRAD_SCALE=x is not None, SUMS=per_pixel, HIGH=gain, LOW=gain * slope, **plan.blocks,
        )  # fmt: skip
    grad_scale = absent[0] if part_scale is None else part_scale.sum(1)
    sums = absent[1] if part_sums is None else part_sums.sum(0)
    return grad_x, part_bias.sum((0, 1)), grad_scale, sums
