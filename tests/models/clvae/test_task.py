"""Training of the class- and layer-wise VAE: its settings, its losses, a run through the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.task import TRAINABLES, CLVAETask, Config, fitted
from mixsyn_fast.models.data import Batch
from mixsyn_fast.models.discriminators import DiscriminatorConfig
from mixsyn_fast.models.training.command import run
from mixsyn_fast.models.training.registry import trainable
from mixsyn_fast.models.training.trained import load_trained

from mixsyn_fast import RegionMap, use_backend, use_plan

CLASSES, SIZE = ("wall", "window", "door", "sky"), (64, 64)


def settings(**fields) -> Config:
    return Config(
        generator=GeneratorConfig(ngf=4, hidden=8, z_dim=6, spectral_norm=True),
        encoder=EncoderConfig(ndf=4, spectral_norm=True),
        discriminator=DiscriminatorConfig(ndf=4),
        vgg=0.0,
        **fields,
    )


def batch(size: tuple[int, int] = SIZE) -> Batch:
    torch.manual_seed(0)
    cells = torch.randint(0, 3, (2, 4, 4)).repeat_interleave(size[0] // 4, 1).repeat_interleave(size[1] // 4, 2)
    return Batch(torch.rand(2, 3, *size).mul(2).sub(1), RegionMap(cells, 4), ("a", "b"), torch.arange(2))


def test_the_data_and_the_generator_decide_the_encoder() -> None:
    config = replace(settings(), generator=replace(settings().generator, num_levels=3, class_wise=False))
    made = fitted(config, CLASSES, SIZE, True)
    assert made.generator.label_nc == 4 and not made.generator.edges and not made.discriminator.edges
    assert made.encoder == EncoderConfig(4, 6, 128, True, 4, 3, False, True)
    assert fitted(config, CLASSES, (256, 256), False).encoder.image_size == 256
    assert trainable("clvae") is TRAINABLES["clvae"]


@pytest.mark.parametrize(("rates", "expected"), [("code", (1e-4, 4e-4)), ("paper", (4e-4, 1e-4)), ("own", (1e-3, 2e-3))])
def test_learning_rates(rates: str, expected: tuple[float, float]) -> None:
    config = fitted(settings(rates=rates, generator_lr=1e-3, discriminator_lr=2e-3), CLASSES, SIZE, False)
    task = CLVAETask(config)
    assert (task.phases["generator"].lr, task.phases["discriminator"].lr) == expected
    assert task.phases["generator"].networks == ("generator", "encoder")
    with pytest.raises(ValueError, match="rates: expected one of code, paper, own; got 'fast'"):
        settings(rates="fast")


def test_losses_and_gradients_as_the_dense_form() -> None:
    """Eq. 7 and 18 in float64; both plans from the same draws."""
    found = []
    for plan, backend in (("table", "auto"), ("dense", "reference")):
        torch.manual_seed(1)
        task = CLVAETask(fitted(settings(), CLASSES, SIZE, False))
        for network in task.networks.values():
            network.double()
        given = batch()
        given = replace(given, image=given.image.double())
        torch.manual_seed(2)
        with use_plan(plan), use_backend(backend):
            losses = task.losses("generator", given, 0)
            sum(losses.values()).backward()
        grads = {
            n: p.grad for name in ("generator", "encoder") for n, p in task.networks[name].named_parameters(prefix=name)
        }
        found.append((losses, grads))
    (losses, grads), (dense, expected) = found
    assert set(losses) == {"gan", "feature_matching", "kld"}
    for name, value in losses.items():
        assert torch.allclose(value, dense[name], rtol=1e-10), name
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, grad in grads.items():
        assert grad is not None and (grad - expected[name]).abs().max() <= 1e-9 * largest, name


def test_pictures_are_made_of_the_means() -> None:
    task = CLVAETask(fitted(settings(), CLASSES, SIZE, False), training=False)
    for network in task.networks.values():
        network.eval()
    with torch.no_grad():
        first, second = (task.generate(batch(), task.networks) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 3, *SIZE)
    assert "discriminator" not in task.networks


def test_a_run_through_the_command(tmp_path: Path) -> None:
    small = ["--generator.ngf", "2", "--generator.hidden", "4", "--generator.z-dim", "4", "--encoder.ndf", "2"]
    small += ["--discriminator.ndf", "2", "--vgg", "0", "--generator.num-levels", "4", "--kind", "procedural_facades"]
    small += ["--size", "64", "--steps", "2", "--batch-size", "2", "--workers", "0", "--count", "4"]
    out = tmp_path / "run"
    assert run(["clvae", *small, "--out", str(out)]) == 0
    trained = load_trained(out)
    assert trained.step == 2 and json.loads((out / "config.json").read_text())["model"] == "clvae"
    assert set(trained.networks) == {"generator", "encoder"}
