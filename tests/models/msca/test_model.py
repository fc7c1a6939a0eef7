"""A trained MSCA in use: what its methods give, what they do not do again, what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.feature_networks import FeatureNetwork, load_feature_network
from mixsyn_fast.models.model_file import digest_of
from mixsyn_fast.models.msca.blending import (
    blending_weights,
    check_weights,
    gradient_maps,
    patch_border,
    weights_of_walk,
    window_places,
)
from mixsyn_fast.models.msca.config import GeneratorConfig, exemplar_size
from mixsyn_fast.models.msca.features import image_features
from mixsyn_fast.models.msca.model import MSCA, Made, ScaleMaps
from mixsyn_fast.models.msca.networks import Alignment, Synthesis
from mixsyn_fast.models.pictures.picture import Picture, fit, fit_labels
from mixsyn_fast.models.training.trained import load_trained

from mixsyn_fast import RegionMap, use_plan

NAMES = ("sky", "wall", "door", "window", "tree")
SIZE = (32, 48)
Scene = tuple[np.ndarray, np.ndarray]


def scene(seed: int = 0, size: tuple[int, int] = SIZE) -> Scene:
    """Noise of a colour, with blocks of labels, some of none."""
    rng = np.random.default_rng(seed)
    image = (rng.integers(0, 256, 3) * 0.7 + rng.integers(0, 70, (*size, 3))).astype(np.uint8)
    return image, np.kron(rng.integers(-1, 5, (4, 4)), np.ones((size[0] // 4, size[1] // 4), int))


def make(vgg: FeatureNetwork | None = None, **fields: Any) -> MSCA:
    """A tiny model with random weights, so large that exemplars show in the image."""
    small: dict[str, Any] = {"label_nc": 5, "trunk": "own", "trunk_width": 4, "features": 4, "condition": 4, "ngf": 2}
    config = GeneratorConfig(**(small | {"maps": (3, 4, 4, 4, 4), "hidden": 8, "largest": 8} | fields))
    torch.manual_seed(1)
    alignment, synthesis = Alignment(config), Synthesis(config)
    with torch.no_grad():
        for weight in alignment.aligners.parameters():  # far from even attention
            weight.mul_(4)
        for weight in synthesis.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape) * (2 / weight[0].numel()) ** 0.5)
        made = MSCA(alignment, synthesis, NAMES, SIZE, vgg)
        attended = made.alignment.attend(made._half(Picture(*_int(scene()), "a"))[0], made._layout(_int(scene())[1])[0])
        made.synthesis.conv_img.weight.mul_(0.4 / made.synthesis.forward_features(attended).std())  # grey levels
    return made.to("cpu")


def _int(given: Scene) -> Scene:
    return given[0], given[1].astype(np.int32)


@pytest.fixture(scope="module")
def shared() -> MSCA:
    return make()


@pytest.fixture
def msca(shared: MSCA) -> MSCA:
    """The model, with nothing remembered."""
    return shared.to("cpu")


@pytest.fixture
def passes(msca: MSCA, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often the trunk, and the label map's half, have run."""
    count = {"trunk": 0, "layout": 0}

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            count[name] += 1
            return call(*args)

        return run

    assert msca.alignment.trunk is not None
    monkeypatch.setattr(msca.alignment.trunk, "forward", counted("trunk", msca.alignment.trunk.forward))
    monkeypatch.setattr(msca.alignment, "layout", counted("layout", msca.alignment.layout))
    yield count


def _apart(a: Made, b: Made) -> float:
    return float(np.abs(a.image.astype(int) - b.image).mean())


# --------------------------------------------------------------------------------------------------------- applications


def test_an_image_is_what_the_networks_give(msca: MSCA) -> None:
    (image, theirs), labels = scene(1), scene(2)[1]
    made = msca.synthesize(labels, image, theirs)
    assert made.image.shape == (*SIZE, 3) and made.image.dtype == np.uint8
    assert np.array_equal(made.labels, labels) and (made.exemplars, made.layouts) == (1, 1)
    maps = [RegionMap(torch.from_numpy(each)[None], 5, ignore_index=-1) for each in (theirs, labels)]
    with torch.no_grad():
        features = image_features(msca.alignment, None, torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1)
        half = msca.alignment.exemplar(features, maps[0])
        expected = msca.synthesis(msca.alignment.attend(half, msca.alignment.layout(maps[1], SIZE)))[0]
    assert np.abs((expected.permute(1, 2, 0).numpy() + 1) * 127.5 - made.image).max() < 0.51  # rounding
    assert (made.image % 255 == 0).mean() < 0.2  # not saturated
    assert _apart(made, msca.synthesize(labels, *scene(3))) > 1
    assert _apart(made, msca.synthesize(scene(4)[1], image, theirs)) > 1


