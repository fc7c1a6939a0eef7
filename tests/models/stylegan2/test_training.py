"""Training of StyleGAN2: its phases, its losses, a run through the command, resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models import stylegan2
from mixsyn_fast.models.augmentation import AugmentConfig
from mixsyn_fast.models.data import ImageBatch
from mixsyn_fast.models.stylegan2 import Discriminator, Generator
from mixsyn_fast.models.training.command import run
from mixsyn_fast.models.training.trained import load_trained
from mixsyn_fast.models.unconditional import Config, StyleGAN2Task, fitted
from PIL import Image

from mixsyn_fast import use_plan

TINY = Config(
    stylegan2.Config(size=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8),
    r1_every=4,
    path_length_every=2,
    augment=AugmentConfig(speed=100, interval=1),
)


def batch(count: int = 4) -> ImageBatch:
    rng = torch.Generator().manual_seed(0)
    return ImageBatch(torch.rand(count, 3, 16, 16, generator=rng) * 2 - 1, ("x",) * count, torch.arange(count))


def task(**fields: Any) -> StyleGAN2Task:
    torch.manual_seed(0)
    return StyleGAN2Task(replace(TINY, **fields))


def test_regularisations_are_phases_with_a_period_that_step_the_optimiser_of_what_they_regularise() -> None:
    phases = task().phases
    assert [(name, phase.every, phase.shares) for name, phase in phases.items()] == [
        ("generator", 1, ""),
        ("discriminator", 1, ""),
        ("path_length", 2, "generator"),
        ("r1", 4, "discriminator"),
    ]
    assert phases["generator"].lr == pytest.approx(0.002 * 2 / 3) and phases["r1"].lr == pytest.approx(0.002 * 4 / 5)
    assert phases["discriminator"].betas == pytest.approx((0.0, 0.99 ** (4 / 5)))
    without = task(r1=0.0, path_length=0.0).phases
    assert list(without) == ["generator", "discriminator"] and without["generator"].lr == 0.002
    assert list(StyleGAN2Task(TINY, training=False).networks) == ["generator"]


def test_losses_are_those_of_the_papers() -> None:
    made, data = task(mixing=0.0), batch()
    generator, judge = made.networks["generator"], made.networks["discriminator"]
    assert isinstance(generator, Generator) and isinstance(judge, Discriminator)

    def images() -> torch.Tensor:
        torch.manual_seed(7)
        w = generator.map(torch.randn(4, 8))
        torch.rand(2)
        return generator.synthesis(generator.styles(w), "random")

    fake = images()
    expected = {
        "generator": F.softplus(-judge(fake)).mean(),
        "discriminator": F.softplus(-judge(data.image)).mean() + F.softplus(judge(fake)).mean(),
    }
    real = data.image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(real).sum(), real)
    expected["r1"] = 10 / 2 * 4 * gradient.square().sum((1, 2, 3)).mean()
    for phase, right in expected.items():
        torch.manual_seed(7)
        (loss,) = made.losses(phase, data, 0).values()
        torch.testing.assert_close(loss, right)
    torch.testing.assert_close(generator.w_mean, 0.005 * generator.map(_z(7)).mean(0))  # tracked once, by its own phase
    with pytest.raises(ValueError, match="phase: expected one of generator, discriminator, path_length, r1, got 'x'"):
        made.losses("x", data, 0)


def _z(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(4, 8)


@pytest.mark.parametrize("phase", ["generator", "path_length", "r1"])
def test_gradients_are_those_of_the_published_form(phase: str) -> None:
    """Second derivatives among them: weights per sample and scaled inputs agree in double precision."""
    found = {}
    for plan in ("auto", "dense"):
        made = task()
        for network in made.networks.values():
            network.double()
        data = batch()
        data = ImageBatch(data.image.double(), data.names, data.index)
        torch.set_default_dtype(torch.float64)
        try:
            torch.manual_seed(3)
            with use_plan(plan):
                sum(made.losses(phase, data, 0).values()).backward()  # type: ignore[union-attr]
        finally:
            torch.set_default_dtype(torch.float32)
        found[plan] = {n: p.grad for network in made.networks.values() for n, p in network.named_parameters()}
    assert any(g is not None and g.abs().max() > 0 for g in found["auto"].values())
    for name, gradient in found["dense"].items():
        other = found["auto"][name]
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(other, gradient, rtol=1e-7, atol=1e-9)


def test_half_precision_spares_what_squares_gradients() -> None:
    found: dict[str, list[torch.Tensor]] = {}
    for half in (False, True):
        for phase in ("generator", "discriminator", "path_length", "r1"):
            made = task()
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                (loss,) = made.losses(phase, batch(), 0).values()
            loss.float().backward()
            gradients = [p.grad for net in made.networks.values() for p in net.parameters() if p.grad is not None]
            assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in gradients)
            found.setdefault(phase, []).append(loss.detach().float())
    for phase, (plain, under) in found.items():
        tolerance = 0.0 if phase in ("path_length", "r1") else 0.05
        torch.testing.assert_close(under, plain, rtol=tolerance, atol=tolerance)


def test_mixed_codes_differ_from_a_layer_on() -> None:
    made = task(mixing=1.0)
    torch.manual_seed(0)
    w = made.codes(4, batch().image)
    same = [bool(torch.equal(w[:, 0], w[:, i])) for i in range(w.shape[1])]
    first = same.index(False)
    assert first >= 1 and same[:first] == [True] * first and not any(same[first:])
    w = task(mixing=0.0).codes(4, batch().image)
    assert torch.equal(w[:, 0], w[:, -1])


def test_augmentation_follows_the_signs_of_real_images() -> None:
    made = task()
    judge = made.networks["discriminator"]
    assert isinstance(judge, Discriminator)
    with torch.no_grad():
        judge.final_linear[1].bias.fill_(100.0)  # it knows every picture
    made.losses("discriminator", batch(), 0)
    made.losses("discriminator", batch(), 0)  # another micro-batch of the step
    assert made.probability.p == 0
    made.losses("discriminator", batch(), 1)  # the signs of the step before
    assert made.probability.p == pytest.approx(8 / 100)
    with torch.no_grad():
        judge.final_linear[1].bias.fill_(-100.0)
    made.losses("discriminator", batch(), 2)
    made.losses("discriminator", batch(), 3)
    assert made.probability.p == pytest.approx((8 + 4 - 4) / 100)
    state = json.loads(json.dumps(made.state()))
    other = task()
    other.load_state(state)
    assert other.state() == state


def test_what_the_data_decides() -> None:
    assert fitted(TINY, (), (32, 32), False).generator.size == 32
    with pytest.raises(ValueError, match="size: expected a square, got 16 x 32"):
        fitted(TINY, (), (16, 32), False)
    for fields, message in (
        ({"mixing": 1.5}, r"mixing: expected a number in \[0, 1\], got 1.5"),
        ({"betas": (-0.5, 0.9)}, r"betas: expected two numbers in \[0, 1\), got \(-0.5, 0.9\)"),
        ({"r1": -1.0}, "r1: expected 0 or more, got -1.0"),
        ({"r1_every": 0}, "r1_every: expected at least 1, got 0"),
        ({"generator_lr": 0.0}, "generator_lr: expected a positive number, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **fields)  # type: ignore[arg-type]


def test_a_run_on_plain_pictures_and_its_resume(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "set" / f"{i}.png")
    words = f"stylegan2 --data {tmp_path / 'set'} --kind images --validation none --size 16 --batch-size 4 --workers 0"
    words += " --generator.z-dim 8 --generator.w-dim 8 --generator.mapping-layers 2 --generator.channel-base 64"
    words += " --generator.channel-max 8 --r1-every 2 --path-length-every 2 --augment.speed 50 --log-every 1 --sheet-every 4"
    words += " --save-every 2 --augment.interval 1"
    assert run([*words.split(), "--steps", "4", "--out", str(tmp_path / "whole")]) == 0
    assert run([*words.split(), "--steps", "2", "--out", str(tmp_path / "parts")]) == 0
    assert run([*words.split(), "--steps", "4", "--out", str(tmp_path / "parts")]) == 0
    whole, parts = (load_trained(tmp_path / name) for name in ("whole", "parts"))
    for name, value in whole.networks["generator"].state_dict().items():
        assert torch.equal(value, parts.networks["generator"].state_dict()[name]), name
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [{k for k in entry if "/" in k and not k.startswith("lr")} for entry in logged][:2] == [
        {"generator/gan", "discriminator/gan", "path_length/path_length", "r1/r1", "judged/real_logit_std"},
        {"generator/gan", "discriminator/gan"},
    ]
    assert (tmp_path / "whole" / "samples" / "samples_00000004.png").exists()
    assert whole.generate(batch(3)).shape == (3, 3, 16, 16)
