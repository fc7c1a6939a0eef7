"""SpatialChannelAttention against the paper's equations in plain PyTorch, and the folding of a convolution after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixsyn_fast import use_backend
from mixsyn_fast.layers.algebra import low_rank_conv2d
from mixsyn_fast.layers.attention import FeatureMask, SpatialChannelAttention, folded_conv2d
from tests.compare import assert_within_rule, relative_error


def written_out(
    layer: SpatialChannelAttention, fx2: Tensor, fc2: Tensor, fc1: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 4 to 8, one line each; returns F1, alpha and beta."""
    batch, channels, *size = fx2.shape
    logits = F.conv2d(torch.cat((fx2, fc2), 1), layer.spatial_weight[:, :, None, None]).flatten(2)
    if mask is not None:
        logits = logits.masked_fill(~mask.flatten(1)[:, None], -torch.inf)
    alpha = F.softmax(logits, 2)  # Eq. 4
    values = fx2.flatten(2) @ alpha.transpose(1, 2)  # Eq. 5: (B, N, K)
    gate = torch.sigmoid(layer.gate(torch.cat((fc1.mean((2, 3)), fc2.mean((2, 3))), 1)))
    gated = values.transpose(1, 2) * gate[:, :, None]  # Eq. 6
    beta = F.softmax(F.conv2d(fc1, layer.channel_weight[:, :, None, None]), 1)  # Eq. 7
    result = (gated.transpose(1, 2) @ beta.flatten(2)).reshape(batch, channels, *fc1.shape[2:])  # Eq. 8
    return result, alpha.reshape(batch, -1, *size), beta


def make(dtype: torch.dtype = torch.float64, maps: int = 8) -> tuple[SpatialChannelAttention, list[Tensor]]:
    torch.manual_seed(3)
    layer = SpatialChannelAttention(24, 10, 14, maps=maps).to(dtype)
    inputs = [torch.randn(2, 24, 9, 12), torch.randn(2, 10, 9, 12), torch.randn(2, 14, 20, 15)]
    return layer, [x.to(dtype) for x in inputs]


