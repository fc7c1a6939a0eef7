"""The one schema of benchmarks/results: every file that is there, and what is refused."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import again, schema, tables, timing

FILES = sorted(schema.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_file_is_of_the_schema_and_the_tables_print_it(path: Path) -> None:
    result = schema.load(path)
    other = {"plot": "plot_ops", "training": "", "evaluation": ""}
    assert path.name.startswith(other.get(result["kind"], result["kind"]))
    assert (result["kind"] == "evaluation") == ("_quality" in path.name)
    assert result["rows"] and result["machine"]["commit"] and result["left_out"] == []
    assert {key: result[key] for key in ("losses", "wrong")} == tables.faults(result["rows"])
    printed = tables.render(result)
    for row in result["rows"]:
        assert row["case"].removeprefix(f"{row['op']}/") in printed, row["case"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_was_made_from_a_commit(path: Path) -> None:
    """Of code that somebody can check out: `python -m benchmarks.again --uncommitted` measures the others again."""
    assert schema.load(path)["machine"]["uncommitted_changes"] is False


def test_nothing_else_lies_beside_the_results() -> None:
    assert [path.name for path in sorted(schema.RESULTS.iterdir())] == [path.name for path in FILES]


def test_without_arguments_the_tables_print_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main([]) == 0
    said = capsys.readouterr().out
    assert [line.removeprefix("## ") for line in said.splitlines() if line.startswith("## ")] == [p.name for p in FILES]


def _result() -> dict[str, Any]:
    timed = {"median": 1.0, "p20": 1.0, "p80": 1.0, "samples": 3}
    gate = {"passed": True, "error": 1e-7, "allowed": 1e-6, "what": "y"}
    entry = {"gate": gate, "timing": timed, "peak_bytes": None, "temporary_bytes": None, "resident_bytes": 1, "note": ""}
    row = schema.row(op="pool", case="pool/a", mode="forward", settings={}, contenders={"ours": {**entry, "energy": {}}})
    return {**timing.heading("ops"), "rows": [row]}


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("kind",), "opinions", "kind: expected one of ops, models"),
        (("repeat",), "often", "repeat: expected an integer, got 'often'"),
        (("repeat",), True, "repeat: expected an integer, got True"),
        (("summary",), {}, "unknown: ['summary']"),
        (("machine", "commit"), None, "machine.commit: expected a str, got None"),
        (("rows", 0, "contenders", "ours", "timing", "median"), "fast", "ours.timing.median: expected a number"),
        (("rows", 0, "contenders", "ours", "gate"), {"passed": True}, "ours.gate: keys missing: ['allowed'"),
        (("rows", 0, "speedup_over"), {}, "rows[0]: keys missing: [], unknown: ['speedup_over']"),
        (("rows", 0, "targets"), [{"what": "floor"}], "rows[0].targets[0]: keys missing"),
        (("rates", "copy_gb_s"), [1.0], "rates.copy_gb_s: expected a number"),
        (("losses",), {}, "losses: expected a list"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_schema_is_refused(place: tuple[Any, ...], value: Any, message: str) -> None:
    good = _result()
    schema.check(good)
    bad = copy.deepcopy(good)
    inner: Any = bad
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError) as error:
        schema.check(bad)
    assert message in str(error.value)


def test_missing_keys_rows_twice_and_numbers_that_json_has_not() -> None:
    result = _result()
    result["rows"][0]["floor_s"] = "nan"
    schema.check(result)
    with pytest.raises(ValueError, match="every case and mode once, got pool/a forward again"):
        schema.check({**result, "rows": result["rows"] * 2})
    del result["machine"]["gpu"]
    with pytest.raises(ValueError, match=r"machine: keys missing: \['gpu'\]"):
        schema.check(result)
    with pytest.raises(TypeError):
        schema.row(op="pool", case="pool/a", mode="forward", settings={}, contenders={}, faster=2.0)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    for name in ("bad.json", "none.json"):
        with pytest.raises(ValueError, match=f"{name}: not a result file"):
            schema.load(tmp_path / name)


# --- measuring again --------------------------------------------------------------------------------------------------


def test_every_file_says_how_it_is_made() -> None:
    """Commands may wait for their first file: `python -m benchmarks.again` says that it is not there."""
    assert {path.name for path in FILES} <= set(again.FILES)
    for name, (_, *commands) in again.FILES.items():
        for command in commands:
            assert (schema.RESULTS.parent / f"{command.split()[0].removeprefix('benchmarks.')}.py").is_file(), name


def test_what_is_measured_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(
        again, "FILES", {"a.json": (2, "run_models --cases 'x y'"), "b.json": (1, "run_ops", "run_ops --all")}
    )
    monkeypatch.setattr(schema, "committed", lambda: {"a.json": _dirty(True), "b.json": _dirty(False)})
    monkeypatch.setattr(subprocess, "call", lambda command, **_: ran.append(command) or 1)
    monkeypatch.setenv("MIXSYN_FAST_DATA", "/data")
    assert again.main([]) == 0 and ran == []
    said = capsys.readouterr().out
    assert "a.json" in said and "uncommitted" in said and "about 2 min" in said
    assert again.main(["--uncommitted"]) == 0  # 1 is a row lost, which the documents say; only 2 is an error
    out = "benchmarks/results/a.json"
    assert [command[1:] for command in ran] == [["-m", "benchmarks.run_models", "--cases", "x y", "--out", out]]
    ran.clear()
    assert again.main(["b.json"]) == 0 and [command[-1] for command in ran] == ["benchmarks/results/b.json"] * 2
    assert again.main(["c.json"]) == 2 and "c.json: expected one of a.json, b.json" in capsys.readouterr().err
    monkeypatch.setattr(subprocess, "call", lambda command, **_: 2)
    assert again.main(["a.json"]) == 2
    monkeypatch.delenv("MIXSYN_FAST_DATA")
    assert again.main(["a.json"]) == 2 and "MIXSYN_FAST_DATA" in capsys.readouterr().err


def _dirty(uncommitted: bool) -> dict[str, Any]:
    result = _result()
    result["machine"]["uncommitted_changes"] = uncommitted
    return result
