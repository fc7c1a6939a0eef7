"""The real classes of other libraries, where `make compat` has installed them: beside the environment, not in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixsyn_fast import use_plan

LIBRARIES = Path(__file__).parents[2] / "build" / "compat"

if LIBRARIES.is_dir():
    sys.path.append(str(LIBRARIES))  # behind the environment's own packages


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is an error; layers as small as these would not take the table themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with use_plan("table"):
        yield
