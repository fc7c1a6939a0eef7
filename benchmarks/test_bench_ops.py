"""The op cases under pytest-benchmark, for regression tracking: `pytest benchmarks --benchmark-only`.

Every contender passes the correctness gate before it is timed. `--all-cases` runs the standard rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from benchmarks.cases import label_source
from benchmarks.ops import OpBench
from mixsyn_fast.measure.gate import Gate

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (extra [bench])")


@lru_cache(maxsize=1)  # the tests of a row follow each other
def bench_of_row(kind: type[OpBench], case: Any, data: str | None) -> tuple[OpBench, dict[str, Gate]]:
    """The inputs of one row and the verdicts of its contenders."""
    bench = kind(case, label_source(data))
    for name in bench.seldom:
        bench.functions.pop(name)
    return bench, bench.gates()


def test_op(
    benchmark: Any, request: pytest.FixtureRequest, op_row: tuple[type[OpBench], Any], contender: str, mode: str
) -> None:
    """Time one contender of one row."""
    bench, verdicts = bench_of_row(*op_row, request.config.getoption("--bench-data", default=None))
    verdict = verdicts[contender]
    assert verdict.passed, f"{verdict.what}: error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
    with bench.thread_count():
        call = bench.calls(mode, [contender])[contender]
        benchmark.group = f"{bench.case.name} {mode}"
        benchmark.extra_info.update(error=verdict.error, bytes=sum(part.bytes for part in bench.parts(mode)))
        benchmark.pedantic(call, rounds=7, iterations=1, warmup_rounds=2)
