"""SPADE, SEAN and CLADE normalisation with exact label-pattern tables.

The three functions :func:`spade_norm`, :func:`sean_norm` and :func:`clade_norm` work on any module that has the attributes
of the published layers, so :func:`mixsyn_fast.accelerate` can bind them to somebody else's; the classes are layers with
exactly those attributes and state_dict names.

Three plans, all with the same result up to rounding (docs/exact_algebra.md):

* ``table``: for a hard map, gamma and beta take one row per distinct 5x5 label pattern. SPADE's hidden activation has one
  row per distinct 3x3 pattern (Q of them); its second convolution becomes one product of those Q rows with all nine taps
  (Q * 9 * F * 2C operations, Q being a third to a fifth of the 5x5 patterns) and a gather-sum of nine rows per pattern.
* ``soft``: for weights, SEAN's style convolution runs on the K weights with per-image effective kernels.
* ``dense``: convolutions of the one-hot map and the style map, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_backend, current_plan
from ..ops.region_norm import region_norm
from ..region_map import ClassPlan, PatternPlan, RegionMap, as_region_map
from .algebra import conv2d_per_image, gather_sum, linear, low_rank_conv2d, low_rank_kernels, packed, tap_rows, taps
from .derived import derived, may_keep

Regions = RegionMap | Tensor

# Cost of one gathered element of the table plan in multiply-accumulates of a matrix product: a gathered element moves four
# bytes through the cache, a product runs dozens of operations per byte. Measured 6 to 10 on AVX-512 machines.
_GATHER_COST = 8.0


def norm_arguments(norm: nn.Module, x: Tensor) -> dict[str, Any]:
    """Arguments of :func:`region_norm` that do what a parameter-free norm layer does to ``x``, step count included.

    Args:
        norm: ``nn.BatchNorm2d``, ``nn.SyncBatchNorm`` or another batch norm, ``nn.InstanceNorm2d``, all without affine
            parameters, or ``nn.Identity``.
        x: (B, C, H, W).

    Returns:
        norm, running statistics, training, momentum, eps, process_group.

    Raises:
        TypeError: an affine or unknown layer.
    """
    reason = unsupported_norm(norm)
    if reason is not None:
        raise TypeError(f"param_free_norm: expected an affine-free batch or instance norm, got {reason}")
    if isinstance(norm, nn.Identity):
        return {"norm": "none"}
    if isinstance(norm, nn.InstanceNorm2d):
        return {"norm": "instance", "eps": norm.eps}
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    training = norm.training or (norm.running_mean is None and norm.running_var is None)
    # as torch: statistics that are not tracked in training (frozen) stay as they are
    keeps = not norm.training or norm.track_running_stats
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    group = None
    if isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available() and dist.is_initialized():
        group = norm.process_group if norm.process_group is not None else dist.group.WORLD
        group = group if dist.get_world_size(group) > 1 else None
    return {
        "norm": "batch",
        "running_mean": norm.running_mean if keeps else None,
        "running_var": norm.running_var if keeps else None,
        "training": training,
        "momentum": momentum,
        "eps": norm.eps,
        "process_group": group,
    }


def unsupported_norm(norm: nn.Module) -> str | None:
    """Say why :func:`norm_arguments` cannot stand for a layer, or None."""
    if isinstance(norm, nn.Identity):
        return None
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return "an affine batch norm" if norm.affine else None
    if isinstance(norm, nn.InstanceNorm2d):
        if norm.affine:
            return "an affine instance norm"
        return "an instance norm with running statistics" if norm.track_running_stats else None
    return type(norm).__name__


def _check_input(x: Tensor, regions: RegionMap, where: str) -> tuple[int, int]:
    if x.dim() != 4:
        raise ValueError(f"{where}: x: expected shape (B, C, H, W), got {tuple(x.shape)}")
    if regions.batch_size != x.shape[0]:
        raise ValueError(f"{where}: regions: expected batch {x.shape[0]} as x, got {regions.batch_size}")
    if regions.device != x.device:
        raise ValueError(f"{where}: regions: expected device {x.device} as x, got {regions.device}")
    return int(x.shape[2]), int(x.shape[3])


def _plain(norm: nn.Module, x: Tensor, gamma: Tensor, beta: Tensor, negative_slope: float | None) -> Tensor:
    """What the published layers compute, in plain PyTorch; gamma is the finished factor."""
    y = norm(x) * gamma + beta
    return y if negative_slope is None else F.leaky_relu(y, negative_slope)


def _is_plain() -> bool:
    return current_plan() == "dense" and current_backend() == "reference"


# --- SPADE -----------------------------------------------------------------------------------------------------------


def _shared_conv(spade: nn.Module) -> nn.Conv2d:
    return spade.mlp_shared[0]  # type: ignore[index, return-value]


def table_fits(spade: nn.Module) -> bool:
    """True where the table plan is exact for a SPADE: three 3x3 convolutions with zero padding 1, stride and dilation 1."""

    def fits(conv: Any) -> bool:
        return (
            isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (3, 3)
            and conv.padding in ((1, 1), "same")
            and conv.stride == (1, 1)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
        )

    return all(fits(conv) for conv in (_shared_conv(spade), spade.mlp_gamma, spade.mlp_beta))


def _prefers_table(
    spade: nn.Module, regions: RegionMap, size: tuple[int, int], plan_name: str, per_image: bool, of_classes: bool = False
) -> bool:
    if regions.is_soft or plan_name == "dense" or not table_fits(spade):
        return False
    if plan_name == "table":
        return True
    hidden, channels = spade.mlp_gamma.in_channels, spade.mlp_gamma.out_channels  # type: ignore[union-attr]
    plan = regions.class_plan(size) if of_classes else regions.plan(size, per_image)
    pixels = plan.index.numel()
    patterns, rows = plan.hidden.shape[0] + 1, plan.rows.shape[0]
    table = patterns * 9 * hidden * 2 * channels + _GATHER_COST * rows * 9 * 2 * channels
    dense = pixels * 9 * hidden * (2 * channels + _shared_conv(spade).in_channels)  # type: ignore[operator]
    return table <= dense


def _check_channels(spade: nn.Module, regions: RegionMap, where: str) -> None:
    expected = _shared_conv(spade).in_channels
    got = regions.weights.shape[1] if regions.weights is not None else regions.num_channels
    if got != expected:
        raise ValueError(f"{where}: regions: expected {expected} channels (regions and edges), got {got}")


def _check_class_vectors(spade: nn.Module, regions: RegionMap, vectors: Tensor) -> None:
    shape = (regions.batch_size, regions.num_regions, _shared_conv(spade).in_channels)
    if tuple(vectors.shape) != shape:
        raise ValueError(f"SPADENorm: class_vectors: expected shape {shape}, got {tuple(vectors.shape)}")
    if vectors.device != regions.device:
        raise ValueError(f"SPADENorm: class_vectors: expected device {regions.device}, got {vectors.device}")
    if regions.edges is not None:
        raise ValueError("SPADENorm: regions: expected a map without edges with class_vectors, got one with edges")


def _hidden_rows(spade: nn.Module, regions: RegionMap, plan: PatternPlan, dtype: torch.dtype) -> Tensor:
    """SPADE's hidden activation per distinct 3x3 pattern, and a zero row for positions outside the image: (Q + 1, F)."""
    conv = _shared_conv(spade)
    weight = conv.weight.to(dtype).permute(2, 3, 1, 0)  # (3, 3, C_in, F)
    columns = weight.reshape(9, conv.in_channels, conv.out_channels)
    nothing = columns.new_zeros((9, 2, conv.out_channels))  # outside the image, and no region
    table = torch.cat((columns[:, : regions.num_regions], nothing), 1)
    if regions.edges is not None:
        table = torch.cat((table, table + columns[:, regions.num_regions :]), 1)
    hidden = gather_sum(table.reshape(-1, conv.out_channels), plan.hidden)
    if conv.bias is not None:
        hidden = hidden + conv.bias.to(dtype)
    return F.pad(F.relu(hidden), (0, 0, 0, 1))


