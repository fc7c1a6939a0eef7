r"""The MS block (MixSyn, section 4.2.1 and Fig. 4e) and its convolution.

A pre-activation residual block with optional average-pool down or bilinear up and optional normalisation, "unit of
processing for all of our networks":

    y = S(x) + R(x)
    down:  R = conv_1 act norm_1 pool conv_0 act norm_0,      S = conv_s pool          (conv_0 keeps the width)
    up:    R = conv_1 act norm_1 conv_0 up act norm_0,        S = conv_s up            (conv_0 changes the width)

with leaky ReLU (slope 0.2); conv_s is 1 x 1 without bias and is there where the widths differ. The paper names the parts but
not the order of sampling and convolution; it is the usual one of pre-activation residual blocks.

The same mathematics in another order (docs/exact_algebra.md, 8); the first two are left out with ``use_plan("dense")``:

* Average pooling after a 3 x 3 convolution is one 4 x 4 convolution of stride 2 with the 3 x 3 weight summed over four
  shifts and divided by 4: 16 instead of 36 multiplications per output, and the tensor at full size never exists.
* Pooling and bilinear sampling commute with the 1 x 1 convolution of the shortcut, which then runs at the smaller size.
* One encoder per region: the N of them are one grouped convolution, and groups of regions that nobody has are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import RegionMap, as_region_map
from mixsyn_fast.backend import current_plan
from mixsyn_fast.layers import conv2d
from mixsyn_fast.ops.region_norm import channel_moments, region_norm

from .config import Config, Size

SLOPE = 0.2  # of every leaky ReLU
Resample = Literal["none", "down", "up"]
MakeNorm = Callable[[int], nn.Module]  # channels -> norm(x, *condition, negative_slope=...)


def pooled_kernel(weight: Tensor) -> Tensor:
    """Return the kernel (O, I, 4, 4) whose convolution of stride 2 is that of `weight` (O, I, 3, 3), average-pooled by 2."""
    across = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    return (F.pad(across, (0, 0, 0, 1)) + F.pad(across, (0, 0, 1, 0))) / 4


class MSConv2d(nn.Conv2d):
    """Same-size convolution of `regions` encoders side by side, with optional spectral norm and fused average pooling.

    Weight (regions * fout, fin, k, k). Encoder i reads channels i * fin to (i + 1) * fin of the input and writes as many of
    the output. With `spectral` each encoder's weight is divided by its own largest singular value as a matrix (fout,
    fin * k * k), found by one power iteration per forward in training (Miyato et al., ICLR 2018).

    Args:
        fin: input channels of one encoder.
        fout: output channels of one encoder.
        kernel_size: 1 or 3.
        regions: number of encoders; 1 is an ordinary convolution.
        bias: add a bias.
        spectral: spectral norm.
    """

    def __init__(
        self, fin: int, fout: int, kernel_size: int, *, regions: int = 1, bias: bool = True, spectral: bool = False
    ) -> None:
        super().__init__(regions * fin, regions * fout, kernel_size, padding=kernel_size // 2, groups=regions, bias=bias)
        self.regions, self.spectral = regions, spectral
        if spectral:
            self.register_buffer("u", F.normalize(torch.randn(regions, fout), dim=1))
            self.register_buffer("v", F.normalize(torch.randn(regions, fin, kernel_size, kernel_size), dim=(1, 2, 3)))
            for _ in range(10):  # random vectors say nothing yet, and a network may be used before it is trained
                self._iterate()

    def _as_matrix(self, stack: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """Return weights (M, fout, fin, k, k) as matrices without a copy, and the order of the columns there and back."""
        order, back = (0, 1, 2, 3), (0, 1, 2, 3)
        if stack.stride(2) == 1:  # channels_last
            order, back = (0, 2, 3, 1), (0, 3, 1, 2)
        return stack.permute(0, 1, *(i + 1 for i in order[1:])).flatten(2), order, back

    @torch.no_grad()
    def _iterate(self) -> None:
        """Make one power iteration, for all encoders: also those whose regions this process has not met in its batch."""
        matrix, order, back = self._as_matrix(self._stack())
        v = F.normalize(torch.bmm(self.u[:, None], matrix)[:, 0], dim=1)
        self.u.copy_(F.normalize(torch.bmm(matrix, v[:, :, None])[:, :, 0], dim=1))
        self.v.copy_(v.view(self.v.permute(order).shape).permute(back))

    def _sigma(self, stack: Tensor, which: Tensor | None) -> Tensor:
        """Return the largest singular value (M,) of each weight of stack (M, fout, fin, k, k)."""
        matrix, order, _ = self._as_matrix(stack)
        # copies: a second forward before the backward updates the buffers in place
        u, v = (t.clone() if which is None else t.index_select(0, which) for t in (self.u, self.v))
        return torch.bmm(torch.bmm(u[:, None], matrix), v.permute(order).flatten(1)[:, :, None])[:, 0, 0]

    def _stack(self) -> Tensor:
        """Return the weight as (regions, fout, fin, k, k)."""
        return self.weight.view(self.regions, -1, *self.weight.shape[1:])

    def normalised_weight(self, which: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the encoders `which` (M,) int64 (None: all), spectral norm applied."""
        stack, bias = self._stack(), self.bias
        if which is not None:
            stack = stack.index_select(0, which)
            bias = None if bias is None else bias.view(self.regions, -1).index_select(0, which).flatten()
        if self.spectral:
            with torch.autocast(stack.device.type, enabled=False):  # sigma scales every weight
                if self.training:
                    self._iterate()
                stack = stack / self._sigma(stack, which)[:, None, None, None, None]
        return stack.flatten(0, 1), bias

    def forward(self, x: Tensor, which: Tensor | None = None, pool: bool = False) -> Tensor:
        """Convolve.

        Args:
            x: (B, M * fin, H, W).
            which: (M,) int64, the encoders that the channels belong to; None for all.
            pool: average-pool the result by 2 (H and W rounded down).

        Returns:
            (B, M * fout, H, W), or (B, M * fout, H // 2, W // 2).
        """
        count = self.regions if which is None else len(which)
        if not (self.spectral or pool or which is not None):
            return conv2d(self, x)
        weight, bias = self.normalised_weight(which)
        if not pool:
            return F.conv2d(x, weight, bias, padding=self.padding, groups=count)
        if current_plan() == "dense" or self.kernel_size != (3, 3):
            return F.avg_pool2d(F.conv2d(x, weight, bias, padding=self.padding, groups=count), 2)
        kernel = pooled_kernel(weight)
        if weight.is_contiguous(memory_format=torch.channels_last):
            kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, kernel, bias, stride=2, padding=1, groups=count)

    @torch.no_grad()
    def fold(self) -> None:
        """Write the spectral norm into the weight and forget it: the same function in eval, for use without training."""
        if self.spectral:
            training, self.training = self.training, False
            self.weight.copy_(self.normalised_weight()[0])
            self.training, self.spectral = training, False
            del self.u, self.v


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision values as float32, all others as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


