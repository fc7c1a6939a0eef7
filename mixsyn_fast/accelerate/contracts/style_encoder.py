"""Encoders whose features are averaged over every region: SEAN's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.masked_roi_pool import masked_roi_pool
from ..maps import NotExact, regions_of
from .checks import blocks, check_map, original_class, required, size_of
from .contract import BLENDED, Contract, Options


class _StyleEncoder(Contract):
    """An encoder (``model``, a Sequential that ends in tanh) whose features are averaged over every region."""

    kind = "style_encoder"
    attributes = ("model",)
    known = ("model.",)
    resizes = True
    told_apart = False

    def notes(self, options: Options) -> list[str]:
        return [BLENDED] if options.soft_masks == "blend" else []

    def recognises(self, module: nn.Module) -> bool:
        model = getattr(module, "model", None)
        if not isinstance(model, nn.Sequential) or len(model) < 2 or not isinstance(model[-1], nn.Tanh):
            return False
        return required(original_class(module).forward) == 2

    def parts(self, module: nn.Module) -> Iterable[nn.Module]:
        return [child for name, child in module.named_children() if name != "model"]

    def problem(self, module: Any) -> str | None:
        if not any(isinstance(m, nn.Conv2d) for m in module.model.modules()):
            return "its model has no convolution"
        return None

    def channels(self, module: Any) -> int:
        return next(m for m in module.model.modules() if isinstance(m, nn.Conv2d)).in_channels

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        return [torch.randn(batch, self.channels(module), 20, 24), blocks(range(3), 3, batch, (20, 24))]

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        image, segmap = inputs
        check_map(image, segmap)
        regions = regions_of(segmap, size_of(image), options.num_regions, edges=False)
        if (regions.is_soft or regions.edges is not None) and options.soft_masks == "published":
            raise NotExact("the map is soft (accelerate(..., soft_masks='blend') takes weighted means instead)")
        pooled: Tensor = masked_roi_pool(module.model(image), regions, mode="mean")[0]
        return pooled


STYLE_ENCODER: Contract = _StyleEncoder()
