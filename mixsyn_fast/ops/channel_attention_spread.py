r"""Channel attention and aggregation of the masked spatial-channel attention (MSCA) in one pass over the target's condition.

.. math::

    \beta_{b,k,p} = \frac{e^{l_{b,k,p}}}{\sum_j e^{l_{b,j,p}}}, \qquad
    l_{b,k,p} = \sum_m \psi_{k,m} F^c_{b,m,p}, \qquad
    F^x_{b,n,p} = \sum_k \beta_{b,k,p} \tilde V_{b,k,n}

Source: MSCA's Eq. 7 (softmax over the K channels at every position) and Eq. 8. The paper has no bias in psi.

Gradient, with beta recomputed and :math:`\bar F` the gradient of the result:

.. math::

    \bar\beta_{b,k,p} = \sum_n \bar F_{b,n,p} \tilde V_{b,k,n}, \qquad
    \bar l_{b,k,p} = \beta_{b,k,p} \Bigl(\bar\beta_{b,k,p} - \sum_j \beta_{b,j,p} \bar\beta_{b,j,p}\Bigr), \qquad
    \bar V_{b,k,n} = \sum_p \beta_{b,k,p} \bar F_{b,n,p}

    \bar F^c_{b,m,p} = \sum_k \bar l_{b,k,p} \psi_{k,m}, \qquad \bar\psi_{k,m} = \sum_{b,p} \bar l_{b,k,p} F^c_{b,m,p}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import (
    Kernels,
    Op,
    acc_dtype,
    check_device,
    check_floating,
    check_kernel_dtype,
    check_tensor,
    dense,
    fail,
)

__all__ = ["channel_attention_maps", "channel_attention_spread"]

MAX_MAPS = 64
NEED_VALUES, NEED_CONDITION, NEED_WEIGHT = 1, 2, 4


def _layout(condition: Tensor) -> torch.memory_format:
    """Layout of a dense condition, of the result and of its gradient; contiguous where both fit."""
    return torch.contiguous_format if condition.is_contiguous() else torch.channels_last


def channel_attention_spread_reference(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::channel_attention_spread``.

    Args:
        values: (B, K, N).
        condition: (B, M, H, W) floating.
        weight: (K, M).

    Returns:
        (B, N, H, W) in the dtype of ``condition``.
    """
    acc = acc_dtype(condition.dtype)
    batch, _, height, width = condition.shape
    logits = torch.matmul(weight.to(acc), condition.to(acc).flatten(2))
    result = torch.bmm(values.to(acc).transpose(1, 2), torch.softmax(logits, 1))
    return result.reshape(batch, values.shape[2], height, width).to(condition.dtype)


# --- the ops: Python bodies run where no kernel of the device is loaded ---------------------------------------------


