"""Diversity without pairs equals the mean over pairs; classes; the nearest output."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.metrics import LPIPS, class_diversity, pairwise_lpips, top1_similarity
from torch import Tensor


def outputs(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(count=st.integers(2, 6), seed=st.integers(0, 99))
def test_equals_the_mean_over_all_pairs(random_lpips: LPIPS, count: int, seed: int) -> None:
    drawn = outputs(count, seed)
    pairs = [float(random_lpips(drawn[i : i + 1], drawn[j : j + 1])) for i, j in itertools.combinations(range(count), 2)]
    assert pairwise_lpips(random_lpips, drawn) == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)
    assert pairwise_lpips(random_lpips, (picture for picture in drawn)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)


def test_equal_outputs_have_no_diversity(random_lpips: LPIPS) -> None:
    assert pairwise_lpips(random_lpips, outputs(1).expand(5, -1, -1, -1)) == 0


def halves() -> tuple[Tensor, Tensor]:
    """Four outputs that differ in the left half (class 4) alone."""
    drawn = outputs(4)
    drawn[:, :, :, 20:] = drawn[:1, :, :, 20:]
    labels = torch.full((40, 40), -1, dtype=torch.int32)
    labels[:, :20] = 4
    return drawn, labels


def test_masked_rule_compares_masked_pictures(random_lpips: LPIPS) -> None:
    drawn, labels = halves()
    found = class_diversity(random_lpips, drawn, labels, 4)
    masked = drawn * (labels == 4)
    pairs = [float(random_lpips(masked[i : i + 1], masked[j : j + 1])) for i, j in itertools.combinations(range(4), 2)]
    assert found.specific == pytest.approx(sum(pairs) / 6, rel=1e-4) and found.other == 0


def test_mean_rule_averages_the_map(random_lpips: LPIPS) -> None:
    drawn, labels = halves()
    found = class_diversity(random_lpips, drawn, labels, 4, rule="mean")
    regions = (labels == 4)[None].long()
    pairs = torch.cat(
        [random_lpips(drawn[i : i + 1], drawn[j : j + 1], regions, 2) for i, j in itertools.combinations(range(4), 2)]
    ).mean(0)
    assert found.other == pytest.approx(float(pairs[0]), rel=1e-4)
    assert found.specific == pytest.approx(float(pairs[1]), rel=1e-4)
    assert found.other < found.specific
    assert math.isnan(class_diversity(random_lpips, drawn, torch.zeros_like(labels), 0).other)
    assert math.isnan(class_diversity(random_lpips, drawn, torch.zeros_like(labels), 0, rule="mean").other)


def test_nearest_output_counts(random_lpips: LPIPS) -> None:
    drawn = outputs(3)
    target = (drawn[1] * 0.95).clamp(-1, 1)
    assert top1_similarity(random_lpips, drawn, target) == float(random_lpips(drawn[1:2], target[None]))


def test_pictures_in_0_1_get_a_warning(random_lpips: LPIPS) -> None:
    drawn, labels = halves()
    unsigned = (drawn + 1) / 2
    words = r"{}: .*: expected values in \[-1, 1\], got none below 0"
    with pytest.warns(UserWarning, match=words.format("pairwise_lpips")):
        pairwise_lpips(random_lpips, unsigned)
    with pytest.warns(UserWarning, match=words.format("class_diversity")) as caught:
        class_diversity(random_lpips, unsigned, labels, 4)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=words.format("LPIPS")):
        top1_similarity(random_lpips, unsigned, unsigned[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairwise_lpips(random_lpips, drawn)
        bright = torch.cat((drawn[:, :, :, :20].abs(), drawn[:, :, :, 20:]), 3)
        class_diversity(random_lpips, bright, labels, 4)  # the class alone is bright


def test_bad_input_is_named(random_lpips: LPIPS) -> None:
    drawn, labels = halves()
    with pytest.raises(ValueError, match="at least 2 of one input, got 1"):
        pairwise_lpips(random_lpips, drawn[:1])
    with pytest.raises(ValueError, match=r"expected shape \(3, 40, 40\), as the first output, got \(3, 40, 39\)"):
        pairwise_lpips(random_lpips, [drawn[0], drawn[1, :, :, 1:]])
    with pytest.raises(ValueError, match="labels: expected the"):
        class_diversity(random_lpips, drawn, labels[1:], 4)
    with pytest.raises(ValueError, match="region: expected a class with pixels in labels, got 3"):
        class_diversity(random_lpips, drawn, labels, 3)
    with pytest.raises(ValueError, match="rule: expected"):
        class_diversity(random_lpips, drawn, labels, 4, rule="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"outputs: expected \(N, 3, 40, 40\), got \(0, 3, 40, 40\)"):
        top1_similarity(random_lpips, drawn[:0], drawn[0])
