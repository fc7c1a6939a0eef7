"""A trained harmonized transfer in use: what its methods give, what they do not do again, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models import sean
from mixsyn_fast.models.harmonized.attention import StyleAttention, composed_codes
from mixsyn_fast.models.harmonized.config import AttentionConfig, FlowConfig
from mixsyn_fast.models.harmonized.flow import StyleFlow
from mixsyn_fast.models.harmonized.generator import Generator
from mixsyn_fast.models.harmonized.mapping import CodeDistribution
from mixsyn_fast.models.harmonized.model import Harmonized, Made, shifted
from mixsyn_fast.models.pictures.picture import Picture, fit

from mixsyn_fast import use_backend, use_plan
from tests.models.harmonized.small import GROUPS, LENGTH, NAMES, picture, small_generator, small_model

WALL, SKIN, NOSE, HAIR, HAT = range(5)
FULL = ("encoder", "attention", "generator")


@pytest.fixture(scope="module")
def shared() -> Harmonized:
    return small_model()


@pytest.fixture
def model(shared: Harmonized) -> Harmonized:
    """The model, with nothing remembered."""
    return shared.to("cpu")


def rows_that_differ(a: torch.Tensor, b: torch.Tensor) -> list[int]:
    return torch.nonzero((a != b).any(1))[:, 0].tolist()


# --------------------------------------------------------------------------------------------------------- applications


def test_a_reconstruction_is_what_the_networks_give(model: Harmonized) -> None:
    image, labels = picture()
    made = model.reconstruct(image, labels)
    assert made.image.shape == (64, 64, 3) and made.image.dtype == np.uint8 and made.image.std() > 5
    assert (made.image % 255 == 0).mean() < 0.2  # not saturated, so that other codes show
    assert made.ran == FULL and made.regions == () and np.array_equal(made.labels, labels)
    regions = model._regions(made.labels)
    with torch.no_grad():
        codes = model.generator.encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1, regions)
        present = torch.tensor([[True, True, True, True, False]])
        assert model.attention is not None
        given = model.attention(codes, codes, present)
        torch.manual_seed(0)
        expected = torch.tanh(model.generator.forward_features(regions, style_codes=given, noise="published"))[0]
    assert torch.equal(made.codes, codes[0]) and torch.equal(made.corrected, given[0])
    assert not made.codes[HAT].any() and not torch.equal(made.codes[:4], made.corrected[:4])
    assert np.abs((expected.permute(1, 2, 0).numpy() + 1) * 127.5 - made.image).max() < 0.51  # rounding
    again = model.reconstruct(image, labels)
    assert again.ran == ("attention",) and np.array_equal(again.image, made.image)
    for each in (again.codes, again.corrected, again.image, model.encode(image, labels)):
        each[:] = 0  # the caller's own
    kept = model.reconstruct(image, labels)
    assert torch.equal(kept.codes, made.codes) and np.array_equal(kept.image, made.image)


def test_what_is_kept_is_of_the_weights_and_of_one_way() -> None:
    """Weights that somebody changes in place, another plan, another precision: nothing of before is used."""
    model, (image, labels) = small_model(), picture()
    first = model.reconstruct(image, labels)
    assert "encoder" not in model.reconstruct(image, labels).ran
    with torch.no_grad():
        weight = next(model.generator.Zencoder.parameters())
        weight += torch.rand_like(weight)
    changed = model.reconstruct(image, labels)
    assert changed.ran == FULL and not torch.equal(changed.codes, first.codes)
    assert np.array_equal(changed.image, model.to("cpu").reconstruct(image, labels).image)
    for way in (use_plan("dense"), torch.autocast("cpu", torch.bfloat16)):
        with way:
            assert model.reconstruct(image, labels).ran == FULL


def test_in_use_all_is_as_by_plain_pytorch() -> None:
    """Every application by our kernels and their algebra, and by the dense plan with reference kernels."""
    image, labels = picture()
    other, others = picture(1)

    def made(model: Harmonized) -> list[Made]:
        return [
            model.transfer(image, labels, other, others, ("hair", "skin")),
            model.sample(image, labels, ("hair",), 1)[0],
            model.tune(image, labels, "skin", 1, (1.0,))[0],
            model.reshape(image, labels, others),
            model.recolour(image, labels, strokes_on(labels, hair=(200, 40, 10))),
        ]

    ours = made(small_model())
    with use_plan("dense"), use_backend("reference"):
        plain = made(small_model())
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a.corrected, b.corrected, atol=1e-5)
        assert np.abs(a.image.astype(int) - b.image).max() <= 1  # a value between two steps of 8 bits


def test_noise_is_that_of_the_seed_and_of_no_other_draw(model: Harmonized) -> None:
    image, labels = picture()
    first = model.reconstruct(image, labels).image
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    again = model.to("cpu").reconstruct(image, labels).image
    assert np.array_equal(again, first) and torch.equal(torch.rand(1), expected)
    model.noise_seed = 1
    try:
        assert not np.array_equal(model.reconstruct(image, labels).image, first)
    finally:
        del model.noise_seed


@pytest.mark.parametrize("regions", [("hair",), ("skin",), ("nose", "wall")])
def test_a_transfer_changes_the_codes_of_its_regions_alone(model: Harmonized, regions: tuple[str, ...]) -> None:
    (image, labels), (other, theirs) = picture(), picture(1)
    own, given = model.reconstruct(image, labels), model.encode(other, theirs)
    made = model.transfer(image, labels, other, theirs, regions)
    chosen = [NAMES.index(name) for name in {"skin": ("skin", "nose")}.get(regions[0], regions)]  # a group: all of it
    assert made.regions == tuple(NAMES[k] for k in sorted(chosen)) and made.ran == ("attention", "generator")
    expected = own.codes.clone()
    expected[chosen] = given[chosen]
    assert torch.equal(made.codes, expected)
    assert rows_that_differ(made.corrected, own.corrected) == sorted(chosen)  # the others' correction is as it was
    assert not np.array_equal(made.image, own.image)
    assert model.attention is not None
    present = torch.tensor([[True] * 4 + [False]])
    with torch.no_grad():
        assert torch.equal(made.corrected[None], model.attention(made.codes[None], own.codes[None], present))


def test_what_is_encoded_once_is_not_encoded_again(model: Harmonized) -> None:
    (image, labels), (other, theirs) = picture(), picture(1)
    assert model.transfer(image, labels, other, theirs).ran == ("encoder", "encoder", "attention", "generator")
    assert model.transfer(image, labels, other, theirs, ("wall",)).ran == ("attention", "generator")
    assert model.transfer(image, labels, other, theirs).ran == ("attention",)  # the image is remembered too
    assert model.transfer(*picture(2), other, theirs).ran == FULL


def test_no_region_and_itself_give_the_reconstruction(model: Harmonized) -> None:
    image, labels = picture()
    own = model.reconstruct(image, labels)
    for made in (
        model.transfer(image, labels, *picture(1), ()),
        model.transfer(image, labels, image, labels, ("hair", "skin", "wall")),
        model.reshape(image, labels, labels),
    ):
        assert np.array_equal(made.image, own.image) and torch.equal(made.corrected, own.corrected)


def test_without_attention_codes_are_not_corrected(model: Harmonized) -> None:
    plain = model.without_attention()
    image, labels = picture()
    made = plain.transfer(image, labels, *picture(1), ("hair",))
    assert made.ran == ("encoder", "encoder", "generator") and torch.equal(made.codes, made.corrected)
    assert torch.equal(made.codes, model.transfer(image, labels, *picture(1), ("hair",)).codes)


def test_a_chain_begins_with_the_codes_of_the_step_before(model: Harmonized) -> None:
    (image, labels), other = picture(), picture(1)
    own = model.encode(image, labels)
    one = model.transfer(image, labels, *other, ("hair",))
    two = model.sample(image, labels, ("skin",), 1, codes=one.codes)[0]
    three = model.tune(image, labels, "hair", 0, (0.5,), codes=two.codes)[0]
    assert torch.equal(two.codes[HAIR], one.codes[HAIR]) and rows_that_differ(two.codes, one.codes) == [SKIN, NOSE]
    assert rows_that_differ(three.codes, two.codes) == [HAIR]
    back = model.transfer(image, labels, image, labels, ("hair", "skin"), codes=three.codes)
    assert torch.equal(back.codes, own) and np.array_equal(back.image, model.reconstruct(image, labels).image)


@pytest.mark.parametrize("by", ["mapping", "flow"])
def test_samples_differ_and_a_seed_means_one_image(model: Harmonized, by: str) -> None:
    image, labels = picture()
    own = model.encode(image, labels)
    made = model.sample(image, labels, ("skin",), 3, seed=4, by=by)  # type: ignore[arg-type]
    assert [each.ran for each in made] == [(by, "attention", "generator")] * 3  # encoded above
    for each in made:
        assert rows_that_differ(each.codes, own) == [SKIN, NOSE] and each.regions == ("skin", "nose")
    assert not torch.equal(made[0].codes, made[1].codes) and not np.array_equal(made[0].image, made[1].image)
    alone = model.sample(image, labels, ("skin", "hair"), 1, seed=6, by=by)[0]  # type: ignore[arg-type]
    assert torch.equal(alone.codes[[SKIN, NOSE]], made[2].codes[[SKIN, NOSE]])  # whatever else is drawn, and the count
    single = model.sample(image, labels, ("nose",), 1, seed=4, by=by)[0]  # type: ignore[arg-type]
    assert rows_that_differ(single.codes, own) == [NOSE] and torch.equal(single.codes[NOSE], made[0].codes[NOSE])


def test_samples_are_what_mapping_network_and_flow_make(model: Harmonized) -> None:
    seed = int(np.random.SeedSequence((5, 1)).generate_state(1)[0])  # group 1
    net, flow = model.mapping["skin"], model.flows["skin"]
    with torch.no_grad():
        mapped = net(torch.randn(1, net.config.z_dim, generator=torch.Generator().manual_seed(seed)))[0]
        flown = flow.decode(torch.randn(1, flow.size, generator=torch.Generator().manual_seed(seed)), "fixed")
    assert torch.equal(model.drawn(5, ("nose",))[[SKIN, NOSE]], mapped)
    assert torch.equal(model.drawn(5, ("nose",), "flow")[[SKIN, NOSE]], flown.reshape(2, LENGTH))


def test_tuning_moves_along_a_unit_direction_in_z(model: Harmonized) -> None:
    image, labels = picture()
    own = model.encode(image, labels)
    z = model.latent(own, "skin")
    direction = np.random.default_rng(0).normal(size=2 * LENGTH)
    made = model.tune(image, labels, "skin", 5 * direction, (-0.4, 0.0, 0.4))
    assert [each.ran[0] for each in made] == ["flow", "attention", "attention"]
    before = model._latents.made  # under a slider the picture's z is made once
    model.tune(image, labels, "skin", direction, (1.0,))
    assert model._latents.made == before
    unit = torch.from_numpy(direction / np.linalg.norm(direction)).float()
    for amount, each in zip((-0.4, 0.0, 0.4), made, strict=True):
        assert torch.allclose(
            model.latent(each.codes, "skin"), z + amount * math.sqrt(2 * LENGTH) * unit, atol=1e-4
        )  # there and back again
        assert set(rows_that_differ(each.codes, own)) <= {SKIN, NOSE}
    assert torch.allclose(made[1].codes, own, atol=1e-5)  # a step of zero
    assert not np.array_equal(made[0].image, made[2].image)
    exact = model.tune(image, labels, "skin", direction, (0.4,), solver="adaptive")[0]
    assert torch.allclose(exact.codes, made[2].codes, atol=1e-3) and not torch.equal(exact.codes, made[2].codes)
    seeded = [model.tune(image, labels, "skin", seed, (0.4,))[0].codes for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])


def test_a_row_covers_the_same_share_of_the_gaussian_whatever_the_length_of_z(model: Harmonized) -> None:
    """Codes of 16 and of 32 numbers: the ends of the default row are sqrt(D) from z, one deviation a number."""
    image, labels = picture()
    own = model.encode(image, labels)
    for group, rows in (("hair", [HAIR]), ("skin", [SKIN, NOSE])):
        z, scale = model.latent(own, group), model.flows[group].scale()
        assert len(z) == len(rows) * LENGTH
        made = model.tune(image, labels, group)
        moves = torch.stack([model.latent(each.codes, group) - z for each in made])
        assert torch.allclose(moves.square().mean(1).sqrt(), torch.tensor([1.0, 0.5, 0.0, 0.5, 1.0]), atol=1e-3), group
        styled = model.tune(image, labels, group, space="style")
        moves = torch.stack([(each.codes[rows] - own[rows]).flatten() / scale for each in styled])
        assert torch.allclose(moves.square().mean(1).sqrt(), torch.tensor([1.0, 0.5, 0.0, 0.5, 1.0]), atol=1e-5), group


def test_a_walk_in_style_space_is_a_straight_line(model: Harmonized) -> None:
    image, labels = picture()
    own = model.encode(image, labels)[[SKIN, NOSE]].flatten()
    direction = torch.arange(1.0, 2 * LENGTH + 1)
    made = model.tune(image, labels, "skin", direction, (-0.5, 0.75), space="style")
    step = math.sqrt(2 * LENGTH) * direction / direction.norm() * model.flows["skin"].scale()
    for amount, each in zip((-0.5, 0.75), made, strict=True):
        assert torch.allclose(each.codes[[SKIN, NOSE]].flatten(), own + amount * step, atol=1e-6)
        assert "flow" not in each.ran


def test_another_shape_keeps_the_codes(model: Harmonized) -> None:
    image, labels = picture()
    moved = np.roll(labels, 16, 1)
    made = model.reshape(image, labels, moved)
    assert np.array_equal(made.labels, moved) and torch.equal(made.codes, model.encode(image, labels)) and made.regions == ()
    assert not np.array_equal(made.image, model.reconstruct(image, labels).image)


def test_a_new_region_takes_its_code_from_the_reference_else_from_the_mapping_network(model: Harmonized) -> None:
    image, labels = picture(regions=(0, 1, 2))  # neither hair nor hat
    own = model.encode(image, labels)
    wanted = np.where(np.indices(labels.shape)[0] < 16, HAIR, labels)
    drawn = model.reshape(image, labels, wanted, seed=3)
    assert drawn.regions == ("hair",) and drawn.ran == ("mapping", "attention", "generator")
    assert torch.equal(drawn.codes[HAIR], model.drawn(3, ("hair",))[HAIR]) and rows_that_differ(drawn.codes, own) == [HAIR]
    other, theirs = picture(2)
    given = model.reshape(image, labels, wanted, reference=other, reference_labels=theirs)
    assert torch.equal(given.codes[HAIR], model.encode(other, theirs)[HAIR])
    hat = np.where(np.indices(labels.shape)[0] < 16, HAT, labels)
    with pytest.raises(ValueError, match="new_labels: hat: the picture has no such region .*of skin, nose, hair"):
        model.reshape(image, labels, hat)
    with pytest.raises(ValueError, match="new_labels: hat"):  # the reference has none either
        model.reshape(image, labels, hat, reference=other, reference_labels=theirs)


def test_what_a_new_map_lacks_is_attended_to_by_none(model: Harmonized) -> None:
    image, labels = picture()
    bald = np.where(labels == HAIR, SKIN, labels)
    made = model.reshape(image, labels, bald)
    own = model.encode(image, labels)
    own[HAIR] = 0
    assert model.attention is not None
    with torch.no_grad():
        present = torch.tensor([[True, True, True, False, False]])
        expected = model.attention(model.encode(image, labels)[None], own[None], present)[0]
    assert torch.equal(made.corrected, expected)


def test_the_sliders_steps_are_those_of_the_library() -> None:
    """Without gradients the fixed steps are made here, with gates looked up; with gradients by torchdiffeq."""
    torch.manual_seed(2)
    flow = StyleFlow(6, FlowConfig(width=7, time=0.8, steps=5)).double()
    codes = torch.randn(3, 6, dtype=torch.float64)
    flow.standardise(torch.randn(9, 6, dtype=torch.float64) * 3)
    for way in (flow.encode, flow.decode):
        expected = way(codes, "fixed")
        with torch.no_grad():
            assert torch.allclose(way(codes, "fixed"), expected, rtol=0, atol=1e-13) and expected.requires_grad
    with torch.no_grad():
        assert (flow.decode(flow.encode(codes, "fixed"), "fixed") - codes).abs().max() < 1e-5


# --------------------------------------------------------------------------------------------------------------- strokes


def strokes_on(labels: np.ndarray, **colours: tuple[int, int, int]) -> np.ndarray:
    """Strokes along a line through each of some regions."""
    strokes = np.zeros((*labels.shape, 4), np.uint8)
    strokes[..., :3] = 77  # hides below full transparency
    for name, colour in colours.items():
        rows, columns = np.nonzero(labels == NAMES.index(name))
        here = rows == rows[0] + 3
        strokes[rows[here], columns[here]] = (*colour, 255)
    return strokes


def test_a_stroke_shifts_its_region_and_keeps_the_texture(model: Harmonized) -> None:
    image, labels = picture()
    image = (100 + image // 8).astype(np.uint8)
    strokes = strokes_on(labels, hair=(180, 90, 60))
    made = model.recolour(image, labels, strokes)
    inside = labels == HAIR
    painted = model.recoloured(image, labels, strokes)
    assert np.abs(painted[inside].mean(0) - (180, 90, 60)).max() < 0.5 and np.array_equal(painted[~inside], image[~inside])
    change = painted[inside].astype(int) - image[inside]
    assert np.ptp(change, 0).max() <= 1  # one shift for all pixels
    own = model.encode(image, labels)
    assert made.regions == ("hair",) and rows_that_differ(made.codes, own) == [HAIR]
    assert torch.equal(made.codes[HAIR], model.encode(painted, labels)[HAIR])
    assert not np.array_equal(made.image, model.reconstruct(image, labels).image)


def test_what_is_cut_off_at_white_is_made_up_for() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    image[::2] = 200
    inside = np.ones((8, 8), bool)
    assert np.abs(shifted(image, inside, np.array([235.0, 20.0, 128.0])).mean((0, 1)) - (235, 20, 128)).max() < 1
    assert (shifted(image, inside, np.array([255.0, 255.0, 255.0])) >= 250).all()


def test_a_stroke_belongs_to_the_region_where_most_of_it_lies(model: Harmonized) -> None:
    labels = np.zeros((64, 64), int)
    labels[:32], labels[32:48] = HAIR, SKIN
    strokes = np.zeros((64, 64, 4), np.uint8)
    strokes[4:34, 10:12] = (200, 0, 0, 255)  # two rows slip into the skin
    strokes[40:44, 30:40] = (0, 200, 0, 255)
    strokes[20:60, 50] = (9, 9, 9, 100)  # hardly there
    found = model.stroke_colours(labels, strokes)
    assert list(found) == ["skin", "hair"]
    assert found["hair"].tolist() == [200, 0, 0] and found["skin"].tolist() == [0, 200, 0]
    strokes[6:10, 40:44] = (100, 100, 0, 255)  # a second one in the hair: 60 and 16 pixels
    mean = (56 * np.array([200, 0, 0]) + 16 * np.array([100, 100, 0])) / 72
    assert np.allclose(model.stroke_colours(labels, strokes)["hair"], mean)


def test_strokes_of_another_size_are_fitted_as_label_maps_are(model: Harmonized) -> None:
    labels = np.zeros((128, 160), int)
    labels[:, 40:90] = HAIR
    strokes = np.zeros((128, 160, 4), np.uint8)
    strokes[30:60, 50:80] = (10, 250, 130, 255)
    assert {name: colour.tolist() for name, colour in model.stroke_colours(labels, strokes).items()} == {
        "hair": [10, 250, 130]
    }


# --------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("size", [(96, 96), (40, 80)])
def test_another_size_is_fitted(model: Harmonized, size: tuple[int, int]) -> None:
    image, labels = picture(size=size)
    as_fitted = fit(Picture(image, labels.astype(np.int32), "x"), (64, 64))
    made = model.reconstruct(image, labels)
    assert np.array_equal(made.labels, as_fitted.labels)
    assert torch.equal(made.codes, model.encode(as_fitted.image, as_fitted.labels))


def test_two_to_one() -> None:
    wide = small_model(size=(32, 64))
    assert wide.size == (32, 64)
    image, labels = picture(size=(32, 64))
    assert wide.transfer(image, labels, *picture(1, (32, 64))).image.shape == (32, 64, 3)


@pytest.mark.parametrize("where", ["one region", "one pixel", "none at all"])
def test_extreme_label_maps(model: Harmonized, where: str) -> None:
    image = picture()[0]
    labels = np.full((64, 64), -1 if where == "none at all" else SKIN)
    labels[32, 40] = {"one pixel": HAIR}.get(where, labels[0, 0])  # seen at half the size
    made = model.reconstruct(image, labels)
    assert torch.isfinite(made.corrected).all()
    assert model.present(labels) == {"one pixel": ("skin", "hair"), "none at all": ()}.get(where, ("skin",))
    if where == "one pixel":
        assert rows_that_differ(model.sample(image, labels, ("hair",), 1)[0].codes, made.codes) == [HAIR]
        labels[32, 40], labels[33, 41] = SKIN, HAIR  # a pixel that half the size does not have has no code
        assert model.present(labels) == ("skin",) and not model.encode(image, labels)[HAIR].any()
        assert torch.isfinite(model.reconstruct(image, labels).corrected).all()


def _strokes(x: np.ndarray) -> np.ndarray:
    return np.zeros((*x.shape[:2], 4), np.uint8)


BAD: dict[str, tuple[Callable[[Harmonized, np.ndarray, np.ndarray], object], str]] = {
    "image dtype": (lambda m, x, y: m.reconstruct(x / 255, y), r"image: expected \(H, W, 3\) uint8, got .* float64"),
    "labels dtype": (lambda m, x, y: m.encode(x, y / 1.0), r"labels: expected \(H, W\) integers, got .*float64"),
    "labels range": (lambda m, x, y: m.reconstruct(x, y + 3), "labels: expected classes 0 to 4 or -1, got 3 to 6"),
    "labels size": (lambda m, x, y: m.reconstruct(x, y[:32]), r"labels: expected \(64, 64\), the image's size"),
    "reference": (lambda m, x, y: m.transfer(x, y, x[..., :1], y), r"reference: expected \(H, W, 3\) uint8"),
    "reference labels": (lambda m, x, y: m.transfer(x, y, x, y[:9]), r"reference_labels: expected \(64, 64\)"),
    "region": (lambda m, x, y: m.transfer(x, y, x, y, ("har",)), "regions: expected regions out of wall, .*; got 'har'"),
    "region text": (lambda m, x, y: m.transfer(x, y, x, y, "hair"), "regions: expected several names, got the text 'hair'"),
    "target lacks": (lambda m, x, y: m.transfer(x, y, x, y, ("hat",)), "regions: the picture has no hat at 32 x 32"),
    "reference lacks": (
        lambda m, x, y: m.transfer(x, y, x, np.where(y == 3, 0, y)),
        "regions: the reference has no hair at 32 x 32 .*the reference has wall, skin, nose",
    ),
    "count": (lambda m, x, y: m.sample(x, y, count=0), "count: expected at least 1, got 0"),
    "sample's seed": (lambda m, x, y: m.sample(x, y, seed=-1), "seed: expected 0 or more, got -1"),
    "shape's seed": (lambda m, x, y: m.reshape(x, y, y, seed=-1), "seed: expected 0 or more, got -1"),
    "by": (lambda m, x, y: m.sample(x, y, by="luck"), "by: expected mapping or flow, got 'luck'"),
    "no network": (lambda m, x, y: m.sample(x, y, ("wall",)), "regions: no mapping network makes codes of wall"),
    "no flow": (lambda m, x, y: m.sample(x, y, ("wall",), by="flow"), "regions: no flow makes codes of wall"),
    "nothing": (lambda m, x, y: m.sample(x, y, ()), "regions: expected at least one region or group, got none"),
    "group": (lambda m, x, y: m.tune(x, y, "wall"), r"group: expected one with a flow \(hair, skin\), got 'wall'"),
    "group lacks": (lambda m, x, y: m.tune(x, np.where(y == 2, 0, y), "skin"), "group: skin moves .* lacks nose"),
    "direction": (lambda m, x, y: m.tune(x, y, "hair", torch.ones(4)), r"direction: expected a vector \(16\).*got \(4,\)"),
    "no direction": (lambda m, x, y: m.tune(x, y, "hair", torch.zeros(16)), "direction: .* not zero"),
    "seed": (lambda m, x, y: m.tune(x, y, "hair", -1), "direction: expected a seed, 0 or more"),
    "direction kind": (lambda m, x, y: m.tune(x, y, "hair", "up"), "direction: expected a seed or a vector"),
    "amounts": (lambda m, x, y: m.tune(x, y, "hair", 0, ()), "amounts: expected at least one finite number"),
    "endless": (lambda m, x, y: m.tune(x, y, "hair", 0, (1.0, np.inf)), "amounts: expected at least one finite number"),
    "solver": (lambda m, x, y: m.tune(x, y, "hair", solver="euler"), "solver: expected fixed or adaptive, got 'euler'"),
    "space": (lambda m, x, y: m.tune(x, y, "hair", space="w"), "space: expected z or style, got 'w'"),
    "new size": (lambda m, x, y: m.reshape(x, y, y[:32]), r"new_labels: expected \(64, 64\), the size of labels"),
    "new range": (lambda m, x, y: m.reshape(x, y, y + 3), "new_labels: expected classes 0 to 4"),
    "half a reference": (lambda m, x, y: m.reshape(x, y, y, reference=x), "reference, reference_labels: expected both"),
    "strokes": (lambda m, x, y: m.recolour(x, y, x), r"strokes: expected \(H, W, 4\) uint8, got \(64, 64, 3\) uint8"),
    "strokes size": (lambda m, x, y: m.recolour(x, y, _strokes(x)[:32]), r"strokes: expected \(64, 64\), the picture's"),
    "no stroke": (
        lambda m, x, y: m.recolour(x, y, _strokes(x)),
        "strokes: expected opaque pixels inside a region, got none",
    ),
    "codes": (lambda m, x, y: m.transfer(x, y, x, y, codes=torch.zeros(3)), r"codes: expected codes \(5, 16\)"),
    "codes kind": (lambda m, x, y: m.generate(y, np.zeros((5, 16))), r"codes: expected codes \(5, 16\).*got ndarray"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(model: Harmonized, case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act(model, *picture())
    assert model._codes.made == 0 and model._images.made == 0


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_makes_the_same(model: Harmonized, tmp_path: Path, half: bool) -> None:
    path = tmp_path / "new" / "m.safetensors"
    model.save(path, half)
    loaded = Harmonized.load(path)
    assert (loaded.classes, loaded.size, loaded.groups) == (model.classes, model.size, model.groups)
    image, labels = picture()
    for a, b in (
        (model.transfer(image, labels, *picture(1)), loaded.transfer(image, labels, *picture(1))),
        (model.sample(image, labels, ("skin",), 1)[0], loaded.sample(image, labels, ("skin",), 1)[0]),
        (model.tune(image, labels, "skin", 0, (0.4,))[0], loaded.tune(image, labels, "skin", 0, (0.4,))[0]),
    ):
        assert np.array_equal(a.image, b.image) if not half else np.abs(a.image - 1.0 * b.image).mean() < 4


def test_a_model_without_parts(tmp_path: Path) -> None:
    bare = small_model(groups={}, attention=False)
    bare.save(tmp_path / "m.safetensors")
    loaded = Harmonized.load(tmp_path / "m.safetensors")
    assert loaded.attention is None and loaded.groups == {} and loaded.drawable() == ()
    assert loaded.reconstruct(*picture()).ran == ("encoder", "generator")
    with pytest.raises(ValueError, match=r"regions: no mapping network makes codes of hair; there are some of none"):
        loaded.sample(*picture())


def test_codes_that_a_kld_draws_to_a_gaussian(tmp_path: Path) -> None:
    torch.manual_seed(0)
    distribution = CodeDistribution(LENGTH)
    made = Harmonized(small_generator(), NAMES, groups=GROUPS, distribution=distribution)
    made.save(tmp_path / "m.safetensors")
    model, (image, labels) = Harmonized.load(tmp_path / "m.safetensors"), picture()
    plain = Harmonized(small_generator(), NAMES).encode(image, labels)
    with torch.no_grad():
        expected = distribution(plain[None])[0][0]
    codes = model.encode(image, labels)
    assert torch.allclose(codes[:4], expected[:4], atol=1e-6) and not codes[HAT].any()
    sampled = model.sample(image, labels, ("wall", "hair"), 2)
    assert rows_that_differ(sampled[0].codes, codes) == [WALL, HAIR] and model.drawable() == NAMES
    assert not torch.equal(sampled[0].codes[HAIR], sampled[1].codes[HAIR]) and "mapping" not in sampled[0].ran


def test_a_model_does_not_follow_its_networks() -> None:
    """Copies, spectral norm folded; the caller's random numbers and modes are left alone."""
    config = replace(small_generator().config, spectral_norm=True)
    torch.manual_seed(4)
    generator = Generator(config)
    attention = StyleAttention(AttentionConfig(style_length=LENGTH))
    generator.encode(torch.rand(1, 3, 64, 64), torch.zeros(1, 5, 64, 64).index_fill_(1, torch.tensor(1), 1.0))  # iterates
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    used = Harmonized(generator, NAMES, attention=attention)
    assert torch.equal(torch.rand(1), expected)
    assert generator.training and not used.generator.training and not used.config.spectral_norm
    assert not any("orig" in key for key in used.generator.state_dict())
    image, labels = picture()
    codes = used.encode(image, labels)
    generator.eval()
    with torch.no_grad():
        given = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        assert torch.allclose(generator.encode(given, used._regions(labels.astype(np.int32)))[0], codes, atol=1e-5)
        attention.alpha.zero_()
        generator.conv_img.weight.zero_()
    assert used.reconstruct(image, labels).image.std() > 0 and used.attention is not None and used.attention.alpha != 0
    with pytest.raises(ValueError, match="classes: expected 5 names, got 4"):
        Harmonized(generator, NAMES[:4])
    with pytest.raises(ValueError, match="groups: hair: expected regions out of"):
        Harmonized(generator, NAMES, groups={"hair": ("bart",)})
    with pytest.raises(ValueError, match="flows: expected networks of the groups none; got hair"):
        Harmonized(generator, NAMES, flows={"hair": attention})


def test_sean_can_stand_beside_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = sean.Config(label_nc=5, ngf=4, image_size=64, hidden=8, style_length=LENGTH, encoder_width=4)
    model = Harmonized(sean.SEANGenerator(config), NAMES)
    (image, labels), (other, theirs) = picture(), picture(1)
    made = model.transfer(image, labels, other, theirs, ("hair",))
    with torch.no_grad():
        tensors = [torch.from_numpy(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (image, other)]
        maps = [model._regions(each.astype(np.int32)) for each in (labels, theirs)]
        own, given = (model.generator.encode(*pair) for pair in zip(tensors, maps, strict=True))
        expected = composed_codes(own, given, [HAIR], torch.ones(1, 5, dtype=torch.bool))[0]
    assert torch.equal(made.corrected, expected) and made.ran == ("encoder", "encoder", "generator")
    with pytest.raises(ValueError, match="generator: expected this paper's in a file, got SEAN's"):
        model.save(tmp_path / "m.safetensors")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: no such file"):
        Harmonized.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="no such weights came with the package; there are: faces"):
        Harmonized.shipped(name="nobody")
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        Harmonized.load(tmp_path)
