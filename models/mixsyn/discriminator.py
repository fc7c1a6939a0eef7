"""The discriminators of compositions and of images (MixSyn, sections 3.2 and 4.2).

The paper's are MS blocks with spectral norm everywhere. An untrained one hardly tells real pictures apart (its logits spread
by 1e-4: spectral norm shrinks the signal from block to block), so there are others: without spectral norm, with instance
norm inside, or SEAN's logits per patch at several sizes, which may see the label map as well (`DiscriminatorConfig`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.region_map import RegionMap

from ..discriminators import DiscriminatorConfig as PatchConfig
from ..discriminators import MultiScaleDiscriminator
from .blocks import SLOPE, MakeNorm, MSBlock, MSConv2d
from .config import Config, DiscriminatorConfig, Size, halvings

Features = list[list[Tensor]]
"""By scale: the features of every layer, the last being the logits (B, 1) or (B, 1, h, w)."""


class Discriminator(nn.Module):
    """D_M or D_I: maps or images (B, C, H, W) -> logits (B, 1), by MS blocks.

    Args:
        channels: C of the input.
        size: (H, W) of the input.
        config: widths and norms.
    """

    sees_map = False

    def __init__(self, channels: int, size: Size, config: DiscriminatorConfig) -> None:
        super().__init__()
        width, spectral = config.width, config.spectral
        self.conv_in = MSConv2d(channels, width, 3, spectral=spectral)
        blocks = []
        for _ in range(halvings(size, config.end_size, "end_size")):
            wider = min(2 * width, config.largest)
            norm: MakeNorm | Literal["none"] = InstanceNorm if config.norm == "instance" else "none"
            blocks.append(MSBlock(width, wider, resample="down", norm=norm, spectral=spectral))
            width = wider
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = MSConv2d(width, width, 3, spectral=spectral)
        self.judge = nn.Linear(width, 1)
        if not spectral:
            begin_alive(self)

    def forward(
        self, x: Tensor, regions: RegionMap | None = None, *, differentiable_twice: bool = False, all_layers: bool = False
    ) -> Tensor | Features:
        """Return the logits (B, 1), or with `all_layers` the features of every layer; see `PatchJudge.forward`."""
        del regions, differentiable_twice  # nothing here is fused
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        found = [x]
        for block in self.blocks:
            x = block(x)
            found.append(x)
        x = F.leaky_relu(self.conv_out(F.leaky_relu(x, SLOPE)), SLOPE)
        logits: Tensor = self.judge(x.mean((2, 3)))
        return [[*found, x, logits]] if all_layers else logits


class InstanceNorm(nn.Module):
    """Instance normalisation and leaky ReLU in plain PyTorch, which has the second derivative that R1 takes."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, *, negative_slope: float) -> Tensor:
        """Return x (B, C, H, W) normalised and activated."""
        return F.leaky_relu(F.instance_norm(x), negative_slope)


class PatchJudge(MultiScaleDiscriminator):
    """D_I with a logit per patch at several sizes: SEAN's discriminator.

    Args:
        regions: N of the label maps.
        config: widths and norms; `sees_map`: images are judged beside their label maps, else by themselves (one region).
    """

    def __init__(self, regions: int, config: DiscriminatorConfig) -> None:
        super().__init__(
            PatchConfig(
                label_nc=regions if config.sees_map else 1,
                ndf=config.width,
                n_layers=config.layers,
                scales=config.scales,
                spectral_norm=config.spectral,
                instance_norm=config.norm == "instance",
            )
        )
        self.sees_map = config.sees_map
        if not config.spectral:
            begin_alive(self)

    def forward(  # type: ignore[override]
        self, x: Tensor, regions: RegionMap | None = None, *, differentiable_twice: bool = False, all_layers: bool = False
    ) -> list[Tensor] | Features:
        """Judge images.

        Args:
            x: (B, 3, H, W) in [-1, 1].
            regions: hard label maps (B), where the judge sees them; else not read.
            differentiable_twice: use no op without a second derivative (R1).
            all_layers: return the features of every layer.

        Returns:
            By scale, the logits (B, 1, h, w); with `all_layers` the features, the last being the logits.

        Raises:
            ValueError: no label maps for a judge that sees them.
        """
        if self.sees_map and regions is None:
            raise ValueError("regions: expected the label maps of the images, which this discriminator sees, got none")
        if regions is None or not self.sees_map:
            nothing = torch.zeros((len(x), *x.shape[2:]), dtype=torch.int32, device=x.device)
            regions = RegionMap(nothing, 1)
        found = super().forward(x, regions, differentiable_twice=differentiable_twice)
        return found if all_layers else [scale[-1] for scale in found]


def begin_alive(network: nn.Module) -> None:
    """Draw the weights of all convolutions He-normal for the leaky ReLU (He et al., ICCV 2015, Eq. 15).

    torch's own initialisation takes two thirds of the signal's power in every layer; without norms nothing gives it back.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, SLOPE)


def image_discriminator(config: Config) -> Discriminator | PatchJudge:
    """Return D_I, as the settings say."""
    own = config.image_discriminator
    return PatchJudge(len(config.classes), own) if own.kind == "patches" else Discriminator(3, config.image_size, own)


def mean_logits(logits: Tensor | list[Tensor]) -> Tensor:
    """Return the mean logit of every picture (B,) float32: of logits (B, ...), or of a list over scales, averaged."""
    scales = [logits] if isinstance(logits, Tensor) else logits
    return torch.stack([scale.float().flatten(1).mean(1) for scale in scales]).mean(0)
