"""Plot how the ops grow: masked_roi_pool with the number of regions, the attention pair with the number of positions.

    python -m benchmarks.plot_ops [--out DIR] [--only pool|attention] [--repeat N] [--seconds S] [--device cuda]
                                  [--regions 1,8,64] [--sides 32,64] [--from FILE]

Writes `plot_ops_<device>.json` and, from it, `masked_roi_pool_<device>.png` (time against K = 1 to 512, regions being
random Voronoi cells; the loop over classes up to K = 64) and `attention_<device>.png` (time of pooling and spreading
against H*W = 32^2 to 512^2). Needs matplotlib. `--from FILE` draws an earlier JSON file again without measuring. The
measuring is that of `benchmarks.run_ops`, gates included.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import jsonable

from . import run_ops, schema, tables
from .cases import Labels
from .figure import save as save_figure
from .ops.attention import AttentionCase, PairBench
from .ops.masked_roi_pool import PoolBench, PoolCase
from .schema import PICTURES, RESULTS
from .timing import heading, machine_line, measure_rates, save

REGIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SIDES = (32, 64, 128, 256, 512)
LOOPED = 64  # regions up to which the loop over classes is run
PLOTS = ("pool", "attention")
_STYLES = {  # contender -> colour, line
    "per-class": ("#b07aa1", "-"),
    "scatter": ("#e15759", "-"),
    "eager": ("#e15759", "-"),
    "compile": ("#f28e2b", "-"),
    "native": ("#4e79a7", "-"),
    "triton": ("#59a14f", "-"),
    "floor": ("#555555", "--"),
}


def pool_case(regions: int, side: int, dtype: str) -> PoolCase:
    """The large shape of the op's table, on random cells."""
    return PoolCase(64, side, 4, "cells", "max", dtype=dtype, cells=regions)


def points_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all points of the chosen plots."""
    arguments = ["--device", options.device, "--modes", "forward", "--repeat", str(options.repeat), "--no-resident"]
    arguments += ["--seconds", str(options.seconds), "--dtype", options.dtype]
    rows_of = run_ops.parse([*arguments, *([] if options.compile else ["--no-compile"])])
    result = heading("plot", rows_of.device, repeat=options.repeat)
    result["rates"] = rates = measure_rates(rows_of.device)
    start = time.perf_counter()
    points: list[tuple[int, Any, Any, Sequence[str]]] = []
    if "pool" in options.only:
        for k in options.regions:
            case = pool_case(k, options.pool_side, options.dtype)
            points.append((k, PoolBench, case, () if k <= LOOPED else ("per-class",)))
    if "attention" in options.only:
        for side in options.sides:
            case = AttentionCase("attention_pair", side=side, batch=1, dtype=options.dtype)
            points.append((side * side, PairBench, case, ()))
    for x, kind, case, without in points:
        with progress(case.name):
            (row,) = run_ops.run_case(kind, case, Labels(None), rates, rows_of, without)
        row["facts"]["x"] = x
        result["rows"].append(jsonable(row))
        times = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in _times(result["rows"][-1]).items())
        print(f"{case.name}: {times}", flush=True)
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result | tables.faults(result["rows"])


def _times(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of every contender of a row, and its floor."""
    timed = {name: entry["timing"] for name, entry in row["contenders"].items() if entry.get("timing")}
    return {**{name: float(timing["median"]) for name, timing in timed.items()}, "floor": float(row["floor_s"])}


def plots_of(result: Mapping[str, Any], folder: Path, device: str) -> list[Path]:
    """Draw the plots that a result has points for; returns the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mixsyn_fast[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    texts = {
        PoolBench.op: ("masked_roi_pool", "regions K", "masked_roi_pool, maximum, {}"),
        PairBench.op: ("attention", "positions H*W", "spatial_attention_pool + channel_attention_spread, {}"),
    }
    files = []
    for op, (stem, axis, title) in texts.items():
        rows = sorted((row for row in result["rows"] if row["op"] == op), key=lambda row: row["facts"]["x"])
        if not rows:
            continue
        figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
        for name in dict.fromkeys(name for row in rows for name in _times(row)):
            points = [(row["facts"]["x"], seconds[name] * 1e3) for row in rows if name in (seconds := _times(row))]
            colour, line = _STYLES.get(name, ("#76b7b2", "-"))
            axes.plot(*zip(*points, strict=True), line, color=colour, marker="" if name == "floor" else "o", label=name)
        axes.set_xscale("log", base=2)
        ticks = [row["facts"]["x"] for row in rows]
        axes.set_xticks(ticks, [_tick(op, x) for x in ticks])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.set_xlabel(axis)
        axes.set_ylabel("ms, forward")
        axes.set_title(title.format(_shape(op, rows[0]["settings"])), fontsize=9)
        axes.grid(True, which="major", linewidth=0.4, alpha=0.6)
        axes.legend(fontsize=8)
        figure.text(0.01, -0.02, machine_line(result["machine"]), fontsize=5, color="#555555")
        files.append(folder / f"{stem}_{device}.png")
        save_figure(figure, files[-1], dpi=150, bbox_inches="tight")
        pyplot.close(figure)
    return files


def _tick(op: str, x: int) -> str:
    return str(x) if op == PoolBench.op else f"{math.isqrt(x)}\u00b2"


def _shape(op: str, settings: Mapping[str, Any]) -> str:
    if op == PoolBench.op:
        return "{batch} x {channels} x {side} x {side}, {layout}, {dtype}".format(**settings)
    return "K {maps}, N {features}, M {condition}, {layout}, {dtype}".format(**settings)


def _numbers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(",") if part)
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected positive integers separated by commas, got {text!r}")
    return values


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_ops", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results for the JSON, docs/pictures)")
    parser.add_argument("--only", choices=PLOTS, help="one of the plots")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="draw this JSON file, measure nothing")
    parser.add_argument("--repeat", type=int, default=9, help="rounds per point (default 9)")
    parser.add_argument("--seconds", type=float, default=2.0, help="soft limit for the timing of one point")
    parser.add_argument("--regions", type=_numbers, default=REGIONS, help="values of K")
    parser.add_argument("--sides", type=_numbers, default=SIDES, help="sides of the attention's maps")
    parser.add_argument("--pool-side", type=int, default=128, help="side of the pooled features")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, which compiles anew at every point")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args(arguments)
    if options.source is None and max(options.regions) > options.pool_side**2:
        parser.error(f"--regions: expected at most {options.pool_side**2}, one pixel each, got {max(options.regions)}")
    options.only = (options.only,) if options.only else PLOTS
    device = options.device.split(":")[0]
    if options.source is not None:
        try:
            result = schema.load(options.source)
        except ValueError as error:
            parser.error(f"--from: {error}")
        if result["kind"] != "plot":
            parser.error(f"--from: {options.source}: not a result of this program")
    else:
        result = points_of(options)
        print(f"written: {save(result, (options.out or RESULTS) / f'plot_ops_{device}.json')}")
    pictures = options.out or PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    try:
        files = plots_of(result, pictures, device)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    for path in files:
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
