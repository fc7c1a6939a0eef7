r"""Losses of soft compositions against label maps: L1 (MixSyn, Eq. 2), cross-entropy and Dice, balanced by region.

With weights p of N regions that sum to one at every pixel, and the label map's one-hot m, over the pixels x of a region:

.. math::

    L_1 &= \frac1P \sum_x w_{l(x)} \sum_k \lvert p_k(x) - m_k(x) \rvert                    \\
    L_{CE} &= -\frac1P \sum_x w_{l(x)} \log p_{l(x)}(x)                                    \\
    L_{Dice} &= \frac1{|R|} \sum_{k \in R} \Bigl( 1 - \frac{2 \sum_x p_k m_k}{\sum_x p_k + \sum_x m_k} \Bigr)

R are the regions that the batch has, P is the number of pixels. L1 over pixels hardly counts a thin region, and through a
softmax that is confidently wrong it has no gradient; the cross-entropy has it there (-1 by the right logit), and Dice counts
every region alike (Milletari, Navab, Ahmadi: V-Net, 3DV 2016). The weights w balance L1 and cross-entropy:

.. math::

    w_k \propto \min\bigl(b, \max(1/b, \bar a / a_k)\bigr), \qquad \frac1P \sum_x w_{l(x)} = 1

a_k being the pixels of a region in the batch, \bar a their mean over R, b the bound: 1 weighs all alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _checked(weights: Tensor, labels: Tensor) -> None:
    if weights.dim() != 4 or labels.shape != (weights.shape[0], *weights.shape[2:]):
        got = f"{tuple(weights.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"labels: expected shape (B, H, W) for weights (B, N, H, W), got {got}")


def pixel_balance(labels: Tensor, regions: int, bound: float) -> Tensor:
    """Return what every pixel counts (B, H, W), float32: w of its region, 0 without a region; 1 in the mean over the others.

    Args:
        labels: (B, H, W) integer, -1 for a pixel of no region.
        regions: N.
        bound: b, at least 1.

    Raises:
        ValueError: a bound below 1.
    """
    if bound < 1:
        raise ValueError(f"bound: expected at least 1, got {bound}")
    here = labels >= 0
    areas = torch.bincount((labels.long() + 1).flatten(), minlength=regions + 1)[1:].float()
    mean = areas.sum() / (areas > 0).sum().clamp(min=1)
    per_region = (mean / areas.clamp(min=1)).clamp(1 / bound, bound)
    per_region = per_region * areas.sum() / (per_region * areas).sum().clamp(min=1)
    return torch.where(here, per_region[labels.long().clamp(min=0)], 0)


def composition_l1_loss(weights: Tensor, labels: Tensor, bound: float = 1.0) -> Tensor:
    """Return L_1, a scalar: 0 to 2 a pixel.

    Args:
        weights: (B, N, H, W) that sum to one over N; gradients reach them.
        labels: (B, H, W) integer, -1 for a pixel of no region, which is not compared.
        bound: of the balance, at least 1 (all alike).

    Raises:
        ValueError: shapes that differ, a bound below 1.
    """
    _checked(weights, labels)
    # of weights that sum to one, the distance to a one-hot is twice what the right region lacks
    right = weights.gather(1, labels.long().clamp(min=0)[:, None])[:, 0]
    others = weights.sum(1) - right
    balance = pixel_balance(labels, weights.shape[1], bound)
    return (balance * ((1 - right).abs() + others)).sum() / (labels >= 0).sum().clamp(min=1)


def composition_cross_entropy(weights: Tensor, labels: Tensor, bound: float = 1.0) -> Tensor:
    """Return L_CE, a scalar; arguments and errors as `composition_l1_loss`.

    Of a softmax in float32 or more: a weight as small as 1e-38 still has its gradient, a smaller one counts as that.
    """
    _checked(weights, labels)
    right = weights.gather(1, labels.long().clamp(min=0)[:, None])[:, 0]
    balance = pixel_balance(labels, weights.shape[1], bound)
    log = torch.log(right.clamp(min=torch.finfo(right.dtype).tiny))
    return -(balance * log).sum() / (labels >= 0).sum().clamp(min=1)


def dice_loss(weights: Tensor, labels: Tensor) -> Tensor:
    """Return L_Dice, a scalar in [0, 1]: every region that the batch has counts the same; arguments as above."""
    _checked(weights, labels)
    regions = torch.arange(weights.shape[1], device=labels.device, dtype=labels.dtype)
    onehot = labels[:, None] == regions[None, :, None, None]
    inside = torch.where(labels[:, None] >= 0, weights, 0).sum((0, 2, 3))
    areas = onehot.sum((0, 2, 3))
    both = torch.where(onehot, weights, 0).sum((0, 2, 3))
    apart = 1 - 2 * both / (inside + areas).clamp(min=1e-8)
    return torch.where(areas > 0, apart, 0).sum() / (areas > 0).sum().clamp(min=1)
