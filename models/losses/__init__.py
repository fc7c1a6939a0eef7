"""Losses, one file each with its equation. Weights are the caller's: everything here is unweighted.

The adversarial ones are modules with `discriminator_loss(real_logits, fake_logits)` and `generator_loss(fake_logits)`:
`hinge`, `non_saturating`, `least_squares`, `log_loss`. `ADVERSARIAL` finds them by name, but for `log_loss`, which with one
kind of fake is `non_saturating`. `stylefusion` has those of its paper, of masks, changes and codes.
"""

from types import ModuleType

from ..feature_networks import gram
from . import hinge, least_squares, log_loss, non_saturating, stylefusion
from .composition import composition_cross_entropy, composition_l1_loss, dice_loss, pixel_balance
from .feature_matching import feature_matching_loss
from .kld import kld_loss
from .l1 import l1_loss, masked_l1_loss
from .log_loss import (
    image_discriminator_loss,
    image_generator_loss,
    mask_discriminator_loss,
    mask_generator_loss,
)
from .path_length import path_length_penalty, path_lengths
from .perceptual import PerceptualLoss
from .r1 import r1_due, r1_penalty
from .style import gram_style_loss, style_code_loss

ADVERSARIAL: dict[str, ModuleType] = {
    "hinge": hinge,
    "non_saturating": non_saturating,
    "least_squares": least_squares,
}

__all__ = [
    "ADVERSARIAL",
    "PerceptualLoss",
    "composition_cross_entropy",
    "composition_l1_loss",
    "dice_loss",
    "feature_matching_loss",
    "gram",
    "gram_style_loss",
    "hinge",
    "image_discriminator_loss",
    "image_generator_loss",
    "kld_loss",
    "l1_loss",
    "least_squares",
    "log_loss",
    "mask_discriminator_loss",
    "mask_generator_loss",
    "masked_l1_loss",
    "non_saturating",
    "path_length_penalty",
    "path_lengths",
    "pixel_balance",
    "r1_due",
    "r1_penalty",
    "style_code_loss",
    "stylefusion",
]
