"""Triton kernels of masked_roi_pool: the same two functions as the ops in ``mixsyn_fast.ops.masked_roi_pool``.

They run wherever Triton does, without a CUDA compiler, and on the CPU in its interpreter (TRITON_INTERPRET=1), which is how
they are tested without a GPU. Arguments, results and formulas are those of the ops; features may have any strides (they are
made dense first). Labels are taken to be in range: unlike the CUDA kernels these do not look.

Maximum: a program reduces a tile of pixels once for every label in it, to 64-bit keys whose high word orders as the value
does (NaN on top) and whose low word is larger for an earlier position, and hands the keys to an integer atomic maximum,
which no order of arrival can change. float64 values fill the key; their positions take a second pass over the features.
Mean: the pixels are sorted by label (stably), pieces of bounded length are added, then the pieces of every region in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import device_of
from ._pieces import pieces_of

_TILE = 2048  # elements of a tile
_BLOCKS = 2048  # blocks aimed at
_LOWEST = -(2**63)  # key of an absent region


# --- kernels ---------------------------------------------------------------------------------------------------------
# Common arguments: C channels, N pixels (H*W) of an image, K regions; the element (b, c, p) of a map lies at
# b*C*N + c*SC + p*SP with (SC, SP) = (1, C) channels_last or (N, 1) contiguous. A program owns CHUNK pixels of one image
# (block `part` of PARTS) and BLOCK_C channels.


@triton.jit
def _ordered(value, DOUBLE: tl.constexpr):
    """Integers in the order of the values: equal for -0 and 0, NaN on top."""
    value = tl.where(value == 0, 0.0, value)
    if DOUBLE:
        bits = value.to(tl.int64, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
        order = tl.where(value != value, 0x7FFFFFFFFFFFFFFF, order)
    else:
        bits = value.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        order = tl.where(value != value, 0x7FFFFFFF, order)
    return order.to(tl.int64)


@triton.jit
def _max_kernel(
    x, labels, table, C, N, K, SC, SP, CHUNK, PARTS,
    DOUBLE: tl.constexpr, ACC: tl.constexpr, LOWEST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Raise table (B, K, C) to the keys of the pixels of a block."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        value = tl.load(x + image * C * N + pixel[:, None] * SP + c[None, :] * SC, mask=mask, other=0).to(ACC)
        key = _ordered(value, DOUBLE)
        if not DOUBLE:
            key = (key << 32) | (0xFFFFFFFF - pixel)[:, None]
        rest = tl.load(labels + image * N + pixel, mask=mask_p, other=-1)
        label = tl.max(rest, 0)
        while label >= 0:  # once for every label of the tile
            mine = rest == label
            best = tl.max(tl.where(mine[:, None], key, LOWEST), 0)
            at = (image * K + label) * C + c
            seen = tl.load(table + at, mask=c < C, other=0)  # a stale (smaller) key only costs a needless atomic
            tl.atomic_max(table + at, best, mask=(c < C) & (best > seen), sem="relaxed")
            rest = tl.where(mine, -1, rest)
            label = tl.max(rest, 0)


@triton.jit
def _decode_kernel(table, pooled, position, TOTAL, DOUBLE: tl.constexpr, LOWEST: tl.constexpr, BLOCK: tl.constexpr):
    """Pooled and position (B, K, C) from the keys; float64: position is 2^31 - 1 for `_position_kernel` to lower."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < TOTAL
    key = tl.load(table + at, mask=mask, other=LOWEST)
    absent = key == LOWEST
    if DOUBLE:
        bits = tl.where(key < 0, key ^ 0x7FFFFFFFFFFFFFFF, key)
        value = bits.to(tl.float64, bitcast=True)
        where = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    else:
        order = (key >> 32).to(tl.int32)
        bits = tl.where(order < 0, order ^ 0x7FFFFFFF, order)
        value = bits.to(tl.float32, bitcast=True)
        where = (0xFFFFFFFF - (key & 0xFFFFFFFF)).to(tl.int32)
    tl.store(pooled + at, tl.where(absent, 0.0, value).to(pooled.dtype.element_ty), mask=mask)
    tl.store(position + at, tl.where(absent, -1, where), mask=mask)


