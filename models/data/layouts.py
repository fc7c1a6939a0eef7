"""How the files of a data set belong together: pictures and label maps of one name, splits by folder, number or list."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixsyn_fast.reading import read_text

from .files import LOSSLESS, PICTURES, Files, LeftOver, find, partners, plain_name
from .source import LabelSet, Record

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Records:
    """What a reader finds: samples, and the files that none is made of."""

    records: tuple[Record, ...]
    left: tuple[LeftOver, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def only(self, wanted: Callable[[Record], bool]) -> Records:
        """Return the wanted ones; the others are of another split, not left over."""
        return replace(self, records=tuple(record for record in self.records if wanted(record)))


Found = tuple[LabelSet, Records]


def joined(parts: Sequence[tuple[str, Records]]) -> Records:
    """Join the records of several splits; where two have a name in common, all names get their split's in front."""
    names = [record.name for _, part in parts for record in part.records]
    apart = len(set(names)) == len(names)
    return Records(
        tuple(
            record if apart or not split else replace(record, name=f"{split}/{record.name}")
            for split, part in parts
            for record in part.records
        ),
        tuple(left for _, part in parts for left in part.left),
    )


def label_maps(
    folder: Path, *, ending: str = "", flat: bool = False, deep: bool = True, companions: tuple[str, ...] = ()
) -> Files:
    """Find the label (instance, edge) maps of a folder: see :func:`find`.

    A PNG, BMP or TIFF is the label map, and a JPEG or WebP beside it, a preview say, is left over. Without one the JPEG is
    listed: it is no label map, and who reads it says so.
    """
    return find(folder, PICTURES, prefer=LOSSLESS, ending=ending, flat=flat, deep=deep, companions=companions)


def pairs(images: Files, labels: Files, instances: Files | None = None, edges: Files | None = None) -> Records:
    """Records of the pictures that have a label map of their name (:func:`partners`); the other files are left over.

    Args:
        images: pictures.
        labels: label maps.
        instances: instance maps; empty or None for a set without.
        edges: edge maps.

    Raises:
        FileNotFoundError: no picture at all, no picture with a label map, or one of them without its instance (edge) map
            where others have one.
    """
    if not images.named:
        raise FileNotFoundError(f"{images.folder}: holds no picture; looked for {images.place('*')}")
    theirs = partners(images.named, labels.named)
    without = [name for name in images.named if name not in theirs]
    if not theirs:
        raise _missing("label", images, labels, without)
    left = [*images.left, *labels.left]
    left += (LeftOver(images.named[name], "without a label map") for name in without)
    left += _without_picture(labels, theirs)
    maps: list[dict[str, Path]] = []
    for what, have in (("instance", instances), ("edge", edges)):
        found = partners(theirs, have.named) if have is not None and have.named else {}
        maps.append({name: have.named[other] for name, other in found.items()} if have is not None else {})
        if have is not None and have.named:
            missing = [name for name in theirs if name not in found]
            if missing:
                raise _missing(what, images, have, missing)
            left += [] if have.folder == labels.folder else have.left
            left += _without_picture(have, found)
    records = (
        Record(name, images.named[name], labels.named[other], *(one.get(name) for one in maps))
        for name, other in theirs.items()
    )
    return Records(tuple(records), tuple(left))


def _missing(what: str, images: Files, maps: Files, missing: Sequence[str]) -> FileNotFoundError:
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    name = missing[0]
    return FileNotFoundError(f"{maps.folder}: no {what} map for {images.named[name]}{more}; looked for {maps.place(name)}")


def _without_picture(maps: Files, used: dict[str, str]) -> list[LeftOver]:
    taken = set(used.values())
    return [LeftOver(file, "without a picture") for name, file in maps.named.items() if name not in taken]


def is_simple(directory: Path) -> bool:
    """Whether a folder holds `images/` and `labels/`."""
    return (directory / "images").is_dir() and (directory / "labels").is_dir()


def simple(root: Path, split: str, original: str = "") -> Records:
    """Records of the simple layout; with `instances/` and `edges/` beside `labels/` where they exist.

    Args:
        root: folder of the set.
        split: the part wanted.
        original: the set's own layout, for the message that neither is there.

    Raises:
        FileNotFoundError: no such split, or files are missing.
    """
    if split == "all":
        folders = [part for part in ("", *SPLITS) if is_simple(root / part)]
    elif is_simple(root / split):
        folders = [split]
    else:
        folders = [""] if split == "train" and is_simple(root) else []
    if not folders:
        have = [s for s in SPLITS if is_simple(root / s)] + (["all"] if is_simple(root) else [])
        hint = f"; there is: {', '.join(have)}" if have else f"; or {root / original}" if original else ""
        raise FileNotFoundError(f"{root / split}: expected folders images/ and labels/ for split {split!r}{hint}")
    return joined(
        [
            (
                part,
                pairs(
                    find(root / part / "images"),
                    *(label_maps(root / part / maps) for maps in ("labels", "instances", "edges")),
                ),
            )
            for part in folders
        ]
    )


def by_number(found: Records, split: str, train: range, val: range) -> Records:
    """Split by the number at the end of the name; what is in neither range is "test". One without a number is left over."""
    number = {record.name: re.search(r"[0-9]+$", record.name) for record in found.records}
    without = [LeftOver(record.image, "without a number in its name") for record in found.records if not number[record.name]]

    def wanted(record: Record) -> bool:
        match = number[record.name]
        if split == "all" or match is None:
            return split == "all"
        return split == ("train" if int(match[0]) in train else "val" if int(match[0]) in val else "test")

    return replace(found.only(wanted), left=(*found.left, *(() if split == "all" else without)))


def listed(path: Path) -> set[str]:
    """Stems in a list file: the last field of every line, fields parted by commas or blanks."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list file")
    lines = read_text(path).replace(",", " ").split("\n")
    return {plain_name(Path(line.split()[-1]).stem) for line in lines if line.strip()}


def split_folders(root: Path, names: dict[str, list[tuple[str, ...]]], split: str) -> list[tuple[str, tuple[Path, ...]]]:
    """For the wanted split(s), the first tuple of folders of which the first two exist.

    Raises:
        FileNotFoundError: a folder of pictures is there and none of label maps; the message names those looked for.
    """
    found = []
    for part in names if split == "all" else [split] if split in names else []:
        options = [tuple(root / name for name in option) for option in names[part]]
        there = [folders for folders in options if folders[0].is_dir() and folders[1].is_dir()]
        alone = [folders for folders in options if folders[0].is_dir() and not is_simple(folders[0])]
        if there:
            found.append((part, there[0]))
        elif alone and not any(is_simple(root / simple_part) for simple_part in ("", part)):
            places = " or ".join(str(folders[1]) for folders in alone)
            raise FileNotFoundError(f"{places}: no such folder of label maps for the pictures in {alone[0][0]}")
    return found
