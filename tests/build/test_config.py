"""What _build.py decides: CUDA, architectures, jobs, causes of failures, the CUDA side without a GPU."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mixsyn_fast import _build
from tests.build import clang, torch_headers

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
    names = [str(unit) for unit in _build.translation_units(config)]
    assert names == ["a_cpu.cpp", "a_cuda.cpp", "kernels/a.cu"]
    cpu_torch = replace(CUDA_TORCH, cuda=None)
    config = _build.configure(jit=False, torch=cpu_torch, csrc=csrc, environ=environ)
    assert not config.cuda and "CPU build" in config.cuda_reason
    assert [str(unit) for unit in _build.translation_units(config)] == ["a_cpu.cpp"]


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
        ("a.cpp:1:10: fatal error: 'cuda_runtime.h' file not found", 1, "nvcc"),
        ("a.cpp:1:10: fatal error: vector: No such file or directory", 1, "compiler"),
        ("a.cpp:1:10: fatal error: 'vector' file not found", 1, "compiler"),
        ("a.cpp:1:10: fatal error: 'vectors.h' file not found", 1, "source-code"),
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
    assert "compiling kernels/a.cu failed" in caught.value.message and "CXX=g++" in caught.value.hint


def test_jobs(csrc, monkeypatch):
    units = [_build.Unit(Path("a.cpp"))] * 64
    assert _build.max_jobs(units, {"MAX_JOBS": "3"}) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(_build, "free_memory_gib", lambda: 4.5)
    assert _build.max_jobs(units, {}) == 4
    assert _build.max_jobs([*units, _build.Unit(Path("a.cu"))], {}) == 2
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


@pytest.fixture
def facts(repository, tmp_path) -> Path:
    """A source folder with the real csrc/cpu/isa.h and the names of two CPU kernels."""
    folder = tmp_path / "facts"
    (folder / "cpu").mkdir(parents=True)
    shutil.copy(repository / "csrc" / "cpu" / "isa.h", folder / "cpu")
    for name in ("a_cpu.cpp", "cpu/a.cpp", "cpu/b.cpp"):
        (folder / name).touch()
    return folder


ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="x86 and g++ only")


def machine(native: str) -> str:
    """A g++ that believes to be on a machine of this instruction set."""
    lacks = {"avx512": "", "avx2": "-mno-avx512f", "baseline": "-mno-avx -mno-fma"}[native]
    return f"g++ -march=native -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl {lacks}"


@ON_X86
def test_every_instruction_set_in_a_wheel_one_in_a_just_in_time_build(facts):
    def isas(jit: bool, native: str = "avx512", **env: str) -> tuple[str, ...]:
        environ = {"PATH": os.environ["PATH"], "CXX": f"{machine(native)}", **env}
        torch = _build.Torch(Path("/nowhere"), "2.12.0", None)
        config = _build.configure(jit=jit, torch=torch, csrc=facts, environ=environ)
        kernels = [unit for unit in _build.translation_units(config) if unit.isa]
        assert len(kernels) == 2 * len(config.isas) and {unit.isa for unit in kernels} == set(config.isas)
        return config.isas

    assert isas(jit=False) == isas(jit=False, MIXSYN_FAST_CPU="avx2") == ("avx512", "avx2", "baseline")
    assert isas(jit=False, native="baseline") == ("avx512", "avx2", "baseline"), "a wheel serves other machines"
    for native in ("avx512", "avx2", "baseline"):
        assert isas(jit=True, native=native) == (native,)
    assert isas(jit=True, MIXSYN_FAST_CPU="avx2") == ("avx2",)
    assert isas(jit=True, MIXSYN_FAST_CPU="avx2", MIXSYN_FAST_SANITIZE="1") == ("avx512", "avx2", "baseline"), "one, for all"
    assert isas(jit=True, native="avx2", MIXSYN_FAST_CPU="avx512") == ("avx2",), "lowered, never raised"
    with pytest.raises(_build.BuildError, match="expected one of avx512, avx2, neon, baseline, got 'sse'"):
        isas(jit=True, MIXSYN_FAST_CPU="sse")


@ON_X86
@pytest.mark.parametrize(
    ("compiler", "sets", "native"),
    [
        (["g++", "-U__x86_64__"], ("baseline",), "baseline"),
        (["g++", "-U__x86_64__", "-D__aarch64__"], ("neon",), "neon"),
        ([*machine("avx512").split(), "-D__clang__"], ("avx512", "avx2", "baseline"), "avx512"),
    ],
)
def test_instruction_sets_of_other_architectures_and_compilers(facts, compiler, sets, native):
    assert _build.instruction_sets(compiler, facts) == (sets, native)


ARM = """*-dM*) for file in "$@"; do :; done; exec g++ -U__x86_64__ -D__aarch64__ -dM -E -x c++ "$file";;"""


def commands(config: _build.Config) -> tuple[list[str], list[str]]:
    """How the kernel of a folder is compiled, and what links it."""
    kernel = next(unit for unit in _build.translation_units(config) if unit.isa)
    compiled = _build.compile_command(config, kernel, Path("a.o"))
    return compiled, _build.link_command(config, [Path("a.o")], Path("_C.so"))


@ON_X86
def test_apple_silicon(facts, tmp_path):
    """As its clang is documented: no such word as -march=native; another linker, with words of its own."""
    script(
        tmp_path / "clang++",
        f"""case "$*" in
