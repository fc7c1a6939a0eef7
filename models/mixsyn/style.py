"""The style generator G_I (MixSyn, section 4 and Fig. 4).

    Delta = concat_i E_i(k_i)            style matrix, delta x N, of the segments k_i = r_i * I
    I*    = G_I(M*, Delta)

Every segment has an encoder of its own. The generator's region-adaptive normalisation spreads the codes over the learned
regions. On a soft composition it convolves the N weights with effective weights per image in place of a map of `delta`
channels, on a hard map it reads a table of label patterns; both are exact (docs/exact_algebra.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.layers import SEANNorm, SPADENorm, sean_norm
from mixsyn_fast.ops.region_norm import channel_moments
from mixsyn_fast.region_map import Kind, Plan, RegionMap

from .blocks import (
    SLOPE,
    Box,
    MSBlock,
    MSConv2d,
    at_least_float32,
    box_of,
    checked_map,
    chosen_regions,
    level_mask,
    merged,
    region_count,
    spread,
    strongest,
)
from .config import Config, Size, halvings


@lru_cache(maxsize=64)
def fixed_noise(size: Size, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the noise (1, 1, h, w) of a layer in use: normal, a matter of size and seed alone, on any device."""
    with torch.inference_mode(False):
        drawn = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))
        return drawn.to(device, dtype)


class RegionAdaptiveNorm(SEANNorm):
    """SEAN's region-adaptive normalisation over instance statistics; noise per pixel where StyleConfig.noise.

    In training the noise is drawn anew, in use it is fixed by StyleConfig.noise_seed and the layer's number: every picture
    has the same, so an edit keeps it.

    Args:
        channels: of the input.
        config: classes and style are read.
        number: of the layer in its generator.
    """

    def __init__(self, channels: int, config: Config, number: int) -> None:
        own = config.style
        super().__init__(channels, len(config.classes), style_length=own.code_length, norm="instance", hidden=own.hidden)
        self.noisy, self.seed = own.noise, own.noise_seed * 1000 + number
        if not own.noise:
            self.noise_var.requires_grad_(False)  # without noise nothing reads it

    def forward(  # type: ignore[override]
        self, x: Tensor, regions: RegionMap, codes: Tensor, *, negative_slope: float | None = None
    ) -> Tensor:
        """Normalise x (B, C, H, W) and modulate it by the codes (B, N, delta) of its regions."""
        noise: str | Tensor | None = "device" if self.noisy and self.training else None
        if self.noisy and not self.training:
            noise = self._noise(x).expand(len(x), -1, -1, -1)
        return super().forward(x, regions, codes, noise=noise, negative_slope=negative_slope)

    def _noise(self, x: Tensor) -> Tensor:
        return fixed_noise((int(x.shape[2]), int(x.shape[3])), self.seed, x.device, x.dtype)

    def part(self, whole: Tensor, box: Box, regions: RegionMap, codes: Tensor, *, negative_slope: float | None) -> Tensor:
        """Normalise and modulate a part of whole (1, C, H, W), by the statistics of the whole, in use.

        Args:
            whole: the input.
            box: the part.
            regions: its regions, of its size.
            codes: (1, N, delta).
            negative_slope: of the leaky ReLU that follows.
        """
        if box.of(whole).shape == whole.shape:
            result: Tensor = self(whole, regions, codes, negative_slope=negative_slope)
            return result
        noise = self._noise(whole) if self.noisy else None
        own = self.param_free_norm
        assert isinstance(own, nn.InstanceNorm2d)
        given = nn.BatchNorm2d(whole.shape[1], own.eps, affine=False).eval()
        scale = None if noise is None else self.noise_var.to(whole.dtype)
        given.running_mean, given.running_var = channel_moments(whole, noise, scale)
        x = box.of(whole).contiguous(memory_format=torch.channels_last)
        noise = None if noise is None else box.of(noise)
        return sean_norm(self, x, regions, codes, noise=noise, negative_slope=negative_slope, norm=given)


class GlobalNorm(SPADENorm):
    """The ablation without region-adaptive styles: SPADE's layout at every level, and one style for the whole image.

    Instance normalisation, modulated pixel by pixel by the composition as SPADE does, then as a whole by the mean code of
    the image's regions: a small region has no style of its own.
    """

    def __init__(self, channels: int, config: Config, number: int) -> None:
        del number  # without noise
        super().__init__(channels, len(config.classes), norm="instance", hidden=config.style.hidden)
        self.modulation = nn.Linear(config.style.code_length, 2 * channels)

    def forward(  # type: ignore[override]
        self, x: Tensor, regions: RegionMap, codes: Tensor, *, negative_slope: float | None = None
    ) -> Tensor:
        """Normalise x (B, C, H, W) and modulate it by the composition, then by the mean code (B, N, delta)."""
        present = (codes != 0).any(2).sum(1, keepdim=True).clamp(min=1)
        scale, shift = self.modulation(codes.sum(1) / present)[:, :, None, None].chunk(2, 1)
        y = torch.addcmul(shift.to(x.dtype), super().forward(x, regions), (1 + scale).to(x.dtype))
        return y if negative_slope is None else F.leaky_relu(y, negative_slope)


