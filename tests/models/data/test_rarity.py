"""Rare colours of classes: densities, ranks of pictures, chances of draws, weights of classes, the file beside a run."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import DataOptions, Loader, Rarity, RegionDataset, Sample, kept_rarity, rarity
from mixsyn_fast.models.data.classes import ADE20K, CAMVID, CITYSCAPES, FACADE_CLASSES, GTA5, are_streets
from mixsyn_fast.models.data.rarity import densities, mean_colours

SKY, ROAD, CAR = range(3)
BLUE, RED, GREY = (90, 140, 220), (220, 60, 40), (100, 100, 100)


class Streets:
    """Skies over roads: blue ones, all a little different, and a red one, number 3; one picture has a car, one no class."""

    name, classes, default_size = "camvid", ("sky", "road", "car"), (8, 8)
    swaps = ((ROAD, CAR),)

    def __init__(self, count: int = 12, bad: Sequence[int] = (), red: int = 3) -> None:
        self.count, self.bad, self.red, self.reads = count, bad, red, 0

    def __len__(self) -> int:
        return self.count

    def names(self) -> list[str]:
        return [f"s{i:02d}" for i in range(self.count)]

    def read(self, index: int) -> Sample:
        self.reads += 1
        if index in self.bad:
            raise ValueError(f"s{index:02d}.png: broken")
        labels = np.zeros((8, 8), np.int32)
        labels[4:] = ROAD
        if index == 5:
            labels[6:, :2] = CAR
        image = np.zeros((8, 8, 3), np.uint8)
        shift = np.random.default_rng(index).integers(-4, 5, (3,))
        image[labels == SKY] = np.array(RED if index == self.red else BLUE) + shift
        image[labels == ROAD] = np.array(GREY) + index % 3
        image[labels == CAR] = RED
        if index == self.count - 1:
            labels[:] = -1
        return Sample(image, labels, None, f"s{index:02d}")


def direct(colours: np.ndarray, bandwidth: float) -> list[float]:
    """The formula, one pair of colours after the other."""
    count = len(colours)
    spread = np.zeros((3, 3))
    for colour in colours - colours.mean(0):
        spread += np.outer(colour, colour) / (count - 1)
    width = (bandwidth**2 * np.eye(3) if bandwidth else spread * count ** (-2 / 7)) + np.eye(3)
    inverse, scale = np.linalg.inv(width), math.sqrt((2 * math.pi) ** 3 * np.linalg.det(width))
    return [sum(math.exp(-0.5 * (x - y) @ inverse @ (x - y)) for y in colours) / count / scale for x in colours]


@pytest.mark.parametrize("bandwidth", [0.0, 7.0])
def test_densities_are_those_of_the_formula(bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = np.random.default_rng(0).normal((120, 90, 60), (30, 10, 20), (40, 3))
    expected = direct(colours, bandwidth)
    assert densities(colours, bandwidth) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(sys.modules[densities.__module__], "_PAIRS", 100)  # in parts
    assert densities(colours, bandwidth) == pytest.approx(expected, rel=1e-9)


def test_densities_of_few_or_equal_colours() -> None:
    peak = (2 * math.pi) ** -1.5
    assert densities(np.array([[1.0, 2.0, 3.0]])) == pytest.approx([peak])
    assert densities(np.ones((4, 3))) == pytest.approx([peak] * 4)
    grey = np.repeat(np.arange(5.0)[:, None] * 10, 3, 1)  # in a line: a covariance without an inverse
    assert np.isfinite(densities(grey)).all() and densities(grey)[2] > densities(grey)[0]


@pytest.mark.parametrize(
    ("colours", "bandwidth", "message"),
    [
        (np.zeros((3, 2)), 0.0, r"colours: expected shape \(n, 3\), got \(3, 2\)"),
        (np.full((2, 3), np.nan), 0.0, "colours: expected finite numbers"),
        (np.zeros((2, 3)), -1.0, "bandwidth: expected 0 or more grey levels, got -1.0"),
        (np.zeros((2, 3)), math.inf, "bandwidth: expected 0 or more grey levels, got inf"),
    ],
)
def test_bad_colours(colours: np.ndarray, bandwidth: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        densities(colours, bandwidth)


def test_mean_colours() -> None:
    rng = np.random.default_rng(1)
    image, labels = rng.integers(0, 256, (5, 7, 3), np.uint8), rng.integers(-1, 3, (5, 7)).astype(np.int32)
    found, counts = mean_colours(image, labels, 4)
    for k in range(3):
        assert counts[k] == (labels == k).sum() and np.allclose(found[k], image[labels == k].mean(0))
    assert counts[3] == 0 and (found[3] == 0).all()


@pytest.mark.parametrize("bandwidth", [0.0, 7.0])
def test_a_red_sky_is_the_rarest_of_blue_ones(bandwidth: float) -> None:
    found = rarity(Streets(), bandwidth)
    assert found.count == 12 and found.presence[SKY] == list(range(11)) and found.presence[CAR] == [5]
    assert np.array(found.colours[CAR]).tolist() == [list(map(float, RED))]
    ranks = [found.presence[SKY][i] for i in np.argsort(found.scores[SKY])[::-1]]
    assert ranks[0] == 3 and found.scores[SKY][3] > 1.5 * sorted(found.scores[SKY])[-2]
    gains = found.gains()
    assert gains[SKY] == max(gains) and gains[CAR] == 1  # a class of one picture has nothing to balance


def test_chances() -> None:
    found = rarity(Streets())
    sky = np.array(found.scores[SKY])
    assert found.chances(1)[:11] == pytest.approx(sky / sky.sum()) and found.chances(1)[11] == 0
    every = found.chances(0)
    parts = [np.array(scores) / sum(scores) for scores in found.scores]
    expected = np.zeros(12)
    for k, part in enumerate(parts):
        expected[found.presence[k]] += part / 3
    assert every == pytest.approx(expected) and every.sum() == pytest.approx(1) and every[5] > 1 / 3
    assert (found.chances(99) == every).all() and found.chances(1).argmax() == 3
    with pytest.raises(ValueError, match="classes: expected 0 or more, got -1"):
        found.chances(-1)


def test_weights_of_classes() -> None:
    found = rarity(Streets())
    weights = found.class_weights()
    assert weights.shape == (12, 4) and weights.dtype == np.float32 and (weights > 0).all() and (weights <= 1).all()
    assert weights[3, SKY] == weights[5, CAR] == 1 and weights[:11, SKY] == pytest.approx(
        np.array(found.scores[SKY]) / max(found.scores[SKY])
    )
    assert weights[0, CAR] == weights[0, 3] == pytest.approx((weights[0, SKY] + weights[0, ROAD]) / 2)
    assert (weights[11] == 1).all()  # nothing is known of it
    mean = found.class_weights("mean")
    assert mean[:11, SKY].mean() == pytest.approx(1) and mean[3, SKY] > 1
    with pytest.raises(ValueError, match="normalisation: expected 'maximum' or 'mean', got 'sum'"):
        found.class_weights("sum")  # type: ignore[arg-type]


def test_bad_pictures_are_passed_over() -> None:
    found = rarity(Streets(bad=(0, 5)))
    assert found.presence[SKY] == [1, 2, 3, 4, 6, 7, 8, 9, 10] and found.presence[CAR] == []
    assert found.chances(0)[[0, 5]].tolist() == [0, 0] and found.gains()[CAR] == 0
    with pytest.raises(ValueError, match="camvid: none of its 2 pictures can be used; the first one: s00.png: broken"):
        rarity(Streets(2, bad=(0, 1)))
    with pytest.raises(ValueError, match="camvid: expected pictures with label maps, got none in which a class occurs"):
        rarity(Streets(1)).chances()
    with pytest.raises(ValueError, match="bandwidth"):
        rarity(Streets(), -1)


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    path, source = tmp_path / "run" / "rarity.json", Streets()
    found = kept_rarity(path, source)
    again = Streets()
    assert kept_rarity(path, again) == found == Rarity.load(path) and again.reads == 0
    assert (Rarity.load(path).chances() == found.chances()).all()  # bit for bit
    assert kept_rarity(path, again, 5.0) != found and again.reads == 12
    assert kept_rarity(path, Streets(11), 5.0).count == 11
    for text in ("{}", "[1]", "{", json.dumps(json.loads(path.read_text()) | {"presence": [[99], [], []]})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"rarity.json: not saved rarities"):
            kept_rarity(path, source)


# --- draws ------------------------------------------------------------------------------------------------------------


def dataset(**options: Any) -> RegionDataset:
    made = RegionDataset(Streets(**options), 8, crop="random", flip=0.5, seed=5)
    found = rarity(made.source)
    made.rebalance(found.chances(), found.class_weights())
    return made


def indices(loader: Loader, batches: int) -> list[int]:
    return [key[1] for _, keys in zip(range(batches), loader.order.keys_from(loader._drawn), strict=False) for key in keys]


def test_pictures_are_drawn_by_their_chances() -> None:
    balanced = dataset()
    assert balanced.chances is not None
    loader = Loader(balanced, 4, seed=1)
    epochs = np.array([np.bincount(loader.order.epoch(e), minlength=12) for e in range(400)])
    expected = 12 * balanced.chances
    assert (epochs.sum(1) == 12).all() and (epochs >= np.floor(expected)).all() and (epochs <= np.ceil(expected)).all()
    assert np.abs(epochs.mean(0) - expected).max() < 0.08
    assert (epochs[:, 11] == 0).all() and len({tuple(loader.order.epoch(e)) for e in range(20)}) == 20
    drawn = Counter(indices(loader, 300))
    assert drawn[3] / 1200 == pytest.approx(balanced.chances[3], abs=0.02)
    unequal = Loader(balanced, 4, seed=2)
    assert indices(unequal, 3) != indices(loader, 3)
    assert indices(Loader(balanced, 4, shuffle=False), 3) == list(range(12))


def test_a_picture_drawn_twice_is_cropped_anew() -> None:
    loader = Loader(dataset(), 4, seed=1)
    keys = [key for _, keys in zip(range(30), loader.order.keys_from(0), strict=False) for key in keys]
    assert len(set(keys)) == len(keys) and len({key[1] for key in keys[:12]}) < 12


def test_processes_workers_and_resumes_draw_the_same() -> None:
    expected = [next(loader) for loader in [Loader(dataset(), 4, seed=1)] for _ in range(7)]
    ranks = [Loader(dataset(), 4, seed=1, rank=r, world=2) for r in range(2)]
    for whole in expected:
        parts = [next(loader) for loader in ranks]
        for name in ("index", "image", "class_weights"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    first = Loader(dataset(), 4, seed=1)
    for _ in range(4):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = Loader(dataset(), 4, seed=1, workers=1)
    assert second.load_state_dict(state) == []
    for whole in expected[4:]:
        batch = next(second)
        assert batch.names == whole.names and torch.equal(batch.image, whole.image)
        assert torch.equal(batch.class_weights, whole.class_weights)
    second.close()
    other = dataset()
    other.rebalance()
    plain = Loader(other, 4, seed=1)
    assert plain.load_state_dict(state) == ["pictures are drawn with other chances"]
    del state["chances"]  # of an earlier version, which drew all pictures equally often
    assert Loader(other, 4, seed=1).load_state_dict(state) == []


def test_the_weights_of_pixels_follow_crop_and_flip() -> None:
    balanced = dataset()
    weights = rarity(balanced.source).class_weights()
    loader = Loader(balanced, 6, seed=1)
    flips = 0
    for _ in range(6):
        batch = next(loader)
        pixels = batch.pixel_weights()
        assert pixels.shape == (6, 1, 8, 8) and pixels.dtype == torch.float32
        for index, labels, found in zip(batch.index.tolist(), batch.regions.labels, pixels[:, 0], strict=True):
            flipped = bool((labels[4:] == CAR).float().mean() > 0.5)  # a flip makes cars of roads here
            flips += flipped
            stored = {SKY: SKY, ROAD: CAR, CAR: ROAD, -1: 3} if flipped else {SKY: SKY, ROAD: ROAD, CAR: CAR, -1: 3}
            for k, original in stored.items():
                assert (found[labels == k] == float(weights[index, original])).all()
    assert 0 < flips < 36
    assert torch.equal(batch.to("cpu").class_weights, batch.class_weights)
    with pytest.raises(ValueError, match="class_weights: expected a batch with weights of classes"):
        next(Loader(RegionDataset(Streets(), 8), 2)).pixel_weights()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chances": np.ones(3)}, r"chances: expected shape \(12,\), got \(3,\)"),
        ({"class_weights": np.ones((12, 3))}, r"class_weights: expected shape \(12, 4\), got \(12, 3\)"),
        ({"chances": -np.ones(12)}, "chances: expected numbers that are finite and not negative"),
        ({"class_weights": np.full((12, 4), np.nan)}, "class_weights: expected numbers that are finite"),
        ({"chances": np.zeros(12)}, "chances: expected some above 0, got none"),
    ],
)
def test_bad_balances(given: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionDataset(Streets(), 8).rebalance(**given)


def test_streets_are_known_by_their_classes() -> None:
    assert are_streets(CITYSCAPES) and are_streets(GTA5) and are_streets(CAMVID) and are_streets((*CAMVID[:-1], "unknown"))
    assert not are_streets(FACADE_CLASSES) and not are_streets(ADE20K) and not are_streets(()) and not are_streets(("sky",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"balance_classes": -1}, "balance_classes: expected at least 0, got -1"),
        ({"colour_bandwidth": -0.5}, "colour_bandwidth: expected at least 0, got -0.5"),
        ({"colour_bandwidth": math.inf}, "colour_bandwidth: expected a finite number, got inf"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataOptions(**given)
