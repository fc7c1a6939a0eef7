"""What all ops share: accepted types, dense memory, errors, and :class:`Op`, which registers an op with all its kernels."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Real
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # handed on there without a word to type checkers

from .. import backend

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LARGEST = sys.float_info.max
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of statistics and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(t: Tensor) -> bool:
    """True where the channels of a (B, C, H, W) tensor are adjacent, and not also its pixels."""
    return not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def dense(t: Tensor, like: Tensor | None = None) -> Tensor:
    """Contiguous or channels_last memory (that of ``like`` where given): the two layouts that kernels read.

    Args:
        t: (B, C, H, W).
        like: a dense tensor of the same shape, or None.

    Returns:
        ``t`` itself where its strides fit, else a copy.
    """
    if like is not None:
        return t if t.stride() == like.stride() else torch.empty_like(like, dtype=t.dtype).copy_(t)
    if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last):
        return t
    # A slice along channels of a channels_last tensor stays channels_last: its channels are still adjacent.
    channels_last = t.dim() == 4 and t.stride(1) == 1
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# --- errors ----------------------------------------------------------------------------------------------------------


def fail(op: str, argument: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    """Raise the error of an argument that does not fit: its name, what was expected and what came."""
    raise error(f"{op}: {argument}: expected {expected}, got {got}")


def described(value: object) -> str:
    """What came, for a message: a number or a text as it is written, with its type; of anything else the type."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        kind = str(value.dtype) if value.layout is torch.strided else str(value.layout)
        return f"a tensor of shape {tuple(value.shape)} ({kind})"
    kind = type(value).__name__
    if isinstance(value, str | bytes | int | float | complex | Real):
        text = repr(value) if isinstance(value, str | bytes) else str(value)
        return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"
    return kind


def check_tensor(op: str, argument: str, t: object, expected: str = "a tensor") -> None:
    """Raise TypeError unless ``t`` is a tensor, ValueError unless it has dense memory (not sparse, not nested)."""
    if not isinstance(t, Tensor):
        fail(op, argument, expected, described(t), TypeError)
    if t.layout is not torch.strided or t.is_nested:
        kind = "a nested tensor" if t.is_nested else f"a tensor of layout {t.layout}"
        fail(op, argument, f"{expected} with dense memory", kind)


def check_values(op: str, argument: str, t: Tensor) -> None:
    """Raise ValueError for a tensor on the device meta, where its values have to be looked at."""
    if t.is_meta:
        fail(op, argument, "a tensor with values", "a tensor on the device meta, which has a shape alone")


def check_labels(op: str, argument: str, t: object, expected: str = "a tensor", volumes: bool = False) -> None:
    """Raise unless ``t`` is a label map (B, H, W) of integers: TypeError by type and dtype, ValueError by shape.

    With ``volumes`` it may be (B, D, H, W) as well.
    """
    check_tensor(op, argument, t, expected)
    assert isinstance(t, Tensor)
    if t.dim() != 3 and not (volumes and t.dim() == 4):
        fail(op, argument, "shape (B, H, W)" + " or (B, D, H, W)" * volumes, f"shape {tuple(t.shape)}")
    if t.dtype not in INTEGERS:
        fail(op, argument, "an integer dtype (int64, int32, int16, int8 or uint8)", t.dtype, TypeError)


def check_number(
    op: str, argument: str, value: Any, low: float = -_LARGEST, high: float = _LARGEST, expected: str = "a finite number"
) -> float:
    """Return an argument that is a number as a float.

    Args:
        op: what was called.
        argument: its name.
        value: a number of Python or numpy, or a tensor of none dimensions.
        low: the least value; infinite ones are outside of the defaults.
        high: the largest value.
        expected: the words of the message.

    Raises:
        TypeError: not a number (True and False are none).
        ValueError: not finite, or outside of [low, high].
    """
    if not isinstance(value, float):
        scalar = isinstance(value, Tensor) and value.dim() == 0 and value.dtype not in (torch.bool, *_COMPLEX)
        if not (scalar or isinstance(value, Real | torch.SymFloat | torch.SymInt)) or isinstance(value, bool):
            fail(op, argument, expected, described(value), TypeError)
    number = float(value)
    if not low <= number <= high:  # so is NaN
        fail(op, argument, expected, number)
    return number


