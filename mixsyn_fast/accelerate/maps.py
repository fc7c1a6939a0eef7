"""The label map of a model's forward: read once, used by all layers.

The layers of such models pass one float one-hot map around. The outermost call keeps a table from the map (storage, shape,
strides, version counter) to its RegionMap, gone when the call ends, by an exception too. A map edited in place, even between
two layers, is another map. An edit that leaves the version counter alone (through ``.data``, numpy, or of an inference
tensor) is found by looking at the pixels a layer uses (:class:`_Pixels`), on the CPU: on a GPU that would wait for it at
every layer, and could not be captured in a CUDA graph.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..backend import current_plan
from ..layers.dense_stacks import Values
from ..layers.stacks import Columns, Modulation, Modulator, Stack, convolutions
from ..nearest import nearest_source
from ..ops.label_patterns import MAX_REGIONS
from ..region_map import RegionMap

_SAMPLE = 1024  # pixels that are looked at before all columns of a map are compared
_FEW = 32  # of them that are looked at first: enough where nearly all repeat
_WITNESSES = 64  # columns that another is compared with, to find the channel in which it differs
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class NotExact(Exception):
    """Raised where an input cannot be treated exactly; the argument says why."""


class _Pixels:
    """What a map must hold at some positions for a layer of some size to see what was read from it.

    Of a one-hot map one value is looked at of every pixel with a region, all of every pixel without one, and the edges: far
    less than the map. Of a map of other columns one value of every pixel, of the channel by which its column differs from
    most others. An edit that adds a second region to a pixel and leaves the first is not found.
    """

    def __init__(self, segmap: Tensor, columns: Columns, size: tuple[int, ...]) -> None:
        regions, values = columns.regions, columns.values
        labels, edges = regions.labels_at(size).to(torch.int64), regions.edges_at(size)
        of_image, plane, *steps = segmap.stride()
        pixel = torch.arange(segmap.shape[0]) * of_image
        for side, full, step in zip(size, segmap.shape[2:], steps, strict=True):
            pixel = pixel[..., None] + nearest_source(side, full) * step
        if values is not None:
            others = values[:_WITNESSES]
            channel = torch.cat([(others != some[:, None]).sum(1).argmax(1) for some in values.split(_WITNESSES)])
            self.at, self.expected = (pixel + channel[labels] * plane), values[labels, channel[labels]]
            return
        inside = labels >= 0
        planes = torch.arange(regions.num_regions) * plane
        ones, zeros = (pixel + labels * plane)[inside], (pixel[~inside][:, None] + planes).reshape(-1)
        if edges is not None:
            last = pixel + regions.num_regions * plane
            ones, zeros = torch.cat((ones, last[edges])), torch.cat((zeros, last[~edges]))
        self.at = torch.cat((ones, zeros))
        self.expected = torch.cat((segmap.new_ones(len(ones)), segmap.new_zeros(len(zeros))))

    def hold(self, segmap: Tensor) -> bool:
        extent = 1 + sum((n - 1) * step for n, step in zip(segmap.shape, segmap.stride(), strict=True))
        return torch.equal(segmap.as_strided((extent,), (1,))[self.at], self.expected)


class Analysed:
    """A map and what was read from it: regions (hard or soft, None where it has none), or columns."""

    _numbers = itertools.count()

    def __init__(self, segmap: Tensor, num_regions: int | None, edges: bool, by_columns: bool) -> None:
        self.how, self.number = (num_regions, edges, by_columns), next(Analysed._numbers)
        self.segmap = segmap  # kept alive: its address cannot come to mean another tensor
        self.regions: RegionMap | None = None
        if not by_columns or _may_be_onehot(segmap.detach()):
            self.regions = analyse(segmap, num_regions, edges)
        self.columns: Columns | None = None
        if self.regions is not None and not self.regions.is_soft:
            self.columns = Columns(self.regions, None)
        elif by_columns and not (segmap.requires_grad and torch.is_grad_enabled()):
            self.columns = distinct_columns(segmap.detach())
        self.by_columns = by_columns
        self._pixels: dict[tuple[int, ...], _Pixels] = {}

    def of(self, segmap: Tensor) -> Analysed:
        """Return the same of another tensor that holds the same values."""
        twin = copy.copy(self)
        twin.segmap, twin._pixels = segmap, {}
        if self.columns is None and self.regions is not None:  # weights: those of the tensor itself
            twin.regions = analyse(segmap, self.how[0], self.how[1])
        return twin

    def still_holds(self, size: tuple[int, ...]) -> bool:
        """Say whether the map still holds what was read, at the pixels that a layer of this size sees."""
        if self.segmap.device.type != "cpu":
            return True
        segmap = self.segmap.detach()
        if self.columns is not None:
            if size not in self._pixels:
                self._pixels[size] = _Pixels(segmap, self.columns, size)
            return self._pixels[size].hold(segmap)
        if self.by_columns or self.regions is None or self.regions.weights is None:
            return True  # nothing was read: the layer looks at the map itself
        # as a rule the map itself; of an inference tensor a copy
        return self.regions.weights.data_ptr() == segmap.data_ptr() or torch.equal(self.regions.weights, segmap)


class Store(Protocol):
    """What is kept over several forwards (:mod:`.constant`)."""

    def known(self, segmap: Tensor, how: tuple[Hashable, ...], make: Callable[[], Analysed]) -> Analysed:
        """Return what was read from a map of the same content, else what ``make`` reads from it."""

    def modulation(
        self, found: Analysed, layer: Modulator, how: tuple[Hashable, ...], make: Callable[[], Modulation]
    ) -> Modulation:
        """Return the scale and shift of a layer for a map, as it was made while the weights were what they are."""


_asked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of first convolutions' weights: how many layers of a forward asked for the same result of them, last time."""


