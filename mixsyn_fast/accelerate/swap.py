"""The swap itself: the class of a module object is exchanged for a subclass of its own class with another forward.

Parameters, buffers, attributes, hooks and state_dict stay as they are, `isinstance` still holds, and copies, pickles and
DataParallel replicas of the module behave as the module does; :func:`unswap` puts the class back.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from .. import layers
from ..backend import announce_fallback, constant_when_compiled, is_ordinary, is_traced, is_transformed
from ..layers.derived import derived, may_keep
from . import maps
from .contracts import CONTRACTS, Options, original_class, positional
from .maps import NotExact
from .probe import verdict

stores: WeakKeyDictionary[nn.Module, maps.Store] = WeakKeyDictionary()
"""Of swapped modules: what keeps their conditioning beyond a call (:mod:`.constant`)."""


@constant_when_compiled
def _one_graph() -> bool:
    """Say whether what is being traced must become one graph (export, ``fullgraph=True``); asked once per trace.

    Otherwise our form stands between two graphs.
    """
    if torch.compiler.is_exporting():
        return True
    try:
        tracer = sys.modules["torch._dynamo.symbolic_convert"].InstructionTranslator.current_tx()
        return bool(tracer.one_graph or tracer.error_on_graph_break)
    except Exception:  # another torch: one graph is right in any case
        return True


def _is_traced(x: Any) -> bool:
    """Say whether x has no values that could be looked at (fake, meta, a proxy), or they would become constants."""
    if not isinstance(x, Tensor):
        return isinstance(x, torch.fx.Proxy)
    return x.is_meta or is_traced() or not is_ordinary(x)


def _run(
    module: nn.Module, original: Callable[..., Any], names: list[str], options: Options, args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Run our form of a layer, or its own forward where that alone is exact; ``names``: the own forward's arguments."""
    contract = CONTRACTS[options.kind]
    ours = names[: contract.arguments]
    try:
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or any(name not in ours and value is not None for name, value in given.items()):
            raise NotExact("it is called with further arguments")
        if ours[0] not in given or ours[1] not in given:
            raise NotExact("it is called without its map")
        if _is_traced(given[ours[0]]):
            return original(module, *args, **kwargs)
        if is_transformed():
            raise NotExact("torch.func and forward-mode differentiation need its own operations")
        checked = verdict(module, contract, options, given, names)
        if checked.problem is not None:
            raise NotExact(checked.problem)
        inputs = contract.taken(given, names)
        if stores and not maps.inside() and module in stores:  # called alone
            with maps.kept(stores[module]):
                return contract.forward(module, options, checked.found, *inputs)
        return contract.forward(module, options, checked.found, *inputs)
    except NotExact as reason:
        announce_fallback(
            f"accelerate: {type(module).__name__}", f"its own forward is used: {reason}",
            "give it a one-hot float map (B, K, H, W) and only the published arguments, or restore(model)",
        )  # fmt: skip
        return original(module, *args, **kwargs)


def spectral_hook(conv: Any) -> bool:
    """Say whether torch's spectral norm, on dimension 0 of the weight, is the only hook of a convolution."""
    hooks = list(conv._forward_pre_hooks.values())
    others = conv._forward_hooks or conv._backward_hooks or conv._backward_pre_hooks
    return (
        len(hooks) == 1
        and isinstance(hooks[0], SpectralNorm)
        and (hooks[0].name, hooks[0].dim) == ("weight", 0)
        and not others
        and isinstance(getattr(conv, "weight_v", None), Tensor)
    )


def _fold(conv: Any) -> nn.Conv2d | None:
    """Return a plain convolution with the weight that the spectral norm hook would set now; None: let the hook.

    Kept while weight_orig, weight_u, weight_v and the convolution's settings stay as they are. Only on the CPU, in eval and
    without gradient.
    """
    if torch.is_grad_enabled() or not spectral_hook(conv) or not may_keep(conv, conv.weight_orig, conv.bias):
        return None
    weights: list[Tensor] = [conv.weight_orig, conv.weight_u, conv.weight_v]
    if any(t.is_inference() or t.device.type != "cpu" for t in weights):
        return None
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)

    def fold() -> nn.Conv2d:
        weight, u, v = (t.detach() for t in weights)
        folded = weight / torch.dot(u, torch.mv(weight.flatten(1), v))
        stride, padding, dilation, groups, mode = settings
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, stride, padding, dilation, groups)
        plain = nn.Conv2d(*shape, False, mode, device="meta").eval()
        plain.weight = nn.Parameter(folded, requires_grad=False)
        return plain

    plain = derived(conv, "folded", (*weights, *settings), fold)
    plain.bias = conv.bias
    conv.weight = plain.weight.detach()  # as the hook leaves it
    return plain