@triton.jit
def _position_kernel(
    x, labels, table, position, C, N, K, SC, SP, CHUNK, PARTS, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """float64: lower position (B, K, C) to the first pixel whose value is the maximum."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        label = tl.load(labels + image * N + pixel, mask=mask_p, other=-1)
        mask = (label >= 0)[:, None] & (c < C)[None, :]
        value = tl.load(x + image * C * N + pixel[:, None] * SP + c[None, :] * SC, mask=mask, other=0)
        at = ((image * K + label) * C)[:, None] + c[None, :]
        taken = mask & (_ordered(value, True) == tl.load(table + at, mask=mask, other=0))
        where = tl.broadcast_to(pixel.to(tl.int32)[:, None], [BLOCK_P, BLOCK_C])
        tl.atomic_min(position + at, where, mask=taken, sem="relaxed")


@triton.jit
def _sum_kernel(
    x, order, begins, ends, partial, C, N, SC, SP,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partial (pieces, C): sums over the sorted pixels begins[i] .. ends[i]."""
    piece = tl.program_id(0).to(tl.int64)
    begin = tl.load(begins + piece)
    end = tl.load(ends + piece)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_P):
        place = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (place < end)[:, None] & (c < C)[None, :]
        pixel = tl.load(order + place, mask=place < end, other=0)  # b * N + p
        at = (pixel // N * C * N + (pixel % N) * SP)[:, None] + c[None, :] * SC
        total += tl.sum(tl.load(x + at, mask=mask, other=0).to(ACC), 0)
    tl.store(partial + piece * C + c, total, mask=c < C)


@triton.jit
def _join_kernel(partial, piece_starts, area, pooled, C, K, ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pooled (B, K, C): per region the sum of its pieces over its area (B, K); 0 for none. Rows of K + 1 per image."""
    region = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = region // K * (K + 1) + region % K
    begin = tl.load(piece_starts + row)
    end = tl.load(piece_starts + row + 1)
    total = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_K):
        k = base + tl.arange(0, BLOCK_K).to(tl.int64)
        mask = (k < end)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(partial + k[:, None] * C + c[None, :], mask=mask, other=0), 0)
    n = tl.load(area + region)
    mean = total / tl.where(n > 0, n, 1.0)
    tl.store(pooled + region * C + c, mean.to(pooled.dtype.element_ty), mask=c < C)


@triton.jit
def _backward_kernel(
    grad, labels, position, area, grad_x, C, N, K, SC, SP, CHUNK, PARTS,
    MAXIMUM: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_x (B, C, H, W) from grad (B, K, C)."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        label = tl.load(labels + image * N + pixel, mask=mask_p, other=-1)
        row = image * K + label
        mask = (label >= 0)[:, None] & (c < C)[None, :]
        at = (row * C)[:, None] + c[None, :]
        if MAXIMUM:
            mask = mask & (tl.load(position + at, mask=mask, other=-1) == pixel[:, None])
        value = tl.load(grad + at, mask=mask, other=0).to(ACC)
        if not MAXIMUM:
            value = value / tl.load(area + row, mask=label >= 0, other=1)[:, None]
        to = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        tl.store(grad_x + to, value.to(grad_x.dtype.element_ty), mask=mask_p[:, None] & (c < C)[None, :])


# --- launchers -------------------------------------------------------------------------------------------------------


class _Plan:
    """Strides of a dense (B, C, H, W) map and the split of its pixels and channels into blocks."""

    def __init__(self, batch: int, channels: int, pixels: int, dtype: torch.dtype, channels_last: bool) -> None:
        self.double = dtype == torch.float64
        self.acc = torch.float64 if self.double else torch.float32
        c2, n2 = triton.next_power_of_2(max(channels, 1)), triton.next_power_of_2(max(pixels, 1))
        if channels_last:
            block_c = min(c2, 64)
            block_p = min(n2, _TILE // block_c)
        else:
            block_p = min(n2, 64)
            block_c = min(c2, _TILE // block_p)
        channel_blocks = -(-channels // block_c)
        tiles = max(-(-pixels // block_p), 1)
        parts = min(max(_BLOCKS // max(batch * channel_blocks, 1), 1), tiles)
        self.chunk = -(-tiles // parts) * block_p
        self.parts = -(-pixels // self.chunk)
        self.grid = (batch * self.parts, channel_blocks)
        self.strides = (1, channels) if channels_last else (pixels, 1)
        self.tile = {"BLOCK_P": block_p, "BLOCK_C": block_c}
        self.types: dict[str, Any] = {"ACC": tl.float64 if self.double else tl.float32}


def _maximum(x: Tensor, labels: Tensor, regions: int, plan: _Plan) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    shape = (batch, regions, channels)
    pooled, position = x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)
    if pooled.numel() == 0:
        return pooled, position
    table = torch.full(shape, _LOWEST, dtype=torch.int64, device=x.device)
    sizes = (channels, height * width, regions, *plan.strides, plan.chunk, plan.parts)
    if x.numel() > 0:
        _max_kernel[plan.grid](x, labels, table, *sizes, DOUBLE=plan.double, LOWEST=_LOWEST, **plan.types, **plan.tile)
    blocks = -(-table.numel() // 1024)
    _decode_kernel[(blocks,)](table, pooled, position, table.numel(), DOUBLE=plan.double, LOWEST=_LOWEST, BLOCK=1024)
    if plan.double and x.numel() > 0:
        _position_kernel[plan.grid](x, labels, table, position, *sizes, **plan.tile)
    return pooled, position


def _pieces(labels: Tensor, regions: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sort the pixels by image and label and cut them into pieces of one region, without a host synchronisation.

    Args:
        labels: (B, H, W) int32 in [-1, regions), at least one pixel.
        regions: K.

    Returns:
        pixels (B*H*W,) in order; begin and end (pieces,) of each piece among them, equal for a piece that is not needed (the
        number of pieces is the most there can be); first piece of each row (B * (K + 1) + 1,), row K of an image being its
        pixels of no region, whose pieces are not needed; pixels of each row (B * (K + 1),). All int64.
    """
    rows = labels.shape[0] * (regions + 1)
    image = torch.arange(labels.shape[0], device=labels.device)[:, None, None] * (regions + 1)
    order, row, begin, end, starts, counts = pieces_of((image + torch.where(labels < 0, regions, labels)).reshape(-1), rows)
    needed = (row < rows) & (row % (regions + 1) != regions)
    return order, torch.where(needed, begin, 0), torch.where(needed, end, 0), starts, counts


def _mean(x: Tensor, labels: Tensor, regions: int, plan: _Plan) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    pixels = height * width
    pooled = x.new_empty((batch, regions, channels))
    if batch * pixels == 0:
        return pooled.zero_(), x.new_zeros((batch, regions), dtype=plan.acc)
    order, begin, end, piece_starts, counts = _pieces(labels, regions)
    area = counts.reshape(batch, regions + 1)[:, :regions].to(plan.acc).contiguous()
    if channels == 0:
        return pooled, area
    partial = x.new_empty((begin.numel(), channels), dtype=plan.acc)
    block_c = min(triton.next_power_of_2(channels), 128)
    channel_blocks = -(-channels // block_c)
    _sum_kernel[(begin.numel(), channel_blocks)](
        x, order, begin, end, partial, channels, pixels, *plan.strides, BLOCK_P=16, BLOCK_C=block_c, **plan.types
    )
    _join_kernel[(batch * regions, channel_blocks)](
        partial, piece_starts, area, pooled, channels, regions, BLOCK_K=16, BLOCK_C=block_c, **plan.types
    )
    return pooled, area


def masked_roi_pool(features: Tensor, labels: Tensor, num_regions: int, maximum: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled (B, K, C), position (B, K, C) and area (B, K), of which one is empty: see op ``masked_roi_pool``."""
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    x = features if channels_last else features.contiguous()
    batch, channels, height, width = x.shape
    plan = _Plan(batch, channels, height * width, x.dtype, channels_last)
    labels = labels.contiguous()
    # before any kernel uses a label as an address; on a GPU an assertion of the device, which nothing waits for
    torch._assert_async(
        ((labels >= -1) & (labels < num_regions)).all(),
        f"mixsyn_fast::masked_roi_pool: labels: expected values in [0, {num_regions}) or -1",
    )
    with device_of(x):
        if maximum:
            pooled, position = _maximum(x, labels, num_regions, plan)
            return pooled, position, x.new_empty(0, dtype=plan.acc)
        pooled, area = _mean(x, labels, num_regions, plan)
        return pooled, x.new_empty(0, dtype=torch.int32), area


def masked_roi_pool_backward(
    grad: Tensor, labels: Tensor, position: Tensor, area: Tensor, maximum: bool, channels_last: bool
) -> Tensor:
    """Gradient of the features, (B, C, H, W) in the layout asked: see op ``masked_roi_pool_backward``."""
    batch, height, width = labels.shape
    regions, channels = grad.shape[1:]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((batch, channels, height, width), dtype=grad.dtype, device=grad.device, memory_format=memory)
    if out.numel() == 0:
        return out
    plan = _Plan(batch, channels, height * width, grad.dtype, channels_last)
    sizes = (channels, height * width, regions, *plan.strides, plan.chunk, plan.parts)
    with device_of(grad):
        _backward_kernel[plan.grid](
            grad.contiguous(), labels.contiguous(), position if maximum else None, None if maximum else area, out, *sizes,
            MAXIMUM=maximum, **plan.types, **plan.tile,
        )  # fmt: skip
    return out
