"""Names of the models that `mixsyn-fast train` knows, and where each is described."""

from __future__ import annotations

import importlib

from .task import Trainable

# name -> module whose TRAINABLES holds it; imported only when asked for
MODULES = {
    "spade": "mixsyn_fast.models.reconstruction",
    "clade": "mixsyn_fast.models.reconstruction",
    "sean": "mixsyn_fast.models.reconstruction",
    "mixsyn": "mixsyn_fast.models.mixsyn.task",
    "clvae": "mixsyn_fast.models.clvae.task",
    "msca": "mixsyn_fast.models.msca.task",
    "harmonized": "mixsyn_fast.models.harmonized.task",
    "harmony": "mixsyn_fast.models.harmony",
    "stylegan2": "mixsyn_fast.models.unconditional",
    "stylefusion": "mixsyn_fast.models.stylefusion.task",
}


def trainable(name: str) -> Trainable:
    """Return the description of a model by its name; ValueError lists the names."""
    if name not in MODULES:
        raise ValueError(f"model: expected one of {', '.join(MODULES)}, got {name!r}")
    found: Trainable = importlib.import_module(MODULES[name]).TRAINABLES[name]
    return found
