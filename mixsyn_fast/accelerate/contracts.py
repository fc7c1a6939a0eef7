"""Kinds of layers of published models: how each is recognised, what its parts must be, and our form of it.

A new family is one more :class:`Contract` in :data:`CONTRACTS`. Attributes, parameters and signature only point to a kind;
whether the layer computes the published formula is decided by running it (:mod:`.probe`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .. import layers
from ..backend import current_plan
from ..layers.dense_stacks import Folds
from ..layers.stacks import (
    Conv,
    Modulation,
    Modulator,
    conv_fits,
    convolutions,
    folded_work,
    folds_of,
    is_elementwise,
    is_padded_otherwise,
    latent_modulation,
    modulate,
    modulation,
    neighbourhoods_of,
    part_fits,
    stack_of,
    work,
)
from ..nearest import nearest_source
from ..ops.label_patterns import MAX_REGIONS
from ..ops.masked_roi_pool import masked_roi_pool
from .instances import are_maps, modulation_by_instance
from .maps import NotExact, Sharing, columns_of, modulation_of, regions_of
from .report import LayerWork, last_work


@dataclass(frozen=True)
class Options:
    """What a swapped class does; together with the original class it determines the swapped class."""

    kind: str
    noise: str = "published"  # SEAN
    soft_masks: str = "published"  # SEAN and style encoder
    num_regions: int | None = None  # a map with one more channel than this carries edges
    channels_last: bool | None = None  # of the activations; None: on the CPU


@dataclass(frozen=True)
class Verdict:
    """What a check (:mod:`.probe`) found."""

    problem: str | None
    """Why our form may not stand for the layer's own forward; None: it may."""
    note: str = ""
    error: float | None = None
    """Largest difference of the outputs, relative to the largest output; None: not checked."""
    found: Any = None
    """What the contract's forward needs to know."""


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the module's class as it was before accelerate."""
    cls = type(module)
    original: type[nn.Module] = cls.__dict__.get("_mixsyn_original", cls)
    return original


def positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a forward that can be given by position, without self."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds][1:]


def required(function: Callable[..., Any]) -> int:
    """Return how many arguments a forward cannot do without."""
    return sum(p.default is inspect.Parameter.empty for p in positional(function))


