"""Times of calls against each other: contenders take turns, medians with percentiles, and what counts as slower.

One call of each contender per round, starting with another one every round, so that noise of the machine hits all of
them alike.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..backend import NOISE

Call = Callable[[], Any]
SHORTEST_SAMPLE_S = 5e-4  # on the CPU, faster calls are repeated inside one sample


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    p20: float
    p80: float
    samples: int


def summarise(samples: Sequence[float]) -> Timing:
    """Median and 20th / 80th percentile of at least one sample."""
    ordered = sorted(samples)

    def quantile(q: float) -> float:
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return Timing(statistics.median(ordered), quantile(0.2), quantile(0.8), len(ordered))


class _Clock:
    """Times one sample of a call: wall clock on the CPU, events and a cold L2 cache on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.device = device
            self.flush = torch.empty(256 * 2**20, dtype=torch.int8, device=device)

    def sample(self, call: Call, inner: int) -> float:
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(inner):
                call()
            return (time.perf_counter() - start) / inner
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        total = 0.0
        for _ in range(inner):
            self.flush.zero_()  # also hides the launch latency of short kernels behind it
            first.record()
            call()
            last.record()
            torch.cuda.synchronize(self.device)
            total += first.elapsed_time(last) * 1e-3
        return total / inner


def interleave(
    contenders: Mapping[str, Call],
    *,
    device: torch.device | str = "cpu",
    repeat: int = 15,
    warmup: int = 2,
    budget_s: float | None = None,
    least: int = 3,
    seldom: Collection[str] = (),
) -> dict[str, Timing]:
    """Time several calls against each other.

    Args:
        contenders: name -> call without arguments; inputs are bound beforehand.
        device: where they run; decides the clock.
        repeat: rounds; each contender runs once per round.
        warmup: untimed calls of each contender first.
        budget_s: stop after this many seconds, but not before `least` rounds.
        least: see `budget_s`.
        seldom: slow contenders that have run before: not warmed up, sampled in the first two rounds only.

    Returns:
        name -> Timing.
    """
    clock = _Clock(torch.device(device))
    inner: dict[str, int] = {}
    start = time.perf_counter()
    for name, call in contenders.items():
        fastest = SHORTEST_SAMPLE_S if name in seldom else float("inf")
        for _ in range(0 if name in seldom else max(warmup, 1)):
            fastest = min(fastest, clock.sample(call, 1))
        inner[name] = 1 if clock.cuda else max(1, min(200, int(SHORTEST_SAMPLE_S / max(fastest, 1e-7))))
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeat):
            for k in range(len(names)):
                name = names[(turn + k) % len(names)]
                if turn >= 2 and name in seldom:
                    continue
                samples[name].append(clock.sample(contenders[name], inner[name]))
            if budget_s is not None and turn + 1 >= least and time.perf_counter() - start > budget_s:
                break
    finally:
        if was_enabled:
            gc.enable()
    return {name: summarise(values) for name, values in samples.items()}


def slower(own: Timing, other: Timing) -> bool:
    """Return whether `own` is a loss against `other`.

    A median above the other's by less than NOISE, with percentiles (20th to 80th) that overlap, is measuring noise and no
    loss: the same call timed twice differs by as much.
    """
    tied = own.median <= (1 + NOISE) * other.median and own.p20 <= other.p80
    return own.median > other.median and not tied
