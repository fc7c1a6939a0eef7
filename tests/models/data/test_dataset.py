"""Crops, flips, bad files, edges and batches."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import Batch, Collate, RegionDataset, Sample, edges_of_instances, open_source

from mixsyn_fast import RegionMap
from mixsyn_fast.region_map import ClassPlan, PatternPlan, Plan
from tests import processes


class Drawn:
    """A source in memory: picture i has its position in the red and green channel, and i in the blue one."""

    name = "drawn"
    classes = ("floor", "l_wall", "r_wall")
    swaps = ((1, 2),)
    default_size = (8, 8)

    def __init__(self, count: int = 4, size: tuple[int, int] = (8, 12), bad: Sequence[int] = (), kind: str = "") -> None:
        self.count, self.size, self.bad, self.kind = count, size, bad, kind

    def __len__(self) -> int:
        return self.count

    def names(self) -> list[str]:
        return [f"p{i}" for i in range(self.count)]

    def read(self, index: int) -> Sample:
        if index in self.bad:
            raise ValueError(f"p{index}.png: broken")
        y, x = np.mgrid[: self.size[0], : self.size[1]]
        image = np.stack([y, x, np.full_like(x, index)], -1).astype(np.uint8)
        labels = np.where(x < self.size[1] // 2, 1, 2).astype(np.int32)
        labels[0] = 0
        labels[-1] = -1
        instances = (x // 4).astype(np.int32) if self.kind == "instances" else None
        return Sample(image, labels, instances, f"p{index}", y == 3 if self.kind == "edges" else None)


# --- crops ------------------------------------------------------------------------------------------------------------


def test_centre_crop_takes_the_middle() -> None:
    item = RegionDataset(Drawn(), 8)[2]
    assert item.image.dtype == np.uint8 and item.labels.dtype == np.int32 and item.index == 2 and item.name == "p2"
    assert (item.image == Drawn().read(2).image[:, 2:10]).all()  # no scaling, no change
    assert (item.labels == Drawn().read(2).labels[:, 2:10]).all()
    wide = RegionDataset(Drawn(), (4, 12))[0]
    assert (wide.image == Drawn().read(0).image[2:6]).all()


def test_random_crop_is_a_window_that_the_epoch_moves() -> None:
    dataset = RegionDataset(Drawn(1, (8, 40)), 8, crop="random", seed=3)
    lefts = set()
    for epoch in range(12):
        item = dataset[epoch, 0]
        left = int(item.image[0, 0, 1])
        assert (item.image == Drawn(1, (8, 40)).read(0).image[:, left : left + 8]).all()
        assert (item.labels == Drawn(1, (8, 40)).read(0).labels[:, left : left + 8]).all()
        lefts.add(left)
        assert (dataset[epoch, 0].image == item.image).all()
    assert len(lefts) > 5 and min(lefts) >= 0 and max(lefts) <= 32
    other = RegionDataset(Drawn(1, (8, 40)), 8, crop="random", seed=4)
    assert any((other[e, 0].image != dataset[e, 0].image).any() for e in range(4))


def test_no_crop_squeezes_the_whole_picture() -> None:
    item = RegionDataset(Drawn(1, (16, 32)), 8, crop="none")[0]
    assert (item.labels[:-1, :4] == 1).all() and (item.labels[:-1, 4:] == 2).all() and (item.labels[-1] == -1).all()
    assert item.image[:, 0, 1].max() < 4 and item.image[:, -1, 1].min() > 27


def test_load_size_scales_before_the_crop() -> None:
    """A picture of 20 x 40 is squeezed to 10 x 10, of which 8 x 8 are taken: 16 x 32 of its pixels."""
    for crop in ("center", "random"):
        dataset = RegionDataset(Drawn(1, (20, 40)), 8, crop=crop, load_size=10)  # type: ignore[arg-type]
        corners = []
        for epoch in range(8):
            image = dataset[epoch, 0].image.astype(float)
            assert abs(image[-1, 0, 0] - image[0, 0, 0] - 14) <= 1.5  # 7/8 of 16 rows
            assert abs(image[0, -1, 1] - image[0, 0, 1] - 28) <= 2.5
            corners.append((image[0, 0, 0], image[0, 0, 1]))
        assert (len(set(corners)) == 1) == (crop == "center")
    tall = RegionDataset(Drawn(1, (20, 40)), (8, 4), crop="center", load_size=5)[0]  # scaled to 10 x 5
    assert tall.labels.shape == (8, 4) and (tall.labels[:, :2] <= 1).all()


def test_labels_follow_the_picture() -> None:
    """Where the picture is a step, the label map has its step at the same place, at any crop and size."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = (int(v) for v in rng.integers(6, 50, 2))
        source = Drawn(1, (height, width))
        sample = source.read(0)
        step = np.where(sample.labels == 1, 0, 255).astype(np.uint8)
        source.read = lambda index, s=sample, i=step: Sample(i[..., None].repeat(3, 2), s.labels, None, "p0")  # type: ignore[method-assign]
        size = tuple(int(v) for v in rng.integers(4, 40, 2))
        item = RegionDataset(source, size, crop="random", seed=int(rng.integers(100)))[0]  # type: ignore[arg-type]
        inner = np.abs(np.diff((item.labels == 1).astype(int), axis=1)).sum() == 0
        differ = (item.image[..., 0] < 128) != (item.labels == 1)
        assert inner or differ.mean() < 2.5 / min(size)


