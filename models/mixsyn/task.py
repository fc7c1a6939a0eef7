r"""Training of MixSyn: both generators jointly and end to end, against a discriminator each (sections 3.3 and 4.2.2).

With images I, their masks M, the generated compositions known M' = G_M(M') and random M'' = G_M(M''), a step minimises

    structure:  \lambda_A L_A (Eq. 1) + \lambda_R || M - G_M(M') ||_1                                              (Eq. 2)
    style:      \lambda_A L_A (Eq. 3) + \lambda_S L_S (Eq. 4) + \lambda_R L_R (Eq. 5)                              (Eq. 6)

on known images G_I(I, M), approximated ones G_I(I, M') and random ones G_I(I*, M''). The gradient of the images reaches the
structure generator through the soft map that normalisation and segments read.

Algebra (docs/exact_algebra.md, 9): codes depend on one picture and one region, so a random composition *gathers* codes that
the known one has computed already, structure and style; no encoder runs twice on the same segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.region_map import RegionMap

from ..discriminators import logits_of
from ..losses import (
    composition_cross_entropy,
    composition_l1_loss,
    dice_loss,
    feature_matching_loss,
    log_loss,
    r1_due,
    r1_penalty,
    style_code_loss,
)
from ..losses.at_once import at_once
from ..losses.perceptual import perceptual_loss, without_missing_vgg
from ..training.judged import Judged, image_gradients
from ..training.task import Kept, Phase, Task, Trainable
from .compositions import Composition, known_compositions, random_compositions
from .config import Config, Size
from .discriminator import Discriminator, Features, PatchJudge, image_discriminator, mean_logits
from .structure import StructureGenerator
from .style import StyleGenerator

if TYPE_CHECKING:
    from ..data import Batch

GENERATORS = ("structure_generator", "style_generator")
_CELL = 8  # pixels over which Config.colour takes means
DISCRIMINATORS = ("structure_discriminator", "image_discriminator")


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with what the data decides: names of the regions, and (H, W) of the images.

    Raises:
        ValueError: sizes that the networks cannot halve evenly, names in `coupled` that the data does not have, fewer than
            two regions.
    """
    del edges  # compositions know regions, no instances
    return without_missing_vgg(replace(config, classes=tuple(classes), image_size=(int(size[0]), int(size[1]))))


def softened(maps: Tensor, times: int) -> Tensor:
    """Return maps (B, N, H, W) blurred so many times by [1 2 1] / 4 both ways, the border repeated: sums of weights stay."""
    for _ in range(times):
        wide = F.pad(maps, (1, 1, 1, 1), mode="replicate")
        maps = F.avg_pool2d(F.avg_pool2d(wide, 2, stride=1), 2, stride=1)
    return maps


class Made(NamedTuple):
    """What the generators make of a batch of B pictures; without random compositions the last B of everything lack."""

    compositions: Tensor
    """(2 B, N, H, W) soft: known, then random."""
    images: Tensor | None
    """(3 B, 3, H, W): known, approximated, random; None where only the structure was asked for."""
    codes: Tensor | None
    """(2 B, N, delta): the style matrices of the approximated and the random images."""
    present: Tensor
    """(2 B, N) bool: the regions of the known and the random compositions."""


def _judged(logits: Tensor | list[Tensor], gan: dict[str, Tensor], others: dict[str, Tensor], made: Tensor) -> Judged:
    """Return what was said of B real ones, and what losses ask of the n B that were made, n sets of B in a row."""
    said = mean_logits(logits)

    def norms(losses: dict[str, Tensor]) -> Tensor | None:
        if not losses:
            return None
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        found: Tensor = image_gradients(total, made).view(-1, len(said)).norm(dim=0)
        return found

    return Judged(said, norms(gan), norms(others))


