r"""Training of the classifier behind the harmony score: pictures against composites, which are made here.

A composite is a picture of which one region has the colours of the same region of another picture. With the colours c of the
region's pixels, of mean m and covariance S in the picture, and mu and Sigma in the other one:

.. math::

    c' = \mu + A (c - m), \qquad A = S^{-1/2} (S^{1/2} \Sigma S^{1/2})^{1/2} S^{-1/2}

the linear map that gives them the other's mean and covariance and moves them least (Pitie and Kokaram: The Linear
Monge-Kantorovitch Linear Colour Mapping, 2007): decorrelated by S^{-1/2}, scaled along new axes, correlated anew. Both
covariances have `NOISE` added to their diagonal, for a region of one colour has no inverse. The result is clipped and
rounded to 8 bits, as the picture was.

    L = binary cross-entropy, on every picture with the mask of a region (1) and on the composite with the same mask (0)

The region is any of those with a share of the pixels between `smallest` and `largest` that another picture of the batch has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.region_map import RegionMap, Size

from .data import Batch, colorize
from .metrics import harmony
from .metrics.harmony import HarmonyClassifier, HarmonyConfig
from .settings import at_least
from .sheets import to_uint8
from .training.checkpoint import newest_valid
from .training.task import Phase, Task, Trainable
from .training.trained import load_trained

NOISE = (2 / 255) ** 2
"""Variance added to every colour's: a deviation of one step of 8 bits."""


