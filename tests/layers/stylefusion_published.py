"""StyleFusion's networks as the published weights want them: one layer of one sample at a time, in plain PyTorch.

Written from the description of the architecture, without the library: a yardstick. The names of the parameters are those of
the published files. A style code is a list of vectors (1, C) of the conv layers and one of the RGB layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Lists = tuple[list[Tensor], list[Tensor]]
COARSE = 5
FACES = {
    "all": ("face", "bg_hair_clothes"),
    "face": ("skin_mouth", "eyes"),
    "skin_mouth": ("mouth", "skin"),
    "bg_hair_clothes": ("bg_clothes", "hair"),
    "bg_clothes": ("clothes", "bg"),
}


class ScaledLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / 0.01)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * (0.01 / self.weight.shape[1] ** 0.5)
        return F.leaky_relu(F.linear(x, weight, self.bias * 0.01), 0.2) * 2**0.5


class Blender(nn.Module):
    def __init__(self, hidden: int, with_extra: bool, depth: int = 512) -> None:
        super().__init__()
        self.depth, self.with_extra = depth, with_extra
        sizes = [2 * depth + 190 + (depth if with_extra else 0), hidden, hidden, hidden, depth, depth]
        self.disentangle_net = nn.Sequential(*(ScaledLinear(sizes[i], sizes[i + 1]) for i in range(5)))

    def upsample(self, vector: Tensor) -> Tensor:
        return F.interpolate(vector[:, None], size=self.depth, mode="nearest")[:, 0]

    def forward(self, a: Tensor, b: Tensor, number: int, rgb_bit: bool, extra: Tensor | None, on_b: bool) -> Tensor:
        width = a.shape[1]
        a, b = self.upsample(a), self.upsample(b)
        marks = torch.zeros(1, 19, dtype=a.dtype)
        marks[0, number] = 1
        marks[0, 18] = float(rgb_bit)
        inputs = [a, b]
        if self.with_extra:
            inputs.append(torch.zeros_like(a) if extra is None else self.upsample(extra))
        inputs.append(torch.cat([marks] * 10, 1))
        q = torch.sigmoid(self.disentangle_net(torch.cat(inputs, 1)))
        mixed = (1 - q) * a + q * b if on_b else q * a + (1 - q) * b
        return F.max_pool1d(mixed, self.depth // width)


class PublishedFusionNet(nn.Module):
    def __init__(self, hidden: int = 2560, on_b: bool = True, depth: int = 512) -> None:
        super().__init__()
        self.blender_segments = Blender(hidden, True, depth)
        self.blender_common = Blender(hidden, False, depth)
        self.on_b = on_b

    def align(self, code: Lists, s_align: Lists, first_stage: bool = False) -> Lists:
        result: Lists = ([], [])
        for kind in (0, 1):
            for number, (vector, other) in enumerate(zip(code[kind], s_align[kind], strict=True)):
                if number < COARSE:
                    bit = first_stage and kind == 1
                    vector = self.blender_common(vector, other, number, bit, None, self.on_b)
                result[kind].append(vector)
        return result

    def one_sample(self, s0: Lists, s1: Lists, s_align: Lists) -> Lists:
        x0, x1 = self.align(s0, s_align), self.align(s1, s_align)
        result: Lists = ([], [])
        for kind in (0, 1):
            for number, (a, b) in enumerate(zip(x0[kind], x1[kind], strict=True)):
                extra = s_align[kind][number] if number < COARSE else None
                result[kind].append(self.blender_segments(a, b, number, False, extra, self.on_b))
        return result

    def forward(self, s0: Tensor, s1: Tensor, s_align: Tensor, conv: list[int], rgb: list[int]) -> Tensor:
        """Codes (B, S), conv vectors first."""
        rows = []
        for sample in range(s0.shape[0]):
            lists = [as_lists(code[sample : sample + 1], conv, rgb) for code in (s0, s1, s_align)]
            convs, rgbs = self.one_sample(lists[0], lists[1], lists[2])
            rows.append(torch.cat([*convs, *rgbs], 1))
        return torch.cat(rows)


def as_lists(code: Tensor, conv: list[int], rgb: list[int]) -> Lists:
    parts = list(code.split([*conv, *rgb], 1))
    return parts[: len(conv)], parts[len(conv) :]
