"""channel_attention_spread's CUDA and Triton kernels against the float64 reference; without a GPU the sources, emulated.

Rule: the kernel's error is at most twice the error of the reference run in the kernel's type (plus rounding).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mixsyn_fast.ops.channel_attention_spread import channel_attention_spread_reference as reference
from tests.ops.gpu_kernels import DTYPES, LAYOUTS, NO_GPU, TARGETS, Target, dense, target_of

GRADIENTS = ("values", "condition", "weight")
ALL = 7  # needs: every gradient


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return target_of(request.param, "channel_attention_spread")


class Case(NamedTuple):
    """One call: shape, and how it lies in memory."""

    batch: int
    channels: int
    condition: int
    height: int
    width: int
    maps: int
    channels_last: bool = False
    shifted: bool = False  # maps start one element after an aligned address
    scale: float = 1.0  # of the logits


def make(case: Case, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of both ops."""
    g = torch.Generator().manual_seed(sum(case[:6]))
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    b, n, m, h, w, k = case[:6]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "values": draw(b, k, n).to(acc).to(device),
        "condition": dense(draw(b, m, h, w).to(dtype).to(device), case.channels_last, case.shifted),
        "weight": (draw(k, m) * (case.scale / max(m, 1) ** 0.5)).to(acc).to(device),
        "grad": dense(draw(b, n, h, w).to(dtype).to(device), case.channels_last, case.shifted),
    }


