"""The structure generator G_M and its discriminator D_M (MixSyn, section 3.2 and Fig. 2).

    G_M(M) = C( concat_i E_i(r_i) )

Every region's mask r_i has an encoder E_i of its own, "so that the codes are disentangled and each region can be used
interchangeably"; its code has 16 x 16 x 128 numbers. One decoder C turns the codes of all regions into a soft ("fuzzy")
composition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixsyn_fast.ops.region_norm import region_norm
from mixsyn_fast.region_map import RegionMap

from .blocks import (
    SLOPE,
    MSBlock,
    MSConv2d,
    at_least_float32,
    box_of,
    checked_map,
    chosen_regions,
    instance_part,
    level_mask,
    merged,
    region_count,
    spread,
)
from .config import Config, Size, halvings


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
    def code_size(self) -> Size:
        """(h, w) of a structure code."""
        height, width = self.config.image_size
        return height >> (len(self.decoder) - 1), width >> (len(self.decoder) - 1)

    @property
    def code_channels(self) -> int:
        """C of a structure code."""
        return self.config.structure.code_channels

    def decode(self, codes: Tensor, *, stages: list[Tensor] | None = None) -> Tensor:
        """Return the soft compositions (B, N, H, W) of codes (B, N, C, h, w); the weights of a pixel sum to one.

        Args:
            codes: of all regions, zero for absent ones.
            stages: takes what every layer between two norms returns, and the compositions, for :meth:`anew`.

        Raises:
            ValueError: another number of regions or channels.
        """
        x = self._joined(codes)
        for block in self.decoder:
            x = block(x, stages=stages)
        logits = self.decoder_out(region_norm(x, norm="instance", negative_slope=SLOPE))
        compositions = torch.softmax(at_least_float32(logits), 1)
        if stages is not None:
            stages.append(compositions)
        return compositions

    def anew(self, codes: Tensor, kept: Sequence[Tensor], area: Tensor) -> list[Tensor]:
        """Decode a part of one composition anew; all layers keep elsewhere what they had, bit for bit.

        Args:
            codes: new codes (1, N, C, h, w).
            kept: `stages` of :meth:`decode`, or what this method returned.
            area: (H, W) bool.

        Returns:
            What was kept, with the new part; the composition (1, N, H, W) comes last. It changes in the area and up to a
            pixel away.

        Raises:
            ValueError: as :meth:`decode`.
        """
        x = self._joined(codes)
        stages: list[Tensor] = []
        for at, block in enumerate(self.decoder):
            assert isinstance(block, MSBlock)
            before = kept[2 * at], kept[2 * at + 1]
            mask = level_mask(area, (before[1].shape[2], before[1].shape[3]), 1)
            stages += block.anew(x, before, mask, lambda size, box: ())
            x = stages[-1]
        mask = level_mask(area, (x.shape[2], x.shape[3]), 1)
        box = box_of(mask, 1)
        if box is None:
            return [*stages, kept[-1]]
        logits = self.decoder_out(instance_part(x, box))
        return [*stages, merged(kept[-1], torch.softmax(at_least_float32(logits), 1), mask, box)]

    def _joined(self, codes: Tensor) -> Tensor:
        """Return the codes of all regions as channels, checked."""
        count = len(self.config.classes)
        if codes.dim() != 5 or tuple(codes.shape[1:3]) != (count, self.code_channels):
            raise ValueError(f"codes: expected shape (B, {count}, {self.code_channels}, h, w), got {tuple(codes.shape)}")
        return codes.flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def forward(self, regions: RegionMap | Tensor) -> Tensor:
        """Return the known compositions G_M(M') of S masks, (S, N, H, W)."""
        return self.decode(self.encode(regions))
