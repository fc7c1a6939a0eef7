"""A source as a training set: cropped, resized, flipped, and indifferent to a bad file here and there."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from mixsyn_fast.region_map import Plan

from .batch import Collate, Item, Packed
from .source import Sample, Source

Box = tuple[float, float, float, float]
"""Left, upper, right, lower in pixels of the stored picture."""


class TrainingSet(Protocol):
    """What the loader and the training loop ask of a data set: items, and how they become a batch. It is picklable.

    Any map-style data set with a collate function of its own is one through :class:`Collated`.
    """

    kind: str
    """What it is, for messages."""
    num_regions: int
    """K of its label maps; 0: it has none."""
    chances: np.ndarray | None
    """(N,) float64, not negative: how often items are drawn, on average; None: each once in an epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int], /) -> Any:
        """Item (epoch, index), always the same one."""
        ...

    def collate(self, plans: Sequence[Plan]) -> Callable[[Sequence[Any]], Packed]:
        """Return what makes a batch of items, in the workers; `plans` are the label analyses that the task asks for."""
        ...

    def announce(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Warn of bad files, (name, reason), that other items stood in for."""
        ...


class Collated:
    """A map-style data set and its collate function as a :class:`TrainingSet`: items are the same in every epoch.

    Args:
        dataset: has `len` and `dataset[index]`; torch.utils.data.TensorDataset, say.
        collate: list of items -> :class:`~mixsyn_fast.models.data.Packed`; both must be picklable for data workers.
    """

    num_regions = 0
    chances = None

    def __init__(self, dataset: Any, collate: Callable[[Sequence[Any]], Packed]) -> None:
        self.dataset, self._collate = dataset, collate
        self.kind = type(dataset).__name__

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Item (epoch, index)."""
        return self.dataset[key[1]]

    def collate(self, plans: Sequence[Plan]) -> Callable[[Sequence[Any]], Packed]:
        """Return the collate function."""
        return self._collate

    def announce(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Warn of bad files, (name, reason)."""
        for name, reason in skipped:
            warnings.warn(f"skipped {name}: {reason}", stacklevel=2)


class RegionDataset(Dataset[Item]):
    """Pictures of a source at one size.

    Args:
        source: where they come from; one without classes has no label maps, and gives batches of plain pictures.
        size: side of a square, or (H, W) in pixels.
        crop: what of a picture is taken. "center" and "random": the largest box of the proportions of `size`, in the middle
            or anywhere. "none": all of it, squeezed to `size`.
        flip: probability of a horizontal flip, which exchanges the source's left and right classes.
        load_size: scale the whole picture first, squeezing it to the proportions of `size` with this short side (in pixels),
            and crop a box of `size` from that ("resize_and_crop" of the published SPADE code: 286, then 256).
        on_error: "skip": the next readable picture stands in for one that is not, with one warning per file; "raise".
        seed: of crops and flips, which depend on (seed, epoch, index) alone.

    Raises:
        ValueError: an argument out of its range; on access: a bad file with "raise", or nothing but bad files.
    """

    def __init__(
        self,
        source: Source,
        size: int | tuple[int, int],
        *,
        crop: Literal["random", "center", "none"] = "center",
        flip: float = 0.0,
        load_size: int | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        seed: int = 0,
    ) -> None:
        self.source = source
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise ValueError(f"size: expected positive height and width, got {self.size[0]} x {self.size[1]}")
        if crop not in ("random", "center", "none"):
            raise ValueError(f"crop: expected 'random', 'center' or 'none', got {crop!r}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip: expected a probability, 0 to 1, got {flip}")
        if load_size is not None and (crop == "none" or load_size < min(self.size)):
            raise ValueError(
                f"load_size: expected at least {min(self.size)}, and a crop, got {load_size} with crop {crop!r}"
            )
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error: expected 'skip' or 'raise', got {on_error!r}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        self.crop, self.flip, self.load_size, self.on_error, self.seed = crop, flip, load_size, on_error, seed
        self.kind, self.num_regions = source.name, len(source.classes)
        self._exchange = np.arange(-1, self.num_regions, dtype=np.int32)  # label + 1 -> label of the mirrored picture
        for left, right in source.swaps:
            self._exchange[[left + 1, right + 1]] = right, left
        self.chances: np.ndarray | None = None
        self._class_weights: np.ndarray | None = None
        self._bad: dict[int, tuple[str, str]] = {}
        self._announced: set[str] = set()

    def __len__(self) -> int:
        return len(self.source)

    def rebalance(self, chances: np.ndarray | None = None, class_weights: np.ndarray | None = None) -> None:
        """Draw some pictures more often than others, and weigh the pixels of some classes more (:class:`Rarity`).

        Args:
            chances: (N,), how often a :class:`Loader` draws every picture; None: each once in an epoch.
            class_weights: (N, K + 1), what batches carry as `class_weights`; None: nothing.

        Raises:
            ValueError: another shape, numbers that are negative or not finite, or chances that are all 0.
        """
        shapes = {"chances": (len(self.source),), "class_weights": (len(self.source), self.num_regions + 1)}
        for name, given in (("chances", chances), ("class_weights", class_weights)):
            if given is not None and given.shape != shapes[name]:
                raise ValueError(f"{name}: expected shape {shapes[name]}, got {given.shape}")
            if given is not None and not (np.isfinite(given).all() and (given >= 0).all()):
                raise ValueError(f"{name}: expected numbers that are finite and not negative, got others")
        if chances is not None and not chances.any():
            raise ValueError("chances: expected some above 0, got none")
        self.chances = None if chances is None else np.asarray(chances, np.float64)
        self._class_weights = None if class_weights is None else np.asarray(class_weights, np.float32)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """Item `index`, or `(epoch, index)`; a plain index is of epoch 0.

        Raises:
            IndexError: no such index.
            ValueError: see the class.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self.source):
            raise IndexError(f"index: expected 0 to {len(self.source) - 1}, got {index}")
        sample, found, skipped = self._read(int(index))
        if skipped and get_worker_info() is None:
            self.announce(skipped)
        rng = np.random.default_rng([self.seed, int(epoch), int(index)])
        at_y, at_x, coin = rng.random(3) if self.crop == "random" else (0.5, 0.5, rng.random(3)[2])
        image, labels, edges = resample(sample, self._box(*sample.labels.shape, at_y, at_x), self.size)
        weights = None if self._class_weights is None else self._class_weights[found]
        item = Item(image, labels, edges, sample.name, found, tuple(skipped), weights)
        return self.mirrored(item) if coin < self.flip else item

    def mirrored(self, item: Item) -> Item:
        """Return an item of this set flipped horizontally: left and right classes change places."""
        weights, edges = item.class_weights, item.edges
        return dataclasses.replace(
            item,
            image=item.image[:, ::-1],
            labels=self._exchange[item.labels[:, ::-1] + 1],
            edges=None if edges is None else edges[:, ::-1],
            class_weights=None if weights is None else weights[np.roll(self._exchange, -1)],  # of no class: -1, the last one
        )

    def collate(self, plans: Sequence[Plan] = ()) -> Collate:
        """Return what makes a batch of items, with the label analyses of `plans` done."""
        return Collate(self.num_regions, tuple(plans))

    def announce(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Warn of bad files, (name, reason), each once."""
        for name, reason in skipped:
            if name not in self._announced:
                self._announced.add(name)
                warnings.warn(f"skipped {name}: {reason}", stacklevel=2)

    def _read(self, index: int) -> tuple[Sample, int, list[tuple[str, str]]]:
        skipped: list[tuple[str, str]] = []
        count = len(self.source)
        for step in range(count):
            at = (index + step) % count
            if at not in self._bad:
                try:
                    return self.source.read(at), at, skipped
                except (ValueError, OSError) as error:
                    if self.on_error == "raise":
                        raise
                    self._bad[at] = (self.source.names()[at], str(error))
            skipped.append(self._bad[at])
        name, reason = skipped[0]
        raise ValueError(f"{self.source.name}: none of its {count} pictures can be used; {name}: {reason}")

    def _box(self, height: int, width: int, at_y: float, at_x: float) -> Box:
        if self.crop == "none":
            share_y, share_x = 1.0, 1.0
        elif self.load_size is not None:
            share_y = share_x = min(self.size) / self.load_size
        else:
            ratio = self.size[1] / self.size[0] * height / width  # of the proportions asked to those stored
            share_y, share_x = min(1.0, 1 / ratio), min(1.0, ratio)
        top, left = at_y * height * (1 - share_y), at_x * width * (1 - share_x)
        if self.crop == "random" and self.load_size is None and (share_y * height, share_x * width) == self.size:
            top, left = float(int(top)), float(int(left))  # nothing is scaled: stay on the pixels
        return left, top, left + share_x * width, top + share_y * height


def resample(sample: Sample, box: Box, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Cut a box out of a sample and scale it: the image smoothly (bicubic, antialiased), everything else by nearest pixel.

    Args:
        sample: the stored picture.
        box: inside the picture, in its pixels.
        size: (h, w) of the result.

    Returns:
        image (h, w, 3) uint8, labels (h, w) int32, edges (h, w) bool or None: instance borders at this size, and the
        sample's own.
    """
    left, upper, right, lower = box
    height, width = size
    rows = np.floor(upper + (np.arange(height) + 0.5) * (lower - upper) / height).astype(np.intp)
    columns = np.floor(left + (np.arange(width) + 0.5) * (right - left) / width).astype(np.intp)
    stored_h, stored_w = sample.labels.shape
    at = np.clip(rows, 0, stored_h - 1)[:, None], np.clip(columns, 0, stored_w - 1)[None]
    if (lower - upper, right - left) == (height, width) and upper == int(upper) and left == int(left):
        image = sample.image[at]
    else:
        try:
            from PIL import Image
        except ImportError as error:  # pragma: no cover - depends on the installation
            raise ImportError("scaling pictures needs pillow: pip install 'mixsyn_fast[models]'") from error
        picture = Image.fromarray(np.ascontiguousarray(sample.image))
        image = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0))
    edges = None if sample.instances is None else edges_of_instances(sample.instances[at])
    if sample.edges is not None:
        edges = sample.edges[at] if edges is None else edges | sample.edges[at]
    return image, sample.labels[at], edges


