"""Tables 1 to 5 of the paper, and how local an edit is: of a class- and layer-wise VAE, or of a VAE with one global code.

    mixsyn-fast clvae evaluate                                           the shipped model, pictures drawn by code
    mixsyn-fast clvae evaluate --model runs/clvae --data datasets/cmp_facade --out judged
    mixsyn-fast clvae evaluate --model runs/spade --data datasets/cmp_facade         a run of spade --generator.use-vae

What is judged, 8-bit pictures throughout, all means over pictures with a 95 % bootstrap interval:

* reconstruction (Table 1): the image of a picture's own codes, the means of their distributions, against the picture. GT
  similarity is their LPIPS; FID is that of all of them against all pictures.
* samples (Tables 2 to 5, Fig. 10): --samples images of every label map with codes from the prior. Diversity is the mean
  LPIPS over all pairs of one label map; Top-1 GT similarity the LPIPS to the picture of the image nearest to it by L1.
* locality (not in the paper): of every picture every class with 1 to 60 % of its pixels gets codes from the prior, in all
  levels, and the rest keeps the picture's own. Locality is the share of the total absolute change, from the reconstruction
  to the edited image, that lies inside the class; the class's share of the pixels stands beside it: that is what a change
  spread evenly has. An edit that changes no byte is counted and left out. A picture's value is the mean over its classes.

The paper does not say which network its LPIPS looks through: --network, AlexNet by default. A model with a global code alone
(SPADE and CLADE with --generator.use-vae, or one level) has no codes of classes: its edit of any class is another global
code. Where classes share one code (class_wise off) it is another shared code at all levels.

The folder of the report gets report.json, report.md, scores.png (histograms over pictures) and regions.png (by class). Exit
status 1: there are pictures that cannot be read or have no class (all named), or nothing could be judged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

import mixsyn_fast
from mixsyn_fast.progress import progress

from ..data import Collate, Item
from ..evaluation.compare import Compared, Comparison
from ..evaluation.inputs import DataReference, JudgedModelOptions, load_vae, reference_of_model
from ..evaluation.report import Report
from ..metrics import LPIPS, change_of_edit, pairwise_lpips, top1_similarity
from ..metrics.score import Score
from ..metrics.table import Tools
from ..pictures.options import check_outputs, device_of, open_model
from ..settings import at_least
from ..sheets import to_uint8
from ..training import Trained
from .codes import GLOBAL
from .model import CLVAE

SHARES = (0.01, 0.6)
"""Least and largest share of a picture's pixels of a class that is edited."""
_EDITS = ("locality", "region_share", "change_inside", "change_outside")
_TOOLS = {"alexnet": "lpips_alex", "vgg16": "lpips_vgg"}
_AT_ONCE = 8  # images made in one pass


# ------------------------------------------------------------------------------------------------------ what is judged


class Judged(Protocol):
    """A model with latent codes."""

    classes: tuple[str, ...]
    """Names of its K classes."""
    size: tuple[int, int]
    """Height and width of its images in pixels."""
    device: torch.device
    """Where it is."""
    edited: str
    """What an edit of a class changes, for the report."""

    def reconstruct(self, item: Item) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of a picture's own codes."""
        ...

    def sample(self, item: Item, count: int, seed: int) -> np.ndarray:
        """Return images (count, H, W, 3) uint8 of a picture's label map, with codes from the prior."""
        ...

    def edit(self, item: Item, region: int, seed: int) -> np.ndarray:
        """Return the reconstruction (H, W, 3) uint8 with other codes of a class, from the prior."""
        ...


class ClassCodes:
    """A class- and layer-wise VAE.

    Args:
        model: the model.
    """

    def __init__(self, model: CLVAE) -> None:
        self.model = model
        self.classes, self.size, self.device = model.classes, model.size, model.device
        self._shared = not model.config.generator.class_wise
        self.edited = "codes of the class at all levels"
        if self._shared:
            self.edited = "the code that all classes share, at all levels"
        if not model.levels:
            self.edited = "the global code"

    def reconstruct(self, item: Item) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of a picture's own codes."""
        return self.model.reconstruct(item.image, item.labels).image

    def sample(self, item: Item, count: int, seed: int) -> np.ndarray:
        """Return images (count, H, W, 3) uint8 of a picture's label map, with codes from the prior."""
        return np.stack([made.image for made in self.model.sample(item.labels, count, seed)])

    def edit(self, item: Item, region: int, seed: int) -> np.ndarray:
        """Return the reconstruction (H, W, 3) uint8 with other codes of a class, from the prior."""
        names: Sequence[str] = (self.classes[region],)
        if not self.model.levels:
            names = (GLOBAL,)
        elif self._shared:
            names = self.model.present(item.labels)
        return self.model.edit(item.image, item.labels, dict.fromkeys(names, "sample"), seed=seed).image


