r"""Which region a channel of the S space belongs to (Eq. 1, Eq. 8).

.. math::

    M_{k,c} = \frac{\sum_{h,w} A_{c,h,w}^2\, U_{k,h,w}}{\sum_{h,w} A_{c,h,w}^2} \tag{1}

with A the activations that channel c scales and U the masks of regions: the part of the channel's energy that lies in region
k. The regions of a partition sum to 1; 1 is "fully contained", 0.5 "as much influence as on the rest" (Eq. 1 leaves the
normalisation to words). Every layer is taken at its own size, where U is

* its mean over areas, for a layer smaller than the masks: the same as resizing A to the masks' size by repetition;
* repeated, for a larger layer.

Both are exact (docs/exact_algebra.md, section 10), and no activation is ever resized.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def energies(activations: Sequence[Tensor], masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the energy of every channel inside every region, and in the whole image: sums of them over images make an M.

    Args:
        activations: (B, c, h, w) a layer, in the order of the S space; sides that divide the masks', or are multiples.
        masks: (B, R, H, H) of regions, 0 to 1.

    Returns:
        (B, R, S) and (B, S) float32, means over positions.

    Raises:
        ValueError: another batch, or a side that does not fit.
    """
    batch, _, side, _ = masks.shape
    inside, whole = [], []
    for number, layer in enumerate(activations):
        own = layer.shape[2]
        if layer.shape[0] != batch or layer.shape[3] != own or max(side, own) % min(side, own):
            raise ValueError(
                f"activations: layer {number}: expected batch {batch} and a side that divides {side}, or a multiple, "
                f"got shape {tuple(layer.shape)}"
            )
        mask = masks
        if own != side:
            mask = F.interpolate(masks, size=(own, own), mode="area" if own < side else "nearest")
        with torch.autocast(layer.device.type, enabled=False):
            squares = layer.float().square().flatten(2).transpose(1, 2)
            inside.append(mask.float().flatten(2) @ squares / (own * own))
            whole.append(squares.mean(1))
    return torch.cat(inside, 2), torch.cat(whole, 1)


def correlation(activations: Sequence[Tensor], masks: Tensor, over_images: bool = False) -> Tensor:
    """Return M (Eq. 1) of every image, (B, R, S), or of all of them together, (R, S); a channel without energy has 0.

    Args:
        activations: see :func:`energies`.
        masks: likewise.
        over_images: N of Eq. 1 is B rather than 1.

    Raises:
        ValueError: see :func:`energies`.
    """
    inside, whole = energies(activations, masks)
    if over_images:
        inside, whole = inside.sum(0, keepdim=True), whole.sum(0, keepdim=True)
    found = inside / whole[:, None].clamp(min=torch.finfo(torch.float32).tiny)
    return found[0] if over_images else found


def channel_weights(correlations: Tensor) -> Tensor:
    """Return w = 2 max(M, 0.5) - 1 (Eq. 8), of any shape: 0 for a channel that is not mainly the region's."""
    return 2 * correlations.clamp(min=0.5) - 1
