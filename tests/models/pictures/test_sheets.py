"""Contact sheets of compositions: outlines, colours of soft compositions, captions, files written whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.data import colorize, palette
from mixsyn_fast.models.pictures.picture import Picture
from mixsyn_fast.models.pictures.sheets import (
    captioned,
    contour,
    enlarged,
    enlarged_labels,
    lines_for,
    outlined,
    soft_colours,
    source_cells,
    source_colour,
)

pytest.importorskip("PIL.Image", reason="pillow is not installed")

RED = (255, 0, 0)


def _picture(labels: np.ndarray, name: str = "a", grey: int = 100) -> Picture:
    return Picture(np.full((*labels.shape, 3), grey, np.uint8), labels.astype(np.int32), name)


def test_colours_of_sources_differ() -> None:
    colours = [source_colour(i) for i in range(24)]
    assert len(set(colours)) == 24 and all(0 <= c <= 255 for colour in colours for c in colour)
    first = np.array(colours[:8], float)
    apart = np.linalg.norm(first[:, None] - first[None], axis=2) + 1000 * np.eye(8)
    assert apart.min() > 60
    assert all(np.ptp(colour) > 150 for colour in colours)  # never grey, as pictures may be


def test_contour_of_a_square_is_its_rim() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    rim = mask.copy()
    rim[3:6, 3:6] = False
    assert np.array_equal(contour(mask, 1), rim)
    rim[3:6, 3:6] = True
    rim[4, 4] = False
    assert np.array_equal(contour(mask, 2), rim)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_contour_is_what_lies_near_the_outside(height: int, width: int, seed: int, line: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.7
    wide = np.pad(mask, line)
    y, x = np.mgrid[: wide.shape[0], : wide.shape[1]]
    outside = np.argwhere(~wide)
    near = np.zeros(wide.shape, bool)
    for oy, ox in outside:  # city-block distance
        near |= abs(y - oy) + abs(x - ox) <= line
    expected = mask & near[line : line + height, line : line + width]
    assert np.array_equal(contour(mask, line), expected)


def test_used_regions_are_outlined_and_all_else_is_faded() -> None:
    labels = np.zeros((40, 40), int)
    labels[10:30, 10:30] = 3
    drawn = outlined(_picture(labels), [3], RED, (40, 40))
    assert (drawn[10, 10:30] == RED).all() and (drawn[10:30, 29] == RED).all()  # one pixel below 200 pixels a side
    assert (drawn[11:29, 11:29] == 100).all()
    assert (drawn[:10] == round(100 + 0.55 * 155)).all()
    large = outlined(_picture(labels), [3], RED, (200, 200))
    assert (large[50:52, 50:150] == RED).all() and (large[52, 52:148] == 100).all()
    assert (outlined(_picture(labels), [], RED, (40, 40)) == round(100 + 0.55 * 155)).all()


def test_outline_around_all_regions_or_around_each() -> None:
    labels = np.zeros((20, 20), int)
    labels[5:15, 5:10], labels[5:15, 10:15] = 1, 2
    together = outlined(_picture(labels), [1, 2], RED, (20, 20))
    assert (together[8, 8:12] == 100).all()
    apart = outlined(_picture(labels), [1, 2], RED, (20, 20), apart=True)
    assert (apart[8, 9:11] == RED).all() and (apart[8, 7] == 100).all()


def test_hard_compositions_have_the_palette() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (6, 7))
    onehot = np.moveaxis(np.eye(5, dtype=np.float32)[labels], 2, 0)
    assert np.array_equal(soft_colours(onehot), colorize(labels, 5))
    assert soft_colours(onehot, (12, 14)).shape == (12, 14, 3)


def test_soft_compositions_mix_the_palette() -> None:
    weights = np.zeros((3, 1, 3), np.float32)
    weights[1, 0, 0], weights[2, 0, 0] = 0.25, 0.75
    weights[1, 0, 1] = 0.5  # half of it no region
    colours = palette(3).astype(float)
    drawn = soft_colours(weights)
    assert np.abs(drawn[0, 0] - (0.25 * colours[1] + 0.75 * colours[2])).max() <= 0.5
    assert np.abs(drawn[0, 1] - (0.5 * colours[1] + 127.5)).max() <= 0.5
    assert (drawn[0, 2] == 255).all()


def test_enlarging() -> None:
    labels = np.array([[0, 1], [2, -1]])
    assert np.array_equal(enlarged_labels(labels, (4, 6))[::2, ::3], labels)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert enlarged(image, (2, 2)) is image
    assert enlarged(image, (6, 4)).shape == (6, 4, 3)


def test_captions_wrap_and_keep_their_height() -> None:
    cell = np.zeros((20, 60, 3), np.uint8)  # ten letters a line
    assert lines_for(["window", "window door"], 60) == 2
    assert lines_for([], 60) == 1
    short, long = captioned(cell, "window", RED, 2), captioned(cell, "window door shop sill", RED, 2)
    assert short.shape == long.shape == (20 + 4 + 28, 60, 3)
    assert (short[20:24] == RED).all() and np.array_equal(short[:20], cell)
    assert short[24:38].max() > 200 and short[38:].max() < 100  # text in the first line only
    assert long[38:].max() > 200
    assert captioned(cell, "window").shape == (34, 60, 3)


def test_sources_show_what_is_taken_from_them() -> None:
    left = np.zeros((20, 20), int)
    left[:, 10:] = 1
    sources = [_picture(left, "a"), _picture(1 - left, "b")]
    cells = source_cells(sources, {"wall": 0, "window": 1}, ["wall", "window"], (20, 20))
    assert len(cells) == 2 and cells[0].shape == cells[1].shape
    for index, cell in enumerate(cells):
        colour = source_colour(index)
        assert (cell[20:24] == colour).all()
        assert (cell[0, :10] == colour).all() and not (cell[0, 10:] == colour).all(1).any()
