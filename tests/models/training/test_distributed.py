"""One process without a group, two under torchrun, a rank that dies; seeds and deterministic mode."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mixsyn_fast.models.training.distributed import (
    World,
    agree,
    any_rank,
    deterministic,
    from_first,
    init,
    mean_over_ranks,
    mix,
    seed_step,
    shutdown,
)

from tests import processes

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


# ---- one process -----------------------------------------------------------------------------------


def test_alone_there_is_no_process_group() -> None:
    world = init("cpu")
    assert world == World(0, 1, 0, torch.device("cpu"))
    assert not dist.is_initialized()
    assert init() == world or torch.cuda.is_available()
    means = mean_over_ranks(
        {"a": 1.5, "b": torch.tensor([2.0], requires_grad=True), "c": torch.tensor(3, dtype=torch.int32)}
    )
    assert means == {"a": 1.5, "b": 2.0, "c": 3.0} and all(type(value) is float for value in means.values())
    assert mean_over_ranks({}) == {}
    assert any_rank(True) is True and any_rank(False) is False
    assert agree(True, 3) is True and agree(False, 8) is False
    assert from_first("here") == "here"
    shutdown()
    shutdown()


def test_means_are_in_float64() -> None:
    assert mean_over_ranks({"a": 1 + 1e-12, "b": torch.tensor(1e-300, dtype=torch.float64)}) == {"a": 1 + 1e-12, "b": 1e-300}


def test_torchrun_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(TORCHRUN, ("0", "1", "0", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert init("cpu").size == 1 and not dist.is_initialized()


def test_bad_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tpu", "mps", "meta", "cuda:x", ""):
        with pytest.raises(ValueError, match=f"device: expected 'cpu', 'cuda' or 'cuda:N', got '{name}'"):
            init(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: got 'cuda', but torch .* sees no GPU"):
        init("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device: GPU 2 is asked for, but this machine has 2"):
        init("cuda:2")
    for name, value in zip(TORCHRUN, ("3", "4", "3", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="device: GPU 3 is asked for, but this machine has 2"):
        init("cuda")
    with pytest.raises(ValueError, match="device: expected 'cuda' with 4 processes .* got 'cuda:1'"):
        init("cuda:1")


def test_bad_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="timeout: expected a positive number of seconds, got 0"):
        init("cpu", timeout=0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is set but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start .* torchrun"):
        init("cpu")


def test_scalars_of_several_elements() -> None:
    with pytest.raises(ValueError, match=r"scalars\['loss'\]: expected one element, got shape \(2,\)"):
        mean_over_ranks({"loss": torch.zeros(2)})


# ---- several processes -----------------------------------------------------------------------------

TWO = """
    import json, os, sys, time
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from mixsyn_fast.models.training.distributed import agree, any_rank, from_first, init, mean_over_ranks, shutdown

    folder = Path(sys.argv[1])
    world = init("cpu", timeout=60)
    result = {"rank": world.rank, "size": world.size, "local": world.local_rank, "backend": dist.get_backend()}
    result["means"] = mean_over_ranks({"a": world.rank, "b": torch.tensor(1e9 + world.rank, dtype=torch.float64)})
    result["any"] = [any_rank(False), any_rank(world.rank == 1), any_rank(True)]
    result["agreed"] = [agree(world.rank == 0, 1), agree(False, 2)]
    result["text"] = from_first("of the first" if world.rank == 0 else "of another")
    try:
        init("cpu")
    except RuntimeError as error:
        result["again"] = str(error)
    shutdown()
    result["ended"] = not dist.is_initialized()
    (folder / f"{world.rank}.json").write_text(json.dumps(result))
"""


def write(folder: Path, text: str) -> Path:
    place = folder / "script.py"
    place.write_text(textwrap.dedent(text))
    return place


def surroundings() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_two_processes_under_torchrun(tmp_path: Path) -> None:
    script = write(tmp_path, TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=surroundings())
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank, found in enumerate(ranks):
        assert (found["rank"], found["local"], found["size"], found["backend"]) == (rank, rank, 2, "gloo")
        assert found["means"] == {"a": 0.5, "b": 1e9 + 0.5}
        assert found["any"] == [False, True, True]
        assert found["agreed"] == [True, False] and found["text"] == "of the first" and found["ended"]
        assert "call shutdown() first" in found["again"]


DYING = """
    import os, sys, time
    from mixsyn_fast.models.training.distributed import init, mean_over_ranks
    world = init("cpu", timeout=4)
    mean_over_ranks({"a": 1.0})
    if world.rank == 1:
        if sys.argv[1] == "dies":
            os._exit(7)
        time.sleep(60)  # it hangs
    start = time.monotonic()
    try:
        mean_over_ranks({"a": 1.0})
    except RuntimeError as error:
        print("waited", time.monotonic() - start, flush=True)
        os._exit(5)
"""


@pytest.mark.parametrize(("how", "patience"), [("dies", 3.0), ("hangs", 15.0)])
def test_a_lost_process_does_not_hold_the_others(how: str, patience: float) -> None:
    first, second = processes.start_ranks(textwrap.dedent(DYING), [how])
    try:
        done = first.wait(60)
        assert done.returncode == 5, done.output
        assert float(done.output.split("waited")[1].split()[0]) < patience
    finally:
        second.process.kill()
        second.wait()


# ---- seeds and determinism -------------------------------------------------------------------------


def draw() -> tuple[object, ...]:
    return random.random(), np.random.rand(), torch.rand(2).tolist()


def test_seed_step_depends_on_seed_rank_and_step_only() -> None:
    seen = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 3), (2**70 + 5, 0, 0), (5, 0, 0), (-1, 0, 0)]:
        bits = seed_step(*key)
        values = draw()
        assert 0 <= bits < 2**64
        draw()
        assert seed_step(*key) == bits and draw() == values
        seen[key] = values
    assert seen.pop((2**70 + 5, 0, 0)) == seen[(5, 0, 0)]  # 64 bits of the seed count
    for position in range(3):  # each of the three sources differs between any two keys
        assert len({str(values[position]) for values in seen.values()}) == len(seen)


def test_mix_is_splitmix64() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF  # first output of the published generator for seed 0
    bits = np.array([[mix(a, b) >> k & 1 for k in range(64)] for a in range(40) for b in range(40)])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.07  # 5.6 standard deviations of 1600 fair bits
    assert len({mix(a, b) for a in range(100) for b in range(100)}) == 10_000


@pytest.fixture
def _torch_flags() -> object:
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def test_deterministic(_torch_flags: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    deterministic(True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    deterministic(True, warn_only=True)
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic


@pytest.mark.gpu
def test_device_of_a_gpu() -> None:
    world = init()
    assert world.device == torch.device("cuda", 0) and torch.cuda.current_device() == 0
    assert mean_over_ranks({"a": torch.tensor(2.0, device="cuda"), "b": 1.0}) == {"a": 2.0, "b": 1.0}
    bits = seed_step(1, 0, 2)
    values = torch.rand(3, device="cuda")
    assert seed_step(1, 0, 2) == bits and torch.equal(torch.rand(3, device="cuda"), values)


def test_init_says_when_the_others_do_not_come() -> None:
    start = time.monotonic()
    given = dict(zip(TORCHRUN, ("1", "2", "1", "localhost", "1"), strict=True))  # nobody listens there
    done = processes.run("from mixsyn_fast.models.training.distributed import init\ninit('cpu', timeout=2)", env=given)
    assert done.returncode != 0 and "timed out" in done.output.lower()
    assert time.monotonic() - start < 30