class _Result:
    """What a shared stack made of a map."""

    def __init__(self, value: Values, segmap: Tensor, left: int) -> None:
        self.value, self.left = value, left
        self.snapshot = segmap.detach().clone() if segmap.device.type == "cpu" else None

    def holds_for(self, segmap: Tensor) -> bool:
        return self.snapshot is None or torch.equal(self.snapshot, segmap.detach())


class _Shared:
    """Results of shared stacks in a forward, each for as long as layers are to ask for it."""

    def __init__(self) -> None:
        self.results: dict[Hashable, _Result] = {}
        self.asked: dict[Hashable, tuple[Stack, int]] = {}

    def get(self, key: Hashable, stack: Stack, segmap: Tensor, make: Callable[[], Values]) -> tuple[Values, bool]:
        """Return a result, and whether it was there."""
        asked = self.asked[key][1] + 1 if key in self.asked else 1
        self.asked[key] = stack, asked
        found = self.results.get(key)
        if found is not None and found.holds_for(segmap):
            found.left -= 1
            if not found.left:
                del self.results[key]
            return found.value, True
        value, left = make(), _asked.get(convolutions(stack)[0].weight, 0) - asked
        if left > 0:
            self.results[key] = _Result(value, segmap, left)
        return value, False

    def learn(self) -> None:
        """Remember how many layers asked, where there were several, or had been."""
        counts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for stack, asked in self.asked.values():
            weight = convolutions(stack)[0].weight
            counts[weight] = max(asked, counts.get(weight, 0))
        for weight, asked in counts.items():
            if asked > 1:
                _asked[weight] = asked
            else:
                _asked.pop(weight, None)


class Sharing:
    """What the shared stack of a layer makes of a map: once in a forward for all layers that hold the same weights.

    How many these are is what the forward before showed: then the first one's result is kept until the last has it, or the
    forward ends. For results that need no gradient.

    Attributes:
        taken: whether it was another layer's.
    """

    def __init__(self, segmap: Tensor, stack: Stack, size: tuple[int, ...], channels_last: bool) -> None:
        self.segmap, self.stack, self.size, self.channels_last, self.taken = segmap, stack, size, channels_last, False

    def hidden(self, make: Callable[[], Values]) -> Values:
        """Return ``make()``, or what it was for another layer.

        Args:
            make: evaluates the stack.
        """
        if _thread.shared is None or not self.stack:
            return make()
        parts = tuple((repr(part), *map(_mark, part._parameters.values())) for part in self.stack)
        device = self.segmap.device.type
        cast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        key = (*_identity(self.segmap), self.size, self.channels_last, current_plan(), cast, parts)
        value, self.taken = _thread.shared.get(key, self.stack, self.segmap, make)
        return value


def _mark(parameter: Tensor | None) -> tuple[int, int] | None:
    return None if parameter is None else (id(parameter), -1 if parameter.is_inference() else parameter._version)


