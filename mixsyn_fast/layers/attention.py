"""Masked spatial-channel attention (MSCA, Sec. 3.2): carry the features of an exemplar over to the layout of a target.

Two factors describe the result ``F1 = sum_k V~_k beta_k``: K gated vectors per image and K maps. A convolution that comes
next does not need F1: :func:`folded_conv2d` runs on the K maps with per-image kernels, exactly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops._common import check_integer, check_tensor, fail
from ..ops.channel_attention_spread import channel_attention_maps, channel_attention_spread
from ..ops.spatial_attention_pool import MAX_MAPS, spatial_attention_pool
from .algebra import low_rank_conv2d


def folded_conv2d(
    values: Tensor, maps: Tensor, weight: Tensor, bias: Tensor | None = None, *, condition: Tensor | None = None
) -> Tensor:
    """Convolution over ``concat(F1, condition)`` with ``F1 = sum_k maps_k values_k``, without F1 (exact).

    The kernel's part on F1 meets a map of rank K: it becomes a convolution of the K maps with the per-image kernels
    ``weight values_k`` (docs/exact_algebra.md, 7). The part on the condition stays a plain convolution.

    Args:
        values: (B, K, N), the gated values of :meth:`SpatialChannelAttention.factors`.
        maps: (B, K, H, W), the channel attention maps beta.
        weight: (O, N + M, kh, kw), kh and kw odd; zero padding that keeps the size, stride and dilation 1.
        bias: (O,) or None.
        condition: (B, M, H, W), or None where M is 0.

    Returns:
        (B, O, H, W) in the dtype of ``values``, differentiable in all arguments.

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
    y = low_rank_conv2d(values, maps, weight[:, :features])
    if condition is None:
        return y if bias is None else y + bias[:, None, None]
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return y + F.conv2d(condition.to(dtype), weight[:, features:], bias, padding=padding)


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

    Args:
        features: N, channels of the exemplar's image features.
        condition_channels: M2, channels of the exemplar's label features.
        target_channels: M1, channels of the target's label features; None for M2.
        maps: K, 1 to 64. The paper finds 8 enough.
        hidden: units of the gate's hidden layer; None for a quarter of M1 + M2, at least K.

    Attributes:
        spatial_weight: phi, (K, N + M2): the part on F_x2, then the part on F_c2.
        channel_weight: psi, (K, M1).
        gate: the MLP, without its sigmoid.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        features: int,
        condition_channels: int,
        target_channels: int | None = None,
        *,
        maps: int = 8,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        target_channels = condition_channels if target_channels is None else target_channels
        own = "SpatialChannelAttention"
        maps = check_integer(own, "maps", maps, 1, MAX_MAPS)
        features = check_integer(own, "features", features, 1, None)
        condition_channels = check_integer(own, "condition_channels", condition_channels, 1, None)
        target_channels = check_integer(own, "target_channels", target_channels, 1, None)
        self.features, self.condition_channels, self.target_channels = features, condition_channels, target_channels
        both = condition_channels + target_channels
        hidden = max(maps, both // 4) if hidden is None else check_integer(own, "hidden", hidden, 1, None)
        self.spatial_weight = nn.Parameter(torch.empty(maps, features + condition_channels))
        self.channel_weight = nn.Parameter(torch.empty(maps, target_channels))
        self.gate = nn.Sequential(nn.Linear(both, hidden), nn.ReLU(), nn.Linear(hidden, maps))
        for weight in (self.spatial_weight, self.channel_weight):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # what a 1x1 convolution starts from

    def extra_repr(self) -> str:
        """Return the numbers of channels and maps."""
        return (
            f"{self.features}, {self.condition_channels}, {self.target_channels}, "
            f"maps={self.spatial_weight.shape[0]}, hidden={self.gate[0].out_features}"
        )

    def _check(self, features: Tensor, condition: Tensor, target_condition: Tensor) -> None:
        for name, tensor, channels in (
            ("features", features, self.features),
            ("condition", condition, self.condition_channels),
            ("target_condition", target_condition, self.target_channels),
        ):
            check_tensor("SpatialChannelAttention", name, tensor)
            if tensor.dim() != 4 or tensor.shape[1] != channels:
                raise ValueError(
                    f"SpatialChannelAttention: {name}: expected shape (B, {channels}, H, W), got {tuple(tensor.shape)}"
                )
        if target_condition.shape[0] != features.shape[0]:
            raise ValueError(
                f"SpatialChannelAttention: target_condition: expected batch {features.shape[0]} as features, "
                f"got {target_condition.shape[0]}"
            )

    def _gated_values(
        self, features: Tensor, condition: Tensor, target_condition: Tensor, mask: Tensor | None, return_maps: bool
    ) -> tuple[Tensor, Tensor]:
        """V~ of Eq. 6 and, where asked for, alpha."""
        self._check(features, condition, target_condition)
        weight_features, weight_condition = self.spatial_weight.split((self.features, self.condition_channels), 1)
        values, condition_mean, alpha = spatial_attention_pool(
            features, condition, weight_features, weight_condition, mask=mask, return_maps=return_maps
        )
        dtype = next(self.gate.parameters()).dtype
        pooled = torch.cat((target_condition.mean((2, 3)).to(dtype), condition_mean.to(dtype)), 1)
        gate = torch.sigmoid(self.gate(pooled))
        return values * gate[:, :, None].to(values.dtype), alpha

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
        values, _ = self._gated_values(features, condition, target_condition, mask, False)
        return values, channel_attention_maps(target_condition, self.channel_weight)

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
        values, alpha = self._gated_values(features, condition, target_condition, mask, return_maps)
        result = channel_attention_spread(values, target_condition, self.channel_weight)
        if not return_maps:
            return result
        return result, alpha, channel_attention_maps(target_condition, self.channel_weight)
