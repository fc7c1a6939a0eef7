"""Models beside each other: differences over the same pictures, and what the report shows where something is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.evaluation.columns import Columns
from mixsyn_fast.models.evaluation.report import Report
from mixsyn_fast.models.metrics.fid import FIDResult
from mixsyn_fast.models.metrics.score import Score


def report(fid: float | None = None, **scores: dict[str, float]) -> Report:
    found = {name: Score(list(values), list(values.values())) for name, values in scores.items()}
    return Report("", {}, scores=found, fid={} if fid is None else {"": FIDResult(fid, 3, 4, ("few pictures",))})


def columns() -> Columns:
    ours = report(9.5, psnr={"a": 10.0, "b": 12.0, "c": math.inf}, ssim={"a": 0.5, "b": 0.7, "c": 0.6})
    theirs = report(None, psnr={"b": 11.0, "a": 7.0, "c": 3.0, "d": 50.0})
    return Columns("Title", {"size": 3}, {"first": {"ours": ours, "theirs": theirs}}, not_computed={"lpips": "no file"})


def test_differences_are_of_the_same_pictures() -> None:
    found = columns().differences()
    assert set(found["first"]) == {"theirs"} and set(found["first"]["theirs"]) == {"psnr"}
    difference = found["first"]["theirs"]["psnr"]
    assert difference.mean == pytest.approx(np.mean([7.0 - 10.0, 11.0 - 12.0])) and difference.count == 2
    assert difference.low == -3 and difference.high == -1


def test_the_table(tmp_path: Path) -> None:
    text = columns().write(tmp_path)
    assert "| task | metric | ours | theirs |" in text and "* size: 3" in text and "* lpips: no file" in text
    assert "| first | PSNR, dB ↑ | 11 [10, 12] (2) | 17.75 [" in text
    assert "| first | SSIM ↑ | 0.6 [0.5, 0.7] (3) | – |" in text
    assert "| first | FID ↓ | 9.5 (3 against 4) | – |" in text and text.count("few pictures") == 1
    assert "| first | PSNR, dB ↑ | -2 [-3, -1] |" in text and "![scores](scores.png)" in text
    assert (tmp_path / "report.md").read_text() == text
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["tasks"]["first"]["theirs"]["differences"]["psnr"]["mean"] == -2
    assert found["tasks"]["first"]["ours"]["metrics"]["psnr"]["pictures"]["c"] == "inf"
    alone = Columns("Title", {}, {"first": {"ours": report()}}, problems=[str(i) for i in range(30)])
    said = alone.write(tmp_path)
    assert "Difference" not in said and "## Problems (30)" in said and "10 more" in said
