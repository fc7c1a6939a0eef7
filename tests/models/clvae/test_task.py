"""Training of the class- and layer-wise VAE: its settings, its losses, a run through the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.task import TRAINABLES, CLVAETask, Config, fitted
from mixsyn_fast.models.data import Batch, Loader, ProceduralSource, Rarity, RegionDataset, Sample
from mixsyn_fast.models.discriminators import DiscriminatorConfig
from mixsyn_fast.models.training.command import run
from mixsyn_fast.models.training.registry import trainable
from mixsyn_fast.models.training.trained import load_trained
from PIL import Image

from mixsyn_fast import RegionMap, region_map, use_backend, use_plan

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
    assert made.encoder == EncoderConfig(
        ndf=4, z_dim=6, image_size=128, spectral_norm=True, code_length=4, num_levels=3, class_wise=False
    )
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


class Edged:
    """Facades with instance edges, which this model does not read."""

    def __init__(self, source: ProceduralSource) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["source"], name)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        sample = self.source.read(index)
        return replace(sample, instances=sample.labels)


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        (SIZE, {}),
        ((32, 64), {}),  # the encoder reads a square: other sizes than the generator's
        (SIZE, {"class_wise": False, "num_levels": 3}),
        (SIZE, {"layer_wise": False, "num_levels": 6}),
        (SIZE, {"num_levels": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("edges", [False, True], ids=["plain", "edges"])
def test_a_step_makes_no_analysis_that_the_workers_made(
    size: tuple[int, int], fields: dict[str, Any], edges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plans of the workers nothing is left to find in the labels, and the losses are bit-identical."""
    plain = ProceduralSource("procedural_facades", 2, size=size)
    source = Edged(plain) if edges else plain
    config = settings()
    config = fitted(replace(config, generator=replace(config.generator, **fields)), source.classes, size, edges)
    found: list[list[float]] = []
    for planned in (False, True):
        torch.manual_seed(1)
        task = CLVAETask(config)
        dataset = RegionDataset(source, size)
        made = Loader(dataset, 2, workers=planned, plans=task.plans if planned else (), shuffle=False)
        given = next(made)
        made.close()
        assert (given.regions.edges is not None) == edges
        torch.manual_seed(2)
        with use_plan("table"), monkeypatch.context() as patch:  # which networks so small would not take by themselves
            if planned:
                bare = given.regions.without_edges()
                kept = set(bare._cache)
                patch.setattr(region_map, "label_patterns", None)
            losses = [task.losses(phase, given, 0) for phase in ("generator", "discriminator")]
            if planned:
                assert {key[0] for key in set(bare._cache) - kept} <= {"onehot"}
                kinds = {plan.kind for plan in task.plans}
                expected = {"shared"} if fields.get("num_levels") == 1 else {"shared", "classes", "labels"}
                assert kinds == expected - ({"labels"} if fields.get("class_wise") is False else set())
        found.append([value.item() for each in losses for value in each.values()])
    assert found[0] == found[1]


def test_pictures_are_made_of_the_means() -> None:
    task = CLVAETask(fitted(settings(), CLASSES, SIZE, False), training=False)
    for network in task.networks.values():
        network.eval()
    with torch.no_grad():
        first, second = (task.generate(batch(), task.networks) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 3, *SIZE)
    assert "discriminator" not in task.networks


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Eight blue skies over grey roads, the sky of the third one red."""
    root = tmp_path / "streets" / "train"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i in range(8):
        labels = np.zeros((64, 64), np.uint8)
        labels[40:] = 1
        image = np.random.default_rng(i).integers(90, 110, (64, 64, 3)).astype(np.uint8)
        image[:40] = (200, 40, 30) if i == 2 else (90 + i, 140, 220)
        Image.fromarray(image).save(root / "images" / f"p{i}.png")
        Image.fromarray(labels).save(root / "labels" / f"p{i}.png")
    (root.parent / "classes.txt").write_text("sky\nroad\n")
    return root.parent


SMALL = ["--generator.ngf", "2", "--generator.hidden", "4", "--generator.z-dim", "4", "--encoder.ndf", "2"]
SMALL += ["--discriminator.ndf", "2", "--vgg", "0", "--generator.num-levels", "4", "--size", "64", "--batch-size", "2"]


def test_streets_are_rebalanced_and_resumed_bit_for_bit(streets: Path, tmp_path: Path) -> None:
    words = [*SMALL, "--data", str(streets), "--validation", "none", "--workers", "0", "--log-every", "1"]
    words += ["--crop", "random", "--load-size", "72"]

    def train(folder: str, *more: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
        assert run(["clvae", *words, "--out", str(tmp_path / folder), *more]) == 0
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        timed = ("seconds", "_ms", "_per_second", "_gb")
        kept = [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]
        return json.loads((tmp_path / folder / "config.json").read_text()), kept

    config, whole = train("whole", "--steps", "4")
    assert (config["data"]["balance"], config["task"]["loss_mask"]) == ("rare_colours", "rare_colours")
    found = Rarity.load(tmp_path / "whole" / "rarity.json")
    assert found.chances().argmax() == 2 and found.classes == ["sky", "road"]
    train("parts", "--steps", "2")
    _, parts = train("parts", "--steps", "4")
    assert parts == whole and [line["step"] for line in whole] == [1, 2, 3, 4]
    # the two parts of it are switches, and off is off
    config, plain = train("plain", "--steps", "1", "--balance", "none", "--loss-mask", "none")
    assert not (tmp_path / "plain" / "rarity.json").exists() and config["task"]["loss_mask"] == "none"
    config, sampled = train("sampled", "--steps", "1", "--balance", "rare_colours", "--loss-mask", "none")
    assert (config["data"]["balance"], config["task"]["loss_mask"]) == ("rare_colours", "none")
    config, masked = train("masked", "--steps", "1", "--balance", "none")
    assert config["data"]["balance"] == "none" and config["task"]["loss_mask"] == "rare_colours"
    name = "generator/feature_matching"
    _, shrunk = train("shrunk", "--steps", "1", "--balance", "none", "--loss-mask-scale", "maximum")
    assert shrunk[0][name] < plain[0][name] != masked[0][name] and masked[0]["generator/gan"] == plain[0]["generator/gan"]
    assert sampled[0] != plain[0]


def test_a_run_through_the_command(tmp_path: Path) -> None:
    small = [*SMALL, "--kind", "procedural_facades", "--steps", "2", "--workers", "0", "--count", "4"]
    out = tmp_path / "run"
    assert run(["clvae", *small, "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["data"]["balance"], config["task"]["loss_mask"]) == ("none", "none")  # no street scenes
    assert not (out / "rarity.json").exists()
    trained = load_trained(out)
    assert trained.step == 2 and json.loads((out / "config.json").read_text())["model"] == "clvae"
    assert set(trained.networks) == {"generator", "encoder"}
