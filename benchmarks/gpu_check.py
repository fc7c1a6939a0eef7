"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu_check --out DIR``.

Stages, each in a process of its own with a time limit: the machine; the build of the extension with its CUDA kernels;
``pytest -m gpu``; compute-sanitizer (memcheck, racecheck, synccheck) on one small call per kernel, forward and backward; the
benchmarks of the ops in bfloat16 and float32, with plots, and of the generators. DIR gets one log per stage, the benchmarks'
JSON, and summary.json, rewritten after every stage so that an interrupted run keeps what it found. A failed stage never
stops the next one.

Exit status: 0 all stages passed (or were not possible here, with the reason in the summary), 1 something failed, 2 there
is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 2
TOOLS = ("memcheck", "racecheck", "synccheck")


@dataclass
class Stage:
    """Outcome of one stage; ``status`` is passed, failed, timeout or skipped."""

    name: str
    status: str = "failed"
    seconds: float = 0.0
    reason: str = ""
    log: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


# --- what compute-sanitizer watches ----------------------------------------------------------------------------------


def sanitizer_targets(device: str = "cuda") -> dict[str, Callable[[], None]]:
    """One small call per kernel, odd sizes included; run by name in a process under compute-sanitizer.

    Args:
        device: another one tries the calls out where there is no GPU.
    """
    from mixsyn_fast import extension

    from .ops import BENCHES

    extension.ensure_loaded()
    return {name: call for bench in BENCHES for name, call in bench.sanitizer_targets(device).items()}


def run_sanitizer_targets() -> int:
    """Run all of them, here and now (the process is already under compute-sanitizer)."""
    import torch

    for name, call in sanitizer_targets().items():
        call()
        torch.cuda.synchronize()
        print(f"ran {name}", flush=True)
    return 0


# --- stages ----------------------------------------------------------------------------------------------------------


