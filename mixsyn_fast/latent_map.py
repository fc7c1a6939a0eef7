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

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .nearest import nearest_source
from .ops._common import check_device, check_floating, check_integer, check_tensor, described, fail

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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

    def _with(self, features: Tensor, axes: Sequence[Tensor] | None = None) -> LatentMap:
        made = LatentMap.__new__(LatentMap)
        made.features, made.size, made.axes = features, self.size, self.axes if axes is None else tuple(axes)
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
        for number, axis in enumerate(self.axes):
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

    def convolve(self, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1) -> LatentMap:
        """Convolve the map, with stride 1 and as many zeros around it as keep its size.

        Args:
            weight: (O, C / groups, *kernel) of odd widths, dtype of the features.
            bias: (O,) or None.
            groups: of the channels.

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
        reads = [_Reads(*each) for each in zip(self.axes, features.shape[2:], kernel, strict=True)]
        # a cell of zeros on either side of every axis: what lies outside the map
        padded = F.pad(features, [1, 1] * len(kernel))
        blocks: dict[tuple[int, ...], Tensor] = {}
        for chosen in product(*(range(len(read.kinds)) for read in reads)):
            tile, small = padded, weight
            for number, (read, which) in enumerate(zip(reads, chosen, strict=True)):
                kind = read.kinds[which]
                tile = tile.index_select(2 + number, kind.cells)
                merged = small.new_zeros(*small.shape[: 2 + number], kind.width, *small.shape[3 + number :])
                small = merged.index_add(2 + number, kind.merges, small)
            blocks[chosen] = convolution(tile, small, bias, stride=small.shape[2:], groups=groups)
        return self._with(_joined(blocks, reads), [read.axis for read in reads])


class _Kind:
    """Positions of an axis whose taps coincide in the same way.

    Attributes:
        width: distinct cells that a position reads.
        merges: (kernel,) of every tap, which of those it reads.
        cells: (positions * width,): the cells, padded, that each position reads.
        places: (positions,): the positions' numbers among all distinct ones.
    """

    def __init__(self, merges: tuple[int, ...], windows: Tensor, places: list[int]) -> None:
        self.width = merges[-1] + 1
        self.merges = torch.tensor(merges, device=windows.device)
        taps = [merges.index(which) for which in range(self.width)]
        self.places = torch.tensor(places, device=windows.device)
        self.cells = windows[self.places][:, taps].reshape(-1)


class _Reads:
    """What a convolution reads along one axis: distinct windows of cells, in order.

    Attributes:
        axis: (size,): the distinct window of every position.
        kinds: the windows, by how their taps coincide.
        order: (windows,): places of the windows, kinds one after another, in their own order.
    """

    def __init__(self, axis: Tensor, cells: int, kernel: int) -> None:
        reach = kernel // 2
        # padded cells: 0 and cells + 1 lie outside the map
        positions = F.pad(F.pad(axis + 1, (reach, 0)), (0, reach), value=cells + 1)
        windows = positions.unfold(0, kernel, 1)
        # cells do not decrease along an axis, so that equal windows stand side by side
        windows, self.axis = torch.unique_consecutive(windows, dim=0, return_inverse=True)
        steps = F.pad((windows[:, 1:] != windows[:, :-1]).cumsum(1), (1, 0)).tolist()
        places: dict[tuple[int, ...], list[int]] = {}
        for number, merges in enumerate(steps):
            places.setdefault(tuple(merges), []).append(number)
        self.kinds = [_Kind(merges, windows, numbers) for merges, numbers in places.items()]
        self.order = torch.argsort(torch.cat([kind.places for kind in self.kinds]))


def _joined(blocks: dict[tuple[int, ...], Tensor], reads: Sequence[_Reads]) -> Tensor:
    """Put together what was computed kind by kind: the last axis first."""
    for number in reversed(range(len(reads))):
        beginnings = {chosen[:number] for chosen in blocks}
        kinds = range(len(reads[number].kinds))
        joined = {start: torch.cat([blocks[(*start, kind)] for kind in kinds], 2 + number) for start in beginnings}
        blocks = {start: part.index_select(2 + number, reads[number].order) for start, part in joined.items()}
    return blocks[()]


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
    axis, reads = nearest_source(size, cells), None
    for _ in range(layers):
        reads = _Reads(axis, cells, kernel)
        axis, cells = reads.axis, int(reads.axis[-1]) + 1
    assert reads is not None
    return sum(len(kind.cells) for kind in reads.kinds) / (size * kernel)
