"""SEAN normalisation with tables of label patterns, blended from styles per region and SPADE (:mod:`.spade`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_plan
from ..ops import region_norm
from ..region_map import PatternPlan, RegionMap, as_region_map
from .algebra import (
    add_to_centre,
    apply_taps,
    bias_of,
    both_taps,
    conv2d_per_image,
    gather_sum,
    linear,
    low_rank_kernels,
    tap_rows,
)
from .derived import derived, may_keep
from .param_free import Regions, check_input, is_plain, norm_arguments, param_free_norm, plain_norm
from .spade import (
    SpadeLike,
    SPADENorm,
    check_channels,
    dense_hidden,
    dense_vector_map,
    hidden_rows,
    prefers_table,
    spade_table,
)


class SeanLike(Protocol):
    """What :func:`sean_norm` reads of a layer: the attributes of the published one.

    Attributes:
        training: as of any module.
        blending_gamma: (1,), before the sigmoid.
        blending_beta: as ``blending_gamma``.
        noise_var: (C,), factor of the noise.
        conv_gamma: a 3x3 convolution S -> C; only where ``use_rgb`` is True (or missing), with ``fc_mu0 ..`` (S -> S).
        conv_beta: as ``conv_gamma``.
    """

    training: bool
    blending_gamma: nn.Parameter
    blending_beta: nn.Parameter
    noise_var: nn.Parameter
    conv_gamma: nn.Conv2d
    conv_beta: nn.Conv2d

    @property
    def Spade(self) -> SpadeLike:  # noqa: N802 - the published name
        """SPADE's part; its norm is not used."""

    @property
    def param_free_norm(self) -> nn.Module:
        """Normalisation without parameters of its own."""


def sean_noise(x: Tensor, noise: str | Tensor | None) -> Tensor | None:
    """Per-pixel noise of a SEAN layer, (B, 1, H, W), or None.

    Args:
        x: (B, C, H, W).
        noise: ``"published"`` draws as the published code does (``torch.randn(B, W, H, 1)`` on the default CPU generator,
            moved, transposed), so that outputs can be compared seed for seed; ``"device"`` draws on the device of x (can be
            captured in a CUDA graph); a tensor (B, 1, H, W) is used as it is; None for no noise.

    Raises:
        ValueError: any other value.
    """
    if noise is None:
        return None
    batch, _, height, width = x.shape
    if isinstance(noise, Tensor):
        if tuple(noise.shape) != (batch, 1, height, width):
            raise ValueError(f"noise: expected shape {(batch, 1, height, width)}, got {tuple(noise.shape)}")
        return noise
    if noise == "published":
        return torch.randn(batch, width, height, 1).to(x.device).transpose(1, 3)
    if noise == "device":
        return torch.randn(batch, 1, height, width, device=x.device, dtype=x.dtype)
    raise ValueError(f"noise: expected 'published', 'device', a tensor or None, got {noise!r}")


_STACKED = 1 << 20  # bytes of all fc_mu of a layer up to which they are one product: a call weighs as much as its numbers


def _style_vectors(module: SeanLike, style_codes: Tensor, which: Sequence[int]) -> Tensor:
    """relu(fc_mu_k(s_k)) of the regions in ``which``: (B, N, S). A layer not in it is not run: it gets no gradient."""
    if not which:
        return style_codes[:, :0]
    layers: list[nn.Linear] = [getattr(module, f"fc_mu{k}") for k in range(style_codes.shape[1])]
    weights = [parameter for fc in layers for parameter in (fc.weight, fc.bias)]
    small = current_plan() != "dense" and sum(fc.weight.nbytes for fc in layers) <= _STACKED
    if small and not (torch.is_grad_enabled() and style_codes.requires_grad) and may_keep(module, *weights):

        def make() -> tuple[Tensor, Tensor]:
            biases: list[Tensor] = [torch.zeros_like(fc.weight[:, 0]) if fc.bias is None else fc.bias for fc in layers]
            return torch.stack([fc.weight.t() for fc in layers]), torch.stack(biases)[:, None]

        matrices, biases = derived(module, "style vectors", tuple(weights), make)
        every = torch.baddbmm(biases, style_codes.transpose(0, 1), matrices).transpose(0, 1)
        return F.relu(every if len(which) == len(layers) else every[:, list(which)])
    vectors = [linear(style_codes[:, k], layers[k].weight, layers[k].bias) for k in which]
    return F.relu(torch.stack(vectors, 1))


