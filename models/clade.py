"""CLADE: the generator with class-adaptive normalisation.

Tan, Chen, Chu, Chai, Liao, He, Yuan, Hua, Yu: Efficient Semantic Image Synthesis via Class-Adaptive
Normalization, TPAMI 2021. Names of modules and of state_dict entries are the published ones (see
`load_published`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixsyn_fast.layers import CLADENorm
from mixsyn_fast.region_map import RegionMap

from .blocks import GeneratorConfig, RegionGenerator


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """Settings of the CLADE generator (defaults: ADE20K without VAE)."""

    label_nc: int = 151  # number of regions K; a "don't care" class of the dataset counts as one of them
    edges: bool = False  # instance edges: one more channel in the map of the first layer and after each norm
    use_vae: bool = False  # the first layer is a Linear of a latent code instead of a convolution of the map
    z_dim: int = 256  # length of the latent code (only with use_vae)
    positional: bool = False  # CLADE-ICPE: scale and shift vary with the position in the region

    @property
    def semantic_nc(self) -> int:
        """Channels of the one-hot map, the edge channel included."""
        return self.label_nc + int(self.edges)


class CLADEGenerator(RegionGenerator):
    """CLADE generator.

    forward(regions, z=None): as SPADEGenerator. A pixel of no region takes the scale and shift of region 0, as
    the published argmax of an all-zero one-hot does. With Config.positional forward also needs `distance`
    (B, 2, h, w): the offset of every pixel from the centroid of its connected component, scaled by its maximum.
    """

    def __init__(self, config: Config | None = None) -> None:
        config = config or Config()

        def make_norm(channels: int, block: str) -> nn.Module:
            how = {"norm": config.norm, "positional": config.positional, "instance": config.edges}
            return CLADENorm(channels, config.label_nc, **how)  # type: ignore[arg-type]

        super().__init__(config, make_norm, z_dim=config.z_dim if config.use_vae else 0, extra=int(config.edges))

    def forward_features(
        self, regions: RegionMap | Tensor, z: Tensor | None = None, *, distance: Tensor | None = None
    ) -> Tensor:
        """Return the output before tanh, (B, 3, H, W)."""
        regions = self.region_map(regions)
        return self.blocks_and_image(self.first_layer(regions, z), regions, distance=distance)

    def forward(self, regions: RegionMap | Tensor, z: Tensor | None = None, *, distance: Tensor | None = None) -> Tensor:
        """Return the image (B, 3, H, W) in (-1, 1)."""
        return torch.tanh(self.forward_features(regions, z, distance=distance))


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is one of a CLADE generator."""
    return "head_0.norm_0.class_specified_affine.weight" in state


def config_from_state(state: Mapping[str, Tensor], **given: Any) -> Config:
    """Return the Config that the shapes of a generator's state_dict imply; `given` fields win.

    The file does not state image size, aspect ratio, or "normal" against "more" upsampling: give them where
    they differ from the defaults.
    """
    most = any(name.startswith("up_4.") for name in state)
    vae = state["fc.weight"].dim() == 2
    fields: dict[str, Any] = {
        "label_nc": state["head_0.norm_0.class_specified_affine.weight"].shape[0],
        "ngf": state["conv_img.weight"].shape[1] * (2 if most else 1),
        "norm": "batch" if "head_0.norm_0.param_free_norm.running_mean" in state else "instance",
        "edges": "head_0.norm_0.inst_conv.weight" in state,
        "use_vae": vae,
        "positional": "head_0.norm_0.class_specified_affine.dist_conv_w.weight" in state,
    }
    if most:
        fields["num_upsampling_layers"] = "most"
    if vae:
        fields["z_dim"] = state["fc.weight"].shape[1]
    return Config(**(fields | given))
