"""Region types, sets in region types, and several sets as one."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models import settings as config
from mixsyn_fast.models.data import (
    FACADE_CLASSES,
    FACE_CLASSES,
    JoinedSource,
    Loader,
    MergedSource,
    RegionDataset,
    RegionTypes,
    Sample,
    Source,
    merged,
    open_source,
    region_types,
    scene_types,
)
from mixsyn_fast.models.data.classes import ADE20K, CAMVID, COCO_STUFF, GTA5, LAPA, left_right_pairs
from mixsyn_fast.models.data.options import DataOptions
from mixsyn_fast.models.data.region_types import merge_of, vocabularies
from mixsyn_fast.models.data.scene_types import SCENE_TYPES
from mixsyn_fast.models.data.sets import LABEL_SETS, classes_differ
from mixsyn_fast.models.pictures.picture import read_picture
from mixsyn_fast.models.training.command import run

META = region_types(FACE_CLASSES, "meta")
FACE = {name: k for k, name in enumerate(FACE_CLASSES)}
TYPE = {name: k for k, name in enumerate(META.names)}


# --- the types --------------------------------------------------------------------------------------------------------


def test_meta_types_of_faces() -> None:
    assert META.names == (
        *("background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
        *("mouth", "hair", "hat", "neck", "cloth"),
    )
    assert len(META.names) == 15
    swapped = {(META.names[a], META.names[b]) for a, b in left_right_pairs(META.names)}
    assert swapped == {("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")}
    labels = np.arange(19, dtype=np.uint8).reshape(1, 19)
    labels[0, FACE["ear_r"]] = FACE["skin"]
    found = [META.names[k] for k in META.apply(labels)[0]]
    for name, type_name in (("u_lip", "mouth"), ("l_lip", "mouth"), ("neck_l", "neck"), ("hat", "hat"), ("cloth", "cloth")):
        assert found[FACE[name]] == type_name
    kept = [name for name in FACE_CLASSES if name in META.names]
    assert all(found[FACE[name]] == name for name in kept) and len(kept) == 15


def test_compact_types() -> None:
    faces, facades = region_types(FACE_CLASSES, "compact"), region_types(FACADE_CLASSES, "compact")
    assert faces.names == ("background", "face", "eyes", "mouth", "hair", "body")  # 5 and the background
    assert facades.names == ("background", "facade", "window", "door", "balcony", "decoration")
    merged_faces = faces.apply(np.arange(-1, 19).reshape(4, 5)).ravel()
    assert Counter(merged_faces.tolist()) == {-1: 1, 0: 1, 1: 5, 2: 5, 3: 3, 4: 2, 5: 3}
    merged_facades = facades.apply(np.arange(12).reshape(3, 4)).ravel()
    assert [facades.names[k] for k in merged_facades] == (
        "background facade window door decoration window balcony window decoration decoration decoration door".split()
    )


@pytest.mark.parametrize(
    ("classes", "merge", "message"),
    [
        (
            FACADE_CLASSES,
            "meta",
            r"no meta types for these 12 classes \(background, facade, .*; for them .*: none, compact$",
        ),
        (ADE20K, "compact", r"no compact types for these 150 classes"),
        (FACE_CLASSES[:-1], "compact", "no compact types for these 18 classes"),
        (FACE_CLASSES, "none", "merge: expected meta or compact or scenes, got 'none'"),
        (FACE_CLASSES, "coarse", "merge: expected meta or compact or scenes, got 'coarse'"),
    ],
)
def test_sets_without_types(classes: list[str], merge: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region_types(classes, merge)


@pytest.mark.parametrize("merge", ["meta", "compact"])
def test_helen_has_the_types_of_the_faces(merge: str) -> None:
    """A model of CelebAMask-HQ's types is judged on Helen: same names, same order, every class where it belongs."""
    faces, helen = region_types(FACE_CLASSES, merge), region_types(LAPA, merge)
    assert helen.names == faces.names and vocabularies(helen.names, merge) == (tuple(FACE_CLASSES), tuple(LAPA))
    types = [helen.names[k] for k in helen.apply(np.arange(11)[None])[0]]
    expected = {"meta": "background skin l_brow r_brow l_eye r_eye nose mouth mouth mouth hair",
                "compact": "background face eyes eyes eyes eyes face mouth mouth mouth hair"}  # fmt: skip
    assert types == expected[merge].split()


