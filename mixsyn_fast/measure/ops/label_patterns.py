"""label_patterns: its reference is the plain PyTorch form. No gradient; the gate is equality."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ... import backend
from ...ops.label_patterns import label_patterns
from ..contest import Function, OpContest, Outputs
from ._labels import blocks


class PatternContest(OpContest):
    """Label maps."""

    op = "label_patterns"
    layouts = ("any",)
    dtypes = ("int32",)
    same_as_reference = "eager"
    outputs = ("index", "patterns", "row_image")
    modes = ("forward",)
    maps: Tensor
    regions: int
    radius = 2
    per_image = False

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """Nineteen regions, 256 x 256, neighbourhoods of 5 x 5."""
        contest = cls(f"{cls.op}/k19/1x256x256/r2/{dtype}")
        contest.maps, contest.regions = blocks(1, 256, 19).to(device), 19
        return contest

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        with backend.use_backend("reference"):
            return self.ours()

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        return tuple(label_patterns(self.maps, self.regions, self.radius, per_image=self.per_image))

    def plain(self) -> dict[str, Function]:
        """The reference."""
        return {"eager": self.reference}


CONTEST = PatternContest
