"""Sheets for a user study: results of several methods beside each other, in an order that tells nothing (Sec. 4.4).

    mixsyn-fast harmonized study                                    faces drawn by code, with attention against without
    mixsyn-fast harmonized study --method ours=judged/images/hair/ours --method sean=judged/images/hair/sean --out study
    mixsyn-fast harmonized study --method ours=a --method sean=b --shown targets --shown looks --rows 30 --out study

Results of one name in all folders make a row (`mixsyn-fast harmonized evaluate --images` writes such folders). In every row
the methods stand in an order of their own, drawn by --seed, under the letters A, B, C ...; pictures of the same name in the
folders of --shown (target and reference, say) stand before them, under the folder's name. Of a result target_reference.png a
shown folder may also hold target.png or reference.png. Without --method the results are made here: hair of drawn faces by
the shipped model (--model: by another) with and without its attention, in drawn/.

The folder gets sheet_1.png, sheet_2.png ... (--per-sheet rows each), answers.csv to fill in (a line a row: the letter of the
one that looks best), and key.csv, which says what letter is whose: keep it from the subjects. Answers that somebody has
filled in there are never replaced. With --answers FILE (once per subject, filled in) nothing is drawn: the votes are counted
by the key and printed with their shares.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..evaluation.votes import answered, count, read_key, table, write_csv
from ..pictures.files import list_pictures, read_image, save_image
from ..pictures.options import ModelOptions, check_outputs, name_and_file, open_model, write_sheet
from ..pictures.sheets import captioned, cell_size, enlarged
from ..settings import at_least, repeated
from ..sheets import contact_sheet
from .model import Harmonized
from .pictures import drawn_pictures, regions_of

_KEY, _ANSWERS = "key.csv", "answers.csv"
_DRAWN, _REGION = 8, "hair"  # rows of results that are made here, and what is transferred


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    method: tuple[str, ...] = repeated()  # NAME=FOLDER: results of a method; once per method; none: made here
    shown: tuple[str, ...] = repeated()  # folder of pictures that stand before the results; once per column
    rows: int = 30  # most rows, drawn from all that there are
    per_sheet: int = 6  # rows of a sheet
    question: str = "Which result looks best?"  # written above the letters' column of answers.csv
    answers: tuple[str, ...] = repeated()  # filled-in answers.csv of a subject, to be counted by the key in --out
    seed: int = 0  # of the rows that are taken, of the order of the methods, and of drawings
    out: Path = Path("study")  # folder of sheets, answers and key
    json: Path | None = None  # with --answers: also write votes and shares (JSON)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, rows=1, per_sheet=1, seed=0)
        if self.answers and (self.method or self.shown):
            raise ValueError("answers: expected them or --method and --shown, got both")
        if self.json and not self.answers:
            raise ValueError("json: expected it with --answers, whose votes it gets, got it alone")
        if self.shown and not self.method:
            raise ValueError("method: expected results, NAME=FOLDER, to stand behind those of --shown, got none")


@dataclass(frozen=True)
class Row:
    """One question of the study."""

    name: str
    """Of the results."""
    methods: tuple[str, ...]
    """In the order of their letters."""


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    if options.answers:
        check_outputs({"json": options.json}, options.answers)
        votes = count(options.answers, read_key(options.out / _KEY))
        print(table(votes))
        if options.json:
            total = max(1, sum(votes.values()))
            shares = {name: {"votes": number, "share": number / total} for name, number in votes.items()}
            write_json(options.json, {"subjects": len(options.answers), "votes": sum(votes.values()), "methods": shares})
            print(f"written: {options.json}")
        return 0
    outputs = {"answers": options.out / _ANSWERS, "key": options.out / _KEY}
    check_outputs(outputs)
    if outputs["answers"].is_file() and answered(outputs["answers"]):
        raise ValueError(f"out: expected a folder without answers, got {outputs['answers']}, which somebody has filled in")
    most = len(string.ascii_uppercase)
    if options.method and not 2 <= len(options.method) <= most:
        raise ValueError(f"method: expected 2 to {most} methods, got {len(options.method)}")
    given = [name_and_file(entry, "method", "NAME=FOLDER") for entry in options.method]
    if len({name for name, _ in given}) < len(given):
        raise ValueError(f"method: expected every name once, got {', '.join(name for name, _ in given)}")
    columns = list(options.shown)
    folders = {name: list_pictures(folder) for name, folder in given}
    before = [list_pictures(folder) for folder in columns]
    if not given:
        made = drawn_results(options)
        columns = ["target", "reference"]
        before = [made.pop(name) for name in columns]
        folders = made
    rows = planned(folders, options.rows, options.seed)
    shown = [
        [find_shown(pictures, row.name, folder) for pictures, folder in zip(before, columns, strict=True)] for row in rows
    ]
    files = [options.out / f"sheet_{i + 1}.png" for i in range(-(-len(rows) // options.per_sheet))]
    inputs = [str(path) for pictures in (*folders.values(), *before) for path in pictures.values()]
    check_outputs({**outputs, **{f"sheet {i + 1}": path for i, path in enumerate(files)}}, inputs)
    headings = [Path(folder).name for folder in columns]
    with progress("drawing the sheets"):  # all of them before one is written: a picture may be damaged
        parts = [slice(i * options.per_sheet, (i + 1) * options.per_sheet) for i in range(len(files))]
        sheets = [sheet(rows[part], shown[part], folders, part.start, headings) for part in parts]
    for path, drawn in zip(files, sheets, strict=True):
        write_sheet(drawn, path)
    letters = string.ascii_uppercase[: len(folders)]
    write_csv(
        outputs["answers"], ["row", f"{options.question} ({' / '.join(letters)})"], [[i + 1, ""] for i in range(len(rows))]
    )
    write_csv(outputs["key"], ["row", "name", *letters], [[i + 1, row.name, *row.methods] for i, row in enumerate(rows)])
    print(f"{len(rows)} rows of {len(folders)} methods; {options.out / _ANSWERS} to fill in, {options.out / _KEY} to keep")
    return 0


def drawn_results(options: Options) -> dict[str, dict[str, Path]]:
    """Write transfers to drawn faces, with attention and without, and what they are of.

    Returns:
        "target", "reference", "attention" and "without" -> name -> file.

    Raises:
        ValueError, FileNotFoundError: a model without attention, which has nothing to compare; what loading says.
    """
    model = open_model(Harmonized, options.model, options.device)
    if model.attention is None:
        raise ValueError("model: expected one with attention, for its results with and without it are compared, got none")
    plain = model.without_attention()
    count = min(options.rows, _DRAWN)
    found: dict[str, dict[str, Path]] = {name: {} for name in ("target", "reference", "attention", "without")}
    with progress("transferring"):
        pictures = drawn_pictures(model, 2 * count, options.seed)
        pairs = list(zip(pictures[:count], pictures[count:], strict=True))
        for pair in pairs:
            regions_of(model, (_REGION,), pair, "seed")
        for target, reference in pairs:
            name = f"{target.name}_{reference.name}"
            both = (target.image, target.labels, reference.image, reference.labels, (_REGION,))
            images = (target.image, reference.image, *(each.transfer(*both).image for each in (model, plain)))
            for kind, image in zip(found, images, strict=True):
                found[kind][name] = options.out / "drawn" / kind / f"{name}.png"
                save_image(found[kind][name], image)
    print(f"written: {options.out / 'drawn'}: {_REGION} of {count} drawn faces by {options.model or 'the shipped model'}")
    return found


def planned(folders: Mapping[str, Mapping[str, Path]], most: int, seed: int) -> list[Row]:
    """Return the rows of a study: names that all methods have, as many as asked for, each with an order of its own.

    Every method stands under every letter equally often, up to one: orders are rotations of a drawn one, dealt in turns.

    Raises:
        ValueError: no name that all have; the message says what one of them lacks.
    """
    names = sorted(set.intersection(*(set(pictures) for pictures in folders.values())))
    if not names:
        first, second = list(folders)[:2]
        raise ValueError(
            f"method: expected results of the same names, got none that {first} and {second} and all others share"
        )
    rng = np.random.default_rng(seed)
    taken = sorted(rng.permutation(len(names))[:most].tolist())
    methods = list(folders)
    rows: list[Row] = []
    while len(rows) < len(taken):
        order = rng.permutation(len(methods))
        turns = [np.roll(order, i) for i in rng.permutation(len(methods))]
        for turn in turns[: len(taken) - len(rows)]:
            rows.append(Row(names[taken[len(rows)]], tuple(methods[k] for k in turn)))
    return rows


def find_shown(pictures: Mapping[str, Path], name: str, folder: str) -> Path:
    """Return the picture of a folder that belongs to a result.

    Raises:
        ValueError: there is none, or several for a name target_reference; the message names folder and result.
    """
    if name in pictures:
        return pictures[name]
    stem = name.rpartition("/")[2]
    parts = [(stem[:i], stem[i + 1 :]) for i, letter in enumerate(stem) if letter == "_"]
    found = {part for pair in parts for part in pair if part in pictures}
    if len(found) != 1:
        got = ", ".join(sorted(found)) or "none"
        raise ValueError(f"shown: {folder}: expected one picture called {name}, or as its target or reference, got {got}")
    return pictures[found.pop()]


def sheet(
    rows: Sequence[Row],
    shown: Sequence[Sequence[Path]],
    folders: Mapping[str, Mapping[str, Path]],
    first: int = 0,
    headings: Sequence[str] = (),
) -> np.ndarray:
    """Draw rows: number, pictures that stand before, results under their letters.

    Args:
        rows: of this sheet.
        shown: files that stand before, of every row.
        folders: method -> name -> file.
        first: how many rows other sheets have before these.
        headings: what the columns of `shown` are called.

    Returns:
        (H, W, 3) uint8.
    """
    drawn = []
    for number, (row, before) in enumerate(zip(rows, shown, strict=True), first + 1):
        results = [read_image(folders[method][row.name]) for method in row.methods]
        height, width = results[0].shape[:2]
        size = cell_size((height, width))
        names = headings or ("",) * len(before)
        cells = [
            captioned(enlarged(read_image(path), size), f"{number} {name}".strip())
            for path, name in zip(before, names, strict=True)
        ]
        cells += [
            captioned(enlarged(image, size), f"{number} {letter}")
            for image, letter in zip(results, string.ascii_uppercase, strict=False)
        ]
        drawn.append(cells)
    return contact_sheet(drawn)
