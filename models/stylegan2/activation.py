"""The bias of a layer with an activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixsyn_fast import bias_act


class Bias(nn.Module):
    """The bias of a layer with an activation, (C), first 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias and apply leaky ReLU and gain."""
        return bias_act(x, self.bias)
