"""Drop-in layers: the published attributes and state_dict names, exact and fast inside."""

from .class_codes import ClassCodes, ClassEmbedding, ClassLatents
from .conv import FastConv2d, conv2d
from .derived import forget
from .norms import (
    CLADENorm,
    SEANNorm,
    SPADENorm,
    clade_norm,
    norm_arguments,
    sean_noise,
    sean_norm,
    spade_norm,
    table_fits,
    unsupported_norm,
)
from .pooling import RegionPool2d

__all__ = [
    "CLADENorm",
    "ClassCodes",
    "ClassEmbedding",
    "ClassLatents",
    "FastConv2d",
    "RegionPool2d",
    "SEANNorm",
    "SPADENorm",
    "clade_norm",
    "conv2d",
    "forget",
    "norm_arguments",
    "sean_noise",
    "sean_norm",
    "spade_norm",
    "table_fits",
    "unsupported_norm",
]
