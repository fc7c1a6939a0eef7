"""Options of `pytest benchmarks --benchmark-only`: --all-cases, --bench-data DIR."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    group = parser.getgroup("mixsyn_fast benchmarks")
    group.addoption("--all-cases", action="store_true", help="every row of the op cases, not the quick ones")
    group.addoption("--bench-data", metavar="DIR", help="folder with images/ and labels/ of faces")


def pytest_configure(config: pytest.Config) -> None:
    """Backward alone is timed with retain_graph=True, which torch.compile must allow for."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case and mode."""
    from benchmarks.cases import norm_cases, pattern_cases

    quick = not metafunc.config.getoption("--all-cases", default=False)
    if "norm_case" in metafunc.fixturenames:
        rows = norm_cases(quick=quick)
        metafunc.parametrize("norm_case", rows, ids=[row.name for row in rows], scope="module")
    if "pattern_case" in metafunc.fixturenames:
        rows = pattern_cases(quick=quick)
        metafunc.parametrize("pattern_case", rows, ids=[row.name for row in rows])
