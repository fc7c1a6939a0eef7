"""MSCA's networks: label pyramid, exemplar's features, alignment, synthesis; a decoder to pretrain the alignment.

What depends on the exemplar (:class:`Exemplar`) and what depends on the label map (:class:`Layout`) are made apart and
joined last, so each serves any number of the other. Neither the aligned features F_x1 nor the compressed features F_x2 are
ever made: see docs/exact_algebra.md, 7 and 12. `use_plan("dense")` computes as published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import region_norm
from mixsyn_fast.backend import current_plan
from mixsyn_fast.layers.attended import Attended, AttendedSPADENorm, attended_conv2d
from mixsyn_fast.layers.attention import Gathered, Target, gate_values, join_gathered
from mixsyn_fast.region_map import RegionMap, as_region_map

from ..blocks import SLOPE, ResidualBlock, make_conv
from .aligners import Aligner, make_aligner
from .config import SCALES, GeneratorConfig, sizes_of

_PICTURE_DEVIATION = 0.5
"""About that of pixels in [-1, 1]."""
_LOGIT_GAINS = {"spatial_weight": 4.0, "channel_weight": 2.0}
"""Of phi and psi: a map then covers about a tenth of the positions, and a quarter of the maps count at a position."""


@dataclass(frozen=True)
class Exemplar:
    """All that the networks take from B exemplars: computed once, used with any label map."""

    gathered: tuple[Gathered, ...]
    """Of scales 0 to 4."""
    log_masses: tuple[Tensor, ...] = ()
    """(B, K) each, where asked for: the logarithm of what each sum weighs in a mixture of exemplars."""


@dataclass(frozen=True)
class Layout:
    """All that the networks take from B label maps: computed once, used with any exemplar."""

    targets: tuple[Target, ...]
    """Of scales 0 to 4."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        maps = self.targets[0].maps
        return maps.shape[2], maps.shape[3]


