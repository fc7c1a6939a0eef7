"""Checkpoints there and back, which of them are kept, and damage that is found and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixsyn_fast.models.training import checkpoint as module
from mixsyn_fast.models.training.checkpoint import (
    CheckpointError,
    bytes_of,
    checkpoint_at,
    newest_valid,
    open_checkpoint,
    save_checkpoint,
    steps,
)
from torch import Tensor, nn


def some(value: float, size: int = 100) -> dict[str, dict[str, Tensor]]:
    networks = {"a": torch.full((size,), float(value)), "b": torch.tensor(value)}
    return {"networks": networks, "ema": {"a": torch.full((2, 3), value)}}


def save(folder: Path, step: int, **options: Any) -> Path:
    return save_checkpoint(folder, step, some(step), {"step": step}, **options)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def silent(text: str) -> None:
    raise AssertionError(f"no message was expected: {text}")


# ---- there and back --------------------------------------------------------------------------------


def test_there_and_back(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
    base = torch.randn(4, 6)
    odd = {
        **{str(kind): (torch.randn(3, 5) * 9).to(kind) for kind in kinds},
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "slice": base[:, ::2],
        "transposed": base.t(),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3)),
        "shared": base,
        "shared again": base,
        "part of shared": base[1],
    }
    state = {"step": 7, "nested": [1, 2.5, None, {"text": "ä"}]}
    path = save_checkpoint(tmp_path / "new" / "run", 7, {"odd": odd, "none": {}}, state)
    assert path == tmp_path / "new" / "run" / "step_00000007"
    found = newest_valid(path.parent, silent)
    assert found is not None
    assert (found.path, found.step, found.state, found.best) == (path, 7, state, False)
    assert set(found.groups) == {"odd", "none"} and found.tensors("none") == {}
    loaded = found.tensors("odd")
    assert set(loaded) == set(odd)
    for name, value in odd.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        assert torch.equal(loaded[name].nan_to_num(nan=123), value.detach().nan_to_num(nan=123)), name
    assert loaded["nan"].signbit().tolist()[1:] == [True, True]
    with pytest.raises(KeyError, match="no group 'model'; expected one of none, odd"):
        found.tensors("model")


def test_folder_without_checkpoints(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nowhere", silent) is None and not (tmp_path / "nowhere").exists()
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_00000003").write_text("a file, not a folder")
    assert newest_valid(tmp_path, silent) is None and steps(tmp_path) == []


def test_one_step(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert checkpoint_at(tmp_path, 1).state == {"step": 1}
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3; there are: 1, 2"):
        checkpoint_at(tmp_path, 3)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3; there are: none"):
        checkpoint_at(tmp_path / "nowhere", 3)
    damage_cut(tmp_path / "step_00000001")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint_at(tmp_path, 1)


def test_readable_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert save(tmp_path, 1).stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(before)


def test_bytes_of_is_close(tmp_path: Path) -> None:
    tensors = {"g": {"a": torch.zeros(1 << 20), "b": torch.zeros(1000, dtype=torch.uint8)}}
    path = save_checkpoint(tmp_path, 1, tensors, {})
    used = sum(file.stat().st_size for file in path.iterdir())
    assert used <= bytes_of(tensors) <= used + (1 << 20) + 1024


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": -1}, "step: expected 0 or more, got -1"),
        ({"keep_last": 0}, "keep_last: expected at least 1, got 0"),
        ({"tensors": {"../x": {}}}, "tensors: expected a group name .* got '../x'"),
        ({"tensors": {"": {}}}, "tensors: expected a group name"),
        ({"tensors": {"g": {"a": 3}}}, r"tensors\['g'\]\['a'\]: expected a tensor, got int"),
        ({"state": {"a": {1, 2}}}, "state: expected what JSON can hold: .*set"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"step": 1, "tensors": some(1), "state": {}} | values
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


# ---- which are kept --------------------------------------------------------------------------------


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    kept = []
    for step in range(1, 8):
        save(tmp_path, step, keep_last=2, best=step in (2, 4))
        kept.append(steps(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [4, 5], [4, 5, 6], [4, 6, 7]]
    best = newest_valid(tmp_path, silent, best=True)
    assert best is not None and (best.step, best.best) == (4, True)
    assert visible(tmp_path) == ["step_00000004", "step_00000006", "step_00000007"]


def test_no_best_one_yet(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert newest_valid(tmp_path, silent, best=True) is None


def test_steps_of_a_left_future_are_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, best=step == 30)
    save(tmp_path, 15)
    assert steps(tmp_path) == [10, 15]


def test_the_same_step_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, some(50), {"second": True})
    found = newest_valid(tmp_path, silent)
    assert found is not None and found.state == {"second": True} and visible(tmp_path) == ["step_00000005"]
    assert found.tensors("ema")["a"][0, 0] == 50


def test_steps_above_eight_digits(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    assert steps(tmp_path) == [99_999_999, 100_000_000]
    assert newest_valid(tmp_path, silent).step == 100_000_000  # type: ignore[union-attr]


# ---- damage ----------------------------------------------------------------------------------------


def flip(path: Path, position: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1 << bit
    path.write_bytes(raw)


def test_one_flipped_bit_in_any_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    names = sorted(path.name for path in newest.iterdir())
    assert names == ["ema.safetensors", "manifest.json", "networks.safetensors", "state.json"]
    for name in names:
        file = newest / name
        size = file.stat().st_size
        every = range(size) if size < 1000 else (*range(0, size, 37), size - 1)
        for position in every:
            flip(file, position, position % 8)
            said: list[str] = []
            found = newest_valid(tmp_path, said.append)
            assert found is not None and found.step == 1, (name, position)
            assert torch.equal(found.tensors("networks")["a"], torch.ones(100))
            assert len(said) == 1 and said[0].startswith("checkpoint of step 2 is passed over: "), (name, position)
            assert str(file) in said[0] and "damaged" in said[0]
            flip(file, position, position % 8)
    assert newest_valid(tmp_path, silent).step == 2  # type: ignore[union-attr]


def damage_cut(path: Path) -> str:
    os.truncate(path / "ema.safetensors", 10)
    return "ema.safetensors: damaged: expected .* bytes, got 10"


def damage_removed(path: Path) -> str:
    (path / "state.json").unlink()
    return "state.json: No such file"


def damage_no_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "manifest.json: No such file"


def damage_empty_manifest(path: Path) -> str:
    (path / "manifest.json").write_bytes(b"")
    return "manifest.json: damaged"


def damage_other_manifest(path: Path) -> str:
    (path / "manifest.json").write_text("[1, 2]")
    return "manifest.json: damaged"


def damage_files_swapped(path: Path) -> str:
    (path / "state.json").write_text('{"step": 3}')  # the same length
    return "state.json: damaged: its SHA-256"


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_removed, damage_no_manifest, damage_empty_manifest, damage_other_manifest, damage_files_swapped],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    message = damage(path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
    said: list[str] = []
    assert newest_valid(tmp_path, said.append).step == 1  # type: ignore[union-attr]
    assert len(said) == 1


def test_all_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        damage_cut(save(tmp_path, step))
    said: list[str] = []
    assert newest_valid(tmp_path, said.append) is None and len(said) == 2


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step_00000009")
    said: list[str] = []
    assert newest_valid(tmp_path, said.append) is None
    assert "expected the name step_00000001" in said[0]


def test_a_format_of_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    path = save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="manifest.json: expected format 1, got 2"):
        open_checkpoint(path)


def test_a_checkpoint_that_goes_away_while_it_is_used(tmp_path: Path) -> None:
    found = open_checkpoint(save(tmp_path, 1))
    shutil.rmtree(found.path)
    with pytest.raises(CheckpointError, match="ema.safetensors"):
        found.tensors("ema")
