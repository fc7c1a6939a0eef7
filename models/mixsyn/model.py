"""A trained MixSyn in use: compose from several pictures, edit a composition step by step, keep it in one file.

For example::

    mixsyn = MixSyn.shipped()
    made = mixsyn.compose({"window": a, "door": b}, base=c)  # pictures of read_picture
    made.image, made.labels, made.table

A region's codes are made of its own source picture and its own mask alone: what else is in the composition changes nothing.
All regions taken from a picture are encoded at once, by one grouped computation. Its last bits depend on how many regions
that are, so codes are kept and not made twice where they must stay as they are (see :class:`Editor`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast import RegionMap, as_region_map
from mixsyn_fast.machine import now

from ..model_file import ModelFile
from ..pictures.own_size import Crop, at_own_size, inside_weights
from ..pictures.picture import Picture, fit, read_picture
from ..settings import from_dict
from ..sheets import to_uint8
from .blocks import fold_convolutions, grown, level_mask, strongest
from .compositions import user_composition
from .config import Config
from .structure import StructureGenerator
from .style import StyleGenerator

N = TypeVar("N", bound=nn.Module)
Outside = Literal["made", "composition", "image", "layers"]
"""What an edit leaves outside of it: nothing, the composition, the image as a blend, or what every layer made there."""
_REACH = 1  # pixels around the area of an edit that it may change, where what lies outside stays
Given = Picture | str | os.PathLike[str]
"""A picture, or the file of one whose label map stands beside it and whose names tell what its ids mean."""
_PARTS = ("structure_generator", "style_generator")
FILE = ModelFile("mixsyn", "MixSyn", Config)


# --------------------------------------------------------------------------------------------------
# Results
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Codes:
    """What the encoders make of regions; zero for an absent region."""

    structure: Tensor
    """(N, C, h, w), one structure code per region."""
    style: Tensor
    """(N, L), one style code per region."""


@dataclass(frozen=True)
class Seconds:
    """Wall time of the parts of a pass, in seconds (on a GPU after everything queued there is done)."""

    encode: float
    """Structure and style encoders."""
    decode: float
    """Structure decoder: codes to soft composition."""
    generate: float
    """Style generator: soft composition and style codes to image."""

    @property
    def total(self) -> float:
        """All three together."""
        return self.encode + self.decode + self.generate


@dataclass(frozen=True, eq=False)
class Composed:
    """A composition and its image."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    composition: np.ndarray
    """(N, H, W) float32, soft: weights of the regions, which sum to one at every pixel."""
    labels: np.ndarray
    """(H, W) int32: the region with the largest weight."""
    sources: tuple[Picture, ...]
    """The pictures it is made of, at the model's size, each once; a base of which nothing is used is not among them."""
    table: dict[str, int]
    """Region -> index of its source: the base's regions in the order of the classes, then the named ones as they were named.
    A region that is not there is absent from the composition."""


@dataclass(frozen=True, eq=False)
class Edited(Composed):
    """The state of an :class:`Editor` after a step."""

    changed: tuple[str, ...]
    """Regions that come from elsewhere than before this step, or are absent now."""
    encoded: tuple[str, ...]
    """Those of them whose encoders ran; the codes of the others were remembered, or are zero."""
    seconds: Seconds
    """What the step took."""


@dataclass(frozen=True)
class Drift:
    """How two images of an edit chain differ inside and outside the edited regions; see :meth:`Editor.drift`.

    Changes are absolute, in grey levels 0 to 255, over all pixels and the three colours; 0 where there is no such pixel.
    """

    mean_outside: float
    max_outside: float
    mean_inside: float
    max_inside: float
    relabelled_outside: float
    """Share of the pixels outside, 0 to 1, at which another region has the largest weight now."""
    outside: float
    """Share of the image that is outside, 0 to 1."""


# --------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------


