"""Harmony: composites have the other region's colours, the classifier learns them, its file, its score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import Batch, RegionDataset, Sample
from mixsyn_fast.models.harmony import (
    NOISE,
    TRAINABLES,
    Config,
    HarmonyTask,
    colour_statistics,
    composites,
    fitted,
    load_classifier,
    recoloured,
)
from mixsyn_fast.models.metrics.harmony import (
    HarmonyClassifier,
    HarmonyConfig,
    harmony_score,
    save_classifier,
)
from mixsyn_fast.models.settings import to_dict
from mixsyn_fast.models.training import Options, train
from mixsyn_fast.models.training.distributed import World
from mixsyn_fast.models.training.registry import trainable
from torch import Tensor

from mixsyn_fast import RegionMap

SIZE, K = 16, 3
SMALL = HarmonyConfig(width=4, halvings=2)
WORLD = World(0, 1, 0, torch.device("cpu"))


class Lit:
    """Pictures of one light each: a square (region 1) on a ground (0), both in its colour; region 2 is nowhere."""

    name, classes, swaps, default_size = "lit", ("ground", "square", "nothing"), (), (SIZE, SIZE)

    def __len__(self) -> int:
        return 12

    def names(self) -> list[str]:
        return [f"p{i:02d}" for i in range(12)]

    def read(self, index: int) -> Sample:
        generator = np.random.default_rng(index)
        labels = np.zeros((SIZE, SIZE), np.int32)
        labels[4:12, 4:12] = 1
        light = generator.uniform(0.2, 1.0, 3)
        image = generator.integers(100, 200, (SIZE, SIZE, 1)) * light
        return Sample(image.astype(np.uint8), labels, None, f"p{index:02d}")


def lit(*indices: int) -> Batch:
    dataset = RegionDataset(Lit(), SIZE)
    made: Batch = dataset.collate(())([dataset[i] for i in indices])
    return made


def task_of(**fields: Any) -> HarmonyTask:
    return HarmonyTask(fitted(Config(classifier=SMALL, **fields), Lit.classes, (SIZE, SIZE), False))


# --- composites ------------------------------------------------------------------------------------------------------------


def test_statistics_of_a_regions_colours() -> None:
    image, mask = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8) > 0.5
    mask[1] = False
    mean, covariance = colour_statistics(image, mask)
    colours = image[0, :, mask[0, 0]].double()
    assert torch.allclose(mean[0], colours.mean(1)) and torch.allclose(covariance[0], torch.cov(colours, correction=0))
    assert bool((mean[1] == 0).all()) and bool((covariance[1] == 0).all())


def test_recoloured_regions_have_the_others_mean_and_covariance() -> None:
    """Up to rounding to 8 bits and the noise on the diagonals; outside nothing changes."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.tensor([[0.2, 0.1, 0.0], [0.0, 0.1, 0.05], [0.05, 0.0, 0.15]])
    image = torch.einsum("cd,bdhw->bchw", mix, torch.randn(2, 3, 24, 24, generator=generator)) + 0.1
    other = torch.randn(2, 3, 16, 16, generator=generator) * 0.1 - 0.2
    mask, other_mask = torch.zeros(2, 1, 24, 24, dtype=torch.bool), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[:, :, 4:20] = True
    made = recoloured(image, mask, other, other_mask)
    assert torch.equal(made.masked_select(~mask), image.masked_select(~mask))
    for (found, expected), tolerance in zip(
        zip(colour_statistics(made, mask), colour_statistics(other, other_mask), strict=True), (2e-3, 1e-3), strict=True
    ):
        assert (found - expected).abs().max() < tolerance
    levels = (made.masked_select(mask) + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3
    # the map is symmetric and positive: of all that give this covariance the one that moves colours least
    before, after = (x.double()[0, :, mask[0, 0]] for x in (image, made))
    centred = before - before.mean(1, keepdim=True)
    change = (after - after.mean(1, keepdim=True)) @ centred.T @ torch.linalg.inv(centred @ centred.T)
    assert (change - change.T).abs().max() < 0.02 and bool((torch.linalg.eigvalsh(change) > 0).all())


def test_a_region_of_one_colour_is_moved_and_not_blown_up() -> None:
    image = torch.full((1, 3, 8, 8), 0.5)
    other = torch.randn(1, 3, 8, 8) * 0.1 - 0.5
    whole = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    made = recoloured(image, whole, other, whole)
    assert (made - other.mean((2, 3), keepdim=True)).abs().max() < 2 / 255
    same = recoloured(other.clamp(-1, 1), whole, other.clamp(-1, 1), whole)
    assert (same - other.clamp(-1, 1)).abs().max() < 1.1 / 255 and NOISE < 1e-4


def test_composites_recolour_one_region_that_another_picture_has() -> None:
    config = task_of(least_change=0.0).config
    batch = lit(0, 1, 2, 3)
    made = composites(batch.image, batch.regions, config)
    assert made.made.tolist() == [True] * 4  # region 0 has 75 % of the pixels: the square is the one
    labels = batch.regions.labels_at()
    assert torch.equal(made.mask[:, 0], labels == 1)
    assert torch.equal(made.image.masked_select(~made.mask), batch.image.masked_select(~made.mask))
    means = [colour_statistics(batch.image[i : i + 1], made.mask[i : i + 1])[0][0] for i in range(4)]
    for i in range(4):
        found = colour_statistics(made.image[i : i + 1], made.mask[i : i + 1])[0][0]
        assert min(float((found - mean).abs().max()) for j, mean in enumerate(means) if j != i) < 0.01, i
    both = replace(config, largest=1.0)
    regions = {
        int(labels[0][made.mask[0, 0]][0]) for made in (composites(batch.image, batch.regions, both) for _ in range(20))
    }
    assert regions == {0, 1}


def test_what_has_no_partner_or_does_not_change_is_no_composite() -> None:
    config, batch = task_of().config, lit(0, 0)
    assert not composites(batch.image, batch.regions, config).made.any()  # the same picture: no change
    labels = lit(0, 1).regions.labels_at().clone()
    labels[1] = 0
    alone = composites(lit(0, 1).image, RegionMap(labels, K), config)
    assert not alone.made.any() and torch.equal(alone.image, lit(0, 1).image)
    tiny = labels.clone()
    tiny[:], tiny[:, 0, 0] = 0, 2  # one pixel of 256
    assert not composites(lit(0, 1).image, RegionMap(tiny, K), config).made.any()


# --- classifier ------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_probability_of_a_picture() -> None:
    network = HarmonyClassifier(SMALL).eval()
    image, mask = torch.rand(3, 3, 16, 24), (torch.rand(3, 1, 16, 24) > 0.5).float()
    logits = network(image, mask)
    assert logits.shape == (3,)
    assert torch.allclose(harmony_score(network, image, mask), 1 / (1 + (-logits).exp()))
    assert not torch.allclose(network(image, 1 - mask), logits)  # it sees which region is meant
    assert network(image[:0], mask[:0]).shape == (0,)
    whole = network(image, torch.ones_like(mask))
    assert bool(torch.isfinite(whole).all())
    logits.sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ((1, 3, 2, 8), (1, 1, 2, 8), r"image: expected shape \(B, 3, H, W\), H and W at least 4, got \(1, 3, 2, 8\)"),
        ((1, 4, 8, 8), (1, 1, 8, 8), r"image: expected shape \(B, 3, H, W\)"),
        ((1, 3, 8, 8), (1, 8, 8), r"mask: expected shape \(1, 1, 8, 8\), got \(1, 8, 8\)"),
    ],
)
def test_shapes_that_do_not_fit(image: tuple[int, ...], mask: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarmonyClassifier(SMALL)(torch.zeros(image), torch.zeros(mask))


def test_a_score_wants_a_mask_of_two_values() -> None:
    with pytest.raises(ValueError, match="mask: expected values 0 and 1, got others"):
        harmony_score(HarmonyClassifier(SMALL), torch.zeros(1, 3, 8, 8), torch.full((1, 1, 8, 8), 0.5))


# --- training --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_binary_cross_entropy() -> None:
    task, batch = task_of(), lit(0, 1, 2, 3)
    torch.manual_seed(1)
    loss = task.losses("classifier", batch, 0)["cross_entropy"]
    torch.manual_seed(1)
    made = composites(batch.image, batch.regions, task.config)
    network, kept = task.networks["classifier"], made.made
    assert kept.any()
    of_real = network(batch.image[kept], made.mask[kept]).sigmoid()
    of_made = network(made.image[kept], made.mask[kept]).sigmoid()
    assert torch.allclose(loss, -torch.cat((of_real.log(), (1 - of_made).log())).mean())
    nothing = task.losses("classifier", lit(0, 0), 0)["cross_entropy"]
    nothing.backward()
    assert nothing == 0 and all(p.grad is not None and bool((p.grad == 0).all()) for p in network.parameters())
    with pytest.raises(ValueError, match="batch_size: expected at least 2 pictures per process and micro-batch, .* got 1"):
        task.losses("classifier", lit(0), 0)


def test_figures_and_sheets() -> None:
    task, batch = task_of(), lit(0, 1, 2, 3)
    with torch.no_grad():
        torch.manual_seed(2)
        figures = task.validate(batch, task.networks)
        torch.manual_seed(2)
        of_real, of_made = task.logits(batch, task.networks)
    right = int((of_real > 0).sum() + (of_made <= 0).sum())
    assert figures["accuracy"].sum() == right and len(figures["accuracy"]) == 2 * len(of_real)
    assert torch.allclose(figures["score_composites"], of_made.sigmoid()) and task.best == "accuracy"
    assert task.validate(lit(0), task.networks) == {}
    assert [len(row) for row in task.sheet(batch, task.networks)] == [4] * 4
    assert task.generate(batch, task.networks).shape == batch.image.shape


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder after enough steps to tell pictures of one light from composites of two."""
    out = tmp_path_factory.mktemp("harmony") / "run"
    torch.manual_seed(0)
    task = task_of(lr=5e-3)
    chosen = Options(
        out=str(out), steps=60, batch_size=6, workers=0, ema_decay=0.5, sheet_every=0, save_every=60, validate_every=30
    )
    whole = {"model": "harmony", "task": to_dict(task.config), "classes": list(Lit.classes)}
    train(task, chosen, RegionDataset(Lit(), SIZE, flip=0.5), RegionDataset(Lit(), SIZE), config=whole, world=WORLD)
    yield out


def scores(network: HarmonyClassifier) -> tuple[Tensor, Tensor]:
    batch = lit(*range(12))
    torch.manual_seed(3)
    made = composites(batch.image, batch.regions, task_of().config)
    of_real = harmony_score(network, batch.image[made.made], made.mask[made.made])
    return of_real, harmony_score(network, made.image[made.made], made.mask[made.made])


def test_it_learns_and_its_file_is_the_run(run: Path, tmp_path: Path) -> None:
    network = load_classifier(run)
    of_real, of_made = scores(network)
    assert float(of_real.mean() - of_made.mean()) > 0.2
    assert float(torch.cat((of_real > 0.5, of_made <= 0.5)).float().mean()) > 0.75
    file = tmp_path / "classifier.safetensors"
    save_classifier(network, file)
    again = load_classifier(file)
    assert all(torch.equal(a, b) for a, b in zip(scores(again), (of_real, of_made), strict=True))
    assert again.config == SMALL and not again.training and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load_classifier(tmp_path / "none.safetensors")
    file.write_bytes(file.read_bytes()[:-9] + b"123456789")
    with pytest.raises(ValueError, match=r"classifier\.safetensors.* damaged"):
        load_classifier(file)


def test_a_batch_of_one_picture_is_refused_before_a_run_is_begun(tmp_path: Path) -> None:
    for fields in ({"batch_size": 1}, {"batch_size": 4, "accumulate": 4}):
        chosen = Options(out=str(tmp_path / "run"), steps=1, workers=0, **fields)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="batch_size: expected at least 2 pictures per process and micro-batch, got 1"):
            train(task_of(), chosen, RegionDataset(Lit(), SIZE), world=WORLD)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"smallest": 0.7}, "smallest: expected 0 < smallest < largest <= 1, got 0.7 and 0.6"),
        ({"least_change": 2.0}, r"least_change: expected a number in \[0, 2\), got 2.0"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
    ],
    ids=str,
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(**fields)


def test_the_data_decides_regions_and_refuses_small_pictures() -> None:
    assert task_of().num_regions == 3 and trainable("harmony") is TRAINABLES["harmony"]
    with pytest.raises(ValueError, match=r"size: expected at least 16 pixels a side for 4 halvings, got \(8, 32\)"):
        fitted(Config(), Lit.classes, (8, 32), False)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        HarmonyConfig(width=0)
