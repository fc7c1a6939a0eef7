"""SPADE on a map of which one part is given as factors: folded as the map itself, gradients, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import use_backend, use_plan
from mixsyn_fast.layers.attended import Attended, AttendedSPADENorm, attended_conv2d
from tests.compare import relative_error

B, K, N, M, C, SIZE = 2, 3, 5, 4, 6, (7, 10)


def factors() -> Attended:
    torch.manual_seed(4)
    maps = torch.randn(B, K, *SIZE, dtype=torch.float64).softmax(1)
    parts = torch.randn(B, K, N, dtype=torch.float64), maps, torch.randn(B, M, *SIZE, dtype=torch.float64)
    return Attended(*(part.requires_grad_() for part in parts))


def the_map(attended: Attended) -> Tensor:
    """F1 is a sum of K outer products; Fc1 comes behind it."""
    found = sum(attended.values[:, k, :, None, None] * attended.maps[:, k, None] for k in range(K))
    return torch.cat((found, attended.condition), 1)


def written_out(layer: AttendedSPADENorm, x: Tensor, joined: Tensor, slope: float | None) -> Tensor:
    hidden = F.relu(layer.mlp_shared[0](joined))
    y = layer.param_free_norm(x) * (1 + layer.mlp_gamma(hidden)) + layer.mlp_beta(hidden)
    return y if slope is None else F.leaky_relu(y, slope)


def test_factors_are_the_map() -> None:
    attended = factors()
    assert attended.size == SIZE and relative_error(attended.dense(), the_map(attended)) < 1e-15


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("plan", ["auto", "dense"])
def test_convolution(kernel: int, plan: str) -> None:
    attended = factors()
    conv = nn.Conv2d(N + M, C, kernel, padding=kernel // 2).double()
    expected = conv(the_map(attended))
    leaves = (*attended[:3], *conv.parameters())
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    with use_plan(plan):
        found = attended_conv2d(attended, conv)
        at_once = Attended.of(*attended[:3])
        assert (at_once.joined is None) == (plan == "dense")
        assert torch.equal(attended_conv2d(at_once, conv), found)
    assert relative_error(found, expected) < 1e-13
    for ours, theirs in zip(torch.autograd.grad(found, leaves, grad), expected_grads, strict=True):
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize("training", [True, False])
def test_norm(norm: str, slope: float | None, training: bool) -> None:
    """Result, gradients and running statistics, in every plan, are those of the formula."""
    torch.manual_seed(3)
    layer = AttendedSPADENorm(C, N + M, norm=norm, hidden=8).double().train(training)
    attended, x = factors(), torch.randn(B, C, *SIZE, dtype=torch.float64, requires_grad=True)
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    expected = written_out(layer, x, the_map(attended), slope)
    after = {name: value.clone() for name, value in layer.state_dict().items()}
    leaves = (x, *attended[:3], *layer.parameters())
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    for plan, backend in (("auto", "native"), ("table", "reference"), ("dense", "auto"), ("dense", "reference")):
        layer.load_state_dict(start)
        with use_plan(plan), use_backend(backend):
            found = layer(x, Attended.of(*attended[:3]), negative_slope=slope)
        assert relative_error(found, expected) < 1e-12
        for ours, theirs in zip(torch.autograd.grad(found, leaves, grad), expected_grads, strict=True):
            assert relative_error(ours, theirs) < 1e-10
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(value, after[name], rtol=1e-12, atol=0, msg=name)


def test_what_is_kept_in_use_follows_the_weights() -> None:
    """Without gradients the 1 of the scale is part of a bias that is kept: of the bias as it is."""
    layer = AttendedSPADENorm(C, N + M, norm="instance", hidden=8).double().requires_grad_(False).eval()
    attended, x = factors(), torch.randn(B, C, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            found = layer(x, attended)
            assert relative_error(found, written_out(layer, x, the_map(attended), None)) < 1e-12
            layer.mlp_gamma.bias.add_(1)


def test_names_are_spades() -> None:
    layer = AttendedSPADENorm(C, N + M, hidden=8)
    names = [f"{part}.{what}" for part in ("mlp_shared.0", "mlp_gamma", "mlp_beta") for what in ("weight", "bias")]
    assert [name for name, _ in layer.named_parameters()] == names
    assert layer.mlp_shared[0].weight.shape == (8, N + M, 3, 3)


@pytest.mark.parametrize("shape", [(C, *SIZE), (B + 1, C, *SIZE), (B, C, 7, 9)], ids=str)
def test_other_sizes(shape: tuple[int, ...]) -> None:
    layer = AttendedSPADENorm(C, N + M, hidden=8).double()
    with pytest.raises(ValueError, match=r"AttendedSPADENorm: x: expected shape \(2, C, 7, 10\) as the map, got"):
        layer(torch.zeros(shape, dtype=torch.float64), factors())
