"""The check before our form stands for a layer's own forward: both run on a copy with random parameters.

The copy is narrow (every width of more than sixteen becomes a small one) where the layer's own forward allows it, so that a
check costs milliseconds. A verdict holds for one state of a layer: its class, the classes and settings of its parts, its own
attributes. Where a call finds another state (a mode switched, a part replaced, a bias gone), the check is made again.
"""

from __future__ import annotations

import copy
import enum
import random
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from . import maps
from .contracts import Contract, Options, SpadeForm, Verdict, codes_in, hooked, original_class, positional
from .maps import NotExact

_PLAIN = frozenset((str, bool, int, float, type(None)))
_DEEPEST = 2  # of the objects that a layer holds (a config, the model's options), whose plain values are part of its state
_MOST_VALUES = 256  # of one object: what holds more (a data set) is no setting
_MOST_STATES = 8
_WIDE = 16
AT_FIRST_CALL = "what it computes depends on inputs that a call shows: checked at the first one"


class _Touched(BaseException):
    """The layer's own forward looked at what it was not expected to need. No Exception: it must not be caught there."""


class _Tripwire:
    """Stands for an argument: remembers any use of it, and raises, for a layer may write files."""

    touched = False

    def _touch(self, *args: Any, **kwargs: Any) -> Any:
        type(self).touched = True
        raise _Touched

    __getattr__ = __getitem__ = __iter__ = __len__ = __contains__ = __bool__ = __fspath__ = _touch
    __eq__ = __str__ = __repr__ = __add__ = __radd__ = __reversed__ = __or__ = __ror__ = _touch
    get = keys = values = items = copy = index = count = pop = setdefault = update = append = _touch
    __hash__ = None  # type: ignore[assignment]


def _tripwire(like: Any) -> Any:
    """A new tripwire that is an instance of what it stands for, a mapping or a sequence."""
    bases = next(((_Tripwire, kind) for kind in (dict, list, tuple) if isinstance(like, kind)), (_Tripwire,))
    return type("_Tripwire", bases, {"touched": False})()


# --- states ---------------------------------------------------------------------------------------------------------------


