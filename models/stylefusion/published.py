"""Published FusionNet weights: of one network, and of a whole tree by a JSON map from node to file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers import FusionConfig, FusionHierarchy, FusionNet
from mixsyn_fast.reading import read_text

from ..checkpoints import read_content
from .trees import find_tree

_BLENDERS = ("blender_common", "blender_segments")
_ENTRIES = tuple(f"disentangle_net.{i}.{kind}" for i in range(5) for kind in ("weight", "bias"))


def load_fusion_net(
    source: str | Path | Mapping[str, Any], layout: StyleLayout | None = None, *, coarse: int = 5, q_on: str = "b"
) -> FusionNet:
    """Make a FusionNet from published weights; widths are taken from the shapes.

    Args:
        source: a ``.safetensors`` file, a file of ``torch.save`` (read with ``weights_only=True``), or its content. The
            entries ``blender_common|blender_segments.disentangle_net.{0..4}.{weight,bias}`` may lie below ``"state_dict"``
            and carry the prefix ``module.``. Which blender fuses is told by its wider input, not by its name.
        layout: the S space; StyleGAN2 at 1024 by default.
        coarse: how many layers of each list are aligned.
        q_on: see :class:`mixsyn_fast.layers.fusion.LatentBlender`.

    Returns:
        the network, in eval mode, in the file's dtype.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is something else; entries are missing or unexpected, or have shapes that fit no FusionNet;
            nothing is half loaded.
        ImportError: a ``.safetensors`` file without safetensors installed.
    """
    where = "load_fusion_net"
    state = (
        read_content(source, "the weights of a FusionNet (torch.save or safetensors)")
        if isinstance(source, str | Path)
        else source
    )
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{where}: source: expected a mapping of tensors, got {type(state).__name__}")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items()}
    expected = [f"{blender}.{entry}" for blender in _BLENDERS for entry in _ENTRIES]
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        parts = [f"{len(n)} {t}:\n  " + "\n  ".join(n) for t, n in (("missing", missing), ("unexpected", unexpected)) if n]
        raise ValueError(f"{where}: source: expected the 20 entries of a FusionNet; entries " + "\n".join(parts))
    not_tensors = [name for name in expected if not isinstance(tensors[name], Tensor)]
    if not_tensors:
        raise ValueError(f"{where}: source: expected tensors, got something else at {', '.join(not_tensors)}")
    first = {blender: tensors[f"{blender}.disentangle_net.0.weight"] for blender in _BLENDERS}
    for blender, weight in first.items():
        if weight.dim() != 2:
            name = f"{blender}.disentangle_net.0.weight"
            raise ValueError(f"{where}: {name}: expected shape (hidden, inputs), got {tuple(weight.shape)}")
    depth = int(tensors["blender_common.disentangle_net.4.bias"].numel())
    aligner, fuser = sorted(_BLENDERS, key=lambda blender: first[blender].shape[1])
    hidden, inputs = (int(n) for n in first[aligner].shape)
    indicator = inputs - 2 * depth
    if first[fuser].shape[1] - inputs != depth or indicator < 20 or indicator % 10 != 0:
        got = " and ".join(f"{first[blender].shape[1]}" for blender in _BLENDERS)
        raise ValueError(
            f"{where}: source: expected first layers of 2 * {depth} + 10 * (layers + 1) inputs and {depth} more, got {got}"
        )
    net = FusionNet(layout, hidden=hidden, coarse=coarse, depth=depth, num_layers=indicator // 10 - 1, q_on=q_on)
    ours = {"blender_common": aligner, "blender_segments": fuser}
    target = net.state_dict()
    found = {f"{name}.{entry}": tensors[f"{ours[name]}.{entry}"] for name in _BLENDERS for entry in _ENTRIES}
    wrong = [
        f"{ours[name.split('.')[0]]}.{name.split('.', 1)[1]}: expected {tuple(value.shape)}, got {tuple(found[name].shape)}"
        for name, value in target.items()
        if found[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(f"{where}: source: entries of another shape:\n  " + "\n  ".join(wrong))
    net.to(first[aligner].dtype)
    net.load_state_dict(found)
    return net.eval()


def load_fusion_hierarchy(
    nodes: str | os.PathLike[str],
    tree: str | os.PathLike[str] | FusionConfig = "faces",
    layout: StyleLayout | None = None,
    *,
    coarse: int = 5,
    q_on: str = "b",
) -> FusionHierarchy:
    """Make a hierarchy from published weights.

    Args:
        nodes: a JSON file, an object from the name of an inner node to its file of FusionNet weights, relative to the JSON.
            A node that is missing has no network: it passes its own code.
        tree: a domain (faces, cars, churches, ...), a file of a tree, or the tree itself.
        layout: the S space; None: the tree's.
        coarse: see :func:`load_fusion_net`.
        q_on: as ``coarse``.

    Returns:
        the hierarchy, in eval mode, in the files' dtype.

    Raises:
        FileNotFoundError: no such file; the message names file and node.
        ValueError: a file is something else, or of a node that the tree does not have; likewise.
        ImportError: a ``.safetensors`` file without safetensors installed.
    """
    path, config = Path(nodes), tree if isinstance(tree, FusionConfig) else find_tree(tree)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected a JSON object from node to file of FusionNet weights)")
    try:
        files = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got other text in line {error.lineno} ({error.msg})") from None
    if not isinstance(files, dict) or not files:
        raise ValueError(
            f"{path}: expected a JSON object from node to file of FusionNet weights, got {type(files).__name__}"
        )
    unknown = sorted(set(files) - set(config.tree))
    if unknown:
        raise ValueError(f"{path}: expected inner nodes among {', '.join(config.tree)}, got {unknown}")
    config = FusionConfig(config.tree, layout or config.layout, config.hidden)
    nets = {}
    for name, file in files.items():
        if not isinstance(file, str):
            raise ValueError(f"{path}: node {name!r}: expected the name of a file, got {json.dumps(file)}")
        try:
            nets[name] = load_fusion_net(path.parent / file, config.layout, coarse=coarse, q_on=q_on)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{path}: node {name!r}: {error}") from error
    try:
        return FusionHierarchy(config, nets).eval()
    except ValueError as error:  # networks that do not fit each other
        raise ValueError(f"{path}: {error}") from error