def test_each_half_is_kept_apart(msca: MSCA, passes: dict[str, int]) -> None:
    one, two, first, second = scene(1), scene(2), scene(3)[1], scene(4)[1]
    msca.synthesize(first, *one)
    assert passes == {"trunk": 1, "layout": 1}
    made = msca.synthesize(second, *one)  # a new label map costs its own half alone
    assert (made.exemplars, made.layouts) == (0, 1) and passes == {"trunk": 1, "layout": 2}
    made = msca.synthesize(second, *two)  # a new exemplar likewise
    assert (made.exemplars, made.layouts) == (1, 0) and passes == {"trunk": 2, "layout": 2}
    again = msca.synthesize(first, *two)
    assert (again.exemplars, again.layouts) == (0, 0) and passes == {"trunk": 2, "layout": 2}
    assert np.array_equal(msca.to("cpu").synthesize(first, *two).image, again.image)
    with use_plan("dense"):  # computed another way: not what was kept
        dense = msca.synthesize(first, *two)
    assert (dense.exemplars, dense.layouts) == (1, 1) and np.abs(dense.image.astype(int) - again.image).max() <= 1
    changed = two[0].copy()
    changed[0, 0, 0] ^= 1
    assert msca.synthesize(first, changed, two[1]).exemplars == 1
    relabelled = two[1].copy()
    relabelled[0, 0] = (relabelled[0, 0] + 1) % 5
    assert msca.synthesize(first, two[0], relabelled).exemplars == 1


def test_what_is_kept_is_of_one_precision(msca: MSCA) -> None:
    """A half of a call under autocast is none for a call without, and the other way round."""
    labels, given = scene(3)[1], scene(1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = msca.synthesize(labels, *given)
    made = msca.synthesize(labels, *given)
    assert (made.exemplars, made.layouts) == (1, 1)
    assert np.array_equal(made.image, msca.to("cpu").synthesize(labels, *given).image)
    with torch.autocast("cpu", torch.bfloat16):
        again = msca.synthesize(labels, *given)
    assert (again.exemplars, again.layouts) == (1, 1) and np.array_equal(again.image, rough.image)
    assert _apart(made, rough) > 0


def test_what_is_kept_is_not_of_other_weights() -> None:
    """Weights that somebody changes in place, as fine-tuning does, or loads."""
    model, labels, given = make(), scene(3)[1], scene(1)
    first = model.synthesize(labels, *given)
    with torch.no_grad():
        model.alignment.compress[0].weight.mul_(3)
    changed = model.synthesize(labels, *given)
    assert (changed.exemplars, changed.layouts) == (1, 1) and _apart(changed, first) > 0
    assert np.array_equal(changed.image, model.to("cpu").synthesize(labels, *given).image)
    with torch.inference_mode():
        again = model.synthesize(labels, *given)
    assert (again.exemplars, again.layouts) == (0, 0) and np.array_equal(again.image, changed.image)


def test_threads_share_what_is_kept(msca: MSCA) -> None:
    """More label maps than are kept, asked for by several threads at once: each gets its own image."""
    given, maps = scene(1), [scene(i)[1] for i in range(2, 8)]
    expected = [msca.synthesize(labels, *given).image for labels in maps]
    msca.to("cpu")
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda i: msca.synthesize(maps[i % 6], *given), [0, 5, 1, 4, 2, 3, 3, 2, 4, 1, 5, 0, 0, 1]))
    for i, each in zip([0, 5, 1, 4, 2, 3, 3, 2, 4, 1, 5, 0, 0, 1], made, strict=True):
        assert np.array_equal(each.image, expected[i]) and each.layouts in (0, 1)


def test_what_is_kept_is_never_changed(msca: MSCA) -> None:
    """Whatever is made of halves in between, with a memory of fewer than are used: each image is that of a full pass."""
    scenes, maps = [scene(i) for i in range(3)], [scene(i)[1] for i in range(3, 9)]
    whole = {}
    for i, labels in enumerate(maps):
        for j, given in enumerate(scenes):
            whole[i, j] = msca.to("cpu").synthesize(labels, *given).image
    msca.to("cpu")
    for i, labels in enumerate(maps):  # more label maps than are kept, there and back
        for j, given in enumerate(scenes):
            msca.interpolate(labels, scenes, [1, 2, 3])
            msca.spatial(labels, scenes)
            msca.attention(labels, *given)
            assert np.array_equal(msca.synthesize(labels, *given).image, whole[i, j])
    again = [msca.synthesize(labels, *scenes[0]) for labels in reversed(maps)]
    assert [each.layouts for each in again] == [0, 0, 0, 0, 1, 1] and not any(each.exemplars for each in again)
    assert all(np.array_equal(each.image, whole[5 - i, 0]) for i, each in enumerate(again))


def test_a_matrix_computes_each_half_once(msca: MSCA, passes: dict[str, int]) -> None:
    scenes, maps = [scene(i) for i in range(3)], [scene(5)[1], scene(0)[1]]
    made = msca.swap(maps, scenes)
    assert passes == {"trunk": 3, "layout": 2}
    assert [[each.exemplars for each in row] for row in made] == [[1, 1, 1], [0, 0, 0]]
    assert [[each.layouts for each in row] for row in made] == [[1, 0, 0], [1, 0, 0]]
    for labels, row in zip(maps, made, strict=True):
        for given, each in zip(scenes, row, strict=True):
            assert np.array_equal(each.image, msca.synthesize(labels, *given).image)
    assert passes == {"trunk": 3, "layout": 2}
    assert np.array_equal(made[1][0].image, msca.synthesize(scenes[0][1], *scenes[0]).image)  # of itself


