"""bias_act after the convolutions of StyleGAN2.

Contenders: `eager` (multiplication, two additions, leaky ReLU, multiplication), `compile` (torch.compile of it), the
package's backends. Floor: x read and y written once; backward reads the gradient, y and x (for the scale's gradient) and
writes x's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mixsyn_fast.measure.contest import LAYOUTS, Normal, Outputs
from mixsyn_fast.measure.ops.bias_act import BiasActContest
from mixsyn_fast.ops.bias_act import bias_act

from ..cases import DTYPES, Labels
from .base import OpBench, Target, Work, forward_and_backward

# (channels, side) of StyleGAN2 at 256 x 256, channel multiplier 1, from 32 x 32 on
_SHAPES = ((512, 32), (256, 64), (128, 128), (64, 256))


@dataclass(frozen=True)
class BiasActCase:
    """bias_act on one shape."""

    channels: int
    side: int
    batch: int = 1
    layout: str = "channels_last"
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of x."""
        return self.batch, self.channels, self.side, self.side

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        return f"bias_act/{'x'.join(map(str, self.shape))}/{self.layout}/{self.dtype}"


class BiasActBench(OpBench, BiasActContest):
    """One row of bias_act."""

    op = "bias_act"
    case: BiasActCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[BiasActCase]:
        """Every shape at batch 1, the ends at batch 8; with all rows both batches of all shapes in both layouts."""
        if quick:
            return [BiasActCase(128, 128, dtype=dtype)]
        if every:
            return [BiasActCase(c, s, b, layout, dtype) for layout in LAYOUTS for b in (1, 8) for c, s in _SHAPES]
        rows = [BiasActCase(c, s, dtype=dtype) for c, s in _SHAPES]
        rows += [BiasActCase(c, s, 8, dtype=dtype) for c, s in (_SHAPES[0], _SHAPES[-1])]
        return [*rows, BiasActCase(*_SHAPES[2], layout="contiguous", dtype=dtype)]

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """With everything and with x alone; vectors and tails, both layouts, every dtype."""

        def target(channels: int, full: bool, layout: str, dtype: str) -> Callable[[], None]:
            def make(normal: Normal) -> list[Tensor]:
                x = normal(2, channels, 6, 10, layout=LAYOUTS[layout])
                return [x, *([normal(channels), normal(2, channels), normal(1, 1, 6, 10), normal(1)] if full else [])]

            def run(*leaves: Tensor) -> Outputs:
                return (bias_act(**dict(zip(("x", "bias", "scale", "noise", "strength"), leaves, strict=False))),)

            return forward_and_backward(run, make, device, DTYPES[dtype])

        return {
            f"bias_act_c{channels}_{'full' if full else 'alone'}_{layout}_{dtype}": target(channels, full, layout, dtype)
            for channels, full in ((16, True), (16, False), (5, True), (72, True))
            for layout in LAYOUTS
            for dtype in DTYPES
        }

    def prepare(self, labels: Labels) -> None:
        """Draw everything."""
        self.draw(self.case.shape, self.case.layout, Normal(self.device, DTYPES[self.case.dtype]))

    def targets(self, mode: str) -> Sequence[Target]:
        """One and a quarter times the floor."""
        return self.bar or (Target("memory_floor", most=1.25),)

    def work(self, mode: str) -> Work:
        """Passes over tensors of x's size: backward reads three of them and writes one."""
        size = self.inputs["x"].nbytes
        return Work(copied=2 * size) if mode == "forward" else Work(read=2 * size, copied=2 * size)

    @property
    def probe_bytes(self) -> int:
        """Of x."""
        return self.inputs["x"].nbytes
