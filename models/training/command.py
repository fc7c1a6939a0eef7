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
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixsyn_fast.commands import make_parser

from ..data import KINDS, JoinedSource, RegionDataset, Source, merged, open_source
from ..data.sets import reader_options
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
    unknown_id: int | None = None  # kind folder: stored id of pixels without a class, often 255
    first_id: int | None = None  # kind folder: stored id of the first class; none: 0
    partition: str | None = None  # celebamask_hq, ffhq: how the set is split; none: as CelebA is
    names: str | None = None  # file with the stems of the pictures to take, one per line; none: all
    size: tuple[int, ...] = (256,)  # height and width of the images in pixels; one number for both
    load_size: int = 0  # shorter side in pixels that images are resized to before the crop; 0: just large enough
    crop: Literal["random", "center", "none"] = "center"  # where the crop lies; none: squeeze the whole picture to the size
    flip: float = 0.5  # probability of a horizontal flip; left and right classes change places
    count: int = 1000  # pictures of a set drawn by code (kinds procedural_faces and procedural_facades)
    merge: Literal["none", "meta", "compact"] = "none"  # classes merged into fewer region types; see docs/training.md
    also: str = (
        ""  # a second set with the same classes to learn from: a kind drawn by code (--count pictures), or kind:folder
    )
    on_error: Literal["skip", "raise"] = "skip"  # a bad file: take the next picture and say so, or stop

    def __post_init__(self) -> None:
        """Check what no data set needs to be opened for."""
        if len(self.size) not in (1, 2) or min(self.size) < 1:
            raise ValueError(f"size: expected one or two positive numbers, got {self.size}")
        kind, _, folder = self.also.partition(":")
        if self.also and (kind not in ("auto", *KINDS) or kind.startswith("procedural") == bool(folder)):
            drawn = ", ".join(kind for kind in KINDS if kind.startswith("procedural"))
            raise ValueError(f"also: expected a kind drawn by code ({drawn}) or kind:folder, got {self.also!r}")

    @property
    def height_and_width(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.size[0], self.size[-1]

    def source(self, split: str) -> Source:
        """Open a split of the set, in its region types; ValueError or FileNotFoundError say what is wrong."""
        return merged(self._opened(split), self.merge)

    def training_source(self) -> Source:
        """Open what is learnt from: the training split, and the set of `also`; raises as :meth:`source`."""
        first = self._opened(self.split)
        if not self.also:
            return merged(first, self.merge)
        kind, _, folder = self.also.partition(":")
        if folder:
            second = open_source(folder, kind, self.split, self.unknown)
        else:
            second = open_source(None, kind, size=self.height_and_width, count=self.count)
        return merged(JoinedSource((first, second)), self.merge)

    def _opened(self, split: str) -> Source:
        """Open a split of the set with its own classes."""
        if not self.kind.startswith("procedural"):
            return open_source(self.data or None, self.kind, split, self.unknown, **reader_options(self))
        # seeds that no training set reaches
        drawn = {"seed": 0, "count": self.count} if split == self.split else {"seed": 10**9, "count": min(100, self.count)}
        return open_source(self.data or None, kind=self.kind, size=self.height_and_width, **drawn)

    def training_set(self, seed: int) -> RegionDataset:
        """Return the training images: crops and flips as asked."""
        return RegionDataset(
            self.training_source(),
            self.height_and_width,
            crop=self.crop,
            flip=self.flip,
            load_size=self.load_size or None,
            on_error=self.on_error,
            seed=seed,
        )

    def validation_set(self, split: str | None = None) -> RegionDataset | None:
        """Return the validation images (no flips, no random crops) or None; `split` instead of the options' own."""
        split = split or self.validation
        if split == "none":
            return None
        try:
            source = self.source("val" if split == "auto" else split)
        except (FileNotFoundError, ValueError) as error:
            if split != "auto":
                raise
            warnings.warn(f"no validation, for there is no validation set: {error}", stacklevel=2)
            return None
        crop: Literal["center", "none"] = "none" if self.crop == "none" else "center"
        return RegionDataset(source, self.height_and_width, crop=crop, load_size=self.load_size or None, on_error="skip")


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