class Checker:
    """Runs stages and keeps the summary.

    Args:
        out: folder for logs and results.
        factor: all time limits are multiplied by it.
    """

    def __init__(self, out: Path, factor: float) -> None:
        self.out, self.factor = out, factor
        self.stages: list[Stage] = []
        self.started = time.time()
        self.environ = {**os.environ, "MIXSYN_FAST_STRICT": "1", "FORCE_CUDA": "1", "PYTHONUNBUFFERED": "1"}
        self.environ.pop("MIXSYN_FAST_DISABLE_JIT", None)
        self.package = self._locate_package()

    def _locate_package(self) -> str:
        """Make ``mixsyn_fast`` with its models importable: the installed one, else this clone laid out like it."""
        probe = [sys.executable, "-P", "-c", "import mixsyn_fast.models, mixsyn_fast; print(mixsyn_fast.__file__)"]
        found = subprocess.run(probe, capture_output=True, text=True, cwd=self.out, env=self.environ)
        layout = self.out / "layout"
        shutil.rmtree(layout, ignore_errors=True)
        layout.mkdir()
        (layout / "benchmarks").symlink_to(ROOT / "benchmarks")
        if found.returncode != 0:
            package = layout / "mixsyn_fast"
            package.mkdir()
            for entry in (ROOT / "mixsyn_fast").iterdir():
                (package / entry.name).symlink_to(entry)
            (package / "models").symlink_to(ROOT / "models")
            (package / "_csrc").symlink_to(ROOT / "csrc")
        inherited = self.environ.get("PYTHONPATH")
        self.environ["PYTHONPATH"] = os.pathsep.join([str(layout), *([inherited] if inherited else [])])
        return found.stdout.strip() if found.returncode == 0 else f"this clone, linked into {layout}"

    def run(self, name: str, command: Sequence[str], limit: float, *, environ: dict[str, str] | None = None) -> Stage:
        """Run one command with a limit in seconds; everything it prints goes to DIR/<name>.log."""
        log = self.out / f"{name}.log"
        stage = Stage(name, log=log.name)
        self.stages.append(stage)
        print(f"[{time.time() - self.started:6.0f} s] {name}: {' '.join(command[:6])} ...", flush=True)
        begin = time.time()
        with log.open("w") as sink:
            process = subprocess.Popen(
                list(command), stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
                env={**self.environ, **(environ or {})},
            )  # fmt: skip
            try:
                code = process.wait(limit * self.factor)
                stage.status = "passed" if code == 0 else "failed"
                stage.facts["exit_status"] = code
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                stage.status, stage.reason = "timeout", f"more than {limit * self.factor:.0f} s"
        stage.seconds = round(time.time() - begin, 1)
        if stage.status == "failed":
            stage.reason = " | ".join(log.read_text(errors="replace").splitlines()[-3:])[-600:]
        self.finish(stage)
        return stage

    def skip(self, name: str, reason: str) -> None:
        """Record that a stage is not possible here."""
        stage = Stage(name, "skipped", reason=reason)
        self.stages.append(stage)
        self.finish(stage)

    def finish(self, stage: Stage) -> None:
        """Report a stage and write the summary."""
        print(f"[{time.time() - self.started:6.0f} s] {stage.name}: {stage.status} {stage.reason}", flush=True)
        self.write()

    def write(self) -> None:
        """Write summary.json."""
        summary = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "package": self.package,
            "passed": all(stage.status in ("passed", "skipped") for stage in self.stages),
            "stages": self.stages,
        }
        from mixsyn_fast.writing import write_json  # not before the machine is known to have torch

        write_json(self.out / "summary.json", summary)

    def python(self, *arguments: str) -> list[str]:
        """Return a command of this Python that does not see the working folder before the package."""
        return [sys.executable, "-P", *arguments]

    # each stage below is one line of the module's text

    def machine(self) -> None:
        """Driver, GPU, versions."""
        code = (
            "import json, torch; p = torch.cuda.get_device_properties(0); print(json.dumps({'gpu': p.name, "
            "'capability': f'{p.major}.{p.minor}', 'multiprocessors': p.multi_processor_count, "
            "'memory': p.total_memory, 'torch': torch.__version__, 'cuda': torch.version.cuda}))"
        )
        stage = self.run("machine", self.python("-c", code), 180)
        if stage.status == "passed":
            stage.facts |= json.loads((self.out / stage.log).read_text().splitlines()[-1])
        stage.facts |= {"python": platform.python_version(), "platform": platform.platform()}
        if shutil.which("nvidia-smi"):
            fields = "driver_version,clocks.max.sm,clocks.max.memory,power.limit"
            asked = subprocess.run(
                ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True
            )
            stage.facts["nvidia_smi"] = asked.stdout.strip()
        self.write()

    def build(self) -> None:
        """Build and load the extension; it must hold the CUDA kernels."""
        code = (
            "import json; from mixsyn_fast import extension; ok = extension.ensure_loaded(); "
            "print(extension.failure()); print(json.dumps(extension.build_report(), default=str)); "
            "assert ok and extension.has_cuda(), 'no CUDA kernels'"
        )
        stage = self.run("build", self.python("-c", code), 900)
        lines = (self.out / stage.log).read_text(errors="replace").splitlines()
        reports = [line for line in lines if line.startswith("{")]
        if reports:
            stage.facts["report"] = json.loads(reports[-1])
        self.write()

    def tests(self) -> None:
        """All tests marked gpu."""
        if importlib.util.find_spec("pytest") is None:
            self.skip("tests", "pytest is not installed")
            self.stages[-1].status = "failed"
            return
        junit = self.out / "tests.xml"
        command = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", "tests"]
        stage = self.run("tests", self.python(*command), 2400)
        if junit.is_file():
            counts = re.search(
                r'<testsuite [^>]*errors="(\d+)" failures="(\d+)" skipped="(\d+)" tests="(\d+)"', junit.read_text()
            )
            if counts:
                names = ("errors", "failures", "skipped", "tests")
                stage.facts |= dict(zip(names, map(int, counts.groups()), strict=True))
                if stage.facts["tests"] == stage.facts["skipped"] and stage.status == "passed":
                    stage.status, stage.reason = "failed", "every test was skipped"
        self.write()

    def sanitizer(self) -> None:
        """compute-sanitizer over every kernel."""
        tool = shutil.which("compute-sanitizer")
        if tool is None and (Path("/usr/local/cuda/bin/compute-sanitizer")).is_file():
            tool = "/usr/local/cuda/bin/compute-sanitizer"
        for check in TOOLS:
            name = f"sanitizer_{check}"
            if tool is None:
                self.skip(name, "compute-sanitizer is not installed")
                continue
            # without torch's caching allocator every tensor is an allocation of its own, with guarded ends
            environ = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}
            target = self.python("-m", "benchmarks.gpu_check", "--sanitizer-target")
            options = ["--tool", check, "--error-exitcode", "99", "--target-processes", "all"]
            stage = self.run(name, [tool, *options, *target], 1800, environ=environ)
            text = (self.out / stage.log).read_text(errors="replace")
            summary = re.findall(r"ERROR SUMMARY: \d+ errors?.*|RACECHECK SUMMARY: .*", text)
            stage.facts["summary"], stage.facts["calls"] = summary[-1:], text.count("ran ")
            unable = ("Device not supported", "Unable to", "Internal Sanitizer Error")
            if stage.status == "failed" and not summary and any(word in text for word in unable):
                stage.status, stage.reason = "skipped", f"compute-sanitizer cannot work here: {stage.reason}"
            self.write()

    def benchmarks(self) -> None:
        """Ops in bfloat16 and float32, the face hierarchy as a CUDA graph among them; plots; generators."""
        for dtype in ("bfloat16", "float32"):
            out = self.out / f"ops_{dtype}.json"
            command = ["-m", "benchmarks.run_ops", "--device", "cuda", "--dtype", dtype, "--out", str(out)]
            self._with_json(self.run(f"run_ops_{dtype}", self.python(*command), 2700), out)
        if importlib.util.find_spec("matplotlib") is None:
            self.skip("plot_ops", "matplotlib is not installed")
        else:
            command = ["-m", "benchmarks.plot_ops", "--device", "cuda", "--out", str(self.out)]
            self._with_json(self.run("plot_ops", self.python(*command), 900), self.out / "plot_ops_cuda.json")
        out = self.out / "models.json"
        command = ["-m", "benchmarks.run_models", "--device", "cuda", "--out", str(out)]
        self._with_json(self.run("run_models", self.python(*command), 3600), out)

    def _with_json(self, stage: Stage, out: Path) -> None:
        stage.facts["json"] = out.name if out.is_file() else None
        if stage.status == "passed" and not out.is_file():
            stage.status, stage.reason = "failed", f"{out.name} was not written"
        self.write()


STAGES = ("machine", "build", "tests", "sanitizer", "benchmarks")


def gpu_missing() -> str | None:
    """Return why there is no GPU to check, or None."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_check", help="folder")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--time-factor", type=float, default=1.0, help="multiply all time limits")
    parser.add_argument("--sanitizer-target", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    chosen = [name for name in options.stages.split(",") if name]
    if unknown := [name for name in chosen if name not in STAGES]:
        parser.error(f"--stages: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    if (reason := gpu_missing()) is not None:
        print(f"gpu_check: nothing was checked: there is no usable GPU ({reason}).", file=sys.stderr)
        print("Run it on a machine with an NVIDIA GPU, a CUDA build of torch and nvcc.", file=sys.stderr)
        return NO_GPU
    if options.sanitizer_target:
        return run_sanitizer_targets()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    checker = Checker(out, options.time_factor)
    for name in chosen:
        getattr(checker, name)()
    checker.write()
    failed = [stage.name for stage in checker.stages if stage.status not in ("passed", "skipped")]
    print(f"\n{'FAILED: ' + ', '.join(failed) if failed else 'passed'}; see {out / 'summary.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
