"""region_norm: its reference is the plain PyTorch form, and torch's own group norm and SiLU that of a diffusion block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.region_norm import (
    NORM_BATCH,
    NORM_GIVEN,
    NORM_GROUP,
    NORM_INSTANCE,
    Arguments,
    region_norm,
    region_norm_reference,
)
from ..contest import LAYOUTS, Function, Normal, OpContest, Outputs
from ._labels import blocks

_CODES = {"instance": NORM_INSTANCE, "batch": NORM_BATCH, "given": NORM_GIVEN, "group": NORM_GROUP}
_EPS = 1e-5


class NormContest(OpContest):
    """x, with a table or dense maps; or, with group norm, the norm's own weight and bias, and SiLU."""

    op = "region_norm"
    same_as_reference = "eager"  # but with group norm
    statistics = "batch"  # instance, batch, given (running statistics, as in eval), group
    num_groups = 0  # of group
    negative_slope: float | None = 0.2
    index: Tensor | None = None  # of the table; None: dense maps
    mean: Tensor | None = None  # (1, C), given statistics
    variance: Tensor | None = None

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """Batch statistics and a table of 64 rows, 1 x 256 x 64 x 64, LeakyReLU."""
        contest = cls(f"{cls.op}/table/batch/1x256x64x64/{layout}/{dtype}")
        normal, memory = Normal(device, getattr(torch, dtype)), LAYOUTS[layout]
        contest.index = blocks(1, 64, 64).to(device)
        table = normal(64, 512, scale=0.3)
        table[:, :256] += 1
        contest.inputs = {"x": normal(1, 256, 64, 64, offset=0.3, layout=memory), "table": table}
        contest.output_grads = (contest.off_the_kink(normal(1, 256, 64, 64, layout=memory)),)
        return contest

    def off_the_kink(self, grad: Tensor) -> Tensor:
        """Zero a gradient of the result, in place, where rounding may decide the side of LeakyReLU's kink."""
        if self.negative_slope is None:
            return grad
        (value,) = self.reference(*(t.double() for t in self.inputs.values()))
        slack = 16 * torch.finfo(grad.dtype).eps * value.abs().max()
        return grad.masked_fill_(value.abs() <= slack, 0.0)

    def _split(self, modulation: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return (None, modulation[0], modulation[1]) if self.index is None else (modulation[0], None, None)

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        x, *modulation = inputs
        table, scale, shift = self._split(modulation)
        if self.num_groups and scale is not None and shift is not None:  # weight and bias: a table of one row
            table, scale, shift = torch.cat((scale, shift))[None], None, None
        a = Arguments(
            x, self.mean, self.variance, self.index, table, scale, shift, None, None, _CODES[self.statistics], _EPS,
            self.negative_slope, self.num_groups, bool(self.num_groups),
        )  # fmt: skip
        return (region_norm_reference(a)[0],)

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        x, *modulation = inputs
        if self.num_groups:
            weight, bias = modulation
            y = region_norm(
                x, norm="group", num_groups=self.num_groups, weight=weight, bias=bias, activation="silu", eps=_EPS
            )
            return (y,)
        table, scale, shift = self._split(modulation)
        y = region_norm(
            x,
            self.index,
            table,
            scale=scale,
            shift=shift,
            norm="instance" if self.statistics == "instance" else "batch",
            training=self.statistics == "batch",
            eps=_EPS,
            negative_slope=self.negative_slope,
            running_mean=None if self.mean is None else self.mean[0],
            running_var=None if self.variance is None else self.variance[0],
        )
        return (y,)

    def torch_group_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
        """Torch's own group norm, and SiLU."""
        return (F.silu(F.group_norm(x, self.num_groups, weight, bias, _EPS)),)

    def plain(self) -> dict[str, Function]:
        """The reference; or torch's own group norm and SiLU."""
        return {"eager": self.torch_group_norm if self.num_groups else self.reference}


CONTEST = NormContest
