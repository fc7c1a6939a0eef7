"""Retrieval: histograms by hand, a cost that a shift hardly raises, and the picture that a person would pick."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from mixsyn_fast.models.data import ProceduralSource, RegionDataset, Sample
from mixsyn_fast.models.evaluation.retrieval import (
    _DAISY,
    Pool,
    grey_for_matching,
    histogram_intersection,
    label_histogram,
    matching_cost,
)
from skimage.feature import daisy

SIZE = 64


class Given(ProceduralSource):
    """Given pictures as a set."""

    def __init__(self, samples: list[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__("procedural_facades", len(samples), 0, (SIZE, SIZE))
        self.samples = samples

    def read(self, index: int) -> Sample:
        image, labels = self.samples[index]
        if image.ndim != 3:
            raise ValueError("a bad file")
        return Sample(image, labels, None, self.names()[index])


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    sample = ProceduralSource("procedural_facades", 1, seed, (SIZE, SIZE)).read(0)
    return sample.image, sample.labels


def pool(*samples: tuple[np.ndarray, np.ndarray], problems: list[str] | None = None) -> Pool:
    dataset = RegionDataset(Given(list(samples)), SIZE, on_error="raise")
    return Pool(dataset, [] if problems is None else problems)


def item(*sample: np.ndarray) -> Any:
    return RegionDataset(Given([(sample[0], sample[1])]), SIZE)[0]


def test_histograms_by_hand() -> None:
    labels = np.array([[0, 0, 2, 2], [2, 2, -1, -1]], np.int32)
    histogram = label_histogram(labels, 4)
    np.testing.assert_allclose(histogram, [0.25, 0, 0.5, 0])
    others = np.array([[0.5, 0.5, 0, 0], [0.1, 0, 0.9, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(histogram_intersection(histogram, others), [0.25, 0.6, 0])


def test_a_shift_and_other_colours_cost_little() -> None:
    image, other = drawn(1)[0], drawn(2)[0]
    grey = grey_for_matching(image)
    assert matching_cost(grey, grey) == pytest.approx(0, abs=1e-3)
    darker = matching_cost(grey, grey_for_matching((image * 0.8 + 20).astype(np.uint8)))
    moved = grey_for_matching(np.roll(image, 2, 1))
    shifted = matching_cost(grey, moved)
    as_it_lies = np.linalg.norm(daisy(grey, **_DAISY) - daisy(moved, **_DAISY), axis=2).mean()
    assert 0 < shifted < 0.2 * as_it_lies  # the flow finds it
    assert max(shifted, darker) < 0.6 * matching_cost(grey, grey_for_matching(other))
    with pytest.raises(ValueError, match=r"candidate: expected the target's size \(64, 64\), got \(32, 64\)"):
        matching_cost(grey, grey[:32])
    assert grey_for_matching(np.zeros((100, 200, 3), np.uint8)).shape == (64, 128)
    with pytest.raises(ValueError, match="expected at least 13 x 13 pixels to match, got 12 x 20"):
        grey_for_matching(np.zeros((12, 20, 3), np.uint8))


def test_the_obvious_picture_is_found() -> None:
    image, labels = drawn(1)
    moved = np.roll(image, 2, 1), np.roll(labels, 2, 1)
    wrong_labels = np.roll(image, 1, 1), np.full_like(labels, 11)  # a better match, but of other labels
    problems: list[str] = []
    bad = np.zeros(3, np.uint8), labels
    searched = pool(drawn(4), (image, labels), drawn(5), bad, moved, wrong_labels, problems=problems)
    assert len(searched) == 5 and problems == ["pool: seed_00000003: a bad file"]
    found = searched.candidates(item(image, labels), 3)
    assert [each.index for each in found][0] == 4 and np.array_equal(searched.read(found[0]).image, moved[0])
    assert {each.index for each in found} == {0, 2, 4}  # neither the picture itself nor the one of other labels
    assert [each.cost for each in found] == sorted(each.cost for each in found)
    histograms = [label_histogram(each, 12) for each in (labels, moved[1])]
    assert found[0].intersection == pytest.approx(float(np.minimum(*histograms).sum()))
    assert searched.candidates(item(image, labels), 1)[0].index == 4  # by labels alone
    assert pool((image, labels)).candidates(item(image, labels)) == []


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("skimage", "skimage.feature", "skimage.registration", "skimage.transform"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"dense matching needs scikit-image: pip install 'mixsyn_fast\[models\]'"):
        pool(drawn(1))
