"""RegionMap: construction, errors, levels by torch's nearest rule, plans, movement."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mixsyn_fast import RegionMap, as_region_map
from mixsyn_fast.layers.algebra import add_to_centre, apply_taps, gather_sum, tap_rows, taps
from mixsyn_fast.nearest import nearest_source

LABELS = torch.randint(0, 5, (2, 12, 10), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("full", [1, 2, 7, 49, 133, 256, 300])
def test_levels_follow_interpolate_nearest(full: int) -> None:
    values = torch.arange(full, dtype=torch.float32)[None, None, :, None]
    for size in [*range(1, 70), 128, 133, 256, 257, 511]:
        expected = F.interpolate(values, size=(size, 1), mode="nearest")[0, 0, :, 0].long()
        assert torch.equal(nearest_source(size, full), expected), (full, size)
    integer = torch.arange(49) * 133 // 49
    assert not torch.equal(nearest_source(49, 133), integer)  # the case that integer division gets wrong


def test_labels_onehot_and_areas_at_every_size() -> None:
    edges = torch.rand(2, 12, 10) < 0.3
    regions = RegionMap(LABELS, 5, ignore_index=4, edges=edges)
    full = F.one_hot(LABELS, 5).permute(0, 3, 1, 2).float() * torch.tensor([1.0, 1, 1, 1, 0])[None, :, None, None]
    full = torch.cat((full, edges[:, None].float()), 1)
    for size in [(12, 10), (6, 5), (7, 3), (24, 20), (1, 1)]:
        expected = F.interpolate(full, size=size, mode="nearest")
        assert torch.equal(regions.onehot(size), expected)
        assert torch.equal(regions.areas(size), expected[:, :5].sum((2, 3)))
        labels = regions.labels_at(size)
        assert torch.equal(labels, torch.where(expected[:, :5].sum(1) == 0, -1, expected[:, :5].argmax(1)).int())
        # everything comes from the full resolution and is made once
        assert regions.labels_at(size) is labels
    assert regions.num_channels == 6 and regions.size == (12, 10) and regions.batch_size == 2


def test_volumes() -> None:
    """Levels, one-hot masks and areas as F.interpolate's; SPADE's table of three 3x3x3 convolutions by the plan's sums."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(-1, 3, (2, 2, 3, 2), generator=generator).repeat_interleave(2, 1).repeat_interleave(3, 3)
    regions = RegionMap(labels, 3, ignore_index=-1)
    full = (labels[:, None] == torch.arange(3).reshape(1, 3, 1, 1, 1)).double()
    assert regions.size == (4, 3, 6) and "4x3x6" in repr(regions)
    read = as_region_map(full)
    assert torch.equal(read.labels_at(), regions.labels_at()) and as_region_map(full / 2).is_soft
    for size in [(4, 3, 6), (2, 5, 3)]:
        expected = F.interpolate(full, size=size, mode="nearest")
        assert torch.equal(regions.onehot(size, torch.float64), expected)
        assert torch.equal(RegionMap.soft(full).onehot(size, torch.float64), expected)
        assert torch.equal(regions.areas(size), expected.sum((2, 3, 4)).float())
        assert torch.equal(RegionMap.soft(full).areas(size), regions.areas(size))
        shared, both = (torch.randn(*shape, 3, 3, 3, dtype=torch.float64, generator=generator) for shape in ((4, 3), (6, 4)))
        dense = F.conv3d(F.relu(F.conv3d(expected, shared, padding=1) + 1), both, padding=1)
        for per_image in (False, True):
            plan = regions.plan(size, per_image)
            # rows of codes, of which outside (3) and no region (4) are zero; then hidden rows, the last of them outside
            codes = F.pad(shared.flatten(2).permute(2, 1, 0), (0, 0, 0, 2)).reshape(-1, 4)
            hidden = F.pad(F.relu(gather_sum(codes, plan.hidden) + 1), (0, 0, 0, 1))
            for products in (tap_rows(hidden, both), add_to_centre(apply_taps(hidden, taps(both), 27), torch.zeros(6), 27)):
                table = gather_sum(products, plan.rows)
                torch.testing.assert_close(table[plan.index].movedim(-1, 1), dense, rtol=1e-12, atol=1e-12)
            moved = gather_sum(add_to_centre(tap_rows(hidden, both), torch.ones(6), 27), plan.rows)
            torch.testing.assert_close(moved, table + 1, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="size: expected three positive integers"):
        regions.labels_at((4, 4))


