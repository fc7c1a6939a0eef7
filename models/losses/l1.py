r"""L1 reconstruction loss (pix2pix, CVPR 2017, Eq. 3; MixSyn's Eq. 2 and 5).

.. math::

    L_R = \frac1N \lVert x - G \rVert_1

Under a mask (conditional IMLE, Li, Zhang, Malik, ICCV 2019) every difference is weighed first, also those of features,
for which the mask is reduced to their size.

.. math::

    L_M = \frac1N \lVert M \circ (x - G) \rVert_1
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


def masked_l1_loss(fake: Tensor, real: Tensor, mask: Tensor | None) -> Tensor:
    """Return L_M, a scalar; without a mask L_R.

    Args:
        fake: (B, C, h, w).
        real: the same shape.
        mask: (B, 1, H, W) weights of the pixels, reduced to (h, w) by the mean over areas; None: all are 1.

    Raises:
        ValueError: the shapes differ.
    """
    if mask is None:
        return l1_loss(fake, real)
    if fake.shape != real.shape:
        raise ValueError(f"fake: expected shape {tuple(real.shape)} as real, got {tuple(fake.shape)}")
    if mask.dim() != 4 or mask.shape[:2] != (fake.shape[0], 1):
        raise ValueError(f"mask: expected shape ({fake.shape[0]}, 1, H, W), got {tuple(mask.shape)}")
    apart = F.l1_loss(fake, real, reduction="none")
    weights = mask if mask.shape[2:] == fake.shape[2:] else F.interpolate(mask, size=fake.shape[2:], mode="area")
    return (apart * weights).mean()