@dataclass(frozen=True)
class Config:
    """Settings of the training of the harmony classifier; the number of regions is filled in by :func:`fitted`."""

    classifier: HarmonyConfig = field(default_factory=HarmonyConfig)
    smallest: float = 0.01  # share of the pixels that a region must have to be recoloured
    largest: float = 0.6  # share of the pixels that it may have
    least_change: float = 0.05  # mean change of a recoloured region's values, of the range 2: a smaller one is no composite
    lr: float = 2e-4  # learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's decay rates
    weight_decay: float = 1e-4  # of Adam
    num_regions: int = 1  # K of the label maps

    def __post_init__(self) -> None:
        """Check every field once."""
        if not 0 < self.smallest < self.largest <= 1:
            raise ValueError(f"smallest: expected 0 < smallest < largest <= 1, got {self.smallest} and {self.largest}")
        if not 0 <= self.least_change < 2:
            raise ValueError(f"least_change: expected a number in [0, 2), got {self.least_change}")
        if not self.lr > 0:
            raise ValueError(f"lr: expected a positive number, got {self.lr}")
        at_least(self, weight_decay=0, num_regions=1)


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with the number of regions.

    Raises:
        ValueError: images smaller than the classifier can halve.
    """
    del edges
    least = 2**config.classifier.halvings
    if min(size) < least:
        raise ValueError(
            f"size: expected at least {least} pixels a side for {config.classifier.halvings} halvings, got {size}"
        )
    return replace(config, num_regions=len(classes))


class Composites(NamedTuple):
    """Composites of a batch."""

    image: Tensor
    """(B, 3, H, W) in [-1, 1]; the picture itself where there is none."""
    mask: Tensor
    """(B, 1, H, W) bool: the region that was recoloured."""
    made: Tensor
    """(B,) bool: there is a composite, and it differs."""


def colour_statistics(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (B, 3) and covariance (B, 3, 3) of a region's colours in float64; zero where it has no pixel.

    Args:
        image: (B, 3, H, W).
        mask: (B, 1, H, W) bool.
    """
    weights = mask.double().flatten(2)
    colours = image.double().flatten(2)
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1)
    mean = (colours * weights).sum(2)
    centred = colours - mean[..., None]
    return mean, (centred * weights) @ centred.transpose(1, 2)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of symmetric positive matrices (B, 3, 3)."""
    values, vectors = torch.linalg.eigh(matrix)
    found: Tensor = (vectors * values.clamp(min=0).pow(exponent)[:, None]) @ vectors.transpose(1, 2)
    return found


@torch.no_grad()
def recoloured(image: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
    """Return images (B, 3, H, W) whose region has the mean and covariance of colours of another one (see the module).

    Args:
        image: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W) bool, of the region to recolour.
        other: (B, 3, h, w) likewise, where the colours come from.
        other_mask: (B, 1, h, w) bool.
    """
    mean, covariance = colour_statistics(image, mask)
    wanted, wanted_covariance = colour_statistics(other, other_mask)
    noise = NOISE * torch.eye(3, dtype=torch.float64, device=image.device)
    covariance, wanted_covariance = covariance + noise, wanted_covariance + noise
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    change = inverse @ _power(root @ wanted_covariance @ root, 0.5) @ inverse
    colours = change @ (image.double().flatten(2) - mean[..., None]) + wanted[..., None]
    made = ((colours.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return torch.where(mask, made.view_as(image).to(image.dtype), image)


@torch.no_grad()
def composites(image: Tensor, regions: RegionMap, config: Config) -> Composites:
    """Return a composite of every picture of a batch, as far as it has one; regions and partners are drawn.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        regions: hard map of the same size.
        config: which regions, and what counts as a change.
    """
    batch, _, height, width = image.shape
    share = regions.areas((height, width)) / (height * width)
    has = share >= config.smallest  # (B, K)
    others = has.sum(0) - has.to(torch.int64)  # pictures beside this one that have the region
    possible = has & (share <= config.largest) & (others > 0)
    any_region = possible.any(1)
    region = torch.multinomial((possible | ~any_region[:, None]).float(), 1)[:, 0]
    partners = has[:, region].T & ~torch.eye(batch, dtype=torch.bool, device=image.device)
    partner = torch.multinomial((partners | ~any_region[:, None]).float(), 1)[:, 0]
    labels = regions.labels_at((height, width))
    mask = (labels == region[:, None, None])[:, None]
    other_mask = (labels[partner] == region[:, None, None])[:, None]
    made = recoloured(image, mask, image[partner], other_mask)
    pixels = mask.flatten(1).sum(1).clamp(min=1) * 3
    change = (made - image).abs().flatten(1).sum(1) / pixels
    valid = any_region & (change >= config.least_change)
    return Composites(torch.where(valid[:, None, None, None], made, image), mask, valid)


class HarmonyTask(Task):
    """Network and phase "classifier".

    Args:
        config: fitted settings (`fitted`).
        training: of no matter.
    """

    best = "accuracy"
    least_batch = 2  # a composite takes its colours from another picture of the batch

    def __init__(self, config: Config, training: bool = True) -> None:
        self.config = config
        self.num_regions = config.num_regions
        self.networks: dict[str, nn.Module] = {"classifier": HarmonyClassifier(config.classifier)}
        self.averaged = ("classifier",)
        self.phases = {
            "classifier": Phase(self.averaged, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        }

    def logits(self, batch: Batch, networks: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
        """Return logits of the pictures and of their composites, (n,) each, of the n that have one."""
        made = composites(batch.image, batch.regions, self.config)
        images = torch.cat((batch.image[made.made], made.image[made.made]))
        of_real, of_made = networks["classifier"](images, made.mask[made.made].repeat(2, 1, 1, 1)).chunk(2)
        return of_real, of_made

    def losses(self, phase: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the binary cross-entropy; 0, and no gradient, of a batch without a composite.

        Raises:
            ValueError: another phase; a batch of one picture, which has no other to take colours from.
        """
        if phase not in self.phases:
            raise ValueError(f"phase: expected one of {', '.join(self.phases)}, got {phase!r}")
        if len(batch) < 2:
            raise ValueError(
                "batch_size: expected at least 2 pictures per process and micro-batch, for a composite takes its colours "
                f"from another picture of the batch, got {len(batch)}"
            )
        of_real, of_made = self.logits(batch, self.networks)
        logits = torch.cat((of_real, of_made)).float()
        if not len(logits):
            return {"cross_entropy": logits.sum()}
        wanted = torch.cat((torch.ones_like(of_real), torch.zeros_like(of_made))).float()
        return {"cross_entropy": F.binary_cross_entropy_with_logits(logits, wanted)}

    def generate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return composites (B, 3, H, W) of a batch."""
        return composites(batch.image, batch.regions, self.config).image

    def validate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return accuracy over pictures and composites, (2 n,), and the mean scores of both, (n,).

        A single picture left over in the last batch has no composite.
        """
        if len(batch) < 2:
            return {}
        of_real, of_made = (logits.float() for logits in self.logits(batch, networks))
        return {
            "accuracy": torch.cat((of_real > 0, of_made <= 0)).float(),
            "score_pictures": torch.sigmoid(of_real),
            "score_composites": torch.sigmoid(of_made),
        }

    def sheet(self, batch: Batch, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows: picture, label map, mask of a region, composite."""
        made = composites(batch.image, batch.regions, self.config)
        labels = colorize(batch.regions.labels_at().cpu().numpy(), self.num_regions)
        masks = to_uint8(made.mask.expand_as(made.image).float() * 2 - 1)
        return [list(row) for row in zip(to_uint8(batch.image), labels, masks, to_uint8(made.image), strict=True)]


def load_classifier(source: str | os.PathLike[str], device: torch.device | str = "cpu") -> HarmonyClassifier:
    """Load a classifier, in eval mode and without gradients.

    Args:
        source: a run folder of `mixsyn-fast train harmony` (averaged weights of its best checkpoint; of its newest where
            nothing was validated), or a file of `metrics.harmony.save_classifier`.
        device: where to put it.

    Raises:
        FileNotFoundError, ValueError: nothing there, damaged, or another model; the message names it.
    """
    path = Path(source)
    if not path.is_dir():
        return harmony.load_classifier(path, device)
    best = newest_valid(path / "checkpoints", best=True) is not None
    trained: Any = load_trained(path, step="best" if best else "newest", device=device).networks.get("classifier")
    if not isinstance(trained, HarmonyClassifier):
        raise ValueError(f"{path}: expected a run of mixsyn-fast train harmony, got one of another model")
    return trained


TRAINABLES = {"harmony": Trainable(Config, fitted, HarmonyTask, ("num_regions",))}
"""What `mixsyn-fast train` finds here by name."""
