"""Region types: the classes of a set merged into fewer, coarser ones (MixSyn, Sec. 5.3 and Fig. 9), or into those of others.

Finer classes than a model needs cost encoders, memory and accuracy: "preserving the mouth as a whole is easier than learning
the combination of lips". `source = merged(open_source("datasets/CelebAMask-HQ"), "meta")` is the set in its merged types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from .classes import ADE20K, CAMVID, CITYSCAPES, COCO_STUFF, FACADE_CLASSES, FACE_CLASSES, GTA5, LAPA, left_right_pairs
from .scene_types import SCENE_TYPES, scene_members
from .source import Sample, Source

Merge = Literal["none", "meta", "compact", "scenes"]
"""Which region types: the set's own classes, the paper's meta types, its compact types, or types of things in scenes."""

_MIDDLE = ("nose", "skin")  # classes that mark the middle of a face, the first that a picture has
_CHUNK = 4096  # pixels whose distances are in memory at a time


@dataclass(frozen=True)
class RegionTypes:
    """How the K classes of a set become N types.

    Args:
        classes: K names by id.
        members: type -> its classes, N types by id; none: a type that the set does not have. A class stands in one type. Or
            it stands in two that a flip exchanges (`left_right_pairs`) and is parted between them pixel by pixel, see
            :meth:`apply`.

    Raises:
        ValueError: a class in no type or in two that are no pair, or a name that is no class.
    """

    classes: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Check the members."""
        pairs = left_right_pairs(self.names)
        for name in self.classes:
            types = tuple(k for k, several in enumerate(self.members.values()) if name in several)
            if len(types) != 1 and types not in pairs and types[::-1] not in pairs:
                raise ValueError(f"members: expected {name!r} in one type, or in a left and a right one, got {types}")
        for name, several in self.members.items():
            unknown = [member for member in several if member not in self.classes]
            if unknown:
                raise ValueError(f"members: {name!r} holds {unknown[0]!r}, which is no class")

    @property
    def names(self) -> tuple[str, ...]:
        """N names by id."""
        return tuple(self.members)

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Merge a label map.

        A class that stands in a left and a right type (CelebAMask-HQ has one class for both earrings) goes, per pixel, to
        the type whose own pixels are nearer, the left one when they are equally near; if the picture has only one of the
        two, to that one; if it has neither, to the side on which the pixel lies of the face's middle (mean column of the
        nose, else of the skin, else of the picture). Left is the person's left, which is on the right in the picture: so
        it is in 92 % of the ears of 850 faces of CelebAMask-HQ (the others are mirrored by mistake in the set).

        Args:
            labels: (H, W) integers, class in [0, K) or -1.

        Returns:
            (H, W) int32, type in [0, N), or -1 where `labels` is.

        Raises:
            ValueError: another shape or dtype, or values outside.
        """
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels: expected (H, W) integers, got shape {labels.shape} and dtype {labels.dtype}")
        labels = labels.astype(np.int32)
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if low < -1 or high >= len(self.classes):
            raise ValueError(f"labels: expected classes in [0, {len(self.classes)}) or -1, got {low} to {high}")
        several = [[k for k, own in enumerate(self.members.values()) if name in own] for name in self.classes]
        types = np.array([-1, *(found[0] for found in several)], np.int32)[labels + 1]
        for k, found in enumerate(several):
            rows, columns = np.nonzero(labels == k) if len(found) > 1 else ((), ())
            if len(rows):
                left, right = next(pair for pair in left_right_pairs(self.names) if set(pair) == set(found))
                own = [np.isin(labels, self._alone(side)) for side in (left, right)]
                types[rows, columns] = np.where(self._is_left(labels, own[0], own[1], rows, columns), left, right)
        return types

    def _alone(self, side: int) -> list[int]:
        """Ids of the classes that stand in this type only."""
        groups = list(self.members.values())
        return [
            self.classes.index(name)
            for name in groups[side]
            if not any(name in group for k, group in enumerate(groups) if k != side)
        ]

    def _is_left(
        self, labels: np.ndarray, left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        if left.any() and right.any():
            return _squared_distance(left, rows, columns) <= _squared_distance(right, rows, columns)
        if left.any() or right.any():
            return np.full(len(rows), left.any())
        ids = [self.classes.index(name) for name in _MIDDLE if name in self.classes]
        found = (np.nonzero(labels == k)[1] for k in ids)
        middle = next((float(across.mean()) for across in found if len(across)), (labels.shape[1] - 1) / 2)
        return columns >= middle


def _squared_distance(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance in pixels from n pixels to the nearest one of a mask (H, W), not empty: (n,) int64.

    Distance along columns first, then the best column (Felzenszwalb and Huttenlocher, Theory of Computing 2012).
    """
    height, width = mask.shape
    far = height + width  # further than any pixel
    row = np.arange(height)[:, None]
    above = row - np.maximum.accumulate(np.where(mask, row, -far), 0)
    below = np.minimum.accumulate(np.where(mask, row, height + far)[::-1], 0)[::-1] - row
    along = np.minimum(above, below) ** 2
    nearest = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        nearest[part] = (along[rows[part]] + (columns[part, None] - np.arange(width)) ** 2).min(1)
    return nearest


