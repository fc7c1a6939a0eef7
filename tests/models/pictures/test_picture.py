"""Pictures with their label maps: where the map is found, what its ids mean, the size, and what goes wrong."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.data import (
    FACADE_CLASSES,
    FACE_CLASSES,
    KINDS,
    LABEL_SETS,
    RegionDataset,
    Sample,
    draw,
    merged,
    open_source,
    region_types,
)
from mixsyn_fast.models.data.classes import ADE20K, CAMVID_COLOURS, CITYSCAPES, COCO_STUFF, GTA5
from mixsyn_fast.models.data.readers import READERS
from mixsyn_fast.models.pictures.picture import Picture, fit, pictures_of, read_picture

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

H, W = 12, 16
OWN = ("wall", "door", "roof")


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def image(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    return save(path, np.full((*size, 3), 90))


def plane(path: Path, value: int = 1, size: tuple[int, int] = (H, W)) -> Path:
    return save(path, np.full(size, value))


class Parser:
    """Stands for the face parser: everything is hair (class 13), a corner an earring."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def parse(self, photo: np.ndarray) -> np.ndarray:
        self.seen.append(photo.shape)
        labels = np.full(photo.shape[:2], 13, np.uint8)
        labels[0, 0] = 15
        return labels


# --- where the label map is -------------------------------------------------------------------------------------------


def test_places_in_their_order(tmp_path: Path) -> None:
    photo = image(tmp_path / "photos" / "a.jpg")
    places = ["photos/a_labels.png", "photos/a.labels.png", "labels/a.png", "photos/a.png"]
    named = plane(tmp_path / "elsewhere" / "map.png", 0)
    for value, place in reversed(list(enumerate(places))):  # the last place first, so that every one takes precedence
        plane(tmp_path / place, value % 3)
        picture = read_picture(photo, classes=OWN, parser=Parser())
        assert (picture.labels == value % 3).all() and picture.labels.dtype == np.int32 and picture.name == "a"
        assert picture.image.shape == (H, W, 3) and picture.image.dtype == np.uint8
    plane(tmp_path / places[0], 2)
    assert (read_picture(photo, classes=OWN, labels=named).labels == 0).all()


def test_an_image_is_not_its_own_label_map(tmp_path: Path) -> None:
    grey = plane(tmp_path / "labels" / "a.png")
    with pytest.raises(FileNotFoundError) as caught:
        read_picture(grey, classes=OWN)
    places = [tmp_path / "labels" / name for name in ("a_labels.png", "a.labels.png")]
    assert f"looked for {places[0]}, {places[1]};" in str(caught.value)


def test_label_maps_in_other_spellings(tmp_path: Path) -> None:
    """Suffixes in upper case, names in NFD and NFC, lossless formats, subfolders of images/, hidden files."""
    nfc, nfd = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))
    photo = image(tmp_path / "photos" / f"{nfd}.JPG")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"._{nfc}.png").write_bytes(b"")
    for k, place in enumerate((f"photos/{nfc}.PNG", f"labels/{nfc}.PNG", f"photos/{nfc}_labels.tif")):
        plane(tmp_path / place, k)
        picture = read_picture(photo, classes=OWN)
        assert (picture.labels == k).all() and picture.name == nfc
    for place in (f"photos/{nfc}.PNG", f"labels/{nfc}.PNG", f"photos/{nfc}_labels.tif"):
        (tmp_path / place).unlink()
    image(tmp_path / "labels" / f"{nfc}.jpg")
    with pytest.raises(ValueError, match=r"\.jpg: expected a label map as PNG .*a lossy format cannot hold class ids"):
        read_picture(photo, classes=OWN)
    for k, part in enumerate(("cat", "dog")):
        image(tmp_path / "set" / "val" / "images" / part / "t0.jpg")
        plane(tmp_path / "set" / "val" / "labels" / part / "t0.png", k)
    (tmp_path / "set" / "classes.txt").write_bytes("1: wall\r\n2: door\r\n3: roof\r\n".encode("utf-16"))
    dog = tmp_path / "set" / "val" / "images" / "dog" / "t0.jpg"
    assert (read_picture(dog, classes=OWN, first_id=1).labels == 0).all()
    with pytest.raises(ValueError, match=r"classes.txt: .*ids that begin at 1 are read with --first-id 1"):
        read_picture(dog, classes=OWN)


