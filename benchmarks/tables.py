"""Markdown tables from result files: `python -m benchmarks.tables benchmarks/results/ops_cpu.json [more.json]`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
OURS = ("native", "triton", "ours")  # the names of our contenders
BASELINES = ("published", "eager", "dense", "compile")


def _median(row: Row, name: str) -> float | None:
    timing = row["contenders"].get(name, {}).get("timing")
    return None if timing is None else float(timing["median"])


def _ours(row: Row) -> list[str]:
    return [name for name in row["contenders"] if name.split("+")[0] in OURS and _median(row, name) is not None]


def seconds(value: float | None) -> str:
    """A duration with a fitting unit; a dash for None."""
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def _ratio(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None or b == 0 else f"{a / b:.2f}"


def mebibytes(entry: Mapping[str, Any]) -> str:
    """Peak memory of a contender; a dash where it is not known."""
    return "-" if entry.get("peak_bytes") is None else f"{entry['peak_bytes'] / 2**20:.1f}"


def row_line(row: Row) -> str:
    """One line for the terminal."""
    parts = []
    for name, entry in row["contenders"].items():
        value = _median(row, name)
        parts.append(f"{name} {seconds(value)}" if value is not None else f"{name}: {entry.get('note') or 'no time'}")
    for name in _ours(row):
        own = _median(row, name)
        for label in ("floor_s", "memory_floor_s"):
            if label in row:
                parts.append(f"{name}/{label[:-2].replace('_', ' ')} {_ratio(own, row[label])}")
    return f"{row['case']} {row['mode']}: " + ", ".join(parts)


def model_line(row: Row) -> str:
    """One line of a generator row for the terminal."""
    parts = []
    for name, entry in row["contenders"].items():
        value = _median(row, name)
        parts.append(f"{name} {seconds(value)}" if value is not None else f"{name}: {entry.get('note') or 'no time'}")
    parts += [f"{value:.2f} x {name}" for name, value in row.get("speedup_over", {}).items()]
    for key, text in (("ours_over_floor", "ours/floor"), ("ours_over_floor_plain", "ours/plain floor")):
        if row.get(key):
            parts.append(f"{text} {row[key]:.2f}")
    if "float64_error" in row:
        parts.append(f"float64 error {row['float64_error']:.1e}")
    return f"{row['case']}: " + ", ".join(parts)


def _mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def summarise_ops(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Geometric means over the region_norm rows, per mode and contender of ours.

    Returns:
        "<contender> <mode>" -> rows, speed-up over eager and compile, ratio to both floors (mean and worst).
    """
    summary: dict[str, dict[str, float]] = {}
    norm_rows = [row for row in rows if row["op"] == "region_norm"]
    for mode in sorted({row["mode"] for row in norm_rows}):
        of_mode = [row for row in norm_rows if row["mode"] == mode]
        for name in sorted({name for row in of_mode for name in _ours(row)}):
            entry: dict[str, float] = {}
            own = [(row, _median(row, name)) for row in of_mode]
            timed = [(row, value) for row, value in own if value]
            entry["rows"] = len(timed)
            for other in ("eager", "compile"):
                ratios = [m / value for row, value in timed if (m := _median(row, other))]
                if ratios:
                    entry[f"speedup_over_{other}"] = _mean(ratios) or 0.0
                    entry[f"least_speedup_over_{other}"] = min(ratios)
            for floor in ("floor_s", "memory_floor_s"):
                ratios = [value / row[floor] for row, value in timed]
                entry[f"ratio_to_{floor[:-2]}"] = _mean(ratios) or 0.0
                entry[f"worst_ratio_to_{floor[:-2]}"] = max(ratios)
            summary[f"{name} {mode}"] = entry
    return summary


def _table(header: Sequence[str], body: Sequence[Sequence[str]], *, markdown: bool) -> str:
    if markdown:
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])
    widths = [max(len(str(row[i])) for row in [header, *body]) for i in range(len(header))]
    return "\n".join(
        "  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [header, *body]
    )


