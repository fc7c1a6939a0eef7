"""Write docs/measured.md, and the measured numbers in other documents, from benchmarks/results.

    python -m benchmarks.measured           (make measured; draws the charts in docs/pictures as well)

No number of the document is written by hand. Which rows of the ops it shows is data (`ROWS`); all are printed by
`python -m benchmarks.tables`. In other documents a number stands between `<!--=name-->` and `<!--/-->` (`values`). A test
makes all of it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsyn_fast.measure.contest import is_ours
from mixsyn_fast.writing import write_whole

from . import again, plot_levels, plot_msca, plot_times, run_libraries, schema
from .tables import Row, mebibytes, ratio, seconds, verdict
from .timing import machine_line

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "measured.md"
FILLED = ("README.md", "docs/accelerate.md", "docs/exact_algebra.md", "models/mixsyn/README.md", "models/msca/README.md")
Results = Mapping[str, Mapping[str, Any]]

GENERATORS = ("models_cpu.json", "models_cpu_more.json", "models_cpu_training.json")
OPS = ("ops_cpu_pooling.json", "ops_cpu.json")  # a row is taken from the first that has it: the later one
_NORM, _POOL, _PAIR = "region_norm/table/batch/", "masked_roi_pool/", "attention_pair/k16/n128/m64/2x128x128/"
# (what a reader reads, case, mode)
ROWS = (
    ("region_norm, table, batch, 1 x 128 x 256 x 256", f"{_NORM}1x128x256x256/channels_last/float32", "forward"),
    ("the same, backward", f"{_NORM}1x128x256x256/channels_last/float32", "backward"),
    ("region_norm, 1 x 512 x 64 x 64", f"{_NORM}1x512x64x64/channels_last/float32", "forward"),
    ("the same, backward", f"{_NORM}1x512x64x64/channels_last/float32", "backward"),
    ("region_norm, 1 x 1024 x 16 x 16, backward", f"{_NORM}1x1024x16x16/channels_last/float32", "backward"),
    ("pool max, K 151, 4 x 64 x 128 x 128", f"{_POOL}max/k151/4x64x128x128/channels_last/float32", "forward"),
    ("the same, contiguous", f"{_POOL}max/k151/4x64x128x128/contiguous/float32", "forward"),
    ("pool max, K 19, 4 x 64 x 128 x 128", f"{_POOL}max/k19/4x64x128x128/channels_last/float32", "forward"),
    ("pool mean, K 19, the same", f"{_POOL}mean/k19/4x64x128x128/channels_last/float32", "forward"),
    ("pool max, K 151, 4 x 256 x 32 x 32", f"{_POOL}max/k151/4x256x32x32/channels_last/float32", "forward"),
    ("attention pair, K 16, N 128, M 64, 2 x 128 x 128", f"{_PAIR}channels_last/float32", "forward"),
    ("the same, backward", f"{_PAIR}channels_last/float32", "backward"),
    ("the same, contiguous", f"{_PAIR}contiguous/float32", "forward"),
    ("the same, contiguous, backward", f"{_PAIR}contiguous/float32", "backward"),
    ("latent_blend, 1024, batch 1", "latent_blend/b1/1024/q_on_b/float32", "forward"),
    ("latent_blend, 1024, batch 16", "latent_blend/b16/1024/q_on_b/float32", "forward"),
    ("hierarchy of faces (5 FusionNets), batch 1", "fusion_hierarchy/faces/b1/1024/h2560/float32", "forward"),
    ("hierarchy of faces, batch 16", "fusion_hierarchy/faces/b16/1024/h2560/float32", "forward"),
    ("label_patterns, face 256 x 256, one core", "label_patterns/face/1x256x256/r2/shared/t1", "forward"),
)
OTHERS = {
    "bfloat16, AVX-512": "ops_cpu_bfloat16.json",
    "float16, AVX-512": "ops_cpu_float16.json",
    "bfloat16, AVX2": "ops_cpu_avx2_bfloat16.json",
    "float16, AVX2": "ops_cpu_avx2_float16.json",
    "float32, baseline (SSE2)": "ops_cpu_baseline.json",
    "float32, every batch size and layout, AVX-512": "ops_cpu_all_layouts.json",
}

# ----------------------------------------------------------------------------------------------------------- rows


def find(results: Results, names: Sequence[str], case: str, mode: str) -> Row | None:
    """Return a row of the first of these files that has it; None where none has."""
    rows = (row for name in names for row in results[name]["rows"] if (row["case"], row["mode"]) == (case, mode))
    return next(rows, None)


def _own(row: Row) -> str:
    """Our fastest contender that has a time."""
    timed = {name: entry["timing"]["median"] for name, entry in row["contenders"].items() if entry["timing"]}
    return min((name for name in timed if is_ours(name)), key=timed.__getitem__)


def _time(row: Row, name: str) -> str:
    entry = row["contenders"].get(name)
    if entry is None:
        return "-"
    return seconds(entry["timing"]["median"]) if entry["timing"] else "wrong"


def _times(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}g} x" if value < 10 else f"{value:.0f} x"


def _worst(results: Results, names: Iterable[str], of: Callable[[str], bool], *, op: str | None = None) -> float:
    """The largest error at a gate of the contenders that `of` picks."""
    errors = [
        float(entry["gate"]["error"])
        for name in names
        for row in results[name]["rows"]
        if op is None or row["op"] == op
        for contender, entry in row["contenders"].items()
        if of(contender) and entry["gate"] is not None and entry["timing"] is not None
    ]
    return max(errors, default=float("nan"))


# ----------------------------------------------------------------------------------------------------------- tables


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def _from(results: Results, *names: str) -> str:
    """Where a table comes from: machine, commit and date of its files."""
    by_line: dict[str, list[str]] = {}
    for name in names:
        by_line.setdefault(machine_line(results[name]["machine"]), []).append(name)
    return "\n".join(f"* {', '.join(files)}: {line}" for line, files in by_line.items())


def generators(results: Results) -> str:
    """Whole generators against everything there is to compare with."""
    names = {"sean": "SEAN", "sean_image": "SEAN with style encoder", "spade": "SPADE K 151", "clade": "CLADE K 151"}
    body = []
    for row in (row for name in GENERATORS for row in results[name]["rows"]):
        case = row["settings"]
        step = ", training step" if row["mode"] == "training" else ""
        cells = [_time(row, name) for name in ("ours", "published", "dense", "compile", "floor_plain", "floor")]
        cells.append(_times(ratio(row, "dense", "ours")))
        for name in ("floor_plain", "floor"):
            found = ratio(row, "ours", name)
            cells.append("-" if found is None else f"{found:.2f}")
        cells.append(f"{float(row['contenders']['ours']['gate']['error']):.1e}")
        body.append([f"{names[case['family']]}{step}, batch {case['batch']}", *cells])
    header = ("generator", "ours", "published", "dense", "compile", "plain floor", "floor", "faster than dense")
    return _table((*header, "ours / plain floor", "ours / floor", "error"), body)


def instruction_sets(results: Results) -> str:
    """The same generators as the machine is, and held to AVX2."""
    files = ("models_cpu_avx512.json", "models_cpu_avx2.json")
    body = []
    for first in results[files[0]]["rows"]:
        cells = [first["settings"]["family"].upper()]
        for name in files:
            row = find(results, [name], first["case"], first["mode"])
            cells += (
                ["-"] * 3 if row is None else [_time(row, "ours"), _time(row, "dense"), _times(ratio(row, "dense", "ours"))]
            )
        body.append(cells)
    return _table(("generator, batch 1", "AVX-512: ours", "dense", "faster", "AVX2: ours", "dense", "faster"), body)


def foreign(results: Results) -> str:
    """accelerate() on layers of label noise, features and class vectors, and on a whole SEAN, against the published form."""
    names = {
        "noise": "SPADE layer",
        "features": "SPADE layer on features",
        "columns": "SPADE layer on vectors of classes",
        "sean_test": "whole SEAN, test mode",
        "sean_ui": "whole SEAN, edited (codes from obj_dic)",
    }
    body = []
    for row in results["accelerate_cpu.json"]["rows"]:
        case = row["settings"]
        text = names[case["what"]]
        if case["cell"]:
            shape = f"{case['channels']} x {case['size']} x {case['size']}"
            cells = {"noise": "noise in cells of", "features": "enlarged by", "columns": "in cells of"}[case["what"]]
            text += f", K {case['regions']}, {shape}, {cells} {case['cell']}"
        text += ", training step" if row["mode"] == "training" else ""
        error = f"{float(row['contenders']['ours']['gate']['error']):.1e}"
        body.append([text, _time(row, "published"), _time(row, "ours"), _times(ratio(row, "published", "ours"), 3), error])
    return _table(("model", "published", "accelerated", "faster", "error"), body)


_LIBRARIES = "libraries_cpu.json"


def libraries(results: Results) -> str:
    """Return the section of whole models of other libraries; nothing where it was not measured."""
    if _LIBRARIES not in results:
        return ""
    times, shares = [], []
    for row in results[_LIBRARIES]["rows"]:
        case, facts, entries = row["settings"], row["facts"], row["contenders"]
        text = f"{run_libraries.MODELS[case['model']].title}, {case['size']}"
        cells = [_time(row, name) for name in ("eager", "compile", "ours", run_libraries.KEPT)]
        cells += [_times(ratio(row, "eager", name), 3) for name in ("ours", run_libraries.KEPT)]
        cells.append(" / ".join(mebibytes(entries[name]) for name in ("ours", "eager", "floor")))
        cells.append(f"{float(entries['ours']['gate']['error']):.1e}")
        times.append([text, *cells, "; ".join(map(_reached, row["targets"])) or "-"])
        of_work = [facts["share"], *(facts[name]["share"] for name in ("ours", run_libraries.KEPT) if name in facts)]
        of_time = [
            1 - rest for name in ("eager", "ours", run_libraries.KEPT) if (rest := ratio(row, "floor", name)) is not None
        ]
        shares.append(
            [
                text,
                f"{facts['macs'] / 1e9:.3g} G",
                *(", ".join(f"{value:.0%}" for value in values) for values in (of_work, of_time)),
                _times(ratio(row, "eager", "floor"), 3),
                f"{facts['accelerated']} of {facts['layers']}",
            ]
        )
    first = ("eager", "compile", "ours", "ours, kept", "faster", "faster, kept", "MiB", "error", "target")
    second = ("multiply-accumulates", "conditioning's share of them", "of the time", "by it alone", "layers")
    parts = [_LIBRARIES_TEXT, _table(("model, size", *first), times), _SHARES_TEXT, _table(("model, size", *second), shares)]
    return "\n\n".join([*parts, f"[[from {_LIBRARIES}]]"]) + "\n\n"


_LIBRARIES_TEXT = """### Whole models of other libraries
The libraries' own classes (MONAI, diffusers) and research code written from the papers, with random weights, on
real label maps (a volume is nested shells), before and after one call; *kept*: inside `constant_conditioning`, as all but
the first step of a sampler. *MiB*: the most that all tensors of a call take at once, ours / eager / eager without the
layers that read the map. Widths: benchmarks/run_libraries.py."""
_SHARES_TEXT = """\
The conditioning's share, before and after (ours, and kept), of the multiply-accumulates and of the time (by eager without
the layers that read the map); *by it alone*: how much faster the model would be if those layers cost nothing."""


def _reached(goal: Mapping[str, Any]) -> str:
    """A target of a row in words."""
    bound = f"at least {goal['least']:g} x" if goal["most"] is None else f"memory at most {goal['most']:g} x"
    return f"{bound}: {'' if goal['met'] else 'missed, '}{float(goal['got']):.2f} x"


def _libraries_values(results: Results) -> dict[str, str]:
    """Numbers of docs/accelerate.md: layers, times faster than eager, peak memory; what was not measured yet says so."""
    found: dict[str, str] = {}
    for case in run_libraries.cases():
        row = find(results, [_LIBRARIES], f"libraries/{case.name}", "forward") if _LIBRARIES in results else None
        names = {"": "ours", " kept": run_libraries.KEPT, " memory": ""}
        for end, name in names.items():
            value = None
            if row is not None and name:
                value = ratio(row, "eager", name)
            elif row is not None and all(row["contenders"][n]["peak_bytes"] for n in ("ours", "eager")):
                value = row["contenders"]["ours"]["peak_bytes"] / row["contenders"]["eager"]["peak_bytes"]
            found[case.name + end] = "not measured yet" if value is None else f"{value:.2f} x"
        layers = "not measured yet" if row is None else "{accelerated} of {layers}".format(**row["facts"])
        found[f"{case.name} layers"] = layers
    return found


def ops(results: Results) -> str:
    """The chosen rows of the ops."""
    body = []
    for text, case, mode in ROWS:
        cells = [text]
        for names in (OPS, ("ops_cpu_avx2.json",)):
            row = find(results, names, case, mode)
            judged = None if row is None else verdict(row, _own(row))
            if row is None or judged is None:
                cells += ["-"] * 4
                continue
            own, floor = row["contenders"][_own(row)]["timing"]["median"], row["memory_floor_s"]
            cells += [seconds(own), f"{judged.plain} {_time(row, judged.plain)}", _times(judged.ratio, 3)]
            cells.append("-" if floor is None else f"{own / floor:.2f}")
        body.append(cells)
    columns = ("ours", "fastest plain", "faster", "/ floor")
    return _table(("row", *(f"{isa}: {c}" if c == "ours" else c for isa in ("AVX-512", "AVX2") for c in columns)), body)


def against(results: Results, names: Sequence[str], other: str) -> str:
    """How many times faster ours is than one contender, over all rows: least to most, per op and mode."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in (row for name in names for row in results[name]["rows"] if row["mode"] != "both"):
        value = ratio(row, other, _own(row))
        if value is not None:
            found.setdefault((row["op"], row["mode"]), []).append(value)
    body = [[op, mode, str(len(v)), _times(min(v)), _times(max(v))] for (op, mode), v in found.items()]
    return _table(("op", "mode", "rows", "least", "most"), body)


