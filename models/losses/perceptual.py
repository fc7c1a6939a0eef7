r"""Perceptual loss (Johnson, Alahi, Fei-Fei, ECCV 2016; in the form of pix2pixHD and SPADE, which weigh it with 10).

.. math::

    L_{VGG} = \sum_{i=1}^{5} w_i\, \frac{1}{N_i} \lVert F_i(x) - F_i(G) \rVert_1,
    \qquad w = (\tfrac1{32}, \tfrac1{16}, \tfrac18, \tfrac14, 1)

F_i being VGG's activations relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, N_i elements each. The network brings images to
the range it was trained on; the published code feeds it [-1, 1] as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..feature_networks import PERCEPTUAL_TAPS, FeatureNetwork

WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class PerceptualLoss(nn.Module):
    """L_VGG of two batches of images.

    Args:
        network: a frozen VGG-19 or VGG-16 (:func:`mixsyn_fast.models.feature_networks.load_feature_network`).
        taps: activations to compare.
        weights: one for each tap.

    Raises:
        ValueError: the network has no such tap, or taps and weights differ in number.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        taps: Sequence[str] = PERCEPTUAL_TAPS,
        weights: Sequence[float] = WEIGHTS,
    ) -> None:
        super().__init__()
        missing = [tap for tap in taps if tap not in network.taps]
        if missing:
            raise ValueError(f"taps: expected some of {', '.join(network.taps)} ({network.kind}), got {', '.join(missing)}")
        if len(weights) != len(taps) or not taps:
            raise ValueError(f"weights: expected {len(taps) or 'at least one'}, one for each tap, got {len(weights)}")
        self.network, self.taps, self.weights = network, tuple(taps), tuple(weights)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            fake: (B, 3, H, W) in [-1, 1]; gradients reach it.
            real: likewise; no gradient.

        Raises:
            ValueError: the shapes differ, or the images are too small for the deepest tap.
        """
        if fake.shape != real.shape:
            raise ValueError(f"fake: expected shape {tuple(real.shape)} as real, got {tuple(fake.shape)}")
        with torch.no_grad():
            targets = self.network(real, self.taps)
        features = self.network(fake, self.taps)
        terms = [w * F.l1_loss(f, t) for w, f, t in zip(self.weights, features, targets, strict=True)]
        return torch.stack(terms).sum()
