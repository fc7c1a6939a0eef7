"""spatial_attention_pool on the CPU: kernels against the float64 reference, gradients, masks, layouts, sizes, errors."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixsyn_fast import extension, use_backend
from mixsyn_fast.ops.spatial_attention_pool import spatial_attention_pool
from tests import processes
from tests.compare import assert_within_rule, relative_error

# (B, N, M, H, W), K; the last two have several parts per image and tiles that do not fill
CASES = [
    ((2, 32, 16, 8, 8), 8),
    ((1, 5, 3, 7, 3), 1),
    ((3, 17, 33, 5, 13), 17),
    ((2, 48, 20, 33, 67), 16),
    ((1, 7, 64, 41, 53), 64),
]
NAMES = ("features", "condition", "weight_features", "weight_condition")
LAYOUTS = (torch.channels_last, torch.contiguous_format)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def make_inputs(
    shape: tuple[int, int, int, int, int], maps: int, dtype: torch.dtype, layout: torch.memory_format, scale: float = 1.0
) -> dict[str, Tensor]:
    """Inputs drawn in float64 and rounded to ``dtype``, a mask, and the gradients that come from above."""
    batch, features, condition, height, width = shape
    generator = torch.Generator().manual_seed(features * 1000 + maps)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)

    values = {
        "features": (draw(batch, features, height, width) + 1).contiguous(memory_format=layout),
        "condition": draw(batch, condition, height, width).contiguous(memory_format=layout),
        "weight_features": draw(maps, features) * scale / max(features, 1) ** 0.5,
        "weight_condition": draw(maps, condition) * scale / max(condition, 1) ** 0.5,
        "grad_values": draw(batch, maps, features),
        "grad_mean": draw(batch, condition),
        "grad_maps": draw(batch, maps, height, width),
    }
    values["mask"] = torch.rand(batch, height, width, generator=generator) > 0.3
    return values


def run(
    values: dict[str, Tensor], dtype: torch.dtype, backend: str, masked: bool, return_maps: bool
) -> dict[str, Tensor | None]:
    """Forward and backward in ``dtype`` on values that were rounded before."""
    leaves = {name: values[name].to(dtype).detach().requires_grad_() for name in NAMES}
    with use_backend(backend):
        pooled, mean, maps = spatial_attention_pool(
            **leaves, mask=values["mask"] if masked else None, return_maps=return_maps
        )
        outputs, grads = [pooled, mean], [values["grad_values"], values["grad_mean"]]
        if return_maps:
            outputs, grads = [*outputs, maps], [*grads, values["grad_maps"]]
        torch.autograd.backward(outputs, [grad.to(dtype) for grad in grads])
    return {"values": pooled, "mean": mean, "maps": maps if return_maps else None, **{n: leaves[n].grad for n in NAMES}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "maps"), CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_kernels_follow_the_reference(dtype: torch.dtype, shape: Any, maps: int, layout: torch.memory_format) -> None:
    values = make_inputs(shape, maps, dtype, layout)
    for masked, return_maps in itertools.product((False, True), repeat=2):
        exact = run(values, torch.float64, "reference", masked, return_maps)
        reference = run(values, dtype, "reference", masked, return_maps)
        kernel = run(values, dtype, "native", masked, return_maps)
        for name, value in exact.items():
            if value is None:
                assert kernel[name] is None
                continue
            assert kernel[name].dtype == dtype  # type: ignore[union-attr]
            assert_within_rule(kernel[name], reference[name], value, f"{masked} {return_maps} {name}")  # type: ignore[arg-type]
        for name in ("features", "condition"):
            assert kernel[name].stride() == values[name].stride()  # type: ignore[union-attr]
        assert return_maps is False or kernel["maps"].is_contiguous()  # type: ignore[union-attr]


def test_matches_what_the_paper_writes() -> None:
    """Eq. 4 and 5 as a 1x1 convolution of the concatenation, and the global average."""
    values = make_inputs((2, 12, 5, 9, 11), 8, torch.float64, torch.contiguous_format)
    f, c, wf, wc = (values[name] for name in NAMES)
    alpha = F.softmax(F.conv2d(torch.cat((f, c), 1), torch.cat((wf, wc), 1)[:, :, None, None]).flatten(2), 2)
    pooled, mean, maps = spatial_attention_pool(f, c, wf, wc, return_maps=True)
    torch.testing.assert_close(maps.flatten(2), alpha)
    torch.testing.assert_close(pooled, alpha @ f.flatten(2).transpose(1, 2))
    torch.testing.assert_close(mean, c.mean((2, 3)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_huge_logits_do_not_overflow(layout: torch.memory_format) -> None:
    """Logits of +-1e4 whose maximum comes late, early or in the middle of the positions."""
    for place in (0, 700, 2047):
        features = torch.zeros(1, 4, 32, 64)
        features[0, 0] = torch.linspace(-1, 1, 2048).reshape(32, 64)
        features[0, 0].view(-1)[place] = 2
        features = features.contiguous(memory_format=layout)
        condition = torch.ones(1, 1, 32, 64)
        weight = torch.zeros(2, 4)
        weight[0, 0], weight[1, 0] = 1e4, -1e4
        pooled, _, maps = spatial_attention_pool(features, condition, weight, torch.zeros(2, 1), return_maps=True)
        with use_backend("reference"):
            expected = spatial_attention_pool(features, condition, weight, torch.zeros(2, 1), return_maps=True)
        torch.testing.assert_close(pooled, expected[0])
        # the maps are exp(logit - lse), and one unit in the last place of 1e4 is 1e-3
        torch.testing.assert_close(maps, expected[2], rtol=1e-3, atol=1e-6)
        assert float(maps[0, 0].view(-1)[place]) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("growing", [True, False])
def test_running_maximum(layout: torch.memory_format, growing: bool) -> None:
    """The maximum moves with every tile, over several parts: sums made before must be rescaled."""
    height, width = 60, 70
    ramp = torch.linspace(-30, 30, height * width, dtype=torch.float64).reshape(1, 1, height, width)
    features = torch.cat((ramp if growing else -ramp, torch.randn(1, 16, height, width, dtype=torch.float64)), 1)
    features = features.contiguous(memory_format=layout)
    condition = torch.randn(1, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.zeros(3, 17, dtype=torch.float64)
    weight[:, 0] = torch.tensor([1.0, 0.1, -0.5])
    arguments = (features, condition, weight, torch.zeros(3, 3, dtype=torch.float64))
    pooled, mean, _ = spatial_attention_pool(*arguments)
    with use_backend("reference"):
        expected = spatial_attention_pool(*arguments)
    assert relative_error(pooled, expected[0]) < 1e-13 and relative_error(mean, expected[1]) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_masks(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """An image without any position, one with a single one, one that is masked for the length of a part."""
    values = make_inputs((4, 10, 6, 40, 60), 9, dtype, layout)
    mask = torch.ones(4, 40, 60, dtype=torch.bool)
    mask[0] = False
    mask[1] = False
    mask[1, 23, 17] = True
    mask[2].view(-1)[:1500] = False
    values["mask"] = mask
    exact = run(values, torch.float64, "reference", True, True)
    reference = run(values, dtype, "reference", True, True)
    kernel = run(values, dtype, "native", True, True)
    for name, value in exact.items():
        assert bool(torch.isfinite(kernel[name]).all())  # type: ignore[arg-type]
        assert_within_rule(kernel[name], reference[name], value, name)  # type: ignore[arg-type]
    assert not bool(kernel["values"][0].any()) and not bool(kernel["maps"][0].any())  # type: ignore[index]
    assert torch.equal(kernel["values"][1], values["features"][1, :, 23, 17].expand(9, 10))  # type: ignore[index]
    assert not bool(kernel["maps"][2].flatten(1)[:, :1500].any())  # type: ignore[index]
    # the mean of the condition knows no mask, and neither does its gradient
    expected = (values["grad_mean"][0].double() / 2400)[:, None, None].expand(6, 40, 60)
    assert relative_error(kernel["condition"][0], expected) < 1e-2  # type: ignore[index]
    assert not bool(kernel["features"][0].any())  # type: ignore[index]


def test_mask_of_bytes_and_of_any_strides() -> None:
    values = make_inputs((2, 8, 4, 6, 10), 3, torch.float64, torch.channels_last)
    arguments = [values[name] for name in NAMES]
    expected = spatial_attention_pool(*arguments, mask=values["mask"])
    wide = torch.zeros(2, 6, 20, dtype=torch.uint8)
    wide[:, :, ::2] = values["mask"].to(torch.uint8) * 7
    got = spatial_attention_pool(*arguments, mask=wide[:, :, ::2])
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 40, 40, 40, 40))),
    maps=st.integers(1, 64),
    last=st.booleans(),
    masked=st.booleans(),
)
def test_any_size(shape: tuple[int, int, int, int, int], maps: int, last: bool, masked: bool) -> None:
    values = make_inputs(shape, maps, torch.float64, LAYOUTS[0] if last else LAYOUTS[1])
    exact = run(values, torch.float64, "reference", masked, True)
    kernel = run(values, torch.float64, "native", masked, True)
    for name, value in exact.items():
        assert relative_error(kernel[name], value) < 1e-11, name  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(layout: torch.memory_format, masked: bool) -> None:
    values = make_inputs((2, 3, 2, 4, 5), 3, torch.float64, layout)
    leaves = [values[name].requires_grad_() for name in NAMES]
    mask = values["mask"] if masked else None
    if mask is not None:
        mask[1] = False
    assert torch.autograd.gradcheck(lambda *a: spatial_attention_pool(*a, mask=mask, return_maps=True), leaves)
    assert torch.autograd.gradcheck(lambda *a: spatial_attention_pool(*a, mask=mask)[:2], leaves)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=4)))
def test_only_the_gradients_asked_for(needs: tuple[bool, ...]) -> None:
    for layout in LAYOUTS:
        values = make_inputs((2, 16, 5, 6, 7), 4, torch.float64, layout)
        expected = run(values, torch.float64, "reference", False, False)
        leaves = [values[name].detach().requires_grad_(need) for name, need in zip(NAMES, needs, strict=True)]
        pooled, mean, _ = spatial_attention_pool(*leaves)
        if any(needs):
            torch.autograd.backward(
                [pooled, mean][: 2 if mean.requires_grad else 1], [values["grad_values"], values["grad_mean"]]
            )
        for name, leaf, need in zip(NAMES, leaves, needs, strict=True):
            assert (leaf.grad is not None) == need
            assert not need or relative_error(leaf.grad, expected[name]) < 1e-12  # type: ignore[arg-type]


def test_gradient_of_one_result_alone() -> None:
    values = make_inputs((2, 6, 5, 6, 7), 4, torch.float64, torch.channels_last)
    for index in range(3):
        grads = []
        for backend in ("native", "reference"):
            leaves = [values[name].detach().clone().requires_grad_() for name in NAMES]
            with use_backend(backend):
                result = spatial_attention_pool(*leaves, return_maps=True)[index]
            grads.append(torch.autograd.grad(result.pow(2).sum(), leaves, allow_unused=True))
        for ours, expected in zip(*grads, strict=True):
            expected = torch.zeros_like(ours) if expected is None else expected
            assert ours is None or relative_error(ours, expected) < 1e-12


def test_opcheck() -> None:
    ops = torch.ops.mixsyn_fast
    for layout, masked in zip(LAYOUTS, (False, True), strict=True):
        values = make_inputs((2, 8, 5, 4, 6), 3, torch.float32, layout)
        mask = values["mask"] if masked else None
        inputs = [values[name] for name in NAMES]
        for return_maps in (False, True):
            torch.library.opcheck(ops.spatial_attention_pool.default, (*inputs, mask, return_maps))
            leaves = [t.detach().clone().requires_grad_() for t in inputs]
            torch.library.opcheck(ops.spatial_attention_pool.default, (*leaves, mask, return_maps))
        pooled, _, _, lse = ops.spatial_attention_pool(*inputs, mask, False)
        for needs, grad_maps in ((15, None), (5, values["grad_maps"]), (10, None), (0, None)):
            torch.library.opcheck(
                ops.spatial_attention_pool_backward.default,
                (values["grad_values"], values["grad_mean"], grad_maps, *inputs, mask, pooled, lse, needs),
            )


def test_compiles_without_graph_break() -> None:
    values = make_inputs((2, 8, 5, 6, 6), 4, torch.float32, torch.channels_last)
    leaves = [values[name].requires_grad_() for name in NAMES]

    def step(features: Tensor, condition: Tensor, weight_features: Tensor, weight_condition: Tensor) -> Tensor:
        pooled, mean, maps = spatial_attention_pool(
            features * 2, condition, weight_features, weight_condition, mask=values["mask"], return_maps=True
        )
        return pooled.sum() + mean.sin().sum() + maps.pow(2).sum()

    eager = torch.autograd.grad(step(*leaves), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), step(*leaves))
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), eager)


def test_autocast_keeps_the_dtype_of_the_features() -> None:
    values = make_inputs((2, 8, 8, 6, 6), 4, torch.float32, torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = F.conv2d(values["features"], torch.randn(8, 8, 1, 1))
        assert features.dtype == torch.bfloat16
        results = spatial_attention_pool(features, *(values[name] for name in NAMES[1:]), return_maps=True)
    expected = spatial_attention_pool(features, *(values[name] for name in NAMES[1:]), return_maps=True)
    for got, plain in zip(results, expected, strict=True):
        assert got.dtype == torch.bfloat16 and torch.equal(got, plain)


def test_any_strides() -> None:
    values = make_inputs((2, 16, 16, 8, 8), 5, torch.float64, torch.contiguous_format)
    weights = [values["weight_features"], values["weight_condition"]]
    big = torch.randn(4, 32, 16, 16, dtype=torch.float64)
    views = {
        "sliced": big[::2, 3:19, 1:9, 4:12],
        "strided": big[:2, ::2, ::2, ::2],
        "transposed": big[:2, :16, :8, :8].transpose(2, 3),
        "expanded": big[:1, :16, :8, :8].expand(2, -1, -1, -1),
        "channels_last slice": big.contiguous(memory_format=torch.channels_last)[:2, 4:20, :8, :8],
        "channels_last": values["condition"].contiguous(memory_format=torch.channels_last),
        "contiguous": values["condition"],
    }
    for (name, x), (other, y) in itertools.product(views.items(), repeat=2):
        leaves = [t.detach().requires_grad_() for t in (x, y)]
        pooled, mean, _ = spatial_attention_pool(*leaves, *weights)
        plain = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in (x, y)]
        expected, expected_mean, _ = spatial_attention_pool(*plain, *weights)
        assert relative_error(pooled, expected) < 1e-13 and relative_error(mean, expected_mean) < 1e-13, (name, other)
        # a gradient with strides of its own
        grad = values["grad_values"]
        pooled.backward(grad.transpose(0, 2).contiguous().transpose(0, 2))
        expected.backward(grad)
        for ours, theirs in zip(leaves, plain, strict=True):
            assert relative_error(ours.grad, theirs.grad) < 1e-12, (name, other)  # type: ignore[arg-type]


def test_slices_of_weights_in_another_dtype() -> None:
    values = make_inputs((2, 16, 6, 5, 5), 5, torch.float64, torch.channels_last)
    wide = torch.randn(22, 10)
    got = spatial_attention_pool(values["features"], values["condition"], wide.t()[::2, :16], wide.t()[::2, 16:])
    expected = spatial_attention_pool(
        values["features"], values["condition"], wide.t()[::2, :16].double().clone(), wide.t()[::2, 16:].double().clone()
    )
    assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize(
    "shape",
    [
        (0, 8, 4, 4, 4),
        (2, 0, 4, 4, 4),
        (2, 8, 0, 4, 4),
        (2, 0, 0, 3, 3),
        (2, 8, 4, 0, 4),
        (2, 8, 4, 4, 0),
        (1, 1, 1, 1, 1),
        (3, 17, 5, 1, 33),
    ],
    ids=str,
)
def test_empty_and_odd_sizes(shape: Any) -> None:
    for layout, dtype in itertools.product(LAYOUTS, (torch.float64, torch.bfloat16)):
        values = make_inputs(shape, 3, dtype, layout)
        exact = run(values, torch.float64, "reference", False, True)
        kernel = run(values, dtype, "native", False, True)
        for name, value in exact.items():
            assert kernel[name].shape == value.shape  # type: ignore[union-attr]
            assert relative_error(kernel[name], value) < (1e-12 if dtype == torch.float64 else 2e-2), name  # type: ignore[arg-type]


def test_results_do_not_depend_on_threads_and_repeats() -> None:
    for layout in LAYOUTS:
        values = make_inputs((1, 40, 20, 70, 90), 16, torch.float32, layout)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3, 7, 2):
                torch.set_num_threads(count)
                results.append(run(values, torch.float32, "native", True, True))
        finally:
            torch.set_num_threads(threads)
        for again in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, again[name]), name  # type: ignore[arg-type]


def test_nan_reaches_the_results_of_its_image_only() -> None:
    for layout, masked in itertools.product(LAYOUTS, (False, True)):
        values = make_inputs((2, 8, 4, 30, 50), 4, torch.float32, layout)
        values["mask"][1, 20, 20] = True
        values["condition"][1, 2, 20, 20] = float("nan")
        pooled, mean, maps = spatial_attention_pool(
            *(values[name] for name in NAMES), mask=values["mask"] if masked else None, return_maps=True
        )
        assert bool(pooled[1].isnan().all()) and not bool(pooled[0].isnan().any())
        assert bool(mean[1, 2].isnan()) and int(mean.isnan().sum()) == 1
        assert bool(maps[1].isnan().any()) and not bool(maps[0].isnan().any())


def test_double_backward_is_a_clear_error_and_the_reference_has_it() -> None:
    values = make_inputs((1, 3, 2, 3, 3), 2, torch.float64, torch.contiguous_format)
    leaves = [values[name].requires_grad_() for name in NAMES]
    (first,) = torch.autograd.grad(spatial_attention_pool(*leaves)[0].pow(2).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match='use_backend\\("reference"\\)'):
        torch.autograd.grad(first.sum(), leaves[0])
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(lambda *a: spatial_attention_pool(*a)[0], leaves)


GOOD: dict[str, Any] = {
    "features": torch.zeros(2, 4, 3, 5),
    "condition": torch.zeros(2, 6, 3, 5),
    "weight_features": torch.zeros(7, 4),
    "weight_condition": torch.zeros(7, 6),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": torch.zeros(4, 3, 5)}, ValueError, r"features: expected shape \(B, N, H, W\)"),
        ({"features": torch.zeros(2, 4, 3, 5, dtype=torch.int32)}, TypeError, "features: expected float32"),
        ({"condition": torch.zeros(2, 6, 3, 4)}, ValueError, r"condition: expected shape \(2, M, 3, 5\)"),
        ({"condition": torch.zeros(1, 6, 3, 5)}, ValueError, "condition: expected shape"),
        ({"condition": torch.zeros(2, 6, 3, 5).long()}, TypeError, "condition: expected a floating dtype"),
        ({"weight_features": torch.zeros(7, 5)}, ValueError, r"weight_features: expected shape \(K, 4\)"),
        ({"weight_features": torch.zeros(65, 4)}, ValueError, "weight_features: expected 1 to 64 rows, got 65"),
        ({"weight_features": torch.zeros(0, 4)}, ValueError, "weight_features: expected 1 to 64 rows, got 0"),
        ({"weight_features": torch.zeros(7, 4).int()}, TypeError, "weight_features: expected a floating dtype"),
        ({"weight_condition": torch.zeros(6, 6)}, ValueError, r"weight_condition: expected shape \(7, 6\)"),
        ({"weight_condition": torch.zeros(7, 6, device="meta")}, ValueError, "weight_condition: expected device cpu"),
        ({"mask": torch.zeros(2, 1, 3, 5).bool()}, ValueError, r"mask: expected shape \(2, 3, 5\)"),
        ({"mask": torch.zeros(2, 3, 5)}, TypeError, "mask: expected bool or uint8"),
        ({"mask": torch.zeros(2, 3, 5, device="meta").bool()}, ValueError, "mask: expected device cpu"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        spatial_attention_pool(**(GOOD | change))


def test_the_op_itself_checks_what_it_is_given() -> None:
    op = torch.ops.mixsyn_fast.spatial_attention_pool
    good = list(GOOD.values())
    for index, wrong, words in (
        (0, torch.zeros(2, 4, 5, 3).transpose(2, 3), "features and condition: expected contiguous or channels_last"),
        (1, GOOD["condition"].double(), "condition: expected Float"),
        (2, torch.zeros(7, 4).double(), "weight_features: expected Float"),
        (3, torch.zeros(6, 7).t(), "weight_condition: expected contiguous"),
    ):
        arguments = [wrong if i == index else t for i, t in enumerate(good)]
        with pytest.raises(RuntimeError, match=f"mixsyn_fast::spatial_attention_pool: {words}"):
            op(*arguments, None, False)


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """The paths that this machine would not take."""
    code = (
        "import torch\n"
        "import tests.ops.test_spatial_attention_pool as t\n"
        "for dtype in t.DTYPES:\n"
        "    for (shape, maps), layout in t.itertools.product(t.CASES[1:4], t.LAYOUTS):\n"
        "        t.test_kernels_follow_the_reference(dtype, shape, maps, layout)\n"
        "print('followed')\n"
    )
    processes.run_on(instruction_set, code)


@pytest.mark.parametrize("masked", [False, True])
def test_bodies_that_run_without_the_extension(masked: bool) -> None:
    """The Python bodies of the ops, which kernels override: the same results, one by one."""
    assert extension.ensure_loaded()
    module = sys.modules["mixsyn_fast.ops.spatial_attention_pool"]
    values = make_inputs((2, 5, 4, 6, 7), 3, torch.float64, torch.channels_last)
    inputs = [values[name] for name in NAMES]
    mask = values["mask"] if masked else None
    if mask is not None:
        mask[1] = False
    forwards = [
        forward(*inputs, mask, True) for forward in (module._OP.native.forward, module.spatial_attention_pool_reference)
    ]
    torch.testing.assert_close(*forwards)
    for needs, grad_maps in itertools.product((15, 6, 9), (None, values["grad_maps"])):
        common = (values["grad_values"], values["grad_mean"], grad_maps, *inputs, mask, forwards[0][0], forwards[0][3])
        torch.testing.assert_close(
            *(backward(*common, needs) for backward in (module._OP.native.backward, module._backward_reference))
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("width", [1030, 1040])
def test_gradients_larger_than_the_caches(layout: torch.memory_format, width: int) -> None:
    """Gradients of 8 MB and more take another kind of store; rows that are no multiple of a cache line must not."""
    values = make_inputs((1, 48, 32, 65, width), 8, torch.float32, layout)
    exact = run(values, torch.float64, "reference", False, False)
    reference = run(values, torch.float32, "reference", False, False)
    kernel = run(values, torch.float32, "native", False, False)
    for name, value in exact.items():
        if value is not None:
            assert_within_rule(kernel[name], reference[name], value, name)  # type: ignore[arg-type]
