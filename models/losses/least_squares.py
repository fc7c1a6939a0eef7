r"""Least-squares loss (Mao et al.: Least Squares Generative Adversarial Networks, ICCV 2017, Eq. 9).

.. math::

    L_D = \tfrac12 E[(D(x) - 1)^2] + \tfrac12 E[D(G)^2], \qquad L_G = \tfrac12 E[(D(G) - 1)^2]

The code of pix2pixHD and SPADE leaves the halves away: double the weight of this loss to have theirs.
"""

from __future__ import annotations

from torch import Tensor

from ._scales import Logits, over_scales


def discriminator_loss(real_logits: Logits, fake_logits: Logits) -> Tensor:
    """Return L_D, a scalar: the mean over patches and images of each scale, averaged over scales.

    Args:
        real_logits: D(x), any shape, or a list over scales.
        fake_logits: D(G), likewise.

    Raises:
        ValueError: the numbers of scales differ.
    """
    return over_scales(
        lambda real, fake: 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean(), real_logits, fake_logits
    )


def generator_loss(fake_logits: Logits) -> Tensor:
    """Return L_G, a scalar (see `discriminator_loss` for shapes)."""
    return over_scales(lambda fake: 0.5 * (fake - 1).square().mean(), fake_logits)
