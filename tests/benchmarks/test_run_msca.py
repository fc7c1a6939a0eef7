"""The measurement of MSCA: every part runs, its rows pass their gates, wrong results are refused; the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measured, plot_msca, run_msca, schema, tables
from benchmarks.cases import label_source
from mixsyn_fast.backend import current_plan
from mixsyn_fast.measure.clock import Timing
from mixsyn_fast.measure.gate import Gate

NAMED = "own 32 w4 b1"


def test_runs_fill_one_file_and_the_plot(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "msca.json"
    for part in run_msca.PARTS:
        # at this scale nobody asks who wins
        assert run_msca.main([part, "--quick", "--no-memory", "--out", str(file)]) in (0, 1)
    found = schema.load(file)
    parts = ("forward", "features", "exemplar", "layout", "synthesis", "hidden", "modulation", "step")
    maps = [f"maps {what} k{count}" for count in (4, 8) for what in ("align", "whole")]
    others = (*maps, "exemplar half", "new label map", "new exemplar", "nothing new")
    cases = [row["case"] for row in found["rows"]]
    assert cases == [f"msca/{part} {NAMED}" for part in (*parts, *maps, "exemplar half")] + [
        "msca/exemplar half own 64 w4 b1",
        *(f"msca/{part} {NAMED}" for part in others[len(maps) + 1 :]),
    ]
    assert found["wrong"] == []
    for row in found["rows"]:
        assert all(entry["timing"] for entry in row["contenders"].values()), row["case"]
    shares = found["rows"][0]["facts"]["shares"]["ours"]
    assert set(shares) == {"features", "exemplar", "layout", "hidden", "modulation", "convolutions"}
    assert [goal["what"] for goal in found["rows"][0]["targets"]] == ["dense"]
    assert "msca/step" in tables.render(json.loads(file.read_text()))
    section, said = measured.msca({"msca_cpu.json": found}), measured.values({**schema.committed(), "msca_cpu.json": found})
    assert section.startswith("## MSCA") and all(f"| {case.removeprefix('msca/')} |" in section for case in cases)
    assert "| modulation | " in section and section.endswith("[[from msca_cpu.json]]\n\n")
    assert all(said[f"msca {name}"].endswith(" x") for name in ("forward", "step", "new label map", "new exemplar"))
    pytest.importorskip("matplotlib")
    assert plot_msca.main(["--results", str(file), "--out", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").stat().st_size > 1000
    points = plot_msca.points(found)
    assert [place for place, _ in points["msca/maps whole"]["ours"]] == [4, 8]
    assert [place for place, _ in points["msca/exemplar half"]["floor"]] == [32, 64]
    with pytest.raises(ValueError, match="no row of msca/maps align"):
        plot_msca.points({"rows": []})


def test_a_wrong_contender_fails_its_gate() -> None:
    options = run_msca.parse(["forward", "--quick", "--out", "x.json"])
    bench = run_msca.Bench(options, label_source(None))
    double = bench.double()
    assert all(verdict.passed for verdict in run_msca.judged(run_msca.Bench.forward, bench, double).values())

    def wrong(given: run_msca.Bench) -> dict[str, torch.Tensor]:
        found = given.forward()
        return found if current_plan() == "dense" else {"image": found["image"] * 1.01}

    verdicts = run_msca.judged(wrong, bench, double)
    assert verdicts["dense"].passed and not verdicts["ours"].passed
    row = run_msca.row_of("x", "forward", {}, {"ours": Gate(False, 1.0, 0.1, "y")}, {"a/ours": Timing(1, 1, 1, 1)})
    assert row["contenders"]["ours"].timing is None and "wrong result: y" in row["contenders"]["ours"].note


def test_bad_options(capsys: Any) -> None:
    for words, message in (
        (["nothing"], "invalid choice: 'nothing'"),
        (["forward", "--size", "40"], "multiples of 16, got 40 x 40"),
        (["exemplar", "--sides", "0"], "expected positive numbers"),
        (["forward", "--batch", "0"], "--batch: expected a positive number, got 0"),
        (["forward", "--quick"], "--out: expected a file"),
    ):
        with pytest.raises(SystemExit):
            run_msca.parse(words)
        assert message in capsys.readouterr().err