def test_flip_swaps_left_and_right() -> None:
    plain, flipped = RegionDataset(Drawn(kind="edges"), (8, 12)), RegionDataset(Drawn(kind="edges"), (8, 12), flip=1.0)
    a, b = plain[1], flipped[1]
    assert (a.image[:, ::-1] == b.image).all()
    assert (a.labels == b.labels).all()  # walls are named by side: mirrored and swapped, they are where they were
    assert (b.labels[0] == 0).all() and (b.labels[-1] == -1).all() and b.edges is not None and b.edges[3].all()
    mirrored = plain.mirrored(a)
    for name in ("image", "labels", "edges"):
        np.testing.assert_array_equal(getattr(mirrored, name), getattr(b, name))
    assert mirrored.name == a.name and np.array_equal(plain.mirrored(mirrored).labels, a.labels)
    half = RegionDataset(Drawn(200, (2, 4)), (2, 4), flip=0.5, seed=1)
    count = sum(bool(half[i].image[0, 0, 1]) for i in range(200))
    assert 70 < count < 130
    assert any(bool(half[0, i].image[0, 0, 1]) != bool(half[1, i].image[0, 0, 1]) for i in range(20))


def test_faces_flip_their_eyes() -> None:
    source = open_source(None, "procedural_faces", count=1, seed=3, size=96)
    a, b = RegionDataset(source, 96)[0], RegionDataset(source, 96, flip=1.0)[0]
    for left, right in source.swaps:
        assert (a.labels == left).sum() == (b.labels == right).sum()
        assert np.array_equal((a.labels == left)[:, ::-1], b.labels == right)
    assert np.array_equal((a.labels == 13)[:, ::-1], b.labels == 13)


def test_arguments_are_checked() -> None:
    for message, options in {
        "size: expected positive": {"size": 0},
        "crop: expected 'random', 'center' or 'none', got 'left'": {"crop": "left"},
        "flip: expected a probability": {"flip": 1.5},
        "load_size: expected at least 8, and a crop, got 7 with crop 'center'": {"load_size": 7},
        "load_size: .* got 9 with crop 'none'": {"load_size": 9, "crop": "none"},
        "on_error: expected 'skip' or 'raise', got 'stop'": {"on_error": "stop"},
        "seed: expected a non-negative integer, got -1": {"seed": -1},
    }.items():
        with pytest.raises(ValueError, match=message):
            RegionDataset(Drawn(), **({"size": 8} | options))  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="index: expected 0 to 3, got 4"):
        RegionDataset(Drawn(), 8)[4]
    with pytest.raises(IndexError, match="got -1"):
        RegionDataset(Drawn(), 8)[0, -1]


# --- bad files ----------------------------------------------------------------------------------------------------------


def test_bad_files_are_replaced_by_the_next_good_one() -> None:
    dataset = RegionDataset(Drawn(5, bad=(1, 2, 4)), 8)
    with pytest.warns(UserWarning, match="skipped p2: p2.png: broken"):
        assert dataset[2].name == "p3"
    with pytest.warns(UserWarning, match="skipped p1") as caught:
        item = dataset[1]
    assert len(caught) == 1  # p2 is known
    assert item.index == 3 and item.skipped == (("p1", "p1.png: broken"), ("p2", "p2.png: broken"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset[1].name == "p3" and dataset[7, 0].skipped == ()
    with pytest.warns(UserWarning, match="skipped p4"):
        assert dataset[4].name == "p0"  # from the end to the beginning
    with pytest.raises(ValueError, match="p1.png: broken"):
        RegionDataset(Drawn(5, bad=(1,)), 8, on_error="raise")[1]
    with pytest.raises(ValueError, match="drawn: none of its 3 pictures can be used; p2: p2.png: broken"):
        RegionDataset(Drawn(3, bad=(0, 1, 2)), 8)[2]


def test_a_real_bad_file_in_a_folder(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for name in "abc":
            shape = (9, 9, 3) if part == "images" else (9, 9)
            image_module.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / part / f"{name}.png")
    dataset = RegionDataset(open_source(tmp_path, "folder", classes=1), 8)
    (tmp_path / "images" / "b.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped b: .*images/b.png: not a readable image file"):
        assert dataset[1].name == "c"


# --- edges and batches ----------------------------------------------------------------------------------------------------


def test_edges_of_instances() -> None:
    instances = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3]])
    expected = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
    assert np.array_equal(edges_of_instances(instances), expected)
    rng = np.random.default_rng(1)
    instances = rng.integers(0, 3, (9, 11))
    padded = np.pad(instances, 1, mode="edge")
    around = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    assert np.array_equal(edges_of_instances(instances), np.any([instances != n for n in around], axis=0))
    assert not edges_of_instances(np.zeros((1, 1), int)).any() and edges_of_instances(np.zeros((0, 3), int)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"instances: expected shape \(H, W\), got \(3,\)"):
        edges_of_instances(np.zeros(3, int))


