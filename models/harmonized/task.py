r"""Training of harmonized regional style transfer, in three stages (Sec. 3.4, 3.5).

    1, "generator", "discriminator":       L = hinge + 10 feature matching + 10 perceptual, reference = source: the decoder
                                           makes the picture of attention(codes, codes), its own codes
    2, "mapping", "mapping_discriminator": Eq. 6 in its non-saturating form, on the codes of a group's regions
    3, "flow":                             - log p of a group's codes (Eq. 7), in nats per number of a code, of codes with a
                                           little noise (flow.noise); validation asks it of the codes themselves

Stages 2 and 3 rest on the codes of the encoder, which stays as stage 1 left it (its average, where the loop keeps one).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast.backend import current_backend, current_plan
from mixsyn_fast.layers.derived import derived, may_keep
from mixsyn_fast.region_map import Plan, RegionMap, Size

from .. import reconstruction, settings
from ..data import colorize
from ..discriminators import MultiScaleDiscriminator, logits_of
from ..losses import ADVERSARIAL, kld_loss, non_saturating
from ..memory import digest
from ..settings import at_least, one_of
from ..sheets import to_uint8
from ..spade import reparameterize
from ..training import distributed
from ..training.task import Phase, Trainable
from .attention import StyleAttention, composed_codes
from .config import AttentionConfig, FlowConfig, GeneratorConfig, MappingConfig, checked_groups
from .flow import Solver, StyleFlow
from .generator import Generator
from .mapping import CodeDistribution, MappingNetwork, StyleDiscriminator

if TYPE_CHECKING:
    from ..data import Batch

DEFAULT_GROUPS = {"hair": ("hair",), "skin": ("skin", "nose")}
"""Groups of regions of the paper; a region that the data set lacks is left out."""

_KEPT = 2**28  # bytes of codes that stages 2 and 3 keep: of 19 regions 110 000 pictures of 32 numbers a code, 6800 of 512

KINDS: tuple[Literal["mapping", "flow"], ...] = ("mapping", "flow")
"""What makes random codes of a group."""


@dataclass(frozen=True)
class Config(reconstruction.Config):
    """Settings of harmonized regional style transfer; what follows from the data is filled in by :func:`fitted`."""

    generator: GeneratorConfig = field(default_factory=lambda: GeneratorConfig(spectral_norm=True))
    betas: tuple[float, float] = (0.5, 0.999)  # Adam's decay rates, of all networks
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    attend: bool = True  # multi-region style attention before the decoder; False: the ablation "w/o SA"
    mapping_by: Literal["style", "image", "kl"] = "style"
    """where random styles come from: mapping networks judged in style space (Eq. 6); judged by the image discriminator, in
    the images that their codes make (StarGAN v2's way); or N(0, I), to which a KLD draws stage 1's codes (GroupDNet's)"""
    groups: tuple[str, ...] = settings.repeated()
    """groups of related regions, NAME=REGION or NAME=REGION,REGION: each has a mapping network and a flow; none given:
    hair=hair and skin=skin,nose, as far as the data set has these regions"""
    reconstruction_steps: int = 60_000  # steps of stage 1: encoder, attention, decoder; 0: they come from --init-from
    mapping_steps: int = 20_000  # steps of stage 2: mapping networks; 0: none are trained. With mapping_by kl there are none
    flow_steps: int = 20_000  # steps of stage 3: flows; 0: none are trained
    keep: tuple[Literal["mapping", "flow"], ...] = ()  # networks that come with --init-from and stay as they are
    mapping_lr: float = 2e-4  # learning rate of mapping networks and their discriminators
    flow_lr: float = 1e-3  # learning rate of the flows
    flow_solver: Solver = "adaptive"  # of the likelihood's integral in training: adaptive or fixed
    flow_statistics: int = 200  # first steps of stage 3 whose codes make the mean and deviation by which flows standardise
    classes: tuple[str, ...] = ()  # names of the regions

    def __post_init__(self) -> None:
        """Check every field once."""
        super().__post_init__()
        at_least(self, reconstruction_steps=0, mapping_steps=0, flow_steps=0, flow_statistics=1)
        one_of(self, mapping_by=("style", "image", "kl"), flow_solver=("adaptive", "fixed"))
        self.check(positive=("mapping_lr", "flow_lr"))
        if self.stages()["flow"][1] == 0:
            raise ValueError("reconstruction_steps: expected a stage with steps, got none")
        for kind in self.keep:
            start, stop = self.stages()[kind]
            if self.reconstruction_steps or start < stop:
                raise ValueError(f"keep: expected no steps of stage 1 and of {kind}, which comes with init_from; got some")
        self.group_regions()

    def stages(self) -> dict[str, tuple[int, int]]:
        """Return first step, and first step after the last, of the stages "reconstruction", "mapping", "flow"."""
        first = self.reconstruction_steps
        second = first + (0 if self.mapping_by == "kl" else self.mapping_steps)
        return {"reconstruction": (0, first), "mapping": (first, second), "flow": (second, second + self.flow_steps)}

    def has(self, kind: Literal["mapping", "flow"]) -> bool:
        """Say whether a model of these settings has mapping networks, or flows."""
        start, stop = self.stages()[kind]
        return start < stop or kind in self.keep

    def group_regions(self) -> dict[str, tuple[int, ...]]:
        """Return the numbers of the regions of every group; none before the data set's classes are known.

        Raises:
            ValueError: a group that is written otherwise, comes twice, or has no such regions (`checked_groups`).
        """
        named = named_groups(self.groups)
        return checked_groups(named, self.classes) if self.classes else {}


def named_groups(groups: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return group -> names of its regions, of texts NAME=REGION,REGION.

    Raises:
        ValueError: another form, a name that no network can have, or one that comes twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in groups:
        name, equals, regions = text.partition("=")
        name = name.strip()
        if not equals or not name or "." in name:
            raise ValueError(f"groups: expected NAME=REGION or NAME=REGION,REGION, the name without a dot, got {text!r}")
        if name in found:
            raise ValueError(f"groups: expected every name once, got {name} again in {text!r}")
        found[name] = tuple(part.strip() for part in regions.split(",") if part.strip())
    return found


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with what the data decides, the groups among it.

    Args:
        config: the settings.
        classes: names of the K regions of the data set.
        size: (H, W) of the images in pixels.
        edges: of no matter: neither SEAN's decoder nor its discriminator here reads them.

    Raises:
        ValueError: the generator cannot make images of this size; no group is given and the data set has none of those of
            the paper; a group has regions that the data set has not.
    """
    del edges
    groups = config.groups
    if not groups:
        there = {name: [each for each in regions if each in classes] for name, regions in DEFAULT_GROUPS.items()}
        groups = tuple(f"{name}={','.join(regions)}" for name, regions in there.items() if regions)
        missing = [each for regions in DEFAULT_GROUPS.values() for each in regions if each not in classes]
        if config.has("mapping") or config.has("flow"):
            if not groups:
                raise ValueError(
                    "groups: expected groups of this data set's regions for mapping networks and flows, such as "
                    f"{classes[-1]}={classes[-1]}, for it has no hair, skin or nose (but {', '.join(classes)}); got none"
                )
            if missing:
                warnings.warn(f"the data set has no {', '.join(missing)}: groups are {' '.join(groups)}", stacklevel=2)
    made = reconstruction.fitted(config, classes, size, False)
    length = made.generator.style_length
    attention = replace(made.attention, style_length=length)
    return replace(made, attention=attention, groups=groups, classes=tuple(classes))


class Encoded(NamedTuple):
    """Codes of a batch of pictures."""

    codes: Tensor
    """(B, K, S); zero where a region is absent."""
    present: Tensor
    """(B, K) bool: regions that have a code."""

    def of_group(self, regions: Sequence[int]) -> Tensor:
        """Return the codes (n, R, S) of a group's R regions, of the n pictures that have all of them."""
        index = list(regions)
        return self.codes[self.present[:, index].all(1)][:, index]


class HarmonizedTask(reconstruction.ReconstructionTask):
    """Networks of stage 1 "generator" (encoder and decoder), "attention", with mapping_by kl "distribution".

    For every group "mapping_<group>" and "flow_<group>", as far as the settings have these stages; in training
    "discriminator" and "style_discriminator_<group>".

    Args:
        config: fitted settings (`fitted`).
        training: False builds only what is used afterwards.

    Raises:
        FileNotFoundError, ValueError: the VGG weights (`perceptual_loss`); a loss mask that is not decided.
    """

    config: Config

    def __init__(self, config: Config, training: bool = True) -> None:
        stages = config.stages()
        super().__init__(config, training and config.reconstruction_steps > 0)
        self.first = self.averaged  # of stage 1
        self.groups = config.group_regions()
        self.total_steps = stages["flow"][1]
        self.flow_start = stages["flow"][0]
        self.begins_with = () if config.reconstruction_steps else self.first
        self.best = "psnr" if self.total_steps == config.reconstruction_steps else ""
        generator = self._generator(self.networks)
        height, width = config.generator.output_size
        self.plans += (Plan((height // 2, width // 2), "labels", edges=False),)  # the encoder pools there
        self.style_length = generator.config.style_length
        for name, regions in self.groups.items():
            if config.has("mapping"):
                self.networks[f"mapping_{name}"] = MappingNetwork(len(regions), self.style_length, config.mapping)
            if config.has("flow"):
                self.networks[f"flow_{name}"] = StyleFlow(len(regions) * self.style_length, config.flow)
        begin = {kind: stages[kind][0] for kind in KINDS if kind not in config.keep}
        self.first_steps = {name: first for kind, first in begin.items() for name in self._of(kind)}
        self.averaged = tuple(name for name in self.networks if name != "discriminator")
        for kind in config.keep:
            self.begins_with += self._of(kind)
        if training:
            self._add_phases(stages)

    def _of(self, kind: str) -> tuple[str, ...]:
        """Names of the networks of a kind, one a group."""
        return tuple(name for name in (f"{kind}_{group}" for group in self.groups) if name in self.networks)

    def _add_phases(self, stages: Mapping[str, tuple[int, int]]) -> None:
        config = self.config
        judges: tuple[str, ...] = ()
        if stages["mapping"][0] < stages["mapping"][1]:
            if config.mapping_by == "image":
                judges = ("discriminator",)
                self.networks.setdefault("discriminator", MultiScaleDiscriminator(config.discriminator))
            else:
                for name, regions in self.groups.items():
                    judge = StyleDiscriminator(len(regions), self.style_length, config.mapping)
                    self.networks[f"style_discriminator_{name}"] = judge
                judges = self._of("style_discriminator")
        parts = {
            "generator": ("reconstruction", self.first, config.generator_lr),
            "discriminator": ("reconstruction", ("discriminator",), config.discriminator_lr),
            "mapping": ("mapping", self._of("mapping"), config.mapping_lr),
            "mapping_discriminator": ("mapping", judges, config.mapping_lr),
            "flow": ("flow", self._of("flow"), config.flow_lr),
        }
        self.phases = {
            name: Phase(networks, lr=lr, betas=config.betas, start=stages[stage][0], stop=stages[stage][1])
            for name, (stage, networks, lr) in parts.items()
            if stages[stage][0] < stages[stage][1]
        }

    def make_generators(self) -> dict[str, nn.Module]:
        """Return the networks of stage 1 but the discriminator."""
        config = self.config
        networks: dict[str, nn.Module] = {"generator": Generator(config.generator)}
        if config.attend:
            networks["attention"] = StyleAttention(config.attention)
        if config.mapping_by == "kl":
            networks["distribution"] = CodeDistribution(config.generator.style_length)
        return networks

    # --- codes and images -----------------------------------------------------------------------------------------------

    def _generator(self, networks: Mapping[str, nn.Module]) -> Generator:
        generator = networks["generator"]
        assert isinstance(generator, Generator)
        return generator

    def encode(
        self, image: Tensor, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool = False
    ) -> tuple[Encoded, dict[str, Tensor]]:
        """Return the codes of images, and with mapping_by kl the KLD over the regions that are there.

        `sample` draws the codes of such a model; else they are their means.
        """
        generator = self._generator(networks)
        codes, present = generator.encode(image, regions), generator.present(regions)
        if "distribution" not in networks:
            return Encoded(codes, present), {}
        mean, log_variance = networks["distribution"](codes)
        codes = reparameterize(mean, log_variance) if sample else mean
        kld = self.config.kld * kld_loss(mean[present], log_variance[present])
        return Encoded(codes * present[..., None].to(codes.dtype), present), {"kld": kld}

    def decode(
        self, composed: Tensor, target: Encoded, regions: RegionMap, networks: Mapping[str, nn.Module], attend: bool = True
    ) -> Tensor:
        """Return the images (B, 3, H, W) of composed codes s'_r for the target's codes s_t (Eq. 4, 5).

        `attend` False decodes them as they are, which a model without attention does in any case.
        """
        if attend and "attention" in networks:
            composed = networks["attention"](composed, target.codes, target.present)
        image: Tensor = networks["generator"](regions, style_codes=composed)
        return image

    def fake(
        self, batch: Batch, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images of a batch in the styles of its own images."""
        target, losses = self.encode(batch.image, regions, networks, sample)
        return self.decode(target.codes, target, regions, networks), losses

    @torch.no_grad()
    def fixed(self, batch: Batch) -> Encoded:
        """Return the codes of a batch in stages 2 and 3, in float32.

        The encoder rests there, so codes are kept by what a picture and its labels hold, flip and crop included, until
        `_KEPT` bytes are full or a weight changes. Every picture is encoded by itself: its codes do not depend on which
        others are known, and a resumed run has those of one run. All this on the CPU: on a GPU a batch is encoded as it
        comes, for its contents would have to be fetched from there to be told from others.
        """
        encoder = self._generator(self.networks).Zencoder
        parts = [encoder, *(self.networks[name] for name in self.first if name == "distribution")]
        weights = [parameter for part in parts for parameter in part.parameters()]
        if batch.image.device.type != "cpu" or not may_keep(encoder, *weights):
            return self._floats(batch.image, self.regions(batch))
        way = ("codes", current_plan(), current_backend(), torch.is_autocast_enabled("cpu"))
        sources = (*weights, *(buffer for part in parts for buffer in part.buffers()))
        known: dict[bytes, Encoded] = derived(encoder, way, sources, dict)
        labels = batch.regions.labels_at()
        found: list[Encoded] = []
        for i in range(len(batch)):
            key = digest(batch.image[i].permute(1, 2, 0).numpy(), labels[i].numpy())
            row = known.get(key)
            if row is None:
                regions = RegionMap(labels[i : i + 1], self.num_regions, ignore_index=-1)
                row = self._floats(batch.image[i : i + 1], regions)
                if (len(known) + 1) * sum(part.nbytes for part in row) <= _KEPT:
                    known[key] = row
            found.append(row)
        return Encoded(torch.cat([row.codes for row in found]), torch.cat([row.present for row in found]))

    def _floats(self, image: Tensor, regions: RegionMap) -> Encoded:
        target, _ = self.encode(image, regions, self.networks)
        return Encoded(target.codes.float(), target.present)

    def random_codes(
        self, target: Encoded, networks: Mapping[str, nn.Module], kind: Literal["mapping", "flow"] = "mapping"
    ) -> Tensor:
        """Return s'_r (B, K, S) with random codes for all groups, as far as a picture has their regions (Eq. 3).

        Args:
            target: codes of the pictures.
            networks: of the model.
            kind: by what the codes are made: mapping networks, or flows (fixed steps) from N(0, I).
        """
        composed = target.codes
        for name, regions in self.groups.items():
            network, batch, like = networks[f"{kind}_{name}"], len(composed), composed
            if isinstance(network, StyleFlow):
                made = network.decode(like.new_empty(batch, network.size).normal_(), "fixed").unflatten(
                    1, (len(regions), -1)
                )
            else:
                made = network(like.new_empty(batch, self.config.mapping.z_dim).normal_())
            index = list(regions)
            whole = composed.clone()
            whole[:, index] = made.to(whole.dtype)
            composed = composed_codes(composed, whole, regions, target.present)
        return composed

    # --- losses ---------------------------------------------------------------------------------------------------------

    def losses(self, phase: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of a phase (see the module's docstring)."""
        if phase not in self.phases:
            raise ValueError(f"phase: expected one of {', '.join(self.phases)}, got {phase!r}")
        if phase in ("generator", "discriminator"):
            return super().losses(phase, batch, step)
        for name in self.first:
            self.networks[name].eval()  # statistics and spectral norms stay too
        if phase == "flow":
            return self.flow_losses(batch, step)
        if self.config.mapping_by == "image":
            return self.image_losses(batch, step, phase == "mapping")
        return self.style_losses(batch, phase == "mapping")

    def style_losses(self, batch: Batch, fooling: bool) -> dict[str, Tensor]:
        """Return the mapping networks' part of Eq. 6, or the style discriminators', a loss a group.

        A discriminator sees the codes of the pictures that have all regions of its group, and as many random ones as the
        batch has pictures; where no picture has them, its loss is 0 and so is its gradient.
        """
        target = None if fooling else self.fixed(batch)
        losses = {}
        for name, regions in self.groups.items():
            judge = self.networks[f"style_discriminator_{name}"]
            z = batch.image.new_empty(len(batch), self.config.mapping.z_dim).normal_()
            with torch.set_grad_enabled(fooling and torch.is_grad_enabled()):
                made = self.networks[f"mapping_{name}"](z)
            if target is None:
                losses[name] = non_saturating.generator_loss(judge(made))
                continue
            real = target.of_group(regions)
            logits = judge(torch.cat((real, made.to(real.dtype))))
            of_real, of_made = logits[: len(real)], logits[len(real) :]
            losses[name] = non_saturating.discriminator_loss(of_real, of_made) if len(real) else 0 * logits.sum()
        return losses

    def image_losses(self, batch: Batch, step: int, fooling: bool) -> dict[str, Tensor]:
        """Return the loss of images made of mapped codes, for the mapping networks or for the image discriminator."""
        judge, regions = self.networks["discriminator"], self.regions(batch)
        target = self.fixed(batch)
        with torch.set_grad_enabled(fooling and torch.is_grad_enabled()):
            image = self.decode(self.random_codes(target, self.networks), target, regions, self.networks)
        if not fooling:
            return reconstruction.discriminator_losses(self.config, judge, image, batch.image, regions, step)
        logits = logits_of(judge(image, regions))[0]
        return {"gan": self.config.gan * ADVERSARIAL[self.config.adversarial].generator_loss(logits)}

    def flow_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the negative log-likelihood of every group's codes, in nats per number; 0 where no picture has them.

        The codes of the stage's first steps make the mean and deviation by which the flow standardises; then these stay.
        """
        with torch.autocast(batch.image.device.type, enabled=False):
            target = self.fixed(batch)
            losses = {}
            for name, regions in self.groups.items():
                flow = self.networks[f"flow_{name}"]
                assert isinstance(flow, StyleFlow)
                codes = target.of_group(regions).flatten(1)
                if step < self.flow_start + self.config.flow_statistics:
                    flow.observe(codes, distributed.sum_over_ranks)
                if len(codes):
                    found = flow.log_likelihood(flow.noisy(codes), self.config.flow_solver)
                    losses[name] = -found.mean() / flow.size
                else:
                    losses[name] = 0 * torch.stack([p.sum() for p in flow.parameters()]).sum()
        return losses

    # --- looking at it --------------------------------------------------------------------------------------------------

    def validate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return PSNR, SSIM and L1 of the reconstruction, and of every flow the nats per number of held-out codes.

        The latter are of the pictures that have the group's regions, (n,); none where no picture has.
        """
        found = super().validate(batch, networks)
        target, _ = self.encode(batch.image, self.regions(batch), networks)
        for name, regions in self.groups.items() if self.config.has("flow") else ():
            flow = networks[f"flow_{name}"]
            assert isinstance(flow, StyleFlow)
            codes = target.of_group(regions).flatten(1)
            if len(codes):
                found[f"nats_{name}"] = -flow.log_likelihood(codes, self.config.flow_solver) / flow.size
        return found

    def sheet(self, batch: Batch, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows: picture, labels, reconstruction, transfer without and with attention, random styles.

        The transfer is from the next picture, of the first group's regions, of all regions where there is no group. Random
        styles of all groups are by the mapping networks and by the flows, as far as the model has them.
        """
        regions = self.regions(batch)
        target, _ = self.encode(batch.image, regions, networks)
        other = Encoded(target.codes.roll(-1, 0), target.present.roll(-1, 0))
        taken = next(iter(self.groups.values()), range(self.num_regions))
        composed = composed_codes(target.codes, other.codes, taken, other.present)
        made = [composed, *(self.random_codes(target, networks, kind) for kind in KINDS if self.config.has(kind))]
        pictures = [self.decode(each, target, regions, networks) for each in (target.codes, *made)]
        if "attention" in networks:
            pictures.insert(1, self.decode(composed, target, regions, networks, attend=False))
        labels = colorize(batch.regions.labels_at().cpu().numpy(), self.num_regions)
        columns = [to_uint8(batch.image), labels, *map(to_uint8, pictures)]
        return [list(row) for row in zip(*columns, strict=True)]


_DECIDED = ("label_nc", "image_size", "aspect_ratio")

TRAINABLES = {
    "harmonized": Trainable(
        Config,
        fitted,
        HarmonizedTask,
        (
            *(f"generator.{name}" for name in _DECIDED),
            *(f"discriminator.{name}" for name in ("label_nc", "edges", "exemplar")),
            *("attention.style_length", "instance_edges", "classes"),
        ),
    )
}
"""What `mixsyn-fast train` finds here by name."""
