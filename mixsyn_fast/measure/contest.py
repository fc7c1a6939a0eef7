"""A contest: implementations of one function on the same inputs, which must agree before they are timed.

A contest says what its inputs are, which function it is about (`reference`, the specification), what else computes it in
plain PyTorch, and how ours is called. Gates and calls are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .. import backend
from ..progress import progress
from .clock import Call
from .gate import Gate, gate

MODES = ("forward", "backward", "both")
OURS = ("native", "triton", "ours")  # names of our contenders, up to a "+"
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]

# The floor of torch's own forms: their rounding is not on trial (a variance or a long sum in another order).
_TORCH_FLOOR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def is_ours(name: str) -> bool:
    """True for the name of a contender of the package."""
    return name.split("+")[0] in OURS


def is_plain(name: str) -> bool:
    """True for the name of a contender in plain PyTorch: neither ours, nor compiled, nor a floor."""
    return not is_ours(name) and name != "compile" and not name.startswith("floor")


def under_backend(name: str, function: Function) -> Function:
    """The function with the package's ops on one backend."""

    def call(*inputs: Tensor) -> Outputs:
        with backend.use_backend(name):
            return function(*inputs)

    return call


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


class Contest(ABC):
    """Implementations of one function on the same inputs.

    Attributes:
        name: for people.
        inputs: differentiable tensors by name.
        output_grads: of the first outputs, those that are differentiable.
        functions: the contenders by name.
    """

    outputs: ClassVar[tuple[str, ...]] = ("y",)
    modes: tuple[str, ...] = MODES
    seldom: tuple[str, ...] = ()  # contenders too slow for many samples
    same_as_reference: str = ""  # the contender that is the reference itself
    name: str
    inputs: dict[str, Tensor]
    output_grads: tuple[Tensor, ...]
    functions: dict[str, Function]

    def __init__(self, name: str = "") -> None:
        self.name, self.inputs, self.output_grads, self.functions = name, {}, (), {}

    @abstractmethod
    def reference(self, *inputs: Tensor) -> Outputs:
        """The specification in plain PyTorch, in the dtype of its inputs."""

    @abstractmethod
    def ours(self, *inputs: Tensor) -> Outputs:
        """The package's function, on the backend in force."""

    @abstractmethod
    def plain(self) -> dict[str, Function]:
        """Forms in plain PyTorch, as somebody without this package writes them."""

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
                with progress(f"{name} of {self.name}: first call"):
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


class OpContest(Contest):
    """A contest about one op, which has a row of its own that takes milliseconds: every file of `measure/ops` has one."""

    op: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "float64")

    @classmethod
    @abstractmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """Return the contest on the op's small row, its functions still empty.

        Args:
            layout: one of `layouts`.
            dtype: one of `dtypes`; of the input that decides.
            device: where it runs.
        """
