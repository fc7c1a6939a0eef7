"""`mixsyn-fast mixsyn compose | edit | diversity`: what they write, what they refuse; refusing leaves nothing behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.data import FACADE_CLASSES, FACE_CLASSES, draw_facade, draw_face, merged
from mixsyn_fast.models.mixsyn import compose, diversity, edit, study
from mixsyn_fast.models.mixsyn.compose import split_regions
from mixsyn_fast.models.mixsyn.compositions import coupled_groups
from mixsyn_fast.models.mixsyn.config import Config, StructureConfig, StyleConfig
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.mixsyn.sequential import sequential
from mixsyn_fast.models.mixsyn.structure import StructureGenerator
from mixsyn_fast.models.mixsyn.style import StyleGenerator
from mixsyn_fast.models.pictures.files import save_image, save_labels
from mixsyn_fast.models.pictures.options import drawn_source
from mixsyn_fast.models.pictures.picture import Picture, fit, read_picture
from mixsyn_fast.models.sheets import contact_sheet

from mixsyn_fast import cli

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")


def _tiny(classes: tuple[str, ...]) -> MixSyn:
    structure = StructureConfig(width=2, code_channels=4, code_size=8, decoder_width=8, decoder_smallest=4)
    style = StyleConfig(
        code_length=8,
        encoder_width=2,
        encoder_largest=4,
        encoder_halvings=2,
        width=4,
        largest=8,
        start_size=8,
        hidden=4,
    )
    config = Config(classes=classes, image_size=(32, 32), structure=structure, style=style)
    torch.manual_seed(0)
    return MixSyn(StructureGenerator(config), StyleGenerator(config), config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    _tiny(FACADE_CLASSES).save(path)
    return str(path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures a to d with label maps beside them, d of another size; e without a door; f without a label map."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, seed, size in (("a", 3, 32), ("b", 5, 32), ("c", 7, 32), ("d", 11, (50, 40)), ("e", 13, 32), ("f", 17, 32)):
        image, labels = draw_facade(seed, size)
        if name == "e":
            labels = np.where(labels == FACADE_CLASSES.index("door"), FACADE_CLASSES.index("facade"), labels)
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


@pytest.fixture
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 64 pixels: compressing large sheets takes most of the time."""
    monkeypatch.setattr("mixsyn_fast.models.pictures.sheets._SIDE", 64)


def _read(name: str) -> Picture:
    return fit(read_picture(f"{name}.png", classes=FACADE_CLASSES, kind="folder"), (32, 32))


def _pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _options(model: str) -> list[str]:
    return ["--model", model, "--kind", "folder"]


# ------------------------------------------------------------------------------------------------------------ compose


def test_compose_writes_what_the_model_makes(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--region", "window=a.png", "--region", "door=b.png", "--region", "facade=d.png", "--base", "c.png"]
    out, labels, sheet = photos / "new/x.png", photos / "new/l.png", photos / "deep/er/s.png"
    written = ["--out", str(out), "--labels-out", str(labels), "--sheet", str(sheet), "--compare"]
    assert cli.main(["mixsyn", "compose", *given, *_options(model), *written]) == 0
    regions = {"window": _read("a"), "door": _read("b"), "facade": _read("d")}
    expected = MixSyn.load(model).compose(regions, _read("c"))
    assert np.array_equal(_pixels(out), expected.image)
    assert np.array_equal(_pixels(labels), expected.labels)
    assert _pixels(sheet).shape[1] > 4 * 224
    assert sorted(os.listdir(photos / "new")) == ["l.png", "x.png"] and os.listdir(sheet.parent) == ["s.png"]
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in (out, labels, sheet))


def test_compose_without_a_base_and_label_maps_elsewhere(model: str, photos: Path) -> None:
    (photos / "maps").mkdir()
    os.rename("a_labels.png", "maps/of_a.png")
    given = ["--region", "window=a.png", "--region", "door=b.png", "--labels", "a.png=maps/of_a.png"]
    assert cli.main(["mixsyn", "compose", *given, *_options(model), "--sheet", "s.png", "--compare"]) == 0
    image, labels = draw_facade(3, 32)
    window = Picture(image, labels.astype(np.int32), "a")
    expected = MixSyn.load(model).compose({"window": window, "door": _read("b")})
    assert np.array_equal(_pixels("composed.png"), expected.image)


