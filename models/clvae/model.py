"""A trained class- and layer-wise VAE in use: reconstruct, sample, stylize, edit; keep it in one file.

For example::

    clvae = CLVAE.shipped()
    made = clvae.edit(image, labels, {"door": "sample"}, seed=3)     # (H, W, 3) uint8, (H, W) int
    again = clvae.edit(image, labels, {"window": (other, its_labels)}, codes=made.codes)
    again.image, again.codes, again.blocks

Work that depends on unchanged input is not done again: the codes of the last pictures, the analysis of the last label maps
(the pattern tables of docs/exact_algebra.md), and, for the last label maps, the input of every block of the generator: an
edit begins at the coarsest block whose codes differ, so a change of texture alone runs the fine blocks alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast import RegionMap

from ..checkpoints import load_checked
from ..memory import Memory, digest, state
from ..model_file import ModelFile
from ..pictures.picture import Picture, checked_labels, checked_picture, described, fit, fit_labels
from ..settings import from_dict
from ..sheets import to_uint8
from .codes import GLOBAL, ImageCodes
from .networks import Encoder, Generator
from .task import Config

_REMEMBERED = 16  # pictures and label maps whose codes and analysis are kept
_RESUMABLE = 4  # label maps whose block inputs are kept (each about as large as the activations of one image)
_AT_ONCE = 8  # images of one label map made in one pass

Edit = Literal["sample"] | ImageCodes | Tensor | tuple[np.ndarray, np.ndarray]
"""New codes of a class: drawn from the prior, given, or those that the class has in another (image, labels)."""


@dataclass(frozen=True)
class Saved:
    """What the file of a model says of it."""

    task: Config = field(default_factory=Config)
    classes: tuple[str, ...] = ()


FILE = ModelFile("clvae", "CLVAE", Saved)


@dataclass(frozen=True, eq=False)
class Made:
    """An image and what it was made of."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(H, W) int32, at the model's size; -1: no class."""
    codes: ImageCodes
    """Of all classes."""
    sampled: tuple[str, ...] = ()
    """Classes of the label map (and "global") whose codes were drawn from the prior in this call."""
    encoded: int = 0
    """Pictures that the encoder ran on; others were remembered."""
    blocks: tuple[str, ...] = ()
    """Blocks of the generator that ran; none where the image was remembered."""


