"""accelerate() on SPADE's kin: layers of the same structure under other names, with other parts, on other maps."""

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
from torch.utils.checkpoint import checkpoint

from mixsyn_fast import RegionMap, use_plan
from mixsyn_fast.accelerate import accelerate, restore
from mixsyn_fast.accelerate.report import LayerWork
from mixsyn_fast.backend import FallbackWarning

maps = importlib.import_module("mixsyn_fast.accelerate.maps")
K, C, HIDDEN = 5, 8, 12


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is an error unless a test says otherwise; layers as small as these would not take the table themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with use_plan("table"):
        yield


def conv(i: int, o: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups)


class Kin(nn.Module):
    """norm(x) * (1 + gamma) + beta, under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm = nn.InstanceNorm2d(C)
        self.shared = nn.Sequential(conv(K, HIDDEN), nn.ReLU())
        self.to_gamma, self.to_beta = conv(HIDDEN, C), conv(HIDDEN, C)

    def resized(self, x: Tensor, cond: Tensor) -> Tensor:
        return F.interpolate(cond, size=x.shape[2:], mode="nearest")

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        hidden = self.shared(self.resized(x, cond))
        return self.first_norm(x) * (1 + self.to_gamma(hidden)) + self.to_beta(hidden)


class ActivationOfItsOwn(Kin):
    """The activation is a module of the layer; the shift comes first, and names tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        del self.to_gamma, self.to_beta
        self.norm, self.shared, self.act = nn.BatchNorm2d(C), conv(K, HIDDEN, 5), nn.LeakyReLU(0.3, inplace=True)
        self.one, self.other = conv(HIDDEN, C, 5), conv(HIDDEN, C, 5)
        del self.first_norm

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        hidden = self.act(self.shared(self.resized(x, cond)))
        return self.norm(x) * self.other(hidden) + self.one(hidden)


class Functional(Kin):
    """The activation is a function; scale and shift are halves of one convolution, the shift first."""

    def __init__(self) -> None:
        super().__init__()
        del self.to_gamma, self.to_beta
        self.shared, self.both = conv(K, HIDDEN), conv(HIDDEN, 2 * C)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale = self.both(F.leaky_relu(self.shared(self.resized(x, cond)), 0.2)).chunk(2, 1)
        return self.first_norm(x) * (1 + scale) + shift


class Convolution(nn.Sequential):
    """As a medical imaging library writes it: a convolution, and a Sequential of what follows."""

    def __init__(self, i: int, o: int, *after: nn.Module) -> None:
        super().__init__(conv(i, o), nn.Sequential(*after))


class Monai(Kin):
    """Scale and shift pass an instance norm of their own."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first_norm, self.shared = norm, Convolution(K, HIDDEN, nn.LeakyReLU(0.01))
        self.to_gamma, self.to_beta = (Convolution(HIDDEN, C, nn.InstanceNorm2d(C)) for _ in "ab")


class Spatial(nn.Module):
    """A group norm, and 1x1 convolutions of a latent; no "1 +"."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(4, C, eps=1e-6)
        self.conv_y, self.conv_b = conv(K, C, 1), conv(K, C, 1)

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        zq = F.interpolate(zq, size=f.shape[-2:], mode="nearest")
        return self.norm_layer(f) * self.conv_y(zq) + self.conv_b(zq)


class Mobile(Kin):
    """Depthwise, instance norm, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.to_gamma, self.to_beta = (
            nn.Sequential(conv(HIDDEN, HIDDEN, 3, HIDDEN), nn.InstanceNorm2d(HIDDEN), conv(HIDDEN, C, 1)) for _ in "ab"
        )


class Separable(nn.Module):
    """Depthwise, instance norm, pointwise, in a module of their own."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(i, i, 3, i), nn.InstanceNorm2d(i), conv(i, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    """A convolution and an activation, as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = conv(K, HIDDEN), nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class PublishedMobile(Kin):
    """As published: separable convolutions are a class."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.to_gamma, self.to_beta = Block(), Separable(HIDDEN, C), Separable(HIDDEN, C)


class Doubling(Block):
    """Does more than to run its parts."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Doubled(Kin):
    """With a part that is no stack of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Doubling()


class Grouped(Kin):
    """Grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.to_gamma, self.to_beta = (conv(HIDDEN, C, 3, 4) for _ in "ab")