def _setting(value: Any, depth: int = 0) -> Any:
    """What of an attribute may decide how a forward works: plain values, those of containers and of objects with attributes
    (a config that the model shares), two levels deep; of all else the class. Nothing of it keeps an object alive.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple and len(value) <= _MOST_VALUES and all(type(inner) in _PLAIN for inner in value):
        return value  # kernel sizes, strides: five of every convolution, at every call
    if isinstance(value, enum.Enum):
        return kind, value.name
    if isinstance(value, np.generic):
        return kind, value.item()
    if isinstance(value, Tensor):
        return kind, value.shape, value.dtype, _contents(value)
    if isinstance(value, nn.Module | type) or depth > _DEEPEST:
        return kind
    if isinstance(value, types.MethodType):
        return kind, value.__func__.__code__, _setting(value.__self__, depth + 1)
    if isinstance(value, types.FunctionType):
        cells = tuple(_setting(cell.cell_contents, depth + 1) for cell in value.__closure__ or ())
        return kind, value.__code__, cells
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, set | frozenset):
        pairs = ((None, inner) for inner in sorted(value, key=repr))
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        pairs = vars(value).items() if hasattr(value, "__dict__") else ()
    first = list(islice(pairs, _MOST_VALUES + 1))
    if len(first) > _MOST_VALUES:
        return kind
    return kind, tuple((str(key), _setting(inner, depth + 1)) for key, inner in first)


def _contents(value: Tensor) -> Hashable:
    """What tells the contents of a tensor that is no parameter: a few numbers by value, of more whether they were edited."""
    if value.device.type == "cpu" and value.numel() <= _WIDE:
        return tuple(value.flatten().tolist())
    return None if value.is_inference() else value._version


def _parts(module: nn.Module, contract: Contract) -> Iterator[nn.Module]:
    yield module
    waiting = list(contract.parts(module))
    for part in waiting:
        yield part
        waiting.extend(filter(None, part._modules.values()))


def state_of(module: nn.Module, contract: Contract) -> Hashable:
    """Return what decides, beside the values of tensors and whether it trains, how a layer's own forward works.

    Raises:
        NotExact: a part that our form reads without calling it has a hook.
    """
    if nn.modules.module._has_any_global_hook():
        raise NotExact("a hook of all modules is registered")
    own = original_class(module)
    state: list[Any] = [own.forward.__code__]
    state += [(name, value) for name, value in vars(own).items() if type(value) in _PLAIN and name[:2] != "__"]
    for part in _parts(module, contract):
        if part is not module and hooked(part):
            raise NotExact("one of its sub-modules has a hook now")
        state += original_class(part), part.training is module.training
        attributes = part.__dict__
        if type(part) is nn.Linear and "forward" not in attributes:  # SEAN has dozens; weight and bias say all
            continue
        replica = "_is_replica" in attributes
        is_norm = isinstance(part, nn.modules.batchnorm._NormBase)
        tensors: list[str] = []
        for name, value in attributes.items():
            if name in _PASSED_OVER:
                if name == "_parameters":
                    tensors += [key for key, parameter in value.items() if parameter is not None]
                elif name == "_buffers" and value and not is_norm:
                    state += [(key, _setting(buffer)) for key, buffer in value.items()]
            elif is_norm and name in ("momentum", "eps"):
                continue  # our form reads them at every call
            elif type(value) in _PLAIN:
                state += name, value
            elif replica and isinstance(value, Tensor):
                tensors.append(name)  # a DataParallel replica has its parameters as attributes
            else:
                state += name, _setting(value)
        state += sorted(tensors)
    return tuple(state)


# torch's own attributes, and those of replicas; synchronised norms are asked at every call whether they are parallel
_PASSED_OVER = frozenset((*vars(nn.Module()), "_is_replica", "_former_parameters", "_is_parallel"))
_verdicts: dict[Hashable, Verdict] = {}
_states: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()


def verdict(
    module: nn.Module, contract: Contract, options: Options, given: Mapping[str, Any], names: Sequence[str]
) -> Verdict:
    """Return the verdict for a call of a layer in its present state, from memory or by a check.

    Args:
        module: the layer.
        contract: its kind.
        options: of our form.
        given: the call's arguments by name.
        names: the names of the own forward's arguments in order.

    Raises:
        NotExact: no check is made, for the state changes at every call, or a part has a hook.
    """
    state = state_of(module, contract)
    variant = contract.variant(given, names)
    key = original_class(module), options, state, variant, _precision(module)
    if key not in _verdicts:
        x = given[names[0]]
        if not isinstance(x, Tensor) or x.dim() not in (4, 5) or 0 in x.shape:
            raise NotExact("x is no batch of feature maps, or an empty one")  # and nothing is learned from it
        seen = _states.setdefault(module, set())
        if len(seen) >= _MOST_STATES:
            raise NotExact("its attributes change from call to call")
        seen.add(key)
        problem = contract.structure_problem(module)
        _verdicts[key] = Verdict(problem) if problem else check(module, contract, options, given, names)
    return _verdicts[key]


def first_verdict(module: nn.Module, contract: Contract, options: Options) -> Verdict:
    """Return the verdict for a layer as it is now, called with its map alone; a call finds it again."""
    problem = contract.structure_problem(module)
    if problem:
        return Verdict(problem)
    try:
        key = original_class(module), options, state_of(module, contract), None, _precision(module)
    except NotExact as reason:
        return Verdict(str(reason))
    if key not in _verdicts:
        _verdicts[key] = check(module, contract, options)
    return _verdicts[key]


def _precision(module: nn.Module) -> tuple[torch.dtype, str]:
    """Dtype and kind of device of a layer: what was found in float32 says nothing of float64, nor of another device."""
    parameter = next(module.parameters())
    return parameter.dtype, parameter.device.type


# --- copies ---------------------------------------------------------------------------------------------------------------


def _narrowed(module: nn.Module, contract: Contract) -> dict[int, int]:
    """Return the small number for every width of a layer: different ones for different widths."""
    keep = contract.regions(module)
    widths = sorted({n for p in module.parameters() for n in p.shape if n > _WIDE and n != keep})
    return {width: 5 + i for i, width in enumerate(widths)}


def _second(value: Any) -> Any:
    """A copy of what a layer holds beside tensors and modules, one level deep: it may hold a data set, or a whole model.

    What cannot be copied is shared (locks, queues).
    """
    if isinstance(value, torch.Generator):
        return value.clone_state()
    try:
        return copy.copy(value)
    except Exception:
        return value


def _twin(module: nn.Module, small: Mapping[int, int]) -> nn.Module:
    """Return a copy with random parameters and statistics, always the same, so that no zero hides a difference."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if name not in _PASSED_OVER and type(value) not in _PLAIN and not isinstance(value, nn.Module | Tensor):
                memo[id(value)] = _second(value)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            shape = [small.get(n, n) for n in tensor.shape]
            empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(module, memo)
    generator = torch.Generator().manual_seed(20)
    for part in twin.modules():
        part.__class__ = original_class(part)
        if hasattr(part, "_is_parallel"):
            part._is_parallel = False  # type: ignore[assignment]  # it would wait for replicas
        for name, value in vars(part).items():
            if type(value) is int:
                vars(part)[name] = small.get(value, value)
    for name, value in (*twin.named_parameters(), *twin.named_buffers()):
        if value.is_floating_point():
            fan_in = max(value[0].numel() if value.dim() > 1 else 4, 1)
            drawn = torch.randn(value.shape, generator=generator) / fan_in**0.5
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5 if name.endswith("running_var") else drawn)
    return twin


