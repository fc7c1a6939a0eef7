"""Move the style of a group of regions step by step: a row of pictures, as under a slider (Sec. 3.5, 4.7, Fig. 5 and 9).

    mixsyn-fast harmonized tune --sheet sheet.png                            a picture drawn by code, the shipped model
    mixsyn-fast harmonized tune --image me.jpg --group skin --direction 3,4 --amounts=-0.8,0,0.8 --kind folder
    mixsyn-fast harmonized tune --space both --sheet fig9.png

The group's codes go to the flow's z, a step along a random unit direction there, and back. A direction is the seed of one.
Steps are in units of the length that z has as a rule, the root of how many numbers the group's codes have: 0.1 changes
little, 1 much, whatever the model's codes are. --space style moves the codes themselves instead, in units of their
deviations (what Fig. 9 compares with), --space both shows the two below each other. --solver adaptive integrates to a
tolerance; fixed takes few steps, as a slider needs. --image takes files and folders. Label maps and --kind: see
`mixsyn-fast harmonized transfer --help`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..pictures.options import (
    ModelOptions,
    PictureOptions,
    Reader,
    check_outputs,
    check_png,
    open_model,
    pictures_at,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .flow import Solver
from .model import Harmonized, Made, Space, listed
from .pictures import change_of, drawn_pictures, files_of, image_cell, numbers, regions_cell, regions_of


@dataclass(frozen=True)
class Options(PictureOptions, ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = repeated()
    """picture whose style moves, or a folder of them; once per picture; none: one drawn by code"""
    group: str | None = None  # group of regions that moves; none: the model's first one with a flow that the picture has
    direction: tuple[int, ...] = (0,)  # seeds of directions: a row of images each
    amounts: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)  # lengths of the steps: 1 is that of a typical z, sqrt(D)
    space: Literal["z", "style", "both"] = "z"  # where the step is made: in the flow's z, or in the codes themselves
    solver: Literal["fixed", "adaptive"] = "fixed"  # of the flow's integral
    out: Path = Path("tuned")
    """folder of the images: <space>_<direction>_<number of the amount>.png; of several pictures in <picture>/"""
    sheet: Path | None = None  # also write a contact sheet: a row per direction and space (PNG)
    json: Path | None = None  # also write what every image changed (JSON; seconds, grey levels 0 to 255)
    seed: int = 0  # of the picture that is drawn where none is given

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "sheet")
        for name in ("direction", "amounts"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        if min(self.direction) < 0 or len(set(self.direction)) < len(self.direction):
            raise ValueError(f"direction: expected different seeds, 0 or more, got {', '.join(map(str, self.direction))}")

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Where steps are made."""
        return ("z", "style") if self.space == "both" else (self.space,)

    @property
    def rows(self) -> tuple[tuple[Space, int], ...]:
        """Spaces and directions of the rows of images."""
        return tuple((space, direction) for direction in self.direction for space in self.spaces)

    def name(self, space: Space, direction: int, place: int) -> str:
        """Return what an image is called."""
        return f"{space}_{direction}_{place}"


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    files = pictures_at(options.image, "image")
    _outputs(options, [Path(file).stem for file in files], files)
    model = open_model(Harmonized, options.model, options.device)
    if not model.flows:
        raise ValueError(f"model: expected flows, got none{model.missing('flow')}")
    reader = Reader(model.classes, model.size, options, options.device)
    with progress("reading pictures"):
        pictures = [reader.read(file) for file in files] or drawn_pictures(model, 1, options.seed)
    reader.check_labels_used()
    groups = [options.group or first_group(model, picture) for picture in pictures]
    for picture, group in zip(pictures, groups, strict=True):
        if group not in model.flows:
            raise ValueError(f"group: expected one with a flow ({listed(model.flows)}), got {group!r}")
        for region in model.groups[group]:
            regions_of(model, (region,), [picture], "group")
    paths = iter(_outputs(options, [picture.name for picture in pictures], files).values())
    cells: list[list[np.ndarray]] = []
    table: list[dict[str, Any]] = []
    errors: dict[str, float] = {}
    with progress("moving") as at:
        for number, (picture, group) in enumerate(zip(pictures, groups, strict=True)):
            at(number, len(pictures))
            found, rows = _moved(options, model, picture, group)
            table += rows
            for row in rows:
                print(
                    f"{f'{picture.name}, ' * (len(pictures) > 1)}{row['space']}, direction {row['direction']}, "
                    f"{row['amount']:g}: changed by {row['change']['inside']:.1f} grey levels inside "
                    f"{listed(row['regions'])}, {row['change']['outside']:.1f} outside"
                )
            errors[picture.name] = round_trip(model, picture, group, options.solver)
            for made in found.values():
                for each in made:
                    write_image(each.image, next(paths))
            cells += rows_of(model, picture, group, found, options.amounts)
    error = max(errors.values())
    print(f"to z and back: codes off by {error:.1e} of their deviations ({options.solver} solver)")
    if options.sheet:
        write_sheet(contact_sheet(cells), options.sheet)
    if options.json:
        about = {"model": options.model or "shipped", "pictures": files or [pictures[0].name], "solver": options.solver}
        write_json(options.json, {**about, "round_trip": error, "images": table})
        print(f"written: {options.json}")
    return 0