def expected(data: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything the two ops return, by the reference and autograd, from the same numbers in `dtype`."""
    acc = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    leaves = [data[name].cpu().to(dtype if name == "condition" else acc).to(acc).requires_grad_() for name in GRADIENTS]
    out = reference(*leaves)
    found = torch.autograd.grad(out, leaves, data["grad"].cpu().to(acc))
    result = {f"grad_{name}": grad for name, grad in zip(GRADIENTS, found, strict=True)}
    return result | {"out": out.detach().to(dtype), "grad_condition": result["grad_condition"].to(dtype)}


def run(data: dict[str, Any], target: Target, needs: int = ALL) -> dict[str, Tensor]:
    """The same through the kernels."""
    inputs = [data[name] for name in GRADIENTS]
    out = {"out": target.forward(*inputs)}
    found = target.backward(data["grad"], *inputs, needs)
    return out | {f"grad_{name}": grad for name, grad in zip(GRADIENTS, found, strict=True)}


def check_error(name: str, got: Tensor, exact: Tensor, own: Tensor, slack: float = 0.0) -> None:
    """The 2x rule, in the largest absolute error; `slack` is a further error relative to the largest value."""
    rounding = 1e-12 if got.dtype == torch.float64 else 1e-6
    got, exact, own = got.detach().cpu().double(), exact.double(), own.double()
    assert got.shape == exact.shape, f"{name}: {tuple(got.shape)}, expected {tuple(exact.shape)}"
    assert torch.isfinite(got).all(), f"{name}: not finite"
    if got.numel() == 0:
        return
    scale = max(exact.abs().max().item(), 1.0)  # inputs are of order one
    error, allowed = (got - exact).abs().max().item(), (own - exact).abs().max().item()
    assert error <= 2 * allowed + scale * (slack + rounding), (
        f"{name}: error {error:.3e}, reference in its type {allowed:.3e}"
    )


def check(case: Case, dtype: torch.dtype, target: Target) -> dict[str, Tensor]:
    data = make(case, dtype, target.device)
    exact, own = expected(data, torch.float64), expected(data, dtype)
    got = run(data, target)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    assert got["out"].dtype == dtype and got["out"].stride() == data["grad"].stride()
    assert got["grad_condition"].dtype == dtype and got["grad_condition"].stride() == data["condition"].stride()
    assert got["grad_values"].dtype == got["grad_weight"].dtype == acc
    for name in got:
        # Triton's interpreter stores bfloat16 by cutting bits off
        truncated = target.name == "interpreted" and got[name].dtype == torch.bfloat16
        check_error(name, got[name], exact[name], own[name], slack=2**-7 if truncated else 0.0)
    return got


# B, N, M, H, W, K: vectors and scalars, odd sizes, one position, one channel, no condition
SHAPES = [
    (2, 16, 8, 6, 10, 8),
    (1, 13, 5, 9, 11, 3),
    (2, 4, 4, 1, 1, 2),
    (3, 3, 2, 5, 7, 1),
    (1, 20, 0, 8, 8, 16),
    (1, 8, 4, 3, 40, 5),
]


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_shapes_and_dtypes(target: Target, dtype: torch.dtype, shape: Any, channels_last: bool) -> None:
    if shape[2] == 0:
        channels_last = False  # a condition of no channels is contiguous
    check(Case(*shape, channels_last=channels_last), dtype, target)


@LAYOUTS
@pytest.mark.parametrize("maps", [17, 40, 64])
def test_more_maps_than_one_product_takes(target: Target, maps: int, channels_last: bool) -> None:
    check(Case(2, 12, 5, 6, 13, maps, channels_last), torch.float32, target)
    check(Case(1, 8, 8, 5, 8, maps, channels_last), torch.float64, target)
    if maps == 40:
        check(Case(1, 12, 20, 5, 8, maps, channels_last), torch.bfloat16, target)


@LAYOUTS
@pytest.mark.parametrize(
    "shape", [(1, 72, 40, 5, 8, 8), (1, 150, 20, 5, 9, 4), (1, 20, 170, 6, 6, 16), (1, 290, 9, 3, 12, 20)], ids=str
)
def test_many_channels(target: Target, shape: Any, channels_last: bool) -> None:
    """Panels of channels, more than one group of sums, separate kernels of the backward."""
    check(Case(*shape, channels_last), torch.float32, target)
    if shape[1] < 100:
        check(Case(*shape, channels_last), torch.float64, target)
    if shape[1] == 150:
        check(Case(*shape, channels_last), torch.float16, target)


@LAYOUTS
def test_unaligned_memory(target: Target, channels_last: bool) -> None:
    for dtype in (torch.float32, torch.float16):
        check(Case(2, 8, 4, 6, 8, 4, channels_last, shifted=True), dtype, target)


def test_large_logits(target: Target) -> None:
    check(Case(1, 6, 4, 9, 8, 7, scale=100.0), torch.float32, target)
    check(Case(1, 6, 4, 9, 8, 20, scale=100.0), torch.float64, target)


@LAYOUTS
def test_maps_of_attention(target: Target, channels_last: bool) -> None:
    """Values that are the identity give the maps themselves, also where there is one map."""
    for maps in (1, 7, 33):
        data = make(Case(2, maps, 6, 5, 8, maps, channels_last), torch.float64, target.device)
        data["values"] = torch.eye(maps, dtype=torch.float64, device=target.device).repeat(2, 1, 1)
        got = target.forward(*(data[name] for name in GRADIENTS)).cpu()
        logits = torch.einsum("km,bmhw->bkhw", data["weight"].cpu(), data["condition"].cpu())
        torch.testing.assert_close(got, logits.softmax(1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 8, 4, 5, 8, 4), (1, 8, 4, 5, 8, 18)], ids=str)
def test_only_what_is_needed(target: Target, shape: Any, some: Iterable[int] = range(1, 8)) -> None:
    data = make(Case(*shape), torch.float32, target.device)
    full = run(data, target)
    for needs in some:
        part = run(data, target, needs)
        for i, name in enumerate(GRADIENTS):
            if needs >> i & 1:
                assert torch.equal(part[f"grad_{name}"], full[f"grad_{name}"]), name
            else:
                assert part[f"grad_{name}"].shape == (0,), name


@pytest.mark.parametrize("shape", [(0, 4, 3, 5, 5, 2), (2, 4, 3, 0, 5, 2), (2, 0, 3, 4, 4, 2)], ids=str)
def test_empty(target: Target, shape: Any) -> None:
    b, n, m, h, w, k = shape
    data = make(Case(*shape), torch.float32, target.device)
    got = run(data, target)
    assert got["out"].shape == (b, n, h, w)
    assert got["grad_values"].shape == (b, k, n) and not got["grad_values"].any()
    assert got["grad_condition"].shape == (b, m, h, w) and not got["grad_condition"].any()
    assert got["grad_weight"].shape == (k, m) and not got["grad_weight"].any()


def test_nan_reaches_the_results(target: Target) -> None:
    data = make(Case(2, 8, 4, 6, 9, 3), torch.float32, target.device)
    data["condition"][1, 2, 3, 4] = torch.nan
    got = run(data, target)
    for name in ("out", "grad_condition"):
        assert torch.isnan(got[name][1, :, 3, 4]).all() and torch.isnan(got[name]).sum() == got[name].shape[1], name
    assert torch.isnan(got["grad_values"][1]).all() and torch.isfinite(got["grad_values"][0]).all()
    assert torch.isnan(got["grad_weight"]).all()


def test_bitwise_repeatable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, emulated, whatever the order in which threads and blocks run: nothing races."""
    for case in (Case(2, 12, 8, 12, 11, 6), Case(1, 9, 5, 12, 12, 20, True), Case(1, 150, 20, 5, 8, 4, True)):
        data = make(case, torch.float32, target.device)
        results = []
        for order in ("forward", "reverse", "shuffle"):
            monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
            results.append(run(data, target))
        for name, value in results[0].items():
            for other in results[1:]:
                assert torch.equal(value, other[name]), name


def test_errors_name_the_argument(target: Target) -> None:
    if target.name == "triton":
        pytest.skip("the public function checks")
    data = make(Case(1, 8, 4, 5, 8, 4), torch.float32, target.device)

    def call(**changes: Tensor) -> Any:
        return target.forward(*((data | changes)[name] for name in GRADIENTS))

    start = "mixsyn_fast::channel_attention_spread: "
    with pytest.raises(RuntimeError, match=start + "condition: expected shape"):
        call(condition=data["condition"][0])
    with pytest.raises(RuntimeError, match=start + "condition: expected contiguous or channels_last memory"):
        call(condition=data["condition"].transpose(2, 3))
    with pytest.raises(RuntimeError, match=start + "weight: expected 1 to 64 rows, got 65"):
        call(weight=torch.zeros(65, 4, device=target.device))
    with pytest.raises(RuntimeError, match=start + "weight: expected Float, got Double"):
        call(weight=data["weight"].double())
    with pytest.raises(RuntimeError, match=start + "values: expected shape"):
        call(values=data["values"][:, :2])


# --- only on a device ---

REAL_SHAPES = [(2, 128, 64, 128, 128, 16), (1, 512, 512, 64, 64, 64), (1, 256, 151, 97, 61, 8), (1, 64, 32, 512, 512, 8)]


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
@LAYOUTS
def test_real_shapes(target: Target, shape: Any, channels_last: bool) -> None:
    if target.device == "cpu":
        pytest.skip("too slow emulated")
    check(Case(*shape, channels_last), torch.bfloat16, target)
    check(Case(*shape, channels_last), torch.float32, target)


@pytest.mark.gpu
@NO_GPU
def test_cuda_graph(target: Target) -> None:
    """Both ops are captured, and a replay reads the new input."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    data = make(Case(2, 128, 64, 64, 64, 16), torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(data, target)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(data, target)
    data["condition"].copy_(torch.randn_like(data["condition"]))
    graph.replay()
    eager = run(data, target)
    for name, value in eager.items():
        assert torch.equal(captured[name], value), name


@pytest.mark.gpu
@NO_GPU
def test_side_stream_and_device_guard(target: Target) -> None:
    """Work goes to the current stream of the tensor's device, whatever device is current."""
    if target.device == "cpu":
        pytest.skip("one device emulated")
    data = make(Case(2, 16, 8, 16, 16, 8), torch.float32, f"cuda:{torch.cuda.device_count() - 1}")
    with torch.cuda.stream(torch.cuda.Stream(data["condition"].device)):
        got = run(data, target)
        torch.cuda.current_stream(data["condition"].device).synchronize()
    exact, own = expected(data, torch.float64), expected(data, torch.float32)
    for name in got:
        check_error(name, got[name], exact[name], own[name])


@pytest.mark.gpu
@NO_GPU
def test_public_function_trains(target: Target) -> None:
    """channel_attention_spread() end to end with gradients on the device equals the CPU in float64."""
    if target.device == "cpu":
        pytest.skip("covered by the CPU tests")
    import mixsyn_fast

    public = sys.modules["mixsyn_fast.ops.channel_attention_spread"].channel_attention_spread
    data = make(Case(2, 16, 8, 9, 8, 8), torch.float64, "cpu")
    found = {}
    for device, backend in (("cpu", "reference"), ("cuda", target.name)):
        leaves = [data[name].to(device).requires_grad_() for name in GRADIENTS]
        with mixsyn_fast.use_backend(backend):
            out = public(*leaves)
            out.backward(data["grad"].to(device))
        found[device] = [t.detach().cpu() for t in (out, *(leaf.grad for leaf in leaves))]
    for got, exact in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)
