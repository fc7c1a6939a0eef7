"""SPADE normalisation with tables of label patterns.

:func:`spade_norm` works on any module that has the attributes of the published layer (:class:`SpadeLike`), so
:func:`mixsyn_fast.accelerate` can bind it to somebody else's; :class:`SPADENorm` is a layer with exactly those attributes
and state_dict names.

Three plans, the same mathematics in another order (docs/exact_algebra.md):

* ``table``: for a hard map, gamma and beta take one row per distinct 5x5 label pattern. SPADE's hidden activation has one
  row per distinct 3x3 pattern (Q of them); its second convolution becomes one product of those Q rows with all nine taps
  (Q * 9 * F * 2C operations, Q being a third to a fifth of the 5x5 patterns) and a gather-sum of nine rows per pattern.
* ``soft``: for weights, a convolution of vectors per region (SEAN's styles) runs on the K weights with per-image effective
  kernels.
* ``dense``: convolutions of the one-hot map and the style map, as published.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_plan
from ..ops import region_norm
from ..region_map import ClassPlan, PatternPlan, RegionMap, as_region_map
from .algebra import add_to_centre, apply_taps, bias_of, both_taps, gather_sum, low_rank_conv2d, padded_count, tap_rows
from .derived import derived, may_keep
from .param_free import Regions, check_input, is_plain, norm_arguments, param_free_norm, plain_norm

# Costs of the two plans in multiply-accumulates of the convolution to gamma and beta, fitted to times on maps of noise in
# cells of 1 to 8 pixels, 19 and 151 classes, 32 to 256 pixels a side, with AVX-512 and AVX2, one and two cores: the ratio of
# the two times comes out within 0.2 where it is near one (benchmarks/run_accelerate.py has such rows).
PRODUCT_COST = 1.45, 2.0  # of the table's product, whose result stays in the cache, or is too large for it
CACHE = 32 << 20  # bytes
GATHER_COST = 8.0  # of one gathered element
PATTERN_COST = 45e3  # of finding a pattern, as if for one layer alone
FIRST_COST = 0.6  # of the first convolution, of a map that is mostly zeros
MARGIN = 0.8  # the table is taken where it saves a fifth by this estimate


class SpadeLike(Protocol):
    """What :func:`spade_norm` reads of a layer: the attributes of the published one.

    Attributes:
        training: as of any module.
        param_free_norm: what :func:`norm_arguments` takes.
        mlp_shared: a convolution (C_in -> F) and a ReLU.
        mlp_gamma: a convolution F -> C.
        mlp_beta: as ``mlp_gamma``.
    """

    training: bool
    mlp_shared: nn.Sequential
    mlp_gamma: nn.Conv2d
    mlp_beta: nn.Conv2d

    @property
    def param_free_norm(self) -> nn.Module:
        """Normalisation without parameters of its own."""


def shared_conv(spade: SpadeLike) -> nn.Conv2d:
    """Return the convolution of ``mlp_shared``."""
    conv = spade.mlp_shared[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


def table_fits(spade: SpadeLike) -> bool:
    """True where the table plan computes what SPADE does: three 3x3 convolutions, zero padding 1, stride and dilation 1."""

    def fits(conv: nn.Module) -> bool:
        return (
            isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (3, 3)
            and conv.padding in ((1, 1), "same")
            and conv.stride == (1, 1)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
        )

    return all(fits(conv) for conv in (spade.mlp_shared[0], spade.mlp_gamma, spade.mlp_beta))


def prefers_table(
    spade: SpadeLike, regions: RegionMap, size: tuple[int, int], plan_name: str, per_image: bool, of_classes: bool = False
) -> bool:
    """True where the table plan is possible and, by an estimate of its cost, cheaper than the dense one (or asked for)."""
    if regions.is_soft or plan_name == "dense" or not table_fits(spade):
        return False
    if plan_name == "table":
        return True
    hidden, channels = spade.mlp_gamma.in_channels, 2 * spade.mlp_gamma.out_channels
    pixels = regions.batch_size * size[0] * size[1]
    bound = MARGIN * pixels * 9 * hidden * (channels + FIRST_COST * shared_conv(spade).in_channels)

    def cost(near: float, wide: float) -> float:
        """Of the table for so many 3x3 and 5x5 patterns."""
        factor = PRODUCT_COST[near * 9 * channels * 4 > CACHE]
        return near * factor * 9 * hidden * channels + wide * (GATHER_COST * 9 * channels + PATTERN_COST)

    # Counting the patterns of a map that hardly repeats costs up to a tenth of a layer, so a sample may tell first, and the
    # 3x3 patterns, of which there are never more, before the 5x5 ones.
    wide = pixels * regions.distinct_share(size, 2)
    if wide > 0 and cost(pixels * regions.distinct_share(size, 1), wide) > bound:
        return False
    near = len(regions.patterns(size, 1, of_classes).patterns)
    if cost(near, max(near, wide)) > bound:
        return False
    return cost(near, len(regions.patterns(size, 2, per_image or of_classes).patterns)) <= bound


def check_channels(spade: SpadeLike, regions: RegionMap, where: str) -> None:
    """Raise ValueError unless the map has as many channels (regions and edges) as the layer's first convolution."""
    expected = shared_conv(spade).in_channels
    got = regions.weights.shape[1] if regions.weights is not None else regions.num_channels
    if got != expected:
        raise ValueError(f"{where}: regions: expected {expected} channels (regions and edges), got {got}")


