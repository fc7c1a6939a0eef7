"""PSNR, SSIM, RMSE against scikit-image and torchmetrics; regions against masking by hand; intervals."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import draw
from mixsyn_fast.models.metrics import Interval, intervals, psnr, rmse, ssim, ssim_map
from torch import Tensor

measure = pytest.importorskip("skimage.metrics", reason="scikit-image gives the independent values")


def pictures(size: int | tuple[int, int] = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Two drawn faces with noise and structure changed, in [0, 1], and the labels of the first."""
    rng = np.random.default_rng(3)
    first, labels = zip(*(draw("face", seed, size) for seed in range(3)), strict=True)
    target = np.stack(first) / 255.0
    image = np.clip(target * rng.uniform(0.8, 1.1, (3, 1, 1, 1)) + rng.normal(0, 0.08, target.shape), 0, 1)
    to = [torch.from_numpy(a).permute(0, 3, 1, 2) for a in (image, target)]
    return to[0], to[1], torch.from_numpy(np.stack(labels).astype(np.int64))


@pytest.mark.parametrize("size", [64, (40, 73), 11])
def test_whole_picture_equals_scikit_image(size: int | tuple[int, int]) -> None:
    image, target, _ = pictures(size)
    options = {"data_range": 1.0, "channel_axis": 2}
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for i in range(len(image)):
        a, b = (t[i].permute(1, 2, 0).numpy() for t in (image, target))
        assert ssim(image, target, value_range=(0, 1))[i].item() == pytest.approx(
            measure.structural_similarity(a, b, **options, **window), abs=1e-9
        )
        assert psnr(image, target, value_range=(0, 1))[i].item() == pytest.approx(
            measure.peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-9
        )
        assert rmse(image, target, value_range=(0, 1))[i].item() == pytest.approx(
            math.sqrt(measure.mean_squared_error(a, b)), abs=1e-12
        )


