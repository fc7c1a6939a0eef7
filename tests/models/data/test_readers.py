"""Readers of the data sets: original layouts written here, simple layouts from real data, and what goes wrong."""

from __future__ import annotations

import json
import pickle
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data import KINDS, FileSource, RegionDataset, Source, guess_kind, open_source
from mixsyn_fast.models.data.classes import (
    ADE20K,
    CAMVID_COLOURS,
    CITYSCAPES_TRAIN_IDS,
    COCO_STUFF,
    DEEPFASHION_COLOURS,
    left_right_pairs,
)
from mixsyn_fast.models.data.coco_instances import write_instance_maps
from mixsyn_fast.models.data.readers import class_names

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

H, W = 12, 16


def picture(path: Path, size: tuple[int, int] = (H, W), colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path)


def plane(path: Path, values: np.ndarray | int, size: tuple[int, int] = (H, W)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(size, values) if isinstance(values, int) else values
    Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8)).save(path)


def halves(left: int, right: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    values = np.full(size, left)
    values[:, size[1] // 2 :] = right
    return values


def corner(source: Source, index: int = 0) -> tuple[int, int]:
    """Labels of the left and of the right edge of a sample."""
    labels = source.read(index).labels
    return int(labels[0, 0]), int(labels[0, -1])


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "kind", "split", "count", "classes"),
    [
        ("celebamask_hq", "celebamask_hq", "train", 750, 19),
        ("celebamask_hq", "celebamask_hq", "all", 850, 19),
        ("cmp_facade", "cmp_facade", "val", 40, 12),
        ("camvid", "camvid", "train", 367, 12),
        ("ccp", "ccp", "val", 100, 59),
        ("samples/ade20k", "ade20k", "train", 39, 151),
        ("samples/coco_stuff", "coco_stuff", "train", 16, 183),
        ("samples/coco_taming", "coco_stuff", "all", 27, 183),
        ("samples/cityscapes", "cityscapes", "train", 6, 35),
        ("samples/gta5", "gta5", "train", 5, 20),
        ("samples/deepfashion", "deepfashion", "train", 5, 16),
    ],
)
def test_real_sets(data_folder: Path, folder: str, kind: str, split: str, count: int, classes: int) -> None:
    source = open_source(data_folder / folder, split=split)
    assert (source.name, len(source), len(source.classes)) == (kind, count, classes)
    names = source.names()
    assert names == sorted(names) and len(names) == count
    for index in range(0, count, max(1, count // 4)):
        sample = source.read(index)
        assert sample.name == names[index] and sample.instances is None
        assert sample.image.dtype == np.uint8 and sample.image.shape == (*sample.labels.shape, 3)
        assert sample.labels.dtype == np.int32 and 0 <= sample.labels.min() and sample.labels.max() < classes
        stored = np.asarray(Image.open(next((data_folder / folder).rglob(f"labels/{sample.name}.png")))).astype(int)
        if kind == "cmp_facade":
            assert np.array_equal(sample.labels, stored - 1)
        elif kind == "ade20k":
            assert np.array_equal(sample.labels, np.where(stored == 0, 150, stored - 1))
        elif kind == "coco_stuff":
            assert np.array_equal(sample.labels, np.where(stored == 255, 182, stored))
        else:
            assert np.array_equal(sample.labels, stored)


def test_real_classes_mean_what_their_names_say(data_folder: Path) -> None:
    """The person's left is on the right; skies are above roads, in every set that has both."""
    faces = open_source(data_folder / "celebamask_hq", split="val")
    column = {name: [] for name in ("l_eye", "r_eye")}
    for index in range(8):
        labels = faces.read(index).labels
        for name, values in column.items():
            values.append(np.argwhere(labels == faces.classes.index(name))[:, 1].mean())
    assert np.nanmean(column["l_eye"]) > np.nanmean(column["r_eye"])
    for folder in ("camvid", "samples/ade20k", "samples/cityscapes", "samples/gta5", "samples/coco_stuff"):
        source = open_source(data_folder / folder)
        sky = source.classes.index("sky-other" if source.name == "coco_stuff" else "sky")
        road = source.classes.index("road")
        found = 0
        for index in range(min(len(source), 16)):
            labels = source.read(index).labels
            rows = [np.argwhere(labels == k)[:, 0] for k in (sky, road)]
            if min(map(len, rows)) > 50:
                assert rows[0].mean() < rows[1].mean()
                found += 1
        assert found > 0, folder


def test_unknown_pixels(data_folder: Path) -> None:
    folder = data_folder / "samples" / "coco_stuff"
    as_class, as_none, as_sky = (open_source(folder, unknown=u) for u in ("class", "none", "sky-other"))
    assert as_class.classes == (*COCO_STUFF, "unknown") and as_none.classes == as_sky.classes == COCO_STUFF
    samples = [source.read(5).labels for source in (as_class, as_none, as_sky)]
    unknown = samples[0] == 182
    assert unknown.any() and np.array_equal(unknown, samples[1] == -1)
    assert (samples[2][unknown] == COCO_STUFF.index("sky-other")).all()
    assert all(np.array_equal(s[~unknown], samples[0][~unknown]) for s in samples)
    camvid = open_source(data_folder / "camvid", unknown="none")
    assert len(camvid.classes) == 11 and min(camvid.read(i).labels.min() for i in range(3)) == -1
    cityscapes = open_source(data_folder / "samples" / "cityscapes", unknown="none")
    assert len(cityscapes.classes) == 35  # its "unlabeled" is the first class: the others keep their ids
    with pytest.raises(ValueError, match="unknown: expected 'class', 'none' or a class name, got 'void'"):
        open_source(folder, unknown="void")


# --- original layouts ---------------------------------------------------------------------------------------------------


def celeba(root: Path, mapping: Sequence[tuple[int, int]]) -> None:
    for n, _ in mapping:
        picture(root / "CelebA-HQ-img" / f"{n}.jpg", (2 * H, 2 * W))
        masks = root / "CelebAMask-HQ-mask-anno" / str(n // 2000)
        plane(masks / f"{n:05d}_skin.png", 255)
        plane(masks / f"{n:05d}_nose.png", halves(255, 0))
        plane(masks / f"{n:05d}_hair.png", halves(0, 255))
        plane(masks / f"{n:05d}_l_eye.png", halves(0, 255))  # the hair covers it: it comes later in the published order
    lines = [f"{n} {number - 1} {number:06d}.jpg" for n, number in mapping]
    text = "idx orig_idx orig_file\n" + "\n".join(lines) + "\n"
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(text)


def test_celebamask_hq(tmp_path: Path) -> None:
    celeba(tmp_path, [(0, 162770), (2, 162771), (10, 182637), (28001, 182638)])
    assert guess_kind(tmp_path) == "celebamask_hq"
    splits = {split: open_source(tmp_path, split=split) for split in ("train", "val", "test", "all")}
    assert [s.names() for s in splits.values()] == [["0"], ["10", "2"], ["28001"], ["0", "10", "2", "28001"]]
    source = splits["train"]
    assert source.read(0).image.shape == (H, W, 3)  # scaled to its label map
    assert corner(source) == (2, 13)  # nose over skin, hair over the eye
    assert source.swaps == ((4, 5), (6, 7), (8, 9)) and source.default_size == (256, 256)
    harmonized = open_source(tmp_path, "celebamask_hq", "val", partition="first_28000")
    assert harmonized.names() == ["28001"]
    plane(tmp_path / "CelebAMaskHQ-mask" / "0.png", 17)
    with pytest.warns(UserWarning, match=r"3 files are left over \(3 without a label map: "):
        assert corner(open_source(tmp_path)) == (17, 17)  # merged maps come first
    with pytest.raises(ValueError, match="partition: expected 'celeba' or 'first_28000', got 'half'"):
        open_source(tmp_path, partition="half")
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").unlink()
    with pytest.raises(FileNotFoundError, match="mapping.txt: needed for CelebA's partition"):
        open_source(tmp_path)


def test_celebamask_hq_with_missing_parts(tmp_path: Path) -> None:
    celeba(tmp_path, [(3, 5)])
    mask = tmp_path / "CelebAMask-HQ-mask-anno" / "0" / "00003_skin.png"
    plane(mask, 255, (H, W + 1))
    with pytest.raises(ValueError, match=r"00003_nose.png: label map is 16 x 12 but 00003_skin.png is 17 x 12"):
        open_source(tmp_path).read(0)
    for path in mask.parent.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no part masks for .*3.jpg .expected 00003_skin.png"):
        open_source(tmp_path)


def test_celebamask_hq_with_other_names(tmp_path: Path) -> None:
    celeba(tmp_path, [(3, 5)])
    picture(tmp_path / "CelebA-HQ-img" / "anna.JPG", (2 * H, 2 * W))
    masks = tmp_path / "CelebAMask-HQ-mask-anno" / "0"
    plane(masks / "anna_hair.png", 255)
    beard, copy = masks / "00003_beard.png", tmp_path / "CelebA-HQ-img" / "copy of 3.jpg"
    plane(beard, 255)
    picture(copy)
    with pytest.warns(UserWarning, match=r"1 without part masks: .*copy of 3.jpg; 1 without a part or a picture: .*beard"):
        source = open_source(tmp_path, split="all")
    assert source.names() == ["3", "anna"] and corner(source, 1) == (13, 13)
    for path in (beard, copy):
        path.unlink()
    with pytest.raises(ValueError, match=r"mapping.txt: has no line for anna.JPG .or take split 'all'"):
        open_source(tmp_path)
    with pytest.warns(UserWarning, match="1 without a number in its name: .*anna.JPG"):
        assert open_source(tmp_path, partition="first_28000").names() == ["3"]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("idx orig_idx orig_file\n3 4 first.jpg\n")
    with pytest.raises(ValueError, match=r"mapping.txt: expected the number of CelebA's picture in line 2, .*'first.jpg'"):
        open_source(tmp_path)
    picture(masks / "00003_skin.jpg")
    (masks / "00003_skin.png").unlink()
    with pytest.raises(ValueError, match="00003_skin.jpg: expected a label map as PNG"):
        open_source(tmp_path, "celebamask_hq", "all", names=["3"]).read(0)


def test_ffhq(tmp_path: Path) -> None:
    for n in (0, 1999, 2000, 59999, 60000):
        picture(tmp_path / "images1024x1024" / f"{n // 1000 * 1000:05d}" / f"{n:05d}.png", (2 * H, 2 * W))
        plane(tmp_path / "labels" / f"{n:05d}.png", 13)
    assert open_source(tmp_path, split="val").names() == ["60000"]
    assert open_source(tmp_path, split="val", partition="first_2000").names() == ["00000", "01999"]
    assert len(open_source(tmp_path, split="all")) == 5 and corner(open_source(tmp_path)) == (13, 13)
    with pytest.raises(FileNotFoundError, match="parsed: no label map for .*00000.png .and 4 more"):
        open_source(tmp_path, labels="parsed")


def test_lapa_and_helen(tmp_path: Path) -> None:
    lapa, helen = tmp_path / "LaPa", tmp_path / "helen_parsing"
    picture(lapa / "test" / "images" / "a_0.jpg")
    plane(lapa / "test" / "labels" / "a_0.png", halves(4, 10))
    (lapa / "test" / "landmarks").mkdir()
    source = open_source(lapa, split="test")
    assert source.name == "lapa" and corner(source) == (4, 10) and source.swaps == ((2, 3), (4, 5))
    for name in ("1_1", "2_1", "3_1"):
        picture(helen / "images" / f"{name}.jpg")
        for k in range(11):
            weights = {1: (200, 120), 10: (50, 130)}  # skin and hair
            values = halves(*weights.get(k, (0, 0)))
            plane(helen / "labels" / name / f"{name}_lbl{k:02d}.png", values)
    for file, name in (("exemplars", "1_1"), ("tuning", "2_1"), ("testing", "3_1")):
        (helen / f"{file}.txt").write_text(f"1 , {name}\n\n")
    assert [open_source(helen, split=s).names() for s in ("train", "val", "test")] == [["1_1"], ["2_1"], ["3_1"]]
    source = open_source(helen, split="all")
    assert len(source) == 3 and corner(source) == (1, 10)  # the largest weight decides
    (helen / "labels" / "1_1" / "1_1_lbl07.png").unlink()
    with pytest.raises(FileNotFoundError, match="1_1_lbl07.png: no such part mask"):
        open_source(helen)


def test_cmp_facade(tmp_path: Path) -> None:
    for part, number in (("base/cmp_b", 280), ("base/cmp_b", 281), ("base/cmp_b", 378), ("extended/cmp_x", 189)):
        picture(tmp_path / f"{part}{number:04d}.jpg")
        plane(tmp_path / f"{part}{number:04d}.png", halves(1, 12))
    assert guess_kind(tmp_path) == "cmp_facade"
    parts = [open_source(tmp_path, split=split).names() for split in ("train", "val", "test")]
    assert parts == [["cmp_b0280"], ["cmp_b0281"], ["cmp_b0378"]]
    assert corner(open_source(tmp_path / "base", split="all")) == (0, 11)
    extended = open_source(tmp_path, "cmp_facade_extended", "val")
    assert extended.names() == ["cmp_x0189"] and corner(extended) == (0, 11) and extended.swaps == ()
    assert guess_kind(tmp_path / "extended") == "cmp_facade_extended"
    with pytest.raises(ValueError, match="no picture in split 'train'"):
        open_source(tmp_path, "cmp_facade_extended")
    plane(tmp_path / "base" / "cmp_b0280.png", halves(1, 0))
    message = r"cmp_b0280.png: expected class ids 1..12, got 0 at row 0, column 8"
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path).read(0)


@pytest.mark.parametrize(
    ("images", "labels", "instances"),
    [
        ("train2017", "stuffthingmaps/train2017", "instances/train2017"),
        ("images/train2017", "annotations/train2017", "instances/train2017"),
        ("train_img", "train_label", "train_inst"),
    ],
)
def test_coco_stuff(tmp_path: Path, images: str, labels: str, instances: str) -> None:
    picture(tmp_path / images / "000000000009.jpg")
    plane(tmp_path / labels / "000000000009.png", halves(181, 255))
    source = open_source(tmp_path, "coco_stuff")
    assert corner(source) == (181, 182) and source.read(0).instances is None
    plane(tmp_path / instances / "000000000009.png", halves(1000, 70))
    source = open_source(tmp_path, "coco_stuff")
    found = source.read(0).instances
    assert found is not None and found.dtype == np.int32 and set(np.unique(found)) == {70, 1000}
    edges = RegionDataset(source, (H, W))[0].edges
    assert edges is not None and edges.sum() == 2 * H
    plane(tmp_path / instances / "000000000009.png", 3, (H, W - 1))
    with pytest.raises(ValueError, match=f"{instances}/000000000009.png: label map is 15 x 12 but"):
        source.read(0)
    (tmp_path / instances / "000000000009.png").rename(tmp_path / instances / "other.png")
    with pytest.raises(FileNotFoundError, match="no instance map for"):
        open_source(tmp_path, "coco_stuff")


def test_coco_instance_maps_from_polygons(tmp_path: Path) -> None:
    labels, out, file = tmp_path / "stuffthingmaps/val2017", tmp_path / "instances/val2017", tmp_path / "instances.json"
    plane(labels / "000000000007.png", halves(120, 0))
    plane(labels / "000000000008.png", 3)
    box = lambda x0, y0, x1, y1: [x0, y0, x1, y0, x1, y1, x0, y1]  # noqa: E731
    things = [
        {"image_id": 7, "area": 4, "iscrowd": 0, "segmentation": [box(9, 2, 10, 3)]},  # small, on top of the next
        {"image_id": 7, "area": 30, "iscrowd": 0, "segmentation": [box(8, 1, 12, 5), box(14, 8, 15, 9)]},  # in two parts
        {"image_id": 7, "area": 99, "iscrowd": 1, "segmentation": {"counts": [1], "size": [H, W]}},
    ]
    data = {"images": [{"id": n, "width": W, "height": H} for n in (7, 8, 9)], "annotations": things}
    file.write_text(json.dumps(data))
    assert write_instance_maps(file, labels, out) == 2
    picture(tmp_path / "val2017" / "000000000007.jpg")
    picture(tmp_path / "val2017" / "000000000008.jpg")
    found = open_source(tmp_path, "coco_stuff", "val").read(0).instances
    assert found is not None and np.unique(found).tolist() == [0, 120, 256, 257]
    assert (found[2:4, 9:11] == 257).all() and (found == 257).sum() == 4
    assert found[1, 8] == found[5, 12] == found[8, 14] == 256 and (found[:, :8] == 120).all()
    plane(labels / "000000000008.png", 3, (H, W + 1))
    with pytest.raises(ValueError, match=r"000000000008.png: expected width and height \(16, 12\), got \(17, 12\)"):
        write_instance_maps(file, labels, out)
    file.write_text("[]")
    with pytest.raises(ValueError, match="instances.json: not a COCO instances file"):
        write_instance_maps(file, labels, out)
    with pytest.raises(FileNotFoundError, match="holds no label map"):
        write_instance_maps(file, tmp_path, out)
    file.write_text(json.dumps(data))
    (labels / "._000000000007.png").write_bytes(b"")
    plane(labels / "street.png", 3)
    with pytest.raises(ValueError, match=r"street.png: expected a name that is the number of COCO's picture"):
        write_instance_maps(file, labels, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(FileNotFoundError, match="gone.json: no such file"):
        write_instance_maps(tmp_path / "gone.json", labels, out)


def test_ade20k(tmp_path: Path) -> None:
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        picture(tmp_path / "images" / part / f"{name}.jpg")
        plane(tmp_path / "annotations" / part / f"{name}.png", halves(0, 150))
    source = open_source(tmp_path, split="val")
    assert source.names() == ["ADE_val_00000001"] and corner(source) == (150, 149)
    assert source.classes == (*ADE20K, "unknown") and len(open_source(tmp_path, split="all")) == 2
    assert corner(open_source(tmp_path, unknown="none")) == (-1, 149)
    maps = tmp_path / "annotations" / "training"
    (maps / "ADE_train_00000001.png").rename(maps / "ADE_train_00000001_seg.png")
    with pytest.raises(FileNotFoundError, match=r"looked for .*annotations/training/ADE_train_00000001.png"):
        open_source(tmp_path)
    maps.rename(tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match=r"annotations/training: no such folder of label maps for .*images/training"):
        open_source(tmp_path, "ade20k")
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match=r"or .*images/training/\*.jpg with annotations/training/\*.png"):
        open_source(tmp_path, "ade20k")


def test_cityscapes(tmp_path: Path) -> None:
    for part, stem in (("train", "aachen_000000_000019"), ("val", "munster_000001_000019")):
        city = stem.split("_")[0]
        picture(tmp_path / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png")
        plane(tmp_path / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png", halves(0, 33))
        plane(tmp_path / "gtFine" / part / city / f"{stem}_gtFine_instanceIds.png", halves(7, 26001))
        picture(tmp_path / "gtFine" / part / city / f"{stem}_gtFine_color.png")
    source = open_source(tmp_path)
    assert source.names() == ["aachen_000000_000019"] and corner(source) == (0, 33)
    assert source.classes[-1] == "license plate" and source.default_size == (256, 512)
    instances = source.read(0).instances
    assert instances is not None and instances[0, -1] == 26001
    assert len(open_source(tmp_path, split="all")) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the set's other maps are not left over
        open_source(tmp_path)
    path = tmp_path / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png"
    path.rename(path.with_name("aachen_000000_000019_gtFine_labelTrainIds.png"))
    with pytest.raises(FileNotFoundError, match=r"looked for .*gtFine/train/\*\*/aachen_000000_000019_gtFine_labelIds.png"):
        open_source(tmp_path)
    path = tmp_path / "leftImg8bit" / "val" / "munster" / "munster_000001_000019_leftImg8bit.png"
    path.rename(path.with_name("munster_000001_000019.png"))
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit/val: holds no picture; looked for .*/\*_leftImg8bit\.\*"):
        open_source(tmp_path, split="val")
    (tmp_path / "leftImg8bit").rename(tmp_path / "leftImg8bit_trainvaltest")
    with pytest.raises(FileNotFoundError, match=r"or .*leftImg8bit/<split>/<city>/\*_leftImg8bit.png with gtFine/"):
        open_source(tmp_path, "cityscapes")


def test_gta5(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    for n in (1, 2, 3):
        picture(tmp_path / "images" / f"{n:05d}.png")
        plane(tmp_path / "labels" / f"{n:05d}.png", halves(CITYSCAPES_TRAIN_IDS[n], 34))
    with pytest.raises(FileNotFoundError, match=r"split.mat: needed for split 'train'"):
        open_source(tmp_path, "gta5")
    scipy_io.savemat(tmp_path / "split.mat", {"trainIds": [[1], [3]], "valIds": [[2]], "testIds": np.zeros((0, 1))})
    assert guess_kind(tmp_path) == "gta5"
    source = open_source(tmp_path)
    assert source.names() == ["00001", "00003"] and corner(source, 1) == (3, 19)
    assert source.classes[0] == "road" and source.classes[19] == "others"
    none = open_source(tmp_path, split="val", unknown="none")
    assert corner(none) == (2, -1) and len(none.classes) == 19
    (tmp_path / "split.mat").write_bytes(b"no")
    with pytest.raises(ValueError, match="split.mat: not a MATLAB file"):
        open_source(tmp_path)


def test_camvid(tmp_path: Path) -> None:
    short, full = tmp_path / "short", tmp_path / "full"
    picture(short / "val" / "0016E5_07959.png")
    plane(short / "valannot" / "0016E5_07959.png", halves(0, 11))
    assert corner(open_source(short, "camvid", "val")) == (0, 11)
    picture(full / "701_StillsRaw_full" / "0001TP_006690.png")
    colours = [rgb for several in CAMVID_COLOURS.values() for rgb in several]
    assert len(set(colours)) == 32
    strip = np.repeat(np.array(colours, np.uint8)[None], H, 0)
    path = full / "LabeledApproved_full" / "0001TP_006690_L.png"
    path.parent.mkdir()
    Image.fromarray(strip).save(path)
    picture(full / "701_StillsRaw_full" / "0001TP_006690.png", (H, 32))
    source = open_source(full, split="all")
    names = [source.classes[k] for k in source.read(0).labels[0]]
    assert names == [name for name, several in CAMVID_COLOURS.items() for _ in several]
    with pytest.raises(ValueError, match="has no split: expected 'all'"):
        open_source(full)
    strip[3, 4] = (1, 2, 3)
    Image.fromarray(strip).save(path)
    with pytest.raises(ValueError, match=r"_L.png: RGB \(1, 2, 3\) at row 3, column 4 is no class's colour"):
        source.read(0)


def test_deepfashion(tmp_path: Path) -> None:
    names = ["MEN/Shirts/id_00000001/01_1_front", "WOMEN/Dresses/id_00000002/02_3_back", "MEN/Shirts/id_00000003/01_2_side"]
    for name in names:
        picture(tmp_path / "img_highres" / f"{name}.jpg", (16, 10))
    picture(tmp_path / "img_highres" / "MEN/Shirts/id_00000001/01_4_full.jpg")  # has no map
    strip = np.zeros((16, 10, 3), np.uint8)
    strip[:] = DEEPFASHION_COLOURS[9]
    for name, base in zip(names, ("img_highres", "img_highres_seg", "img_highres"), strict=True):
        path = tmp_path / base / f"{name}_segment.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(strip).save(path)
    (tmp_path / "Eval").mkdir()
    rows = [f"img/{n}.jpg id {part}" for n, part in zip(names, ("train", "query", "gallery"), strict=True)]
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text("3\nimage_name item_id evaluation_status\n" + "\n".join(rows))
    with pytest.warns(UserWarning, match=r"1 without a label map: id_00000001/01_4_full.jpg"):
        assert open_source(tmp_path, "deepfashion").names() == ["id_00000001_01_1_front"]
    (tmp_path / "img_highres" / "MEN/Shirts/id_00000001/01_4_full.jpg").unlink()
    val = open_source(tmp_path, "deepfashion", "val")
    assert val.names() == ["id_00000002_02_3_back", "id_00000003_01_2_side"]
    sample = val.read(0)
    assert sample.image.shape == (16, 16, 3) and (sample.image[:, [0, 1, 2, -3, -2, -1]] == 255).all()
    assert (sample.image[:, 3:-3] < 100).all()
    assert np.unique(sample.labels[:, 3:-3]).tolist() == [9] and not sample.labels[:, :3].any()
    (tmp_path / "img_highres" / f"{names[0]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"img_highres: holds no parsing map \(\*_segment.png\) of split 'train'"):
        open_source(tmp_path, "deepfashion")


def test_ccp(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    maps = tmp_path / "annotations" / "pixel-level"
    maps.mkdir(parents=True)
    for n in (1, 801, 1004):
        picture(tmp_path / "photos" / f"{n:04d}.jpg")
        scipy_io.savemat(maps / f"{n:04d}.mat", {"groundtruth": halves(0, 58).astype(np.uint8)})
    assert [open_source(tmp_path, split=s).names() for s in ("train", "val", "test")] == [["0001"], ["0801"], ["1004"]]
    source = open_source(tmp_path)
    assert source.name == "ccp" and corner(source) == (0, 58) and source.classes[58] == "wedges"
    scipy_io.savemat(maps / "0001.mat", {"other": 1})
    with pytest.raises(ValueError, match="0001.mat: not a MATLAB file with a variable 'groundtruth'"):
        source.read(0)


# --- a user's own folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for part, names in (("train", "ba"), ("val", "c")):
        for name in names:
            picture(tmp_path / part / "images" / f"{name}.png")
            plane(tmp_path / part / "labels" / f"{name}.png", halves(0, 2))
    (tmp_path / "classes.txt").write_text("wall\nl_door\nr_door\n\n")
    return tmp_path


def test_own_folder(own: Path) -> None:
    source = open_source(own)
    assert source.name == "folder" and source.names() == ["a", "b"] and source.classes == ("wall", "l_door", "r_door")
    assert source.swaps == ((1, 2),) and isinstance(source, Source)
    assert len(open_source(own, split="all")) == 3
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(0).labels, source.read(0).labels)
    (own / "classes.txt").write_text("0\tnothing\n1\tred door\n2\tblue door\n")
    assert open_source(own).classes == ("nothing", "red door", "blue door")
    assert open_source(own, classes=4).classes[3] == "class_3"
    assert corner(open_source(own, classes=["x", "y"], unknown_id=2, unknown="none")) == (0, -1)
    plane(own / "train" / "labels" / "a.png", halves(5, 7))
    assert corner(open_source(own, first_id=5)) == (0, 2)


def test_own_folder_with_edges_and_instances(own: Path) -> None:
    for name in "ab":
        plane(own / "train" / "edges" / f"{name}.png", halves(0, 9))
    sample = open_source(own).read(0)
    assert sample.edges is not None and np.array_equal(sample.edges, halves(0, 1) == 1)
    for name in "ab":
        plane(own / "train" / "instances" / f"{name}.png", np.arange(H)[:, None].repeat(W, 1))
    item = RegionDataset(open_source(own), (H, W))[0]
    assert item.edges is not None and item.edges.all()  # every row is an object
    (own / "train" / "edges" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="no edge map for .*a.png"):
        open_source(own)


def test_names_restrict_a_set(own: Path) -> None:
    for text in ("b\n", "\ufeffb\r\n\r\n", "  b.PNG \n"):
        (own / "list.txt").write_bytes(text.encode())
        assert open_source(own, names=own / "list.txt").names() == ["b"] == open_source(own, names=["b"]).names()
    with pytest.raises(ValueError, match="names: 2 not in split 'train' of .*: c, z"):
        open_source(own, names=["b", "c", "z"])
    with pytest.raises(FileNotFoundError, match="gone.txt: no such file"):
        open_source(own, names=own / "gone.txt")


def test_bad_files_are_named(own: Path) -> None:
    source = open_source(own)
    labels, image = own / "train" / "labels" / "a.png", own / "train" / "images" / "a.png"
    plane(labels, halves(0, 3))
    with pytest.raises(ValueError, match=r"labels/a.png: expected class ids 0..2, got 3 at row 0, column 8"):
        source.read(0)
    plane(labels, halves(0, 300))
    with pytest.raises(ValueError, match=r"labels/a.png: expected class ids 0..2, got 300"):
        source.read(0)
    Image.fromarray(np.full((H, W), 70000, np.int32)).save(labels, format="TIFF")
    with pytest.raises(ValueError, match=r"labels/a.png: expected class ids 0..2, got 70000"):
        source.read(0)
    plane(labels, 0, (H, W + 1))
    with pytest.raises(ValueError, match=r"labels/a.png: label map is 17 x 12 but a.png is 16 x 12 .width x height"):
        source.read(0)
    picture(labels)
    with pytest.raises(ValueError, match=r"labels/a.png: expected a palette or grey PNG .* got mode RGB"):
        source.read(0)
    plane(labels, 0)
    whole = image.read_bytes()
    for damaged in (b"", whole[:40], b"GIF89a" + whole, whole[:-30] + b"\0" * 10):
        image.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"images/a.png: not a readable image file"):
            source.read(0)
    image.unlink()
    with pytest.raises(ValueError, match=r"images/a.png: not a readable image file"):
        source.read(0)
    for index in (-1, 2):
        with pytest.raises(IndexError, match="index: expected 0 to 1"):
            source.read(index)


def test_grey_and_transparent_pictures_become_rgb(own: Path) -> None:
    path = own / "train" / "images" / "a.png"
    for mode in ("L", "RGBA", "P", "CMYK"):
        Image.new(mode, (W, H)).save(path.with_suffix(".jpg") if mode == "CMYK" else path)
        if mode == "CMYK":
            path.unlink()
        assert open_source(own).read(0).image.shape == (H, W, 3)


def test_stems_in_subfolders(own: Path) -> None:
    for k, part in enumerate(("cat", "dog")):
        picture(own / "train" / "images" / part / "t0.JPG", colour=50 * k)
        plane(own / "train" / "labels" / part / "t0.png", k)
    picture(own / "train" / "images" / "sorted" / "alone.jpg")
    plane(own / "train" / "labels" / "alone.PNG", 2)  # label maps need not be sorted, where no name comes twice
    source = open_source(own)
    assert source.names() == ["a", "b", "cat/t0", "dog/t0", "sorted/alone"]
    assert [corner(source, k) for k in (2, 3, 4)] == [(0, 0), (1, 1), (2, 2)]
    assert [int(source.read(k).image[0, 0, 0]) // 49 for k in (2, 3)] == [0, 1]
    assert open_source(own, names=["alone", "dog/t0"]).names() == ["dog/t0", "sorted/alone"]
    (own / "train" / "labels" / "cat" / "t0.png").unlink()
    with pytest.warns(UserWarning, match=r"1 without a label map: cat/t0.JPG"):
        assert open_source(own).names() == ["a", "b", "dog/t0", "sorted/alone"]  # dog's is not cat's
    picture(own / "train" / "images" / "b.jpg")
    with pytest.raises(ValueError, match=r"train/images: expected one picture per name, got b.jpg and b.png"):
        open_source(own)


def test_names_of_two_splits(own: Path) -> None:
    picture(own / "val" / "images" / "a.png")
    plane(own / "val" / "labels" / "a.png", 1)
    assert open_source(own, split="all").names() == ["train/a", "train/b", "val/a", "val/c"]
    assert open_source(own, "images", "all").names() == ["train/images/a", "train/images/b", "val/images/a", "val/images/c"]


def test_names_in_two_unicode_forms(own: Path) -> None:
    picture(own / "train" / "images" / f"{unicodedata.normalize('NFD', 'größe')}.jpg")
    plane(own / "train" / "labels" / f"{unicodedata.normalize('NFC', 'größe')}.png", 1)
    name = unicodedata.normalize("NFC", "größe")
    assert open_source(own).names() == ["a", "b", name]
    assert open_source(own, names=[unicodedata.normalize("NFD", name)]).names() == [name]


def test_files_that_are_left_over(own: Path) -> None:
    (own / "train" / "images" / "._a.png").write_bytes(b"\0\5\x16\7")
    (own / "train" / "labels" / "._a.png").write_bytes(b"\0\5\x16\7")
    (own / "train" / "images" / "d.heic").write_bytes(b"")
    picture(own / "train" / "images" / "e.jpg")
    plane(own / "train" / "labels" / "f.png", 0)
    picture(own / "train" / "labels" / "a.webp")
    plane(own / "train" / "edges" / "a.png", 0)
    plane(own / "train" / "edges" / "b.png", 0)
    plane(own / "train" / "edges" / "g.png", 0)
    with pytest.warns(UserWarning) as caught:
        source = open_source(own)
    assert len(caught) == 1 and source.names() == ["a", "b"] and isinstance(source, FileSource)
    message = str(caught[0].message)
    assert message.startswith(f"{own}: 5 files are left over (1 not .jpg") and "data inspect" in message
    assert {one.file.name: one.reason.split(",")[0] for one in source.left} == {
        "d.heic": "not .jpg",
        "a.webp": "beside one that is taken (.png",
        "e.jpg": "without a label map",
        "f.png": "without a picture",
        "g.png": "without a picture",
    }


def test_lossy_label_maps_are_bad(own: Path) -> None:
    for name in "ab":
        path = own / "train" / "labels" / f"{name}.png"
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    source = open_source(own)
    for index, name in enumerate("ab"):
        with pytest.raises(ValueError, match=rf"labels/{name}.jpg: expected a label map as PNG .*got JPEG: a lossy format"):
            source.read(index)


def test_messages_name_the_option_that_helps(own: Path) -> None:
    labels = own / "train" / "labels" / "a.png"
    for left, right, hint in (
        (0, 255, r" \(--unknown-id 255 if 255 marks pixels of no class\)"),
        (1, 3, r" \(--first-id 1 if class 0 is stored as 1\)"),
        (0, 3, r" \(--unknown-id 3 if 3 marks pixels of no class\)"),
    ):
        plane(labels, halves(left, right))
        with pytest.raises(ValueError, match=rf"labels/a.png: expected class ids 0..2, got {right} at .*{hint}$"):
            open_source(own).read(0)
    values = halves(1, 3)
    values[0] = 255
    plane(labels, values)
    with pytest.raises(ValueError, match=r"--first-id 1 if class 0 is stored as 1 and --unknown-id 255 if 255 marks"):
        open_source(own).read(0)
    assert corner(open_source(own, first_id=1, unknown_id=255)) == (3, 3)
    plane(labels, halves(7, 9))
    with pytest.raises(ValueError, match=r"it has the ids 7, 9: name every class in classes.txt"):
        open_source(own).read(0)
    picture(own / "train" / "images" / "a.png", (W, H))
    plane(labels, 0)
    with pytest.raises(ValueError, match=r"is 12 x 16 .width x height.; one is turned: files are read upright"):
        open_source(own).read(0)


@pytest.mark.parametrize(
    "text",
    [
        "sky\nred door\n3d model\n",
        "sky\r\nred door\r\n3d model\r\n\r\n# the end\r\n",
        "0: sky\n1: red door\n2: 3d model\n",
        "0 sky\n1 red door\n2\t3d model",
        "0,sky\n1, red door\n2 , 3d model\n",
        "0. sky\n1) red door\n2 - 3d model\n",
        "# mine\n\n0: sky\n\n1: red door\n# more\n2: 3d model\n",  # with ids nothing can shift
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_names(text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(text.encode(encoding))
    assert class_names(path) == ["sky", "red door", "3d model"]


@pytest.mark.parametrize(
    ("text", "first", "message"),
    [
        ("sky\n\ngrass\n", 0, r"expected a class name in line 2, got a blank line, which may stand for an id or not"),
        ("sky\n# grass\nroad\n", 0, r"expected a class name in line 2, got '# grass', .* begin every line with its id"),
        ("# classes\nsky\n", 0, r"in line 1, got '# classes'.*\('0: sky'\)"),
        ("0: sky\n2: grass\n", 0, r"expected '1: name' in line 2, got '2: grass'$"),
        ("0: sky\ngrass\n", 0, r"either every line begins with its id or none does: .* in line 2, got 'grass'"),
        ("sky\n1: grass\n", 0, r"expected '0: name' in line 1, got 'sky'"),
        ("0: sky\n1:\n", 0, r"expected '1: name' in line 2, got '1:'"),
        ("1: sky\n2: grass\n", 0, r"in line 1, got '1: sky'; ids that begin at 1 are read with --first-id 1"),
        ("id,name\n0,sky\n", 0, r"expected '0: name' in line 1, got 'id,name'"),
        ("5: sky\n6: grass\n", 1, r"--first-id 5"),
    ],
)
def test_class_names_never_shift(text: str, first: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"classes.txt: .*{message}"):
        class_names(path, first)


def test_class_names_with_ids_from_one(own: Path) -> None:
    (own / "classes.txt").write_text("1: wall\n2: l_door\n3: r_door\n")
    with pytest.raises(ValueError, match=r"classes.txt: .* --first-id 1"):
        open_source(own)
    plane(own / "train" / "labels" / "a.png", halves(1, 3))
    source = open_source(own, first_id=1)
    assert source.classes == ("wall", "l_door", "r_door") and corner(source) == (0, 2)
    (own / "classes.txt").write_bytes("Stra\xdfe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="classes.txt: expected UTF-8 text, got other bytes in line 1"):
        open_source(own)


def test_what_is_not_there_is_named(own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_source(own / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"test: expected folders images/ and labels/ for split 'test'; there is: train, val"
    ):
        open_source(own, split="test")
    with pytest.raises(FileNotFoundError, match=r"for split 'val'; there is: all"):
        open_source(own / "train", "folder", "val", classes=3)  # one split's folder is no other split
    with pytest.raises(ValueError, match="split: expected one of train, val, test, all, got 'dev'"):
        open_source(own, split="dev")
    with pytest.raises(ValueError, match="kind: expected auto or one of folder, .*, got 'imagenet'"):
        open_source(own, "imagenet")
    with pytest.raises(ValueError, match="partition: not an option of folder; it has: classes, unknown_id, first_id, size"):
        open_source(own, partition="celeba")
    for name in "ab":
        (own / "train" / "labels" / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels: no label map for .*a.png .and 1 more.; looked for .*labels/a.png"):
        open_source(own)
    (own / "classes.txt").write_text("wall\nwall\n")
    with pytest.raises(ValueError, match="classes.txt: expected one or more class names, all different"):
        open_source(own, "folder")
    (own / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="classes.txt: expected the class names"):
        open_source(own, "folder")
    with pytest.raises(ValueError, match="cannot tell what set this is; give kind, one of folder, celebamask_hq"):
        guess_kind(own)
    empty = tmp_path_factory.mktemp("empty")
    (empty / "images").mkdir()
    (empty / "labels").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        open_source(empty, "folder", classes=3)


# --- drawn by code ------------------------------------------------------------------------------------------------------


def test_procedural_sources() -> None:
    faces = open_source(None, "procedural_faces", count=3, seed=7, size=(24, 32))
    assert len(faces) == 3 and len(faces.classes) == 19 and faces.swaps == ((4, 5), (6, 7), (8, 9))
    assert faces.names() == ["seed_00000007", "seed_00000008", "seed_00000009"] and isinstance(faces, Source)
    samples = [faces.read(i) for i in range(3)]
    assert samples[0].image.shape == (24, 32, 3) and samples[0].labels.dtype == np.int32
    assert not np.array_equal(samples[0].image, samples[1].image)
    shifted = open_source("", "procedural_faces", count=1, seed=8, size=(24, 32))
    assert np.array_equal(shifted.read(0).image, samples[1].image)
    assert np.array_equal(faces.read(1).image, samples[1].image) and faces.read(1).image is not faces.read(1).image
    lit = open_source(None, "procedural_lit_faces", count=3, seed=7, size=(24, 32)).read(1)
    assert np.array_equal(lit.labels, samples[1].labels) and not np.array_equal(lit.image, samples[1].image)
    assert len(open_source(None, "procedural_facades").classes) == 12
    with pytest.raises(ValueError, match="count, seed: expected at least 1 and 0, got 0"):
        open_source(None, "procedural_faces", count=0)
    with pytest.raises(ValueError, match="size: expected at least 8 x 8"):
        open_source(None, "procedural_faces", size=4)
    with pytest.raises(ValueError, match="drawn by code and takes neither"):
        open_source("somewhere", "procedural_faces")
    with pytest.raises(
        ValueError, match="kind: expected one of procedural_faces, procedural_lit_faces, procedural_facades without a folder"
    ):
        open_source(None)
    with pytest.raises(ValueError, match="root: ade20k needs a folder"):
        open_source(None, "ade20k")
    with pytest.raises(IndexError, match="index: expected 0 to 2, got 3"):
        faces.read(3)


def test_every_kind_says_what_it_reads() -> None:
    from mixsyn_fast.models.data.readers import READERS

    assert set(KINDS) == {*READERS, "procedural_faces", "procedural_lit_faces", "procedural_facades"}
    for reader in READERS.values():
        assert "Layout" in (reader.__doc__ or "") and "swap" in (reader.__doc__ or "").lower()


def test_left_and_right() -> None:
    assert left_right_pairs(["l_lip", "u_lip", "r_ear", "l_ear"]) == ((3, 2),)
    assert left_right_pairs(["left shoe", "right shoe", "lefty"]) == ((0, 1),)
    assert left_right_pairs([]) == ()
