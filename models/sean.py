"""SEAN: the generator with region-adaptive normalisation driven by one style code per region, and its style
encoder.

Zhu, Abdal, Qin, Wonka: SEAN: Image Synthesis with Semantic Region-Adaptive Normalization, CVPR 2020. Names of
modules and of state_dict entries are the published ones (see `load_published`); of a published file only the
`Spade.param_free_norm.*` entries, which nothing reads, have no place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixsyn_fast import masked_roi_pool
from mixsyn_fast.backend import current_plan
from mixsyn_fast.layers import FastConv2d, SEANNorm
from mixsyn_fast.ops.region_norm import region_norm
from mixsyn_fast.region_map import RegionMap

from .blocks import SLOPE, GeneratorConfig, RegionGenerator

# entries of published files that no computation reads: the norm of the SPADE inside a SEAN layer
TOLERATED = (r".*\.Spade\.param_free_norm\..*",)


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """Settings of the SEAN generator (defaults: CelebAMask-HQ)."""

    hidden: int = 128  # width of mlp_shared inside each normalisation
    style_length: int = 512  # length of the style code of a region
    encoder_width: int = 32  # channels of the style encoder's first convolution
    unstyled: tuple[str, ...] = ("up_3",)  # blocks whose normalisations have no style branch (use_rgb False)


class StyleEncoder(nn.Module):
    """SEAN's style encoder ("Zencoder"): image (B, 3, H, W) and regions -> style codes (B, K, style_length).

    Convolutional features at half resolution, then their mean over each region (labels nearest-resized); a
    region that is absent gets the zero code. The indices inside `model` are those of the published
    state_dict.
    """

    def __init__(self, style_length: int = 512, width: int = 32) -> None:
        super().__init__()
        w = width
        self.model = nn.Sequential(
            nn.ReflectionPad2d(1),
            FastConv2d(3, w, 3),  # model.1
            nn.InstanceNorm2d(w),
            nn.LeakyReLU(SLOPE),
            FastConv2d(w, 2 * w, 3, stride=2, padding=1),  # model.4
            nn.InstanceNorm2d(2 * w),
            nn.LeakyReLU(SLOPE),
            FastConv2d(2 * w, 4 * w, 3, stride=2, padding=1),  # model.7
            nn.InstanceNorm2d(4 * w),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(4 * w, 8 * w, 3, stride=2, padding=1, output_padding=1),  # model.10
            nn.InstanceNorm2d(8 * w),
            nn.LeakyReLU(SLOPE),
            nn.ReflectionPad2d(1),
            FastConv2d(8 * w, style_length, 3),  # model.14
            nn.Tanh(),
        )

    def forward(self, image: Tensor, regions: RegionMap) -> Tensor:
        """Return the style codes (B, K, style_length)."""
        return masked_roi_pool(self.features(image), regions, mode="mean")[0]

    def features(self, image: Tensor) -> Tensor:
        """Return the features (B, style_length, H / 2, W / 2) of an image, in [-1, 1]."""
        if current_plan() == "dense":
            return self.model(image)
        x, before = image, None
        for layer in self.model:
            if isinstance(before, nn.InstanceNorm2d):  # this is its LeakyReLU: one pass, and one tensor less to keep
                x = region_norm(x, norm="instance", eps=before.eps, negative_slope=SLOPE)
            elif not isinstance(layer, nn.InstanceNorm2d):
                x = layer(x)
            before = layer
        return x


class SEANGenerator(RegionGenerator):
    """SEAN generator.

    forward(regions, image=None, style_codes=None, *, noise="device"): `regions` is a RegionMap of K =
    Config.label_nc regions or a float map (B, K, h, w), one-hot or soft, of any size. The style of each
    region comes from `image` (B, 3, H, W), or directly as `style_codes` (B, K, style_length): exactly one of
    them. Returns (B, 3, H, W) in (-1, 1). `noise`: "device" draws on the device (fast, capturable),
    "published" draws exactly as the published code does (default CPU generator), a tensor (B, 1, h, w) is
    used as it is by a layer of that size, None adds no noise. Raises ValueError for a map, image or codes
    that do not fit.
    """

    def __init__(self, config: Config | None = None) -> None:
        config = config or Config()

        def make_norm(channels: int, block: str) -> nn.Module:
            return SEANNorm(
                channels,
                config.label_nc,
                style_length=config.style_length,
                use_style=block not in config.unstyled,
                norm=config.norm,
                hidden=config.hidden,
            )

        super().__init__(config, make_norm, stem="ace")
        self.Zencoder = self.make_encoder(config)

    def make_encoder(self, config: Config) -> nn.Module:
        """Return the style encoder: (image, regions) -> style codes (B, K, style_length)."""
        return StyleEncoder(config.style_length, config.encoder_width)

    def encode(self, image: Tensor, regions: RegionMap | Tensor) -> Tensor:
        """Return the style codes (B, K, style_length) of the regions of `image` (B, 3, H, W)."""
        regions = self.region_map(regions)
        if image.dim() != 4 or image.shape[0] != regions.batch_size or image.shape[1] != 3:
            raise ValueError(f"image: expected shape ({regions.batch_size}, 3, H, W), got {tuple(image.shape)}")
        return self.Zencoder(image, regions)

    def forward_features(
        self,
        regions: RegionMap | Tensor,
        image: Tensor | None = None,
        style_codes: Tensor | None = None,
        *,
        noise: str | Tensor | None = "device",
    ) -> Tensor:
        """Return the output before tanh, (B, 3, H, W)."""
        regions = self.region_map(regions)
        if (image is None) == (style_codes is None):
            raise ValueError("image, style_codes: expected exactly one of them")
        if style_codes is None:
            style_codes = self.encode(image, regions)
        shape = (regions.batch_size, self.config.label_nc, self.config.style_length)
        if style_codes.shape != shape:
            raise ValueError(f"style_codes: expected shape {shape}, got {tuple(style_codes.shape)}")
        return self.blocks_and_image(self.first_layer(regions), regions, style_codes, noise=noise)

    def forward(
        self,
        regions: RegionMap | Tensor,
        image: Tensor | None = None,
        style_codes: Tensor | None = None,
        *,
        noise: str | Tensor | None = "device",
    ) -> Tensor:
        """Return the image (B, 3, H, W) in (-1, 1)."""
        return torch.tanh(self.forward_features(regions, image, style_codes, noise=noise))


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is one of a SEAN generator."""
    return "head_0.ace_0.Spade.mlp_shared.0.weight" in state


