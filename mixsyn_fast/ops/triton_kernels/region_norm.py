"""Triton kernels of region_norm: the same four functions as the ops in ``mixsyn_fast.ops.region_norm``.

They run wherever Triton does, without a CUDA compiler, and on the CPU in its interpreter (TRITON_INTERPRET=1), which
is how they are tested without a GPU. Arguments, results and formulas are those of the ops; x, the parameters and the
gradient may have any strides (they are made dense first). Everything is deterministic: sums are taken per block, then
over blocks in a fixed order; the table gradient sorts the pixels by row (stably) and adds pieces of bounded length.
Loads are cast to the accumulation type at once (float32, or float64 for float64). label_patterns has no Triton kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..region_norm import NORM_NONE, TENSORS, Arguments, GradInput
from ._device import device_of
from ._pieces import pieces_of

MODE_PLAIN, MODE_TABLE, MODE_MAPS, MODE_ROW, MODE_IMAGE = range(5)  # the last two: one row, and one of every image
_TILE = 2048  # elements of a tile
_BLOCKS = 512  # blocks aimed at by the reductions; a constant, so that sums are split alike everywhere
_STREAM_BLOCKS = 4096


# --- kernels ---------------------------------------------------------------------------------------------------------
# Common arguments: C channels, N pixels (H*W) of an image; the element (b, c, p) of a map lies at b*C*N + c*SC + p*SP
# with (SC, SP) = (1, C) channels_last or (N, 1) contiguous. A program owns CHUNK pixels of one image (block `part` of
# PARTS) and BLOCK_C channels.


@triton.jit
def _load_x(x, noise, noise_scale, image, pixel, c, mask_p, mask, C, N, SC, SP, NOISE: tl.constexpr, ACC: tl.constexpr):
    """Tile (BLOCK_P, BLOCK_C) of x + noise * noise_scale, 0 outside."""
    offset = image * C * N + pixel[:, None] * SP + c[None, :] * SC
    value = tl.load(x + offset, mask=mask, other=0).to(ACC)
    if NOISE:
        n = tl.load(noise + image * N + pixel, mask=mask_p, other=0).to(ACC)
        s = tl.load(noise_scale + c, mask=c < C, other=0).to(ACC)
        value += n[:, None] * s[None, :]
    return value


@triton.jit
def _load_modulation(
    index, table, scale, shift, image, pixel, c, mask_p, mask, C, N, SC, SP, MODE: tl.constexpr, ACC: tl.constexpr
):
    """Tiles of gamma and beta; anything in mode plain."""
    if MODE == 1:
        row = tl.load(index + image * N + pixel, mask=mask_p, other=0).to(tl.int64)
        at = row[:, None] * (2 * C) + c[None, :]
        gamma = tl.load(table + at, mask=mask, other=0).to(ACC)
        beta = tl.load(table + at + C, mask=mask, other=0).to(ACC)
    elif MODE > 2:
        row = (image if MODE == 4 else image * 0) * 2 * C
        gamma = tl.load(table + row + c, mask=c < C, other=0).to(ACC)[None, :]
        beta = tl.load(table + row + C + c, mask=c < C, other=0).to(ACC)[None, :]
    else:
        at = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        gamma = tl.load(scale + at, mask=mask, other=0).to(ACC)
        beta = tl.load(shift + at, mask=mask, other=0).to(ACC)
    return gamma, beta


@triton.jit
def _before_activation(g, pre, SLOPE: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr):
    """Gradient before the activation from that after it, of a tile."""
    if SILU:
        share = tl.sigmoid(pre)
        g = g * (share * (1 + pre * (1 - share)))
    elif SLOPE is not None:
        g = tl.where(pre > 0, g, g * tl.full(pre.shape, SLOPE, ACC))
    return g


@triton.jit
def _load_norm(mean, variance, at, mask, EPS: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Mean and 1/sqrt(variance + eps) of BLOCK_C channels."""
    mu = tl.load(mean + at, mask=mask, other=0)
    var = tl.load(variance + at, mask=mask, other=1)
    return mu, 1 / tl.sqrt(var + tl.full([BLOCK_C], EPS, ACC))


