"""The structure generator G_M and its discriminator D_M (MixSyn, section 3.2 and Fig. 2).

    G_M(M) = C( concat_i E_i(r_i) )

Every region's mask r_i has an encoder E_i of its own, "so that the codes are disentangled and each region can be used
interchangeably"; its code has 16 x 16 x 128 numbers. One decoder C turns the codes of all regions into a soft ("fuzzy")
composition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.ops.region_norm import region_norm
from mixsyn_fast.region_map import RegionMap, as_region_map

from .blocks import SLOPE, MSBlock, MSConv2d, at_least_float32
from .config import Config, DiscriminatorConfig, Size, halvings


def checked_map(regions: RegionMap | Tensor, config: Config) -> RegionMap:
    """Return a region map without edges; ValueError when regions or size are not those of the networks."""
    regions = as_region_map(regions, num_regions=len(config.classes)).without_edges()
    if regions.num_regions != len(config.classes):
        raise ValueError(f"regions: expected {len(config.classes)} regions, got {regions.num_regions}")
    if regions.size != tuple(config.image_size):
        height, width = config.image_size
        raise ValueError(f"regions: expected a map of {height} x {width} pixels, got {regions.size[0]} x {regions.size[1]}")
    return regions


def region_count(config: Config) -> int:
    """Return N; ValueError for settings that no data has been fitted to."""
    if not config.classes:
        raise ValueError("config: expected the names of the regions in classes, got none (see task.fitted)")
    return len(config.classes)


def chosen_regions(which: Sequence[int] | None, present: Tensor, count: int) -> list[int]:
    """Return the regions to encode: those asked for, or those that some picture has (one host synchronisation)."""
    if which is None:
        return present.any(0).nonzero()[:, 0].tolist()
    for i in which:
        if not 0 <= i < count:
            raise ValueError(f"which: expected regions in [0, {count}), got {i}")
    return list(which)


def spread(codes: Tensor, chosen: Sequence[int], present: Tensor, which: Sequence[int] | None) -> Tensor:
    """Return codes (S, M, ...) of chosen regions as (S, N, ...), or as they are where `which` named them; absent: zero."""
    here = present[:, list(chosen)].view(len(codes), len(chosen), *(1,) * (codes.dim() - 2))
    codes = torch.where(here, codes, 0)
    if which is not None or len(chosen) == present.shape[1]:
        return codes
    every = codes.new_zeros((len(codes), present.shape[1], *codes.shape[2:]))
    return every.index_copy(1, torch.tensor(list(chosen), device=codes.device), codes)


class StructureGenerator(nn.Module):
    """G_M: masks of N regions -> soft composition (B, N, H, W), a softmax over the regions.

    Args:
        config: classes, image_size and structure are read.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        own, count = config.structure, region_count(config)
        halved = halvings(config.image_size, own.code_size, "structure.code_size")
        spectral = own.spectral_norm
        channels = own.code_channels if halved == 1 else min(own.width, own.code_channels)
        self.encoder_in = MSConv2d(1, channels, 3, regions=count, spectral=spectral)
        encoder: list[MSBlock] = []
        for i in range(1, halved):
            wider = own.code_channels if i + 1 == halved else min(2 * channels, own.code_channels)
            encoder.append(MSBlock(channels, wider, resample="down", norm="instance", regions=count, spectral=spectral))
            channels = wider
        self.encoder = nn.ModuleList(encoder)
        channels = own.decoder_width
        decoder = [MSBlock(count * own.code_channels, channels, norm="instance", spectral=spectral)]
        for _ in range(halved):
            narrower = max(channels // 2, own.decoder_smallest)
            decoder.append(MSBlock(channels, narrower, resample="up", norm="instance", spectral=spectral))
            channels = narrower
        self.decoder = nn.ModuleList(decoder)
        self.decoder_out = MSConv2d(channels, count, 3)

    def encode(self, regions: RegionMap | Tensor, which: Sequence[int] | None = None) -> Tensor:
        """Return the structure codes of the regions of S masks, e_i = E_i(r_i).

        Args:
            regions: region map, or masks (S, N, H, W), one-hot or soft.
            which: regions to encode; None for all that some mask has. Encoders of other regions do not run.

        Returns:
            (S, N, C, h, w), or (S, len(which), C, h, w); zero for a region that a mask does not have.

        Raises:
            ValueError: another number of regions or size, or no such region.
        """
        regions = checked_map(regions, self.config)
        present = regions.areas() > 0
        chosen = chosen_regions(which, present, regions.num_regions)
        masks = regions.onehot(dtype=self.encoder_in.weight.dtype)
        if not chosen:
            height, width = (side >> len(self.encoder) + 1 for side in regions.size)
            return masks.new_zeros(
                (len(masks), 0 if which is not None else masks.shape[1], self.code_channels, height, width)
            )
        index = torch.tensor(chosen, device=masks.device) if len(chosen) < masks.shape[1] or which is not None else None
        x = masks if index is None else masks.index_select(1, index)
        x = self.encoder_in(x.contiguous(memory_format=torch.channels_last), index, pool=True)
        for block in self.encoder:
            x = block(x, which=index)
        return spread(x.unflatten(1, (len(chosen), -1)), chosen, present, which)

    @property
    def code_channels(self) -> int:
        """C of a structure code."""
        return self.config.structure.code_channels

    def decode(self, codes: Tensor) -> Tensor:
        """Return the soft compositions (B, N, H, W) of codes (B, N, C, h, w); the weights of a pixel sum to one.

        Raises:
            ValueError: another number of regions or channels.
        """
        count = len(self.config.classes)
        if codes.dim() != 5 or tuple(codes.shape[1:3]) != (count, self.code_channels):
            raise ValueError(f"codes: expected shape (B, {count}, {self.code_channels}, h, w), got {tuple(codes.shape)}")
        x = codes.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        for block in self.decoder:
            x = block(x)
        logits = self.decoder_out(region_norm(x, norm="instance", negative_slope=SLOPE))
        return torch.softmax(at_least_float32(logits), 1)

    def forward(self, regions: RegionMap | Tensor) -> Tensor:
        """Return the known compositions G_M(M') of S masks, (S, N, H, W)."""
        return self.decode(self.encode(regions))


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
        return self.judge(x.mean((2, 3)))