def doubled(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) at twice the size, bilinear ("Samplings are done with bilinear interpolation")."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Box(NamedTuple):
    """A part of a picture: rows top to bottom, columns left to right, the last ones excluded."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, x: Tensor) -> Tensor:
        """Return the part of x (..., H, W), a view."""
        return x[..., self.top : self.bottom, self.left : self.right]


_HALO = 3
"""What a block sees beyond the part that it makes anew, in cells of its input: 2 by the label patterns of the first norm, 1
by bilinear sampling with the first convolution; the second half sees no farther."""


def box_of(mask: Tensor, margin: int) -> Box | None:
    """Return the smallest box around the True cells of a mask (H, W), and a margin inside the picture; None: no cell."""
    rows, columns = (mask.any(dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    if not rows:
        return None
    bottom, right = (min(ends[-1] + 1 + margin, side) for ends, side in zip((rows, columns), mask.shape, strict=True))
    return Box(max(rows[0] - margin, 0), max(columns[0] - margin, 0), bottom, right)


def grown(cells: Tensor, reach: int) -> Tensor:
    """Return the cells of a mask (H, W) bool and those up to `reach` rows and columns away."""
    rows = F.max_pool2d(cells[None].float(), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(rows, (1, 2 * reach + 1), stride=1, padding=(0, reach))[0] > 0


def level_mask(area: Tensor, size: Size, reach: int) -> Tensor:
    """Return the cells (h, w) of a level in which an area (H, W) bool has a pixel, and those up to `reach` cells away."""
    return grown(F.max_pool2d(area[None].float(), area.shape[0] // size[0])[0] > 0, reach)


def merged(kept: Tensor, part: Tensor, mask: Tensor, box: Box) -> Tensor:
    """Return a copy of kept (1, C, H, W) that has the values of part, which lies in a box, where a mask (H, W) is."""
    if part.shape == kept.shape:
        return torch.where(mask, part, kept)
    result = kept.clone()
    box.of(result).copy_(torch.where(box.of(mask), part, box.of(kept)))
    return result


def strongest(weights: Tensor, dim: int = 1) -> Tensor:
    """Return the region with the largest weight along a dimension, int64; of equal ones the first.

    On the CPU argmax over a dimension that is not the last in memory takes four times as long as max.
    """
    found: Tensor = weights.max(dim).indices if weights.device.type == "cpu" else weights.argmax(dim)
    return found


def instance_part(whole: Tensor, box: Box) -> Tensor:
    """Return instance norm and leaky ReLU of a part of whole (1, C, H, W), by the statistics of the whole."""
    if box.of(whole).shape == whole.shape:
        return region_norm(whole, norm="instance", negative_slope=SLOPE)
    mean, variance = channel_moments(whole)
    x = box.of(whole).contiguous(memory_format=torch.channels_last)
    return region_norm(x, norm="batch", running_mean=mean, running_var=variance, negative_slope=SLOPE)


def _size(x: Tensor) -> Size:
    return int(x.shape[2]), int(x.shape[3])


class MSBlock(nn.Module):
    """MS block.

    Args:
        fin: input channels, of one encoder where there are several.
        fout: output channels, likewise.
        resample: "none", "down" (half the size) or "up" (twice the size).
        norm: "none", "instance", or a function channels -> layer that takes (x, *condition, negative_slope=...).
        regions: number of encoders side by side.
        spectral: spectral norm of the convolutions.
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        *,
        resample: Resample = "none",
        norm: Literal["none", "instance"] | MakeNorm = "none",
        regions: int = 1,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        self.resample, self.norm = resample, norm if isinstance(norm, str) else "layer"
        middle = fin if resample == "down" else fout
        self.conv_0 = MSConv2d(fin, middle, 3, regions=regions, spectral=spectral)
        self.conv_1 = MSConv2d(middle, fout, 3, regions=regions, spectral=spectral)
        self.conv_s = MSConv2d(fin, fout, 1, regions=regions, bias=False, spectral=spectral) if fin != fout else None
        if not isinstance(norm, str):
            self.norm_0, self.norm_1 = norm(fin), norm(middle)

    def _activated(self, x: Tensor, layer: int, condition: tuple[Any, ...]) -> Tensor:
        if self.norm == "none":  # discriminators: no fused op, for R1 needs the second derivative
            return F.leaky_relu(x, SLOPE, inplace=layer == 1)  # nothing else reads what conv_0 returned
        if self.norm == "instance":
            return region_norm(x, norm="instance", negative_slope=SLOPE)
        return getattr(self, f"norm_{layer}")(x, *condition, negative_slope=SLOPE)

    def _shortcut(self, x: Tensor, which: Tensor | None) -> Tensor:
        def convolved(t: Tensor) -> Tensor:
            return t if self.conv_s is None else self.conv_s(t, which)

        if self.resample == "down":
            return convolved(F.avg_pool2d(x, 2))
        if self.resample == "up":
            return convolved(doubled(x)) if current_plan() == "dense" else doubled(convolved(x))
        return convolved(x)

    def forward(self, x: Tensor, *condition: Any, which: Tensor | None = None, stages: list[Tensor] | None = None) -> Tensor:
        """Run the block.

        Args:
            x: (B, M * fin, H, W).
            condition: what the norm layers read: region map and style codes.
            which: (M,) int64, the encoders in use; None for all.
            stages: takes what the first convolution and the block return, for :meth:`anew`.

        Returns:
            (B, M * fout, H', W').
        """
        middle = self.first(self._activated(x, 0, condition), which)
        if stages is not None:
            stages.append(middle)
        y: Tensor = self._shortcut(x, which) + self.conv_1(self._activated(middle, 1, condition), which)
        if stages is not None:
            stages.append(y)
        return y

    def first(self, h: Tensor, which: Tensor | None = None) -> Tensor:
        """Return what the first convolution makes of its normalised and activated input, at the size of the output."""
        made: Tensor = self.conv_0(doubled(h) if self.resample == "up" else h, which, pool=self.resample == "down")
        return made

    def anew(
        self, x: Tensor, kept: tuple[Tensor, Tensor], mask: Tensor, condition: Callable[[Size, Box], tuple[Any, ...]]
    ) -> tuple[Tensor, Tensor]:
        """Run a block of one picture in a part of it; statistics are those of the whole, as it is then.

        Args:
            x: (1, C, h, w), the whole input, new where it is new.
            kept: what both halves returned before, (1, C', H, W), as `stages` of :meth:`forward` has it.
            mask: (H, W) bool, where they are to be made anew.
            condition: size of the whole and a box in it -> what the norm layers read there.

        Returns:
            New halves, elsewhere bit for bit as they were.
        """
        size, before = _size(kept[0]), _size(x)
        scale = size[0] // before[0]
        low = box_of(F.max_pool2d(mask[None].float(), scale)[0] > 0, _HALO)
        if low is None:
            return kept
        high = Box(*(scale * side for side in low))
        middle = merged(kept[0], self.first(self._activated_part(x, low, 0, condition(before, low))), mask, high)
        y = self.conv_1(self._activated_part(middle, high, 1, condition(size, high)))
        return middle, merged(kept[1], self._shortcut(low.of(x), None) + y, mask, high)

    def _activated_part(self, whole: Tensor, box: Box, layer: int, condition: tuple[Any, ...]) -> Tensor:
        if self.norm == "instance":
            return instance_part(whole, box)
        part: Tensor = getattr(self, f"norm_{layer}").part(whole, box, *condition, negative_slope=SLOPE)
        return part


