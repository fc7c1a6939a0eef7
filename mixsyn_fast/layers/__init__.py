"""Drop-in layers: the published attributes and state_dict names, exact and fast inside."""

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
from .pooling import region_mean

__all__ = [
    "CLADENorm",
    "FastConv2d",
    "SEANNorm",
    "SPADENorm",
    "clade_norm",
    "conv2d",
    "forget",
    "norm_arguments",
    "region_mean",
    "sean_noise",
    "sean_norm",
    "spade_norm",
    "table_fits",
    "unsupported_norm",
]
