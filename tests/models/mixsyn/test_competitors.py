"""SPADE and SEAN beside MixSyn: what is given to them, transfers of segments, and the commands that show and judge them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACADE_CLASSES, draw_facade
from mixsyn_fast.models.mixsyn import competitors
from mixsyn_fast.models.mixsyn.config import Config, StructureConfig, StyleConfig
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.mixsyn.structure import StructureGenerator
from mixsyn_fast.models.mixsyn.style import StyleGenerator
from mixsyn_fast.models.pictures.picture import Picture
from mixsyn_fast.models.training.trained import Trained

from mixsyn_fast.cli import main

pytest.importorskip("PIL", reason="pillow is not installed")
WORDS = (
    "--kind procedural_facades --count 2 --size 32 --batch-size 2 --workers 0 --steps 1 --generator.ngf 2 --init-gain 1 "
    "--generator.hidden 4 --discriminator.ndf 2 --discriminator.n-layers 2 --vgg 0 --validation none --validate-every 0 "
    "--sheet-every 0"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a run of SEAN and of SPADE, of one step each."""
    folder = tmp_path_factory.mktemp("runs")
    extra = {"sean": ["--generator.style-length", "4", "--generator.encoder-width", "2"], "spade": []}
    for name, words in extra.items():
        assert main(["train", name, *WORDS, *words, "--out", str(folder / name)]) == 0
    return {name: str(folder / name) for name in extra}


@pytest.fixture(scope="module")
def opened(runs: dict[str, str]) -> dict[str, Trained]:
    return competitors.open_runs([f"a={runs['sean']}", f"b={runs['spade']}"], FACADE_CLASSES, (32, 32))


def drawn(seed: int) -> Picture:
    image, labels = draw_facade(seed, 32)
    return Picture(image, labels.astype(np.int32), f"p{seed}")


def test_pairs_and_transfers(opened: dict[str, Trained]) -> None:
    sean, spade = opened["a"], opened["b"]
    one, two = drawn(3), drawn(5)
    mixed = competitors.pairs(one, two)
    assert [(np.array_equal(p.labels, one.labels), np.array_equal(p.image, one.image)) for p in mixed.values()] == [
        (True, True),
        (False, True),
        (True, False),
        (False, False),
    ]
    shared = Picture(two.image, one.labels, "x")
    assert np.array_equal(competitors.paint(spade, one), competitors.paint(spade, shared)), "labels alone"
    assert not np.array_equal(competitors.paint(sean, one), competitors.paint(sean, shared)), "styles too"
    assert np.array_equal(competitors.paint(sean, one), competitors.paint(sean, one)), "the same noise"
    there = next(name for k, name in enumerate(FACADE_CLASSES) if (one.labels == k).any() and (two.labels == k).any())
    without = Picture(one.image, np.zeros_like(one.labels), "bare")
    steps = competitors.sequential(sean, one, [(there, two), (there, one)])
    generator = sean.networks["generator"]
    image, regions = competitors._given(sean, one)
    with torch.no_grad():
        codes = generator.encode(image, regions)  # type: ignore[operator]
        at = FACADE_CLASSES.index(there)
        codes[0, at] = generator.encode(*competitors._given(sean, two))[0, at]  # type: ignore[operator]
        torch.manual_seed(0)
        expected = competitors._drawn(generator(regions, style_codes=codes))
    assert np.array_equal(steps[0], expected) and not np.array_equal(steps[1], steps[0])  # type: ignore[arg-type]
    assert competitors.sequential(sean, without, [("door", one)]) == [None]
    with pytest.raises(ValueError, match="expected a run of sean, which has styles of regions, got spade"):
        competitors.sequential(spade, one, [])
    rows = competitors.rows_of(opened, one, two, one, [(there, two)])
    assert len(rows["a"]) == 5 and [what for what, _ in rows["b"]] == ["copy-paste mask", "our mask"]


def test_runs_that_do_not_fit_are_named(runs: dict[str, str], tmp_path: Path) -> None:
    bad = {
        "a": "beside: expected NAME=RUN, got 'a'",
        f"a={tmp_path / 'none'}": "no such run folder",
    }
    for given, message in bad.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            competitors.open_runs([given], FACADE_CLASSES, (32, 32))
    spade = f"a={runs['spade']}"
    with pytest.raises(ValueError, match="expected the model's 11 classes"):
        competitors.open_runs([spade], FACADE_CLASSES[:-1], (32, 32))
    with pytest.raises(ValueError, match="expected images of 64 x 64 pixels, got 32 x 32"):
        competitors.open_runs([spade], FACADE_CLASSES, (64, 64))
    with pytest.raises(ValueError, match="expected every name once, got a again"):
        competitors.open_runs([spade, spade], FACADE_CLASSES, (32, 32))


def test_commands_show_and_judge_them(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mixsyn_fast.models.pictures.sheets._SIDE", 64)
    structure = StructureConfig(width=2, code_channels=4, code_size=8, decoder_width=8, decoder_smallest=4)
    style = StyleConfig(4, 2, 4, 2, 4, 8, 8, 4)
    config = Config(classes=FACADE_CLASSES, image_size=(32, 32), structure=structure, style=style)
    MixSyn(StructureGenerator(config), StyleGenerator(config), config).save("m.safetensors")
    beside = ["--model", "m.safetensors", "--beside", f"SEAN={runs['sean']}", "--beside", f"SPADE={runs['spade']}"]
    for verb in ("compose", "edit"):
        assert main(["mixsyn", verb, *beside, "--compare", "--sheet", f"{verb}.png"]) == 0
    assert main(["mixsyn", "compose", *beside[:2], "--compare", "--sheet", "bare.png"]) == 0
    assert Path("compose.png").stat().st_size > Path("bare.png").stat().st_size
    assert main(["mixsyn", "compose", *beside, "--sheet", "s.png"]) == 2
    assert "--beside: needs --compare" in capsys.readouterr().err
    assert main(["mixsyn", "evaluate", *beside, "--limit", "2", "--json", "t.json"]) == 0
    rows = json.loads(Path("t.json").read_text())["rows"]
    assert [rows[f"beside: {name}"]["title"] for name in ("SEAN", "SPADE")] == ["SEAN", "SPADE"]
    assert 0 < rows["beside: SEAN"]["metrics"]["rmse"]["mean"] < 1
    assert "| SEAN |" in capsys.readouterr().out