def config_from_state(state: Mapping[str, Tensor], **given: Any) -> Config:
    """Return the Config that the shapes of a generator's state_dict imply; `given` fields win.

    The file does not state image size, aspect ratio, or "normal" against "more" upsampling: give them where
    they differ from the defaults.
    """
    shared = state["head_0.ace_0.Spade.mlp_shared.0.weight"]
    most = any(name.startswith("up_4.") for name in state)
    blocks = sorted({name.split(".")[0] for name in state if ".ace_0." in name})
    styled = {name.split(".")[0] for name in state if name.endswith(".ace_0.conv_gamma.weight")}
    fields: dict[str, Any] = {
        "label_nc": shared.shape[1],
        "ngf": state["conv_img.weight"].shape[1] * (2 if most else 1),
        "hidden": shared.shape[0],
        "norm": "batch" if "head_0.ace_0.param_free_norm.running_mean" in state else "instance",
        "unstyled": tuple(name for name in blocks if name not in styled),
    }
    if styled:
        fields["style_length"] = state[f"{min(styled)}.ace_0.conv_gamma.weight"].shape[1]
    if "Zencoder.model.1.weight" in state:
        fields["encoder_width"] = state["Zencoder.model.1.weight"].shape[0]
    if most:
        fields["num_upsampling_layers"] = "most"
    return Config(**(fields | given))
