"""Trees of regions: those of StyleFusion's domains (Appendix A.1), and any other from a file, JSON or YAML.

A file says of every inner node its two children and how its FusionNet is trained (Appendix A.2)::

    {
     "size": 1024,
     "truncation": 0.7,
     "nodes": {
      "all": {"children": ["face", "background"], "training": "favored", "favored": "face"},
      "face": {"children": ["skin", "eyes"], "training": "short"}
     }
    }

``size`` is that of the StyleGAN2 whose S space published networks work on (1024 where it is missing), ``truncation`` that of
the codes in training (Appendix A.6; 0.7), ``training`` "regular" where it is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers import FusionConfig, FusionHierarchy
from mixsyn_fast.reading import read_text
from mixsyn_fast.writing import write_whole

TRAININGS = ("regular", "short", "favored")


class Training(NamedTuple):
    """How a node's FusionNet is trained (Appendix A.2)."""

    kind: str = "regular"
    """One of :data:`TRAININGS`."""
    favored: str = ""
    """The child whose region weighs more, of "favored"."""


@dataclass(frozen=True)
class RegionTree(FusionConfig):
    """A tree of regions with what training needs to know of it.

    Attributes:
        training: of the inner nodes; "regular" for those that are missing.
        truncation: of the codes in training (Appendix A.6).

    Raises:
        ValueError: not a binary tree, or a training that is none; the message names the node.
    """

    training: Mapping[str, Training] = field(default_factory=dict)
    truncation: float = 0.7

    def __post_init__(self) -> None:
        """Check the tree, and the training of every node."""
        ordered = FusionHierarchy(self, {}).tree
        object.__setattr__(self, "tree", ordered)
        for name in (*ordered, *(child for pair in ordered.values() for child in pair)):
            if not re.fullmatch(r"[\w -]+", name):  # they name networks, files and options
                raise ValueError(f"node {name!r}: expected a name of letters, digits, spaces, _ and -")
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(f"node {name!r}: expected a name that is no attribute of torch's modules")
        if not 0 <= self.truncation <= 1:
            raise ValueError(f"truncation: expected 0 to 1, got {self.truncation}")
        for name, (kind, favored) in self.training.items():
            if name not in ordered:
                raise ValueError(f"training: expected inner nodes among {', '.join(ordered)}, got {name!r}")
            if kind not in TRAININGS:
                raise ValueError(f"node {name!r}: training: expected one of {', '.join(TRAININGS)}, got {kind!r}")
            if (favored in ordered[name]) != (kind == "favored"):
                expected = f"one of its children {', '.join(ordered[name])}" if kind == "favored" else f"none with {kind}"
                raise ValueError(f"node {name!r}: favored: expected {expected}, got {favored!r}")

    @property
    def root(self) -> str:
        """The node of the whole image."""
        return next(iter(self.tree))

    def training_of(self, node: str) -> Training:
        """Return how an inner node is trained."""
        return self.training.get(node, Training())

    def within(self, node: str) -> tuple[str, ...]:
        """Return the names of a node and of all nodes below it: clusters of any of these names are its region."""
        return (node, *(name for child in self.tree.get(node, ()) for name in self.within(child)))

    def ancestors(self, node: str) -> tuple[str, ...]:
        """Return the nodes above one, its parent first, the root last."""
        for name, children in self.tree.items():
            if node in children:
                return (name, *self.ancestors(name))
        return ()

    def to_json(self) -> str:
        """Return what :func:`tree_from_json` reads; the S space is not part of it unless it is StyleGAN2's of some size."""
        nodes = {}
        for name, children in self.tree.items():
            kind, favored = self.training_of(name)
            nodes[name] = {"children": children, "training": kind} | ({"favored": favored} if favored else {})
        sizes = [size for size in _SIZES if StyleLayout.stylegan2(size) == self.layout]
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(node)}" for name, node in nodes.items())
        size = f' "size": {sizes[0]},\n' if sizes else ""
        return f'{{\n{size} "truncation": {json.dumps(self.truncation)},\n "nodes": {{\n{rows}\n }}\n}}\n'


_SIZES = tuple(2**i for i in range(2, 11))

FACES = RegionTree(
    {
        "all": ("face", "bg_hair_clothes"),
        "face": ("skin_mouth", "eyes"),
        "skin_mouth": ("mouth", "skin"),
        "bg_hair_clothes": ("bg_clothes", "hair"),
        "bg_clothes": ("clothes", "bg"),
    },
    training={"all": Training("favored", "face"), "face": Training("short")},
)
CARS = RegionTree(
    {
        "all": ("car", "background"),
        "car": ("car_body", "wheels"),
        "background": ("background_top", "background_bottom"),
    },
    StyleLayout.stylegan2(512),
    training={"all": Training("favored", "car"), "car": Training("short"), "background": Training("short")},
    truncation=0.5,
)
CHURCHES = RegionTree(
    {"all": ("church", "background")},
    StyleLayout.stylegan2(256),
    training={"all": Training("favored", "church")},
    truncation=0.5,
)

