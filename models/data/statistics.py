"""What is in a data set: how much of every class, in which pictures, and which files are bad."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np

from mixsyn_fast.machine import cores
from mixsyn_fast.reading import read_text
from mixsyn_fast.writing import write_json

from .blended import blended
from .source import Source


@dataclass(frozen=True)
class Statistics:
    """Counts over the readable pictures of a source."""

    source: str
    """Kind of the set."""
    classes: list[str]
    """K names."""
    count: int
    """Pictures counted."""
    pixel_share: list[float]
    """Share of each class in all pixels, 0 to 1; they add up to 1 with `unlabelled_share`."""
    image_share: list[float]
    """Share of the pictures in which each class occurs, 0 to 1."""
    unlabelled_share: float
    """Share of pixels of no class, 0 to 1."""
    presence: dict[int, list[int]]
    """Class -> indices of the pictures in which it occurs."""
    sizes: dict[str, int]
    """Stored size "H x W" -> pictures, the most frequent first."""
    bad: list[tuple[str, str]]
    """(name, reason) of the pictures that cannot be used."""
    blended: list[tuple[str, float]]
    """(name, share of the pixels) of the pictures whose label map looks as if it was resized bilinearly: :func:`blended`."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what :meth:`save` wrote. ValueError, naming the file, for anything else."""
        try:
            data = json.loads(read_text(path))
            if set(data) != {part.name for part in fields(cls)}:
                raise ValueError(f"expected {', '.join(part.name for part in fields(cls))}")
            data["presence"] = {int(k): list(indices) for k, indices in data["presence"].items()}
            for pairs in ("bad", "blended"):
                data[pairs] = [(name, what) for name, what in data[pairs]]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)}: not saved statistics ({error})") from error
        return cls(**data)

    def table(self) -> str:
        """Format the classes as lines of text: id, name, share of pixels, share of pictures."""
        wide = max([5, *map(len, self.classes)])
        lines = [f"{'id':>3}  {'class':<{wide}}  {'pixels %':>9}  {'pictures %':>10}"]
        for k, name in enumerate(self.classes):
            lines.append(f"{k:>3}  {name:<{wide}}  {100 * self.pixel_share[k]:>9.3f}  {100 * self.image_share[k]:>10.1f}")
        if self.unlabelled_share:
            lines.append(f"  -  {'(no class)':<{wide}}  {100 * self.unlabelled_share:>9.3f}")
        return "\n".join(lines)


def statistics(source: Source, limit: int | None = None, progress: Callable[[int], object] | None = None) -> Statistics:
    """Read pictures and count; bad files are listed, not raised.

    Args:
        source: the set.
        limit: read the first `limit` pictures only; None for all.
        progress: called with the number of pictures read so far.

    Returns:
        The counts, over the readable pictures.

    Raises:
        ValueError: limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    total = len(source) if limit is None else min(limit, len(source))
    names, regions = source.names(), len(source.classes)
    pixels, presence = np.zeros(regions + 1, np.int64), {k: [] for k in range(regions)}  # type: ignore[var-annotated]
    sizes: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    mixed: list[tuple[str, float]] = []

    def count(index: int) -> tuple[np.ndarray, str, float] | str:
        try:
            labels = source.read(index).labels
        except (ValueError, OSError) as error:
            return str(error)
        counts = np.bincount(labels.ravel() + 1, minlength=regions + 1)
        return counts, f"{labels.shape[0]} x {labels.shape[1]}", blended(labels)

    for index, result in enumerate(in_threads(count, total)):
        if isinstance(result, str):
            bad.append((names[index], result))
        else:
            pixels += result[0]
            sizes[result[1]] += 1
            for k in np.flatnonzero(result[0][1:]).tolist():
                presence[k].append(index)
            if result[2]:
                mixed.append((names[index], result[2]))
        if progress is not None:
            progress(index + 1)
    good = total - len(bad)
    share = pixels / max(int(pixels.sum()), 1)
    return Statistics(
        source=source.name,
        classes=list(source.classes),
        count=good,
        pixel_share=share[1:].tolist(),
        image_share=[len(indices) / max(good, 1) for indices in presence.values()],
        unlabelled_share=float(share[0]),
        presence=presence,
        sizes=dict(sizes.most_common()),
        bad=bad,
        blended=mixed,
    )


def in_threads(function: Callable[[int], Any], total: int) -> Iterator[Any]:
    """Yield function(0), function(1) ... in order, a few ahead in threads: image decoders leave the interpreter free."""
    threads = min(8, cores())
    with ThreadPoolExecutor(threads) as pool:
        todo = iter(range(total))
        running = [pool.submit(function, index) for index in islice(todo, 2 * threads)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(function, index) for index in islice(todo, 1)]
