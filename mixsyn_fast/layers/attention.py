"""Masked spatial-channel attention (MSCA, Sec. 3.2): carry the features of an exemplar over to the layout of a target.

Two factors describe the result ``F1 = sum_k V~_k beta_k``: K gated vectors per image and K maps. A convolution that comes
next does not need F1: :func:`folded_conv2d` runs on the K maps with per-image kernels, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops._common import check_integer, check_tensor, fail
from ..ops.channel_attention_spread import channel_attention_maps, channel_attention_spread
from ..ops.spatial_attention_pool import MAX_MAPS, spatial_attention_pool
from .algebra import low_rank_conv2d, low_rank_kernels


def folded_conv2d(
    values: Tensor,
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    condition: Tensor | None = None,
    joined: Tensor | None = None,
) -> Tensor:
    """Convolution over ``concat(F1, condition)`` with ``F1 = sum_k maps_k values_k``, without F1 (exact).

    The kernel's part on F1 meets a map of rank K: it becomes a convolution of the K maps with the per-image kernels
    ``weight values_k`` (docs/exact_algebra.md, 7). The part on the condition keeps its kernel: one convolution an image, of
    both side by side.

    Args:
        values: (B, K, N), the gated values of :meth:`SpatialChannelAttention.factors`.
        maps: (B, K, H, W), the channel attention maps beta.
        weight: (O, N + M, kh, kw), kh and kw odd; zero padding that keeps the size, stride and dilation 1.
        bias: (O,) or None.
        condition: (B, M, H, W), or None where M is 0.
        joined: (B, K + M, H, W), maps and condition side by side, where several convolutions read them; None: made here.

    Returns:
        (B, O, H, W) in the dtype of ``values``, channels_last as the maps are, differentiable in all arguments.

    Raises:
        ValueError: a shape does not fit; the message names the argument.
    """
    op = "folded_conv2d"
    given = {"values": values, "maps": maps, "weight": weight, "bias": bias, "condition": condition}
    for name, tensor in given.items():
        if tensor is not None or name in ("values", "maps", "weight"):
            check_tensor(op, name, tensor)

    if values.dim() != 3:
        fail(op, "values", "shape (B, K, N)", tuple(values.shape))
    batch, count, features = values.shape
    if maps.dim() != 4 or tuple(maps.shape[:2]) != (batch, count):
        fail(op, "maps", f"shape ({batch}, {count}, H, W)", tuple(maps.shape))
    extra = 0 if condition is None or condition.dim() != 4 else condition.shape[1]
    if condition is not None and tuple(condition.shape) != (batch, extra, *maps.shape[2:]):
        fail(op, "condition", f"shape ({batch}, M, {maps.shape[2]}, {maps.shape[3]})", tuple(condition.shape))
    if weight.dim() != 4 or weight.shape[1] != features + extra:
        fail(op, "weight", f"shape (O, {features + extra}, kh, kw)", tuple(weight.shape))
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        fail(op, "weight", "an odd kernel", tuple(weight.shape[2:]))
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        fail(op, "bias", f"shape ({weight.shape[0]},)", tuple(bias.shape))
    dtype = values.dtype
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if condition is None or batch == 0 or maps.shape[2] * maps.shape[3] == 0:
        y = low_rank_conv2d(values, maps, weight[:, :features])
        return y if bias is None else y + bias[:, None, None]
    if joined is None:
        joined = torch.cat((maps.to(dtype), condition.to(dtype)), 1)
    elif joined.shape != (batch, count + extra, *maps.shape[2:]):
        fail(op, "joined", f"shape {(batch, count + extra, *maps.shape[2:])}", tuple(joined.shape))
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    images = [
        F.conv2d(joined[b : b + 1].to(dtype), torch.cat((own, weight[:, features:]), 1), bias, padding=padding)
        for b, own in enumerate(low_rank_kernels(values, weight[:, :features]))
    ]
    return torch.cat(images) if batch > 1 else images[0]


class Gathered(NamedTuple):
    """What an exemplar gives to any target: all that a new label map does not change."""

    values: Tensor
    """(B, K, N): V of Eq. 5."""
    condition_mean: Tensor
    """(B, M2): gap(F_c2) of Eq. 6."""


class Target(NamedTuple):
    """What a label map asks of any exemplar."""

    condition: Tensor
    """(B, M1, H, W): F_c1."""
    maps: Tensor
    """(B, K, H, W): beta of Eq. 7."""
    condition_mean: Tensor
    """(B, M1): gap(F_c1) of Eq. 6."""


class FeatureMask(nn.Sequential):
    """Feature masking (MSCA, Eq. 6): ``sigmoid(mlp([gap(F_c1), gap(F_c2)]))``, a gate for each of K vectors.

    The module is the MLP, without its sigmoid.

    Args:
        condition_channels: M2, channels of the exemplar's label features.
        target_channels: M1, channels of the target's label features.
        maps: K.
        hidden: units of the hidden layer; None for a quarter of M1 + M2, at least K.
    """

    def __init__(self, condition_channels: int, target_channels: int, maps: int, hidden: int | None = None) -> None:
        both = condition_channels + target_channels
        hidden = max(maps, both // 4) if hidden is None else check_integer("FeatureMask", "hidden", hidden, 1, None)
        super().__init__(nn.Linear(both, hidden), nn.ReLU(), nn.Linear(hidden, maps))

    def gates(self, condition_mean: Tensor, target_mean: Tensor) -> Tensor:
        """Return the gates (B, K) in (0, 1).

        Args:
            condition_mean: gap(F_c2), (B, M2).
            target_mean: gap(F_c1), (B, M1).
        """
        dtype = next(self.parameters()).dtype
        return torch.sigmoid(self(torch.cat((target_mean.to(dtype), condition_mean.to(dtype)), 1)))


def gate_values(gathered: Gathered, gate: FeatureMask | None, target_mean: Tensor) -> Tensor:
    """Return V~ of Eq. 6, (B, K, N): the gated values, all that depends on exemplar and target both.

    Args:
        gathered: the exemplar's half, one image per target.
        gate: feature masking, or None for none: V itself.
        target_mean: gap(F_c1), (B, M1).

    Raises:
        ValueError: the batches differ.
    """
    values, mean = gathered
    if target_mean.shape[0] != values.shape[0]:
        raise ValueError(f"target_condition: expected batch {values.shape[0]} as features, got {target_mean.shape[0]}")
    return values if gate is None else values * gate.gates(mean, target_mean)[:, :, None].to(values.dtype)


class SpatialChannelAttention(nn.Module):
    """Masked spatial-channel attention (MSCA, Eq. 4 to 8).

    * Eq. 4, 5: K attention maps over the positions of the exemplar, from its image features F_x2 and label features F_c2,
      and the sums V of F_x2 under them.
    * Eq. 6: a gate in (0, 1) for each of the K vectors, ``sigmoid(mlp([gap(F_c1), gap(F_c2)]))``. The paper multiplies "V
      with a length-K gating vector at each row": read as one factor per region, the row of V transposed, so that regions
      with no counterpart in the target are left out whole. Where it is silent: one ReLU between the two layers of the MLP,
      and ``hidden`` units there.
    * Eq. 7, 8: K channel attention maps at every position of the target from its label features F_c1, and the mixture of
      the gated vectors.

    Neither phi (Eq. 4) nor psi (Eq. 7) has a bias, as in the paper. In the softmax over positions a bias per map would
    cancel; in the softmax over channels it would not.

    The exemplar's half (:meth:`gather`) and the target's half (:meth:`target`) know nothing of each other, and serve any
    number of pairs; what is left for a pair is the gate (:func:`gate_values`).

    Args:
        features: N, channels of the exemplar's image features.
        condition_channels: M2, channels of the exemplar's label features.
        target_channels: M1, channels of the target's label features; None for M2.
        maps: K, 1 to 64. The paper finds 8 enough.
        hidden: units of the gate's hidden layer; None for a quarter of M1 + M2, at least K.
        masking: False: no gate (the paper's ablation "w/o fm").

    Attributes:
        spatial_weight: phi, (K, N + M2): the part on F_x2, then the part on F_c2.
        channel_weight: psi, (K, M1).
        gate: feature masking; None without.

    Raises:
        ValueError: a number out of range.
    """

    gate: FeatureMask | None

    def __init__(
        self,
        features: int,
        condition_channels: int,
        target_channels: int | None = None,
        *,
        maps: int = 8,
        hidden: int | None = None,
        masking: bool = True,
    ) -> None:
        super().__init__()
        target_channels = condition_channels if target_channels is None else target_channels
        own = "SpatialChannelAttention"
        maps = check_integer(own, "maps", maps, 1, MAX_MAPS)
        features = check_integer(own, "features", features, 1, None)
        condition_channels = check_integer(own, "condition_channels", condition_channels, 1, None)
        target_channels = check_integer(own, "target_channels", target_channels, 1, None)
        self.features, self.condition_channels, self.target_channels = features, condition_channels, target_channels
        self.spatial_weight = nn.Parameter(torch.empty(maps, features + condition_channels))
        self.channel_weight = nn.Parameter(torch.empty(maps, target_channels))
        self.gate = FeatureMask(condition_channels, target_channels, maps, hidden) if masking else None
        for weight in (self.spatial_weight, self.channel_weight):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # what a 1x1 convolution starts from

    def extra_repr(self) -> str:
        """Return the numbers of channels and maps."""
        gate = "masking=False" if self.gate is None else f"hidden={self.gate[0].out_features}"
        return (
            f"{self.features}, {self.condition_channels}, {self.target_channels}, "
            f"maps={self.spatial_weight.shape[0]}, {gate}"
        )

    def _check(self, name: str, tensor: Tensor, channels: int) -> None:
        check_tensor("SpatialChannelAttention", name, tensor)
        if tensor.dim() != 4 or tensor.shape[1] != channels:
            raise ValueError(
                f"SpatialChannelAttention: {name}: expected shape (B, {channels}, H, W), got {tuple(tensor.shape)}"
            )

    def _spatial_weights(self, features: Tensor, compress: Tensor | None) -> tuple[Tensor, Tensor]:
        """Phi on the features as they are given, and on the label features."""
        weight_features, weight_condition = self.spatial_weight.split((self.features, self.condition_channels), 1)
        if compress is None:
            self._check("features", features, self.features)
            return weight_features, weight_condition
        if compress.dim() != 2 or compress.shape[0] != self.features:
            fail("SpatialChannelAttention", "compress", f"shape ({self.features}, C)", tuple(compress.shape))
        self._check("features", features, compress.shape[1])
        return weight_features @ compress, weight_condition

    def _gather(
        self,
        features: Tensor,
        condition: Tensor,
        compress: Tensor | None,
        mask: Tensor | None,
        return_maps: bool,
    ) -> tuple[Gathered, Tensor]:
        """V and the mean of Eq. 6, and, where asked for, alpha."""
        weight_features, weight_condition = self._spatial_weights(features, compress)
        self._check("condition", condition, self.condition_channels)
        values, condition_mean, alpha = spatial_attention_pool(
            features, condition, weight_features, weight_condition, mask=mask, return_maps=return_maps
        )
        if compress is not None:
            values = F.linear(values, compress.to(values.dtype))
        return Gathered(values, condition_mean), alpha

    def gather(
        self,
        features: Tensor,
        condition: Tensor,
        *,
        compress: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Gathered:
        """Return the exemplar's half (Eq. 4, 5): nothing of it depends on the target.

        Args:
            features: F_x2, (B, N, h, w); with ``compress`` (B, C, h, w).
            condition: F_c2, (B, M2, h, w).
            compress: (N, C), the 1x1 convolution of Eq. 1, ``F_x2 = compress features``, or None. F_x2 itself is never made:
                the convolution goes into phi, and is applied to the K sums (docs/exact_algebra.md, 7).
            mask: (B, h, w) bool or uint8: positions of the exemplar that may be attended to; None for all.

        Raises:
            ValueError: a shape does not fit.
        """
        return self._gather(features, condition, compress, mask, False)[0]

    def spatial_maps(
        self,
        features: Tensor,
        condition: Tensor,
        *,
        compress: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return alpha (Eq. 4), (B, K, h, w) in the dtype of ``features``, for pictures; arguments as :meth:`gather`."""
        return self._gather(features, condition, compress, mask, True)[1]

    def log_mass(
        self,
        features: Tensor,
        condition: Tensor,
        *,
        compress: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the log-sum-exp of Eq. 4's logits over the exemplar's positions, (B, K) in float32 or float64.

        By it the sums over the positions of several exemplars become those over all of them (:func:`join_gathered`).
        Arguments as :meth:`gather`; an exemplar without a position that may be attended to has -inf.
        """
        weight_features, weight_condition = self._spatial_weights(features, compress)
        self._check("condition", condition, self.condition_channels)
        wide = torch.promote_types(features.dtype, torch.float32)
        logits = torch.einsum("kn,bnhw->bkhw", weight_features.to(wide), features.to(wide))
        logits = logits + torch.einsum("km,bmhw->bkhw", weight_condition.to(wide), condition.to(wide))
        if mask is not None:
            logits = logits.masked_fill(~mask.to(torch.bool)[:, None], -torch.inf)
        return torch.logsumexp(logits.flatten(2), 2)

    def target(self, condition: Tensor) -> Target:
        """Return the target's half (Eq. 7): nothing of it depends on the exemplar.

        Args:
            condition: F_c1, (B, M1, H, W), any size.

        Raises:
            ValueError: the shape does not fit.
        """
        self._check("target_condition", condition, self.target_channels)
        return Target(condition, channel_attention_maps(condition, self.channel_weight), condition.mean((2, 3)))

    def factors(
        self, features: Tensor, condition: Tensor, target_condition: Tensor, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the two factors of the result, for a convolution that follows (:func:`folded_conv2d`).

        Args:
            features: as in :meth:`forward`.
            condition: as in :meth:`forward`.
            target_condition: as in :meth:`forward`.
            mask: as in :meth:`forward`.

        Returns:
            the gated values V~ (B, K, N) in the dtype of ``features`` and the channel attention maps beta (B, K, H, W) in
            that of ``target_condition``: the result of :meth:`forward` is ``sum_k V~_k beta_k``.

        Raises:
            ValueError: a shape does not fit.
        """
        gathered = self.gather(features, condition, mask=mask)
        target = self.target(target_condition)
        return gate_values(gathered, self.gate, target.condition_mean), target.maps

    def forward(
        self,
        features: Tensor,
        condition: Tensor,
        target_condition: Tensor,
        *,
        mask: Tensor | None = None,
        return_maps: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Features of the exemplar in the layout of the target.

        Args:
            features: F_x2, (B, N, h, w).
            condition: F_c2, (B, M2, h, w).
            target_condition: F_c1, (B, M1, H, W), any size.
            mask: (B, h, w) bool or uint8: positions of the exemplar that may be attended to; None for all.
            return_maps: return the attention maps too, for pictures.

        Returns:
            (B, N, H, W) in dtype and memory layout of ``target_condition``; with ``return_maps`` also alpha (B, K, h, w) and
            beta (B, K, H, W).

        Raises:
            ValueError: a shape does not fit.
        """
        gathered, alpha = self._gather(features, condition, None, mask, return_maps)
        self._check("target_condition", target_condition, self.target_channels)
        values = gate_values(gathered, self.gate, target_condition.mean((2, 3)))
        result = channel_attention_spread(values, target_condition, self.channel_weight)
        if not return_maps:
            return result
        return result, alpha, channel_attention_maps(target_condition, self.channel_weight)


def join_gathered(gathered: Sequence[Gathered], log_masses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the values of several exemplars as if they were one, each weighed (MSCA, Sec. 4, "Interpolation").

    The paper adds a logarithm of the weight to the logits of Eq. 4 and lays the exemplars' positions side by side; the
    softmax over all of them is that of every exemplar alone, weighed by ``weight * exp(log_mass)``.

    Args:
        gathered: J exemplars' halves, (B, K, N) values each.
        log_masses: (B, K) each, of :meth:`SpatialChannelAttention.log_mass`.
        weights: J numbers, not negative, not all 0. One with weight 0 takes no part: with a single one left the values are
            its own, bit for bit.

    Returns:
        (B, K, N) in the dtype of the first values.

    Raises:
        ValueError: numbers of exemplars, masses and weights differ, or the weights are out of range.
    """
    if not len(gathered) == len(log_masses) == len(weights) or not gathered:
        counts = f"{len(gathered)}, {len(log_masses)} and {len(weights)}"
        raise ValueError(f"weights: expected one for each exemplar and its mass, got {counts}")
    if not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
        raise ValueError(f"weights: expected numbers that are not negative, and one above 0; got {tuple(weights)}")
    used = [i for i, weight in enumerate(weights) if weight > 0]
    if len(used) == 1:
        return gathered[used[0]].values
    shares = torch.softmax(torch.stack([log_masses[i] + math.log(weights[i]) for i in used]), 0)
    values = torch.stack([gathered[i].values for i in used])
    return (values * shares[..., None].to(values.dtype)).sum(0)