def _check_class_vectors(spade: SpadeLike, regions: RegionMap, vectors: Tensor) -> None:
    shape = (regions.batch_size, regions.num_regions, shared_conv(spade).in_channels)
    if tuple(vectors.shape) != shape:
        raise ValueError(f"SPADENorm: class_vectors: expected shape {shape}, got {tuple(vectors.shape)}")
    if vectors.device != regions.device:
        raise ValueError(f"SPADENorm: class_vectors: expected device {regions.device}, got {vectors.device}")
    if regions.edges is not None:
        raise ValueError("SPADENorm: regions: expected a map without edges with class_vectors, got one with edges")


def hidden_rows(spade: SpadeLike, regions: RegionMap, plan: PatternPlan, dtype: torch.dtype) -> Tensor:
    """SPADE's hidden activation per distinct 3x3 pattern, and zero rows, the first for positions outside the image.

    (Q + 1, F) at least: as many as the products that follow are made with.
    """
    conv = shared_conv(spade)
    weight = conv.weight.to(dtype).permute(2, 3, 1, 0)  # (3, 3, C_in, F)
    columns = weight.reshape(9, conv.in_channels, conv.out_channels)
    nothing = columns.new_zeros((9, 2, conv.out_channels))  # outside the image, and no region
    table = torch.cat((columns[:, : regions.num_regions], nothing), 1)
    if regions.edges is not None:
        table = torch.cat((table, table + columns[:, regions.num_regions :]), 1)
    hidden = gather_sum(table.reshape(-1, conv.out_channels), plan.hidden)
    if conv.bias is not None:
        hidden = hidden + conv.bias.to(dtype)
    return _with_zero_rows(F.relu(hidden))


def _hidden_rows_of_classes(spade: SpadeLike, regions: RegionMap, plan: ClassPlan, vectors: Tensor) -> Tensor:
    """As :func:`hidden_rows`, of a map that holds ``vectors`` (B, K, D) instead of ones: (Z + 1, F) at least."""
    conv = shared_conv(spade)
    present = vectors.index_select(1, regions.present_index)
    rows = F.pad(present.reshape(-1, conv.in_channels), (0, 0, 0, 1))  # and zero: outside the image, or no region
    hidden = gather_sum(tap_rows(rows, conv.weight), plan.hidden)
    if conv.bias is not None:
        hidden = hidden + conv.bias
    return _with_zero_rows(F.relu(hidden))


def _with_zero_rows(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 0, 0, padded_count(len(rows) + 1) - len(rows)))