class LabelPyramid(nn.Module):
    """Label map -> its features at five scales (Eq. 2, 3), 1 x 1 convolutions from the coarsest scale down.

    A convolution of the one-hot map is a row of its weight per label. The convolution of the upsampled features commutes
    with the upsampling, whose weights sum to one, so it runs at a quarter of the size, and at scale 3 on a row per label.
    """

    def __init__(self, num_labels: int, channels: int) -> None:
        super().__init__()
        self.num_labels, self.channels = num_labels, channels
        inputs = [channels + num_labels] * (SCALES - 1) + [num_labels]
        self.convs = nn.ModuleList(nn.Conv2d(count, channels, 1, bias=False) for count in inputs)

    def _columns(self, scale: int, dtype: torch.dtype) -> Tensor:
        """Rows of labels through the one-hot part of a scale's convolution, (K + 1, M): the last one of no label."""
        weight = cast(Tensor, self.convs[scale].weight)[:, -self.num_labels :, 0, 0]
        return F.pad(weight.to(dtype).t(), (0, 0, 0, 1))

    def forward(self, regions: RegionMap, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return F_c of scales 0 to 4, (B, M, h, w) each, channels_last.

        Args:
            regions: of the labels, hard or soft.
            sizes: (h, w) of scales 0 to 4, each half of the one before.
        """
        top = SCALES - 1
        dtype = cast(Tensor, self.convs[top].weight).dtype
        if current_plan() == "dense":
            return self._dense(regions, sizes, dtype)
        if regions.is_soft:
            features = F.leaky_relu(self.convs[top](regions.weights_at(sizes[top]).to(dtype)), SLOPE)
        else:
            rows = F.leaky_relu(self._columns(top, dtype), SLOPE)
            features = _rows_at(rows, regions, sizes[top])
        found = [features]
        for scale in range(top - 1, -1, -1):
            weight = cast(Tensor, self.convs[scale].weight)[:, : self.channels].to(dtype)
            if scale == top - 1 and not regions.is_soft:
                passed = _rows_at(F.linear(rows, weight[:, :, 0, 0]), regions, sizes[top])
            else:
                passed = F.conv2d(found[-1], weight)
            raised = F.interpolate(passed, size=sizes[scale], mode="bilinear")
            found.append(self._with_labels(raised, scale, regions))
        return found[::-1]

    def _with_labels(self, raised: Tensor, scale: int, regions: RegionMap) -> Tensor:
        """LReLU(upsampled part + part of the label map)."""
        size = (raised.shape[2], raised.shape[3])
        if regions.is_soft:
            weight = cast(Tensor, self.convs[scale].weight)[:, -self.num_labels :].to(raised.dtype)
            return F.leaky_relu(raised + F.conv2d(regions.weights_at(size).to(raised.dtype), weight), SLOPE)
        columns = self._columns(scale, raised.dtype)
        table = torch.cat((torch.ones_like(columns), columns), 1)
        return region_norm(raised, _codes_at(regions, size), table, norm="none", negative_slope=SLOPE)

    def _dense(self, regions: RegionMap, sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> list[Tensor]:
        top = SCALES - 1
        found = [F.leaky_relu(self.convs[top](regions.onehot(sizes[top], dtype)), SLOPE)]
        for scale in range(top - 1, -1, -1):
            raised = F.interpolate(found[-1], size=sizes[scale], mode="bilinear")
            joined = torch.cat((raised, regions.onehot(sizes[scale], dtype)), 1)
            found.append(F.leaky_relu(self.convs[scale](joined), SLOPE))
        return found[::-1]


def _codes_at(regions: RegionMap, size: tuple[int, int]) -> Tensor:
    """Labels (B, h, w) int64, K for no label."""
    labels = regions.labels_at(size).to(torch.int64)
    return torch.where(labels < 0, regions.num_regions, labels)


def _rows_at(rows: Tensor, regions: RegionMap, size: tuple[int, int]) -> Tensor:
    """Map (B, M, h, w) of a row (K + 1, M) per label, channels_last."""
    return F.embedding(_codes_at(regions, size), rows).permute(0, 3, 1, 2)


class Trunk(nn.Module):
    """Image (B, 3, H, W) -> features at five scales, in place of VGG's: convolutions that are trained with the rest.

    No normalisation, for it would take away the colours that the features are to carry.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = (3, *channels)
        self.convs = nn.ModuleList(
            make_conv(widths[0], widths[1], 3) if i == 0 else nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1)
            for i in range(SCALES)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of scales 0 to 4."""
        found = []
        x = image.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            found.append(x)
        return found


class Alignment(nn.Module):
    """Exemplar and label map -> the map that the synthesis reads, at five scales (Sec. 3.1, 3.2).

    Attributes:
        trunk: where the exemplar's features come from; None where a VGG gives them.
        pyramid: features of label maps, of exemplar and target alike (Eq. 2, 3).
        compress: W_x of Eq. 1, (N, C_i) for every scale.
        aligners: of scales 0 to 4.
    """

    trunk: Trunk | None

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.trunk_channels) if config.trunk == "own" else None
        self.pyramid = LabelPyramid(config.label_nc, config.condition)
        self.compress = nn.ModuleList(nn.Linear(count, config.features, bias=False) for count in config.trunk_channels)
        self.aligners = nn.ModuleList(cast(nn.Module, make_aligner(config, scale)) for scale in range(SCALES))
        if self.trunk is not None:
            self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Draw the weights so that features have about unit variance at all scales, and attention maps begin distinct.

        With torch's own initialisation, or one for inputs of unit variance, which neither pictures nor one-hot labels are,
        the features shrink over the scales and the attention begins as global average pooling, which it hardly leaves.
        VGG's features are large enough.
        """
        assert self.trunk is not None
        gain = nn.init.calculate_gain("leaky_relu", SLOPE)
        for i, conv in enumerate(self.trunk.convs):
            weight = cast(Tensor, conv.weight)
            nn.init.kaiming_normal_(weight, a=SLOPE)
            if i == 0:
                weight.div_(_PICTURE_DEVIATION)
        for conv in self.pyramid.convs:
            weight = cast(Tensor, conv.weight)
            passed = weight.shape[1] - self.config.label_nc
            shares = 2 if passed else 1  # as much variance from the labels as from the coarser features
            nn.init.normal_(weight[:, passed:], std=gain * shares**-0.5)
            if passed:
                nn.init.normal_(weight[:, :passed], std=gain * (shares * passed) ** -0.5)
        for each in self.compress:
            weight = cast(Tensor, each.weight)
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        for aligner in self.aligners:
            for name, weight in aligner.named_parameters(recurse=False):
                nn.init.normal_(weight, std=_LOGIT_GAINS[name] * weight.shape[1] ** -0.5)

    def aligner(self, scale: int) -> Aligner:
        """Return what aligns at a scale."""
        return cast(Aligner, self.aligners[scale])

    def region_map(self, regions: RegionMap | Tensor) -> RegionMap:
        """Return `regions` as a RegionMap of the labels, or raise ValueError."""
        found = as_region_map(regions, num_regions=self.config.label_nc).without_edges()
        if found.num_regions != self.config.label_nc:
            raise ValueError(f"regions: expected {self.config.label_nc} labels, got {found.num_regions}")
        return found

    def exemplar(
        self,
        features: Sequence[Tensor],
        regions: RegionMap | Tensor,
        *,
        mask: Tensor | None = None,
        masses: bool = False,
        conditions: Sequence[Tensor] | None = None,
    ) -> Exemplar:
        """Return what exemplars give, from their image features and label maps (Eq. 1, 3, 4, 5).

        Args:
            features: (B, C_i, h, w) of scales 0 to 4, of VGG or of `trunk`.
            regions: label maps of the exemplars.
            mask: (B, H, W) bool or None: positions that take part (at coarser scales those with any such pixel below).
            masses: keep what :meth:`interpolate` needs.
            conditions: the maps' features F_c2 of scales 0 to 4, where they are there already (a :class:`Layout` of the same
                maps has them); None: they are computed.

        Raises:
            ValueError: batches, sizes or channels differ.
        """
        gathered, log_masses = [], []
        for aligner, *given in self._exemplar_inputs(features, regions, mask, conditions):
            gathered.append(aligner.gather(*given))
            if masses:
                log_masses.append(aligner.log_mass(*given))
        return Exemplar(tuple(gathered), tuple(log_masses))

    def spatial_maps(
        self, features: Sequence[Tensor], regions: RegionMap | Tensor, *, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Return alpha (Eq. 4) of scales 0 to 4, (B, K, h, w) each, for pictures; arguments as :meth:`exemplar`."""
        return [aligner.spatial_maps(*given) for aligner, *given in self._exemplar_inputs(features, regions, mask, None)]

    def _exemplar_inputs(
        self,
        features: Sequence[Tensor],
        regions: RegionMap | Tensor,
        mask: Tensor | None,
        conditions: Sequence[Tensor] | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield, of scales 0 to 4, what aligns, and what its exemplar's half is made of."""
        regions = self.region_map(regions)
        sizes = _sizes_of_features(features, self.config, regions)
        for scale, condition in enumerate(self.pyramid(regions, sizes) if conditions is None else conditions):
            given, matrix = features[scale], cast(Tensor, self.compress[scale].weight)
            kept = None if mask is None else F.adaptive_max_pool2d(mask[:, None].float(), sizes[scale])[:, 0] > 0
            compress: Tensor | None = matrix
            if current_plan() == "dense":  # as published: the convolution comes first
                given, compress = F.conv2d(given, matrix[:, :, None, None]), None
            yield self.aligner(scale), given, condition, regions, compress, kept

    def layout(self, regions: RegionMap | Tensor, size: tuple[int, ...]) -> Layout:
        """Return what label maps ask for (Eq. 2, 7), for images of a size (H, W).

        Raises:
            ValueError: a side that is no multiple of 16, or another number of labels.
        """
        sizes = sizes_of(*size)
        regions = self.region_map(regions)
        conditions = self.pyramid(regions, sizes)
        return Layout(tuple(self.aligner(i).target(each, regions) for i, each in enumerate(conditions)))

    def attend(self, exemplar: Exemplar, layout: Layout) -> list[Attended]:
        """Join both halves, for scales 0 to 4: Eq. 6, and the factors of Eq. 8.

        Raises:
            ValueError: the batches differ.
        """
        found = []
        for scale, (gathered, target) in enumerate(zip(exemplar.gathered, layout.targets, strict=True)):
            values = gate_values(gathered, self.aligner(scale).gate, target.condition_mean)
            found.append(Attended.of(values, target.maps, target.condition))
        return found

    def interpolate(self, exemplars: Sequence[Exemplar], weights: Sequence[float], layout: Layout) -> list[Attended]:
        """Join label maps with a weighed mixture of exemplars (Sec. 4, "Interpolation").

        The softmax of Eq. 4 runs over the positions of all exemplars, with the logarithm of its weight added to each one's
        logits; the gates of Eq. 6 are mixed linearly, as the paper says. Exemplars of different sizes, which the paper does
        not have, share each its weight among its positions: a larger one counts no more. With a single weight above 0 it is
        :meth:`attend` of that exemplar, bit for bit.

        Args:
            exemplars: J of them, made with `masses`, B images each.
            weights: J numbers, not negative, not all 0.
            layout: of B label maps.

        Raises:
            ValueError: see :func:`~mixsyn_fast.layers.attention.join_gathered`; exemplars without masses.
        """
        if not all(each.log_masses for each in exemplars):
            raise ValueError("exemplars: expected ones made with masses=True, which a mixture needs, got one without")
        used = [j for j, weight in enumerate(weights) if weight > 0]
        total = float(sum(weights))
        found = []
        for scale, target in enumerate(layout.targets):
            gathered = [each.gathered[scale] for each in exemplars]
            values = join_gathered(gathered, [each.log_masses[scale] for each in exemplars], weights)
            gate = self.aligner(scale).gate
            if gate is not None:
                gates = [gate.gates(gathered[j].condition_mean, target.condition_mean) * (weights[j] / total) for j in used]
                values = values * torch.stack(gates).sum(0)[:, :, None].to(values.dtype)
            found.append(Attended.of(values, target.maps, target.condition))
        return found

    def spatially(self, exemplars: Sequence[Exemplar], weight_maps: Tensor, layout: Layout) -> list[Attended]:
        """Join label maps with exemplars, each with a weight of its own at every position (Sec. 4, Fig. 7).

        The channel attention runs over the gated vectors of all exemplars: those of exemplar j weigh beta times its map.

        Args:
            exemplars: J of them, B images each.
            weight_maps: (B, J, H, W) at the images' size, not negative, summing to 1 at every position; at coarser scales
                their means over areas.
            layout: of B label maps.

        Raises:
            ValueError: another shape.
        """
        expected = (layout.targets[0].maps.shape[0], len(exemplars), *layout.size)
        if tuple(weight_maps.shape) != expected:
            raise ValueError(f"weight_maps: expected shape {expected}, got {tuple(weight_maps.shape)}")
        alone = [self.attend(exemplar, layout) for exemplar in exemplars]
        found = []
        for scale, target in enumerate(layout.targets):
            size = (target.maps.shape[2], target.maps.shape[3])
            shares = F.adaptive_avg_pool2d(weight_maps.to(target.maps.dtype), size)
            maps = (shares[:, :, None] * target.maps[:, None]).flatten(1, 2)
            values = torch.cat([each[scale].values for each in alone], 1)
            found.append(Attended.of(values, maps, target.condition))
        return found


def _sizes_of_features(
    features: Sequence[Tensor], config: GeneratorConfig, regions: RegionMap
) -> tuple[tuple[int, int], ...]:
    """Return the sizes of scales 0 to 4, or raise ValueError for features that no picture has."""
    channels = config.trunk_channels
    if len(features) != SCALES or any(each.dim() != 4 for each in features):
        raise ValueError(f"features: expected {SCALES} of (B, C, h, w), got {[tuple(each.shape) for each in features]}")
    sizes = sizes_of(int(features[0].shape[2]), int(features[0].shape[3]))
    for i, (each, count, size) in enumerate(zip(features, channels, sizes, strict=True)):
        if tuple(each.shape) != (regions.batch_size, count, *size):
            expected = (regions.batch_size, count, *size)
            raise ValueError(f"features: scale {i}: expected shape {expected}, got {tuple(each.shape)}")
    return sizes


class Synthesis(nn.Module):
    """What alignment gives -> image: a SPADE residual block at every scale, from the coarsest (Sec. 3.3, Appendix E).

    The first block's input is a 3 x 3 convolution of the map at scale 4, where the paper is silent.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config

        def make_norm(channels: int) -> nn.Module:
            return AttendedSPADENorm(channels, config.map_channels, norm=config.norm, hidden=config.hidden)

        multiples = [1 << scale for scale in range(SCALES)]  # of the blocks' outputs, scale 0 first
        self.first = make_conv(config.map_channels, config.channels(multiples[-1]), 3)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                config.channels(multiples[min(scale + 1, SCALES - 1)]),
                config.channels(multiple),
                make_norm,
                spectral=config.spectral_norm,
            )
            for scale, multiple in enumerate(multiples)
        )
        self.conv_img = make_conv(config.channels(1), 3, 3)

    def forward_features(self, attended: Sequence[Attended]) -> Tensor:
        """Return the output before tanh, (B, 3, H, W); see `forward`."""
        x = attended_conv2d(attended[-1], self.first).contiguous(memory_format=torch.channels_last)
        for scale in range(SCALES - 1, -1, -1):
            x = self.blocks[scale](x, attended[scale])
            if scale:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        image: Tensor = self.conv_img(F.leaky_relu(x, SLOPE))
        return image

    def forward(self, attended: Sequence[Attended]) -> Tensor:
        """Return the image (B, 3, H, W) in (-1, 1).

        Args:
            attended: of scales 0 to 4.
        """
        return torch.tanh(self.forward_features(attended))


class FeatureDecoder(nn.Module):
    """What alignment gives -> VGG's features of the target, a 1 x 1 convolution at every scale (Appendix G).

    It pretrains the alignment, without a backward pass through the synthesis.
    """

    def __init__(self, config: GeneratorConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(config.map_channels, count, 1) for count in channels)

    def forward(self, attended: Sequence[Attended]) -> list[Tensor]:
        """Return the features (B, C_i, h, w) of scales 0 to 4."""
        return [attended_conv2d(each, cast(nn.Conv2d, conv)) for each, conv in zip(attended, self.convs, strict=True)]
