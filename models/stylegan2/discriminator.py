"""The discriminator: residual blocks that halve the size, minibatch statistics, two linear layers (Karras et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixsyn_fast.layers.equalized import EqualizedConv2d, EqualizedLinear
from mixsyn_fast.layers.modulated import Filter
from mixsyn_fast.layers.resample import blur, downsample_2d

from .activation import Bias
from .config import SMALLEST, Config

_HALF = 0.5**0.5


class Block(nn.Module):
    """Two 3x3 convolutions, the second of stride 2 behind the filter, and a 1x1 convolution around them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(EqualizedConv2d(in_channels, in_channels, 3, padding=1, bias=False), Bias(in_channels))
        second = EqualizedConv2d(in_channels, out_channels, 3, stride=2, bias=False)
        self.conv2 = nn.Sequential(Filter(1.0), second, Bias(out_channels))
        self.skip = nn.Sequential(Filter(1.0), EqualizedConv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H/2, W/2)."""
        _, convolve, activate = self.conv2
        main = activate(convolve(blur(self.conv1(x), 2)))
        y: Tensor = (main + self.skip[1](downsample_2d(x))) * _HALF
        return y


def minibatch_statistics(x: Tensor, group: int = 4) -> Tensor:
    """Append a channel: the standard deviation over a group of images, averaged over channels and positions.

    Args:
        x: (B, C, H, W).
        group: images of a group, at most; the largest number up to it that divides B is taken. Image i is in the group of
            the images i + n B / group.

    Returns:
        (B, C + 1, H, W).
    """
    batch = x.shape[0]
    if batch == 0:
        return x.new_zeros((0, x.shape[1] + 1, *x.shape[2:]))
    group = max(n for n in range(1, min(group, batch) + 1) if batch % n == 0)
    grouped = x.reshape(group, -1, *x.shape[1:])
    grouped = grouped if x.dtype.itemsize >= 4 else grouped.float()
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (B / group)
    column = deviation.to(x.dtype).repeat(group)[:, None, None, None]
    return torch.cat((x, column.expand(-1, 1, *x.shape[2:])), 1)


class Discriminator(nn.Module):
    """StyleGAN2's discriminator; names of state_dict entries are those of the common PyTorch port.

    Args:
        config: of the generator whose images it judges.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        sides = config.sides[::-1]
        first = config.channels(sides[0])
        blocks: list[nn.Module] = [nn.Sequential(EqualizedConv2d(3, first, 1, bias=False), Bias(first))]
        blocks += [
            Block(config.channels(side), config.channels(smaller)) for side, smaller in zip(sides, sides[1:], strict=False)
        ]
        self.convs = nn.Sequential(*blocks)
        last = config.channels(SMALLEST)
        self.final_conv = nn.Sequential(EqualizedConv2d(last + 1, last, 3, padding=1, bias=False), Bias(last))
        self.final_linear = nn.Sequential(
            EqualizedLinear(last * SMALLEST**2, last, 1.0), EqualizedLinear(last, 1, 1.0, activate=False)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, 1) of images (B, 3, size, size)."""
        size = self.config.size
        if image.dim() != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(f"image: expected shape (B, 3, {size}, {size}), got {tuple(image.shape)}")
        x = self.convs(image.contiguous(memory_format=torch.channels_last))
        x = self.final_conv(minibatch_statistics(x))
        logits: Tensor = self.final_linear(x.flatten(1))
        return logits