def other_rows(results: Results) -> str:
    """The other dtypes, instruction sets and layouts: the range over rows against the fastest plain form, per op."""
    columns = list(OTHERS)
    found: dict[str, dict[str, list[float]]] = {}
    for title, name in OTHERS.items():
        for row in results[name]["rows"]:
            judged = verdict(row, _own(row)) if row["mode"] != "both" else None
            if judged is not None:
                found.setdefault(row["op"], {}).setdefault(title, []).append(judged.ratio)
    body = [
        [op, *(f"{_times(min(of[t]))} to {_times(max(of[t]))}" if t in of else "-" for t in columns)]
        for op, of in found.items()
    ]
    return _table(("op", *columns), body)


def lost(results: Results) -> str:
    """Every row in which ours is slower than plain PyTorch, in all files but those of `auto`'s table."""
    lines = [
        f"* {line} ({name}, {result['machine']['date']})"
        for name, result in results.items()
        if result["kind"] != "winners"
        for line in result["losses"]
    ]
    return "\n".join(lines) or "None."


def missed(results: Results) -> str:
    """Goals that some rows miss, per file, op and mode."""
    found: dict[tuple[str, str, str, str], list[tuple[float, bool]]] = {}
    for name in (*OPS, "ops_cpu_all_layouts.json", "ops_cpu_avx2.json", "ops_cpu_baseline.json"):
        for row in (row for row in results[name]["rows"] if row["mode"] != "both"):
            for goal in row["targets"]:
                most = goal["least"] is None
                bound = goal["most"] if most else goal["least"]
                text = f"{goal['what'].replace('_', ' ')} {'at most' if most else 'at least'} {bound:g} x"
                found.setdefault((name, row["op"], row["mode"], text), []).append((float(goal["got"]), bool(goal["met"])))
    body = []
    for (name, op, mode, text), goals in found.items():
        wrong = [got for got, met in goals if not met]
        if wrong:
            span = " to ".join(dict.fromkeys((f"{min(wrong):.2f}", f"{max(wrong):.2f}")))
            body.append([name, op, mode, text, f"{len(wrong)} of {len(goals)}", span])
    return _table(("file", "op", "mode", "goal", "rows that miss it", "they have"), body)


