"""A trained harmonized transfer in use: styles of regions from other pictures, random ones, under a slider, from a brush.

For example::

    model = Harmonized.load("runs/faces")
    made = model.transfer(image, labels, other, its_labels, ["hair"])     # (H, W, 3) uint8, (H, W) integers
    made = model.tune(image, labels, "skin", 3, [0.5], codes=made.codes)[0]
    made.image, made.codes, made.ran

Every region of a picture has a code, s_t of the paper. An edit replaces the codes of some regions, which gives s'_r; the
attention corrects each code by those of the picture (Eq. 5), and the generator makes the image of the corrected codes s'_t.
The row of a region in Eq. 4 reads its own code and the picture's codes alone, so an edit leaves the corrected codes of all
other regions as they are, and an edit of no region is the reconstruction.

Work that depends on unchanged input is not done again: codes of the last pictures, their z, the analysis of the last label
maps, the last images. Every block of SEAN's generator but the last reads the codes of all regions, the first one at a 32nd
of the size, so an edit runs the whole generator, but no encoder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast import RegionMap

from .. import sean
from ..checkpoints import load_checked
from ..memory import Memory, digest, state
from ..model_file import ModelFile
from ..pictures.picture import Picture, checked_labels, checked_picture, described, fit, fit_labels
from ..settings import from_dict, read_json
from ..sheets import to_uint8
from .attention import StyleAttention, composed_codes
from .config import AttentionConfig, FlowConfig, GeneratorConfig, MappingConfig, checked_groups
from .flow import Solver, StyleFlow
from .generator import Generator
from .mapping import CodeDistribution, MappingNetwork
from .task import Config, named_groups

_REMEMBERED = 16  # pictures, label maps and images that are kept
_OPAQUE = 128  # least alpha of a stroke's pixel, of 255
_STEP = 32  # grey levels within which two pixels of strokes are of one colour
_ROUNDS = 8  # of shifting a region's colour: what is cut off at black or white is made up for in the next one

By = Literal["mapping", "flow"]
Space = Literal["z", "style"]


@dataclass(frozen=True)
class Saved:
    """What the file of a model says of it."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    classes: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()  # of each its name, then its regions
    attended: bool = True  # there is an attention
    mapped: tuple[str, ...] = ()  # groups with a mapping network
    flowing: tuple[str, ...] = ()  # groups with a flow
    distributed: bool = False  # codes are means of Gaussians (ablation: mapping by KL)


FILE = ModelFile("harmonized", "Harmonized", Saved)


@dataclass(frozen=True, eq=False)
class Made:
    """An image and what it was made of."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(H, W) int32, at the model's size; -1: no region."""
    codes: Tensor
    """s'_r, (K, S) float32 on the CPU: before the attention. A further edit begins with them."""
    corrected: Tensor
    """s'_t, (K, S) float32 on the CPU: what the generator was given."""
    regions: tuple[str, ...] = ()
    """Regions whose codes this call changed."""
    ran: tuple[str, ...] = ()
    """Networks that ran, in this order: encoder (once a picture), attention, mapping, flow, generator. Others were not
    needed, or what they make was remembered."""


