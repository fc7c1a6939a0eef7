"""Full generators of the SPADE family, from published checkpoints or from scratch (installed as
mixsyn_fast.models).
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from . import clade, sean, spade
from .blocks import GeneratorConfig, RegionGenerator
from .checkpoints import fold_spectral_norm, load_checked, read_state
from .clade import CLADEGenerator
from .sean import SEANGenerator, StyleEncoder
from .spade import Encoder, SPADEGenerator

__all__ = [
    "CLADEGenerator",
    "Encoder",
    "GeneratorConfig",
    "RegionGenerator",
    "SEANGenerator",
    "SPADEGenerator",
    "StyleEncoder",
    "fold_spectral_norm",
    "load_checked",
    "load_published",
]

# (does the file hold this model, Config from its shapes, model, entries that nothing reads)
_FAMILIES = (
    (sean.recognises, sean.config_from_state, SEANGenerator, sean.TOLERATED),
    (clade.recognises, clade.config_from_state, CLADEGenerator, ()),
    (spade.recognises, spade.config_from_state, SPADEGenerator, ()),
    (spade.encoder_recognises, spade.encoder_config_from_state, Encoder, ()),
)


def load_published(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    config: Any = None,
    *,
    fold_spectral_norm: bool = True,
    **fields: Any,
) -> nn.Module:
    """Load a published generator (SPADE, CLADE, SEAN) or VAE encoder (`<epoch>_net_G.pth`,
    `<epoch>_net_E.pth`).

    path: a torch.save file (read with weights_only=True) or .safetensors holding one plain state_dict.
    model: load into it; without it the model is built, in eval mode, with `config`, or else with the Config
    that the shapes in the file imply, in which `fields` (image_size=512, aspect_ratio=2.0, edges=True ...)
    override what no shape tells.
    fold_spectral_norm: True builds for inference, weight = weight_orig / sigma; False builds with spectral
    norm, to train on. A `model` or `config` that is given decides for itself. Raises ValueError, listing the
    keys, when anything is missing, unexpected or of another shape; then nothing was loaded.
    """
    state = read_state(path)
    source = os.fspath(path)
    found = next((family for family in _FAMILIES if family[0](state)), None)
    if found is None:
        raise ValueError(f"{source}: not a SPADE, CLADE or SEAN generator or image encoder; keys: {sorted(state)[:8]} ...")
    _, infer, build, tolerated = found
    if model is None:
        if config is None:
            config = infer(state, **({"spectral_norm": not fold_spectral_norm} | fields))
        elif fields:
            raise TypeError(f"config is given, so {sorted(fields)} cannot be given too")
        model = build(config).eval()
    elif config is not None or fields:
        raise TypeError("model is given, so neither config nor its fields can be given too")
    load_checked(model, state, tolerated=tolerated, source=source)
    return model
