"""The script that judges trained StyleFusions: its rows are what the evaluation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mixsyn_fast.models.stylefusion.model import StyleFusion
from mixsyn_fast.models.stylefusion.networks import make_net
from mixsyn_fast.models.stylefusion.segments import find_segments
from mixsyn_fast.models.stylefusion.trees import RegionTree
from mixsyn_fast.models.stylegan2 import Config, Generator

from benchmarks import run_stylefusion_quality as quality
from benchmarks import schema, tables, timing

pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")


@pytest.fixture(scope="module")
def fusion() -> StyleFusion:
    torch.manual_seed(0)
    generator = Generator(Config(size=32, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8))
    generator.eval().requires_grad_(False)
    segments = find_segments(generator, clusters=3, images=4, pixels=100, side=16, truncation=1.0)
    net = make_net(generator, 16, 2, "b", True)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=100.0 if p.dim() == 2 else 30.0)
    named = segments.named({0: "wall", 1: "sky", 2: "sky"})
    return StyleFusion(generator, RegionTree({"all": ("wall", "sky")}, truncation=1.0), {"all": net}, named)


@pytest.fixture(scope="module")
def model(fusion: StyleFusion, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    fusion.save(path)
    return str(path)


def test_rows_are_what_the_evaluation_says(
    model: str, fusion: StyleFusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fusion.save(tmp_path / "again.safetensors")
    words = [f"a={model}", f"b={model}", "--compare", f"b:plain={tmp_path}/again.safetensors", "--region", "b=sky"]
    words += ["--count", "3", "--images", "4"]
    assert quality.main([*words, "--reports", str(tmp_path / "r"), "--out", str(tmp_path / "quality.json")]) == 0
    result = schema.load(tmp_path / "quality.json")
    rows: dict[str, dict[str, Any]] = {row["case"]: row for row in result["rows"]}
    ways = ["FusionNets", "correlation", "blend"]
    assert list(rows) == [
        f"quality/{name}" for name in (*(f"a/{w}" for w in ways), "b/FusionNets", "b/plain", "b/correlation", "b/blend")
    ]
    own = rows["quality/a/FusionNets"]
    regions = own["facts"]["regions"]
    assert list(regions) == ["wall", "sky"] and regions != rows["quality/a/blend"]["facts"]["regions"]
    assert rows["quality/b/plain"]["facts"]["regions"] == rows["quality/b/FusionNets"]["facts"]["regions"]
    assert list(rows["quality/b/plain"]["facts"]["regions"]) == ["sky"]
    heat = fusion.heatmap("sky", 3)
    locality = own["facts"]["regions"]["sky"]["locality"]
    assert locality["mean"] == pytest.approx(heat.shares.mean(), abs=1e-6) and locality["count"] == 3
    assert locality["low"] < locality["mean"] < locality["high"]
    assert own["facts"]["not_computed"] and own["settings"]["samples"] == 3
    assert (tmp_path / "r" / "b" / "heat.png").is_file()
    assert str(tmp_path) not in (tmp_path / "quality.json").read_text() and str(Path(model).parent) not in str(result)
    assert result["command"].endswith("b=runs/model.safetensors --region b=sky --compare b:plain=runs/again.safetensors")
    places = [rows[f"quality/b/{way}"]["settings"]["model"] for way in ("FusionNets", "plain", "blend")]
    assert places == ["runs/model.safetensors", "runs/again.safetensors", "runs/model.safetensors"]
    assert "quality/b/plain" in tables.render(result) and "quality/b/plain" in capsys.readouterr().out


def test_what_a_run_says_of_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXSYN_FAST_DATA", raising=False)
    (tmp_path / "config.json").write_text('{"options": {"steps": 7}, "task": {"generator": "/home/me/gan", "hidden": 8}}')
    assert quality.training(str(tmp_path)) == {"steps": 7, "task": {"generator": "runs/gan", "hidden": 8}}
    assert quality.training(str(tmp_path / "file.safetensors")) == {}
    assert timing.model_place("runs/a/b") == "runs/a/b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "models: expected NAME=FILE, got 'a'"),
        (["a=nowhere"], "models: a: expected a file or a run folder, got 'nowhere'"),
        (["a=MODEL", "a=MODEL"], "models: expected every name once, got a again"),
        (["a=MODEL", "--compare", "b:x=MODEL"], "compare: expected NAME:WAY=FILE with NAME among a, got 'b:x'"),
        (["a=MODEL", "--region", "b=sky"], "region: expected NAME=NODE,NODE once a model of a, got b=sky"),
        (["a=MODEL", "--region", "a=nose"], "region: unknown node 'nose'"),
        (["a=MODEL", "--compare", "a:blend=MODEL"], "compare: expected other names"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        quality.main([*(word.replace("MODEL", model) for word in words), "--out", str(tmp_path / "q.json")])
    assert message in capsys.readouterr().err and not (tmp_path / "q.json").exists()
