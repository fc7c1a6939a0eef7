"""Our generators against the published form, with the same state_dict: pre-tanh outputs, entry and parameter
counts.
"""

from __future__ import annotations

import copy

import published as pub
import pytest
import torch
from mixsyn_fast.models import clade, sean, spade
from torch import Tensor

from mixsyn_fast import models, use_plan
from mixsyn_fast.region_map import RegionMap

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
K, NGF, HIDDEN, STYLE = 6, 4, 16, 24


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def pair(family: str, size: tuple[int, int], dtype: torch.dtype, regions: int = K, **kw):
    """Return the published form (random parameters, eval, no spectral norm) and our generator with the same
    state.
    """
    torch.manual_seed(5)
    common = {"image_size": size[1], "aspect_ratio": size[1] / size[0], "ngf": NGF}
    common["num_upsampling_layers"] = kw.get("upsampling", "normal")
    edges = kw.pop("edges", False)
    kw["spectral"] = False
    if family == "sean":
        theirs = pub.SEANGenerator(NGF, regions, size, style=STYLE, hidden=HIDDEN, width=4, **kw)
        config = sean.Config(label_nc=regions, hidden=HIDDEN, style_length=STYLE, encoder_width=4, **common)
        ours = models.SEANGenerator(config)
    elif family == "clade":
        theirs = pub.CLADEGenerator(NGF, regions, size, **kw)
        ours = models.CLADEGenerator(
            clade.Config(
                label_nc=regions,
                norm=kw.get("norm", "batch"),
                use_vae=bool(kw.get("z_dim")),
                z_dim=8,
                **common,
            )
        )
    else:
        theirs = pub.SPADEGenerator(NGF, regions + edges, size, hidden=HIDDEN, **kw)
        config = spade.Config(
            label_nc=regions, edges=edges, hidden=HIDDEN, kernel_size=kw.get("ks", 3),
            norm=kw.get("norm", "batch"),
            use_vae=bool(kw.get("z_dim")), z_dim=8, **common,
        )  # fmt: skip
        ours = models.SPADEGenerator(config)
    theirs = pub.randomise(theirs).to(dtype).eval()
    ours = ours.to(dtype).eval()
    models.load_checked(ours, theirs.state_dict(), tolerated=sean.TOLERATED)
    return theirs, ours


def both(theirs, ours, onehot: Tensor, regions, image: Tensor | None = None, z: Tensor | None = None):
    """Return the two pre-tanh outputs, seed for seed."""
    torch.manual_seed(11)
    if image is not None:
        expected = theirs.pre_tanh(onehot, theirs.Zencoder(image, onehot))
        torch.manual_seed(11)
        return expected, ours.forward_features(regions, image, noise="published")
    return theirs.pre_tanh(onehot, z=z), ours.forward_features(regions, z)


SIZES = [(64, 64, 1, K), (64, 128, 2, K), (96, 96, 3, 3), (128, 64, 1, 40)]


