"""The norm without parameters under SPADE, SEAN and CLADE: its arguments for :func:`region_norm`, and the plain form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_backend, current_plan
from ..region_map import RegionMap

Regions = RegionMap | Tensor


def norm_arguments(norm: nn.Module, x: Tensor, affine: bool = False) -> dict[str, Any]:
    """Arguments of :func:`region_norm` that do what a parameter-free norm layer does to ``x``, step count included.

    Args:
        norm: ``nn.BatchNorm2d``, ``nn.SyncBatchNorm`` or another batch norm, an instance norm (``nn.InstanceNorm2d``),
            ``nn.GroupNorm``, all without affine parameters, or ``nn.Identity``.
        x: (B, C, H, W), or with one or three spatial dimensions.
        affine: the norm may have affine parameters, which the caller has put into scale and shift.

    Returns:
        norm; eps, num_groups, running statistics, training, momentum, process_group where the norm knows them.

    Raises:
        TypeError: an affine or unknown layer.
    """
    reason = unsupported_norm(norm, affine)
    if reason is not None:
        raise TypeError(f"param_free_norm: expected an affine-free batch, instance or group norm, got {reason}")
    if isinstance(norm, nn.Identity):
        return {"norm": "none"}
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return {"norm": "instance", "eps": norm.eps}
    if isinstance(norm, nn.GroupNorm):
        return {"norm": "group", "num_groups": norm.num_groups, "eps": norm.eps}
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    training = norm.training or (norm.running_mean is None and norm.running_var is None)
    # as torch: statistics that are not tracked in training (frozen) stay as they are
    keeps = not norm.training or norm.track_running_stats
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None and _counts_batches(norm):
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    group = None
    if isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available() and dist.is_initialized():
        group = norm.process_group if norm.process_group is not None else dist.group.WORLD
        group = group if dist.get_world_size(group) > 1 else None
    return {
        "norm": "batch",
        "running_mean": norm.running_mean if keeps else None,
        "running_var": norm.running_var if keeps else None,
        "training": training,
        "momentum": momentum,
        "eps": norm.eps,
        "process_group": group,
    }


_counting: WeakKeyDictionary[type, bool] = WeakKeyDictionary()  # norms of others, by class


def with_buffers_of_its_own(norm: nn.Module) -> nn.Module:
    """Return a second norm, whose forward leaves the first as it is; unlike a deep copy it shares locks and queues."""
    twin = copy.copy(norm)
    twin._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()}
    twin._parameters = dict(norm._parameters)
    return twin


def _counts_batches(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Say whether a batch norm's own forward counts batches in training: torch's do, many synchronised ones do not."""
    kind = type(norm)
    if kind.__module__.startswith("torch."):
        return True
    if kind not in _counting:
        with torch.inference_mode(False), torch.no_grad():
            twin = with_buffers_of_its_own(norm)
            before, mean = twin.num_batches_tracked, twin.running_mean
            assert isinstance(before, Tensor) and isinstance(mean, Tensor)
            before = before.clone()
            try:
                twin.forward(mean.new_zeros((2, norm.num_features, 1, 1)))
            except Exception:  # it cannot run here: as torch's
                return True
            _counting[kind] = bool(twin.num_batches_tracked != before)
    return _counting[kind]


def unsupported_norm(norm: nn.Module, affine: bool = False) -> str | None:
    """Say why :func:`norm_arguments` (``affine``: of a norm that may have parameters) cannot stand for a layer, or None."""
    if isinstance(norm, nn.Identity):
        return None
    instance = isinstance(norm, nn.modules.instancenorm._InstanceNorm)
    if instance and norm.track_running_stats:
        return "an instance norm with running statistics"
    if not instance and not isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        return type(norm).__name__
    kind = "instance" if instance else "group" if isinstance(norm, nn.GroupNorm) else "batch"
    return f"an affine {kind} norm" if norm.affine and not affine else None


def param_free_norm(kind: str, channels: int) -> nn.Module:
    """Make a norm without affine parameters: ``"batch"``, ``"syncbatch"``, ``"instance"`` or ``"none"``.

    Raises:
        ValueError: another kind.
    """
    kinds: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(channels, affine=False),
        "syncbatch": lambda: nn.SyncBatchNorm(channels, affine=False),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=False),
        "none": nn.Identity,
    }
    if kind not in kinds:
        raise ValueError(f"norm: expected one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind]()


def check_input(x: Tensor, regions: RegionMap, where: str) -> tuple[int, int]:
    """Return the size (H, W) of the input of a layer.

    Args:
        x: (B, C, H, W).
        regions: the map of the layer.
        where: name of the layer, for messages.

    Raises:
        ValueError: x has another number of dimensions, or batch or device of the map differ.
    """
    if x.dim() != 4:
        raise ValueError(f"{where}: x: expected shape (B, C, H, W), got {tuple(x.shape)}")
    if regions.batch_size != x.shape[0]:
        raise ValueError(f"{where}: regions: expected batch {x.shape[0]} as x, got {regions.batch_size}")
    if regions.device != x.device:
        raise ValueError(f"{where}: regions: expected device {x.device} as x, got {regions.device}")
    return int(x.shape[2]), int(x.shape[3])


def plain_norm(norm: nn.Module, x: Tensor, gamma: Tensor, beta: Tensor, negative_slope: float | None) -> Tensor:
    """What the published layers compute, in plain PyTorch; gamma is the finished factor."""
    y: Tensor = norm(x) * gamma + beta
    return y if negative_slope is None else F.leaky_relu(y, negative_slope)


def is_plain() -> bool:
    """True where the plain PyTorch form is asked for: the dense plan on the reference backend."""
    return current_plan() == "dense" and current_backend() == "reference"
