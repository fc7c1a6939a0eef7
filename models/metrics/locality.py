"""How local an edit is: where the change lies that it makes to a picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Change(NamedTuple):
    """What an edit of one region changed."""

    locality: float
    """Share of the total absolute change that lies inside the region, 0 to 1; NaN when nothing changed."""
    region_share: float
    """Share of the pixels that the region is: the locality of a change that is spread evenly."""
    inside: float
    """Mean absolute change of the region's values; NaN without a pixel of it."""
    outside: float
    """Mean absolute change of all other values; NaN when the region fills the picture."""


def change_of_edit(before: np.ndarray, after: np.ndarray, region: np.ndarray) -> Change:
    """Measure the change from one picture to another inside a region and outside of it.

    Args:
        before: (H, W, C), of any dtype.
        after: the same shape.
        region: (H, W) bool, True inside.

    Raises:
        ValueError: shapes or a dtype that do not fit.
    """
    if before.ndim != 3 or after.shape != before.shape:
        raise ValueError(f"after: expected the shape of before (H, W, C), got {after.shape} for {before.shape}")
    if region.shape != before.shape[:2] or region.dtype != bool:
        raise ValueError(f"region: expected {before.shape[:2]} bool, got {region.shape} {region.dtype}")
    change = np.abs(after.astype(np.float64) - before.astype(np.float64)).mean(2)
    pixels, filled = region.size, int(region.sum())
    inside, total = float(change[region].sum()), float(change.sum())
    return Change(
        inside / total if total else np.nan,
        filled / pixels,
        inside / filled if filled else np.nan,
        float(change[~region].sum()) / (pixels - filled) if filled < pixels else np.nan,
    )
