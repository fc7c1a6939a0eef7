"""Triton kernels of spatial_attention_pool: the same two functions as the ops in ``mixsyn_fast.ops.spatial_attention_pool``.

They run wherever Triton does, without a CUDA compiler, and on the CPU in its interpreter (TRITON_INTERPRET=1), which
is how they are tested without a GPU. Arguments, results and formulas are those of the ops. Everything is deterministic.
The forward keeps a running maximum per map and rescales its sums when that grows; the parts of an image are merged in a
fixed order. The maps, where asked for, cost one more pass; so does a gradient that reaches them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..spatial_attention_pool import (
    NEED_CONDITION,
    NEED_FEATURES,
    NEED_WEIGHT_CONDITION,
    NEED_WEIGHT_FEATURES,
    BackwardArguments,
)
from ._device import device_of
from .attention import Plan, load_rows, load_tile, project, store_tile, sum_parts

# Common arguments: K maps, N channels of the features, M of the condition, P positions of an image; (FC, FP) and
# (CC, CP) the strides of channels and positions in features and condition. ONE: N <= BLOCK_N and M <= BLOCK_M.


@triton.jit
def _kept(mask, image, p, P, MASK: tl.constexpr):
    """Whether positions take part in the softmax."""
    kept = p < P
    if MASK:
        kept = kept & (tl.load(mask + image * P + p, mask=kept, other=0) != 0)
    return kept


@triton.jit
def _forward_kernel(
    features, condition, weight_features, weight_condition, mask, partial_values, partial_maximum, partial_sum,
    partial_mean, K, N, M, P, FC, FP, CC, CP, CHUNK, PARTS,
    MASK: tl.constexpr, ONE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of a part: maximum and sum of exponentials (parts, K), sums of features (parts, K, N) and condition (parts, M).

    Programs (parts of all images, panels of the features): each sums one panel; the first sums the condition, too.
    """
    part = tl.program_id(0).to(tl.int64)
    panel = tl.program_id(1)
    image = part // PARTS
    begin = (part % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, P)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    n = panel.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M).to(tl.int64)
    if ONE:
        rows_f = load_rows(weight_features, k, n, K, N)
        rows_c = load_rows(weight_condition, k, m, K, M)
    most = tl.full([BLOCK_K], float("-inf"), ACC)
    total = tl.zeros([BLOCK_K], ACC)
    values = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    mean = tl.zeros([BLOCK_M], ACC)
    for base in range(begin, end, BLOCK_P):
        p = base + tl.arange(0, BLOCK_P).to(tl.int64)
        kept = _kept(mask, image, p, P, MASK)
        if ONE:
            tile = load_tile(features, image, n, p, N, P, FC, FP, ACC)
            other = load_tile(condition, image, m, p, M, P, CC, CP, ACC)
            mean += tl.sum(other, 1)
            logits = tl.dot(rows_f, tile, input_precision=PRECISION, out_dtype=ACC)
            logits += tl.dot(rows_c, other, input_precision=PRECISION, out_dtype=ACC)
        else:
            logits = tl.zeros([BLOCK_K, BLOCK_P], ACC)
            logits = project(logits, features, weight_features, image, k, p, K, N, P, FC, FP, ACC, PRECISION, BLOCK_N)
            logits = project(logits, condition, weight_condition, image, k, p, K, M, P, CC, CP, ACC, PRECISION, BLOCK_M)
            tile = load_tile(features, image, n, p, N, P, FC, FP, ACC)
        highest = tl.maximum(most, tl.max(tl.where(kept[None, :], logits, float("-inf")), 1))
        origin = tl.where(highest == float("-inf"), 0.0, highest)  # nothing took part so far
        weight = tl.where(kept[None, :], tl.exp(logits - origin[:, None]), 0.0)
        rescale = tl.exp(most - origin)
        most = highest
        total = total * rescale + tl.sum(weight, 1)
        values = values * rescale[:, None]
        values += tl.dot(weight, tl.trans(tile), input_precision=PRECISION, out_dtype=ACC)
    at = part * K + k
    tl.store(partial_values + at[:, None] * N + n[None, :], values, mask=(k < K)[:, None] & (n < N)[None, :])
    if panel == 0:
        tl.store(partial_maximum + at, most, mask=k < K)
        tl.store(partial_sum + at, total, mask=k < K)
        if ONE:
            tl.store(partial_mean + part * M + m, mean, mask=m < M)
        else:
            for m0 in range(0, M, BLOCK_M):
                c = m0 + tl.arange(0, BLOCK_M).to(tl.int64)
                sums = tl.zeros([BLOCK_M], ACC)
                for base in range(begin, end, BLOCK_P):
                    p = base + tl.arange(0, BLOCK_P).to(tl.int64)
                    sums += tl.sum(load_tile(condition, image, c, p, M, P, CC, CP, ACC), 1)
                tl.store(partial_mean + part * M + c, sums, mask=c < M)