def hooked(module: nn.Module) -> bool:
    """Say whether a call of the module runs a hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


# --- what the parts must be -----------------------------------------------------------------------------------------------


def _conv_problem(conv: object, name: str, kernel: int = 3) -> str | None:
    """Return why a convolution is not the plain same-size one of the contract, or None."""
    if not isinstance(conv, nn.Conv2d) or not (original_class(conv) is nn.Conv2d or isinstance(conv, layers.FastConv2d)):
        return f"{name} is {type(conv).__name__}, not a plain Conv2d"
    if conv.kernel_size != (kernel, kernel):
        return f"{name} has a {conv.kernel_size[0]}x{conv.kernel_size[1]} kernel, ours is for {kernel}x{kernel}"
    usual = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    if not usual or conv.padding not in ((kernel // 2, kernel // 2), "same") or conv.padding_mode != "zeros":
        return f"{name} has an unusual stride, padding, dilation or groups"
    return None


def _norm_problem(norm: nn.Module) -> str | None:
    """Return why a normalisation is not a parameter-free batch, instance or group norm, or None."""
    reason = layers.unsupported_norm(norm)
    return None if reason is None else f"param_free_norm is {reason}"


def _regions_problem(count: int) -> str | None:
    return None if count <= MAX_REGIONS else f"it has {count} regions, ours at most {MAX_REGIONS}"


def _spade_problem(module: Any, prefix: str = "") -> str | None:
    shared = module.mlp_shared
    if not isinstance(shared, nn.Sequential) or len(shared) != 2 or not isinstance(shared[1], nn.ReLU):
        return f"{prefix}mlp_shared is not a convolution and a ReLU"
    named = (("mlp_shared.0", shared[0]), ("mlp_gamma", module.mlp_gamma), ("mlp_beta", module.mlp_beta))
    problems = (_conv_problem(conv, prefix + name) for name, conv in named)
    return next(filter(None, problems), None) or _regions_problem(module.mlp_shared[0].in_channels)


# --- what a call must be --------------------------------------------------------------------------------------------------


def _check_map(x: object, segmap: object, channels: int | None = None, dimensions: int = 2) -> None:
    """Raise NotExact unless x and segmap are float batches of as many images (or volumes) on one device."""
    for name, value in (("x", x), ("the map", segmap)):
        if not isinstance(value, Tensor) or value.dim() != dimensions + 2 or not value.is_floating_point():
            raise NotExact(f"{name} is not a float tensor of {'four' if dimensions == 2 else 'five'} dimensions")
    assert isinstance(x, Tensor) and isinstance(segmap, Tensor)
    if x.shape[0] != segmap.shape[0] or x.device != segmap.device:
        raise NotExact("x and the map differ in batch size or device")
    if 0 in x.shape or 0 in segmap.shape:
        raise NotExact("an input is empty")
    if channels is not None and segmap.shape[1] != channels:
        raise NotExact(f"the map has {segmap.shape[1]} channels, the layer {channels}")
    if channels is None and segmap.shape[1] > MAX_REGIONS:
        raise NotExact(f"the map has {segmap.shape[1]} channels, ours at most {MAX_REGIONS}")


def _check_norm(norm: nn.Module) -> None:
    """Raise NotExact for a third-party synchronised norm that really synchronises now."""
    if norm.training and getattr(norm, "_is_parallel", False):
        raise NotExact(f"{type(norm).__name__} shares statistics between replicas in a way of its own")


def _laid_out(x: Tensor, options: Options) -> Tensor:
    """Return x in the memory layout that kernels and convolutions like best (the residual blocks then stay in it)."""
    wanted = x.device.type == "cpu" if options.channels_last is None else options.channels_last
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=last) if wanted else x


def _size(x: Tensor) -> tuple[int, ...]:
    return tuple(map(int, x.shape[2:]))


def _blocks(regions: Sequence[int], count: int, batch: int, size: tuple[int, ...]) -> Tensor:
    """A one-hot map (B, count, *size) of blocks, of some of the regions and of none."""
    choice, ones = torch.tensor([-1, *regions]), (1,) * len(size)
    blocks = choice[torch.randint(0, len(choice), (batch, 1, *(4 for _ in size)))]
    labels = nn.functional.interpolate(blocks.float(), size=size, mode="nearest")
    return (labels == torch.arange(count).view(1, -1, *ones)).float()


# --- the contracts --------------------------------------------------------------------------------------------------------


class Contract:
    """One kind of layer.

    Attributes:
        kind: its key, of :data:`.report.TITLES`.
        attributes: what a module must have to be taken for one.
        arguments: how many of the published forward's our form reads.
        known: what the names of its parameters begin with.
        shown_by_call: a layer is checked at its first call, with inputs :meth:`like` those of the call.
    """

    kind: str
    attributes: tuple[str, ...]
    arguments = 2
    known: tuple[str, ...]
    shown_by_call = False

    def recognises(self, module: nn.Module) -> bool:
        """Say whether the module's attributes point to this kind."""
        return not self.missing(module)

    def missing(self, module: nn.Module) -> list[str]:
        """Return the attributes that it lacks for that."""
        return [name for name in self.attributes if not hasattr(module, name)]

    def parts(self, module: nn.Module) -> Iterable[nn.Module]:
        """Return the children that our form reads without calling them."""
        return module.children()

    def bypassed(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield all sub-modules that our form reads without calling them."""
        for part in self.parts(module):
            yield from part.modules()

    def signature_fits(self, count: int, least: int) -> bool:
        """Say whether a forward with so many arguments, so many of them required, is the published one."""
        return least == 2

    def problem(self, module: Any) -> str | None:
        """Return which part is outside of the contract, or None."""
        raise NotImplementedError

    def structure_problem(self, module: nn.Module) -> str | None:
        """Return why the module is outside of the contract as far as can be seen without running it, or None."""
        if isinstance(module, torch.jit.ScriptModule):
            return "it is a ScriptModule"
        if "forward" in vars(module):
            return "its forward is an attribute of the object (patched by somebody else)"
        forward = original_class(module).forward
        names = [p.name for p in positional(forward)]
        if not self.signature_fits(len(names), required(forward)):
            return f"its forward takes ({', '.join(names)}), not the published arguments"
        if problem := self.problem(module):
            return problem
        extra = [name for name, _ in module.named_parameters() if not name.startswith(self.known)]
        extra += [name for name, _ in module.named_parameters() if name.endswith(("_orig", "_g", "_v", "original"))]
        if extra:
            return f"it holds parameters outside of the contract: {', '.join(extra[:4])}"
        if any(hooked(child) for child in self.bypassed(module)):
            return "one of its sub-modules has a hook, which our form would not call"
        if any(t.is_meta for t in module.parameters()):
            return "its parameters are on the meta device"
        return None if any(True for _ in module.parameters()) else "it has no parameters"

    def regions(self, module: Any) -> int | None:
        """Return K where the layer fixes it."""
        return None

    def forms(self, module: nn.Module) -> Sequence[Any]:
        """Return what the layer may compute: one of these is ``found`` by the check."""
        return (None,)

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        """Return small random inputs: a map of blocks with pixels of no region, of the regions ``which``."""
        regions = self.regions(module)
        assert regions is not None
        which = range(regions) if which is None else which
        return [torch.randn(batch, self.channels(module), 7, 5), _blocks(which, regions, batch, (12, 11))]

    def channels(self, module: Any) -> int:
        """Return C of x."""
        raise NotImplementedError

    def unchecked(self, module: nn.Module, reason: str) -> Verdict:
        """Return what is said of a layer whose own forward does not run here."""
        return Verdict(None, f"unchecked: {reason}")

    def further(self, inputs: Sequence[Any]) -> list[list[Any]]:
        """Return inputs made of others, of other sizes, on which a form must hold as well."""
        return []

    def output(self, found: Any, result: Any) -> Tensor | None:
        """Return the features among what a forward returned; None where it is not of the published kind."""
        return result if isinstance(result, Tensor) else None

    def taken(self, given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        """Return the arguments of a call that our form reads, in order.

        Raises:
            NotExact: they are not those that it reads.
        """
        return [given.get(name) for name in names[: self.arguments]]

    def like(self, given: Mapping[str, Any], names: Sequence[str]) -> list[Any] | None:
        """Return small random inputs like those of a call; None: those of :meth:`inputs`, whatever the call."""
        return None

    def variant(self, given: Mapping[str, Any], names: Sequence[str]) -> Hashable:
        """Return what of a call's arguments decides how the layer's own forward works, beside the state of the layer."""
        return None

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Any:
        """Our form; ``found`` is what the check learned. Returns what the layer's own forward does.

        Raises:
            NotExact: the inputs cannot be treated exactly.
        """
        raise NotImplementedError


# Activations that a forward may apply between the shared stack and the heads, where no module of the layer says which.
_FUNCTIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "leaky_relu(0.2)": nn.LeakyReLU(0.2),
    "leaky_relu(0.01)": nn.LeakyReLU(0.01),
    "leaky_relu(0.1)": nn.LeakyReLU(0.1),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
}
_SHIFTS = re.compile("beta|bias|shift|offset|_b$")  # in the name of what gives the shift


@dataclass(frozen=True)
class SpadeForm:
    """What a layer of SPADE's kind computes: ``norm(x) * (one + scale) + shift``, by the names of its parts."""

    norm: str
    shared: str
    """Empty: none."""
    activation: str
    """Behind ``shared``: a part, a key of _FUNCTIONS, or empty for none."""
    scale: str
    shift: str
    """Empty: the second half of what ``scale`` gives, or (``shift_first``) the first."""
    one: bool
    shift_first: bool = False
    any_map: bool = True
    """Checked on maps of any values; else on one-hot maps alone."""
    first_alone: bool = False
    """Of video: where x has an odd number of frames, and several, the first frame of both is resized alone."""
    caches: tuple[str, ...] | None = None
    """Of video: parts whose convolutions see one frame, each with a cache that it never reads. The layer takes a dict of
    them as its third argument and returns another one beside its features."""

    def modulator(self, module: nn.Module) -> Modulator:
        """Return the layer's parts."""
        part = module._modules
        shared = _stack_of(part[self.shared]) if self.shared else ()
        if self.activation:
            shared += (part.get(self.activation) or _FUNCTIONS[self.activation],)
        shift = _stack_of(part[self.shift]) if self.shift else ()
        norm, scale = part[self.norm], _stack_of(part[self.scale])
        assert norm is not None
        return Modulator(module, norm, shared, scale, shift, float(self.one), self.shift_first)

    def axes(self, segmap: Tensor, size: tuple[int, ...]) -> list[Tensor] | None:
        """Return the pixel of the map at every position of x, per dimension; None where all is resized as one.

        Raises:
            NotExact: there are frames to be resized to, and none to be resized from.
        """
        if not (self.first_alone and size[0] > 1 and size[0] % 2 == 1):
            return None
        if segmap.shape[2] < 2:
            raise NotExact("the map has no frame beside the first")
        found = [nearest_source(*sides, segmap.device) for sides in zip(size, segmap.shape[2:], strict=True)]
        rest = nearest_source(size[0] - 1, segmap.shape[2] - 1, segmap.device)
        found[0] = nn.functional.pad(rest + 1, (1, 0))
        return found


def _wrapped(module: nn.Module | None) -> Conv | None:
    """Return the convolution of single pixels that is all that a module holds (causal ones of video have such a shell)."""
    if module is None:
        return None
    children = [child for child in module._modules.values() if child is not None]
    if isinstance(module, nn.Sequential) or module._parameters or module._buffers or len(children) != 1:
        return None
    only = children[0]
    return only if isinstance(only, Conv) and set(only.kernel_size) == {1} else None


def _stack_of(module: nn.Module | None) -> tuple[nn.Module, ...]:
    """As :func:`stack_of`, and a shell around a convolution of single pixels is that convolution."""
    assert module is not None
    only = _wrapped(module)
    return stack_of(module) if only is None else (only,)


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)


