"""Train a model on a data set; everything about a run stands in its folder (--out).

    mixsyn-fast train sean --data datasets/cmp_facade --size 128 --out runs/sean
    torchrun --nproc-per-node 2 -m mixsyn_fast.models.training sean --data datasets/cmp_facade --out runs/sean

The same command goes on from the newest checkpoint of the folder. SIGTERM and Ctrl-C save and leave.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import settings
from ..data import DataOptions, Rarity, Source, kept_rarity
from . import distributed
from .distributed import World
from .loop import train
from .options import Options
from .registry import MODULES, trainable
from .task import Task


def options_of(name: str) -> type:
    """Return the dataclass of all options of `mixsyn-fast train <name>`: its sections are data, options and task.

    A model that makes its data itself (`Trainable.own_data`) has no section data.

    Raises:
        ValueError: unknown model.
    """
    description = trainable(name)
    data = {} if description.own_data else {"data": DataOptions}
    return settings.together("Options", **data, options=Options, task=description.config)


def train_model(
    name: str, data: DataOptions | None, options: Options, config: Any, only_describe: bool = False
) -> Path | None:
    """Train a model by its name, in this process or as one of torchrun's.

    Args:
        name: of the model; :func:`mixsyn_fast.models.training.registry.trainable` knows it.
        data: what to train on; None for a model that makes its data itself.
        options: of the loop.
        config: of the model; what the data decides is filled in.
        only_describe: print the whole configuration as JSON and train nothing.

    Returns:
        The newest checkpoint, or None.

    Raises:
        ValueError, FileNotFoundError: unknown model, a data set that is not there or does not fit, a run folder of another
            configuration.
    """
    description = trainable(name)
    world = distributed.init(None if options.device == "auto" else options.device, timeout=options.timeout)
    try:
        if description.own_data:
            return _train_on_own_data(name, options, config, only_describe, world)
        assert data is not None
        dataset = data.training_set(options.seed)
        validation = data.validation_set()
        source = dataset.source
        description.check(name, source)
        config = description.fitted(config, source.classes, data.height_and_width, dataset[0].edges is not None)
        mask = getattr(config, "loss_mask", "none")
        if data.balance == "auto":
            data = replace(data, balance="rare_colours" if mask == "rare_colours" else "none")
        whole: dict[str, Any] = {
            "model": name,
            "data": settings.to_dict(data),
            "options": settings.to_dict(options),
            "task": settings.to_dict(config),
            "classes": list(source.classes),
        }
        if only_describe:
            if world.rank == 0:
                print(settings.dumps(whole))
            return None
        if "rare_colours" in (data.balance, mask):
            found = rarity_of_run(Path(options.out) / "rarity.json", source, data.colour_bandwidth, world)
            dataset.rebalance(
                found.chances(data.balance_classes) if data.balance == "rare_colours" else None,
                found.class_weights(config.loss_mask_scale) if mask == "rare_colours" else None,
            )
        distributed.seed_step(options.seed, 0, -2)  # the same weights in every process
        task = description.build(config, True)
        task.classes = source.classes
        options = limited(options, task)
        whole["options"] = settings.to_dict(options)
        return train(task, options, dataset, validation, config=whole, world=world)
    finally:
        distributed.shutdown()


def _train_on_own_data(name: str, options: Options, config: Any, only_describe: bool, world: World) -> Path | None:
    """Train a model that makes its data itself; see :func:`train_model`."""
    description = trainable(name)
    config = description.fitted(config, (), (0, 0), False)
    whole = {"model": name, "options": settings.to_dict(options), "task": settings.to_dict(config), "classes": []}
    if only_describe:
        if world.rank == 0:
            print(settings.dumps(whole))
        return None
    distributed.seed_step(options.seed, 0, -2)  # the same weights in every process
    task = description.build(config, True)
    options = limited(options, task)
    whole["options"] = settings.to_dict(options)
    dataset, validation = task.own_data(options.seed)
    return train(task, options, dataset, validation, config=whole, world=world)


def limited(options: Options, task: Task) -> Options:
    """Return the options with no more steps than the task has, all of them where none are given.

    Warns of phases that begin after the last step, for their networks learn nothing.
    """
    if task.total_steps is not None:
        given = options.steps if options.steps != Options().steps else task.total_steps
        options = replace(options, steps=min(given, task.total_steps))
    late = [f"{name} (step {phase.start})" for name, phase in task.phases.items() if phase.start >= options.steps]
    if late:
        warnings.warn(
            f"steps: training ends after step {options.steps}, before {', '.join(late)} begin: their networks learn nothing",
            stacklevel=2,
        )
    return options


def rarity_of_run(path: Path, source: Source, bandwidth: float, world: World) -> Rarity:
    """Return how rare the colours of the classes of a set are: found by the first process, kept beside the run.

    Raises:
        ValueError: a set without label maps, or without a picture that can be read; a file of something else.
    """
    if not source.classes:
        raise ValueError(f"balance: expected a data set with label maps for rare_colours, got {source.name}, without")
    found = kept_rarity(path, source, bandwidth) if world.rank == 0 else None
    path = Path(distributed.from_first(str(path)))
    return found or Rarity.load(path)


def run(argv: Sequence[str]) -> int:
    """Run `mixsyn-fast train <argv>`: the model's name, then its options; return the exit status.

    0 also when a signal ended the training early and everything is saved.
    """
    name = argv[0] if argv else ""
    if name not in MODULES:
        form = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser("mixsyn-fast train", description=__doc__, formatter_class=form, allow_abbrev=False)
        parser.add_argument("model", choices=MODULES, help="its own options: mixsyn-fast train <model> --help")
        parser.parse_args(argv[:1])

    def of_run(values: dict[str, Any]) -> Mapping[str, Any]:
        """Take a run's config.json."""
        if values.get("model") != name:
            raise ValueError(f"expected the config of model {name!r}, got {values.get('model')!r}")
        return {section: values.get(section, {}) for section in sections}

    kind: Any = options_of(name)
    sections = [field.name for field in dataclasses.fields(kind)]
    given, only_describe = settings.read(
        kind,
        argv[1:],
        prog=f"mixsyn-fast train {name}",
        description=__doc__,
        fixed=trainable(name).decided,
        of_file=of_run,
        recipes=Path(str(importlib.import_module(MODULES[name]).__file__)).parent / "recipes",
    )
    try:
        data = None if trainable(name).own_data else given.data
        newest = train_model(name, data, given.options, given.task, only_describe)
    except ValueError as error:
        raise ValueError(settings.spelled(str(error), kind)) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(settings.spelled(str(error), kind)) from error
    if newest is not None:
        print(newest)
    return 0
