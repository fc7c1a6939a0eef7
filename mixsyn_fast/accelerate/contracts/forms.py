"""What a layer of SPADE's structure may compute, whatever its parts are called.

Which part has which role follows from the numbers of their channels; what that leaves open (the activation where it is no
module, which stack gives the shift, whether there is a "1 +") are forms of which the check finds the layer's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from ... import layers
from ...layers.stacks import Conv, Modulator, conv_fits, convolutions, is_elementwise, part_fits, stack_of
from ...nearest import nearest_source
from ..maps import NotExact
from .checks import channels_of, is_norm, original_class, required

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
        shared = stack_within(part[self.shared]) if self.shared else ()
        if self.activation:
            shared += (part.get(self.activation) or _FUNCTIONS[self.activation],)
        shift = stack_within(part[self.shift]) if self.shift else ()
        norm, scale = part[self.norm], stack_within(part[self.scale])
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


def stack_within(module: nn.Module | None) -> tuple[nn.Module, ...]:
    """As :func:`stack_of`, and somebody's module around others (a separable convolution, say) is those, in order.

    Whether its forward does nothing else than to run them is not known: the check tells.
    """
    assert module is not None
    only = _wrapped(module)
    if only is not None:
        return (only,)
    inner = [child for child in module._modules.values() if child is not None]
    of_torch = type(module).__module__.startswith("torch.") or isinstance(module, Conv)
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    shell = not (of_torch or module._parameters or module._buffers) and required(original_class(module).forward) == 1
    if not inner or not (plain or shell):
        return stack_of(module)
    return tuple(part for child in inner for part in stack_within(child))


def stack_problem(name: str, module: nn.Module | None) -> str | None:
    """Return why a child is no stack of same-size convolutions, activations and instance norms, or None."""
    if module is None:
        return f"{name} is missing"
    stack = stack_within(module)
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


def forms_of(module: nn.Module) -> list[SpadeForm]:
    """Return what a layer may compute, by its structure, the likeliest first; nothing where it has another structure."""
    if module._parameters or not module._modules:
        return []
    norms = [name for name, child in module._modules.items() if is_norm(child)]
    rest = {name: child for name, child in module._modules.items() if child is not None and name not in norms}
    acts = [name for name, child in rest.items() if is_elementwise(child)]
    stacks = [name for name, child in rest.items() if name not in acts and stack_problem(name, child) is None]
    idle = [name for name in rest if name not in (*acts, *stacks)]
    if any(True for name in idle for _ in rest[name].parameters()):
        return []
    if not norms and "param_free_norm" in rest:
        norms = ["param_free_norm"]  # an Identity
    if len(norms) != 1 or not 1 <= len(stacks) <= 3:
        return []
    norm = module._modules[norms[0]]
    assert norm is not None
    ends = {name: convolutions(stack_within(rest[name])) for name in stacks}
    if len({len(conv.kernel_size) for convs in ends.values() for conv in convs}) != 1:
        return []
    wide = channels_of(norm)
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
        found += _variants(module, norms[0], shared, heads, acts)
    return found


def _variants(module: nn.Module, norm: str, shared: str, heads: list[str], acts: list[str]) -> list[SpadeForm]:
    behind = [""]
    if shared and isinstance(stack_within(module._modules[shared])[-1], Conv):
        behind = [*acts, *_FUNCTIONS, ""]
    orders: list[tuple[str, str, bool]]
    if len(heads) == 2:
        shift_last = bool(_SHIFTS.search(heads[1])) or not _SHIFTS.search(heads[0])
        first, second = heads if shift_last else heads[::-1]
        orders = [(first, second, False), (second, first, False)]
    else:
        orders = [(heads[0], "", False), (heads[0], "", True)]
    shells = tuple(name for name in module._modules if name in (shared, *heads) and _wrapped(module._modules[name]))
    convs = [conv for name in heads for conv in convolutions(stack_within(module._modules[name]))]
    alone = (False, True) if all(conv.kernel_size == (1, 1, 1) for conv in convs) else (False,)
    return [
        SpadeForm(norm, shared, activation, scale, shift, one, shift_first, True, first_alone, caches)
        for activation in behind
        for scale, shift, shift_first in orders
        for one in (True, False)
        for first_alone in alone
        for caches in ((shells, None) if shells else (None,))
    ]
