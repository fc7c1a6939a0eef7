"""bias_act on the CPU: kernels against the float64 reference, gradients of both orders, layouts, sizes, errors."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixsyn_fast import bias_act, extension, use_backend
from mixsyn_fast.ops.bias_act import bias_act_reference
from tests import processes
from tests.compare import assert_within_rule

op_module = sys.modules["mixsyn_fast.ops.bias_act"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# full vectors and tails of all widths, one pixel, one channel, several parts of an image
SHAPES = [(2, 64, 8, 8), (1, 5, 7, 3), (3, 33, 5, 40), (2, 3, 1, 1), (2, 1, 9, 7), (1, 17, 33, 40)]
NAMES = ("x", "bias", "scale", "noise", "strength")
# which of bias, scale, noise (with strength) are there, and whether one noise serves all images
USES = [(True, True, True, False), (True, True, True, True), (False, False, False, False), (True, False, True, False)]
USES += [(False, True, False, False), (False, True, True, True)]


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, use: tuple[bool, bool, bool, bool], channels_last: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs drawn in float64, rounded to ``dtype``, and the gradient that comes from above."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    bias, scale, noise, shared = use
    values = {"x": draw(*shape)}
    values |= {"bias": draw(channels)} if bias else {}
    values |= {"scale": draw(batch, channels)} if scale else {}
    values |= {"noise": draw(1 if shared else batch, 1, height, width), "strength": draw(1)} if noise else {}
    values = {k: v.to(dtype) for k, v in values.items()}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    values["x"] = values["x"].contiguous(memory_format=layout)
    return values, draw(*shape).to(dtype)


def run(
    values: dict[str, Tensor], grad: Tensor, dtype: torch.dtype, backend: str, slope: float = 0.2, gain: float = 2**0.5
) -> dict[str, Tensor]:
    """Result and all gradients, in ``dtype`` on values that were rounded before."""
    leaves = {k: v.to(dtype).detach().requires_grad_() for k, v in values.items()}
    with use_backend(backend):
        y = bias_act(**leaves, slope=slope, gain=gain)
        grads = torch.autograd.grad(y, list(leaves.values()), grad.to(dtype))
    return {"y": y, **{f"grad_{k}": g for k, g in zip(leaves, grads, strict=True)}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_kernels_follow_the_reference(dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool) -> None:
    for number, use in enumerate(USES):
        values, grad = make_inputs(shape, dtype, use, channels_last)
        settings = (0.2, 2**0.5) if number % 2 == 0 else (1.0, 0.5)
        exact = run(values, grad, torch.float64, "reference", *settings)
        reference = run(values, grad, dtype, "reference", *settings)
        kernel = run(values, grad, dtype, "native", *settings)
        for name, value in exact.items():
            assert kernel[name].dtype == dtype
            assert_within_rule(kernel[name], reference[name], value, f"{use} {name}")
        assert kernel["y"].stride() == kernel["grad_x"].stride() == values["x"].stride()


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_larger_than_caches(channels_last: bool) -> None:
    """Results that are written past the caches are those of its images, each of which a cache holds."""
    values, grad = make_inputs((3, 32, 256, 200), torch.float32, USES[0], channels_last)
    whole = run(values, grad, torch.float32, "native")
    images = []
    for i in range(3):
        image = {k: v if k in ("bias", "strength") else v[i : i + 1] for k, v in values.items()}
        images.append(run(image, grad[i : i + 1], torch.float32, "native"))
    for name in ("y", "grad_x", "grad_noise", "grad_scale"):
        parts = torch.cat([image[name] for image in images])
        if name in ("y", "grad_x"):
            assert torch.equal(whole[name], parts), name
        torch.testing.assert_close(whole[name], parts, rtol=1e-5, atol=1e-3)
    for name in ("grad_bias", "grad_strength"):
        total = torch.stack([image[name].double() for image in images]).sum(0)
        torch.testing.assert_close(whole[name].double(), total, rtol=1e-5, atol=1e-3)


def test_by_hand() -> None:
    x = torch.tensor([1.0, -2.0, 0.0, -0.0]).view(1, 1, 2, 2)
    values = {"scale": torch.tensor([[3.0]]), "noise": torch.tensor([1.0, 1.0, 0.0, -1.0]).view(1, 1, 2, 2)}
    for backend in ("native", "reference"):
        with use_backend(backend):
            y = bias_act(x, torch.tensor([1.0]), **values, strength=torch.tensor([2.0]), slope=0.5, gain=10.0)
            assert y.flatten().tolist() == [60.0, -15.0, 10.0, -5.0]
            assert torch.equal(bias_act(x, slope=1.0, gain=1.0), x)
            torch.testing.assert_close(bias_act(x), F.leaky_relu(x, 0.2) * math.sqrt(2))


def test_is_the_order_of_the_paper() -> None:
    """Demodulating the result equals demodulating the weights (Eq. 3), then noise, bias, activation."""
    x, weight = torch.randn(2, 6, 9, 9, dtype=torch.float64), torch.randn(8, 6, 3, 3, dtype=torch.float64)
    style, bias, noise = torch.randn(2, 6).double(), torch.randn(8).double(), torch.randn(2, 1, 9, 9).double()
    strength = torch.tensor([0.3], dtype=torch.float64)
    modulated = weight * style[:, None, :, None, None]
    demodulation = (modulated.square().sum((2, 3, 4)) + 1e-8).rsqrt()
    rows = zip(x, modulated * demodulation[:, :, None, None, None], strict=True)
    published = torch.cat([F.conv2d(image[None], w, padding=1) for image, w in rows]) + noise * strength
    published = F.leaky_relu(published + bias[:, None, None], 0.2) * 2**0.5
    ours = F.conv2d(x * style[:, :, None, None], weight, padding=1)
    torch.testing.assert_close(bias_act(ours, bias, scale=demodulation, noise=noise, strength=strength), published)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(channels_last: bool, backend: str) -> None:
    for use in (USES[0], USES[1], USES[4]):
        values, _ = make_inputs((2, 3, 2, 3), torch.float64, use, channels_last)
        names, leaves = list(values), [v.requires_grad_() for v in values.values()]
        with use_backend(backend):
            assert torch.autograd.gradcheck(lambda *t, names=names: bias_act(**dict(zip(names, t, strict=True))), leaves)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_double_backward_is_exact(channels_last: bool) -> None:
    """From the kernels as well: the backward of a graph to be differentiated is plain PyTorch."""
    for use in (USES[0], USES[1], USES[4]):
        values, _ = make_inputs((2, 3, 2, 2), torch.float64, use, channels_last)
        names, leaves = list(values), [v.requires_grad_() for v in values.values()]

        def f(*t: Tensor, names: list[str] = names) -> Tensor:
            return bias_act(**dict(zip(names, t, strict=True)))

        assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_penalties_as_in_training(dtype: torch.dtype) -> None:
    """R1 through two layers with a convolution between them, and the path length: as the reference's, gradients included."""
    values, grad = make_inputs((2, 8, 6, 6), dtype, USES[0])
    weight = torch.randn(8, 8, 3, 3, dtype=dtype)

    def step(backend: str) -> list[Tensor]:
        leaves = {k: v.detach().clone().requires_grad_() for k, v in values.items()}
        with use_backend(backend):
            hidden = F.conv2d(bias_act(**leaves), weight.to(dtype), padding=1)
            y = bias_act(**leaves | {"x": hidden}).pow(2)
            x_grad, scale_grad = torch.autograd.grad((y * grad).sum(), (leaves["x"], leaves["scale"]), create_graph=True)
            penalty = x_grad.square().sum() + (scale_grad.square().sum(1) + 1).sqrt().sum() + y.mean()
            return [penalty, *torch.autograd.grad(penalty, list(leaves.values()))]

    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
    torch.testing.assert_close(step("native"), step("reference"), **tolerance)


