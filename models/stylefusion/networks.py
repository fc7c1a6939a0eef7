"""FusionNets for the S space of any StyleGAN2."""

from __future__ import annotations

import math

from mixsyn_fast.layers import FusionNet

from ..stylegan2 import Generator


def make_net(generator: Generator, hidden: int, coarse: int, q_on: str, global_code: bool) -> FusionNet:
    """Return a new FusionNet for a generator's S space, whose vectors are as long as its widest layer.

    Raises:
        ValueError: a width that does not divide the largest one.
    """
    layout = generator.layout
    depth, widest = math.lcm(*layout.channels), max(layout.channels)
    if depth > widest:
        widths = ", ".join(map(str, sorted(set(layout.channels))))
        raise ValueError(f"generator: expected widths of layers that divide the largest, {widest}, got {widths}")
    return FusionNet(layout, hidden=hidden, coarse=coarse, depth=depth, q_on=q_on, global_code=global_code)
