"""PSNR, SSIM and RMSE of a picture and of its regions; means with confidence intervals over pictures.

    psnr(outputs, targets)                                  # (B,) decibels
    ssim(outputs, targets, labels, num_regions=19)          # (B, 19), NaN where a region is absent
    intervals(values)                                       # per column: mean and its 95 % interval

All arithmetic is float64 on values scaled to [0, 1], so neither the scale of the input nor TensorFloat-32 matters. Pictures
without a value below 0 where [-1, 1] is expected get a warning (once for each place that calls), here and in LPIPS.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_SIGMA = 1.5  # pixels, standard deviation of the Gaussian window
SSIM_RADIUS = 5  # pixels, so the window is 11 x 11
SSIM_STABILISERS = (0.01**2, 0.03**2)  # C1 and C2 for a value range of 1


def warn_if_not_negative(metric: str, argument: str, least: float, mend: str) -> None:
    """Warn of pictures that are in [0, 1], as it seems, where a metric expects [-1, 1].

    The text is the same at every call, so Python shows it once for each place that calls a metric.

    Args:
        metric: its name.
        argument: what came.
        least: the least value of all of it.
        mend: what to do where they are in [0, 1].
    """
    if least >= 0:
        warnings.warn(
            f"{metric}: {argument}: expected values in [-1, 1], got none below 0: where they are in [0, 1], {mend}",
            stacklevel=_frames_to_the_caller(),
        )


def _frames_to_the_caller() -> int:
    """Stack level, for warn_if_not_negative, of the first frame outside of this package's metrics and torch's modules."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith((__package__, "torch.")):
        frame, level = frame.f_back, level + 1
    return level


