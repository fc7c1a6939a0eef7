"""Where MIXSYN_FAST_CPU lowers the instruction set (`make test-isas`), the op tests are sure that it does."""

from __future__ import annotations

import os

import pytest

from mixsyn_fast import extension


def pytest_sessionstart() -> None:
    """End the session unless what is asked for is in force."""
    wanted = os.environ.get("MIXSYN_FAST_CPU")
    if wanted and (not extension.ensure_loaded() or extension.instruction_set() != wanted):
        found = extension.instruction_set() or extension.failure()
        pytest.exit(f"MIXSYN_FAST_CPU: expected {wanted} to be in force, got {found}", returncode=1)
