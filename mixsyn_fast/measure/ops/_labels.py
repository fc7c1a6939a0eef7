"""Label maps for the small rows."""

from __future__ import annotations

import torch
from torch import Tensor


def blocks(batch: int, side: int, regions: int) -> Tensor:
    """(batch, side, side) int32: squares of eight pixels a side, each of a random region."""
    drawn = torch.randint(0, regions, (batch, side // 8, side // 8), generator=torch.Generator().manual_seed(3))
    return drawn.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.int32)
