"""A trained MSCA in use: a label map in the style of any scene, of several, or beyond a picture's border; kept in one file.

For example::

    msca = MSCA.load("model.safetensors")
    made = msca.synthesize(labels, photo, its_labels)         # (H, W) int, (H, W, 3) uint8, (H, W) int
    made = msca.interpolate(labels, [(photo, its_labels), (other, other_labels)], [0.3, 0.7])
    scene = msca.extrapolate(patch, patch_labels, labels_of_the_scene)

What an exemplar gives to any label map and what a label map asks of any exemplar are computed apart, and kept from call to
call: a new label map costs its own half and the synthesis, a new exemplar likewise. Every result says what was computed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast import RegionMap
from mixsyn_fast.layers.attended import Attended

from ..checkpoints import load_checked
from ..feature_networks import FeatureNetwork
from ..losses.perceptual import load_vgg
from ..memory import Memory, digest, state
from ..model_file import ModelFile, digest_of
from ..pictures.picture import Picture, checked_labels, checked_picture, fit, fit_labels
from ..settings import read_json
from ..sheets import to_uint8
from .blending import blending_weights, check_weights, gradient_maps, patch_border, weights_of_walk, window_places
from .config import GeneratorConfig, exemplar_size, sizes_of
from .features import OtherVGG, check_vgg, image_features
from .label_transfer import label_masses
from .networks import Alignment, Exemplar, Layout, Synthesis

Scene = tuple[np.ndarray, np.ndarray]
"""An exemplar: image (H, W, 3) uint8 and its label map (H, W) of integers."""
_EXEMPLARS = 64  # whose half is kept, five thousand numbers each with the paper's widths
_LAYOUTS = 4  # label maps whose half is kept, some hundred numbers a pixel each


@dataclass(frozen=True)
class Saved:
    """What the file of a model says of it."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    size: tuple[int, int] = (256, 256)  # (H, W) of the images that it was trained for
    classes: tuple[str, ...] = ()
    vgg: str = ""  # "vgg19" or "vgg16", whose features it reads; "": it has a trunk of its own
    vgg_digest: str = ""  # of that VGG's weights, see model_file.digest_of


FILE = ModelFile("msca", "MSCA", Saved)


