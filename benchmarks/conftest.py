"""Options of `pytest benchmarks --benchmark-only`: --all-cases, --bench-data DIR."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    group = parser.getgroup("mixsyn_fast benchmarks")
    group.addoption("--all-cases", action="store_true", help="the standard rows of the ops, not the quick ones")
    group.addoption("--bench-data", metavar="DIR", help="folder with images/ and labels/ of faces")


def pytest_configure(config: pytest.Config) -> None:
    """Backward alone is timed with retain_graph=True, which torch.compile must allow for."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per row, contender and mode."""
    if "op_row" not in metafunc.fixturenames:
        return
    from benchmarks.ops import all_cases, backends_for

    quick = not metafunc.config.getoption("--all-cases", default=False)
    tests = [
        (row, contender, mode)
        for row in all_cases(quick=quick)
        for contender in (row[0].baseline, *backends_for("cpu"))
        for mode in row[0].modes
    ]
    ids = [f"{case.name}-{contender}-{mode}" for (_, case), contender, mode in tests]
    metafunc.parametrize(("op_row", "contender", "mode"), tests, ids=ids)
