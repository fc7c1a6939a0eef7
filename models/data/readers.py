"""Where the files of each known data set lie, one function per set: `reader(root, split, **options) -> (LabelSet, records)`.

Every reader takes the set's original layout and the *simple layout* `root/<split>/images/*` + `root/<split>/labels/*.png`
with the original ids (or `root/images` + `root/labels`, which is split "train"). Split "all" is all there is. Sizes are
those of the papers, (H, W). Flips exchange left and right classes by name; sets without such classes exchange nothing.
Every reader raises FileNotFoundError, naming what is missing, and ValueError for an option that it does not know.

Files are found as files.py says (suffixes in either case, linked folders, no hidden files). A picture without a label map, a
label map without a picture and what is neither are left over: `Records.left`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mixsyn_fast.reading import read_text

from .classes import (
    ADE20K,
    CAMVID,
    CAMVID_COLOURS,
    CCP,
    CITYSCAPES,
    CITYSCAPES_TRAIN_IDS,
    COCO_STUFF,
    DEEPFASHION,
    DEEPFASHION_COLOURS,
    FACADE_CLASSES,
    FACE_CLASSES,
    GTA5,
    LAPA,
)
from .files import LeftOver, find, plain_name, read_matlab
from .layouts import (
    SPLITS,
    Found,
    Records,
    by_number,
    is_simple,
    joined,
    label_maps,
    listed,
    pairs,
    simple,
    split_folders,
)
from .source import LabelSet, Record

# --- faces ------------------------------------------------------------------------------------------------------------

_FACES = LabelSet(FACE_CLASSES, (256, 256), rescale=True)


def celebamask_hq(root: Path, split: str, partition: str = "celeba") -> Found:
    """CelebAMask-HQ: 30,000 faces, 19 classes.

    Layout: `CelebA-HQ-img/<n>.jpg` (1024), `CelebAMask-HQ-mask-anno/<n // 2000>/<n as 5 digits>_<part>.png` (512), and
    `CelebA-HQ-to-CelebA-mapping.txt`. Parts are merged in the published order, which is that of the ids (skin first, cloth
    last, later over earlier). Merged maps `CelebAMaskHQ-mask/<n>.png` are taken instead where they exist. The picture is
    scaled to its map. Size 256 x 256 (MixSyn, SEAN, Harmonized). l_eye/r_eye, l_brow/r_brow, l_ear/r_ear swap.

    Splits, partition="celeba": the CelebA picture's own part (its number in the mapping file: up to 162770 train, up to
    182637 val, then test); "first_28000": n < 28000 train, the rest val (Harmonized, SEAN). MixSyn uses split "all".
    """
    pictures = root / "CelebA-HQ-img"
    if not pictures.is_dir():
        return _FACES, simple(root, split, "CelebA-HQ-img/*.jpg with CelebAMask-HQ-mask-anno/")
    if partition not in ("celeba", "first_28000"):
        raise ValueError(f"partition: expected 'celeba' or 'first_28000', got {partition!r}")
    if (root / "CelebAMaskHQ-mask").is_dir():
        found = pairs(find(pictures, flat=True), label_maps(root / "CelebAMaskHQ-mask", flat=True))
    else:
        found = _face_parts(pictures, root / "CelebAMask-HQ-mask-anno")
    if split == "all":
        return _FACES, found
    if partition == "first_28000":
        return _FACES, by_number(found, split, range(28000), range(28000, 30000))
    mapping = root / "CelebA-HQ-to-CelebA-mapping.txt"
    number = _celeba_numbers(mapping)
    for record in found.records:
        if record.name not in number:
            raise ValueError(f"{mapping}: has no line for {record.image.name} (or take split 'all')")

    def part(record: Record) -> str:
        return "train" if number[record.name] < 162771 else "val" if number[record.name] < 182638 else "test"

    return _FACES, found.only(lambda record: part(record) == split)


def _face_parts(pictures: Path, folder: Path) -> Records:
    """Pictures with the masks of their parts: `3.jpg` with `00003_skin.png` and so on, `anna.jpg` with `anna_skin.png`."""
    images, masks = find(pictures, flat=True), label_maps(folder, flat=True)
    if not images.named:
        raise FileNotFoundError(f"{pictures}: holds no picture")
    records: list[Record] = []
    left = [*images.left, *masks.left]
    used = set()
    missing = []
    for stem, image in images.named.items():
        beginning = f"{int(stem):05d}" if re.fullmatch("[0-9]+", stem) else stem
        parts = [(k, f"{beginning}_{part}") for k, part in enumerate(FACE_CLASSES) if k]
        present = tuple((k, masks.named[name]) for k, name in parts if name in masks.named)
        used |= {name for _, name in parts}
        if present:
            records.append(Record(stem, image, present))
        else:
            missing.append((image, beginning))
    if not records:
        image, beginning = missing[0]
        raise FileNotFoundError(f"{folder}: no part masks for {image} (expected {beginning}_skin.png ...)")
    left += (LeftOver(image, "without part masks") for image, _ in missing)
    left += (LeftOver(file, "without a part or a picture") for name, file in masks.named.items() if name not in used)
    return Records(tuple(records), tuple(left))


def _celeba_numbers(path: Path) -> dict[str, int]:
    """Number of the CelebA picture, from 1, behind every CelebA-HQ picture."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: needed for CelebA's partition (or partition='first_28000', or split 'all')")
    found = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        row = line.split()
        if len(row) == 3 and re.fullmatch("[0-9]+", row[0]):
            if not re.fullmatch("[0-9]+", Path(row[2]).stem):
                raise ValueError(
                    f"{path}: expected the number of CelebA's picture in line {number}, 000001.jpg, got {row[2]!r}"
                )
            found[row[0]] = int(Path(row[2]).stem)
    return found