class StyleGenerator(nn.Module):
    """G_I with its segment encoders.

    Args:
        config: classes, image_size and style are read.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        own, count, spectral = config.style, region_count(config), config.style.spectral_norm
        channels = min(own.encoder_width, own.encoder_largest)
        self.encoder_in = MSConv2d(3, channels, 3, regions=count, spectral=spectral)
        encoder = []
        for _ in range(own.encoder_halvings - 1):
            wider = min(2 * channels, own.encoder_largest)
            encoder.append(MSBlock(channels, wider, resample="down", norm="instance", regions=count, spectral=spectral))
            channels = wider
        self.encoder = nn.ModuleList(encoder)
        self.encoder_out = MSConv2d(channels, own.code_length, 1, regions=count)
        norm = {"region_adaptive": RegionAdaptiveNorm, "global": GlobalNorm}[own.normalisation]

        numbers = itertools.count()

        def make_norm(wide: int) -> nn.Module:
            return norm(wide, config, next(numbers))

        doublings = halvings(config.image_size, own.start_size, "style.start_size")
        widths = [min(own.width << level, own.largest) for level in range(doublings, -1, -1)]
        self.conv_in = MSConv2d(count, widths[0], 3, spectral=spectral)
        blocks = [MSBlock(widths[0], widths[0], norm=make_norm, spectral=spectral)]
        for before, after in zip(widths, widths[1:], strict=False):
            blocks.append(MSBlock(before, after, resample="up", norm=make_norm, spectral=spectral))
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = make_norm(widths[-1])
        self.conv_out = MSConv2d(widths[-1], 3, 3)

    @property
    def start_size(self) -> Size:
        """(H, W) at which the generator begins."""
        height, width = self.config.image_size
        return height >> (len(self.blocks) - 1), width >> (len(self.blocks) - 1)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The label analyses that a hard map needs."""
        kind: Kind = "image" if self.config.style.normalisation == "region_adaptive" else "shared"
        height, width = self.start_size
        sizes = ((height << level, width << level) for level in range(len(self.blocks)))
        return tuple(Plan(size, kind, edges=False) for size in sizes)

    def encode(
        self,
        image: Tensor,
        regions: RegionMap | Tensor,
        which: Sequence[int] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return the style codes of the segments of S images, e_i = E_i(r_i * I).

        An encoder's features are averaged over its region, weighted by how much of each cell it covers, and mapped to
        the code, in (-1, 1).

        Args:
            image: (S, 3, H, W) in [-1, 1].
            regions: region map, or masks (S, N, H, W), one-hot or soft.
            which: regions to encode; None for all that some picture has. Encoders of other regions do not run.
            present: (S, N) bool: the regions there are; None: those with any weight. A generated composition gives every
                region some weight everywhere, also the absent ones: pass `Composition.present`.

        Returns:
            (S, N, delta), or (S, len(which), delta); zero for an absent region.

        Raises:
            ValueError: another number of regions, size or batch, or no such region.
        """
        regions = checked_map(regions, self.config)
        if image.dim() != 4 or image.shape != (regions.batch_size, 3, *regions.size):
            expected = (regions.batch_size, 3, *regions.size)
            raise ValueError(f"image: expected shape {expected}, got {tuple(image.shape)}")
        if present is None:
            present = regions.areas() > 0
        chosen = chosen_regions(which, present, regions.num_regions)
        own = self.config.style
        if not chosen:
            return image.new_zeros((len(image), 0 if which is not None else regions.num_regions, own.code_length))
        masks = regions.onehot(dtype=image.dtype)
        index = torch.tensor(chosen, device=image.device) if len(chosen) < masks.shape[1] or which is not None else None
        masks = masks if index is None else masks.index_select(1, index)
        segments = (masks[:, :, None] * image[:, None]).flatten(1, 2)
        x = self.encoder_in(segments.contiguous(memory_format=torch.channels_last), index, pool=True)
        for block in self.encoder:
            x = block(x, which=index)
        x = F.leaky_relu(x, SLOPE).unflatten(1, (len(chosen), -1))  # (S, M, C, h, w)
        cover = F.avg_pool2d(at_least_float32(masks), 1 << own.encoder_halvings).flatten(2)
        cover = cover / cover.sum(2, keepdim=True).clamp(min=1e-8)
        pooled = torch.einsum("smcp,smp->smc", x.flatten(3), cover.to(x.dtype))
        codes = torch.tanh(self.encoder_out(pooled.reshape(len(image), -1, 1, 1), index))
        codes = codes.view(len(image), len(chosen), own.code_length)
        return spread(codes.to(image.dtype), chosen, present, which)

    def forward(self, regions: RegionMap | Tensor, codes: Tensor, *, stages: list[Tensor] | None = None) -> Tensor:
        """Return the images (B, 3, H, W) in (-1, 1).

        Args:
            regions: compositions: a hard map, or soft weights (B, N, H, W); gradients reach the weights, but for
                Config.style.painted "hard" in eval mode.
            codes: style matrix (B, N, delta), zero for absent regions.
            stages: takes what every layer between two norms returns, and the images, for :meth:`anew`.

        Raises:
            ValueError: another number of regions, size, batch or code length.
        """
        regions = self._painted(regions, codes)
        x = self._begun(regions, codes)
        if stages is not None:
            stages.append(x)
        for block in self.blocks:
            x = block(x, regions, codes, stages=stages)
        x = self.norm_out(x, regions, codes, negative_slope=SLOPE)  # a pre-activation network ends with one
        images = torch.tanh(at_least_float32(self.conv_out(x)))
        if stages is not None:
            stages.append(images)
        return images

    def anew(self, regions: RegionMap | Tensor, codes: Tensor, kept: Sequence[Tensor], area: Tensor) -> list[Tensor]:
        """Paint a part of one image anew; all layers keep elsewhere what they had, bit for bit.

        At every level the cells are computed that the area touches, and their neighbours; convolutions see what was kept
        beside them, and norms take the statistics of the whole, part new, part kept.

        Args:
            regions: new composition (B = 1), as of :meth:`forward`; outside the area it should be that of before.
            codes: new style matrix (1, N, delta); those of regions outside the area should be those of before.
            kept: `stages` of :meth:`forward`, or what this method returned.
            area: (H, W) bool.

        Returns:
            What was kept, with the new part; the image (1, 3, H, W) in (-1, 1) comes last. It changes in the area and up to
            two pixels away.

        Raises:
            ValueError: as :meth:`forward`; a generator without region-adaptive normalisation.
        """
        if self.config.style.normalisation != "region_adaptive":
            raise ValueError("outside: expected a model with normalisation 'region_adaptive' for 'layers', got 'global'")
        regions = self._painted(regions, codes)

        def condition(size: Size, box: Box) -> tuple[RegionMap, Tensor]:
            if box == (0, 0, *size):
                return regions, codes
            if regions.is_soft:
                return RegionMap.soft(box.of(regions.weights_at(size)).contiguous(), check=False), codes
            return RegionMap(box.of(regions.labels_at(size)), regions.num_regions, ignore_index=-1), codes

        size = self.start_size
        x = torch.where(level_mask(area, size, 1), self._begun(regions, codes), kept[0])
        stages = [x]
        for at, block in enumerate(self.blocks):
            assert isinstance(block, MSBlock)
            before = kept[2 * at + 1], kept[2 * at + 2]
            stages += block.anew(x, before, level_mask(area, (before[1].shape[2], before[1].shape[3]), 1), condition)
            x = stages[-1]
        size = int(area.shape[0]), int(area.shape[1])
        mask = level_mask(area, size, 2)
        box = box_of(mask, 3)  # a convolution, and the label patterns of a norm
        if box is None:
            return [*stages, kept[-1]]
        assert isinstance(self.norm_out, RegionAdaptiveNorm)
        x = self.norm_out.part(x, box, *condition(size, box), negative_slope=SLOPE)
        return [*stages, merged(kept[-1], torch.tanh(at_least_float32(self.conv_out(x))), mask, box)]

    def _painted(self, regions: RegionMap | Tensor, codes: Tensor) -> RegionMap:
        """Return what is painted of a composition, checked."""
        regions = checked_map(regions, self.config)
        shape = (regions.batch_size, regions.num_regions, self.config.style.code_length)
        if tuple(codes.shape) != shape:
            raise ValueError(f"codes: expected shape {shape}, got {tuple(codes.shape)}")
        if regions.weights is not None and self.config.style.painted == "hard" and not self.training:
            regions = RegionMap(strongest(regions.weights), regions.num_regions)
        elif regions.weights is not None and regions.resize != self.config.style.soft_resize:
            regions = RegionMap.soft(regions.weights, check=False, resize=self.config.style.soft_resize)
        return regions

    def _begun(self, regions: RegionMap, codes: Tensor) -> Tensor:
        # The mean composition of every cell: a hard and a soft map agree, and no small region is missed.
        x = F.adaptive_avg_pool2d(regions.onehot(dtype=codes.dtype), self.start_size)
        begun: Tensor = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        return begun
