"""Segments of several pictures pasted into one: what every composition is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from .picture import Picture, fit

GREY = 128
"""Grey level of a hole."""


def copy_paste(
    sources: Sequence[Picture],
    table: Mapping[str, int],
    size: tuple[int, int],
    classes: Sequence[str],
    *,
    base: Picture | None = None,
    holes: Literal["grey", "nearest"] = "grey",
) -> Picture:
    """Paste segments of several pictures into one, pixels and labels, each where it lies in its own picture.

    Red boxes of the paper's Fig. 1, input pairs of Fig. 6. `sources` and `table` as :class:`~.model.Composed` has them::

        copy_paste(made.sources, made.table, mixsyn.size, mixsyn.classes, base=base)

    Args:
        sources: S pictures; those of another size are fitted.
        table: region -> index of its source. Later regions cover earlier ones.
        size: (H, W) in pixels of the result.
        classes: names of the regions, by label.
        base: a whole picture below all segments: what they do not cover shows it, the base's own replaced regions included.
        holes: pixels that no segment covers. "grey": grey level 128, label -1, as the paper shows them. "nearest": pixel and
            label of the nearest one that is covered.

    Raises:
        ValueError: an empty table, an unknown region, an index out of range, a source without the region, another `holes`.
        ImportError: "nearest", and scipy is not installed.
    """
    if holes not in ("grey", "nearest"):
        raise ValueError(f"holes: expected 'grey' or 'nearest', got {holes!r}")
    if not table:
        raise ValueError("table: expected at least one region, got none")
    image = np.full((*size, 3), GREY, np.uint8)
    labels = np.full(size, -1, np.int32)
    if base is not None:
        fitted = fit(base, size)
        image[:], labels[:] = fitted.image, fitted.labels
    pieces = [fit(picture, size) for picture in sources]
    for name, at in table.items():
        if name not in classes:
            raise ValueError(f"table: expected names out of {', '.join(classes)}, got {name!r}")
        if not 0 <= at < len(pieces):
            raise ValueError(f"table[{name!r}]: expected the index of one of {len(pieces)} sources, got {at}")
        label = list(classes).index(name)
        segment = pieces[at].labels == label
        if not segment.any():
            has = ", ".join(classes[k] for k in np.unique(pieces[at].labels).tolist() if k >= 0)
            raise ValueError(f"table[{name!r}]: {pieces[at].name} has no such region; it has: {has or 'none'}")
        image[segment], labels[segment] = pieces[at].image[segment], label
    if holes == "nearest":
        image, labels = _filled(image, labels)
    names = dict.fromkeys(picture.name for picture in ((base,) if base is not None else ()) + tuple(pieces))
    return Picture(image, labels, "+".join(names))


def _filled(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of label -1 become copies of the nearest pixel that has a label."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise ImportError("holes='nearest' needs scipy: pip install 'mixsyn_fast[models]'") from error
    at = tuple(distance_transform_edt(labels < 0, return_distances=False, return_indices=True))
    return image[at], labels[at]
