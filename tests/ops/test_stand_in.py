"""The program that serves the ops without torch (tests/emulation/arm.py), compiled for this machine.

What it answers and what it refuses is what the extension answers and refuses, bit for bit and word for word. So what it says
of another processor is said of the ops.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.emulation import arm
from tests.ops import own_tests

globals().update(
    own_tests.named(only="follow_the_ref|statistics_alone|brute_force|for_themselves|itself_checks|out_of_range|masks$")
)


@pytest.fixture(scope="module")
def server() -> Iterator[arm.Server]:
    server = arm.served_here()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _same_as_the_extension(server: arm.Server, request: pytest.FixtureRequest) -> Iterator[None]:
    server.calls = []
    if request.function is test_a_wrong_answer_is_seen:
        yield
        return
    with own_tests.run_by(server, request):
        yield
    for call in server.calls:
        assert_as_the_extension(call)


def assert_as_the_extension(call: arm.Call) -> None:
    """The extension answers a call as it was answered."""
    op = getattr(torch.ops.mixsyn_fast, call.op)
    if call.error is not None:
        with pytest.raises(RuntimeError) as caught:
            op(*call.arguments)
        assert _words(str(caught.value)) == _words(call.error)
        return
    answer = op(*call.arguments)
    for served, own in zip(call.results, (answer,) if isinstance(answer, Tensor) else answer, strict=True):
        assert served.stride() == own.stride() and served.dtype == own.dtype
        assert torch.equal(served.isnan(), own.isnan()), call.op
        assert torch.equal(served.nan_to_num(), own.nan_to_num()), call.op


def _words(message: str) -> str:
    """Without the place in the source, and what torch adds below."""
    return message[message.index("mixsyn_fast::") :].splitlines()[0]


def test_a_wrong_answer_is_seen(server: arm.Server) -> None:
    """One unit in the last place, one NaN, one word, other strides."""
    x = torch.randn(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    arguments = (x, *[None] * 8, 2, 1e-5, None, 0, False)
    server.call("region_norm", *arguments)
    with pytest.raises(RuntimeError, match="mixsyn_fast::region_norm: x: expected shape"):
        server.call("region_norm", x[0], *arguments[1:])
    answered, refused = server.calls or []
    assert_as_the_extension(answered)
    assert_as_the_extension(refused)
    y, mean, variance = answered.results
    bent, gap = y.clone(), y.clone()
    bent[0, 0, 0, 0] = torch.nextafter(bent[0, 0, 0, 0], torch.tensor(9.0))
    gap[0, 0, 0, 0] = torch.nan
    wrong = [answered._replace(results=[other, mean, variance]) for other in (bent, gap, y.contiguous())]
    for call in [*wrong, refused._replace(error=f"{refused.error}s")]:
        with pytest.raises(AssertionError):
            assert_as_the_extension(call)
