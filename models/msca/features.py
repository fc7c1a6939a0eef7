"""The exemplar's image features at five scales, Eq. 1 before its compression: a fixed VGG's, or those of an own trunk."""

from __future__ import annotations

import torch
from torch import Tensor

from ..feature_networks import PERCEPTUAL_TAPS, FeatureNetwork
from ..model_file import digest_of
from .networks import Alignment


def image_features(alignment: Alignment, vgg: FeatureNetwork | None, image: Tensor) -> list[Tensor]:
    """Return the features of images (B, 3, H, W) in [-1, 1], scales 0 to 4, as `Alignment.exemplar` takes them.

    Args:
        alignment: its trunk is used, where it has one.
        vgg: relu1_1, relu2_1, ... relu5_1 of it otherwise; no gradient goes there.
        image: the exemplars.

    Raises:
        ValueError: neither is there.
    """
    found: list[Tensor]
    if alignment.trunk is not None:
        found = alignment.trunk(image)
        return found
    if vgg is None:
        raise ValueError("vgg: expected a VGG, for the model has no trunk of its own; got none")
    with torch.no_grad():
        found = vgg(image, PERCEPTUAL_TAPS)
    return found


class OtherVGG(ValueError):
    """What was to be a model's VGG is none, or not the one whose features the model reads."""


def check_vgg(vgg: FeatureNetwork, expected: str, source: str, weights: str) -> None:
    """Raise :class:`OtherVGG` where a VGG is not the one whose features a model reads; the message names both.

    Args:
        vgg: what was loaded.
        expected: digest of the model's (`model_file.digest_of`).
        source: the model, for the message.
        weights: where the VGG came from, for the message: a file, or "auto".
    """
    found = digest_of(vgg)
    if found != expected:
        raise OtherVGG(
            f"vgg_weights: expected the {vgg.kind} that {source} was trained with (digest {expected[:12]}), "
            f"got another one ({weights}: digest {found[:12]})"
        )
