"""What rows share: names of dtypes and layouts, the generators' rows, and where label maps come from.

A case is a row of data: the shapes of the real networks, dtype, layout, kind of labels. Those of the ops stand in
`benchmarks/ops`, one file per op.

Label maps come from `--data DIR` (`DIR/images`, `DIR/labels`), else from `$MIXSYN_FAST_DATA/celebamask_hq/val`, else they
are drawn by `mixsyn_fast.models.data`.
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
from mixsyn_fast.models.data import NUM_CLASSES, draw_batch, first_items, open_source
from torch import Tensor

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
                return first_items(open_source(scenes, "folder", "all", classes=NUM_CLASSES["street"]), count, size)
        if self.folder is not None and kind == "face":
            return first_items(open_source(self.folder, "folder", "all", classes=NUM_CLASSES["face"]), count, size)
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
        open_source(data, "folder", "all", classes=NUM_CLASSES["face"])
        return Labels(Path(data))
    root = os.environ.get("MIXSYN_FAST_DATA")
    if root:
        folder = Path(root) / "celebamask_hq" / "val"
        if folder.is_dir():
            return Labels(folder)
    return Labels(None)