def training(results: Results) -> str:
    """Whole training loops."""
    body = []
    for row in (row for name in ("training_cpu.json", "mixsyn_training_cpu.json") for row in results[name]["rows"]):
        options, images = row["settings"]["options"], row["facts"]["images"]
        shown = dict(zip(options[::2], options[1::2], strict=True))
        shown.pop("--data", None)
        text = f"{row['settings']['model']} " + " ".join(
            f"{name.removeprefix('--')} {value}" for name, value in shown.items()
        )
        both = [row["contenders"][name] for name in ("ours", "dense")]
        cells = [f"{_time(row, 'ours')}, dense {_time(row, 'dense')}"]
        cells.append(", dense ".join(f"{images / entry['timing']['median']:.2f}" for entry in both))
        cells.append(", dense ".join(f"{entry['peak_bytes'] / 1e9:.1f} GB" for entry in both))
        cells.append(_times(ratio(row, "dense", "ours")))
        cells.append(f"{both[0]['peak_bytes'] / both[1]['peak_bytes']:.2f} x")
        cells.append(f"{row['facts']['data_s']['ours'] * 1e3:.0f} ms")
        body.append([text, *cells, f"{float(both[0]['gate']['error']):.1e}"])
    return _table(("run", "step", "images / s", "peak memory", "faster", "memory", "data wait", "first losses differ"), body)