class GlobalCode:
    """SPADE or CLADE with the image encoder of a VAE.

    Args:
        trained: a run with the network "encoder".
    """

    edited = "the global code"

    def __init__(self, trained: Trained) -> None:
        config: Any = trained.task.config  # type: ignore[attr-defined]
        self.classes = tuple(trained.config["classes"])
        self.size = config.generator.output_size
        self.device = next(trained.networks["generator"].parameters()).device
        self._trained, self._length = trained, config.generator.z_dim
        self._collate = Collate(len(self.classes), tuple(trained.task.plans))

    def reconstruct(self, item: Item) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of a picture's own code."""
        made: np.ndarray = to_uint8(self._trained.generate(self._collate([item]).to(self.device)))[0]
        return made

    @torch.no_grad()
    def sample(self, item: Item, count: int, seed: int) -> np.ndarray:
        """Return images (count, H, W, 3) uint8 of a picture's label map, with codes from the prior; of image i seed + i."""
        made = []
        for begin in range(0, count, _AT_ONCE):
            seeds = range(seed + begin, seed + min(count, begin + _AT_ONCE))
            codes = [torch.randn(self._length, generator=torch.Generator().manual_seed(each)) for each in seeds]
            batch = self._collate([item] * len(codes)).to(self.device)
            regions = self._trained.task.regions(batch)  # type: ignore[attr-defined]
            made.append(to_uint8(self._trained.networks["generator"](regions, torch.stack(codes).to(self.device))))
        return np.concatenate(made)

    def edit(self, item: Item, region: int, seed: int) -> np.ndarray:
        """Return the image (H, W, 3) uint8 of another code from the prior: there is none of a class."""
        del region
        made: np.ndarray = self.sample(item, 1, seed)[0]
        return made


def open_judged(model: str | None, device: str) -> Judged:
    """Load a model of this paper (file, run folder, None: the shipped one), or a run of SPADE or CLADE with a VAE.

    Raises:
        ValueError, FileNotFoundError: it is not there, damaged, or has no latent codes; the message names the path.
    """
    vae = load_vae(model, device_of(device)) if model else None
    return ClassCodes(open_model(CLVAE, model, device)) if vae is None else GlobalCode(vae)


# ------------------------------------------------------------------------------------------------------------- judging


class _Edits:
    """The locality of edits, picture by picture."""

    def __init__(self, num_classes: int) -> None:
        self.scores = {name: Score() for name in _EDITS}
        self.num_classes, self.count, self.unchanged, self.without = num_classes, 0, 0, 0

    def add(self, model: Judged, item: Item, before: np.ndarray, seeds: Sequence[int]) -> None:
        """Edit every class of a picture that is neither too small nor too large; `seeds` has one seed per class."""
        found = np.full((len(_EDITS), self.num_classes), np.nan)
        edited = False
        for k in np.unique(item.labels[item.labels >= 0]).tolist():
            inside = item.labels == k
            if not SHARES[0] <= inside.mean() <= SHARES[1]:
                continue
            edited = True
            change = change_of_edit(before, model.edit(item, k, seeds[k]), inside)
            self.count += 1
            if np.isnan(change.locality):
                self.unchanged += 1
            else:
                found[:, k] = change
        self.without += not edited
        for score, values in zip(self.scores.values(), found, strict=True):
            known = values[np.isfinite(values)]
            if len(known):
                score.names.append(item.name)
                score.values.append(float(known.mean()))
                score.by_region.append(values)

    def counts(self) -> dict[str, int]:
        """What was edited."""
        return {
            "edits": self.count,
            "edits that changed nothing (left out)": self.unchanged,
            "pictures without a class to edit": self.without,
        }


