"""The benchmark of MixSyn's inference: its composition, its gate, its parts, and a run through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run_mixsyn, tables
from mixsyn_fast.measure.gate import gate

SMALL = ["--structure.width", "2", "--structure.code-channels", "4", "--structure.code-size", "8"]
SMALL += ["--structure.decoder-width", "8", "--structure.decoder-smallest", "4", "--style.code-length", "8"]
SMALL += ["--style.encoder-width", "2", "--style.encoder-largest", "4", "--style.encoder-halvings", "2"]
SMALL += ["--style.width", "4", "--style.largest", "8", "--style.hidden", "4", "--sizes", "32", "--repeat", "1"]


@pytest.fixture(scope="module")
def bench() -> run_mixsyn.MixSynBench:
    options = run_mixsyn.parse([*SMALL, "--sources", "2"])
    classes, images, labels, text = run_mixsyn.pictures(options, 32)
    assert text == "2 sources of procedural facades" and images.shape == (2, 3, 32, 32)
    return run_mixsyn.MixSynBench(run_mixsyn.replace(options.config, classes=classes, image_size=(32, 32)), images, labels)


def test_regions_come_from_the_pictures_in_turn() -> None:
    present = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1], [0, 1, 0, 1, 1]]).bool()
    assert run_mixsyn.in_turn(present).source.tolist() == [[0, 2, -1, 1, 2]]


def test_parts_compute_what_they_say(bench: run_mixsyn.MixSynBench) -> None:
    ours = {name: bench.call(name, bench.networks())() for name in bench.parts(bench.networks())}
    dense = {name: bench.call(name, bench.networks(dense=True))() for name in ours}
    double = {name: bench.call(name, bench.networks(dense=True, double=True), torch.float64)() for name in ours}
    for name, outputs in ours.items():
        assert gate(outputs, dense[name], double[name]).passed, name
    whole = ours["composition"]
    torch.testing.assert_close(ours["decoder"]["composition"], whole["composition"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["generator"]["image"], whole["image"], rtol=1e-3, atol=1e-4)
    # every region's codes come from its own source, absent regions have none
    codes = ours["structure encoders"]["structure codes"][0]
    for region, source in enumerate(bench.composition.source[0].tolist()):
        expected = bench.structure.encode(bench.regions(max(source, 0)), (region,))[0, 0] * (source >= 0)
        torch.testing.assert_close(codes[region], expected, rtol=1e-4, atol=1e-5)
    # the edit is the composition with one source exchanged
    source, region = bench.edit
    assert bench.composition.source[0, region] not in (-1, source)
    other = bench.composition.source.clone()
    other[0, region] = source
    composed = run_mixsyn.Composition(other)
    every = [bench.regions(s) for s in range(2)]
    codes, styles = (
        composed.gather(torch.cat(parts))
        for parts in (
            [bench.structure.encode(map_) for map_ in every],
            [bench.style.encode(bench.images[s : s + 1], map_) for s, map_ in enumerate(every)],
        )
    )
    soft = bench.structure.decode(codes)
    edited = ours["edit of one region"]
    torch.testing.assert_close(edited["composition"], soft, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edited["image"], bench.style(soft, styles), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(edited["image"], whole["image"])


def test_a_run_writes_rows_that_the_tables_read(tmp_path: Path, capsys: Any) -> None:
    words = [*SMALL, "--no-compile", "--parts", "^(decoder|generator|edit.*)$", "--out", str(tmp_path / "r.json")]
    status = run_mixsyn.main(words)
    found = json.loads((tmp_path / "r.json").read_text())
    assert status == int(bool(found["losses"])) and found["wrong"] == []  # at this scale nobody asks who wins
    assert [row["settings"]["part"] for row in found["rows"]] == ["decoder", "generator", "edit of one region"]
    for row in found["rows"]:
        assert row["contenders"]["ours"]["gate"]["passed"] and tables.ratio(row, "dense", "ours") > 0
        assert ("floor" in row["contenders"]) == (row["settings"]["part"] == "generator")
        assert row["settings"]["networks"]["style"]["code_length"] == 8
    assert found["kind"] == "mixsyn" and found["machine"]["torch"] == torch.__version__ and "commit" in found["machine"]
    assert "mixsyn/decoder 32x32" in tables.render(found) and "written" in capsys.readouterr().out


def test_rows_are_written_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = run_mixsyn.run_part

    def cut_short(bench: Any, part: str, *more: Any) -> dict[str, Any]:
        if part == "generator":
            raise KeyboardInterrupt
        return measured(bench, part, *more)

    monkeypatch.setattr(run_mixsyn, "run_part", cut_short)
    with pytest.raises(KeyboardInterrupt):
        run_mixsyn.main([*SMALL, "--no-compile", "--parts", "^(decoder|generator)$", "--out", str(tmp_path / "r.json")])
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["settings"]["part"] for row in rows] == ["decoder"]


def test_the_composition_encodes_every_picture_once(monkeypatch: pytest.MonkeyPatch, bench: run_mixsyn.MixSynBench) -> None:
    """As MixSyn.compose does: one grouped call per picture and network, on one region map."""
    ours, seen = bench.networks(), []

    def counting(encode: Any, place: int) -> Any:
        def counted(*given: Any) -> torch.Tensor:
            seen.append((id(given[place]), given[place + 1]))
            return encode(*given)

        return counted

    networks = run_mixsyn.replace(
        ours, encode_structure=counting(ours.encode_structure, 0), encode_style=counting(ours.encode_style, 1)
    )
    bench.call("composition", networks)()
    assert sorted(which for _, which in seen) == sorted(which for _, which in bench.taken for _ in range(2))
    assert len({map_ for map_, _ in seen}) == len(bench.taken)


def test_a_wrong_contender_has_no_time(monkeypatch: pytest.MonkeyPatch, bench: run_mixsyn.MixSynBench) -> None:
    right = bench.networks()
    wrong = run_mixsyn.replace(right, decode=lambda codes: right.decode(codes) * 1.001)
    monkeypatch.setattr(bench, "networks", lambda **kind: bench.__class__.networks(bench, **kind) if kind else wrong)
    row = run_mixsyn.run_part(bench, "decoder", None, run_mixsyn.parse([*SMALL, "--no-memory"]))
    assert row["contenders"]["ours"].timing is None and "wrong result" in row["contenders"]["ours"].note
    assert row["contenders"]["dense"].timing is not None


def test_bad_options(tmp_path: Path, capsys: Any) -> None:
    for words, message in (
        (["--sizes", "x"], "--sizes: expected positive numbers"),
        (["--sizes", ""], "--sizes: expected positive numbers"),
        (["--sources", "1"], "--sources: expected at least 2"),
    ):
        with pytest.raises(SystemExit):
            run_mixsyn.parse(words)
        assert message in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run_mixsyn.pictures(run_mixsyn.parse(["--data", str(tmp_path / "none"), "--kind", "folder"]), 32)
