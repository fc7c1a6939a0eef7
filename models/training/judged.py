r"""Whether a discriminator teaches anything: how far real pictures lie apart for it, and its part of the gradient.

.. math::

    \sigma = \operatorname{std}_b\, D(x_b), \qquad
    \rho = \frac{\lVert \partial L_{gan} / \partial \hat x \rVert}{\lVert \partial L_{rec} / \partial \hat x \rVert}

D(x) being the mean logit of a picture, L_gan the weighted adversarial loss of the generator, and L_rec the sum of its other
weighted losses of the image (feature matching, perceptual, L1). A discriminator that tells no picture from another
(sigma below 1e-2), or that moves an image a thousand times less than the rest, teaches nothing in a short run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Judged(NamedTuple):
    """What a discriminator says of B pictures, and what the generator's losses ask of the images made for them."""

    real_logits: Tensor
    """(B,): the mean logit of every real picture."""
    adversarial: Tensor | None = None
    """(B,): 2-norm of the gradient of the weighted adversarial loss by every image; None: no such loss of an image."""
    reconstruction: Tensor | None = None
    """(B,): likewise of the sum of all other weighted losses of the image."""


def image_gradients(loss: Tensor, image: Tensor) -> Tensor:
    """Return the 2-norm of a loss's gradient by every image, (B,) float32; zeros for a loss that no image moves.

    Args:
        loss: a scalar.
        image: (B, ...) from which it was computed.
    """
    if not loss.requires_grad:
        return torch.zeros(image.shape[0], device=image.device)
    (gradient,) = torch.autograd.grad(loss, image, allow_unused=True)
    return torch.zeros(image.shape[0], device=image.device) if gradient is None else gradient.float().flatten(1).norm(dim=1)


def figures_of(batches: Iterable[Mapping[str, Judged]]) -> dict[str, float]:
    """Return "real_logit_std" and "gan_gradient_ratio" over the pictures of all batches, behind the prefixes of the batches.

    The first is missing where there is one picture alone, the second where a gradient is missing, or that of the
    reconstruction is 0.
    """
    found: dict[str, list[Judged]] = {}
    for batch in batches:
        for prefix, each in batch.items():
            found.setdefault(prefix, []).append(each)
    made: dict[str, float] = {}
    for prefix, parts in found.items():
        logits = torch.cat([each.real_logits for each in parts]).double()
        if len(logits) > 1:
            made[f"{prefix}real_logit_std"] = float(logits.std())
        # a batch's losses are means over its images
        squares = [
            [0.0 if norms is None else float((norms.double() * len(norms)).square().sum()) for norms in each[1:]]
            for each in parts
        ]
        adversarial, reconstruction = (sum(column) for column in zip(*squares, strict=True))
        if reconstruction > 0 and all(each.adversarial is not None for each in parts):
            made[f"{prefix}gan_gradient_ratio"] = math.sqrt(adversarial / reconstruction)
    return made
