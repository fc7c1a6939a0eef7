r"""Spatial attention and aggregation of MSCA (masked spatial-channel attention) in one pass over the exemplar's features.

.. math::

    l_{b,k,p} = \sum_n \phi^x_{k,n} F^x_{b,n,p} + \sum_m \phi^c_{k,m} F^c_{b,m,p}, \qquad
    \alpha_{b,k,p} = \frac{e^{l_{b,k,p}}}{\sum_q e^{l_{b,k,q}}}, \qquad
    V_{b,k,n} = \sum_p \alpha_{b,k,p} F^x_{b,n,p}, \qquad
    g_{b,m} = \frac{1}{HW} \sum_p F^c_{b,m,p}

Source: MSCA's Eq. 4 (softmax over the positions of every one of the K maps; the 1x1 filter phi acts on the concatenation
of the image features F^x and the label features F^c, here on its two parts), Eq. 5 (V) and the exemplar's global average
of Eq. 6 (g), which the same pass yields. The paper has no bias; one would cancel in the softmax.

The pass keeps a running maximum and rescales the sums when it grows, so neither logits nor maps are stored. Gradient, with
the logits recomputed from the saved log-sum-exp, :math:`\bar V` the gradient of V and :math:`\bar\alpha` that of the maps:

.. math::

    \bar l_{b,k,p} = \alpha_{b,k,p} \Bigl(\sum_n \bar V_{b,k,n} F^x_{b,n,p} + \bar\alpha_{b,k,p} - D_{b,k}\Bigr), \qquad
    D_{b,k} = \sum_n \bar V_{b,k,n} V_{b,k,n} + \sum_p \alpha_{b,k,p} \bar\alpha_{b,k,p}

    \bar F^x_{b,n,p} = \sum_k \alpha_{b,k,p} \bar V_{b,k,n} + \bar l_{b,k,p} \phi^x_{k,n}, \qquad
    \bar F^c_{b,m,p} = \sum_k \bar l_{b,k,p} \phi^c_{k,m} + \frac{\bar g_{b,m}}{HW}, \qquad
    \bar\phi = \sum_{b,p} \bar l_{b,k,p}\, [F^x, F^c]_{b,:,p}
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import (
    Kernels,
    Op,
    acc_dtype,
    check_device,
    check_flag,
    check_floating,
    check_kernel_dtype,
    check_tensor,
    custom_op,
    declared,
    fail,
)

__all__ = ["spatial_attention_pool"]

MAX_MAPS = 64
NEED_FEATURES, NEED_CONDITION, NEED_WEIGHT_FEATURES, NEED_WEIGHT_CONDITION = 1, 2, 4, 8


def _kept(mask: Tensor | None) -> Tensor | None:
    """(B, H, W) -> (B, 1, H*W), or None."""
    return None if mask is None else mask.flatten(1)[:, None]


def spatial_attention_pool_reference(
    features: Tensor,
    condition: Tensor,
    weight_features: Tensor,
    weight_condition: Tensor,
    mask: Tensor | None,
    return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::spatial_attention_pool``.

    Args:
        features: (B, N, H, W) floating.
        condition: (B, M, H, W), dtype of ``features``.
        weight_features: (K, N).
        weight_condition: (K, M).
        mask: (B, H, W) bool, the positions that take part in the softmax; None for all.
        return_maps: whether the attention maps are wanted.

    Returns:
        values (B, K, N), condition_mean (B, M), both in the accumulation type, maps (B, K, H, W) in the dtype of
        ``features`` or empty, and the log-sum-exp of the logits (B, K) in the accumulation type.
    """
    acc = acc_dtype(features.dtype)
    height, width = features.shape[2:]
    stacked = torch.cat((features.to(acc), condition.to(acc)), 1).flatten(2)
    logits = torch.matmul(torch.cat((weight_features, weight_condition), 1).to(acc), stacked)
    kept = _kept(mask)
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
        alive = kept.any(2, keepdim=True)
        # a softmax over nothing is NaN, and so would be its gradient: take one over zeros instead and throw it away
        maps = torch.softmax(torch.where(alive, logits, 0), 2).masked_fill(~kept, 0)
    else:
        maps = torch.softmax(logits, 2)
    flat = features.to(acc).flatten(2)
    values = torch.bmm(maps, flat.transpose(1, 2))
    mean = condition.to(acc).flatten(2).sum(2) / max(height * width, 1)
    lse = torch.logsumexp(logits.detach(), 2) if height * width > 0 else logits.new_full(logits.shape[:2], -torch.inf)
    picture = maps.reshape(*maps.shape[:2], height, width).to(features.dtype) if return_maps else features.new_empty(0)
    return values, mean, picture, lse


