"""SPADE: the generator, and the image encoder of its VAE.

Park, Liu, Wang, Zhu: Semantic Image Synthesis with Spatially-Adaptive Normalization, CVPR 2019. Names of
modules and of state_dict entries are the published ones, so published checkpoints load (see
`load_published`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.layers import SPADENorm
from mixsyn_fast.region_map import RegionMap

from .blocks import SLOPE, GeneratorConfig, RegionGenerator, SpectralConv2d


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """Settings of the SPADE generator (defaults: ADE20K without VAE)."""

    label_nc: int = 151  # number of regions K; a "don't care" class of the dataset counts as one of them
    edges: bool = False  # one more map channel: binary edges of the instance map (Cityscapes, COCO)
    hidden: int = 128  # width of mlp_shared inside each normalisation
    kernel_size: int = 3  # of the three convolutions inside each normalisation
    use_vae: bool = False  # the first layer is a Linear of a latent code instead of a convolution of the map
    z_dim: int = 256  # length of the latent code (only with use_vae)

    @property
    def semantic_nc(self) -> int:
        """Channels of the one-hot map, the edge channel included."""
        return self.label_nc + int(self.edges)


class SPADEGenerator(RegionGenerator):
    """SPADE generator.

    forward(regions, z=None): `regions` is a RegionMap of K = Config.label_nc regions (with edges where
    Config.edges) or a float map (B, K [+ 1], h, w), one-hot or soft, of any size; returns (B, 3, H, W) in
    (-1, 1), H, W = Config.output_size. `z` (B, z_dim) only with Config.use_vae; left out, it is drawn from
    N(0, 1). Raises ValueError for a map or code that does not fit the Config.
    """

    def __init__(self, config: Config | None = None) -> None:
        config = config or Config()

        def make_norm(channels: int, block: str) -> nn.Module:
            return SPADENorm(
                channels,
                config.semantic_nc,
                norm=config.norm,
                hidden=config.hidden,
                kernel_size=config.kernel_size,
            )

        super().__init__(config, make_norm, z_dim=config.z_dim if config.use_vae else 0)

    def forward_features(self, regions: RegionMap | Tensor, z: Tensor | None = None) -> Tensor:
        """Return the output before tanh, (B, 3, H, W)."""
        regions = self.region_map(regions)
        return self.blocks_and_image(self.first_layer(regions, z), regions)

    def forward(self, regions: RegionMap | Tensor, z: Tensor | None = None) -> Tensor:
        """Return the image (B, 3, H, W) in (-1, 1)."""
        return torch.tanh(self.forward_features(regions, z))


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of the image encoder."""

    ndf: int = 64  # width: the layers have 1, 2, 4, 8, 8 (, 8) times as many channels
    z_dim: int = 256  # length of the latent code
    image_size: int = 256  # images are resized to it (bilinear): 256 (six layers) or 128 (five)
    spectral_norm: bool = False  # True for training: the convolutions hold weight_orig, weight_u, weight_v
    largest: int = 0  # most channels of any layer, for small models; 0: no limit (published)

    def __post_init__(self) -> None:
        """Check the size."""
        if self.image_size not in (128, 256):
            raise ValueError(f"image_size: expected 128 or 256, got {self.image_size}")
        if self.largest < 0:
            raise ValueError(f"largest: expected a positive number, or 0 for no limit, got {self.largest}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the image and after each of six layers, of which an encoder has the first few."""
        limit = self.largest or 8 * self.ndf
        return (3, *(min(limit, m * self.ndf) for m in (1, 2, 4, 8, 8, 8)))


class Encoder(nn.Module):
    """Image encoder of SPADE's VAE: image (B, 3, H, W) -> mean and log-variance of the latent code, each (B,
    z_dim).
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EncoderConfig()
        self.depth = 6 if config.image_size == 256 else 5
        widths = config.widths[: self.depth + 1]
        kind = SpectralConv2d if config.spectral_norm else nn.Conv2d
        for i in range(self.depth):
            conv = kind(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False)
            self.add_module(f"layer{i + 1}", nn.Sequential(conv, nn.InstanceNorm2d(widths[i + 1], affine=False)))
        self.fc_mu = nn.Linear(widths[-1] * 4 * 4, config.z_dim)
        self.fc_var = nn.Linear(widths[-1] * 4 * 4, config.z_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each (B, z_dim)."""
        size = (self.config.image_size, self.config.image_size)
        x = image
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear")
        for i in range(1, self.depth + 1):
            x = F.leaky_relu(getattr(self, f"layer{i}")(x), SLOPE)
        x = x.flatten(1)
        return self.fc_mu(x), self.fc_var(x)


def reparameterize(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return a sample of N(mean, exp(log_variance))."""
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is one of a SPADE generator."""
    return "head_0.norm_0.mlp_shared.0.weight" in state and "embedding.weight" not in state  # that is models/clvae's


def config_from_state(state: Mapping[str, Tensor], **given: Any) -> Config:
    """Return the Config that the shapes of a generator's state_dict imply; `given` fields win.

    The file does not state image size, aspect ratio, "normal" against "more" upsampling, nor whether the last
    map channel holds edges: give them where they differ from the defaults.
    """
    shared = state["head_0.norm_0.mlp_shared.0.weight"]
    most = any(name.startswith("up_4.") for name in state)
    vae = state["fc.weight"].dim() == 2
    fields: dict[str, Any] = {
        "label_nc": shared.shape[1] - int(given.get("edges", False)),
        "ngf": state["conv_img.weight"].shape[1] * (2 if most else 1),
        "hidden": shared.shape[0],
        "kernel_size": shared.shape[2],
        "norm": "batch" if "head_0.norm_0.param_free_norm.running_mean" in state else "instance",
        "use_vae": vae,
    }
    if most:
        fields["num_upsampling_layers"] = "most"
    if vae:
        fields["z_dim"] = state["fc.weight"].shape[1]
    return Config(**(fields | given))


def encoder_recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is one of the image encoder."""
    if "fc_mu1.weight" in state:  # that is models/clvae's
        return False
    return {"fc_mu.weight", "fc_var.weight"} <= state.keys() and any(n.startswith("layer1.0.weight") for n in state)


def encoder_config_from_state(state: Mapping[str, Tensor], **given: Any) -> EncoderConfig:
    """Return the EncoderConfig that the shapes of an encoder's state_dict imply; `given` fields win."""
    first = next(value for name, value in state.items() if name in ("layer1.0.weight", "layer1.0.weight_orig"))
    fields: dict[str, Any] = {
        "ndf": first.shape[0],
        "z_dim": state["fc_mu.weight"].shape[0],
        "image_size": 256 if any(name.startswith("layer6.") for name in state) else 128,
    }
    return EncoderConfig(**(fields | given))
