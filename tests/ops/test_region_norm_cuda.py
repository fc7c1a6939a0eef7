"""region_norm's CUDA and Triton kernels against the float64 reference; without a GPU the CUDA sources, emulated.

Rule: the kernel's error is at most twice the error of the reference run in the kernel's type (plus rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mixsyn_fast.ops.region_norm import Arguments, region_norm_reference
from tests.ops.gpu_kernels import DTYPES, NO_GPU, TARGETS, dense, kernels_of

NONE, GIVEN, INSTANCE, BATCH, GROUP = 0, 1, 2, 3, 4


class Target(NamedTuple):
    """A set of kernels and the device they run on."""

    name: str
    device: str
    region_norm: Callable[..., Any]
    stats: Callable[..., Any]
    backward_reduce: Callable[..., Any]
    backward_input: Callable[..., Any]


NAMES = ("region_norm", "region_norm_stats", "region_norm_backward_reduce", "region_norm_backward_input")


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return Target(request.param, *kernels_of(request.param, "region_norm", NAMES))


class Case(NamedTuple):
    """One call: shape, what is given, and how it lies in memory."""

    shape: tuple[int, int, int, int]
    norm: int = BATCH
    params: str = "table"  # none, table, row (a table of one row without index), rows (of a row an image), maps
    acc_params: bool = False
    noise: bool = False
    slope: float | None = None
    channels_last: bool = True
    shifted: bool = False  # x and grad start one element after an aligned address
    rows: int = 7
    eps: float = 1e-5
    num_groups: int = 0  # with GROUP
    silu: bool = False

    @property
    def settings(self) -> tuple[Any, ...]:
        """The last arguments of the ops."""
        return self.norm, self.eps, self.slope, self.num_groups, self.silu


def unbalanced_index(shape: tuple[int, ...], rows: int, generator: torch.Generator) -> Tensor:
    """Rows in patches: one owns about half of the pixels, the last row none."""
    index = torch.randint(0, max(rows - 1, 1), shape, generator=generator, dtype=torch.int32)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, min(2, max(rows - 2, 0)), index).int()


def make(case: Case, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of the ops, and `grad`; statistics for every norm but NONE."""
    g = torch.Generator().manual_seed(sum(case.shape) + case.rows)
    b, c, h, w = case.shape
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    p = acc if case.acc_params else dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def place(t: Tensor, kind: torch.dtype) -> Tensor:
        return dense(t.to(kind).to(device), case.channels_last, case.shifted)

    out: dict[str, Any] = {
        "x": place(draw(b, c, h, w) * 2 + 3, dtype),
        "grad": place(draw(b, c, h, w), dtype),
        "index": None,
        "table": None,
        "scale": None,
        "shift": None,
        "noise": None,
        "noise_scale": None,
    }
    if case.params == "table":
        out["index"] = unbalanced_index((b, h, w), case.rows, g).to(device)
        out["table"] = draw(case.rows, 2 * c).to(p).to(device)
    elif case.params in ("row", "rows"):
        out["table"] = draw(1 if case.params == "row" else b, 2 * c).to(p).to(device)
    elif case.params == "maps":
        out["scale"], out["shift"] = place(draw(b, c, h, w), p), place(draw(b, c, h, w), p)
    if case.noise:
        out["noise"], out["noise_scale"] = draw(b, 1, h, w).to(dtype).to(device), draw(c).to(dtype).to(device)
    return out


def names() -> tuple[str, ...]:
    return ("index", "table", "scale", "shift", "noise", "noise_scale")


