"""The verdict that can fail: losses, noise, rows without a target, exit status; results beside each other; --cpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu, ops, run_ops, schema, tables, timing, winners
from benchmarks.cases import Labels, ModelCase
from benchmarks.ops.attention import AttentionCase, PairBench
from benchmarks.ops.base import OpBench, Target
from benchmarks.ops.latent_blend import BlendBench, BlendCase
from benchmarks.ops.masked_roi_pool import PoolBench, PoolCase
from benchmarks.ops.region_norm import NormBench, NormCase
from benchmarks.schema import Measured
from mixsyn_fast import backend, extension
from mixsyn_fast.measure import rows
from mixsyn_fast.measure.clock import Timing, slower
from mixsyn_fast.writing import jsonable

ROOT = Path(__file__).resolve().parents[2]
_RATES = {"read_gb_s": 10.0, "write_gb_s": 10.0, "copy_gb_s": 10.0, "matrix_gflop_s": 100.0}


def _timing(median: float, spread: float = 0.0) -> dict[str, float]:
    return {"median": median, "p20": median - spread, "p80": median + spread, "samples": 9}


def _row(case: str = "pool/a", mode: str = "forward", **medians: float) -> dict[str, Any]:
    gate = {"passed": True, "error": 1e-7, "allowed": 1e-6, "what": "y"}
    contenders = {name: Measured(timing=_timing(median), gate=gate) for name, median in medians.items()}  # type: ignore
    made = {"op": case.split("/")[0], "case": case, "mode": mode, "memory_floor_s": 0.5, "contenders": contenders}
    return jsonable(schema.row(settings={}, **made))


def test_what_is_noise_and_what_a_loss() -> None:
    other = Timing(1.0, 0.99, 1.01, 9)
    assert not slower(Timing(0.9, 0.9, 0.9, 9), other)
    assert not slower(Timing(1.02, 1.0, 1.04, 9), other)  # less than 3 %, and the percentiles overlap
    assert slower(Timing(1.02, 1.015, 1.04, 9), other)  # small, but clear
    assert slower(Timing(1.04, 0.9, 1.2, 9), other)  # unclear, but large


def test_the_fastest_plain_form_judges() -> None:
    row = _row(eager=3.0, scatter=2.0, compile=0.1, floor=0.1, floor_plain=0.1, native=1.0)
    assert tables.verdict(row, "native") == ("scatter", 2.0, False)
    assert str(tables.verdict(_row(eager=1.0, native=4.0), "native")) == "LOSS: 0.25 x eager"
    assert tables.verdict(_row(compile=1.0, native=4.0), "native") is None
    lost, fine, wrong = _row(eager=1.0, native=4.0), _row(eager=2.0, native=1.0), _row(eager=2.0, native=1.0)
    wrong["contenders"]["native"] |= {"timing": None, "note": "wrong result: y"}
    found = tables.faults([lost, fine, wrong])
    assert found == {"losses": ["pool/a forward: native 0.25 x eager"], "wrong": ["pool/a forward: native: wrong result: y"]}
    said = tables.conclusion(found, [lost, fine, wrong])
    assert (
        said.splitlines()[0] == "3 rows: 1 lost to plain PyTorch, 1 wrong" and "\nLOSS pool/a" in said and "\nWRONG" in said
    )


def test_a_row_without_a_target_says_so() -> None:
    row = _row(eager=1.0, native=4.0)
    assert "LOSS: 0.25 x eager, no target" in tables.row_line(row)
    goal = {"contender": "native", "what": "temporary", "most": 0.05, "least": None, "got": 0.01, "met": True}
    with_target = _row("pool/b", eager=2.0, native=1.0) | {"targets": [goal]}
    assert "no target" not in tables.row_line(with_target) and "reached: temporary" in tables.row_line(with_target)
    text = tables.render_ops({"rows": [row, with_target]})
    lines = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert lines["| a"].endswith("| LOSS: 0.25 x eager | no target |")
    assert lines["| b"].endswith("| 2.00 x eager | all reached |")
    assert (
        tables.summarise_ops([row | {"floor_s": 1.0}, with_target | {"floor_s": 1.0}])["pool native forward"]["losses"] == 1
    )


class _Sleepy:
    """A kernel slowed by some milliseconds, and forms of torch slowed more."""

    def __init__(self, function: Any, seconds: float) -> None:
        self.function, self.seconds = function, seconds

    def __call__(self, *inputs: Any) -> Any:
        time.sleep(self.seconds)
        return self.function(*inputs)


@pytest.mark.parametrize("lost", [True, False])
def test_a_slowed_kernel_is_a_loss_and_status_1(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --quick and --no-compile, as with all rows; and the same rows are none when ours is the faster one."""
    original = BlendBench.contenders

    def contenders(self: BlendBench, *, compiled: bool) -> dict[str, Any]:
        found = original(self, compiled=compiled)
        return {name: _Sleepy(function, 0.004 if (name == "native") == lost else 0) for name, function in found.items()}

    monkeypatch.setattr(BlendBench, "contenders", contenders)
    monkeypatch.setattr(run_ops, "measure_rates", lambda *_: _RATES)
    out = tmp_path / "ops.json"
    arguments = ["--quick", "--no-compile", "--cases", "latent_blend", "--repeat", "3", "--modes", "forward"]
    assert run_ops.main([*arguments, "--out", str(out)]) == int(lost)
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    assert len(result["losses"]) == int(lost) and result["wrong"] == []
    assert f"1 rows: {int(lost)} lost to plain PyTorch, 0 wrong" in said and ("LOSS: 0." in said) == lost


