r"""Region-adaptive normalisation, the core of the SPADE, CLADE, SEAN and class-wise VAE layers.

.. math::

    y_{b,c,p} = \mathrm{act}\bigl(\hat x_{b,c,p}\, \gamma_{b,c,p} + \beta_{b,c,p}\bigr), \qquad
    \hat x = \frac{x' - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad x' = x + \text{noise}_{b,p}\, s_c

where gamma and beta are either rows of a table, ``table[index[b, p]] = (gamma, beta)`` (hard label maps: every pixel with
the same label pattern shares a row), or dense maps ``scale`` and ``shift`` (soft maps), or rows of one image each (a table
without an index: the affine weight and bias of a norm). ``act`` is nothing, LeakyReLU or SiLU.

Sources: SPADE's Eq. 1 (table or maps hold the finished factor, the ``1 +`` included), SEAN's region-adaptive
normalisation with its noise input, CLADE's class-specific affine, group normalisation (Wu and He 2018, Eq. 7);
the common form is derived in docs/ops/region_norm.md.

Statistics are per image and channel (instance), per image and group of adjacent channels (group) or over the batch (batch,
optionally over a process group), with the biased variance. Those of a group stand at each of its channels: whatever comes
after the statistics is then the same for all norms.
Gradient, with :math:`g' = g\,\mathrm{act}'`, :math:`\hat g = g' \gamma` and N values per group:

.. math::

    \frac{\partial L}{\partial x} = \frac{1}{\sqrt{\sigma^2+\epsilon}}
        \Bigl(\hat g - \tfrac1N \sum \hat g - \hat x\, \tfrac1N \sum \hat g \hat x\Bigr), \qquad
    \frac{\partial L}{\partial \mathrm{table}_r} = \sum_{p:\,\mathrm{index}_p = r} (g' \hat x,\; g')
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ._common import (
    Op,
    acc_dtype,
    check_device,
    check_flag,
    check_floating,
    check_integer,
    check_kernel_dtype,
    check_number,
    check_tensor,
    custom_op,
    declared,
    dense,
    described,
    explain,
    fail,
    int32,
)

__all__ = ["region_norm"]

NORM_NONE, NORM_GIVEN, NORM_INSTANCE, NORM_BATCH, NORM_GROUP = 0, 1, 2, 3, 4
_COMPUTED = (NORM_INSTANCE, NORM_BATCH, NORM_GROUP)
_NORMS = {"none": NORM_NONE, "instance": NORM_INSTANCE, "batch": NORM_BATCH, "group": NORM_GROUP}


class Arguments(NamedTuple):
    """What all ops of the family read, in the order of their schemas (``struct RegionNorm`` of the kernels).

    Attributes:
        x: (B, C, H, W) floating.
        mean: (G, C) with G 1 or B; used where ``norm`` is NORM_GIVEN, and by the backward where it is not NORM_NONE.
        variance: as ``mean``; biased.
        index: (B, H, W) int32 rows of ``table``, or None.
        table: (R, 2C): scale then shift, or None. Without ``index`` R is 1 (a row for all) or B (a row for every image).
        scale: (B, C, H, W) or None.
        shift: (B, C, H, W) or None.
        noise: (B, 1, H, W) or None.
        noise_scale: (C,) or None.
        norm: NORM_NONE, NORM_GIVEN, NORM_INSTANCE, NORM_BATCH or NORM_GROUP.
        eps: added to the variance.
        negative_slope: slope of the LeakyReLU that follows, None for no activation.
        num_groups: of the channels, with NORM_GROUP; else 0.
        silu: SiLU follows; then ``negative_slope`` is None.
    """

    x: Tensor
    mean: Tensor | None
    variance: Tensor | None
    index: Tensor | None  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    table: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    noise: Tensor | None
    noise_scale: Tensor | None
    norm: int
    eps: float
    negative_slope: float | None
    num_groups: int
    silu: bool

    @property
    def computes(self) -> bool:
        """True where mean and variance are functions of x."""
        return self.norm in _COMPUTED

    @property
    def per_image(self) -> bool:
        """True where every image has statistics of its own, computed here."""
        return self.norm in (NORM_INSTANCE, NORM_GROUP)

    @property
    def even(self) -> bool:
        """True where all pixels of an image are modulated alike and get no noise: norms of other models."""
        return self.index is None and self.scale is None and self.noise is None

    @property
    def group_size(self) -> int:
        """Values that share statistics, where they are computed here."""
        batch, channels, height, width = self.x.shape
        shared = channels // self.num_groups if self.norm == NORM_GROUP else 1
        return height * width * (shared if self.per_image else batch)


TENSORS = 9  # fields before the settings
_FIELDS = Arguments._fields
_X, _TABLE, _SCALE, _SHIFT, _NOISE_SCALE = map(_FIELDS.index, ("x", "table", "scale", "shift", "noise_scale"))
_DECLARED = declared(Arguments)


class GradInput(NamedTuple):
    """Arguments of ``region_norm_backward_input`` (``struct RegionNormGradInput`` of the kernels).

    Attributes:
        a: the arguments of the forward.
        sum_g: (G, C) sum of ghat, or None where the statistics were given.
        sum_gx: (G, C) sum of ghat * xhat, as ``sum_g``.
        group_size: values per group.
        need_maps: the gradients of ``scale`` and ``shift`` are wanted.
    """

    a: Arguments
    sum_g: Tensor | None
    sum_gx: Tensor | None
    group_size: float
    need_maps: bool

    @classmethod
    def of(cls, *flat: Any) -> GradInput:
        """Take them apart in the order of the schema: the sums stand between the tensors and the settings."""
        settings = len(_FIELDS) - TENSORS
        a = Arguments._make((*flat[:TENSORS], *flat[-settings - 1 : -1]))
        return cls._make((a, *flat[TENSORS : -settings - 1], flat[-1]))


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


def _modulation(a: Arguments) -> tuple[Tensor | None, Tensor | None]:
    """Return gamma and beta as maps in the accumulation type that broadcast to (B, C, H, W), or (None, None)."""
    acc = acc_dtype(a.x.dtype)
    if a.table is not None:
        table = a.table.to(acc)
        rows = _per_channel(table) if a.index is None else torch.nn.functional.embedding(a.index, table).permute(0, 3, 1, 2)
        channels = a.x.shape[1]
        return rows[:, :channels], rows[:, channels:]
    if a.scale is not None and a.shift is not None:
        return a.scale.to(acc), a.shift.to(acc)
    return None, None


def _moments(x: Tensor, per_instance: bool, num_groups: int = 0) -> tuple[Tensor, Tensor]:
    """Return the mean and M2 = sum of squared deviations, each (G, C); of ``num_groups``, if any, at all their channels."""
    if num_groups:
        shared = x.shape[1] // num_groups
        x = x.unflatten(1, (num_groups, shared))
        mean = x.mean((2, 3, 4))
        deviations = x - mean[:, :, None, None, None]
        m2 = (deviations * deviations).sum((2, 3, 4))
        return mean.repeat_interleave(shared, 1), m2.repeat_interleave(shared, 1)
    mean = x.mean((2, 3)) if per_instance else x.mean((0, 2, 3))[None]
    deviations = x - _per_channel(mean)
    m2 = (deviations * deviations).sum((2, 3) if per_instance else (0, 2, 3))
    return mean, m2.reshape(mean.shape)


def _count(x: Tensor, per_instance: bool) -> int:
    return x.shape[2] * x.shape[3] * (1 if per_instance else x.shape[0])


def _group_shape(a: Arguments) -> tuple[int, ...]:
    """(G, C), or (0,) where no statistics are computed."""
    return (a.x.shape[0] if a.per_image else 1, a.x.shape[1]) if a.computes else (0,)


def region_norm_reference(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::region_norm``.

    Returns:
        y as x, and the mean and biased variance (G, C) computed here (empty where none were).
    """
    x, mean, variance = a[:3]
    acc = acc_dtype(x.dtype)
    value = _noisy(x, a.noise, a.noise_scale)
    # two tensors: the results of an op share no memory
    new_mean, new_variance = (torch.empty(0, dtype=acc, device=x.device) for _ in range(2))
    if a.computes:
        new_mean, m2 = _moments(value, a.per_image, a.num_groups)
        new_variance = m2 / a.group_size
        mean, variance = new_mean, new_variance
    if a.norm != NORM_NONE:
        assert mean is not None and variance is not None
        value = (value - _per_channel(mean)) * torch.rsqrt(_per_channel(variance) + a.eps)
    gamma, beta = _modulation(a)
    if gamma is not None and beta is not None:
        value = value * gamma + beta
    if a.negative_slope is not None:
        value = torch.where(value > 0, value, value * a.negative_slope)
    elif a.silu:
        value = torch.nn.functional.silu(value)
    return value.to(x.dtype), new_mean, new_variance


