"""Parts that the SPADE, CLADE and SEAN generators share.

The three generators have one skeleton: a first layer at 1/32 (1/64, 1/128) of the image size, seven or eight
residual blocks whose normalisations read the region map, nearest upsampling between them, a last convolution
and tanh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.layers import FastConv2d
from mixsyn_fast.region_map import RegionMap, as_region_map

SLOPE = 0.2  # of every leaky ReLU of the family
HALVINGS = {
    "normal": 5,
    "more": 6,
    "most": 7,
}  # num_upsampling_layers -> log2(image size / size of the first layer)

MakeNorm = Callable[[int, str], nn.Module]  # (channels, name of the block) -> normalisation layer


@dataclass(frozen=True)
class GeneratorConfig:
    """What the three generators have in common; each generator adds its own fields."""

    label_nc: int = 19  # number of regions K; a "don't care" class of the dataset counts as one of them
    ngf: int = 64  # width of the network: the blocks have 16, 16, 16, 8, 4, 2, 1 times as many channels
    image_size: int = 256  # width of the image in pixels
    aspect_ratio: float = 1.0  # width / height: 1 for square images, 2 for Cityscapes
    num_upsampling_layers: str = "normal"  # "normal", "more", "most": first layer at 1/32, 1/64, 1/128
    norm: str = "batch"  # parameter-free normalisation inside the region-adaptive one: "batch" or "instance"
    spectral_norm: bool = False  # True for training: the blocks' convolutions hold weight_orig, _u and _v
    largest: int = 0  # most channels of any block, for small models; 0: no limit (published)

    def __post_init__(self) -> None:
        """Check every field once."""
        layers = self.num_upsampling_layers
        if layers not in HALVINGS:
            raise ValueError(f"num_upsampling_layers: expected one of {sorted(HALVINGS)}, got {layers!r}")
        if self.norm not in ("batch", "instance"):
            raise ValueError(f"norm: expected 'batch' or 'instance', got {self.norm!r}")
        for name in ("label_nc", "ngf", "image_size", "aspect_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if self.largest < 0:
            raise ValueError(f"largest: expected a positive number, or 0 for no limit, got {self.largest!r}")
        height, width = self.start_size
        if min(height, width) < 1:
            raise ValueError(
                f"image_size: expected at least {2 ** HALVINGS[layers]} pixels a side for "
                f"num_upsampling_layers={layers!r}, got width {self.image_size}, aspect {self.aspect_ratio}"
            )

    @property
    def semantic_nc(self) -> int:
        """Channels of the one-hot map that the first layer reads."""
        return self.label_nc

    def channels(self, multiple: float) -> int:
        """Return the channels of a block that has `multiple` times ngf of them, within the limit."""
        return min(int(multiple * self.ngf), self.largest or int(multiple * self.ngf))

    @property
    def start_size(self) -> tuple[int, int]:
        """Height and width at which the first layer works."""
        width = self.image_size // 2 ** HALVINGS[self.num_upsampling_layers]
        return round(width / self.aspect_ratio), width

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        factor = 2 ** HALVINGS[self.num_upsampling_layers]
        height, width = self.start_size
        return height * factor, width * factor


class _OverSigma(torch.autograd.Function):
    """matrix / sigma with sigma = u . (matrix v), whose gradient is written in two passes: autograd's takes eight."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = torch.dot(u, matrix @ v)
        ctx.save_for_backward(matrix, u, v, sigma)
        return matrix / sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrix, u, v, sigma = ctx.saved_tensors
        # d(matrix / sigma) = d matrix / sigma - matrix / sigma^2 (u . d matrix v)
        share = (grad * matrix).sum() / sigma**2
        return torch.addr(grad / sigma, u * -share, v), None, None


