"""Latent codes as a data set: for networks that learn from what a generator is fed with, and from no picture at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixsyn_fast.region_map import Plan

from .batch import Packed


@dataclass(frozen=True, eq=False, repr=False)
class LatentBatch(Packed):
    """B latent codes."""

    latents: Tensor
    """(B, *size) float32."""
    names: tuple[str, ...]
    index: Tensor
    skipped: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"LatentBatch(latents={tuple(self.latents.shape)}, names={self.names})"


class LatentDataset:
    """Codes drawn from the standard normal distribution: item i is always the same one, and nothing is stored.

    Args:
        length: number of codes.
        size: of one code: its length, or a shape, (2, 512) for two codes that a step takes together.
        seed: sets of different seeds share no code.

    Raises:
        ValueError: an argument out of its range.
    """

    kind = "latents"
    num_regions = 0
    chances: np.ndarray | None = None

    def __init__(self, length: int, size: int | tuple[int, ...], seed: int = 0) -> None:
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if length < 1 or not self.size or min(self.size) < 1 or seed < 0:
            raise ValueError(
                f"length, size, seed: expected at least 1, 1 and 0, got {length}, {' x '.join(map(str, self.size))}, {seed}"
            )
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[int, np.ndarray]:
        """Return (index, code (*size) float32) for `index` or `(epoch, index)`; IndexError: no such index."""
        index = int(key[1] if isinstance(key, tuple) else key)
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        # NumPy's newer generators may draw other numbers in its next version, this one never will
        stream = np.random.RandomState(np.random.MT19937([self.seed, index]))
        return index, stream.standard_normal(self.size).astype(np.float32)

    def collate(self, plans: Sequence[Plan] = ()) -> Callable[[Sequence[tuple[int, np.ndarray]]], LatentBatch]:
        """Return what makes a :class:`LatentBatch` of items."""
        return _collate

    def announce(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Do nothing: a code is never bad."""


def _collate(items: Sequence[tuple[int, np.ndarray]]) -> LatentBatch:
    index = [number for number, _ in items]
    codes = torch.from_numpy(np.stack([code for _, code in items]))
    return LatentBatch(codes, tuple(map(str, index)), torch.tensor(index, dtype=torch.int64))
