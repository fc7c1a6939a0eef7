"""Segments of a generator: clusters of its activations, shown on its images, named by you (Sec. 4.2, Fig. 4).

    mixsyn-fast stylefusion segments --sheet segments.png                      the shipped model's generator, clusters anew
    mixsyn-fast stylefusion segments --generator runs/stylegan2 --clusters 12 --out segments.json --sheet segments.png
    mixsyn-fast stylefusion segments --generator runs/stylegan2 --segments segments.json --name 0=wall --sheet s.png
    mixsyn-fast stylefusion segments --generator runs/stylegan2 --segments segments.json --json figures.json

The file is JSON: a line for every cluster with the name of its region, which may be edited by hand as well. Clusters of one
name are one region; a tree's nodes are such names (mixsyn-fast train stylefusion).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..pictures.options import check_outputs, check_png, device_of, name_and_file, write_sheet
from ..pictures.sheets import captioned, cell_size, enlarged, enlarged_labels
from ..settings import Checked, at_least, repeated
from ..sheets import contact_sheet, legend, to_uint8
from ..stylegan2 import Generator
from ..unconditional import load_generator
from .model import StyleFusion
from .pictures import colours
from .segments import Segments, draw_codes, find_segments


@dataclass(frozen=True)
class Options(Checked):
    """Options of the command."""

    generator: str | None = None
    """run folder of `mixsyn-fast train stylegan2`, file of a generator, published file; none: the shipped model's"""
    segments: Path | None = None  # segments found before, to be shown or named; none: found anew
    name: tuple[str, ...] = repeated()  # CLUSTER=REGION: name of a cluster, or of a region a new one; once per name
    clusters: int = 12  # clusters to find
    images: int = 100  # images that are clustered
    pixels: int = 4000  # of their pixels; time and memory grow by the square
    from_side: int = 16  # layers of a smaller side do not count; 0: all do, as in the paper
    truncation: float = 0.7  # of the codes
    seed: int = 0  # of the codes
    show: int = 6  # images on the sheet
    out: Path | None = None  # file of the segments (JSON)
    sheet: Path | None = None  # contact sheet: images, clusters, regions (PNG)
    json: Path | None = None  # also write the figures of the clusters and regions (JSON)
    device: str = "cpu"  # cpu or cuda[:n]

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, clusters=2, images=1, pixels=2, from_side=0, seed=0, show=1)
        check_png(self, "sheet")
        if not 0 <= self.truncation <= 1:
            raise ValueError(f"truncation: expected 0 to 1, got {self.truncation}")
        if not (self.out or self.sheet or self.json):
            raise ValueError("out: expected a file for the segments, or --sheet or --json, got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_outputs({"out": options.out, "sheet": options.sheet, "json": options.json})
    names = dict(_named(entry) for entry in options.name)
    if len(names) < len(options.name):
        raise ValueError(f"name: expected every cluster or region once, got {', '.join(options.name)}")
    most = max((key for key in names if isinstance(key, int)), default=0)
    if not options.segments and (most >= options.clusters or any(isinstance(key, str) for key in names)):
        raise ValueError(f"name: expected clusters 0 to {options.clusters - 1}, got {', '.join(options.name)}")
    device = device_of(options.device)
    given: Segments | None = None
    if options.segments:
        try:
            given = Segments.load(options.segments)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"segments: {error}") from error
    generator = load_generator(options.generator, device) if options.generator else StyleFusion.shipped(device).generator
    if given is not None:
        found = given
        found.check(generator)
    else:
        with progress("clustering"):
            found = find_segments(
                generator,
                clusters=options.clusters,
                images=options.images,
                pixels=options.pixels,
                truncation=options.truncation,
                seed=options.seed,
                from_side=options.from_side,
            )
    found = found.named(names).to(device)
    for i, (name, share) in enumerate(zip(found.names, found.shares, strict=True)):
        print(f"cluster {i}: {name}, {100 * share:.1f} % of the pixels")
    if options.out:
        found.save(options.out)
        print(f"written: {options.out}")
    if options.sheet:
        write_sheet(sheet(generator, found, options), options.sheet)
    if options.json:
        write_json(options.json, figures(found))
        print(f"written: {options.json}")
    return 0


def figures(segments: Segments) -> dict[str, Any]:
    """Return what the clusters are: shares of the sampled pixels by cluster and region, and the channels that count."""
    rows = [
        {"cluster": i, "region": name, "share": share}
        for i, (name, share) in enumerate(zip(segments.names, segments.shares, strict=True))
    ]
    regions = {
        region: {
            "clusters": segments.names.count(region),
            "share": sum(share for name, share in zip(segments.names, segments.shares, strict=True) if name == region),
        }
        for region in segments.regions
    }
    layers = segments.scale.split(segments.channels)
    return {
        "generator": segments.generator,
        "side": segments.side,
        "temperature": segments.temperature,
        "clusters": rows,
        "regions": regions,
        "channels": [{"channels": len(layer), "counted": int(layer.count_nonzero())} for layer in layers],
    }


def _named(entry: str) -> tuple[int | str, str]:
    key, name = name_and_file(entry, "name", "CLUSTER=REGION")
    return int(key) if key.isdigit() else key, name


@torch.no_grad()
def sheet(generator: Generator, segments: Segments, options: Options) -> np.ndarray:
    """Draw images, their clusters and their regions in colours, with the names; (H, W, 3) uint8."""
    size = cell_size((generator.config.size,) * 2)
    (code,) = draw_codes(generator, options.show, options.truncation, options.seed + 1, options.show)
    images, activations = generator.activations(code)
    clusters = segments.assign(activations).cpu().numpy()
    regions = np.array([segments.regions.index(name) for name in segments.names])[clusters]
    rows = [[captioned(enlarged(image, size), f"image {i}") for i, image in enumerate(to_uint8(images))]]
    listed = [f"{i}: {name}" for i, name in enumerate(segments.names)]
    for labels, names in ((clusters, listed), (regions, list(segments.regions))):
        shades = colours(len(names))
        cells = [captioned(shades[enlarged_labels(each, size)], "") for each in labels]
        rows.append([*cells, legend(names, shades, size[0])])
    return contact_sheet(rows)
