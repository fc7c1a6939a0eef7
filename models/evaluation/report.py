"""The result of an evaluation: JSON for programs, Markdown and plots for people. What was not computed stands in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixsyn_fast.writing import jsonable, write_json, write_whole, written_whole

from ..metrics.fid import FIDResult
from ..metrics.intervals import Interval
from ..metrics.score import Score
from ..metrics.table import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHADES = ("#4878a8", "#e08040", "#6a9f58", "#b04f7a", "#8a8a8a", "#d0b040", "#60b0b8")  # of ways
_SHOWN = 20  # problems listed in the Markdown; the JSON has all of them


@dataclass
class Report:
    """Everything that an evaluation found."""

    title: str
    settings: dict[str, Any]
    """What was compared with what, and how."""
    classes: Sequence[str] = ()
    """Names of the regions, where scores by region are asked for."""
    counts: dict[str, int] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    """By name in `METRICS`."""
    fid: dict[str, FIDResult] = field(default_factory=dict)
    """"" for whole pictures, else by class."""
    not_computed: dict[str, str] = field(default_factory=dict)
    """Metric -> reason."""
    problems: list[str] = field(default_factory=list)
    """Files that are missing, left over, unreadable or of another size."""
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    """Of the bootstrap."""
    way: str = ""
    """What `scores` are of, where other ways stand beside it."""
    others: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Other ways to do the same (models, ablations) -> scores by name in `METRICS`."""
    judged: str = "pictures"
    """What a value of a score is of."""
    sheet: str = "extremes.png"
    """A picture that the Markdown shows where the folder has it."""

    @property
    def ways(self) -> dict[str, dict[str, Score]]:
        """The scores of every way, `way` first; none where there are no others."""
        return {self.way: self.scores, **self.others} if self.others else {}

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON types: means, intervals, and the value of every picture."""
        metrics = {}
        for name, score in self.scores.items():
            metrics[name] = {
                **METRICS[name].as_json(),
                **jsonable(score.whole(self.seed)),
                "regions": jsonable(score.regions(self.classes, self.seed)),
                "pictures": jsonable(dict(zip(score.names, score.values, strict=True))),
            }
        whole = self.fid.get("")
        return {
            "title": self.title,
            "settings": jsonable(self.settings),
            "counts": self.counts,
            "metrics": metrics,
            "fid": jsonable(whole) if whole is not None else None,
            "fid_regions": {name: jsonable(result) for name, result in self.fid.items() if name},
            "ways": {way: self._way(scores) for way, scores in self.ways.items()},
            "not_computed": self.not_computed,
            "problems": self.problems,
            "notes": self.notes,
        }

    def _way(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        """Return means and intervals of one way: "whole" -> metric, and "regions" -> region -> metric."""
        regions: dict[str, dict[str, Any]] = {}
        for name, score in scores.items():
            for region, found in score.regions(self.classes, self.seed).items():
                regions.setdefault(region, {})[name] = jsonable(found)
        return {"whole": {name: jsonable(score.whole(self.seed)) for name, score in scores.items()}, "regions": regions}

    def as_markdown(self, plots: Sequence[Path] = ()) -> str:
        """Return the report as Markdown; intervals are 95 % over what is judged."""
        lines = [f"# {self.title}", ""]
        lines += [f"* {name}: {value}" for name, value in self.settings.items() if value is not None]
        lines += [f"* {name}: {value}" for name, value in self.counts.items()]
        if self.scores or self.fid:
            lines += ["", f"| metric | mean | 95 % interval | {self.judged} |", "|---|---|---|---|"]
        for name, score in self.scores.items():
            found = score.whole(self.seed)
            lines.append(f"| {METRICS[name].heading} | {_number(found.mean)} | {_range(found)} | {_count(found)} |")
        whole = self.fid.get("")
        if whole is not None:
            pictures = f"{whole.first_count} against {whole.second_count}"
            lines.append(f"| {METRICS['fid'].heading} | {_number(whole.value)} | one number for two sets | {pictures} |")
            lines += ["", *(f"* FID: {warning}" for warning in whole.warnings)]
        lines += self._regions() + self._beside()
        if self.not_computed:
            lines += ["", "## Not computed", "", *(f"* {name}: {reason}" for name, reason in self.not_computed.items())]
        if self.problems:
            lines += ["", f"## Problems ({len(self.problems)})", "", *(f"* {problem}" for problem in self.problems[:_SHOWN])]
            if len(self.problems) > _SHOWN:
                lines.append(f"* ... and {len(self.problems) - _SHOWN} more, all in report.json")
        if self.notes:
            lines += ["", *(f"* {note}" for note in self.notes)]
        for plot in plots:
            lines += ["", f"![{plot.stem}]({plot.name})"]
        return "\n".join(lines) + "\n"

    def _regions(self) -> list[str]:
        by_region = {name: score.regions(self.classes, self.seed) for name, score in self.scores.items() if score.by_region}
        fid = {name: result for name, result in self.fid.items() if name}
        if not by_region and not fid:
            return []
        titles = [
            *(f"{METRICS[name].heading}" for name in by_region),
            *([f"{METRICS['fid'].heading} (pictures)"] if fid else []),
        ]
        lines = ["", "## By region", "", f"| region | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
        for region in self.classes:
            cells = []
            for intervals in by_region.values():
                found = intervals.get(region)
                cells.append("–" if found is None else f"{_number(found.mean)} {_range(found)} ({_count(found)})")
            if fid:
                result = fid.get(region)
                cells.append("–" if result is None else f"{_number(result.value)} ({result.first_count})")
            if any(cell != "–" for cell in cells):
                lines.append(f"| {region} | {' | '.join(cells)} |")
        if fid:
            lines += ["", "FID by region: all other pixels of both pictures are grey."]
        return lines

    def _beside(self) -> list[str]:
        """A table a metric: every region by every way, the mean over all of them first."""
        lines: list[str] = []
        for name in self.scores if self.others else ():
            scores = {way: found[name] for way, found in self.ways.items() if name in found}
            rows = {"all": {way: score.whole(self.seed) for way, score in scores.items()}}
            by_region = {way: score.regions(self.classes, self.seed) for way, score in scores.items()}
            rows |= {
                region: {way: found[region] for way, found in by_region.items() if region in found}
                for region in self.classes
            }
            lines += ["", f"## {METRICS[name].heading}: ways", "", f"| region | {' | '.join(scores)} |"]
            lines.append("|---" * (len(scores) + 1) + "|")
            for region, found in rows.items():
                cells = [f"{_number(found[way].mean)} {_range(found[way])}" if way in found else "–" for way in scores]
                lines.append(f"| {region} | {' | '.join(cells)} |")
        return lines

    def write(self, folder: Path) -> str:
        """Write report.json, report.md and, with matplotlib, scores.png and regions.png; return the Markdown."""
        plots: list[Path] = []
        try:
            plots = _plots(self, folder)
        except ImportError as error:
            self.not_computed["plots"] = f"{error} (pip install matplotlib)"
        sheets = [path for path in (folder / self.sheet,) if path.is_file()]
        write_json(folder / "report.json", self.as_json())
        text = self.as_markdown([*plots, *sheets])
        write_whole(folder / "report.md", text)
        return text


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure of matplotlib as PNG, whole or not at all, and return the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # no display, and none of pyplot's global state
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
    return path


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _range(found: Interval) -> str:
    return "–" if math.isnan(found.low) else f"[{found.low:.4g}, {found.high:.4g}]"


def _count(found: Interval) -> str:
    return f"{found.count}" + (f", {found.infinite} infinite left out" if found.infinite else "")


def _plots(report: Report, folder: Path) -> list[Path]:
    """Draw how the scores are spread over pictures, and their means by region."""
    from matplotlib.figure import Figure

    written = []
    finite = {name: np.array([v for v in score.values if math.isfinite(v)]) for name, score in report.scores.items()}
    spread = {name: values for name, values in finite.items() if len(values) > 1}
    if spread:
        figure = Figure(figsize=(4 * len(spread), 3))
        for i, (name, values) in enumerate(spread.items(), 1):
            axes, found = figure.add_subplot(1, len(spread), i), report.scores[name].whole(report.seed)
            axes.hist(values, bins=min(30, max(5, len(values) // 5)), color="#4878a8")
            axes.axvspan(found.low, found.high, color="#e08040", alpha=0.35, label="95 % interval")
            axes.axvline(found.mean, color="#e08040", label=f"mean {found.mean:.4g}")
            axes.set(xlabel=METRICS[name].label, ylabel=report.judged if i == 1 else "")
            axes.legend(fontsize=7)
        written.append(save_figure(figure, folder / "scores.png"))
    ways = report.ways or {report.way: report.scores}
    regions = {  # metric -> way -> region
        name: {way: found[name].regions(report.classes, report.seed) for way, found in ways.items() if name in found}
        for name, score in report.scores.items()
        if score.by_region
    }
    every = [found for by_way in regions.values() for found in by_way.values()]
    if any(every):
        present = [c for c in report.classes if any(c in found for found in every)]
        thick, shades = 0.8 / len(ways), dict(zip(ways, _SHADES * len(ways), strict=False))
        figure = Figure(figsize=(3.2 * len(regions) + 1, 0.22 * len(present) * max(1, 0.5 * len(ways)) + 1))
        for i, (name, by_way) in enumerate(regions.items(), 1):
            axes = figure.add_subplot(1, len(regions), i)
            for place, (way, found) in enumerate(by_way.items()):
                known = [(row, found[c]) for row, c in enumerate(present) if c in found and math.isfinite(found[c].mean)]
                at = [row + (place - (len(ways) - 1) / 2) * thick for row, _ in known]
                axes.barh(at, [f.mean for _, f in known], thick, color=shades[way], label=way)
                for y, (_, f) in zip(at, known, strict=True):
                    axes.plot([f.low, f.high], [y, y], color="#e08040" if len(ways) == 1 else "#202020", linewidth=2)
            axes.set_yticks(range(len(present)), present if i == 1 else [""] * len(present), fontsize=7)
            axes.invert_yaxis()
            axes.set_title(METRICS[name].label, fontsize=8)
            if i == 1 and report.others:
                figure.legend(
                    *axes.get_legend_handles_labels(), fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=4
                )
        written.append(save_figure(figure, folder / "regions.png"))
    return written
