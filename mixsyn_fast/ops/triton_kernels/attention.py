"""What the Triton kernels of spatial_attention_pool and channel_attention_spread share.

A program owns CHUNK consecutive positions of one image and walks them in tiles of BLOCK_P. A tile of a map is (BLOCK_C,
BLOCK_P) in the type of the sums; every product is a ``tl.dot`` with K padded to BLOCK_K, at least 16. float32 is
multiplied as three TF32 products on the tensor cores ("tf32x3"), which keeps the digits of float32; plain TF32 would not.
Maps whose channels fit into one block are read once per tile and used for all products of a kernel (``ONE``); others are
walked in panels of BLOCK_C channels, and read again (from L2) for each further use.

Every sum has a fixed order: a program over its tiles, then :func:`sum_parts` or a merging kernel over programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = 512  # programs aimed at; a constant, so that sums are split alike everywhere
# fewer warps or more stages of the backward kernels spill more registers
LAUNCH = {"num_warps": 8, "num_stages": 1}
_LEAST_TILES = 4  # tiles of a program: what it stores besides is worth about one tile


@triton.jit
def load_tile(x, image, c, p, C, P, SC, SP, ACC: tl.constexpr):
    """Tile (channels c, positions p) of a map; 0 outside."""
    mask = (c < C)[:, None] & (p < P)[None, :]
    return tl.load(x + image * C * P + c[:, None] * SC + p[None, :] * SP, mask=mask, other=0).to(ACC)


@triton.jit
def store_tile(x, value, image, c, p, C, P, SC, SP):
    """Store what exists of a tile."""
    mask = (c < C)[:, None] & (p < P)[None, :]
    tl.store(x + image * C * P + c[:, None] * SC + p[None, :] * SP, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_rows(rows, k, c, K, C):
    """Rows k, columns c of a (K, C) matrix; 0 outside."""
    return tl.load(rows + k[:, None] * C + c[None, :], mask=(k < K)[:, None] & (c < C)[None, :], other=0)


@triton.jit
def project(
    total, x, rows, image, k, p, K, C, P, SC, SP,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Total (BLOCK_K, BLOCK_P) + rows (K, C) times all channels of a map."""
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C).to(tl.int64)
        tile = load_tile(x, image, c, p, C, P, SC, SP, ACC)
        total += tl.dot(load_rows(rows, k, c, K, C), tile, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def _sum_kernel(partial, out, COUNT, COLUMNS, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Out (groups, COLUMNS) = sums of partial (groups, COUNT, COLUMNS)."""
    group = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], ACC)
    for first in range(0, COUNT, BLOCK_R):
        i = first + tl.arange(0, BLOCK_R).to(tl.int64)
        mask = (i < COUNT)[:, None] & (c < COLUMNS)[None, :]
        total += tl.sum(tl.load(partial + (group * COUNT + i)[:, None] * COLUMNS + c[None, :], mask=mask, other=0), 0)
    tl.store(out + group * COLUMNS + c, total, mask=c < COLUMNS)


def tl_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of an accumulation type."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def sum_parts(partial: Tensor, groups: int, shape: tuple[int, ...]) -> Tensor:
    """Sums (groups, *shape), without the first dimension if groups == 1, of partial (groups * count, *shape)."""
    columns = partial.numel() // max(partial.shape[0], 1)
    out = partial.new_empty((groups, *shape) if groups > 1 else shape)
    if columns > 0:
        _sum_kernel[(groups, triton.cdiv(columns, 64))](
            partial, out, partial.shape[0] // groups, columns, ACC=tl_dtype(partial.dtype), BLOCK_R=32, BLOCK_C=64
        )
    return out


class Plan:
    """How two maps of one size lie in memory, and how their positions are cut.

    Args:
        first: (B, C0, H, W); where there is only one map, that one.
        second: (B, C1, H, W).
        maps: K.
        block_p: positions of a tile.
    """

    def __init__(self, first: Tensor, second: Tensor, maps: int, block_p: int) -> None:
        both = (first, second)
        contiguous = all(t.is_contiguous() for t in both)
        self.form = torch.contiguous_format if contiguous else torch.channels_last
        self.first, self.second = (t.contiguous(memory_format=self.form) for t in both)
        self.batch, _, self.height, self.width = second.shape
        self.pixels = self.height * self.width
        self.acc = torch.float64 if second.dtype == torch.float64 else torch.float32
        self.block_p = block_p
        self.maps = maps
        self.block_k = max(triton.next_power_of_2(maps), 16)
        tiles = triton.cdiv(max(self.pixels, 1), block_p)
        parts = min(max(_BLOCKS // max(self.batch, 1), 1), triton.cdiv(tiles, _LEAST_TILES))
        self.chunk = triton.cdiv(tiles, parts) * block_p
        self.parts = triton.cdiv(max(self.pixels, 1), self.chunk)

    @property
    def empty(self) -> bool:
        """Whether there are no positions."""
        return self.batch * self.pixels == 0

    def strides(self, channels: int) -> tuple[int, int]:
        """Elements between channels and between positions of a map."""
        return (self.pixels, 1) if self.form == torch.contiguous_format else (1, channels)

    def block_c(self, channels: int, most: int) -> int:
        """Channels of a panel, a power of two."""
        power: int = triton.next_power_of_2(max(channels, 1))
        return min(max(power, 16), most)

    @property
    def constants(self) -> dict[str, Any]:
        """Arguments that all kernels share."""
        precision = "ieee" if self.acc == torch.float64 else "tf32x3"
        return {
            "ACC": tl_dtype(self.acc), "PRECISION": precision, "BLOCK_P": self.block_p, "BLOCK_K": self.block_k,
            **LAUNCH,
        }  # fmt: skip

    def new(self, *shape: int) -> Tensor:
        """Uninitialised tensor of the accumulation type."""
        return self.second.new_empty(shape, dtype=self.acc)

    def new_map(self, channels: int) -> Tensor:
        """Uninitialised map in the layout of the others."""
        shape = (self.batch, channels, self.height, self.width)
        return torch.empty(shape, dtype=self.second.dtype, device=self.second.device, memory_format=self.form)
