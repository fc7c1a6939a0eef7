"""Markdown tables from result files: `python -m benchmarks.tables benchmarks/results/ops_cpu.json [more.json]`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
OURS = ("native", "triton", "ours")  # names of our contenders, up to a "+"
# what a row of an op may tell besides times: key -> (header, format)
FACTS = {
    "distinct_patterns": ("patterns", "{}"),
    "share": ("per pixel", "{:.3f}"),
    "regions_present": ("regions present", "{}"),
}


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


def mebibytes(entry: Mapping[str, Any], key: str = "peak_bytes") -> str:
    """Peak memory of a contender, or that of another key; a dash where it is not known."""
    return "-" if entry.get(key) is None else f"{entry[key] / 2**20:.1f}"


def target_text(goal: Mapping[str, Any]) -> str:
    """A goal of a row in words, e.g. "scatter 6.1 x of at least 5 x"."""
    what, got = goal["what"], float(goal["got"])
    if what == "seconds":
        return f"{seconds(got)} of at most {seconds(goal['most'])}"
    if what == "temporary":
        return f"temporary memory {got:.1%} of at most {goal['most']:.1%}"
    if goal.get("least") is None:
        return f"{what.replace('_', ' ')} {got:.2f} x of at most {goal['most']:g} x"
    return f"{what} {got:.2f} x of at least {goal['least']:g} x"


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
    parts += [f"{'reached' if goal['met'] else 'MISSED'}: {target_text(goal)}" for goal in row.get("targets", ())]
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


def _names(rows: Sequence[Row], wanted: bool) -> list[str]:
    """Contenders of the rows in order of appearance: ours, or all others."""
    names = dict.fromkeys(name for row in rows for name in row["contenders"])
    return [name for name in names if (name.split("+")[0] in OURS) == wanted]


def summarise_ops(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Geometric means per op with a floor, contender of ours, and mode.

    Returns:
        "<op> <contender> <mode>" -> rows, speed-up over every other contender, ratio to both floors (mean and worst), and
        the share of the rows' targets that were met.
    """
    summary: dict[str, dict[str, float]] = {}
    for op in dict.fromkeys(row["op"] for row in rows):
        of_op = [row for row in rows if row["op"] == op and "floor_s" in row]
        for name in _names(of_op, True):
            for mode in dict.fromkeys(row["mode"] for row in of_op):
                timed = [(row, value) for row in of_op if row["mode"] == mode and (value := _median(row, name))]
                if timed:
                    summary[f"{op} {name} {mode}"] = _summary_of(name, timed)
    return summary


def _summary_of(name: str, timed: Sequence[tuple[Row, float]]) -> dict[str, float]:
    entry: dict[str, float] = {"rows": len(timed)}
    for other in _names([row for row, _ in timed], False):
        ratios = [m / value for row, value in timed if (m := _median(row, other))]
        if ratios:
            entry[f"speedup_over_{other}"] = _mean(ratios) or 0.0
            entry[f"least_speedup_over_{other}"] = min(ratios)
    for floor in ("floor_s", "memory_floor_s"):
        ratios = [value / row[floor] for row, value in timed]
        entry[f"ratio_to_{floor[:-2]}"] = _mean(ratios) or 0.0
        entry[f"worst_ratio_to_{floor[:-2]}"] = max(ratios)
    goals = [goal["met"] for row, _ in timed for goal in row.get("targets", ()) if goal["contender"] == name]
    if goals:
        entry["targets_met"] = sum(goals) / len(goals)
    return entry


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


def _op_table(op: str, rows: Sequence[Row], *, markdown: bool) -> str:
    """One line per row, mode and contender of ours; columns that no row fills are left out."""
    others = _names(rows, False)
    facts = [key for key in FACTS if any(key in row for row in rows)]
    floors = [key for key in ("floor_s", "memory_floor_s") if any(key in row for row in rows)]
    temporary = any(entry.get("temporary_bytes") is not None for row in rows for entry in row["contenders"].values())
    goals = any(row.get("targets") for row in rows)
    header = [op, "mode", *(FACTS[key][0] for key in facts), *others, "ours", *(f"x {name}" for name in others)]
    header += [f"/ {key[:-2].replace('_', ' ')}" for key in floors]
    header += ["error", "MiB", f"MiB {_baseline(rows[0])}"]
    header += ["temporary MiB", f"temporary MiB {_baseline(rows[0])}"] * temporary + ["targets"] * goals
    body = []
    for row in rows:
        for name in _ours(row) or ["-"]:
            own = _median(row, name)
            entry, theirs = (row["contenders"].get(n, {}) for n in (name, _baseline(row)))
            line = [row["case"].removeprefix(f"{op}/"), row["mode"]]
            line += [FACTS[key][1].format(row[key]) if key in row else "-" for key in facts]
            line += [seconds(_median(row, other)) for other in others]
            line += [f"{name} {seconds(own)}", *(_ratio(_median(row, other), own) for other in others)]
            line += [_ratio(own, row.get(key)) for key in floors]
            line += [_error(entry), mebibytes(entry), mebibytes(theirs)]
            if temporary:
                line += [mebibytes(entry, "temporary_bytes"), mebibytes(theirs, "temporary_bytes")]
            if goals:
                found = [goal for goal in row.get("targets", ()) if goal["contender"] == name]
                missed = [f"missed: {target_text(goal)}" for goal in found if not goal["met"]]
                line.append("; ".join(missed) if missed else "all reached" if found else "-")
            body.append(line)
    return _table(header, body, markdown=markdown)


def _baseline(row: Row) -> str:
    """The contender whose memory ours is compared with."""
    return str(row.get("baseline", "eager"))


def render_ops(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """The op tables of a result of run_ops: one per op, then the geometric means of each op."""
    rows = result["rows"]
    parts = [
        _op_table(op, [row for row in rows if row["op"] == op], markdown=markdown)
        for op in dict.fromkeys(row["op"] for row in rows)
    ]
    summary = summarise_ops(rows)
    for op in dict.fromkeys(name.split()[0] for name in summary):
        entries = {name.removeprefix(f"{op} "): entry for name, entry in summary.items() if name.split()[0] == op}
        keys = list(dict.fromkeys(key for entry in entries.values() for key in entry))
        body = [[name, *(f"{entry[k]:.2f}" if k in entry else "-" for k in keys)] for name, entry in entries.items()]
        header = [f"{op}: geometric mean", *(k.replace("_", " ") for k in keys)]
        parts.append(_table(header, body, markdown=markdown))
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
                    seconds(value) if value is not None else entry.get("note") or "-",
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
    """Measured point."""
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
