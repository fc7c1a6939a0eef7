"""accelerate() on dense features and on maps of few columns: plans, precision, gradients, what layers of a forward share."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator

import published as pub
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import RegionMap, use_plan
from mixsyn_fast.accelerate import accelerate, constant_conditioning
from mixsyn_fast.layers import dense_stacks
from mixsyn_fast.layers.spade import spade_norm

maps = importlib.import_module("mixsyn_fast.accelerate.maps")
K, C = 6, 8


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is an error; layers as small as these would not leave their own plan themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with use_plan("table"):
        yield


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


class Block(nn.Module):
    """A residual block whose norms read one map, as face animation decoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = (pub.SPADE(C, K, "instance", hidden=10) for _ in "ab")
        self.conv_0, self.conv_1 = (nn.Conv2d(C, C, 3, padding=1) for _ in "ab")

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        h = self.conv_0(F.leaky_relu(self.norm_0(x, segmap), 0.2))
        return x + self.conv_1(F.leaky_relu(self.norm_1(h, segmap), 0.2))


class Decoder(nn.Module):
    """Features modulate at their own size, at twice and at four times it."""

    def __init__(self) -> None:
        super().__init__()
        self.middle, self.up_0, self.up_1 = Block(), Block(), Block()

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        x = F.interpolate(self.middle(x, segmap), scale_factor=2)
        return self.up_1(F.interpolate(self.up_0(x, segmap), scale_factor=2), segmap)


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    plain = pub.randomise(make()).double().eval()
    return plain, copy.deepcopy(plain)