def test_the_ends_of_an_interpolation_are_the_single_images(msca: MSCA, passes: dict[str, int]) -> None:
    labels, scenes = scene(3)[1], [scene(i) for i in range(3)]
    alone = [msca.synthesize(labels, *given) for given in scenes]
    msca.to("cpu")
    for i, weights in enumerate([(2.0, 0, 0), (0, 0.1, 0), (0.0, 0, 1)]):
        before = passes["trunk"]
        made = msca.interpolate(labels, scenes, weights)
        assert np.array_equal(made.image, alone[i].image)
        assert passes["trunk"] == before + 1 == before + made.exemplars  # the others are not looked at
    half = msca.interpolate(labels, scenes[:2], [3, 3])
    assert _apart(half, alone[0]) > 0.3 and _apart(half, alone[1]) > 0.3
    assert np.abs(msca.interpolate(labels, scenes[:2], [0.5, 0.5]).image.astype(int) - half.image).max() <= 1
    near = msca.interpolate(labels, scenes[:2], [0.999, 0.001])
    assert _apart(near, alone[0]) < _apart(half, alone[0])
    walk = msca.walk(labels, scenes, between=1)
    assert len(walk) == 5
    for each, expected in zip(walk, (alone[0], half, alone[1], None, alone[2]), strict=True):
        assert expected is None or np.abs(each.image.astype(int) - expected.image).max() <= (expected is half)


def test_styles_at_every_pixel(msca: MSCA) -> None:
    labels, scenes = scene(3)[1], [scene(i) for i in range(3)]
    alone = [msca.synthesize(labels, *given).image.astype(int) for given in scenes]
    for j in range(3):  # one exemplar everywhere
        maps = [np.full(SIZE, 7.0 if i == j else 0.0) for i in range(3)]
        assert np.abs(msca.spatial(labels, scenes, maps).image - alone[j]).max() <= 1
    made = msca.spatial(labels, scenes)
    assert np.array_equal(made.weights, gradient_maps(3, SIZE, "horizontal"))
    upright = msca.spatial(labels, scenes, direction="vertical")
    assert np.array_equal(upright.weights, gradient_maps(3, SIZE, "vertical")) and _apart(made, upright) > 0.3
    # a painted map: 0 is the first, 255 the second; what is far from its border is one of both
    painted = np.zeros(SIZE, np.uint8)
    painted[:, 24:] = 255
    two = msca.spatial(labels, scenes[:2], painted).image.astype(int)
    by_floats = msca.spatial(labels, scenes[:2], painted / 255.0)
    assert np.array_equal(two, by_floats.image) and np.array_equal(by_floats.weights[1], painted / 255)
    left, right = np.s_[:, :2], np.s_[:, -2:]
    assert np.abs(two[left] - alone[0][left]).mean() < np.abs(two[left] - alone[1][left]).mean()
    assert np.abs(two[right] - alone[1][right]).mean() < np.abs(two[right] - alone[0][right]).mean()


def test_weight_maps_are_fitted_as_the_label_map_is(msca: MSCA) -> None:
    labels = scene(3, (64, 64))[1]
    maps = np.random.default_rng(0).random((2, 64, 64))
    made = msca.spatial(labels, [scene(0), scene(1)], maps)
    assert np.array_equal(made.labels, fit_labels(labels.astype(np.int32), SIZE)) and made.weights.shape == (2, *SIZE)
    assert made.weights.sum(0) == pytest.approx(1, abs=1e-6)
    shares = (maps[0] / maps.sum(0)).astype(np.float32)
    number = np.arange(64 * 64, dtype=np.int32).reshape(64, 64)
    assert np.array_equal(made.weights[0], shares.ravel()[fit_labels(number, SIZE)])


def test_a_scene_is_made_of_windows(msca: MSCA, passes: dict[str, int]) -> None:
    patch, labels = scene(1), scene(2, (72, 100))[1]
    made = msca.extrapolate(*patch, labels, others=3, seed=5)
    assert made.image.shape == (72, 100, 3) and np.array_equal(made.labels, labels)
    assert passes == {"trunk": 1, "layout": len(made.windows)} and made.layouts == len(made.windows)
    corners = {(0, 0), (0, 52), (40, 0), (40, 52)}
    assert set(made.windows[:4]) == corners
    for y, x, at in ((0, 0, (0, 0)), (40, 52, (-1, -1))):  # where one window alone lies, the scene is its image
        alone = msca.synthesize(np.ascontiguousarray(labels[y : y + 32, x : x + 48]), *patch)
        assert np.abs(made.image[at].astype(int) - alone.image[at]).max() <= 1
    assert np.array_equal(msca.extrapolate(*patch, labels, others=3, seed=5).image, made.image)
    # the paper's numbers: twice the size, 4 + 10 windows
    twice = msca.extrapolate(*patch, scene(2, (64, 96))[1])
    assert len(twice.windows) == 14 and twice.exemplars == 0
    assert msca.extrapolate(*patch, scene(2, (64, 96))[1], seed=1).windows != twice.windows
    # a scene of the model's size is one window
    small = scene(6)[1]
    one = msca.extrapolate(*patch, small)
    assert one.windows == ((0, 0),) and np.abs(one.image.astype(int) - msca.synthesize(small, *patch).image).max() <= 1


