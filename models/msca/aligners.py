"""What aligns an exemplar with a label map at one scale: MSCA, and the two simpler ways that the paper compares it with.

Each has the two halves of :class:`~mixsyn_fast.layers.SpatialChannelAttention`, so that the networks treat all alike.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import masked_roi_pool
from mixsyn_fast.layers.attention import FeatureMask, Gathered, SpatialChannelAttention, Target
from mixsyn_fast.region_map import RegionMap

from .config import GeneratorConfig

# log of the mass of a label that an exemplar lacks: finite, for a mixture of exemplars may lack it altogether
_ABSENT = -1e4


class Aligner(Protocol):
    """Alignment at one scale."""

    gate: FeatureMask | None
    """Feature masking (Eq. 6), or none."""

    def gather(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Gathered:
        """Return the exemplar's half.

        Args:
            features: (B, C, h, w).
            condition: F_c2, (B, M, h, w).
            regions: label map of the exemplar, any size.
            compress: (N, C), W_x of Eq. 1, or None where the features are compressed already.
            mask: (B, h, w) bool: positions that take part; None for all.
        """
        ...

    def log_mass(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return the logarithm of what each of the K sums weighs in a mixture of exemplars, (B, K).

        It does not depend on how many positions an exemplar has: weights of a mixture are shares of exemplars.
        """
        ...

    def target(self, condition: Tensor, regions: RegionMap) -> Target:
        """Return the target's half, from F_c1 (B, M, H, W) and its label map."""
        ...

    def spatial_maps(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return alpha, the weights of the K sums over the exemplar's positions, (B, K, h, w), for pictures."""
        ...


class Attention(SpatialChannelAttention):
    """MSCA itself (Eq. 4 to 8)."""

    def gather(  # type: ignore[override]
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Gathered:
        """Return V and the mean of Eq. 6."""
        return super().gather(features, condition, compress=compress, mask=mask)

    def log_mass(  # type: ignore[override]
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return the logarithm of the mean of exp(Eq. 4's logits) over the positions that take part."""
        found = super().log_mass(features, condition, compress=compress, mask=mask)
        if mask is None:
            return found - math.log(features.shape[2] * features.shape[3])
        return found - mask.flatten(1).sum(1, keepdim=True).clamp(min=1).to(found.dtype).log()

    def spatial_maps(  # type: ignore[override]
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return alpha of Eq. 4."""
        return super().spatial_maps(features, condition, compress=compress, mask=mask)

    def target(self, condition: Tensor, regions: RegionMap | None = None) -> Target:
        """Return F_c1, beta and the mean of Eq. 6."""
        return super().target(condition)


class LabelAlignment(nn.Module):
    """One-hot label maps in place of both attentions (ablation "w/o att"): the mean over a label goes to that label alone.

    The mean, for the attention maps that it stands for sum to one. A label that the exemplar lacks gives zero.

    Args:
        condition: M.
        labels: K.
        masking: gates as MSCA has them.
    """

    gate: FeatureMask | None

    def __init__(self, condition: int, labels: int, *, masking: bool = True) -> None:
        super().__init__()
        self.labels = labels
        self.gate = FeatureMask(condition, condition, labels) if masking else None

    def gather(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Gathered:
        """Return the mean of every label's positions."""
        regions = self._within(regions, features, mask)
        values, _ = masked_roi_pool(features, regions, mode="mean")
        return Gathered(values if compress is None else F.linear(values, compress), condition.mean((2, 3)))

    def log_mass(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return 0 for labels that the exemplar has: its mean counts as another one's."""
        regions = self._within(regions, features, mask)
        areas = regions.areas((features.shape[2], features.shape[3]))
        found = torch.zeros(areas.shape, dtype=_wide(features), device=features.device)
        return found.masked_fill(areas <= 0, _ABSENT)

    def target(self, condition: Tensor, regions: RegionMap) -> Target:
        """Return F_c1, the one-hot label map and the mean of F_c1."""
        maps = regions.onehot((condition.shape[2], condition.shape[3]), condition.dtype)
        return Target(condition, maps, condition.mean((2, 3)))

    def spatial_maps(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return the label maps, each divided by its sum; zeros for a label that the exemplar lacks."""
        maps = self._within(regions, features, mask).onehot((features.shape[2], features.shape[3]), _wide(features))
        return maps / maps.sum((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)

    def _within(self, regions: RegionMap, features: Tensor, mask: Tensor | None) -> RegionMap:
        if mask is None:
            return regions
        size = (features.shape[2], features.shape[3])
        if regions.is_soft:
            return RegionMap.soft(regions.weights_at(size) * mask[:, None], check=False)
        return RegionMap(torch.where(mask, regions.labels_at(size), -1), self.labels, ignore_index=-1)


class MeanAlignment(nn.Module):
    """The mean over all positions, everywhere (ablation "GAP"): MSCA with one map of constant logits, without a gate."""

    gate: FeatureMask | None = None

    def gather(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Gathered:
        """Return the mean, as the only one of K = 1 values."""
        if mask is None:
            mean = features.mean((2, 3))
        else:
            inside = mask[:, None].to(features.dtype)
            mean = (features * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        return Gathered((mean if compress is None else F.linear(mean, compress))[:, None], condition.mean((2, 3)))

    def log_mass(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return 0: the mean of one exemplar counts as another one's."""
        return torch.zeros((features.shape[0], 1), dtype=_wide(features), device=features.device)

    def target(self, condition: Tensor, regions: RegionMap) -> Target:
        """Return F_c1, a map of ones and the mean of F_c1."""
        maps = condition.new_ones((condition.shape[0], 1, *condition.shape[2:]))
        return Target(condition, maps, condition.mean((2, 3)))

    def spatial_maps(
        self, features: Tensor, condition: Tensor, regions: RegionMap, compress: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return one map, even over the positions that take part."""
        shape = (features.shape[0], 1, features.shape[2], features.shape[3])
        maps = torch.ones(shape, dtype=_wide(features), device=features.device)
        maps = maps if mask is None else maps * mask[:, None]
        return maps / maps.sum((2, 3), keepdim=True).clamp(min=1)


def _wide(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def make_aligner(config: GeneratorConfig, scale: int) -> Aligner:
    """Return what aligns at a scale, as the settings say."""
    if config.attention == "gap":
        return MeanAlignment()
    if config.attention == "labels":
        return LabelAlignment(config.condition, config.label_nc, masking=config.masking)
    return Attention(config.features, config.condition, maps=config.maps[scale], masking=config.masking)
