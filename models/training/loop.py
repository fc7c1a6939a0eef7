"""The training loop that every model shares: one page, from top to bottom.

A step (`Trainer.run_step`) runs the task's phases in order, for a GAN generator and discriminator, each in every step or in
every n-th. A phase is zero_grad, the micro-batches' losses and backward passes, clipping, one optimiser step. Around the
steps: averaged weights, log, sample sheets, validation (every process judges its part), checkpoints.

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

from ..data import TrainingSet
from . import checkpoint, distributed
from .distributed import World
from .initial import find_weights, read_weights
from .meter import Meter
from .options import Options
from .run import Run
from .task import Task
from .trainer import Trainer, check


def train(
    task: Task,
    options: Options,
    dataset: TrainingSet,
    validation: TrainingSet | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    world: World | None = None,
) -> Path | None:
    """Train a task: start, or go on where the run folder stands.

    Args:
        task: the model.
        options: the loop's settings.
        dataset: what to learn from: pictures with label maps or without, latent codes, anything with a collate function.
        validation: what to judge by; None for no validation and sheets of training images.
        config: everything to be written to config.json, as JSON; `load_trained` builds the task from it.
        world: the processes; None: what `distributed.init` finds.

    Returns:
        The newest checkpoint's folder, None where nothing was saved (or in other processes than the first).

    Raises:
        FileExistsError: resume "no" in a run folder that holds checkpoints.
        FileNotFoundError: init_from names nothing that is there.
        ValueError: the folder cannot be written, or is too small for the checkpoints, the data have no label maps and the
            task needs them, or a batch has too few pictures for it (before anything is trained); the checkpoint does not fit
            the model or the data.
        CheckpointError: a checkpoint could not be written later; the last good one is whole.
        FloatingPointError: a loss is not finite; the checkpoints stay as they were.
    """
    for each in (dataset, validation):
        if each is not None:
            check(task, each)
    world = world or distributed.init(None if options.device == "auto" else options.device, timeout=options.timeout)
    share = options.batch_size // (options.accumulate * world.size)
    if share < task.least_batch:
        raise ValueError(
            f"batch_size: expected at least {task.least_batch} pictures per process and micro-batch, got {share}"
        )
    main = world.rank == 0
    folder = Path(options.out)
    saves = folder / "checkpoints"
    if options.deterministic:
        distributed.deterministic(True, warn_only=True)
    with (
        use_plan(options.plan),
        use_backend(options.backend),
        contextlib.closing(Trainer(task, options, dataset, world)) as trainer,
    ):
        keep_memory()
        resumed = find_checkpoint(options.resume, saves, world)
        notes = trainer.load(resumed) if resumed else begin(trainer, options.init_from)
        if main and options.save_every:
            checkpoint.preflight(saves, trainer.bytes_to_save() * (options.keep_last + 2) - checkpoint.bytes_there(saves))
        newest = resumed.path if resumed and main else None
        with Run(folder, dict(config or {}), rank=world.rank, total_steps=options.steps, start_step=trainer.step) as run:
            for note in notes:
                run.message(note)
            meter, stop = Meter(options, world), False
            while trainer.step < options.steps and not stop:
                meter.add(trainer.run_step(), trainer)
                step, last = trainer.step, trainer.step == options.steps
                run.advance(step)
                stop = distributed.agree(run.stop_requested, step)
                saving = due(options.save_every, step, last or stop)
                validating = validation is not None and due(options.validate_every, step, last)
                judging = due(options.validate_every, step, trainer.begun)
                if due(options.log_every, step, last) or saving or validating or judging:
                    line = meter.summary()  # raises where a loss is not finite: such weights are never saved
                    if judging and main:
                        line |= {f"judged/{name}": value for name, value in trainer.judged(dataset).items()}
                    run.log(step, line)
                figures = trainer.validate(validation) if validation is not None and validating else {}
                if main:
                    if due(options.sheet_every, step, last):
                        run.sheet("samples", step, trainer.sheet(dataset if validation is None else validation))
                    better = False
                    if figures:
                        run.log(step, {f"validation/{name}": value for name, value in figures.items()})
                        better = trainer.is_best(figures) and options.save_every > 0
                    if saving or better:
                        newest = trainer.save(saves, best=better)
                meter.restart()
            if trainer.step < options.steps:
                where = f"saved as {newest}" if newest else "nothing saved, as --save-every 0 says"
                run.message(f"stopped as asked after step {trainer.step}; {where}")
    return newest


def begin(trainer: Trainer, init_from: str) -> list[str]:
    """Begin a run with the weights that Options.init_from names, if any; return notes for the user.

    The first process looks for them, and the others take what it found.
    """
    needed = trainer.task.begins_with
    if not init_from:
        if needed:
            raise ValueError(f"init_from: expected weights of {', '.join(needed)}, on which what is trained rests, got none")
        return []
    path = Path(distributed.from_first(str(find_weights(init_from)) if trainer.world.rank == 0 else ""))
    weights = read_weights(path, trainer.task.networks, trainer.task.averaged)
    missing = [name for name in needed if name not in weights.networks]
    if missing:
        raise ValueError(f"init_from: {path}: expected weights of {', '.join(needed)}, got none of {', '.join(missing)}")
    return trainer.begin_with(weights)


def due(every: int, step: int, last: bool) -> bool:
    """Say whether something that happens every so many steps (0: never), and at the end, happens now."""
    return every > 0 and (step % every == 0 or last)


def find_checkpoint(resume: str, folder: Path, world: World) -> checkpoint.Checkpoint | None:
    """Return the checkpoint that Options.resume asks for, verified; None to start anew.

    The first process looks, and the others take what it found, for a folder may change while they look.

    Args:
        resume: "auto": the newest valid one in `folder`, if any; "no": none, and there must be none; else its path.
        folder: the run's checkpoints.
        world: the processes.

    Raises:
        FileExistsError: "no", but the folder holds checkpoints.
        CheckpointError: a path without a whole checkpoint.
    """
    found = None
    if world.rank == 0:
        if resume == "no" and checkpoint.steps(folder):
            raise FileExistsError(
                f"resume: {folder} holds checkpoints: choose another --out, or --resume auto to go on from them"
            )
        if resume != "no":
            found = checkpoint.newest_valid(folder) if resume == "auto" else checkpoint.open_checkpoint(resume)
    path = distributed.from_first(str(found.path) if found else "")
    return checkpoint.open_checkpoint(path) if path and found is None else found
