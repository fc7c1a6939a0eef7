"""Scores per region: of soft compositions, of pixels, of segments; confusion and intersection over union."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .score import Score
from .table import PIXEL_METRICS

_BYTES = (0.0, 255.0)


def channel_scores(composition: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Score every region's weights against its mask, over the whole frame.

    Args:
        composition: (B, N, H, W) weights in [0, 1].
        labels: (B, H, W) integer region in [0, N), or -1: such pixels are left out (SSIM: zero on both sides).

    Returns:
        "ssim", "rmse", "psnr" -> (B, N) float64, NaN where a region is absent.
    """
    size = composition.shape
    masks = labels[:, None] == torch.arange(size[1], device=labels.device)[:, None, None]
    weights = torch.where(labels[:, None] < 0, 0.0, composition)
    made, real = (t.reshape(-1, 1, *size[2:]).double() for t in (weights, masks))
    absent = ~masks.flatten(2).any(2)
    scores = labelled_scores(made, real, labels.repeat_interleave(size[1], 0), (0.0, 1.0))
    return {name: torch.where(absent, math.nan, found.reshape(size[:2])) for name, found in scores.items()}


def labelled_scores(
    made: Tensor, real: Tensor, labels: Tensor, value_range: tuple[float, float] = _BYTES
) -> dict[str, Tensor]:
    """Score pictures (B, C, H, W) over the pixels that have a region; SSIM, which compares windows, over all.

    Returns:
        "ssim", "rmse", "psnr" -> (B,) float64; all but SSIM NaN where no pixel has a region.
    """
    has = (labels >= 0).long() - 1  # one region for all
    return {
        name: metric(made, real, value_range=value_range)
        if name == "ssim"
        else metric(made, real, has, 1, value_range=value_range)[:, 0]
        for name, metric in PIXEL_METRICS.items()
    }


def segment_scores(made: Tensor, real: Tensor, labels: Tensor, num_regions: int) -> dict[str, Tensor]:
    """Score every region as a segment: both pictures black outside of it.

    Args:
        made: (B, 3, H, W) uint8.
        real: the same shape.
        labels: (B, H, W) integer region in [0, num_regions), or -1.
        num_regions: N.

    Returns:
        "ssim", "rmse", "psnr" -> (B, N) float64, NaN where a region is absent.
    """
    found = {name: torch.full((len(made), num_regions), math.nan, dtype=torch.float64) for name in PIXEL_METRICS}
    for region in labels.unique().tolist():
        if region < 0:
            continue
        inside = labels == region
        has = inside.flatten(1).any(1)
        cut = [torch.where(inside[:, None], pictures, 0)[has] for pictures in (made, real)]
        for name, metric in PIXEL_METRICS.items():
            found[name][has.cpu(), region] = metric(*cut, value_range=_BYTES).cpu()
    return found


def confusion(predicted: Tensor, labels: Tensor, num_regions: int) -> Tensor:
    """Count pixels by (region in `labels`, region in `predicted`): (N, N) int64; pixels with label -1 are left out.

    Raises:
        ValueError: the two differ in shape.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predicted: expected the shape of the labels {tuple(labels.shape)}, got {tuple(predicted.shape)}")
    known = labels >= 0
    pairs = labels[known].long() * num_regions + predicted[known].long()
    return torch.bincount(pairs, minlength=num_regions**2).reshape(num_regions, num_regions).cpu()


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of every region, (N,) float64, NaN where it is on neither side, from :func:`confusion`."""
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - both)


def region_mean(score: Score) -> float:
    """Mean over regions of their means over pictures; infinite values are left out unless there is nothing else."""
    if not score.by_region:
        return math.nan
    table = np.stack(score.by_region)
    finite = np.isfinite(table)
    known = finite.any(0)
    if not known.any():
        return math.inf if np.isinf(table).any() else math.nan
    return float((np.where(finite, table, 0).sum(0)[known] / finite.sum(0)[known]).mean())
