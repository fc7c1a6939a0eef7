"""``mixsyn-fast doctor``: what this installation is made of, and the backend of every op on every device.

With ``--measure`` every op is timed on this machine against plain PyTorch, in less than a minute, behind the gate of
correctness.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measure.rows import Row

_VARIABLES = (
    "CXX",
    "CUDA_HOME",
    "TORCH_CUDA_ARCH_LIST",
    "FORCE_CPU",
    "FORCE_CUDA",
    "MAX_JOBS",
    "OMP_NUM_THREADS",
)
_PACKAGES = ("torch", "triton", "numpy", "pybind11", "filelock")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Look at everything that decides which kernels run; compiles the extension if that has not happened yet.

    Returns:
        JSON-serialisable: ``versions``, ``machine``, ``environment`` (the variables in force), ``build``
        (:func:`mixsyn_fast.extension.build_report`), ``ops`` (op -> device -> ``backend`` and ``reason``; on the CPU also
        ``losses``, the uses that are left to the reference because it was measured faster),
        ``healthy`` (False when the extension was wanted and could not be had).
    """
    import torch

    from . import __version__, backend, extension
    from .machine import cores, cpu_name

    extension.ensure_loaded()
    build = extension.build_report()
    no_cuda = None
    if torch.version.cuda is None:
        no_cuda = "this torch is a CPU build"
    elif not torch.cuda.is_available():
        no_cuda = "no CUDA device is visible"
    ops: dict[str, dict[str, dict[str, Any]]] = {}
    for op in backend.registered_ops():
        ops[op] = {}
        for device in ("cpu", "cuda"):
            if device == "cuda" and no_cuda is not None:
                ops[op][device] = {"backend": "none", "reason": no_cuda}
                continue
            chosen, reason = backend.explain(op, torch.device(device))
            ops[op][device] = {"backend": chosen, "reason": reason}
            if device == "cpu" and build["loaded"] and backend.current_backend() == "auto":
                ops[op][device]["losses"] = [{**loss._asdict(), "reason": str(loss)} for loss in backend.losses(op)]
    variables = sorted(name for name in os.environ if name.startswith("MIXSYN_FAST_") or name in _VARIABLES)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "versions": {
            "mixsyn_fast": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "torch_cuda": torch.version.cuda,
        },
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_name(),
            "cores": cores(),
            "torch_threads": torch.get_num_threads(),
            "instruction_set": extension.instruction_set(),
            "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
            "gpus": gpus,
        },
        "environment": {name: os.environ[name] for name in variables},
        "build": build,
        "ops": ops,
        "healthy": bool(build["loaded"]),
    }


def render(facts: dict[str, Any]) -> str:
    """Return the facts of :func:`examine` as text for a person."""
    build, manifest = facts["build"], facts["build"]["manifest"]
    lines = ["versions"]
    lines += [f"  {name:12} {version or 'not installed'}" for name, version in facts["versions"].items()]
    machine = facts["machine"]
    lines += ["machine", f"  {machine['system']}"]
    lines += [f"  {machine['cpu']}, {machine['cores']} cores, torch uses {machine['torch_threads']} threads"]
    lines += [
        f"  instructions: {machine['instruction_set'] or 'none of ours'} for our kernels, "
        f"{machine['torch_instruction_set'].lower()} for torch's"
    ]
    lines += [f"  {gpu}" for gpu in machine["gpus"]] or ["  no GPU visible"]
    lines += ["environment"]
    lines += [f"  {name}={value}" for name, value in facts["environment"].items()] or ["  nothing set"]
    lines += ["extension"]
    if build["loaded"]:
        kind = {"prebuilt": "prebuilt", "jit": "compiled just in time"}[build["origin"]]
        cuda = f"CUDA {manifest['cuda']} for {' '.join(manifest['archs'])}" if manifest.get("cuda") else "no CUDA"
        lines += [f"  {kind}, loaded in {build['seconds']} s: {build['path']}"]
        lines += [f"  {manifest.get('compiler')}; {cuda} ({manifest.get('cuda_reason')})"]
        lines += [f"  {len(manifest.get('units', []))} files compiled in {manifest.get('seconds')} s"]
    else:
        lines += ["  not available: " + str(build["failure"]).replace("\n", "\n    ")]
    lines += [f"  note: {note}" for note in build["notes"]]
    lines += [f"  cache: {build['cache']}"]
    lines += ["ops"]
    for op, devices in facts["ops"].items():
        for device, choice in devices.items():
            lines += [f"  {op:24} {device:5} {choice['backend']:10} {choice['reason']}".replace("\n", "\n    ")]
            if choice["backend"] == "native":
                lines += [f"  {'':30} {'reference':10} {loss['reason']}" for loss in choice.get("losses", ())]
    return "\n".join(lines)


def measure(seconds: float = 0.3) -> Iterator[Row]:
    """Time every op on its small row, float32 and bfloat16, on the CPU and on a GPU where there is one.

    Args:
        seconds: soft limit of one row and mode.
    """
    import torch

    from .backend import registered_ops
    from .measure import rows

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        yield from rows.measure(registered_ops(), ("float32", "bfloat16"), device, seconds=seconds)


def _measured(row: Row) -> dict[str, Any]:
    """A row as JSON: seconds of a call by contender (medians), which of plain PyTorch is fastest, and the ratio to it."""
    facts: dict[str, Any] = {name: getattr(row, name) for name in ("op", "case", "layout", "dtype", "device", "mode")}
    facts["seconds"] = {name: timing.median for name, timing in row.timings.items()}
    facts |= {"ours": row.own, "plain": row.plain, "ratio": row.ratio(row.plain) if row.own else None}
    return {**facts, "loss": row.loss, "wrong": row.wrong}


@dataclass(frozen=True)
class Options:
    """Options of `mixsyn-fast doctor`."""

    json: bool = False  # print one JSON object instead of text
    measure: bool = False  # time every op of this machine against plain PyTorch, in less than a minute


def main(options: Options) -> int:
    """Print the examination; return 0 when the extension is usable and 1 when it is not."""
    from .progress import progress

    facts = examine()
    if not options.json:
        print(render(facts), flush=True)
    if options.measure:
        facts["measured"] = []
        if not options.json:
            print("measured here: ours, the fastest of plain PyTorch, how many times faster ours is", flush=True)
        with progress("measuring every op") if options.json else contextlib.nullcontext():
            for row in measure():
                facts["measured"].append(_measured(row))
                if not options.json:
                    print(f"  {row.line()}", flush=True)
        losses = sum(row["loss"] for row in facts["measured"])
        if not options.json:
            print(f"  {len(facts['measured'])} rows, {losses} lost to plain PyTorch")
    if options.json:
        print(json.dumps(facts, indent=2))
    sys.stdout.flush()
    return 0 if facts["healthy"] else 1
