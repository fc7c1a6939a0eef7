"""MSCA's networks against the paper's equations, a few lines each in float64; what may change nothing; bad input."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import published as pub
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.data.drawn.drawing import draw_batch
from mixsyn_fast.models.feature_networks import PERCEPTUAL_TAPS, FeatureNetwork
from mixsyn_fast.models.msca.config import SCALES, VGG_CHANNELS, GeneratorConfig, sizes_of
from mixsyn_fast.models.msca.features import image_features
from mixsyn_fast.models.msca.networks import Alignment, Exemplar, FeatureDecoder, LabelPyramid, Synthesis
from torch import Tensor

from mixsyn_fast import RegionMap, use_backend, use_plan
from mixsyn_fast.layers.attended import Attended
from mixsyn_fast.layers.attention import SpatialChannelAttention, gate_values, join_gathered
from tests.compare import relative_error

K, N, M = 4, 5, 6
ATTENTIONS = ("msca", "labels", "gap")


def config(**fields: Any) -> GeneratorConfig:
    small = {"label_nc": K, "trunk": "own", "trunk_width": 2, "features": N, "condition": M, "maps": (2, 3, 3, 4, 2)}
    return GeneratorConfig(**(small | {"ngf": 2, "hidden": 4} | fields))


def alignment(**fields: Any) -> Alignment:
    torch.manual_seed(5)
    return Alignment(config(**fields)).double()


def labels(size: tuple[int, int], batch: int = 2, seed: int = 1) -> Tensor:
    """Return blobs of three of the four labels and of none: label 3 is absent."""
    return pub.blobs(batch, K - 1, *size, seed=seed, ignored=True)


def hard(size: tuple[int, int], batch: int = 2, seed: int = 1) -> RegionMap:
    return RegionMap(labels(size, batch, seed), K, ignore_index=-1)


def soft(size: tuple[int, int], batch: int = 2, seed: int = 1) -> RegionMap:
    drawn = torch.randn(batch, K, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return RegionMap.soft(drawn.softmax(1))


def features(size: tuple[int, int], batch: int = 2, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = zip(config().trunk_channels, sizes_of(*size), strict=True)
    return [torch.randn(batch, c, *at, generator=generator, dtype=torch.float64) for c, at in shapes]


# --- the equations ----------------------------------------------------------------------------------------------------


def planes(regions: RegionMap, size: tuple[int, int]) -> Tensor:
    """The label map, resized: one-hot or soft."""
    given = regions.weights if regions.is_soft else pub.onehot(regions.labels, K, torch.float64)
    return F.interpolate(given, size=size, mode="nearest")


def pyramid(module: LabelPyramid, regions: RegionMap, size: tuple[int, int]) -> list[Tensor]:
    """Eq. 2 and 3."""
    sizes = sizes_of(*size)
    found = [F.leaky_relu(F.conv2d(planes(regions, sizes[4]), module.convs[4].weight), 0.2)]
    for i in (3, 2, 1, 0):
        raised = F.interpolate(found[0], scale_factor=2, mode="bilinear", align_corners=False)
        found.insert(
            0, F.leaky_relu(F.conv2d(torch.cat((raised, planes(regions, sizes[i])), 1), module.convs[i].weight), 0.2)
        )
    return found


def aligned(
    model: Alignment,
    given: Sequence[Tensor],
    shown: RegionMap,
    wanted: RegionMap,
    size: tuple[int, int],
    kept: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Eq. 1, 4 to 8 at every scale: concat(F_x1, F_c1)."""
    exemplar_size = (given[0].shape[2], given[0].shape[3])
    conditions = pyramid(model.pyramid, shown, exemplar_size), pyramid(model.pyramid, wanted, size)
    found = []
    for i, (f, c2, c1) in enumerate(zip(given, *conditions, strict=True)):
        layer = model.aligners[i]
        x2 = F.conv2d(f, model.compress[i].weight[:, :, None, None])  # Eq. 1
        inside = torch.ones_like(f[:, 0], dtype=torch.bool) if kept is None else kept[i]
        if model.config.attention == "msca":
            logits = F.conv2d(torch.cat((x2, c2), 1), layer.spatial_weight[:, :, None, None])
            alpha = logits.masked_fill(~inside[:, None], -torch.inf).flatten(2).softmax(2)  # Eq. 4
            beta = F.conv2d(c1, layer.channel_weight[:, :, None, None]).softmax(1)  # Eq. 7
        elif model.config.attention == "labels":
            alpha = (planes(shown, tuple(f.shape[2:])) * inside[:, None]).flatten(2)
            alpha = alpha / alpha.sum(2, keepdim=True).clamp(min=1e-300)
            beta = planes(wanted, tuple(c1.shape[2:]))
        else:
            alpha = (inside.double() / inside.sum((1, 2), keepdim=True))[:, None].flatten(2)
            beta = torch.ones_like(c1[:, :1])
        values = alpha @ x2.flatten(2).mT  # Eq. 5, transposed: (B, K, N)
        if layer.gate is not None:
            first, relu, second = layer.gate
            means = torch.cat((c1.mean((2, 3)), c2.mean((2, 3))), 1)
            values = values * torch.sigmoid(second(relu(first(means))))[:, :, None]  # Eq. 6
        found.append(torch.cat((torch.einsum("bkn,bkhw->bnhw", values, beta), c1), 1))  # Eq. 8
    return found