@pytest.mark.parametrize("needs", [n for n in itertools.product((False, True), repeat=5) if sum(n) in (0, 1, 4)])
def test_only_the_gradients_asked_for(needs: tuple[bool, ...]) -> None:
    values, grad = make_inputs((2, 5, 3, 4), torch.float64, USES[0])
    all_of_them = run(values, grad, torch.float64, "reference")
    for create_graph in (False, True):
        leaves = {k: v.detach().requires_grad_(need) for (k, v), need in zip(values.items(), needs, strict=True)}
        y = bias_act(**leaves)
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        assert y.requires_grad == bool(wanted)
        found = torch.autograd.grad(y, list(wanted.values()), grad, create_graph=create_graph) if wanted else ()
        for name, value in zip(wanted, found, strict=True):
            torch.testing.assert_close(value.detach(), all_of_them[f"grad_{name}"])


def test_x_is_kept_for_the_scale_alone() -> None:
    values, _ = make_inputs((2, 5, 3, 4), torch.float32, USES[0])
    for names, kept in ((("x", "bias", "strength"), False), (("x", "scale"), True)):
        leaves = {k: v.detach().requires_grad_(k in names) for k, v in values.items()}
        found: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, found=found: found.append(t) or t, lambda t: t):
            bias_act(**leaves)
        assert (leaves["x"].data_ptr() in [t.data_ptr() for t in found]) == kept


