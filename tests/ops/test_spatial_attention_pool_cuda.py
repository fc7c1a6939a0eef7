"""spatial_attention_pool's CUDA and Triton kernels against the float64 reference; without a GPU the sources, emulated.

Rule: the kernel's error is at most twice the error of the reference run in the kernel's type (plus rounding).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mixsyn_fast.ops.spatial_attention_pool import spatial_attention_pool_reference as reference
from tests.ops.gpu_kernels import DTYPES, LAYOUTS, NO_GPU, TARGETS, Target, dense, target_of

GRADIENTS = ("features", "condition", "weight_features", "weight_condition")
ALL = 15  # needs: every gradient


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return target_of(request.param, "spatial_attention_pool")


class Case(NamedTuple):
    """One call: shape, mask, and how it lies in memory."""

    batch: int
    features: int
    condition: int
    height: int
    width: int
    maps: int
    mask: str = "none"  # none, some, image (the first image is masked as a whole)
    channels_last: bool = False
    shifted: bool = False  # maps start one element after an aligned address
    grad_maps: bool = False
    scale: float = 1.0  # of the logits


def make(case: Case, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of both ops."""
    g = torch.Generator().manual_seed(sum(case[:6]))
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    b, n, m, h, w, k = case[:6]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    spread = case.scale / max(n + m, 1) ** 0.5
    out: dict[str, Any] = {
        "features": dense((draw(b, n, h, w) + 0.5).to(dtype).to(device), case.channels_last, case.shifted),
        "condition": dense(draw(b, m, h, w).to(dtype).to(device), case.channels_last, case.shifted),
        "weight_features": (draw(k, n) * spread).to(acc).to(device),
        "weight_condition": (draw(k, m) * spread).to(acc).to(device),
        "mask": None,
        "grad_values": draw(b, k, n).to(acc).to(device),
        "grad_mean": draw(b, m).to(acc).to(device),
        "grad_maps": draw(b, k, h, w).to(dtype).to(device) if case.grad_maps else None,
    }
    if case.mask != "none":
        mask = torch.rand(b, h, w, generator=g) < 0.6
        mask[:, -1, -1] = True
        if case.mask == "image":
            mask[0] = False
        out["mask"] = mask.to(device)
    return out


