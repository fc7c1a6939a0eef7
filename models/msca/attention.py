"""What goes where: the attention maps on the exemplar and on the label map, and in words (MSCA, Fig. 6, 11).

    mixsyn-fast msca attention --sheet attention.png                         pictures drawn by code, the shipped model
    mixsyn-fast msca attention --image a.jpg --exemplar b.jpg --kind folder --scales 0,4 --sheet attention.png --json a.json

Each of the K maps of a scale gathers features where the exemplar is light on the sheet, and hands them to where the label
map is light. The strength of a map is its mean share of the target times its gate (feature masking). Scale 0 is the finest.
Whether exemplar regions reach the right targets is one number for each scale: the share of the transferred weight that goes
from a class of the exemplar to the same class of the target, beside that of global average pooling (chance). The JSON has
all maps of all scales. --kind and label maps: see `mixsyn-fast msca synthesize --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.progress import progress

from ..pictures.options import check_outputs, check_png, write_image, write_sheet
from ..pictures.sheets import captioned, cell_size, coloured, lines_for, region_legend
from ..settings import at_least
from ..sheets import contact_sheet
from .config import SCALES
from .model import MSCA, Correspondence, ScaleMaps
from .pictures import (
    PairOptions,
    exemplar_files,
    exemplar_size_in,
    image_cell,
    in_words,
    labels_cell,
    numbers,
    scene_of,
    spotlit,
    timed,
    write_report,
)


@dataclass(frozen=True)
class Options(PairOptions):
    """Options of the command."""

    scales: tuple[int, ...] = (0,)  # scales whose maps are told of, 0 (the finest) to 4
    strongest: int = 6  # maps of each scale that are told of
    out: Path = Path("attended.png")  # the image

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, strongest=1)
        check_png(self, "out")
        if not self.scales or not all(0 <= scale < SCALES for scale in self.scales):
            raise ValueError(f"scales: expected some of 0 to {SCALES - 1}, got {self.scales}")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = exemplar_files(options.exemplar)
    if len(files) > 1:
        raise ValueError(f"exemplar: expected one picture, got {', '.join(files)}")
    inputs = [*files, *([options.target] if options.target else [])]
    check_outputs({"out": options.out, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    msca = options.open()
    target, (exemplar,) = options.pair(msca, files, 1)
    with progress("looking at the attention"):
        found, seconds = timed(msca.attention, target.labels, *scene_of(exemplar), size=options.height_and_width)
    for scale in options.scales:
        maps = found.scales[scale]
        print(f"scale {scale}: {100 * maps.to_own_class:.0f} % of what is handed over reaches its own class, ", end="")
        print(f"{100 * maps.by_chance:.0f} % by chance")
        for k in found.scales[scale].strongest(options.strongest):
            print(f"scale {scale}, map {k}: {sentence(msca, found.scales[scale], k)}")
    write_image(found.image, options.out)
    if options.sheet:
        names = (target.name, exemplar.name)
        write_sheet(sheet(msca, found, options.scales, options.strongest, names), options.sheet)
    scales = [numbers_of(msca, each) for each in found.scales]
    about = {"label_map": target.name, "exemplar": exemplar.name, **numbers(found, seconds)}
    write_report(options, msca, {**about, "scales": scales})
    return 0


def sentence(msca: MSCA, maps: ScaleMaps, k: int) -> str:
    """Return what a map hands to where in words."""
    given, taken = in_words(msca, maps.given[k]), in_words(msca, maps.taken[k])
    return f"strength {100 * maps.strength[k]:.0f} %, gate {maps.gates[k]:.2f}: {given} -> {taken}"


def numbers_of(msca: MSCA, maps: ScaleMaps) -> dict[str, Any]:
    """Return the figures of a scale for JSON: shares of labels above 0 by name."""

    def named(shares: np.ndarray) -> dict[str, float]:
        return {name: float(share) for name, share in zip(msca.classes, shares, strict=True) if share > 0}

    return {
        "scale": maps.scale,
        "to_own_class": maps.to_own_class,
        "by_chance": maps.by_chance,
        "maps": [
            {
                "gate": float(maps.gates[k]),
                "strength": float(maps.strength[k]),
                "from": named(maps.given[k]),
                "to": named(maps.taken[k]),
            }
            for k in range(len(maps.gates))
        ],
    }


def sheet(msca: MSCA, found: Correspondence, scales: Sequence[int], strongest: int, names: tuple[str, str]) -> np.ndarray:
    """Draw exemplar, label maps and image; then for the strongest maps what is light where, and in words.

    Args:
        msca: the model.
        found: what its attention did.
        scales: which ones to draw.
        strongest: how many maps of each.
        names: of the target and the exemplar.

    Returns:
        (H, W, 3) uint8.
    """
    exemplar = found.exemplar
    sizes = [exemplar_size_in(msca, exemplar), cell_size((found.labels.shape[0], found.labels.shape[1]))]
    rows = [
        [
            image_cell(exemplar.image, f"exemplar {names[1]}", size=sizes[0]),
            labels_cell(msca, exemplar.labels, "its label map", size=sizes[0]),
            labels_cell(msca, found.labels, f"label map {names[0]}"),
            image_cell(found.image, "image"),
            region_legend([exemplar.labels, found.labels], msca.classes, sizes[0][0]),
        ]
    ]
    for scale in scales:
        maps = found.scales[scale]
        cells = []
        chosen = maps.strongest(strongest)
        says = [
            (
                f"scale {scale}, map {k}, strength {100 * maps.strength[k]:.0f} %: {in_words(msca, maps.given[k], 2)}",
                f"to {in_words(msca, maps.taken[k], 2)}",
            )
            for k in chosen
        ]
        lines = lines_for([text for pair in says for text in pair], min(size[1] for size in sizes))
        for k, (given, taken) in zip(chosen, says, strict=True):
            theirs = spotlit(exemplar.image, maps.alpha[k], sizes[0])
            ours = spotlit(coloured(found.labels, len(msca.classes), sizes[1]), maps.beta[k], sizes[1])
            cells.append([captioned(theirs, given, lines=lines), captioned(ours, taken, lines=lines)])
        rows += [[*cells[i], *(cells[i + 1] if i + 1 < len(cells) else [])] for i in range(0, len(cells), 2)]
    return contact_sheet(rows)
