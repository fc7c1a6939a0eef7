"""How the C++/CUDA extension is built: sources, flags, commands, the compiler's own words when it fails.

Standard library only and free of imports from the package: ``setup.py`` loads this file by its path (torch
may not even be importable there) and ``extension.py`` uses it for the just-in-time build. ninja runs the
commands. Objects and the compiler's lists of headers are kept between builds, so that a change compiles what
includes the changed file and nothing else. ``setup.py`` compiles the CPU kernels for every instruction set, the
just-in-time build for the one that this machine runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TORCH_TARGET_VERSION = "0x020b000000000000"  # torch 2.11: the oldest release whose stable ABI serves every op
OLDEST_TORCH = (2, 11)
NEWEST_TORCH = (2, 15)  # the newest release tried: not a bound, but what to say when one newer still fails
DEFAULT_ARCHS = ("8.0", "9.0+PTX")
SOURCE_SUFFIXES = (".cpp", ".h", ".cu", ".cuh")
INSTRUCTION_SETS = ("avx512", "avx2", "neon", "baseline")  # what MIXSYN_FAST_CPU may say; csrc/cpu/isa.h knows what they are
USUAL_NVCC = Path("/usr/local/cuda/bin/nvcc")
MANIFEST = "_C.json"  # lies beside the shared object and says what it was made from
_MEMORY_PER_JOB = {".cpp": 1.0, ".cu": 2.0}  # GiB a compiler may need at its peak


class BuildError(RuntimeError):
    """The extension cannot be built.

    Attributes:
        cause: short name of the cause: ``compiler`` (none found), ``ninja``, ``nvcc``, ``torch``, ``sources``,
            ``cpu`` (no such instruction set), ``host-compiler`` (too new for nvcc), ``memory``, ``space``,
            ``changed`` (sources edited while they were read), or ``source-code`` for everything else the
            compiler rejects.
        hint: what the user can do about it.
    """

    def __init__(self, cause: str, message: str, hint: str) -> None:
        """Keep the three parts; ``str()`` shows message and hint."""
        super().__init__(cause, message, hint)
        self.cause, self.message, self.hint = cause, message, hint

    def __str__(self) -> str:
        """Return the message followed by the way to mend it."""
        return f"{self.message}\nTo mend it: {self.hint}"


@dataclass(frozen=True)
class Torch:
    """An installed torch, described without importing it."""

    root: Path
    version: str
    cuda: str | None

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) when it cannot be read."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def check(self) -> None:
        """Raise a BuildError (cause ``torch``) when it lacks the stable ABI that the sources are written for."""
        if self.release < OLDEST_TORCH:
            need = ".".join(map(str, OLDEST_TORCH))
            raise BuildError("torch", f"torch {self.version} is too old", f"use torch {need} or newer")

    @property
    def untried(self) -> str | None:
        """What there is to say of a torch newer than any that was tried; None for the others."""
        if self.release <= NEWEST_TORCH:
            return None
        oldest, newest = (".".join(map(str, release)) for release in (OLDEST_TORCH, NEWEST_TORCH))
        return (
            f"torch {self.version} is newer than the releases this mixsyn_fast was tried with ({oldest} to {newest}): "
            "install a newer mixsyn_fast, or one of these"
        )


@dataclass(frozen=True)
class Config:
    """Everything that decides what the compiler produces; two equal configs give interchangeable objects."""

    csrc: Path
    torch: Torch
    compiler: tuple[str, ...]
    compiler_version: str
    target: str = ""  # what the compiler compiles for, in its own words: x86_64-linux-gnu, arm64-apple-darwin23.1.0
    isas: tuple[str, ...] = ()  # instruction sets of the CPU kernels, best first
    nvcc: Path | None = None
    nvcc_version: str | None = None
    archs: tuple[str, ...] = ()
    cuda_reason: str = ""  # why the CUDA part is in or out
    standard: int = 17
    sanitize: bool = False
    rpaths: tuple[str, ...] = ()
    sources: str = ""  # fingerprint of the sources at the time of asking

    @property
    def cuda(self) -> bool:
        """Whether the CUDA kernels are part of the build."""
        return self.nvcc is not None

    @property
    def clang(self) -> bool:
        """Whether the compiler is a clang, Apple's or another."""
        return "clang" in self.compiler_version

    @property
    def apple(self) -> bool:
        """Whether the object is one for macOS."""
        return "-apple-" in self.target


