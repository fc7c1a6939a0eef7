"""Scores per region, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mixsyn_fast.models.metrics import regions, ssim
from mixsyn_fast.models.metrics.score import Score


def test_channels_against_masks_by_hand() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.int32)
    labels[0, :, 8:] = 1
    masks = (labels[:, None] == torch.arange(3)[:, None, None]).float()
    found = regions.channel_scores((masks - 0.1).abs(), labels)  # off by 0.1 everywhere
    assert found["rmse"][0, :2].tolist() == pytest.approx([0.1, 0.1]) and found["psnr"][0, :2].tolist() == pytest.approx(
        [20.0, 20.0]
    )
    assert all(math.isnan(found[name][0, 2]) for name in ("ssim", "rmse", "psnr"))  # absent, though it has weight
    labels[0, :4] = -1  # a quarter of the frame counts no more
    wrong = (masks - 0.1).abs()
    wrong[:, :, :4] = 0.5
    found = regions.channel_scores(wrong, labels)
    assert found["rmse"][0, :2].tolist() == pytest.approx([0.1] * 2)


def test_segments_are_black_outside_of_the_region() -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.randint(60, 200, (2, 3, 16, 16), dtype=torch.uint8, generator=rng)
    labels = torch.zeros(2, 16, 16, dtype=torch.int32)
    labels[0, :, 12:], labels[1, 0] = 1, -1
    made = real + torch.where(labels == 1, 51, 0).to(torch.uint8)[:, None]
    found = regions.segment_scores(made, real, labels, 3)
    assert found["rmse"][0].tolist() == pytest.approx([0, 0.2 * math.sqrt(0.25), math.nan], nan_ok=True)
    assert found["psnr"][0].tolist() == pytest.approx([math.inf, -10 * math.log10(0.01), math.nan], nan_ok=True)
    assert found["rmse"][1].tolist() == pytest.approx([0, math.nan, math.nan], nan_ok=True)
    inside = labels[:1] == 1
    expected = ssim(made[:1] * inside[:, None], real[:1] * inside[:, None], value_range=(0, 255))
    assert float(found["ssim"][0, 1]) == pytest.approx(float(expected))


def test_confusion_and_iou_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, -1, 2]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 3, 0]]])
    counts = regions.confusion(predicted, labels, 5)
    with pytest.raises(ValueError, match="predicted: expected the shape of the labels"):
        regions.confusion(predicted[..., :3], labels, 5)
    assert counts.tolist()[:3] == [[1, 1, 0, 0, 0], [0, 2, 0, 0, 0], [1, 0, 0, 0, 0]] and int(counts.sum()) == 5
    assert regions.iou(counts).tolist() == pytest.approx([1 / 3, 2 / 3, 0, math.nan, math.nan], nan_ok=True)


def test_regions_weigh_alike_in_their_mean() -> None:
    nan, inf = math.nan, math.inf
    score = Score([], [], [np.array([1.0, 4.0, nan, inf]), np.array([3.0, nan, nan, inf])])
    assert regions.region_mean(score) == 3.0
    assert regions.region_mean(Score([], [], [np.array([inf, nan])])) == inf
    assert math.isnan(regions.region_mean(Score())) and math.isnan(regions.region_mean(Score([], [], [np.array([nan])])))
