"""The pictures that regions are taken from: an image with its label map, from files, from a data set, or parsed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..data import FACE_CLASSES, LABEL_SETS, FileSource, LabelSet, Record, RegionDataset, Sample, Source, guess_kind
from ..data.dataset import resample
from ..data.files import LOSSLESS, PICTURES, plain_name, walk
from ..data.readers import class_listing, class_names
from ..data.region_types import merge_of, region_types, vocabularies
from ..data.sets import classes_differ
from .files import read_image

if TYPE_CHECKING:
    from ..face_parser import FaceParser

_ANY = (1, 1)  # a label set's size, where nothing asks for it
_PARSED_SIDE = 1024  # shorter side in pixels to which larger photos are reduced before they are parsed


@dataclass(frozen=True, eq=False)
class Picture:
    """An image with its label map.

    Do not write into the arrays afterwards: an :class:`~.model.Editor` keeps them and knows pictures by their content.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int32, class in the model's order, or -1 for no region.
        name: for messages and sheets, as a rule the stem of the file.

    Raises:
        ValueError: another shape or dtype, or sizes that differ.
    """

    image: np.ndarray
    labels: np.ndarray
    name: str

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or not self.image.size:
            raise ValueError(f"{self.name}: expected an image (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}")
        if self.labels.ndim != 2 or self.labels.dtype != np.int32:
            raise ValueError(f"{self.name}: expected labels (H, W) int32, got {self.labels.shape} {self.labels.dtype}")
        if self.labels.shape != self.image.shape[:2]:
            (height, width), (rows, columns) = self.image.shape[:2], self.labels.shape
            raise ValueError(
                f"{self.name}: label map is {columns} x {rows} but the image is {width} x {height} (width x height)"
            )


def read_picture(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    kind: str = "auto",
    merge: str = "none",
    labels: str | os.PathLike[str] | None = None,
    parser: FaceParser | None = None,
    unknown: str | None = None,
    unknown_id: int | None = None,
    first_id: int | None = None,
) -> Picture:
    """Read an image and its label map.

    The label map is the file `labels`; without it the first of these that exists, for an image `photos/a.jpg`:
    `photos/a_labels.png`, `photos/a.labels.png`, `labels/a.png` (beside the folder `photos`; for `images/cat/a.jpg` also
    `labels/cat/a.png`), `photos/a.png` (if the image itself is no PNG); without any of them, what `parser` finds. Suffixes
    may be upper-case, and BMP and TIFF do as well as PNG, but for the last.

    What a stored id means says the kind of the label map, as in training: see models/data/readers.py. So does what happens
    to sizes that differ: an image of kind celebamask_hq or ffhq is scaled to its map, any other is an error.

    Args:
        path: the image.
        classes: the model's N region names.
        kind: one of `LABEL_SETS`, or "folder": class k, in the order of the classes before merging, is stored as
            `first_id + k`, and a classes.txt in the image's folder (or in the set's, around `images/`) must say the same.
            "auto": the kind that folder and file names tell; if they tell none, "folder" where every known set of these
            classes stores them so too.
        merge: region types that the model was trained on: "none", "meta", "compact"; "auto": those that `classes` are.
        labels: label map; palette or grey PNG, or as the kind stores it.
        parser: finds the regions of a face photo (`load_face_parser`): CelebAMask-HQ's 19 classes, and types made of them.
            The photo is turned as its camera noted and reduced to a shorter side of 1024 pixels at most.
        unknown: kinds of a set: what pixels of no class become, see `LabelSet.resolve`; None: what leads to the model's
            classes.
        unknown_id: kind "folder": stored id of pixels of no class, often 255; they are class "unknown" if that is the
            model's last class, else no region.
        first_id: kind "folder": stored id of class 0; None: 0.

    Returns:
        The picture, in the model's classes, at its stored size.

    Raises:
        FileNotFoundError: no image, no file `labels`, or no label map anywhere and no parser; names all the places.
        ValueError: a file that is no image, sizes that differ, ids of no class, unknown kind, label maps or a parser of
            other classes than the model's, "auto" that cannot tell.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such picture")
    merge = merge_of(classes) if merge == "auto" else merge
    known = vocabularies(classes, merge)
    if labels is not None and not Path(labels).is_file():
        raise FileNotFoundError(f"{labels}: no such label map")
    found = Path(labels) if labels is not None else _label_map(file)
    if found is not None:
        base = _vocabulary(known, file, kind, unknown, told=unknown_id is not None or first_id is not None)
        kind, label_set, policy = _label_set(file, found, kind, base, unknown, unknown_id, first_id)
        sample = FileSource(kind, label_set, [Record(file.stem, file, found)], policy).read(0)
    elif parser is not None:
        base = known[0]
        sample = _parsed(file, parser, base)
    else:
        raise FileNotFoundError(
            f"{file}: has no label map; looked for {', '.join(map(str, label_map_places(file)))}; name the file "
            f"(--labels IMAGE=FILE), or give a face parser (--parser) for photos of faces"
        )
    own = sample.labels if merge == "none" else region_types(base, merge).apply(sample.labels)
    return Picture(sample.image, own, plain_name(file.stem))