@dataclass(frozen=True)
class Unit:
    """One run of a compiler: a source below ``csrc``, and the instruction set if it is a CPU kernel."""

    source: Path
    isa: str | None = None

    def __str__(self) -> str:
        """Return how messages and the manifest call it."""
        return self.source.as_posix() + (f" for {self.isa}" if self.isa else "")

    @property
    def object(self) -> Path:
        """Return the object file, below the folder of objects."""
        return self.source.with_name(f"{self.source.name}{f'.{self.isa}' if self.isa else ''}.o")


# --------------------------------------------------------------------------------------------------
# What is on this machine
# --------------------------------------------------------------------------------------------------


def find_csrc(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of C++ sources: MIXSYN_FAST_CSRC, the clone's csrc/, or the installed copy."""
    if chosen := environ.get("MIXSYN_FAST_CSRC"):
        return Path(chosen)
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "csrc", package / "_csrc"):
        if (folder / "module.cpp").is_file():
            return folder
    raise BuildError(
        "sources",
        f"the C++ sources of mixsyn_fast are missing beside {package}",
        "install the package again, or point MIXSYN_FAST_CSRC to the csrc folder of a clone",
    )


def find_torch() -> Torch | None:
    """Return the torch of this interpreter, read from its files; None when there is none.

    Under pip's build isolation torch is hidden from ``sys.path``, yet ``sysconfig`` still names the
    site-packages of the environment that is being installed into, so that one folder is looked at as well.
    """
    roots: list[Path] = []
    spec = importlib.util.find_spec("torch")  # a top-level name: finds, does not import
    if spec is not None and spec.submodule_search_locations:
        roots += [Path(place) for place in spec.submodule_search_locations]
    roots += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("platlib", "purelib")]
    for root in roots:
        version_file = root / "version.py"
        if not version_file.is_file():
            continue
        facts: dict[str, object] = {}
        assignment = re.compile(r"^(\w+)\s*(?::[^=\n]+)?=\s*(.+)$", re.MULTILINE)
        for name, value in assignment.findall(version_file.read_text()):
            try:
                facts[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                continue
        version, cuda = facts.get("__version__"), facts.get("cuda")
        if isinstance(version, str):
            return Torch(root, version, cuda if isinstance(cuda, str) else None)
    return None


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)


def find_compiler(environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, ...], str]:
    """Return the C++ compiler's command and the first line of its ``--version``.

    Raises:
        BuildError: cause ``compiler`` when there is none or it does not run.
    """
    install = "install g++ (`apt install g++`, `dnf install gcc-c++`)"
    if sys.platform == "darwin":
        install = "install Apple's clang (`xcode-select --install`)"
    hint = f"{install} or set CXX=/path/to/a/C++17/compiler"
    if chosen := shlex.split(environ.get("CXX", "")):
        candidates = [chosen]
    else:
        candidates = [["g++"], ["clang++"], ["c++"]]
    for command in candidates:
        program = shutil.which(command[0], path=environ.get("PATH"))
        if program is not None:
            try:
                said = _ask([program, *command[1:], "--version"])
            except (OSError, subprocess.TimeoutExpired) as error:
                message = f"the C++ compiler {program} does not run: {error}"
                raise BuildError("compiler", message, hint) from error
            if said.returncode != 0:
                words = (said.stderr or said.stdout).strip()
                raise BuildError("compiler", f"the C++ compiler {program} does not run: {words}", hint)
            return (program, *command[1:]), (said.stdout.splitlines() or ["unknown"])[0]
    names = ", ".join(command[0] for command in candidates)
    raise BuildError("compiler", f"no C++ compiler found (looked for {names})", hint)


def find_target(compiler: Sequence[str]) -> str:
    """Return what a compiler compiles for, such as ``aarch64-linux-gnu``; nothing where it does not tell."""
    said = _ask([*compiler, "-dumpmachine"])
    return said.stdout.strip() if said.returncode == 0 else ""


def find_ninja(environ: Mapping[str, str] = os.environ) -> str:
    """Return the ninja of this interpreter's package, else the one on PATH.

    Raises:
        BuildError: cause ``ninja`` when there is none.
    """
    try:
        from ninja import BIN_DIR

        found = shutil.which("ninja", path=BIN_DIR) if BIN_DIR else None
    except ImportError:
        found = None
    found = found or shutil.which("ninja", path=environ.get("PATH"))
    if found is None:
        raise BuildError("ninja", "ninja, which runs the compilers, was not found", "pip install ninja")
    return found


