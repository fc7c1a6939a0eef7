"""Where an image changes when the code of one region does: mean over many samples (Fig. 10, 11).

    mixsyn-fast stylefusion heatmap --count 50 --sheet heat.png            the shipped model, every region
    mixsyn-fast stylefusion heatmap --region hair --base 3 --json heat.json --sheet heat.png

A sample draws a code for the whole image and two for the region; the change is that between the two images. With --base all
samples share that image but for the region. The share says how much of the change lies inside the region, beside the share
of the image that the region has.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..metrics.intervals import intervals
from ..pictures.options import ModelOptions, check_outputs, check_png, open_model, write_sheet
from ..settings import at_least
from ..sheets import contact_sheet
from .evaluate import with_clusters
from .model import Heat, StyleFusion
from .pictures import cell, check_node, heat_cell, source


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    region: tuple[str, ...] = ()  # nodes; none: all but the root
    count: int = 500  # number of samples of each region
    base: str | None = None  # image that all samples share: a seed, or a file of codes; none: another one for every sample
    seed: int = 0  # of the samples' codes
    batch: int = 8  # how many samples are made at a time
    sheet: Path | None = None  # contact sheet of the heat maps (PNG)
    json: Path | None = None  # also write the shares (JSON)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, count=1, seed=0, batch=1)
        check_png(self, "sheet")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    check_outputs({"sheet": options.sheet, "json": options.json})
    fusion = open_model(StyleFusion, options.model, options.device)
    known = with_clusters(fusion)
    for name in options.region:
        check_node(fusion, name, "region")
        if known and name not in known:
            raise ValueError(f"region: expected nodes with clusters, {', '.join(known)}, got {name!r}")
    base = None if options.base is None else source(fusion, options.base, "base")
    regions = options.region or (known or fusion.nodes)[1:]
    with progress(f"changing {', '.join(regions)}"):
        found = fusion.heatmaps(regions, options.count, base, seed=options.seed, batch=options.batch)
    table: dict[str, dict[str, Any]] = {}
    for name, heat in found.items():
        table[name] = {"mean_change": float(heat.mean.mean()), "samples": options.count}
        text = f"{name}: mean change {100 * table[name]['mean_change']:.2f} % of the range"
        if len(heat.shares):
            table[name] |= {"inside": dataclasses.asdict(intervals(heat.shares)[0]), "area": float(heat.areas.mean())}
            text += f", {_inside(heat)}, which is {100 * heat.areas.mean():.0f} % of the image"
        print(text)
    if options.sheet:
        most = max(float(heat.mean.max()) for heat in found.values())
        rows = [[heat_cell(fusion, heat.mean, _caption(name, heat), most) for name, heat in found.items()]]
        if base is not None:
            rows[0].insert(0, cell(fusion, fusion.generate(codes=base).image, f"image {options.base}"))
        write_sheet(contact_sheet(rows), options.sheet)
    if options.json:
        write_json(options.json, table)
        print(f"written: {options.json}")
    return 0


def _caption(name: str, heat: Heat) -> str:
    return f"{name}: {_inside(heat)}" if len(heat.shares) else name


def _inside(heat: Heat) -> str:
    found = heat.shares[np.isfinite(heat.shares)]
    return f"{100 * float(np.mean(found)):.0f} % of it inside" if len(found) else "nothing changed"
