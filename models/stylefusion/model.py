"""A trained StyleFusion in use: images from one code per region, changed region by region; kept in one file.

For example::

    fusion = StyleFusion.shipped(name="faces")
    made = fusion.generate(seed=3)                     # (H, W, 3) uint8 and the codes of all nodes
    made = fusion.fuse(made.codes, {"hair": 8})        # another hair, all else as it is
    made = fusion.pose(made.codes, {"all": 5})         # another layout
    made = fusion.edit(made.codes, fusion.direction(1, 2), ["face"], 1.5)

A *node* is a region of the tree, inner or leaf. A leaf's code is the style of its region, an inner node's code the global
code under which its two children are fused (s_align). An image has a code for every node; where all are the same, the image
is the generator's own of that code, exactly (a + q (a - a) = a).

What an edit does not touch is not done again: the fused codes of nodes none of whose codes changed are kept from call to
call, so a change of one region runs the FusionNets on its way to the root, and the generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast.backend import current_backend, current_plan
from mixsyn_fast.layers import FusionHierarchy, FusionNet
from mixsyn_fast.layers.derived import forget

from .. import stylegan2
from ..model_file import ModelFile, digest_of
from ..sheets import to_uint8
from ..stylegan2 import Generator
from .networks import make_net
from .segments import Segments, resized
from .trees import RegionTree, find_tree

Code = int | Tensor
"""A code of a node: the seed of a random one, or s (S)."""
Codes = Mapping[str, Tensor]
"""Codes (S) by node."""


@dataclass(frozen=True)
class Saved:
    """What the file of a model says of it."""

    generator: stylegan2.Config = field(default_factory=stylegan2.Config)
    tree: str = ""  # its JSON
    nodes: tuple[str, ...] = ()  # inner nodes that have a network
    hidden: int = 1536
    coarse: int = 5
    q_on: str = "b"
    global_code: bool = True
    segments: str = ""  # their JSON; "": none


FILE = ModelFile("stylefusion", "StyleFusion", Saved)


@dataclass(frozen=True, eq=False)
class Made:
    """An image and what it was made of."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    codes: dict[str, Tensor]
    """(S) float32 of every node."""
    s: Tensor
    """(S), the fused code of the image."""
    fused: tuple[str, ...]
    """Nodes whose FusionNet ran; others were remembered."""


