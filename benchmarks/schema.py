"""What a file in benchmarks/results holds: one schema for every kind, checked whenever a file is written or read.

The dataclasses below are the law: a file has these keys, all of them, and no others. What a kind has of its own stands in
the `settings` of a row (what was asked for) and in its `facts` (what was found out besides times).
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixsyn_fast.measure.clock import Timing
from mixsyn_fast.measure.gate import Gate

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
KINDS = ("ops", "models", "mixsyn", "clvae", "stylegan2", "stylefusion", "training", "plot", "winners", "accelerate")
KINDS += ("evaluation", "msca", "harmonized", "libraries")
_NOT_IN_JSON = ("nan", "inf", "-inf")  # numbers that JSON does not have: mixsyn_fast/writing.py


@dataclass
class Measured:
    """One contender of one row. Without a timing it was not run, or its result was wrong: `note` says so."""

    gate: Gate | None = None  # None: nothing to compare with (a floor)
    timing: Timing | None = None  # seconds of a call, in training of a whole step
    peak_bytes: int | None = None  # all tensors at once; in training the process (on a GPU: device memory)
    temporary_bytes: int | None = None  # without the result
    resident_bytes: int | None = None  # growth of the process, result included
    note: str = ""
    energy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A target of a contender of ours, and what became of it: `what` is as in benchmarks/ops/base.py."""

    contender: str
    what: str
    least: float | None
    most: float | None
    got: float
    met: bool


@dataclass(frozen=True)
class Row:
    """Contenders that do the same work, in one mode."""

    op: str  # of the package, or generator, mixsyn, clvae, msca, stylegan2, stylefusion, harmonized, libraries, training
    case: str  # unique in its file with the mode
    mode: str  # forward, backward, both, training
    settings: dict[str, Any]
    contenders: dict[str, Measured]
    baseline: str = ""  # the contender whose memory ours is compared with
    floor_s: float | None = None  # seconds that no implementation can avoid, from this very row's rates
    memory_floor_s: float | None = None  # the same, from the rates of a large transfer
    targets: list[Goal] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """Where and of what a file was made."""

    cpu: str
    cores: int
    threads: int
    cpu_capability: str  # torch's word
    instruction_set: str | None  # of our kernels; None in files from before it was written down
    restricted: dict[str, str]  # variables of --cpu
    gpu: str | None
    cuda: str | None
    capability: str | None
    system: str
    python: str
    torch: str
    mixsyn_fast: str
    commit: str
    uncommitted_changes: bool  # of code, not of results or documents
    date: str


@dataclass(frozen=True)
class Result:
    """A file."""

    kind: str
    command: str  # "" in files from before it was written down
    machine: Machine
    rates: dict[str, float]  # GB/s and GFLOP/s in the same run; empty where no floor is made of them
    labels: str  # where inputs come from
    repeat: int | None  # rounds of a row that time allows
    seconds: float | None  # of the whole run
    rows: list[Row]
    left_out: list[str]  # rows for which there was no time, or no run
    losses: list[str]  # rows in which ours is slower than plain PyTorch
    wrong: list[str]  # rows in which ours did not pass its gate


def row(**fields: Any) -> dict[str, Any]:
    """Return a :class:`Row` as a dict with all its keys; TypeError for a field that it has not, or a missing one."""
    made = Row(**fields)
    return {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}


def check(result: Any) -> None:
    """Hold a result, as JSON types, to the schema.

    Raises:
        ValueError: names the place, what was expected there and what came.
    """
    _check(result, Result, "")
    if result["kind"] not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {result['kind']!r}")
    names = [(row["case"], row["mode"]) for row in result["rows"]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"rows: expected every case and mode once, got {' '.join(twice)} again")


def load(path: Path) -> dict[str, Any]:
    """Read a result; ValueError, with the file's name, where it is none."""
    try:
        result = json.loads(path.read_text())
        check(result)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a result file ({error})") from None
    return dict(result)


def committed() -> dict[str, dict[str, Any]]:
    """Return every result in benchmarks/results by its file's name."""
    return {path.name: load(path) for path in sorted(RESULTS.glob("*.json"))}


def _check(value: Any, hint: Any, where: str) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return
        _check(value, next(a for a in arguments if a is not type(None)), where)
    elif dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        _expect(isinstance(value, Mapping), where, "an object", value)
        if value.keys() != hints.keys():
            missing, unknown = sorted(hints.keys() - value.keys()), sorted(value.keys() - hints.keys())
            raise ValueError(f"{where or 'the file'}: keys missing: {missing}, unknown: {unknown}")
        for name, inner in hints.items():
            _check(value[name], inner, f"{where}.{name}".lstrip("."))
    elif origin is dict:
        _expect(isinstance(value, Mapping), where, "an object", value)
        for name, inner in value.items():
            _check(inner, arguments[1], f"{where}.{name}")
    elif origin is list:
        _expect(isinstance(value, list), where, "a list", value)
        for i, inner in enumerate(value):
            _check(inner, arguments[0], f"{where}[{i}]")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(number or value in _NOT_IN_JSON, where, "a number", value)
    elif hint is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), where, "an integer", value)
    elif hint is not Any:
        _expect(isinstance(value, hint), where, f"a {hint.__name__}", value)


def _expect(right: bool, where: str, expected: str, value: Any) -> None:
    if not right:
        raise ValueError(f"{where or 'the file'}: expected {expected}, got {value!r:.60}")