def _channels_of(norm: nn.Module) -> int | None:
    """Return how many channels a norm is for, None where it does not say."""
    count: int | None = getattr(norm, "num_channels", getattr(norm, "num_features", None))
    return count


def _stack_problem(name: str, module: nn.Module | None) -> str | None:
    """Return why a child is no stack of same-size convolutions, activations and instance norms, or None."""
    if module is None:
        return f"{name} is missing"
    stack = _stack_of(module)
    if not any(isinstance(part, Conv) for part in stack):
        return f"{name} is {type(module).__name__}, no convolution"
    for number, part in enumerate(stack):
        within = name if len(stack) == 1 else f"{name}.{number}"
        if isinstance(part, Conv):
            plain = original_class(part) in (nn.Conv2d, nn.Conv3d) or isinstance(part, layers.FastConv2d)
            if not plain and part is not _wrapped(module):
                return f"{within} is {type(part).__name__}, not a plain Conv2d or Conv3d"
            if not conv_fits(part):
                return f"{within} has an unusual kernel, stride, padding or dilation"
        elif not part_fits(part):
            return f"{within} is {type(part).__name__}"
    return None if isinstance(stack[0], Conv) else f"{name} does not begin with a convolution"


def _work_of(
    form: SpadeForm, plan: tuple[int, ...] | Folds | None, taken: bool, shape: Sequence[int], onehot: bool, module: nn.Module
) -> LayerWork:
    """Count the work of a call.

    Args:
        form: of the layer.
        plan: rows of the stages of the table, or which convolutions ran at distinct positions, or None: all was kept.
        taken: what the shared stack makes was another layer's.
        shape: of x.
        onehot: whether the map's columns are.
        module: the layer.
    """
    layer, pixels = form.modulator(module), shape[0] * prod(shape[2:])
    counted = work(layer, () if plan is None or isinstance(plan, Folds) else plan, pixels, onehot)
    name, macs, size = "kept", 0, 0
    if isinstance(plan, Folds):
        if taken:
            layer, plan = replace(layer, shared=()), plan._replace(shared=())
        name = "polyphase" if plan.any else "dense"
        macs, size = folded_work(layer, plan, pixels, shape[0])
    elif plan is not None:
        name, macs, size = "table", counted.table_macs, counted.table_bytes
    return LayerWork(name, counted.dense_macs, macs, counted.dense_bytes, size)


