"""The script that trains and judges variants of MixSyn: every variant's words are options, two of them run, texture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from mixsyn_fast.models import settings
from mixsyn_fast.models.mixsyn.evaluate import Judge
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.training import command
from mixsyn_fast.models.training.registry import trainable

from benchmarks import run_mixsyn_quality as quality
from benchmarks import schema

TINY = (
    "--kind procedural_facades --count 4 --size 32 --batch-size 2 --workers 0 --log-every 1 --amp none --crop center "
    "--data= --structure.width 3 --structure.code-channels 4 --structure.decoder-width 8 --structure.decoder-smallest 4 "
    "--style.code-length 6 --style.encoder-width 3 --style.encoder-largest 6 --style.width 4 --style.largest 8 "
    "--style.hidden 4 --structure-discriminator.width 4 --structure-discriminator.largest 8 "
    "--image-discriminator.width 4 --image-discriminator.largest 8"
).split()


@pytest.mark.parametrize("kind", quality.SETS)
def test_every_variant_is_a_training_that_differs_by_its_change(kind: str) -> None:
    args = quality.parse([kind, "--data", "d d", "--steps", "7"])
    found = {}
    for name, change in args.variants.items():
        words = quality.words_of(change, args, Path("out"))
        given, _ = settings.read(command.options_of("mixsyn"), words, prog="x", fixed=trainable("mixsyn").decided)
        assert (given.data.data, given.options.steps, given.options.seed) == ("d d", 7, 0)
        found[name] = settings.dumps(given)
    assert len(set(found.values())) == len(found)


def test_variants_are_trained_judged_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "q.json", tmp_path / "s.png"
    words = ["causes", "--only", "^(plain|frozen)$", "--data", "", "--kind", "procedural_facades", "--limit", "2"]
    words += ["--steps", "1", "--runs", str(tmp_path), "--out", str(out), "--sheet", str(sheet), "--", *TINY]
    assert quality.main(words) == 0
    result = schema.load(out)
    assert [row["case"] for row in result["rows"]] == ["quality/plain", "quality/frozen"] and sheet.is_file()
    facts = result["rows"][0]["facts"]
    assert (
        facts["steps"] == 1 and facts["scores"]["known"]["ssim"] < 1 and 0 <= facts["scores"]["structure"]["mean_iou"] <= 1
    )
    assert (
        0 < facts["untrained_spread"] < 0.1 and facts["untrained_spread"] == result["rows"][1]["facts"]["untrained_spread"]
    )
    assert abs(facts["loss_below_chance"]) < 0.1 and facts["judged"][0]["image_real_logit_std"] < 0.1
    printed = capsys.readouterr().out
    assert "written" in printed and (head := quality.table_of(result["rows"])) in printed
    first, _, *rows = head.splitlines()
    assert first.startswith(
        "| | spread untrained | spread last | gradient ratio first | gradient ratio last | below chance |"
    )
    assert "FID" not in first and "LPIPS" not in first  # nobody asked for them
    assert [row.split()[1] for row in rows] == ["plain", "frozen"] and len({row.count("|") for row in rows}) == 1
    assert json.loads((tmp_path / "frozen" / "config.json").read_text())["options"]["init_from"].endswith("plain")
    MixSyn.load(tmp_path / "plain").save(file := tmp_path / "weights.safetensors")
    of_file = ["judge", f"file={file}", "--data", "", "--kind", "procedural_facades", "--limit", "2", "--out", str(out)]
    assert quality.main(of_file) == 0
    (row,) = schema.load(out)["rows"]
    assert row["facts"]["scores"] == facts["scores"] and "judged" not in row["facts"]  # a file has no log
    assert "| file |" in capsys.readouterr().out and "judge file=weights.safetensors" in schema.load(out)["command"]
    again = ["judge", f"plain={tmp_path / 'plain'}", *words[3:9], "--out", str(out)]
    with pytest.raises(FileNotFoundError, match="beside: nowhere: no such run folder"):
        quality.main([*again, "--beside", "x=nowhere"])


def test_a_variant_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(quality, "train", lambda change, args, out: tried.append(out.name) or out.name != "plain")  # type: ignore[func-returns-value]
    row = {"case": "quality/frozen", "settings": {}, "facts": {}}
    monkeypatch.setattr(quality, "judged", lambda *_: (row, []))
    monkeypatch.setattr(quality, "save", lambda *_: None)
    monkeypatch.setattr(quality, "table_of", lambda rows: f"{len(rows)} rows")
    words = [
        "causes",
        "--only",
        "^(plain|frozen)$",
        "--data",
        "d",
        "--runs",
        str(tmp_path),
        "--out",
        str(tmp_path / "q.json"),
    ]
    assert quality.main(words) == 1
    printed = capsys.readouterr()
    assert tried == ["plain", "frozen"] and "1 rows" in printed.out
    assert "training failed, the same command goes on: plain" in printed.err


def test_a_table_has_the_columns_that_somebody_has() -> None:
    def row(name: str, ratio: float | None, iou: dict[str, float | None]) -> dict[str, Any]:
        line = {} if ratio is None else {"image_gan_gradient_ratio": ratio}
        facts = {
            "judged": [line, {"image_real_logit_std": 0.5}],
            "untrained_spread": 6e-4,
            "loss_below_chance": math.nan,
            "scores": {"known": {"ssim": 0.25}, "structure": {"mean_iou": 0.5}, "iou": iou},
            "texture": {"known": 7.0, "composed": 6.0, "picture": 20.0},
            "step_seconds": 2.0,
        }
        return {"case": f"quality/{name}", "facts": facts}

    lines = quality.table_of([row("a", 4e-4, {"wall": 0.9, "door": 0.1}), row("b", None, {"wall": None})]).splitlines()
    assert lines[0] == (
        "| | spread untrained | spread last | gradient ratio first | gradient ratio last | known SSIM | mean IoU | "
        "worst IoU | texture known | texture composed | s a step |"
    )
    assert lines[2] == "| a | 0.0006 | 0.5 | 0.0004 | 0.0004 | 0.25 | 0.5 | 0.1 | 7 | 6 | 2 |"
    assert lines[3] == "| b | 0.0006 | 0.5 | - | - | 0.25 | 0.5 | - | 7 | 6 | 2 |"
    judged = row("a", 1.0, {})
    judged["facts"]["scores"]["beside: SEAN"] = {"ssim": 0.4, "fid": 147.0}
    judged["facts"]["scores"]["known"]["lpips_vgg"] = 0.45
    model = cast(MixSyn, SimpleNamespace(classes=("a", "b")))
    assert "lpips_vgg" in Judge(model, lpips=lambda a, b: (a - b).mean((1, 2, 3))).metrics  # as evaluate calls it
    head, _, own, sean = quality.table_of([judged]).splitlines()
    assert "| known SSIM | known LPIPS | known FID | mean IoU |" in head and "| 0.25 | 0.45 | - |" in own
    assert sean == "| SEAN | - | - | - | - | 0.4 | - | 147 | - | - | - | - |"


def test_texture_and_chance() -> None:
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    images = torch.stack((board, torch.zeros(8, 8)))[:, None].expand(2, 3, 8, 8)
    inside = torch.ones(2, 8, 8, dtype=torch.bool)
    assert quality.texture(images[:1], inside[:1]) == pytest.approx(4 * 255)
    assert quality.texture(images[1:], inside[1:]) == 0 and math.isnan(quality.texture(images, ~inside))
    assert quality.chance({"beta": 0.6, "eta": 0.5}) == pytest.approx(1.2 * math.log(2))


BAD = (
    (["judge", "--data", "d"], "expected run folders"),
    (["causes", "a=b", "--data", "d"], "judge alone"),
    (["judge", "a=nowhere", "--data", "d"], "expected a run folder or a file of weights, got 'nowhere'"),
    (["causes", "--only", "nothing", "--data", "d"], "no variant matches 'nothing'"),
)


def test_bad_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in BAD:
        with pytest.raises(SystemExit):
            quality.main(words)
        assert said in capsys.readouterr().err
