"""Text files in whatever encoding and with whatever line ends people's systems write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsyn_fast.reading import read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(f"Straße{end}größe{end}".encode(encoding))
    assert read_text(path) == "Straße\ngröße\n"


def test_big_endian_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for mark, encoding in ((b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be")):
        path.write_bytes(mark + "sky\n".encode(encoding))
        assert read_text(path) == "sky\n"


def test_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("sky\nStraße\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes.txt: expected UTF-8 text, got other bytes in line 2 .*save the file as"):
        read_text(path)
    path.write_bytes("sky\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"classes.txt: expected UTF-8 text, got zero bytes .UTF-16 without"):
        read_text(path)
    path.write_bytes("sky\n".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="classes.txt: expected UTF-16 text"):
        read_text(path)
    with pytest.raises(FileNotFoundError, match="gone.txt"):
        read_text(tmp_path / "gone.txt")