def _types(classes: Sequence[str], members: str) -> RegionTypes:
    groups = (group.split() for group in members.split(","))
    return RegionTypes(tuple(classes), {name: tuple(several) or (name,) for name, *several in groups})


_SCENES = (  # with the class that pixels of no class are, and that a set opened with unknown="none" lacks
    ((*COCO_STUFF, "unknown"), "unknown"),
    ((*ADE20K, "unknown"), "unknown"),
    (CITYSCAPES, "unlabeled"),
    (GTA5, "others"),
    (CAMVID, "unlabelled"),
)

_KNOWN: dict[str, tuple[RegionTypes, ...]] = {
    "meta": (
        _types(
            FACE_CLASSES,
            """background, skin, nose, eye_g, l_eye, r_eye, l_brow, r_brow, l_ear l_ear ear_r, r_ear r_ear ear_r,
            mouth mouth u_lip l_lip, hair, hat, neck neck neck_l, cloth""",
        ),
        RegionTypes(
            LAPA,
            {
                "background": ("background",),
                "skin": ("skin",),
                "nose": ("nose",),
                "eye_g": (),
                "l_eye": ("left_eye",),
                "r_eye": ("right_eye",),
                "l_brow": ("left_eyebrow",),
                "r_brow": ("right_eyebrow",),
                "l_ear": (),
                "r_ear": (),
                "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
                "hair": ("hair",),
                "hat": (),
                "neck": (),
                "cloth": (),
            },
        ),
    ),
    "compact": (
        _types(
            FACE_CLASSES,
            """background, face skin nose l_ear r_ear ear_r, eyes eye_g l_eye r_eye l_brow r_brow, mouth mouth u_lip l_lip,
            hair hair hat, body neck neck_l cloth""",
        ),
        RegionTypes(
            LAPA,
            {
                "background": ("background",),
                "face": ("skin", "nose"),
                "eyes": ("left_eye", "right_eye", "left_eyebrow", "right_eyebrow"),
                "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
                "hair": ("hair",),
                "body": (),
            },
        ),
        _types(
            FACADE_CLASSES,
            """background, facade, window window sill blind, door door shop, balcony,
            decoration cornice deco molding pillar""",
        ),
    ),
    "scenes": (
        RegionTypes(SCENE_TYPES, {name: (name,) for name in SCENE_TYPES}),
        *(
            RegionTypes(classes, scene_members(classes))
            for own, unknown in _SCENES
            for classes in (own, tuple(name for name in own if name != unknown))
        ),
    ),
}


