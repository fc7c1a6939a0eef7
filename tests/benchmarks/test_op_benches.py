"""The benches of the ops at tiny scale: gates, floors, targets, the runner, the tables, the plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import ops, plot_ops, run_ops, tables
from benchmarks.cases import DTYPES, Labels, select
from benchmarks.ops.attention import AttentionCase, PairBench, PoolAttentionBench, SpreadBench
from benchmarks.ops.base import OpBench, Target, Work
from benchmarks.ops.bias_act import BiasActBench, BiasActCase
from benchmarks.ops.fusion import FusionBench, FusionCase
from benchmarks.ops.label_patterns import PatternBench, PatternCase
from benchmarks.ops.latent_blend import BlendBench, BlendCase
from benchmarks.ops.masked_roi_pool import PoolBench, PoolCase, draw_cells
from benchmarks.ops.region_norm import NormBench, NormCase
from mixsyn_fast.measure.contest import MODES, is_ours
from mixsyn_fast.measure.ops.masked_roi_pool import plant_maxima

_RATES = {"read_gb_s": 10.0, "write_gb_s": 10.0, "copy_gb_s": 10.0, "matrix_gflop_s": 100.0}
_NORMS = [
    NormCase(6, 16, 2, kind, "channels_last", "float32", modulation)
    for kind in ("batch", "instance", "given")
    for modulation in ("table", "maps")
]
_NORMS += [NormCase(6, 16, 2, "group", layout, "float32", "silu") for layout in ("channels_last", "contiguous")]
_POOLS = [
    PoolCase(5, 24, 2, labels, mode, layout)
    for labels in ("street", "face")
    for mode in ("max", "mean")
    for layout in ("channels_last", "contiguous")
]
TINY: list[tuple[type[OpBench], Any]] = [
    *((NormBench, case) for case in _NORMS),
    *((PoolBench, case) for case in _POOLS),
    (PoolBench, PoolCase(3, 16, 2, "cells", "max", cells=40)),
    (PatternBench, PatternCase(24)),
    *(
        (bench, AttentionCase(bench.op, 3, 7, 5, 12, 2, layout))
        for bench in (PoolAttentionBench, SpreadBench, PairBench)
        for layout in ("channels_last", "contiguous")
    ),
    *((BiasActBench, BiasActCase(5, 6, 2, layout)) for layout in ("channels_last", "contiguous")),
    (BlendBench, BlendCase(2, 64)),
    (BlendBench, BlendCase(3, 1024, "a")),
    (FusionBench, FusionCase(1, 16, 8)),
    (FusionBench, FusionCase(2, 16, 8)),
]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXSYN_FAST_DATA", raising=False)


@pytest.mark.parametrize("kind, case", TINY, ids=[case.name for _, case in TINY])
def test_rows_pass_their_gates(kind: type[OpBench], case: Any) -> None:
    bench = kind(case, Labels(None))
    verdicts = bench.gates()
    assert all(verdict.passed for verdict in verdicts.values()), verdicts
    assert any(is_ours(name) for name in verdicts) and bench.baseline in verdicts
    for mode in bench.modes:
        calls = bench.calls(mode)
        assert list(calls) == list(bench.functions)
        for call in calls.values():
            call()
        assert all(part.seconds(_RATES) > 0 for part in bench.parts(mode))
        assert bench.op == "label_patterns" or bench.parts(mode)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kind, case", [row for row in TINY if row[0] not in (PatternBench, NormBench, FusionBench)][::3])
def test_rows_pass_their_gates_in_other_dtypes(kind: type[OpBench], case: Any, dtype: str) -> None:
    verdicts = kind(replace(case, dtype=dtype), Labels(None)).gates()
    assert all(verdict.passed for verdict in verdicts.values()), verdicts


def _off_by_a_little(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    def call(*inputs: Tensor) -> Any:
        outputs = list(function(*inputs))
        y = outputs[at]
        outputs[at] = y + (1e-4 * y.detach().abs().max() if y.is_floating_point() else 1)
        return tuple(outputs)

    return call


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * (1 + 1e-4)


ONE_OF_EACH = list({kind: (kind, case) for kind, case in TINY}.values())


@pytest.mark.parametrize("kind, case", ONE_OF_EACH, ids=[kind.__name__ for kind, _ in ONE_OF_EACH])
def test_a_wrong_kernel_is_caught(kind: type[OpBench], case: Any) -> None:
    bench = kind(case, Labels(None))
    right = next(function for name, function in bench.functions.items() if is_ours(name))
    bench.functions = {"native": _off_by_a_little(right, 0)}
    verdict = bench.gates()["native"]
    assert not verdict.passed and verdict.what in bench.outputs
    bench.functions = {"native": lambda *_: 1 / 0}
    assert "ZeroDivisionError" in bench.gates()["native"].what
    if bench.output_grads:
        bench.functions = {"native": lambda *inputs: right(*(_WrongGradient.apply(t) for t in inputs))}
        verdict = bench.gates()["native"]
        assert not verdict.passed and verdict.what.startswith("grad_")


def test_a_wrong_position_is_caught() -> None:
    bench = PoolBench(PoolCase(5, 24, 2), Labels(None))
    bench.functions = {"native": _off_by_a_little(bench.functions["native"], 1)}
    assert bench.gates()["native"].what == "position"


def test_a_wrong_plain_form_does_not_loosen_the_gate() -> None:
    bench = SpreadBench(AttentionCase(SpreadBench.op, 3, 7, 5, 12), Labels(None))
    wrong = _off_by_a_little(bench.functions["native"], 0)
    bench.functions = {"eager": wrong, "native": wrong}
    assert not any(verdict.passed for verdict in bench.gates().values())


def test_cases_are_unique_and_of_the_shapes_asked_for() -> None:
    for settings in ({"quick": True}, {}, {"every": True}):
        names = [case.name for _, case in ops.all_cases(**settings)]
        assert len(set(names)) == len(names) > 0
        assert all(name.startswith(f"{bench.op}/") for bench, case in ops.all_cases(**settings) for name in [case.name])
        assert {bench for bench, _ in ops.all_cases(**settings)} == set(ops.BENCHES)
    standard = {case.name for _, case in ops.all_cases()}
    assert standard <= {case.name for _, case in ops.all_cases(every=True)}
    for name in (
        "masked_roi_pool/max/k151/4x64x128x128/channels_last/float32",
        "masked_roi_pool/mean/k19/4x256x32x32/channels_last/float32",
        "masked_roi_pool/mean/k19/1x512x128x128/channels_last/float32",
        "attention_pair/k16/n128/m64/2x128x128/channels_last/float32",
        "attention_pair/k16/n512/m64/2x32x32/channels_last/float32",
        "latent_blend/b16/1024/q_on_b/float32",
        "bias_act/8x64x256x256/channels_last/float32",
        "fusion_hierarchy/faces/b16/1024/h2560/float32",
    ):
        assert name in standard
    norms = NormBench.cases(every=True)
    assert {(128, 256), (1024, 16)} <= {(c.channels, c.side) for c in norms}
    assert {c.statistics for c in norms} == {"batch", "instance", "given", "group"}
    assert {c.dtype for c in NormBench.cases(dtype="bfloat16")} == {"bfloat16"} and "bfloat16" in DTYPES
    assert [c.name for c in select(PatternBench.cases(), "street")] == ["label_patterns/street/1x256x256/r2/shared/t1"]


def test_floors() -> None:
    computed, given = NormCase(8, 16, statistics="batch"), NormCase(8, 16, statistics="given")
    assert [computed.passes(m) for m in ("forward", "backward", "both")] == [3, 5, 8]
    assert [given.passes(m) for m in ("forward", "backward", "both")] == [2, 4, 6]
    assert Work(read=10**10).seconds(_RATES) == 1.0 and Work(written=10**10, copied=10**10).seconds(_RATES) == 2.0
    assert Work(read=10**9, operations=10**12).seconds(_RATES) == 10.0
    assert Work(read=1, written=2, copied=3).bytes == 6 and Work(read=1).kinds == ("read",)
    pool = PoolBench(PoolCase(5, 24, 2), Labels(None))
    size = 2 * 5 * 24 * 24 * 4
    assert pool.parts("both") == [Work(read=size), Work(written=size)]
    pair = PairBench(AttentionCase(PairBench.op, 3, 7, 5, 12, 2), Labels(None))
    (work,) = pair.parts("forward")
    pixels = 2 * 12 * 12
    assert work == Work(copied=4 * pixels * (2 * 7 + 2 * 5), operations=2 * pixels * 3 * (7 + 5 + 7 + 5 + 7))
    one, three = (FusionBench(FusionCase(batch, 16, 8), Labels(None)).parts("forward")[0] for batch in (1, 3))
    assert three.operations == 3 * one.operations and three.read == one.read > 0


def test_targets() -> None:
    assert Target("floor", most=3.0).met(2.9) and not Target("floor", most=3.0).met(3.1)
    assert Target("scatter", least=5.0).met(5.0) and not Target("scatter", least=5.0).met(4.9)
    text = tables.target_text
    assert text({"what": "floor", "most": 3.0, "got": 2.5}) == "floor 2.50 x of at most 3 x"
    assert text({"what": "scatter", "least": 5.0, "got": 4.0}) == "scatter 4.00 x of at least 5 x"
    assert text({"what": "temporary", "most": 0.05, "got": 0.01}) == "temporary memory 1.0% of at most 5.0%"
    assert text({"what": "seconds", "most": 3e-4, "got": 2e-4}) == "200 us of at most 300 us"


def test_drawn_cells_and_planted_maxima() -> None:
    cells = draw_cells(2, 20, 37)
    assert cells.shape == (2, 20, 20) and cells.dtype == torch.int32
    assert all(image.unique().tolist() == list(range(37)) for image in cells)
    assert draw_cells(1, 4, 1).unique().tolist() == [0]
    labels = cells.to(torch.int64)
    labels[:, :3] = -1
    features = torch.zeros(2, 3, 20, 20, dtype=torch.bfloat16)
    plant_maxima(features, labels, 37)
    for k in range(37):
        inside = (labels == k)[:, None].expand_as(features)
        count = (features.eq(1) & inside).sum((2, 3))
        assert torch.equal(count, inside.any((2, 3)).to(count.dtype))
    assert not features[:, :, :3].any()


def _tiny_rows(**_: Any) -> list[tuple[type[OpBench], Any]]:
    cases = (
        (PatternBench, PatternCase(24)),
        (NormBench, NormCase(4, 8)),
        (PoolBench, PoolCase(64, 8, 4)),
        (SpreadBench, AttentionCase(SpreadBench.op, 3, 7, 5, 12)),
        (FusionBench, FusionCase(2, 16, 8)),
    )
    return list(cases)


def test_runner_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ops, "all_cases", _tiny_rows)
    monkeypatch.setattr(run_ops, "measure_rates", lambda *_: _RATES)
    out = tmp_path / "ops.json"
    status = run_ops.main(["--no-compile", "--repeat", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    assert status == int("LOSS " in printed)  # at this scale nobody asks who wins
    assert "region_norm/table/batch/1x4x8x8" in printed and "geometric mean" in printed
    result = json.loads(out.read_text())
    assert [(row["op"], row["mode"]) for row in result["rows"]] == [
        ("label_patterns", "forward"),
        *((op, mode) for op in ("region_norm", "masked_roi_pool", "channel_attention_spread") for mode in MODES),
        ("fusion_hierarchy", "forward"),
    ]
    assert result["left_out"] == [] and "masked_roi_pool native forward" in tables.summarise_ops(result["rows"])
    rows = {(row["op"], row["mode"]): row for row in result["rows"]}
    pool = rows["masked_roi_pool", "forward"]
    assert list(pool["contenders"]) == ["per-class", "scatter", "native"]
    assert all(entry["gate"]["passed"] and entry["timing"]["samples"] == 2 for entry in pool["contenders"].values())
    assert (
        set(pool["facts"]["own_rates"]) == {"read_gb_s"}
        and pool["floor_s"] > 0
        and pool["facts"]["bytes"] == 64 * 4 * 64 * 4
    )
    assert {goal["what"] for goal in pool["targets"]} == {"floor", "per-class"}
    assert set(rows["masked_roi_pool", "both"]["facts"]["own_rates"]) == {"read_gb_s", "write_gb_s"}
    assert rows["label_patterns", "forward"]["floor_s"] is None
    assert tables.main([str(out)]) == 0
    tabled = capsys.readouterr().out
    assert tabled.count("\n|---|") == 5 + 4  # a table per op, and geometric means of those with a floor
    assert "| regions present |" in tabled and "| temporary MiB |" in tabled
    assert run_ops.main(["--cases", "nothing", "--out", str(tmp_path / "x.json")]) == 2
    assert run_ops.main(["--budget", "0", "--out", str(tmp_path / "y.json")]) == 2
    assert len(json.loads((tmp_path / "y.json").read_text())["left_out"]) == 5
    with pytest.raises(SystemExit):
        run_ops.parse(["--modes", "sideways"])
    with pytest.raises(SystemExit):
        run_ops.parse(["--quick", "--all"])
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(SystemExit):
        tables.main([str(tmp_path / "bad.json")])
    assert "bad.json: not a result file" in capsys.readouterr().err


def test_a_failed_gate_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PoolBench, "ours", lambda self, features: (features[:, :, 0].mT,))
    options = run_ops.parse(["--no-compile", "--repeat", "1", "--modes", "forward", "--no-resident"])
    (row,) = run_ops.run_case(PoolBench, PoolCase(5, 24, 2), Labels(None), _RATES, options, without=("per-class",))
    assert list(row["contenders"]) == ["scatter", "native"]
    native = row["contenders"]["native"]
    assert native.timing is None and "wrong result" in native.note and row["targets"] == []
    assert "wrong result" in tables.row_line(json.loads(json.dumps(run_ops.jsonable(row))))


def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [bench])")
    monkeypatch.setattr(plot_ops, "measure_rates", lambda *_: _RATES)
    arguments = ["--repeat", "1", "--regions", "1,3,80", "--pool-side", "12", "--sides", "4,8"]
    assert plot_ops.main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "plot_ops_cpu.json").read_text())
    assert [row["facts"]["x"] for row in result["rows"]] == [1, 3, 80, 16, 64]
    assert "per-class" in result["rows"][1]["contenders"] and "per-class" not in result["rows"][2]["contenders"]
    pictures = [tmp_path / name for name in ("masked_roi_pool_cpu.png", "attention_cpu.png")]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        path.unlink()
    again = tmp_path / "again"
    assert plot_ops.main(["--from", str(tmp_path / "plot_ops_cpu.json"), "--out", str(again)]) == 0
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in pictures)
    for wrong in (["--regions", "0"], ["--regions", "500", "--pool-side", "8"], ["--from", str(tmp_path / "none.json")]):
        with pytest.raises(SystemExit):
            plot_ops.main([*wrong, "--out", str(tmp_path)])
    capsys.readouterr()
