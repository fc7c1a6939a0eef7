"""channel_attention_spread against MSCA's Eq. 7 and 8 in plain PyTorch: 1x1 convolution, softmax over maps, product."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.channel_attention_spread import channel_attention_spread, channel_attention_spread_reference
from ..contest import LAYOUTS, Function, Normal, OpContest, Outputs


def eager_spread(values: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """Eq. 7 and 8: (B, N, H, W); arguments as of the op."""
    maps = torch.softmax(F.conv2d(condition, weight[:, :, None, None]), 1)
    spread: Tensor = torch.bmm(values.transpose(1, 2), maps.flatten(2)).unflatten(2, condition.shape[2:])
    return spread


class SpreadContest(OpContest):
    """Values, condition of the target and weight."""

    op = "channel_attention_spread"

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """Sixteen maps, 64 channels of condition, 128 features, 64 x 64."""
        contest = cls(f"{cls.op}/k16/n128/m64/1x64x64/{layout}/{dtype}")
        normal, memory = Normal(device, getattr(torch, dtype)), LAYOUTS[layout]
        contest.inputs = {
            "values": normal(1, 16, 128),
            "target": normal(1, 64, 64, 64, layout=memory),
            "weight_target": normal(16, 64, scale=0.25),
        }
        contest.output_grads = (normal(1, 128, 64, 64, layout=memory),)
        return contest

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        return (channel_attention_spread_reference(*inputs),)

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        return (channel_attention_spread(*inputs),)

    def plain(self) -> dict[str, Function]:
        """See :func:`eager_spread`."""
        return {"eager": lambda *inputs: (eager_spread(*inputs),)}


CONTEST = SpreadContest
