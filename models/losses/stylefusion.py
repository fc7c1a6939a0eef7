r"""StyleFusion's losses ("StyleFusion: A Generative Model for Disentangling Spatial Segments", Sec. 4.4).

Soft masks m_1, m_2 of two regions; s the fused code and I its image; everything is averaged over images.

.. math::

    L_{mask} = \frac{\lVert m_1(I) - m_1(I_{align}) \rVert_1 + \lVert m_2(I) - m_2(I_{align}) \rVert_1}
                    {\lVert m_1(I_{align}) + m_2(I_{align}) \rVert_1} \tag{3}

    \tilde s_i = s_i + \varepsilon\,(s_{rnd} - s_i) \tag{4}

    L_{local} = \frac{\lVert m_2(I) (I - I_{\tilde 1}) \rVert_2}{\lVert m_2(I) \rVert_1}
              + \frac{\lVert m_1(I) (I - I_{\tilde 2}) \rVert_2}{\lVert m_1(I) \rVert_1} \tag{5}

    L_{alignReg} = \lVert q_{align} \rVert_1 \tag{6}

    L_{fusion} = \lVert w_{R_1} \odot (s - s_1) \rVert_2 + \lVert w_{R_2} \odot (s - s_2) \rVert_2 \tag{7}

Norms are sums over pixels, channels of the image or channels of the S space, as written: their size depends on the size of
image and code, and the paper's coefficients belong to its own. A mask of less than one pixel counts as one pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_loss(masks: Tensor, target: Tensor) -> Tensor:
    """Return L_mask (Eq. 3), a scalar.

    Args:
        masks: (B, 2, H, W) of the two regions in the image.
        target: the same shape, of the image that decides the layout; no gradient goes there.

    Raises:
        ValueError: other shapes.
    """
    if masks.shape != target.shape or masks.dim() != 4 or masks.shape[1] != 2:
        raise ValueError(f"masks: expected shape (B, 2, H, W) = {tuple(target.shape)} as target, got {tuple(masks.shape)}")
    target = target.detach()
    return ((masks - target).abs().sum((1, 2, 3)) / target.sum((1, 2, 3)).clamp(min=1)).mean()


def perturbed(code: Tensor, random: Tensor, strength: float = 0.1) -> Tensor:
    """Return a code moved a little towards a random one (Eq. 4), (B, S) as both."""
    return torch.lerp(code, random, strength)


def localization_loss(image: Tensor, first: Tensor, second: Tensor, masks: Tensor, *, rms: bool = False) -> Tensor:
    """Return both terms of L_local (Eq. 5), (2,): of the region that should not have changed, so that each has a weight.

    Args:
        image: (B, 3, H, W), I.
        first: the same shape: the image when the first region's code was perturbed.
        second: the same shape: the image when the second region's code was.
        masks: (B, 2, H, W) of the two regions in `image`; no gradient goes there, for a mask could shrink instead.
        rms: divide by the root of the mask's size: the root mean square over the region, of the same size for every size of
            image, where Eq. 5 falls with the side.

    Returns:
        the term of mask m_1, what the second code changed in the first region, and that of mask m_2.

    Raises:
        ValueError: other shapes.
    """
    for name, value in (("first", first), ("second", second)):
        if value.shape != image.shape:
            raise ValueError(f"{name}: expected shape {tuple(image.shape)} as image, got {tuple(value.shape)}")
    if masks.shape != (image.shape[0], 2, *image.shape[2:]):
        expected = (image.shape[0], 2, *image.shape[2:])
        raise ValueError(f"masks: expected shape {expected}, got {tuple(masks.shape)}")
    masks = masks.detach()
    apart = torch.stack((image - second, image - first), 1) * masks[:, :, None]
    sizes = masks.sum((2, 3)).clamp(min=1)
    terms: Tensor = torch.linalg.vector_norm(apart, dim=(2, 3, 4)) / (sizes.sqrt() if rms else sizes)
    return terms.mean(0)


def align_regularization(q_align: Tensor) -> Tensor:
    """Return L_alignReg (Eq. 6), a scalar: the sum of q over channels, of an alignment (B, S)."""
    return q_align.abs().sum(1).mean()


def fusion_loss(codes: tuple[Tensor, Tensor], sources: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> Tensor:
    """Return both terms of L_fusion (Eq. 7), (2,).

    Args:
        codes: for each region the code that must have what is the region's, (B, S): twice the fused one, or both aligned.
        sources: s_1 and s_2, (B, S).
        weights: w of each region, of the image of its source (Eq. 8), (B, S); no gradient goes there.

    Raises:
        ValueError: other shapes.
    """
    terms = []
    for i, (code, source, weight) in enumerate(zip(codes, sources, weights, strict=True)):
        if not code.shape == source.shape == weight.shape or code.dim() != 2:
            shapes = ", ".join(str(tuple(t.shape)) for t in (code, source, weight))
            raise ValueError(f"codes[{i}], sources[{i}], weights[{i}]: expected one shape (B, S), got {shapes}")
        terms.append(torch.linalg.vector_norm(weight.detach() * (code - source), dim=1).mean())
    return torch.stack(terms)
