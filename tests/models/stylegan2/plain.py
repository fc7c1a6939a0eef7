"""StyleGAN2 from its state_dict alone, a sample and a layer at a time: an independent form to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def filtered(x: Tensor, up: int, down: int, before: int, after: int, gain: float) -> Tensor:
    """Zeros between the pixels, padding, the filter, every `down`-th pixel: (1, C, H, W)."""
    _, channels, height, width = x.shape
    wide = x.new_zeros(1, channels, height * up, width * up)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (before, after, before, after))
    kernel = (KERNEL * gain).to(x).flip(0, 1)[None, None]
    return torch.cat([F.conv2d(wide[:, c : c + 1], kernel) for c in range(channels)], 1)[:, :, ::down, ::down]


def linear(x: Tensor, state: Mapping[str, Tensor], name: str, lr_mul: float = 1.0) -> Tensor:
    """A layer with equalised learning rate."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return x @ (weight * lr_mul / weight.shape[1] ** 0.5).t() + bias * lr_mul


def act(x: Tensor) -> Tensor:
    """Leaky ReLU with its gain."""
    return torch.where(x > 0, x, 0.2 * x) * 2**0.5


def mapping(state: Mapping[str, Tensor], z: Tensor, lr_mul: float = 0.01) -> Tensor:
    """z (B, z_dim) -> w."""
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    i = 1
    while f"style.{i}.weight" in state:
        x = act(linear(x, state, f"style.{i}", lr_mul))
        i += 1
    return x


def convolve(state: Mapping[str, Tensor], name: str, x: Tensor, w: Tensor, up: bool, demodulate: bool) -> Tensor:
    """A modulated convolution of one sample (1, C, H, W); w (w_dim)."""
    weight = state[f"{name}.weight"]
    style = linear(w[None], state, f"{name}.modulation")[0]
    weight = weight / weight[0].numel() ** 0.5 * style[None, :, None, None]
    if demodulate:
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if not up:
        return F.conv2d(x, weight, padding=weight.shape[2] // 2)
    # a transposed convolution written as one over zeros between the pixels
    _, channels, height, width = x.shape
    wide = x.new_zeros(1, channels, 2 * height - 1, 2 * width - 1)
    wide[:, :, ::2, ::2] = x
    return filtered(F.conv2d(wide, weight.flip(2, 3), padding=2), 1, 1, 1, 1, 4.0)


def synthesis(state: Mapping[str, Tensor], w: Tensor, noises: Sequence[Tensor] | None) -> Tensor:
    """w (num_ws, w_dim) of one sample -> image (1, 3, H, W)."""

    def styled(name: str, x: Tensor, layer: int, up: bool) -> Tensor:
        y = convolve(state, f"{name}.conv", x, w[layer], up, True)
        if noises is not None:
            y = y + state[f"{name}.noise.weight"] * noises[layer]
        return act(y + state[f"{name}.activate.bias"][None, :, None, None])

    def to_rgb(name: str, x: Tensor, layer: int) -> Tensor:
        return convolve(state, f"{name}.conv", x, w[layer], False, False) + state[f"{name}.bias"]

    x = styled("conv1", state["input.input"], 0, False)
    image = to_rgb("to_rgb1", x, 1)
    for i in range(len(w) // 2 - 1):
        x = styled(f"convs.{2 * i}", x, 2 * i + 1, True)
        x = styled(f"convs.{2 * i + 1}", x, 2 * i + 2, False)
        image = to_rgb(f"to_rgbs.{i}", x, 2 * i + 3) + filtered(image, 2, 1, 2, 1, 4.0)
    return image


def discriminator(state: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """Logits (B, 1) of images whose number is 1 or divides into groups of four, image i beside i + B / 4."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight / weight[0].numel() ** 0.5, stride=stride, padding=padding)

    def biased(name: str, x: Tensor) -> Tensor:
        return act(x + state[f"{name}.bias"][None, :, None, None])

    def each(x: Tensor, padding: int) -> Tensor:
        return torch.cat([filtered(one[None], 1, 1, padding, padding, 1.0) for one in x])

    x = biased("convs.0.1", conv("convs.0.0", image))
    i = 1
    while f"convs.{i}.conv1.0.weight" in state:
        y = biased(f"convs.{i}.conv1.1", conv(f"convs.{i}.conv1.0", x, padding=1))
        y = biased(f"convs.{i}.conv2.2", conv(f"convs.{i}.conv2.1", each(y, 2), stride=2))
        x = (y + conv(f"convs.{i}.skip.1", each(x, 1), stride=2)) / 2**0.5
        i += 1
    batch = len(x)
    group = min(4, batch)
    columns = []
    for n in range(batch):
        mates = x[[n % (batch // group) + k * (batch // group) for k in range(group)]]
        columns.append((mates.var(0, unbiased=False) + 1e-8).sqrt().mean())
    x = torch.cat((x, torch.stack(columns)[:, None, None, None].expand(-1, 1, *x.shape[2:])), 1)
    x = biased("final_conv.1", conv("final_conv.0", x, padding=1)).flatten(1)
    return linear(act(linear(x, state, "final_linear.0")), state, "final_linear.1")
