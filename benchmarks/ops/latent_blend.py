"""latent_blend on the style codes of StyleGAN2 at 1024.

Contenders: `eager` (as published: every layer in turn upsampled to 512, blended there, max-pooled back), `compile`
(torch.compile of it), the package's backends. Floor: codes, logits and results moved once, at copy bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixsyn_fast.measure.contest import Normal
from mixsyn_fast.measure.ops.latent_blend import BlendContest
from mixsyn_fast.ops.latent_blend import StyleLayout, latent_blend

from ..cases import DTYPES, Labels
from .base import OpBench, Target, Work, forward_and_backward


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


class BlendBench(OpBench, BlendContest):
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
        self.layout, self.q_on = StyleLayout.stylegan2(self.case.size), self.case.q_on
        self.draw(self.case.batch, Normal(self.device, DTYPES[self.case.dtype]))

    def targets(self, mode: str) -> Sequence[Target]:
        """Forward with AVX2: eight times the published form."""
        if self.bar is not None:
            return self.bar
        return (Target("eager", least=8.0),) if self.isa == "avx2" and mode == "forward" else ()

    def work(self, mode: str) -> Work:
        """Inputs and results once; backward reads the inputs again and writes a gradient for each."""
        code, logits = self.inputs["a"].nbytes, self.inputs["logits"].nbytes
        return Work(copied=3 * code + logits) if mode == "forward" else Work(copied=5 * code + 2 * logits)
