"""Compile the sources against the headers of other torch releases: ``python -m tests.build.torch_headers VERSION ...``.

Nothing is installed: the headers are taken out of torch's smallest wheel (macOS; they are the same for all platforms).
Of torch only the stable ABI is unpacked, the headers without a library, the C shim and pybind11's copy, so a source that
includes more than these fails as well. Torch's own copy of pybind11 serves, as it does where the package is missing.

A wheel that cannot be had is said and passed over; what does not compile ends the run with status 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mixsyn_fast import _build

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64", "macosx_15_0_arm64")
WANTED = ("csrc/stable", "csrc/inductor/aoti_torch", "headeronly")
PREFIXES = (*(f"torch/include/torch/{name}/" for name in WANTED), "torch/include/pybind11/", "torch/version.py")
STANDARDS = (17, 20)  # ours, and torch's own since 2.12


def headers(version: str, folder: Path) -> _build.Torch | str:
    """Return a torch of headers alone in ``folder``, downloaded unless it is there; or why it cannot be had."""
    root = folder / version / "torch"
    if not (root / "version.py").is_file():
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += [
                "--no-cache-dir",
                "--only-binary=:all:",
                "--python-version=3.12",
                "--dest",
                place,
                f"torch=={version}",
            ]
            command += [f"--platform={name}" for name in PLATFORMS]
            said = subprocess.run(command, capture_output=True, text=True)
            wheels = list(Path(place).glob("*.whl"))
            if said.returncode != 0 or len(wheels) != 1:
                return (said.stderr.strip().splitlines() or ["pip brought no wheel"])[-1]
            with zipfile.ZipFile(wheels[0]) as wheel:
                # version.py last: it says that the rest is complete
                names = sorted(name for name in wheel.namelist() if name.startswith(PREFIXES))
                for name in names:
                    wheel.extract(name, folder / version)
    return _build.Torch(root, version, None)


def failures(torch: _build.Torch, csrc: Path) -> tuple[int, list[str]]:
    """Compile every source without writing an object; return the number of compilations and the errors."""
    environ = {**os.environ, "FORCE_CPU": "1"}
    base = _build.configure(jit=True, torch=torch, csrc=csrc, environ=environ)
    jobs = [(replace(base, standard=standard), unit) for standard in STANDARDS for unit in _build.translation_units(base)]
    nvcc = _build.find_nvcc()
    if nvcc is not None:  # the torch side of the CUDA kernels needs CUDA's headers, and no nvcc
        cuda = replace(base, nvcc=nvcc[0], nvcc_version=nvcc[1])
        wrappers = [_build.Unit(path.relative_to(base.csrc)) for path in sorted(base.csrc.glob("*_cuda.cpp"))]
        jobs += [(replace(cuda, standard=standard), unit) for standard in STANDARDS for unit in wrappers]

    def compiled(job: tuple[_build.Config, _build.Unit]) -> str | None:
        config, unit = job
        command = _build.compile_command(config, unit, Path(os.devnull))
        own = _build.pybind11_include()
        words = [word for at, word in enumerate(command) if not set(own) & set(command[at : at + 2])]
        words = [word for word in words if word not in ("-MD", "-MF", f"{os.devnull}.d")]
        said = subprocess.run([*words, "-fsyntax-only"], capture_output=True, text=True)
        return None if said.returncode == 0 else f"{unit} as C++{config.standard}:\n{said.stderr}"

    with ThreadPoolExecutor(_build.max_jobs([unit for _, unit in jobs])) as pool:
        return len(jobs), [words for words in pool.map(compiled, jobs) if words is not None]


def main(versions: Sequence[str], csrc: Path = ROOT / "csrc") -> int:
    """Compile against each version; return the exit status."""
    status = 0
    for version in versions:
        start = time.monotonic()
        torch = headers(version, ROOT / "build" / "torch_headers")
        if isinstance(torch, str):
            print(f"torch {version}: its headers cannot be had here, nothing was compiled against them: {torch}")
            continue
        count, words = failures(torch, csrc)
        print(f"torch {version}: {count - len(words)} of {count} compilations succeed ({time.monotonic() - start:.0f} s)")
        if words:
            print("\n".join(words), file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