@dataclass(frozen=True, eq=False)
class Made:
    """An image, and what was computed for it."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(H, W) int32, as the image shows them; -1: no class."""
    exemplars: int = 0
    """Exemplars whose half was computed in this call; others were remembered."""
    layouts: int = 0
    """Label maps whose half was computed in this call; others were remembered."""
    windows: tuple[tuple[int, int], ...] = ()
    """Of an extrapolation: (row, column) of the upper left corners of the windows that it was made of."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixed(Made):
    """An image of several styles, each somewhere."""

    weights: np.ndarray
    """(J, H, W) float32: the share of every exemplar at every pixel; together they sum to one."""


@dataclass(frozen=True, eq=False)
class ScaleMaps:
    """What the attention of one scale does with an exemplar and a label map. K maps, C classes."""

    scale: int
    """0 (the finest) to 4."""
    alpha: np.ndarray
    """(K, h, w) float32: the weights of the K sums over the exemplar's positions (Eq. 4); each sums to one."""
    beta: np.ndarray
    """(K, H, W) float32: what share each of the K has at the target's positions (Eq. 7); together they sum to one."""
    gates: np.ndarray
    """(K) float32 in (0, 1): feature masking (Eq. 6); ones without it."""
    given: np.ndarray
    """(K, C) float32: share of alpha on every label of the exemplar. Where there is no class it is missing from the sum."""
    taken: np.ndarray
    """(K, C) float32: share of beta on every label of the target; likewise."""
    exemplar_shares: np.ndarray
    """(C) float32: share of the exemplar's positions that every label has."""
    target_shares: np.ndarray
    """(C) float32: share of the target's positions; likewise."""

    @property
    def strength(self) -> np.ndarray:
        """(K) float32: mean of beta over the target, times the gate."""
        found: np.ndarray = self.beta.mean((1, 2)) * self.gates
        return found

    @property
    def transferred(self) -> np.ndarray:
        """(C, C) float64: weight that goes from a label of the exemplar (row) to one of the target, mean over its positions.

        S of `label_transfer`, of this one pair: sum over k of gate x share of alpha x mean of beta on the label.
        """
        found: np.ndarray = (self.given.T.astype(np.float64) * self.strength) @ self.taken
        return found

    @property
    def to_own_class(self) -> float:
        """Share of the transferred weight that goes from a class of the exemplar to the same class of the target, 0 to 1.

        Of what goes from some label to some label; NaN where nothing does.
        """
        return _diagonal_share(self.transferred)

    @property
    def by_chance(self) -> float:
        """The same of global average pooling, which hands everything to everywhere: what attention has to surpass."""
        return _diagonal_share(np.outer(self.exemplar_shares.astype(np.float64), self.target_shares))

    def strongest(self, count: int) -> list[int]:
        """Return the numbers of the strongest maps, the strongest first."""
        return [int(k) for k in np.argsort(-self.strength, kind="stable")[:count]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Correspondence(Made):
    """An image, and what went where."""

    exemplar: Picture
    """As the model saw it."""
    scales: tuple[ScaleMaps, ...]
    """Of scales 0 to 4."""


class MSCA:
    """Alignment and synthesis, ready for use: copies in eval mode, without gradients, spectral norm folded.

    Images are (H, W, 3) uint8 RGB, label maps (H, W) integers, class in the model's order or -1 for none. Target label maps
    are fitted to the model's size (the largest box of its proportions in the middle, scaled) unless a call names another;
    exemplars are seen whole, whatever their proportions (:meth:`seen`). Every method raises ValueError for an image or a
    label map of another shape or dtype, label values outside [-1, C), an image whose label map has another size, and a size
    that is no multiple of 16; the message names the argument.

    Args:
        alignment: it stays as it is, in training say.
        synthesis: likewise; of the same settings.
        classes: names of the C classes.
        size: (H, W) of the images that it was trained for.
        vgg: what gives the exemplar's features, where the alignment has no trunk; it is used as it is.

    Raises:
        ValueError: another number of classes than the networks', a size that is no multiple of 16, a VGG beside a trunk, or
            neither.
    """

    def __init__(
        self,
        alignment: Alignment,
        synthesis: Synthesis,
        classes: Collection[str],
        size: tuple[int, int],
        vgg: FeatureNetwork | None = None,
    ) -> None:
        self.config = replace(synthesis.config, spectral_norm=False)
        self.classes, self.size = tuple(classes), (int(size[0]), int(size[1]))
        if len(self.classes) != self.config.label_nc:
            raise ValueError(f"classes: expected {self.config.label_nc} names, got {len(self.classes)}")
        sizes_of(*self.size)
        if (self.config.trunk == "vgg") != (vgg is not None):
            raise ValueError(
                f"vgg: expected {'a VGG' if vgg is None else 'none'}, for the model's trunk is {self.config.trunk!r}"
            )
        with torch.random.fork_rng(devices=[]):  # first weights, drawn in vain
            self.alignment, self.synthesis = Alignment(self.config), Synthesis(self.config)
        device = next(alignment.parameters()).device
        for network, given in ((self.alignment, alignment), (self.synthesis, synthesis)):
            load_checked(network, given.state_dict(), source="the given network")
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            network.eval().requires_grad_(False)
        self.vgg = None if vgg is None else vgg.to(device).eval()
        self._forget()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.alignment.parameters()).device

    def to(self, device: torch.device | str) -> MSCA:
        """Move the networks, and return this model."""
        self.alignment.to(device)
        self.synthesis.to(device)
        self.vgg = None if self.vgg is None else self.vgg.to(device)
        self._forget()
        return self

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def shipped(device: torch.device | str = "cpu", name: str = "facades", vgg_weights: str = "auto") -> MSCA:
        """Load a model that comes with the package (weights/MODEL_CARD.md)."""
        return MSCA.load(FILE.shipped(name), device, vgg_weights)

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu", vgg_weights: str = "auto") -> MSCA:
        """Load a model.

        Args:
            path: a file of :meth:`save`, or the run folder of a training (`mixsyn-fast train msca`): its newest valid
                checkpoint, averaged weights where the run kept them.
            device: where to put the networks.
            vgg_weights: file with the VGG whose features the model reads; "auto": the one that a run names, else one that is
                on this machine. Its digest says whether it is the right one. A model with a trunk of its own needs none.

        Raises:
            FileNotFoundError: no such file or folder, a folder without a checkpoint, or no VGG.
            ValueError: damaged, of another model or version, with weights that do not fit, or another VGG than the model was
                trained with; the message names the path.
            ImportError: safetensors is not installed.
        """
        path = Path(path)
        if path.is_dir():
            return _load_run(path, vgg_weights).to(device)
        saved, networks = FILE.load(path, _networks)
        vgg = _vgg_of(saved, vgg_weights, str(path))
        alignment, synthesis = cast(Alignment, networks["alignment"]), cast(Synthesis, networks["synthesis"])
        return MSCA(alignment, synthesis, saved.classes, saved.size, vgg).to(device)

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the model to one file, whole or not at all. A VGG is not part of it: its kind and digest are.

        Args:
            path: of the file, as a rule *.safetensors; folders are made. A file that is there is replaced.
            half: store weights as float16 (half the size); :meth:`load` makes float32 of them.

        Raises:
            ValueError: `half`, and a weight that float16 cannot hold.
            OSError: the file cannot be written.
            ImportError: safetensors is not installed.
        """
        kind, found = ("", "") if self.vgg is None else (self.vgg.kind, digest_of(self.vgg))
        networks = {"alignment": self.alignment, "synthesis": self.synthesis}
        FILE.save(path, Saved(self.config, self.size, self.classes, kind, found), networks, half=half)

    # --- applications -------------------------------------------------------------------------------------------------

    def seen(self, exemplar: Picture) -> Picture:
        """Return an exemplar as the model sees it: in its own proportions, so large that it covers the model's size.

        Sides are the nearest multiples of 16, at most four times the model's; what is beyond is cut. Of the model's own
        proportions it has the model's size.
        """
        size = exemplar_size(exemplar.labels.shape, self.size)
        return exemplar if exemplar.labels.shape == size else fit(exemplar, size)

    def synthesize(
        self,
        labels: np.ndarray,
        exemplar: np.ndarray,
        exemplar_labels: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
    ) -> Made:
        """Return the image of a label map in the style of an exemplar.

        Args:
            labels: (H, W) integers.
            exemplar: (h, w, 3) uint8.
            exemplar_labels: (h, w) integers.
            size: (H, W) of the image, multiples of 16, to which the label map is fitted; None: the model's.
        """
        fitted = self._labels(labels, size)
        picture = self._exemplar(exemplar, exemplar_labels, "exemplar", "exemplar_labels")
        return self._pair(fitted, picture)

    def swap(
        self, label_maps: Sequence[np.ndarray], exemplars: Sequence[Scene], *, size: tuple[int, int] | None = None
    ) -> list[list[Made]]:
        """Return all label maps in the styles of all exemplars (Fig. 9, 14): a row per label map, a column per exemplar.

        Each half is computed once, however many there are.

        Raises:
            ValueError: no label map or no exemplar.
        """
        if not label_maps:
            raise ValueError("label_maps: expected at least one, got none")
        fitted = [self._labels(labels, size, f"label_maps[{i}]") for i, labels in enumerate(label_maps)]
        pictures = self._exemplars(exemplars)
        halves = [self._half(picture) for picture in pictures]
        rows: list[list[Made]] = []
        for labels in fitted:
            layout, layouts = self._layout(labels)
            row = []
            for j, (half, computed) in enumerate(halves):
                image = self._image(self.alignment.attend(half, layout))
                # every half is said to have been computed for the first image that needed it
                row.append(Made(image, labels, computed if not rows else 0, layouts if j == 0 else 0))
            rows.append(row)
        return rows

    def interpolate(
        self,
        labels: np.ndarray,
        exemplars: Sequence[Scene],
        weights: Sequence[float],
        *,
        size: tuple[int, int] | None = None,
    ) -> Made:
        """Return the image of a label map in a mixture of styles (Sec. 4, "Interpolation", Fig. 5).

        With one weight above 0 the image is that of :meth:`synthesize`, bit for bit.

        Args:
            labels: (H, W) integers.
            exemplars: (image, label map) each.
            weights: one for each, not negative, not all 0; their sum does not matter.
            size: as in :meth:`synthesize`.

        Raises:
            ValueError: no exemplar, another number of weights, or weights out of range.
        """
        fitted, pictures = self._labels(labels, size), self._exemplars(exemplars)
        check_weights(weights, len(pictures))
        return self._mixed(fitted, pictures, weights)

    def walk(
        self, labels: np.ndarray, exemplars: Sequence[Scene], between: int = 3, *, size: tuple[int, int] | None = None
    ) -> list[Made]:
        """Return the images on the way from the style of the first exemplar over all others to the last.

        Args:
            labels: (H, W) integers.
            exemplars: two or more, (image, label map) each.
            between: images between two neighbours.
            size: as in :meth:`synthesize`.

        Raises:
            ValueError: fewer than two exemplars, or a negative number of images.
        """
        fitted, pictures = self._labels(labels, size), self._exemplars(exemplars, 2)
        return [self._mixed(fitted, pictures, weights) for weights in weights_of_walk(len(pictures), between)]

    def spatial(
        self,
        labels: np.ndarray,
        exemplars: Sequence[Scene],
        weight_maps: np.ndarray | Sequence[np.ndarray] | None = None,
        direction: Literal["horizontal", "vertical"] = "horizontal",
        *,
        size: tuple[int, int] | None = None,
    ) -> Mixed:
        """Return the image of a label map whose style changes from place to place (Sec. 4, Fig. 7).

        Args:
            labels: (H, W) integers.
            exemplars: two or more, (image, label map) each.
            weight_maps: a map (H, W) of numbers for each exemplar, of the label map's size, not negative; at every pixel
                they are divided by their sum. Or one map for two exemplars, from 0 (the first) to 1 (the second; 255 for
                integers). None: from one exemplar to the next along `direction`.
            direction: "horizontal" (left to right) or "vertical" (top to bottom), without weight maps.
            size: as in :meth:`synthesize`; weight maps are fitted as the label map.

        Raises:
            ValueError: fewer than two exemplars, another direction, weight maps of another number or size, out of range, or
                all 0 at a pixel.
        """
        fitted, pictures = self._labels(labels, size), self._exemplars(exemplars, 2)
        if weight_maps is None:
            maps = gradient_maps(len(pictures), fitted.shape, direction)
        else:
            maps = self._weight_maps(weight_maps, labels.shape, len(pictures), fitted.shape)
        halves = [self._half(picture) for picture in pictures]
        layout, layouts = self._layout(fitted)
        given = torch.from_numpy(maps)[None].to(self.device)
        image = self._image(self._spatially([half for half, _ in halves], given, layout))
        return Mixed(image, fitted, sum(computed for _, computed in halves), layouts, weights=maps)

    def extrapolate(
        self,
        patch: np.ndarray,
        patch_labels: np.ndarray,
        labels: np.ndarray,
        *,
        others: int = 10,
        seed: int = 0,
        keep: bool = False,
    ) -> Made:
        """Return a whole scene in the style of a patch of it (Sec. 4, "Extrapolation", Fig. 8).

        Windows of the model's size are made one by one, with the patch as exemplar of all, and combined with weights that
        fall off towards each window's border and sum to one at every pixel. There is a window in each corner of the scene;
        of the others, those that make neighbours overlap come first, the rest lie at random.

        Args:
            patch: (h, w, 3) uint8.
            patch_labels: (h, w) integers.
            labels: label map of the scene, (H, W) integers, at least the model's size in both directions. It is not scaled.
            others: windows beside those in the corners; more where the scene needs them.
            seed: of the random places.
            keep: put the patch itself, as the model sees it, into the middle of the scene, with a soft border. Left out, for
                only where the middle of the label map is the patch's own does the patch fit there; and so one sees what the
                model makes of all.

        Raises:
            ValueError: a label map smaller than the model's size, or a number of windows or a seed below 0.
        """
        picture = self._exemplar(patch, patch_labels, "patch", "patch_labels")
        scene = checked_labels(labels, len(self.classes), "labels")
        if scene.shape[0] < self.size[0] or scene.shape[1] < self.size[1]:
            raise ValueError(f"labels: expected at least {self.size}, the model's size, got {scene.shape}")
        places = window_places(scene.shape, self.size, others, seed)
        half, computed = self._half(picture)
        weights = blending_weights(scene.shape, self.size, places)
        height, width = self.size
        total = torch.zeros(3, *scene.shape, device=self.device)
        for (y, x), weight in zip(places, weights.to(self.device), strict=True):
            layout = self._new_layout(scene[y : y + height, x : x + width])
            total[:, y : y + height, x : x + width] += weight * self._output(self.alignment.attend(half, layout))[0]
        if keep:  # as much of it as there is room for
            there = picture.labels.shape
            sides = [min(pair) for pair in zip(there, scene.shape, strict=True)]
            ours, theirs = (_middle((whole[0], whole[1]), sides) for whole in (scene.shape, there))
            soft = patch_border((sides[0], sides[1])).to(self.device)
            inside = total[:, *ours]
            inside += soft * (self._tensor(picture.image)[0][:, *theirs] - inside)
        return Made(to_uint8(total[None])[0], scene, computed, len(places), places)

    def attention(
        self,
        labels: np.ndarray,
        exemplar: np.ndarray,
        exemplar_labels: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
    ) -> Correspondence:
        """Return the image of :meth:`synthesize`, and at every scale which of the K maps hands what to where (Fig. 6)."""
        fitted = self._labels(labels, size)
        picture = self._exemplar(exemplar, exemplar_labels, "exemplar", "exemplar_labels")
        half, computed = self._half(picture)
        layout, layouts = self._layout(fitted)
        image = self._image(self.alignment.attend(half, layout))
        scales = self._maps(picture, half, layout, fitted)
        return Correspondence(image, fitted, computed, layouts, exemplar=picture, scales=scales)

    # --- inner parts --------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._halves: Memory[Exemplar] = Memory(_EXEMPLARS)
        self._layouts: Memory[Layout] = Memory(_LAYOUTS)

    def _labels(self, labels: np.ndarray, size: tuple[int, int] | None, name: str = "labels") -> np.ndarray:
        """A label map at the size of the image, checked."""
        checked = checked_labels(labels, len(self.classes), name)
        wanted = self.size if size is None else (int(size[0]), int(size[1]))
        sizes_of(*wanted)
        return checked if checked.shape == wanted else fit_labels(checked, wanted)

    def _exemplar(self, image: np.ndarray, labels: np.ndarray, image_name: str, labels_name: str) -> Picture:
        """An exemplar as the model sees it, checked."""
        return self.seen(checked_picture(image, labels, len(self.classes), image_name, labels_name))

    def _exemplars(self, exemplars: Sequence[Scene], least: int = 1) -> list[Picture]:
        if len(exemplars) < least:
            raise ValueError(f"exemplars: expected at least {least}, got {len(exemplars)}")
        found = []
        for i, given in enumerate(exemplars):
            if not isinstance(given, tuple) or len(given) != 2:
                raise ValueError(f"exemplars[{i}]: expected (image, label map), got {type(given).__name__}")
            found.append(self._exemplar(*given, f"exemplars[{i}]: image", f"exemplars[{i}]: labels"))
        return found

    def _weight_maps(
        self,
        given: np.ndarray | Sequence[np.ndarray],
        stored: tuple[int, ...],
        count: int,
        size: tuple[int, ...],
    ) -> np.ndarray:
        """Maps (J, H, W) float32 that sum to one at every pixel, at the image's size, checked."""
        one = isinstance(given, np.ndarray) and given.ndim == 2
        maps = [np.asarray(each) for each in ([given] if one else given)]
        if one and count != 2:
            raise ValueError(f"weight_maps: expected one for each of {count} exemplars, got one")
        if len(maps) != (1 if one else count):
            raise ValueError(f"weight_maps: expected one for each of {count} exemplars, got {len(maps)}")
        for i, each in enumerate(maps):
            if each.shape != stored or each.dtype.kind not in "uif":
                raise ValueError(
                    f"weight_maps[{i}]: expected {stored[0]} x {stored[1]} numbers as the label map, "
                    f"got {each.shape} {each.dtype}"
                )
        if one:
            share = maps[0].astype(np.float64) / (1.0 if maps[0].dtype.kind == "f" else 255.0)
            if not (share >= 0).all() or not (share <= 1).all():
                raise ValueError("weight_maps: expected one map from 0 to 1 (255 for integers), got values beyond")
            maps = [1.0 - share, share]
        stacked = np.stack([each.astype(np.float64) for each in maps])
        if not np.isfinite(stacked).all() or (stacked < 0).any():
            raise ValueError("weight_maps: expected numbers that are not negative, got others")
        sums = stacked.sum(0)
        if not sums.all():
            raise ValueError(
                f"weight_maps: expected one above 0 at every pixel, got none at {int((sums == 0).sum())} pixels"
            )
        stacked /= sums
        at = np.arange(sums.size, dtype=np.int32).reshape(sums.shape)  # each pixel's number, fitted as the label map is
        at = at if sums.shape == size else fit_labels(at, (size[0], size[1]))
        found: np.ndarray = stacked.reshape(count, -1)[:, at].astype(np.float32)
        return found

    def _key(self, *arrays: np.ndarray) -> bytes:
        """What a half depends on: its arrays, the weights, and how it is computed."""
        networks = [self.alignment] if self.vgg is None else [self.alignment, self.vgg]
        return digest(*arrays) + state(networks, self.device)

    def _tensor(self, image: np.ndarray) -> Tensor:
        """(1, 3, H, W) in [-1, 1]."""
        return torch.from_numpy(image.copy()).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1

    def _regions(self, labels: np.ndarray) -> RegionMap:
        given = torch.from_numpy(labels.astype(np.int64))[None].to(self.device)
        return RegionMap(given, len(self.classes), ignore_index=-1)

    @torch.no_grad()
    def _half(self, picture: Picture) -> tuple[Exemplar, int]:
        """What an exemplar gives, and how often it was computed: once, or not at all."""
        made: list[bool] = []  # of this call alone, whatever others do at the same time

        def make() -> Exemplar:
            made.append(True)
            features = image_features(self.alignment, self.vgg, self._tensor(picture.image))
            return self.alignment.exemplar(features, self._regions(picture.labels), masses=True)

        return self._halves.get(self._key(picture.image, picture.labels), make), len(made)

    def _layout(self, labels: np.ndarray) -> tuple[Layout, int]:
        """What a label map asks, and how often it was computed: once, or not at all."""
        made: list[bool] = []

        def make() -> Layout:
            made.append(True)
            return self._new_layout(labels)

        return self._layouts.get(self._key(labels), make), len(made)

    @torch.no_grad()
    def _new_layout(self, labels: np.ndarray) -> Layout:
        layout: Layout = self.alignment.layout(self._regions(labels), (labels.shape[0], labels.shape[1]))
        return layout

    @torch.no_grad()
    def _output(self, attended: Sequence[Attended]) -> Tensor:
        """(1, 3, H, W) in (-1, 1)."""
        image: Tensor = self.synthesis(attended)
        return image

    def _image(self, attended: Sequence[Attended]) -> np.ndarray:
        image: np.ndarray = to_uint8(self._output(attended))[0]
        return image

    def _pair(self, labels: np.ndarray, picture: Picture) -> Made:
        half, exemplars = self._half(picture)
        layout, layouts = self._layout(labels)
        return Made(self._image(self.alignment.attend(half, layout)), labels, exemplars, layouts)

    def _mixed(self, labels: np.ndarray, pictures: Sequence[Picture], weights: Sequence[float]) -> Made:
        """An image of a mixture; exemplars of weight 0 are not looked at."""
        used = [(self._half(picture), weight) for picture, weight in zip(pictures, weights, strict=True) if weight > 0]
        layout, layouts = self._layout(labels)
        with torch.no_grad():
            attended = self.alignment.interpolate([half for (half, _), _ in used], [weight for _, weight in used], layout)
        return Made(self._image(attended), labels, sum(computed for (_, computed), _ in used), layouts)

    @torch.no_grad()
    def _spatially(self, halves: Sequence[Exemplar], maps: Tensor, layout: Layout) -> list[Attended]:
        return self.alignment.spatially(halves, maps, layout)

    @torch.no_grad()
    def _maps(self, picture: Picture, half: Exemplar, layout: Layout, labels: np.ndarray) -> tuple[ScaleMaps, ...]:
        features = image_features(self.alignment, self.vgg, self._tensor(picture.image))
        theirs, ours = self._regions(picture.labels), self._regions(labels)
        alphas = self.alignment.spatial_maps(features, theirs)
        found = []
        for scale, (alpha, target) in enumerate(zip(alphas, layout.targets, strict=True)):
            gate = self.alignment.aligner(scale).gate
            gathered = half.gathered[scale]
            gates = (
                torch.ones(alpha.shape[1])
                if gate is None
                else gate.gates(gathered.condition_mean, target.condition_mean)[0].float()
            )
            maps = (alpha[0].float(), target.maps[0].float())
            shares = [_shares(each, regions) for each, regions in zip(maps, (theirs, ours), strict=True)]
            areas = [
                regions.areas((each.shape[1], each.shape[2]))[0].float() / each[0].numel()
                for each, regions in zip(maps, (theirs, ours), strict=True)
            ]
            arrays = [each.cpu().numpy() for each in (*maps, gates, *shares, *areas)]
            found.append(ScaleMaps(scale, *arrays))
        return tuple(found)


