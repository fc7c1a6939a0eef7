"""channel_attention_spread on the CPU: kernels against the float64 reference, gradients, layouts, sizes, errors."""

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
from mixsyn_fast.ops.channel_attention_spread import channel_attention_maps, channel_attention_spread
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
NAMES = ("values", "condition", "weight")
LAYOUTS = (torch.channels_last, torch.contiguous_format)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def make_inputs(
    shape: tuple[int, int, int, int, int], maps: int, dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Tensor]:
    """Inputs drawn in float64 and rounded to ``dtype``, and the gradient that comes from above."""
    batch, features, condition, height, width = shape
    generator = torch.Generator().manual_seed(features * 1000 + maps)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)

    return {
        "values": draw(batch, maps, features) + 1,
        "condition": draw(batch, condition, height, width).contiguous(memory_format=layout),
        "weight": draw(maps, condition) / max(condition, 1) ** 0.5,
        "grad": draw(batch, features, height, width),
    }


def run(values: dict[str, Tensor], dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Forward and backward in ``dtype`` on values that were rounded before."""
    leaves = {name: values[name].to(dtype).detach().requires_grad_() for name in NAMES}
    with use_backend(backend):
        result = channel_attention_spread(**leaves)
        result.backward(values["grad"].to(dtype))
    return {"result": result, **{name: leaves[name].grad for name in NAMES}}  # type: ignore[dict-item]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "maps"), CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_kernels_follow_the_reference(dtype: torch.dtype, shape: Any, maps: int, layout: torch.memory_format) -> None:
    values = make_inputs(shape, maps, dtype, layout)
    exact = run(values, torch.float64, "reference")
    reference = run(values, dtype, "reference")
    kernel = run(values, dtype, "native")
    for name, value in exact.items():
        assert kernel[name].dtype == dtype
        assert_within_rule(kernel[name], reference[name], value, name)
    assert kernel["result"].is_contiguous(memory_format=layout)
    assert kernel["condition"].stride() == values["condition"].stride()


def test_matches_what_the_paper_writes() -> None:
    """Eq. 7 and 8 with a 1x1 convolution."""
    values = make_inputs((2, 12, 5, 9, 11), 8, torch.float64, torch.contiguous_format)
    v, c, weight = (values[name] for name in NAMES)
    beta = F.softmax(F.conv2d(c, weight[:, :, None, None]), 1)
    expected = (v.transpose(1, 2) @ beta.flatten(2)).reshape(2, 12, 9, 11)
    torch.testing.assert_close(channel_attention_spread(v, c, weight), expected)
    torch.testing.assert_close(channel_attention_maps(c, weight), beta)


@pytest.mark.parametrize("maps", [1, 8, 16, 17, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_maps(maps: int, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        values = make_inputs((2, maps, 12, 9, 35), maps, dtype, layout)
        with use_backend("reference"):
            exact = channel_attention_maps(values["condition"].double(), values["weight"].double())
            reference = channel_attention_maps(values["condition"], values["weight"])
        kernel = channel_attention_maps(values["condition"], values["weight"])
        assert kernel.dtype == dtype and kernel.is_contiguous(memory_format=layout)
        assert_within_rule(kernel, reference, exact)
        # the spread is the sum of the values under the maps
        spread = channel_attention_spread(values["values"], values["condition"], values["weight"])
        combined = torch.einsum("bkn,bkhw->bnhw", values["values"].double(), kernel.double())
        assert relative_error(spread, combined) < {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 1e-2)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_huge_logits_do_not_overflow(layout: torch.memory_format) -> None:
    condition = torch.randn(1, 3, 20, 30).contiguous(memory_format=layout)
    weight = torch.randn(5, 3) * 1e4
    beta = channel_attention_maps(condition, weight)
    with use_backend("reference"):
        expected = channel_attention_maps(condition, weight)
    assert bool(torch.isfinite(beta).all())
    # at 1e4 a logit is known to 1e-3 only; here one map wins almost everywhere
    assert float((beta - expected).abs().max()) < 0.05 and relative_error(beta, expected) < 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-7), (torch.float64, 1e-15)], ids=str)
def test_small_maps_are_as_accurate_as_large_ones(dtype: torch.dtype, bound: float) -> None:
    """Every element by itself: two maps with the logits 0 and x, and x down to where float32 ends."""
    x = torch.linspace(-86, 0, 10007, dtype=dtype)
    for layout in LAYOUTS:
        condition = x.reshape(1, 1, 1, -1).repeat(1, 2, 1, 1).contiguous(memory_format=layout)
        weight = torch.tensor([[0, 0], [0.5, 0.5]], dtype=dtype)
        beta = channel_attention_maps(condition, weight)[0, 1, 0].double()
        exact = torch.sigmoid(x.double())
        assert float(((beta - exact) / exact).abs().max()) < bound


@given(shape=st.tuples(*(st.integers(1, n) for n in (2, 40, 40, 40, 40))), maps=st.integers(1, 64), last=st.booleans())
def test_any_size(shape: tuple[int, int, int, int, int], maps: int, last: bool) -> None:
    values = make_inputs(shape, maps, torch.float64, LAYOUTS[0] if last else LAYOUTS[1])
    exact, kernel = (run(values, torch.float64, backend) for backend in ("reference", "native"))
    for name, value in exact.items():
        assert relative_error(kernel[name], value) < 1e-11, name


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradcheck(layout: torch.memory_format) -> None:
    values = make_inputs((2, 3, 2, 4, 5), 3, torch.float64, layout)
    leaves = [values[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(channel_attention_spread, leaves)
    assert torch.autograd.gradcheck(channel_attention_maps, leaves[1:])


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)))
def test_only_the_gradients_asked_for(needs: tuple[bool, ...]) -> None:
    for layout in LAYOUTS:
        values = make_inputs((2, 16, 5, 6, 7), 4, torch.float64, layout)
        expected = run(values, torch.float64, "reference")
        leaves = [values[name].detach().requires_grad_(need) for name, need in zip(NAMES, needs, strict=True)]
        result = channel_attention_spread(*leaves)
        assert result.requires_grad == any(needs)
        if any(needs):
            result.backward(values["grad"])
        for name, leaf, need in zip(NAMES, leaves, needs, strict=True):
            assert (leaf.grad is not None) == need
            assert not need or relative_error(leaf.grad, expected[name]) < 1e-12  # type: ignore[arg-type]


def test_opcheck() -> None:
    ops = torch.ops.mixsyn_fast
    for layout in LAYOUTS:
        values = make_inputs((2, 8, 5, 4, 6), 3, torch.float32, layout)
        inputs = [values[name] for name in NAMES]
        torch.library.opcheck(ops.channel_attention_spread.default, inputs)
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        torch.library.opcheck(ops.channel_attention_spread.default, leaves)
        grad = values["grad"].contiguous(memory_format=layout)
        for needs in (7, 1, 6, 0):
            torch.library.opcheck(ops.channel_attention_spread_backward.default, (grad, *inputs, needs))


def test_compiles_without_graph_break() -> None:
    values = make_inputs((2, 8, 5, 6, 6), 4, torch.float32, torch.channels_last)
    leaves = [values[name].requires_grad_() for name in NAMES]

    def step(v: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
        spread = channel_attention_spread(v * 2, condition, weight).sin()
        return spread.sum() + channel_attention_maps(condition, weight).pow(2).sum()

    eager = torch.autograd.grad(step(*leaves), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), step(*leaves))
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), eager)


def test_autocast_keeps_the_dtype_of_the_condition() -> None:
    values = make_inputs((2, 8, 8, 6, 6), 4, torch.float32, torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        condition = F.conv2d(values["condition"], torch.randn(8, 8, 1, 1))
        assert condition.dtype == torch.bfloat16
        result = channel_attention_spread(values["values"], condition, values["weight"])
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, channel_attention_spread(values["values"], condition, values["weight"]))


def test_any_strides() -> None:
    values = make_inputs((2, 12, 16, 8, 8), 5, torch.float64, torch.contiguous_format)
    big = torch.randn(4, 32, 16, 16, dtype=torch.float64)
    views = {
        "sliced": big[::2, 3:19, 1:9, 4:12],
        "strided": big[:2, ::2, ::2, ::2],
        "transposed": big[:2, :16, :8, :8].transpose(2, 3),
        "expanded": big[:1, :16, :8, :8].expand(2, -1, -1, -1),
        "channels_last slice": big.contiguous(memory_format=torch.channels_last)[:2, 4:20, :8, :8],
    }
    wide = torch.randn(2, 12, 10, dtype=torch.float64)
    for name, x in views.items():
        leaf, v = x.detach().requires_grad_(), wide.transpose(1, 2)[:, ::2].detach().requires_grad_()
        result = channel_attention_spread(v, leaf, values["weight"])
        plain, plain_v = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(), v.detach().clone()
        plain_v.requires_grad_()
        expected = channel_attention_spread(plain_v, plain, values["weight"])
        assert relative_error(result, expected) < 1e-13, name
        # a gradient with strides of its own
        result.backward(values["grad"].transpose(0, 1).contiguous().transpose(0, 1))
        expected.backward(values["grad"])
        assert relative_error(leaf.grad, plain.grad) < 1e-12, name  # type: ignore[arg-type]
        assert relative_error(v.grad, plain_v.grad) < 1e-12, name  # type: ignore[arg-type]


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
        (3, 17, 1, 1, 33),
    ],
    ids=str,
)
def test_empty_and_odd_sizes(shape: Any) -> None:
    for layout, dtype in itertools.product(LAYOUTS, (torch.float64, torch.bfloat16)):
        values = make_inputs(shape, 3, dtype, layout)
        exact = run(values, torch.float64, "reference")
        kernel = run(values, dtype, "native")
        for name, value in exact.items():
            assert kernel[name].shape == value.shape
            assert relative_error(kernel[name], value) < (1e-12 if dtype == torch.float64 else 2e-2), name


def test_results_do_not_depend_on_threads_and_repeats() -> None:
    for layout in LAYOUTS:
        values = make_inputs((1, 40, 20, 70, 90), 16, torch.float32, layout)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3, 7, 2):
                torch.set_num_threads(count)
                results.append(run(values, torch.float32, "native"))
        finally:
            torch.set_num_threads(threads)
        for again in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, again[name]), name


def test_nan_reaches_its_position_only() -> None:
    for layout in LAYOUTS:
        values = make_inputs((2, 8, 4, 30, 50), 4, torch.float32, layout)
        values["condition"][1, 2, 20, 21] = float("nan")
        result = channel_attention_spread(*(values[name] for name in NAMES))
        assert bool(result[1, :, 20, 21].isnan().all()) and int(result.isnan().sum()) == 8


def test_double_backward_is_a_clear_error_and_the_reference_has_it() -> None:
    values = make_inputs((1, 3, 2, 3, 3), 2, torch.float64, torch.contiguous_format)
    leaves = [values[name].requires_grad_() for name in NAMES]
    (first,) = torch.autograd.grad(channel_attention_spread(*leaves).pow(2).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match='use_backend\\("reference"\\)'):
        torch.autograd.grad(first.sum(), leaves[0])
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(channel_attention_spread, leaves)


GOOD: dict[str, Any] = {
    "values": torch.zeros(2, 7, 4),
    "condition": torch.zeros(2, 6, 3, 5),
    "weight": torch.zeros(7, 6),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"values": torch.zeros(2, 6, 4)}, ValueError, r"values: expected shape \(2, 7, N\), got shape \(2, 6, 4\)"),
        ({"values": torch.zeros(7, 4)}, ValueError, "values: expected shape"),
        ({"values": torch.zeros(2, 7, 4).int()}, TypeError, "values: expected a floating dtype"),
        ({"values": torch.zeros(2, 7, 4, device="meta")}, ValueError, "values: expected device cpu"),
        ({"condition": torch.zeros(6, 3, 5)}, ValueError, r"condition: expected shape \(B, M, H, W\)"),
        ({"condition": torch.zeros(2, 6, 3, 5).int()}, TypeError, "condition: expected float32"),
        ({"weight": torch.zeros(7, 5)}, ValueError, r"weight: expected shape \(K, 6\)"),
        ({"weight": torch.zeros(65, 6)}, ValueError, "weight: expected 1 to 64 rows, got 65"),
        ({"weight": torch.zeros(7, 6).int()}, TypeError, "weight: expected a floating dtype"),
        ({"weight": torch.zeros(7, 6, device="meta")}, ValueError, "weight: expected device cpu"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"channel_attention_spread: {words}"):
        channel_attention_spread(**(GOOD | change))
    if "values" not in change:
        arguments = GOOD | change
        with pytest.raises(error, match=f"channel_attention_maps: {words}"):
            channel_attention_maps(arguments["condition"], arguments["weight"])


def test_the_op_itself_checks_what_it_is_given() -> None:
    assert extension.ensure_loaded()  # the body that runs without it checks nothing
    op = torch.ops.mixsyn_fast.channel_attention_spread
    for index, wrong, words in (
        (0, torch.zeros(2, 7, 4).double(), "values: expected Float"),
        (1, torch.zeros(2, 6, 5, 3).transpose(2, 3), "condition: expected contiguous or channels_last"),
        (2, torch.zeros(6, 7).t(), "weight: expected contiguous"),
    ):
        arguments = [wrong if i == index else t for i, t in enumerate(GOOD.values())]
        with pytest.raises(RuntimeError, match=f"mixsyn_fast::channel_attention_spread: {words}"):
            op(*arguments)


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """The paths that this machine would not take."""
    code = (
        "import torch\n"
        "import tests.ops.test_channel_attention_spread as t\n"
        "for dtype in t.DTYPES:\n"
        "    for (shape, maps), layout in t.itertools.product(t.CASES[1:4], t.LAYOUTS):\n"
        "        t.test_kernels_follow_the_reference(dtype, shape, maps, layout)\n"
        "print('followed')\n"
    )
    processes.run_on(instruction_set, code)


def test_bodies_that_run_without_the_extension() -> None:
    """The Python bodies of the ops, which kernels override: the same results, one by one."""
    assert extension.ensure_loaded()
    module = sys.modules["mixsyn_fast.ops.channel_attention_spread"]
    values = make_inputs((2, 5, 4, 6, 7), 3, torch.float64, torch.channels_last)
    inputs = [values[name] for name in NAMES]
    torch.testing.assert_close(
        *(forward(*inputs) for forward in (module._OP.native.forward, module.channel_attention_spread_reference))
    )
    grad = values["grad"].contiguous(memory_format=torch.channels_last)
    for needs in (7, 3, 5):
        torch.testing.assert_close(
            *(backward(grad, *inputs, needs) for backward in (module._OP.native.backward, module._backward_reference))
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("width", [1030, 1040])
def test_results_larger_than_the_caches(layout: torch.memory_format, width: int) -> None:
    """Results of 8 MB and more take another kind of store; rows that are no multiple of a cache line must not."""
    values = make_inputs((1, 32, 80, 65, width), 8, torch.float32, layout)
    exact = run(values, torch.float64, "reference")
    reference = run(values, torch.float32, "reference")
    kernel = run(values, torch.float32, "native")
    for name, value in exact.items():
        assert_within_rule(kernel[name], reference[name], value, name)
