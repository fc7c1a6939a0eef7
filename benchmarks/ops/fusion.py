"""StyleFusion's face hierarchy, five FusionNets around latent_blend, on the style codes of StyleGAN2 at 1024.

Contenders: `eager` (the plain form: `use_plan("dense")` and `use_backend("reference")`, layer by layer and sample by sample
as published), ours under each backend, and on CUDA ours as a CUDA graph. Forward only, weights folded ahead as in eval.
Floor: reading every weight once at read bandwidth, or the operations at the best measured matrix rate.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mixsyn_fast.models.stylefusion import FACES
from torch import Tensor

from mixsyn_fast import backend
from mixsyn_fast.layers.fusion_hierarchy import FusionConfig, FusionHierarchy
from mixsyn_fast.measure.contest import Function, Normal, Outputs, is_ours
from mixsyn_fast.ops.latent_blend import StyleLayout

from ..cases import DTYPES, Labels
from .base import OpBench, Target, Work

_AGREEMENT = 1e-10  # of the folded and the plain form in float64


@dataclass(frozen=True)
class FusionCase:
    """The face hierarchy on one batch of codes."""

    batch: int = 1
    size: int = 1024  # of the generator's images: decides the layout
    hidden: int = 2560
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        return f"fusion_hierarchy/faces/b{self.batch}/{self.size}/h{self.hidden}/{self.dtype}"


class FusionBench(OpBench):
    """One row of the hierarchy."""

    op = "fusion_hierarchy"
    ops = ("latent_blend",)
    same_as_reference = "eager"
    modes = ("forward",)
    case: FusionCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[FusionCase]:
        """A single image and a batch."""
        if quick:
            return [FusionCase(dtype=dtype)]
        return [FusionCase(1, dtype=dtype), FusionCase(16, dtype=dtype)]

    @classmethod
    def compiles(cls, case: FusionCase) -> bool:
        """Only with --all: it unrolls the plain form, which takes minutes."""
        return False

    def prepare(self, labels: Labels) -> None:
        """Make the networks and draw the code of every node."""
        case = self.case
        torch.manual_seed(7)
        config = FusionConfig(FACES.tree, StyleLayout.stylegan2(case.size), case.hidden)
        self.hierarchy = FusionHierarchy(config).eval().requires_grad_(False)
        self.hierarchy.to(self.device, DTYPES[case.dtype])
        if case.batch > 1:
            self.seldom = ("eager",)
        normal = Normal(self.device, DTYPES[case.dtype])
        self.inputs = {name: normal(case.batch, config.layout.size) for name in self.hierarchy.names}

    def _fuse(self, hierarchy: FusionHierarchy, codes: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return hierarchy(dict(zip(hierarchy.names, codes, strict=True)))

    def _plain(self, *codes: Tensor) -> Outputs:
        with backend.use_plan("dense"), backend.use_backend("reference"):
            return (self._fuse(self.hierarchy, codes),)

    def ours(self, *codes: Tensor) -> Outputs:
        """The layer, folded."""
        with backend.use_plan("auto"):
            return (self._fuse(self.hierarchy, codes),)

    def plain(self) -> dict[str, Function]:
        """The plain form."""
        return {"eager": self._plain}

    def reference(self, *inputs: Tensor) -> Outputs:
        """The plain form. In float64: the folded form, held against the plain one on one sample, which is much quicker."""
        if inputs[0].dtype == self.dtype:
            return self._plain(*inputs)
        wide = copy.deepcopy(self.hierarchy).to(inputs[0].dtype)
        with backend.use_backend("reference"):
            folded = self._fuse(wide, inputs)
            with backend.use_plan("dense"):
                plain = self._fuse(wide, [code[:1] for code in inputs])
        error = float((folded[:1] - plain).abs().max() / plain.abs().max())
        if not error < _AGREEMENT:
            raise RuntimeError(f"{self.case.name}: the folded form is off by {error:.1e} in float64")
        return (folded,)

    def contenders(self, *, compiled: bool) -> dict[str, Function]:
        """Eager, compile for a single image, ours, and on CUDA ours as a graph."""
        found = super().contenders(compiled=compiled and self.case.batch == 1)
        if self.device.type == "cuda":
            own = {f"{name}+graph": CudaGraph(f, list(self.inputs.values())) for name, f in found.items() if is_ours(name)}
            found |= own
        return found

    def work(self, mode: str) -> Work:
        """Every weight once; per row of a layer the products that folding leaves."""
        operations = 0
        for net in self.hierarchy.nets.values():
            blenders: tuple[tuple[Any, int], ...] = ((net.blender_common, 2), (net.blender_segments, 1))
            for blender, codes in blenders:
                later = sum(linear.weight.numel() for linear in blender.linears[1:])
                extra = blender.extra_layers or ()
                widths = [c * (3 if i in extra else 2) for i, c in enumerate(blender.layout.channels)]
                operations += 2 * codes * self.case.batch * sum(blender.hidden * width + later for width in widths)
        weights = sum(p.nbytes for p in self.hierarchy.parameters())
        return Work(read=weights, operations=operations)

    @property
    def probe_bytes(self) -> int:
        """Of the weights."""
        return sum(p.nbytes for p in self.hierarchy.parameters())

    def targets(self, mode: str) -> Sequence[Target]:
        """Ten times the plain form for one image, fifteen times for a batch; on a GPU less than 0.3 ms for one."""
        goals = [Target("eager", least=10.0 if self.case.batch == 1 else 15.0)]
        if self.device.type == "cuda" and self.case.batch == 1:
            goals.append(Target("seconds", most=0.3e-3))
        return goals


class CudaGraph:
    """A function of fixed inputs captured once; calling it replays the kernels and returns the same result tensors.

    Args:
        function: runs on the GPU without synchronisation.
        inputs: its arguments; another call's arguments are copied into these.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.function, self.inputs = function, inputs
        self.graph: Any = None
        self.outputs: Outputs = ()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Replay."""
        if self.graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.function(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(*self.inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            if own.data_ptr() != given.data_ptr():
                own.copy_(given)
        self.graph.replay()
        return self.outputs
