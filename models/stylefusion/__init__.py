"""StyleFusion ("A Generative Model for Disentangling Spatial Segments"): segments of an image, each with its own code.

The networks are :mod:`mixsyn_fast.layers.fusion` and :mod:`mixsyn_fast.layers.fusion_hierarchy`.
"""

from .published import load_fusion_hierarchy, load_fusion_net
from .trees import CARS, CHURCHES, FACES, RegionTree, read_tree, write_tree

__all__ = [
    "CARS",
    "CHURCHES",
    "FACES",
    "RegionTree",
    "load_fusion_hierarchy",
    "load_fusion_net",
    "read_tree",
    "write_tree",
]