KIN: dict[str, Callable[[], nn.Module]] = {
    "other names": Kin,
    "5x5, its own activation, affine": ActivationOfItsOwn,
    "one head, a function": Functional,
    "MONAI, instance": lambda: Monai(nn.InstanceNorm2d(C)),
    "MONAI, batch": lambda: Monai(nn.BatchNorm2d(C)),
    "MONAI, group": lambda: Monai(nn.GroupNorm(4, C)),
    "spatial norm": Spatial,
    "mobile": Mobile,
    "mobile, in modules of their own": PublishedMobile,
    "grouped": Grouped,
}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6))


def onehot(batch: int = 2, size: int = 24) -> Tensor:
    return pub.onehot(pub.blobs(batch, K, size, size, seed=batch, ignored=True), K, torch.float64)


def columns(batch: int = 2, channels: int = K, count: int = 7) -> Tensor:
    labels = pub.blobs(batch, count, 24, 24, seed=4)
    values = torch.randn(count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return values[labels].permute(0, 3, 1, 2).contiguous()


def features(batch: int = 2, channels: int = C, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KIN)
def test_every_kind_on_every_map(kind: str) -> None:
    """Outputs on one-hot maps, on few columns and on dense features; gradients and statistics in training; restore."""
    torch.manual_seed(0)
    plain = pub.randomise(KIN[kind]()).double().eval()
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("spade") == 1 and not report.left, str(report)
    assert "one-hot maps alone" not in str(report)
    x, state = features(), {name: value.clone() for name, value in fast.state_dict().items()}
    with torch.no_grad():
        for segmap in (onehot(), columns(), features(2, K, 6, 3), onehot()):
            assert close(fast(x, segmap), plain(x, segmap))
    weights = features(seed=9)
    for segmap in (onehot(), features(2, K, 6, 3)):
        grads = []
        for layer in (plain.train(), fast.train()):
            leaves = [t.clone().requires_grad_() for t in (x, segmap)]
            output = layer(*leaves) if segmap.shape[-1] == 6 else layer(leaves[0], segmap)
            grads.append(torch.autograd.grad((output * weights).sum(), [*leaves, *layer.parameters()], allow_unused=True))
        largest = max(float(g.abs().max()) for g in grads[0] if g is not None)
        for a, b in zip(*grads, strict=True):
            assert (a is None) is (b is None)
            assert a is None or (a - b).abs().max() <= 1e-9 * largest
    for name, value in plain.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], value), name
    assert list(state) == list(fast.state_dict()) and restore(fast) and type(fast) is type(plain)


class Argmax(Kin):
    """Reads labels: on soft maps another formula."""

    def resized(self, x: Tensor, cond: Tensor) -> Tensor:
        small = super().resized(x, cond)
        return (small == small.amax(1, keepdim=True).clamp(min=0.5)).to(small.dtype)


class Unlike(Kin):
    """Of SPADE's structure, with another formula."""

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return torch.sin(super().forward(x, cond))


def test_what_only_looks_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "published formula" in accelerate(nn.ModuleDict({"a": Doubled()})).left[0].note
    report = accelerate(nn.ModuleDict({"a": Unlike()}))
    assert not report.count("spade") and report.count("conv2d") == 3  # its convolutions are convolutions like others
    assert "published formula" in report.left[0].note
    plain = pub.randomise(Argmax()).double().eval()
    fast = copy.deepcopy(plain)
    assert "of one-hot maps alone" in accelerate(fast).changed[0].note
    x = features()
    with torch.no_grad():
        assert close(fast(x, onehot()), plain(x, onehot()))
        monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
        with pytest.warns(FallbackWarning, match="not one-hot"):
            assert close(fast(x, columns()), plain(x, columns()))