# --- the ops: Python bodies run where no kernel of the device is loaded ---------------------------------------------


def _dense_like(x: Tensor) -> Tensor:
    """Empty tensor of x's shape and dense strides; the forward and the gradient of x have this layout."""
    return torch.empty_like(x)


def _forward_body(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    y, new_mean, new_variance = region_norm_reference(a)
    # a fresh tensor in x's layout: an op returns no alias of an input
    return _dense_like(a.x).copy_(y), new_mean, new_variance


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    shape, acc = _group_shape(a), acc_dtype(a.x.dtype)
    return _dense_like(a.x), a.x.new_empty(shape, dtype=acc), a.x.new_empty(shape, dtype=acc)


def _stats_body(
    x: Tensor, noise: Tensor | None, noise_scale: Tensor | None, per_instance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    value = _noisy(x, noise, noise_scale)
    mean, m2 = _moments(value, per_instance)
    return mean.new_full((1,), _count(x, per_instance)), mean, m2


def _stats_fake(
    x: Tensor, noise: Tensor | None, noise_scale: Tensor | None, per_instance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0] if per_instance else 1, x.shape[1])
    acc = acc_dtype(x.dtype)
    return x.new_empty((1,), dtype=acc), x.new_empty(shape, dtype=acc), x.new_empty(shape, dtype=acc)


def _recompute(grad: Tensor, a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return xhat, g' = grad * act', ghat = g' * gamma and 1/sqrt(variance + eps) in the accumulation type."""
    value = _noisy(a.x, a.noise, a.noise_scale)
    rstd = None
    if a.norm != NORM_NONE:
        assert a.mean is not None and a.variance is not None
        rstd = torch.rsqrt(_per_channel(a.variance) + a.eps)
        value = (value - _per_channel(a.mean)) * rstd
    gamma, beta = _modulation(a)
    g = grad.to(value.dtype)
    if a.negative_slope is not None or a.silu:
        pre = value if gamma is None or beta is None else value * gamma + beta
        if a.negative_slope is not None:
            g = torch.where(pre > 0, g, g * a.negative_slope)
        else:
            share = torch.sigmoid(pre)
            g = g * (share * (1 + pre * (1 - share)))
    return value, g, g if gamma is None else g * gamma, rstd


def _backward_reduce_body(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    xhat, g, ghat, _ = _recompute(grad, a)
    # three tensors: the results of an op share no memory
    sum_g, sum_gx, grad_table = (torch.empty(0, dtype=xhat.dtype, device=xhat.device) for _ in range(3))
    if a.computes:
        dims = (2, 3) if a.per_image else (0, 2, 3)
        sums = torch.stack([t.sum(dims).reshape(_group_shape(a)) for t in (ghat, ghat * xhat)])
        if a.num_groups:
            shared = a.x.shape[1] // a.num_groups
            sums = sums.unflatten(2, (a.num_groups, shared)).sum(3).repeat_interleave(shared, 2)
        sum_g, sum_gx = sums[0].clone(), sums[1].clone()
    if a.table is not None and a.index is None:
        grad_table = torch.cat(((g * xhat).sum((2, 3)), g.sum((2, 3))), 1)  # a row for every image
        if a.table.shape[0] == 1:
            grad_table = grad_table.sum(0, keepdim=True)
    elif a.index is not None and a.table is not None:
        rows = torch.cat((g * xhat, g), 1).permute(0, 2, 3, 1).reshape(-1, a.table.shape[1])
        grad_table = torch.zeros(a.table.shape, dtype=xhat.dtype, device=xhat.device)
        grad_table.index_add_(0, a.index.reshape(-1), rows)
    return sum_g, sum_gx, grad_table


def _backward_reduce_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    groups, table = _group_shape(a), (0,) if a.table is None else a.table.shape
    acc = acc_dtype(a.x.dtype)
    return a.x.new_empty(groups, dtype=acc), a.x.new_empty(groups, dtype=acc), a.x.new_empty(table, dtype=acc)


def _backward_input_body(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, sum_g, sum_gx, count, need_maps = GradInput.of(*arguments)
    x = a.x
    xhat, g, ghat, rstd = _recompute(grad, a)
    grad_x = ghat
    if a.computes:
        assert sum_g is not None and sum_gx is not None
        grad_x = grad_x - _per_channel(sum_g) / count - xhat * (_per_channel(sum_gx) / count)
    if rstd is not None:
        grad_x = grad_x * rstd
    empty = torch.empty(0, dtype=x.dtype, device=x.device)
    grad_scale, grad_shift, grad_noise_scale = empty, empty.clone(), empty.to(xhat.dtype, copy=True)
    if need_maps and a.scale is not None:
        grad_scale, grad_shift = _dense_like(x).copy_(g * xhat), _dense_like(x).copy_(g)
    if a.noise is not None:
        grad_noise_scale = (grad_x * a.noise.to(grad_x.dtype)).sum((0, 2, 3))
    return _dense_like(x).copy_(grad_x), grad_scale, grad_shift, grad_noise_scale


def _backward_input_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, _, _, _, need_maps = GradInput.of(*arguments)
    maps = need_maps and a.scale is not None
    return (
        _dense_like(a.x),
        _dense_like(a.x) if maps else a.x.new_empty((0,)),
        _dense_like(a.x) if maps else a.x.new_empty((0,)),
        a.x.new_empty((a.x.shape[1] if a.noise is not None else 0,), dtype=acc_dtype(a.x.dtype)),
    )


def _backward_body(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    a = Arguments(*arguments)
    sum_g, sum_gx, grad_table = _backward_reduce_body(grad, *a)
    found = _backward_input_body(grad, *a[:TENSORS], sum_g, sum_gx, float(a.group_size), *a[TENSORS:], False)
    return found[0], grad_table


def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    a = Arguments(*arguments)
    return _dense_like(a.x), _backward_reduce_fake(grad, *a)[2]


# --- gradient --------------------------------------------------------------------------------------------------------


class _Kernels(NamedTuple):
    """The kernels of one backend: forward, statistics, the two backward passes, and both in one (`Arguments.even`)."""

    forward: Callable[..., Any]
    stats: Callable[..., Any]
    backward_reduce: Callable[..., Any]
    backward_input: Callable[..., Any]
    backward: Callable[..., Any]


def _gradients(
    kernels: _Kernels,
    a: Arguments,
    needs_input_grad: tuple[bool, ...],
    grad: Tensor,
    reduce_over_group: Callable[[Tensor], Tensor] | None = None,
    count: float | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of all fields of ``a``; ``reduce_over_group`` sums the statistics' gradients over a process group."""
    computes, table, noise_scale = a.norm in _COMPUTED, a.table, a.noise_scale
    needs_x, needs_table, needs_noise_scale = (needs_input_grad[i] for i in (_X, _TABLE, _NOISE_SCALE))
    need_maps = needs_input_grad[_SCALE] or needs_input_grad[_SHIFT]
    if grad.stride() != a.x.stride():
        grad = torch.empty_like(a.x).copy_(grad)  # convolutions may hand back a gradient in another layout
    result: list[Tensor | None] = [None] * len(_FIELDS)
    # on a GPU two launches either way
    if a.even and computes and needs_x and reduce_over_group is None and a.x.device.type == "cpu":
        result[_X], grad_table = kernels.backward(grad, *a)
        if needs_table and table is not None:
            result[_TABLE] = grad_table.to(table.dtype)
        return tuple(result)
    sum_g = sum_gx = None
    if needs_table or (computes and (needs_x or needs_noise_scale)):
        sum_g, sum_gx, grad_table = kernels.backward_reduce(grad, *a)
        if needs_table and table is not None:
            result[_TABLE] = grad_table.to(table.dtype)
    if needs_x or need_maps or needs_noise_scale:
        if not computes:
            sum_g, sum_gx, count = None, None, 1.0
        elif sum_g is None:  # only the maps want a gradient: theirs does not involve the statistics
            assert a.mean is not None
            sum_g = sum_gx = torch.zeros_like(a.mean)
        elif reduce_over_group is not None:
            assert sum_gx is not None
            sum_g, sum_gx = reduce_over_group(torch.stack((sum_g, sum_gx))).unbind(0)
        if count is None:
            count = float(a.group_size)
        grad_x, grad_scale, grad_shift, grad_noise_scale = kernels.backward_input(
            grad, *a[:TENSORS], sum_g, sum_gx, count or 1.0, *a[TENSORS:], need_maps
        )
        if needs_x:
            result[_X] = grad_x
        if need_maps:
            result[_SCALE], result[_SHIFT] = grad_scale, grad_shift
        if needs_noise_scale and noise_scale is not None:
            result[_NOISE_SCALE] = grad_noise_scale.to(noise_scale.dtype)
    return tuple(result)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, mean, variance, *others = inputs[:TENSORS]
    if inputs[TENSORS] in _COMPUTED:
        _, mean, variance = output
    ctx.save_for_backward(x, mean, variance, *others)
    ctx.settings = inputs[TENSORS:]


def _gradient(kernels: _Kernels, ctx: Any, grad: Tensor, *_statistics: Tensor) -> tuple[Tensor | None, ...]:
    a = Arguments(*ctx.saved_tensors, *ctx.settings)
    if torch.is_grad_enabled():  # create_graph=True: this backward will be differentiated
        return _differentiable_gradients(a, ctx.needs_input_grad, grad)
    return _gradients(kernels, a, ctx.needs_input_grad, grad)


def _differentiable_gradients(a: Arguments, needs: tuple[bool, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of all fields of ``a`` through the reference, which is differentiable any number of times."""
    y = region_norm_reference(a)[0]
    wanted = {i: tensor for i, tensor in enumerate(a[:TENSORS]) if needs[i] and isinstance(tensor, Tensor)}
    found = torch.autograd.grad(y, list(wanted.values()), grad, create_graph=True)
    result: list[Tensor | None] = [None] * len(_FIELDS)
    for i, gradient in zip(wanted, found, strict=True):
        result[i] = gradient
    return tuple(result)


_SUMS = ["Tensor? sum_g", "Tensor? sum_gx", "float count"]
_REFERENCE = _Kernels(_forward_body, _stats_body, _backward_reduce_body, _backward_input_body, _backward_body)
_OP = Op(
    "region_norm",
    _Kernels(
        custom_op("region_norm", _forward_body, _DECLARED, 3),
        torch.library.custom_op("mixsyn_fast::region_norm_stats", _stats_body, mutates_args=()),
        custom_op("region_norm_backward_reduce", _backward_reduce_body, ["Tensor grad", *_DECLARED], 3),
        custom_op(
            "region_norm_backward_input",
            _backward_input_body,
            ["Tensor grad", *_DECLARED[:TENSORS], *_SUMS, *_DECLARED[TENSORS:], "bool need_maps"],
            4,
        ),
        custom_op("region_norm_backward", _backward_body, ["Tensor grad", *_DECLARED], 2),
    ),
    _Kernels(_forward_fake, _stats_fake, _backward_reduce_fake, _backward_input_fake, _backward_fake),
    _gradient,
    _setup_context,
)


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


@torch.no_grad()
def channel_moments(x: Tensor, noise: Tensor | None = None, noise_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) over a batch, as ``norm="batch"`` takes them, in float32 (float64 of float64).

    Args:
        x: (B, C, H, W) floating.
        noise: (B, 1, H, W) as x, with ``noise_scale``: of ``x + noise * noise_scale``.
        noise_scale: (C,) as x.
    """
    kernels = _OP.kernels(x) or _REFERENCE
    count, mean, m2 = kernels.stats(dense(x), noise, noise_scale, False)
    return mean[0], m2[0] / count


class _SynchronisedRegionNorm(torch.autograd.Function):
    """Batch statistics over a process group: gather between statistics and apply, sum between the backward passes."""

    @staticmethod
    def forward(ctx: Any, group: Any, kernels: _Kernels, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a = Arguments(*arguments)
        own_count, own_mean, own_m2 = kernels.stats(a.x, a.noise, a.noise_scale, False)
        count, mean, variance = _merge_over_group(own_count, own_mean, own_m2, group)
        a = a._replace(mean=mean, variance=variance, norm=NORM_GIVEN)
        y, _, _ = kernels.forward(*a)
        ctx.save_for_backward(*a[:TENSORS])
        ctx.settings, ctx.count, ctx.group, ctx.kernels = a[TENSORS + 1 :], count, group, kernels
        total = torch.tensor(count, dtype=torch.float64)
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        # every rank takes part in the sum, whatever its own needs are: they are the same on all ranks of one model
        def reduce_over_group(sums: Tensor) -> Tensor:
            dist.all_reduce(sums, group=ctx.group)
            return sums

        a = Arguments._make((*ctx.saved_tensors, NORM_BATCH, *ctx.settings))
        grads = _gradients(ctx.kernels, a, ctx.needs_input_grad[2:], grad, reduce_over_group, ctx.count)
        return None, None, *grads


# --- public function -------------------------------------------------------------------------------------------------


def _check(
    a: Arguments,
    norm: str,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    process_group: Any,
    num_groups: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    sample_scale: Tensor | None,
    sample_shift: Tensor | None,
) -> None:
    op, x, index, table = "region_norm", a.x, a.index, a.table
    check_tensor(op, "x", x)
    if not 3 <= x.dim() <= 5:
        fail(op, "x", "shape (B, C, H, W), or with one or three spatial dimensions", f"shape {tuple(x.shape)}")
    check_kernel_dtype(op, "x", x)
    batch, channels, *spatial = x.shape
    if a.norm == NORM_GIVEN:
        fail(op, "norm", "'instance', 'batch', 'group' or 'none'", described(norm))
    if norm == "group":
        check_integer(op, "num_groups", num_groups, 1, None, "a divisor of the channels with norm='group'")
        if channels % int(num_groups):
            fail(op, "num_groups", f"a divisor of the {channels} channels", num_groups)
    elif num_groups is not None:
        fail(op, "num_groups", f"None with norm={norm!r}", described(num_groups))
    check_flag(op, "training", training)
    pairs = (
        ("index", index, "table", table),
        ("scale", a.scale, "shift", a.shift),
        ("noise", a.noise, "noise_scale", a.noise_scale),
        ("weight", weight, "bias", bias),
        ("sample_scale", sample_scale, "sample_shift", sample_shift),
    )
    for one, first, other, second in pairs:
        if (first is None) != (second is None):
            fail(op, f"{one} and {other}", "both or neither", f"{one if second is None else other} only")
    if (running_mean is None) != (running_var is None):
        fail(op, "running_mean and running_var", "both or neither", "one")
    if index is not None and table is not None:
        if a.scale is not None:
            fail(op, "index and scale", "a table or dense maps", "both")
        check_tensor(op, "index", index)
        check_tensor(op, "table", table)
        if index.shape != (batch, *spatial):
            fail(op, "index", f"shape {(batch, *spatial)}", f"shape {tuple(index.shape)}")
        if index.dtype not in (torch.int32, torch.int64):
            fail(op, "index", "int32 or int64", index.dtype, TypeError)
        if table.dim() != 2 or table.shape[1] != 2 * channels:
            fail(op, "table", f"shape (R, {2 * channels})", f"shape {tuple(table.shape)}")
        check_floating(op, "table", table)
        check_device(op, "index", index, x.device)
        check_device(op, "table", table, x.device)
    if any(t is not None for t in (a.scale, a.noise, running_mean, weight, sample_scale)):
        shapes = (
            ("scale", a.scale, (batch, channels, *spatial)),
            ("shift", a.shift, (batch, channels, *spatial)),
            ("noise", a.noise, (batch, 1, *spatial)),
            ("noise_scale", a.noise_scale, (channels,)),
            ("running_mean", running_mean, (channels,)),
            ("running_var", running_var, (channels,)),
            ("weight", weight, (channels,)),
            ("bias", bias, (channels,)),
            ("sample_scale", sample_scale, (batch, channels)),
            ("sample_shift", sample_shift, (batch, channels)),
        )
        for name, tensor, shape in shapes:
            if tensor is not None:
                check_tensor(op, name, tensor)
                if tensor.shape != shape:
                    fail(op, name, f"shape {shape}", f"shape {tuple(tensor.shape)}")
                check_floating(op, name, tensor)
                check_device(op, name, tensor, x.device)
    if a.noise is not None and a.noise.requires_grad:
        fail(op, "noise", "a tensor that needs no gradient", "requires_grad=True")
    if running_mean is not None and norm != "batch":
        fail(op, "running_mean", f"None with norm={norm!r}", "a tensor")
    if norm == "batch" and not training and running_mean is None:
        fail(op, "running_mean and running_var", "tensors with norm='batch' and training=False", "None")
    if process_group is not None and (norm != "batch" or not training):
        fail(op, "process_group", "None unless norm='batch' and training=True", "a process group")
    computes = norm in ("instance", "group") or (norm == "batch" and training)
    # of a group as torch's own asks: several images of one value each are nothing but the shift
    count = prod(spatial) * (1 if norm == "instance" else batch * (channels // int(num_groups) if norm == "group" else 1))
    if computes and x.numel() > 0 and count < 2 and (process_group is None or norm != "batch"):
        fail(op, "x", "more than one value per group to compute statistics", f"shape {tuple(x.shape)}")


def _as_image(t: Tensor | None, before: int) -> Tensor | None:
    """One or three spatial dimensions, behind ``before`` others, as two, with pixels in the same order: a view if dense."""
    if t is None or t.dim() == before + 2:
        return t
    return t.unsqueeze(before) if t.dim() == before + 1 else t.flatten(before, before + 1)


def _folded(
    table: Tensor | None, scale: Tensor | None, shift: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Table or maps of ``(xhat * weight + bias) * gamma + beta``, with weight and bias in the accumulation type."""
    if table is not None:
        gamma, beta = table.to(weight.dtype).chunk(2, 1)
        return torch.cat((gamma * weight, gamma * bias + beta), 1), None, None
    if scale is not None and shift is not None:
        return None, scale * weight[:, None, None], scale * bias[:, None, None] + shift
    return torch.cat((weight, bias))[None], None, None


def _per_sample(index: Tensor | None, table: Tensor, factor: Tensor, addend: Tensor) -> tuple[Tensor | None, Tensor]:
    """Index (B, H, W) and table of ``(xhat * gamma + beta) * factor + addend``, with (B, C) in the accumulation type.

    With an index images no longer share rows: there are B * R, or, where those are more than pixels, those in use. An index
    out of range stays out of range.
    """
    batch, rows = len(factor), len(table)
    gamma, beta = table.to(factor.dtype).chunk(2, 1)
    if batch == 0:
        return index, table
    if index is None or batch == 1:
        return index, torch.cat((gamma * factor, beta * factor + addend), 1)
    outside = (index < 0) | (index >= rows)
    image = torch.arange(batch, device=index.device)[:, None, None]
    row = (image * rows + index).masked_fill(outside, 0)
    if rows <= index[0].numel():  # no more rows than pixels
        factor, addend = factor[:, None], addend[:, None]
        table = torch.cat((gamma * factor, beta * factor + addend), 2).reshape(batch * rows, -1)
    else:
        used = torch.zeros(batch * rows, dtype=torch.bool, device=index.device)
        used[row.reshape(-1)] = True
        of_image, of_table = used.nonzero()[:, 0] // rows, used.nonzero()[:, 0] % rows
        factor, addend = factor[of_image], addend[of_image]
        table = torch.cat((gamma[of_table] * factor, beta[of_table] * factor + addend), 1)
        row = (used.cumsum(0) - 1)[row]
    return row.masked_fill(outside, -1), table


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
    num_groups: int | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    sample_scale: Tensor | None = None,
    sample_shift: Tensor | None = None,
) -> Tensor:
    """Normalise ``x``, modulate it per label pattern or per pixel, and optionally apply LeakyReLU or SiLU, in one fused op.

    ``y = act(xhat * table[index][:C] + table[index][C:])`` or ``y = act(xhat * scale + shift)``; without either
    ``y = act(xhat)``. The table or ``scale`` holds the finished factor (SPADE's and SEAN's ``1 +`` included). With the
    affine ``weight`` and ``bias`` of a norm, ``xhat * weight + bias`` stands in place of ``xhat``; with ``sample_scale`` and
    ``sample_shift`` what the activation is given is multiplied and shifted once more, per image and channel.

    Args:
        x: (B, C, H, W), or (B, C, L) or (B, C, D, H, W), here and below; float32, float64, float16 or bfloat16; contiguous
            and channels_last are read as they are, other strides are made dense first. B may be 0.
        index: (B, H, W) int32 (int64 is converted, and a value beyond int32 stays out of range), values in [0, R); checked
            on the CPU, by a device-side assertion on CUDA.
        table: (R, 2C) floating: scale, then shift.
        scale: (B, C, H, W) floating; converted to x's dtype.
        shift: (B, C, H, W) floating; converted to x's dtype.
        norm: ``"instance"`` (per image and channel), ``"group"`` (per image and group of adjacent channels), ``"batch"``
            (per channel) or ``"none"``.
        running_mean: (C,), updated in place when ``training``, used when not; only with ``norm="batch"``.
        running_var: (C,), unbiased, as torch's batch norm keeps it.
        training: with ``norm="batch"``: use the statistics of the batch and update the running ones.
        momentum: weight of the new value in the running statistics, in [0, 1].
        eps: added to the variance; finite, not negative.
        noise: (B, 1, H, W), one value per pixel shared by all channels, added to x before the statistics; needs no
            gradient.
        noise_scale: (C,), factor of the noise per channel.
        negative_slope: slope of LeakyReLU for negative values; None for no activation.
        process_group: a ``torch.distributed`` group over which batch statistics are taken (synchronised batch norm).
        num_groups: with ``norm="group"``: number of groups, a divisor of C.
        weight: (C,), affine weight of the norm. It is folded into the table, in a pass over that; with dense maps into
            those, which reads and writes them once more.
        bias: (C,), affine bias of the norm.
        activation: ``"silu"``, in place of ``negative_slope``; None for LeakyReLU or nothing.
        sample_scale: (B, C), finished factor behind the modulation, as the time embedding of diffusion blocks gives it
            (their ``1 +`` included). Folded as ``weight`` is; of a table with index images then have rows of their own.
        sample_shift: (B, C), added then.

    Returns:
        As ``x``: shape, dtype and memory layout.

    Raises:
        ValueError: a shape, a number, a combination of arguments or a device does not fit, there is one value alone to
            compute statistics of, or an index is out of range (on the CPU); the message names the argument.
        TypeError: a type or a dtype does not fit.
        RuntimeError: an index out of range under ``torch.compile``.

    Gradients reach x, table or scale and shift, weight and bias, sample_scale and sample_shift, and noise_scale; a backward
    that is to be differentiated again (``create_graph=True``) runs the reference. Results are deterministic on every backend
    for a fixed number of threads. Sums and statistics are float32 (float64 for float64), so half precision loses nothing but
    the final rounding. Under autocast the op runs in x's dtype.
    """
    mode = _NORMS.get(norm, NORM_GIVEN) if isinstance(norm, str) else NORM_GIVEN
    eps = check_number("region_norm", "eps", eps, 0.0, expected="a finite number, not negative")
    if negative_slope is not None:
        negative_slope = check_number("region_norm", "negative_slope", negative_slope, expected="a finite number or None")
    if activation is not None and activation != "silu":
        fail("region_norm", "activation", "'silu' or None", described(activation))
    if activation is not None and negative_slope is not None:
        fail("region_norm", "activation and negative_slope", "one of them", "both")
    a = Arguments(
        x, None, None, index, table, scale, shift, noise, noise_scale, mode, eps, negative_slope, 0, activation is not None
    )  # fmt: skip
    affine = (weight, bias, sample_scale, sample_shift)
    _check(a, norm, running_mean, running_var, training, process_group, num_groups, *affine)
    acc, rows, given, volume = acc_dtype(x.dtype), 0 if table is None else len(table), index, x.shape[2:]
    image = _as_image(x, 2)
    assert image is not None
    x, index, noise = image, _as_image(index, 1), _as_image(noise, 2)
    scale, shift = _as_image(scale, 2), _as_image(shift, 2)
    if weight is not None and bias is not None:
        table, scale, shift = _folded(table, scale, shift, weight.to(acc), bias.to(acc))
    if sample_scale is not None and sample_shift is not None:
        factor, addend = sample_scale.to(acc), sample_shift.to(acc)
        if scale is not None and shift is not None:
            wide = factor[:, :, None, None]
            scale, shift = scale * wide, shift * wide + addend[:, :, None, None]
        elif table is None:
            table = torch.cat((factor, addend), 1)
        else:
            index, table = _per_sample(index, table, factor, addend)
    mean = variance = None
    if norm == "batch" and not training:
        assert running_mean is not None and running_var is not None
        mode = NORM_GIVEN
        mean, variance = running_mean.detach().to(acc)[None], running_var.detach().to(acc)[None]
    if noise is not None and noise_scale is not None:
        noise, noise_scale = noise.to(x.dtype).contiguous(), noise_scale.to(x.dtype).contiguous()
    if scale is not None and shift is not None:
        scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    if running_mean is not None:
        momentum = check_number("region_norm", "momentum", momentum, 0.0, 1.0, "a number in [0, 1]")
    kernels = _OP.kernels(x)
    if kernels is not None or process_group is not None:
        x = dense(x)
        index = None if index is None else int32(index).contiguous()
        table = None if table is None else table.to(acc).contiguous()
        scale, shift = (None if t is None else dense(t, x) for t in (scale, shift))
    groups = 0 if num_groups is None else int(num_groups)
    a = a._replace(x=x, mean=mean, variance=variance, index=index, table=table, scale=scale, shift=shift, noise=noise)
    a = a._replace(noise_scale=noise_scale, norm=mode, num_groups=groups)
    y: Tensor
    total: Tensor | None = None
    try:
        if process_group is not None:
            # plain autograd does not reach over a group: the reference takes the bodies of the kernels there
            y, new_mean, new_variance, total = _SynchronisedRegionNorm.apply(process_group, kernels or _REFERENCE, *a)
        elif kernels is None:
            y, new_mean, new_variance = region_norm_reference(a)
        else:
            y, new_mean, new_variance = kernels.forward(*a)
    except (RuntimeError, IndexError):
        explain("region_norm", "index", given, 0, rows, f"values in [0, {rows})")
        raise
    if norm == "batch" and training and running_mean is not None and running_var is not None and x.numel() > 0:
        count = float(_count(x, False)) if total is None else float(total)
        with torch.no_grad():
            unbiased = new_variance.detach()[0] * (count / max(count - 1.0, 1.0))
            running_mean.lerp_(new_mean.detach()[0].to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    if len(volume) == 1:
        return y.squeeze(2)
    return y.unflatten(2, volume[:2]) if len(volume) == 3 else y
