"""bias_act against plain PyTorch: multiplication, two additions, leaky ReLU, multiplication."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import backend
from ...ops.bias_act import bias_act
from ..contest import LAYOUTS, Function, Normal, OpContest, Outputs


def eager_bias_act(x: Tensor, bias: Tensor, scale: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """(B, C, H, W); arguments as of the op."""
    u = x * scale[:, :, None, None] + noise * strength + bias[:, None, None]
    return F.leaky_relu(u, 0.2) * 2**0.5


class BiasActContest(OpContest):
    """A convolution's result, with demodulation, noise (which is drawn, not learned), its strength, and bias."""

    op = "bias_act"
    noise: Tensor

    @classmethod
    def small(cls, layout: str, dtype: str, device: torch.device) -> Self:
        """1 x 256 x 64 x 64."""
        contest = cls(f"{cls.op}/1x256x64x64/{layout}/{dtype}")
        contest.draw((1, 256, 64, 64), layout, Normal(device, getattr(torch, dtype)))
        return contest

    def draw(self, shape: tuple[int, int, int, int], layout: str, normal: Normal) -> None:
        """Draw inputs and the gradient of the result, which is zero where rounding may decide the sign of u."""
        batch, channels, height, width = shape
        self.noise = normal(batch, 1, height, width)
        self.inputs = {
            "x": normal(*shape, layout=LAYOUTS[layout]),
            "bias": normal(channels),
            "scale": normal(batch, channels, scale=0.2, offset=1.0),
            "strength": normal(1, offset=1.0),
        }
        (y,) = self.reference(*(t.double() for t in self.inputs.values()))
        grad = normal(*shape, layout=LAYOUTS[layout])
        slack = 16 * torch.finfo(grad.dtype).eps * y.abs().max()
        self.output_grads = (grad.masked_fill_(y.abs() <= slack, 0.0),)

    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's reference."""
        with backend.use_backend("reference"):
            return self.ours(*inputs)

    def ours(self, *inputs: Tensor) -> Outputs:
        """The op."""
        x, bias, scale, strength = inputs
        return (bias_act(x, bias, scale=scale, noise=self.noise, strength=strength),)

    def plain(self) -> dict[str, Function]:
        """See :func:`eager_bias_act`."""
        return {"eager": lambda x, bias, scale, strength: (eager_bias_act(x, bias, scale, strength, self.noise),)}


CONTEST = BiasActContest