def _error(entry: Mapping[str, Any]) -> str:
    verdict = entry.get("gate")
    return "-" if verdict is None else f"{float(verdict['error']):.1e}"


def render_ops(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """The op tables of a result of run_ops."""
    parts = []
    rows = [row for row in result["rows"] if row["op"] == "region_norm"]
    if rows:
        body = []
        for row in rows:
            for name in _ours(row) or ["-"]:
                own = _median(row, name)
                entry = row["contenders"].get(name, {})
                body.append(
                    [
                        row["case"].removeprefix("region_norm/"),
                        row["mode"],
                        seconds(_median(row, "eager")),
                        seconds(_median(row, "compile")),
                        f"{name} {seconds(own)}",
                        _ratio(_median(row, "eager"), own),
                        _ratio(_median(row, "compile"), own),
                        _ratio(own, row["floor_s"]),
                        _ratio(own, row["memory_floor_s"]),
                        _error(entry),
                        mebibytes(entry),
                        mebibytes(row["contenders"].get("eager", {})),
                    ]
                )
        header = ["region_norm", "mode", "eager", "torch.compile", "ours", "x eager", "x compile", "/ floor",
                  "/ memory floor", "error", "MiB", "MiB eager"]  # fmt: skip
        parts.append(_table(header, body, markdown=markdown))
    rows = [row for row in result["rows"] if row["op"] == "label_patterns"]
    if rows:
        body = [
            [
                row["case"].removeprefix("label_patterns/"),
                str(row["distinct_patterns"]),
                f"{row['share']:.3f}",
                seconds(_median(row, "eager")),
                ", ".join(f"{name} {seconds(_median(row, name))}" for name in _ours(row)) or "-",
            ]
            for row in rows
        ]
        parts.append(_table(["label_patterns", "patterns", "per pixel", "reference", "ours"], body, markdown=markdown))
    summary = result.get("summary") or summarise_ops(result["rows"])
    if summary:
        keys = list(dict.fromkeys(key for entry in summary.values() for key in entry))
        body = [[name, *(f"{entry[k]:.2f}" if k in entry else "-" for k in keys)] for name, entry in summary.items()]
        parts.append(_table(["geometric mean", *(k.replace("_", " ") for k in keys)], body, markdown=markdown))
    return "\n\n".join(parts)


def render_models(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """The generator table of a result of run_models: one line per contender."""
    body = []
    for row in result["rows"]:
        own = _median(row, "ours")
        for name, entry in row["contenders"].items():
            value = _median(row, name)
            body.append(
                [
                    row["case"],
                    name,
                    seconds(value) if value is not None else entry.get("note", "-"),
                    "" if name == "ours" or name.startswith("floor") else _ratio(value, own),
                    _ratio(own, value) if name.startswith("floor") else "",
                    _error(entry) if not name.startswith("floor") else "",
                    mebibytes(entry),
                ]
            )
    header = ["generator", "contender", "time", "ours faster by", "ours / floor", "relative error", "MiB"]
    return _table(header, body, markdown=markdown)


def render(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """All tables of a result, with the machine line."""
    from .timing import machine_line

    body = render_models(result, markdown=markdown) if result["kind"] == "models" else render_ops(result, markdown=markdown)
    rates = ", ".join(f"{k.replace('_', ' ')} {v:.1f}" for k, v in result["rates"].items())
    return f"{machine_line(result['machine'])}\n{result['labels']}; measured in the same run: {rates}\n\n{body}\n"


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Markdown tables from result files")
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    for path in options.results:
        try:
            result = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            parser.error(f"{path}: not a result file ({error})")
        if not isinstance(result, dict) or "kind" not in result or "rows" not in result:
            parser.error(f"{path}: not a result file (no 'kind' and 'rows')")
        print(render(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