# --- the ops: Python bodies run where no kernel of the device is loaded ---------------------------------------------


@torch.library.custom_op("mixsyn_fast::spatial_attention_pool", mutates_args=())
def _pool_op(
    features: Tensor,
    condition: Tensor,
    weight_features: Tensor,
    weight_condition: Tensor,
    mask: Tensor | None,
    return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, mean, maps, lse = spatial_attention_pool_reference(
        features, condition, weight_features, weight_condition, mask, return_maps
    )
    return values.contiguous(), mean.contiguous(), maps.contiguous(), lse.contiguous()


def _pool_fake(
    features: Tensor,
    condition: Tensor,
    weight_features: Tensor,
    weight_condition: Tensor,
    mask: Tensor | None,
    return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    acc = acc_dtype(features.dtype)
    batch, channels, height, width = features.shape
    maps = weight_features.shape[0]
    return (
        features.new_empty((batch, maps, channels), dtype=acc),
        features.new_empty((batch, condition.shape[1]), dtype=acc),
        features.new_empty((batch, maps, height, width) if return_maps else (0,)),
        features.new_empty((batch, maps), dtype=acc),
    )


class BackwardArguments(NamedTuple):
    """What the backward reads, in the order of its schema.

    Attributes:
        grad_values: (B, K, N).
        grad_mean: (B, M).
        grad_maps: (B, K, H, W), or None.
        features: as in the forward, as are ``condition``, both weights and ``mask``.
        values: the forward's first result.
        lse: (B, K), its last.
        needs: sum of the NEED_ bits of the gradients that are wanted.
    """

    grad_values: Tensor
    grad_mean: Tensor
    grad_maps: Tensor | None
    features: Tensor
    condition: Tensor
    weight_features: Tensor
    weight_condition: Tensor
    mask: Tensor | None
    values: Tensor
    lse: Tensor
    needs: int


def _backward_reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = BackwardArguments(*arguments)
    features, condition, weight_features, weight_condition, mask = a[3:8]
    needs = a.needs
    acc = acc_dtype(features.dtype)
    flat, flat_condition = features.to(acc).flatten(2), condition.to(acc).flatten(2)
    logits = torch.matmul(weight_features, flat) + torch.matmul(weight_condition, flat_condition)
    maps = torch.exp(logits - a.lse[:, :, None])
    kept = _kept(mask)
    if kept is not None:
        maps = maps.masked_fill(~kept, 0)
    grad_alpha = torch.bmm(a.grad_values, flat)
    offset = (a.grad_values * a.values).sum(2, keepdim=True)
    if a.grad_maps is not None:
        direct = a.grad_maps.to(acc).flatten(2)
        grad_alpha = grad_alpha + direct
        offset = offset + (maps * direct).sum(2, keepdim=True)
    grad_logits = maps * (grad_alpha - offset)
    if kept is not None:
        grad_logits = grad_logits.masked_fill(~kept, 0)
    # an output that is not needed is empty; each has a tensor of its own
    grad_features, grad_condition = features.new_empty(0), features.new_empty(0)
    grad_weight_features, grad_weight_condition = weight_features.new_empty(0), weight_features.new_empty(0)
    if needs & NEED_FEATURES:
        grad_flat = torch.bmm(a.grad_values.transpose(1, 2), maps) + torch.matmul(weight_features.t(), grad_logits)
        grad_features = torch.empty_like(features).copy_(grad_flat.reshape(features.shape))
    if needs & NEED_CONDITION:
        grad_flat = torch.matmul(weight_condition.t(), grad_logits) + a.grad_mean[:, :, None] / max(flat.shape[2], 1)
        grad_condition = torch.empty_like(condition).copy_(grad_flat.reshape(condition.shape))
    if needs & NEED_WEIGHT_FEATURES:
        grad_weight_features = torch.bmm(grad_logits, flat.transpose(1, 2)).sum(0)
    if needs & NEED_WEIGHT_CONDITION:
        grad_weight_condition = torch.bmm(grad_logits, flat_condition.transpose(1, 2)).sum(0)
    return grad_features, grad_condition, grad_weight_features, grad_weight_condition


_backward_op = custom_op("spatial_attention_pool_backward", _backward_reference, declared(BackwardArguments), 4)


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = BackwardArguments(*arguments)
    return (
        torch.empty_like(a.features) if a.needs & NEED_FEATURES else a.features.new_empty((0,)),
        torch.empty_like(a.condition) if a.needs & NEED_CONDITION else a.features.new_empty((0,)),
        a.weight_features.new_empty(a.weight_features.shape if a.needs & NEED_WEIGHT_FEATURES else (0,)),
        a.weight_condition.new_empty(a.weight_condition.shape if a.needs & NEED_WEIGHT_CONDITION else (0,)),
    )


# --- gradient --------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, condition, weight_features, weight_condition, mask, _ = inputs
    values, _, _, lse = output
    ctx.save_for_backward(features, condition, weight_features, weight_condition, mask, values, lse)
    ctx.set_materialize_grads(False)


def _gradient(
    kernels: Kernels,
    ctx: Any,
    grad_values: Tensor | None,
    grad_mean: Tensor | None,
    grad_maps: Tensor | None,
    _lse: Tensor | None,
) -> tuple[Tensor | None, ...]:
    features, condition, weight_features, weight_condition, mask, values, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:4]
    needs = sum(1 << i for i, wants in enumerate(wanted) if wants)
    batch, channels = condition.shape[:2]
    grad_values = torch.zeros_like(values) if grad_values is None else grad_values.contiguous()
    grad_mean = values.new_zeros((batch, channels)) if grad_mean is None else grad_mean.contiguous()
    if grad_maps is not None:
        grad_maps = grad_maps.contiguous() if grad_maps.dim() == 4 else None
    grads = kernels.backward(
        grad_values, grad_mean, grad_maps, features, condition, weight_features, weight_condition, mask, values, lse, needs
    )
    return (*(grad if wants else None for grad, wants in zip(grads, wanted, strict=True)), None, None)


_OP = Op(
    "spatial_attention_pool",
    Kernels(_pool_op, _backward_op),
    Kernels(_pool_fake, _backward_fake),
    _gradient,
    _setup_context,
)


# --- public function -------------------------------------------------------------------------------------------------


def _check(
    features: Tensor, condition: Tensor, weight_features: Tensor, weight_condition: Tensor, mask: Tensor | None
) -> None:
    op = "spatial_attention_pool"
    for name, tensor in (
        ("features", features),
        ("condition", condition),
        ("weight_features", weight_features),
        ("weight_condition", weight_condition),
        *(() if mask is None else (("mask", mask),)),
    ):
        check_tensor(op, name, tensor)
    if features.dim() != 4:
        fail(op, "features", "shape (B, N, H, W)", f"shape {tuple(features.shape)}")
    check_kernel_dtype(op, "features", features)
    batch, channels, height, width = features.shape
    if condition.dim() != 4 or (condition.shape[0], *condition.shape[2:]) != (batch, height, width):
        fail(op, "condition", f"shape ({batch}, M, {height}, {width})", f"shape {tuple(condition.shape)}")
    if weight_features.dim() != 2 or weight_features.shape[1] != channels:
        fail(op, "weight_features", f"shape (K, {channels})", f"shape {tuple(weight_features.shape)}")
    maps = weight_features.shape[0]
    if not 1 <= maps <= MAX_MAPS:
        fail(op, "weight_features", f"1 to {MAX_MAPS} rows", maps)
    if tuple(weight_condition.shape) != (maps, condition.shape[1]):
        fail(op, "weight_condition", f"shape {(maps, condition.shape[1])}", f"shape {tuple(weight_condition.shape)}")
    others = (("condition", condition), ("weight_features", weight_features), ("weight_condition", weight_condition))
    for name, tensor in others:
        check_floating(op, name, tensor)
    if mask is not None:
        if tuple(mask.shape) != (batch, height, width):
            fail(op, "mask", f"shape {(batch, height, width)}", f"shape {tuple(mask.shape)}")
        if mask.dtype not in (torch.bool, torch.uint8):
            fail(op, "mask", "bool or uint8", mask.dtype, TypeError)
    for name, given in (*others, ("mask", mask)):
        if given is not None:
            check_device(op, name, given, features.device)


def _dense(features: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous or both channels_last, the two layouts that kernels read; what has one of them decides."""
    formats = (torch.contiguous_format, torch.channels_last)
    of_features = [form for form in formats if features.is_contiguous(memory_format=form)]
    if not of_features:
        # a slice along channels of a channels_last tensor stays channels_last: its channels are still adjacent
        of_features = [formats[1] if features.stride(1) == 1 and features.shape[1] > 1 else formats[0]]
    shared = [form for form in of_features if condition.is_contiguous(memory_format=form)]
    form = (shared or of_features)[0]
    return features.contiguous(memory_format=form), condition.contiguous(memory_format=form)


def spatial_attention_pool(
    features: Tensor,
    condition: Tensor,
    weight_features: Tensor,
    weight_condition: Tensor,
    *,
    mask: Tensor | None = None,
    return_maps: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to K regions of an image and sum its features there, in one pass (MSCA's Eq. 4, 5 and the gap of Eq. 6).

    ``logits = weight_features F + weight_condition C``, a softmax over the positions of every map, and the sums of F under
    the maps. Neither the concatenation of F and C nor logits nor maps (unless asked for) are stored.

    Args:
        features: (B, N, H, W), F, float32, float64, float16 or bfloat16; contiguous and channels_last are read as they
            are, other strides are made dense first. B, H and W may be 0.
        condition: (B, M, H, W) floating, C, converted to the dtype of ``features``; brought into its layout if it differs.
        weight_features: (K, N) floating, K from 1 to 64; used in float32 (float64 for float64 features).
        weight_condition: (K, M) floating, as ``weight_features``.
        mask: (B, H, W) bool or uint8: the positions that take part in the softmax; None for all. An image without any has
            values and maps of zero. As in torch's own attention, a masked position has weight zero, so its features must
            still be finite. The mask does not touch ``condition_mean``.
        return_maps: return the attention maps too (costs their memory).

    Returns:
        values (B, K, N): the sums, condition_mean (B, M): the mean of C over all positions (zero where there are none),
        maps (B, K, H, W) contiguous, or an empty tensor (0,); all in the dtype of ``features``.

    Raises:
        ValueError: a shape, K or a device does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        RuntimeError: a second backward is asked of the kernels.

    Gradients reach features, condition and both weights, from all three results. They recompute the maps. The backward of
    the kernels cannot be differentiated again (a clear error); the ``reference`` backend can. Results are deterministic
    and, on the CPU, do not depend on the number of threads: positions are cut into parts fixed by the shape and merged in a
    fixed order. A NaN in the input reaches the results. Under autocast the op runs in the dtype of ``features``; logits
    and sums are float32 in any case.
    """
    _check(features, condition, weight_features, weight_condition, mask)
    return_maps = check_flag("spatial_attention_pool", "return_maps", return_maps)
    acc = acc_dtype(features.dtype)
    condition = condition.to(features.dtype)
    weight_features, weight_condition = weight_features.to(acc), weight_condition.to(acc)
    mask = None if mask is None else mask.to(torch.bool)
    kernels = _OP.kernels(features)
    if kernels is None:
        values, mean, maps, _ = spatial_attention_pool_reference(
            features, condition, weight_features, weight_condition, mask, return_maps
        )
    else:
        features, condition = _dense(features, condition)
        values, mean, maps, _ = kernels.forward(
            features,
            condition,
            weight_features.contiguous(),
            weight_condition.contiguous(),
            None if mask is None else mask.contiguous(),
            return_maps,
        )
    return values.to(features.dtype), mean.to(features.dtype), maps