def wanted_isa(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the instruction set that MIXSYN_FAST_CPU asks for; None when it is not set.

    Raises:
        BuildError: cause ``cpu`` for a name that is none.
    """
    wanted = environ.get("MIXSYN_FAST_CPU", "").strip() or None
    if wanted is not None and wanted not in INSTRUCTION_SETS:
        names = ", ".join(INSTRUCTION_SETS)
        raise BuildError("cpu", f"MIXSYN_FAST_CPU: expected one of {names}, got {wanted!r}", "correct or unset it")
    return wanted


def instruction_sets(compiler: Sequence[str], csrc: Path) -> tuple[tuple[str, ...], str]:
    """Ask cpu/isa.h, through the preprocessor, for the instruction sets of the CPU kernels.

    Returns:
        Those that this compiler can compile, best first, and the one of them that this machine runs best. Nothing
        where the sources hold no CPU kernels.
    """
    facts = csrc / "cpu" / "isa.h"
    if not facts.is_file():
        return (), ""
    said = ""
    # clang for Arm knows the second word; a cross compiler none: its machine runs what it compiles for by itself
    for native in (["-march=native"], ["-mcpu=native"], []):
        asked = _ask([*compiler, *native, "-dM", "-E", "-x", "c++", str(facts)])
        if asked.returncode == 0:
            said = asked.stdout
            break
    known = dict(re.findall(r"^#define (MIXSYN_ISAS|MIXSYN_NATIVE_ISA) (.+)$", said, re.MULTILINE))
    if len(known) != 2:
        hint = "set CXX to another C++17 compiler (g++ 9 or newer)"
        raise BuildError("compiler", f"{compiler[0]} cannot preprocess {facts}: {asked.stderr.strip()}", hint)
    return tuple(known["MIXSYN_ISAS"].split()), known["MIXSYN_NATIVE_ISA"]


def find_nvcc(environ: Mapping[str, str] = os.environ) -> tuple[Path, str] | None:
    """Return nvcc and its release (such as ``13.0``): $CUDA_HOME, $CUDA_PATH, PATH, then /usr/local/cuda."""
    homes = [environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    if on_path := shutil.which("nvcc", path=environ.get("PATH")):
        places.append(Path(on_path))
    places.append(USUAL_NVCC)
    for nvcc in places:
        if not nvcc.is_file():
            continue
        try:
            said = _ask([str(nvcc), "--version"]).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        if release := re.search(r"release (\d+\.\d+)", said):
            return nvcc, release[1]
    return None


def cuda_home(nvcc: Path) -> Path:
    """Return the toolkit folder of an nvcc, looking through links and wrapper folders on PATH."""
    for candidate in (nvcc, nvcc.resolve()):
        home = candidate.parent.parent
        if (home / "include" / "cuda_runtime_api.h").is_file():
            return home
    said = _ask([str(nvcc), "--dryrun", "-x", "cu", os.devnull]).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else nvcc.resolve().parent.parent


def visible_archs() -> tuple[str, ...]:
    """Return the compute capabilities of this machine's GPUs, asked from NVML (it starts no CUDA context)."""
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return ()
    except (OSError, AttributeError):
        return ()
    found: set[tuple[int, int]] = set()
    try:
        count = ctypes.c_uint(0)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            for number in range(count.value):
                device, major, minor = ctypes.c_void_p(), ctypes.c_int(0), ctypes.c_int(0)
                if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) != 0:
                    continue
                answer = ctypes.byref(major), ctypes.byref(minor)
                if nvml.nvmlDeviceGetCudaComputeCapability(device, *answer) == 0:
                    found.add((major.value, minor.value))
    except AttributeError:
        return ()
    finally:
        nvml.nvmlShutdown()
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


def parse_archs(text: str) -> tuple[str, ...]:
    """Read a TORCH_CUDA_ARCH_LIST such as ``8.0;9.0+PTX`` or ``8.0 9.0a``.

    Raises:
        BuildError: cause ``nvcc`` for an entry that is no compute capability.
    """
    archs = tuple(part for part in re.split(r"[;,\s]+", text.strip()) if part)
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise BuildError(
                "nvcc",
                f"TORCH_CUDA_ARCH_LIST: expected compute capabilities such as 8.0;9.0+PTX, got {arch!r}",
                "export TORCH_CUDA_ARCH_LIST='8.0;9.0+PTX', or unset it",
            )
    return archs