def test_a_bare_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "photos" / "a.jpg")
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match="a.jpg: has no label map; looked for a_labels.png, "):
        read_picture("a.jpg", classes=OWN)
    plane(tmp_path / "labels" / "a.png", 2)
    assert (read_picture("a.jpg", classes=OWN).labels == 2).all()
    with pytest.raises(FileNotFoundError, match="no label map"):
        monkeypatch.chdir(tmp_path / "labels")
        read_picture("a.png", classes=OWN)


def test_no_label_map_names_the_places(tmp_path: Path) -> None:
    photo = image(tmp_path / "photos" / "a.jpg")
    with pytest.raises(FileNotFoundError) as caught:
        read_picture(photo, classes=OWN)
    for place in ("photos/a_labels.png", "photos/a.labels.png", "labels/a.png", "photos/a.png"):
        assert str(tmp_path / place) in str(caught.value)
    assert "a.jpg: has no label map" in str(caught.value) and "--parser" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such label map"):
        read_picture(photo, classes=OWN, labels=tmp_path / "nowhere.png", parser=Parser())
    for missing in (tmp_path / "b.jpg", tmp_path / "photos"):
        with pytest.raises(FileNotFoundError, match="no such picture"):
            read_picture(missing, classes=OWN)


def test_bad_files_are_named(tmp_path: Path) -> None:
    photo, labels = image(tmp_path / "a.jpg"), plane(tmp_path / "a_labels.png", size=(H, W + 2))
    with pytest.raises(ValueError, match=r"a_labels.png: label map is 18 x 12 but a.jpg is 16 x 12 \(width x height\)"):
        read_picture(photo, classes=OWN)
    plane(labels, 3)
    with pytest.raises(ValueError, match=r"a_labels.png: expected class ids 0..2, got 3 at row 0, column 0"):
        read_picture(photo, classes=OWN)
    image(labels)
    with pytest.raises(ValueError, match=r"a_labels.png: expected a palette or grey PNG"):
        read_picture(photo, classes=OWN)
    labels.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a_labels.png: not a readable image"):
        read_picture(photo, classes=OWN)
    plane(labels)
    photo.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a.jpg: not a readable image"):
        read_picture(photo, classes=OWN)


# --- what its ids mean ------------------------------------------------------------------------------------------------


def test_every_kind_of_files_is_known() -> None:
    assert set(LABEL_SETS) == set(KINDS) - {"folder", "gta5", "images"}  # ids that depend on more than the kind, or none


@pytest.mark.parametrize("kind", [kind for kind in LABEL_SETS if kind in READERS])
def test_ids_are_those_of_the_reader(kind: str, tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    plane(tmp_path / "labels" / "a.png")
    known, records = READERS[kind](tmp_path, "train")
    assert len(records) == 1 and known == LABEL_SETS[kind]


@pytest.mark.parametrize(
    ("kind", "classes", "stored", "label"),
    [
        ("cmp_facade", FACADE_CLASSES, 3, 2),
        ("procedural_facades", FACADE_CLASSES, 3, 3),
        ("folder", FACADE_CLASSES, 3, 3),
        ("celebamask_hq", FACE_CLASSES, 3, 3),
        ("ade20k", (*ADE20K, "unknown"), 0, 150),
        ("ade20k", ADE20K, 0, -1),  # a model trained with --unknown none
        ("ade20k", ADE20K, 7, 6),
        ("coco_stuff", (*COCO_STUFF, "unknown"), 255, 182),
        ("cityscapes", CITYSCAPES, 0, 0),
    ],
)
def test_ids_of_a_kind(kind: str, classes: tuple[str, ...], stored: int, label: int, tmp_path: Path) -> None:
    photo = image(tmp_path / "a.jpg")
    plane(tmp_path / "a.png", stored)
    assert (read_picture(photo, classes=classes, kind=kind).labels == label).all()


def test_more_of_the_readers_rules(tmp_path: Path) -> None:
    photo = image(tmp_path / "a.jpg", (2 * H, 2 * W))
    plane(tmp_path / "a.png", 13)
    assert read_picture(photo, classes=FACE_CLASSES, kind="celebamask_hq").image.shape == (H, W, 3)  # scaled to its map
    with pytest.raises(ValueError, match=r"a.png: label map is 16 x 12 but a.jpg is 32 x 24"):
        read_picture(photo, classes=FACE_CLASSES)
    image(photo)
    colours = np.broadcast_to(np.array(CAMVID_COLOURS["road"][1]), (H, W, 3))
    save(tmp_path / "a.png", colours)
    classes = LABEL_SETS["camvid"].classes
    assert (read_picture(photo, classes=classes, kind="camvid").labels == classes.index("road")).all()
    plane(tmp_path / "a.png", 0)
    cityscapes = {"classes": CITYSCAPES, "kind": "cityscapes"}
    assert (read_picture(photo, **cityscapes, unknown="none").labels == -1).all()
    assert (read_picture(photo, **cityscapes, unknown="road").labels == CITYSCAPES.index("road")).all()
    with pytest.raises(ValueError, match="unknown: expected 'class', 'none' or a class name, got 'nothing'"):
        read_picture(photo, **cityscapes, unknown="nothing")


def test_own_ids(tmp_path: Path) -> None:
    photo, labels = image(tmp_path / "a.jpg"), tmp_path / "a.png"
    stored = np.tile(np.array([1, 3, 255]), (H, 1))
    save(labels, stored)
    image(photo, (H, 3))
    assert read_picture(photo, classes=OWN, first_id=1, unknown_id=255).labels[0].tolist() == [0, 2, -1]
    four = (*OWN, "unknown")
    assert read_picture(photo, classes=four, first_id=1, unknown_id=255).labels[0].tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="expected class ids 0..2, got 3"):
        read_picture(photo, classes=OWN)
    with pytest.raises(ValueError, match=r"a.png: expected class ids 1..3, got 255"):
        read_picture(photo, classes=OWN, first_id=1)