@triton.jit
def _stats_kernel(
    x, noise, noise_scale, partial_mean, partial_m2, C, N, SC, SP, CHUNK, PARTS,
    NOISE: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial_mean, partial_m2 (B, PARTS, C): mean and M2 of the pixels of a block, tile after tile (Chan)."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.zeros([BLOCK_C], ACC)
    m2 = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        value = _load_x(x, noise, noise_scale, image, pixel, c, mask_p, mask, C, N, SC, SP, NOISE, ACC)
        value = tl.where(mask, value, 0)
        m = tl.minimum(BLOCK_P, end - base).to(ACC)
        n = (base - begin).to(ACC)
        tile_mean = tl.sum(value, 0) / m
        deviation = tl.where(mask, value - tile_mean[None, :], 0)
        tile_m2 = tl.sum(deviation * deviation, 0)
        delta = tile_mean - mean
        share = m / (n + m)
        mean += delta * share
        m2 += tile_m2 + delta * delta * (n * share)
    tl.store(partial_mean + block * C + c, mean, mask=c < C)
    tl.store(partial_m2 + block * C + c, m2, mask=c < C)


@triton.jit
def _stats_merge_kernel(
    partial_mean, partial_m2, mean_out, m2_out, C, N, CHUNK, PARTS, GROUP_PARTS,
    ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mean, M2 (G, C) of GROUP_PARTS consecutive blocks each: the mean first, then M2 around it."""
    group = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = group * GROUP_PARTS
    n = ((group * 0 + GROUP_PARTS // PARTS) * N).to(ACC)
    origin = tl.load(partial_mean + first * C + c, mask=c < C, other=0)  # means are added relative to this one
    total = tl.zeros([BLOCK_C], ACC)
    for base in range(0, GROUP_PARTS, BLOCK_K):
        k = base + tl.arange(0, BLOCK_K)
        mask = (k < GROUP_PARTS)[:, None] & (c < C)[None, :]
        size = tl.minimum(CHUNK, N - (k % PARTS) * CHUNK).to(ACC)
        value = tl.load(partial_mean + (first + k)[:, None] * C + c[None, :], mask=mask, other=0)
        total += tl.sum(tl.where(mask, size[:, None] * (value - origin[None, :]), 0), 0)
    mean = origin + total / n
    m2 = tl.zeros([BLOCK_C], ACC)
    for base in range(0, GROUP_PARTS, BLOCK_K):
        k = base + tl.arange(0, BLOCK_K)
        mask = (k < GROUP_PARTS)[:, None] & (c < C)[None, :]
        size = tl.minimum(CHUNK, N - (k % PARTS) * CHUNK).to(ACC)
        at = (first + k)[:, None] * C + c[None, :]
        delta = tl.load(partial_mean + at, mask=mask, other=0) - mean[None, :]
        part_m2 = tl.load(partial_m2 + at, mask=mask, other=0)
        m2 += tl.sum(tl.where(mask, part_m2 + size[:, None] * delta * delta, 0), 0)
    tl.store(mean_out + group * C + c, mean, mask=c < C)
    tl.store(m2_out + group * C + c, m2, mask=c < C)


@triton.jit
def _forward_kernel(
    x, mean, variance, index, table, scale, shift, noise, noise_scale, y, C, N, SC, SP, CHUNK, PARTS, GROUP_STRIDE,
    MODE: tl.constexpr, NORM: tl.constexpr, NOISE: tl.constexpr, SLOPE: tl.constexpr, SILU: tl.constexpr,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Y as x. NORM: mean and variance are used. SLOPE None, without SILU: no activation."""
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    if NORM:
        mu, rstd = _load_norm(mean, variance, image * GROUP_STRIDE + c, c < C, EPS, BLOCK_C, ACC)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        value = _load_x(x, noise, noise_scale, image, pixel, c, mask_p, mask, C, N, SC, SP, NOISE, ACC)
        if NORM:
            value = (value - mu[None, :]) * rstd[None, :]
        if MODE != 0:
            gamma, beta = _load_modulation(
                index, table, scale, shift, image, pixel, c, mask_p, mask, C, N, SC, SP, MODE, ACC
            )
            value = value * gamma + beta
        if SILU:
            value = value * tl.sigmoid(value)
        elif SLOPE is not None:
            value = tl.where(value > 0, value, value * tl.full([BLOCK_P, BLOCK_C], SLOPE, ACC))
        at = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sums_kernel(
    grad, x, mean, variance, index, table, scale, shift, noise, noise_scale, partial, C, N, SC, SP, CHUNK, PARTS,
    GROUP_STRIDE, MODE: tl.constexpr, NORM: tl.constexpr, NOISE: tl.constexpr, SLOPE: tl.constexpr, SILU: tl.constexpr,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partial (B, PARTS, 2, C): sums of ghat and of ghat * xhat over the pixels of a block.

    Of g' in place of ghat where gamma is the same for all pixels of an image.
    """
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    if NORM:
        mu, rstd = _load_norm(mean, variance, image * GROUP_STRIDE + c, c < C, EPS, BLOCK_C, ACC)
    sum_g = tl.zeros([BLOCK_C], ACC)
    sum_gx = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        xhat = _load_x(x, noise, noise_scale, image, pixel, c, mask_p, mask, C, N, SC, SP, NOISE, ACC)
        if NORM:
            xhat = (xhat - mu[None, :]) * rstd[None, :]
        at = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        g = tl.load(grad + at, mask=mask, other=0).to(ACC)
        pre = xhat
        if MODE != 0:
            gamma, beta = _load_modulation(
                index, table, scale, shift, image, pixel, c, mask_p, mask, C, N, SC, SP, MODE, ACC
            )
            pre = xhat * gamma + beta
        g = _before_activation(g, pre, SLOPE, SILU, ACC)
        if MODE == 1 or MODE == 2:
            g = g * gamma
        sum_g += tl.sum(tl.where(mask, g, 0), 0)
        sum_gx += tl.sum(tl.where(mask, g * xhat, 0), 0)
    tl.store(partial + block * 2 * C + c, sum_g, mask=c < C)
    tl.store(partial + block * 2 * C + C + c, sum_gx, mask=c < C)


@triton.jit
def _table_kernel(
    grad, x, mean, variance, table, noise, noise_scale, order, rows, begins, ends, partial, C, N, SC, SP, GROUP_STRIDE,
    NORM: tl.constexpr, NOISE: tl.constexpr, SLOPE: tl.constexpr, SILU: tl.constexpr, EPS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partial (pieces, 2C): [sum of g' * xhat | sum of g'] over the sorted pixels begins[i] .. ends[i] of rows[i]."""
    piece = tl.program_id(0).to(tl.int64)
    begin = tl.load(begins + piece)
    end = tl.load(ends + piece)
    row = tl.load(rows + piece)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = c < C
    gamma = tl.load(table + row * 2 * C + c, mask=mask_c, other=0).to(ACC)
    beta = tl.load(table + row * 2 * C + C + c, mask=mask_c, other=0).to(ACC)
    sum_g = tl.zeros([BLOCK_C], ACC)
    sum_gx = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_P):
        position = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = position < end
        mask = mask_p[:, None] & mask_c[None, :]
        pixel = tl.load(order + position, mask=mask_p, other=0)  # b * N + p
        image = pixel // N
        at = (image * C * N + (pixel % N) * SP)[:, None] + c[None, :] * SC
        xhat = tl.load(x + at, mask=mask, other=0).to(ACC)
        g = tl.load(grad + at, mask=mask, other=0).to(ACC)
        if NOISE:
            n = tl.load(noise + pixel, mask=mask_p, other=0).to(ACC)
            s = tl.load(noise_scale + c, mask=mask_c, other=0).to(ACC)
            xhat += n[:, None] * s[None, :]
        if NORM:
            stat = (image * GROUP_STRIDE)[:, None] + c[None, :]
            mu = tl.load(mean + stat, mask=mask, other=0)
            var = tl.load(variance + stat, mask=mask, other=1)
            xhat = (xhat - mu) * (1 / tl.sqrt(var + tl.full([BLOCK_P, BLOCK_C], EPS, ACC)))
        g = _before_activation(g, xhat * gamma[None, :] + beta[None, :], SLOPE, SILU, ACC)
        sum_g += tl.sum(tl.where(mask, g, 0), 0)
        sum_gx += tl.sum(tl.where(mask, g * xhat, 0), 0)
    tl.store(partial + piece * 2 * C + c, sum_gx, mask=mask_c)
    tl.store(partial + piece * 2 * C + C + c, sum_g, mask=mask_c)


@triton.jit
def _join_kernel(
    partial, piece_starts, grad_table, COLUMNS, ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr
):
    """grad_table (R, COLUMNS): per row the sum of its pieces piece_starts[r] .. piece_starts[r + 1]; 0 for none."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = tl.load(piece_starts + row)
    end = tl.load(piece_starts + row + 1)
    total = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_K):
        k = base + tl.arange(0, BLOCK_K).to(tl.int64)
        mask = (k < end)[:, None] & (c < COLUMNS)[None, :]
        total += tl.sum(tl.load(partial + k[:, None] * COLUMNS + c[None, :], mask=mask, other=0), 0)
    tl.store(grad_table + row * COLUMNS + c, total, mask=c < COLUMNS)


@triton.jit
def _input_kernel(
    grad, x, mean, variance, index, table, scale, shift, noise, noise_scale, mean_g, mean_gx, grad_x, grad_scale,
    grad_shift, partial, C, N, SC, SP, CHUNK, PARTS, GROUP_STRIDE,
    MODE: tl.constexpr, NORM: tl.constexpr, SUMS: tl.constexpr, MAPS: tl.constexpr, NOISE: tl.constexpr,
    SLOPE: tl.constexpr, SILU: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_x, grad_scale, grad_shift as x; partial (B, PARTS, C): sums of grad_x * noise over a block.

    mean_g, mean_gx (G, C): sum_g / count and sum_gx / count, used if SUMS.
    """
    block = tl.program_id(0).to(tl.int64)
    image = block // PARTS
    begin = (block % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    if NORM:
        mu, rstd = _load_norm(mean, variance, image * GROUP_STRIDE + c, c < C, EPS, BLOCK_C, ACC)
    if SUMS:
        a = tl.load(mean_g + image * GROUP_STRIDE + c, mask=c < C, other=0)
        b = tl.load(mean_gx + image * GROUP_STRIDE + c, mask=c < C, other=0)
    sum_noise = tl.zeros([BLOCK_C], ACC)
    for base in range(begin, end, BLOCK_P):
        pixel = base + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = pixel < end
        mask = mask_p[:, None] & (c < C)[None, :]
        xhat = _load_x(x, noise, noise_scale, image, pixel, c, mask_p, mask, C, N, SC, SP, NOISE, ACC)
        if NORM:
            xhat = (xhat - mu[None, :]) * rstd[None, :]
        at = image * C * N + pixel[:, None] * SP + c[None, :] * SC
        g = tl.load(grad + at, mask=mask, other=0).to(ACC)
        pre = xhat
        if MODE != 0:
            gamma, beta = _load_modulation(
                index, table, scale, shift, image, pixel, c, mask_p, mask, C, N, SC, SP, MODE, ACC
            )
            pre = xhat * gamma + beta
        g = _before_activation(g, pre, SLOPE, SILU, ACC)
        if MAPS:
            tl.store(grad_scale + at, (g * xhat).to(grad_scale.dtype.element_ty), mask=mask)
            tl.store(grad_shift + at, g.to(grad_shift.dtype.element_ty), mask=mask)
        if MODE != 0:
            g = g * gamma
        if SUMS:
            g = g - a[None, :] - xhat * b[None, :]
        if NORM:
            g = g * rstd[None, :]
        if NOISE:
            n = tl.load(noise + image * N + pixel, mask=mask_p, other=0).to(ACC)
            sum_noise += tl.sum(tl.where(mask, g * n[:, None], 0), 0)
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
    if NOISE:
        tl.store(partial + block * C + c, sum_noise, mask=c < C)


# --- launchers -------------------------------------------------------------------------------------------------------


class _Plan:
    """Layout of x and the split into blocks.

    Args:
        x: (B, C, H, W); made dense where it is neither contiguous nor channels_last.
        target: number of blocks aimed at.
    """

    def __init__(self, x: Tensor, target: int) -> None:
        self.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if not self.channels_last:
            x = x.contiguous()
        self.x = x
        self.batch, self.channels, height, width = x.shape
        self.pixels = height * width
        self.acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        c2, n2 = triton.next_power_of_2(max(self.channels, 1)), triton.next_power_of_2(max(self.pixels, 1))
        if self.channels_last:
            self.block_c = min(c2, 128)
            self.block_p = min(n2, _TILE // self.block_c)
        else:
            self.block_p = min(n2, 256)
            self.block_c = min(c2, _TILE // self.block_p)
        self.channel_blocks = -(-self.channels // self.block_c)
        tiles = -(-self.pixels // self.block_p)
        parts = min(max(target // max(self.batch * self.channel_blocks, 1), 1), max(tiles, 1))
        self.chunk = -(-tiles // parts) * self.block_p
        self.parts = -(-self.pixels // max(self.chunk, 1))

    @property
    def grid(self) -> tuple[int, int]:
        return self.batch * self.parts, self.channel_blocks

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """C, N and the strides of channels and pixels."""
        strides = (1, self.channels) if self.channels_last else (self.pixels, 1)
        return self.channels, self.pixels, *strides

    @property
    def blocks(self) -> dict[str, Any]:
        acc = tl.float64 if self.acc == torch.float64 else tl.float32
        return {"ACC": acc, "BLOCK_P": self.block_p, "BLOCK_C": self.block_c}

    def like_x(self, t: Tensor) -> Tensor:
        """Return a (B, C, H, W) map in x's layout."""
        return t if t.stride() == self.x.stride() else torch.empty_like(self.x, dtype=t.dtype).copy_(t)

    def dense(self, a: Arguments) -> Arguments:
        """Return the arguments with every tensor as the kernels read it."""

        def laid_out(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return self.like_x(value) if name in ("scale", "shift") else value.contiguous()

        return Arguments._make((self.x, *(laid_out(name, getattr(a, name)) for name in a._fields[1:])))

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=self.acc)


def _by_image(a: Arguments) -> bool:
    """A table without index."""
    return a.table is not None and a.index is None


def _mode(a: Arguments) -> int:
    if a.table is not None and a.index is None:
        return MODE_ROW if a.table.shape[0] == 1 else MODE_IMAGE
    return MODE_TABLE if a.table is not None else MODE_MAPS if a.scale is not None else MODE_PLAIN


def _form(a: Arguments) -> dict[str, Any]:
    """Settings that all kernels but the statistics' share."""
    norm, noise = a.norm != NORM_NONE, a.noise is not None
    return {"NORM": norm, "NOISE": noise, "SLOPE": a.negative_slope, "SILU": a.silu, "EPS": a.eps}


def _shared(a: Arguments, t: Tensor) -> Tensor:
    """(..., C) -> (..., groups, adjacent channels that share statistics)."""
    groups: Tensor = t.unflatten(-1, (a.num_groups, a.x.shape[1] // a.num_groups))
    return groups


def _share_moments(a: Arguments, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 (B, C) of channels become those of their groups, at each of their channels."""
    means = _shared(a, mean)
    origin = means[..., :1]  # means are added relative to it: no digits are lost
    together = origin + (means - origin).mean(-1, keepdim=True)
    pixels = a.x.shape[2] * a.x.shape[3]
    squares = (_shared(a, m2) + pixels * (means - together).square()).sum(-1, keepdim=True)
    return together.expand_as(means).reshape_as(mean), squares.expand_as(means).reshape_as(mean)


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _given_stride(plan: _Plan, mean: Tensor | None) -> int:
    """Elements between the statistics of two images: C where they have a row per image, else 0."""
    return plan.channels if mean is not None and mean.dim() == 2 and mean.shape[0] > 1 else 0


def _moments(plan: _Plan, noise: Tensor | None, noise_scale: Tensor | None, per_instance: bool) -> tuple[Tensor, Tensor]:
    """Mean and M2, (G, C) each. `plan` was made for _BLOCKS blocks; x is not empty."""
    groups = plan.batch if per_instance else 1
    partial_mean, partial_m2 = (plan.empty(plan.batch * plan.parts, plan.channels) for _ in range(2))
    mean, m2 = plan.empty(groups, plan.channels), plan.empty(groups, plan.channels)
    _stats_kernel[plan.grid](
        plan.x, noise, noise_scale, partial_mean, partial_m2, *plan.sizes, plan.chunk, plan.parts,
        NOISE=noise is not None, **plan.blocks,
    )  # fmt: skip
    block_c = min(triton.next_power_of_2(plan.channels), 64)
    _stats_merge_kernel[(groups, -(-plan.channels // block_c))](
        partial_mean, partial_m2, mean, m2, plan.channels, plan.pixels, plan.chunk, plan.parts,
        plan.batch * plan.parts // groups, ACC=plan.blocks["ACC"], BLOCK_K=32, BLOCK_C=block_c,
    )  # fmt: skip
    return mean, m2


def region_norm_stats(
    x: Tensor, noise: Tensor | None, noise_scale: Tensor | None, per_instance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Count (1,), mean (G, C) and M2 (G, C) of x + noise * noise_scale: see op ``region_norm_stats``."""
    plan = _Plan(x, _BLOCKS)
    groups = plan.batch if per_instance else 1
    count = plan.empty(1).fill_(plan.pixels * (1 if per_instance else plan.batch))
    if x.numel() == 0:
        zeros = plan.empty(groups, plan.channels).zero_()
        return count, zeros, zeros.clone()
    with device_of(x):
        return count, *_moments(plan, _dense(noise), _dense(noise_scale), per_instance)


def region_norm(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Y (B, C, H, W), mean and variance (G, C), empty unless computed here: see op ``region_norm``."""
    a = Arguments(*arguments)
    plan = _Plan(a.x, _STREAM_BLOCKS)
    shape = (plan.batch if a.per_image else 1, plan.channels) if a.computes else (0,)
    y = torch.empty_like(plan.x)
    if a.x.numel() == 0:
        return y, plan.empty(*shape).zero_(), plan.empty(*shape).fill_(float("nan"))
    a = plan.dense(a)
    new_mean, new_variance = plan.empty(0), plan.empty(0)
    with device_of(a.x):
        if a.computes:
            new_mean, m2 = _moments(_Plan(plan.x, _BLOCKS), a.noise, a.noise_scale, a.per_image)
            if a.num_groups:
                new_mean, m2 = _share_moments(a, new_mean, m2)
            new_variance = m2 / a.group_size
            a = a._replace(mean=new_mean, variance=new_variance)
        _forward_kernel[plan.grid](
            *a[:TENSORS], y, *plan.sizes, plan.chunk, plan.parts, _given_stride(plan, a.mean),
            MODE=_mode(a), **_form(a), **plan.blocks,
        )  # fmt: skip
    return y, new_mean, new_variance


def region_norm_backward_reduce(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """sum_g, sum_gx (G, C) and grad_table (R, 2C): see op ``region_norm_backward_reduce``."""
    a = Arguments(*arguments)
    plan = _Plan(a.x, _BLOCKS)
    groups = plan.batch if a.per_image else 1
    shape = (groups, plan.channels) if a.computes else (0,)
    sum_g, sum_gx = plan.empty(*shape).zero_(), plan.empty(*shape).zero_()
    grad_table = plan.empty(0) if a.table is None else plan.empty(*a.table.shape).zero_()
    if a.x.numel() == 0:
        return sum_g, sum_gx, grad_table
    grad, a = plan.like_x(grad), plan.dense(a)
    stride = _given_stride(plan, a.mean)
    form = _form(a)
    with device_of(a.x):
        if a.computes or _by_image(a):
            partial = plan.empty(plan.batch * plan.parts, 2, plan.channels)
            _sums_kernel[plan.grid](
                grad, *a[:TENSORS], partial, *plan.sizes, plan.chunk, plan.parts, stride, MODE=_mode(a), **form,
                **plan.blocks,
            )  # fmt: skip
            both = partial.reshape(plan.batch if _by_image(a) else groups, -1, 2, plan.channels).sum(1)
            if a.table is not None and a.index is None:  # sums of g', of every image
                grad_table = both.flip(1).reshape(plan.batch, -1)
                if a.table.shape[0] == 1:
                    grad_table = grad_table.sum(0, keepdim=True)
                both = both * a.table[:, None, : plan.channels].to(plan.acc)
                both = both if a.per_image else both.sum(0, keepdim=True)
            if a.num_groups:
                shared = _shared(a, both)
                both = shared.sum(-1, keepdim=True).expand_as(shared).reshape_as(both)
            if a.computes:
                sum_g, sum_gx = both[:, 0].contiguous(), both[:, 1].contiguous()
        if a.index is not None and a.table is not None:
            rows = a.table.shape[0]
            found = pieces_of(a.index.reshape(-1), rows)
            row, begin, end = (torch.where(found.row < rows, t, 0) for t in (found.row, found.begin, found.end))
            partial = plan.empty(row.numel(), 2 * plan.channels)
            blocks = plan.blocks
            blocks["BLOCK_C"] = min(triton.next_power_of_2(plan.channels), 128)
            blocks["BLOCK_P"] = 16
            _table_kernel[(row.numel(), -(-plan.channels // blocks["BLOCK_C"]))](
                grad, a.x, a.mean, a.variance, a.table, a.noise, a.noise_scale, found.order, row, begin, end,
                partial,
                *plan.sizes, stride, **form, **blocks,
            )  # fmt: skip
            block_c = min(triton.next_power_of_2(2 * plan.channels), 128)
            _join_kernel[(rows, -(-2 * plan.channels // block_c))](
                partial, found.starts, grad_table, 2 * plan.channels, ACC=blocks["ACC"], BLOCK_K=16, BLOCK_C=block_c
            )
    return sum_g, sum_gx, grad_table


def region_norm_backward_input(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_x, grad_scale, grad_shift as x and grad_noise_scale (C,): see op ``region_norm_backward_input``."""
    a, sum_g, sum_gx, count, need_maps = GradInput.of(*arguments)
    plan = _Plan(a.x, _BLOCKS if a.noise is not None else _STREAM_BLOCKS)
    maps = need_maps and a.scale is not None
    grad_x = torch.empty_like(plan.x)
    grad_scale, grad_shift = (torch.empty_like(plan.x) if maps else a.x.new_empty(0) for _ in range(2))
    grad_noise_scale = plan.empty(plan.channels if a.noise is not None else 0).zero_()
    if a.x.numel() == 0:
        return grad_x, grad_scale, grad_shift, grad_noise_scale
    grad, a = plan.like_x(grad), plan.dense(a)
    mean_g = mean_gx = None
    if a.computes:
        assert sum_g is not None and sum_gx is not None
        mean_g, mean_gx = sum_g.contiguous() / count, sum_gx.contiguous() / count
    with device_of(a.x):
        partial = plan.empty(plan.batch * plan.parts, plan.channels) if a.noise is not None else None
        _input_kernel[plan.grid](
            grad, *a[:TENSORS], mean_g, mean_gx, grad_x, grad_scale, grad_shift, partial, *plan.sizes, plan.chunk,
            plan.parts, _given_stride(plan, a.mean), MODE=_mode(a), SUMS=a.computes, MAPS=maps, **_form(a), **plan.blocks,
        )  # fmt: skip
        if partial is not None:
            grad_noise_scale = partial.sum(0)
    return grad_x, grad_scale, grad_shift, grad_noise_scale


def region_norm_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """grad_x as x and grad_table (R, 2C): see op ``region_norm_backward``."""
    a = Arguments(*arguments)
    sum_g, sum_gx, grad_table = region_norm_backward_reduce(grad, *a)
    found = region_norm_backward_input(grad, *a[:TENSORS], sum_g, sum_gx, float(a.group_size), *a[TENSORS:], False)
    return found[0], grad_table
