"""Conditioning that stays over many calls of an accelerated model: a sampler asks for one label map at every step.

Within ``with constant_conditioning(model):`` what was read from a map is found again by the map's content, and every layer's
finished scale and shift by the map, the size, the precision and the state of the layer, for as long as none of its weights
changes. Nothing else differs: outputs are those without it, bit for bit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..backend import current_backend, current_plan
from ..layers.derived import Fingerprint, may_keep, times_forgotten
from ..layers.stacks import Modulation, Modulator
from . import maps
from .report import kept_calls
from .swap import is_swapped, stores

__all__ = ["constant_conditioning"]

_Entry = tuple[tuple[Fingerprint | None, ...], Modulation, int]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class constant_conditioning:  # noqa: N801 - reads like torch.no_grad
    """Keep what an accelerated model derives from its maps over the calls of a ``with`` block.

    For sampling: the same map (and the empty one of classifier-free guidance) at every step. A map is known again by its
    content, so it may be a new tensor each time, or be edited. Kept values are dropped when a weight that they depend on
    changes (a step of an optimiser, ``load_state_dict``, LoRA, an averaged copy; what is noticed: ``layers.derived``), and
    the least recently used ones when there are too many. Layers in training, and weights or maps that need a gradient, are
    computed anew at every call.

    Args:
        model: on which :func:`accelerate` was called, or which holds such a model.
        limit: bytes that may be kept, maps included.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: no module of it is accelerated, or ``limit`` is not positive.

    Attributes:
        hits: how often a layer's scale and shift were kept from an earlier call.
        misses: how often they were made.
        bytes: kept now.
    """

    def __init__(self, model: nn.Module, *, limit: int = 1 << 30) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"constant_conditioning: model: expected an nn.Module, got {type(model).__name__}")
        if limit <= 0:
            raise ValueError(f"constant_conditioning: limit: expected a positive number of bytes, got {limit}")
        self._modules = [module for module in model.modules() if is_swapped(module)]
        if not self._modules:
            raise ValueError(
                "constant_conditioning: model: expected an accelerated model, got one without accelerated layers"
            )
        self.limit, self.hits, self.misses, self.bytes = limit, 0, 0, 0
        self._lock = threading.RLock()
        self._maps: OrderedDict[int, tuple[Tensor, maps.Analysed]] = OrderedDict()
        self._values: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._before: WeakKeyDictionary[nn.Module, maps.Store] = WeakKeyDictionary()

    def __enter__(self) -> constant_conditioning:
        """Begin to keep."""
        for module in self._modules:
            kept_calls.pop(module, None)
            if module in stores:
                self._before[module] = stores[module]
            stores[module] = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Forget everything."""
        for module in self._modules:
            if module in self._before:
                stores[module] = self._before[module]
            else:
                stores.pop(module, None)
        for kept in (self._before, self._maps, self._values):
            kept.clear()
        self.bytes = 0

    @property
    def hit_rate(self) -> float:
        """Share of the calls of layers whose scale and shift were kept, in [0, 1]."""
        return self.hits / max(self.hits + self.misses, 1)

    def __str__(self) -> str:
        """In words."""
        return (
            f"constant conditioning: {self.hits} of {self.hits + self.misses} scales and shifts kept from an earlier call "
            f"({self.hit_rate:.0%}), {len(self._maps)} maps, {self.bytes / 2**20:.1f} MB"
        )

    # --- maps.Store ---------------------------------------------------------------------------------------------------

    def known(self, segmap: Tensor, how: tuple[Hashable, ...], make: Callable[[], maps.Analysed]) -> maps.Analysed:
        """Return what was read from a map of the same content, else what ``make`` reads from it.

        Args:
            segmap: the map.
            how: in which way it is read.
            make: reads it.
        """
        if segmap.requires_grad and torch.is_grad_enabled():
            return make()
        with self._lock:
            for key, (snapshot, found) in self._maps.items():
                alike = (snapshot.shape, snapshot.dtype, snapshot.device) == (segmap.shape, segmap.dtype, segmap.device)
                if found.how == how and alike and torch.equal(snapshot, segmap.detach()):
                    self._maps.move_to_end(key)
                    return found.of(segmap)
            made = make()
            with torch.inference_mode(False), torch.no_grad():
                snapshot = segmap.detach().clone()
            self._maps[made.number] = snapshot, made
            self.bytes += _bytes(snapshot)
            self._make_room()
            return made

    def modulation(
        self, found: maps.Analysed, layer: Modulator, how: tuple[Hashable, ...], make: Callable[[], Modulation]
    ) -> Modulation:
        """Return the scale and shift of a layer for a map, as it was made while the weights were what they are.

        Args:
            found: the map.
            layer: the layer.
            how: size, precision and form.
            make: makes it.
        """
        tensors = layer.tensors()
        if found.number not in self._maps or not may_keep(layer.owner, *tensors):
            return make()
        device = found.segmap.device.type
        cast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        owner = id(layer.owner), times_forgotten(layer.owner)
        key = found.number, owner, how, cast, current_plan(), current_backend()
        with self._lock:
            entry = self._values.get(key)
            if entry is not None and all(
                mark is None and tensor is None if mark is None or tensor is None else mark.matches(tensor)
                for mark, tensor in zip(entry[0], tensors, strict=True)
            ):
                self._values.move_to_end(key)
                self._count(layer.owner, 1, 0)
                return entry[1]
            self._drop(key)
            with torch.inference_mode(False), torch.no_grad():
                made = make()
            self._count(layer.owner, 0, 1)
            size = _bytes(*made)
            if size <= self.limit:
                self._values[key] = tuple(None if t is None else Fingerprint(t) for t in tensors), made, size
                self.bytes += size
                self._make_room()
            return made

    def _count(self, layer: Any, hits: int, misses: int) -> None:
        self.hits, self.misses = self.hits + hits, self.misses + misses
        before = kept_calls.get(layer, (0, 0))
        kept_calls[layer] = before[0] + hits, before[1] + misses

    def _drop(self, key: Hashable) -> None:
        entry = self._values.pop(key, None)
        self.bytes -= 0 if entry is None else entry[2]

    def _make_room(self) -> None:
        """Drop the least recently used scales and shifts, then maps, the latest of each last."""
        while self.bytes > self.limit and self._values:
            self._drop(next(iter(self._values)))
        while self.bytes > self.limit and len(self._maps) > 1:
            number, (snapshot, _) = self._maps.popitem(last=False)
            self.bytes -= _bytes(snapshot)
            for key in [key for key in self._values if key[0] == number]:  # type: ignore[index]
                self._drop(key)
