"""`mixsyn-fast demo`: new pictures composed of regions of several ones, and what mixsyn_fast makes faster, on one sheet.

    mixsyn-fast demo                                        # sources drawn by code, the shipped model of facades
    mixsyn-fast demo --data my_facades --kind cmp_facade    # yours: images/ and labels/ with CMP Facade's ids 1 to 12,
    mixsyn-fast demo --data my_facades --kind folder        # or with a classes.txt: ids from 0 (--first-id 1: from 1)

Three to six pictures give a new one: a label map (composition) and an image that fits it. Below, times against plain
PyTorch: one such composition, and one pass of the SEAN generator at its published width. Both forms are the same mathematics
in another order; how far their results are apart stands beside the times, and more than 1e-4 fails the demo.

It takes two minutes at most where that can be done (--seconds): what is slow is repeated less often.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mixsyn_fast.machine import cores, cpu_name
from mixsyn_fast.progress import progress
from mixsyn_fast.runtime import keep_memory

from ..data import KINDS, ReaderOptions
from ..pictures.options import ModelOptions, check_png, open_model, write_sheet
from ..settings import at_least
from .budget import Budget
from .speed import Outcome, in_words, measure_sean, parts_table, table

if TYPE_CHECKING:
    import numpy as np
    from PIL import ImageDraw, ImageFont

    from ..data import Source
    from ..mixsyn.model import MixSyn

NUM_REGIONS = 19
"""Regions of the drawn faces, and of a folder that does not name its own."""
_COLOURS = {
    "label map": (240, 160, 60),
    "style encoder": (150, 110, 200),
    "region norms": (220, 80, 90),
    "convolutions": (70, 130, 200),
    "rest": (150, 155, 165),
    "encoders": (150, 110, 200),
    "decoder": (240, 160, 60),
    "generator": (70, 130, 200),
}

# ----------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Inputs:
    """What the demo works on."""

    images: np.ndarray
    """(B, H, W, 3) uint8, for SEAN."""
    labels: np.ndarray
    """(B, H, W) int32 or uint8 in [0, num_regions) or -1."""
    num_regions: int
    described: str
    composed: Source | None
    """Pictures to compose; None: those of the user have other regions than the model."""
    why_not: str = ""
    """What to tell the user then."""


def load_inputs(
    mixsyn: MixSyn,
    data: str | None = None,
    kind: str = "auto",
    *,
    batch: int = 1,
    size: int = 256,
    seed: int = 0,
    **reader: Any,
) -> Inputs:
    """Open what is to be composed, and label maps for SEAN: those of a data set, else drawn by code.

    Args:
        mixsyn: the model that composes.
        data: folder of the set; None: drawn by code.
        kind: what set it is.
        batch: images for SEAN.
        size: side of SEAN's images.
        seed: of drawings.
        reader: options of the set's reader.

    Raises:
        ValueError: `data` is no data set; names what is wrong.
    """
    from ..data import draw_batch, first_items, open_source
    from ..pictures.options import drawn_source, open_matching

    if data is None:
        try:
            drawn = drawn_source(mixsyn.classes, mixsyn.size, 100, seed)
        except ValueError:
            raise ValueError(
                f"model: knows {', '.join(mixsyn.classes)}, no facades as drawn by code: give --data DIR"
            ) from None
        images, labels = draw_batch("face", batch, size, seed=seed)
        return Inputs(images, labels, NUM_REGIONS, "drawn by code", drawn)
    path = Path(data)
    name = f"{path.resolve().parent.name}/{path.resolve().name}"
    try:
        source = _opened(data, kind, reader)
    except (ValueError, OSError) as error:
        raise ValueError(f"data: {error}") from None
    if source is None:  # images/ and labels/ without names of the regions, as for faces
        try:
            images, labels = first_items(open_source(path, "folder", "all", classes=NUM_REGIONS), batch, size)
        except ValueError as error:
            raise ValueError(f"data: {error}") from None
        why = f"{path} does not say what its regions are: give --kind cmp_facade (ids 1 to 12), or write classes.txt"
        return Inputs(images, labels, NUM_REGIONS, name, None, why)
    try:
        images, labels = first_items(source, batch, size)
    except (ValueError, OSError) as error:
        raise ValueError(f"data: {error}") from None
    composed, why = None, ""
    try:
        composed = open_matching(mixsyn.classes, data, kind, "all", **reader)
    except ValueError as error:  # the set itself is sound, for it was opened above
        why = str(error)
    return Inputs(images, labels, len(source.classes), name, composed, why)


def _opened(data: str, kind: str, reader: dict[str, Any]) -> Source | None:
    """Open a set; None for images/ and labels/ that no known set is recognised in."""
    from ..data import guess_kind, open_source

    if kind == "auto" and not reader:
        try:
            guess_kind(data)
        except ValueError:
            open_source(data, "folder", "all", classes=NUM_REGIONS)
            return None
    return open_source(data, kind, "all", "none", **reader)


# ----------------------------------------------------------------------------------------------------------- the times

_SHARE = 0.2  # of the time that is left, for repetitions of a composition: a pass of SEAN takes ten times as long


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {cores()} cores, {torch.get_num_threads()} threads"


def measure_composition(mixsyn: MixSyn, composed: Any, rounds: Iterable[int]) -> list[Outcome]:
    """Time one composition in plain PyTorch and with mixsyn_fast, once in each of the rounds."""
    from ..mixsyn.demo import cost

    with progress("timing one composition"):
        measured = cost(mixsyn, composed, rounds)
    outcomes = []
    for name, seconds in (("plain PyTorch, dense", measured.plain), ("mixsyn_fast", measured.fast)):
        parts = {"encoders": seconds.encode, "decoder": seconds.decode, "generator": seconds.generate}
        outcomes.append(Outcome(name, seconds.total, measured.repeated, measured.plain.total / seconds.total, parts=parts))
    outcomes[0].difference = outcomes[0].relative = 0.0
    outcomes[1].difference, outcomes[1].relative = measured.difference, measured.relative
    return outcomes


# -------------------------------------------------------------------------------------------------------- the picture

_INK, _SOFT, _PAPER = (28, 30, 36), (105, 110, 120), (250, 250, 248)
_MARGIN, _BAR, _SMALLEST_WIDTH = 30, 34, 1000  # pixels


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # an older pillow, or one without FreeType: one small built-in size
        return ImageFont.load_default()


def _bars(draw: ImageDraw.ImageDraw, title: str, outcomes: Sequence[Outcome], top: int, width: int) -> int:
    """Draw stacked horizontal bars, seconds per part of every measured form; return where they end, in pixels."""
    measured = [o for o in outcomes if o.seconds is not None]
    longest = max(o.seconds or 0.0 for o in measured)
    name_width, left = 230, _MARGIN
    scale = (width - name_width - 190) / longest
    draw.text((left, top), title, font=_font(18), fill=_INK)
    x, y = left + name_width, top + 30
    for part in next((o.parts for o in measured if o.parts), {}):
        draw.rectangle([x, y + 4, x + 14, y + 18], fill=_COLOURS[part])
        draw.text((x + 20, y), part, font=_font(16), fill=_INK)
        x += 52 + int(draw.textlength(part, font=_font(16)))
    y += 30
    for o in measured:
        draw.text((left, y + 3), o.name, font=_font(17), fill=_INK)
        x0 = float(left + name_width)
        total = sum(o.parts.values())
        for part, share in [(p, o.parts[p] / total) for p in o.parts] if total else [("", 1.0)]:
            x1 = x0 + share * (o.seconds or 0.0) * scale
            if x1 - x0 >= 0.5:
                draw.rectangle([x0, y, x1, y + _BAR - 10], fill=_COLOURS.get(part, (190, 193, 200)))
            x0 = x1
        text = in_words(o.seconds or 0.0) + (f"   {o.speed_up:.1f} x" if o.speed_up and o is not measured[0] else "")
        draw.text((x0 + 10, y + 3), text, font=_font(17), fill=_INK)
        y += _BAR
    return y + 16


def draw_sheet(
    title: str, line: str, pictures: np.ndarray | None, charts: Sequence[tuple[str, list[Outcome]]]
) -> np.ndarray:
    """Draw the demo's sheet.

    Args:
        title: large, at the top.
        line: small, below it.
        pictures: contact sheet (H, W, 3) uint8 of the compositions; None: none were made.
        charts: (title, forms) of every comparison of times.

    Returns:
        (H, W, 3) uint8.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    high, wide = pictures.shape[:2] if pictures is not None else (0, 0)
    width = 2 * _MARGIN + max(wide, _SMALLEST_WIDTH)
    height = 120 + high + sum(106 + _BAR * len(outcomes) for _, outcomes in charts)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), title, font=_font(28), fill=_INK)
    draw.text((_MARGIN, 60), line, font=_font(16), fill=_SOFT)
    top = 96
    if pictures is not None:
        sheet.paste(Image.fromarray(pictures), (_MARGIN, top))
        top += high + 30
    for chart, outcomes in charts:
        top = _bars(draw, chart, outcomes, top, width - 2 * _MARGIN)
    return np.asarray(sheet.crop((0, 0, width, top + 10)))