def test_the_patch_can_be_kept(msca: MSCA) -> None:
    patch, labels = scene(1), scene(2, (64, 96))[1]
    without, kept = msca.extrapolate(*patch, labels), msca.extrapolate(*patch, labels, keep=True)
    inside = np.s_[20:44, 32:64]  # the patch without its border
    assert np.abs(kept.image[inside].astype(int) - patch[0][4:28, 8:40]).max() <= 1
    assert np.abs(without.image[inside].astype(int) - patch[0][4:28, 8:40]).mean() > 5
    outside = np.ones((64, 96), bool)
    outside[16:48, 24:72] = False
    assert np.array_equal(kept.image[outside], without.image[outside])


@pytest.mark.parametrize("masking", [True, False])
def test_attention_says_what_goes_where(masking: bool, msca: MSCA) -> None:
    model = msca if masking else make(masking=False)
    given, labels = scene(1), scene(2)[1]
    found = model.attention(labels, *given)
    assert np.array_equal(found.image, model.synthesize(labels, *given).image)
    assert np.array_equal(found.exemplar.image, given[0])
    assert [len(each.gates) for each in found.scales] == [3, 4, 4, 4, 4]
    for each in found.scales:
        size = (32 >> each.scale, 48 >> each.scale)
        assert each.alpha.shape[1:] == each.beta.shape[1:] == size
        assert each.alpha.sum((1, 2)) == pytest.approx(1, abs=1e-5) and each.beta.sum(0) == pytest.approx(1, abs=1e-5)
        assert (each.gates == 1).all() if not masking else ((each.gates > 0) & (each.gates < 1)).all()
        assert each.strength == pytest.approx(each.beta.mean((1, 2)) * each.gates)
        order = each.strongest(9)
        assert sorted(order) == list(range(len(each.gates))) and list(each.strength[order]) == sorted(each.strength)[::-1]
    finest = found.scales[0]
    for k in range(3):
        for label in range(5):
            assert finest.given[k, label] == pytest.approx(finest.alpha[k][given[1] == label].sum(), abs=1e-5)
            share = finest.beta[k][labels == label].sum() / finest.beta[k].sum()
            assert finest.taken[k, label] == pytest.approx(share, abs=1e-5)
    assert (finest.given.sum(1) < 1 - 1e-3).any()  # some of the exemplar has no label


def test_what_reaches_its_own_class() -> None:
    """By hand: map 0 gathers sky alone and hands it to sky and wall, map 1 gathers half of each and hands it to wall."""
    alpha = np.array([[[0.5, 0.5, 0.0, 0.0]], [[0.25, 0.25, 0.25, 0.25]]], np.float32)  # the exemplar: sky, sky, wall, wall
    beta = np.array([[[1.0, 0.5, 0.0, 0.5]], [[0.0, 0.5, 1.0, 0.5]]], np.float32)  # the target: sky, wall, wall, none
    given = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    taken = np.array([[1.0, 0.5], [0.0, 1.5]], np.float32) / 2  # of sums of 2 each
    shares = np.array([0.5, 0.5], np.float32), np.array([0.25, 0.5], np.float32)
    maps = ScaleMaps(0, alpha, beta, np.array([1.0, 0.5], np.float32), given, taken, *shares)
    # target's sky: 1 of map 0; its walls: 0.5 of map 0, 1.5 of map 1 behind a gate of 0.5; means over four positions
    sky, wall = (1, 0.5 + 0.5 * 1.5 * 0.5), (0, 0.5 * 1.5 * 0.5)
    assert maps.transferred == pytest.approx(np.array([sky, wall]) / 4)
    assert maps.to_own_class == pytest.approx((1 + 0.375) / (1 + 0.875 + 0.375))
    assert maps.by_chance == pytest.approx((0.5 * 0.25 + 0.5 * 0.5) / 0.75)
    nothing = ScaleMaps(0, alpha, beta, np.ones(2, np.float32), 0 * given, taken, *shares)
    assert np.isnan(nothing.to_own_class)


def test_attention_of_the_ablations() -> None:
    given, labels = scene(1), scene(2)[1]
    even = make(attention="gap").attention(labels, *given).scales[0]
    assert even.alpha.shape == (1, *SIZE) and even.alpha == pytest.approx(1 / (32 * 48)) and (even.beta == 1).all()
    assert even.to_own_class == pytest.approx(even.by_chance, abs=1e-5)
    model = make(attention="labels")
    found = model.attention(labels, *given)
    for each in found.scales[:2]:
        there, wanted = np.isin(range(5), given[1]), np.isin(range(5), labels)
        assert each.given == pytest.approx(np.diag(there.astype(float)), abs=1e-5)
        assert each.taken == pytest.approx(np.diag(wanted.astype(float)), abs=1e-5)
        assert each.to_own_class == pytest.approx(1) and each.by_chance < 0.9
    mixed = model.interpolate(labels, [given, scene(3)], [1, 1])
    assert np.isfinite(mixed.image).all() and _apart(mixed, found) > 0.1