def test_the_columns_of_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few columns are found, many and NaN are not; what is found is the map, bit for bit."""
    for segmap in (columns(), columns(3, 70, 30).float(), columns().half(), columns().to(memory_format=torch.channels_last)):
        found = maps.distinct_columns(segmap)
        assert found is not None and found.values is not None and found.regions.num_regions == len(found.values)
        assert torch.equal(found.values[found.regions.labels.long()].permute(0, 3, 1, 2), segmap)
    seven = columns()
    assert maps.distinct_columns(seven).regions.num_regions == 7
    assert maps.distinct_columns(features(2, K, 64)) is None
    spoilt = columns()
    spoilt[0, 0, 3, 3] = torch.nan
    assert maps.distinct_columns(spoilt) is None
    with monkeypatch.context() as patch:  # all sums are equal
        patch.setattr(torch, "randn", lambda *size, **how: torch.zeros(size, dtype=how["dtype"]))
        assert maps.distinct_columns(seven) is None
    late = columns(1)
    late[0, :, -1, :] = features(1, K, 24)[0, :, 0]
    found = maps.distinct_columns(late)
    assert found is not None and found.regions.num_regions == len(
        torch.unique(late.permute(0, 2, 3, 1).reshape(-1, K), dim=0)
    )


def test_maps_of_columns_are_read_once_and_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (pub.randomise(Kin()) for _ in "ab")

        def forward(self, x: Tensor, cond: Tensor, edit: Callable[[Tensor], object]) -> Tensor:
            x = self.a(x, cond)
            edit(cond)
            return self.b(x, cond)

    plain, seen = Two().double().eval(), []
    fast = copy.deepcopy(plain)
    accelerate(fast)
    original = maps.distinct_columns
    monkeypatch.setattr(maps, "distinct_columns", lambda segmap: seen.append(1) or original(segmap))
    x = features()
    with torch.no_grad():
        assert close(fast(x, columns(), lambda m: None), plain(x, columns(), lambda m: None)) and len(seen) == 1
        for edit in (lambda m: m.data.copy_(m.flip(3)), lambda m: m.data[:, :, 8, 8].copy_(m[:, :, 20, 1] + 1)):
            assert close(fast(x, columns(), edit), plain(x, columns(), edit))


def test_a_part_that_has_all_layers_reads_a_map_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of a model calls its decoder; lists on the way to the layers are never called."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(pub.randomise(Kin()) for _ in "ab")

        def forward(self, x: Tensor, cond: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](x, cond), cond)

    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Conv2d(C, C, 1), Decoder()

        def decode(self, x: Tensor, cond: Tensor) -> Tensor:
            return self.decoder(x, cond)

        def forward(self, x: Tensor, cond: Tensor) -> Tensor:
            return self.decode(self.encoder(x), cond)

    plain, seen = Coder().double().eval(), []
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert [entry.name for entry in report.changed if entry.kind == "root"] == ["", "decoder"]
    original = maps.distinct_columns
    monkeypatch.setattr(maps, "distinct_columns", lambda segmap: seen.append(1) or original(segmap))
    with torch.no_grad():
        for number, call in enumerate((lambda net, *given: net(*given), Coder.decode), 1):
            assert close(call(fast, features(), columns()), call(plain, features(), columns())) and len(seen) == number
    restore(fast)
    assert [type(module) for module in fast.modules()] == [type(module) for module in plain.modules()]


def test_no_fallback_for_a_clvae_or_oasis_like_map() -> None:
    """[z, one-hot] with a z per image: few columns, the table plan; z that varies by pixel: convolutions."""
    plain = pub.randomise(Kin()).double().eval()
    plain.shared[0] = conv(3 + K, HIDDEN).double()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    z = features(2, 3, 1).expand(-1, -1, 24, 24)
    x = features()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for noise in (z, features(2, 3, 24)):
            segmap = torch.cat((noise, onehot()), 1)
            assert close(fast(x, segmap), plain(x, segmap))


def test_positional_clade(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pub.randomise(pub.CLADEGenerator(4, K, (64, 64), spectral=False, positional=True)).double().eval()
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("clade") == 18 and not report.left, str(report)
    segmap, distance = onehot(2, 64), features(2, 2, 64)
    with torch.no_grad():
        assert close(fast(segmap, None, distance), plain(segmap, None, distance))
    layer = pub.PositionalCLADE(C, K).double().eval()
    accelerate(layer)
    with pytest.raises(RuntimeError, match="positions"):
        layer(features(), onehot())
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert layer(features(), onehot(), features(2, 2, 5)).shape == (2, C, 12, 12)


def test_regions_beyond_the_limit_of_tables() -> None:
    plain = pub.randomise(pub.SPADE(C, 600, hidden=4)).double().eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    segmap = F.one_hot(torch.randint(0, 600, (1, 24, 24)), 600).permute(0, 3, 1, 2).double()
    with torch.no_grad():
        assert close(fast(features(1), segmap), plain(features(1), segmap))


def test_the_report_counts_the_work_of_the_last_call() -> None:
    net = nn.ModuleDict({"a": Kin(), "b": Kin()}).eval()
    report = accelerate(net)
    assert not report.work() and "last call" not in str(report)
    x = features().float()
    with torch.no_grad():
        net["a"](torch.randn(1, C, 64, 64), F.interpolate(onehot(1).float(), size=(64, 64)))
        net["b"](x, features(2, K).float())
    table, dense = report.work()["a"], report.work()["b"]
    assert table.plan == "table" and table.macs < table.published_macs == 64 * 64 * 9 * (K * HIDDEN + 2 * HIDDEN * C)
    assert table.bytes < table.published_bytes == 64 * 64 * 4 * (HIDDEN + 2 * C)
    assert dense.plan == "dense" and dense.macs == dense.published_macs
    text = str(report)
    assert "a  table  9.29 M -> " in text and "b  dense  " in text, text


def test_the_report_counts_the_work_of_other_families() -> None:
    """SEAN's by the rows of its table, or by convolutions of its weights; CLADE's and INADE's by their rows."""
    style = 6
    parts = {"sean": pub.ACE(C, K, style, hidden=HIDDEN), "plain": pub.ACE(C, K, style, False, HIDDEN)}
    parts |= {"clade": pub.CLADE(C, K), "icpe": pub.PositionalCLADE(C, K), "inade": Inade()}
    net = nn.ModuleDict(parts).double().eval()
    report = accelerate(net)
    x, segmap, codes = features(), onehot(), features(2, K, style)[:, :, 0]
    pixels = 2 * 12 * 12

    def run() -> dict[str, LayerWork]:
        with torch.no_grad():
            net["sean"](x, segmap, codes)
            net["plain"](x, segmap)
            net["clade"](x, segmap)
            net["icpe"](x, segmap, features(2, 2, 24))
            net["inade"](x, segmap, instances(), features(2, 4, 6)[..., 0])
        return report.work()

    found = run()
    regions = RegionMap.from_onehot(segmap)
    near, own, wide = (len(regions.patterns((12, 12), *how).patterns) for how in ((1,), (1, True), (2, True)))
    of_codes = 2 * len(regions.present) * 9 * style * 2 * C
    published = pixels * 9 * (K * HIDDEN + HIDDEN * 2 * C + style * 2 * C)
    row = 2 * C * 8
    assert found["sean"] == (
        "table", published, near * 9 * HIDDEN * 2 * C + of_codes, pixels * (8 * (HIDDEN + style) + 2 * row),
        near * 8 * HIDDEN + (own + wide) * row,
    )  # fmt: skip
    assert found["plain"].published_macs == pixels * 9 * (K * HIDDEN + HIDDEN * 2 * C) and found["plain"].plan == "table"
    assert found["clade"] == ("table", 0, 0, pixels * row, K * row)
    assert found["icpe"] == ("dense", pixels * 4, pixels * 4, pixels * row, pixels * row)
    assert found["inade"].plan == "table" and found["inade"].bytes < found["inade"].published_bytes == pixels * row
    assert "sean   table" in str(report)
    with use_plan("dense"):
        assert run()["sean"] == ("dense", published, published, *[pixels * (8 * (HIDDEN + style) + 2 * row)] * 2)


