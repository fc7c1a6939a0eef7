"""Make somebody else's SPADE / SEAN / CLADE-style model fast in place: `accelerate(model)`, `restore(model)`.

Layers are recognised by their contract (attributes, parameters, forward signature), never by class name, and
each is checked before it is touched: a copy with random parameters must give the same output as our form of
it, in eval and in training. The swap exchanges the class of the module object for a subclass of its own class
with another `forward`. Parameters, buffers, attributes, hooks and state_dict stay as they are, `isinstance`
still holds, and copies, pickles and DataParallel replicas of the module behave as the module does; `restore`
puts the class back.

The layers of such models pass one float one-hot map around. It is recognised and analysed once for each
forward of the model: the outermost call keeps a table from the map (storage, shape, strides, version counter)
to its RegionMap, gone when the call ends, by an exception too. A map edited in place, even between two
layers, is another map; only an inference tensor, which has no version counter, must not be edited while the
model's forward runs.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from . import layers
from .backend import announce_fallback
from .layers.derived import derived
from .ops.masked_roi_pool import masked_roi_pool
from .region_map import RegionMap

KINDS = {
    "spade": "SPADE normalisation",
    "sean": "SEAN (ACE) normalisation",
    "clade": "CLADE normalisation",
    "style_encoder": "region-mean style encoder",
    "conv2d": "convolution with prepacked weight",
    "spectral_conv2d": "convolution with spectral norm, folded once in eval",
    "root": "one label-map analysis per forward",
}


@dataclass(frozen=True)
class _Options:
    """What a swapped class does; together with the original class it determines the swapped class."""

    kind: str
    noise: str = "published"  # SEAN
    soft_masks: str = "published"  # SEAN and style encoder
    num_regions: int | None = None  # a map with one more channel than this carries edges
    ignore_obj_dic: bool = False  # SEAN
    channels_last: bool | None = None  # of the activations; None: on the CPU


@dataclass(frozen=True)
class Entry:
    """One module in an AccelerationReport: its name in the model ("" is the model itself), its kind, a
    remark.
    """

    name: str
    kind: str
    note: str = ""


@dataclass
class AccelerationReport:
    """What `accelerate` changed, what it left as it was and why; print it."""

    changed: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """Return how many modules of a kind (a key of KINDS) run our form now."""
        return sum(entry.kind == kind for entry in self.changed)

    def __str__(self) -> str:
        """Return the report as text; long runs of modules with the same remark take one line."""
        lines = ["AccelerationReport"]
        for title, entries in (("changed", self.changed), ("left as it was", self.left)):
            groups: dict[tuple[str, str], list[str]] = {}
            for entry in entries:
                groups.setdefault((entry.kind, entry.note), []).append(entry.name or "(the model)")
            lines.append(f"  {title}: {len(entries)} module{'' if len(entries) == 1 else 's'}")
            for (kind, note), names in groups.items():
                shown = ", ".join(names[:4]) + (f", ... {names[-1]}" if len(names) > 4 else "")
                remark = f": {note}" if note else ""
                lines.append(f"    {len(names):3d} x {KINDS[kind]}{remark} [{shown}]")
        return "\n".join(lines)


# --------------------------------------------------------------------------------- the label map of a forward


class _Thread(threading.local):
    """The maps of the outermost forward that this thread is in; None outside."""

    maps: dict[tuple, tuple[Tensor, RegionMap | None]] | None = None


_thread = _Thread()


class _NotExact(Exception):
    """Raised where an input cannot be treated exactly; the argument says why."""


def _identity(segmap: Tensor) -> tuple:
    """Return what tells whether two tensors hold the same values without reading them."""
    version = -1 if segmap.is_inference() else segmap._version
    differentiable = segmap.requires_grad and torch.is_grad_enabled()
    place = (segmap.data_ptr(), segmap.shape, segmap.stride(), segmap.dtype, segmap.device)
    return (*place, version, id(segmap) if differentiable else None)


def _analyse(segmap: Tensor, num_regions: int | None, edges: bool = True) -> RegionMap | None:
    """Return the RegionMap of a float map, None when its weights are not those of regions (negative, not
    finite).
    """
    if segmap.requires_grad and torch.is_grad_enabled():
        forms = [(RegionMap.soft, None)]
    else:
        segmap = segmap.detach()
        channels = segmap.shape[1]
        # all channels are regions; or the last one is binary instance edges; or weights
        hard = [num_regions] if num_regions is not None else [channels, channels - 1] if edges else [channels]
        forms = [(RegionMap.from_onehot, k) for k in hard if k > 0] + [(RegionMap.soft, None)]
    for make, regions in forms:
        try:
            return make(segmap) if regions is None else make(segmap, num_regions=regions)
        except ValueError:
            continue
    return None


def _regions(segmap: Tensor, options: _Options) -> RegionMap:
    """Return the RegionMap of a float map (B, K, h, w), analysed once per forward, or raise _NotExact."""
    edges = options.kind == "spade"  # only SPADE's map may end in an edge channel that nobody announced
    maps, key = _thread.maps, (*_identity(segmap), options.num_regions, edges)
    if maps is None:
        result = _analyse(segmap, options.num_regions, edges)
    else:
        if key not in maps:  # the entry keeps the tensor alive: its address cannot come to mean another one
            maps[key] = (segmap, _analyse(segmap, options.num_regions, edges))
        result = maps[key][1]
    if result is None:
        raise _NotExact("the map has negative or non-finite weights")
    return result


# ------------------------------------------------------------------------------------------- swapped forwards


def _check_map(x: Any, segmap: Any, channels: int | None = None) -> None:
    """Raise _NotExact unless x and segmap are float batches of the same size on one device."""
    for name, value in (("x", x), ("the map", segmap)):
        if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
            raise _NotExact(f"{name} is not a float tensor of four dimensions")
    if x.shape[0] != segmap.shape[0] or x.device != segmap.device:
        raise _NotExact("x and the map differ in batch size or device")
    if 0 in x.shape or 0 in segmap.shape:
        raise _NotExact("an input is empty")
    if channels is not None and segmap.shape[1] != channels:
        raise _NotExact(f"the map has {segmap.shape[1]} channels, the layer {channels}")


def _laid_out(x: Tensor, options: _Options) -> Tensor:
    """Return x in the memory layout that kernels and convolutions like best (the residual blocks then stay in it)."""
    wanted = x.device.type == "cpu" if options.channels_last is None else options.channels_last
    return x.contiguous(memory_format=torch.channels_last) if wanted else x


def _as_published(result: Any) -> Any:
    """Return what the model returns in contiguous memory, as it would without us: callers may use `view`."""
    if isinstance(result, Tensor):
        return result.contiguous() if result.dim() == 4 else result
    if isinstance(result, dict):
        return type(result)({key: _as_published(value) for key, value in result.items()}) if type(result) is dict else result
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*(_as_published(value) for value in result))
    if type(result) in (tuple, list):
        return type(result)(_as_published(value) for value in result)
    return result


def _check_norm(norm: nn.Module) -> None:
    """Raise _NotExact for a third-party synchronised norm that really synchronises now."""
    if norm.training and getattr(norm, "_is_parallel", False):
        raise _NotExact(f"{type(norm).__name__} shares statistics between replicas in a way of its own")


def _spade(module: nn.Module, options: _Options, x: Tensor, segmap: Tensor) -> Tensor:
    _check_map(x, segmap, module.mlp_shared[0].in_channels)
    _check_norm(module.param_free_norm)
    return layers.spade_norm(module, _laid_out(x, options), _regions(segmap, options))


def _sean(
    module: nn.Module,
    options: _Options,
    x: Tensor,
    segmap: Tensor,
    codes: Tensor | None = None,
    obj_dic: Any = None,
) -> Tensor:
    regions_of_layer = module.Spade.mlp_shared[0].in_channels
    _check_map(x, segmap, regions_of_layer)
    _check_norm(module.param_free_norm)
    if obj_dic is not None and not options.ignore_obj_dic:
        raise _NotExact("obj_dic is given (accelerate(..., ignore_obj_dic=True) if it does not change the output)")
    if module.use_rgb:
        shape = (x.shape[0], regions_of_layer, module.conv_gamma.in_channels)
        if not isinstance(codes, Tensor) or codes.shape != shape:
            raise _NotExact(f"the style codes are not of shape {shape}")
    regions = _regions(segmap, options)
    if (regions.is_soft or regions.edges is not None) and module.use_rgb and options.soft_masks == "published":
        raise _NotExact("the map is soft (accelerate(..., soft_masks='blend') mixes the styles by weight instead)")
    return layers.sean_norm(module, _laid_out(x, options), regions, codes, noise=options.noise)


def _clade(module: nn.Module, options: _Options, x: Tensor, segmap: Tensor) -> Tensor:
    _check_map(x, segmap, module.class_specified_affine.weight.shape[0])
    _check_norm(module.param_free_norm)
    regions = _regions(segmap, options)
    if regions.is_soft or regions.edges is not None:
        raise _NotExact("the map is not one-hot")
    return layers.clade_norm(module, _laid_out(x, options), regions)


def _style_encoder(module: nn.Module, options: _Options, image: Tensor, segmap: Tensor) -> Tensor:
    _check_map(image, segmap)
    regions = _regions(segmap, options)
    if (regions.is_soft or regions.edges is not None) and options.soft_masks == "published":
        raise _NotExact("the map is soft (accelerate(..., soft_masks='blend') takes weighted means instead)")
    return masked_roi_pool(module.model(image), regions, mode="mean")[0]


_FORWARDS = {"spade": _spade, "sean": _sean, "clade": _clade, "style_encoder": _style_encoder}


def _bypassed(module: nn.Module, kind: str) -> Iterator[nn.Module]:
    """Yield the sub-modules that our form reads without calling them."""
    for name, child in module.named_children():
        if kind != "style_encoder" or name != "model":
            yield from child.modules()


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _run(
    module: nn.Module,
    original: Callable[..., Any],
    names: list[str],
    options: _Options,
    args: tuple,
    kwargs: dict,
) -> Any:
    """Run our form of a layer, or its original forward where that alone is exact; `names`: the original's
    parameters.
    """
    try:
        function = _FORWARDS[options.kind]
        given = dict(zip(names, args, strict=False)) | kwargs
        ours = names[: 4 if options.kind == "sean" else 2]
        if len(args) > len(names) or any(name not in ours and value is not None for name, value in given.items()):
            raise _NotExact("it is called with further arguments")
        if ours[0] not in given or ours[1] not in given:
            raise _NotExact("it is called without its map")
        if any(_hooked(child) for child in _bypassed(module, options.kind)):
            raise _NotExact("one of its sub-modules has a hook now")
        return function(module, options, *(given.get(name) for name in ours))
    except _NotExact as reason:
        announce_fallback(
            f"accelerate: {type(module).__name__}", f"its own forward is used: {reason}",
            "give it a one-hot float map (B, K, H, W) and only the published arguments, or restore(model)",
        )  # fmt: skip
        return original(module, *args, **kwargs)


def _spectral_hook(conv: nn.Module) -> bool:
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


def _fold(conv: nn.Module) -> nn.Conv2d | None:
    """Return a plain convolution with the weight that the spectral norm hook would set now; None: let the
    hook.

    Kept while weight_orig, weight_u and weight_v stay as they are. Only on the CPU, in eval and without
    gradient.
    """
    if conv.training or torch.compiler.is_compiling() or torch.is_grad_enabled() or not _spectral_hook(conv):
        return None
    sources = [conv.weight_orig, conv.weight_u, conv.weight_v]
    if any(t.is_inference() or t.device.type != "cpu" for t in sources):
        return None

    def fold() -> nn.Conv2d:
        weight, u, v = (t.detach() for t in sources)
        folded = weight / torch.dot(u, torch.mv(weight.flatten(1), v))
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        plain = nn.Conv2d(*shape, conv.groups, False, conv.padding_mode, device="meta").eval()
        plain.weight = nn.Parameter(folded, requires_grad=False)
        return plain

    plain = derived(conv, "folded", tuple(sources), fold)
    plain.bias = conv.bias
    conv.weight = plain.weight.detach()  # as the hook leaves it
    return plain


_classes: dict[tuple[type, _Options], type] = {}
_classes_lock = threading.Lock()


def _swapped_class(original: type, options: _Options) -> type:
    """Return the subclass of `original` that behaves as `options` say; always the same object for the same
    arguments.
    """
    with _classes_lock:
        if (original, options) not in _classes:
            _classes[original, options] = _make_class(original, options)
        return _classes[original, options]


def _make_class(original: type, options: _Options) -> type:
    space: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce,
        "_mixsyn_original": original,
        "_mixsyn_options": options,
    }
    if options.kind == "root":
        call = original.__call__

        def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if _thread.maps is not None:
                return call(self, *args, **kwargs)
            _thread.maps = {}
            try:
                result = call(self, *args, **kwargs)
            except RuntimeError as error:
                if "view size is not compatible" in str(error):
                    error.add_note("accelerate(model, channels_last=False) keeps every memory layout as it was")
                raise
            finally:
                _thread.maps = None
            return _as_published(result) if options.channels_last is not False else result

        space["__call__"] = __call__
    elif options.kind == "spectral_conv2d":
        hooked_call = original.__call__

        def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            plain = _fold(self) if len(args) == 1 and not kwargs else None
            return hooked_call(self, *args, **kwargs) if plain is None else layers.conv2d(plain, args[0])

        space["__call__"] = __call__
    else:
        plain = original.forward
        if options.kind == "conv2d":

            def forward(self: nn.Module, input: Tensor) -> Tensor:
                return layers.conv2d(self, input)

        else:
            names = [p.name for p in _positional(plain)]
            # looks at storage addresses and version counters, which a traced graph does not have
            run = torch.compiler.disable(_run)

            def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
                return run(self, plain, names, options, args, kwargs)

        space["forward"] = functools.wraps(plain)(forward)
    return type(original)(original.__name__, (original,), space)


def _reduce(self: nn.Module, protocol: int) -> tuple:
    """Copy and pickle as (original class, options) + state: the swapped class has no name of its own to
    pickle by.
    """
    cls = type(self)
    original, options = cls._mixsyn_original, cls._mixsyn_options
    reduced = super(_swapped_class(original, options), self).__reduce_ex__(protocol)
    _, args, *rest = reduced
    return (_rebuild, (original, options, *args[1:]), *rest)


def _rebuild(original: type, options: _Options, *args: Any) -> nn.Module:
    cls = _swapped_class(original, options)
    return cls.__new__(cls, *args)


def _swap(module: nn.Module, options: _Options) -> None:
    module.__class__ = _swapped_class(_original(module), options)


def _original(module: nn.Module) -> type:
    """Return the module's class as it was before accelerate."""
    cls = type(module)
    return cls._mixsyn_original if "_mixsyn_original" in cls.__dict__ else cls


