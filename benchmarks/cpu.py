"""A machine with a lower instruction set, on one with a higher: the option --cpu of the benchmarks.

Ours is lowered by MIXSYN_FAST_CPU. So are torch and its libraries, for the comparison is of two programs on one machine: the
owner of a processor with SSE2 alone has torch's DEFAULT kernels and oneDNN's SSE4.1 ones. All of them read their variable
when they are loaded, so the program starts anew with the variables set. The JSON says under `machine` what was in force.
torch.compile is left out: its code for another processor than this one gave wrong results and crashed (torch 2.13).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

import torch

from mixsyn_fast import extension

RESTRICTIONS: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "MIXSYN_FAST_CPU": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "baseline": {
        "MIXSYN_FAST_CPU": "baseline",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",  # SSE2; on processors of other makers MKL does not heed MKL_ENABLE_INSTRUCTIONS
    },
}
VARIABLES = tuple(dict.fromkeys(name for settings in RESTRICTIONS.values() for name in settings))


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --cpu."""
    text = "as on a machine that has no more than this, torch included; result files get the name as a suffix"
    parser.add_argument("--cpu", choices=sorted(RESTRICTIONS), help=text)


def in_force() -> dict[str, str]:
    """Return the variables that restrict this process, as they are set."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def suffix(device: torch.device, name: str | None) -> str:
    """Return the end of a result file's name: ``cpu``, ``cpu_avx2``, ``cuda``."""
    return device.type + (f"_{name}" if name else "")


def restrict(name: str | None, device: torch.device | str = "cpu") -> None:
    """Start this program anew with the variables of a restriction, unless they are set; to be called from a ``main``.

    Raises:
        ValueError: the device is no CPU, or the restriction is not in force although its variables are set.
    """
    if name is None:
        return
    if torch.device(device).type != "cpu":
        raise ValueError(f"--cpu: expected --device cpu with it, got {device}")
    wanted = RESTRICTIONS[name]
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})
    extension.ensure_loaded()
    found = extension.instruction_set(), torch.backends.cpu.get_cpu_capability().lower()
    if found != (name, wanted["ATEN_CPU_CAPABILITY"]):
        raise ValueError(f"--cpu: expected {name} to be in force, got {found[0]} for our kernels and {found[1]} for torch's")
