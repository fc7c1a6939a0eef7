"""Triton kernels of channel_attention_spread: the two functions of the ops in ``mixsyn_fast.ops.channel_attention_spread``.

They run wherever Triton does, without a CUDA compiler, and on the CPU in its interpreter (TRITON_INTERPRET=1), which
is how they are tested without a GPU. Arguments, results and formulas are those of the ops. Everything is deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..channel_attention_spread import NEED_CONDITION, NEED_VALUES, NEED_WEIGHT
from ._device import device_of
from .attention import Plan, load_rows, load_tile, project, store_tile, sum_parts

# Common arguments: K maps, N channels of the result, M of the condition, P positions of an image; (FC, FP) and (CC, CP)
# the strides of channels and positions in the result and in the condition.


@triton.jit
def _softmax_over_maps(logits, is_map):
    """Softmax over the first dimension; 0 in rows that are no maps."""
    logits = tl.where(is_map[:, None], logits, float("-inf"))
    maps = tl.where(is_map[:, None], tl.exp(logits - tl.max(logits, 0)[None, :]), 0.0)
    return maps / tl.sum(maps, 0)[None, :]


@triton.jit
def _forward_kernel(
    values, condition, weight, out, K, N, M, P, FC, FP, CC, CP, CHUNK, PARTS,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Out (B, N, P), values (B, K, N), weight (K, M)."""
    part = tl.program_id(0).to(tl.int64)
    image = part // PARTS
    begin = (part % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, P)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    mixed = values + image * K * N
    for base in range(begin, end, BLOCK_P):
        p = base + tl.arange(0, BLOCK_P).to(tl.int64)
        logits = tl.zeros([BLOCK_K, BLOCK_P], ACC)
        logits = project(logits, condition, weight, image, k, p, K, M, P, CC, CP, ACC, PRECISION, BLOCK_M)
        maps = _softmax_over_maps(logits, k < K)
        for n0 in range(0, N, BLOCK_N):
            c = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
            rows = tl.trans(load_rows(mixed, k, c, K, N))
            tile = tl.dot(rows, maps, input_precision=PRECISION, out_dtype=ACC)
            store_tile(out, tile, image, c, p, N, P, FC, FP)