def test_pictures_and_results_of_other_sizes(msca: MSCA) -> None:
    image, theirs = scene(1, (40, 100))
    labels = scene(2, (60, 52))[1]
    made = msca.synthesize(labels, image, theirs)
    fitted = fit(Picture(*_int((image, theirs)), "x"), (32, 80))  # 40 x 100 at the model's scale
    assert np.array_equal(made.image, msca.synthesize(made.labels, fitted.image, fitted.labels).image)
    assert made.labels.shape == SIZE
    for size in ((16, 16), (64, 32), (32, 128)):
        other = msca.synthesize(labels, image, theirs, size=size)
        assert other.image.shape == (*size, 3) and other.labels.shape == size and other.exemplars == 0
        assert msca.spatial(labels, [(image, theirs), scene(3)], size=size).weights.shape == (2, *size)
    assert np.array_equal(msca.synthesize(labels.astype(np.int8), image, theirs).image, made.image)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (SIZE, SIZE),
        ((64, 96), SIZE),
        ((16, 24), SIZE),
        ((40, 100), (32, 80)),
        ((100, 40), (128, 48)),  # not 120 x 48
        ((33, 48), SIZE),
        ((1, 1), (48, 48)),
        ((1, 500), (32, 192)),  # at most four times the model's side
        ((500, 1), (128, 48)),
    ],
    ids=str,
)
def test_the_size_of_an_exemplar(stored: tuple[int, int], expected: tuple[int, int]) -> None:
    """Its own proportions, as near as multiples of 16 are; the model's size is covered, and no scale is changed twice."""
    assert exemplar_size(stored, SIZE) == expected
    assert exemplar_size(expected, SIZE) == expected


def test_an_exemplar_is_seen_whole(msca: MSCA) -> None:
    """What a cut to the model's proportions would lose counts: colours at the ends, and classes that are there alone."""
    image, theirs = np.full((32, 160, 3), 90, np.uint8), np.zeros((32, 160), np.int64)
    labels = scene(2)[1]
    plain = msca.synthesize(labels, image, theirs)
    ends = image.copy()
    ends[:, :24] = (250, 30, 30)
    assert _apart(msca.synthesize(labels, ends, theirs), plain) > 0.1
    there = theirs.copy()
    there[:, -16:] = 4
    found = msca.attention(labels, image, there)
    assert found.exemplar.labels.shape == (32, 160) and found.scales[0].alpha.shape == (3, 32, 160)
    assert found.scales[2].alpha.shape == (4, 8, 40) and found.scales[0].beta.shape == (3, *SIZE)
    assert found.scales[0].exemplar_shares[4] == pytest.approx(0.1) and (found.scales[0].given[:, 4] > 0).any()
    # every application takes exemplars of different proportions at once, and at its ends gives the single images
    scenes = [(ends, there), scene(3), scene(5, (96, 40))]
    alone = [msca.synthesize(labels, *each).image for each in scenes]
    table = msca.swap([labels], scenes)[0]
    walk = msca.walk(labels, scenes, 0)
    for each, own, on_the_way in zip(alone, table, walk, strict=True):
        assert np.array_equal(own.image, each) and np.array_equal(on_the_way.image, each)
    sides = np.zeros(SIZE, np.uint8)
    sides[:, 24:] = 255
    assert msca.spatial(labels, scenes[:2], sides).image.shape == (*SIZE, 3)
    # of the same pictures as bands of the model's proportions each is a part: a mixture is no matter of areas
    even = msca.interpolate(labels, [(np.tile(image, (1, 2, 1))[:, :192], np.zeros((32, 192), int)), scenes[1]], [1, 1])
    short = msca.interpolate(labels, [(image[:, :48], theirs[:, :48]), scenes[1]], [1, 1])
    assert _apart(even, short) < 0.5


def test_a_patch_of_other_proportions(msca: MSCA) -> None:
    """It is an exemplar like any other; kept, it stands in the middle as it is seen, as far as there is room."""
    patch, labels = scene(1, (32, 96)), scene(2, (64, 80))[1]
    made = msca.extrapolate(*patch, labels)
    corner = msca.synthesize(np.ascontiguousarray(labels[:32, :48]), *patch)
    assert np.abs(made.image[0, 0].astype(int) - corner.image[0, 0]).max() <= 1
    kept = msca.extrapolate(*patch, labels, keep=True)
    inside = np.s_[20:44, 10:70]
    assert np.abs(kept.image[inside].astype(int) - patch[0][4:28, 18:78]).max() <= 1  # 8 columns have no room on each side
    assert np.array_equal(kept.image[:16], made.image[:16]) and np.array_equal(kept.image[48:], made.image[48:])


# ------------------------------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize(
    ("scene_size", "window", "others"),
    [
        ((64, 96), (32, 48), 10),
        ((32, 48), (32, 48), 10),
        ((33, 48), (32, 48), 2),
        ((200, 70), (32, 48), 0),
        ((64, 64), (16, 64), 3),
    ],
)
def test_windows_sum_to_one(scene_size: tuple[int, int], window: tuple[int, int], others: int) -> None:
    places = window_places(scene_size, window, others, 3)
    weights = blending_weights(scene_size, window, places)
    assert weights.shape == (len(places), *window) and float(weights.min()) > 0
    total = torch.zeros(scene_size)
    for (y, x), weight in zip(places, weights, strict=True):
        total[y : y + window[0], x : x + window[1]] += weight
    assert torch.allclose(total, torch.ones(scene_size), atol=1e-6)
    ends = {(y, x) for y in (0, scene_size[0] - window[0]) for x in (0, scene_size[1] - window[1])}
    assert set(places[: len(ends)]) == ends
    assert len(places) >= len(ends) + (others if scene_size != window else 0)


