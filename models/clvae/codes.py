"""The latent codes of one picture, as plain values: replaced, mixed, kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..model_file import TensorFile
from .networks import Codes

GLOBAL = "global"
"""Name of the global code z_1 where classes are named."""
_FILE = TensorFile("clvae.codes", "ImageCodes")


@dataclass(frozen=True, eq=False)
class ImageCodes:
    """All latent codes of one picture: float32 on the CPU. Methods return new objects; do not write into the tensors.

    Args:
        z: (z_dim,) the global code, z_1 of the paper.
        classes: (M, K, N) code of every class at each of the M levels, whether the picture has the class or not.
        levels: the M encoder levels, from 1 (the finest).
        names: of the K classes.

    Raises:
        ValueError: shapes that do not belong together.
    """

    z: Tensor
    classes: Tensor
    levels: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the shapes."""
        expected = (len(self.levels), len(self.names))
        if self.z.dim() != 1 or self.classes.dim() != 3 or self.classes.shape[:2] != expected:
            raise ValueError(
                f"codes: expected z (z_dim,) and classes ({expected[0]} levels, {expected[1]} classes, N), "
                f"got {tuple(self.z.shape)} and {tuple(self.classes.shape)}"
            )

    @staticmethod
    def of_batch(codes: Codes, levels: Sequence[int], names: Sequence[str]) -> list[ImageCodes]:
        """Return the codes of every picture of a batch."""
        z = codes.z.detach().float().cpu()
        length = codes.classes[0].shape[2] if codes.classes else 0
        shape = (0, len(z), len(names), length)
        classes = torch.stack([each.detach().float().cpu() for each in codes.classes]) if levels else torch.zeros(shape)
        return [ImageCodes(z[i], classes[:, i].contiguous(), tuple(levels), tuple(names)) for i in range(len(z))]

    @staticmethod
    def batch(several: Sequence[ImageCodes], device: torch.device | str = "cpu") -> Codes:
        """Return the codes of several pictures as the networks read them, on a device."""
        z = torch.stack([codes.z for codes in several]).to(device)
        classes = torch.stack([codes.classes for codes in several], 1).to(device)
        return Codes(z, tuple(classes))

    def of(self, name: str) -> Tensor:
        """Return the codes (M, N) of a class, from the finest level; ValueError for an unknown one."""
        return self.classes[:, self._index(name)]

    def replaced(
        self, by: Mapping[str, ImageCodes | Tensor], levels: Collection[int] | None = None, argument: str = "edits"
    ) -> ImageCodes:
        """Take the codes of some classes from elsewhere; all others stay as they are, bit for bit.

        Args:
            by: class -> codes (M, N), or another picture's, of which that class's are taken; "global" -> z (z_dim,), or
                another picture's.
            levels: levels at which class codes are replaced, from 1 (the finest); None: all. The global code has no level.
            argument: named in errors.

        Raises:
            ValueError: an unknown class or level, or codes of another shape.
        """
        at = self._places(levels)
        z, classes = self.z, self.classes.clone()
        for name, given in by.items():
            if name == GLOBAL and GLOBAL not in self.names:
                z = given.z if isinstance(given, ImageCodes) else given
                if z.shape != self.z.shape:
                    raise ValueError(f"{argument}: global: expected a code {tuple(self.z.shape)}, got {tuple(z.shape)}")
                continue
            k = self._index(name, argument)
            if isinstance(given, ImageCodes):
                self.check_like(given, f"{argument}: {name}")
                given = given.classes[:, k]
            expected = (len(self.levels), self.classes.shape[2])
            if given.shape != expected:
                raise ValueError(f"{argument}: {name}: expected codes {expected} (levels, N), got {tuple(given.shape)}")
            classes[at, k] = given[at].to(classes)
        return replace(self, z=z.to(self.z), classes=classes)

    def interpolated(
        self, other: ImageCodes, weight: float, names: Collection[str] | None = None, levels: Collection[int] | None = None
    ) -> ImageCodes:
        """Go a part of the way to another picture's codes, linearly.

        Args:
            other: where to.
            weight: 0: here, 1: there; beyond them it is extrapolated.
            names: classes that move, "global" for the global code; None: everything.
            levels: levels at which they move; None: all.

        Raises:
            ValueError: an unknown class or level, codes of another model.
        """
        self.check_like(other, "other")
        every = (*self.names, GLOBAL) if names is None else tuple(names)
        moved: dict[str, ImageCodes | Tensor] = {}
        for name in every:
            here, there = (self.z, other.z) if name == GLOBAL else (self.of(name), other.of(name))
            moved[name] = torch.lerp(here, there, weight)
        return self.replaced(moved, levels, "names")

    def check_like(self, other: ImageCodes, argument: str) -> None:
        """ValueError, naming the argument, for codes of another model than these are of."""
        for what in ("names", "levels"):
            if getattr(self, what) != getattr(other, what):
                raise ValueError(
                    f"{argument}: expected codes of a model with {what} {getattr(self, what)}, got {getattr(other, what)}"
                )
        if (self.z.shape, self.classes.shape) != (other.z.shape, other.classes.shape):
            raise ValueError(
                f"{argument}: expected codes {tuple(self.z.shape)} and {tuple(self.classes.shape)}, "
                f"got {tuple(other.z.shape)} and {tuple(other.classes.shape)}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codes to one safetensors file, whole or not at all; OSError where that cannot be."""
        about = {"levels": json.dumps(self.levels), "names": json.dumps(self.names)}
        _FILE.save(path, {"z": self.z, "classes": self.classes}, about)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ImageCodes:
        """Read a file of :meth:`save`; FileNotFoundError, or ValueError that names the path of another or a damaged file."""
        tensors, about = _FILE.load(path)
        try:
            levels, names = (tuple(json.loads(about[key])) for key in ("levels", "names"))
            return ImageCodes(tensors["z"], tensors["classes"], levels, names)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{Path(path)}: expected codes of ImageCodes.save, got: {error}") from error

    def _index(self, name: str, argument: str = "name") -> int:
        if name not in self.names:
            raise ValueError(f"{argument}: expected classes out of {', '.join(self.names)}, got {name!r}")
        return self.names.index(name)

    def _places(self, levels: Collection[int] | None) -> list[int]:
        unknown = [level for level in levels or () if level not in self.levels]
        if unknown or (levels is not None and not levels):
            there = ", ".join(map(str, self.levels)) or "none"
            raise ValueError(f"levels: expected some of {there} (1 is the finest), got {list(levels or ())}")
        return [i for i, level in enumerate(self.levels) if levels is None or level in levels]
