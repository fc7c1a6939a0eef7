"""Files are written whole or not at all; JSON has one rule for what it cannot hold."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mixsyn_fast import writing
from mixsyn_fast.writing import json_line, jsonable, write_json, write_whole, written_whole


def test_a_good_body_gives_the_file_its_name(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.png"
    with written_whole(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".png" and temporary != target
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one" and os.listdir(target.parent) == ["a.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_body_that_raises_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.json"
    write_whole(target, "old")
    with pytest.raises(error), written_whole(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_value_that_json_cannot_hold_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


def test_folders_in_the_way_are_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.txt: expected a file to write, got a folder"):
        with written_whole(tmp_path / "a.txt"):
            pytest.fail("the body ran")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), written_whole(tmp_path / "file" / "b.txt"):
        pytest.fail("the body ran")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    target = tmp_path / "locked" / "a.txt"
    write_whole(target, "old")
    target.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write_whole(target, "new")
        assert target.read_text() == "old" and os.listdir(target.parent) == ["a.txt"]
    finally:
        target.parent.chmod(0o700)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", b"x")
        (tmp_path / "plain").write_bytes(b"x")
        assert os.umask(mask) == mask  # reading it has not changed it
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "plain")]
    assert modes == [0o666 & ~mask] * 2


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(writing.os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(writing.os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    write_whole(tmp_path / "a", "ä")
    assert order == ["fsync", "replace"] and (tmp_path / "a").read_bytes() == "ä".encode()


@dataclass
class _Inner:
    value: float
    none: None = None


def test_one_rule_of_json(tmp_path: Path) -> None:
    value = {
        "floats": (1.5, math.nan, math.inf, -math.inf),
        "numpy": [np.float32(-math.inf), np.array([1.5, math.nan]), np.int64(3)],
        "torch": [torch.float32, torch.device("cpu"), torch.tensor([1, 2]), torch.tensor(math.inf)],
        "inner": _Inner(math.nan),
        3: Path("a") / "b",
        "plain": [True, None, "nan", 7],
    }
    expected = {
        "floats": [1.5, "nan", "inf", "-inf"],
        "numpy": ["-inf", [1.5, "nan"], 3],
        "torch": ["float32", "cpu", [1, 2], "inf"],
        "inner": {"value": "nan", "none": None},
        "3": "a/b",
        "plain": [True, None, "nan", 7],
    }
    assert jsonable(value) == expected
    assert json.loads(json_line(value)) == expected and json_line(value).count("\n") == 1
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    assert all(map(math.isnan, [float(expected["floats"][1])])) and float(expected["floats"][3]) == -math.inf
