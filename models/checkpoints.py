"""Reading published checkpoints: safely, completely, or not at all.

A file is one plain state_dict, by torch.save (read with weights_only=True) or as safetensors. Spectral norm
is folded for inference: weight = weight_orig / (u^T W v), W the weight as a matrix. Every key and shape is
verified before the first value is copied.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# entries that files have or lack depending on the torch that wrote them; no inference reads them
OPTIONAL = (r".*\.num_batches_tracked",)


_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_POINTER = re.compile(rb"version https://git-lfs[^\n]*\n(?:[^\n]*\n)*?size (\d+)")
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class|unsupported GLOBAL|tried to load) ([\w.]+)")


def refuse_other_files(path: str | os.PathLike[str], expected: str = "a file of weights") -> None:
    """Look at the first bytes of a file of weights for what downloads leave in its place.

    Args:
        path: of the file, which is there.
        expected: the words of the message.

    Raises:
        ValueError: an empty file, a web page, a git-lfs pointer, an archive or a safetensors file that ends early; the
            message names the file, what it is and what to do.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(1024)
    found = ""
    if size == 0:
        found = "an empty file: download it again"
    elif _PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        found = (
            "a web page (HTML): the page about the file was saved, or a page that asks to log in or to confirm; "
            "download the file itself"
        )
    elif start.startswith(b"version https://git-lfs"):
        pointer = _POINTER.match(start)
        whole = f" of {int(pointer[1]):,} bytes" if pointer else ""
        found = f"a git-lfs pointer, which stands for a file{whole}: fetch that with `git lfs pull`, or download it"
    elif start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        found = f"an archive that ends early, after {size:,} bytes: the download was cut off; download it again"
    elif start[8:9] == b"{" and (whole_size := _safetensors_size(path, size)) > size:
        found = (
            f"a safetensors file that ends early, after {size:,} of {whole_size:,} bytes: the download was cut off; "
            "download it again"
        )
    if found:
        raise ValueError(f"{os.fspath(path)}: expected {expected}, got {found}")


def _safetensors_size(path: str | os.PathLike[str], size: int) -> int:
    """Bytes that a safetensors file has by its own header; 0 where there is no such header."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the format's own limit
            return 0
        if 8 + length > size:
            return 8 + length if file.read(2) == b'{"' else 0
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return 0
    return 8 + length + max(ends, default=0)


def read_content(path: str | os.PathLike[str], expected: str = "a state_dict (torch.save or safetensors)") -> Any:
    """Return whatever tensors and plain containers a file of weights holds, on the CPU; no code of it runs.

    Args:
        path: .safetensors, or a file of torch.save of any other name (read with weights_only=True).
        expected: the words of the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is something else, damaged or cut off, or holds more than tensors and plain containers.
        ImportError: a .safetensors file, and safetensors is not installed.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file (expected {expected})")
    refuse_other_files(path, expected)
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
        return read(path)
    except Exception as error:  # whatever the readers raise on bytes that are not theirs (IndexError, UnpicklingError ...)
        raise ValueError(f"{os.fspath(path)}: expected {expected}, got {other_content(path, error)}") from error


def other_content(path: str | os.PathLike[str], error: Exception) -> str:
    """Say what a reader met. Never in torch's words for a pickle, which advise to run the code of the file."""
    named = _GLOBAL.search(str(error))
    if named:
        return f"a file that names {named[1]}: only tensors in plain containers are read, no code of a file is run"
    with open(path, "rb") as file:
        start = file.read(16)
    reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).strip().split("\n")[0]
    return f"a file that is none, or is damaged ({reason or 'it begins with ' + repr(start)})"


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state_dict in a file, tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds anything else than one plain state_dict.
        ImportError: a .safetensors file, and safetensors is not installed.
    """
    return plain_state(read_content(path), os.fspath(path))


def plain_state(state: Any, source: str) -> dict[str, Tensor]:
    """Return the content of a file when it is one plain state_dict; ValueError that names the file, `source`, when not."""
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        what = (
            f"a mapping with the keys {sorted(map(str, state))[:8]}" if isinstance(state, Mapping) else type(state).__name__
        )
        raise ValueError(f"{source}: expected one plain state_dict of tensors, got {what}")
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


class Family(NamedTuple):
    """A kind of published file, and the model that it is of."""

    recognises: Callable[[Mapping[str, Tensor]], bool]
    """Whether a state_dict is one."""
    config: Callable[..., Any]
    """(state_dict, **fields) -> the Config that its shapes imply; `fields` win."""
    build: Callable[[Any], nn.Module]
    """Config -> model."""
    tolerated: tuple[str, ...] = ()
    """Patterns of entries that nothing reads."""


def load_family(
    path: str | os.PathLike[str],
    families: Iterable[Family],
    expected: str,
    model: nn.Module | None,
    config: Any,
    *,
    fold_spectral_norm: bool,
    fields: Mapping[str, Any],
    read: Callable[[str | os.PathLike[str]], Mapping[str, Tensor]] = read_state,
) -> nn.Module:
    """Load a published file into `model`, or into the model that `config`, or else the shapes in the file, describe.

    Args:
        path: the file.
        families: the first that recognises it is taken.
        expected: what the file should be, for messages.
        model: load into it; None: build one, in eval mode.
        config: its Config; None: found out.
        fold_spectral_norm: build for inference, weight = weight_orig / sigma; else with spectral norm.
        fields: of the Config, that override what no shape tells.
        read: path -> state_dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no family recognises the file, or anything is missing, unexpected or of another shape; then nothing was
            loaded.
        TypeError: `config` or `fields` beside what decides for itself.
    """
    state = read(path)
    source = os.fspath(path)
    found = next((family for family in families if family.recognises(state)), None)
    if found is None:
        raise ValueError(f"{source}: not {expected}; keys: {sorted(state)[:8]} ...")
    if model is None:
        if config is None:
            config = found.config(state, **({"spectral_norm": not fold_spectral_norm} | dict(fields)))
        elif fields:
            raise TypeError(f"config is given, so {sorted(fields)} cannot be given too")
        model = found.build(config).eval()
    elif config is not None or fields:
        raise TypeError("model is given, so neither config nor its fields can be given too")
    load_checked(model, state, tolerated=found.tolerated, source=source)
    return model