def fold_convolutions(network: nn.Module) -> None:
    """Write all spectral norms of a network into its weights (see `MSConv2d.fold`)."""
    for module in network.modules():
        if isinstance(module, MSConv2d):
            module.fold()


def checked_map(regions: RegionMap | Tensor, config: Config) -> RegionMap:
    """Return a region map without edges; ValueError when regions or size are not those of the networks."""
    regions = as_region_map(regions, num_regions=len(config.classes)).without_edges()
    if regions.num_regions != len(config.classes):
        raise ValueError(f"regions: expected {len(config.classes)} regions, got {regions.num_regions}")
    if regions.size != tuple(config.image_size):
        height, width = config.image_size
        raise ValueError(f"regions: expected a map of {height} x {width} pixels, got {regions.size[0]} x {regions.size[1]}")
    return regions


def region_count(config: Config) -> int:
    """Return N; ValueError for settings that no data has been fitted to."""
    if not config.classes:
        raise ValueError("config: expected the names of the regions in classes, got none (see task.fitted)")
    return len(config.classes)


def chosen_regions(which: Sequence[int] | None, present: Tensor, count: int) -> list[int]:
    """Return the regions to encode: those asked for, or those that some picture has (one host synchronisation)."""
    if which is None:
        return present.any(0).nonzero()[:, 0].tolist()
    for i in which:
        if not 0 <= i < count:
            raise ValueError(f"which: expected regions in [0, {count}), got {i}")
    return list(which)


def spread(codes: Tensor, chosen: Sequence[int], present: Tensor, which: Sequence[int] | None) -> Tensor:
    """Return codes (S, M, ...) of chosen regions as (S, N, ...), or as they are where `which` named them; absent: zero."""
    here = present[:, list(chosen)].view(len(codes), len(chosen), *(1,) * (codes.dim() - 2))
    codes = torch.where(here, codes, 0)
    if which is not None or len(chosen) == present.shape[1]:
        return codes
    every = codes.new_zeros((len(codes), present.shape[1], *codes.shape[2:]))
    return every.index_copy(1, torch.tensor(list(chosen), device=codes.device), codes)
