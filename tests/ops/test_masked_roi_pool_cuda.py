"""masked_roi_pool's CUDA and Triton kernels against the reference; without a GPU the CUDA sources, emulated.

The maximum and its position are exact. Rule for the mean: the kernel's error is at most twice the error of the reference
run in the kernel's type (plus rounding).
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mixsyn_fast.ops.masked_roi_pool  # noqa: F401
from tests.compare import assert_within_rule
from tests.ops.gpu_kernels import DTYPES, LAYOUTS, NO_GPU, TARGETS, Target, assert_dies, dense, target_of

ops_module = sys.modules["mixsyn_fast.ops.masked_roi_pool"]  # the package's attribute may be the function
KINDS = pytest.mark.parametrize("maximum", [True, False], ids=["max", "mean"])


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return target_of(request.param, "masked_roi_pool")


class Case(NamedTuple):
    """One call: shape, regions, and how it lies in memory."""

    shape: tuple[int, int, int, int]
    regions: int = 7
    maximum: bool = True
    channels_last: bool = True
    shifted: bool = False  # features start one element after an aligned address
    patch: int = 3  # side of the squares of equal labels; 0: one label a pixel


def random_labels(batch: int, height: int, width: int, regions: int, patch: int, generator: torch.Generator) -> Tensor:
    """(B, H, W) int32 in patches; about one patch in eight belongs to no region; half of the regions are absent."""
    present = max(regions // 2, 1)
    if patch == 0:
        labels = torch.randint(-1, present, (batch, height, width), generator=generator)
    else:
        coarse = (batch, -(-height // patch), -(-width // patch))
        labels = torch.randint(0, present, coarse, generator=generator)
        labels = torch.where(torch.rand(coarse, generator=generator) < 0.125, -1, labels)
        labels = labels.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :height, :width]
    return labels.to(torch.int32).contiguous()


def make(case: Case, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features with many ties, labels, grad (B, K, C)."""
    g = torch.Generator().manual_seed(sum(case.shape) + case.regions + case.patch)
    b, c, h, w = case.shape
    features = torch.randn(b, c, h, w, generator=g, dtype=torch.float64)
    if case.maximum:
        features = (features * 4).round() / 4  # ties
        features[features == 0] = 0.0
        minus = torch.rand(features.shape, generator=g) < 0.5
        features = torch.where((features == 0) & minus, -0.0, features)
    else:
        features = features + 2
    labels = random_labels(b, h, w, case.regions, case.patch, g)
    grad = torch.randn(b, case.regions, c, generator=g, dtype=torch.float64).to(dtype)
    placed = dense(features.to(dtype).to(device), case.channels_last, case.shifted)
    return placed, labels.to(device), grad.to(device)


def same(name: str, got: Tensor, expected: Tensor) -> None:
    """Equal values; NaN equals NaN and -0 equals 0."""
    got, expected = got.cpu(), expected.cpu()
    assert got.dtype == expected.dtype and got.shape == expected.shape, name
    assert torch.equal(got.isnan(), expected.isnan()), name
    assert torch.equal(got.nan_to_num(), expected.nan_to_num()), name