class MixSyn:
    """Structure generator and style generator, ready for use: copies in eval mode, without gradients or spectral norm.

    Args:
        structure: makes soft compositions of regions (paper, section 3). It stays as it is, in training say.
        style: makes images of compositions and styles (section 4); likewise.
        config: of both networks.
        crop: what of a picture of other proportions it sees: "center", the largest box in the middle, or "none", all of it,
            squeezed, as a training with `--crop none` does.

    Attributes:
        config: the same, with spectral norm off, for it is folded into the weights.
        crop: as given; it may be changed.
        structure: the copy in use.
        style: likewise.
    """

    def __init__(self, structure: StructureGenerator, style: StyleGenerator, config: Config, crop: Crop = "center") -> None:
        if crop not in get_args(Crop):
            raise ValueError(f"crop: expected 'center' or 'none', got {crop!r}")
        self.crop: Crop = crop
        parts = {name: replace(getattr(config, name), spectral_norm=False) for name in ("structure", "style")}
        self.config = replace(config, **parts)
        self.structure = _for_use(structure)
        self.style = _for_use(style)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the N regions."""
        return self.config.classes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of compositions and images, in pixels."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.structure.parameters()).device

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def shipped(device: torch.device | str = "cpu") -> MixSyn:
        """Load the model that comes with the package: facades (weights/MODEL_CARD.md)."""
        return MixSyn.load(FILE.shipped("facades"), device)

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MixSyn:
        """Load a model.

        Args:
            path: a file of :meth:`save`, or the run folder of a training (`mixsyn-fast train mixsyn`): its newest valid
                checkpoint, averaged weights where the run kept them; trained with `--crop none`, it crops nothing.
            device: where to put the networks.

        Raises:
            FileNotFoundError: no such file or folder, or a folder without a checkpoint.
            ValueError: damaged, of another model or version, or with weights that do not fit; the message names the path.
            ImportError: safetensors is not installed.
        """
        path = Path(path)
        return (_load_run if path.is_dir() else _load_file)(path, device)

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the model to one file, whole or not at all.

        Args:
            path: of the file, as a rule *.safetensors; folders are made. A file that is there is replaced.
            half: store weights as float16 (half the size, about three decimal digits); :meth:`load` makes float32 of them.

        Raises:
            ValueError: `half`, and a weight that float16 cannot hold.
            OSError: the file cannot be written.
            ImportError: safetensors is not installed.
        """
        FILE.save(path, self.config, dict(zip(_PARTS, (self.structure, self.style), strict=True)), half=half)

    # --- parts of a pass ----------------------------------------------------------------------------------------------

    def regions_of(self, picture: Given) -> tuple[str, ...]:
        """Return the names of the regions that a picture has at the model's size, in the order of the classes.

        Raises:
            ValueError: label values outside [-1, N).
        """
        return self._present(self.fitted(picture))

    def read(self, picture: Given) -> Picture:
        """Return a picture as it is stored: itself, or of a file with the label map that stands beside it.

        Raises:
            ValueError, FileNotFoundError: as :func:`~.pictures.picture.read_picture`, whose arguments say more than names of
                files and folders do.
            TypeError: neither a picture nor a path.
        """
        if isinstance(picture, str | os.PathLike):
            return read_picture(picture, classes=self.classes, merge="auto")
        if not isinstance(picture, Picture):
            raise TypeError(f"picture: expected a Picture (see read_picture) or a path, got {type(picture).__name__}")
        return picture

    def fitted(self, picture: Given) -> Picture:
        """Return a picture at the model's size (itself where it has that size): :func:`~.pictures.fit`, the model's crop.

        Raises:
            ValueError: label values outside [-1, N).
            ValueError, FileNotFoundError, TypeError: as :meth:`read`.
        """
        picture = self.read(picture)
        low, high = int(picture.labels.min()), int(picture.labels.max())
        if low < -1 or high >= len(self.classes):
            raise ValueError(
                f"{picture.name}: labels: expected classes 0 to {len(self.classes) - 1} or -1, got {low} to {high}"
            )
        return picture if picture.labels.shape == self.size else fit(picture, self.size, self.crop)

    def region_map(self, picture: Given) -> RegionMap:
        """Return the hard region map (B = 1) of a picture at the model's size; raises as :meth:`fitted`."""
        labels = _tensor(self.fitted(picture).labels)[None].to(self.device)
        return RegionMap(labels, len(self.classes), ignore_index=-1)

    def encode(self, picture: Given, regions: Sequence[str]) -> Codes:
        """Return the codes (n, C, h, w) and (n, L) of n regions of a picture, in the order given; zero for one it lacks.

        The encoders of these regions run as one grouped computation. Grouped convolutions of another number of groups
        differ in the last bits, so a region encoded beside others has its codes up to rounding.

        Raises:
            ValueError: no region, an unknown one, or label values outside [-1, N).
            TypeError: something else than a Picture.
        """
        image, map_, which = self._inputs(picture, regions)
        with torch.no_grad():
            return Codes(self.structure.encode(map_, which)[0], self.style.encode(image, map_, which)[0])

    def styles(self, picture: Given, regions: Sequence[str]) -> Tensor:
        """Return the style codes (n, L) alone, otherwise as :meth:`encode`."""
        image, map_, which = self._inputs(picture, regions)
        with torch.no_grad():
            return self.style.encode(image, map_, which)[0]

    @torch.no_grad()
    def decode(self, structure: Tensor) -> Tensor:
        """Return the soft composition (N, H, W) that the structure generator makes of all regions' codes (N, C, h, w)."""
        return self.structure.decode(structure[None])[0]

    @torch.no_grad()
    def generate(self, regions: RegionMap | Tensor, style: Tensor) -> Tensor:
        """Return the image (3, H, W) in (-1, 1) that the style generator makes of a composition.

        Args:
            regions: soft composition (N, H, W) of :meth:`decode`, or a map of one image, hard or soft.
            style: style codes of all regions (N, L).
        """
        if isinstance(regions, Tensor):
            regions = as_region_map(regions[None], len(self.classes))
        return self.style(regions, style[None])[0]

    # --- composing ----------------------------------------------------------------------------------------------------

    def compose(self, regions: Mapping[str, Given | None], base: Given | None = None) -> Composed:
        """Compose an image of regions of 1 to N pictures (paper, Fig. 5).

        Only regions that are named are taken from their picture (left and right sides are not coupled here); all others come
        from `base`, or are absent without one. Encoders run for what is used only. A base alone gives its reconstruction.

        Args:
            regions: name of a region -> picture it comes from, or its file; None: it is absent. Pictures of another size are
                fitted to the model's (:meth:`fitted`).
            base: where the other regions come from.

        Raises:
            ValueError: no region at all; an unknown region (the message lists those that there are); a picture that lacks
                the region it is asked for (the message lists those it has); label values outside [-1, N).
            TypeError: something else than a picture or a path.
        """
        table = self._table(regions, base)
        return _pass(self, table, tuple(table), None, {})[1]

    def sources_of(self, regions: Mapping[str, Given | None], base: Given | None = None) -> dict[str, Picture]:
        """Return region -> picture, at the model's size, of what :meth:`compose` would make; it raises here already."""
        return self._table(regions, base)

    def editor(self, base: Given | None = None, regions: Mapping[str, Given | None] | None = None) -> Editor:
        """Start a chain of edits at the composition that :meth:`compose` makes of the same arguments; raises as it does."""
        return Editor(self, base, regions)

    def coupled(self, regions: Mapping[str, Given | None]) -> dict[str, Given | None]:
        """Return regions with those that the model's training couples with them, from the same pictures.

        Left and right of a face, windows with cornices and sills: what a picture lacks of a group becomes absent. A region
        that is named itself stays as named; in a group of which several are, the others follow the first.

        Args:
            regions: as of :meth:`compose`.

        Raises:
            ValueError, FileNotFoundError, TypeError: as :meth:`compose`.
        """
        found = dict(regions)
        for name, given in regions.items():
            at = self._index(name)
            group = next(group for group in self.config.groups if at in group)
            has = () if given is None else self.regions_of(given)
            for other in (self.classes[k] for k in group):
                found.setdefault(other, given if other in has else None)
        return found

    def at_own_size(self, made: Composed, base: Given, *, keep: bool = False) -> Picture:
        """Bring a result to the size and shape of its base: see :func:`~.pictures.own_size.at_own_size`.

        Args:
            made: of :meth:`compose` or an :class:`Editor`.
            base: the base that it was made of, as stored.
            keep: where regions are that come from the base and lay there before, take the base's own pixels, at full
                resolution, blended at the border: a paste, and no longer what the model made.

        Raises:
            ValueError, FileNotFoundError, TypeError: as :meth:`read`.
        """
        stored = self.read(base)
        own = self.fitted(stored)
        kept = [self.classes.index(name) for name, at in made.table.items() if _equal(made.sources[at], own)]
        return at_own_size(made.image, made.composition, stored, crop=self.crop, keep=kept if keep else None)

    # --- inner parts --------------------------------------------------------------------------------------------------

    def _inputs(self, picture: Given, regions: Sequence[str]) -> tuple[Tensor, RegionMap, tuple[int, ...]]:
        """Image (1, 3, H, W) in [-1, 1], region map and indices of the regions, for the encoders."""
        picture = self.fitted(picture)
        which = tuple(self._index(name) for name in regions)
        if not which:
            raise ValueError("regions: expected at least one region, got none")
        image = _tensor(picture.image).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        return image, self.region_map(picture), which

    def _index(self, name: str) -> int:
        if name not in self.classes:
            raise ValueError(f"regions: expected names out of {', '.join(self.classes)}, got {name!r}")
        return self.classes.index(name)

    def _present(self, fitted: Picture) -> tuple[str, ...]:
        return tuple(self.classes[k] for k in np.unique(fitted.labels).tolist() if k >= 0)

    def _table(
        self, regions: Mapping[str, Given | None], base: Given | None, known: Iterable[Picture] = ()
    ) -> dict[str, Picture]:
        """Region -> its picture at the model's size, equal pictures as one object; regions of the base first, None left out.

        `known`: fitted pictures that equal ones become.
        """
        known = tuple(known)
        pictures: list[Picture] = []  # in use, fitted
        place: dict[int, int] = {}  # id of a given picture -> index among them

        def placed(picture: Given) -> int:
            if id(picture) not in place:
                fitted = self.fitted(picture)
                one = next((other for other in (*pictures, *known) if _equal(other, fitted)), fitted)
                at = next((at for at, other in enumerate(pictures) if other is one), len(pictures))
                if at == len(pictures):
                    pictures.append(one)
                place[id(picture)] = at
            return place[id(picture)]

        start = None if base is None else placed(base)
        asked = {name: placed(picture) for name, picture in regions.items() if picture is not None}
        for name in regions:
            self._index(name)
        present = torch.zeros(len(pictures), len(self.classes), dtype=torch.bool)
        for row, picture in zip(present, pictures, strict=True):
            row[[self.classes.index(name) for name in self._present(picture)]] = True
        names = [f"{picture.name} at {self.size[0]} x {self.size[1]} pixels" for picture in pictures]
        chosen = user_composition(asked, self.classes, present, start, names).source[0].tolist()
        source = {name: pictures[at] for name, at in zip(self.classes, chosen, strict=True) if at >= 0}
        order = [*(name for name in source if name not in regions), *asked]
        if not order:
            raise ValueError("regions: expected at least one region to stay, got None for all of them")
        return {name: source[name] for name in order}


