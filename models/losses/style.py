r"""Style losses: distance of style codes extracted anew (MixSyn, Eq. 4) and of Gram matrices (Gatys et al., CVPR 2016).

Codes, with N regions, e the codes that an image was made of and E(G) those extracted from the image:

.. math::

    L_S = \frac{1}{2N} \bigl( \lVert e_x - E(G') \rVert + \lVert e_* - E(G'') \rVert \bigr) \tag{MixSyn 4}

for the approximated image G' and the random image G''. One call of :func:`style_code_loss` is one of the two norms over N;
L_S is half the sum of two calls. The paper does not name the norm: here it is the Euclidean one of all codes of an image
laid end to end (Eq. 5 writes an index 1 where it means the other), averaged over images.

Gram matrices of C channels and M positions, per tap of a feature network:

.. math::

    G_{ij} = \frac{1}{C M} \sum_k F_{ik} F_{jk}, \qquad L = \sum_l w_l\, \frac{1}{C^2} \lVert G^l(x) - G^l(y) \rVert^2_F
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..feature_networks import gram


def style_code_loss(codes: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the Euclidean distance of all codes of an image over its number of regions, averaged over images; a scalar.

    Args:
        codes: (B, N, S) extracted from the generated images.
        target: (B, N, S) codes the images were made of; no gradient goes there unless it is attached.
        present: (B, N) bool or 0/1: regions to compare; N is then counted per image. None for all.

    Raises:
        ValueError: a shape differs.
    """
    if codes.dim() != 3 or codes.shape != target.shape:
        raise ValueError(f"codes: expected shape (B, N, S) = {tuple(target.shape)} as target, got {tuple(codes.shape)}")
    if present is not None and present.shape != codes.shape[:2]:
        raise ValueError(f"present: expected shape {tuple(codes.shape[:2])}, got {tuple(present.shape)}")
    difference = codes - target
    count: Tensor | int = codes.shape[1]
    if present is not None:
        difference = torch.where(present.bool()[..., None], difference, 0)
        count = present.bool().sum(1).clamp(min=1)
    distance: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return (distance / count).mean()


def gram_style_loss(fake: Sequence[Tensor], real: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Return the weighted squared distance of Gram matrices, a scalar. No gradient goes to `real`.

    Args:
        fake: features (B, C, h, w) of each tap.
        real: likewise; sizes h, w may differ from those of `fake`.
        weights: one for each tap; None for 1 each.

    Raises:
        ValueError: the numbers of taps, or numbers of channels, differ.
    """
    weights = [1.0] * len(fake) if weights is None else weights
    if not len(fake) == len(real) == len(weights) or not fake:
        raise ValueError(f"fake: expected as many taps as real and weights, got {len(fake)}, {len(real)}, {len(weights)}")
    for i, (ours, theirs) in enumerate(zip(fake, real, strict=True)):
        if ours.shape[:2] != theirs.shape[:2]:
            raise ValueError(f"fake: tap {i}: expected (B, C) {tuple(theirs.shape[:2])}, got {tuple(ours.shape[:2])}")
    terms = [w * F.mse_loss(gram(f), gram(r.detach())) for w, f, r in zip(weights, fake, real, strict=True)]
    return torch.stack(terms).sum()
