"""mixsyn_fast: fast, exact building blocks for region-controlled image synthesis."""

from __future__ import annotations

__version__ = "0.1.0"
