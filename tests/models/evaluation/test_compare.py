"""Streaming comparison: grouping, best and worst pictures, missing labels; the report's tables and JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from mixsyn_fast.models.evaluation.compare import Compared, Comparison, batches
from mixsyn_fast.models.evaluation.report import Report
from mixsyn_fast.models.metrics.pixels import psnr, rmse
from mixsyn_fast.models.metrics.score import Score

from tests import processes


def compared(name: str, error: int, size: tuple[int, int] = (12, 12), labels: np.ndarray | None = None) -> Compared:
    """A grey picture that is off by `error` levels everywhere."""
    target = np.full((*size, 3), 100, np.uint8)
    return Compared(name, target + np.uint8(error), target, labels)


@pytest.mark.parametrize("metric", [psnr, rmse])
def test_best_and_worst(metric) -> None:
    comparison = Comparison({metric.__name__: metric}, keep=2)
    for name, error in zip("abcdefg", (5, 1, 9, 3, 7, 0, 11), strict=True):  # 0: infinite PSNR
        comparison.add([compared(name, error)])
    best, worst = comparison.extremes()
    assert [c.name for c in best] == ["f", "b"] and [c.name for c in worst] == ["g", "c"]


def test_equally_good_pictures() -> None:
    comparison = Comparison({"rmse": rmse}, keep=4)
    comparison.add([compared(name, 2) for name in "abc"])
    best, worst = comparison.extremes()
    assert [c.name for c in best] == [c.name for c in worst] == ["a"], "of three pictures one is best, one is worst"
    assert Comparison({"rmse": rmse}).extremes() == ([], [])


def test_batches_have_one_size() -> None:
    sizes = [(12, 12)] * 3 + [(12, 14)] + [(12, 12)] * 2
    pictures = [compared(str(i), 1, size) for i, size in enumerate(sizes)]
    assert ["".join(c.name for c in group) for group in batches(pictures, 2)] == ["01", "2", "3", "45"]
    assert list(batches([], 2)) == []


def test_bad_labels_are_named() -> None:
    labels = np.zeros((12, 12), np.int32)
    comparison = Comparison({"rmse": rmse}, classes=("x",))
    comparison.add([compared("a", 1, labels=labels), compared("b", 1, labels=labels - 1)])
    assert np.isnan(comparison.scores["rmse"].by_region[1]).all()
    with pytest.raises(ValueError, match="labels: expected one for every picture, got 1 for 2"):
        comparison.add([compared("a", 1, labels=labels), compared("b", 1)])
    with pytest.raises(ValueError, match=r"labels: expected -1..0, got 0..3"):
        comparison.add([compared("a", 1, labels=labels + 3 * np.eye(12, dtype=np.int32))])
    with pytest.raises(ValueError, match="labels: expected integers of shape"):
        comparison.add([compared("a", 1, labels=labels[:6])])


def test_markdown_says_what_is_left_out(tmp_path) -> None:
    score = Score(list("ab"), [math.inf, 20.0], [np.array([math.inf, math.nan]), np.array([math.nan, math.nan])])
    report = Report("t", {"x": 1, "y": None}, classes=("sky", "sea"), scores={"psnr": score})
    report.problems = [f"file {i}: bad" for i in range(30)]
    text = report.write(tmp_path)
    assert "| PSNR, dB ↑ | 20 | – | 1, 1 infinite left out |" in text and "* y" not in text
    assert "| sky | inf – (0, 1 infinite left out) |" in text and "sea" not in text
    assert "## Problems (30)" in text and "file 19: bad" in text and "file 20: bad" not in text and "10 more" in text
    assert len(json.loads((tmp_path / "report.json").read_text())["problems"]) == 30


def test_ways_stand_beside_each_other(tmp_path) -> None:
    def score(*rows: tuple[float, float]) -> Score:
        return Score(["a", "b"], [float(np.nanmean(row)) for row in rows], [np.array(row) for row in rows])

    nan = math.nan
    report = Report("t", {}, classes=("sky", "sea"), scores={"locality": score((0.5, 0.9), (0.7, nan))}, judged="samples")
    alone = report.as_markdown()
    assert report.as_json()["ways"] == {} and ": ways" not in alone and "| 95 % interval | samples |" in alone
    report.way, report.others, report.sheet = "ours", {"plain": {"locality": score((0.2, nan), (0.4, nan))}}, "mine.png"
    (tmp_path / "mine.png").write_bytes(b"")
    text = report.write(tmp_path)
    assert "| region | ours | plain |" in text and "![mine](mine.png)" in text
    sky = next(line for line in text.splitlines() if line.startswith("| sky | 0.6 ") and line.count("|") == 4)
    assert "| 0.3 [" in sky and "| sea | 0.9 – | – |" in text
    found = json.loads((tmp_path / "report.json").read_text())["ways"]
    assert list(found) == ["ours", "plain"] and list(found["plain"]["regions"]) == ["sky"]
    assert found["ours"]["regions"]["sea"]["locality"]["count"] == 1
    assert found["plain"]["whole"]["locality"]["mean"] == pytest.approx(0.3)
    assert (tmp_path / "regions.png").is_file()


def test_importing_needs_no_optional_package() -> None:
    absent = ("PIL", "matplotlib", "torchmetrics", "scipy", "safetensors", "tqdm")
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    code += "from mixsyn_fast.models.evaluation import compare, evaluate, parse, report"
    done = processes.run(code)
    assert done.returncode == 0, done.output
