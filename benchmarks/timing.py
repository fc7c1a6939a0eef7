"""The harness: interleaved timing, peak memory, machine description, measured physical rates.

Rules: nothing is timed before its output has passed its gate (mixsyn_fast/measure/gate.py); inputs are made outside the
clock; contenders take turns (mixsyn_fast/measure/clock.py); the median is reported with the 20th and 80th percentile.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixsyn_fast.layers.algebra import linear
from mixsyn_fast.machine import cores, cpu_name, now
from mixsyn_fast.measure.clock import Call, interleave
from mixsyn_fast.measure.gate import Gate
from mixsyn_fast.progress import progress
from mixsyn_fast.writing import jsonable, write_json

from . import cpu, schema
from .schema import Measured

KINDS = ("read", "write", "copy")  # of memory traffic
_CODE = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)docs", ":(top,exclude)*.md")
"""What git is asked about: a result does not depend on other results."""

# -------------------------------------------------------------------------------------------------- peak memory


@dataclass(frozen=True)
class Memory:
    """Bytes of one call, above what was there before."""

    peak: int  # tensors alive at once, results included
    temporary: int  # tensors alive at once that are not part of the result


def _storages(value: Any) -> dict[int, int]:
    """Address -> bytes of the storages in a result: tensors in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return {address: size for part in inner for address, size in _storages(part).items()}


def _allocations(roots: Sequence[Any]) -> list[tuple[int, int, int]]:
    """(time, address, bytes; negative when freed) of all allocation events of a profile, in order of time."""
    found = []
    left = list(roots)
    while left:
        event = left.pop()
        left.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    return sorted(found, key=lambda e: e[0])


def memory_of(call: Call, device: torch.device | str = "cpu") -> Memory | None:
    """Memory that torch's allocators hand out during one call; None where it cannot be known.

    CPU: every allocation and release that torch's profiler sees, by address, so that the blocks of the result are told
    from the temporary ones. It is exact for tensors; what a kernel takes from the C++ heap is not seen, see
    :func:`resident_growth`. CUDA: torch.cuda.max_memory_allocated, from which the size of the result is taken off.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        return Memory(peak, max(0, peak - sum(_storages(result).values())))
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = call()
        events = _allocations(profile.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):
        return None
    lasting = _storages(result)
    last_of = {address: i for i, (_, address, size) in enumerate(events) if address in lasting and size > 0}
    current = temporary = peak = most = 0
    for i, (_, address, size) in enumerate(events):
        current += size
        peak = max(peak, current)
        if last_of.get(address) == i:
            continue  # a block of the result
        temporary += size
        most = max(most, temporary)
    return Memory(peak, most)


def peak_memory(call: Call, device: torch.device | str = "cpu") -> int | None:
    """Bytes that one call allocates at its peak, results included; see :func:`memory_of`."""
    found = memory_of(call, device)
    return None if found is None else found.peak


def resident_growth(call: Call) -> int | None:
    """Bytes by which the process grows during one call, results included; None where Linux does not tell.

    Everything counts: tensors, scratch memory of kernels and libraries, whoever allocated it. Freed pages are given back
    to the system first (malloc_trim), the kernel's high-water mark is reset (/proc/self/clear_refs), then the call runs.
    Good to about 1 MB. The call should have run before, or its one-time set-up is counted.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
        gc.collect()
        trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        return None


def _status(field_name: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field_name].split()[0]) * 1024


# ------------------------------------------------------------------------------------------------ machine and rates


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Machine, versions and commit of a run, as stored in the JSON."""
    import mixsyn_fast
    from mixsyn_fast import extension

    extension.ensure_loaded()
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": extension.instruction_set(),
        "restricted": cpu.in_force(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if on_gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mixsyn_fast": mixsyn_fast.__version__,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)),
        "date": time.strftime("%Y-%m-%d"),
    }


def portable(text: str) -> str:
    """Return an argument as it is written down: where the real pictures lie on this machine is nobody's business."""
    folder = os.environ.get("MIXSYN_FAST_DATA")
    return text.replace(folder.rstrip("/"), "$MIXSYN_FAST_DATA") if folder else text


def model_place(path: str) -> str:
    """Return where a model lies, as it is written down: relative paths as they are, run folders elsewhere as runs/NAME."""
    found = portable(path)
    return f"runs/{Path(found).name}" if Path(found).is_absolute() else found


