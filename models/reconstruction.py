"""Training of SPADE, CLADE and SEAN: a generator that makes an image of its label map, judged against the real image.

What other wings share of it (MSCA's) are the settings `JudgedConfig`, and `generator_losses` and `discriminator_losses` of
images that somebody made.

Per step, as published (Park et al., CVPR 2019; Tan et al., TPAMI 2021; Zhu et al., CVPR 2020):

    generator:      L_G  = hinge + 10 feature matching + 10 perceptual (+ 0.05 KLD of the VAE's code)
    discriminator:  L_D  = hinge on [generated | real], each with its label map

SEAN takes the style of every region from the very image that it is to make (reconstruction), a VAE its latent code.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixsyn_fast.layers import SEANNorm, SPADENorm, table_fits
from mixsyn_fast.region_map import Kind, Plan, RegionMap, Size

from . import clade, sean, spade
from .blocks import GeneratorConfig, RegionGenerator
from .data.classes import are_streets
from .discriminators import DiscriminatorConfig, ExemplarPicture, MultiScaleDiscriminator, logits_of
from .losses import ADVERSARIAL, feature_matching_loss, kld_loss, masked_l1_loss, r1_due, r1_penalty
from .losses.at_once import at_once
from .losses.perceptual import PerceptualLoss, perceptual_loss, without_missing_vgg
from .settings import one_of
from .training.judged import Judged, image_gradients
from .training.task import Kept, Phase, Task, Trainable

if TYPE_CHECKING:
    from .data import Batch


@dataclass(frozen=True)
class JudgedConfig:
    """Settings of the losses of `generator_losses` and `discriminator_losses`, and of how what they judge is trained."""

    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    adversarial: Literal["hinge", "non_saturating", "least_squares"] = "hinge"  # adversarial loss
    gan: float = 1.0  # weight of the adversarial loss, for the generator
    feature_matching: float = 10.0  # weight of feature matching; 0: none
    vgg: float = 10.0  # weight of the perceptual loss; 0: none
    vgg_weights: str = "auto"  # file with VGG-19 or VGG-16; auto: one that is on this machine, else no perceptual loss
    l1: float = 0.0  # weight of the mean absolute difference to the real image (none in the papers)
    r1: float = 0.0  # gamma of the R1 gradient penalty (none in the papers)
    r1_every: int = 16  # steps between two R1 penalties, each this many times as strong
    generator_lr: float = 1e-4  # learning rate of generator and encoder
    discriminator_lr: float = 4e-4  # learning rate of the discriminator
    betas: tuple[float, float] = (0.0, 0.9)  # Adam's decay rates, of both
    init_gain: float = 0.02  # gain of the Xavier-normal initialisation of all convolutions; 0: PyTorch's own
    reuse_fakes: bool = False  # the discriminator judges the generator step's images: one pass less than published

    def __post_init__(self) -> None:
        """Check every number once."""
        self.check(
            not_negative=("gan", "feature_matching", "vgg", "l1", "r1", "init_gain"),
            positive=("generator_lr", "discriminator_lr", "r1_every"),
        )
        if self.adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial: expected one of {', '.join(ADVERSARIAL)}, got {self.adversarial!r}")

    def check(self, not_negative: Sequence[str] = (), positive: Sequence[str] = ()) -> None:
        """Raise ValueError for a field of these that is out of range."""
        for name in not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number that is not negative, got {getattr(self, name)}")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")


@dataclass(frozen=True)
class Config(JudgedConfig):
    """Settings that the three models share; label_nc, image_size, aspect_ratio and edges follow from the data."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    loss_mask: Literal["auto", "none", "rare_colours"] = "none"
    """what pixels weigh in feature matching, perceptual and L1 loss: all the same, or by how rare their class's colour is
    (conditional IMLE); auto: the latter in street scenes"""
    loss_mask_scale: Literal["mean", "maximum"] = "mean"
    """a class's colours weigh 1 on average, or its rarest colour weighs 1 (cIMLE, which has no adversarial loss beside it:
    the masked losses shrink, on CamVid to 0.09 of themselves)"""
    kld: float = 0.05  # weight of the KLD with a VAE: per image (published: summed over the 4 images of a GPU)
    instance_edges: bool = True  # read the edges of instance maps where the data has them (SEAN never does)

    def __post_init__(self) -> None:
        """Check every field once."""
        super().__post_init__()
        self.check(not_negative=("kld",))
        one_of(self, loss_mask=("auto", "none", "rare_colours"), loss_mask_scale=("mean", "maximum"))


@dataclass(frozen=True)
class LatentConfig(Config):
    """Settings of a generator that may have a latent code."""

    encoder: spade.EncoderConfig = field(default_factory=lambda: spade.EncoderConfig(spectral_norm=True))
    """image encoder of the VAE: only with generator.use_vae"""


