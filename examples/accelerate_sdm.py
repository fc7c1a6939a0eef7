"""Research code with layers of its own: a semantic diffusion model's U-Net on the CPU, as it is and after accelerate().

    python examples/accelerate_sdm.py

The networks are written as such repositories write them (Wang et al., Semantic Image Synthesis via Diffusion Models, 2022):
nothing in them knows of mixsyn_fast. :func:`main` has the three lines that a user adds. Weights are random and the size is
small; benchmarks/run_libraries.py measures larger ones on real label maps.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import accelerate, constant_conditioning
from mixsyn_fast.measure.clock import interleave


class SPADEGroupNorm(nn.Module):
    """A group norm whose scale and shift come from the label map: two stacked 3x3 convolutions."""

    def __init__(self, channels: int, label_nc: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Return the modulated x (B, C, h, w); segmap (B, K, H, W) of any size."""
        hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice; the second norm is followed by scale and shift of the time step.

    With ``labels`` (classes, hidden width) the norms read the label map, as in the middle and the decoder.
    """

    def __init__(self, inside: int, outside: int, time: int, labels: tuple[int, int] | None, resample: str = "") -> None:
        super().__init__()
        norms = (nn.GroupNorm(32, c) if labels is None else SPADEGroupNorm(c, *labels) for c in (inside, outside))
        self.in_norm, self.out_norm = norms
        self.reads_map = labels is not None
        self.in_conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.out_conv = nn.Conv2d(outside, outside, 3, padding=1)
        self.time = nn.Linear(time, 2 * outside)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        self.resample = resample

    def resampled(self, x: Tensor) -> Tensor:
        """Return x at the block's output size."""
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, time: Tensor, segmap: Tensor) -> Tensor:
        """Return features of the block's width."""
        given = (segmap,) if self.reads_map else ()
        h = self.in_conv(self.resampled(F.silu(self.in_norm(x, *given))))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = self.out_norm(h, *given) * (1 + scale) + shift
        return self.skip(self.resampled(x)) + self.out_conv(F.silu(h))


class Attention(nn.Module):
    """Self-attention over all positions, heads of 64 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(32, channels), max(channels // 64, 1)
        self.qkv, self.proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor, segmap: Tensor) -> Tensor:
        """Return x with what it found added."""
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        found = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return (flat + self.proj(found)).view_as(x)


class SemanticUNet(nn.Module):
    """Noise and its variance from a noisy image, a time step and a one-hot label map.

    Args:
        label_nc: classes, with one for what has none.
        channels: width at full size (published: 256).
        multipliers: of the width, per level.
        attention: levels with attention.
        hidden: width between the two convolutions of the label map (published: 128).
        blocks: residual blocks of a level.
    """

    def __init__(
        self,
        label_nc: int,
        channels: int = 256,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        attention: tuple[int, ...] = (3, 4, 5),
        hidden: int = 128,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.channels, time, labels, last = channels, 4 * channels, (label_nc, hidden), len(multipliers) - 1
        self.time = nn.Sequential(nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, kept = channels, [channels]
        for level, factor in enumerate(multipliers):
            for _ in range(blocks):
                stage = nn.ModuleList([ResBlock(width, factor * channels, time, None)])
                width = factor * channels
                self.down.append(stage.append(Attention(width)) if level in attention else stage)
                kept.append(width)
            if level < last:
                self.down.append(nn.ModuleList([ResBlock(width, width, time, None, "down")]))
                kept.append(width)
        self.middle.append(ResBlock(width, width, time, labels))
        self.middle.append(Attention(width))
        self.middle.append(ResBlock(width, width, time, labels))
        for level, factor in reversed(list(enumerate(multipliers))):
            for number in range(blocks + 1):
                stage = nn.ModuleList([ResBlock(width + kept.pop(), factor * channels, time, labels)])
                width = factor * channels
                if level in attention:
                    stage.append(Attention(width))
                if level and number == blocks:
                    stage.append(ResBlock(width, width, time, labels, "up"))
                self.up.append(stage)
        self.last = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))

    def forward(self, x: Tensor, steps: Tensor, segmap: Tensor) -> Tensor:
        """Return (B, 6, H, W); x (B, 3, H, W), steps (B,), segmap (B, K, H, W)."""
        rates = torch.exp(-math.log(10000) * torch.arange(self.channels // 2, device=x.device) / (self.channels // 2))
        angles = steps[:, None].float() * rates
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        h = self.first(x)
        kept = [h]
        for stage in self.down:
            for part in stage:
                h = part(h, time, segmap)
            kept.append(h)
        for part in self.middle:
            h = part(h, time, segmap)
        for stage in self.up:
            h = torch.cat([h, kept.pop()], 1)
            for part in stage:
                h = part(h, time, segmap)
        return self.last(h)


def main(size: int = 64, channels: int = 32, classes: int = 19) -> None:
    """Print the report, the largest difference and the measured ratio of a sampler's step."""
    torch.manual_seed(0)
    plain = SemanticUNet(classes, channels, multipliers=(1, 2, 2), attention=(2,), hidden=64).eval()
    fast = copy.deepcopy(plain)  # to compare with: your own code accelerates the model that it has
    report = accelerate(fast)  # <- line 2 (line 1: from mixsyn_fast import accelerate, constant_conditioning)

    rings = (torch.cartesian_prod(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size)).norm(dim=1) * 9).long()
    segmap = F.one_hot(rings.clamp(max=classes - 1).view(1, size, size), classes).permute(0, 3, 1, 2).float()
    x, step = torch.randn(1, 3, size, size), torch.tensor([500])
    with torch.no_grad(), constant_conditioning(fast) as kept:  # <- line 3, around the sampler's loop
        expected, found = plain(x, step, segmap), fast(x, step, segmap)
        times = interleave({"plain": lambda: plain(x, step, segmap), "fast": lambda: fast(x, step, segmap)}, repeat=3)
        print(report)
        print(kept)
    print(f"largest difference: {float((found - expected).abs().max() / expected.abs().max()):.1e} of the largest output")
    before, after = times["plain"].median, times["fast"].median
    print(f"a step: {before * 1e3:.0f} ms as it is, {after * 1e3:.0f} ms accelerated: {before / after:.2f} x")


if __name__ == "__main__":
    main()