# --- volumes, latents with a convolution of their own, instances ----------------------------------------------------------


class Volume(nn.Module):
    """In three dimensions, of any norm; gamma and beta pass an instance norm."""

    def __init__(self, norm: nn.Module, kernel: int = 3) -> None:
        super().__init__()
        reach = kernel // 2
        self.norm, self.hidden = norm, nn.Sequential(nn.Conv3d(K, HIDDEN, kernel, padding=reach), nn.LeakyReLU(0.01))
        self.gamma, self.beta = (
            nn.Sequential(nn.Conv3d(HIDDEN, C, kernel, padding=reach), nn.InstanceNorm3d(C)) for _ in "ab"
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        hidden = self.hidden(F.interpolate(cond, size=x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)


class Video(nn.Module):
    """1x1x1 convolutions of a latent; the first of an odd number of frames is resized alone. Returns features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.y, self.b = nn.GroupNorm(4, C), nn.Conv3d(K, C, 1), nn.Conv3d(K, C, 1)

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        frames = f.shape[2]
        parts = [(zq[:, :, :1], 1), (zq[:, :, 1:], frames - 1)] if frames > 1 and frames % 2 else [(zq, frames)]
        zq = torch.cat([F.interpolate(part, size=(count, *f.shape[3:])) for part, count in parts], 2)
        return self.norm(f) * self.y(zq) + self.b(zq)


class EvenVideo(Video):
    """The first frame alone where their number is even: of no known kind."""

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        return super().forward(f, zq) if f.shape[2] % 2 else super().forward(f, zq[:, :, :1].expand_as(zq))


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm3d(C), nn.BatchNorm3d(C), nn.GroupNorm(4, C)], ids=lambda n: type(n).__name__
)
def test_volumes(norm: nn.Module) -> None:
    """On one-hot volumes, on few columns and on dense ones; edits of a map behind autograd's back."""
    plain = pub.randomise(Volume(copy.deepcopy(norm))).double().eval()
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("spade") == 1 and not report.left and "one-hot maps alone" not in str(report), str(report)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, C, 6, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (2, 2, 4, 3), generator=generator).repeat_interleave(3, 1).repeat_interleave(2, 2)
    few = torch.randn(K, K, generator=generator, dtype=torch.float64)[labels].movedim(-1, 1)
    onehot = F.one_hot(labels, K).movedim(-1, 1).double()
    with torch.no_grad():
        for segmap in (onehot, few, few.contiguous(memory_format=torch.channels_last_3d), x[:, :K], onehot.flip(2)):
            assert close(fast(x, segmap), plain(x, segmap))
        assert report.work()[""].plan == "table"
    assert maps.distinct_columns(few).regions.num_regions == K
    grads = []
    for layer in (plain.train(), fast.train()):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad((layer(leaf, onehot) * x.roll(1)).sum(), [leaf, *layer.parameters()]))
    largest = max(float(g.abs().max()) for g in grads[0])
    assert all((a - b).abs().max() <= 1e-9 * largest for a, b in zip(*grads, strict=True))

    class Edited(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
            y = self.layer(x, segmap)
            segmap.data.copy_(segmap.flip(2))
            return self.layer(y, segmap)

    plain, fast = Edited(plain.eval()), Edited(copy.deepcopy(plain).eval())
    accelerate(fast)
    with torch.no_grad():
        for segmap in (onehot, few):
            assert close(fast(x, segmap.clone()), plain(x, segmap.clone()))


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_video_whose_first_frame_is_resized_alone(frames: int) -> None:
    plain = pub.randomise(Video()).double().eval()
    fast = copy.deepcopy(plain)
    assert accelerate(fast).count("spade") == 1
    x, latent = features(2, C, 6)[:, :, None].repeat(1, 1, frames, 1, 1), features(2, K, 3)[:, :, None].repeat(1, 1, 3, 1, 1)
    latent = latent * torch.arange(1, 4)[:, None, None]
    with torch.no_grad():
        assert close(fast(x, latent[:, :, :frames]), plain(x, latent[:, :, :frames]))
        if frames == 5:
            with pytest.raises(RuntimeError, match="no frame beside the first"):
                fast(x, latent[:, :, :1])
    report = accelerate(nn.ModuleDict({"a": pub.randomise(EvenVideo())}))
    assert not report.count("spade") and "published formula" in str(report), str(report)


class Causal(nn.Module):
    """A convolution of one frame in a shell that keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(K, C, 1)

    def forward(self, latent: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.conv(latent), latent.clone()


class Cached(nn.Module):
    """As CogVideoX's: features and caches."""

    reads = False

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.y, self.b = nn.GroupNorm(4, C), Causal(), Causal()

    def forward(self, f: Tensor, zq: Tensor, cache: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        kept, old = {}, cache or {}
        zq = F.interpolate(zq, size=f.shape[2:])
        y, kept["y"] = self.y(zq, old.get("y"))
        b, kept["b"] = self.b(zq, old.get("b"))
        return self.norm(f) * y + b + (old["y"].sum() if self.reads and old else 0), kept


def test_a_layer_that_reads_its_cache() -> None:
    """Keeps its own forward; one that hands it on for nothing does not."""
    plain = pub.randomise(Cached()).double().eval()
    fast = copy.deepcopy(plain)
    assert accelerate(fast).count("spade") == 1
    f, zq = features(2, C, 6)[:, :, None].repeat(1, 1, 4, 1, 1), features(2, K, 3)[:, :, None].repeat(1, 1, 2, 1, 1)
    with torch.no_grad():
        y, cache = fast(f, zq)
        assert close(y, plain(f, zq)[0]) and list(cache) == ["y", "b"] and not cache["y"].numel()
        assert torch.equal(fast(f, zq, cache)[0], y) and torch.equal(plain(f, zq, cache)[0], plain(f, zq)[0])
    Cached.reads = True
    try:
        report = accelerate(nn.ModuleDict({"a": Cached()}))
    finally:
        Cached.reads = False
    assert not report.count("spade") and "reads its cache" in str(report), str(report)


class Padded(nn.Module):
    """KVAE: a convolution of the resized latent, padded otherwise than by zeros, before those for scale and shift."""

    def __init__(self, mode: str, add_conv: bool = True) -> None:
        super().__init__()
        self.norm_layer, self.add_conv = nn.GroupNorm(4, C, eps=1e-6), add_conv
        if add_conv:
            self.conv = nn.Conv2d(K, K, 3, padding=1, padding_mode=mode)
        self.conv_y, self.conv_b = conv(K, C, 1), conv(K, C, 1)

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        zq = F.interpolate(zq, size=f.shape[-2:], mode="nearest")
        zq = self.conv(zq) if self.add_conv else zq
        return self.norm_layer(f) * self.conv_y(zq) + self.conv_b(zq)


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular", "zeros"])
def test_other_padding(mode: str) -> None:
    """On latents, and on maps of few columns, where tables know padding by zeros alone."""
    plain = pub.randomise(Padded(mode)).double().eval()
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("spade") == 1 and "one-hot maps alone" not in str(report), str(report)
    x = features()
    for latent in (features(2, K, 3), features(2, K, 2), onehot(), columns()):
        grads = []
        for layer in (plain, fast):
            leaves = [t.clone().requires_grad_() for t in (x, latent)]
            y = layer(leaves[0], leaves[1] if latent.shape[-1] <= 3 else latent)
            grads.append(
                [y.detach(), *torch.autograd.grad(y.square().sum(), [*leaves, *layer.parameters()], allow_unused=True)]
            )
        for a, b in zip(*grads, strict=True):
            assert (a is None) is (b is None) and (a is None or close(b, a, 1e-9))
        if (
            latent.shape[-1] == 2 and mode != "zeros"
        ):  # six times as large: nine positions a pixel of the latent, but for one
            assert report.work()[""].plan == ("dense" if mode == "circular" else "table")


class Inade(nn.Module):
    """A distribution of scales and shifts per class, from which every instance draws by noise of its own.

    Of INADE's paper; its published interface is not known here.
    """

    def __init__(self, noise: int = 6) -> None:
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(C)
        self.weight, self.bias = (nn.Parameter(torch.randn(K, C, 2)) for _ in "ab")
        self.to_scale, self.to_shift = nn.Linear(noise, C), nn.Linear(noise, C)

    def forward(self, x: Tensor, segmap: Tensor, instances: Tensor, noise: Tensor | None = None) -> Tensor:
        classes = F.interpolate(segmap, size=x.shape[2:], mode="nearest")
        which = F.interpolate(instances.to(x.dtype), size=x.shape[2:], mode="nearest")[:, 0].long()
        noise = torch.randn(len(x), 4, self.to_scale.in_features, dtype=x.dtype) if noise is None else noise
        ends = []
        for table, head in ((self.weight, self.to_scale), (self.bias, self.to_shift)):
            mean, deviation = (torch.einsum("kc,bkhw->bchw", table[..., i], classes) for i in (0, 1))
            own = torch.stack([code[at] for code, at in zip(head(noise), which, strict=True)]).permute(0, 3, 1, 2)
            ends.append(mean + deviation * own)
        return self.param_free_norm(x) * (1 + ends[0]) + ends[1]


class Neighbours(Inade):
    """Looks beyond the pixel."""

    def forward(self, x: Tensor, segmap: Tensor, instances: Tensor, noise: Tensor | None = None) -> Tensor:
        return super().forward(x, F.max_pool2d(segmap, 3, 1, 1), instances, noise)


def instances(batch: int = 2) -> Tensor:
    return pub.blobs(batch, 4, 24, 24, seed=8)[:, None]


def accelerated_and_checkpointed(plain: nn.Module) -> nn.Module:
    """A copy that keeps nothing of its forward, and is checked inside of one that is checkpointed."""

    class Checkpointed(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *inputs: Tensor) -> Tensor:
            output: Tensor = checkpoint(self.layer, *inputs, use_reentrant=False)
            return output

    made = Checkpointed(copy.deepcopy(plain))
    made.layer.setting = "no state that was checked before"  # type: ignore[assignment]
    assert accelerate(made).count("instance") == 1
    return made


def test_a_row_per_image_class_and_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients (those of the noise as well), numbers drawn by the layer, copies; checked at the first call."""
    torch.manual_seed(0)
    plain = Inade().double().eval()
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.count("instance") == 1 and "checked at the first" in str(report) and not report.left, str(report)
    x, noise, segmap = features(), features(2, 4, 6)[..., 0], onehot()
    by_instance = importlib.import_module("mixsyn_fast.accelerate.instances")
    rows = []
    own = by_instance.modulation_by_instance
    contracts = importlib.import_module("mixsyn_fast.accelerate.contracts.instance")
    monkeypatch.setattr(contracts, "modulation_by_instance", lambda *a: rows.append(own(*a)) or rows[-1])
    with torch.no_grad():
        expected = plain(x, segmap, instances(), noise)
        for twin in (fast, copy.deepcopy(fast)):
            assert close(twin(x, segmap, instances(), noise), expected)
            assert close(twin(x, segmap, instances().float(), noise=noise), expected)
        pairs = torch.cat((segmap, instances()), 1)[:, :, ::2, ::2].flatten(2)
        assert len(rows[-1].table) == 2 * max(len(torch.unique(image, dim=1).t()) for image in pairs)
        for layer in (plain, fast):
            torch.manual_seed(5)
            drawn = layer(x, segmap, instances())
            expected = drawn if layer is plain else expected
        assert close(drawn, expected)
    with torch.inference_mode():
        assert close(fast(x, segmap, instances(), noise.clone()), plain(x, segmap, instances(), noise))
    found = []
    new = accelerated_and_checkpointed(plain)
    for layer in (plain.train(), fast.train(), new):
        leaves = [t.clone().requires_grad_() for t in (x, noise)]
        y = layer(leaves[0], segmap, instances(), leaves[1])
        found.append(torch.autograd.grad((y * x.roll(1)).sum(), [*leaves, *layer.parameters()]))
    for a, *others in zip(*found, strict=True):
        for b in others:
            assert (a - b).abs().max() <= 1e-9 * max(float(g.abs().max()) for g in found[0])
    assert restore(fast) and type(fast) is Inade


def test_what_is_not_a_row_per_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs its own forward: one that looks further than a pixel, soft maps, a map that tells every pixel apart."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    monkeypatch.setattr("mixsyn_fast.backend._announced", set())
    torch.manual_seed(0)
    x, noise, segmap = features(), features(2, 144, 6)[..., 0], onehot()
    every = torch.arange(144).view(1, 1, 12, 12).expand(2, -1, -1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    kinds = {
        "published formula": (Neighbours(), segmap, instances()),
        "not one-hot": (Inade(), segmap * 0.5, instances()),
        "an instance of its own": (Inade(), segmap, every),
    }
    for said, (plain, classes, which) in kinds.items():
        plain = plain.double().eval()
        fast = copy.deepcopy(plain)
        accelerate(fast)
        with torch.no_grad(), pytest.warns(FallbackWarning, match=said):
            assert torch.equal(fast(x, classes, which, noise), plain(x, classes, which, noise))
        monkeypatch.setattr("mixsyn_fast.backend._announced", set())
