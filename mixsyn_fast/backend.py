"""Which kernel runs an op, which algebra a layer uses, and what is said when a fast path is not available.

Two independent choices:

* the *backend* of the ops: ``auto`` (native kernel if the extension has one for the device, else Triton on CUDA, else
  the plain PyTorch reference), ``native``, ``triton`` or ``reference``; set by :func:`use_backend` or the environment
  variable ``MIXSYN_FAST_BACKEND``. On the CPU ``auto`` leaves to the reference what the native kernel was measured to lose
  against it: ``cpu_winners.json`` holds the ratios by op, instruction set, layout, dtype and mode, and
  ``python -m benchmarks.winners`` writes it. That is the fast path, so nothing is announced; ``doctor`` tells;
* the *plan* of the layers: ``auto`` (cheapest by a cost estimate), ``table`` (exact label-pattern tables) or ``dense``
  (convolutions of the one-hot or style maps); set by :func:`use_plan` or ``MIXSYN_FAST_PLAN``.

``dense`` + ``reference`` is the plain PyTorch form that every comparison of a whole model is made against.

No fallback is silent: :func:`announce_fallback` warns once per reason and raises under ``MIXSYN_FAST_STRICT=1``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import extension

_F = TypeVar("_F", bound=Callable[..., Any])

BACKENDS = ("auto", "native", "triton", "reference")
PLANS = ("auto", "table", "dense")

WINNERS = Path(__file__).with_name("cpu_winners.json")
NOISE = 0.03  # times that differ by less may be those of one and the same call

# op -> device types with a native (C++ or CUDA C++) kernel, device types with a Triton kernel; filled by `register`
_kernels: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}


def register(op: str, native: tuple[str, ...], triton: tuple[str, ...]) -> None:
    """Make an op known by name, with the device types for which it has kernels; every file of ``ops/`` does, once.

    Args:
        op: its name.
        native: device types with a C++ or CUDA C++ kernel.
        triton: device types with a Triton kernel.

    Raises:
        ValueError: the name is taken.
    """
    if op in _kernels:
        raise ValueError(f"register: op: expected a new name, got {op!r}")
    _kernels[op] = (native, triton)


def registered_ops() -> tuple[str, ...]:
    """Names of all ops, in the order in which ``ops/__init__.py`` imports them."""
    return tuple(_kernels)


class FallbackWarning(UserWarning):
    """A fast path was asked for and is not available; the message says why and what mends it."""


def _from_environment(name: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, "auto")
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def constant_when_compiled(function: _F) -> _F:
    """What ``torch.compiler.assume_constant_result`` does, without importing torch's compiler (0.7 s) for it."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_traced() -> bool:
    """Say whether operations are recorded rather than run: by ``torch.jit.trace``, ``make_fx``, or on fake tensors."""
    modes = torch._C._TorchDispatchModeKey
    if torch.jit._trace.is_tracing():
        return True
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY))


def is_transformed() -> bool:
    """Say whether torch.func or forward-mode differentiation transforms what runs; a detached tensor passes it by."""
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def is_ordinary(t: Tensor) -> bool:
    """Say whether a tensor's class leaves operations to torch's kernels, as one of fake or distributed tensors does not.

    Args:
        t: any tensor.
    """
    return type(t).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


_announced: set[tuple[str, str]] = set()


class _Choice:
    """A setting of the process, changed for a ``with`` block, or from here on when called as a plain statement."""

    allowed: ClassVar[tuple[str, ...]]
    current: ClassVar[str]

    def __init__(self, name: str) -> None:
        kind = type(self)
        if name not in kind.allowed:
            raise ValueError(f"{kind.__name__}: name: expected one of {', '.join(kind.allowed)}, got {name!r}")
        self._previous, kind.current = kind.current, name

    def __enter__(self) -> None:
        """Nothing more to do: the choice holds already."""

    def __exit__(self, *_: object) -> None:
        """Put the choice back that held before."""
        type(self).current = self._previous


class use_backend(_Choice):  # noqa: N801 - reads like torch.no_grad
    """Choose the kernels of all ops: for a ``with`` block, or from here on when called as a plain statement.

    The choice holds for the whole process, so that worker threads see it too.

    Args:
        name: ``auto``, ``native``, ``triton`` or ``reference``.

    Raises:
        ValueError: for any other name.
    """

    allowed = BACKENDS
    current = _from_environment("MIXSYN_FAST_BACKEND", BACKENDS)


