"""MONAI's own SPADE layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import accelerate, constant_conditioning, restore, use_plan

blocks = pytest.importorskip("monai.networks.blocks.spade_norm", reason="MONAI is not installed: make compat")
K, C = 4, 8
NORMS = {
    "INSTANCE": "INSTANCE",
    "BATCH": "BATCH",
    "GROUP": ("GROUP", {"num_groups": 4, "affine": False}),
    "GROUP, affine": ("GROUP", {"num_groups": 4, "affine": True}),
}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is an error; layers as small as these would not take the table themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with use_plan("table"):
        yield


def layer(norm: str) -> nn.Module:
    torch.manual_seed(0)
    kind = NORMS[norm]
    name, parameters = kind if isinstance(kind, tuple) else (kind, None)
    made = blocks.SPADE(K, C, 3, spatial_dims=2, hidden_channels=12, norm=name, norm_params=parameters)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (2, 6, 6), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.randn(2, C, 12, 12, generator=generator).to(dtype), F.one_hot(labels, K).permute(0, 3, 1, 2).to(dtype)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max())


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer(norm: str) -> None:
    """In eval and training, float64, float32 and bfloat16; gradients; state_dict, copies, pickles; restore."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 6e-2)):
        plain = layer(norm).to(dtype).eval()
        fast = copy.deepcopy(plain)
        report = accelerate(fast)
        assert report.count("spade") == 1 and not report.left, str(report)
        x, segmap = inputs(dtype)
        with torch.no_grad():
            for twin in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
                assert close(twin(x, segmap), plain(x, segmap), tolerance)
    plain, fast = layer(norm).double().train(), layer(norm).double().train()
    accelerate(fast)
    x, segmap = inputs(torch.float64)
    grads = []
    for twin in (plain, fast):
        leaf = x.clone().requires_grad_()
        loss = (twin(leaf, segmap) * torch.linspace(-1, 1, 12, dtype=torch.float64)).sum()
        grads.append(torch.autograd.grad(loss, [leaf, *twin.parameters()]))
    largest = max(float(g.abs().max()) for g in grads[0])
    assert all((a - b).abs().max() <= 1e-9 * largest for a, b in zip(*grads, strict=True))
    assert all(
        torch.allclose(a.double(), b.double())
        for a, b in zip(*(m.state_dict().values() for m in (plain, fast)), strict=True)
    )
    assert list(plain.state_dict()) == list(fast.state_dict()) and restore(fast) and type(fast) is blocks.SPADE


def test_compiled_and_constant() -> None:
    plain = layer("INSTANCE").eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, segmap = inputs()
    with torch.no_grad():
        assert close(torch.compile(fast, fullgraph=True, backend="eager")(x, segmap), plain(x, segmap), 1e-5)
        with constant_conditioning(fast) as kept:
            for _ in range(3):
                assert close(fast(x, segmap.clone()), plain(x, segmap), 1e-4)
        assert (kept.hits, kept.misses) == (2, 1)
