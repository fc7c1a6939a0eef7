"""Reading published checkpoints: safely, completely, or not at all.

A file is one plain state_dict, by torch.save (read with weights_only=True) or as safetensors. Spectral norm
is folded for inference: weight = weight_orig / (u^T W v), W the weight as a matrix. Every key and shape is
verified before the first value is copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# entries that files have or lack depending on the torch that wrote them; no inference reads them
OPTIONAL = (r".*\.num_batches_tracked",)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state_dict in a file, tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds anything else than one plain state_dict.
        ImportError: a .safetensors file, and safetensors is not installed.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file (expected a state_dict: .pth or .safetensors)")
    if os.fspath(path).endswith(".safetensors"):
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"{path}: reading it needs safetensors (pip install safetensors)") from error
        read = load_file
    else:

        def read(path: str | os.PathLike[str]) -> Any:
            return torch.load(path, map_location="cpu", weights_only=True)

    try:
        state = read(path)
    except Exception as error:  # whatever the readers raise on bytes that are not theirs (IndexError, UnpicklingError ...)
        raise ValueError(f"{os.fspath(path)}: expected a state_dict (torch.save or safetensors), got: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        what = (
            f"a mapping with the keys {sorted(map(str, state))[:8]}" if isinstance(state, Mapping) else type(state).__name__
        )
        raise ValueError(f"{path}: expected one plain state_dict of tensors, got {what}")
    return dict(state)


def fold_spectral_norm(state: Mapping[str, Tensor], only: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return a state_dict in which each weight_orig, weight_u (, weight_v) became the weight that inference
    uses.

    `only`: names of the weights to fold (all by default). A file without weight_v (written before torch 1.0)
    gets v by the step that its forward would have made. Raises ValueError where sigma is zero or not finite.
    """
    result = dict(state)
    stems = [name.removesuffix("_orig") for name in state if name.endswith("weight_orig")]
    for stem in stems if only is None else sorted(set(stems) & set(only)):
        if f"{stem}_u" not in state:
            continue  # without u there is no sigma: let the key check report what is missing
        weight, u = state[f"{stem}_orig"], state[f"{stem}_u"]
        matrix = weight.flatten(1)
        if u.shape != matrix.shape[:1]:
            raise ValueError(f"{stem}_u: expected shape {tuple(matrix.shape[:1])}, got {tuple(u.shape)}")
        v = state.get(f"{stem}_v")
        if v is None:
            v = F.normalize(matrix.t() @ u, dim=0)
        if v.shape != matrix.shape[1:]:
            raise ValueError(f"{stem}_v: expected shape {tuple(matrix.shape[1:])}, got {tuple(v.shape)}")
        sigma = torch.dot(u, matrix @ v)
        if not torch.isfinite(sigma) or sigma == 0:
            raise ValueError(f"{stem}_orig: its spectral norm u^T W v is {sigma.item()}; the file is damaged")
        result[stem] = weight / sigma
        for suffix in ("_orig", "_u", "_v"):
            result.pop(stem + suffix, None)
    return result


def load_checked(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    tolerated: Iterable[str] = (),
    fold: bool = True,
    source: str = "state",
) -> None:
    """Copy a state_dict into `model`, all of it or nothing.

    Unused entries whose whole name matches a pattern of `tolerated` are passed over, and so are the batch
    counters (num_batches_tracked), which may also be missing. Spectral norm is folded where the model has a
    plain weight (with `fold`). Anything else missing, unexpected or of another shape: ValueError that lists
    the keys, and the model is as before.
    """
    target = model.state_dict()  # shares memory with the model
    if any(value.is_meta for value in target.values()):
        raise ValueError(f"{type(model).__name__} is on the meta device; give it memory first (model.to_empty)")
    if fold:
        state = fold_spectral_norm(state, only=target)
    unused = [*tolerated, *OPTIONAL]
    missing = [k for k in target if k not in state and not any(re.fullmatch(p, k) for p in OPTIONAL)]
    unexpected = [k for k in state if k not in target and not any(re.fullmatch(p, k) for p in unused)]
    shapes = [
        f"{k}: expected {tuple(target[k].shape)}, got {tuple(state[k].shape)}"
        for k in target
        if k in state and target[k].shape != state[k].shape
    ]
    problems = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if names:
            problems.append(f"{len(names)} {title}:\n  " + "\n  ".join(names))
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}; nothing was loaded. Entries " + "\n".join(problems))
    with torch.no_grad():
        for name, value in target.items():
            if name in state:
                value.copy_(state[name])
