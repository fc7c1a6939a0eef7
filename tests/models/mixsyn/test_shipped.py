"""The weights that come with the package: they load, stay small, and have learned something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mixsyn_fast.models.data import FACADE_CLASSES, open_source
from mixsyn_fast.models.mixsyn import model
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.pictures.picture import pictures_of

WEIGHTS = Path(model.__file__).parent / "weights"


def test_shipped_weights_compose_drawn_facades() -> None:
    assert (WEIGHTS / "facades.safetensors").stat().st_size <= 16 * 10**6
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "GCPR 2013" in card and "no faces" in card
    mixsyn = MixSyn.shipped()
    assert mixsyn.classes == FACADE_CLASSES
    pictures = pictures_of(open_source(None, "procedural_facades", count=4, seed=2 * 10**9 + 50, size=mixsyn.size))
    made = [mixsyn.compose({}, base=picture) for picture in pictures]
    right = np.mean([(m.labels == p.labels).mean() for m, p in zip(made, pictures, strict=True)])
    assert right > 0.85, "compositions put regions where their masks have them"
    colours = np.array([p.image[p.labels == FACADE_CLASSES.index("facade")].mean(0) for p in pictures])
    painted = np.array(
        [m.image[p.labels == FACADE_CLASSES.index("facade")].mean(0) for m, p in zip(made, pictures, strict=True)]
    )
    distance = np.linalg.norm(painted[:, None] - colours[None], axis=2)
    own, other = distance.diagonal().mean(), distance[~np.eye(4, dtype=bool)].mean()
    assert own < 0.7 * other, "a wall has the colour of its own source"
