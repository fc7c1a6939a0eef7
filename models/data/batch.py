"""A batch for training: images, region map, names; as one piece of memory on its way from a worker to the device.

What a batch is made of is up to its data set: pictures with label maps (`Batch`), plain pictures (`ImageBatch`), latent
codes (`LatentBatch`), or another dataclass that is `Packed`.

A region map that carries its label patterns holds many tensors. Sent one by one, each takes a file descriptor of shared
memory, a page-locking and a copy; so a batch is packed into one buffer, of which its tensors are views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast.region_map import Plan, RegionMap

_ALIGNMENT = 64  # bytes: every tensor of a packed batch begins on a cache line


@dataclass(frozen=True)
class Item:
    """One picture at its final size, still as bytes."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    labels: np.ndarray
    """(H, W) int32 in [0, K) or -1; all of them -1 in a set without label maps."""
    edges: np.ndarray | None
    """(H, W) bool."""
    name: str
    index: int
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of bad files before it."""
    class_weights: np.ndarray | None = None
    """(K + 1,) float32: weights of the pixels of every class, and of no class, in a loss."""


class Packed:
    """A batch of anything, on one device: a frozen dataclass with these fields and whatever tensors it is made of.

    Its tensors (in tuples, dicts and region maps too) travel as one piece of memory: from a worker, into page-locked memory,
    to the device.
    """

    names: tuple[str, ...]
    """Name of every item."""
    index: Tensor
    """(B,) int64: index in the data set, always in the computer's main memory."""
    skipped: tuple[str, ...]
    """Names of bad files that another item of the batch stands in for."""
    reasons: tuple[str, ...]
    """What was wrong with each of them."""

    def __len__(self) -> int:
        return len(self.names)

    def _parts(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}  # type: ignore[arg-type]

    def _first(self) -> Tensor:
        tensors: list[Tensor] = []
        _walk({name: value for name, value in self._parts().items() if name != "index"}, tensors.append)
        return tensors[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch on a device (itself when it is there), in one copy; asynchronous from pinned memory if asked."""
        device, here = torch.device(device), self._first().device
        if here.type == device.type and device.index in (None, here.index):
            return self
        return self._moved(lambda buffer: buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory."""
        return self._moved(lambda buffer: buffer.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Say that a moved batch is in use on a CUDA stream."""
        self._first().record_stream(stream)  # one storage holds the whole batch

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        parts = self._parts()
        index = parts.pop("index")
        buffer, skeleton = _pack(parts)
        kind: Any = type(self)
        moved: Self = kind(**_unpack(move(buffer), skeleton), index=index)
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), *_pack(self._parts()))


def _rebuild(kind: type[Packed], buffer: Tensor, skeleton: Any) -> Packed:
    return kind(**_unpack(buffer, skeleton))


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Packed):
    """B pictures with their label maps."""

    image: Tensor
    """(B, 3, H, W) float32 in [-1, 1], channels_last."""
    regions: RegionMap
    """Labels, edges where the source has them, and the label patterns planned by the loader."""
    names: tuple[str, ...]
    index: Tensor
    skipped: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    class_weights: Tensor | None = None
    """(B, K + 1) float32: weights of the pixels of every class, and of no class, in a loss; None: all weigh the same."""

    def pixel_weights(self) -> Tensor:
        """Return the weight of every pixel, (B, 1, H, W) float32.

        Raises:
            ValueError: the batch has no weights of classes.
        """
        if self.class_weights is None:
            raise ValueError("class_weights: expected a batch with weights of classes (RegionDataset.rebalance), got none")
        labels = self.regions.labels_at().to(torch.int64)
        index = torch.where(labels < 0, self.regions.num_regions, labels)
        return self.class_weights.gather(1, index.flatten(1)).view_as(labels)[:, None]

    def __repr__(self) -> str:
        return f"Batch(image={tuple(self.image.shape)}, regions={self.regions}, names={self.names}, skipped={self.skipped})"


@dataclass(frozen=True, eq=False, repr=False)
class ImageBatch(Packed):
    """B pictures of a set without label maps."""

    image: Tensor
    """(B, 3, H, W) float32 in [-1, 1], channels_last."""
    names: tuple[str, ...]
    index: Tensor
    skipped: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ImageBatch(image={tuple(self.image.shape)}, names={self.names}, skipped={self.skipped})"

    @property
    def regions(self) -> RegionMap:
        """ValueError: there are none."""
        raise ValueError("regions: expected a data set with label maps, got plain pictures, which have none")


@dataclass(frozen=True)
class _Slot:
    """Where a tensor lies in a packed buffer."""

    offset: int  # bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _walk(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Rebuild a nest of tuples, dicts and region maps with `leaf` applied to its tensors and slots, in a fixed order."""
    if isinstance(value, (Tensor, _Slot)):
        return leaf(value)
    if isinstance(value, RegionMap):
        made = RegionMap.__new__(RegionMap)
        made.__dict__.update(_walk(vars(value), leaf))
        return made
    if isinstance(value, dict):
        return {key: _walk(item, leaf) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_walk(item, leaf) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _pack(value: Any) -> tuple[Tensor, Any]:
    """Return (buffer (N,) uint8, `value` with slots in place of its tensors). Nothing is copied if one storage holds all."""
    tensors: list[Tensor] = []
    _walk(value, tensors.append)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    slots = []
    if len(storages) == 1 and len(tensors) > 1:
        storage = tensors[0].untyped_storage()
        buffer = torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage)
        for tensor in tensors:
            start = tensor.storage_offset() * tensor.element_size()
            slots.append(_Slot(start, tensor.dtype, tuple(tensor.shape), tensor.stride()))
    else:
        end = 0
        placed: dict[int, _Slot] = {}  # a map and the same without edges hold the same labels
        for tensor in tensors:
            if id(tensor) not in placed:
                dense = torch.empty_like(tensor, device="meta")  # its strides, without gaps
                placed[id(tensor)] = _Slot(end, tensor.dtype, tuple(tensor.shape), dense.stride())
                end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
            slots.append(placed[id(tensor)])
        buffer = torch.zeros(end, dtype=torch.uint8, device=tensors[0].device)
        for tensor, slot in zip(tensors, slots, strict=True):
            _view(buffer, slot).copy_(tensor)
    at = iter(slots)
    return buffer, _walk(value, lambda _: next(at))


def _unpack(buffer: Tensor, skeleton: Any) -> Any:
    return _walk(skeleton, lambda slot: _view(buffer, slot))


def _view(buffer: Tensor, slot: _Slot) -> Tensor:
    count = 1
    for side in slot.shape:
        count *= side
    data = buffer[slot.offset : slot.offset + count * slot.dtype.itemsize].view(slot.dtype)
    return data.as_strided(slot.shape, slot.stride, data.storage_offset())


@dataclass(frozen=True)
class Collate:
    """Make a batch of items; runs in the workers, so that label patterns cost the training process nothing.

    Args:
        num_regions: K; 0: there are no label maps, and the batch is of plain pictures.
        plans: the label analyses that the networks will ask for.
    """

    num_regions: int
    plans: tuple[Plan, ...] = ()

    def __call__(self, items: Sequence[Item]) -> Any:
        """Collate items of one size into a `Batch`, or an `ImageBatch` without regions.

        Raises:
            ValueError: no items, sizes differ, edges or weights of classes in some only, labels out of range.
        """
        sizes = {item.labels.shape for item in items}
        if len(sizes) != 1:
            raise ValueError(f"items: expected one or more of one size, got sizes {sorted(sizes)}")
        pictures = torch.from_numpy(np.stack([item.image for item in items]))
        image = pictures.to(torch.float32).mul_(2 / 255).sub_(1).permute(0, 3, 1, 2)  # channels_last without a copy
        bad = dict(pair for item in items for pair in item.skipped)
        index = torch.tensor([item.index for item in items], dtype=torch.int64)
        about = tuple(item.name for item in items), index, tuple(bad), tuple(bad.values())
        if not self.num_regions:
            return ImageBatch(image, *about)
        weights = [item.class_weights for item in items if item.class_weights is not None]
        if len(weights) not in (0, len(items)):
            raise ValueError(
                f"items: expected weights of classes in all or none, got them in {len(weights)} of {len(items)}"
            )
        return Batch(image, self._regions(items), *about, torch.from_numpy(np.stack(weights)) if weights else None)

    def _regions(self, items: Sequence[Item]) -> RegionMap:
        with_edges = [item for item in items if item.edges is not None]
        if len(with_edges) not in (0, len(items)):
            without = next(item.name for item in items if item.edges is None)
            raise ValueError(f"items: expected edges in all or none, got {with_edges[0].name} with and {without} without")
        edges = torch.from_numpy(np.stack([item.edges for item in with_edges])) if with_edges else None  # type: ignore[misc]
        labels = torch.from_numpy(np.stack([item.labels for item in items]))
        regions = RegionMap(labels, self.num_regions, ignore_index=-1, edges=edges)
        regions.prepare(self.plans)
        return regions
