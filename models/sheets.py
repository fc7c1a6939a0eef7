"""Contact sheets: pictures in a grid."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast.writing import written_whole

_GAP = 2  # pixels between cells
_TITLE = 14  # pixels above a column
_GREY = 24


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images (B, 3, H, W) in [-1, 1] (clamped) on any device as (B, H, W, 3) uint8."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] | None = None) -> np.ndarray:
    """Lay pictures out in a grid with thin gaps; smaller ones stand in the upper left of their cell.

    Args:
        rows: each a list of (H, W, 3) uint8 pictures; sizes and lengths may differ.
        titles: one per column, drawn above it with Pillow's own font; without Pillow they are left out.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: no picture, or one of another shape or dtype.
    """
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if cell.ndim != 3 or cell.shape[2] != 3 or cell.dtype != np.uint8:
                raise ValueError(f"rows[{y}][{x}]: expected (H, W, 3) uint8, got {cell.shape} {cell.dtype}")
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("rows: expected at least one picture, got none")
    heights = [max((cell.shape[0] for cell in row), default=0) for row in rows]
    widths = [max((row[x].shape[1] for row in rows if x < len(row)), default=0) for x in range(columns)]
    head = _TITLE if titles else 0
    tops = np.cumsum([head + _GAP, *(h + _GAP for h in heights)])
    lefts = np.cumsum([_GAP, *(w + _GAP for w in widths)])
    sheet = np.full((tops[-1], lefts[-1], 3), _GREY, np.uint8)
    for top, row in zip(tops, rows, strict=False):
        for left, cell in zip(lefts, row, strict=False):
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    for left, width, title in zip(lefts, widths, titles or (), strict=False):
        sheet[_GAP : _GAP + head, left : left + width] = text(title, head, width)
    return sheet


def text(line: str, height: int, width: int) -> np.ndarray:
    """Draw a line of text, cut to its box: (height, width, 3) uint8, light on dark; empty without Pillow."""
    box = np.full((height, width, 3), _GREY, np.uint8)
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return box
    picture = Image.fromarray(box)
    ImageDraw.Draw(picture).text((2, 0), line, fill=(230, 230, 230))
    return np.asarray(picture)


def legend(names: Sequence[str], colours: np.ndarray, height: int) -> np.ndarray:
    """Names beside their colours, in as many columns as `height` asks for.

    Args:
        names: K lines of text.
        colours: (K, 3) uint8.
        height: pixels.

    Returns:
        (height or a little more, W, 3) uint8.
    """
    step, width = 14, 150
    lines = max(1, height // step)
    panel = np.full((max(height, step), width * -(-len(names) // lines), 3), _GREY, np.uint8)
    for k, name in enumerate(names):
        top, left = k % lines * step, k // lines * width
        panel[top + 1 : top + step - 1, left + 2 : left + 14] = colours[k]
        panel[top : top + step, left + 16 : left + width] = text(name, step, width - 16)
    return panel


def save_png(sheet: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, whole or not at all; folders are made. ImportError without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("writing pictures needs pillow: pip install 'mixsyn_fast[models]'") from error
    with written_whole(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