def heading(kind: str, device: torch.device | str = "cpu", *, labels: str = "", repeat: int | None = None) -> dict[str, Any]:
    """Return a result (benchmarks/schema.py) without rows: its kind, the command that made it, machine, versions, commit."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name] if module is not None else [Path(sys.argv[0]).name]
    command = shlex.join(map(portable, [*program, *sys.argv[1:]]))
    lists: dict[str, list[Any]] = {"rows": [], "left_out": [], "losses": [], "wrong": []}
    first = {"kind": kind, "command": command, "machine": machine(device), "rates": {}, "labels": labels, "repeat": repeat}
    return {**first, "seconds": None, **lists}


def machine_line(facts: Mapping[str, Any]) -> str:
    """One line for people: where the numbers come from."""
    where = facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"
    kind = facts["cpu_capability"] + (f", ours {facts['instruction_set']}" if facts.get("instruction_set") else "")
    kind += " (restricted)" if facts.get("restricted") else ""
    dirty = " + uncommitted changes" if facts.get("uncommitted_changes") else ""
    return (
        f"{where}; {kind}; torch {facts['torch']}, Python {facts['python']}, "
        f"mixsyn_fast {facts['mixsyn_fast']}, commit {facts['commit'] or 'unknown'}{dirty}, {facts['date']}"
    )


def transfers(nbytes: int, device: torch.device | str = "cpu", kinds: Collection[str] = KINDS) -> dict[str, Call]:
    """Calls that only move `nbytes` of memory: "read", "write" and "copy", several ways each, since none is always best.

    Returns:
        "<kind> <way>" -> call; :func:`transfer_rates` takes the fastest way of each kind.
    """
    count = max(1, nbytes // 256) * 64
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    rows = source.view(-1, 64)
    calls: dict[str, Call] = {
        "read amax": lambda: torch.amax(source, 0),
        "read rows": lambda: rows.sum(1),
        "read dot": lambda: torch.dot(source, source),
        "write zero": lambda: target.zero_(),
        "write fill": lambda: target.fill_(1.0),
        "copy copy": lambda: target.copy_(source),
    }
    return {name: call for name, call in calls.items() if name.split()[0] in kinds}


def transfer_rates(nbytes: int, medians: Mapping[str, float]) -> dict[str, float]:
    """GB/s of each kind ("read_gb_s", ...) from the seconds of :func:`transfers`; a copy reads and writes."""
    moved = max(1, nbytes // 256) * 256
    best: dict[str, float] = {}
    for name, seconds in medians.items():
        kind = name.split()[0]
        best[kind] = min(best.get(kind, float("inf")), seconds)
    return {f"{kind}_gb_s": moved * (2 if kind == "copy" else 1) / seconds / 1e9 for kind, seconds in best.items()}


def measure_rates(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """What this machine can do now: bandwidths, and the rate of matrix products and 3x3 convolutions.

    Returns:
        read_gb_s, write_gb_s, copy_gb_s (bytes read + written), gemm_gflop_s (torch.mm), linear_gflop_s (oneDNN's product
        on the CPU), conv_gflop_s (channels_last), 2 operations per multiply-accumulate; matrix_gflop_s is the best of
        these three.
    """
    device = torch.device(device)
    large = device.type == "cuda"
    nbytes = 2**30 if large else 2**27
    n = 8192 if large else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    channels, side, batch = (512, 64, 16) if large else (128, 64, 1)
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    matrix: dict[str, Call] = {
        "gemm": lambda: a @ b,
        "linear": lambda: linear(a, b),
        "conv": lambda: torch.nn.functional.conv2d(x, weight, padding=1),
    }
    with torch.no_grad(), progress("measuring bandwidths and the rates of matrix products and convolution"):
        times = interleave({**transfers(nbytes, device), **matrix}, device=device, repeat=9)
    medians = {name: timing.median for name, timing in times.items()}
    operations = {"gemm": 2 * n**3, "linear": 2 * n**3, "conv": 2 * 9 * batch * (channels * side) ** 2}
    rates = transfer_rates(nbytes, {name: value for name, value in medians.items() if name not in matrix})
    rates |= {f"{name}_gflop_s": count / medians[name] / 1e9 for name, count in operations.items()}
    return {**rates, "matrix_gflop_s": max(rates[f"{name}_gflop_s"] for name in operations)}


@contextmanager
def power_log(device: torch.device | str) -> Iterator[dict[str, float]]:
    """On a GPU with nvidia-ml-py installed, fill a dict with clocks (MHz), power (W) and energy (J) of the body."""
    log: dict[str, float] = {}
    device = torch.device(device)
    handle = nvml = None
    if device.type == "cuda":
        try:
            import pynvml as nvml

            nvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except Exception as error:  # nvml raises its own classes; measuring goes on without it
            print(f"  no clocks, power, energy: {type(error).__name__}: {error}", file=sys.stderr)
            handle = None
    if handle is None or nvml is None:
        yield log
        return

    def read(getter: str, *arguments: Any) -> float | None:
        try:
            return float(getattr(nvml, getter)(handle, *arguments))
        except Exception:  # not supported on this device
            return None

    start, before = now(device), read("nvmlDeviceGetTotalEnergyConsumption")
    yield log
    seconds, after = now(device) - start, read("nvmlDeviceGetTotalEnergyConsumption")
    values = {
        "sm_clock_mhz": read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        "power_w": (read("nvmlDeviceGetPowerUsage") or 0.0) / 1e3 or None,
        "temperature_c": read("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "energy_j": None if before is None or after is None else (after - before) / 1e3,
        "seconds": seconds,
    }
    log.update({name: value for name, value in values.items() if value is not None})


def energy_per_call(call: Call, device: torch.device | str, *, seconds: float = 1.0) -> dict[str, float]:
    """Clocks, power and joules per call over about `seconds` of calls; empty without a GPU or nvidia-ml-py."""
    if torch.device(device).type != "cuda":
        return {}
    calls, start = 0, time.perf_counter()
    with power_log(device) as log:
        while time.perf_counter() - start < seconds:
            for _ in range(5):
                call()
            calls += 5
            torch.cuda.synchronize(device)
    if "energy_j" in log:
        log["joule_per_call"] = log["energy_j"] / calls
    return log


# --------------------------------------------------------------------------------------------------- one comparison


def compare(
    contenders: Mapping[str, Call],
    gates: Mapping[str, Gate],
    *,
    device: torch.device | str = "cpu",
    repeat: int = 15,
    budget_s: float | None = None,
    memory: bool = True,
    warmup: int = 2,
    what: str = "",
    seldom: Collection[str] = (),
    probes: Mapping[str, Call] | None = None,
    resident: bool = False,
) -> dict[str, Measured]:
    """Time the contenders that passed their gate; those without one (a copy, a floor) are always timed.

    Args:
        contenders: name -> call without arguments.
        gates: name -> verdict.
        device: where they run.
        repeat: rounds.
        budget_s: soft limit, see :func:`interleave`.
        memory: measure memory.
        warmup: untimed calls of each first.
        what: for the progress line.
        seldom: slow contenders, see :func:`interleave`; their memory is not measured.
        probes: calls that take their turns with the contenders and are only timed.
        resident: measure the growth of the process as well (CPU only).

    Returns:
        name -> Measured; a contender that failed has no timing and a note.
    """
    probes = probes or {}
    entries = {name: Measured(gate=gates.get(name)) for name in (*contenders, *probes)}
    runnable: dict[str, Call] = {}
    for name, call in contenders.items():
        verdict = gates.get(name)
        if verdict is not None and not verdict.passed:
            entries[name].note = f"wrong result: {verdict.what} off by {verdict.error:.1e} ({verdict.allowed:.1e} allowed)"
        else:
            runnable[name] = call
    with progress(f"timing {what}" if what else "timing"):
        timings = interleave(
            {**runnable, **probes},
            device=device,
            repeat=repeat,
            budget_s=budget_s,
            warmup=warmup,
            seldom=seldom,
        )
    for name, timing in timings.items():
        entries[name].timing = timing
    for name, call in runnable.items():
        if memory and name not in seldom and (found := memory_of(call, device)):
            entries[name].peak_bytes, entries[name].temporary_bytes = found.peak, found.temporary
        if resident and name not in seldom and torch.device(device).type == "cpu":
            entries[name].resident_bytes = resident_growth(call)
        entries[name].energy = energy_per_call(call, device)
    return entries


# ----------------------------------------------------------------------------------------------------------- output


def save(result: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a result as JSON, whole or not at all; folders are made; returns the path. ValueError: against the schema."""
    schema.check(jsonable(result))
    write_json(path, result)
    return Path(path)


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; nan for no values."""
    return statistics.geometric_mean(values) if values else float("nan")
