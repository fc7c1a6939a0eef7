"""The ops on 64-bit Arm: every op's own tests once more, with its kernels compiled for that processor and run under qemu.

A stand-in for torch's stable ABI replaces torch itself there (tests/emulation/arm.py). Compiled for this machine the same
program must give the answers of the extension, bit for bit.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mixsyn_fast import backend, extension
from tests.emulation import arm

# What asks nothing of the processor (Python's checks, tracing, autograd's rules), is another process, or takes long emulated.
LEFT_OUT = re.compile(
    "opcheck|compile|gradcheck|autocast|threads|processes|instruction_sets|without_the_extension|larger_than_the_caches"
    "|test_bad_|layouts$|double_backward|second_backward|public_name|real_"
)


def _own_tests() -> Iterator[tuple[str, Callable[..., None]]]:
    for op in backend.registered_ops():
        module = importlib.import_module(f"tests.ops.test_{op}")
        for name, test in vars(module).items():
            if name.startswith("test_") and not LEFT_OUT.search(name):
                yield f"test_{op}_{name.removeprefix('test_')}", test


globals().update(_own_tests())


def kernels() -> list[str]:
    """Names of all kernels of the CPU, backward and statistics included."""
    names = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mixsyn_fast::")]
    return [name for name in names if not name.endswith("_triton")]


@pytest.fixture(scope="module", autouse=True)
def on_arm() -> Iterator[arm.Server]:
    """The kernels of this module's tests are those for 64-bit Arm."""
    if (reason := arm.missing()) is not None:
        pytest.skip(reason)
    assert extension.ensure_loaded(), extension.failure()
    server = arm.served()
    with server.in_place_of_the_kernels(kernels()):
        yield server
    server.close()
