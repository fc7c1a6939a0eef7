r"""Masked RoI pooling: the maximum or the mean of features over every region of a label map, all regions in one pass.

.. math::

    r(\Omega_k, H)_c = \max_{p \in \Omega_k} H_{c,p}
    \qquad\text{or}\qquad
    \frac{1}{|\Omega_k|} \sum_{p \in \Omega_k} H_{c,p}

Sources: Eq. 16-17 of "Diversifying Semantic Image Synthesis and Editing via Class- and Layer-wise VAEs" (maximum); the
region-wise average pooling of SEAN's style encoder (mean). On a soft map the mean is weighted,
:math:`\sum_p w_{k,p} H_{c,p} / \sum_p w_{k,p}`.

The gradient of the maximum goes to the one position that was taken, the first of equal ones; that of the mean is shared by
the pixels of the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from ..nearest import resize_nearest
from ._common import (
    Kernels,
    Op,
    acc_dtype,
    check_integer,
    check_kernel_dtype,
    check_labels,
    check_tensor,
    check_values,
    dense,
    described,
    explain,
    fail,
    int32,
    is_channels_last,
)

__all__ = ["masked_roi_pool"]

MODES = ("max", "mean")


class RegionMapLike(Protocol):
    """What the op needs of a region map (:class:`mixsyn_fast.RegionMap`)."""

    num_regions: int

    @property
    def is_soft(self) -> bool:
        """True for a map of weights."""

    @property
    def batch_size(self) -> int:
        """B."""

    @property
    def device(self) -> torch.device:
        """Device of the map."""

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the full resolution."""

    def labels_at(self, size: tuple[int, int]) -> Tensor:
        """Return (B, h, w) int32 labels, -1 for none."""

    def weights_at(self, size: tuple[int, int]) -> Tensor:
        """Return (B, K, h, w) weights."""


def _first_maximum(features: Tensor, labels: Tensor, num_regions: int) -> Tensor:
    """Position of the first maximum of every region, (B, K, C) int64; -1 where the region is absent.

    A NaN is larger than everything else, so the first NaN of a region is its maximum.
    """
    batch, channels, height, width = features.shape
    pixels = height * width
    flat = features.detach().reshape(batch, channels, pixels)
    # pixels of no region go to a row of their own, which is cut off at the end
    row = torch.where(labels < 0, num_regions, labels).to(torch.int64).reshape(batch, 1, pixels).expand_as(flat)
    shape = (batch, channels, num_regions + 1)
    nan = flat.isnan()
    clean = torch.where(nan, torch.inf, flat)
    largest = torch.full(shape, -torch.inf, dtype=flat.dtype, device=flat.device).scatter_reduce(2, row, clean, "amax")
    has_nan = torch.zeros(shape, dtype=torch.int32, device=flat.device).scatter_reduce(2, row, nan.to(torch.int32), "amax")
    taken = torch.where(has_nan.gather(2, row) > 0, nan, clean == largest.gather(2, row))
    pixel = torch.where(taken, torch.arange(pixels, device=flat.device), pixels)
    first = torch.full(shape, pixels, device=flat.device).scatter_reduce(2, row, pixel, "amin")
    return torch.where(first == pixels, -1, first)[:, :, :num_regions].transpose(1, 2)