def expected(case: Case, data: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything the four ops return, by the reference and autograd, from the same numbers in `dtype`."""
    acc = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    d = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in data.items()}
    x, grad = d["x"].to(dtype), d["grad"].to(dtype)
    other = {k: (v if v is None or k == "index" else v.to(dtype if "noise" in k else acc)) for k, v in d.items()}
    leaves = {"x": x.to(acc)}
    leaves |= {k: other[k].to(acc) for k in ("table", "scale", "shift", "noise_scale") if other[k] is not None}
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    value = leaves["x"]
    if case.noise:
        value = value + other["noise"].to(acc) * leaves["noise_scale"][None, :, None, None]
    dims = (2, 3) if case.norm in (INSTANCE, GIVEN) else (0, 2, 3)
    mean, var = value.mean(dims), value.var(dims, unbiased=False)
    if case.norm == BATCH:
        mean, var = mean[None], var[None]
    if case.norm == GROUP:
        groups = value.unflatten(1, (case.num_groups, -1))
        mean, var = groups.mean((2, 3, 4)), groups.var((2, 3, 4), unbiased=False)
        mean, var = (t.repeat_interleave(groups.shape[2], 1) for t in (mean, var))
    given = (mean.detach(), var.detach()) if case.norm == GIVEN else (None, None)
    modulation = (other["index"], leaves.get("table"), leaves.get("scale"), leaves.get("shift"))
    noise = (other["noise"], leaves.get("noise_scale"))
    a = Arguments(leaves["x"], *given, *modulation, *noise, *case.settings)
    out, new_mean, new_variance = region_norm_reference(a)
    result = {"y": out.detach().to(dtype), "mean": new_mean.detach(), "variance": new_variance.detach()}
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(acc), allow_unused=True)
    result |= {f"grad_{k}": v for k, v in zip(leaves, grads, strict=True)}
    for k in ("grad_x", "grad_scale", "grad_shift"):
        if k in result:
            result[k] = result[k].to(dtype)
    result["given_mean"], result["given_variance"] = mean.detach(), var.detach()
    return result


def run(case: Case, data: dict[str, Any], target: Target, statistics: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The same through the kernels."""
    parameters = [data[k] for k in names()]
    x, grad = data["x"], data["grad"]
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = [None, None]
    if case.norm == GIVEN:
        given = [t.to(acc).to(x.device) for t in statistics]
    rest = case.settings
    y, mean, variance = target.region_norm(x, *given, *parameters, *rest)
    out = {"y": y, "mean": mean, "variance": variance}
    if case.norm in (INSTANCE, BATCH, GROUP):
        given = [mean, variance]
    if case.norm in (INSTANCE, BATCH):
        count, mean2, m2 = target.stats(x, data["noise"], data["noise_scale"], case.norm == INSTANCE)
        out["stats_mean"], out["stats_variance"] = mean2, m2 / count
    sum_g, sum_gx, grad_table = target.backward_reduce(grad, x, *given, *parameters, *rest)
    if case.norm in (NONE, GIVEN):
        assert sum_g.shape == sum_gx.shape == (0,)
    shared = x.shape[1] // case.num_groups if case.num_groups else 1
    n = x.shape[2] * x.shape[3] * (x.shape[0] if case.norm == BATCH else shared)
    sums = (sum_g, sum_gx) if case.norm in (INSTANCE, BATCH, GROUP) else (None, None)
    grads = target.backward_input(grad, x, *given, *parameters, *sums, float(n), *rest, case.params == "maps")
    out |= dict(zip(("grad_x", "grad_scale", "grad_shift", "grad_noise_scale"), grads, strict=True))
    out["grad_table"] = grad_table
    return out


def check_error(name: str, got: Tensor, reference: Tensor, own: Tensor, slack: float = 0.0) -> None:
    """The 2x rule, in the largest absolute error; `slack` is a further error relative to the largest value."""
    got, reference, own = got.detach().cpu().double(), reference.double(), own.double()
    assert got.shape == reference.shape, f"{name}: {tuple(got.shape)}, expected {tuple(reference.shape)}"
    assert torch.isfinite(got).all(), f"{name}: not finite"
    if got.numel() == 0:
        return
    scale = max(reference.abs().max().item(), 1.0)  # inputs are of order one
    error, allowed = (got - reference).abs().max().item(), (own - reference).abs().max().item()
    floor = scale * (slack + (1e-6 if allowed > 0 else 1e-12))  # nothing allowed: the type is float64
    assert error <= 2 * allowed + floor, f"{name}: error {error:.3e}, reference in its type {allowed:.3e}"


def check(case: Case, dtype: torch.dtype, target: Target) -> dict[str, Tensor]:
    data = make(case, dtype, target.device)
    reference, own = expected(case, data, torch.float64), expected(case, data, dtype)
    got = run(case, data, target, (reference["given_mean"], reference["given_variance"]))
    assert got["y"].dtype == dtype and got["y"].stride() == data["x"].stride()
    assert got["grad_x"].dtype == dtype and got["grad_x"].stride() == data["x"].stride()
    for name in got:
        base = name.replace("stats_", "")
        if base in reference and reference[base] is not None:
            # Triton's interpreter stores bfloat16 by cutting bits off
            truncated = target.name == "interpreted" and got[name].dtype == torch.bfloat16
            check_error(name, got[name], reference[base], own[base], slack=2**-7 if truncated else 0.0)
    return got


# small shapes: vectors and scalars, odd sizes, one pixel, one channel, more channel groups than threads
SHAPES = [(2, 16, 5, 7), (3, 24, 8, 8), (1, 3, 9, 11), (2, 8, 1, 1), (1, 1, 6, 5), (2, 300, 2, 3), (1, 64, 33, 17)]


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_shapes_and_dtypes(target: Target, dtype: torch.dtype, shape: Any, channels_last: bool) -> None:
    norm = INSTANCE if shape[0] == 3 or 1 in shape[2:] else BATCH
    if shape[2] * shape[3] == 1:
        norm = BATCH
    check(Case(shape, norm, channels_last=channels_last, slope=0.2), dtype, target)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("norm", [NONE, GIVEN, INSTANCE, BATCH], ids=["none", "given", "instance", "batch"])
@pytest.mark.parametrize("params", ["none", "table", "maps"])
@pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
def test_every_form(target: Target, noise: bool, params: str, norm: int, channels_last: bool) -> None:
    slope = 0.2 if norm % 2 else None
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((2, 16, 6, 8), (2, 5, 7, 3)):
            check(Case(shape, norm, params, noise=noise, slope=slope, channels_last=channels_last), dtype, target)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("params", ["none", "table", "row", "rows", "maps"])
def test_groups_rows_and_silu(target: Target, params: str, channels_last: bool) -> None:
    """Group norm with SiLU; rows without index under every norm, of which the gradient of the table is all there is."""
    case = Case((2, 16, 6, 8), GROUP, params, silu=True, channels_last=channels_last, num_groups=4)
    for dtype in (torch.float32, torch.bfloat16):
        check(case, dtype, target)
        check(case._replace(shape=(3, 300, 2, 3), num_groups=3, noise=True, acc_params=True), dtype, target)
    if params in ("row", "rows"):
        for norm in (NONE, GIVEN, INSTANCE, BATCH):
            check(case._replace(norm=norm, num_groups=0, silu=norm == BATCH, slope=None), torch.float64, target)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("params", ["table", "maps"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_float32_parameters(target: Target, dtype: torch.dtype, params: str, channels_last: bool) -> None:
    if params == "maps" and target.name == "triton":
        pytest.skip("same code path as the table")
    case = Case((2, 16, 6, 8), BATCH, params, True, channels_last=channels_last)
    check(case, dtype, target)
    check(case._replace(shape=(2, 5, 3, 7), slope=0.1), dtype, target)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("params", ["table", "maps"])
def test_unaligned_memory(target: Target, params: str, channels_last: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = Case((2, 16, 6, 8), BATCH, params, noise=True, slope=0.2, channels_last=channels_last, shifted=True)
        check(case, dtype, target)


@pytest.mark.parametrize("rows", [1, 3, 40, 4000])
@pytest.mark.parametrize("norm", [INSTANCE, BATCH], ids=["instance", "batch"])
def test_rows(target: Target, norm: int, rows: int) -> None:
    """One row only; few and large; more rows than pixels; a run over many parts of the sorted pixels."""
    check(Case((3, 8, 13, 17), norm, rows=rows, slope=0.2), torch.float32, target)
    check(Case((2, 8, 40, 40), norm, rows=rows), torch.float64, target)


def test_runs_that_end_at_part_boundaries(target: Target) -> None:
    """Rows of 8, 16, 24, 1 and 7 pixels: runs that start, end or span where the sorted pixels are cut."""
    case = Case((1, 8, 8, 8), BATCH, rows=9)
    data = make(case, torch.float64, target.device)
    lengths = torch.tensor([8, 16, 1, 7, 24, 0, 8])
    assert lengths.sum() == 64
    places = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    shuffled = torch.repeat_interleave(torch.arange(7), lengths)[places]
    data["index"] = shuffled.int().reshape(1, 8, 8).to(target.device)
    reference = expected(case, data, torch.float64)
    got = run(case, data, target, (reference["given_mean"], reference["given_variance"]))
    check_error("grad_table", got["grad_table"], reference["grad_table"], reference["grad_table"])


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4)], ids=str)
@pytest.mark.parametrize("norm", [NONE, INSTANCE, BATCH], ids=["none", "instance", "batch"])
def test_empty(target: Target, norm: int, shape: Any) -> None:
    case = Case(shape, norm, noise=True)
    data = make(case, torch.float32, target.device)
    got = run(case, data, target, (torch.zeros(0), torch.zeros(0)))
    groups = {NONE: None, INSTANCE: shape[0], BATCH: 1}[norm]
    assert got["y"].shape == got["grad_x"].shape == shape
    assert got["mean"].shape == ((0,) if groups is None else (groups, shape[1]))
    assert got["grad_table"].shape == (7, 2 * shape[1]) and not got["grad_table"].any()
    assert not got["grad_noise_scale"].any()


def test_large_mean_keeps_its_digits(target: Target) -> None:
    """Statistics are no difference of two large sums: mean 1000, deviation 1, in float32."""
    for channels_last in (True, False):
        x = torch.randn(2, 8, 32, 16, generator=torch.Generator().manual_seed(0)) + 1000
        x = dense(x, channels_last, False).to(target.device)
        _, mean, m2 = target.stats(x, None, None, False)
        exact = x.double().cpu().var((0, 2, 3), unbiased=False)
        assert ((m2.cpu()[0].double() / 1024 - exact).abs() / exact).max() < 1e-5
        assert (mean.cpu()[0].double() - x.double().cpu().mean((0, 2, 3))).abs().max() < 1e-3


def test_bitwise_repeatable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, emulated, whatever the order in which threads and blocks run: nothing races."""
    forms = (("table", BATCH, True), ("maps", INSTANCE, False), ("table", INSTANCE, False), ("rows", GROUP, True))
    for params, norm, channels_last in forms:
        case = Case((2, 16, 12, 20), norm, params, noise=True, slope=0.2, channels_last=channels_last)
        case = case._replace(num_groups=2 if norm == GROUP else 0)
        data = make(case, torch.float32, target.device)
        results = []
        for order in ("forward", "reverse", "shuffle"):
            monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
            results.append(run(case, data, target, (torch.zeros(1, 16), torch.ones(1, 16))))
        for name, value in results[0].items():
            for other in results[1:]:
                assert torch.equal(value, other[name]), name


def test_errors_name_the_argument(target: Target) -> None:
    if target.name == "triton":
        pytest.skip("the public function checks")
    data = make(Case((1, 8, 4, 4)), torch.float32, target.device)
    parameters = [data[k] for k in names()]
    with pytest.raises(RuntimeError, match="mixsyn_fast::region_norm: x: expected shape"):
        target.region_norm(data["x"][0], None, None, *parameters, BATCH, 1e-5, None, 0, False)
    with pytest.raises(RuntimeError, match="mixsyn_fast::region_norm: index: expected Int, got Long"):
        target.region_norm(data["x"], None, None, parameters[0].long(), *parameters[1:], BATCH, 1e-5, None, 0, False)
    with pytest.raises(RuntimeError, match="mixsyn_fast::region_norm: table: expected shape"):
        target.region_norm(
            data["x"], None, None, parameters[0], data["table"][:, :3], *parameters[2:], BATCH, 1e-5, None, 0, False
        )


# --- only on a device ---


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("shape", [(4, 128, 256, 256), (1, 1024, 16, 16), (16, 64, 128, 96)], ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_real_shapes(target: Target, shape: Any, channels_last: bool) -> None:
    if target.device == "cpu":
        pytest.skip("too slow emulated")
    rows = min(20000, shape[0] * shape[2] * shape[3] // 4)
    check(Case(shape, BATCH, noise=True, slope=0.2, channels_last=channels_last, rows=rows), torch.bfloat16, target)


@pytest.mark.gpu
@NO_GPU
def test_cuda_graph(target: Target) -> None:
    """All four ops are captured, and a replay reads the new input."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    case = Case((2, 32, 32, 32), BATCH, noise=True, slope=0.2)
    data = make(case, torch.bfloat16, "cuda")
    nothing = (torch.zeros(1), torch.zeros(1))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(case, data, target, nothing)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, data, target, nothing)
    data["x"].copy_(torch.randn_like(data["x"]))
    graph.replay()
    eager = run(case, data, target, nothing)
    for name, value in eager.items():
        assert torch.equal(captured[name], value), name


