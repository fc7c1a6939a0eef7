"""What the bench of every op is made of: a row's inputs, its contenders, their gates, the floor and the targets.

A bench class describes one row: `inputs` (differentiable tensors by name), `output_grads`, `functions` (contenders),
`reference` (the specification) and `work` (what no implementation can avoid). All else is the same for every op and
stands here, in `benchmarks.run_ops`, and, with the plain PyTorch forms of each op, in `mixsyn_fast.measure`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mixsyn_fast import backend, extension
from mixsyn_fast.measure.contest import Contest, Function, Normal, under_backend

from ..cases import Labels


class Case(Protocol):
    """A row of data: settings in a frozen dataclass."""

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases; starts with the op's name."""


@dataclass(frozen=True)
class Work:
    """What no implementation can avoid: bytes of each kind of traffic, and operations (2 per multiply-accumulate)."""

    read: int = 0
    written: int = 0
    copied: int = 0  # read and written, in about equal parts; both counted
    operations: int = 0

    @property
    def bytes(self) -> int:
        """All traffic."""
        return self.read + self.written + self.copied

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of traffic, by their names in :func:`benchmarks.timing.transfers`."""
        named = (("read", self.read), ("write", self.written), ("copy", self.copied))
        return tuple(kind for kind, size in named if size)

    def seconds(self, rates: Mapping[str, float]) -> float:
        """The longer of traffic at the measured bandwidths and operations at the best measured matrix rate."""
        named = (("read", self.read), ("write", self.written), ("copy", self.copied))
        traffic = sum(size / (rates[f"{kind}_gb_s"] * 1e9) for kind, size in named if size)
        return max(traffic, self.operations / (rates["matrix_gflop_s"] * 1e9) if self.operations else 0.0)


@dataclass(frozen=True)
class Target:
    """A goal of a row: `what` is floor, memory_floor, temporary, seconds, or the name of a contender (a speed-up)."""

    what: str
    least: float | None = None
    most: float | None = None

    def met(self, got: float) -> bool:
        """Whether a measured value reaches the goal."""
        return (self.least is None or got >= self.least) and (self.most is None or got <= self.most)


def backends_for(device: torch.device | str, *ops: str) -> list[str]:
    """The package's backends that would really run all of `ops` (of the package's ops, when none are named) on `device`."""
    found = []
    for name in ("native", "triton"):
        with backend.use_backend(name):
            if all(backend.explain(op, device)[0] == name for op in ops or backend.registered_ops()):
                found.append(name)
    return found


def compile_form(function: Function) -> Function:
    """torch.compile for the row's shapes, with an empty cache of earlier rows."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def forward_and_backward(
    function: Function, make: Callable[[Normal], Sequence[Tensor]], device: str, dtype: torch.dtype
) -> Callable[[], None]:
    """Return a call for compute-sanitizer: the native kernels of an op, forward and backward, on leaves drawn anew."""

    def call() -> None:
        leaves = [leaf.requires_grad_() for leaf in make(Normal(torch.device(device), dtype, seed=0))]
        with backend.use_backend("native"):
            results = function(*leaves)
        torch.stack([t.float().square().sum() for t in results]).sum().backward()
        assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in leaves)

    return call


class OpBench(Contest):
    """One row of an op.

    Args:
        case: the row.
        labels: where label maps come from.
        device: where it runs.
        compiled: with torch.compile among the contenders.
    """

    op: ClassVar[str]
    found: ClassVar[list[type[OpBench]]] = []  # every class that names an op
    ops: ClassVar[tuple[str, ...]] = ()  # those that a row runs, where they are others than `op`
    threads: int | None = None  # of torch, for the whole row
    baseline: str = "eager"  # the contender whose memory ours is compared with
    compiles_from: str = "eager"  # the contender that torch.compile gets

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "op" in vars(cls):
            OpBench.found.append(cls)

    def __init__(self, case: Any, labels: Labels, device: torch.device | str = "cpu", *, compiled: bool = False) -> None:
        super().__init__(case.name)
        self.case, self.device = case, torch.device(device)
        self.prepare(labels)
        self.functions = self.contenders(compiled=compiled)

    # --- what an op says about itself

    @classmethod
    @abstractmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[Case]:
        """The rows: a few small ones, the standard ones, or all."""

    @classmethod
    def compiles(cls, case: Any) -> bool:
        """Whether torch.compile takes part in a row without --all: compiling costs seconds a row."""
        return True

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Name -> small call for compute-sanitizer: every kernel, odd sizes too; names start with the op's."""
        return {}

    @abstractmethod
    def prepare(self, labels: Labels) -> None:
        """Make `inputs` and `output_grads`."""

    def contenders(self, *, compiled: bool) -> dict[str, Function]:
        """Name -> function of the inputs: plain PyTorch, torch.compile of it, ours under the names of their backends."""
        found = self.plain()
        if compiled:
            found["compile"] = compile_form(found[self.compiles_from])
        return found | {n: under_backend(n, self.ours) for n in backends_for(self.device, *(self.ops or (self.op,)))}

    def work(self, mode: str) -> Work | None:
        """Unavoidable work of "forward" or "backward"; None where there is no floor."""
        return None

    def targets(self, mode: str) -> Sequence[Target]:
        """The goals of the row."""
        return ()

    def facts(self) -> dict[str, Any]:
        """More for the row's JSON."""
        return {}

    # --- the same for every op

    @property
    def isa(self) -> str | None:
        """The instruction set of our kernels, where the row runs on the CPU."""
        extension.ensure_loaded()
        return extension.instruction_set() if self.device.type == "cpu" else None

    @property
    def bar(self) -> tuple[Target, ...] | None:
        """On the CPU the goal of half types, and on the lowest instruction set of all: no slower than plain PyTorch."""
        if self.device.type != "cpu" or (self.dtype.itemsize != 2 and self.isa in ("avx512", "avx2")):
            return None
        return (Target(self.baseline, least=1.0),)

    @property
    def probe_bytes(self) -> int:
        """Size for the row's own bandwidths, so that what fits the cache is compared with traffic in the cache."""
        return max((t.nbytes for t in self.inputs.values()), default=0)

    def parts(self, mode: str) -> list[Work]:
        """Works of a mode, one after the other; empty where there is no floor."""
        phases = ("forward", "backward") if mode == "both" else (mode,)
        return [work for phase in phases if (work := self.work(phase)) is not None]

    @contextmanager
    def thread_count(self) -> Iterator[None]:
        """Torch's threads as the row wants them."""
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
