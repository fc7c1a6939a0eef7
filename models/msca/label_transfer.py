r"""Which labels of an exemplar the attention hands to which labels of a target (Appendix B, Fig. 10 and 12).

The paper carries the exemplar's one-hot label map over in place of its features (Eq. 5, 6, 8) and compares the result with
the target's label map. With c_2, c_1 the label maps, label l reaches position p as

.. math::

    T_l[p] = \sum_k g_k\, m_{kl}\, \beta_k[p], \qquad m_{kl} = \sum_{q:\, c_2(q) = l} \alpha_k[q]

and what the positions of label t receive of it, as a share of all positions, is

.. math::

    S_{lt} = \frac{1}{HW} \sum_{p:\, c_1(p) = t} T_l[p] = \sum_k g_k\, m_{kl}\, n_{kt}, \qquad
    n_{kt} = \frac{1}{HW} \sum_{p:\, c_1(p) = t} \beta_k[p]

so neither one-hot map nor T is made: both attentions are summed over every label, each picture once for all pairs it is in.
The gates g belong to the module (Eq. 6) and are part of it; the rows are normalised, so what they shut out does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast import masked_roi_pool
from mixsyn_fast.layers.attention import FeatureMask
from mixsyn_fast.region_map import RegionMap

from .networks import Alignment


def label_masses(maps: Tensor, regions: RegionMap) -> Tensor:
    """Return the sum of every map over the positions of every label, (B, K, L) in the maps' dtype.

    Args:
        maps: (B, K, h, w) floating.
        regions: B label maps of L labels, of any size; positions without a label are in no sum.
    """
    means, _ = masked_roi_pool(maps, regions, mode="mean")  # (B, L, K)
    areas = regions.areas((maps.shape[2], maps.shape[3])).to(means.dtype)
    return (means * areas[:, :, None]).transpose(1, 2)


@dataclass(frozen=True)
class Carried:
    """One picture at one scale, as exemplar and as target. K maps, L labels, M label features; float64 on the CPU."""

    given: Tensor
    """(K, L): m, the mass of alpha on every label."""
    taken: Tensor
    """(K, L): n, the share of all positions that beta is, label by label."""
    shares: Tensor
    """(L,): share of all positions that every label has."""
    condition_mean: Tensor
    """(M,): gap(F_c) of Eq. 6, the same in both roles."""


@torch.no_grad()
def carried(alignment: Alignment, features: Sequence[Tensor], regions: RegionMap, scale: int = 0) -> Carried:
    """Return what one picture gives and takes at a scale.

    Args:
        alignment: the networks.
        features: (1, C_i, h, w) of scales 0 to 4, of the picture.
        regions: its label map.
        scale: 0 (the finest) to 4.
    """
    regions = alignment.region_map(regions)
    size = (features[0].shape[2], features[0].shape[3])
    alpha = alignment.spatial_maps(features, regions)[scale]
    target = alignment.layout(regions, size).targets[scale]
    height, width = target.maps.shape[2:]
    parts = (
        label_masses(alpha, regions)[0],
        label_masses(target.maps, regions)[0] / (height * width),
        regions.areas((height, width))[0] / (height * width),
        target.condition_mean[0],
    )
    return Carried(*(part.double().cpu() for part in parts))


@dataclass(frozen=True, eq=False)
class Transfer:
    """The matrix over all pairs of pictures. L labels."""

    sums: np.ndarray
    """(L, L) float64: S, row the exemplar's label, column the target's, summed over the pairs."""
    even: np.ndarray
    """(L, L) float64: the same for the mean over all positions in place of the attention (global average pooling)."""
    shares: np.ndarray
    """(L,) float64: mean share of the pictures' positions that every label has."""
    pairs: int
    """Ordered pairs of different pictures."""

    @property
    def ratios(self) -> np.ndarray:
        """(L, L): of what a label of the exemplars hands over, the share that every label of the targets receives.

        Rows sum to one; NaN for a label that no exemplar has.
        """
        return _rows(self.sums)

    @property
    def lift(self) -> np.ndarray:
        """(L, L): the ratios over those of global average pooling: 1 where the attention has no preference.

        NaN where the two labels never meet.
        """
        ours, theirs = self.ratios, _rows(self.even)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(theirs > 0, ours / theirs, np.nan)

    def frequent(self, count: int) -> list[int]:
        """Return the `count` labels with most pixels that some exemplar hands over, the most frequent first."""
        has = (self.shares > 0) & (self.sums.sum(1) > 0)
        order = np.argsort(-self.shares, kind="stable")
        return [int(label) for label in order if has[label]][:count]

    def feature_vectors(self, labels: Sequence[int]) -> np.ndarray:
        """Return what the labels are clustered by (Fig. 12), (n, n): their ratios, the diagonal at its row's second largest.

        Raises:
            ValueError: fewer than two labels, or one that no exemplar has.
        """
        if len(labels) < 2:
            raise ValueError(f"labels: expected at least two to compare, got {len(labels)}")
        rows: np.ndarray = self.ratios[np.ix_(labels, labels)].copy()
        if np.isnan(rows).any():
            raise ValueError("labels: expected labels that some exemplar has, got others")
        np.fill_diagonal(rows, np.sort(rows, 1)[:, -2])
        return rows


def _rows(matrix: np.ndarray) -> np.ndarray:
    total = matrix.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, matrix / total, np.nan)


@torch.no_grad()
def transfer_of(pictures: Sequence[Carried], gate: FeatureMask | None = None) -> Transfer:
    """Return the matrix over all ordered pairs of different pictures.

    Args:
        pictures: N of them.
        gate: feature masking of the scale; None: V is carried over as it is (a model without, or to look past it).

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(pictures) < 2:
        raise ValueError(f"pictures: expected at least two, an exemplar and a target, got {len(pictures)}")
    taken = torch.stack([each.taken for each in pictures])
    means = torch.stack([each.condition_mean for each in pictures])
    shares = torch.stack([each.shares for each in pictures])
    sums = torch.zeros(taken.shape[2], taken.shape[2], dtype=torch.float64)
    for i, exemplar in enumerate(pictures):
        weights = torch.ones(len(pictures), taken.shape[1], dtype=torch.float64)
        if gate is not None:
            device = next(gate.parameters()).device
            theirs = exemplar.condition_mean.expand_as(means)
            weights = gate.gates(theirs.to(device), means.to(device)).double().cpu()
        weights[i] = 0  # a picture is not its own exemplar
        sums += exemplar.given.T @ torch.einsum("jk,jkt->kt", weights, taken)
    even = torch.outer(shares.sum(0), shares.sum(0)) - shares.T @ shares
    count = len(pictures)
    # the difference of two sums leaves rounding where labels never meet
    met = torch.outer((shares > 0).sum(0), (shares > 0).sum(0)) - (shares > 0).double().T @ (shares > 0).double()
    even = torch.where(met > 0, even, 0)
    return Transfer(sums.numpy(), even.numpy(), shares.mean(0).numpy(), count * (count - 1))