@pytest.mark.gpu
@NO_GPU
def test_side_stream_and_device_guard(target: Target) -> None:
    """Work goes to the current stream of the tensor's device, whatever device is current."""
    if target.device == "cpu":
        pytest.skip("one device emulated")
    case = Case((2, 16, 16, 16))
    data = make(case, torch.float32, f"cuda:{torch.cuda.device_count() - 1}")
    with torch.cuda.stream(torch.cuda.Stream(data["x"].device)):
        got = run(case, data, target, (torch.zeros(1), torch.zeros(1)))
        torch.cuda.current_stream(data["x"].device).synchronize()
    reference, own = expected(case, data, torch.float64), expected(case, data, torch.float32)
    check_error("y", got["y"], reference["y"], own["y"])


@pytest.mark.gpu
@NO_GPU
def test_public_function_trains(target: Target) -> None:
    """region_norm() end to end with gradients on the device equals the CPU in float64."""
    if target.device == "cpu":
        pytest.skip("covered by the CPU tests")
    import mixsyn_fast

    data = make(Case((2, 16, 9, 8)), torch.float64, "cpu")
    grads = {}
    for device, backend in (("cpu", "reference"), ("cuda", target.name)):
        x = data["x"].to(device).requires_grad_()
        table = data["table"].to(device).requires_grad_()
        with mixsyn_fast.use_backend(backend):
            y = mixsyn_fast.region_norm(x, data["index"].to(device), table, norm="batch", training=True)
            y.backward(data["grad"].to(device))
        grads[device] = (y.detach().cpu(), x.grad.cpu(), table.grad.cpu())
    for got, reference in zip(grads["cuda"], grads["cpu"], strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)