def test_edges_are_taken_at_the_final_size() -> None:
    item = RegionDataset(Drawn(1, (16, 32), kind="instances"), (8, 16))[0]
    assert item.edges is not None
    assert np.array_equal(item.edges, np.tile((np.arange(16) % 2 == 1) | (np.arange(16) % 2 == 0), (8, 1)) & _borders(16, 2))


def _borders(width: int, every: int) -> np.ndarray:
    at = np.arange(width)
    return ((at % every == 0) & (at > 0)) | ((at % every == every - 1) & (at < width - 1))


def batch_of(
    count: int = 3, kind: str = "", plans: tuple[Plan, ...] = (Plan((8, 8), "shared"), Plan((4, 4), "image"))
) -> Batch:
    dataset = RegionDataset(Drawn(count, kind=kind), 8)
    return Collate(dataset.num_regions, plans)([dataset[i] for i in range(count)])


def same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.image, b.image) and a.image.stride() == b.image.stride() and torch.equal(a.index, b.index)
    assert (a.names, a.skipped, a.reasons) == (b.names, b.skipped, b.reasons)
    same_regions(a.regions, b.regions)


def same_regions(a: RegionMap, b: RegionMap) -> None:
    assert repr(a) == repr(b) and torch.equal(a.labels, b.labels)  # type: ignore[arg-type]
    assert set(a._cache) == set(b._cache)
    for key, value in a._cache.items():
        other = b._cache[key]
        assert type(value) is type(other)
        for u, v in zip(value, other, strict=True) if isinstance(value, tuple) else [(value, other)]:
            assert torch.equal(u, v) and u.dtype == v.dtype if isinstance(u, torch.Tensor) else u == v


def test_a_batch_holds_what_it_says() -> None:
    batch = batch_of()
    assert len(batch) == 3 and batch.image.shape == (3, 3, 8, 8) and batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    source = Drawn(3)
    for i in range(3):
        expected = source.read(i).image[:, 2:10].astype(np.float64) / 255 * 2 - 1
        assert np.abs(batch.image[i].permute(1, 2, 0).numpy() - expected).max() < 1e-6
        assert np.array_equal(batch.regions.labels[i].numpy(), source.read(i).labels[:, 2:10])  # type: ignore[index]
    assert batch.names == ("p0", "p1", "p2") and batch.index.tolist() == [0, 1, 2] and batch.regions.num_regions == 3
    assert batch.regions.edges is None and batch.regions.num_channels == 3
    edged = batch_of(kind="edges")
    assert edged.regions.num_channels == 4 and edged.regions.edges[:, 3].all()  # type: ignore[index]
    assert "names=('p0', 'p1', 'p2')" in repr(batch) and len(repr(batch)) < 300


def test_planned_patterns_are_those_that_the_map_would_make() -> None:
    asked: tuple[tuple[Plan, Callable[[RegionMap], PatternPlan | ClassPlan | tuple[torch.Tensor]]], ...] = (
        (Plan((8, 8), "image"), lambda regions: regions.plan((8, 8), per_image=True)),
        (Plan((8, 8), "shared"), lambda regions: regions.plan((8, 8))),
        (Plan((2, 4), "shared"), lambda regions: regions.plan((2, 4))),
        (Plan((4, 4), "classes"), lambda regions: regions.class_plan((4, 4))),
        (Plan((3, 5), "labels"), lambda regions: (regions.labels_at((3, 5)),)),
    )
    batch = batch_of(plans=tuple(plan for plan, _ in asked))
    fresh = RegionMap(batch.regions.labels, 3, ignore_index=-1)  # type: ignore[arg-type]
    for regions in (batch.regions, pickle.loads(pickle.dumps(batch)).regions, batch.regions._mapped(torch.clone)):
        cached = len(regions._cache)
        for _, ask in asked:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(ask(regions), ask(fresh), strict=True))
        assert len(regions._cache) == cached  # nothing was left to compute


