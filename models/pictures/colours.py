r"""The colours of one picture given to another: mean and covariance of its RGB values, by the linear map that moves them least.

.. math::

    t(u) = \mu_2 + A (u - \mu_1), \qquad
    A = \Sigma_1^{-1/2} \bigl( \Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2} \bigr)^{1/2} \Sigma_1^{-1/2}

is the optimal transport between the two normal distributions (Monge-Kantorovich; Pitié and Kokaram, "The linear
Monge-Kantorovitch linear colour mapping for example-based colour transfer", CVMP 2007). Of all linear maps that make means and
covariances equal (they differ by a rotation) it has the least mean squared change of colours, so that none changes hue
without need, as whitening and colouring by principal axes may.
"""

from __future__ import annotations

import numpy as np

_LEAST_SHARE = 1e-6  # of the largest variance: axes with less have no colours to stretch, and stay as they are


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def linear_colour_map(image: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return A (3, 3) and b (3,) in float64: `A u + b` has mean and covariance of `reference` for u over `image`.

    Axes along which the image's colours do not vary are not stretched: the covariance there stays zero.

    Args:
        image: (H, W, 3), any real dtype.
        reference: likewise, of any size.

    Raises:
        ValueError: another shape, or a picture without a pixel.
    """
    for name, given in (("image", image), ("reference", reference)):
        if given.ndim != 3 or given.shape[2] != 3 or not given.size:
            raise ValueError(f"{name}: expected (H, W, 3) with pixels, got {given.shape}")
    first, second = (given.reshape(-1, 3).astype(np.float64) for given in (image, reference))
    mean, target = first.mean(0), second.mean(0)
    ours, theirs = (np.cov(values, rowvar=False, bias=True) for values in (first, second))
    values, vectors = np.linalg.eigh(ours)
    varies = values > _LEAST_SHARE * max(float(values[-1]), 1e-12)
    inverse = (vectors * np.where(varies, 1 / np.sqrt(np.where(varies, values, 1)), 0)) @ vectors.T
    root = _root(ours)
    matrix = inverse @ _root(root @ theirs @ root) @ inverse
    return matrix, target - matrix @ mean


def transfer_colours(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return a picture with the mean and covariance of another's colours, but for rounding and clipping to 0 to 255.

    Args:
        image: (H, W, 3) uint8.
        reference: (h, w, 3) uint8.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: another shape or dtype.
    """
    for name, given in (("image", image), ("reference", reference)):
        if given.dtype != np.uint8:
            raise ValueError(f"{name}: expected uint8, got {given.dtype}")
    matrix, shift = linear_colour_map(image, reference)
    found: np.ndarray = (image.astype(np.float64) @ matrix.T + shift).round().clip(0, 255).astype(np.uint8)
    return found
