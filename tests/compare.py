"""The tolerance rule of the project: no magic numbers.

The error of a kernel against the float64 reference may be at most twice the error of the reference computed in the
kernel's own dtype, plus a floor of a few units in the last place (where the reference happens to be exact).
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(value: Tensor, exact: Tensor) -> float:
    """||value - exact|| / ||exact|| in float64; NaN and infinity in ``value`` give infinity."""
    value, exact = value.detach().double().cpu(), exact.detach().double().cpu()
    assert value.shape == exact.shape, f"shape {tuple(value.shape)} instead of {tuple(exact.shape)}"
    if exact.numel() == 0:
        return 0.0
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    scale = float(exact.norm())
    return float((value - exact).norm()) / (scale if scale > 0 else 1.0)


def assert_within_rule(kernel: Tensor, reference: Tensor, exact: Tensor, name: str = "") -> None:
    """Check error(kernel) <= 2 error(reference in the kernel's dtype) + floor."""
    error, allowed = (
        relative_error(kernel, exact),
        2 * relative_error(reference, exact) + _FLOOR[kernel.dtype],
    )
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"
