"""The weights that come with the package: they load, fit each other, and do at once what the commands promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import ProceduralSource
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.stylefusion.model import FILE, StyleFusion
from mixsyn_fast.models.stylefusion.trees import find_tree
from mixsyn_fast.models.stylegan2 import file as stylegan2_file
from mixsyn_fast.models.unconditional import load_generator

from mixsyn_fast.cli import main

DOMAINS = {"facades": "facades", "faces": "drawn_faces"}  # and the names of their trees


@pytest.fixture(scope="module", params=DOMAINS)
def domain(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fusion(domain: str) -> StyleFusion:
    return StyleFusion.shipped(name=domain)


@pytest.mark.parametrize("file", [FILE, stylegan2_file.FILE], ids=["stylefusion", "stylegan2"])
def test_they_are_small_and_described(file: object) -> None:
    folder = FILE.shipped("facades").parent if file is FILE else stylegan2_file.FILE.shipped("facades").parent
    files = sorted(folder.glob("*.safetensors"))
    assert [path.stem for path in files] == ["facades", "faces"]
    assert sum(path.stat().st_size for path in files) <= 8 << 20
    card = (folder / "MODEL_CARD.md").read_text()
    assert all(path.name in card for path in files) and "Tyle" in card or "models/stylegan2/weights/MODEL_CARD.md" in card


def test_the_model_holds_the_generator_and_a_whole_tree(domain: str, fusion: StyleFusion) -> None:
    generator = load_generator(domain)
    own = fusion.generator.state_dict()
    assert all(torch.equal(own[name], value) for name, value in generator.state_dict().items())
    assert dict(fusion.tree.tree) == dict(find_tree(DOMAINS[domain]).tree) and fusion.size == (64, 64)
    assert set(fusion.hierarchy.nets) == set(fusion.tree.tree)  # no node is bypassed
    assert fusion.segments is not None and set(fusion.regions) <= set(fusion.segments.names)


def test_images_look_like_their_domain(domain: str, fusion: StyleFusion) -> None:
    """The mean of 64 images is nearer to the mean drawing of the own domain than to that of the other one."""
    images = np.stack([fusion.generate(seed=seed).image for seed in range(64)]).astype(float)
    assert images.std(0).mean() > 10  # grey levels: they differ from each other
    means = {}
    for name in DOMAINS:
        source = ProceduralSource(f"procedural_{name}", 32, 0, 64)
        means[name] = np.stack([source.read(i).image for i in range(32)]).astype(float).mean(0)
    away = {name: float(np.square(images.mean(0) - mean).mean()) for name, mean in means.items()}
    assert min(away, key=away.__getitem__) == domain, away


def test_one_code_for_all_is_the_generators_own_image(fusion: StyleFusion) -> None:
    made = fusion.generate(seed=3)
    image = fusion.generator.synthesis(made.codes[fusion.tree.root][None])
    assert np.abs(to_uint8(image)[0].astype(int) - made.image.astype(int)).max() <= 1


def test_a_regions_code_changes_its_region_more_than_the_rest(fusion: StyleFusion) -> None:
    first, second = fusion.tree.tree[fusion.tree.root]
    for node in (first, second):
        heat = fusion.heatmap(node, 24, seed=1)
        inside, area = float(np.nanmean(heat.shares)), float(heat.areas.mean())
        assert inside / (1 - inside) > 1.1 * area / (1 - area), (node, inside, area)


def test_every_verb_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = {"generate": ["--count", "2"], "fuse": ["--count", "1"], "pose": ["--count", "1"], "heatmap": ["--count", "4"]}
    few |= {"edit": [], "invert": ["--steps", "2", "--json", "invert.json"]}
    few |= {"segments": ["--images", "4", "--pixels", "200", "--clusters", "4", "--json", "segments.json"]}
    for verb, arguments in few.items():
        assert main(["stylefusion", verb, "--sheet", f"{verb}.png", *arguments]) == 0, verb
        assert (tmp_path / f"{verb}.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "segments.json").read_text())) > 1
    assert main(["stylefusion", "evaluate", "--count", "4", "--images", "4", "--out", "judged"]) == 0
    assert "locality" in json.loads((tmp_path / "judged" / "report.json").read_text())["metrics"]
