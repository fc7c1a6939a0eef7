"""Image files: which there are, and opening one. Pillow is imported on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_MODES = ("P", "L", "1", "I", "I;16", "I;16B")


def open_picture(path: Path) -> Image.Image:
    """Read an image file into a Pillow image. ValueError, naming the file, when that fails; ImportError without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("reading image files needs pillow: pip install 'mixsyn_fast[models]'") from error
    try:
        picture = Image.open(path)
        picture.load()
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # decoders raise all kinds on damaged files: OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(f"{path}: not a readable image file ({error})") from error
    return picture
