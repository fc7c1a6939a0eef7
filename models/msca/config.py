"""Settings of MSCA's networks.

Zheng, Liao, Chen, Xiong, Chen, Luo, "Example-Guided Image Synthesis across Arbitrary Scenes using Masked Spatial-Channel
Attention and Self-Supervision", ECCV 2020. Defaults are the paper's where it says a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..settings import one_of

SCALES = 5
"""L + 1 (Sec. 3.1): scale 0 has the image's size, scale i a 2^i-th of it."""
MULTIPLE = 1 << (SCALES - 1)
"""Height and width of every picture are multiples of it."""
LONGEST = 4
"""An exemplar's side is at most so many times that of the model's images: longer ones are cut."""
VGG_CHANNELS = (64, 128, 256, 512, 512)
"""Channels of VGG's relu1_1, relu2_1, ... relu5_1, which have the sizes of scales 0 to 4."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Settings of feature extraction, alignment and synthesis (Sec. 3.1 to 3.3)."""

    label_nc: int = 182  # number of labels (COCO-Stuff)
    trunk: Literal["vgg", "own"] = "vgg"  # where the exemplar's features come from: a fixed VGG, as in the paper, or
    # convolutions that are trained along, so that the model needs no other file
    trunk_width: int = 32  # of an own trunk: its scales have 1, 2, 4, 8, 8 times as many channels
    features: int = 64  # N: channels of the exemplar's features at every scale (Eq. 1)
    condition: int = 64  # M: channels of the label features at every scale (Eq. 2)
    maps: tuple[int, ...] = (8, 16, 16, 16, 16)  # K of scales 0 to 4
    attention: Literal["msca", "gap", "labels"] = "msca"
    """what aligns: MSCA, the mean of all positions, or the mean of every label's positions, which goes to that label
    (ablations "GAP" and "w/o att")"""
    masking: bool = True  # feature masking, Eq. 6; False: the ablation "w/o fm"
    ngf: int = 64  # width of the synthesis: its blocks give 16, 8, 4, 2, 1 times as many channels, from scale 4 to 0
    largest: int = 0  # most channels of any block, for small models; 0: no limit
    hidden: int = 128  # width of mlp_shared inside each normalisation
    norm: Literal["batch", "instance"] = "batch"  # parameter-free normalisation inside SPADE
    spectral_norm: bool = False  # True for training: the blocks' convolutions hold weight_orig, _u and _v

    def __post_init__(self) -> None:
        """Check every field once."""
        one_of(self, trunk=("vgg", "own"), attention=("msca", "gap", "labels"), norm=("batch", "instance"))
        for name in ("label_nc", "trunk_width", "features", "condition", "ngf", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if self.largest < 0:
            raise ValueError(f"largest: expected a positive number, or 0 for no limit, got {self.largest!r}")
        if len(self.maps) != SCALES or not all(1 <= count <= 64 for count in self.maps):
            raise ValueError(f"maps: expected {SCALES} numbers from 1 to 64, got {self.maps}")

    @property
    def trunk_channels(self) -> tuple[int, ...]:
        """Channels of the exemplar's features before the compression, scales 0 to 4."""
        if self.trunk == "vgg":
            return VGG_CHANNELS
        return tuple(self.trunk_width * factor for factor in (1, 2, 4, 8, 8))

    @property
    def map_channels(self) -> int:
        """N + M: channels of what the normalisations read."""
        return self.features + self.condition

    def channels(self, multiple: int) -> int:
        """Return the channels of a block that has `multiple` times ngf of them, within the limit."""
        return min(multiple * self.ngf, self.largest or multiple * self.ngf)


def sizes_of(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of scales 0 to 4 of a picture.

    Raises:
        ValueError: a side that is no multiple of 16.
    """
    if height < 1 or width < 1 or height % MULTIPLE or width % MULTIPLE:
        raise ValueError(f"size: expected height and width that are multiples of {MULTIPLE}, got {height} x {width}")
    return tuple((height >> i, width >> i) for i in range(SCALES))


def exemplar_size(stored: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (H, W) at which a model sees an exemplar: whole, at the scale of what the model was trained on.

    The attention is over positions, so their number is free. The picture is scaled as if it were to be cut to the model's
    size, until it covers it; nothing is cut but what is beyond multiples of 16, and beyond `LONGEST` times the model's side.

    Args:
        stored: (h, w) of the exemplar.
        size: (H, W) of the model's images.
    """
    scale = max(wanted / side for wanted, side in zip(size, stored, strict=True))
    height, width = (
        min(round(side * scale / MULTIPLE) * MULTIPLE, LONGEST * wanted) for wanted, side in zip(size, stored, strict=True)
    )
    return height, width