def test_classes_behind_types() -> None:
    for classes, merge in ((FACE_CLASSES, "meta"), (FACE_CLASSES, "compact"), (FACADE_CLASSES, "compact")):
        types = region_types(classes, merge)
        assert vocabularies(types.names, merge)[0] == tuple(classes) and merge_of(types.names) == merge
    assert vocabularies(["a", "b"], "none") == (("a", "b"),) and merge_of(FACE_CLASSES) == "none"
    with pytest.raises(ValueError, match="classes: a, b are not the meta types of any set"):
        vocabularies(["a", "b"], "meta")
    with pytest.raises(ValueError, match="merge: expected one of none, meta, compact, scenes, got 'all'"):
        vocabularies(["a", "b"], "all")


def test_own_types_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected 'b' in one type, or in a left and a right one, got \(\)"):
        RegionTypes(("a", "b"), {"x": ("a",)})
    with pytest.raises(ValueError, match=r"expected 'a' in one type, .*, got \(0, 1\)"):
        RegionTypes(("a", "b"), {"x": ("a", "b"), "y": ("a",)})
    with pytest.raises(ValueError, match="'x' holds 'c', which is no class"):
        RegionTypes(("a",), {"x": ("a", "c")})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2), np.float32), "expected .H, W. integers, got shape .2, 2. and dtype float32"),
        (np.zeros((1, 2, 2), np.int32), "expected .H, W. integers"),
        (np.array([[0, 19]]), r"expected classes in \[0, 19\) or -1, got 0 to 19"),
        (np.array([[-2, 3]]), "got -2 to 3"),
    ],
)
def test_bad_label_maps(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        META.apply(labels)


def test_an_empty_label_map() -> None:
    assert META.apply(np.zeros((0, 4), np.int64)).shape == (0, 4)


# --- earrings ---------------------------------------------------------------------------------------------------------


def expected_ear(labels: np.ndarray, row: int, column: int) -> str:
    """The rule of the docstring for one pixel, written plainly."""
    distance = {}
    for name in ("l_ear", "r_ear"):
        at = np.argwhere(labels == FACE[name])
        if len(at):
            distance[name] = ((at - (row, column)) ** 2).sum(1).min()
    if len(distance) == 2:
        return "l_ear" if distance["l_ear"] <= distance["r_ear"] else "r_ear"
    if distance:
        return next(iter(distance))
    for name in ("nose", "skin"):
        columns = np.nonzero(labels == FACE[name])[1]
        if len(columns):
            return "l_ear" if column >= columns.mean() else "r_ear"
    return "l_ear" if column >= (labels.shape[1] - 1) / 2 else "r_ear"


PARTS = [FACE[name] for name in ("background", "ear_r", "l_ear", "r_ear", "nose", "skin")] + [-1]


@given(st.data())
def test_earrings_go_to_the_nearer_ear(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    parts = data.draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))  # often without one ear, or the nose
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    labels = rng.choice(np.array([*parts, FACE["ear_r"]]), (height, width))
    found = META.apply(labels)
    assert found.dtype == np.int32 and np.array_equal(found == -1, labels == -1)
    for row, column in np.ndindex(height, width):
        if labels[row, column] == FACE["ear_r"]:
            assert META.names[found[row, column]] == expected_ear(labels, row, column)
        elif labels[row, column] >= 0:
            assert META.names[found[row, column]] == FACE_CLASSES[labels[row, column]]


def test_earrings_of_large_pictures_come_in_pieces() -> None:
    labels = np.full((100, 90), FACE["ear_r"])  # more pixels than are measured at a time
    ears = {"r_ear": (10, 0), "l_ear": (70, 89)}
    distance = {}
    for name, (row, column) in ears.items():
        labels[row, column] = FACE[name]
        distance[name] = (np.arange(100)[:, None] - row) ** 2 + (np.arange(90) - column) ** 2
    left = distance["l_ear"] <= distance["r_ear"]
    assert np.array_equal(META.apply(labels), np.where(left, TYPE["l_ear"], TYPE["r_ear"]))


@given(st.integers(0, 10**6))
def test_a_mirrored_face_has_mirrored_types(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([FACE[name] for name in ("background", "ear_r", "l_ear", "r_ear", "nose")]), (6, 8))
    swap = np.arange(19)
    for a, b in left_right_pairs(FACE_CLASSES):
        swap[[a, b]] = b, a
    swap_types = np.arange(15)
    for a, b in left_right_pairs(META.names):
        swap_types[[a, b]] = b, a
    apart = np.ones(labels.shape, bool)
    for row, column in np.argwhere(labels == FACE["ear_r"]):  # equally near: always the left one
        near = [((np.argwhere(labels == FACE[n]) - (row, column)) ** 2).sum(1) for n in ("l_ear", "r_ear")]
        apart[row, column] = all(map(len, near)) and near[0].min() != near[1].min()
    mirrored = META.apply(swap[labels[:, ::-1]])[:, ::-1]
    assert np.array_equal(swap_types[mirrored][apart], META.apply(labels)[apart])