# -------------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Options(ReaderOptions, ModelOptions):
    """Options of `mixsyn-fast demo`; the model is MixSyn."""

    data: str | None = None
    """your pictures with label maps: composed where they have the model's regions; none: drawn by code"""
    kind: Literal[("auto", *KINDS)] = "auto"  # type: ignore[valid-type]
    """what set --data is; auto: by what the folder holds"""
    out: Path = Path("outputs/demo.png")  # the sheet
    rows: int = 5  # new pictures
    size: int = 256  # side of SEAN's images, a multiple of 32
    batch: int = 1  # images per run of SEAN
    ngf: int = 64  # width of SEAN; 64 as published
    seed: int = 0  # of the choice of sources, drawings, weights and noise
    repeat: int = 3  # timed runs of each form, if --seconds allow
    seconds: float = 120.0  # for all of it, but for --compile: where forms are slow they run less often, at least once
    compile: bool = False  # time torch.compile of SEAN too: minutes of compilation on two cores
    compile_seconds: float = 300.0  # give torch.compile this long

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size: expected a positive multiple of 32, got {self.size}")
        if not self.seconds > 0:
            raise ValueError(f"seconds: expected a positive number, got {self.seconds}")
        at_least(self, rows=1, batch=1, ngf=1, repeat=1)
        if self.seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {self.seed}")
        check_png(self, "out")
        if self.data is None and self.reader_options():
            raise ValueError(f"{next(iter(self.reader_options()))}: needs --data DIR")
        if self.data is not None and not Path(self.data).is_dir():
            raise ValueError(f"data: {self.data}: no such folder")


