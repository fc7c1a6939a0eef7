"""What _build.py decides: CUDA, architectures, jobs, causes of failures, the CUDA side without a GPU."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mixsyn_fast import _build

CUDA_TORCH = _build.Torch(Path("/nowhere/torch"), "2.12.0+cu130", "13.0")


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    """A source folder with a CUDA part."""
    folder = tmp_path / "csrc"
    (folder / "kernels").mkdir(parents=True)
    (folder / "a_cpu.cpp").write_text("int a;\n")
    (folder / "a_cuda.cpp").write_text("int b;\n")
    (folder / "kernels" / "a.cu").write_text("int c;\n")
    return folder


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with g++ and a pretended nvcc 13.0, on a machine without a GPU."""
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    script(home / "bin" / "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    monkeypatch.setattr(_build, "visible_archs", tuple)
    monkeypatch.setattr(_build, "USUAL_NVCC", tmp_path / "none" / "nvcc")
    return {"PATH": os.environ["PATH"], "CUDA_HOME": str(home)}


def script(path: Path, text: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_cuda_needs_toolkit_and_torch(csrc, environ):
    config = _build.configure(jit=False, torch=CUDA_TORCH, csrc=csrc, environ=environ)
    assert config.cuda and config.archs == _build.DEFAULT_ARCHS
    names = [unit.name for unit in _build.translation_units(config)]
    assert names == ["a_cpu.cpp", "a_cuda.cpp", "a.cu"]
    cpu_torch = replace(CUDA_TORCH, cuda=None)
    config = _build.configure(jit=False, torch=cpu_torch, csrc=csrc, environ=environ)
    assert not config.cuda and "CPU build" in config.cuda_reason
    assert [unit.name for unit in _build.translation_units(config)] == ["a_cpu.cpp"]


def test_force_cpu(csrc, environ):
    config = _build.configure(jit=False, torch=CUDA_TORCH, csrc=csrc, environ={**environ, "FORCE_CPU": "1"})
    assert not config.cuda and config.cuda_reason == "FORCE_CPU=1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CUDA_HOME": "/nowhere", "PATH": "/nowhere", "CXX": "/usr/bin/g++"}, "no nvcc found"),
        ({"cuda": None}, "CPU build"),
        ({"cuda": "12.8"}, "differ in their major version"),
    ],
)
def test_force_cuda_without_what_it_needs(csrc, environ, change, words):
    if not Path(change.get("CXX", "/")).exists():
        pytest.skip("g++ lies elsewhere")
    torch = replace(CUDA_TORCH, cuda=change.pop("cuda")) if "cuda" in change else CUDA_TORCH
    with pytest.raises(_build.BuildError, match=words) as caught:
        _build.configure(jit=False, torch=torch, csrc=csrc, environ={**environ, **change, "FORCE_CUDA": "1"})
    assert caught.value.cause == "nvcc" and "CUDA_HOME" in caught.value.hint


def test_architectures(csrc, environ, monkeypatch):
    def archs(jit: bool = False, **env: str) -> tuple[str, ...]:
        return _build.configure(jit=jit, torch=CUDA_TORCH, csrc=csrc, environ={**environ, **env}).archs

    assert archs(TORCH_CUDA_ARCH_LIST="8.6 9.0a;12.0+PTX") == ("8.6", "9.0a", "12.0+PTX")
    assert archs(jit=True) == (), "no GPU: a just-in-time build leaves the kernels out"
    assert archs(jit=True, TORCH_CUDA_ARCH_LIST="9.0") == ("9.0",)
    assert archs(jit=True, FORCE_CUDA="1") == _build.DEFAULT_ARCHS
    monkeypatch.setattr(_build, "visible_archs", lambda: ("9.0",))
    assert archs() == archs(jit=True) == ("9.0",)
    with pytest.raises(_build.BuildError, match="got 'Hopper'"):
        archs(TORCH_CUDA_ARCH_LIST="Hopper")


def test_arch_flags():
    assert _build.arch_flags(["8.0", "9.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0", "strange"])
def test_old_torch_is_refused(csrc, environ, version):
    with pytest.raises(_build.BuildError, match="too old"):
        _build.configure(jit=False, torch=replace(CUDA_TORCH, version=version), csrc=csrc, environ=environ)


def test_torch_is_found_without_importing_it():
    code = "import sys\nfrom importlib.util import spec_from_file_location, module_from_spec\n"
    code += f"spec = spec_from_file_location('b', {_build.__file__!r})\n"
    code += "b = module_from_spec(spec)\nsys.modules['b'] = b\nspec.loader.exec_module(b)\n"
    code += "found = b.find_torch()\nprint(found.version, found.cuda, 'torch' in sys.modules)"
    import sys

    import torch

    out = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert out == [torch.__version__, str(torch.version.cuda), "False"]


