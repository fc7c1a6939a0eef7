"""StyleFusion in use: what every application changes, what it leaves alone, and what is not computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.stylefusion.model import StyleFusion
from mixsyn_fast.models.stylefusion.networks import make_net
from mixsyn_fast.models.stylefusion.segments import Segments
from mixsyn_fast.models.stylefusion.trees import RegionTree
from mixsyn_fast.models.stylegan2 import Config, Generator

from mixsyn_fast import use_backend, use_plan

TREE = RegionTree({"all": ("both", "rest"), "both": ("left", "right")}, truncation=1.0)


@pytest.fixture(scope="module")
def fusion(generator: Generator, segments: Segments) -> StyleFusion:
    torch.manual_seed(0)
    nets = {node: make_net(generator, 16, 2, "b", True) for node in TREE.tree}
    for net in nets.values():
        for p in net.parameters():
            torch.nn.init.normal_(p, std=100.0 if p.dim() == 2 else 30.0)  # q far from one half, other for every channel
    return StyleFusion(generator, TREE, nets, segments)


def test_a_seed_gives_the_generators_own_image(fusion: StyleFusion) -> None:
    made = fusion.generate(3)
    expected = fusion.generator.synthesis(fusion.code(3)[None])
    assert np.array_equal(made.image, to_uint8(expected)[0])
    assert set(made.codes) == {"all", "both", "left", "right", "rest"} and made.image.shape == (32, 32, 3)
    assert fusion.regions == ("rest", "left", "right")
    assert torch.equal(fusion.code(3), fusion.code(3)) and not torch.equal(fusion.code(3), fusion.code(4))


def test_fuse_is_the_hierarchy_with_one_code_exchanged(fusion: StyleFusion) -> None:
    base = fusion.generate(1)
    made = fusion.fuse(base.codes, {"left": 2})
    codes = {name: value[None] for name, value in (base.codes | {"left": fusion.code(2)}).items()}
    torch.testing.assert_close(made.s, fusion.hierarchy(codes)[0])
    assert not np.array_equal(made.image, base.image)
    assert {n for n in made.codes if not torch.equal(made.codes[n], base.codes[n])} == {"left"}
    whole = fusion.fuse(base.codes, {"both": fusion.generate(5).codes})
    assert {n for n in whole.codes if not torch.equal(whole.codes[n], base.codes[n])} == {"both", "left", "right"}
    seeded = fusion.fuse(base.codes, {"both": 5})
    assert all(torch.equal(seeded.codes[n], whole.codes[n]) for n in fusion.nodes)


def test_only_what_lies_above_a_change_is_fused_again(fusion: StyleFusion) -> None:
    fusion._forget()
    base = fusion.generate(1)
    assert set(base.fused) == {"all", "both"}
    assert fusion.fuse(base.codes, {"rest": 4}).fused == ("all",)
    assert fusion.generate(codes=base.codes).fused == ("all",)
    assert fusion.generate(codes=base.codes).fused == ()
    assert fusion.fuse(base.codes, {"right": 4}).fused == ("both", "all")
    again = fusion.generate(codes=base.codes)
    assert np.array_equal(again.image, base.image)


def test_what_is_remembered_is_nobody_elses(fusion: StyleFusion) -> None:
    """A slider that writes into one tensor, weights loaded anew, another way to compute: never the image before."""
    base = fusion.generate(1)
    slider = fusion.code(2)
    first = fusion.fuse(base.codes, {"left": slider})
    slider.add_(fusion.direction(1, 3))
    moved = fusion.fuse(base.codes, {"left": slider})
    assert not torch.equal(moved.s, first.s) and moved.fused == ("both", "all")
    kept = moved.s.clone()
    moved.s.zero_()
    moved.codes["left"].zero_()
    assert torch.equal(fusion.fuse(base.codes, {"left": slider}).s, kept)
    codes = fusion.codes(1)
    codes["left"].zero_()
    assert not torch.equal(codes["right"], codes["left"])
    with use_plan("dense"), use_backend("reference"):
        assert fusion.fuse(base.codes, {"left": slider}).fused == ("both", "all")
    net = fusion.hierarchy.nets["both"]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    fusion.fuse(base.codes, {"left": slider})
    net.load_state_dict({name: value * 0.5 for name, value in state.items()})
    assert not torch.equal(fusion.fuse(base.codes, {"left": slider}).s, kept)
    net.load_state_dict(state)
    assert torch.equal(fusion.fuse(base.codes, {"left": slider}).s, kept)


def test_pose_changes_global_codes_alone(fusion: StyleFusion) -> None:
    base = fusion.fuse(fusion.generate(1).codes, {"left": 2, "rest": 3})
    made = fusion.pose(base.codes, {"all": 7})
    assert {n for n in made.codes if not torch.equal(made.codes[n], base.codes[n])} == {"all"}
    assert not np.array_equal(made.image, base.image)
    with pytest.raises(ValueError, match="changes: expected inner nodes among all, both, got 'left'"):
        fusion.pose(base.codes, {"left": 7})


def test_edit_moves_the_named_regions_once(fusion: StyleFusion) -> None:
    base = fusion.generate(1)
    direction = fusion.direction(1, 2)
    made = fusion.edit(base.codes, direction, ["both", "left"], 0.5)
    for name in ("both", "left", "right"):
        torch.testing.assert_close(made.codes[name], base.codes[name] + 0.5 * direction)
    assert torch.equal(made.codes["rest"], base.codes["rest"])
    w = torch.randn(8)
    moved = fusion.edit(base.codes, w, ["rest"])
    expected = fusion.styles(fusion.w(1) + w)
    torch.testing.assert_close(moved.codes["rest"], expected)  # the affine layers are linear but for their bias


def test_heat_is_where_the_region_changes(fusion: StyleFusion) -> None:
    seen: list[int] = []
    heat = fusion.heatmap("left", 5, batch=2, advance=seen.append)
    assert heat.mean.shape == (32, 32) and heat.mean.max() > 0 and seen == [2, 2, 1]
    assert heat.shares.shape == heat.areas.shape == heat.totals.shape == (5,) and len(set(heat.totals.tolist())) == 5
    assert ((heat.shares > 0) & (heat.shares < 1)).all()
    same = fusion.heatmap("left", 5, batch=5)
    np.testing.assert_allclose(same.mean, heat.mean, atol=1e-6)  # the samples do not depend on the batch
    held = fusion.heatmap("left", 2, base=fusion.generate(1).codes)
    assert held.mean.shape == (32, 32)
    nothing = fusion.heatmap("left", 3, swap=lambda image, region: image)
    assert nothing.mean.max() == 0 and np.isnan(nothing.shares).all()
    every = fusion.heatmaps(["left", "both"], 5, batch=5)
    np.testing.assert_allclose(every["left"].shares, heat.shares, atol=1e-5)
    with pytest.raises(ValueError, match="regions: expected different nodes, at least one, got left, left"):
        fusion.heatmaps(["left", "left"])
    names, masks = fusion.masks(fusion.generate(1).codes)
    assert names == ("rest", "left", "right") and masks.shape == (3, 32, 32)
    np.testing.assert_allclose(masks.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_sample_of_a_heat_map_is_two_images_of_the_whole_tree(fusion: StyleFusion, fixed: bool) -> None:
    """Every node fused anew, nothing left out, one sample after the other."""
    base = fusion.fuse(fusion.codes(1), {"rest": 4, "left": 3}).codes if fixed else None
    for region in ("both", "right"):
        heat = fusion.heatmap(region, 2, base, batch=2)
        for i in range(2):
            own, *others = fusion._triples(0, [i])
            images = []
            for other in others:
                codes = fusion.codes(own[0]) if base is None else dict(base)
                codes |= {name: other[0] for name in TREE.within(region)}
                s = fusion.hierarchy({name: code[None] for name, code in codes.items()})
                images.append(fusion.generator.synthesis(s).clamp(-1, 1).detach())
            change = float((images[0] - images[1]).abs().mean()) / 2
            assert heat.totals[i] == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_files(fusion: StyleFusion, tmp_path: Path, half: bool) -> None:
    path = tmp_path / "model.safetensors"
    fusion.save(path, half)
    again = StyleFusion.load(path)
    assert again.nodes == fusion.nodes and again.segments is not None
    assert again.segments.names == fusion.segments.names  # type: ignore[union-attr]
    base = fusion.fuse(fusion.generate(1).codes, {"left": 2})
    made = again.generate(codes=base.codes)
    difference = np.abs(made.image.astype(int) - base.image.astype(int))
    assert difference.max() <= (12 if half else 0)
    with pytest.raises(FileNotFoundError, match="none"):
        StyleFusion.load(tmp_path / "none")


def test_models_that_no_file_holds_and_regions_without_clusters(
    fusion: StyleFusion, generator: Generator, segments: Segments, tmp_path: Path
) -> None:
    nets = {node: make_net(generator, width, 2, "b", True) for node, width in (("all", 16), ("both", 8))}
    with pytest.raises(ValueError, match="nets: expected FusionNets of one size in a file, got others: both"):
        StyleFusion(generator, TREE, nets).save(tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    # an inner node with a cluster of its own, leaves without
    named = segments.named({"left": "both", "right": "both"})
    other = StyleFusion(generator, TREE, {}, named)
    names, masks = other.masks(other.codes(1))
    assert names == ("both", "rest")
    np.testing.assert_allclose(masks.sum(0), 1, atol=1e-4)
    with pytest.raises(ValueError, match="regions: expected clusters named left, got none"):
        other.heatmap("left", 2)
    with pytest.raises(ValueError, match="segments: expected clusters named as nodes of the tree, got x"):
        strange = StyleFusion(generator, TREE, {}, segments.named({n: "x" for n in segments.regions}))
        strange.masks(strange.codes(1))
    with pytest.raises(ValueError, match=r"generator: expected widths of layers that divide the largest, 8, got 6, 8"):
        make_net(Generator(Config(size=16, z_dim=4, w_dim=4, channel_base=100, channel_max=8)), 8, 2, "b", True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, c: f.fuse(c, {}), "changes: expected at least one node, got none"),
        (lambda f, c: f.fuse(c, {"nose": 1}), "changes: expected nodes among all, both, rest, left, right, got 'nose'"),
        (lambda f, c: f.fuse(c, {"both": 1, "left": 2}), "changes: left lies below both, which changes whole"),
        (lambda f, c: f.fuse(c, {"left": torch.zeros(3)}), r"changes: left: expected a code \(\d+\) of floats, got \(3,\)"),
        (lambda f, c: f.fuse({"all": c["all"]}, {"left": 1}), "codes: expected a code of every node .* got missing"),
        (lambda f, c: f.generate(-1), "seed: expected an integer, 0 or more and below 2.63, got -1"),
        (lambda f, c: f.pose(c, {}), "changes: expected at least one inner node, got none"),
        (lambda f, c: f.edit(c, torch.zeros(3), ["left"]), r"direction: expected shape \(\d+\) or \(8\), got \(3,\)"),
        (lambda f, c: f.edit(c, torch.zeros(8), []), "regions: expected at least one node, got none"),
        (lambda f, c: f.heatmap("left", 0), "count, batch: expected at least 1, got 0, 8"),
        (lambda f, c: f.heatmap("nose"), "region: expected nodes among"),
    ],
)
def test_bad_input(fusion: StyleFusion, call: Callable[[StyleFusion, Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(fusion, fusion.codes(1))
