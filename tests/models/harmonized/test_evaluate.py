"""`mixsyn-fast evaluate harmonized`: what every score is of, models beside each other, what cannot be computed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACE_CLASSES, Item, RegionDataset
from mixsyn_fast.models.data.drawn.faces import draw_face
from mixsyn_fast.models.harmonized.evaluate import BY_FLOW, OURS, WITHOUT, Judge, Options, open_models, trained_at
from mixsyn_fast.models.harmonized.mapping import CodeDistribution
from mixsyn_fast.models.harmonized.model import Harmonized
from mixsyn_fast.models.metrics import LPIPS, class_diversity, psnr
from mixsyn_fast.models.metrics.harmony import HarmonyClassifier, HarmonyConfig, harmony_score, save_classifier
from mixsyn_fast.models.metrics.table import Tools
from mixsyn_fast.models.pictures.files import read_image, save_image, save_labels
from mixsyn_fast.models.pictures.options import drawn_source
from mixsyn_fast.models.training import load_trained
from mixsyn_fast.models.training.command import run as train
from torch import nn

from mixsyn_fast import cli
from tests.models.harmonized.small import GROUPS, small_model

pytest.importorskip("safetensors", reason="safetensors is not installed")


@pytest.fixture(scope="module")
def model() -> Harmonized:
    return small_model(FACE_CLASSES, labels=draw_face(3, 64)[1])


@pytest.fixture(scope="module")
def items(model: Harmonized) -> list[Item]:
    dataset = RegionDataset(drawn_source(model.classes, model.size, 4), model.size)
    return [dataset[i] for i in range(4)]


@pytest.fixture(scope="module")
def classifier() -> HarmonyClassifier:
    torch.manual_seed(1)
    return HarmonyClassifier(HarmonyConfig(width=4)).eval().requires_grad_(False)


@pytest.fixture
def tools(random_lpips: LPIPS, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setattr("mixsyn_fast.models.metrics.table.TOOLS", {"lpips_alex": lambda file: random_lpips})
    return Tools(["psnr", "lpips_alex", "diversity"])


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_every_score_is_of_what_it_says(
    model: Harmonized, items: list[Item], tools: Tools, classifier: HarmonyClassifier, random_lpips: LPIPS, tmp_path: Path
) -> None:
    models = {OURS: model, WITHOUT: model.without_attention()}
    judge = Judge(models, items, tools, classifier, GROUPS, styles=2, seed=5, images=tmp_path)
    found = judge.reports()
    assert list(found) == [f"{what}{group}" for what, group in (("reconstruction", ""), ("transfer of ", "hair"))] + [
        "transfer of skin", "samples of hair", "samples of skin",
    ]  # fmt: skip
    assert all(set(reports) == {OURS, WITHOUT, BY_FLOW} for reports in found.values())
    made = model.reconstruct(items[2].image, items[2].labels).image
    score = found["reconstruction"][OURS].scores["psnr"]
    assert score.names[2] == items[2].name
    assert score.values[2] == pytest.approx(float(psnr(_tensor(made), _tensor(items[2].image))))
    target, reference = items[1], items[3]  # the second pair: halves of the set
    for way, each in models.items():
        image = each.transfer(target.image, target.labels, reference.image, reference.labels, ("skin", "nose")).image
        mask = torch.from_numpy(np.isin(target.labels, (1, 2)))[None, None].float()
        score = found["transfer of skin"][way].scores["harmony"]
        assert score.names[1] == f"{target.name}_{reference.name}" and len(score.values) == 2
        assert score.values[1] == pytest.approx(float(harmony_score(classifier, _tensor(image), mask)), abs=1e-6)
        assert np.array_equal(read_image(tmp_path / "skin" / way / f"{target.name}_{reference.name}.png"), image)
    assert len(judge.harmony_of_targets["skin"]) == 2
    seed = int(np.random.SeedSequence((5, 0)).generate_state(1)[0])
    for by, way in (("mapping", OURS), ("flow", BY_FLOW)):
        drawn = model.sample(items[0].image, items[0].labels, ("skin", "nose"), 2, seed, by=by)  # type: ignore[arg-type]
        outputs = torch.cat([_tensor(each.image) for each in drawn])
        inside = torch.from_numpy(np.isin(items[0].labels, (1, 2)).astype(np.int64))
        expected = class_diversity(random_lpips, outputs, inside, 1)
        report = found["samples of skin"][way]
        assert report.counts["pictures"] == 4
        assert report.scores["mcsd"].values[0] == pytest.approx(expected.specific)
        assert report.scores["mocd"].values[0] == pytest.approx(expected.other)
    assert found["reconstruction"][BY_FLOW].scores == found["samples of skin"][WITHOUT].scores == {}


def test_pairs_that_lack_the_group_are_left_out(model: Harmonized, items: list[Item], tools: Tools) -> None:
    bald = [dataclasses.replace(item, labels=np.where(item.labels == 13, 1, item.labels)) for item in items[:1]]
    judge = Judge({OURS: model}, [*bald, *items[1:]], tools, None, GROUPS, styles=2)
    assert judge.transfers("hair")[OURS].counts == {"pictures": 1}
    assert judge.samples(OURS, model, "hair", "mapping").count == 3


# ------------------------------------------------------------------------------------------------------------ the command


class Means(nn.Module):
    """Stands for the feature network of FID."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model: Harmonized, classifier: HarmonyClassifier) -> Path:
    """Model, one without groups, one of other regions, classifier, features."""
    folder = tmp_path_factory.mktemp("files")
    model.save(folder / "model.safetensors")
    small_model(FACE_CLASSES, groups={}, labels=draw_face(3, 64)[1], attention=False).save(folder / "bare.safetensors")
    small_model().save(folder / "other.safetensors")
    save_classifier(classifier, folder / "harmony.safetensors")
    torch.jit.save(torch.jit.script(Means()), str(folder / "means.pt"))
    return folder