def label_map_places(image: Path) -> list[Path]:
    """Return where the label map of an image is looked for, in the order of the search."""
    places = [image.with_name(f"{image.stem}{ending}.png") for ending in ("_labels", ".labels")]
    beside = image.absolute().parent.parent / "labels"  # absolute: "a.jpg" alone has a folder above it as well
    places.append(beside / f"{image.stem}.png")
    around = _images_folder(image)
    if around is not None and around != image.absolute().parent:
        places.append(around.parent / "labels" / image.absolute().relative_to(around).with_suffix(".png"))
    places.append(image.with_name(f"{image.stem}.png"))
    return [place for place in places if place.absolute() != image.absolute()]


def _label_map(image: Path) -> Path | None:
    """Return the first label map of an image: at one of its places, or there in another spelling or a lossless format."""
    for place in label_map_places(image):
        if place.is_file():
            return place
        # beside the image, one of the same stem may be a picture as well
        same = plain_name(place.stem) == plain_name(image.stem) and place.absolute().parent == image.absolute().parent
        found = [
            file
            for file in walk(place.parent, deep=False)
            if plain_name(file.stem) == plain_name(place.stem)
            and file.suffix.lower() in ((".png",) if same else PICTURES)
            and file.absolute() != image.absolute()
        ]
        if found:  # a JPEG is said to be none when it is read
            return min(found, key=lambda file: file.suffix.lower() not in LOSSLESS)
    return None


def _images_folder(image: Path) -> Path | None:
    """Return the folder images/ around an image that has labels/ beside it."""
    return next((f for f in image.absolute().parents if f.name == "images" and (f.parent / "labels").is_dir()), None)


def _vocabulary(
    known: Sequence[tuple[str, ...]], image: Path, kind: str, unknown: str | None, told: bool
) -> tuple[str, ...]:
    """Return which of the vocabularies that a model's types are made of a picture's kind has; the usual one for "folder"."""
    if kind == "auto" and not told:
        kind = _guessed(_folders(image), image.stem)
    if kind in LABEL_SETS:
        return next((base for base in known if _policy(LABEL_SETS[kind], base, unknown) is not None), known[0])
    return known[0]


