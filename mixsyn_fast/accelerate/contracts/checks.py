"""What contracts ask of modules, of their parts, and of a call's arguments; and the small maps of the check."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import layers
from ...ops.label_patterns import MAX_REGIONS
from ..maps import NotExact


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the module's class as it was before accelerate."""
    cls = type(module)
    original: type[nn.Module] = cls.__dict__.get("_mixsyn_original", cls)
    return original


def positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a forward that can be given by position, without self."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds][1:]


def required(function: Callable[..., Any]) -> int:
    """Return how many arguments a forward cannot do without."""
    return sum(p.default is inspect.Parameter.empty for p in positional(function))


def hooked(module: nn.Module) -> bool:
    """Say whether a call of the module runs a hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


# --- what the parts must be -----------------------------------------------------------------------------------------------


def conv_problem(conv: object, name: str, kernel: int = 3) -> str | None:
    """Return why a convolution is not the plain same-size one of the contract, or None."""
    if not isinstance(conv, nn.Conv2d) or not (original_class(conv) is nn.Conv2d or isinstance(conv, layers.FastConv2d)):
        return f"{name} is {type(conv).__name__}, not a plain Conv2d"
    if conv.kernel_size != (kernel, kernel):
        return f"{name} has a {conv.kernel_size[0]}x{conv.kernel_size[1]} kernel, ours is for {kernel}x{kernel}"
    usual = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    if not usual or conv.padding not in ((kernel // 2, kernel // 2), "same") or conv.padding_mode != "zeros":
        return f"{name} has an unusual stride, padding, dilation or groups"
    return None


def norm_problem(norm: nn.Module) -> str | None:
    """Return why a normalisation is not a parameter-free batch, instance or group norm, or None."""
    reason = layers.unsupported_norm(norm)
    return None if reason is None else f"param_free_norm is {reason}"


def regions_problem(count: int) -> str | None:
    """Return why there are more regions than ours has, or None."""
    return None if count <= MAX_REGIONS else f"it has {count} regions, ours at most {MAX_REGIONS}"


def is_norm(module: nn.Module | None) -> bool:
    """Say whether a child is one of torch's batch, instance or group norms, or made from one."""
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)


def channels_of(norm: nn.Module) -> int | None:
    """Return how many channels a norm is for, None where it does not say."""
    count: int | None = getattr(norm, "num_channels", getattr(norm, "num_features", None))
    return count


# --- what a call must be --------------------------------------------------------------------------------------------------


def check_map(x: object, segmap: object, channels: int | None = None, dimensions: int = 2) -> None:
    """Raise NotExact unless x and segmap are float batches of as many images (or volumes) on one device."""
    for name, value in (("x", x), ("the map", segmap)):
        if not isinstance(value, Tensor) or value.dim() != dimensions + 2 or not value.is_floating_point():
            raise NotExact(f"{name} is not a float tensor of {'four' if dimensions == 2 else 'five'} dimensions")
    assert isinstance(x, Tensor) and isinstance(segmap, Tensor)
    if x.shape[0] != segmap.shape[0] or x.device != segmap.device:
        raise NotExact("x and the map differ in batch size or device")
    if 0 in x.shape or 0 in segmap.shape:
        raise NotExact("an input is empty")
    if channels is not None and segmap.shape[1] != channels:
        raise NotExact(f"the map has {segmap.shape[1]} channels, the layer {channels}")
    if channels is None and segmap.shape[1] > MAX_REGIONS:
        raise NotExact(f"the map has {segmap.shape[1]} channels, ours at most {MAX_REGIONS}")


def check_precision(x: Tensor, weight: Tensor) -> None:
    """Raise NotExact where torch's own product of features and what is made of a weight is wider than the features."""
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return
    if torch.promote_types(x.dtype, weight.dtype) != x.dtype:
        raise NotExact(f"x is {str(x.dtype)[6:]} and the layer {str(weight.dtype)[6:]}, to which its own forward goes over")


def check_norm(norm: nn.Module) -> None:
    """Raise NotExact for a third-party synchronised norm that really synchronises now."""
    if norm.training and getattr(norm, "_is_parallel", False):
        raise NotExact(f"{type(norm).__name__} shares statistics between replicas in a way of its own")


def laid_out(x: Tensor, channels_last: bool | None) -> Tensor:
    """Return x in the memory layout that kernels and convolutions like best (the residual blocks then stay in it).

    Args:
        x: (B, C, H, W), or (B, C, D, H, W).
        channels_last: as of :class:`.contract.Options`.
    """
    wanted = x.device.type == "cpu" if channels_last is None else channels_last
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=last) if wanted else x


def size_of(x: Tensor) -> tuple[int, ...]:
    """Return (H, W), or (D, H, W), of a batch of features."""
    return tuple(map(int, x.shape[2:]))


def structure(at: Any, depth: int = 0) -> Any:
    """Keys, shapes and numbers in an argument that is no map; of text (paths) only that it is text."""
    if isinstance(at, Tensor):
        return at.shape, at.dtype, at.device
    if type(at) in (bool, int, float):
        return at
    if isinstance(at, Mapping) and depth < 4:
        return type(at), tuple((str(key), structure(value, depth + 1)) for key, value in at.items())
    if isinstance(at, list | tuple) and depth < 4:  # one path a picture: as many as there are pictures
        return type(at), *dict.fromkeys(structure(value, depth + 1) for value in at)
    return type(at)


# --- what the check is made with -------------------------------------------------------------------------------------------


def blocks(regions: Sequence[int], count: int, batch: int, size: tuple[int, ...]) -> Tensor:
    """A one-hot map (B, count, *size) of blocks, of some of the regions and of none."""
    choice, ones = torch.tensor([-1, *regions]), (1,) * len(size)
    coarse = choice[torch.randint(0, len(choice), (batch, 1, *(4 for _ in size)))]
    labels = nn.functional.interpolate(coarse.float(), size=size, mode="nearest")
    return (labels == torch.arange(count).view(1, -1, *ones)).float()