@pytest.fixture
def words(files: Path, tmp_path: Path, alexnet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of the command, on a model file and four drawn pictures."""
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    monkeypatch.setattr("mixsyn_fast.models.pictures.sheets._SIDE", 64)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    given = {"--model": tmp_path / "model.safetensors", "--kind": "procedural_faces", "--limit": 4, "--styles": 2}
    given |= {"--lpips": alexnet_files[0], "--out": tmp_path / "out"}
    return {name: str(value) for name, value in given.items()}


def _run(words: dict[str, str], *more: str) -> int:
    return cli.main(["evaluate", "harmonized", *(word for pair in words.items() for word in pair), *more])


def test_the_report(words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words |= {"--inception": str(tmp_path / "means.pt"), "--harmony": str(tmp_path / "harmony.safetensors")}
    words["--compare"] = f"bare={tmp_path / 'bare.safetensors'}"
    assert _run(words, "--images") == 0
    printed = capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written - {"scores.png"} == {"report.json", "report.md", "transfers.png", "images"}
    assert sorted(path.name for path in (tmp_path / "out/images/hair").iterdir()) == ["bare", OURS, WITHOUT]
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(found["tasks"]) == [
        "reconstruction", "transfer of hair", "transfer of skin", "samples of hair", "samples of skin",
    ]  # fmt: skip
    assert set(found["not_computed"]) - {"plots"} == {"samples, bare"} and found["problems"] == []
    assert "no mapping network: the model has none, stage 2" in found["not_computed"]["samples, bare"]
    for name in (OURS, WITHOUT, "bare"):
        first, moved = found["tasks"]["reconstruction"][name], found["tasks"]["transfer of skin"][name]
        assert set(first["metrics"]) == {"psnr", "ssim", "lpips_alex"} and set(moved["metrics"]) == {"harmony"}
        assert first["fid"]["first_count"] == first["fid"]["second_count"] == 4
        assert moved["fid"]["first_count"] == 2 and moved["fid"]["second_count"] == 4
        for entry in (*first["metrics"].values(), *moved["metrics"].values()):
            assert entry["low"] <= entry["mean"] <= entry["high"] and entry["count"] == len(entry["pictures"])
    drawn = found["tasks"]["samples of hair"]
    assert set(drawn[OURS]["metrics"]) == set(drawn[BY_FLOW]["metrics"]) == {"mcsd", "mocd"} and not drawn["bare"]["metrics"]
    assert drawn[BY_FLOW]["fid"]["first_count"] == 2 * drawn[BY_FLOW]["counts"]["pictures"]
    assert set(found["details"]["harmony score of the targets themselves"]) == {"hair", "skin"}
    assert "| transfer of skin | Harmony score of the region" in printed


def test_references_of_another_set_and_one_task(words: dict[str, str], tmp_path: Path) -> None:
    """Table 3: every picture takes the style of one of the other set; nothing else is judged, nor said to be missing."""
    folder = tmp_path / "looks"
    for i, name in enumerate(("x", "y", "z")):
        image, labels = draw_face(20 + i, 64)
        save_image(folder / "val" / "images" / f"{name}.png", image)
        save_labels(folder / "val" / "labels" / f"{name}.png", labels, 19)
    (folder / "classes.txt").write_text("\n".join(FACE_CLASSES))
    (tmp_path / "config.json").write_text('{"data": {"size": [32]}}')
    words |= {"--references": str(folder), "--references-kind": "folder", "--tasks": "transfer"}
    words |= {"--harmony": str(tmp_path / "harmony.safetensors")}
    assert _run(words, "--images") == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(found["tasks"]) == ["transfer of hair", "transfer of skin"]
    assert found["tasks"]["transfer of skin"][OURS]["metrics"]["harmony"]["count"] == 3
    names = [path.stem.rpartition("_")[2] for path in sorted((tmp_path / "out/images/skin/ours").iterdir())]
    assert names == ["x", "y", "z"] and found["settings"]["references"] == str(folder)
    assert "targets." in found["notes"][0] and not [name for name in found["not_computed"] if "sample" in name]
    assert trained_at(str(tmp_path), (32, 32)) == trained_at(words["--harmony"], (64, 64)) == ""
    assert trained_at(str(tmp_path), (64, 64)).startswith(", trained at 32 x 32, not at the pictures' size")


def test_flows_of_every_model_stand_beside_each_other(model: Harmonized, items: list[Item], tools: Tools) -> None:
    """Table 5: mapping networks, N(0, I) and flows of several models, whichever of them has what."""
    flowing = Harmonized(model.generator, model.classes, groups=model.groups, flows=model.flows)
    drawn = CodeDistribution(model.config.style_length)
    kl = Harmonized(model.generator, model.classes, groups=model.groups, distribution=drawn)
    judge = Judge({OURS: model, "cnf": flowing, "kl": kl}, items[:2], tools, None, GROUPS, styles=2, tasks=("samples",))
    found = judge.reports()
    assert list(found) == ["samples of hair", "samples of skin"]
    assert list(found["samples of skin"]) == [OURS, "cnf", "kl", BY_FLOW, f"cnf {BY_FLOW}"]
    counts = {name: report.counts["pictures"] for name, report in found["samples of skin"].items()}
    assert counts == {OURS: 2, "cnf": 0, "kl": 2, BY_FLOW: 2, f"cnf {BY_FLOW}": 2}
    assert set(judge.without_codes()) == {"samples, cnf"}
    seed = int(np.random.SeedSequence((0, 1)).generate_state(1)[0])
    expected = kl.sample(items[1].image, items[1].labels, ("skin", "nose"), 2, seed)
    rows = [model.classes.index(name) for name in ("skin", "nose")]
    assert abs(float(expected[0].codes[rows].std()) - 1) < 0.3  # of N(0, I)


def test_what_cannot_be_computed_is_named(words: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_weights", lambda kind: None)
    del words["--lpips"]
    words |= {"--model": str(tmp_path / "bare.safetensors"), "--limit": "1"}
    assert _run(words) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    lacking = {"lpips_alex", "mcsd, mocd", "fid", "harmony", "transfer of hair", "transfer of skin"}
    assert set(found["not_computed"]) - {"plots"} == {*lacking, "samples of hair", "samples of skin", "samples, ours"}
    assert "mixsyn-fast train harmony" in found["not_computed"]["harmony"]
    assert found["tasks"]["reconstruction"][OURS]["metrics"]["psnr"]["count"] == 1
    assert not (tmp_path / "out" / "transfers.png").exists()


def test_runs_stand_beside_each_other(tmp_path: Path, items: list[Item]) -> None:
    """A run of all stages and one of SEAN: loaded with their parts, averaged weights, the groups of the run."""
    small = [
        "--generator.ngf",
        "2",
        "--generator.hidden",
        "4",
        "--generator.style-length",
        "6",
        "--vgg",
        "0",
        "--size",
        "64",
    ]
    small += ["--generator.encoder-width", "2", "--discriminator.ndf", "2", "--batch-size", "2", "--workers", "0"]
    small += ["--kind", "procedural_faces", "--count", "4", "--validation", "none", "--init-gain", "0.3", "--device", "cpu"]
    stages = ["--reconstruction-steps", "1", "--mapping-steps", "1", "--flow-steps", "1", "--flow-solver", "fixed"]
    stages += ["--mapping.width", "4"]
    stages += ["--flow.width", "4", "--groups", "hair=hair", "--groups", "face=skin,nose", "--steps", "3"]
    assert train(["harmonized", *small, *stages, "--out", str(tmp_path / "all")]) == 0
    assert train(["sean", *small, "--steps", "1", "--out", str(tmp_path / "sean")]) == 0
    ours, sean = (Harmonized.load(tmp_path / name) for name in ("all", "sean"))
    assert ours.groups == {"hair": ("hair",), "face": ("skin", "nose")} and set(ours.mapping) == set(ours.flows) == {
        "hair",
        "face",
    }
    assert ours.attention is not None and sean.attention is None and sean.groups == {}
    trained = load_trained(tmp_path / "all")
    regions = ours._regions(items[0].labels)
    image = _tensor(items[0].image)
    expected = trained.networks["generator"].encode(image, regions)[0]  # type: ignore[operator]
    assert torch.allclose(ours.encode(items[0].image, items[0].labels), expected, atol=1e-5)
    models = open_models(Options(model=str(tmp_path / "all"), compare=(f"sean={tmp_path / 'sean'}",)))
    assert list(models) == [OURS, WITHOUT, "sean"]
    found = Judge(models, items[1:3], Tools(["psnr"]), None, ours.groups, styles=2, tasks=("transfer", "samples")).reports()
    assert set(found["transfer of face"]) == {OURS, WITHOUT, "sean", BY_FLOW}
    assert found["samples of hair"]["sean"].counts == {"pictures": 0} != found["samples of hair"][OURS].counts
    with pytest.raises(
        ValueError, match=r"spade: expected a run of `mixsyn-fast train harmonized`, or sean, got: a run of model 'clvae'"
    ):
        (tmp_path / "all").rename(tmp_path / "spade")
        config = json.loads((tmp_path / "spade" / "config.json").read_text())
        (tmp_path / "spade" / "config.json").write_text(json.dumps({**config, "model": "clvae"}))
        Harmonized.load(tmp_path / "spade")


def test_models_that_do_not_belong_beside_each_other(files: Path) -> None:
    for given, message in (
        ("x=other.safetensors", "compare: x: expected the model's regions at 64 x 64 .*, got wall, skin"),
        ("ours=bare.safetensors", "compare: expected other names, each once, got ours"),
    ):
        name, _, file = given.partition("=")
        with pytest.raises(ValueError, match=message):
            open_models(Options(model=str(files / "model.safetensors"), compare=(f"{name}={files / file}",)))
    twice = ("x=bare.safetensors", "x by flow=bare.safetensors")
    with pytest.raises(ValueError, match="compare: expected other names, each once, got x by flow"):
        open_models(Options(model=str(files / "model.safetensors"), compare=twice))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"--styles": "1"}, "styles: expected at least 2, got 1"),
        ({"--tasks": ""}, "tasks: expected some of reconstruction, transfer, samples, got none"),
        ({"--references": "nowhere"}, "nowhere"),
        ({"--limit": "0"}, "limit: expected at least 1, got 0"),
        ({"--kind": "procedural_facades"}, "data: expected the model's 19 classes, got 12 of procedural_facades"),
        ({"--harmony": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"--compare": "bare"}, "compare: expected NAME=MODEL, got 'bare'"),
        ({"--out": "{model}"}, "out: expected a folder, got the file"),
    ],
)
def test_bad_input_is_one_message_before_any_work(
    changes: dict[str, str], message: str, words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: word.format(model=tmp_path / "model.safetensors") for name, word in (words | changes).items()}
    assert _run(given) == 2
    said = capsys.readouterr()
    assert message in said.err.strip().splitlines()[-1] and said.out == ""
    assert not (tmp_path / "out").exists()
