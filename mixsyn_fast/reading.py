"""Text files that people write, on whatever system they wrote them."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

_MARKS = (  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | os.PathLike[str]) -> str:
    r"""Read a text file: UTF-8, or what the byte order mark at its beginning says (UTF-8, UTF-16, UTF-32).

    Args:
        path: the file.

    Returns:
        The text without the mark; lines end with "\n", whichever of "\r\n", "\r" and "\n" the file has.

    Raises:
        ValueError: another encoding; the message names the file, the encoding expected and the first line that has none.
        OSError: a file that cannot be read.
    """
    data = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{os.fspath(path)}: expected {encoding.upper().removesuffix('-SIG')} text, got other bytes in line {line} "
            f"({error.reason}): save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{os.fspath(path)}: expected UTF-8 text, got zero bytes (UTF-16 without its byte order mark, or no text): "
            f"save the file as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")
