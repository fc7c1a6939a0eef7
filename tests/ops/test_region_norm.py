"""region_norm on the CPU: kernels against the float64 reference, gradients, layouts, sizes, errors."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixsyn_fast import extension, region_norm, use_backend
from mixsyn_fast.ops.region_norm import (
    NORM_BATCH,
    NORM_GIVEN,
    NORM_GROUP,
    NORM_INSTANCE,
    NORM_NONE,
    channel_moments,
)
from tests import processes
from tests.compare import assert_within_rule, relative_error

SHAPES = [(2, 64, 8, 8), (1, 5, 7, 3), (3, 33, 5, 40), (2, 96, 33, 33)]
NAMES = ("x", "table", "scale", "shift", "noise_scale", "weight", "bias")


def make_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, *, rows: int = 9, channels_last: bool = True
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Inputs drawn in float64, rounded to ``dtype``; the index, and the gradient that comes from above."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(hash(shape) % 1000)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    values = {
        "x": draw(*shape) * 2 + 3,
        "table": draw(rows, 2 * channels),
        "scale": draw(*shape),
        "shift": draw(*shape),
        "noise": draw(batch, 1, height, width),
        "noise_scale": draw(channels),
        "weight": draw(channels),
        "bias": draw(channels),
    }
    index = torch.randint(0, rows, (batch, height, width), dtype=torch.int32, generator=generator)
    index[:, : height // 2] = 3  # runs of one row, and row 8 may be absent
    grad = draw(*shape)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    values = {k: v.to(dtype) for k, v in values.items()}
    values["x"] = values["x"].contiguous(memory_format=layout)
    return values, index, grad.to(dtype)


def run(
    values: dict[str, Tensor],
    index: Tensor,
    grad: Tensor,
    dtype: torch.dtype,
    backend: str,
    modulation: str,
    norm: str,
    noise: bool,
    slope: float | None,
    **more: Any,
) -> dict[str, Tensor | None]:
    """Forward and backward in ``dtype`` on values that were rounded before; ``affine=True`` in ``more``: of the norm."""
    leaves = {k: v.to(dtype).detach().requires_grad_(k in NAMES) for k, v in values.items()}
    affine = {"weight": leaves["weight"], "bias": leaves["bias"]} if more.pop("affine", False) else {}
    arguments: dict[str, Any] = {"norm": norm, "negative_slope": slope, **more, **affine}
    if modulation == "table":
        arguments |= {"index": index, "table": leaves["table"]}
    elif modulation == "maps":
        arguments |= {"scale": leaves["scale"], "shift": leaves["shift"]}
    if noise:
        arguments |= {"noise": leaves["noise"], "noise_scale": leaves["noise_scale"]}
    if norm == "batch":
        arguments["training"] = True
    with use_backend(backend):
        y = region_norm(leaves["x"], **arguments)
        y.backward(grad.to(dtype))
    return {"y": y, **{name: leaves[name].grad for name in NAMES}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_kernels_follow_the_reference(dtype: torch.dtype, shape: Any, channels_last: bool) -> None:
    values, index, grad = make_inputs(shape, dtype, channels_last=channels_last)
    cases = itertools.product(("table", "maps", "none"), ("instance", "batch", "none"), (False, True), (None, 0.2))
    for case in cases:
        if shape == SHAPES[-1] and case[2] == (case[3] is None):
            continue  # of the largest half: with noise and a slope, and without both
        exact = run(values, index, grad, torch.float64, "reference", *case)
        reference = run(values, index, grad, dtype, "reference", *case)
        kernel = run(values, index, grad, dtype, "native", *case)
        for name, value in exact.items():
            if value is None:
                assert kernel[name] is None
                continue
            assert_within_rule(kernel[name], reference[name], value, f"{case} {name}")  # type: ignore[arg-type]
        assert kernel["y"].stride() == values["x"].stride()  # type: ignore[union-attr]
        assert kernel["x"].stride() == values["x"].stride()  # type: ignore[union-attr]


# affine weight and bias, SiLU, groups of 1, 2, all channels, of channels that no vector divides
GROUPED = [((2, 64, 8, 8), 32), ((1, 6, 7, 3), 3), ((3, 33, 5, 40), 1), ((2, 24, 33, 33), 24)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_groups_affine_and_silu_follow_the_reference(dtype: torch.dtype, channels_last: bool) -> None:
    for (shape, groups), modulation in itertools.product(GROUPED, ("table", "maps", "none")):
        values, index, grad = make_inputs(shape, dtype, channels_last=channels_last)
        if modulation == "maps":  # which are rounded to x's type once more where the affine is folded in
            more: dict[str, Any] = {"num_groups": groups, "activation": "silu"}
        else:
            more = {"num_groups": groups, "activation": "silu", "affine": True}
        case = (modulation, "group", groups == 3, None)
        exact = run(values, index, grad, torch.float64, "reference", *case, **more)
        reference = run(values, index, grad, dtype, "reference", *case, **more)
        kernel = run(values, index, grad, dtype, "native", *case, **more)
        for name, value in exact.items():
            assert (value is None) == (kernel[name] is None)
            if value is not None:
                assert_within_rule(kernel[name], reference[name], value, f"{shape} {case} {name}")  # type: ignore[arg-type]


EXTREMES = (0.0, 1e-40, 1e-3, 1.2784645, 17.0, 86.9, 87.5, 100.0, 710.0, 1e30, float("inf"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_silu_of_any_number(dtype: torch.dtype, channels_last: bool) -> None:
    """SiLU and its derivative, limits included, in whole vectors and in their rests; a NaN of any bits stays one."""
    ends = torch.tensor(EXTREMES, dtype=torch.float64)
    numbers = torch.cat((ends, -ends, torch.linspace(-90, 90, 23 * 131 - 2 * len(ends), dtype=torch.float64)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = numbers.to(dtype).view(1, 23, 131, 1).contiguous(memory_format=layout).requires_grad_()
    with use_backend("native"):
        y = region_norm(x, norm="none", activation="silu")
        (slope,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double()
    v = exact.clamp(-1e4, 1e4)
    share = torch.sigmoid(v)
    curved = v * share * torch.sigmoid(-v)
    limits = torch.finfo(dtype)
    unit = limits.eps * (4 + v.abs().clamp(max=100))  # of exp the relative error grows with its argument
    least = max(1e-300 if dtype == torch.float64 else 1e-35, limits.smallest_normal * limits.eps)
    for found, expected, size in (
        (y, torch.where(exact > 1e4, exact, v * share), (v * share).abs()),
        (slope, share + curved, share + curved.abs()),
    ):
        wrong = ~((found.double() == expected) | ((found.double() - expected).abs() <= unit * size + least))
        assert not bool(wrong.any()), (exact[wrong], found[wrong], expected[wrong])
    if dtype == torch.float32:
        bits = torch.tensor([0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1, -0x400000], dtype=torch.int32).repeat(7)
        x = bits.view(torch.float32).view(1, 5, 7, 1).contiguous(memory_format=layout).requires_grad_()
        with use_backend("native"):
            y = region_norm(x, norm="none", activation="silu")
        assert bool(y.isnan().all()) and bool(torch.autograd.grad(y.sum(), x)[0].isnan().all())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("rows", [5, 40], ids=["few rows", "more than pixels"])
def test_scale_and_shift_per_sample(backend: str, rows: int) -> None:
    """As what stands behind the modulation, step by step: of one image and of three, gradients included."""
    for batch, modulation in itertools.product((1, 3), ("table", "maps", "none")):
        values, index, grad = make_inputs((batch, 12, 6, 5), torch.float64, rows=rows)
        values |= {"sample_scale": torch.randn(batch, 12).double(), "sample_shift": torch.randn(batch, 12).double()}
        affine = {"weight": values["weight"], "bias": values["bias"]} if modulation != "maps" else {}
        results = []
        for ours in (True, False):
            leaves = {k: v.detach().clone().requires_grad_() for k, v in values.items() if k != "noise"}
            given: dict[str, Any] = {"norm": "group", "num_groups": 3} | {k: leaves[k] for k in affine}
            if modulation == "table":
                given |= {"index": index, "table": leaves["table"]}
            elif modulation == "maps":
                given |= {"scale": leaves["scale"], "shift": leaves["shift"]}
            factor, addend = leaves["sample_scale"], leaves["sample_shift"]
            with use_backend(backend):
                if ours:
                    y = region_norm(leaves["x"], **given, activation="silu", sample_scale=factor, sample_shift=addend)
                else:
                    y = F.silu(region_norm(leaves["x"], **given) * factor[:, :, None, None] + addend[:, :, None, None])
                grads = torch.autograd.grad(y, list(leaves.values()), grad, allow_unused=True)
            results.append((y, *(g for g in grads if g is not None)))
        torch.testing.assert_close(*results)
    index[1, 2, 3] = rows
    words = rf"^region_norm: index: expected values in \[0, {rows}\), got {rows} at \(1, 2, 3\)$"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        given = {name: values[name] for name in ("table", "sample_scale", "sample_shift")}
        region_norm(values["x"], index, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("modulation", ["table", "maps", "none"])
def test_scale_and_shift_per_sample_in_every_precision(modulation: str, dtype: torch.dtype) -> None:
    values, index, grad = make_inputs((3, 12, 6, 5), dtype)
    factor, addend = (torch.randn(3, 12).to(dtype) for _ in "ab")
    case: Any = (modulation, "group", False, None)

    def results(precision: torch.dtype, backend: str) -> dict[str, Tensor | None]:
        given = {"sample_scale": factor.to(precision), "sample_shift": addend.to(precision)}
        return run(values, index, grad, precision, backend, *case, num_groups=3, activation="silu", **given)

    exact, reference, kernel = results(torch.float64, "reference"), results(dtype, "reference"), results(dtype, "native")
    for name, value in exact.items():
        assert (value is None) == (kernel[name] is None)
        if value is not None:
            assert_within_rule(kernel[name], reference[name], value, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_affine_of_other_norms(norm: str) -> None:
    """The row of all images: its gradient is a sum over them; with LeakyReLU."""
    for channels_last in (True, False):
        values, index, grad = make_inputs((3, 33, 5, 40), torch.float64, channels_last=channels_last)
        for modulation in ("table", "maps", "none"):
            case = (modulation, norm, True, 0.2)
            exact, kernel = (
                run(values, index, grad, torch.float64, backend, *case, affine=True) for backend in ("reference", "native")
            )
            for name, value in exact.items():
                assert (value is None) == (kernel[name] is None)
                assert value is None or relative_error(kernel[name], value) < 1e-12, name  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_matches_torch_group_norm_and_silu(backend: str) -> None:
    values, _, grad = make_inputs((2, 24, 9, 5), torch.float64)
    results = []
    for ours in (True, False):
        leaves = [values[name].detach().clone().requires_grad_() for name in ("x", "weight", "bias")]
        x, weight, bias = leaves
        with use_backend(backend):
            if ours:
                y = region_norm(x, norm="group", num_groups=8, weight=weight, bias=bias, activation="silu", eps=1e-6)
            else:
                y = F.silu(F.group_norm(x, 8, weight, bias, eps=1e-6))
        results.append((y, *torch.autograd.grad(y, leaves, grad)))
    torch.testing.assert_close(*results)


def test_matches_torch_batch_norm_with_running_statistics() -> None:
    x = torch.randn(4, 24, 9, 5, dtype=torch.float64)
    ours = [torch.zeros(24, dtype=torch.float64), torch.ones(24, dtype=torch.float64)]
    theirs = [t.clone() for t in ours]
    for momentum in (0.1, 0.5):
        y = region_norm(x, norm="batch", running_mean=ours[0], running_var=ours[1], training=True, momentum=momentum)
        expected = F.batch_norm(x, *theirs, training=True, momentum=momentum)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(ours, theirs)
    y = region_norm(x, norm="batch", running_mean=ours[0], running_var=ours[1])
    torch.testing.assert_close(y, F.batch_norm(x, *theirs))
    torch.testing.assert_close(region_norm(x, norm="instance"), F.instance_norm(x))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_do_not_cancel(offset: float) -> None:
    """Mean far from zero: E[x^2] - m^2 in float32 would lose everything."""
    for layout in (torch.channels_last, torch.contiguous_format):
        x64 = torch.randn(2, 40, 50, 50, dtype=torch.float64) + offset
        x = x64.float().contiguous(memory_format=layout)
        exact = F.instance_norm(x.double())
        assert relative_error(region_norm(x, norm="instance"), exact) < 1e-3 if offset else 1e-6
        with use_backend("reference"):
            reference = region_norm(x, norm="instance")
        assert_within_rule(region_norm(x, norm="instance"), reference, exact)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_gradcheck(layout: torch.memory_format) -> None:
    values, index, _ = make_inputs((2, 3, 4, 5), torch.float64, rows=4)
    index = index % 4
    x = values["x"].contiguous(memory_format=layout)
    leaves = [t.requires_grad_() for t in (x, values["table"], values["noise_scale"])]
    affine = [t.requires_grad_() for t in (values["weight"], values["bias"])]

    def grouped(x: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        more: dict[str, Any] = {"norm": "group", "num_groups": 1, "activation": "silu", "weight": weight, "bias": bias}
        return region_norm(region_norm(x, **more), index, table, **more)

    assert torch.autograd.gradcheck(grouped, [leaves[0], leaves[1], *affine])
    for norm, slope in itertools.product(("instance", "batch", "none"), (None, 0.2)):

        def with_table(x: Tensor, table: Tensor, noise_scale: Tensor, norm: str = norm, slope: Any = slope) -> Tensor:
            return region_norm(
                x, index, table, norm=norm, training=True, noise=values["noise"], noise_scale=noise_scale,
                negative_slope=slope,
            )  # fmt: skip

        assert torch.autograd.gradcheck(with_table, leaves)
        maps = [t.requires_grad_() for t in (values["scale"], values["shift"])]

        def with_maps(x: Tensor, scale: Tensor, shift: Tensor, norm: str = norm, slope: Any = slope) -> Tensor:
            return region_norm(x, scale=scale, shift=shift, norm=norm, training=True, negative_slope=slope)

        assert torch.autograd.gradcheck(with_maps, [x, *maps])


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=2)))
def test_only_the_gradients_asked_for(needs: tuple[bool, bool]) -> None:
    values, index, grad = make_inputs((2, 16, 6, 6), torch.float64)
    x, table = values["x"].requires_grad_(needs[0]), values["table"].requires_grad_(needs[1])
    y = region_norm(x, index, table, norm="instance", negative_slope=0.2)
    assert y.requires_grad == any(needs)
    if any(needs):
        y.backward(grad)
    assert (x.grad is not None) == needs[0] and (table.grad is not None) == needs[1]


def test_opcheck() -> None:
    values, index, grad = make_inputs((2, 16, 4, 4), torch.float32)
    x, table = values["x"], values["table"]
    scale, shift = (torch.empty_like(x).copy_(values[k]) for k in ("scale", "shift"))
    noise, noise_scale = values["noise"], values["noise_scale"]
    mean, variance = torch.zeros(1, 16), torch.ones(1, 16)
    ops = torch.ops.mixsyn_fast
    forwards = [
        (x, None, None, index, table, None, None, noise, noise_scale, NORM_INSTANCE, 1e-5, 0.2, 0, False),
        (x, None, None, None, None, scale, shift, None, None, NORM_BATCH, 1e-5, None, 0, False),
        (x, mean, variance, index, table, None, None, None, None, NORM_GIVEN, 1e-5, None, 0, False),
        (x, None, None, None, None, None, None, None, None, NORM_NONE, 1e-5, 0.2, 0, False),
        (x, None, None, None, table[:1].clone(), None, None, None, None, NORM_GROUP, 1e-5, None, 4, True),
    ]
    for arguments in forwards:
        torch.library.opcheck(ops.region_norm.default, arguments)
        leaves = tuple(a.requires_grad_() if a is x or a is table else a for a in arguments)
        torch.library.opcheck(ops.region_norm.default, leaves)
        x.requires_grad_(False), table.requires_grad_(False)
    torch.library.opcheck(ops.region_norm_stats.default, (x, noise, noise_scale, True))
    grad = torch.empty_like(x).copy_(grad)
    common = (grad, x, mean, variance, index, table, None, None, noise, noise_scale)
    torch.library.opcheck(ops.region_norm_backward_reduce.default, (*common, NORM_BATCH, 1e-5, 0.2, 0, False))
    torch.library.opcheck(
        ops.region_norm_backward_input.default, (*common, mean, variance, 32.0, NORM_BATCH, 1e-5, 0.2, 0, False, False)
    )
    # groups with SiLU behind the affine row of a norm, and behind maps
    mean, variance = torch.zeros(2, 16), torch.ones(2, 16)
    for modulation, maps in (((None, table[:1].clone(), None, None), False), ((None, None, scale, shift), True)):
        common = (grad, x, mean, variance, *modulation, None, None)
        settings = (NORM_GROUP, 1e-5, None, 4, True)
        torch.library.opcheck(ops.region_norm_backward_reduce.default, (*common, *settings))
        sums = (mean, variance, 64.0)
        torch.library.opcheck(ops.region_norm_backward_input.default, (*common, *sums, *settings, maps))
    even = (grad, x, mean, variance, None, table[:1].clone(), None, None, None, None)
    torch.library.opcheck(ops.region_norm_backward.default, (*even, NORM_GROUP, 1e-5, None, 4, True))


def test_compiles_without_graph_break() -> None:
    values, index, grad = make_inputs((2, 16, 6, 6), torch.float32)
    table = values["table"].requires_grad_()
    x = values["x"].requires_grad_()

    def step(x: Tensor, table: Tensor) -> Tensor:
        return region_norm(x * 2, index, table, norm="instance", negative_slope=0.2).sin()

    eager = torch.autograd.grad(step(x, table), (x, table), grad)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, table), step(x, table))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, table), (x, table), grad), eager)


def test_autocast_keeps_the_dtype_of_x() -> None:
    values, index, _ = make_inputs((2, 16, 6, 6), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = F.conv2d(values["x"], torch.randn(16, 16, 1, 1))
        assert x.dtype == torch.bfloat16
        y = region_norm(x, index, values["table"], norm="instance")
    assert y.dtype == torch.bfloat16 and bool(torch.isfinite(y.float()).all())


def test_any_strides() -> None:
    values, index, grad = make_inputs((2, 16, 8, 8), torch.float64)
    big = torch.randn(4, 32, 16, 16, dtype=torch.float64)
    views = {
        "sliced": big[::2, 3:19, 1:9, 4:12],
        "strided": big[:2, ::2, ::2, ::2],
        "transposed": big[:2, :16, :8, :8].transpose(2, 3),
        "expanded": big[:1, :16, :8, :8].expand(2, -1, -1, -1),
        "channels_last slice": big.contiguous(memory_format=torch.channels_last)[:2, 4:20, :8, :8],
    }
    for name, x in views.items():
        leaf = x.detach().requires_grad_()
        y = region_norm(leaf, index, values["table"], norm="instance")
        expected_leaf = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        expected = region_norm(expected_leaf, index, values["table"], norm="instance")
        assert relative_error(y, expected) < 1e-13, name
        # a gradient with strides of its own
        y.backward(grad.transpose(0, 1).contiguous().transpose(0, 1))
        expected.backward(grad)
        assert relative_error(leaf.grad, expected_leaf.grad) < 1e-12, name  # type: ignore[arg-type]


@pytest.mark.parametrize("modulation", ["table", "maps"])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_one_and_three_dimensions(modulation: str, channels_last: bool) -> None:
    """As the same pixels of an image, gradients included, without a copy, in the layout of x."""
    values, index, grad = make_inputs((2, 12, 6, 10), torch.float64, channels_last=channels_last)
    names = ("table", "noise_scale") if modulation == "table" else ("scale", "shift", "noise_scale")
    case = (modulation, "group", True, None)
    more: dict[str, Any] = {"num_groups": 4, "activation": "silu", "affine": True}
    expected = run(values, index, grad, torch.float64, "native", *case, **more)
    for volume in ((60,), (2, 3, 10), (6, 1, 10)):

        def shaped(t: Tensor, volume: tuple[int, ...] = volume) -> Tensor:
            if t.shape[-2:] != (6, 10):
                return t
            return t.flatten(-2) if len(volume) == 1 else t.unflatten(-2, volume[:2])

        shape = {name: shaped(value) for name, value in values.items()}
        assert shape["x"].data_ptr() == values["x"].data_ptr()
        result = run(shape, shaped(index), shaped(grad), torch.float64, "native", *case, **more)
        y = result["y"]
        assert y is not None and y.shape == (2, 12, *volume) and y.stride() == shape["x"].stride()
        for name in ("y", "x", "weight", "bias", *names):
            before = expected[name]
            assert before is not None and torch.equal(result[name], shaped(before)), name  # type: ignore[arg-type]


def test_slices_of_index_table_and_noise() -> None:
    values, index, _ = make_inputs((2, 16, 8, 8), torch.float64)
    wide_index = torch.stack((index, index + 1), 3).long()
    wide_table = torch.randn(20, 64, dtype=torch.float64)
    noise = torch.randn(2, 8, 8, 1, dtype=torch.float64).transpose(1, 3)
    scale = torch.randn(32, dtype=torch.float64)[::2]
    y = region_norm(values["x"], wide_index[..., 0], wide_table[::2, ::2], noise=noise, noise_scale=scale)
    expected = region_norm(
        values["x"], index, wide_table[::2, ::2].clone(), noise=noise.contiguous(), noise_scale=scale.clone()
    )
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    "shape", [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0), (1, 1, 1, 5), (1, 17, 1, 33)], ids=str
)
def test_empty_and_odd_sizes(shape: tuple[int, int, int, int]) -> None:
    values, index, grad = make_inputs(shape, torch.float64)
    for layout, norm in itertools.product((torch.channels_last, torch.contiguous_format), ("instance", "batch", "none")):
        results = []
        for backend in ("native", "reference"):
            x = values["x"].detach().contiguous(memory_format=layout).requires_grad_()
            table = values["table"].detach().clone().requires_grad_()
            with use_backend(backend):
                y = region_norm(x, index, table, norm=norm, training=True)
                y.backward(grad)
            results.append((y, x.grad, table.grad))
        for ours, expected in zip(*results, strict=True):
            assert ours.shape == expected.shape and relative_error(ours, expected) < 1e-12


def test_empty_batch_leaves_running_statistics_alone() -> None:
    mean, var = torch.zeros(8), torch.ones(8)
    y = region_norm(torch.empty(0, 8, 4, 4), norm="batch", running_mean=mean, running_var=var, training=True)
    assert y.shape == (0, 8, 4, 4) and torch.equal(mean, torch.zeros(8)) and torch.equal(var, torch.ones(8))


def test_one_row_and_absent_rows() -> None:
    values, _, grad = make_inputs((2, 16, 6, 6), torch.float64)
    index = torch.full((2, 6, 6), 5, dtype=torch.int32)
    table = values["table"].requires_grad_()
    y = region_norm(values["x"], index, table, norm="instance")
    row = table.detach()[5]
    expected = F.instance_norm(values["x"]) * row[None, :16, None, None] + row[None, 16:, None, None]
    assert relative_error(y, expected) < 1e-13
    y.backward(grad)
    assert table.grad is not None
    assert not bool(table.grad[[0, 1, 2, 3, 4, 6, 7, 8]].any()) and bool(table.grad[5].all())


def test_repeats_are_bitwise_equal() -> None:
    values, index, grad = make_inputs((2, 96, 33, 33), torch.float32)
    case = ("table", "batch", True, 0.2)
    first = run(values, index, grad, torch.float32, "native", *case)
    for _ in range(3):
        again = run(values, index, grad, torch.float32, "native", *case)
        for name, value in first.items():
            assert value is None or torch.equal(value, again[name])  # type: ignore[arg-type]


def test_nan_propagates_to_its_group_only() -> None:
    for layout in (torch.channels_last, torch.contiguous_format):
        x = torch.randn(2, 20, 9, 9).contiguous(memory_format=layout)
        x[1, 7, 4, 4] = float("nan")
        y = region_norm(x, norm="instance")
        assert bool(y[1, 7].isnan().all())
        y[1, 7] = 0
        assert not bool(y.isnan().any())


def test_double_backward_runs_the_reference() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (2, 4, 4))
    assert torch.autograd.gradgradcheck(
        lambda x, t: region_norm(x, index, t, norm="instance", negative_slope=0.2), (x, table)
    )


GOOD: dict[str, Any] = {"x": torch.zeros(2, 4, 3, 3)}
INDEX, TABLE = torch.zeros(2, 3, 3, dtype=torch.int32), torch.zeros(5, 8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(4, 3)}, ValueError, "x: expected shape"),
        ({"x": torch.zeros(2, 4, 9), "index": INDEX, "table": TABLE}, ValueError, r"index: expected shape \(2, 9\)"),
        ({"x": torch.zeros(2, 4, 3, 3, dtype=torch.int64)}, TypeError, "x: expected float32"),
        ({"norm": "layer"}, ValueError, "norm: expected 'instance', 'batch', 'group' or 'none', got 'layer'"),
        ({"norm": "group"}, TypeError, "num_groups: expected a divisor of the channels"),
        ({"norm": "group", "num_groups": 3}, ValueError, "num_groups: expected a divisor of the 4 channels, got 3"),
        ({"num_groups": 2}, ValueError, "num_groups: expected None with norm='instance'"),
        ({"norm": "group", "num_groups": 4, "x": torch.zeros(1, 4, 1, 1)}, ValueError, "more than one value"),
        ({"weight": torch.ones(4)}, ValueError, "weight and bias: expected both"),
        ({"weight": torch.ones(3), "bias": torch.ones(4)}, ValueError, r"weight: expected shape \(4,\)"),
        ({"sample_scale": torch.ones(2, 4)}, ValueError, "sample_scale and sample_shift: expected both"),
        (
            {"sample_scale": torch.ones(2, 4), "sample_shift": torch.ones(1, 4)},
            ValueError,
            r"sample_shift: expected shape \(2, 4\)",
        ),
        ({"activation": "gelu"}, ValueError, "activation: expected 'silu' or None, got 'gelu'"),
        ({"activation": "silu", "negative_slope": 0.2}, ValueError, "activation and negative_slope: expected one"),
        ({"index": INDEX}, ValueError, "index and table: expected both"),
        ({"index": INDEX[:1], "table": TABLE}, ValueError, r"index: expected shape \(2, 3, 3\)"),
        ({"index": INDEX.float(), "table": TABLE}, TypeError, "index: expected int32"),
        ({"index": INDEX, "table": TABLE[:, :6]}, ValueError, r"table: expected shape \(R, 8\)"),
        ({"index": INDEX, "table": TABLE.long()}, TypeError, "table: expected a floating"),
        ({"scale": GOOD["x"]}, ValueError, "scale and shift: expected both"),
        ({"scale": GOOD["x"], "shift": GOOD["x"][:1]}, ValueError, "shift: expected shape"),
        (
            {"scale": GOOD["x"], "shift": GOOD["x"], "index": INDEX, "table": TABLE},
            ValueError,
            "index and scale",
        ),
        ({"noise": torch.zeros(2, 1, 3, 3)}, ValueError, "noise and noise_scale"),
        (
            {"noise": torch.zeros(2, 4, 3, 3), "noise_scale": torch.zeros(4)},
            ValueError,
            "noise: expected shape",
        ),
        (
            {"noise": torch.zeros(2, 1, 3, 3), "noise_scale": torch.zeros(3)},
            ValueError,
            "noise_scale: expected",
        ),
        (
            {"noise": torch.zeros(2, 1, 3, 3, requires_grad=True), "noise_scale": torch.zeros(4)},
            ValueError,
            "noise",
        ),
        ({"norm": "batch"}, ValueError, "running_mean and running_var: expected tensors"),
        ({"running_mean": torch.zeros(4)}, ValueError, "running_mean"),
        ({"norm": "batch", "running_mean": torch.zeros(4)}, ValueError, "both or neither"),
        (
            {"norm": "batch", "running_mean": torch.zeros(3), "running_var": torch.ones(3)},
            ValueError,
            "running_mean",
        ),
        ({"x": torch.zeros(2, 4, 1, 1)}, ValueError, "more than one value"),
        ({"process_group": object()}, ValueError, "process_group"),
        ({"index": INDEX.to("meta"), "table": TABLE}, ValueError, "index: expected device cpu"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        region_norm(**(GOOD | change))


@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1, 2**32 + 1, -(2**32)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_index_out_of_range(backend: str, value: int) -> None:
    """Beyond 32 bits as well, where a narrower integer would be another row."""
    index = INDEX.to(torch.int64 if abs(value) > 2**31 else torch.int32).clone()
    index[1, 2, 2] = value
    words = rf"^region_norm: index: expected values in \[0, 5\), got {value} at \(1, 2, 2\)$"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        region_norm(GOOD["x"], index, TABLE)
    compiled = torch.compile(region_norm, fullgraph=True, backend="aot_eager")
    with use_backend(backend), pytest.raises((RuntimeError, IndexError), match="index"):
        compiled(GOOD["x"], index, TABLE)


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """The paths that this machine would not take."""
    code = (
        "import torch\n"
        "import tests.ops.test_region_norm as t\n"
        "for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):\n"
        "    for channels_last in (True, False):\n"
        "        t.test_kernels_follow_the_reference(dtype, t.SHAPES[2], channels_last)\n"
        "        t.test_groups_affine_and_silu_follow_the_reference(dtype, channels_last)\n"
        "        t.test_silu_of_any_number(dtype, channels_last)\n"
        "print('followed')\n"
    )
    processes.run_on(instruction_set, code)


def synchronised(rank: int, world: int, folder: str) -> None:
    """One process' part of test_two_processes_equal_one; writes ``<world>-<rank>.pt``."""
    import torch.distributed as dist

    torch.manual_seed(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    try:
        x = torch.randn(6, 5, 4, 4, dtype=torch.float64)
        index = torch.randint(0, 3, (6, 4, 4), dtype=torch.int32)
        table = torch.randn(3, 10, dtype=torch.float64)
        grad = torch.randn_like(x)
        noise, noise_scale = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
        part = slice(0, 2) if rank == 0 else slice(2, 6)  # unequal shares
        group = dist.group.WORLD if world > 1 else None
        part = part if world > 1 else slice(0, 6)
        leaves = [t.clone().requires_grad_() for t in (x[part], table, noise_scale)]
        mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
        y = region_norm(
            leaves[0], index[part], leaves[1], norm="batch", training=True, running_mean=mean, running_var=var,
            noise=noise[part], noise_scale=leaves[2], negative_slope=0.2, process_group=group,
        )  # fmt: skip
        y.backward(grad[part])
        torch.save([t.detach() for t in (y, *(leaf.grad for leaf in leaves), mean, var)], f"{folder}/{world}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    code = "import os, sys, tests.ops.test_region_norm as t\n"
    code += "t.synchronised(int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), sys.argv[1])"
    results = {}
    for world in (1, 2):
        processes.run_ranks(code, [tmp_path], size=world)
        results[world] = [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
    (y, grad_x, grad_table, grad_scale, mean, var) = results[1][0]
    first, second = results[2]
    assert relative_error(torch.cat((first[0], second[0])), y) < 1e-13
    assert relative_error(torch.cat((first[1], second[1])), grad_x) < 1e-12
    assert relative_error(first[2] + second[2], grad_table) < 1e-12
    assert relative_error(first[3] + second[3], grad_scale) < 1e-12
    for rank in (first, second):
        assert relative_error(rank[4], mean) < 1e-13 and relative_error(rank[5], var) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("per_instance", [True, False])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_statistics_alone(dtype: torch.dtype, per_instance: bool, channels_last: bool) -> None:
    """What a process computes before it asks the others."""
    assert extension.ensure_loaded()
    module = sys.modules["mixsyn_fast.ops.region_norm"]
    values, _, _ = make_inputs((3, 33, 5, 40), dtype, channels_last=channels_last)
    arguments = [values[name] for name in ("x", "noise", "noise_scale")]
    found = module._OP.native.stats(*arguments, per_instance)
    reference = module._REFERENCE.stats(*arguments, per_instance)
    exact = module._REFERENCE.stats(*(t.double() for t in arguments), per_instance)
    for name, *results in zip(("count", "mean", "m2"), found, reference, exact, strict=True):
        assert_within_rule(*results, name)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_moments_are_those_of_a_batch_norm(backend: str) -> None:
    torch.manual_seed(0)
    x, noise, scale = (
        torch.randn(2, 5, 6, 7, dtype=torch.float64) + 4,
        torch.randn(2, 1, 6, 7).double(),
        torch.randn(5).double(),
    )
    with use_backend(backend):
        for found, values in ((channel_moments(x), x), (channel_moments(x, noise, scale), x + noise * scale[:, None, None])):
            torch.testing.assert_close(found, (values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)))


@pytest.mark.parametrize("norm", [NORM_NONE, NORM_INSTANCE, NORM_BATCH, NORM_GROUP])
@pytest.mark.parametrize("by_image", [False, True], ids=["index", "rows"])
def test_bodies_that_run_without_the_extension(norm: int, by_image: bool) -> None:
    """The Python bodies of the ops, which kernels override: the same results, one by one."""
    assert extension.ensure_loaded()
    module = sys.modules["mixsyn_fast.ops.region_norm"]
    values, index, grad = make_inputs((2, 6, 6, 7), torch.float64, channels_last=False)
    table = values["table"][:2] if by_image else values["table"]
    rest = (None if by_image else index, table, None, None, values["noise"], values["noise_scale"])
    settings = (norm, 1e-5, *((None, 3, True) if norm == NORM_GROUP else (0.2, 0, False)))
    both = (module._OP.native, module._REFERENCE)
    forwards = [k.forward(values["x"], None, None, *rest, *settings) for k in both]
    torch.testing.assert_close(*forwards)
    mean, variance = forwards[0][1:] if norm else (None, None)
    common = (grad, values["x"], mean, variance, *rest)
    reduced = [k.backward_reduce(*common, *settings) for k in both]
    torch.testing.assert_close(*reduced)
    sums = reduced[0][:2] if norm else (None, None)
    inputs = [k.backward_input(*common, *sums, 42.0, *settings, False) for k in both]
    torch.testing.assert_close(*inputs)
    if norm and by_image:
        even = (grad, values["x"], mean, variance, *rest[:-2], None, None)
        torch.testing.assert_close(*(k.backward(*even, *settings) for k in both))


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "leaky"])
def test_both_passes_of_an_even_norm_are_one_op(channels_last: bool, dtype: torch.dtype, silu: bool) -> None:
    """In the cache unit by unit, and where one unit fills it; a row for all images and one for each; rests."""
    assert extension.ensure_loaded()
    module = sys.modules["mixsyn_fast.ops.region_norm"]
    native, reference = module._OP.native, module._REFERENCE
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    acc = torch.promote_types(dtype, torch.float32)
    for shape, rows, num_groups in (((3, 12, 5, 7), 1, 4), ((2, 20, 9, 9), 2, 20), ((2, 8, 111, 111), 1, 1)):
        x, grad = ((torch.randn(shape) + mean).to(dtype).contiguous(memory_format=layout) for mean in (3, 0))
        table = torch.randn(rows, 2 * shape[1], dtype=acc)
        settings = (NORM_GROUP, 1e-5, None if silu else 0.2, num_groups, silu)
        nothing = (None, None, None, None)
        _, mean, variance = native.forward(x, None, None, None, table, *nothing, *settings)
        found = native.backward(grad, x, mean, variance, None, table, *nothing, *settings)
        own = reference.backward(grad, x, mean, variance, None, table, *nothing, *settings)
        double = [t.double() for t in (grad, x, mean, variance, table)]
        exact = reference.backward(*double[:4], None, double[4], *nothing, *settings)
        for name, *results in zip(("grad_x", "grad_table"), found, own, exact, strict=True):
            assert_within_rule(*results, f"{name} of {num_groups} groups")
        assert found[0].stride() == x.stride()
        if channels_last:
            continue
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3 - min(threads, 2))
            again = native.backward(grad, x, mean, variance, None, table, *nothing, *settings)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


def test_what_is_no_even_norm_has_its_error() -> None:
    assert extension.ensure_loaded()
    values, index, grad = make_inputs((2, 16, 4, 4), torch.float32)
    grad = torch.empty_like(values["x"]).copy_(grad)
    common = (grad, values["x"], torch.zeros(2, 16), torch.ones(2, 16))
    backward = torch.ops.mixsyn_fast.region_norm_backward
    settings = (1e-5, None, 4, True)
    with pytest.raises(RuntimeError, match="index, scale and noise: expected none, got a tensor"):
        backward(*common, index, values["table"], None, None, None, None, NORM_GROUP, *settings)
    with pytest.raises(RuntimeError, match="norm: expected 2 to 4, got 0"):
        backward(*common, None, None, None, None, None, None, NORM_NONE, *settings)
    with pytest.raises(RuntimeError, match="mean and variance: expected tensors, got none"):
        backward(*common[:2], None, None, None, None, None, None, None, None, NORM_GROUP, *settings)
