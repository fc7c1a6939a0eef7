"""The tests of the ops once more, for kernels that run elsewhere than in the extension (tests/emulation/arm.py)."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mixsyn_fast import backend, extension, use_backend
from tests.emulation import arm

LARGE = 100_000  # elements; beyond, float32 alone


def named(*, only: str = "", leave_out: str = "^$") -> dict[str, Callable[..., None]]:
    """Return the tests in tests/ops/test_<op>.py of every op, under names that tell the op.

    Args:
        only: a regular expression that their names contain.
        leave_out: one that their names do not contain.
    """
    found = {}
    for op in backend.registered_ops():
        for name, test in vars(importlib.import_module(f"tests.ops.test_{op}")).items():
            if name.startswith("test_") and re.search(only, name) and not re.search(leave_out, name):
                found[f"test_{op}_{name.removeprefix('test_')}"] = test
    return found


def kernels() -> list[str]:
    """Names of all kernels of the CPU, backward and statistics included."""
    names = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mixsyn_fast::")]
    return [name for name in names if not name.endswith("_triton")]


@contextmanager
def run_by(server: arm.Server, request: pytest.FixtureRequest) -> Iterator[None]:
    """Within, a test's kernels run in another program; skips what asks nothing of it or is too large.

    Raises:
        AssertionError: the test asked nothing of it.
    """
    parameters: dict[str, Any] = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") == "reference":
        pytest.skip("the reference runs no kernel")
    if math.prod(parameters.get("shape", ())) > LARGE and parameters.get("dtype", torch.float32) != torch.float32:
        pytest.skip("large shapes are tried in float32 alone")
    assert extension.ensure_loaded(), extension.failure()
    before = server.served
    with use_backend("native"), server.in_place_of_the_kernels(kernels()):  # `auto` may know of faster references here
        yield
    assert server.served > before, "this test asks nothing of the kernels: leave it out"