def check_integer(op: str, argument: str, value: Any, low: int, high: int | None, expected: str | None = None) -> int:
    """Return an argument that is an integer as an int.

    Args:
        op: what was called.
        argument: its name.
        value: an integer of Python or numpy, or an integer tensor of none dimensions.
        low: the least value.
        high: the largest value, None for none.
        expected: the words of the message; None for those of the range.

    Raises:
        TypeError: not an integer (True and False are none, nor is 2.0).
        ValueError: outside of [low, high].
    """
    expected = expected or (f"an integer of at least {low}" if high is None else f"{low} to {high}")
    if isinstance(value, int | torch.SymInt):
        number = value
        wrong = isinstance(value, bool)
    else:
        wrong = not hasattr(value, "__index__") or (isinstance(value, Tensor) and _no_integer(value))
        number = -1 if wrong else operator.index(value)
    if wrong:
        fail(op, argument, expected, described(value), TypeError)
    if number < low or (high is not None and number > high):
        fail(op, argument, expected, number)
    return number  # type: ignore[return-value]  # a SymInt stands for an int while a graph is traced


_COMPLEX = (torch.complex64, torch.complex128, torch.complex32)


def _no_integer(t: Tensor) -> bool:
    return t.dim() != 0 or t.dtype.is_floating_point or t.dtype.is_complex or t.dtype == torch.bool


def check_flag(op: str, argument: str, value: Any) -> bool:
    """Return an argument that is True or False (numpy's as well) as a bool; TypeError for anything else."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's type, under its two names
        fail(op, argument, "True or False", described(value), TypeError)
    return bool(value)


def int32(t: Tensor) -> Tensor:
    """Convert integers to int32; those beyond it become its ends, which no range holds, rather than wrap into one."""
    if t.dtype == torch.int64:
        t = t.clamp(_INT32.min, _INT32.max)
    return t.to(torch.int32)


_INT32 = torch.iinfo(torch.int32)


def explain(op: str, argument: str, t: Tensor | None, low: int, high: int, expected: str) -> None:
    """Raise the error of the first value outside of [low, high), where there is one, as it was given.

    For a kernel that has just failed: it saw the values after :func:`int32`. Nothing is looked at on other devices than the
    CPU, for there a failed assertion ends the process's use of the device.
    """
    if t is not None and t.device.type == "cpu":
        wrong = ((t < low) | (t >= high)).nonzero()
        if len(wrong):
            at = tuple(wrong[0].tolist())
            raise ValueError(f"{op}: {argument}: expected {expected}, got {int(t[at])} at {at}") from None


def check_kernel_dtype(op: str, argument: str, t: Tensor) -> None:
    """Raise TypeError unless the kernels have the tensor's type."""
    if t.dtype not in FLOATING:
        fail(op, argument, "float32, float64, float16 or bfloat16", t.dtype, TypeError)


def check_floating(op: str, argument: str, t: Tensor) -> None:
    """Raise TypeError unless a tensor that is converted has a floating type."""
    if t.dtype not in FLOATING:
        fail(op, argument, "a floating dtype", t.dtype, TypeError)


def check_device(op: str, argument: str, t: Tensor, device: torch.device) -> None:
    """Raise ValueError unless a tensor lies on the device."""
    if t.device != device:
        fail(op, argument, f"device {device}", f"device {t.device}")


# --- registration ----------------------------------------------------------------------------------------------------