class StyleFusion:
    """Generator, tree, FusionNets and segments, ready for use: in eval mode, without gradients.

    Every method raises ValueError for a node that the tree does not have, a code of another length, or a seed below 0; the
    message names the argument.

    Args:
        generator: a StyleGAN2.
        tree: of regions.
        nets: FusionNet of inner nodes; a node without one passes its own code.
        segments: of this generator, for masks and heat maps; None: there are none.

    Raises:
        ValueError: networks of another S space, or segments of another generator.
    """

    def __init__(
        self,
        generator: Generator,
        tree: RegionTree,
        nets: Mapping[str, FusionNet],
        segments: Segments | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.tree = replace(tree, layout=generator.layout)
        self.hierarchy = FusionHierarchy(self.tree, nets).eval().requires_grad_(False)
        if segments is not None:
            segments.check(generator)
        self.segments = segments
        self._digest = ""
        self._forget()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.generator.config.size, self.generator.config.size

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, the root first."""
        return self.hierarchy.names

    @property
    def regions(self) -> tuple[str, ...]:
        """The leaves."""
        return tuple(name for name in self.nodes if name not in self.tree.tree)

    @property
    def generator_digest(self) -> str:
        """Of the generator's weights: codes and segments belong to one generator."""
        self._digest = self._digest or digest_of(self.generator)
        return self._digest

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.generator.w_mean.device

    def to(self, device: torch.device | str) -> StyleFusion:
        """Move the networks, and return this model."""
        self.generator.to(device)
        self.hierarchy.to(device)
        self.segments = None if self.segments is None else self.segments.to(device)
        self._forget()
        return self

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def shipped(device: torch.device | str = "cpu", name: str = "facades") -> StyleFusion:
        """Load a model that comes with the package (weights/MODEL_CARD.md): "facades" or "faces"."""
        return StyleFusion.load(FILE.shipped(name), device)

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> StyleFusion:
        """Load a model.

        Args:
            path: a file of :meth:`save`, or the run folder of a training (`mixsyn-fast train stylefusion`), which names
                generator and segments.
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
        generator = networks.pop("generator")
        assert isinstance(generator, Generator)
        nets: dict[str, Any] = {name: networks[f"node_{i}"] for i, name in enumerate(saved.nodes)}
        segments = Segments.from_json(saved.segments) if saved.segments else None
        return StyleFusion(generator, find_tree(saved.tree), nets, segments).to(device)

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
        nets: dict[str, Any] = dict(self.hierarchy.nets.items())
        first: Any = next(iter(nets.values()), None)
        other = [name for name, net in nets.items() if _settings_of(net) != _settings_of(first)]
        if other:
            raise ValueError(f"nets: expected FusionNets of one size in a file, got others: {', '.join(other)}")
        about = Saved(
            self.generator.config,
            self.tree.to_json(),
            tuple(nets),
            **({} if first is None else _settings_of(first)),
            segments="" if self.segments is None else self.segments.to_json(),
        )
        networks = {"generator": self.generator, **{f"node_{i}": net for i, net in enumerate(nets.values())}}
        FILE.save(path, about, networks, half=half)

    # --- codes --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def code(self, seed: int, truncation: float | None = None) -> Tensor:
        """Return the code s (S) of a random image: of a seed always the same one.

        Args:
            seed: 0 or more.
            truncation: psi; None: the tree's (Appendix A.6).
        """
        return self.styles(self.w(seed, truncation))

    @torch.no_grad()
    def w(self, seed: int, truncation: float | None = None) -> Tensor:
        """Return w (w_dim) of a seed; see :meth:`code`."""
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"seed: expected an integer, 0 or more and below 2^63, got {seed!r}")
        z = torch.randn(1, self.generator.config.z_dim, generator=torch.Generator().manual_seed(seed)).to(self.device)
        psi = self.tree.truncation if truncation is None else truncation
        return self.generator.truncate(self.generator.map(z), psi)[0]

    @torch.no_grad()
    def styles(self, w: Tensor) -> Tensor:
        """Return s (S) of w (w_dim), or of one w a layer (num_ws, w_dim)."""
        return self.generator.styles(w[None].to(self.device))[0]

    def codes(self, code: Code) -> dict[str, Tensor]:
        """Return codes of all nodes that are one and the same: those of the generator's own image."""
        found = self._code(code, "code")
        return {name: found.clone() for name in self.nodes}

    def direction(self, first: int, second: int) -> Tensor:
        """Return the difference (S) of the codes of two seeds, second minus first: a latent direction like any other."""
        return self.code(second) - self.code(first)

    # --- applications -------------------------------------------------------------------------------------------------

    def generate(self, seed: int = 0, codes: Codes | None = None) -> Made:
        """Return the image of a seed, or of codes of all nodes."""
        return self._made(self.codes(seed) if codes is None else self._checked(codes))

    def fuse(self, codes: Codes, changes: Mapping[str, Code | Codes]) -> Made:
        """Return an image some of whose regions have other codes (Fig. 1, 8; mixing, and the transfer of any region).

        Args:
            codes: of all nodes, of an image that was made before.
            changes: node -> seed, s (S), or the codes of another image, of which the node's are taken. An inner node stands
                for its whole region: all nodes below it change, and the global code under which they are fused.

        Raises:
            ValueError: no change, or a node below another one that changes as well.
        """
        given = self._checked(codes)
        if not changes:
            raise ValueError("changes: expected at least one node, got none")
        for node, value in changes.items():
            self._known(node, "changes")
            above = next((name for name in self.tree.ancestors(node) if name in changes), None)
            if above:
                raise ValueError(f"changes: {node} lies below {above}, which changes whole")
            if isinstance(value, Mapping):
                other = self._checked(value, f"changes: {node}")
                given |= {name: other[name] for name in self.tree.within(node)}
            else:
                given |= dict.fromkeys(self.tree.within(node), self._code(value, f"changes: {node}"))
        return self._made(given)

    def pose(self, codes: Codes, changes: Mapping[str, Code]) -> Made:
        """Return an image with other global codes: layouts of inner nodes (Fig. 12, 22 to 26).

        Args:
            codes: of all nodes.
            changes: inner node -> seed or s (S); the root's is the layout of the whole image.
        """
        given = self._checked(codes)
        if not changes:
            raise ValueError("changes: expected at least one inner node, got none")
        for node, value in changes.items():
            if node not in self.tree.tree:
                raise ValueError(f"changes: expected inner nodes among {', '.join(self.tree.tree)}, got {node!r}")
            given[node] = self._code(value, f"changes: {node}")
        return self._made(given)

    def edit(self, codes: Codes, direction: Tensor, regions: Collection[str], strength: float = 1.0) -> Made:
        """Return an image whose codes are moved along a latent direction in some regions alone (Sec. 6.1, Fig. 14).

        Args:
            codes: of all nodes.
            direction: (S) in the S space, or (w_dim) in the W space, which the affine layers take to the S space (their
                linear part).
            regions: nodes; an inner node moves with all below it.
            strength: factor of the direction.

        Raises:
            ValueError: no region, or a direction of another length.
        """
        given = self._checked(codes)
        if not regions:
            raise ValueError("regions: expected at least one node, got none")
        length = self.generator.config.w_dim
        if direction.dim() != 1 or direction.shape[0] not in (length, self.tree.layout.size):
            expected = f"({self.tree.layout.size}) or ({length})"
            raise ValueError(f"direction: expected shape {expected}, got {tuple(direction.shape)}")
        step = direction.detach().to(self.device, torch.float32)
        if step.shape[0] == length:
            step = self.styles(step) - self.styles(torch.zeros_like(step))
        for node in regions:
            self._known(node, "regions")
        for name in {name for node in regions for name in self.tree.within(node)}:
            given[name] = given[name] + strength * step
        return self._made(given)

    # --- looking at it ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def masks(self, codes: Codes, side: int | None = None) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the names of the regions of an image, and how much of each pixel is whose.

        Args:
            codes: of all nodes.
            side: of the masks; None: the image's.

        Returns:
            nodes that have clusters of their own, and (R, side, side) float32 in [0, 1].

        Raises:
            ValueError: the model has no segments, or none of the tree's nodes.
        """
        segments = self._segments()
        names = tuple(name for name in self.nodes if name in segments.names)
        if not names:
            raise ValueError(f"segments: expected clusters named as nodes of the tree, got {', '.join(segments.regions)}")
        _, activations = self.generator.activations(self._made(self._checked(codes)).s[None])
        found = resized(segments.masks(activations, names), side or self.size[0])[0]
        return names, found.cpu().numpy()

    @torch.no_grad()
    def heatmap(
        self,
        region: str,
        count: int = 500,
        base: Codes | None = None,
        *,
        seed: int = 0,
        batch: int = 8,
        swap: Callable[[Tensor, Tensor], Tensor] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Heat:
        """Average the change of pixels when one region's code changes (Fig. 10; with `base`, Fig. 11).

        Args:
            region: node whose code is exchanged, all below it included.
            count: number of samples: of every one the change between two codes of the region.
            base: codes that all samples share but for the region; None: random ones for every sample.
            seed: of the codes: sample i has seeds that depend on (seed, i) alone.
            batch: samples at a time.
            swap: (codes (B, S) of the image, codes (B, S) of the region) -> code of the image, to measure another way of
                fusing; None: the FusionNets.
            advance: called with the number of samples done.

        Returns:
            the mean change and, where the model has segments, the share of it inside the region.
        """
        self._known(region, "region")
        return self.heatmaps([region], count, base, seed=seed, batch=batch, swap=swap, advance=advance)[region]

    @torch.no_grad()
    def heatmaps(
        self,
        regions: Sequence[str],
        count: int = 500,
        base: Codes | None = None,
        *,
        seed: int = 0,
        batch: int = 8,
        swap: Callable[[Tensor, Tensor], Tensor] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> dict[str, Heat]:
        """Return :meth:`heatmap` of several regions from the same codes, with nothing made twice.

        FusionNets run on the way from a region to the root alone, and the images of a `swap`, which knows no region, are
        made once for all of them.

        Args:
            regions: different nodes.
            count, base, seed, batch, swap, advance: see :meth:`heatmap`.

        Returns:
            region -> its heat map.

        Raises:
            ValueError: also a region twice, or none.
        """
        for region in regions:
            self._known(region, "regions")
        if not regions or len(set(regions)) < len(regions):
            raise ValueError(f"regions: expected different nodes, at least one, got {', '.join(regions) or 'none'}")
        if count < 1 or batch < 1:
            raise ValueError(f"count, batch: expected at least 1, got {count}, {batch}")
        fixed = None if base is None else self._checked(base)
        within = [self.tree.within(region) for region in regions]
        if self.segments is not None:
            self.segments.membership(within)  # a region without a cluster is refused before the work
        beside = {} if fixed is None else {node: self._value(node, fixed, []) for node in self.nodes}
        together = [tuple(regions)] if swap is not None else [(region,) for region in regions]
        found = {region: _Samples(torch.zeros(self.size, dtype=torch.float64)) for region in regions}
        for begin in range(0, count, batch):
            numbers = range(begin, min(count, begin + batch))
            own, first, second = self._triples(seed, numbers)
            if fixed is not None:
                own = fixed[self.tree.root].expand(len(numbers), -1)
            for names in together:
                images, masks = [], []
                for other in (first, second):
                    if swap is not None:
                        s = swap(own, other)
                    else:
                        s = self._exchanged(names[0], other, own, fixed, beside)
                    if self.segments is None:
                        images.append(self.generator.synthesis(s).clamp(-1, 1))
                    else:
                        image, activations = self.generator.activations(s)
                        images.append(image.clamp(-1, 1))
                        mask = self.segments.masks(activations, [self.tree.within(name) for name in names])
                        masks.append(resized(mask, self.size[0]))
                change = (images[0] - images[1]).abs().mean(1) / 2  # of the range
                where = torch.maximum(*masks) if masks else None
                for i, name in enumerate(names):
                    found[name].add(change, None if where is None else where[:, i])
            if advance is not None:
                advance(len(numbers))
        return {name: samples.heat(count) for name, samples in found.items()}

    def _exchanged(
        self, region: str, other: Tensor, own: Tensor, fixed: Codes | None, beside: Mapping[str, Tensor]
    ) -> Tensor:
        """The fused codes (b, S) of images whose region has the codes `other` (b, S), all its nodes.

        Nodes of one code are fused to that code, exactly. So the region passes its own, and what lies beside its way to the
        root passes `own`, or what the `fixed` codes were fused to, which no sample changes.
        """
        given = {region: other}
        child = region
        for parent in self.tree.ancestors(region):
            given[parent] = own if fixed is None else fixed[parent].expand_as(other)
            for node in self.tree.tree[parent]:
                if node != child:
                    given[node] = own if fixed is None else beside[node].expand_as(other)
            child = parent
        fused: Tensor = self.hierarchy(given)
        return fused

    def _triples(self, seed: int, numbers: Sequence[int]) -> Tensor:
        """Codes (3, b, S) of samples: of the image, and two of the region."""
        size = (3, self.generator.config.z_dim)
        drawn = [np.random.RandomState(np.random.MT19937([seed, i])).standard_normal(size) for i in numbers]
        z = torch.from_numpy(np.stack(drawn, 1).astype(np.float32)).to(self.device)
        w = self.generator.truncate(self.generator.map(z.flatten(0, 1)), self.tree.truncation)
        styles: Tensor = self.generator.styles(w)
        triples: Tensor = styles.unflatten(0, z.shape[:2])
        return triples

    # --- inner parts --------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._fused: dict[str, _Fused] = {}
        forget(self.hierarchy)

    def _segments(self) -> Segments:
        if self.segments is None:
            raise ValueError("segments: expected a model with segments (mixsyn-fast stylefusion segments), got one without")
        return self.segments

    def _known(self, node: str, argument: str) -> None:
        if node not in self.nodes:
            raise ValueError(f"{argument}: expected nodes among {', '.join(self.nodes)}, got {node!r}")

    def _code(self, code: Code, argument: str) -> Tensor:
        if isinstance(code, Tensor):
            if code.shape != (self.tree.layout.size,) or not code.is_floating_point():
                raise ValueError(
                    f"{argument}: expected a code ({self.tree.layout.size}) of floats, got {tuple(code.shape)} {code.dtype}"
                )
            return code.detach().to(self.device, torch.float32, copy=True)  # the caller may go on writing into his
        return self.code(code)

    def _checked(self, codes: Codes, argument: str = "codes") -> dict[str, Tensor]:
        if set(codes) != set(self.nodes):
            missing, unknown = sorted(set(self.nodes) - set(codes)), sorted(set(codes) - set(self.nodes))
            raise ValueError(
                f"{argument}: expected a code of every node ({', '.join(self.nodes)}), got missing {missing}, "
                f"unknown {unknown}"
            )
        return {name: self._code(codes[name], f"{argument}: {name}") for name in self.nodes}

    @torch.no_grad()
    def _made(self, codes: dict[str, Tensor]) -> Made:
        ran: list[str] = []
        s = self._value(self.tree.root, codes, ran)
        image = to_uint8(self.generator.synthesis(s[None]))[0]
        return Made(image, dict(codes), s.clone(), tuple(ran))

    def _value(self, node: str, codes: Codes, ran: list[str]) -> Tensor:
        """The fused code (S) of a node, remembered where nothing below it changed."""
        if node not in self.tree.tree or node not in self.hierarchy.nets:
            return codes[node]
        first, second = (self._value(child, codes, ran) for child in self.tree.tree[node])
        inputs = (first, second, codes[node])
        net: Any = self.hierarchy.nets[node]
        way = (current_plan(), current_backend(), *(p._version for p in net.parameters()))
        kept = self._fused.get(node)
        if kept is None or kept.way != way or not all(map(torch.equal, kept.inputs, inputs)):
            made: Tensor = net(*(each[None] for each in inputs))[0]
            self._fused[node] = kept = _Fused(tuple(each.clone() for each in inputs), way, made)
            ran.append(node)
        return kept.made


class _Fused(NamedTuple):
    """The last fused code of a node."""

    inputs: tuple[Tensor, ...]
    way: tuple[Any, ...]
    made: Tensor


@dataclass(eq=False)
class _Samples:
    """What becomes a :class:`Heat`, batch by batch."""

    total: Tensor
    shares: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)

    def add(self, change: Tensor, where: Tensor | None) -> None:
        """Take in the changes (b, H, W) of a batch, and the masks (b, H, W) of the region in them."""
        self.total += change.sum(0).double().cpu()
        self.totals += change.mean((1, 2)).tolist()
        if where is not None:
            self.shares += ((change * where).sum((1, 2)) / change.sum((1, 2))).tolist()  # 0 / 0 where nothing changed
            self.areas += where.mean((1, 2)).tolist()

    def heat(self, count: int) -> Heat:
        """Return the mean of `count` samples."""
        mean = (self.total / count).float().numpy()
        return Heat(mean, np.array(self.shares), np.array(self.areas), np.array(self.totals))


@dataclass(frozen=True, eq=False)
class Heat:
    """Mean change of pixels when a region's code changes."""

    mean: np.ndarray
    """(H, W) float32: mean absolute change, as a share of the range of values."""
    shares: np.ndarray
    """(count) of every sample, the share of its change inside the region, NaN where nothing changed; empty without
    segments."""
    areas: np.ndarray
    """(count) the share of the image that the region has: that of a change spread evenly."""
    totals: np.ndarray
    """(count) of every sample, the mean absolute change of a pixel, as a share of the range."""


def _settings_of(net: FusionNet) -> dict[str, Any]:
    linear = net.blender_segments.linears[0].weight
    coarse = sum(1 for layer in net.coarse_layers if net.layout.layers[layer].kind == "conv")
    return {"hidden": linear.shape[0], "coarse": coarse, "q_on": net.q_on, "global_code": net.global_code}


def _networks(saved: Saved) -> dict[str, nn.Module]:
    generator = Generator(saved.generator)
    nets = {
        f"node_{i}": make_net(generator, saved.hidden, saved.coarse, saved.q_on, saved.global_code)
        for i in range(len(saved.nodes))
    }
    return {"generator": generator, **nets}


def _load_run(folder: Path) -> StyleFusion:
    from ..training.trained import load_trained
    from .task import StyleFusionTask

    try:
        trained = load_trained(folder)
        task = trained.task
        if not isinstance(task, StyleFusionTask):
            raise ValueError(f"a run of model {trained.config['model']!r}")
        tree = replace(task.tree, truncation=task.truncation)
        segments = task.segments
        if task.config.temperature:
            segments = replace(segments, temperature=task.config.temperature)
        return StyleFusion(task.generator, tree, task.nets, segments)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: expected a run of `mixsyn-fast train stylefusion`, got: {error}") from error
