"""One metric over many pictures and their regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .intervals import Interval, intervals


@dataclass
class Score:
    """One metric over all pictures."""

    names: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    """One per name."""
    by_region: list[np.ndarray] = field(default_factory=list)
    """(K,) per name, NaN where a region is absent; empty without regions."""

    def whole(self, seed: int = 0) -> Interval:
        """Mean over pictures."""
        return intervals(np.array(self.values), seed=seed)[0]

    def regions(self, classes: Sequence[str], seed: int = 0) -> dict[str, Interval]:
        """Mean per class that some picture has."""
        if not self.by_region:
            return {}
        found = intervals(np.stack(self.by_region), seed=seed)
        return {name: i for name, i in zip(classes, found, strict=True) if i.count or i.infinite}
