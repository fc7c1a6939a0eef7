"""Values derived from a module's weights and settings, kept in eval until one of them changes.

Nothing lives on the module itself: a copy, a pickle or a ``state_dict`` never carries a derived value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..backend import is_ordinary, is_traced, is_transformed

_SAMPLE = 64
_T = TypeVar("_T")


class Fingerprint:
    """Tells whether a tensor still holds what it held: identity, storage, version counter, and a sample of the values.

    The version counter sees every in-place edit through the tensor itself (optimisers, ``load_state_dict``, ``copy_``),
    also inside ``inference_mode``. Edits through ``.data`` or a detached alias leave it alone: on the CPU those are found by
    a sample of 64 values spread over the tensor, which any update of the whole tensor (an averaged copy, an optimiser that
    works on ``.data``) changes. An edit through ``.data`` of a part of a tensor (a single filter, say), and on a GPU any
    edit through ``.data``, can escape: call :func:`forget` after one. (Comparing values on a GPU would wait for it at every
    layer, and could not be captured in a CUDA graph.)
    """

    def __init__(self, tensor: Tensor) -> None:
        self.key = self._key(tensor)
        self.sample = self._sampled(tensor).clone()

    @staticmethod
    def _key(tensor: Tensor) -> tuple[Any, ...]:
        return id(tensor), tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype

    @staticmethod
    def _sampled(tensor: Tensor) -> Tensor:
        """At most 64 elements spread over the storage of a dense tensor; none of a tensor on another device."""
        tensor = tensor.detach()
        if tensor.device.type != "cpu":
            return torch.empty(0)
        step = max(1, tensor.numel() // _SAMPLE)
        return tensor.as_strided(((tensor.numel() + step - 1) // step,), (step,))

    def matches(self, tensor: Tensor) -> bool:
        """True while the tensor is the same, with the same contents."""
        return self.key == self._key(tensor) and torch.equal(self.sample, self._sampled(tensor))


class Owner(Protocol):
    """A module, or what is known of one: a layer's Protocol."""

    training: bool


Source = Tensor | Hashable
"""What a value depends on: a weight, None for one that is absent, or a setting (a stride, say)."""

_forgotten: WeakKeyDictionary[Owner, int] = WeakKeyDictionary()
_kept: WeakKeyDictionary[Owner, dict[Hashable, tuple[tuple[Fingerprint | Hashable, ...], Any]]] = WeakKeyDictionary()


def may_keep(module: Owner, *weights: Tensor | None) -> bool:
    """True where values derived from ``weights`` may be kept: eval, no gradient wanted, plain dense parameters.

    A tensor made inside ``inference_mode`` has no version counter, so nothing derived from it is kept. Neither is anything
    while operations are traced, or transformed by torch.func or forward-mode differentiation: what is made of detached
    weights would have no tangents.

    Args:
        module: the layer that owns the weights.
        weights: the tensors the value depends on.
    """
    if module.training or torch.compiler.is_compiling() or is_traced() or is_transformed():
        return False
    for weight in weights:
        if weight is None:
            continue
        if weight.is_inference() or not isinstance(weight, nn.Parameter) or not is_ordinary(weight):
            return False
        if torch.is_grad_enabled() and weight.requires_grad:
            return False
        if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
            return False
    return True


def _as_it_was(mark: Fingerprint | Hashable, source: Source) -> bool:
    if isinstance(source, Tensor):
        return isinstance(mark, Fingerprint) and mark.matches(source)
    return bool(mark == source)


def derived(module: Owner, name: Hashable, sources: tuple[Source, ...], make: Callable[[], _T]) -> _T:
    """Return ``make()``, made once per module and name and again whenever one of ``sources`` has changed.

    Args:
        module: owner of the value.
        name: which value of the module; a different name, a different value.
        sources: all that the value depends on, always as many in the same order: a weight that is absent is None, and may
            come or go. :func:`may_keep` must hold for the weights.
        make: makes it, without gradient.
    """
    entries = _kept.setdefault(module, {})
    entry = entries.get(name)
    if entry is None or not all(map(_as_it_was, entry[0], sources)):
        kinds = {s.device.type for s in sources if isinstance(s, Tensor)} | {"cpu"}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            for kind in kinds:  # the value is kept for calls outside autocast too
                stack.enter_context(torch.autocast(kind, enabled=False))
            entry = tuple(Fingerprint(s) if isinstance(s, Tensor) else s for s in sources), make()
        entries[name] = entry
    return entry[1]


def forget(module: nn.Module) -> None:
    """Drop everything derived from the weights of a module and its children.

    Needed only after an edit through ``.data`` (see :class:`Fingerprint`); every other change is noticed. Frees the memory.

    Args:
        module: the model.
    """
    for child in module.modules():
        _kept.pop(child, None)
        _forgotten[child] = times_forgotten(child) + 1


def times_forgotten(module: Owner) -> int:
    """Return how often :func:`forget` was called: for what is kept elsewhere.

    Args:
        module: the owner of what is kept.
    """
    return _forgotten.get(module, 0)
