"""What a line of the training log says: mean losses, speed, waiting for data, memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import distributed
from .distributed import World
from .options import Options

if TYPE_CHECKING:
    from .trainer import Trainer


class Meter:
    """Collects steps between two lines of the log, without waiting for the device."""

    def __init__(self, options: Options, world: World) -> None:
        self.options, self.world = options, world
        self._clear()
        self.restart()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor | float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.phases: set[str] = set()
        self.steps, self.seconds, self.waited, self.skipped = 0, 0.0, 0.0, 0

    def restart(self) -> None:
        """Start the clock again, after work that is no training (validation, sheets, checkpoints)."""
        self.started = time.perf_counter()

    def add(self, losses: dict[str, Tensor], trainer: Trainer) -> None:
        """Take a step's losses: those of the phases that ran in it."""
        self.phases.update(trainer.ran)
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss
            self.counts[name] += 1
        self.steps += 1
        self.waited += trainer.waited
        self.skipped += len(trainer.skipped)
        self.trainer = trainer
        self.step = trainer.step
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now

    def summary(self) -> dict[str, float]:
        """Return the means since the last summary, over all processes, and start anew.

        Losses (a mean over the steps in which the phase ran, nothing for a phase that did not), `images_per_second` (all
        processes together), `data_ms` (time a step waited for its data), `step_ms`, for the phases that ran `lr/<phase>` and
        with fp16 `loss_scale/<phase>`, `skipped` (pictures replaced because their files are bad), `peak_gb`
        (device memory on a GPU, resident memory of the process on a CPU, 1e9 bytes).

        Raises:
            FloatingPointError: a loss is not finite.
        """
        began = time.perf_counter()
        losses = {name: float(total) / self.counts[name] for name, total in self.sums.items()}  # waits for the device
        self.seconds += time.perf_counter() - began
        losses = distributed.mean_over_ranks(losses)
        # a loss scale that is too large makes infinite gradients: that step is skipped and the scale halved
        skipped = [name for name in losses if name.endswith("/gradient_norm") and not math.isfinite(losses[name])]
        losses = {name: value for name, value in losses.items() if self.options.amp != "fp16" or name not in skipped}
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f"step {self.step}: {', '.join(wrong)} not finite ({', '.join(str(losses[name]) for name in wrong)}); "
                "nothing was saved since the last line of the log. "
                "Lower the learning rate, clip gradients (--clip-norm), or leave autocast"
            )
        found = losses | {
            "images_per_second": self.options.batch_size * self.steps / self.seconds,
            "step_ms": 1e3 * self.seconds / self.steps,
            "data_ms": 1e3 * self.waited / self.steps,
            "peak_gb": peak_bytes(self.world.device) / 1e9,
        }
        found |= self.trainer.rates(self.phases)
        if self.skipped:
            found["skipped"] = float(self.skipped)
        self._clear()
        self.restart()
        return found


def peak_bytes(device: torch.device) -> int:
    """Return the most memory held so far: the device's on a GPU, the process' resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