class _Spade(Contract):
    """SPADE normalisation and its kin: a norm without a map, and stacks of convolutions of the map for scale and shift.

    Which part has which role follows from the numbers of their channels; what that leaves open (the activation where it is
    no module, which stack gives the shift, whether there is a "1 +") is tried out by the check.
    """

    kind = "spade"
    attributes = ("param_free_norm", "mlp_shared", "mlp_gamma", "mlp_beta")
    arguments = 3
    known = ("",)

    def recognises(self, module: nn.Module) -> bool:
        return not self.missing(module) or bool(self.forms(module))

    def forms(self, module: nn.Module) -> list[SpadeForm]:
        """Return what the layer may compute, by its structure, the likeliest first."""
        if module._parameters or not module._modules:
            return []
        norms = [name for name, child in module._modules.items() if _is_norm(child)]
        rest = {name: child for name, child in module._modules.items() if child is not None and name not in norms}
        acts = [name for name, child in rest.items() if is_elementwise(child)]
        stacks = [name for name, child in rest.items() if name not in acts and _stack_problem(name, child) is None]
        idle = [name for name in rest if name not in (*acts, *stacks)]
        if any(True for name in idle for _ in rest[name].parameters()):
            return []
        if not norms and "param_free_norm" in rest:
            norms = ["param_free_norm"]  # an Identity
        if len(norms) != 1 or not 1 <= len(stacks) <= 3:
            return []
        norm = module._modules[norms[0]]
        assert norm is not None
        ends = {name: convolutions(_stack_of(rest[name])) for name in stacks}
        if len({len(conv.kernel_size) for convs in ends.values() for conv in convs}) != 1:
            return []
        wide = _channels_of(norm)
        found: list[SpadeForm] = []
        for shared in ("", *stacks):
            heads = [name for name in stacks if name != shared]
            if (
                not heads
                or len(heads) > 2
                or (shared and any(ends[shared][-1].out_channels != ends[h][0].in_channels for h in heads))
            ):
                continue
            if len({ends[head][0].in_channels for head in heads}) != 1:
                continue
            outs = {ends[head][-1].out_channels for head in heads}
            channels = outs.pop() if len(outs) == 1 else 0
            channels = channels if len(heads) == 2 else channels // 2 * (channels % 2 == 0)
            if not channels or (wide is not None and wide != channels):
                continue
            found += self._variants(module, norms[0], shared, heads, acts)
        return found

    @staticmethod
    def _variants(module: nn.Module, norm: str, shared: str, heads: list[str], acts: list[str]) -> list[SpadeForm]:
        behind = [""]
        if shared and isinstance(_stack_of(module._modules[shared])[-1], Conv):
            behind = [*acts, *_FUNCTIONS, ""]
        orders: list[tuple[str, str, bool]]
        if len(heads) == 2:
            shift_last = bool(_SHIFTS.search(heads[1])) or not _SHIFTS.search(heads[0])
            first, second = heads if shift_last else heads[::-1]
            orders = [(first, second, False), (second, first, False)]
        else:
            orders = [(heads[0], "", False), (heads[0], "", True)]
        shells = tuple(name for name in module._modules if name in (shared, *heads) and _wrapped(module._modules[name]))
        convs = [conv for name in heads for conv in convolutions(_stack_of(module._modules[name]))]
        alone = (False, True) if all(conv.kernel_size == (1, 1, 1) for conv in convs) else (False,)
        return [
            SpadeForm(norm, shared, activation, scale, shift, one, shift_first, True, first_alone, caches)
            for activation in behind
            for scale, shift, shift_first in orders
            for one in (True, False)
            for first_alone in alone
            for caches in ((shells, None) if shells else (None,))
        ]

    def problem(self, module: Any) -> str | None:
        if not self.missing(module):
            if reason := layers.unsupported_norm(module.param_free_norm, affine=True):
                return f"param_free_norm is {reason}"
            problems = (_stack_problem(name, getattr(module, name)) for name in self.attributes[1:])
            if problem := next(filter(None, problems), None):
                return problem
        forms = self.forms(module)
        if not forms:
            return "its parts do not fit together"
        reason = layers.unsupported_norm(module._modules[forms[0].norm], affine=True)
        return f"{forms[0].norm} is {reason}" if reason else None

    def unchecked(self, module: nn.Module, reason: str) -> Verdict:
        if self.missing(module):
            return Verdict(f"which formula of SPADE's kind it computes cannot be tried out: {reason}")
        return Verdict(None, f"unchecked: {reason}", found=self.forms(module)[0])

    def first(self, module: nn.Module) -> Conv:
        """Return the first convolution of the map."""
        layer = self.forms(module)[0].modulator(module)
        return convolutions((*layer.shared, *layer.scale))[0]

    def regions(self, module: Any) -> int | None:
        return self.first(module).in_channels

    def channels(self, module: Any) -> int:
        layer = self.forms(module)[0].modulator(module)
        count = convolutions(layer.scale)[-1].out_channels
        return count if layer.shift else count // 2

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        """The one-hot map of the others; with a form for any map, dense numbers of both signs in the last image.

        Volumes have other sides; in x an odd number of frames.
        """
        x, segmap = super().inputs(module, batch, which)
        assert x is not None and segmap is not None
        if len(self.first(module).kernel_size) == 3:
            x = torch.randn(batch, x.shape[1], 5, 4, 3)
            segmap = _blocks(range(segmap.shape[1]) if which is None else which, segmap.shape[1], batch, (3, 7, 5))
        if found is not None and found.any_map:
            segmap[-1] = torch.randn(segmap.shape[1:])
        return [x, segmap]

    def further(self, inputs: Sequence[Any]) -> list[list[Any]]:
        """Of volumes (video) also an even number of frames, and a single one."""
        x, segmap = inputs
        return [] if x.dim() == 4 else [[x[:, :, :4], segmap], [x[:, :, :1], segmap[:, :, :1]]]

    def output(self, found: Any, result: Any) -> Tensor | None:
        if found is None or found.caches is None:
            return super().output(found, result)
        features, kept = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
        if (
            not isinstance(kept, dict)
            or tuple(kept) != found.caches
            or not all(isinstance(t, Tensor) for t in kept.values())
        ):
            return None
        return super().output(found, features)

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Any:
        x, segmap, cache = (*inputs, None)[:3]
        if cache is not None and found.caches is None:
            raise NotExact("it is called with further arguments")
        layer = found.modulator(module)
        first = convolutions((*layer.shared, *layer.scale))[0]
        _check_map(x, segmap, first.in_channels, len(first.kernel_size))
        _check_norm(layer.norm)
        size = _size(x)
        axes = found.axes(segmap, size)
        known = columns_of(segmap, size, options.num_regions)
        columns = known.columns if axes is None else None
        if not found.any_map and (columns is None or columns.values is not None):
            raise NotExact("on maps that are not one-hot it computes something else than SPADE")
        x = _laid_out(x, options)

        channels_last = x.dim() == 4 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
        made: list[tuple[tuple[int, ...] | Folds, bool]] = []

        def make() -> Modulation:
            wanted, features = (
                None if columns is None else neighbourhoods_of(layer, columns, size),
                segmap.to(first.weight.dtype),
            )
            if wanted is not None:
                made.append((wanted.counts, False))
                return modulation(layer, features, columns, size, wanted)
            if len(size) == 3 or is_padded_otherwise(layer):
                latent = latent_modulation(layer, features, size, axes)
                stages = len(convolutions((*layer.shared, *layer.scale))) + 1
                whole = [(None,) * len(convolutions(stack)) for stack in (layer.shared, *layer.heads)]
                of_rows = Folds(whole[0], tuple(whole[1:])) if latent.table is None else (len(latent.table),) * stages
                made.append((of_rows, False))
                return latent
            folds = folds_of(layer, features, size)
            sharing = Sharing(segmap, layer.shared, size, channels_last)
            result = modulation(
                layer, features, columns, size, folds=folds, channels_last=channels_last, hidden_of=sharing.hidden
            )
            made.append((folds, sharing.taken))
            return result

        how = modulation_of(known, layer, (size, id(found), channels_last), make)
        onehot = columns is not None and columns.values is None
        plan, taken = made[0] if made else (None, False)
        last_work[module] = partial(_work_of, found, plan, taken, tuple(x.shape), onehot)
        y = modulate(layer.norm, x, how)
        if found.caches is None:
            return y
        # The last frames before these that a kernel of one frame sees: none. (As published: a copy of all, never read.)
        empty = segmap.new_empty((*segmap.shape[:2], 0, *size[1:]))
        return y, dict.fromkeys(found.caches, empty)


