"""What a script that judges trained models keeps of a report, and the share that labels keep for themselves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixsyn_fast.models.msca.label_transfer import Transfer

from benchmarks import measured
from benchmarks.run_msca_quality import curve, own_labels, scores, there


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


def test_curves_of_a_log() -> None:
    log = [{"step": 1, "judged/real_logit_std": 0.5, "lr/generator": 1.0}, {"step": 2, "validation/psnr": 9.0}]
    assert curve(log, "judged/") == [{"step": 1, "real_logit_std": 0.5}]
    assert curve(log, "validation/") == [{"step": 2, "psnr": 9.0}]


def test_runs_that_are_not_there(tmp_path: Path, capsys: Any) -> None:
    """They end the command, or are left out where it says so; the first one is what others are compared with."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").touch()
    given, parser = [f"full={tmp_path}/a", f"gap={tmp_path}/b"], argparse.ArgumentParser()
    assert there(given, True, parser) == ({"full": f"{tmp_path}/a"}, ["gap"])
    for each, skip, name in ((given, False, "gap"), (given[::-1], True, "gap")):
        with pytest.raises(SystemExit):
            there(each, skip, parser)
        assert f"{name}: expected a run folder, got" in capsys.readouterr().err


def test_table_1_in_the_documents() -> None:
    mean = {"mean": 12.345, "low": 12.0, "high": "nan", "count": 7}
    full = {"psnr": mean, "style": {**mean, "mean": 0.00123}, "fid": {"mean": 146.4, "count": 7}}
    less = {"psnr": {**mean, "difference": {"mean": -0.5, "low": -0.7, "high": -0.3, "count": 7}}}
    facts: dict[str, Any] = {"steps": 900, "scores": {"mirroring": full}, "labels": {"own": 0.5, "even": 0.25, "pairs": 6}}
    rows = [
        {"case": "quality/full", "facts": facts},
        {"case": "quality/spade_vae", "facts": {"steps": 800, "scores": {"mirroring": less}}},
    ]
    results: Any = {"msca_quality.json": {"rows": rows}}
    section = measured.msca(results)
    assert "| mirroring | full | 900 | 12.35 [12.00, nan] | - | 146 | 1.23e-03 [1.20e+01, nan] |" in section
    assert "| mirroring | spade_vae | 800 | 12.35 [12.00, nan]; -0.50 [-0.70, -0.30] | - | - | - |" in section
    assert "| full | 50.0% | 25.0% |" in section
    said = measured._msca_values(results)
    assert said["msca full"] == "- | 12.35 / - / 146 / 1.23e-03 | -" and said["msca gap"].startswith("not measured yet")
    assert measured.msca({}) == ""