def expected(data: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything the two ops return, by the reference and autograd, from the same numbers in `dtype`."""
    acc = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    d = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in data.items()}
    leaves = [d[name].to(dtype if name in GRADIENTS[:2] else acc).to(acc).requires_grad_() for name in GRADIENTS]
    values, mean, maps, lse = reference(*leaves, d["mask"], True)
    outputs, grads = [values, mean], [d["grad_values"].to(acc), d["grad_mean"].to(acc)]
    if d["grad_maps"] is not None:
        outputs.append(maps)
        grads.append(d["grad_maps"].to(acc))
    result = {"values": values.detach(), "mean": mean.detach(), "maps": maps.detach().to(dtype), "lse": lse.detach()}
    found = torch.autograd.grad(outputs, leaves, grads)
    for name, grad in zip(GRADIENTS, found, strict=True):
        result[f"grad_{name}"] = grad.to(dtype) if name in GRADIENTS[:2] else grad
    return result


def run(data: dict[str, Any], target: Target, needs: int = ALL) -> dict[str, Tensor]:
    """The same through the kernels."""
    inputs = [data[name] for name in (*GRADIENTS, "mask")]
    values, mean, maps, lse = target.forward(*inputs, True)
    grads = [data[name] for name in ("grad_values", "grad_mean", "grad_maps")]
    out = {"values": values, "mean": mean, "maps": maps, "lse": lse}
    found = target.backward(*grads, *inputs, values, lse, needs)
    return out | {f"grad_{name}": grad for name, grad in zip(GRADIENTS, found, strict=True)}


def check_error(name: str, got: Tensor, exact: Tensor, own: Tensor, slack: float = 0.0) -> None:
    """The 2x rule, in the largest absolute error; `slack` is a further error relative to the largest value."""
    rounding = 1e-12 if got.dtype == torch.float64 else 1e-6
    got, exact, own = got.detach().cpu().double(), exact.double(), own.double()
    assert got.shape == exact.shape, f"{name}: {tuple(got.shape)}, expected {tuple(exact.shape)}"
    assert torch.equal(torch.isinf(got), torch.isinf(exact)) and not torch.isnan(got).any(), f"{name}: not finite"
    kept = torch.isfinite(exact)
    got, exact, own = got[kept], exact[kept], own[kept]
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
    for name in ("features", "condition"):
        assert got[f"grad_{name}"].dtype == dtype and got[f"grad_{name}"].stride() == data[name].stride()
    assert got["maps"].dtype == dtype and got["maps"].is_contiguous()
    assert {got[name].dtype for name in ("values", "mean", "lse", "grad_weight_features")} == {acc}
    for name in got:
        # Triton's interpreter stores bfloat16 by cutting bits off
        truncated = target.name == "interpreted" and got[name].dtype == torch.bfloat16
        check_error(name, got[name], exact[name], own[name], slack=2**-7 if truncated else 0.0)
    if case.mask != "none":
        out = ~data["mask"][:, None]
        assert not got["maps"].masked_select(out).any()
        if case.mask == "image":
            assert not got["values"][0].any() and (got["lse"][0] == -torch.inf).all()
            assert not got["grad_features"][0].any()
    return got


# B, N, M, H, W, K: vectors and scalars, odd sizes, one position, one channel, no condition, no features
SHAPES = [
    (2, 16, 8, 6, 10, 8),
    (1, 13, 5, 9, 11, 3),
    (2, 4, 4, 1, 1, 2),
    (3, 1, 1, 5, 7, 1),
    (1, 20, 0, 8, 8, 16),
    (1, 0, 6, 7, 5, 4),
]


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_shapes_and_dtypes(target: Target, dtype: torch.dtype, shape: Any, channels_last: bool) -> None:
    check(Case(*shape, channels_last=channels_last), dtype, target)


@LAYOUTS
@pytest.mark.parametrize("mask", ["some", "image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_mask_and_gradient_of_the_maps(target: Target, dtype: torch.dtype, mask: str, channels_last: bool) -> None:
    check(Case(2, 12, 8, 9, 8, 5, mask, channels_last, grad_maps=True), dtype, target)


@LAYOUTS
@pytest.mark.parametrize("maps", [17, 40, 64])
def test_more_maps_than_one_product_takes(target: Target, maps: int, channels_last: bool) -> None:
    check(Case(2, 12, 5, 6, 13, maps, "some", channels_last, grad_maps=maps == 40), torch.float32, target)
    if maps != 40:
        check(Case(1, 8, 8, 5, 8, maps, channels_last=channels_last), torch.float64, target)


@LAYOUTS
@pytest.mark.parametrize(
    "shape", [(1, 72, 40, 5, 8, 8), (1, 150, 20, 5, 9, 4), (1, 20, 170, 6, 6, 16), (1, 290, 9, 3, 12, 20)], ids=str
)
def test_many_channels(target: Target, shape: Any, channels_last: bool) -> None:
    """Panels of channels, more than one group of sums, separate kernels of the backward."""
    check(Case(*shape, "some", channels_last), torch.float32, target)
    if shape[1] < 100:
        check(Case(*shape, channels_last=channels_last), torch.float64, target)
    if shape[1] == 150:
        check(Case(*shape, channels_last=channels_last), torch.float16, target)


@LAYOUTS
def test_unaligned_memory(target: Target, channels_last: bool) -> None:
    for dtype in (torch.float32, torch.float16):
        check(Case(2, 8, 4, 6, 8, 4, channels_last=channels_last, shifted=True), dtype, target)


@LAYOUTS
def test_maximum_that_grows_and_shrinks(target: Target, channels_last: bool) -> None:
    """Logits of hundreds, rising along the positions of the first map and falling along those of the second."""
    case = Case(1, 6, 4, 15, 20, 4, channels_last=channels_last)
    for dtype in (torch.float32, torch.float64):
        data = make(case, dtype, target.device)
        slope = torch.linspace(-1, 1, 300, dtype=torch.float64).reshape(1, 1, 15, 20).to(dtype)
        data["condition"][:, :1] = slope.to(target.device)
        data["weight_condition"][0, 0], data["weight_condition"][1, 0] = 300.0, -300.0
        exact, own = expected(data, torch.float64), expected(data, dtype)
        got = run(data, target)
        # the backward starts from the log-sum-exp, 300 rounded to float32
        slack = 0.0 if dtype == torch.float64 else 300 * 2**-24
        for name in got:
            check_error(name, got[name], exact[name], own[name], slack if name.startswith("grad") else 0.0)


@pytest.mark.parametrize("shape", [(1, 8, 4, 5, 8, 4), (1, 8, 4, 5, 8, 18)], ids=str)
def test_only_what_is_needed(target: Target, shape: Any, some: Iterable[int] = range(1, 16)) -> None:
    data = make(Case(*shape), torch.float32, target.device)
    full = run(data, target)
    for needs in some:
        part = run(data, target, needs)
        for i, name in enumerate(GRADIENTS):
            if needs >> i & 1:
                assert torch.equal(part[f"grad_{name}"], full[f"grad_{name}"]), name
            else:
                assert part[f"grad_{name}"].shape == (0,), name


def test_no_maps_unless_asked(target: Target) -> None:
    data = make(Case(1, 8, 4, 5, 8, 4), torch.float32, target.device)
    inputs = [data[name] for name in (*GRADIENTS, "mask")]
    without, given = target.forward(*inputs, False), target.forward(*inputs, True)
    assert without[2].shape == (0,) and without[2].dtype == torch.float32
    for i in (0, 1, 3):
        assert torch.equal(without[i], given[i])


@pytest.mark.parametrize("shape", [(0, 4, 3, 5, 5, 2), (2, 4, 3, 0, 5, 2), (2, 0, 0, 4, 4, 2)], ids=str)
def test_empty(target: Target, shape: Any) -> None:
    b, n, m, h, w, k = shape
    data = make(Case(*shape), torch.float32, target.device)
    got = run(data, target)
    assert got["values"].shape == (b, k, n) and not got["values"].any()
    assert got["mean"].shape == (b, m) and not got["mean"].any()
    assert got["maps"].shape == (b, k, h, w)
    if h * w == 0:
        assert got["lse"].shape == (b, k) and (got["lse"] == -torch.inf).all()
    else:
        torch.testing.assert_close(got["lse"].cpu(), torch.full((b, k), float(h * w)).log())
        torch.testing.assert_close(got["maps"].cpu(), torch.full((b, k, h, w), 1 / (h * w)))
    assert got["grad_features"].shape == (b, n, h, w) and got["grad_condition"].shape == (b, m, h, w)
    assert got["grad_weight_features"].shape == (k, n) and not got["grad_weight_features"].any()
    assert got["grad_weight_condition"].shape == (k, m) and not got["grad_weight_condition"].any()


def test_nan_reaches_the_results(target: Target) -> None:
    data = make(Case(2, 8, 4, 6, 9, 3), torch.float32, target.device)
    data["condition"][1, 2, 3, 4] = torch.nan
    got = run(data, target)
    assert torch.isnan(got["values"][1]).all() and torch.isnan(got["lse"][1]).all() and torch.isnan(got["maps"][1]).all()
    assert torch.isnan(got["mean"][1, 2]) and torch.isnan(got["mean"]).sum() == 1
    for name in ("values", "lse", "maps", "grad_features", "grad_condition"):
        assert torch.isfinite(got[name][0]).all(), name
    assert torch.isnan(got["grad_weight_features"]).all()


def test_bitwise_repeatable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, emulated, whatever the order in which threads and blocks run: nothing races."""
    for case in (
        Case(2, 12, 8, 12, 11, 6, "some", grad_maps=True),
        Case(1, 9, 5, 12, 12, 20, channels_last=True),
        Case(1, 150, 20, 5, 8, 4, channels_last=True),
    ):
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
    data = make(Case(1, 8, 4, 5, 8, 4, "some"), torch.float32, target.device)

    def call(**changes: Tensor) -> Any:
        return target.forward(*((data | changes)[name] for name in (*GRADIENTS, "mask")), False)

    start = "mixsyn_fast::spatial_attention_pool: "
    with pytest.raises(RuntimeError, match=start + "features: expected shape"):
        call(features=data["features"][0])
    with pytest.raises(RuntimeError, match=start + "condition: expected shape"):
        call(condition=data["condition"][:, :, 1:])
    with pytest.raises(RuntimeError, match=start + "condition: expected Float, got Double"):
        call(condition=data["condition"].double())
    with pytest.raises(RuntimeError, match=start + "condition: expected contiguous memory"):
        call(condition=data["condition"].contiguous(memory_format=torch.channels_last))
    with pytest.raises(RuntimeError, match=start + "weight_features: expected 1 to 64 rows, got 65"):
        call(weight_features=torch.zeros(65, 8, device=target.device))
    with pytest.raises(RuntimeError, match=start + "weight_condition: expected Float, got Double"):
        call(weight_condition=data["weight_condition"].double())
    with pytest.raises(RuntimeError, match=start + "mask: expected Bool, got Byte"):
        call(mask=data["mask"].byte())


# --- only on a device ---

REAL_SHAPES = [(2, 128, 64, 128, 128, 16), (1, 512, 512, 64, 64, 64), (1, 256, 151, 97, 61, 8), (1, 64, 32, 512, 512, 8)]


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
@LAYOUTS
def test_real_shapes(target: Target, shape: Any, channels_last: bool) -> None:
    if target.device == "cpu":
        pytest.skip("too slow emulated")
    check(Case(*shape, "some", channels_last), torch.bfloat16, target)
    check(Case(*shape, channels_last=channels_last), torch.float32, target)


@pytest.mark.gpu
@NO_GPU
def test_cuda_graph(target: Target) -> None:
    """Both ops are captured, and a replay reads the new input."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    data = make(Case(2, 128, 64, 64, 64, 16, "some", grad_maps=True), torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(data, target)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(data, target)
    data["features"].copy_(torch.randn_like(data["features"]))
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
    with torch.cuda.stream(torch.cuda.Stream(data["features"].device)):
        got = run(data, target)
        torch.cuda.current_stream(data["features"].device).synchronize()
    exact, own = expected(data, torch.float64), expected(data, torch.float32)
    for name in got:
        check_error(name, got[name], exact[name], own[name])


@pytest.mark.gpu
@NO_GPU
def test_public_function_trains(target: Target) -> None:
    """spatial_attention_pool() end to end with gradients on the device equals the CPU in float64."""
    if target.device == "cpu":
        pytest.skip("covered by the CPU tests")
    import mixsyn_fast

    public = sys.modules["mixsyn_fast.ops.spatial_attention_pool"].spatial_attention_pool
    data = make(Case(2, 16, 8, 9, 8, 8, "some", grad_maps=True), torch.float64, "cpu")
    found = {}
    for device, backend in (("cpu", "reference"), ("cuda", target.name)):
        leaves = [data[name].to(device).requires_grad_() for name in GRADIENTS]
        with mixsyn_fast.use_backend(backend):
            results = public(*leaves, mask=data["mask"].to(device), return_maps=True)
            torch.autograd.backward(results, [data[f"grad_{name}"].to(device) for name in ("values", "mean", "maps")])
        found[device] = [t.detach().cpu() for t in (*results, *(leaf.grad for leaf in leaves))]
    for got, exact in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)
