r"""Hinge loss (Lim, Ye: Geometric GAN, 2017, Eq. 11 and 12; SPADE, SEAN and CLADE train with it).

.. math::

    L_D = E[\max(0, 1 - D(x))] + E[\max(0, 1 + D(G))], \qquad L_G = -E[D(G)]
"""

from __future__ import annotations

import torch.nn.functional as F
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
    return over_scales(lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), real_logits, fake_logits)


def generator_loss(fake_logits: Logits) -> Tensor:
    """Return L_G, a scalar (see `discriminator_loss` for shapes)."""
    return over_scales(lambda fake: -fake.mean(), fake_logits)
