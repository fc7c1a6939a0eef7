"""spatial_attention_pool against MSCA's Eq. 4 and 5 in plain PyTorch: concatenation, 1x1 convolution, softmax, product."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.spatial_attention_pool import spatial_attention_pool, spatial_attention_pool_reference
from ..contest import LAYOUTS, Function, Normal, OpContest, Outputs


def eager_pool(features: Tensor, condition: Tensor, weight_features: Tensor, weight_condition: Tensor) -> Outputs:
    """Eq. 4 and 5, and the mean of Eq. 6: values (B, K, N), mean (B, M); arguments as of the op."""
    stacked = torch.cat((features, condition), 1)
    weight = torch.cat((weight_features, weight_condition), 1)[:, :, None, None]
    maps = torch.softmax(F.conv2d(stacked, weight).flatten(2), 2)
    return torch.bmm(maps, features.flatten(2).transpose(1, 2)), condition.mean((2, 3))


class PoolAttentionContest(OpContest):
    """Features, condition and both weights."""

    op = "spatial_attention_pool"
    outputs = ("values", "mean")

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """Sixteen maps over 128 features and 64 channels of condition, 64 x 64."""
        contest = cls(f"{cls.op}/k16/n128/m64/1x64x64/{layout}/{dtype}")
        normal, memory = Normal(device, getattr(torch, dtype)), LAYOUTS[layout]
        contest.inputs = {
            "features": normal(1, 128, 64, 64, layout=memory),
            "condition": normal(1, 64, 64, 64, layout=memory),
            "weight_features": normal(16, 128, scale=192**-0.5),
            "weight_condition": normal(16, 64, scale=192**-0.5),
        }
        contest.output_grads = (normal(1, 16, 128), normal(1, 64))
        return contest

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        features, condition, of_features, of_condition = inputs
        found = spatial_attention_pool_reference(features, condition, of_features, of_condition, None, False)
        return tuple(t.to(features.dtype) for t in found[:2])

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        return spatial_attention_pool(*inputs)[:2]

    def plain(self) -> dict[str, Function]:
        """See :func:`eager_pool`."""
        return {"eager": eager_pool}


CONTEST = PoolAttentionContest
