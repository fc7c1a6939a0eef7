"""The networks of the class- and layer-wise VAE: encoder of a code per class and level, SPADE generator that reads them.

Names of modules and of state_dict entries are the published ones. No map of latent codes exists anywhere: a block gets a
table of vectors, one per class (Eq. 12), and its normalisations put them into their pattern tables (docs/exact_algebra.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.layers import ClassCodes, ClassEmbedding, ClassLatents, SPADENorm
from mixsyn_fast.region_map import RegionMap

from ..blocks import SLOPE, RegionGenerator, SpectralConv2d
from ..losses import kld_loss
from ..spade import reparameterize
from .config import EncoderConfig, GeneratorConfig


class Codes(NamedTuple):
    """All codes of a batch: what the generator makes an image of, beside the label map."""

    z: Tensor
    """(B, z_dim), global: z_1."""
    classes: tuple[Tensor, ...]
    """(B, K, N) per level of `levels`, from the finest: Z_L first. One for all classes is repeated."""


class Latents(NamedTuple):
    """Distributions of all codes of a batch, Eq. 13."""

    mean: Tensor
    """(B, z_dim) of the global code."""
    log_variance: Tensor
    """(B, z_dim)."""
    classes: ClassLatents | None
    """Of the classes, per level; None where there are no such levels."""

    def codes(self, num_classes: int, *, sample: bool) -> Codes:
        """Return codes: drawn by the reparametrisation trick (absent classes from the prior), or the means.

        Args:
            num_classes: K; a code for all classes is repeated as often.
            sample: draw.
        """
        z = reparameterize(self.mean, self.log_variance) if sample else self.mean
        found: Sequence[Tensor] = ()
        if self.classes is not None:
            found = self.classes.sample() if sample else self.classes.mean
        return Codes(z, tuple(codes.expand(-1, num_classes, -1) for codes in found))

    def kld(self) -> Tensor:
        """Return the divergence from the prior, averaged over images, a scalar: Eq. 18."""
        total = kld_loss(self.mean, self.log_variance)
        return total if self.classes is None else total + self.classes.kld() / max(self.mean.shape[0], 1)


class Encoder(ClassCodes):
    """Image (B, 3, H, W) and its label map -> the distributions of all codes (Fig. 5, Eq. 14 to 17).

    Strided convolutions with instance norm; at every level the maximum over each region of the values before the activation,
    and linear maps that all classes share; the global code from the last level. With fewer levels than six, features are
    pooled to the 4 x 4 of six before the global code (Sec. 4.3.1).
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        config = config or EncoderConfig()
        widths = config.widths[: config.depth + 1]
        if config.levels:
            channels = [widths[level] for level in config.levels]
            super().__init__(channels, config.code_length, negative_slope=SLOPE)
        else:
            nn.Module.__init__(self)
        self.config = config
        kind = SpectralConv2d if config.spectral_norm else nn.Conv2d
        for i in range(config.depth):
            conv = kind(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False)
            self.add_module(f"layer{i + 1}", nn.Sequential(conv, nn.InstanceNorm2d(widths[i + 1], affine=False)))
        self.fc_mu = nn.Linear(widths[-1] * 4 * 4, config.z_dim)
        self.fc_var = nn.Linear(widths[-1] * 4 * 4, config.z_dim)

    def forward(self, image: Tensor, regions: RegionMap) -> Latents:  # type: ignore[override]
        """Return the distributions of the codes of an image.

        Args:
            image: (B, 3, H, W) in [-1, 1], resized (bilinear) to the encoder's size.
            regions: hard label map of the images.

        Raises:
            ValueError: a batch that differs, or a soft map.
        """
        side = self.config.image_size
        x = image if image.shape[2:] == (side, side) else F.interpolate(image, size=(side, side), mode="bilinear")
        levels = []
        for i in range(1, self.config.depth + 1):
            before = getattr(self, f"layer{i}")(x)
            if i in self.config.levels:
                levels.append(before)
            x = F.leaky_relu(before, SLOPE)
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        mean, log_variance = self.fc_mu(x), self.fc_var(x)
        if not levels:
            return Latents(mean, log_variance, None)
        if not self.config.class_wise:  # the whole image is one region
            whole = torch.zeros((image.shape[0], 1, 1), dtype=torch.int64, device=image.device)
            regions = RegionMap(whole, 1)
        return Latents(mean, log_variance, super().forward(levels, regions))


