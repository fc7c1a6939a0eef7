"""Stacks of convolutions on maps of few columns: the table and the dense plan, against plain PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mixsyn_fast import LatentMap, RegionMap, use_plan
from mixsyn_fast.layers.neighbourhoods import _columns, _pixel_of_row, _taps_around, _taps_of_labels, neighbourhoods
from mixsyn_fast.layers.stacks import (
    Columns,
    Modulation,
    Modulator,
    _folded,
    folded_work,
    folds_of,
    modulate,
    modulation,
    neighbourhoods_of,
    stack_of,
    work,
)

K, C, HIDDEN = 4, 6, 8


def conv(i: int, o: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups, bias=bias)


def heads(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    return make(), make()


def mobile() -> nn.Module:
    depthwise = conv(HIDDEN, HIDDEN, 3, HIDDEN)
    return nn.Sequential(depthwise, nn.InstanceNorm2d(HIDDEN), nn.Identity(), conv(HIDDEN, C, 1))


def instance(affine: bool) -> nn.Module:
    return nn.Sequential(conv(HIDDEN, C), nn.Sequential(nn.InstanceNorm2d(C, affine=affine)))


# shared stack, heads
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[nn.Module, ...]]]] = {
    "3x3": (lambda: nn.Sequential(conv(K, HIDDEN), nn.ReLU(inplace=True)), lambda: heads(lambda: conv(HIDDEN, C))),
    "5x5": (lambda: nn.Sequential(conv(K, HIDDEN, 5), nn.SiLU()), lambda: heads(lambda: conv(HIDDEN, C, 5))),
    "1x1 alone": (nn.Identity, lambda: heads(lambda: conv(K, C, 1))),
    "1x1 and 3x3": (
        lambda: nn.Sequential(conv(K, HIDDEN, 1), nn.Tanh()),
        lambda: heads(lambda: conv(HIDDEN, C, 3, bias=False)),
    ),
    "grouped": (
        lambda: nn.Sequential(conv(K, HIDDEN, 3, 2), nn.LeakyReLU(0.2)),
        lambda: heads(lambda: conv(HIDDEN, C, 3, 2)),
    ),
    "mobile": (lambda: nn.Sequential(conv(K, HIDDEN), nn.ReLU()), lambda: heads(mobile)),
    "instance-normed": (lambda: nn.Sequential(conv(K, HIDDEN), nn.LeakyReLU(0.01)), lambda: heads(lambda: instance(False))),
    "1x1, affine": (lambda: nn.Sequential(conv(K, HIDDEN, 1), nn.PReLU(HIDDEN)), lambda: heads(lambda: instance(True))),
    "merged": (lambda: nn.Sequential(conv(K, HIDDEN), nn.ReLU()), lambda: (conv(HIDDEN, 2 * C),)),
    "three deep": (
        lambda: nn.Sequential(conv(K, HIDDEN), nn.ReLU(), conv(HIDDEN, HIDDEN), nn.GELU()),
        lambda: (conv(HIDDEN, 2 * C),),
    ),
}  # fmt: skip


def weighted_group() -> nn.Module:
    """A group norm with a weight and no bias."""
    norm = nn.GroupNorm(1, C)
    norm.bias = None  # type: ignore[assignment]
    return norm


NORMS: dict[str, Callable[[], nn.Module]] = {
    "instance": lambda: nn.InstanceNorm2d(C),
    "affine batch": lambda: nn.BatchNorm2d(C),
    "group": lambda: nn.GroupNorm(3, C),
    "group without parameters": lambda: nn.GroupNorm(2, C, affine=False),
    "group with a weight": weighted_group,
    "affine instance": lambda: nn.InstanceNorm2d(C, affine=True),
    "none": nn.Identity,
}


class Holder(nn.Module):
    """A layer and its plain form."""

    def __init__(self, kind: str, norm: str, one: float) -> None:
        super().__init__()
        shared, make = KINDS[kind]
        self.norm, self.shared, self.heads, self.one = NORMS[norm](), shared(), nn.ModuleList(make()), one
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        hidden = self.shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        ends = [head(hidden) for head in self.heads]
        scale, shift = ends if len(ends) == 2 else ends[0].chunk(2, 1)
        return self.norm(x) * (self.one + scale) + shift

    def modulator(self) -> Modulator:
        parts = [stack_of(head) for head in self.heads]
        return Modulator(self, self.norm, stack_of(self.shared), parts[0], parts[1] if len(parts) == 2 else (), self.one)


def labels(batch: int, size: int = 12) -> Tensor:
    drawn = torch.randint(-1, K, (batch, size // 3, size // 3), generator=torch.Generator().manual_seed(batch))
    return drawn.repeat_interleave(3, 1).repeat_interleave(3, 2)


def onehot(found: Tensor) -> Tensor:
    return F.one_hot(found + 1, K + 1)[..., 1:].permute(0, 3, 1, 2).double()


def ours(layer: Holder, x: Tensor, segmap: Tensor, columns: Columns | None) -> Tensor:
    size = (int(x.shape[2]), int(x.shape[3]))
    modulator = layer.modulator()
    found = None if columns is None else neighbourhoods_of(modulator, columns, size)
    assert (found is None) == (columns is None)
    return modulate(layer.norm, x, modulation(modulator, segmap, columns, size, found), negative_slope=0.2)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_table_and_dense_plan_and_their_gradients(kind: str, batch: int) -> None:
    norm, one = (("affine batch", 1.0), ("group", 0.0), ("affine instance", 1.0), ("none", 1.0))[(len(kind) + batch) % 4]
    layer = Holder(kind, norm, one).double()
    found = labels(batch)
    segmap = onehot(found)
    regions = RegionMap(found, K, ignore_index=-1)
    x = torch.randn(batch, C, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weights = torch.randn(x.shape, dtype=torch.float64)
    expected = F.leaky_relu(layer(x, segmap), 0.2)
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *layer.parameters()])
    with use_plan("table"):
        for columns in (Columns(regions, None), None):
            layer.train()
            result = ours(layer, x, segmap, columns)
            assert close(result, expected)
            grads = torch.autograd.grad((result * weights).sum(), [x, *layer.parameters()])
            for (name, _), a, b in zip([("x", x), *layer.named_parameters()], grads, wanted, strict=True):
                # relative to the largest of all: the bias before an instance norm has none but rounding
                assert (a - b).abs().max() <= 1e-9 * max(float(g.abs().max()) for g in wanted), name
        layer.eval()
        with torch.no_grad():
            expected = F.leaky_relu(layer(x, segmap), 0.2)
            for _ in range(2):  # what is derived from the weights, and kept
                assert close(ours(layer, x, segmap, Columns(regions, None)), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm(norm: str) -> None:
    layer = Holder("3x3", norm, 1.0).double().eval()
    found = labels(2)
    x = torch.randn(2, C, 12, 12, dtype=torch.float64)
    with torch.no_grad(), use_plan("table"):
        expected = F.leaky_relu(layer(x, onehot(found)), 0.2)
        assert close(ours(layer, x, onehot(found), Columns(RegionMap(found, K, ignore_index=-1), None)), expected)
        with use_plan("dense"):
            segmap = torch.randn(2, K, 7, 5, dtype=torch.float64)
            assert close(ours(layer, x, segmap, None), F.leaky_relu(layer(x, segmap), 0.2))


class Ops(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", ["group", "group without parameters", "affine instance"])
@pytest.mark.parametrize("plan", ["table", "latent", "dense"])
def test_norm_affine_and_modulation_are_one_pass(norm: str, plan: str) -> None:
    """Nothing else of the size of x is made, nor does torch normalise it first."""
    layer = Holder("1x1 alone", norm, 0.0).double().eval()
    found, size = labels(2, 24), (24, 24)
    columns = Columns(RegionMap(found, K, ignore_index=-1), None) if plan == "table" else None
    segmap = torch.randn(2, K, *((12, 12) if plan == "latent" else size), dtype=torch.float64)
    x, modulator = torch.randn(2, C, *size, dtype=torch.float64), layer.modulator()
    with torch.no_grad(), use_plan("dense" if plan == "dense" else "auto"):
        wanted = None
        if columns is not None:
            with use_plan("table"):
                wanted = neighbourhoods_of(modulator, columns, size)
        how = modulation(modulator, segmap, columns, size, wanted)
        assert (how.table is None) is (plan == "dense")
        with Ops() as seen:
            result = modulate(layer.norm, x, how, negative_slope=0.2)
        if columns is None:
            assert close(result, F.leaky_relu(layer(x, segmap), 0.2))
    assert seen.names.count("mixsyn_fast::region_norm") == 1
    assert not [name for name in seen.names if "norm" in name and not name.startswith("mixsyn_fast")], seen.names
    assert not {"aten::mul", "aten::add", "aten::clone"} & set(seen.names), seen.names


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_volumes(norm: str, layout: torch.memory_format) -> None:
    """A latent of a video decoder: a row of the table per latent voxel, or dense maps; gradients."""
    made = nn.GroupNorm(3, C).double() if norm == "group" else nn.InstanceNorm3d(C, affine=True).double()
    nn.init.normal_(made.weight), nn.init.normal_(made.bias)
    size = (4, 6, 10)
    x = torch.randn(2, C, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    latent = LatentMap(torch.randn(2, 2 * C, 2, 3, 5, dtype=torch.float64), size)
    scale, shift = latent.dense().chunk(2, 1)
    leaves = [x, made.weight, made.bias]
    expected = F.leaky_relu(made(x) * scale + shift, 0.2)
    weights = torch.randn_like(x)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    folded = [torch.cat(_folded(made, *t.chunk(2, 1)), 1) for t in (latent.rows, latent.dense())]
    for how in (Modulation(latent.index, folded[0]), Modulation(None, None, *folded[1].chunk(2, 1))):
        result = modulate(made, x, how, negative_slope=0.2)
        assert result.stride() == x.stride() and close(result, expected)
        for a, b in zip(torch.autograd.grad((result * weights).sum(), leaves), wanted, strict=True):
            assert close(a, b, 1e-9)


def test_a_group_of_one_value_and_autocast_as_torch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")  # no kernel is there for the device
    norm, maps = nn.GroupNorm(C, C).double(), torch.randn(2, C, 1, 1, dtype=torch.float64)
    x = torch.randn(2, C, 1, 1, dtype=torch.float64)
    assert close(modulate(norm, x, Modulation(None, None, maps, maps)), norm(x) * maps + maps)
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True), torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with torch.no_grad(), FakeTensorMode():  # of a device that need not be there
            for made in (nn.GroupNorm(3, C, device="cuda"), nn.InstanceNorm2d(C, device="cuda")):
                for kind in (torch.bfloat16, torch.float32, torch.float64):
                    x = torch.empty(2, C, 6, 6, device="cuda", dtype=kind)
                    assert modulate(made, x, Modulation(None, None, x, x)).dtype == made(x).dtype
    finally:
        torch.set_autocast_enabled("cuda", enabled), torch.set_autocast_dtype("cuda", dtype)


@pytest.mark.parametrize("kind", ["3x3", "grouped", "mobile", "1x1 alone"])
def test_columns_of_any_values_and_edges(kind: str) -> None:
    layer = Holder(kind, "instance", 1.0).double().eval()
    found, x = labels(2) + 1, torch.randn(2, C, 6, 12, dtype=torch.float64)
    values = torch.randn(K + 1, K, dtype=torch.float64)
    edges = torch.rand(found.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    onehots = F.one_hot(found.clamp(max=K - 2), K - 1).permute(0, 3, 1, 2).double()
    with_edges = torch.cat((onehots, edges[:, None].double()), 1)
    with torch.no_grad(), use_plan("table"):
        segmap = values[found].permute(0, 3, 1, 2)
        expected = F.leaky_relu(layer(x, segmap), 0.2)
        assert close(ours(layer, x, segmap, Columns(RegionMap(found, K + 1), values)), expected)
        expected = F.leaky_relu(layer(x, with_edges), 0.2)
        columns = Columns(RegionMap(found.clamp(max=K - 2), K - 1, edges=edges), None)
        assert close(ours(layer, x, with_edges, columns), expected)


@pytest.mark.parametrize("kernels", [(5, 5), (7,), (5, 3, 5)], ids=str)
def test_wide_windows_are_those_of_their_pixels(kernels: tuple[int, ...]) -> None:
    """As many rows as there are windows, one row a window: of a map that a window sees differ on one side alone."""
    found, radius = torch.zeros(1, 14, 30, dtype=torch.int64), sum(kernel // 2 for kernel in kernels)
    found[:, :, 15], found[:, 7] = 1, 2
    framed = F.pad(found[0].double(), (radius,) * 4, value=9)
    windows = F.unfold(framed[None, None], 2 * radius + 1)[0].t()
    numbers = torch.unique(windows, dim=0, return_inverse=True)[1]
    made = neighbourhoods(RegionMap(found, 3), (14, 30), kernels)
    pairs = torch.unique(torch.stack((numbers, made.index.reshape(-1).long())), dim=1)
    assert len(pairs[0].unique()) == len(pairs[1].unique()) == pairs.shape[1] == made.counts[-1]


@pytest.mark.parametrize("size", [(9, 7), (4, 5, 6)], ids=str)
@pytest.mark.parametrize("per_image", [False, True])
def test_taps_are_those_of_the_pixels_around(size: tuple[int, ...], per_image: bool) -> None:
    """The codes of a label neighbourhood say what its pixels do: edges, pixels of no region, what is outside."""
    labels = torch.randint(-1, K, (2, *size), generator=torch.Generator().manual_seed(2))
    edges = torch.rand(labels.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    for regions in (RegionMap(labels, K, ignore_index=-1), RegionMap(labels, K, ignore_index=-1, edges=edges)):
        for radius in range(3):
            found = regions.patterns(size, radius, per_image)
            rows = (K + 1) * (1 if regions.edges is None else 2)
            pixel = _pixel_of_row(found.index, len(found.patterns))
            expected = _taps_around(_columns(regions, size), rows, pixel, 2 * radius + 1)
            assert torch.equal(_taps_of_labels(regions, found.patterns, rows), expected)


def test_the_plan_and_the_work() -> None:
    """Blocks take the table, noise does not; heads of different kernels never do."""
    layer = Holder("3x3", "instance", 1.0)
    large, noise = torch.zeros(1, 64, 64, dtype=torch.int64), torch.randint(0, K, (1, 64, 64))
    large[:, 20:, 30:] = 1
    found = neighbourhoods_of(layer.modulator(), Columns(RegionMap(large, K), None), (64, 64))
    assert found is not None and found.counts[1] < found.counts[2] < 100
    counted = work(layer.modulator(), found.counts, 64 * 64, True)
    assert counted.dense_macs == 64 * 64 * 9 * (K * HIDDEN + 2 * HIDDEN * C)
    assert counted.table_macs == found.counts[1] * 9 * 2 * HIDDEN * C
    assert counted.table_bytes < counted.dense_bytes == 4 * 64 * 64 * (HIDDEN + 2 * C)
    assert neighbourhoods_of(layer.modulator(), Columns(RegionMap(noise, K), None), (64, 64)) is None
    layer.heads[1] = conv(HIDDEN, C, 5)
    assert neighbourhoods_of(layer.modulator(), Columns(RegionMap(large, K), None), (64, 64)) is None


def test_half_precision_rounds_once() -> None:
    """The rows are made in float32: no worse than the layer's own form in bfloat16."""
    layer = Holder("instance-normed", "group", 1.0).eval()
    found, x = labels(2), torch.randn(2, C, 12, 12)
    with torch.no_grad(), use_plan("table"):
        exact = F.leaky_relu(layer.double()(x.bfloat16().double(), onehot(found)), 0.2)
        layer.bfloat16()
        exact = F.leaky_relu(Holder.forward(layer.double(), x.bfloat16().double(), onehot(found)), 0.2)
        layer.bfloat16()
        segmap = onehot(found).bfloat16()
        theirs = F.leaky_relu(layer(x.bfloat16(), segmap), 0.2)
        result = ours(layer, x.bfloat16(), segmap, Columns(RegionMap(found, K, ignore_index=-1), None))
    assert result.dtype == torch.bfloat16
    assert (result.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()


# --- dense features ---------------------------------------------------------------------------------------------------

# integer ratios, sizes that do not divide, a single cell, a smaller size, the map's own
ENLARGED = [
    ((5, 6), (10, 12)),
    ((3, 4), (12, 16)),
    ((2, 3), (16, 24)),
    ((4, 5), (7, 13)),
    ((1, 2), (9, 3)),
    ((9, 7), (5, 4)),
]
ENLARGED += [((6, 5), (6, 5)), ((3, 5), (12, 10))]


def dense_case(
    kind: str, norm: str, cells: tuple[int, int], size: tuple[int, int], batch: int
) -> tuple[Holder, Tensor, Tensor]:
    layer = Holder(kind, norm, 1.0).double()
    generator = torch.Generator().manual_seed(sum(cells) + batch)
    x = torch.randn(batch, C, *size, dtype=torch.float64, generator=generator)
    return layer, x, torch.randn(batch, K, *cells, dtype=torch.float64, generator=generator)


def of_features(layer: Holder, x: Tensor, segmap: Tensor, channels_last: bool) -> Tensor:
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    size = (int(x.shape[2]), int(x.shape[3]))
    made = modulation(layer.modulator(), segmap, None, size, channels_last=channels_last)
    return modulate(layer.norm, x, made, negative_slope=0.2)


@pytest.mark.parametrize(("cells", "size"), ENLARGED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_any_size(kind: str, cells: tuple[int, int], size: tuple[int, int]) -> None:
    """Outputs in both layouts, twice (what is kept of the weights), and all gradients, that of the map among them."""
    for batch, norm in ((1, "affine instance"), (2, "instance"), (2, "affine batch")):
        layer, x, segmap = dense_case(kind, norm, cells, size, batch)
        slope = 0.2
        leaves = [x.requires_grad_(), segmap.requires_grad_()]
        expected = F.leaky_relu(layer(*leaves), slope)
        weights = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        wanted = torch.autograd.grad((expected * weights).sum(), [*leaves, *layer.parameters()])
        largest = max(float(g.abs().max()) for g in wanted)
        with use_plan("table"):
            for channels_last in (False, True):
                result = of_features(layer, x, segmap, channels_last)
                assert close(result, expected, 1e-12)
                grads = torch.autograd.grad((result * weights).sum(), [*leaves, *layer.parameters()])
                for (name, _), a, b in zip(
                    [("x", x), ("map", segmap), *layer.named_parameters()], grads, wanted, strict=True
                ):
                    assert (a - b).abs().max() <= 1e-11 * largest, name
            layer.eval()
            with torch.no_grad():
                expected = F.leaky_relu(layer(x, segmap), slope)
                for channels_last in (False, True) * 2:
                    assert close(of_features(layer, x, segmap, channels_last), expected, 1e-12)


def test_features_in_other_memory() -> None:
    """Slices, transposed and channels_last maps."""
    layer, x, segmap = dense_case("3x3", "instance", (4, 6), (16, 24), 2)
    with torch.no_grad(), use_plan("table"):
        expected = F.leaky_relu(layer(x, segmap), 0.2)
        wide = torch.zeros(2, 2 * K, 6, 8, dtype=torch.float64)
        wide[:, ::2, 1:5, 1:7] = segmap
        for other in (
            wide[:, ::2, 1:5, 1:7], segmap.mT.contiguous().mT, segmap.contiguous(memory_format=torch.channels_last),
        ):  # fmt: skip
            assert not other.is_contiguous() and close(of_features(layer, x, other, True), expected, 1e-12)


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("one", [0.0, 1.0])
def test_halves_of_one_convolution_of_features(shift_first: bool, one: float) -> None:
    layer, x, segmap = dense_case("merged", "instance", (3, 3), (12, 12), 1)
    part = layer.modulator()
    both = Modulator(layer, part.norm, part.shared, part.scale, (), one, shift_first)
    with torch.no_grad(), use_plan("table"):
        halves = layer.heads[0](layer.shared(F.interpolate(segmap, size=(12, 12)))).chunk(2, 1)
        scale, shift = halves[::-1] if shift_first else halves
        expected = layer.norm(x) * (one + scale) + shift
        for gradient in (False, True):
            for channels_last in (False, True):
                laid_out = x.contiguous(memory_format=torch.channels_last) if channels_last else x
                with torch.set_grad_enabled(gradient):
                    made = modulation(both, segmap, None, (12, 12), channels_last=channels_last)
                    assert close(modulate(layer.norm, laid_out, made), expected, 1e-12)


def test_kept_kernels_follow_the_weights() -> None:
    """A step of any weight, a bias that goes, another size: each is noticed."""
    layer, x, segmap = dense_case("3x3", "instance", (3, 3), (12, 12), 1)
    layer.eval()
    with torch.no_grad(), use_plan("table"):

        def same(size: int = 12) -> bool:
            given = x[:, :, :size, :size].contiguous()
            return all(
                close(of_features(layer, given, segmap, last), F.leaky_relu(layer(given, segmap), 0.2), 1e-12)
                for last in (False, True)
            )

        assert same()
        for parameter in layer.parameters():
            parameter.mul_(1.5)
            assert same()
        layer.heads[1].bias = None
        assert same() and same(6) and same(12)


def test_which_convolutions_of_features_fold() -> None:
    """Where products are saved, as the specification counts them; by large layers unless asked; none in the dense plan."""
    layer = Holder("3x3", "instance", 1.0)
    for ratio, first, second in ((2, 4 / 9, None), (4, 25 / 144, 100 / 144), (8, 25 / 576, 121 / 576), (1, None, None)):
        segmap, size = torch.zeros(1, K, 16, 16), (16 * ratio, 16 * ratio)
        with use_plan("table"):
            with_gradient = folds_of(layer.modulator(), segmap, size)
            with torch.no_grad():
                folds = folds_of(layer.modulator(), segmap, size)
        # on the way back the parts cost more
        assert with_gradient.shared == folds.shared and with_gradient.last is (ratio > 4)
        found = [folds.shared[0], folds.heads[0][0], folds.heads[1][0]]
        for fold, expected in zip(found, (first, second, second), strict=True):
            assert (fold is None) is (expected is None)
            assert fold is None or expected is None or math.isclose(fold.share, expected, rel_tol=0.05, abs_tol=0.005)
        pixels = size[0] * size[1]
        macs, size_ = folded_work(layer.modulator(), folds, pixels, 1)
        whole = [9 * K * HIDDEN, 9 * HIDDEN * C, 9 * HIDDEN * C]
        assert macs == round(sum(pixels * w * (1 if f is None else f.share) for w, f in zip(whole, found, strict=True)))
        outs = (HIDDEN, C, C)
        assert size_ == 4 * sum(o * (pixels if f is None else f.positions) for o, f in zip(outs, found, strict=True))
        assert folds.any is (ratio > 1) and folds.last is (ratio > 2)
        for plan in ("auto", "dense"):  # too small to pay; never
            with use_plan(plan):
                assert not folds_of(layer.modulator(), segmap, size).any
    large = Modulator(layer, layer.norm, (conv(256, 128), nn.ReLU()), (conv(128, 64),), (conv(128, 64),))
    with torch.no_grad():
        folds = folds_of(large, torch.zeros(1, 256, 64, 64), (256, 256))
    assert folds.any and folds.last
    normed = Holder("instance-normed", "instance", 1.0).modulator()
    with use_plan("table"), torch.no_grad():
        folds = folds_of(normed, torch.zeros(1, K, 16, 16), (64, 64))
        mobile_folds = folds_of(Holder("mobile", "none", 1.0).modulator(), torch.zeros(1, K, 16, 16), (128, 128))
    assert folds.last  # the norm comes after the last convolution
    assert mobile_folds.heads[0][0] is not None and mobile_folds.heads[0][1] is None  # the norm lies between


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_features_in_less_precision(dtype: torch.dtype, ratio: int) -> None:
    """Twice the error of the layer's own form in that precision at most; the result is of that precision."""
    generator = torch.Generator().manual_seed(ratio)
    layer = Holder("3x3", "instance", 1.0).to(dtype).eval()
    x = torch.randn(2, C, 4 * ratio, 4 * ratio, generator=generator).to(dtype)
    segmap = torch.randn(2, K, 4, 4, generator=generator).to(dtype)
    with torch.no_grad(), use_plan("table"):
        theirs = F.leaky_relu(layer(x, segmap), 0.2)
        results = [of_features(layer, x, segmap, channels_last) for channels_last in (False, True)]
        exact = F.leaky_relu(layer.double()(x.double(), segmap.double()), 0.2)
    for result in results:
        assert result.dtype == dtype
        assert (result.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()
