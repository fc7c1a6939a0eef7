"""Trees of FusionNets (StyleFusion, Sec. 4.5 and Appendix A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..ops.latent_blend import StyleLayout
from .fusion import FusionNet, fuse_level

Tree = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class FusionConfig:
    """A hierarchy of regions.

    Attributes:
        tree: the two children of every inner node, first region first; names without an entry are leaves.
        layout: the S space of the generator.
        hidden: width of the hidden layers of all networks.
    """

    tree: Tree
    layout: StyleLayout = field(default_factory=StyleLayout.stylegan2)
    hidden: int = 2560


def _checked_tree(tree: Tree) -> tuple[dict[str, tuple[str, str]], str]:
    """Return the tree with its inner nodes in order from the root down, and the root."""

    def fail(expected: str, got: object) -> None:
        raise ValueError(f"FusionHierarchy: tree: expected {expected}, got {got}")

    parent: dict[str, str] = {}
    for name, children in tree.items():
        if isinstance(children, str) or len(children) != 2:
            fail(f"two children of {name!r}", repr(children))
        for child in children:
            if child in parent:
                fail(f"one parent per node, {child!r} is a child of {parent[child]!r}", f"{name!r} as well")
            parent[child] = name
    roots = [name for name in tree if name not in parent]
    if len(roots) != 1:
        fail("one node that is no child", f"{len(roots)}: {roots}")
    ordered: dict[str, tuple[str, str]] = {}
    waiting = [roots[0]]
    while waiting:
        name = waiting.pop(0)
        if name in tree:
            first, second = tree[name]
            ordered[name] = (first, second)
            waiting += (first, second)
    if len(ordered) != len(tree):
        fail("every node below the root", f"a cycle of {sorted(set(tree) - set(ordered))}")
    return ordered, roots[0]


class FusionHierarchy(nn.Module):
    """A tree of FusionNets: from one code per region to one code of the image (Fig. 7).

    Args:
        config: tree, S space and hidden width. A plain mapping from a node to its two children takes the other settings
            from the defaults.
        nets: FusionNets of inner nodes, loaded ones for instance; a node without one is always bypassed. None for new ones,
            one per inner node.

    Raises:
        ValueError: not a binary tree, or networks of unknown nodes or of another S space.
    """

    def __init__(self, config: FusionConfig | Tree, nets: Mapping[str, FusionNet] | None = None) -> None:
        super().__init__()
        config = config if isinstance(config, FusionConfig) else FusionConfig(config)
        self.tree, self.root = _checked_tree(config.tree)
        self.layout = config.layout
        if nets is None:
            nets = {name: FusionNet(config.layout, hidden=config.hidden) for name in self.tree}
        unknown = sorted(set(nets) - set(self.tree))
        if unknown:
            raise ValueError(f"FusionHierarchy: nets: expected inner nodes among {', '.join(self.tree)}, got {unknown}")
        nets = {name: nets[name] for name in self.tree if name in nets}
        for name, net in nets.items():
            like = next(iter(nets.values()))
            if net.layout != config.layout or net.coarse_layers != like.coarse_layers:
                raise ValueError(
                    f"FusionHierarchy: nets: expected layout and coarse layers of the tree for {name!r}, "
                    f"got S={net.layout.size} and {len(net.coarse_layers)} coarse layers"
                )
            depths = (net.blender_segments.depth, like.blender_segments.depth)
            if depths[0] != depths[1]:
                raise ValueError(f"FusionHierarchy: nets: expected depth {depths[1]} for {name!r}, got {depths[0]}")
            if net.q_on != like.q_on:
                raise ValueError(f"FusionHierarchy: nets: expected q_on {like.q_on!r} for {name!r}, got {net.q_on!r}")
            if net.global_code != like.global_code:
                raise ValueError(
                    f"FusionHierarchy: nets: expected global_code {like.global_code} for {name!r}, got {net.global_code}"
                )
        self.nets = nn.ModuleDict(nets)
        self.names = tuple(dict.fromkeys([*self.tree, *(c for pair in self.tree.values() for c in pair)]))

    def _net(self, name: str) -> FusionNet:
        net = self.nets[name]
        assert isinstance(net, FusionNet)
        return net

    def below(self, name: str) -> tuple[str, ...]:
        """Return the names of all nodes below one, itself left out; none below a leaf."""
        return tuple(n for child in self.tree.get(name, ()) for n in (child, *self.below(child)))

    def _levels(self, given: frozenset[str], strict: bool) -> list[list[str]]:
        """Inner nodes that run, by height: everything that a level needs comes from the levels before it."""
        levels: list[list[str]] = []

        def visit(name: str) -> int:
            children = self.tree.get(name, ())
            missing = [child for child in children if child not in given]
            if not children or missing or name not in self.nets:
                ignored = [n for n in self.below(name) if n in given] if strict else []
                if ignored:
                    why = f"without it {name!r} passes its own code" if missing else f"{name!r} has no network"
                    expected = f"an entry {missing[0]!r}" if missing else f"no entry below {name!r}"
                    raise ValueError(
                        f"FusionHierarchy: codes: expected {expected} (strict: {why}, and those of {', '.join(ignored)} "
                        "would be ignored)"
                    )
                return 0
            height = 1 + max(visit(child) for child in children)
            while len(levels) < height:
                levels.append([])
            levels[height - 1].append(name)
            return height

        visit(self.root)
        return levels

    def forward(self, codes: Mapping[str, Tensor], *, strict: bool = False) -> Tensor:
        """Fuse the codes of all regions.

        A node fuses the codes of its two children under its own, s_align. A node one of whose two children has no entry in
        `codes` passes its own code instead, and so does a node without a network (the rule of the published code): entries
        below it are ignored.

        Args:
            codes: code (B, S) by name, B may be 0, all of one shape, dtype and device. A leaf's entry is the code of the
                region; an inner node's entry is its global code (s_align), or the code of its region when it passes that.
            strict: raise where an entry would be ignored.

        Returns:
            (B, S), the code of the whole image.

        Raises:
            ValueError: the root's entry is missing, an entry is unknown or (strict) ignored, or shapes or devices differ.
            TypeError: dtypes differ.
        """
        unknown = sorted(set(codes) - set(self.names))
        if unknown:
            raise ValueError(f"FusionHierarchy: codes: expected names among {', '.join(self.names)}, got {unknown}")
        if self.root not in codes:
            raise ValueError(f"FusionHierarchy: codes: expected an entry {self.root!r}, the root's, got none")
        levels = self._levels(frozenset(codes), strict)
        entries = [(f"codes[{name!r}]", codes[name]) for name in self.names if name in codes]
        like_name, like = entries[0]
        for name, code in entries:
            if code.dim() != 2 or code.shape[1] != self.layout.size:
                raise ValueError(f"FusionHierarchy: {name}: expected shape (B, {self.layout.size}), got {tuple(code.shape)}")
            if code.shape != like.shape:
                raise ValueError(
                    f"FusionHierarchy: {name}: expected batch {like.shape[0]} as {like_name}, got {code.shape[0]}"
                )
            if code.dtype != like.dtype:
                raise TypeError(f"FusionHierarchy: {name}: expected {like.dtype} as {like_name}, got {code.dtype}")
            if code.device != like.device:
                raise ValueError(f"FusionHierarchy: {name}: expected device {like.device} as {like_name}, got {code.device}")
        values = dict(codes)
        for names in levels:
            children = [self.tree[name] for name in names]
            regions = [values[first] for first, _ in children] + [values[second] for _, second in children]
            pairs = torch.stack(regions).unflatten(0, (2, len(names)))
            s_align = torch.stack([codes[name] for name in names])
            fused = fuse_level([self._net(name) for name in names], pairs, s_align)[0]
            values |= zip(names, fused.unbind(0), strict=True)
        return values[self.root]