def test_real_ears(data_folder: Path) -> None:
    """The person's left ear is on the right; no earring is left over, and none is far from its ear."""
    source = open_source(data_folder / "celebamask_hq", split="val")
    types = merged(source, "meta")
    assert len(types) == 100 and types.names() == source.names() and len(types.classes) == 15
    right = both = 0
    for index in range(0, 100, 4):
        before, after = source.read(index), types.read(index)
        earring = before.labels == FACE["ear_r"]
        ears = np.isin(after.labels, (TYPE["l_ear"], TYPE["r_ear"]))
        assert np.array_equal(ears, np.isin(before.labels, (FACE["l_ear"], FACE["r_ear"], FACE["ear_r"])))
        assert ears[earring].all() and np.array_equal(before.image, after.image) and after.name == before.name
        columns = [np.nonzero(after.labels == TYPE[name])[1] for name in ("l_ear", "r_ear")]
        if min(map(len, columns)):
            both += 1
            right += columns[0].mean() > columns[1].mean()
    assert both >= 5 and right >= 0.8 * both


# --- sets -------------------------------------------------------------------------------------------------------------


class Few:
    """Pictures of one colour with a label map of one class each, with instances and edges."""

    def __init__(self, name: str, names: list[str], classes: tuple[str, ...] = FACE_CLASSES) -> None:
        self.name, self.stems, self.classes = name, names, classes
        self.swaps = left_right_pairs(classes)
        self.default_size = (8, 8)

    def __len__(self) -> int:
        return len(self.stems)

    def names(self) -> list[str]:
        return self.stems

    def read(self, index: int) -> Sample:
        plane = np.full((8, 8), len(self.classes) - 1 - index, np.int32)
        image = np.full((8, 8, 3), len(self.name), np.uint8)
        return Sample(image, plane, plane + 7, self.stems[index], plane > 16)


def test_a_merged_set_is_a_set() -> None:
    source = Few("few", ["a", "b", "c"])
    types = pickle.loads(pickle.dumps(merged(source, "meta")))
    assert isinstance(types, Source) and types.name == "few" and types.default_size == (8, 8)
    assert types.classes == META.names and types.swaps == left_right_pairs(META.names) and len(types) == 3
    sample = types.read(2)  # class 16, the necklace
    assert (sample.labels == TYPE["neck"]).all() and sample.name == "c"
    assert (sample.instances == 23).all() and sample.edges is not None and not sample.edges.any()
    assert merged(source, "none") is source
    flipped = RegionDataset(types, 8, flip=1.0)[1]  # a flip of types, not of classes
    assert (flipped.labels == TYPE["neck"]).all()
    with pytest.raises(ValueError, match=r"expected types of the 12 classes of procedural_facades, got types of 19 classes"):
        MergedSource(open_source(None, "procedural_facades"), META)
    with pytest.raises(IndexError):
        merged(open_source(None, "procedural_faces", count=1, size=8), "meta").read(1)


def test_merged_eyes_swap_in_a_flip() -> None:
    source = merged(open_source(None, "procedural_faces", count=1, size=64), "meta")
    plain, flipped = RegionDataset(source, 64)[0], RegionDataset(source, 64, flip=1.0)[0]
    left = flipped.labels[:, ::-1] == TYPE["l_eye"]
    assert left.any() and np.array_equal(left, plain.labels == TYPE["r_eye"])


def test_several_sets_as_one() -> None:
    joined = JoinedSource([Few("first", ["b", "d"]), Few("second", ["a", "b", "c"])])
    assert pickle.loads(pickle.dumps(joined)).names() == ["a", "b", "b", "c", "d"] == sorted(joined.names())
    assert len(joined) == 5 and isinstance(joined, Source)
    assert joined.name == "first" and joined.default_size == (8, 8) and joined.swaps == left_right_pairs(FACE_CLASSES)
    samples = [joined.read(i) for i in range(5)]
    assert [sample.name for sample in samples] == joined.names()
    assert [int(sample.image[0, 0, 0]) for sample in samples] == [6, 5, 6, 6, 5]  # lengths of "first" and "second"
    assert [int(sample.labels[0, 0]) for sample in samples] == [18, 18, 17, 16, 17]
    for index in (-1, 5):
        with pytest.raises(IndexError, match="index: expected 0 to 4"):
            joined.read(index)
    assert JoinedSource([Few("one", ["a"])]).names() == ["a"]
    seen = Counter(name for batch in Loader(RegionDataset(joined, 8), batch_size=5).once() for name in batch.names)
    assert seen == {"a": 1, "b": 2, "c": 1, "d": 1}