def _hidden_rows_of_classes(spade: nn.Module, regions: RegionMap, plan: ClassPlan, vectors: Tensor) -> Tensor:
    """As :func:`_hidden_rows`, of a map that holds ``vectors`` (B, K, D) instead of ones: (Z + 1, F)."""
    conv = _shared_conv(spade)
    present = vectors.index_select(1, regions.present_index)
    rows = F.pad(present.reshape(-1, conv.in_channels), (0, 0, 0, 1))  # and zero: outside the image, or no region
    hidden = gather_sum(tap_rows(rows, conv.weight), plan.hidden)
    if conv.bias is not None:
        hidden = hidden + conv.bias
    return F.pad(F.relu(hidden), (0, 0, 0, 1))


def _dense_hidden(
    spade: nn.Module, regions: RegionMap, size: tuple[int, int], dtype: torch.dtype, vectors: Tensor | None = None
) -> Tensor:
    if vectors is None:
        return spade.mlp_shared(regions.onehot(size, dtype))  # type: ignore[operator]
    conv = _shared_conv(spade)
    if regions.is_soft and current_plan() != "dense" and conv.kernel_size == (3, 3):
        return F.relu(_effective_style_conv(vectors, conv, regions.weights_at(size)))
    if not regions.is_soft:
        vectors = vectors.index_select(1, regions.present_index)
    return spade.mlp_shared(_dense_style_map(vectors, regions, size))  # type: ignore[operator]