class CLVAE:
    """Generator and encoder, ready for use: copies in eval mode, without gradients, spectral norm folded.

    Images are (H, W, 3) uint8 RGB, label maps (H, W) integers, class in the model's order or -1 for none. Of another size
    than the model's they are fitted to it (the largest box of its proportions in the middle, scaled). Every method raises
    ValueError for an image or a label map of another shape or dtype, label values outside [-1, K), sizes that differ, and
    unknown classes or levels; the message names the argument.

    Args:
        generator: it stays as it is, in training say.
        encoder: likewise.
        config: fitted settings of both.
        classes: names of the K classes.

    Raises:
        ValueError: another number of classes than the generator's.
    """

    def __init__(self, generator: nn.Module, encoder: nn.Module, config: Config, classes: Collection[str]) -> None:
        plain = {name: replace(getattr(config, name), spectral_norm=False) for name in ("generator", "encoder")}
        self.config = replace(config, **plain)
        self.classes = tuple(classes)
        if len(self.classes) != config.generator.label_nc:
            raise ValueError(f"classes: expected {config.generator.label_nc} names, got {len(self.classes)}")
        with torch.random.fork_rng(devices=[]):  # first weights, drawn in vain
            self.generator, self.encoder = Generator(self.config.generator), Encoder(self.config.encoder)
        device = next(generator.parameters()).device
        for network, given in ((self.generator, generator), (self.encoder, encoder)):
            load_checked(network, given.state_dict(), source="the given network")
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            network.eval().requires_grad_(False)
        self._forget()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.config.generator.output_size

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels that have codes of classes, from 1 (the finest)."""
        return self.config.generator.levels

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    def to(self, device: torch.device | str) -> CLVAE:
        """Move the networks, and return this model."""
        self.generator.to(device)
        self.encoder.to(device)
        self._forget()
        return self

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def shipped(device: torch.device | str = "cpu") -> CLVAE:
        """Load the model that comes with the package: facades (weights/MODEL_CARD.md)."""
        return CLVAE.load(FILE.shipped("facades"), device)

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> CLVAE:
        """Load a model.

        Args:
            path: a file of :meth:`save`, or the run folder of a training (`mixsyn-fast train clvae`): its newest valid
                checkpoint, averaged weights where the run kept them.
            device: where to put the networks.

        Raises:
            FileNotFoundError: no such file or folder, or a folder without a checkpoint.
            ValueError: damaged, of another model or version, or with weights that do not fit; the message names the path.
            ImportError: safetensors is not installed.
        """
        path = Path(path)
        if path.is_dir():
            return _load_run(path).to(device)
        saved, networks = FILE.load(path, _networks)
        return CLVAE(networks["generator"], networks["encoder"], saved.task, saved.classes).to(device)

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the model to one file, whole or not at all.

        Args:
            path: of the file, as a rule *.safetensors; folders are made. A file that is there is replaced.
            half: store weights as float16 (half the size); :meth:`load` makes float32 of them.

        Raises:
            ValueError: `half`, and a weight that float16 cannot hold.
            OSError: the file cannot be written.
            ImportError: safetensors is not installed.
        """
        networks = {"generator": self.generator, "encoder": self.encoder}
        FILE.save(path, Saved(self.config, self.classes), networks, half=half)

    # --- codes --------------------------------------------------------------------------------------------------------

    def encode(self, image: np.ndarray, labels: np.ndarray) -> ImageCodes:
        """Return the codes of a picture: the means of their distributions.

        A class without a pixel at a level's size has the prior's mean there, zero.
        """
        return self._encoded(self._picture(image, labels, "image", "labels"))[0]

    def prior(self, seed: int = 0) -> ImageCodes:
        """Draw codes of all classes and the global one from N(0, I), Eq. 3 and 11: of a class always the same for a seed."""
        codes = self.generator.prior(1, torch.Generator().manual_seed(seed))
        return ImageCodes.of_batch(codes, self.levels, self.classes)[0]

    def present(self, labels: np.ndarray) -> tuple[str, ...]:
        """Return the classes that a label map has at the model's size, in the model's order."""
        return self._present(self._labels(labels, "labels"))

    def generate(self, labels: np.ndarray, codes: ImageCodes) -> Made:
        """Return the image of a label map and codes, beginning at the first block whose codes are new for this map."""
        return self._made(self._labels(labels, "labels"), codes)

    # --- applications -------------------------------------------------------------------------------------------------

    def reconstruct(self, image: np.ndarray, labels: np.ndarray) -> Made:
        """Return a picture as the model makes it of its own codes (paper, Sec. 4.3, RQ1)."""
        picture = self._picture(image, labels, "image", "labels")
        codes, ran = self._encoded(picture)
        return replace(self._made(picture.labels, codes), encoded=ran)

    @torch.no_grad()
    def sample(self, labels: np.ndarray, count: int, seed: int = 0) -> list[Made]:
        """Return images of one label map with codes from the prior (Sec. 4.3, RQ2).

        Args:
            labels: (H, W) integers.
            count: how many.
            seed: of the first image; the next has seed + 1 and so on.

        Raises:
            ValueError: a count below 1.
        """
        fitted = self._labels(labels, "labels")
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        drawn = (*self._present(fitted), GLOBAL)
        made: list[Made] = []
        for begin in range(0, count, _AT_ONCE):
            codes = [self.prior(seed + i) for i in range(begin, min(count, begin + _AT_ONCE))]
            images = self.generator(self._regions(fitted, len(codes)), ImageCodes.batch(codes, self.device))
            for image, each in zip(to_uint8(images), codes, strict=True):
                made.append(Made(image, fitted, each, sampled=drawn, blocks=self.generator.block_names))
        return made

    def stylize(self, labels: np.ndarray, style_image: np.ndarray, style_labels: np.ndarray, seed: int = 0) -> Made:
        """Return the image of a label map in the style of another picture (Sec. 4.4.1).

        Classes that both have take the other picture's codes, and so does the global code; the others are drawn.
        """
        fitted = self._labels(labels, "labels")
        style = self._picture(style_image, style_labels, "style_image", "style_labels")
        codes, ran = self._encoded(style)
        known = self._present(style.labels)
        drawn = tuple(name for name in self._present(fitted) if name not in known)
        codes = codes.replaced(dict.fromkeys(drawn, self.prior(seed))) if drawn else codes
        return replace(self._made(fitted, codes), sampled=drawn, encoded=ran)

    def edit(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        edits: Mapping[str, Edit],
        levels: Collection[int] | None = None,
        *,
        seed: int = 0,
        codes: ImageCodes | None = None,
    ) -> Made:
        """Change the codes of some classes of a picture; all other codes stay as they are, bit for bit.

        Object editing (Sec. 4.4.2) changes a class at all levels, material editing (Sec. 4.4.3) at some of them.

        Args:
            image: (H, W, 3) uint8.
            labels: (H, W) integers.
            edits: class, or "global" for the global code -> "sample", codes (an ImageCodes of which the class's are taken,
                or a tensor (levels, N)), or (image, labels) of a picture that has the class.
            levels: levels to change, from 1 (the finest); None: all. The global code has none: it changes whole.
            seed: of what is drawn: :meth:`prior`.
            codes: start from these, those of the last step of a chain say, instead of the picture's own; the picture is not
                encoded then.

        Raises:
            ValueError: no edit, a class that the picture (or the picture it is taken from) lacks; codes of another model.
        """
        picture = self._picture(image, labels, "image", "labels")
        here = (*self._present(picture.labels), GLOBAL)
        if not edits:
            raise ValueError("edits: expected at least one class, got none")
        if not self.levels and set(edits) != {GLOBAL}:
            raise ValueError(f"edits: expected {GLOBAL} alone, the model has no codes of classes; got {', '.join(edits)}")
        sources: dict[str, Picture] = {}
        for name, edit in edits.items():
            self._check_class(name, here, "edits", "the picture")
            if isinstance(edit, tuple) and len(edit) == 2:
                sources[name] = self._picture(*edit, f"edits: {name}: image", f"edits: {name}: labels")
                there = (*self._present(sources[name].labels), GLOBAL)
                self._check_class(name, there, "edits", "the picture it is to be taken from")
            elif not isinstance(edit, (ImageCodes, Tensor)) and not (isinstance(edit, str) and edit == "sample"):
                got = repr(edit) if isinstance(edit, str) else described(edit)
                raise ValueError(f"edits: {name}: expected 'sample', codes, or (image, labels), got {got}")
        prior = self.prior(seed)
        drawn = tuple(name for name, edit in edits.items() if isinstance(edit, str))
        by: dict[str, ImageCodes | Tensor] = dict.fromkeys(drawn, prior)
        by |= {name: edit for name, edit in edits.items() if isinstance(edit, (ImageCodes, Tensor))}
        prior.replaced(by, levels)  # refused here rather than after the encoder
        if codes is not None:
            prior.check_like(codes, "codes")
        ran = 0
        if codes is None:
            codes, ran = self._encoded(picture)
        for name, source in sources.items():
            by[name], more = self._encoded(source)
            ran += more
        made = self._made(picture.labels, codes.replaced(by, levels))
        return replace(made, sampled=drawn, encoded=ran)

    # --- inner parts --------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._codes: Memory[ImageCodes] = Memory(_REMEMBERED)
        self._maps: Memory[RegionMap] = Memory(_REMEMBERED)
        self._last: Memory[_Pass] = Memory(_RESUMABLE)

    def _picture(self, image: np.ndarray, labels: np.ndarray, image_name: str, labels_name: str) -> Picture:
        """A picture at the model's size, checked."""
        picture = checked_picture(image, labels, len(self.classes), image_name, labels_name)
        return picture if picture.labels.shape == self.size else fit(picture, self.size)

    def _labels(self, labels: np.ndarray, name: str) -> np.ndarray:
        """A label map at the model's size, checked."""
        checked = checked_labels(labels, len(self.classes), name)
        return checked if checked.shape == self.size else fit_labels(checked, self.size)

    def _present(self, fitted: np.ndarray) -> tuple[str, ...]:
        return tuple(self.classes[k] for k in np.unique(fitted).tolist() if k >= 0)

    def _check_class(self, name: str, there: Collection[str], argument: str, whose: str) -> None:
        if name not in self.classes and name != GLOBAL:
            raise ValueError(f"{argument}: expected classes out of {', '.join(self.classes)}, or {GLOBAL}; got {name!r}")
        if name not in there:
            raise ValueError(
                f"{argument}: {whose} has no {name} at {self.size[0]} x {self.size[1]}; it has {', '.join(there)}"
            )

    def _regions(self, fitted: np.ndarray, count: int = 1) -> RegionMap:
        """The region map of `count` copies of a label map, with the analysis that it has had."""

        def make() -> RegionMap:
            copies = torch.from_numpy(fitted.astype(np.int64))[None].expand(count, -1, -1).contiguous()
            return RegionMap(copies.to(self.device), len(self.classes), ignore_index=-1)

        return self._maps.get(digest(fitted) + bytes([count]), make)

    def _key(self, network: nn.Module, *arrays: np.ndarray) -> bytes:
        return digest(*arrays) + state([network], self.device)

    @torch.no_grad()
    def _encoded(self, picture: Picture) -> tuple[ImageCodes, int]:
        """Codes of a fitted picture, and how often the encoder ran for them: once, or not at all."""
        before = self._codes.made

        def make() -> ImageCodes:
            image = torch.from_numpy(picture.image.copy()).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            latents = self.encoder(image, self._regions(picture.labels))
            return ImageCodes.of_batch(latents.codes(len(self.classes), sample=False), self.levels, self.classes)[0]

        return self._codes.get(self._key(self.encoder, picture.image, picture.labels), make), self._codes.made - before

    @torch.no_grad()
    def _made(self, fitted: np.ndarray, codes: ImageCodes) -> Made:
        """The image, from the coarsest block on whose codes differ from those of this label map's last pass."""
        self.prior().check_like(codes, "codes")
        rows = sorted(set(np.unique(fitted).tolist()) - {-1})
        last = self._last.get(self._key(self.generator, fitted), lambda: _Pass(codes, {}))
        names = self._running(last, codes, rows)
        if names:
            inputs = dict(last.inputs)
            whole = len(names) == len(self.generator.block_names)
            features = self.generator.forward_features(
                self._regions(fitted),
                ImageCodes.batch([codes], self.device),
                first=None if whole else names[0],
                inputs=inputs,
            )
            last.image, last.codes, last.inputs = to_uint8(torch.tanh(features))[0], codes, inputs
        assert last.image is not None
        return Made(last.image.copy(), fitted, codes, blocks=names)

    def _running(self, last: _Pass, codes: ImageCodes, rows: list[int]) -> tuple[str, ...]:
        """Blocks that must run: from the first one whose codes, of classes that the map has, differ."""
        names = self.generator.block_names
        if last.image is None or not torch.equal(last.codes.z, codes.z):
            return names
        level_of = self.config.generator.level_of_block
        for at, name in enumerate(names):
            if name in level_of:
                place = self.levels.index(level_of[name])
                if not torch.equal(last.codes.classes[place, rows], codes.classes[place, rows]):
                    return names[at:]
        return ()


@dataclass
class _Pass:
    """The last pass of a label map."""

    codes: ImageCodes
    inputs: dict[str, Tensor]
    image: np.ndarray | None = None


def _networks(saved: Saved) -> dict[str, nn.Module]:
    return {"generator": Generator(saved.task.generator), "encoder": Encoder(saved.task.encoder)}


def _load_run(folder: Path) -> CLVAE:
    from ..training.trained import load_trained

    try:
        trained = load_trained(folder)
        if trained.config["model"] != "clvae":
            raise ValueError(f"a run of model {trained.config['model']!r}")
        config = from_dict(Config, trained.config["task"])
        return CLVAE(trained.networks["generator"], trained.networks["encoder"], config, trained.config["classes"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: expected a run of `mixsyn-fast train clvae`, got: {error}") from error
