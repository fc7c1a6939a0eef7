"""The script that measures what edits do to the rest of the picture: shipped weights, drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import run_mixsyn_drift as drift


def test_every_region_has_its_changes_and_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kept layers and blends leave more alone than a pass over everything; a region that no pair has is named."""
    words = ["--data=", "--kind=procedural_facades", "--regions=door,deco", "--limit=2", "--rounds=1"]
    assert drift.main([*words, f"--out={tmp_path / 'drift.json'}"]) == 0
    result = json.loads((tmp_path / "drift.json").read_text())
    assert [row["case"] for row in result["rows"]] == ["drift/door"] and "drift/door" in capsys.readouterr().out
    assert result["left_out"] == ["deco: no two pictures in a row have it"]
    scores = result["rows"][0]["facts"]["scores"]
    assert scores["pictures"]["pairs"] == 2 and 0.5 < scores["pictures"]["share outside"] < 1
    outside = scores["outside"]
    assert 0 < outside["image"] < outside["composition"] < outside["made"] and outside["layers"] < outside["made"] / 2
    assert all(change > outside["layers"] for change in scores["inside"].values())
    assert scores["seconds"].keys() == {"full pass", "made", "composition", "image", "layers"}
    assert all(0 < seconds < 60 for seconds in scores["seconds"].values())