def ffhq(root: Path, split: str, partition: str = "ffhq", labels: str = "labels") -> Found:
    """FFHQ: 70,000 faces with label maps of the 19 CelebAMask-HQ classes made by a parsing network.

    Layout: `images1024x1024/**/<5 digits>.png` (or `thumbnails128x128`) and the maps `labels/**/<5 digits>.png`; option
    `labels` names that folder. The picture is scaled to its map. Size 256 x 256. Swaps as CelebAMask-HQ.

    Splits, partition="ffhq": the first 60,000 train, the rest val; "first_2000": the first 2,000 are val (Harmonized).
    """
    pictures = next((d for d in (root / "images1024x1024", root / "thumbnails128x128") if d.is_dir()), None)
    if pictures is None:
        return _FACES, simple(root, split, f"images1024x1024/**/*.png with {labels}/")
    if partition not in ("ffhq", "first_2000"):
        raise ValueError(f"partition: expected 'ffhq' or 'first_2000', got {partition!r}")
    train = range(60000) if partition == "ffhq" else range(2000, 70000)
    val = range(60000, 70000) if partition == "ffhq" else range(2000)
    found = pairs(find(pictures, flat=True), label_maps(root / labels, flat=True))
    return _FACES, by_number(found, split, train, val)


_LAPA = LabelSet(LAPA, (256, 256))


def lapa(root: Path, split: str) -> Found:
    """LaPa: 22,000 faces in the wild, 11 classes.

    Layout: `<train|val|test>/images/*.jpg`, `.../labels/*.png` (the simple layout; landmarks are not used). Size 256 x 256.
    Eyebrows and eyes swap. Harmonized discards low-resolution pictures without saying which: give `names`.
    """
    return _LAPA, simple(root, split)


