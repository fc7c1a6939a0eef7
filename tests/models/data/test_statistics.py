"""Statistics, contact sheets and `mixsyn-fast data inspect`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data import Statistics, draw, inspect, open_source, palette, statistics
from mixsyn_fast.models.data.blended import blended
from mixsyn_fast.models.settings import read
from mixsyn_fast.models.sheets import contact_sheet, legend, text

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of 10 x 20, the last of 12 x 20: class 0, class 1 in a quarter of pictures 1 and 3, 255 in picture 4."""
    root = tmp_path / "set"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i in range(6):
        size = (12 if i == 5 else 10, 20)
        labels = np.zeros(size, np.uint8)
        if i in (1, 3):
            labels[:, :5] = 1
        if i == 4:
            labels[:2] = 255
        Image.fromarray(labels).save(root / "labels" / f"p{i}.png")
        Image.fromarray(np.full((*size, 3), 40 * i, np.uint8)).save(root / "images" / f"p{i}.png")
    (root / "classes.txt").write_text("wall\ndoor\ncat\n")
    return root


def test_counts(folder: Path) -> None:
    source = open_source(folder, unknown_id=255, unknown="none")
    seen: list[int] = []
    found = statistics(source, progress=seen.append)
    pixels = 5 * 200 + 240
    assert found.source == "folder" and found.classes == ["wall", "door", "cat"] and found.count == 6 and found.bad == []
    assert found.pixel_share == pytest.approx([(pixels - 140) / pixels, 100 / pixels, 0])
    assert found.image_share == pytest.approx([1, 2 / 6, 0]) and found.unlabelled_share == pytest.approx(40 / pixels)
    assert found.presence == {0: [0, 1, 2, 3, 4, 5], 1: [1, 3], 2: []}
    assert found.sizes == {"10 x 20": 5, "12 x 20": 1} and list(found.sizes) == ["10 x 20", "12 x 20"]
    assert seen == [1, 2, 3, 4, 5, 6]
    first = statistics(source, limit=2)
    assert first.count == 2 and first.presence[1] == [1] and statistics(source, limit=99) == found
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        statistics(source, limit=0)


def test_bad_files_are_listed(folder: Path) -> None:
    (folder / "images" / "p2.png").write_bytes(b"no")
    source = open_source(folder)
    found = statistics(source)
    assert [name for name, _ in found.bad] == ["p2", "p4"] and found.count == 4
    assert "p2.png: not a readable image file" in found.bad[0][1]
    assert "p4.png: expected class ids 0..2, got 255 at row 0, column 0" in found.bad[1][1]
    assert found.presence[0] == [0, 1, 3, 5] and found.image_share[1] == 0.5
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    nothing = statistics(source)
    assert nothing.count == 0 and len(nothing.bad) == 6 and nothing.pixel_share == [0, 0, 0]


def test_statistics_are_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    found = statistics(open_source(folder))
    assert found.bad
    path = tmp_path / "found.json"
    found.save(path)
    assert Statistics.load(path) == found
    assert Statistics.load(path) != replace(found, count=3)
    for damaged in ("", "[]", "3", '{"classes": []}', path.read_text().replace('"count"', '"counts"')):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="found.json: not saved statistics"):
            Statistics.load(path)


def test_table(folder: Path) -> None:
    lines = statistics(open_source(folder, unknown_id=255, unknown="none")).table().splitlines()
    assert lines[0].split() == ["id", "class", "pixels", "%", "pictures", "%"]
    assert lines[2].split() == ["1", "door", "8.065", "33.3"] and lines[4].split() == ["-", "(no", "class)", "3.226"]


def test_real_statistics(data_folder: Path) -> None:
    found = statistics(open_source(data_folder / "celebamask_hq", split="val"), limit=40)
    assert found.bad == [] and sum(found.pixel_share) == pytest.approx(1)
    share = dict(zip(found.classes, found.image_share, strict=True))
    assert share["skin"] == 1 and share["nose"] > 0.9 and share["hat"] < 0.3


def test_maps_that_were_resized_bilinearly() -> None:
    """Real label maps and drawings have no such trace, at any size; the same ones, resized bilinearly, do."""
    for kind in ("face", "facade", "street"):
        for seed in range(2):
            drawn = draw(kind, seed, (96, 128))[1]
            assert blended(drawn) == 0 and blended(draw(kind, seed, 256)[1]) == 0
            for size in ((64, 48), (173, 130), (256, 192), (384, 288)):
                plane = Image.fromarray(drawn.astype(np.uint8))
                resized = {
                    name: blended(np.asarray(plane.resize(size, getattr(Image.Resampling, name))).astype(np.int32))
                    for name in ("NEAREST", "BILINEAR", "BICUBIC")
                }
                assert resized["NEAREST"] == 0 and 0.005 < resized["BILINEAR"] < 0.4 and resized["BICUBIC"] > 0, (kind, size)