def test_plans_without_edges_travel_with_a_map_that_has_them() -> None:
    plans = (Plan((8, 8), "classes", edges=False), Plan((4, 4), "shared"))
    batch = batch_of(kind="edges", plans=plans)
    fresh = RegionMap(batch.regions.labels, 3, ignore_index=-1)  # type: ignore[arg-type]
    travelled = pickle.loads(pickle.dumps(batch))
    for regions in (batch.regions, travelled.regions, batch.regions._mapped(torch.clone)):
        assert ("class_plan", (8, 8)) not in regions._cache and ("plan", (4, 4), False) in regions._cache
        bare = regions.without_edges()
        assert ("class_plan", (8, 8)) in bare._cache and bare.edges is None
        assert all(torch.equal(u, v) for u, v in zip(bare.class_plan((8, 8)), fresh.class_plan((8, 8)), strict=True))
    # the labels that both maps hold are sent once
    assert travelled.regions.labels.data_ptr() == travelled.regions.without_edges().labels.data_ptr()


def test_an_unknown_kind_of_plan_is_an_error() -> None:
    with pytest.raises(ValueError, match="plans: expected kinds among shared, image, classes, labels, got 'own'"):
        batch_of(plans=(Plan((4, 4), "own"),))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["", "edges"])
def test_a_batch_travels_as_one_piece(kind: str) -> None:
    from mixsyn_fast.models.data import batch as module

    batch = batch_of(kind=kind)
    again = pickle.loads(pickle.dumps(batch))
    same(batch, again)
    tensors: list[torch.Tensor] = []
    module._walk((again.image, again.regions), tensors.append)
    assert len(tensors) > 8 and len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    assert all(t.data_ptr() % 64 == 0 for t in tensors if t.numel())
    buffer, _ = module._pack((again.image, again.regions))
    assert buffer.data_ptr() == tensors[0].untyped_storage().data_ptr()  # packed already: no second copy
    same(again, pickle.loads(pickle.dumps(again)))
    again.regions.plan((2, 2))  # what is cached later travels as well
    same(again, pickle.loads(pickle.dumps(again)))


def test_a_batch_of_one_and_odd_sizes_travel() -> None:
    dataset = RegionDataset(Drawn(1, (5, 7)), (5, 3))
    batch = Collate(3, (Plan((5, 3), "image"),))([dataset[0]])
    same(batch, pickle.loads(pickle.dumps(batch)))


def test_movement() -> None:
    batch = batch_of()
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert moved.image.device.type == "meta" and moved.image.shape == batch.image.shape
    assert moved.regions.labels.device.type == "meta" and moved.names == batch.names  # type: ignore[union-attr]
    assert moved.index.device.type == "cpu"


@pytest.mark.gpu
def test_movement_to_a_gpu() -> None:
    batch = batch_of(kind="edges")
    pinned = batch.pin_memory()
    assert pinned.image.is_pinned() and pinned.regions.labels.is_pinned()  # type: ignore[union-attr]
    same(batch, pinned)
    there = pinned.to("cuda", non_blocking=True)
    assert there.to("cuda") is there and there.regions.device.type == "cuda"
    same(batch, there.to("cpu"))


def test_collate_says_what_does_not_fit() -> None:
    dataset = RegionDataset(Drawn(), 8)
    with pytest.raises(ValueError, match="items: expected one or more of one size, got sizes \\[\\]"):
        Collate(3)([])
    with pytest.raises(ValueError, match=r"got sizes \[\(4, 4\), \(8, 8\)\]"):
        Collate(3)([dataset[0], RegionDataset(Drawn(), 4)[0]])
    with pytest.raises(ValueError, match="items: expected edges in all or none, got p1 with and p0 without"):
        Collate(3)([dataset[0], RegionDataset(Drawn(kind="edges"), 8)[1]])
    with pytest.raises(ValueError, match=r"RegionMap: labels: expected values in \[0, 2\)"):
        Collate(2)([dataset[0]])


def test_drawn_pictures_need_no_pillow() -> None:
    """Training on drawn pictures at their own size, and importing, work without any optional package."""
    code = """
import sys
for name in ("PIL", "scipy", "tqdm", "safetensors", "torchmetrics", "matplotlib", "tensorboard"):
    sys.modules[name] = None
import mixsyn_fast.models
from mixsyn_fast.models.data import Loader, RegionDataset, open_source
source = open_source(None, "procedural_facades", count=4, size=32)
assert next(Loader(RegionDataset(source, 32, flip=0.5), 2)).image.shape == (2, 3, 32, 32)
try:
    RegionDataset(source, 16)[0]
except ImportError as error:
    print(error)
"""
    done = processes.run(code)
    assert done.output.strip() == "scaling pictures needs pillow: pip install 'mixsyn_fast[models]'"
