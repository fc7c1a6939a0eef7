"""mixsyn_fast: fast, exact building blocks for region-controlled image synthesis.

Ops (:mod:`mixsyn_fast.ops`), drop-in layers (:mod:`mixsyn_fast.layers`), :func:`accelerate` for somebody else's model, and
the generators (:mod:`mixsyn_fast.models`). Nothing is compiled at import.
"""

from __future__ import annotations

from .accelerate import AccelerationReport, accelerate, restore
from .backend import FallbackWarning, use_backend, use_plan
from .ops.channel_attention_spread import channel_attention_maps, channel_attention_spread
from .ops.label_patterns import label_patterns
from .ops.latent_blend import StyleLayout, latent_blend
from .ops.masked_roi_pool import masked_roi_pool
from .ops.region_norm import region_norm
from .ops.spatial_attention_pool import spatial_attention_pool
from .region_map import PatternPlan, Patterns, RegionMap, as_region_map
from .runtime import keep_memory, warmup

__version__ = "0.1.0"

__all__ = [
    "AccelerationReport",
    "FallbackWarning",
    "PatternPlan",
    "Patterns",
    "RegionMap",
    "StyleLayout",
    "accelerate",
    "as_region_map",
    "channel_attention_maps",
    "channel_attention_spread",
    "keep_memory",
    "label_patterns",
    "latent_blend",
    "masked_roi_pool",
    "region_norm",
    "restore",
    "spatial_attention_pool",
    "use_backend",
    "use_plan",
    "warmup",
]
