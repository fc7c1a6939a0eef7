"""Stacks of convolutions on a map of dense features: all pixels, or only the distinct ones of a nearest-upsampled map.

Features that a layer enlarges have equal values at many positions, before and behind its convolutions (:class:`LatentMap`;
docs/exact_algebra.md, 15). Where that saves multiply-accumulates, convolutions run at the distinct positions alone; others
are convolutions of all pixels. Scale and shift are one product: their weights stand side by side, the "1 +" in its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backend import current_plan
from ..latent_map import Grid, Kernels, LatentMap
from ..nearest import resize_nearest
from .conv import conv2d, packed_conv2d
from .derived import Owner, derived, may_keep

Values = Tensor | LatentMap
"""A map: (B, C, H, W), or by its distinct positions."""

MOST = 0.8  # of the plain form's products may be left where distinct positions are to pay
MOST_WITH_GRADIENT = 0.5  # on the way back every part makes a gradient of the whole map
LEAST = 20e6  # products of one convolution that must be saved: what its parts cost beside their products


class Fold(NamedTuple):
    """A convolution that runs at the distinct positions of its map."""

    share: float
    """Of the products of the plain form."""
    positions: int
    """Distinct ones of what comes out, per image."""


class Folds(NamedTuple):
    """Which convolutions of a layer's stacks run at distinct positions; None: at all."""

    shared: tuple[Fold | None, ...] = ()
    heads: tuple[tuple[Fold | None, ...], ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is one. Those behind the first that is not are not either."""
        return any(fold is not None for stack in (self.shared, *self.heads) for fold in stack[:1])

    @property
    def last(self) -> bool:
        """Whether the last convolutions are among them."""
        return all(head[-1] is not None for head in self.heads)


def folds_of(
    shared: Sequence[nn.Module],
    heads: Sequence[Sequence[nn.Module]],
    cells: Sequence[int],
    size: Sequence[int],
    batch: int,
    gradient: bool,
) -> Folds:
    """Return which convolutions save products at the distinct positions of a nearest-resized map.

    Args:
        shared: the stack that reads the map.
        heads: those behind it.
        cells: (h, w) of the map.
        size: (H, W) that it is resized to.
        batch: images.
        gradient: whether one is to come back.
    """
    most = MOST_WITH_GRADIENT if gradient else MOST
    pixels = batch * size[0] * size[1]
    common, grid = _stack_folds(shared, None if current_plan() == "dense" else Grid.nearest(size, cells), pixels, most)
    return Folds(common, tuple(_stack_folds(head, grid, pixels, most)[0] for head in heads))


def _stack_folds(
    stack: Sequence[nn.Module], grid: Grid | None, pixels: int, most: float
) -> tuple[tuple[Fold | None, ...], Grid | None]:
    found: list[Fold | None] = []
    for part in stack:
        if isinstance(part, nn.InstanceNorm2d):
            grid = None  # its statistics are those of all pixels
        if not isinstance(part, nn.Conv2d):
            continue
        fold = None
        if grid is not None:
            behind, share = grid.convolved(part.kernel_size)
            saved = (1 - share) * pixels * part.weight.numel()
            pays = part.kernel_size == (1, 1) or current_plan() == "table" or saved >= LEAST
            grid = behind if share <= most and pays else None
            if grid is not None:
                fold = Fold(share, grid.cells[0] * grid.cells[1])
        found.append(fold)
    return tuple(found), grid


class Ends(NamedTuple):
    """Scale (its "1 +" included) and shift."""

    both: Values | None = None
    """(B, 2C, H, W): scale, then shift."""
    scale: Values | None = None
    shift: Values | None = None


class DenseStacks:
    """The evaluation of a layer's stacks on dense features.

    Args:
        owner: of what is derived from weights.
        shared: the stack that reads the map; may be empty.
        heads: scale and shift, or one stack with both.
        one: added to the scale.
        shift_first: one stack gives the shift first.
        folds: of :func:`folds_of`.
    """

    def __init__(
        self,
        owner: Owner,
        shared: Sequence[nn.Module],
        heads: Sequence[Sequence[nn.Module]],
        one: float,
        shift_first: bool,
        folds: Folds,
    ) -> None:
        self.owner, self.shared, self.heads = owner, shared, heads
        self.one, self.shift_first, self.folds = one, shift_first, folds

    def hidden(self, segmap: Tensor, size: tuple[int, ...], channels_last: bool) -> Values:
        """What the shared stack makes of a map, (B, F, H, W).

        Args:
            segmap: (B, D, h, w).
            size: (H, W).
            channels_last: the memory layout that is wanted.
        """
        if channels_last:
            segmap = segmap.contiguous(memory_format=torch.channels_last)
        values: Values = LatentMap(segmap, size) if self.folds.any else resize_nearest(segmap, size)
        if channels_last and isinstance(values, Tensor):
            values = values.contiguous(memory_format=torch.channels_last)
        return self._run(self.shared, "shared", values, self.folds.shared)

    def ends(self, hidden: Values, apart: bool) -> Ends:
        """Scale and shift.

        Args:
            hidden: what the shared stack made.
            apart: scale and shift are wanted as two maps.
        """
        single = all(len(head) == 1 and isinstance(head[0], nn.Conv2d) for head in self.heads)
        convs = [head[0] for head in self.heads if isinstance(head[0], nn.Conv2d)]
        alike = len({(conv.kernel_size, conv.groups, conv.in_channels) for conv in convs}) == 1 and convs[0].groups == 1
        if single and alike and not apart:
            return Ends(self._both(convs, hidden))
        ends = [self._run(head, f"head{i}", hidden, self.folds.heads[i]) for i, head in enumerate(self.heads)]
        if len(ends) == 2:
            scale, shift = ends
        else:
            scale, shift = halves(ends[0])[:: -1 if self.shift_first else 1]
        return Ends(None, _each(scale, lambda t: t + self.one) if self.one else scale, shift)

    def _run(self, stack: Sequence[nn.Module], name: str, values: Values, folds: Sequence[Fold | None]) -> Values:
        at = 0
        for number, part in enumerate(stack):
            if isinstance(part, nn.Conv2d):
                if folds[at] is None:
                    values = conv2d(part, dense(values))
                else:
                    assert isinstance(values, LatentMap)
                    values = self._convolved(values, f"{name}.{number}", part.weight, part.bias, part.groups, (part.weight,))
                at += 1
            elif isinstance(part, nn.InstanceNorm2d):
                values = _normalised(part, dense(values))
            else:
                values = _each(values, part)
        return values

    def _convolved(
        self,
        values: LatentMap,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        parameters: tuple[Tensor, ...],
    ) -> LatentMap:
        """A convolution at the distinct positions; ``parameters``: what ``weight`` was made of."""
        if not may_keep(self.owner, *parameters):
            return values.convolve(weight, bias, groups=groups)

        def keep(make: Callable[[], Kernels]) -> Kernels:
            return derived(self.owner, ("folded", name), (*parameters, values.grid), make)

        return values.convolve(weight, bias, groups=groups, keep=keep)

    def _pieces(self, convs: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
        """Weight and bias of scale and shift side by side."""
        weights = [conv.weight for conv in convs]
        biases = [conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias for conv in convs]
        if len(convs) == 1:
            weights, biases = list(weights[0].chunk(2)), list(biases[0].chunk(2))
            if self.shift_first:
                weights, biases = weights[::-1], biases[::-1]
        return torch.cat(weights), torch.cat((biases[0] + self.one, biases[1]))

    def _both(self, convs: Sequence[nn.Conv2d], hidden: Values) -> Values:
        parameters = tuple(conv.weight for conv in convs)
        biases = tuple(conv.bias for conv in convs)
        if may_keep(self.owner, *parameters, *biases):
            sources = (*parameters, *biases, self.one, self.shift_first)
            weight, bias = derived(self.owner, "side by side", sources, lambda: self._pieces(convs))
        else:
            weight, bias = self._pieces(convs)
        if self.folds.heads[0][0] is not None:
            assert isinstance(hidden, LatentMap)
            return self._convolved(hidden, "heads", weight, bias, 1, parameters)
        return packed_conv2d(self.owner, "heads", dense(hidden), weight, bias, (*parameters, *biases))


def _normalised(norm: nn.Module, values: Tensor) -> Tensor:
    """Instance norm; of one image torch 2.13 misreads a gradient in channels_last memory, so that it gets none."""
    if not torch.is_grad_enabled():
        return norm(values)  # type: ignore[no-any-return]
    result: Tensor = norm(values.contiguous())
    return result.flatten().view(values.shape)


def _each(values: Values, function: Callable[[Tensor], Tensor]) -> Values:
    """Apply what acts on every position alone."""
    return values.map(function) if isinstance(values, LatentMap) else function(values)


def dense(values: Values) -> Tensor:
    """(B, C, H, W): a map by all its pixels.

    Args:
        values: the map.
    """
    return values.dense() if isinstance(values, LatentMap) else values


def halves(values: Values) -> tuple[Values, Values]:
    """Return the first and the second half of a map's channels.

    Args:
        values: the map.
    """
    return _each(values, lambda t: t.chunk(2, 1)[0]), _each(values, lambda t: t.chunk(2, 1)[1])


def rows_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map as an index (B, H, W) int32 and rows (B * H * W, C): its pixels.

    Args:
        values: (B, C, H, W), without a copy in channels_last.
    """
    batch, channels, height, width = values.shape
    index = torch.arange(batch * height * width, dtype=torch.int32, device=values.device)
    return index.view(batch, height, width), values.permute(0, 2, 3, 1).reshape(-1, channels)
