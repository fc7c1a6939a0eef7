"""A latent direction, in chosen regions alone (Sec. 6.1, Fig. 14): the same direction on the whole image beside it.

    mixsyn-fast stylefusion edit --sheet sheet.png                       the shipped model, from seed 1 towards seed 2
    mixsyn-fast stylefusion edit --image 3 --direction smile.safetensors --region mouth --strength 1.5 --out new.png

--image is a seed, a file of codes, or a folder of such files, all of which are edited alike.
A direction is A,B (from the code of seed A to that of seed B) or a safetensors file with one tensor, (S) or (w_dim), as
GANSpace, InterFaceGAN or StyleCLIP find it for the generator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from mixsyn_fast.progress import progress

from ..checkpoints import read_state
from ..pictures.options import ModelOptions, check_png, open_model, write_image, write_sheet
from ..settings import at_least
from ..sheets import contact_sheet
from .model import Codes, StyleFusion
from .pictures import cell, check_node, results_of, save_codes, source

_STEPS = (-1.0, -0.5, 0.5, 1.0)  # of the strength, on the sheet


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    image: str | None = None  # the image to edit: a seed, a file of codes, or a folder of such files; none: that of --seed
    direction: str = "1,2"  # A,B: from the code of seed A to that of seed B; or a file
    region: tuple[str, ...] = ()  # nodes whose codes move; none: each region in turn, on the sheet
    strength: float = 1.0  # factor of the direction
    seed: int = 0  # of the image, where none is named
    out: Path | None = None  # the edited image (PNG), for a folder of codes a folder; none: edited.png or edited
    codes_out: Path | None = None  # also write its codes (safetensors), for a folder of codes a folder
    sheet: Path | None = None  # also write a contact sheet: strengths from - to +, by region and of the whole image (PNG)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")
        if not self.region and (self.codes_out or not self.sheet):
            raise ValueError("region: expected nodes of the tree, or --sheet for a sheet of all of them; got none")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    image = str(options.seed) if options.image is None else options.image
    outs = (options.out, options.codes_out)
    results = results_of(image, outs, "edited", {"sheet": options.sheet}, bool(options.region))
    fusion = open_model(StyleFusion, options.model, options.device)
    given = [source(fusion, each.word, "image") for each in results]
    direction = direction_of(fusion, options.direction)
    for name in options.region:
        check_node(fusion, name, "region")
    rows = []
    with progress("editing"):
        for each, codes in zip(results, given, strict=True):
            if each.out:
                made = fusion.edit(codes, direction, options.region, options.strength)
                write_image(made.image, each.out)
                if each.codes_out:
                    save_codes(fusion, made.codes, each.codes_out)
            if options.sheet:
                base = fusion.generate(codes=codes).image
                for nodes in [list(options.region)] if options.region else [[name] for name in fusion.regions]:
                    rows.append(_row(fusion, codes, direction, nodes, options.strength, base, ", ".join(nodes)))
                rows.append(_row(fusion, codes, direction, [fusion.tree.root], options.strength, base, "whole image"))
    if options.sheet:
        write_sheet(contact_sheet(rows), options.sheet)
    return 0


def _row(
    fusion: StyleFusion, codes: Codes, direction: Tensor, nodes: list[str], strength: float, base: np.ndarray, title: str
) -> list[np.ndarray]:
    steps = [step * strength for step in _STEPS]
    made = [fusion.edit(codes, direction, nodes, step).image for step in steps]
    return [
        cell(fusion, base, title),
        *(cell(fusion, image, f"{step:+.2g}") for image, step in zip(made, steps, strict=True)),
    ]


def direction_of(fusion: StyleFusion, given: str) -> Tensor:
    """Return a direction, (S) or (w_dim); ValueError or FileNotFoundError name the option."""
    seeds = re.fullmatch(r"(\d+),(\d+)", given)
    if seeds:
        try:
            return fusion.direction(int(seeds[1]), int(seeds[2]))
        except ValueError as error:
            raise ValueError(f"direction: {error}") from error
    if not Path(given).suffix:
        raise ValueError(f"direction: expected A,B (two seeds) or a file with one tensor, got {given!r}")
    try:
        state = read_state(given)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"direction: {error}") from error
    if len(state) != 1:
        raise ValueError(f"direction: {given}: expected one tensor, got {len(state)}: {', '.join(sorted(state)[:8])}")
    (found,) = state.values()
    return found.float().flatten()
