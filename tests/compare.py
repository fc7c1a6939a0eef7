"""The rule of correctness (mixsyn_fast/measure/gate.py) as an assertion."""

from __future__ import annotations

from torch import Tensor

from mixsyn_fast.measure.gate import gate, relative_error

__all__ = ["assert_within_rule", "relative_error"]


def assert_within_rule(kernel: Tensor, reference: Tensor, exact: Tensor, name: str = "") -> None:
    """Check that a kernel's result is off by no more than the rule allows, given the reference's in the same dtype."""
    name = name or "result"
    verdict = gate({name: kernel}, {name: reference}, {name: exact})
    assert kernel.shape == exact.shape, f"{name}: shape {tuple(kernel.shape)} instead of {tuple(exact.shape)}"
    assert verdict.passed, f"{verdict.what}: relative error {verdict.error:.3g}, allowed {verdict.allowed:.3g}"
