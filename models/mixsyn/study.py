"""Pairs for a user study: a composition and the copy-paste of the same segments, in an order that tells nothing.

    mixsyn-fast mixsyn study                                                pictures drawn by code, the shipped model
    mixsyn-fast mixsyn study --model runs/mixsyn --data datasets/cmp_facade --split val --pairs 30 --out study
    mixsyn-fast mixsyn study --out study --answers anna.csv --answers ben.csv

Every pair is one random composition of three to six pictures (coupled regions from one source, every picture gives a large
part), unpicked: --seed alone decides. Ours is A in half of the pairs; where no segment lies, the copy-paste has the nearest
pixel. The folder gets page.html, which shows the pairs, takes the answers and saves them as a file; images/; answers.csv for
who prefers a table; and key.csv, which says what is whose: keep it from the subjects. --sheet shows all of it at a glance, a
composition a row: new image, composition, copy-paste, the same segments transferred one after the other onto the label map
of the first source, and the sources. With --answers FILE (once per subject) nothing is drawn: votes are counted by the key.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_whole

from ..data import KINDS, ReaderOptions
from ..evaluation.votes import count, read_key, table, write_csv
from ..pictures.copy_paste import copy_paste
from ..pictures.files import save_image
from ..pictures.options import ModelOptions, check_outputs, drawn_source, open_matching, open_model
from ..pictures.picture import Picture, pictures_of
from ..pictures.sheets import captioned, soft_colours, source_cells
from ..settings import at_least, repeated
from ..sheets import contact_sheet, save_png
from .compose import sequential_steps, share_out
from .model import Composed, MixSyn

_METHODS = ("composition", "copy-paste")
_SOURCES = (3, 4, 5, 6)  # in turns
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{question}</title><style>
body {{ font-family: sans-serif; margin: 2em }} img {{ width: 256px }} td {{ padding: 0.5em; text-align: center }}
</style></head><body><h1>{question}</h1>
<form><table>
{rows}
</table><p><button type="button" onclick="save()">save the answers</button></p></form><script>
function save() {{
  const rows = [...document.querySelectorAll("input:checked")].map(one => one.name + "," + one.value);
  const file = new Blob(["row,answer\\n" + rows.join("\\n") + "\\n"], {{type: "text/csv"}});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file); link.download = "answers.csv"; link.click();
}}
</script></body></html>
"""


@dataclass(frozen=True)
class Options(ReaderOptions, ModelOptions):
    """Options of the command."""

    data: str | None = None  # folder of the data set; none: pictures drawn by code
    kind: Literal[("auto", *KINDS)] = "auto"  # type: ignore[valid-type]
    """what set it is; auto: by what the folder holds, and without a folder what the model knows"""
    split: Literal["train", "val", "test", "all"] = "all"  # part of the set
    pairs: int = 30  # how many pairs
    question: str = "Which picture looks more like a photograph?"  # above the page and the column of answers.csv
    answers: tuple[str, ...] = repeated()  # filled-in answers of a subject, to be counted by the key in --out
    seed: int = 0  # of sources, compositions and order, and of drawings
    out: Path = Path("study")  # folder of page, images, answers and key
    sheet: Path | None = None  # also write a contact sheet of all compositions (PNG)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, pairs=1, seed=0)


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    key = options.out / "key.csv"
    if options.answers:
        print(table(count(options.answers, read_key(key))))
        return 0
    files = {(row, letter): options.out / "images" / f"{row:02d}_{letter}.png" for row in range(1, options.pairs + 1)
             for letter in "AB"}  # fmt: skip
    page, answers = options.out / "page.html", options.out / "answers.csv"
    pictures = {f"image {p.name}": p for p in files.values()}
    check_outputs({"page": page, "key": key, "answers": answers, "sheet": options.sheet, **pictures})
    mixsyn = open_model(MixSyn, options.model, options.device)
    with progress("composing") as at:
        made = []
        for composed in compositions(mixsyn, options):
            made.append(composed)
            at(len(made), options.pairs)
    order = orders(options.pairs, options.seed)
    for (row, letter), file in files.items():
        composed = made[row - 1]
        method = order[row - 1]["AB".index(letter)]
        save_image(file, composed.image if method == _METHODS[0] else pasted(mixsyn, composed).image)
    lines = [
        f"<tr><td>{row}</td>"
        + "".join(
            f'<td><img src="images/{row:02d}_{letter}.png" alt="{letter}"><br><label>'
            f'<input type="radio" name="{row}" value="{letter}"> {letter}</label></td>'
            for letter in "AB"
        )
        + "</tr>"
        for row in range(1, options.pairs + 1)
    ]
    write_whole(page, _PAGE.format(question=html.escape(options.question), rows="\n".join(lines)))
    print(f"written: {page}")
    write_csv(answers, ["row", f"{options.question} (A / B)"], [[row, ""] for row in range(1, options.pairs + 1)])
    names = [" ".join(source.name for source in composed.sources) for composed in made]
    write_csv(key, ["row", "name", "A", "B"], [[i + 1, names[i], *methods] for i, methods in enumerate(order)])
    if options.sheet is not None:
        save_png(contact_sheet([row_of(mixsyn, composed) for composed in made]), options.sheet)
        print(f"written: {options.sheet}")
    return 0


