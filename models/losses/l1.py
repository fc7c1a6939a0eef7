r"""L1 reconstruction loss (pix2pix, CVPR 2017, Eq. 3; MixSyn's Eq. 2 and 5).

.. math::

    L_R = \frac1N \lVert x - G \rVert_1
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def l1_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Return the mean absolute difference, a scalar (MixSyn's Eq. 5 is half the sum of two of these).

    Args:
        fake: any shape.
        real: the same shape (nothing is broadcast).

    Raises:
        ValueError: the shapes differ.
    """
    if fake.shape != real.shape:
        raise ValueError(f"fake: expected shape {tuple(real.shape)} as real, got {tuple(fake.shape)}")
    return F.l1_loss(fake, real)
