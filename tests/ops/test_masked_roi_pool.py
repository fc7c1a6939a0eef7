"""masked_roi_pool: the kernels against the specification and against a loop over regions, good, bad and ugly input."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mixsyn_fast
from mixsyn_fast import RegionMap, extension, masked_roi_pool, use_backend
from tests import processes
from tests.compare import assert_within_rule, relative_error

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MODES = ("max", "mean")
# (B, C, H, W): tiles of 16 and 64 channels with rests, steps of 64 pixels with rests, several splits of one image
SHAPES = ((2, 3, 4, 5), (1, 70, 33, 31), (2, 17, 9, 14), (1, 16, 96, 96), (3, 1, 1, 1), (1, 130, 7, 10), (2, 64, 8, 8))
module = sys.modules["mixsyn_fast.ops.masked_roi_pool"]


def blobs(batch: int, height: int, width: int, regions: int, seed: int = 0) -> Tensor:
    """Labels in blobs, with pixels of no region, the last region absent."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-1, regions - 1, (batch, 1, 4, 5), generator=generator).double()
    return torch.nn.functional.interpolate(coarse, size=(height, width))[:, 0].to(torch.int32)


def by_loop(features: Tensor, labels: Tensor, regions: int, mode: str) -> tuple[Tensor, Tensor]:
    """The definition, region by region."""
    batch, channels = features.shape[:2]
    pooled, position = torch.zeros(batch, regions, channels).to(features), torch.full((batch, regions, channels), -1)
    for b, k in itertools.product(range(batch), range(regions)):
        where = (labels[b].reshape(-1) == k).nonzero()[:, 0]
        if len(where) == 0:
            continue
        own = features[b].reshape(channels, -1)[:, where]
        if mode == "mean":
            pooled[b, k] = own.mean(1)
        else:
            # the first of equals; a NaN is larger than everything
            first = torch.where(
                own.isnan().any(1), own.isnan().int().argmax(1), (own == own.amax(1)[:, None]).int().argmax(1)
            )
            pooled[b, k], position[b, k] = own.gather(1, first[:, None])[:, 0], where[first]
    return pooled, position.to(torch.int32)