def test_opcheck() -> None:
    assert extension.ensure_loaded()
    ops = torch.ops.mixsyn_fast
    for use, channels_last in ((USES[0], True), (USES[2], False)):
        values, grad = make_inputs((2, 8, 4, 4), torch.float32, use, channels_last)
        leaves = [values[name].requires_grad_() if name in values else None for name in NAMES]
        torch.library.opcheck(ops.bias_act.default, (*leaves, 0.2, 2**0.5))
        y = values["x"].detach()
        grad, x, scale = torch.empty_like(y).copy_(grad), y if use[1] else None, values.get("scale")
        scale = None if scale is None else scale.detach()
        torch.library.opcheck(ops.bias_act_backward.default, (grad, y, x, scale, 0.2, 1.5, use[2]))


def test_compiles_without_graph_break() -> None:
    values, _ = make_inputs((2, 8, 4, 4), torch.float32, USES[0])
    leaves = [v.requires_grad_() for v in values.values()]

    def step(*t: Tensor) -> Tensor:
        x, bias, scale, noise, strength = t
        return bias_act(x * 2, bias, scale=scale, noise=noise, strength=strength).sin()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), step(*leaves))
    grads = [torch.autograd.grad(f(*leaves).pow(2).sum(), leaves) for f in (compiled, step)]
    torch.testing.assert_close(grads[0], grads[1])


def test_autocast_keeps_the_dtype_of_x() -> None:
    values, _ = make_inputs((1, 8, 4, 4), torch.float32, USES[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert bias_act(**values).dtype == torch.float32
        mixed = values | {"x": values["x"].bfloat16()}  # a convolution's result; parameters stay float32
        assert bias_act(**mixed).dtype == torch.bfloat16
    parameters = {k: v.double() if k != "noise" else v.bfloat16().double() for k, v in values.items()}
    exact = bias_act(**parameters | {"x": mixed["x"].double()})
    with use_backend("reference"):
        assert_within_rule(bias_act(**mixed), bias_act(**mixed), exact)


def test_any_strides() -> None:
    values, grad = make_inputs((2, 6, 5, 4), torch.float64, USES[0])
    expected = run(values, grad, torch.float64, "native")
    for x in (values["x"].transpose(2, 3).contiguous().transpose(2, 3), values["x"].repeat(1, 2, 1, 1)[:, :6]):
        leaf = x.detach().requires_grad_()
        y = bias_act(**values | {"x": leaf})
        torch.testing.assert_close(y, expected["y"])
        torch.testing.assert_close(torch.autograd.grad(y, leaf, grad)[0], expected["grad_x"])
    leaf = values["x"].detach().requires_grad_()
    y = bias_act(**values | {"x": leaf, "noise": values["noise"].transpose(2, 3).contiguous().transpose(2, 3)})
    torch.testing.assert_close(y, expected["y"])
    y.sum().backward()  # an expanded gradient from above
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3), (2, 4, 3, 0)], ids=str)
def test_empty_sizes(shape: tuple[int, ...], backend: str) -> None:
    values, grad = make_inputs(shape, torch.float32, USES[0])
    found = run(values, grad, torch.float32, backend)
    assert found["y"].shape == shape
    for name in values:
        assert found[f"grad_{name}"].shape == values[name].shape and not bool(found[f"grad_{name}"].any())


