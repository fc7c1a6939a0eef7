"""Decoders of diffusers with spatial norms (MoVQ of Kandinsky, CogVideoX) on the CPU, as they are and after accelerate().

    pip install diffusers
    python examples/accelerate_diffusers.py

:func:`main` has the two lines that a user adds. Weights are random and sizes small; benchmarks/run_libraries.py measures
larger ones.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from mixsyn_fast import accelerate
from mixsyn_fast.measure.clock import interleave


def compare(name: str, plain: Callable[[], Tensor], fast: Callable[[], Tensor]) -> None:
    """Print the largest difference and the measured ratio."""
    expected, found = plain(), fast()
    times = interleave({"plain": plain, "fast": fast}, repeat=3)
    difference = float((found - expected).abs().max() / expected.abs().max())
    before, after = times["plain"].median, times["fast"].median
    print(f"{name}: largest difference {difference:.1e} of the largest output")
    print(f"{name}: {before * 1e3:.0f} ms as it is, {after * 1e3:.0f} ms accelerated: {before / after:.2f} x")


def main(latent: int = 8) -> int:
    """Print reports, largest differences and measured ratios; returns 2 where diffusers is not installed."""
    try:
        from diffusers import AutoencoderKLCogVideoX, VQModel
    except Exception as error:  # it wants packages of its own, any of which may be missing
        print(f"this example needs diffusers: pip install diffusers ({error})", file=sys.stderr)
        return 2
    torch.manual_seed(0)

    movq = VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64), layers_per_block=1, latent_channels=4, vq_embed_dim=4, norm_type="spatial",
    ).eval()  # fmt: skip
    fast = copy.deepcopy(movq)  # to compare with: your own code accelerates the model that it has
    report = accelerate(fast)  # <- line 2 (line 1: from mixsyn_fast import accelerate)
    z = torch.randn(1, 4, 2 * latent, 2 * latent)
    with torch.no_grad():
        decode = [lambda vq=vq: vq.decode(z, force_not_quantize=True).sample for vq in (movq, fast)]
        compare("decoding with MoVQ", *decode)
    print(report)

    video = AutoencoderKLCogVideoX(block_out_channels=(32, 32, 32, 64), layers_per_block=1, latent_channels=8).eval()
    fast = copy.deepcopy(video)
    report = accelerate(fast)
    z = torch.randn(1, 8, 3, latent, latent)  # nine frames
    with torch.no_grad():
        decode = [lambda vae=vae: vae.decode(z).sample for vae in (video, fast)]
        compare("decoding with CogVideoX", *decode)
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