def region_types(classes: Sequence[str], merge: str) -> RegionTypes:
    """Return the meta, compact or scene types of a set; sets are known by the names of their classes.

    "meta", CelebAMask-HQ's 19 classes: 15 types. The paper shows them in a figure only; ours are background, skin, nose,
    glasses, left and right eye, left and right brow, left and right ear with its earring, mouth with lips, hair, hat, neck
    with necklace, cloth. A type keeps the name of its main class, so that left and right types swap in a flip.

    "compact", the same classes: background, face (skin, nose, ears, earrings), eyes (eyes, brows, glasses), mouth (with
    lips), hair (with hat), body (neck, necklace, cloth). The paper says "5 types only" in Sec. 5.3, and "6" where it refers
    to Fig. 9. Both fit 5 types and the background, which is a region like the others: the paper counts without it elsewhere
    too ("18 base types" for 19 classes).

    Both of Helen and LaPa (11 classes): the same types, so that a model of CelebAMask-HQ's types can be judged on them. They
    have no ears, glasses, hats, necks and cloth (empty types), and what is left is what these sets call so.

    "compact", CMP Facade's 12 classes, which the paper does not merge: background, facade, window (with sill and blind),
    door (with shop), balcony, decoration (cornice, deco, molding, pillar). Facades have no meta types.

    "scenes", COCO-Stuff, ADE20K, Cityscapes, GTA-5 and CamVid, with and without a class for unknown pixels: the 26 types of
    scene_types.py, so that a model of several of these sets knows one vocabulary. Label maps of the types themselves pass.

    Args:
        classes: names by id.
        merge: "meta", "compact" or "scenes".

    Raises:
        ValueError: another `merge`, or a set without such types; the message says which there are.
    """
    if merge not in _KNOWN:
        raise ValueError(f"merge: expected {' or '.join(_KNOWN)}, got {merge!r}")
    for types in _KNOWN[merge]:
        if types.classes == tuple(classes):
            return types
    others = [name for name, known in _KNOWN.items() if any(types.classes == tuple(classes) for types in known)]
    raise ValueError(
        f"merge: there are no {merge} types for these {len(classes)} classes ({', '.join(classes[:4])}, ...); "
        f"for them there is: {', '.join(('none', *others))}"
    )


def vocabularies(types: Sequence[str], merge: str) -> tuple[tuple[str, ...], ...]:
    """Return the classes of every set that `merge` makes these types of, the usual one first; the same names for "none".

    Raises:
        ValueError: another `merge`, or names that it does not make of any set.
    """
    if merge == "none":
        return (tuple(types),)
    if merge not in _KNOWN:
        raise ValueError(f"merge: expected one of {', '.join(get_args(Merge))}, got {merge!r}")
    found = tuple(known.classes for known in _KNOWN[merge] if known.names == tuple(types))
    if not found:
        raise ValueError(f"classes: {', '.join(types)} are not the {merge} types of any set")
    return found


def merge_of(types: Sequence[str]) -> str:
    """Return the `merge` that makes these types of a known set, "none" if they are no such types."""
    return next((merge for merge, known in _KNOWN.items() if any(tuple(types) == one.names for one in known)), "none")


class MergedSource:
    """A `Source` whose classes are merged into types; pictures, instances and edges are as they were.

    Args:
        source: the set.
        types: of its classes.

    Raises:
        ValueError: types of other classes.
    """

    def __init__(self, source: Source, types: RegionTypes) -> None:
        if tuple(source.classes) != types.classes:
            raise ValueError(
                f"types: expected types of the {len(source.classes)} classes of {source.name}, got types of "
                f"{len(types.classes)} classes ({', '.join(types.classes[:4])}, ...)"
            )
        self.source, self.types = source, types
        self.name, self.default_size = source.name, source.default_size
        self.classes = types.names
        self.swaps = left_right_pairs(types.names)

    def __len__(self) -> int:
        return len(self.source)

    def names(self) -> list[str]:
        """Stem of every picture, as in the set."""
        return self.source.names()

    def read(self, index: int) -> Sample:
        """Read sample `index`, its labels merged; raises what the set raises."""
        sample = self.source.read(index)
        return replace(sample, labels=self.types.apply(sample.labels))


def merged(source: Source, merge: str) -> Source:
    """Return a set in its meta, compact or scene types (:func:`region_types`); the set itself for "none"."""
    return source if merge == "none" else MergedSource(source, region_types(source.classes, merge))
