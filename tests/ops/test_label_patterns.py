"""label_patterns on the CPU against brute force: exact, in order of first appearance, on any map."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from mixsyn_fast import label_patterns, use_backend


def brute_force(
    labels: Tensor, num_regions: int, radius: int, edges: Tensor | None, per_image: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel after pixel, a dictionary of tuples: shares nothing with the op."""
    batch, *volume = labels.shape
    seen: dict[tuple[int, ...], int] = {}
    index = torch.empty(labels.shape, dtype=torch.int32)
    rows, images = [], []
    around = list(product(range(-radius, radius + 1), repeat=len(volume)))
    for b, *place in product(*map(range, labels.shape)):
        codes = []
        for offset in around:
            at = tuple(p + d for p, d in zip(place, offset, strict=True))
            if not all(0 <= p < side for p, side in zip(at, volume, strict=True)):
                codes.append(num_regions)
                continue
            label = int(labels[(b, *at)])
            code = num_regions + 1 if label == -1 else label
            if edges is not None and edges[(b, *at)]:
                code += num_regions + 2
            codes.append(code)
        key = (b if per_image else 0, *codes)
        if key not in seen:
            seen[key] = len(rows)
            rows.append(codes)
            images.append(b)
        index[(b, *place)] = seen[key]
    size = (2 * radius + 1) ** len(volume)
    patterns = torch.tensor(rows, dtype=torch.int32).reshape(-1, size)
    return index, patterns, torch.tensor(images, dtype=torch.int32)


@st.composite
def maps(draw: Any) -> tuple[Tensor, int, Tensor | None]:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))
    num_regions = draw(st.sampled_from([1, 2, 3, 19, 512]))
    used = min(num_regions, draw(st.integers(1, 4)))
    low = draw(st.sampled_from([-1, 0]))
    first = num_regions - used if draw(st.booleans()) else 0  # codes at both ends of the alphabet
    values = draw(hnp.arrays(np.int64, shape, elements=st.integers(low, used - 1)))
    labels = torch.from_numpy(np.where(values < 0, -1, values + first))
    edges = draw(st.none() | hnp.arrays(np.bool_, shape))
    return labels, num_regions, None if edges is None else torch.from_numpy(edges)


@given(maps(), st.integers(0, 2), st.booleans(), st.sampled_from(["native", "reference"]))
def test_against_brute_force(case: tuple[Tensor, int, Tensor | None], radius: int, per_image: bool, backend: str) -> None:
    labels, num_regions, edges = case
    with use_backend(backend):
        got = label_patterns(labels, num_regions, radius, edges=edges, per_image=per_image)
    for ours, expected in zip(got, brute_force(labels, num_regions, radius, edges, per_image), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_volumes_against_brute_force(radius: int, backend: str) -> None:
    """Repeated slices and images, edges, no region, sides of one voxel and of none; rows per image; spare rows."""
    generator = torch.Generator().manual_seed(radius)
    for shape, per_image in (((2, 5, 3, 4), False), ((2, 3, 4, 2), True), ((1, 1, 1, 3), False), ((1, 0, 2, 2), False)):
        labels = torch.randint(-1, 3, shape, generator=generator)
        labels[-1, : shape[1] // 2] = labels[0, -1:] = 2
        edges = torch.rand(shape, generator=generator) < 0.2 if radius == 1 else None
        expected = brute_force(labels, 3, radius, edges, per_image)
        with use_backend(backend):
            result = label_patterns(labels, 3, radius, edges=edges, per_image=per_image)
            spare = label_patterns(labels, 3, radius, edges=edges, per_image=per_image, max_rows=len(expected[1]) + 2)
        for got, more, exact in zip(result, spare, expected, strict=True):
            assert got.dtype == more.dtype == torch.int32 and torch.equal(got, exact)
            assert torch.equal(more[: len(exact)], exact)
        assert bool((spare[1][-2:] == 3).all()) and spare[2][-2:].tolist() == [-1, -1]
    with use_backend(backend), pytest.raises((RuntimeError, ValueError), match="max_rows: expected at least"):
        label_patterns(torch.tensor([[[[0, 1]]]]), 3, radius, max_rows=1)
    with use_backend(backend), pytest.raises(ValueError, match=r"got 3 at \(0, 0, 0, 1\)"):
        label_patterns(torch.tensor([[[[0, 3]]]]), 3, radius)


@pytest.mark.parametrize("cell", [1, 12], ids=["noise", "blocks"])
def test_memory_of_volumes(cell: int) -> None:
    """Beyond the result so much a voxel and a row, whatever the window: volumes of 256 x 256 x 256 fit."""
    from benchmarks.timing import peak_memory

    side = 36
    coarse = torch.randint(0, 6, [1] + [side // cell] * 3, generator=torch.Generator().manual_seed(3))
    labels = coarse.to(torch.int32)
    for dimension in (1, 2, 3):
        labels = labels.repeat_interleave(cell, dimension)
    for radius in (1, 2):
        result = label_patterns(labels, 6, radius)
        size = sum(t.numel() * t.element_size() for t in result)
        peak = peak_memory(lambda radius=radius: label_patterns(labels, 6, radius))
        assert peak is not None and peak - size <= 90 * side**3 + 160 * len(result[1])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 300, 70), (3, 200, 33), (7, 64, 64)], ids=str)
def test_stripes_and_threads_change_nothing(threads: int, shape: tuple[int, int, int]) -> None:
    """Large enough for several stripes per image, and for the tables to grow."""
    torch.manual_seed(1)
    coarse = torch.randint(-1, 6, (shape[0], shape[1] // 4 + 1, shape[2] // 4 + 1))
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : shape[1], : shape[2]].contiguous()
    labels[0, :50] = torch.randint(0, 6, (50, shape[2]))  # noise: every neighbourhood is new
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for radius in (0, 1, 2):
            for per_image in (False, True):
                got = label_patterns(labels, 6, radius, per_image=per_image)
                with use_backend("reference"):
                    expected = label_patterns(labels, 6, radius, per_image=per_image)
                for ours, theirs in zip(got, expected, strict=True):
                    assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_real_maps(data_folder: Any) -> None:
    from PIL import Image

    files = sorted((data_folder / "celebamask_hq/val/labels").glob("*.png"))[:2]
    files_ade = sorted((data_folder / "samples/ade20k/labels").glob("*.png"))[:2]
    for name, regions in [(f, 19) for f in files] + [(f, 151) for f in files_ade]:
        labels = torch.from_numpy(np.array(Image.open(name)).astype(np.int64))[None]
        for radius in (1, 2):
            got = label_patterns(labels, regions, radius)
            with use_backend("reference"):
                expected = label_patterns(labels, regions, radius)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_fixed_number_of_rows(backend: str) -> None:
    labels = torch.tensor([[[0, 1], [1, 1]]])
    with use_backend(backend):
        index, patterns, row_image = label_patterns(labels, 2, 0, max_rows=4)
        assert index.tolist() == [[[0, 1], [1, 1]]]
        assert patterns.tolist() == [[0], [1], [2], [2]] and row_image.tolist() == [0, 0, -1, -1]
        with pytest.raises((RuntimeError, ValueError), match="max_rows: expected at least .* 2.* got 1"):
            label_patterns(labels, 2, 0, max_rows=1)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)], ids=str)