def in_layout(t: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.empty(t.shape[0], t.shape[1] * 2, t.shape[2], t.shape[3] + 3, dtype=t.dtype)
        return wide[:, ::2, :, 1:-2].copy_(t)
    return t.contiguous()


def pooled_and_gradient(
    features: Tensor, labels: Any, regions: int, mode: str, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x = features.detach().requires_grad_()
    pooled, position = masked_roi_pool(x, labels, regions, mode)
    (found,) = torch.autograd.grad(pooled, x, grad.to(pooled.dtype))
    return pooled.detach(), position, found


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("mode", MODES)
def test_kernels_follow_the_reference(mode: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    torch.manual_seed(0)
    features = in_layout(torch.randn(shape).to(dtype), layout)
    labels = blobs(shape[0], *shape[2:], 6)
    grad = torch.randn(shape[0], 6, shape[1], dtype=torch.float64)
    found = pooled_and_gradient(features, labels, 6, mode, grad)
    with use_backend("reference"):
        reference = pooled_and_gradient(features, labels, 6, mode, grad)
        exact = pooled_and_gradient(features.double(), labels, 6, mode, grad.to(dtype).double())
    assert_within_rule(found[0], reference[0], exact[0], "pooled")
    assert_within_rule(found[2], reference[2], exact[2], "gradient")
    assert torch.equal(found[1], exact[1]), "position"
    if mode == "max":
        assert torch.equal(found[0], reference[0])
    if layout != "sliced":
        assert found[2].stride() == features.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_against_a_loop(mode: str, layout: str) -> None:
    features = in_layout(torch.randn(2, 21, 19, 23, dtype=torch.float64), layout)
    labels = blobs(2, 19, 23, 7)
    for backend in ("native", "reference"):
        with use_backend(backend):
            pooled, position = masked_roi_pool(features, labels, 7, mode)
        expected = by_loop(features, labels, 7, mode)
        torch.testing.assert_close(pooled, expected[0])
        assert torch.equal(position, expected[1]) if mode == "max" else position.shape == (0,)
        assert position.dtype == torch.int32


@given(st.data())
def test_ties_nan_and_infinities(data: st.DataObject) -> None:
    """Few distinct values, so ties everywhere, with NaN and infinities of both signs, and labels without any order."""
    batch, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 40))
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    regions, dtype = data.draw(st.integers(1, 9)), data.draw(st.sampled_from(DTYPES))
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "sliced"]))
    values = torch.tensor(data.draw(st.sampled_from([[0.0, -0.0, 1.0], [-torch.inf, -1.0], [torch.nan, 0.0, torch.inf],
                                                     [-torch.inf], [-torch.nan, -1.0, torch.nan]])))  # fmt: skip
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    picked = values[torch.randint(0, len(values), (batch, channels, height, width), generator=generator)].to(dtype)
    features = in_layout(picked, layout)
    labels = torch.randint(-1, regions, (batch, height, width), generator=generator)
    pooled, position = masked_roi_pool(features, labels, regions)
    expected = by_loop(picked, labels, regions, "max")
    torch.testing.assert_close(pooled, expected[0], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(position, expected[1])


@pytest.mark.parametrize("pixel", [0, 63, 64, 65, 1023, 4095, 4096, 9215])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_maximum_at_every_border(layout: str, pixel: int) -> None:
    """Ends of vectors, steps and splits."""
    features = torch.zeros(1, 2, 96, 96)
    features[0, 1].view(-1)[pixel] = 1.0
    labels = torch.zeros(1, 96, 96, dtype=torch.int32)
    labels.view(-1)[pixel] = 1
    pooled, position = masked_roi_pool(in_layout(features, layout), labels, 3)
    assert pooled[0].tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    first = 1 if pixel == 0 else 0
    assert position[0].tolist() == [[first, first], [pixel, pixel], [-1, -1]]


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_empty_sizes(mode: str, shape: tuple[int, ...]) -> None:
    if mode == "mean" and shape[0]:  # a soft map
        empty = torch.zeros(shape, requires_grad=True)
        pooled, _ = masked_roi_pool(empty, RegionMap.soft(torch.rand(shape[0], 5, 6, 6)), mode="mean")
        assert pooled.shape == (shape[0], 5, shape[1]) and not bool(pooled.detach().any())
        pooled.sum().backward()
    for backend in ("native", "reference"):
        with use_backend(backend):
            features = torch.zeros(shape, requires_grad=True)
            labels = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
            pooled, position = masked_roi_pool(features, labels, 5, mode)
            assert pooled.shape == (shape[0], 5, shape[1])
            if 0 in shape[2:]:
                assert not bool(pooled.any())
            if mode == "max":
                assert position.shape == pooled.shape
            pooled.sum().backward()
            assert features.grad is not None and features.grad.shape == shape


def test_labels_of_another_size_are_nearest_resized() -> None:
    labels = torch.randint(-1, 4, (2, 33, 50))
    features = torch.randn(2, 5, 12, 21)
    near = torch.nn.functional.interpolate(labels[:, None].float(), size=(12, 21))[:, 0].long()
    expected = masked_roi_pool(features, near, 4)
    ignore = RegionMap(torch.where(labels < 0, 255, labels), 4, ignore_index=255)
    for regions in (labels, labels.to(torch.int8), ignore):
        found = masked_roi_pool(features, regions, None if isinstance(regions, RegionMap) else 4)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_several_levels_share_the_map() -> None:
    regions = RegionMap(torch.randint(0, 6, (2, 32, 32)), 6)
    levels = [torch.randn(2, c, s, s) for c, s in ((4, 16), (7, 8), (9, 32))]
    pooled, positions = masked_roi_pool(levels, regions)
    assert isinstance(pooled, list) and isinstance(positions, list)
    for level, values, position in zip(levels, pooled, positions, strict=True):
        alone = masked_roi_pool(level, regions)
        assert torch.equal(values, alone[0]) and torch.equal(position, alone[1])
    single = masked_roi_pool(levels[:1], regions)
    assert isinstance(single[0], list) and len(single[0]) == 1


def test_soft_maps_give_weighted_means() -> None:
    weights = torch.rand(2, 4, 8, 6, dtype=torch.float64)
    weights[1, 2] = 0
    weights.requires_grad_()
    features = torch.randn(2, 5, 8, 6, dtype=torch.float64, requires_grad=True)
    pooled, position = masked_roi_pool(features, RegionMap.soft(weights), mode="mean")
    total = torch.einsum("bkhw,bchw->bkc", weights, features)
    area = weights.sum((2, 3))[:, :, None]
    torch.testing.assert_close(pooled, total / torch.where(area == 0, 1, area))
    assert position.shape == (0,) and not bool(pooled[1, 2].any())
    soft = lambda f, w: masked_roi_pool(f, RegionMap.soft(w), mode="mean")[0]  # noqa: E731
    positive = (weights.detach() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(soft, (features, positive))
    onehot = RegionMap(torch.randint(0, 4, (2, 8, 6)), 4)
    hard, _ = masked_roi_pool(features, onehot, mode="mean")
    torch.testing.assert_close(masked_roi_pool(features, RegionMap.soft(onehot.onehot().double()), mode="mean")[0], hard)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck_and_opcheck(mode: str, layout: str) -> None:
    features = in_layout(torch.randn(2, 5, 6, 7, dtype=torch.float64), layout).requires_grad_()
    labels = blobs(2, 6, 7, 4)
    assert torch.autograd.gradcheck(lambda f: masked_roi_pool(f, labels, 4, mode)[0], features)
    torch.library.opcheck(module._masked_roi_pool_op, (features, labels, 4, mode == "max"))
    _, position, area = module._masked_roi_pool_op(features.detach(), labels, 4, mode == "max")
    grad = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.library.opcheck(module._backward_op, (grad, labels, position, area, mode == "max", layout == "channels_last"))


@pytest.mark.parametrize("mode", MODES)
def test_compile_as_one_graph(mode: str) -> None:
    labels = blobs(2, 8, 8, 4)

    def step(features: Tensor) -> Tensor:
        return torch.relu(masked_roi_pool(features * 2, labels, 4, mode)[0]).sum((0, 1))

    features = torch.randn(2, 5, 8, 8, requires_grad=True)
    expected = step(features)
    (expected_grad,) = torch.autograd.grad(expected.sum(), features)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(features)
    (grad,) = torch.autograd.grad(found.sum(), features)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_under_autocast_the_type_of_the_features_stays() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert masked_roi_pool(torch.randn(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), 1)[0].dtype == torch.float32


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_threads_and_runs_do_not_matter(mode: str, layout: str) -> None:
    features, labels = in_layout(torch.randn(1, 20, 160, 130).round(decimals=1), layout), blobs(1, 160, 130, 30)
    grad = torch.randn(1, 30, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(pooled_and_gradient(features, labels, 30, mode, grad))
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_mean_keeps_what_is_not_finite_in_its_region(value: float, layout: str) -> None:
    features = torch.randn(1, 18, 20, 20)
    labels = blobs(1, 20, 20, 5)
    expected, _ = masked_roi_pool(features, labels, 5, "mean")
    pixel = int((labels.reshape(-1) == 1).nonzero()[3])
    features.view(18, -1)[4, pixel] = value
    found, _ = masked_roi_pool(in_layout(features, layout), labels, 5, "mean")
    assert torch.allclose(found[found.isfinite()], expected[found.isfinite()], atol=1e-6)
    assert found[0, 1, 4].isnan() if value != value else found[0, 1, 4] == value
    assert int((~found.isfinite()).sum()) == 1


def test_a_long_sum_is_accurate() -> None:
    features = torch.rand(1, 2, 512, 512) + 1000
    exact = features.double().mean((2, 3))
    for memory in (torch.contiguous_format, torch.channels_last):
        x = features.contiguous(memory_format=memory)
        pooled, _ = masked_roi_pool(x, torch.zeros(1, 512, 512, dtype=torch.uint8), 1, "mean")
        assert relative_error(pooled[0], exact) < 1e-6
    large = torch.full((1, 1, 256, 256), 100.0, dtype=torch.float16)  # the sum is beyond float16
    assert float(masked_roi_pool(large, torch.zeros(1, 256, 256, dtype=torch.uint8), 1, "mean")[0]) == 100.0


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("mode", ["max", "mean"])
def test_second_derivatives(mode: str, backend: str) -> None:
    """Of what is more than linear behind the pooling, in every layout, with a region that no pixel has."""
    labels = blobs(1, 4, 4, 3)
    features = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    with use_backend(backend):
        pool = lambda f: masked_roi_pool(f, labels, 4, mode)[0]  # noqa: E731
        assert torch.autograd.gradgradcheck(pool, features)
        found = []
        for given in (features, features.contiguous(memory_format=torch.channels_last)):
            (grad,) = torch.autograd.grad(pool(given).pow(3).sum(), features, create_graph=True)
            found.append(torch.autograd.grad(grad.square().sum(), features)[0])
    with use_backend("reference"):
        (grad,) = torch.autograd.grad(pool(features).pow(3).sum(), features, create_graph=True)
        (expected,) = torch.autograd.grad(grad.square().sum(), features)
    for each in found:
        torch.testing.assert_close(each, expected)


F, L = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((F[0], L, 3), ValueError, r"features: expected shape \(B, C, H, W\)"),
        ((F.int(), L, 3), TypeError, "features: expected float32"),
        ((F, L[0], 3), ValueError, r"regions: expected shape \(B, H, W\)"),
        ((F, L.float(), 3), TypeError, "regions: expected an integer dtype"),
        ((F, L), TypeError, "num_regions: expected a positive number with labels, got None"),
        ((F, L, 0), ValueError, "num_regions"),
        ((F, L, 2.5), TypeError, "num_regions: expected a positive number with labels, got 2.5"),
        ((F, L, 3, "median"), ValueError, "mode: expected 'max' or 'mean', got 'median'"),
        ((F[:1], L, 3), ValueError, "regions: expected batch 1"),
        ((F, L.to("meta"), 3), ValueError, "regions: expected device cpu"),
        (([], L, 3), ValueError, "features: expected a tensor or at least one"),
        (([F, None], L, 3), TypeError, "features: expected a tensor or a sequence"),
        ((F, None), TypeError, "regions: expected labels"),
        ((F, RegionMap(L, 3), 4), ValueError, "num_regions: expected None or 3"),
        ((F, RegionMap.soft(torch.ones(2, 3, 4, 4))), ValueError, "mode: expected 'mean' with a soft region map"),
        ((F, L[:, :0], 3), ValueError, "regions: expected at least one pixel"),
        ((F, RegionMap(L[:, :0], 3)), ValueError, "regions: expected at least one pixel"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="masked_roi_pool: " + words):
        masked_roi_pool(*arguments)


@pytest.mark.parametrize("value", [-2, 3, 2**31 - 1, 2**32 + 1])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_label_out_of_range(backend: str, value: int) -> None:
    labels = L.clone()
    labels[1, 2, 3] = value
    words = rf"^masked_roi_pool: regions: expected labels in \[0, 3\) or -1, got {value} at \(1, 2, 3\)$"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        masked_roi_pool(F, labels, 3)


def test_many_regions_of_one_pixel() -> None:
    features = torch.randn(1, 33, 32, 32)
    labels = torch.randperm(1024).reshape(1, 32, 32)
    pooled, position = masked_roi_pool(features, labels, 1500)
    order = labels.reshape(-1).argsort()
    assert torch.equal(pooled[0, :1024], features[0].reshape(33, -1).t()[order])
    assert torch.equal(position[0, :1024, 0].long(), order) and bool((position[0, 1024:] == -1).all())


def test_real_label_maps(data_folder: Path) -> None:
    from mixsyn_fast.models.data import first_items, open_source

    _, labels = first_items(open_source(data_folder / "celebamask_hq" / "val", "folder", "all", classes=19), 2, 64)
    maps = torch.from_numpy(labels.astype("int64"))
    features = torch.randn(2, 20, 64, 64, dtype=torch.float64)
    for mode in MODES:
        found, expected = masked_roi_pool(features, maps, 19, mode), by_loop(features, maps, 19, mode)
        torch.testing.assert_close(found[0], expected[0])
        assert mode == "mean" or torch.equal(found[1], expected[1])


def test_bodies_that_run_without_the_extension() -> None:
    """The Python bodies of the ops, which kernels override: the same results, one by one."""
    assert extension.ensure_loaded()
    features, labels = torch.randn(2, 5, 6, 7, dtype=torch.float64), blobs(2, 6, 7, 4)
    for maximum in (True, False):
        native = module._masked_roi_pool_op(features, labels, 4, maximum)
        torch.testing.assert_close(native, module._masked_roi_pool_op._init_fn(features, labels, 4, maximum))
        for last in (True, False):
            rest = (torch.randn(2, 4, 5, dtype=torch.float64), labels, *native[1:], maximum, last)
            found, expected = module._backward_op(*rest), module._backward_reference(*rest)
            torch.testing.assert_close(found, expected)
            assert found.stride() == expected.stride()


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """The paths that this machine would not take."""
    code = (
        "import tests.ops.test_masked_roi_pool as t\n"
        "for mode in t.MODES:\n"
        "    for dtype in t.DTYPES:\n"
        "        for shape in t.SHAPES[:4]:\n"
        "            for layout in ('contiguous', 'channels_last'):\n"
        "                t.test_kernels_follow_the_reference(mode, dtype, shape, layout)\n"
        "t.test_ties_nan_and_infinities()\n"
        "print('followed')\n"
    )
    processes.run_on(instruction_set, code)


def test_the_public_name() -> None:
    assert mixsyn_fast.masked_roi_pool is masked_roi_pool
