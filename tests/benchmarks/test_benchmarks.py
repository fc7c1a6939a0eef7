"""The measuring harness: gate, clock, memory, tables, and both runners at tiny scale."""

from __future__ import annotations

import io
import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks import run_models, schema, tables, timing
from benchmarks.cases import Labels, ModelCase, label_source, model_cases
from benchmarks.schema import Measured
from mixsyn_fast.measure import clock
from mixsyn_fast.measure.gate import Gate
from mixsyn_fast.progress import progress


def test_interleave_takes_turns_and_summarises() -> None:
    order: list[str] = []

    def call(name: str, seconds: float):  # type: ignore[no-untyped-def]
        def run() -> None:
            order.append(name)
            time.sleep(seconds)

        return run

    times = clock.interleave({"a": call("a", 0.002), "b": call("b", 0.004)}, repeat=4, warmup=1)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert times["a"].samples == 4 and times["a"].p20 <= times["a"].median <= times["a"].p80
    assert times["a"].median < times["b"].median
    order.clear()
    limited = clock.interleave({"a": call("a", 0.01)}, repeat=100, warmup=1, budget_s=0.05, least=2)
    assert 2 <= limited["a"].samples < 10


def test_quantiles() -> None:
    summary = clock.summarise([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (summary.median, summary.samples) == (3.0, 5)
    assert summary.p20 == pytest.approx(1.8) and summary.p80 == pytest.approx(4.2)
    assert clock.summarise([2.0]) == clock.Timing(2.0, 2.0, 2.0, 1)


def test_peak_memory_counts_what_is_alive_together() -> None:
    x = torch.ones(250_000)
    peak = timing.peak_memory(lambda: (x + 1).mul(2).sum())
    assert peak is not None and 2_000_000 <= peak < 2_100_000
    assert timing.peak_memory(lambda: None) == 0


def test_temporary_memory_leaves_the_result_out() -> None:
    x = torch.ones(250_000)
    for call, peak, temporary in (
        (lambda: x + 1, 1_000_000, 0),
        (lambda: (x + 1, {"more": [x * 2]}), 2_000_000, 0),
        (lambda: (x + 1).sum(), 1_000_000, 1_000_000),
        (lambda: ((x + 1) * 2) + 1, 2_000_000, 2_000_000),  # the result exists beside one of the two others
    ):
        call()
        found = timing.memory_of(call)
        assert found is not None
        assert peak <= found.peak < peak + 100_000 and temporary <= found.temporary < temporary + 100_000


def test_growth_of_the_process_sees_memory_of_any_owner() -> None:
    import numpy

    call = lambda: numpy.ones(2**22)  # noqa: E731 - 32 MB that torch does not know of
    if (growth := timing.resident_growth(call)) is None:
        pytest.skip("this system does not tell")
    assert timing.memory_of(call) == timing.Memory(0, 0)
    assert 0.9 * 2**25 < growth < 1.3 * 2**25
    assert (timing.resident_growth(lambda: None) or 0) < 2**23


def test_transfers_of_every_kind() -> None:
    calls = timing.transfers(10_000)
    assert {name.split()[0] for name in calls} == set(timing.KINDS)
    for call in calls.values():
        call()
    assert {name.split()[0] for name in timing.transfers(0, kinds=("read",))} == {"read"}
    rates = timing.transfer_rates(2**20, {"read a": 2.0, "read b": 1.0, "copy c": 1.0})
    assert rates == {"read_gb_s": pytest.approx(2**20 / 1e9), "copy_gb_s": pytest.approx(2**21 / 1e9)}


def test_slow_contenders_run_seldom() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("quick", "slow")}
    clock.interleave(calls, repeat=5, warmup=1, least=2, seldom=("slow",))
    assert order.count("slow") == 2


def test_a_wrong_contender_is_not_timed() -> None:
    bad = Gate(False, 1.0, 1e-6, "y")
    entries = timing.compare({"good": lambda: None, "bad": lambda: 1 / 0}, {"bad": bad}, repeat=1, memory=False)
    assert entries["good"].timing is not None
    assert entries["bad"].timing is None and "y off by 1.0e+00" in entries["bad"].note


def test_machine_line_and_json(tmp_path: Path) -> None:
    facts = timing.machine()
    line = timing.machine_line(facts)
    assert facts["torch"] in line and str(facts["cores"]) in line
    row = schema.row(
        op="x",
        case="x/1",
        mode="forward",
        settings={"dtype": torch.float32, "path": Path("a")},
        contenders={"eager": Measured()},
    )
    result = {**timing.heading("ops"), "rates": {"copy_gb_s": float("inf")}, "rows": [row]}
    path = timing.save(result, tmp_path / "r" / "x.json")
    loaded = schema.load(path)
    assert loaded["rows"][0]["settings"] == {"dtype": "float32", "path": "a"} and loaded["rates"] == {"copy_gb_s": "inf"}
    assert loaded["rows"][0]["contenders"]["eager"]["timing"] is None
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    with pytest.raises(ValueError, match="kind"):
        timing.save({**result, "kind": "other"}, path)
    assert schema.load(path)["kind"] == "ops"


def test_progress_is_quiet_when_quick() -> None:
    out = io.StringIO()
    with progress("quick work", stream=out):
        pass
    assert out.getvalue() == ""
    with progress("slow work", stream=out, patience_s=0.01) as at:
        at(3, 4)
        time.sleep(0.08)
    assert out.getvalue().count("slow work") == 2 and ", 3 of 4, about 0 s left)" in out.getvalue()


def test_model_cases_have_unique_names() -> None:
    for rows in (model_cases(), model_cases(quick=True)):
        assert len({row.name for row in rows}) == len(rows) > 0


def test_label_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXSYN_FAST_DATA", raising=False)
    assert label_source(None).folder is None
    monkeypatch.setenv("MIXSYN_FAST_DATA", str(tmp_path))
    assert label_source(None).folder is None
    (tmp_path / "celebamask_hq" / "val").mkdir(parents=True)
    assert label_source(None).text == "real label maps (celebamask_hq/val)"
    with pytest.raises(FileNotFoundError, match="no such folder"):
        label_source(tmp_path / "missing")
    images, labels = Labels(None).tensors("face", 2, 32)
    assert images.shape == (2, 3, 32, 32) and images.abs().max() <= 1 and labels.dtype == torch.int64


@pytest.mark.parametrize("family, kind", [("sean", "face"), ("spade", "street"), ("clade", "street")])
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_generator_rows(family: str, kind: str, mode: str) -> None:
    classes = {"face": 19, "street": 151}[kind]
    small = {"sean": {"style_length": 16, "hidden": 16, "encoder_width": 4}, "spade": {"hidden": 16}, "clade": {}}
    bench = run_models.ModelBench(ModelCase(family, classes, 1, mode, 64, 2, kind), Labels(None), **small[family])
    functions = bench.functions(compiled=False, published=run_models.published_forms())
    assert list(functions) == ["published", "dense", "ours"]
    verdicts = bench.gates(functions)
    assert all(v.passed for v in verdicts.values()), verdicts
    assert ("ours (float64)" in verdicts) == (mode == "forward")
    for name, pair in bench.floors().items():
        bench.step(*pair)()
        assert not any("ace_" in n or "norm_" in n for n, _ in pair[0].named_parameters()), name


def test_model_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MIXSYN_FAST_DATA", raising=False)
    monkeypatch.setattr(run_models, "measure_rates", lambda *_: {"copy_gb_s": 10.0})
    out = tmp_path / "models.json"
    arguments = ["--cases", "clade/k151/b1/forward", "--ngf", "2", "--size", "64", "--no-compile", "--repeat", "1"]
    status = run_models.main([*arguments, "--out", str(out)])
    found = json.loads(out.read_text())
    assert status == int(bool(found["losses"])) and found["wrong"] == []
    row = found["rows"][0]
    assert set(row["contenders"]) == {"published", "dense", "ours", "floor_plain", "floor"}
    assert tables.ratio(row, "ours", "floor") > 0 and row["facts"]["float64_error"] < 1e-12
    assert tables.main([str(out)]) == 0
    assert "ours / floor" in capsys.readouterr().out


def test_a_missing_gradient_passes_no_gate() -> None:
    layer = torch.nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    assert run_models.flat_gradient(layer, ["weight", "bias"]).tolist() == [1.0, 1.0, 1.0]
    layer.bias.grad = None
    assert run_models.flat_gradient(layer, ["bias", "weight"]).isnan().tolist() == [True, False, False]
    assert run_models.flat_gradient(layer, []).numel() == 0


def test_a_wrong_generator_fails_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("forward", "training"):
        bench = run_models.ModelBench(ModelCase("clade", 19, 1, mode, 64, 2, "face"), Labels(None))
        functions = bench.functions(compiled=False, published=None)
        model, forward = functions["ours"]
        wrong = (model, lambda forward=forward: forward() * 1.001)
        doubled = (model, lambda forward=forward: (y := forward()) + (y - y.detach()))  # right output, twice the gradient
        verdicts = bench.gates({**functions, "wrong": wrong, "doubled": doubled})
        assert verdicts["dense"].passed and verdicts["ours"].passed and not verdicts["wrong"].passed
        assert verdicts["doubled"].passed == (mode == "forward")


def test_a_result_says_which_command_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/some/where/tool.py", "--cases", "a b"])
    first = timing.heading("ops")
    schema.check(first)
    assert first["command"].endswith(" --cases 'a b'") and "/some/where" not in first["command"]
    monkeypatch.setenv("MIXSYN_FAST_DATA", "/home/somebody/pictures/")
    monkeypatch.setattr("sys.argv", ["tool.py", "--data", "/home/somebody/pictures/cmp_facade"])
    assert timing.heading("ops")["command"].endswith(" --data '$MIXSYN_FAST_DATA/cmp_facade'")


def test_results_and_documents_are_no_uncommitted_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of several files would else make its second file say that the tree has changes: the first file."""
    git = lambda *words: subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)  # noqa: E731
    files = [tmp_path / name for name in ("benchmarks/results/a.json", "docs/measured.md", "README.md", "mixsyn_fast/a.py")]
    git("init", "-q")
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "x")
    monkeypatch.setattr(timing, "__file__", str(tmp_path / "benchmarks" / "timing.py"))
    for path in files:
        path.write_text("2")
        assert timing.machine()["uncommitted_changes"] is (path.suffix == ".py")
