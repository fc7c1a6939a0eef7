"""What `accelerate` changed, what it left and why."""

from __future__ import annotations

from dataclasses import dataclass, field

TITLES = {
    "spade": "SPADE normalisation",
    "sean": "SEAN (ACE) normalisation",
    "clade": "CLADE normalisation",
    "style_encoder": "region-mean style encoder",
    "conv2d": "convolution with prepacked weight",
    "spectral_conv2d": "convolution with spectral norm, folded once in eval",
    "root": "one label-map analysis per forward",
    "unrecognised": "layer that takes a map",
}

IDENTICAL = "bit-identical"
REORDERED = "same mathematics in another order"


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

    def count(self, kind: str) -> int:
        """Return how many modules of a kind (a key of TITLES) run our form now."""
        return sum(entry.kind == kind for entry in self.changed)

    def __str__(self) -> str:
        """Return the report as text; long runs of modules with the same remark take one line."""
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
        return "\n".join(lines)