@pytest.mark.parametrize(
    ("words", "status", "cause"),
    [
        (
            "error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!",
            1,
            "host-compiler",
        ),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_999'", 1, "nvcc"),
        ("sh: 1: cicc: not found", 127, "nvcc"),
        ("a.cpp:1:10: fatal error: cuda_runtime.h: No such file or directory", 1, "nvcc"),
        ("cc1plus: out of memory allocating 65536 bytes", 1, "memory"),
        ("", -9, "memory"),
        ("/usr/bin/ld: final link failed: No space left on device", 1, "space"),
        ("[Errno 122] Disk quota exceeded", 1, "space"),
        ("a.cpp:3:1: error: expected ';' before '}' token", 1, "source-code"),
    ],
)
def test_diagnosis(words, status, cause):
    found, hint = _build.diagnose(words, status)
    assert found == cause and hint


def test_message_of_nvcc_reaches_the_user(csrc, environ, tmp_path):
    """A compiler too new for nvcc: nvcc's words and the hint."""
    nvcc = Path(environ["CUDA_HOME"]) / "bin" / "nvcc"
    config = _build.configure(jit=False, torch=CUDA_TORCH, csrc=csrc, environ=environ)
    script(
        nvcc,
        "echo '#error -- unsupported GNU version! gcc versions later than 15 are not supported!'; exit 1",
    )
    folder = tmp_path / "private"
    folder.mkdir()
    with pytest.raises(_build.BuildError, match="unsupported GNU version") as caught:
        _build.build(config, folder, folder / "_C.so")
    assert "compiling a.cu failed" in caught.value.message and "CXX=g++" in caught.value.hint


def test_jobs(csrc, monkeypatch):
    units = [Path("a.cpp")] * 64
    assert _build.max_jobs(units, {"MAX_JOBS": "3"}) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(_build, "free_memory_gib", lambda: 4.5)
    assert _build.max_jobs(units, {}) == 4
    assert _build.max_jobs([*units, Path("a.cu")], {}) == 2
    monkeypatch.setattr(_build, "free_memory_gib", lambda: 0.1)
    assert _build.max_jobs(units, {}) == 1
    monkeypatch.setattr(_build, "free_memory_gib", lambda: float("inf"))
    assert _build.max_jobs(units[:5], {}) == 5


def test_edit_during_the_build_is_noticed(csrc, environ, tmp_path):
    config = _build.configure(jit=False, torch=replace(CUDA_TORCH, cuda=None), csrc=csrc, environ=environ)
    (csrc / "a_cpu.cpp").write_text("int changed;\n")
    (tmp_path / "private").mkdir()
    with pytest.raises(_build.BuildError, match="changed while they were read"):
        _build.build(config, tmp_path / "private", tmp_path / "_C.so")


def test_object_links_torch_and_nothing_of_the_machine(tmp_path, repository):
    """libtorch_cpu and libc10 are named in the object; a wheel's finds torch beside itself."""
    config = _build.configure(jit=False, csrc=repository / "csrc", environ={**os.environ, "FORCE_CPU": "1"})
    command = _build.link_command(config, [tmp_path / "a.o"], tmp_path / "_C.so")
    (tmp_path / "a.cpp").write_text("int a;\n")
    subprocess.run([*config.compiler, "-fPIC", "-c", tmp_path / "a.cpp", "-o", tmp_path / "a.o"], check=True)
    subprocess.run(command, check=True)
    content = (tmp_path / "_C.so").read_bytes()
    assert b"libtorch_cpu.so" in content and b"libc10.so" in content and b"$ORIGIN/../torch/lib" in content
    assert b"libtorch_python" not in content


def test_no_package_wide_fast_math(repository):
    config = _build.configure(jit=False, csrc=repository / "csrc", environ={**os.environ, "FORCE_CPU": "1"})
    flags = [*_build.cxx_flags(config), *_build.nvcc_flags(config)]
    assert not {"-ffast-math", "-Ofast", "--use_fast_math", "-march=native", "-ffp-contract=fast"} & set(flags)


def test_torch_side_of_the_cuda_kernels_compiles(repository, tmp_path):
    """The wrappers with USE_CUDA against torch's headers; the kernels themselves are nvcc's business."""
    found = _build.find_nvcc()
    torch = _build.find_torch()
    wrappers = sorted((repository / "csrc").glob("*_cuda.cpp"))
    if found is None or torch is None or not wrappers:
        pytest.skip("no CUDA toolkit on this machine")
    config = _build.configure(
        jit=False,
        torch=replace(torch, cuda=found[1]),
        csrc=repository / "csrc",
        environ={**os.environ, "TORCH_CUDA_ARCH_LIST": "9.0"},
    )
    assert config.cuda
    for wrapper in wrappers:
        command = _build.compile_command(config, wrapper, tmp_path / f"{wrapper.stem}.o")
        said = subprocess.run([*command, "-fsyntax-only"], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
