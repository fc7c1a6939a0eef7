"""Opening a data set by its kind, guessing the kind, and the sets drawn by code."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.reading import read_text

from .classes import FACADE_CLASSES, FACE_CLASSES, left_right_pairs
from .drawn.facades import draw_facade
from .drawn.faces import draw_face
from .drawn.light import draw_lit_face
from .files import PICTURES, partners, plain_name, say_left_over, walk
from .layouts import SPLITS
from .readers import LABEL_SETS as _STORED
from .readers import READERS
from .source import FileSource, LabelSet, Sample, Source

_DRAWN = {
    "procedural_faces": (draw_face, FACE_CLASSES),
    "procedural_lit_faces": (draw_lit_face, FACE_CLASSES),
    "procedural_facades": (draw_facade, FACADE_CLASSES),
}

_KEPT_BYTES = 2**28  # a face of 128 x 128 takes 40 ms to draw, half a training step of a small model

DRAWN_KINDS = tuple(_DRAWN)
"""The kinds drawn by code: they need no folder."""

KINDS = (*READERS, *_DRAWN)
"""Every kind that :func:`open_source` knows."""

LABEL_SETS = {**_STORED, **{kind: LabelSet(tuple(classes), (128, 128)) for kind, (_, classes) in _DRAWN.items()}}
"""How a label map of every kind stores its classes, where the kind alone says so (not "folder", "images" and "gta5")."""


class ProceduralSource:
    """Faces (19 classes of CelebAMask-HQ) or facades (12 classes of CMP Facade) drawn by code: no files, endless in `seed`.

    Pictures are kept as they are drawn, the first 256 MB of them.

    Args:
        kind: "procedural_faces", "procedural_lit_faces" (each under a light of its own) or "procedural_facades".
        count: number of pictures.
        seed: picture i is the drawing with seed `seed + i`: sets whose ranges of seeds do not overlap share no picture.
        size: (H, W) in pixels, at least 8 x 8; a drawing is sampled at its size, so draw at the size that you train at.

    Raises:
        ValueError: unknown kind, count below 1, negative seed, size too small.
    """

    def __init__(self, kind: str, count: int = 1000, seed: int = 0, size: int | tuple[int, int] = 128) -> None:
        if kind not in _DRAWN:
            raise ValueError(f"kind: expected one of {', '.join(_DRAWN)}, got {kind!r}")
        if count < 1 or seed < 0:
            raise ValueError(f"count, seed: expected at least 1 and 0, got {count} and {seed}")
        self.default_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.default_size) < 8:
            raise ValueError(f"size: expected at least 8 x 8 pixels, got {self.default_size[0]} x {self.default_size[1]}")
        self.name, self.count, self.seed = kind, count, seed
        self.classes = tuple(_DRAWN[kind][1])
        self.swaps = left_right_pairs(self.classes)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.count

    def names(self) -> list[str]:
        """Names made of the seeds: "seed_00000000" and so on."""
        return [f"seed_{self.seed + i:08d}" for i in range(self.count)]

    def read(self, index: int) -> Sample:
        """Draw picture `index`. IndexError outside [0, count)."""
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0 to {self.count - 1}, got {index}")
        drawn = self._kept.get(index)
        if drawn is None:
            drawn = _DRAWN[self.name][0](self.seed + index, self.default_size)
            if (len(self._kept) + 1) * (drawn[0].nbytes + drawn[1].nbytes) <= _KEPT_BYTES:
                self._kept[index] = drawn
        image, labels = drawn
        return Sample(image.copy(), labels.astype(np.int32), None, f"seed_{self.seed + index:08d}")


class JoinedSource:
    """Several sets of the same classes as one; every picture of every set once, so that a set's share is its size.

    Name, flips and default size are those of the first set. Pictures are sorted by name; equal names stand in the order of
    the sets.

    Args:
        sources: one or more.

    Raises:
        ValueError: no source, or sets of different classes or flips; the message names the difference.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("sources: expected at least one, got none")
        first = sources[0]
        for source in sources[1:]:
            if tuple(source.classes) != tuple(first.classes):
                difference = classes_differ(source.classes, first.classes)
                raise ValueError(f"sources: expected the classes of {first.name}; {source.name} has {difference}")
            if set(source.swaps) != set(first.swaps):
                raise ValueError(f"sources: {source.name} flips classes {source.swaps}, {first.name} flips {first.swaps}")
        self.sources = tuple(sources)
        self.name, self.classes, self.swaps = first.name, tuple(first.classes), first.swaps
        self.default_size = first.default_size
        self._where = sorted((name, k, i) for k, source in enumerate(sources) for i, name in enumerate(source.names()))

    def __len__(self) -> int:
        return len(self._where)

    def names(self) -> list[str]:
        """Name of every picture, sorted."""
        return [name for name, _, _ in self._where]

    def read(self, index: int) -> Sample:
        """Read sample `index`; raises what its set raises, IndexError outside [0, len)."""
        if not 0 <= index < len(self._where):
            raise IndexError(f"index: expected 0 to {len(self._where) - 1}, got {index}")
        _, k, i = self._where[index]
        return self.sources[k].read(i)


