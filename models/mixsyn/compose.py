"""Compose a new picture from regions of several ones: a new label map and a new image (MixSyn).

    mixsyn-fast compose --region window=a.jpg --region door=b.jpg --base c.jpg --kind folder --out new.png --sheet sheet.png

Label maps stand beside the images (a_labels.png, or ../labels/a.png), are named with --labels, or are parsed from face
photos with --parser. --kind says what their pixel values mean: "folder" 0 to N - 1 in the order of the model's regions,
"cmp_facade" 1 to 12 as that set stores them. What no --region names comes from the base; without a base it is absent. The
shipped model knows facades; train your own with `mixsyn-fast train mixsyn`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixsyn_fast.progress import progress

from ..data import LABEL_SETS, palette
from ..data.files import open_picture
from ..data.region_types import merge_of
from ..pictures.copy_paste import copy_paste
from ..pictures.files import save_image, save_labels
from ..pictures.picture import Picture, fit, label_map_places, read_picture
from ..pictures.sheets import captioned, enlarged, soft_colours, source_cells
from ..sheets import contact_sheet, legend, save_png
from .model import Composed, MixSyn
from .sequential import sequential as transfer

if TYPE_CHECKING:
    from ..face_parser import FaceParser

_ROW = 6  # source pictures in a row of the sheet
_SIDE = 224  # of the sheet's pictures in pixels, about: small images are enlarged by a whole factor


# ----------------------------------------------------------------------------- what compose, edit and diversity share


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and --device; :func:`open_model` takes them."""
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="weights saved by MixSyn.save (.safetensors), or the run folder of `mixsyn-fast train mixsyn` "
        "(default: the shipped model of facades)",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says how pictures and label maps are read; :class:`Reader` takes it."""
    parser.add_argument(
        "--kind",
        choices=("auto", "folder", *LABEL_SETS),
        default="auto",
        help="what the ids in the label maps mean: those of a known data set, or folder: pixel value = number of the region "
        "(default: by names of folders and files)",
    )
    parser.add_argument("--unknown-id", type=int, help="kind folder: stored id of pixels without a region, often 255")
    parser.add_argument("--first-id", type=int, help="kind folder: stored id of the first region (default: 0)")
    parser.add_argument(
        "--merge",
        choices=("auto", "none", "meta", "compact"),
        default="auto",
        help="region types that the label maps' classes are merged into (default: as the model was trained)",
    )
    parser.add_argument(
        "--labels",
        metavar="IMAGE=FILE",
        action="append",
        default=[],
        help="label map of an image, where it does not stand beside it; may be repeated",
    )
    parser.add_argument("--parser", metavar="FILE", help="weights of a face parser, for photos without a label map")


def open_model(options: argparse.Namespace) -> MixSyn:
    """Load --model onto --device. ValueError or OSError names the file or option."""
    import torch

    try:
        device = torch.device(options.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda[:n], got {options.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: {options.device} asked for, but torch sees {torch.cuda.device_count() or 'no'} GPU")
    with progress("loading the model"):
        return MixSyn.load(options.model, device) if options.model else MixSyn.shipped(device)


class Reader:
    """Reads pictures with their label maps as the options say, each file once.

    Args:
        mixsyn: whose regions and size they get.
        options: those of :func:`add_picture_arguments`, and device.

    Raises:
        ValueError: --labels that is no IMAGE=FILE, or names an image twice.
    """

    def __init__(self, mixsyn: MixSyn, options: argparse.Namespace) -> None:
        self.mixsyn = mixsyn
        self._rules = {
            "kind": options.kind,
            "merge": merge_of(mixsyn.classes) if options.merge == "auto" else options.merge,
            "unknown_id": options.unknown_id,
            "first_id": options.first_id,
        }
        self.weights, self.device = options.parser, options.device
        self._labels: dict[Path, str] = {}
        for given in options.labels:
            image, file = _name_and_file(given, "--labels", "IMAGE=FILE")
            if Path(image).resolve() in self._labels:
                raise ValueError(f"--labels: expected one label map per image, got two for {image}")
            self._labels[Path(image).resolve()] = file
        self._read: dict[Path, Picture] = {}
        self._parser: FaceParser | None = None

    def read(self, path: str) -> Picture:
        """Return the picture at the model's size.

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
            picture = read_picture(
                path,
                classes=self.mixsyn.classes,
                labels=self._labels.get(where),
                parser=self._parser,
                **self._rules,
            )
            self._read[where] = fit(picture, self.mixsyn.size)
        return self._read[where]

    def check_labels_used(self) -> None:
        """ValueError where --labels names an image that nothing has read."""
        unused = [file for image, file in self._labels.items() if image not in self._read]
        if unused:
            raise ValueError(f"--labels: no image of this command belongs to {', '.join(unused)}")


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
        name, file = _name_and_file(entry, option, "REGION=FILE")
        check_region(name, option, classes)
        if name in files:
            raise ValueError(f"{option}: expected every region once, got {name} from {files[name]} and from {file}")
        files[name] = file
    return files


