"""Which labels of exemplars the attention hands to which labels of targets, and which labels it takes for alike.

    mixsyn-fast msca transfer                                       the shipped model, pictures drawn by code
    mixsyn-fast msca transfer --model runs/msca --data datasets/camvid --limit 100 --out transfer --json transfer.json

The transfer matrix and the dendrogram of labels of the paper's Appendix B (Fig. 10 and 12), over all ordered pairs of
different pictures of a set. Every picture is looked at once, whatever the number of pairs. The folder --out gets

* transfer.png: left the ratios of Fig. 10, row the exemplar's label, column the target's, rows summing to one over all
  labels; right their lift, how many times what the mean over the whole exemplar would hand over, for a frequent label
  receives much whatever the attention does;
* dendrogram.png: the most frequent labels clustered by their rows, the diagonal set to the second largest value of its row.

The paper does not say how labels are ranked, which distance joins clusters and whether gates are in: here by pixels,
--linkage, and --gates, for masking is part of its module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.writing import write_json

from ..evaluation.inputs import DataReference, ModelOnDataOptions, reference_of_model
from ..evaluation.report import save_figure
from ..pictures.options import check_outputs, check_suffix
from ..settings import at_least
from .config import SCALES
from .features import image_features
from .label_transfer import Carried, Transfer, carried, transfer_of
from .model import MSCA
from .pictures import VGGOptions

_SAID = 8  # pairs of labels that are printed
_LIFT = 3.0  # powers of two that the colours of the lift reach


@dataclass(frozen=True)
class Options(ModelOnDataOptions, VGGOptions):
    """Options of the command."""

    scale: int = 0  # scale of the attention that is looked at, 0 to 4; the paper takes the finest, 0
    gates: bool = True  # with feature masking (Eq. 6), where the model has it
    labels: int = 20  # most frequent labels that the matrix shows
    clustered: int = 25  # most frequent labels that are clustered
    linkage: Literal["average", "ward", "complete", "single"] = "average"  # distance of two clusters, of Euclidean ones
    out: Path = Path("transfer")  # folder of transfer.png and dendrogram.png
    json: Path | None = None  # write the whole matrices and the clusters

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, limit=2, scale=0, labels=1, clustered=2)
        check_suffix(self, ".json", "json")
        if self.scale >= SCALES:
            raise ValueError(f"scale: expected 0 to {SCALES - 1}, got {self.scale}")


@torch.no_grad()
def look_at(
    model: MSCA, reference: DataReference, problems: list[str], *, limit: int | None = None, scale: int = 0
) -> list[Carried]:
    """Return what every picture of a set gives and takes; those that cannot be used are named in `problems`.

    Args:
        model: the model.
        reference: pictures in its classes and size.
        problems: is appended to.
        limit: only the first so many pictures; None: all.
        scale: 0 (the finest) to 4.
    """
    assert reference.dataset is not None
    found = []
    names = reference.names()[:limit]
    with progress(f"looking at {len(names)} pictures"):
        for name in names:
            try:
                item = reference.dataset[reference.index[name]]
            except (ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
                continue
            image = torch.from_numpy(item.image.copy()).to(model.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            labels = torch.from_numpy(item.labels.astype(np.int64))[None].to(model.device)
            regions = RegionMap(labels, len(model.classes), ignore_index=-1)
            found.append(carried(model.alignment, image_features(model.alignment, model.vgg, image), regions, scale))
    return found


def clusters(transfer: Transfer, labels: Sequence[int], linkage: str) -> np.ndarray:
    """Return the tree of labels as scipy writes it, (n - 1, 4): what joins, at which distance, and how many labels.

    Raises:
        ValueError: fewer than two labels.
    """
    from scipy.cluster.hierarchy import linkage as joined

    tree: np.ndarray = joined(transfer.feature_vectors(labels), method=linkage)
    return tree


def draw_matrix(transfer: Transfer, labels: Sequence[int], classes: Sequence[str], path: Path) -> None:
    """Draw the ratios, and beside them their lift; PNG, whole or not at all."""
    from matplotlib.figure import Figure

    names = [classes[label] for label in labels]
    side = 1.6 + 0.28 * len(labels)
    figure = Figure(figsize=(2 * side + 1.5, side))
    ratios = transfer.ratios[np.ix_(labels, labels)]
    with np.errstate(divide="ignore"):
        lift = np.log2(transfer.lift[np.ix_(labels, labels)]).clip(-_LIFT, _LIFT)
    panels = [  # the first from blue to red, as in Fig. 10
        (ratios, "jet", "share of what a label hands over", 0.0, float(np.nanmax(ratios))),
        (lift, "RdBu_r", "log2 of it over global average pooling", -_LIFT, _LIFT),
    ]
    for place, (values, colours, title, least, most) in enumerate(panels, 1):
        axes = figure.add_subplot(1, 2, place)
        shown = axes.imshow(values, cmap=colours, vmin=least, vmax=most)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names if place == 1 else [""] * len(names), fontsize=7)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("label of the target", fontsize=8)
        if place == 1:
            axes.set_ylabel("label of the exemplar", fontsize=8)
        figure.colorbar(shown, ax=axes, fraction=0.046)
    save_figure(figure, path)


def draw_dendrogram(tree: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the tree of labels; PNG, whole or not at all."""
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import dendrogram

    figure = Figure(figsize=(5, 1 + 0.22 * len(names)))
    axes = figure.add_subplot(1, 1, 1)
    dendrogram(tree, labels=list(names), orientation="left", ax=axes, leaf_font_size=7)
    axes.set_xlabel("distance of rows of the transfer matrix", fontsize=8)
    save_figure(figure, path)


