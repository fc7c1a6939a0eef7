"""The processes of a run: torch.distributed as torchrun sets it up, or one process and no process group.

Everything here works the same in both cases, so that a training loop has one code path.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MASK = 2**64 - 1
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Place of a process among the processes of the run."""

    rank: int  # number of this process, 0 <= rank < size; 0 writes files and talks to the user
    size: int  # number of processes
    local_rank: int  # number of this process on its machine
    device: torch.device  # where this process computes


def init(device: str | None = None, *, timeout: float = 600.0) -> World:
    """Join the other processes that torchrun started; without torchrun this process is alone, without a process group.

    Args:
        device: "cpu", "cuda", or "cuda:N" (one process only); None takes CUDA where there is a GPU. With several
            processes each takes the GPU of its local rank.
        timeout: seconds that a process waits for the others in a collective. One that dies makes the others fail at once
            (gloo) or after this time (nccl), never wait for ever.

    Raises:
        ValueError: device unknown or not there, or torchrun's environment is incomplete.
        RuntimeError: the other processes did not come within `timeout`, or a process group exists already.
    """
    if timeout <= 0:
        raise ValueError(f"timeout: expected a positive number of seconds, got {timeout!r}")
    given = [name for name in _TORCHRUN if name in os.environ]
    if "RANK" in given and len(given) < len(_TORCHRUN):
        missing = ", ".join(name for name in _TORCHRUN if name not in given)
        raise ValueError(f"environment: RANK is set but not {missing}; start several processes with torchrun")
    rank, size, local_rank = (int(os.environ[n]) for n in _TORCHRUN[:3]) if "RANK" in given else (0, 1, 0)
    place = _device(device, size, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size > 1:
        if dist.is_initialized():
            raise RuntimeError("init: there is a process group already; call shutdown() first")
        backend = "nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return World(rank, size, local_rank, place)


def _device(name: str | None, size: int, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if place.type == "cpu":
        return place
    if not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but torch {torch.__version__} sees no GPU")
    if place.index is not None and size > 1:
        raise ValueError(f"device: expected 'cuda' with {size} processes (each takes its local rank's GPU), got {name!r}")
    index = local_rank if place.index is None else place.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device: GPU {index} is asked for, but this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def shutdown() -> None:
    """Leave the process group, if there is one. Safe to call twice."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _group_device() -> torch.device:
    """Device of the tensors that the process group takes."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def mean_over_ranks(scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return the mean of each scalar over the processes, computed in float64; waits for the device once.

    Args:
        scalars: name -> number or tensor of one element; the same names in the same order in every process.

    Raises:
        ValueError: a tensor of more than one element.
    """
    for name, value in scalars.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"scalars[{name!r}]: expected one element, got shape {tuple(value.shape)}")
    if not scalars:
        return {}
    tensors = [
        v.detach().reshape(()) if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in scalars.values()
    ]
    device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
    values = torch.stack([t.to(device, torch.float64, non_blocking=True) for t in tensors])
    if _several():
        values = values.to(_group_device())
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(scalars, values.tolist(), strict=True))


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum over the processes of a tensor, on its device; every process must call it."""
    if not _several():
        return values
    total = values.to(_group_device())
    dist.all_reduce(total)
    return total.to(values.device)


def mean_of_ranks(value: Tensor) -> Tensor:
    """Return the mean over the processes of a tensor, on its device; every process must call it."""
    return sum_over_ranks(value) / dist.get_world_size() if _several() else value


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is True in any process, so that all of them stop (or go on) together."""
    if not _several():
        return bool(flag)
    value = torch.tensor(float(flag), device=_group_device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def agree(stop: bool, step: int) -> bool:
    """Return whether to stop after this step, the same in every process: True if any of them was asked to.

    On GPUs the processes ask each other every eighth step only, for asking makes the host wait for the device.
    """
    if not _several():
        return stop
    return any_rank(stop) if dist.get_backend() != "nccl" or step % 8 == 0 else False


def from_first(text: str) -> str:
    """Return the text that the first process gives, in every process."""
    if not _several():
        return text
    found = [text]
    dist.broadcast_object_list(found, src=0, device=_group_device())
    return found[0]


def part(count: int, world: World, group: int = 1) -> list[int]:
    """Return the numbers below `count` of what this process does: group n, of consecutive ones, is of process n mod size.

    No number comes twice; a process may get none.
    """
    return [i for i in range(count) if i // group % world.size == world.rank]


def gather(value: T) -> list[T]:
    """Return what every process gave, by rank, in the first process; an empty list in the others, which must call it too.

    Args:
        value: whatever can be pickled; tensors on the CPU.
    """
    if not _several():
        return [value]
    found = [value] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found, dst=0)
    return found or []


def mix(*numbers: int) -> int:
    """Return 64 well-mixed bits of some integers, in [0, 2^64): a chain of splitmix64 finalisers (Steele et al., 2014)."""
    state = 0
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 + (number & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_step(seed: int, rank: int, step: int) -> int:
    """Seed Python, NumPy and torch (CPU and CUDA) for one step of one process; return the 64 bits used.

    What is drawn in a step depends on (seed, rank, step) only, so a resumed run draws what an uninterrupted one does.
    """
    bits = mix(seed, rank, step)
    random.seed(bits)
    np.random.seed([bits & 0xFFFFFFFF, bits >> 32])
    torch.manual_seed(bits)  # CUDA too; a GPU not in use yet is seeded when it is
    return bits


def deterministic(on: bool, *, warn_only: bool = False) -> None:
    """Ask torch for the same bits on every run of the same program on the same machine (or no longer).

    Call it before the first CUDA operation: cuBLAS reads its workspace setting then.

    Args:
        on: True also stops cuDNN from choosing its algorithms by timing them; False lets it.
        warn_only: an operation without a deterministic form warns instead of raising RuntimeError.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on
