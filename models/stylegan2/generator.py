r"""The generator, z -> w -> s -> image as separate calls.

* z (B, z_dim), drawn from N(0, 1); `map` makes w (B, w_dim), `truncate` draws it towards the tracked mean.
* w, or one w a layer (B, num_ws, w_dim): style mixing, W+. `styles` makes s (B, S), the S space: the vectors of all layers
  side by side in the order of `layout`, those of the 3x3 convolutions first, then those of the conversions to RGB.
* s: `synthesis` makes the image. Every channel of s scales one channel of what its layer reads; `activations` returns that.

Names of modules and of state_dict entries are those of the common PyTorch port, whose weights of modulated convolutions
have one more dimension, of 1, in front; `w_mean` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mixsyn_fast import StyleLayout, bias_act
from mixsyn_fast.backend import current_plan
from mixsyn_fast.layers.equalized import EqualizedLinear
from mixsyn_fast.layers.modulated import Filter, ModulatedConv2d
from mixsyn_fast.layers.resample import upsample_2d

from .activation import Bias
from .config import SMALLEST, Config

Noise = Literal["const", "random", "none"] | Sequence[Tensor]
"""What is added before activations: the stored maps, fresh ones, nothing, or given ones, (1 or B, 1, h, w) a layer."""


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-8) over the channels of (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C)."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ConstantInput(nn.Module):
    """The learned input (1, C, 4, 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, SMALLEST, SMALLEST))


class NoiseStrength(nn.Module):
    """Factor of the noise, (1), first 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, w_dim, up=up)
        self.noise = NoiseStrength()
        self.activate = Bias(out_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the output and the modulated input."""
        modulated, y, factor = self.conv.parts(x, style)
        strength = None if noise is None else self.noise.weight
        return bias_act(y, self.activate.bias, scale=factor, noise=noise, strength=strength), modulated


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation, and the enlarged image of the smaller side added."""

    def __init__(self, in_channels: int, w_dim: int, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = Filter(4.0)

    def forward(self, x: Tensor, style: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the image so far and the modulated input."""
        modulated, y, _ = self.conv.parts(x, style)
        y = y + self.bias
        return y if image is None else y + upsample_2d(image), modulated