def test_a_blended_map_that_is_bad_says_so(folder: Path) -> None:
    """Between 1 and 255 lie ids that no class has."""
    ids = np.zeros((48, 64), np.uint8)
    ids[:, 20:], ids[10:30, 10:50] = 1, 255
    stored = Image.fromarray(ids)
    for how, message in (
        (
            Image.Resampling.BILINEAR,
            r"got \d+ at .* % of its pixels lie in thin bands of ids: was the label map resized bilin",
        ),
        (Image.Resampling.NEAREST, r"got 255 at .*--unknown-id 255"),
    ):
        stored.resize((100, 80), how).save(folder / "labels" / "p0.png")
        Image.new("RGB", (100, 80)).save(folder / "images" / "p0.png")
        with pytest.raises(ValueError, match=message):
            open_source(folder).read(0)


def test_what_only_looks_like_bands() -> None:
    outlined = np.zeros((64, 64), np.int32)  # class 2 with an outline of class 1, as in maps of objects and their borders
    outlined[16:48, 16:48], outlined[17:47, 17:47] = 1, 2
    assert blended(outlined) == 0
    steps = np.repeat(np.arange(16, dtype=np.int32), 8)[None].repeat(64, 0)  # classes side by side, 8 pixels each
    assert blended(steps) == 0 and blended(steps - 1) == 0
    for tiny in (np.zeros((1, 1), np.int32), np.arange(3, dtype=np.int32)[None], np.zeros((0, 5), np.int32)):
        assert blended(tiny) == 0
    assert blended(draw("facade", 3, 32)[1]) == 0  # where everything is thin
    unlabelled = np.full((64, 64), -1, np.int32)
    unlabelled[:, 32] = 3
    unlabelled[:, 33:] = 9
    assert blended(unlabelled) == 0  # -1 is no class with a place among the ids


def test_share_of_blended_pixels() -> None:
    labels = np.zeros((64, 64), np.int32)
    labels[:, 20], labels[:, 21:] = 3, 9
    labels[:32, 20] = 5
    assert blended(labels) == 1 / 64
    labels[:, 21] = labels[:, 20]  # two pixels wide
    assert blended(labels) == 2 / 64
    labels[:, 22] = labels[:, 20]
    assert blended(labels) == 0
    assert blended(np.ascontiguousarray(labels.T)) == 0


