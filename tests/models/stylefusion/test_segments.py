"""Segments: masks against the dense form, clusters, names, the file; which channel is which region's."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.stylefusion.correlation import channel_weights, correlation, energies
from mixsyn_fast.models.stylefusion.segments import (
    Segments,
    deep_pixels,
    draw_codes,
    find_segments,
    sample_deep_pixels,
    ward,
)
from mixsyn_fast.models.stylegan2 import Generator
from torch import Tensor

from tests.compare import relative_error

SIDES, WIDTHS, SIDE, CLUSTERS = (4, 4, 8, 8, 16, 16, 32), (5, 5, 5, 4, 4, 3, 3), 16, 6
NAMES = ("sky", "house", "house", "tree", "sky", "door")


def activations(seed: int = 0, dtype: torch.dtype = torch.float32, rgb: bool = True) -> list[Tensor]:
    """Conv layers, then (which no mask reads) two of RGB."""
    rng = torch.Generator().manual_seed(seed)
    shapes = [*zip(WIDTHS, SIDES, strict=True), *([(5, 4), (3, 16)] if rgb else [])]
    return [torch.randn(2, c, s, s, generator=rng, dtype=torch.float64).to(dtype) * (1 + c) for c, s in shapes]


def segments(**changes: Any) -> Segments:
    rng = torch.Generator().manual_seed(9)
    width = sum(WIDTHS)
    scale = 1 / (1 + 5 * torch.rand(width, generator=rng))
    scale[3] = 0  # a channel that never changes
    made = Segments(
        torch.randn(CLUSTERS, width, generator=rng) * 3, scale, NAMES, WIDTHS, SIDE, 0.05, "digest", (0.3,) * CLUSTERS
    )
    return replace(made, **changes)


def distances(given: Segments, layers: list[Tensor]) -> Tensor:
    """The dense form: every deep pixel beside every centre, (B, K, side, side) float64."""
    x = deep_pixels([layer for layer in layers[: len(WIDTHS)]], given.side).double()
    apart = (x[:, None] - given.centres.double()[None, :, :, None, None]) * given.scale.double()[:, None, None]
    return apart.square().mean(2)


def test_masks_are_those_of_the_dense_form() -> None:
    given, layers = segments(), activations()
    apart = distances(given, layers)
    near = given.nearness(layers)
    # equal up to what all clusters of a pixel share
    assert relative_error(near - near.mean(1, keepdim=True), apart.mean(1, keepdim=True) - apart) < 1e-6
    assert torch.equal(given.assign(layers), apart.argmin(1))
    chances = torch.softmax(-apart / 0.05, 1)
    expected = torch.stack([chances[:, [i for i, n in enumerate(NAMES) if n == name]].sum(1) for name in given.regions], 1)
    masks = given.masks(layers)
    assert given.regions == ("sky", "house", "tree", "door") and masks.shape == (2, 4, SIDE, SIDE)
    assert (masks - expected).abs().max() < 1e-5 and (masks.sum(1) - 1).abs().max() < 1e-5
    assert 0.2 < float((masks.amax(1) < 0.9).float().mean()) < 0.8, "the masks of this test say nothing"
    hard = given.hard_masks(layers, ["house", ("tree", "door", "nowhere")])
    assert torch.equal(hard[:, 0], torch.isin(apart.argmin(1), torch.tensor([1, 2])).float())
    assert torch.equal(hard[:, 1], torch.isin(apart.argmin(1), torch.tensor([3, 5])).float())
    # colder is harder
    assert (given.masks(layers, temperature=1e-6) - given.hard_masks(layers)).abs().max() < 1e-3


def test_masks_have_the_gradient_of_the_dense_form() -> None:
    given = segments()
    ours, theirs = activations(1), activations(1, torch.float64)
    for layer in (*ours, *theirs):
        layer.requires_grad_()
    weight = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    (given.masks(ours, ["house"])[:, 0] * weight).sum().backward()
    # deep_pixels rounds to float32: the same in float64
    x = torch.cat(
        [
            F.interpolate(t, size=(SIDE, SIDE), mode="area")
            if t.shape[2] > SIDE
            else F.interpolate(t, size=(SIDE, SIDE), mode="bilinear")
            for t in theirs[: len(WIDTHS)]
        ],
        1,
    )
    apart = ((x[:, None] - given.centres[None, :, :, None, None]) * given.scale[:, None, None]).square().mean(2)
    (torch.softmax(-apart / 0.05, 1)[:, [1, 2]].sum(1) * weight).sum().backward()
    for a, b in zip(ours[: len(WIDTHS)], theirs, strict=False):
        assert b.grad is not None and relative_error(a.grad, b.grad) < 1e-4
    assert ours[-1].grad is None  # RGB layers have no part in it


def test_names() -> None:
    given = segments().named({0: "air", "house": "wall", 5: "wall"})
    assert given.names == ("air", "wall", "wall", "tree", "sky", "wall") and given.regions == ("air", "wall", "tree", "sky")
    assert given.membership([("tree", "sky"), "wall"]).tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]]
    for call, words in (
        (lambda: given.named({6: "x"}), "names: expected clusters 0 to 5 or regions among air, .*got 6"),
        (lambda: given.named({"house": "x"}), "names: .*got 'house'"),
        (lambda: given.named({0: " "}), "names: expected a name for every cluster"),
        (lambda: given.membership(["hous"]), r"regions: expected clusters named hous, got none .there are air, wall"),
        (lambda: given.masks(activations(), temperature=0), "temperature: expected a positive number, got 0"),
        (lambda: given.masks(activations()[1:]), r"activations: expected conv layers of widths \(5, 5"),
        (lambda: segments(centres=torch.zeros(2, 29)), r"centres: expected shape \(6, 29\), got \(2, 29\)"),
        (lambda: segments(temperature=0.0), "side, temperature: expected positive"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_the_file_can_be_edited(tmp_path: Path) -> None:
    given, path = segments(), tmp_path / "segments.json"
    given.save(path)
    again = Segments.load(path)
    assert torch.equal(again.centres, given.centres) and torch.equal(again.scale, given.scale)
    for name in ("names", "channels", "side", "temperature", "generator", "shares"):
        assert getattr(again, name) == getattr(given, name), name
    text = path.read_text()
    rows = [line for line in text.splitlines() if '"region"' in line]
    assert rows[5].strip() == '{"cluster": 5, "region": "door", "share": 0.3}'
    path.write_text(text.replace('"cluster": 5, "region": "door"', '"cluster": 5, "region": "Tür "'))
    assert Segments.load(path).regions == ("sky", "house", "tree", "Tür")


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "segments.json"
    segments().save(path)
    whole = json.loads(path.read_text())

    def fails(words: str, **change: Any) -> None:
        path.write_text(json.dumps({k: v for k, v in (whole | change).items() if v is not None}))
        with pytest.raises(ValueError, match="segments.json: .*" + words):
            Segments.load(path)

    fails("expected a file of Segments.save, format .*got another one", format="x")
    fails(r"missing \['side'\], unknown \['colour'\]", side=None, colour=1)
    fails("clusters: expected a list of objects", clusters=[1])
    fails("clusters: expected cluster 1 with the name", clusters=[whole["clusters"][0], whole["clusters"][2]])
    fails("clusters: expected cluster 0 with the name", clusters=[{"cluster": 0, "region": " "}])
    fails("damaged: the SHA-256", data=whole["data"].replace("A", "B", 1))
    fails("data: expected base64", data="*")
    fails("expected 5 centres of .* channels, got others", clusters=whole["clusters"][:5])
    path.write_text("{")
    with pytest.raises(ValueError, match="segments.json: expected JSON, got other text in line 1"):
        Segments.load(path)
    with pytest.raises(FileNotFoundError, match="absent.json: no such file"):
        Segments.load(tmp_path / "absent.json")


def test_wards_method() -> None:
    """Three clouds of different sizes are found, the largest first; K clusters are K."""
    torch.manual_seed(0)
    means = torch.randn(3, 20) * 3
    truth = torch.tensor([0] * 30 + [1] * 50 + [2] * 20)
    labels = ward(means[truth] + torch.randn(100, 20), 3)
    assert torch.equal(labels, torch.tensor([1] * 30 + [0] * 50 + [2] * 20))
    # against the definition: merge the pair whose union's squared error rises least
    rows = torch.randn(12, 3).double()
    groups = [[i] for i in range(12)]

    def rise(a: list[int], b: list[int]) -> float:
        mean = rows[a].mean(0) - rows[b].mean(0)
        return float(mean.square().sum()) * len(a) * len(b) / (len(a) + len(b))

    while len(groups) > 4:
        i, j = min(((i, j) for j in range(len(groups)) for i in range(j)), key=lambda p: rise(groups[p[0]], groups[p[1]]))
        groups[i] += groups.pop(j)
    found = ward(rows.float(), 4)
    assert {frozenset(g) for g in groups} == {frozenset((found == k).nonzero()[:, 0].tolist()) for k in range(4)}
    assert ward(rows.float(), 1).eq(0).all() and ward(rows.float(), 12).unique().numel() == 12
    with pytest.raises(ValueError, match="clusters: expected 1 to 12, as many as pixels, got 13"):
        ward(rows.float(), 13)


# --- of a generator ---------------------------------------------------------------------------------------------------


def test_clusters_of_a_generator(generator: Generator, segments: Segments, tmp_path: Path) -> None:
    """The sample is one of dense deep pixels; centres are means of clusters; every pixel goes to the nearest one."""
    codes = list(draw_codes(generator, 8, 1.0, seed=0, batch=3))
    assert [len(code) for code in codes] == [3, 3, 2]
    rows = sample_deep_pixels(generator, codes, 8, 16, 300, seed=0)
    again = sample_deep_pixels(generator, [torch.cat(codes)], 8, 16, 300, seed=0)
    with torch.no_grad():
        layers = generator.activations(torch.cat(codes))[1]
    count = len(generator.layout.conv_layers)
    dense = deep_pixels(layers[:count], 16).movedim(1, 3).flatten(0, 2)
    assert relative_error(rows, again) < 1e-5 and rows.shape == (300, sum(generator.layout.channels[:count]))
    apart = torch.cdist(rows, dense, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert float(apart.max()) < 1e-3 * float(rows.norm(dim=1).mean())
    labels = ward(rows * segments.scale, 4)
    for k in range(4):
        assert relative_error(segments.centres[k], rows[labels == k].mean(0)) < 1e-4
        assert segments.shares[k] == pytest.approx(float((labels == k).float().mean()), abs=1e-6)
    assert relative_error(segments.scale, 1 / rows.std(0, unbiased=False)) < 1e-4
    assert segments.regions == ("left", "right", "rest") and segments.channels == generator.layout.channels[:count]
    best = (segments.nearness(layers) / segments.temperature).topk(2, 1).values
    odds = float((best[:, 0] - best[:, 1]).exp().median())
    assert 5 < odds < 20  # 10 over the sample, about that over all pixels
    segments.check(generator)
    segments.save(tmp_path / "s.json")
    Segments.load(tmp_path / "s.json").check(copy.deepcopy(generator).half().float())
    with pytest.raises(ValueError, match="segments: expected clusters of this generator"):
        Segments.load(tmp_path / "s.json").check(generator.style)


def test_options_of_clustering(generator: Generator) -> None:
    small = find_segments(generator, clusters=3, images=2, pixels=50)
    assert small.side == 32 and small.names == ("cluster_0", "cluster_1", "cluster_2")
    coarse = sum(c for c, s in zip(small.channels, (4, 4, 8, 8, 16, 16, 32), strict=True) if s < 16)
    assert not small.scale[:coarse].any() and bool(small.scale[coarse:].any())
    one = find_segments(generator, clusters=1, images=1, pixels=10, from_side=999)
    last = one.channels[-1]
    assert one.temperature == 1.0 and one.shares == (1.0,) and one.scale[-last:].any() and not one.scale[:-last].any()
    for fields, words in (
        ({"pixels": 5000}, r"pixels: expected 1 to 2048 .2 images of 32 x 32., got 5000"),
        ({"pixels": 5, "clusters": 6}, "clusters: expected 1 to 5"),
    ):
        with pytest.raises(ValueError, match=words):
            find_segments(generator, **({"images": 2, "pixels": 50, "clusters": 3} | fields))


# --- M and w ----------------------------------------------------------------------------------------------------------


def one_hot(seed: int = 4) -> Tensor:
    labels = torch.randint(0, 3, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(labels, 3).movedim(3, 1).float()


def test_equation_1() -> None:
    """Every layer at its own size, RGB layers too, against everything repeated to the largest size."""
    layers, masks = activations(), one_hot()
    size = max(SIDES)
    u = F.interpolate(masks.double(), size=(size, size), mode="nearest")
    a = torch.cat([F.interpolate(layer.double(), size=(size, size), mode="nearest") for layer in layers], 1)
    raw = torch.einsum("nchw,nkhw->nkc", a.square(), u) / (size * size)
    whole = a.square().mean((2, 3))
    inside, energy = energies(layers, masks)
    assert relative_error(inside, raw) < 1e-6 and relative_error(energy, whole) < 1e-6
    m = correlation(layers, masks)
    assert m.shape == (2, 3, sum(WIDTHS) + 8) and (m.sum(1) - 1).abs().max() < 1e-5
    assert relative_error(m, raw / whole[:, None]) < 1e-6
    assert relative_error(correlation(layers, masks, over_images=True), raw.sum(0) / whole.sum(0)) < 1e-6


def test_what_m_says() -> None:
    """A channel fully inside a region has 1, one that is everywhere the region's share, one without energy 0 (Eq. 8: w)."""
    masks = torch.zeros(1, 2, 8, 8)
    masks[:, 0, :, :4], masks[:, 1, :, 4:] = 1, 1
    layer = torch.zeros(1, 3, 8, 8)
    layer[:, 0, :, :4], layer[:, 1] = 5, -2
    m = correlation([layer], masks)
    assert m[0].tolist() == [[1, 0.5, 0], [0, 0.5, 0]]
    assert channel_weights(m)[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert channel_weights(torch.tensor([0.75])).item() == 0.5
    with pytest.raises(ValueError, match="activations: layer 0: expected batch 1 and a side that divides 8"):
        energies([torch.zeros(1, 3, 5, 5)], masks)
