"""Edit a picture step by step: every --step replaces regions, everything else keeps its codes bit for bit (MixSyn, Fig. 12).

    mixsyn-fast mixsyn edit --sheet chain.png                               pictures drawn by code, the shipped model
    mixsyn-fast mixsyn edit --base c.jpg --step window=a.jpg --step door=b.jpg,shop=b.jpg --kind folder --sheet chain.png
    mixsyn-fast mixsyn edit --base c.jpg --step door=none --step window=a.jpg --coupled --kind folder --out-dir chain

An edit runs the encoders of the replaced regions alone, then decoder and generator where these regions are and were: all
their layers keep what they had elsewhere. The table says what a step took against encoding and making everything anew, and
how far pixels outside the replaced regions moved (grey levels, 0 to 255). --outside made runs both everywhere: then all may
move, and a step that takes a region from the base again undoes the edit bit for bit. --outside composition | image: as made,
then the old composition or image is put back. Codes that the chain has had are remembered, and no encoder runs for them.
REGION=none removes a region; --coupled also replaces the regions that training couples with a named one (an eye with the
other). --kind, size and --keep: see `mixsyn-fast mixsyn compose --help`. A base without steps is made anew. --out-dir gets
every step's image and label map, 00_start.png first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixsyn_fast.writing import write_json

from ..pictures.options import (
    check_outputs,
    check_png,
    files_named,
    region_sources,
    write_image,
    write_labels,
    write_sheet,
)
from ..pictures.picture import Picture
from ..pictures.sheets import (
    captioned,
    cell_size,
    enlarged,
    lines_for,
    outlined,
    region_legend,
    soft_colours,
    source_colour,
)
from ..settings import at_least, one_of, repeated
from ..sheets import contact_sheet
from .compose import (
    MixSynOptions,
    Opened,
    drawn_pictures,
    pasted_from,
    sequential_cell,
    sequential_steps,
    split_regions,
)
from .model import Composed, Drift, Edited, MixSyn, Outside, Seconds

_GAIN = 4  # of the differences on the sheet


@dataclass(frozen=True)
class Step:
    """One edit of a chain and what it took."""

    regions: dict[str, Picture | None]
    """What was replaced, and by whose; None: it went."""
    result: Edited
    full: Seconds
    """Encoding everything anew instead."""
    drift: Drift
    """From the picture before this step."""


@dataclass(frozen=True)
class Options(MixSynOptions):
    """Options of the command."""

    base: str | None = None  # image to start from
    step: tuple[str, ...] = repeated()
    """REGION=FILE[,REGION=FILE]: replace these regions; once per step, in the order of the steps. REGION=none: it goes"""
    out: Path = Path("edited.png")  # the last image
    sheet: Path | None = None  # also write a contact sheet of all steps (PNG)
    json: Path | None = None  # also write the table (JSON; seconds, grey levels 0 to 255)
    compare: bool = False
    """on the sheet, copy-paste and sequential transfer on the base's own label map beside every step (Fig. 5-7)"""
    seed: int = 0  # of the pictures that are drawn where none are given
    coupled: bool = False  # regions that training couples with a named one come along: an eye, and the other one
    outside: Literal["made", "composition", "image", "layers"] = "layers"
    """what an edit leaves outside of its regions: nothing, their composition, the image too, which is then a blend, or
    what every layer made there"""
    out_dir: Path | None = None  # also write image and label map of the start and of every step into this folder

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0)
        check_png(self, "out", "sheet")
        one_of(self, outside=("made", "composition", "image", "layers"))
        if self.step and not self.base:
            raise ValueError("base: expected an image to start from, got none")
        if self.compare and self.sheet is None:
            raise ValueError("compare: needs --sheet FILE.png to draw on")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    entries = [split_regions(step) for step in options.step]
    outputs: dict[str, Path | None] = {name: getattr(options, name) for name in ("out", "sheet", "json")}
    names = ["00_start", *(f"{number:02d}_{_parts(step)}" for number, step in enumerate(entries, 1))]
    if options.out_dir is not None:
        places = [options.out_dir / f"{name}{end}.png" for name in names for end in ("", "_labels")]
        outputs |= {f"out_dir: {place.name}": place for place in places}
    given = [file for step in entries for file in files_named(step)]
    check_outputs(outputs, [*([options.base] if options.base else []), *given], options.labels)
    opened = Opened(options)
    mixsyn = opened.mixsyn
    files = [region_sources(step, "step", mixsyn.classes) for step in entries]
    base = opened.picture(options.base) if options.base else None
    wanted = [opened.regions(step) for step in files]
    opened.reader.check_labels_used()
    if base is None:
        base, drawn = drawn_steps(mixsyn, options.seed)
        wanted = [dict(step) for step in drawn]
        files = [{name: picture.name for name, picture in step.items()} for step in drawn]
        names = ["00_start", *(f"{number:02d}_{'_'.join(step)}" for number, step in enumerate(files, 1))]
    if options.coupled:
        wanted = [mixsyn.coupled(step) for step in wanted]  # type: ignore[misc]
    start, steps = chain(mixsyn, base, wanted, options.outside)
    if steps:
        print(table(steps))
    every = [opened.result(made, options.base) for made in (start, *(step.result for step in steps))]
    write_image(every[-1].image, options.out)
    if options.out_dir is not None:
        for name, result in zip(names, every, strict=True):
            write_image(result.image, options.out_dir / f"{name}.png")
            write_labels(result.labels, len(mixsyn.classes), options.out_dir / f"{name}_labels.png")
    if options.sheet:
        every_step = [(name, picture) for step in steps for name, picture in step.regions.items() if picture is not None]
        last = steps[-1].result if steps else start
        others = opened.others(last, base, base, every_step)
        write_sheet(sheet(mixsyn, base, start, steps, options.compare, others), options.sheet)
    if options.json:
        found: dict[str, Any] = {
            "model": options.model or "shipped",
            "size": list(mixsyn.size),
            "base": options.base or base.name,
            "outside": options.outside,
            "steps": [numbers(step, given) for step, given in zip(steps, files, strict=True)],
        }
        write_json(options.json, found)
        print(f"written: {options.json}")
    return 0


