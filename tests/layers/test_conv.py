"""Prepacked convolutions: same result, and never a stale weight."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixsyn_fast import use_backend
from mixsyn_fast.layers import FastConv2d, forget
from mixsyn_fast.layers.derived import _kept
from tests.compare import relative_error


def plain(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("arguments", [(8, 16, 3, 1, 1), (8, 3, 1), (8, 8, 3, 2, 1), (8, 6, 3, 1, 2, 2)], ids=str)
def test_same_result_in_every_layout(arguments: tuple[int, ...]) -> None:
    for bias, layout in itertools.product((True, False), (torch.channels_last, torch.contiguous_format)):
        layer = FastConv2d(*arguments, bias=bias).eval()
        for size in ((2, 8, 9, 7), (1, 8, 16, 16), (0, 8, 4, 4)):
            x = torch.randn(*size).contiguous(memory_format=layout)
            with torch.no_grad():
                y = layer(x)
                assert relative_error(y, plain(layer, x)) < 1e-6
                for kind in (torch.channels_last, torch.contiguous_format):
                    expected = plain(layer, x).is_contiguous(memory_format=kind)
                    assert y.is_contiguous(memory_format=kind) == expected
        assert (layer in _kept) == (layout == torch.channels_last)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("arguments", [(64, 128, 3, 1, 1), (256, 300, 1), (64, 128, 3, 2)], ids=str)
def test_few_pixels_take_a_packed_weight_in_planes_too(arguments: tuple[int, ...], last: bool) -> None:
    """Where reordering the weight is most of the work; the answer lies as the plain one's, whose weight decides too."""
    for size, few in (((1, 4, 4), True), ((4, 4, 4), True), ((1, 3, 8), True), ((1, 9, 8), False)):
        layer = FastConv2d(*arguments).eval()
        layer.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        batch, height, width = size
        x = torch.randn(batch, arguments[0], height, width)
        with torch.no_grad():
            y, expected = layer(x), plain(layer, x)
        assert relative_error(y, expected) < 1e-6
        assert y.stride() == expected.stride() and (layer in _kept) == (few and not last)


def test_gradients_take_the_plain_convolution() -> None:
    layer = FastConv2d(4, 4, 3).eval()
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None and layer.weight.grad is not None and layer not in _kept
    with torch.no_grad(), use_backend("reference"):
        layer(x)
    assert layer not in _kept


def changes() -> dict[str, Any]:
    def load(layer: nn.Conv2d) -> None:
        layer.load_state_dict(FastConv2d(4, 6, 3).state_dict())

    def load_assign(layer: nn.Conv2d) -> None:
        layer.load_state_dict(FastConv2d(4, 6, 3).state_dict(), assign=True)

    def edit(layer: nn.Conv2d) -> None:
        with torch.no_grad():
            layer.weight[1, 2, 0, 1] += 1

    def average(layer: nn.Conv2d) -> None:
        with torch.no_grad():
            layer.weight.lerp_(torch.randn_like(layer.weight), 0.1)

    def average_data(layer: nn.Conv2d) -> None:
        layer.weight.data.mul_(0.999).add_(torch.randn_like(layer.weight), alpha=0.001)

    def swap_data(layer: nn.Conv2d) -> None:
        layer.weight.data = torch.randn_like(layer.weight)

    def inside_inference(layer: nn.Conv2d) -> None:
        with torch.inference_mode():
            layer.weight.mul_(1.01)

    def new_parameter(layer: nn.Conv2d) -> None:
        layer.weight = nn.Parameter(torch.randn_like(layer.weight))

    def step(layer: nn.Conv2d) -> None:
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer.train()
        layer(torch.randn(1, 4, 8, 8)).pow(2).sum().backward()
        optimiser.step()
        layer.eval()

    def there_and_back(layer: nn.Conv2d) -> None:
        layer.double()
        with torch.no_grad():
            layer.weight.add_(0.25)
        layer.float()

    def single_data_edit_and_forget(layer: nn.Conv2d) -> None:
        layer.weight.data[0, 0, 0, 0] += 3
        forget(layer)

    return {k: v for k, v in locals().items() if callable(v)}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", list(changes()))
def test_a_changed_weight_is_noticed(name: str, mode: Any) -> None:
    layer = FastConv2d(4, 6, 3).eval()
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    with mode():
        before = layer(x).clone()
    changes()[name](layer)
    with mode():
        after, expected = layer(x), plain(layer, x)
    assert relative_error(after, expected) < 1e-6
    assert relative_error(before, expected) > 1e-6  # the test would notice a stale weight


def test_weights_made_inside_inference_mode_are_never_kept() -> None:
    with torch.inference_mode():
        layer = FastConv2d(4, 6, 3).eval()
        x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
        layer(x)
        layer.weight.mul_(2)
        assert relative_error(layer(x), plain(layer, x)) < 1e-6
        assert layer not in _kept


def test_copies_have_weights_of_their_own() -> None:
    layer = FastConv2d(4, 6, 3).eval()
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        layer(x)
        twin = copy.deepcopy(layer)
        twin.weight.mul_(-1)
        assert relative_error(twin(x), plain(twin, x)) < 1e-6
        assert relative_error(layer(x), plain(layer, x)) < 1e-6