def run(case: Case, data: tuple[Tensor, Tensor, Tensor], target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled, position, area, and the gradient."""
    features, labels, grad = data
    pooled, position, area = target.forward(features, labels, case.regions, case.maximum)
    found = target.backward(grad, labels, position, area, case.maximum, case.channels_last)
    return pooled, position, area, found


def check(case: Case, dtype: torch.dtype, target: Target, data: Any = None) -> None:
    data = make(case, dtype, target.device) if data is None else data
    features, labels, grad = (t.cpu() for t in data)
    pooled, position, area, found = run(case, data, target)
    own = ops_module.masked_roi_pool_reference(features, labels, case.regions, case.maximum)
    own_grad = ops_module._backward_reference(grad, labels, own[1], own[2], case.maximum, case.channels_last)
    assert found.dtype == dtype and found.shape == own_grad.shape
    memory = torch.channels_last if case.channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=memory)
    if case.maximum:
        same("pooled", pooled, own[0])
        same("position", position, own[1])
        same("grad", found, own_grad)
        assert area.shape == (0,)
        return
    assert position.shape == (0,) and position.dtype == torch.int32
    same("area", area, own[2])
    exact = ops_module.masked_roi_pool_reference(features.double(), labels, case.regions, False)
    exact_grad = ops_module._backward_reference(grad.double(), labels, exact[1], exact[2], False, case.channels_last)
    # Triton's interpreter stores bfloat16 by cutting bits off
    if target.name == "interpreted" and dtype == torch.bfloat16:
        assert (pooled.double() - exact[0]).abs().max() <= 2**-7 * exact[0].abs().max()
        assert (found.double() - exact_grad).abs().max() <= 2**-7 * exact_grad.abs().max()
        return
    assert pooled.dtype == dtype
    assert_within_rule(pooled, own[0], exact[0], "pooled")
    assert_within_rule(found, own_grad, exact_grad, "grad")


# vectors and scalars, odd sizes, one pixel, one channel, several slices, tiles and pieces
SHAPES = [(2, 16, 5, 7), (3, 24, 8, 8), (1, 3, 9, 11), (2, 8, 1, 1), (1, 1, 6, 5), (2, 300, 2, 3), (1, 64, 33, 17)]


@LAYOUTS
@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_shapes_and_dtypes(target: Target, dtype: torch.dtype, shape: Any, maximum: bool, channels_last: bool) -> None:
    check(Case(shape, maximum=maximum, channels_last=channels_last), dtype, target)


@LAYOUTS
@KINDS
@pytest.mark.parametrize("channels", [2, 32, 64, 128, 264])
def test_widths(target: Target, channels: int, maximum: bool, channels_last: bool) -> None:
    """Every width of a thread's access."""
    for dtype in DTYPES:
        check(Case((1, channels, 6, 10), maximum=maximum, channels_last=channels_last), dtype, target)


@LAYOUTS
@KINDS
def test_unaligned_memory(target: Target, maximum: bool, channels_last: bool) -> None:
    for dtype in DTYPES:
        case = Case((2, 64, 6, 8), maximum=maximum, channels_last=channels_last, shifted=True)
        check(case, dtype, target)


@LAYOUTS
@KINDS
@pytest.mark.parametrize("regions", [1, 2, 19, 151, 700])
@pytest.mark.parametrize("patch", [0, 5, 64], ids=["noise", "patches", "one label"])
def test_regions(target: Target, patch: int, regions: int, maximum: bool, channels_last: bool) -> None:
    """One region only, regions that are absent, more regions than pixels, runs of one pixel and of all."""
    check(Case((2, 8, 13, 17), regions, maximum, channels_last, patch=patch), torch.float32, target)
    check(Case((1, 40, 32, 32), regions, maximum, channels_last, patch=patch), torch.bfloat16, target)


@LAYOUTS
@KINDS
def test_many_tiles(target: Target, maximum: bool, channels_last: bool) -> None:
    """Blocks that walk over several tiles, or pieces, one after another."""
    for dtype in (torch.float64, torch.float16):
        check(Case((2, 5, 50, 61), 11, maximum, channels_last, patch=7), dtype, target)
        check(Case((1, 33, 24, 128), 300, maximum, channels_last, patch=7), dtype, target)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_ties_go_to_the_first_position(target: Target, dtype: torch.dtype, channels_last: bool) -> None:
    """Also between -0 and 0, and where all values are equal or -inf."""
    b, c, h, w = 1, 8, 8, 64
    labels = (torch.arange(w) // 16 % 3).expand(b, h, w).to(torch.int32).contiguous()
    for value in (0.0, -2.0, -torch.inf, torch.inf):
        features = torch.full((b, c, h, w), value, dtype=dtype)
        if value == 0:
            features[:, :, :, 1::2] = 0.0
            features[:, :, :, 0::2] = -0.0
        data = dense(features.to(target.device), channels_last), labels.to(target.device), torch.ones(1, 3, c).to(dtype)
        data = (*data[:2], data[2].to(target.device))
        _, position, _ = target.forward(*data[:2], 3, True)
        assert position.cpu().tolist() == [[[16 * k] * c for k in range(3)]]
        check(Case((b, c, h, w), 3, True, channels_last), dtype, target, data)


@LAYOUTS
@KINDS
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_nan_propagates(target: Target, dtype: torch.dtype, maximum: bool, channels_last: bool) -> None:
    """From its region alone; its position is that of the first one, also behind infinity."""
    case = Case((2, 6, 9, 16), 3, maximum, channels_last)
    features, labels, grad = make(case, dtype, "cpu")
    labels = (torch.arange(16) // 6).expand(2, 9, 16).to(torch.int32).contiguous()
    features = features.contiguous()
    features[0, 1, 2, 3] = features[0, 1, 2, 5] = features[0, 1, 6, 0] = torch.nan
    features[0, 1, 1, 1] = torch.inf
    features[1, 3, 4, 7] = torch.nan
    features[1, 4, 0, 8] = -torch.nan
    data = dense(features, channels_last).to(target.device), labels.to(target.device), grad.to(target.device)
    if maximum:
        check(case, dtype, target, data)
    pooled, position, _ = target.forward(data[0], data[1], 3, maximum)
    found = pooled.cpu().isnan().nonzero().tolist()
    assert found == [[0, 0, 1], [1, 1, 3], [1, 1, 4]]
    if maximum:
        assert [int(position.cpu()[tuple(at)]) for at in found] == [35, 71, 8]


@LAYOUTS
@KINDS
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4)], ids=str)
def test_empty(target: Target, shape: Any, maximum: bool, channels_last: bool) -> None:
    case = Case(shape, maximum=maximum, channels_last=channels_last)
    data = make(case, torch.float32, target.device)
    pooled, position, area, found = run(case, data, target)
    b, c = shape[:2]
    assert pooled.shape == (b, 7, c) and not pooled.any() and found.shape == shape
    if maximum:
        assert position.shape == (b, 7, c) and bool((position == -1).all())
    else:
        expected = torch.stack([(data[1] == k).sum((1, 2)) for k in range(7)], 1)
        same("area", area, expected.float())