def helen(root: Path, split: str) -> Found:
    """Helen with the parsing labels of Smith et al.: 2,330 faces, 11 classes as LaPa.

    Layout: `images/*.jpg` and `labels/<name>/<name>_lbl00.png ... _lbl10.png`, one soft mask per class (the largest
    decides); lists `exemplars.txt` (train), `tuning.txt` (val), `testing.txt` (test). Or the simple layout with merged maps.
    Size 256 x 256. Eyebrows and eyes swap.
    """
    if not (root / "exemplars.txt").is_file():
        return _LAPA, simple(root, split, "exemplars.txt with images/ and labels/<name>/<name>_lbl00.png ...")
    lists = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
    images, masks = find(root / "images", flat=True), label_maps(root / "labels", flat=True)
    wanted = listed(root / lists[split]) if split in lists else set(images.named)
    records, used = [], set()
    for stem, image in images.named.items():
        names = [f"{stem}_lbl{k:02d}" for k in range(len(LAPA))]
        used |= set(names)
        missing = [name for name in names if name not in masks.named]
        if missing and stem in wanted:
            raise FileNotFoundError(f"{root / 'labels' / stem / missing[0]}.png: no such part mask for {image}")
        if stem in wanted:
            records.append(Record(stem, image, tuple((k, masks.named[name]) for k, name in enumerate(names))))
    others = [LeftOver(file, "without a part or a picture") for name, file in masks.named.items() if name not in used]
    return replace(_LAPA, soft_parts=True), Records(tuple(records), (*images.left, *masks.left, *others))


# --- facades ----------------------------------------------------------------------------------------------------------

_FACADES = LabelSet(FACADE_CLASSES, (256, 256), first=1)


def cmp_facade(root: Path, split: str) -> Found:
    """CMP Facade, base set: 378 house fronts, 12 classes, stored as 1..12.

    Layout: `base/cmp_b0001.jpg` with `base/cmp_b0001.png` beside it (also without `base/`). The set has no published split;
    ours goes by number: 1..280 train, 281..320 val, 321..378 test. Size 256 x 256. Nothing swaps.
    """
    return _FACADES, _facade_files(root, split, "base", "cmp_b", range(1, 281), range(281, 321))


def cmp_facade_extended(root: Path, split: str) -> Found:
    """CMP Facade, extended set: 228 less regular house fronts, as :func:`cmp_facade`.

    Layout: `extended/cmp_x0001.jpg` + `.png`. Our split: 1..188 train, 189..228 val, none for test.
    Size 256 x 256. Nothing swaps.
    """
    return _FACADES, _facade_files(root, split, "extended", "cmp_x", range(1, 189), range(189, 229))


def _facade_files(root: Path, split: str, part: str, beginning: str, train: range, val: range) -> Records:
    folder = root / part if (root / part).is_dir() else root
    companions = (".jpg", ".jpeg", ".png", ".xml")  # of each other, and the set's own notes
    images = find(folder, (".jpg", ".jpeg"), deep=False, companions=companions)
    if not any(name.startswith(beginning) for name in images.named):
        return simple(root, split, f"{part}/{beginning}0001.jpg with .png beside it")
    labels = find(folder, (".png",), deep=False, companions=companions)
    of_set = (
        replace(files, named={name: file for name, file in files.named.items() if name.startswith(beginning)})
        for files in (images, replace(labels, left=()))
    )
    return by_number(pairs(*of_set), split, train, val)


# --- scenes -----------------------------------------------------------------------------------------------------------


_COCO_STUFF = LabelSet(COCO_STUFF, (256, 256), unknown=255)
_ADE20K = LabelSet(ADE20K, (256, 256), first=1, unknown=0)
_CITYSCAPES = LabelSet(CITYSCAPES, (256, 512), unknown=0)
_CAMVID = LabelSet(
    CAMVID,
    (256, 320),
    unknown=11,
    colours={rgb: CAMVID.index(name) for name, several in CAMVID_COLOURS.items() for rgb in several},
)


