"""Train a model on a data set; everything about a run stands in its folder (--out).

    mixsyn-fast train sean --data datasets/cmp_facade --size 128 --out runs/sean
    torchrun --nproc-per-node 2 -m mixsyn_fast.models.training sean --data datasets/cmp_facade --out runs/sean

The same command goes on from the newest checkpoint of the folder. SIGTERM and Ctrl-C save and leave.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsyn_fast.commands import make_parser

from .. import settings as config
from ..data import DataOptions
from . import distributed
from .loop import train
from .options import Options
from .registry import MODULES, trainable


def add_arguments(parser: argparse.ArgumentParser, name: str, values: Mapping[str, Any] | None = None) -> None:
    """Add the options of `mixsyn-fast train <name>`: data, loop, and the model's own.

    Args:
        parser: gets them.
        name: of the model.
        values: a run's config.json, whose values become the defaults.

    Raises:
        ValueError: unknown model, or values of another model or with other keys.
    """
    parser.add_argument("--config", metavar="FILE", help="config.json of a run: its values instead of the defaults below")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration as JSON and leave")
    description = trainable(name)
    sections = {"data": DataOptions, "options": Options, "task": description.config}
    if values is not None and values.get("model") != name:
        raise ValueError(f"config: expected one of model {name!r}, got {values.get('model')!r}")
    for section, kind in sections.items():
        given = config.from_dict(kind, values.get(section, {})) if values is not None else None
        fields = {entry.name: getattr(given, entry.name) for entry in dataclasses.fields(kind)} if given else {}
        config.add_arguments(parser, kind, without=description.decided if section == "task" else (), **fields)


def main(arguments: argparse.Namespace, name: str) -> int:
    """Train as the arguments say; 0 also when a signal ended it early and everything is saved."""
    description = trainable(name)
    data = config.from_arguments(arguments, DataOptions)
    options = config.from_arguments(arguments, Options)
    model = config.from_arguments(arguments, description.config)
    world = distributed.init(None if options.device == "auto" else options.device, timeout=options.timeout)
    try:
        dataset = data.training_set(options.seed)
        validation = data.validation_set()
        source = dataset.source
        model = description.fitted(model, source.classes, data.height_and_width, dataset[0].edges is not None)
        whole: dict[str, Any] = {
            "model": name,
            "data": config.to_dict(data),
            "options": config.to_dict(options),
            "task": config.to_dict(model),
            "classes": list(source.classes),
        }
        if arguments.print_config:
            if world.rank == 0:
                print(config.dumps(whole))
            return 0
        distributed.seed_step(options.seed, 0, -2)  # the same weights in every process
        task = description.build(model, True)
        task.classes = source.classes
        newest = train(task, options, dataset, validation, config=whole, world=world)
        if newest is not None:
            print(newest)
    finally:
        distributed.shutdown()
    return 0


def run(argv: Sequence[str]) -> int:
    """Run `mixsyn-fast train <argv>`: the model's name, then its options; return the exit status."""
    name = argv[0] if argv else ""
    if name not in MODULES:
        parser = make_parser("mixsyn-fast train", __doc__)
        parser.add_argument("model", choices=MODULES, help="its own options: mixsyn-fast train <model> --help")
        parser.parse_args(argv[:1])
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    file = early.parse_known_args(argv[1:])[0].config
    parser = make_parser(f"mixsyn-fast train {name}", __doc__)
    add_arguments(parser, name, None if file is None else read_config(file))
    return main(parser.parse_args(argv[1:]), name)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a run's config.json; ValueError or FileNotFoundError names the file."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (expected the config.json of a run)") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object with model, data, options and task")
    return values
