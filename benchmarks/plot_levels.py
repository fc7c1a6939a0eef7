"""Time of a training step of the class- and layer-wise VAE against its number of levels, from benchmarks/results.

python -m benchmarks.plot_levels [--out FILE.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import schema
from .figure import save

FILE = "clvae_cpu.json"
LINES = {"published": ("plain PyTorch, as published", "#b8bcc4"), "dense": ("plain PyTorch, vectorised", "#7d838f")}
LINES["ours"] = ("mixsyn_fast", "#4e79a7")
Points = dict[str, dict[str, list[list[float]]]]


def points(results: Mapping[str, Mapping[str, Any]]) -> Points:
    """Return K -> contender -> [L, seconds] of every row; ValueError where there is none."""
    found: Points = {}
    for row in results[FILE]["rows"]:
        if not row["case"].startswith("clvae/levels"):
            continue
        of = found.setdefault(str(row["settings"]["classes"]), {})
        for name, entry in row["contenders"].items():
            if entry["timing"]:
                of.setdefault(name, []).append([row["settings"]["levels"], float(entry["timing"]["median"])])
    if not found:
        raise ValueError(f"{FILE}: no row clvae/levels")
    return found


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write the plot, a panel for every number of classes; ImportError without matplotlib and pillow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = points(results)
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.4 * len(found), 3.2), layout="constrained", squeeze=False)
    for axis, (classes, of) in zip(axes[0], found.items(), strict=True):
        for name, (text, colour) in LINES.items():
            levels, seconds = zip(*sorted(of.get(name, [])), strict=True) if name in of else ((), ())
            axis.plot(levels, seconds, marker="o", color=colour, label=text)
        axis.set(title=f"K = {classes}", xlabel="levels L", ylabel="seconds a training step", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    machine = results[FILE]["machine"]
    figure.supxlabel(f"128 x 128, batch 4, ngf 32, float32; {machine['cpu']}, {machine['cores']} cores", fontsize=8)
    save(figure, path, dpi=110, shows=json.dumps(found))
    pyplot.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_levels", description=(__doc__ or "").split("\n")[0])
    default = schema.PICTURES / "clvae_levels.png"
    parser.add_argument("--out", type=Path, default=default, help="default docs/pictures/clvae_levels.png")
    print(draw(schema.committed(), parser.parse_args(arguments).out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