class use_plan(_Choice):  # noqa: N801
    """Choose the algebra of all layers: for a ``with`` block, or from here on when called as a plain statement.

    Args:
        name: ``auto``, ``table`` or ``dense``.

    Raises:
        ValueError: for any other name.
    """

    allowed = PLANS
    current = _from_environment("MIXSYN_FAST_PLAN", PLANS)


def current_backend() -> str:
    """Return the backend in force: ``auto``, ``native``, ``triton`` or ``reference``."""
    return use_backend.current


def current_plan() -> str:
    """Return the plan in force: ``auto``, ``table`` or ``dense``."""
    return use_plan.current


def is_strict() -> bool:
    """Return True when ``MIXSYN_FAST_STRICT=1``: falling back from a fast path is then an error."""
    return os.environ.get("MIXSYN_FAST_STRICT", "0") == "1"


def announce_fallback(what: str, reason: str, mend: str) -> None:
    """Say once that a fast path is not taken; raise instead under ``MIXSYN_FAST_STRICT=1``.

    Args:
        what: the op or layer concerned.
        reason: why the fast path is not taken.
        mend: the command or change that mends it.

    Raises:
        RuntimeError: under ``MIXSYN_FAST_STRICT=1``.
    """
    message = f"mixsyn_fast: {what}: {reason}. To mend it: {mend}"
    if is_strict():
        raise RuntimeError(message + " (MIXSYN_FAST_STRICT=1 makes this an error)")
    if (what, reason) not in _announced:
        _announced.add((what, reason))
        warnings.warn(message, FallbackWarning, stacklevel=3)


@constant_when_compiled
def _native_available(device_type: str) -> bool:
    if device_type == "cuda":
        return extension.ensure_loaded() and extension.has_cuda()
    return extension.ensure_loaded()


def _native_failure(device_type: str) -> tuple[str, str]:
    reason = extension.failure()
    if reason is None and device_type == "cuda":
        return (
            "the extension was built without CUDA kernels",
            "install a CUDA build of torch and nvcc, then reinstall mixsyn_fast with FORCE_CUDA=1",
        )
    return f"the native extension is not available: {reason}", "see `mixsyn-fast doctor`"


@constant_when_compiled
def _triton_available() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


# --- what was measured -----------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """A use of an op for which the reference was measured faster than the native kernel."""

    layout: str  # contiguous, channels_last, or any: no input with four dimensions decides
    dtype: str  # of the input that decides
    mode: str  # forward (without gradients), both (forward, and backward later)
    ratio: float  # seconds of the reference / seconds of the native kernel

    def __str__(self) -> str:
        """In words."""
        what = {"forward": "without gradients", "both": "with gradients"}[self.mode]
        return f"{self.layout} {self.dtype} {what}: the native kernel has {self.ratio:.2f} x the reference's speed"


class _Measured(NamedTuple):
    """The table for one instruction set: of every op in it how many uses were measured, and what the native kernel loses."""

    uses: dict[str, int]
    losses: dict[str, dict[tuple[str, torch.dtype, str], Loss]]


_measured: _Measured | None = None  # read at the first call, for the instruction set is known then


def _read_measured() -> _Measured:
    global _measured
    isa = extension.instruction_set()
    table = json.loads(WINNERS.read_text(encoding="utf-8"))["ratios"]
    losses: dict[str, dict[tuple[str, torch.dtype, str], Loss]] = {}
    for op, sets in table.items():
        for layout, dtypes in sets.get(isa, {}).items():
            for dtype, modes in dtypes.items():
                for mode in ("forward", "both"):
                    ratio = modes.get(mode, modes["forward"])["reference"]  # without "both": an op without gradient
                    if ratio < 1 / (1 + NOISE):
                        loss = Loss(layout, dtype, mode, ratio)
                        losses.setdefault(op, {})[layout, getattr(torch, dtype), mode] = loss
    uses = {op: 2 * sum(map(len, sets[isa].values())) for op, sets in table.items() if isa in sets}
    _measured = _Measured(uses, losses)
    return _measured


def layout_of(x: Tensor) -> str:
    """Layout of an op's input as the table has it: as which of the two dense layouts the kernels read it."""
    if x.dim() != 4:
        return "any"
    return "channels_last" if not x.is_contiguous() and x.stride(1) == 1 else "contiguous"


@constant_when_compiled
def _has_losses(op: str) -> bool:
    return op in (_measured or _read_measured()).losses


