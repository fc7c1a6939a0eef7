"""The ops: one file each, with formula, reference, registration, gradient and the public function."""

from .label_patterns import label_patterns
from .region_norm import region_norm

__all__ = ["label_patterns", "region_norm"]