def check_region(name: str, option: str, classes: Sequence[str]) -> None:
    """ValueError, listing all regions, for one that the model does not have."""
    if name not in classes:
        raise ValueError(f"{option}: unknown region {name!r}; the model's regions are {', '.join(classes)}")


def _name_and_file(given: str, option: str, form: str) -> tuple[str, str]:
    name, equals, file = given.partition("=")
    if not (name.strip() and equals and file.strip()):
        raise ValueError(f"{option}: expected {form}, got {given!r}")
    return name.strip(), file.strip()


def split_regions(step: str) -> list[str]:
    """Split "door=b.jpg,shop=b.jpg" at the commas that another REGION= follows: commas in file names stay."""
    return re.split(r",(?=[^,=/\\]+=)", step)


def check_png(path: Path | None, option: str) -> None:
    """ValueError for a file name that does not end in .png."""
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"{option}: expected a file name ending in .png, got {path}")


def check_outputs(
    outputs: Mapping[str, Path | str | None], inputs: Sequence[str] = (), label_maps: Sequence[str] = ()
) -> None:
    """Check, before any work, that files can be written where they are asked for and cover nothing that is read.

    Args:
        outputs: option -> file to write, None for none.
        inputs: image files that are read.
        label_maps: of --labels, IMAGE=FILE.

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
        taken[file.resolve()] = f"the file of {option}"


def cell_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (H, W) at which a sheet shows images of `size`: a whole multiple of it."""
    factor = max(1, round(_SIDE / max(size)))
    return size[0] * factor, size[1] * factor


def write_sheet(sheet: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, whole or not at all; folders are made; the path is printed."""
    save_png(sheet, path)
    print(f"written: {path}")


def region_legend(labels: Sequence[np.ndarray], classes: Sequence[str], height: int) -> np.ndarray:
    """Return names and colours of the regions that appear in label maps (H, W), as a picture `height` pixels high."""
    seen = [k for k in range(len(classes)) if any((plane == k).any() for plane in labels)]
    return legend([classes[k] for k in seen], palette(len(classes))[seen], height)


def sequential_cell(name: str, step: Picture | None, size: tuple[int, int]) -> np.ndarray:
    """Draw a step of the sequential transfer; blank where the base has no such region."""
    if step is None:
        return captioned(np.full((*size, 3), 24, np.uint8), f"sequential: base has no {name}")
    return captioned(enlarged(step.image, size), f"sequential: {name}")


# ------------------------------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `mixsyn-fast compose`."""
    parser.add_argument(
        "--region",
        metavar="REGION=FILE",
        action="append",
        default=[],
        help="take this region from this image; once per region, e.g. --region window=a.jpg",
    )
    parser.add_argument("--base", metavar="FILE", help="image that all other regions come from (default: they are absent)")
    add_model_arguments(parser)
    add_picture_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("composed.png"), help="the new image (default: %(default)s)")
    parser.add_argument("--labels-out", type=Path, help="also write the new label map (palette PNG, pixel value = region)")
    parser.add_argument(
        "--sheet", type=Path, help="also write a contact sheet: sources, composition, copy-paste, new image (PNG)"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="on the sheet, also transfer one segment after the other onto the base's own label map, as editors of one "
        "source do (Fig. 7); without --base, onto the first source",
    )


