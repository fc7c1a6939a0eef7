"""diffusers' own norms that read a latent, SpatialNorm (MoVQ) and CogVideoX's of video, with their decoders."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mixsyn_fast import accelerate
from tests.compat.agree import accelerated, assert_module, assert_outputs, assert_trains, drawn

try:  # it wants packages of its own, any of which may be missing
    from diffusers import AutoencoderKLCogVideoX, VQModel
    from diffusers.models.attention_processor import SpatialNorm
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
except Exception as error:
    pytest.skip(f"diffusers does not import here ({error}): make compat", allow_module_level=True)


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[2]))


def test_spatial_norm() -> None:
    """Of a latent at a quarter of the size, and of one of the same size; gradients to the latent."""
    plain, f = drawn(SpatialNorm(32, 4)), values(2, 32, 16, 16)
    for zq in (values(2, 4, 4, 4), values(2, 4, 16, 16)):
        assert_outputs(plain, [f, zq], 1)
    assert_trains(plain, [f, values(2, 4, 4, 4)], 1)
    assert_trains(plain, [values(2, 4, 4, 4), f], 1, lambda model, given: model(given[1], given[0]))
    assert_module(plain, [f, values(2, 4, 4, 4)], 1)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 2), (5, 3), (9, 3), (5, 5)])
def test_video_norm(frames: int, latents: int) -> None:
    """The first of an odd number of frames is resized alone."""
    plain = drawn(CogVideoXSpatialNorm3D(32, 4))
    given = [values(1, 32, frames, 6, 4), values(1, 4, latents, 3, 2)]
    assert_outputs(plain, given, 1)
    if frames == 5:
        assert_trains(plain, given, 1)
        assert_module(plain, given, 1)


def test_caches_of_video() -> None:
    """A kernel of one frame sees none before it, so none are kept; what is handed on works in any layer, theirs and ours."""
    plain = drawn(CogVideoXSpatialNorm3D(32, 4))
    fast = accelerated(plain, 1)
    f, zq = values(1, 32, 5, 6, 4), values(1, 4, 3, 3, 2)
    with torch.no_grad():
        (expected, theirs), (y, ours) = plain(f, zq), fast(f, zq)
        assert list(ours) == list(theirs) and all(value.numel() == 0 for value in ours.values())
        assert {value.shape[:2] + value.shape[3:] for value in ours.values()} == {
            value.shape[:2] + value.shape[3:] for value in theirs.values()
        }
        for cache in (ours, theirs):
            assert torch.equal(plain(f, zq, conv_cache=cache)[0], expected)
            assert torch.equal(fast(f, zq, conv_cache=cache)[0], y)
            assert torch.equal(fast(f, zq, cache)[0], y)


def test_a_video_norm_that_reads_its_cache() -> None:
    """It keeps its own forward."""

    class Reads(CogVideoXSpatialNorm3D):
        def forward(
            self, f: Tensor, zq: Tensor, conv_cache: dict[str, Tensor] | None = None
        ) -> tuple[Tensor, dict[str, Tensor]]:
            y, cache = super().forward(f, zq, conv_cache)
            return y if conv_cache is None else y + conv_cache["conv_y"].sum(), cache

    report = accelerate(nn.ModuleDict({"a": Reads(32, 4)}))
    assert not report.count("spade") and "reads its cache" in report.left[0].note, str(report)


def decoded(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    result: Tensor = model.decode(inputs[0]).sample
    return result


def test_movq_decodes() -> None:
    plain = drawn(
        VQModel(
            block_out_channels=(32, 32), norm_num_groups=8, norm_type="spatial", num_vq_embeddings=16, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )
    )  # fmt: skip
    spatial = [module for module in plain.modules() if type(module) is SpatialNorm]
    assert len(spatial) >= 12

    def decode(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        result: Tensor = model.decode(inputs[0], force_not_quantize=True).sample
        return result

    assert_outputs(plain, [values(1, 3, 4, 4)], len(spatial), decode, only=False)
    assert_trains(plain, [values(1, 3, 4, 4)], len(spatial), decode, only=False)


@pytest.mark.parametrize("frames", [3, 4])
def test_cogvideox_decodes(frames: int) -> None:
    """Frame batches, each with the caches of the one before."""
    plain = drawn(
        AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, sample_height=16,
            sample_width=16, down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        )
    )  # fmt: skip
    spatial = [module for module in plain.modules() if type(module) is CogVideoXSpatialNorm3D]
    assert len(spatial) >= 12
    assert_outputs(plain, [values(1, 4, frames, 2, 2)], len(spatial), decoded, only=False)
    if frames == 3:
        assert_trains(plain, [values(1, 4, frames, 2, 2)], len(spatial), decoded, only=False)
