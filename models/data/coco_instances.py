"""Instance maps for COCO-Stuff, whose own files hold them as polygons in one large JSON file.

python -m mixsyn_fast.models.data.coco_instances annotations/instances_val2017.json stuffthingmaps/val2017 instances/val2017
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.commands import guarded, run_command
from mixsyn_fast.reading import read_text

from ..settings import positional
from .files import LOSSLESS, find, read_ids


def write_instance_maps(
    annotations: str | os.PathLike[str], labels: str | os.PathLike[str], out: str | os.PathLike[str]
) -> int:
    """Draw an instance map for every label map of a folder.

    A pixel of the n-th object (by falling area, so that small ones lie above large ones) becomes 256 + n, any other pixel
    its label: then edges run around objects and along borders of stuff alike, as in the maps that SPADE is trained with.
    Crowds are no single objects and keep their label.

    Args:
        annotations: COCO's instances_*.json.
        labels: folder of the label maps, <12 digits>.png.
        out: folder for the 16-bit PNGs; made if needed.

    Returns:
        Number of maps written.

    Raises:
        FileNotFoundError: a file or folder is missing, or there is no label map.
        ValueError: not such a JSON file, or a label map of another size or without a number for its name; the message names
            the file.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("drawing instance maps needs pillow: pip install 'mixsyn_fast[models]'") from error
    source, target = Path(annotations), Path(out)
    maps = find(Path(labels), LOSSLESS, flat=True, deep=False).named
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    if not maps:
        raise FileNotFoundError(f"{os.fspath(labels)}: holds no label map (*.png)")
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        data = json.loads(read_text(source))
        for thing in data["annotations"]:
            if not thing["iscrowd"]:
                objects[int(thing["image_id"])].append({"area": float(thing["area"]), "polygons": thing["segmentation"]})
        sizes = {int(image["id"]): (image["width"], image["height"]) for image in data["images"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: not a COCO instances file ({error!r})") from error
    for name, path in maps.items():
        if not name.isdecimal():
            raise ValueError(f"{path}: expected a name that is the number of COCO's picture, 000000000009.png")
    target.mkdir(parents=True, exist_ok=True)
    for name, path in maps.items():
        plane = read_ids(path)
        number = int(name)
        if sizes.get(number) != plane.shape[::-1]:
            raise ValueError(f"{path}: expected width and height {sizes.get(number)}, got {plane.shape[::-1]}")
        canvas = Image.fromarray(plane)  # 32-bit
        draw = ImageDraw.Draw(canvas)
        for n, thing in enumerate(sorted(objects[number], key=lambda thing: -thing["area"])):
            for polygon in thing["polygons"]:
                draw.polygon(polygon, fill=256 + n)
        Image.fromarray(np.asarray(canvas).astype(np.uint16)).save(target / f"{path.stem}.png")
    return len(maps)


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    annotations: str = positional()  # COCO's JSON file of instances
    labels: str = positional()  # folder of label maps, whose names and sizes the instance maps get
    out: str = positional()  # folder to write to


def main(options: Options) -> int:
    """Write the instance maps and say how many."""
    count = write_instance_maps(options.annotations, options.labels, options.out)
    print(f"{count} instance maps in {options.out}")
    return 0


if __name__ == "__main__":
    this, prog = sys.modules["__main__"], "python -m mixsyn_fast.models.data.coco_instances"
    sys.exit(guarded(lambda: run_command(this, sys.argv[1:], prog)))