def forms() -> tuple[tuple[str, str], ...]:
    """Return plans and backends: folded, and as published."""
    return (("auto", "auto"), ("table", "reference"), ("dense", "auto"), ("dense", "reference"))


@pytest.mark.parametrize("kind", [hard, soft])
def test_the_pyramid(kind: Any) -> None:
    torch.manual_seed(2)
    module = LabelPyramid(K, M).double()
    regions = kind((32, 64))
    expected = pyramid(module, regions, (32, 64))
    assert [tuple(f.shape[2:]) for f in expected] == [(32, 64), (16, 32), (8, 16), (4, 8), (2, 4)]
    grads = [torch.randn_like(each) for each in expected]
    of_weights = torch.autograd.grad(expected, list(module.parameters()), grads)
    for plan, backend in forms():
        with use_plan(plan), use_backend(backend):
            found = module(regions, sizes_of(32, 64))
        for ours, theirs in zip(found, expected, strict=True):
            assert relative_error(ours, theirs) < 1e-13
        for ours, theirs in zip(torch.autograd.grad(found, list(module.parameters()), grads), of_weights, strict=True):
            assert relative_error(ours, theirs) < 1e-12


def test_the_pyramid_of_a_soft_map_has_its_gradient() -> None:
    module = LabelPyramid(K, M).double()
    gradients = []
    for make in (lambda regions: module(regions, sizes_of(32, 32)), lambda regions: pyramid(module, regions, (32, 32))):
        weights = soft((32, 32)).weights.clone().requires_grad_()
        sum(each.square().sum() for each in make(RegionMap.soft(weights))).backward()
        gradients.append(weights.grad)
    assert relative_error(*gradients) < 1e-12


CASES: list[tuple[dict[str, Any], Any, tuple[int, int], tuple[int, int], int]] = [
    *(({"attention": attention}, hard, (32, 32), (32, 32), 2) for attention in ATTENTIONS),
    *(({"attention": attention}, soft, (16, 32), (32, 16), 1) for attention in ATTENTIONS),  # sizes differ
    *(({"attention": attention, "masking": False}, hard, (32, 16), (32, 64), 2) for attention in ATTENTIONS[:2]),
    ({"maps": (1, 1, 1, 1, 1)}, hard, (64, 32), (16, 32), 1),
]


