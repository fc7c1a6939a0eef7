"""latent_blend against the published form: every layer in turn upsampled to 512, blended there, max-pooled back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ...ops.latent_blend import StyleLayout, latent_blend, latent_blend_reference
from ..contest import Function, Normal, OpContest, Outputs

DEPTH = 512


def upsampled_blend(a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool) -> Tensor:
    """(B, S): upsample to D, blend, max-pool, layer by layer; arguments as of `latent_blend_reference`."""
    blended, offset = [], 0
    for layer, width in enumerate(channels):
        group = logits.shape[2] // width
        q = torch.sigmoid(logits[:, layer])
        first, second = (t[:, offset : offset + width].repeat_interleave(group, 1) for t in ((a, b) if q_on_b else (b, a)))
        blended.append((first + q * (second - first)).unflatten(1, (width, group)).amax(2))
        offset += width
    return torch.cat(blended, 1)


def where_decided(grad: Tensor, a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int]) -> Tensor:
    """Zero a gradient of the result, in place, where rounding may decide which of a group's logits is taken."""
    a, b, logits = a.double(), b.double(), logits.double()
    offset = 0
    for layer, width in enumerate(channels):
        if width < logits.shape[2]:
            q = torch.sigmoid(logits[:, layer]).unflatten(1, (width, -1)).sort(2).values
            channel = slice(offset, offset + width)
            gap = torch.minimum(q[..., 1] - q[..., 0], q[..., -1] - q[..., -2]) * (b - a)[:, channel].abs()
            slack = 16 * torch.finfo(grad.dtype).eps * torch.maximum(a.abs(), b.abs())[:, channel].clamp(min=1)
            grad[:, channel].masked_fill_(gap <= slack, 0.0)
        offset += width
    return grad


class BlendContest(OpContest):
    """Two codes and logits."""

    op = "latent_blend"
    layouts = ("any",)
    layout: StyleLayout
    q_on = "b"

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """One image of StyleGAN2 at 1024."""
        contest = cls(f"{cls.op}/b1/1024/{dtype}")
        contest.layout = StyleLayout.stylegan2(1024)
        contest.draw(1, Normal(device, getattr(torch, dtype)))
        return contest

    def draw(self, batch: int, normal: Normal) -> None:
        """Draw codes, logits and the gradient of the result."""
        shape = (batch, self.layout.size)
        logits = normal(batch, len(self.layout.layers), DEPTH, scale=2.0)
        self.inputs = {"a": normal(*shape), "b": normal(*shape), "logits": logits}
        a, b, _ = self.inputs.values()
        self.output_grads = (where_decided(normal(*shape), a, b, logits, self.layout.channels),)

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        a, b, logits = inputs
        return latent_blend_reference(a, b, logits, self.layout.channels, self.q_on == "b")[:1]

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        a, b, logits = inputs
        return (latent_blend(a, b, logits, self.layout, q_on=self.q_on),)

    def plain(self) -> dict[str, Function]:
        """See :func:`upsampled_blend`."""
        return {"eager": lambda a, b, logits: (upsampled_blend(a, b, logits, self.layout.channels, self.q_on == "b"),)}


CONTEST = BlendContest
