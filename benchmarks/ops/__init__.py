"""The benches of the ops: one file per op, all built on :class:`benchmarks.ops.base.OpBench`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from .base import OpBench, backends_for

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
BENCHES: tuple[type[OpBench], ...] = tuple(OpBench.found)


def all_cases(*, quick: bool = False, every: bool = False, dtype: str = "float32") -> list[tuple[type[OpBench], Any]]:
    """The rows of all ops, each with its bench: a few small ones, the standard ones, or all."""
    return [(bench, case) for bench in BENCHES for case in bench.cases(quick=quick, every=every, dtype=dtype)]


__all__ = ["BENCHES", "OpBench", "all_cases", "backends_for"]
