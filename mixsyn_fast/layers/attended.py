"""SPADE normalisation by features that attention carried over (MSCA, Sec. 3.3), without the map of them.

The map that SPADE reads is ``concat(F1, Fc1)``, aligned image features and label features. F1 has rank K, so its part of the
first convolution runs on the K attention maps (docs/exact_algebra.md, 7).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_plan
from ..ops import region_norm
from .attention import folded_conv2d
from .derived import derived, may_keep
from .param_free import is_plain, norm_arguments, param_free_norm, plain_norm


class Attended(NamedTuple):
    """``concat(F1, Fc1)`` as factors: ``F1 = sum_k maps_k values_k``."""

    values: Tensor
    """(B, K, N)."""
    maps: Tensor
    """(B, K, H, W)."""
    condition: Tensor
    """(B, M, H, W): Fc1."""
    joined: Tensor | None = None
    """(B, K + M, H, W): maps and condition side by side, which the convolutions read."""

    @classmethod
    def of(cls, values: Tensor, maps: Tensor, condition: Tensor) -> Attended:
        """Return the map whose maps and condition are laid side by side once, for all convolutions that read them."""
        dense = current_plan() == "dense"
        return cls(values, maps, condition, None if dense else torch.cat((maps, condition.to(maps.dtype)), 1))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.maps.shape[2], self.maps.shape[3]

    def dense(self) -> Tensor:
        """Return the map itself, (B, N + M, H, W)."""
        spread = torch.einsum("bkn,bkhw->bnhw", self.values, self.maps.to(self.values.dtype))
        return torch.cat((spread, self.condition.to(spread.dtype)), 1)


def attended_conv2d(attended: Attended, conv: nn.Conv2d) -> Tensor:
    """Return the convolution of ``concat(F1, Fc1)``, (B, O, H, W); with ``use_plan("dense")`` of the map itself.

    Args:
        attended: the map as factors.
        conv: N + M channels to O, an odd kernel, zero padding that keeps the size.

    Raises:
        ValueError: the channels do not fit.
    """
    if current_plan() == "dense":
        result: Tensor = conv(attended.dense())
        return result
    values, maps, condition, joined = attended
    return folded_conv2d(values, maps, conv.weight, conv.bias, condition=condition, joined=joined)


class AttendedSPADENorm(nn.Module):
    """SPADE normalisation layer whose map is an :class:`Attended`; attributes and state_dict names of the published SPADE.

    Args:
        channels: C of the input.
        map_channels: N + M.
        norm: ``"batch"``, ``"syncbatch"``, ``"instance"`` or ``"none"``.
        hidden: width of the hidden layer.
        kernel_size: odd.
    """

    def __init__(
        self, channels: int, map_channels: int, *, norm: str = "batch", hidden: int = 128, kernel_size: int = 3
    ) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.param_free_norm = param_free_norm(norm, channels)
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, hidden, kernel_size, padding=pad), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, kernel_size, padding=pad)
        self.mlp_beta = nn.Conv2d(hidden, channels, kernel_size, padding=pad)

    def forward(self, x: Tensor, attended: Attended, *, negative_slope: float | None = None) -> Tensor:
        """Return ``act(norm(x) * (1 + gamma) + beta)``, (B, C, H, W).

        Args:
            x: (B, C, H, W).
            attended: of the same batch and size.
            negative_slope: LeakyReLU that follows, fused; None for none.

        Raises:
            ValueError: batch, size or channels differ.
        """
        shape = (attended.maps.shape[0], *attended.size)
        if x.dim() != 4 or (x.shape[0], *x.shape[2:]) != shape:
            expected = f"shape ({shape[0]}, C, {shape[1]}, {shape[2]}) as the map"
            raise ValueError(f"AttendedSPADENorm: x: expected {expected}, got {tuple(x.shape)}")
        hidden = F.relu(attended_conv2d(attended, cast(nn.Conv2d, self.mlp_shared[0])))
        if is_plain():
            scale, shift = 1 + self.mlp_gamma(hidden), self.mlp_beta(hidden)
            return plain_norm(self.param_free_norm, x, scale, shift, negative_slope)
        scale, shift = self._modulation(hidden)
        arguments: dict[str, Any] = norm_arguments(self.param_free_norm, x)
        return region_norm(x, scale=scale, shift=shift, **arguments, negative_slope=negative_slope)

    def _modulation(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Finished scale and shift; where nothing is learnt the 1 of the scale is part of a bias that is kept."""
        gamma, beta = self.mlp_gamma, self.mlp_beta
        before = gamma.bias
        if before is not None and may_keep(self, before) and not hidden.requires_grad:
            bias = derived(self, "scale", (before,), lambda: before + 1)
            return gamma._conv_forward(hidden, gamma.weight, bias), beta(hidden)
        return 1 + gamma(hidden), beta(hidden)