class Harmonized:
    """Generator with encoder, attention, mapping networks and flows, ready for use: copies in eval mode, without gradients.

    Images are (H, W, 3) uint8 RGB, label maps (H, W) integers, region in the model's order or -1 for none. Of another size
    than the model's they are fitted to it (the largest box of its proportions in the middle, scaled). Every method raises
    ValueError for an image or a label map of another shape or dtype, label values outside [-1, K), sizes that differ, and
    unknown regions or groups; the message names the argument.

    Where regions are asked for, the name of a group stands for all its regions that the pictures have; a region that is
    named itself and that a picture lacks is an error. A region counts as lacking when it has no pixel at half the model's
    size, where codes are taken.

    `codes` of an edit are those that it begins with, of the last step of a chain say; None: the picture's own. The attention
    reads the picture's own codes in any case.

    Args:
        generator: this paper's, or SEAN's to compare with; it stays as it is, in training say. classes: names of the K
        regions. attention: None: codes are not corrected (ablation "w/o SA", and SEAN). groups: group -> its regions.
        mapping: mapping networks of some groups. flows: flows of some groups. distribution: codes are the means that it
        makes of the encoder's (ablation: mapping by KL); random ones are drawn from
            N(0, I), which then stands for mapping networks.

    Raises:
        ValueError: another number of regions than the generator's, a group that does not fit, or a network of no group.
    """

    noise_seed = 0
    """Of the noise that SEAN's layers add: images of one model differ by their codes alone."""

    def __init__(
        self,
        generator: nn.Module,
        classes: Collection[str],
        *,
        attention: nn.Module | None = None,
        groups: Mapping[str, Collection[str]] | None = None,
        mapping: Mapping[str, nn.Module] | None = None,
        flows: Mapping[str, nn.Module] | None = None,
        distribution: nn.Module | None = None,
    ) -> None:
        config = cast(sean.Config, generator.config)
        self.classes = tuple(classes)
        if len(self.classes) != config.label_nc:
            raise ValueError(f"classes: expected {config.label_nc} names, got {len(self.classes)}")
        self.groups = {name: tuple(regions) for name, regions in (groups or {}).items()}
        self._numbers = checked_groups(self.groups, self.classes)
        for argument, given in (("mapping", mapping), ("flows", flows)):
            unknown = sorted(set(given or {}) - set(self.groups))
            if unknown:
                raise ValueError(f"{argument}: expected networks of the groups {listed(self.groups)}; got {listed(unknown)}")
        self.config = config = replace(config, spectral_norm=False)
        length = config.style_length
        with torch.random.fork_rng(devices=[]):  # first weights, drawn in vain
            own = Generator(config) if isinstance(config, GeneratorConfig) else sean.SEANGenerator(config)
            self.generator: sean.SEANGenerator = _copied(own, generator)
            self.distribution: CodeDistribution | None = None
            if distribution is not None:
                self.distribution = _copied(CodeDistribution(length), distribution)
            self.attention: StyleAttention | None = None
            if attention is not None:
                self.attention = _copied(StyleAttention(cast(AttentionConfig, attention.config)), attention)
            self.mapping: dict[str, MappingNetwork] = {
                name: _copied(MappingNetwork(len(self.groups[name]), length, cast(MappingConfig, net.config)), net)
                for name, net in (mapping or {}).items()
            }
            self.flows: dict[str, StyleFlow] = {
                name: _copied(StyleFlow(len(self.groups[name]) * length, cast(FlowConfig, net.config)), net)
                for name, net in (flows or {}).items()
            }
        self.generator.to(memory_format=torch.channels_last)
        self._goes_on: dict[str, str] = {}  # of a run that ended before a stage began: kind of network -> what trains it
        self._forget()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.config.output_size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    def to(self, device: torch.device | str) -> Harmonized:
        """Move the networks, and return this model."""
        for network in self._networks().values():
            network.to(device)
        self._forget()
        return self

    def without_attention(self) -> Harmonized:
        """Return the same model whose codes are not corrected, to compare with."""
        other = Harmonized(
            self.generator,
            self.classes,
            groups=self.groups,
            mapping=self.mapping,
            flows=self.flows,
            distribution=self.distribution,
        )
        other._goes_on = self._goes_on
        return other

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def shipped(device: torch.device | str = "cpu", name: str = "faces") -> Harmonized:
        """Load a model that comes with the package.

        Raises:
            FileNotFoundError: no weights of this name came with it.
        """
        return Harmonized.load(FILE.shipped(name), device)

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Harmonized:
        """Load a model.

        Args:
            path: a file of :meth:`save`, or the run folder of a training (`mixsyn-fast train harmonized`, of all stages or
                some): its newest valid checkpoint, averaged weights where the run kept them, without networks whose stage
                had not begun. A run of `mixsyn-fast train
                sean` as well: SEAN, without attention and without random styles, to compare with.
            device: where to put the networks.

        Raises:
            FileNotFoundError: no such file or folder, or a folder without a checkpoint.
            ValueError: damaged, of another model or version, or with weights that do not fit; the message names the path.
            ImportError: safetensors is not installed.
        """
        path = Path(path)
        if path.is_dir():
            return _load_run(path).to(device)
        saved, networks = FILE.load(path, _built)
        return Harmonized(
            networks["generator"],
            saved.classes,
            attention=networks.get("attention"),
            groups={name: tuple(regions) for name, *regions in saved.groups},
            mapping={name: networks[f"mapping_{i}"] for i, name in enumerate(saved.mapped)},
            flows={name: networks[f"flow_{i}"] for i, name in enumerate(saved.flowing)},
            distribution=networks.get("distribution"),
        ).to(device)

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the model to one file, whole or not at all.

        Args:
            path: of the file, as a rule *.safetensors; folders are made. A file that is there is replaced.
            half: store weights as float16 (half the size); :meth:`load` makes float32 of them.

        Raises:
            ValueError: `half`, and a weight that float16 cannot hold; mapping networks, or flows, of different settings;
            SEAN. OSError: the file cannot be written. ImportError: safetensors is not installed.
        """
        if not isinstance(self.config, GeneratorConfig):
            raise ValueError("generator: expected this paper's in a file, got SEAN's, which its run folder keeps")
        about = Saved(
            generator=self.config,
            attention=self.attention.config if self.attention else AttentionConfig(style_length=self.config.style_length),
            mapping=_one_config("mapping", self.mapping, MappingConfig()),
            flow=_one_config("flows", self.flows, FlowConfig()),
            classes=self.classes,
            groups=tuple((name, *regions) for name, regions in self.groups.items()),
            attended=self.attention is not None,
            mapped=tuple(self.mapping),
            flowing=tuple(self.flows),
            distributed=self.distribution is not None,
        )
        FILE.save(path, about, self._networks(), half=half)

    def drawable(self, by: By = "mapping") -> tuple[str, ...]:
        """Return the regions of which there are random codes, in the model's order."""
        if by == "mapping" and self.distribution is not None:
            return self.classes
        networks: Collection[str] = self.mapping if by == "mapping" else self.flows
        return tuple(name for name in self.classes if any(name in self.groups[group] for group in networks))

    def missing(self, by: By) -> str:
        """Return what trains mapping networks, or flows, as the end of a message; "" where the model has some."""
        if (by == "mapping" and self.distribution is not None) or (self.mapping if by == "mapping" else self.flows):
            return ""
        if by in self._goes_on:
            return f": {self._goes_on[by]}"
        steps = "--mapping-steps N --flow-steps 0" if by == "mapping" else "--mapping-steps 0 --flow-steps N"
        kept = " --keep mapping" if by == "flow" and self.mapping else ""
        return (
            f": the model has none, stage {2 if by == 'mapping' else 3} of training makes them: `mixsyn-fast train "
            f"harmonized --init-from RUN --reconstruction-steps 0 {steps}{kept}`"
        )

    # --- codes --------------------------------------------------------------------------------------------------------

    def encode(self, image: np.ndarray, labels: np.ndarray) -> Tensor:
        """Return the codes s_t (K, S) of a picture, on the CPU; of a region that it lacks zero."""
        return _owned(self._encoded(self._picture(image, labels, "image", "labels"))[0])

    def present(self, labels: np.ndarray) -> tuple[str, ...]:
        """Return the regions that a label map has at half the model's size, in the model's order."""
        return self._present(self._labels(labels, "labels"))

    def generate(self, labels: np.ndarray, codes: Tensor, own: Tensor | None = None) -> Made:
        """Return the image of a label map and codes.

        Args:
            labels: (H, W) integers.
            codes: s'_r, (K, S).
            own: s_t, (K, S), by which the attention corrects them; zero for regions that there are not. None: `codes`.
        """
        fitted = self._labels(labels, "labels")
        given = self._given(codes, "codes")
        return self._made(fitted, given, given if own is None else self._given(own, "own"))

    @torch.no_grad()
    def latent(self, codes: Tensor, group: str, solver: Solver = "fixed") -> Tensor:
        """Return z (n S) of the codes (K, S) of a picture: Eq. 7, by the flow of a group of n regions."""
        self._flow(group)
        rows = self._given(codes, "codes")[list(self._numbers[group])].reshape(1, -1)
        return _owned(self._latent(group, rows, solver)[0])

    # --- applications -------------------------------------------------------------------------------------------------

    def reconstruct(self, image: np.ndarray, labels: np.ndarray) -> Made:
        """Return a picture as the model makes it of its own codes (Sec. 4.3)."""
        picture = self._picture(image, labels, "image", "labels")
        own, ran = self._encoded(picture)
        return self._made(picture.labels, own, own, ran=ran)

    def transfer(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        reference: np.ndarray,
        reference_labels: np.ndarray,
        regions: Collection[str] = ("hair",),
        *,
        codes: Tensor | None = None,
    ) -> Made:
        """Give some regions of a picture the style that they have in another one (Sec. 4.4).

        Args:
            image: (H, W, 3) uint8, the target.
            labels: (H, W) integers.
            reference: (H, W, 3) uint8.
            reference_labels: (H, W) integers.
            regions: names of regions or groups; none: the reconstruction.
            codes: to begin with.

        Raises:
            ValueError: a region that the target or the reference lacks.
        """
        picture = self._picture(image, labels, "image", "labels")
        other = self._picture(reference, reference_labels, "reference", "reference_labels")
        chosen = self._chosen(
            regions, "regions", {"the picture": self._present(picture.labels), "the reference": self._present(other.labels)}
        )
        start = self._start(codes)
        own, ran = self._encoded(picture)
        theirs, more = self._encoded(other)
        composed = self._replaced(own if start is None else start, theirs, chosen)
        return self._made(picture.labels, composed, own, chosen, (*ran, *more))

    @torch.no_grad()
    def sample(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        regions: Collection[str] = ("hair",),
        count: int = 6,
        seed: int = 0,
        *,
        by: By = "mapping",
        codes: Tensor | None = None,
    ) -> list[Made]:
        """Give some regions of a picture new styles (Sec. 4.6).

        Args:
            image: (H, W, 3) uint8.
            labels: (H, W) integers.
            regions: names of regions that are in some group, or of groups.
            count: how many images.
            seed: of the first image; the next has seed + 1 and so on, whatever the count. Groups draw apart.
            by: what makes the codes: mapping networks (Eq. 3), or flows from their Gaussian (Eq. 8).
            codes: to begin with.

        Raises:
            ValueError: no region, one that the picture lacks, a region of no group, or a group without such a network; a
                count below 1.
        """
        picture = self._picture(image, labels, "image", "labels")
        chosen = self._chosen(regions, "regions", {"the picture": self._present(picture.labels)})
        if by not in ("mapping", "flow"):
            raise ValueError(f"by: expected mapping or flow, got {by!r}")
        self._check_drawable(chosen, by)
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        check_seed(seed)
        start = self._start(codes)
        own, ran = self._encoded(picture)
        start = own if start is None else start
        made: list[Made] = []
        for number in range(seed, seed + count):
            drawn = self.drawn(number, chosen, by)
            ran = (*ran, *[by] * (by == "flow" or self.distribution is None))
            made.append(self._made(picture.labels, self._replaced(start, drawn, chosen), own, chosen, ran))
            ran = ()
        return made

    @torch.no_grad()
    def drawn(self, seed: int, regions: Collection[str], by: By = "mapping") -> Tensor:
        """Return random codes (K, S) on the model's device, those of a seed always the same; of other regions zero.

        Args:
            seed: 0 or more.
            regions: names of regions, which :meth:`sample` can draw.
            by: see :meth:`sample`.
        """
        codes = torch.zeros(len(self.classes), self.config.style_length, device=self.device)

        def noise(place: int, length: int) -> Tensor:
            source = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, place)).generate_state(1)[0]))
            return torch.randn(1, length, generator=source).to(self.device)

        if by == "mapping" and self.distribution is not None:
            for name in regions:
                codes[self.classes.index(name)] = noise(self.classes.index(name), self.config.style_length)[0]
            return codes
        networks: Mapping[str, Any] = self.mapping if by == "mapping" else self.flows
        for name in networks:
            if set(self.groups[name]) & set(regions):
                place = list(self.groups).index(name)
                if by == "flow":
                    new = self.flows[name].decode(noise(place, self.flows[name].size), "fixed")
                else:
                    new = self.mapping[name](noise(place, self.mapping[name].config.z_dim))
                codes[list(self._numbers[name])] = new.reshape(-1, self.config.style_length)
        return codes

    @torch.no_grad()
    def tune(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        group: str,
        direction: int | np.ndarray | Tensor = 0,
        amounts: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
        *,
        solver: Solver = "fixed",
        space: Space = "z",
        codes: Tensor | None = None,
    ) -> list[Made]:
        """Move the style of a group of regions along a direction (Sec. 3.5, 4.7): an image per amount.

        Args:
            image: (H, W, 3) uint8.
            labels: (H, W) integers.
            group: that has a flow.
            direction: seed of a random direction, or a vector (D) for the D = n S numbers of the group's n regions; it is
                made a unit vector d.
            amounts: lengths of the steps in units of sqrt(D), the length of a typical z: eta = amount sqrt(D). A step of 1
                moves every number by one deviation (root of the mean square), whatever D is.
            solver: "fixed": Runge-Kutta with the flow's number of steps, for a slider; "adaptive".
            space: "z": z' = z + eta d and back (Eq. 8); "style": the codes themselves move, in units of their deviations
                over the training set (the comparison of Fig. 5 and 9).
            codes: to begin with.

        Raises:
            ValueError: a group without a flow, or of which the picture lacks a region; a direction of another length, or
                zero; no amount, or one that is not finite.
        """
        picture = self._picture(image, labels, "image", "labels")
        flow = self._flow(group)
        names = self.groups[group]
        lacking = [name for name in names if name not in self._present(picture.labels)]
        if lacking:
            raise ValueError(f"group: {group} moves {listed(names)} together, and the picture lacks {listed(lacking)}")
        unit = self._unit(direction, flow.size)
        steps = torch.tensor(list(amounts), dtype=torch.float32)
        if not len(steps) or not bool(torch.isfinite(steps).all()):
            raise ValueError(f"amounts: expected at least one finite number, got {tuple(amounts)}")
        if solver not in ("fixed", "adaptive"):
            raise ValueError(f"solver: expected fixed or adaptive, got {solver!r}")
        if space not in ("z", "style"):
            raise ValueError(f"space: expected z or style, got {space!r}")
        given = self._start(codes)
        own, ran = self._encoded(picture)
        start = own if given is None else given
        rows = list(self._numbers[group])
        move = (steps[:, None] * math.sqrt(flow.size) * unit).to(self.device)
        own_codes = start[rows].reshape(1, -1)
        if space == "z":
            moved = flow.decode(self._latent(group, own_codes, solver) + move, solver)
            ran = (*ran, "flow")
        else:
            moved = own_codes + move * flow.scale()
        made = []
        for each in moved:
            composed = start.clone()
            composed[rows] = each.reshape(len(rows), -1)
            made.append(self._made(picture.labels, composed, own, names, ran))
            ran = ()
        return made

    def reshape(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        new_labels: np.ndarray,
        *,
        reference: np.ndarray | None = None,
        reference_labels: np.ndarray | None = None,
        seed: int = 0,
        codes: Tensor | None = None,
    ) -> Made:
        """Return a picture in another shape: its codes with an edited label map (Sec. 5, Fig. 10 a).

        A region that the new map has and the picture lacks takes its code from the reference where one is given that has
        it; else from the mapping network of its group (`seed`); else it is an error, for there is no code to take. `regions`
        of the result names these.

        Args:
            image: (H, W, 3) uint8.
            labels: (H, W) integers, of the picture as it is.
            new_labels: (H, W) integers, of the same size: the map to draw.
            reference: (H, W, 3) uint8.
            reference_labels: (H, W) integers.
            seed: of codes that are drawn.
            codes: to begin with.

        Raises:
            ValueError: a new region without a code; one of reference and its labels without the other.
        """
        picture = self._picture(image, labels, "image", "labels")
        checked = checked_labels(new_labels, len(self.classes), "new_labels")
        if checked.shape != labels.shape:
            raise ValueError(f"new_labels: expected {labels.shape}, the size of labels, got {checked.shape}")
        fitted = checked if checked.shape == self.size else fit_labels(checked, self.size)
        if (reference is None) != (reference_labels is None):
            raise ValueError("reference, reference_labels: expected both or neither")
        other = None
        if reference is not None and reference_labels is not None:
            other = self._picture(reference, reference_labels, "reference", "reference_labels")
        check_seed(seed)
        here, wanted = self._present(picture.labels), self._present(fitted)
        new = tuple(name for name in wanted if name not in here)
        theirs = () if other is None else tuple(name for name in new if name in self._present(other.labels))
        to_draw = tuple(name for name in new if name not in theirs)
        mapped = self.drawable()
        without = [name for name in to_draw if name not in mapped]
        if without:
            raise ValueError(
                f"new_labels: {listed(without)}: the picture has no such region to take a code from, and no mapping network "
                f"makes one (of {listed(mapped)}); give a reference that has it"
            )
        start = self._start(codes)
        own, ran = self._encoded(picture)
        composed = (own if start is None else start).clone()
        own = own.clone()
        if other is not None and theirs:
            found, more = self._encoded(other)
            composed, own = (self._replaced(each, found, theirs) for each in (composed, own))
            ran = (*ran, *more)
        if to_draw:
            drawn = self.drawn(seed, to_draw)
            composed, own = (self._replaced(each, drawn, to_draw) for each in (composed, own))
            ran = (*ran, *["mapping"] * (self.distribution is None))
        gone = [k for k, name in enumerate(self.classes) if name not in wanted]
        own[gone] = 0  # what the new map does not have is attended to by none
        return self._made(fitted, composed, own, new, ran)

    def recolour(self, image: np.ndarray, labels: np.ndarray, strokes: np.ndarray, *, codes: Tensor | None = None) -> Made:
        """Give regions of a picture the colours of strokes that somebody drew on it (Sec. 5, Fig. 10 b).

        A region's code follows from a colour by way of a picture: its pixels are shifted by one amount, so that their mean
        is the strokes' mean colour inside it and their texture stays (:func:`shifted`), the shifted picture is encoded, and
        the codes of these regions are taken as those of a reference are.

        A stroke is a connected set of opaque pixels of one colour; it paints the region in which most of it lies, and its
        pixels in other regions do not count.

        Args:
            image: (H, W, 3) uint8.
            labels: (H, W) integers.
            strokes: (H, W, 4) uint8 RGBA, transparent where nothing was drawn.
            codes: to begin with.

        Raises:
            ValueError: strokes of another shape or size, or none inside a region.
            ImportError: scipy is not installed.
        """
        picture = self._picture(image, labels, "image", "labels")
        colours = self.stroke_colours(labels, strokes)
        start = self._start(codes)
        own, ran = self._encoded(picture)
        theirs, more = self._encoded(replace(picture, image=self._shifted(picture, colours)))
        names = tuple(colours)
        composed = self._replaced(own if start is None else start, theirs, names)
        return self._made(picture.labels, composed, own, names, (*ran, *more))

    def stroke_colours(self, labels: np.ndarray, strokes: np.ndarray) -> dict[str, np.ndarray]:
        """Return region -> (3,) float64, the mean colour (0 to 255) of the strokes that paint it; see :meth:`recolour`."""
        fitted = self._labels(labels, "labels")
        checked_strokes(strokes)
        if strokes.shape[:2] != labels.shape:
            raise ValueError(f"strokes: expected {labels.shape}, the picture's size, got {strokes.shape[:2]}")
        layer = self.fitted_strokes(strokes)
        packed = np.where(layer[..., 3] >= _OPAQUE, _packed(layer[..., :3]), -1)
        present = [self.classes.index(name) for name in self._present(fitted)]
        sums: dict[int, list[np.ndarray]] = {}
        for inside in _strokes(packed):
            votes = np.bincount(fitted[inside & (fitted >= 0)], minlength=len(self.classes))
            region = int(votes.argmax())
            if votes[region] and region in present:
                sums.setdefault(region, []).append(np.stack(_unpacked(packed[inside & (fitted == region)]), 1))
        if not sums:
            height, width = self.size
            raise ValueError(
                f"strokes: expected opaque pixels inside a region, got none at {width} x {height} (width x height)"
            )
        return {self.classes[k]: np.concatenate(sums[k]).mean(0) for k in sorted(sums)}

    def fitted_strokes(self, strokes: np.ndarray) -> np.ndarray:
        """Bring strokes (H, W, 4) uint8 to the model's size as label maps are: by nearest pixel, so that no colours mix."""
        checked_strokes(strokes)
        if strokes.shape[:2] == self.size:
            return strokes
        colours = fit_labels(_packed(strokes[..., :3]), self.size)
        return np.dstack([*_unpacked(colours), fit_labels(strokes[..., 3].astype(np.int32), self.size)]).astype(np.uint8)

    def recoloured(self, image: np.ndarray, labels: np.ndarray, strokes: np.ndarray) -> np.ndarray:
        """Return the picture (H, W, 3) uint8, at the model's size, that :meth:`recolour` takes codes from."""
        picture = self._picture(image, labels, "image", "labels")
        return self._shifted(picture, self.stroke_colours(labels, strokes))

    # --- inner parts --------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._codes: Memory[Tensor] = Memory(_REMEMBERED)
        self._maps: Memory[RegionMap] = Memory(_REMEMBERED)
        self._images: Memory[np.ndarray] = Memory(_REMEMBERED)
        self._latents: Memory[Tensor] = Memory(_REMEMBERED)

    def _networks(self) -> dict[str, nn.Module]:
        """All networks by their names in the file."""
        found: dict[str, nn.Module] = {"generator": self.generator}
        if self.attention is not None:
            found["attention"] = self.attention
        if self.distribution is not None:
            found["distribution"] = self.distribution
        found |= {f"mapping_{i}": net for i, net in enumerate(self.mapping.values())}
        return found | {f"flow_{i}": net for i, net in enumerate(self.flows.values())}

    def _picture(self, image: np.ndarray, labels: np.ndarray, image_name: str, labels_name: str) -> Picture:
        """A picture at the model's size, checked."""
        picture = checked_picture(image, labels, len(self.classes), image_name, labels_name)
        return picture if picture.labels.shape == self.size else fit(picture, self.size)

    def _labels(self, labels: np.ndarray, name: str) -> np.ndarray:
        """A label map at the model's size, checked."""
        checked = checked_labels(labels, len(self.classes), name)
        return checked if checked.shape == self.size else fit_labels(checked, self.size)

    def _present(self, fitted: np.ndarray) -> tuple[str, ...]:
        half = self._regions(fitted).labels_at((self.size[0] // 2, self.size[1] // 2))
        return tuple(self.classes[k] for k in torch.unique(half).tolist() if 0 <= k < len(self.classes))

    def _chosen(self, names: Collection[str], argument: str, there: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Regions that names of regions and groups stand for, in the model's order; `there`: whose regions are which."""
        if isinstance(names, str):
            raise ValueError(f"{argument}: expected several names, got the text {names!r}")
        found: set[str] = set()
        for name in names:
            if name not in self.classes and name not in self.groups:
                known = f"regions out of {listed(self.classes)}, or groups out of {listed(self.groups)}"
                raise ValueError(f"{argument}: expected {known}; got {name!r}")
            asked = self.groups.get(name, (name,))
            having = {region for region in asked if all(region in regions for regions in there.values())}
            if not having:
                whose = next((one for one, regions in there.items() if not set(asked) & set(regions)), " or ".join(there))
                there_is = "; ".join(f"{one} has {listed(regions)}" for one, regions in there.items())
                half = f"{self.size[1] // 2} x {self.size[0] // 2}"
                raise ValueError(f"{argument}: {whose} has no {name} at {half} (width x height): {there_is}")
            found |= having
        return tuple(name for name in self.classes if name in found)

    def _check_drawable(self, chosen: Collection[str], by: By) -> None:
        """ValueError for regions whose codes cannot be drawn."""
        if not chosen:
            raise ValueError("regions: expected at least one region or group, got none")
        known = self.drawable(by)
        without = [name for name in chosen if name not in known]
        if without:
            what = "mapping network" if by == "mapping" else "flow"
            raise ValueError(
                f"regions: no {what} makes codes of {listed(without)}; there are some of {listed(known)}{self.missing(by)}"
            )

    def _flow(self, group: str) -> StyleFlow:
        if group not in self.flows:
            known = f"{listed(self.flows)}{self.missing('flow')}"
            raise ValueError(f"group: expected one with a flow ({known}), got {group!r}")
        return self.flows[group]

    def _unit(self, direction: int | np.ndarray | Tensor, length: int) -> Tensor:
        """A direction as a unit vector (length) on the CPU."""
        if isinstance(direction, int) and not isinstance(direction, bool):
            if direction < 0:
                raise ValueError(f"direction: expected a seed, 0 or more, or a vector, got {direction}")
            vector = torch.randn(length, generator=torch.Generator().manual_seed(direction))
        elif isinstance(direction, (np.ndarray, Tensor)):
            vector = torch.as_tensor(direction).detach().cpu().float()
        else:
            raise ValueError(f"direction: expected a seed or a vector ({length}), got {direction!r}")
        norm = float(vector.norm())
        if vector.shape != (length,) or not 0 < norm < float("inf"):
            raise ValueError(
                f"direction: expected a vector ({length}) that is not zero, got {tuple(vector.shape)}, norm {norm:g}"
            )
        return vector / norm

    def _given(self, codes: Tensor, argument: str) -> Tensor:
        """Codes that somebody gave, on the model's device."""
        shape = (len(self.classes), self.config.style_length)
        if not isinstance(codes, Tensor) or codes.shape != shape or not codes.is_floating_point():
            got = f"{tuple(codes.shape)} {codes.dtype}" if isinstance(codes, Tensor) else type(codes).__name__
            raise ValueError(f"{argument}: expected codes {shape} (K, S) of floats, got {got}")
        return codes.detach().to(self.device, torch.float32)

    def _start(self, codes: Tensor | None) -> Tensor | None:
        return None if codes is None else self._given(codes, "codes")

    def _regions(self, fitted: np.ndarray) -> RegionMap:
        """The region map of a label map, with the analysis that it has had."""

        def make() -> RegionMap:
            labels = torch.from_numpy(fitted.astype(np.int64))[None].to(self.device)
            return RegionMap(labels, len(self.classes), ignore_index=-1)

        return self._maps.get(digest(fitted), make)

    def _key(self, *arrays: np.ndarray) -> bytes:
        return digest(*arrays) + state(self._networks().values(), self.device)

    @torch.no_grad()
    def _encoded(self, picture: Picture) -> tuple[Tensor, tuple[str, ...]]:
        """Codes (K, S) of a fitted picture, and what ran for them."""
        before = self._codes.made

        def make() -> Tensor:
            image = torch.from_numpy(picture.image.copy()).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            found: Tensor = self.generator.encode(image, self._regions(picture.labels))
            if self.distribution is not None:
                found = self.distribution(found)[0] * (found != 0).any(2, keepdim=True)
            return found[0]

        codes = self._codes.get(self._key(picture.image, picture.labels), make)
        return codes, ("encoder",) * (self._codes.made - before)

    @torch.no_grad()
    def _latent(self, group: str, codes: Tensor, solver: Solver) -> Tensor:
        """Return z (1, n S) of the codes (1, n S) of a group: under a slider the same ones at every move."""
        key = self._key(codes.cpu().numpy(), np.frombuffer(f"{group} {solver}".encode(), np.uint8))
        return self._latents.get(key, lambda: self.flows[group].encode(codes, solver))

    def _replaced(self, codes: Tensor, other: Tensor, names: Collection[str]) -> Tensor:
        """s'_r: codes with those of some regions taken from others, which have them."""
        has = torch.ones(1, len(self.classes), dtype=torch.bool, device=codes.device)
        return composed_codes(codes[None], other[None], [self.classes.index(name) for name in names], has)[0]

    def _shifted(self, picture: Picture, colours: Mapping[str, np.ndarray]) -> np.ndarray:
        image = picture.image
        for name, colour in colours.items():
            image = shifted(image, picture.labels == self.classes.index(name), colour)
        return image

    @torch.no_grad()
    def _corrected(self, codes: Tensor, own: Tensor) -> Tensor:
        """s'_t (K, S) of s'_r and s_t: Eq. 5. A region has a code where it is not zero."""
        if self.attention is None:
            return codes
        corrected: Tensor = self.attention(codes[None], own[None], (own != 0).any(1)[None])[0]
        return corrected

    @torch.no_grad()
    def _made(
        self,
        fitted: np.ndarray,
        codes: Tensor,
        own: Tensor,
        regions: Collection[str] = (),
        ran: tuple[str, ...] = (),
    ) -> Made:
        corrected = self._corrected(codes, own)
        used = _owned(corrected)
        names = [k for k in np.unique(fitted).tolist() if k >= 0]
        before = self._images.made

        def make() -> np.ndarray:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.noise_seed)  # "published" draws on the CPU: the same noise on every device
                features = self.generator.forward_features(
                    self._regions(fitted), style_codes=corrected[None], noise="published"
                )
            made: np.ndarray = to_uint8(torch.tanh(features))[0]
            return made

        image = self._images.get(self._key(fitted, used[names].numpy(), np.array(self.noise_seed)), make)
        ran = (*ran, *["attention"] * (self.attention is not None), *["generator"] * (self._images.made - before))
        return Made(image.copy(), fitted, _owned(codes), used, tuple(regions), ran)


def check_seed(seed: int) -> None:
    """ValueError for a seed below 0."""
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")


def _owned(codes: Tensor) -> Tensor:
    """Codes on the CPU, float32 in any precision, that the caller may write into: what is remembered is another tensor."""
    return codes.to("cpu", torch.float32, copy=True)


def listed(names: Collection[str]) -> str:
    """Return names as text."""
    return ", ".join(names) or "none"


def shifted(image: np.ndarray, inside: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Shift the pixels of a region by one amount so that their mean is a colour: another colour, the same texture.

    What is cut off at 0 and 255 is made up for by a larger shift, as far as that goes.

    Args:
        image: (H, W, 3) uint8.
        inside: (H, W) bool, with at least one pixel.
        colour: (3,), 0 to 255.

    Returns:
        (H, W, 3) uint8; outside the region as it was.
    """
    pixels = image[inside].astype(np.float64)
    shift = np.zeros(3)
    for _ in range(_ROUNDS):
        shift += colour - np.clip(pixels + shift, 0, 255).mean(0)
    made = image.copy()
    made[inside] = np.clip(pixels + shift, 0, 255).round().astype(np.uint8)
    return made


def checked_strokes(strokes: np.ndarray) -> None:
    """ValueError for strokes that are no (H, W, 4) uint8."""
    if not isinstance(strokes, np.ndarray) or strokes.ndim != 3 or strokes.shape[2] != 4 or strokes.dtype != np.uint8:
        raise ValueError(f"strokes: expected (H, W, 4) uint8, got {described(strokes)}")


def _packed(colours: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 as (H, W) int32, 0xRRGGBB."""
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def _unpacked(packed: np.ndarray) -> list[np.ndarray]:
    """Red, green and blue of 0xRRGGBB."""
    return [packed >> bits & 255 for bits in (16, 8, 0)]


def _strokes(packed: np.ndarray) -> list[np.ndarray]:
    """Masks (H, W) of the connected sets of one colour, within :data:`_STEP` a channel, of a map of 0xRRGGBB or -1."""
    try:
        from scipy.ndimage import label
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("strokes need scipy: pip install 'mixsyn_fast[models]'") from error
    red, green, blue = (value // _STEP for value in _unpacked(packed))
    coarse = np.where(packed < 0, -1, red << 16 | green << 8 | blue)
    found = []
    for colour in np.unique(coarse[packed >= 0]).tolist():
        numbers, count = label(coarse == colour, np.ones((3, 3)))
        found += [numbers == i + 1 for i in range(count)]
    return found


def _copied(network: Any, given: nn.Module) -> Any:
    """`network` with the weights of another one, spectral norm folded, on its device, in eval mode, without gradients."""
    state = given.state_dict()
    for name, module in given.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
            for key in [key for key in state if key.startswith(f"{name}.parametrizations.weight.")]:
                del state[key]
            training = module.training
            state[f"{name}.weight"] = module.eval().weight.detach()
            module.train(training)
    load_checked(network, state, source="the given network")
    network.to(next(given.parameters()).device)
    return network.eval().requires_grad_(False)


def _one_config(argument: str, networks: Mapping[str, Any], default: Any) -> Any:
    """The config of all networks of a kind."""
    configs = [net.config for net in networks.values()]
    if any(config != configs[0] for config in configs):
        raise ValueError(f"{argument}: expected networks of one size in a file, got others")
    return configs[0] if configs else default


def _built(saved: Saved) -> dict[str, nn.Module]:
    """Networks of a file, by its names."""
    sizes = {name: len(regions) for name, *regions in saved.groups}
    length = saved.generator.style_length
    networks: dict[str, nn.Module] = {"generator": Generator(saved.generator)}
    if saved.attended:
        networks["attention"] = StyleAttention(saved.attention)
    if saved.distributed:
        networks["distribution"] = CodeDistribution(length)
    for i, name in enumerate(saved.mapped):
        networks[f"mapping_{i}"] = MappingNetwork(sizes[name], length, saved.mapping)
    for i, name in enumerate(saved.flowing):
        networks[f"flow_{i}"] = StyleFlow(sizes[name] * length, saved.flow)
    return networks


def _load_run(folder: Path) -> Harmonized:
    from ..training.trained import load_trained

    try:
        config = folder / "config.json"
        kind = read_json(config)["model"] if config.is_file() else "harmonized"  # what is missing is said by load_trained
        if kind not in ("harmonized", "sean"):
            raise ValueError(f"a run of model {kind!r}")
        trained = load_trained(folder)
        classes, networks = trained.config["classes"], trained.networks
        if kind == "sean":
            return Harmonized(networks["generator"], classes)
        groups = named_groups(from_dict(Config, trained.config["task"]).groups)
        late = trained.not_begun
        networks = {name: network for name, network in networks.items() if name not in late}
        made = Harmonized(
            networks["generator"],
            classes,
            attention=networks.get("attention"),
            groups=groups,
            mapping={name: networks[f"mapping_{name}"] for name in groups if f"mapping_{name}" in networks},
            flows={name: networks[f"flow_{name}"] for name in groups if f"flow_{name}" in networks},
            distribution=networks.get("distribution"),
        )
        for name in late:
            kind, first = name.partition("_")[0], trained.task.first_steps[name]
            made._goes_on[kind] = (
                f"the run ended after step {trained.step}, and theirs begin after step {first}: `mixsyn-fast train "
                f"harmonized --config {config} --steps {trained.task.total_steps}`"
            )
        return made
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: expected a run of `mixsyn-fast train harmonized`, or sean, got: {error}") from error