def test_the_kind_is_guessed(tmp_path: Path, data_folder: Path) -> None:
    facade = next((data_folder / "cmp_facade" / "val" / "images").glob("*.jpg"))
    face = next((data_folder / "celebamask_hq" / "val" / "images").glob("*.jpg"))
    source = open_source(data_folder / "cmp_facade", split="val")
    assert np.array_equal(read_picture(facade, classes=FACADE_CLASSES).labels, pictures_of(source, [facade.stem])[0].labels)
    assert (
        read_picture(face, classes=FACE_CLASSES).labels
        == np.asarray(Image.open(face.parents[1] / "labels" / f"{face.stem}.png"))
    ).all()
    loose = tmp_path / facade.name  # a picture's own name tells, whatever else is in its folder
    loose.write_bytes(facade.read_bytes())
    plane(tmp_path / f"{facade.stem}.png", 3, Image.open(facade).size[::-1])
    image(tmp_path / "aaa.jpg")
    plane(tmp_path / "aaa.png", 3)
    assert (read_picture(loose, classes=FACADE_CLASSES).labels == 2).all()
    with pytest.raises(ValueError, match=r"aaa.png: cannot tell how .*give kind \(--kind\): cmp_facade or .* or folder"):
        read_picture(tmp_path / "aaa.jpg", classes=FACADE_CLASSES)
    with pytest.raises(ValueError, match=r"expected the model's classes, kind cmp_facade has 12 classes instead of 3, also"):
        read_picture(facade, classes=OWN)


def test_what_cannot_be_confused_needs_no_kind(tmp_path: Path) -> None:
    photo = image(tmp_path / "me.jpg")
    plane(tmp_path / "me_labels.png", 13)
    for classes in (FACE_CLASSES, CITYSCAPES, GTA5):  # stored in one way only
        assert (read_picture(photo, classes=classes).labels == 13).all()
    for classes in (ADE20K, (*COCO_STUFF, "unknown")):
        with pytest.raises(ValueError, match=r"me_labels.png: cannot tell how it stores its classes; give kind"):
            read_picture(photo, classes=classes)


def test_a_folder_says_its_classes(tmp_path: Path) -> None:
    photo = image(tmp_path / "val" / "images" / "cmp_b0001.png")
    plane(tmp_path / "val" / "labels" / "cmp_b0001.png", 2)
    (tmp_path / "classes.txt").write_text("0 wall\n1 door\n2 roof\n")
    for kind in ("auto", "folder"):
        if kind == "auto":
            photo = photo.rename(photo.with_name("house.png"))
            (tmp_path / "val" / "labels" / "cmp_b0001.png").rename(tmp_path / "val" / "labels" / "house.png")
        assert (read_picture(photo, classes=OWN, kind=kind).labels == 2).all()
        with pytest.raises(ValueError, match=r"classes.txt: expected the model's classes, got 3 classes, class 1 is door"):
            read_picture(photo, classes=("wall", "roof", "door"), kind=kind)
    with pytest.raises(ValueError, match=r"classes.txt: .* got 3 classes instead of 12, also wall, roof, without"):
        read_picture(photo, classes=FACADE_CLASSES)


