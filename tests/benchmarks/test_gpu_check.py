"""gpu_check without a GPU: it says so; its bookkeeping works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks import gpu_check  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == gpu_check.NO_GPU
    assert "no usable GPU" in done.stderr and not (tmp_path / "out").exists()


def test_failures_and_timeouts_are_recorded(tmp_path: Path) -> None:
    checker = gpu_check.Checker(tmp_path, 1.0)
    checker.run("good", [sys.executable, "-c", "print('fine')"], 60)
    checker.run("bad", [sys.executable, "-c", "raise SystemExit('told you')"], 60)
    checker.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    checker.skip("absent", "no such tool")
    summary = json.loads((tmp_path / "summary.json").read_text())
    stages = {stage["name"]: stage for stage in summary["stages"]}
    assert [stage["status"] for stage in stages.values()] == ["passed", "failed", "timeout", "skipped"]
    assert "told you" in stages["bad"]["reason"] and stages["bad"]["facts"]["exit_status"] == 1
    assert stages["absent"]["reason"] == "no such tool"
    assert not summary["passed"]
    assert (tmp_path / "good.log").read_text() == "fine\n"


def test_the_package_is_found_with_its_models(tmp_path: Path) -> None:
    """Installed or not: stages import mixsyn_fast, mixsyn_fast.models and benchmarks."""
    checker = gpu_check.Checker(tmp_path, 1.0)
    code = "import mixsyn_fast.models, mixsyn_fast.ops.region_norm, benchmarks"
    stage = checker.run("imports", checker.python("-c", code), 120)
    assert stage.status == "passed", (tmp_path / stage.log).read_text()


def test_sanitizer_targets_name_every_op_and_run() -> None:
    """The same calls on the CPU, where every op has a kernel too."""
    from mixsyn_fast.backend import registered_ops

    targets = gpu_check.sanitizer_targets("cpu")
    for op in registered_ops():
        of_op = {name: call for name, call in targets.items() if name.startswith(op)}
        assert of_op, op
        for dtype in () if op == "label_patterns" else ("float32", "bfloat16"):
            assert any(dtype in name for name in of_op), f"{op} {dtype}"
        for name in list(of_op)[::5]:
            of_op[name]()
