"""The benchmark of accelerate(): its rows, its gate, and a run through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import run_accelerate, schema
from benchmarks.run_models import published_forms

SMALL = {"ngf": 4, "style": 24, "hidden": 16, "width": 4}


def test_rows_of_noise_hold_cells() -> None:
    labels = run_accelerate._cells(run_accelerate.AccelerateCase("noise", 19, 4, 10, 4))[0]
    assert labels.shape == (10, 10)
    assert bool((labels[:4, :4] == labels[0, 0]).all()) and len(labels.unique()) > 4


@pytest.mark.parametrize("what", ["sean_test", "sean_ui"])
def test_a_generator_in_its_modes_agrees(what: str) -> None:
    """Its statistics are those of its input, so that the tanh at the end hides no error; the editor's codes matter."""
    forms = published_forms()
    assert forms is not None
    case = run_accelerate.AccelerateCase(what, size=64)
    model, inputs = run_accelerate.build(case, run_accelerate.label_source(None), forms, **SMALL)
    published = run_accelerate._Step(model, inputs, False)()["output"]
    assert 0.01 < published.abs().mean() < 0.99
    report = run_accelerate.accelerate(model)
    assert report.count("sean") == 18
    result = run_accelerate._Step(model, inputs, False)()["output"]
    torch.testing.assert_close(result, published, rtol=1e-3, atol=1e-3)
    if what == "sean_ui":
        other = {key: {"ACE": value["ACE"] + 1} for key, value in inputs[2].items()}
        assert not torch.allclose(run_accelerate._Step(model, (*inputs[:2], other), False)()["output"], result, atol=1e-2)


def test_run_through_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [run_accelerate.AccelerateCase("noise", 5, 8, 16, cell, mode) for cell, mode in ((1, "forward"), (8, "training"))]
    monkeypatch.setattr(run_accelerate, "cases", lambda quick: tiny)
    out = tmp_path / "found.json"
    assert run_accelerate.main(["--repeat", "2", "--out", str(out)]) in (0, 1)  # so small a row may well be lost
    result = json.loads(out.read_text())
    schema.check(result)
    assert [row["mode"] for row in result["rows"]] == ["forward", "training"] and not result["wrong"]
    assert all(row["targets"][0]["least"] == 0.95 and row["facts"]["changed"] == {"spade": 1} for row in result["rows"])
    assert "at least 0.95 x" in capsys.readouterr().out
    assert run_accelerate.main(["--cases", "nothing", "--out", str(out)]) == 2


def test_rows_of_features_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are enlarged, and enlarged ones that pay for it take fewer products; columns are those of their classes."""
    tiny = [run_accelerate.AccelerateCase("features", 6, 8, 16, 4, mode) for mode in ("forward", "training")]
    tiny.append(run_accelerate.AccelerateCase("columns", 5, 8, 16, 4))
    monkeypatch.setattr(run_accelerate, "cases", lambda quick: tiny)
    out = tmp_path / "found.json"
    assert run_accelerate.main(["--repeat", "2", "--out", str(out)]) in (0, 1)
    result = json.loads(out.read_text())
    schema.check(result)
    assert not result["wrong"] and [len(row["targets"]) for row in result["rows"]] == [1, 1, 2]
    forms = published_forms()
    assert forms is not None
    _, (x, segmap) = run_accelerate.build(tiny[0], run_accelerate.label_source(None), forms)
    assert x.shape == (1, 8, 16, 16) and segmap.shape == (1, 6, 4, 4)
    _, (_, segmap) = run_accelerate.build(tiny[2], run_accelerate.label_source(None), forms)
    assert len(torch.unique(segmap.permute(0, 2, 3, 1).reshape(-1, run_accelerate.VECTOR), dim=0)) == 5
