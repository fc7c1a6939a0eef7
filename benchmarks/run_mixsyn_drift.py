"""What an edit with MixSyn does to the rest of the picture, and what it takes of a full pass, region by region.

    python -m benchmarks.run_mixsyn_drift --data DIR [--model FILE|RUN]

Of the first --limit pictures of the validation part each gets one region after another from the next picture, in every
way of `Editor.replace(outside=...)`. A row is a region, over the pairs of pictures that both have it: share of the picture
outside of the edited area, mean change there and inside in grey levels, and seconds: of the edit, codes known and layers
kept, as in a chain, and of a full pass, which encodes all regions (medians, one thread).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

import torch
from mixsyn_fast.models.data import open_source
from mixsyn_fast.models.mixsyn.model import MixSyn, Outside
from mixsyn_fast.models.pictures.picture import Picture, pictures_of

from . import schema, tables
from .timing import heading, save

REGIONS = ("facade", "window", "molding", "shop", "door")
WAYS: tuple[Outside, ...] = get_args(Outside)


def pairs(mixsyn: MixSyn, pictures: Sequence[Picture], region: str) -> Iterator[tuple[Picture, Picture]]:
    """Yield each picture and the next one, where both have the region at the model's size."""
    for picture, other in zip(pictures, [*pictures[1:], *pictures[:1]], strict=True):
        if all(region in mixsyn.regions_of(each) for each in (picture, other)):
            yield picture, other


def seconds_of(mixsyn: MixSyn, picture: Picture, other: Picture, region: str, way: Outside, rounds: int) -> list[float]:
    """Return the seconds of edits to and fro; the first two, which encode and keep layers, are left out."""
    editor, found = mixsyn.editor(base=picture), []
    for source in [other, picture] * (rounds + 1):
        began = time.perf_counter()
        editor.replace({region: source}, outside=way)
        found.append(time.perf_counter() - began)
    return found[2:]


def scores(mixsyn: MixSyn, pictures: Sequence[Picture], region: str, rounds: int) -> dict[str, Any]:
    """Return the row of a region: means over the pairs of pictures, medians of seconds."""
    share: list[float] = []
    outside: dict[str, list[float]] = {way: [] for way in WAYS}
    inside: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {"full pass": [], **{way: [] for way in WAYS}}
    for picture, other in pairs(mixsyn, pictures, region):
        for way in WAYS:
            editor = mixsyn.editor(base=picture)
            before = editor.current
            drift = editor.drift(before, editor.replace({region: other}, outside=way), (region,))
            outside[way].append(drift.mean_outside)
            inside[way].append(drift.mean_inside)
            seconds[way] += seconds_of(mixsyn, picture, other, region, way, rounds)
        share.append(drift.outside)
        for _ in range(2 * rounds):
            began = time.perf_counter()
            editor.full_pass()
            seconds["full pass"].append(time.perf_counter() - began)
    if not share:
        return {}

    def each(values: Mapping[str, Sequence[float]], of: Callable[[Sequence[float]], float]) -> dict[str, float]:
        return {name: of(found) for name, found in values.items()}

    changes = {"outside": each(outside, fmean), "inside": each(inside, fmean)}
    return {"pictures": {"pairs": len(share), "share outside": fmean(share)}, **changes, "seconds": each(seconds, median)}


def main(argv: Sequence[str] | None = None) -> int:
    """Edit, measure, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set with a validation part")
    parser.add_argument("--kind", default="auto", help="its layout (default: by what it holds)")
    parser.add_argument("--model", default="", help="file or run folder (default: the shipped weights)")
    parser.add_argument("--regions", default=",".join(REGIONS), help="regions, one after another (default %(default)s)")
    parser.add_argument("--limit", type=int, default=8, help="pictures (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed edits there and back of a pair (default %(default)s)")
    parser.add_argument("--out", type=Path, default=schema.RESULTS / "mixsyn_quality_drift.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.monotonic()
    mixsyn = MixSyn.load(args.model) if args.model else MixSyn.shipped()
    source = open_source(args.data, args.kind, split="val")
    pictures = pictures_of(source, range(args.limit))
    result = heading("evaluation", labels=Path(args.data).name)
    settings: Mapping[str, Any] = {"model": Path(args.model).name or "shipped", "limit": args.limit, "threads": 1}
    for region in args.regions.split(","):
        found = scores(mixsyn, pictures, region, args.rounds)
        if not found:
            result["left_out"].append(f"{region}: no two pictures in a row have it")
            continue
        case, facts = f"drift/{region}", {"scores": found}
        result["rows"].append(
            schema.row(op="mixsyn", case=case, mode="evaluation", settings=settings, contenders={}, facts=facts)
        )
    result["seconds"] = round(time.monotonic() - began, 1)
    save(result, args.out)
    print(tables.render(result, markdown=False))
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
