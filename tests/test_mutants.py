"""The list of mutations keeps up with the code that it breaks."""

from __future__ import annotations

from pathlib import Path

from tests.mutants import MUTATIONS, ROOT


def test_every_mutation_has_its_place_and_its_test() -> None:
    """Its text stands once in its files, so `make mutants` breaks what it names; the test files that it names are there."""
    texts = {path: path.read_text() for each in MUTATIONS for form in each.files.split() for path in ROOT.glob(form)}
    places = {
        each.name: sum(texts[p].count(each.old) for form in each.files.split() for p in ROOT.glob(form))
        for each in MUTATIONS
    }
    assert {name: count for name, count in places.items() if count != 1} == {}
    named = {word.split("::")[0] for each in MUTATIONS for word in each.tests.split() if word.startswith("tests/")}
    assert [name for name in sorted(named) if not (Path(ROOT) / name).exists()] == []
    assert len(places) == len(MUTATIONS)  # no name twice
