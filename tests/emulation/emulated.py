"""Build the CUDA sources for the CPU (tests/emulation/cuda_runtime.h); ops in torch.ops.mixsyn_fast_emulated.

The wrappers and kernels are the real ones; only the launch and the intrinsics are replaced. Slow: small shapes.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.emulation import objects
from tests.emulation.objects import ROOT

CSRC = ROOT / "csrc"


def missing() -> str | None:
    """Say what the emulation lacks on this machine, or return None."""
    if compiler() is None:
        return "no C++ compiler for the CUDA emulation"
    if not (torch_root() / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
        return "torch's headers are not installed"
    return None


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def torch_root() -> Path:
    return Path(torch.__file__).resolve().parent


def build() -> Path:
    """Compile what has changed since any earlier build (tests/emulation/objects.py), and return the shared object.

    CUDA_EMULATION_FLAGS adds flags, such as ``-fsanitize=address,undefined`` (which catches accesses beyond shared
    memory as well; preload libasan, and set ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0).

    Raises:
        RuntimeError: the compiler's message.
    """
    extra = os.environ.get("CUDA_EMULATION_FLAGS", "").split()
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-w", "-DMIXSYN_EMULATE_CUDA", *extra]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-Itests/emulation", "-Icsrc"]
    compile_one = [str(compiler()), "-x", "c++", *flags, "-isystem", str(torch_root() / "include")]
    sources = sorted(CSRC.glob("kernels/*.cu")) + sorted(CSRC.glob("*_cuda.cpp"))
    lib = torch_root() / "lib"
    link = [str(compiler()), "-shared", *extra, "{}", f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}"]
    units = {(source, torch.__version__): compile_one for source in sources}
    return objects.build("mixsyn_fast-emulation", units, link, [CSRC, ROOT / "tests" / "emulation"])


@functools.cache
def ops() -> Any:
    """Return torch.ops.mixsyn_fast_emulated, with the schemas of the package's own ops."""
    for path in sorted((ROOT / "mixsyn_fast" / "ops").glob("*.py")):
        importlib.import_module(f"mixsyn_fast.ops.{path.stem}")  # registers the schemas
    library = build()
    names = [n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("mixsyn_fast::")]
    global _library
    _library = torch.library.Library("mixsyn_fast_emulated", "DEF")
    for name in names:
        schema = str(getattr(torch.ops.mixsyn_fast, name).default._schema)
        _library.define(schema.split("::", 1)[1])
    torch.ops.load_library(str(library))
    return torch.ops.mixsyn_fast_emulated
