"""What all ops share: accepted types, the accumulation type, and dense memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of statistics and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(t: Tensor) -> bool:
    """True where the channels of a (B, C, H, W) tensor are adjacent, and not also its pixels."""
    return not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def dense(t: Tensor, like: Tensor | None = None) -> Tensor:
    """Contiguous or channels_last memory (that of ``like`` where given): the two layouts that kernels read.

    Args:
        t: (B, C, H, W).
        like: a dense tensor of the same shape, or None.

    Returns:
        ``t`` itself where its strides fit, else a copy.
    """
    if like is not None:
        return t if t.stride() == like.stride() else torch.empty_like(like, dtype=t.dtype).copy_(t)
    if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last):
        return t
    # A slice along channels of a channels_last tensor stays channels_last: its channels are still adjacent.
    channels_last = t.dim() == 4 and t.stride(1) == 1
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Kernels(NamedTuple):
    """The two kernels of one backend of an op."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def refuse_double_backward(op: str) -> Callable[..., None]:
    """Return the gradient of a backward op: an error that says what to do instead.

    Args:
        op: name of the op whose backward it is.
    """

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"mixsyn_fast::{op}: double backward (create_graph=True) is not available from the kernels; "
            'run the forward under mixsyn_fast.use_backend("reference"), which is differentiable any number of times'
        )

    return refuse


def twin(name: str, op: Any, body: Callable[..., Any]) -> Any:
    """Register an op of its own with the schema of another: two kernels on one dispatch key would shadow each other.

    Args:
        name: of the new op.
        op: the custom op whose schema it gets.
        body: what it runs, on every device.
    """
    schema = str(op._opoverload._schema)
    return torch.library.custom_op(f"mixsyn_fast::{name}", body, mutates_args=(), schema=schema[schema.index("(") :])
