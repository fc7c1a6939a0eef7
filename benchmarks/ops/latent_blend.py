"""latent_blend on the style codes of StyleGAN2 at 1024.

Contenders: `eager` (as published: every layer in turn upsampled to 512, blended there, max-pooled back), `compile`
(torch.compile of it), the package's backends. Floor: codes, logits and results moved once, at copy bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixsyn_fast.ops.latent_blend import StyleLayout, latent_blend, latent_blend_reference

from ..cases import DTYPES, Labels
from .base import Function, Normal, OpBench, Outputs, Work, backends_for, compile_form, forward_and_backward, under_backend

DEPTH = 512


@dataclass(frozen=True)
class BlendCase:
    """latent_blend of one batch."""

    batch: int = 1
    size: int = 1024  # of the generator's images: decides the layout
    q_on: str = "b"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        return f"latent_blend/b{self.batch}/{self.size}/q_on_{self.q_on}/{self.dtype}"


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


class BlendBench(OpBench):
    """One row of latent_blend."""

    op = "latent_blend"
    case: BlendCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[BlendCase]:
        """A single code and a batch; with all rows also the paper's direction."""
        rows = [BlendCase(batch, dtype=dtype) for batch in ((1,) if quick else (1, 16))]
        return [*rows, BlendCase(1, q_on="a", dtype=dtype)] if every else rows

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Both directions, layers of one channel and of many, every dtype."""

        def target(q_on: str, layout: StyleLayout, dtype: str) -> Callable[[], None]:
            return forward_and_backward(
                lambda *leaves: latent_blend(*leaves, layout, q_on=q_on, return_q=True),
                lambda normal: [*(normal(3, layout.size) for _ in "ab"), normal(3, len(layout.layers), 96)],
                device,
                DTYPES[dtype],
            )

        rows = (("b", (96, 48, 32, 3, 1), (96, 24)), ("a", (96,) * 20, (32,) * 6), ("a", (1,), ()))
        layouts = [(q_on, StyleLayout.of(conv, rgb)) for q_on, conv, rgb in rows]
        return {
            f"latent_blend_q_on_{q_on}_s{layout.size}_{dtype}": target(q_on, layout, dtype)
            for q_on, layout in layouts
            for dtype in DTYPES
        }

    def prepare(self, labels: Labels) -> None:
        """Draw two codes and logits."""
        case = self.case
        self.layout = StyleLayout.stylegan2(case.size)
        normal = Normal(self.device, DTYPES[case.dtype])
        shape = (case.batch, self.layout.size)
        self.inputs = {
            "a": normal(*shape),
            "b": normal(*shape),
            "logits": normal(case.batch, len(self.layout.layers), DEPTH, scale=2.0),
        }
        self.output_grads = (self._where_decided(normal(*shape)),)

    def _where_decided(self, grad: Tensor) -> Tensor:
        """Zero the incoming gradient where rounding may decide which of a group's logits is taken."""
        a, b, logits = (t.double() for t in self.inputs.values())
        offset = 0
        for layer, width in enumerate(self.layout.channels):
            if width == logits.shape[2]:
                offset += width
                continue
            q = torch.sigmoid(logits[:, layer]).unflatten(1, (width, -1)).sort(2).values
            channel = slice(offset, offset + width)
            gap = torch.minimum(q[..., 1] - q[..., 0], q[..., -1] - q[..., -2]) * (b - a)[:, channel].abs()
            slack = 16 * torch.finfo(grad.dtype).eps * torch.maximum(a.abs(), b.abs())[:, channel].clamp(min=1)
            grad[:, channel].masked_fill_(gap <= slack, 0.0)
            offset += width
        return grad

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        return latent_blend_reference(*inputs, self.layout.channels, self.case.q_on == "b")[:1]

    def _ours(self, *inputs: Tensor) -> Outputs:
        return (latent_blend(*inputs, self.layout, q_on=self.case.q_on),)

    def _eager(self, *inputs: Tensor) -> Outputs:
        return (upsampled_blend(*inputs, self.layout.channels, self.case.q_on == "b"),)

    def contenders(self, *, compiled: bool) -> dict[str, Function]:
        """Eager, compile, ours."""
        found: dict[str, Function] = {"eager": self._eager}
        if compiled:
            found["compile"] = compile_form(self._eager)
        return found | {name: under_backend(name, self._ours) for name in backends_for(self.device, self.op)}

    def work(self, mode: str) -> Work:
        """Inputs and results once; backward reads the inputs again and writes a gradient for each."""
        code, logits = self.inputs["a"].nbytes, self.inputs["logits"].nbytes
        return Work(copied=3 * code + logits) if mode == "forward" else Work(copied=5 * code + 2 * logits)