def coco_stuff(root: Path, split: str) -> Found:
    """COCO-Stuff: 118,287 + 5,000 pictures, 182 classes stored as 0..181, 255 = unknown; instance maps where they exist.

    Layouts: `train2017/*.jpg` (or `images/train2017`) + `stuffthingmaps/train2017/*.png` (or `annotations/train2017`), with
    `instances/train2017/*.png` beside them; or `train_img`, `train_label`, `train_inst` as prepared for SPADE; `val...`
    likewise. Splits train and val. Size 256 x 256; papers scale pictures to 286 x 286 and crop (load_size=286,
    crop="random"), and squeeze them to 256 x 256 for validation (crop="none"). Nothing swaps. coco_instances.py makes
    instance maps of COCO's own polygons.
    """
    options = {
        part: [
            (f"{part}2017", f"stuffthingmaps/{part}2017", f"instances/{part}2017"),
            (f"images/{part}2017", f"stuffthingmaps/{part}2017", f"instances/{part}2017"),
            (f"images/{part}2017", f"annotations/{part}2017", f"instances/{part}2017"),
            (f"{part}_img", f"{part}_label", f"{part}_inst"),
        ]
        for part in ("train", "val")
    }
    found = split_folders(root, options, split)
    if not found:
        return _COCO_STUFF, simple(root, split, "train2017/*.jpg with stuffthingmaps/train2017/*.png")
    return _COCO_STUFF, joined(
        [(part, pairs(find(images), label_maps(labels), label_maps(more))) for part, (images, labels, more) in found]
    )


def ade20k(root: Path, split: str) -> Found:
    """ADE20K scene parsing benchmark: 20,210 + 2,000 pictures, 150 classes stored as 1..150, 0 = unknown.

    Layout: `images/training/*.jpg`, `annotations/training/*.png`, and `validation`. The unknown class comes last, as in the
    published code: wall is 0, unknown 150. Size 256 x 256; scaled to 286 x 286 and cropped (load_size=286, crop="random"),
    squeezed to 256 x 256 for validation (crop="none"). Nothing swaps.
    """
    options = {
        part: [(f"images/{name}", f"annotations/{name}")] for part, name in (("train", "training"), ("val", "validation"))
    }
    found = split_folders(root, options, split)
    if not found:
        return _ADE20K, simple(root, split, "images/training/*.jpg with annotations/training/*.png")
    return _ADE20K, joined([(part, pairs(find(images), label_maps(labels))) for part, (images, labels) in found])


def cityscapes(root: Path, split: str) -> Found:
    """Cityscapes, fine annotations: 2,975 + 500 pictures, label ids 0..33 as 35 classes, with instance maps.

    Layout: `leftImg8bit/<split>/<city>/*_leftImg8bit.png`, `gtFine/<split>/<city>/*_gtFine_labelIds.png` and
    `*_gtFine_instanceIds.png`. Id 0, unlabeled, is a class (no class with unknown="none"); class 34, the licence plate, is
    never drawn but counted by the published models. Size 256 x 512. Nothing swaps.
    """
    if not (root / "leftImg8bit").is_dir():
        original = "leftImg8bit/<split>/<city>/*_leftImg8bit.png with gtFine/<split>/<city>/*_gtFine_labelIds.png"
        return _CITYSCAPES, simple(root, split, original)
    found = []
    others = ("labelids.png", "instanceids.png", "labeltrainids.png", "color.png", "polygons.json")  # of one picture
    for part in SPLITS if split == "all" else (split,):
        images = find(root / "leftImg8bit" / part, ending="_leftImg8bit", flat=True)
        if images.named or split != "all":
            maps = (
                label_maps(root / "gtFine" / part, ending=f"_gtFine_{kind}Ids", flat=True, companions=others)
                for kind in ("label", "instance")
            )
            found.append((part, pairs(images, *maps)))
    return _CITYSCAPES, joined(found)