def evaluate(
    model: Judged, reference: DataReference, tools: Tools, *, limit: int | None = None, samples: int = 40, seed: int = 0
) -> Report:
    """Judge a model on a data set.

    Args:
        model: the model.
        reference: pictures with label maps, in the model's classes and size.
        tools: LPIPS and the features for FID; without them what needs them is named in the report's `not_computed`.
        limit: only the first so many pictures; None: all.
        samples: images of every label map, at least 2.
        seed: of the codes and of the bootstrap. A picture's codes depend on it and on the picture's place alone.
    """
    missing = dict(tools.missing)
    if "diversity" in missing:
        missing["diversity, top1"] = missing.pop("diversity")
    report = Report("Reconstructions, samples and edits (Tables 1 to 5)", {}, model.classes, not_computed=missing, seed=seed)
    comparison = Comparison(tools.pairs, None, tools.inception, device=model.device, keep=0)
    drawn, edits = {name: Score() for name in ("diversity", "top1")}, _Edits(len(model.classes))
    names = reference.names()[:limit]
    assert reference.dataset is not None
    with progress(f"evaluating, {len(names)} pictures"):
        for place, name in enumerate(names):
            try:
                item = reference.dataset[reference.index[name]]
            except (ValueError, OSError) as error:
                report.problems.append(f"{name}: {error}")
                continue
            if not (item.labels >= 0).any():
                report.problems.append(f"{name}: no pixel of its label map has a class")
                continue
            seeds = np.random.SeedSequence((seed, place)).generate_state(len(model.classes) + 1).tolist()
            made = model.reconstruct(item)
            comparison.add([Compared(name, made, item.image, item.labels)])
            edits.add(model, item, made, seeds[1:])
            if tools.diversity is not None:
                found = _judge_samples(tools.diversity, model.sample(item, samples, seeds[0]), item.image, model.device)
                for score, value in zip(drawn.values(), found, strict=True):
                    score.names.append(name)
                    score.values.append(value)
    every = comparison.scores | drawn | edits.scores
    report.scores = {name: score for name, score in every.items() if score.names}
    report.fid = comparison.fid()
    if tools.inception is not None and not report.fid:
        missing["fid"] = "it needs at least two pictures on either side"
    if comparison.count and "locality" not in report.scores:
        why = "every edit left the picture as it was" if edits.count else "no picture has a class of that size"
        missing[", ".join(_EDITS)] = f"{why} (edited: classes with {SHARES[0]:.0%} to {SHARES[1]:.0%} of the pixels)"
    report.counts = {"pictures": comparison.count, **edits.counts()}
    if tools.diversity is not None:
        report.counts["samples of every label map"] = samples
    report.notes = [
        "LPIPS is GT similarity (Table 1): of the reconstruction from the picture's own codes, to the picture; FID is that "
        "of the reconstructions against the pictures.",
        "Diversity and Top-1 similarity (Tables 2 to 5) are of images with codes from the prior.",
        "Locality is to be read against the share of pixels inside the region, which a change spread evenly would have.",
    ]
    return report


def _judge_samples(lpips: LPIPS, made: np.ndarray, target: np.ndarray, device: torch.device) -> tuple[float, float]:
    """Diversity and top-1 similarity of images (N, H, W, 3) uint8 of one label map."""
    both = torch.from_numpy(np.concatenate([made, target[None]])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pairwise_lpips(lpips, both[:-1]), top1_similarity(lpips, both[:-1], both[-1])


# ---------------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Options(JudgedModelOptions):
    """Options of the command."""

    samples: int = 40  # images of every label map with codes from the prior
    network: Literal["alexnet", "vgg16"] = "alexnet"  # what LPIPS looks through
    lpips: str | None = None  # weights of that network; none: found where a package brought them
    out: Path = Path("evaluation")  # folder of the report

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, samples=2)


def main(options: Options) -> int:
    """Evaluate as the options say, write and print the report, and return the exit status (see the module).

    Raises:
        ValueError, FileNotFoundError: a model, data set or network that is not there or cannot be used, classes that differ,
            an --out that is no folder.
    """
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {options.out}")
    check_outputs({"out": options.out / "report.json"})
    model = open_judged(options.model, options.device)
    reference = reference_of_model(options, model.classes, model.size)
    tool = _TOOLS[options.network]
    files = {tool: options.lpips, "inception": options.inception}
    tools = Tools([tool, "diversity", "fid"], files, diversity=tool, device=model.device)
    report = evaluate(model, reference, tools, limit=options.limit, samples=options.samples, seed=options.seed)
    source = reference.source
    report.settings = {
        "model": options.model or "shipped",
        "data set": f"{source.name}, {options.split if options.data else 'drawn by code'}, {len(source)} pictures",
        "size": f"{model.size[0]} x {model.size[1]} (height x width)",
        "an edit of a class changes": model.edited,
        "LPIPS": None if tools.diversity is None else options.network,
        "FID features": None if tools.inception is None else str(tools.inception.path),
        "seed": options.seed,
        "versions": f"mixsyn_fast {mixsyn_fast.__version__}, torch {torch.__version__}",
    }
    (options.out / "extremes.png").unlink(missing_ok=True)  # of another evaluation: the report would show it
    options.out.mkdir(parents=True, exist_ok=True)
    print(report.write(options.out), end="")
    print(f"\n{options.out / 'report.json'}")
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if not report.scores:
        print("nothing could be judged: no picture is readable and has a class", file=sys.stderr)
    return 1 if report.problems or not report.scores else 0
