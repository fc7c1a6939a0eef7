"""SPADE, CLADE and SEAN of this package beside MixSyn: what they make of its pairs and of its sources (paper, Fig. 6 and 7).

They paint one label map that is given: SPADE and CLADE of the labels alone, SEAN each region in the style that it has in a
picture. So they get copy-paste pairs and MixSyn's own pairs (Fig. 6), and SEAN transfers one segment after the other onto
the base's label map, and paints a collage (Fig. 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap

from ..data import Batch
from ..pictures.options import name_and_file
from ..pictures.picture import Picture
from ..sean import SEANGenerator
from ..sheets import to_uint8
from ..training.trained import Trained, load_trained

KINDS = ("spade", "clade", "sean")


def open_runs(
    given: Sequence[str], classes: Sequence[str], size: tuple[int, int], device: torch.device | str = "cpu"
) -> dict[str, Trained]:
    """Load the runs of NAME=RUN texts.

    Args:
        given: the texts.
        classes: of the model that they stand beside.
        size: (H, W) of its images in pixels.
        device: where to put them.

    Raises:
        ValueError: another form, a name twice, a run of another model, other classes or another size; the message names the
            run.
        FileNotFoundError: no such run.
    """
    runs: dict[str, Trained] = {}
    for entry in given:
        name, folder = name_and_file(entry, "beside", "NAME=RUN")
        if name in runs:
            raise ValueError(f"beside: expected every name once, got {name} again")
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"beside: {folder}: no such run folder")
        with progress(f"loading {name}"):
            trained = load_trained(folder, device=device)
        kind = trained.config["model"]
        if kind not in KINDS:
            raise ValueError(f"beside: {folder}: expected a run of {', '.join(KINDS)}, got one of {kind}")
        if tuple(trained.task.classes) != tuple(classes):
            raise ValueError(f"beside: {folder}: expected the model's {len(classes)} classes, got {trained.task.classes}")
        found = trained.task.config.generator.output_size  # type: ignore[attr-defined]
        if tuple(found) != tuple(size):
            raise ValueError(
                f"beside: {folder}: expected images of {size[0]} x {size[1]} pixels, got {found[0]} x {found[1]}"
            )
        runs[name] = trained
    return runs


def _given(trained: Trained, picture: Picture) -> tuple[Tensor, RegionMap]:
    device = next(next(iter(trained.networks.values())).parameters()).device
    image = torch.from_numpy(np.array(picture.image)).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    labels = torch.from_numpy(np.array(picture.labels))[None].to(device)
    return image, RegionMap(labels, trained.task.num_regions, ignore_index=-1)


def _drawn(made: Tensor) -> np.ndarray:
    drawn: np.ndarray = to_uint8(made)[0]
    return drawn


@torch.no_grad()
def paint(trained: Trained, picture: Picture, seed: int = 0) -> np.ndarray:
    """Return the image (H, W, 3) uint8 that a run makes of a picture's label map; SEAN: in the styles of the picture.

    Args:
        trained: the run.
        picture: at the run's size.
        seed: of SEAN's noise.
    """
    image, regions = _given(trained, picture)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _drawn(trained.generate(Batch(image, regions, (picture.name,), torch.zeros(1, dtype=torch.int64))))


def styles_per_region(trained: Trained) -> bool:
    """Say whether a run has a style for every region, as SEAN has: only such a one can transfer segments."""
    return isinstance(trained.networks["generator"], SEANGenerator)


@torch.no_grad()
def sequential(
    trained: Trained, base: Picture, replacements: Sequence[tuple[str, Picture]], seed: int = 0
) -> list[np.ndarray | None]:
    """Transfer the style of one segment after another onto the base's label map, every result being the next target.

    Args:
        trained: a run of SEAN.
        base: the first target, at the run's size, whose label map stays.
        replacements: (region, picture whose style it takes), in order.
        seed: of SEAN's noise.

    Returns:
        The image (H, W, 3) uint8 after each step; None for a region that the base's label map has no place for.

    Raises:
        ValueError: a run without a style for every region.
    """
    generator = trained.networks["generator"]
    if not isinstance(generator, SEANGenerator):
        raise ValueError(f"trained: expected a run of sean, which has styles of regions, got {trained.config['model']}")
    image, regions = _given(trained, base)
    classes = list(trained.task.classes)
    made: list[np.ndarray | None] = []
    for name, picture in replacements:
        at = classes.index(name)
        if not bool((regions.labels_at() == at).any()):
            made.append(None)
            continue
        codes = generator.encode(image, regions).clone()
        codes[0, at] = generator.encode(*_given(trained, picture))[0, at]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            image = generator(regions, style_codes=codes)
        drawn = _drawn(image)
        made.append(drawn)
        image = torch.from_numpy(drawn.copy()).to(image.device).permute(2, 0, 1)[None].float() / 127.5 - 1
    return made


def pairs(pasted: Picture, made: Picture) -> dict[str, Picture]:
    """Return the four pairs of Fig. 6: label map and image, each of copy-paste or of the composition."""
    return {
        "copy-paste mask, copy-paste image": pasted,
        "our mask, copy-paste image": Picture(pasted.image, made.labels, "pasted"),
        "copy-paste mask, our image": Picture(made.image, pasted.labels, "made"),
        "our mask, our image": made,
    }


def rows_of(
    runs: Mapping[str, Trained], pasted: Picture, made: Picture, base: Picture, replacements: Sequence[tuple[str, Picture]]
) -> dict[str, list[tuple[str, np.ndarray | None]]]:
    """Return what every run makes, as (caption, image): the pairs of Fig. 6, then the steps of Fig. 7.

    A run without styles of regions paints label maps alone: the two label maps, and no transfer.

    Args:
        runs: by name.
        pasted: copy-paste of the sources.
        made: image and strongest regions of the composition.
        base: where the transfer begins.
        replacements: (region, its source), in order.
    """
    rows: dict[str, list[tuple[str, np.ndarray | None]]] = {}
    for name, trained in runs.items():
        four = pairs(pasted, made)
        if styles_per_region(trained):
            row: list[tuple[str, np.ndarray | None]] = [(what, paint(trained, pair)) for what, pair in four.items()]
            steps = sequential(trained, base, replacements)
            row += [(f"sequential: {region}", step) for (region, _), step in zip(replacements, steps, strict=True)]
        else:
            row = [(f"{what} mask", paint(trained, pair)) for what, pair in (("copy-paste", pasted), ("our", made))]
        rows[name] = row
    return rows