def gta5(root: Path, split: str) -> Found:
    """GTA-5 (Playing for Data): 12,403 + 6,382 + 6,181 pictures, Cityscapes' 19 evaluated classes and "others".

    Layout: `images/<5 digits>.png`, `labels/<5 digits>.png` with Cityscapes' label ids (those outside the 19 become
    "others"), and `split.mat` (read with scipy). In the simple layout, with other names, ids are 0..19 as in the prepared
    set of the class-wise VAE, whose test part is the val split here. Size 256 x 512. Nothing swaps.
    """
    images = find(root / "images", flat=True)
    if not any(re.fullmatch("[0-9]{5}", stem) for stem in images.named):
        return LabelSet(GTA5, (256, 512), unknown=19), simple(root, split, "images/00001.png with labels/ and split.mat")
    found = pairs(images, label_maps(root / "labels", flat=True))
    if split != "all":
        listing = root / "split.mat"
        if not listing.is_file():
            raise FileNotFoundError(f"{listing}: needed for split {split!r} (or take split 'all')")
        wanted = {f"{int(n):05d}" for n in read_matlab(listing, f"{split}Ids").ravel()}
        found = found.only(lambda record: record.name in wanted)
    kept = [(i,) for i in CITYSCAPES_TRAIN_IDS]
    others = tuple(i for i in range(len(CITYSCAPES)) if i not in CITYSCAPES_TRAIN_IDS)
    label_set = LabelSet(GTA5, (256, 512), ids=(*kept, others), unknown=others[0])
    return label_set, found


def camvid(root: Path, split: str) -> Found:
    """CamVid: 701 video frames, 11 classes and 11 = unlabelled.

    Layouts: `train/*.png` + `trainannot/*.png` with `val` and `test` likewise (367, 101 and 233 frames); or the original
    `701_StillsRaw_full/*.png` + `LabeledApproved_full/*_L.png`, whose 32 colours are merged into the 11 classes: it has no
    split, so only "all", or `names`. Size 256 x 320. Nothing swaps.
    """
    found = split_folders(root, {part: [(part, f"{part}annot")] for part in SPLITS}, split)
    if found:
        return _CAMVID, joined([(part, pairs(find(images), label_maps(labels))) for part, (images, labels) in found])
    images, labels = root / "701_StillsRaw_full", root / "LabeledApproved_full"
    if not images.is_dir():
        return _CAMVID, simple(root, split, "train/*.png with trainannot/*.png, or 701_StillsRaw_full/ (split all)")
    if split != "all":
        raise ValueError(f"split: {images} has no split: expected 'all' (with `names` for a part of it), got {split!r}")
    return _CAMVID, pairs(find(images), label_maps(labels, ending="_L"))


# --- clothes ----------------------------------------------------------------------------------------------------------


_DEEPFASHION = LabelSet(
    DEEPFASHION, (256, 256), colours={rgb: k for k, rgb in enumerate(DEEPFASHION_COLOURS)}, pad=(255, 255, 255)
)
_CCP = LabelSet(CCP, (384, 256))


def deepfashion(root: Path, split: str) -> Found:
    """DeepFashion In-shop with parsing maps: 16 ids.

    Layout: pictures `<folders>/id_<8 digits>/<view>.jpg` below `img_highres` (or `img`), maps `<view>_segment.png` in
    published colours beside them, or in the same folders below `img_highres_seg`; names here are `<item>_<view>`. Only
    pictures with a map are listed. Splits from `Eval/list_eval_partition.txt` (or the file in root): train; query and
    gallery = val. Pictures are padded to squares, white at the sides, and used at 256 x 256 (class-wise VAE, which
    also leaves out pictures without a face: give `names`). Nothing swaps.
    """
    pictures = next((d for d in (root / "img_highres", root / "img") if d.is_dir()), None)
    if pictures is None:
        return _DEEPFASHION, simple(root, split, "img_highres/**/id_<8 digits>/<view>.jpg with <view>_segment.png")
    images = find(pictures, (".jpg", ".jpeg"), companions=("_segment.png",))
    beside = find(pictures, (".png",), ending="_segment", companions=(".jpg", ".jpeg"))
    apart = find(root / "img_highres_seg", (".png",), ending="_segment")
    found = pairs(images, replace(apart, folder=pictures, named=beside.named | apart.named))
    if split != "all":
        listing = next((p for p in (root / "Eval", root / "Anno", root) if (p / "list_eval_partition.txt").is_file()), root)
        part = _deepfashion_parts(listing / "list_eval_partition.txt")
        found = found.only(lambda record: part.get(record.name) == split)
    if not found.records:
        raise FileNotFoundError(f"{pictures}: holds no parsing map (*_segment.png) of split {split!r}")
    named = (replace(record, name="_".join(record.name.split("/")[-2:])) for record in found.records)
    return _DEEPFASHION, replace(found, records=tuple(named))


