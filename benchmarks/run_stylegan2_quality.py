"""Judge StyleGAN2 from its random weights to its last ones: FID of drawn images against the pictures it learnt from.

    python -m benchmarks.run_stylegan2_quality --domain facades early=runs/gan@2000 late=runs/gan
    python -m benchmarks.run_stylegan2_quality --domain faces --kind procedural_faces --drawn 2000 shipped=faces.safetensors

Averaged weights, --count images without truncation, constant noise, from the same z for all. A model is a run folder of
`mixsyn-fast train stylegan2` (RUN: its newest checkpoint, RUN@STEP: that of a step; a run keeps the last few) or a file.
The row "start" are random weights of the first model's size, "pictures" the one half of the pictures against the other.
The pictures are all of the training set, unmirrored, at the model's size: the first run's, or what --data and --kind say.

FID is one number for two sets, biased upwards where pictures are few: only rows of equal counts are to be compared (and
"pictures", of half as many, is no bound). Its two parts stand beside it: "distance" is that of the mean features, "spread"
the variance of the images' features over that of the pictures' (below 1: they vary less). Nothing here is timed.

Training itself logs no quality but the discriminator's logits of validation pictures and of generated ones
(validation/real_logit, validation/generated_logit): `python -m benchmarks.plot_training RUN` draws them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mixsyn_fast.models.data import DataOptions, RegionDataset
from mixsyn_fast.models.metrics.fid import InceptionFeatures, fid_of_features, find_inception
from mixsyn_fast.models.pictures.files import to_tensor
from mixsyn_fast.models.settings import from_dict, read_json
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.stylegan2 import Config, Generator
from mixsyn_fast.models.training import load_trained
from mixsyn_fast.models.unconditional import load_generator
from torch import Tensor

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import jsonable

from . import schema, tables
from .timing import heading, model_place, portable, save

BATCH = 16
START, PICTURES = "start", "pictures"  # rows that are no model's


def run_of(word: str) -> tuple[Path, int | str] | None:
    """Return the run folder and the step that RUN or RUN@STEP means; None: it is a file."""
    path, at, step = word.rpartition("@")
    if at and step.isdigit() and Path(path, "config.json").is_file():
        return Path(path), int(step)
    return (Path(word), "newest") if Path(word, "config.json").is_file() else None


def opened(word: str) -> tuple[Generator, dict[str, Any]]:
    """Load a generator, and what is known of its training: "steps" and "task" of a run's.

    Raises:
        ValueError, FileNotFoundError: there is none; the message names it.
    """
    run = run_of(word)
    if run is None:
        return load_generator(word), {}
    trained = load_trained(run[0], step=run[1])
    generator = trained.networks.get("generator")
    if not isinstance(generator, Generator):
        raise ValueError(f"{run[0]}: expected a run of mixsyn-fast train stylegan2, got one of {trained.config['model']}")
    return generator, {"steps": trained.step, "task": trained.config["task"]}


def start(config: Config, seed: int) -> Generator:
    """Return a generator with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Generator(config).eval().requires_grad_(False)


@torch.no_grad()
def drawn(generator: Generator, count: int, seed: int) -> Iterator[Tensor]:
    """Make images (b, 3, size, size) uint8, `count` in all; z depend on the seed and their length alone."""
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    for part in z.split(BATCH):
        yield to_tensor(list(to_uint8(generator(part))))


def pictures(dataset: RegionDataset) -> Iterator[Tensor]:
    """Read all pictures (b, 3, size, size) uint8."""
    for begin in range(0, len(dataset), BATCH):
        yield to_tensor([dataset[i].image for i in range(begin, min(len(dataset), begin + BATCH))])


def training_set(options: DataOptions, size: int) -> RegionDataset:
    """Return the pictures that a training with these options learns from, unmirrored and whole (a random crop's middle)."""
    crop = "center" if options.crop == "random" else options.crop
    return replace(options, size=(size,), flip=0.0, crop=crop, on_error="raise").training_set(0)


