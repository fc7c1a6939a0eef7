"""Colours of one picture given to another: means and covariances, and that no other such map moves colours less."""

from __future__ import annotations

import numpy as np
import pytest
from mixsyn_fast.models.pictures.colours import linear_colour_map, transfer_colours


def coloured(seed: int, size: int = 24) -> np.ndarray:
    """A picture whose colours are far from the ends of the range."""
    rng = np.random.default_rng(seed)
    values = 128 + rng.normal(0, 8, (size, size, 3)) @ rng.normal(0, 1, (3, 3)) + rng.normal(0, 20, 3)
    return values.clip(0, 255).astype(np.uint8)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = values.reshape(-1, 3).astype(np.float64)
    centred = flat - flat.mean(0)
    return flat.mean(0), centred.T @ centred / len(flat)


def test_mean_and_covariance_become_those_of_the_reference() -> None:
    image, reference = coloured(1), coloured(2, 30)
    matrix, shift = linear_colour_map(image, reference)
    for ours, theirs in zip(moments(image @ matrix.T + shift), moments(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    made = transfer_colours(image, reference)
    assert made.dtype == np.uint8 and made.shape == image.shape
    for ours, theirs, slack in zip(moments(made), moments(reference), (0.1, 0.5), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=slack)


def test_it_moves_colours_least() -> None:
    image, reference = coloured(3), coloured(4)
    matrix, shift = linear_colour_map(image, reference)
    (mean, ours), (target, theirs) = moments(image), moments(reference)

    def cost(candidate: np.ndarray) -> float:
        return float((((image - mean) @ candidate.T + target - image) ** 2).sum(2).mean())

    assert cost(matrix) == pytest.approx(float(((image @ matrix.T + shift - image) ** 2).sum(2).mean()))
    first, second = np.linalg.cholesky(ours), np.linalg.cholesky(theirs)
    rng = np.random.default_rng(0)
    for _ in range(20):  # all maps with these moments are second rotation first^-1
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        assert cost(second @ rotation @ np.linalg.inv(first)) > cost(matrix) - 1e-9
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)


def test_pictures_without_colours() -> None:
    image = coloured(5)
    np.testing.assert_array_equal(transfer_colours(image, image), image)
    grey = np.repeat(image[..., :1], 3, 2)  # varies along one axis
    made = transfer_colours(grey, coloured(6))
    np.testing.assert_allclose(moments(made)[0], moments(coloured(6))[0], atol=0.2)
    flat = np.full((4, 4, 3), 7, np.uint8)
    assert (transfer_colours(flat, coloured(6)) == moments(coloured(6))[0].round()).all()
    np.testing.assert_array_equal(transfer_colours(image, flat), np.full_like(image, 7))


def test_bad_input_is_named() -> None:
    image = coloured(1)
    with pytest.raises(ValueError, match="reference: expected uint8, got float64"):
        transfer_colours(image, image / 255)
    with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\) with pixels, got \(24, 24\)"):
        transfer_colours(image[..., 0], image)
