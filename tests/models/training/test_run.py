"""The run folder: log, config, sheets, TensorBoard, bar, signals; resumed, on other ranks, without optional packages."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.training.run import Run, read_log

CONFIG = {"lr": 0.1, "model": {"width": 4}}


def train(folder: Path, start: int, stop: int, config: dict[str, Any] = CONFIG, **options: Any) -> None:
    with Run(folder, config, total_steps=10, start_step=start, **options) as run:
        for step in range(start, stop):
            run.log(step + 1, {"loss/generator": 1.0 / (step + 1), "lr": 0.1})


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- files -----------------------------------------------------------------------------------------


def test_config_and_log(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    with Run(folder, CONFIG, total_steps=3, tensorboard=False) as run:
        assert run.folder == folder and json.loads((folder / "config.json").read_text()) == CONFIG
        run.log(1, {"loss/a": torch.tensor(0.5, requires_grad=True), "lr": 1e-4})
        assert len((folder / "log.jsonl").read_text().splitlines()) == 1  # a line is there at once
        time.sleep(0.02)
        run.log(2, {"loss/a": 2})
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == read_log(folder)
    assert [set(line) for line in lines] == [{"step", "seconds", "loss/a", "lr"}, {"step", "seconds", "loss/a"}]
    assert (lines[0]["step"], lines[0]["loss/a"], lines[0]["lr"]) == (1, 0.5, 1e-4)
    assert lines[1]["seconds"] - lines[0]["seconds"] >= 0.015
    assert files(folder) == {"config.json", "log.jsonl"}


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    with Run(tmp_path, {}, total_steps=1, quiet=True) as run:
        run.log(1, {"a": math.nan, "b": math.inf, "c": torch.tensor(-math.inf)})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert math.isnan(float(line["a"])) and float(line["b"]) == math.inf and float(line["c"]) == -math.inf


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total_steps": 0}, "total_steps: expected at least 1, got 0"),
        ({"start_step": 11}, "start_step: expected 0 to total_steps = 10, got 11"),
        ({"start_step": -1}, "start_step: expected 0 to"),
        ({"config": {"a": {1}}}, "config: expected a JSON dict"),
        ({"config": {"a": math.nan}}, "config: expected a JSON dict"),
    ],
)
def test_bad_arguments_make_no_folder(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"config": {}, "total_steps": 10} | values
    with pytest.raises(ValueError, match=message):
        Run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path / "run", CONFIG, rank=1, total_steps=3) as run:
        run.advance(1)
        run.log(1, {"a": 1.0})
        run.message("hello")
        assert run.sheet("sample", 1, [[np.zeros((2, 2, 3), np.uint8)]]) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stop_requested  # but it hears signals
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_an_error_closes_and_goes_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run(tmp_path, CONFIG, total_steps=3) as run:
        run.log(1, {"a": 1.0})
        raise ZeroDivisionError
    assert [entry["step"] for entry in read_log(tmp_path)] == [1]


# ---- resume ----------------------------------------------------------------------------------------


def test_no_step_stands_twice_after_a_resume(tmp_path: Path) -> None:
    train(tmp_path, 0, 5, quiet=True)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # killed while writing
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2, 3, 4, 5]
    before = read_log(tmp_path)
    train(tmp_path, 3, 8, quiet=True)
    entries = read_log(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert entries[:3] == before[:3]
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    train(tmp_path, 0, 2, quiet=True)
    entries = read_log(tmp_path)
    entries[-1]["seconds"] = 1000.0
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    train(tmp_path, 2, 4, quiet=True)
    assert [entry["seconds"] >= 1000 for entry in read_log(tmp_path)] == [False, True, True, True]
    assert read_log(tmp_path)[-1]["seconds"] < 1100


def test_a_fresh_start_begins_a_fresh_log_and_config(tmp_path: Path) -> None:
    train(tmp_path, 0, 5, quiet=True)
    train(tmp_path, 0, 2, {"lr": 3}, quiet=True)
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2]
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 3}


def test_changed_settings_are_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 0, 2)
    capsys.readouterr()
    train(tmp_path, 2, 3)
    assert "setting" not in capsys.readouterr().err
    changed = {"lr": 0.2, "model": {"width": 4}}
    train(tmp_path, 3, 4, changed)
    assert "setting changed on resume: lr: 0.1 -> 0.2\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text()) == changed
    assert json.loads((tmp_path / "config_until_00000003.json").read_text()) == CONFIG
    assert {name for name in files(tmp_path) if "config" in name} == {"config.json", "config_until_00000003.json"}


@pytest.mark.parametrize("text", ['{"lr": 0', "[1]", ""])
def test_a_damaged_config_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    train(tmp_path, 0, 2)
    (tmp_path / "config.json").write_text(text)
    train(tmp_path, 2, 3)
    assert "config.json: not readable, written anew" in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_read_log_of_an_empty_folder(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


# ---- TensorBoard and sheets ------------------------------------------------------------------------


def scalars(folder: Path, name: str) -> dict[int, float]:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = reading.EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {event.step: event.value for event in board.Scalars(name)}


def test_tensorboard_holds_the_scalars_also_after_a_resume(tmp_path: Path) -> None:
    train(tmp_path, 0, 5, quiet=True)
    time.sleep(1.1)  # event files are named and ordered by seconds
    with Run(tmp_path, CONFIG, total_steps=10, start_step=3, quiet=True) as run:
        run.log(4, {"loss/generator": 70.0})
    found = scalars(tmp_path, "loss/generator")
    assert found == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3, 4: 70.0})


def test_sheet(tmp_path: Path) -> None:
    pytest.importorskip("mixsyn_fast.models.sheets")
    image_module = pytest.importorskip("PIL.Image")
    red, blue = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 100
    with Run(tmp_path, CONFIG, total_steps=10, quiet=True) as run:
        place = run.sheet("validation", 3, [[red, blue], [blue, red]])
    assert place == tmp_path / "samples" / "validation_00000003.png"
    picture = np.array(image_module.open(place))
    assert picture.shape[0] >= 16 and picture.shape[1] >= 16
    for colour in ([200, 0, 0], [0, 0, 100]):
        assert (picture == colour).all(-1).sum() == 128
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Images("validation")] == [3]


def test_without_optional_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch.utils.tensorboard", "tqdm"):
        monkeypatch.setitem(sys.modules, name, None)
    train(tmp_path, 0, 3)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("is not installed (pip install 'mixsyn_fast[models]')" in line for line in said)
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2, 3]


def test_sheet_without_pillow_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mixsyn_fast.models.sheets")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with Run(tmp_path, CONFIG, total_steps=10, tensorboard=False) as run:
        for step in (1, 2):
            assert run.sheet("sample", step, [[np.zeros((4, 4, 3), np.uint8)]]) is None
    assert capsys.readouterr().err.count("pillow is not installed") == 1


# ---- terminal --------------------------------------------------------------------------------------


def test_bar_shows_steps_rates_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    with Run(tmp_path, CONFIG, total_steps=8, start_step=2, tensorboard=False) as run:
        run.advance(3)
        run.log(3, {"loss/generator": 0.12345, "images_per_second": 12.34, "data_ms": 3.14})
        run.message("a word in between")
        run.log(6, {"loss/generator": 0.5, "images_per_second": 12.34, "data_ms": 0.04})
    err = capsys.readouterr().err
    assert "25% 2/8 steps" in err
    assert "a word in between\n" in err
    assert "75% 6/8 steps" in err.splitlines()[-1]
    assert " left], 12.3 img/s, 0.0 ms data, loss/generator 0.5" in err


def test_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path, CONFIG, total_steps=8, quiet=True) as run:
        run.message("nobody hears it")
        run.advance(1)
        run.log(1, {"a": 1.0})
    assert capfd.readouterr() == ("", "")


# ---- signals ---------------------------------------------------------------------------------------


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_sigterm_asks_to_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = handlers()
    with Run(tmp_path, CONFIG, total_steps=8, tensorboard=False) as run:
        assert not run.stop_requested and handlers() != before
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # impatient schedulers send it again
        assert run.stop_requested
        os.kill(os.getpid(), signal.SIGINT)  # the first of its kind
    assert handlers() == before
    assert "SIGTERM: saving after this step" in capfd.readouterr().err


def test_a_second_sigint_leaves_at_once(tmp_path: Path) -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, CONFIG, total_steps=8) as run:
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop_requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        raise AssertionError("the second SIGINT was not heard")
    assert handlers() == before


def test_forked_workers_end_by_sigterm_and_pass_over_sigint(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG, total_steps=8, quiet=True, tensorboard=False) as run:
        child = os.fork()
        if child == 0:
            for _ in range(500):
                time.sleep(0.01)
            os._exit(3)
        for _ in range(2):
            os.kill(child, signal.SIGINT)
            time.sleep(0.05)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
        assert not run.stop_requested


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    before, seen = handlers(), []

    def work() -> None:
        with Run(tmp_path, CONFIG, total_steps=8, quiet=True) as run:
            run.log(1, {})
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before] and len(read_log(tmp_path)) == 1