@triton.jit
def _backward_kernel(
    grad, values, condition, weight, grad_condition, partial_values, partial_weight,
    K, N, M, P, FC, FP, CC, CP, CHUNK, PARTS,
    ONE: tl.constexpr, WRITE: tl.constexpr, SUM_V: tl.constexpr, SUM_W: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradient of the condition, and sums over a part for those of the values (parts, K, N) and weight (parts, K, M).

    Programs (parts of all images, panels): with SUM_V or SUM_W each sums one panel. ONE: N <= BLOCK_N, M <= BLOCK_M.
    """
    part = tl.program_id(0).to(tl.int64)
    panel = tl.program_id(1)
    image = part // PARTS
    begin = (part % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, P)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    n = panel.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = panel.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_map = k < K
    mixed = values + image * K * N
    if ONE:
        rows_v = load_rows(mixed, k, n, K, N)
        rows_w = load_rows(weight, k, m, K, M)
    sums_v = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    sums_w = tl.zeros([BLOCK_K, BLOCK_M], ACC)
    for base in range(begin, end, BLOCK_P):
        p = base + tl.arange(0, BLOCK_P).to(tl.int64)
        if ONE:
            tile = load_tile(grad, image, n, p, N, P, FC, FP, ACC)
            other = load_tile(condition, image, m, p, M, P, CC, CP, ACC)
            logits = tl.dot(rows_w, other, input_precision=PRECISION, out_dtype=ACC)
            of_maps = tl.dot(rows_v, tile, input_precision=PRECISION, out_dtype=ACC)
        else:
            logits = tl.zeros([BLOCK_K, BLOCK_P], ACC)
            logits = project(logits, condition, weight, image, k, p, K, M, P, CC, CP, ACC, PRECISION, BLOCK_M)
            of_maps = tl.zeros([BLOCK_K, BLOCK_P], ACC)
            of_maps = project(of_maps, grad, mixed, image, k, p, K, N, P, FC, FP, ACC, PRECISION, BLOCK_N)
        maps = _softmax_over_maps(logits, is_map)
        dot = tl.sum(tl.where(is_map[:, None], maps * of_maps, 0.0), 0)
        of_logits = tl.where(is_map[:, None] & (p < P)[None, :], maps * (of_maps - dot[None, :]), 0.0)
        if WRITE:
            if ONE:
                rows = tl.trans(load_rows(weight, k, m, K, M))
                out = tl.dot(rows, of_logits, input_precision=PRECISION, out_dtype=ACC)
                store_tile(grad_condition, out, image, m, p, M, P, CC, CP)
            else:
                for m0 in range(0, M, BLOCK_M):
                    c = m0 + tl.arange(0, BLOCK_M).to(tl.int64)
                    rows = tl.trans(load_rows(weight, k, c, K, M))
                    out = tl.dot(rows, of_logits, input_precision=PRECISION, out_dtype=ACC)
                    store_tile(grad_condition, out, image, c, p, M, P, CC, CP)
        if SUM_V:
            if not ONE:
                tile = load_tile(grad, image, n, p, N, P, FC, FP, ACC)
            # positions beyond the end meet zeros of the tile
            sums_v += tl.dot(maps, tl.trans(tile), input_precision=PRECISION, out_dtype=ACC)
        if SUM_W:
            if not ONE:
                other = load_tile(condition, image, m, p, M, P, CC, CP, ACC)
            sums_w += tl.dot(of_logits, tl.trans(other), input_precision=PRECISION, out_dtype=ACC)
    at = part * K + k
    if SUM_V:
        tl.store(partial_values + at[:, None] * N + n[None, :], sums_v, mask=is_map[:, None] & (n < N)[None, :])
    if SUM_W:
        tl.store(partial_weight + at[:, None] * M + m[None, :], sums_w, mask=is_map[:, None] & (m < M)[None, :])


class _Sizes:
    """What the kernels are told of the sizes."""

    def __init__(self, plan: Plan, n: int) -> None:
        self.n, self.m = n, plan.second.shape[1]
        self.block_n = plan.block_c(n, 64 if plan.acc == torch.float64 else 128)
        self.block_m = plan.block_c(self.m, 64)
        self.one = n <= self.block_n and self.m <= self.block_m
        self.panels = max(triton.cdiv(n, self.block_n), triton.cdiv(self.m, self.block_m), 1)
        self.arguments = (
            plan.maps, n, self.m, plan.pixels, *plan.strides(n), *plan.strides(self.m), plan.chunk, plan.parts,
        )  # fmt: skip
        self.blocks = {"BLOCK_N": self.block_n, "BLOCK_M": self.block_m, **plan.constants}


def channel_attention_spread(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """Result (B, N, H, W) in the layout of the condition: see the op of that name."""
    plan = Plan(condition, condition, weight.shape[0], 32)
    sizes = _Sizes(plan, values.shape[2])
    out = plan.new_map(sizes.n)
    if out.numel() > 0:
        with device_of(condition):
            _forward_kernel[(plan.batch * plan.parts,)](
                values.contiguous(), plan.second, weight.contiguous(), out, *sizes.arguments, **sizes.blocks
            )
    return out


def channel_attention_spread_backward(
    grad: Tensor, values: Tensor, condition: Tensor, weight: Tensor, needs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, condition and weight, (0,) where ``needs`` lacks their bit: see the op of that name."""
    plan = Plan(grad, condition, weight.shape[0], 32)
    sizes, b, k = _Sizes(plan, values.shape[2]), plan.batch, plan.maps
    grad_condition = plan.new_map(sizes.m) if needs & NEED_CONDITION else plan.second.new_empty((0,))
    grad_values = plan.new(*((b, k, sizes.n) if needs & NEED_VALUES else (0,))).zero_()
    grad_weight = plan.new(*((k, sizes.m) if needs & NEED_WEIGHT else (0,))).zero_()
    if plan.empty:
        return grad_values, grad_condition, grad_weight
    parts = b * plan.parts
    partial_values = plan.new(*((parts, k, sizes.n) if needs & NEED_VALUES else (0,)))
    partial_weight = plan.new(*((parts, k, sizes.m) if needs & NEED_WEIGHT else (0,)))
    with device_of(condition):

        def launch(panels: int, write: int, add: int) -> None:
            _backward_kernel[(parts, panels)](
                plan.first, values.contiguous(), plan.second, weight.contiguous(), grad_condition, partial_values,
                partial_weight, *sizes.arguments, ONE=sizes.one, WRITE=bool(write), SUM_V=bool(add & NEED_VALUES),
                SUM_W=bool(add & NEED_WEIGHT), **sizes.blocks,
            )  # fmt: skip

        write, add = needs & NEED_CONDITION, needs & (NEED_VALUES | NEED_WEIGHT)
        if sizes.one:
            launch(1, write, add)
        else:
            if write:
                launch(1, write, 0)
            if add:
                launch(sizes.panels, 0, add)
        if needs & NEED_VALUES and sizes.n:
            grad_values = sum_parts(partial_values, b, (k, sizes.n)).reshape(b, k, sizes.n)
        if needs & NEED_WEIGHT and sizes.m:
            grad_weight = sum_parts(partial_weight, 1, (k, sizes.m))
    return grad_values, grad_condition, grad_weight
