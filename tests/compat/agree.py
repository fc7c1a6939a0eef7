"""What every accelerated layer and model of another library must do as the one that it was copied from does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mixsyn_fast import accelerate, restore
from tests.compare import assert_within_rule

Call = Callable[[nn.Module, Sequence[Tensor]], Tensor]


def called(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The output of a call, or the first of several."""
    result = model(*inputs)
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output


def drawn(model: nn.Module) -> nn.Module:
    """The model in eval with random parameters: as made, some of them are zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5
    return model.eval()


def accelerated(plain: nn.Module, layers: int, only: bool = True) -> nn.Module:
    """A copy of a model of which as many layers are ours, and (``only``) none that takes a map is left."""
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("spade") == layers and not (only and report.left), str(report)
    return fast


def assert_outputs(plain: nn.Module, inputs: Sequence[Tensor], layers: int, call: Call = called, only: bool = True) -> None:
    """In float32 and bfloat16 within the rule, given float64; in float64 alike."""
    exact, wide = copy.deepcopy(plain).double(), [t.double() for t in inputs]
    with torch.no_grad():
        right = call(exact, wide)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            own, given = copy.deepcopy(plain).to(dtype), [t.to(dtype) for t in inputs]
            assert_within_rule(call(accelerated(own, layers, only), given), call(own, given), right, str(dtype))


def assert_trains(plain: nn.Module, inputs: Sequence[Tensor], layers: int, call: Call = called, only: bool = True) -> None:
    """In training, float64: outputs, buffers, and gradients of the first input and all parameters."""
    plain = copy.deepcopy(plain).double().train()
    results = []
    for model in (plain, accelerated(plain, layers, only)):
        leaf = inputs[0].double().requires_grad_()
        torch.manual_seed(1)
        y = call(model, [leaf, *(t.double() for t in inputs[1:])])
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        grads = torch.autograd.grad((y * weights).sum(), [leaf, *model.parameters()], allow_unused=True)
        results.append((y.detach(), list(model.buffers()), grads))
    (a, buffers, expected), (b, others, grads) = results
    assert (a - b).abs().max() <= 1e-10 * a.abs().max()
    assert all(torch.allclose(one.double(), two.double(), 1e-10) for one, two in zip(buffers, others, strict=True))
    largest = max(float(g.abs().max()) for g in expected if g is not None)
    for one, two in zip(expected, grads, strict=True):
        assert (one is None) is (two is None)
        assert one is None or two is None or (one - two).abs().max() <= 1e-9 * largest


def assert_module(plain: nn.Module, inputs: Sequence[Tensor], layers: int, call: Call = called, only: bool = True) -> None:
    """state_dict there and back, copies, pickles, torch.compile, and restore."""
    plain, given = copy.deepcopy(plain).double(), [t.double() for t in inputs]
    fast, kind = accelerated(plain, layers, only), type(plain)
    with torch.no_grad():
        expected = call(plain, given)
        written = io.BytesIO()
        torch.save(fast.state_dict(), written)
        written.seek(0)
        fast.load_state_dict(torch.load(written, weights_only=True))
        assert list(fast.state_dict()) == list(plain.state_dict()) and isinstance(fast, kind)
        for twin in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert (call(twin, given) - expected).abs().max() <= 1e-10 * expected.abs().max()
        torch._dynamo.reset()
        whole = torch.compile(fast, fullgraph=True, backend="eager")
        assert (call(whole, given) - expected).abs().max() <= 1e-10 * expected.abs().max()
        assert restore(fast) and type(fast) is kind
        assert torch.equal(call(fast, given), expected)