def mixsyn(results: Results) -> str:
    """MixSyn's inference, part by part."""
    body = []
    for row in results["mixsyn_cpu.json"]["rows"]:
        floor = ratio(row, "ours", "floor")
        cells = [_time(row, name) for name in ("dense", "compile", "ours")]
        cells += [_times(ratio(row, "dense", "ours")), "-" if floor is None else f"{floor:.2f}"]
        body.append([row["settings"]["part"], *cells, mebibytes(row["contenders"]["ours"])])
    return _table(("part", "plain PyTorch", "compile", "ours", "faster than plain", "/ floor", "MiB"), body)


_CLVAE = ("clvae_cpu.json", "clvae_step_cpu.json", "clvae_edit_cpu.json", "clvae_cpu_avx2.json")


def clvae(results: Results) -> str:
    """Training steps of the class- and layer-wise VAE, their parts, and the pooling."""
    body = []
    for name in _CLVAE:
        for row in results[name]["rows"]:
            isa = ", AVX2" if results[name]["machine"]["instruction_set"] == "avx2" else ""
            cells = [_time(row, contender) for contender in ("published", "per_class", "dense", "ours", "floor")]
            cells += [_times(ratio(row, other, "ours"), 3) for other in ("published", "dense")]
            both = [row["contenders"].get(contender, {}) for contender in ("ours", "dense")]
            memory = "-" if both[0].get("peak_bytes") is None else " / ".join(map(mebibytes, both))
            body.append([row["case"].removeprefix("clvae/") + isa, *cells, memory])
    columns = (
        "published",
        "class by class",
        "dense",
        "ours",
        "floor",
        "faster than published",
        "than dense",
        "MiB, ours / dense",
    )
    return _table(("row", *columns), body)


_MSCA, _TABLE_1 = "msca_cpu.json", "msca_quality.json"
_SCORES = {"psnr": ("PSNR", ".2f"), "lpips_vgg": ("LPIPS", ".3f"), "fid": ("FID", ".0f"), "style": ("style", ".2e")}


def msca(results: Results) -> str:
    """Return MSCA's section, as far as it was measured: times, Table 1; nothing where neither was."""
    parts = [make(results) for name, make in ((_MSCA, msca_times), (_TABLE_1, msca_quality)) if name in results]
    named = " ".join(name for name in (_MSCA, _TABLE_1) if name in results)
    return "\n\n".join(["## MSCA", *parts, f"[[from {named}]]"]) + "\n\n" if parts else ""