class SpectralConv2d(nn.Conv2d):
    """Conv2d whose weight is weight_orig / sigma, with sigma the largest singular value of weight_orig as a
    matrix.

    Names and numbers are those of torch.nn.utils.spectral_norm: one power iteration for each forward in
    training, none in eval. Unlike the hook, it leaves no graph on the module, so a model can be deep-copied
    after a forward (EMA copies).
    """

    def __init__(self, *args, eps: float = 1e-12, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        weight = self._parameters.pop("weight")
        matrix = weight.detach().flatten(1)
        self.eps = eps
        self.weight_orig = nn.Parameter(weight.detach())
        self.register_buffer("weight_u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=eps))
        self.register_buffer("weight_v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=eps))

    def normalised_weight(self) -> Tensor:
        """Return weight_orig / sigma, after one power iteration when training."""
        with torch.autocast(self.weight_orig.device.type, enabled=False):  # sigma scales every weight
            # as a matrix without a copy, its columns in the order in which the weight lies in memory
            order, back = (0, 1, 2, 3), (0, 1, 2)
            if self.weight_orig.is_contiguous(memory_format=torch.channels_last):
                order, back = (0, 2, 3, 1), (2, 0, 1)
            laid_out = self.weight_orig.permute(order)
            matrix = laid_out.flatten(1)
            stored = self.weight_v.view(self.weight_orig.shape[1:])  # as published: columns in the order (C, kh, kw)
            v = stored.permute([i - 1 for i in order[1:]]).flatten()
            u = self.weight_u
            if self.training:
                with torch.no_grad():
                    v = F.normalize(matrix.t() @ u, dim=0, eps=self.eps)
                    u = F.normalize(matrix @ v, dim=0, eps=self.eps)
                    stored.copy_(v.view(laid_out.shape[1:]).permute(back))
                    self.weight_u.copy_(u)
            # u a copy of the buffer, v one or new: a second forward before the backward updates the buffers in place
            normalised: Tensor = _OverSigma.apply(matrix, u.clone(), v.clone())
            return normalised.view(laid_out.shape).permute([order.index(i) for i in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B, C, H, W) with the normalised weight."""
        return self._conv_forward(x, self.normalised_weight(), self.bias)


def make_conv(fin: int, fout: int, kernel_size: int, *, bias: bool = True, spectral: bool = False) -> nn.Conv2d:
    """Return a same-size convolution, with spectral norm for training when asked."""
    kind = SpectralConv2d if spectral else FastConv2d
    return kind(fin, fout, kernel_size, padding=kernel_size // 2, bias=bias)


def _watched(module: nn.Module) -> bool:
    """Say whether a forward hook may keep what the module returns."""
    return bool(module._forward_hooks or nn.modules.module._global_forward_hooks)


class ResidualBlock(nn.Module):
    """y = shortcut(x) + conv_1(act(norm_1(conv_0(act(norm_0(x)))))), act the leaky ReLU, fused into the
    normalisation.

    Shortcut: conv_s(norm_s(x)) without activation where the widths differ, else x. The normalisations are
    called in the order s, 0, 1 (it fixes the order of SEAN's noise draws). `stem` is "norm" (SPADE, CLADE) or
    "ace" (SEAN); `extra` is the number of channels that a normalisation appends to its input (CLADE with
    instance maps: 1).
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        make_norm: Callable[[int], nn.Module],
        *,
        stem: str = "norm",
        spectral: bool = False,
        extra: int = 0,
    ) -> None:
        super().__init__()
        middle = min(fin, fout)
        self.learned_shortcut = fin != fout
        self.norm_names = tuple(f"{stem}_{i}" for i in "s01")
        self.conv_0 = make_conv(fin + extra, middle, 3, spectral=spectral)
        self.conv_1 = make_conv(middle + extra, fout, 3, spectral=spectral)
        if self.learned_shortcut:
            self.conv_s = make_conv(fin + extra, fout, 1, bias=False, spectral=spectral)
        self.add_module(f"{stem}_0", make_norm(fin))
        self.add_module(f"{stem}_1", make_norm(middle))
        if self.learned_shortcut:
            self.add_module(f"{stem}_s", make_norm(fin))

    def forward(self, x: Tensor, regions: RegionMap, *args, **kwargs) -> Tensor:
        """Return the block's output (B, fout, H, W); further arguments go to every normalisation."""
        name_s, name_0, name_1 = self.norm_names
        shortcut = x
        if self.learned_shortcut:
            shortcut = self.conv_s(getattr(self, name_s)(x, regions, *args, **kwargs))
        hidden = self.conv_0(getattr(self, name_0)(x, regions, *args, negative_slope=SLOPE, **kwargs))
        hidden = self.conv_1(getattr(self, name_1)(hidden, regions, *args, negative_slope=SLOPE, **kwargs))
        # in place where nobody keeps conv_1's output (no gradient needs its value)
        return hidden + shortcut if _watched(self.conv_1) else hidden.add_(shortcut)


class RegionGenerator(nn.Module):
    """The skeleton: fc, head_0, G_middle_0, G_middle_1, up_0 .. up_3 (up_4), conv_img, tanh."""

    blocks_of_vectors: frozenset[str] = frozenset()
    """Names of the blocks whose normalisations are given `class_vectors`."""

    def __init__(
        self,
        config: GeneratorConfig,
        make_norm: MakeNorm,
        *,
        stem: str = "norm",
        z_dim: int = 0,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.z_dim = z_dim
        height, width = config.start_size
        if z_dim:
            self.fc: nn.Module = nn.Linear(z_dim, config.channels(16) * height * width)
        else:
            self.fc = make_conv(config.semantic_nc, config.channels(16), 3)
        widths: list[tuple[str, float, float]] = [("head_0", 16, 16), ("G_middle_0", 16, 16), ("G_middle_1", 16, 16)]
        widths += [("up_0", 16, 8), ("up_1", 8, 4), ("up_2", 4, 2), ("up_3", 2, 1)]
        if config.num_upsampling_layers == "most":
            widths.append(("up_4", 1, 0.5))
        blocks = [(name, config.channels(fin), config.channels(fout)) for name, fin, fout in widths]
        for name, fin, fout in blocks:

            def make(channels: int, block: str = name) -> nn.Module:
                return make_norm(channels, block)

            block = ResidualBlock(fin, fout, make, stem=stem, spectral=config.spectral_norm, extra=extra)
            self.add_module(name, block)
        self.conv_img = make_conv(blocks[-1][2], 3, 3)
        self.block_names = tuple(name for name, _, _ in blocks)
        # the last block's output is never doubled, nor G_middle_0's with the fewest doublings
        skipped = {self.block_names[-1]} | ({"G_middle_0"} if config.num_upsampling_layers == "normal" else set())
        self.doubled_after = frozenset(self.block_names) - skipped

    def region_map(self, regions: RegionMap | Tensor) -> RegionMap:
        """Return `regions` as a RegionMap of the K regions of this generator, or raise ValueError."""
        config = self.config
        edges = config.semantic_nc > config.label_nc
        result = as_region_map(regions, num_regions=config.label_nc)
        expected = config.semantic_nc if result.is_soft else config.label_nc
        if result.num_regions != expected:
            raise ValueError(f"regions: expected {expected} regions (Config.label_nc), got {result.num_regions}")
        if not result.is_soft and edges != (result.edges is not None):
            raise ValueError(
                f"regions: expected a map {'with' if edges else 'without'} instance edges (Config.edges), "
                f"got one {'without' if edges else 'with'}"
            )
        return result

    def first_layer(self, regions: RegionMap, z: Tensor | None = None) -> Tensor:
        """Return the input of the first block (B, 16 ngf, h, w): fc of the map at the start size, or of the
        code z.

        z (B, z_dim) only where the generator has a latent code; left out, it is drawn from N(0, 1).
        """
        weight, size = self.fc.weight, self.config.start_size
        if not self.z_dim:
            if z is not None:
                raise ValueError("z: expected None, for Config.use_vae is False")
            x = self.fc(regions.onehot(size, dtype=weight.dtype).contiguous(memory_format=torch.channels_last))
        else:
            shape = (regions.batch_size, self.z_dim)
            if z is None:
                z = torch.randn(shape, device=weight.device, dtype=weight.dtype)
            if z.shape != shape:
                raise ValueError(f"z: expected shape {shape}, got {tuple(z.shape)}")
            x = self.fc(z).view(shape[0], -1, *size)
        return x.contiguous(memory_format=torch.channels_last)

    def blocks_and_image(
        self,
        x: Tensor,
        regions: RegionMap,
        *args,
        of_block: Mapping[str, Mapping[str, Any]] | None = None,
        first: str | None = None,
        inputs: dict[str, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        """Return the output before tanh (B, 3, H, W).

        Args:
            x: input of the first block that runs: the first layer's output (B, 16 ngf, h, w) where all do.
            regions: the region map.
            args: further arguments of all normalisations, as are `kwargs`.
            of_block: further arguments of single blocks' normalisations, by the block's name.
            first: block to begin with; None: the first one.
            inputs: receives the input of every block that runs.
        """
        names = self.block_names[self.block_names.index(first) if first else 0 :]
        for name in names:
            if inputs is not None:
                inputs[name] = x
            x = getattr(self, name)(x, regions, *args, **kwargs, **(of_block or {}).get(name, {}))
            if name in self.doubled_after:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        watched = _watched(getattr(self, self.block_names[-1]))
        return self.conv_img(F.leaky_relu(x, SLOPE) if watched else F.leaky_relu_(x, SLOPE))
