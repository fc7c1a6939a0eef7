"""Encoder and decoder: the multi-scale style encoder (Sec. 3.1) before SEAN's decoder (Sec. 3.3)."""

from __future__ import annotations

from torch import Tensor

from mixsyn_fast.region_map import RegionMap

from .. import sean
from .config import GeneratorConfig
from .encoder import MultiScaleEncoder


class Generator(sean.SEANGenerator):
    """SEAN's generator with the multi-scale encoder in place of its own; everything else is as there.

    Attention belongs between :meth:`encode` and ``forward(regions, style_codes=...)``, and is a network of its own.
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__(config or GeneratorConfig())

    def make_encoder(self, config: sean.Config) -> MultiScaleEncoder:
        """Return the encoder."""
        assert isinstance(config, GeneratorConfig)
        return MultiScaleEncoder(
            config.style_length,
            config.encoder_width,
            multi_scale=config.multi_scale,
            softmax=config.softmax,
            spectral=config.spectral_norm,
            level_rate=config.level_rate,
        )

    def present(self, regions: RegionMap | Tensor) -> Tensor:
        """Return which regions have a code, (B, K) bool: those with a pixel at half the image's size, where they are pooled.

        A region of one pixel may be there at the image's size and have none.
        """
        height, width = self.config.output_size
        return self.region_map(regions).areas((height // 2, width // 2)) > 0
