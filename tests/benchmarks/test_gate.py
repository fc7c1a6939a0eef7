"""The rule of correctness: what it allows, and that it is not blind to one wrong element or row in a large tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixsyn_fast.measure.gate import floor_of, gate, relative_error
from tests.compare import assert_within_rule

EXACT = {"y": torch.linspace(-1, 1, 101, dtype=torch.float64), "z": torch.zeros(0, dtype=torch.float64)}


def off(error: float) -> dict[str, Tensor]:
    return {"y": (EXACT["y"] + error).float(), "z": torch.zeros(0)}


def test_twice_the_error_of_the_reference_and_no_more() -> None:
    assert gate(off(1.9e-5), off(1e-5), EXACT).passed
    verdict = gate(off(2.3e-5), off(1e-5), EXACT)
    assert not verdict.passed and verdict.what == "y" and verdict.error > verdict.allowed
    assert gate(off(2.3e-5), off(1e-5), EXACT, floor=1e-5).passed
    assert gate(off(2.3e-5), off(1e-5), EXACT, also=off(1.2e-5)).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_floor_where_the_reference_is_exact(dtype: torch.dtype) -> None:
    exact = {"y": torch.ones(100, dtype=torch.float64)}
    reference = {"y": torch.ones(100, dtype=dtype)}
    assert gate({"y": exact["y"] + 0.9 * floor_of(dtype)}, reference, exact).passed
    assert not gate({"y": exact["y"] + 1.1 * floor_of(dtype)}, reference, exact).passed


def test_what_is_missing_misshapen_or_not_finite_fails() -> None:
    for y in (None, torch.ones(99), torch.full((101,), float("nan")), torch.full((101,), float("inf"))):
        found = {"z": torch.zeros(0)} | ({} if y is None else {"y": y})
        assert not gate(found, off(1.0), EXACT).passed
    ids = {"i": torch.arange(5)}
    assert gate({"i": torch.arange(5, dtype=torch.int32)}, ids, ids).passed
    assert not gate({"i": torch.tensor([0, 1, 2, 3, 5])}, ids, ids).passed
    assert not gate({"i": torch.arange(4)}, ids, ids).passed


def test_relative_error() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, 4.5]), exact, float("inf")) == pytest.approx(0.125)
    assert relative_error(torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.float64)) == 2.0
    assert relative_error(torch.ones(3), exact) == float("inf") and relative_error(torch.zeros(0), torch.zeros(0)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_element_or_row_of_a_large_tensor_is_seen(dtype: torch.dtype) -> None:
    """A feature map of a benchmark, 128 x 256 x 256; the element is off by as much as a usual one is large."""
    torch.manual_seed(0)
    exact = torch.randn(1, 128, 256, 256)
    right, exact = exact.to(dtype), exact.double()
    row, element = right.clone(), right.clone()
    row[0, 77, 131] = row[0, 77, 130]
    element[0, 77, 131, 5] += 1
    assert gate({"y": right}, {"y": right}, {"y": exact}).passed
    for bad in (row, element):
        verdict = gate({"y": bad}, {"y": right}, {"y": exact})
        assert not verdict.passed and (dtype == torch.float32 or verdict.what == "y, largest")
        if dtype == torch.bfloat16:  # why the 2-norm does not stand alone
            assert gate({"y": bad}, {"y": right}, {"y": exact}, elements=False).passed


def test_small_errors_everywhere_are_seen() -> None:
    """Why the maximum norm does not stand alone."""
    torch.manual_seed(0)
    exact = torch.randn(100_000, dtype=torch.float64)
    reference = exact.bfloat16()
    bad = reference.double() + 0.02 * torch.randn(exact.shape).double().clamp(-1, 1)
    verdict = gate({"y": bad}, {"y": reference}, {"y": exact})
    assert not verdict.passed and verdict.what == "y"
    assert relative_error(bad, exact, float("inf")) < 2 * relative_error(reference, exact, float("inf")) + 8e-3


def test_the_assertion_of_the_tests() -> None:
    assert_within_rule(off(1.9e-5)["y"], off(1e-5)["y"], EXACT["y"])
    with pytest.raises(AssertionError, match="pooled: relative error"):
        assert_within_rule(off(1e-4)["y"], off(1e-5)["y"], EXACT["y"], "pooled")
    with pytest.raises(AssertionError, match="shape"):
        assert_within_rule(torch.ones(3), torch.ones(3), EXACT["y"])
