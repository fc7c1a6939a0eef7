"""Options that commands on pictures share, and what becomes of them: a model, pictures with label maps, files to write.

A paper's verb inherits the classes that it needs. Without pictures from the user it takes drawn ones (`drawn_source`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
import torch

from mixsyn_fast.progress import progress

from ..data import LABEL_SETS, ProceduralSource, Source, open_source
from ..data.files import open_picture
from ..data.region_types import merge_of, merged
from ..data.sets import DRAWN_KINDS, classes_differ
from ..settings import Checked, repeated
from ..sheets import save_png
from .files import list_pictures, save_image, save_labels
from .picture import Picture, fit, label_map_places, pictures_of, read_picture

if TYPE_CHECKING:
    from ..face_parser import FaceParser

UNSEEN = 2 * 10**9
"""First seed of drawings that neither training nor validation sets reach."""


# --------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class ModelOptions(Checked):
    """Which model, and where it runs."""

    model: str | None = None
    """weights saved by the model (.safetensors), or a run folder of `mixsyn-fast train`; none: the shipped model"""
    device: str = "cpu"  # cpu or cuda[:n]


class Shippable(Protocol):
    """A trained model in use, as every paper has one."""

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a file or a run folder: (path, device), and what a model needs besides."""

    @classmethod
    def shipped(cls, *args: Any, **kwargs: Any) -> Any:
        """Read the weights that come with the package: (device), and what a model needs besides."""


M = TypeVar("M", bound=Shippable)


def device_of(name: str) -> torch.device:
    """Return a device of torch that is there; ValueError names the option."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda[:n], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name} asked for, but torch sees {torch.cuda.device_count() or 'no'} GPU")
    return device


def open_model(kind: type[M], model: str | None = None, device: str = "cpu", **how: Any) -> M:
    """Load a model of a paper onto a device, the shipped one for None; `how` are further arguments of its `load`.

    ValueError or OSError names the file or option.
    """
    where = device_of(device)
    with progress("loading the model"):
        loaded: M = kind.load(model, where, **how) if model else kind.shipped(where, **how)
    return loaded


# ------------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class PictureOptions(Checked):
    """How pictures and their label maps are read."""

    kind: Literal[("auto", "folder", *LABEL_SETS)] = "auto"  # type: ignore[valid-type]
    """what the ids in the label maps mean: those of a known data set, or folder: pixel value = number of the region;
    auto: by names of folders and files"""
    unknown_id: int | None = None  # kind folder: stored id of pixels without a region, often 255
    first_id: int | None = None  # kind folder: stored id of the first region; none: 0
    merge: Literal["auto", "none", "meta", "compact", "scenes"] = "auto"
    """region types that the label maps' classes are merged into; auto: as the model was trained"""
    labels: tuple[str, ...] = repeated()  # IMAGE=FILE: label map of an image, where it does not stand beside it
    parser: str | None = None  # weights of a face parser, for photos without a label map


