"""latent_blend's CUDA and Triton kernels against the reference; without a GPU the CUDA sources, emulated.

Which logit decides is exact. Rule for the values: the kernel's error is at most twice the error of the reference run in
the kernel's type (plus rounding).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import mixsyn_fast.ops.latent_blend  # noqa: F401
from tests.compare import assert_within_rule
from tests.ops.gpu_kernels import DTYPES, NO_GPU, TARGETS, Target, target_of

ops_module = sys.modules["mixsyn_fast.ops.latent_blend"]  # the package's attribute may be the function
SIDES = pytest.mark.parametrize("q_on_b", [True, False], ids=["q on b", "q on a"])
KINDS = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return target_of(request.param, "latent_blend")


class Data(NamedTuple):
    """One call: a, b (B, S), logits (B, L, D), gradients (B, S)."""

    a: Tensor
    b: Tensor
    logits: Tensor
    grad: Tensor
    grad_q: Tensor


STYLEGAN = (512,) * 9 + (512, 256, 256, 128, 128, 64, 64, 32) + (512,) * 5 + (256, 128, 64, 32)
SMALL = (16, 8, 4, 2, 1, 16, 1)  # D = 16: groups of 1 to 16


def place(t: Tensor, dtype: torch.dtype, device: str, shifted: bool) -> Tensor:
    """Convert, optionally to an address off the alignment of vectors."""
    t = t.to(dtype).to(device)
    if not shifted:
        return t
    storage = torch.empty(t.numel() + 1, dtype=dtype, device=device)
    return storage[1:].view(t.shape).copy_(t)


def make(batch: int, channels: Sequence[int], depth: int, dtype: torch.dtype, device: str, shifted: bool = False) -> Data:
    """Codes of which some are equal, and logits with many ties."""
    g = torch.Generator().manual_seed(batch + sum(channels) + depth)
    size, count = sum(channels), len(channels)
    a, b, grad, grad_q = torch.randn(4, batch, size, generator=g, dtype=torch.float64)
    b = torch.where(torch.rand(batch, size, generator=g) < 0.1, a, b)
    logits = (torch.randn(batch, count, depth, generator=g, dtype=torch.float64) * 4).round() / 2
    return Data(*(place(t, dtype, device, shifted) for t in (a, b, logits, grad, grad_q)))


def run(target: Target, data: Data, channels: Sequence[int], q_on_b: bool) -> tuple[Tensor, ...]:
    """Blended, q, grad_a, grad_b, grad_logits."""
    inputs = (data.a, data.b, data.logits, list(channels), q_on_b)
    return *target.forward(*inputs), *target.backward(data.grad, data.grad_q, *inputs)


def expected(data: Data, channels: Sequence[int], q_on_b: bool) -> tuple[Tensor, ...]:
    """Blended, q and gradients by autograd through the reference."""
    leaves = [t.detach().clone().requires_grad_() for t in data[:3]]
    blended, q = ops_module.latent_blend_reference(*leaves, list(channels), q_on_b)
    grads = torch.autograd.grad((blended, q), leaves, (data.grad, data.grad_q))
    return blended.detach(), q.detach(), *grads


NAMES = ("blended", "q", "grad_a", "grad_b", "grad_logits")


def check(target: Target, data: Data, channels: Sequence[int], q_on_b: bool) -> None:
    got = run(target, data, channels, q_on_b)
    cpu = Data(*(t.cpu() for t in data))
    own = expected(cpu, channels, q_on_b)
    exact = expected(Data(*(t.double() for t in cpu)), channels, q_on_b)
    for name, value, reference, right in zip(NAMES, got, own, exact, strict=True):
        value = value.cpu()
        assert value.dtype == data.a.dtype and value.shape == reference.shape and value.is_contiguous(), name
        assert torch.isfinite(value).all(), name
        # Triton's interpreter stores bfloat16 by cutting bits off
        if target.name == "interpreted" and value.dtype == torch.bfloat16:
            assert (value.double() - right).abs().max() <= 2**-7 * right.abs().max(), name
        else:
            assert_within_rule(value, reference, right, name)
    # no other logits than the decisive ones, the first of equal ones, get a gradient
    index = ops_module._flat_decisive(*cpu[:3], list(channels), q_on_b)
    others = torch.ones_like(cpu.logits).flatten(1).scatter_(1, index, 0)
    assert not (got[4].cpu().flatten(1) * others).any()
    assert torch.equal(got[4].cpu() != 0, own[4] != 0) or data.a.dtype in (torch.float16, torch.bfloat16)


@SIDES
@KINDS
def test_every_group(target: Target, dtype: torch.dtype, q_on_b: bool) -> None:
    """Groups of 1 to 16 logits, widths that are no multiple of a warp, layers in any order."""
    check(target, make(3, SMALL, 16, dtype, target.device), SMALL, q_on_b)
    check(target, make(2, (48, 3, 24, 12, 6, 1), 48, dtype, target.device), (48, 3, 24, 12, 6, 1), q_on_b)
    check(target, make(2, (7, 1, 35, 5), 35, dtype, target.device), (7, 1, 35, 5), q_on_b)


@SIDES
@KINDS
def test_unaligned_memory(target: Target, dtype: torch.dtype, q_on_b: bool) -> None:
    channels = (64, 32, 16, 4)
    check(target, make(2, channels, 64, dtype, target.device, shifted=True), channels, q_on_b)


@SIDES
def test_published_layout(target: Target, q_on_b: bool) -> None:
    """The 26 layers of StyleGAN2 at 1024."""
    for dtype in (torch.float32, torch.bfloat16):
        check(target, make(3, STYLEGAN, 512, dtype, target.device), STYLEGAN, q_on_b)


def test_many_layers(target: Target) -> None:
    channels = (1, 2, 4, 8) * 16
    check(target, make(2, channels, 8, torch.float32, target.device), channels, True)


@SIDES
def test_ties_go_to_the_first(target: Target, q_on_b: bool) -> None:
    """All logits equal: the first of every group takes the gradient; so does it where the codes are equal."""
    for dtype in DTYPES:
        data = make(2, SMALL, 16, dtype, target.device)
        data = data._replace(logits=torch.zeros_like(data.logits))
        for other in (data, data._replace(b=data.a.clone())):
            grads = run(target, other, SMALL, q_on_b)[4].cpu()
            for layer, width in enumerate(SMALL):
                taken = grads[:, layer].reshape(2, width, 16 // width) != 0
                assert not taken[:, :, 1:].any() and taken[:, :, 0].all()


@SIDES
@KINDS
def test_largest_or_smallest(target: Target, dtype: torch.dtype, q_on_b: bool) -> None:
    """Where b > a the coefficient on b is the largest of its group, that on a the smallest; else the other way round."""
    logits = torch.tensor([[[1.0, 3.0, -2.0, 0.0, 1.0, 3.0, -2.0, 0.0]]], dtype=dtype, device=target.device)
    a = torch.tensor([[0.0, 1.0]], dtype=dtype, device=target.device)
    b = torch.tensor([[1.0, 0.0]], dtype=dtype, device=target.device)
    one = torch.ones_like(a)
    q = run(target, Data(a, b, logits, one, one), [2], q_on_b)[1].cpu()
    high, low = torch.sigmoid(torch.tensor([3.0, -2.0])).tolist()
    assert q[0].double().tolist() == pytest.approx([high, low] if q_on_b else [low, high], rel=1e-2)


@SIDES
@KINDS
def test_nan_propagates(target: Target, dtype: torch.dtype, q_on_b: bool) -> None:
    """A NaN among the logits reaches the channel of its group, and no other; extreme logits stay finite."""
    data = make(2, SMALL, 16, dtype, target.device)
    logits = data.logits.clone()
    logits[0, 2, 6] = torch.nan  # width 4: channel 1
    logits[1, 4, 11] = torch.nan  # width 1
    logits[1, 1, 0], logits[1, 1, 15] = torch.inf, -torch.inf
    blended, q, *_, grads = (t.cpu() for t in run(target, data._replace(logits=logits), SMALL, q_on_b))
    begin = [sum(SMALL[:layer]) for layer in range(len(SMALL))]
    expected_nan = [[0, begin[2] + 1], [1, begin[4]]]
    assert q.isnan().nonzero().tolist() == expected_nan
    assert blended.isnan().nonzero().tolist() == expected_nan
    assert grads.isnan().nonzero().tolist() == [[0, 2, 6], [1, 4, 11]]


@SIDES
def test_absent_gradients(target: Target, q_on_b: bool) -> None:
    """Without a gradient of the code or of q."""
    data = make(2, SMALL, 16, torch.float64, target.device)
    inputs = (data.a, data.b, data.logits, list(SMALL), q_on_b)
    zero = torch.zeros_like(data.grad)
    for given, same in (((None, data.grad_q), (zero, data.grad_q)), ((data.grad, None), (data.grad, zero))):
        for value, other in zip(target.backward(*given, *inputs), target.backward(*same, *inputs), strict=True):
            assert torch.equal(value, other)


@pytest.mark.parametrize("batch,channels", [(0, SMALL), (2, ())], ids=["no images", "no layers"])
def test_empty(target: Target, batch: int, channels: tuple[int, ...]) -> None:
    data = make(batch, channels, 16, torch.float32, target.device)
    got = run(target, data, channels, True)
    assert [t.shape for t in got] == [t.shape for t in (data.a, data.a, data.a, data.a, data.logits)]


def test_bitwise_repeatable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, emulated, whatever the order in which threads and blocks run."""
    data = make(5, SMALL * 9, 16, torch.float32, target.device)
    results = []
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
        results.append(run(target, data, SMALL * 9, True))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_errors_name_the_argument(target: Target) -> None:
    if target.name == "triton":
        pytest.skip("the public function checks")
    a, b, logits, *_ = make(2, SMALL, 16, torch.float32, target.device)
    channels = list(SMALL)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: a: expected shape"):
        target.forward(a[0], b, logits, channels, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: b: expected shape"):
        target.forward(a, b[:, 1:], logits, channels, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: logits: expected Float, got Double"):
        target.forward(a, b, logits.double(), channels, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: logits: expected contiguous"):
        target.forward(a, b, logits.transpose(1, 2).contiguous().transpose(1, 2), channels, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: channels: expected divisors of the 16"):
        target.forward(a, b, logits, [3, *channels[1:]], True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: channels: expected a sum of"):
        target.forward(a, b, logits, [8, *channels[1:]], True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: channels: expected at most 64 layers, got 65"):
        target.forward(a, b, logits, [1] * 65, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend_backward: grad: expected shape"):
        target.backward(a[:, 1:], None, a, b, logits, channels, True)


# --- only on a device ---


@pytest.mark.gpu
@NO_GPU
def test_cuda_graph(target: Target) -> None:
    """Both ops are captured, and a replay reads the new input."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    data = make(4, STYLEGAN, 512, torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(target, data, STYLEGAN, True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(target, data, STYLEGAN, True)
    data.logits.copy_(torch.randn_like(data.logits))
    graph.replay()
    for value, other in zip(run(target, data, STYLEGAN, True), captured, strict=True):
        assert torch.equal(value, other)


@pytest.mark.gpu
@NO_GPU
def test_side_stream_and_device_guard(target: Target) -> None:
    """Work goes to the current stream of the tensor's device, whatever device is current."""
    if target.device == "cpu":
        pytest.skip("one device emulated")
    data = make(4, STYLEGAN, 512, torch.float32, f"cuda:{torch.cuda.device_count() - 1}")
    with torch.cuda.stream(torch.cuda.Stream(data.a.device)):
        torch.cuda.current_stream(data.a.device).wait_stream(torch.cuda.default_stream(data.a.device))
        check(target, data, STYLEGAN, False)


@pytest.mark.gpu
@NO_GPU
@SIDES
def test_public_function_trains(target: Target, q_on_b: bool) -> None:
    """latent_blend() end to end with gradients on the device equals the CPU in float64."""
    if target.device == "cpu":
        pytest.skip("covered by the CPU tests")
    import mixsyn_fast

    layout = ops_module.StyleLayout.stylegan2(size=64)
    data = make(2, layout.channels, 512, torch.float64, "cpu")
    results = {}
    for device, backend in (("cpu", "reference"), ("cuda", target.name)):
        leaves = [t.to(device).requires_grad_() for t in data[:3]]
        with mixsyn_fast.use_backend(backend):
            blended, q = ops_module.latent_blend(*leaves, layout, q_on="b" if q_on_b else "a", return_q=True)
            grads = torch.autograd.grad((blended, q), leaves, (data.grad.to(device), data.grad_q.to(device)))
        results[device] = [t.detach().cpu() for t in (blended, q, *grads)]
    for got, reference in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)
