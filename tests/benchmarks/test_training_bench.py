"""The training benchmark's gate and ratios, and the plot of curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot_training, run_training
from mixsyn_fast.measure.clock import Timing


def lines(step_ms: float, gb: float, loss: float) -> list[dict[str, Any]]:
    entry = {"images_per_second": 1e3 / step_ms, "data_ms": 1.0, "peak_gb": gb, "generator/gan": loss, "lr/generator": 1e-4}
    return [{"step": step, "step_ms": step_ms * (9 if step == 1 else 1), **entry} for step in (1, 2, 3)]


def test_ratios_leave_the_first_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def train_once(model: str, options: list[str], steps: int, folder: Path) -> list[dict[str, Any]]:
        asked.append(options)
        return lines(300, 4, 1.0001) if "dense" in options else lines(100, 2, 1.0)

    monkeypatch.setattr(run_training, "train_once", train_once)
    row = run_training.measure("sean", ["--size", "64"], rounds=2, steps=2)
    ours, dense = row["contenders"]["ours"], row["contenders"]["dense"]
    assert (ours.timing, dense.timing) == (Timing(0.1, 0.1, 0.1, 4), Timing(0.3, 0.3, 0.3, 4))
    assert (ours.peak_bytes, dense.peak_bytes) == (2e9, 4e9)
    assert ours.gate.error == pytest.approx(1e-4, rel=1e-2) and dense.gate.error == 0
    assert row["facts"] == {"images": 1, "data_s": {"ours": 1e-3, "dense": 1e-3}}
    assert asked == [["--size", "64"], ["--size", "64", "--plan", "dense", "--backend", "reference"]] * 2


def test_nothing_is_reported_behind_a_red_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_once(model: str, options: list[str], steps: int, folder: Path) -> list[dict[str, Any]]:
        return lines(100, 1, 1.1 if "dense" in options else 1.0)

    monkeypatch.setattr(run_training, "train_once", train_once)
    with pytest.raises(RuntimeError, match="losses of the first step differ"):
        run_training.measure("sean", [], rounds=1, steps=2)
    assert (
        run_training.largest_difference({"a": 1.0}, {"a": 1.0, "b": 2.0})
        == float("inf")
        == run_training.largest_difference({}, {})
    )


def test_a_real_run_goes_through() -> None:
    small = ["--kind", "procedural_facades", "--size", "32", "--batch-size", "2", "--generator.ngf", "2", "--vgg", "0"]
    small += [
        "--generator.style-length",
        "8",
        "--generator.encoder-width",
        "2",
        "--discriminator.ndf",
        "2",
        "--workers",
        "0",
    ]
    row = run_training.measure("sean", [*small, "--init-gain", "0"], rounds=1, steps=1)
    assert row["contenders"]["ours"].gate.error <= 1e-3 and row["contenders"]["dense"].timing.median > 0
    assert row["facts"]["images"] == 2


def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(run_training.sys, "executable", str(interpreter))
    with pytest.raises(RuntimeError, match=r"training sean --nonsense .*\nno such option"):
        run_training.train_once("sean", ["--nonsense"], 1, tmp_path)


def test_a_file_keeps_rows_of_its_own_machine_and_commit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_training, "train_once", lambda *_: lines(100, 1, 1.0))
    out = tmp_path / "training.json"
    for size in ("32", "64", "32"):
        assert run_training.main(["--size", size, "--rounds", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["settings"]["options"] for row in found["rows"]] == [["--size", "64"], ["--size", "32"]]
    found["machine"]["commit"] = "another"
    out.write_text(json.dumps(found))
    assert run_training.main(["--size", "64", "--rounds", "1", "--out", str(out)]) == 0
    assert [row["settings"]["options"] for row in json.loads(out.read_text())["rows"]] == [["--size", "64"]]


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(FileNotFoundError, match="run: no log.jsonl"):
        plot_training.plot([run], tmp_path / "curves.png")
    (run / "log.jsonl").write_text("".join(json.dumps({**line, "validation/psnr": 10.0}) + "\n" for line in lines(1, 1, 1)))
    assert plot_training.main([str(run), "--out", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert plot_training.curve(plot_training.read_log(run), "generator/gan") == ([1, 2, 3], [1.0, 1.0, 1.0])