@LAYOUTS
@KINDS
def test_bitwise_repeatable(target: Target, maximum: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, emulated, whatever the order in which threads and blocks run: nothing races."""
    for shape, regions, dtype in (((2, 16, 24, 20), 9, torch.float32), ((1, 12, 33, 31), 40, torch.float64)):
        case = Case(shape, regions, maximum, channels_last, patch=4)
        data = make(case, dtype, target.device)
        results = []
        for order in ("forward", "reverse", "shuffle"):
            monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
            results.append(run(case, data, target))
        for others in results[1:]:
            for value, other in zip(results[0], others, strict=True):
                assert torch.equal(value, other)


def test_gradient_of_absent_regions_and_of_no_region(target: Target) -> None:
    """Where a region is absent its gradient goes nowhere; a pixel of no region gets zero."""
    labels = torch.tensor([[[0, 0, -1, 2], [0, -1, 2, 2]]], dtype=torch.int32, device=target.device)
    features = torch.arange(8.0).reshape(1, 1, 2, 4).to(target.device)
    grad = torch.tensor([[[6.0], [100.0], [9.0]]], device=target.device)
    for maximum, expected in ((True, [0, 0, 0, 0, 6, 0, 0, 9]), (False, [2, 2, 0, 3, 2, 0, 3, 3])):
        _, position, area = target.forward(features, labels, 3, maximum)
        found = target.backward(grad, labels, position, area, maximum, False)
        assert found.flatten().tolist() == expected


def test_errors_name_the_argument(target: Target) -> None:
    if target.name == "triton":
        pytest.skip("the public function checks")
    features, labels, grad = make(Case((1, 8, 4, 4)), torch.float32, target.device)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool: features: expected shape"):
        target.forward(features[0], labels, 7, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool: features: expected contiguous or channels_last"):
        target.forward(features[:, ::2], labels, 7, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool: labels: expected shape"):
        target.forward(features, labels[:, 1:], 7, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool: labels: expected Int, got Long"):
        target.forward(features, labels.long(), 7, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool: num_regions: expected 1 to"):
        target.forward(features, labels, 0, True)
    _, position, area = target.forward(features, labels, 7, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool_backward: position: expected shape"):
        target.backward(grad, labels, position[:, 1:], area, True, True)
    with pytest.raises(RuntimeError, match="mixsyn_fast::masked_roi_pool_backward: area: expected shape"):
        target.backward(grad, labels, position, area, False, True)


@pytest.mark.parametrize("call", ["max", "mean", "backward"])
@LAYOUTS
def test_device_assertions(target: Target, call: str, channels_last: bool) -> None:
    """A label out of range stops the kernel with a message: in its own process, which it ends."""
    if target.name == "triton":
        pytest.skip("in the interpreter: test_triton_masked_roi_pool.py")
    memory = "torch.channels_last" if channels_last else "torch.contiguous_format"
    code = f"""
labels = torch.tensor([[[0, 3], [-1, 2]]], dtype=torch.int32, device="{target.device}")
features = torch.zeros(1, 4, 2, 2, device="{target.device}").to(memory_format={memory})
grad, position = features.new_zeros(1, 3, 4), labels.new_zeros(1, 3, 4)
if "{call}" == "backward":
    ops.masked_roi_pool_backward(grad, labels, position, grad, True, {channels_last})
else:
    ops.masked_roi_pool(features, labels, 3, {call == "max"})
"""
    assert_dies(target.name, target.device, code, "labels: expected -1 or 0 .. num_regions - 1")


# --- only on a device ---


@pytest.mark.gpu
@NO_GPU
@LAYOUTS
@KINDS
@pytest.mark.parametrize("regions", [19, 151, 512])
@pytest.mark.parametrize("shape", [(4, 64, 128, 128), (2, 128, 256, 256), (1, 512, 64, 96)], ids=str)
def test_real_shapes(target: Target, shape: Any, regions: int, maximum: bool, channels_last: bool) -> None:
    if target.device == "cpu":
        pytest.skip("too slow emulated")
    for dtype in (torch.bfloat16, torch.float32):
        check(Case(shape, regions, maximum, channels_last, patch=19), dtype, target)


@pytest.mark.gpu
@NO_GPU
@KINDS
def test_cuda_graph(target: Target, maximum: bool) -> None:
    """Both ops are captured, and a replay reads the new input."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    case = Case((2, 32, 32, 32), maximum=maximum)
    data = make(case, torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(case, data, target)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, data, target)
    data[0].copy_(torch.randn_like(data[0]))
    for _ in range(2):
        graph.replay()
        for value, other in zip(run(case, data, target), captured, strict=True):
            assert torch.equal(value, other)


@pytest.mark.gpu
@NO_GPU
def test_side_stream_and_device_guard(target: Target) -> None:
    """Work goes to the current stream of the tensor's device, whatever device is current."""
    if target.device == "cpu":
        pytest.skip("one device emulated")
    case = Case((2, 16, 16, 16))
    data = make(case, torch.float32, f"cuda:{torch.cuda.device_count() - 1}")
    with torch.cuda.stream(torch.cuda.Stream(data[0].device)):
        torch.cuda.current_stream(data[0].device).wait_stream(torch.cuda.default_stream(data[0].device))
        check(case, torch.float32, target, data)
        torch.cuda.current_stream(data[0].device).synchronize()


@pytest.mark.gpu
@NO_GPU
@KINDS
def test_public_function_trains(target: Target, maximum: bool) -> None:
    """masked_roi_pool() end to end with gradients on the device equals the CPU in float64."""
    if target.device == "cpu":
        pytest.skip("covered by the CPU tests")
    import mixsyn_fast

    features, labels, grad = make(Case((2, 16, 9, 8), maximum=maximum), torch.float64, "cpu")
    results = {}
    for device, backend in (("cpu", "reference"), ("cuda", target.name)):
        x = features.to(device).requires_grad_()
        with mixsyn_fast.use_backend(backend):
            pooled, _ = ops_module.masked_roi_pool(x, labels.to(device), 7, "max" if maximum else "mean")
            pooled.backward(grad.to(device))
        assert x.grad is not None
        results[device] = (pooled.detach().cpu(), x.grad.cpu())
    for got, reference in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)
