"""bias_act's CUDA and Triton kernels against the float64 reference; without a GPU the CUDA sources, emulated.

Rule: the kernel's error is at most twice the error of the reference run in the kernel's type (plus rounding).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mixsyn_fast.ops.bias_act import bias_act_reference
from tests.compare import assert_within_rule
from tests.ops.gpu_kernels import LAYOUTS, NO_GPU, TARGETS, Target, dense, shapes_dtypes_layouts, target_of

SLOPE, GAIN = 0.2, 2**0.5
# vectors of every type; tails; one pixel; more channels than a block's groups; one channel
SHAPES = [(2, 16, 6, 8), (1, 5, 7, 3), (2, 7, 1, 1), (1, 1040, 2, 3), (2, 1, 9, 11), (3, 72, 13, 12)]


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return target_of(request.param, "bias_act")


class Data(NamedTuple):
    """One call; what is not there is None."""

    x: Tensor
    bias: Tensor | None
    scale: Tensor | None
    noise: Tensor | None
    strength: Tensor | None
    grad: Tensor


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    channels_last: bool,
    *,
    without: tuple[str, ...] = (),
    shared_noise: bool = False,
    shifted: bool = False,
) -> Data:
    """Maps in ``dtype``, parameters in the type of sums."""
    batch, channels, height, width = shape
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    g = torch.Generator().manual_seed(sum(shape))

    def draw(kind: torch.dtype, *size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64).to(kind).to(device)

    data = Data(
        dense(draw(dtype, *shape), channels_last, shifted),
        draw(acc, channels),
        draw(acc, batch, channels),
        draw(dtype, 1 if shared_noise else batch, 1, height, width),
        draw(acc, 1),
        dense(draw(dtype, *shape), channels_last, shifted),
    )
    return data._replace(**dict.fromkeys(without, None))


def expected(data: Data, dtype: torch.dtype, y: Tensor) -> dict[str, Tensor]:
    """What both ops return, computed in ``dtype``; the mask is that of the kernel's y, which has rounded u's sign."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    x, grad = data.x.to(dtype), data.grad.to(dtype).to(acc)
    bias, scale, strength = (None if t is None else t.to(acc) for t in (data.bias, data.scale, data.strength))
    noise = None if data.noise is None else data.noise.to(dtype)
    h = torch.where(y >= 0, grad, grad * SLOPE) * GAIN
    return {
        "y": bias_act_reference(x, bias, scale, noise, strength, SLOPE, GAIN),
        "grad_x": (h if scale is None else h * scale[:, :, None, None]).to(dtype),
        "grad_bias": h.sum((0, 2, 3)),
        "grad_scale": (h * x.to(acc)).sum((2, 3)),
        "sums": h.sum(1, keepdim=True),
    }


def run(target: Target, data: Data, need_scale: bool = True, per_pixel: bool = True) -> dict[str, Tensor]:
    y = target.forward(*data[:5], SLOPE, GAIN)
    x = data.x if need_scale else None
    grads = target.backward(data.grad, y, x, data.scale, SLOPE, GAIN, per_pixel)
    return {"y": y, **dict(zip(("grad_x", "grad_bias", "grad_scale", "sums"), grads, strict=True))}


def check(target: Target, data: Data, need_scale: bool = True, per_pixel: bool = True) -> None:
    got = {name: t.cpu() for name, t in run(target, data, need_scale, per_pixel).items()}
    cpu = Data(*(None if t is None else t.cpu() for t in data))  # type: ignore[arg-type]
    own, exact = (expected(cpu, dtype, got["y"]) for dtype in (data.x.dtype, torch.float64))
    for name, value in got.items():
        if (name == "grad_scale" and not need_scale) or (name == "sums" and not per_pixel):
            assert value.numel() == 0
            continue
        assert value.dtype == own[name].dtype, name
        if name in ("y", "grad_x"):
            assert value.stride() == data.x.stride(), name
        # Triton's interpreter stores bfloat16 by cutting bits off
        if target.name == "interpreted" and value.dtype == torch.bfloat16:
            assert (value.double() - exact[name]).abs().max() <= 2**-7 * exact[name].abs().max(), name
        else:
            assert_within_rule(value, own[name], exact[name], name)


