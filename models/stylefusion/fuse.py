"""Other codes for some regions of an image, all else as it is: local control, mixing, transfer of a region (Fig. 1, 8, 15).

    mixsyn-fast stylefusion fuse --sheet sheet.png                     every region of an image in turn, the shipped model
    mixsyn-fast stylefusion fuse --image 3 --set hair=8 --set mouth=b.safetensors --out new.png --sheet sheet.png

--image and what stands behind = are seeds, or files of codes that `generate`, `fuse`, `pose`, `edit` and `invert` write;
--image is a folder of such files as well, all of which are changed alike. An inner node of the tree stands for its whole
region. Without --set the sheet has a row for every region with --count other codes of it. The line below an image says how
much of the change lies inside the region.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..pictures.options import ModelOptions, check_png, open_model, write_image, write_sheet
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Made, StyleFusion
from .pictures import cell, changes_of, mask_cell, region_key, results_of, save_codes, source


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    image: str = "0"  # the image to change: a seed, a file of codes, or a folder of such files
    set: tuple[str, ...] = repeated()  # NODE=SEED|FILE: new code of a region; once per region
    count: int = 5  # without --set: other codes of every region
    seed: int = 1  # without --set: of the first of these codes
    out: Path | None = None
    """the image with all changes (PNG), for a folder of codes a folder; none: fused.png or fused, where there are changes"""
    codes_out: Path | None = None  # also write its codes (safetensors), for a folder of codes a folder
    sheet: Path | None = None  # also write a contact sheet (PNG)
    json: Path | None = None  # also write the shares (JSON)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, count=1)
        check_png(self, "sheet")
        for name in ("out", "codes_out"):
            if not self.set and getattr(self, name):
                raise ValueError(f"{name}: needs --set, got none")
        if not (self.set or self.sheet or self.json):
            raise ValueError("set: expected NODE=SEED or NODE=FILE, or --sheet for a sheet of all regions; got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    others = {"sheet": options.sheet, "json": options.json}
    results = results_of(options.image, (options.out, options.codes_out), "fused", others, bool(options.set))
    fusion = open_model(StyleFusion, options.model, options.device)
    given = [source(fusion, each.word, "image") for each in results]
    changes = changes_of(fusion, options.set, "set")
    rows: list[list[np.ndarray]] = []
    shares: dict[str, list[float]] = {name: [] for name in changes or fusion.nodes[1:]}
    made: list[Made] = []
    with progress("fusing"):
        for each, codes in zip(results, given, strict=True):
            base = fusion.generate(codes=codes)
            first = [cell(fusion, base.image, f"image {Path(each.word).name}")]
            first += [part for part in (mask_cell(fusion, codes), region_key(fusion)) if part is not None]
            rows.append(first)
            if changes:
                made.append(fusion.fuse(codes, changes))
                rows += _changed(fusion, base, changes, made[-1], shares)
            else:
                rows += _every(fusion, base, options, shares)
    for each, new in zip(results, made, strict=False):
        if each.out:
            write_image(new.image, each.out)
        if each.codes_out:
            save_codes(fusion, new.codes, each.codes_out)
    for name, values in shares.items():
        if values:
            print(f"{name}: {100 * sum(values) / len(values):.0f} % of the change inside")
        elif not _has_clusters(fusion, name):
            print(f"{name}: no clusters are named so, so nobody knows how much of the change is inside")
    if options.sheet:
        write_sheet(contact_sheet(rows), options.sheet)
    if options.json:
        write_json(options.json, {"share_of_the_change_inside": shares})
        print(f"written: {options.json}")
    return 0


def _changed(
    fusion: StyleFusion, base: Made, changes: dict[str, dict[str, Tensor]], made: Made, shares: dict[str, list[float]]
) -> list[list[np.ndarray]]:
    """Return a row for every change alone, and one for all of them; the shares of the changes are put down."""
    rows = []
    for name, given in changes.items():
        one = fusion.fuse(base.codes, {name: given})
        found = share(fusion, base, one, name)
        shares[name] += [] if found is None else [found]
        there = cell(fusion, fusion.generate(codes=given).image, f"source of {name}")
        rows.append([there, cell(fusion, one.image, line(name, found))])
    return [*rows, [cell(fusion, base.image, "before"), cell(fusion, made.image, "all changes")]]


def _every(fusion: StyleFusion, base: Made, options: Options, shares: dict[str, list[float]]) -> list[list[np.ndarray]]:
    """Return a row for every region with other codes of it; the shares of the changes are put down."""
    rows = []
    for name in fusion.nodes[1:]:
        row = [cell(fusion, base.image, f"{name}:")]
        for i in range(options.count):
            one = fusion.fuse(base.codes, {name: options.seed + i})
            found = share(fusion, base, one, name)
            shares[name] += [] if found is None else [found]
            row.append(cell(fusion, one.image, line(f"seed {options.seed + i}", found)))
        rows.append(row)
    return rows


def _has_clusters(fusion: StyleFusion, node: str) -> bool:
    """Whether the region of a node can be told; True for a model that has no segments at all."""
    return fusion.segments is None or bool(set(fusion.tree.within(node)) & set(fusion.segments.names))


def line(text: str, found: float | None) -> str:
    """Return a caption."""
    return text if found is None else f"{text}: {100 * found:.0f} % inside"


def share(fusion: StyleFusion, before: Made, after: Made, node: str) -> float | None:
    """Return the share of the absolute change of pixels that lies inside a node's region, before or after.

    None: the model has no segments, or none of this region, or nothing changed.
    """
    if fusion.segments is None or not _has_clusters(fusion, node):
        return None
    wanted = fusion.tree.within(node)
    inside: np.ndarray | None = None
    for each in (before, after):
        names, masks = fusion.masks(each.codes)
        own = masks[[i for i, name in enumerate(names) if name in wanted]].sum(0)
        inside = own if inside is None else np.maximum(inside, own)
    change = np.abs(after.image.astype(np.float32) - before.image.astype(np.float32)).mean(2)
    total = float(change.sum())
    assert inside is not None
    return float((change * inside).sum()) / total if total else None