class Reader:
    """Reads pictures with their label maps as options say, each file once.

    Args:
        classes: the model's N region names.
        size: (H, W) in pixels that the pictures get; None: as they are stored.
        options: what the label maps are.
        device: where a face parser runs.

    Raises:
        ValueError: labels that are no IMAGE=FILE, or name an image twice.
    """

    def __init__(
        self,
        classes: Sequence[str],
        size: tuple[int, int] | None,
        options: PictureOptions,
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes, self.size = tuple(classes), size
        self._rules: dict[str, Any] = {
            "kind": options.kind,
            "merge": merge_of(classes) if options.merge == "auto" else options.merge,
            "unknown_id": options.unknown_id,
            "first_id": options.first_id,
        }
        self.weights, self.device = options.parser, device
        self._labels: dict[Path, str] = {}
        for given in options.labels:
            image, file = name_and_file(given, "labels", "IMAGE=FILE")
            if Path(image).resolve() in self._labels:
                raise ValueError(f"labels: expected one label map per image, got two for {image}")
            self._labels[Path(image).resolve()] = file
        self._read: dict[Path, Picture] = {}
        self._parser: FaceParser | None = None

    def read(self, path: str) -> Picture:
        """Return the picture at the reader's size.

        Raises:
            FileNotFoundError: no such image, or no label map; the message lists where one was looked for.
            ValueError: not an image, or a label map that does not fit image or model.
        """
        where = Path(path).resolve()
        if where not in self._read:
            if not where.exists():
                raise FileNotFoundError(f"{path}: no such image")
            if where.is_dir():
                raise IsADirectoryError(f"{path}: expected an image file, got a folder")
            open_picture(Path(path))  # what is no image is said before a label map is missed
            if self.weights and self._parser is None:
                from ..face_parser import load_face_parser

                self._parser = load_face_parser(self.weights).to(self.device)
            labels = self._labels.get(where)
            picture = read_picture(path, classes=self.classes, labels=labels, parser=self._parser, **self._rules)
            self._read[where] = picture if self.size is None else fit(picture, self.size)
        return self._read[where]

    def check_labels_used(self) -> None:
        """ValueError where labels name an image that nothing has read."""
        unused = [file for image, file in self._labels.items() if image not in self._read]
        if unused:
            raise ValueError(f"labels: no image of this command belongs to {', '.join(unused)}")


@dataclass(frozen=True)
class TargetOptions(PictureOptions, ModelOptions):
    """The label map that a command makes images of."""

    image: str | None = None  # picture whose label map is taken; none: pictures drawn by code
    label_map: str | None = None  # a label map alone (PNG), instead of --image

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        if self.image and self.label_map:
            raise ValueError(f"label_map: expected it or --image, got both: {self.label_map} and {self.image}")

    @property
    def target(self) -> str | None:
        """The file."""
        return self.image or self.label_map

    def reader(self, classes: Sequence[str], size: tuple[int, int] | None) -> Reader:
        """Return a reader of pictures at a size, None: as stored, which takes a label map alone for its own label map."""
        alone = (f"{self.label_map}={self.label_map}",) if self.label_map else ()
        return Reader(classes, size, replace(self, labels=(*self.labels, *alone)), self.device)


def picture_files(given: Sequence[str]) -> list[str]:
    """Return files, and in place of a folder all its pictures that are not the label map of another.

    Raises:
        FileNotFoundError: a folder without a picture.
        ValueError: two files with one name in a folder.
    """
    found: list[str] = []
    for path in given:
        if not Path(path).is_dir():
            found.append(path)
            continue
        files = list(list_pictures(path).values())
        maps = {place.absolute() for file in files for place in label_map_places(file)}
        found += [str(file) for file in files if file.absolute() not in maps]
    return found


def pictures_at(given: Sequence[str], option: str) -> list[str]:
    """Return :func:`picture_files`, all of different names; ValueError, naming the option, where two have the same one."""
    found = picture_files(given)
    names = [Path(file).stem for file in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{option}: expected pictures of different names, for that is what files are called; {twice} twice")
    return found


def drawn_source(
    classes: Sequence[str], size: tuple[int, int], count: int, seed: int = 0, kinds: Sequence[str] = DRAWN_KINDS
) -> Source:
    """Return pictures drawn by code that a model knows the regions of, and has not been trained on.

    Args:
        classes: the model's region names.
        size: (H, W) in pixels.
        count: how many.
        seed: of the drawings.
        kinds: of drawings, those that are preferred first.

    Raises:
        ValueError: no drawing has these regions.
    """
    for kind in kinds:
        source = ProceduralSource(kind, count, UNSEEN + seed, size)
        for merge in dict.fromkeys(("none", merge_of(classes))):
            try:
                found = merged(source, merge)
            except ValueError:
                continue  # these types are of another set
            if tuple(found.classes) == tuple(classes):
                return found
    raise ValueError(f"model: nothing drawn by code has its regions ({', '.join(classes)}): give pictures")


def open_matching(classes: Sequence[str], root: str | None, kind: str, split: str, **options: Any) -> Source:
    """Open a set with the classes of a model, merged as the model's; other arguments and errors as :func:`open_source`.

    Pixels of no class are no region, or where the model has one, the last class "unknown".

    Raises:
        ValueError: the set has other classes; the message names those that differ.
    """
    for unknown in ("none", "class"):
        source = merged(open_source(root, kind, split, unknown, **options), merge_of(classes))
        if tuple(source.classes) == tuple(classes):
            return source
    raise ValueError(f"data: {source.name} has not the model's regions: {classes_differ(source.classes, classes)}")


def pictures_of_set(
    classes: Sequence[str], size: tuple[int, int], root: str, options: PictureOptions, split: str, limit: int
) -> list[Picture]:
    """Read the first pictures of a data set with a model's classes, at its size.

    Args:
        classes: the model's.
        size: (H, W) in pixels.
        root: the set.
        options: what its label maps are.
        split: part of the set.
        limit: most pictures.

    Raises:
        ValueError, FileNotFoundError: no such set, one of other classes, or a bad file.
    """
    ids = {"unknown_id": options.unknown_id, "first_id": options.first_id}
    given: dict[str, Any] = {name: value for name, value in ids.items() if value is not None}
    source = open_matching(classes, root, options.kind, split, **given)
    return [fit(picture, size) for picture in pictures_of(source, range(min(limit, len(source))))]


def check_region(name: str, option: str, classes: Sequence[str]) -> None:
    """ValueError, listing all regions, for one that the model does not have."""
    if name not in classes:
        raise ValueError(f"{option}: unknown region {name!r}; the model's regions are {', '.join(classes)}")


def region_files(given: Sequence[str], option: str, classes: Sequence[str]) -> dict[str, str]:
    """Return region -> file of REGION=FILE texts.

    Args:
        given: the texts.
        option: named in errors.
        classes: the regions that there are.

    Raises:
        ValueError: not of that form, an unknown region, a region twice.
    """
    files: dict[str, str] = {}
    for entry in given:
        name, file = name_and_file(entry, option, "REGION=FILE")
        check_region(name, option, classes)
        if name in files:
            raise ValueError(f"{option}: expected every region once, got {name} from {files[name]} and from {file}")
        files[name] = file
    return files


def region_sources(given: Sequence[str], option: str, classes: Sequence[str]) -> dict[str, str | None]:
    """Return region -> file of REGION=FILE texts as :func:`region_files`; None for REGION=none, a region that goes."""
    return {name: None if file == "none" else file for name, file in region_files(given, option, classes).items()}


def files_named(given: Sequence[str]) -> list[str]:
    """Return the files of REGION=FILE texts, good or bad ones, without "none"."""
    return [file for entry in given if (file := entry.partition("=")[2].strip()) not in ("", "none")]


def name_and_file(given: str, option: str, form: str) -> tuple[str, str]:
    """Split NAME=FILE; ValueError, naming the option, for another form."""
    name, equals, file = given.partition("=")
    if not (name.strip() and equals and file.strip()):
        raise ValueError(f"{option}: expected {form}, got {given!r}")
    return name.strip(), file.strip()


# -------------------------------------------------------------------------------------------------------------- outputs


def files_of(folder: Path, names: Sequence[str], suffix: str, option: str) -> dict[str, Path]:
    """Return what is written where: `option: name` -> file in a folder; ValueError for two pictures of one name."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{option}: expected pictures of different names, for that is what files are called; {twice} twice")
    return {f"{option}: {name}": folder / f"{name}{suffix}" for name in names}


def check_png(options: Any, *names: str) -> None:
    """ValueError for a field that is a file name which does not end in .png."""
    check_suffix(options, ".png", *names)


def check_suffix(options: Any, suffix: str, *names: str) -> None:
    """ValueError for a field that is a file name which does not end in `suffix`."""
    for name in names:
        path = getattr(options, name)
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(f"{name}: expected a file name ending in {suffix}, got {path}")


def check_outputs(
    outputs: Mapping[str, Path | str | None], inputs: Sequence[str] = (), label_maps: Sequence[str] = ()
) -> None:
    """Check, before any work, that files can be written where they are asked for and cover nothing that is read.

    Args:
        outputs: option -> file to write, None for none.
        inputs: image files that are read.
        label_maps: IMAGE=FILE.

    Raises:
        ValueError: a folder, a path below a file, the same file twice, an input, or a place where the label map of an input
            is looked for; the message names the option.
    """
    taken: dict[Path, str] = {Path(given.partition("=")[2].strip()).resolve(): "a label map" for given in label_maps}
    for image in inputs:
        for place in label_map_places(Path(image).absolute()) if Path(image).absolute().name else ():
            taken[place.resolve()] = f"where the label map of {image} is looked for"
    taken |= {Path(image).resolve(): "an input" for image in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        file = Path(path)
        if file.is_dir():
            raise ValueError(f"{option}: expected a file, got the folder {path}")
        above = next((folder for folder in file.absolute().parents if folder.exists()), None)
        if above is not None and not above.is_dir():
            raise ValueError(f"{option}: {path} lies below {above}, which is no folder")
        if file.resolve() in taken:
            raise ValueError(f"{option}: expected another file than {path}: it is {taken[file.resolve()]}")
        taken[file.resolve()] = f"the file of --{option.replace('_', '-')}"


def write_image(image: np.ndarray, path: Path) -> None:
    """Write an image (H, W, 3) uint8, whole or not at all; folders are made; the path is printed."""
    save_image(path, image)
    print(f"written: {path}")


def write_labels(labels: np.ndarray, num_classes: int, path: Path) -> None:
    """Write a label map (H, W) as palette PNG, whole or not at all; folders are made; the path is printed."""
    save_labels(path, labels, num_classes)
    print(f"written: {path}")


def write_sheet(sheet: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, whole or not at all; folders are made; the path is printed."""
    save_png(sheet, path)
    print(f"written: {path}")