def test_unknown_kinds(tmp_path: Path) -> None:
    photo = image(tmp_path / "a.jpg")
    plane(tmp_path / "a.png")
    with pytest.raises(ValueError, match="kind: expected auto, folder or one of celebamask_hq, .*, got 'imagenet'"):
        read_picture(photo, classes=OWN, kind="imagenet")
    with pytest.raises(
        ValueError, match=r"a.png: expected the model's classes, kind lapa has 11 classes instead of 19, also"
    ):
        read_picture(photo, classes=FACE_CLASSES, kind="lapa")


# --- region types and parsed photos ------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["meta", "compact", "auto"])
def test_merged_label_maps(merge: str, tmp_path: Path) -> None:
    photo = image(tmp_path / "a.jpg")
    plane(tmp_path / "a.png", FACE_CLASSES.index("u_lip"))
    types = region_types(FACE_CLASSES, "meta" if merge == "auto" else merge)
    for kind in ("auto", "celebamask_hq", "folder"):
        found = read_picture(photo, classes=types.names, kind=kind, merge=merge).labels
        assert (found == types.names.index("mouth")).all() and found.dtype == np.int32
    with pytest.raises(ValueError, match="classes: wall, door, roof are not the compact types of any set"):
        read_picture(photo, classes=OWN, merge="compact")
    with pytest.raises(ValueError, match="merge: expected one of none, meta, compact, scenes, got 'some'"):
        read_picture(photo, classes=types.names, merge="some")
    with pytest.raises(ValueError, match="kind celebamask_hq has 19 classes instead of"):  # says nothing of merging
        read_picture(photo, classes=types.names, kind="celebamask_hq")
    assert (read_picture(photo, classes=FACE_CLASSES, merge="auto").labels == FACE_CLASSES.index("u_lip")).all()


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path: Path) -> None:
    """Upright, 16-bit grey scaled, what is transparent white: with a label map and parsed alike."""
    ramp = np.tile(np.linspace(0, 65535, W).astype(np.uint16), (H, 1))
    turned = Image.fromarray((np.arange(H * W * 3).reshape(W, H, 3) % 251).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    cut_out = np.zeros((H, W, 4), np.uint8)
    cut_out[:, : W // 2] = (9, 8, 7, 255)
    stored = {"ramp": Image.fromarray(ramp), "turned": turned, "cut": Image.fromarray(cut_out)}
    for name, picture in stored.items():
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, **({"exif": exif} if name == "turned" else {}))
        parsed = read_picture(path, classes=FACE_CLASSES, parser=Parser()).image
        plane(tmp_path / "labels" / f"{name}.png", 1)
        read = read_picture(path, classes=OWN).image
        source = open_source(tmp_path, "folder", classes=list(OWN), names=[name])
        assert np.array_equal(read, source.read(0).image) and np.array_equal(read, parsed) and read.shape == (H, W, 3)
        if name == "turned":
            assert np.array_equal(read, np.rot90(np.asarray(turned), -1))
        elif name == "ramp":
            assert np.array_equal(read[0, :, 1], np.round(np.linspace(0, 255, W)))
        else:
            assert (read[:, W // 2 :] == 255).all() and (read[:, : W // 2] == (9, 8, 7)).all()


def test_parsed_photos(tmp_path: Path) -> None:
    photo, parser = image(tmp_path / "me.jpg", (40, 30)), Parser()
    picture = read_picture(photo, classes=FACE_CLASSES, parser=parser)
    assert picture.labels[0, 0] == 15 and (picture.labels.ravel()[1:] == 13).all() and picture.labels.dtype == np.int32
    assert picture.image.shape == (40, 30, 3) == parser.seen[-1] and (picture.image == 90).all()
    types = region_types(FACE_CLASSES, "meta")
    picture = read_picture(photo, classes=types.names, merge="meta", parser=parser)
    assert types.names[picture.labels[0, 0]] == "r_ear" and types.names[picture.labels[9, 9]] == "hair"
    with pytest.raises(ValueError, match=r"me.jpg: has no label map, and the parser .* but 19 classes instead of 12"):
        read_picture(photo, classes=FACADE_CLASSES, parser=parser)
    turned = Image.new("RGB", (30, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(photo, exif=exif)
    assert read_picture(photo, classes=FACE_CLASSES, parser=parser).labels.shape == (30, 40)
    image(photo, (1100, 1300))
    picture = read_picture(photo, classes=FACE_CLASSES, parser=parser)
    assert parser.seen[-1] == picture.image.shape == (1024, 1210, 3) and picture.labels.shape == (1024, 1210)


# --- sizes and sets ----------------------------------------------------------------------------------------------------


def test_pictures_are_checked() -> None:
    rgb, labels = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int32)
    assert Picture(rgb, labels, "a").name == "a"
    for bad in (rgb[..., 0], rgb.astype(np.float32), rgb[:0], rgb[..., :2]):
        with pytest.raises(ValueError, match=r"a: expected an image \(H, W, 3\) uint8, got"):
            Picture(bad, labels, "a")
    for bad in (labels[None], labels.astype(np.int64)):
        with pytest.raises(ValueError, match=r"a: expected labels \(H, W\) int32, got"):
            Picture(rgb, bad, "a")
    with pytest.raises(ValueError, match=r"a: label map is 4 x 5 but the image is 5 x 4 \(width x height\)"):
        Picture(rgb, labels.T, "a")


@given(st.tuples(*[st.integers(1, 40)] * 4), st.sampled_from(["center", "none"]))
def test_fit_is_what_training_does(sides: tuple[int, int, int, int], crop: str) -> None:
    stored, size = sides[:2], sides[2:]
    rng = np.random.default_rng(0)
    picture = Picture(rng.integers(0, 256, (*stored, 3)).astype(np.uint8), rng.integers(-1, 5, stored).astype(np.int32), "x")

    class One:
        name, classes, swaps, default_size = "one", tuple("abcde"), (), (1, 1)

        def __len__(self) -> int:
            return 1

        def names(self) -> list[str]:
            return ["x"]

        def read(self, index: int) -> Sample:
            return Sample(picture.image, picture.labels, None, "x")

    expected = RegionDataset(One(), size, crop=crop)[0]
    found = fit(picture, size, crop)
    assert np.array_equal(found.image, expected.image) and np.array_equal(found.labels, expected.labels)
    assert found.labels.shape == size and found.name == "x" and found.labels.dtype == np.int32
    again = fit(found, size, crop)
    assert np.array_equal(again.image, found.image) and np.array_equal(again.labels, found.labels)


def test_fit_takes_the_middle() -> None:
    labels = np.repeat(np.arange(6, dtype=np.int32)[None], 2, 0)
    picture = Picture(np.repeat(labels[..., None] * 40, 3, 2).astype(np.uint8), labels, "a")
    found = fit(picture, 2)
    assert found.labels.tolist() == [[2, 3], [2, 3]] and found.image[0, :, 0].tolist() == [80, 120]
    assert fit(picture, (1, 3), "none").labels.tolist() == [[1, 3, 5]]
    with pytest.raises(ValueError, match="crop: expected 'center' or 'none', got 'random'"):
        fit(picture, 2, "random")
    with pytest.raises(ValueError, match="size: expected positive height and width, got 0 x 4"):
        fit(picture, (0, 4))


def test_pictures_of_a_set() -> None:
    source = open_source(None, "procedural_facades", count=3, seed=5, size=24)
    assert [picture.name for picture in pictures_of(source)] == source.names()
    found = pictures_of(source, ["seed_00000007", 0, np.int64(1)], classes=FACADE_CLASSES)
    assert [picture.name for picture in found] == ["seed_00000007", "seed_00000005", "seed_00000006"]
    drawn, labels = draw("facade", 7, 24)
    assert np.array_equal(found[0].image, drawn) and np.array_equal(found[0].labels, labels)
    assert pictures_of(source, []) == []
    for wrong in ("seed_00000004", 3, -1):
        with pytest.raises(ValueError, match=r"wanted: procedural_facades has pictures 0 to 2 \(seed_00000005, .*\), got"):
            pictures_of(source, [wrong])
    with pytest.raises(ValueError, match="procedural_facades: expected the model's classes, got 12 classes instead of 19"):
        pictures_of(source, [0], classes=FACE_CLASSES)
    compact = merged(source, "compact")
    assert pictures_of(compact, [0], classes=compact.classes)[0].labels.max() < 6