@torch.library.custom_op("mixsyn_fast::channel_attention_spread", mutates_args=())
def _spread_op(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    result = channel_attention_spread_reference(values, condition, weight)
    return torch.empty(result.shape, dtype=result.dtype, device=result.device, memory_format=_layout(condition)).copy_(
        result
    )


def _spread_fake(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    batch, _, height, width = condition.shape
    shape = (batch, values.shape[2], height, width)
    return torch.empty(shape, dtype=condition.dtype, device=condition.device, memory_format=_layout(condition))


def _backward_reference(
    grad: Tensor, values: Tensor, condition: Tensor, weight: Tensor, needs: int
) -> tuple[Tensor, Tensor, Tensor]:
    acc = acc_dtype(condition.dtype)
    flat, grad_flat = condition.to(acc).flatten(2), grad.to(acc).flatten(2)
    maps = torch.softmax(torch.matmul(weight, flat), 1)
    grad_maps = torch.bmm(values, grad_flat)
    grad_logits = maps * (grad_maps - (maps * grad_maps).sum(1, keepdim=True))
    # an output that is not needed is empty; each has a tensor of its own
    grad_values, grad_condition, grad_weight = values.new_empty(0), condition.new_empty(0), weight.new_empty(0)
    if needs & NEED_VALUES:
        grad_values = torch.bmm(maps, grad_flat.transpose(1, 2))
    if needs & NEED_CONDITION:
        grad_condition = torch.matmul(weight.t(), grad_logits).reshape(condition.shape)
        grad_condition = torch.empty_like(condition).copy_(grad_condition)
    if needs & NEED_WEIGHT:
        grad_weight = torch.bmm(grad_logits, flat.transpose(1, 2)).sum(0)
    return grad_values, grad_condition, grad_weight


_backward_op = torch.library.custom_op(
    "mixsyn_fast::channel_attention_spread_backward", _backward_reference, mutates_args=()
)


def _backward_fake(
    grad: Tensor, values: Tensor, condition: Tensor, weight: Tensor, needs: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(values.shape if needs & NEED_VALUES else (0,)),
        torch.empty_like(condition) if needs & NEED_CONDITION else condition.new_empty((0,)),
        weight.new_empty(weight.shape if needs & NEED_WEIGHT else (0,)),
    )


# --- gradient --------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(kernels: Kernels, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, condition, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    needs = sum(1 << i for i, wants in enumerate(wanted) if wants)
    # whatever follows may hand back a gradient in another layout
    grad = grad.contiguous(memory_format=_layout(condition))
    grads = kernels.backward(grad, values, condition, weight, needs)
    return tuple(grad if wants else None for grad, wants in zip(grads, wanted, strict=True))


_OP = Op(
    "channel_attention_spread",
    Kernels(_spread_op, _backward_op),
    Kernels(_spread_fake, _backward_fake),
    _gradient,
    _setup_context,
)


# --- public functions ------------------------------------------------------------------------------------------------


def _check(op: str, condition: Tensor, weight: Tensor) -> None:
    check_tensor(op, "condition", condition)
    check_tensor(op, "weight", weight)
    if condition.dim() != 4:
        fail(op, "condition", "shape (B, M, H, W)", f"shape {tuple(condition.shape)}")
    check_kernel_dtype(op, "condition", condition)
    if weight.dim() != 2 or weight.shape[1] != condition.shape[1]:
        fail(op, "weight", f"shape (K, {condition.shape[1]})", f"shape {tuple(weight.shape)}")
    if not 1 <= weight.shape[0] <= MAX_MAPS:
        fail(op, "weight", f"1 to {MAX_MAPS} rows", weight.shape[0])
    check_floating(op, "weight", weight)
    check_device(op, "weight", weight, condition.device)


def _check_values(values: Tensor, condition: Tensor, weight: Tensor) -> None:
    op, leading = "channel_attention_spread", (condition.shape[0], weight.shape[0])
    check_tensor(op, "values", values)
    if values.dim() != 3 or tuple(values.shape[:2]) != leading:
        fail(op, "values", f"shape ({leading[0]}, {leading[1]}, N)", f"shape {tuple(values.shape)}")
    check_floating(op, "values", values)
    check_device(op, "values", values, condition.device)


def _spread(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    kernels = _OP.kernels(condition)
    if kernels is None:
        return channel_attention_spread_reference(values, condition, weight)
    acc = acc_dtype(condition.dtype)
    result: Tensor = kernels.forward(values.to(acc).contiguous(), dense(condition), weight.to(acc).contiguous())
    return result


def channel_attention_spread(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """Give every position a mixture of K feature vectors, chosen by its condition, in one pass (MSCA's Eq. 7 and 8).

    ``beta = softmax over k of (weight condition)`` and ``result = sum_k beta_k values_k``; beta is not stored.

    Args:
        values: (B, K, N) floating, the (gated) feature vectors; used in float32 (float64 for a float64 condition).
        condition: (B, M, H, W), float32, float64, float16 or bfloat16; contiguous and channels_last are read as they are,
            other strides are made dense first. B, H and W may be 0; the size need not be that of the exemplar.
        weight: (K, M) floating, K from 1 to 64; used as ``values``.

    Returns:
        (B, N, H, W), dtype and memory layout of ``condition``.

    Raises:
        ValueError: a shape, K or a device does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        RuntimeError: a second backward is asked of the kernels.

    Gradients reach values, condition and weight and recompute beta. The backward of the kernels cannot be differentiated
    again (a clear error); the ``reference`` backend can. Results are deterministic and, on the CPU, do not depend on the
    number of threads. A NaN in the input reaches the results. Under autocast the op runs in the dtype of ``condition``;
    logits and sums are float32 in any case.
    """
    _check("channel_attention_spread", condition, weight)
    _check_values(values, condition, weight)
    return _spread(values, condition, weight)


def channel_attention_maps(condition: Tensor, weight: Tensor) -> Tensor:
    """Channel attention maps beta (MSCA's Eq. 7): the spread of the identity, exact and by the same kernel.

    For pictures, and for a convolution that follows the spread: it can run on the K maps instead of the N features
    (docs/exact_algebra.md, 7; ``mixsyn_fast.layers.attention.folded_conv2d``).

    Args:
        condition: (B, M, H, W), as in :func:`channel_attention_spread`.
        weight: (K, M), as in :func:`channel_attention_spread`.

    Returns:
        (B, K, H, W), dtype and memory layout of ``condition``; sums to one over K.

    Raises:
        ValueError: a shape, K or a device does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        RuntimeError: a second backward is asked of the kernels.
    """
    _check("channel_attention_maps", condition, weight)
    maps = weight.shape[0]
    identity = torch.eye(maps, dtype=acc_dtype(condition.dtype), device=condition.device)
    return _spread(identity.expand(condition.shape[0], maps, maps), condition, weight)