def main(options: Options) -> int:
    """Run `mixsyn-fast demo`; return the exit status (0: all forms agree, 1: they do not).

    Raises:
        ImportError: pillow or safetensors is missing.
        ValueError, OSError: an option, a file of the data or the model is wrong.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError("drawing the sheet needs pillow: pip install 'mixsyn_fast[models]'") from None
    from ..mixsyn import demo as composing
    from ..mixsyn.model import MixSyn

    budget = Budget(options.seconds + (options.compile_seconds if options.compile else 0.0))
    mixsyn = open_model(MixSyn, options.model, options.device)
    device = mixsyn.device
    if device.type == "cpu":
        keep_memory()  # for every form alike
    inputs = load_inputs(
        mixsyn,
        options.data,
        options.kind,
        batch=options.batch,
        size=options.size,
        seed=options.seed,
        **options.reader_options(),
    )
    where = _machine(device)
    print(f"mixsyn-fast demo on {where}; torch {torch.__version__}; pictures: {inputs.described}")
    charts, pictures, title = [], None, "mixsyn_fast"
    if inputs.composed is None:
        print(_advice(options, inputs, mixsyn))
    else:
        try:
            found = composing.pool(mixsyn, inputs.composed, options.seed)
        except (ValueError, OSError) as error:
            raise ValueError(f"data: {error}") from None
        with progress("composing"):
            made = composing.compositions(mixsyn, found, options.rows, options.seed)
        pictures = composing.sheet(mixsyn, made)
        most = max(made, key=lambda one: len(one.sources))
        outcomes = measure_composition(mixsyn, most, budget.share(_SHARE).rounds(options.repeat))
        count = f"{len(most.table)} regions of {len(most.sources)} pictures"
        charts.append((f"One composition, {count}, {mixsyn.size[0]} x {mixsyn.size[1]}", outcomes))
        title = "MixSyn: new pictures, each composed of regions of several"
    sean_times = measure_sean(
        inputs.images,
        inputs.labels,
        inputs.num_regions,
        ngf=options.ngf,
        seed=options.seed,
        rounds=budget.rounds(options.repeat),
        device=device,
        compile_seconds=options.compile_seconds if options.compile else 0.0,
    )
    sean = f"SEAN generator, {options.size} x {options.size}, {inputs.num_regions} regions, ngf {options.ngf}"
    charts.append((f"{sean}, batch {options.batch}, label map included", sean_times))
    for chart, outcomes in charts:
        print(f"\n{chart}, float32\n{table(outcomes)}\n\nits parts\n{parts_table(outcomes)}")
    line = f"{where}  |  torch {torch.__version__}  |  pictures: {inputs.described}"
    print()
    write_sheet(draw_sheet(title, line, pictures, charts), options.out)
    fast = [o for _, outcomes in charts for o in outcomes if o.name.startswith("mixsyn_fast")]
    worst = max(o.relative for o in fast if o.relative is not None)
    if worst > 1e-4:
        print(f"the outputs differ: relative difference {worst:.1e}", file=sys.stderr)
        return 1
    return 0


def _advice(options: Options, inputs: Inputs, mixsyn: MixSyn) -> str:
    """What the model can compose, and how to train one that can compose the user's pictures."""
    height, width = mixsyn.size
    return (
        f"no new pictures: {inputs.why_not}.\n"
        f"  {'The shipped model' if options.model is None else options.model} composes pictures with the regions "
        f"{', '.join(mixsyn.classes)}.\n"
        f"  Train one on yours:  mixsyn-fast train mixsyn --data {options.data} --size {height} --out runs/mine\n"
        f"  and compose:         mixsyn-fast demo --data {options.data} --model runs/mine\n"
        f"  Times below are measured on your label maps."
    )
