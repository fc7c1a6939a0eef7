"""`mixsyn-fast clvae reconstruct | sample | stylize | edit`: what they write, what they refuse; refusing leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.clvae.codes import ImageCodes
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.edit import change_of, split_step
from mixsyn_fast.models.clvae.model import CLVAE, Made
from mixsyn_fast.models.clvae.networks import Encoder, Generator
from mixsyn_fast.models.clvae.task import Config, fitted
from mixsyn_fast.models.data import FACADE_CLASSES, draw_facade
from mixsyn_fast.models.pictures.files import save_image, save_labels
from mixsyn_fast.models.pictures.picture import Picture, fit, read_picture

from mixsyn_fast import cli

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
DOOR, WINDOW, FACADE = (FACADE_CLASSES.index(name) for name in ("door", "window", "facade"))


def _tiny(classes: tuple[str, ...]) -> CLVAE:
    torch.manual_seed(0)
    generator = GeneratorConfig(label_nc=len(classes), ngf=4, image_size=64, hidden=8, z_dim=8)
    config = fitted(Config(generator=generator, encoder=EncoderConfig(ndf=4, z_dim=8)), classes, (64, 64), False)
    networks = Generator(config.generator), Encoder(config.encoder)
    with torch.no_grad():
        networks[0].conv_img.weight.mul_(20)  # so that codes show in grey levels
    return CLVAE(*networks, config, classes)


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of the images' own size, 64 pixels: compressing large sheets takes most of the time."""
    monkeypatch.setattr("mixsyn_fast.models.pictures.sheets._SIDE", 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    _tiny(tuple(FACADE_CLASSES)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def clvae(model: str) -> CLVAE:
    return CLVAE.load(model)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures a, b, d with label maps beside them, d of another size; e without a door; f without a label map."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, seed, size in (("a", 3, 64), ("b", 5, 64), ("d", 11, (50, 40)), ("e", 13, 64), ("f", 17, 64)):
        image, labels = draw_facade(seed, size)
        if name == "e":
            labels = np.where(labels == DOOR, FACADE, labels)
        save_image(folder / f"{name}.png", image)
        if name != "f":
            save_labels(folder / f"{name}_labels.png", labels, 12)
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with these pictures, where the command runs."""
    folder = Path(shutil.copytree(drawn, tmp_path / "photos"))
    monkeypatch.chdir(folder)
    return folder


def _read(name: str) -> Picture:
    return fit(read_picture(f"{name}.png", classes=FACADE_CLASSES, kind="folder"), (64, 64))


def _pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    picture = _read(name)
    return picture.image, picture.labels


def _pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _run(verb: str, model: str, *words: str) -> int:
    return cli.main(["clvae", verb, "--model", model, "--kind", "folder", *words])


def _same(a: ImageCodes, b: ImageCodes) -> bool:
    return torch.equal(a.z, b.z) and torch.equal(a.classes, b.classes)


# ------------------------------------------------------------------------------------------------------------ good input


@pytest.mark.parametrize("verb", ["reconstruct", "sample", "stylize", "edit"])
def test_without_pictures_every_verb_draws_them(
    verb: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["clvae", verb, "--model", model, "--sheet", "s.png"]) == 0
    assert _pixels("s.png").shape[1] > 3 * 64
    out = {"reconstruct": "reconstructed", "sample": "samples", "stylize": "stylized", "edit": "edited.png"}[verb]
    assert sorted(os.listdir()) == sorted(["s.png", out])
    assert "written: s.png" in capsys.readouterr().out
    other = "other.png" if verb == "edit" else "other"
    assert cli.main(["clvae", verb, "--model", model, "--seed", "9", "--out", other]) == 0
    assert len(list(tmp_path.rglob("*.png"))) == {"reconstruct": 9, "sample": 13, "stylize": 7, "edit": 3}[verb]
    first, second = (sorted([Path(name), *Path(name).glob("*")])[-1] for name in (out, other))
    assert not np.array_equal(_pixels(first), _pixels(second))


def test_reconstruct(model: str, clvae: CLVAE, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image", "a.png", "--image", "d.png", "--out", "r", "--codes-out", "c", "--sheet", "deep/s.png"]
    assert _run("reconstruct", model, *words, "--json", "t.json") == 0
    found = json.loads(Path("t.json").read_text())
    assert (found["model"], found["size"], [row["name"] for row in found["pictures"]]) == (model, [64, 64], ["a", "d"])
    for name, row in zip("ad", found["pictures"], strict=True):
        image, labels = _pair(name)
        difference = _pixels(f"r/{name}.png").astype(float) - image
        assert row["mean_difference"] == pytest.approx(np.abs(difference).mean())
        assert row["psnr"] == pytest.approx(20 * np.log10(255 / np.sqrt((difference**2).mean())))
        assert row["classes"] == [FACADE_CLASSES[k] for k in np.unique(labels)]
    said = f"d: mean difference {row['mean_difference']:.1f} of 255 grey levels, PSNR {row['psnr']:.1f} dB; "
    assert said + f"{len(row['classes'])} classes" in capsys.readouterr().out
    assert sorted(os.listdir("r")) == ["a.png", "d.png"] and sorted(os.listdir("c")) == ["a.safetensors", "d.safetensors"]
    for name in "ad":
        made = clvae.reconstruct(*_pair(name))
        assert np.array_equal(_pixels(f"r/{name}.png"), made.image)
        assert _same(ImageCodes.load(f"c/{name}.safetensors"), made.codes)
    assert _pixels("deep/s.png").shape[0] > 2 * 64


def test_reconstruct_a_data_set(model: str, clvae: CLVAE, photos: Path, tmp_path: Path) -> None:
    for name in "abe":
        for part, file in (("images", f"{name}.png"), ("labels", f"{name}_labels.png")):
            target = tmp_path / "set" / part / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((photos / file).read_bytes())
    (tmp_path / "set" / "classes.txt").write_text("\n".join(FACADE_CLASSES))
    assert _run("reconstruct", model, "--data", str(tmp_path / "set"), "--limit", "2") == 0
    assert sorted(os.listdir("reconstructed")) == ["a.png", "b.png"]
    assert np.array_equal(_pixels("reconstructed/b.png"), clvae.reconstruct(*_pair("b")).image)


def test_sample_of_a_picture_and_of_its_label_map_alone(model: str, clvae: CLVAE, photos: Path) -> None:
    words = ["--count", "9", "--seed", "4", "--sheet", "s.png"]
    assert _run("sample", model, "--image", "a.png", "--out", "x", *words, "--codes-out", "c") == 0
    assert _run("sample", model, "--label-map", "a_labels.png", "--out", "y", *words) == 0
    assert len(os.listdir("x")) == 9
    for name in os.listdir("x"):
        assert (photos / "x" / name).read_bytes() == (photos / "y" / name).read_bytes()
    assert np.array_equal(_pixels("x/sample_6.png"), clvae.sample(_read("a").labels, 9, 4)[2].image)
    assert _same(ImageCodes.load("c/sample_6.safetensors"), clvae.prior(6))
    assert _pixels("s.png").shape[0] > 2 * 64  # two rows


def test_stylize(model: str, clvae: CLVAE, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--style", "b.png", "--style", "e.png", "--seed", "3", "--sheet", "s.png"]
    assert _run("stylize", model, "--image", "a.png", *words) == 0
    for name in "be":
        expected = clvae.stylize(_read("a").labels, *_pair(name), seed=3).image
        assert np.array_equal(_pixels(f"stylized/{name}.png"), expected)
    printed = capsys.readouterr().out
    assert "door" in printed.split("e: gives")[1].split("drawn:")[1].splitlines()[0]
    assert _pixels("s.png").shape[0] > 2 * 64
    assert _run("stylize", model, "--label-map", "a_labels.png", *words, "--out", "again") == 0
    assert (photos / "again/b.png").read_bytes() == (photos / "stylized/b.png").read_bytes()


def test_a_chain_of_edits(model: str, clvae: CLVAE, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clvae.prior(40).save("codes.safetensors")
    steps = ["door=sample", "window=b.png,facade=codes.safetensors@1,2", "global=sample", "door=a.png,global=a.png"]
    words = [word for step in steps for word in ("--step", step)]
    files = ["--json", "t.json", "--codes-out", "c.safetensors", "--sheet", "s.png", "--interpolate", "2", "--out", "o.png"]
    assert _run("edit", model, "--image", "a.png", *words, *files, "--seed", "5") == 0
    image, labels = _pair("a")
    start = clvae.encode(image, labels)
    one = start.replaced({"window": clvae.encode(*_pair("b")), "facade": clvae.prior(40)}, [1, 2])
    assert _same(ImageCodes.load("c.safetensors"), one)  # door and global are the picture's own again
    assert np.array_equal(_pixels("o.png"), clvae.generate(labels, one).image)
    assert np.array_equal(_pixels("o_2.png"), clvae.generate(labels, start.interpolated(one, 2 / 3)).image)
    found = json.loads(Path("t.json").read_text())["steps"]
    assert [step["encoded"] for step in found] == [0, 1, 0, 0]
    assert [step["levels"] for step in found] == [None, [1, 2], None, None]
    assert found[1]["blocks"] == ["up_1", "up_2", "up_3"] and found[0]["edits"] == {"door": "sample"}
    assert all(step["seconds"] > 0 and 0 <= step["change"]["locality"] <= 1 for step in found)
    assert found[2]["change"]["locality"] == 1 and found[2]["change"]["outside"] == "nan"
    assert "window = b, facade = codes of a file at levels 1, 2" in capsys.readouterr().out
    assert _pixels("s.png").shape[0] > 6 * 64


def test_an_edit_goes_on_from_saved_codes(model: str, clvae: CLVAE, photos: Path) -> None:
    clvae.prior(40).save("codes.safetensors")
    words = ["--codes", "codes.safetensors", "--step", "door=sample", "--levels", "3", "--codes-out", "c.safetensors"]
    words += ["--step", "door=sample@2"]  # draws others than the step before
    assert _run("edit", model, "--image", "a.png", *words) == 0
    expected = clvae.prior(40).replaced({"door": clvae.prior(0)}, [3]).replaced({"door": clvae.prior(1)}, [2])
    assert _same(ImageCodes.load("c.safetensors"), expected)


def test_kept_classes_are_the_pictures_pixels(model: str, clvae: CLVAE, photos: Path) -> None:
    assert (
        _run("edit", model, "--image", "a.png", "--step", "door=sample", "--keep", "window,facade", "--sheet", "s.png") == 0
    )
    image, labels = _pair("a")
    made, inside = clvae.edit(image, labels, {"door": "sample"}).image, np.isin(labels, (WINDOW, FACADE))
    assert np.array_equal(_pixels("edited.png"), np.where(inside[..., None], image, made))


def test_the_material_sheet(model: str, photos: Path) -> None:
    words = ["--image", "a.png", "--material", "window", "--material-sheet", "m.png"]
    before = sorted(os.listdir())
    assert _run("edit", model, *words) == 0
    assert sorted(os.listdir()) == sorted([*before, "m.png"])
    height, width = _pixels("m.png").shape[:2]
    assert height > 7 * 64 and width > 8 * 64  # inputs, five levels, all of them; own codes, three samples, change


def test_a_folder_of_another_kind_needs_a_word(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["clvae", "sample", "--model", model, "--image", "a.png"]) == 2
    assert "a_labels.png: cannot tell how it stores its classes; give kind" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- bad input

EDIT = ["--image", "a.png"]
BAD: dict[str, tuple[str, list[str], str]] = {
    "no label map": ("reconstruct", ["--image", "a.png", "--image", "f.png"], "f.png: has no label map; looked for"),
    "no image": ("reconstruct", ["--image", "nowhere.png"], "nowhere.png: no such image"),
    "no set": ("reconstruct", ["--data", "nowhere"], "nowhere"),
    "both": ("reconstruct", ["--image", "a.png", "--data", "x"], "data: expected it or --image, got both: x and a.png"),
    "twice": ("reconstruct", ["--image", "a.png", "--image", "x/a.png"], "out: expected pictures of different names"),
    "limit": ("reconstruct", ["--limit", "0"], "limit: expected at least 1, got 0"),
    "out over input": ("reconstruct", ["--image", "a.png", "--out", "."], "out: a: expected another file than a.png: it is"),
    "json over input": ("reconstruct", ["--image", "a.png", "--json", "a.png"], "json: expected another file than a.png"),
    "out is a file": ("reconstruct", ["--image", "a.png", "--out", "b.png"], "lies below"),
    "sheet suffix": ("sample", ["--sheet", "s.jpg"], "sheet: expected a file name ending in .png, got s.jpg"),
    "count": ("sample", ["--count", "0"], "count: expected at least 1, got 0"),
    "seed": ("sample", ["--seed", "-1"], "seed: expected at least 0, got -1"),
    "both maps": ("sample", ["--image", "a.png", "--label-map", "a_labels.png"], "label-map: expected it or --image, got"),
    "no map": ("sample", ["--label-map", "nowhere.png"], "nowhere.png: no such image"),
    "ids": ("sample", ["--label-map", "a.png"], "a.png"),
    "labels of none": ("sample", [*EDIT, "--labels", "b.png=b_labels.png"], "labels: no image of this command belongs to"),
    "no model": ("sample", ["--model", "nowhere"], "nowhere: no such file"),
    "device": ("sample", ["--device", "tpu"], "device: expected cpu or cuda[:n], got 'tpu'"),
    "no style": ("stylize", EDIT, "style: expected at least one picture, got none"),
    "no target": ("stylize", ["--style", "a.png"], "image: expected a picture or --label-map to give the styles to"),
    "style map": ("stylize", [*EDIT, "--style", "f.png"], "f.png: has no label map"),
    "no step": ("edit", EDIT, "step: expected at least one CLASS=sample"),
    "no picture": ("edit", ["--step", "door=sample"], "image: expected a picture to edit, got none"),
    "form": ("edit", [*EDIT, "--step", "door"], "step: expected CLASS=sample, CLASS=picture or CLASS="),
    "class twice": ("edit", [*EDIT, "--step", "door=sample,door=b.png"], "step: expected every class once in a step"),
    "class": ("edit", [*EDIT, "--step", "dor=sample"], "step: unknown class 'dor'; the model's classes are background,"),
    "absent": ("edit", ["--image", "e.png", "--step", "door=sample"], "step: e.png has no door at 64 x 64"),
    "absent there": ("edit", [*EDIT, "--step", "window=b.png", "--step", "door=e.png"], "step: e.png has no door at"),
    "level": ("edit", [*EDIT, "--step", "door=sample@6"], "levels: expected some of 1, 2, 3, 4, 5 (1 is the"),
    "levels": ("edit", ["--levels", "0"], "levels: expected some of 1, 2, 3, 4, 5 (1 is the finest), got 0"),
    "no codes": ("edit", [*EDIT, "--step", "door=x.safetensors"], "step: x.safetensors: no such file"),
    "no start": ("edit", [*EDIT, "--step", "door=sample", "--codes", "a.png"], "codes: a.png: expected a safetensors file"),
    "others' codes": ("edit", [*EDIT, "--step", "door=others.safetensors"], "step: others.safetensors: expected codes of a"),
    "keep edited": ("edit", [*EDIT, "--step", "door=sample", "--keep", "door"], "keep: expected classes that no step"),
    "keep unknown": ("edit", [*EDIT, "--step", "door=sample", "--keep", "dor"], "keep: unknown class 'dor'"),
    "material": ("edit", ["--image", "e.png", "--material", "door"], "material: e.png has no door"),
    "material global": ("edit", ["--material", "global"], "material: expected a class of a model with levels, got global"),
    "sheet alone": ("edit", [*EDIT, "--material", "window", "--sheet", "s.png"], "sheet: needs --step, got none"),
    "codes suffix": ("edit", ["--codes-out", "c.bin"], "codes-out: expected a file name ending in .safetensors, got c.bin"),
    "same file": ("edit", ["--sheet", "edited.png"], "edited.png: it is the file of --"),
    "frame over input": (
        "edit",
        ["--image", "a_1.png", "--step", "door=sample", "--out", "a.png", "--interpolate", "1"],
        "interpolate: 1: expected another file than a_1.png: it is an input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_nothing_is_written(
    case: str, model: str, clvae: CLVAE, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, words, message = BAD[case]
    prior = clvae.prior()
    replace(prior, names=tuple(f"{name}s" for name in prior.names)).save("others.safetensors")
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    assert _run(verb, model, *words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err
    assert len([line for line in printed.err.splitlines() if "..." not in line]) == 1 or "usage" in printed.err
    assert {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()} == before


def test_a_model_that_nothing_drawn_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _tiny(("one", "two")).save(tmp_path / "m.safetensors")
    assert cli.main(["clvae", "edit", "--model", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "o.png")]) == 2
    assert "model: nothing drawn by code has its regions (one, two): give pictures" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["m.safetensors"]


# ------------------------------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize(
    ("step", "pairs", "levels"),
    [
        ("door=sample", [("door", "sample")], (9,)),
        ("door=sample,window=b.jpg@1,2", [("door", "sample"), ("window", "b.jpg")], (1, 2)),
        ("door=a@2.jpg", [("door", "a@2.jpg")], (9,)),
        ("door=x, y.jpg,wall = c.safetensors@5", [("door", "x, y.jpg"), ("wall", "c.safetensors")], (5,)),
    ],
)
def test_steps_are_split(step: str, pairs: list[tuple[str, str]], levels: tuple[int, ...]) -> None:
    assert split_step(step, (9,)) == (pairs, levels)


def test_changes_inside_and_outside(clvae: CLVAE) -> None:
    labels = np.full((64, 64), FACADE, np.int32)
    labels[:16] = DOOR
    before = np.full((64, 64, 3), 100, np.uint8)
    after = before.copy()
    after[:16, :, 0] = 130  # mean over channels: 10
    after[32:, :] = 98
    made = Made(after, labels, clvae.prior())
    change = change_of(clvae, before, made, ["door"])
    assert change == pytest.approx((160 / 224, 0.25, 10, 4 / 3))  # locality, share of pixels, inside, outside
    everywhere = change_of(clvae, before, made, ["global"])
    assert (everywhere.locality, everywhere.region_share, everywhere.inside) == pytest.approx((1, 1, 3.5))
    assert np.isnan(change_of(clvae, after, made, ["door"]).locality)
