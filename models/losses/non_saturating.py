r"""Non-saturating loss (Goodfellow et al.: Generative Adversarial Networks, 2014, section 3), on logits.

.. math::

    L_D = -E[\log \sigma(D(x))] - E[\log(1 - \sigma(D(G)))], \qquad L_G = -E[\log \sigma(D(G))]

written with softplus, which is finite for every logit: :math:`-\log \sigma(t) = \mathrm{softplus}(-t)`.
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
    return over_scales(lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(), real_logits, fake_logits)


def generator_loss(fake_logits: Logits) -> Tensor:
    """Return L_G, a scalar (see `discriminator_loss` for shapes)."""
    return over_scales(lambda fake: F.softplus(-fake).mean(), fake_logits)