--version) echo 'Apple clang version 15.0.0 (clang-1500.3.9.4)';;
-dumpmachine) echo arm64-apple-darwin23.5.0;;
*-march=native*) echo "clang: error: the clang compiler does not support '-march=native'" >&2; exit 1;;
{ARM}
*) exit 1;;
esac""",
    )
    torch = _build.Torch(Path("/nowhere/torch"), "2.12.0", None)
    environ = {"PATH": os.environ["PATH"], "CXX": str(tmp_path / "clang++")}
    for jit, rpath in ((True, "/nowhere/torch/lib"), (False, "@loader_path/../torch/lib")):
        config = _build.configure(jit=jit, torch=torch, csrc=facts, environ=environ)
        assert config.isas == ("neon",) and config.target == "arm64-apple-darwin23.5.0"
        compiled, linked = commands(config)
        assert "-DMIXSYN_ISA=neon" in compiled
        assert not [word for word in compiled if word.startswith(("-march", "-mcpu", "-fopenmp", "-Wno-maybe"))]
        assert not {"-shared", "-Wl,--no-as-needed", "-lgomp"} & set(linked)
        assert "-dynamiclib" in linked and linked[linked.index("-undefined") + 1] == "dynamic_lookup"
        assert [word for word in linked if "rpath" in word] == [f"-Wl,-rpath,{rpath}"]


@ON_X86
def test_cross_compiler_for_arm(facts, tmp_path):
    """It knows no native processor; instruction sets and flags are those of its target, not of this machine."""
    script(
        tmp_path / "cross-g++",
        f"""case "$*" in
