"""The benchmarks of harmonized transfer: gates, parts, rows, and a quick run of every part through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import Item
from mixsyn_fast.models.harmonized.attention import StyleAttention
from mixsyn_fast.models.harmonized.config import AttentionConfig
from mixsyn_fast.models.harmonized.evaluate import BY_FLOW, OURS

from benchmarks import run_harmonized, run_harmonized_quality, schema, tables
from benchmarks.run_harmonized import PARTS, explicit
from tests.models.harmonized.small import picture, small_model


def test_quick_runs_fill_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "harmonized.json"
    for part in PARTS:
        assert run_harmonized.main([part, "--quick", "--out", str(out)]) in (0, 1)  # at this scale nobody asks who wins
    found = schema.load(out)
    assert found["wrong"] == []
    parts = ("step", "encoder", "pooling", "attention", "decoder", "discriminator")
    assert [(row["case"], row["mode"]) for row in found["rows"]] == [
        *((f"harmonized/{part} w4", "training") for part in parts),
        ("harmonized/edit w4", "forward"),
        *((f"harmonized/pooling {mode}", mode) for mode in ("forward", "both")),
        *((f"harmonized/attention b{batch}", mode) for batch in (1, 8) for mode in ("forward", "both")),
        *((f"harmonized/code of {group}", "forward") for group in ("hair", "skin")),
        ("harmonized/slider w4", "forward"),
    ]
    rows = {(row["case"], row["mode"]): row for row in found["rows"]}
    for row in found["rows"]:
        assert all(entry["timing"] for entry in row["contenders"].values()), row["case"]
    assert set(rows["harmonized/edit w4", "forward"]["contenders"]) == {"dense", "full", "ours"}
    assert "floor" in rows["harmonized/step w4", "training"]["contenders"]
    share = rows["harmonized/decoder w4", "training"]["facts"]["share of the step"]
    assert set(share) == {"dense", "ours"} and all(value > 0 for value in share.values())
    assert set(rows["harmonized/slider w4", "forward"]["contenders"]) == {"full", "adaptive", "ours"}
    code = rows["harmonized/code of skin", "forward"]
    assert 0 < code["facts"]["fixed_error"] < 0.1 and code["targets"][0]["what"] == "seconds"
    assert 0 < rows["harmonized/pooling both", "both"]["contenders"]["ours"]["gate"]["error"] < 1e-5
    assert "harmonized/edit" in tables.render(json.loads(out.read_text()))
    assert "timing edit" in capsys.readouterr().out


def test_the_explicit_attention_is_the_same() -> None:
    torch.manual_seed(0)
    attention = StyleAttention(AttentionConfig(style_length=8)).double()
    composed, target = torch.randn(2, 3, 5, 8, dtype=torch.float64).unbind()
    present = torch.tensor([[True] * 5, [True, False, True, False, True], [False] * 5])
    expected = attention(composed, target, present)
    assert torch.allclose(explicit(attention, composed, target, present), expected, atol=1e-12)


def test_a_wrong_edit_fails_its_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    true = run_harmonized.transferred
    monkeypatch.setattr(
        run_harmonized, "transferred", lambda *given: true(*given) * (1.001 if len(given) < 3 and not dense() else 1)
    )
    from mixsyn_fast.backend import current_plan

    def dense() -> bool:
        return current_plan() == "dense"

    options = run_harmonized.parse(["edit", "--quick", "--out", str(tmp_path / "x.json")])
    (row,) = run_harmonized.run_edit(options, None)  # type: ignore[arg-type]
    assert row["contenders"]["ours"].timing is None and "wrong result: image" in row["contenders"]["ours"].note


def test_the_sizes_that_ship_have_rows_of_their_own() -> None:
    options = run_harmonized.parse(["codes", "--shipped"])
    config = run_harmonized.generator_config(options)
    assert (config.ngf, config.largest, config.hidden, config.style_length, config.encoder_width) == (16, 96, 32, 32, 16)
    assert run_harmonized.sizes(options) == "shipped" and run_harmonized.sizes(run_harmonized.parse(["codes"])) == "w32"


def test_bad_options(capsys: Any) -> None:
    for words, message in (
        (["nothing"], "invalid choice: 'nothing'"),
        (["step", "--width", "0"], "--width: expected a positive number"),
        (["step", "--quick"], "--out: expected a file with --quick"),
    ):
        with pytest.raises(SystemExit):
            run_harmonized.parse(words)
        assert message in capsys.readouterr().err


def test_rows_of_a_report(tmp_path: Path) -> None:
    """A row per model, the first one's other forms under its name; intervals and counts are kept."""
    for name, kind in (("full", "harmonized"), ("sean", "sean")):
        (tmp_path / name).mkdir()
        config = {"model": kind, "options": {}, "data": {}, "task": {"name": name}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        log = [{"step": 5, "loss": 1.0}, {"step": 10, "validation/psnr": 12.5}]
        (tmp_path / name / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    score = {"mean": 0.4, "low": 0.3, "high": 0.5, "count": 7, "pictures": {}}
    fid = {"value": 146.0, "first_count": 40}
    models = {
        OURS: {"metrics": {"psnr": score}, "fid": fid},
        "sean": {"metrics": {"psnr": score}, "fid": None, "differences": {"psnr": score}},
        BY_FLOW: {"metrics": {}, "fid": None, "differences": {}},
    }
    report = {"tasks": {"reconstruction": models}, "not_computed": {"fid": "x"}, "details": {}}
    rows = run_harmonized_quality.rows_of(report, {"full": tmp_path / "full", "sean": tmp_path / "sean"})
    assert [row["case"] for row in rows] == ["quality/full", "quality/sean", f"quality/full, {BY_FLOW}"]
    kept = {"mean": 0.4, "low": 0.3, "high": 0.5, "count": 7}
    assert rows[0]["facts"]["scores"] == {"reconstruction: psnr": kept, "reconstruction: fid": {"mean": 146.0, "count": 40}}
    assert rows[1]["facts"]["differences"] == {"reconstruction: psnr": kept} and rows[1]["settings"]["model"] == "sean"
    assert rows[0]["facts"]["steps"] == 10 and rows[0]["facts"]["validation"] == [{"step": 10, "psnr": 12.5}]


def test_walks_in_style_space_go_as_far_as_those_in_z(tmp_path: Path) -> None:
    """Of the pictures that have the group; sheets of the same walks."""
    model = small_model()

    def item(seed: int, regions: tuple[int, ...] = (0, 1, 2, 3)) -> Item:
        image, labels = picture(seed, regions=regions)
        return Item(image, labels.astype(np.int32), None, f"p{seed}", seed)

    items = [*map(item, range(4)), item(9, (0, 1, 2))]  # the last one is bald
    found = run_harmonized_quality.walks(model, items, "hair")
    assert found["pictures"] == 4 and found["real"] > 0
    for amount in ("0.25", "0.5", "1"):
        z, style = found["z"][amount], found["style"][amount]
        assert z["moved"] == pytest.approx(style["moved"], rel=1e-4) and z["moved"] > 0 and style["nearest"] > 0
    assert found["z"]["1"]["moved"] > found["z"]["0.25"]["moved"]
    assert run_harmonized_quality.walks(model, items[:1], "hair") == {"pictures": 1}
    run_harmonized_quality.write_walks(model, items, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walks_hair.png", "walks_skin.png"]
