"""The weights that come with the package: they load, do what the paper says, and at once what commands promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data import ProceduralSource
from mixsyn_fast.models.harmonized.model import FILE, Harmonized

from mixsyn_fast.cli import main

HAIR = 13  # of the 19 classes


@pytest.fixture(scope="module")
def model() -> Harmonized:
    return Harmonized.shipped()


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    source = ProceduralSource("procedural_lit_faces", 6, 3_000_000_000, 128)
    samples = [source.read(i) for i in range(6)]
    assert all((each.labels == HAIR).mean() > 0.05 for each in samples)
    return [(each.image, each.labels) for each in samples]


def test_they_are_small_and_described() -> None:
    folder = FILE.shipped("faces").parent
    files = sorted(folder.glob("*.safetensors"))
    assert [path.stem for path in files] == ["faces"] and files[0].stat().st_size <= 8 << 20
    assert "faces.safetensors" in (folder / "MODEL_CARD.md").read_text()


def colour(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    found: np.ndarray = image[labels == HAIR].astype(float).mean(0)
    return found


def test_reconstruction_and_transfer(model: Harmonized, faces: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """A reconstruction is nearer to its picture than every region's mean colour of another picture; hair takes a colour."""
    nearer = 0
    for (image, labels), (other, others) in zip(faces, faces[1:] + faces[:1], strict=True):
        again = model.reconstruct(image, labels).image
        error = np.square(again.astype(float) - image).mean()
        assert 10 * np.log10(255**2 / error) > 17
        made = model.transfer(image, labels, other, others, ["hair"]).image
        wanted = colour(other, others)
        before, after = (np.abs(colour(each, labels) - wanted).mean() for each in (again, made))
        nearer += bool(after < before + 2)
    assert nearer >= 5


def test_random_styles_differ(model: Harmonized, faces: list[tuple[np.ndarray, np.ndarray]]) -> None:
    image, labels = faces[0]
    for by in ("mapping", "flow"):
        made = model.sample(image, labels, ["hair"], 6, by=by)  # type: ignore[arg-type]
        colours = np.stack([colour(each.image, labels) for each in made])
        assert colours.std(0).mean() > 10, by  # grey levels


def test_every_verb_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = {"transfer": [], "sample": ["--count", "2"], "tune": [], "reshape": [], "recolour": [], "reconstruct": []}
    for verb, arguments in few.items():
        assert main(["harmonized", verb, "--sheet", f"{verb}.png", *arguments]) == 0, verb
        assert (tmp_path / f"{verb}.png").stat().st_size > 1000
