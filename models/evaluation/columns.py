"""Several models judged on several tasks, beside each other: rows of metrics, a column a model.

Differences to the first model are those of the same pictures, so their intervals are narrower than a glance at two means
suggests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixsyn_fast.writing import jsonable, write_json, write_whole

from ..metrics.intervals import Interval, intervals
from ..metrics.score import Score
from ..metrics.table import METRICS
from .report import Report, save_figure

_SHOWN = 20  # problems listed in the Markdown; the JSON has all of them


@dataclass
class Columns:
    """Reports of models on tasks."""

    title: str
    settings: dict[str, Any]
    """What was compared with what, and how."""
    reports: Mapping[str, Mapping[str, Report]]
    """Task -> model -> scores and FID; every task has the same models, and the others are compared with the first one."""
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What stands in the JSON besides, for a person to check."""
    not_computed: dict[str, str] = field(default_factory=dict)
    """Task, metric or model -> reason."""
    problems: list[str] = field(default_factory=list)
    """Files that cannot be used."""
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    """Of the bootstrap."""

    def differences(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """Return task -> model -> metric -> mean difference to the first model over the pictures that both have."""
        found: dict[str, dict[str, dict[str, Interval]]] = {}
        for task, models in self.reports.items():
            (_, first), *others = models.items()
            found[task] = {
                name: {
                    metric: _difference(score, first.scores[metric], self.seed)
                    for metric, score in report.scores.items()
                    if metric in first.scores
                }
                for name, report in others
            }
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON types: means, intervals, the value of every picture, differences."""
        tasks: dict[str, Any] = {}
        differences = self.differences()
        for task, models in self.reports.items():
            tasks[task] = {}
            for name, report in models.items():
                whole = report.as_json()
                tasks[task][name] = {key: whole[key] for key in ("metrics", "fid", "counts")}
                if name in differences[task]:
                    tasks[task][name]["differences"] = jsonable(differences[task][name])
        return {
            "title": self.title,
            "settings": jsonable(self.settings),
            "counts": self.counts,
            "tasks": tasks,
            "details": jsonable(self.details),
            "not_computed": self.not_computed,
            "problems": self.problems,
            "notes": self.notes,
        }

    def as_markdown(self, pictures: Sequence[Path] = ()) -> str:
        """Return the tables as Markdown; intervals are 95 % over pictures, counts stand behind them."""
        lines = [f"# {self.title}", ""]
        lines += [f"* {name}: {value}" for name, value in self.settings.items() if value is not None]
        lines += [f"* {name}: {value}" for name, value in self.counts.items()]
        models = list(next(iter(self.reports.values()), {}))
        if models:
            lines += ["", "Mean [95 % interval] (pictures)", "", f"| task | metric | {' | '.join(models)} |"]
            lines.append("|---" * (len(models) + 2) + "|")
            lines += [line for task in self.reports for line in self._rows(task)]
        if len(models) > 1:
            lines += ["", f"Difference to {models[0]} on the same pictures", ""]
            lines += [f"| task | metric | {' | '.join(models[1:])} |", "|---" * (len(models) + 1) + "|"]
            for task, others in self.differences().items():
                for metric in self._metrics(task):
                    cells = [str(found[metric]) if metric in found else "–" for found in others.values()]
                    lines.append(f"| {task} | {METRICS[metric].heading} | {' | '.join(cells)} |")
        warnings = {
            warning for reports in self.reports.values() for report in reports.values() for warning in _warnings(report)
        }
        lines += ["", *(f"* FID: {warning}" for warning in sorted(warnings))] if warnings else []
        if self.not_computed:
            lines += ["", "## Not computed", "", *(f"* {name}: {reason}" for name, reason in self.not_computed.items())]
        if self.problems:
            lines += ["", f"## Problems ({len(self.problems)})", "", *(f"* {problem}" for problem in self.problems[:_SHOWN])]
            if len(self.problems) > _SHOWN:
                lines.append(f"* ... and {len(self.problems) - _SHOWN} more, all in report.json")
        if self.notes:
            lines += ["", *(f"* {note}" for note in self.notes)]
        for picture in pictures:
            lines += ["", f"![{picture.stem}]({picture.name})"]
        return "\n".join(lines) + "\n"

    def _metrics(self, task: str) -> list[str]:
        """Metrics that some model has on a task, in the order of the table."""
        return [name for name in METRICS if any(name in report.scores for report in self.reports[task].values())]

    def _rows(self, task: str) -> list[str]:
        models = self.reports[task]
        rows = []
        for metric in self._metrics(task):
            found = [
                report.scores[metric].whole(self.seed) if metric in report.scores else None for report in models.values()
            ]
            cells = ["–" if each is None else f"{each} ({each.count})" for each in found]
            rows.append(f"| {task} | {METRICS[metric].heading} | {' | '.join(cells)} |")
        fids = [report.fid.get("") for report in models.values()]
        if any(fid is not None for fid in fids):
            cells = [
                "–" if fid is None else f"{fid.value:.4g} ({fid.first_count} against {fid.second_count})" for fid in fids
            ]
            rows.append(f"| {task} | {METRICS['fid'].heading} | {' | '.join(cells)} |")
        return rows

    def write(self, folder: Path, pictures: Sequence[Path] = ()) -> str:
        """Write report.json, report.md and, with matplotlib, scores.png; return the Markdown.

        Args:
            folder: it is there.
            pictures: sheets in it, which the Markdown shows.
        """
        plots: list[Path] = []
        try:
            plots = [_plot(self, folder / "scores.png")]
        except ImportError as error:
            self.not_computed["plots"] = f"{error} (pip install matplotlib)"
        write_json(folder / "report.json", self.as_json())
        text = self.as_markdown([*plots, *pictures])
        write_whole(folder / "report.md", text)
        return text


def _difference(score: Score, first: Score, seed: int) -> Interval:
    """Mean of `score - first` over the pictures that both have."""
    known = dict(zip(first.names, first.values, strict=True))
    pairs = [(value, known[name]) for name, value in zip(score.names, score.values, strict=True) if name in known]
    change = np.array(
        [ours - theirs if math.isfinite(ours) and math.isfinite(theirs) else math.nan for ours, theirs in pairs]
    )
    return intervals(change, seed=seed)[0]


def _warnings(report: Report) -> Sequence[str]:
    whole = report.fid.get("")
    return () if whole is None else whole.warnings


def _plot(columns: Columns, path: Path) -> Path:
    """Draw every mean with its interval: a row a metric, a column a task, a bar a model."""
    from matplotlib.figure import Figure

    tasks = {task: models for task, models in columns.reports.items() if columns._metrics(task)}
    metrics = [name for name in METRICS if any(name in columns._metrics(task) for task in tasks)]
    figure = Figure(figsize=(3.2 * max(1, len(tasks)), 1 + max(1, len(metrics)) * (0.6 + 0.25 * len(_names(columns)))))
    for row, metric in enumerate(metrics):
        for column, (task, models) in enumerate(tasks.items()):
            axes = figure.add_subplot(len(metrics), len(tasks), row * len(tasks) + column + 1)
            for place, report in enumerate(models.values()):
                if metric in report.scores:
                    found = report.scores[metric].whole(columns.seed)
                    axes.barh(place, found.mean, color="#4878a8")
                    axes.plot([found.low, found.high], [place, place], color="#e08040", linewidth=2)
            axes.set_yticks(range(len(models)), list(models) if column == 0 else [""] * len(models), fontsize=7)
            axes.invert_yaxis()
            axes.set_title(f"{task}: {METRICS[metric].label}", fontsize=7)
            axes.tick_params(axis="x", labelsize=7)
            axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4))
            axes.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    return save_figure(figure, path)


def _names(columns: Columns) -> list[str]:
    return list(next(iter(columns.reports.values()), {}))