# ------------------------------------------------------------------------------------------------ recognition


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a forward that can be given by position, without self."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds][1:]


def _kind(module: nn.Module) -> str | None:
    """Return the kind that the module's attributes point to, or None."""
    if all(hasattr(module, name) for name in ("Spade", "noise_var", "blending_gamma", "param_free_norm")):
        return "sean"
    if all(hasattr(module, name) for name in ("mlp_shared", "mlp_gamma", "mlp_beta", "param_free_norm")):
        return "spade"
    if all(hasattr(module, name) for name in ("class_specified_affine", "param_free_norm")):
        return "clade"
    model = getattr(module, "model", None)
    if isinstance(model, nn.Sequential) and len(model) > 1 and isinstance(model[-1], nn.Tanh):
        if sum(p.default is inspect.Parameter.empty for p in _positional(_original(module).forward)) == 2:
            return "style_encoder"
    return None


def _conv_problem(conv: Any, name: str, kernel: int = 3) -> str | None:
    """Return why a convolution is not the plain same-size one of the contract, or None."""
    if _original(conv) is not nn.Conv2d and not isinstance(conv, layers.FastConv2d):
        return f"{name} is {type(conv).__name__}, not a plain Conv2d"
    if conv.kernel_size != (kernel, kernel):
        return f"{name} has a {conv.kernel_size[0]}x{conv.kernel_size[1]} kernel, ours is for {kernel}x{kernel}"
    usual = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    if not usual or conv.padding not in ((kernel // 2, kernel // 2), "same") or conv.padding_mode != "zeros":
        return f"{name} has an unusual stride, padding, dilation or groups"
    return None


def _norm_problem(norm: nn.Module) -> str | None:
    """Return why a normalisation is not a parameter-free batch or instance norm, or None."""
    reason = layers.unsupported_norm(norm)
    return None if reason is None else f"param_free_norm is {reason}"


def _spade_problem(module: nn.Module, prefix: str = "") -> str | None:
    shared = module.mlp_shared
    if not isinstance(shared, nn.Sequential) or len(shared) != 2 or not isinstance(shared[1], nn.ReLU):
        return f"{prefix}mlp_shared is not a convolution and a ReLU"
    for name, conv in (
        ("mlp_shared.0", shared[0]),
        ("mlp_gamma", module.mlp_gamma),
        ("mlp_beta", module.mlp_beta),
    ):
        problem = _conv_problem(conv, prefix + name)
        if problem:
            return problem
    return None


def _structure_problem(module: nn.Module, kind: str) -> str | None:
    """Return why the module is outside of the contract of its kind, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule"
    if "forward" in vars(module):
        return "its forward is an attribute of the object (patched by somebody else)"
    parameters = _positional(_original(module).forward)
    required = sum(p.default is inspect.Parameter.empty for p in parameters)
    signature = f"its forward takes ({', '.join(p.name for p in parameters)})"
    if required != 2 and not (kind == "sean" and required in (3, 4)) or (kind == "sean" and len(parameters) < 3):
        return f"{signature}, not the published arguments"
    problem = None
    if kind == "spade":
        problem = _norm_problem(module.param_free_norm) or _spade_problem(module)
        known = ("mlp_shared.0.", "mlp_gamma.", "mlp_beta.")
    elif kind == "sean":
        names = ("mlp_shared", "mlp_gamma", "mlp_beta")
        if not all(hasattr(module.Spade, name) for name in names) or not hasattr(module, "use_rgb"):
            return "it lacks attributes of the published layer"
        problem = _norm_problem(module.param_free_norm) or _spade_problem(module.Spade, "Spade.")
        known = (
            "Spade.mlp_shared.0.",
            "Spade.mlp_gamma.",
            "Spade.mlp_beta.",
            "blending_",
            "noise_var",
            "fc_mu",
            "conv_",
        )
        if problem is None and module.use_rgb:
            problem = _conv_problem(module.conv_gamma, "conv_gamma") or _conv_problem(module.conv_beta, "conv_beta")
            for k in range(module.Spade.mlp_shared[0].in_channels):
                if type(getattr(module, f"fc_mu{k}", None)) is not nn.Linear:
                    problem = problem or f"fc_mu{k} is not a Linear"
    elif kind == "clade":
        problem = _norm_problem(module.param_free_norm)
        affine = module.class_specified_affine
        weight, bias = getattr(affine, "weight", None), getattr(affine, "bias", None)
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.dim() != 2 or bias.dim() != 2:
            problem = problem or "class_specified_affine does not hold weight and bias (K, C)"
        known = ("class_specified_affine.weight", "class_specified_affine.bias")
    else:
        known = ("model.",)
    if problem is not None:
        return problem
    extra = [name for name, _ in module.named_parameters() if not name.startswith(known)]
    extra += [name for name, _ in module.named_parameters() if name.endswith(("_orig", "_g", "_v", "original"))]
    extra += [f"{name}.{p}" for name, m in module.named_modules() for p in vars(m).get("parametrizations", ())]
    if extra:
        return f"it holds parameters outside of the contract: {', '.join(extra[:4])}"
    if any(_hooked(child) for child in _bypassed(module, kind)):
        return "one of its sub-modules has a hook, which our form would not call"
    if any(t.is_meta for t in module.parameters()):
        return "its parameters are on the meta device"
    return None


# ------------------------------------------------------------------------------------ the check before a swap


def _copy(module: nn.Module) -> nn.Module:
    """Return a deep copy; norms that cannot be copied (they hold locks, queues) are plain batch norms in it."""
    try:
        return copy.deepcopy(module)
    except Exception:
        memo: dict[int, Any] = {}
        for norm in {getattr(m, "param_free_norm", None) for m in module.modules()}:
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=False)
                memo[id(norm)] = plain.to(next(module.parameters()))
        return copy.deepcopy(module, memo)


def _scrambled_copy(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters and statistics are random, so that no zero hides a difference."""
    twin = _copy(module).requires_grad_(False)
    for child in twin.modules():
        if "_mixsyn_original" in type(child).__dict__:
            child.__class__ = _original(child)
    with torch.no_grad():
        for name, value in twin.state_dict().items():
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape) + 0.5)
            else:
                value.copy_(torch.randn(value.shape) / max(value[0].numel() if value.dim() > 1 else 4, 1) ** 0.5)
    return twin