def flag(environ: Mapping[str, str], name: str) -> bool:
    """Return whether a variable is switched on (set, and to something other than 0, false, no, off)."""
    return environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")


def configure(
    *,
    jit: bool,
    torch: Torch | None = None,
    csrc: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Look at the machine and decide what to build.

    Args:
        jit: a just-in-time build (for the processor and the GPUs in this machine, or the instruction set that
            MIXSYN_FAST_CPU lowers it to) rather than one by setup.py (for all processors and a list of GPUs). One with
            sanitizers is for all processors, too.
        torch: the torch to build for; found when absent. csrc: source folder; found when absent. environ:
        where CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, FORCE_CUDA, FORCE_CPU and MIXSYN_FAST_SANITIZE are
            looked up, and MIXSYN_FAST_CPU.

    Raises:
        BuildError: no compiler, no ninja, no usable torch, no sources, or FORCE_CUDA=1 without what it needs.
    """
    if torch is None:
        torch = find_torch()
        if torch is None:
            raise BuildError("torch", "torch was not found", "install torch 2.11 or newer first")
        torch.check()
        headers = torch.root / "include" / "torch" / "csrc" / "stable"
        if not headers.is_dir():
            raise BuildError(
                "torch", f"torch's headers were not found in {headers}", "install torch from a wheel of its own"
            )
    torch.check()
    csrc = csrc or find_csrc(environ)
    compiler, compiler_version = find_compiler(environ)
    find_ninja(environ)
    isas, native = instruction_sets(compiler, csrc)
    sanitize = flag(environ, "MIXSYN_FAST_SANITIZE")
    wanted = wanted_isa(environ) if jit and isas else None
    if jit and isas and not sanitize:  # what is sanitized is tried on each of them: compiled once, not once for each
        isas = (max((name for name in (native, wanted) if name in isas), key=isas.index),)
    base = Config(
        csrc, torch, compiler, compiler_version, find_target(compiler), isas,
        sanitize=sanitize,
        sources=sources_hash(csrc),
    )  # fmt: skip
    beside = f"{'@loader_path' if base.apple else '$ORIGIN'}/../torch/lib"
    base = replace(base, rpaths=(str(torch.root / "lib") if jit else beside,))

    def cpu_only(reason: str) -> Config:
        if flag(environ, "FORCE_CUDA"):
            raise BuildError(
                "nvcc",
                f"FORCE_CUDA=1, but {reason}",
                "install the CUDA toolkit that fits torch and set CUDA_HOME, or unset FORCE_CUDA",
            )
        return replace(base, cuda_reason=reason)

    if flag(environ, "FORCE_CPU"):
        return replace(base, cuda_reason="FORCE_CPU=1")
    if not any(csrc.glob("*_cuda.cpp")):
        return cpu_only("the sources hold no CUDA part")
    if torch.cuda is None:
        return cpu_only(f"torch {torch.version} is a CPU build")
    found = find_nvcc(environ)
    if found is None:
        return cpu_only("no nvcc found (looked in CUDA_HOME, PATH, /usr/local/cuda)")
    nvcc, release = found
    if release.split(".")[0] != torch.cuda.split(".")[0]:
        return cpu_only(f"nvcc {release} and torch's CUDA {torch.cuda} differ in their major version")
    archs = parse_archs(environ.get("TORCH_CUDA_ARCH_LIST", ""))
    reason = "TORCH_CUDA_ARCH_LIST"
    if not archs:
        archs, reason = visible_archs(), "the GPUs of this machine"
    if not archs:
        if jit and not flag(environ, "FORCE_CUDA"):
            return cpu_only("no GPU is visible (set TORCH_CUDA_ARCH_LIST to compile the kernels all the same)")
        archs, reason = DEFAULT_ARCHS, "the default, as no GPU is visible"
    return replace(base, nvcc=nvcc, nvcc_version=release, archs=archs, cuda_reason=f"architectures from {reason}")


# --------------------------------------------------------------------------------------------------
# What is built, and with which words
# --------------------------------------------------------------------------------------------------


def source_files(csrc: Path) -> list[Path]:
    """Return every source and header below ``csrc`` in a fixed order."""
    return sorted(path for path in csrc.rglob("*") if path.suffix in SOURCE_SUFFIXES and path.is_file())


def sources_hash(csrc: Path) -> str:
    """Return a fingerprint of all sources and headers (names and bytes)."""
    digest = hashlib.sha256()
    for path in source_files(csrc):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def has_python_header() -> bool:
    """Return whether Python.h is installed; without it the module for build information is left out."""
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def translation_units(config: Config) -> list[Unit]:
    """Return what to compile: one unit per file, one per file and instruction set for the CPU kernels."""
    csrc = config.csrc

    def files(*patterns: str) -> list[Path]:
        return [path.relative_to(csrc) for pattern in patterns for path in sorted(csrc.glob(pattern))]

    units = [Unit(path) for path in files("*_cpu.cpp")]
    units += [Unit(path, isa) for path in files("cpu/*.cpp") for isa in config.isas]
    if (csrc / "module.cpp").is_file() and has_python_header():
        units.append(Unit(Path("module.cpp")))
    if config.cuda:
        units += [Unit(path) for path in files("*_cuda.cpp", "kernels/*.cu")]
    if not units:
        raise BuildError(
            "sources",
            f"there is nothing to compile in {csrc}",
            "point MIXSYN_FAST_CSRC to the csrc folder",
        )
    return units


def arch_flags(archs: Sequence[str]) -> list[str]:
    """Return nvcc's -gencode flags; ``+PTX`` adds code that newer GPUs can translate."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags += [f"-gencode=arch=compute_{number},code=sm_{number}"]
        if arch.endswith("+PTX"):
            flags += [f"-gencode=arch=compute_{number},code=compute_{number}"]
    return flags


def cxx_flags(config: Config) -> list[str]:
    """Return the flags shared by all C++ files; none of them changes a floating-point result."""
    flags = [f"-std=c++{config.standard}", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    flags += ["-Wno-unknown-pragmas", "-fno-math-errno", "-fno-trapping-math"]
    if config.sanitize:
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", "-DMIXSYN_FAST_SANITIZE"]
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    else:
        flags += ["-O3", "-DNDEBUG"]
    return flags


def nvcc_flags(config: Config) -> list[str]:
    """Return nvcc's flags; no fast-math, line numbers kept for the profiler."""
    host = " ".join(config.compiler[:1])
    return [
        "-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr", "-DNDEBUG", "-DUSE_CUDA",
        "-Xcompiler", "-fPIC,-fvisibility=hidden", "-ccbin", host, *arch_flags(config.archs),
    ]  # fmt: skip


def pybind11_include() -> list[str]:
    """Return the include folder of the pybind11 package, if installed (torch's own copy serves as well)."""
    spec = importlib.util.find_spec("pybind11")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "include"
        if folder.is_dir():
            return [str(folder)]
    return []


def isa_flags(config: Config, unit: Unit) -> list[str]:
    """Return what a C++ file has to know of instruction sets: those of the object, and a kernel's own."""
    if not config.isas:
        return []
    each = " ".join(f"X({isa}, __VA_ARGS__)" for isa in config.isas)
    flags = [f"-DMIXSYN_EACH_ISA(X, ...)={each}"]
    if unit.isa:  # vectors wider than a register never leave a file; GCC warns of its own header's intrinsics
        flags += [f"-DMIXSYN_ISA={unit.isa}", "-Wno-psabi", *([] if config.clang else ["-Wno-maybe-uninitialized"])]
    return flags


def compile_command(config: Config, unit: Unit, target: Path) -> list[str]:
    """Return the command that compiles one unit and writes the headers it read to ``<target>.d``."""
    source = config.csrc / unit.source
    ends = ["-MD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)]
    includes = [f"-I{config.csrc}"]
    if source.suffix == ".cu":
        return [str(config.nvcc), *nvcc_flags(config), *includes, *ends]
    flags = cxx_flags(config)
    system: list[str] = []
    if source.name == "module.cpp":
        # No stable ABI there: torch's own copy of pybind11, if it has to serve, refuses to be part of it.
        flags += ["-O0"]  # what it says of the build is asked once
        facts = {"TORCH_TARGET": TORCH_TARGET_VERSION, "CUDA": config.nvcc_version or "", "ARCHS": ";".join(config.archs)}
        flags += [f'-DMIXSYN_FAST_{name}="{value}"' for name, value in facts.items()]
        system += [*pybind11_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    else:
        flags += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *isa_flags(config, unit)]
    if config.nvcc is not None:
        flags += ["-DUSE_CUDA"]
        system += [str(cuda_home(config.nvcc) / "include")]
    system += [str(config.torch.root / "include")]
    for folder in dict.fromkeys(system):
        includes += ["-isystem", folder]
    return [*config.compiler, *flags, *includes, *ends]


def link_command(config: Config, objects: Sequence[Path], target: Path) -> list[str]:
    """Return the command that links the shared object."""
    command = [*config.compiler, *map(str, objects), "-o", str(target)]
    if config.apple:  # the interpreter that loads the object has Python's symbols
        command += ["-dynamiclib", "-undefined", "dynamic_lookup"]
    else:
        command += ["-shared", "-Wl,--no-as-needed"]
    command += [f"-L{config.torch.root / 'lib'}", "-ltorch_cpu", "-lc10"]
    if config.nvcc is not None:
        home = cuda_home(config.nvcc)
        machine = {"aarch64": "sbsa"}.get(platform.machine(), platform.machine())  # as the toolkit calls Arm's servers
        folders = [home / "lib64", home / "lib", home / "targets" / f"{machine}-linux" / "lib"]
        runtime = next((folder for folder in folders if (folder / "libcudart.so").exists()), folders[0])
        command += ["-ltorch_cuda", f"-L{runtime}", "-lcudart"]
    if config.sanitize:
        command += ["-fsanitize=address,undefined"]
    command += [f"-Wl,-rpath,{path}" for path in config.rpaths]
    return command


def recipe(sources: str, *, standard: int = 17, sanitize: bool = False) -> str:
    """Return a fingerprint of what a prebuilt object has to match: sources, portable flags, Python."""
    nobody = Config(Path(), Torch(Path(), "", None), ("",), "", standard=standard, sanitize=sanitize)
    words = [sources, *cxx_flags(nobody), *nvcc_flags(nobody), TORCH_TARGET_VERSION]
    words += [str(sysconfig.get_config_var("EXT_SUFFIX"))]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def settings_key(config: Config) -> str:
    """Return the name of the folder for objects of one kind: changes with anything but the sources that decides them."""
    words = [recipe("", standard=config.standard, sanitize=config.sanitize), config.torch.version, *config.isas]
    words += [str(config.torch.root), str(config.torch.cuda), *config.compiler, config.compiler_version, config.target]
    words += [str(config.nvcc), str(config.nvcc_version), *config.archs, *config.rpaths, platform.machine()]
    words += [*pybind11_include(), str(has_python_header()), platform.libc_ver()[1]]
    version = re.sub(r"[^\w.]", "-", config.torch.version)
    names = [f"cp{sys.version_info.major}{sys.version_info.minor}", f"torch{version}"]
    names += config.isas if len(config.isas) == 1 else []
    return "-".join([*names, hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:16]])


# --------------------------------------------------------------------------------------------------
# Doing it
# --------------------------------------------------------------------------------------------------


def free_memory_gib() -> float:
    """Return the memory a build may use: what the kernel calls available, within the container's limit."""
    free = float("inf")
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            free = int(found[1]) / 2**20
    except OSError:
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, (int(Path(limit).read_text()) - int(Path(used).read_text())) / 2**30)
        except (OSError, ValueError):
            continue
    return free


def max_jobs(units: Sequence[Unit], environ: Mapping[str, str] = os.environ) -> int:
    """Return how many compilers run at once: MAX_JOBS, else limited by cores, files and free memory."""
    if environ.get("MAX_JOBS", "").strip().isdigit():
        return max(1, int(environ["MAX_JOBS"]))
    each = max((_MEMORY_PER_JOB.get(unit.source.suffix, 1.0) for unit in units), default=1.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, len(units), int(min(free_memory_gib(), 1e6) / each)))