@triton.jit
def _merge_kernel(
    partial_values, partial_maximum, partial_sum, values, lse, maximum, factor, K, N, PARTS,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Values (B, K, N), lse (B, K) of the parts of every image; maximum and 1 / sum (B, K) for the maps."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = row // K * PARTS
    k = row % K
    most = tl.full([BLOCK_R], float("-inf"), ACC)
    for i0 in range(0, PARTS, BLOCK_R):
        i = i0 + tl.arange(0, BLOCK_R).to(tl.int64)
        most = tl.maximum(most, tl.load(partial_maximum + (first + i) * K + k, mask=i < PARTS, other=float("-inf")))
    highest = tl.max(most, 0)
    origin = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros([BLOCK_R], ACC)
    sums = tl.zeros([BLOCK_N], ACC)
    for i0 in range(0, PARTS, BLOCK_R):
        i = i0 + tl.arange(0, BLOCK_R).to(tl.int64)
        at = (first + i) * K + k
        weight = tl.exp(tl.load(partial_maximum + at, mask=i < PARTS, other=float("-inf")) - origin)
        total += weight * tl.load(partial_sum + at, mask=i < PARTS, other=0)
        mask = (i < PARTS)[:, None] & (n < N)[None, :]
        value = tl.load(partial_values + at[:, None] * N + n[None, :], mask=mask, other=0)
        sums += tl.sum(weight[:, None] * value, 0)
    count = tl.sum(total, 0)
    nothing = count == 0  # all masked
    divisor = tl.where(nothing, 1.0, count)
    tl.store(values + row * N + n, sums / divisor, mask=n < N)
    if tl.program_id(1) == 0:
        tl.store(lse + row, tl.where(nothing, float("-inf"), highest + tl.log(divisor)))
        tl.store(maximum + row, origin)
        tl.store(factor + row, tl.where(nothing, 0.0, 1 / divisor))


@triton.jit
def _maps_kernel(
    features, condition, weight_features, weight_condition, mask, origin, factor, grad_maps, maps, partial_offset,
    K, N, M, P, FC, FP, CC, CP, CHUNK, PARTS,
    MASK: tl.constexpr, SUM: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Maps (B, K, P) = exp(logits - origin) * factor; if SUM, their sums with grad_maps over a part (parts, K)."""
    part = tl.program_id(0).to(tl.int64)
    image = part // PARTS
    begin = (part % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, P)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    row = image * K + k
    start = tl.load(origin + row, mask=k < K, other=0)
    total = tl.zeros([BLOCK_K], ACC)
    for base in range(begin, end, BLOCK_P):
        p = base + tl.arange(0, BLOCK_P).to(tl.int64)
        kept = _kept(mask, image, p, P, MASK)
        logits = tl.zeros([BLOCK_K, BLOCK_P], ACC)
        logits = project(logits, features, weight_features, image, k, p, K, N, P, FC, FP, ACC, PRECISION, BLOCK_N)
        logits = project(logits, condition, weight_condition, image, k, p, K, M, P, CC, CP, ACC, PRECISION, BLOCK_M)
        value = tl.where(kept[None, :], tl.exp(logits - start[:, None]), 0.0)
        at = row[:, None] * P + p[None, :]
        there = (k < K)[:, None] & (p < P)[None, :]
        if SUM:
            grad = tl.load(grad_maps + at, mask=there, other=0).to(ACC)
            total += tl.sum(tl.where(there, value * grad, 0.0), 1)
        else:
            value = value * tl.load(factor + row, mask=k < K, other=0)[:, None]
            tl.store(maps + at, value.to(maps.dtype.element_ty), mask=there)
    if SUM:
        tl.store(partial_offset + part * K + k, total, mask=k < K)


@triton.jit
def _backward_kernel(
    grad_values, grad_mean, grad_maps, features, condition, weight_features, weight_condition, mask, values, lse,
    maps_offset, grad_features, grad_condition, partial_features, partial_condition,
    K, N, M, P, FC, FP, CC, CP, CHUNK, PARTS,
    MASK: tl.constexpr, MAPS: tl.constexpr, ONE: tl.constexpr, WRITE_F: tl.constexpr, WRITE_C: tl.constexpr,
    SUM_F: tl.constexpr, SUM_C: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradients of the maps read, and of the weights the sums over a part (parts, K, N) and (parts, K, M).

    Programs (parts of all images, panels): with SUM_F or SUM_C each sums one panel of features and condition.
    """
    part = tl.program_id(0).to(tl.int64)
    panel = tl.program_id(1)
    image = part // PARTS
    begin = (part % PARTS) * CHUNK
    end = tl.minimum(begin + CHUNK, P)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    n = panel.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = panel.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = image * K + k
    is_map = k < K
    gradient = grad_values + image * K * N
    result = values + image * K * N
    log_sum = tl.load(lse + row, mask=is_map, other=0)
    offset = tl.zeros([BLOCK_K], ACC)
    if MAPS:
        offset += tl.load(maps_offset + row, mask=is_map, other=0)
    for n0 in range(0, N, BLOCK_N):
        c = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        offset += tl.sum(load_rows(gradient, k, c, K, N) * load_rows(result, k, c, K, N), 1)
    if ONE:
        rows_f = load_rows(weight_features, k, n, K, N)
        rows_c = load_rows(weight_condition, k, m, K, M)
        rows_g = load_rows(gradient, k, n, K, N)
    sums_f = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    sums_c = tl.zeros([BLOCK_K, BLOCK_M], ACC)
    for base in range(begin, end, BLOCK_P):
        p = base + tl.arange(0, BLOCK_P).to(tl.int64)
        kept = _kept(mask, image, p, P, MASK)
        if ONE:
            tile = load_tile(features, image, n, p, N, P, FC, FP, ACC)
            other = load_tile(condition, image, m, p, M, P, CC, CP, ACC)
            logits = tl.dot(rows_f, tile, input_precision=PRECISION, out_dtype=ACC)
            logits += tl.dot(rows_c, other, input_precision=PRECISION, out_dtype=ACC)
            grad = tl.dot(rows_g, tile, input_precision=PRECISION, out_dtype=ACC)
        else:
            logits = tl.zeros([BLOCK_K, BLOCK_P], ACC)
            grad = tl.zeros([BLOCK_K, BLOCK_P], ACC)
            for n0 in range(0, N, BLOCK_N):
                c = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
                tile = load_tile(features, image, c, p, N, P, FC, FP, ACC)
                rows = load_rows(weight_features, k, c, K, N)
                logits += tl.dot(rows, tile, input_precision=PRECISION, out_dtype=ACC)
                rows = load_rows(gradient, k, c, K, N)
                grad += tl.dot(rows, tile, input_precision=PRECISION, out_dtype=ACC)
            logits = project(logits, condition, weight_condition, image, k, p, K, M, P, CC, CP, ACC, PRECISION, BLOCK_M)
        used = is_map[:, None] & kept[None, :]
        if MAPS:
            grad += tl.load(grad_maps + row[:, None] * P + p[None, :], mask=used, other=0).to(ACC)
        weight = tl.where(used, tl.exp(logits - log_sum[:, None]), 0.0)
        grad = tl.where(used, weight * (grad - offset[:, None]), 0.0)  # of the logits
        if ONE:
            if WRITE_F:
                # read again (from L1): kept in a second order, the rows would take half of the shared memory
                rows = tl.trans(load_rows(gradient, k, n, K, N))
                out = tl.dot(rows, weight, input_precision=PRECISION, out_dtype=ACC)
                rows = tl.trans(load_rows(weight_features, k, n, K, N))
                out += tl.dot(rows, grad, input_precision=PRECISION, out_dtype=ACC)
                store_tile(grad_features, out, image, n, p, N, P, FC, FP)
            if WRITE_C:
                rows = tl.trans(load_rows(weight_condition, k, m, K, M))
                out = tl.dot(rows, grad, input_precision=PRECISION, out_dtype=ACC)
                out += (tl.load(grad_mean + image * M + m, mask=m < M, other=0) / P)[:, None]
                store_tile(grad_condition, out, image, m, p, M, P, CC, CP)
        else:
            if WRITE_F:
                for n0 in range(0, N, BLOCK_N):
                    c = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
                    rows = tl.trans(load_rows(gradient, k, c, K, N))
                    out = tl.dot(rows, weight, input_precision=PRECISION, out_dtype=ACC)
                    rows = tl.trans(load_rows(weight_features, k, c, K, N))
                    out += tl.dot(rows, grad, input_precision=PRECISION, out_dtype=ACC)
                    store_tile(grad_features, out, image, c, p, N, P, FC, FP)
            if WRITE_C:
                for m0 in range(0, M, BLOCK_M):
                    c = m0 + tl.arange(0, BLOCK_M).to(tl.int64)
                    rows = tl.trans(load_rows(weight_condition, k, c, K, M))
                    out = tl.dot(rows, grad, input_precision=PRECISION, out_dtype=ACC)
                    out += (tl.load(grad_mean + image * M + c, mask=c < M, other=0) / P)[:, None]
                    store_tile(grad_condition, out, image, c, p, M, P, CC, CP)
        if SUM_F:
            if not ONE:
                tile = load_tile(features, image, n, p, N, P, FC, FP, ACC)
            sums_f += tl.dot(grad, tl.trans(tile), input_precision=PRECISION, out_dtype=ACC)
        if SUM_C:
            if not ONE:
                other = load_tile(condition, image, m, p, M, P, CC, CP, ACC)
            sums_c += tl.dot(grad, tl.trans(other), input_precision=PRECISION, out_dtype=ACC)
    at = part * K + k
    if SUM_F:
        tl.store(partial_features + at[:, None] * N + n[None, :], sums_f, mask=is_map[:, None] & (n < N)[None, :])
    if SUM_C:
        tl.store(partial_condition + at[:, None] * M + m[None, :], sums_c, mask=is_map[:, None] & (m < M)[None, :])


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


class _Sizes:
    """What the kernels are told of the sizes."""

    def __init__(self, plan: Plan) -> None:
        self.n, self.m = plan.first.shape[1], plan.second.shape[1]
        # 48 KB of a tile at most
        self.block_n = plan.block_c(self.n, 64 if plan.acc == torch.float64 else 128)
        self.block_m = plan.block_c(self.m, 64)
        self.one = self.n <= self.block_n and self.m <= self.block_m
        self.panels_n = max(triton.cdiv(self.n, self.block_n), 1)
        self.panels = max(self.panels_n, triton.cdiv(self.m, self.block_m))
        self.arguments = (
            plan.maps, self.n, self.m, plan.pixels, *plan.strides(self.n), *plan.strides(self.m), plan.chunk, plan.parts,
        )  # fmt: skip
        self.blocks = {"BLOCK_N": self.block_n, "BLOCK_M": self.block_m, **plan.constants}


def spatial_attention_pool(
    features: Tensor,
    condition: Tensor,
    weight_features: Tensor,
    weight_condition: Tensor,
    mask: Tensor | None,
    return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values (B, K, N), mean of the condition (B, M), maps (B, K, H, W) or (0,), lse (B, K): see the op of that name."""
    plan = Plan(features, condition, weight_features.shape[0], 32)
    sizes, b, k = _Sizes(plan), plan.batch, plan.maps
    maps = plan.second.new_empty((b, k, plan.height, plan.width) if return_maps else (0,))
    if plan.empty:
        lse = plan.new(b, k).fill_(-torch.inf)
        return plan.new(b, k, sizes.n).zero_(), plan.new(b, sizes.m).zero_(), maps, lse
    values, lse, maximum, factor = plan.new(b, k, sizes.n), plan.new(b, k), plan.new(b, k), plan.new(b, k)
    parts = b * plan.parts
    partial_values, partial_maximum, partial_sum = plan.new(parts, k, sizes.n), plan.new(parts, k), plan.new(parts, k)
    partial_mean = plan.new(parts, sizes.m)
    inputs = (plan.first, plan.second, weight_features.contiguous(), weight_condition.contiguous(), _bytes(mask))
    with device_of(features):
        _forward_kernel[(parts, sizes.panels_n)](
            *inputs, partial_values, partial_maximum, partial_sum, partial_mean, *sizes.arguments,
            MASK=mask is not None, ONE=sizes.one, **sizes.blocks,
        )  # fmt: skip
        _merge_kernel[(b * k, max(triton.cdiv(sizes.n, 32), 1))](
            partial_values, partial_maximum, partial_sum, values, lse, maximum, factor, k, sizes.n, plan.parts,
            ACC=sizes.blocks["ACC"], BLOCK_R=32, BLOCK_N=32,
        )  # fmt: skip
        mean = sum_parts(partial_mean, b, (sizes.m,)).reshape(b, sizes.m).div_(plan.pixels)
        if return_maps:
            _maps_kernel[(parts,)](
                *inputs, maximum, factor, None, maps, None, *sizes.arguments, MASK=mask is not None, SUM=False,
                **sizes.blocks,
            )  # fmt: skip
    return values, mean, maps, lse


def spatial_attention_pool_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, condition and both weights, (0,) where ``needs`` lacks their bit: see the op of that name."""
    a = BackwardArguments(*arguments)
    features, condition, weight_features, weight_condition, mask = a[3:8]
    needs, grad_maps, lse = a.needs, a.grad_maps, a.lse.contiguous()
    plan = Plan(features, condition, weight_features.shape[0], 32)
    sizes, b, k = _Sizes(plan), plan.batch, plan.maps
    nothing = plan.second.new_empty
    grad_features = plan.new_map(sizes.n) if needs & NEED_FEATURES else nothing((0,))
    grad_condition = plan.new_map(sizes.m) if needs & NEED_CONDITION else nothing((0,))
    sums = [plan.new(*((k, c) if needs & bit else (0,))).zero_() for c, bit in ((sizes.n, 4), (sizes.m, 8))]
    if plan.empty:
        return grad_features, grad_condition, sums[0], sums[1]
    parts = b * plan.parts
    offset = None
    inputs = (plan.first, plan.second, weight_features.contiguous(), weight_condition.contiguous(), _bytes(mask))
    with device_of(features):
        if grad_maps is not None:
            grad_maps = grad_maps.contiguous()
            partial = plan.new(parts, k)
            _maps_kernel[(parts,)](
                *inputs, lse, None, grad_maps, None, partial, *sizes.arguments, MASK=mask is not None,
                SUM=True, **sizes.blocks,
            )  # fmt: skip
            offset = sum_parts(partial, b, (k,))
        partial_features = plan.new(*((parts, k, sizes.n) if needs & NEED_WEIGHT_FEATURES else (0,)))
        partial_condition = plan.new(*((parts, k, sizes.m) if needs & NEED_WEIGHT_CONDITION else (0,)))

        def launch(panels: int, write: int, add: int) -> None:
            _backward_kernel[(parts, panels)](
                a.grad_values.contiguous(), a.grad_mean.contiguous(), grad_maps, *inputs, a.values.contiguous(),
                lse, offset, grad_features, grad_condition, partial_features, partial_condition,
                *sizes.arguments, MASK=mask is not None, MAPS=grad_maps is not None, ONE=sizes.one,
                WRITE_F=bool(write & NEED_FEATURES), WRITE_C=bool(write & NEED_CONDITION),
                SUM_F=bool(add & NEED_WEIGHT_FEATURES), SUM_C=bool(add & NEED_WEIGHT_CONDITION), **sizes.blocks,
            )  # fmt: skip

        write, add = needs & 3, needs & 12
        if sizes.one:
            launch(1, write, add)
        else:
            if write:
                launch(1, write, 0)
            if add:
                launch(sizes.panels, 0, add)
        if needs & NEED_WEIGHT_FEATURES and sizes.n:
            sums[0] = sum_parts(partial_features, 1, (k, sizes.n))
        if needs & NEED_WEIGHT_CONDITION and sizes.m:
            sums[1] = sum_parts(partial_condition, 1, (k, sizes.m))
    return grad_features, grad_condition, sums[0], sums[1]
