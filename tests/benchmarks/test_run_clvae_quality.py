"""What a level changes, in a script that judges trained models: known changes have known shares of colour."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.run_clvae_quality import material, scores


class _Known:
    """Level 1 adds grey to a class, level 2 a pattern without a mean, level 3 does nothing."""

    levels = (1, 2, 3)
    classes = ("wall", "door", "handle")

    def present(self, labels: np.ndarray) -> list[str]:
        return [self.classes[k] for k in np.unique(labels)]

    def reconstruct(self, image: np.ndarray, labels: np.ndarray) -> Any:
        return SimpleNamespace(image=image)

    def edit(self, image: np.ndarray, labels: np.ndarray, edits: dict[str, str], levels: list[int], *, seed: int) -> Any:
        (name,) = edits
        pattern = np.where(np.indices(labels.shape).sum(0) % 2, 20, -20)
        change = {1: np.full(labels.shape, 12), 2: pattern, 3: np.zeros(labels.shape, int)}[levels[0]]
        inside = labels == self.classes.index(name)
        return SimpleNamespace(image=(image + (change * inside)[..., None]).astype(np.uint8))


def test_colour_and_pattern_are_told_apart() -> None:
    labels = np.zeros((16, 16), np.int32)
    labels[:, 8:] = 1
    labels[0, 8] = 2  # less than one in a hundred: not edited
    picture = SimpleNamespace(image=np.full((16, 16, 3), 100, np.uint8), labels=labels)
    found = material(_Known(), [picture], 0)  # type: ignore[arg-type]
    assert set(found) == {"1", "2"} and found["1"]["edits"] == found["2"]["edits"] == 2
    assert found["1"] == {"change": 12.0, "colour": 1.0, "edits": 2}
    assert found["2"]["change"] == 20.0 and found["2"]["colour"] < 1e-3


def test_scores_keep_interval_and_count() -> None:
    score = {"mean": 0.4, "low": 0.3, "high": 0.5, "count": 7, "pictures": {}, "title": "x"}
    report = {"metrics": {"lpips": score}, "fid": {"value": 146.0, "first_count": 40}}
    kept = {"mean": 0.4, "low": 0.3, "high": 0.5, "count": 7}
    assert scores(report) == {"lpips": kept, "fid": {"mean": 146.0, "count": 40}}
    assert scores({**report, "fid": None}) == {"lpips": kept}
