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
from mixsyn_fast.models.harmonized.evaluate import BY_FLOW, OURS, WITHOUT
from mixsyn_fast.models.metrics.harmony import HarmonyClassifier, HarmonyConfig, save_classifier
from mixsyn_fast.models.training.command import run as train

from benchmarks import run_harmonized, run_harmonized_quality, schema, tables
from benchmarks.run_harmonized import PARTS, explicit
from tests.models.harmonized.small import picture, small_model


class Features(torch.nn.Module):
    """Stands for the feature network of FID: colours of a coarse picture."""

    notes: tuple[str, ...] = ()
    path = "colours"

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs of every model that the paper's tables name, and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    drawn = ["--kind", "procedural_faces", "--count", "4", "--size", "32", "--batch-size", "2", "--workers", "0"]
    drawn += ["--validate-every", "1", "--sheet-every", "0", "--device", "cpu"]
    small = ["--vgg", "0", "--generator.ngf", "2", "--generator.hidden", "4", "--generator.style-length", "4"]
    small += ["--generator.encoder-width", "2", "--discriminator.ndf", "2", "--discriminator.n-layers", "2"]
    small += ["--discriminator.scales", "1"]
    only_first = ["--reconstruction-steps", "1", "--mapping-steps", "0", "--flow-steps", "0"]
    later = ["--reconstruction-steps", "0", "--mapping.width", "4", "--flow.width", "4", "--flow-solver", "fixed"]
    later += ["--init-from", str(folder / "full")]
    ways = {
        "full": only_first,
        "no_softmax": [*only_first, "--no-generator.softmax", "--no-attend"],
        "no_attention": [*only_first, "--no-attend"],
        "no_multi_scale": [*only_first, "--no-generator.multi-scale"],
        "kl": [*only_first, "--mapping-by", "kl"],
        "style": [*later, "--mapping-steps", "1", "--flow-steps", "0"],
        "image": [*later, "--mapping-steps", "1", "--flow-steps", "0", "--mapping-by", "image"],
        "cnf": [*later, "--mapping-steps", "0", "--flow-steps", "1"],
    }
    for name, words in ways.items():
        assert train(["harmonized", *drawn, *small, *words, "--out", str(folder / name)]) == 0
    assert train(["sean", *drawn, *small, "--steps", "1", "--out", str(folder / "sean")]) == 0
    save_classifier(HarmonyClassifier(HarmonyConfig(width=2)), folder / "harmony.safetensors")
    return folder


def _rows(runs: Path, out: Path, names: tuple[str, ...], *words: str) -> dict[str, dict[str, Any]]:
    given = [f"{name}={runs / name}" for name in names]
    more = ["--kind", "procedural_faces", "--limit", "4", "--styles", "2", "--out", str(out)]
    assert run_harmonized_quality.main([*given, *more, *words]) == 0
    return {row["case"].removeprefix("quality/"): row["facts"] for row in schema.load(out)["rows"]}


def test_reconstruction_and_transfer_of_all_ablations_in_one_call(runs: Path, tmp_path: Path) -> None:
    """Tables 1 and 3: ours, its attention left out, without softmax, attention, scales, and SEAN."""
    names = ("full", "no_softmax", "no_attention", "no_multi_scale", "sean")
    words = ["--harmony", str(runs / "harmony.safetensors"), "--tasks", "reconstruction,transfer"]
    rows = _rows(runs, tmp_path / "x.json", names, *words, "--sheets", str(tmp_path / "sheets"))
    assert list(rows) == ["full", f"full, {WITHOUT}", *names[1:]]
    for facts in rows.values():
        found = {name for name, score in facts["scores"].items() if score["count"]}
        assert found >= {"reconstruction: psnr", "reconstruction: ssim", "transfer of skin: harmony"}
        assert not [name for name in found if "samples" in name] and "walks" not in facts and facts["validation"]
    assert "reconstruction: psnr" in rows["sean"]["differences"] and (tmp_path / "sheets/transfers.png").is_file()
    command = json.loads((tmp_path / "x.json").read_text())["command"]
    assert "--kind procedural_faces --tasks reconstruction,transfer --limit 4" in command


def test_random_styles_of_all_ways_in_one_call(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 5: mapping networks by style and by image, codes from N(0, I), a flow; FID and diversity of each."""

    def nowhere(file: str | None) -> torch.nn.Module:
        raise FileNotFoundError("no weights of LPIPS in this test")

    tools = {"inception": lambda file: Features(), "lpips_alex": nowhere}
    monkeypatch.setattr("mixsyn_fast.models.metrics.table.TOOLS", tools)
    names = ("style", "kl", "image", "cnf", "sean")
    rows = _rows(runs, tmp_path / "x.json", names, "--tasks", "samples", "--sheets", str(tmp_path / "sheets"))
    assert list(rows) == ["style", f"style, {WITHOUT}", *names[1:], f"cnf, {BY_FLOW}"]
    fids = {name: facts["scores"].get("samples of skin: fid", {"mean": None})["mean"] for name, facts in rows.items()}
    assert {name for name, value in fids.items() if value is None} == {"cnf", "sean", f"style, {WITHOUT}"}
    assert all(value >= 0 for value in fids.values() if value is not None)
    assert set(rows["cnf"]["walks"]) == {"hair", "skin"} and "walks" not in rows["style"]
    assert (tmp_path / "sheets/cnf/walks_hair.png").is_file() and rows["kl"]["steps"] == 1
    missing = rows["style"]["not_computed"]
    assert missing["samples, sean"] == "SEAN has none" and "no mapping network" in missing["samples, cnf"]


def test_what_is_no_run(runs: Path, tmp_path: Path, capsys: Any) -> None:
    for words, message in (
        ([f"full={runs}"], "full: expected a run folder"),
        (
            [f"full={runs / 'full'}", "--tasks", "walks"],
            "tasks: expected some of reconstruction, transfer, samples, got walks",
        ),
    ):
        with pytest.raises(SystemExit):
            run_harmonized_quality.main([*words, "--out", str(tmp_path / "x.json")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


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
