"""Settings of MixSyn: the two generators, the two discriminators, the losses.

The paper's supplement with the layers is not available, nor are the weights of the losses; README.md says what was chosen
and why. Widths, sizes, weights and rates are fields here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..settings import one_of
from .compositions import coupled_groups

Size = tuple[int, int]


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {getattr(config, name)}")


@dataclass(frozen=True)
class StructureConfig:
    """The structure generator G_M: one encoder per region, one decoder."""

    width: int = 16  # channels of an encoder's first convolution; doubled by every further halving
    code_channels: int = 128  # channels of a structure code (paper: 16 x 16 x 128)
    code_size: int = 16  # shorter side of a structure code in pixels
    decoder_width: int = 256  # channels of the decoder at the size of the codes; halved by every doubling
    decoder_smallest: int = 32  # at least so many channels in the decoder
    spectral_norm: bool = True  # spectral norm of all convolutions but the last; False for use without training (folded)

    def __post_init__(self) -> None:
        """Check every field once."""
        _positive(self, "width", "code_channels", "code_size", "decoder_width", "decoder_smallest")


@dataclass(frozen=True)
class StyleConfig:
    """The style generator G_I: one encoder per segment, one generator with region-adaptive normalisation."""

    code_length: int = 512  # delta, the length of a region's style code
    encoder_width: int = 16  # channels of a segment encoder's first convolution; doubled by every further halving
    encoder_largest: int = 128  # at most so many channels in a segment encoder
    encoder_halvings: int = 4
    """halvings, the first convolution's included, before a segment's features are averaged over its region"""
    width: int = 64  # channels of the generator at full size; doubled by every halving
    largest: int = 512  # at most so many channels in the generator
    start_size: int = 8  # shorter side in pixels at which the generator begins
    hidden: int = 64  # width of the hidden layer of the composition's part of the normalisation
    normalisation: Literal["region_adaptive", "global"] = "region_adaptive"  # global: one style per image
    spectral_norm: bool = True  # spectral norm of encoders, first convolution and MS blocks; False for use without training
    noise: bool = False  # noise per pixel before every normalisation, as SEAN has it: drawn in training, fixed in use
    noise_seed: int = 0  # of the noise in use: the same for every picture, so that an edit keeps it
    soft_resize: Literal["nearest", "area"] = "nearest"  # how soft compositions are brought to the size of a level
    painted: Literal["soft", "hard"] = "soft"
    """what is painted of a composition in use: its weights, or each pixel's strongest region; training paints weights"""

    def __post_init__(self) -> None:
        """Check every field once."""
        _positive(self, "code_length", "encoder_width", "encoder_largest", "encoder_halvings", "width", "largest")
        _positive(self, "start_size", "hidden")
        one_of(self, normalisation=("region_adaptive", "global"), painted=("soft", "hard"), soft_resize=("nearest", "area"))
        if not 0 <= self.noise_seed < 2**31:
            raise ValueError(f"noise_seed: expected a number in [0, 2^31), got {self.noise_seed}")
        if self.noise and self.normalisation == "global":
            raise ValueError("noise: expected normalisation 'region_adaptive', which adds it, got 'global'")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A discriminator of MS blocks, or of images one of patches."""

    width: int = 32  # channels of the first convolution; doubled by every halving
    largest: int = 512  # at most so many channels (blocks)
    end_size: int = 4  # shorter side in pixels at which halving ends (blocks)
    kind: Literal["blocks", "patches"] = "blocks"  # patches: SEAN's, a logit for every patch at `scales` sizes; images alone
    spectral: bool = True  # spectral norm of all convolutions; without it they begin He-normal (patches: the hidden ones)
    norm: Literal["none", "instance"] = "none"  # normalisation inside
    scales: int = 2  # patches: discriminators, each on images of half the size of the one before
    layers: int = 4  # patches: hidden layers, all but the last of which halve the size
    sees_map: bool = False  # patches: judge an image beside its label map, a composition's being its strongest regions

    def __post_init__(self) -> None:
        """Check every field once."""
        _positive(self, "width", "largest", "end_size", "scales", "layers")
        one_of(self, kind=("blocks", "patches"), norm=("none", "instance"))
        if self.sees_map and self.kind != "patches":
            raise ValueError(f"sees_map: expected kind 'patches', which can see it, got {self.kind!r}")


@dataclass(frozen=True)
class Config:
    """Settings of MixSyn and its training; classes and image_size follow from the data."""

    classes: tuple[str, ...] = ()  # names of the N regions; none: not known yet (networks need them)
    image_size: Size = (256, 256)  # height and width of masks and images in pixels
    coupled: str = "auto"  # regions that a random composition takes from one source: auto, none, or a+b,c+d+e
    structure: StructureConfig = field(default_factory=StructureConfig)  # structure generator
    style: StyleConfig = field(default_factory=StyleConfig)  # style generator
    structure_discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(largest=256))
    """judge of compositions"""
    image_discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)  # judge of images
    adversarial: float = 1.0  # lambda_A, weight of the adversarial losses, for the generators
    reconstruction: float = 10.0  # lambda_R, weight of the L1 reconstruction of images; 0: none
    structure_reconstruction: float = 10.0  # weight of the L1 reconstruction of compositions (0 to 2 a pixel); 0: none
    style_weight: float = 1.0  # lambda_S, weight of the style loss; 0: none
    alpha: float = 0.5  # share of known compositions among the fake ones (Eq. 1)
    beta: float = 0.6  # weight of real images against all fakes (Eq. 3)
    eta: float = 0.5  # weight of known and approximated images each, against 1 - eta of random ones (Eq. 3)
    saturating: bool = False  # generators minimise log(1 - D) as written, instead of maximising log D
    r1: float = 1.0  # gamma of the R1 gradient penalty of both discriminators; 0: none
    r1_every: int = 16  # steps between two R1 penalties, each this many times as strong
    vgg: float = 0.0  # weight of a perceptual loss beside the L1 reconstruction of images (none in the paper)
    vgg_weights: str = "auto"  # file with VGG-19 or VGG-16 for it; auto: one that is on this machine
    generator_lr: float = 1e-4  # learning rate of G_M and G_I
    discriminator_lr: float = 3e-4  # learning rate of D_M and D_I
    betas: tuple[float, float] = (0.0, 0.999)  # Adam's decay rates
    weight_decay: float = 1e-4  # decay of all weights (L2)
    training: Literal["joint", "staged"] = "joint"  # staged: the structure alone first, then the style alone
    structure_steps: int = 1000  # steps of the first stage, where training is staged; the rest are the style's
    reuse_fakes: bool = True  # discriminators judge what the generators' step made; False: made anew, a pass more
    feature_matching: float = 0.0  # weight of feature matching of images that are made anew (none in the paper)
    vgg_taps: int = 5  # activations of VGG that the perceptual loss compares, from relu1_1 on, one per block: 1 to 5
    vgg_images: Literal["both", "known"] = "both"  # images of the perceptual loss: known and approximated, or known alone
    structure_cross_entropy: float = 0.0  # weight of the cross-entropy of known compositions (none in the paper)
    structure_dice: float = 0.0  # weight of the Dice loss of known compositions (none in the paper)
    structure_balance: float = 1.0
    """in L1 and cross-entropy of compositions a pixel counts up to so many times as much, or as little, as others, by
    how rare its region is in the batch; 1: all the same"""
    soften_real: int = 0  # times that real maps are blurred by [1 2 1] / 4 before D_M sees them, as compositions are soft
    feature_matching_images: Literal["both", "known"] = "known"
    """images of feature matching: known and approximated, or known alone"""
    colour: float = 0.0
    """weight of the L1 distance of images' means over 8 x 8 pixels: of colours, not of detail (none in the paper)"""

    def __post_init__(self) -> None:
        """Check every field once."""
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size: expected two positive numbers (H, W), got {self.image_size}")
        for name in (
            "adversarial",
            "reconstruction",
            "structure_reconstruction",
            "style_weight",
            "r1",
            "vgg",
            "weight_decay",
            "feature_matching",
            "colour",
            "structure_cross_entropy",
            "structure_dice",
            "soften_real",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number that is not negative, got {getattr(self, name)}")
        for name in ("alpha", "beta", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        _positive(self, "r1_every", "generator_lr", "discriminator_lr")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        if self.vgg_taps not in range(1, 6):
            raise ValueError(f"vgg_taps: expected 1 to 5, got {self.vgg_taps}")
        if not 1 <= self.structure_balance < math.inf:
            raise ValueError(f"structure_balance: expected at least 1, got {self.structure_balance}")
        one_of(self, vgg_images=("both", "known"), feature_matching_images=("both", "known"))
        if self.structure_discriminator.kind != "blocks":
            raise ValueError("structure_discriminator.kind: expected 'blocks', for patches are of images, got 'patches'")
        structure = self.adversarial or self.structure_reconstruction or self.structure_cross_entropy or self.structure_dice
        style = self.adversarial or self.reconstruction or self.style_weight or self.vgg or self.feature_matching
        style = style or self.colour
        if not (structure and style if self.training == "staged" else structure or style):
            raise ValueError(
                "adversarial, structure_reconstruction, structure_cross_entropy, structure_dice, reconstruction, "
                "style_weight, vgg, feature_matching, colour: expected a weight above 0"
                + (" for either stage" if self.training == "staged" else "")
            )
        if self.structure_steps < 0:
            raise ValueError(f"structure_steps: expected 0 or more, got {self.structure_steps}")
        if self.classes:
            self._check_with_data()

    def _check_with_data(self) -> None:
        """Check what depends on regions and image size, which only the data decides."""
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected two or more different names, got {', '.join(self.classes)}")
        coupled_groups(self.classes, self.coupled)
        blocks = self.image_discriminator.kind == "blocks"
        for name, end in (
            ("structure.code_size", self.structure.code_size),
            ("style.start_size", self.style.start_size),
            ("structure_discriminator.end_size", self.structure_discriminator.end_size),
            *([("image_discriminator.end_size", self.image_discriminator.end_size)] if blocks else []),
            ("style.encoder_halvings", min(self.image_size) / 2**self.style.encoder_halvings),
        ):
            if halvings(self.image_size, end, name) < 1:
                raise ValueError(f"{name}: expected less than the image's {min(self.image_size)} pixels, got {end:g}")

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Coupled regions, see `coupled_groups`."""
        return coupled_groups(self.classes, self.coupled)


def halvings(size: Size, end: float, name: str) -> int:
    """Return how often the shorter side of (H, W) is halved to be `end` pixels.

    Raises:
        ValueError: the sides do not come out even; the message names `name`.
    """
    count = 0 if end <= 0 else round(math.log2(min(size) / end)) if min(size) >= end else -1
    if count < 0 or end != min(size) / 2**count or any(side % 2**count for side in size) or end < 2:
        raise ValueError(
            f"{name}: expected 2 or more pixels that halving the image's {size[0]} x {size[1]} comes to evenly, got {end:g}"
        )
    return count