class MixSynTask(Task):
    """Networks "structure_generator", "style_generator" and their discriminators; phases "generators", "discriminators".

    Staged, every network is a phase of its own, named as it: both of the structure end with its stage, and the structure
    generator is then held at its averaged weights, which are those used.

    Args:
        config: fitted settings (`fitted`).
        training: False builds only the generators.

    Raises:
        FileNotFoundError, ValueError: the VGG weights, where Config.vgg asks for them.
    """

    def __init__(self, config: Config, training: bool = True) -> None:
        self.config = config
        self.num_regions = len(config.classes)
        self.classes = config.classes
        style = StyleGenerator(config)
        self.networks: dict[str, nn.Module] = {"structure_generator": StructureGenerator(config), "style_generator": style}
        self.averaged = GENERATORS
        self.plans = style.plans
        self.phases = {}
        self.perceptual = perceptual_loss(config, config.vgg_taps) if training else None
        if training:
            size = config.image_size
            self.networks["structure_discriminator"] = Discriminator(self.num_regions, size, config.structure_discriminator)
            self.networks["image_discriminator"] = image_discriminator(config)
            self._add_phases()
        if config.training == "staged":
            self.begins_with = () if config.structure_steps else GENERATORS[:1]
            self.first_steps = {"style_generator": config.structure_steps}
            self.best_from = config.structure_steps
        self._made: Kept[Made] = Kept()

    def _add_phases(self) -> None:
        config = self.config
        settings: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
        rates = (config.generator_lr, config.discriminator_lr)
        if config.training == "joint":
            self.phases = {
                name: Phase(networks, lr=lr, **settings)
                for name, networks, lr in zip(
                    ("generators", "discriminators"), (GENERATORS, DISCRIMINATORS), rates, strict=True
                )
            }
            return
        first = config.structure_steps
        for stage, (start, stop) in enumerate(((0, first), (first, None))):
            for networks, lr in zip((GENERATORS, DISCRIMINATORS), rates, strict=True):
                if start != stop:
                    self.phases[networks[stage]] = Phase(
                        networks[stage : stage + 1], lr=lr, start=start, stop=stop, **settings
                    )

    def to(self, device: torch.device) -> None:
        """Move the networks and the feature network."""
        super().to(device)
        if self.perceptual is not None:
            self.perceptual.to(device)

    # --- what the generators make ---------------------------------------------------------------------------------------

    def stages(self, step: int) -> tuple[bool, bool]:
        """Return whether the structure and the style are trained in a step."""
        first = step < self.config.structure_steps
        return (True, True) if self.config.training == "joint" else (first, not first)

    def make(
        self,
        batch: Batch,
        networks: Mapping[str, nn.Module],
        random: Composition | None,
        *,
        structure_gradient: bool = True,
        images: bool = True,
    ) -> Made:
        """Make compositions and images of a batch.

        Args:
            batch: pictures and masks.
            networks: the two generators.
            random: the random compositions; None for known ones only.
            structure_gradient: False holds the compositions fixed.
            images: False makes compositions only.
        """
        structure, style = networks["structure_generator"], networks["style_generator"]
        assert isinstance(structure, StructureGenerator) and isinstance(style, StyleGenerator)
        regions, image, count = batch.regions.without_edges(), batch.image, len(batch)
        chosen = [known_compositions(regions.areas() > 0), *([] if random is None else [random])]
        present = torch.cat([each.present for each in chosen])
        with torch.set_grad_enabled(torch.is_grad_enabled() and structure_gradient):
            codes = structure.encode(regions)
            compositions = structure.decode(torch.cat([codes, *(each.gather(codes) for each in chosen[1:])]))
        if not images:
            return Made(compositions, None, None, present)
        soft = RegionMap.soft(compositions, check=False)
        own = style.encode(image, regions)
        approximated = style.encode(image, RegionMap.soft(compositions[:count], check=False), present=present[:count])
        codes = torch.cat([approximated, *(each.gather(own) for each in chosen[1:])])
        return Made(compositions, torch.cat((style(regions, own), style(soft, codes))), codes, present)

    def _random(self, regions: RegionMap, generator: torch.Generator | None = None) -> Composition:
        return random_compositions(regions.areas() > 0, self.config.groups, generator)

    # --- losses ---------------------------------------------------------------------------------------------------------

    def losses(self, phase: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of generators or discriminators (see the module's docstring)."""
        if phase not in self.phases:
            raise ValueError(f"phase: expected one of {', '.join(self.phases)}, got {phase!r}")
        generates = any(name in GENERATORS for name in self.phases[phase].networks)
        return self.generator_losses(batch, step) if generates else self.discriminator_losses(batch, step)

    def generator_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the losses of the generators' step: Eq. 2 and Eq. 6."""
        train_structure, train_style = self.stages(step)
        if len(batch) < 2:
            raise ValueError(
                "batch_size: expected at least 2 pictures per process and micro-batch, for random compositions mix the "
                f"pictures of one, got {len(batch)}"
            )
        made = self.make(
            batch, self.networks, self._random(batch.regions), structure_gradient=train_structure, images=train_style
        )
        if self.config.reuse_fakes:
            kept = Made(*(None if part is None else part.detach() for part in made))  # type: ignore[arg-type]
            self._made.keep(step, batch.image, kept)
        losses = self.structure_losses(batch, made) if train_structure else {}
        return losses | (self.style_losses(batch, made) if train_style else {})

    def structure_losses(self, batch: Batch, made: Made) -> dict[str, Tensor]:
        """Return the generator's part of Eq. 1, and the reconstruction of Eq. 2."""
        config, count, judge = self.config, len(batch), self.networks["structure_discriminator"]

        def judged(compositions: Tensor) -> dict[str, Tensor]:
            known, random = judge(compositions).chunk(2)
            loss = log_loss.mask_generator_loss(known, random, alpha=config.alpha, saturating=config.saturating)
            return {"structure_gan": config.adversarial * loss}

        losses = at_once(judged, made.compositions) if config.adversarial else {}
        known, labels = made.compositions[:count], batch.regions.labels_at()
        bound = config.structure_balance
        if config.structure_reconstruction and bound > 1:
            losses["structure_l1"] = config.structure_reconstruction * composition_l1_loss(known, labels, bound)
        elif config.structure_reconstruction:  # the paper's: over all pixels, of no region as well
            distance = (known - batch.regions.without_edges().onehot(dtype=known.dtype)).abs().sum(1)  # of a pixel: 0 to 2
            losses["structure_l1"] = config.structure_reconstruction * distance.mean()
        if config.structure_cross_entropy:
            distance = composition_cross_entropy(known, labels, bound)
            losses["structure_cross_entropy"] = config.structure_cross_entropy * distance
        if config.structure_dice:
            losses["structure_dice"] = config.structure_dice * dice_loss(known, labels)
        return losses

    def _judged_maps(self, batch: Batch, compositions: Tensor | None = None, known: int = 1) -> RegionMap | None:
        """Return the hard maps that D_I sees beside images, None for a judge that sees images alone.

        Args:
            batch: B pictures.
            compositions: (n B, N, H, W) of further images, whose strongest regions are their maps: that way no map is soft,
                which would tell a generated image without a look at it.
            known: so many times the batch's own maps come first.
        """
        judge = self.networks["image_discriminator"]
        assert isinstance(judge, (Discriminator, PatchJudge))
        if not judge.sees_map:
            return None
        own = batch.regions.labels_at()
        labels = [own] * known + ([] if compositions is None else [compositions.detach().argmax(1).to(own.dtype)])
        return RegionMap(torch.cat(labels), self.num_regions, ignore_index=-1)

    def style_losses(self, batch: Batch, made: Made, *, adversarial: bool = True, others: bool = True) -> dict[str, Tensor]:
        """Return the generator's part of Eq. 3, the style loss (Eq. 4) and the reconstruction (Eq. 5).

        Args:
            batch: pictures and masks.
            made: what the generators make of it.
            adversarial: False leaves the adversarial loss out.
            others: False leaves all others out.
        """
        config, count, judge = self.config, len(batch), self.networks["image_discriminator"]
        assert made.images is not None and made.codes is not None
        perceptual, real = self.perceptual, batch.image
        fools, matches = adversarial and config.adversarial > 0, others and config.feature_matching > 0
        maps = self._judged_maps(batch, made.compositions)
        iterating, wanted = judge.training, None
        if matches:
            with torch.no_grad():
                wanted = judge(real, self._judged_maps(batch), all_layers=True)

        def judged(images: Tensor) -> dict[str, Tensor]:
            # one power iteration per phase, and the same weights for real and generated images
            judge.train(iterating and wanted is None)
            features: Features = judge(images, maps, all_layers=True)
            judge.train(iterating)
            found: dict[str, Tensor] = {}
            if fools:
                known, approximated, random = logits_of(features, 3)
                loss = log_loss.image_generator_loss(
                    known, approximated, random, beta=config.beta, eta=config.eta, saturating=config.saturating
                )
                found["image_gan"] = config.adversarial * loss
            if wanted is not None:
                times = 2 if config.feature_matching_images == "both" else 1
                anew = [[layer[: times * count] for layer in scale] for scale in features]
                aims = [[torch.cat((layer,) * times) for layer in scale] for scale in wanted]
                found["feature_matching"] = config.feature_matching * feature_matching_loss(aims, anew)
            return found

        losses = at_once(judged, made.images) if fools or matches else {}
        if not others:
            return losses
        reconstructed = made.images[: 2 * count]
        twice = torch.cat((real, real))
        if config.reconstruction:
            losses["image_l1"] = config.reconstruction * (reconstructed - twice).abs().mean()
        if config.colour:
            cells = F.avg_pool2d(reconstructed - twice, _CELL)
            losses["colour"] = config.colour * cells.abs().mean()
        if perceptual is not None:
            first = 2 * count if config.vgg_images == "both" else count
            losses |= at_once(lambda images: {"vgg": config.vgg * perceptual(images, twice[:first])}, reconstructed[:first])
        if config.style_weight:
            style = self.networks["style_generator"]
            assert isinstance(style, StyleGenerator)
            again = style.encode(made.images[count:], RegionMap.soft(made.compositions, check=False), present=made.present)
            # the mean over approximated and random images is the half of the sum in Eq. 4
            loss = style_code_loss(again, made.codes.detach(), made.present)
            losses["style"] = config.style_weight * loss
        return losses

    def discriminator_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the losses of the discriminators' step: -L_A of Eq. 1 and Eq. 3, and R1."""
        config, count = self.config, len(batch)
        train_structure, train_style = self.stages(step)
        made = self._made.take(batch.image)
        if made is None:
            with torch.no_grad():
                made = self.make(batch, self.networks, self._random(batch.regions), images=train_style)
        losses: dict[str, Tensor] = {}
        penalise = config.r1 > 0 and r1_due(step, config.r1_every)
        if train_structure:
            judge = self.networks["structure_discriminator"]
            real = softened(batch.regions.without_edges().onehot(dtype=made.compositions.dtype), config.soften_real)
            logits, known, random = judge(torch.cat((real, made.compositions))).split(count)
            losses["structure_gan"] = log_loss.mask_discriminator_loss(logits, known, random, alpha=config.alpha)
            if penalise:
                losses["structure_r1"] = r1_penalty(judge, real, gamma=config.r1, interval=config.r1_every)
        if train_style:
            assert made.images is not None
            judge, real = self.networks["image_discriminator"], batch.image
            maps = self._judged_maps(batch, made.compositions, known=2)
            features = judge(torch.cat((real, made.images.to(real.dtype))), maps, all_layers=True)
            parts = logits_of(features, 4)
            losses["image_gan"] = log_loss.image_discriminator_loss(*parts, beta=config.beta, eta=config.eta)
            if penalise:
                own = self._judged_maps(batch)
                losses["image_r1"] = r1_penalty(
                    lambda images: judge(images, own, differentiable_twice=True),
                    real,
                    gamma=config.r1,
                    interval=config.r1_every,
                )
        return losses

    # --- looking at it --------------------------------------------------------------------------------------------------

    def judged(self, batch: Batch, step: int) -> dict[str, Judged]:
        """Return what the discriminators say of a batch's masks, "structure_", and pictures, "image_", and teach.

        By the compositions (known and random) and the images (known, approximated, random): their gradients together.
        """
        train_structure, train_style = self.stages(step)
        with torch.no_grad():
            made = self.make(batch, self.networks, self._random(batch.regions), images=train_style)
        found = {}
        if train_structure:
            regions = batch.regions.without_edges()
            compositions = made.compositions.detach().requires_grad_(True)
            real = softened(regions.onehot(dtype=compositions.dtype), self.config.soften_real)
            with torch.no_grad():
                logits = self.networks["structure_discriminator"](real)
            losses = self.structure_losses(batch, made._replace(compositions=compositions))
            gan = {name: losses.pop(name) for name in ("structure_gan",) if name in losses}
            found["structure_"] = _judged(logits, gan, losses, compositions)
        if train_style:
            assert made.images is not None
            images = made.images.detach().requires_grad_(True)
            made = made._replace(images=images)
            with torch.no_grad():
                logits = self.networks["image_discriminator"](batch.image, self._judged_maps(batch))
            # apart, for the gradient of all that a discriminator takes part in is taken at once
            gan = self.style_losses(batch, made, others=False)
            found["image_"] = _judged(logits, gan, self.style_losses(batch, made, adversarial=False), images)
        return found

    def generate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return the approximated images (B, 3, H, W): every picture made anew, of its own codes and composition."""
        made = self.make(batch, networks, None)
        assert made.images is not None
        return made.images[len(batch) :]

    def validate(self, batch: Batch, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return PSNR in dB, SSIM and L1 of approximated ("psnr") and known images, and the composition's pixel accuracy."""
        from ..metrics.pixels import psnr, ssim

        made, real = self.make(batch, networks, None), batch.image
        assert made.images is not None
        known, approximated = made.images.clamp(-1, 1).chunk(2)
        labels = batch.regions.labels_at()
        right = (made.compositions.argmax(1) == labels) & (labels >= 0)
        return {
            "psnr": psnr(approximated, real),
            "ssim": ssim(approximated, real),
            "l1": (approximated - real).abs().mean((1, 2, 3)),
            "known_psnr": psnr(known, real),
            "known_ssim": ssim(known, real),
            "structure_accuracy": right.sum((1, 2)) / (labels >= 0).sum((1, 2)).clamp(min=1),
        }

    def sheet(self, batch: Batch, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows: image, masks, known composition, known and approximated image, random composition and image."""
        from ..data import colorize
        from ..sheets import to_uint8

        count, generator = len(batch), torch.Generator().manual_seed(int(batch.index.sum()))  # the same every time
        made = self.make(batch, networks, self._random(batch.regions, generator))
        assert made.images is not None
        images = to_uint8(made.images)
        maps = np.concatenate((batch.regions.labels_at().cpu().numpy(), made.compositions.argmax(1).cpu().numpy()))
        coloured = [colorize(each, self.num_regions) for each in maps]
        return [
            [
                image,
                *coloured[i : 2 * count : count],
                *images[i : 2 * count : count],
                coloured[i + 2 * count],
                images[i + 2 * count],
            ]
            for i, image in enumerate(to_uint8(batch.image))
        ]


TRAINABLES = {"mixsyn": Trainable(Config, fitted, MixSynTask, ("classes", "image_size"))}
"""What `mixsyn-fast train` finds here by name."""