--version) echo 'cross-g++ (Debian 12.2.0-14) 12.2.0';;
-dumpmachine) echo aarch64-linux-gnu;;
*=native*) echo "cc1plus: error: unknown value 'native'" >&2; exit 1;;
{ARM}
esac""",
    )
    torch = _build.Torch(Path("/nowhere/torch"), "2.12.0", None)
    environ = {"PATH": os.environ["PATH"], "CXX": str(tmp_path / "cross-g++")}
    config = _build.configure(jit=True, torch=torch, csrc=facts, environ={**environ, "MIXSYN_FAST_CPU": "baseline"})
    assert config.isas == ("neon",) and config.target == "aarch64-linux-gnu"
    compiled, linked = commands(config)
    assert "-Wno-maybe-uninitialized" in compiled and "-shared" in linked and "-undefined" not in linked


def test_missing_compiler_on_macos(monkeypatch):
    monkeypatch.setattr(_build.sys, "platform", "darwin")
    with pytest.raises(_build.BuildError, match="xcode-select --install"):
        _build.find_compiler({"PATH": "/nowhere"})


def test_newer_torch_is_named_when_the_compiler_fails(csrc, environ, tmp_path):
    newest = ".".join(map(str, _build.NEWEST_TORCH))
    (csrc / "a_cpu.cpp").write_text("#error no such thing as this ABI\n")
    for version, words in ((f"{newest}.1+cpu", "set CXX to another"), ("99.0.0", "torch 99.0.0 is newer than")):
        torch = _build.Torch(Path("/nowhere/torch"), version, None)
        config = _build.configure(jit=False, torch=torch, csrc=csrc, environ=environ)
        with pytest.raises(_build.BuildError, match="no such thing as this ABI") as caught:
            _build.build(config, tmp_path / version, tmp_path / "_C.so")
        assert words in caught.value.hint


def test_tried_releases_are_those_of_the_documents(repository):
    """The matrix names each release from the oldest to the newest that the loader calls tried; the front page the range."""
    text = (repository / "docs/install.md").read_text()
    (major, oldest), (_, newest) = _build.OLDEST_TORCH, _build.NEWEST_TORCH
    rows = re.findall(rf"^\| {major}\.(\d+)[.\d]* \|", text, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(oldest, newest + 1))
    assert f"| torch | {major}.{oldest} to {major}.{newest} |" in (repository / "README.md").read_text()


def incremental(tmp_path: Path, csrc: Path) -> list[str]:
    """Build as setup.py does; return what was compiled."""
    torch = _build.Torch(Path("/nowhere/torch"), "2.12.0", None)
    config = _build.configure(jit=False, torch=torch, csrc=csrc, environ={"PATH": os.environ["PATH"], "FORCE_CPU": "1"})
    config = replace(config, torch=replace(torch, root=linkable(tmp_path)))
    manifest = _build.build(config, tmp_path / "build", tmp_path / "_C.so")
    return sorted(manifest["compiled"])


def linkable(tmp_path: Path) -> Path:
    """A torch to link with, empty."""
    lib = tmp_path / "torch" / "lib"
    if not lib.is_dir():
        lib.mkdir(parents=True)
        for name in ("torch_cpu", "torch_cuda", "c10"):
            subprocess.run(["g++", "-shared", "-x", "c++", os.devnull, "-o", lib / f"lib{name}.so"], check=True)
    return tmp_path / "torch"


def test_an_edit_compiles_what_includes_it(tmp_path):
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "both.h").write_text("#pragma once\nint both();\n")
    (csrc / "one.h").write_text('#pragma once\n#include "both.h"\n')
    (csrc / "a_cpu.cpp").write_text('#include "one.h"\nint a() { return both(); }\n')
    (csrc / "b_cpu.cpp").write_text('#include "both.h"\nint both() { return 1; }\n')
    (csrc / "c_cpu.cpp").write_text("int c = 3;\n")
    assert incremental(tmp_path, csrc) == ["a_cpu.cpp", "b_cpu.cpp", "c_cpu.cpp"]
    assert incremental(tmp_path, csrc) == []
    os.utime(csrc / "both.h")
    assert incremental(tmp_path, csrc) == [], "touched, not changed"
    (csrc / "one.h").write_text('#pragma once\n#include "both.h"  // edited\n')
    assert incremental(tmp_path, csrc) == ["a_cpu.cpp"], "through one header, not the other's users"
    (csrc / "both.h").write_text("#pragma once\nint both();  // edited\n")
    assert incremental(tmp_path, csrc) == ["a_cpu.cpp", "b_cpu.cpp"], "through a header of a header"
    (csrc / "c_cpu.cpp").write_text("#error in the middle of an edit\n")
    with pytest.raises(_build.BuildError, match="in the middle"):
        incremental(tmp_path, csrc)
    (csrc / "c_cpu.cpp").write_text("int c = 4;\n")
    assert incremental(tmp_path, csrc) == ["c_cpu.cpp"], "a failure costs nothing of what was compiled"
    (csrc / "c_cpu.cpp").unlink()
    (csrc / "both.h").rename(csrc / "moved.h")
    for name in ("one.h", "b_cpu.cpp"):
        (csrc / name).write_text((csrc / name).read_text().replace("both.h", "moved.h"))
    assert incremental(tmp_path, csrc) == ["a_cpu.cpp", "b_cpu.cpp"], "a header that is gone is no obstacle"
    assert not list((tmp_path / "build").glob("build-*"))


@pytest.mark.skipif(_build.find_nvcc() is None, reason="no nvcc")
def test_an_edit_compiles_what_includes_it_with_nvcc(tmp_path):
    """nvcc writes its list of headers too; the C++ side knows those of CUDA."""
    nvcc, release = _build.find_nvcc()
    csrc = tmp_path / "csrc"
    (csrc / "kernels").mkdir(parents=True)
    (csrc / "a_cuda.cpp").write_text('#include <cuda_runtime_api.h>\n#include "kernels/a.h"\n')
    (csrc / "kernels" / "a.h").write_text("void a();\n")
    (csrc / "kernels" / "a.cu").write_text(
        '#include "a.h"\n#include "a.cuh"\n__global__ void k() {}\nvoid a() { k<<<1, 1>>>(); }\n'
    )
    (csrc / "kernels" / "b.cu").write_text("__global__ void b() {}\n")
    (csrc / "kernels" / "a.cuh").write_text("// first\n")
    torch = replace(CUDA_TORCH, root=linkable(tmp_path), cuda=release)
    environ = {"PATH": os.environ["PATH"], "CUDA_HOME": str(_build.cuda_home(nvcc)), "TORCH_CUDA_ARCH_LIST": "9.0"}

    def compiled() -> list[str]:
        config = _build.configure(jit=False, torch=torch, csrc=csrc, environ=environ)
        return sorted(_build.build(config, tmp_path / "build", tmp_path / "_C.so")["compiled"])

    assert compiled() == ["a_cuda.cpp", "kernels/a.cu", "kernels/b.cu"]
    (csrc / "kernels" / "a.cuh").write_text("// second\n")
    assert compiled() == ["kernels/a.cu"]
    (csrc / "kernels" / "a.h").write_text("void a();  // edited\n")
    assert compiled() == ["a_cuda.cpp", "kernels/a.cu"]


def test_damaged_object_is_compiled_again(tmp_path):
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "a_cpu.cpp").write_text("int a = 1;\n")
    (csrc / "b_cpu.cpp").write_text("int b = 1;\n")
    incremental(tmp_path, csrc)
    target = tmp_path / "build" / "kept" / "objects" / "a_cpu.cpp.o"
    times = target.stat().st_atime_ns, target.stat().st_mtime_ns
    target.write_bytes(b"cut off")
    os.utime(target, ns=times)
    (csrc / "b_cpu.cpp").write_text("int b = 2;\n")
    with pytest.raises(_build.BuildError, match="linking failed"):
        incremental(tmp_path, csrc)
    assert incremental(tmp_path, csrc) == ["a_cpu.cpp", "b_cpu.cpp"]


def test_builds_at_the_same_time_do_not_share_objects(tmp_path):
    """The kept objects belong to one build; another one starts from nothing, and both end well."""
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    linkable(tmp_path)
    for name in "abc":
        (csrc / f"{name}_cpu.cpp").write_text(f"int {name};\n")
    incremental(tmp_path, csrc)
    (csrc / "a_cpu.cpp").write_text("int a = 2;\n")
    with ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(lambda _: incremental(tmp_path, csrc), range(2)))
    assert all("a_cpu.cpp" in names for names in compiled) or [] in compiled
    assert incremental(tmp_path, csrc) == []


def test_own_pybind11_comes_before_that_of_torch(repository, tmp_path):
    """Without the package torch's own copy serves, which refuses to be compiled for the stable ABI."""
    own = tmp_path / "torch" / "include" / "pybind11"
    source = Path(_build.pybind11_include()[0]) / "pybind11"
    shutil.copytree(source, own)
    text = (own / "pybind11.h").read_text()
    refusal = "#if defined(TORCH_STABLE_ONLY) || defined(TORCH_TARGET_VERSION)\n#error not for the stable ABI\n#endif\n"
    (own / "pybind11.h").write_text(refusal + "#define OF_TORCH\n" + text)
    torch = _build.Torch(tmp_path / "torch", "2.14.0", None)
    environ = {"PATH": os.environ["PATH"], "FORCE_CPU": "1"}
    config = _build.configure(jit=False, torch=torch, csrc=repository / "csrc", environ=environ)
    command = _build.compile_command(config, _build.Unit(Path("module.cpp")), tmp_path / "module.o")
    package = _build.pybind11_include()[0]
    assert command.index(package) < command.index(str(torch.root / "include"))
    alone = [word for at, word in enumerate(command) if package not in command[at : at + 2]]
    said = subprocess.run([*alone, "-fsyntax-only", "-H"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert str(own / "pybind11.h") in said.stderr and package not in said.stderr


def test_headers_of_another_torch(tmp_path, monkeypatch, capsys):
    """A wheel that cannot be had is said and passed over; a source that does not compile fails the run."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a_cpu.cpp").write_text("#include <torch/csrc/stable/there.h>\n")
    include = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable"
    include.mkdir(parents=True)
    monkeypatch.setattr(torch_headers, "headers", lambda version, folder: "no such wheel")
    assert torch_headers.main(["2.99.0"], tmp_path / "csrc") == 0
    assert "cannot be had here, nothing was compiled against them: no such wheel" in capsys.readouterr().out
    torch = _build.Torch(tmp_path / "torch", "2.99.0", None)
    monkeypatch.setattr(torch_headers, "headers", lambda version, folder: torch)
    assert torch_headers.main(["2.99.0"], tmp_path / "csrc") == 1
    said = capsys.readouterr()
    assert "0 of 2 compilations succeed" in said.out and re.search("there.h(: No such file|' file not found)", said.err)
    (include / "there.h").touch()
    assert torch_headers.main(["2.99.0"], tmp_path / "csrc") == 0


def test_clang_is_held_to_no_warning(tmp_path, monkeypatch, capsys):
    """A warning fails the run, and so does what cannot be generated; a machine without clang says so."""
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    monkeypatch.setenv("CLANG", "no-such-clang++")
    assert clang.main(csrc) == 0 and "no no-such-clang++ here: nothing was compiled" in capsys.readouterr().out
    if shutil.which("clang++") is None:
        pytest.skip("no clang++")
    monkeypatch.setenv("CLANG", "clang++")
    for text, status in (
        ("int a() { return 1; }\n", 0),
        ("int a() { int unused; return 1; }\n", 1),
        ('int a() { asm("nonsense"); return 1; }\n', 1),
    ):
        (csrc / "a_cpu.cpp").write_text(text)
        assert clang.main(csrc) == status
        said = capsys.readouterr()
        assert f"{1 - status} of 1 compilations without a warning" in said.out and ("a_cpu.cpp" in said.err) == bool(status)
