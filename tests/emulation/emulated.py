"""Build the CUDA sources for the CPU (tests/emulation/cuda_runtime.h); ops in torch.ops.mixsyn_fast_emulated.

The wrappers and kernels are the real ones; only the launch and the intrinsics are replaced. Slow: small shapes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
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
    """Compile what has changed since any earlier build, and return the shared object.

    Objects are kept under the content of their source, of the headers it includes, and of the flags, in one folder for
    all processes and copies of the sources: in MIXSYN_FAST_CACHE, or else temporary. One process builds, others wait.

    CUDA_EMULATION_FLAGS adds flags, such as ``-fsanitize=address,undefined`` (which catches accesses beyond shared
    memory as well; preload libasan, and set ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0).

    Raises:
        RuntimeError: the compiler's message.
    """
    extra = os.environ.get("CUDA_EMULATION_FLAGS", "").split()
    sources = sorted(CSRC.glob("kernels/*.cu")) + sorted(CSRC.glob("*_cuda.cpp"))
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-w", "-DMIXSYN_EMULATE_CUDA", *extra]
    flags += [
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-Itests/emulation",
        "-Icsrc",
        "-isystem",
        str(torch_root() / "include"),
    ]
    compile_one = [str(compiler()), "-x", "c++", *flags, "-c"]
    common = repr((compile_one, torch.__version__))
    root = Path(os.environ.get("MIXSYN_FAST_CACHE") or tempfile.gettempdir()) / f"mixsyn_fast-emulation-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = {source: _key(common, *(path.read_bytes() for path in [source, *_included(source)])) for source in sources}
    target = root / f"{_key(*keys.values())}.so"
    if target.is_file():
        return target
    with FileLock(root / "lock"):
        missing = {source: root / f"{key}.o" for source, key in keys.items() if not (root / f"{key}.o").is_file()}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda item: _run([*compile_one, str(item[0].relative_to(ROOT))], item[1]), missing.items()))
        lib = torch_root() / "lib"
        link = [str(compiler()), "-shared", *extra, *(str(root / f"{key}.o") for key in keys.values())]
        _run([*link, f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}"], target)
    return target


def _key(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return whole.hexdigest()[:24]


def _included(source: Path) -> list[Path]:
    """Headers of this repository that a source includes, directly or not, in a fixed order."""
    found: list[Path] = []
    pending = [source]
    while pending:
        path = pending.pop()
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.MULTILINE):
            places = (path.parent / name, CSRC / name, ROOT / "tests" / "emulation" / name)
            header = next((place.resolve() for place in places if place.is_file()), None)
            if header is not None and header not in found:
                found.append(header)
                pending.append(header)
    return sorted(found)


def _run(command: list[str], target: Path) -> None:
    """Run a compiler; its output appears whole or not at all."""
    part = target.with_suffix(f".{os.getpid()}{target.suffix}")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    os.replace(part, target)


@functools.cache
def ops() -> Any:
    """Return torch.ops.mixsyn_fast_emulated, with the schemas of the package's own ops."""
    for path in sorted((ROOT / "mixsyn_fast" / "ops").glob("*.py")):
        importlib.import_module(f"mixsyn_fast.ops.{path.stem}")  # registers the schemas
    names = [n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("mixsyn_fast::")]
    global _library
    _library = torch.library.Library("mixsyn_fast_emulated", "DEF")
    for name in names:
        schema = str(getattr(torch.ops.mixsyn_fast, name).default._schema)
        _library.define(schema.split("::", 1)[1])
    torch.ops.load_library(str(build()))
    return torch.ops.mixsyn_fast_emulated