Remembered = dict[tuple[int, str], tuple[Tensor, Tensor]]
"""Structure and style code by the id of a fitted picture, which must be kept alive, and the name of the region."""


class Editor:
    """A chain of edits (paper, section 6.2, Fig. 12): regions are replaced, everything else keeps its codes.

    An edit encodes the regions it changes and nothing else, those of one picture at once; the codes of all others stay, bit
    for bit, and decoder and generator run again. Codes that the chain has had are remembered by the content of the picture
    and the region (a structure code is 128 KiB at the paper's size): when regions are put back, no encoder runs, and the
    earlier state comes back bit for bit.

    Args:
        mixsyn: the model.
        base: see :meth:`MixSyn.compose`, as for errors.
        regions: likewise; None for none.
    """

    def __init__(self, mixsyn: MixSyn, base: Given | None = None, regions: Mapping[str, Given | None] | None = None) -> None:
        self.mixsyn = mixsyn
        self._pictures = mixsyn._table(regions or {}, base)
        self._seen: list[Picture] = []  # all pictures of the chain, fitted, equal ones once
        self._remembered: Remembered = {}
        self._layers: Layers | None = None
        self._see(self._pictures)
        self._codes, self._current = self._pass(self._pictures, tuple(self._pictures), None, self._remembered)

    @property
    def current(self) -> Edited:
        """The state after the last edit; in the beginning the first composition, all of whose regions count as changed."""
        return self._current

    @property
    def codes(self) -> Codes:
        """Codes of all N regions in the current state. Edits make new tensors, so these may be kept; do not change them."""
        return self._codes

    def replace(self, regions: Mapping[str, Given | None], *, outside: Outside = "made") -> Edited:
        """Take regions from other pictures, and return the new state.

        A region that comes from an equal picture already is left alone; a region may also be new to the composition.

        Args:
            regions: name of a region -> picture it comes from, or its file; None: it becomes absent.
            outside: what becomes of the rest of the picture. The area of the edit are the pixels at which a changed region
                has the largest weight before or after. "made": decoder and generator see all regions at once, so all may
                move. "composition": more than a pixel away from the area the composition stays as it was, bit for bit, and
                the image moves only as far as the generator sees. "image": more than two pixels away the pixels stay as
                well, bit for bit, and are blended in between: a blend, and no longer what the generator made. "layers": as
                "image", but no blend: decoder and generator run in a part of the picture alone, and all their layers keep
                the values that they had elsewhere (:meth:`keep_layers`). The area then lies within a cell of a structure
                code of where the changed regions were in this state and are in their sources. With "image" and "layers"
                regions put back need not give the earlier picture bit for bit.

        Raises:
            ValueError, TypeError: as :meth:`MixSyn.compose`, another `outside`, or "layers" with a model that has no
                region-adaptive normalisation; the state is as before then.
        """
        if not regions:
            raise ValueError("regions: expected at least one region to replace, got none")
        if outside not in get_args(Outside):
            raise ValueError(f"outside: expected one of {', '.join(get_args(Outside))}, got {outside!r}")
        if outside == "layers" and self.mixsyn.config.style.normalisation != "region_adaptive":
            raise ValueError(
                "outside: expected another than 'layers', which needs region-adaptive normalisation (here it is global), "
                "such as 'made', got 'layers'"
            )
        given = {name: picture for name, picture in regions.items() if picture is not None}
        new = self.mixsyn._table(given, None, known=self._seen) if given else {}
        pictures = {name: picture for name, picture in self._pictures.items() if name not in regions} | new
        for name in regions:
            self.mixsyn._index(name)
        if not pictures:
            raise ValueError("regions: expected at least one region to stay, got None for all of them")
        changed = tuple(name for name in regions if pictures.get(name) is not self._pictures.get(name))
        self._see(new)
        held = None
        if outside == "layers":
            self.keep_layers()
            held = Held(self._current, changed, True, self._layers)
        elif outside != "made":
            held = Held(self._current, changed, outside == "image")
        self._layers = None
        self._codes, self._current = self._pass(pictures, changed, self._codes, self._remembered, held)
        self._layers, self._pictures = None if held is None else held.layers, pictures
        return self._current

    def keep_layers(self) -> None:
        """Keep what every layer of decoder and generator made for the current state, for edits with `outside` "layers".

        Such an edit does so itself where it must, which costs it a pass: call this before an edit that is to be quick.
        Its own layers are kept for the next one.
        """
        if self._layers is None:
            self._layers = Layers([], [])
            with torch.no_grad():
                self.mixsyn.structure.decode(self._codes.structure[None], stages=self._layers.structure)
                soft = _tensor(self._current.composition).to(self.mixsyn.device)[None]
                self.mixsyn.style(RegionMap.soft(soft), self._codes.style[None], stages=self._layers.style)

    def full_pass(self) -> Edited:
        """Make the current state anew, all its regions encoded: what an edit would cost without this class.

        Codes, composition and image agree with those of the chain to rounding, for regions that an edit encoded by
        themselves are encoded beside others here. The state does not change.
        """
        return self._pass(self._pictures, tuple(self._pictures), None, {})[1]

    def drift(self, before: Composed, after: Composed, regions: Iterable[str] | None = None) -> Drift:
        """Compare two states of the chain inside and outside the area of the edited regions.

        The area is every pixel at which one of these regions has the largest weight before or after.

        Args:
            before: a state.
            after: a later one.
            regions: names of the edited regions; by default those that `after` changed.

        Raises:
            ValueError: unknown region, images of different sizes, or no `regions` with an `after` that is no edit.
        """
        if regions is None:
            if not isinstance(after, Edited):
                raise ValueError("regions: expected the names of the edited regions, for `after` is no result of an edit")
            regions = after.changed
        if before.image.shape != after.image.shape:
            raise ValueError(f"before, after: expected one size, got {before.image.shape} and {after.image.shape}")
        which = [self.mixsyn._index(name) for name in regions]
        inside = np.isin(before.labels, which) | np.isin(after.labels, which)
        change = np.abs(before.image.astype(np.int16) - after.image)
        relabelled = before.labels != after.labels

        def of(values: np.ndarray) -> tuple[float, float]:
            return (float(values.mean()), float(values.max())) if values.size else (0.0, 0.0)

        return Drift(*of(change[~inside]), *of(change[inside]), of(relabelled[~inside])[0], 1 - float(inside.mean()))

    def _see(self, pictures: Mapping[str, Picture]) -> None:
        """Keep pictures alive before their codes are remembered by id."""
        known = {id(picture) for picture in self._seen}
        self._seen += {id(picture): picture for picture in pictures.values() if id(picture) not in known}.values()

    def _pass(
        self,
        pictures: Mapping[str, Picture],
        changed: tuple[str, ...],
        codes: Codes | None,
        remembered: Remembered,
        held: Held | None = None,
    ) -> tuple[Codes, Edited]:
        encoded = tuple(name for name in changed if name in pictures and (id(pictures[name]), name) not in remembered)
        codes, made, seconds = _pass(self.mixsyn, pictures, changed, codes, remembered, held)
        return codes, Edited(**vars(made), changed=changed, encoded=encoded, seconds=seconds)