def dense_hidden(
    spade: SpadeLike, regions: RegionMap, size: tuple[int, int], dtype: torch.dtype, vectors: Tensor | None = None
) -> Tensor:
    """Hidden activation of all pixels, (B, F, H, W), of the one-hot map, or of a map that holds ``vectors`` (B, K, D)."""
    hidden: Tensor
    if vectors is None:
        hidden = spade.mlp_shared(regions.onehot(size, dtype))
        return hidden
    conv = shared_conv(spade)
    if regions.is_soft and current_plan() != "dense" and conv.kernel_size == (3, 3):
        return F.relu(conv_of_vector_map(vectors, conv, regions.weights_at(size)))
    if not regions.is_soft:
        vectors = vectors.index_select(1, regions.present_index)
    hidden = spade.mlp_shared(dense_vector_map(vectors, regions, size))
    return hidden


def dense_vector_map(vectors: Tensor, regions: RegionMap, size: tuple[int, int]) -> Tensor:
    """Map (B, D, h, w) of vectors per region, of a hard map (of those present, gathered) or a soft one (of all, mixed).

    Pixels of no region are zero.
    """
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


def conv_of_vector_map(vectors: Tensor, conv: nn.Conv2d, weights: Tensor) -> Tensor:
    """conv(map of vectors) on the K weights instead of the D channels (docs/exact_algebra.md, 5)."""
    y = low_rank_conv2d(vectors, weights, conv.weight)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def spade_table(spade: SpadeLike, hidden: Tensor, rows: Tensor) -> Tensor:
    """Finished scale (1 + gamma) and shift per pattern, (P, 2C), from hidden rows and the gather-sums over them."""
    gamma, beta = spade.mlp_gamma, spade.mlp_beta
    weights = (gamma.weight, beta.weight, gamma.bias, beta.bias)

    def bias() -> Tensor:
        return torch.cat((bias_of(gamma) + 1, bias_of(beta)))

    if may_keep(spade, *weights) and not hidden.requires_grad:
        matrix, finished = derived(spade, "table", weights, lambda: (both_taps(gamma, beta), bias()))
        return gather_sum(add_to_centre(apply_taps(hidden, matrix), finished), rows)
    parts = [gather_sum(tap_rows(hidden, conv.weight), rows) for conv in (gamma, beta)]
    return torch.cat(parts, 1) + bias()


def spade_norm(
    module: SpadeLike,
    x: Tensor,
    regions: Regions,
    *,
    class_vectors: Tensor | None = None,
    negative_slope: float | None = None,
) -> Tensor:
    """SPADE (Eq. 1 and Fig. 2 of the SPADE paper): ``act(norm(x) * (1 + gamma(m)) + beta(m))``.

    Args:
        module: the layer.
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
    size = check_input(x, regions, "SPADENorm")
    gamma_conv, beta_conv = module.mlp_gamma, module.mlp_beta
    dtype = gamma_conv.weight.dtype
    if class_vectors is None:
        check_channels(module, regions, "SPADENorm")
    else:
        _check_class_vectors(module, regions, class_vectors)
        class_vectors = class_vectors.to(dtype)
    if prefers_table(module, regions, size, current_plan(), False, class_vectors is not None):
        plan: PatternPlan | ClassPlan
        if class_vectors is None:
            plan = regions.plan(size)
            hidden = hidden_rows(module, regions, plan, dtype)
        else:
            plan = regions.class_plan(size)
            hidden = _hidden_rows_of_classes(module, regions, plan, class_vectors)
        modulation: dict[str, Any] = {"index": plan.index, "table": spade_table(module, hidden, plan.rows)}
    else:
        hidden = dense_hidden(module, regions, size, dtype, class_vectors)
        scale, shift = 1 + gamma_conv(hidden), beta_conv(hidden)
        if is_plain():
            return plain_norm(module.param_free_norm, x, scale, shift, negative_slope)
        modulation = {"scale": scale, "shift": shift}
    return region_norm(x, **modulation, **norm_arguments(module.param_free_norm, x), negative_slope=negative_slope)


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
        self.param_free_norm = param_free_norm(norm, channels)
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
