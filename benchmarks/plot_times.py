"""The bar chart of the README: seconds in plain PyTorch and with mixsyn_fast, from benchmarks/results.

python -m benchmarks.plot_times [--out FILE.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixsyn_fast.measure.contest import is_ours

from . import schema
from .figure import save
from .tables import seconds

# (text, file, beginning of the case, mode, contender in plain PyTorch)
BARS = (
    ("SEAN generator, 256 x 256", "models_cpu.json", "sean/k19/b1/", "forward", "dense"),
    ("SPADE generator, 151 classes", "models_cpu.json", "spade/k151/b1/", "forward", "dense"),
    ("CLADE generator, 151 classes", "models_cpu_more.json", "clade/k151/b1/", "forward", "dense"),
    ("MixSyn: one composition", "mixsyn_cpu.json", "mixsyn/composition", "forward", "dense"),
    ("SEAN: whole training step", "training_cpu.json", "training/sean/", "training", "dense"),
    ("MixSyn: whole training step", "mixsyn_training_cpu.json", "training/mixsyn/", "training", "dense"),
    ("StyleFusion: tree of 5 FusionNets", "ops_cpu.json", "fusion_hierarchy/faces/b1/", "forward", "eager"),
    ("MSCA: attention pair", "ops_cpu.json", "attention_pair/k16/n128/m64/2x128x128/channels_last", "forward", "eager"),
    ("Region pooling, 151 classes", "ops_cpu_pooling.json", "masked_roi_pool/max/k151/4x64", "forward", "scatter"),
)  # fmt: skip
_PLAIN, _OURS = "#b8bcc4", "#4e79a7"


def bars(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Return (text, seconds in plain PyTorch, ours) of every bar; ValueError for a row that is not there."""
    found = []
    for text, name, case, mode, plain in BARS:
        rows = (row for row in results[name]["rows"] if row["case"].startswith(case) and row["mode"] == mode)
        row = next(rows, None)
        if row is None:
            raise ValueError(f"{name}: no row {case} {mode}")
        medians = {n: entry["timing"]["median"] for n, entry in row["contenders"].items() if entry["timing"]}
        found.append((text, float(medians[plain]), min(float(value) for n, value in medians.items() if is_ours(n))))
    return found


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write the chart, with a palette of few colours; ImportError without matplotlib and pillow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = bars(results)
    figure, axes = pyplot.subplots(figsize=(8.4, 0.5 * len(found) + 0.9), layout="constrained")
    for y, (_, plain, ours) in enumerate(found):
        axes.barh(y - 0.19, 1, 0.36, color=_PLAIN, label="plain PyTorch" if y == 0 else None)
        axes.barh(y + 0.19, ours / plain, 0.36, color=_OURS, label="mixsyn_fast" if y == 0 else None)
        axes.text(1.01, y - 0.19, seconds(plain), va="center", fontsize=8, color="#555555")
        axes.text(ours / plain + 0.01, y + 0.19, f"{seconds(ours)}   {plain / ours:.1f} x", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), [text for text, _, _ in found], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, ncols=2, frameon=False, bbox_to_anchor=(1.0, 1.0))
    names = dict.fromkeys(name for _, name, *_ in BARS)
    machines = dict.fromkeys(f"{results[n]['machine']['cpu']}, {results[n]['machine']['cores']} cores" for n in names)
    figure.supxlabel(f"time of the same work, shorter is better; {'; '.join(machines)}; float32", fontsize=8)
    save(figure, path, dpi=110, shows=json.dumps(found))
    pyplot.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_times", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=schema.PICTURES / "times.png", help="default docs/pictures/times.png")
    print(draw(schema.committed(), parser.parse_args(arguments).out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