def _label_set(
    image: Path,
    labels: Path,
    kind: str,
    base: tuple[str, ...],
    unknown: str | None,
    unknown_id: int | None,
    first_id: int | None,
) -> tuple[str, LabelSet, str]:
    """Return kind, label set and policy for unknown pixels, whose classes are `base`."""
    folders = _folders(image)
    own, policy = _own_ids(base, unknown_id, first_id or 0)
    if kind == "auto":
        kind = "folder" if unknown_id is not None or first_id is not None else _guessed(folders, image.stem)
    if kind not in ("auto", "folder", *LABEL_SETS):
        raise ValueError(f"kind: expected auto, folder or one of {', '.join(LABEL_SETS)}, got {kind!r}")
    if kind == "auto":  # neither folder nor file names tell
        found = {name: _policy(known, base, unknown) for name, known in LABEL_SETS.items()}
        tables = {name: LABEL_SETS[name].resolve(chosen)[1] for name, chosen in found.items() if chosen is not None}
        if any(not np.array_equal(table, own.resolve(policy)[1]) for table in tables.values()):
            raise ValueError(
                f"{labels}: cannot tell how it stores its classes; give kind (--kind): {' or '.join((*tables, 'folder'))}"
            )
        kind = "folder"
    if kind == "folder":
        listing = next((found for found in map(class_listing, folders) if found is not None), None)
        if listing is not None and tuple(class_names(listing, own.first)) != own.classes:
            difference = classes_differ(class_names(listing, own.first), own.classes)
            raise ValueError(f"{listing}: expected the model's classes, got {difference}")
        return kind, own, policy
    chosen = _policy(LABEL_SETS[kind], base, unknown)
    if chosen is None:
        got = LABEL_SETS[kind].resolve(unknown or "class")[0]
        raise ValueError(f"{labels}: expected the model's classes, kind {kind} has {classes_differ(got, base)}")
    return kind, LABEL_SETS[kind], chosen


def _own_ids(base: tuple[str, ...], unknown_id: int | None, first: int) -> tuple[LabelSet, str]:
    """Label set and policy of kind "folder"."""
    if unknown_id is not None and len(base) > 1 and base[-1] == "unknown":
        return LabelSet(base[:-1], _ANY, first=first, unknown=unknown_id), "class"
    return LabelSet(base, _ANY, first=first, unknown=unknown_id), "none"


def _policy(label_set: LabelSet, base: tuple[str, ...], unknown: str | None) -> str | None:
    """Return the policy for unknown pixels that leads to the classes `base`: the one asked for, else class, else none."""
    for policy in ("class", "none") if unknown is None else (unknown,):
        if label_set.resolve(policy)[0] == base:
            return policy
    return None


def _folders(image: Path) -> list[Path]:
    """Return the folders that may tell what set an image is of: its own, and around `[<split>/]images` the set's."""
    parent, around = image.resolve().parent, _images_folder(image)
    if around is not None and around != parent:
        return [parent, around, *around.parents[:2]]
    return [parent, *parent.parents[:2]] if parent.name == "images" else [parent]


def _guessed(folders: Sequence[Path], stem: str) -> str:
    for folder in folders:
        try:
            return guess_kind(folder, stem)
        except ValueError:
            pass  # this folder does not tell
    return "auto"


def _parsed(file: Path, parser: FaceParser, base: tuple[str, ...]) -> Sample:
    if base != FACE_CLASSES:
        raise ValueError(
            f"{file}: has no label map, and the parser of faces does not find the model's classes but "
            f"{classes_differ(FACE_CLASSES, base)}"
        )
    photo = read_image(file)
    height, width = photo.shape[:2]
    if min(height, width) > _PARSED_SIDE:
        scale = _PARSED_SIDE / min(height, width)
        whole = Sample(photo, np.zeros((height, width), np.int32), None, file.stem)
        photo = resample(whole, (0, 0, width, height), (round(height * scale), round(width * scale)))[0]
    return Sample(photo, parser.parse(photo).astype(np.int32), None, file.stem)


