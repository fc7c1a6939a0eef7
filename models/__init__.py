"""Full generators of the SPADE family and StyleGAN2, from published checkpoints or from scratch (installed as
mixsyn_fast.models).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from torch import nn

from . import clade, sean, spade, stylegan2
from .blocks import GeneratorConfig, RegionGenerator
from .checkpoints import Family, fold_spectral_norm, load_checked, load_family
from .clade import CLADEGenerator
from .sean import SEANGenerator, StyleEncoder
from .spade import Encoder, SPADEGenerator
from .stylegan2 import published as stylegan2_files

__all__ = [
    "CLADEGenerator",
    "Encoder",
    "GeneratorConfig",
    "MixSyn",
    "RegionGenerator",
    "SEANGenerator",
    "SPADEGenerator",
    "StyleEncoder",
    "fold_spectral_norm",
    "load_checked",
    "load_published",
]


def __getattr__(name: str) -> Any:
    """Bring a wing's model when it is asked for: nothing here knows the wings otherwise."""
    if name == "MixSyn":
        return importlib.import_module("mixsyn_fast.models.mixsyn.model").MixSyn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_FAMILIES = (
    Family(sean.recognises, sean.config_from_state, SEANGenerator, sean.TOLERATED),
    Family(clade.recognises, clade.config_from_state, CLADEGenerator),
    Family(spade.recognises, spade.config_from_state, SPADEGenerator),
    Family(spade.encoder_recognises, spade.encoder_config_from_state, Encoder),
    Family(stylegan2_files.recognises, stylegan2_files.config_from_state, stylegan2.Generator),
)


def load_published(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    config: Any = None,
    *,
    fold_spectral_norm: bool = True,
    **fields: Any,
) -> nn.Module:
    """Load a published generator (SPADE, CLADE, SEAN, StyleGAN2) or VAE encoder (`<epoch>_net_G.pth`,
    `<epoch>_net_E.pth`).

    path: a torch.save file (read with weights_only=True) or .safetensors holding one plain state_dict; of StyleGAN2 also a
    file of the common PyTorch port (`g_ema`) and the official pickles, read without their code (stylegan2/published.py).
    model: load into it; without it the model is built, in eval mode, with `config`, or else with the Config
    that the shapes in the file imply, in which `fields` (image_size=512, aspect_ratio=2.0, edges=True ...)
    override what no shape tells.
    fold_spectral_norm: True builds for inference, weight = weight_orig / sigma; False builds with spectral
    norm, to train on. A `model` or `config` that is given decides for itself. Raises ValueError, listing the
    keys, when anything is missing, unexpected or of another shape; then nothing was loaded.
    """
    return load_family(
        path,
        _FAMILIES,
        "a SPADE, CLADE, SEAN or StyleGAN2 generator or an image encoder "
        "(of a class- and layer-wise VAE: clvae.published.load_published)",
        model,
        config,
        fold_spectral_norm=fold_spectral_norm,
        fields=fields,
        read=stylegan2_files.read_state,
    )