def test_constructors_agree() -> None:
    hard = RegionMap(LABELS, 5)
    onehot = hard.onehot()
    read = RegionMap.from_onehot(onehot)
    soft = RegionMap.soft(onehot)
    assert torch.equal(read.labels_at(), hard.labels_at()) and not read.is_soft and soft.is_soft
    assert torch.equal(soft.onehot((3, 5)), hard.onehot((3, 5)))
    assert torch.equal(soft.areas((3, 5)), hard.areas((3, 5)))
    with_edges = torch.cat((onehot, (LABELS == 1)[:, None].float()), 1)
    assert torch.equal(RegionMap.from_onehot(with_edges, num_regions=5).onehot(), with_edges)
    guessed = as_region_map(with_edges)
    assert guessed.num_regions == 5 and guessed.edges is not None and not guessed.is_soft
    assert as_region_map(hard) is hard
    assert as_region_map(onehot * 0.5).is_soft
    assert as_region_map(onehot.clone().requires_grad_()).is_soft
    empty = RegionMap.from_onehot(torch.zeros(1, 3, 4, 4))
    assert bool((empty.labels_at() == -1).all())


def test_per_image_patterns_are_those_of_single_images() -> None:
    regions = RegionMap(LABELS, 5)
    both = regions.patterns((6, 5), 2, per_image=True)
    for b in range(2):
        alone = RegionMap(LABELS[b : b + 1], 5).patterns((6, 5), 2)
        mine = both.row_image == b
        assert torch.equal(both.patterns[mine], alone.patterns)
        assert torch.equal(both.index[b] - int(mine.nonzero()[0]), alone.index[0])


def test_movement_keeps_the_cache() -> None:
    regions = RegionMap(LABELS, 5, edges=LABELS == 2)
    plan = regions.plan((6, 5), per_image=True)
    copy = pickle.loads(pickle.dumps(regions))
    assert torch.equal(copy.labels_at(), regions.labels_at()) and len(copy._cache) >= len(regions._cache)
    for ours, theirs in zip(copy._cache["plan", (6, 5), True], plan, strict=True):
        assert torch.equal(ours, theirs)
    assert regions.to("cpu") is regions
    moved = regions.to("meta")
    assert moved.device.type == "meta" and moved.plan((6, 5), per_image=True).index.shape == plan.index.shape
    assert "hard" in repr(regions) and "12x10" in repr(regions) and "num_regions=5" in repr(regions)


def _loaded(index: int) -> RegionMap:
    made = RegionMap(LABELS, 5)
    made.plan((6, 5))
    return made


