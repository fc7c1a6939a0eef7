"""The ops on 64-bit Arm: every op's own tests once more, with its kernels compiled for that processor and run under qemu.

A stand-in for torch's stable ABI takes torch's place there (tests/emulation/arm.py); test_stand_in.py shows that it is
honest.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.emulation import arm
from tests.ops import own_tests

# What asks nothing of the processor (Python's checks, tracing, autograd's rules), what is done in other processes, and what
# is too large to be emulated.
_LEFT_OUT = "opcheck|compile|gradcheck|autocast|threads|processes|instruction_sets|larger_than|real_|pack_and_split"
_LEFT_OUT += "|test_bad_|layouts$|double_backward|second_backward|public_name"

globals().update(own_tests.named(leave_out=_LEFT_OUT))


@pytest.fixture(scope="module")
def server() -> Iterator[arm.Server]:
    if (reason := arm.missing()) is not None:
        pytest.skip(reason)
    server = arm.served()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _on_arm(server: arm.Server, request: pytest.FixtureRequest) -> Iterator[None]:
    with own_tests.run_by(server, request):
        yield
