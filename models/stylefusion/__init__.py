"""StyleFusion ("A Generative Model for Disentangling Spatial Segments"): the trees of its domains, its published weights.

The networks are :mod:`mixsyn_fast.layers.fusion` and :mod:`mixsyn_fast.layers.fusion_hierarchy`.
"""

from .published import load_fusion_net
from .trees import CARS, CHURCHES, FACES

__all__ = ["CARS", "CHURCHES", "FACES", "load_fusion_net"]