def test_windows_overlap_and_fall_off() -> None:
    rows = sorted({y for y, _ in window_places((200, 48), (32, 48), 0)})
    assert max(np.diff(rows)) <= 24  # at least a quarter of 32
    weights = blending_weights((48, 48), (32, 48), [(0, 0), (16, 0)])
    assert float(weights[0, 0].min()) == pytest.approx(1)  # alone there
    seam = weights[0, 16:, 5]
    assert bool((seam.diff() < 0).all()) and float(seam[0]) > 0.99 and float(seam[-1]) < 0.01


def test_windows_refuse() -> None:
    with pytest.raises(ValueError, match=r"scene: expected at least \(32, 48\), the window's size, got \(31, 48\)"):
        window_places((31, 48), (32, 48))
    with pytest.raises(ValueError, match="others, seed: expected 0 or more, got -1 and 0"):
        window_places((64, 48), (32, 48), -1)
    with pytest.raises(ValueError, match="expected every pixel in a window, got 768 in none"):
        blending_weights((48, 48), (32, 48), [(0, 0)])
    with pytest.raises(ValueError, match="expected windows inside"):
        blending_weights((48, 48), (32, 48), [(0, 0), (17, 0)])


def test_gradients_and_walks() -> None:
    maps = gradient_maps(3, (4, 9), "horizontal")
    assert maps.sum(0) == pytest.approx(1) and (maps[0, :, 0] == 1).all() and (maps[2, :, -1] == 1).all()
    assert (maps[1, :, 4] == 1).all() and maps[0, 0, 2] == pytest.approx(0.5)
    assert np.array_equal(gradient_maps(3, (9, 4), "vertical"), maps.transpose(0, 2, 1))
    assert weights_of_walk(2, 1) == [(1, 0), (0.5, 0.5), (0, 1)]
    walk = weights_of_walk(3, 3)
    assert len(walk) == 9 and walk[4] == (0, 1, 0) and all(sum(each) == pytest.approx(1) for each in walk)
    border = patch_border((32, 48))
    assert float(border.max()) == 1 and float(border[4:28, 6:42].min()) == 1 and float(border[0].max()) < 0.05
    with pytest.raises(ValueError, match="direction: expected 'horizontal' or 'vertical', got 'up'"):
        gradient_maps(2, (4, 4), "up")
    with pytest.raises(ValueError, match="between: expected 0 or more, got -1"):
        weights_of_walk(2, -1)
    with pytest.raises(ValueError, match="weights: expected numbers that are not negative"):
        check_weights((float("nan"), 1), 2)


# ----------------------------------------------------------------------------------------------------------------- files