class Kernels(NamedTuple):
    """The kernels of an op that has one forward and one backward: custom ops, or their fakes."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


_Group = TypeVar("_Group", bound=NamedTuple)


class Op(Generic[_Group]):
    """An op of the package: its custom ops, their fakes and its gradient, registered for every backend alike.

    The kernels of a backend are a named tuple of custom ops, the forward first. Those given are ``mixsyn_fast::<name>`` and
    so on: their Python bodies run where no C++ or CUDA kernel overrides them. The Triton kernels, in
    ``triton_kernels/<op>.py`` under the names of the custom ops, become custom ops of their own, ``<name>_triton``, at
    first use: importing triton takes a while, and two kernels on one dispatch key would shadow each other.

    Args:
        name: of the op; also of its file and of the file of its Triton kernels.
        kernels: the custom ops.
        fakes: of each custom op, the function that computes shapes only.
        gradient: ``gradient(kernels, ctx, *grads)``, the gradient of the forward, which calls the kernels of the same
            backend; None for an op without. Gradients of the kernels named ``<op>_backward...`` are refused.
        setup_context: as of ``torch.library.register_autograd``.
        native: device types with a C++ or CUDA C++ kernel.
        triton: device types with a Triton kernel.

    Raises:
        ValueError: the name is taken.
    """

    def __init__(
        self,
        name: str,
        kernels: _Group,
        fakes: _Group,
        gradient: Callable[..., Any] | None = None,
        setup_context: Callable[..., None] | None = None,
        *,
        native: tuple[str, ...] = ("cpu", "cuda"),
        triton: tuple[str, ...] = ("cuda",),
    ) -> None:
        backend.register(name, native, triton)
        self.name = name
        self.native = kernels
        self._triton: _Group | None = None
        self._fakes = fakes
        self._gradient = gradient
        self._setup_context = setup_context
        self._register(kernels)

    def kernels(self, x: Tensor) -> _Group | None:
        """Return the kernels of the backend in force, None for the reference; a fallback is announced.

        Args:
            x: the input whose device, layout and dtype decide.

        Raises:
            RuntimeError: the chosen backend is not available, under ``MIXSYN_FAST_STRICT=1``.
        """
        chosen = backend.select_backend(self.name, x.device, x)
        if chosen == "native":
            return self.native
        return self.triton() if chosen == "triton" else None

    def triton(self) -> _Group:
        """Return the Triton kernels, registered at the first call."""
        if self._triton is None:
            launchers = importlib.import_module(f".triton_kernels.{self.name}", __package__)
            twins = (_twin(op, getattr(launchers, op._name)) for op in _custom_ops(self.native))
            kernels = self.native._make(twins)
            self._register(kernels)
            self._triton = kernels
        return self._triton

    def _register(self, kernels: _Group) -> None:
        """Register the fake kernels and the gradients of one backend."""
        for number, (op, fake) in enumerate(zip(_custom_ops(kernels), self._fakes, strict=True)):
            op.register_fake(fake)
            if number == 0 and self._gradient is not None:
                op.register_autograd(partial(self._gradient, kernels), setup_context=self._setup_context)
            elif "_backward" in op._name:
                op.register_autograd(partial(_refuse_double_backward, self.name))


_SCHEMA: dict[Any, str] = {Tensor: "Tensor", int: "int", float: "float", bool: "bool"}
_SCHEMA |= {Tensor | None: "Tensor?", float | None: "float?"}


def declared(arguments: type[NamedTuple]) -> list[str]:
    """Return the fields of a named tuple as a schema declares them: ``Tensor? mask``, ``int needs``."""
    return [f"{_SCHEMA[kind]} {name}" for name, kind in get_type_hints(arguments).items()]


def custom_op(name: str, body: Callable[..., Any], arguments: list[str], results: int) -> Callable[..., Any]:
    """Return the custom op ``mixsyn_fast::<name>`` of a body that takes its arguments as they come.

    Args:
        name: of the op.
        body: runs where no kernel of the device is loaded.
        arguments: as :func:`declared`.
        results: number of tensors that it returns.
    """
    schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
    return torch.library.custom_op(f"mixsyn_fast::{name}", body, mutates_args=(), schema=schema)


def _custom_ops(kernels: tuple[Any, ...]) -> Iterator[CustomOpDef]:
    for op in kernels:
        assert isinstance(op, CustomOpDef)
        yield op


def _refuse_double_backward(op: str, ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        f"mixsyn_fast::{op}: double backward (create_graph=True) is not available from the kernels; "
        'run the forward under mixsyn_fast.use_backend("reference"), which is differentiable any number of times'
    )


def _twin(op: CustomOpDef, body: Callable[..., Any]) -> CustomOpDef:
    """Return a custom op of its own with the schema of another."""
    return torch.library.custom_op(f"mixsyn_fast::{op._name}_triton", body, mutates_args=(), schema=op._schema)
