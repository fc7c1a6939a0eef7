"""The discriminator against the published form written in plain PyTorch; shortcuts, spectral norm, R1, bad input."""

from __future__ import annotations

import copy
import itertools
import pickle

import published as pub
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models import load_checked
from mixsyn_fast.models.discriminators import (
    DiscriminatorConfig,
    ExemplarPicture,
    MultiScaleDiscriminator,
    _halved_map,
    logits_of,
)
from mixsyn_fast.models.losses import r1_penalty
from torch import Tensor, nn

from mixsyn_fast import use_backend, use_plan
from mixsyn_fast.region_map import RegionMap

K = 5


class PlainScale(nn.Module):
    """One scale, as published: every convolution 4 x 4 with padding 2, on map and image concatenated."""

    def __init__(self, channels: int, widths: tuple[int, ...], spectral: bool, instance: bool) -> None:
        super().__init__()
        last = len(widths)
        self.model0 = nn.Sequential(nn.Conv2d(channels, widths[0], 4, 2, 2), nn.LeakyReLU(0.2))
        for i, (inner, outer) in enumerate(itertools.pairwise(widths), 1):
            conv: nn.Module = nn.Conv2d(inner, outer, 4, 1 if i == last - 1 else 2, 2, bias=not instance)
            if spectral:
                conv = nn.utils.spectral_norm(conv)
            norm = nn.InstanceNorm2d(outer) if instance else nn.Identity()
            setattr(self, f"model{i}", nn.Sequential(nn.Sequential(conv, norm), nn.LeakyReLU(0.2)))
        setattr(self, f"model{last}", nn.Sequential(nn.Conv2d(widths[-1], 1, 4, 1, 2)))
        self.depth = last + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return all features."""
        features = []
        for i in range(self.depth):
            x = getattr(self, f"model{i}")(x)
            features.append(x)
        return features


class Plain(nn.Module):
    """The discriminator, as published."""

    def __init__(self, channels: int, widths: tuple[int, ...], scales: int, spectral: bool, instance: bool) -> None:
        super().__init__()
        for i in range(scales):
            setattr(self, f"discriminator_{i}", PlainScale(channels, widths, spectral, instance))
        self.scales = scales

    def forward(self, label_map: Tensor, image: Tensor) -> list[list[Tensor]]:
        """Return the features of every scale."""
        x = torch.cat((label_map, image), 1)
        results = []
        for i in range(self.scales):
            results.append(getattr(self, f"discriminator_{i}")(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=[1, 1], count_include_pad=False)
        return results


def pair(dtype: torch.dtype = torch.float64, **fields) -> tuple[Plain, MultiScaleDiscriminator]:
    """Return the published form with random parameters and our discriminator with the same state."""
    config = DiscriminatorConfig(**({"label_nc": K, "ndf": 8} | fields))
    widths = [config.ndf]
    for _ in range(config.n_layers - 1):
        widths.append(min(2 * widths[-1], 512))
    channels = config.label_nc + config.edges + 3 + (config.label_nc + 3 if config.exemplar else 0)
    torch.manual_seed(3)
    plain = Plain(channels, tuple(widths), config.scales, config.spectral_norm, config.instance_norm).to(dtype)
    ours = MultiScaleDiscriminator(config).to(dtype)
    load_checked(ours, plain.state_dict(), fold=False)
    return plain.eval(), ours.eval()


def labels(batch: int, height: int, width: int, ignored: bool = True) -> Tensor:
    """Return a blobby label map."""
    return pub.blobs(batch, K, height, width, seed=1, ignored=ignored)


def maps(batch: int, height: int, width: int, edges: bool = False, dtype: torch.dtype = torch.float64):
    """Return the same maps as a RegionMap and as the published one-hot tensor, some pixels of no region."""
    found = labels(batch, height, width)
    drawn = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(5)) < 0.2 if edges else None
    onehot = pub.onehot(found, K, dtype)
    if drawn is not None:
        onehot = torch.cat((onehot, drawn[:, None].to(dtype)), 1)
    return RegionMap(found, K, ignore_index=-1, edges=drawn), onehot


def assert_same(ours: list[list[Tensor]], theirs: list[list[Tensor]], tolerance: float = 1e-12) -> None:
    """Check numbers, shapes and values of features of all scales."""
    assert [[f.shape for f in scale] for scale in ours] == [[f.shape for f in scale] for scale in theirs]
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert float((a - b).detach().abs().max()) <= tolerance * float(b.detach().abs().max())


CASES = [
    {},
    {"edges": True},
    {"scales": 1},
    {"scales": 3, "n_layers": 3},
    {"n_layers": 5, "ndf": 4},
    {"n_layers": 1},
    {"spectral_norm": False},
    {"instance_norm": False},
    {"ndf": 256, "n_layers": 3, "scales": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("plan", ["auto", "dense"])
def test_same_features_as_published(case: dict, plan: str) -> None:
    plain, ours = pair(**case)
    regions, onehot = maps(2, 64, 48, case.get("edges", False))
    image = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad(), use_plan(plan):
        expected = plain(onehot, image)
        assert_same(ours(image, regions), expected)
        assert_same(ours(image, onehot), expected)  # a plain tensor does as well


@pytest.mark.parametrize("size", [(67, 93), (40, 41), (33, 32)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    plain, ours = pair(edges=True)
    regions, onehot = maps(1, *size, edges=True)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_same(ours(image, regions), plain(onehot, image))


def test_map_of_another_size() -> None:
    """The map is resized to the images, nearest."""
    plain, ours = pair()
    regions, onehot = maps(1, 100, 60)
    image = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        assert_same(ours(image, regions), plain(F.interpolate(onehot, size=(64, 48)), image))


def test_soft_map_and_its_gradient() -> None:
    plain, ours = pair()
    image = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    weights = torch.rand(2, K, 64, 48, dtype=torch.float64).softmax(1)
    gradients = []
    for model in (ours, plain):
        soft = weights.clone().requires_grad_()
        features = ours(image, soft) if model is ours else plain(soft, image)
        sum(scale[-1].square().sum() for scale in features).backward()
        gradients.append(soft.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("edges", [False, True])
def test_same_gradients_as_published(edges: bool) -> None:
    plain, ours = pair(edges=edges)
    regions, onehot = maps(2, 64, 48, edges)
    images = [torch.randn(2, 3, 64, 48, dtype=torch.float64, requires_grad=True)]
    images.append(images[0].detach().clone().requires_grad_())
    for features in (ours(images[0], regions), plain(onehot, images[1])):
        sum(f.square().mean() for scale in features for f in scale).backward()
    torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-9, atol=1e-14)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-13)


def test_names_and_counts() -> None:
    """Names, shapes and number of entries of a published file (19 regions: 22 input channels)."""
    state = MultiScaleDiscriminator(DiscriminatorConfig(label_nc=19)).state_dict()
    shapes = {"model0.0.weight": (64, 22, 4, 4), "model0.0.bias": (64,)}
    for i, (inner, outer) in enumerate([(64, 128), (128, 256), (256, 512)], 1):
        shapes[f"model{i}.0.0.weight_orig"] = (outer, inner, 4, 4)
        shapes[f"model{i}.0.0.weight_u"], shapes[f"model{i}.0.0.weight_v"] = (outer,), (inner * 16,)
    shapes |= {"model4.0.weight": (1, 512, 4, 4), "model4.0.bias": (1,)}
    expected = {f"discriminator_{i}.{name}": shape for i in (0, 1) for name, shape in shapes.items()}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert DiscriminatorConfig(n_layers=6).widths == (64, 128, 256, 512, 512, 512)


def test_sets_share_the_map_and_do_not_see_each_other() -> None:
    _, ours = pair()
    regions, _ = maps(2, 64, 48)
    sets = [torch.randn(2, 3, 64, 48, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        together = ours(torch.cat(sets), regions)
        for i, image in enumerate(sets):
            alone = ours(image, regions)
            assert_same([[f[2 * i : 2 * i + 2] for f in scale] for scale in together], alone)
        for i, logits in enumerate(logits_of(together, 3)):
            assert all(torch.equal(t, scale[-1][2 * i : 2 * i + 2]) for t, scale in zip(logits, together, strict=True))


def test_parts_can_be_shared() -> None:
    _, ours = pair()
    regions, _ = maps(2, 64, 48)
    image = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    for plan in ("auto", "dense"):
        with torch.no_grad(), use_plan(plan):
            parts = ours.read_map(regions, (64, 48))
            assert parts.convolved == (plan == "auto") and len(parts.tensors) == 2
            assert_same(ours(image, regions, parts), ours(image, regions), 0)
    with pytest.raises(ValueError, match=r"parts: expected those of images of size \(64, 32\), got \(64, 48\)"):
        ours(image[..., :32], regions, parts)
    assert not parts.tensors[0].requires_grad and ours.read_map(regions, (64, 48)).tensors[0].requires_grad


def test_the_one_hot_map_is_never_made() -> None:
    _, ours = pair()
    regions, _ = maps(2, 64, 48)
    with torch.no_grad():
        ours(torch.randn(2, 3, 64, 48, dtype=torch.float64), regions)
    assert not [key for key in regions._cache if key[0] == "onehot"]


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (2, 1)])
def test_pooled_map_is_counted_exactly(size: tuple[int, int]) -> None:
    found = torch.randint(-1, K, (3, *size))
    edges = torch.rand(3, *size) < 0.3
    regions = RegionMap(found, K, ignore_index=-1, edges=edges)
    expected = F.avg_pool2d(regions.onehot(), 3, stride=2, padding=1, count_include_pad=False)
    torch.testing.assert_close(_halved_map(regions, size), expected, rtol=1e-6, atol=0)


def test_one_power_iteration_per_pass_in_training() -> None:
    plain, ours = pair()
    regions, onehot = maps(1, 64, 48)
    image = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        ours(image, regions)
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items()), "eval changes nothing"
        for _ in range(2):
            assert_same(ours.train()(image, regions), plain.train()(onehot, image))
    theirs = plain.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-13)
    changed = "discriminator_1.model2.0.0.weight_u"
    assert not torch.equal(ours.state_dict()[changed], before[changed])


def test_r1_as_with_the_published_form() -> None:
    """The penalty and its second-order gradient."""
    plain, ours = pair()
    regions, onehot = maps(2, 64, 48)
    real = torch.randn(2, 3, 64, 48, dtype=torch.float64)

    def judge(image: Tensor) -> list[Tensor]:
        return logits_of(ours(image, regions, differentiable_twice=True))[0]

    penalty = r1_penalty(judge, real)
    expected = r1_penalty(lambda image: [scale[-1] for scale in plain(onehot, image)], real)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-10)
    penalty.backward()
    expected.backward()
    theirs = dict(plain.named_parameters())
    checked = 0
    for name, parameter in ours.named_parameters():
        if theirs[name].grad is not None and float(theirs[name].grad.abs().max()) > 0:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-7, atol=1e-15)
            checked += 1
    assert checked >= 8


def test_fused_and_plain_layers_agree_in_float32() -> None:
    plain, ours = pair(torch.float32)
    regions, onehot = maps(2, 64, 48, dtype=torch.float32)
    image = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = plain(onehot, image)
        assert_same(ours(image, regions), expected, 1e-5)
        assert_same(ours(image, regions, differentiable_twice=True), expected, 1e-5)
        with use_backend("reference"):
            assert_same(ours(image, regions), expected, 1e-5)


def test_bfloat16_autocast() -> None:
    _, ours = pair(torch.float32)
    ours.train()
    regions, _ = maps(2, 64, 48)
    image = torch.randn(2, 3, 64, 48)
    state = copy.deepcopy(ours.state_dict())
    exact = ours(image, regions)
    norms = {name: value.clone() for name, value in ours.state_dict().items() if name.endswith("_u")}
    ours.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(image, regions)
    for a, b in zip(itertools.chain(*found), itertools.chain(*exact), strict=True):
        assert float(((a.float() - b).norm() / b.norm()).detach()) < 0.03
    # the power iteration itself stays in float32
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in norms.items())
    sum(scale[-1].float().mean() for scale in found).backward()
    assert all(bool(p.grad.isfinite().all()) for p in ours.parameters())


def test_copies_after_a_forward() -> None:
    _, ours = pair()
    regions, _ = maps(1, 64, 48)
    image = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    ours.train()(image, regions)
    expected = ours.eval()(image, regions)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_same(twin(image, regions), expected, 0)


def exemplars(batch: int, height: int, width: int) -> tuple[ExemplarPicture, Tensor]:
    """Return exemplars, and the same as what a convolution reads of them: one-hot map, then image."""
    found = pub.blobs(batch, K, height, width, seed=8, ignored=True)
    image = torch.randn(batch, 3, height, width, dtype=torch.float64)
    return ExemplarPicture(image, RegionMap(found, K, ignore_index=-1)), torch.cat(
        (pub.onehot(found, K, image.dtype), image), 1
    )


@pytest.mark.parametrize("case", [{}, {"edges": True, "scales": 3}, {"scales": 1, "n_layers": 2}], ids=str)
@pytest.mark.parametrize("plan", ["auto", "dense"])
def test_beside_an_exemplar_as_concatenated(case: dict, plan: str) -> None:
    """[map | exemplar's map | exemplar | image], MSCA's Eq. 11: features, and gradients of all of it."""
    plain, ours = pair(exemplar=True, **case)
    regions, onehot = maps(2, 64, 48, case.get("edges", False))
    beside, given = exemplars(2, 64, 48)
    image = torch.randn(4, 3, 64, 48, dtype=torch.float64, requires_grad=True)  # two sets
    features, leaves, gradients = [], [], []
    for model in (ours, plain):
        shown = beside.image.clone().requires_grad_()
        if model is ours:
            with use_plan(plan):
                found = ours(image, regions, exemplar=ExemplarPicture(shown, beside.regions))
        else:
            both = torch.cat((onehot, given[:, :K], shown), 1)
            found = plain(both.repeat(2, 1, 1, 1), image)
        total = sum(f.square().mean() for scale in found for f in scale)
        leaves.append([image, shown, *model.parameters()])
        features.append(found)
        gradients.append(torch.autograd.grad(total, leaves[-1]))
    assert_same(*features)
    names = dict(zip((id(p) for p in plain.parameters()), (n for n, _ in plain.named_parameters()), strict=True))
    theirs = {names.get(id(leaf), str(i)): g for i, (leaf, g) in enumerate(zip(leaves[1], gradients[1], strict=True))}
    names = dict(zip((id(p) for p in ours.parameters()), (n for n, _ in ours.named_parameters()), strict=True))
    for i, (leaf, grad) in enumerate(zip(leaves[0], gradients[0], strict=True)):
        torch.testing.assert_close(grad, theirs[names.get(id(leaf), str(i))], rtol=1e-8, atol=1e-13)


def test_exemplars_of_other_maps() -> None:
    """A soft map beside a hard one, a map of another size, a plain tensor."""
    plain, ours = pair(exemplar=True)
    regions, onehot = maps(2, 64, 48)
    beside, given = exemplars(2, 64, 48)
    image = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    soft = torch.rand(2, K, 64, 48, dtype=torch.float64).softmax(1)
    large, wide = maps(2, 128, 96)
    with torch.no_grad():
        for given_map, planes in ((RegionMap.soft(soft), soft), (large, F.interpolate(wide, size=(64, 48))), (soft, soft)):
            found = ours(image, regions, exemplar=ExemplarPicture(beside.image, given_map))
            assert_same(found, plain(torch.cat((onehot, planes, beside.image), 1), image))
        assert_same(ours(image, soft, exemplar=beside), plain(torch.cat((soft, given), 1), image))


def test_an_exemplar_is_read_once() -> None:
    """What `read_map` returns holds it, for sets in one pass and apart; neither one-hot map is made."""
    _, ours = pair(exemplar=True)
    regions, _ = maps(2, 64, 48)
    beside, _ = exemplars(2, 64, 48)
    sets = [torch.randn(2, 3, 64, 48, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        parts = ours.read_map(regions, (64, 48), beside)
        together = ours(torch.cat(sets), regions, exemplar=beside)
        for i, image in enumerate(sets):
            assert_same(ours(image, regions, parts), [[f[2 * i : 2 * i + 2] for f in scale] for scale in together])
    assert [t.shape[1] for t in parts.tensors] == [8, 8]
    assert not [key for each in (regions, beside.regions) for key in each._cache if key[0] == "onehot"]


def test_r1_beside_an_exemplar() -> None:
    """The gradient of the penalty is that by the real image alone."""
    plain, ours = pair(exemplar=True)
    regions, onehot = maps(2, 64, 48)
    beside, given = exemplars(2, 64, 48)
    real = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    penalty = r1_penalty(lambda x: logits_of(ours(x, regions, exemplar=beside, differentiable_twice=True))[0], real)
    expected = r1_penalty(lambda x: [scale[-1] for scale in plain(torch.cat((onehot, given), 1), x)], real)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-10)
    penalty.backward()
    expected.backward()
    first = (ours.discriminator_0.model0[0].weight.grad, plain.discriminator_0.model0[0].weight.grad)
    torch.testing.assert_close(*first, rtol=1e-7, atol=1e-15)


def test_wrong_exemplars() -> None:
    _, ours = pair(exemplar=True)
    _, without = pair()
    regions, _ = maps(2, 64, 48)
    beside, _ = exemplars(2, 64, 48)
    image = torch.zeros(2, 3, 64, 48, dtype=torch.float64)
    for model, given, words in (
        (ours, None, "exemplar: expected one, got none"),
        (without, beside, "exemplar: expected none, got one"),
        (ours, exemplars(1, 64, 48)[0], r"exemplar: expected images of shape \(2, 3, 64, 48\), got \(1, 3, 64, 48\)"),
        (ours, exemplars(2, 64, 32)[0], r"exemplar: expected images of shape \(2, 3, 64, 48\), got"),
        (ours, ExemplarPicture(image, maps(1, 64, 48)[0]), "exemplar: expected 2 maps of 5 regions, got RegionMap"),
        (ours, ExemplarPicture(image, RegionMap(torch.zeros(2, 64, 48).int(), 4)), "exemplar: expected 2 maps of 5 regions"),
    ):
        with pytest.raises(ValueError, match=words):
            model(image, regions, exemplar=given)


def test_empty_batch() -> None:
    _, ours = pair()
    features = ours(torch.zeros(0, 3, 64, 48, dtype=torch.float64), RegionMap(torch.zeros(0, 64, 48).int(), K))
    assert [scale[-1].shape[0] for scale in features] == [0, 0]


def test_wrong_input() -> None:
    _, ours = pair()
    regions, onehot = maps(2, 64, 48)
    image = torch.zeros(2, 3, 64, 48, dtype=torch.float64)
    for shape in ((3, 64, 48), (2, 4, 64, 48)):
        with pytest.raises(ValueError, match="images: expected shape"):
            ours(torch.zeros(shape, dtype=torch.float64), regions)
    with pytest.raises(ValueError, match="images: expected a multiple of the 2 maps, got 3 images"):
        ours(torch.zeros(3, 3, 64, 48, dtype=torch.float64), regions)
    with pytest.raises(ValueError, match="regions: expected 5 channels, 0 of them edges"):
        ours(image, maps(2, 64, 48, edges=True)[0])
    with pytest.raises(ValueError, match="regions: expected 5 channels"):
        ours(image, RegionMap(torch.zeros(2, 64, 48).int(), K + 1))
    with pytest.raises(ValueError, match="regions: expected 5 channels"):
        ours(image, onehot[:, : K - 1])
    _, with_edges = pair(edges=True)
    with pytest.raises(ValueError, match="regions: expected 6 channels, 1 of them edges"):
        with_edges(image, regions)
    with pytest.raises(ValueError, match="regions: expected 6 channels"):  # six regions are no five and edges
        with_edges(image, RegionMap(torch.zeros(2, 64, 48).int(), K + 1))
    with pytest.raises(TypeError, match="regions"):
        ours(image, [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["label_nc", "ndf", "n_layers", "scales"])
def test_wrong_config(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a positive number, got 0"):
        DiscriminatorConfig(**{name: 0})
