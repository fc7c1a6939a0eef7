"""What a data set is to this project: a `Source` of `Sample`s, and the source that reads files.

A :class:`FileSource` is a :class:`LabelSet` (which stored ids mean which classes) and a list of :class:`Record`s (which
files belong together). The readers of the single sets (readers.py) make both; :func:`~mixsyn_fast.models.data.open_source`
opens them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from .blended import ADVICE, blended
from .classes import left_right_pairs
from .files import LeftOver, open_picture, read_ids, read_mask

_RANGE = 1 << 16  # stored ids of 16-bit label maps
_NOT_A_CLASS = -2


@dataclass(frozen=True)
class Sample:
    """One picture and its label map, as stored."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(H, W) int32, class in [0, K), or -1 for no class (every pixel of a set without label maps, which has no classes)."""
    instances: np.ndarray | None
    """(H, W) int32 instance ids (equal ids = one object), or None. Edges are taken from them at the final size."""
    name: str
    """The picture's name: its path in the folder of pictures, without the suffix."""
    edges: np.ndarray | None = None
    """(H, W) bool, a ready-made edge map, or None."""


@runtime_checkable
class Source(Protocol):
    """A set of samples with random access: picklable and cheap to make, reads nothing but folder listings when made."""

    name: str
    """Kind of the set."""
    classes: tuple[str, ...]
    """K class names by id; none for a set without label maps."""
    swaps: tuple[tuple[int, int], ...]
    """Pairs of classes that a horizontal flip exchanges."""
    default_size: tuple[int, int]
    """(H, W) in pixels at which the papers use the set."""

    def __len__(self) -> int: ...

    def names(self) -> list[str]:
        """Name of every picture, sorted, in the order of :meth:`read`."""
        ...

    def read(self, index: int) -> Sample:
        """Read sample `index` in [0, len). ValueError, naming the file, for one that cannot be used."""
        ...


def fingerprint(names: Sequence[str]) -> str:
    """Return what tells a set of pictures from another of the same length: a hash of their names."""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LabelSet:
    """Classes of a set and the ids by which its files store them.

    Args:
        classes: names; class k is stored as `first + k` unless `ids` says otherwise.
        size: (H, W) of the papers.
        first: stored id of class 0.
        ids: stored ids of every class, where `first` is not enough.
        unknown: stored id of pixels that belong to no class, if the set has one; it may be one of the classes.
        colours: RGB -> stored id, for sets that store label maps as colours.
        rescale: the picture is scaled to its label map's size (sets that store both at different sizes).
        pad: pictures are padded to a square, with this RGB left and right (above and below) and `first` in the label map.
        swaps: pairs of classes exchanged by a flip; None: by their names.
        soft_parts: masks per part are weights 0..255, and the largest one decides; else later masks cover earlier ones.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    first: int = 0
    ids: tuple[tuple[int, ...], ...] | None = None
    unknown: int | None = None
    colours: Mapping[tuple[int, int, int], int] | None = None
    rescale: bool = False
    pad: tuple[int, int, int] | None = None
    swaps: tuple[tuple[int, int], ...] | None = None
    soft_parts: bool = False

    def resolve(self, policy: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the final class names, and the table (65536,) int32 stored id -> class, -1 (none) or -2 (not an id).

        Args:
            policy: what stored id `unknown` becomes. "class": a last class named "unknown" (as the published SPADE code
                does; nothing changes where it is a class of the set already); "none": no class (and if it was the last
                class of the set, that class goes); or the name of a class.

        Raises:
            ValueError: another policy.
        """
        names = list(self.classes)
        stored = self.ids or tuple((self.first + k,) for k in range(len(names)))
        table = np.full(_RANGE, _NOT_A_CLASS, np.int32)
        for k, several in enumerate(stored):
            table[list(several)] = k
        if policy not in ("class", "none", *names):
            raise ValueError(f"unknown: expected 'class', 'none' or a class name, got {policy!r}")
        if self.unknown is None:
            return tuple(names), table
        own = int(table[self.unknown])
        outside = table == own if own >= 0 else np.arange(_RANGE) == self.unknown
        if policy in names:
            table[outside] = names.index(policy)
        elif policy == "none":
            table[outside] = -1
            if own == len(names) - 1:
                names.pop()
        elif own < 0:
            table[outside] = len(names)
            names.append("unknown")
        return tuple(names), table


@dataclass(frozen=True)
class Record:
    """The files of one sample."""

    name: str
    image: Path
    labels: Path | tuple[tuple[int, Path], ...] | None
    """One label map, or one mask per part as (stored id, file); None in a set without label maps."""
    instances: Path | None = None
    edges: Path | None = None