def test_real_maps_are_not_blended(data_folder: Path) -> None:
    for name in ("celebamask_hq", "cmp_facade", "camvid", "ccp", "samples/ade20k", "samples/cityscapes", "samples/gta5"):
        source = open_source(data_folder / name, split="all")
        for index in range(0, len(source), max(1, len(source) // 12)):
            assert blended(source.read(index).labels) == 0, (name, index)


# --- sheets -----------------------------------------------------------------------------------------------------------


def test_contact_sheet_is_a_grid() -> None:
    red, blue = np.zeros((4, 6, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet([[red, blue], [blue]])
    assert sheet.shape == (2 + 4 + 2 + 3 + 2, 2 + 6 + 2 + 2 + 2, 3) and sheet.dtype == np.uint8
    assert (sheet[2:6, 2:8] == red).all() and (sheet[2:5, 10:12] == blue).all() and (sheet[8:11, 2:4] == blue).all()
    ours = [(slice(2, 6), slice(2, 8)), (slice(2, 5), slice(10, 12)), (slice(8, 11), slice(2, 4))]
    rest = np.ones(sheet.shape[:2], bool)
    for area in ours:
        rest[area] = False
    assert len(np.unique(sheet[rest], axis=0)) == 1  # gaps
    titled = contact_sheet([[red, blue], [blue]], ["red", "blue"])
    head = titled.shape[0] - sheet.shape[0]
    assert head > 5 and (titled[head:] == sheet).all() and titled[2:head, 2:8].max() > 150  # written on


def test_contact_sheet_says_what_is_wrong() -> None:
    for rows in ([], [[]], [[], []]):
        with pytest.raises(ValueError, match="rows: expected at least one picture"):
            contact_sheet(rows)
    with pytest.raises(ValueError, match=r"rows\[0\]\[1\]: expected \(H, W, 3\) uint8, got \(4, 4\) uint8"):
        contact_sheet([[np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)]])
    with pytest.raises(ValueError, match="got .4, 4, 3. float32"):
        contact_sheet([[np.zeros((4, 4, 3), np.float32)]])


def test_text_and_legend() -> None:
    assert text("wall", 14, 50).shape == (14, 50, 3) and text("wall", 14, 50).max() > 150
    assert len(np.unique(text("", 14, 50))) == 1
    assert not np.array_equal(text("wall", 14, 50), text("door", 14, 50))
    panel = legend([str(k) for k in range(10)], palette(10), 60)  # four lines: three columns
    assert panel.shape == (60, 450, 3)
    for k, colour in enumerate(palette(10)):
        assert (panel[k % 4 * 14 + 7, k // 4 * 150 + 8] == colour).all()


# --- the command --------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    return inspect.main(read(inspect.Options, [str(a) for a in arguments], prog="inspect")[0])


def test_inspect(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(folder / "labels" / "p4.png")
    sheet, counts = tmp_path / "sheet.png", tmp_path / "counts.json"
    assert run(folder, "--out", sheet, "--json", counts, "--count", 3, "--size", 32) == 0
    printed = capsys.readouterr().out
    assert "folder, split train: 6 pictures, 3 classes" in printed and "0 bad of 6" in printed
    assert "10 x 20 (5), 12 x 20 (1)" in printed and "door" in printed
    assert Statistics.load(counts).count == 6
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape[0] > 3 * 32 and pixels.shape[1] > 3 * 32 + 150
    assert (pixels.reshape(-1, 3) == palette(3)[1]).all(1).any() and not (pixels.reshape(-1, 3) == palette(3)[2]).all(
        1
    ).any()


def test_inspect_reports_bad_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "p0.png").write_bytes(b"")
    Image.fromarray(np.zeros((10, 21), np.uint8)).save(folder / "labels" / "p1.png")
    sheet = tmp_path / "sheet.png"
    assert run(folder, "--out", sheet, "--size", 16) == 1
    printed = capsys.readouterr().out
    for line in (
        f"bad: p0: {folder}/images/p0.png: not a readable image file",
        f"bad: p1: {folder}/labels/p1.png: label map is 21 x 10 but p1.png is 20 x 10",
        f"bad: p4: {folder}/labels/p4.png: expected class ids 0..2, got 255",
        "3 bad of 6",
    ):
        assert line in printed
    assert sheet.is_file()
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    sheet.unlink()
    assert run(folder, "--out", sheet) == 1 and not sheet.exists()


def test_inspect_names_what_it_warns_of(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(30):
        (folder / "images" / f"more{k:02d}.heic").write_bytes(b"")
    labels = np.zeros((50, 50), np.uint8)
    labels[:, 20], labels[:, 21:], labels[20:, 20] = 3, 9, 5
    Image.fromarray(labels).save(folder / "labels" / "p5.png")
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(folder / "images" / "p5.png")
    (folder / "labels" / "p0.png").unlink()
    (folder / "classes.txt").write_text("\n".join(f"class {k}" for k in range(10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is printed, not warned of
        assert run(folder, "--unknown-id", 255, "--json", tmp_path / "counts.json") == 0
    printed = capsys.readouterr().out.splitlines()
    named = ", ".join(f"images/more{k:02d}.heic" for k in range(20))
    assert f"left over: 30 not .jpg, .jpeg, .jfif, .png, .webp, .bmp, .tif or .tiff: {named}, ..." in printed
    assert "left over: 1 without a label map: images/p0.png" in printed
    assert any(line.startswith("warning: p5: 2.0 % of the pixels lie in thin bands") for line in printed)
    assert Statistics.load(tmp_path / "counts.json").blended == [("p5", 0.02)]


def test_inspect_draws_without_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--kind", "procedural_facades", "--limit", 3, "--count", 2, "--size", 24, "--out", tmp_path / "s.png") == 0
    assert "procedural_facades, split train: 3 pictures, 12 classes" in capsys.readouterr().out


def test_inspect_refuses_nonsense(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--count: expected at least 1, got 0"):
        run(folder, "--count", 0)
    with pytest.raises(FileNotFoundError, match="gone: no such folder to write s.png into"):
        run(folder, "--out", tmp_path / "gone" / "s.png")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--kind: expected auto|folder|celebamask_hq"):
        run(folder, "--kind", "cats")