class _Maps(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> RegionMap:
        return _loaded(index)


def test_travels_from_a_data_loader_worker() -> None:
    loader = torch.utils.data.DataLoader(
        _Maps(), batch_size=None, num_workers=1, multiprocessing_context="spawn", collate_fn=None
    )
    for regions in loader:
        assert isinstance(regions, RegionMap) and ("plan", (6, 5), False) in regions._cache
        assert torch.equal(regions.plan((6, 5)).index, _loaded(0).plan((6, 5)).index)


def naive_labels(mask: torch.Tensor) -> torch.Tensor | None:
    """Labels of a one-hot mask, by its definition."""
    zero, one = mask == 0, mask == 1
    if not bool((zero | one).all()) or bool((one.sum(1) > 1).any()):
        return None
    return torch.where(one.any(1), one.to(torch.uint8).argmax(1), -1).int()


@pytest.mark.parametrize("regions", [1, 3, 31, 32, 33, 257, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_labels_of_onehot_masks(regions: int, dtype: torch.dtype) -> None:
    """Every layout and dtype, and matrix products of any precision: autocast, bfloat16 instead of float32."""
    labels = torch.randint(-1, regions, (2, 9, 7), generator=torch.Generator().manual_seed(regions))
    planes = (labels[:, None] == torch.arange(regions).view(1, -1, 1, 1)).to(dtype)
    wide = torch.zeros(2, regions + 2, 18, 14, dtype=dtype)
    wide[:, 1:-1, ::2, ::2] = planes
    layouts = planes, planes.contiguous(memory_format=torch.channels_last), wide[:, 1:-1, ::2, ::2]
    precision = torch.get_float32_matmul_precision()
    for mask in layouts:
        assert torch.equal(RegionMap.from_onehot(mask).labels_at(), labels.int())
        try:
            torch.set_float32_matmul_precision("medium")
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(RegionMap.from_onehot(mask).labels_at(), labels.int())
        finally:
            torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, 1 + 2**-20, 2**-140, float("nan"), float("inf"), 1.0])
@pytest.mark.parametrize("on_own", [False, True])
def test_masks_that_are_nearly_onehot(value: float, on_own: bool) -> None:
    """One number is another, at the pixel's region or beside it."""
    labels = torch.randint(0, 5, (1, 6, 6), generator=torch.Generator().manual_seed(0))
    mask = F.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    own = int(labels[0, 2, 3])
    mask[0, own if on_own else (own + 2) % 5, 2, 3] = value
    expected = naive_labels(mask)
    assert (expected is None) is not (on_own and value == 1.0)
    if expected is None:
        with pytest.raises(ValueError, match="soft or overlapping"):
            RegionMap.from_onehot(mask)
    else:
        assert torch.equal(RegionMap.from_onehot(mask).labels_at(), expected)


def test_a_kept_mask_is_the_onehot() -> None:
    mask = RegionMap(LABELS, 5).onehot((12, 10), torch.float64)
    assert RegionMap.from_onehot(mask, keep_mask=True).onehot(dtype=torch.float64) is mask
    assert RegionMap.from_onehot(mask, keep_mask=True).onehot() is not mask
    assert RegionMap.from_onehot(mask).onehot(dtype=torch.float64) is not mask
    small = RegionMap.from_onehot(mask, keep_mask=True).onehot((5, 4), torch.float64)
    assert torch.equal(small, F.interpolate(mask, size=(5, 4), mode="nearest"))


def noise(cell: int, size: int = 96, regions: int = 19) -> torch.Tensor:
    """Labels drawn anew for every cell."""
    count = -(-size // cell)
    cells = torch.randint(0, regions, (1, count, count), generator=torch.Generator().manual_seed(cell))
    return cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :size, :size]


def test_a_sample_tells_maps_that_hardly_repeat() -> None:
    for radius in (1, 2):
        assert RegionMap(noise(1), 19).distinct_share(radius=radius) > 0.85
        assert RegionMap(noise(2), 19).distinct_share(radius=radius) > 0.85
        assert RegionMap(noise(8), 19).distinct_share(radius=radius) == 0
    assert RegionMap(noise(4), 19).distinct_share(radius=2) > 0.85 and RegionMap(noise(4), 19).distinct_share(radius=1) == 0
    assert RegionMap(noise(1, regions=2), 2).distinct_share(radius=1) == 0  # 512 patterns of 3x3 at most
    assert RegionMap(noise(1), 19).distinct_share((16, 16)) == 0  # too few pixels to sample
    with_edges = RegionMap(torch.zeros_like(noise(1)), 1, edges=noise(1, regions=2).bool())
    assert with_edges.distinct_share() > 0.85 and with_edges.distinct_share(radius=1) == 0  # edges are part of a pattern


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: RegionMap(LABELS[0], 5), ValueError, r"labels: expected shape \(B, H, W\)"),
        (lambda: RegionMap(LABELS.float(), 5), TypeError, "labels: expected an integer"),
        (lambda: RegionMap(LABELS.numpy(), 5), TypeError, "labels: expected a tensor"),  # type: ignore[arg-type]
        (lambda: RegionMap(LABELS, 4), ValueError, r"labels: expected values in \[0, 4\), got 4 at"),
        (lambda: RegionMap(LABELS - 1, 5), ValueError, "got -1 at"),
        (lambda: RegionMap(LABELS, 0), ValueError, "num_regions"),
        (lambda: RegionMap(LABELS, 513), ValueError, "num_regions"),
        (lambda: RegionMap(LABELS, 3, ignore_index=4), ValueError, "or ignore_index 4, got 3"),
        (lambda: RegionMap(LABELS, 5, edges=LABELS[:1]), ValueError, "edges: expected shape"),
        (lambda: RegionMap(LABELS, 5, edges=LABELS), ValueError, "edges: expected values 0 and 1"),
        (lambda: RegionMap.from_onehot(torch.ones(1, 3, 2, 2)), ValueError, "mask: expected values 0 and 1"),
        (lambda: RegionMap.from_onehot(torch.full((1, 3, 2, 2), 0.3)), ValueError, "mask"),
        (lambda: RegionMap.from_onehot(torch.zeros(3, 2, 2)), ValueError, "mask: expected shape"),
        (lambda: RegionMap.from_onehot(torch.zeros(1, 5, 2, 2), num_regions=3), ValueError, "3 channels, or one more"),
        (lambda: RegionMap.soft(torch.full((1, 3, 2, 2), -0.1)), ValueError, "weights: expected finite"),
        (lambda: RegionMap.soft(torch.full((1, 3, 2, 2), float("nan"))), ValueError, "weights: expected finite"),
        (lambda: RegionMap.soft(torch.zeros(1, 3, 2, 2, dtype=torch.int32)), TypeError, "weights: expected a floating"),
        (lambda: RegionMap.soft(torch.zeros(3, 2, 2)), ValueError, "weights: expected shape"),
        (lambda: RegionMap(LABELS, 5).labels_at((0, 3)), ValueError, "size: expected two positive"),
        (
            lambda: RegionMap.soft(torch.zeros(1, 3, 2, 2), resize="cubic"),
            ValueError,
            "resize: expected 'nearest' or 'area'",
        ),
        (lambda: RegionMap(LABELS, 5).weights_at(), TypeError, "expected a soft map"),
        (lambda: RegionMap.soft(torch.zeros(1, 3, 2, 2)).labels_at(), TypeError, "expected a hard map"),
        (lambda: RegionMap.soft(torch.zeros(1, 3, 2, 2)).plan(), TypeError, "expected a hard map"),
        (lambda: RegionMap(LABELS.to("meta"), 5), ValueError, "labels: expected a tensor with values, got .* meta"),
        (lambda: RegionMap(LABELS.to_sparse(), 5), ValueError, "labels: .* got a tensor of layout torch.sparse_coo"),
        (lambda: RegionMap(LABELS + 2**32, 5), ValueError, r"labels: expected values in \[0, 5\), got 42949672"),
        (lambda: RegionMap(LABELS.to(torch.uint16), 5), TypeError, "labels: expected an integer dtype .int64"),
        (lambda: RegionMap(LABELS, 2.5), TypeError, r"num_regions: expected 1 to 512, got 2.5 \(float\)"),
        (lambda: RegionMap(LABELS, True), TypeError, r"num_regions: expected 1 to 512, got True \(bool\)"),
        (lambda: RegionMap(LABELS, None), TypeError, "num_regions: expected 1 to 512, got None"),
        (lambda: RegionMap(LABELS, 5, ignore_index=0.5), TypeError, r"ignore_index: .* got 0.5 \(float\)"),
        (lambda: RegionMap(LABELS, 5, ignore_index="a"), TypeError, r"ignore_index: .* got 'a' \(str\)"),
        (lambda: RegionMap(LABELS, 5, ignore_index=False), TypeError, "ignore_index: .* got False"),
        (lambda: RegionMap(LABELS, 5, ignore_index=2**70), ValueError, "ignore_index: .* of 64 bits, got 1180591620"),
        (lambda: RegionMap(LABELS, 5, edges=1), TypeError, "edges: expected a tensor, got 1"),
        (lambda: RegionMap.from_onehot(None), TypeError, "mask: expected a tensor, got None"),
        (lambda: RegionMap.from_onehot(torch.zeros(1, 5, 2, 2), num_regions=4.5), TypeError, "num_regions: .* 4.5"),
        (lambda: RegionMap.from_onehot(torch.zeros(1, 5, 2, 2, device="meta")), ValueError, "mask: .* meta"),
        (lambda: RegionMap.soft(3), TypeError, "weights: expected a tensor, got 3"),
        (lambda: RegionMap.soft(torch.zeros(1, 3, 2, 2, device="meta")), ValueError, "weights: .* meta"),
        (lambda: RegionMap(LABELS, 5).labels_at(4), TypeError, r"size: expected two positive integers .* got 4 \(int\)"),
        (lambda: RegionMap(LABELS, 5).labels_at((4, 2.5)), TypeError, "size: expected two positive integers .* got 2.5"),
        (lambda: as_region_map(torch.ones(1, 3, 2, 2).to_sparse()), ValueError, "as_region_map: regions: .*sparse_coo"),
        (lambda: as_region_map("face"), TypeError, "regions: expected a RegionMap"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_numbers_of_numpy_and_of_tensors() -> None:
    expected = RegionMap(LABELS, 5, ignore_index=2)
    for five, two in ((np.int64(5), np.uint8(2)), (LABELS.max() + 1, torch.tensor(2))):
        regions = RegionMap(LABELS, five, ignore_index=two)
        assert type(regions.num_regions) is int and torch.equal(regions.labels_at(), expected.labels_at())
        onehot = RegionMap.from_onehot(expected.onehot(), num_regions=five)
        assert type(onehot.num_regions) is int and torch.equal(onehot.labels_at(), expected.labels_at())
    assert RegionMap(LABELS, 5).labels_at(torch.Size([2, 3])).shape[1:] == (2, 3)


def test_ignored_label_may_lie_anywhere() -> None:
    for ignore in (255, -1, 0, 2):
        labels = torch.tensor([[[1, ignore], [1, 1]]])
        regions = RegionMap(labels, 3, ignore_index=ignore)
        assert regions.labels_at().tolist() == [[[1, -1], [1, 1]]]


@pytest.mark.parametrize("size", [(4, 3), (5, 2)])
def test_area_resizing_keeps_every_regions_share(size: tuple[int, int]) -> None:
    """What stays of a hard map in a soft one by area: full size, cells of one region, and the share of every region."""
    labels = torch.zeros(2, 8, 6, dtype=torch.int64)
    labels[:, :, 4:], labels[0, 3, 0], labels[1, 5] = 1, 2, 3
    onehot = RegionMap(labels, 4).onehot(dtype=torch.float64)
    by_area = RegionMap.soft(onehot, resize="area")
    assert torch.equal(by_area.weights_at(), onehot)
    expected = F.interpolate(onehot, size, mode="area")
    small = by_area.weights_at(size)
    torch.testing.assert_close(small, expected)
    torch.testing.assert_close(small.sum(1), torch.ones_like(small[:, 0]))
    if size == (4, 3):  # sides that divide evenly
        torch.testing.assert_close(small.mean((2, 3)), onehot.mean((2, 3)))
        nearest = RegionMap(labels, 4).onehot(size, torch.float64)
        pure = small.amax(1) == 1
        assert torch.equal(small.movedim(1, -1)[pure], nearest.movedim(1, -1)[pure]) and not pure.all()
        assert float(nearest[0, 2].sum()) == 0 < float(small[0, 2].sum()), "a thin region, missed by nearest"
    assert torch.equal(pickle.loads(pickle.dumps(by_area)).weights_at(size), small)