def test_nan_stays_where_it_is() -> None:
    values, grad = make_inputs((2, 5, 3, 4), torch.float32, USES[0])
    values["x"][1, 2, 0, 3] = float("nan")
    for layout in (torch.channels_last, torch.contiguous_format):
        found = run(values | {"x": values["x"].contiguous(memory_format=layout)}, grad, torch.float32, "native")
        assert found["y"].isnan().nonzero().tolist() == [[1, 2, 0, 3]]
        assert found["grad_scale"].isnan().nonzero().tolist() == [[1, 2]]
        assert not any(bool(found[name].isnan().any()) for name in ("grad_x", "grad_bias", "grad_noise", "grad_strength"))


@given(st.data())
def test_any_size(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))))
    use = data.draw(st.tuples(*[st.booleans()] * 4))
    values, grad = make_inputs(shape, torch.float64, use, data.draw(st.booleans()))
    kernel, reference = (run(values, grad, torch.float64, backend) for backend in ("native", "reference"))
    for name, value in reference.items():
        torch.testing.assert_close(kernel[name], value, rtol=1e-11, atol=1e-11)


def test_repeats_and_thread_counts_are_bitwise_equal() -> None:
    threads = torch.get_num_threads()
    for channels_last in (True, False):
        values, grad = make_inputs((2, 64, 48, 40), torch.float32, USES[0], channels_last)
        first = run(values, grad, torch.float32, "native")
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                again = run(values, grad, torch.float32, "native")
                assert all(torch.equal(again[name], first[name]) for name in ("y", "grad_x", "grad_bias", "grad_scale"))
        finally:
            torch.set_num_threads(threads)


def test_bodies_that_run_without_the_extension() -> None:
    """The Python bodies of the ops, which kernels override: the same results."""
    values, grad = make_inputs((2, 6, 3, 4), torch.float64, USES[0])
    arguments = (*values.values(), 0.2, 1.5)
    body = op_module._forward_body(*arguments)
    assert body.stride() == values["x"].stride()
    torch.testing.assert_close(op_module._OP.native.forward(*arguments), body)
    torch.testing.assert_close(body, bias_act_reference(*arguments))
    grad = torch.empty_like(body).copy_(grad)
    for x, scale, per_pixel in itertools.product((values["x"], None), (values["scale"], None), (True, False)):
        backward = (grad, body, x, scale, 0.2, 1.5, per_pixel)
        torch.testing.assert_close(op_module._OP.native.backward(*backward), op_module._backward_body(*backward))


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """The paths that this machine would not take."""
    code = (
        "import tests.ops.test_bias_act as t\n"
        "for dtype in t.DTYPES:\n"
        "    for shape in (*t.SHAPES[::2], t.SHAPES[5]):\n"
        "        for channels_last in (True, False):\n"
        "            t.test_kernels_follow_the_reference(dtype, shape, channels_last)\n"
        "t.test_nan_stays_where_it_is()\n"
        "print('followed')\n"
    )
    processes.run_on(instruction_set, code)


