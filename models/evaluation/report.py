"""The result of an evaluation: JSON for programs, Markdown and plots for people. What was not computed stands in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
            "not_computed": self.not_computed,
            "problems": self.problems,
            "notes": self.notes,
        }

    def as_markdown(self, plots: Sequence[Path] = ()) -> str:
        """Return the report as Markdown; intervals are 95 % over pictures."""
        lines = [f"# {self.title}", ""]
        lines += [f"* {name}: {value}" for name, value in self.settings.items() if value is not None]
        lines += [f"* {name}: {value}" for name, value in self.counts.items()]
        if self.scores or self.fid:
            lines += ["", "| metric | mean | 95 % interval | pictures |", "|---|---|---|---|"]
        for name, score in self.scores.items():
            found = score.whole(self.seed)
            lines.append(f"| {METRICS[name].heading} | {_number(found.mean)} | {_range(found)} | {_count(found)} |")
        whole = self.fid.get("")
        if whole is not None:
            pictures = f"{whole.first_count} against {whole.second_count}"
            lines.append(f"| {METRICS['fid'].heading} | {_number(whole.value)} | one number for two sets | {pictures} |")
            lines += ["", *(f"* FID: {warning}" for warning in whole.warnings)]
        lines += self._regions()
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

    def write(self, folder: Path) -> str:
        """Write report.json, report.md and, with matplotlib, scores.png and regions.png; return the Markdown."""
        plots: list[Path] = []
        try:
            plots = _plots(self, folder)
        except ImportError as error:
            self.not_computed["plots"] = f"{error} (pip install matplotlib)"
        sheets = [path for path in (folder / "extremes.png",) if path.is_file()]
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
            axes.set(xlabel=METRICS[name].label, ylabel="pictures" if i == 1 else "")
            axes.legend(fontsize=7)
        written.append(save_figure(figure, folder / "scores.png"))
    regions = {name: score.regions(report.classes, report.seed) for name, score in report.scores.items() if score.by_region}
    if any(regions.values()):
        present = [c for c in report.classes if any(c in found for found in regions.values())]
        figure = Figure(figsize=(3.2 * len(regions) + 1, 0.22 * len(present) + 1))
        for i, (name, found) in enumerate(regions.items(), 1):
            axes = figure.add_subplot(1, len(regions), i)
            for row, region in enumerate(present):
                if region in found and math.isfinite(found[region].mean):
                    f = found[region]
                    axes.barh(row, f.mean, color="#4878a8")
                    axes.plot([f.low, f.high], [row, row], color="#e08040", linewidth=2)
            axes.set_yticks(range(len(present)), present if i == 1 else [""] * len(present), fontsize=7)
            axes.invert_yaxis()
            axes.set_title(METRICS[name].label, fontsize=8)
        written.append(save_figure(figure, folder / "regions.png"))
    return written
