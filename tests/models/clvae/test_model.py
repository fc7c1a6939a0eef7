"""A trained class- and layer-wise VAE in use: what its methods give, what they do not do again, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.clvae.codes import GLOBAL, ImageCodes
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.model import CLVAE
from mixsyn_fast.models.clvae.networks import Encoder, Generator
from mixsyn_fast.models.clvae.task import Config, fitted
from mixsyn_fast.models.pictures.picture import Picture, fit

from mixsyn_fast import RegionMap, use_plan

NAMES = ("sky", "wall", "door", "window", "tree")
BLOCKS = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")


def make(names: tuple[str, ...] = NAMES, size: tuple[int, int] = (64, 64), **fields) -> CLVAE:
    """A tiny model with random weights, large enough that codes show in the image."""
    torch.manual_seed(3)
    given = GeneratorConfig(label_nc=len(names), ngf=4, image_size=64, hidden=8, z_dim=6, **fields)
    config = fitted(Config(generator=given, encoder=EncoderConfig(ndf=4, z_dim=6)), names, size, False)
    generator, encoder = Generator(config.generator), Encoder(config.encoder)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * (2.0 / parameter[0].numel()) ** 0.5)
        # grey levels, not black and white
        regions = RegionMap(torch.from_numpy(picture(size=size)[1])[None], len(names))
        spread = generator.eval().forward_features(regions).std()
        generator.conv_img.weight.mul_(0.4 / spread)
    return CLVAE(generator, encoder, config, names)


@pytest.fixture(scope="module")
def shared() -> CLVAE:
    return make()


@pytest.fixture
def clvae(shared: CLVAE) -> CLVAE:
    """The model, with nothing remembered."""
    return shared.to("cpu")


def picture(
    seed: int = 0, size: tuple[int, int] = (64, 64), classes: tuple[int, ...] = (0, 1, 2, 3)
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise with blocks of classes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    cells = np.resize(rng.permutation(np.resize(classes, 16)), (4, 4))
    return image, np.kron(cells, np.ones((size[0] // 4, size[1] // 4), int))


def same(a: ImageCodes, b: ImageCodes) -> bool:
    return torch.equal(a.z, b.z) and torch.equal(a.classes, b.classes)


# --------------------------------------------------------------------------------------------------------- applications


def test_a_reconstruction_is_what_the_networks_give(clvae: CLVAE) -> None:
    image, labels = picture()
    made = clvae.reconstruct(image, labels)
    assert made.image.shape == (64, 64, 3) and made.image.dtype == np.uint8 and made.image.std() > 5
    assert made.blocks == BLOCKS and made.encoded == 1 and made.sampled == ()
    assert np.array_equal(made.labels, labels)
    regions = clvae._regions(made.labels)
    with torch.no_grad():
        latents = clvae.encoder(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1, regions)
        expected = clvae.generator(regions, latents.codes(5, sample=False))[0]
    assert torch.equal(made.codes.z, latents.mean[0])
    assert not made.codes.of("tree").any()  # absent: the prior's mean
    error = np.abs((expected.permute(1, 2, 0).numpy() + 1) * 127.5 - made.image).max()
    assert error < 0.51  # rounding
    assert (made.image % 255 == 0).mean() < 0.1  # not saturated, so that other codes show
    again = clvae.reconstruct(image, labels)
    assert again.encoded == 0 and again.blocks == () and np.array_equal(again.image, made.image)
    again.image[:] = 0  # the caller's own
    assert clvae.reconstruct(image, labels).image.std() > 5


def test_what_is_kept_is_of_the_weights_and_of_one_way() -> None:
    """Weights changed in place, of either network, another plan, another precision: nothing of before is used."""
    clvae, (image, labels) = make(), picture()
    first = clvae.reconstruct(image, labels)
    assert clvae.reconstruct(image, labels).blocks == ()
    for network in (clvae.encoder, clvae.generator):
        with torch.no_grad():
            next(network.parameters()).mul_(1.5)
        changed = clvae.reconstruct(image, labels)
        assert changed.encoded == (network is clvae.encoder) and changed.blocks
        assert not np.array_equal(changed.image, first.image)
        assert np.array_equal(changed.image, clvae.to("cpu").reconstruct(image, labels).image)
    for way in (use_plan("dense"), torch.autocast("cpu", torch.bfloat16)):
        with way:
            again = clvae.reconstruct(image, labels)
        assert again.encoded == 1 and again.blocks == BLOCKS


def test_samples_differ_and_a_seed_means_one_image(clvae: CLVAE) -> None:
    labels = picture()[1]
    made = clvae.sample(labels, 10, seed=4)
    assert len(made) == 10 and made[0].sampled == ("sky", "wall", "door", "window", GLOBAL)
    assert same(made[9].codes, clvae.prior(13)) and not same(made[0].codes, made[1].codes)
    assert np.abs(made[0].image.astype(int) - made[1].image).mean() > 1
    for each in made:  # up to rounding: other batches, other order of sums
        single = clvae.generate(labels, each.codes)
        assert np.abs(single.image.astype(int) - each.image).max() <= 1
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        clvae.sample(labels, 0)


def test_a_style_gives_shared_classes_and_the_rest_is_drawn(clvae: CLVAE) -> None:
    labels = picture(0, classes=(0, 1, 2, 4))[1]
    style = picture(1, classes=(1, 2, 3))
    made = clvae.stylize(labels, *style, seed=7)
    of, drawn = clvae.encode(*style), clvae.prior(7)
    assert made.sampled == ("sky", "tree") and made.encoded == 1
    assert torch.equal(made.codes.z, of.z)
    for name in ("wall", "door"):
        assert torch.equal(made.codes.of(name), of.of(name))
    for name in ("sky", "tree"):
        assert torch.equal(made.codes.of(name), drawn.of(name))
    assert clvae.stylize(labels, *style, seed=7).encoded == 0


@pytest.mark.parametrize("levels", [None, (1,), (2, 4), (5,)])
def test_an_edit_leaves_all_other_codes(clvae: CLVAE, levels: tuple[int, ...] | None) -> None:
    image, labels = picture()
    own, other = clvae.encode(image, labels), picture(5)
    made = clvae.edit(image, labels, {"door": "sample", "window": other}, levels, seed=3)
    changed = [i for i, level in enumerate(own.levels) if levels is None or level in levels]
    expected = own.classes.clone()
    expected[changed, 2] = clvae.prior(3).classes[changed, 2]
    expected[changed, 3] = clvae.encode(*other).classes[changed, 3]
    assert torch.equal(made.codes.classes, expected) and torch.equal(made.codes.z, own.z)
    assert made.sampled == ("door",)
    assert not same(made.codes, own)


@pytest.mark.parametrize(("level", "first"), [(1, "up_2"), (2, "up_1"), (3, "up_0"), (4, "G_middle_0"), (5, "head_0")])
def test_an_edit_runs_from_its_first_block_on(clvae: CLVAE, level: int, first: str) -> None:
    """The image is, bit for bit, that of a whole pass of a model that has seen nothing."""
    image, labels = picture()
    start = clvae.reconstruct(image, labels)
    made = clvae.edit(image, labels, {"door": "sample"}, levels=[level], codes=start.codes)
    assert made.blocks == BLOCKS[BLOCKS.index(first) :] and made.encoded == 0
    assert not np.array_equal(made.image, start.image)
    fresh = clvae.to("cpu").generate(labels, made.codes)
    assert fresh.blocks == BLOCKS and np.array_equal(fresh.image, made.image)


def test_a_chain_encodes_nothing_twice_and_can_go_back(clvae: CLVAE) -> None:
    image, labels = picture()
    start = clvae.reconstruct(image, labels)
    one = clvae.edit(image, labels, {"door": "sample"}, levels=[2], codes=start.codes)
    two = clvae.edit(image, labels, {"wall": picture(8)}, levels=[1], codes=one.codes)
    three = clvae.edit(image, labels, {"sky": picture(8), GLOBAL: "sample"}, codes=two.codes, seed=2)
    assert [made.encoded for made in (start, one, two, three)] == [1, 0, 1, 0]
    assert torch.equal(three.codes.z, clvae.prior(2).z) and three.blocks == BLOCKS
    assert torch.equal(three.codes.of("door"), one.codes.of("door"))
    back = clvae.edit(image, labels, {name: (image, labels) for name in ("door", "wall", "sky", GLOBAL)}, codes=three.codes)
    assert back.encoded == 0 and same(back.codes, start.codes) and np.array_equal(back.image, start.image)


def test_an_absent_class_changes_no_block(clvae: CLVAE) -> None:
    labels = picture()[1]
    made = clvae.generate(labels, clvae.prior(0))
    assert clvae.generate(labels, made.codes.replaced({"tree": clvae.prior(1)})).blocks == ()


def test_one_map_does_not_disturb_another(clvae: CLVAE) -> None:
    a, b = picture(0)[1], picture(1)[1]
    codes = clvae.prior(0)
    first = clvae.generate(a, codes)
    clvae.generate(b, codes.replaced({"door": clvae.prior(1)}))
    again = clvae.generate(a, codes)
    assert again.blocks == () and np.array_equal(again.image, first.image)


# --------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("size", [(96, 96), (40, 80), (64, 32)])
def test_another_size_is_fitted(clvae: CLVAE, size: tuple[int, int]) -> None:
    image, labels = picture(size=size)
    as_fitted = fit(Picture(image, labels.astype(np.int32), "x"), (64, 64))
    made = clvae.reconstruct(image, labels)
    assert np.array_equal(made.labels, as_fitted.labels)
    assert same(made.codes, clvae.encode(as_fitted.image, as_fitted.labels))
    assert np.array_equal(clvae.generate(labels, made.codes).labels, made.labels)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.int16, np.uint32])
def test_labels_of_every_integer_type(clvae: CLVAE, kind: type) -> None:
    image, labels = picture()
    made = clvae.reconstruct(image, labels.astype(kind))
    assert np.array_equal(made.image, clvae.reconstruct(image, labels).image)


def test_two_to_one(tmp_path: Path) -> None:
    wide = make(size=(64, 128))
    assert wide.size == (64, 128)
    image, labels = picture(size=(64, 128))
    made = wide.edit(image, labels, {"door": "sample"}, [1])
    assert made.image.shape == (64, 128, 3) and np.array_equal(made.image, wide.to("cpu").generate(labels, made.codes).image)


@pytest.mark.parametrize("where", ["one class", "one pixel", "a pixel of none", "none at all"])
def test_extreme_label_maps(clvae: CLVAE, where: str) -> None:
    image = picture()[0]
    labels = np.full((64, 64), -1 if where == "none at all" else 1)
    labels[32, 40] = {"one pixel": 2, "a pixel of none": -1}.get(where, labels[0, 0])  # seen at strides up to 8
    made = clvae.reconstruct(image, labels)
    assert np.isfinite(made.codes.classes.numpy()).all() and torch.isfinite(made.codes.z).all()
    names = clvae.present(labels)
    assert names == {"one pixel": ("wall", "door"), "none at all": ()}.get(where, ("wall",))
    if names:
        edited = clvae.edit(image, labels, {names[-1]: "sample"}, codes=made.codes)
        assert not np.array_equal(edited.image, made.image)
    assert len(clvae.sample(labels, 2)) == 2


BAD: dict[str, tuple[Callable[[CLVAE, np.ndarray, np.ndarray], object], str]] = {
    "image dtype": (lambda m, x, y: m.reconstruct(x / 255, y), r"image: expected \(H, W, 3\) uint8, got .* float64"),
    "image shape": (lambda m, x, y: m.encode(x[..., :1], y), r"image: expected \(H, W, 3\) uint8, got \(64, 64, 1\)"),
    "labels dtype": (lambda m, x, y: m.sample(y / 1.0, 1), r"labels: expected \(H, W\) integers, got .*float64"),
    "labels bool": (lambda m, x, y: m.sample(y > 1, 1), r"labels: expected \(H, W\) integers, got .*bool"),
    "labels no array": (lambda m, x, y: m.sample(y.tolist(), 1), r"labels: expected \(H, W\) integers, got list"),
    "labels range": (lambda m, x, y: m.sample(y + 3, 1), "labels: expected classes 0 to 4 or -1, got 3 to 6"),
    "labels size": (
        lambda m, x, y: m.reconstruct(x, y[:32]),
        r"labels: expected \(64, 64\), the image's size, got \(32, 64\)",
    ),
    "style": (lambda m, x, y: m.stylize(y, x[:32], y), r"style_labels: expected \(32, 64\)"),
    "no edit": (lambda m, x, y: m.edit(x, y, {}), "edits: expected at least one class, got none"),
    "unknown": (lambda m, x, y: m.edit(x, y, {"dor": "sample"}), "edits: expected classes out of sky, .*; got 'dor'"),
    "absent": (lambda m, x, y: m.edit(x, y, {"tree": "sample"}), "edits: the picture has no tree at 64 x 64; it has sky,"),
    "absent there": (
        lambda m, x, y: m.edit(x, y, {"door": (x, np.zeros_like(y))}),
        "edits: the picture it is to be taken from has no door at 64 x 64; it has sky, global",
    ),
    "what": (lambda m, x, y: m.edit(x, y, {"door": "draw"}), r"edits: door: expected 'sample', codes, or .*, got 'draw'"),
    "array": (lambda m, x, y: m.edit(x, y, {"door": x}), r"edits: door: expected 'sample', codes, or .*, got \(64, 64, 3\)"),
    "tuple": (lambda m, x, y: m.edit(x, y, {"door": (x, y, y)}), "edits: door: expected 'sample', codes, or .*, got tuple"),
    "their image": (lambda m, x, y: m.edit(x, y, {"door": (y, y)}), "edits: door: image: expected"),
    "level": (
        lambda m, x, y: m.edit(x, y, {"door": "sample"}, [0, 1]),
        r"levels: expected some of 1, 2, 3, 4, 5 .*\[0, 1\]",
    ),
    "no level": (lambda m, x, y: m.edit(x, y, {"door": "sample"}, []), r"levels: expected some of 1, .*, got \[\]"),
    "code shape": (
        lambda m, x, y: m.edit(x, y, {"door": torch.zeros(4, 5)}),
        r"edits: door: expected codes \(5, 5\) \(levels, N\), got \(4, 5\)",
    ),
    "global shape": (lambda m, x, y: m.edit(x, y, {GLOBAL: torch.zeros(5)}), r"global: expected a code \(6,\), got \(5,\)"),
    "others' codes": (
        lambda m, x, y: m.edit(x, y, {"door": replace(m.prior(), names=("a", "b", "c", "d", "e"))}),
        "edits: door: expected codes of a model with names",
    ),
    "start": (
        lambda m, x, y: m.edit(x, y, {"door": "sample"}, codes=replace(m.prior(), levels=(2, 3, 4, 5, 6))),
        "codes: expected codes of a model with levels",
    ),
    "z": (
        lambda m, x, y: m.generate(y, replace(m.prior(), z=torch.zeros(9))),
        r"codes: expected codes \(6,\) .*, got \(9,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(clvae: CLVAE, case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act(clvae, *picture())
    assert clvae._codes.made == 0 and not clvae._last._values


# ---------------------------------------------------------------------------------------------------------- other models


@pytest.mark.parametrize("fields", [{"num_levels": 1}, {"num_levels": 3}, {"class_wise": False}, {"layer_wise": False}])
def test_ablations(fields: dict[str, int]) -> None:
    model = make(**fields)
    image, labels = picture()
    start = model.reconstruct(image, labels)
    assert len(start.codes.levels) == {"num_levels": fields.get("num_levels", 6) - 1, "layer_wise": 1}.get(
        next(iter(fields)), 5
    )
    name = "door"
    if fields == {"num_levels": 1}:
        with pytest.raises(ValueError, match="edits: expected global alone, the model has no codes of classes; got door"):
            model.edit(image, labels, {"door": "sample"}, codes=start.codes)
        name = "global"
    made = model.edit(image, labels, {name: "sample"}, codes=start.codes)
    assert not np.array_equal(made.image, start.image)
    assert np.array_equal(made.image, model.to("cpu").generate(labels, made.codes).image)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_makes_the_same(clvae: CLVAE, tmp_path: Path, half: bool) -> None:
    path = tmp_path / "new" / "m.safetensors"
    clvae.save(path, half)
    loaded = CLVAE.load(path)
    assert (loaded.classes, loaded.size, loaded.levels) == (clvae.classes, clvae.size, clvae.levels)
    image, labels = picture()
    a, b = clvae.reconstruct(image, labels), loaded.reconstruct(image, labels)
    assert (
        np.array_equal(a.image, b.image) and same(a.codes, b.codes)
        if not half
        else np.abs(a.image - 1.0 * b.image).mean() < 4
    )
    assert same(clvae.prior(5), loaded.prior(5))


def test_a_model_does_not_follow_its_networks() -> None:
    """Copies: training may go on; the caller's random numbers and modes are left alone."""
    model = make()
    config = replace(
        model.config,
        generator=replace(model.config.generator, spectral_norm=True),
        encoder=replace(model.config.encoder, spectral_norm=True),
    )
    generator, encoder = Generator(config.generator), Encoder(config.encoder)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    used = CLVAE(generator, encoder, config, NAMES)
    assert torch.equal(torch.rand(1), expected)
    assert generator.training and not used.generator.training
    assert not used.config.generator.spectral_norm and not any("weight_orig" in key for key in used.generator.state_dict())
    before = used.prior(), used.generate(picture()[1], used.prior()).image
    with torch.no_grad():  # spectral norm is folded
        expected = generator.eval()(used._regions(picture()[1].astype(np.int32)), ImageCodes.batch([before[0]]))[0]
    assert np.abs((expected.permute(1, 2, 0).numpy() + 1) * 127.5 - before[1]).max() < 0.6
    with torch.no_grad():
        generator.fc.weight.zero_()
    assert np.array_equal(used.to("cpu").generate(picture()[1], before[0]).image, before[1])
    with pytest.raises(ValueError, match="classes: expected 5 names, got 4"):
        CLVAE(generator, encoder, model.config, NAMES[:4])


