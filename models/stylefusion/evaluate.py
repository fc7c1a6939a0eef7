"""How local StyleFusion's control is, against simpler ways to exchange a region's code (the paper's point; Fig. 10, 16).

    mixsyn-fast evaluate stylefusion --count 50 --out evaluation                  the shipped model
    mixsyn-fast evaluate stylefusion --model runs/full --compare no_stage1=runs/no_stage1 --compare no_global=runs/no_global

For every region, over --count samples: the code of the region changes between two random ones, all others stay, and the
change of pixels is measured. The share of it that lies inside the region's mask (of either image) is the locality; the
region's own share of the image is what a change spread evenly would have; the change inside says whether the region changes
at all. Ways:

* FusionNets: the model, and those of --compare (ablations); * correlation: those channels of S alone are exchanged whose
energy lies mainly in the region (M > 0.5, Eq. 1, over --images); * blend: the whole code, half and half.

The folder gets report.json (way -> region -> figures with intervals), report.md, scores.png (histograms over samples),
regions.png (every region by every way), and the mean changes as heat.png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mixsyn_fast
from mixsyn_fast.progress import progress

from ..evaluation.report import Report
from ..metrics.score import Score
from ..pictures.options import ModelOptions, check_outputs, name_and_file, open_model
from ..settings import at_least, repeated
from ..sheets import contact_sheet, save_png
from .correlation import energies
from .model import Heat, StyleFusion
from .pictures import check_node, heat_cell
from .segments import draw_codes

Swap = Callable[[Tensor, Tensor], Tensor]
OURS, CORRELATION, BLEND = "FusionNets", "correlation", "blend"
_EDITS = ("locality", "region_share", "change_inside", "change_outside")
_NOT_COMPUTED = {
    "identity, pose and look of the images (Fig. 8, 9, 12, 13, 15, 16)": "the paper shows them and has no figure for them",
    "edits by InterFaceGAN, GANSpace, StyleCLIP (Fig. 14)": "their directions belong to published generators of photographs",
    "images by the encoder e4e (Fig. 14, 15)": "its weights belong to such a generator; invert optimises a code instead",
}


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    compare: tuple[str, ...] = repeated()  # NAME=FILE: another model of the same generator and tree, an ablation say
    region: tuple[str, ...] = ()  # nodes that are judged; none: all but the root
    count: int | None = None  # samples of each region; none: 500, of the shipped model 200
    images: int = 64  # images over which channels are correlated with regions
    seed: int = 0  # of all codes
    batch: int = 8  # how many samples are made at a time
    out: Path = Path("evaluation")  # folder of the report

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, count=2, images=1, seed=0, batch=1)


def with_clusters(fusion: StyleFusion) -> tuple[str, ...]:
    """Return the nodes of a model whose regions have clusters."""
    names = () if fusion.segments is None else fusion.segments.names
    return tuple(node for node in fusion.nodes if set(fusion.tree.within(node)) & set(names))


@torch.no_grad()
def channel_correlations(fusion: StyleFusion, images: int, seed: int, batch: int = 8) -> dict[str, Tensor]:
    """Return M (Eq. 1) of every node of a model with segments, (S) each, over random images."""
    segments = fusion.segments
    if segments is None:
        raise ValueError("model: expected one with segments (mixsyn-fast stylefusion segments), got one without")
    nodes = with_clusters(fusion)
    regions = [fusion.tree.within(node) for node in nodes]
    inside: Tensor | float = 0.0
    whole: Tensor | float = 0.0
    for code in draw_codes(fusion.generator, images, fusion.tree.truncation, seed, batch):
        _, activations = fusion.generator.activations(code)
        own, every = energies(activations, segments.hard_masks(activations, regions))
        inside, whole = inside + own.sum(0), whole + every.sum(0)
    assert isinstance(inside, Tensor) and isinstance(whole, Tensor)
    found = inside / whole.clamp(min=torch.finfo(torch.float32).tiny)
    return dict(zip(nodes, found, strict=True))


def swaps(correlations: Mapping[str, Tensor], node: str) -> dict[str, Swap]:
    """Return the simpler ways to give a node another code."""
    mainly = correlations[node] > 0.5
    return {CORRELATION: lambda own, other: torch.where(mainly, other, own), BLEND: blended}


def blended(own: Tensor, other: Tensor) -> Tensor:
    """Return the codes half and half, which is the same for every node."""
    return torch.lerp(own, other, 0.5)


def figures(heat: Heat) -> np.ndarray:
    """Return locality, share of the pixels, and mean change inside and outside in grey levels: (4, count).

    As :class:`..metrics.locality.Change`, with a soft mask: the change inside is the mean weighted by it.
    """
    shares = np.nan_to_num(heat.shares)  # of a sample without a change: 0 of 0
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = 255 * heat.totals * shares / heat.areas
        outside = 255 * heat.totals * (1 - shares) / (1 - heat.areas)
    return np.stack([heat.shares, heat.areas, inside, outside])


def scores(heats: Mapping[str, Heat]) -> dict[str, Score]:
    """Return the scores of one way from the heat maps of its regions, which have samples of the same codes.

    A sample's value is the mean over its regions.
    """
    tables = np.stack([figures(heat) for heat in heats.values()], 2)  # (4, count, K)
    known = np.isfinite(tables)
    with np.errstate(invalid="ignore"):
        means = np.where(known, tables, 0).sum(2) / known.sum(2)
    names = [f"sample {i}" for i in range(tables.shape[1])]
    return {
        name: Score(list(names), mean.tolist(), list(table)) for name, mean, table in zip(_EDITS, means, tables, strict=True)
    }


def evaluate(
    models: Mapping[str, StyleFusion], regions: tuple[str, ...], count: int, images: int, seed: int, batch: int
) -> dict[str, dict[str, Heat]]:
    """Exchange the code of every region in every way.

    Args:
        models: name -> model; the first is also judged by the simpler ways.
        regions: nodes.
        count, images, seed, batch: see :class:`Options`.

    Returns:
        way -> region -> heat map, the first model first.
    """
    first = next(iter(models.values()))
    correlations = channel_correlations(first, images, seed + 1, batch)
    heats: dict[str, dict[str, Heat]] = {}
    for name, model in models.items():
        with progress(name):
            heats[name] = model.heatmaps(regions, count, seed=seed, batch=batch)
    with progress(CORRELATION):
        ways = {node: swaps(correlations, node)[CORRELATION] for node in regions}
        heats[CORRELATION] = {
            node: first.heatmap(node, count, seed=seed, batch=batch, swap=swap) for node, swap in ways.items()
        }
    with progress(BLEND):
        heats[BLEND] = first.heatmaps(regions, count, seed=seed, batch=batch, swap=blended)
    return heats


def report(heats: Mapping[str, Mapping[str, Heat]], seed: int = 0) -> Report:
    """Return the report of :func:`evaluate`'s heat maps, without settings; `seed` is that of the bootstrap."""
    (way, first), *rest = heats.items()
    found = Report("Locality of StyleFusion (Fig. 10, 16)", {}, tuple(first), seed=seed, way=way, judged="samples")
    found.scores = scores(first)
    found.others = {name: scores(other) for name, other in rest}
    found.not_computed = dict(_NOT_COMPUTED)
    found.sheet = "heat.png"
    locality = found.scores["locality"]
    unchanged = int(np.isnan(np.stack(locality.by_region)).sum())
    found.counts = {"samples of each region": len(locality.names), "exchanges that changed nothing (no locality)": unchanged}
    found.notes = [
        "Locality is to be read against the share of pixels inside the region, which a change spread evenly would have, and "
        "with the change inside: a way that changes nothing is of no use.",
        "A region is the union of its soft masks in the two images. All ways have the same codes. A sample's value is the "
        "mean over the regions that changed: compare means over all regions where every way changes every region.",
    ]
    if CORRELATION in heats:
        found.notes.append(
            f"{CORRELATION}: channels of S alone are exchanged whose energy lies mainly in the region (M > 0.5, Eq. 1); "
            f"{BLEND}: the whole code, half and half."
        )
    return found


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {options.out}")
    check_outputs({"out": options.out / "report.json"})
    given = dict(name_and_file(entry, "compare", "NAME=FILE") for entry in options.compare)
    taken = [name for name in given if name in (OURS, CORRELATION, BLEND)]
    if taken or len(given) != len(options.compare):
        raise ValueError(f"compare: expected other names, each once, got {', '.join(options.compare)}")
    models = {OURS: open_model(StyleFusion, options.model, options.device)}
    models |= {name: open_model(StyleFusion, file, options.device) for name, file in given.items()}
    first = models[OURS]
    for name, model in models.items():
        option = "model" if model is first else f"compare: {name}"
        if model.segments is None:
            raise ValueError(f"{option}: expected one with segments (mixsyn-fast stylefusion segments), got one without")
        alike = (model.tree.tree, model.tree.truncation, model.generator_digest)
        if alike != (first.tree.tree, first.tree.truncation, first.generator_digest):
            raise ValueError(f"{option}: expected generator, tree and truncation of the first model, got others")
    for name in options.region:
        check_node(first, name, "region")
        if name not in with_clusters(first):
            raise ValueError(f"region: expected nodes with clusters, {', '.join(with_clusters(first))}, got {name!r}")
    regions = options.region or tuple(name for name in with_clusters(first) if name != first.tree.root)
    count = options.count or (500 if options.model else 200)  # the bare command is to take seconds
    heats = evaluate(models, regions, count, options.images, options.seed, options.batch)
    found = report(heats, options.seed)
    found.settings = {
        "model": options.model or "shipped",
        "compare": ", ".join(f"{name}={file}" for name, file in given.items()) or None,
        "images of the correlation": options.images,
        "size": f"{first.size[0]} x {first.size[1]}",
        "truncation": first.tree.truncation,
        "seed": options.seed,
        "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    save_png(sheet(first, heats), options.out / found.sheet)
    print(found.write(options.out), end="")
    print(f"\n{options.out / 'report.json'}")
    return 0


def _percent(heat: Heat) -> str:
    found = heat.shares[np.isfinite(heat.shares)]
    return f"{100 * float(found.mean()):.0f} %" if len(found) else "nothing"


def sheet(fusion: StyleFusion, heats: Mapping[str, Mapping[str, Heat]]) -> np.ndarray:
    """Draw the mean changes: a row a way, a column a region, each in units of its own largest change."""
    rows = []
    for way, found in heats.items():
        cells = []
        for node, heat in found.items():
            text = f"{way}: {node}, {_percent(heat)} inside"
            cells.append(heat_cell(fusion, heat.mean, text, float(heat.mean.max())))
        rows.append(cells)
    return contact_sheet(rows)