@dataclass(frozen=True)
class SPADEConfig(LatentConfig):
    """Settings of SPADE."""

    generator: spade.Config = field(default_factory=lambda: spade.Config(spectral_norm=True))


@dataclass(frozen=True)
class CLADEConfig(LatentConfig):
    """Settings of CLADE."""

    generator: clade.Config = field(default_factory=lambda: clade.Config(spectral_norm=True))


@dataclass(frozen=True)
class SEANConfig(Config):
    """Settings of SEAN."""

    generator: sean.Config = field(default_factory=lambda: sean.Config(spectral_norm=True))


C = TypeVar("C", bound=Config)


def fitted(config: C, classes: Sequence[str], size: Size, edges: bool) -> C:
    """Return the settings with what the data decides, and without a perceptual loss where nothing can compute it.

    Args:
        config: the settings.
        classes: names of the K regions of the data set.
        size: (H, W) of the images in pixels.
        edges: the data has instance maps.

    Raises:
        ValueError: the generator cannot make images of this size; the message names the nearest one that it can.
    """
    height, width = size
    if min(size) < 1:
        raise ValueError(f"size: expected two positive numbers (H, W), got {size}")
    edges = edges and config.instance_edges and hasattr(config.generator, "edges")
    changes: dict[str, Any] = {"label_nc": len(classes), "image_size": width, "aspect_ratio": width / height}
    if hasattr(config.generator, "edges"):
        changes["edges"] = edges
    generator = replace(config.generator, **changes)
    if generator.output_size != size:
        made = " x ".join(map(str, generator.output_size))
        raise ValueError(
            f"size: expected a height and width that are multiples of {generator.output_size[1] // generator.start_size[1]} "
            f"(num_upsampling_layers={generator.num_upsampling_layers!r}), got {height} x {width}; {made} would do"
        )
    discriminator = replace(config.discriminator, label_nc=len(classes), edges=edges, exemplar=False)
    changes = {"generator": generator, "discriminator": discriminator}
    if hasattr(config, "encoder"):
        changes["encoder"] = replace(config.encoder, z_dim=generator.z_dim, image_size=256 if width >= 256 else 128)  # type: ignore[attr-defined]
    if config.loss_mask == "auto":
        changes["loss_mask"] = "rare_colours" if are_streets(classes) else "none"
    return without_missing_vgg(replace(config, **changes))


