"""Published weights: files with the published names, spectral norm folded, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.networks import Encoder, Generator
from mixsyn_fast.models.clvae.published import load_published

from mixsyn_fast import RegionMap, models

K = 5


def written(folder: Path) -> tuple[Generator, Encoder, Path, Path]:
    """Networks as they are trained, with spectral norm, and their files."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(label_nc=K, ngf=4, image_size=64, hidden=8, z_dim=6, spectral_norm=True)).eval()
    encoder = Encoder(EncoderConfig(ndf=4, z_dim=6, image_size=128, code_length=K, spectral_norm=True)).eval()
    files = folder / "latest_net_G.pth", folder / "latest_net_E.pth"
    for network, file in zip((generator, encoder), files, strict=True):
        torch.save(network.state_dict(), file)
    return generator, encoder, *files


def test_files_give_the_same_image(tmp_path: Path) -> None:
    generator, encoder, file, encoder_file = written(tmp_path)
    ours, encoding = load_published(file, image_size=64), load_published(encoder_file)
    assert isinstance(ours, Generator) and isinstance(encoding, Encoder)
    assert not ours.config.spectral_norm and not any("orig" in name for name in ours.state_dict())
    image, labels = torch.rand(2, 3, 64, 64), torch.randint(0, K, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    regions = RegionMap(labels, K)
    with torch.no_grad():
        codes = encoder(image, regions).codes(K, sample=False)
        found = encoding(image, regions).codes(K, sample=False)
        for a, b in zip((found.z, *found.classes), (codes.z, *codes.classes), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(regions, found), generator(regions, codes), rtol=1e-3, atol=1e-4)
    again = load_published(file, fold_spectral_norm=False, image_size=64)
    assert again.config == generator.config and again.state_dict().keys() == generator.state_dict().keys()
    into = Generator(generator.config)
    assert load_published(file, into) is into


def test_what_does_not_fit(tmp_path: Path) -> None:
    generator, encoder, file, encoder_file = written(tmp_path)
    state = generator.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    damaged = {name: value for name, value in state.items() if name != "embedding.weight"} | {"extra": torch.ones(1)}
    torch.save(damaged | {"embedding.weight": torch.ones(K, K), "up_0.conv_0.bias": torch.ones(3)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"1 unexpected:\n  extra\n1 of another shape:\n  up_0.conv_0.bias"):
        load_published(tmp_path / "bad.pth", generator)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    torch.save(damaged, tmp_path / "spade.pth")
    with pytest.raises(ValueError, match="not a generator or encoder of a class- and layer-wise VAE"):
        load_published(tmp_path / "spade.pth")
    for wrong in (file, encoder_file):  # the other loader says which it is
        with pytest.raises(ValueError, match=r"clvae\.published\.load_published"):
            models.load_published(wrong)
    with pytest.raises(FileNotFoundError):
        load_published(tmp_path / "none.pth")
    with pytest.raises(TypeError, match="config is given"):
        load_published(file, config=generator.config, image_size=64)
    with pytest.raises(TypeError, match="model is given"):
        load_published(file, generator, generator.config)
