"""What a kind of layers is: how it is recognised, what its parts must be, and our form of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import blocks, hooked, original_class, positional, required

BLENDED = "soft maps are blended by weight, another formula than the published one"


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


class Contract:
    """One kind of layer.

    Attributes:
        kind: its key, of :data:`.report.TITLES`.
        attributes: what a module must have to be taken for one.
        arguments: how many of the published forward's our form reads.
        known: what the names of its parameters begin with.
        shown_by_call: a layer is checked at its first call, with inputs :meth:`like` those of the call.
        several_forms: what it computes is one of :meth:`forms`, to be found out.
        noisy: it adds noise, one number per pixel, drawn in its own forward.
        reads_obj_dic: its fourth argument, if any, is a dict of codes that it may read or write.
        resizes: its output has another size than x.
        told_apart: an unknown module is told what it lacks to be one.
    """

    kind: str
    attributes: tuple[str, ...]
    arguments = 2
    known: tuple[str, ...]
    shown_by_call = False
    several_forms = False
    noisy = False
    reads_obj_dic = False
    resizes = False
    told_apart = True

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
        return [torch.randn(batch, self.channels(module), 7, 5), blocks(which, regions, batch, (12, 11))]

    def channels(self, module: Any) -> int:
        """Return C of x."""
        raise NotImplementedError

    def notes(self, options: Options) -> list[str]:
        """Return what a user should know of our form under these options."""
        return []

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
