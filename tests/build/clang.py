"""Compile every source with clang, warnings being errors, and write no object: ``python -m tests.build.clang``.

For this machine, every instruction set, and for 64-bit Arm with the headers of Debian's cross compiler: the nearest thing to
Apple's clang that can be had elsewhere. Neither can be had everywhere: what is missing is said and passed over. What does not
compile ends the run with status 1.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mixsyn_fast import _build

ROOT = Path(__file__).resolve().parents[2]
ARM = "aarch64-linux-gnu"


def failures(command: Sequence[str], csrc: Path) -> tuple[int, list[str]]:
    """Compile every C++ source with a command; return the number of compilations and the errors.

    Objects are made, not the syntax alone checked: what an instruction set lacks is told by the code generator.
    """
    environ = {**os.environ, "CXX": shlex.join(command), "FORCE_CPU": "1"}
    config = _build.configure(jit=False, csrc=csrc, environ=environ)
    units = _build.translation_units(config)
    if config.target.split("-")[0] != os.uname().machine:  # Python's headers are those of this machine
        units = [unit for unit in units if unit.source.name != "module.cpp"]

    def compiled(number: int) -> str | None:
        words = _build.compile_command(config, units[number], Path(folder) / f"{number}.o")
        said = subprocess.run([*words, "-Werror"], capture_output=True, text=True)
        return None if said.returncode == 0 else f"{units[number]} with {shlex.join(command)}:\n{said.stderr}"

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_build.max_jobs(units)) as pool:
        return len(units), [words for words in pool.map(compiled, range(len(units))) if words is not None]


def main(csrc: Path = ROOT / "csrc") -> int:
    """Compile for this machine and for 64-bit Arm; return the exit status."""
    clang = shlex.split(os.environ.get("CLANG", "clang++"))
    if shutil.which(clang[0]) is None:
        print(f"no {clang[0]} here: nothing was compiled with it (`apt install clang`)")
        return 0
    commands = [clang]
    if shutil.which(f"{ARM}-g++"):
        commands.append([*clang, f"--target={ARM}"])
    else:
        print(f"no C++ headers for {ARM} here: nothing was compiled for it (`apt install g++-{ARM}`)")
    status = 0
    for command in commands:
        start = time.monotonic()
        count, words = failures(command, csrc)
        took = f"{time.monotonic() - start:.0f} s"
        print(f"{shlex.join(command)}: {count - len(words)} of {count} compilations without a warning ({took})")
        if words:
            print("\n".join(words), file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
