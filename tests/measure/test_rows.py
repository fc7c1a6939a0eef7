"""The small rows of the ops, behind their gates, and `doctor --measure`."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from mixsyn_fast import backend, cli, doctor
from mixsyn_fast.measure import rows
from mixsyn_fast.measure.clock import Timing
from mixsyn_fast.measure.contest import under_backend
from mixsyn_fast.measure.ops import CONTESTS


@pytest.mark.parametrize("op", sorted(CONTESTS))
def test_small_rows_pass_their_gates(op: str) -> None:
    kind = CONTESTS[op]
    for layout, dtype in zip(kind.layouts, kind.dtypes, strict=False):  # the others: benchmarks.winners
        contest = kind.small(layout, dtype, torch.device("cpu"))
        forms = {name: form for name, form in contest.plain().items() if name not in contest.seldom}
        contest.functions = {**forms, "native": under_backend("native", contest.ours)}
        verdicts = contest.gates()
        assert all(verdict.passed for verdict in verdicts.values()), (contest.name, verdicts)


@pytest.mark.parametrize("op", sorted(CONTESTS))
def test_rows_are_the_uses_that_auto_asks_for(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, asked = CONTESTS[op], []

    def select(name: str, device: torch.device, x: torch.Tensor) -> str:
        asked.append((name, backend.layout_of(x), str(x.dtype)[6:]))
        return "native"

    monkeypatch.setattr(backend, "select_backend", select)
    for layout in kind.layouts:
        for dtype in kind.dtypes:
            contest = kind.small(layout, dtype, torch.device("cpu"))
            contest.ours(*contest.inputs.values())
            assert asked.pop() == (op, layout, dtype)


def _only(monkeypatch: pytest.MonkeyPatch, *ops: str) -> None:
    monkeypatch.setattr(backend, "registered_ops", lambda: ops)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds a row."""
    measure = rows.measure
    monkeypatch.setattr(rows, "measure", lambda *a, **b: measure(*a, **{**b, "seconds": 10.0, "repeat": 3}))


@pytest.mark.usefixtures("quickly")
def test_doctor_measures_every_op_in_both_layouts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _only(monkeypatch, "channel_attention_spread", "latent_blend")
    assert cli.main(["doctor", "--measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["measured"]
    uses = {(row["op"], row["layout"], row["dtype"], row["mode"]) for row in found}
    both = {("any", dtype, mode) for dtype in ("float32", "bfloat16") for mode in ("forward", "both")}
    layouts = {(layout, *rest) for _, *rest in both for layout in ("contiguous", "channels_last")}
    assert {use[1:] for use in uses if use[0] == "latent_blend"} == both
    assert {use[1:] for use in uses if use[0] == "channel_attention_spread"} == layouts
    for row in found:
        assert row["ours"] == "native" and row["wrong"] == {} and {"native", "reference"} <= row["seconds"].keys()
        fastest = min(value for name, value in row["seconds"].items() if name != "native")
        assert row["seconds"][row["plain"]] == fastest and row["ratio"] == fastest / row["seconds"]["native"]


@pytest.mark.usefixtures("quickly")
def test_doctor_marks_losses_and_wrong_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _only(monkeypatch, "latent_blend")
    kind = CONTESTS["latent_blend"]
    right = kind.ours

    def slow(self: Any, *inputs: torch.Tensor) -> Any:
        if backend.current_backend() == "native":
            time.sleep(0.1)
        return right(self, *inputs)

    monkeypatch.setattr(kind, "ours", slow)
    assert cli.main(["doctor", "--measure"]) == 0
    said = capsys.readouterr().out.split("measured here")[1]
    assert said.count("LOSS") == 4 and "4 rows, 4 lost to plain PyTorch" in said and " x LOSS" in said

    def wrong(self: Any, *inputs: torch.Tensor) -> Any:
        (y,) = right(self, *inputs)
        return (y * 1.01 if backend.current_backend() == "native" else y,)

    monkeypatch.setattr(kind, "ours", wrong)
    assert cli.main(["doctor", "--measure"]) == 0
    said = capsys.readouterr().out.split("measured here")[1]
    assert said.count("native WRONG: ") == 4 and "LOSS" not in said


def test_doctor_measures_without_an_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is ours; the status is that of the plain doctor."""
    _only(monkeypatch, "latent_blend")
    monkeypatch.setattr(backend, "_native_available", lambda _: False)
    found = list(doctor.measure(seconds=0.0))
    assert len(found) == 4 and all(row.own is None and not row.loss for row in found)
    assert " - " in found[0].line()


def test_the_fastest_form_judges() -> None:
    timings = {name: Timing(value, value, value, 3) for name, value in (("eager", 3.0), ("reference", 2.0), ("native", 4.0))}
    row = rows.Row("op", "case", "any", "float32", "cpu", "both", timings)
    assert (row.own, row.plain, row.ratio("eager"), row.ratio(row.plain), row.loss) == (
        "native",
        "reference",
        0.75,
        0.5,
        True,
    )
    assert row.line().endswith("0.50 x LOSS")