def diagnose(words: str, returncode: int) -> tuple[str, str]:
    """Return (cause, hint) for a failed compiler or linker run, read from its own words."""
    text = words.lower()
    if "no space left on device" in text or "disk quota exceeded" in text:
        return "space", "free some disk space, or set MIXSYN_FAST_CACHE to a folder on a larger disk"
    killed = returncode in (-9, 137) or "killed signal" in text or "signal 9" in text
    if killed or "out of memory" in text or "virtual memory exhausted" in text or "cannot allocate memory" in text:
        return "memory", "the compiler ran out of memory: free some, or compile file by file with MAX_JOBS=1"
    if "unsupported gnu version" in text or "unsupported clang version" in text:
        return (
            "host-compiler",
            "the C++ compiler is too new for this nvcc: set CXX to an older one, such as CXX=g++-12",
        )
    missing_header = re.search(r"fatal error: '?cuda\w*(\.h)?('|: no such) file", text)
    if missing_header or re.search(r"(nvcc|cicc|ptxas)\b.*(not found|no such file)", text):
        return "nvcc", "install the whole CUDA toolkit and set CUDA_HOME, or build without CUDA: FORCE_CPU=1"
    if "unsupported gpu architecture" in text or "is not defined for option 'gpu-architecture'" in text:
        return (
            "nvcc",
            "this nvcc does not know that GPU: install a newer CUDA toolkit or change TORCH_CUDA_ARCH_LIST",
        )
    if re.search(r"fatal error: '?(c?std\w+|string|vector|optional|algorithm)(\.h)?('|: no such) file", text):
        return "compiler", "the C++ standard library's headers are missing: `apt install g++` brings them"
    return "source-code", "set CXX to another C++17 compiler (g++ 9 or newer), or report the message above"