@dataclass(eq=False)
class Layers:
    """What all layers of both decoders made: `stages` of `StructureGenerator.decode` and `StyleGenerator.forward`."""

    structure: list[Tensor]
    style: list[Tensor]


@dataclass(frozen=True, eq=False)
class Held:
    """What stays outside an edit."""

    before: Composed
    """The state that is edited."""
    changed: tuple[str, ...]
    """Regions whose area may change."""
    image: bool
    """The image stays as well as the composition."""
    layers: Layers | None = None
    """What all layers made of the state that is edited, and after the edit of the new one; None: they run everywhere."""

    def area(self, mixsyn: MixSyn, composition: Tensor) -> Tensor:
        """Return the area of the edit (H, W) bool: where a changed region is strongest before or after."""
        which = self._which(mixsyn)
        return self._was(which) | torch.isin(strongest(composition, 0), which)

    def room(self, mixsyn: MixSyn, pictures: Mapping[str, Picture]) -> Tensor:
        """Return where the area may lie (H, W) bool: a cell of a code around the regions before and in their sources."""
        room = self._was(self._which(mixsyn))
        for name in self.changed:
            if name in pictures:
                room = room | (_tensor(pictures[name].labels).to(mixsyn.device) == mixsyn._index(name))
        cell = mixsyn.size[0] // mixsyn.structure.code_size[0]
        return grown(room, cell)

    def _which(self, mixsyn: MixSyn) -> Tensor:
        return torch.tensor([mixsyn._index(name) for name in self.changed], device=mixsyn.device)

    def _was(self, which: Tensor) -> Tensor:
        return torch.isin(torch.from_numpy(self.before.labels).to(which.device), which)


