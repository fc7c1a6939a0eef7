"""Tiny models of harmonized transfer with random weights, large enough that codes show in the image."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from mixsyn_fast.models.harmonized.attention import StyleAttention
from mixsyn_fast.models.harmonized.config import AttentionConfig, FlowConfig, GeneratorConfig, MappingConfig
from mixsyn_fast.models.harmonized.flow import StyleFlow
from mixsyn_fast.models.harmonized.generator import Generator
from mixsyn_fast.models.harmonized.mapping import MappingNetwork
from mixsyn_fast.models.harmonized.model import Harmonized
from mixsyn_fast.models.plain import randomise

from mixsyn_fast import RegionMap

NAMES = ("wall", "skin", "nose", "hair", "hat")
GROUPS = {"hair": ("hair",), "skin": ("skin", "nose")}
LENGTH = 16


def small_generator(
    names: Collection[str] = NAMES, size: tuple[int, int] = (64, 64), labels: np.ndarray | None = None
) -> Generator:
    """A generator of grey levels, not black and white."""
    torch.manual_seed(3)
    config = GeneratorConfig(
        label_nc=len(names), ngf=4, image_size=size[1], aspect_ratio=size[1] / size[0], hidden=8, style_length=LENGTH,
        encoder_width=4,
    )  # fmt: skip
    generator = Generator(config).eval()
    randomise(generator, 0)
    map_ = picture(size=size)[1] if labels is None else labels
    with torch.no_grad():
        regions = RegionMap(torch.from_numpy(map_.astype(np.int64))[None], len(names))
        codes = torch.randn(1, len(names), LENGTH, generator=torch.Generator().manual_seed(0)) / 4
        made = generator.forward_features(regions, style_codes=codes, noise=None)
        generator.conv_img.weight.mul_(0.4 / made.std())
        generator.conv_img.bias.zero_()
    return generator


def small_model(
    names: tuple[str, ...] = NAMES,
    size: tuple[int, int] = (64, 64),
    groups: dict[str, tuple[str, ...]] | None = None,
    labels: np.ndarray | None = None,
    *,
    attention: bool = True,
) -> Harmonized:
    """A model with everything."""
    generator = small_generator(names, size, labels)
    groups = GROUPS if groups is None else groups
    attending = StyleAttention(AttentionConfig(style_length=LENGTH, alpha=0.7)) if attention else None
    mapping = {name: MappingNetwork(len(regions), LENGTH, MappingConfig(width=12)) for name, regions in groups.items()}
    flows = {name: StyleFlow(len(regions) * LENGTH, FlowConfig(width=12)) for name, regions in groups.items()}
    with torch.no_grad():
        for flow in flows.values():
            flow.standardise(torch.randn(9, flow.size) * 0.3)
    return Harmonized(generator, names, attention=attending, groups=groups, mapping=mapping, flows=flows)


def picture(
    seed: int = 0, size: tuple[int, int] = (64, 64), regions: tuple[int, ...] = (0, 1, 2, 3)
) -> tuple[np.ndarray, np.ndarray]:
    """Noise with blocks of regions."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    cells = np.resize(rng.permutation(np.resize(regions, 16)), (4, 4))
    return image, np.kron(cells, np.ones((size[0] // 4, size[1] // 4), int))