@dataclass(frozen=True)
class CodesAt:
    """Where in ``obj_dic`` a SEAN layer finds the code of a region: the keys, one of which is the region's number."""

    before: tuple[Hashable, ...]
    as_text: bool
    after: tuple[Hashable, ...]

    def code(self, obj_dic: Any, region: int) -> Tensor | None:
        """Return the code of a region, None where there is none."""
        at = obj_dic
        for key in (*self.before, str(region) if self.as_text else region, *self.after):
            try:
                at = at[key]
            except (KeyError, IndexError, TypeError):
                return None
        return at if isinstance(at, Tensor) else None


def _leaves(at: Any, path: tuple[Hashable, ...] = ()) -> Iterator[tuple[tuple[Hashable, ...], Tensor]]:
    if isinstance(at, Tensor):
        yield path, at
    elif len(path) < 4:
        pairs = at.items() if isinstance(at, Mapping) else enumerate(at) if isinstance(at, list | tuple) else ()
        for key, value in pairs:
            yield from _leaves(value, (*path, key))


def _structure(at: Any, depth: int = 0) -> Any:
    """Keys, shapes and numbers in ``obj_dic``; of text (paths) only that it is text."""
    if isinstance(at, Tensor):
        return at.shape, at.dtype, at.device
    if type(at) in (bool, int, float):
        return at
    if isinstance(at, Mapping) and depth < 4:
        return type(at), tuple((str(key), _structure(value, depth + 1)) for key, value in at.items())
    if isinstance(at, list | tuple) and depth < 4:  # one path a picture: as many as there are pictures
        return type(at), *dict.fromkeys(_structure(value, depth + 1) for value in at)
    return type(at)


