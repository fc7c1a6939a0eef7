"""What the bench of every op is made of: a row's inputs, its contenders, their gates, the floor and the targets.

A bench class describes one row: `inputs` (differentiable tensors by name), `output_grads`, `functions` (contenders),
`reference` (the specification) and `work` (what no implementation can avoid). All else is the same for every op and
stands here, and in `benchmarks.run_ops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mixsyn_fast import backend
from mixsyn_fast.progress import progress

from ..cases import Labels
from ..gate import Gate, gate
from ..timing import Call

MODES = ("forward", "backward", "both")
OURS = ("native", "triton", "ours")  # names of our contenders, up to a "+"
Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]

# The floor of torch's own forms: their rounding is not on trial (a variance or a long sum in another order).
_TORCH_FLOOR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def is_ours(name: str) -> bool:
    """True for the name of a contender of the package."""
    return name.split("+")[0] in OURS


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


def under_backend(name: str, function: Function) -> Function:
    """The function with the package's ops on one backend."""

    def call(*inputs: Tensor) -> Outputs:
        with backend.use_backend(name):
            return function(*inputs)

    return call


def compile_form(function: Function) -> Function:
    """torch.compile for the row's shapes, with an empty cache of earlier rows."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


class Normal:
    """Reproducible normal tensors of one device and dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 7) -> None:
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(seed)

    def __call__(
        self, *shape: int, scale: float = 1.0, offset: float = 0.0, layout: torch.memory_format | None = None
    ) -> Tensor:
        """(shape) with the given mean and standard deviation."""
        drawn = torch.randn(*shape, generator=self.generator).mul_(scale).add_(offset).to(self.device, self.dtype)
        return drawn if layout is None else drawn.contiguous(memory_format=layout)


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


class OpBench(ABC):
    """One row of an op.

    Args:
        case: the row.
        labels: where label maps come from.
        device: where it runs.
        compiled: with torch.compile among the contenders.
    """

    op: ClassVar[str]
    found: ClassVar[list[type[OpBench]]] = []  # every class that names an op
    outputs: ClassVar[tuple[str, ...]] = ("y",)
    modes: tuple[str, ...] = MODES
    seldom: tuple[str, ...] = ()  # contenders too slow for many samples
    threads: int | None = None  # of torch, for the whole row
    baseline: str = "eager"  # the contender whose memory ours is compared with
    same_as_reference: str = ""  # the contender that is the reference itself

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "op" in vars(cls):
            OpBench.found.append(cls)

    def __init__(self, case: Any, labels: Labels, device: torch.device | str = "cpu", *, compiled: bool = False) -> None:
        self.case, self.device = case, torch.device(device)
        self.inputs: dict[str, Tensor] = {}
        self.output_grads: tuple[Tensor, ...] = ()  # of the first outputs, those that are differentiable
        self.functions: dict[str, Function] = {}
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

    @abstractmethod
    def reference(self, *inputs: Tensor) -> Outputs:
        """The specification in plain PyTorch, in the dtype of its inputs."""

    @abstractmethod
    def contenders(self, *, compiled: bool) -> dict[str, Function]:
        """Name -> function of the inputs; ours under the names of their backends."""

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

    def results(self, function: Function, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All outputs and all gradients."""
        leaves = [t.detach().to(dtype or t.dtype) for t in self.inputs.values()]
        differentiable = bool(self.output_grads)
        for leaf in leaves:
            leaf.requires_grad_(differentiable)
        found = function(*leaves)
        named = {name: t.detach() for name, t in zip(self.outputs, found, strict=False)}
        if differentiable:
            grads = torch.autograd.grad(
                found[: len(self.output_grads)],
                leaves,
                [g.to(y.dtype) for g, y in zip(self.output_grads, found, strict=False)],
            )
            named |= {f"grad_{name}": g for name, g in zip(self.inputs, grads, strict=True)}
        return named

    def gates(self) -> dict[str, Gate]:
        """Every contender against the reference in float64; one that raises fails its gate and says why.

        Ours may be off by twice what the reference is in its own dtype, forms of torch by _TORCH_FLOOR more.
        """
        exact = self.results(self.reference, torch.float64)
        own = self.results(self.reference)
        results: dict[str, dict[str, Tensor]] = {}
        verdicts: dict[str, Gate] = {}
        for name, function in self.functions.items():
            try:
                with progress(f"{name} of {self.case.name}: first call"):
                    results[name] = own if name == self.same_as_reference else self.results(function)
            except Exception as error:  # the row goes on without this contender
                verdicts[name] = Gate(False, float("inf"), 0.0, f"{type(error).__name__}: {str(error)[:200]}")
        for name, found in results.items():
            if is_ours(name):
                verdicts[name] = gate(found, own, exact)
                continue
            returned = {key: value for key, value in exact.items() if key in found}  # it may return less
            verdicts[name] = gate(found, own, returned, floor=_TORCH_FLOOR.get(self.dtype))
        return {name: verdicts[name] for name in self.functions}

    def calls(self, mode: str, names: Sequence[str] | None = None) -> dict[str, Call]:
        """Calls without arguments for a mode: forward (no graph), backward (alone), both."""
        chosen = {n: f for n, f in self.functions.items() if names is None or n in names}
        return {name: self._call(mode, function) for name, function in chosen.items()}

    def _call(self, mode: str, function: Function) -> Call:
        if mode == "forward":
            return lambda: function(*self.inputs.values())
        leaves = [t.detach().requires_grad_() for t in self.inputs.values()]
        grads = self.output_grads
        if mode == "backward":
            y = function(*leaves)[: len(grads)]
            return lambda: torch.autograd.grad(y, leaves, grads, retain_graph=True)

        def both() -> tuple[Any, ...]:
            y = function(*leaves)[: len(grads)]
            return y, torch.autograd.grad(y, leaves, grads)  # y is a result too, not temporary memory

        return both

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the differentiable inputs."""
        return next(iter(self.inputs.values())).dtype if self.inputs else torch.float32

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