def test_a_file_holds_all(msca: MSCA, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    msca.save(tmp_path / "m.safetensors")
    msca.save(tmp_path / "h.safetensors", half=True)
    expected = msca.synthesize(scene(3)[1], *scene(1)).image
    loaded = MSCA.load(tmp_path / "m.safetensors")
    assert (loaded.size, loaded.classes, loaded.config) == (SIZE, NAMES, msca.config)
    assert np.array_equal(loaded.synthesize(scene(3)[1], *scene(1)).image, expected)
    small = MSCA.load(tmp_path / "h.safetensors").synthesize(scene(3)[1], *scene(1)).image
    assert np.abs(small.astype(int) - expected).mean() < 2
    with pytest.raises(ValueError, match=r"vgg_weights: expected 'auto', for .*m.safetensors has a trunk of its own; got x"):
        MSCA.load(tmp_path / "m.safetensors", vgg_weights="x")
    with pytest.raises(FileNotFoundError, match="no such weights came with the package"):
        MSCA.shipped(name="nothing")
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file \(expected a file of MSCA.save, or a run folder\)"):
        MSCA.load(tmp_path / "nowhere")


SMALL_RUN = (
    "--kind procedural_facades --count 4 --workers 0 --save-every 2 --validation none --sheet-every 0 --pretrain-steps 0 "
    "--patch-steps 1 --generator-every 1 --generator.trunk-width 2 --generator.features 2 --generator.condition 2 "
    "--generator.maps 2,2,2,2,2 --generator.ngf 2 --generator.largest 4 --generator.hidden 4 "
    "--discriminator.ndf 2 --discriminator.n-layers 2 --discriminator.scales 1"
)


def test_a_model_knows_its_vgg(tmp_path: Path, vgg16_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("safetensors")
    vgg = load_feature_network(vgg16_file)
    model = make(vgg, trunk="vgg")
    model.save(tmp_path / "m.safetensors")
    expected = model.synthesize(scene(3)[1], *scene(1)).image
    loaded = MSCA.load(tmp_path / "m.safetensors", vgg_weights=str(vgg16_file))
    assert np.array_equal(loaded.synthesize(scene(3)[1], *scene(1)).image, expected)
    monkeypatch.setattr("mixsyn_fast.models.losses.perceptual.find_weights", lambda kind: None)
    with pytest.raises(
        FileNotFoundError, match=r"no VGG-16 weights on this machine.*m.safetensors reads the features of vgg16"
    ):
        MSCA.load(tmp_path / "m.safetensors")
    monkeypatch.setattr("mixsyn_fast.models.losses.perceptual.find_weights", lambda kind: vgg16_file)
    assert MSCA.load(tmp_path / "m.safetensors").vgg is not None
    state = torch.load(vgg16_file, weights_only=True)
    state["features.28.bias"] += 0.01
    torch.save(state, tmp_path / "other.pth")
    other = tmp_path / "other.pth"
    found = digest_of(load_feature_network(other))[:12]
    message = rf"expected the vgg16 that .* was trained with \(digest {digest_of(vgg)[:12]}\), "
    message += rf"got another one \(.*other.pth: digest {found}\)"
    with pytest.raises(ValueError, match=message):
        MSCA.load(tmp_path / "m.safetensors", vgg_weights=str(other))

    # a run: what its folder says, and a checkpoint of it that is to go on
    from mixsyn_fast import cli

    run, file = tmp_path / "run", tmp_path / "vgg.pth"
    file.hardlink_to(vgg16_file)
    words = f"train msca --vgg-weights {file} --out {run} --size 64 --batch-size 1 --vgg 0 {SMALL_RUN}"
    assert cli.main([*words.split(), "--steps", "1", "--generator.trunk", "vgg"]) == 0
    monkeypatch.setattr("mixsyn_fast.models.losses.perceptual.find_weights", lambda kind: None)
    made = MSCA.load(run).synthesize(scene(3)[1], *scene(1)).image
    with pytest.raises(ValueError, match="^vgg_weights: " + message):
        MSCA.load(run, vgg_weights=str(other))
    other_words = words.replace(str(file), str(other))
    assert cli.main([*other_words.split(), "--steps", "2", "--generator.trunk", "vgg"]) == 2
    assert re.search(message, capsys.readouterr().err)

    # the run comes to a machine where its file lies elsewhere, or another one has the same weights
    file.rename(tmp_path / "moved.pth")
    with pytest.raises(FileNotFoundError, match=rf"^vgg_weights: no VGG-16 weights .*; the run read {file}, digest "):
        MSCA.load(run)
    moved = str(tmp_path / "moved.pth")
    assert np.array_equal(MSCA.load(run, vgg_weights=moved).synthesize(scene(3)[1], *scene(1)).image, made)
    monkeypatch.setattr("mixsyn_fast.models.losses.perceptual.find_weights", lambda kind: vgg16_file)
    assert np.array_equal(MSCA.load(run).synthesize(scene(3)[1], *scene(1)).image, made)
    assert load_trained(run).config["task"]["vgg_weights"] == str(file), "what the run says of itself stays"
    monkeypatch.setattr("mixsyn_fast.models.losses.perceptual.find_weights", lambda kind: other)
    with pytest.raises(ValueError, match=r"^vgg_weights: expected the vgg16 .* got another one \(auto: digest"):
        MSCA.load(run)
    with pytest.raises(FileNotFoundError, match="^vgg_weights: nowhere.pth: no such file$"):
        MSCA.load(run, vgg_weights="nowhere.pth")
    with pytest.raises(ValueError, match=r"^vgg_weights: .*m.safetensors: not a feature network"):
        MSCA.load(run, vgg_weights=str(tmp_path / "m.safetensors"))

    # every command takes the file
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mixsyn_fast.models.losses.perceptual.find_weights", lambda kind: None)
    for verb in ("attention", "transfer --limit 2", "evaluate --tasks duplicating --limit 2"):
        given = ["msca", *verb.split(), "--model", str(run), "--out", f"o{len(verb)}.png"]
        assert cli.main(given) == 2 and "--vgg-weights: no VGG-16 weights" in capsys.readouterr().err
        assert cli.main([*given, "--vgg-weights", moved]) == 0
    assert cli.main(["msca", "swap", "--model", str(run), "--vgg-weights", str(other)]) == 2
    assert re.search("--vgg-weights: " + message, capsys.readouterr().err)


def test_a_run_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    from mixsyn_fast import cli

    monkeypatch.chdir(tmp_path)
    words = f"--size 64 --out run --steps 2 --batch-size 1 --vgg 0 --generator.trunk own {SMALL_RUN}"
    assert cli.main(["train", "msca", *words.split()]) == 0
    loaded = MSCA.load("run")
    assert loaded.size == (32, 32) and len(loaded.classes) == 12 and not loaded.config.spectral_norm
    made = loaded.synthesize(scene(3)[1], *scene(1))
    loaded.save("m.safetensors")
    assert np.array_equal(MSCA.load("m.safetensors").synthesize(scene(3)[1], *scene(1)).image, made.image)
    with pytest.raises(ValueError, match="^vgg_weights: expected 'auto', for run has a trunk of its own; got m.safetensors"):
        MSCA.load("run", vgg_weights="m.safetensors")
    config = Path("run/config.json")  # as if all of it had been pretraining: nothing has learnt to make images
    config.write_text(config.read_text().replace('"pretrain_steps": 0', '"pretrain_steps": 2'))
    with pytest.raises(
        ValueError, match=r"run: expected .* ended in pretraining, after step 2: images are made from step 3 on"
    ):
        MSCA.load("run")
    config.write_text(config.read_text().replace('"model": "msca"', '"model": "spade"'))
    with pytest.raises(ValueError, match="run: expected a run of `mixsyn-fast train msca`, got: a run of model 'spade'"):
        MSCA.load("run", vgg_weights="m.safetensors")


# ------------------------------------------------------------------------------------------------------------- bad input

IMAGE, LABELS = scene(1)
BAD: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "labels": ("synthesize", (LABELS / 2, IMAGE, LABELS), {}, r"labels: expected \(H, W\) integers, got \(32, 48\) float64"),
    "value": ("synthesize", (LABELS + 9, IMAGE, LABELS), {}, "labels: expected classes 0 to 4 or -1, got"),
    "image": ("synthesize", (LABELS, IMAGE / 2, LABELS), {}, r"exemplar: expected \(H, W, 3\) uint8, got \(32, 48, 3\)"),
    "no array": ("synthesize", (LABELS, None, LABELS), {}, r"exemplar: expected \(H, W, 3\) uint8, got NoneType"),
    "apart": ("synthesize", (LABELS, IMAGE, LABELS[:8]), {}, r"exemplar_labels: expected \(32, 48\), the image's size"),
    "size": ("synthesize", (LABELS, IMAGE, LABELS), {"size": (40, 48)}, "multiples of 16, got 40 x 48"),
    "no size": ("synthesize", (LABELS, IMAGE, LABELS), {"size": (0, 48)}, "multiples of 16, got 0 x 48"),
    "no maps": ("swap", ([], [scene()]), {}, "label_maps: expected at least one, got none"),
    "no scenes": ("swap", ([LABELS], []), {}, "exemplars: expected at least 1, got 0"),
    "bad map": ("swap", ([LABELS, LABELS - 9], [scene()]), {}, r"label_maps\[1\]: expected classes"),
    "no pair": ("swap", ([LABELS], [IMAGE]), {}, r"exemplars\[0\]: expected \(image, label map\), got ndarray"),
    "pair": ("interpolate", (LABELS, [scene(), (IMAGE, IMAGE)], [1, 1]), {}, r"exemplars\[1\]: labels: expected"),
    "count": ("interpolate", (LABELS, [scene()], [1, 1]), {}, "weights: expected one for each of 1 exemplars, got 2"),
    "zero": ("interpolate", (LABELS, [scene()] * 2, [0, 0]), {}, r"weights: expected numbers .* one above 0; got \(0, 0\)"),
    "negative": ("interpolate", (LABELS, [scene()] * 2, [2, -1]), {}, "weights: expected numbers that are not negative"),
    "walk": ("walk", (LABELS, [scene()]), {}, "exemplars: expected at least 2, got 1"),
    "between": ("walk", (LABELS, [scene()] * 2), {"between": -1}, "between: expected 0 or more, got -1"),
    "direction": ("spatial", (LABELS, [scene()] * 2), {"direction": "up"}, "direction: expected 'horizontal' or"),
    "one map": ("spatial", (LABELS, [scene()] * 3, np.ones(SIZE)), {}, "weight_maps: expected one for each of 3"),
    "maps": ("spatial", (LABELS, [scene()] * 2, np.ones((3, *SIZE))), {}, "weight_maps: expected one for each of 2"),
    "map size": ("spatial", (LABELS, [scene()] * 2, np.ones((2, 8, 8))), {}, r"weight_maps\[0\]: expected 32 x 48"),
    "map type": ("spatial", (LABELS, [scene()] * 2, np.ones((2, *SIZE), bool)), {}, r"weight_maps\[0\]: .* bool"),
    "all 0": ("spatial", (LABELS, [scene()] * 2, np.zeros((2, *SIZE))), {}, "one above 0 at every pixel, got none at 1536"),
    "nan": ("spatial", (LABELS, [scene()] * 2, np.full((2, *SIZE), np.nan)), {}, "expected numbers that are not negative"),
    "beyond": ("spatial", (LABELS, [scene()] * 2, np.full(SIZE, 1.5)), {}, r"expected one map from 0 to 1"),
    "small": ("extrapolate", (IMAGE, LABELS, LABELS[:, :40]), {}, r"labels: expected at least \(32, 48\), .*40\)"),
    "others": ("extrapolate", (IMAGE, LABELS, LABELS), {"others": -1}, "others, seed: expected 0 or more, got -1 and 0"),
    "patch": ("extrapolate", (IMAGE, LABELS[:8], LABELS), {}, r"patch_labels: expected \(32, 48\), the image's size"),
    "attention": ("attention", (LABELS, IMAGE, LABELS + 9), {}, "exemplar_labels: expected classes 0 to 4 or -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case: str, msca: MSCA, passes: dict[str, int]) -> None:
    verb, args, kwargs, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        getattr(msca, verb)(*args, **kwargs)
    assert passes == {"trunk": 0, "layout": 0}


def test_networks_that_do_not_fit(msca: MSCA, vgg16_file: Path) -> None:
    networks = (msca.alignment, msca.synthesis)
    with pytest.raises(ValueError, match="classes: expected 5 names, got 2"):
        MSCA(*networks, ("a", "b"), SIZE)
    with pytest.raises(ValueError, match="size: expected height and width that are multiples of 16, got 30 x 48"):
        MSCA(*networks, NAMES, (30, 48))
    with pytest.raises(ValueError, match="vgg: expected none, for the model's trunk is 'own'"):
        MSCA(*networks, NAMES, SIZE, load_feature_network(vgg16_file))