def _pass(
    mixsyn: MixSyn,
    pictures: Mapping[str, Picture],
    changed: Iterable[str],
    codes: Codes | None,
    remembered: Remembered,
    held: Held | None = None,
) -> tuple[Codes, Composed, Seconds]:
    """Encode what changed, decode, generate.

    Args:
        mixsyn: the model.
        pictures: region -> fitted picture, the whole composition.
        changed: regions whose codes are to be replaced; those that `pictures` lacks get zero codes.
        codes: of all other regions; None: they are zero.
        remembered: codes that need not be made; those that are made join them.
        held: what stays outside of the changed regions; None: nothing.
    """
    times = [now(mixsyn.device)]
    codes = _encoded(mixsyn, pictures, changed, codes, remembered)
    times.append(now(mixsyn.device))
    layers = None if held is None else held.layers
    if held is not None and layers is not None:
        with torch.no_grad():
            layers.structure = mixsyn.structure.anew(codes.structure[None], layers.structure, held.room(mixsyn, pictures))
        composition = layers.structure[-1][0]
    else:
        composition = mixsyn.decode(codes.structure)
    area = None if held is None else held.area(mixsyn, composition)
    if held is not None and area is not None:
        composition = torch.where(
            grown(area, _REACH), composition, torch.from_numpy(held.before.composition).to(composition)
        )
    times.append(now(mixsyn.device))
    if layers is not None and area is not None:
        with torch.no_grad():
            soft = RegionMap.soft(composition[None])
            layers.style = mixsyn.style.anew(soft, codes.style[None], layers.style, area)
        image = layers.style[-1][0]
    else:
        image = mixsyn.generate(composition, codes.style)
    drawn = to_uint8(image[None])[0]
    if held is not None and area is not None and layers is not None:
        made_anew = level_mask(area, mixsyn.size, 2 * _REACH).cpu().numpy()[..., None]
        drawn = np.where(made_anew, drawn, held.before.image)  # which may be a blend
    elif held is not None and area is not None and held.image:
        share = 1 - inside_weights(~area, _REACH).cpu().numpy()[..., None]  # of the new image: 1 in the area
        drawn = (share * drawn + (1 - share) * held.before.image).round().astype(np.uint8)
    times.append(now(mixsyn.device))
    sources = tuple({id(picture): picture for picture in pictures.values()}.values())
    place = {id(picture): at for at, picture in enumerate(sources)}
    made = Composed(
        image=drawn,
        composition=composition.float().cpu().numpy(),
        labels=strongest(composition, 0).to(torch.int32).cpu().numpy(),
        sources=sources,
        table={name: place[id(picture)] for name, picture in pictures.items()},
    )
    return codes, made, Seconds(*(after - before for before, after in zip(times, times[1:], strict=False)))


