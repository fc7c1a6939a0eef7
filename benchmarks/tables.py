"""Markdown tables from result files, and the verdict on every row.

    python -m benchmarks.tables                                     every table of every file in benchmarks/results
    python -m benchmarks.tables benchmarks/results/ops_cpu.json [more.json]         of these
    python -m benchmarks.tables --beside ops_cpu.json ops_cpu_avx2.json [--cases REGEX] [--modes forward]
                                                                    one line per row, with columns for every file

Verdict: ours against the fastest form in plain PyTorch (eager, scatter, dense, published ...; not torch.compile, not copies
and floors). A row in which ours is slower is a LOSS. Not so if its median is less than 3 % above the other's and their 20th
to 80th percentiles overlap: that is measuring noise (mixsyn_fast/measure/clock.py).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixsyn_fast.measure.clock import Timing, slower
from mixsyn_fast.measure.contest import is_ours, is_plain

from . import schema

Row = Mapping[str, Any]
# what a row of an op may tell besides times: key -> (header, format)
FACTS = {
    "distinct_patterns": ("patterns", "{}"),
    "share": ("per pixel", "{:.3f}"),
    "regions_present": ("regions present", "{}"),
}


def _median(row: Row, name: str) -> float | None:
    timing = row["contenders"].get(name, {}).get("timing")
    return None if timing is None else float(timing["median"])


def ratio(row: Row, slow: str, fast: str) -> float | None:
    """Seconds of one contender / those of another; None where one of them has no time."""
    a, b = _median(row, slow), _median(row, fast)
    return None if a is None or b is None else a / b


def _ours(row: Row) -> list[str]:
    return [name for name in row["contenders"] if is_ours(name) and _median(row, name) is not None]


class Verdict(NamedTuple):
    """Ours against the fastest form in plain PyTorch."""

    plain: str
    ratio: float  # its seconds / ours
    loss: bool

    def __str__(self) -> str:
        """In words: "LOSS: 0.83 x eager", "2.50 x eager"."""
        return f"{'LOSS: ' * self.loss}{self.ratio:.2f} x {self.plain}"


def verdict(row: Row, own: str) -> Verdict | None:
    """The verdict on a contender of ours; None where nothing in plain PyTorch was timed."""
    timings = {name: Timing(**e["timing"]) for name, e in row["contenders"].items() if e.get("timing") is not None}
    plain = min((name for name in timings if is_plain(name)), key=lambda name: timings[name].median, default=None)
    if plain is None:
        return None
    return Verdict(plain, timings[plain].median / timings[own].median, slower(timings[own], timings[plain]))


def faults(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return "losses" and "wrong": the rows that ours loses, and those where its result did not pass its gate."""
    found: dict[str, list[str]] = {"losses": [], "wrong": []}
    for row in rows:
        where = row["case"] if row["case"].endswith(row["mode"]) else f"{row['case']} {row['mode']}"
        for name, entry in row["contenders"].items():
            if not is_ours(name):
                continue
            if entry.get("timing") is None:
                found["wrong"].append(f"{where}: {name}: {entry.get('note') or 'no time'}")
            elif (judged := verdict(row, name)) is not None and judged.loss:
                found["losses"].append(f"{where}: {name} {judged.ratio:.2f} x {judged.plain}")
    return found