def test_map_equals_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    image, target, _ = pictures((32, 45))
    _, expected = functional.structural_similarity_index_measure(
        image, target, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(ssim_map(image, target, value_range=(0, 1)), expected.mean(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim, rmse])
def test_the_scale_of_the_input_does_not_matter(metric) -> None:
    image, target, _ = pictures()
    image, target = (image * 255).round(), (target * 255).round()
    expected = metric(image / 255, target / 255, value_range=(0, 1))
    torch.testing.assert_close(metric(image / 127.5 - 1, target / 127.5 - 1), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(metric(image.byte(), target.byte(), value_range=(0, 255)), expected, rtol=1e-9, atol=1e-9)
    assert expected.dtype == torch.float64


def test_regions_equal_masking_by_hand() -> None:
    image, target, labels = pictures()
    labels[0, :5] = -1
    by_region = {m: m(image, target, labels, 20, value_range=(0, 1)) for m in (psnr, ssim, rmse)}
    similarity = ssim_map(image, target, value_range=(0, 1))
    for b in range(3):
        for k in range(20):
            inside = labels[b] == k
            if not inside.any():
                assert all(by_region[m][b, k].isnan() for m in by_region)
                continue
            error = ((image[b] - target[b])[:, inside] ** 2).mean().item()
            assert by_region[rmse][b, k].item() == pytest.approx(math.sqrt(error), rel=1e-9)
            assert by_region[psnr][b, k].item() == pytest.approx(-10 * math.log10(error), rel=1e-9)
            assert by_region[ssim][b, k].item() == pytest.approx(similarity[b][inside].mean().item(), rel=1e-9)
    assert by_region[rmse][:, 19].isnan().all() and not by_region[rmse][:, 1].isnan().any()


def test_a_region_sees_its_own_error_only() -> None:
    target = torch.zeros(1, 3, 32, 32)
    image, labels = target.clone(), torch.zeros(1, 32, 32, dtype=torch.int32)
    labels[:, 16:] = 1
    image[:, :, 16:] = -0.5  # a quarter of the range
    assert rmse(image, target, labels, 2)[0].tolist() == [0.0, 0.25]
    assert psnr(image, target, labels, 2)[0, 0] == math.inf
    assert psnr(image, target, labels, 2)[0, 1].item() == pytest.approx(20 * math.log10(4))


def test_equal_pictures() -> None:
    image = pictures()[0] * 2 - 1
    assert (psnr(image, image) == math.inf).all() and (rmse(image, image) == 0).all()
    torch.testing.assert_close(ssim(image, image), torch.ones(3, dtype=torch.float64))
    assert psnr(image[:0], image[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, y: psnr(a[0], b), r"images: expected shape \(B, C, H, W\)"),
        (lambda a, b, y: psnr(a, b[:, :, 1:]), "targets: expected the shape of images"),
        (lambda a, b, y: rmse(a * 255, b), r"images: expected finite values in \[-1.0, 1.0\]"),
        (lambda a, b, y: rmse(a, b * math.nan), "targets: expected finite values"),
        (lambda a, b, y: rmse(a, b, value_range=(1, 0)), "value_range"),
        (lambda a, b, y: ssim(a[..., :10], b[..., :10]), "at least 11 x 11 pixels, got 64 x 10"),
        (lambda a, b, y: ssim(a, b, y), "labels and num_regions"),
        (lambda a, b, y: ssim(a, b, None, 19), "labels and num_regions"),
        (lambda a, b, y: psnr(a, b, y[:, 1:], 19), "labels: expected integers of shape"),
        (lambda a, b, y: psnr(a, b, y.float(), 19), "labels: expected integers of shape"),
        (lambda a, b, y: psnr(a, b, y, 3), r"labels: expected -1..2, got 0..1"),
        (lambda a, b, y: psnr(a, b, y - 2, 19), r"labels: expected -1..18, got -2"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    image, target, labels = pictures()
    with pytest.raises(ValueError, match=message):
        change(image * 2 - 1, target * 2 - 1, labels)


@pytest.mark.parametrize("metric", [psnr, ssim, rmse])
def test_pictures_in_0_1_get_a_warning(metric) -> None:
    """Where [-1, 1] is expected and neither batch has a value below 0; once for each place that calls, in Python's way."""
    image, target, _ = pictures()
    words = rf"{metric.__name__}: images and targets: expected values in \[-1, 1\], got none below 0: .*value_range=\(0, 1\)"
    with pytest.warns(UserWarning, match=words) as caught:
        metric(image, target)
    assert [Path(each.filename).name for each in caught] == ["test_pixels.py"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            metric(image, target)
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(image, target, value_range=(0, 1))
        metric((image * 255).byte(), (target * 255).byte(), value_range=(0, 255))
        metric(image * 2 - 1, target)  # one of them has
        metric(image[:0], target[:0])


def test_interval_of_a_normal_sample_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = intervals(values, resamples=4000)[0]
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean()) and found.count == 400 and found.infinite == 0
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)
    narrow = intervals(values, confidence=0.5)[0]
    assert found.low < narrow.low < narrow.high < found.high
    assert found == intervals(torch.from_numpy(values), resamples=4000)[0], "the drawing is seeded"


def test_interval_leaves_out_absent_and_infinite_values() -> None:
    table = np.array([[1.0, math.nan, math.inf, math.nan], [3.0, 2.0, 4.0, math.nan], [5.0, math.nan, 6.0, math.nan]])
    first, single, some, none = intervals(table)
    assert (first.mean, first.count) == (3.0, 3) and first.low < 3 < first.high
    assert single == Interval(2.0, single.low, single.high, 1, 0) and math.isnan(single.low) and math.isnan(single.high)
    assert (some.mean, some.count, some.infinite) == (5.0, 2, 1)
    assert math.isnan(none.mean) and none.count == 0
    assert intervals(np.array([math.inf, math.inf]))[0].mean == math.inf
    assert math.isnan(intervals(np.zeros((0, 1)))[0].mean)
    with pytest.raises(ValueError, match="confidence"):
        intervals(table, confidence=1.0)
    with pytest.raises(ValueError, match="values: expected shape"):
        intervals(np.zeros((2, 2, 2)))
