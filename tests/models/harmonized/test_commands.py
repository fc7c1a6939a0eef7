"""The commands `mixsyn-fast harmonized ...` but `evaluate`: what they write, what they refuse; refusing leaves nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data import FACE_CLASSES, draw_face
from mixsyn_fast.models.harmonized.model import Harmonized
from mixsyn_fast.models.harmonized.study import planned
from mixsyn_fast.models.pictures.files import read_layer, save_image, save_labels
from mixsyn_fast.models.pictures.options import pictures_at
from mixsyn_fast.models.pictures.picture import Picture, fit, read_picture

from mixsyn_fast import cli
from tests.models.harmonized.small import GROUPS, small_model

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
HAIR, SKIN = FACE_CLASSES.index("hair"), FACE_CLASSES.index("skin")
VERBS = ("transfer", "sample", "tune", "reshape", "recolour", "reconstruct")


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of the images' own size, 64 pixels: compressing large sheets takes most of the time."""
    monkeypatch.setattr("mixsyn_fast.models.pictures.sheets._SIDE", 64)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    small_model(FACE_CLASSES, labels=draw_face(3, 64)[1]).save(path)
    return str(path)


@pytest.fixture(scope="module")
def model(file: str) -> Harmonized:
    return Harmonized.load(file)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures a, b, d with label maps beside them, d of another size; e bald; f without a label map; a folder more."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, seed, size in (("a", 3, 64), ("b", 5, 64), ("d", 11, (90, 80)), ("e", 13, 64), ("f", 17, 64)):
        image, labels = draw_face(seed, size)
        if name == "e":
            labels = np.where(labels == HAIR, SKIN, labels)
        save_image(folder / f"{name}.png", image)
        if name != "f":
            save_labels(folder / f"{name}_labels.png", labels, 19)
    image, labels = draw_face(3, 64)
    save_labels(folder / "new.png", np.roll(labels, 4, 1), 19)
    save_labels(folder / "new_labels.png", np.roll(labels, 4, 1), 19)
    strokes = np.zeros((64, 64, 4), np.uint8)
    strokes[labels == HAIR] = (200, 40, 10, 255)
    Image.fromarray(strokes).save(folder / "strokes.png")
    (folder / "empty").mkdir()
    (folder / "more").mkdir()
    for name in ("b", "d"):
        for ending in ("", "_labels"):
            shutil.copy(folder / f"{name}{ending}.png", folder / "more")
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with these pictures, where the command runs."""
    folder = Path(shutil.copytree(drawn, tmp_path / "photos"))
    monkeypatch.chdir(folder)
    return folder


def _pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    picture: Picture = fit(read_picture(f"{name}.png", classes=FACE_CLASSES, kind="folder"), (64, 64))
    return picture.image, picture.labels


def _pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _run(verb: str, file: str, *words: str) -> int:
    return cli.main(["harmonized", verb, "--model", file, "--kind", "folder", *words])


# ------------------------------------------------------------------------------------------------------------ good input


@pytest.mark.parametrize("verb", VERBS)
def test_without_pictures_every_verb_draws_them(
    verb: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["harmonized", verb, "--model", file, "--sheet", "s.png"]) == 0
    assert _pixels("s.png").shape[1] > 3 * 64
    out = {"transfer": "transferred", "sample": "samples", "tune": "tuned", "reconstruct": "reconstructed"}
    out |= {"reshape": "reshaped.png", "recolour": "recoloured.png"}
    assert sorted(os.listdir()) == sorted(["s.png", out[verb]])
    assert "written: s.png" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.png"))) == {"transfer": 4, "sample": 7, "tune": 6, "reconstruct": 5}.get(verb, 2)


def test_transfer(file: str, model: Harmonized, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image", "a.png", "--reference", "more", "--region", "skin,hair", "--compare", "--out", "t"]
    assert _run("transfer", file, *words, "--sheet", "deep/s.png", "--json", "t.json") == 0
    assert sorted(os.listdir("t")) == sorted(f"a_{name}{end}.png" for name in "bd" for end in ("", "_without"))
    found = json.loads(Path("t.json").read_text())
    assert [(row["target"], row["reference"]) for row in found["images"]] == [("a", "b"), ("a", "d")]
    for name, row in zip("bd", found["images"], strict=True):
        made = model.transfer(*_pair("a"), *_pair(name), ("skin", "hair"))
        assert np.array_equal(_pixels(f"t/a_{name}.png"), made.image)
        plain = model.without_attention().transfer(*_pair("a"), *_pair(name), ("skin", "hair"))
        assert np.array_equal(_pixels(f"t/a_{name}_without.png"), plain.image)
        assert row["regions"] == ["skin", "nose", "hair"] == list(made.regions) and row["seconds"] > 0
        assert row["ran"][-2:] == ["attention", "generator"] and row["change"]["inside"] > 0
    assert "a_b: " in capsys.readouterr().out and _pixels("deep/s.png").shape[1] > 6 * 64


def test_sample(file: str, model: Harmonized, photos: Path) -> None:
    words = ["--image", "a.png", "--region", "skin", "--count", "8", "--seed", "4", "--json", "t.json", "--sheet", "s.png"]
    assert _run("sample", file, *words) == 0 and len(os.listdir("samples")) == 8
    made = model.sample(*_pair("a"), ("skin",), 8, 4)
    assert np.array_equal(_pixels("samples/sample_6.png"), made[2].image)
    assert [row["regions"] for row in json.loads(Path("t.json").read_text())["images"]] == [["skin", "nose"]] * 8
    assert _pixels("s.png").shape[0] > 2 * 64  # two rows
    assert _run("sample", file, "--image", "a.png", "--by", "flow", "--count", "1", "--out", "f") == 0
    assert np.array_equal(_pixels("f/sample_0.png"), model.sample(*_pair("a"), ("hair",), 1, by="flow")[0].image)


def test_tune(file: str, model: Harmonized, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image", "a.png", "--group", "skin", "--direction", "3,4", "--amounts=-1.5,0,1.5", "--space", "both"]
    assert _run("tune", file, *words, "--sheet", "s.png", "--json", "t.json") == 0
    names = [f"{space}_{direction}_{i}.png" for space in ("z", "style") for direction in (3, 4) for i in range(3)]
    assert sorted(os.listdir("tuned")) == sorted(names)
    made = model.tune(*_pair("a"), "skin", 4, (-1.5, 0.0, 1.5))
    assert np.array_equal(_pixels("tuned/z_4_2.png"), made[2].image)
    styled = model.tune(*_pair("a"), "skin", 4, (-1.5, 0.0, 1.5), space="style")
    assert np.array_equal(_pixels("tuned/style_4_0.png"), styled[0].image)
    found = json.loads(Path("t.json").read_text())
    assert [row["amount"] for row in found["images"]] == [-1.5, 0, 1.5] * 4 and 0 < found["round_trip"] < 1e-3
    assert "to z and back" in capsys.readouterr().out and _pixels("s.png").shape[0] > 4 * 64
    assert _run("tune", file, "--image", "e.png", "--amounts", "1", "--out", "bald") == 0  # the first group that e has
    assert np.array_equal(_pixels("bald/z_0_0.png"), model.tune(*_pair("e"), "skin", 0, (1.0,))[0].image)


def test_several_pictures_have_folders_of_their_own(
    file: str, model: Harmonized, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of sample and tune: the styles of a seed, and the walk of a direction, in every picture of a folder and beside it."""
    words = ["--image", "more", "--image", "a.png", "--sheet", "s.png", "--json", "t.json"]
    assert _run("sample", file, *words, "--count", "2", "--out", "s") == 0
    assert [sorted(os.listdir(f"s/{name}")) for name in "abd"] == [["sample_0.png", "sample_1.png"]] * 3
    assert np.array_equal(_pixels("s/d/sample_1.png"), model.sample(*_pair("d"), ("hair",), 1, 1)[0].image)
    rows = json.loads(Path("t.json").read_text())["images"]
    assert [(row["picture"], row["seed"]) for row in rows] == [(name, seed) for name in "bda" for seed in (0, 1)]
    assert _pixels("s.png").shape[0] > 3 * 64 and "d: hair: changed by" in capsys.readouterr().out
    assert _run("tune", file, *words, "--image", "e.png", "--amounts", "0,1", "--out", "t") == 0
    assert [sorted(os.listdir(f"t/{name}")) for name in "abde"] == [["z_0_0.png", "z_0_1.png"]] * 4
    assert np.array_equal(_pixels("t/b/z_0_1.png"), model.tune(*_pair("b"), "hair", 0, (1.0,))[0].image)
    rows = json.loads(Path("t.json").read_text())["images"]
    assert [(row["picture"], row["group"]) for row in rows[::2]] == [
        ("b", "hair"),
        ("d", "hair"),
        ("a", "hair"),
        ("e", "skin"),
    ]
    assert _pixels("s.png").shape[0] > 4 * 64 and "e, z, direction 0, 1: changed by" in capsys.readouterr().out
    assert (
        _run("sample", file, *words, "--image", "e.png", "--out", "bald") == 2
    )  # no hair in e: nothing is made of the others
    assert "region: e has no hair" in capsys.readouterr().err and not Path("bald").exists()


