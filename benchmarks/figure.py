"""Figures as files that a repository can carry: PNGs of few colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixsyn_fast.writing import written_whole


def save(figure: Any, path: Path, *, shows: str = "", **options: Any) -> Path:
    """Write a figure of matplotlib as a palette PNG, whole or not at all; return the path. ImportError without pillow.

    Args:
        figure: what is drawn.
        path: *.png.
        shows: what the figure was drawn from, kept in the file (`Image.open(path).text["shows"]`), so that a test can ask.
        options: of matplotlib's `savefig`.
    """
    from PIL import Image, PngImagePlugin

    note = PngImagePlugin.PngInfo()
    note.add_text("shows", shows)
    with written_whole(path) as temporary:
        figure.savefig(temporary, **options)
        with Image.open(temporary) as image:
            few = image.convert("RGB").quantize(64)
        few.save(temporary, format="PNG", optimize=True, pnginfo=note)
    return path
