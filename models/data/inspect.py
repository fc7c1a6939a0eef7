"""`mixsyn-fast data inspect DIR`: what a data set holds, which files are bad, and a contact sheet to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..settings import at_least, positional
from ..sheets import contact_sheet, legend, save_png
from .blended import ADVICE
from .dataset import RegionDataset
from .files import plain_name, summary
from .options import ReaderOptions
from .palette import colorize, palette
from .sets import KINDS, opened
from .source import FileSource, Source
from .statistics import Statistics, statistics

_NAMED = 20  # files that are left over for one reason, by name


@dataclass(frozen=True)
class Options(ReaderOptions):
    """Options of the command."""

    directory: str | None = positional(None)  # folder of the set; none for the kinds drawn by code
    kind: Literal[("auto", *KINDS)] = "auto"  # type: ignore[valid-type]
    """what set it is; auto: by what the folder holds"""
    split: Literal["train", "val", "test", "all"] = "train"  # part of the set
    unknown: str = "class"  # what pixels without a class become: class, none, or a class name
    limit: int | None = None  # read the first so many pictures only; none: all
    out: Path | None = None  # write a contact sheet here (PNG): picture, labels, overlay, class names
    count: int = 8  # rows of the contact sheet
    size: int = 192  # height and width of its cells in pixels
    json: Path | None = None  # write the statistics here (JSON)

    def __post_init__(self) -> None:
        """Check numbers, and that the folders to write to are there."""
        super().__post_init__()
        at_least(self, count=1, size=8)
        for name in ("out", "json"):
            path = getattr(self, name)
            if path is not None and not path.resolve().parent.is_dir():
                raise FileNotFoundError(f"{path.resolve().parent}: no such folder to write {path.name} into")


def main(options: Options) -> int:
    """Inspect a set; return 1 where it has bad files, else 0.

    Raises:
        ValueError: bad options. FileNotFoundError: files are missing. ImportError: no Pillow.
    """
    source = opened(options.directory, options.kind, options.split, options.unknown, **options.reader_options())
    found = statistics(source, options.limit, _progress(len(source), options.limit))
    print(f"{source.name}, split {options.split}: {found.count} pictures, {len(source.classes)} classes")
    sizes = list(found.sizes.items())
    more = f" and {len(sizes) - 5} other sizes" if len(sizes) > 5 else ""
    print("stored sizes (height x width): " + ", ".join(f"{size} ({n})" for size, n in sizes[:5]) + more)
    print(found.table())
    for name, reason in found.bad:
        print(f"bad: {name}: {plain_name(reason)}")
    for name, share in found.blended:
        print(
            f"warning: {name}: {100 * share:.1f} % of the pixels lie in thin bands of ids between those on their two sides: "
            f"{ADVICE}"
        )
    if isinstance(source, FileSource):
        for line in summary(source.left, _NAMED):
            print(f"left over: {line}")
    print(f"{len(found.bad)} bad of {found.count + len(found.bad)}")
    if options.json is not None:
        found.save(options.json)
        print(f"statistics: {options.json}")
    if options.out is not None and found.count:
        save_png(sheet(source, found, options.count, options.size), options.out)
        print(f"contact sheet: {options.out}")
    return 1 if found.bad else 0


def sheet(source: Source, found: Statistics, count: int, size: int) -> np.ndarray:
    """Draw picture, coloured labels and overlay of `count` pictures, spread over the set, and the names of the classes.

    Args:
        source: the set.
        found: its statistics.
        count: rows.
        size: of the cells, in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    regions = len(source.classes)
    bad = {name for name, _ in found.bad}
    good = [index for index, name in enumerate(source.names()[: found.count + len(bad)]) if name not in bad]
    dataset = RegionDataset(source, size)
    rows = []
    for at in np.unique(np.linspace(0, len(good) - 1, min(count, len(good))).astype(int)):
        item = dataset[good[at]]
        colours = colorize(item.labels, regions)
        overlay = (item.image.astype(np.uint16) + colours) // 2
        rows.append([np.ascontiguousarray(item.image), colours, overlay.astype(np.uint8)])
    grid = contact_sheet(rows, ("picture", "labels", "overlay"))
    seen = [k for k in range(regions) if found.presence[k]]
    names = [f"{k} {source.classes[k]}" for k in seen]
    return contact_sheet([[grid, legend(names, palette(regions)[seen], grid.shape[0])]])


def _progress(length: int, limit: int | None) -> Callable[[int], object] | None:
    """A progress bar on a terminal, where tqdm is installed."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar = tqdm(total=min(length, limit or length), unit="picture", leave=False)
    return lambda done: bar.update(done - bar.n)
