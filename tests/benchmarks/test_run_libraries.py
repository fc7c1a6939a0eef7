"""The benchmark of whole models of other people: rows, gate, shares, what is said where a package is absent.

The rows of MONAI and diffusers themselves run in tests/compat.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import measured, run_libraries, schema
from benchmarks.cases import label_source
from benchmarks.run_libraries import LibraryCase
from examples.accelerate_portrait import PortraitDecoder
from examples.accelerate_sdm import SemanticUNet

TINY = {"channels": 32, "multipliers": (1, 2), "attention": (1,), "hidden": 8, "blocks": 1}
SDM = LibraryCase("sdm", 16, TINY, 19, "face")
PORTRAIT = LibraryCase("portrait", 8, {"features": 16, "hidden": 8, "blocks": 1})


def test_a_run_its_tables_and_the_numbers_in_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_libraries, "cases", lambda: [SDM, PORTRAIT])
    out = tmp_path / "libraries_cpu.json"
    assert run_libraries.main(["--repeat", "1", "--no-compile", "--out", str(out)]) in (0, 1)  # so small rows may be lost
    result = schema.load(out)
    sdm, portrait = result["rows"]
    assert not result["wrong"] and list(sdm["contenders"]) == ["eager", "ours", "ours+kept", "floor"]
    assert [row["facts"]["accelerated"] for row in result["rows"]] == [row["facts"]["layers"] for row in result["rows"]]
    assert sdm["facts"]["layers"] == 14 and portrait["facts"]["layers"] == 8
    assert 0 < sdm["facts"]["share"] < 1 and sdm["facts"]["ours+kept"] == {"conditioning_macs": 0, "share": 0.0}
    assert [(goal["contender"], goal["what"]) for row in (sdm, portrait) for goal in row["targets"]] == [
        ("ours+kept", "eager"),
        ("ours", "eager"),
    ]
    assert all(entry["peak_bytes"] > 0 for entry in sdm["contenders"].values())
    said = capsys.readouterr().out
    assert re.search(
        r"conditioning \d+% of [\d.]+ G multiply-accumulates, ours \d+%, ours\+kept 0%; of the time -?\d+%", said
    )
    assert "memory at least 0." in said and "at least 1.4 x" in said and "14 of 14 layers accelerated" in said
    found = {"libraries_cpu.json": result}
    section = measured.libraries(found)
    assert "semantic diffusion U-Net, a step, 16 |" in section and "14 of 14 |" in section
    assert ("missed, " in section) == (not all(goal["met"] for row in (sdm, portrait) for goal in row["targets"]))
    values = measured._libraries_values(found)
    assert values["portrait/8 kept"] == "not measured yet" and re.fullmatch(r"[\d.]+ x", values["sdm/16 kept"])
    assert re.fullmatch(r"[\d.]+ x", values["portrait/8 memory"]) and values["portrait/8 layers"] == "8 of 8"
    assert measured.libraries({}) == "" and set(measured._libraries_values({}).values()) == {"not measured yet"}


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = run_libraries.accelerate

    def wrong(model: nn.Module) -> Any:
        with torch.no_grad():
            model.get_submodule("last.2").weight.mul_(1.001)  # type: ignore[union-attr, operator]
        return right(model)

    monkeypatch.setattr(run_libraries, "accelerate", wrong)
    options = run_libraries.parse(["--repeat", "1", "--no-compile"])
    row = run_libraries.run_case(SDM, label_source(None), options)
    for name in ("ours", "ours+kept"):
        assert row["contenders"][name].timing is None and "output" in row["contenders"][name].note
    assert row["contenders"]["eager"].timing is not None and row["targets"] == []


def test_a_contender_that_raises_leaves_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Callable[..., Tensor]:
        def call(*_: Tensor) -> Tensor:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    options = run_libraries.parse(["--repeat", "1"])
    row = run_libraries.run_case(PORTRAIT, label_source(None), options)
    assert "RuntimeError: no compiler" in row["contenders"]["compile"].note
    assert row["contenders"]["ours"].timing is not None


def test_without_a_package_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(run_libraries.MODELS, "sdm", replace(run_libraries.MODELS["sdm"], packages=("no_such_package",)))
    assert run_libraries.main(["--cases", "sdm/64"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("no_such_package is not installed") and "make build/compat/.installed" in said
    assert run_libraries.main(["--cases", "nothing"]) == 2


@pytest.mark.parametrize(
    "build, inputs, reads, layers, giga, share",
    [
        (lambda: SemanticUNet(151), ((1, 3, 256, 256), (1,), (1, 151, 256, 256)), "SPADEGroupNorm", 50, 1817, 0.38),
        (PortraitDecoder, ((1, 256, 64, 64),), "SPADE", 18, 446, 0.63),
    ],
    ids=["sdm", "portrait"],
)
def test_the_forms_do_the_work_of_the_published_models(
    build: Callable[[], nn.Module], inputs: tuple[tuple[int, ...], ...], reads: str, layers: int, giga: float, share: float
) -> None:
    """At published widths: multiply-accumulates and the conditioning's share of them."""
    with torch.device("meta"):
        model, given = build().eval(), [torch.empty(shape) for shape in inputs]
        found = run_libraries.layers_that_read(model, reads)
        macs, inside = run_libraries.operations(lambda: model(*given), found)
    assert len(found) == layers
    assert macs / 1e9 == pytest.approx(giga, rel=0.03) and inside / macs == pytest.approx(share, abs=0.01)


def test_the_floor_shares_weights_and_leaves_the_layers_out() -> None:
    model = run_libraries.lively(run_libraries.MODELS["portrait"].build(PORTRAIT))
    bare = run_libraries.without(model, "SPADE")
    assert bare.fc.weight is model.fc.weight
    feature = torch.randn(1, 16, 8, 8)
    layers = run_libraries.layers_that_read(model, "SPADE")
    with torch.no_grad():
        before, without = model(feature), bare(feature)
        for layer in layers.values():
            layer.forward = lambda x, segmap: x  # type: ignore[method-assign]
        assert torch.equal(model(feature), without) and not torch.equal(before, without)


def test_shells_are_nested() -> None:
    labels = run_libraries.shells(24, 6)
    assert labels.shape == (1, 24, 24, 24) and labels.unique().tolist() == list(range(6))
    assert labels[0, 0, 0, 0] == 0 and labels[0, 12, 12, 12] == 5


def test_zeros_are_drawn_anew() -> None:
    layer = nn.Conv2d(4, 4, 3)
    nn.init.zeros_(layer.weight), nn.init.ones_(layer.bias)  # type: ignore[arg-type]
    assert bool(run_libraries.lively(layer).weight.any()) and bool((layer.bias == 1).all())  # type: ignore[union-attr]


def test_rows_are_named_apart_and_written_down(tmp_path: Path) -> None:
    rows = run_libraries.cases()
    assert len({case.name for case in rows}) == len(rows) and {case.model for case in rows} == set(run_libraries.MODELS)
    json.dumps([vars(case) for case in rows])