class FileSource:
    """A `Source` that reads image files.

    Args:
        name: kind of the set.
        label_set: its classes.
        records: files of every sample; they are sorted by name.
        unknown: see :meth:`LabelSet.resolve`.
        left: files of its folders that nothing is made of.

    Raises:
        ValueError: no records, unknown policy.
    """

    def __init__(
        self,
        name: str,
        label_set: LabelSet,
        records: Sequence[Record],
        unknown: str = "class",
        left: Sequence[LeftOver] = (),
    ) -> None:
        if not records:
            raise ValueError(f"{name}: expected at least one picture, got none")
        self.name = name
        self.label_set = label_set
        self.left = tuple(left)
        self.records = sorted(records, key=lambda record: record.name)
        self.classes, self._table = label_set.resolve(unknown)
        pairs = left_right_pairs(label_set.classes) if label_set.swaps is None else label_set.swaps
        self.swaps = tuple(pair for pair in pairs if max(pair) < len(self.classes))
        self.default_size = label_set.size

    def __len__(self) -> int:
        return len(self.records)

    def names(self) -> list[str]:
        """Name of every picture, sorted."""
        return [record.name for record in self.records]

    def read(self, index: int) -> Sample:
        """Read one sample at its stored size.

        Args:
            index: 0 to len - 1.

        Raises:
            IndexError: no such sample.
            ValueError: a file that cannot be read, sizes that differ, ids out of range; the message names the file.
        """
        if not 0 <= index < len(self.records):
            raise IndexError(f"index: expected 0 to {len(self.records) - 1}, got {index}")
        record = self.records[index]
        picture = open_picture(record.image)
        if record.labels is None:
            nowhere = np.broadcast_to(np.int32(-1), picture.size[::-1])  # a view of one number
            return Sample(np.asarray(picture), nowhere, None, record.name)
        if isinstance(record.labels, tuple):
            file, stored = record.labels[0][1], _merged_parts(record.labels, self.label_set.soft_parts)
        else:
            file, stored = record.labels, read_ids(record.labels, self.label_set.colours)
        height, width = stored.shape
        if picture.size != (width, height):
            ratio = picture.size[0] * height / (picture.size[1] * width)
            if not self.label_set.rescale or abs(ratio - 1) > 0.01:
                raise ValueError(_sizes_differ(file, (width, height), record.image, picture.size))
            picture = picture.resize((width, height), resample=3, reducing_gap=3.0)  # 3: bicubic
        labels = self._classes(stored, file)
        instances = None if record.instances is None else read_ids(record.instances)
        edges = None if record.edges is None else read_ids(record.edges) != 0
        for path, plane in ((record.instances, instances), (record.edges, edges)):
            if path is not None and plane is not None and plane.shape != (height, width):
                raise ValueError(_sizes_differ(path, plane.shape[::-1], record.image, (width, height)))
        sample = Sample(np.asarray(picture), labels, instances, record.name, edges)
        return sample if self.label_set.pad is None else _square(sample, self.label_set.pad)

    def _classes(self, stored: np.ndarray, file: Path) -> np.ndarray:
        outside = (stored < 0) | (stored >= _RANGE)
        labels = self._table[np.where(outside, 0, stored)]
        labels[outside] = _NOT_A_CLASS
        bad = labels == _NOT_A_CLASS
        if bad.any():
            row, column = (int(v) for v in np.argwhere(bad)[0])
            known = _ranges(np.flatnonzero(self._table > _NOT_A_CLASS))
            share = blended(stored)
            hint = f" ({100 * share:.1f} % of its pixels lie in thin bands of ids: {ADVICE})" if share else ""
            if self.name == "folder" and not hint:
                hint = self._hint(np.unique(stored).tolist())
            raise ValueError(
                f"{file}: expected class ids {known}, got {int(stored[row, column])} at row {row}, column {column}{hint}"
            )
        return labels

    def _hint(self, ids: list[int]) -> str:
        """Say which options of kind "folder" would take these stored ids."""
        first, count = self.label_set.first, len(self.label_set.classes)
        options, own = [], range(first, first + count)
        if first + count in ids and first not in ids:
            own = range(first + 1, first + 1 + count)
            options.append(f"--first-id {first + 1} if class 0 is stored as {first + 1}")
        others = [one for one in ids if one not in own and one != self.label_set.unknown]
        if len(others) == 1 and self.label_set.unknown is None:
            options.append(f"--unknown-id {others[0]} if {others[0]} marks pixels of no class")
        elif others:
            options = [f"it has the ids {_ranges(np.array(ids))}: name every class in classes.txt"]
        return f" ({' and '.join(options)})"


def _merged_parts(parts: tuple[tuple[int, Path], ...], soft: bool) -> np.ndarray:
    """Merge masks (stored id, file) into a label map: see :attr:`LabelSet.soft_parts`; 0 where there is none."""
    merged = np.zeros(0, np.int32)
    strongest = np.zeros(0, np.uint8)
    for k, (stored_id, path) in enumerate(parts):
        mask = read_mask(path)
        if k == 0:
            merged, strongest = np.zeros(mask.shape, np.int32), np.zeros(mask.shape, np.uint8)
        elif mask.shape != merged.shape:
            raise ValueError(_sizes_differ(path, mask.shape[::-1], parts[0][1], merged.shape[::-1]))
        inside = mask > strongest if soft else mask != 0
        merged[inside] = stored_id
        strongest[inside] = mask[inside]
    return merged


def _square(sample: Sample, colour: tuple[int, int, int]) -> Sample:
    """Pad to a square, the picture in the middle; class 0 in the label map."""
    height, width = sample.labels.shape
    side = max(height, width)
    if height == width:
        return sample
    top, left = (side - height) // 2, (side - width) // 2
    inner = (slice(top, top + height), slice(left, left + width))
    image = np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy()
    image[inner] = sample.image
    labels = np.zeros((side, side), np.int32)
    labels[inner] = sample.labels
    return Sample(image, labels, None, sample.name)


def _sizes_differ(file: Path, size: tuple[int, ...], other: Path, other_size: tuple[int, ...]) -> str:
    turned = "; one is turned: files are read upright, as their EXIF orientation says" if size[::-1] == other_size else ""
    return (
        f"{file}: label map is {size[0]} x {size[1]} but {other.name} is {other_size[0]} x {other_size[1]} (width x height)"
        f"{turned}"
    )


def _ranges(ids: np.ndarray) -> str:
    """Return "0..18, 255" for sorted ids."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