def _parts(step: Sequence[str]) -> str:
    """Return the names of a step's regions as part of a file's name."""
    return "_".join(entry.partition("=")[0].strip() for entry in step)


def drawn_steps(mixsyn: MixSyn, seed: int, count: int = 3) -> tuple[Picture, list[dict[str, Picture]]]:
    """Draw a base and edits of it, for who has no pictures: its largest groups of regions, each from another picture.

    Args:
        mixsyn: the model.
        seed: of the drawings.
        count: edits, fewer where the base has fewer groups.

    Returns:
        The base, and per step region -> picture; regions that the model couples come together.

    Raises:
        ValueError: nothing drawn has the model's regions.
    """
    base, *others = drawn_pictures(mixsyn, count + 1, seed)
    areas = np.bincount(base.labels[base.labels >= 0], minlength=len(mixsyn.classes))
    steps: list[dict[str, Picture]] = []
    for group in sorted(mixsyn.config.groups, key=lambda group: -int(areas[list(group)].sum())):
        names = {mixsyn.classes[k] for k in group if areas[k]}
        for picture in others[: 1 if len(steps) < count else 0]:
            if names & set(mixsyn.regions_of(picture)):
                steps.append(dict.fromkeys([n for n in mixsyn.regions_of(picture) if n in names], picture))
                others.remove(picture)
    return base, steps


def chain(
    mixsyn: MixSyn, base: Picture, wanted: Sequence[Mapping[str, Picture | None]], outside: Outside = "made"
) -> tuple[Composed, list[Step]]:
    """Edit a picture step by step.

    Args:
        mixsyn: the model.
        base: picture to start from.
        wanted: per step, region -> picture that it is taken from; None: it goes.
        outside: what stays of the rest: see :meth:`Editor.replace`.

    Returns:
        The start (the base as the model reconstructs it), and the steps.

    Raises:
        ValueError: as :meth:`Editor.replace`.
    """
    for first in wanted[:1]:
        # untimed: the first use of a shape allocates memory and lays out weights
        mixsyn.editor(base).replace(first, outside=outside)
    editor = mixsyn.editor(base)
    start = before = editor.current
    if outside == "layers":
        editor.keep_layers()
    steps = []
    for regions in wanted:
        result = editor.replace(regions, outside=outside)
        drift = editor.drift(before, result, tuple(regions))
        steps.append(Step(dict(regions), result, editor.full_pass().seconds, drift))
        before = result
    return start, steps


