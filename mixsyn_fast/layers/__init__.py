"""Drop-in layers: the published attributes and state_dict names, exact and fast inside."""

from .attention import SpatialChannelAttention, folded_conv2d
from .clade import CLADENorm, clade_norm
from .class_codes import ClassCodes, ClassEmbedding, ClassLatents
from .conv import FastConv2d, conv2d
from .derived import forget
from .fusion import Fusion, FusionNet, LatentBlender
from .fusion_hierarchy import FusionConfig, FusionHierarchy
from .param_free import norm_arguments, unsupported_norm
from .pooling import RegionPool2d
from .sean import SEANNorm, sean_noise, sean_norm
from .spade import SPADENorm, spade_norm, table_fits

__all__ = [
    "CLADENorm",
    "ClassCodes",
    "ClassEmbedding",
    "ClassLatents",
    "FastConv2d",
    "Fusion",
    "FusionConfig",
    "FusionHierarchy",
    "FusionNet",
    "LatentBlender",
    "RegionPool2d",
    "SEANNorm",
    "SPADENorm",
    "SpatialChannelAttention",
    "clade_norm",
    "conv2d",
    "folded_conv2d",
    "forget",
    "norm_arguments",
    "sean_noise",
    "sean_norm",
    "spade_norm",
    "table_fits",
    "unsupported_norm",
]