def scores(made: Tensor, real: Tensor, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the facts of a row: FID of features (N, D) and (M, D), its parts, warnings."""
    fid = fid_of_features(made, real, notes)
    first, second = made.double(), real.double()
    parts = {
        "fid": fid.value,
        "distance": float((first.mean(0) - second.mean(0)).square().sum()),
        "spread": float(first.var(0).sum() / second.var(0).sum()),
    }
    found = {name: {"mean": value, "count": fid.first_count} for name, value in parts.items()}
    return {"scores": found, "pictures": fid.second_count, "warnings": list(fid.warnings)}


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the models and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE|RUN|RUN@STEP", help="generators of one size")
    parser.add_argument("--domain", required=True, help="what the images show: part of the rows' and the file's name")
    parser.add_argument(
        "--inception", help="TorchScript feature network of FID (it holds code); none: that of make networks"
    )
    parser.add_argument("--data", default="", help="folder of the training pictures; none: the first run's own")
    parser.add_argument("--kind", default="auto", help="what set it is, or a set drawn by code")
    parser.add_argument("--drawn", type=int, default=1000, help="pictures of a set drawn by code")
    parser.add_argument("--count", type=int, default=2000, help="images of every model")
    parser.add_argument("--seed", type=int, default=0, help="of z, and of the random weights")
    parser.add_argument("--out", type=Path, help="default: stylegan2_quality_DOMAIN.json beside the other results")
    args = parser.parse_args(argv)
    words = dict(given.partition("=")[::2] for given in args.models)
    began = time.monotonic()
    try:
        if len(words) < len(args.models) or not all(words.values()) or {START, PICTURES} & set(words):
            raise ValueError(f"models: expected NAME=FILE of other names than {START} and {PICTURES}, each once")
        if args.count < 2 or args.seed < 0:
            raise ValueError(f"count, seed: expected at least 2 and 0, got {args.count}, {args.seed}")
        inception = InceptionFeatures(args.inception or find_inception())
        models = {name: opened(word) for name, word in words.items()}
        config = next(iter(models.values()))[0].config
        other = [name for name, (generator, _) in models.items() if generator.config.size != config.size]
        if other:
            raise ValueError(
                f"models: expected images of side {config.size} as the first one's, got others of {', '.join(other)}"
            )
        run = next((found for word in words.values() if (found := run_of(word))), None)
        if args.data or args.kind != "auto":
            data = DataOptions(data=args.data, kind=args.kind, count=args.drawn)
        elif run is not None:
            data = from_dict(DataOptions, read_json(run[0] / "config.json")["data"])
        else:
            raise ValueError("data: expected --data or --kind, or a run folder, which names its pictures; got files alone")
        dataset = training_set(data, config.size)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    result = heading("evaluation", labels=dataset.source.name)
    with progress(f"{len(dataset)} pictures"):
        real = torch.cat([inception.features(images) for images in pictures(dataset)])
    models = {START: (start(config, args.seed), {"steps": 0}), **models}
    settings = {"data": dataset.source.name, "images": args.count, "seed": args.seed, "psi": 1.0, "noise": "const"}
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(args.seed))
    halves = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]

    def row(name: str, facts: dict[str, Any], **more: Any) -> dict[str, Any]:
        case = f"quality/{args.domain}/{name}"
        return schema.row(
            op="stylegan2", case=case, mode="evaluation", settings={**settings, **more}, contenders={}, facts=facts
        )

    result["rows"].append(row(PICTURES, scores(*halves, inception.notes)))
    for name, (generator, about) in models.items():
        with progress(f"{name}: {args.count} images"):
            made = torch.cat([inception.features(images) for images in drawn(generator, args.count, args.seed)])
        place = {"model": model_place(words[name])} if name in words else {}
        facts = scores(made, real, inception.notes) | about
        result["rows"].append(row(name, facts, size=generator.config.size, **place))
    command = f"run_stylegan2_quality --domain {args.domain} --count {args.count} --seed {args.seed}"
    command += f" --data {portable(args.data)}" if args.data else ""
    command += "" if args.kind == "auto" else f" --kind {args.kind} --drawn {args.drawn}"
    result["command"] = " ".join([command, *(f"{name}={model_place(word)}" for name, word in words.items())])
    result["seconds"] = time.monotonic() - began
    result = jsonable(result)
    print(tables.render_scores(result))
    print(save(result, args.out or schema.RESULTS / f"stylegan2_quality_{args.domain}.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
