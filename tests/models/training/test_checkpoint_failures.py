"""Checkpoints against kills at any moment, full and read-only disks, and other processes that save."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mixsyn_fast.models.training import checkpoint as module
from mixsyn_fast.models.training.checkpoint import (
    CheckpointError,
    newest_valid,
    preflight,
    save_checkpoint,
)
from torch import Tensor

from tests import processes


def some(value: float, size: int = 100) -> dict[str, dict[str, Tensor]]:
    networks = {"a": torch.full((size,), float(value)), "b": torch.tensor(value)}
    return {"networks": networks, "ema": {"a": torch.full((2, 3), value)}}


def save(folder: Path, step: int, **options: Any) -> Path:
    return save_checkpoint(folder, step, some(step), {"step": step}, **options)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def silent(text: str) -> None:
    raise AssertionError(f"no message was expected: {text}")


# ---- kills -----------------------------------------------------------------------------------------

KILLER = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from mixsyn_fast.models.training.checkpoint import newest_valid, open_checkpoint, save_checkpoint

    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir()
    rng = random.Random(4)
    groups = ("networks", "ema", "optimizers")

    def contents(count):
        return {g: {str(i): torch.full((20_000,), float(count)) for i in range(3)} for g in groups}

    def work(step, count, report):
        while True:  # each step is saved twice: the second save replaces the first
            for _ in range(2):
                count += 1
                save_checkpoint(folder, step, contents(count), {"count": count}, keep_last=2, best=step % 4 == 0)
                os.write(report, f"{step} {count}\\n".encode())
            step += 1

    longest = 0.05  # seconds; more only where a save takes long: a slow disk, a busy machine
    for _ in range(3):
        start = time.perf_counter()
        save_checkpoint(folder, 0, contents(0), {"count": 0})
        longest = max(longest, 6 * (time.perf_counter() - start))

    step = count = interrupted = 0
    said = []
    for kill in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(step, count, write)
            finally:
                os._exit(1)
        os.close(write)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        reports = b""
        while part := os.read(read, 65536):
            reports += part
        os.close(read)
        lines = reports.decode().splitlines()
        interrupted += any(path.name.startswith((".tmp", ".replaced")) for path in folder.iterdir())
        found = newest_valid(folder, said.append)
        if lines:
            done_step, done_count = map(int, lines[-1].split())
            assert found is not None and found.step >= done_step, "a finished save is lost"
            assert found.state["count"] >= done_count, "a finished save is lost"
        if found is not None:
            assert found.step >= step and found.state["count"] >= count, "it went backwards"
            for group in groups:
                for value in found.tensors(group).values():
                    assert torch.all(value == found.state["count"]), "parts of two saves"
            step, count = found.step, found.state["count"]
        names = [path.name for path in folder.iterdir() if path.name != ".lock"]
        assert all(name.startswith("step_") for name in names), names
        assert len(names) <= 2 + 2, names  # kept, the best, and one whose pruning was killed
        for name in names:
            open_checkpoint(folder / name)
    print(json.dumps({"step": step, "count": count, "interrupted": interrupted, "said": said}))
"""


def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    """A fresh process (no threads yet) forks children that save without a pause, and kills each after 0 to 50 ms."""
    done = processes.run(textwrap.dedent(KILLER), [tmp_path / "run", 50])
    assert done.returncode == 0, done.output
    result = json.loads(done.output)
    assert result["said"] == []  # nothing half-written ever stood under a checkpoint's name
    assert result["interrupted"] >= 10  # the kills did hit saves
    assert result["count"] >= 10


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    path.rename(tmp_path / ".replaced_step_00000002")
    assert newest_valid(tmp_path, silent).step == 2  # type: ignore[union-attr]
    assert visible(tmp_path) == ["step_00000001", "step_00000002"]
    shutil.copytree(path, tmp_path / ".replaced_step_00000002")  # or just after the second
    (tmp_path / ".tmp_left").mkdir()
    (tmp_path / ".tmp_file").write_text("x")
    save(tmp_path, 3)
    assert visible(tmp_path) == ["step_00000001", "step_00000002", "step_00000003"]


