"""masked_roi_pool against a loop over all classes and one scatter over all pixels, int64 labels made outside the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from ...ops.masked_roi_pool import masked_roi_pool, masked_roi_pool_reference
from ..contest import LAYOUTS, Function, Normal, OpContest, Outputs
from ._labels import blocks


def per_class(features: Tensor, labels: Tensor, num_regions: int, maximum: bool) -> Tensor:
    """(B, K, C), one class after the other, absent ones 0.

    Args:
        features: (B, C, H, W).
        labels: (B, H, W).
        num_regions: K.
        maximum: the maximum, else the mean.
    """
    found = []
    for k in range(num_regions):
        inside = (labels == k)[:, None]
        if maximum:
            largest = features.masked_fill(~inside, -torch.inf).amax((2, 3))
            found.append(torch.where(largest == -torch.inf, 0, largest))
        else:
            area = inside.sum((2, 3)).clamp(min=1)
            found.append((features * inside).sum((2, 3)) / area)
    return torch.stack(found, 1)


def scatter(features: Tensor, labels: Tensor, num_regions: int, maximum: bool) -> Tensor:
    """(B, K, C) by one scatter over all pixels; arguments as for :func:`per_class`, labels int64, -1 for none."""
    flat = features.flatten(2)
    batch, channels, _ = flat.shape
    row = torch.where(labels < 0, num_regions, labels).view(batch, 1, -1)
    shape = (batch, channels, num_regions + 1)
    if maximum:
        largest = flat.new_full(shape, -torch.inf).scatter_reduce(2, row.expand_as(flat), flat, "amax")[..., :num_regions]
        return torch.where(largest == -torch.inf, 0, largest).transpose(1, 2)
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    total = wide.new_zeros(shape).scatter_add(2, row.expand_as(flat), wide)
    area = wide.new_zeros((batch, 1, num_regions + 1)).scatter_add(2, row, torch.ones_like(row, dtype=wide.dtype))
    return (total / area.clamp(min=1))[..., :num_regions].transpose(1, 2).to(flat.dtype)


def plant_maxima(features: Tensor, labels: Tensor, num_regions: int, seed: int = 11) -> None:
    """Give every region and channel one largest value, in place, so that all forms agree on its place in any dtype."""
    batch, channels, height, width = features.shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, channels, height * width, generator=generator).to(features.device)
    row = torch.where(labels < 0, num_regions, labels).view(batch, 1, -1).expand_as(order)
    latest = order.new_zeros((batch, channels, num_regions + 1)).scatter_reduce(2, row, order, "amax")
    chosen = ((order == latest.gather(2, row)) & (row < num_regions)).view_as(features)
    features.masked_fill_(chosen, float(features.abs().max()) + 1)


class PoolContest(OpContest):
    """Features, over the regions of given label maps."""

    op = "masked_roi_pool"
    outputs = ("pooled", "position")
    seldom = ("per-class",)
    labels: Tensor  # (B, H, W) int32, -1 for none
    wide: Tensor  # the same in int64
    regions: int
    maximum: bool

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """The maximum over nineteen regions, 2 x 64 x 64 x 64."""
        contest = cls(f"{cls.op}/max/k19/2x64x64x64/{layout}/{dtype}")
        contest.labels, contest.regions, contest.maximum = blocks(2, 64, 19).to(device), 19, True
        contest.wide = contest.labels.to(torch.int64)
        normal = Normal(device, getattr(torch, dtype))
        features = normal(2, 64, 64, 64, layout=LAYOUTS[layout])
        plant_maxima(features, contest.wide, 19)
        contest.inputs, contest.output_grads = {"features": features}, (normal(2, 19, 64),)
        return contest

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        return masked_roi_pool_reference(inputs[0], self.labels, self.regions, self.maximum)[:2]

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        return masked_roi_pool(inputs[0], self.labels, self.regions, "max" if self.maximum else "mean")

    def plain(self) -> dict[str, Function]:
        """See :func:`per_class` and :func:`scatter`."""

        def of(form: Callable[[Tensor, Tensor, int, bool], Tensor]) -> Function:
            return lambda features: (form(features, self.wide, self.regions, self.maximum),)

        return {"per-class": of(per_class), "scatter": of(scatter)}


CONTEST = PoolContest
