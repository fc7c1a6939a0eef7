"""MONAI's SPADE diffusion U-Net and its SPADE generator on the CPU, as they are and after accelerate().

    pip install monai einops
    python examples/accelerate_monai.py

:func:`main` has the three lines that a user adds. Weights are random and sizes small; benchmarks/run_libraries.py measures
larger ones, in two and three dimensions, on real label maps.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import accelerate, constant_conditioning
from mixsyn_fast.measure.clock import interleave


def rings(size: int, classes: int) -> Tensor:
    """Return a one-hot map (1, classes, size, size) of rings."""
    radius = torch.cartesian_prod(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size)).norm(dim=1)
    labels = (radius * classes).long().clamp(max=classes - 1).view(1, size, size)
    return F.one_hot(labels, classes).permute(0, 3, 1, 2).float()


def compare(name: str, plain: Callable[[], Tensor], fast: Callable[[], Tensor]) -> None:
    """Print the largest difference and the measured ratio."""
    expected, found = plain(), fast()
    times = interleave({"plain": plain, "fast": fast}, repeat=3)
    difference = float((found - expected).abs().max() / expected.abs().max())
    before, after = times["plain"].median, times["fast"].median
    print(f"{name}: largest difference {difference:.1e} of the largest output")
    print(f"{name}: {before * 1e3:.0f} ms as it is, {after * 1e3:.0f} ms accelerated: {before / after:.2f} x")


def main(size: int = 64, classes: int = 8) -> int:
    """Print reports, largest differences and measured ratios; returns 2 where MONAI is not installed."""
    try:
        import einops  # noqa: F401 - of its attention
        from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet
        from monai.networks.nets.spade_network import SPADENet
    except ImportError as error:
        print(f"this example needs MONAI: pip install monai einops ({error})", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    segmap = rings(size, classes)

    unet = SPADEDiffusionModelUNet(2, 1, 1, classes, channels=(32, 64), num_res_blocks=1, attention_levels=(False, False))
    for parameter in unet.eval().parameters():
        if not parameter.any():  # the zeros that training begins with would hide every difference
            nn.init.normal_(parameter, std=0.05)
    fast = copy.deepcopy(unet)  # to compare with: your own code accelerates the model that it has
    report = accelerate(fast)  # <- line 2 (line 1: from mixsyn_fast import accelerate, constant_conditioning)
    x, step = torch.randn(1, 1, size, size), torch.tensor([500])
    with torch.no_grad(), constant_conditioning(fast) as kept:  # <- line 3, around the sampler's loop
        compare("a step of SPADEDiffusionModelUNet", lambda: unet(x, step, segmap), lambda: fast(x, step, segmap))
        print(report)
        print(kept)

    generator = SPADENet(2, 1, 1, classes, [size, size], [32, 16], is_vae=False, spade_intermediate_channels=64).eval()
    fast = copy.deepcopy(generator)
    report = accelerate(fast)
    with torch.no_grad():
        compare("SPADENet", lambda: generator(segmap)[0], lambda: fast(segmap)[0])
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
