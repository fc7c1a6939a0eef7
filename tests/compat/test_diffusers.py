"""diffusers' own SpatialNorm (MoVQ)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mixsyn_fast import accelerate, restore

try:  # it wants packages of its own, any of which may be missing
    from diffusers.models.attention_processor import SpatialNorm
except Exception as error:
    pytest.skip(f"diffusers does not import here ({error}): make compat", allow_module_level=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_spatial_norm(dtype: torch.dtype) -> None:
    """Of a latent at a quarter of the size; outputs, gradients, restore."""
    torch.manual_seed(0)
    plain = SpatialNorm(32, 4).to(dtype).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("spade") == 1 and not report.left, str(report)
    f, zq = torch.randn(2, 32, 16, 16, dtype=dtype), torch.randn(2, 4, 4, 4, dtype=dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
    grads = []
    for layer in (plain, fast):
        leaves = [t.clone().requires_grad_() for t in (f, zq)]
        y = layer(*leaves)
        grads.append([y.detach(), *torch.autograd.grad(y.square().mean(), leaves)])
    for a, b in zip(*grads, strict=True):
        assert (a.double() - b.double()).abs().max() <= tolerance * a.double().abs().max()
    assert restore(fast) and type(fast) is SpatialNorm
