"""``mixsyn-fast doctor``: what this installation is made of, and the backend of every op on every device."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

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
        (:func:`mixsyn_fast.extension.build_report`), ``ops`` (op -> device -> ``backend`` and ``reason``),
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
    ops: dict[str, dict[str, dict[str, str]]] = {}
    for op in backend.registered_ops():
        ops[op] = {}
        for device in ("cpu", "cuda"):
            if device == "cuda" and no_cuda is not None:
                ops[op][device] = {"backend": "none", "reason": no_cuda}
                continue
            chosen, reason = backend.explain(op, torch.device(device))
            ops[op][device] = {"backend": chosen, "reason": reason}
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
    return "\n".join(lines)


@dataclass(frozen=True)
class Options:
    """Options of `mixsyn-fast doctor`."""

    json: bool = False  # print one JSON object instead of text


def main(options: Options) -> int:
    """Print the examination; return 0 when the extension is usable and 1 when it is not."""
    facts = examine()
    print(json.dumps(facts, indent=2) if options.json else render(facts))
    sys.stdout.flush()
    return 0 if facts["healthy"] else 1
