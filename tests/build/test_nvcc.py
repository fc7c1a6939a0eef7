"""The CUDA sources compile without a GPU: kernels for sm_80 and sm_90, wrappers against torch's stable headers.

ptxas reports what each kernel takes; spilled registers and stack frames are errors.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mixsyn_fast import _build

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = sorted(CSRC.glob("kernels/*.cu"))
WRAPPERS = sorted(CSRC.glob("*_cuda.cpp"))
ARCHS = ("sm_80", "sm_90")
NVCC = _build.find_nvcc()


class Report(NamedTuple):
    """What ptxas says of one kernel."""

    name: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def parse(text: str) -> list[Report]:
    """Read ptxas -v."""
    return [
        Report(m["name"], int(m["registers"]), int(m["stack"]), int(m["stores"]), int(m["loads"]))
        for m in ENTRY.finditer(text)
    ]


def readable(names: list[str]) -> list[str]:
    """Demangled names, without the parts that all of them share."""
    if shutil.which("c++filt"):
        done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
        names = done.stdout.splitlines()
    return [re.sub(r"mixsyn_fast::kernels::|\(anonymous namespace\)::|^void |\(.*", "", name) for name in names]


def compile_kernels(source: Path, arch: str, folder: Path) -> str:
    """Compile one file with the flags of the build and return what the compiler prints."""
    assert NVCC is not None
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-DNDEBUG", "-Werror", "all-warnings"]
    target = folder / f"{source.stem}.{arch}.o"
    command = [str(NVCC[0]), *flags, f"-arch={arch}", "-Xptxas", "-v", f"-I{CSRC}", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future[str]]]:
    """All compilations, two at a time, longest first."""
    folder = tmp_path_factory.mktemp("nvcc")
    jobs = sorted(((s, a) for s in KERNELS for a in ARCHS), key=lambda job: -job[0].stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        yield {(s.name, a): pool.submit(compile_kernels, s, a, folder) for s, a in jobs}


@pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA kernels are not compiled here")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.name)
def test_no_spills_and_no_stack(
    source: Path,
    arch: str,
    reports: dict[tuple[str, str], Future[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = reports[source.name, arch].result()
    kernels = parse(text)
    assert kernels and len(kernels) == text.count("Compiling entry function"), text
    assert text.count("bytes stack frame") == len(kernels), "a device function was not inlined"
    most = max(kernels, key=lambda k: k.registers)
    with capsys.disabled():
        widest = readable([most.name])[0]
        low = min(k.registers for k in kernels)
        print(f"\n  {source.name} {arch}: {len(kernels)} kernels, {low} to {most.registers} registers ({widest})")
    bad = [k for k in kernels if k.stack or k.spill_stores or k.spill_loads]
    lines = [f"{name}: {k[1:]}" for k, name in zip(bad, readable([k.name for k in bad]), strict=True)]
    assert not bad, "registers, stack, spill stores, spill loads:\n" + "\n".join(lines)
    for k in kernels:  # the launch bounds promise that a block of the kernel can run at all
        assert k.registers <= 128, f"{readable([k.name])[0]}: {k.registers} registers"


def test_the_report_is_read() -> None:
    text = (
        "ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1aPf\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size\n"
    )
    assert parse(text * 2) == [Report("_Z1aPf", 40, 8, 4, 12)] * 2


def cuda_include() -> Path | None:
    """Folder of cuda_runtime_api.h, if there is one."""
    if NVCC is None:
        return None
    folder = _build.cuda_home(NVCC[0]) / "include"
    return folder if (folder / "cuda_runtime_api.h").is_file() else None


@pytest.mark.skipif(cuda_include() is None, reason="no CUDA headers")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("source", WRAPPERS, ids=lambda p: p.name)
def test_wrappers_compile(source: Path, standard: str) -> None:
    """Against the stable ABI of torch 2.11, with the part of the C shim that CUDA brings."""
    torch_include = Path(torch.__file__).parent / "include"
    if not (torch_include / "torch" / "csrc" / "stable" / "library.h").is_file():
        pytest.skip("torch's headers are not installed")
    command = ["g++", f"-std={standard}", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", f"-I{CSRC}"]
    command += ["-isystem", str(torch_include), "-isystem", str(cuda_include()), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_know_no_torch() -> None:
    """Raw pointers and a stream: that is why they compile in seconds and without torch."""
    for path in CSRC.glob("kernels/*"):
        assert "#include <torch" not in path.read_text(), path.name
