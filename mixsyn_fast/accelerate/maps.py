"""The label map of a model's forward: read once, used by all layers.

The layers of such models pass one float one-hot map around. The outermost call keeps a table from the map (storage, shape,
strides, version counter) to its RegionMap, gone when the call ends, by an exception too. A map edited in place, even between
two layers, is another map. An edit that leaves the version counter alone (through ``.data``, numpy, or of an inference
tensor) is found by looking at the pixels a layer uses (:class:`_Pixels`), on the CPU: on a GPU that would wait for it at
every layer, and could not be captured in a CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..nearest import nearest_source
from ..region_map import RegionMap


class NotExact(Exception):
    """Raised where an input cannot be treated exactly; the argument says why."""


class _Pixels:
    """Where a hard map must hold ones, and where zeros, for a layer of some size to see the labels that were read from it.

    One value is read of every pixel with a region, all of every pixel without one, and the edges: far less than the map. An
    edit that adds a second region to a pixel and leaves the first is not found.
    """

    def __init__(self, segmap: Tensor, regions: RegionMap, size: tuple[int, int]) -> None:
        labels, edges = regions.labels_at(size).to(torch.int64), regions.edges_at(size)
        step = dict(zip("bkyx", segmap.stride(), strict=True))
        rows, columns = (nearest_source(size[i], segmap.shape[2 + i]) for i in (0, 1))
        image = torch.arange(segmap.shape[0])[:, None, None] * step["b"]
        pixel = image + rows[:, None] * step["y"] + columns * step["x"]
        inside = labels >= 0
        channel = torch.arange(regions.num_regions) * step["k"]
        ones, zeros = (pixel + labels * step["k"])[inside], (pixel[~inside][:, None] + channel).reshape(-1)
        if edges is not None:
            last = pixel + regions.num_regions * step["k"]
            ones, zeros = torch.cat((ones, last[edges])), torch.cat((zeros, last[~edges]))
        self.ones, self.zeros = ones, zeros

    def hold(self, segmap: Tensor) -> bool:
        extent = 1 + sum((n - 1) * step for n, step in zip(segmap.shape, segmap.stride(), strict=True))
        flat = segmap.as_strided((extent,), (1,))
        return bool((flat[self.ones] == 1).all()) and (not len(self.zeros) or bool((flat[self.zeros] == 0).all()))


class _Analysed:
    """A map and what was read from it."""

    def __init__(self, segmap: Tensor, num_regions: int | None, edges: bool) -> None:
        self.segmap = segmap  # kept alive: its address cannot come to mean another tensor
        self.regions = analyse(segmap, num_regions, edges)
        self._pixels: dict[tuple[int, int], _Pixels] = {}

    def still_holds(self, size: tuple[int, int]) -> bool:
        """Say whether the map still holds the labels, at the pixels that a layer of this size sees."""
        if self.regions is None or self.segmap.device.type != "cpu":
            return True
        segmap = self.segmap.detach()
        if self.regions.weights is not None:  # as a rule the map itself; of an inference tensor a copy
            return self.regions.weights.data_ptr() == segmap.data_ptr() or torch.equal(self.regions.weights, segmap)
        if size not in self._pixels:
            self._pixels[size] = _Pixels(segmap, self.regions, size)
        return self._pixels[size].hold(segmap)


class _Thread(threading.local):
    """The maps of the outermost forward that this thread is in; None outside."""

    maps: dict[Hashable, _Analysed] | None = None


_thread = _Thread()


def inside() -> bool:
    """Say whether this thread is in a forward whose maps are kept."""
    return _thread.maps is not None


@contextmanager
def kept() -> Iterator[None]:
    """Keep the maps of a forward."""
    _thread.maps = {}
    try:
        yield
    finally:
        _thread.maps = None


@contextmanager
def apart() -> Iterator[None]:
    """Leave the maps of a forward that is going on alone: a check of small copies."""
    outer, _thread.maps = _thread.maps, None
    try:
        yield
    finally:
        _thread.maps = outer


def _identity(segmap: Tensor) -> tuple[Hashable, ...]:
    """Return what tells, but for edits behind autograd's back, whether two tensors hold the same values."""
    version = -1 if segmap.is_inference() else segmap._version
    differentiable = segmap.requires_grad and torch.is_grad_enabled()
    place = (segmap.data_ptr(), segmap.shape, segmap.stride(), segmap.dtype, segmap.device)
    return (*place, version, id(segmap) if differentiable else None)


def analyse(segmap: Tensor, num_regions: int | None, edges: bool = True) -> RegionMap | None:
    """Return the RegionMap of a float map; None when its weights are not those of regions (negative, not finite).

    Args:
        segmap: (B, C, h, w).
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


def regions_of(segmap: Tensor, size: tuple[int, int], num_regions: int | None, edges: bool) -> RegionMap:
    """Return the RegionMap of a float map (B, K, h, w) for a layer of a size, analysed once per forward.

    Raises:
        NotExact: its weights are not those of regions.
    """
    maps, key = _thread.maps, (*_identity(segmap), num_regions, edges)
    found = None if maps is None else maps.get(key)
    if found is None or not found.still_holds(size):
        found = _Analysed(segmap, num_regions, edges)
        if maps is not None:
            maps[key] = found
    if found.regions is None:
        raise NotExact("the map has negative or non-finite weights")
    return found.regions
