r"""Region-adaptive normalisation, the core of the SPADE, CLADE, SEAN and class-wise VAE layers.

.. math::

    y_{b,c,p} = \mathrm{act}\bigl(\hat x_{b,c,p}\, \gamma_{b,c,p} + \beta_{b,c,p}\bigr), \qquad
    \hat x = \frac{x' - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad x' = x + \text{noise}_{b,p}\, s_c

where gamma and beta are either rows of a table, ``table[index[b, p]] = (gamma, beta)`` (hard label maps: every pixel with
the same label pattern shares a row), or dense maps ``scale`` and ``shift`` (soft maps). ``act`` is nothing or LeakyReLU.

Sources: SPADE's Eq. 1 (table or maps hold the finished factor, the ``1 +`` included), SEAN's region-adaptive
normalisation with its noise input, CLADE's class-specific affine; the common form is derived in docs/ops/region_norm.md.

Statistics are per image (instance) or over the batch (batch, optionally over a process group), with the biased variance.
Gradient, with :math:`g' = g\,\mathrm{act}'`, :math:`\hat g = g' \gamma` and N values per group:

.. math::

    \frac{\partial L}{\partial x} = \frac{1}{\sqrt{\sigma^2+\epsilon}}
        \Bigl(\hat g - \tfrac1N \sum \hat g - \hat x\, \tfrac1N \sum \hat g \hat x\Bigr), \qquad
    \frac{\partial L}{\partial \mathrm{table}_r} = \sum_{p:\,\mathrm{index}_p = r} (g' \hat x,\; g')
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backend import select_backend
from ._common import FLOATING, acc_dtype, dense, refuse_double_backward, twin

NORM_NONE, NORM_GIVEN, NORM_INSTANCE, NORM_BATCH = 0, 1, 2, 3
_NORMS = {"none": NORM_NONE, "instance": NORM_INSTANCE, "batch": NORM_BATCH}


def _per_channel(t: Tensor) -> Tensor:
    """(G, C) -> (G, C, 1, 1)."""
    return t[:, :, None, None]


def _noisy(x: Tensor, noise: Tensor | None, noise_scale: Tensor | None) -> Tensor:
    """Return x' = x + noise * noise_scale in the accumulation type."""
    acc = acc_dtype(x.dtype)
    x = x.to(acc)
    if noise is not None and noise_scale is not None:
        x = x + noise.to(acc) * noise_scale.to(acc)[None, :, None, None]
    return x


