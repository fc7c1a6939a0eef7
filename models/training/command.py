"""The command that trains a model: `mixsyn-fast train sean --data DIR ...`, or on several processes

torchrun --nproc-per-node 2 -m mixsyn_fast.models.training sean --data DIR ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..data import RegionDataset, Source, open_source
from . import config, distributed
from .loop import train
from .options import Options
from .registry import MODULES, trainable


@dataclass(frozen=True)
class DataOptions:
    """What to train on."""

    data: str = ""  # folder of the data set; empty for the procedural kinds
    kind: str = "auto"  # layout of the set (folder, celebamask_hq, cmp_facade, ...); auto: by what the folder holds
    split: str = "train"  # part of the set to learn from
    validation: str = "auto"  # part of the set to judge by; auto: val, if the set has one; none
    unknown: Literal["class", "none"] = "class"  # pixels without a known class: one more class, or no region
    size: tuple[int, ...] = (256,)  # height and width of the images in pixels; one number for both
    load_size: int = 0  # shorter side in pixels that images are resized to before the crop; 0: just large enough
    crop: Literal["random", "center"] = "center"  # where the crop lies
    flip: float = 0.5  # probability of a horizontal flip; left and right classes change places
    on_error: Literal["skip", "raise"] = "skip"  # a bad file: take the next picture and say so, or stop

    def __post_init__(self) -> None:
        """Check what no data set needs to be opened for."""
        if len(self.size) not in (1, 2) or min(self.size) < 1:
            raise ValueError(f"size: expected one or two positive numbers, got {self.size}")

    @property
    def height_and_width(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.size[0], self.size[-1]

    def source(self, split: str) -> Source:
        """Open a split of the set; ValueError or FileNotFoundError say what is wrong."""
        return open_source(self.data or None, kind=self.kind, split=split, unknown=self.unknown)

    def training_set(self, seed: int) -> RegionDataset:
        """Return the training images: crops and flips as asked."""
        return RegionDataset(
            self.source(self.split),
            self.height_and_width,
            crop=self.crop,
            flip=self.flip,
            load_size=self.load_size or None,
            on_error=self.on_error,
            seed=seed,
        )

    def validation_set(self, split: str | None = None) -> RegionDataset | None:
        """Return the validation images (centre crops, no flips) or None; `split` instead of the options' own."""
        split = split or self.validation
        if split == "none":
            return None
        try:
            source = self.source("val" if split == "auto" else split)
        except (FileNotFoundError, ValueError):
            if split == "auto":
                return None
            raise
        return RegionDataset(source, self.height_and_width, crop="center", load_size=self.load_size or None, on_error="skip")


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options of `mixsyn-fast train <name>`: loop, data, and the model's own."""
    parser.add_argument("--config", metavar="FILE", help="config.json of a run: its values instead of the defaults below")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration as JSON and leave")
    for kind in (DataOptions, Options, trainable(name).config):
        config.add_arguments(parser, kind)


def main(arguments: argparse.Namespace, name: str) -> int:
    """Train as the arguments say; 0 also when a signal ended it early and everything is saved."""
    description = trainable(name)
    data = config.from_arguments(arguments, DataOptions)
    options = config.from_arguments(arguments, Options)
    model = config.from_arguments(arguments, description.config)
    world = distributed.init(options.device, timeout=options.timeout)
    try:
        dataset = data.training_set(options.seed)
        validation = data.validation_set()
        source = dataset.source
        model = description.fitted(model, len(source.classes), data.height_and_width, source.has_instances)
        whole: dict[str, Any] = {
            "model": name,
            "data": config.to_dict(data),
            "options": config.to_dict(options),
            "task": config.to_dict(model),
            "classes": list(source.classes),
        }
        if arguments.print_config:
            if world.rank == 0:
                print(json.dumps(whole, indent=2))
            return 0
        distributed.seed_step(options.seed, 0, -2)  # the same weights in every process
        task = description.build(model, True)
        task.classes = source.classes
        newest = train(task, options, dataset, validation, config=whole, world=world)
        if world.rank == 0:
            print(newest)
    finally:
        distributed.shutdown()
    return 0


def run(argv: Sequence[str]) -> int:
    """Run `mixsyn-fast train <argv>`: the model's name, then its options; return the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    if not argv or argv[0] not in MODULES:
        parser = argparse.ArgumentParser("mixsyn-fast train", description=__doc__, formatter_class=form, allow_abbrev=False)
        parser.add_argument("model", choices=MODULES, help="its own options: mixsyn-fast train <model> --help")
        parser.parse_args(argv[:1])
    name = argv[0]
    parser = argparse.ArgumentParser(
        f"mixsyn-fast train {name}", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    add_arguments(parser, name)
    return main(parser.parse_args(argv[1:]), name)
