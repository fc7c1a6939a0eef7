"""One registry of ops: an op is its own files and one line of ``ops/__init__.py``; all lists of ops follow from it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixsyn_fast import backend

ROOT = Path(__file__).resolve().parents[2]
OPS = backend.registered_ops()

TOY = '''
"""A toy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import Kernels, Op

__all__ = ["toy"]


@torch.library.custom_op("mixsyn_fast::toy", mutates_args=())
def _toy_op(x: Tensor) -> Tensor:
    return x.square()


@torch.library.custom_op("mixsyn_fast::toy_backward", mutates_args=())
def _backward_op(grad: Tensor, x: Tensor) -> Tensor:
    return 2 * grad * x


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(kernels: Kernels, ctx: Any, grad: Tensor) -> Tensor:
    return kernels.backward(grad, *ctx.saved_tensors)


_OP = Op(
    "toy",
    Kernels(_toy_op, _backward_op),
    Kernels(torch.empty_like, lambda grad, x: torch.empty_like(x)),
    _gradient,
    _setup_context,
    native=("cpu",),
)


def toy(x: Tensor) -> Tensor:
    """Square."""
    kernels = _OP.kernels(x)
    return x.square() if kernels is None else kernels.forward(x)
'''

LAUNCHERS = '''
"""The toy's launchers; a real one launches Triton kernels."""

from torch import Tensor


def toy(x: Tensor) -> Tensor:
    """Square, by other means."""
    return x * x


def toy_backward(grad: Tensor, x: Tensor) -> Tensor:
    """As the op."""
    return grad * (x + x)
'''

TRIAL = """
import json, sys, torch
import mixsyn_fast
from mixsyn_fast import backend, doctor

assert mixsyn_fast.__file__.startswith(sys.argv[1]), mixsyn_fast.__file__
op = sys.modules["mixsyn_fast.ops.toy"]._OP
results = {}
backend.extension.ensure_loaded = lambda: True  # the bodies in Python stand in for the toy's kernel
backend._triton_available = lambda: True
for name in ("native", "triton", "reference"):
    with mixsyn_fast.use_backend(name):
        x = torch.tensor([3.0], requires_grad=True)
        if name != "reference":
            torch.library.opcheck(op.native.forward if name == "native" else op.triton().forward, (x,))
        y = mixsyn_fast.toy(x)
        (grad,) = torch.autograd.grad(y, x, create_graph=True)
        compiled = torch.compile(mixsyn_fast.toy, fullgraph=True, backend="aot_eager")(x)
        refused = ""
        try:
            torch.autograd.grad(grad, x)
        except RuntimeError as error:
            refused = str(error)
        results[name] = [float(y), float(grad), float(compiled), refused, type(y.grad_fn).__name__]
results["doctor"] = doctor.examine()["ops"]["toy"]["cpu"]
print(json.dumps(results))
"""


def test_an_op_is_its_own_files_and_one_line(tmp_path: Path) -> None:
    """A copy of the package with a toy op: public, explained, listed by doctor, on every backend, without another edit."""
    package = tmp_path / "mixsyn_fast"
    shutil.copytree(ROOT / "mixsyn_fast", package, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    (package / "ops" / "toy.py").write_text(TOY)
    (package / "ops" / "triton_kernels" / "toy.py").write_text(LAUNCHERS)
    with (package / "ops" / "__init__.py").open("a") as file:
        file.write("from .toy import *\n")
    environ = {**os.environ, "TRITON_INTERPRET": "1", "MIXSYN_FAST_DISABLE_JIT": "1", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", TRIAL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for name in ("native", "triton", "reference"):
        y, grad, compiled, refused, node = results[name]
        assert (y, grad, compiled) == (9.0, 6.0, 9.0)
        assert ("mixsyn_fast::toy: double backward" in refused) == (name != "reference")
        assert ("triton" in node) == (name == "triton"), node
    assert results["doctor"] == {
        "backend": "native",
        "reason": "C++ kernel, not measured on this instruction set",
    }


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match=r"register: op: expected a new name, got 'region_norm'"):
        backend.register("region_norm", (), ())


def _names(path: Path) -> set[str]:
    """Ops that a file names: as words of its code, strings included, comments and docstrings not."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    code = ast.unparse(tree)
    return {op for op in OPS if op in code}


def test_no_other_file_lists_the_ops() -> None:
    assert len(OPS) >= 6
    line = ROOT / "mixsyn_fast" / "ops" / "__init__.py"
    assert _names(line) == set(OPS)
    for folder in ("mixsyn_fast", "models", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            # who uses some ops names them; who names most of them keeps a list
            if path == ROOT / "benchmarks" / "measured.py":
                continue  # a document shows rows of results, by their names
            assert path == line or len(_names(path)) <= len(OPS) // 2, f"{path} lists {_names(path)}"


@pytest.mark.parametrize("op", OPS)
def test_the_files_of_an_op(op: str) -> None:
    """Those that a person writes; benchmarks and gpu_check find the op by its bench."""
    files = [f"mixsyn_fast/ops/{op}.py", f"csrc/{op}_cpu.cpp", f"csrc/{op}_cuda.cpp", f"csrc/kernels/{op}.h"]
    files += [f"docs/ops/{op}.md", f"tests/ops/test_{op}.py", f"tests/ops/test_{op}_cuda.py"]
    files += [f"mixsyn_fast/ops/triton_kernels/{op}.py"] if backend._kernels[op][1] else []
    assert [file for file in files if not (ROOT / file).is_file()] == []
    from benchmarks.ops import BENCHES

    assert op in {bench.op for bench in BENCHES}
    assert hasattr(torch.ops.mixsyn_fast, op)