def _encoded(
    mixsyn: MixSyn, pictures: Mapping[str, Picture], changed: Iterable[str], codes: Codes | None, remembered: Remembered
) -> Codes:
    """New codes of all regions, encoding each source once for all that is asked of it; arguments as of :func:`_pass`."""
    wanted = {name: pictures[name] for name in changed if name in pictures}
    missing = {name: picture for name, picture in wanted.items() if (id(picture), name) not in remembered}
    for picture in {id(picture): picture for picture in missing.values()}.values():
        names = sorted((name for name in missing if missing[name] is picture), key=mixsyn.classes.index)
        new = mixsyn.encode(picture, names)
        remembered |= {(id(picture), name): (new.structure[at], new.style[at]) for at, name in enumerate(names)}
    made = {name: remembered[id(picture), name] for name, picture in wanted.items()}
    if codes is None:
        structure, style = next(iter(made.values()))
        count = len(mixsyn.classes)
        codes = Codes(structure.new_zeros(count, *structure.shape), style.new_zeros(count, *style.shape))
    result = Codes(codes.structure.clone(), codes.style.clone())
    for name in changed:
        at = mixsyn._index(name)
        result.structure[at], result.style[at] = made.get(name, (0.0, 0.0))  # type: ignore[assignment]
    return result