@pytest.mark.parametrize("family", ["spade", "clade", "sean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_same_output_as_published(family: str, dtype: torch.dtype, size: tuple[int, int, int, int]) -> None:
    height, width, batch, regions = size
    theirs, ours = pair(family, (height, width), dtype, regions)
    labels = pub.blobs(batch, regions, height, width, seed=regions, ignored=family != "clade")
    onehot = pub.onehot(labels, regions, dtype)
    image = torch.randn(batch, 3, height, width, dtype=dtype) if family == "sean" else None
    with torch.no_grad():
        for form in (RegionMap(labels, regions, ignore_index=-1), onehot):
            expected, result = both(theirs, ours, onehot, form, image)
            assert result.shape == (batch, 3, height, width)
            assert relative(result, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("family", ["spade", "clade", "sean"])
@pytest.mark.parametrize("upsampling", ["more", "most"])
def test_more_upsampling(family: str, upsampling: str) -> None:
    size = (64, 128) if upsampling == "more" else (128, 128)
    theirs, ours = pair(family, size, torch.float64, upsampling=upsampling)
    labels = pub.blobs(1, K, *size)
    onehot = pub.onehot(labels, K, torch.float64)
    image = torch.randn(1, 3, *size, dtype=torch.float64) if family == "sean" else None
    with torch.no_grad():
        expected, result = both(theirs, ours, onehot, RegionMap(labels, K), image)
    assert relative(result, expected) <= 1e-12


@pytest.mark.parametrize("case", [{"norm": "instance"}, {"z_dim": 8}, {"ks": 5}, {"edges": True}], ids=str)
def test_spade_variants(case: dict) -> None:
    theirs, ours = pair("spade", (64, 128), torch.float64, **case)
    labels = pub.blobs(2, K, 64, 128, ignored=True)
    onehot = pub.onehot(labels, K, torch.float64)
    edges = None
    if case.get("edges"):
        edges = torch.rand(2, 64, 128, generator=torch.Generator().manual_seed(3)) < 0.1
        onehot = torch.cat([onehot, edges[:, None].double()], 1)
    z = torch.randn(2, 8, dtype=torch.float64) if "z_dim" in case else None
    with torch.no_grad():
        for regions in (RegionMap(labels, K, ignore_index=-1, edges=edges), onehot):
            expected, result = both(theirs, ours, onehot, regions, z=z)
            assert relative(result, expected) <= 1e-12


@pytest.mark.parametrize("family", ["spade", "clade", "sean"])
def test_training_step_is_the_same(family: str) -> None:
    """Gradients of every parameter and the running statistics, in training mode."""
    theirs, ours = pair(family, (64, 64), torch.float64)
    theirs.train(), ours.train()
    labels = pub.blobs(2, K, 64, 64, seed=9)
    onehot = pub.onehot(labels, K, torch.float64)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64) if family == "sean" else None
    expected, result = both(theirs, ours, onehot, RegionMap(labels, K), image)
    weight = torch.randn_like(expected)
    (expected * weight).mean().backward()
    (result * weight).mean().backward()
    assert relative(result, expected) <= 1e-11
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected_grad = reference[name].grad
        if expected_grad is None or parameter.grad is None:  # a region of no pixel may have no gradient at all
            assert all(g is None or g.abs().max() == 0 for g in (expected_grad, parameter.grad)), name
            continue
        scale = max(expected_grad.abs().max().item(), 1e-6)
        assert (parameter.grad - expected_grad).abs().max() <= 1e-8 * scale, name
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        assert torch.allclose(buffer.double(), buffers[name].double(), rtol=1e-11, atol=1e-12), name


COUNTS = [
    ("sean", dict(label_nc=19), 982, 266.907),
    ("spade", dict(label_nc=151), 234, 96.492),
    ("spade", dict(label_nc=35, edges=True, image_size=512, aspect_ratio=2.0), 234, 93.048),
    ("spade", dict(label_nc=183, edges=True), 234, 97.481),
    ("clade", dict(label_nc=151), 162, 71.427),
]


@pytest.mark.parametrize(("family", "fields", "entries", "millions"), COUNTS)
def test_counts_of_the_published_files(family: str, fields: dict, entries: int, millions: float) -> None:
    kinds = {"sean": (sean, models.SEANGenerator), "spade": (spade, models.SPADEGenerator)}
    kinds["clade"] = (clade, models.CLADEGenerator)
    module, build = kinds[family]
    with torch.device("meta"):
        model = build(module.Config(spectral_norm=True, **fields))
    names = set(model.state_dict())
    # published SEAN layers also store the unused norm of the SPADE inside: three entries in each of 18 layers
    unused = 18 * 3 if family == "sean" and not any(".Spade.param_free_norm." in n for n in names) else 0
    assert len(names) + unused == entries
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)


@pytest.mark.parametrize("family", ["sean", "spade", "clade"])
def test_state_dict_names_and_shapes(family: str) -> None:
    regions = 19 if family == "sean" else 151
    with torch.device("meta"):
        if family == "sean":
            theirs = pub.SEANGenerator(64, 19, (256, 256))
            ours = models.SEANGenerator(sean.Config(spectral_norm=True))
        elif family == "spade":
            theirs = pub.SPADEGenerator(64, regions, (256, 256))
            ours = models.SPADEGenerator(spade.Config(spectral_norm=True))
        else:
            theirs = pub.CLADEGenerator(64, regions, (256, 256))
            ours = models.CLADEGenerator(clade.Config(spectral_norm=True))
    expected = {n: v.shape for n, v in theirs.state_dict().items() if ".Spade.param_free_norm." not in n}
    assert {n: v.shape for n, v in ours.state_dict().items() if ".Spade.param_free_norm." not in n} == expected


def test_style_codes_and_noise() -> None:
    _, ours = pair("sean", (64, 64), torch.float64)
    labels = pub.blobs(2, K, 64, 64)
    regions = RegionMap(labels, K)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        codes = ours.encode(image, regions)
        by_image = ours(regions, image, noise=None)
        assert torch.equal(by_image, ours(regions, style_codes=codes, noise=None))
        noisy = ours(regions, style_codes=codes)
        assert not torch.equal(noisy, by_image)
    assert by_image.abs().max() <= 1


def test_soft_map_agrees_with_hard_map() -> None:
    for family in ("spade", "sean"):
        theirs, ours = pair(family, (64, 64), torch.float64)
        labels = pub.blobs(1, K, 64, 64)
        onehot = pub.onehot(labels, K, torch.float64)
        more = {"noise": None, "style_codes": torch.randn(1, K, STYLE).double()} if family == "sean" else {}
        with torch.no_grad():
            hard = ours.forward_features(RegionMap(labels, K), **more)
            soft = ours.forward_features(RegionMap.soft(onehot), **more)
        assert relative(soft, hard) <= 1e-12
        weights = onehot.clone().requires_grad_()
        ours.forward_features(weights, **more).square().mean().backward()
        assert weights.grad is not None and weights.grad.abs().max() > 0


def test_spade_soft_map_like_published() -> None:
    theirs, ours = pair("spade", (64, 64), torch.float64)
    weights = torch.softmax(torch.randn(2, K, 32, 32, dtype=torch.float64) * 3, 1)
    with torch.no_grad():
        assert relative(ours.forward_features(weights), theirs.pre_tanh(weights)) <= 1e-12


def test_wrong_arguments_are_named() -> None:
    _, ours = pair("sean", (64, 64), torch.float32)
    regions = RegionMap(pub.blobs(1, K, 64, 64), K)
    with pytest.raises(ValueError, match="exactly one"):
        ours(regions)
    with pytest.raises(ValueError, match="style_codes: expected shape"):
        ours(regions, style_codes=torch.zeros(1, K, STYLE + 1))
    with pytest.raises(ValueError, match="image: expected shape"):
        ours(regions, torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="regions"):
        ours(RegionMap(torch.zeros(1, 64, 64, dtype=torch.int64), K + 1), style_codes=torch.zeros(1, K, STYLE))
    _, ours = pair("spade", (64, 64), torch.float32)
    with pytest.raises(ValueError, match="use_vae"):
        ours(regions, torch.zeros(1, 8))
    with pytest.raises(ValueError, match="num_upsampling_layers"):
        spade.Config(num_upsampling_layers="few")
    with pytest.raises(ValueError, match="image_size"):
        spade.Config(image_size=16)


def test_encoder_matches_published() -> None:
    torch.manual_seed(0)
    for crop in (128, 256):
        theirs = pub.ConvEncoder(4, 8, crop, spectral=False).double().eval()
        ours = models.Encoder(spade.EncoderConfig(4, 8, crop)).double().eval()
        models.load_checked(ours, theirs.state_dict())
        image = torch.randn(2, 3, crop // 2, crop, dtype=torch.float64)
        for a, b in zip(ours(image), theirs(image), strict=True):
            assert relative(a, b) <= 1e-12


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spectral_convolution_is_torch_s(layout: torch.memory_format) -> None:
    """Same buffers and outputs as the hook of torch, over several training steps and in eval, however the weight lies in
    memory; and it can be copied.
    """
    torch.manual_seed(0)
    theirs = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 5, 3, padding=1)).double()
    from mixsyn_fast.models.blocks import SpectralConv2d

    ours = SpectralConv2d(3, 5, 3, padding=1).double()
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=layout)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    for training in (True, True, False, True):
        theirs.train(training), ours.train(training)
        assert torch.allclose(ours(x), theirs(x), rtol=1e-13, atol=1e-13)
        ours.zero_grad(), theirs.zero_grad()
        (ours(x).square().sum()).backward()
        (theirs(x).square().sum()).backward()
        assert torch.allclose(ours.weight_orig.grad, theirs.weight_orig.grad, rtol=1e-10)
        assert all(torch.allclose(v, theirs.state_dict()[n]) for n, v in ours.state_dict().items())
    twin = copy.deepcopy(ours)
    assert torch.equal(twin.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("family", ["spade", "clade", "sean"])
def test_half_precision_and_autocast(family: str) -> None:
    """Error in bfloat16 against float64 at most twice that of the published form in bfloat16."""
    theirs, ours = pair(family, (64, 64), torch.float32)
    labels = pub.blobs(1, K, 64, 64)
    onehot, regions = pub.onehot(labels, K), RegionMap(labels, K)
    image = torch.randn(1, 3, 64, 64) if family == "sean" else None
    exact, _ = pair(family, (64, 64), torch.float64)
    with torch.no_grad():
        doubled = None if image is None else image.double()
        truth = both(exact, pair(family, (64, 64), torch.float64)[1], onehot.double(), regions, doubled)[0]
        with torch.autocast("cpu", torch.bfloat16):
            expected, result = both(theirs, ours, onehot, regions, image)
        assert (result - truth).abs().mean() <= 2 * (expected - truth).abs().mean() + 1e-6
        half = None if image is None else image.bfloat16()
        expected, result = both(theirs.bfloat16(), ours.bfloat16(), onehot.bfloat16(), regions, half)
        assert result.dtype == torch.bfloat16
        assert (result - truth).abs().mean() <= 2 * (expected - truth).abs().mean() + 1e-6


def test_torch_compile_runs() -> None:
    _, ours = pair("clade", (64, 64), torch.float64)
    regions = RegionMap(pub.blobs(1, K, 64, 64), K)
    with torch.no_grad():
        assert relative(torch.compile(ours, backend="eager")(regions), ours(regions)) < 1e-12


def test_style_features_fused_and_as_published() -> None:
    """The encoder's fused norms against its modules in turn, values and gradients; the 2x rule against float64."""
    torch.manual_seed(0)
    fused = models.StyleEncoder(16, 4)
    image = torch.randn(2, 3, 32, 48)
    double = copy.deepcopy(fused).double()
    truth = double.model(image.double())
    with use_plan("dense"):
        plain = fused.features(image)
    result = fused.features(image)
    allowed = 2 * (plain - truth).abs().max() + 1e-7
    assert (result - truth).abs().max() <= allowed
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(truth, list(double.parameters()), grad.double())
    for got, reference, exact in zip(
        torch.autograd.grad(result, list(fused.parameters()), grad),
        torch.autograd.grad(plain, list(fused.parameters()), grad),
        expected,
        strict=True,
    ):
        assert (got - exact).abs().max() <= 2 * (reference - exact).abs().max() + 1e-5 * exact.abs().max() + 1e-6