@constant_when_compiled
def _loses(op: str, layout: str, dtype: torch.dtype, gradients: bool) -> bool:
    return (layout, dtype, "both" if gradients else "forward") in (_measured or _read_measured()).losses[op]


def losses(op: str) -> list[Loss]:
    """Return the uses of an op that ``auto`` leaves to the reference on this CPU, by measurement; loads the extension."""
    extension.ensure_loaded()
    return list((_measured or _read_measured()).losses.get(op, {}).values())


# --- the choice ------------------------------------------------------------------------------------------------------


def explain(op: str, device: torch.device | str, x: Tensor | None = None) -> tuple[str, str]:
    """Return (backend, reason): what ``op`` would run on ``device`` now, and why.

    Args:
        op: a name of :func:`registered_ops`.
        device: the device of the input.
        x: the input that decides by its layout and dtype, or None: what runs apart from :func:`losses`.

    Raises:
        ValueError: for an unknown op.
    """
    if op not in _kernels:
        raise ValueError(f"explain: op: expected one of {', '.join(_kernels)}, got {op!r}")
    device_type = torch.device(device).type
    native, triton = _kernels[op]
    wanted = use_backend.current
    if wanted == "reference":
        return "reference", "chosen by use_backend or MIXSYN_FAST_BACKEND"
    if wanted == "triton":
        interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if device_type not in triton and not (interpreted and triton):
            return "reference", f"there is no Triton kernel of {op} for {device_type}"
        if not _triton_available():
            return "reference", "triton is not installed"
        return "triton", "chosen by use_backend or MIXSYN_FAST_BACKEND"
    if device_type in native and _native_available(device_type):
        if device_type != "cpu":
            return "native", "CUDA C++ kernel"
        return _explain_native(op, x) if wanted == "auto" else ("native", "C++ kernel")
    why = _native_failure(device_type)[0] if device_type in native else f"no native kernel for {device_type}"
    if wanted == "auto" and device_type in triton and _triton_available():
        return "triton", why
    return "reference", why


def _explain_native(op: str, x: Tensor | None) -> tuple[str, str]:
    """What ``auto`` takes on the CPU where there is a native kernel."""
    lost, uses = losses(op), (_measured or _read_measured()).uses.get(op)
    if uses is None:
        isa = extension.instruction_set()
        return "native", "C++ kernel, not measured on this instruction set" + (f" ({isa})" if isa else "")
    if x is None and len(lost) == uses:
        least, most = min(loss.ratio for loss in lost), max(loss.ratio for loss in lost)
        return "reference", f"the native kernel has {least:.2f} to {most:.2f} x its speed in every layout and dtype"
    if x is not None:
        use = layout_of(x), str(x.dtype)[6:], "both" if torch.is_grad_enabled() else "forward"
        for loss in lost:
            if (loss.layout, loss.dtype, loss.mode) == use:
                return "reference", str(loss)
    return "native", "C++ kernel"


def select_backend(op: str, device: torch.device, x: Tensor | None = None) -> str:
    """Return ``native``, ``triton`` or ``reference`` for an op on a device; a fallback is announced.

    The choice by measurement (the module's text) is none, and costs a look-up; whether gradients count is a matter of
    ``torch.is_grad_enabled()``.

    Args:
        op: a name of :func:`registered_ops`.
        device: the device of the input.
        x: the input that decides by its layout and dtype; None: nothing was measured of it.

    Raises:
        RuntimeError: when the chosen backend is not available under ``MIXSYN_FAST_STRICT=1``.
    """
    device_type = device.type
    wanted = use_backend.current
    if wanted in ("auto", "native") and device_type in _kernels[op][0] and _native_available(device_type):
        if wanted == "auto" and x is not None and device_type == "cpu" and _has_losses(op):
            return "reference" if _loses(op, layout_of(x), x.dtype, torch.is_grad_enabled()) else "native"
        return "native"
    if wanted == "reference":
        return "reference"
    return _announced_choice(op, device_type)


@constant_when_compiled
def _announced_choice(op: str, device_type: str) -> str:
    backend, reason = explain(op, device_type)
    if device_type not in ("cpu", "cuda"):
        return backend  # meta and fake tensors: only shapes are computed, nothing is slow
    if use_backend.current != "triton":
        announce_fallback(op, reason, _native_failure(device_type)[1])
    elif backend != "triton":
        announce_fallback(op, reason, "choose another backend or install triton")
    return backend
