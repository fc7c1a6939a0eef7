"""Losses that fixed networks see in an image, with their gradient taken at once.

A perceptual network and a discriminator keep every activation until the backward pass comes to them. What the generator
needs of all that is one gradient by its image, so it is taken here, and the activations are gone before the next loss is
computed. Values and gradients are those of the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Losses = dict[str, Tensor]


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, function: Callable[[Tensor], Losses], found: Losses) -> Tensor:
        leaf = image.detach().requires_grad_(True)
        with torch.enable_grad():
            losses = function(leaf)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        ctx.save_for_backward(gradient)
        found.update((name, loss.detach()) for name, loss in losses.items())
        return total.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None


def at_once(function: Callable[[Tensor], Losses], image: Tensor) -> Losses:
    """Return function(image), scalars by name; the gradient of their *sum* by the image is taken now.

    The sum is what a phase minimises, so the whole gradient rides on the first loss; use all of them, with one weight. Under
    float16 autocast the losses are computed the ordinary way, for there gradients must be scaled before they are taken.

    Args:
        function: image -> losses, each a scalar; networks inside it get no gradient.
        image: (B, 3, H, W).
    """
    kind = image.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if half or not (image.requires_grad and torch.is_grad_enabled()):
        return function(image)
    found: Losses = {}
    total = _AtOnce.apply(image, function, found)
    first = next(iter(found))
    found[first] = found[first] + (total - total.detach())  # adds 0, and the gradient
    return found
