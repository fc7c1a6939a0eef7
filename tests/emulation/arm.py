"""The CPU ops compiled for another processor, 64-bit Arm above all, and run in a process of their own under qemu.

Kernels (csrc/cpu/*.cpp) and torch side (csrc/*_cpu.cpp) are the real ones, compiled with the flags of the real build. torch
itself is not there: headers of torch_alone/ stand in for what the torch side asks of its stable ABI, and a program,
serve.cpp, answers calls that come through a pipe. Compiled for this machine it shows that the stand-in is honest.

Environment: MIXSYN_FAST_ARM_CXX, another cross compiler than ``aarch64-linux-gnu-g++``, such as
``clang++ --target=aarch64-linux-gnu``.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import struct
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixsyn_fast import _build
from tests.emulation import objects
from tests.emulation.objects import ROOT

CSRC = ROOT / "csrc"
ALONE = ROOT / "tests" / "emulation" / "torch_alone"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
# torch's numbers of element types (torch/headeronly/core/ScalarType.h), in their order
_DTYPES = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5, torch.float32: 6,
    torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
_OF_NUMBER = {number: dtype for dtype, number in _DTYPES.items()}


def cross_compiler() -> list[str]:
    """Return the command of the cross compiler."""
    return shlex.split(os.environ.get("MIXSYN_FAST_ARM_CXX", "")) or ["aarch64-linux-gnu-g++"]


def emulator() -> str | None:
    """Return qemu's program for 64-bit Arm, or None."""
    return next((found for name in EMULATORS if (found := shutil.which(name))), None)


def missing() -> str | None:
    """Say what is missing on this machine to compile and run for 64-bit Arm, or return None."""
    if platform.machine() in ("aarch64", "arm64"):
        return "this machine is one: the ops' own tests run on it"
    if shutil.which(cross_compiler()[0]) is None:
        return f"no {cross_compiler()[0]} (`apt install g++-aarch64-linux-gnu`)"
    if emulator() is None:
        return "no qemu-aarch64 (`apt install qemu-user`)"
    return None


def build(config: _build.Config, made: Mapping[_build.Unit, Path] | None = None) -> Path:
    """Compile what has changed since any earlier build (tests/emulation/objects.py), and return the program.

    Args:
        config: for which processor, by which compiler.
        made: objects of kernels that somebody else has compiled so.

    Raises:
        RuntimeError: the compiler's message.
    """
    versions = f"{config.compiler_version} {config.torch.version}"
    includes = [f"-I{ALONE.relative_to(ROOT)}", "-Icsrc", "-isystem", str(config.torch.root / "include")]
    target = f"-DTORCH_TARGET_VERSION={_build.TORCH_TARGET_VERSION}"
    made = made or {}
    wanted = [unit for unit in _build.translation_units(config) if unit.source.name != "module.cpp" and unit not in made]
    sources = {unit: CSRC / unit.source for unit in wanted}
    sources[_build.Unit(Path("serve.cpp"))] = ALONE / "serve.cpp"
    # once per instruction set: the source is the same, so versions tell the objects apart
    units = {
        (source, f"{versions} {unit}"): [
            *config.compiler, *_build.cxx_flags(config), target, *_build.isa_flags(config, unit), *includes
        ]
        for unit, source in sources.items()
    }  # fmt: skip
    folders = [CSRC, CSRC / "cpu", ALONE]
    return objects.build("mixsyn_fast-served", units, [*config.compiler, "-static", "{}"], folders, [*made.values()])


class Call(NamedTuple):
    """A call that was answered: its results, or the message of its error."""

    op: str
    arguments: tuple[Any, ...]
    results: list[Tensor]
    error: str | None