@contextmanager
def _random_numbers_of_others() -> Iterator[None]:
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no maps of a forward that is going on, and no trace in torch's generators."""
    devices = [device] if device.type == "cuda" else []
    with (
        maps.apart(),
        _random_numbers_of_others(),
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),  # not those of a checkpointed forward
        torch.autocast(device.type, enabled=False),
    ):
        yield


# --- the check ------------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """Our form may not stand for the layer; the argument says why."""


class _CannotRun(Exception):
    """The layer's own forward does not run on this machine; the argument says why."""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class _Check:
    """A way, narrow or at full width, to compare a layer with our form."""

    def __init__(self, module: nn.Module, contract: Contract, options: Options, small: Mapping[int, int]) -> None:
        self.module, self.contract, self.small = module, contract, small
        # the noise of our form is the published one, seed for seed, whatever it will be in use
        self.options = replace(options, noise="published")
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(self.dtype, 5e-2)

    def copy(self, silent: bool = False) -> nn.Module:
        """Return a copy; ``silent``: whose noise has the factor zero."""
        try:
            twin = _twin(self.module, self.small)
        except Exception as error:
            raise _Refused(f"it could not be copied for the check ({_first_line(error)})") from error
        if silent:
            twin.noise_var.zero_()  # type: ignore[operator]
        return twin

    def in_mode(self, twin: nn.Module, training: bool) -> None:
        """Let a copy train or not; parts that do otherwise than the layer (frozen norms) do so in the copy."""
        for own, part in zip(self.module.modules(), twin.modules(), strict=True):
            part.training = training if own.training is self.module.training else not training

    def inputs(self, batch: int = 2, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        torch.manual_seed(20)
        made = self.contract.inputs(self.copy(), batch, which, found)
        return [t if t is None else t.to(self.device, self.dtype) for t in made]

    def theirs(self, twin: nn.Module, inputs: Sequence[Any]) -> Any:
        """Run the layer's own forward, always from the same seed."""
        torch.manual_seed(21)
        try:
            return type(twin).forward(twin, *inputs)
        except Exception as error:
            if self.device.type == "cpu" and any(word in str(error) for word in ("CUDA", "NVIDIA", "cuda")):
                raise _CannotRun(str(error).splitlines()[0]) from error
            raise _Refused(f"its own forward failed in the check ({_first_line(error)})") from error

    def ours(self, twin: nn.Module, inputs: Sequence[Any], found: Any) -> Any:
        torch.manual_seed(21)
        try:
            return self.contract.forward(twin, self.options, found, *inputs)
        except Exception as error:
            reason = str(error) if isinstance(error, NotExact) else _first_line(error)
            raise _Refused(f"our form does not take it ({reason})") from error

    def compare(self, inputs: Sequence[Any], found: Any = None, silent: bool = False) -> float:
        """Compare outputs and buffers in eval and in training; return the largest relative difference of the outputs."""
        theirs, ours = self.copy(silent), self.copy(silent)
        largest = 0.0
        for training in (False, True):
            if training and self.device.type == "cpu" and any(isinstance(m, nn.SyncBatchNorm) for m in theirs.modules()):
                continue  # torch's own does not run there
            self.in_mode(theirs, training)
            self.in_mode(ours, training)
            before = state_of(theirs, self.contract)
            result = self.passes(ours, inputs, training, found, True, silent)
            expected = self.passes(theirs, inputs, training, found, False, silent)
            if state_of(theirs, self.contract) != before:
                raise _Refused("its forward changes attributes of its own")
            mode = "training" if training else "eval"
            if self._difference(expected[0], result[0]) > self.tolerance or not all(
                self._difference(*both) <= self.tolerance for both in zip(theirs.buffers(), ours.buffers(), strict=True)
            ):
                raise _Refused(f"its forward does not compute the published formula (check in {mode} mode)")
            # relative to the largest of all, for some are zero but for rounding (a bias before a norm); batch statistics
            # amplify it
            size = max((float(grad.abs().max()) for grad in expected[1:] if grad.numel()), default=0.0)
            for theirs_grad, ours_grad in zip(expected[1:], result[1:], strict=True):
                if not ((theirs_grad - ours_grad).abs() <= 10 * self.tolerance * size).all():
                    raise _Refused("its gradients are not those of the published formula")
            largest = max(largest, self._difference(expected[0], result[0]))
        return largest

    def passes(
        self, twin: nn.Module, inputs: Sequence[Any], training: bool, found: Any, own: bool, silent: bool
    ) -> list[Tensor]:
        """Run a copy's own forward or (``own``) ours: the output and, in training, the gradients of x and the parameters.

        Those of the noise's factor depend on the draw: ``silent`` leaves them out.
        """
        x, *rest = (value.clone() if isinstance(value, Tensor) else value for value in inputs)
        parameters = [p for name, p in twin.named_parameters() if not (silent and name == "noise_var")]
        with torch.set_grad_enabled(training):
            for tensor in (x, *parameters):
                tensor.requires_grad_(training)
            # a forward that writes into its input must do so where the caller sees it: not into a leaf
            given = x + 0 if training else x
            kept = given.detach().clone()
            result = self.ours(twin, [given, *rest], found) if own else self.theirs(twin, [given, *rest])
            y = self.contract.output(found, result)
            if y is None or y.shape != inputs[0].shape and not self.contract.resizes:
                raise _Refused("its forward returns something else than the published layer")
            if not torch.equal(given.detach(), kept):
                raise _Refused("its forward changes its input")
            if not training:
                return [y]
            if not y.requires_grad:
                raise _Refused("its gradients are not those of the published formula")
            weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(22)).to(y)
            grads = torch.autograd.grad((y * weights).sum(), [x, *parameters], allow_unused=True)
        missing = [torch.zeros_like(tensor) for tensor in (x, *parameters)]
        return [y.detach(), *(zero if g is None else g for g, zero in zip(grads, missing, strict=True))]

    @staticmethod
    def _difference(a: Tensor, b: Tensor) -> float:
        if a.numel() == 0:
            return 0.0
        if a.shape != b.shape:
            return float("inf")
        a, b = a.detach().double(), b.detach().double()
        difference = (a - b).abs().max() / a.abs().max().clamp(min=1e-30)
        return float("inf") if difference.isnan() else float(difference)

    def noise_problem(self, inputs: Sequence[Any]) -> str | None:
        """Return how a SEAN layer's noise is another than N(0, 1) per pixel, shared by channels, before the norm; or None.

        In eval the layer is affine in its input, so what its noise adds is a multiple of what its factor adds.
        """
        x, *rest = inputs
        torch.manual_seed(20)
        x = torch.randn(*x.shape[:2], 32, 32).to(x)  # two thousand numbers: the bounds below are six standard errors
        inputs = [x, *rest]
        silent, noisy = self.copy(silent=True).eval(), self.copy().eval()
        plain = self.theirs(silent, inputs)
        unit = self.theirs(silent, [x + noisy.noise_var[:, None, None], *rest]) - plain  # type: ignore[index]
        clear = unit.abs() > 0.1 * unit.abs().max()
        noise = torch.where(clear, (self.theirs(noisy, inputs) - plain) / unit, torch.nan)
        one = noise.nanmedian(1, keepdim=True).values
        known = one[~one.isnan()]
        if not (torch.where(clear, noise - one, 0).abs() <= 20 * self.tolerance * (1 + one.abs().nan_to_num(0))).all():
            return "its noise is not one number per pixel, shared by the channels"
        if not (abs(known.mean()) < 0.14 and 0.9 < known.std() < 1.1):
            return "its noise is not drawn from N(0, 1)"
        return None

    def plain(self, any_noise: bool, inputs: Sequence[Any] | None = None) -> Verdict:
        """Check a call with inputs (the contract's own); ``any_noise``: of noise the distribution alone."""
        inputs = self.inputs() if inputs is None else inputs
        if self.contract.several_forms:
            return self.of_forms(inputs)
        if not self.contract.noisy:
            return Verdict(None, error=self.compare(inputs))
        if not any_noise:
            try:
                return Verdict(None, error=self.compare(inputs))
            except _Refused:
                self.compare(inputs, silent=True)  # if this fails too, it is for another reason
                raise _Refused(
                    "its noise is not drawn as published (accelerate(..., noise='device') asks for its distribution alone)"
                ) from None
        error = self.compare(inputs, silent=True)
        if problem := self.noise_problem(inputs):
            raise _Refused(problem)
        return Verdict(None, error=error)

    def of_forms(self, inputs: Sequence[Any]) -> Verdict:
        """Find which of its forms a layer computes: on one-hot maps, and whether on any map."""
        given = [value.clone() if isinstance(value, Tensor) else value for value in inputs]  # it may write there
        expected, own = self.theirs(self.copy().eval(), given), self.copy().eval()
        problem, forms = "", self.contract.forms(self.module)
        for form in forms:
            try:
                features, result = (self.contract.output(form, y) for y in (expected, self.ours(own, inputs, form)))
                if features is None or result is None or self._difference(features, result) > self.tolerance:
                    continue
                error = max(self.compare(each, form) for each in (inputs, *self.contract.further(inputs)))
                self.passes_over(inputs, form)
            except _Refused as reason:
                problem = problem or str(reason)
                continue
            try:
                return Verdict(None, error=max(error, self.compare(self.inputs(found=form), form)), found=form)
            except _Refused:
                return Verdict(None, "of one-hot maps alone", error, replace(form, any_map=False))
        if not problem:
            self.compare(inputs, forms[0])  # says what is wrong with it
        raise _Refused(problem or "its forward does not compute the published formula, nor one of its kind")

    def passes_over(self, inputs: Sequence[Any], form: SpadeForm) -> None:
        """Refuse a layer that reads its caches: those that it is given, or those that our form returns."""
        if form.caches is None:
            return
        twin = self.copy().eval()
        ours, theirs = (run[1] for run in (self.ours(twin, inputs, form), self.theirs(twin, inputs)))
        expected = self.contract.output(form, self.theirs(twin, inputs))
        for given in (ours, theirs, {name: _tripwire(None) for name in form.caches}):
            try:
                result = self.contract.output(form, self.theirs(twin, [*inputs, given]))
            except _Touched:
                result = None
            if expected is None or result is None or not torch.equal(expected, result):
                raise _Refused("it reads its cache")

    def touches(self, inputs: Sequence[Any], like: Any) -> bool:
        """Say whether the layer's own forward looks at one argument more, a thing like ``like``."""
        wire = _tripwire(like)
        try:
            self.theirs(self.copy(), [*inputs, wire])
        except (_Touched, _Refused):
            return bool(type(wire).touched)
        return bool(type(wire).touched)

    def with_obj_dic(self, obj_dic: Any, batch: int, any_noise: bool) -> Verdict:
        """Check a call of a SEAN layer with ``obj_dic``: is it passed over, or are style codes read from it, and where?"""
        inputs = self.inputs(batch)
        if not self.touches(inputs, obj_dic):  # its presence alone may matter all the same
            return self.plain(any_noise, [*inputs, _tripwire(obj_dic)])
        length = int(self.module.conv_gamma.in_channels) if self.module.use_rgb else 0  # type: ignore[union-attr, arg-type]
        for at in codes_in(obj_dic, length):
            which = [k for k in range(self.contract.regions(self.module) or 0) if at.code(obj_dic, k) is not None]
            if which:
                inputs = [*self.inputs(batch, which), self._random_codes(obj_dic, length)]
                try:
                    return Verdict(None, error=self.compare(inputs, at, silent=any_noise), found=at)
                except _Refused:
                    continue
        raise _Refused("it reads obj_dic for something else than the style codes of the regions")

    def _random_codes(self, at: Any, length: int) -> Any:
        """The same containers with random codes of the copy's length."""
        if isinstance(at, Tensor):
            if at.numel() != length:
                return at
            return torch.randn([self.small.get(n, n) for n in at.shape], device=self.device, dtype=self.dtype)
        if isinstance(at, Mapping):
            return {key: self._random_codes(value, length) for key, value in at.items()}
        return [self._random_codes(value, length) for value in at] if isinstance(at, list | tuple) else at