def _equal(a: Picture, b: Picture) -> bool:
    return a is b or (np.array_equal(a.labels, b.labels) and np.array_equal(a.image, b.image))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))  # a copy: arrays of pictures may be read-only


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def _networks(config: Config) -> dict[str, nn.Module]:
    return dict(zip(_PARTS, (StructureGenerator(config), StyleGenerator(config)), strict=True))


def _load_file(path: Path, device: torch.device | str) -> MixSyn:
    config, networks = FILE.load(path, _networks)
    structure, style = (networks[part].to(device) for part in _PARTS)
    return MixSyn(structure, style, config)  # type: ignore[arg-type]


def _load_run(folder: Path, device: torch.device | str) -> MixSyn:
    from ..training.trained import load_trained

    try:
        trained = load_trained(folder, device=device)
        if not all(part in trained.networks for part in _PARTS):
            raise ValueError(f"a run of model {trained.config['model']!r}")
        config = from_dict(Config, trained.config["task"])
        if trained.not_begun:
            raise ValueError(
                f"one that ended in its stage of structures, after step {trained.step}: images are learnt from step "
                f"{config.structure_steps + 1} on; go on with `mixsyn-fast train mixsyn --config {folder / 'config.json'} "
                "--steps N`"
            )
    except (KeyError, ValueError, RuntimeError) as error:  # RuntimeError: load_state_dict
        raise ValueError(f"{folder}: expected a run of `mixsyn-fast train mixsyn`, got: {error}") from error
    structure, style = (trained.networks[part] for part in _PARTS)
    assert isinstance(structure, StructureGenerator) and isinstance(style, StyleGenerator)
    whole = trained.config.get("data", {}).get("crop") == "none"
    return MixSyn(structure, style, config, "none" if whole else "center")


def _for_use(network: N) -> N:
    """A copy of the network in eval mode without gradients, spectral norm folded, in the faster memory layout."""
    network = copy.deepcopy(network)
    fold_convolutions(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)
