"""Mean of features per region, as SEAN's style encoder needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..region_map import RegionMap, as_region_map


def region_mean(features: Tensor, regions: RegionMap | Tensor) -> Tensor:
    """Mean of the features of every region; an absent region gives zeros (SEAN, style encoder).

    All regions in one product of the features with the one-hot map, no loop over regions.

    Args:
        features: (B, C, h, w) floating.
        regions: a region map or one-hot mask, nearest-resized to (h, w); on a soft map the mean is weighted.

    Returns:
        (B, K, C) in the dtype of the features, differentiable in features and soft weights.

    Raises:
        ValueError: the batch sizes differ.
    """
    if isinstance(regions, Tensor):
        regions = as_region_map(regions, num_regions=regions.shape[1])  # no edge channel here
    if regions.batch_size != features.shape[0]:
        raise ValueError(f"region_mean: regions: expected batch {features.shape[0]} as features, got {regions.batch_size}")
    size = (features.shape[2], features.shape[3])
    # sums and areas in float32: a region of 65,536 pixels is infinite in float16
    acc = torch.promote_types(features.dtype, torch.float32)
    mask = regions.onehot(size, acc)[:, : regions.num_regions]
    total = torch.bmm(mask.flatten(2), features.to(acc).flatten(2).transpose(1, 2))
    area = mask.sum((2, 3))[:, :, None]
    return (total / torch.where(area == 0, 1, area)).to(features.dtype)