def test_what_is_no_model(tmp_path: Path, clvae: CLVAE) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: no such file"):
        CLVAE.load(tmp_path / "nowhere.safetensors")
    clvae.prior().save(tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=r"codes\.safetensors: expected a file of CLVAE\.save"):
        CLVAE.load(tmp_path / "codes.safetensors")


# ---------------------------------------------------------------------------------------------------------------- codes


def test_codes_in_a_file(clvae: CLVAE, tmp_path: Path) -> None:
    codes, path = clvae.encode(*picture()), tmp_path / "deep" / "c.safetensors"
    codes.save(path)
    again = ImageCodes.load(path)
    assert same(codes, again) and (again.levels, again.names) == ((1, 2, 3, 4, 5), NAMES)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged"):
        ImageCodes.load(path)
    path.write_bytes(raw[:40])
    with pytest.raises(ValueError, match=r"c\.safetensors"):
        ImageCodes.load(path)
    clvae.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"m\.safetensors: expected a file of ImageCodes\.save"):
        ImageCodes.load(tmp_path / "m.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageCodes.load(tmp_path / "nowhere")


def test_codes_between_codes(clvae: CLVAE) -> None:
    a, b = clvae.prior(0), clvae.prior(1)
    middle = a.interpolated(b, 0.5)
    assert torch.allclose(middle.z, (a.z + b.z) / 2) and torch.allclose(middle.classes, (a.classes + b.classes) / 2)
    assert same(a.interpolated(b, 0.0), a) and torch.allclose(a.interpolated(b, 1.0).classes, b.classes)
    some = a.interpolated(b, 0.25, ["door"], [2])
    expected = a.classes.clone()
    expected[1, 2] = torch.lerp(a.classes[1, 2], b.classes[1, 2], 0.25)
    assert torch.equal(some.classes, expected) and torch.equal(some.z, a.z)
    assert torch.equal(a.interpolated(b, 1.0, [GLOBAL]).classes, a.classes)
    with pytest.raises(ValueError, match="names|name: expected classes out of"):
        a.interpolated(b, 0.5, ["dor"])
    with pytest.raises(ValueError, match="other: expected codes of a model with levels"):
        a.interpolated(replace(b, levels=(2, 3, 4, 5, 6)), 0.5)
    with pytest.raises(ValueError, match=r"codes: expected z \(z_dim,\)"):
        ImageCodes(a.z, a.classes[:2], a.levels, a.names)


def test_replacing_codes_returns_others(clvae: CLVAE) -> None:
    a, b = clvae.prior(0), clvae.prior(1)
    kept = a.classes.clone()
    made = a.replaced({"wall": b.of("wall")}, [3])
    assert torch.equal(a.classes, kept) and torch.equal(made.classes[2, 1], b.classes[2, 1])
    assert int((made.classes != a.classes).any(2).sum()) == 1