def check(
    module: nn.Module,
    contract: Contract,
    options: Options,
    given: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> Verdict:
    """Compare our form with the module's own; narrow copies first, and what they refuse at full width.

    Args:
        module: a layer without a structural problem.
        contract: its kind.
        options: of our form.
        given: the arguments, by name, of the call that is to be made; None: none is.
        names: the names of the own forward's arguments in order.
    """
    given = given or {}
    obj_dic = given.get(names[3]) if contract.reads_obj_dic and len(names) > 3 else None
    any_noise = options.noise == "device"
    if contract.shown_by_call and not given:
        return Verdict(AT_FIRST_CALL)
    # what is given is of the layer's width
    small = {} if contract.shown_by_call else _narrowed(module, contract)
    with _undisturbed(next(module.parameters()).device):
        for narrow in (small, {}) if small else ({},):
            tried = _Check(module, contract, options, narrow)
            try:
                if obj_dic is not None:
                    return tried.with_obj_dic(obj_dic, min(2, len(given[names[0]])), any_noise)
                return tried.plain(any_noise, contract.like(given, names))
            except _CannotRun as reason:
                return contract.unchecked(module, f"its own forward needs CUDA ({reason})")
            except _Refused as reason:
                problem = str(reason)
    return Verdict(problem)


def reads_obj_dic(module: nn.Module, contract: Contract, options: Options) -> bool:
    """Say whether a layer, in its present state, looks at ``obj_dic``: then only a call can tell what for."""
    if not contract.reads_obj_dic or len(positional(original_class(module).forward)) < 4:
        return False
    with _undisturbed(next(module.parameters()).device):
        tried = _Check(module, contract, options, _narrowed(module, contract))
        try:
            return tried.touches(tried.inputs(), {})
        except (_Refused, _CannotRun):
            return False