def msca_times(results: Results) -> str:
    """The forward, a training step and their parts, K, exemplars, kept halves; what share every part has."""
    body, shares = [], []
    for row in results[_MSCA]["rows"]:
        cells = [_time(row, name) for name in ("dense", "full", "ours", "floor")]
        both = [row["contenders"].get(name, {}) for name in ("ours", "dense")]
        memory = "-" if both[0].get("peak_bytes") is None else " / ".join(map(mebibytes, both))
        body.append([row["case"].removeprefix("msca/"), *cells, _times(ratio(row, "dense", "ours"), 3), memory])
        for part in row["facts"].get("shares", {}).get("ours", {}):
            both_shares = [f"{float(row['facts']['shares'][name][part]):.0%}" for name in ("dense", "ours")]
            shares.append([part, *both_shares])
    text = (
        "The forward, a training step without its perceptual loss, and parts of them (size, width, batch in a row's name);\n"
        "*full* is ours where nothing was kept, *ours* then what is left to do; *floor* what has no normalisation, or what\n"
        "nobody can save.\n\n"
    )
    text += "![time against K, and against the exemplar's size](pictures/msca_times.png)\n\n"
    text += _table(("row", "plain PyTorch", "full", "ours", "floor", "faster", "MiB, ours / plain"), body)
    return text + ("\n\n" + _table(("part of a forward", "plain PyTorch", "ours"), shares) if shares else "")


def msca_quality(results: Results) -> str:
    """Table 1 of the paper: every task and model, with intervals, and differences to the first on the same pictures."""
    rows = results[_TABLE_1]["rows"]
    body = []
    for task in rows[0]["facts"]["scores"]:
        for row in rows:
            of = row["facts"]["scores"][task]
            cells = [_score(of[name], form) if name in of else "-" for name, (_, form) in _SCORES.items()]
            body.append([task, row["case"].removeprefix("quality/"), str(row["facts"]["steps"]), *cells])
    text = (
        "Table 1 of the paper at our scale, on the validation pictures: mean [95 % interval over pictures] and, after the\n"
        "semicolon, the difference to the first model on the same pictures.\n\n"
    )
    text += _table(("task", "model", "steps", *(title for title, _ in _SCORES.values())), body)
    kept = [
        [row["case"].removeprefix("quality/"), *(f"{float(row['facts']['labels'][name]):.1%}" for name in ("own", "even"))]
        for row in rows
        if "labels" in row["facts"]
    ]
    return text + ("\n\n" + _table(("model", "handed to the own label", "by global pooling"), kept) if kept else "")


def _score(score: Mapping[str, Any], form: str) -> str:
    """Mean [low, high]; difference [low, high]."""

    def said(each: Mapping[str, Any], form: str) -> str:
        mean, *ends = (format(float(each[key]), form) for key in ("mean", "low", "high") if key in each)
        return f"{mean} [{', '.join(ends)}]" if ends else mean

    return said(score, form) + (f"; {said(score['difference'], '+' + form)}" if "difference" in score else "")


def _msca_values(results: Results) -> dict[str, str]:
    """Numbers of models/msca/README.md; what was not measured yet says so."""
    found = dict.fromkeys(("msca forward", "msca step", "msca new label map", "msca new exemplar"), "not measured yet")
    for row in results[_MSCA]["rows"] if _MSCA in results else ():
        name = " ".join(row["case"].replace("/", " ").split(" ")[:-4])
        plain = "full" if "full" in row["contenders"] else "dense"
        if found.get(name) == "not measured yet":
            found[name] = _times(ratio(row, plain, "ours"))
    tasks = ("duplicating", "mirroring", "retrieving")
    found |= {f"msca {name}": "not measured yet | - | -" for name in ("full", "gap", "labels", "spade_vae")}
    for row in results[_TABLE_1]["rows"] if _TABLE_1 in results else ():
        cells = []
        for task in tasks:
            of = row["facts"]["scores"].get(task, {})
            each = [format(float(of[key]["mean"]), form) if key in of else "-" for key, (_, form) in _SCORES.items()]
            cells.append(" / ".join(each) if of else "-")
        found["msca " + row["case"].removeprefix("quality/")] = " | ".join(cells)
    return found


_STYLES = ("stylegan2_cpu.json", "stylegan2_cpu_avx2.json", "stylefusion_cpu.json")


def stylegan2(results: Results) -> str:
    """StyleGAN2's generator, and a move of a slider of StyleFusion."""
    body = []
    for name in _STYLES:
        for row in (row for row in results[name]["rows"] if row["mode"] != "training"):
            isa = ", AVX2" if results[name]["machine"]["instruction_set"] == "avx2" else ""
            cells = [_time(row, contender) for contender in ("published", "compile", "full", "ours", "floor")]
            cells += [_times(ratio(row, other, "ours"), 3) for other in ("published", "compile", "full")]
            floor = ratio(row, "ours", "floor")
            mode = {"both": ", with gradients"}.get(row["mode"], "")
            body.append([row["case"] + mode + isa, *cells, "-" if floor is None else f"{floor:.2f}"])
    columns = (
        "published",
        "compile",
        "full pass",
        "ours",
        "floor",
        "than published",
        "than compile",
        "than full",
        "/ floor",
    )
    return _table(("row", *columns), body)


