r"""Kullback-Leibler divergence of a diagonal Gaussian from N(0, 1) (Kingma, Welling: VAE, 2014, appendix B).

.. math::

    L_{KLD} = -\tfrac12 \sum_j \bigl(1 + \log \sigma_j^2 - \mu_j^2 - \sigma_j^2\bigr)

summed over the code, averaged over images, so that it does not depend on how a batch is split over processes. The published
code of SPADE sums over the images of one GPU as well (four of them): its weight 0.05 is 0.2 here.
"""

from __future__ import annotations

from torch import Tensor


def kld_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence per image, averaged over images, a scalar.

    Args:
        mean: (B, ...).
        log_variance: the same shape: the logarithm of sigma squared.

    Raises:
        ValueError: the shapes differ.
    """
    if mean.shape != log_variance.shape or mean.dim() < 1:
        raise ValueError(f"log_variance: expected shape {tuple(mean.shape)} as mean, got {tuple(log_variance.shape)}")
    mean, log_variance = (t.float() if t.dtype.itemsize < 4 else t for t in (mean, log_variance))
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum() / max(mean.shape[0], 1)