def pasted(mixsyn: MixSyn, composed: Composed) -> Picture:
    """Return the copy-paste of a composition's segments, holes filled from the nearest pixel."""
    return copy_paste(composed.sources, composed.table, mixsyn.size, mixsyn.classes, holes="nearest")


def row_of(mixsyn: MixSyn, composed: Composed) -> list[np.ndarray]:
    """Draw a row of the sheet: new image, composition, copy-paste, sequential transfer onto the first source, sources."""
    size, sources = mixsyn.size, composed.sources
    regions = [(name, sources[index]) for name, index in composed.table.items() if index]
    steps = [image for _, image in sequential_steps(mixsyn, sources[0], regions) if image is not None]
    return [
        captioned(composed.image, "new image"),
        captioned(soft_colours(composed.composition, size), "composition"),
        captioned(pasted(mixsyn, composed).image, "copy-paste"),
        captioned(steps[-1].image if steps else mixsyn.fitted(sources[0]).image, "sequential"),
        *source_cells(sources, composed.table, mixsyn.classes, size, named=False),
    ]


def compositions(mixsyn: MixSyn, options: Options) -> Iterator[Composed]:
    """Compose as many pictures as there are to be pairs, of three to six sources in turns."""
    rng = np.random.default_rng(options.seed)
    most = max(_SOURCES)
    if options.data is None and options.kind == "auto":
        source = drawn_source(mixsyn.classes, mixsyn.size, most * 4, options.seed)
    else:
        drawn = {} if options.data else {"seed": options.seed, "count": most * 4, "size": mixsyn.size}
        reader = options.reader_options()
        source = open_matching(mixsyn.classes, options.data, options.kind, options.split, **drawn, **reader)
    if len(source) < most:
        raise ValueError(f"data: expected at least {most} pictures to compose from, got {len(source)} in {source.name}")
    for number in range(options.pairs):
        chosen = rng.permutation(len(source))[: _SOURCES[number % len(_SOURCES)]]
        pictures = [mixsyn.fitted(picture) for picture in pictures_of(source, [int(i) for i in chosen])]
        yield mixsyn.compose(dict(share_out(mixsyn, pictures, rng)))


def orders(pairs: int, seed: int) -> list[tuple[str, str]]:
    """Return what is A and what is B in every pair: each first in half of them (one more of either in an odd number)."""
    first = np.arange(pairs) % 2
    return [(_METHODS[k], _METHODS[1 - k]) for k in np.random.default_rng([seed, 1]).permutation(first).tolist()]