def conclusion(found: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> str:
    """Return what :func:`faults` found as the last lines of a run."""
    lines = [f"{len(rows)} rows: {len(found['losses'])} lost to plain PyTorch, {len(found['wrong'])} wrong"]
    lines += [f"LOSS {line}" for line in found["losses"]] + [f"WRONG {line}" for line in found["wrong"]]
    return "\n".join(lines)


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
            if row.get(label) is not None:
                parts.append(f"{name}/{label[:-2].replace('_', ' ')} {_ratio(own, row[label])}")
        parts += [str(judged) for judged in [verdict(row, name)] if judged is not None]
        goals = [goal for goal in row.get("targets", ()) if goal["contender"] == name]
        parts += [f"{'reached' if goal['met'] else 'MISSED'}: {target_text(goal)}" for goal in goals] or ["no target"]
    return f"{row['case']} {row['mode']}: " + ", ".join(parts)


def model_line(row: Row) -> str:
    """One line of a generator row for the terminal."""
    parts = []
    for name, entry in row["contenders"].items():
        value = _median(row, name)
        parts.append(f"{name} {seconds(value)}" if value is not None else f"{name}: {entry.get('note') or 'no time'}")
    for name in ("published", "dense", "compile"):
        parts += [f"{found:.2f} x {name}" for found in [ratio(row, name, "ours")] if found is not None]
    parts += [str(judged) for name in _ours(row) if (judged := verdict(row, name)) is not None and judged.loss]
    for name, text in (("floor", "ours/floor"), ("floor_plain", "ours/plain floor")):
        parts += [f"{text} {found:.2f}" for found in [ratio(row, "ours", name)] if found is not None]
    if "float64_error" in row["facts"]:
        parts.append(f"float64 error {row['facts']['float64_error']:.1e}")
    return f"{row['case']}: " + ", ".join(parts)


def _mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _names(rows: Sequence[Row], wanted: bool) -> list[str]:
    """Contenders of the rows in order of appearance: ours, or all others."""
    names = dict.fromkeys(name for row in rows for name in row["contenders"])
    return [name for name in names if is_ours(name) == wanted]


def summarise_ops(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Geometric means per op with a floor, contender of ours, and mode.

    Returns:
        "<op> <contender> <mode>" -> rows, speed-up over every other contender, ratio to both floors (mean and worst), and
        the share of the rows' targets that were met, and the number of rows lost to plain PyTorch.
    """
    summary: dict[str, dict[str, float]] = {}
    for op in dict.fromkeys(row["op"] for row in rows):
        of_op = [row for row in rows if row["op"] == op and row["floor_s"] is not None]
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
    entry["losses"] = sum(judged.loss for row, _ in timed if (judged := verdict(row, name)) is not None)
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
    facts = [key for key in FACTS if any(key in row["facts"] for row in rows)]
    floors = [key for key in ("floor_s", "memory_floor_s") if any(row[key] is not None for row in rows)]
    temporary = any(entry.get("temporary_bytes") is not None for row in rows for entry in row["contenders"].values())
    header = [op, "mode", *(FACTS[key][0] for key in facts), *others, "ours", *(f"x {name}" for name in others)]
    header += [f"/ {key[:-2].replace('_', ' ')}" for key in floors]
    header += ["error", "MiB", f"MiB {_baseline(rows[0])}"]
    header += ["temporary MiB", f"temporary MiB {_baseline(rows[0])}"] * temporary + [
        "verdict",
        "targets",
    ]
    body = []
    for row in rows:
        for name in _ours(row) or ["-"]:
            own = _median(row, name)
            entry, theirs = (row["contenders"].get(n, {}) for n in (name, _baseline(row)))
            line = [row["case"].removeprefix(f"{op}/"), row["mode"]]
            line += [FACTS[key][1].format(row["facts"][key]) if key in row["facts"] else "-" for key in facts]
            line += [seconds(_median(row, other)) for other in others]
            line += [f"{name} {seconds(own)}", *(_ratio(_median(row, other), own) for other in others)]
            line += [_ratio(own, row.get(key)) for key in floors]
            line += [_error(entry), mebibytes(entry), mebibytes(theirs)]
            if temporary:
                line += [mebibytes(entry, "temporary_bytes"), mebibytes(theirs, "temporary_bytes")]
            line.append(str(verdict(row, name) or "-") if own is not None else "-")
            found = [goal for goal in row.get("targets", ()) if goal["contender"] == name]
            missed = [f"missed: {target_text(goal)}" for goal in found if not goal["met"]]
            line.append("; ".join(missed) if missed else "all reached" if found else "no target")
            body.append(line)
    return _table(header, body, markdown=markdown)


def _baseline(row: Row) -> str:
    """The contender whose memory ours is compared with."""
    return row["baseline"] or "eager"


def render_ops(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """The tables of a result about ops: one per op, then the geometric means of each op."""
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
    """The table of a result about whole networks: one line per contender."""
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
                    str(verdict(row, name) or "") if name == "ours" and own is not None else "",
                ]
            )
    header = ["generator", "contender", "time", "ours faster by", "ours / floor", "relative error", "MiB", "verdict"]
    return _table(header, body, markdown=markdown)


def _by_name(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores by metric, or by "task: metric" where a model was judged at several tasks."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        if score is None or "mean" in score:
            found[name] = score
        else:
            found |= {f"{name}: {metric}": own for metric, own in score.items()}
    return found


def render_scores(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """The table of a result about quality: a line per model, a column per score, with its interval."""
    scores = [_by_name(row["facts"]["scores"]) for row in result["rows"]]
    names = list(dict.fromkeys(name for own in scores for name in own))

    def cell(score: Mapping[str, float] | float | str | None) -> str:
        if score is None or isinstance(score, str):  # not there, or no number ("nan")
            return "-"
        if isinstance(score, int | float):
            return f"{score:.3g}"
        return f"{score['mean']:.3g}" + (f" [{score['low']:.3g}, {score['high']:.3g}]" if "low" in score else "")

    body = [
        [row["case"], str(row["facts"].get("steps", "-")), *(cell(own.get(name)) for name in names)]
        for row, own in zip(result["rows"], scores, strict=True)
    ]
    return _table(["model", "steps", *names], body, markdown=markdown)


def render(result: Mapping[str, Any], *, markdown: bool = True) -> str:
    """All tables of a result, with the machine line."""
    from .timing import machine_line

    kind = result["kind"]
    table = render_models if kind in _NETWORKS else render_scores if kind == "evaluation" else render_ops
    body = table(result, markdown=markdown)
    rates = ", ".join(f"{k.replace('_', ' ')} {v:.1f}" for k, v in result["rates"].items())
    about = "; ".join(filter(None, (result["labels"], f"measured in the same run: {rates}" if rates else "")))
    return "\n".join(filter(None, (machine_line(result["machine"]), about))) + f"\n\n{body}\n"


# kinds that are about whole networks, the others are about ops
_NETWORKS = ("models", "mixsyn", "clvae", "msca", "stylegan2", "stylefusion", "harmonized", "libraries", "training")
_TITLES = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "SSE2", "neon": "NEON"}


def title(result: Mapping[str, Any]) -> str:
    """The column title of a result: the instruction set, on a GPU its name."""
    facts = result["machine"]
    isa = facts.get("instruction_set") or str(facts["cpu_capability"]).lower()
    return str(facts.get("gpu") or _TITLES.get(isa, isa))


def beside(
    results: Sequence[Mapping[str, Any]],
    *,
    cases: str | None = None,
    modes: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    markdown: bool = True,
) -> str:
    """Results of one suite beside each other: a table per op, a line per row, and for every result ours and its verdict.

    Args:
        results: of one kind.
        cases: regular expression; rows whose name does not match are left out.
        modes: that are shown; all when None.
        titles: of the results' columns; by instruction set when None.
        markdown: for documents, else for the terminal.
    """
    titles = list(titles or map(title, results))
    if len(titles) != len(results):
        raise ValueError(f"--titles: expected {len(results)}, one per file, got {len(titles)}")
    maps = [{(row["op"], row["case"], row["mode"]): row for row in result["rows"]} for result in results]
    keys = [key for key in dict.fromkeys(key for rows in maps for key in rows) if modes is None or key[2] in modes]
    keys = [key for key in keys if cases is None or re.search(cases, key[1])]
    floors = (
        {"memory_floor_s": "/ memory floor"}
        if any(r["memory_floor_s"] is not None for rows in maps for r in rows.values())
        else {}
    )
    parts = []
    for op in dict.fromkeys(key[0] for key in keys):
        header = [op, "mode"]
        for text in titles:
            header += [f"{text}: ours", "fastest plain", "faster", *floors.values()]
        body = []
        for key in [key for key in keys if key[0] == op]:
            line = [key[1].removeprefix(f"{op}/"), key[2]]
            for rows in maps:
                line += _beside_cells(rows.get(key), list(floors))
            body.append(line)
        parts.append(_table(header, body, markdown=markdown))
    return "\n\n".join(parts)


def _beside_cells(row: Row | None, floors: Sequence[str]) -> list[str]:
    """The cells of one row in one result: ours (the fastest of ours), the fastest plain form, the ratio, the floors."""
    name = min(_ours(row), key=lambda n: _median(row, n) or 0.0, default=None) if row is not None else None
    if row is None or name is None or (judged := verdict(row, name)) is None:
        return ["-"] * (3 + len(floors))
    own = _median(row, name)
    cells = [seconds(own), f"{judged.plain} {seconds(_median(row, judged.plain))}"]
    cells.append(f"{'LOSS: ' * judged.loss}{judged.ratio:.2f} x")
    return cells + [_ratio(own, row.get(key)) for key in floors]


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Markdown tables from result files")
    parser.add_argument("results", nargs="*", type=Path, metavar="FILE.json", help="default: all in benchmarks/results")
    parser.add_argument("--beside", action="store_true", help="the files beside each other, one line per row")
    parser.add_argument("--cases", metavar="REGEX", help="with --beside: only rows whose name matches")
    parser.add_argument("--modes", help="with --beside: comma-separated: forward, backward, both, training")
    parser.add_argument("--titles", help="with --beside: comma-separated, of the files' columns")
    options = parser.parse_args(arguments)
    try:
        named = {str(path): schema.load(path) for path in options.results} or schema.committed()
    except ValueError as error:
        parser.error(str(error))
    results = list(named.values())
    if not options.beside:
        print("\n".join(f"## {name}\n{render(result)}" for name, result in named.items()))
        return 0
    modes, titles = (text.split(",") if text else None for text in (options.modes, options.titles))
    try:
        table = beside(results, cases=options.cases, modes=modes, titles=titles)
    except ValueError as error:
        parser.error(str(error))
    from .timing import machine_line

    print("\n".join(f"{title(result)}: {machine_line(result['machine'])}" for result in results), end="\n\n")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
