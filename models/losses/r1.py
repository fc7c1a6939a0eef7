r"""R1 gradient penalty (Mescheder, Geiger, Nowozin: Which Training Methods for GANs Actually Converge? ICML 2018, Eq. 9).

.. math::

    R_1 = \frac{\gamma}{2}\, E\bigl[ \lVert \nabla_x D(x) \rVert^2 \bigr]

over real images; D(x) is the mean over patches of an image's logits, averaged over scales, as in the adversarial losses.
Lazy regularisation (Karras et al.: StyleGAN2, CVPR 2020): every n-th step, n times as strong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._scales import Logits


def r1_due(step: int, interval: int) -> bool:
    """Say whether a step takes the penalty: every `interval`-th from step 0 on; never for interval 0."""
    return interval > 0 and step % interval == 0


def r1_penalty(
    discriminate: Callable[[Tensor], Logits], images: Tensor, *, gamma: float = 10.0, interval: int = 1
) -> Tensor:
    """Return the penalty, a scalar that can be differentiated by the discriminator's parameters (double backward).

    The discriminator runs here, outside autocast: squared gradients do not fit into float16. Fused ops without a second
    derivative must be avoided by `discriminate` (MultiScaleDiscriminator: ``differentiable_twice=True``).

    Args:
        discriminate: images -> logits, any shape with the batch first, or a list over scales.
        images: (B, ...) real images.
        gamma: strength.
        interval: number of steps that this one stands for (the factor of lazy regularisation).

    Raises:
        ValueError: logits whose batch differs from that of the images, or that do not depend on them.
    """
    images = images.detach().requires_grad_(True)
    # gradients are needed even where the caller has none
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        logits = discriminate(images if images.dtype.itemsize >= 4 else images.float())
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        for scale in scales:
            if scale.dim() < 1 or scale.shape[0] != images.shape[0]:
                raise ValueError(f"discriminate: expected logits of {images.shape[0]} images, got {tuple(scale.shape)}")
        # images do not see each other, so the gradient of the sum is each one's own
        # the sum over images of the mean over patches
        total = sum(scale.sum() * (len(scale) / max(scale.numel(), 1)) for scale in scales) / len(scales)
        if not isinstance(total, Tensor) or not total.requires_grad:
            raise ValueError("discriminate: expected logits that depend on the images, got constants")
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
        penalty = gradient.flatten(1).square().sum(1).mean()
    return 0.5 * gamma * interval * penalty