def codes_in(obj_dic: Any, length: int) -> list[CodesAt]:
    """Return the places where ``obj_dic`` may hold codes of some length, one per region."""
    found: dict[CodesAt, None] = {}
    for path, leaf in _leaves(obj_dic):
        if leaf.numel() == length:
            for i, key in enumerate(path):
                if type(key) is int or (type(key) is str and key.isdigit()):
                    found[CodesAt(path[:i], type(key) is str, path[i + 1 :])] = None
    return list(found)


class _Sean(Contract):
    """SEAN normalisation ("ACE")."""

    kind = "sean"
    attributes = ("Spade", "noise_var", "blending_gamma", "param_free_norm")
    arguments = 4
    known = ("Spade.mlp_shared.0.", "Spade.mlp_gamma.", "Spade.mlp_beta.", "blending_", "noise_var", "fc_mu", "conv_")

    def signature_fits(self, count: int, least: int) -> bool:
        return least in (2, 3, 4) and count >= 3

    def problem(self, module: Any) -> str | None:
        names = ("mlp_shared", "mlp_gamma", "mlp_beta")
        if not all(hasattr(module.Spade, name) for name in names) or not hasattr(module, "use_rgb"):
            return "it lacks attributes of the published layer"
        problem = _norm_problem(module.param_free_norm) or _spade_problem(module.Spade, "Spade.")
        if problem is None and module.use_rgb:
            problem = _conv_problem(module.conv_gamma, "conv_gamma") or _conv_problem(module.conv_beta, "conv_beta")
            for k in range(module.Spade.mlp_shared[0].in_channels):
                if type(getattr(module, f"fc_mu{k}", None)) is not nn.Linear:
                    problem = problem or f"fc_mu{k} is not a Linear"
        return problem

    def regions(self, module: Any) -> int | None:
        count: int = module.Spade.mlp_shared[0].in_channels
        return count

    def channels(self, module: Any) -> int:
        count: int = module.Spade.mlp_gamma.out_channels
        return count

    def code_length(self, module: Any) -> int:
        """Return S."""
        length: int = module.conv_gamma.in_channels
        return length

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        x, segmap = super().inputs(module, batch, which)
        codes = torch.randn(batch, self.regions(module) or 0, self.code_length(module)) if module.use_rgb else None
        return [x, segmap, codes]

    def variant(self, given: Mapping[str, Any], names: Sequence[str]) -> Hashable:
        """What is in obj_dic, roughly (paths, codes), and whether there are several images: the published layer's mode for
        interactive editing knows one.
        """
        obj_dic = given.get(names[3]) if len(names) > 3 else None
        if obj_dic is None:
            return None
        several = isinstance(x := given.get(names[0]), Tensor) and x.shape[0] > 1
        return several, _structure(obj_dic)

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        x, segmap, codes, obj_dic = (*inputs, None)[:4]
        count = self.regions(module)
        assert count is not None
        _check_map(x, segmap, count)
        _check_norm(module.param_free_norm)
        regions = regions_of(segmap, _size(x), options.num_regions, edges=False)
        if module.use_rgb:
            if (regions.is_soft or regions.edges is not None) and options.soft_masks == "published":
                raise NotExact("the map is soft (accelerate(..., soft_masks='blend') mixes the styles by weight instead)")
            if isinstance(found, CodesAt):
                wanted = range(count) if regions.is_soft else regions.present
                codes = self._stacked(module, found, obj_dic, wanted, x.shape[0])
            shape = (x.shape[0], count, self.code_length(module))
            if not isinstance(codes, Tensor) or codes.shape != shape:
                raise NotExact(f"the style codes are not of shape {shape}")
        return layers.sean_norm(module, _laid_out(x, options), regions, codes, noise=options.noise)

    def _stacked(self, module: Any, at: CodesAt, obj_dic: Any, wanted: Iterable[int], batch: int) -> Tensor:
        """The codes of obj_dic, (B, K, S); zeros for regions that no pixel has."""
        weight, length = module.conv_gamma.weight, self.code_length(module)
        codes = list(weight.new_zeros((self.regions(module) or 0, length)))
        for region in wanted:
            code = at.code(obj_dic, region)
            if code is None:
                raise NotExact(f"obj_dic has no style code of region {region}")
            if code.numel() != length or code.dtype != weight.dtype or code.device != weight.device:
                raise NotExact(f"obj_dic's code of region {region} is not {length} numbers of the layer's dtype and device")
            codes[region] = code.reshape(length)
        return torch.stack(codes).expand(batch, -1, -1)


