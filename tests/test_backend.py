"""Choice of backend and plan, announcements, strict mode."""

from __future__ import annotations

import json
import timeit
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mixsyn_fast
from mixsyn_fast import FallbackWarning, backend, cli, use_backend, use_plan
from mixsyn_fast.measure.contest import LAYOUTS
from mixsyn_fast.measure.ops import CONTESTS


def test_context_managers_nest_and_restore() -> None:
    with use_backend("reference"), use_plan("dense"):
        assert backend.current_backend() == "reference" and backend.current_plan() == "dense"
        with pytest.raises(RuntimeError), use_backend("native"):
            raise RuntimeError
        assert backend.current_backend() == "reference"
    assert backend.current_backend() == "auto" and backend.current_plan() == "auto"


def test_a_plain_statement_chooses_from_here_on() -> None:
    choice = use_backend("reference")
    try:
        assert backend.current_backend() == "reference"
        with pytest.raises(ValueError, match="use_plan: name"):
            use_plan("fast")
    finally:
        choice.__exit__()
    assert backend.current_backend() == "auto"


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="use_backend: name: expected one of auto"), use_backend("cuda"):
        pass
    with pytest.raises(ValueError, match="use_plan: name: expected one of auto"), use_plan("sparse"):
        pass
    with pytest.raises(ValueError, match="explain: op"):
        backend.explain("softmax", "cpu")


def test_every_op_is_explained_on_every_device() -> None:
    for op in backend.registered_ops():
        with use_backend("native"):
            assert backend.explain(op, "cpu") == ("native", "C++ kernel")
        name, reason = backend.explain(op, "cuda")
        assert name in backend.BACKENDS and reason
        with use_backend("reference"):
            assert backend.explain(op, "cpu")[0] == "reference"


