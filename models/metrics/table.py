"""The table of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .pixels import psnr, rmse, ssim


class Measure(NamedTuple):
    """What a metric is called and which way is better."""

    title: str
    unit: str
    higher_is_better: bool


MEASURES: dict[str, Measure] = {
    "psnr": Measure("PSNR", "dB", True),
    "ssim": Measure("SSIM", "", True),
    "rmse": Measure("RMSE", "of the value range", False),
    "lpips_vgg": Measure("LPIPS (VGG-16)", "", False),
    "lpips_alex": Measure("LPIPS (AlexNet)", "", False),
    "diversity": Measure("Diversity (mean pairwise LPIPS)", "", True),
    "top1": Measure("Top-1 similarity (LPIPS)", "", False),
    "mcsd": Measure("mCSD", "", True),
    "mocd": Measure("mOCD", "", False),
}
"""Scores that are means over pictures."""

PairMetric = Callable[..., Tensor]
"""(outputs, targets, labels, num_regions, value_range=...) -> (B,) or (B, K), as :func:`mixsyn_fast.models.metrics.psnr`
is."""

PIXEL_METRICS: dict[str, PairMetric] = {"psnr": psnr, "ssim": ssim, "rmse": rmse}