# ---- disks and other processes ---------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tiny_disk, 1, some(1, 250_000), {})
    with pytest.raises(CheckpointError, match=r"step 2 was not saved.*not enough space: 4.8 MiB needed, 3.\d MiB free"):
        save_checkpoint(tiny_disk, 2, some(2, 1_000_000), {})
    monkeypatch.setattr(module, "_check_space", lambda folder, needed: None)  # another process fills the disk meanwhile
    with pytest.raises(CheckpointError, match="disk: step 2 was not saved; those before it are kept: .*No space left"):
        save_checkpoint(tiny_disk, 2, some(2, 1_000_000), {})
    assert visible(tiny_disk) == ["step_00000001"]
    assert newest_valid(tiny_disk, silent).step == 1  # type: ignore[union-attr]
    save_checkpoint(tiny_disk, 2, some(2, 250_000), {})
    assert newest_valid(tiny_disk, silent).step == 2  # type: ignore[union-attr]


def test_preflight_on_a_disk_without_room(tiny_disk: Path) -> None:
    preflight(tiny_disk / "run", 3 << 20)
    with pytest.raises(ValueError, match=r"run: not enough space: 5.0 MiB needed, (4.0|3.9) MiB free"):
        preflight(tiny_disk / "run", 5 << 20)
    assert visible(tiny_disk / "run") == []


def test_a_read_only_disk(tiny_disk: Path) -> None:
    save(tiny_disk, 1)
    (tiny_disk / ".tmp_left").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(ValueError, match="checkpoints cannot be written there: Read-only file system"):
        preflight(tiny_disk, 0)
    with pytest.raises(CheckpointError, match="step 2 was not saved.*Read-only file system"):
        save(tiny_disk, 2)
    assert newest_valid(tiny_disk, silent).step == 1  # type: ignore[union-attr]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="checkpoints cannot be written there: Permission denied"):
            preflight(tmp_path, 0)
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path, 1)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    place = tmp_path / "taken"
    place.write_text("a file")
    with pytest.raises(ValueError, match="taken: checkpoints cannot be written there: File exists"):
        preflight(place, 0)
    with pytest.raises(CheckpointError, match="taken: step 1 was not saved.*File exists"):
        save(place, 1)
    assert newest_valid(place, silent) is None


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let call number `call` (from 0) of a function fail as on a full disk."""
    original, calls = getattr(owner, name), iter(range(10**6))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (module.tempfile, "mkdtemp", 0),
        *[(module, "_measure", call) for call in (0, 2)],
        (module, "_manifest", 0),
        *[(module, "_fsync", call) for call in range(5)],
        *[(module.os, "replace", call) for call in range(2)],
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_a_save_that_fails_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    fail_at(monkeypatch, owner, name, call)
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: step 2 was not saved.*No space left"):
        save_checkpoint(tmp_path, 2, some(9), {"second": True})
    monkeypatch.undo()
    found = newest_valid(tmp_path, silent)
    assert found is not None and found.state == {"step": 2}
    assert visible(tmp_path) == ["step_00000001", "step_00000002"]


def test_an_interrupt_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    save(tmp_path, 1)
    monkeypatch.setattr(module, "_fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert visible(tmp_path) == ["step_00000001"]


def test_order_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power may fail: every file is on disk before the folder, the folder before its name, the name before pruning."""
    order: list[str] = []
    fsync, replace = module._fsync, os.replace
    monkeypatch.setattr(module, "_fsync", lambda path: (order.append(f"fsync {path.name}"), fsync(path)))
    monkeypatch.setattr(module.os, "replace", lambda a, b: (order.append(f"rename to {Path(b).name}"), replace(a, b)))
    monkeypatch.setattr(module, "_prune", lambda *args: order.append("prune"))
    save(tmp_path, 3)
    files = {"fsync ema.safetensors", "fsync networks.safetensors", "fsync state.json", "fsync manifest.json"}
    assert set(order[:4]) == files and order[4].startswith("fsync .tmp_")
    assert order[5:] == ["rename to step_00000003", f"fsync {tmp_path.name}", "prune"]


def test_another_process_is_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    under_way = tmp_path / ".tmp_under_way"
    under_way.mkdir()
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert newest_valid(tmp_path, silent).step == 1  # type: ignore[union-attr]
        assert under_way.exists()  # its writer lives
        with pytest.raises(CheckpointError, match="another process has been saving there"):
            save(tmp_path, 2)
        with pytest.raises(ValueError, match="cannot be written there"):
            preflight(tmp_path, 0)
    save(tmp_path, 2)
    assert visible(tmp_path) == ["step_00000001", "step_00000002"]


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'mixsyn_fast\[models\]'"):
        save(tmp_path, 1)