class Generator(nn.Module):
    """StyleGAN2's generator with skip connections.

    Args:
        config: its sizes.

    Attributes:
        layout: order and widths of the S space.
        num_ws: vectors of w that an image takes, 2 log2(size) - 2.
    """

    w_mean: Tensor

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        widths = [config.z_dim, *(config.w_dim for _ in range(config.mapping_layers))]
        layers = (EqualizedLinear(i, o, config.lr_mul) for i, o in zip(widths, widths[1:], strict=False))
        self.style = nn.Sequential(PixelNorm(), *layers)
        first = config.channels(SMALLEST)
        self.input = ConstantInput(first)
        self.conv1 = StyledConv(first, first, config.w_dim)
        self.to_rgb1 = ToRGB(first, config.w_dim, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, SMALLEST, SMALLEST))
        for before, side in zip(config.sides, config.sides[1:], strict=False):
            inner, outer = config.channels(before), config.channels(side)
            self.convs.append(StyledConv(inner, outer, config.w_dim, up=True))
            self.convs.append(StyledConv(outer, outer, config.w_dim))
            self.to_rgbs.append(ToRGB(outer, config.w_dim, up=True))
            for i in (len(self.convs) - 1, len(self.convs)):
                self.noises.register_buffer(f"noise_{i}", torch.randn(1, 1, side, side))
        self.register_buffer("w_mean", torch.zeros(config.w_dim))
        self.layout = StyleLayout.of(
            (conv.conv.modulation.weight.shape[0] for conv in self._convs()),
            (rgb.conv.modulation.weight.shape[0] for rgb in self._rgbs()),
        )
        self.num_ws = len(self.convs) + 2

    def _convs(self) -> list[StyledConv]:
        return [self.conv1, *self.convs]

    def _rgbs(self) -> list[ToRGB]:
        return [self.to_rgb1, *self.to_rgbs]

    # --- z, w, s --------------------------------------------------------------------------------------------------------

    def map(self, z: Tensor) -> Tensor:
        """Return w (B, w_dim) of z (B, z_dim)."""
        self._check("z", z, self.config.z_dim)
        w: Tensor = self.style(z)
        return w

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """Return w_mean + psi (w - w_mean): psi 1 is w itself, 0 the mean; (..., w_dim)."""
        return w if psi == 1 else torch.lerp(self.w_mean.to(w.dtype).expand_as(w), w, psi)

    @torch.no_grad()
    def track(self, w: Tensor, decay: float = 0.995) -> None:
        """Take the codes w (B, w_dim) of a training step into the mean."""
        self.w_mean.lerp_(w.to(self.w_mean).mean(0), 1 - decay)

    @torch.no_grad()
    def measure_mean(self, count: int = 10_000, seed: int = 0) -> Tensor:
        """Set w_mean to the mean of `count` mapped codes, drawn with `seed`, and return it."""
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.config.z_dim, generator=rng).to(self.w_mean)
        self.w_mean.copy_(self.map(z).mean(0))
        return self.w_mean

    def mixed(self, first: Tensor, second: Tensor, crossover: int) -> Tensor:
        """Return codes (B, num_ws, w_dim): `first` (B, w_dim) up to layer `crossover`, `second` from there on."""
        if not 0 <= crossover <= self.num_ws:
            raise ValueError(f"crossover: expected 0 to {self.num_ws}, got {crossover}")
        parts = (first[:, None].expand(-1, crossover, -1), second[:, None].expand(-1, self.num_ws - crossover, -1))
        return torch.cat(parts, 1)

    def styles(self, w: Tensor) -> Tensor:
        """Return s (B, S) of w (B, w_dim), or of one w a layer (B, num_ws, w_dim)."""
        if w.dim() == 3 and w.shape[1:] != (self.num_ws, self.config.w_dim):
            raise ValueError(f"w: expected shape (B, {self.num_ws}, {self.config.w_dim}), got {tuple(w.shape)}")
        if w.dim() != 3:
            self._check("w", w, self.config.w_dim)

        def of(layer: int) -> Tensor:
            return w if w.dim() == 2 else w[:, layer]

        # a conversion to RGB shares the w of the convolution after it
        parts = [conv.conv.modulation(of(i)) for i, conv in enumerate(self._convs())]
        parts += [rgb.conv.modulation(of(2 * i + 1)) for i, rgb in enumerate(self._rgbs())]
        return torch.cat(parts, 1)

    def _check(self, name: str, value: Tensor, length: int) -> None:
        if value.dim() != 2 or value.shape[1] != length:
            raise ValueError(f"{name}: expected shape (B, {length}), got {tuple(value.shape)}")

    # --- image ----------------------------------------------------------------------------------------------------------

    def noise_shapes(self) -> list[tuple[int, int]]:
        """Return (h, w) of the noise of every convolution, in order."""
        return [(SMALLEST << ((i + 1) // 2),) * 2 for i in range(len(self.convs) + 1)]

    def _noise(self, noise: Noise, batch: int) -> list[Tensor | None]:
        shapes, like = self.noise_shapes(), self.input.input
        if noise == "none":
            return [None] * len(shapes)
        if noise == "const":
            return [self.noises.get_buffer(f"noise_{i}") for i in range(len(shapes))]
        if noise == "random":
            return [torch.randn(batch, 1, *shape, device=like.device, dtype=like.dtype) for shape in shapes]
        if isinstance(noise, str):
            raise ValueError(f"noise: expected const, random, none or a tensor a layer, got {noise!r}")
        given = list(noise)
        if len(given) != len(shapes):
            raise ValueError(f"noise: expected {len(shapes)} tensors, got {len(given)}")
        for i, (each, shape) in enumerate(zip(given, shapes, strict=True)):
            if each.dim() != 4 or each.shape[0] not in (1, batch) or each.shape[1:] != (1, *shape):
                raise ValueError(
                    f"noise[{i}]: expected shape ({batch} or 1, 1, {shape[0]}, {shape[1]}), got {tuple(each.shape)}"
                )
        return list(given)

    def _synthesis(self, s: Tensor, noise: Noise, found: dict[int, Tensor] | None) -> Tensor:
        """Return the images; the modulated inputs go into `found`, by the place of their layer in `layout`."""
        self._check("s", s, self.layout.size)
        batch, convs, rgbs = s.shape[0], self._convs(), self._rgbs()
        styles = s.split(list(self.layout.channels), 1)
        noises = self._noise(noise, batch)
        layout = torch.contiguous_format if current_plan() == "dense" else torch.channels_last
        x = self.input.input.contiguous(memory_format=layout).expand(batch, -1, -1, -1)
        image: Tensor | None = None
        for i, conv in enumerate(convs):
            x, modulated = conv(x, styles[i], noises[i])
            if found is not None:
                found[i] = modulated
            if i % 2 == 0:  # the second convolution of a side
                place = len(convs) + i // 2
                image, modulated = rgbs[i // 2](x, styles[place], image)
                if found is not None:
                    found[place] = modulated
        assert image is not None
        return image

    def synthesis(self, s: Tensor, noise: Noise = "const") -> Tensor:
        """Return the images (B, 3, size, size), about in [-1, 1] and not clamped.

        Args:
            s: (B, S).
            noise: see `Noise`.

        Raises:
            ValueError: another length of s, or noise of other shapes.
        """
        return self._synthesis(s, noise, None)

    def activations(self, s: Tensor, noise: Noise = "const") -> tuple[Tensor, list[Tensor]]:
        """Return the images as `synthesis` does, and what every channel of the S space scales, after scaling.

        Returns:
            images (B, 3, size, size), and per layer of `layout`, in its order, the modulated input (B, c, h, w) of its
            convolution: channel j of the layer is scaled by channel j of its part of s.
        """
        found: dict[int, Tensor] = {}
        image = self._synthesis(s, noise, found)
        return image, [found[place] for place in range(len(self.layout.layers))]

    def forward(self, z: Tensor, psi: float = 1.0, noise: Noise = "const") -> Tensor:
        """Return the images (B, 3, size, size) of z (B, z_dim), truncated by psi."""
        return self.synthesis(self.styles(self.truncate(self.map(z), psi)), noise)