def _sean_table(module: SeanLike, regions: RegionMap, plan: PatternPlan, vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Finished scale and shift per (image, pattern), (P, 2C), blended from styles and SPADE."""
    spade = module.Spade
    hidden = hidden_rows(spade, regions, plan, dtype)
    styles = F.pad(vectors.reshape(-1, vectors.shape[2]), (0, 0, 0, 1))  # and the zero code
    pairs = ((module.conv_gamma, spade.mlp_gamma), (module.conv_beta, spade.mlp_beta))
    blends = (torch.sigmoid(module.blending_gamma), torch.sigmoid(module.blending_beta))
    weights: list[Tensor | None] = [module.blending_gamma, module.blending_beta]
    for style, own in pairs:
        weights += [style.weight, own.weight, style.bias, own.bias]

    def bias() -> Tensor:
        gamma, beta = (
            blend * bias_of(style) + (1 - blend) * bias_of(own) for blend, (style, own) in zip(blends, pairs, strict=True)
        )
        return torch.cat((gamma + 1, beta))

    if may_keep(module, *weights) and not hidden.requires_grad and not styles.requires_grad:

        def make() -> tuple[Tensor, Tensor, Tensor]:
            return (
                both_taps(module.conv_gamma, module.conv_beta, *blends),
                both_taps(spade.mlp_gamma, spade.mlp_beta, *(1 - blend for blend in blends)),
                bias(),
            )

        style_matrix, own_matrix, finished = derived(module, "table", tuple(weights), make)
        styled = gather_sum(apply_taps(styles, style_matrix), plan.style).add_(finished)
        rows = apply_taps(hidden, own_matrix)
        if regions.batch_size == 1:  # the 3x3 patterns of the image are those of the batch
            return gather_sum(add_to_centre(rows, styled), plan.rows)
        return gather_sum(rows, plan.rows).add_(styled.index_select(0, plan.centre))
    parts, styled_parts = [], []
    for blend, (style, own) in zip(blends, pairs, strict=True):
        parts.append(gather_sum(tap_rows(hidden * (1 - blend), own.weight), plan.rows))
        styled_parts.append(gather_sum(tap_rows(styles * blend, style.weight), plan.style))
    return torch.cat(parts, 1) + (torch.cat(styled_parts, 1) + bias()).index_select(0, plan.centre)


def _blended_maps(
    pairs: Sequence[tuple[Tensor, nn.Conv2d, nn.Conv2d]], hidden: Tensor, vectors: Tensor, weights: Tensor
) -> list[Tensor]:
    """Blend style(style map) with own(hidden) for gamma and beta, each (blend, style, own); return 1 + gamma and beta.

    Factors and the 1 go to kernels and biases, which are smaller than maps, and all style kernels run in one convolution.
    """
    kernels = torch.cat([blend * low_rank_kernels(vectors, style.weight) for blend, style, _ in pairs], 1)
    styled = conv2d_per_image(weights, kernels).split([own.out_channels for *_, own in pairs], 1)
    result = []
    for (blend, style, own), part, one in zip(pairs, styled, (1, 0), strict=True):
        bias = one + blend * bias_of(style) + (1 - blend) * bias_of(own)
        result.append(own._conv_forward(hidden, own.weight * (1 - blend), bias) + part)
    return result


def sean_norm(
    module: SeanLike,
    x: Tensor,
    regions: Regions,
    style_codes: Tensor | None = None,
    *,
    noise: str | Tensor | None = "device",
    negative_slope: float | None = None,
    norm: nn.Module | None = None,
) -> Tensor:
    """SEAN (Eq. 2 to 4 of the SEAN paper): modulation blended from per-region styles and from SPADE, noise before the norm.

    ``gamma = a * conv_gamma(style map) + (1 - a) * gamma_spade`` with ``a = sigmoid(blending_gamma)``, beta likewise;
    ``y = act(norm(x + noise * noise_var) * (1 + gamma) + beta)``.

    Args:
        module: the layer.
        x: (B, C, H, W).
        regions: a region map, or a one-hot or soft mask (B, K, h, w), nearest-resized to x.
        style_codes: (B, K, S); an absent region has a zero code. Not read where ``use_rgb`` is False.
        noise: see :func:`sean_noise`.
        negative_slope: LeakyReLU that follows, fused; None for none.
        norm: normalisation without parameters in place of the layer's own, with statistics given, say.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: batch, device, number of channels or the shape of the codes differ.
    """
    norm = module.param_free_norm if norm is None else norm
    regions = as_region_map(regions, None if style_codes is None or style_codes.dim() != 3 else style_codes.shape[1])
    size = check_input(x, regions, "SEANNorm")
    spade = module.Spade
    check_channels(spade, regions, "SEANNorm")
    use_style = bool(getattr(module, "use_rgb", True))
    count = regions.num_regions
    if use_style:
        if style_codes is None or style_codes.dim() != 3 or tuple(style_codes.shape[:2]) != (x.shape[0], count):
            got = None if style_codes is None else tuple(style_codes.shape)
            raise ValueError(f"SEANNorm: style_codes: expected shape ({x.shape[0]}, {count}, S), got {got}")
    drawn = sean_noise(x, noise)
    gamma_conv, beta_conv = spade.mlp_gamma, spade.mlp_beta
    dtype = gamma_conv.weight.dtype
    plan_name = current_plan()
    if use_style:
        assert style_codes is not None
        which = range(count) if regions.is_soft else regions.present
        vectors = _style_vectors(module, style_codes.to(dtype), which)
        blend_gamma, blend_beta = torch.sigmoid(module.blending_gamma), torch.sigmoid(module.blending_beta)
        style_gamma, style_beta = module.conv_gamma, module.conv_beta
    if prefers_table(spade, regions, size, plan_name, use_style):
        plan = regions.plan(size, per_image=use_style)
        if use_style:
            table = _sean_table(module, regions, plan, vectors, dtype)
        else:
            table = spade_table(spade, hidden_rows(spade, regions, plan, dtype), plan.rows)
        modulation: dict[str, Any] = {"index": plan.index, "table": table}
    else:
        hidden = dense_hidden(spade, regions, size, dtype)
        if use_style and plan_name != "dense":
            weights = regions.onehot(size, dtype)
            if len(which) < weights.shape[1]:  # absent regions, edges; else no copy, and no scatter in the backward pass
                weights = weights[:, list(which)]
            pairs = ((blend_gamma, style_gamma, gamma_conv), (blend_beta, style_beta, beta_conv))
            scale, shift = _blended_maps(pairs, hidden, vectors, weights)
        else:
            gamma, beta = gamma_conv(hidden), beta_conv(hidden)
            if use_style:
                style_map = dense_vector_map(vectors, regions, size)
                gamma = blend_gamma * style_gamma(style_map) + (1 - blend_gamma) * gamma
                beta = blend_beta * style_beta(style_map) + (1 - blend_beta) * beta
            scale, shift = 1 + gamma, beta
        if is_plain():
            noisy = x if drawn is None else x + drawn * module.noise_var[:, None, None]
            return plain_norm(norm, noisy, scale, shift, negative_slope)
        modulation = {"scale": scale, "shift": shift}
    return region_norm(
        x,
        **modulation,
        **norm_arguments(norm, x),
        noise=drawn,
        noise_scale=None if drawn is None else module.noise_var,
        negative_slope=negative_slope,
    )


class SEANNorm(nn.Module):
    """SEAN normalisation layer with the attributes and state_dict names of the published one, for any K and style length.

    Args:
        channels: C of the input.
        label_channels: K (SEAN knows no edge channel; one more is accepted for SPADE's part).
        num_regions: K where it differs from ``label_channels``.
        style_length: S.
        use_style: False for the layers of the last block: SPADE's branch only, noise still added.
        norm: as :class:`SPADENorm`.
        hidden: width of SPADE's hidden layer.
    """

    def __init__(
        self,
        channels: int,
        label_channels: int,
        *,
        num_regions: int | None = None,
        style_length: int = 512,
        use_style: bool = True,
        norm: str = "batch",
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.use_rgb = use_style
        self.Spade = SPADENorm(channels, label_channels, norm="none", hidden=hidden)
        self.param_free_norm = param_free_norm(norm, channels)
        self.blending_gamma = nn.Parameter(torch.zeros(1))
        self.blending_beta = nn.Parameter(torch.zeros(1))
        self.noise_var = nn.Parameter(torch.zeros(channels))
        if use_style:
            for k in range(label_channels if num_regions is None else num_regions):
                setattr(self, f"fc_mu{k}", nn.Linear(style_length, style_length))
            self.conv_gamma = nn.Conv2d(style_length, channels, 3, padding=1)
            self.conv_beta = nn.Conv2d(style_length, channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        regions: Regions,
        style_codes: Tensor | None = None,
        *,
        noise: str | Tensor | None = "device",
        negative_slope: float | None = None,
    ) -> Tensor:
        """See :func:`sean_norm`."""
        return sean_norm(self, x, regions, style_codes, noise=noise, negative_slope=negative_slope)