def stylefusion(results: Results) -> str:
    """Training steps of StyleFusion's stages, and the share of each part."""
    body = []
    for row in (row for row in results["stylefusion_cpu.json"]["rows"] if row["mode"] == "training"):
        cells = [_time(row, name) for name in ("dense", "ours")] + [_times(ratio(row, "dense", "ours"), 3)]
        both = [row["contenders"].get(name, {}) for name in ("ours", "dense")]
        memory = "-" if both[0].get("peak_bytes") is None else " / ".join(map(mebibytes, both))
        shares = row["facts"].get("share of the step", {}).get("ours", {})
        text = ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares.items())
        body.append([row["case"].removeprefix("stylefusion/"), *cells, memory, text or "-"])
    return _table(("row", "dense", "ours", "faster", "MiB, ours / dense", "shares of ours"), body)


def errors(results: Results) -> str:
    """How far from float64 each op and network is, ours and plain PyTorch."""
    rows = [
        (f"`{op}`", ("ops_cpu.json", "ops_cpu_avx2.json", "ops_cpu_baseline.json"), op)
        for op in dict.fromkeys(row["op"] for row in results["ops_cpu.json"]["rows"])
    ]
    body = [
        [
            text,
            f"{_worst(results, files, is_ours, op=op):.1e}",
            f"{_worst(results, files, lambda n: not is_ours(n), op=op):.1e}",
        ]
        for text, files, op in rows
    ]
    networks = (
        ("generators: SEAN, SPADE, CLADE", (*GENERATORS, "models_cpu_avx512.json", "models_cpu_avx2.json")),
        ("MixSyn's parts", ("mixsyn_cpu.json",)),
        (
            "class- and layer-wise VAE: steps and pooling",
            ("clvae_cpu.json", "clvae_step_cpu.json", "clvae_edit_cpu.json", "clvae_cpu_avx2.json"),
        ),
        ("StyleGAN2's generator, StyleFusion's move", _STYLES),
    )
    for text, files in networks:
        plain = _worst(results, files, lambda name: name in ("dense", "published"))
        body.append([text, f"{_worst(results, files, is_ours):.1e}", f"{plain:.1e}"])
    return _table(("float32, forward and backward", "ours", "plain PyTorch"), body)


def rates(results: Results) -> str:
    """The least and the largest bandwidth of copying in the files that have floors."""
    found = [float(result["rates"]["copy_gb_s"]) for result in results.values() if result["kind"] == "ops"]
    return f"{min(found):.0f} to {max(found):.0f}"


def choices(results: Results) -> str:
    """Where `auto` takes the reference instead of our kernel."""
    names = [name for name, result in results.items() if result["kind"] == "winners"]
    lines = []
    for name in names:
        rows = results[name]["rows"]
        slower = [row for row in rows if (value := ratio(row, "reference", "native")) is not None and value < 1]
        cases = "; ".join(f"{row['case']} {row['mode']} ({ratio(row, 'reference', 'native'):.2f} x)" for row in slower)
        line = f"* {results[name]['machine']['instruction_set']}: {cases or 'nowhere'}, of {len(rows)} entries"
        lines.append(line + "".join(f"; slower than another plain form: {loss}" for loss in results[name]["losses"]))
    return "\n".join(lines)


def temporary(results: Results) -> str:
    """Ours over eager's temporary memory in the rows of attention: median and most."""
    goals = [goal for row in results["ops_cpu.json"]["rows"] for goal in row["targets"] if goal["what"] == "temporary"]
    shares = sorted(float(goal["got"]) for goal in goals)
    return f"{shares[len(shares) // 2]:.1%} of eager's in the middle, {shares[-1]:.1%} at most"


def files(results: Results) -> str:
    """Every file: when and of what it was made."""
    body = []
    for name, result in results.items():
        facts = result["machine"]
        dirty = " + uncommitted changes" if facts["uncommitted_changes"] else ""
        machine = f"{facts['cpu']}, {facts['cores']} cores"
        commands = "<br>".join(f"`{text}`" for text in again.FILES[name][1:])
        body.append([name, machine, f"{facts['commit']}{dirty}", facts["date"], commands.replace("|", "\\|")])
    return _table(("file", "machine", "commit", "date", "python -m benchmarks. ..."), body)


# ----------------------------------------------------------------------------------------------------------- documents