@pytest.mark.parametrize(
    ("fields", "kind", "shown_size", "size", "batch"), CASES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_alignment(
    fields: dict[str, Any], kind: Any, shown_size: tuple[int, int], size: tuple[int, int], batch: int
) -> None:
    """Eq. 1 to 8, folded and as published, with all gradients; a label that the exemplar lacks, one of a single pixel."""
    model = alignment(**fields)
    shown, wanted = kind(shown_size, batch), kind(size, batch, seed=7)
    if kind is hard:
        places = wanted.labels.clone()
        places[0, 3, 4] = K - 1  # one pixel of a label that the exemplar lacks
        wanted = RegionMap(places, K, ignore_index=-1)
        alone = shown.labels.clone()
        alone[alone == 2] = 1
        alone[0, 8, 0] = 2  # the only pixel of label 2 in the exemplar; scales 0 to 3 see it
        shown = RegionMap(alone, K, ignore_index=-1)
    given = [f.requires_grad_() for f in features(shown_size, batch)]
    used = [p for name, p in model.named_parameters() if not name.startswith("trunk")]
    expected = aligned(model, given, shown, wanted, size)
    grads = [torch.randn_like(each) for each in expected]
    expected_grads = torch.autograd.grad(expected, (*given, *used), grads, allow_unused=True)
    for plan, backend in forms():
        with use_plan(plan), use_backend(backend):
            attended = model.attend(model.exemplar(given, shown), model.layout(wanted, size))
            found = [each.dense() for each in attended]
        for ours, theirs in zip(found, expected, strict=True):
            assert relative_error(ours, theirs) < 1e-12
        for ours, theirs in zip(
            torch.autograd.grad(found, (*given, *used), grads, allow_unused=True), expected_grads, strict=True
        ):
            if theirs is None:
                assert ours is None or not ours.any()
            else:
                assert ours is not None and relative_error(ours, theirs) < 1e-9


def test_an_own_trunk_begins_with_distinct_maps() -> None:
    """Attention that begins uniform is global average pooling, and hardly leaves it."""
    torch.manual_seed(0)
    image, labels = draw_batch("facade", 2, 64)
    pictures = torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1
    regions = RegionMap(torch.from_numpy(labels), 12)
    alignment = Alignment(GeneratorConfig(label_nc=12, trunk="own", trunk_width=16, features=32, condition=32))
    with torch.no_grad():
        maps = alignment.spatial_maps(image_features(alignment, None, pictures), regions)
        layout = alignment.layout(regions, (64, 64))
    for alpha, target in zip(maps, layout.targets, strict=True):
        alpha = alpha.flatten(2)
        assert 1 / alpha.square().sum(2).mean() < 0.4 * alpha.shape[2]  # positions that count
        assert 1 / target.maps.square().sum(1).mean() < 0.5 * target.maps.shape[1]  # maps that count at a position
        assert 0.3 < target.condition.std() < 3


def test_labels_go_to_their_own_label() -> None:
    """A target of the absent label alone gets nothing, of a present one its mean."""
    model = alignment(attention="labels", masking=False)
    given, shown = features((32, 32)), hard((32, 32))
    for label in (0, K - 1):
        wanted = RegionMap(torch.full((2, 32, 32), label), K)
        attended = model.attend(model.exemplar(given, shown), model.layout(wanted, (32, 32)))
        for i, each in enumerate(attended):
            x2 = F.conv2d(given[i], model.compress[i].weight[:, :, None, None])
            at = planes(shown, tuple(x2.shape[2:]))[:, label, None]
            mean = (x2 * at).sum((2, 3)) / at.sum((2, 3)).clamp(min=1)
            assert bool(mean.any()) == (label == 0)
            torch.testing.assert_close(each.dense()[:, :N], mean[:, :, None, None].expand(-1, -1, *each.size))


# --- what changes nothing ---------------------------------------------------------------------------------------------


def test_one_constant_map_is_global_average_pooling() -> None:
    """The paper's remark behind Eq. 8."""
    one, mean = alignment(maps=(1,) * SCALES, masking=False), alignment(attention="gap")
    mean.load_state_dict({k: v for k, v in one.state_dict().items() if not k.startswith("aligners")})
    with torch.no_grad():
        for layer in one.aligners:
            layer.spatial_weight.zero_()
    given, shown, wanted = features((32, 32)), hard((32, 32)), hard((32, 32), seed=7)
    found = [model.attend(model.exemplar(given, shown), model.layout(wanted, (32, 32))) for model in (one, mean)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.dense(), theirs.dense(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", [hard, soft])
def test_the_order_of_positions_is_of_no_matter(attention: str, kind: Any) -> None:
    model = alignment(attention=attention)
    for scale, f in enumerate(features((32, 32))):
        size = (f.shape[2], f.shape[3])
        condition, regions = torch.randn(2, M, *size, dtype=torch.float64), kind(size)
        order = torch.randperm(size[0] * size[1])

        def moved(x: Tensor, order: Tensor = order) -> Tensor:
            return x.flatten(-2)[..., order].view(x.shape)

        other = (
            RegionMap.soft(moved(regions.weights))
            if regions.is_soft
            else RegionMap(moved(regions.labels), K, ignore_index=-1)
        )
        aligner, compress = model.aligner(scale), model.compress[scale].weight
        first = aligner.gather(f, condition, regions, compress, None)
        second = aligner.gather(moved(f), moved(condition), other, compress, None)
        for ours, theirs in zip(first, second, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
        masses = [aligner.log_mass(f, condition, regions, compress, None)]
        masses.append(aligner.log_mass(moved(f), moved(condition), other, compress, None))
        torch.testing.assert_close(*masses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", [hard, soft])
def test_masked_positions(attention: str, kind: Any) -> None:
    """They weigh nothing, whatever is there; at coarser scales a position takes part that has any such pixel below."""
    model, size = alignment(attention=attention), (32, 32)
    given, shown, wanted = features(size), kind(size), kind(size, seed=7)
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[:, 3:20, 9:14] = True
    kept = [F.max_pool2d(mask[:, None].double(), 1 << i)[:, 0] > 0 for i in range(SCALES)]
    assert [int(each[0].sum()) for each in kept] == [85, 27, 10, 3, 2]
    expected = aligned(model, given, shown, wanted, size, kept)
    layout = model.layout(wanted, size)
    changed = [torch.where(at[:, None], f, torch.randn_like(f) * 9) for f, at in zip(given, kept, strict=True)]
    for plan in ("auto", "dense"):
        with use_plan(plan):
            for each in (given, changed):
                found = model.attend(model.exemplar(each, shown, mask=mask), layout)
                for ours, theirs in zip(found, expected, strict=True):
                    assert relative_error(ours.dense(), theirs) < 1e-12
    masses = [model.exemplar(each, shown, mask=mask, masses=True).log_masses for each in (given, changed)]
    for first, second in zip(*masses, strict=True):
        assert torch.equal(first, second)


def test_label_features_that_are_there_already() -> None:
    """Of an image that is made of itself the layout has them: bit for bit the same."""
    model, given, regions = alignment(), features((32, 32)), hard((32, 32))
    layout = model.layout(regions, (32, 32))
    calls = []
    model.pyramid.register_forward_hook(lambda *_: calls.append(1))
    shared = model.exemplar(given, regions, conditions=[target.condition for target in layout.targets])
    assert not calls
    for ours, theirs in zip(shared.gathered, model.exemplar(given, regions).gathered, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- mixtures ---------------------------------------------------------------------------------------------------------


def two(model: Alignment) -> tuple[list[Exemplar], list[tuple[list[Tensor], RegionMap]]]:
    given = [(features((32, 32), seed=3), hard((32, 32))), (features((16, 32), seed=4), hard((16, 32), seed=2))]
    return [model.exemplar(*each, masses=True) for each in given], given


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_ends_of_an_interpolation(attention: str) -> None:
    model = alignment(attention=attention)
    exemplars, _ = two(model)
    layout = model.layout(hard((32, 32), seed=7), (32, 32))
    for j, weights in enumerate(((1, 0), (0.0, 0.3))):
        found, alone = model.interpolate(exemplars, weights, layout), model.attend(exemplars[j], layout)
        assert all(
            torch.equal(a, b) for ours, theirs in zip(found, alone, strict=True) for a, b in zip(ours, theirs, strict=True)
        )


def test_an_interpolation_is_one_softmax_over_both() -> None:
    """Sec. 4: log w added to the logits, positions side by side, gates mixed linearly."""
    model = alignment()
    exemplars, given = two(model)
    wanted = hard((32, 32), seed=7)
    layout = model.layout(wanted, (32, 32))
    weights = (0.7, 2.1)
    found = model.interpolate(exemplars, weights, layout)
    c1 = pyramid(model.pyramid, wanted, (32, 32))
    for i, attended in enumerate(found):
        layer, logits, x2, gates = model.aligners[i], [], [], []
        for (f, shown), weight in zip(given, weights, strict=True):
            c2 = pyramid(model.pyramid, shown, (f[0].shape[2], f[0].shape[3]))[i]
            x2.append(F.conv2d(f[i], model.compress[i].weight[:, :, None, None]).flatten(2))
            both = torch.cat((x2[-1], c2.flatten(2)), 1)
            logits.append(layer.spatial_weight @ both + math.log(weight / both.shape[2]))  # a larger one counts no more
            gates.append(torch.sigmoid(layer.gate(torch.cat((c1[i].mean((2, 3)), c2.mean((2, 3))), 1))) * weight / 2.8)
        values = torch.cat(logits, 2).softmax(2) @ torch.cat(x2, 2).mT
        assert relative_error(attended.values, values * sum(gates)[:, :, None]) < 1e-12
        assert torch.equal(attended.maps, layout.targets[i].maps)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_equal_weights_are_one_exemplar_laid_side_by_side(attention: str) -> None:
    """MSCA's softmax runs over both; the simpler alignments, where both have every label, average both means."""
    model, scale, size = alignment(attention=attention), 0, (16, 16)
    aligner, compress = model.aligner(scale), model.compress[scale].weight
    parts = []
    for seed in (1, 2):
        f = features(size, seed=seed)[scale]
        drawn = torch.arange(256).remainder(K)[torch.randperm(256)].view(1, 16, 16).repeat(2, 1, 1)  # as many of each
        parts.append((f, torch.randn(2, M, *size, dtype=torch.float64), drawn))
    joined = [torch.cat(each, -1) for each in zip(*parts, strict=True)]
    gathered = [aligner.gather(f, c, RegionMap(at, K), compress, None) for f, c, at in parts]
    masses = [aligner.log_mass(f, c, RegionMap(at, K), compress, None) for f, c, at in parts]
    expected = aligner.gather(joined[0], joined[1], RegionMap(joined[2], K), compress, None).values
    assert relative_error(join_gathered(gathered, masses, (2.0, 2.0)), expected) < 1e-12
    total = aligner.log_mass(joined[0], joined[1], RegionMap(joined[2], K), compress, None)
    if attention == "msca":
        torch.testing.assert_close(torch.logsumexp(torch.stack(masses), 0) - math.log(2), total)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_larger_exemplar_counts_no_more(attention: str) -> None:
    """The same picture twice beside itself weighs what it weighs once; so does one whose other positions are masked."""
    model, scale, size = alignment(attention=attention), 0, (16, 16)
    aligner, compress = model.aligner(scale), model.compress[scale].weight
    once = features(size)[scale], torch.randn(2, M, *size, dtype=torch.float64), labels(size)
    twice = [torch.cat((each, each), -1) for each in once]
    mask = torch.zeros(2, 16, 32, dtype=torch.bool)
    mask[:, :, :16] = True
    given = [(*once, None), (*twice, None), (twice[0], twice[1], twice[2], mask)]
    maps = [(f, c, RegionMap(at, K, ignore_index=-1), compress, kept) for f, c, at, kept in given]
    values, masses = ([getattr(aligner, name)(*each) for each in maps] for name in ("gather", "log_mass"))
    for gathered, mass in zip(values[1:], masses[1:], strict=True):
        torch.testing.assert_close(gathered.values, values[0].values)
        torch.testing.assert_close(mass, masses[0])
    nothing = aligner.log_mass(*maps[2][:4], torch.zeros_like(mask))
    assert not nothing.isnan().any()


def test_a_label_of_one_exemplar_alone_comes_from_it() -> None:
    model = alignment(attention="labels", masking=False)
    places = [RegionMap(torch.full((1, 16, 16), label), K) for label in (0, 1)]
    exemplars = [model.exemplar(features((16, 16), 1, seed), at, masses=True) for seed, at in enumerate(places)]
    layout = model.layout(hard((16, 16), 1), (16, 16))
    found = model.interpolate(exemplars, (0.9, 0.1), layout)
    for attended, first, second in zip(found, exemplars[0].gathered, exemplars[1].gathered, strict=True):
        torch.testing.assert_close(attended.values[:, 0], first.values[:, 0])
        torch.testing.assert_close(attended.values[:, 1], second.values[:, 1])
        assert not attended.values[:, 2:].any()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_style_for_every_position(attention: str) -> None:
    """Weight maps that name one exemplar everywhere give that one; between them, the mixture of both maps."""
    model = alignment(attention=attention)
    exemplars, _ = two(model)
    layout = model.layout(hard((32, 32), seed=7), (32, 32))
    alone = [[each.dense() for each in model.attend(exemplar, layout)] for exemplar in exemplars]
    for j in (0, 1):
        maps = torch.zeros(2, 2, 32, 32)
        maps[:, j] = 1
        for ours, theirs in zip(model.spatially(exemplars, maps, layout), alone[j], strict=True):
            assert relative_error(ours.dense(), theirs) < 1e-13
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(2, 32, 32)
    found = model.spatially(exemplars, torch.stack((1 - ramp, ramp), 1), layout)
    for i, (ours, first, second) in enumerate(zip(found, *alone, strict=True)):
        share = F.avg_pool2d(ramp[:, None], 1 << i)
        assert relative_error(ours.dense(), first * (1 - share) + second * share) < 1e-13


# --- synthesis --------------------------------------------------------------------------------------------------------


class Plain(torch.nn.Module):
    """The synthesis of Appendix E in the published SPADE's blocks."""

    def __init__(self, settings: GeneratorConfig) -> None:
        super().__init__()
        widths = [settings.channels(1 << i) for i in range(SCALES)]
        self.first = torch.nn.Conv2d(N + M, widths[4], 3, padding=1)
        blocks = []
        for i, width in enumerate(widths):
            make = lambda c: pub.SPADE(c, N + M, settings.norm, settings.hidden)  # noqa: E731
            blocks.append(pub.ResBlock(widths[min(i + 1, 4)], width, "norm", make, settings.spectral_norm))
        self.blocks = torch.nn.ModuleList(blocks)
        self.conv_img = torch.nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.first(maps[4])
        for i in (4, 3, 2, 1, 0):
            x = self.blocks[i](x, maps[i])
            x = x if i == 0 else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


@pytest.mark.parametrize(
    ("fields", "size", "training"),
    [
        ({"spectral_norm": True}, (32, 32), True),
        ({"norm": "instance", "largest": 5}, (32, 64), True),
        ({"spectral_norm": True}, (32, 32), False),
    ],
    ids=str,
)
def test_synthesis(fields: dict[str, Any], size: tuple[int, int], training: bool) -> None:
    """Image, gradients and statistics, folded and as published."""
    settings = config(**fields)
    torch.manual_seed(8)
    ours, plain = Synthesis(settings).double(), Plain(settings).double()
    plain.load_state_dict(ours.state_dict())
    model = alignment()
    attended = model.attend(model.exemplar(features(size), hard(size)), model.layout(hard(size, seed=7), size))
    leaves = [[part.detach().requires_grad_() for part in each[:3]] for each in attended]
    parts = [Attended(*each) for each in leaves]
    flat = [leaf for each in leaves for leaf in each]
    start = copy.deepcopy(ours.state_dict())
    expected = plain.train(training)([each.dense() for each in parts])
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (*flat, *plain.parameters()), grad)
    for plan, backend in forms():
        ours.load_state_dict(start)
        ours.train(training)
        with use_plan(plan), use_backend(backend):
            found = ours([Attended.of(*each) for each in leaves])
        assert found.shape == (2, 3, *size) and relative_error(found, expected) < 1e-11
        by_name = dict(zip((n for n, _ in plain.named_parameters()), expected_grads[len(flat) :], strict=True))
        grads = torch.autograd.grad(found, (*flat, *ours.parameters()), grad)
        largest = max(float(g.abs().max()) for g in expected_grads)
        theirs = [*expected_grads[: len(flat)], *(by_name[n] for n, _ in ours.named_parameters())]
        for a, b in zip(grads, theirs, strict=True):
            assert float((a - b).abs().max()) <= 1e-9 * largest
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_decoder() -> None:
    """Appendix G: a 1 x 1 convolution of the map at every scale."""
    model = alignment()
    decoder = FeatureDecoder(config(), VGG_CHANNELS).double()
    attended = model.attend(model.exemplar(features((16, 32)), hard((16, 32))), model.layout(hard((32, 16)), (32, 16)))
    for plan in ("auto", "dense"):
        with use_plan(plan):
            found = decoder(attended)
        for each, made, conv, count in zip(attended, found, decoder.convs, VGG_CHANNELS, strict=True):
            assert made.shape == (2, count, *each.size)
            assert relative_error(made, F.conv2d(each.dense(), conv.weight, conv.bias)) < 1e-12


def test_names_of_the_weights() -> None:
    """What a file of the model holds."""
    names = {name.split(".")[0] for name in alignment().state_dict()}
    assert names == {"trunk", "pyramid", "compress", "aligners"}
    made = Alignment(config(trunk="vgg", attention="gap"))
    assert {name.split(".")[0] for name in made.state_dict()} == {"pyramid", "compress"}
    assert [layer.weight.shape for layer in made.compress] == [(N, count) for count in VGG_CHANNELS]
    assert [conv.weight.shape[:2] for conv in made.pyramid.convs] == [(M, M + K)] * 4 + [(M, K)]


# --- gradients of the halves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_by_differences(masked: bool) -> None:
    """Gathered values and masses with a compression folded in, gates, a mixture, a folded convolution."""
    torch.manual_seed(1)
    layer = SpatialChannelAttention(3, 2, maps=2, hidden=3).double()
    torch.nn.init.normal_(layer.gate[0].bias, std=2)  # away from the ReLU's bend
    mask = torch.tensor([[[True, True, False], [True, False, True]]]) if masked else None
    f, c2, compress, c1 = (torch.randn(*s, dtype=torch.float64) for s in ((1, 4, 2, 3), (1, 2, 2, 3), (3, 4), (1, 2, 2, 2)))
    leaves = [f, c2, compress, c1, *(p.detach() for p in layer.parameters())]
    names = [name for name, _ in layer.named_parameters()]

    def made(f: Tensor, c2: Tensor, compress: Tensor, c1: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(names, parameters, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(layer, state):
            gathered = layer.gather(f, c2, compress=compress, mask=mask)
            mass = layer.log_mass(f, c2, compress=compress, mask=mask)
            other = layer.gather(f.flip(1), c2, compress=compress, mask=mask)
            mass2 = layer.log_mass(f.flip(1), c2, compress=compress, mask=mask)
            target = layer.target(c1)
            joined = join_gathered([gathered, other], [mass, mass2], (0.3, 0.9))
            return gate_values(gathered, layer.gate, target.condition_mean), joined, target.maps

    assert torch.autograd.gradcheck(made, [leaf.requires_grad_() for leaf in leaves])


# --- features of images, bad input ------------------------------------------------------------------------------------


def test_features_of_images() -> None:
    model = alignment()
    image = torch.randn(2, 3, 32, 48, dtype=torch.float64, requires_grad=True)
    found = image_features(model, None, image)
    expected = zip(model.config.trunk_channels, sizes_of(32, 48), strict=True)
    assert [tuple(f.shape) for f in found] == [(2, c, *size) for c, size in expected]
    model.exemplar(found, hard((32, 48)))
    assert all(f.requires_grad for f in found)
    without = Alignment(config(trunk="vgg"))
    with pytest.raises(ValueError, match="vgg: expected a VGG, for the model has no trunk of its own; got none"):
        image_features(without, None, image)
    vgg = FeatureNetwork("vgg16").double()
    seen = image_features(without, vgg, image[:, :, :16, :16])
    assert [f.shape[1] for f in seen] == list(VGG_CHANNELS) and not any(f.requires_grad for f in seen)
    assert torch.equal(seen[4], vgg(image[:, :, :16, :16], PERCEPTUAL_TAPS)[4])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trunk": "resnet"}, "trunk: expected one of vgg, own, got 'resnet'"),
        ({"attention": "all"}, "attention: expected one of msca, gap, labels, got 'all'"),
        ({"norm": "layer"}, "norm: expected one of batch, instance"),
        ({"features": 0}, "features: expected a positive number, got 0"),
        ({"condition": -1}, "condition: expected a positive number, got -1"),
        ({"largest": -1}, "largest: expected a positive number, or 0 for no limit, got -1"),
        ({"maps": (8, 8)}, r"maps: expected 5 numbers from 1 to 64, got \(8, 8\)"),
        ({"maps": (8, 8, 8, 8, 65)}, "maps: expected 5 numbers from 1 to 64"),
    ],
    ids=str,
)
def test_bad_settings(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**fields)


def test_bad_input() -> None:
    model = alignment()
    given, regions = features((32, 32)), hard((32, 32))
    exemplar, layout = model.exemplar(given, regions), model.layout(regions, (32, 32))
    massive = model.exemplar(given, regions, masses=True)
    one = model.layout(hard((32, 32), 1), (32, 32))
    for words, call in (
        ("size: expected height and width that are multiples of 16, got 24 x 32", lambda: model.layout(regions, (24, 32))),
        ("size: expected height and width that are multiples of 16, got 0 x 32", lambda: model.layout(regions, (0, 32))),
        ("regions: expected 4 labels, got 5", lambda: model.layout(RegionMap(regions.labels, 5, ignore_index=-1), (32, 32))),
        (r"features: expected 5 of \(B, C, h, w\)", lambda: model.exemplar(given[:4], regions)),
        (r"features: scale 1: expected shape \(2, 4, 16, 16\)", lambda: model.exemplar([given[0], *given[:4]], regions)),
        (r"features: scale 0: expected shape \(1, 2, 32, 32\)", lambda: model.exemplar(given, hard((32, 32), 1))),
        ("target_condition: expected batch 2 as features, got 1", lambda: model.attend(exemplar, one)),
        ("exemplars: expected ones made with masses=True", lambda: model.interpolate([exemplar, massive], (1, 1), layout)),
        ("weights: expected one for each exemplar and its mass", lambda: model.interpolate([massive], (1, 1), layout)),
        ("weights: expected numbers that are not negative", lambda: model.interpolate([massive] * 2, (1, -1), layout)),
        ("weights: expected numbers that are not negative", lambda: model.interpolate([massive] * 2, (0, 0), layout)),
        (
            r"weight_maps: expected shape \(2, 2, 32, 32\), got \(2, 1, 32, 32\)",
            lambda: model.spatially([massive] * 2, torch.ones(2, 1, 32, 32), layout),
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