def test_a_fallback_is_announced_once_or_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_announced", set())
    monkeypatch.setattr(backend.extension, "ensure_loaded", lambda: False)
    monkeypatch.setattr(backend.extension, "failure", lambda: "no compiler on this machine")
    labels = torch.zeros(1, 2, 2, dtype=torch.int32)
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    with pytest.warns(FallbackWarning, match="label_patterns: .*no compiler on this machine.*mixsyn-fast doctor"):
        mixsyn_fast.label_patterns(labels, 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixsyn_fast.label_patterns(labels, 1, 0)
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with pytest.raises(RuntimeError, match="MIXSYN_FAST_STRICT"):
        mixsyn_fast.label_patterns(labels, 1, 0)


def test_triton_where_there_is_no_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    labels = torch.zeros(1, 2, 2, dtype=torch.int32)
    with use_backend("triton"), pytest.raises(RuntimeError, match="no Triton kernel of label_patterns"):
        mixsyn_fast.label_patterns(labels, 1, 0)


def test_warmup_reports_seconds() -> None:
    seconds = mixsyn_fast.warmup()
    assert set(seconds) == {"extension", "first_call"} and min(seconds.values()) >= 0


# --- the choice by measurement ---------------------------------------------------------------------------------------

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
RATIOS = json.loads(backend.WINNERS.read_text())["ratios"]
Table = Callable[[dict[str, Any], str], None]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Table:
    """Put a table in place of the package's, on an instruction set."""

    def put(ratios: dict[str, Any], isa: str) -> None:
        (tmp_path / "winners.json").write_text(json.dumps({"ratios": ratios}))
        monkeypatch.setattr(backend, "WINNERS", tmp_path / "winners.json")
        monkeypatch.setattr(backend, "_measured", None)
        monkeypatch.setattr(backend.extension, "instruction_set", lambda: isa)

    return put


def _example(layout: str, dtype: str) -> torch.Tensor:
    if layout == "any":
        return torch.zeros(2, 3, dtype=getattr(torch, dtype))
    return torch.zeros(2, 3, 4, 5, dtype=getattr(torch, dtype)).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_table_is_whole_and_auto_follows_it(isa: str, table: Table) -> None:
    assert set(RATIOS) == set(CONTESTS) == set(backend.registered_ops())
    table(RATIOS, isa)
    cpu = torch.device("cpu")
    for op, kind in CONTESTS.items():
        entries = RATIOS[op][isa]
        assert set(entries) == set(kind.layouts)
        for layout, dtypes in entries.items():
            assert set(dtypes) == set(kind.dtypes)
            for dtype, modes in dtypes.items():
                assert set(modes) == set(kind.modes) - {"backward"}
                for mode in ("forward", "both"):
                    ratios = modes.get(mode, modes["forward"])
                    assert ratios["reference"] >= ratios["plain"] > 0
                    chosen = "native" if 1.03 * ratios["reference"] >= 1 else "reference"
                    x = _example(layout, dtype)
                    with torch.set_grad_enabled(mode == "both"):
                        assert backend.select_backend(op, cpu, x) == backend.explain(op, cpu, x)[0] == chosen
                        with use_backend("native"):
                            assert backend.select_backend(op, cpu, x) == "native"


def _losing(op: str, **of: dict[str, float]) -> dict[str, Any]:
    """The table with ratios of an op changed: layout_dtype_mode=ratio, on a set of its own."""
    modes = {"forward": {"reference": 2.0}, "both": {"reference": 2.0}}
    kind = CONTESTS[op]
    entries = {layout: {dtype: dict(modes) for dtype in kind.dtypes} for layout in kind.layouts}
    for place, ratios in of.items():
        layout, dtype = place.rsplit("_", 1)
        entries[layout][dtype] |= {mode: {"reference": ratio} for mode, ratio in ratios.items()}
    return {op: {"avx512": entries}}


def test_a_losing_kernel_is_left_to_the_reference_without_a_word(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    lost = {"both": 0.8}
    table(_losing("region_norm", channels_last_float32=lost, contiguous_bfloat16={"forward": 0.96, "both": 0.98}), "avx512")

    def kernels(layout: str, dtype: str, *, gradients: bool) -> str:
        x = _example(layout, dtype).requires_grad_(gradients)
        with torch.set_grad_enabled(gradients), warnings.catch_warnings():
            warnings.simplefilter("error")
            y = mixsyn_fast.region_norm(x, norm="instance")
            if not gradients:
                return backend.select_backend("region_norm", x.device, x)
        node = y.grad_fn
        return "native" if node is not None and "mixsyn_fast" in type(node).__name__ else "reference"

    assert kernels("channels_last", "float32", gradients=True) == "reference"
    assert kernels("channels_last", "float32", gradients=False) == "native"
    assert kernels("contiguous", "float32", gradients=True) == "native"
    assert kernels("channels_last", "bfloat16", gradients=True) == "native"
    assert kernels("contiguous", "bfloat16", gradients=True) == "native"  # 0.98 is noise
    assert kernels("contiguous", "bfloat16", gradients=False) == "reference"
    with use_backend("native"):
        assert kernels("channels_last", "float32", gradients=True) == "native"
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "reference  channels_last float32 with gradients: the native kernel has 0.80 x the reference's speed" in said
    assert "bfloat16 without gradients: the native kernel has 0.96 x" in said and "0.98 x" not in said
    assert backend.explain("region_norm", "cpu") == ("native", "C++ kernel")


def test_an_op_that_loses_everywhere_is_the_references(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    lost = {"forward": 0.5, "both": 0.25}
    table(_losing("latent_blend", **{f"any_{dtype}": lost for dtype in CONTESTS["latent_blend"].dtypes}), "avx512")
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = facts["ops"]["latent_blend"]["cpu"]
    assert found["backend"] == "reference" and "0.25 to 0.50 x its speed" in found["reason"] and len(found["losses"]) == 8
    assert facts["machine"]["instruction_set"] == "avx512"
    with use_backend("native"):
        assert backend.explain("latent_blend", "cpu") == ("native", "C++ kernel")


def test_labels_have_no_gradient(table: Table) -> None:
    ratios = {"label_patterns": {"avx512": {"any": {"int32": {"forward": {"reference": 0.5}}}}}}
    table(ratios, "avx512")
    labels = torch.zeros(1, 4, 4, dtype=torch.int32)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert backend.select_backend("label_patterns", labels.device, labels) == "reference"


def test_an_instruction_set_that_was_not_measured_is_native(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    table(RATIOS, "neon")
    for op, kind in CONTESTS.items():
        x = _example(kind.layouts[0], kind.dtypes[0])
        assert backend.select_backend(op, x.device, x) == "native"
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.count("native     C++ kernel, not measured on this instruction set (neon)") == len(
        CONTESTS
    )


def test_layouts_are_those_that_the_kernels_read() -> None:
    x = torch.zeros(2, 6, 4, 5)
    assert backend.layout_of(x) == backend.layout_of(x[:, :3]) == backend.layout_of(x[..., ::2]) == "contiguous"
    x = x.contiguous(memory_format=torch.channels_last)
    assert backend.layout_of(x) == backend.layout_of(x[:, :3]) == backend.layout_of(x[:, :, ::2]) == "channels_last"
    assert backend.layout_of(x[0]) == "any" and backend.layout_of(torch.zeros(2, 6, 1, 1)) == "contiguous"


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_choice_is_compiled_without_a_break(ratio: float, table: Table) -> None:
    table(_losing("region_norm", channels_last_float32={"forward": ratio, "both": ratio}), "avx512")
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    step = torch.compile(lambda t: mixsyn_fast.region_norm(t, norm="instance"), fullgraph=True, backend=keep)
    torch.testing.assert_close(step(x), mixsyn_fast.region_norm(x, norm="instance"))
    (code,) = graphs
    assert ("mixsyn_fast" in code) == (ratio > 1)


def test_the_choice_costs_less_than_a_microsecond(table: Table) -> None:
    """Beside what choosing took before, on one core, in the best of many."""
    table(_losing("region_norm", channels_last_float32={"forward": 0.5, "both": 0.5}), "avx512")
    x = _example("channels_last", "float32")

    def best(*arguments: Any) -> float:
        call = lambda: backend.select_backend("region_norm", x.device, *arguments)  # noqa: E731
        return min(timeit.repeat(call, number=2000, repeat=20)) / 2000

    assert best(x) - best() < 1e-6
