"""Path length regularisation against the Jacobian itself; double backward; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from mixsyn_fast.models.losses import path_length_penalty, path_lengths
from torch import Tensor, nn

SHAPE = (2, 3, 4)  # C, H, W of an image


class Tiny(nn.Module):
    """(B, L, D) -> (B, 2, 3, 4), nothing linear."""

    def __init__(self, layers: int = 2, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(layers * width, math.prod(SHAPE), dtype=torch.float64)

    def forward(self, w: Tensor) -> Tensor:
        return self.linear(w.flatten(1)).sin().unflatten(1, SHAPE)


def codes(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 6)])
def test_lengths_are_those_of_the_jacobian(shape: tuple[int, ...]) -> None:
    net, w = Tiny(), codes(*shape)
    found = path_lengths(net(w), w, seeded())
    noise = torch.randn(3, *SHAPE, dtype=torch.float64, generator=seeded()) / math.sqrt(3 * 4)
    layers = shape[1] if len(shape) == 3 else 1
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda one: net(one[None])[0].flatten(), w[i].detach())
        pulled = torch.einsum("pld,p->ld", jacobian.reshape(math.prod(SHAPE), layers, -1), noise[i].flatten())
        expected = sum(float(row @ row) for row in pulled) / layers
        assert found[i].item() == pytest.approx(math.sqrt(expected), rel=1e-12)


def test_penalty_and_running_mean() -> None:
    lengths = torch.tensor([1.0, 3.0], dtype=torch.float64)
    penalty, mean = path_length_penalty(lengths, 1.0, decay=0.5)
    assert mean.item() == 1.5 and penalty.item() == pytest.approx((0.25 + 2.25) / 2)
    penalty, mean = path_length_penalty(lengths, mean)
    assert mean.item() == pytest.approx(1.505) and penalty.item() == pytest.approx((0.505**2 + 1.495**2) / 2)
    assert path_length_penalty(lengths, 1.0, decay=0.0)[1].item() == 1.0


def test_double_backward_to_the_parameters() -> None:
    net, w = Tiny(), codes(2, 2, 3)

    def value(weight: Tensor) -> Tensor:
        image = torch.func.functional_call(net, {"linear.weight": weight}, (w,))
        return path_length_penalty(path_lengths(image, w, seeded()), 0.0, decay=0.0)[0]

    assert torch.autograd.gradcheck(value, (net.linear.weight,))
    # the running mean is a constant of the step
    lengths = path_lengths(net(w), w, seeded())
    penalty, mean = path_length_penalty(lengths, 0.3, decay=0.5)
    (gradient,) = torch.autograd.grad(penalty, lengths)
    assert not mean.requires_grad
    assert torch.allclose(gradient, (lengths - mean).detach())


def test_an_image_at_rest_has_length_zero_and_a_finite_gradient() -> None:
    net, w = Tiny(), codes(2, 2, 3)
    with torch.no_grad():
        net.linear.weight.zero_()
    penalty, _ = path_length_penalty(path_lengths(net(w), w), 1.0)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.99**2)
    assert net.linear.weight.grad is not None and net.linear.weight.grad.isfinite().all()


def test_half_precision() -> None:
    net, w = Tiny().bfloat16(), codes(2, 2, 3).detach().bfloat16().requires_grad_()
    lengths = path_lengths(net(w), w, seeded())
    assert lengths.dtype == torch.float32 and lengths.isfinite().all()


def test_errors() -> None:
    net, w = Tiny(), codes(2, 2, 3)
    image = net(w)
    for bad, code, message in (
        (image[0], w, r"image: expected \(B, C, H, W\), got \(2, 3, 4\)"),
        (image, w[:1], r"w: expected \(B, L, D\) or \(B, D\) of 2 images, got \(1, 2, 3\)"),
        (image, w[:, 0, 0], r"w: expected .* got \(2,\)"),
        (image, w.detach(), r"w: expected codes that require gradients"),
        (image.detach(), w, r"image: expected one that depends on w"),
        (net(codes(2, 2, 3)), w, r"image: expected one that depends on w"),
    ):
        with pytest.raises(ValueError, match=message):
            path_lengths(bad, code)
    with pytest.raises(ValueError, match=r"lengths: expected \(B,\) of at least one image, got \(0,\)"):
        path_length_penalty(torch.zeros(0), 0.0)
    with pytest.raises(ValueError, match="decay: expected 0 to 1, got 2"):
        path_length_penalty(torch.ones(1), 0.0, decay=2)