def _middle(whole: tuple[int, int], sides: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a box in the middle."""
    top, left = ((length - side) // 2 for length, side in zip(whole, sides, strict=True))
    return slice(top, top + sides[0]), slice(left, left + sides[1])


def _shares(maps: Tensor, regions: RegionMap) -> Tensor:
    """Share of the mass of maps (K, h, w) on every label, (K, C); zeros for a map without mass."""
    return label_masses(maps[None], regions)[0] / maps.sum((1, 2))[:, None].clamp(min=torch.finfo(maps.dtype).tiny)


def _diagonal_share(weights: np.ndarray) -> float:
    total = float(weights.sum())
    return float(np.trace(weights)) / total if total > 0 else float("nan")


def _networks(saved: Saved) -> dict[str, nn.Module]:
    return {"alignment": Alignment(saved.generator), "synthesis": Synthesis(saved.generator)}


def _vgg_of(saved: Saved, weights: str, source: str) -> FeatureNetwork | None:
    """The VGG that a file asks for."""
    if not saved.vgg:
        if weights != "auto":
            raise OtherVGG(f"vgg_weights: expected 'auto', for {source} has a trunk of its own; got {weights}")
        return None
    try:
        vgg = load_vgg(weights, cast(Literal["vgg16", "vgg19"], saved.vgg))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {source} reads the features of {saved.vgg}") from error
    check_vgg(vgg, saved.vgg_digest, source, weights)
    return vgg


def _load_run(folder: Path, vgg_weights: str) -> MSCA:
    from ..training.trained import load_trained
    from .task import MSCATask

    if vgg_weights != "auto" and not Path(vgg_weights).is_file():
        raise FileNotFoundError(f"vgg_weights: {vgg_weights}: no such file")
    try:
        config = folder / "config.json"
        kind = read_json(config)["model"] if config.is_file() else "msca"  # what is missing is said by load_trained
        if kind != "msca":
            raise ValueError(f"a run of model {kind!r}")
        trained = load_trained(folder, replaced={} if vgg_weights == "auto" else {"vgg_weights": vgg_weights})
        task = cast(MSCATask, trained.task)
        if trained.not_begun:
            raise ValueError(
                f"one that ended in pretraining, after step {trained.step}: images are made from step "
                f"{task.config.pretrain_steps + 1} on; go on with `mixsyn-fast train msca --config {config} "
                "--steps N`"
            )
        whole = trained.config["data"]["size"]
        size = (whole[0] // 2, whole[-1] // 2)  # patches of half the picture's size
        alignment = cast(Alignment, trained.networks["alignment"])
        synthesis = cast(Synthesis, trained.networks["synthesis"])
        # the task has loaded the VGG; a trunk of its own reads none
        vgg = _vgg_of(Saved(), vgg_weights, str(folder)) if alignment.config.trunk == "own" else task.vgg
        return MSCA(alignment, synthesis, trained.config["classes"], size, vgg)
    except OtherVGG:
        raise
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: expected a run of `mixsyn-fast train msca`, got: {error}") from error
