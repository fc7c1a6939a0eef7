"""What `accelerate` changed, what it left and why."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

TITLES = {
    "spade": "SPADE normalisation",
    "sean": "SEAN (ACE) normalisation",
    "clade": "CLADE normalisation",
    "instance": "modulation per image, class and instance (INADE)",
    "style_encoder": "region-mean style encoder",
    "conv2d": "convolution with prepacked weight",
    "spectral_conv2d": "convolution with spectral norm, folded once in eval",
    "root": "one label-map analysis per forward",
    "unrecognised": "layer that takes a map",
}

IDENTICAL = "bit-identical"
REORDERED = "same mathematics in another order"


class LayerWork(NamedTuple):
    """What scale and shift of a layer took in its last call, and what they take as published."""

    plan: str
    """"table", "dense" (convolutions of the map), "polyphase" (of some of them the distinct positions alone, where the
    map is enlarged), or "kept" (:class:`constant_conditioning`)."""
    published_macs: int
    """Multiply-accumulates of the convolutions of the map."""
    macs: int
    """Ours; without those of a convolution that another layer with the same weights has made for this map."""
    published_bytes: int
    """Of the results of the convolutions."""
    bytes: int


last_work: weakref.WeakKeyDictionary[nn.Module, Callable[[nn.Module], LayerWork]] = weakref.WeakKeyDictionary()
"""Of layers that have run: counts the work of the last call, given the layer."""

kept_calls: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Of layers in the latest :class:`constant_conditioning`: calls whose scale and shift were kept, and other calls."""


def _short(number: float, unit: str = "") -> str:
    """A number with three digits and K, M, G or T."""
    for letter in ("", "K", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {letter}{unit}".strip()
        number /= 1000
    return f"{number:.3g} T{unit}"


@dataclass(frozen=True)
class Entry:
    """One module in an AccelerationReport."""

    name: str
    """Its name in the model; "" is the model itself."""
    kind: str
    """A key of TITLES."""
    note: str = ""
    """A remark, or why it was left."""
    exactness: str = ""
    """Of a changed module: IDENTICAL or REORDERED; nothing is approximate."""
    error: float | None = None
    """REORDERED: the largest difference of the outputs in the check, relative to the largest output; None: unchecked."""


@dataclass
class AccelerationReport:
    """What `accelerate` changed, what it left as it was and why; print it."""

    changed: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    layers: dict[str, weakref.ref[nn.Module]] = field(default_factory=dict, compare=False, repr=False)
    """The changed modules by name."""

    def __getstate__(self) -> dict[str, object]:
        """Pickle and copy without the modules, which it does not own."""
        return vars(self) | {"layers": {}}

    def work(self) -> dict[str, LayerWork]:
        """Return, by name, what scale and shift took in the last call of every normalisation; of those that have run."""
        found = {}
        for name, layer in self.layers.items():
            module = layer()
            if module is not None and module in last_work:
                found[name] = last_work[module](module)
        return found

    def kept(self) -> tuple[int, int]:
        """Return of how many calls of layers scale and shift were kept, and of how many they could have been.

        In the latest :class:`constant_conditioning`; (0, 0) without one.
        """
        counts = [kept_calls.get(module, (0, 0)) for module in (layer() for layer in self.layers.values()) if module]
        hits = sum(hits for hits, _ in counts)
        return hits, hits + sum(misses for _, misses in counts)

    def count(self, kind: str) -> int:
        """Return how many modules of a kind (a key of TITLES) run our form now."""
        return sum(entry.kind == kind for entry in self.changed)

    def __str__(self) -> str:
        """Return the report as text; long runs of modules with the same remark take one line.

        After a call of the model also the work of that call, layer by layer.
        """
        lines = ["AccelerationReport"]
        for title, entries in (("changed", self.changed), ("left as it was", self.left)):
            groups: dict[tuple[str, str, str], list[Entry]] = {}
            for entry in entries:
                groups.setdefault((entry.kind, entry.exactness, entry.note), []).append(entry)
            lines.append(f"  {title}: {len(entries)} module{'' if len(entries) == 1 else 's'}")
            for (kind, exactness, note), group in groups.items():
                names = [entry.name or "(the model)" for entry in group]
                shown = ", ".join(names[:4]) + (f", ... {names[-1]}" if len(names) > 4 else "")
                errors = [entry.error for entry in group if entry.error is not None]
                measured = f" (error in the check at most {max(errors):.1e})" if errors else ""
                remarks = "; ".join(remark for remark in (exactness + measured, note) if remark)
                lines.append(f"    {len(names):3d} x {TITLES[kind]}{': ' if remarks else ''}{remarks} [{shown}]")
        if work := self.work():
            lines.append("  scale and shift in the last call: plan, multiply-accumulates and bytes, published -> ours")
            width, plans = max(map(len, work)), max(len(of.plan) for of in work.values())
            for name, of in work.items():
                macs = f"{_short(of.published_macs)} -> {_short(of.macs)}"
                size = f"{_short(of.published_bytes, 'B')} -> {_short(of.bytes, 'B')}"
                lines.append(f"    {name or '(the model)':{width}s}  {of.plan:{plans}s}  {macs:20s}  {size}")
        hits, calls = self.kept()
        if calls:
            lines.append(
                f"  constant conditioning: {hits} of {calls} scales and shifts kept of an earlier call ({hits / calls:.0%})"
            )
        return "\n".join(lines)