class _Thread(threading.local):
    """The maps of the outermost forward that this thread is in, None outside; and what is kept beyond it."""

    maps: dict[Hashable, Analysed] | None = None
    store: Store | None = None
    shared: _Shared | None = None


_thread = _Thread()


def inside() -> bool:
    """Say whether this thread is in a forward whose maps are kept."""
    return _thread.maps is not None


@contextmanager
def kept(store: Store | None = None) -> Iterator[None]:
    """Keep the maps of a forward, and in a store beyond it."""
    _thread.maps, _thread.store, _thread.shared = {}, store, _Shared()
    try:
        yield
        _thread.shared.learn()
    finally:
        _thread.maps = _thread.store = _thread.shared = None


@contextmanager
def apart() -> Iterator[None]:
    """Leave the maps of a forward that is going on alone: a check of small copies."""
    outer = _thread.maps, _thread.store, _thread.shared
    _thread.maps = _thread.store = _thread.shared = None
    try:
        yield
    finally:
        _thread.maps, _thread.store, _thread.shared = outer


def _identity(segmap: Tensor) -> tuple[Hashable, ...]:
    """Return what tells, but for edits behind autograd's back, whether two tensors hold the same values."""
    version = -1 if segmap.is_inference() else segmap._version
    differentiable = segmap.requires_grad and torch.is_grad_enabled()
    place = (segmap.data_ptr(), segmap.shape, segmap.stride(), segmap.dtype, segmap.device)
    return (*place, version, id(segmap) if differentiable else None)


def analyse(segmap: Tensor, num_regions: int | None, edges: bool = True) -> RegionMap | None:
    """Return the RegionMap of a float map; None when its weights are not those of regions (negative, not finite).

    Args:
        segmap: (B, C, h, w) or (B, C, d, h, w).
        num_regions: K, when the map has one channel more for edges; None: found out.
        edges: whether the last channel may be one of binary edges that nobody announced.
    """
    if not (segmap.requires_grad and torch.is_grad_enabled()):
        segmap = segmap.detach()
        channels = segmap.shape[1]
        # all channels are regions; or the last one is binary instance edges; or weights
        hard = [num_regions] if num_regions is not None else [channels, channels - 1] if edges else [channels]
        for count in hard:
            if count > 0:
                try:
                    return RegionMap.from_onehot(segmap, num_regions=count, keep_mask=True)
                except ValueError:
                    continue
    try:
        return RegionMap.soft(segmap)
    except ValueError:
        return None