class Server:
    """The program in a process, started by the first call and started again after one that killed it.

    Args:
        command: starts the program.
        environ: added to this process' environment.
    """

    def __init__(self, command: Sequence[str | Path], environ: dict[str, str] | None = None) -> None:
        self.command = [str(word) for word in command]
        self.environ = {**os.environ, **(environ or {})}
        self.calls: list[Call] | None = None  # where a test wants to see them
        self.served = 0
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, op: str, *arguments: Any) -> Any:
        """Run an op with the arguments of its schema; one tensor or a tuple of them, as torch.ops.mixsyn_fast does.

        Raises:
            RuntimeError: with the op's own message, or because the program died.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, env=self.environ)
        words = op.encode() + b"\0" + b"".join(map(_packed, arguments))
        self.served += 1
        results, error = [], None
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(struct.pack("<q", len(words)) + words)
            self._process.stdin.flush()
            if self._read(1) == b"r":
                results = [self._tensor() for _ in range(self._number())]
            else:
                error = self._read(self._number()).decode()
        except (BrokenPipeError, EOFError):
            status = self._process.wait()
            raise RuntimeError(f"{op}: {' '.join(self.command)} ended with status {status}") from None
        if self.calls is not None:
            self.calls.append(Call(op, arguments, results, error))
        if error is not None:
            raise RuntimeError(error)
        return results[0] if len(results) == 1 else tuple(results)

    def op(self, name: str) -> Callable[..., Any]:
        """Return an op as a function."""
        return functools.partial(self.call, name)

    @contextmanager
    def in_place_of_the_kernels(self, names: Sequence[str]) -> Iterator[None]:
        """Within, torch.ops.mixsyn_fast runs this program for tensors on the CPU.

        Args:
            names: of the ops.
        """
        library = torch.library.Library("mixsyn_fast", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="(?s).*[Oo]verrid", category=UserWarning)
                for name in names:
                    library.impl(name, self.op(name), "CPU", allow_override=True)
            yield
        finally:
            library._destroy()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
            self._process.wait()
            self._process = None

    def _read(self, n: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        found = self._process.stdout.read(n)
        if len(found) != n:
            raise EOFError
        return found

    def _numbers(self, n: int) -> tuple[int, ...]:
        return struct.unpack(f"<{n}q", self._read(8 * n))

    def _number(self) -> int:
        return self._numbers(1)[0]

    def _tensor(self) -> Tensor:
        dtype, dim = _OF_NUMBER[self._number()], self._number()
        sizes, strides = self._numbers(dim), self._numbers(dim)
        memory = bytearray(self._read(self._number()))
        if not memory:
            return torch.empty(0, dtype=dtype).as_strided(sizes, strides)
        # a copy: torch's own memory is aligned
        return torch.frombuffer(memory, dtype=dtype).clone().as_strided(sizes, strides)


def _packed(value: Any) -> bytes:
    """One argument as torch_alone/torch/csrc/stable/library.h reads it."""
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"b" + bytes([value])
    if isinstance(value, int):
        return b"i" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    if isinstance(value, Tensor):
        t = value.detach()
        sizes = [*t.shape, *t.stride()]
        head = struct.pack(f"<{3 + len(sizes)}q", _DTYPES[t.dtype], t.dim(), t.data_ptr() % 64, *sizes)
        if t.numel() == 0:
            return b"t" + head
        span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return b"t" + head + t.as_strided((span,), (1,)).view(torch.uint8).numpy().tobytes()
    return b"l" + struct.pack(f"<{1 + len(value)}q", len(value), *value)


@functools.cache
def served() -> Server:
    """Return the program for 64-bit Arm, under the emulator."""
    found = emulator()
    assert found is not None
    environ = {**os.environ, "CXX": shlex.join(cross_compiler()), "FORCE_CPU": "1"}
    return Server([found, build(_build.configure(jit=False, csrc=CSRC, environ=environ))])


@functools.cache
def served_here() -> Server:
    """Return the program for this machine and its best instruction set (or MIXSYN_FAST_CPU), without an emulator.

    Its kernels are the objects that setup.py made of these very sources, where it did.
    """
    environ = {**os.environ, "FORCE_CPU": "1"}
    config = _build.configure(jit=False, csrc=CSRC, environ=environ)
    kept = ROOT / "build" / _build.settings_key(config) / "kept"
    made = {unit: kept / "objects" / unit.object for unit in _build.translation_units(config) if unit.isa}
    manifest = _build.read_manifest(ROOT / "mixsyn_fast" / _build.MANIFEST) or {}
    sources = {manifest.get("sources"), _build.sources_hash(kept / "csrc"), config.sources}
    if len(sources) > 1 or not all(path.is_file() for path in made.values()):
        return Server([build(_build.configure(jit=True, csrc=CSRC, environ=environ))])
    return Server([build(config, made)])
