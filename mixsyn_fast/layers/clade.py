"""CLADE normalisation: one row of scale and shift per class."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_plan
from ..ops import region_norm
from ..region_map import as_region_map
from .param_free import Regions, check_input, is_plain, norm_arguments, param_free_norm, plain_norm


class AffineLike(Protocol):
    """Scale and shift per class, ``weight`` and ``bias`` (K, C)."""

    weight: nn.Parameter
    bias: nn.Parameter


class CladeLike(Protocol):
    """What :func:`clade_norm` reads of a layer.

    The positional variant's affine also has ``dist_conv_w`` and ``dist_conv_b`` (1x1, 2 -> 1).
    """

    @property
    def class_specified_affine(self) -> AffineLike:
        """Scale and shift per class."""

    @property
    def param_free_norm(self) -> nn.Module:
        """Normalisation without parameters of its own."""


def clade_norm(
    module: CladeLike,
    x: Tensor,
    regions: Regions,
    *,
    distance: Tensor | None = None,
    negative_slope: float | None = None,
) -> Tensor:
    """CLADE: ``act(norm(x) * weight[label] + bias[label])`` (no ``1 +``); positional: both scaled per pixel.

    A pixel of no region takes class 0, as the published layer's argmax of an all-zero one-hot does.

    Args:
        module: the layer.
        x: (B, C, H, W).
        regions: a region map, or a one-hot or soft mask.
        distance: (B, 2, h, w), positional variant: offset of a pixel from the centroid of its connected component, scaled by
            its maximum; nearest-resized to x.
        negative_slope: LeakyReLU that follows, fused; None for none.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: batch, device, number of regions differ, or ``distance`` is missing or not wanted.
    """
    affine = module.class_specified_affine
    weight, bias = affine.weight, affine.bias
    regions = as_region_map(regions, num_regions=weight.shape[0])
    size = check_input(x, regions, "CLADENorm")
    if regions.num_regions != weight.shape[0]:
        raise ValueError(f"CLADENorm: regions: expected {weight.shape[0]} regions, got {regions.num_regions}")
    position_scale: nn.Conv2d | None = getattr(affine, "dist_conv_w", None)
    position_shift: nn.Conv2d | None = getattr(affine, "dist_conv_b", None)
    positional = position_scale is not None and position_shift is not None
    if positional != (distance is not None):
        raise ValueError(
            f"CLADENorm: distance: expected {'a tensor (B, 2, h, w)' if positional else 'None'}, "
            f"got {'None' if distance is None else 'a tensor'}"
        )
    if regions.is_soft:
        weights = regions.weights_at(size).to(weight.dtype)
        scale = torch.einsum("bkhw,kc->bchw", weights, weight)
        shift = torch.einsum("bkhw,kc->bchw", weights, bias)
    elif positional or is_plain() or current_plan() == "dense":
        labels = regions.labels_at(size).clamp(min=0)
        scale = F.embedding(labels, weight).permute(0, 3, 1, 2)
        shift = F.embedding(labels, bias).permute(0, 3, 1, 2)
    else:
        return region_norm(
            x,
            regions.labels_at(size).clamp(min=0),
            torch.cat((weight, bias), 1),
            **norm_arguments(module.param_free_norm, x),
            negative_slope=negative_slope,
        )
    if position_scale is not None and position_shift is not None:
        assert distance is not None
        near = F.interpolate(distance.to(weight.dtype), size=size, mode="nearest")
        scale = scale * (1 + position_scale(near))
        shift = shift * (1 + position_shift(near))
    if is_plain():
        return plain_norm(module.param_free_norm, x, scale, shift, negative_slope)
    return region_norm(
        x,
        scale=scale,
        shift=shift,
        **norm_arguments(module.param_free_norm, x),
        negative_slope=negative_slope,
    )


class ClassAffine(nn.Module):
    """CLADE's per-class scale and shift: ``weight`` (K, C) drawn from U(0, 1), ``bias`` (K, C) zero.

    Args:
        num_regions: K.
        channels: C.
        positional: with the 1x1 convolutions, zero at first, of the position in the region.
    """

    def __init__(self, num_regions: int, channels: int, positional: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_regions, channels))
        self.bias = nn.Parameter(torch.empty(num_regions, channels))
        if positional:
            self.dist_conv_w, self.dist_conv_b = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)
            for conv in (self.dist_conv_w, self.dist_conv_b):
                for parameter in conv.parameters():
                    nn.init.zeros_(parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from U(0, 1), zero the bias."""
        nn.init.uniform_(self.weight)
        nn.init.zeros_(self.bias)


class CLADENorm(nn.Module):
    """CLADE normalisation layer with the attributes and state_dict names of the published one.

    Args:
        channels: C of the input.
        num_regions: K.
        norm: as :class:`SPADENorm`.
        positional: CLADE-ICPE: scale both tables per pixel by 1x1 convolutions (zero at first) of the place in the region.
        instance: append one channel, a 1x1 convolution of the edge map, to the output (C + 1 channels).
    """

    def __init__(
        self,
        channels: int,
        num_regions: int,
        *,
        norm: str = "batch",
        positional: bool = False,
        instance: bool = False,
    ) -> None:
        super().__init__()
        self.param_free_norm = param_free_norm(norm, channels)
        self.class_specified_affine = ClassAffine(num_regions, channels, positional)
        if instance:
            self.inst_conv = nn.Conv2d(1, 1, 1)

    def forward(
        self,
        x: Tensor,
        regions: Regions,
        *,
        distance: Tensor | None = None,
        negative_slope: float | None = None,
    ) -> Tensor:
        """See :func:`clade_norm`; with ``instance`` one channel more comes out."""
        regions = as_region_map(regions, num_regions=self.class_specified_affine.weight.shape[0])
        if not hasattr(self, "inst_conv"):
            return clade_norm(self, x, regions, distance=distance, negative_slope=negative_slope)
        if regions.edges is None:
            raise ValueError("CLADENorm: regions: expected a map with edges (instance=True), got one without")
        y = clade_norm(self, x, regions, distance=distance)
        edges = regions.edges_at((int(x.shape[2]), int(x.shape[3])))
        assert edges is not None
        y = torch.cat((y, self.inst_conv(edges[:, None].to(x.dtype))), 1)
        return y if negative_slope is None else F.leaky_relu(y, negative_slope)
