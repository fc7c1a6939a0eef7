"""The cases: rows of data. A case names an op or a generator, the shape of the real networks, dtype, layout, labels.

Label maps come from `--data DIR` (`DIR/images`, `DIR/labels`), else from `$MIXSYN_FAST_DATA/celebamask_hq/val`,
else they are drawn by `mixsyn_fast.models.data`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixsyn_fast.models.data import NUM_CLASSES, draw_batch, load_folder
from torch import Tensor

# Inputs of the normalisation layers of the SEAN and SPADE generators at 256 x 256 with ngf 64: (channels, side).
GENERATOR_SHAPES = ((128, 256), (64, 256), (256, 128), (512, 64), (1024, 32), (1024, 16))
STATISTICS = ("instance", "batch", "given")  # given: running statistics, as in eval
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class NormCase:
    """region_norm on one shape. Rows of the table: the distinct 5x5 label patterns of each image (as in SEAN)."""

    channels: int
    side: int
    batch: int = 1
    statistics: str = "batch"
    layout: str = "channels_last"
    dtype: str = "float32"
    modulation: str = "table"  # "table" or "maps" (dense scale and shift)
    negative_slope: float | None = 0.2
    labels: str = "face"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        shape = f"{self.batch}x{self.channels}x{self.side}x{self.side}"
        return f"region_norm/{self.modulation}/{self.statistics}/{shape}/{self.layout}/{self.dtype}"

    @property
    def elements(self) -> int:
        """Values of x."""
        return self.batch * self.channels * self.side**2

    def passes(self, mode: str) -> int:
        """Passes over a tensor of x's size that no implementation can avoid.

        Computed statistics: 2 reads + 1 write forward, 4 reads + 1 write backward; given ones: one read less each.
        Dense maps: 2 reads more forward, and 2 reads + 2 writes more backward (the maps and their gradients).
        """
        fewer = self.statistics == "given"
        maps = self.modulation == "maps"
        forward = 3 - fewer + 2 * maps
        backward = 5 - fewer + 4 * maps
        return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


@dataclass(frozen=True)
class PatternCase:
    """label_patterns on one batch of maps."""

    side: int
    batch: int = 1
    radius: int = 2
    threads: int = 1
    per_image: bool = False
    labels: str = "face"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        where = "per_image" if self.per_image else "shared"
        return f"label_patterns/{self.labels}/{self.batch}x{self.side}x{self.side}/r{self.radius}/{where}/t{self.threads}"


@dataclass(frozen=True)
class ModelCase:
    """A whole generator on label maps."""

    family: str  # sean (from style codes), sean_image (from a style image, encoder included), spade, clade
    label_nc: int
    batch: int = 1
    mode: str = "forward"  # "forward" (eval) or "training" (forward and backward of all parameters)
    size: int = 256
    ngf: int = 64
    labels: str = "face"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        return f"{self.family}/k{self.label_nc}/b{self.batch}/{self.mode}/{self.size}/ngf{self.ngf}/{self.dtype}"


def norm_cases(*, quick: bool = False, dtype: str = "float32") -> list[NormCase]:
    """The region_norm rows: every generator shape with batch statistics, the ends and the middle with the others."""
    if quick:
        shapes: Sequence[tuple[int, int]] = ((64, 256), (1024, 16))
        return [NormCase(c, s, 1, kind, dtype=dtype) for c, s in shapes for kind in ("batch", "given")]
    rows = [NormCase(c, s, b, "batch", layout, dtype) for layout in LAYOUTS for b in (1, 4) for c, s in GENERATOR_SHAPES]
    picked = ((128, 256), (512, 64), (1024, 16))
    rows += [NormCase(c, s, b, k, "channels_last", dtype) for k in ("instance", "given") for b in (1, 4) for c, s in picked]
    rows += [NormCase(c, s, 1, "batch", "channels_last", dtype, "maps") for c, s in picked]
    return rows


def pattern_cases(*, quick: bool = False) -> list[PatternCase]:
    """The label_patterns rows; the first is the one with a target (one core, 256 x 256, radius 2)."""
    rows = [PatternCase(256), PatternCase(256, labels="street")]
    if not quick:
        all_threads = torch.get_num_threads()
        rows += [
            PatternCase(256, radius=1),
            PatternCase(128),
            PatternCase(512),
            PatternCase(256, batch=4, threads=all_threads),
            PatternCase(256, batch=4, threads=all_threads, per_image=True),
        ]
    return rows


def model_cases(*, quick: bool = False) -> list[ModelCase]:
    """The generator rows."""
    if quick:
        return [ModelCase("sean", 19), ModelCase("sean", 19, mode="training")]
    return [
        ModelCase("sean", 19),
        ModelCase("sean", 19, batch=4),
        ModelCase("sean", 19, mode="training"),
        ModelCase("sean_image", 19),
        ModelCase("sean_image", 19, mode="training"),
        ModelCase("spade", 151, labels="street"),
        ModelCase("spade", 151, batch=4, labels="street"),
        ModelCase("spade", 151, mode="training", labels="street"),
        ModelCase("clade", 151, labels="street"),
        ModelCase("clade", 151, batch=4, labels="street"),
        ModelCase("clade", 151, mode="training", labels="street"),
    ]


def select(rows: Sequence[Any], pattern: str | None) -> list[Any]:
    """The rows whose name contains a match of the regular expression `pattern` (all when None)."""
    return [row for row in rows if pattern is None or re.search(pattern, row.name)]


@dataclass(frozen=True)
class Labels:
    """Where label maps come from; `text` goes into the results."""

    folder: Path | None

    @property
    def text(self) -> str:
        """A description for the results."""
        return f"real label maps ({self.folder.parent.name}/{self.folder.name})" if self.folder else "procedural label maps"

    def arrays(self, kind: str, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (count, size, size, 3) uint8 and labels (count, size, size) of a kind: face, facade, street.

        Faces are read from the folder (19 classes), streets from ADE20K samples beside it (151 classes) where they are;
        all else is drawn.
        """
        if self.folder is not None and kind == "street":
            scenes = self.folder.parent.parent / "samples" / "ade20k"
            if scenes.is_dir():
                return load_folder(scenes, count, size, num_classes=NUM_CLASSES["street"])
        if self.folder is not None and kind == "face":
            return load_folder(self.folder, count, size, num_classes=NUM_CLASSES["face"])
        return draw_batch(kind, count, size)

    def tensors(self, kind: str, count: int, size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images (count, 3, size, size) float32 in [-1, 1] and labels (count, size, size) int64."""
        images, labels = self.arrays(kind, count, size)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return pixels.contiguous().to(device), torch.from_numpy(labels.astype(np.int64)).to(device)


def label_source(data: str | os.PathLike[str] | None) -> Labels:
    """`data` if given, else `$MIXSYN_FAST_DATA/celebamask_hq/val` if it exists, else procedural.

    Raises:
        FileNotFoundError: `data` is given and is not a folder of pairs.
    """
    if data is not None:
        from mixsyn_fast.models.data import list_pairs

        list_pairs(data)
        return Labels(Path(data))
    root = os.environ.get("MIXSYN_FAST_DATA")
    if root:
        folder = Path(root) / "celebamask_hq" / "val"
        if folder.is_dir():
            return Labels(folder)
    return Labels(None)
