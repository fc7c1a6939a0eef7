r"""Path length regularisation (Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020, Eq. 4).

.. math::

    E_{w,\, y \sim N(0, I)} \bigl( \lVert J_w^T y \rVert_2 - a \bigr)^2, \qquad J_w = \partial g(w) / \partial w

a is the running mean of the lengths. A step of one size in w then changes the image by one size, wherever it starts and
wherever it leads. :math:`J_w^T y` is the gradient of the sum of g(w) y, so no Jacobian is formed. Lazy regularisation: every
n-th step, n times as strong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def path_lengths(image: Tensor, w: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return each image's length, which can be differentiated by the generator's parameters (double backward).

    y is divided by sqrt(H W), so that lengths hardly depend on the image's size. Every op from w to the image must have a
    second derivative.

    Args:
        image: (B, C, H, W), made from w with gradients on.
        w: (B, L, D), one code a layer, or (B, D): what the image was made from; it requires gradients.
        generator: of y, on the image's device; None takes torch's own.

    Returns:
        (B,), at least float32: the root of the mean over layers of the squared norm of the gradient by a layer's code.

    Raises:
        ValueError: other shapes, another batch, or an image that does not depend on w.
    """
    if image.dim() != 4:
        raise ValueError(f"image: expected (B, C, H, W), got {tuple(image.shape)}")
    if w.dim() not in (2, 3) or len(w) != len(image):
        raise ValueError(f"w: expected (B, L, D) or (B, D) of {len(image)} images, got {tuple(w.shape)}")
    if not w.requires_grad:
        raise ValueError("w: expected codes that require gradients, and the image made from them")
    wide = image if image.dtype.itemsize >= 4 else image.float()
    y = torch.randn(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype)
    projected = (wide * y).sum() / math.sqrt(image.shape[2] * image.shape[3])
    # images do not see each other, so the gradient of the sum is each one's own
    found = torch.autograd.grad(projected, w, create_graph=True, allow_unused=True) if projected.requires_grad else (None,)
    if (gradient := found[0]) is None:
        raise ValueError("image: expected one that depends on w, got one that does not")
    gradient = gradient if gradient.dtype.itemsize >= 4 else gradient.float()
    layers = w.shape[1] if w.dim() == 3 else 1
    # a norm, whose gradient is 0 where it is 0: the root of a sum of squares has none there
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return norms / math.sqrt(layers)


def path_length_penalty(lengths: Tensor, mean: float | Tensor, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """Move the running mean towards the batch's lengths, and return the penalty against it.

    Args:
        lengths: (B,), see `path_lengths`.
        mean: the running mean a before this step, 0 at the start of a training; no gradient goes to it.
        decay: how far it moves, 0 to 1.

    Returns:
        the mean of (length - a)^2, a scalar; and the a that it was taken against, a tensor of no dimension, to be handed in
        at the next time. With several processes the caller may average that over them.

    Raises:
        ValueError: no lengths, or a decay outside [0, 1].
    """
    if lengths.dim() != 1 or not len(lengths):
        raise ValueError(f"lengths: expected (B,) of at least one image, got {tuple(lengths.shape)}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected 0 to 1, got {decay}")
    before = mean.detach() if isinstance(mean, Tensor) else mean
    after = before + decay * (lengths.detach().mean() - before)
    return (lengths - after).square().mean(), after