def values(results: Results) -> dict[str, str]:
    """The numbers that stand in other documents, by name."""

    def faster(names: Sequence[str], case: str, mode: str = "forward", plain: str = "dense") -> str:
        row = find(results, names, case, mode)
        if row is None:
            raise ValueError(f"{', '.join(names)}: no row {case} {mode}")
        return _times(ratio(row, plain, _own(row)))

    loops = ("training_cpu.json", "mixsyn_training_cpu.json")
    networks = (*GENERATORS, "models_cpu_avx512.json", "models_cpu_avx2.json")
    steps = {row["settings"]["model"]: row for name in loops for row in reversed(results[name]["rows"])}
    generator = "{}/256/ngf64/float32"
    part = "mixsyn/{} 256x256"
    pair = [find(results, OPS, f"{_PAIR}channels_last/float32", mode) for mode in ("forward", "backward")]
    pooling = [
        v.ratio for r in results["ops_cpu_pooling.json"]["rows"] if (v := verdict(r, _own(r))) and r["mode"] == "forward"
    ]
    return {
        "sean": faster(GENERATORS, generator.format("sean/k19/b1/forward")),
        "spade": faster(GENERATORS, generator.format("spade/k151/b1/forward")),
        "clade": faster(GENERATORS, generator.format("clade/k151/b1/forward")),
        "sean step": _times(ratio(steps["sean"], "dense", "ours")),
        "mixsyn step": _times(ratio(steps["mixsyn"], "dense", "ours")),
        "mixsyn composition": faster(("mixsyn_cpu.json",), part.format("composition")),
        "mixsyn edit": faster(("mixsyn_cpu.json",), part.format("edit of one region")),
        "pooling": f"{_times(min(pooling))} to {_times(max(pooling))}",
        "attention": " and ".join(_times(ratio(row, "eager", _own(row))) for row in pair if row is not None),
        "blend": faster(OPS, "latent_blend/b1/1024/q_on_b/float32", plain="eager"),
        "hierarchy": faster(OPS, "fusion_hierarchy/faces/b1/1024/h2560/float32", plain="eager"),
        "error generators": f"{_worst(results, networks, is_ours):.0e}",
        "error mixsyn": f"{_worst(results, ('mixsyn_cpu.json',), is_ours):.0e}",
        "error norm": f"{_worst(results, ('ops_cpu.json',), is_ours, op='region_norm'):.0e}",
        "error pooling": f"{_worst(results, ('ops_cpu.json',), is_ours, op='masked_roi_pool'):.0e}",
        "error attention": f"{_worst(results, ('ops_cpu.json',), is_ours, op='attention_pair'):.0e}",
        "error blend": f"{_worst(results, ('ops_cpu.json',), is_ours, op='latent_blend'):.0e}",
        "error hierarchy": f"{_worst(results, ('ops_cpu.json',), is_ours, op='fusion_hierarchy'):.0e}",
        "error step": f"{_worst(results, loops, is_ours):.0e}",
        **_msca_values(results),
        **_libraries_values(results),
    }


def filled(text: str, found: Mapping[str, str]) -> str:
    """Return a document with the numbers between its marks made anew; KeyError for a name that there is not."""
    return re.sub(r"(<!--=([^>]+?)-->).*?(<!--/-->)", lambda m: f"{m[1]}{found[m[2]]}{m[3]}", text)


def document(results: Results) -> str:
    """Return docs/measured.md."""
    double = max(float(row["facts"].get("float64_error", 0)) for name in GENERATORS for row in results[name]["rows"])
    parts = {
        "generators": generators, "instruction_sets": instruction_sets, "foreign": foreign, "libraries": libraries,
        "ops": ops, "lost": lost, "other_rows": other_rows, "missed": missed, "training": training, "mixsyn": mixsyn,
        "clvae": clvae, "msca": msca, "stylegan2": stylegan2, "stylefusion": stylefusion, "errors": errors,
        "choices": choices, "files": files, "temporary": temporary, "rates": rates,
    }  # fmt: skip
    text = _TEXT
    for name, make in parts.items():
        text = text.replace(f"[[{name}]]", make(results))
    text = text.replace("[[compile]]", against(results, OPS[1:], "compile")).replace("[[float64]]", f"{double:.0e}")
    text = text.replace("[[from others]]", _from(results, *OTHERS.values()))
    return re.sub(r"\[\[from ([^\]]+)\]\]", lambda m: _from(results, *m[1].split()), text)


