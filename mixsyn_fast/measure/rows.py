"""The small row of every op, timed against plain PyTorch: `doctor --measure`, and the table behind `auto`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from .. import backend
from .clock import Timing, interleave, slower
from .contest import OpContest, is_ours, under_backend
from .ops import CONTESTS

MODES = ("forward", "both")


@dataclass(frozen=True)
class Row:
    """One op on one input in one mode.

    Attributes:
        timings: by contender: forms of plain PyTorch, `reference` (what ours falls back to), and ours by backend.
        wrong: contender -> what its gate found; such a one has no timing.
    """

    op: str
    case: str
    layout: str
    dtype: str
    device: str
    mode: str
    timings: dict[str, Timing]
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> str | None:
        """Our fastest backend."""
        return min((n for n in self.timings if is_ours(n)), key=lambda n: self.timings[n].median, default=None)

    @property
    def plain(self) -> str:
        """The fastest form in plain PyTorch, the reference included."""
        return min((n for n in self.timings if not is_ours(n)), key=lambda n: self.timings[n].median)

    def ratio(self, other: str) -> float:
        """Return seconds of another contender / ours."""
        assert self.own is not None
        return self.timings[other].median / self.timings[self.own].median

    @property
    def loss(self) -> bool:
        """Whether ours is slower than plain PyTorch by more than noise."""
        return self.own is not None and slower(self.timings[self.own], self.timings[self.plain])

    def line(self) -> str:
        """One line for a person: ours, the fastest of plain PyTorch, how many times faster ours is, or LOSS."""
        use = {"forward": "forward", "both": "forward + backward"}[self.mode]
        where = "" if self.device == "cpu" else f"{self.device} "
        text = f"{where}{self.op:24} {self.layout:13} {self.dtype:8} {use:18}"
        plain = f"{self.timings[self.plain].median * 1e3:9.3f} ms {self.plain:10}"
        wrong = "".join(f"  {name} WRONG: {why}" for name, why in self.wrong.items())
        if self.own is None:
            return f"{text} {'-':>9}    {'':7} {plain}{wrong}"
        ours = f"{self.timings[self.own].median * 1e3:9.3f} ms {self.own:7}"
        return f"{text} {ours} {plain} {self.ratio(self.plain):7.2f} x{' LOSS' if self.loss else ''}{wrong}"


def measure(
    ops: Sequence[str], dtypes: Sequence[str], device: torch.device | str = "cpu", *, seconds: float = 0.3, repeat: int = 15
) -> Iterator[Row]:
    """Time ops on their small rows, in all their layouts.

    Nothing is timed before its results and gradients have passed their gate.

    Args:
        ops: names; one without a row is passed over.
        dtypes: of the rows; those that an op does not have are passed over, but it has one if it has no floating input.
        device: where.
        seconds: soft limit for the timing of one row and mode.
        repeat: rounds, if the limit allows.

    Yields:
        One row for every op, layout, dtype and mode.
    """
    for op in ops:
        if (kind := CONTESTS.get(op)) is None:
            continue
        for layout in kind.layouts:
            for dtype in [name for name in kind.dtypes if name in dtypes] or kind.dtypes[:1]:
                yield from _row(kind, layout, dtype, torch.device(device), seconds, repeat)


def _row(kind: type[OpContest], layout: str, dtype: str, device: torch.device, seconds: float, repeat: int) -> Iterator[Row]:
    contest = kind.small(layout, dtype, device)
    plain = contest.plain()
    if contest.same_as_reference:
        del plain[contest.same_as_reference]  # timed as `reference`
        contest.same_as_reference = "reference"
    contest.functions = {**plain, "reference": under_backend("reference", contest.ours)}
    for name in ("native", "triton"):
        with backend.use_backend(name):
            if backend.explain(kind.op, device)[0] == name:
                contest.functions[name] = under_backend(name, contest.ours)
    gates = contest.gates()
    wrong = {name: f"{g.what}: error {g.error:.1e}, {g.allowed:.1e} allowed" for name, g in gates.items() if not g.passed}
    for mode in MODES:
        if mode in contest.modes:
            calls = contest.calls(mode, [name for name in gates if name not in wrong])
            seldom = [name for name in contest.seldom if name in calls]
            timings = interleave(calls, device=device, repeat=repeat, budget_s=seconds, least=5, seldom=seldom)
            yield Row(kind.op, contest.name, layout, dtype, device.type, mode, timings, wrong)
