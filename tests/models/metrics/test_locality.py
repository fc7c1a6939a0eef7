"""Where the change of an edit lies."""

from __future__ import annotations

import numpy as np
import pytest
from mixsyn_fast.models.metrics import change_of_edit


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def region() -> np.ndarray:
    inside = np.zeros((6, 8), bool)
    inside[1:3, 2:7] = True
    return inside


def test_equals_the_formula() -> None:
    before, after, inside = picture(0), picture(1), region()
    found = change_of_edit(before, after, inside)
    total = within = 0
    for y in range(6):
        for x in range(8):
            change = sum(abs(int(after[y, x, c]) - int(before[y, x, c])) for c in range(3))
            total += change
            within += change * bool(inside[y, x])
    assert found.locality == pytest.approx(within / total) and found.region_share == 10 / 48
    assert found.inside == pytest.approx(within / 30) and found.outside == pytest.approx((total - within) / (38 * 3))
    assert change_of_edit(after, before, inside) == found


def test_where_all_of_it_lies() -> None:
    before, inside = picture(0), region()
    shifted = before + np.uint8(0)
    shifted[inside] ^= 1
    assert change_of_edit(before, shifted, inside)[:4] == (1.0, 10 / 48, 1.0, 0.0)
    assert change_of_edit(before, shifted, ~inside).locality == 0
    evenly = change_of_edit(before, before ^ 1, inside)
    assert evenly.locality == pytest.approx(evenly.region_share)


def test_no_change_and_no_outside() -> None:
    before, inside = picture(0), region()
    same = change_of_edit(before, before.copy(), inside)
    assert np.isnan(same.locality) and same[1:] == (10 / 48, 0.0, 0.0)
    whole = change_of_edit(before, before ^ 1, np.ones_like(inside))
    assert whole.locality == 1 and np.isnan(whole.outside)
    none = change_of_edit(before, before ^ 1, np.zeros_like(inside))
    assert none.locality == 0 and np.isnan(none.inside)


def test_bad_input() -> None:
    before, inside = picture(0), region()
    with pytest.raises(ValueError, match=r"after: expected the shape of before \(H, W, C\), got \(5, 8, 3\)"):
        change_of_edit(before, before[1:], inside)
    for wrong in (inside[1:], inside.astype(int)):
        with pytest.raises(ValueError, match=r"region: expected \(6, 8\) bool, got"):
            change_of_edit(before, before, wrong)
