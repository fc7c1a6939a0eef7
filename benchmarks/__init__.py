"""Measurements: `python -m benchmarks.run_ops`, `python -m benchmarks.run_models`, `pytest benchmarks`."""

import os as _os

_os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, used to read peak memory, announces every start