@torch.no_grad()
def initialise(network: nn.Module, gain: float) -> None:
    """Draw the weights of all convolutions and linear layers Xavier-normal with a gain, zero their biases, as published.

    What lies below a module with a true attribute `own_initialisation` stays as it is.
    """
    owners = (module for module in network.modules() if getattr(module, "own_initialisation", False))
    kept = {each for owner in owners for each in owner.modules()}
    for module in network.modules():
        if module not in kept and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            weight = getattr(module, "weight_orig", None)
            if parametrize.is_parametrized(module, "weight"):  # torch's own spectral norm
                weight = module.parametrizations.weight.original  # type: ignore[union-attr]
            nn.init.xavier_normal_(module.weight if weight is None else weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def plans_of(generator: RegionGenerator, edges: bool) -> tuple[Plan, ...]:
    """Return every label analysis that a generator's layers ask for.

    Args:
        generator: the generator.
        edges: it is given maps with edges, where the data has them.
    """
    height, width = generator.config.start_size
    found: dict[Plan, None] = {}
    for name in generator.block_names:
        for layer in getattr(generator, name).children():
            if isinstance(layer, SEANNorm):
                found[Plan((height, width), "image" if layer.use_rgb else "shared", edges)] = None
            elif isinstance(layer, SPADENorm) and table_fits(layer):
                kind: Kind = "classes" if name in generator.blocks_of_vectors else "shared"
                found[Plan((height, width), kind, edges)] = None
        if name in generator.doubled_after:
            height, width = 2 * height, 2 * width
    return tuple(found)


def generator_losses(
    config: JudgedConfig,
    discriminator: nn.Module,
    perceptual: PerceptualLoss | None,
    fake: Tensor,
    real: Tensor,
    regions: RegionMap,
    *,
    exemplar: ExemplarPicture | None = None,
    mask: Tensor | None = None,
    targets: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the weighted losses of images that were to become others, whose gradient by the images is taken at once.

    Args:
        config: weights of the losses.
        discriminator: a `MultiScaleDiscriminator`; it gets no gradient.
        perceptual: the perceptual loss, or None for none.
        fake: (B, 3, H, W).
        real: likewise.
        regions: the label maps of both.
        exemplar: what the discriminator sees beside them, where it does.
        mask: (B, 1, H, W) weights of the pixels in all losses but the adversarial one; None: all are 1.
        targets: the perceptual network's features of `real`, where they are there already.
    """
    assert isinstance(discriminator, MultiScaleDiscriminator)
    iterating = discriminator.training
    with torch.no_grad():
        parts = discriminator.read_map(regions, (real.shape[2], real.shape[3]), exemplar)
        # Apart from the generated images: the published single pass computes a gradient of the real half, all zero.
        wanted = discriminator(real, regions, parts) if config.feature_matching else None
    adversarial = ADVERSARIAL[config.adversarial]

    def judged(image: Tensor) -> dict[str, Tensor]:
        # one power iteration per phase, as the single pass makes, and the same weights for both halves
        discriminator.train(iterating and wanted is None)
        features = discriminator(image, regions, parts)
        discriminator.train(iterating)
        found = {"gan": config.gan * adversarial.generator_loss(logits_of(features)[0])}
        if wanted is not None:
            found["feature_matching"] = config.feature_matching * feature_matching_loss(wanted, features, mask)
        return found

    losses = at_once(judged, fake)
    if perceptual is not None:
        losses |= at_once(lambda image: {"vgg": config.vgg * perceptual(image, real, mask, targets)}, fake)
    if config.l1:
        losses["l1"] = config.l1 * masked_l1_loss(fake.float(), real, mask)
    return losses


def discriminator_losses(
    config: JudgedConfig,
    discriminator: nn.Module,
    fake: Tensor,
    real: Tensor,
    regions: RegionMap,
    step: int,
    *,
    exemplar: ExemplarPicture | None = None,
) -> dict[str, Tensor]:
    """Return the weighted losses of the discriminator; arguments as `generator_losses`.

    `step` says whether R1 is due; its gradient is that by the real image alone.
    """
    features = discriminator(torch.cat((fake.to(real.dtype), real)), regions, exemplar=exemplar)
    fake_logits, real_logits = logits_of(features, 2)
    losses = {"gan": ADVERSARIAL[config.adversarial].discriminator_loss(real_logits, fake_logits)}
    if config.r1 and r1_due(step, config.r1_every):

        def judge(image: Tensor) -> list[Tensor]:
            return logits_of(discriminator(image, regions, exemplar=exemplar, differentiable_twice=True))[0]

        losses["r1"] = r1_penalty(judge, real, gamma=config.r1, interval=config.r1_every)
    return losses


def judged(
    config: JudgedConfig,
    discriminator: nn.Module,
    perceptual: PerceptualLoss | None,
    fake: Tensor,
    real: Tensor,
    regions: RegionMap,
    *,
    exemplar: ExemplarPicture | None = None,
    mask: Tensor | None = None,
) -> Judged:
    """Return what the discriminator says of real pictures and what `generator_losses` ask of images made for them.

    Arguments as `generator_losses`. No network gets a gradient.
    """

    def norms(config: JudgedConfig, perceptual: PerceptualLoss | None) -> Tensor:
        image = fake.detach().requires_grad_(True)
        losses = generator_losses(config, discriminator, perceptual, image, real, regions, exemplar=exemplar, mask=mask)
        return image_gradients(torch.stack([loss.float() for loss in losses.values()]).sum(), image)

    with torch.no_grad():
        scales = logits_of(discriminator(real, regions, exemplar=exemplar))[0]
    logits = torch.stack([each.float().mean((1, 2, 3)) for each in scales]).mean(0)
    alone = norms(replace(config, feature_matching=0.0, vgg=0.0, l1=0.0), None)
    return Judged(logits, alone, norms(replace(config, gan=0.0), perceptual))


class ReconstructionTask(Task):
    """What SPADE, CLADE and SEAN share: networks "generator" and "discriminator", one phase each.

    Args:
        config: fitted settings (`fitted`).
        training: False builds only what `generate` needs: neither discriminator nor feature network.

    Raises:
        FileNotFoundError, ValueError: the VGG weights (`perceptual_loss`); a loss mask that is not decided.
    """

    def __init__(self, config: Config, training: bool = True) -> None:
        if training and config.loss_mask == "auto":
            raise ValueError("loss_mask: expected none or rare_colours (`fitted` decides), got 'auto'")
        self.config = config
        self.num_regions = config.generator.label_nc
        self.perceptual = perceptual_loss(config) if training else None
        self.networks = self.make_generators()
        self.averaged = tuple(self.networks)
        self.phases = {"generator": Phase(self.averaged, lr=config.generator_lr, betas=config.betas)}
        if training:
            self.networks["discriminator"] = MultiScaleDiscriminator(config.discriminator)
            self.phases["discriminator"] = Phase(("discriminator",), lr=config.discriminator_lr, betas=config.betas)
            for network in self.networks.values() if config.init_gain else ():
                initialise(network, config.init_gain)
        generator = self.networks["generator"]
        assert isinstance(generator, RegionGenerator)
        self.plans = plans_of(generator, config.discriminator.edges)
        self._fakes: Kept[Tensor] = Kept()

    @abstractmethod
    def make_generators(self) -> dict[str, nn.Module]:
        """Return "generator" and whatever is trained with it."""

    @abstractmethod
    def fake(
        self, batch: Batch, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images (B, 3, H, W) of a batch, and losses that arise on the way; `sample` draws a VAE's code."""

    def to(self, device: torch.device) -> None:
        """Move the networks and the feature network."""
        super().to(device)
        if self.perceptual is not None:
            self.perceptual.to(device)

    def regions(self, batch: Batch) -> RegionMap:
        """Return the region maps as the networks read them: without edges where they read none."""
        return batch.regions if self.config.discriminator.edges else batch.regions.without_edges()

    def generate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return the images (B, 3, H, W) in [-1, 1]; a VAE's code is its mean, SEAN's styles those of the batch's images."""
        return self.fake(batch, self.regions(batch), networks, sample=False)[0]

    def losses(self, phase: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of "generator" or "discriminator" (see the module's docstring)."""
        if phase not in self.phases:
            raise ValueError(f"phase: expected one of {', '.join(self.phases)}, got {phase!r}")
        return self.generator_losses(batch, step) if phase == "generator" else self.discriminator_losses(batch, step)

    def generator_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the losses of the generator's step."""
        config, real, regions = self.config, batch.image, self.regions(batch)
        mask = batch.pixel_weights() if config.loss_mask == "rare_colours" else None
        fake, losses = self.fake(batch, regions, self.networks, sample=True)
        if config.reuse_fakes:
            self._fakes.keep(step, real, fake.detach())
        judge = self.networks["discriminator"]
        return losses | generator_losses(config, judge, self.perceptual, fake, real, regions, mask=mask)

    def discriminator_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the losses of the discriminator's step."""
        real, regions = batch.image, self.regions(batch)
        fake = self._fakes.take(real)
        if fake is None:
            with torch.no_grad():
                fake = self.fake(batch, regions, self.networks, sample=True)[0]
        return discriminator_losses(self.config, self.networks["discriminator"], fake, real, regions, step)

    def judged(self, batch: Batch, step: int) -> dict[str, Judged]:
        """Return what the discriminator says of a batch, and teaches; nothing in a stage without it."""
        if "discriminator" not in self.phases or not self.phases["discriminator"].on(step):
            return {}
        real, regions = batch.image, self.regions(batch)
        mask = batch.pixel_weights() if self.config.loss_mask == "rare_colours" else None
        with torch.no_grad():
            fake = self.fake(batch, regions, self.networks, sample=True)[0]
        judge = self.networks["discriminator"]
        return {"": judged(self.config, judge, self.perceptual, fake, real, regions, mask=mask)}


class LatentTask(ReconstructionTask):
    """SPADE or CLADE, with the image encoder of a VAE where Config.generator.use_vae."""

    config: SPADEConfig | CLADEConfig

    def make_generators(self) -> dict[str, nn.Module]:
        """Return the generator, and the encoder of a VAE."""
        config = self.config.generator
        generator = spade.SPADEGenerator(config) if isinstance(config, spade.Config) else clade.CLADEGenerator(config)
        networks: dict[str, nn.Module] = {"generator": generator}
        if config.use_vae:
            networks["encoder"] = spade.Encoder(self.config.encoder)
        return networks

    def fake(
        self, batch: Batch, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images, and with a VAE the KLD of the code."""
        if "encoder" not in networks:
            return networks["generator"](regions), {}
        mean, log_variance = networks["encoder"](batch.image)
        code = spade.reparameterize(mean, log_variance) if sample else mean
        return networks["generator"](regions, code), {"kld": self.config.kld * kld_loss(mean, log_variance)}


class SEANTask(ReconstructionTask):
    """SEAN, each region in the style that it has in the image to be made."""

    config: SEANConfig

    def make_generators(self) -> dict[str, nn.Module]:
        """Return the generator, which holds the style encoder."""
        return {"generator": sean.SEANGenerator(self.config.generator)}

    def fake(
        self, batch: Batch, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images."""
        return networks["generator"](regions, batch.image), {}


_DECIDED = tuple(f"generator.{name}" for name in ("label_nc", "image_size", "aspect_ratio"))
_DECIDED += ("discriminator.label_nc", "discriminator.edges", "discriminator.exemplar")
_DECIDED_LATENT = (*_DECIDED, "generator.edges", "encoder.z_dim", "encoder.image_size")

TRAINABLES = {
    "spade": Trainable(SPADEConfig, fitted, LatentTask, _DECIDED_LATENT),
    "clade": Trainable(CLADEConfig, fitted, LatentTask, (*_DECIDED_LATENT, "generator.positional")),
    "sean": Trainable(SEANConfig, fitted, SEANTask, _DECIDED),
}
"""What `mixsyn-fast train` finds here by name."""