def main(options: argparse.Namespace) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    for name in ("out", "labels_out", "sheet"):
        check_png(getattr(options, name), f"--{name.replace('_', '-')}")
    if not options.region:
        raise ValueError("--region: expected at least one REGION=FILE, got none")
    if options.compare and options.sheet is None:
        raise ValueError("--compare: needs --sheet FILE.png to draw on")
    inputs = [entry.partition("=")[2].strip() for entry in options.region] + [options.base] * bool(options.base)
    outputs = {"--out": options.out, "--labels-out": options.labels_out, "--sheet": options.sheet}
    check_outputs(outputs, [file for file in inputs if file], options.labels)
    mixsyn = open_model(options)
    files = region_files(options.region, "--region", mixsyn.classes)
    reader = Reader(mixsyn, options)
    regions = {name: reader.read(file) for name, file in files.items()}
    base = reader.read(options.base) if options.base else None
    reader.check_labels_used()
    composed = mixsyn.compose(regions, base)
    save_image(options.out, composed.image)
    print(f"written: {options.out}")
    if options.labels_out:
        save_labels(options.labels_out, composed.labels, len(mixsyn.classes))
        print(f"written: {options.labels_out}")
    if options.sheet:
        start = base or next(iter(regions.values()))
        steps = sequential_steps(mixsyn, start, list(regions.items())) if options.compare else ()
        write_sheet(sheet(mixsyn, composed, regions, steps), options.sheet)
    return 0


def pasted_from(mixsyn: MixSyn, composed: Composed, base: Picture | None) -> Picture:
    """Return the copy-paste of a composition's segments; `base`: picture below all of them, grey without one."""
    return copy_paste(composed.sources, composed.table, mixsyn.size, mixsyn.classes, base=base)


def sequential_steps(
    mixsyn: MixSyn, base: Picture, regions: Sequence[tuple[str, Picture]]
) -> list[tuple[str, Picture | None]]:
    """Transfer segments one after the other onto the base's own label map.

    Args:
        mixsyn: the model.
        base: picture to start from.
        regions: (region, picture that it is taken from), in order.

    Returns:
        (region, image after its transfer), in order; None for a region that the base's label map has no place for.
    """
    possible = set(mixsyn.regions_of(base))
    usable = [(name, picture) for name, picture in regions if name in possible]
    done = iter(transfer(mixsyn, base, usable) if usable else ())
    return [(name, next(done) if name in possible else None) for name, _ in regions]


def sheet(
    mixsyn: MixSyn, composed: Composed, named: Mapping[str, Picture], sequential: Sequence[tuple[str, Picture | None]] = ()
) -> np.ndarray:
    """Draw sources with their regions outlined, then composition, copy-paste and result, then the sequential transfer.

    Args:
        mixsyn: the model.
        composed: what it made.
        named: the regions that were named, as opposed to those of the base.
        sequential: of :func:`sequential_steps`.

    Returns:
        (H, W, 3) uint8.
    """
    size = cell_size(mixsyn.size)
    base = next((index for name, index in composed.table.items() if name not in named), None)
    cells = source_cells(composed.sources, composed.table, mixsyn.classes, size, base)
    rows = [cells[i : i + _ROW] for i in range(0, len(cells), _ROW)]
    pasted = pasted_from(mixsyn, composed, None if base is None else composed.sources[base])
    made = [
        captioned(soft_colours(composed.composition, size), "composition"),
        captioned(enlarged(pasted.image, size), "copy-paste, for comparison"),
        captioned(enlarged(composed.image, size), "new image"),
        region_legend([composed.labels, *(source.labels for source in composed.sources)], mixsyn.classes, size[0]),
    ]
    rows.append(made)
    after = [sequential_cell(name, step, size) for name, step in sequential]
    rows += [after[i : i + _ROW] for i in range(0, len(after), _ROW)]
    return contact_sheet(rows)