@pytest.mark.parametrize("maps", [1, 8, 16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_follows_the_equations(maps: int, masked: bool, layout: torch.memory_format) -> None:
    layer, inputs = make(maps=maps)
    leaves = [x.contiguous(memory_format=layout).requires_grad_() for x in inputs]
    mask = torch.rand(2, 9, 12) > 0.4 if masked else None
    parameters = list(layer.parameters())
    expected, alpha, beta = written_out(layer, *leaves, mask)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (*leaves, *parameters), grad)
    for backend in ("native", "reference"):
        with use_backend(backend):
            result = layer(*leaves, mask=mask, return_maps=True)
            grads = torch.autograd.grad(result[0], (*leaves, *parameters), grad)
        for ours, theirs in zip((*result, *grads), (expected, alpha, beta, *expected_grads), strict=True):
            assert ours.shape == theirs.shape and relative_error(ours, theirs) < 1e-11
        assert torch.equal(layer(*leaves, mask=mask), layer(*leaves, mask=mask, return_maps=True)[0])
    assert layer(*leaves).is_contiguous(memory_format=layout)


def test_float32_within_the_rule() -> None:
    layer, inputs = make(torch.float32, 16)
    exact = written_out(make(torch.float64, 16)[0], *(x.double() for x in inputs))[0]
    # the layers draw the same numbers, then rounded
    assert_within_rule(layer(*inputs), written_out(layer, *inputs)[0], exact)


def test_a_constant_map_is_a_global_average() -> None:
    """The paper's remark: with K = 1 and a constant alpha the module is a (gated) global average."""
    layer, inputs = make(maps=1)
    with torch.no_grad():
        layer.spatial_weight.zero_()
    result = layer(*inputs)
    gate = torch.sigmoid(layer.gate(torch.cat((inputs[2].mean((2, 3)), inputs[1].mean((2, 3))), 1)))
    expected = (inputs[0].mean((2, 3)) * gate)[:, :, None, None].expand_as(result)
    torch.testing.assert_close(result, expected)


def test_an_exemplar_without_any_position_gives_zero() -> None:
    layer, inputs = make(torch.float32)
    mask = torch.ones(2, 9, 12, dtype=torch.bool)
    mask[1] = False
    result = layer(*inputs, mask=mask)
    assert bool(result[0].any()) and not bool(result[1].any())


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_folded_convolution(kernel: tuple[int, int], layout: torch.memory_format) -> None:
    """A convolution over concat(F1, Fc1) without F1: same result, same gradients."""
    layer, inputs = make()
    inputs = [x.contiguous(memory_format=layout) for x in inputs]
    target = inputs[2].requires_grad_()
    weight = torch.randn(7, 24 + 14, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    padding = (kernel[0] // 2, kernel[1] // 2)
    leaves = (*layer.parameters(), target, weight, bias)
    expected = F.conv2d(torch.cat((layer(*inputs), target), 1), weight, bias, padding=padding)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    values, beta = layer.factors(*inputs)
    assert values.shape == (2, 8, 24) and beta.shape == (2, 8, 20, 15)
    folded = folded_conv2d(values, beta, weight, bias, condition=target)
    assert relative_error(folded, expected) < 1e-13
    for ours, theirs in zip(torch.autograd.grad(folded, leaves, grad), expected_grads, strict=True):
        assert relative_error(ours, theirs) < 1e-11
    again = folded_conv2d(values, beta, weight, bias, condition=target, joined=torch.cat((beta, target), 1))
    assert torch.equal(again, folded)
    as_channels_last = (each.contiguous(memory_format=torch.channels_last) for each in (beta, target))
    maps, condition = as_channels_last
    found = folded_conv2d(values, maps, weight, bias, condition=condition)
    assert found.is_contiguous(memory_format=torch.channels_last) and relative_error(found, expected) < 1e-13


def test_folded_convolution_of_the_features_alone() -> None:
    layer, inputs = make(torch.float32)
    weight, bias = torch.randn(5, 24, 3, 3), torch.randn(5)
    values, beta = layer.factors(*inputs)
    result = layer(*inputs)
    for given in (None, bias):
        exact = F.conv2d(result.double(), weight.double(), None if given is None else given.double(), padding=1)
        assert_within_rule(folded_conv2d(values, beta, weight, given), F.conv2d(result, weight, given, padding=1), exact)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (1, 1, 1, 1)], ids=str)
def test_low_rank_convolution_of_empty_and_tiny_maps(shape: tuple[int, int, int, int]) -> None:
    batch, count, height, width = shape
    vectors = torch.randn(batch, count, 6, requires_grad=True)
    maps = torch.randn(*shape, requires_grad=True)
    weight = torch.randn(4, 6, 3, 3, requires_grad=True)
    y = low_rank_conv2d(vectors, maps, weight)
    assert y.shape == (batch, 4, height, width)
    for leaf, grad in zip((vectors, maps, weight), torch.autograd.grad(y.sum(), (vectors, maps, weight)), strict=True):
        assert leaf.shape == grad.shape


def test_half_precision_and_autocast() -> None:
    layer, inputs = make(torch.float32)
    exact = written_out(layer, *inputs)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(*(x.bfloat16() for x in inputs))
    assert result.dtype == torch.bfloat16 and relative_error(result, exact) < 2e-2
    # half features with float32 parameters, without autocast
    result = layer(*(x.half() for x in inputs))
    assert result.dtype == torch.float16 and relative_error(result, exact) < 5e-3


def test_compiles_without_graph_break() -> None:
    layer, inputs = make(torch.float32)
    compiled = torch.compile(lambda *x: layer(*x, return_maps=True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), layer(*inputs, return_maps=True))


def test_state_dict_and_words() -> None:
    layer = SpatialChannelAttention(24, 10, maps=4, hidden=6)
    assert [*layer.state_dict()] == [
        "spatial_weight", "channel_weight", "gate.0.weight", "gate.0.bias", "gate.2.weight", "gate.2.bias",
    ]  # fmt: skip
    assert layer.spatial_weight.shape == (4, 34) and layer.channel_weight.shape == (4, 10)
    assert "24, 10, 10, maps=4, hidden=6" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"maps": 0}, "maps: expected 1 to 64, got 0"),
        ({"maps": 65}, "maps: expected 1 to 64, got 65"),
        ({"features": 0}, "features: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_numbers(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"SpatialChannelAttention: {words}"):
        SpatialChannelAttention(**({"features": 4, "condition_channels": 3} | arguments))


def test_the_gate_checks_its_own_number() -> None:
    for make in (SpatialChannelAttention, FeatureMask):
        with pytest.raises(ValueError, match="FeatureMask: hidden: expected an integer of at least 1, got 0"):
            make(4, 3, maps=2, hidden=0)
    assert SpatialChannelAttention(4, 3, masking=False).gate is None


def test_bad_inputs() -> None:
    layer, (features, condition, target) = make(torch.float32)
    for arguments, words in (
        ((features[:, 1:], condition, target), r"features: expected shape \(B, 24, H, W\)"),
        ((features, condition[0], target), r"condition: expected shape \(B, 10, H, W\)"),
        ((features, condition, target[:, 1:]), r"target_condition: expected shape \(B, 14, H, W\)"),
        ((features, condition, target[:1]), "target_condition: expected batch 2"),
        ((features, condition[:, :, 1:], target), r"spatial_attention_pool: condition: expected shape"),
    ):
        with pytest.raises(ValueError, match=words):
            layer(*arguments)


VALUES, MAPS = torch.zeros(2, 3, 4), torch.zeros(2, 3, 6, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": VALUES[0]}, r"values: expected shape \(B, K, N\)"),
        ({"maps": MAPS[:, :2]}, r"maps: expected shape \(2, 3, H, W\)"),
        ({"condition": torch.zeros(2, 5, 6, 6)}, r"condition: expected shape \(2, M, 6, 7\)"),
        ({"weight": torch.zeros(8, 5, 3, 3)}, r"weight: expected shape \(O, 4, kh, kw\)"),
        ({"weight": torch.zeros(8, 4, 2, 2)}, "weight: expected an odd kernel"),
        ({"bias": torch.zeros(7)}, r"bias: expected shape \(8,\)"),
        (
            {"weight": torch.zeros(8, 5, 3, 3), "condition": MAPS[:, :1], "joined": MAPS},
            r"joined: expected shape \(2, 4, 6, 7\)",
        ),
    ],
)
def test_bad_arguments_of_the_folded_convolution(change: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"values": VALUES, "maps": MAPS, "weight": torch.zeros(8, 4, 3, 3)}
    with pytest.raises(ValueError, match=f"folded_conv2d: {words}"):
        folded_conv2d(**(good | change))
