"""The trees of StyleFusion's domains."""

from __future__ import annotations

from mixsyn_fast.models.stylefusion import CARS, CHURCHES, FACES

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers import FusionConfig, FusionHierarchy
from tests.layers import stylefusion_published as published


def test_shipped_trees() -> None:
    assert dict(FACES.tree) == published.FACES
    assert FACES.layout.size == 9088 and CARS.layout.channels[-1] == 64 and len(CHURCHES.layout.conv_layers) == 13
    for config, leaves in ((FACES, 6), (CARS, 4), (CHURCHES, 2)):
        tree = FusionHierarchy(FusionConfig(config.tree, StyleLayout.of([512]), 8))
        assert tree.root == "all" and len(tree.names) == len(config.tree) + leaves
        assert set(tree.nets) == set(config.tree)
