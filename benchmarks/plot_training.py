"""Plot the curves of training runs: losses per phase, validation figures, images per second.

python -m benchmarks.plot_training runs/sean runs/spade --out curves.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixsyn_fast.models.training.run import read_log

from .figure import save

SKIPPED = ("lr/", "loss_scale/")


def panels(logs: Iterable[list[dict[str, Any]]]) -> list[str]:
    """Return the entries to plot: every loss of every phase, the figures of the validation, images per second."""
    names = dict.fromkeys(name for lines in logs for line in lines for name in line)
    found = [n for n in names if "/" in n and not n.startswith(SKIPPED) and not n.endswith(("gradient_norm", "_r1", "/r1"))]
    return [n for n in found if not n.startswith("validation/")] + [
        *(n for n in found if n.startswith("validation/")),
        *(n for n in names if n == "images_per_second"),
    ]


def curve(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one entry of a log."""
    found = [(line["step"], float(line[name])) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def plot(runs: list[Path], out: Path) -> None:
    """Write the curves of the runs to a PNG; FileNotFoundError for a run without a log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {run.name: read_log(run) for run in runs}
    empty = [str(run) for run in runs if not logs[run.name]]
    if empty:
        raise FileNotFoundError(f"{empty[0]}: no log.jsonl with a line in it (expected a run folder)")
    names = panels(logs.values())
    rows = -(-len(names) // 4)
    figure, axes = pyplot.subplots(rows, 4, figsize=(15, 3 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        for run, lines in logs.items():
            axis.plot(*curve(lines, name), label=run, marker="." if name.startswith("validation") else None)
        axis.set(title=name.replace("/", ": ").replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    save(figure, out, dpi=80)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="the picture (default curves.png)")
    options = parser.parse_args(arguments)
    plot(options.runs, options.out)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
