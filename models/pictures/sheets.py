"""Pictures of compositions: sources with what is taken from them outlined, soft compositions in colour, captions, files.

Every source has one colour, on its outlines and on the captions of what was made of it (paper Fig. 5, 11, 12).
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..data import colorize, palette
from ..sheets import legend, text
from .picture import Picture

_LINE = 14  # height of a caption's line in pixels
_LETTER = 6  # width of a letter in pixels, about
_THICK = 200  # longer side in pixels from which lines are two pixels wide
_FADED = 0.55  # share of white over what is not used of a source
_SIDE = 224  # of the pictures of a command's sheet in pixels, about: small images are enlarged by a whole factor
_HUES = (0.0, 0.6, 0.1, 0.83, 0.33, 0.5, 0.92, 0.72)  # far apart for the first few sources


def source_colour(index: int) -> tuple[int, int, int]:
    """Return the RGB colour, 0 to 255, of source `index`; those of the first eight are easy to tell apart."""
    hue = _HUES[index] if index < len(_HUES) else (0.05 + 0.381966 * index) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a picture (h, w, 3) uint8 to `size` (H, W) smoothly (bicubic)."""
    from PIL import Image

    if picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def enlarged_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale labels or a mask (h, w) to `size` (H, W) by nearest pixel."""
    rows = (np.arange(size[0]) * labels.shape[0]) // size[0]
    columns = (np.arange(size[1]) * labels.shape[1]) // size[1]
    scaled: np.ndarray = labels[rows[:, None], columns[None]]
    return scaled


def coloured(labels: np.ndarray, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """Draw a label map (h, w) at `size` (H, W) in the palette's colours, (H, W, 3) uint8, white where there is no class."""
    return colorize(enlarged_labels(labels, size), num_classes)


def contour(mask: np.ndarray, width: int = 2) -> np.ndarray:
    """Return the pixels of `mask` (H, W) bool within `width` pixels of its outside; a picture's edge is outside as well."""
    inner = np.pad(mask, 1)
    for _ in range(width):
        whole = inner[1:-1, 1:-1].copy()
        for part in (inner[:-2, 1:-1], inner[2:, 1:-1], inner[1:-1, :-2], inner[1:-1, 2:]):
            whole &= part
        inner = np.pad(whole, 1)
    edge: np.ndarray = mask & ~inner[1:-1, 1:-1]
    return edge


def outlined(
    picture: Picture,
    regions: Collection[int],
    colour: tuple[int, int, int],
    size: tuple[int, int],
    *,
    apart: bool = False,
) -> np.ndarray:
    """Draw a source picture with what is used of it outlined, one or two pixels wide, and all else faded.

    Args:
        picture: the source.
        regions: classes taken from it; none: the picture is faded.
        colour: RGB, 0 to 255.
        size: (H, W) to draw at, in pixels.
        apart: outline every region on its own, not all of them together.

    Returns:
        (H, W, 3) uint8.
    """
    drawn = enlarged(picture.image, size).astype(np.float32)
    labels = enlarged_labels(picture.labels, size)
    used = np.isin(labels, list(regions))
    drawn[~used] += (255.0 - drawn[~used]) * _FADED
    for shape in (labels == region for region in regions) if apart else (used,):
        drawn[contour(shape, 1 if max(size) < _THICK else 2)] = colour
    return drawn.round().astype(np.uint8)


def soft_colours(composition: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Colour a soft composition: every pixel mixes the palette's colours by its weights.

    Args:
        composition: (N, H, W) float, weights 0 to 1; where they sum to less than one the rest is white.
        size: (H, W) to enlarge to; None: as it is.

    Returns:
        (H, W, 3) uint8.
    """
    weights = np.clip(composition.astype(np.float32), 0.0, 1.0)
    total = weights.sum(0)
    mixed = np.einsum("nhw,nc->hwc", weights, palette(len(weights)).astype(np.float32))
    mixed = mixed / np.maximum(total, 1.0)[..., None] + 255.0 * np.clip(1.0 - total, 0.0, 1.0)[..., None]
    drawn = mixed.round().clip(0, 255).astype(np.uint8)
    return drawn if size is None else enlarged(drawn, size)


def captioned(cell: np.ndarray, line: str, colour: tuple[int, int, int] | None = None, lines: int = 1) -> np.ndarray:
    """Put text below a picture.

    Args:
        cell: (H, W, 3) uint8.
        line: the text, wrapped at spaces to the cell's width; what `lines` lines cannot hold ends in "...".
        colour: of a stripe, four pixels high, between picture and text; None: none.
        lines: height of the caption in lines, also where the text is shorter: cells of a row stay equally high.

    Returns:
        (H + 4 + 14 * lines, W, 3) uint8, 4 less without a stripe.
    """
    width = cell.shape[1]
    wrapped = _wrapped(line, max(1, width // _LETTER), lines)
    parts = [cell]
    if colour is not None:
        parts.append(np.broadcast_to(np.array(colour, np.uint8), (4, width, 3)))
    return np.concatenate([*parts, *(text(part, _LINE, width) for part in wrapped)])


def _wrapped(line: str, letters: int, lines: int) -> list[str]:
    """Break a text at its spaces into exactly `lines` lines."""
    found = [""]
    for word in line.split():
        longer = f"{found[-1]} {word}".strip()
        if len(longer) <= letters or not found[-1]:
            found[-1] = longer
        else:
            found.append(word)
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][: max(0, letters - 3)] + "..."]
    return [*found, *[""] * (lines - len(found))]


def lines_for(texts: Sequence[str], width: int) -> int:
    """Return how many caption lines, at most four, the longest of the texts needs below a cell `width` pixels wide."""
    letters = max(1, width // _LETTER)
    return min(4, max((sum(bool(part) for part in _wrapped(line, letters, 99)) for line in texts), default=1) or 1)


def source_cells(
    sources: Sequence[Picture],
    table: Mapping[str, int],
    classes: Sequence[str],
    size: tuple[int, int],
    base: int | None = None,
    *,
    named: bool = True,
) -> list[np.ndarray]:
    """Draw the sources of a composition, each with its used regions outlined in its colour and listed below.

    Args:
        sources: the pictures.
        table: region -> index of its source.
        classes: names of all regions.
        size: (H, W) of a picture.
        base: the source that gave what was not named: its caption says so instead of listing regions.
        named: with the picture's name in front of the list.
    """
    names: list[list[str]] = [[name for name in classes if table.get(name) == index] for index in range(len(sources))]
    texts = []
    for index, (picture, used) in enumerate(zip(sources, names, strict=True)):
        listed = "base" if index == base else ", ".join(used) or "nothing"
        texts.append(f"{picture.name}: {listed}" if named else listed)
    lines = lines_for(texts, size[1])
    return [
        captioned(
            outlined(picture, [classes.index(name) for name in used], source_colour(index), size),
            caption,
            source_colour(index),
            lines,
        )
        for index, (picture, used, caption) in enumerate(zip(sources, names, texts, strict=True))
    ]


def cell_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (H, W) at which a sheet shows images of `size`: a whole multiple of it."""
    factor = max(1, round(_SIDE / max(size)))
    return size[0] * factor, size[1] * factor


def region_legend(labels: Sequence[np.ndarray], classes: Sequence[str], height: int) -> np.ndarray:
    """Return names and colours of the regions that appear in label maps (H, W), as a picture `height` pixels high."""
    seen = [k for k in range(len(classes)) if any((plane == k).any() for plane in labels)]
    return legend([classes[k] for k in seen], palette(len(classes))[seen], height)
