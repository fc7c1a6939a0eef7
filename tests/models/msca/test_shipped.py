"""The weights that come with the package: they load, do what the paper says, and at once what commands promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data import ProceduralSource
from mixsyn_fast.models.msca.model import FILE, MSCA

from mixsyn_fast.cli import main

WALL = 1  # of the 12 classes of CMP Facade


@pytest.fixture(scope="module")
def model() -> MSCA:
    return MSCA.shipped()


@pytest.fixture(scope="module")
def facades() -> list[tuple[np.ndarray, np.ndarray]]:
    source = ProceduralSource("procedural_facades", 4, 3_000_000_000, 128)
    samples = [source.read(i) for i in range(4)]
    return [(each.image, each.labels) for each in samples]


def test_they_are_small_and_described() -> None:
    folder = FILE.shipped("facades").parent
    files = sorted(folder.glob("*.safetensors"))
    assert [path.stem for path in files] == ["facades"] and files[0].stat().st_size <= 8 << 20
    card = (folder / "MODEL_CARD.md").read_text()
    assert "facades.safetensors" in card and "Tyle" in card


def test_walls_take_the_exemplars_colour(model: MSCA, facades: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Global average pooling of what no training has seen would do no better than chance, a quarter."""
    labels = [each[1] for each in facades]
    made = model.swap(labels, facades)
    walls = np.stack([image[own == WALL].astype(float).mean(0) for image, own in facades])
    right = 0
    for row, own in zip(made, labels, strict=True):
        for j, each in enumerate(row):
            away = np.abs(each.image[own == WALL].astype(float).mean(0) - walls).sum(1)
            right += int(away.argmin() == j)
    assert right >= 12  # of 16


def test_what_a_label_gives_reaches_its_own_label(model: MSCA, facades: list[tuple[np.ndarray, np.ndarray]]) -> None:
    maps = model.attention(facades[1][1], *facades[0]).scales[0]
    assert maps.to_own_class > 1.5 * maps.by_chance


def test_every_verb_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("synthesize", "swap", "interpolate", "spatial", "extrapolate", "attention"):
        assert main(["msca", verb, "--sheet", f"{verb}_sheet.png"]) == 0, verb
        assert (tmp_path / f"{verb}_sheet.png").stat().st_size > 1000
