"""A face animation decoder (as in LivePortrait, SadTalker) on the CPU, as it is and after accelerate().

    python examples/accelerate_portrait.py

Its SPADE layers read dense features, new in every frame, that are upsampled by repetition. The networks are written as such
repositories write them (Wang et al., One-Shot Free-View Neural Talking-Head Synthesis, 2021, with the decoder of SPADE):
nothing in them knows of mixsyn_fast. :func:`main` has the two lines that a user adds. Weights are random and the size is
small; benchmarks/run_libraries.py measures larger ones.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import accelerate
from mixsyn_fast.measure.clock import interleave


class SPADE(nn.Module):
    """An instance norm whose scale and shift come from a map: two stacked 3x3 convolutions."""

    def __init__(self, channels: int, map_channels: int, hidden: int) -> None:
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Return the modulated x (B, C, h, w); segmap (B, K, H, W) of any size."""
        hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class Block(nn.Module):
    """SPADE's residual block, its convolutions under spectral norm."""

    def __init__(self, inside: int, outside: int, map_channels: int, hidden: int) -> None:
        super().__init__()
        middle = min(inside, outside)
        self.conv_0 = nn.utils.spectral_norm(nn.Conv2d(inside, middle, 3, padding=1))
        self.conv_1 = nn.utils.spectral_norm(nn.Conv2d(middle, outside, 3, padding=1))
        self.norm_0, self.norm_1 = (SPADE(c, map_channels, hidden) for c in (inside, middle))
        self.learned_shortcut = inside != outside
        if self.learned_shortcut:
            self.conv_s = nn.utils.spectral_norm(nn.Conv2d(inside, outside, 1, bias=False))
            self.norm_s = SPADE(inside, map_channels, hidden)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Return features of the block's width."""
        shortcut = self.conv_s(self.norm_s(x, segmap)) if self.learned_shortcut else x
        h = self.conv_0(F.leaky_relu(self.norm_0(x, segmap), 0.2))
        return shortcut + self.conv_1(F.leaky_relu(self.norm_1(h, segmap), 0.2))


class PortraitDecoder(nn.Module):
    """A picture of eight times the features' sides; the features are the map of all its layers.

    Args:
        features: channels of the warped features (published: 256).
        hidden: width between the two convolutions of a map (published: 128).
        blocks: residual blocks at the features' size.
    """

    def __init__(self, features: int = 256, hidden: int = 128, blocks: int = 6) -> None:
        super().__init__()
        wide, maps = 2 * features, (features, hidden)
        self.fc = nn.Conv2d(features, wide, 3, padding=1)
        self.middle = nn.ModuleList(Block(wide, wide, *maps) for _ in range(blocks))
        self.up_0, self.up_1 = Block(wide, features, *maps), Block(features, features // 4, *maps)
        self.picture = nn.Sequential(nn.Conv2d(features // 4, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, feature: Tensor) -> Tensor:
        """Return (B, 3, 8 h, 8 w) in (0, 1); feature (B, C, h, w)."""
        x = self.fc(feature)
        for block in self.middle:
            x = block(x, feature)
        x = self.up_0(F.interpolate(x, scale_factor=2.0), feature)
        x = self.up_1(F.interpolate(x, scale_factor=2.0), feature)
        return torch.sigmoid(self.picture(F.leaky_relu(x, 0.2)))


def settle(decoder: nn.Module, features: int) -> None:
    """Let spectral norm find its singular vectors, as training does; with random ones weights are far too large."""
    with torch.no_grad():
        for _ in range(5):
            decoder.train()(torch.randn(1, features, 4, 4))
    decoder.eval()


def main(size: int = 32, features: int = 64) -> None:
    """Print the report, the largest difference and the measured ratio of a frame."""
    torch.manual_seed(0)
    plain = PortraitDecoder(features, hidden=features // 2, blocks=2).eval()
    settle(plain, features)
    feature = torch.randn(1, features, size, size)
    fast = copy.deepcopy(plain)  # to compare with: your own code accelerates the model that it has
    report = accelerate(fast)  # <- line 2 (line 1: from mixsyn_fast import accelerate)
    with torch.no_grad():
        expected, found = plain(feature), fast(feature)
        times = interleave({"plain": lambda: plain(feature), "fast": lambda: fast(feature)}, repeat=3)
    print(report)
    print(f"largest difference: {float((found - expected).abs().max()):.1e} of pixels in (0, 1)")
    before, after = times["plain"].median, times["fast"].median
    print(f"a frame: {before * 1e3:.0f} ms as it is, {after * 1e3:.0f} ms accelerated: {before / after:.2f} x")


if __name__ == "__main__":
    main()
