"""Listing the files of a data set: pictures and label maps of the same name, splits by folder, number or list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .files import IMAGE_SUFFIXES
from .source import LabelSet, Record

Found = tuple[LabelSet, list[Record]]
SPLITS = ("train", "val", "test")


def listing(directory: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """Yield every file below a folder with one of the suffixes, in an order that is the same everywhere."""
    wanted = tuple(suffixes)
    for where, folders, names in os.walk(directory):
        folders.sort()
        yield from (Path(where, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in wanted)


def files(directory: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES, ending: str = "") -> dict[str, Path]:
    """Stem (without `ending`) -> file, for every file below a folder whose stem ends so; {} without the folder."""
    return {p.stem.removesuffix(ending): p for p in listing(directory, suffixes) if p.stem.endswith(ending)}


def pairs(
    images: dict[str, Path],
    labels: dict[str, Path],
    where: Path,
    instances: dict[str, Path] | None = None,
    edges: dict[str, Path] | None = None,
) -> list[Record]:
    """Records of pictures and label maps of the same stem.

    Args:
        images: stem -> picture.
        labels: stem -> label map.
        where: folder of the label maps, for messages.
        instances: stem -> instance map; {} or None for a set without.
        edges: stem -> edge map.

    Raises:
        FileNotFoundError: no picture at all, or a picture without its label (instance, edge) map.
    """
    if not images:
        raise FileNotFoundError(f"{where.parent}: holds no picture")
    for what, have in (("label", labels), ("instance", instances), ("edge", edges)):
        missing = [] if have is None or (what != "label" and not have) else [stem for stem in images if stem not in have]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{where}: no {what} map for {images[missing[0]]}{more}")
    return [
        Record(stem, image, labels[stem], (instances or {}).get(stem), (edges or {}).get(stem))
        for stem, image in images.items()
    ]


def is_simple(directory: Path) -> bool:
    """Whether a folder holds `images/` and `labels/`."""
    return (directory / "images").is_dir() and (directory / "labels").is_dir()


def simple(root: Path, split: str) -> list[Record]:
    """Records of the simple layout; with `instances/` and `edges/` beside `labels/` where they exist.

    Raises:
        FileNotFoundError: no such split, or files are missing.
    """
    if split == "all":
        folders = [d for d in (root, *(root / s for s in SPLITS)) if is_simple(d)]
    elif is_simple(root / split):
        folders = [root / split]
    else:
        folders = [root] if split == "train" and is_simple(root) else []
    if not folders:
        have = [s for s in SPLITS if is_simple(root / s)] + (["all"] if is_simple(root) else [])
        hint = f"; there is: {', '.join(have)}" if have else ""
        raise FileNotFoundError(f"{root / split}: expected folders images/ and labels/ for split {split!r}{hint}")
    records = []
    for folder in folders:
        parts = {part: files(folder / part) for part in ("images", "labels", "instances", "edges")}
        records += pairs(parts["images"], parts["labels"], folder / "labels", parts["instances"], parts["edges"])
    return records


def by_number(records: list[Record], split: str, train: range, val: range) -> list[Record]:
    """Split by the number at the end of the name; what is in neither range is "test"."""
    if split == "all":
        return records

    def part(record: Record) -> str:
        number = int("".join(c for c in record.name if c.isdigit()) or -1)
        return "train" if number in train else "val" if number in val else "test"

    return [record for record in records if part(record) == split]


def listed(path: Path) -> set[str]:
    """Stems in a list file: the last field of every line, fields parted by commas or blanks."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list file")
    lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
    return {Path(line.split()[-1]).stem for line in lines if line.strip()}


def split_folders(root: Path, names: dict[str, list[tuple[str, ...]]], split: str) -> list[tuple[Path, ...]]:
    """For the wanted split(s), the first tuple of folders of which the first two exist."""
    found = []
    for part in names if split == "all" else [split] if split in names else []:
        for option in names[part]:
            folders = tuple(root / name for name in option)
            if folders[0].is_dir() and folders[1].is_dir():
                found.append(folders)
                break
    return found