def strongest(transfer: Transfer, labels: Sequence[int], classes: Sequence[str], count: int = _SAID) -> list[str]:
    """Return lines about the pairs of different labels with the greatest lift."""
    lift, ratios = transfer.lift, transfer.ratios
    pairs = [(lift[a, b], a, b) for a in labels for b in labels if a != b and np.isfinite(lift[a, b])]
    return [
        f"{classes[a]} -> {classes[b]}: {ratios[a, b]:.3f} of what it hands over, {value:.2f} times the mean's"
        for value, a, b in sorted(pairs, reverse=True)[:count]
    ]


def figures(transfer: Transfer, classes: Sequence[str], labels: Sequence[int], tree: np.ndarray | None) -> dict[str, Any]:
    """Return what --json holds."""
    return {
        "pairs": transfer.pairs,
        "classes": list(classes),
        "shares": transfer.shares,
        "ratios": transfer.ratios,
        "lift": transfer.lift,
        "clustered": [classes[label] for label in labels],
        "tree": tree,
    }


def main(options: Options) -> int:
    """Run the command; 0, 1 where pictures cannot be read (all named), or an error for what the user can mend."""
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {options.out}")
    matrix, drawing = options.out / "transfer.png", options.out / "dendrogram.png"
    check_outputs({"out": matrix, "json": options.json})
    model = options.open()
    reference = reference_of_model(options, model.classes, model.size)
    problems: list[str] = []
    pictures = look_at(model, reference, problems, limit=options.limit, scale=options.scale)
    gate = model.alignment.aligner(options.scale).gate if options.gates else None
    if len(pictures) < 2:
        raise ValueError(f"data: expected at least two pictures that can be used, got {len(pictures)} {problems[:3]}")
    transfer = transfer_of(pictures, gate)
    shown, clustered = transfer.frequent(options.labels), transfer.frequent(options.clustered)
    draw_matrix(transfer, shown, model.classes, matrix)
    print(f"written: {matrix}")
    tree = None
    if len(clustered) > 1:
        tree = clusters(transfer, clustered, options.linkage)
        draw_dendrogram(tree, [model.classes[label] for label in clustered], drawing)
        print(f"written: {drawing}")
    else:
        print("no dendrogram: one label alone")
    if options.json:
        write_json(options.json, figures(transfer, model.classes, clustered, tree))
        print(f"written: {options.json}")
    print(f"{transfer.pairs} pairs of {len(pictures)} pictures; strongest between different labels:")
    for line in strongest(transfer, shown, model.classes):
        print(f"  {line}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0
