"""Tools for the tests of the loader: tiny sources, a compiler that counts, processes to start and to kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

TINY_OP = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace {
int64_t forty_two() { return 42; }
void boxed(StableIValue* stack, uint64_t, uint64_t) { stack[0] = torch::stable::detail::from(forty_two()); }
}  // namespace

STABLE_TORCH_LIBRARY(mixsyn_tiny, m) { m.def("forty_two() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(mixsyn_tiny, CompositeExplicitAutograd, m) { m.impl("forty_two", &boxed); }
"""
PLAIN = 'extern "C" int mixsyn_plain() { return 42; }\n'

# Loads the extension and prints one JSON line: what the process would know.
LOAD_FULLY = """
import json, sys, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from mixsyn_fast import extension
    extension.ensure_loaded()
report = extension.build_report()
report["warnings"] = [str(warning.message) for warning in caught]
print(json.dumps(report))
"""


# The same without the seconds that importing torch and the package takes: the loader needs
# neither to do its work.
LOAD = (
    f"""
import importlib.util, sys, types
def stub(name, path):
    module = types.ModuleType(name)
    module.__spec__, module.__path__ = importlib.util.find_spec(name), path
    sys.modules[name] = module
stub("torch", [])
stub("mixsyn_fast", [{str(REPOSITORY / "mixsyn_fast")!r}])
"""
    + LOAD_FULLY
)


class Bench:
    """One test's own cache, home, temporary folder, sources, compiler; starts processes that see those."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.log = root / "compilations"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MIXSYN_FAST_")}
        for name in ("LD_PRELOAD", "CXX", "MAX_JOBS", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "XDG_CACHE_HOME"):
            self.env.pop(name, None)
        (root / "tmp").mkdir()
        (root / "home").mkdir()
        self.env |= {
            "MIXSYN_FAST_CACHE": str(self.cache),
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "tmp"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "FORCE_CPU": "1",
        }

    def sources(self, **files: str) -> Path:
        """Write ``<name>_cpu.cpp`` files and let the loader compile those instead of the real ones."""
        folder = self.root / "csrc"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}_cpu.cpp").write_text(text)
        self.env["MIXSYN_FAST_CSRC"] = str(folder)
        return folder

    def counting_compiler(self, before: str = "") -> None:
        """Set CXX to the real compiler behind a script that logs every compilation, then runs ``before``."""
        script = self.root / "counting-cxx"
        script.write_text(
            "#!/bin/sh\n"
            f'case " $* " in *" -c "*) echo $$ >> {self.log};\n{before}\n;; esac\n'
            f'exec {self.env.get("REAL_CXX", "g++")} "$@"\n'
        )
        script.chmod(0o755)
        self.env["CXX"] = str(script)

    def compilations(self) -> int:
        """Return how many files have been given to the compiler so far."""
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def start(self, code: str = LOAD, **env: str) -> subprocess.Popen[str]:
        """Start a Python process in an empty folder."""
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**self.env, **env},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], timeout: float = 240) -> dict[str, Any]:
        """Wait for a process started with ``LOAD`` and return what it printed."""
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{out}\n{err}"
        report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        report["stderr"] = err
        return report

    def load(self, **env: str) -> dict[str, Any]:
        """Load the extension in a new process and return its report."""
        return self.finish(self.start(**env))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A workbench of the test's own."""
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def tiny_op() -> str:
    """Source of an op on the stable ABI."""
    return TINY_OP


@pytest.fixture(scope="session")
def plain() -> str:
    """Source that compiles in a tenth of a second and registers nothing."""
    return PLAIN


@pytest.fixture(scope="session")
def load_fully() -> str:
    """Code that loads the extension in the way a user's program does."""
    return LOAD_FULLY


@pytest.fixture(scope="session")
def repository() -> Path:
    """The clone."""
    return REPOSITORY