def scaled(metric: str, images: Tensor, targets: Tensor, value_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Check two batches of pictures and scale both to float64 in [0, 1].

    Args:
        metric: its name, for the warning about pictures in [0, 1] with the range (-1, 1).
        images: (B, C, H, W), any real dtype.
        targets: the same shape.
        value_range: (low, high) of both: (-1, 1), (0, 1), (0, 255).

    Returns:
        Both, float64. Values up to a thousandth of the range outside of it are clamped.

    Raises:
        ValueError: shapes that differ, an empty picture, values that are not finite or not in the range.
    """
    if images.dim() != 4 or min(images.shape[1:]) < 1:
        raise ValueError(f"images: expected shape (B, C, H, W) with pixels, got {tuple(images.shape)}")
    if targets.shape != images.shape:
        raise ValueError(f"targets: expected the shape of images {tuple(images.shape)}, got {tuple(targets.shape)}")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range: expected low < high, got {value_range}")
    both = []
    for name, values in (("images", images), ("targets", targets)):
        values = (values.double() - low) / (high - low)
        if not bool(((values > -1e-3) & (values < 1 + 1e-3)).all()):  # NaN fails too
            least, most = (float(v) * (high - low) + low for v in (values.min(), values.max()))
            raise ValueError(f"{name}: expected finite values in [{low}, {high}] (value_range), got {least} to {most}")
        both.append(values.clamp(0, 1))
    if (low, high) == (-1, 1) and images.numel() > 0:
        least = min(float(values.min()) for values in both)
        warn_if_not_negative(metric, "images and targets", 2 * least - 1, "pass value_range=(0, 1)")
    return both[0], both[1]


def mean_over(values: Tensor, labels: Tensor | None = None, num_regions: int | None = None) -> Tensor:
    """Average a map over the picture, or over every region.

    Args:
        values: (B, H, W) floating.
        labels: (B, H, W) integer region of every pixel in [0, num_regions), or -1 for none; None for the whole picture.
        num_regions: K, needed with `labels`.

    Returns:
        (B,), or with labels (B, K) with NaN where a region has no pixel.

    Raises:
        ValueError: labels of another shape or out of range, or one of `labels` and `num_regions` without the other.
    """
    if (labels is None) != (num_regions is None):
        raise ValueError("labels and num_regions: expected both or neither")
    if labels is None or num_regions is None:
        return values.flatten(1).mean(1)
    if labels.shape != values.shape or labels.is_floating_point():
        raise ValueError(
            f"labels: expected integers of shape {tuple(values.shape)}, got {labels.dtype} of {tuple(labels.shape)}"
        )
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < num_regions:
        raise ValueError(f"labels: expected -1..{num_regions - 1}, got {int(labels.min())}..{int(labels.max())}")
    slot = labels.long().flatten(1) + 1  # slot 0 takes what belongs to no region
    sums = values.new_zeros(len(values), num_regions + 1).scatter_add_(1, slot, values.flatten(1))
    areas = torch.zeros_like(sums).scatter_add_(1, slot, torch.ones_like(values).flatten(1))
    return (sums / areas)[:, 1:]  # 0 / 0 = NaN: absent


def _squared_error(metric: str, images: Tensor, targets: Tensor, value_range: tuple[float, float]) -> Tensor:
    a, b = scaled(metric, images, targets, value_range)
    return (a - b).square().mean(1)


def rmse(
    images: Tensor,
    targets: Tensor,
    labels: Tensor | None = None,
    num_regions: int | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Root of the mean squared error over channels and pixels, as a share of the value range (0 to 1).

    Args:
        images: (B, C, H, W) in `value_range`.
        targets: the same shape and range.
        labels: (B, H, W) integers: one value per region, over the region's pixels; see :func:`mean_over`.
        num_regions: K, needed with `labels`.
        value_range: (low, high) of both batches.

    Returns:
        (B,) or (B, K) float64, NaN where a region is absent. ValueError as :func:`scaled` and :func:`mean_over`.
    """
    return mean_over(_squared_error("rmse", images, targets, value_range), labels, num_regions).sqrt()


def psnr(
    images: Tensor,
    targets: Tensor,
    labels: Tensor | None = None,
    num_regions: int | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Peak signal-to-noise ratio in decibels: 10 log10(range^2 / mean squared error); inf where both are equal.

    Arguments and result as :func:`rmse`.
    """
    return -10 * torch.log10(mean_over(_squared_error("psnr", images, targets, value_range), labels, num_regions))


def byte_difference(image: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return how far a picture (H, W, 3) uint8 is from another one: mean absolute difference in grey levels, PSNR in dB."""
    first, second = (torch.from_numpy(each.copy()).permute(2, 0, 1)[None] for each in (image, target))
    return {
        "mean_difference": float((first.float() - second).abs().mean()),
        "psnr": float(psnr(first, second, value_range=(0, 255))),
    }


def ssim_map(images: Tensor, targets: Tensor, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Structural similarity of every pixel's neighbourhood, averaged over channels: (B, H, W) float64 in [-1, 1].

    Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP
    2004, Eq. 13 to 16: Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03. Windows that reach over the
    border see the picture mirrored there. Colour channels are compared one by one.

    Raises:
        ValueError: pictures smaller than 11 x 11 pixels, or as :func:`scaled`.
    """
    a, b = scaled("ssim", images, targets, value_range)
    batch, channels, height, width = a.shape
    if min(height, width) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"images: SSIM needs at least 11 x 11 pixels, got {height} x {width}")
    offset = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64, device=a.device)
    window = torch.softmax(-(offset**2) / (2 * SSIM_SIGMA**2), 0)
    planes = torch.stack((a, b, a * a, b * b, a * b)).reshape(-1, 1, height, width)
    planes = F.pad(planes, (SSIM_RADIUS,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, window[None, None, :, None]), window[None, None, None, :])
    mean_a, mean_b, aa, bb, ab = planes.reshape(5, batch, channels, height, width)
    c1, c2 = SSIM_STABILISERS
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    similarity: Tensor = (luminance * structure).mean(1)
    return similarity


def ssim(
    images: Tensor,
    targets: Tensor,
    labels: Tensor | None = None,
    num_regions: int | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Mean structural similarity; 1 for equal pictures. Arguments and result as :func:`rmse`.

    The whole picture's value averages the windows that lie inside it, as the paper and scikit-image do. A region's
    value averages the map over all of the region's pixels; a window sees up to 5 pixels beyond the region.
    """
    values = ssim_map(images, targets, value_range=value_range)
    if labels is None and num_regions is None:
        values = values[:, SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]
    return mean_over(values, labels, num_regions)
