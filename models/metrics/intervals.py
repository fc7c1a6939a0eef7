"""Means over pictures with their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean over pictures with its confidence interval; NaN where there is nothing to say."""

    mean: float
    low: float
    high: float
    count: int
    """Pictures behind the mean."""
    infinite: int = 0
    """Pictures left out of it because their value is infinite (PSNR of equal pictures)."""

    def __str__(self) -> str:
        text = f"{self.mean:.4g}"
        if not math.isnan(self.low):
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        return text


def intervals(
    values: np.ndarray | Tensor, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """Mean of every column with its bootstrap percentile interval over the pictures (rows).

    Efron: Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 1979. Pictures are drawn anew with
    replacement, all columns together, from a generator of its own.

    Args:
        values: (N,) or (N, M); NaN = absent in this picture, left out. Infinite values are left out and counted.
        confidence: share of resampled means inside the interval, in (0, 1).
        resamples: how often the N pictures are drawn.
        seed: of the drawing.

    Returns:
        M intervals (1 for a vector). Fewer than two values give no interval (NaN); none gives the mean NaN, or
        infinity when all of them are infinite.

    Raises:
        ValueError: another number of dimensions, or options out of range.
    """
    table = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2:
        raise ValueError(f"values: expected shape (N,) or (N, M), got {table.shape}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence in (0, 1) and resamples >= 1 expected, got {confidence} and {resamples}")
    known = np.isfinite(table)
    filled, infinite = np.where(known, table, 0.0), np.isinf(table).sum(0)
    counts = known.sum(0)
    count = len(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / counts
        drawn = []
        rng = np.random.default_rng(seed)
        for start in range(0, resamples if count > 1 else 0, 64):  # how often each picture is drawn: (<= 64, N)
            times = rng.multinomial(count, np.full(count, 1 / count), size=min(64, resamples - start)).astype(np.float64)
            drawn.append((times @ filled) / (times @ known))
    result = []
    for column in range(table.shape[1]):
        low = high = math.nan
        if counts[column] > 1:
            means = np.concatenate([d[:, column] for d in drawn])
            tail = 50 * (1 - confidence)
            low, high = (float(v) for v in np.nanpercentile(means, [tail, 100 - tail]))
        middle = float(mean[column])
        if not counts[column] and infinite[column]:
            middle = float(table[~np.isnan(table[:, column]), column][0])
        result.append(Interval(middle, low, high, int(counts[column]), int(infinite[column])))
    return result