def _write_if_new(path: Path, content: bytes) -> None:
    """Write a file unless it holds that already: ninja goes by the time of the last change."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _snapshot(config: Config, folder: Path) -> None:
    """Bring a copy of the sources up to date, so that edits during the build cannot mix two states in one object."""
    try:
        kept = set()
        for path in source_files(config.csrc):
            copy = folder / path.relative_to(config.csrc)
            _write_if_new(copy, path.read_bytes())
            kept.add(copy)
        for copy in source_files(folder):
            if copy not in kept:
                copy.unlink()
    except OSError as error:
        cause, hint = diagnose(str(error), 0)
        raise BuildError(cause, f"the sources could not be copied: {error}", hint) from error
    if sources_hash(folder) != config.sources:
        raise BuildError("changed", f"the sources in {config.csrc} changed while they were read", "try again")


_MARK = "@mixsyn_fast "  # begins ninja's line for a command that has ended
_LIBRARY = Path("_C.so")


def ninja_file(config: Config, units: Sequence[Unit]) -> str:
    """Return the text of build.ninja: one edge per unit, longest first, and the linker's."""

    def edge(rule: str, output: Path, inputs: Sequence[Path], command: Sequence[str], what: str) -> str:
        names = " ".join(path.as_posix().replace("$", "$$").replace(" ", "$ ").replace(":", "$:") for path in inputs)
        command_line = shlex.join(command).replace("$", "$$")
        return f"build {output.as_posix()}: {rule} {names}\n  command_line = {command_line}\n  what = {what}\n"

    rule = "rule {}\n  command = $command_line\n  description = $what\n"
    parts = [rule.format("compile") + "  depfile = $out.d\n  deps = gcc\n", rule.format("link")]
    for unit in units:
        target = Path("objects") / unit.object
        parts.append(edge("compile", target, [config.csrc / unit.source], compile_command(config, unit, target), str(unit)))
    objects = [Path("objects") / unit.object for unit in units]
    parts.append(edge("link", _LIBRARY, objects, link_command(config, objects, _LIBRARY), "linking"))
    return "\n".join(parts)


