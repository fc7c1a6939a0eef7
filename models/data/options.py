"""The options of a data set: what to train on, and what to judge by."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..settings import Checked, at_least
from .dataset import RegionDataset
from .region_types import merged
from .sets import DRAWN_KINDS, KINDS, JoinedSource, open_source
from .source import Source


@dataclass(frozen=True)
class ReaderOptions(Checked):
    """What the readers of some kinds of data sets need to know."""

    unknown_id: int | None = None  # kind folder: stored id of pixels without a class, often 255
    first_id: int | None = None  # kind folder: stored id of the first class; none: 0
    partition: str | None = None  # celebamask_hq, ffhq: how the set is split; none: as CelebA is (see docs/training.md)
    names: str | None = None  # file with the names of the pictures to take, one per line; none: all

    def reader_options(self) -> dict[str, Any]:
        """Return those that were given, for :func:`open_source`."""
        found = {field.name: getattr(self, field.name) for field in fields(ReaderOptions)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class DataOptions(ReaderOptions):
    """What to train on."""

    data: str = ""  # folder of the data set; empty for the procedural kinds
    kind: str = "auto"  # layout of the set (folder, celebamask_hq, cmp_facade, ...); auto: by what the folder holds
    split: str = "train"  # part of the set to learn from
    validation: str = "auto"  # part of the set to judge by; auto: val, if the set has one; none
    unknown: Literal["class", "none"] = "class"  # pixels without a known class: one more class, or no region
    size: tuple[int, ...] = (256,)  # height and width of the images in pixels; one number for both
    load_size: int = 0  # shorter side in pixels that images are resized to before the crop; 0: just large enough
    crop: Literal["random", "center", "none"] = "center"  # where the crop lies; none: squeeze the whole picture to the size
    flip: float = 0.5  # probability of a horizontal flip; left and right classes change places
    count: int = 1000  # pictures of a set drawn by code (kinds procedural_faces and procedural_facades)
    merge: Literal["none", "meta", "compact", "scenes"] = "none"
    """classes merged into fewer region types, or into those that several sets share; see docs/training.md"""
    also: str = ""
    """further sets to learn from, of the same classes once they are merged, parted by commas: kinds drawn by code (--count
    pictures each), or kind:folder"""
    balance: Literal["auto", "none", "rare_colours"] = "auto"
    """how often pictures are drawn: equally, or by how rare the colours of their classes are; auto: the latter where the
    loss weighs rare colours too (--loss-mask)"""
    balance_classes: int = 5  # classes that rare_colours balances: those with the most uneven colours; 0: all
    colour_bandwidth: float = 0.0  # grey levels over which a colour counts as seen (rare_colours); 0: Scott's rule
    on_error: Literal["skip", "raise"] = "skip"  # a bad file: take the next picture and say so, or stop

    def __post_init__(self) -> None:
        """Check what no data set needs to be opened for."""
        super().__post_init__()
        if len(self.size) not in (1, 2) or min(self.size) < 1:
            raise ValueError(f"size: expected one or two positive numbers, got {self.size}")
        at_least(self, balance_classes=0, colour_bandwidth=0)
        if not math.isfinite(self.colour_bandwidth):
            raise ValueError(f"colour_bandwidth: expected a finite number, got {self.colour_bandwidth}")
        for kind, folder in self._others():
            if kind not in ("auto", *KINDS) or kind.startswith("procedural") == bool(folder):
                drawn = ", ".join(DRAWN_KINDS)
                raise ValueError(f"also: expected a kind drawn by code ({drawn}) or kind:folder, got {self.also!r}")

    @property
    def height_and_width(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.size[0], self.size[-1]

    def source(self, split: str) -> Source:
        """Open a split of the set, in its region types; ValueError or FileNotFoundError say what is wrong."""
        return merged(self._opened(split), self.merge)

    def training_source(self) -> Source:
        """Open what is learnt from: the training split, and the sets of `also`; raises as :meth:`source`."""
        sources = [self.source(self.split)]
        for kind, folder in self._others():
            drawn: dict[str, Any] = {} if folder else {"size": self.height_and_width, "count": self.count}
            split = self.split if folder else "train"
            sources.append(merged(open_source(folder or None, kind, split, self.unknown, **drawn), self.merge))
        return sources[0] if len(sources) == 1 else JoinedSource(sources)

    def _others(self) -> list[tuple[str, str]]:
        """(kind, folder) of every set of `also`; no folder: drawn by code."""
        parts = [part.strip().partition(":") for part in self.also.split(",")] if self.also else []
        return [(kind, folder) for kind, _, folder in parts]

    def _opened(self, split: str) -> Source:
        """Open a split of the set with its own classes."""
        if not self.kind.startswith("procedural"):
            return open_source(self.data or None, self.kind, split, self.unknown, **self.reader_options())
        # seeds that no training set reaches
        drawn: dict[str, Any] = (
            {"seed": 0, "count": self.count} if split == self.split else {"seed": 10**9, "count": min(100, self.count)}
        )
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
