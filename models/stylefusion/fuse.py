"""Other codes for some regions of an image, all else as it is: local control, mixing, transfer of a region (Fig. 1, 8, 15).

    mixsyn-fast stylefusion fuse --sheet sheet.png                     every region of an image in turn, the shipped model
    mixsyn-fast stylefusion fuse --image 3 --set hair=8 --set mouth=b.safetensors --out new.png --sheet sheet.png

--image and what stands behind = are seeds, or files of codes that `generate`, `fuse`, `pose`, `edit` and `invert` write. An
inner node of the tree stands for its whole region. Without --set the sheet has a row for every region with --count other
codes of it. The line below an image says how much of the change lies inside the region.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..pictures.options import ModelOptions, check_outputs, check_png, check_suffix, open_model, write_image, write_sheet
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Made, StyleFusion
from .pictures import cell, changes_of, mask_cell, region_key, save_codes, source


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    image: str = "0"  # the image to change: a seed, or a file of codes
    set: tuple[str, ...] = repeated()  # NODE=SEED|FILE: new code of a region; once per region
    count: int = 5  # without --set: other codes of every region
    seed: int = 1  # without --set: of the first of these codes
    out: Path | None = None  # the image with all changes (PNG); none: fused.png, where there are some
    codes_out: Path | None = None  # also write its codes (safetensors)
    sheet: Path | None = None  # also write a contact sheet (PNG)
    json: Path | None = None  # also write the shares (JSON)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, count=1)
        check_png(self, "out", "sheet")
        check_suffix(self, ".safetensors", "codes_out")
        for name in ("out", "codes_out"):
            if not self.set and getattr(self, name):
                raise ValueError(f"{name}: needs --set, got none")
        if not (self.set or self.sheet or self.json):
            raise ValueError("set: expected NODE=SEED or NODE=FILE, or --sheet for a sheet of all regions; got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    out = options.out or Path("fused.png")
    files = {"codes_out": options.codes_out, "sheet": options.sheet, "json": options.json}
    check_outputs(files | {"out": out if options.set else None})
    fusion = open_model(StyleFusion, options.model, options.device)
    codes = source(fusion, options.image, "image")
    changes = changes_of(fusion, options.set, "set")
    base = fusion.generate(codes=codes)
    rows: list[list[np.ndarray]] = []
    shares: dict[str, list[float]] = {}
    first = [cell(fusion, base.image, f"image {options.image}")]
    first += [each for each in (mask_cell(fusion, codes), region_key(fusion)) if each is not None]
    rows.append(first)
    with progress("fusing"):
        if changes:
            made = fusion.fuse(codes, changes)
            for name, given in changes.items():
                one = fusion.fuse(codes, {name: given})
                found = share(fusion, base, one, name)
                shares[name] = [] if found is None else [found]
                there = cell(fusion, fusion.generate(codes=given).image, f"source of {name}")
                rows.append([there, cell(fusion, one.image, line(name, found))])
            rows.append([cell(fusion, base.image, "before"), cell(fusion, made.image, "all changes")])
        else:
            for name in fusion.nodes[1:]:
                row = [cell(fusion, base.image, f"{name}:")]
                shares[name] = []
                for i in range(options.count):
                    one = fusion.fuse(codes, {name: options.seed + i})
                    found = share(fusion, base, one, name)
                    shares[name] += [] if found is None else [found]
                    row.append(cell(fusion, one.image, line(f"seed {options.seed + i}", found)))
                rows.append(row)
    if changes:
        write_image(made.image, out)
        if options.codes_out:
            save_codes(fusion, made.codes, options.codes_out)
    for name, values in shares.items():
        if values:
            print(f"{name}: {100 * sum(values) / len(values):.0f} % of the change inside")
    if options.sheet:
        write_sheet(contact_sheet(rows), options.sheet)
    if options.json:
        write_json(options.json, {"share_of_the_change_inside": shares})
        print(f"written: {options.json}")
    return 0


def line(text: str, found: float | None) -> str:
    """Return a caption."""
    return text if found is None else f"{text}: {100 * found:.0f} % inside"


def share(fusion: StyleFusion, before: Made, after: Made, node: str) -> float | None:
    """Return the share of the absolute change of pixels that lies inside a node's region, before or after.

    None: the model has no segments, or nothing changed.
    """
    if fusion.segments is None:
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
