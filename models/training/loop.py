"""The training loop that every model shares: one page, from top to bottom.

A step (`Trainer.run_step`) runs the task's phases in order, for a GAN generator and discriminator. A phase is zero_grad, the
micro-batches' losses and backward passes, clipping, one optimiser step. Around the steps: averaged weights, log, sample
sheets, validation, checkpoints.

Random numbers of step n on process r depend on (seed, r, n) alone, the data on the number of batches drawn: a resumed run
continues exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixsyn_fast.backend import use_backend, use_plan
from mixsyn_fast.runtime import keep_memory

from ..data import RegionDataset
from . import checkpoint, distributed
from .distributed import World
from .meter import Meter
from .options import Options
from .run import Run
from .task import Task
from .trainer import Trainer


def train(
    task: Task,
    options: Options,
    dataset: RegionDataset,
    validation: RegionDataset | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    world: World | None = None,
) -> Path:
    """Train a task: start, or go on where the run folder stands.

    Args:
        task: the model.
        options: the loop's settings.
        dataset: what to learn from.
        validation: what to judge by; None for no validation and sheets of training images.
        config: everything to be written to config.json, as JSON; `load_trained` builds the task from it.
        world: the processes (`distributed.init`); None: `distributed.init(options.device)`.

    Returns:
        The newest checkpoint's folder.

    Raises:
        FileExistsError: resume "no" in a run folder that holds checkpoints.
        OSError: the folder cannot be written, or is too small for the checkpoints; before anything is trained.
        CheckpointError: a checkpoint could not be written later; the last good one is whole.
        FloatingPointError: a loss is not finite; the checkpoints stay as they were.
        ValueError: the checkpoint does not fit the model or the data.
    """
    world = world or distributed.init(options.device)
    folder = Path(options.out)
    saves = folder / "checkpoints"
    with (
        use_plan(options.plan),
        use_backend(options.backend),
        distributed.deterministic(options.deterministic),
        contextlib.closing(Trainer(task, options, dataset, world)) as trainer,
    ):
        keep_memory()
        resumed = checkpoint.to_resume(options.resume, saves)
        if resumed is not None:
            trainer.load(resumed)
        if world.rank == 0:
            checkpoint.preflight(saves, trainer.bytes_to_save() * (options.keep_last + 2))
        newest = resumed.path if resumed else saves
        with Run(folder, dict(config or {}), rank=world.rank, total_steps=options.steps, start_step=trainer.step) as run:
            meter = Meter(options, world)
            while trainer.step < options.steps and not world.any(run.stop_requested):
                meter.add(trainer.run_step(), trainer)
                step, last = trainer.step, trainer.step == options.steps
                if step % options.log_every == 0 or last:
                    run.log(step, meter.summary())
                if world.rank > 0:
                    continue
                better = False
                if options.sheet_every and (step % options.sheet_every == 0 or last):
                    run.sheet("samples", step, trainer.sheet(validation or dataset))
                if validation and options.validate_every and (step % options.validate_every == 0 or last):
                    figures = trainer.validate(validation)
                    run.log(step, {f"validation/{name}": value for name, value in figures.items()})
                    better = trainer.is_best(figures)
                if options.save_every and (step % options.save_every == 0 or last or better):
                    newest = trainer.save(saves, best=better)
                meter.restart()
            if trainer.step < options.steps:
                if world.rank == 0 and options.save_every and trainer.step % options.save_every:
                    newest = trainer.save(saves)
                run.message(f"stopped as asked after step {trainer.step}; the same command goes on from there")
    return newest