def test_a_wrong_kernel_is_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlendBench, "ours", lambda self, a, b, logits: (a,))
    monkeypatch.setattr(run_ops, "measure_rates", lambda *_: _RATES)
    out = tmp_path / "ops.json"
    arguments = ["--quick", "--no-compile", "--cases", "latent_blend", "--repeat", "1", "--modes", "forward"]
    assert run_ops.main([*arguments, "--out", str(out)]) == 1
    assert "native: wrong result" in json.loads(out.read_text())["wrong"][0]


def test_targets_by_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def targets(bench: OpBench, isa: str, mode: str = "forward") -> list[Target]:
        monkeypatch.setattr(extension, "instruction_set", lambda: isa)
        return [goal for goal in bench.targets(mode) if goal.what != "temporary"]

    labels = Labels(None)
    pair = PairBench(AttentionCase(PairBench.op, side=8), labels)
    pair.case = AttentionCase(PairBench.op)
    assert targets(pair, "avx2") == [Target("eager", least=1.8), Target("compile", least=1.8)]
    assert targets(pair, "avx2", "backward") == [Target("eager", least=1.5), Target("compile", least=1.5)]
    assert Target("eager", least=5.0) in targets(pair, "avx512") and targets(pair, "avx2", "both") == []
    assert targets(pair, "baseline") == [Target("eager", least=1.0)]
    pool = PoolBench(PoolCase(5, 16, 1), labels)
    assert targets(pool, "avx2") == [Target("scatter", least=2.0), Target("per-class", least=20.0)]
    assert Target("floor", most=3.0) in targets(pool, "avx512")
    assert targets(PoolBench(PoolCase(5, 16, 1, dtype="bfloat16"), labels), "avx512") == [Target("scatter", least=1.0)]
    norm = NormBench(NormCase(4, 8), labels)
    assert targets(norm, "avx512") == [Target("memory_floor", most=1.5)] and targets(norm, "avx2") == []
    norm.case = NormCase(4, 64)
    assert targets(norm, "avx2") == [Target("memory_floor", most=1.5)]
    assert targets(norm, "avx2", "backward") == [Target("memory_floor", most=2.0)]
    assert targets(BlendBench(BlendCase(1, 16), labels), "avx2") == [Target("eager", least=8.0)]


def _result(isa: str | None, capability: str, *measured: dict[str, Any]) -> dict[str, Any]:
    facts = {**timing.machine(), "cpu_capability": capability, "instruction_set": isa, "restricted": {}}
    return {**timing.heading("ops"), "machine": facts, "rows": list(measured)}


def test_results_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _result(
        None, "AVX512", _row(eager=4.0, scatter=3.0, native=1.0), _row("pool/b", eager=9.0, native=1.0),
        _row(mode="backward", eager=4.0, native=2.0), _row("blend/x", eager=0.002, native=0.001),
    )  # fmt: skip
    second = _result("avx2", "AVX2", _row(eager=3.0, scatter=1.0, native=2.0), _row("blend/x", eager=0.002, native=0.004))
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, result in zip(files, (first, second), strict=True):
        timing.save(result, path)
    assert tables.main(["--beside", *map(str, files), "--modes", "forward"]) == 0
    said = capsys.readouterr().out
    header = "| pool | mode |" + "".join(
        f" {isa}: ours | fastest plain | faster | / memory floor |" for isa in ("avx512", "AVX2")
    ).replace("avx512", "AVX-512")
    assert header in said and "AVX2: " in said and "backward" not in said
    assert "| a | forward | 1 s | scatter 3 s | 3.00 x | 2.00 | 2 s | scatter 1 s | LOSS: 0.50 x | 4.00 |" in said
    assert "| b | forward | 1 s | eager 9 s | 9.00 x | 2.00 | - | - | - | - |" in said
    assert "| x | forward | 1 ms | eager 2 ms | 2.00 x" in said and "| 4 ms | eager 2 ms | LOSS: 0.50 x" in said
    assert tables.main(["--beside", *map(str, files), "--cases", "blend", "--titles", "desk,laptop"]) == 0
    said = capsys.readouterr().out
    assert "desk: ours" in said and "laptop: ours" in said and "pool" not in said
    with pytest.raises(SystemExit):
        tables.main(["--beside", *map(str, files), "--titles", "one"])
    case = ModelCase("sean", 19).name
    row = _row(dense=3.0, ours=1.0) | {"op": "generator", "case": case, "memory_floor_s": None}
    text = tables.beside([{**first, "rows": [row]}, {**second, "rows": [row]}])
    assert f"| {case} | forward | 1 s | dense 3 s | 3.00 x | 1 s | dense 3 s | 3.00 x |" in text


