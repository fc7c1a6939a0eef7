"""CLADE normalisation, with positions in regions (CLADE-ICPE) and without."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ... import layers
from ...backend import current_plan
from ..maps import NotExact, regions_of
from ..report import LayerWork, last_work
from .checks import check_map, check_norm, check_precision, conv_problem, laid_out, norm_problem, regions_problem, size_of
from .contract import Contract, Options


def _work_of(plain: bool, shape: Sequence[int], module: Any) -> LayerWork:
    """Count the work of a call of x's shape; ``plain``: scale and shift were maps, as published."""
    affine, pixels = module.class_specified_affine, shape[0] * prod(shape[2:])
    row = 2 * affine.weight.shape[1] * affine.weight.element_size()
    near = [getattr(affine, name).weight.numel() for name in ("dist_conv_w", "dist_conv_b") if hasattr(affine, name)]
    macs = pixels * sum(near)
    return LayerWork(
        "dense" if plain else "table", macs, macs, pixels * row, pixels * row if plain else affine.weight.shape[0] * row
    )


class _Clade(Contract):
    """CLADE normalisation; CLADE-ICPE reads a third argument, the position of every pixel in its region."""

    kind = "clade"
    attributes = ("class_specified_affine", "param_free_norm")
    arguments = 3
    known = tuple(f"class_specified_affine.{name}" for name in ("weight", "bias", "dist_conv_w.", "dist_conv_b."))

    def signature_fits(self, count: int, least: int) -> bool:
        return least in (2, 3) and count >= 2

    @staticmethod
    def positional(module: Any) -> bool:
        """Say whether the layer is of the positional kind."""
        return hasattr(module.class_specified_affine, "dist_conv_w")

    def problem(self, module: Any) -> str | None:
        affine = module.class_specified_affine
        weight, bias = getattr(affine, "weight", None), getattr(affine, "bias", None)
        problem = norm_problem(module.param_free_norm)
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.dim() != 2 or bias.dim() != 2:
            return problem or "class_specified_affine does not hold weight and bias (K, C)"
        if self.positional(module):
            names = ("dist_conv_w", "dist_conv_b")
            found = (conv_problem(getattr(affine, name, None), f"class_specified_affine.{name}", 1) for name in names)
            problem = problem or next(filter(None, found), None)
        return problem or regions_problem(weight.shape[0])

    def regions(self, module: Any) -> int | None:
        count: int = module.class_specified_affine.weight.shape[0]
        return count

    def channels(self, module: Any) -> int:
        count: int = module.class_specified_affine.weight.shape[1]
        return count

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        given = super().inputs(module, batch, which)
        return [*given, torch.randn(batch, 2, 12, 11)] if self.positional(module) else given

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        x, segmap, distance = (*inputs, None)[:3]
        check_map(x, segmap, self.regions(module))
        check_precision(x, module.class_specified_affine.weight)
        check_norm(module.param_free_norm)
        regions = regions_of(segmap, size_of(x), options.num_regions, edges=False)
        if regions.is_soft or regions.edges is not None:
            raise NotExact("the map is not one-hot")
        if (distance is not None) is not self.positional(module):
            raise NotExact("it is called with, or without, the positions that it was checked with")
        if distance is not None and not (isinstance(distance, Tensor) and distance.shape[:2] == (x.shape[0], 2)):
            raise NotExact("the positions are not of shape (B, 2, h, w)")
        plain = distance is not None or current_plan() == "dense"
        last_work[module] = partial(_work_of, plain, tuple(x.shape))
        return layers.clade_norm(module, laid_out(x, options.channels_last), regions, distance=distance)


CLADE: Contract = _Clade()