def test_sets_of_different_classes_do_not_join() -> None:
    faces, facades = Few("faces", ["a"]), Few("facades", ["a"], FACADE_CLASSES)
    with pytest.raises(
        ValueError,
        match=r"classes of faces; facades has 12 classes instead of 19, also facade, .* \.\.\., without skin, nose",
    ):
        JoinedSource([faces, facades])
    turned = Few("turned", ["a"], (*FACE_CLASSES[:4], "r_eye", "l_eye", *FACE_CLASSES[6:]))
    with pytest.raises(ValueError, match="turned has 19 classes, class 4 is r_eye instead of l_eye"):
        JoinedSource([faces, turned])
    stiff = Few("stiff", ["a"])
    stiff.swaps = ()
    with pytest.raises(ValueError, match=r"stiff flips classes \(\), faces flips \(\("):
        JoinedSource([faces, stiff])
    with pytest.raises(ValueError, match="sources: expected at least one"):
        JoinedSource([])


def test_differences_are_said() -> None:
    assert classes_differ(["a", "b"], ["a", "b", "c"]) == "2 classes instead of 3, without c"
    assert classes_differ(["a", "a"], ["a"]) == "2 classes instead of 1"
    assert classes_differ(["x", "b"], ["a", "b"]) == "2 classes, also x, without a"


# --- training options -------------------------------------------------------------------------------------------------


def test_options_merge() -> None:
    options = DataOptions(kind="procedural_faces", size=(32,), count=4, merge="meta")
    training, validation = options.training_set(0), options.validation_set()
    assert validation is not None and training.num_regions == validation.num_regions == 15
    assert training[0].labels.max() < 15 and options.source("val").classes == META.names
    compact = DataOptions(kind="procedural_facades", size=(32,), count=2, merge="compact")
    assert compact.training_set(0).num_regions == 6
    with pytest.raises(ValueError, match="no meta types"):
        DataOptions(kind="procedural_facades", merge="meta").training_set(0)
    assert config.from_dict(DataOptions, {}) == DataOptions() and DataOptions().merge == "none"  # a run of before
    assert config.from_dict(DataOptions, config.to_dict(options)) == options
    with pytest.raises(ValueError, match="merge"):
        config.from_dict(DataOptions, {"merge": "fine"})