def _probe_inputs(module: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> tuple:
    """Return small inputs: a batch of two, a map of blocks with an absent region and pixels of no region."""
    if kind == "style_encoder":
        first = next(m for m in module.model.modules() if isinstance(m, nn.Conv2d))
        channels, regions, size = first.in_channels, 3, (20, 24)
        x = torch.randn(2, channels, *size)
    else:
        affine = getattr(module, "class_specified_affine", None)
        if affine is not None:
            regions, channels = affine.weight.shape
        else:
            spade = module.Spade if kind == "sean" else module
            regions, channels = spade.mlp_shared[0].in_channels, spade.mlp_gamma.out_channels
        size = (12, 11)
        x = torch.randn(2, channels, 7, 5)
    blocks = torch.randint(-1, regions, (2, 1, 4, 4))
    labels = nn.functional.interpolate(blocks.float(), size=size, mode="nearest")
    segmap = (labels == torch.arange(regions).view(1, -1, 1, 1)).float()
    inputs = [x, segmap]
    if kind == "sean" and module.use_rgb:
        inputs.append(torch.randn(2, regions, module.conv_gamma.in_channels))
    elif kind == "sean":
        inputs.append(None)
    return tuple(t if t is None else t.to(device, dtype) for t in inputs)


def _probe(module: nn.Module, options: _Options) -> tuple[bool, str]:
    """Compare our form with the module's own on random parameters: (same, remark or reason)."""
    kind = options.kind
    parameter = next(module.parameters())
    device, dtype = parameter.device, parameter.dtype
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 5e-2)
    devices = [device] if device.type == "cuda" else []
    outer, _thread.maps = _thread.maps, None
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(20)
            try:
                theirs = _scrambled_copy(module)
                ours = copy.deepcopy(theirs)
            except Exception as error:
                return False, f"it could not be copied for the check ({type(error).__name__}: {error})"
            inputs = _probe_inputs(module, kind, device, dtype)
            for training in (False, True):
                if training and any(isinstance(m, nn.SyncBatchNorm) for m in theirs.modules()) and device.type == "cpu":
                    continue  # torch's own does not run there
                theirs.train(training)
                ours.train(training)
                torch.manual_seed(21)
                try:
                    expected = type(theirs).forward(theirs, *inputs)
                except Exception as error:
                    first = (str(error).splitlines() or [""])[0]
                    if device.type == "cpu" and any(word in str(error) for word in ("CUDA", "NVIDIA", "cuda")):
                        return True, f"unchecked: its own forward needs CUDA ({first})"
                    return False, f"its own forward failed in the check ({type(error).__name__}: {first})"
                torch.manual_seed(21)
                checked = options if kind != "sean" else _Options(kind, noise="published")
                result = _FORWARDS[kind](ours, checked, *inputs)
                if not isinstance(expected, Tensor) or expected.shape != result.shape:
                    return False, "its forward returns something else than the published layer"
                pairs = [(expected, result)]
                pairs += [(a, b) for a, b in zip(theirs.buffers(), ours.buffers(), strict=True) if a.is_floating_point()]
                for a, b in pairs:
                    if not (a - b).abs().max() <= tolerance * max(a.abs().max().item(), 1e-30):
                        mode = "training" if training else "eval"
                        return (
                            False,
                            f"its forward does not compute the published formula (check in {mode} mode)",
                        )
    finally:
        _thread.maps = outer
    return True, ""


