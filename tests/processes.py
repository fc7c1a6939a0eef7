"""Processes for tests, forked from one that has imported torch: a tenth of a second each in place of three.

The server imports nothing of ours and computes nothing: what a process sets before it loads the extension counts.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.fsdp", "pytest", "hypothesis"])
CLI = "import sys; from mixsyn_fast import cli; sys.exit(cli.main(sys.argv[1:]))"


class Done(NamedTuple):
    """How a process ended: negative numbers are signals, as in subprocess; and what it wrote, errors included."""

    returncode: int
    output: str


class Child:
    """A process that runs ``code`` with ``sys.argv[1:] = argv``, in a session of its own.

    Args:
        code: Python.
        argv: arguments, turned into strings.
        env: added to this process' environment.
    """

    def __init__(self, code: str, argv: Sequence[object] = (), env: dict[str, str] | None = None) -> None:
        handle, name = tempfile.mkstemp(prefix="mixsyn_fast-test-")
        os.close(handle)
        self._output = Path(name)
        arguments = (code, [str(a) for a in argv], {**os.environ, **(env or {})}, name, os.getcwd())
        self.process: ForkServerProcess = _CONTEXT.Process(target=_run, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        """Process id, and id of the group of all that it starts."""
        assert self.process.pid is not None
        return self.process.pid

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text(errors="replace")

    def wait(self, timeout: float = 120) -> Done:
        """Wait for its end.

        Raises:
            TimeoutError: it was killed, for it took longer.
        """
        self.process.join(timeout)
        late = self.running()
        if late:
            self.process.kill()
            self.process.join()
        done = Done(self.process.exitcode or 0, self.output())
        self._output.unlink()
        if late:
            raise TimeoutError(f"not done after {timeout} s:\n{done.output[-4000:]}")
        return done


def run(code: str, argv: Sequence[object] = (), env: dict[str, str] | None = None, timeout: float = 120) -> Done:
    """Run Python code in a process of its own and wait for it."""
    return Child(code, argv, env).wait(timeout)


def run_on(instruction_set: str, code: str) -> None:
    """Run code that ends with print("followed") on the native kernels for an instruction set, and see that it was this one.

    Raises:
        AssertionError: it was another one, or the code did not come to its end; with what it wrote.
    """
    sure = (
        "import tests.conftest\n"
        "from mixsyn_fast import extension\n"
        "assert extension.ensure_loaded(), extension.failure()\n"
        f"assert extension.instruction_set() == {instruction_set!r}, extension.instruction_set()\n"
    )
    done = run(sure + code, env={"MIXSYN_FAST_CPU": instruction_set, "MIXSYN_FAST_BACKEND": "native"})
    assert done.returncode == 0 and done.output.endswith("followed\n"), done.output


def run_fresh(code: str, argv: Sequence[object] = (), env: dict[str, str] | None = None, timeout: float = 120) -> Done:
    """As :func:`run`, in a new interpreter: for what must be set before Triton is imported."""
    command = [sys.executable, "-c", code, *map(str, argv)]
    environ = {**os.environ, **(env or {})}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, timeout=timeout)
    return Done(done.returncode, done.stdout)


def start_ranks(code: str, argv: Sequence[object] = (), size: int = 2) -> list[Child]:
    """Start the processes of a group, in the surroundings that torchrun makes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [Child(code, argv, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]


def run_ranks(code: str, argv: Sequence[object] = (), size: int = 2, timeout: float = 120) -> None:
    """Run a group of processes.

    Raises:
        AssertionError: one did not end well; with what all have written.
    """
    ends = [child.wait(timeout) for child in start_ranks(code, argv, size)]
    assert not any(done.returncode for done in ends), "\n".join(f"{d.returncode}: {d.output[-3000:]}" for d in ends)


def _run(code: str, argv: list[str], env: dict[str, str], output: str, folder: str) -> None:
    """Body of a child."""
    gc.freeze()  # collections need not search what was imported
    os.setsid()
    handle = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["child", *argv]
    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    measured = None
    if "COVERAGE_PROCESS_CONFIG" in env:  # `make coverage`
        import coverage

        measured = coverage.process_startup(force=True)
    try:
        exec(compile(code, "<child>", "exec"), {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        if measured is not None:
            measured.stop()
            measured.save()
        sys.stdout.flush()
        sys.stderr.flush()