def classes_differ(got: Sequence[str], expected: Sequence[str]) -> str:
    """Say how a list of class names differs from another, for messages: "12 classes instead of 19, also a, b, without c"."""
    found = [f"{len(got)} classes" + (f" instead of {len(expected)}" if len(got) != len(expected) else "")]
    for ours, theirs, which in ((got, expected, "also"), (expected, got, "without")):
        only = [name for name in ours if name not in theirs]
        if only:
            found.append(f"{which} {', '.join(only[:4])}{' ...' if len(only) > 4 else ''}")
    unequal = next((k for k, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    if len(found) == 1 and unequal is not None:
        found.append(f"class {unequal} is {got[unequal]} instead of {expected[unequal]}")
    return ", ".join(found)


def open_source(
    root: str | os.PathLike[str] | None,
    kind: str = "auto",
    split: str = "train",
    unknown: str = "class",
    *,
    names: Sequence[str] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Source:
    """Open a data set.

    Args:
        root: its folder; None or "" for the kinds drawn by code.
        kind: one of :data:`KINDS`; the functions of readers.py say what they expect. "auto": :func:`guess_kind`.
        split: "train", "val", "test" or "all"; sets drawn by code have none and take `seed`.
        unknown: what pixels without a class become: "class" (one more class, as the published SPADE code does), "none" (-1),
            or the name of a class; see :meth:`LabelSet.resolve`.
        names: only the pictures of these names: a list, or a text file with one per line, with or without suffixes.
        options: of the reader (`celebamask_hq(partition=...)`, `folder(classes=...)`) or of :class:`ProceduralSource`.

    Returns:
        A picklable source; no picture has been read. Files of its folders that nothing is made of (a picture without a label
        map, say) are named once in a warning, and all in its `left`.

    Raises:
        ValueError: unknown kind, split, option or policy, undecided "auto", names that the set does not have.
        FileNotFoundError: a folder, a list or a label map that should be there is missing.
    """
    source = opened(root, kind, split, unknown, names=names, **options)
    if isinstance(source, FileSource):
        say_left_over(os.fspath(root or ""), source.left, "; mixsyn-fast data inspect names them")
    return source


def opened(
    root: str | os.PathLike[str] | None,
    kind: str = "auto",
    split: str = "train",
    unknown: str = "class",
    *,
    names: Sequence[str] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Source:
    """Open a data set as :func:`open_source` does, without a word about files that are left over."""
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, all, got {split!r}")
    where = Path(root) if root else None
    if kind == "auto":
        if where is None:
            raise ValueError(f"kind: expected one of {', '.join(_DRAWN)} without a folder, got 'auto'")
        kind = guess_kind(where)
    if kind not in KINDS:
        raise ValueError(f"kind: expected auto or one of {', '.join(KINDS)}, got {kind!r}")
    made_by = ProceduralSource if kind in _DRAWN else READERS[kind]
    accepted = [name for name in inspect.signature(made_by).parameters if name not in ("kind", "root", "split")]
    wrong = sorted(set(options) - set(accepted))
    if wrong:
        raise ValueError(f"{wrong[0]}: not an option of {kind}; it has: {', '.join(accepted) or 'none'}")
    if kind in _DRAWN:
        if where is not None or names is not None:
            raise ValueError(f"root, names: {kind} is drawn by code and takes neither, got {root!r}, {names!r}")
        return ProceduralSource(kind, **options)
    if where is None:
        raise ValueError(f"root: {kind} needs a folder, got {root!r}")
    if not where.is_dir():
        raise FileNotFoundError(f"{where}: no such folder")
    label_set, found = READERS[kind](where, split, **options)
    if names is not None:
        have = {record.name for record in found.records}
        wanted = _names(names, have)
        theirs = partners(wanted, have)
        missing = sorted(wanted - set(theirs))
        if missing:
            raise ValueError(f"names: {len(missing)} not in split {split!r} of {where}: {', '.join(missing[:5])}")
        kept = set(theirs.values())
        found = found.only(lambda record: record.name in kept)
    if not found.records:
        raise ValueError(f"{where}: {kind} has no picture in split {split!r}")
    return FileSource(kind, label_set, found.records, unknown, found.left)


def _names(names: Sequence[str] | str | os.PathLike[str], have: set[str]) -> set[str]:
    """Names of a list or of a file's lines; a picture's suffix behind one is taken off."""
    if isinstance(names, (str, os.PathLike)):
        path = Path(names)
        if not path.is_file():
            raise FileNotFoundError(f"names: {path}: no such file")
        names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    plain = (plain_name(name) for name in names)
    return {os.path.splitext(n)[0] if n not in have and n.lower().endswith(PICTURES) else n for n in plain}


# (a folder or file that only this set has) and (stems that only this set has, in the simple layout)
_MARKS = (
    ("CelebA-HQ-img", "celebamask_hq"),
    ("images1024x1024", "ffhq"),
    ("thumbnails128x128", "ffhq"),
    ("leftImg8bit", "cityscapes"),
    ("stuffthingmaps", "coco_stuff"),
    ("train_img", "coco_stuff"),
    ("val_img", "coco_stuff"),
    ("annotations/training", "ade20k"),
    ("annotations/validation", "ade20k"),
    ("exemplars.txt", "helen"),
    ("train/landmarks", "lapa"),
    ("val/landmarks", "lapa"),
    ("test/landmarks", "lapa"),
    ("trainannot", "camvid"),
    ("701_StillsRaw_full", "camvid"),
    ("img_highres", "deepfashion"),
    ("split.mat", "gta5"),
    ("annotations/pixel-level", "ccp"),
    ("classes.txt", "folder"),
)
_STEMS = (
    (r"cmp_b\d{4}", "cmp_facade"),
    (r"cmp_x\d{4}", "cmp_facade_extended"),
    (r"ADE_(train|val)_\d{8}", "ade20k"),
    (r"\d{12}", "coco_stuff"),
    (r"[a-z-]+_\d{6}_\d{6}(_leftImg8bit)?", "cityscapes"),
    (r"id_\d{8}_.*", "deepfashion"),
    (r"(0001TP|0006R0|0016E5|Seq05VD)_\w+", "camvid"),
)


def guess_kind(root: str | os.PathLike[str], stem: str | None = None) -> str:
    """Guess the kind of a folder: by what only one set has, by file names, then by the folder's own name.

    Args:
        root: the folder.
        stem: of the one picture in question; None: the first picture that the folder has speaks for all.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: undecided; the message lists the kinds.
    """
    where = Path(root)
    if not where.is_dir():
        raise FileNotFoundError(f"{where}: no such folder")
    for mark, kind in _MARKS:
        if (where / mark).exists():
            return kind
    for folder in (where, *(where / part for part in ("base", "extended", "images", *(f"{s}/images" for s in SPLITS)))):
        found = (plain_name(path.stem) for path in walk(folder, deep=False) if path.suffix.lower() in PICTURES)
        name = next(found, None) if stem is None else stem
        for pattern, kind in _STEMS if name is not None else ():
            if re.fullmatch(pattern, name):
                return kind
    for folder in (where.resolve(), where.resolve().parent):  # the folder itself may be one split
        name = folder.name.lower().replace("-", "_")
        close = [kind for kind in READERS if kind not in ("folder", "images") and name.startswith(kind)]
        if close:
            return max(close, key=len)
    if (where / "label_list.txt").is_file():
        return "folder"
    raise ValueError(f"{where}: cannot tell what set this is; give kind, one of {', '.join(KINDS)}")
