"""One metric over many pictures and their regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    @classmethod
    def joined(cls, parts: Iterable[Score], order: Sequence[str]) -> Score:
        """Return the scores of several sets of pictures as one, their names in an order that holds all of them."""
        place = {name: i for i, name in enumerate(order)}
        found = cls()
        for part in parts:
            found.names += part.names
            found.values += part.values
            found.by_region += part.by_region
        at = sorted(range(len(found.names)), key=lambda i: place[found.names[i]])
        lists = ([each[i] for i in at] if each else [] for each in (found.names, found.values, found.by_region))
        return cls(*lists)  # type: ignore[arg-type]

    def whole(self, seed: int = 0) -> Interval:
        """Mean over pictures."""
        return intervals(np.array(self.values), seed=seed)[0]

    def regions(self, classes: Sequence[str], seed: int = 0) -> dict[str, Interval]:
        """Mean per class that some picture has."""
        if not self.by_region:
            return {}
        found = intervals(np.stack(self.by_region), seed=seed)
        return {name: i for name, i in zip(classes, found, strict=True) if i.count or i.infinite}