def test_options_also(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    for folder, names in (("one", "ab"), ("two", "cde")):
        for split in ("train", "val"):
            for part, array in (("images", np.zeros((16, 16, 3), np.uint8)), ("labels", np.full((16, 16), 3, np.uint8))):
                (tmp_path / folder / split / part).mkdir(parents=True)
                for name in names:
                    Image.fromarray(array).save(tmp_path / folder / split / part / f"{name}.png")
        (tmp_path / folder / "classes.txt").write_text("\n".join(FACE_CLASSES))
    first = {"data": str(tmp_path / "one"), "size": (16,), "count": 4}
    for also, names, merge in (
        ("procedural_faces", ["a", "b", *(f"seed_{i:08d}" for i in range(4))], "none"),
        (f"folder:{tmp_path / 'two'}", list("abcde"), "meta"),
        (f"auto:{tmp_path / 'two'}", list("abcde"), "none"),
        ("", list("ab"), "compact"),
    ):
        options = DataOptions(**first, also=also, merge=merge)
        training, validation = options.training_set(0), options.validation_set()
        assert training.source.names() == names and validation is not None
        assert validation.source.names() == options.source("train").names() == ["a", "b"]
        assert training.source.classes == validation.source.classes
        assert {training[i].labels.shape for i in range(len(names))} == {(16, 16)}
    with pytest.raises(ValueError, match="expected the classes of folder; procedural_facades has 12 classes instead of 19"):
        DataOptions(**first, also="procedural_facades").training_set(0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DataOptions(**first, also=f"folder:{tmp_path / 'nowhere'}").training_set(0)
    for wrong in ("cmp_facade", "nothing:x", "nothing", "procedural_faces:x", ":x", "cmp_facade:"):
        with pytest.raises(
            ValueError, match=r"also: expected a kind drawn by code \(procedural_faces, .*\) or kind:folder, got"
        ):
            DataOptions(also=wrong)


def test_real_facades_with_drawn_ones(data_folder: Path) -> None:
    options = DataOptions(data=str(data_folder / "cmp_facade"), also="procedural_facades", count=50, size=(32,))
    training, validation = options.training_set(0), options.validation_set()
    assert validation is not None and (len(training), len(validation)) == (330, 40)
    assert training.source.name == "cmp_facade" and training.num_regions == 12
    assert len({training[i].name for i in (0, 279, 280, 329)}) == 4


@pytest.mark.parametrize("model", ["spade", "sean", "clade"])
def test_every_model_gets_the_types(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = f"--kind procedural_faces --count 3 --size 32 --merge meta --out {tmp_path} --print-config"
    assert run([model, *given.split()]) == 0
    printed = capsys.readouterr().out
    assert '"merge": "meta"' in printed and '"u_lip"' not in printed and '"mouth"' in printed


def test_scenes_of_several_sets_are_one(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    sets = {
        "camvid": (0, CAMVID[0]),
        "ade20k": (1 + ADE20K.index("sea"), "sea"),
        "coco_stuff": (COCO_STUFF.index("cat"), "cat"),
    }
    for name, (stored, _) in sets.items():
        for part, array in (("images", np.zeros((16, 16, 3), np.uint8)), ("labels", np.full((16, 16), stored, np.uint8))):
            (tmp_path / name / part).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / name / part / f"{name}.png")
    also = f"ade20k:{tmp_path / 'ade20k'}, coco_stuff:{tmp_path / 'coco_stuff'},coco_stuff:{tmp_path / 'coco_stuff'}"
    options = DataOptions(data=str(tmp_path / "camvid"), kind="camvid", size=(16,), merge="scenes", also=also)
    training = options.training_set(0)
    assert training.source.classes == SCENE_TYPES and len(SCENE_TYPES) == 26
    named = {sample.name: SCENE_TYPES[int(sample.labels[0, 0])] for sample in (training[i] for i in range(len(training)))}
    assert (
        named == {"camvid": "sky", "ade20k": "water", "coco_stuff": "animal"} and len(training) == 4
    )  # one set counts twice
    # single pictures: the set that folder or kind tell has its own vocabulary; without one, the types themselves
    for name, (stored, _) in sets.items():
        picture = read_picture(tmp_path / name / "images" / f"{name}.png", classes=SCENE_TYPES, kind=name, merge="auto")
        assert SCENE_TYPES[int(picture.labels[0, 0])] == named[name]
        if stored < len(SCENE_TYPES):
            plain = read_picture(
                tmp_path / name / "images" / f"{name}.png", classes=SCENE_TYPES, kind="folder", merge="auto"
            )
            assert (plain.labels == stored).all()
    with pytest.raises(ValueError, match="no scenes types"):
        DataOptions(kind="procedural_facades", merge="scenes").training_set(0)
    with pytest.raises(ValueError, match="expected the classes of camvid; ade20k has 151 classes instead of 12"):
        DataOptions(data=str(tmp_path / "camvid"), kind="camvid", also=also).training_set(0)


def test_scene_types_hold_every_class_once() -> None:
    words = {word for types in vocabularies(SCENE_TYPES, "scenes") for word in types}
    assert set(scene_types._TYPE) <= words | set(SCENE_TYPES)  # no word that no set has
    for kind in ("camvid", "ade20k", "coco_stuff", "cityscapes"):
        for unknown in ("class", "none"):
            assert region_types(LABEL_SETS[kind].resolve(unknown)[0], "scenes").names == SCENE_TYPES
    assert region_types(GTA5, "scenes").names == region_types(GTA5[:-1], "scenes").names == SCENE_TYPES
    ade = region_types((*ADE20K, "unknown"), "scenes")
    ids = np.array([[ADE20K.index(name) for name in ("skyscraper", "palm", "hill", "swivel chair", "clock")] + [150]])
    assert [SCENE_TYPES[k] for k in ade.apply(ids)[0]] == ["building", "tree", "mountain", "furniture", "object", "unknown"]
    assert len(scene_types._TYPE) == sum(len(words.split(",")) for words in scene_types._WORDS.values())  # no word twice
