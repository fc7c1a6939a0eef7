"""The benches of the ops: one file per op, all built on :class:`benchmarks.ops.base.OpBench`."""

from __future__ import annotations

from typing import Any

from .attention import PairBench, PoolAttentionBench, SpreadBench
from .base import MODES, OpBench, backends_for, is_ours
from .fusion import FusionBench
from .label_patterns import PatternBench
from .latent_blend import BlendBench
from .masked_roi_pool import PoolBench
from .region_norm import NormBench

BENCHES: tuple[type[OpBench], ...] = (
    PatternBench,
    PoolBench,
    PairBench,
    PoolAttentionBench,
    SpreadBench,
    BlendBench,
    FusionBench,
    NormBench,
)


def all_cases(*, quick: bool = False, every: bool = False, dtype: str = "float32") -> list[tuple[type[OpBench], Any]]:
    """The rows of all ops, each with its bench: a few small ones, the standard ones, or all."""
    return [(bench, case) for bench in BENCHES for case in bench.cases(quick=quick, every=every, dtype=dtype)]


__all__ = ["BENCHES", "MODES", "OpBench", "all_cases", "backends_for", "is_ours"]
