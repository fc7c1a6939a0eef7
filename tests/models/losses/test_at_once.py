"""Losses of fixed networks with their gradient taken at once: the same numbers, less kept."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from mixsyn_fast.models.losses.at_once import at_once
from torch import nn


def judges() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3)).double().requires_grad_(False)


def test_values_and_gradients_are_those_of_the_ordinary_way():
    network = judges()
    made = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def losses(image):
        return {"a": network(image).square().mean(), "b": 3 * image.abs().mean(), "c": network(image).mean()}

    ordinary = losses(made.tanh())
    (expected,) = torch.autograd.grad(sum(ordinary.values()) * 7, made)
    found = at_once(losses, made.tanh())
    assert list(found) == ["a", "b", "c"] and all(found[name] == ordinary[name] for name in found)
    (got,) = torch.autograd.grad(sum(found.values()) * 7, made)
    assert torch.allclose(got, expected, rtol=1e-6)  # the sum is taken in float32


def test_activations_are_gone_before_the_backward_pass():
    network, kept = judges(), []
    made = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def losses(image):
        hidden = network[0](image)
        kept.append(weakref.ref(hidden))
        return {"a": hidden.tanh().mean()}

    found = at_once(losses, made * 1)
    gc.collect()
    assert kept[0]() is None
    found["a"].backward()
    assert made.grad is not None and made.grad.abs().sum() > 0


def test_without_a_gradient_to_take():
    network = judges()
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert not at_once(lambda x: {"a": network(x).mean()}, image)["a"].requires_grad
    with torch.no_grad():
        assert not at_once(lambda x: {"a": network(x).mean()}, image.requires_grad_())["a"].requires_grad


def test_float16_autocast_takes_the_ordinary_way():
    calls = []
    image = torch.randn(1, 3, 4, 4, requires_grad=True)

    def losses(x):
        calls.append(x is image)
        return {"a": x.square().mean()}

    with torch.autocast("cpu", dtype=torch.float16):
        at_once(losses, image)["a"].backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        at_once(losses, image)["a"].backward()
    assert calls == [True, False]
    assert image.grad is not None and torch.allclose(image.grad, 2 * 2 * image / image.numel())


def test_errors_of_the_losses_come_through():
    def losses(x):
        raise ValueError("too small")

    with pytest.raises(ValueError, match="too small"):
        at_once(losses, torch.ones(1, 3, 2, 2, requires_grad=True))
