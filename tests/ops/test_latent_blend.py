"""latent_blend on the CPU: kernels against the float64 reference and the published form, gradients, sizes, errors."""

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
from mixsyn_fast.ops.latent_blend import StyleLayer, StyleLayout, latent_blend, latent_blend_reference
from tests import processes
from tests.compare import assert_within_rule, relative_error

op_module = sys.modules["mixsyn_fast.ops.latent_blend"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# every group size from one to the whole row, widths that fill no vector, one layer only
LAYOUTS = {
    "stylegan2": (StyleLayout.stylegan2(), 512),
    "small": (StyleLayout.of([16, 16, 8, 4, 2, 1], [16, 4]), 16),
    "odd": (StyleLayout.of([3, 12, 6, 1], [2, 4]), 12),
    "wide": (StyleLayout.of([35, 70]), 70),
    "one": (StyleLayout.of([], [5]), 5),
}
NAMES = ("blended", "q", "a", "b", "logits")


def make_inputs(layout: StyleLayout, depth: int, batch: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """a, b and logits drawn in float64, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(layout.size + batch)
    sizes = [(batch, layout.size), (batch, layout.size), (batch, len(layout.layers), depth)]
    a, b, logits = (torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype) for size in sizes)
    return [a, b, logits * 4]


def published(a: Tensor, b: Tensor, logits: Tensor, layout: StyleLayout, q_on: str) -> Tensor:
    """Upsample, blend at full depth, max-pool back, layer by layer."""
    depth = logits.shape[2]
    parts = []
    for layer, (first, second) in enumerate(zip(a.split(layout.channels, 1), b.split(layout.channels, 1), strict=True)):
        q = torch.sigmoid(logits[:, layer])
        up_a, up_b = (F.interpolate(v[:, None], size=depth, mode="nearest")[:, 0] for v in (first, second))
        mixed = up_a + q * (up_b - up_a) if q_on == "b" else up_b + q * (up_a - up_b)
        parts.append(mixed.unflatten(1, (first.shape[1], depth // first.shape[1])).amax(2))  # max_pool1d wants a batch
    return torch.cat(parts, 1)


def run(values: list[Tensor], layout: StyleLayout, dtype: torch.dtype, backend: str, q_on: str) -> list[Tensor]:
    """Both results and the gradients of all inputs, in ``dtype`` on values that were rounded before."""
    leaves = [v.to(dtype).detach().requires_grad_() for v in values]
    with use_backend(backend):
        blended, q = latent_blend(*leaves, layout, q_on=q_on, return_q=True)
        weights = [torch.linspace(-1, 2, q.numel(), dtype=torch.float64).view_as(q).to(dtype) for _ in range(2)]
        grads = torch.autograd.grad([blended, q], leaves, [weights[0], weights[1].flip(1)])
    return [blended, q, *grads]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("q_on", ["a", "b"])
def test_kernels_follow_the_reference(dtype: torch.dtype, name: str, q_on: str) -> None:
    layout, depth = LAYOUTS[name]
    values = make_inputs(layout, depth, dtype=dtype)
    exact = run(values, layout, torch.float64, "reference", q_on)
    reference = run(values, layout, dtype, "reference", q_on)
    kernel = run(values, layout, dtype, "native", q_on)
    for part, ours, theirs, value in zip(NAMES, kernel, reference, exact, strict=True):
        assert ours.dtype == dtype and ours.is_contiguous()
        assert_within_rule(ours, theirs, value, part)
        if part == "logits":  # the same logits take the gradient; it may vanish where a sigmoid is saturated
            assert bool((ours != 0)[theirs.abs() > 1e-3].all()) and bool((theirs != 0)[ours.abs() > 1e-3].all())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("q_on", ["a", "b"])
def test_equals_blending_at_full_depth_and_pooling(name: str, q_on: str) -> None:
    """docs/ops/latent_blend.md: difference zero, in the reference and in the kernel."""
    layout, depth = LAYOUTS[name]
    a, b, logits = make_inputs(layout, depth)
    expected = published(a, b, logits, layout, q_on)
    with use_backend("reference"):
        reference = latent_blend(a, b, logits, layout, q_on=q_on)
    # torch's sigmoid rounds otherwise in the rest that fills no vector, so only full vectors can be equal bit for bit
    assert torch.equal(reference, expected) if name == "stylegan2" else relative_error(reference, expected) < 1e-15
    ours = latent_blend(a, b, logits, layout, q_on=q_on)
    assert relative_error(ours, expected) < 1e-15
    # the kernel's own sigmoid: blend at full depth with the kernel, then pool
    full = StyleLayout.of([depth] * len(layout.layers))

    def upsampled(code: Tensor) -> Tensor:
        parts = [v.repeat_interleave(depth // v.shape[1], 1) for v in code.split(layout.channels, 1)]
        return torch.cat(parts, 1)

    deep = latent_blend(upsampled(a), upsampled(b), logits, full, q_on=q_on).split(depth, 1)
    pooled = torch.cat([F.max_pool1d(d, depth // c) for d, c in zip(deep, layout.channels, strict=True)], 1)
    assert torch.equal(ours, pooled)


@given(st.data())
def test_any_layout(data: st.DataObject) -> None:
    depth = data.draw(st.sampled_from([1, 7, 12, 16, 48, 64]))
    divisors = [c for c in range(1, depth + 1) if depth % c == 0]
    kinds = st.builds(StyleLayer, st.sampled_from(divisors), st.sampled_from(["conv", "rgb"]))
    layout = StyleLayout(tuple(data.draw(st.lists(kinds, min_size=1, max_size=6))))
    batch = data.draw(st.integers(0, 3))
    q_on = data.draw(st.sampled_from(["a", "b"]))
    a, b, logits = make_inputs(layout, depth, batch)
    if data.draw(st.booleans()):  # many equal logits and equal codes
        a, b, logits = a.round(), b.round(), logits.round()
    ours, q = latent_blend(a, b, logits, layout, q_on=q_on, return_q=True)
    assert relative_error(ours, published(a, b, logits, layout, q_on)) < 1e-14
    with use_backend("reference"):
        assert relative_error(q, latent_blend(a, b, logits, layout, q_on=q_on, return_q=True)[1]) < 1e-14
    for kernel, reference in zip(
        run([a, b, logits], layout, torch.float64, "native", q_on),
        run([a, b, logits], layout, torch.float64, "reference", q_on),
        strict=True,
    ):
        torch.testing.assert_close(kernel, reference, rtol=1e-11, atol=1e-13)  # 1 - q of the reference cancels


@pytest.mark.parametrize("q_on", ["a", "b"])
def test_equal_codes_and_equal_logits(q_on: str) -> None:
    """a == b counts as "not above"; of equal logits the first takes the gradient."""
    layout = StyleLayout.of([2])
    a = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    logits = torch.tensor([[[2.0, -3.0, 5.0, -3.0, 1.0, 1.0, 1.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    for backend in ("native", "reference"):
        with use_backend(backend):
            blended, q = latent_blend(a, a, logits, layout, q_on=q_on, return_q=True)
            assert torch.equal(blended, a)
            assert relative_error(q, torch.sigmoid(torch.tensor([[-3.0 if q_on == "b" else 5.0, 1.0]]))) < 1e-7
            (grad,) = torch.autograd.grad(q.sum(), logits)
            assert grad.nonzero()[:, 2].tolist() == [1 if q_on == "b" else 2, 4]


def test_one_layer_by_hand() -> None:
    layout = StyleLayout.of([2])
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    zero, three = torch.log(torch.tensor([1.0, 3.0])).tolist()  # sigmoid: 1/2 and 3/4
    logits = torch.tensor([[[zero, three, zero, three]]])
    # on b: rises with the largest q, falls with the smallest; on a the other way round
    torch.testing.assert_close(latent_blend(a, b, logits, layout), torch.tensor([[0.75, 0.5]]))
    torch.testing.assert_close(latent_blend(a, b, logits, layout, q_on="a"), torch.tensor([[0.5, 0.75]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_saturated_sigmoids(dtype: torch.dtype, backend: str) -> None:
    layout = StyleLayout.of([64, 32])
    extremes = torch.tensor([-float("inf"), -6e4, -200.0, 200.0, 6e4, float("inf")], dtype=dtype)
    logits = extremes.repeat(22)[: 2 * 64].view(1, 2, 64).requires_grad_()
    a, b = (torch.randn(1, 96).to(dtype).requires_grad_() for _ in range(2))
    with use_backend(backend):
        blended, q = latent_blend(a, b, logits, layout, return_q=True)
        grads = torch.autograd.grad(blended.sum() + q.sum(), (a, b, logits))
    assert bool(((q.double() < 1e-30) | (q == 1)).all()) and bool((q == 1).any()) and bool((q < 0.5).any())
    torch.testing.assert_close(blended, torch.where(q == 1, b, a), atol=1e-6, rtol=1e-2)
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    torch.testing.assert_close(grads[0] + grads[1], torch.ones_like(a))
    assert float(grads[2].abs().max()) < 1e-30


def test_the_kernels_sigmoid_is_accurate_everywhere() -> None:
    """Relative accuracy down to the denormal numbers, where a poor exponential would show."""
    layout = StyleLayout.of([512])
    for dtype, lowest, limit in ((torch.float32, -104.0, 5e-7), (torch.float64, -700.0, 5e-16)):
        logits = torch.linspace(lowest, 40, 512 * 40, dtype=torch.float64).to(dtype).view(40, 1, 512)
        zeros, ones = torch.zeros(40, 512, dtype=dtype), torch.ones(40, 512, dtype=dtype)
        q = latent_blend(zeros, ones, logits, layout, return_q=True)[1].double()
        exact = torch.sigmoid(logits[:, 0].double())
        normal = exact > torch.finfo(dtype).tiny
        assert float(((q - exact) / exact)[normal].abs().max()) < limit
        assert float((q - exact)[~normal].abs().max() if bool((~normal).any()) else 0) < 1e-44


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("q_on", ["a", "b"])
def test_nan_reaches_its_own_channel_only(dtype: torch.dtype, backend: str, q_on: str) -> None:
    layout = StyleLayout.of([8, 8], [4])
    for position, channel in (((1, 0, 3), 3), ((1, 1, 0), 8), ((1, 2, 4), 18), ((1, 2, 5), 18)):
        a, b, logits = (t.to(dtype) for t in make_inputs(layout, 8))
        logits[position] = float("nan")
        with use_backend(backend):
            for t in latent_blend(a, b, logits, layout, q_on=q_on, return_q=True):
                assert t.isnan().nonzero().tolist() == [[1, channel]]
    a, b, logits = (t.to(dtype) for t in make_inputs(layout, 8))
    a[2, 5] = float("nan")
    with use_backend(backend):
        blended, q = latent_blend(a, b, logits, layout, q_on=q_on, return_q=True)
    assert blended.isnan().nonzero().tolist() == [[2, 5]] and not bool(q.isnan().any())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("q_on", ["a", "b"])
def test_gradcheck(backend: str, q_on: str) -> None:
    layout = StyleLayout.of([6, 3], [2, 6])
    leaves = [t.requires_grad_() for t in make_inputs(layout, 6, 2)]
    with use_backend(backend):
        for parts in (slice(0, 1), slice(1, 2), slice(0, 2)):

            def f(*leaves: Tensor, parts: slice = parts) -> tuple[Tensor, ...]:
                return latent_blend(*leaves, layout, q_on=q_on, return_q=True)[parts]

            assert torch.autograd.gradcheck(f, leaves)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)))
def test_only_the_gradients_asked_for(needs: tuple[bool, bool, bool]) -> None:
    layout, depth = LAYOUTS["small"]
    leaves = [t.requires_grad_(need) for t, need in zip(make_inputs(layout, depth), needs, strict=True)]
    blended = latent_blend(*leaves, layout)
    assert blended.requires_grad == any(needs)
    if any(needs):
        blended.sum().backward()
    assert tuple(leaf.grad is not None for leaf in leaves) == needs


def test_without_the_gradient_of_the_code_an_infinite_code_does_no_harm() -> None:
    layout = StyleLayout.of([4])
    a, b, logits = make_inputs(layout, 8)
    a[0, 0] = float("inf")
    logits.requires_grad_()
    latent_blend(a, b, logits, layout, return_q=True)[1].sum().backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_double_backward_is_a_clear_error_and_the_reference_has_it() -> None:
    layout = StyleLayout.of([4, 2])
    leaves = [t.requires_grad_() for t in make_inputs(layout, 4, 2)]
    (first,) = torch.autograd.grad(latent_blend(*leaves, layout).pow(2).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match='use_backend\\("reference"\\)'):
        torch.autograd.grad(first.sum(), leaves[0])
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(lambda *t: latent_blend(*t, layout, return_q=True), leaves)


def test_opcheck() -> None:
    assert extension.ensure_loaded()
    layout, depth = LAYOUTS["small"]
    for dtype, q_on_b in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        leaves = [t.requires_grad_() for t in make_inputs(layout, depth, dtype=dtype)]
        settings_of = (list(layout.channels), q_on_b)
        torch.library.opcheck(torch.ops.mixsyn_fast.latent_blend.default, (*leaves, *settings_of))
        plain = [t.detach() for t in leaves]
        for grads in ((plain[0], plain[1]), (plain[0], None), (None, plain[1])):
            torch.library.opcheck(torch.ops.mixsyn_fast.latent_blend_backward.default, (*grads, *plain, *settings_of))


def test_compiles_without_graph_break() -> None:
    layout, depth = LAYOUTS["small"]
    leaves = [t.requires_grad_() for t in make_inputs(layout, depth, dtype=torch.float32)]

    def step(a: Tensor, b: Tensor, logits: Tensor) -> Tensor:
        blended, q = latent_blend(a * 2, b, logits, layout, return_q=True)
        return blended.sin() + latent_blend(b, a, logits, layout, q_on="a") + q

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), step(*leaves))
    grads = [torch.autograd.grad(f(*leaves).pow(2).sum(), leaves) for f in (compiled, step)]
    torch.testing.assert_close(grads[0], grads[1])


def test_any_strides() -> None:
    layout, depth = LAYOUTS["odd"]
    a, b, logits = make_inputs(layout, depth, 3)
    expected = run([a, b, logits], layout, torch.float64, "native", "b")
    wide = torch.randn(6, 2 * layout.size, dtype=torch.float64)
    views = {
        "every other": (wide.clone()[::2, ::2], torch.randn(3, len(layout.layers), 3 * depth).double()[:, :, ::3]),
        "transposed": (wide.clone().t().contiguous().t()[:3, : layout.size], logits.clone().permute(2, 0, 1).contiguous()),
        "slice": (wide.clone()[1:4, 5 : 5 + layout.size], torch.randn(3, 9, depth).double()[:, 2 : 2 + len(layout.layers)]),
    }
    for name, (view, deep) in views.items():
        deep = deep.permute(1, 2, 0) if name == "transposed" else deep
        view.copy_(a)
        deep.copy_(logits)
        assert not view.is_contiguous() and not deep.is_contiguous()
        for ours, theirs in zip(run([view, b, deep], layout, torch.float64, "native", "b"), expected, strict=True):
            assert torch.equal(ours, theirs), name
    # an expanded gradient from above
    leaf = a.clone().requires_grad_()
    latent_blend(leaf, b, logits, layout).sum().backward()
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("layout", "batch"), [(StyleLayout.of([4, 2]), 0), (StyleLayout(()), 2), (StyleLayout(()), 0)])
def test_empty_sizes(layout: StyleLayout, batch: int, backend: str) -> None:
    leaves = [t.requires_grad_() for t in make_inputs(layout, 4, batch)]
    with use_backend(backend):
        blended, q = latent_blend(*leaves, layout, return_q=True)
        assert blended.shape == q.shape == (batch, layout.size)
        grads = torch.autograd.grad(blended.sum() + q.sum(), leaves)
    assert [g.shape for g in grads] == [leaf.shape for leaf in leaves]


def test_repeats_and_thread_counts_are_bitwise_equal() -> None:
    layout, depth = LAYOUTS["stylegan2"]
    values = make_inputs(layout, depth, 8, torch.float32)
    first = run(values, layout, torch.float32, "native", "b")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, run(values, layout, torch.float32, "native", "b"), first))
    finally:
        torch.set_num_threads(threads)


def test_bodies_that_run_without_the_extension() -> None:
    """The Python bodies of the ops, which kernels override: the same results."""
    layout, depth = LAYOUTS["odd"]
    a, b, logits = make_inputs(layout, depth)
    for q_on_b in (False, True):
        arguments = (a, b, logits, list(layout.channels), q_on_b)
        torch.testing.assert_close(op_module._OP.native.forward(*arguments), latent_blend_reference(*arguments))
        for grads in ((a, b), (a, None), (None, b)):
            torch.testing.assert_close(
                op_module._OP.native.backward(*grads, *arguments), op_module._backward_reference(*grads, *arguments)
            )


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """The paths that this machine would not take."""
    code = (
        "import torch\n"
        "import tests.ops.test_latent_blend as t\n"
        "for dtype in t.DTYPES:\n"
        "    for name in t.LAYOUTS:\n"
        "        for q_on in 'ab':\n"
        "            t.test_kernels_follow_the_reference(dtype, name, q_on)\n"
        "    t.test_nan_reaches_its_own_channel_only(dtype, 'native', 'b')\n"
        "    t.test_saturated_sigmoids(dtype, 'native')\n"
        "t.test_the_kernels_sigmoid_is_accurate_everywhere()\n"
        "print('followed')\n"
    )
    processes.run_on(instruction_set, code)


GOOD: dict[str, Any] = {
    "a": torch.zeros(2, 6),
    "b": torch.zeros(2, 6),
    "logits": torch.zeros(2, 2, 8),
    "layout": StyleLayout.of([4], [2]),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"a": torch.zeros(2, 5)}, ValueError, r"latent_blend: a: expected shape \(B, 6\), got shape \(2, 5\)"),
        ({"a": torch.zeros(2, 6, 1)}, ValueError, "a: expected shape"),
        ({"a": torch.zeros(2, 6, dtype=torch.int32)}, TypeError, "a: expected float32"),
        ({"b": torch.zeros(1, 6)}, ValueError, r"b: expected shape \(2, 6\)"),
        ({"b": torch.zeros(2, 6, dtype=torch.float64)}, TypeError, "b: expected torch.float32 as a"),
        ({"b": torch.zeros(2, 6, device="meta")}, ValueError, "b: expected device cpu"),
        ({"logits": torch.zeros(2, 8)}, ValueError, r"logits: expected shape \(2, 2, D\)"),
        ({"logits": torch.zeros(2, 3, 8)}, ValueError, r"logits: expected shape \(2, 2, D\)"),
        ({"logits": torch.zeros(1, 2, 8)}, ValueError, r"logits: expected shape \(2, 2, D\)"),
        ({"logits": torch.zeros(2, 2, 6)}, ValueError, "multiple of the 4 channels of layer 0, got 6"),
        ({"logits": torch.zeros(2, 2, 0)}, ValueError, "multiple of the 4 channels"),
        ({"logits": torch.zeros(2, 2, 8).half()}, TypeError, "logits: expected torch.float32 as a"),
        ({"logits": torch.zeros(2, 2, 8, device="meta")}, ValueError, "logits: expected device cpu"),
        ({"layout": [4, 2]}, TypeError, "layout: expected a StyleLayout, got list"),
        ({"q_on": "c"}, ValueError, "q_on: expected 'a' or 'b', got 'c'"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        latent_blend(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": [4, 3]}, "channels: expected divisors of the last dimension of logits, 8, got 3"),
        ({"channels": [4, 0]}, "channels: expected divisors"),
        ({"channels": [4, 4]}, r"a: expected shape \(\*, 8\)"),
        ({"channels": [4, 1, 1]}, r"logits: expected shape \(2, 3, \*\)"),
        ({"b": torch.zeros(2, 5)}, r"b: expected shape \(2, 6\)"),
        ({"b": torch.zeros(2, 6).half()}, "b: expected Float"),
        ({"a": torch.zeros(6, 2).t()}, "contiguous memory"),
        ({"grad": torch.zeros(2, 5)}, r"grad: expected shape \(2, 6\)"),
        ({"grad_q": torch.zeros(2, 6).double()}, "grad_q: expected Float"),
    ],
)
def test_the_kernels_check_for_themselves(change: dict[str, Any], words: str) -> None:
    assert extension.ensure_loaded()
    arguments = {k: GOOD[k] for k in ("a", "b", "logits")} | {"channels": [4, 2], "q_on_b": True}
    backward = {"grad": None, "grad_q": None} | arguments | change
    with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend_backward: .*" + words):
        torch.ops.mixsyn_fast.latent_blend_backward(**backward)
    if not any(name.startswith("grad") for name in change):
        with pytest.raises(RuntimeError, match="mixsyn_fast::latent_blend: .*" + words):
            torch.ops.mixsyn_fast.latent_blend(**(arguments | change))


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_stylegan2_layouts() -> None:
    layout = StyleLayout.stylegan2()
    assert len(layout.conv_layers) == 17 and len(layout.rgb_layers) == 9
    assert sum(layout.channels[:17]) == 6048 and sum(layout.channels[17:]) == 3040 and layout.size == 9088
    assert layout.channels[:17] == (512,) * 10 + (256, 256, 128, 128, 64, 64, 32)
    assert layout.channels[17:] == (512,) * 5 + (256, 128, 64, 32)
    assert layout.offsets[0] == 0 and layout.offsets[17] == 6048
    small = StyleLayout.stylegan2(256, 1)
    assert small.channels == (512,) * 8 + (256, 256, 128, 128, 64) + (512,) * 4 + (256, 128, 64)
    assert StyleLayout.stylegan2(4).channels == (512, 512)
    assert StyleLayout.stylegan2() == layout and hash(StyleLayout.stylegan2()) == hash(layout)


def test_pack_and_split() -> None:
    layout = StyleLayout((StyleLayer(4), StyleLayer(2, "rgb"), StyleLayer(3)))
    assert layout.conv_layers == (0, 2) and layout.rgb_layers == (1,) and layout.offsets == (0, 4, 6)
    conv, rgb = [torch.randn(5, 4), torch.randn(5, 1, 3, 1, 1)], [torch.randn(5, 2)]
    code = layout.pack(conv, rgb)
    assert code.shape == (5, 9) and torch.equal(code[:, 4:6], rgb[0]) and torch.equal(code[:, 6:], conv[1].flatten(1))
    convs, rgbs = layout.split(code)
    assert [t.shape[1] for t in convs] == [4, 3] and torch.equal(layout.pack(convs, rgbs), code)
    assert layout.select([2, 1]).channels == (3, 2) and layout.select([2, 1]).rgb_layers == (1,)
    assert StyleLayout(()).split(torch.zeros(2, 0)) == ([], [])


def test_bad_layouts() -> None:
    layout = StyleLayout.of([4, 3], [2])
    for bad, words in (
        (lambda: StyleLayer(0), "channels: expected an integer of at least 1, got 0"),
        (lambda: StyleLayer(4, "style"), "kind: expected 'conv' or 'rgb', got 'style'"),
        (lambda: StyleLayout.stylegan2(1000), "size: expected a power of two"),
        (lambda: StyleLayout.stylegan2(64, 0), "channel_multiplier: expected an integer"),
        (lambda: layout.pack([torch.zeros(1, 4)], [torch.zeros(1, 2)]), "conv: expected 2 vectors, got 1"),
        (lambda: layout.pack([torch.zeros(1, 4), torch.zeros(1, 4)], [torch.zeros(1, 2)]), "layer 1 .conv.: expected"),
        (lambda: layout.split(torch.zeros(1, 8)), r"code: expected shape \(B, 9\), got \(1, 8\)"),
        (lambda: StyleLayout(()).pack([]), "expected at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
    with pytest.raises(TypeError, match="expected StyleLayer objects, got int"):
        StyleLayout((4, 2))  # type: ignore[arg-type]