@shapes_dtypes_layouts(SHAPES)
def test_shapes_and_dtypes(target: Target, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
    check(target, make(shape, dtype, target.device, channels_last))


@LAYOUTS
def test_every_form(target: Target, channels_last: bool) -> None:
    """Whatever may be absent, of arguments and of results."""
    for number, absent in enumerate(itertools.product((False, True), repeat=3)):
        bias, scale, noise = absent
        without = ("bias",) * bias + ("scale",) * scale + ("noise", "strength") * noise
        data = make((2, 8, 6, 8), torch.float32, target.device, channels_last, without=without, shared_noise=number % 2 == 0)
        check(target, data, need_scale=number % 4 < 2, per_pixel=number % 3 != 0)


@LAYOUTS
def test_unaligned_memory(target: Target, channels_last: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(target, make((2, 16, 6, 8), dtype, target.device, channels_last, shifted=True))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty(target: Target, shape: tuple[int, ...]) -> None:
    got = run(target, make(shape, torch.float32, target.device, True))
    assert got["y"].shape == got["grad_x"].shape == shape
    assert got["grad_bias"].shape == shape[1:2] and got["grad_scale"].shape == shape[:2]
    assert got["sums"].shape == (shape[0], 1, *shape[2:])
    assert not any(bool(got[name].any()) for name in ("grad_bias", "grad_scale", "sums"))


def test_bitwise_repeatable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, emulated, whatever the order in which threads and blocks run."""
    for channels_last in (True, False):
        data = make((3, 40, 9, 16), torch.float32, target.device, channels_last)
        results = []
        for order in ("forward", "reverse", "shuffle"):
            monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
            results.append(run(target, data))
        for other in results[1:]:
            assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_errors_name_the_argument(target: Target) -> None:
    if target.name == "triton":
        pytest.skip("the public function checks")
    data = make((2, 4, 3, 5), torch.float32, target.device, True)
    x, bias, scale, noise, strength, grad = data
    assert scale is not None and noise is not None and bias is not None
    for change, words in (
        ({"x": x[0]}, "x: expected shape"),
        ({"x": x.transpose(2, 3)[:, :, ::2]}, "x: expected contiguous or channels_last"),
        ({"bias": bias[1:]}, r"bias: expected shape \(4\), got shape \(3\)"),
        ({"scale": scale.double()}, "scale: expected Float, got Double"),
        ({"noise": noise.repeat(2, 1, 1, 1)}, "noise: expected 1 or B rows, got 4"),
        ({"strength": None}, "noise and strength: expected both or neither"),
    ):
        with pytest.raises(RuntimeError, match=f"mixsyn_fast::bias_act: {words}"):
            target.forward(*data._replace(**change)[:5], SLOPE, GAIN)
    for arguments, words in (
        ((grad, x[:, :, :2], x, scale), "y: expected shape"),
        ((grad, x, x.contiguous(), scale), "x: expected the memory layout of the first tensor"),
        ((grad, x, x.double(), scale), "x: expected Float, got Double"),
        ((grad, x, x, scale[:1]), "scale: expected shape"),
    ):
        with pytest.raises(RuntimeError, match=f"mixsyn_fast::bias_act_backward: {words}"):
            target.backward(*arguments, SLOPE, GAIN, True)


# --- only on a device ---


@pytest.mark.gpu
@NO_GPU
@LAYOUTS
def test_cuda_graph(target: Target, channels_last: bool) -> None:
    """Both ops are captured, and a replay reads the new input."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    data = make((4, 128, 64, 64), torch.bfloat16, "cuda", channels_last)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(target, data)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(target, data)
    data.x.copy_(torch.randn_like(data.x))
    graph.replay()
    for name, value in run(target, data).items():
        assert torch.equal(value, captured[name])


@pytest.mark.gpu
@NO_GPU
def test_side_stream_and_device_guard(target: Target) -> None:
    """Work goes to the current stream of the tensor's device, whatever device is current."""
    if target.device == "cpu":
        pytest.skip("one device emulated")
    data = make((4, 64, 32, 32), torch.float32, f"cuda:{torch.cuda.device_count() - 1}", True)
    with torch.cuda.stream(torch.cuda.Stream(data.x.device)):
        torch.cuda.current_stream(data.x.device).wait_stream(torch.cuda.default_stream(data.x.device))
        check(target, data)


@pytest.mark.gpu
@NO_GPU
@LAYOUTS
def test_large(target: Target, channels_last: bool) -> None:
    for shape in ((4, 512, 64, 64), (2, 64, 256, 256), (1, 32, 1024, 1024)):
        check(target, make(shape, torch.float32, target.device, channels_last))


@pytest.mark.gpu
@NO_GPU
def test_public_function_trains(target: Target) -> None:
    """bias_act() end to end, with a penalty that differentiates twice, equals the CPU in float64."""
    if target.device == "cpu":
        pytest.skip("covered by the CPU tests")
    import mixsyn_fast

    data = make((2, 8, 9, 7), torch.float64, "cpu", True)
    results = {}
    for device, backend in (("cpu", "reference"), ("cuda", target.name)):
        leaves = [t.to(device).requires_grad_() for t in data[:5] if t is not None]
        with mixsyn_fast.use_backend(backend):
            x, bias, scale, noise, strength = leaves
            y = mixsyn_fast.bias_act(x, bias, scale=scale, noise=noise, strength=strength)
            (first,) = torch.autograd.grad((y.pow(2) * data.grad.to(device)).sum(), x, create_graph=True)
            grads = torch.autograd.grad(first.square().sum() + y.mean(), leaves)
        results[device] = [t.detach().cpu() for t in (y, first, *grads)]
    for got, reference in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)
