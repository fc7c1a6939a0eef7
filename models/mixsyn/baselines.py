"""What MixSyn is compared with: copy and paste, and one segment after another on a constant mask (paper, Fig. 5 to 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from ..data import to_uint8
from .model import MixSyn
from .pictures import Picture, fit

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


def sequential(
    mixsyn: MixSyn,
    base: Picture,
    replacements: Mapping[str, Picture] | Sequence[tuple[str, Picture]],
    *,
    anew: bool = True,
) -> list[Picture]:
    """Replace one segment after another, style by style, on the base's mask (paper, section 5.2 and Fig. 7).

    So do editors that know one source and one target: the mask never changes, and each result is the next step's target. A
    region that the base does not have has no place in the mask, so that step shows no change. The generator is this model's
    own, on the hard mask; no composition is made.

    Args:
        mixsyn: the model.
        base: the first target, whose mask (its label map at the model's size) all steps keep.
        replacements: region -> picture whose style it takes, in this order; pairs, where a region comes up twice.
        anew: encode each result anew for the next step, as such editors do; False: keep the codes of all regions but the
            replaced one, as an editor with memory would.

    Returns:
        One picture per step at the model's size: image (H, W, 3) uint8, labels of the base, name "base+source+source ...".

    Raises:
        ValueError: no replacement, an unknown region, or one that its source lacks (the message lists those that it has); a
            base without any region.
    """
    steps = list(replacements.items() if isinstance(replacements, Mapping) else replacements)
    if not steps:
        raise ValueError("replacements: expected at least one region, got none")
    new = []
    for name, picture in steps:
        style = mixsyn.styles(picture, [name])[0]
        has = mixsyn.regions_of(picture)
        if name not in has:
            raise ValueError(f"replacements: {picture.name} has no region {name!r}; it has: {', '.join(has) or 'none'}")
        new.append(style)
    target = mixsyn.fitted(base)
    mask = mixsyn.region_map(target)
    there = mixsyn.regions_of(target)
    if not there:
        raise ValueError(f"base: expected a picture with a region, got none in {base.name}")
    at = [mixsyn.classes.index(name) for name in there]

    def encoded(picture: Picture) -> Tensor:
        own = mixsyn.styles(picture, there)
        styles = own.new_zeros(len(mixsyn.classes), own.shape[1])
        styles[at] = own
        return styles

    styles = encoded(target)
    results: list[Picture] = []
    for (name, picture), style in zip(steps, new, strict=True):
        if results and anew:
            styles = encoded(results[-1])
        if name in there:
            styles[mixsyn.classes.index(name)] = style
        image = to_uint8(mixsyn.generate(mask, styles)[None])[0]
        before = results[-1].name if results else base.name
        results.append(Picture(image, target.labels, f"{before}+{picture.name}"))
    return results
