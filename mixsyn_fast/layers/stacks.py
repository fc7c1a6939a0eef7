"""Stacks of convolutions, activations and instance norms that read a map, and the modulated norm that they feed.

Every layer of SPADE's kind is ``norm(x) * scale(m) + shift(m)`` with two stacks, scale and shift, behind a third that both
share. On a map whose pixels hold few distinct columns (one-hot labels, vectors of classes) such a stack is a table: of every
convolution one row per distinct neighbourhood of what came before it (docs/exact_algebra.md, 16). That holds for any odd
kernel, for grouped and depthwise convolutions, for activations, and for an instance norm, whose statistics are those of the
rows weighted by how many pixels of the image have them.

:class:`Modulator` says what a layer consists of, :func:`modulation` evaluates it by the cheaper plan, :func:`modulate`
applies it. Nothing here knows an attribute name of a published layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_plan
from ..latent_map import LatentMap
from ..nearest import resize_nearest
from ..ops import region_norm
from ..region_map import RegionMap
from .algebra import add_to_centre, gather_sum, linear, packed, padded_count, tap_rows, taps
from .dense_stacks import DenseStacks, Folds, Values, dense, halves, rows_of
from .dense_stacks import folds_of as stack_folds
from .derived import Owner, derived, may_keep
from .neighbourhoods import Neighbourhoods, neighbourhoods
from .param_free import is_plain, norm_arguments, plain_norm
from .spade import (
    CACHE,
    FIRST_COST,
    GATHER_COST,
    MARGIN,
    PATTERN_COST,
    PRODUCT_COST,
)

Stack = tuple[nn.Module, ...]
"""Modules that run one after the other: convolutions, activations, instance norms."""
Conv = nn.Conv2d | nn.Conv3d
Size = tuple[int, ...]

ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip


def stack_of(module: nn.Module) -> Stack:
    """Return what a module consists of: the modules of (nested) Sequentials in order, without those that do nothing."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return tuple(part for child in module for part in stack_of(child))
    if isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0):
        return ()
    return (module,)


def is_elementwise(module: nn.Module) -> bool:
    """Say whether a module is an activation that acts on every number, or every channel, alone."""
    return isinstance(module, ELEMENTWISE)