def test_a_sheet_outlines_sources_and_lists_regions(model: str, photos: Path) -> None:
    one = ["mixsyn", "compose", "--region", "window=a.png", *_options(model), "--sheet", "one.png"]
    assert cli.main(one) == 0
    assert cli.main([*one[:-1], "many.png", *(f"--region={r}={p}.png" for r, p in (("door", "b"), ("facade", "c")))]) == 0
    assert (
        cli.main(
            ["mixsyn", "compose", "--region", "window=a.png", "--base", "c.png", *_options(model), "--sheet", "base.png"]
        )
        == 0
    )
    sizes = [_pixels(name).shape[:2] for name in ("one.png", "many.png", "base.png")]
    assert sizes[0] == sizes[2]  # both have one row of sources
    red = (_pixels("one.png") == (242, 0, 0)).all(2).sum()
    assert red > 500 and (_pixels("many.png") == (0, 97, 242)).all(2).sum() > 200


def test_meaning_of_ids_follows_kind(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["mixsyn", "compose", "--region", "window=a.png", "--model", model]
    assert cli.main(given) == 2
    assert "give kind (--kind)" in capsys.readouterr().err
    save_labels(photos / "a_labels.png", draw_facade(3, 32)[1] + 1, 13)
    assert cli.main([*given, "--kind", "cmp_facade"]) == 0
    first = _pixels("composed.png")
    assert cli.main([*given, "--kind", "folder", "--first-id", "1"]) == 0
    assert np.array_equal(_pixels("composed.png"), first)


BAD = [
    (["--base", "c.png", "--crop", "random"], "--crop: expected"),
    (["--table", "t.csv"], "--out-dir: expected one with --table, got none"),
    (["--table", "t.csv", "--out-dir", "o", "--base", "c.png"], "--base: expected none with --table"),
    (["--table", "nowhere.csv", "--out-dir", "o"], "nowhere.csv"),
    (["--base", "c.png", "--region", "door=none", "--region", "doors=none"], "unknown region 'doors'"),
    (["--region", "window"], "--region: expected REGION=FILE, got 'window'"),
    (["--region", "=a.png"], "--region: expected REGION=FILE, got '=a.png'"),
    (["--region", "window="], "--region: expected REGION=FILE, got 'window='"),
    (
        ["--region", "windows=a.png"],
        "unknown region 'windows'; the model's regions are background, facade, window",
    ),
    (["--region", "door=a.png", "--region", "door=b.png"], "--region: expected every region once, got door from a.png"),
    (["--region", "window=zzz.png"], "zzz.png: no such image"),
    (["--region", "window=."], "expected an image file, got a folder"),
    (["--region", "door=e.png"], "door: e at 32 x 32 pixels has no such region"),
    (["--region", "window=f.png"], "f.png: has no label map; looked for"),
    (["--region", "window=text.png"], "not a readable image file"),
    (["--region", "window=a.png", "--base", "text.png"], "not a readable image file"),
    (["--region", "window=a.png", "--labels", "a.png=nowhere.png"], "nowhere.png: no such label map"),
    (["--region", "window=a.png", "--labels", "a.png=d_labels.png"], "label map is 40 x 50"),
    (["--region", "window=a.png", "--labels", "b.png=b_labels.png"], "no image of this command belongs to b_labels.png"),
    (["--region", "window=a.png", "--labels", "a.png"], "--labels: expected IMAGE=FILE, got 'a.png'"),
    (
        ["--region", "window=a.png", "--labels", "a.png=a_labels.png", "--labels", "./a.png=b_labels.png"],
        "--labels: expected one label map per image, got two for ./a.png",
    ),
    (["--region", "window=a.png", "--labels", "a.png=wrong.png"], "expected class ids 0..11, got 99"),
    (["--region", "window=a.png", "--merge", "meta"], "are not the meta types of any set"),
    (["--region", "window=a.png", "--out", "x.jpg"], "--out: expected a file name ending in .png"),
    (["--region", "window=a.png", "--labels-out", "x"], "--labels-out: expected a file name ending in .png"),
    (["--region", "window=a.png", "--compare"], "--compare: needs --sheet"),
    (["--region", "window=a.png", "--device", "abacus"], "--device: expected cpu or cuda"),
    (["--region", "window=a.png", "--model", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
    (["--region", "window=a.png", "--model", "text.png"], "text.png"),
    (["--region", "window=a.png", "--model", "empty"], "empty"),
    (["--region", "window=a.png", "--device", "meta"], "--device: expected cpu or cuda"),
    (["--region", "window=a.png", "--device", "cuda:99"], "--device: cuda:99 asked for, but torch sees"),
    (["--region", "window=a.png", "--out", "text.png/x.png"], "--out: text.png/x.png lies below"),
    (["--region", "window=a.png", "--out", "dir.png"], "--out: expected a file, got the folder dir.png"),
    (["--region", "window=a.png", "--sheet", "dir.png"], "--sheet: expected a file, got the folder dir.png"),
    (["--region", "window=a.png", "--labels-out", "dir.png"], "--labels-out: expected a file, got the folder dir.png"),
    (
        ["--region", "window=a.png", "--sheet", "./composed.png"],
        "--sheet: expected another file than composed.png: it is the",
    ),
    (
        ["--region", "window=a.png", "--labels-out", "x.png", "--sheet", "x.png"],
        "--sheet: expected another file than x.png: it is the file of --labels-out",
    ),
    (["--region", "window=a.png", "--base", "c.png", "--out", "c.png"], "--out: expected another file than c.png: it is an"),
    (
        ["--region", "window=a.png", "--labels-out", "a_labels.png"],
        "--labels-out: expected another file than a_labels.png: it is where the label map of a.png is looked for",
    ),
    (["--region", "window=photo.jpg", "--out", "photo.png"], "--out: expected another file than photo.png: it is where"),
    (["--region", "window=a.png", "--out", "../labels/a.png"], "than ../labels/a.png: it is where the label map of a.png"),
    (
        ["--region", "window=a.png", "--labels", "a.png=b_labels.png", "--out", "b_labels.png"],
        "--out: expected another file than b_labels.png: it is a label map",
    ),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[" ".join(arguments) or "nothing" for arguments, _ in BAD])
def test_bad_input_is_named(
    arguments: list[str], message: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "text.png").write_text("no image")
    (photos / "empty").mkdir()
    (photos / "dir.png").mkdir()
    save_labels(photos / "wrong.png", np.full((32, 32), 99), 100)
    before = sorted(os.listdir(photos))
    assert cli.main(["mixsyn", "compose", *_options(model), *arguments]) == 2
    error = capsys.readouterr().err
    said = [line for line in error.splitlines() if not line.startswith("  ... ")]  # a slow machine reports what it waits for
    assert message in error and len(said) == 1, error
    assert sorted(os.listdir(photos)) == before


def test_a_source_without_the_region_lists_those_it_has(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mixsyn", "compose", *_options(model), "--region", "door=e.png"]) == 2
    error = capsys.readouterr().err
    assert "door" in error and "it has background, facade, window" in error


def test_photos_may_be_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsyn_fast.models import face_parser

    image, labels = draw_face(1, 32)
    opened = []

    def load(path: str) -> SimpleNamespace:
        opened.append(path)
        parser = SimpleNamespace(parse=lambda photo, *_: labels)
        parser.to = lambda device: parser
        return parser

    monkeypatch.setattr(face_parser, "load_face_parser", load)
    monkeypatch.chdir(tmp_path)
    _tiny(FACE_CLASSES).save("faces.safetensors")
    for name in "ab":
        save_image(Path(f"{name}.png"), image)
    given = ["--region", "hair=a.png", "--base", "b.png", "--model", "faces.safetensors"]
    assert cli.main(["mixsyn", "compose", *given, "--parser", "weights.pth"]) == 0
    assert opened == ["weights.pth"]  # once for both photos
    picture = Picture(image, labels.astype(np.int32), "a")
    assert np.array_equal(
        _pixels("composed.png"), MixSyn.load("faces.safetensors").compose({"hair": picture}, picture).image
    )


def test_the_functions_take_values(model: str, photos: Path) -> None:
    """A notebook or a server calls what the commands call."""
    assert compose.main(compose.Options(model=model, region=("window=a.png",), base="c.png", kind="folder")) == 0
    assert np.array_equal(_pixels("composed.png"), MixSyn.load(model).compose({"window": _read("a")}, _read("c")).image)
    with pytest.raises(ValueError, match="^out_dir: expected one with --table, got none$"):
        compose.Options(table="c.csv")


@pytest.mark.usefixtures("small_sheets")
@pytest.mark.parametrize(
    ("verb", "written"),
    [("compose", ["composed.png", "s.png"]), ("edit", ["edited.png", "s.png"]), ("diversity", ["diversity.png", "s.png"])],
)
def test_every_verb_runs_at_once(
    verb: str, written: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without pictures it draws some that fit the model; --seed chooses which."""
    monkeypatch.chdir(tmp_path)
    few = ["--sources", "2", "--count", "2"] if verb == "diversity" else []
    given = ["mixsyn", verb, "--model", model, "--sheet", "s.png", *few]
    assert cli.main(given) == 0
    assert sorted(os.listdir(tmp_path)) == written
    first, sheet = _pixels(written[0]), _pixels("s.png")
    assert cli.main([*given, "--seed", "0"]) == 0
    assert np.array_equal(_pixels(written[0]), first) and np.array_equal(_pixels("s.png"), sheet)
    assert cli.main([*given, "--seed", "5"]) == 0
    assert not np.array_equal(_pixels("s.png"), sheet)
    assert cli.main([*given, "--seed", "-1"]) == 2
    assert "--seed: expected at least 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["compose", "edit", "diversity", "evaluate"])
def test_what_nothing_is_drawn_for_is_said(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _tiny(("sky", "sea")).save("other.safetensors")
    assert cli.main(["mixsyn", verb, "--model", "other.safetensors"]) == 2
    assert "--model: nothing drawn by code has its regions (sky, sea): give pictures" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["other.safetensors"]


def test_drawn_pictures_of_faces_and_of_region_types() -> None:
    faces = drawn_source(FACE_CLASSES, (32, 32), 2)
    types = drawn_source(merged(faces, "meta").classes, (32, 32), 2)
    assert tuple(faces.classes) == tuple(FACE_CLASSES) and len(types.classes) < len(FACE_CLASSES)
    assert faces.names() == ["seed_2000000000", "seed_2000000001"]  # no training set has drawn them


# --------------------------------------------------------------------------------------------------------------- edit


@pytest.mark.usefixtures("small_sheets")
def test_edit_chain(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--step", "window=a.png", "--step", "door=b.png,facade=d.png", "--step", "window=c.png"]
    steps += ["--step", "facade=c.png,door=c.png"]
    written = ["--out", "o/last.png", "--sheet", "o/s.png", "--json", "o/t.json", "--compare", "--outside", "made"]
    assert cli.main(["mixsyn", "edit", "--base", "c.png", *steps, *_options(model), *written]) == 0
    assert np.array_equal(_pixels("o/last.png"), MixSyn.load(model).compose({}, _read("c")).image)  # all came back
    assert sorted(os.listdir("o")) == ["last.png", "s.png", "t.json"]
    found = json.loads(Path("o/t.json").read_text())
    assert found["base"] == "c.png" and found["size"] == [32, 32]
    assert [step["regions"] for step in found["steps"]][1] == {"door": "b.png", "facade": "d.png"}
    assert [step["encoded"] for step in found["steps"]] == [["window"], ["door", "facade"], [], []]  # undone, not encoded
    for step in found["steps"]:
        for seconds in (step["seconds"], step["full_pass_seconds"]):
            assert seconds["total"] == pytest.approx(seconds["encode"] + seconds["decode"] + seconds["generate"])
        assert 0 <= step["drift"]["mean_outside"] <= step["drift"]["max_outside"] <= 255
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["step", "edit"] and printed[2].startswith("2 door, facade")
    assert len({len(line) for line in printed[:5]}) == 1  # columns line up


def test_edits_at_the_bases_size_step_by_step(model: str, photos: Path) -> None:
    """A base of 40 x 50 keeps its size and what the crop cut off; regions go, coupled ones come along."""
    stored = read_picture("d.png", classes=FACADE_CLASSES, kind="folder")
    steps = ["--step", "door=none", "--step", "window=a.png", "--coupled", "--out-dir", "o"]
    assert cli.main(["mixsyn", "edit", "--base", "d.png", *steps, *_options(model), "--json", "t.json"]) == 0
    names = ["00_start", "01_door", "02_window"]
    assert sorted(os.listdir("o")) == sorted(f"{name}{end}.png" for name in names for end in ("", "_labels"))
    assert np.array_equal(_pixels("edited.png"), _pixels("o/02_window.png")) and _pixels("edited.png").shape == (50, 40, 3)
    mixsyn = MixSyn.load(model)
    editor = mixsyn.editor(stored)
    assert np.array_equal(_pixels("o/00_start.png"), mixsyn.at_own_size(editor.current, stored).image)
    without = editor.replace({"door": None}, outside="layers")  # what the command does unless told otherwise
    assert "door" not in without.table and FACADE_CLASSES.index("door") in stored.labels
    assert np.array_equal(_pixels("o/01_door_labels.png"), mixsyn.at_own_size(without, stored).labels)
    sills = mixsyn.coupled({"window": _read("a")})
    assert set(sills) == {"window", "cornice", "sill"}
    has = mixsyn.regions_of(_read("a"))
    assert {name for name, picture in sills.items() if picture is not None} == set(sills) & set(has)
    assert np.array_equal(_pixels("edited.png"), mixsyn.at_own_size(editor.replace(sills, outside="layers"), stored).image)
    assert [step["regions"] for step in json.loads(Path("t.json").read_text())["steps"]] == [
        {"door": None},
        {"window": "a.png"},
    ]
    assert cli.main(["mixsyn", "edit", "--base", "d.png", *_options(model), "--out-size", "model"]) == 0  # no step
    assert np.array_equal(_pixels("edited.png"), mixsyn.compose({}, stored).image)


def test_a_table_of_compositions(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("name,base,window,door\nfirst,c.png,a.png,\nsecond,d.png,,none\n", encoding="utf-8-sig")
    listed = [{"name": "first", "base": "c.png", "regions": {"window": "a.png"}},
              {"name": "second", "base": "d.png", "regions": {"door": None}}]  # fmt: skip
    Path("t.json").write_text(json.dumps(listed))
    for file in ("t.csv", "t.json"):
        assert cli.main(["mixsyn", "compose", "--table", file, "--out-dir", f"of_{file}", *_options(model), "--keep"]) == 0
        assert sorted(os.listdir(f"of_{file}")) == ["first.png", "first_labels.png", "second.png", "second_labels.png"]
    mixsyn = MixSyn.load(model)
    stored = read_picture("d.png", classes=FACADE_CLASSES, kind="folder")
    expected = mixsyn.at_own_size(mixsyn.compose({"door": None}, stored), stored, keep=True)
    assert np.array_equal(_pixels("of_t.csv/second.png"), expected.image)
    for name in os.listdir("of_t.csv"):
        assert np.array_equal(_pixels(f"of_t.csv/{name}"), _pixels(f"of_t.json/{name}"))
    bad = {
        "name,base\nfirst,c.png\nfirst,d.png\n": "row 2: name: expected every name once, got 'first' again",
        "name,base,wall\nx,c.png,a.png\n": "row 1 (x): regions: unknown region 'wall'",
        "name,base,door\nx,c.png,e.png\n": "row 1 (x): regions: door: e at 32 x 32 pixels has no such region",
        "base\nc.png\n": "expected a first line of different columns, name among them, got base",
        "name,base\nx\n": "row 1: expected 2 cells, got 1",
        "name,base\n../x,c.png\n": "expected the name of a file without a folder, got '../x'",
        "name,base,door\nx,,none\n": "row 1: expected a base or a region with a file, got neither",
        "name,base\n": "expected at least one composition, got none",
    }
    capsys.readouterr()
    for content, message in bad.items():
        Path("t.csv").write_text(content)
        assert cli.main(["mixsyn", "compose", "--table", "t.csv", "--out-dir", "new", *_options(model)]) == 2
        assert message in capsys.readouterr().err
    for value in ({"name": "x"}, [{"name": "x", "base": 3}], [3], [{"name": "x", "regions": ["a"]}]):
        Path("t.json").write_text(json.dumps(value))
        assert cli.main(["mixsyn", "compose", "--table", "t.json", "--out-dir", "new", *_options(model)]) == 2
        assert "expected" in capsys.readouterr().err
    assert not Path("new").exists()


def test_drift_of_a_step_is_measured_from_the_one_before(model: str, photos: Path) -> None:
    mixsyn = MixSyn.load(model)
    base, a, b = _read("c"), _read("a"), _read("b")
    start, steps = edit.chain(mixsyn, base, [{"window": a}, {"facade": b}])
    states = [start, *(step.result for step in steps)]
    for (before, after), step in zip(pairwise(states), steps, strict=True):
        which = [mixsyn.classes.index(name) for name in step.regions]
        outside = ~(np.isin(before.labels, which) | np.isin(after.labels, which))
        change = np.abs(before.image.astype(int) - after.image)
        assert step.drift.outside == pytest.approx(outside.mean())
        assert step.drift.mean_outside == pytest.approx(change[outside].mean() if outside.any() else 0)
    assert np.array_equal(start.image, mixsyn.compose({}, base).image)


@pytest.mark.parametrize(
    "steps, message",
    [
        (["window"], "--step: expected REGION=FILE, got 'window'"),
        (["window=a.png,door"], "a.png,door: no such image"),
        (["window=a.png,window=b.png"], "--step: expected every region once, got window from a.png and from b.png"),
        (["tower=a.png"], "--step: unknown region 'tower'"),
        (["window=a.png", "door=e.png"], "door: e at 32 x 32 pixels has no such region"),
    ],
)
def test_bad_steps_are_named(
    steps: list[str], message: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir(photos))
    given = [part for step in steps for part in ("--step", step)]
    assert cli.main(["mixsyn", "edit", "--base", "c.png", *given, *_options(model)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(os.listdir(photos)) == before


@pytest.mark.parametrize(
    "written, message",
    [
        (["--out", "c.png"], "--out: expected another file than c.png: it is an input"),
        (["--out", "a_labels.png"], "--out: expected another file than a_labels.png: it is where the label map of a.png"),
        (["--sheet", "edited.png"], "--sheet: expected another file than edited.png: it is the file of --out"),
        (["--sheet", "x.png", "--json", "x.png"], "--json: expected another file than x.png: it is the file of --sheet"),
        (["--json", "."], "--json: expected a file, got the folder ."),
    ],
)
def test_outputs_are_checked_before_any_work(
    written: list[str], message: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["mixsyn", "edit", "--base", "c.png", "--step", "window=a.png,door=b.png", "--model", "nowhere"]
    assert cli.main([*given, *written]) == 2
    assert message in capsys.readouterr().err


ROOT = Path(__file__).parents[3]


def _printed(command: str) -> list[tuple[str, str]]:
    """All examples of a command in docstrings, which are its help, and in the documents: (where, line)."""
    texts = {"help": {"compose": compose, "edit": edit}[command].__doc__ or ""}
    texts |= {
        str(path.relative_to(ROOT)): path.read_text()
        for path in (ROOT / "docs/compose.md", ROOT / "models/mixsyn/README.md")
    }
    joined = {where: text.replace("\\\n", " ") for where, text in texts.items()}
    return [
        (where, line)
        for where, text in joined.items()
        for line in re.findall(rf"^ +\S*mixsyn-fast mixsyn {command} (.*--base.*)$", text, re.M)
    ]


@pytest.mark.usefixtures("small_sheets")
@pytest.mark.parametrize("command, where, line", [(c, *found) for c in ("compose", "edit") for found in _printed(c)])
def test_printed_commands_run(command: str, where: str, line: str, model: str, tmp_path: Path) -> None:
    for name, seed in zip("abc", _with(("window", "door", "shop", "balcony")), strict=True):
        image, labels = draw_facade(seed, 32)
        save_image(tmp_path / f"{name}.png", image)
        os.rename(tmp_path / f"{name}.png", tmp_path / f"{name}.jpg")
        save_labels(tmp_path / f"{name}_labels.png", labels, 12)
    with contextlib.chdir(tmp_path):
        assert cli.main(["mixsyn", command, *shlex.split(line), "--model", model]) == 0


def test_commands_are_printed() -> None:
    for command in ("compose", "edit"):
        assert {where for where, _ in _printed(command)} == {"help", "docs/compose.md", "models/mixsyn/README.md"}


def _with(regions: tuple[str, ...]) -> list[int]:
    """Seeds of the first three drawings that have the regions."""
    wanted = {FACADE_CLASSES.index(name) for name in regions}
    seeds = (seed for seed in itertools.count() if wanted <= set(np.unique(draw_facade(seed, 32)[1]).tolist()))
    return list(itertools.islice(seeds, 3))


def test_commas_in_file_names_stay() -> None:
    assert split_regions("door=b, my house.jpg,shop=c=1,2.jpg") == ["door=b, my house.jpg", "shop=c=1,2.jpg"]
    assert split_regions("door=a,b/c=d.jpg") == ["door=a,b/c=d.jpg"]  # a folder named "a,b"


# ---------------------------------------------------------------------------------------------------------- diversity


@pytest.mark.usefixtures("small_sheets")
def test_diversity_of_drawn_pictures(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "mixsyn",
        "diversity",
        "--kind",
        "procedural_facades",
        "--model",
        model,
        "--regions",
        "window,facade",
        "--sources",
        "3",
    ]
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    assert cli.main([*given, "--count", "5", "--out", str(paths[0])]) == 0
    assert "5 of 9 combinations of window, facade from 3 pictures" in capsys.readouterr().out
    assert cli.main([*given, "--count", "5", "--out", str(paths[1]), "--compare"]) == 0
    assert cli.main([*given, "--count", "5", "--out", str(paths[2])]) == 0
    assert np.array_equal(_pixels(paths[0]), _pixels(paths[2]))
    assert _pixels(paths[1]).shape[0] > _pixels(paths[0]).shape[0]
    assert cli.main([*given, "--count", "50", "--seed", "1", "--out", str(paths[2])]) == 0
    assert "9 of 9" in capsys.readouterr().out
    coupled = [*given[:7], "window,sill", *given[8:], "--count", "50", "--out", str(paths[2])]
    assert cli.main(coupled) == 0
    assert "3 of 3 combinations" in capsys.readouterr().out
    assert cli.main([*coupled, "--no-coupled"]) == 0
    assert "9 of 9 combinations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--kind", "procedural_faces"], "--data: procedural_faces has not the model's regions: 19 classes instead of 12"),
        (["--kind", "procedural_facades", "--regions", "tower"], "--regions: unknown region 'tower'"),
        (["--kind", "procedural_facades", "--regions", "door,door"], "--regions: expected one or more regions, each once"),
        (["--kind", "procedural_facades", "--regions", ","], "--regions: expected one or more regions"),
        (["--kind", "procedural_facades", "--sources", "1"], "--sources: expected at least 2, got 1"),
        (["--kind", "procedural_facades", "--count", "0"], "--count: expected at least 1, got 0"),
        (["--kind", "procedural_facades", "--seed", "-1"], "--seed: expected at least 0"),
        (["--kind", "procedural_facades", "--out", "dir.png"], "--out: expected a file, got the folder dir.png"),
        (["--kind", "procedural_facades", "--out", "x.gif"], "--out: expected a file name ending in .png"),
        (["--data", "set", "--kind", "folder", "--sources", "3"], "--sources: expected 3 pictures with any region, found 2"),
    ],
)
def test_bad_diversity_is_named(
    arguments: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "set/classes.txt").write_text("\n".join(FACADE_CLASSES))
    for i in range(2):
        image, labels = draw_facade(i, 32)
        save_image(tmp_path / f"set/images/{i}.png", image)
        save_labels(tmp_path / f"set/labels/{i}.png", labels, 12)
    before = sorted(os.listdir(tmp_path))
    assert cli.main(["mixsyn", "diversity", "--model", model, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


REGIONS = ("window", "cornice", "door")


def _having(has: list[tuple[bool, ...]]) -> Any:
    """Stands for a model whose pictures are rows that say which regions they have."""
    return SimpleNamespace(
        classes=REGIONS,
        config=SimpleNamespace(groups=coupled_groups(REGIONS)),
        regions_of=lambda picture: [name for name, there in zip(REGIONS, picture, strict=True) if there],
    )


def test_groups_are_the_models_among_the_regions() -> None:
    mixsyn = _having([])
    assert diversity.region_groups(mixsyn, ["door", "cornice", "window"], True) == [("window", "cornice"), ("door",)]
    assert diversity.region_groups(mixsyn, ["door", "cornice"], True) == [("cornice",), ("door",)]
    assert diversity.region_groups(mixsyn, ["door", "cornice", "window"], False) == [("door",), ("cornice",), ("window",)]


@given(
    st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=4), st.integers(1, 30), st.integers(0, 99), st.booleans()
)
def test_combinations_differ_and_use_what_there_is(
    has: list[tuple[bool, ...]], count: int, seed: int, coupled: bool
) -> None:
    mixsyn = _having(has)
    groups = diversity.region_groups(mixsyn, REGIONS, coupled)
    found = diversity.combinations(mixsyn, has, groups, count, seed)  # type: ignore[arg-type]
    possible = 1
    for group in groups:
        possible *= sum(any(row[REGIONS.index(name)] for name in group) for row in has) or 1
    assert len(found) == len({tuple(choice.items()) for choice in found}) == min(count, possible)
    for choice in found:
        assert set(choice) == set(REGIONS)
        for group in groups:
            (source,) = {choice[name] for name in group if choice[name] >= 0} or {-1}  # one for the group
            for name in group:
                there = source >= 0 and has[source][REGIONS.index(name)]
                assert choice[name] == (source if there else -1)
            assert source >= 0 or not any(row[REGIONS.index(name)] for row in has for name in group)
    assert found == diversity.combinations(mixsyn, has, groups, count, seed)  # type: ignore[arg-type]


def test_what_a_source_lacks_of_a_group_is_absent(model: str) -> None:
    mixsyn = MixSyn.load(model)
    drawn = ((name, *draw_facade(seed, 32)) for name, seed in (("base", 3), ("a", 5)))
    base, a = (Picture(image, labels.astype(np.int32), name) for name, image, labels in drawn)
    made = diversity.compose(mixsyn, [base, a], {"window": 1, "sill": -1, "door": 0})
    assert "sill" not in made.table and made.sources[made.table["window"]] is a and made.sources[made.table["door"]] is base
    assert set(made.table) == set(mixsyn.regions_of(base)) - {"sill"} | {"window"}


def test_sources_have_a_region_that_is_varied(model: str) -> None:
    from mixsyn_fast.models.data import ProceduralSource

    mixsyn = MixSyn.load(model)
    sources = diversity.choose_sources(mixsyn, ProceduralSource("procedural_facades", 60, 0, 32), ["balcony", "blind"], 4, 0)
    shares = [len({"balcony", "blind"} & set(mixsyn.regions_of(picture))) for picture in sources]
    assert min(shares) >= 1 and shares[0] == max(shares)
    assert len({picture.name for picture in sources}) == 4


# -------------------------------------------------------------------------------------------------------------- study


def test_a_study_shows_pairs_and_counts_votes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    words = ["mixsyn", "study", "--model", model, "--pairs", "4", "--out", str(out)]
    assert cli.main([*words, "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert sorted(os.listdir(out)) == ["answers.csv", "images", "key.csv", "page.html"]
    assert sorted(os.listdir(out / "images")) == [f"{row:02d}_{letter}.png" for row in range(1, 5) for letter in "AB"]
    page = (out / "page.html").read_text()
    assert all(f'src="images/{name}"' in page for name in os.listdir(out / "images")) and "row,answer\\n" in page
    key = [line.split(",") for line in (out / "key.csv").read_text().splitlines()]
    assert key[0] == ["row", "name", "A", "B"] and [line[0] for line in key[1:]] == ["1", "2", "3", "4"]
    assert sum(line[2] == "composition" for line in key[1:]) == 2 and all(
        set(line[2:]) == set(study._METHODS) for line in key[1:]
    )
    assert [len(line[1].split()) for line in key[1:]] == [3, 4, 5, 6]
    mixsyn, options = MixSyn.load(model), study.Options(model=model, pairs=4)
    rows: list[list[np.ndarray]] = []
    for row, made in enumerate(study.compositions(mixsyn, options), 1):
        letter = "AB"[key[row].index("composition") - 2]
        assert np.array_equal(_pixels(out / "images" / f"{row:02d}_{letter}.png"), made.image)
        other = "AB".replace(letter, "")
        assert np.array_equal(_pixels(out / "images" / f"{row:02d}_{other}.png"), study.pasted(mixsyn, made).image)
        rows.append(study.row_of(mixsyn, made))
        own = made.sources[0]
        others = [(name, made.sources[i]) for name, i in made.table.items() if i and name in mixsyn.regions_of(own)]
        shown = [made.image, study.pasted(mixsyn, made).image]
        shown.append(sequential(mixsyn, own, others)[-1].image if others else mixsyn.fitted(own).image)
        for at, image in zip((0, 2, 3), shown, strict=True):
            assert np.array_equal(rows[-1][at][: mixsyn.size[0]], image)
        assert len(rows[-1]) == 4 + len(made.sources)
    assert np.array_equal(_pixels(tmp_path / "sheet.png"), contact_sheet(rows))
    (tmp_path / "a.csv").write_text(
        "row,answer\n" + "".join(f"{line[0]},{'AB'[line.index('copy-paste') - 2]}\n" for line in key[1:])
    )
    capsys.readouterr()
    assert cli.main([*words, "--answers", str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().out == "copy-paste: 4 votes (100.0%)\ncomposition: 0 votes (0.0%)\n"
    (tmp_path / "a.csv").write_text("row,answer\n9,A\n")
    assert cli.main([*words, "--answers", str(tmp_path / "a.csv")]) == 2
    assert "row 9: expected no such row, got 'A'" in capsys.readouterr().err
