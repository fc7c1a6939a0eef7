"""FusionNets for the S space of any StyleGAN2."""

from __future__ import annotations

import math

from mixsyn_fast.layers import FusionNet

from ..stylegan2 import Generator


def make_net(generator: Generator, hidden: int, coarse: int, q_on: str, global_code: bool) -> FusionNet:
    """Return a new FusionNet for a generator's S space; its vectors are as long as all widths divide."""
    layout = generator.layout
    depth = math.lcm(*layout.channels)
    return FusionNet(layout, hidden=hidden, coarse=coarse, depth=depth, q_on=q_on, global_code=global_code)