def test_reshape(file: str, model: Harmonized, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("reshape", file, "--image", "a.png", "--new-labels", "new.png", "--sheet", "s.png") == 0
    new = np.roll(draw_face(3, 64)[1], 4, 1).astype(np.int64)
    assert np.array_equal(_pixels("reshaped.png"), model.reshape(*_pair("a"), new).image)
    assert "new regions: none" in capsys.readouterr().out
    shutil.copy("a_labels.png", "hairy.png")
    words = ["--image", "e.png", "--new-labels", "hairy.png", "--reference", "b.png", "--json", "t.json"]
    assert _run("reshape", file, *words) == 0
    assert json.loads(Path("t.json").read_text())["images"][0]["new"]["hair"] == "reference"


def test_recolour(file: str, model: Harmonized, photos: Path) -> None:
    words = ["--image", "a.png", "--strokes", "strokes.png", "--sheet", "s.png", "--json", "t.json", "--out", "r.png"]
    assert _run("recolour", file, *words) == 0
    made = model.recolour(*_pair("a"), read_layer("strokes.png"))
    assert np.array_equal(_pixels("r.png"), made.image)
    (found,) = json.loads(Path("t.json").read_text())["images"]
    assert found["colours"] == {"hair": [200, 40, 10]} and found["regions"] == ["hair"]


def test_edited_maps_and_strokes_of_a_folder_belong_by_their_names(
    file: str, model: Harmonized, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("b", (64, 64)), ("d", (80, 90))):
        Path("labels").mkdir(exist_ok=True)  # a name under which label maps are looked for elsewhere
        shutil.copy(f"more/{name}_labels.png", f"labels/{name}.png")
        with Image.open("strokes.png") as layer:
            Path("layers").mkdir(exist_ok=True)
            layer.resize(size, Image.Resampling.NEAREST).save(f"layers/{name}.png")
    words = ["--image", "more", "--sheet", "s.png", "--json", "t.json"]
    assert _run("reshape", file, *words, "--new-labels", "labels") == 0
    assert sorted(os.listdir("reshaped")) == ["b.png", "d.png"] and _pixels("s.png").shape[0] > 4 * 64
    assert np.array_equal(_pixels("reshaped/d.png"), model.reconstruct(*_pair("d")).image)  # its own map
    assert [row["picture"] for row in json.loads(Path("t.json").read_text())["images"]] == ["b", "d"]
    assert _run("recolour", file, *words, "--strokes", "layers/b.png", "--strokes", "layers/d.png") == 0
    assert np.array_equal(_pixels("recoloured/b.png"), model.recolour(*_pair("b"), read_layer("layers/b.png")).image)
    assert [row["regions"] for row in json.loads(Path("t.json").read_text())["images"]] == [["hair"]] * 2
    capsys.readouterr()
    for given, message in (
        (["layers/b.png"], "strokes: expected a file of every picture's name, got none for more/d.png"),
        (["layers", "strokes.png"], "strokes: expected a picture for every file, got none for strokes.png"),
        (["layers", "labels/b.png"], "strokes: expected files of different names, got layers/b.png and labels/b.png"),
    ):
        more = [word for path in given for word in ("--strokes", path)]
        assert _run("recolour", file, "--image", "more", "--out", "new", *more) == 2
        assert message in capsys.readouterr().err and not Path("new").exists()
    hairy = np.where(draw_face(3, 64)[1] == HAIR, HAIR, _pair("e")[1])  # which e lacks, and there is a network for
    save_labels(Path("e.new.png"), hairy, 19)
    assert _run("reshape", file, "--image", "e.png", "--new-labels", "e.new.png", "--out", "e_new.png") == 0
    assert "hair (mapping network)" in capsys.readouterr().out


def test_reconstruct(file: str, model: Harmonized, photos: Path) -> None:
    assert _run("reconstruct", file, "--image", "more", "--image", "a.png", "--json", "t.json") == 0
    assert sorted(os.listdir("reconstructed")) == ["a.png", "b.png", "d.png"]
    found = json.loads(Path("t.json").read_text())["pictures"]
    assert [row["name"] for row in found] == ["b", "d", "a"]
    image, labels = _pair("d")
    made = model.reconstruct(image, labels)
    difference = _pixels("reconstructed/d.png").astype(float) - image
    assert found[1]["mean_difference"] == pytest.approx(np.abs(difference).mean())
    assert found[1]["regions"] == list(model.present(made.labels))


def test_a_folder_stands_for_its_pictures_not_for_their_label_maps(photos: Path) -> None:
    assert [Path(path).name for path in pictures_at(["more", "a.png"], "image")] == ["b.png", "d.png", "a.png"]
    with pytest.raises(ValueError, match="image: expected pictures of different names, .*; b twice"):
        pictures_at(["more", "b.png"], "image")


# ---------------------------------------------------------------------------------------------------------------- study


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of three methods, each of one grey, for five pairs; targets."""
    monkeypatch.chdir(tmp_path)
    for k, method in enumerate(("ours", "sean", "other")):
        for i in range(5):
            save_image(tmp_path / method / f"t{i}_r{i}.png", np.full((64, 64, 3), 50 + 60 * k, np.uint8))
    for i in range(5):
        save_image(tmp_path / "targets" / f"t{i}.png", np.full((64, 64, 3), i, np.uint8))
    return tmp_path


METHODS = ["--method", "ours=ours", "--method", "sean=sean", "--method", "other=other"]


def test_a_study_hides_the_methods_and_its_key_tells_them(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["harmonized", "study", *METHODS, "--shown", "targets", "--per-sheet", "2", "--seed", "1"]) == 0
    assert sorted(os.listdir("study")) == ["answers.csv", "key.csv", "sheet_1.png", "sheet_2.png", "sheet_3.png"]
    key = list(csv.reader(Path("study/key.csv").open()))
    assert key[0] == ["row", "name", "A", "B", "C"] and [line[1] for line in key[1:]] == [f"t{i}_r{i}" for i in range(5)]
    greys = {"ours": 50, "sean": 110, "other": 170}
    for number, line in enumerate(key[1:]):  # what the key says is what stands there
        picture = _pixels(f"study/sheet_{number // 2 + 1}.png")
        height = picture.shape[0] // min(2, 5 - number // 2 * 2)
        y = number % 2 * height + 30
        assert [picture[y, 2 + 66 * column + 30, 0] for column in range(4)] == [number, *(greys[name] for name in line[2:])]
    answers = list(csv.reader(Path("study/answers.csv").open()))
    assert answers[0] == ["row", "Which result looks best? (A / B / C)"] and answers[1:] == [
        [str(i + 1), ""] for i in range(5)
    ]
    for name in ("anna.csv", "bob.csv"):  # both like ours best; bob leaves one out
        text = ["row,x"] + [
            f"{line[0]},{'' if name[0] == 'b' and line[0] == '3' else 'abc'[line[2:].index('ours')]}" for line in key[1:]
        ]
        Path(name).write_text("\n".join(text))
    capsys.readouterr()
    words = ["harmonized", "study", "--answers", "anna.csv", "--answers", "bob.csv", "--json", "votes.json"]
    assert cli.main(words) == 0
    assert "ours: 9 votes (100.0%)" in capsys.readouterr().out
    found = json.loads(Path("votes.json").read_text())
    assert (found["subjects"], found["votes"], found["methods"]["ours"]) == (2, 9, {"votes": 9, "share": 1.0})
    semicolons = "\ufeffrow;Which, if any, looks best?\r\n1;a\r\n2; B \r\n"  # as a spreadsheet stores it
    Path("carl.csv").write_text(semicolons, encoding="utf-8")
    assert cli.main(["harmonized", "study", "--answers", "carl.csv", "--json", "votes.json"]) == 0
    assert json.loads(Path("votes.json").read_text())["votes"] == 2


def test_answers_that_somebody_filled_in_are_not_replaced(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["harmonized", "study", *METHODS]) == cli.main(["harmonized", "study", *METHODS]) == 0
    Path("study/answers.csv").write_text("row,x\n1,A\n2,\n")
    assert cli.main(["harmonized", "study", *METHODS]) == 2
    assert "out: expected a folder without answers, got study/answers.csv" in capsys.readouterr().err
    assert Path("study/answers.csv").read_text() == "row,x\n1,A\n2,\n"


def test_a_damaged_result_leaves_no_sheet(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sean/t4_r4.png").write_bytes(b"no picture")
    assert cli.main(["harmonized", "study", *METHODS, "--per-sheet", "1"]) == 2
    assert "t4_r4.png" in capsys.readouterr().err and not Path("study").exists()


def test_a_study_of_drawn_faces(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --method: results with and without attention are made here; those of another seed are not among them."""
    monkeypatch.chdir(tmp_path)
    for seed in ("1", "0"):
        assert cli.main(["harmonized", "study", "--model", file, "--rows", "3", "--seed", seed]) == 0
    key = list(csv.reader(Path("study/key.csv").open()))
    assert len(key) == 4 and all(sorted(line[2:]) == ["attention", "without"] for line in key[1:])
    for line in key[1:]:
        pictures = [_pixels(f"study/drawn/{kind}/{line[1]}.png") for kind in ("target", "attention", "without")]
        assert not np.array_equal(pictures[1], pictures[2]) and pictures[0].shape == pictures[1].shape
    assert _pixels("study/sheet_1.png").shape[1] > 4 * 64


def test_every_method_stands_under_every_letter_equally_often(tmp_path: Path) -> None:
    folders = {name: {f"{i:02}": tmp_path for i in range(12)} for name in ("a", "b", "c")}
    rows = planned(folders, 12, 0)
    for place in range(3):
        assert sorted(row.methods[place] for row in rows) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert len({row.methods for row in rows}) > 3  # not one rotation alone
    assert planned(folders, 12, 0) == rows != planned(folders, 12, 1)
    some = planned(folders, 5, 0)
    assert len(some) == len({row.name for row in some}) == 5


STUDY_BAD: dict[str, tuple[list[str], str]] = {
    "shown alone": (["--shown", "targets"], "method: expected results, NAME=FOLDER, to stand behind those of --shown"),
    "no votes": ([*METHODS, "--json", "votes.json"], "json: expected it with --answers, whose votes it gets, got it alone"),
    "no attention": (["--model", "bare.safetensors"], "model: expected one with attention, for its results with and"),
    "one method": (METHODS[:2], "method: expected 2 to 26 methods, got 1"),
    "form": (["--method", "ours", "--method", "a=b"], "method: expected NAME=FOLDER, got 'ours'"),
    "twice": (["--method", "a=ours", "--method", "a=sean"], "method: expected every name once, got a, a"),
    "no folder": (["--method", "a=ours", "--method", "b=nowhere"], "nowhere: no such folder"),
    "nothing shared": (["--method", "a=ours", "--method", "b=targets"], "method: expected results of the same names"),
    "not shown": ([*METHODS, "--shown", "lone"], "shown: lone: expected one picture called t0_r0, or as its target"),
    "both": ([*METHODS, "--answers", "x.csv"], "answers: expected them or --method and --shown, got both"),
    "no key": (["--answers", "x.csv"], "key.csv: no such file (expected the key of a study"),
    "out over input": ([*METHODS, "--out", "ours/t0_r0.png"], "lies below"),
}


@pytest.mark.parametrize("case", STUDY_BAD)
def test_a_study_refuses(case: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = STUDY_BAD[case]
    if case == "no attention":
        small_model(attention=False).save("bare.safetensors")
    save_image(results / "lone" / "x.png", np.zeros((64, 64, 3), np.uint8))
    assert cli.main(["harmonized", "study", *words]) == 2
    assert message in capsys.readouterr().err and not Path("study").exists()


def test_answers_that_do_not_fit_the_key(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["harmonized", "study", *METHODS]) == 0
    for text, message in (
        ("row,x\n1,D\n", "row 1: expected A/B/C, got 'D'"),
        ("row,x\n9,A\n", "row 9: expected no such row"),
        ("row,x\n1,A\n1,B\n", "row 1: expected one answer, got A and B"),
        ("row,x\n1,\n2,\n", "answers: x.csv: expected a letter in the second column of some row, got none"),
        ("", "answers: x.csv: expected a letter"),
    ):
        Path("x.csv").write_text(text)
        assert cli.main(["harmonized", "study", "--answers", "x.csv"]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["harmonized", "study", "--answers", "x.csv", "--answers", "./x.csv", "--json", "x.csv"]) == 2
    assert "json: expected another file than x.csv: it is an input" in capsys.readouterr().err
    Path("x.csv").write_text("row,x\n1,A\n")
    assert cli.main(["harmonized", "study", "--answers", "x.csv", "--answers", "./x.csv"]) == 2
    assert "answers: expected every file once, got ./x.csv twice" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- bad input

A, B = ["--image", "a.png"], ["--reference", "b.png"]
BAD: dict[str, tuple[str, list[str], str]] = {
    "no reference": ("transfer", A, "reference: expected at least one picture, got none"),
    "no target": ("transfer", B, "image: expected at least one picture, got none"),
    "no label map": ("transfer", [*A, "--reference", "f.png"], "f.png: has no label map; looked for"),
    "no image": ("transfer", ["--image", "nowhere.png", *B], "nowhere.png: no such image"),
    "region": (
        "transfer",
        [*A, *B, "--region", "har"],
        "region: unknown region 'har'; the model has hair, skin, background",
    ),
    "no region": ("transfer", [*A, *B, "--region", ""], "region: expected at least one region or group, got none"),
    "target lacks": ("transfer", ["--image", "e.png", *B], "region: e has no hair at half the model's size; it has"),
    "reference lacks": ("transfer", [*A, "--reference", "e.png"], "region: e has no hair"),
    "same names": ("sample", [*A, "--image", "x/a.png"], "image: expected pictures of different names"),
    "empty folder": ("tune", ["--image", "empty"], "empty: holds no picture"),
    "over input": ("transfer", [*A, *B, "--json", "b.png"], "json: expected another file than b.png: it is an input"),
    "over map": ("transfer", [*A, *B, "--sheet", "a_labels.png"], "sheet: expected another file than a_labels.png"),
    "out is a file": ("transfer", [*A, *B, "--out", "b.png"], "lies below"),
    "suffix": ("transfer", ["--sheet", "s.jpg"], "sheet: expected a file name ending in .png, got s.jpg"),
    "no model": ("sample", ["--model", "nowhere"], "nowhere: no such file"),
    "device": ("sample", ["--device", "tpu"], "device: expected cpu or cuda[:n], got 'tpu'"),
    "count": ("sample", ["--count", "0"], "count: expected at least 1, got 0"),
    "seed": ("sample", ["--seed", "-1"], "seed: expected at least 0, got -1"),
    "not drawable": ("sample", [*A, "--region", "neck"], "region: no mapping network makes codes of neck"),
    "absent": ("sample", ["--image", "e.png"], "region: e has no hair"),
    "labels of none": ("sample", [*A, "--labels", "b.png=b_labels.png"], "labels: no image of this command belongs to"),
    "group": ("tune", [*A, "--group", "neck"], "group: expected one with a flow (hair, skin), got 'neck'"),
    "group absent": ("tune", ["--image", "e.png", "--group", "hair"], "group: e has no hair"),
    "directions": ("tune", ["--direction", "1,1"], "direction: expected different seeds, 0 or more, got 1, 1"),
    "amounts": ("tune", ["--amounts", ""], "amounts: expected at least one, got none"),
    "no new map": ("reshape", A, "new-labels: expected an edited label map, got none"),
    "new map alone": ("reshape", ["--new-labels", "new.png"], "image: expected the picture to reshape, got none"),
    "no such map": ("reshape", [*A, "--new-labels", "nowhere.png"], "nowhere.png: no such image"),
    "no strokes": ("recolour", A, "strokes: expected a picture with strokes, got none"),
    "strokes alone": ("recolour", ["--strokes", "strokes.png"], "image: expected the picture to recolour, got none"),
    "strokes' size": (
        "recolour",
        ["--image", "d.png", "--strokes", "strokes.png"],
        "strokes: strokes.png: expected 80 x 90",
    ),
    "nowhere": ("recolour", [*A, "--strokes", "nowhere.png"], "nowhere.png: no such image"),
    "both": ("reconstruct", [*A, "--data", "x"], "data: expected it or --image, got both: x and a.png"),
    "twice": ("reconstruct", [*A, "--image", "x/a.png"], "image: expected pictures of different names"),
    "limit": ("reconstruct", ["--limit", "0"], "limit: expected at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_before_any_work(
    case: str, file: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, words, message = BAD[case]
    before = sorted(photos.rglob("*"))
    assert _run(verb, file, *words) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and sorted(photos.rglob("*")) == before


def test_strokes_that_paint_nothing(file: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save("empty.png")
    assert _run("recolour", file, *A, "--strokes", "empty.png") == 2
    assert "strokes: expected opaque pixels inside a region, got none" in capsys.readouterr().err
    assert set(GROUPS) == {"hair", "skin"} and not Path("recoloured.png").exists()
