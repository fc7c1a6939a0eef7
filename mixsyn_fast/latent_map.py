"""LatentMap: a map given as features of a smaller size, which a layer upsamples by nearest, without ever making it.

Decoders modulate by a latent (1 x 1 convolutions of it), face animation by dense features (3 x 3 convolutions), both
upsampled to the size of x by ``F.interpolate(mode="nearest")``. A map of that kind depends on the position along each axis
through the source position alone, so it has one value per cell of a grid, and stays of that kind (of a finer grid) under
convolutions:

* a 1 x 1 convolution and upsampling exchange: a table of the latent's pixels, s * s times less work at an s-fold size;
* a k-wide convolution at position i reads the cells of i - k // 2 .. i + k // 2. Positions with equal cells have equal
  values, taps that read one cell become one (their weights are added), so an s-fold upsampled map has at most min(s, 3)
  distinct positions per cell and axis after one 3-wide convolution and min(s, 5) after two: at most 25 rows a cell in two
  dimensions. For integer s this is polyphase evaluation; other ratios are treated alike.

The same mathematics in another order (docs/exact_algebra.md, 15). Outside the map every convolution reads zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .nearest import nearest_source
from .ops._common import (
    acc_dtype,
    check_device,
    check_floating,
    check_integer,
    check_tensor,
    described,
    fail,
    is_channels_last,
)
from .ops._common import dense as as_dense

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MOST_PHASES = 8  # steps that windows of one kind may take turns in, before they are gathered one by one

Kernels = dict[tuple[int, ...], Tensor]
"""Weights of a convolution by the kinds of positions along every axis: taps that read one cell are added."""


class LatentMap:
    """A map (B, C, *size) that is constant within the cells of a grid (B, C, *cells).

    Args:
        features: (B, C, *cells) floating, one to three spatial dimensions.
        size: of the map, one positive integer per dimension.
        axes: per dimension the cell of every position, (size,) integers that do not decrease, in [0, cells); None for the
            rule of ``F.interpolate(mode="nearest")``. Video decoders, for example, resize their first frame alone.

    Raises:
        ValueError: a shape, a size or a cell does not fit.
        TypeError: features not floating, or an argument of another type.

    Gradients reach the features, and weights and biases of what is applied to them, in their own precision.
    """

    def __init__(self, features: Tensor, size: Sequence[int], *, axes: Sequence[Tensor] | None = None) -> None:
        name = "LatentMap"
        check_tensor(name, "features", features)
        dimensions = features.dim() - 2
        if dimensions not in _CONVOLUTIONS:
            fail(
                name, "features", "shape (B, C, ...) with one to three spatial dimensions", f"shape {tuple(features.shape)}"
            )
        check_floating(name, "features", features)
        if 0 in features.shape[2:]:
            fail(name, "features", "a cell at least in every dimension", f"shape {tuple(features.shape)}")
        expected = f"{dimensions} positive integers"
        if not isinstance(size, Sequence):
            fail(name, "size", expected, described(size), TypeError)
        if len(size) != dimensions:
            fail(name, "size", expected, tuple(size))
        self.features = features
        self.size = tuple(check_integer(name, "size", side, 1, None, expected) for side in size)
        cells, device = features.shape[2:], features.device
        if axes is None:
            self.axes = tuple(nearest_source(side, full, device) for side, full in zip(self.size, cells, strict=True))
            self.grid = Grid.nearest(self.size, cells)
            return
        if len(axes) != dimensions:
            fail(name, "axes", f"{dimensions} tensors", f"{len(axes)}")
        for axis, side, full in zip(axes, self.size, cells, strict=True):
            check_tensor(name, "axes", axis)
            check_device(name, "axes", axis, device)
            if axis.shape != (side,) or axis.dtype not in (torch.int64, torch.int32):
                fail(name, "axes", f"integers of shape ({side},)", described(axis))
            if bool((axis < 0).any() | (axis >= full).any() | (axis[1:] < axis[:-1]).any()):
                fail(name, "axes", f"cells in [0, {full}) that do not decrease", "others")
        self.axes = tuple(axis.to(torch.int64) for axis in axes)
        self.grid = Grid(tuple(tuple(axis.tolist()) for axis in axes), tuple(cells))

    def _with(self, features: Tensor, grid: Grid | None = None) -> LatentMap:
        made = LatentMap.__new__(LatentMap)
        made.features, made.size = features, self.size
        made.axes, made.grid = self.axes, self.grid
        if grid is not None:
            made.axes, made.grid = tuple(torch.tensor(axis, device=features.device) for axis in grid.axes), grid
        return made

    def __repr__(self) -> str:
        return f"LatentMap(features={tuple(self.features.shape)}, size={self.size}, device={self.features.device})"

    @property
    def index(self) -> Tensor:
        """(B, *size) int32: the row of :attr:`rows` of every position, as :func:`region_norm` takes it."""
        index = torch.arange(self.features.shape[0], device=self.features.device)
        for axis, cells in zip(self.axes, self.features.shape[2:], strict=True):
            index = index[..., None] * cells + axis
        return index.to(torch.int32)

    @property
    def rows(self) -> Tensor:
        """(B * cells, C): the features of every cell, images one after another, in raster order."""
        return self.features.movedim(1, -1).reshape(-1, self.features.shape[1])

    def dense(self) -> Tensor:
        """(B, C, *size): the map itself."""
        made = self.features
        channels_last = is_channels_last(made) if made.dim() == 4 else False
        for number, (axis, cell) in enumerate(zip(self.axes, self.grid.axes, strict=True)):
            if cell == tuple(range(made.shape[2 + number])):
                continue  # every position is a cell of its own
            if channels_last:  # index_select answers in contiguous memory: of the channels' pixels
                made = made.permute(0, 2, 3, 1).index_select(1 + number, axis).permute(0, 3, 1, 2)
            else:
                made = made.index_select(2 + number, axis)
        return made

    def map(self, function: Callable[[Tensor], Tensor]) -> LatentMap:
        """Apply a function that acts on every position alike, such as an activation.

        Args:
            function: (B, C, *cells) -> (B, C', *cells).

        Raises:
            ValueError: the function changes the batch or the number of cells.
        """
        made = function(self.features)
        if made.shape[0] != self.features.shape[0] or made.shape[2:] != self.features.shape[2:]:
            fail(
                "LatentMap.map",
                "function",
                f"a result of {tuple(self.features.shape[2:])} cells",
                f"shape {tuple(made.shape)}",
            )
        return self._with(made)

    def convolve(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        groups: int = 1,
        keep: Callable[[Callable[[], Kernels]], Kernels] | None = None,
    ) -> LatentMap:
        """Convolve the map, with stride 1 and as many zeros around it as keep its size.

        Args:
            weight: (O, C / groups, *kernel) of odd widths, dtype of the features.
            bias: (O,) or None.
            groups: of the channels.
            keep: given what makes the kernels of added taps, returns them: made now, or kept from an earlier call with this
                weight and grid. None: made now.

        Returns:
            The convolved map, on a grid that is as much finer as the kernel is wide.

        Raises:
            ValueError: a kernel of an even width or of another number of dimensions.
        """
        name, features = "LatentMap.convolve", self.features
        check_tensor(name, "weight", weight)
        kernel = tuple(weight.shape[2:])
        if len(kernel) != len(self.size) or not all(width % 2 for width in kernel):
            fail(name, "weight", f"{len(self.size)} odd widths behind (O, C)", f"shape {tuple(weight.shape)}")
        convolution = _CONVOLUTIONS[len(kernel)]
        if max(kernel) == 1:
            return self._with(convolution(features, weight, bias, groups=groups))
        reads = self.grid.reads(kernel)
        make = functools.partial(_kernels, weight, reads)
        kernels = make() if keep is None else keep(make)
        # a cell of zeros on either side of every axis: what lies outside the map
        padded = F.pad(features, [1, 1] * len(kernel))
        blocks = (
            (chosen, convolution(tile, kernels[chosen], bias, stride=strides, groups=groups))
            for chosen, strides, tile in _tiles(padded, reads)
        )
        return self._with(_joined(blocks, reads), self.grid.behind(reads))


class _Kind(NamedTuple):
    """Positions of an axis whose taps coincide in the same way."""

    width: int
    """Distinct cells that a position reads."""
    merges: tuple[int, ...]
    """Of every tap, which of those it reads."""
    cells: tuple[int, ...]
    """(positions * width,): the cells, padded, that each position reads."""
    step: int
    """From one position's cells to the next one's, where it is always the same and each one's cells adjoin; else 0."""
    places: tuple[int, ...]
    """(positions,): the positions' numbers among all distinct ones."""

    def read(self, t: Tensor, dim: int) -> Tensor:
        """What a convolution of this kind reads, with the stride ``step``, or the width where that is 0."""
        if self.step:
            return t.narrow(dim, self.cells[0], self.cells[-1] - self.cells[0] + 1)
        return t.index_select(dim, torch.tensor(self.cells, device=t.device))

    @property
    def lies(self) -> slice | None:
        """The places as a slice, or None."""
        step = self.places[1] - self.places[0] if len(self.places) > 1 else 1
        regular = self.places == tuple(range(self.places[0], self.places[-1] + 1, step))
        return slice(self.places[0], self.places[-1] + 1, step) if regular else None


class _Reads(NamedTuple):
    """What a convolution reads along one axis: distinct windows of cells, in order."""

    axis: tuple[int, ...]
    """(size,): the distinct window of every position."""
    kinds: tuple[_Kind, ...]
    """The windows, by how their taps coincide."""

    @property
    def windows(self) -> int:
        """How many there are."""
        return self.axis[-1] + 1

    @property
    def products(self) -> int:
        """Cells that are multiplied, of all windows."""
        return sum(len(kind.cells) for kind in self.kinds)


@functools.lru_cache(maxsize=256)
def _reads(axis: tuple[int, ...], cells: int, kernel: int) -> _Reads:
    """Return what a convolution reads along an axis; numbers alone, so that it may be kept."""
    reach = kernel // 2
    # padded cells: 0 and cells + 1 lie outside the map
    positions = (0,) * reach + tuple(cell + 1 for cell in axis) + (cells + 1,) * reach
    windows: list[tuple[int, ...]] = []
    numbers: list[int] = []
    for at in range(len(axis)):
        window = positions[at : at + kernel]
        if not windows or window != windows[-1]:  # cells do not decrease, so that equal windows stand side by side
            windows.append(window)
        numbers.append(len(windows) - 1)
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, window in enumerate(windows):
        changes = (b != a for a, b in zip(window, window[1:], strict=False))
        alike.setdefault(tuple(accumulate(changes, initial=0)), []).append(number)
    return _Reads(tuple(numbers), tuple(kind for merges in alike for kind in _phases(merges, windows, alike[merges])))


def _phases(merges: tuple[int, ...], windows: list[tuple[int, ...]], places: list[int]) -> list[_Kind]:
    """Part windows of a kind into as few as possible whose cells are evenly spaced: those read slices, not copies."""
    taps = [merges.index(which) for which in range(merges[-1] + 1)]
    cells = [tuple(windows[place][tap] for tap in taps) for place in places]
    adjoin = all(b == a + 1 for window in cells for a, b in zip(window, window[1:], strict=False))
    for count in range(1, min(_MOST_PHASES, len(places)) + 1) if adjoin else ():
        found = []
        for phase in range(count):
            chosen = cells[phase::count]
            step = chosen[1][0] - chosen[0][0] if len(chosen) > 1 else len(taps)
            if not step or any(b[0] - a[0] != step for a, b in zip(chosen, chosen[1:], strict=False)):
                break
            found.append(_Kind(len(taps), merges, sum(chosen, ()), step, tuple(places[phase::count])))
        else:
            return found
    return [_Kind(len(taps), merges, sum(cells, ()), 0, tuple(places))]


@functools.lru_cache(maxsize=256)
def _nearest(size: int, cells: int) -> tuple[int, ...]:
    return tuple(nearest_source(size, cells).tolist())


class Grid(NamedTuple):
    """Where the positions of a map lie in the cells of its features."""

    axes: tuple[tuple[int, ...], ...]
    """Per axis the cell of every position; they do not decrease."""
    cells: tuple[int, ...]
    """How many cells there are along every axis."""

    @classmethod
    def nearest(cls, size: Sequence[int], cells: Sequence[int]) -> Grid:
        """Return the grid of ``F.interpolate(mode="nearest")``.

        Args:
            size: of the map.
            cells: of the features.
        """
        return cls(tuple(_nearest(side, full) for side, full in zip(size, cells, strict=True)), tuple(cells))

    def reads(self, kernel: Sequence[int]) -> tuple[_Reads, ...]:
        """Return what a convolution with odd kernel widths reads along every axis."""
        return tuple(_reads(*each) for each in zip(self.axes, self.cells, kernel, strict=True))

    @staticmethod
    def behind(reads: Sequence[_Reads]) -> Grid:
        """Return the grid of what a convolution gives."""
        return Grid(tuple(read.axis for read in reads), tuple(read.windows for read in reads))

    def convolved(self, kernel: Sequence[int]) -> tuple[Grid, float]:
        """Return the grid behind a same-size convolution, and its products over those of the plain one.

        Args:
            kernel: odd widths, one per axis.
        """
        size = prod(len(axis) for axis in self.axes)
        if max(kernel) == 1:
            return self, prod(self.cells) / size
        reads = self.reads(kernel)
        return self.behind(reads), prod(read.products for read in reads) / (size * prod(kernel))


def _kernels(weight: Tensor, reads: Sequence[_Reads]) -> Kernels:
    """Add the taps that read one cell, for every choice of a kind per axis; half precision is rounded once."""
    made: Kernels = {(): weight.to(acc_dtype(weight.dtype))}
    for number, read in enumerate(reads):
        dim, wider = 2 + number, dict[tuple[int, ...], Tensor]()
        for chosen, small in made.items():
            done: dict[tuple[int, ...], Tensor] = {}
            for which, kind in enumerate(read.kinds):
                if kind.merges not in done:
                    parts = [
                        small.narrow(dim, kind.merges.index(cell), kind.merges.count(cell)).sum(dim, keepdim=True)
                        for cell in range(kind.width)
                    ]
                    done[kind.merges] = small if kind.width == small.shape[dim] else torch.cat(parts, dim)
                wider[(*chosen, which)] = done[kind.merges]
        made = wider
    return {chosen: small.to(weight.dtype) for chosen, small in made.items()}


def _tiles(t: Tensor, reads: Sequence[_Reads]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Tensor]]:
    """Yield kinds of positions, one per axis, the strides of their convolution and what it reads of a padded map.

    The last axis is read first: slices along the others then need few copies, in channels_last of one image none.
    """
    if not reads:
        yield (), (), t
        return
    *before, last = reads
    for which, kind in enumerate(last.kinds):
        for chosen, strides, tile in _tiles(as_dense(kind.read(t, 1 + len(reads))), before):
            yield (*chosen, which), (*strides, kind.step or kind.width), tile


