"""Checkpoints against kills, flipped bits, full disks and other writers; exact resume of optimisers and random numbers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.training import checkpoint as module
from mixsyn_fast.models.training.checkpoint import (
    CheckpointError,
    bytes_of,
    newest_valid,
    open_checkpoint,
    pack,
    pack_optimizer,
    preflight,
    rng_state,
    save_checkpoint,
    set_rng_state,
    steps,
    unpack,
    unpack_optimizer,
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
        time.sleep(rng.uniform(0, 0.05))
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
    command = [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path / "run"), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
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


# ---- optimisers and random numbers -----------------------------------------------------------------


def problem() -> tuple[nn.Module, Callable[[nn.Module, torch.optim.Optimizer], None]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()

    return net, step


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.0, 0.9)),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2), amsgrad=True, foreach=False),
        lambda p: torch.optim.AdamW([{"params": [q]} for q in p], lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=1e-2),
    ],
    ids=["adam", "amsgrad", "adamw", "momentum", "sgd"],
)
def test_a_resumed_optimiser_goes_on_bit_for_bit(tmp_path: Path, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    net, step = problem()
    optimizer = make(net.parameters())
    for _ in range(3):
        step(net, optimizer)
    tensors, state = pack_optimizer(optimizer.state_dict())
    random_tensors, random_state = rng_state()
    groups = {"net": net.state_dict(), "optimizer": tensors, "rng": random_tensors}
    save_checkpoint(tmp_path, 3, groups, {"optimizer": state, "rng": random_state})
    expected_state = optimizer.state_dict()
    again = unpack_optimizer(tensors, json.loads(json.dumps(state)))
    assert again["param_groups"] == expected_state["param_groups"]  # tuples are tuples again
    assert list(again["state"]) == list(expected_state["state"])  # and indices integers
    for _ in range(3):
        step(net, optimizer)

    torch.manual_seed(99)
    resumed, _ = problem()
    other = make(resumed.parameters())
    found = newest_valid(tmp_path, silent)
    assert found is not None
    resumed.load_state_dict(found.tensors("net"))
    other.load_state_dict(unpack_optimizer(found.tensors("optimizer"), found.state["optimizer"]))
    set_rng_state(found.tensors("rng"), found.state["rng"])
    for _ in range(3):
        step(resumed, other)
    for a, b in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_random_numbers_go_on(tmp_path: Path) -> None:
    random.seed(3)
    np.random.seed(3)
    random.gauss(0, 1)  # leaves a second value in store
    np.random.standard_normal()
    tensors, state = rng_state()
    save_checkpoint(tmp_path, 1, {"rng": tensors}, {"rng": state})

    def draw() -> tuple[Any, ...]:
        return (random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.randn(3).tolist())

    expected = draw()
    draw()
    found = newest_valid(tmp_path, silent)
    assert found is not None
    set_rng_state(found.tensors("rng"), found.state["rng"])
    assert draw() == expected


@pytest.mark.gpu
def test_random_numbers_of_the_gpu_go_on() -> None:
    torch.randn(3, device="cuda")
    tensors, state = rng_state()
    expected = torch.randn(3, device="cuda")
    torch.randn(3, device="cuda")
    set_rng_state(tensors, state)
    assert torch.equal(torch.randn(3, device="cuda"), expected)


def test_pack_there_and_back() -> None:
    tensor = torch.randn(2)
    tree = {"a": [1, (2, (3.5, None)), {}], 7: {"x": tensor, "$tensor": "t"}, "b": {"$tuple": ()}, "c": (), "t": (tensor,)}
    tensors, state = pack(tree)
    assert set(tensors) == {"7.x", "t.0"}
    assert repr(unpack(tensors, json.loads(json.dumps(state)))) == repr(tree)
    alone = pack(tensor)
    assert unpack(*alone) is tensor


def test_pack_refuses_what_it_cannot_keep() -> None:
    with pytest.raises(ValueError, match="a.0: expected a tensor, number, text, list, tuple or dict, got set"):
        pack({"a": [{1}]})
    with pytest.raises(ValueError, match=r"a: expected keys that are int or str, got \(1, 2\)"):
        pack({"a": {(1, 2): 3}})
    with pytest.raises(ValueError, match="a.b: two entries have this name"):
        pack({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)})
    with pytest.raises(ValueError, match="a: the tensor is missing"):
        unpack({}, {"$tensor": "a"})
    with pytest.raises(ValueError, match=r"expected the keys state and param_groups, got \['weight'\]"):
        pack_optimizer({"weight": torch.zeros(1)})
