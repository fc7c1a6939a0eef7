"""`mixsyn-fast msca synthesize | swap | interpolate | spatial | extrapolate | attention`: what they write and refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACADE_CLASSES, draw_facade
from mixsyn_fast.models.msca.config import GeneratorConfig
from mixsyn_fast.models.msca.model import MSCA
from mixsyn_fast.models.msca.networks import Alignment, Synthesis
from mixsyn_fast.models.pictures.files import save_image, save_labels
from mixsyn_fast.models.pictures.picture import Picture, fit, read_picture

from mixsyn_fast import cli

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
VERBS = ("synthesize", "swap", "interpolate", "spatial", "extrapolate", "attention")
SHOP = FACADE_CLASSES.index("shop")


def _tiny(classes: tuple[str, ...]) -> MSCA:
    small: dict[str, Any] = {"trunk": "own", "trunk_width": 2, "features": 4, "condition": 4, "ngf": 2, "hidden": 4}
    config = GeneratorConfig(label_nc=len(classes), maps=(3, 2, 2, 2, 2), largest=4, **small)
    torch.manual_seed(0)
    alignment, synthesis = Alignment(config), Synthesis(config)
    with torch.no_grad():
        for weight in synthesis.parameters():  # so that exemplars show in grey levels
            if weight.dim() > 1:
                weight.mul_(3)
    return MSCA(alignment, synthesis, classes, (32, 32))


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of the images' own size: compressing large sheets takes most of the time."""
    monkeypatch.setattr("mixsyn_fast.models.pictures.sheets._SIDE", 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    _tiny(tuple(FACADE_CLASSES)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def msca(model: str) -> MSCA:
    return MSCA.load(model)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures a, b, d with label maps, d of another size; e without a shop; f without a label map; weight maps."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, seed, size in (("a", 3, 32), ("b", 5, 32), ("d", 11, (80, 64)), ("e", 13, 32), ("f", 17, 32)):
        image, labels = draw_facade(seed, size)
        save_image(folder / f"{name}.png", image)
        if name != "f":
            save_labels(folder / f"{name}_labels.png", np.where(labels == SHOP, 1, labels) if name == "e" else labels, 12)
    save_image(folder / "w.png", image)  # a class that the model has not
    Image.fromarray(np.full((32, 32), 200, np.uint8)).save(folder / "w_labels.png")
    save_image(folder / "x.png", image[:16, :16])  # an image smaller than its label map
    shutil.copy(folder / "a_labels.png", folder / "x_labels.png")
    Image.fromarray(np.ones((16, 16), np.uint8)).save(folder / "small.png")
    wide = draw_facade(19, (32, 96))
    save_image(folder / "wide.png", wide[0])
    save_labels(folder / "wide_labels.png", wide[1], 12)
    grey = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    Image.fromarray(grey).save(folder / "grey.bmp")
    Image.fromarray(np.zeros_like(grey)).save(folder / "black.bmp")
    Image.fromarray(grey[:16]).save(folder / "low.bmp")
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with these pictures, where the command runs."""
    folder = Path(shutil.copytree(drawn, tmp_path / "photos"))
    monkeypatch.chdir(folder)
    return folder


def _read(name: str, size: tuple[int, int] | None = (32, 32)) -> Picture:
    picture = read_picture(f"{name}.png", classes=FACADE_CLASSES, kind="folder")
    return picture if size is None else fit(picture, size)


def _pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    picture = _read(name)
    return picture.image, picture.labels


def _pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _run(verb: str, model: str, *words: str) -> int:
    return cli.main(["msca", verb, "--model", model, "--kind", "folder", *words])


# ------------------------------------------------------------------------------------------------------------ good input


@pytest.mark.parametrize("verb", VERBS)
def test_without_pictures_every_verb_draws_them(
    verb: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["msca", verb, "--model", model, "--sheet", "s.png", "--json", "t.json"]) == 0
    assert _pixels("s.png").shape[1] > 3 * 32
    names = ("synthesized", "swapped", "interpolated", "spatial.png", "extrapolated.png", "attended.png")
    out = dict(zip(VERBS, names, strict=True))[verb]
    assert sorted(os.listdir()) == sorted(["s.png", "t.json", out])
    printed = capsys.readouterr().out
    assert "written: s.png" in printed and "written: t.json" in printed
    found = json.loads(Path("t.json").read_text())
    assert (found["model"], found["size"]) == (model, [32, 32])
    other = "other" + Path(out).suffix
    assert cli.main(["msca", verb, "--model", model, "--seed", "9", "--out", other]) == 0
    assert len(list(tmp_path.rglob("*.png"))) == {"synthesize": 7, "swap": 33, "interpolate": 19}.get(verb, 3)
    first, second = (sorted([Path(name), *Path(name).glob("*")])[-1] for name in (out, other))
    assert not np.array_equal(_pixels(first), _pixels(second))


def test_synthesize(model: str, msca: MSCA, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--exemplar", "b.png", "--exemplar", "e.png", "--sheet", "deep/s.png", "--json", "t.json"]
    assert _run("synthesize", model, "--image", "a.png", *words) == 0
    for name in "be":
        expected = msca.synthesize(_read("a").labels, *_pair(name)).image
        assert np.array_equal(_pixels(f"synthesized/{name}.png"), expected)
    rows = json.loads(Path("t.json").read_text())["images"]
    assert [(row["exemplar"], row["exemplars_computed"], row["label_maps_computed"]) for row in rows] == [
        ("b", 1, 1),
        ("e", 1, 0),
    ]
    present = [set(np.unique(_read(name).labels)) for name in "abe"]
    assert rows[1]["lacks"] == [FACADE_CLASSES[k] for k in sorted(present[0] - present[2])]
    assert SHOP not in present[2] and "e: " in capsys.readouterr().out
    assert _pixels("deep/s.png").shape[0] > 2 * 32
    assert _run("synthesize", model, "--label-map", "a_labels.png", *words, "--out", "again") == 0
    assert (photos / "again/b.png").read_bytes() == (photos / "synthesized/b.png").read_bytes()


def test_synthesize_at_another_size(model: str, msca: MSCA, photos: Path) -> None:
    assert _run("synthesize", model, "--image", "d.png", "--exemplar", "b.png", "--size", "80,64") == 0
    expected = msca.synthesize(_read("d", None).labels, *_pair("b"), size=(80, 64)).image
    assert expected.shape == (80, 64, 3) and np.array_equal(_pixels("synthesized/b.png"), expected)


def test_an_exemplar_of_other_proportions(model: str, msca: MSCA, photos: Path) -> None:
    """It is seen whole, and shown whole, by every verb."""
    given = _read("wide", None)
    scenes, labels = [(given.image, given.labels), _pair("b")], _read("a").labels
    pair = ["--image", "a.png", "--exemplar", "wide.png"]
    expected = msca.synthesize(labels, *scenes[0])
    for verb, words, made in (
        ("synthesize", pair, expected),
        ("attention", pair, expected),
        ("interpolate", [*pair, "--exemplar", "b.png", "--weights", "1,2"], msca.interpolate(labels, scenes, (1, 2))),
        ("spatial", [*pair, "--exemplar", "b.png"], msca.spatial(labels, scenes)),
        ("swap", ["--picture", "a.png", "--exemplar", "wide.png"], expected),
        ("extrapolate", ["--image", "d.png", "--patch", "wide.png"], msca.extrapolate(*scenes[0], _read("d", None).labels)),
    ):
        out = f"{verb}.png" if verb in ("attention", "spatial", "extrapolate") else verb
        assert _run(verb, model, *words, "--out", out, "--sheet", f"{verb}_sheet.png") == 0
        files = [Path(out), *Path(out).glob("*.png")]
        assert np.array_equal(_pixels(files[-1]), made.image), verb
        assert _pixels(f"{verb}_sheet.png").shape[1] > 96, verb


def test_a_folder_stands_for_its_pictures(model: str, msca: MSCA, photos: Path) -> None:
    """Label maps beside pictures are none themselves."""
    (photos / "set").mkdir()
    for name in "ab":
        for file in (f"{name}.png", f"{name}_labels.png"):
            shutil.copy(file, f"set/{file}")
    assert _run("swap", model, "--picture", "set", "--sheet", "s.png", "--json", "t.json") == 0
    assert sorted(os.listdir("swapped")) == [f"{x}_as_{y}.png" for x in "ab" for y in "ab"]
    made = msca.swap([_read(name).labels for name in "ab"], [_pair(name) for name in "ab"])
    assert np.array_equal(_pixels("swapped/b_as_a.png"), made[1][0].image)
    found = json.loads(Path("t.json").read_text())
    assert (found["label_maps"], found["exemplars_computed"], found["label_maps_computed"]) == (["a", "b"], 2, 2)
    assert _run("swap", model, "--picture", "set", "--exemplar", "e.png", "--out", "other") == 0
    assert sorted(os.listdir("other")) == ["a_as_e.png", "b_as_e.png"]
    assert _run("synthesize", model, "--image", "e.png", "--exemplar", "set") == 0
    assert sorted(os.listdir("synthesized")) == ["a.png", "b.png"]


def test_interpolate(model: str, msca: MSCA, photos: Path) -> None:
    words = ["--image", "a.png", "--exemplar", "b.png", "--exemplar", "d.png", "--sheet", "s.png", "--json", "t.json"]
    assert _run("interpolate", model, *words, "--between", "1") == 0
    labels, scenes = _read("a").labels, [_pair("b"), _pair("d")]
    for i, each in enumerate(msca.walk(labels, scenes, 1)):
        assert np.array_equal(_pixels(f"interpolated/walk_{i}.png"), each.image)
    assert len(os.listdir("interpolated")) == 3
    found = json.loads(Path("t.json").read_text())
    assert [row["weights"] for row in found["images"]] == [[1, 0], [0.5, 0.5], [0, 1]]
    assert _run("interpolate", model, *words, "--weights", "0.3,0.7", "--out", "one") == 0
    assert os.listdir("one") == ["mixture.png"]
    assert np.array_equal(_pixels("one/mixture.png"), msca.interpolate(labels, scenes, (0.3, 0.7)).image)


def test_spatial(model: str, msca: MSCA, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image", "a.png", "--exemplar", "b.png", "--exemplar", "e.png"]
    labels, scenes = _read("a").labels, [_pair("b"), _pair("e")]
    assert _run("spatial", model, *words, "--direction", "vertical") == 0
    assert np.array_equal(_pixels("spatial.png"), msca.spatial(labels, scenes, direction="vertical").image)
    grey = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    assert _run("spatial", model, *words, "--weight-map", "grey.bmp", "--sheet", "s.png", "--json", "t.json") == 0
    assert np.array_equal(_pixels("spatial.png"), msca.spatial(labels, scenes, grey).image)
    assert "e: 50 % of the image" in capsys.readouterr().out
    assert json.loads(Path("t.json").read_text())["shares"] == pytest.approx([0.5, 0.5], abs=0.01)
    maps = ["--weight-map", "grey.bmp", "--weight-map", "grey.bmp"]  # one for each: equal everywhere but where both are 0
    assert _run("spatial", model, *words, *maps) == 2
    assert "at every pixel of grey.bmp, grey.bmp, got none at 32 pixels" in capsys.readouterr().err


def test_extrapolate(model: str, msca: MSCA, photos: Path) -> None:
    assert _run("extrapolate", model, "--image", "d.png", "--sheet", "s.png", "--json", "t.json", "--keep") == 0
    scene = _read("d", None)
    image, labels = scene.image[24:56, 16:48], scene.labels[24:56, 16:48]
    assert np.array_equal(_pixels("extrapolated.png"), msca.extrapolate(image, labels, scene.labels, keep=True).image)
    found = json.loads(Path("t.json").read_text())
    assert found["scene"] == [80, 64] and len(found["windows"]) == 14 and found["keep"]
    words = ["--label-map", "a_labels.png", "--patch", "b.png", "--size", "48,40", "--others", "0", "--seed", "2"]
    assert _run("extrapolate", model, *words) == 0
    assert _pixels("extrapolated.png").shape == (48, 40, 3)


def test_attention(model: str, msca: MSCA, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image", "a.png", "--exemplar", "b.png", "--scales", "0,4", "--strongest", "2"]
    assert _run("attention", model, *words, "--sheet", "s.png", "--json", "t.json") == 0
    found = msca.attention(_read("a").labels, *_pair("b"))
    assert np.array_equal(_pixels("attended.png"), found.image)
    scales = json.loads(Path("t.json").read_text())["scales"]
    assert [len(each["maps"]) for each in scales] == [3, 2, 2, 2, 2]
    k = found.scales[0].strongest(1)[0]
    shares = dict(zip(FACADE_CLASSES, found.scales[0].given[k].tolist(), strict=True))
    assert scales[0]["maps"][k]["from"] == pytest.approx({name: share for name, share in shares.items() if share > 0})
    for each, said in zip(found.scales, scales, strict=True):
        assert (said["to_own_class"], said["by_chance"]) == pytest.approx((each.to_own_class, each.by_chance))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("scale 0: ") and " reaches its own class, " in printed[0]
    assert printed[1].startswith(f"scale 0, map {k}: strength ") and " -> " in printed[1]
    assert [line[:8] for line in printed[:6]] == ["scale 0:", "scale 0,", "scale 0,", "scale 4:", "scale 4,", "scale 4,"]


# ------------------------------------------------------------------------------------------------------------- bad input

TARGET, PAIR = ["--image", "a.png"], ["--image", "a.png", "--exemplar", "b.png"]
BAD: dict[str, tuple[str, list[str], str]] = {
    "no exemplar": ("synthesize", TARGET, "exemplar: expected at least one picture, got none"),
    "no target": ("synthesize", ["--exemplar", "a.png"], "image: expected a picture or --label-map that takes the style"),
    "both": ("synthesize", [*PAIR, "--label-map", "a_labels.png"], "label-map: expected it or --image, got both"),
    "no label map": ("synthesize", [*TARGET, "--exemplar", "f.png"], "f.png: has no label map; looked for"),
    "no image": ("synthesize", [*TARGET, "--exemplar", "nowhere.png"], "nowhere.png: no such image"),
    "size": ("synthesize", [*PAIR, "--size", "40"], "size: expected height and width that are multiples of 16, got 40 x 40"),
    "sizes": ("synthesize", [*PAIR, "--size", "32,32,32"], "size: expected one or two numbers, got (32, 32, 32)"),
    "twice": ("synthesize", [*PAIR, "--exemplar", "b.png"], "out: expected pictures of different names"),
    "out over input": ("synthesize", [*PAIR, "--out", "."], "expected another file than b.png: it is an input"),
    "seed": ("synthesize", ["--seed", "-1"], "seed: expected at least 0, got -1"),
    "sheet suffix": ("synthesize", ["--sheet", "s.jpg"], "sheet: expected a file name ending in .png, got s.jpg"),
    "no model": ("synthesize", ["--model", "nowhere"], "nowhere: no such file"),
    "vgg": ("synthesize", ["--vgg-weights", "v.pth"], "vgg-weights: expected 'auto', for"),
    "labels of none": ("synthesize", [*PAIR, "--labels", "d.png=d_labels.png"], "labels: no image of this command belongs"),
    "device": ("swap", ["--device", "tpu"], "device: expected cpu or cuda[:n], got 'tpu'"),
    "styles alone": ("swap", ["--exemplar", "a.png"], "picture: expected at least one picture whose label map takes"),
    "no folder": ("swap", ["--picture", "nowhere"], "nowhere: no such image"),
    "empty folder": ("swap", ["--picture", "empty"], "empty: holds no picture"),
    "one style": ("interpolate", PAIR, "exemplar: expected at least 2 pictures, got b.png"),
    "weights": ("interpolate", [*PAIR, "--exemplar", "d.png", "--weights", "1"], "weights: expected one for each of 2 exem"),
    "all 0": ("interpolate", ["--weights", "0,0,0"], "weights: expected numbers that are not negative, and one above 0"),
    "between": ("interpolate", ["--between", "-1"], "between: expected at least 0, got -1"),
    "map alone": ("spatial", ["--weight-map", "grey.bmp"], "exemplar: expected the pictures that the weight maps are of"),
    "maps": (
        "spatial",
        [*PAIR, "--exemplar", "d.png", "--exemplar", "e.png", "--weight-map", "grey.bmp"],
        "weight-map: expected one for each of 3 exemplars, or one for two, got 1",
    ),
    "colours": (
        "spatial",
        [*PAIR, "--exemplar", "d.png", "--weight-map", "e.png"],
        "weight-map: e.png: expected a grey picture, got one with colours",
    ),
    "no map": (
        "spatial",
        [*PAIR, "--exemplar", "d.png", "--weight-map", "nowhere.png"],
        "--weight-map: nowhere.png: no such file",
    ),
    "map size": (
        "spatial",
        [*PAIR, "--exemplar", "d.png", "--weight-map", "low.bmp"],
        "weight-map: low.bmp is 32 x 16 but the label map is 32 x 32 (width x height)",
    ),
    "nothing": (
        "spatial",
        [*PAIR, "--exemplar", "d.png", "--weight-map", "black.bmp", "--weight-map", "black.bmp"],
        "--weight-map: expected one above 0 (black) at every pixel of black.bmp, black.bmp, got none at 1024 pixels",
    ),
    "unknown class": ("synthesize", [*TARGET, "--exemplar", "w.png"], "w_labels.png: "),
    "class of the target": ("attention", ["--image", "w.png", "--exemplar", "b.png"], "w_labels.png: "),
    "label map of another size": ("synthesize", [*TARGET, "--exemplar", "x.png"], "x_labels.png: "),
    "small picture": (
        "extrapolate",
        ["--image", "x.png", "--labels", "x.png=small.png"],
        "x.png: expected a scene of at least 32 x 32, the model's size, got 16 x 16 (width x height); --size scales it",
    ),
    "small scene": ("extrapolate", ["--size", "16"], "size: expected a scene of at least 32 x 32, the model's size, got 16"),
    "no patch": ("extrapolate", ["--label-map", "a_labels.png"], "patch: expected a picture whose style the label map"),
    "no scene": ("extrapolate", ["--patch", "a.png"], "image: expected a picture or --label-map of the whole scene"),
    "others": ("extrapolate", ["--others", "-1"], "others: expected at least 0, got -1"),
    "scales": ("attention", ["--scales", "5"], "scales: expected some of 0 to 4, got (5,)"),
    "strongest": ("attention", ["--strongest", "0"], "strongest: expected at least 1, got 0"),
    "exemplars": ("attention", [*PAIR, "--exemplar", "d.png"], "exemplar: expected one picture, got b.png, d.png"),
    "same file": ("attention", ["--sheet", "attended.png"], "attended.png: it is the file of --"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_nothing_is_written(
    case: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, words, message = BAD[case]
    (photos / "empty").mkdir()
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    assert _run(verb, model, *words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err
    assert len([line for line in printed.err.splitlines() if "..." not in line]) == 1 or "usage" in printed.err
    assert {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()} == before


def test_a_model_that_nothing_drawn_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _tiny(("one", "two")).save(tmp_path / "m.safetensors")
    assert cli.main(["msca", "swap", "--model", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "o")]) == 2
    assert "model: nothing drawn by code has its regions (one, two): give pictures" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["m.safetensors"]
