"""The factor on the learning rate: closed forms at chosen steps, torch's schedulers, bounds, bad arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.training.schedule import Schedule


def test_constant_is_one() -> None:
    assert [Schedule().factor(t, 10) for t in (0, 5, 10, 99)] == [1.0] * 4


def test_spade_half_flat_half_to_zero() -> None:
    schedule = Schedule("linear", start=0.5)
    factors = [schedule.factor(t, 100) for t in (0, 49, 50, 51, 75, 99, 100, 500)]
    assert factors == pytest.approx([1, 1, 1, 0.98, 0.5, 0.02, 0, 0], abs=1e-12)


def test_start_as_a_step() -> None:
    assert [Schedule("linear", start=20, end=0.5).factor(t, 40) for t in (20, 30, 40)] == [1.0, 0.75, 0.5]
    assert Schedule("linear", start=80).factor(40, 40) == 1.0  # it never begins
    assert Schedule("linear", start=1).factor(40, 40) == 1.0  # 1 is the fraction
    assert Schedule("linear", start=0.1).factor(1, 1) == 0.0


def _torch_factors(make: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_cosine_and_step_are_torchs() -> None:
    cosine = _torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.1), 31)
    assert [Schedule("cosine", end=0.1).factor(t, 30) for t in range(31)] == pytest.approx(cosine, rel=1e-9)
    step = _torch_factors(lambda o: torch.optim.lr_scheduler.StepLR(o, 7, gamma=0.3), 31)
    assert [Schedule("step", step_size=7, gamma=0.3).factor(t, 31) for t in range(31)] == pytest.approx(step, rel=1e-9)


def test_step_counts_from_start_and_stops_at_end() -> None:
    schedule = Schedule("step", start=10, step_size=5, gamma=0.5, end=0.2)
    assert [schedule.factor(t, 100) for t in (0, 10, 14, 15, 20, 25, 90)] == [1, 1, 1, 0.5, 0.25, 0.2, 0.2]


def test_warmup_rises_to_one_and_multiplies() -> None:
    assert [Schedule(warmup=4).factor(t, 10) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    with_decay, without = Schedule("linear", warmup=8), Schedule("linear")
    assert with_decay.factor(3, 10) == without.factor(3, 10) * 0.5


@given(
    st.sampled_from(["constant", "linear", "cosine", "step"]),
    st.floats(0, 2000),
    st.floats(0, 1),
    st.integers(0, 50),
    st.integers(1, 1000),
)
def test_falls_from_one_to_end(kind: Any, start: float, end: float, warmup: int, total: int) -> None:
    schedule = Schedule(kind, start, end, warmup, step_size=10)
    factors = [schedule.factor(t, total) for t in range(warmup, total + 1)]
    floor = 1.0 if kind == "constant" else end
    assert all(floor - 1e-12 <= f <= 1.0 for f in factors)
    assert all(b <= a + 1e-12 for a, b in zip(factors, factors[1:], strict=False))
    begins = start * total if start <= 1 else start
    if kind in ("linear", "cosine") and begins < total and warmup <= total:
        assert math.isclose(factors[-1], end, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "exponential"}, "kind: expected 'constant', 'linear', 'cosine' or 'step', got 'exponential'"),
        ({"start": -0.1}, "start: expected a fraction"),
        ({"start": math.nan}, "start: expected a fraction"),
        ({"end": 1.5}, r"end: expected a factor in \[0, 1\], got 1.5"),
        ({"end": math.nan}, "end: expected a factor"),
        ({"warmup": -1}, "warmup: expected 0 or more steps, got -1"),
        ({"step_size": 0}, "step_size: expected at least 1 step, got 0"),
        ({"gamma": 0.0}, r"gamma: expected a factor in \(0, 1\], got 0.0"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)


def test_bad_steps() -> None:
    with pytest.raises(ValueError, match="step: expected 0 or more, got -1"):
        Schedule().factor(-1, 10)
    with pytest.raises(ValueError, match="total: expected at least 1, got 0"):
        Schedule().factor(0, 0)
