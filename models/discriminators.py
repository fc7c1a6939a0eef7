"""The multi-scale patch discriminator of pix2pixHD, SPADE, CLADE and SEAN.

Wang et al.: pix2pixHD, CVPR 2018; Park et al.: SPADE, CVPR 2019. Names of modules and of state_dict entries are the
published ones, so published discriminators (``<epoch>_net_D.pth``) load with `load_checked`.

It judges the image together with its label map. Two exact shortcuts (docs/exact_algebra.md, 2) keep the map cheap:

* The first convolution of [one-hot map | image] is linear, so its map part is worked out once and added to that of every set
  of images that shares the map (real and generated). At full resolution it is a gather-sum: the one-hot map is never made.
* The average-pooled one-hot map of the next scale is counted from the labels.

MSCA's (Zheng et al., ECCV 2020, Eq. 11) judges the image beside an exemplar and the exemplar's label map
(`DiscriminatorConfig.exemplar`). All of these but the image itself are given, so all go into what is worked out once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import region_norm
from mixsyn_fast.backend import current_plan
from mixsyn_fast.layers.algebra import gather_sum
from mixsyn_fast.region_map import RegionMap, Size, as_region_map

from .blocks import SLOPE, SpectralConv2d

KERNEL, PADDING = 4, 2  # of every convolution


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Settings of the discriminator (defaults: the published ones for ADE20K)."""

    label_nc: int = 151  # number of regions K
    edges: bool = False  # one more map channel: binary edges of the instance map
    ndf: int = 64  # channels of the first layer; they double with every layer, up to 512
    n_layers: int = 4  # hidden layers: the first n_layers - 1 halve the size
    scales: int = 2  # discriminators, each on images of half the size of the one before
    spectral_norm: bool = True  # of the hidden layers but the first
    instance_norm: bool = True  # of the same layers
    exemplar: bool = False  # see an exemplar and its label map beside the image (MSCA)

    def __post_init__(self) -> None:
        """Check every field once."""
        for name in ("label_nc", "ndf", "n_layers", "scales"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")

    @property
    def map_channels(self) -> int:
        """Channels of the label map, the edge channel included."""
        return self.label_nc + int(self.edges)

    @property
    def given_channels(self) -> int:
        """Channels of all that the image is judged with: label map, exemplar's label map, exemplar; the image comes last."""
        return self.map_channels + (self.label_nc + 3 if self.exemplar else 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the hidden layers."""
        widths = [self.ndf]
        while len(widths) < self.n_layers:
            widths.append(max(min(2 * widths[-1], 512), self.ndf))
        return tuple(widths)


class ExemplarPicture(NamedTuple):
    """What images are judged beside."""

    image: Tensor
    """(B, 3, H, W) in [-1, 1], of the size of the images."""
    regions: RegionMap | Tensor
    """Its label map, of any size; edges are not read."""


class MapParts(NamedTuple):
    """What the label maps of a batch, and its exemplars, give to the first layers, by scale: see `read_map`."""

    tensors: tuple[Tensor, ...]
    """convolved: (B, ndf, h, w), their part of the first convolution; else (B, given_channels, H, W), they themselves."""
    convolved: bool
    size: Size
    """(H, W) of the images that the parts are for."""


def _tap_labels(labels: Tensor, kernel: int, padding: int, outside: int) -> Tensor:
    """(B, H, W) -> (B, kernel^2, h, w): labels below the taps of a window of stride 2, `outside` beyond the image."""
    height, width = ((n + 2 * padding - kernel) // 2 + 1 for n in labels.shape[1:])
    padded = F.pad(labels, (padding,) * 4, value=outside)
    taps = itertools.product(range(kernel), repeat=2)
    return torch.stack([padded[:, y : y + 2 * height - 1 : 2, x : x + 2 * width - 1 : 2] for y, x in taps], 1)


def _halved(image: Tensor) -> Tensor:
    """Average pooling between scales."""
    return F.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _halved_map(regions: RegionMap, size: Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """Average-pooled one-hot map (B, K [+ 1], h, w): of a hard map counted from the labels, at a fraction of the memory."""
    if regions.is_soft:
        return _halved(regions.onehot(size, dtype))
    below = _tap_labels(regions.labels_at(size), 3, 1, outside=-1).to(torch.int64) + 1  # 0: outside, or no region
    shape = (below.shape[0], regions.num_regions + 1, *below.shape[2:])
    one = torch.ones((), dtype=dtype, device=below.device)
    counts = torch.zeros(shape, dtype=dtype, device=below.device).scatter_add_(1, below, one.expand_as(below))
    halved = counts[:, 1:] / F.avg_pool2d(one.expand(1, 1, *size), 3, stride=2, padding=1, divisor_override=1)
    edges = regions.edges_at(size)
    return halved if edges is None else torch.cat((halved, _halved(edges[:, None].to(dtype))), 1)


class PatchDiscriminator(nn.Module):
    """One scale: a stack of 4 x 4 convolutions whose last output holds one logit for each patch of the image."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        activation = nn.LeakyReLU(SLOPE)
        first = nn.Conv2d(config.given_channels + 3, widths[0], KERNEL, stride=2, padding=PADDING)
        self.model0 = nn.Sequential(first, activation)
        kind = SpectralConv2d if config.spectral_norm else nn.Conv2d
        for i, (inner, outer) in enumerate(itertools.pairwise(widths), 1):
            stride = 1 if i == config.n_layers - 1 else 2
            # a bias before the norm would have no effect
            conv = kind(inner, outer, KERNEL, stride=stride, padding=PADDING, bias=not config.instance_norm)
            norm = nn.InstanceNorm2d(outer) if config.instance_norm else nn.Identity()
            self.add_module(f"model{i}", nn.Sequential(nn.Sequential(conv, norm), activation))
        self.add_module(f"model{config.n_layers}", nn.Sequential(nn.Conv2d(widths[-1], 1, KERNEL, padding=PADDING)))

    def map_part(self, maps: Sequence[RegionMap], size: Size, image: Tensor | None = None) -> Tensor:
        """Return what is given's part of the first convolution at full size, (B, ndf, h, w): maps by one gather-sum.

        Args:
            maps: the label map, and the exemplar's where Config.exemplar.
            size: (H, W) of the images.
            image: the exemplar, (B, 3, H, W), likewise.
        """
        conv = self.model0[0]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        if any(regions.is_soft for regions in maps):
            planes = [regions.onehot(size, conv.weight.dtype) for regions in maps]
            return self.convolved_map(_joined(planes if image is None else [*planes, image.to(conv.weight.dtype)]))
        count, out = self.config.label_nc, conv.out_channels
        columns = conv.weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1, out)  # (taps, channels, ndf)
        tables: list[Tensor] = []
        codes: list[Tensor] = []
        first, before = 0, 0  # channel and row at which a map begins
        for regions in maps:
            # code K: no region, or outside the image; a second set of codes for pixels with an edge
            table = torch.cat((columns[:, first : first + count], columns.new_zeros(KERNEL**2, 1, out)), 1)
            labels = regions.labels_at(size)
            code = torch.where(labels < 0, count, labels)
            edges = regions.edges_at(size)
            if edges is not None:
                table = torch.cat((table, table + columns[:, first + count : first + count + 1]), 1)
                code = code + edges * (count + 1)
            below = _tap_labels(code, KERNEL, PADDING, outside=count).permute(0, 2, 3, 1)
            tap = torch.arange(KERNEL**2, device=code.device, dtype=torch.int32) * table.shape[1] + before
            tables.append(table.reshape(-1, out))
            codes.append((below + tap).to(torch.int32))
            first, before = first + regions.num_channels, before + len(tables[-1])
        index = codes[0] if len(codes) == 1 else torch.cat(codes, 3)
        rows = gather_sum(tables[0] if len(tables) == 1 else torch.cat(tables), index.reshape(-1, index.shape[3]))
        part = (rows + conv.bias).view(*index.shape[:3], out).permute(0, 3, 1, 2)
        if image is None:
            return part
        return part + F.conv2d(image.to(part.dtype), conv.weight[:, first : first + 3], stride=2, padding=PADDING)

    def convolved_map(self, given: Tensor) -> Tensor:
        """Return the first convolution of what is given (B, given_channels, H, W), without the image: (B, ndf, h, w)."""
        conv = self.model0[0]
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(given, conv.weight[:, : self.config.given_channels], conv.bias, stride=2, padding=PADDING)

    def forward(
        self, image: Tensor, part: Tensor, convolved: bool = True, differentiable_twice: bool = False
    ) -> list[Tensor]:
        """Return the features of each layer, the last being the logits (n B, 1, h, w).

        Args:
            image: (n B, 3, H, W): n sets of images that share the B maps.
            part: (B, ndf, h, w) of `map_part` or `convolved_map`, or what is given itself, (B, given_channels, H, W).
            convolved: which of the two.
            differentiable_twice: use no fused op (they have no second derivative).
        """
        conv = self.model0[0]
        assert isinstance(conv, nn.Conv2d)
        sets = image.shape[0] // max(part.shape[0], 1)
        if convolved:
            x = F.conv2d(image, conv.weight[:, self.config.given_channels :], stride=2, padding=PADDING)
            x = x + part.to(x.dtype).repeat(sets, 1, 1, 1) if sets != 1 else x + part.to(x.dtype)
        else:
            x = conv(torch.cat((part.to(image.dtype).repeat(sets, 1, 1, 1), image), 1))
        features = [F.leaky_relu_(x, SLOPE)]  # in place: no gradient needs the value before
        for i in range(1, self.config.n_layers):
            inner, norm = getattr(self, f"model{i}")[0]
            with torch.autocast(x.device.type, enabled=False):  # one number in half precision would shift all weights
                weight = inner.normalised_weight() if isinstance(inner, SpectralConv2d) else inner.weight
            x = inner._conv_forward(features[-1], weight, inner.bias)
            if isinstance(norm, nn.Identity):
                x = F.leaky_relu(x, SLOPE)
            elif differentiable_twice:
                x = F.leaky_relu(norm(x), SLOPE)
            else:
                x = region_norm(x, norm="instance", eps=norm.eps, negative_slope=SLOPE)
            features.append(x)
        return [*features, getattr(self, f"model{self.config.n_layers}")(features[-1])]


class MultiScaleDiscriminator(nn.Module):
    """Patch discriminators on images of full, half (, a quarter ...) size.

    forward(images, regions, parts=None, *, exemplar=None, differentiable_twice=False): images (n B, 3, H, W) in [-1, 1], n
    sets in a row (generated, real) that share the B maps of `regions`, a RegionMap of K regions (with edges where
    Config.edges) or a float map (B, K [+ 1], h, w), nearest-resized to the images, and the B exemplars of `exemplar` where
    Config.exemplar. Returns a list over scales of lists of features, the last of each being the logits (n B, 1, h, w).
    `parts` is what `read_map` returned for the same maps and exemplars, where several passes share it.
    `differentiable_twice` is for R1. Raises ValueError for images, maps or exemplars that do not fit.

    Sets may come in one pass or apart: instance normalisation lets no image see another, and the published single pass of
    [generated | real] is for batch normalisation. Apart, the real half of a generator's step needs no backward pass; in one,
    spectral norm makes one power iteration instead of two (`eval` makes none).
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        for i in range(config.scales):
            self.add_module(f"discriminator_{i}", PatchDiscriminator(config))

    def _scales(self) -> list[PatchDiscriminator]:
        return [getattr(self, f"discriminator_{i}") for i in range(self.config.scales)]

    def read_map(self, regions: RegionMap | Tensor, size: Size, exemplar: ExemplarPicture | None = None) -> MapParts:
        """Return what label maps, and exemplars, give to the first layer of each scale, for images of a size (H, W).

        It depends on the weights: valid until they change, and made without gradient where gradients are off. With
        ``use_plan("dense")`` it is the maps themselves, to be concatenated as published.

        Raises:
            ValueError: the number of regions or the edges do not fit Config; an exemplar is missing, too many, or of another
                batch or size.
        """
        config = self.config
        regions = as_region_map(regions, num_regions=config.label_nc)
        channels = config.map_channels
        if channels != regions.num_channels or (not regions.is_soft and regions.num_regions != config.label_nc):
            raise ValueError(f"regions: expected {channels} channels, {int(config.edges)} of them edges, got {regions}")
        maps, image = [regions], None
        if (exemplar is not None) != config.exemplar:
            expected, got = ("one", "none") if config.exemplar else ("none", "one")
            raise ValueError(f"exemplar: expected {expected}, got {got}")
        if exemplar is not None:
            image = exemplar.image
            maps.append(self._map_of(exemplar, (regions.batch_size, 3, *size)))
        dense = current_plan() == "dense"
        dtype = next(self.parameters()).dtype
        tensors: list[Tensor] = []
        given = None
        for i, scale in enumerate(self._scales()):
            if i == 1:
                given = _joined([_halved_map(each, size, dtype) for each in maps])
                if image is not None:
                    given = torch.cat((given, _halved(image).to(dtype)), 1)
            elif given is not None:
                given = _halved(given)
            if given is not None:
                tensors.append(given if dense else scale.convolved_map(given))
            elif dense:
                planes = [each.onehot(size, dtype) for each in maps]
                tensors.append(_joined(planes if image is None else [*planes, image.to(dtype)]))
            else:
                tensors.append(scale.map_part(maps, size, image))
        return MapParts(tuple(tensors), not dense, size)

    def _map_of(self, exemplar: ExemplarPicture, shape: tuple[int, ...]) -> RegionMap:
        """Return the label map of exemplars whose images have a shape, or raise ValueError."""
        if tuple(exemplar.image.shape) != shape:
            raise ValueError(f"exemplar: expected images of shape {shape}, got {tuple(exemplar.image.shape)}")
        found = as_region_map(exemplar.regions, num_regions=self.config.label_nc).without_edges()
        if found.num_regions != self.config.label_nc or found.batch_size != shape[0]:
            raise ValueError(f"exemplar: expected {shape[0]} maps of {self.config.label_nc} regions, got {found}")
        return found

    def forward(
        self,
        images: Tensor,
        regions: RegionMap | Tensor,
        parts: MapParts | None = None,
        *,
        exemplar: ExemplarPicture | None = None,
        differentiable_twice: bool = False,
    ) -> list[list[Tensor]]:
        """Return a list over scales of lists of features, the last of each being the logits."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape (n B, 3, H, W), got {tuple(images.shape)}")
        size = (int(images.shape[2]), int(images.shape[3]))
        regions = as_region_map(regions, num_regions=self.config.label_nc)
        batch = regions.batch_size
        if images.shape[0] % max(batch, 1):
            raise ValueError(f"images: expected a multiple of the {batch} maps, got {images.shape[0]} images")
        if parts is None:
            parts = self.read_map(regions, size, exemplar)
        elif parts.size != size:
            raise ValueError(f"parts: expected those of images of size {size}, got {parts.size}")
        x = images.contiguous(memory_format=torch.channels_last)
        results = []
        for i, (scale, part) in enumerate(zip(self._scales(), parts.tensors, strict=True)):
            x = x if i == 0 else _halved(x)
            results.append(scale(x, part, parts.convolved, differentiable_twice))
        return results


def logits_of(features: list[list[Tensor]], sets: int = 1) -> list[list[Tensor]]:
    """Return the logits of a discriminator's features, by set and scale: `sets` lists over scales of (B, 1, h, w).

    Args:
        features: what the discriminator returned for `sets` sets of images in a row.
        sets: how many.
    """
    return [list(each) for each in zip(*(scale[-1].chunk(sets) for scale in features), strict=True)]
