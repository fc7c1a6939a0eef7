r"""Feature matching loss (Wang et al.: pix2pixHD, CVPR 2018, Eq. 4; SPADE weighs it with 10).

.. math::

    L_{FM} = \frac1S \sum_{s=1}^{S} \sum_{i=1}^{T} \frac{1}{N_i} \lVert D_s^{(i)}(x) - D_s^{(i)}(G) \rVert_1

over the S scales and the T layers of each discriminator before its logits, N_i elements each.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .l1 import masked_l1_loss

Features = Sequence[Sequence[Tensor]]


def feature_matching_loss(real: Features, fake: Features, mask: Tensor | None = None) -> Tensor:
    """Return L_FM, a scalar. No gradient goes to the real features.

    Args:
        real: list over scales of lists of features; the last of each list, the logits, is not compared.
        fake: likewise, of the same shapes.
        mask: (B, 1, H, W) weights of the images' pixels (:func:`masked_l1_loss`); None: all are 1.

    Raises:
        ValueError: numbers of scales or of features, or shapes, differ; or a scale has only logits.
    """
    if len(real) != len(fake) or not real:
        raise ValueError(f"fake: expected features of {len(real) or 'at least one'} scales, got {len(fake)}")
    total: Tensor | float = 0.0
    for scale, (ours, theirs) in enumerate(zip(fake, real, strict=True)):
        if len(ours) != len(theirs) or len(ours) < 2:
            expected = max(len(theirs), 2)
            raise ValueError(f"fake: expected {expected} features with the logits at scale {scale}, got {len(ours)}")
        for i, (ours_i, theirs_i) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
            if ours_i.shape != theirs_i.shape:
                got = f"{tuple(ours_i.shape)}"
                raise ValueError(f"fake: feature {i} of scale {scale}: expected shape {tuple(theirs_i.shape)}, got {got}")
            total = total + masked_l1_loss(ours_i, theirs_i.detach(), mask)
    assert isinstance(total, Tensor)
    return total / len(real)