def conv_fits(conv: nn.Module) -> bool:
    """Say whether a convolution of images or volumes keeps the size: an odd square or cubic kernel, any padding mode.

    The number of groups is free. On tables go those alone whose padding is of zeros.
    """
    if not isinstance(conv, Conv):
        return False
    kernel, ones = conv.kernel_size[0], (1,) * len(conv.kernel_size)
    return (
        all(width == kernel for width in conv.kernel_size)
        and kernel % 2 == 1
        and (conv.padding == "same" or all(pad == kernel // 2 for pad in conv.padding))
        and conv.stride == ones == conv.dilation
    )


def norm_fits(norm: nn.Module) -> bool:
    """Say whether a module of a stack is an instance norm by the statistics of its input."""
    return isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) and not norm.track_running_stats


def part_fits(part: nn.Module) -> bool:
    """Say whether a module may be in a stack."""
    return conv_fits(part) or is_elementwise(part) or norm_fits(part)


@dataclass(frozen=True)
class Modulator:
    """A layer ``norm(x) * (one + scale) + shift``: ``scale`` and ``shift`` are stacks on what ``shared`` makes of a map."""

    owner: Owner
    """The layer: values derived from its weights are kept by it."""
    norm: nn.Module
    """Batch, instance or group norm, affine or not, or nn.Identity."""
    shared: Stack
    """May be empty."""
    scale: Stack
    shift: Stack
    """Empty: ``scale`` has twice the channels, the scale first (``shift_first``: last)."""
    one: float = 1.0
    """Added to the scale."""
    shift_first: bool = False

    @property
    def heads(self) -> tuple[Stack, ...]:
        """The stacks behind ``shared``."""
        return (self.scale, self.shift) if self.shift else (self.scale,)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return all parameters that scale and shift depend on, always in the same order; None where one is absent."""
        parts = (*self.shared, *self.scale, *self.shift, self.norm)
        return tuple(parameter for part in parts for parameter in part._parameters.values())


class Modulation(NamedTuple):
    """Finished scale and shift of a layer: rows of a table (hard maps), or maps."""

    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index
    """(B, h, w) int32 rows of ``table``."""
    table: Tensor | None = None
    """(P, 2C): scale, then shift."""
    scale: Tensor | None = None
    """(B, C, h, w)."""
    shift: Tensor | None = None
    """(B, C, h, w)."""


class Columns(NamedTuple):
    """A map by its distinct pixel columns."""

    regions: RegionMap
    """Hard: which column every pixel has."""
    values: Tensor | None
    """(K, D): the columns; None: they are one-hot (and an edge)."""


def convolutions(stack: Sequence[nn.Module]) -> list[Conv]:
    """Return the convolutions of a stack."""
    return [part for part in stack if isinstance(part, Conv)]


def kernels_of(stack: Sequence[nn.Module]) -> tuple[int, ...]:
    """Return the kernel sizes of a stack's convolutions."""
    return tuple(conv.kernel_size[0] for conv in convolutions(stack))


def has_norm(stack: Sequence[nn.Module]) -> bool:
    """Say whether a stack has an instance norm."""
    return any(norm_fits(part) for part in stack)


# --- which plan -------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """Of a layer's scale and shift: multiply-accumulates, and bytes of the results of convolutions, by each plan."""

    dense_macs: int
    table_macs: int
    dense_bytes: int
    table_bytes: int


def work(layer: Modulator, rows: Sequence[int], pixels: int, onehot: bool) -> Work:
    """Count the work of both plans.

    Args:
        layer: the layer.
        rows: of every stage (:attr:`Neighbourhoods.counts`); none: of the dense plan alone.
        pixels: of the batch.
        onehot: the map's columns are one-hot: the first convolution, ungrouped, is no product.
    """
    size = convolutions((*layer.shared, *layer.scale))[0].weight.element_size()
    macs = bytes_ = table_macs = table_bytes = 0
    common = len(convolutions(layer.shared))
    for number, stack in enumerate((layer.shared, *layer.heads)):
        at = 0 if number == 0 else common
        for conv in convolutions(stack):
            per_column = conv.weight.numel()
            macs += pixels * per_column
            bytes_ += pixels * conv.out_channels * size
            if rows:
                table_macs += 0 if at == 0 and onehot and conv.groups == 1 else rows[at] * per_column
                table_bytes += rows[at + 1] * conv.out_channels * size
            at += 1
    return Work(macs, table_macs, bytes_, table_bytes)


def folded_work(layer: Modulator, folds: Folds, pixels: int, batch: int) -> tuple[int, int]:
    """Count multiply-accumulates, and bytes of the results, of convolutions some of which run at distinct positions.

    Args:
        layer: the layer.
        folds: which do.
        pixels: of the batch.
        batch: images.
    """
    macs, bytes_ = 0.0, 0
    size = convolutions((*layer.shared, *layer.scale))[0].weight.element_size()
    for stack, chosen in zip((layer.shared, *layer.heads), (folds.shared, *folds.heads), strict=True):
        for conv, fold in zip(convolutions(stack), chosen, strict=True):
            macs += pixels * conv.weight.numel() * (1.0 if fold is None else fold.share)
            bytes_ += (pixels if fold is None else batch * fold.positions) * conv.out_channels * size
    return round(macs), bytes_


def _cost(layer: Modulator, rows: Sequence[int], pixels: int, onehot: bool) -> tuple[float, float]:
    """Estimate the costs of the table and of the dense plan (the units of layers/spade.py)."""
    table, dense = rows[-1] * PATTERN_COST, 0.0
    common = len(convolutions(layer.shared))
    for number, stack in enumerate((layer.shared, *layer.heads)):
        at = 0 if number == 0 else common
        for conv in convolutions(stack):
            taps_of, sparse = prod(conv.kernel_size), at == 0 and onehot
            dense += pixels * conv.weight.numel() * (FIRST_COST if sparse else 1)
            if not (sparse and conv.groups == 1):
                factor = PRODUCT_COST[rows[at] * taps_of * conv.out_channels * 4 > CACHE]
                table += rows[at] * factor * conv.weight.numel()
            table += rows[at + 1] * GATHER_COST * taps_of * conv.out_channels
            at += 1
    return table, dense


def neighbourhoods_of(layer: Modulator, columns: Columns, size: Size) -> Neighbourhoods | None:
    """Return the distinct neighbourhoods of a map where the table plan is possible, and cheaper or asked for; else None."""
    plan_name, regions = current_plan(), columns.regions
    kernels = [kernels_of((*layer.shared, *head)) for head in layer.heads]
    if plan_name == "dense" or any(other != kernels[0] for other in kernels) or is_padded_otherwise(layer):
        return None
    pixels = regions.batch_size * prod(size)
    radius = sum(kernel // 2 for kernel in kernels[0])
    if plan_name == "auto" and radius and pixels * regions.distinct_share(size, min(radius, 2)) > MARGIN * pixels:
        return None
    per_image = any(has_norm((*layer.shared, *head)) for head in layer.heads)
    found = neighbourhoods(regions, size, kernels[0], per_image)
    if plan_name == "auto":
        table, dense = _cost(layer, found.counts, pixels, columns.values is None)
        if table > MARGIN * dense:
            return None
    return found


# --- latents of any dimensions, resizing and padding --------------------------------------------------------------------


def is_padded_otherwise(layer: Modulator) -> bool:
    """Say whether a convolution of a layer pads by anything but zeros."""
    convs = convolutions((*layer.shared, *layer.scale, *layer.shift))
    return any(conv.padding_mode != "zeros" and max(conv.kernel_size) > 1 for conv in convs)


def latent_modulation(layer: Modulator, features: Tensor, size: Size, axes: Sequence[Tensor] | None = None) -> Modulation:
    """Evaluate scale and shift of a layer on a map that is resized by any rule, in two or three dimensions, padded anyhow.

    Args:
        layer: the layer.
        features: (B, D, h, w) or (B, D, d, h, w).
        size: of x, as many numbers.
        axes: per dimension the pixel of the map at every position of x, not decreasing (:class:`LatentMap`); None for
            nearest resizing.

    Returns:
        A table, where the map has at most half as many distinct positions behind the convolutions as x has pixels, or maps.
    """
    values = LatentMap(features, size, axes=axes)
    if current_plan() != "dense" and _have_few_positions(layer, values):
        shared = _at_cells(layer.shared, values)
        ends = [None if shared is None else _at_cells(head, shared) for head in layer.heads]
        first = ends[0]
        if first is not None and all(end is not None for end in ends):
            scale, shift = _two([end.features for end in ends if end is not None], layer)
            made = LatentMap(torch.cat(_folded(layer.norm, scale + layer.one, shift), 1), size, axes=first.axes)
            return Modulation(made.index, made.rows)
    maps = values.dense()
    for part in layer.shared:
        maps = part(maps)
    scale, shift = _two([nn.Sequential(*head)(maps) for head in layer.heads], layer)
    scale = scale + layer.one
    return Modulation(None, None, *(scale, shift) if is_plain() else _folded(layer.norm, scale, shift))


def _have_few_positions(layer: Modulator, values: LatentMap) -> bool:
    """Say whether a table of the map's distinct positions, behind the convolutions, is half as long as the map, or less."""
    kernels = [kernels_of(head) for head in layer.heads]
    if has_norm((*layer.shared, *layer.scale, *layer.shift)) or (len(kernels) > 1 and max(map(max, kernels)) > 1):
        return False  # scale and shift would lie on grids of their own
    wide = 1 + sum(kernel // 2 * 2 for kernel in (*kernels_of(layer.shared), *kernels[0]))
    cells = [min(side, full * wide) for side, full in zip(values.size, values.features.shape[2:], strict=True)]
    return 2 * prod(cells) <= prod(values.size)


def _at_cells(stack: Stack, values: LatentMap) -> LatentMap | None:
    """A stack at the distinct positions of a map; None where padding makes it return to cells that it has left."""
    found: LatentMap | None = values
    for part in stack:
        if found is None:
            return None
        wide = isinstance(part, Conv) and max(part.kernel_size) > 1
        found = _convolved(part, found) if isinstance(part, Conv) and wide else found.map(part)
    return found


def _convolved(conv: Conv, values: LatentMap) -> LatentMap | None:
    """A convolution at the distinct positions of a map; padded otherwise than by zeros, of a wider map, cut to size."""
    if conv.padding_mode == "zeros":
        return values.convolve(conv.weight, conv.bias, groups=conv.groups)
    reach, axes = conv.kernel_size[0] // 2, []
    for axis in values.axes:
        last = len(axis) - 1
        at = torch.arange(-reach, last + reach + 1, device=axis.device)
        if conv.padding_mode == "circular":
            at = at % (last + 1)
        elif conv.padding_mode == "reflect":
            at = last - (last - at.abs()).abs()
        axes.append(axis[at.clamp(0, last)])
        if bool((axes[-1][1:] < axes[-1][:-1]).any()):
            return None
    wide = LatentMap(values.features, [side + 2 * reach for side in values.size], axes=axes)
    wide = wide.convolve(conv.weight, conv.bias, groups=conv.groups)
    return LatentMap(wide.features, values.size, axes=[axis[reach:-reach] for axis in wide.axes])


# --- the table plan ---------------------------------------------------------------------------------------------------


def _calls_alone(part: nn.Module, rows: Tensor) -> Tensor:
    """An activation of rows that somebody else may hold."""
    result: Tensor = part(rows.clone() if getattr(part, "inplace", False) else rows)
    return result


def _normalised(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, rows: Tensor, shares: Tensor, image: Tensor) -> Tensor:
    """Instance norm of a map by its rows: ``shares`` (B, P) of an image's pixels have the row, ``image`` (P,) owns it."""
    shares, several = shares.to(rows.dtype), len(shares) > 1
    mean = shares @ rows
    deviation = rows - (mean.index_select(0, image) if several else mean)
    scale = torch.rsqrt(shares @ deviation.square() + norm.eps)
    rows = deviation * (scale.index_select(0, image) if several else scale)
    return rows if norm.weight is None else rows * norm.weight.to(rows.dtype) + norm.bias.to(rows.dtype)


def _onehot_rows(conv: Conv, columns: Columns, dtype: torch.dtype) -> Tensor:
    """What the taps of a convolution make of every one-hot column: rows of its weight, ((R + 1) * taps, O)."""
    regions, weight = columns.regions, conv.weight.to(dtype)
    by_column = weight.movedim(0, -1).reshape(conv.in_channels, -1, conv.out_channels)
    nothing = torch.zeros_like(by_column[:1])
    rows = torch.cat((by_column[: regions.num_regions], nothing))
    if regions.edges is not None:
        rows = torch.cat((rows, rows + by_column[regions.num_regions :]))
    return torch.cat((rows, nothing)).reshape(-1, conv.out_channels)


def _start(columns: Columns, channels: int, like: Tensor) -> Tensor:
    """The columns themselves, (R, D), and zeros for pixels of no region."""
    regions, values = columns.regions, columns.values
    if values is not None:
        return F.pad(values.to(like.dtype), (0, 0, 0, 1))
    rows = torch.eye(regions.num_regions + 1, channels, dtype=like.dtype, device=like.device)
    rows[regions.num_regions] = 0
    if regions.edges is None:
        return rows
    return torch.cat((rows, rows.index_fill(1, torch.tensor([channels - 1], device=like.device), 1)))


def _grouped_rows(conv: Conv, rows: Tensor) -> Tensor:
    """Every tap of a grouped convolution applied to every row, (R * taps, O)."""
    groups, weight = conv.groups, conv.weight.to(rows.dtype)
    apart = weight.reshape(groups, conv.out_channels // groups, conv.in_channels // groups, -1)
    product = torch.einsum("rgi,goit->rtgo", rows.reshape(len(rows), groups, -1), apart)
    return product.reshape(-1, conv.out_channels)


def _applied(
    layer: Modulator, convs: Sequence[Conv], name: str, rows: Tensor, around: Tensor | None, one: float = 0.0
) -> Tensor:
    """Convolutions of rows, side by side, (P, sum of O); ``one``: added to the bias of the first one's channels.

    Args:
        layer: owner of what is kept.
        convs: with kernels of one size; several with one group each.
        name: of what is kept.
        rows: (R, C).
        around: (P, taps) rows of the table of taps; None for a 1 x 1 convolution.
        one: a number.
    """
    weights = tuple(conv.weight for conv in convs)
    biases = tuple(conv.bias for conv in convs)

    def bias() -> Tensor:
        parts = [c.weight.new_zeros(c.out_channels) if c.bias is None else c.bias for c in convs]
        return torch.cat([part.to(rows.dtype) + (one if i == 0 else 0.0) for i, part in enumerate(parts)])

    if around is not None:
        rows = F.pad(rows, (0, 0, 0, padded_count(len(rows) + 1) - len(rows)))  # and zero: what lies outside
    kept = may_keep(layer.owner, *weights, *biases) and not rows.requires_grad
    if convs[0].groups > 1:
        found, finished = _grouped_rows(convs[0], rows), bias()
    elif kept:
        dtype, source = rows.dtype, (*weights, *biases, rows.dtype, one)
        make = lambda: (packed(taps(torch.cat(weights).to(dtype))), bias())  # noqa: E731
        matrix, finished = derived(layer.owner, ("stack", name), source, make)
        found = linear(rows, matrix)
        found = found.reshape(len(rows) * prod(convs[0].kernel_size), -1)
    else:
        finished = bias()
        found = torch.cat([tap_rows(rows, weight.to(rows.dtype)) for weight in weights], 1)
    if kept and around is not None and found.dtype == finished.dtype:
        # every row sums one centre tap, and before the sum there are fewer rows to add to
        return gather_sum(add_to_centre(found, finished, around.shape[1]), around)
    return (found if around is None else gather_sum(found, around)) + finished


class _Evaluation:
    """The rows of a map while they go through the stacks of a layer."""

    def __init__(self, layer: Modulator, columns: Columns, found: Neighbourhoods) -> None:
        self.layer, self.columns, self.found = layer, columns, found
        weight = convolutions((*layer.shared, *layer.scale))[0].weight
        self.dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype

    def explicit(self, rows: Tensor | None, channels: int) -> Tensor:
        if rows is not None:
            return rows
        like = torch.empty(0, dtype=self.dtype, device=self.columns.regions.device)
        return _start(self.columns, channels, like)

    def conv(self, convs: Sequence[Conv], name: str, rows: Tensor | None, at: int, one: float = 0.0) -> Tensor:
        around = self.found.taps[at]
        if rows is None and self.columns.values is None and convs[0].groups == 1 and around is not None and len(convs) == 1:
            result = gather_sum(_onehot_rows(convs[0], self.columns, self.dtype), around)
            return result if convs[0].bias is None else result + convs[0].bias.to(self.dtype)
        return _applied(self.layer, convs, name, self.explicit(rows, convs[0].in_channels), around, one)

    def run(self, stack: Stack, name: str, rows: Tensor | None, at: int) -> tuple[Tensor | None, int]:
        """Return the rows behind a stack and how many convolutions are behind them."""
        for number, part in enumerate(stack):
            if isinstance(part, Conv):
                rows, at = self.conv((part,), f"{name}.{number}", rows, at), at + 1
            elif isinstance(part, nn.InstanceNorm2d | nn.InstanceNorm3d):
                assert rows is not None
                shares, image = self.found.shares[at], self.found.images[at]
                assert shares is not None and image is not None
                rows = _normalised(part, rows, shares, image)
            else:
                assert rows is not None
                rows = _calls_alone(part, rows)
        return rows, at

    def table(self) -> Tensor:
        layer = self.layer
        rows, at = self.run(layer.shared, "shared", None, 0)
        firsts = [head[0] for head in layer.heads]
        if all(isinstance(conv, Conv) and conv.groups == 1 for conv in firsts):  # their products as one
            convs = [conv for conv in firsts if isinstance(conv, Conv)]
            alone = len(convs) == 2 and all(len(head) == 1 for head in layer.heads)
            side_by_side = self.conv(convs, "heads", rows, at, layer.one if alone else 0.0)
            if alone:
                return side_by_side
            parts = side_by_side.split([conv.out_channels for conv in convs], 1)
            ends = [self.run(head[1:], f"head{i}", parts[i], at + 1)[0] for i, head in enumerate(layer.heads)]
        else:
            ends = [self.run(head, f"head{i}", rows, at)[0] for i, head in enumerate(layer.heads)]
        scale, shift = _two([end for end in ends if end is not None], layer)
        return torch.cat((scale + layer.one, shift), 1)


def _two(ends: Sequence[Tensor], layer: Modulator) -> tuple[Tensor, Tensor]:
    """Scale and shift: two tensors, or the halves of one."""
    if len(ends) == 2:
        return ends[0], ends[1]
    first, second = ends[0].chunk(2, 1)
    return (second, first) if layer.shift_first else (first, second)


def _folded(norm: nn.Module, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Put the parameters of an affine norm into scale and shift, channels being dimension 1.

    Here rather than by :func:`region_norm`: what is kept of an earlier call then has them.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    shape = (-1, *(1,) * (scale.dim() - 2))
    if isinstance(bias, Tensor):
        bias = bias.to(scale.dtype).view(shape)
        shift = torch.addcmul(shift, scale, bias)
    if isinstance(weight, Tensor):
        scale = scale * weight.to(scale.dtype).view(shape)
    return scale, shift


def _is_affine(norm: nn.Module) -> bool:
    return any(isinstance(getattr(norm, name, None), Tensor) for name in ("weight", "bias"))


def _folded_rows(norm: nn.Module, rows: Tensor) -> Tensor:
    """As :func:`_folded`, of a table (P, 2C): itself where there is nothing to put in."""
    return torch.cat(_folded(norm, *rows.chunk(2, 1)), 1) if _is_affine(norm) else rows


def folds_of(layer: Modulator, segmap: Tensor, size: tuple[int, ...]) -> Folds:
    """Return which convolutions of a dense map save products at its distinct positions.

    Args:
        layer: the layer.
        segmap: (B, D, h, w), nearest-resized.
        size: (H, W) of x.
    """
    gradient = needs_gradient(layer, segmap)
    return stack_folds(layer.shared, layer.heads, segmap.shape[2:], size, segmap.shape[0], gradient)


def needs_gradient(layer: Modulator, segmap: Tensor) -> bool:
    """Say whether a gradient may come back through scale and shift.

    Args:
        layer: the layer.
        segmap: the map.
    """
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (segmap, *layer.tensors()))


def modulation(
    layer: Modulator,
    segmap: Tensor,
    columns: Columns | None,
    size: Size,
    found: Neighbourhoods | None = None,
    *,
    folds: Folds | None = None,
    channels_last: bool = False,
    hidden_of: Callable[[Callable[[], Values]], Values] | None = None,
) -> Modulation:
    """Evaluate scale and shift of a layer, the affine parameters of its norm included.

    Args:
        layer: the layer.
        segmap: (B, D, h, w), or (B, D, d, h, w); nearest-resized.
        columns: the same map by its columns, where they are few.
        size: (H, W) of x.
        found: what :func:`neighbourhoods_of` returned: the table plan; None: convolutions.
        folds: what :func:`folds_of` returned; None: it is asked.
        channels_last: the memory layout of x.
        hidden_of: given what evaluates the shared stack, returns its result: evaluated now, or by another layer.

    Returns:
        A table, or maps; differentiable in all parameters, maps in ``segmap`` as well.
    """
    if found is not None:
        assert columns is not None
        return Modulation(found.index, _folded_rows(layer.norm, _Evaluation(layer, columns, found).table()))
    if is_plain():
        return Modulation(None, None, *_plain(layer, resize_nearest(segmap, size)))
    folds = folds_of(layer, segmap, size) if folds is None else folds
    stacks = DenseStacks(layer.owner, layer.shared, layer.heads, layer.one, layer.shift_first, folds)
    gradient = needs_gradient(layer, segmap)
    make = partial(stacks.hidden, segmap, size, channels_last)
    hidden = make() if hidden_of is None or gradient else hidden_of(make)
    # one product's halves lie as x does where pixels' channels adjoin (rows of a table as they are) or there is one image of
    # planes; else, and of gradients, they would be copied
    adjoin, planes = channels_last and segmap.device.type == "cpu", not channels_last and segmap.shape[0] == 1
    apart = gradient or not (adjoin or planes or folds.last)
    both, scale, shift = stacks.ends(hidden, apart)
    if both is None:
        assert scale is not None and shift is not None
        if isinstance(scale, LatentMap) and isinstance(shift, LatentMap) and _are_few(scale):
            return Modulation(scale.index, torch.cat(_folded(layer.norm, scale.rows, shift.rows), 1))
        return Modulation(None, None, *_folded(layer.norm, dense(scale), dense(shift)))
    if isinstance(both, LatentMap) and _are_few(both):
        return Modulation(both.index, _folded_rows(layer.norm, both.rows))
    if adjoin and not _is_affine(layer.norm):
        return Modulation(*rows_of(dense(both)))
    if planes:
        scale, shift = dense(both).unflatten(1, (2, -1))[0].split(1)
        return Modulation(None, None, *_folded(layer.norm, scale, shift))
    return Modulation(None, None, *_folded(layer.norm, *(dense(half) for half in halves(both))))


def _are_few(values: LatentMap) -> bool:
    """Say whether a map has half as many distinct positions as pixels."""
    return 2 * prod(values.features.shape[2:]) <= prod(values.size)


def _plain(layer: Modulator, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, one included, and shift of all pixels of a map, as the layer's own forward has them."""
    for part in layer.shared:
        maps = part(maps)
    ends = []
    for head in layer.heads:
        end = maps
        for part in head:
            end = part(end)
        ends.append(end)
    scale, shift = _two(ends, layer)
    return scale + layer.one, shift


def modulate(norm: nn.Module, x: Tensor, found: Modulation, *, negative_slope: float | None = None) -> Tensor:
    """``act(norm(x) * scale + shift)`` in one pass behind the statistics.

    Args:
        norm: as :attr:`Modulator.norm`.
        x: (B, C, H, W), or (B, C, D, H, W) with an index or maps as large.
        found: of :func:`modulation`: the norm's affine parameters are in it, but in the plain form.
        negative_slope: LeakyReLU that follows, fused; None for none.

    Returns:
        As x; under CUDA's autocast behind a group norm float32, which is what torch's own then returns.
    """
    if found.scale is not None and found.shift is not None and is_plain():
        return plain_norm(norm, x, found.scale, found.shift, negative_slope)
    if isinstance(norm, nn.GroupNorm) and x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype != torch.float64:
        x = x.float()
    arguments = norm_arguments(norm, x, affine=True)
    index, table, scale, shift = found
    return region_norm(x, index, table, scale=scale, shift=shift, negative_slope=negative_slope, **arguments)
