"""mixsyn_fast: fast, exact building blocks for region-controlled image synthesis.

Ops (:mod:`mixsyn_fast.ops`), drop-in layers (:mod:`mixsyn_fast.layers`), :func:`accelerate` for somebody else's model, and
the generators (:mod:`mixsyn_fast.models`). Nothing is compiled at import.
"""

from __future__ import annotations

from .accelerate import AccelerationReport as AccelerationReport
from .accelerate import accelerate as accelerate
from .accelerate import constant_conditioning as constant_conditioning
from .accelerate import restore as restore
from .backend import FallbackWarning as FallbackWarning
from .backend import use_backend as use_backend
from .backend import use_plan as use_plan
from .latent_map import LatentMap as LatentMap
from .ops import *
from .region_map import PatternPlan as PatternPlan
from .region_map import Patterns as Patterns
from .region_map import RegionMap as RegionMap
from .region_map import as_region_map as as_region_map
from .runtime import keep_memory as keep_memory
from .runtime import warmup as warmup

__version__ = "0.1.0"
