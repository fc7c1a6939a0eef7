r"""Path length regularisation (Karras et al.: StyleGAN2, CVPR 2020, Eq. 4).

.. math::

    E_{w,\, y \sim N(0, I)} \bigl( \lVert J_w^T y \rVert_2 - a \bigr)^2, \qquad J_w = \partial g(w) / \partial w
"""

from __future__ import annotations

import torch
from torch import Tensor


def path_length_penalty(image: Tensor, w: Tensor, mean: Tensor, *, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return the penalty, a scalar, and the next mean a."""
    noise = torch.randn_like(image) / (image.shape[2] * image.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((image * noise).sum(), w, create_graph=True)
    lengths = gradient.float().square().sum(2).mean(1).sqrt()
    mean = torch.lerp(mean.to(lengths.device), lengths.detach().mean(), decay)
    return (lengths - mean).square().mean(), mean