@pytest.mark.parametrize("name", sorted(cpu.RESTRICTIONS))
def test_the_option_cpu_restricts_torch_and_us(name: str) -> None:
    """The program starts anew, and its machine says so."""
    code = "import json, sys\nfrom benchmarks import cpu\ncpu.restrict(sys.argv[1])\n"
    code += "from benchmarks import timing\nprint(json.dumps(timing.machine()))"
    environ = {key: value for key, value in os.environ.items() if key not in cpu.VARIABLES}
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["instruction_set"] == name and facts["restricted"] == cpu.RESTRICTIONS[name]
    assert facts["cpu_capability"].lower() == cpu.RESTRICTIONS[name]["ATEN_CPU_CAPABILITY"]
    assert f"ours {name} (restricted)" in timing.machine_line(facts)


def test_the_option_cpu_names_files_and_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ops.parse(["--cpu", "avx2"]).out == schema.RESULTS / "ops_cpu_avx2.json"
    assert run_ops.parse([]).out == schema.RESULTS / "ops_cpu.json"
    assert cpu.suffix(torch.device("cuda"), None) == "cuda"
    assert run_ops.main(["--cpu", "avx2", "--device", "cuda"]) == 2
    assert "--cpu: expected --device cpu" in capsys.readouterr().err
    for key, value in cpu.RESTRICTIONS["avx2"].items():  # as if the program had been started anew, to no effect
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(extension, "instruction_set", lambda: "baseline")
    assert run_ops.main(["--cpu", "avx2"]) == 2
    assert "expected avx2 to be in force, got baseline" in capsys.readouterr().err


# --- the table behind `auto` -----------------------------------------------------------------------------------------


def test_the_package_has_the_table_of_the_committed_results() -> None:
    results = winners.committed()
    assert {result["machine"]["instruction_set"] for result in results} >= {"avx512", "avx2", "baseline"}
    assert backend.WINNERS.read_text() == winners.text(winners.table(results))


def _winners(isa: str = "avx2", **medians: float) -> dict[str, Any]:
    timings = {name: Timing(value, value, value, 5) for name, value in medians.items()}
    row = rows.Row("pool", "pool/x", "contiguous", "float32", "cpu", "forward", timings, {"native": "y: error 1"})
    return _result(isa, "AVX2", jsonable(winners.as_row(row)))


def test_ratios_of_the_table() -> None:
    found = winners.table([_winners(reference=3.0, eager=2.0, native=4.0)])["ratios"]
    entry = found["pool"]["avx2"]["contiguous"]["float32"]["forward"]
    assert entry == {"reference": 0.75, "plain": 0.5, "fastest": "eager"}
    with pytest.raises(ValueError, match="pool/x forward on avx2: y: error 1"):
        winners.table([_winners(reference=3.0)])
    with pytest.raises(ValueError, match="two results of avx2"):
        winners.table([_winners(reference=1.0, native=1.0)] * 2)


def test_winners_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "registered_ops", lambda: ("latent_blend",))
    monkeypatch.setattr(winners, "RESULTS", tmp_path)
    monkeypatch.setattr(backend, "WINNERS", tmp_path / "table.json")
    assert winners.main(["--repeat", "1", "--seconds", "0"]) == 0
    result = json.loads((tmp_path / "winners_cpu.json").read_text())
    assert result["kind"] == "winners" and len(result["rows"]) == 8
    ratios = json.loads((tmp_path / "table.json").read_text())["ratios"]["latent_blend"][extension.instruction_set()]
    assert set(ratios["any"]) == {"float32", "bfloat16", "float16", "float64"}
    assert "ops" not in ratios and ops.BENCHES
