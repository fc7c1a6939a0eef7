"""Time of MSCA against the number of attention maps K, and against the exemplar's size, from benchmarks/results.

python -m benchmarks.plot_msca [--results FILE.json] [--out FILE.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import schema
from .figure import save

FILE = "msca_cpu.json"
LINES = {"dense": ("plain PyTorch", "#7d838f"), "ours": ("mixsyn_fast", "#4e79a7"), "floor": ("features alone", "#b8bcc4")}
PANELS = {
    "msca/maps align": ("attention and first convolutions", "attention maps K at every scale", "maps"),
    "msca/maps whole": ("the whole forward", "attention maps K at every scale", "maps"),
    "msca/exemplar half": ("the exemplar's half", "side of the exemplar in pixels", "size"),
}
Points = dict[str, dict[str, list[list[float]]]]


def points(result: Mapping[str, Any]) -> Points:
    """Return panel -> contender -> [K or side, seconds] of every row; ValueError where there is none."""
    found: Points = {}
    for row in result["rows"]:
        for panel, (_, _, setting) in PANELS.items():
            if row["case"].startswith(panel):
                asked = row["settings"][setting]
                of = found.setdefault(panel, {})
                for name, entry in row["contenders"].items():
                    if entry["timing"]:
                        of.setdefault(name, []).append([asked[0] if setting == "size" else asked, entry["timing"]["median"]])
    if not found:
        raise ValueError(f"{FILE}: no row of {' or '.join(PANELS)}")
    return found


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Write the plot, a panel for each that has rows; ImportError without matplotlib and pillow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = points(result)
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.2), layout="constrained", squeeze=False)
    for axis, (panel, of) in zip(axes[0], found.items(), strict=True):
        title, label, _ = PANELS[panel]
        for name, (text, colour) in LINES.items():
            if name in of:
                places, seconds = zip(*sorted(of[name]), strict=True)
                axis.plot(places, [1e3 * value for value in seconds], marker="o", color=colour, label=text)
        axis.set(title=title, xlabel=label, ylabel="milliseconds", ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [str(int(place)) for place in places])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    asked, machine = result["rows"][0]["settings"], result["machine"]
    about = f"trunk {asked['trunk']}, ngf {asked['width']}, batch {asked['batch']}, float32"
    figure.supxlabel(f"{about}; {machine['cpu']}, {machine['cores']} cores", fontsize=8)
    save(figure, path, dpi=110, shows=json.dumps(found))
    pyplot.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_msca", description=(__doc__ or "").split("\n")[0])
    default = schema.PICTURES / "msca_times.png"
    parser.add_argument("--results", type=Path, default=schema.RESULTS / FILE, help=f"default benchmarks/results/{FILE}")
    parser.add_argument("--out", type=Path, default=default, help="default docs/pictures/msca_times.png")
    options = parser.parse_args(arguments)
    print(draw(schema.load(options.results), options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