GOOD: dict[str, Any] = {
    "x": torch.zeros(2, 4, 3, 5),
    "bias": torch.zeros(4),
    "scale": torch.zeros(2, 4),
    "noise": torch.zeros(2, 1, 3, 5),
    "strength": torch.zeros(1),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(4, 3, 5)}, ValueError, r"bias_act: x: expected shape \(B, C, H, W\), got shape \(4, 3, 5\)"),
        ({"x": torch.zeros(2, 4, 3, 5).int()}, TypeError, "x: expected float32"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias: expected shape \(4,\), got shape \(5,\)"),
        ({"bias": torch.zeros(4).int()}, TypeError, "bias: expected a floating dtype"),
        ({"scale": torch.zeros(1, 4)}, ValueError, r"scale: expected shape \(2, 4\)"),
        ({"scale": torch.zeros(2, 4, device="meta")}, ValueError, "scale: expected device cpu"),
        ({"noise": torch.zeros(3, 1, 3, 5)}, ValueError, r"noise: expected shape \(1, 1, 3, 5\) or \(2, 1, 3, 5\)"),
        ({"noise": torch.zeros(2, 3, 5)}, ValueError, "noise: expected shape"),
        ({"strength": torch.zeros(())}, ValueError, r"strength: expected shape \(1,\), got shape \(\)"),
        ({"strength": None}, ValueError, "noise and strength: expected both or neither, got noise only"),
        ({"noise": None}, ValueError, "noise and strength: expected both or neither, got strength only"),
        ({"slope": 0.0}, ValueError, "slope: expected a finite positive number, got 0.0"),
        ({"slope": -0.2}, ValueError, "slope: expected a finite positive number"),
        ({"gain": float("inf")}, ValueError, "gain: expected a finite positive number, got inf"),
        ({"gain": "2"}, TypeError, "gain: expected a finite positive number"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bias_act(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 4, 15)}, r"x: expected shape \(B, C, H, W\), got shape \(2, 4, 15\)"),
        ({"x": torch.zeros(2, 4, 5, 3).transpose(2, 3)}, "x: expected contiguous or channels_last memory"),
        (
            {k: GOOD["x"].long() if k == "x" else None for k in GOOD},
            "x: expected float64, float32, float16 or bfloat16, got Long",
        ),
        ({"bias": torch.zeros(5)}, r"bias: expected shape \(4\)"),
        ({"bias": torch.zeros(4).half()}, "bias: expected Float"),
        ({"scale": torch.zeros(4, 2).t()}, "scale: expected contiguous memory"),
        ({"noise": torch.zeros(3, 1, 3, 5)}, "noise: expected 1 or B rows, got 3"),
        ({"noise": torch.zeros(2, 1, 3, 5).half()}, "noise: expected Float"),
        ({"strength": None}, "noise and strength: expected both or neither"),
        ({"strength": torch.zeros(2)}, r"strength: expected shape \(1\)"),
    ],
)
def test_the_forward_itself_checks(change: dict[str, Any], words: str) -> None:
    assert extension.ensure_loaded()
    with pytest.raises(RuntimeError, match="mixsyn_fast::bias_act: " + words):
        torch.ops.mixsyn_fast.bias_act(*(GOOD | change).values(), 0.2, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grad": torch.zeros(2, 4, 15)}, r"grad: expected shape \(B, C, H, W\)"),
        ({"y": torch.zeros(2, 4, 3, 4)}, r"y: expected shape \(2, 4, 3, 5\)"),
        ({"y": torch.zeros(2, 4, 3, 5).double()}, "y: expected Float"),
        ({"x": torch.zeros(2, 3, 5, 4).permute(0, 3, 1, 2)}, "x: expected the memory layout of the first tensor"),
        ({"scale": torch.zeros(4)}, r"scale: expected shape \(2, 4\)"),
    ],
)
def test_the_backward_itself_checks(change: dict[str, Any], words: str) -> None:
    assert extension.ensure_loaded()
    good = {"grad": GOOD["x"], "y": GOOD["x"], "x": GOOD["x"], "scale": GOOD["scale"]}
    with pytest.raises(RuntimeError, match="mixsyn_fast::bias_act_backward: " + words):
        torch.ops.mixsyn_fast.bias_act_backward(*(good | change).values(), 0.2, 1.0, False)