class _Clade(Contract):
    """CLADE normalisation; CLADE-ICPE reads a third argument, the position of every pixel in its region."""

    kind = "clade"
    attributes = ("class_specified_affine", "param_free_norm")
    arguments = 3
    known = tuple(f"class_specified_affine.{name}" for name in ("weight", "bias", "dist_conv_w.", "dist_conv_b."))

    def signature_fits(self, count: int, least: int) -> bool:
        return least in (2, 3) and count >= 2

    @staticmethod
    def positional(module: Any) -> bool:
        """Say whether the layer is of the positional kind."""
        return hasattr(module.class_specified_affine, "dist_conv_w")

    def problem(self, module: Any) -> str | None:
        affine = module.class_specified_affine
        weight, bias = getattr(affine, "weight", None), getattr(affine, "bias", None)
        problem = _norm_problem(module.param_free_norm)
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.dim() != 2 or bias.dim() != 2:
            return problem or "class_specified_affine does not hold weight and bias (K, C)"
        if self.positional(module):
            names = ("dist_conv_w", "dist_conv_b")
            found = (_conv_problem(getattr(affine, name, None), f"class_specified_affine.{name}", 1) for name in names)
            problem = problem or next(filter(None, found), None)
        return problem or _regions_problem(weight.shape[0])

    def regions(self, module: Any) -> int | None:
        count: int = module.class_specified_affine.weight.shape[0]
        return count

    def channels(self, module: Any) -> int:
        count: int = module.class_specified_affine.weight.shape[1]
        return count

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        given = super().inputs(module, batch, which)
        return [*given, torch.randn(batch, 2, 12, 11)] if self.positional(module) else given

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        x, segmap, distance = (*inputs, None)[:3]
        _check_map(x, segmap, self.regions(module))
        _check_norm(module.param_free_norm)
        regions = regions_of(segmap, _size(x), options.num_regions, edges=False)
        if regions.is_soft or regions.edges is not None:
            raise NotExact("the map is not one-hot")
        if (distance is not None) is not self.positional(module):
            raise NotExact("it is called with, or without, the positions that it was checked with")
        if distance is not None and not (isinstance(distance, Tensor) and distance.shape[:2] == (x.shape[0], 2)):
            raise NotExact("the positions are not of shape (B, 2, h, w)")
        return layers.clade_norm(module, _laid_out(x, options), regions, distance=distance)