def _deepfashion_parts(path: Path) -> dict[str, str]:
    """Picture, as a path without the first folder and the suffix -> "train" or "val"."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: needed to split DeepFashion (or take split 'all')")
    rows = [line.split() for line in read_text(path).split("\n")]
    known = {"train": "train", "query": "val", "gallery": "val"}
    return {
        Path(*Path(r[0]).parts[1:]).with_suffix("").as_posix(): known[r[2]] for r in rows if len(r) == 3 and r[2] in known
    }


def ccp(root: Path, split: str) -> Found:
    """Clothing Co-Parsing: 1,004 pictures, 59 classes (0 = null, the background).

    Layout: `photos/*.jpg` + `annotations/pixel-level/*.mat` (read with scipy). No published split; ours goes by number:
    1..800 train, 801..900 val, 901..1004 test. Size 384 x 256. Nothing swaps.
    """
    labels = root / "annotations" / "pixel-level"
    if not (root / "photos").is_dir():
        return _CCP, simple(root, split, "photos/*.jpg with annotations/pixel-level/*.mat")
    found = pairs(find(root / "photos"), find(labels, (".mat",)))
    return _CCP, by_number(found, split, range(1, 801), range(801, 901))


# --- a user's own ------------------------------------------------------------------------------------------------------


def folder(
    root: Path,
    split: str,
    classes: Iterable[str] | int | None = None,
    unknown_id: int | None = None,
    first_id: int = 0,
    size: tuple[int, int] = (256, 256),
) -> Found:
    """Your own pictures, in the simple layout.

    Layout: `[<split>/]images/*`, `labels/*.png` (palette or grey, pixel value = class id), and where there are such:
    `instances/*.png` (pixel value = object) or `edges/*.png` (non-zero = edge); subfolders as you like, the same in each.
    Class names: `root/classes.txt` (or `label_list.txt`), see :func:`class_names`; or option `classes`, names or their
    number. `unknown_id`: stored id of pixels without a class. `first_id`: stored id of the first class.
    Classes named l_x and r_x, or left... and right..., swap in a flip.
    """
    listing = class_listing(root)
    if isinstance(classes, int):
        names = [f"class_{k}" for k in range(classes)]
    elif classes is not None:
        names = [str(name) for name in classes]
    elif listing is not None:
        names = class_names(listing, first_id)
    else:
        raise FileNotFoundError(f"{root / 'classes.txt'}: expected the class names, one per line (or option classes)")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{listing or 'classes'}: expected one or more class names, all different, got {names}")
    return LabelSet(tuple(names), size, first=first_id, unknown=unknown_id), simple(root, split)


def images(root: Path, split: str, size: tuple[int, int] = (256, 256)) -> Found:
    """Plain pictures: any folder of them, nested too, and no label maps. There are no classes.

    Layout: every picture below `root/<split>`, or below `root`, which is split "train", when it holds no folder named
    train, val or test; where there are folders `images` and `labels` in it, below `images` alone. A name is the path in
    there without the suffix. Nothing swaps in a flip. Size 256 x 256 unless option `size` says otherwise.
    """
    splits = [root / part for part in SPLITS if (root / part).is_dir()]
    if split == "all" or (not splits and split == "train"):
        folders = splits or [root]
    else:
        folders = [root / split]
        if folders[0] not in splits:
            have = ", ".join(place.name for place in splits) or "train"
            raise FileNotFoundError(f"{folders[0]}: no such folder of pictures; there is: {have}")
    records: list[Record] = []
    left: list[LeftOver] = []
    for folder in folders:
        found = find(folder / "images" if is_simple(folder) else folder)
        before = f"{found.folder.relative_to(root).as_posix()}/" if len(folders) > 1 else ""
        records += [Record(before + name, path, None) for name, path in found.named.items()]
        left += found.left
    if not records:
        raise FileNotFoundError(f"{folders[0]}: holds no picture")
    return LabelSet((), size), Records(tuple(records), tuple(left))


def class_listing(root: Path) -> Path | None:
    """Return the file in a folder that lists class names, if it has one."""
    return next((p for p in (root / "classes.txt", root / "label_list.txt") if p.is_file()), None)


# a number, and what parts it from a name: "0 sky", "0: sky", "0,sky", "0. sky"; not "3d model" and not "7-eleven"
_NUMBERED = re.compile(r"([0-9]+)(?:\s*[:,;=]\s*|\s*[.)-]\s+|\s+)(.*)")


def class_names(path: Path, first: int = 0) -> list[str]:
    """Read class names, one per line, in the order of their ids.

    Either every line begins with its id (`0 sky`, `0: sky`, `0,sky`), counting from `first` (or from 0, which numbers the
    classes), and the names are what follows; then lines that are blank or begin with # say nothing. Or no line does, and the
    line says the id: a blank or # line above the last name might stand for an id or not, and is refused.

    Args:
        path: the file, in UTF-8, or as the byte order mark at its beginning says.
        first: stored id of the first class.

    Raises:
        ValueError: ids that are not consecutive, on some lines only, or without a name; a blank or # line among
            names without ids; another encoding. The message names file and line.
    """
    lines = [plain_name(line.strip()) for line in read_text(path).split("\n")]
    named = [(k, line) for k, line in enumerate(lines, 1) if line and not line.startswith("#")]
    numbers = [(k, line, _NUMBERED.fullmatch(line)) for k, line in named]
    if not any(match for _, _, match in numbers):
        lines = lines[: named[-1][0] if named else 0]
        for k, line in enumerate(lines, 1):
            if not line or line.startswith("#"):
                what = "a blank line" if not line else repr(line)
                raise ValueError(
                    f"{path}: expected a class name in line {k}, got {what}, which may stand for an id or not: remove it, "
                    f"or begin every line with its id ('0: {named[0][1]}')"
                )
        return lines
    names: list[str] = []
    begin = 0 if numbers[0][2] is not None and int(numbers[0][2][1]) == 0 else first
    for wanted, (k, line, match) in enumerate(numbers, begin):
        if match is None or not match[2] or int(match[1]) != wanted:
            hint = ""
            if match is not None and match[2] and wanted == begin:
                hint = f"; ids that begin at {match[1]} are read with --first-id {match[1]}"
            raise ValueError(
                f"{path}: either every line begins with its id or none does: expected '{wanted}: name' in line {k}, "
                f"got {line!r}{hint}"
            )
        names.append(match[2])
    return names


READERS: dict[str, Callable[..., Found]] = {
    reader.__name__: reader
    for reader in (
        folder,
        celebamask_hq,
        ffhq,
        lapa,
        helen,
        cmp_facade,
        cmp_facade_extended,
        coco_stuff,
        ade20k,
        deepfashion,
        gta5,
        cityscapes,
        camvid,
        ccp,
        images,
    )
}
"""Reader of every kind of files."""

LABEL_SETS: dict[str, LabelSet] = {
    "celebamask_hq": _FACES,
    "ffhq": _FACES,
    "lapa": _LAPA,
    "helen": _LAPA,
    "cmp_facade": _FACADES,
    "cmp_facade_extended": _FACADES,
    "coco_stuff": _COCO_STUFF,
    "ade20k": _ADE20K,
    "cityscapes": _CITYSCAPES,
    "camvid": _CAMVID,
    "deepfashion": _DEEPFASHION,
    "ccp": _CCP,
}
"""How the label maps of every kind store its classes; not of "folder", which is as its user says, nor of "gta5", which is
stored in two ways, nor of "images", which has none."""