def _zero_or(bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if bias is None else bias


def _both_taps(gamma: nn.Conv2d, beta: nn.Conv2d, factor_gamma: Any = 1, factor_beta: Any = 1) -> Tensor:
    """Taps of both convolutions side by side, (9 * 2C, I), packed."""
    return packed(taps(torch.cat((gamma.weight * factor_gamma, beta.weight * factor_beta))))


def _tap_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """Every tap applied to every row: (R, I), (9 * C, I) -> (R * 9, C)."""
    return linear(rows, matrix).reshape(rows.shape[0] * 9, -1)


def _with_centre(rows: Tensor, addend: Tensor) -> Tensor:
    """Add (2C,) or (R', 2C) to the centre taps of (R * 9, 2C) rows, in place.

    Every pattern sums exactly one centre tap, so this adds to every pattern, with far fewer rows to touch.
    """
    centre = rows.view(-1, 9, rows.shape[1])[:, 4]
    centre[: addend.shape[0] if addend.dim() == 2 else None].add_(addend)
    return rows


def _spade_table(spade: Any, hidden: Tensor, rows: Tensor) -> Tensor:
    """Finished scale (1 + gamma) and shift per pattern, (P, 2C), from hidden rows and the gather-sums over them."""
    gamma, beta = spade.mlp_gamma, spade.mlp_beta
    weights = (gamma.weight, beta.weight, gamma.bias, beta.bias)

    def bias() -> Tensor:
        return torch.cat((_zero_or(gamma.bias, gamma) + 1, _zero_or(beta.bias, beta)))

    if may_keep(spade, *weights) and not hidden.requires_grad:
        matrix, finished = derived(spade, "table", weights, lambda: (_both_taps(gamma, beta), bias()))
        return gather_sum(_with_centre(_tap_rows(hidden, matrix), finished), rows)
    parts = [gather_sum(tap_rows(hidden, conv.weight), rows) for conv in (gamma, beta)]
    return torch.cat(parts, 1) + bias()


def spade_norm(
    module: nn.Module,
    x: Tensor,
    regions: Regions,
    *,
    class_vectors: Tensor | None = None,
    negative_slope: float | None = None,
) -> Tensor:
    """SPADE (Eq. 1 and Fig. 2 of the SPADE paper): ``act(norm(x) * (1 + gamma(m)) + beta(m))``.

    Args:
        module: has ``param_free_norm``, ``mlp_shared``, ``mlp_gamma``, ``mlp_beta``.
        x: (B, C, H, W).
        regions: a region map, or a one-hot or soft mask (B, K, h, w), nearest-resized to x.
        class_vectors: (B, K, D), or None for the one-hot map itself. With them ``m`` holds at every pixel the vector of its
            class (on a soft map their weighted sum), as the class-wise semantics embedding of the class- and layer-wise
            VAE does (Eq. 12); ``mlp_shared`` then has D input channels, and the map must have no edges. The map of vectors
            is never made: they go into the table (docs/exact_algebra.md).
        negative_slope: LeakyReLU that follows, fused; None for none.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: batch, device, number of channels or the shape of the vectors differ.
    """
    regions = as_region_map(regions, None if class_vectors is None or class_vectors.dim() != 3 else class_vectors.shape[1])
    size = _check_input(x, regions, "SPADENorm")
    gamma_conv, beta_conv = module.mlp_gamma, module.mlp_beta
    dtype = gamma_conv.weight.dtype  # type: ignore[union-attr]
    if class_vectors is None:
        _check_channels(module, regions, "SPADENorm")
    else:
        _check_class_vectors(module, regions, class_vectors)
        class_vectors = class_vectors.to(dtype)
    if _prefers_table(module, regions, size, current_plan(), False, class_vectors is not None):
        plan: PatternPlan | ClassPlan
        if class_vectors is None:
            plan = regions.plan(size)
            hidden = _hidden_rows(module, regions, plan, dtype)
        else:
            plan = regions.class_plan(size)
            hidden = _hidden_rows_of_classes(module, regions, plan, class_vectors)
        modulation: dict[str, Any] = {"index": plan.index, "table": _spade_table(module, hidden, plan.rows)}
    else:
        hidden = _dense_hidden(module, regions, size, dtype, class_vectors)
        scale, shift = 1 + gamma_conv(hidden), beta_conv(hidden)  # type: ignore[operator]
        if _is_plain():
            return _plain(module.param_free_norm, x, scale, shift, negative_slope)  # type: ignore[arg-type]
        modulation = {"scale": scale, "shift": shift}
    return region_norm(x, **modulation, **norm_arguments(module.param_free_norm, x), negative_slope=negative_slope)  # type: ignore[arg-type]


# --- SEAN ------------------------------------------------------------------------------------------------------------


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


def _style_vectors(module: nn.Module, style_codes: Tensor, which: Sequence[int]) -> Tensor:
    """relu(fc_mu_k(s_k)) of the regions in ``which``: (B, N, S). A layer not in it is not run: it gets no gradient."""
    if not which:
        return style_codes[:, :0]
    layers: list[Any] = [getattr(module, f"fc_mu{k}") for k in which]
    vectors = [linear(style_codes[:, k], fc.weight, fc.bias) for k, fc in zip(which, layers, strict=True)]
    return F.relu(torch.stack(vectors, 1))


def _sean_table(module: Any, regions: RegionMap, plan: PatternPlan, vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Finished scale and shift per (image, pattern), (P, 2C), blended from styles and SPADE."""
    spade = module.Spade
    hidden = _hidden_rows(spade, regions, plan, dtype)
    styles = F.pad(vectors.reshape(-1, vectors.shape[2]), (0, 0, 0, 1))  # and the zero code
    pairs = ((module.conv_gamma, spade.mlp_gamma), (module.conv_beta, spade.mlp_beta))
    blends = (torch.sigmoid(module.blending_gamma), torch.sigmoid(module.blending_beta))
    weights = [module.blending_gamma, module.blending_beta]
    for style, own in pairs:
        weights += [style.weight, own.weight, style.bias, own.bias]

    def bias() -> Tensor:
        gamma, beta = (
            blend * _zero_or(style.bias, style) + (1 - blend) * _zero_or(own.bias, own)
            for blend, (style, own) in zip(blends, pairs, strict=True)
        )
        return torch.cat((gamma + 1, beta))

    if may_keep(module, *weights) and not hidden.requires_grad and not styles.requires_grad:

        def make() -> tuple[Tensor, Tensor, Tensor]:
            return (
                _both_taps(module.conv_gamma, module.conv_beta, *blends),
                _both_taps(spade.mlp_gamma, spade.mlp_beta, *(1 - blend for blend in blends)),
                bias(),
            )

        style_matrix, own_matrix, finished = derived(module, "table", tuple(weights), make)
        styled = gather_sum(_tap_rows(styles, style_matrix), plan.style).add_(finished)
        rows = _tap_rows(hidden, own_matrix)
        if regions.batch_size == 1:  # the 3x3 patterns of the image are those of the batch
            return gather_sum(_with_centre(rows, styled), plan.rows)
        return gather_sum(rows, plan.rows).add_(styled.index_select(0, plan.centre))
    parts, styled_parts = [], []
    for blend, (style, own) in zip(blends, pairs, strict=True):
        parts.append(gather_sum(tap_rows(hidden * (1 - blend), own.weight), plan.rows))
        styled_parts.append(gather_sum(tap_rows(styles * blend, style.weight), plan.style))
    return torch.cat(parts, 1) + (torch.cat(styled_parts, 1) + bias()).index_select(0, plan.centre)


def _dense_style_map(vectors: Tensor, regions: RegionMap, size: tuple[int, int]) -> Tensor:
    """Style map (B, S, h, w) of a hard map (gathered) or soft one (mixed); pixels of no region are zero."""
    if regions.is_soft:
        return torch.einsum("bkhw,bks->bshw", regions.weights_at(size).to(vectors.dtype), vectors)
    labels = regions.labels_at(size).to(torch.int64)
    batch, _, length = vectors.shape
    rank = torch.zeros(regions.num_regions + 1, dtype=torch.int64, device=labels.device)  # row 0: no region
    rank[[k + 1 for k in regions.present]] = torch.arange(1, len(regions.present) + 1, device=labels.device)
    padded = F.pad(vectors, (0, 0, 1, 0))
    image = torch.arange(batch, device=labels.device)[:, None, None] * padded.shape[1]
    rows = F.embedding(rank[labels + 1] + image, padded.reshape(-1, length))
    return rows.permute(0, 3, 1, 2)


def _effective_style_conv(vectors: Tensor, conv: nn.Conv2d, weights: Tensor) -> Tensor:
    """conv(style map) on the K weights instead of the S channels (docs/exact_algebra.md, 5)."""
    y = low_rank_conv2d(vectors, weights, conv.weight)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def _blended_maps(
    pairs: Sequence[tuple[Tensor, Any, Any]], hidden: Tensor, vectors: Tensor, weights: Tensor
) -> list[Tensor]:
    """Blend style(style map) with own(hidden) for gamma and beta, each (blend, style, own); return 1 + gamma and beta.

    Factors and the 1 go to kernels and biases, which are smaller than maps, and all style kernels run in one convolution.
    """
    kernels = torch.cat([blend * low_rank_kernels(vectors, style.weight) for blend, style, _ in pairs], 1)
    styled = conv2d_per_image(weights, kernels).split([own.out_channels for *_, own in pairs], 1)
    result = []
    for (blend, style, own), part, one in zip(pairs, styled, (1, 0), strict=True):
        bias = one + blend * _zero_or(style.bias, style) + (1 - blend) * _zero_or(own.bias, own)
        result.append(own._conv_forward(hidden, own.weight * (1 - blend), bias) + part)
    return result


def sean_norm(
    module: nn.Module,
    x: Tensor,
    regions: Regions,
    style_codes: Tensor | None = None,
    *,
    noise: str | Tensor | None = "device",
    negative_slope: float | None = None,
) -> Tensor:
    """SEAN (Eq. 2 to 4 of the SEAN paper): modulation blended from per-region styles and from SPADE, noise before the norm.

    ``gamma = a * conv_gamma(style map) + (1 - a) * gamma_spade`` with ``a = sigmoid(blending_gamma)``, beta likewise;
    ``y = act(norm(x + noise * noise_var) * (1 + gamma) + beta)``.

    Args:
        module: has ``Spade``, ``blending_gamma``, ``blending_beta``, ``noise_var``, ``param_free_norm`` and, unless its
            ``use_rgb`` is False, ``fc_mu0 ..``, ``conv_gamma``, ``conv_beta``.
        x: (B, C, H, W).
        regions: a region map, or a one-hot or soft mask (B, K, h, w), nearest-resized to x.
        style_codes: (B, K, S); an absent region has a zero code. Not read where ``use_rgb`` is False.
        noise: see :func:`sean_noise`.
        negative_slope: LeakyReLU that follows, fused; None for none.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: batch, device, number of channels or the shape of the codes differ.
    """
    regions = as_region_map(regions, None if style_codes is None or style_codes.dim() != 3 else style_codes.shape[1])
    size = _check_input(x, regions, "SEANNorm")
    spade: Any = module.Spade
    _check_channels(spade, regions, "SEANNorm")
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
        blend_gamma, blend_beta = torch.sigmoid(module.blending_gamma), torch.sigmoid(module.blending_beta)  # type: ignore[arg-type]
        style_gamma: Any = module.conv_gamma
        style_beta: Any = module.conv_beta
    if _prefers_table(spade, regions, size, plan_name, use_style):
        plan = regions.plan(size, per_image=use_style)
        if use_style:
            table = _sean_table(module, regions, plan, vectors, dtype)
        else:
            table = _spade_table(spade, _hidden_rows(spade, regions, plan, dtype), plan.rows)
        modulation: dict[str, Any] = {"index": plan.index, "table": table}
    else:
        dense_hidden = _dense_hidden(spade, regions, size, dtype)
        if use_style and plan_name != "dense":
            weights = regions.onehot(size, dtype)
            if len(which) < weights.shape[1]:  # absent regions, edges; else no copy, and no scatter in the backward pass
                weights = weights[:, list(which)]
            pairs = ((blend_gamma, style_gamma, gamma_conv), (blend_beta, style_beta, beta_conv))
            scale, shift = _blended_maps(pairs, dense_hidden, vectors, weights)
        else:
            gamma, beta = gamma_conv(dense_hidden), beta_conv(dense_hidden)
            if use_style:
                style_map = _dense_style_map(vectors, regions, size)
                gamma = blend_gamma * style_gamma(style_map) + (1 - blend_gamma) * gamma
                beta = blend_beta * style_beta(style_map) + (1 - blend_beta) * beta
            scale, shift = 1 + gamma, beta
        if _is_plain():
            noisy = x if drawn is None else x + drawn * module.noise_var[:, None, None]  # type: ignore[index]
            return _plain(module.param_free_norm, noisy, scale, shift, negative_slope)  # type: ignore[arg-type]
        modulation = {"scale": scale, "shift": shift}
    return region_norm(
        x,
        **modulation,
        **norm_arguments(module.param_free_norm, x),  # type: ignore[arg-type]
        noise=drawn,
        noise_scale=None if drawn is None else module.noise_var,  # type: ignore[arg-type]
        negative_slope=negative_slope,
    )


# --- CLADE -----------------------------------------------------------------------------------------------------------


def clade_norm(
    module: nn.Module,
    x: Tensor,
    regions: Regions,
    *,
    distance: Tensor | None = None,
    negative_slope: float | None = None,
) -> Tensor:
    """CLADE: ``act(norm(x) * weight[label] + bias[label])`` (no ``1 +``); positional: both scaled per pixel.

    A pixel of no region takes class 0, as the published layer's argmax of an all-zero one-hot does.

    Args:
        module: has ``param_free_norm`` and ``class_specified_affine.weight`` and ``.bias`` (K, C); positional variants
            also ``conv_w`` and ``conv_b`` (1x1, 2 -> 1).
        x: (B, C, H, W).
        regions: a region map, or a one-hot or soft mask.
        distance: (B, 2, h, w), positional variant: offset of a pixel from the centroid of its connected component, scaled by
            its maximum; nearest-resized to x.
        negative_slope: LeakyReLU that follows, fused; None for none.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: batch, device, number of regions differ, or ``distance`` is missing or not wanted.
    """
    affine: Any = module.class_specified_affine
    weight, bias = affine.weight, affine.bias
    regions = as_region_map(regions, num_regions=weight.shape[0])
    size = _check_input(x, regions, "CLADENorm")
    if regions.num_regions != weight.shape[0]:
        raise ValueError(f"CLADENorm: regions: expected {weight.shape[0]} regions, got {regions.num_regions}")
    positional = hasattr(module, "conv_w") and hasattr(module, "conv_b")
    if positional != (distance is not None):
        raise ValueError(
            f"CLADENorm: distance: expected {'a tensor (B, 2, h, w)' if positional else 'None'}, "
            f"got {'None' if distance is None else 'a tensor'}"
        )
    if regions.is_soft:
        weights = regions.weights_at(size).to(weight.dtype)
        scale = torch.einsum("bkhw,kc->bchw", weights, weight)
        shift = torch.einsum("bkhw,kc->bchw", weights, bias)
    elif positional or _is_plain() or current_plan() == "dense":
        labels = regions.labels_at(size).clamp(min=0)
        scale = F.embedding(labels, weight).permute(0, 3, 1, 2)
        shift = F.embedding(labels, bias).permute(0, 3, 1, 2)
    else:
        return region_norm(
            x,
            regions.labels_at(size).clamp(min=0),
            torch.cat((weight, bias), 1),
            **norm_arguments(module.param_free_norm, x),  # type: ignore[arg-type]
            negative_slope=negative_slope,
        )
    if positional:
        assert distance is not None
        near = F.interpolate(distance.to(weight.dtype), size=size, mode="nearest")
        scale = scale * (1 + module.conv_w(near))  # type: ignore[operator]
        shift = shift * (1 + module.conv_b(near))  # type: ignore[operator]
    if _is_plain():
        return _plain(module.param_free_norm, x, scale, shift, negative_slope)  # type: ignore[arg-type]
    return region_norm(
        x,
        scale=scale,
        shift=shift,
        **norm_arguments(module.param_free_norm, x),  # type: ignore[arg-type]
        negative_slope=negative_slope,
    )


# --- layers ----------------------------------------------------------------------------------------------------------


def _param_free_norm(kind: str, channels: int) -> nn.Module:
    kinds: dict[str, Any] = {
        "batch": lambda: nn.BatchNorm2d(channels, affine=False),
        "syncbatch": lambda: nn.SyncBatchNorm(channels, affine=False),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=False),
        "none": nn.Identity,
    }
    if kind not in kinds:
        raise ValueError(f"norm: expected one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind]()


class SPADENorm(nn.Module):
    """SPADE normalisation layer with the attributes and state_dict names of the published one.

    Args:
        channels: C of the input.
        label_channels: channels of the map: K, and one more with edges; or the length of ``class_vectors``.
        norm: ``"batch"``, ``"syncbatch"``, ``"instance"`` or ``"none"``.
        hidden: width of the hidden layer.
        kernel_size: 3 in all published models; other odd sizes run the dense plan.
    """

    def __init__(
        self,
        channels: int,
        label_channels: int,
        *,
        norm: str = "batch",
        hidden: int = 128,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.param_free_norm = _param_free_norm(norm, channels)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_channels, hidden, kernel_size, padding=pad), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, kernel_size, padding=pad)
        self.mlp_beta = nn.Conv2d(hidden, channels, kernel_size, padding=pad)

    def forward(
        self,
        x: Tensor,
        regions: Regions,
        *,
        class_vectors: Tensor | None = None,
        negative_slope: float | None = None,
    ) -> Tensor:
        """See :func:`spade_norm`."""
        return spade_norm(self, x, regions, class_vectors=class_vectors, negative_slope=negative_slope)


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
        self.param_free_norm = _param_free_norm(norm, channels)
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


class ClassAffine(nn.Module):
    """CLADE's per-class scale and shift: ``weight`` (K, C) drawn from U(0, 1), ``bias`` (K, C) zero."""

    def __init__(self, num_regions: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_regions, channels))
        self.bias = nn.Parameter(torch.empty(num_regions, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from U(0, 1), zero the bias."""
        nn.init.uniform_(self.weight)
        nn.init.zeros_(self.bias)


class CLADENorm(nn.Module):
    """CLADE normalisation layer with the attributes and state_dict names of the published one.

    Args:
        channels: C of the input.
        num_regions: K.
        norm: as :class:`SPADENorm`.
        positional: scale both tables per pixel by 1x1 convolutions (zero at first) of the position in the region.
        instance: append one channel, a 1x1 convolution of the edge map, to the output (C + 1 channels).
    """

    def __init__(
        self,
        channels: int,
        num_regions: int,
        *,
        norm: str = "batch",
        positional: bool = False,
        instance: bool = False,
    ) -> None:
        super().__init__()
        self.param_free_norm = _param_free_norm(norm, channels)
        self.class_specified_affine = ClassAffine(num_regions, channels)
        if positional:
            self.conv_w, self.conv_b = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)
            for conv in (self.conv_w, self.conv_b):
                nn.init.zeros_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        if instance:
            self.inst_conv = nn.Conv2d(1, 1, 1)

    def forward(
        self,
        x: Tensor,
        regions: Regions,
        *,
        distance: Tensor | None = None,
        negative_slope: float | None = None,
    ) -> Tensor:
        """See :func:`clade_norm`; with ``instance`` one channel more comes out."""
        regions = as_region_map(regions, num_regions=self.class_specified_affine.weight.shape[0])
        if not hasattr(self, "inst_conv"):
            return clade_norm(self, x, regions, distance=distance, negative_slope=negative_slope)
        if regions.edges is None:
            raise ValueError("CLADENorm: regions: expected a map with edges (instance=True), got one without")
        y = clade_norm(self, x, regions, distance=distance)
        edges = regions.edges_at((int(x.shape[2]), int(x.shape[3])))
        assert edges is not None
        y = torch.cat((y, self.inst_conv(edges[:, None].to(x.dtype))), 1)
        return y if negative_slope is None else F.leaky_relu(y, negative_slope)