def distinct_columns(segmap: Tensor) -> Columns | None:
    """Return a map by its distinct pixel columns, found by exact comparison; None where they are more than 512.

    Pixels are compared with the one before them, and columns are looked for among those that differ: a map of regions
    is read once, whatever the number of its channels.

    Args:
        segmap: (B, D, h, w) or (B, D, d, h, w) floating, without gradient.
    """
    batch, _, *volume = segmap.shape
    for count in (_FEW, _SAMPLE):
        sample = _sampled(segmap, count)
        if len(torch.unique(_keys(sample))) <= min(MAX_REGIONS, max(1, len(sample) // 2)):
            break
    else:
        return None
    begins = _begins(segmap)
    columns = _columns_at(segmap, begins.nonzero()[:, 0])
    # Equal columns have, as a rule, equal keys; where they have not, they are merged below.
    found, inverse = torch.unique(_keys(columns), return_inverse=True)
    if len(found) > 2 * MAX_REGIONS:
        return None
    place = torch.zeros(len(found), dtype=torch.int64, device=segmap.device)
    place[inverse] = torch.arange(len(columns), device=segmap.device)
    values, merged = torch.unique(columns[place], dim=0, return_inverse=True)
    if len(values) > MAX_REGIONS or bool(values.isnan().any()):
        return None
    inverse = merged[inverse]
    same = torch.equal(values.index_select(0, inverse), columns)  # and whether equal keys are equal columns
    labels = inverse.index_select(0, begins.cumsum(0) - 1).view(batch, *volume)
    return Columns(RegionMap(labels, len(values)), values) if same else None


def _begins(segmap: Tensor) -> Tensor:
    """Which pixels differ in a bit from the one before in raster order, (B * pixels,) bool; the first does."""
    batch, channels, *volume = segmap.shape
    bits, pixels = segmap.view(_BITS[segmap.element_size()]), prod(volume)
    begins = torch.ones(batch, pixels, dtype=torch.bool, device=segmap.device)
    if segmap.stride(1) == 1 and channels > 1:
        rows = bits.movedim(1, -1).reshape(batch, pixels, channels)
        differs = rows[:, 1:] != rows[:, :-1]
        begins[:, 1:] = (differs.view(torch.int64) if channels % 8 == 0 else differs).any(2)  # eight at a time
        return begins.view(-1)
    # on the CPU bits of integers are compared at four times the rate of a comparison, whose result is a bool
    differs = torch.zeros(batch, pixels - 1, dtype=bits.dtype, device=segmap.device)
    other = torch.empty_like(differs)
    for plane in bits.reshape(batch, channels, pixels).unbind(1):
        differs |= torch.bitwise_xor(plane[:, 1:], plane[:, :-1], out=other)
    begins[:, 1:] = differs != 0
    return begins.view(-1)


def _keys(columns: Tensor) -> Tensor:
    """A number (N,) int64 for every column (N, D): two sums by random weights, equal for equal ones but for rounding."""
    values = columns if columns.dtype in (torch.float32, torch.float64) else columns.float()
    weights = torch.randn(values.shape[1], 2, generator=torch.Generator().manual_seed(7), dtype=values.dtype)
    sums = (values @ weights.to(values.device)).t().contiguous()
    first, second = sums.view(_BITS[sums.element_size()]).to(torch.int64).unbind(0)
    return first * (1 << 32) + second


def _columns_at(segmap: Tensor, at: Tensor) -> Tensor:
    """Columns (N, D) of a map (B, D, [d,] h, w) at pixels (N,) in raster order."""
    if segmap.shape[0] == 1 and segmap.is_contiguous():  # plane by plane
        return segmap.view(segmap.shape[1], -1).index_select(1, at).t().contiguous()
    image, *place = torch.unravel_index(at, (segmap.shape[0], *segmap.shape[2:]))
    index: tuple[Tensor | slice, ...] = (image, slice(None), *place)
    return segmap[index]


def _sampled(segmap: Tensor, count: int = _SAMPLE) -> Tensor:
    """Some pixels' columns (N, D) of a map (B, D, [d,] h, w), spread over it."""
    pixels = segmap.shape[0] * prod(segmap.shape[2:])
    step = max(1, pixels // count) | 1  # odd: not the same place of every row
    return _columns_at(segmap, torch.arange(0, pixels, step, device=segmap.device))


def _may_be_onehot(segmap: Tensor) -> bool:
    """Say whether a sample of a map holds zeros and ones alone."""
    samples = (_sampled(segmap, count) for count in (_FEW, _SAMPLE))
    return all(bool(((sample == 0) | (sample == 1)).all()) for sample in samples)


def _analysed(segmap: Tensor, size: tuple[int, ...], num_regions: int | None, edges: bool, by_columns: bool) -> Analysed:
    """Return what is read from a map, once per forward."""
    how = num_regions, edges, by_columns
    maps, store, key = _thread.maps, _thread.store, (*_identity(segmap), *how)
    found = None if maps is None else maps.get(key)
    if found is None or not found.still_holds(size):
        make = functools.partial(Analysed, segmap, *how)
        found = make() if store is None else store.known(segmap, how, make)
        if maps is not None:
            maps[key] = found
    return found


def columns_of(segmap: Tensor, size: tuple[int, ...], num_regions: int | None) -> Analysed:
    """Return a float map (B, D, [d,] h, w) by its columns for a layer of a size, found once per forward.

    A one-hot map, perhaps with edges in its last channel, is one of few columns.
    """
    return _analysed(segmap, size, num_regions, True, True)


def modulation_of(
    found: Analysed, layer: Modulator, how: tuple[Hashable, ...], make: Callable[[], Modulation]
) -> Modulation:
    """Return ``make()``, the scale and shift of a layer for a map, or what is kept of an earlier forward."""
    return make() if _thread.store is None else _thread.store.modulation(found, layer, how, make)


def regions_of(segmap: Tensor, size: tuple[int, ...], num_regions: int | None, edges: bool) -> RegionMap:
    """Return the RegionMap of a float map (B, K, h, w) for a layer of a size, analysed once per forward.

    Raises:
        NotExact: its weights are not those of regions.
    """
    found = _analysed(segmap, size, num_regions, edges, False)
    if found.regions is None:
        raise NotExact("the map has negative or non-finite weights")
    return found.regions
