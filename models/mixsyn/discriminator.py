"""The discriminators of compositions and of images (MixSyn, sections 3.2 and 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import SLOPE, MSBlock, MSConv2d
from .config import DiscriminatorConfig, Size, halvings


class Discriminator(nn.Module):
    """D_M or D_I: maps or images (B, C, H, W) -> logits (B, 1), by MS blocks without normalisation.

    Args:
        channels: C of the input.
        size: (H, W) of the input.
        config: widths.
    """

    def __init__(self, channels: int, size: Size, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.width
        self.conv_in = MSConv2d(channels, width, 3, spectral=True)
        blocks = []
        for _ in range(halvings(size, config.end_size, "end_size")):
            wider = min(2 * width, config.largest)
            blocks.append(MSBlock(width, wider, resample="down"))
            width = wider
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = MSConv2d(width, width, 3, spectral=True)
        self.judge = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 1)."""
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.conv_out(F.leaky_relu(x, SLOPE)), SLOPE)
        logits: Tensor = self.judge(x.mean((2, 3)))
        return logits
