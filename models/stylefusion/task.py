r"""Training of a hierarchy of FusionNets: node by node from the top down, each in three stages (Sec. 4.4, 4.5).

    stage 1, LB_align:  sum over i of  mask(I'_i) + alignReg + fusion(s'_i, s_i)         (Eq. 3, 6, 7)
    stage 2, LB_fuse:   fusion(s_result, s'_1, s'_2)                                     (Eq. 7)
    stage 3, both:      local + alignReg + fusion(s_result, s_1, s_2) [+ mask(I)]        (Eq. 5, 6, 7 [, 3])

s'_i is s_i aligned to s_align. Every image is made by the fixed generator of a code that went through the frozen networks
above the node, with codes of their own for the regions beside it and for their layouts: `placed`. At the root it is the
node's own code, as in the paper's equations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast.layers import FusionConfig, FusionHierarchy

from ..data import LatentDataset
from ..losses import stylefusion as losses
from ..sheets import to_uint8
from ..stylegan2 import Generator
from ..training.task import Phase, Task, Trainable
from ..unconditional import load_generator
from .config import Config, Stage
from .correlation import channel_weights, correlation
from .networks import make_net
from .segments import Region, Segments, resized

if TYPE_CHECKING:
    from mixsyn_fast.region_map import Size

    from ..data import LatentBatch, TrainingSet

OWN_CODES = 4
"""Codes of a step: s_1, s_2, s_align, s_rnd; then two for every node above, its global code and that of the other region."""


class Context:
    """Codes of a step for one node.

    Attributes:
        first, second, align, random: (B, S) each.
        above: (global code, code of the region beside), for every node above, the parent first.
    """

    def __init__(self, codes: Tensor, depth: int) -> None:
        self.first, self.second, self.align, self.random, *rest = codes.unbind(1)
        self.above = [(rest[2 * i], rest[2 * i + 1]) for i in range(depth)]

    def repeated(self, times: int) -> list[tuple[Tensor, Tensor]]:
        """Return `above` for that many codes of the node, one batch after the other."""
        return [(a.repeat(times, 1), b.repeat(times, 1)) for a, b in self.above]


class StyleFusionTask(Task):
    """Networks "align_<node>" and "fuse_<node>" of every node that is trained, or lies above one.

    Args:
        config: settings.
        generator: fixed; it is no network of the task and no part of its checkpoints.
        segments: of this generator, with clusters for both regions of every node.

    Raises:
        FileNotFoundError, ValueError: the tree is not there or has other nodes, segments are another generator's, or a
            region has no cluster.
    """

    compiles = False  # the networks' parts are called together, not their forward
    best = ""  # figures of different nodes and stages do not compare

    def __init__(self, config: Config, generator: Generator, segments: Segments) -> None:
        segments.check(generator)
        self.config, self.tree = config, config.region_tree()
        self.generator = generator.eval().requires_grad_(False)
        self.segments, self.layout = segments, generator.layout
        self.truncation = self.tree.truncation if config.truncation is None else config.truncation
        stages = config.stages(self.tree)
        wanted = {*config.trained_nodes(self.tree), *config.needed_nodes(self.tree)}
        self.regions: dict[str, list[Region]] = {}
        for node in (name for name in self.tree.tree if name in wanted):
            self.regions[node] = [self.tree.within(child) for child in self.tree.tree[node]]
            try:
                segments.membership(self.regions[node])
            except ValueError as error:
                raise ValueError(f"segments: node {node!r}: {error}") from None
        self.nets = {
            node: make_net(generator, config.hidden, config.coarse, config.q_on, config.ablation != "no_global")
            for node in self.regions
        }
        self.networks: dict[str, nn.Module] = {}
        for node, net in self.nets.items():
            if net.global_code:
                self.networks[f"align_{node}"] = net.blender_common
            self.networks[f"fuse_{node}"] = net.blender_segments
        self.averaged: tuple[str, ...] = ()
        self.stages = {f"{stage.node}_stage{stage.number}": stage for stage in stages}
        moved = (config.lr, config.betas, config.weight_decay)
        # in the steps of its stage alone, with an optimiser of its own, so that nothing else ever moves
        self.phases = {
            name: Phase(self._trained(stage), *moved, start=stage.start, stop=stage.stop)
            for name, stage in self.stages.items()
        }
        self.total_steps = stages[-1].stop
        above = config.needed_nodes(self.tree)
        self.begins_with = tuple(n for n in self.networks if n.partition("_")[2] in above)
        self.node = stages[0].node
        self.code_size = (OWN_CODES + 2 * max(len(self.tree.ancestors(n)) for n in self.regions), generator.config.z_dim)
        """Size of an item of the LatentDataset that this task learns from."""

    def own_data(self, seed: int) -> tuple[TrainingSet, TrainingSet | None]:
        """Return z codes to learn from, a million of them, and 64 others to validate on."""
        return LatentDataset(10**6, self.code_size, seed), LatentDataset(64, self.code_size, seed + 10**6)

    def _trained(self, stage: Stage) -> tuple[str, ...]:
        names = {1: ("align",), 2: ("fuse",), 3: ("align", "fuse")}[stage.number]
        return tuple(name for kind in names if (name := f"{kind}_{stage.node}") in self.networks)

    def to(self, device: torch.device) -> None:
        """Move networks, generator and segments."""
        super().to(device)
        self.generator.to(device)
        self.segments = self.segments.to(device)

    def hierarchy(self) -> FusionHierarchy:
        """Return the networks, live, as a tree; the nodes that this run does not have are bypassed."""
        return FusionHierarchy(FusionConfig(self.tree.tree, self.layout, self.config.hidden), self.nets)

    # --- codes and images -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def context(self, batch: LatentBatch, node: str) -> Context:
        """Return the style codes of a batch of z (B, n, z_dim), truncated (Appendix A.6).

        Raises:
            ValueError: too few codes for the node.
        """
        z, depth = batch.latents, len(self.tree.ancestors(node))
        count = OWN_CODES + 2 * depth
        if z.dim() != 3 or z.shape[1] < count:
            raise ValueError(f"batch: expected {count} codes or more for node {node!r}, (B, n, z_dim), got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):  # differences of codes are what is learnt from
            w = self.generator.truncate(self.generator.map(z[:, :count].flatten(0, 1)), self.truncation)
            return Context(self.generator.styles(w).unflatten(0, (len(z), count)), depth)

    def placed(self, node: str, code: Tensor, above: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the code of the whole image (B, S) of a node's code, through the networks above it."""
        for parent, (s_align, beside) in zip(self.tree.ancestors(node), above, strict=True):
            pair = (code, beside) if self.tree.tree[parent][0] == node else (beside, code)
            code, node = self.nets[parent](*pair, s_align), parent
        return code

    def masks(self, node: str, activations: Sequence[Tensor]) -> Tensor:
        """Return the soft masks of a node's two regions, (B, 2, side, side)."""
        return self.segments.masks(activations, self.regions[node], self.config.temperature or None)

    @torch.no_grad()
    def target(self, node: str, given: Context) -> Tensor:
        """Return the masks of a node's regions in I_align, (B, 2, side, side)."""
        _, activations = self.generator.activations(self.placed(node, given.align, given.above))
        return self.masks(node, activations)

    @torch.no_grad()
    def channel_weights(self, node: str, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return w of the first region in the image of the first code, and of the second in the second's (Eq. 8), (B, S)."""
        _, activations = self.generator.activations(torch.cat((first, second)))
        masks = self.segments.hard_masks(activations, self.regions[node])
        found = channel_weights(correlation(activations, masks))
        return found[: len(first), 0], found[len(first) :, 1]

    # --- losses ---------------------------------------------------------------------------------------------------------

    def losses(self, phase: str, batch: Any, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of a stage (Eq. 9)."""
        stage = self.stages[phase]
        self.node = stage.node
        for name, network in self.networks.items():
            network.train(name in self.phases[phase].networks)  # what is frozen keeps what it derives from its weights
        given = self.context(batch, stage.node)
        return {1: self._align, 2: self._fuse, 3: self._both}[stage.number](stage.node, given)

    def _align(self, node: str, given: Context) -> dict[str, Tensor]:
        weigh, net = self.config.coefficients(self.tree, node), self.nets[node]
        weights = self.channel_weights(node, given.first, given.second)
        target = self.target(node, given).repeat(2, 1, 1, 1)
        aligned, q = net.align(torch.cat((given.first, given.second)), given.align.repeat(2, 1), rgb_bit=True)
        _, activations = self.generator.activations(self.placed(node, aligned, given.repeated(2)))
        # both codes of a pair count: twice the mean over the batch of pairs
        mask = 2 * losses.mask_loss(self.masks(node, activations), target)
        reg = 2 * losses.align_regularization(q)
        first, second = aligned.chunk(2)
        fusion = losses.fusion_loss((first, second), (given.first, given.second), weights)
        return {
            "mask": self.config.mask * mask,
            "align_reg": self.config.align_reg1 * reg,
            "fusion": _weighed(weigh.fusion, fusion),
        }

    def _aligned(self, node: str, given: Context) -> tuple[Tensor, Tensor]:
        net = self.nets[node]
        if not net.global_code:
            return given.first, given.second
        first, second = net.align(torch.cat((given.first, given.second)), given.align.repeat(2, 1))[0].chunk(2)
        return first, second

    def _fuse(self, node: str, given: Context) -> dict[str, Tensor]:
        net = self.nets[node]
        with torch.no_grad():
            sources = self._aligned(node, given)
        weights = self.channel_weights(node, *sources)
        code, _ = net.blender_segments(*sources, given.align if net.global_code else None)
        fusion = losses.fusion_loss((code, code), sources, weights)
        return {"fusion": _weighed(self.config.coefficients(self.tree, node).fusion, fusion)}

    def _both(self, node: str, given: Context) -> dict[str, Tensor]:
        weigh, net, batch = self.config.coefficients(self.tree, node), self.nets[node], len(given.first)
        weights = self.channel_weights(node, given.first, given.second)
        moved = [losses.perturbed(code, given.random, self.config.epsilon) for code in (given.first, given.second)]
        fused = net.fuse(
            torch.cat((given.first, moved[0], given.first)),
            torch.cat((given.second, given.second, moved[1])),
            given.align.repeat(3, 1),
        )
        images, activations = self.generator.activations(self.placed(node, fused.code, given.repeated(3)))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mask3 > 0):
            masks = self.masks(node, [layer[:batch] for layer in activations])
        image, first, second = images.chunk(3)
        size = images.shape[-1]
        local = losses.localization_loss(image, first, second, resized(masks, size), rms=self.config.local_norm == "rms")
        code = fused.code[:batch]
        fusion = losses.fusion_loss((code, code), (given.first, given.second), weights)
        found = {"local": _weighed(weigh.local, local), "fusion": _weighed(weigh.fusion, fusion)}
        if self.config.mask3:
            found["mask"] = self.config.mask3 * losses.mask_loss(masks, self.target(node, given))
        if net.global_code:
            q = torch.cat([each[:batch] for each in fused.q_align])
            found["align_reg"] = self.config.align_reg3 * 2 * losses.align_regularization(q)
        return found

    # --- looking at it --------------------------------------------------------------------------------------------------

    def _fused(self, node: str, given: Context, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return images of the fusion of two codes, and the node's soft masks in them at the images' size."""
        code = self.nets[node](first, second, given.align)
        image, activations = self.generator.activations(self.placed(node, code, given.above))
        return image, resized(self.masks(node, activations), image.shape[-1])

    def generate(self, batch: Any, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return the images that the node in training makes of a batch."""
        given = self.context(batch, self.node)
        return self._fused(self.node, given, given.first, given.second)[0]

    def validate(self, batch: Any, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return for the node in training, (B,) each: L_mask of the fused image, and how local its two codes are.

        `locality`: share of the absolute change that lies inside the region whose code is exchanged, mean of both;
        `region_share`: that of a change that is spread evenly.
        """
        node, given = self.node, self.context(batch, self.node)
        image, masks = self._fused(node, given, given.first, given.second)
        target = resized(self.target(node, given), image.shape[-1])
        changed = [
            self._fused(node, given, given.random, given.second)[0],
            self._fused(node, given, given.first, given.random)[0],
        ]
        change = torch.stack([(image - other).abs().mean(1) for other in changed], 1)  # (B, 2, H, W)
        inside = (change * masks).sum((2, 3)) / change.sum((2, 3)).clamp(min=1e-12)
        return {
            "mask": torch.stack([losses.mask_loss(masks[i, None], target[i, None]) for i in range(len(image))]),
            "locality": inside.mean(1),
            "region_share": masks.mean((1, 2, 3)),
        }

    def sheet(self, batch: Any, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows: image of the first code, the second, s_align; fused; with another first code, another second."""
        node, given = self.node, self.context(batch, self.node)
        sources = (given.first, given.second, given.align)
        columns = [self.generator.synthesis(self.placed(node, code, given.above)) for code in sources]
        pairs = ((given.first, given.second), (given.random, given.second), (given.first, given.random))
        columns += [self._fused(node, given, *pair)[0] for pair in pairs]
        return [list(row) for row in zip(*(to_uint8(column.clamp(-1, 1)) for column in columns), strict=True)]

    def state(self) -> dict[str, Any]:
        """Return the node in training, which validation and sheets look at."""
        return {"node": self.node}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        if state.get("node") in self.nets:
            self.node = state["node"]


def _weighed(weights: tuple[float, float], terms: Tensor) -> Tensor:
    return weights[0] * terms[0] + weights[1] * terms[1]


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with the tree and the segments themselves, and where the generator lies.

    So a run folder says all of it but the generator's weights, and no later edit of a file changes what was trained.

    Raises:
        FileNotFoundError, ValueError: generator, segments or tree are not named, not there, or something else.
    """
    del classes, size, edges  # codes know none of them
    for name in ("generator", "segments"):
        if not getattr(config, name):
            raise ValueError(
                f"{name}: expected {'a StyleGAN2' if name == 'generator' else 'a file of its segments'}, got none"
            )
    segments = config.segments if config.segments.lstrip().startswith("{") else Segments.load(config.segments).to_json()
    generator = os.path.abspath(config.generator) if os.path.exists(config.generator) else config.generator
    return replace(config, tree=config.region_tree().to_json(), segments=segments, generator=generator)


def build(config: Config, training: bool) -> StyleFusionTask:
    """Return the task of settings, with the generator and the segments that they name; see :class:`StyleFusionTask`."""
    del training  # the losses need nothing that the images do not
    return StyleFusionTask(config, load_generator(config.generator), Segments.from_json(config.segments))


TRAINABLES = {"stylefusion": Trainable(Config, fitted, build, needs_regions=False, own_data=True)}
"""What `mixsyn-fast train` finds here by name."""
