"""LatentMap against upsampling and convolving: values, gradients, rows, the number of distinct positions, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixsyn_fast import LatentMap, region_norm, use_backend
from mixsyn_fast.latent_map import Grid, work_share

CONVOLUTIONS: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# integer ratios, other ratios (of both kinds), a single cell, a size below the features'
GRIDS = [((3, 4), (6, 16)), ((2, 3), (16, 3)), ((4, 5), (7, 13)), ((1, 1), (5, 1)), ((6, 7), (4, 5)), ((4,), (12,))]
GRIDS += [((2, 3, 2), (4, 6, 10))]


@pytest.mark.parametrize(("cells", "size"), GRIDS, ids=str)
def test_equals_upsampling_and_convolving(cells: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Three convolutions (wide, with groups, 1 wide) with an activation, and all gradients, of values far from zero."""
    sides = len(size)
    leaves = [draw(2, 4, *cells), draw(6, 4, *[3] * sides), draw(6) + 3, draw(4, 3, *[3] * sides), draw(5, 4, *[1] * sides)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    features, first, bias, second, third = leaves
    convolution = CONVOLUTIONS[sides]
    plain = F.interpolate(features, size, mode="nearest")
    plain = F.relu(convolution(plain, first, bias, padding=1))
    plain = convolution(convolution(plain, second, padding=1, groups=2), third)
    ours = LatentMap(features, size).convolve(first, bias).map(F.relu).convolve(second, groups=2).convolve(third)
    torch.testing.assert_close(ours.dense(), plain, rtol=1e-12, atol=1e-12)
    rows = F.embedding(ours.index, ours.rows).movedim(-1, 1)
    torch.testing.assert_close(rows, plain, rtol=1e-12, atol=1e-12)
    grad = draw(*plain.shape, seed=5)
    grads = [torch.autograd.grad(result, leaves, grad) for result in (rows, plain)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("cells", "size"), GRIDS, ids=str)
def test_without_gradients_the_same_in_any_memory(cells: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Parts put at their places; kernels that are kept; an odd batch, an empty one."""
    sides = len(size)
    first, second = draw(6, 4, *[3] * sides), draw(5, 6, *[5] * sides)
    for batch in (3, 1, 0):
        features = draw(batch, 4, *cells)
        plain = CONVOLUTIONS[sides](F.interpolate(features, size, mode="nearest"), first, padding=1)
        plain = CONVOLUTIONS[sides](plain, second, padding=2) if batch else plain.new_zeros(0, 5, *size)
        forms = [features] if sides != 2 else [features, features.contiguous(memory_format=torch.channels_last)]
        for form in forms:
            ours = LatentMap(form, size).convolve(first).convolve(second).dense()
            torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
    kept: list[Any] = []

    def keep(make: Any) -> Any:
        kept.append(kept[0] if kept else make())
        return kept[0]

    results = [LatentMap(draw(2, 4, *cells), size).convolve(first, keep=keep).dense() for _ in range(2)]
    assert torch.equal(*results) and len(kept) == 2 and kept[0] is kept[1]


def test_windows_of_integer_ratios_are_slices() -> None:
    """No position is gathered, at any integer ratio, behind one convolution or two; of other ratios some may be."""
    for ratio in range(2, 9):
        grid = Grid.nearest((8 * ratio,), (8,))
        for _ in range(2):
            (reads,) = grid.reads((3,))
            assert all(kind.step and kind.lies is not None for kind in reads.kinds), ratio
            grid = Grid.behind([reads])
    made = LatentMap(draw(2, 4, 3, 4).contiguous(memory_format=torch.channels_last), (12, 16)).convolve(draw(6, 4, 3, 3))
    assert made.dense().is_contiguous(memory_format=torch.channels_last)


def test_a_wide_kernel_and_axes_of_its_own() -> None:
    """5 x 3; the first frame resized alone, as a video decoder does it."""
    features, weight = draw(1, 3, 3, 4), draw(2, 3, 5, 3)
    frames = torch.tensor([0, 1, 1, 2, 2])
    columns = torch.arange(8) // 2
    up = torch.cat((features[:, :, :1], features[:, :, 1:].repeat_interleave(2, 2)), 2).repeat_interleave(2, 3)
    ours = LatentMap(features, (5, 8), axes=(frames, columns))
    assert torch.equal(ours.dense(), up)
    plain = F.conv2d(up, weight, padding=(2, 1))
    torch.testing.assert_close(ours.convolve(weight).dense(), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "first", "second"), [(2, 16 / 36, 1.0), (4, 25 / 144, 100 / 144), (8, 25 / 576, 121 / 576)]
)
def test_distinct_positions_and_products(ratio: int, first: float, second: float) -> None:
    """At most 25 rows a cell after two convolutions; the counted products, border aside."""
    cells, weight = 12, torch.zeros(1, 1, 3, 3)
    made = LatentMap(torch.zeros(1, 1, cells, cells), (cells * ratio, cells * ratio))
    for layer, expected in enumerate((first, second), 1):
        made = made.convolve(weight)
        assert made.features.shape[2] <= min(ratio, 2 * layer + 1) * cells
        assert abs(work_share(cells * ratio, cells, 3, layer) ** 2 - expected) < 0.06 * expected + 0.01


def test_modulates_as_the_dense_maps() -> None:
    """SpatialNorm: group norm with weight and bias, times a 1 x 1 convolution of the latent, plus another."""
    x, latent = draw(2, 8, 8, 12), draw(2, 4, 2, 3)
    weight, bias, both = draw(8), draw(8), draw(16, 4, 1, 1)
    affine: dict[str, Any] = {"norm": "group", "num_groups": 2, "weight": weight, "bias": bias, "activation": "silu"}
    table = LatentMap(latent, (8, 12)).convolve(both)
    assert table.rows.shape == (12, 16) and table.index.dtype == torch.int32
    scale, shift = F.conv2d(F.interpolate(latent, (8, 12)), both).chunk(2, 1)
    expected = F.silu(F.group_norm(x, 2, weight, bias) * scale + shift)
    with use_backend("reference"):
        torch.testing.assert_close(region_norm(x, table.index, table.rows, **affine), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(region_norm(x, scale=scale, shift=shift, **affine), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_keeps_the_precision_of_the_caller(dtype: torch.dtype) -> None:
    made = LatentMap(draw(1, 2, 3, 3).to(dtype), (6, 6)).convolve(draw(4, 2, 3, 3).to(dtype))
    assert made.rows.dtype == made.dense().dtype == dtype


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: LatentMap(torch.zeros(2, 3), (4,)), ValueError, "features: expected shape"),
        (lambda: LatentMap(torch.zeros(2, 3, 0), (4,)), ValueError, "features: expected a cell"),
        (lambda: LatentMap(torch.zeros(2, 3, 4, 4, dtype=torch.int64), (4, 4)), TypeError, "features: expected a floating"),
        (lambda: LatentMap(torch.zeros(2, 3, 4, 4), (4,)), ValueError, "size: expected 2 positive integers"),
        (lambda: LatentMap(torch.zeros(2, 3, 4), (0,)), ValueError, "size: expected 1 positive"),
        (lambda: LatentMap(torch.zeros(2, 3, 4), 8), TypeError, "size: expected 1 positive integers, got 8"),
        (lambda: LatentMap(torch.zeros(1, 1, 4), (2,), axes=(torch.tensor([3, 2]),)), ValueError, "axes: expected cells"),
        (lambda: LatentMap(torch.zeros(1, 1, 4), (2,), axes=(torch.tensor([3]),)), ValueError, "axes: expected integers"),
        (lambda: LatentMap(torch.zeros(1, 1, 4), (2,)).convolve(torch.zeros(1, 1, 4)), ValueError, "weight: expected 1 odd"),
        (lambda: LatentMap(torch.zeros(1, 1, 4), (2,)).map(lambda t: t[..., :2]), ValueError, "function: expected a result"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
