"""The op cases under pytest-benchmark, for regression tracking: `pytest benchmarks --benchmark-only`.

Every contender passes the correctness gate before it is timed. `--all-cases` runs every row.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixsyn_fast.models.data import NUM_CLASSES

from benchmarks.cases import NormCase, PatternCase, label_source
from benchmarks.run_ops import MODES, NormBench, backends_for
from mixsyn_fast import backend
from mixsyn_fast.ops.label_patterns import label_patterns

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (extra [bench])")


@pytest.fixture(scope="module")
def norm_bench(norm_case: NormCase, request: pytest.FixtureRequest) -> tuple[NormBench, dict[str, Any]]:
    """The inputs of one row and the verdicts of its contenders."""
    bench = NormBench(norm_case, label_source(request.config.getoption("--bench-data", default=None)))
    return bench, bench.gates()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("contender", ["eager", *backends_for("region_norm", "cpu")])
def test_region_norm(benchmark: Any, norm_bench: Any, norm_case: NormCase, contender: str, mode: str) -> None:
    """Time one contender of one row."""
    bench, verdicts = norm_bench
    verdict = verdicts[contender]
    assert verdict.passed, f"{verdict.what}: error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
    call = bench.contenders(mode, [contender])[contender]
    benchmark.group = f"{norm_case.name} {mode}"
    benchmark.extra_info.update(error=verdict.error, bytes=norm_case.passes(mode) * bench.x.nbytes)
    benchmark.pedantic(call, rounds=7, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("contender", ["reference", *backends_for("label_patterns", "cpu")])
def test_label_patterns(benchmark: Any, request: pytest.FixtureRequest, pattern_case: PatternCase, contender: str) -> None:
    """Time one contender of one row, after comparing it with the reference."""
    source = label_source(request.config.getoption("--bench-data", default=None))
    classes = NUM_CLASSES[pattern_case.labels]
    maps = source.tensors(pattern_case.labels, pattern_case.batch, pattern_case.side)[1].to(torch.int32)

    def call() -> Any:
        return label_patterns(maps, classes, pattern_case.radius, per_image=pattern_case.per_image)

    threads = torch.get_num_threads()
    torch.set_num_threads(pattern_case.threads)
    try:
        with backend.use_backend("reference"):
            expected = call()
        with backend.use_backend(contender):
            assert all(torch.equal(a, b) for a, b in zip(call(), expected, strict=True))
            benchmark.group = pattern_case.name
            benchmark.pedantic(call, rounds=7, iterations=1, warmup_rounds=1)
    finally:
        torch.set_num_threads(threads)