class _ByInstance(Contract):
    """INADE and its kin: a scale and a shift per (image, class, instance), made of parameters per class and further inputs.

    Which inputs there are is seen at a call, so the check is made at the first one, on inputs of the same kinds.
    """

    kind = "instance"
    attributes = ("param_free_norm",)
    arguments = 8
    known = ("",)
    shown_by_call = True

    def recognises(self, module: nn.Module) -> bool:
        several = self.norm(module) is not None and self.regions(module) is not None
        return several and required(original_class(module).forward) >= 3

    @staticmethod
    def norm(module: nn.Module) -> str | None:
        """Return the name of the one norm, beside which no convolution sees more than a pixel; None where that is not so."""
        norms = [name for name, child in module._modules.items() if _is_norm(child) or name == "param_free_norm"]
        if len(norms) != 1:
            return None
        others = (part for name, child in module._modules.items() if child and name != norms[0] for part in child.modules())
        wide = any(isinstance(part, Conv) and set(part.kernel_size) != {1} for part in others)
        return None if wide else norms[0]

    @staticmethod
    def tables(module: nn.Module) -> list[nn.Parameter]:
        """Return the parameters with a row per class: of the layer itself, or of a part that is no layer of torch."""
        holders = [module, *(part for part in module.children() if not type(part).__module__.startswith("torch."))]
        return [p for part in holders for p in part._parameters.values() if p is not None and p.dim() > 1]

    def regions(self, module: Any) -> int | None:
        """Return K: two tables, at least, are (K, C, ...)."""
        wide = self.channels(module)
        counts = [table.shape[0] for table in self.tables(module) if table.shape[1] == wide]
        return counts[0] if len(counts) > 1 and len(set(counts)) == 1 and counts[0] > 1 else None

    def channels(self, module: Any) -> int:
        norm = module._modules.get(self.norm(module) or "")
        count = None if norm is None else _channels_of(norm)
        return count if count is not None else next((table.shape[1] for table in self.tables(module)), 0)

    def signature_fits(self, count: int, least: int) -> bool:
        return least >= 3 and count <= self.arguments

    def problem(self, module: Any) -> str | None:
        name = self.norm(module)
        if name is None or self.regions(module) is None:
            return "its parts do not fit together"
        reason = layers.unsupported_norm(module._modules[name])
        return f"{name} is {reason}" if reason else _regions_problem(self.regions(module) or 0)

    def taken(self, given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        if set(given) != set(names[: len(given)]):
            raise NotExact("it is called without an argument that stands before others")
        inputs = [given[name] for name in names[: len(given)]]
        _check_map(*inputs[:2])
        return inputs

    def variant(self, given: Mapping[str, Any], names: Sequence[str]) -> Hashable:
        """Which inputs are maps, and what the others are like."""
        x, *others = self.taken(given, names)
        which = are_maps(others, x.shape[0])

        def described(value: Any, is_map: bool) -> Hashable:
            if not isinstance(value, Tensor):
                return _structure(value)  # type: ignore[no-any-return]
            return is_map, value.dim(), value.dtype, value.shape[1 if is_map else -1] if value.dim() else 0

        return tuple(described(*each) for each in zip(others, which, strict=True))

    def like(self, given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        """Return small random inputs like those of a call: one-hot maps, others of values that occur, random numbers."""
        x, *others = self.taken(given, names)
        made: list[Any] = [torch.randn(len(x), x.shape[1], 7, 5)]
        for value, is_map in zip(others, are_maps(others, len(x)), strict=True):
            if not isinstance(value, Tensor):
                made.append(value)
            elif not is_map:
                made.append(torch.randn(value.shape) if value.is_floating_point() else value)
            elif value.dim() == 4 and value.shape[1] > 1:
                made.append(_blocks(range(value.shape[1]), value.shape[1], len(x), (12, 11)))
            else:
                occurring = torch.unique(value)
                which = torch.randint(0, len(occurring), (len(x), *[1] * (value.dim() - 3), 12, 11))
                made.append(occurring[which.to(value.device)])
        return [
            t.to(old.device, old.dtype) if isinstance(t, Tensor) else t for t, old in zip(made, [x, *others], strict=True)
        ]

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        x, *others = inputs
        name = self.norm(module)
        assert name is not None
        if current_plan() == "dense":
            plain: Tensor = original_class(module).forward(module, *inputs)
            return plain
        norm = module._modules[name]
        _check_norm(norm)
        x = _laid_out(x, options)
        return modulate(norm, x, modulation_by_instance(module, original_class(module), name, x, others))


class _StyleEncoder(Contract):
    """An encoder (``model``, a Sequential that ends in tanh) whose features are averaged over every region."""

    kind = "style_encoder"
    attributes = ("model",)
    known = ("model.",)

    def recognises(self, module: nn.Module) -> bool:
        model = getattr(module, "model", None)
        if not isinstance(model, nn.Sequential) or len(model) < 2 or not isinstance(model[-1], nn.Tanh):
            return False
        return required(original_class(module).forward) == 2

    def parts(self, module: nn.Module) -> Iterable[nn.Module]:
        return [child for name, child in module.named_children() if name != "model"]

    def problem(self, module: Any) -> str | None:
        if not any(isinstance(m, nn.Conv2d) for m in module.model.modules()):
            return "its model has no convolution"
        return None

    def channels(self, module: Any) -> int:
        return next(m for m in module.model.modules() if isinstance(m, nn.Conv2d)).in_channels

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        return [torch.randn(batch, self.channels(module), 20, 24), _blocks(range(3), 3, batch, (20, 24))]

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        image, segmap = inputs
        _check_map(image, segmap)
        regions = regions_of(segmap, _size(image), options.num_regions, edges=False)
        if (regions.is_soft or regions.edges is not None) and options.soft_masks == "published":
            raise NotExact("the map is soft (accelerate(..., soft_masks='blend') takes weighted means instead)")
        pooled: Tensor = masked_roi_pool(module.model(image), regions, mode="mean")[0]
        return pooled


CONTRACTS: dict[str, Contract] = {
    contract.kind: contract for contract in (_Sean(), _Spade(), _Clade(), _StyleEncoder(), _ByInstance())
}


def contract_of(module: nn.Module) -> Contract | None:
    """Return the contract that the module's attributes point to, or None."""
    return next((contract for contract in CONTRACTS.values() if contract.recognises(module)), None)
