"""MONAI's own SPADE layers and the networks that have them, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import constant_conditioning
from mixsyn_fast.accelerate import maps
from tests.compat.agree import accelerated, assert_module, assert_outputs, assert_trains, drawn

blocks = pytest.importorskip("monai.networks.blocks.spade_norm", reason="MONAI is not installed: make compat")
nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed: make compat")
K, C = 4, 8
NORMS = {
    "INSTANCE": ("INSTANCE", None),
    "INSTANCE, affine": ("INSTANCE", {"affine": True}),
    "BATCH": ("BATCH", None),
    "GROUP": ("GROUP", {"num_groups": 4, "affine": False}),
    "GROUP, affine": ("GROUP", {"num_groups": 4, "affine": True}),
}


def layer(norm: str, dimensions: int) -> nn.Module:
    kind, parameters = NORMS[norm]
    return drawn(blocks.SPADE(K, C, 3, dimensions, hidden_channels=6, norm=kind, norm_params=parameters))


def labels(dimensions: int, side: int = 12) -> Tensor:
    """A one-hot map (2, K, *) of blocks."""
    found = torch.randint(0, K, (2, *[side // 4] * dimensions), generator=torch.Generator().manual_seed(1))
    for dimension in range(1, dimensions + 1):
        found = found.repeat_interleave(4, dimension)
    return F.one_hot(found, K).movedim(-1, 1).float()


def features(dimensions: int, channels: int = C, side: int = 6) -> Tensor:
    return torch.randn(2, channels, *[side] * dimensions, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_layer(norm: str, dimensions: int) -> None:
    """On a one-hot map, and on dense features of another size."""
    plain, x, segmap = layer(norm, dimensions), features(dimensions), labels(dimensions)
    assert_outputs(plain, [x, segmap], 1)
    assert_outputs(plain, [x, features(dimensions, K, 4)], 1)
    assert_trains(plain, [x, segmap], 1)
    assert_module(plain, [x, segmap], 1)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_map_is_kept_over_calls(dimensions: int) -> None:
    plain, x, segmap = layer("INSTANCE", dimensions).double(), features(dimensions).double(), labels(dimensions).double()
    fast = accelerated(plain, 1)
    with torch.no_grad(), constant_conditioning(fast) as kept:
        for _ in range(3):
            y = fast(x, segmap.clone())
            assert (y - plain(x, segmap)).abs().max() <= 1e-10 * y.abs().max()
    assert (kept.hits, kept.misses) == (2, 1)


def test_spade_net() -> None:
    """Whole, as a VAE, whose reparameterisation draws numbers; through its own methods, too."""
    side = [16, 16]
    plain = drawn(nets.SPADENet(2, 1, 3, K, side, [8, 6], z_dim=5, spade_intermediate_channels=4))

    def call(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        torch.manual_seed(3)
        image, segmap = inputs
        return torch.cat([model(segmap, image)[0], model.decode(segmap, model.encode(image))])

    given = [features(2, 1, 16), labels(2, 16)]
    count = sum(type(module) is blocks.SPADE for module in plain.modules())
    assert count == 6
    assert_outputs(plain, given, count, call)
    assert_trains(plain, given, count, call)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_spade_autoencoder(dimensions: int) -> None:
    plain = drawn(
        nets.SPADEAutoencoderKL(
            dimensions, K, 1, 1, (1, 1), (4, 8), (False, False), 3, norm_num_groups=4, with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False, spade_intermediate_channels=4,
        )
    )  # fmt: skip

    def call(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        torch.manual_seed(3)
        return torch.cat([model(*inputs)[0], model.reconstruct(*inputs)])

    given = [features(dimensions, 1, 8), labels(dimensions, 8)]
    count = sum(type(module) is blocks.SPADE for module in plain.modules())
    assert count == 4
    assert_outputs(plain, given, count, call, only=False)  # blocks of the encoder take a map that they do not read
    assert_trains(plain, given, count, call, only=False)


def test_a_map_is_read_once_by_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which calls the decoder, not the model."""
    plain = drawn(
        nets.SPADEAutoencoderKL(
            2, K, 1, 1, (1, 1), (4, 8), (False, False), 3, norm_num_groups=4, with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False, spade_intermediate_channels=4,
        )
    )  # fmt: skip
    fast, read = accelerated(plain, 4, only=False), []
    own = maps.analyse
    monkeypatch.setattr(maps, "analyse", lambda *given: read.append(1) or own(*given))
    with torch.no_grad():
        z = plain.encode(features(2, 1, 8))[0]
        expected, y = plain.decode(z, labels(2, 8)), fast.decode(z, labels(2, 8))
    assert (y - expected).abs().max() <= 1e-4 * expected.abs().max() and len(read) == 1


@pytest.mark.parametrize("dimensions", [2, 3])
def test_diffusion_model_sampled(dimensions: int) -> None:
    """Twenty steps of DDIM by MONAI's own inferer, with and without keeping what depends on the map alone."""
    inferers = pytest.importorskip("monai.inferers")
    schedulers = pytest.importorskip("monai.networks.schedulers")
    model = nets.SPADEDiffusionModelUNet(
        dimensions, 1, 1, K, 1, (8, 8), (False, True), 4, num_head_channels=4, spade_intermediate_channels=4
    )
    plain = drawn(model).double()
    count = sum(type(module) is blocks.SPADE for module in plain.modules())
    fast = accelerated(plain, count, only=False)
    times = torch.tensor([3.0, 500.0])
    given = [features(dimensions, 1, 8), labels(dimensions, 8)]
    if dimensions == 2:
        assert_outputs(plain, given, count, lambda model, at: model(at[0], times, at[1]), only=False)
        assert_trains(plain, given, count, lambda model, at: model(at[0], times, at[1]), only=False)
    scheduler = schedulers.DDIMScheduler()
    scheduler.set_timesteps(20)
    noise, segmap = features(dimensions, 1, 8).double(), labels(dimensions, 8).double()
    sample = inferers.DiffusionInferer(scheduler).sample
    how = {"input_noise": noise, "seg": segmap, "verbose": False}
    expected = sample(diffusion_model=plain, **how)
    assert (sample(diffusion_model=fast, **how) - expected).abs().max() <= 1e-9 * expected.abs().max()
    with constant_conditioning(fast) as kept:
        assert (sample(diffusion_model=fast, **how) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert (kept.hits, kept.misses) == (19 * count, count)