class _Single:
    """A source of one picture."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.name, self.default_size = "picture", _ANY
        self.classes: tuple[str, ...] = ()
        self.swaps: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return 1

    def names(self) -> list[str]:
        return [self.picture.name]

    def read(self, index: int) -> Sample:
        return Sample(self.picture.image, self.picture.labels, None, self.picture.name)


def fit(picture: Picture, size: int | tuple[int, int], crop: Literal["center", "none"] = "center") -> Picture:
    """Bring a picture to a size: the image bicubic and antialiased, the labels by nearest pixel, as in training.

    The centre crop is that of a training without options. A model trained with `--crop none` has seen whole pictures,
    squeezed: centre crops show it things of other proportions.

    Args:
        picture: of any size.
        size: side of a square, or (H, W) in pixels.
        crop: "center": the largest box of the proportions of `size` in the middle; "none": the whole picture, squeezed.

    Raises:
        ValueError: a size below 1, another crop.
    """
    if crop not in ("center", "none"):
        raise ValueError(f"crop: expected 'center' or 'none', got {crop!r}")
    item = RegionDataset(_Single(picture), size, crop=crop, on_error="raise")[0]
    return Picture(item.image, item.labels, picture.name)


def crop_box(
    stored: tuple[int, int], size: tuple[int, int], crop: Literal["center", "none"] = "center"
) -> tuple[float, float, float, float]:
    """Return the box that :func:`fit` takes of a picture: left, upper, right, lower, in its pixels.

    Args:
        stored: (H, W) of the picture.
        size: (h, w) that it is brought to.
        crop: as of :func:`fit`.
    """
    height, width = stored
    ratio = 1.0 if crop == "none" else size[1] / size[0] * height / width
    rows, columns = min(1.0, 1 / ratio) * height, min(1.0, ratio) * width
    upper, left = (height - rows) / 2, (width - columns) / 2
    return left, upper, left + columns, upper + rows


def fit_labels(labels: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Bring a label map (H, W) int32 to a size as :func:`fit` does it with a picture's."""
    return fit(Picture(np.zeros((*labels.shape, 3), np.uint8), labels, "labels"), size).labels


def checked_labels(labels: np.ndarray, num_classes: int, name: str) -> np.ndarray:
    """Return a label map that somebody gave, (H, W) integers, as int32.

    Args:
        labels: classes 0 to `num_classes` - 1, or -1 for none.
        num_classes: how many there are.
        name: of the argument.

    Raises:
        ValueError: another shape or dtype, or a value out of range; the message names the argument.
    """
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"{name}: expected (H, W) integers, got {described(labels)}")
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= num_classes:
        raise ValueError(f"{name}: expected classes 0 to {num_classes - 1} or -1, got {low} to {high}")
    return labels.astype(np.int32)


def checked_picture(image: np.ndarray, labels: np.ndarray, num_classes: int, image_name: str, labels_name: str) -> Picture:
    """Return an image with its label map that somebody gave as a picture.

    Args:
        image: (H, W, 3) uint8.
        labels: see :func:`checked_labels`.
        num_classes: likewise.
        image_name: of the argument; the picture is called so.
        labels_name: of the argument.

    Raises:
        ValueError: another shape or dtype, a label out of range, sizes that differ; the message names the argument.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"{image_name}: expected (H, W, 3) uint8, got {described(image)}")
    checked = checked_labels(labels, num_classes, labels_name)
    if checked.shape != image.shape[:2]:
        raise ValueError(f"{labels_name}: expected {image.shape[:2]}, the image's size, got {checked.shape}")
    return Picture(image, checked, image_name)


def described(given: object) -> str:
    """Return what was given in words, for messages: shape and dtype of an array, else the type."""
    return f"{given.shape} {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__


def pictures_of(
    source: Source, wanted: Sequence[str | int] | None = None, *, classes: Sequence[str] | None = None
) -> list[Picture]:
    """Read pictures of a data set (`open_source`, in region types if `merged`).

    Args:
        source: the set.
        wanted: names (stems) or indices, in any order; None: all.
        classes: the model's region names, to be compared with the set's; None: not compared.

    Raises:
        ValueError: other classes, a name or an index that the set does not have, a bad file.
    """
    if classes is not None and tuple(source.classes) != tuple(classes):
        raise ValueError(f"{source.name}: expected the model's classes, got {classes_differ(source.classes, classes)}")
    index = {name: i for i, name in enumerate(source.names())}
    chosen = list(range(len(source))) if wanted is None else list(wanted)
    for key in chosen:
        if (key not in index) if isinstance(key, str) else not 0 <= key < len(source):
            some = ", ".join(list(index)[:3])
            raise ValueError(f"wanted: {source.name} has pictures 0 to {len(source) - 1} ({some}, ...), got {key!r}")
    samples = (source.read(index[key] if isinstance(key, str) else key) for key in chosen)
    return [Picture(sample.image, sample.labels, sample.name) for sample in samples]