def masked_roi_pool_reference(
    features: Tensor, labels: Tensor, num_regions: int, maximum: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::masked_roi_pool``.

    Args:
        features: (B, C, H, W) floating.
        labels: (B, H, W) int32, region or -1 for none.
        num_regions: K.
        maximum: the maximum, else the mean.

    Returns:
        pooled (B, K, C) in the features' dtype, 0 for an absent region;
        position (B, K, C) int32, y * W + x of the first maximum, -1 for an absent region; empty for the mean;
        area (B, K) float32 (float64 for float64), pixels per region; empty for the maximum.

    Raises:
        ValueError: a label is out of range.
    """
    if bool(((labels < -1) | (labels >= num_regions)).any()):
        wrong = labels[(labels < -1) | (labels >= num_regions)][0]
        raise ValueError(
            f"mixsyn_fast::masked_roi_pool: labels: expected values in [0, {num_regions}) or -1, got {int(wrong)}"
        )
    batch, channels, height, width = features.shape
    acc = acc_dtype(features.dtype)
    flat = features.reshape(batch, channels, height * width)
    if maximum:
        position = _first_maximum(features, labels, num_regions)
        absent = position < 0
        if flat.shape[2] == 0:
            pooled = flat.new_zeros(position.shape) + flat.sum()  # no pixel: zero, and still a function of the features
        else:
            pooled = flat.gather(2, position.clamp(min=0).transpose(1, 2)).transpose(1, 2)
        pooled = torch.where(absent, 0, pooled).contiguous()
        return pooled, position.to(torch.int32).contiguous(), torch.empty(0, dtype=acc, device=features.device)
    image = torch.arange(batch, device=features.device)[:, None] * (num_regions + 1)
    row = (image + torch.where(labels < 0, num_regions, labels).reshape(batch, height * width)).reshape(-1)
    pixels = flat.transpose(1, 2).reshape(batch * height * width, channels).to(acc)
    rows = batch * (num_regions + 1)
    total = torch.zeros(rows, channels, dtype=acc, device=features.device).index_add(0, row, pixels)
    area = torch.zeros(rows, dtype=acc, device=features.device).index_add(0, row, torch.ones_like(row, dtype=acc))
    total = total.reshape(batch, num_regions + 1, channels)[:, :num_regions]
    area = area.reshape(batch, num_regions + 1)[:, :num_regions].contiguous()
    pooled = (total / torch.where(area == 0, 1, area)[:, :, None]).to(features.dtype)
    return pooled, torch.empty(0, dtype=torch.int32, device=features.device), area


# --- the ops: Python bodies run where no kernel of the device is loaded ---------------------------------------------


@torch.library.custom_op("mixsyn_fast::masked_roi_pool", mutates_args=())
def _masked_roi_pool_op(features: Tensor, labels: Tensor, num_regions: int, maximum: bool) -> tuple[Tensor, Tensor, Tensor]:
    return masked_roi_pool_reference(features, labels, num_regions, maximum)


def _masked_roi_pool_fake(
    features: Tensor, labels: Tensor, num_regions: int, maximum: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = features.shape[:2]
    acc = acc_dtype(features.dtype)
    return (
        features.new_empty((batch, num_regions, channels)),
        features.new_empty((batch, num_regions, channels) if maximum else (0,), dtype=torch.int32),
        features.new_empty((0,) if maximum else (batch, num_regions), dtype=acc),
    )


def _backward_reference(
    grad: Tensor, labels: Tensor, position: Tensor, area: Tensor, maximum: bool, channels_last: bool
) -> Tensor:
    batch, height, width = labels.shape
    regions, channels = grad.shape[1:]
    if maximum:
        absent = position < 0
        values = torch.where(absent, 0, grad).transpose(1, 2)
        where = position.clamp(min=0).to(torch.int64).transpose(1, 2)
        flat = grad.new_zeros((batch, channels, height * width))
        if flat.shape[2] > 0:
            flat = flat.scatter_add(2, where, values)
    else:
        acc = area.dtype
        share = grad.to(acc) / torch.where(area == 0, 1, area)[:, :, None]
        share = torch.cat((share, share.new_zeros((batch, 1, channels))), 1).to(grad.dtype)
        row = torch.where(labels < 0, regions, labels).to(torch.int64).reshape(batch, height * width, 1)
        flat = share.gather(1, row.expand(-1, -1, channels)).transpose(1, 2)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return flat.reshape(batch, channels, height, width).clone(memory_format=memory)


_backward_op = torch.library.custom_op("mixsyn_fast::masked_roi_pool_backward", _backward_reference, mutates_args=())


def _backward_fake(
    grad: Tensor, labels: Tensor, position: Tensor, area: Tensor, maximum: bool, channels_last: bool
) -> Tensor:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    batch, height, width = labels.shape
    return grad.new_empty((batch, grad.shape[2], height, width)).to(memory_format=memory)


# --- gradient --------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, labels, _, maximum = inputs
    _, position, area = output
    ctx.save_for_backward(labels, position, area)
    ctx.maximum, ctx.channels_last = maximum, is_channels_last(features)


def _gradient(kernels: Kernels, ctx: Any, grad: Tensor, _position: Tensor, _area: Tensor) -> tuple[Tensor | None, ...]:
    labels, position, area = ctx.saved_tensors
    # create_graph=True: this backward, which is linear in the gradient, will be differentiated
    backward = _backward_reference if torch.is_grad_enabled() else kernels.backward
    found = backward(grad.contiguous(), labels, position, area, ctx.maximum, ctx.channels_last)
    return found, None, None, None


_OP = Op(
    "masked_roi_pool",
    Kernels(_masked_roi_pool_op, _backward_op),
    Kernels(_masked_roi_pool_fake, _backward_fake),
    _gradient,
    _setup_context,
)


# --- public function -------------------------------------------------------------------------------------------------


def _check(features: Sequence[Tensor], regions: RegionMapLike | Tensor, num_regions: int | None, mode: str) -> int:
    """Check all arguments; returns K."""
    op = "masked_roi_pool"
    if mode not in MODES:
        fail(op, "mode", "'max' or 'mean'", described(mode))
    if len(features) == 0:
        fail(op, "features", "a tensor or at least one", "an empty sequence")
    if isinstance(regions, Tensor):
        check_labels(op, "regions", regions, "labels (B, h, w) or a RegionMap")
        count = check_integer(op, "num_regions", num_regions, 1, None, "a positive number with labels")
        batch = regions.shape[0]
    elif hasattr(regions, "labels_at"):
        count, batch = regions.num_regions, regions.batch_size
        if num_regions is not None and num_regions != count:
            fail(op, "num_regions", f"None or {count}, that of the region map", num_regions)
        if regions.is_soft and mode == "max":
            fail(op, "mode", "'mean' with a soft region map", "'max'")
    else:
        fail(op, "regions", "labels (B, h, w) or a RegionMap", described(regions), TypeError)
    for tensor in features:
        check_tensor(op, "features", tensor, "a tensor or a sequence of tensors")
        if tensor.dim() != 4:
            fail(op, "features", "shape (B, C, H, W)", f"shape {tuple(tensor.shape)}")
        check_kernel_dtype(op, "features", tensor)
        if tensor.shape[0] != batch:
            fail(op, "regions", f"batch {tensor.shape[0]} as features", batch)
        if tensor.device != regions.device:
            fail(op, "regions", f"device {tensor.device} as features", f"device {regions.device}")
        size = regions.shape[1:] if isinstance(regions, Tensor) else regions.size
        if 0 in size and tensor.numel() > 0:
            fail(op, "regions", "at least one pixel", f"size {tuple(size)}")
        if tensor.shape[2] * tensor.shape[3] >= 2**31:
            fail(op, "features", "fewer than 2^31 pixels", tensor.shape[2] * tensor.shape[3])
    if isinstance(regions, Tensor):
        check_values(op, "regions", regions)
    assert count is not None
    return count


def _weighted_mean(features: Tensor, weights: Tensor) -> Tensor:
    """Return the mean with a soft map: a matrix product, which torch's library does as well as anything."""
    acc = acc_dtype(features.dtype)
    weights = weights.to(acc).flatten(2)
    total = torch.bmm(weights, features.to(acc).flatten(2).transpose(1, 2))
    area = weights.sum(2)[:, :, None]
    return (total / torch.where(area == 0, 1, area)).to(features.dtype)


def _pool(features: Tensor, regions: RegionMapLike | Tensor, num_regions: int, maximum: bool) -> tuple[Tensor, Tensor]:
    size = (int(features.shape[2]), int(features.shape[3]))
    if not isinstance(regions, Tensor) and regions.is_soft:
        if features.numel() == 0:  # zero, and still a function of the features
            pooled = features.new_zeros((features.shape[0], num_regions, features.shape[1])) + features.sum()
        else:
            pooled = _weighted_mean(features, regions.weights_at(size))
        return pooled, torch.empty(0, dtype=torch.int32, device=features.device)
    given = None
    if isinstance(regions, Tensor):
        given = resize_nearest(regions, size)
        labels = int32(given)
    elif features.numel() == 0:  # a map has no level without pixels
        labels = torch.full((features.shape[0], *size), -1, dtype=torch.int32, device=features.device)
    else:
        labels = regions.labels_at(size)
    labels = labels.contiguous()
    kernels = _OP.kernels(features)
    try:
        if kernels is None:
            pooled, position, _ = masked_roi_pool_reference(features, labels, num_regions, maximum)
        else:
            pooled, position, _ = kernels.forward(dense(features), labels, num_regions, maximum)
    except (RuntimeError, ValueError):
        explain("masked_roi_pool", "regions", given, -1, num_regions, f"labels in [0, {num_regions}) or -1")
        raise
    return pooled, position


@overload
def masked_roi_pool(
    features: Tensor, regions: RegionMapLike | Tensor, num_regions: int | None = None, mode: str = "max"
) -> tuple[Tensor, Tensor]: ...


@overload
def masked_roi_pool(
    features: Sequence[Tensor], regions: RegionMapLike | Tensor, num_regions: int | None = None, mode: str = "max"
) -> tuple[list[Tensor], list[Tensor]]: ...


def masked_roi_pool(
    features: Tensor | Sequence[Tensor],
    regions: RegionMapLike | Tensor,
    num_regions: int | None = None,
    mode: str = "max",
) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Pool features over every region: the maximum (class- and layer-wise VAE, Eq. 16-17) or the mean (SEAN's encoder).

    Args:
        features: (B, C, H, W), float32, float64, float16 or bfloat16; contiguous and channels_last are read as they are,
            other strides are made dense first. Or several of them, the levels of an encoder, of any channels and sizes: the
            region map is shared. B, H or W may be 0.
        regions: a :class:`mixsyn_fast.RegionMap`, or labels (B, h, w) of an integer dtype with values in [0, K) or -1 for a
            pixel of no region; nearest-resized where its size differs. A soft map pools the weighted mean.
        num_regions: K; needed with labels.
        mode: ``"max"`` or ``"mean"``.

    Returns:
        pooled (B, K, C), dtype of the features; 0 for an absent region.
        position (B, K, C) int32: y * W + x of the maximum, the first one of equals; -1 for an absent region. Empty (0,) for
        the mean. With several levels: two lists.

    Raises:
        ValueError: a shape, ``num_regions``, ``mode`` or a device does not fit, or a label is out of range (on CUDA a
            device-side assertion, under ``torch.compile`` a RuntimeError); the message names the argument.
        TypeError: a dtype or type does not fit.

    A NaN counts as larger than any number: a region that holds one gives NaN, at the position of its first. Gradients reach
    the features (and the weights of a soft map); an absent region gives none. On a soft map every region sees every pixel,
    so a NaN reaches all of them. A backward that is to be differentiated again (``create_graph=True``) is plain PyTorch.
    Deterministic on every backend. Sums are float32 (float64 for float64). One pass over the
    features, whatever K is, and no host synchronisation; a soft map costs a matrix product with K rows. Under autocast the
    op runs in the features' dtype.
    """
    several = isinstance(features, Sequence) and not isinstance(features, str)
    levels: list[Any] = list(features) if several else [features]
    count = _check(levels, regions, num_regions, mode)
    results = [_pool(level, regions, count, mode == "max") for level in levels]
    if several:
        return [pooled for pooled, _ in results], [position for _, position in results]
    return results[0]
