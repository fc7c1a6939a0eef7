"""How much several outputs of one input differ: mean pairwise LPIPS, for the picture, one class, or all other classes.

Everything here comes from one identity, in floating point the same mathematics in another order. LPIPS is a weighted squared
distance of features, and the mean squared distance over all N (N - 1) / 2 pairs is twice the unbiased variance:

    2 / (N (N - 1)) sum_{i<j} |f_i - f_j|^2 = 2 / (N - 1) sum_i |f_i - mean|^2

so N outputs cost N passes of the network, no pair is ever formed, and memory does not grow with N.

Papers: pairwise LPIPS of 40 outputs per input and the top-1 similarity in Endo, Kanamori: Diversifying Semantic Image
Synthesis and Editing via Class- and Layer-wise VAEs, CGF 2020, 5.2 (after Li, Zhang, Malik, ICCV 2019); mCSD and mOCD in
Zhu, Xu, You, Bai: Semantically Multi-modal Image Synthesis, CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .lpips import LPIPS, Maps
from .pixels import warn_if_not_negative

_MEND = "scale them by 2 x - 1"


def _spread(lpips: LPIPS, outputs: Iterable[Tensor], metric: str = "") -> Maps:
    """Mean pairwise distance at every position of one input's outputs, by Welford's recurrence.

    With the name of a metric, outputs without a value below 0 get a warning.
    """
    count, mean, sums, size, least = 0, [], [], (0, 0), math.inf
    for output in outputs:
        if output.dim() != 3 or (count and tuple(output.shape[1:]) != size):
            expected = f"(3, {size[0]}, {size[1]}), as the first output" if count else "(3, H, W)"
            raise ValueError(f"outputs: expected shape {expected}, got {tuple(output.shape)}")
        size = (int(output.shape[1]), int(output.shape[2]))
        features = lpips.features(output[None])
        least = min(least, float(output.min())) if metric else least
        count += 1
        if count == 1:
            mean, sums = [f.clone() for f in features], [torch.zeros_like(f) for f in features]
        for f, m, s in zip(features, mean, sums, strict=True):
            away = f - m
            m += away / count
            s += away * (f - m)
    if count < 2:
        raise ValueError(f"outputs: expected at least 2 of one input, got {count}")
    if metric:
        warn_if_not_negative(metric, "outputs", least, _MEND)
    return Maps(lpips.weighted([s * (2 / (count - 1)) for s in sums]), size)


def pairwise_lpips(lpips: LPIPS, outputs: Iterable[Tensor]) -> float:
    """Mean LPIPS over all pairs of outputs of one input ("Diversity"; higher = more diverse).

    Args:
        lpips: the metric.
        outputs: at least two pictures (3, H, W) in [-1, 1], of one size: a tensor (N, 3, H, W) or a generator.

    Raises:
        ValueError: fewer than two, or different sizes.
    """
    return float(lpips.mean(_spread(lpips, outputs, "pairwise_lpips")))


class ClassDiversity(NamedTuple):
    """Diversity inside a class and outside of it, when only the code of this class was drawn anew."""

    specific: float
    """CSD: of the class itself (higher = its code has more effect)."""
    other: float
    """OCD: of all other pixels (lower = the rest is left alone)."""


def class_diversity(
    lpips: LPIPS, outputs: Tensor, labels: Tensor, region: int, *, rule: Literal["masked", "mean"] = "masked"
) -> ClassDiversity:
    """Class-specific and other-classes diversity of one input; their means over inputs are mCSD and mOCD.

    Args:
        lpips: the metric.
        outputs: (N, 3, H, W) in [-1, 1], N >= 2, which differ in the code of `region` alone.
        labels: (H, W) integer region of every pixel, -1 for none.
        region: the class whose code was drawn anew.
        rule: "masked" compares pictures in which all pixels outside (for OCD: inside) the class are mid-grey, and averages
            over the whole picture, so a small class gives a small value. "mean" compares the whole pictures and averages
            the map of distances over the class's pixels (for OCD: over all others).

    Returns:
        Both values; `other` is NaN when the class fills the picture.

    Raises:
        ValueError: shapes that do not fit, an unknown rule, or a class without a pixel.
    """
    if outputs.dim() != 4 or labels.shape != outputs.shape[2:]:
        raise ValueError(
            f"labels: expected the (H, W) of outputs {tuple(outputs.shape)} (N, 3, H, W), got {tuple(labels.shape)}"
        )
    inside = labels == region
    if not bool(inside.any()):
        raise ValueError(f"region: expected a class with pixels in labels, got {region}")
    if rule not in ("masked", "mean"):
        raise ValueError(f"rule: expected 'masked' or 'mean', got {rule!r}")
    if len(outputs):
        warn_if_not_negative("class_diversity", "outputs", float(outputs.min()), _MEND)
    if rule == "mean":
        # region 0 = outside, 1 = inside; NaN where a region is absent
        other, specific = lpips.region_means(_spread(lpips, outputs), inside[None].long(), 2)[0].tolist()
        return ClassDiversity(specific, other)
    specific, other = (
        float(lpips.mean(_spread(lpips, outputs * part))) if bool(part.any()) else math.nan for part in (inside, ~inside)
    )
    return ClassDiversity(specific, other)


def top1_similarity(lpips: LPIPS, outputs: Tensor, target: Tensor) -> float:
    """LPIPS between the target and the output that is nearest to it in mean absolute difference (lower = more plausible).

    Args:
        lpips: the metric.
        outputs: (N, 3, H, W) in [-1, 1], N >= 1.
        target: (3, H, W) in [-1, 1].

    Raises:
        ValueError: no output, or shapes that differ.
    """
    if outputs.dim() != 4 or not len(outputs) or outputs.shape[1:] != target.shape:
        raise ValueError(f"outputs: expected (N, {', '.join(map(str, target.shape))}), got {tuple(outputs.shape)}")
    nearest = int((outputs - target).abs().flatten(1).mean(1).argmin())
    return float(lpips(outputs[nearest : nearest + 1], target[None]))