def numbers(step: Step, files: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what was measured about a step, for JSON."""
    return {
        "regions": dict(files),
        "encoded": list(step.result.encoded),
        "seconds": {**dataclasses.asdict(step.result.seconds), "total": step.result.seconds.total},
        "full_pass_seconds": {**dataclasses.asdict(step.full), "total": step.full.total},
        "drift": dataclasses.asdict(step.drift),
    }


def table(steps: Sequence[Step]) -> str:
    """Return time and drift of every step as text."""
    rows = [
        ["step", "edit", "full pass", "faster", "encoders", "all encoders", "drift outside: mean", "largest", "relabelled"]
    ]
    for number, step in enumerate(steps, 1):
        edit, full, drift = step.result.seconds, step.full, step.drift
        rows.append(
            [
                f"{number} {', '.join(step.regions)}",
                f"{edit.total * 1e3:.1f} ms",
                f"{full.total * 1e3:.1f} ms",
                f"{full.total / edit.total:.2f} x",
                f"{edit.encode * 1e3:.1f} ms",
                f"{full.encode * 1e3:.1f} ms",
                f"{drift.mean_outside:.2f}",
                f"{drift.max_outside:.0f}",
                f"{drift.relabelled_outside:.1%}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def sheet(
    mixsyn: MixSyn,
    base: Picture,
    start: Composed,
    steps: Sequence[Step],
    compare: bool = False,
    others: Sequence[Sequence[np.ndarray]] = (),
) -> np.ndarray:
    """Draw the chain: per step composition, new image, its change, baselines on demand, and the sources of the step.

    Args:
        mixsyn: the model.
        base: picture that the chain starts from.
        start: the chain's first picture.
        steps: its edits.
        compare: copy-paste and sequential transfer as well.
        others: further rows, of other generators.

    Returns:
        (H, W, 3) uint8.
    """
    size = cell_size(mixsyn.size)
    colours: dict[int, int] = {id(base): 0}  # picture -> number of its colour
    for step in steps:
        for picture in step.regions.values():
            if picture is not None:
                colours.setdefault(id(picture), len(colours))
    every = [(name, picture) for step in steps for name, picture in step.regions.items() if picture is not None]
    transferred = sequential_steps(mixsyn, base, every) if compare else []

    def source(picture: Picture, names: Sequence[str]) -> np.ndarray:
        colour = source_colour(colours[id(picture)])
        drawn = outlined(picture, [mixsyn.classes.index(name) for name in names], colour, size)
        return captioned(drawn, f"{picture.name}: {', '.join(names)}", colour, lines)

    per_step: list[dict[int, tuple[Picture, list[str]]]] = []
    for step in steps:
        used: dict[int, tuple[Picture, list[str]]] = {}
        for name, picture in ((name, picture) for name, picture in step.regions.items() if picture is not None):
            used.setdefault(id(picture), (picture, []))[1].append(name)
        per_step.append(used)
    captions = [f"{picture.name}: {', '.join(names)}" for used in per_step for picture, names in used.values()]
    lines = lines_for(captions, size[1])
    first = captioned(enlarged(base.image, size), f"{base.name}: base", source_colour(0), lines)
    rows = [[*_pictures(start, "start", size), *([_blank(size)] * (3 if compare else 1)), first]]
    before, done = start, 0
    for step, used in zip(steps, per_step, strict=True):
        result = step.result
        cells = _pictures(result, ", ".join(step.regions), size)
        change = np.abs(result.image.astype(np.int16) - before.image) * _GAIN
        cells.append(captioned(enlarged(change.clip(0, 255).astype(np.uint8), size), f"change x {_GAIN}"))
        if compare:
            done += sum(picture is not None for picture in step.regions.values())
            pasted = pasted_from(mixsyn, result, base)
            cells.append(captioned(enlarged(pasted.image, size), "copy-paste"))
            last = next((image for _, image in reversed(transferred[:done]) if image is not None), None)
            cells.append(sequential_cell(", ".join(step.regions), last, size))
        rows.append([*cells, *(source(picture, names) for picture, names in used.values())])
        before = result
    pictures = [start.labels, *(step.result.labels for step in steps)]
    rows[0].append(region_legend(pictures, mixsyn.classes, size[0]))
    return contact_sheet([*rows, *map(list, others)])


def _pictures(made: Composed, caption: str, size: tuple[int, int]) -> list[np.ndarray]:
    return [
        captioned(soft_colours(made.composition, size), f"composition: {caption}"),
        captioned(enlarged(made.image, size), f"new image: {caption}"),
    ]


def _blank(size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), 24, np.uint8)