def _moved(
    options: Options, model: Harmonized, picture: Picture, group: str
) -> tuple[dict[tuple[Space, int], list[Made]], list[dict[str, Any]]]:
    """Return the images of a picture by space and direction, and what each changed, in the order of the files."""
    before = model.reconstruct(picture.image, picture.labels)
    found: dict[tuple[Space, int], list[Made]] = {}
    table: list[dict[str, Any]] = []
    for space, direction in options.rows:
        begin = time.perf_counter()
        made = model.tune(
            picture.image, picture.labels, group, direction, options.amounts, solver=options.solver, space=space
        )
        seconds = (time.perf_counter() - begin) / len(made)
        found[space, direction] = made
        for amount, each in zip(options.amounts, made, strict=True):
            step = {"picture": picture.name, "group": group, "space": space, "direction": direction, "amount": amount}
            table.append({**step, **numbers(change_of(model, before.image, each, each.regions), each, seconds)})
    return found, table


def _outputs(options: Options, names: Sequence[str], inputs: Sequence[str]) -> dict[str, Path]:
    """Return the files of images, those of a picture one after the other; ValueError where they cannot be."""
    own = [options.name(*row, i) for row in options.rows for i in range(len(options.amounts))]
    images = files_of(options.out, [f"{name}/{each}" for name in names for each in own] if names[1:] else own, "out")
    check_outputs({**images, "sheet": options.sheet, "json": options.json}, inputs, options.labels)
    return images


def first_group(model: Harmonized, picture: Picture) -> str:
    """Return the first group with a flow all of whose regions a picture has; ValueError where there is none."""
    there = set(model.present(picture.labels))
    found = next((name for name in model.flows if set(model.groups[name]) <= there), None)
    if found is None:
        raise ValueError(f"group: {picture.name} lacks a region of every group with a flow ({listed(model.flows)})")
    return found


def round_trip(model: Harmonized, picture: Picture, group: str, solver: Solver) -> float:
    """Return the largest error of the codes of a picture that go to z and back, in deviations over the training set."""
    flow = model.flows[group]
    codes = model.encode(picture.image, picture.labels)
    z = model.latent(codes, group, solver)
    again = flow.decode(z[None].to(model.device), solver)[0].cpu()
    own = codes[[model.classes.index(name) for name in model.groups[group]]].flatten()
    return float(((again - own) / flow.scale().cpu()).abs().max())


def rows_of(
    model: Harmonized,
    picture: Picture,
    group: str,
    found: Mapping[tuple[Space, int], list[Made]],
    amounts: tuple[float, ...],
) -> list[list[np.ndarray]]:
    """Draw a row per direction and space: the picture with the group outlined, then an image per amount.

    Returns:
        Rows of cells of a sheet.
    """
    rows = []
    for (space, direction), made in found.items():
        where = "z" if space == "z" else "style space"
        first = regions_cell(model, picture, model.groups[group], f"{group}, {where}, direction {direction}")
        rows.append(
            [first, *(image_cell(model, each.image, f"step {amount:g}") for amount, each in zip(amounts, made, strict=True))]
        )
    return rows