# ----------------------------------------------------------------------------------------------------- public


def accelerate(
    model: nn.Module,
    *,
    noise: str = "published",
    prepack: bool = True,
    num_regions: int | None = None,
    soft_masks: str = "published",
    ignore_obj_dic: bool = False,
    channels_last: bool | None = None,
) -> AccelerationReport:
    """Swap the SPADE, SEAN and CLADE layers and the region-mean style encoders of `model` for our forms, in
    place.

    Same outputs, same gradients, same running statistics, same state_dict. A layer that gets an input which our form
    cannot treat exactly runs its own forward and says so once (an error under MIXSYN_FAST_STRICT=1). Calling it again is
    harmless: new options replace old ones.

    Args:
        model: any nn.Module. Call it, not only a part of it, for the label map to be analysed once per
            forward; a part called alone gives the same result, each of its layers analysing the map for
            itself.
        noise: of SEAN layers. "published" draws as the published code does, seed for seed; "device" draws on
            the device of x (same distribution, faster on a GPU).
        prepack: also let plain nn.Conv2d keep a prepacked weight on the CPU in eval, with spectral norm
            folded (both refreshed when a parameter changes). Packing needs float32 activations in
            channels_last.
        num_regions: K, when the one-hot map has K + 1 channels and the last holds binary edges; found out
            when left out.
        soft_masks: for SEAN layers and style encoders given a map that is not one-hot. "published" runs their
            own forward (which takes any non-zero weight for membership); "blend" mixes styles and means by
            weight. SPADE layers treat soft maps exactly in both cases.
        ignore_obj_dic: run our form of SEAN layers also when obj_dic is given (for models that pass it but do
            not use it).
        channels_last: let the swapped normalisations answer in channels_last memory, in which convolutions are
            faster; what the whole model returns is contiguous again. None: on the CPU, in residual blocks (``conv_0``,
            ``conv_1``) only. False: every layout as it was.

    Returns:
        AccelerationReport: what was changed, what was left and why.

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
    report = AccelerationReport()
    inside: set[int] = set()  # parts of layers that are dealt with as a whole
    plans: list[tuple[nn.Module, str, _Options, str]] = []
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, layers.SPADENorm | layers.SEANNorm | layers.CLADENorm | layers.FastConv2d):
            inside.update(id(child) for child in module.modules())
            continue
        kind = _kind(module)
        if kind is None:
            continue
        inside.update(id(child) for child in _bypassed(module, kind))
        problem = _structure_problem(module, kind)
        note = ""
        if problem is None:
            layout = channels_last if channels_last is not None or _in_residual_block(model, name) else False
            options = _Options(kind, noise, soft_masks, num_regions, ignore_obj_dic, layout)
            same, note = _probe(module, options)
            problem = None if same else note
        if problem is not None:
            _unswap(module)
            report.left.append(Entry(name, kind, problem))
        else:
            plans.append((module, name, options, note))
    for module, name, options, note in plans:
        _swap(module, options)
        report.changed.append(Entry(name, options.kind, note))
    for name, module in model.named_modules():
        if _original(module) is not nn.Conv2d or id(module) in inside:
            continue
        if not prepack:
            _unswap(module)
        elif problem := _prepack_problem(module):
            report.left.append(Entry(name, "conv2d", problem))
        else:
            kind = "spectral_conv2d" if "weight_orig" in module._parameters else "conv2d"
            _swap(module, _Options(kind))
            report.changed.append(Entry(name, kind))
    root = model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model
    if plans and _kind(root) not in ("spade", "sean", "clade", "style_encoder"):
        if isinstance(root, torch.jit.ScriptModule):
            report.left.append(Entry("", "root", "it is a ScriptModule"))
        else:
            _swap(root, _Options("root", channels_last=channels_last))
            report.changed.append(Entry("" if root is model else "module", "root"))
    return report


def _in_residual_block(model: nn.Module, name: str) -> bool:
    """Say whether a layer stands in a residual block of the contract, whose forward asks for no memory layout."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
    return all(isinstance(getattr(parent, conv, None), nn.Conv2d) for conv in ("conv_0", "conv_1"))


def _prepack_problem(conv: nn.Module) -> str | None:
    """Return why a plain Conv2d should keep its own forward, or None."""
    if "forward" in vars(conv):
        return "its forward is an attribute of the object (patched by somebody else)"
    if "weight" not in conv._parameters and not _spectral_hook(conv):
        return "its weight is recomputed at every call by something other than torch's spectral norm"
    return None


def _unswap(module: nn.Module) -> None:
    if "_mixsyn_original" not in type(module).__dict__:
        return
    module.__class__ = type(module)._mixsyn_original
    layers.forget(module)


def restore(model: nn.Module) -> int:
    """Undo `accelerate` on a model or a copy of it: every module gets its own class back. Returns how many
    did.

    Raises:
        RuntimeError: when somebody else (fully_shard, for one) has subclassed a swapped module since; nothing
            is undone.
    """
    modules = list(model.modules())
    for module in modules:
        cls = type(module)
        if hasattr(cls, "_mixsyn_original") and "_mixsyn_original" not in cls.__dict__:
            raise RuntimeError(f"restore: {cls.__name__} was swapped again by somebody else; undo that first")
    swapped = [module for module in modules if "_mixsyn_original" in type(module).__dict__]
    for module in swapped:
        _unswap(module)
    return len(swapped)
