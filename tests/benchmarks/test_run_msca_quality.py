"""What a script that judges trained models keeps of a report, and the share that labels keep for themselves."""

from __future__ import annotations

import numpy as np
import pytest
from mixsyn_fast.models.msca.label_transfer import Transfer

from benchmarks.run_msca_quality import own_labels, scores


def test_scores_keep_interval_count_and_difference() -> None:
    kept = {"mean": 14.0, "low": 13.0, "high": 15.0, "count": 7}
    score = {**kept, "pictures": {}, "title": "x"}
    difference = {"mean": -1.0, "low": -2.0, "high": -0.5, "count": 7, "infinite": 0}
    fid = {"value": 146.0, "first_count": 7}
    report = {
        "tasks": {
            "mirroring": {
                "model": {"metrics": {"psnr": score}, "fid": None},
                "gap": {"metrics": {"psnr": score}, "fid": fid, "differences": {"psnr": difference}},
            }
        }
    }
    assert scores(report, "model") == {"mirroring": {"psnr": kept}}
    less = {key: difference[key] for key in kept}
    assert scores(report, "gap") == {"mirroring": {"psnr": {**kept, "difference": less}, "fid": {"mean": 146.0, "count": 7}}}


def test_the_share_of_the_own_label() -> None:
    sums = np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    even = np.array([[1.0, 3.0, 0.0], [2.0, 2.0, 0.0], [1.0, 1.0, 0.0]])
    found = own_labels(Transfer(sums, even, np.array([0.2, 0.6, 0.2]), 6))  # no target has the last label
    assert found["own"] == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)
    assert found["even"] == pytest.approx(0.25 * 0.25 + 0.75 * 0.5)
    assert found["pairs"] == 6
    nothing = own_labels(Transfer(np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1), 2))
    assert np.isnan(nothing["own"])
