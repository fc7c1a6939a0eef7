"""Pooling over the regions of a label map, as a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops.masked_roi_pool import MODES, masked_roi_pool
from ..region_map import RegionMap, as_region_map


class RegionPool2d(nn.Module):
    """Maximum or mean of features over every region (class- and layer-wise VAE, Eq. 16-17; SEAN's style encoder).

    Args:
        mode: ``"max"`` or ``"mean"``.
        return_positions: also return where each maximum was found.

    Raises:
        ValueError: another ``mode``, or positions of a mean.
    """

    def __init__(self, mode: str = "max", *, return_positions: bool = False) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"RegionPool2d: mode: expected 'max' or 'mean', got {mode!r}")
        if return_positions and mode != "max":
            raise ValueError("RegionPool2d: return_positions: expected False with mode='mean', got True")
        self.mode, self.return_positions = mode, return_positions

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"mode={self.mode!r}" + (", return_positions=True" if self.return_positions else "")

    def forward(
        self, features: Tensor | Sequence[Tensor], regions: RegionMap | Tensor
    ) -> Tensor | tuple[Tensor, Tensor] | list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """See :func:`mixsyn_fast.masked_roi_pool`; ``regions`` is a region map or a mask (B, K, h, w), one-hot or soft."""
        if isinstance(regions, Tensor):
            if regions.dim() != 4:
                raise ValueError(f"RegionPool2d: regions: expected a mask (B, K, h, w), got shape {tuple(regions.shape)}")
            regions = as_region_map(regions, num_regions=regions.shape[1])  # no edge channel here
        if isinstance(features, Tensor):
            pooled, position = masked_roi_pool(features, regions, mode=self.mode)
            return (pooled, position) if self.return_positions else pooled
        levels, positions = masked_roi_pool(features, regions, mode=self.mode)
        return (levels, positions) if self.return_positions else levels