def _modulation(
    x: Tensor, index: Tensor | None, table: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return gamma and beta as (B, C, H, W) maps in the accumulation type, or (None, None)."""
    acc = acc_dtype(x.dtype)
    if index is not None and table is not None:
        rows = torch.nn.functional.embedding(index, table.to(acc)).permute(0, 3, 1, 2)
        channels = x.shape[1]
        return rows[:, :channels], rows[:, channels:]
    if scale is not None and shift is not None:
        return scale.to(acc), shift.to(acc)
    return None, None


def _moments(x: Tensor, per_instance: bool) -> tuple[Tensor, Tensor]:
    """Return the mean and M2 = sum of squared deviations, each (G, C)."""
    mean = x.mean((2, 3)) if per_instance else x.mean((0, 2, 3))[None]
    deviations = x - _per_channel(mean)
    m2 = (deviations * deviations).sum((2, 3) if per_instance else (0, 2, 3))
    return mean, m2.reshape(mean.shape)


def _count(x: Tensor, per_instance: bool) -> int:
    return x.shape[2] * x.shape[3] * (1 if per_instance else x.shape[0])


def region_norm_reference(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    index: Tensor | None,
    table: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    norm: int,
    eps: float,
    negative_slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::region_norm``.

    Args:
        x: (B, C, H, W) floating.
        mean: (G, C) with G 1 or B; used where ``norm`` is NORM_GIVEN.
        variance: as ``mean``; biased.
        index: (B, H, W) int32 rows of ``table``, or None.
        table: (R, 2C): scale then shift, or None.
        scale: (B, C, H, W) or None.
        shift: (B, C, H, W) or None.
        noise: (B, 1, H, W) or None.
        noise_scale: (C,) or None.
        norm: NORM_NONE, NORM_GIVEN, NORM_INSTANCE or NORM_BATCH.
        eps: added to the variance.
        negative_slope: slope of the LeakyReLU that follows, None for no activation.

    Returns:
        y as x, and the mean and biased variance (G, C) computed here (empty where none were).
    """
    acc = acc_dtype(x.dtype)
    value = _noisy(x, noise, noise_scale)
    # two tensors: the results of an op share no memory
    new_mean, new_variance = (torch.empty(0, dtype=acc, device=x.device) for _ in range(2))
    if norm in (NORM_INSTANCE, NORM_BATCH):
        per_instance = norm == NORM_INSTANCE
        new_mean, m2 = _moments(value, per_instance)
        new_variance = m2 / _count(x, per_instance)
        mean, variance = new_mean, new_variance
    if norm != NORM_NONE:
        assert mean is not None and variance is not None
        value = (value - _per_channel(mean)) * torch.rsqrt(_per_channel(variance) + eps)
    gamma, beta = _modulation(x, index, table, scale, shift)
    if gamma is not None and beta is not None:
        value = value * gamma + beta
    if negative_slope is not None:
        value = torch.where(value > 0, value, value * negative_slope)
    return value.to(x.dtype), new_mean, new_variance


# --- the ops: Python bodies run where no kernel of the device is loaded ---------------------------------------------


def _dense_like(x: Tensor) -> Tensor:
    """Empty tensor of x's shape and dense strides; the forward and the gradient of x have this layout."""
    return torch.empty_like(x)


@torch.library.custom_op("mixsyn_fast::region_norm", mutates_args=())
def _region_norm_op(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    index: Tensor | None,
    table: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    norm: int,
    eps: float,
    negative_slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    y, new_mean, new_variance = region_norm_reference(
        x, mean, variance, index, table, scale, shift, noise, noise_scale, norm, eps, negative_slope
    )
    # a fresh tensor in x's layout: an op returns no alias of an input
    return _dense_like(x).copy_(y), new_mean, new_variance


def _group_shape(x: Tensor, norm: int) -> tuple[int, ...]:
    if norm in (NORM_INSTANCE, NORM_BATCH):
        return (x.shape[0] if norm == NORM_INSTANCE else 1, x.shape[1])
    return (0,)


def _region_norm_fake(x, mean, variance, index, table, scale, shift, noise, noise_scale, norm, eps, negative_slope):  # type: ignore[no-untyped-def]
    shape = _group_shape(x, norm)
    acc = acc_dtype(x.dtype)
    return _dense_like(x), x.new_empty(shape, dtype=acc), x.new_empty(shape, dtype=acc)


def _region_norm_stats_reference(
    x: Tensor, noise: Tensor | None, noise_scale: Tensor | None, per_instance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    value = _noisy(x, noise, noise_scale)
    mean, m2 = _moments(value, per_instance)
    return mean.new_full((1,), _count(x, per_instance)), mean, m2


_region_norm_stats_op = torch.library.custom_op(
    "mixsyn_fast::region_norm_stats", _region_norm_stats_reference, mutates_args=()
)


@_region_norm_stats_op.register_fake
def _region_norm_stats_fake(x, noise, noise_scale, per_instance):  # type: ignore[no-untyped-def]
    shape = (x.shape[0] if per_instance else 1, x.shape[1])
    acc = acc_dtype(x.dtype)
    return x.new_empty((1,), dtype=acc), x.new_empty(shape, dtype=acc), x.new_empty(shape, dtype=acc)


def _recompute(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    index: Tensor | None,
    table: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    norm: int,
    eps: float,
    negative_slope: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return xhat, g' = grad * act', ghat = g' * gamma and 1/sqrt(variance + eps) in the accumulation type."""
    value = _noisy(x, noise, noise_scale)
    rstd = None
    if norm != NORM_NONE:
        assert mean is not None and variance is not None
        rstd = torch.rsqrt(_per_channel(variance) + eps)
        value = (value - _per_channel(mean)) * rstd
    gamma, beta = _modulation(x, index, table, scale, shift)
    g = grad.to(value.dtype)
    if negative_slope is not None:
        pre = value if gamma is None or beta is None else value * gamma + beta
        g = torch.where(pre > 0, g, g * negative_slope)
    return value, g, g if gamma is None else g * gamma, rstd


def _backward_reduce_reference(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    index: Tensor | None,
    table: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    norm: int,
    eps: float,
    negative_slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    xhat, g, ghat, _ = _recompute(
        grad, x, mean, variance, index, table, scale, shift, noise, noise_scale, norm, eps, negative_slope
    )
    # three tensors: the results of an op share no memory
    sum_g, sum_gx, grad_table = (torch.empty(0, dtype=xhat.dtype, device=x.device) for _ in range(3))
    if norm in (NORM_INSTANCE, NORM_BATCH):
        dims = (2, 3) if norm == NORM_INSTANCE else (0, 2, 3)
        shape = _group_shape(x, norm)
        sum_g, sum_gx = ghat.sum(dims).reshape(shape), (ghat * xhat).sum(dims).reshape(shape)
    if index is not None and table is not None:
        rows = torch.cat((g * xhat, g), 1).permute(0, 2, 3, 1).reshape(-1, table.shape[1])
        grad_table = torch.zeros(table.shape, dtype=xhat.dtype, device=x.device)
        grad_table.index_add_(0, index.reshape(-1), rows)
    return sum_g, sum_gx, grad_table


_backward_reduce_op = torch.library.custom_op(
    "mixsyn_fast::region_norm_backward_reduce", _backward_reduce_reference, mutates_args=()
)


def _backward_reduce_fake(
    grad, x, mean, variance, index, table, scale, shift, noise, noise_scale, norm, eps, negative_slope
):  # type: ignore[no-untyped-def]
    shape = _group_shape(x, norm)
    acc = acc_dtype(x.dtype)
    table_shape = table.shape if index is not None else (0,)
    return (
        x.new_empty(shape, dtype=acc),
        x.new_empty(shape, dtype=acc),
        x.new_empty(table_shape, dtype=acc),
    )


def _backward_input_reference(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    index: Tensor | None,
    table: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    sum_g: Tensor | None,
    sum_gx: Tensor | None,
    count: float,
    norm: int,
    eps: float,
    negative_slope: float | None,
    need_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    xhat, g, ghat, rstd = _recompute(
        grad, x, mean, variance, index, table, scale, shift, noise, noise_scale, norm, eps, negative_slope
    )
    grad_x = ghat
    if norm in (NORM_INSTANCE, NORM_BATCH):
        assert sum_g is not None and sum_gx is not None
        grad_x = grad_x - _per_channel(sum_g) / count - xhat * (_per_channel(sum_gx) / count)
    if rstd is not None:
        grad_x = grad_x * rstd
    empty = torch.empty(0, dtype=x.dtype, device=x.device)
    grad_scale, grad_shift, grad_noise_scale = empty, empty.clone(), empty.to(xhat.dtype, copy=True)
    if need_maps and scale is not None:
        grad_scale, grad_shift = _dense_like(x).copy_(g * xhat), _dense_like(x).copy_(g)
    if noise is not None:
        grad_noise_scale = (grad_x * noise.to(grad_x.dtype)).sum((0, 2, 3))
    return _dense_like(x).copy_(grad_x), grad_scale, grad_shift, grad_noise_scale


_backward_input_op = torch.library.custom_op(
    "mixsyn_fast::region_norm_backward_input", _backward_input_reference, mutates_args=()
)


def _backward_input_fake(
    grad, x, mean, variance, index, table, scale, shift, noise, noise_scale, sum_g, sum_gx, count, norm, eps,
    negative_slope, need_maps,
):  # type: ignore[no-untyped-def]  # fmt: skip
    maps = need_maps and scale is not None
    return (
        _dense_like(x),
        _dense_like(x) if maps else x.new_empty((0,)),
        _dense_like(x) if maps else x.new_empty((0,)),
        x.new_empty((x.shape[1] if noise is not None else 0,), dtype=acc_dtype(x.dtype)),
    )


# --- gradient --------------------------------------------------------------------------------------------------------


class _Kernels:
    """The four kernels of one backend: forward, statistics and the two backward passes."""

    def __init__(
        self,
        forward: Callable[..., Any],
        stats: Callable[..., Any],
        backward_reduce: Callable[..., Any],
        backward_input: Callable[..., Any],
    ) -> None:
        self.forward = forward
        self.stats = stats
        self.backward_reduce = backward_reduce
        self.backward_input = backward_input


def _gradients(
    kernels: _Kernels,
    inputs: tuple[Tensor | None, ...],
    settings: tuple[int, float, float | None],
    needs: dict[str, bool],
    grad: Tensor,
    reduce_over_group: Callable[[Tensor], Tensor] | None = None,
    count: float | None = None,
) -> dict[str, Tensor | None]:
    """Both backward passes; ``reduce_over_group`` sums the two statistics gradients over a process group between them."""
    x, mean, variance, index, table, scale, shift, noise, noise_scale = inputs
    norm, eps, negative_slope = settings
    assert x is not None
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)  # convolutions may hand back a gradient in another layout
    result: dict[str, Tensor | None] = dict.fromkeys(("x", "table", "scale", "shift", "noise_scale"))
    statistics = norm in (NORM_INSTANCE, NORM_BATCH)
    wants_input = needs["x"] or needs["scale"] or needs["shift"] or needs["noise_scale"]
    sum_g = sum_gx = None
    if needs["table"] or (statistics and (needs["x"] or needs["noise_scale"])):
        sum_g, sum_gx, grad_table = kernels.backward_reduce(grad, *inputs, norm, eps, negative_slope)
        if needs["table"]:
            assert table is not None
            result["table"] = grad_table.to(table.dtype)
    if wants_input:
        if statistics:
            if sum_g is None:  # only the maps want a gradient: theirs does not involve the statistics
                sum_g = sum_gx = torch.zeros_like(mean)  # type: ignore[arg-type]
            elif reduce_over_group is not None:
                assert sum_gx is not None
                sum_g, sum_gx = reduce_over_group(torch.stack((sum_g, sum_gx))).unbind(0)
            if count is None:
                count = float(_count(x, norm == NORM_INSTANCE))
        else:
            sum_g = sum_gx = None
        need_maps = scale is not None and (needs["scale"] or needs["shift"])
        grad_x, grad_scale, grad_shift, grad_noise_scale = kernels.backward_input(
            grad, *inputs, sum_g, sum_gx, count or 1.0, norm, eps, negative_slope, need_maps
        )
        result["x"] = grad_x if needs["x"] else None
        if need_maps:
            result["scale"], result["shift"] = grad_scale, grad_shift
        if needs["noise_scale"]:
            assert noise_scale is not None
            result["noise_scale"] = grad_noise_scale.to(noise_scale.dtype)
    return result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, mean, variance, index, table, scale, shift, noise, noise_scale, norm, eps, negative_slope = inputs
    if norm in (NORM_INSTANCE, NORM_BATCH):
        mean, variance = output[1], output[2]
    ctx.save_for_backward(x, mean, variance, index, table, scale, shift, noise, noise_scale)
    ctx.settings = (norm, eps, negative_slope)


def _register_gradient(op: Any, kernels: _Kernels) -> None:
    def backward(ctx: Any, grad: Tensor, _mean: Tensor, _variance: Tensor) -> tuple[Tensor | None, ...]:
        names = {"x": 0, "table": 4, "scale": 5, "shift": 6, "noise_scale": 8}
        needs = {name: bool(ctx.needs_input_grad[position]) for name, position in names.items()}
        grads = _gradients(kernels, ctx.saved_tensors, ctx.settings, needs, grad)
        result: list[Tensor | None] = [None] * 12
        for name, position in names.items():
            result[position] = grads[name]
        return tuple(result)

    op.register_autograd(backward, setup_context=_setup_context)


def _register(kernels: _Kernels) -> None:
    """Fake kernels and gradients, the same for every backend's ops."""
    kernels.forward.register_fake(_region_norm_fake)  # type: ignore[attr-defined]
    kernels.backward_reduce.register_fake(_backward_reduce_fake)  # type: ignore[attr-defined]
    kernels.backward_input.register_fake(_backward_input_fake)  # type: ignore[attr-defined]
    _register_gradient(kernels.forward, kernels)
    for op in (kernels.backward_reduce, kernels.backward_input):
        op.register_autograd(refuse_double_backward("region_norm"))  # type: ignore[attr-defined]


_NATIVE = _Kernels(_region_norm_op, _region_norm_stats_op, _backward_reduce_op, _backward_input_op)
_register(_NATIVE)
_REFERENCE = _Kernels(
    region_norm_reference, _region_norm_stats_reference, _backward_reduce_reference, _backward_input_reference
)
_TRITON: _Kernels | None = None


def _triton_kernels() -> _Kernels:
    """Register ``mixsyn_fast::region_norm_triton`` and its backward on first use: importing triton takes a while."""
    global _TRITON
    if _TRITON is None:
        from .triton_kernels import region_norm as launchers

        _TRITON = _Kernels(
            twin("region_norm_triton", _region_norm_op, launchers.region_norm),
            twin("region_norm_stats_triton", _region_norm_stats_op, launchers.region_norm_stats),
            twin(
                "region_norm_backward_reduce_triton",
                _backward_reduce_op,
                launchers.region_norm_backward_reduce,
            ),
            twin("region_norm_backward_input_triton", _backward_input_op, launchers.region_norm_backward_input),
        )
        _TRITON.stats.register_fake(_region_norm_stats_fake)  # type: ignore[attr-defined]
        _register(_TRITON)
    return _TRITON


def _kernels_of(backend: str) -> _Kernels:
    if backend == "reference":  # with a process group; without one plain autograd does
        return _REFERENCE
    return _triton_kernels() if backend == "triton" else _NATIVE


def _merge_over_group(count: Tensor, mean: Tensor, m2: Tensor, group: Any) -> tuple[float, Tensor, Tensor]:
    """Combine (count, mean, M2) of all ranks in rank order (Chan, Golub, LeVeque 1979); returns N, mean, variance."""
    own = torch.cat((count, mean.reshape(-1), m2.reshape(-1)))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    stacked = torch.stack(parts)
    counts, means, m2s = stacked[:, :1], *stacked[:, 1:].chunk(2, 1)
    total = counts.sum()
    merged_mean = (counts * means).sum(0) / total
    merged_m2 = (m2s + counts * (means - merged_mean) ** 2).sum(0)
    return float(total), merged_mean[None], (merged_m2 / total)[None]


class _SynchronisedRegionNorm(torch.autograd.Function):
    """Batch statistics over a process group: gather between statistics and apply, sum between the backward passes."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        table: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        noise_scale: Tensor | None,
        index: Tensor | None,
        noise: Tensor | None,
        settings: tuple[float, float | None],
        group: Any,
        kernels: _Kernels,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        eps, negative_slope = settings
        count, mean, variance = _merge_over_group(*kernels.stats(x, noise, noise_scale, False), group)
        y, _, _ = kernels.forward(
            x, mean, variance, index, table, scale, shift, noise, noise_scale, NORM_GIVEN, eps, negative_slope
        )
        ctx.save_for_backward(x, mean, variance, index, table, scale, shift, noise, noise_scale)
        ctx.settings, ctx.count, ctx.group, ctx.kernels = settings, count, group, kernels
        total = torch.tensor(count, dtype=torch.float64)
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        eps, negative_slope = ctx.settings
        names = ("x", "table", "scale", "shift", "noise_scale")
        needs = dict(zip(names, ctx.needs_input_grad, strict=False))
        # every rank takes part in the sum, whatever its own needs are: they are the same on all ranks of one model

        def reduce_over_group(sums: Tensor) -> Tensor:
            dist.all_reduce(sums, group=ctx.group)
            return sums

        grads = _gradients(
            ctx.kernels,
            ctx.saved_tensors,
            (NORM_BATCH, eps, negative_slope),
            needs,
            grad,
            reduce_over_group,
            ctx.count,
        )
        return (*(grads[name] for name in names), None, None, None, None, None)


# --- public function -------------------------------------------------------------------------------------------------


def _fail(argument: str, expected: str, got: object, error: type[Exception] = ValueError) -> None:
    raise error(f"region_norm: {argument}: expected {expected}, got {got}")


def _check(
    x: Tensor,
    index: Tensor | None,
    table: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: str,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    process_group: Any,
) -> None:
    if x.dim() != 4:
        _fail("x", "shape (B, C, H, W)", f"shape {tuple(x.shape)}")
    if x.dtype not in FLOATING:
        _fail("x", "float32, float64, float16 or bfloat16", x.dtype, TypeError)
    batch, channels, height, width = x.shape
    if norm not in _NORMS:
        _fail("norm", "'instance', 'batch' or 'none'", repr(norm))
    if (index is None) != (table is None):
        _fail("index and table", "both or neither", "index only" if table is None else "table only")
    if (scale is None) != (shift is None):
        _fail("scale and shift", "both or neither", "scale only" if shift is None else "shift only")
    if index is not None and scale is not None:
        _fail("index and scale", "a table or dense maps", "both")
    if (noise is None) != (noise_scale is None):
        _fail(
            "noise and noise_scale",
            "both or neither",
            "noise only" if noise_scale is None else "noise_scale only",
        )
    if index is not None and table is not None:
        if tuple(index.shape) != (batch, height, width):
            _fail("index", f"shape {(batch, height, width)}", f"shape {tuple(index.shape)}")
        if index.dtype not in (torch.int32, torch.int64):
            _fail("index", "int32 or int64", index.dtype, TypeError)
        if table.dim() != 2 or table.shape[1] != 2 * channels:
            _fail("table", f"shape (R, {2 * channels})", f"shape {tuple(table.shape)}")
    shapes: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("scale", scale, (batch, channels, height, width)),
        ("shift", shift, (batch, channels, height, width)),
        ("noise", noise, (batch, 1, height, width)),
        ("noise_scale", noise_scale, (channels,)),
        ("running_mean", running_mean, (channels,)),
        ("running_var", running_var, (channels,)),
    )
    for name, tensor, shape in shapes:
        if tensor is not None and tuple(tensor.shape) != shape:
            _fail(name, f"shape {shape}", f"shape {tuple(tensor.shape)}")
    for name, tensor in (("table", table), *((n, t) for n, t, _ in shapes)):
        if tensor is not None and tensor.dtype not in FLOATING:
            _fail(name, "a floating dtype", tensor.dtype, TypeError)
    for name, tensor in (("index", index), ("table", table), *((n, t) for n, t, _ in shapes)):
        if tensor is not None and tensor.device != x.device:
            _fail(name, f"device {x.device}", f"device {tensor.device}")
    if noise is not None and noise.requires_grad:
        _fail("noise", "a tensor that needs no gradient", "requires_grad=True")
    if (running_mean is None) != (running_var is None):
        _fail("running_mean and running_var", "both or neither", "one")
    if running_mean is not None and norm != "batch":
        _fail("running_mean", f"None with norm={norm!r}", "a tensor")
    if norm == "batch" and not training and running_mean is None:
        _fail("running_mean and running_var", "tensors with norm='batch' and training=False", "None")
    if process_group is not None and (norm != "batch" or not training):
        _fail("process_group", "None unless norm='batch' and training=True", "a process group")
    computes = norm == "instance" or (norm == "batch" and training)
    count = height * width * (batch if norm == "batch" else 1)
    if computes and x.numel() > 0 and count < 2 and (process_group is None or norm == "instance"):
        _fail("x", "more than one value per group to compute statistics", f"shape {tuple(x.shape)}")


def region_norm(
    x: Tensor,
    index: Tensor | None = None,
    table: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    norm: str = "instance",
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    noise: Tensor | None = None,
    noise_scale: Tensor | None = None,
    negative_slope: float | None = None,
    process_group: Any = None,
) -> Tensor:
    """Normalise ``x``, modulate it per label pattern or per pixel, and optionally apply LeakyReLU, in one fused op.

    ``y = act(xhat * table[index][:C] + table[index][C:])`` or ``y = act(xhat * scale + shift)``; without either
    ``y = act(xhat)``. The table or ``scale`` holds the finished factor (SPADE's and SEAN's ``1 +`` included).

    Args:
        x: (B, C, H, W), float32, float64, float16 or bfloat16; contiguous and channels_last are read as they are, other
            strides are made dense first. B may be 0.
        index: (B, H, W) int32 (int64 is converted), values in [0, R); checked by the CPU kernel, by a device-side
            assertion on CUDA.
        table: (R, 2C) floating: scale, then shift.
        scale: (B, C, H, W) floating; converted to x's dtype.
        shift: (B, C, H, W) floating; converted to x's dtype.
        norm: ``"instance"`` (per image and channel), ``"batch"`` (per channel) or ``"none"``.
        running_mean: (C,), updated in place when ``training``, used when not; only with ``norm="batch"``.
        running_var: (C,), unbiased, as torch's batch norm keeps it.
        training: with ``norm="batch"``: use the statistics of the batch and update the running ones.
        momentum: weight of the new value in the running statistics, in [0, 1].
        eps: added to the variance.
        noise: (B, 1, H, W), one value per pixel shared by all channels, added to x before the statistics; needs no
            gradient.
        noise_scale: (C,), factor of the noise per channel.
        negative_slope: slope of LeakyReLU for negative values; None for no activation.
        process_group: a ``torch.distributed`` group over which batch statistics are taken (synchronised batch norm).

    Returns:
        (B, C, H, W), dtype and memory layout of ``x``.

    Raises:
        ValueError: a shape, a combination of arguments or a device does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        RuntimeError: an index is out of range (CPU), or a second backward is asked of the kernels.

    Gradients reach x, table or scale and shift, and noise_scale. The backward of the kernels cannot be differentiated
    again (a clear error); the ``reference`` backend can. Results are deterministic on every backend for a fixed number
    of threads. Sums and statistics are float32 (float64 for float64), so half precision loses nothing but the final
    rounding. Under autocast the op runs in x's dtype.
    """
    _check(
        x,
        index,
        table,
        scale,
        shift,
        norm,
        running_mean,
        running_var,
        training,
        noise,
        noise_scale,
        process_group,
    )
    mode = _NORMS[norm]
    mean = variance = None
    acc = acc_dtype(x.dtype)
    if norm == "batch" and not training:
        assert running_mean is not None and running_var is not None
        mode = NORM_GIVEN
        mean, variance = running_mean.detach().to(acc)[None], running_var.detach().to(acc)[None]
    if noise is not None and noise_scale is not None:
        noise, noise_scale = noise.to(x.dtype).contiguous(), noise_scale.to(x.dtype).contiguous()
    if scale is not None and shift is not None:
        scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    backend = select_backend("region_norm", x.device)
    total: Tensor | float | None = None
    if backend == "reference" and process_group is None:
        y, new_mean, new_variance = region_norm_reference(
            x, mean, variance, index, table, scale, shift, noise, noise_scale, mode, eps, negative_slope
        )
    else:
        x = dense(x)
        index = None if index is None else index.to(torch.int32).contiguous()
        table = None if table is None else table.to(acc).contiguous()
        scale, shift = (None if t is None else dense(t, x) for t in (scale, shift))
        kernels = _kernels_of(backend)
        if process_group is not None:
            y, new_mean, new_variance, total = _SynchronisedRegionNorm.apply(
                x,
                table,
                scale,
                shift,
                noise_scale,
                index,
                noise,
                (eps, negative_slope),
                process_group,
                kernels,
            )
        else:
            y, new_mean, new_variance = kernels.forward(
                x, mean, variance, index, table, scale, shift, noise, noise_scale, mode, eps, negative_slope
            )
    if norm == "batch" and training and running_mean is not None and running_var is not None and x.numel() > 0:
        count = float(_count(x, False)) if total is None else float(total)
        with torch.no_grad():
            unbiased = new_variance.detach()[0] * (count / max(count - 1.0, 1.0))
            running_mean.lerp_(new_mean.detach()[0].to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return y
