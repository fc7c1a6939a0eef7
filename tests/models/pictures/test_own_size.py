"""What a model made, at the size and shape of its picture: boxes, labels by weights, kept pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.data import draw_facade
from mixsyn_fast.models.data.dataset import resample
from mixsyn_fast.models.data.source import Sample
from mixsyn_fast.models.pictures.own_size import at_own_size
from mixsyn_fast.models.pictures.picture import Picture, crop_box, fit

pytest.importorskip("PIL", reason="pillow is not installed")


def drawn(size: tuple[int, int]) -> Picture:
    image, labels = draw_facade(3, size)
    return Picture(image, labels.astype(np.int32), "p")


@pytest.mark.parametrize("crop", ["center", "none"])
def test_the_box_is_what_a_model_sees(crop: str) -> None:
    for stored in ((50, 41), (33, 96), (32, 32)):
        picture = drawn(stored)
        sample = Sample(picture.image, picture.labels, None, "p")
        image, labels, _ = resample(sample, crop_box(stored, (32, 48), crop), (32, 48))  # type: ignore[arg-type]
        expected = fit(picture, (32, 48), crop)  # type: ignore[arg-type]
        assert np.array_equal(image, expected.image) and np.array_equal(labels, expected.labels)


@pytest.mark.parametrize("crop", ["center", "none"])
def test_a_result_has_the_pictures_size_and_shape(crop: str) -> None:
    picture = drawn((64, 96))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    weights = np.repeat(np.repeat(rng.dirichlet(np.ones(12), (4, 4)).transpose(2, 0, 1), 8, 1), 8, 2).astype(np.float32)
    made = at_own_size(image, weights, picture, crop=crop)  # type: ignore[arg-type]
    assert made.image.shape == (64, 96, 3) and made.labels.shape == (64, 96) and made.name == "p"
    left, right = (16, 80) if crop == "center" else (0, 96)
    for ours, own in ((made.image, picture.image), (made.labels, picture.labels)):  # what was cut off stays
        assert np.array_equal(ours[:, :left], own[:, :left]) and np.array_equal(ours[:, right:], own[:, right:])
    full = F.interpolate(torch.from_numpy(weights)[None], (64, right - left), mode="bilinear", antialias=True)
    assert np.array_equal(made.labels[:, left:right], full[0].argmax(0).numpy())
    same = at_own_size(image, weights, fit(picture, 32))
    assert np.array_equal(same.image, image) and np.array_equal(same.labels, weights.argmax(0)), "at its own size: itself"


def test_kept_regions_have_the_pictures_pixels() -> None:
    """Half of the picture is region 0 before and after and stays, the other half changes: old pixels, blend, new pixels."""
    picture = Picture(np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), np.int32), "p")
    weights = np.zeros((2, 32, 32), np.float32)
    weights[0, :, :16], weights[1, :, 16:] = 1, 1
    image = np.full((32, 32, 3), 40, np.uint8)
    made = at_own_size(image, weights, picture, keep=[0])
    row = made.image[32, :, 0].astype(int)
    assert (row[32:] == 40).all() and (row[:20] == 200).all() and (np.diff(row) <= 0).all() and 40 < row[27] < 200
    assert (at_own_size(image, weights, picture, keep=[1]).image == 40).all(), "region 1 was not there before"
    assert (at_own_size(image, weights, picture).image == 40).all()
    with pytest.raises(ValueError, match=r"image: expected \(32, 32, 3\) uint8, got \(16, 16, 3\) uint8"):
        at_own_size(image[:16, :16], weights, picture)
