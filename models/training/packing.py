"""Nested state (optimisers, random number generators, scalers) as tensors and JSON, exactly.

What a checkpoint stores has two kinds: tensors, which go to safetensors, and the rest, which must be JSON. JSON knows
neither tuples nor numbers as keys, so these carry a mark: {"$tuple": [...]}, {"$pairs": [[key, value], ...]}; a tensor's
place holds {"$tensor": name}.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists, tuples, tensors and scalars into (name -> tensor, JSON); :func:`unpack` is exact.

    Raises:
        ValueError: the tree holds anything else.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        def below(key: Any) -> str:
            return f"{path}.{key}" if path else str(key)

        if isinstance(value, Tensor):
            name = path or "tensor"
            if name in tensors:
                raise ValueError(f"{name}: two entries have this name")
            tensors[name] = value
            return {"$tensor": name}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is list:
            return [walk(part, below(i)) for i, part in enumerate(value)]
        if type(value) is tuple:
            return {"$tuple": walk(list(value), path)}
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}: expected a tensor, number, text, list, tuple or dict, got {type(value).__name__}")
        for key in value:
            if type(key) not in (int, str):
                raise ValueError(f"{path}: expected keys that are int or str, got {key!r}")
        parts = {key: walk(part, below(key)) for key, part in value.items()}
        plain = all(type(key) is str and not key.startswith("$") for key in parts)
        return parts if plain else {"$pairs": [[key, part] for key, part in parts.items()]}

    return tensors, walk(tree, prefix)


def unpack(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """Return what :func:`pack` was given; ValueError names a tensor that is missing."""
    if isinstance(tree, list):
        return [unpack(tensors, part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        name = tree["$tensor"]
        if name not in tensors:
            raise ValueError(f"{name}: the tensor is missing")
        return tensors[name]
    if "$tuple" in tree:
        return tuple(unpack(tensors, tree["$tuple"]))
    return {key: unpack(tensors, part) for key, part in tree.get("$pairs", tree.items())}


def pack_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Split an optimiser's state_dict() into tensors named "state.<index>.<entry>" and JSON.

    Raises:
        ValueError: not a state_dict of an optimiser, or it holds what neither JSON nor a tensor can.
    """
    if set(state) != {"state", "param_groups"}:
        raise ValueError(f"state: expected the keys state and param_groups, got {sorted(map(str, state))}")
    return pack(state)


def unpack_optimizer(tensors: Mapping[str, Tensor], tree: Any) -> dict[str, Any]:
    """Return the state_dict that :func:`pack_optimizer` was given, for optimizer.load_state_dict."""
    return unpack(tensors, tree)


def rng_state() -> tuple[dict[str, Tensor], Any]:
    """Return the state of the generators of Python, NumPy (the global one), torch's CPU and the current GPU."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tree: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tree["cuda"] = torch.cuda.get_rng_state()
    return pack(tree, "rng")


def set_rng_state(tensors: Mapping[str, Tensor], tree: Any) -> None:
    """Put the generators back to what :func:`rng_state` returned; that of a GPU only where there is one."""
    state = unpack(tensors, tree)
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