def _run_ninja(config: Config, original: Path, folder: Path, jobs: int) -> list[str]:
    """Run ninja in ``folder``; return what it had to run.

    Raises:
        BuildError: with the words of the first command that failed.
    """
    environ = {**os.environ, "TMPDIR": str(folder.parent), "LC_ALL": "C", "NINJA_STATUS": _MARK}
    environ.pop("LD_PRELOAD", None)  # a sanitizer is meant for this process, not for compilers
    command = [find_ninja(), "-j", str(jobs)]
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environ,
        )
    except OSError as error:
        cause, hint = diagnose(str(error), 0)
        raise BuildError(cause, f"{command[0]} could not be started: {error}", hint) from error
    try:
        words, _ = process.communicate()
    except BaseException:
        process.terminate()  # ninja ends its compilers
        process.wait()
        raise
    blocks = [block.split("\n", 3) for block in f"\n{words}".split(f"\n{_MARK}")[1:]]
    if process.returncode == 0:
        return [block[0] for block in blocks]

    def tidy(text: str) -> str:  # the user's files in place of our copies
        return re.sub(rf"(?<![\w./-]){re.escape(config.csrc.name)}/", lambda _: f"{original}/", text)

    for what, *rest in blocks:
        if len(rest) == 3 and rest[0].startswith("FAILED:"):
            status = re.search(r"\[code=(\d+)\]", rest[0])
            said = re.sub(r"^ninja: build stopped.*$", "", rest[2], flags=re.MULTILINE).strip()
            # a compiler that ends without a word was killed, whatever its shell made of the signal
            cause, hint = diagnose(said, int(status[1]) if status and said else 137 if not said else 1)
            said = said or f"(no message; {rest[0].strip()})"
            if cause == "source-code" and config.torch.untried:
                hint = config.torch.untried
            what = what if what == "linking" else f"compiling {what}"
            raise BuildError(cause, tidy(f"{what} failed:\n{said}\nThe command was: {rest[1]}"), hint)
    cause, hint = diagnose(words, process.returncode)
    raise BuildError(cause, f"ninja failed:\n{words.strip()}", hint)


