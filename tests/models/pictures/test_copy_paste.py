"""Copy and paste by hand."""

from __future__ import annotations

import numpy as np
import pytest
from mixsyn_fast.models.pictures.copy_paste import copy_paste
from mixsyn_fast.models.pictures.picture import Picture

CLASSES = ("wall", "window", "door")


def flat(name: str, rows: list[str], level: int) -> Picture:
    """A picture of one grey level; every letter is a label ("." none)."""
    labels = np.array([[".wnd".index(letter) - 1 for letter in row] for row in rows], np.int32)
    return Picture(np.full((*labels.shape, 3), level, np.uint8), labels, name)


A = flat("a", ["wwww", "wnnw", "wwww", "wddw"], 10)
B = flat("b", ["nnww", "nnww", "wwww", "...."], 20)
C = flat("c", ["....", "....", "dddd", "dddd"], 30)


def letters(picture: Picture) -> list[str]:
    return ["".join(".wnd"[k + 1] for k in row) for row in picture.labels.tolist()]


def test_segments_lie_where_they_lie_in_their_picture_and_holes_are_grey() -> None:
    made = copy_paste((A, B), {"wall": 0, "window": 1}, (4, 4), CLASSES)
    assert letters(made) == ["nnww", "nn.w", "wwww", "w..w"]
    grey = made.image[..., 0]
    assert grey.tolist() == [[20, 20, 10, 10], [20, 20, 128, 10], [10, 10, 10, 10], [10, 128, 128, 10]]
    assert (made.image == grey[..., None]).all() and made.image.dtype == np.uint8 and made.labels.dtype == np.int32
    assert made.name == "a+b"


def test_later_regions_cover_earlier_ones() -> None:
    assert letters(copy_paste((A, C), {"wall": 0, "door": 1}, (4, 4), CLASSES))[2:] == ["dddd", "dddd"]
    assert letters(copy_paste((A, C), {"door": 1, "wall": 0}, (4, 4), CLASSES))[2:] == ["wwww", "wddw"]


def test_a_base_lies_below() -> None:
    made = copy_paste((B,), {"window": 0}, (4, 4), CLASSES, base=A)
    assert letters(made) == ["nnww", "nnnw", "wwww", "wddw"]  # its own window shows where the new one is not
    assert made.image[1, 2, 0] == 10 and made.image[0, 0, 0] == 20 and made.name == "a+b"


def test_holes_take_the_nearest_pixel() -> None:
    made = copy_paste((B, C), {"window": 0, "door": 1}, (4, 4), CLASSES, holes="nearest")
    assert (made.labels >= 0).all() and set(np.unique(made.image)) == {20, 30}
    assert ((made.labels == 1) == (made.image[..., 0] == 20)).all()
    assert letters(made)[0] == "nnnn" and letters(made)[1][3] == "d"


def test_sources_of_another_size_are_fitted() -> None:
    large = Picture(A.image.repeat(8, 0).repeat(8, 1), A.labels.repeat(8, 0).repeat(8, 1), "large")
    assert letters(copy_paste((large,), {"window": 0}, (4, 4), CLASSES)) == ["....", ".nn.", "....", "...."]
    assert copy_paste((A,), {"window": 0}, (8, 8), CLASSES, base=B).image.shape == (8, 8, 3)


@pytest.mark.parametrize(
    "table, words",
    [
        ({}, "at least one region"),
        ({"roof": 0}, "wall, window, door, got 'roof'"),
        ({"wall": 2}, "index of one of 2 sources, got 2"),
        ({"wall": -1}, "got -1"),
        ({"wall": 1}, "'wall'.*c has no such region; it has: door"),
    ],
)
def test_a_wrong_table_says_why(table: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        copy_paste((A, C), table, (4, 4), CLASSES)
    with pytest.raises(ValueError, match="'grey' or 'nearest', got 'blur'"):
        copy_paste((A,), {"wall": 0}, (4, 4), CLASSES, holes="blur")  # type: ignore[arg-type]