class Generator(RegionGenerator):
    """SPADE generator whose blocks read vectors of classes, embedding plus latent code (Fig. 3, 4 and Eq. 10, 12).

    forward(regions, codes=None): `regions` is a RegionMap of K = Config.label_nc regions or a float map (B, K, h, w),
    one-hot or soft, of any size (in a soft one the vectors are mixed by weight); `codes` as `Encoder` gives them, drawn from
    the prior (Eq. 3, 11) when left out. Returns (B, 3, H, W) in (-1, 1). Raises ValueError for a map or codes that do not
    fit.
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        config = config or GeneratorConfig()
        length = config.vector_length

        def make_norm(channels: int, block: str) -> nn.Module:
            inputs = length if block in config.level_of_block else config.label_nc
            return SPADENorm(channels, inputs, norm=config.norm, hidden=config.hidden, kernel_size=config.kernel_size)

        super().__init__(config, make_norm, z_dim=config.z_dim)
        self.blocks_of_vectors = frozenset(config.level_of_block)
        if config.levels:
            self.embedding = ClassEmbedding(config.label_nc, length)

    def prior(self, batch: int, generator: torch.Generator | None = None) -> Codes:
        """Draw codes from N(0, I), Eq. 3 and 11, on the CPU: the same ones on every device.

        Args:
            batch: B.
            generator: source of the numbers; None for torch's default.
        """
        weight = self.fc.weight
        assert isinstance(weight, Tensor)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(weight)

        classes = self.config.label_nc if self.config.class_wise else 1
        shapes = [(batch, classes, self.config.vector_length) for _ in self.config.levels]
        z = draw(batch, self.config.z_dim)
        return Codes(z, tuple(draw(*shape).expand(-1, self.config.label_nc, -1) for shape in shapes))

    def forward_features(
        self,
        regions: RegionMap | Tensor,
        codes: Codes | None = None,
        *,
        first: str | None = None,
        inputs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the output before tanh, (B, 3, H, W).

        Args:
            regions: as for `forward`.
            codes: likewise.
            first: block to begin with, from its input in `inputs`: right where the codes of all blocks before it are what
                they were then.
            inputs: receives the input of every block that runs.
        """
        regions = self.region_map(regions)
        codes = self.prior(regions.batch_size) if codes is None else codes
        levels = self.config.levels
        if len(codes.classes) != len(levels):
            raise ValueError(f"codes: expected {len(levels)} levels of codes of classes, got {len(codes.classes)}")
        if first is None or inputs is None:
            first, x = None, self.first_layer(regions, codes.z)
        else:
            x = inputs[first]
        running = self.block_names[self.block_names.index(first) if first else 0 :]
        level_of = {name: level for name, level in self.config.level_of_block.items() if name in running}
        given = dict(zip(levels, codes.classes, strict=True))
        vectors = {level: self.embedding(given[level]) for level in dict.fromkeys(level_of.values())}
        of_block = {name: {"class_vectors": vectors[level]} for name, level in level_of.items()}
        return self.blocks_and_image(x, regions, of_block=of_block, first=first, inputs=inputs)

    def forward(self, regions: RegionMap | Tensor, codes: Codes | None = None) -> Tensor:
        """Return the image (B, 3, H, W) in (-1, 1)."""
        return torch.tanh(self.forward_features(regions, codes))


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is one of the generator."""
    return "embedding.weight" in state and "head_0.norm_0.mlp_shared.0.weight" in state


def config_from_state(state: Mapping[str, Tensor], **given: Any) -> GeneratorConfig:
    """Return the settings that the shapes of a generator's state_dict imply; `given` fields win.

    The file states neither image size, aspect ratio, "normal" against "more" upsampling, nor, where codes are as long as
    there are classes, how many levels have one: give them where they differ from the defaults.
    """
    most = any(name.startswith("up_4.") for name in state)
    classes, length = state["embedding.weight"].shape
    fields: dict[str, Any] = {
        "label_nc": classes,
        "code_length": length if length != classes else 0,
        "ngf": state["conv_img.weight"].shape[1] * (2 if most else 1),
        "hidden": state["head_0.norm_0.mlp_shared.0.weight"].shape[0],
        "kernel_size": state["head_0.norm_0.mlp_shared.0.weight"].shape[2],
        "norm": "batch" if "head_0.norm_0.param_free_norm.running_mean" in state else "instance",
        "z_dim": state["fc.weight"].shape[1],
    }
    if most:
        fields["num_upsampling_layers"] = "most"
    return GeneratorConfig(**(fields | given))


def encoder_recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is one of the encoder."""
    return "fc_mu1.weight" in state and any(name.startswith("layer1.0.weight") for name in state)


def encoder_config_from_state(state: Mapping[str, Tensor], **given: Any) -> EncoderConfig:
    """Return the settings that the shapes of an encoder's state_dict imply; `given` fields win."""
    first = next(value for name, value in state.items() if name in ("layer1.0.weight", "layer1.0.weight_orig"))
    fields: dict[str, Any] = {
        "ndf": first.shape[0],
        "z_dim": state["fc_mu.weight"].shape[0],
        "code_length": state["fc_mu1.weight"].shape[0],
        "num_levels": sum(name.startswith("fc_mu") and name.endswith(".weight") for name in state),
        "image_size": 256 if any(name.startswith("layer6.") for name in state) else 128,
    }
    return EncoderConfig(**(fields | given))
