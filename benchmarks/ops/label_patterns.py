"""label_patterns: distinct label neighbourhoods. No gradient; the gate is equality with the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mixsyn_fast.models.data import NUM_CLASSES

from mixsyn_fast import backend
from mixsyn_fast.measure.ops.label_patterns import PatternContest
from mixsyn_fast.ops.label_patterns import label_patterns

from ..cases import Labels
from .base import OpBench


@dataclass(frozen=True)
class PatternCase:
    """label_patterns on one batch of maps."""

    side: int
    batch: int = 1
    radius: int = 2
    threads: int = 1
    per_image: bool = False
    labels: str = "face"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        where = "per_image" if self.per_image else "shared"
        return f"label_patterns/{self.labels}/{self.batch}x{self.side}x{self.side}/r{self.radius}/{where}/t{self.threads}"


class PatternBench(OpBench, PatternContest):
    """One row of label_patterns."""

    op = "label_patterns"
    case: PatternCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[PatternCase]:
        """The first row is the one with a target (one core, 256 x 256, radius 2)."""
        rows = [PatternCase(256), PatternCase(256, labels="street")]
        if quick:
            return rows
        threads = torch.get_num_threads()
        return [
            *rows,
            PatternCase(256, radius=1),
            PatternCase(128),
            PatternCase(512),
            PatternCase(256, batch=4, threads=threads),
            PatternCase(256, batch=4, threads=threads, per_image=True),
        ]

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Every radius, with edges; rows per image or fixed in number."""

        def target(radius: int) -> Callable[[], None]:
            def call() -> None:
                labels = torch.randint(-1, 6, (3, 13, 37), generator=torch.Generator().manual_seed(0)).to(device)
                edges = torch.rand(3, 13, 37, generator=torch.Generator().manual_seed(1)).to(device) < 0.2
                rows = None if radius else 2000
                with backend.use_backend("native"):
                    found = label_patterns(labels, 6, radius, edges=edges, per_image=radius == 1, max_rows=rows)
                assert int(found[0].max()) < len(found[1])

            return call

        return {f"label_patterns_r{radius}": target(radius) for radius in (0, 1, 2)}

    def prepare(self, labels: Labels) -> None:
        """Read the label maps."""
        case = self.case
        self.threads = case.threads if self.device.type == "cpu" else None
        self.regions, self.radius, self.per_image = NUM_CLASSES[case.labels], case.radius, case.per_image
        self.maps = labels.tensors(case.labels, case.batch, case.side, self.device)[1].to(torch.int32)

    def facts(self) -> dict[str, Any]:
        """Distinct patterns, also per pixel."""
        count = int(self.reference()[1].shape[0])
        return {"distinct_patterns": count, "share": count / self.maps.numel()}
