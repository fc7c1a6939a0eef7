"""The one rule of correctness, for tests and benchmarks: no magic numbers.

What a kernel is off by, against the reference in float64, is at most twice what the reference itself is off by in the
kernel's dtype, plus a floor of a few units in the last place (where the reference happens to be exact).

"Off by" is ||y - y64||_2 / ||y64||_2, and the same in the maximum norm: both must hold. The 2-norm is the measure. Alone it
is blind in large tensors: one element wrong by as much as the others are large changes the 2-norm of n elements by n^-1/2,
and in bfloat16 a whole row of a 256 x 256 feature map of 256 channels hides below the floor. The maximum norm alone would
let small errors everywhere pass, as long as none exceeds those of the reference at its largest values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Units in the last place. Half types: kernels accumulate in float32 and round once, so one. float32: sums in another order
# than the reference's. float64: the reference is its own yardstick there and off by nothing, the floor bears every rounding.
UNITS = {torch.float64: 64, torch.float32: 8, torch.float16: 1, torch.bfloat16: 1}
NORMS = {"": 2.0, ", largest": float("inf")}


@dataclass(frozen=True)
class Gate:
    """Outcome of a comparison with float64: passed if error <= allowed, the worst tensor and norm deciding."""

    passed: bool
    error: float
    allowed: float
    what: str = ""  # the tensor that decided; ", largest" where the maximum norm did


def floor_of(dtype: torch.dtype) -> float:
    """Return what a result in `dtype` may be off by where the reference is exact."""
    return UNITS[dtype] * torch.finfo(dtype).eps


def relative_error(value: Tensor, exact: Tensor, norm: float = 2.0) -> float:
    """||value - exact|| / ||exact|| in float64 (||value|| where exact is zero), 2-norm or `norm`.

    Infinity where a value is not finite or shapes differ.
    """
    if value.shape != exact.shape:
        return float("inf")
    if exact.numel() == 0:
        return 0.0
    value, exact = value.detach().double().flatten(), exact.detach().double().flatten().to(value.device)
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    return float(torch.linalg.vector_norm(value - exact, norm)) / (float(torch.linalg.vector_norm(exact, norm)) or 1.0)


def gate(
    outputs: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    *,
    floor: float | None = None,
    also: Mapping[str, Tensor] | None = None,
    elements: bool = True,
) -> Gate:
    """Apply the rule to every tensor of `exact`.

    Args:
        outputs: what is judged.
        reference: what the reference produced in the same dtype.
        exact: what it produced in float64. Integers must be equal.
        floor: another floor than that of the dtype; whoever gives one says why.
        elements: False asks for the 2-norm alone; whoever does says why.
        also: the reference once more, equally valid (in another memory layout, say): the worse of the two counts.

    Returns:
        The verdict of the tensor and norm that used most of what it is allowed.
    """
    worst = Gate(True, 0.0, 0.0)
    for name, right in exact.items():
        if name not in outputs:
            return Gate(False, float("inf"), 0.0, f"{name} is missing")
        found = outputs[name]
        if not right.is_floating_point():
            if found.shape != right.shape or not torch.equal(found.to(right), right):
                return Gate(False, float("inf"), 0.0, name)
            continue
        for text, norm in list(NORMS.items())[: 2 if elements else 1]:
            own = max(relative_error(form[name], right, norm) for form in (reference, also or reference))
            allowed = 2 * own + (floor_of(reference[name].dtype) if floor is None else floor)
            error = relative_error(found, right, norm)
            verdict = Gate(error <= allowed, error, allowed, name + text)
            if not worst.what or error / allowed > worst.error / worst.allowed:
                worst = verdict
    return worst
