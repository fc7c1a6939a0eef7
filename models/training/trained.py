"""A trained model from its run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import settings as config
from ..data import Batch
from . import checkpoint
from .registry import trainable
from .task import Task


@dataclass(frozen=True)
class Trained:
    """A model as training left it, in eval mode."""

    task: Task
    networks: dict[str, nn.Module]
    """The networks to use: averaged weights where there are any and they were asked for."""
    config: dict[str, Any]
    """What config.json holds: model, data, options, task, classes."""
    step: int

    @property
    def not_begun(self) -> tuple[str, ...]:
        """Networks whose stage begins later than the run has come (`Task.first_steps`): their weights are as drawn."""
        return tuple(name for name, first in self.task.first_steps.items() if self.step <= first)

    @torch.no_grad()
    def generate(self, batch: Batch) -> Tensor:
        """Return the images (B, 3, H, W) in [-1, 1] of a batch on the model's device."""
        return self.task.generate(batch, self.networks)


def load_trained(
    folder: str | os.PathLike[str],
    *,
    step: int | str = "newest",
    averaged: bool = True,
    device: torch.device | str = "cpu",
    replaced: Mapping[str, Any] | None = None,
) -> Trained:
    """Load the model of a run folder.

    Args:
        folder: run folder, with config.json and checkpoints/.
        step: "newest" valid checkpoint, "best", or a step number.
        averaged: take the averaged weights where the run kept them.
        device: where to put the networks.
        replaced: settings of the run's task that are taken in place of its own: where a file lies on this machine, say. What
            comes back as `Trained.config` is the run's.

    Raises:
        FileNotFoundError: no config.json, or no such checkpoint.
        ValueError: a checkpoint that is damaged, or does not fit the configuration; a setting that there is not.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected a run folder of mixsyn-fast train)")
    whole = config.read_json(path)
    description = trainable(whole["model"])
    task = description.build(config.from_dict(description.config, {**whole["task"], **(replaced or {})}), False)
    task.classes = tuple(whole["classes"])
    saved = _find(folder / "checkpoints", step)
    averages = saved.tensors("average") if averaged and "average" in saved.groups else {}
    for name, network in task.networks.items():
        weights = saved.tensors(f"network.{name}")
        if averages and name in task.averaged:
            weights = {key.removeprefix(f"{name}."): value for key, value in averages.items() if key.startswith(f"{name}.")}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{saved.path}: does not fit {path}: {error}") from error
    for network in task.networks.values():
        network.to(device).eval().requires_grad_(False)
    return Trained(task, dict(task.networks), whole, saved.step)


def _find(folder: Path, step: int | str) -> checkpoint.Checkpoint:
    if isinstance(step, int):
        return checkpoint.checkpoint_at(folder, step)
    if step not in ("newest", "best"):
        raise ValueError(f"step: expected 'newest', 'best' or a number, got {step!r}")
    found = checkpoint.newest_valid(folder, best=step == "best")
    if found is None:
        raise FileNotFoundError(f"{folder}: no valid checkpoint" + (" saved as the best" if step == "best" else ""))
    return found
