"""Make somebody else's SPADE / SEAN / CLADE-style model fast in place: `accelerate(model)`, `restore(model)`.

Layers are recognised by their contract (attributes, parameters, forward signature: :mod:`.contracts`), never by class name,
and each is checked before it is touched (:mod:`.probe`): a copy with random parameters must give the same output as our form
of it, in eval and in training, and again when a call finds the layer in another state. The swap (:mod:`.swap`) exchanges the
class of the module object for a subclass of its own class with another `forward`. The label map that such models pass around
is analysed once for each forward of the model (:mod:`.maps`).
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .. import layers
from ..layers.conv import settings_are_pairs
from . import maps
from .constant import constant_conditioning
from .contracts import CONTRACTS, Options, contract_of, original_class, required
from .probe import AT_FIRST_CALL, first_verdict, reads_obj_dic
from .report import IDENTICAL, REORDERED, AccelerationReport, Entry
from .swap import is_swapped, spectral_hook, swap, unswap

__all__ = ["AccelerationReport", "Entry", "accelerate", "constant_conditioning", "restore"]

_MAP = re.compile("map|mask|seg|label|cond|layout|semantic")  # in the name of an argument that may be one


def accelerate(
    model: nn.Module,
    *,
    noise: str = "published",
    prepack: bool = True,
    num_regions: int | None = None,
    soft_masks: str = "published",
    channels_last: bool | None = None,
    ignore_obj_dic: bool | None = None,
) -> AccelerationReport:
    """Swap the SPADE, SEAN and CLADE layers and the region-mean style encoders of `model` for our forms, in place.

    The same mathematics in another order: outputs, gradients and running statistics differ by rounding alone (the report
    has the error that was measured for each layer); state_dict stays as it is. A layer that gets an input which our form
    cannot treat so runs its own forward and says it once (an error under MIXSYN_FAST_STRICT=1). Calling it again is
    harmless: new options replace old ones.

    Args:
        model: any nn.Module. Call it, not only a part of it, for the label map to be analysed once per forward; a part
            called alone gives the same result, each of its layers analysing the map for itself.
        noise: of SEAN layers. "published" draws as the published code does, seed for seed; "device" draws on the device of
            x (same distribution, faster on a GPU), whatever way the layer's own forward draws in.
        prepack: also let plain nn.Conv2d keep a prepacked weight on the CPU in eval, with spectral norm folded (both
            refreshed when a parameter changes). Packing needs float32 activations, in channels_last but for the smallest.
        num_regions: K, when the one-hot map has K + 1 channels and the last holds binary edges; found out when left out.
        soft_masks: for SEAN layers and style encoders given a map that is not one-hot. "published" runs their own forward
            (which takes any non-zero weight for membership); "blend" mixes styles and means by weight, another formula.
            SPADE layers treat soft maps as published in both cases.
        channels_last: let the swapped normalisations answer in channels_last memory, in which convolutions are faster; what
            the whole model returns is contiguous again. None: on the CPU, in residual blocks (``conv_0``, ``conv_1``) only.
            False: every layout as it was.
        ignore_obj_dic: of no use any more, and warned of: what a SEAN layer does with obj_dic is found out.

    Returns:
        AccelerationReport: what was changed, what was left and why: every layer of a known kind, and every other innermost
        module whose forward cannot do without two arguments, or has one that is called like a map.

    Raises:
        ValueError: for an unknown `noise` or `soft_masks`.
        TypeError: when `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model: expected an nn.Module, got {type(model).__name__}")
    if noise not in ("published", "device"):
        raise ValueError(f"accelerate: noise: expected 'published' or 'device', got {noise!r}")
    if soft_masks not in ("published", "blend"):
        raise ValueError(f"accelerate: soft_masks: expected 'published' or 'blend', got {soft_masks!r}")
    if ignore_obj_dic is not None:
        warnings.warn("accelerate: ignore_obj_dic: no longer needed, leave it out", DeprecationWarning, stacklevel=2)
    report = AccelerationReport()
    inside: set[int] = set()  # parts of layers that are dealt with as a whole
    swaps: list[tuple[nn.Module, Options]] = []
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, layers.SPADENorm | layers.SEANNorm | layers.CLADENorm | layers.FastConv2d):
            inside.update(id(child) for child in module.modules())
            continue
        contract = contract_of(module)
        if contract is None:
            continue
        parts = {id(child) for child in contract.bypassed(module)}
        layout = channels_last if channels_last is not None or _in_residual_block(model, name) else False
        options = Options(contract.kind, noise, soft_masks, num_regions, layout)
        entry = _checked(module, name, options)
        if entry.exactness or not contract.missing(module):
            inside |= parts  # of a layer that only looks like one the convolutions are convolutions like others
        if entry.exactness:
            swaps.append((module, options))
            report.changed.append(entry)
            report.layers[name] = weakref.ref(module)
        else:
            unswap(module)
            report.left.append(entry)
    report.left += _unrecognised(model, inside, report)
    for module, options in swaps:
        swap(module, options)
    for name, module in model.named_modules():
        if original_class(module) is not nn.Conv2d or id(module) in inside:
            continue
        if not prepack:
            unswap(module)
        elif problem := _prepack_problem(module):
            report.left.append(Entry(name, "conv2d", problem))
        else:
            kind = "spectral_conv2d" if "weight_orig" in module._parameters else "conv2d"
            swap(module, Options(kind))
            report.changed.append(Entry(name, kind, exactness=REORDERED, error=_packed_error(kind, module)))
    root = model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model
    if swaps and contract_of(root) is None:
        if isinstance(root, torch.jit.ScriptModule):
            report.left.append(Entry("", "root", "it is a ScriptModule"))
        else:
            on_gpu = any(p.is_cuda for p in model.parameters())
            note = "on a GPU an edit of the map through .data between two layers is not noticed" if on_gpu else ""
            for name, module in _around(root, "" if root is model else "module", [layer for layer, _ in swaps]):
                swap(module, Options("root", channels_last=channels_last))
                report.changed.append(Entry(name, "root", note, IDENTICAL))
    return report


def _checked(module: nn.Module, name: str, options: Options) -> Entry:
    """Return the entry of a layer: with an exactness, or with the reason why it is left."""
    contract = CONTRACTS[options.kind]
    result = first_verdict(module, contract, options)
    if result.problem is None:
        notes = ([result.note] if result.note else []) + contract.notes(options)
        return Entry(name, options.kind, "; ".join(notes), REORDERED, result.error)
    if result.problem == AT_FIRST_CALL:
        return Entry(name, options.kind, AT_FIRST_CALL, REORDERED)
    if contract.structure_problem(module) is None and reads_obj_dic(module, contract, options):
        return Entry(name, options.kind, "in its present mode it reads obj_dic: checked at the first call", REORDERED)
    return Entry(name, options.kind, result.problem)


def _around(root: nn.Module, name: str, layers_of: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model, and in it what alone has all of the layers, by name.

    Methods of a model (``decode``) call its decoder and not the model: its map, too, is analysed once.
    """
    sought = set(map(id, layers_of))
    outermost = root
    while contract_of(root) is None:
        if root is outermost or original_class(root).forward is not nn.Module.forward:  # a list is never called
            yield name, root
        inner = [(key, part) for key, part in root.named_children() if not sought.isdisjoint(map(id, part.modules()))]
        if len(inner) != 1:
            return
        key, root = inner[0]
        name = f"{name}.{key}" if name else key


def _in_residual_block(model: nn.Module, name: str) -> bool:
    """Say whether a layer stands in a residual block of the contract, whose forward asks for no memory layout."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
    return all(isinstance(getattr(parent, conv, None), nn.Conv2d) for conv in ("conv_0", "conv_1"))


def _unrecognised(model: nn.Module, inside: set[int], report: AccelerationReport) -> list[Entry]:
    """Return an entry for the innermost modules that take two arguments or more and are no layer of a known kind."""
    found: list[Entry] = []
    told = [entry.name for entry in (*report.changed, *report.left)]
    for name, module in reversed(list(model.named_modules())):  # children come before their parents
        within = f"{name}." if name else ""
        if id(module) in inside or any(other == name or other.startswith(within) for other in told):
            continue
        cls = original_class(module)
        if cls.__module__.startswith(("torch.", "mixsyn_fast.")):
            continue
        try:
            arguments = list(inspect.signature(cls.forward).parameters)[1:]
            several = required(cls.forward) >= 2 and any(True for _ in module.parameters())
        except (TypeError, ValueError):  # a forward without a signature
            continue
        if not several and not any(map(_MAP.search, arguments[1:])):
            continue
        # how near it comes to a known kind
        missing = {kind: each.missing(module) for kind, each in CONTRACTS.items() if each.told_apart}
        kind = min(missing, key=lambda kind: len(missing[kind]) / len(CONTRACTS[kind].attributes))
        takes = f"its forward takes ({', '.join(arguments)}), but it is of no known kind"
        found.append(Entry(name, "unrecognised", f"{takes}: for {kind.upper()} it lacks {', '.join(missing[kind])}"))
        told.append(name)
    return found[::-1]


def _prepack_problem(conv: nn.Module) -> str | None:
    """Return why a plain Conv2d should keep its own forward, or None."""
    if "forward" in vars(conv):
        return "its forward is an attribute of the object (patched by somebody else)"
    if "weight" not in conv._parameters and not spectral_hook(conv):
        return "its weight is recomputed at every call by something other than torch's spectral norm"
    return None


def _packed_error(kind: str, conv: nn.Module) -> float | None:
    """Return the error of a prepacked convolution like this one; None where none is packed."""
    assert isinstance(conv, nn.Conv2d)
    if conv.groups != 1 or conv.padding_mode != "zeros" or not settings_are_pairs(conv):
        return None
    return _error_of_packing(kind, conv.kernel_size, conv.stride, conv.padding, conv.dilation)


@functools.cache
def _error_of_packing(kind: str, *how: tuple[int, ...]) -> float:
    kernel, stride, padding, dilation = how
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad(), maps.apart():
        torch.manual_seed(20)
        conv: nn.Module = nn.Conv2d(32, 32, kernel, stride, padding, dilation)  # type: ignore[arg-type]
        conv = nn.utils.spectral_norm(conv) if kind == "spectral_conv2d" else conv
        side = max(dilation) * (max(kernel) - 1) + 9
        x = torch.randn(1, 32, side, side).contiguous(memory_format=torch.channels_last)
        expected = conv.eval()(x)
        swap(conv, Options(kind))
        return float((conv(x) - expected).abs().max() / expected.abs().max())


def restore(model: nn.Module) -> int:
    """Undo `accelerate` on a model or a copy of it: every module gets its own class back. Returns how many did.

    Raises:
        RuntimeError: when somebody else (fully_shard, for one) has subclassed a swapped module since; nothing is undone.
    """
    modules = list(model.modules())
    for module in modules:
        cls = type(module)
        if hasattr(cls, "_mixsyn_original") and "_mixsyn_original" not in cls.__dict__:
            raise RuntimeError(f"restore: {cls.__name__} was swapped again by somebody else; undo that first")
    swapped = [module for module in modules if is_swapped(module)]
    for module in swapped:
        unswap(module)
    return len(swapped)