def build(config: Config, folder: Path, target: Path, *, jobs: int | None = None) -> dict[str, object]:
    """Compile what changed since the last build in ``folder``, and link the extension.

    A build takes the kept objects out of ``folder`` by renaming them into a folder of its own and gives them back at
    its end. So two builds never share them, and what the compilers of a killed one still write is nobody's.

    Args:
        config: what to build.
        folder: where objects of this :func:`settings_key` are kept.
        target: the shared object to write.
        jobs: compilers at once; chosen by :func:`max_jobs` when absent.

    Returns:
        The manifest (JSON-serialisable): what the object was made from and how long that took.

    Raises:
        BuildError: with the compiler's own message.
    """
    start, before = time.monotonic(), os.times()
    keep = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
    except OSError as error:
        cause, hint = diagnose(str(error), 0)
        raise BuildError(cause, str(error), hint) from error
    work, kept = private / "work", folder / "kept"
    try:
        try:
            kept.rename(work)
        except FileNotFoundError:
            work.mkdir()
        _snapshot(config, work / "csrc")
        units = translation_units(replace(config, csrc=work / "csrc"))
        jobs = jobs or max_jobs(units)
        # Longest first: nvcc before C++, large files before small ones.
        order = sorted(units, key=lambda u: (u.source.suffix != ".cu", -(work / "csrc" / u.source).stat().st_size))
        inside = replace(config, csrc=Path("csrc"))
        _write_if_new(work / "build.ninja", ninja_file(inside, order).encode())
        try:
            compiled = _run_ninja(inside, config.csrc, work, jobs)
        except BuildError as error:
            keep = not error.message.startswith("linking")  # a damaged object would be kept for ever
            raise
        shutil.copyfile(work / _LIBRARY, target)
        shutil.copymode(work / _LIBRARY, target)
    except OSError as error:
        cause, hint = diagnose(str(error), 0)
        raise BuildError(cause, str(error), hint) from error
    finally:
        try:
            if keep:
                work.rename(kept)
        except OSError:
            pass  # another build gave its own back first
        shutil.rmtree(private, ignore_errors=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "recipe": recipe(config.sources, standard=config.standard, sanitize=config.sanitize),
        "sources": config.sources,
        "units": [str(unit) for unit in units],
        "compiled": [what for what in compiled if what != "linking"],
        "isas": list(config.isas),
        "torch": config.torch.version,
        "compiler": config.compiler_version,
        "cuda": config.nvcc_version,
        "archs": list(config.archs),
        "cuda_reason": config.cuda_reason,
        "sanitize": config.sanitize,
        "seconds": round(time.monotonic() - start, 2),
        "processor_seconds": round(processor, 2),
        "jobs": jobs,
        **fingerprint(target),
    }


def what_was_compiled(manifest: Mapping[str, Any]) -> str:
    """Return the line that says of a finished build what it did and what it cost."""
    files = f"{len(manifest['compiled'])} of {len(manifest['units'])} files"
    return f"compiled {files} in {manifest['seconds']} s ({manifest['processor_seconds']} s of processor time)"


def fingerprint(library: Path) -> dict[str, object]:
    """Return name, size and SHA-256 of a shared object."""
    digest = hashlib.sha256()
    with library.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"library": library.name, "size": library.stat().st_size, "sha256": digest.hexdigest()}


def read_manifest(path: Path) -> dict[str, object] | None:
    """Return a manifest whose shared object lies beside it, complete and unchanged; else None."""
    try:
        manifest = json.loads(path.read_text())
        library = path.parent / str(manifest["library"])
        if library.stat().st_size != manifest["size"]:
            return None
        return manifest if fingerprint(library)["sha256"] == manifest["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