_TEXT = """# Measured

<!-- Written by `make measured` from benchmarks/results: do not edit. `python -m benchmarks.tables` prints every row. -->
Contenders of a row run in one process, in turns, after `keep_memory()`, and nothing is timed whose result has not passed
its gate (mixsyn_fast/measure/gate.py). Times are medians. Every table names its machine; two tables may be of two.
*Faster* is plain PyTorch's seconds over ours. [What "exact" means](exact_algebra.md#three-kinds-of-the-same) says how
ours may differ; [Errors](#errors) how far it does. No speed on a GPU is claimed here ([gpu.md](gpu.md)).

## Generators
256 x 256, ngf 64, float32, label maps of real pictures (faces for SEAN, K = 19; ADE20K for K = 151). *dense* is the
generator in plain vectorised PyTorch (`use_plan("dense")`, `use_backend("reference")`), *published* the looped form,
*compile* `torch.compile` of dense; *plain floor* is the same network with its region norms removed, *floor* that with
our layout and prepacked weights. Label-map analysis is inside our time. *Error* is ours against dense in float64,
relative; in float64 they agree within [[float64]].

[[generators]]

[[from models_cpu.json models_cpu_more.json models_cpu_training.json]]

One machine as it is and held to AVX2, torch and its libraries included (`--cpu avx2`: a newcomer's laptop is the
second):

[[instruction_sets]]

[[from models_cpu_avx512.json models_cpu_avx2.json]]

## accelerate() on other people's models
Layers and generators in the published form, and copies of them after one call. A layer of label noise alone is the worst
case, for it pays for the reading of its map by itself: never slower than 0.95 times the published form.

[[foreign]]

[[from accelerate_cpu.json]]

[[libraries]]## Ops
float32, real label maps, in turns so that nothing stays in the cache. *Fastest plain* is the fastest form in plain
PyTorch (eager, or scatter for pooling); */ floor* is our time over what the bytes or the operations need at the
machine's rates from memory, measured in the same run: those of different files differ ([[rates]] GB/s).

[[ops]]

[[from ops_cpu.json ops_cpu_pooling.json ops_cpu_avx2.json]]

Attention's temporary memory is [[temporary]]. The hierarchy's eager form is the published one: layer by layer, sample
by sample, weights scaled at every call. Time against the number of regions and of positions:
[pooling](pictures/masked_roi_pool_cpu.png), [attention](pictures/attention_cpu.png).

Times faster than `torch.compile`, AVX-512 (held to AVX2 it gives wrong results or crashes, so it is left out there):

[[compile]]

Other dtypes, instruction sets and layouts, against the fastest plain form, forward and backward (on the baseline torch
is held to its DEFAULT kernels, oneDNN to SSE4.1, MKL to SSE2):

[[other_rows]]

[[from others]]

### Rows lost to plain PyTorch
A loss is a median above the other's, unless by less than 3 % with percentiles that overlap. A newer file may have the
same row without the loss.

[[lost]]

### Where `auto` takes the reference
The small rows behind the backend `auto` (mixsyn_fast/cpu_winners.json), by instruction set: where the reference beats
our kernel.

[[choices]]

### Goals missed
A floor counts what must be read and written once: x, its gradients and the table for `region_norm`, the features for
pooling. At 16 pixels a side the gradient of the table is the largest part of a backward pass. Eager attention itself is
ten times above its floor.

[[missed]]

## MixSyn
One composition from 3 pictures at 256 x 256, batch 1, default widths. "wrong": outside its gate, so not timed. The
floor is the generator without its region norms; on a soft composition SPADE's second convolution stays dense, and that
is most of the difference. The two rows of the generator vary by a third from run to run.

[[mixsyn]]

[[from mixsyn_cpu.json]]

## Class- and layer-wise VAE
A training step at 128 x 128, batch 4, of L levels and K classes (networks of width w: ngf and ndf; hidden layers of 128 and
codes of K numbers as published; no perceptual loss, both optimisers, the analysis of the label maps inside our time), its
parts forward and backward, and the codes of K classes from five levels of a 256 x 256 image, pooled, drawn and embedded.
*published* is plain PyTorch by the paper's equations, class by class and with a dense map of vectors for every block;
*class by class* pools so, and does everything else at once. *Floor* is the step without the generator's region norms.

![time of a step against levels](pictures/clvae_levels.png)

[[clvae]]

[[from clvae_cpu.json clvae_step_cpu.json clvae_edit_cpu.json clvae_cpu_avx2.json clvae_quality.json]]

[[msca]]## StyleGAN2 and StyleFusion
StyleGAN2's generator at channel multiplier 1 (channel base 16384), s to image: *published* has weights per sample and
grouped convolutions, *floor* are the convolutions of all layers alone. A move of a slider of StyleFusion's tree of faces
(hidden width 1536) over the same generator: *published* every FusionNet layer by layer, *full pass* ours with every
FusionNet anew, *ours* those above the region alone, *floor* the generator alone. Random weights: the work is that of
trained ones.

[[stylegan2]]

A training step of each stage of StyleFusion's root node (drawn faces, 64 x 64, hidden width 256, batch 8: as the shipped
weights were trained), losses, gradients and optimiser, against the same under `use_plan("dense")` and the reference; below
it its parts. The frozen generator is most of a step, so there is no goal for the whole.

[[stylefusion]]

[[from stylegan2_cpu.json stylegan2_cpu_avx2.json stylefusion_cpu.json stylefusion_quality.json
stylegan2_quality_facades.json stylegan2_quality_faces.json]]

## Training
Whole steps of `mixsyn-fast train` on CMP Facade at 128 x 128 (SEAN: VGG-16 perceptual loss, feature matching, two
discriminators; MixSyn: both generators and discriminators, five kinds of losses; both optimisers, averaged weights, one
data worker) against the same loop with `--plan dense --backend reference`. Much of the small SEAN's step is the same in
both: VGG, discriminators, the last convolution of the style encoder; and most of its memory is weights and Adam's
moments. Gathered codes, grouped encoders and fakes made once are in both of MixSyn's.

[[training]]

[[from training_cpu.json mixsyn_training_cpu.json]]

## Errors
The largest relative error against float64 at a gate (2-norm or largest element, outputs and gradients, the worst row),
of ours and of plain PyTorch in the same dtype: both round, in another order.

[[errors]]

## How each file was made
`python -m benchmarks.again FILE` measures one again, `--uncommitted` those that say so.

[[files]]
"""


def main() -> int:
    """Write the documents and the charts."""
    results = schema.committed()
    write_whole(DOCUMENT, document(results))
    found = values(results)
    for name in FILLED:
        path = ROOT / name
        write_whole(path, filled(path.read_text(), found))
    charts = [plot_times.draw(results, schema.PICTURES / "times.png")]
    charts.append(plot_levels.draw(results, schema.PICTURES / "clvae_levels.png"))
    if _MSCA in results:
        charts.append(plot_msca.draw(results[_MSCA], schema.PICTURES / "msca_times.png"))
    for path in (DOCUMENT, *(ROOT / name for name in FILLED), *charts):
        print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
