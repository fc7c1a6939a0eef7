"""The matrix products behind the tables: linear, taps of convolution weights, their gradients in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixsyn_fast.layers import algebra

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def weight(layout: torch.memory_format, *, size: tuple[int, int, int, int] = (6, 5, 3, 3)) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(size).contiguous(memory_format=layout).requires_grad_()


def test_sums_of_rows_and_their_gradient() -> None:
    """Against an index in plain PyTorch; rows that nobody takes, two lengths on one index, a second derivative."""
    torch.manual_seed(2)
    index = torch.randint(0, 7, (11, 3), dtype=torch.int32)
    for rows in (7, 9, 7):
        source = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
        results = [algebra.gather_sum(source, index), source[index.long()].sum(1)]
        firsts = [torch.autograd.grad((each**2 * weight).sum(), source, create_graph=True)[0] for each in results]
        seconds = [torch.autograd.grad((first**3).sum(), weight)[0] for first in firsts]
        for got, expected in (results, firsts, seconds):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_what_is_known_of_an_index_goes_with_it() -> None:
    index = torch.tensor([[0, 1], [1, 1]])
    source = torch.ones(2, 1, requires_grad=True)
    before = len(algebra._WAYS_BACK)
    for _ in range(2):
        algebra.gather_sum(source, index).sum().backward()
    assert len(algebra._WAYS_BACK) == before + 1 and source.grad is not None and source.grad.flatten().tolist() == [2, 6]
    del index
    assert len(algebra._WAYS_BACK) == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(6, 5, 3, 3), (4, 1, 3, 3), (1, 7, 3, 3), (3, 4, 1, 1), (2, 3, 5, 3)])
def test_tap_rows_is_a_product_per_tap(layout: torch.memory_format, size: tuple[int, int, int, int]) -> None:
    w = weight(layout, size=size)
    rows = torch.randn(9, size[1], requires_grad=True)
    expected = torch.einsum("ri,oiyx->ryxo", rows.double(), w.double()).reshape(-1, size[0])
    result = algebra.tap_rows(rows, w)
    assert torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(result)
    for got, exact in zip(
        torch.autograd.grad(result, (rows, w), grad), torch.autograd.grad(expected, (rows, w), grad.double()), strict=True
    ):
        assert got.shape == exact.shape and torch.allclose(got, exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_taps_lie_as_the_weight_does(layout: torch.memory_format) -> None:
    w, rows = weight(layout), torch.randn(4, 5)
    for result in (algebra.tap_rows(rows, w), algebra.linear(rows, algebra.taps(w))):
        (gradient,) = torch.autograd.grad(result.sum(), w)
        assert gradient.stride() == w.stride()


def test_tap_rows_keeps_no_copy_of_the_weight() -> None:
    w, rows = weight(torch.contiguous_format), torch.randn(4, 5, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        algebra.tap_rows(rows, w)
    assert {tensor.data_ptr() for tensor in kept} == {rows.data_ptr(), w.data_ptr()}


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradients_that_are_wanted(needs: tuple[bool, bool]) -> None:
    w, rows = weight(torch.channels_last).requires_grad_(needs[1]), torch.randn(4, 5, requires_grad=needs[0])
    algebra.tap_rows(rows, w).sum().backward()
    assert (rows.grad is not None, w.grad is not None) == needs


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 33, 100, 1000, 1025])
def test_rows_are_padded_to_few_sizes_and_results_are_not(rows: int) -> None:
    x, w, bias = torch.randn(rows, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True), torch.randn(4)
    padded = algebra._padded(x.detach())
    assert rows <= len(padded) <= rows * 17 / 16 + 1 and torch.equal(padded[:rows], x) and not padded[rows:].any()
    result = algebra.linear(x, w, bias)
    assert result.shape == (rows, 4) and result.is_contiguous()
    result.add_(0)  # as a layer may
    expected = torch.nn.functional.linear(x.double(), w.double(), bias.double())
    assert torch.allclose(result.double(), expected, atol=1e-5)
    for got, exact in zip(
        torch.autograd.grad(result.square().sum(), (x, w)), torch.autograd.grad(expected.square().sum(), (x, w)), strict=True
    ):
        assert torch.allclose(got, exact.float(), rtol=1e-4, atol=1e-3)


def test_sizes_of_padded_rows_are_sixteen_per_octave() -> None:
    sizes = {len(algebra._padded(torch.empty(count, 1))) for count in range(512, 1024)}
    assert len(sizes) == 17 and max(sizes) == 1024


def test_linear_of_a_strided_slice() -> None:
    """One region's codes of a batch: values and gradients are those of a dense copy."""
    codes = torch.randn(4, 3, 8, requires_grad=True)
    w, bias = torch.randn(8, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    grad = torch.randn(4, 8)
    dense = torch.autograd.grad(torch.nn.functional.linear(codes[:, 1], w, bias), (codes, w, bias), grad)
    ours = torch.autograd.grad(algebra.linear(codes[:, 1], w, bias), (codes, w, bias), grad)
    for a, b in zip(ours, dense, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_empty() -> None:
    assert algebra.tap_rows(torch.zeros(0, 5), weight(torch.contiguous_format)).shape == (0, 6)
    assert algebra.tap_rows(torch.zeros(2, 5), torch.zeros(0, 5, 3, 3, requires_grad=True)).shape == (18, 0)
