"""Harmony score: how sure a trained classifier is that a picture is no composite, of which a region was recoloured.

    score = load_classifier("harmony.safetensors")
    harmony_score(score, images, masks)          # (B,) in [0, 1], higher is more harmonious

The output probability of a binary classifier of photographs and composites (Zhu, Krahenbuhl, Shechtman, Efros: Learning a
Discriminative Model for the Perception of Realism in Composite Images, ICCV 2015), which sees the picture with the mask of
the region in question (Wang et al., Computational Visual Media 2023, Sec. 4.1). Scores of two classifiers do not compare.
`mixsyn-fast train harmony` trains one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import masked_roi_pool
from mixsyn_fast.region_map import RegionMap

from ..model_file import ModelFile
from ..settings import at_least

SLOPE = 0.2


@dataclass(frozen=True)
class HarmonyConfig:
    """Settings of the classifier."""

    width: int = 32  # channels of the first convolution; twice as many at every halving
    largest: int = 256  # most channels
    halvings: int = 4  # convolutions of stride 2

    def __post_init__(self) -> None:
        """Check every field once."""
        at_least(self, width=1, largest=1, halvings=1)


class HarmonyClassifier(nn.Module):
    """Image (B, 3, H, W) and mask (B, 1, H, W) -> logits (B,): positive where the region belongs to the image.

    Convolutions on image and mask together, four channels; then the means of the features inside the mask and outside, which
    is what has to fit together, and two linear layers. No normalisation: it would take the colours' statistics away.
    """

    def __init__(self, config: HarmonyConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HarmonyConfig()
        widths = [min(config.width * 2**i, config.largest) for i in range(config.halvings + 1)]
        self.first = nn.Conv2d(4, widths[0], 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.hidden = nn.Linear(2 * widths[-1], widths[-1])
        self.last = nn.Linear(widths[-1], 1)
        for conv in (self.first, *self.convs):
            nn.init.kaiming_normal_(conv.weight, SLOPE)
            nn.init.zeros_(conv.bias)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the logits (B,).

        Args:
            image: (B, 3, H, W) in [-1, 1], H and W at least 2 ** halvings.
            mask: (B, 1, H, W): 1 inside the region, 0 outside.

        Raises:
            ValueError: another shape.
        """
        least = 2**self.config.halvings
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < least:
            raise ValueError(f"image: expected shape (B, 3, H, W), H and W at least {least}, got {tuple(image.shape)}")
        wanted = (image.shape[0], 1, *image.shape[2:])
        if mask.shape != wanted:
            raise ValueError(f"mask: expected shape {wanted}, got {tuple(mask.shape)}")
        mask = mask.to(image.dtype)
        x = F.leaky_relu(self.first(torch.cat((image, mask), 1)), SLOPE)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        inside = F.adaptive_avg_pool2d(mask, (x.shape[2], x.shape[3]))
        sides = RegionMap.soft(torch.cat((inside, 1 - inside), 1).float(), check=False)
        pooled = masked_roi_pool(x, sides, mode="mean")[0]
        logits: Tensor = self.last(F.leaky_relu(self.hidden(pooled.flatten(1)), SLOPE))
        return logits[:, 0]


@torch.no_grad()
def harmony_score(classifier: HarmonyClassifier, image: Tensor, mask: Tensor) -> Tensor:
    """Return the classifier's probability that the region belongs to the image, (B,) float32.

    Args:
        classifier: trained, in eval mode.
        image: (B, 3, H, W) in [-1, 1]; best of the size that it was trained on.
        mask: (B, 1, H, W): 1 inside the region, 0 outside.

    Raises:
        ValueError: another shape, or a mask with values other than 0 and 1.
    """
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask: expected values 0 and 1, got others")
    return torch.sigmoid(classifier(image.float(), mask).float())


FILE = ModelFile("harmony", "harmony classifier", HarmonyConfig)
"""The classifier's file, with the one network "classifier"."""


def save_classifier(classifier: HarmonyClassifier, path: str | os.PathLike[str], half: bool = False) -> None:
    """Write a classifier to one file, whole or not at all; `half`: as float16.

    Raises:
        ValueError: `half`, and a weight that float16 cannot hold.
        OSError, ImportError: it cannot be written; safetensors is not installed.
    """
    FILE.save(path, classifier.config, {"classifier": classifier}, half=half)


def load_classifier(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> HarmonyClassifier:
    """Read a file of :func:`save_classifier`; in eval mode and without gradients.

    Raises:
        FileNotFoundError, ValueError: no such file; damaged or of another model. The message names it.
    """
    network = FILE.load(path, lambda config: {"classifier": HarmonyClassifier(config)})[1]["classifier"]
    assert isinstance(network, HarmonyClassifier)
    return network.to(device).eval().requires_grad_(False)