def _as_published(result: Any) -> Any:
    """Return what the model returns in contiguous memory, as it would without us: callers may use `view`."""
    if isinstance(result, Tensor):
        return result.contiguous() if result.dim() in (4, 5) else result
    if isinstance(result, dict):
        return type(result)({key: _as_published(value) for key, value in result.items()}) if type(result) is dict else result
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*(_as_published(value) for value in result))
    if type(result) in (tuple, list):
        return type(result)(_as_published(value) for value in result)
    return result


_classes: dict[tuple[type, Options], type] = {}
_classes_lock = threading.Lock()


def _swapped_class(original: type, options: Options) -> type:
    """Return the subclass of `original` that behaves as `options` say; always the same object for the same arguments."""
    with _classes_lock:
        if (original, options) not in _classes:
            _classes[original, options] = _make_class(original, options)
        return _classes[original, options]


def _root_call(original: type, options: Options) -> Callable[..., Any]:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = original.__call__  # now: torch.fx puts another one there while it traces
        if maps.inside() or (torch.compiler.is_compiling() and _one_graph()):
            return call(self, *args, **kwargs)
        try:
            with maps.kept(stores.get(self)):
                result = call(self, *args, **kwargs)
        except RuntimeError as error:
            if "view size is not compatible" in str(error):
                error.add_note("accelerate(model, channels_last=False) keeps every memory layout as it was")
            raise
        return _as_published(result) if options.channels_last is not False else result

    return __call__


def _spectral_call(original: type) -> Callable[..., Any]:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        alone = (
            len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and not args[0].is_meta and is_ordinary(args[0])
        )
        plain = _fold(self) if alone else None
        if plain is None:
            return original.__call__(self, *args, **kwargs)  # looked up now: torch.fx puts another one there
        return layers.conv2d(plain, args[0])

    return __call__


def _forward(original: type, options: Options) -> Callable[..., Any]:
    plain: Callable[..., Any] = original.forward  # type: ignore[attr-defined]
    if options.kind == "conv2d":

        def convolve(self: nn.Conv2d, input: Tensor) -> Tensor:
            if torch.jit._trace.is_tracing():  # a packed weight cannot be saved
                result: Tensor = plain(self, input)
                return result
            return layers.conv2d(self, input)

        return functools.wraps(plain)(convolve)
    names = [p.name for p in positional(plain)]
    # looks at storage addresses and version counters, which a traced graph does not have
    run: Callable[..., Any] = torch.compiler.disable(_run)

    def _mixsyn_call(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling() and _one_graph():  # plain PyTorch is what can be traced
            return plain(self, *args, **kwargs)
        return run(self, plain, names, options, args, kwargs)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _mixsyn_call(self, args, kwargs)

    # torch.jit.script reads the source to which `wraps` leads, and looks its names up among the globals of this function
    found: Any = forward
    if hasattr(plain, "__globals__"):
        found = types.FunctionType(found.__code__, plain.__globals__, "forward", None, found.__closure__)
    return functools.wraps(plain)(found)


def _make_class(original: type, options: Options) -> type:
    space: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce,
        "_mixsyn_original": original,
        "_mixsyn_options": options,
    }
    if options.kind == "root":
        space["__call__"] = _root_call(original, options)
    elif options.kind == "spectral_conv2d":
        space["__call__"] = _spectral_call(original)
    else:
        space["forward"] = _forward(original, options)
    made: type = type(original)(original.__name__, (original,), space)
    return made


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    """Copy and pickle as (original class, options) + state: the swapped class has no name of its own to pickle by."""
    cls: Any = type(self)
    original, options = cls._mixsyn_original, cls._mixsyn_options
    swapped: Any = _swapped_class(original, options)
    reduced = super(swapped, self).__reduce_ex__(protocol)
    _, args, *rest = reduced
    return (_rebuild, (original, options, *args[1:]), *rest)


def _rebuild(original: type, options: Options, *args: Any) -> Any:
    cls: Any = _swapped_class(original, options)
    return cls.__new__(cls, *args)


def is_swapped(module: nn.Module) -> bool:
    """Say whether a module's forward is ours."""
    return "_mixsyn_original" in type(module).__dict__


def swap(module: nn.Module, options: Options) -> None:
    """Exchange the class of a module; new options replace old ones."""
    module.__class__ = _swapped_class(original_class(module), options)


def unswap(module: nn.Module) -> None:
    """Give a module its own class back."""
    if is_swapped(module):
        module.__class__ = original_class(module)
        layers.forget(module)
