"""Settings of StyleFusion's training. Defaults are the paper's (Appendix A.2, A.3, A.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .trees import RegionTree, find_tree


class Stage(NamedTuple):
    """A stage of a node's training (Sec. 4.4): steps `start` to `stop` - 1 of the run."""

    node: str
    number: int
    start: int
    stop: int


class Coefficients(NamedTuple):
    """What the two regions of a node weigh in the losses that tell them apart."""

    local: tuple[float, float]
    fusion: tuple[float, float]


@dataclass(frozen=True)
class Config:
    """Settings of StyleFusion's training."""

    generator: str = ""  # the StyleGAN2 whose codes are fused: a file, or a run folder
    segments: str = ""  # file of the generator's segments (mixsyn-fast stylefusion segments), or its text
    tree: str = "faces"  # faces, cars, churches, drawn_faces, facades, or a file of a tree, JSON or YAML
    nodes: tuple[str, ...] = ()
    """inner nodes to train, from the top down; none: all. Those above them must be trained before"""
    training: Literal["tree", "regular", "short", "favored"] = "tree"
    """configuration of all nodes; tree: as the tree says of each (favored: its child; else the first one)"""
    ablation: Literal["none", "no_global", "no_stage1", "no_stage2", "no_stage3"] = "none"
    """what is left out (Sec. 7): the global code, or a stage of the training"""
    truncation: float | None = None  # of the codes; none: the tree's
    hidden: int = 1536  # width of the hidden layers (published weights: 2560)
    coarse: int = 5  # how many layers of the conv list and of the RGB list are aligned
    q_on: Literal["a", "b"] = "b"  # code that q multiplies: b (published weights) or a (Eq. 2)
    stage1: int = 5000  # steps of a node that train the alignment alone
    stage2: int = 10_000  # steps that train the fusion alone
    stage3: int = 10_000  # steps that train both; "short" has none
    mask: float = 30_000.0  # weight of the mask loss (Eq. 3), stage 1
    mask3: float = 0.0  # weight of the mask loss in stage 3, where the paper has none: keeps what stage 1 aligned
    local: float = 15_000.0  # weight of the localization loss (Eq. 5), stage 3
    local_favored: float = 20_000.0  # "favored": of the term of the favored region
    local_other: float = 10_000.0  # and of the other's
    align_reg1: float = 6.0  # weight of the alignment's regularisation (Eq. 6) in stage 1
    align_reg3: float = 1.0  # and in stage 3
    fusion: float = 375.0  # weight of the fusion loss (Eq. 7)
    fusion_favored: float = 500.0  # "favored": of the term of the favored region
    fusion_other: float = 250.0  # and of the other's
    local_norm: Literal["paper", "rms"] = "paper"
    """how the localization loss is divided: by the mask's size (Eq. 5: it falls with the image's side), or by its root"""
    epsilon: float = 0.1  # how far a code is perturbed (Eq. 4)
    temperature: float = 0.0  # of the soft masks; 0: that of the segments' file
    lr: float = 0.01  # learning rate of Adam; the layers' own factor of 0.01 comes on top
    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of Adam's moments
    weight_decay: float = 0.0  # L2, of the networks in training alone

    def __post_init__(self) -> None:
        """Check every field once."""
        for name in ("stage1", "stage2", "stage3", "mask", "mask3", "local", "local_favored", "local_other"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("align_reg1", "align_reg3", "fusion", "fusion_favored", "fusion_other", "temperature", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("hidden", "coarse"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.truncation is not None and not 0 <= self.truncation <= 1:
            raise ValueError(f"truncation: expected 0 to 1, or none, got {self.truncation}")
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon: expected a number above 0, at most 1, got {self.epsilon}")
        if not self.lr > 0:
            raise ValueError(f"lr: expected a positive number, got {self.lr}")

    def region_tree(self) -> RegionTree:
        """Return the tree; FileNotFoundError, ValueError: there is none, or it has not all of `nodes`."""
        tree = find_tree(self.tree)
        unknown = [node for node in self.nodes if node not in tree.tree]
        if unknown:
            raise ValueError(f"nodes: expected inner nodes among {', '.join(tree.tree)}, got {', '.join(unknown)}")
        return tree

    def trained_nodes(self, tree: RegionTree) -> tuple[str, ...]:
        """Return the nodes that are trained, each after those above it."""
        return tuple(node for node in tree.tree if not self.nodes or node in self.nodes)

    def needed_nodes(self, tree: RegionTree) -> tuple[str, ...]:
        """Return the nodes above the trained ones that are not trained themselves: the run must begin with their weights."""
        trained = self.trained_nodes(tree)
        above = {name for node in trained for name in tree.ancestors(node)}
        return tuple(node for node in tree.tree if node in above and node not in trained)

    def kind_of(self, tree: RegionTree, node: str) -> tuple[str, str]:
        """Return a node's training, and its favored child, empty but for "favored"."""
        kind, favored = tree.training_of(node)
        if self.training != "tree":
            kind, favored = self.training, (favored or tree.tree[node][0]) if self.training == "favored" else ""
        return kind, favored

    def stages(self, tree: RegionTree) -> tuple[Stage, ...]:
        """Return all stages of a run, one after the other; those without steps are left out."""
        found: list[Stage] = []
        for node in self.trained_nodes(tree):
            short = self.kind_of(tree, node)[0] == "short"
            steps = {1: self.stage1, 2: self.stage2, 3: 0 if short else self.stage3}
            if self.ablation == "no_global":
                steps[1] = 0  # there is nothing to align
            elif self.ablation.startswith("no_stage"):
                steps[int(self.ablation[-1])] = 0
            for number, count in steps.items():
                start = found[-1].stop if found else 0
                if count:
                    found.append(Stage(node, number, start, start + count))
        if not found:
            raise ValueError("stage1, stage2, stage3: expected steps in one of them, got none")
        return tuple(found)

    def steps(self, tree: RegionTree) -> int:
        """Return the steps of a whole run."""
        return self.stages(tree)[-1].stop

    def coefficients(self, tree: RegionTree, node: str) -> Coefficients:
        """Return what the regions of a node's two children weigh."""
        kind, favored = self.kind_of(tree, node)
        if kind != "favored":
            return Coefficients((self.local, self.local), (self.fusion, self.fusion))
        local, fusion = (self.local_favored, self.local_other), (self.fusion_favored, self.fusion_other)
        turn = 1 if tree.tree[node][0] == favored else -1
        return Coefficients((local[::turn][0], local[::turn][1]), (fusion[::turn][0], fusion[::turn][1]))