@pytest.mark.parametrize("channels_last", [None, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_face_animation_decoder(batch: int, channels_last: bool | None) -> None:
    """Features of any sign, new at every call: outputs, gradients of the map and of all weights, plans and work."""
    plain, fast = pair(Decoder)
    report = accelerate(fast, channels_last=channels_last)
    x = draw(batch, C, 6, 5)
    with torch.no_grad():
        for seed in range(2):
            segmap = draw(batch, K, 6, 5, seed=seed)
            assert close(fast(x, segmap), plain(x, segmap))
        wide = draw(batch, K, 12, 5, seed=7)
        assert close(fast(x, wide[:, :, ::2]), plain(x, wide[:, :, ::2]))
    work = report.work()
    plans = {name: of.plan for name, of in work.items()}
    assert [plans[f"{part}.norm_0"] for part in ("middle", "up_0", "up_1")] == ["dense", "polyphase", "polyphase"]
    first, heads = 9 * K * 10, 2 * 9 * 10 * C
    assert work["middle.norm_1"].macs == work["middle.norm_1"].published_macs == batch * 30 * (first + heads)
    two, four = work["up_0.norm_1"], work["up_1.norm_1"]
    assert two.macs == batch * 120 * (first * 4 / 9 + heads) and two.bytes == two.published_bytes
    assert four.macs == round(batch * 480 * (first * 25 / 144 + heads * 100 / 144))
    assert "polyphase" in str(report)
    segmap = draw(batch, K, 6, 5).requires_grad_()
    grads = []
    for net in (plain.train(), fast.train()):
        output = net(x, segmap)
        grads.append(torch.autograd.grad((output * draw(*output.shape)).sum(), [segmap, *net.parameters()]))
    largest = max(float(g.abs().max()) for g in grads[0])
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-10 * largest


def test_features_keep_their_precision_and_their_holes() -> None:
    """bfloat16 as the model is; NaN where the layer's own form has it."""
    plain, fast = pair(Decoder)
    accelerate(fast)
    x, segmap = draw(1, C, 6, 6), draw(1, K, 6, 6)
    with torch.no_grad():
        segmap[0, 2, 1, 1] = torch.nan
        layers = plain.get_submodule("up_1.norm_0"), fast.get_submodule("up_1.norm_0")
        theirs, ours = (layer(draw(1, C, 24, 24), segmap) for layer in layers)
        assert torch.equal(theirs.isnan(), ours.isnan()) and close(ours.nan_to_num(), theirs.nan_to_num())
        segmap = draw(1, K, 6, 6).bfloat16()
        exact = plain.bfloat16().double()(x.bfloat16().double(), segmap.double())
        theirs, ours = (net.bfloat16()(x.bfloat16(), segmap) for net in (plain, fast))
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()


def test_features_under_constant_conditioning() -> None:
    plain, fast = pair(Decoder)
    accelerate(fast)
    x, segmap = draw(1, C, 6, 6), draw(1, K, 6, 6)
    with torch.no_grad():
        expected = fast(x, segmap)
        with constant_conditioning(fast) as kept:
            assert all(torch.equal(fast(x, segmap.clone()), expected) for _ in range(2)) and kept.hits == 6
            assert close(fast(x, segmap + 1), plain(x, segmap + 1))


@pytest.mark.parametrize(
    ("x", "segmap", "words"),
    [
        ((1, C, 6, 6), (1, K + 1, 3, 3), "channels"),
        ((1, C, 6, 6), (2, K, 3, 3), "batch"),
        ((1, C, 6, 6), (K, 3, 3), "four dimensions"),
        ((1, C, 6, 6), (1, K, 0, 3), "empty"),
    ],
)
def test_maps_that_do_not_fit(x: tuple[int, ...], segmap: tuple[int, ...], words: str) -> None:
    fast = pair(lambda: pub.SPADE(C, K))[1]
    accelerate(fast)
    with pytest.raises(RuntimeError, match=words):
        fast(draw(*x), draw(*segmap))


# --- layers that hold the same weights ------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Three norms with one first convolution, a fourth with its own; ``between`` runs before the third and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(pub.SPADE(C, K, "instance", hidden=10) for _ in range(4))
        for norm in self.norms[1:3]:
            norm.mlp_shared = self.norms[0].mlp_shared

    def forward(
        self, x: Tensor, segmap: Tensor, which: tuple[int, ...] = (0, 3, 1, 2), between: Callable[[], object] = lambda: None
    ) -> Tensor:
        for number in which:
            if number == 2:
                between()
            x = self.norms[number](x, segmap)
        between()
        return x


@pytest.mark.parametrize("size", [6, 24])
def test_the_same_weights_make_one_result(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all layers that hold them, kept until the last has it; another map, a gradient or other weights: again."""
    plain, fast = pair(Tied)
    report = accelerate(fast)
    shared, made, waiting = fast.norms[0].mlp_shared[0].weight, [], []
    hidden = dense_stacks.DenseStacks.hidden
    monkeypatch.setattr(
        dense_stacks.DenseStacks, "hidden",
        lambda self, *given: made.append(self.shared[0].weight is shared) or hidden(self, *given),
    )  # fmt: skip
    x, segmap = draw(2, C, size, size), draw(2, K, 6, 6)

    def run(segmap: Tensor = segmap, **how: object) -> tuple[Tensor, int]:
        made.clear()
        result = fast(x, segmap, **how)
        assert maps._thread.shared is None
        return result, sum(made)

    def look() -> None:
        waiting.append(len(maps._thread.shared.results))

    with torch.no_grad():
        first, count = run(between=look)
        assert count == 3 and close(first, plain(x, segmap))  # nothing is known yet
        again, count = run(between=look)
        assert count == 1 and torch.equal(again, first) and waiting == [0, 0, 1, 0]  # none behind the last
        macs = [report.work()[f"norms.{i}"].macs for i in range(4)]
        assert macs[1] == macs[2] < macs[0] == macs[3]
        other = segmap.clone()
        edited, count = run(other, between=lambda: other.data.mul_(2))
        copied = segmap.clone()
        assert count == 2 and close(edited, plain(x, copied, between=lambda: copied.mul_(2)))
        _, count = run(which=(0, 3))  # fewer layers than expected: what is kept for the others ends with the forward
        assert count == 1
        _, count = run(which=(0, 2), between=look)
        assert count == 2 and waiting[-1] == 0  # one layer asked, last time
        with pytest.raises(ZeroDivisionError):
            run(between=lambda: 1 // 0)
        assert maps._thread.shared is None and maps._thread.maps is None
        shared.mul_(1.5)
        plain.norms[0].mlp_shared[0].weight.mul_(1.5)
        for _ in range(2):
            result, _ = run()
            assert close(result, plain(x, segmap))
    for _ in range(2):
        assert run()[1] == 3  # with gradients


# --- few columns ----------------------------------------------------------------------------------------------------------


def blocks(count: int, cells: int, side: int, batch: int = 1) -> Tensor:
    drawn = torch.randint(0, count, (batch, cells, cells), generator=torch.Generator().manual_seed(count))
    return drawn.repeat_interleave(side, 1).repeat_interleave(side, 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_class_vectors_take_the_table_of_spade_norm(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of class vectors is no reason for the layer's own form: it is read once, and is spade_norm(class_vectors=)."""
    labels, vectors, x = blocks(8, 8, 8, batch), draw(batch, 8, 24), draw(batch, C, 64, 64)
    segmap = torch.stack([v[m] for v, m in zip(vectors, labels, strict=True)]).permute(0, 3, 1, 2).contiguous()
    plain = pub.randomise(pub.SPADE(C, 24, "instance", hidden=16)).double().eval()
    net = nn.ModuleList((copy.deepcopy(plain), copy.deepcopy(plain)))
    net.forward = lambda x, m: net[1](net[0](x, m), m)  # type: ignore[method-assign]
    report, reads = accelerate(net), []
    begins = maps._begins
    monkeypatch.setattr(maps, "_begins", lambda m: reads.append(1) or begins(m))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = net(x, segmap)
        assert len(reads) == 1 and {of.plan for of in report.work().values()} == {"table"}
        assert close(ours, plain(plain(x, segmap), segmap))
        regions = RegionMap(labels, 8)
        theirs = spade_norm(plain, spade_norm(plain, x, regions, class_vectors=vectors), regions, class_vectors=vectors)
        assert close(ours, theirs)
        assert close(net[0](x[..., :8, :8], segmap), plain(x[..., :8, :8], segmap))
    with use_plan("auto"), torch.no_grad():
        large = pub.SPADE(64, 24, "instance").eval()
        report = accelerate(large)
        large(torch.randn(batch, 64, 64, 64), segmap.float())
        assert report.work()[""].plan == "table"


@pytest.mark.parametrize("channels", [1, 5, 8, 24])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_columns_whatever_their_memory(channels: int, dtype: torch.dtype) -> None:
    """The same columns in any memory; an image begins anew; a zero is one whatever its sign; a single pixel is found."""
    values = draw(6, channels).to(dtype)
    values[0], values[1] = 0, 1
    labels = blocks(6, 5, 4, 3)
    labels[1, 0, :4] = labels[0, -1, -1]  # as the last pixels of the image before
    labels[2, 11, 13] = 1
    plain = values[labels].permute(0, 3, 1, 2).contiguous()
    wide = torch.zeros(3, 2 * channels, 22, 24, dtype=dtype)
    wide[:, ::2, 1:21, 2:22] = plain
    signed = plain.clone()
    signed[:, :, ::3][signed[:, :, ::3] == 0] = -0.0
    forms = (
        plain, plain.contiguous(memory_format=torch.channels_last), wide[:, ::2, 1:21, 2:22], plain.mT.contiguous().mT,
        plain[:1], plain[1:2].contiguous(memory_format=torch.channels_last), signed,
    )  # fmt: skip
    for segmap in forms:
        found = maps.distinct_columns(segmap)
        assert found is not None and found.values is not None and found.regions.labels is not None
        assert torch.equal(found.values[found.regions.labels.long()].permute(0, 3, 1, 2), segmap)
        batch = len(segmap)
        assert len(found.values) == len(torch.unique(segmap.permute(0, 2, 3, 1).reshape(-1, channels).float(), dim=0)), batch


def test_a_map_of_columns_that_needs_a_gradient() -> None:
    """The gradient of a map is that of all its pixels, also where a table would do; afterwards the table does again."""
    plain, fast = pair(lambda: pub.SPADE(C, K, "instance", hidden=10))
    report = accelerate(fast)
    segmap, x = draw(5, K)[blocks(5, 4, 3, 2)].permute(0, 3, 1, 2).contiguous(), draw(2, C, 24, 24)
    weights = draw(2, C, 24, 24, seed=3)
    grads = []
    for layer in (plain, fast):
        leaf = segmap.clone().requires_grad_()
        grads.append(torch.autograd.grad((layer(x, leaf) * weights).sum(), leaf)[0])
    assert close(grads[1], grads[0]) and report.work()[""].plan == "polyphase"
    with torch.no_grad():
        assert close(fast(x, leaf), plain(x, leaf)) and report.work()[""].plan == "table"
