"""Published weights of the class- and layer-wise VAE."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from ..checkpoints import Family, load_family
from .networks import (
    Encoder,
    Generator,
    config_from_state,
    encoder_config_from_state,
    encoder_recognises,
    recognises,
)

_FAMILIES = (
    Family(recognises, config_from_state, Generator),
    Family(encoder_recognises, encoder_config_from_state, Encoder),
)


def load_published(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    config: Any = None,
    *,
    fold_spectral_norm: bool = True,
    **fields: Any,
) -> nn.Module:
    """Load a published generator (`<epoch>_net_G.pth`) or encoder (`<epoch>_net_E.pth`).

    Args:
        path: a torch.save file (read with weights_only=True) or .safetensors holding one plain state_dict.
        model: load into it; None builds the model, in eval mode.
        config: its settings; None: those that the shapes in the file imply.
        fold_spectral_norm: build for inference, weight = weight_orig / sigma; False: with spectral norm, to train on.
        fields: of the settings, that override what no shape tells (image_size=512, aspect_ratio=2.0 ...).

    Returns:
        a Generator or an Encoder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is something else, or entries are missing, unexpected or of another shape, listed; then nothing was
            loaded.
        TypeError: `config` or `fields` beside what decides for itself.
    """
    expected = "a generator or encoder of a class- and layer-wise VAE"
    return load_family(path, _FAMILIES, expected, model, config, fold_spectral_norm=fold_spectral_norm, fields=fields)
