"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore.

The learning rate of step t (from 0) out of T is the base rate times factor(t, T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over a run.

    With s the step at which the decay begins and p = (t - s) / (T - s) in [0, 1]:

        constant  1
        linear    1 + (end - 1) p                       (SPADE: start 0.5, end 0 = 50 epochs flat and 50 falling to 0)
        cosine    end + (1 - end) (1 + cos(pi p)) / 2   (Loshchilov and Hutter, SGDR, ICLR 2017, Eq. 5, one period)
        step      max(end, gamma ** floor((t - s) / step_size))

    and during the warm-up all of them times (t + 1) / warmup (Goyal et al., "Accurate, Large Minibatch SGD", 2017, 2.2).
    """

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"  # shape of the decay
    start: float = 0.0  # where the decay begins: up to 1 a fraction of the run, above 1 a step
    end: float = 0.0  # factor at the end of the run (step: lower bound of the factor), in [0, 1]
    warmup: int = 0  # steps over which the rate rises linearly from nearly 0
    step_size: int = 10000  # step: steps between two decays
    gamma: float = 0.1  # step: factor of each decay, in (0, 1]

    def __post_init__(self) -> None:
        """Check every field once."""
        if self.kind not in ("constant", "linear", "cosine", "step"):
            raise ValueError(f"kind: expected 'constant', 'linear', 'cosine' or 'step', got {self.kind!r}")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(f"start: expected a fraction in [0, 1] or a step above 1, got {self.start!r}")
        if not 0.0 <= self.end <= 1.0:
            raise ValueError(f"end: expected a factor in [0, 1], got {self.end!r}")
        if self.warmup < 0:
            raise ValueError(f"warmup: expected 0 or more steps, got {self.warmup!r}")
        if self.step_size < 1:
            raise ValueError(f"step_size: expected at least 1 step, got {self.step_size!r}")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma: expected a factor in (0, 1], got {self.gamma!r}")

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the learning rate of step number `step`.

        Args:
            step: steps done before this one, 0 <= step; beyond `total` the factor stays what it is at the end.
            total: steps of the whole run, at least 1.

        Raises:
            ValueError: step or total out of range.
        """
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step!r}")
        if total < 1:
            raise ValueError(f"total: expected at least 1, got {total!r}")
        begin = self.start * total if self.start <= 1 else self.start
        done = min(step, total) - begin  # steps of decay
        factor = 1.0
        if done > 0:
            progress = done / (total - begin)
            if self.kind == "linear":
                factor = 1.0 + (self.end - 1.0) * progress
            elif self.kind == "cosine":
                factor = self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
            elif self.kind == "step":
                factor = max(self.end, self.gamma ** math.floor(done / self.step_size))
        return factor * min(1.0, (step + 1) / self.warmup) if self.warmup else factor
