"""What the commands of MSCA share: options, pictures drawn by code, cells of sheets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from mixsyn_fast.writing import write_json

from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    TargetOptions,
    check_png,
    drawn_source,
    open_model,
    picture_files,
)
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, cell_size, coloured, enlarged
from ..settings import at_least, repeated
from .config import sizes_of
from .model import MSCA, Made, Scene

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class VGGOptions(ModelOptions):
    """The model, and the VGG that it may need."""

    vgg_weights: str = "auto"
    """file with the VGG that gives the model its features; auto: one on this machine; of no use to a model with its own"""

    def open(self) -> MSCA:
        """Load the model; ValueError or OSError names the file or option."""
        return open_model(MSCA, self.model, self.device, vgg_weights=self.vgg_weights)


@dataclass(frozen=True)
class ReportOptions(PictureOptions, VGGOptions):
    """What every command takes besides pictures."""

    seed: int = 0  # of the pictures that are drawn where none are given
    sheet: Path | None = None  # also write a contact sheet (PNG)
    json: Path | None = None  # also write what was computed, in which time (JSON)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")


@dataclass(frozen=True)
class PairOptions(ReportOptions, TargetOptions):
    """A label map, and exemplars that it takes its style from."""

    exemplar: tuple[str, ...] = repeated()  # picture in whose style it is made, or a folder of such; once per exemplar
    size: tuple[int, ...] | None = None
    """height and width of the image in pixels, multiples of 16; one number for both; none: the model's"""

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        check_size(self.size)
        if self.target and not self.exemplar:
            raise ValueError("exemplar: expected at least one picture, got none")
        if self.exemplar and not self.target:
            raise ValueError("image: expected a picture or --label-map that takes the style, got none")

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """(H, W) of the image, where the user says it."""
        return None if self.size is None else (self.size[0], self.size[-1])

    def pair(self, msca: MSCA, files: Sequence[str], drawn: int) -> tuple[Picture, list[Picture]]:
        """Return the target and the exemplars as they are stored, or `drawn` drawn exemplars."""
        reader = self.reader(msca.classes, None)
        target = reader.read(self.target) if self.target else None
        exemplars = [reader.read(file) for file in files]
        reader.check_labels_used()
        if target is None:
            target, *exemplars = drawn_pictures(msca, 1 + drawn, self.seed, self.height_and_width)
        return target, exemplars


def check_size(size: tuple[int, ...] | None) -> None:
    """ValueError for a size that is none, or not of multiples of 16."""
    if size is None:
        return
    if len(size) not in (1, 2):
        raise ValueError(f"size: expected one or two numbers, got {size}")
    sizes_of(size[0], size[-1])


def exemplar_files(given: Sequence[str], least: int = 1) -> list[str]:
    """Return the pictures, those of folders among them; ValueError where there are some, but fewer than `least`."""
    found = picture_files(given)
    if found and len(found) < least:
        raise ValueError(f"exemplar: expected at least {least} pictures, got {', '.join(found)}")
    return found


def drawn_pictures(msca: MSCA, count: int, seed: int, size: tuple[int, int] | None = None) -> list[Picture]:
    """Draw pictures that fit a model, for who has none; ValueError where nothing drawn has its classes."""
    return pictures_of(drawn_source(msca.classes, size or msca.size, count, seed))


def scene_of(picture: Picture) -> Scene:
    """Return a picture as the model takes exemplars."""
    return picture.image, picture.labels


def timed(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
    """Return what a call gives, and its seconds."""
    begin = time.perf_counter()
    return call(*args, **kwargs), time.perf_counter() - begin


def numbers(made: Made, seconds: float) -> dict[str, Any]:
    """Return what an image took, for JSON."""
    return {"seconds": seconds, "exemplars_computed": made.exemplars, "label_maps_computed": made.layouts}


def names_in(msca: MSCA, labels: np.ndarray) -> list[str]:
    """Return the classes that a label map has, in the model's order."""
    return [msca.classes[k] for k in np.unique(labels).tolist() if k >= 0]


def missing(msca: MSCA, labels: np.ndarray, exemplar: Picture) -> list[str]:
    """Return the classes of a label map that an exemplar, as the model sees it, lacks."""
    there = names_in(msca, msca.seen(exemplar).labels)
    return [name for name in names_in(msca, labels) if name not in there]


def write_report(options: ReportOptions, msca: MSCA, found: dict[str, Any]) -> None:
    """Write the JSON of a command, where it is asked for; the path is printed."""
    if options.json:
        about = {"model": options.model or "shipped", "size": list(msca.size)}
        write_json(options.json, {**about, **found})
        print(f"written: {options.json}")


# ---------------------------------------------------------------------------------------------------- cells of sheets


def exemplar_size_in(msca: MSCA, exemplar: Picture) -> tuple[int, int]:
    """Return the size (H, W) at which a sheet shows an exemplar that the model sees: enlarged as the model's images are."""
    factor = cell_size(msca.size)[0] // msca.size[0]
    return exemplar.labels.shape[0] * factor, exemplar.labels.shape[1] * factor


def image_cell(image: np.ndarray, caption: str, lines: int = 1, size: tuple[int, int] | None = None) -> np.ndarray:
    """Draw an image (H, W, 3) with a caption; at `size`, or a whole multiple of its own."""
    return captioned(enlarged(image, size or cell_size((image.shape[0], image.shape[1]))), caption, lines=lines)


def labels_cell(
    msca: MSCA, labels: np.ndarray, caption: str, lines: int = 1, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Draw a label map (H, W) in colours with a caption; at `size`, or a whole multiple of its own."""
    drawn = coloured(labels, len(msca.classes), size or cell_size((labels.shape[0], labels.shape[1])))
    return captioned(drawn, caption, lines=lines)


def spotlit(picture: np.ndarray, weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw a picture (H, W, 3) dark, and light where weights (h, w) are large; at `size`, uint8."""
    most = float(np.quantile(weights, 0.99)) or float(weights.max()) or 1.0
    shares = enlarged(np.repeat((np.clip(weights / most, 0, 1) * 255).astype(np.uint8)[..., None], 3, 2), size)
    light = 0.15 + 0.85 * shares.astype(np.float32) / 255
    drawn: np.ndarray = (enlarged(picture, size) * light).round().astype(np.uint8)
    return drawn


def in_words(msca: MSCA, shares: np.ndarray, most: int = 3, least: float = 0.05) -> str:
    """Return the largest of a map's shares (C) in words: "facade 80 %, sky 15 %"."""
    order = [int(k) for k in np.argsort(-shares, kind="stable")[:most] if shares[k] >= least]
    return ", ".join(f"{msca.classes[k]} {100 * shares[k]:.0f} %" for k in order) or "spread over all"
