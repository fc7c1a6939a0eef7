"""What a new run may take from an old one: its weights; and what of the old one must fit: its classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..checkpoints import OPTIONAL, read_state
from . import checkpoint


@dataclass(frozen=True)
class Weights:
    """First weights of a run, as far as there are any."""

    path: Path  # checkpoint folder or file
    networks: dict[str, dict[str, Tensor]]  # network -> its state_dict
    averaged: tuple[str, ...] = ()  # networks of which these are the averaged weights
    classes: tuple[str, ...] = field(default=())  # names of the regions that they were trained on, where they are known


def find_weights(source: str | os.PathLike[str]) -> Path:
    """Return the checkpoint folder or the file that `Options.init_from` names: of a run folder its newest valid checkpoint.

    Raises:
        FileNotFoundError: there is no such file or folder, or no checkpoint in it.
    """
    path = Path(source)
    if path.is_file() or (path.is_dir() and checkpoint.is_checkpoint(path)):
        return path
    found = checkpoint.newest_valid(path / "checkpoints") if path.is_dir() else None
    if found is None:
        what = "no valid checkpoint there" if path.is_dir() else "no such file or folder"
        raise FileNotFoundError(
            f"init_from: {path}: {what} (expected a run folder, a checkpoint folder or a file of weights)"
        )
    return found.path


def read_weights(path: Path, networks: dict[str, nn.Module], averaged: Collection[str]) -> Weights:
    """Read the first weights of a run.

    Of a checkpoint the averaged weights are taken where it has them, for they are what is judged and used; the others, those
    of discriminators, as they are.

    Args:
        path: of :func:`find_weights`.
        networks: name -> network of the task.
        averaged: those of which the task keeps an average.

    Raises:
        ValueError: nothing there is of these networks, or the file is no file of weights.
        CheckpointError: a checkpoint is damaged.
    """
    if path.is_dir():
        saved = checkpoint.open_checkpoint(path)
        average = saved.tensors("average") if "average" in saved.groups else {}
        found, of_average = {}, []
        for name in networks:
            own = _below(average, name) if name in averaged else {}
            if own:
                of_average.append(name)
                found[name] = own
            elif f"network.{name}" in saved.groups:
                found[name] = saved.tensors(f"network.{name}")
        weights = Weights(path, found, tuple(of_average), classes_of(saved))
    else:
        state = read_state(path)
        found = {name: own for name in networks if (own := _below(state, name))}
        if not found:  # a plain state_dict, of the network that has these names
            found = {name: state for name, network in networks.items() if set(state) >= _needed(network)}
        weights = Weights(path, found)
    if not weights.networks:
        raise ValueError(f"init_from: {path}: expected weights of {', '.join(networks)}, got none of them")
    return weights


def _below(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _needed(network: nn.Module) -> set[str]:
    return {key for key in network.state_dict() if not any(re.fullmatch(pattern, key) for pattern in OPTIONAL)}


def classes_of(saved: checkpoint.Checkpoint) -> tuple[str, ...]:
    """Return the names of the classes that a checkpoint was trained on; none where it knows none."""
    if "classes" in saved.state:
        return tuple(saved.state["classes"])
    try:  # a checkpoint of an earlier version
        return tuple(json.loads((saved.path.parents[1] / "config.json").read_text(encoding="utf-8"))["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def other_classes(before: Sequence[str], now: Sequence[str], path: Path) -> str:
    """Return in words which classes have other names now; "" where none, or where either side names none.

    Raises:
        ValueError: another number of classes.
    """
    if not before or not now:
        return ""
    if len(before) != len(now):
        raise ValueError(
            f"{path}: expected its {len(before)} classes ({', '.join(before)}), got {len(now)} ({', '.join(now)}): its "
            "networks have an input for each of theirs; choose another --out"
        )
    return ", ".join(f"{i}: {a} -> {b}" for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