@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_empty(shape: tuple[int, int, int], radius: int, backend: str) -> None:
    for per_image in (False, True):
        with use_backend(backend):
            index, patterns, row_image = label_patterns(
                torch.zeros(shape, dtype=torch.int64), 3, radius, per_image=per_image
            )
        assert index.shape == shape and patterns.shape == (0, (2 * radius + 1) ** 2) and row_image.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integer_dtypes_and_strides(dtype: torch.dtype) -> None:
    labels = torch.randint(0, 3, (4, 12, 10)).to(dtype)
    view = labels[::2, 1:9, ::3]
    got = label_patterns(view, 3, 2)
    expected = label_patterns(view.clone().long(), 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("value", [3, -2, 2**31 + 1, -(2**40)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_label_out_of_range(value: int, backend: str) -> None:
    labels = torch.zeros(2, 4, 5, dtype=torch.int64)
    labels[1, 2, 3] = value
    words = rf"^label_patterns: labels: expected values in .*, got {value} at \(1, 2, 3\)$"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        label_patterns(labels, 3, 1)


LABELS = torch.zeros(1, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"),
    [
        ((LABELS[0], 2, 1), {}, ValueError, "labels: expected shape"),
        ((LABELS.float(), 2, 1), {}, TypeError, "labels: expected an integer"),
        ((LABELS, 0, 1), {}, ValueError, "num_regions"),
        ((LABELS, 513, 1), {}, ValueError, "num_regions"),
        ((LABELS, 2, 3), {}, ValueError, "radius"),
        ((LABELS, 2, 1), {"edges": LABELS[:, :2].bool()}, ValueError, "edges: expected shape"),
        ((LABELS, 2, 1), {"edges": LABELS}, TypeError, "edges: expected bool"),
        ((LABELS, 2, 1), {"max_rows": -1}, ValueError, "max_rows"),
    ],
)
def test_bad_arguments(arguments: Any, keywords: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        label_patterns(*arguments, **keywords)


def test_opcheck() -> None:
    labels = torch.randint(-1, 3, (2, 6, 6), dtype=torch.int32)
    for edges in (None, labels > 0):
        torch.library.opcheck(torch.ops.mixsyn_fast.label_patterns.default, (labels, edges, 3, 2, False, 100))
        torch.library.opcheck(torch.ops.mixsyn_fast.label_patterns.default, (labels, edges, 3, 1, True, -1))


def test_compiles_with_a_fixed_number_of_rows() -> None:
    labels = torch.randint(0, 3, (2, 6, 6), dtype=torch.int32)
    compiled = torch.compile(lambda t: label_patterns(t, 3, 1, max_rows=80), fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(labels), label_patterns(labels, 3, 1, max_rows=80), strict=True):
        assert torch.equal(ours, expected)
