"""The generated document, the numbers in the others, and the chart: made again from the results, they are the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measured, plot_levels, plot_times, schema
from benchmarks.measured import ROOT


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return schema.committed()


def test_the_document_is_what_the_results_say(results: dict[str, Any]) -> None:
    assert measured.DOCUMENT.read_text() == measured.document(results), "make measured"


@pytest.mark.parametrize("name", measured.FILLED)
def test_numbers_in_other_documents_are_those_of_the_results(name: str, results: dict[str, Any]) -> None:
    text = (ROOT / name).read_text()
    assert "<!--=" in text and measured.filled(text, measured.values(results)) == text, "make measured"


def test_every_number_is_marked_where_it_is_filled() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]:
        if "<!--=" in path.read_text():
            assert str(path.relative_to(ROOT)) in measured.FILLED


def test_a_changed_result_changes_the_documents(results: dict[str, Any]) -> None:
    other = copy.deepcopy(results)
    for row in other["models_cpu.json"]["rows"]:
        row["contenders"]["ours"]["timing"]["median"] *= 2
    other["training_cpu.json"]["machine"]["cpu"] = "Another"
    before, after = measured.document(results), measured.document(other)
    assert before != after and "Another" in after and "Another" not in before
    assert measured.values(other)["sean"] != measured.values(results)["sean"]
    assert measured.filled("a <!--=sean-->?<!--/--> b", {"sean": "5 x"}) == "a <!--=sean-->5 x<!--/--> b"
    with pytest.raises(KeyError):
        measured.filled("<!--=nobody-->?<!--/-->", {"sean": "5 x"})


def test_every_table_names_its_machine(results: dict[str, Any]) -> None:
    """Each file that a table is made of is named, with the commit and the date."""
    text = measured.document(results)
    assert "[[" not in text
    for name, result in results.items():
        facts = result["machine"]
        assert name in text and facts["commit"] in text and facts["date"] in text


def test_chosen_rows_are_there(results: dict[str, Any]) -> None:
    for text, case, mode in measured.ROWS:
        assert measured.find(results, measured.OPS, case, mode) is not None, text
    assert measured.find(results, measured.OPS, "nothing", "forward") is None


def test_the_chart(tmp_path: Path, results: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [bench])")
    found = plot_times.bars(results)
    assert len(found) == len(plot_times.BARS) and all(plain > 0 and ours > 0 for _, plain, ours in found)
    path = plot_times.draw(results, tmp_path / "times.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 100_000
    for file in (path, schema.PICTURES / "times.png"):  # the committed one shows what the results say
        with pytest.importorskip("PIL.Image", reason="pillow is not installed").open(file) as image:
            assert json.loads(image.text["shows"]) == [list(bar) for bar in found], "make measured"
    other = copy.deepcopy(results)
    other["mixsyn_cpu.json"]["rows"] = []
    with pytest.raises(ValueError, match="mixsyn_cpu.json: no row mixsyn/composition"):
        plot_times.bars(other)


def test_the_plot_of_levels(tmp_path: Path, results: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [bench])")
    found = plot_levels.points(results)
    assert found["151"]["ours"][0][0] == 1 and len(found["151"]["dense"]) == 6
    for file in (plot_levels.draw(results, tmp_path / "levels.png"), schema.PICTURES / "clvae_levels.png"):
        with pytest.importorskip("PIL.Image", reason="pillow is not installed").open(file) as image:
            assert json.loads(image.text["shows"]) == found, "make measured"
    other = copy.deepcopy(results)
    other["clvae_cpu.json"]["rows"] = []
    with pytest.raises(ValueError, match="clvae_cpu.json: no row clvae/levels"):
        plot_levels.points(other)
