"""A tiny StyleGAN2 with random weights, and its segments."""

from __future__ import annotations

import pytest
import torch
from mixsyn_fast.models.stylefusion.segments import Segments, find_segments
from mixsyn_fast.models.stylegan2 import Config, Generator

TINY = Config(size=32, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8)


@pytest.fixture(scope="session")
def generator() -> Generator:
    """32 x 32 pixels, at most 8 channels, noise that has an effect."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Generator(TINY).eval().requires_grad_(False)
        for name, p in made.named_parameters():
            if name.endswith("noise.weight"):
                p.fill_(0.1)
        made.measure_mean(200)
    return made


@pytest.fixture(scope="session")
def segments(generator: Generator) -> Segments:
    """Four clusters at 16 x 16: left and right of the tree's first region, and two that are its second one."""
    found = find_segments(generator, clusters=4, images=8, pixels=300, side=16, truncation=1.0, from_side=0)
    return found.named({0: "left", 1: "right", 2: "rest", 3: "rest"})