def _joined(blocks: Iterator[tuple[tuple[int, ...], Tensor]], reads: Sequence[_Reads]) -> Tensor:
    """Put together what was computed kind by kind, without gradients each at its places, with them the last axis first."""
    places = [[kind.lies for kind in read.kinds] for read in reads]
    chosen, block = next(blocks)
    if not block.requires_grad and all(None not in axis for axis in places):
        shape = (*block.shape[:2], *(read.windows for read in reads))
        channels_last = len(reads) == 2 and is_channels_last(block)
        made = torch.empty(
            shape,
            dtype=block.dtype,
            device=block.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        while True:
            made[(slice(None), slice(None), *(axis[i] for axis, i in zip(places, chosen, strict=True)))] = block
            following = next(blocks, None)
            if following is None:
                return made
            chosen, block = following
    parts = {chosen: block, **dict(blocks)}
    for number in reversed(range(len(reads))):
        kinds = reads[number].kinds
        order = torch.tensor([place for kind in kinds for place in kind.places], device=block.device).argsort()
        beginnings = dict.fromkeys(chosen[:number] for chosen in parts)
        joined = {start: torch.cat([parts[(*start, i)] for i in range(len(kinds))], 2 + number) for start in beginnings}
        parts = {start: part.index_select(2 + number, order) for start, part in joined.items()}
    return parts[()]


def work_share(size: int, cells: int, kernel: int, layers: int = 1) -> float:
    """Products of the last of some convolutions along one axis of a nearest-upsampled map, over those of the plain one.

    Args:
        size: positions of the map.
        cells: of the features.
        kernel: odd width of every convolution.
        layers: convolutions one after another.

    Returns:
        The share, to be multiplied over the axes: 25 / 144 for two axes, a 3-wide kernel and a fourfold size.
    """
    grid, share = Grid.nearest((size,), (cells,)), 1.0
    for _ in range(layers):
        grid, share = grid.convolved((kernel,))
    return share
