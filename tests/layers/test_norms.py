"""SPADE, SEAN and CLADE layers: every plan and backend against the plain dense form, values and gradients."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import RegionMap, use_backend, use_plan
from mixsyn_fast.layers import CLADENorm, RegionPool2d, SEANNorm, SPADENorm
from mixsyn_fast.layers.spade import prefers_table
from tests.compare import relative_error

BATCH, REGIONS, CHANNELS, STYLE = 2, 6, 10, 12
WAYS = [("table", "native"), ("table", "reference"), ("dense", "native"), ("auto", "auto")]
LIMIT = {torch.float64: 2e-12, torch.float32: 1e-5}  # the gradient of one number is a sum in which most cancels


def region_map(edges: bool = False, ignored: bool = False, absent: bool = False) -> RegionMap:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(1 if absent else 0, REGIONS, (BATCH, 4, 4), generator=generator)
    labels = labels.repeat_interleave(6, 1).repeat_interleave(6, 2)
    if ignored:
        labels[:, :5, :7] = 255
    edge_map = torch.rand(labels.shape, generator=generator) < 0.1 if edges else None
    return RegionMap(labels, REGIONS, ignore_index=255, edges=edge_map)


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, 0.3)
    return layer


def results(layer: nn.Module, x: Tensor, *arguments: Any, **keywords: Any) -> list[Tensor | None]:
    """Output and the gradients of x, tensor arguments and parameters."""
    leaves = [x, *(a for a in arguments if isinstance(a, Tensor)), *layer.parameters()]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    y = layer(x, *arguments, **keywords)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)]


def assert_same(got: list[Tensor | None], expected: list[Tensor | None], limit: float) -> None:
    for position, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        if position:
            limit = max(limit, 2e-4 if theirs is not None and theirs.dtype == torch.float32 else 0)  # sums that cancel
        if theirs is None or not bool(theirs.any()):
            assert ours is None or float(ours.abs().max()) < 1e-6
        else:
            assert ours is not None and relative_error(ours, theirs) < limit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(8, 16), (3, 5), (1, 3), (24, 24)], ids=str)
@pytest.mark.parametrize(("edges", "ignored"), list(itertools.product((False, True), repeat=2)))
def test_every_plan_gives_the_plain_dense_result(
    dtype: torch.dtype, size: tuple[int, int], edges: bool, ignored: bool
) -> None:
    channels = REGIONS + edges
    x = torch.randn(BATCH, CHANNELS, *size, dtype=dtype, requires_grad=True)
    codes = torch.randn(BATCH, REGIONS, STYLE, dtype=dtype, requires_grad=True)
    noise = torch.randn(BATCH, 1, *size, dtype=dtype)
    layers: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
        (SPADENorm(CHANNELS, channels, hidden=7), (), {}),
        (SEANNorm(CHANNELS, channels, num_regions=REGIONS, style_length=STYLE, hidden=7), (codes,), {"noise": noise}),
        (SEANNorm(CHANNELS, channels, use_style=False, hidden=7), (), {"noise": noise}),
    ]
    for layer, arguments, keywords in layers:
        randomised(layer).to(dtype)
        for training, slope in ((True, 0.2), (False, None)):
            layer.train(training)
            state = {k: v.clone() for k, v in layer.state_dict().items()}
            outcomes = []
            for plan, backend in [("dense", "reference"), *WAYS]:
                layer.load_state_dict(state)
                regions = region_map(edges, ignored)
                with use_plan(plan), use_backend(backend):
                    outcomes.append(results(layer, x, regions, *arguments, negative_slope=slope, **keywords))
                outcomes[-1].extend(v.clone() for k, v in layer.state_dict().items() if "running" in k)
            for outcome in outcomes[1:]:
                assert_same(outcome, outcomes[0], LIMIT[dtype])


@pytest.mark.parametrize("pictures", [1, 2])
def test_tables_kept_for_serving(pictures: int) -> None:
    """In eval without gradients tables are kept, and one picture alone has a form of its own."""
    layer = randomised(SEANNorm(CHANNELS, REGIONS, num_regions=REGIONS, style_length=STYLE, hidden=7)).double().eval()
    labels = region_map().labels_at()[:pictures]
    x = torch.randn(pictures, CHANNELS, 12, 12, dtype=torch.float64)
    codes = torch.randn(pictures, REGIONS, STYLE, dtype=torch.float64)
    with torch.no_grad():
        with use_plan("dense"), use_backend("reference"):
            expected = layer(x, RegionMap(labels, REGIONS), codes, noise=None)
        with use_plan("table"):
            for _ in range(2):
                assert relative_error(layer(x, RegionMap(labels, REGIONS), codes, noise=None), expected) < 1e-12


def test_spade_is_the_published_formula() -> None:
    """Independent of everything here: convolutions of the one-hot map, written out."""
    layer = randomised(SPADENorm(CHANNELS, REGIONS, norm="instance", hidden=9)).double()
    x = torch.randn(BATCH, CHANNELS, 9, 13, dtype=torch.float64)
    regions = region_map()
    onehot = F.interpolate(regions.onehot(dtype=torch.float64), size=(9, 13), mode="nearest")
    hidden = F.relu(F.conv2d(onehot, layer.mlp_shared[0].weight, layer.mlp_shared[0].bias, padding=1))  # type: ignore
    gamma = F.conv2d(hidden, layer.mlp_gamma.weight, layer.mlp_gamma.bias, padding=1)  # type: ignore
    beta = F.conv2d(hidden, layer.mlp_beta.weight, layer.mlp_beta.bias, padding=1)  # type: ignore
    expected = F.instance_norm(x) * (1 + gamma) + beta
    for plan in ("table", "dense"):
        with use_plan(plan):
            assert relative_error(layer(x, region_map()), expected) < 1e-12
            assert relative_error(layer(x, regions.onehot()), expected) < 1e-12  # a one-hot tensor serves as well


def test_soft_equals_hard_on_a_onehot_map_and_is_differentiable() -> None:
    codes = torch.randn(BATCH, REGIONS, STYLE, dtype=torch.float64)
    x = torch.randn(BATCH, CHANNELS, 12, 12, dtype=torch.float64)
    layer = randomised(SEANNorm(CHANNELS, REGIONS, style_length=STYLE, hidden=7)).double()
    spade = randomised(SPADENorm(CHANNELS, REGIONS, hidden=7)).double()
    clade = randomised(CLADENorm(CHANNELS, REGIONS)).double()
    weights = region_map().onehot(dtype=torch.float64).clone().requires_grad_()
    soft = RegionMap.soft(weights)
    assert relative_error(layer(x, soft, codes, noise=None), layer(x, region_map(), codes, noise=None)) < 1e-12
    assert relative_error(spade(x, soft), spade(x, region_map())) < 1e-12
    assert relative_error(clade(x, soft), clade(x, region_map())) < 1e-12
    mixture = torch.softmax(torch.randn(BATCH, REGIONS, 5, 5, dtype=torch.float64), 1)
    small = x[:, :, :5, :5].contiguous()
    with use_plan("dense"), use_backend("reference"):
        expected = layer(small, RegionMap.soft(mixture), codes, noise=None)
    assert relative_error(layer(small, RegionMap.soft(mixture), codes, noise=None), expected) < 1e-12
    leaf = mixture.requires_grad_()
    tiny = randomised(SEANNorm(2, REGIONS, style_length=3, hidden=2)).double().eval()
    assert torch.autograd.gradcheck(
        lambda w: tiny(small[:, :2], RegionMap.soft(w), codes[:, :, :3], noise=None), leaf, atol=1e-4
    )


@pytest.mark.parametrize("positional", [False, True])
def test_clade(positional: bool) -> None:
    layer = randomised(CLADENorm(CHANNELS, REGIONS, positional=positional)).double()
    regions = region_map()
    x = torch.randn(BATCH, CHANNELS, 9, 9, dtype=torch.float64)
    distance = torch.randn(BATCH, 2, 24, 24, dtype=torch.float64) if positional else None
    labels = regions.labels_at((9, 9)).long()
    affine = layer.class_specified_affine
    scale = affine.weight[labels].permute(0, 3, 1, 2)
    shift = affine.bias[labels].permute(0, 3, 1, 2)
    if positional:
        near = F.interpolate(distance, size=(9, 9), mode="nearest")
        scale, shift = scale * (1 + affine.dist_conv_w(near)), shift * (1 + affine.dist_conv_b(near))
    expected = F.leaky_relu(F.batch_norm(x, None, None, training=True) * scale + shift, 0.2)
    for plan, backend in [("dense", "reference"), *WAYS]:
        with use_plan(plan), use_backend(backend):
            assert relative_error(layer(x, regions, distance=distance, negative_slope=0.2), expected) < 1e-12


def test_clade_with_instance_maps_appends_a_channel() -> None:
    layer = randomised(CLADENorm(CHANNELS, REGIONS, instance=True))
    regions = region_map(edges=True)
    y = layer(torch.randn(BATCH, CHANNELS, 12, 12), regions)
    edges = regions.edges_at((12, 12))[:, None].float()  # type: ignore[index]
    assert y.shape == (BATCH, CHANNELS + 1, 12, 12)
    torch.testing.assert_close(y[:, -1:], layer.inst_conv(edges))
    with pytest.raises(ValueError, match="regions: expected a map with edges"):
        layer(torch.randn(BATCH, CHANNELS, 12, 12), region_map())


def test_published_noise_is_drawn_as_the_published_code_does() -> None:
    layer = randomised(SEANNorm(CHANNELS, REGIONS, style_length=STYLE, hidden=7)).eval()
    x, codes = torch.randn(BATCH, CHANNELS, 6, 8), torch.randn(BATCH, REGIONS, STYLE)
    torch.manual_seed(11)
    noise = torch.randn(BATCH, 8, 6, 1).transpose(1, 3)
    torch.manual_seed(11)
    published = layer(x, region_map(), codes, noise="published")
    assert torch.equal(published, layer(x, region_map(), codes, noise=noise))
    assert not torch.equal(published, layer(x, region_map(), codes, noise="device"))


@pytest.mark.parametrize("norm", ["batch", "instance", "none", "syncbatch"])
def test_norms_and_absent_regions(norm: str) -> None:
    layer = randomised(SPADENorm(CHANNELS, REGIONS, norm=norm, hidden=7)).double()
    layer.eval() if norm == "syncbatch" else layer.train()
    x = torch.randn(BATCH, CHANNELS, 12, 12, dtype=torch.float64)
    with use_plan("dense"), use_backend("reference"):
        expected = layer(x, region_map(absent=True))
    layer.apply(lambda m: m.reset_running_stats() if hasattr(m, "reset_running_stats") else None)
    assert relative_error(layer(x, region_map(absent=True)), expected) < 1e-12


def test_batch_norm_counts_and_cumulative_average() -> None:
    ours, theirs = (SPADENorm(4, REGIONS, hidden=3) for _ in range(2))
    for layer in (ours, theirs):
        layer.param_free_norm.momentum = None  # type: ignore[assignment]
    for _ in range(3):
        x = torch.randn(BATCH, 4, 8, 8)
        ours(x, region_map())
        theirs.param_free_norm(x)
    for name, value in theirs.param_free_norm.state_dict().items():
        torch.testing.assert_close(ours.param_free_norm.state_dict()[name], value)


def test_a_5x5_layer_takes_the_dense_plan() -> None:
    layer = randomised(SPADENorm(CHANNELS, REGIONS, kernel_size=5, hidden=7)).double()
    x = torch.randn(BATCH, CHANNELS, 12, 12, dtype=torch.float64)
    with use_plan("dense"), use_backend("reference"):
        expected = layer(x, region_map())
    layer.param_free_norm.reset_running_stats()  # type: ignore[operator]
    with use_plan("table"):
        assert relative_error(layer(x, region_map()), expected) < 1e-12


def test_weights_may_change_in_every_way_between_calls() -> None:
    """Nothing derived from old weights survives: load, cast, averaged copy, in-place edits, .data, a training step."""
    torch.manual_seed(2)
    layer = randomised(SEANNorm(CHANNELS, REGIONS, style_length=STYLE, hidden=7)).eval()
    other = randomised(SEANNorm(CHANNELS, REGIONS, style_length=STYLE, hidden=7))
    x, codes = torch.randn(BATCH, CHANNELS, 12, 12), torch.randn(BATCH, REGIONS, STYLE)
    regions = region_map()

    def check(where: nn.Module = layer, limit: float = 1e-5) -> None:
        kind = next(where.parameters()).dtype
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                got = where(x.to(kind), regions, codes.to(kind), noise=None)
                with use_plan("dense"), use_backend("reference"):
                    expected = where(x.to(kind), regions, codes.to(kind), noise=None)
            assert relative_error(got, expected) < limit

    check()
    layer.load_state_dict(other.state_dict())
    check()
    layer.double()
    check(limit=1e-12)
    layer.float()
    check()
    with torch.no_grad():
        for p, q in zip(layer.parameters(), other.parameters(), strict=True):
            p.lerp_(q + 1, 0.3)
    check()
    layer.Spade.mlp_gamma.weight.data.mul_(1.5)
    layer.conv_beta.weight.data[3, 4, 1, 2] += 2.0
    check()
    layer.fc_mu2.weight = nn.Parameter(torch.randn(STYLE, STYLE))
    check()
    layer.to(memory_format=torch.channels_last)
    check()
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    layer.train()
    layer(x, regions, codes, noise=None).pow(2).mean().backward()
    optimiser.step()
    layer.eval()
    check()
    with torch.inference_mode():
        for p in layer.parameters():
            p.add_(0.1)
        made_inside = randomised(SEANNorm(CHANNELS, REGIONS, style_length=STYLE, hidden=7)).eval()
        first = made_inside(x, regions, codes, noise=None)
        made_inside.conv_gamma.weight.mul_(2)
        assert not torch.equal(first, made_inside(x, regions, codes, noise=None))
    check()


def test_style_vectors_in_one_product_are_those_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small fc_mu in use: a code that is not a number, of an absent region, reaches nobody; large ones run one by one."""
    torch.manual_seed(2)
    layer = randomised(SEANNorm(CHANNELS, REGIONS, style_length=STYLE, hidden=7)).eval()
    layer.fc_mu1.bias = None
    regions, codes = region_map(absent=True), torch.randn(BATCH, REGIONS, STYLE)
    codes[:, 0] = torch.nan
    assert 0 not in regions.present
    sean = importlib.import_module("mixsyn_fast.layers.sean")
    products: list[Any] = []
    monkeypatch.setattr(sean, "linear", lambda *a: products.append(a) or torch.nn.functional.linear(*a))
    with torch.no_grad():
        found = sean._style_vectors(layer, codes, regions.present)
        assert not products
        monkeypatch.setattr(sean, "_STACKED", 0)
        expected = sean._style_vectors(layer, codes, regions.present)
    assert len(products) == REGIONS - 1 and relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, x, r: s(x[0], r), "x: expected shape"),
        (lambda s, x, r: s(x[:1], r), "regions: expected batch 1"),
        (lambda s, x, r: s(x, RegionMap(torch.zeros(2, 4, 4, dtype=torch.int64), 3)), "regions: expected 6 channels"),
        (lambda s, x, r: SEANNorm(10, 6, style_length=4)(x, r), r"style_codes: expected shape \(2, 6, S\), got None"),
        (lambda s, x, r: SEANNorm(10, 6, style_length=4)(x, r, torch.zeros(2, 5, 4)), "style_codes: expected shape"),
        (lambda s, x, r: SEANNorm(10, 6, use_style=False)(x, r, noise="pink"), "noise: expected 'published'"),
        (lambda s, x, r: SEANNorm(10, 6, use_style=False)(x, r, noise=x), "noise: expected shape"),
        (lambda s, x, r: CLADENorm(10, 4)(x, r), "regions: expected 4 regions, got 6"),
        (lambda s, x, r: CLADENorm(10, 6, positional=True)(x, r), "distance: expected a tensor"),
        (lambda s, x, r: SPADENorm(10, 6, norm="layer"), "norm: expected one of"),
        (lambda s, x, r: RegionPool2d("mean")(x[:1], r), "regions: expected batch 1"),
    ],
)
def test_bad_arguments(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(SPADENorm(10, 6), torch.zeros(2, 10, 8, 8), region_map())


def test_affine_norm_is_refused() -> None:
    layer = SPADENorm(10, 6)
    layer.param_free_norm = nn.BatchNorm2d(10)
    with pytest.raises(TypeError, match="param_free_norm: expected an affine-free"):
        layer(torch.zeros(2, 10, 8, 8), region_map())


def test_mean_pooling_against_a_loop() -> None:
    regions = region_map(absent=True, ignored=True)
    features = torch.randn(BATCH, 7, 11, 9, dtype=torch.float64, requires_grad=True)
    labels = regions.labels_at((11, 9))
    pool = RegionPool2d("mean")
    got = pool(features, regions)
    for b, k in itertools.product(range(BATCH), range(REGIONS)):
        mine = features[b][:, labels[b] == k]
        expected = mine.mean(1) if mine.shape[1] else torch.zeros(7, dtype=torch.float64)
        torch.testing.assert_close(got[b, k], expected)
    assert torch.autograd.gradcheck(lambda f: pool(f, regions), features)


def test_frozen_statistics_stay_frozen() -> None:
    """track_running_stats=False set on a layer in training, a usual way to freeze: torch leaves the buffers alone."""
    layer = SPADENorm(4, REGIONS, hidden=3)
    layer.param_free_norm.track_running_stats = False  # type: ignore[assignment]
    before = {k: v.clone() for k, v in layer.param_free_norm.state_dict().items()}
    x = torch.randn(BATCH, 4, 8, 8) + 3
    y = layer(x, region_map())
    for name, value in layer.param_free_norm.state_dict().items():
        assert torch.equal(value, before[name])
    with use_plan("dense"), use_backend("reference"):
        assert relative_error(y, layer(x, region_map())) < 1e-5


def test_a_soft_mask_with_a_binary_channel_is_no_edge_map() -> None:
    weights = torch.zeros(1, 3, 8, 8)
    weights[:, 0], weights[:, 2, 4:] = 1, 1
    codes, x = torch.randn(1, 3, 5), torch.randn(1, 4, 8, 8)
    layer = randomised(SEANNorm(4, 3, style_length=5, hidden=3)).eval()
    expected = layer(x, RegionMap.soft(weights), codes, noise=None)
    torch.testing.assert_close(layer(x, weights, codes, noise=None), expected)
    assert RegionPool2d("mean")(x, weights).shape == (1, 3, 4)


def test_mean_of_a_large_region_in_half_precision() -> None:
    features = torch.randn(1, 2, 256, 256) * 0.01 + 1
    regions = RegionMap(torch.zeros(1, 256, 256, dtype=torch.int64), 2)
    got = RegionPool2d("mean")(features.half(), regions)
    torch.testing.assert_close(got[0, 0].float(), features.mean((0, 2, 3)), atol=2e-3, rtol=0)
    assert not bool(got[0, 1].any())


def test_maps_made_while_serving_can_be_trained_with() -> None:
    layer = SPADENorm(4, REGIONS, hidden=3)
    x = torch.randn(BATCH, 4, 8, 8)
    with torch.inference_mode():
        hard, soft = region_map(), RegionMap.soft(region_map().onehot())
        layer(x, hard)
    for regions in (hard, soft):
        layer(x, regions).sum().backward()


@pytest.mark.parametrize(("cell", "table"), [(1, False), (2, False), (8, True), (16, True)])
@pytest.mark.parametrize("regions", [19, 151])
def test_plan_follows_how_often_a_map_repeats(cell: int, table: bool, regions: int) -> None:
    """Label noise takes the dense plan, and before its 5x5 patterns are counted; both plans agree."""
    size = 64
    cells = torch.randint(0, regions, (1, size // cell, size // cell), generator=torch.Generator().manual_seed(cell))
    labels = cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    layer = SPADENorm(64, regions, norm="instance", hidden=64).double().eval()
    map_ = RegionMap(labels, regions)
    assert prefers_table(layer, map_, (size, size), "auto", per_image=False) is table
    assert any(key[0] == "patterns" and key[2] == 2 for key in map_._cache) is table
    x = torch.randn(1, 64, size, size, dtype=torch.float64)
    with torch.no_grad():
        results = []
        for plan in ("table", "dense", "auto"):
            with use_plan(plan):
                results.append(layer(x, map_))
    assert all((result - results[0]).abs().max() < 1e-12 * results[0].abs().max() for result in results)
