"""The same network in plain PyTorch, without its norms, randomised, calibrated: what ours is held against.

Demo, benchmarks and tests take these forms from here. Random weights get three adjustments that make every branch count:
blending factors, noise and biases are not zero, and running statistics come from the label maps at hand. The work done is
that of a trained generator.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.backend import use_backend, use_plan
from mixsyn_fast.layers import CLADENorm, SEANNorm, SPADENorm
from mixsyn_fast.layers.attended import AttendedSPADENorm

# torch's default initialisation leaves the label maps next to no influence; these factors give scale and shift a
# spread of about one half and one
_GAINS = (
    (r"mlp_shared\.0\.weight$", 6.0),
    (r"mlp_gamma\.weight$", 1.5),
    (r"mlp_beta\.weight$", 3.0),
    (r"fc_mu\d+\.weight$", 6.0),
    (r"conv_gamma\.weight$", 2.0),
    (r"conv_beta\.weight$", 4.0),
)


def randomise(generator: nn.Module, seed: int) -> None:
    """Seeded values for everything that starts at 0, so that every branch of every layer counts."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in generator.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if last in ("blending_gamma", "blending_beta"):
                value.copy_(torch.randn(value.shape, generator=rng) * 0.7 + 0.5)
            elif last == "noise_var":
                value.copy_(torch.randn(value.shape, generator=rng) * 0.05)
            for pattern, gain in _GAINS:
                if re.search(pattern, name):
                    value.mul_(gain)


@contextmanager
def _recording_statistics(generator: nn.Module) -> Iterator[None]:
    """Training mode in which running statistics become exactly those of the batch."""
    norms: list[Any] = [m for m in generator.modules() if getattr(m, "running_mean", None) is not None]
    momenta = [m.momentum for m in norms]
    was_training = generator.training
    generator.train()
    for m in norms:
        m.momentum = 1.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        generator.train(was_training)


def calibrate(generator: nn.Module, *inputs: Any, **keywords: Any) -> None:
    """Take the running statistics from one batch and scale the last convolution to outputs of about 0.6."""
    with torch.no_grad(), _recording_statistics(generator):
        generator.forward_features(*inputs, **keywords)  # type: ignore[operator]
    generator.eval()
    with torch.no_grad():
        out = generator.forward_features(*inputs, **keywords)  # type: ignore[operator]
        last: Any = generator.conv_img
        mean = out.mean((0, 2, 3))
        last.bias.sub_(mean)
        for parameter in (last.weight, last.bias):
            parameter.mul_(0.6 / max(float((out - mean[:, None, None]).std()), 1e-6))


def shared_copy(module: nn.Module) -> Any:
    """A copy of the module tree that shares every parameter and buffer with the original."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def plain_copy(generator: nn.Module) -> Any:
    """The generator with torch's own convolutions and contiguous (NCHW) activations, sharing its weights.

    Run it under `use_plan("dense")` and `use_backend("reference")`: that is the ordinary PyTorch form.
    """
    plain = shared_copy(generator)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and type(module).__name__ == "FastConv2d":
            module.__class__ = nn.Conv2d
    first_layer = plain.first_layer
    plain.first_layer = lambda *a, **k: first_layer(*a, **k).contiguous()
    return plain


class NoNorm(nn.Module):
    """What remains of a region-adaptive normalisation when it costs nothing: its activation."""

    def forward(self, x: Tensor, *_: Any, negative_slope: float | None = None, **__: Any) -> Tensor:
        """Return x, after LeakyReLU where the layer has one."""
        return x if negative_slope is None else F.leaky_relu(x, negative_slope)


def without_norms(generator: nn.Module) -> Any:
    """The same network (weights shared) with every region-adaptive normalisation removed: the floor."""
    bare = shared_copy(generator)
    for parent in list(bare.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SPADENorm | SEANNorm | CLADENorm | AttendedSPADENorm):
                setattr(parent, name, NoNorm())
    return bare


@contextmanager
def dense_reference() -> Iterator[None]:
    """The plain PyTorch form of every layer and op."""
    with use_plan("dense"), use_backend("reference"):
        yield
