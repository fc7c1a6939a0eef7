"""`mixsyn-fast data inspect DIR`: what a data set holds, which files are bad, and a contact sheet to look at."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..sheets import contact_sheet, legend, save_png
from .dataset import RegionDataset
from .palette import colorize, palette
from .sets import KINDS, add_reader_arguments, open_source, reader_options
from .source import Source
from .statistics import Statistics, statistics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("directory", nargs="?", help="folder of the set; none for the kinds drawn by code")
    parser.add_argument("--kind", default="auto", choices=("auto", *KINDS), help="what set it is (default: %(default)s)")
    parser.add_argument(
        "--split", default="train", choices=("train", "val", "test", "all"), help="part of the set (default: %(default)s)"
    )
    parser.add_argument(
        "--unknown",
        default="class",
        help="what pixels without a class become: class, none, or a class name (default: %(default)s)",
    )
    add_reader_arguments(parser)
    parser.add_argument("--limit", type=int, help="read the first N pictures only (default: all)")
    parser.add_argument("--out", type=Path, help="write a contact sheet here (PNG): picture, labels, overlay, class names")
    parser.add_argument("--count", type=int, default=8, help="rows of the contact sheet (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=192, help="height and width of its cells in pixels (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the statistics here (JSON)")


def main(arguments: argparse.Namespace) -> int:
    """Inspect a set; return 1 where it has bad files, else 0.

    Raises:
        ValueError: bad options. FileNotFoundError: files are missing. ImportError: no Pillow.
    """
    if arguments.count < 1 or arguments.size < 8:
        raise ValueError(f"--count, --size: expected at least 1 and 8, got {arguments.count} and {arguments.size}")
    for path in (arguments.out, arguments.json):
        if path is not None and not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"{path.resolve().parent}: no such folder to write {path.name} into")
    options = reader_options(arguments)
    source = open_source(arguments.directory, arguments.kind, arguments.split, arguments.unknown, **options)
    found = statistics(source, arguments.limit, _progress(len(source), arguments.limit))
    print(f"{source.name}, split {arguments.split}: {found.count} pictures, {len(source.classes)} classes")
    sizes = list(found.sizes.items())
    more = f" and {len(sizes) - 5} other sizes" if len(sizes) > 5 else ""
    print("stored sizes (height x width): " + ", ".join(f"{size} ({n})" for size, n in sizes[:5]) + more)
    print(found.table())
    for name, reason in found.bad:
        print(f"bad: {name}: {reason}")
    print(f"{len(found.bad)} bad of {found.count + len(found.bad)}")
    if arguments.json is not None:
        found.save(arguments.json)
        print(f"statistics: {arguments.json}")
    if arguments.out is not None and found.count:
        save_png(sheet(source, found, arguments.count, arguments.size), arguments.out)
        print(f"contact sheet: {arguments.out}")
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