def edges_of_instances(instances: np.ndarray) -> np.ndarray:
    """Mark the pixels at the borders of objects.

    Args:
        instances: (H, W) integer ids, equal for pixels of one object.

    Returns:
        (H, W) bool: the pixel differs from the one above, below, left or right of it (so both pixels of a pair are marked),
        the edge map of Wang et al. 2018 ("pix2pixHD", section 3.3) that SPADE takes as a further channel.

    Raises:
        ValueError: not two-dimensional.
    """
    if instances.ndim != 2:
        raise ValueError(f"instances: expected shape (H, W), got {instances.shape}")
    edges = np.zeros(instances.shape, bool)
    across, down = instances[:, 1:] != instances[:, :-1], instances[1:] != instances[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def first_items(source: Source, count: int, size: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first pictures of a source, the largest box of the wanted proportions in the middle, as arrays.

    Args:
        source: the set; a smaller one is repeated.
        count: how many, at least 1.
        size: side of a square, or (H, W).

    Returns:
        images (count, H, W, 3) uint8 and labels (count, H, W) int32.

    Raises:
        ValueError: count or size below 1, or a file that cannot be used; the message names it.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    dataset = RegionDataset(source, size, on_error="raise")
    items = [dataset[i % len(dataset)] for i in range(count)]
    return np.stack([item.image for item in items]), np.stack([item.labels for item in items])
