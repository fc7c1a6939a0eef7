"""Label maps of your own face photos, by a face-parsing network from a weights file: 19 classes as in CelebAMask-HQ.

    mixsyn-fast parse me.jpg friends/ --weights 79999_iter.pth --out faces

writes faces/images/me.png, faces/labels/me.png (palette PNG: pixel value = class id), faces/overlay/me.png to look at, and
faces/classes.txt: a folder that `mixsyn-fast train ... --data faces --kind folder` takes. A face should fill the photo about
as in a passport picture: the network was trained on aligned faces and finds none in a landscape.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.writing import write_whole

from ..data import FACE_CLASSES, colorize
from ..data.files import plain_name
from ..face_parser import FaceParser, load_face_parser
from ..pictures.files import list_pictures, read_image, save_image, save_labels
from ..settings import Checked, at_least, positional

_SMALLEST_FACE = 0.02  # share of the pixels that are skin or nose; below, the message says that there is no face


@dataclass(frozen=True)
class Options(Checked):
    """Options of the command."""

    weights: str  # weights of the face parser (79999_iter.pth)
    out: Path  # folder to write to
    photos: tuple[str, ...] = positional()  # photos, or folders of photos
    size: int = 512  # shorter side in pixels at which the network sees a photo
    save_size: int = 1024  # shorter side in pixels to which larger photos are reduced before they are saved
    device: str = "cpu"  # torch device that runs the network

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        if not self.photos:
            raise ValueError("photos: expected at least one photo or folder, got none")
        at_least(self, size=32, save_size=32)


def find_photos(given: Sequence[str], without: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Map name -> file for photos and folders of photos; a name is the stem, in a folder the path in there.

    Args:
        given: files and folders.
        without: a folder that is passed over: where the command writes to.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without a picture.
        ValueError: two photos with one name.
    """
    found: dict[str, Path] = {}
    for name in given:
        path = Path(name)
        if not path.is_dir() and not path.is_file():
            raise FileNotFoundError(f"{path}: no such photo or folder")
        photos = list_pictures(path, without=without) if path.is_dir() else {plain_name(path.stem): path}
        for stem, photo in photos.items():
            if stem in found:
                raise ValueError(f"photos: expected different names, got {found[stem]} and {photo}")
            found[stem] = photo
    return found


def overlay(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Colour the regions of a photo (H, W, 3) uint8, half transparent, with dark lines between them."""
    mixed = (photo.astype(np.float32) + colorize(labels, len(FACE_CLASSES))) / 2
    lines = np.zeros(labels.shape, bool)
    lines[1:] |= labels[1:] != labels[:-1]
    lines[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[lines] *= 0.3
    return mixed.astype(np.uint8)


def _reduced(photo: np.ndarray, side: int) -> np.ndarray:
    """Reduce a photo so that its shorter side has at most `side` pixels."""
    from PIL import Image

    height, width = photo.shape[:2]
    if min(height, width) <= side:
        return photo
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def parse_photos(
    photos: Mapping[str, Path],
    parser: FaceParser,
    out: str | os.PathLike[str],
    *,
    size: int = 512,
    save_size: int = 1024,
) -> dict[str, str]:
    """Write image, label map and overlay of every photo below a folder, and say on stdout what regions it has.

    Args:
        photos: name -> file.
        parser: the network.
        out: folder to write to.
        size: shorter side in pixels at which the network sees a photo.
        save_size: shorter side in pixels to which larger photos are reduced before they are saved.

    Returns:
        Name -> problem of the photos that could not be read (these are not written) or show no face.
    """
    folder = Path(out)
    write_whole(folder / "classes.txt", "\n".join(FACE_CLASSES) + "\n")
    problems: dict[str, str] = {}
    for stem, path in photos.items():
        try:
            photo = _reduced(read_image(path), save_size)
        except ValueError as error:
            problems[stem] = str(error)
            print(error, file=sys.stderr)
            continue
        labels = parser.parse(photo, size)
        save_image(folder / "images" / f"{stem}.png", photo)
        save_labels(folder / "labels" / f"{stem}.png", labels, len(FACE_CLASSES))
        save_image(folder / "overlay" / f"{stem}.png", overlay(photo, labels))
        shares = np.bincount(labels.reshape(-1), minlength=len(FACE_CLASSES)) / labels.size
        if shares[FACE_CLASSES.index("skin")] + shares[FACE_CLASSES.index("nose")] < _SMALLEST_FACE:
            problems[stem] = f"{path}: no face found; crop the photo to head and shoulders"
            print(problems[stem], file=sys.stderr)
        regions = ", ".join(f"{FACE_CLASSES[k]} {shares[k]:.1%}" for k in np.argsort(-shares) if shares[k] > 0)
        print(f"{path.name} ({photo.shape[1]} x {photo.shape[0]}): {regions}")
    return problems


def main(options: Options) -> int:
    """Parse every photo; 1 when one could not be read or shows no face (all others are written), 2 by the caller for bad
    arguments (ValueError, FileNotFoundError).
    """
    photos = find_photos(options.photos, options.out)
    parser = load_face_parser(options.weights).to(options.device)
    problems = parse_photos(photos, parser, options.out, size=options.size, save_size=options.save_size)
    print(f"{options.out}: {len(photos)} photos, {len(problems)} with a problem")
    return 1 if problems else 0