DRAWN_FACES = RegionTree(
    {"all": ("face", "bg_hair"), "bg_hair": ("hair", "bg")},
    StyleLayout.stylegan2(64),
    training={"all": Training("favored", "face")},
)
FACADES = RegionTree(
    {"all": ("building", "background"), "building": ("wall", "openings")},
    StyleLayout.stylegan2(64),
    training={"all": Training("favored", "background"), "building": Training("favored", "openings")},
)

DOMAINS = {"faces": FACES, "cars": CARS, "churches": CHURCHES, "drawn_faces": DRAWN_FACES, "facades": FACADES}
"""Trees by the name of their domain: the paper's, and those of the shipped models."""


def tree_from_json(text: str) -> RegionTree:
    """Read a tree from the text of a JSON file.

    Raises:
        ValueError: not JSON, or not a tree; the message names the node.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got other text in line {error.lineno} ({error.msg})") from None
    return _tree(content)


def _from_yaml(text: str) -> RegionTree:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("trees in YAML need pyyaml: pip install 'mixsyn_fast[models]', or write JSON") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML, got other text ({' '.join(str(error).split())})") from None
    return _tree(content)


def _tree(content: Any) -> RegionTree:
    _check_keys("", content, {"nodes"}, {"size", "truncation"})
    nodes = content["nodes"]
    if not isinstance(nodes, dict):
        raise ValueError(f"nodes: expected an object of nodes, got {_said(nodes)}")
    tree, training = {}, {}
    for name, node in nodes.items():
        where = f"node {name!r}: "
        _check_keys(where, node, {"children"}, {"training", "favored"})
        children = node["children"]
        if not isinstance(children, list) or len(children) != 2 or not all(isinstance(c, str) and c for c in children):
            raise ValueError(f"{where}children: expected two names, got {_said(children)}")
        tree[name] = (children[0], children[1])
        training[name] = Training(node.get("training", "regular"), node.get("favored", ""))
    size, truncation = content.get("size", 1024), content.get("truncation", 0.7)
    if type(size) is not int or size not in _SIZES:
        raise ValueError(f"size: expected a power of two from 4 to 1024, got {_said(size)}")
    if type(truncation) not in (int, float):
        raise ValueError(f"truncation: expected a number from 0 to 1, got {_said(truncation)}")
    return RegionTree(tree, StyleLayout.stylegan2(size), training=training, truncation=truncation)


def read_tree(path: str | os.PathLike[str]) -> RegionTree:
    """Read a tree from a JSON file (see above), or the same in YAML from a file called .yaml or .yml.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither, or not a tree; the message names the file and the node.
        ImportError: a YAML file, and pyyaml is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file (expected a tree of regions as JSON or YAML)")
    try:
        return (_from_yaml if Path(path).suffix.lower() in (".yaml", ".yml") else tree_from_json)(read_text(path))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def write_tree(path: str | os.PathLike[str], tree: RegionTree) -> None:
    """Write a tree as JSON, whole or not at all; raises OSError."""
    write_whole(path, tree.to_json())


def find_tree(name: str | os.PathLike[str]) -> RegionTree:
    """Return a domain's tree by its name, or the one of a file, or of its text (what begins with a brace).

    Raises:
        FileNotFoundError: neither.
        ValueError: a file, or text, of something else.
    """
    text = os.fspath(name)
    if text in DOMAINS:
        return DOMAINS[text]
    if text.lstrip().startswith("{"):
        return tree_from_json(text)
    if not Path(text).is_file():
        raise FileNotFoundError(f"tree: expected one of {', '.join(DOMAINS)} or a file of a tree, got {text!r}")
    return read_tree(text)


def _said(value: Any) -> str:
    said = json.dumps(value, default=str)  # YAML has dates
    return said if len(said) <= 60 else f"{said[:57]}..."


def _check_keys(where: str, content: Any, needed: set[str], known: set[str]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where}expected an object with names, got {_said(content)}")
    missing, unknown = sorted(needed - set(content)), sorted(set(content) - needed - known)
    if missing or unknown:
        expected = f"{', '.join(sorted(needed))} and perhaps {', '.join(sorted(known))}"
        raise ValueError(f"{where}expected {expected}; got missing {missing}, unknown {unknown}")
