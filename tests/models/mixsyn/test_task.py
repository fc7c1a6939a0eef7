"""MixSyn's training: every equation by hand, ablations, stages, fakes kept, validation, resuming."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import Batch
from mixsyn_fast.models.losses import composition_cross_entropy, composition_l1_loss, dice_loss
from mixsyn_fast.models.mixsyn.compositions import Composition, known_compositions, random_compositions
from mixsyn_fast.models.mixsyn.config import Config, DiscriminatorConfig, StructureConfig, StyleConfig
from mixsyn_fast.models.mixsyn.discriminator import image_discriminator, mean_logits
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.mixsyn.task import GENERATORS, TRAINABLES, MixSynTask, fitted
from mixsyn_fast.models.training.checkpoint import newest_valid
from mixsyn_fast.models.training.trained import load_trained
from torch import Tensor, nn

from mixsyn_fast import RegionMap, use_backend, use_plan
from mixsyn_fast.cli import main
from tests import processes

ROOT = Path(__file__).parents[3]
SIZE, CLASSES, COUNT = (16, 16), ("sky", "window", "sill", "cornice", "door"), 3
SMALL = {
    "structure": StructureConfig(width=3, code_channels=4, code_size=8, decoder_width=8, decoder_smallest=4),
    "style": StyleConfig(6, 3, 6, 2, 4, 8, 8, 5),
    "structure_discriminator": DiscriminatorConfig(4, 8, 4),
    "image_discriminator": DiscriminatorConfig(4, 8, 4),
}


def make(dtype: torch.dtype = torch.float64, **fields: Any) -> MixSynTask:
    """Return a task of tiny networks, in eval: spectral norm makes no iterations between two looks at it."""
    torch.manual_seed(1)
    fields = SMALL | fields
    if normalisation := fields.pop("normalisation", None):
        fields["style"] = replace(SMALL["style"], normalisation=normalisation)
    task = TRAINABLES["mixsyn"].build(fitted(Config(**fields), CLASSES, SIZE, False), True)
    for network in task.networks.values():
        network.to(dtype).eval()
        for parameter in network.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.3)
    assert isinstance(task, MixSynTask)
    return task


def make_batch(dtype: torch.dtype = torch.float64) -> Batch:
    """Return a random batch; the last picture has no door."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 5, (COUNT, 4, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[-1][labels[-1] == 4] = 0
    image = torch.rand(COUNT, 3, *SIZE, generator=generator, dtype=dtype) * 2 - 1
    return Batch(image, RegionMap(labels, 5), tuple("abc"), torch.arange(COUNT))


def run_phase(task: MixSynTask, phase: str, batch: Batch, step: int = 1) -> dict[str, Tensor]:
    """Do what the loop does: freeze the others, losses, backward."""
    for name, network in task.networks.items():
        for parameter in network.parameters():
            parameter.grad = None
        network.requires_grad_(name in task.phases[phase].networks)
    losses = task.losses(phase, batch, step)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def composition(batch: Batch) -> Composition:
    """Return a random composition that is no picture's own."""
    present = batch.regions.areas() > 0
    return random_compositions(present, tuple((i,) for i in range(5)), torch.Generator().manual_seed(11))


def hold(task: MixSynTask, batch: Batch) -> Composition:
    """Make a task draw one and the same random composition; return it."""
    drawn = composition(batch)
    task._random = lambda regions, generator=None: drawn  # type: ignore[method-assign]
    return drawn


def by_hand(task: MixSynTask, batch: Batch, drawn: Composition) -> dict[str, Tensor]:
    """Make everything as the paper describes it: segment by segment, composition by composition."""
    structure, style = task.networks["structure_generator"], task.networks["style_generator"]
    masks, image = batch.regions.onehot(dtype=torch.float64), batch.image
    own, known = structure.encode(batch.regions), structure(batch.regions)
    mixed, styles = torch.zeros_like(own), torch.zeros(COUNT, 5, 6, dtype=torch.float64)
    for b in range(COUNT):
        for i in range(5):
            source = int(drawn.source[b, i])
            if source >= 0:  # the encoder of region i, on that picture alone
                one = RegionMap(batch.regions.labels_at()[source : source + 1], 5)
                mixed[b, i] = structure.encode(one, [i])[0, 0]
                styles[b, i] = style.encode(image[source : source + 1], one, [i])[0, 0]
    random = structure.decode(mixed)
    present = batch.regions.areas() > 0
    approximated_codes = style.encode(image, RegionMap.soft(known), present=present)
    images = {
        "known": style(batch.regions, style.encode(image, batch.regions)),
        "approximated": style(RegionMap.soft(known), approximated_codes),
        "random": style(RegionMap.soft(random), styles),
    }
    again = {
        "approximated": style.encode(images["approximated"], RegionMap.soft(known), present=present),
        "random": style.encode(images["random"], RegionMap.soft(random), present=drawn.present),
    }
    return images | {
        "masks": masks, "M'": known, "M''": random, "present": present,
        "e_x": approximated_codes, "e_*": styles, "E(approximated)": again["approximated"], "E(random)": again["random"],
    }  # fmt: skip


def log_d(logits: Tensor) -> Tensor:
    """Return E[log D]."""
    return torch.log(torch.sigmoid(logits)).mean()


def log_not_d(logits: Tensor) -> Tensor:
    """Return E[log(1 - D)]."""
    return torch.log(1 - torch.sigmoid(logits)).mean()


WEIGHTS = {"adversarial": 0.7, "reconstruction": 3.0, "structure_reconstruction": 5.0, "style_weight": 2.0}
SHARES = {"alpha": 0.3, "beta": 0.45, "eta": 0.2}


@pytest.mark.parametrize("saturating", [True, False])
def test_the_generators_minimise_equations_2_and_6(saturating: bool) -> None:
    task, batch = make(saturating=saturating, **WEIGHTS, **SHARES), make_batch()
    drawn = hold(task, batch)
    losses = run_phase(task, "generators", batch)
    made = by_hand(task, batch, drawn)
    judge_m, judge_i = task.networks["structure_discriminator"], task.networks["image_discriminator"]

    def fool(logits: Tensor) -> Tensor:
        return log_not_d(logits) if saturating else -log_d(logits)

    equation_1 = 0.3 * fool(judge_m(made["M'"])) + 0.7 * fool(judge_m(made["M''"]))
    equation_3 = 0.55 * (
        0.2 * (fool(judge_i(made["known"])) + fool(judge_i(made["approximated"]))) + 0.8 * fool(judge_i(made["random"]))
    )
    equation_4 = 0.0
    for ours, theirs, present in (("e_x", "E(approximated)", made["present"]), ("e_*", "E(random)", drawn.present)):
        for b in range(COUNT):
            here = present[b]
            distance = torch.linalg.vector_norm(made[ours][b, here] - made[theirs][b, here])
            equation_4 = equation_4 + distance / (2 * int(here.sum()) * COUNT)
    equation_5 = 0.5 * sum((batch.image - made[name]).abs().mean() for name in ("known", "approximated"))
    expected = {
        "structure_gan": 0.7 * equation_1,
        "structure_l1": 5 * (made["masks"] - made["M'"]).abs().sum(1).mean(),
        "image_gan": 0.7 * equation_3,
        "image_l1": 3 * equation_5,
        "style": 2 * equation_4,
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(float(value.detach()), rel=1e-8), name
    # and the gradient: the codes that Eq. 4 aims at are held fixed, so theirs is taken from it by hand
    gradients = {
        f"{name}.{key}": p.grad.clone()
        for name in task.phases["generators"].networks
        for key, p in task.networks[name].named_parameters()
        if p.grad is not None
    }
    for network in task.networks.values():
        network.zero_grad()
    held = 0.0
    for ours, theirs, present in (("e_x", "E(approximated)", made["present"]), ("e_*", "E(random)", drawn.present)):
        for b in range(COUNT):
            here = present[b]
            distance = torch.linalg.vector_norm(made[ours][b, here].detach() - made[theirs][b, here])
            held = held + distance / (2 * int(here.sum()) * COUNT)
    (
        expected["structure_gan"] + expected["structure_l1"] + expected["image_gan"] + expected["image_l1"] + 2 * held
    ).backward()
    scale = max(float(g.abs().max()) for g in gradients.values())
    for name in task.phases["generators"].networks:
        for key, p in task.networks[name].named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(gradients[f"{name}.{key}"], p.grad, rtol=1e-6, atol=1e-9 * scale, msg=key)


def test_what_the_discriminators_teach() -> None:
    """Gradients by compositions and images, of the adversarial losses and of all others; staged, of one kind alone."""
    task, batch = make(**WEIGHTS, **SHARES), make_batch()
    drawn = hold(task, batch)
    found = task.judged(batch, 0)
    made = by_hand(task, batch, drawn)
    # Eq. 1 and 2 by the compositions, 3 to 6 by the images
    compositions = torch.cat((made["M'"], made["M''"])).detach().requires_grad_(True)
    known, random = task.networks["structure_discriminator"](compositions).chunk(2)
    loss = -0.7 * (0.3 * log_d(known) + 0.7 * log_d(random))
    distance = 5.0 * (compositions[:COUNT] - made["masks"]).abs().sum(1).mean()
    for norms, each in ((found["structure_"].adversarial, loss), (found["structure_"].reconstruction, distance)):
        (gradient,) = torch.autograd.grad(each, compositions)
        expected = gradient.flatten(1).norm(dim=1).view(2, COUNT).norm(dim=0)
        torch.testing.assert_close(norms, expected.float(), rtol=1e-4, atol=0)
    for kind, real in (("structure", made["masks"]), ("image", batch.image)):
        logits = task.networks[f"{kind}_discriminator"](real)[:, 0].float()
        torch.testing.assert_close(found[f"{kind}_"].real_logits, logits.detach())
    assert all((norms > 0).all() for norms in found["image_"][1:])
    staged = make(training="staged", structure_steps=3)
    assert [list(staged.judged(batch, step)) for step in (2, 3)] == [["structure_"], ["image_"]]


def test_the_discriminators_maximise_equations_1_and_3() -> None:
    task, batch = make(r1=2.0, r1_every=4, **WEIGHTS, **SHARES), make_batch()
    drawn = hold(task, batch)
    made = by_hand(task, batch, drawn)
    judge_m, judge_i = task.networks["structure_discriminator"], task.networks["image_discriminator"]
    equation_1 = log_d(judge_m(made["masks"])) + 0.3 * log_not_d(judge_m(made["M'"])) + 0.7 * log_not_d(judge_m(made["M''"]))
    fakes = 0.2 * (log_not_d(judge_i(made["known"])) + log_not_d(judge_i(made["approximated"])))
    equation_3 = 0.45 * log_d(judge_i(batch.image)) + 0.55 * (fakes + 0.8 * log_not_d(judge_i(made["random"])))
    losses = run_phase(task, "discriminators", batch, step=3)
    assert losses.keys() == {"structure_gan", "image_gan"}
    assert float(losses["structure_gan"].detach()) == pytest.approx(-float(equation_1.detach()), rel=1e-8)
    assert float(losses["image_gan"].detach()) == pytest.approx(-float(equation_3.detach()), rel=1e-8)
    with_r1 = run_phase(task, "discriminators", batch, step=4)
    for name, judge, real in (("structure", judge_m, made["masks"]), ("image", judge_i, batch.image)):
        real = real.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(judge(real).sum(), real)
        expected = 2.0 / 2 * 4 * gradient.square().sum((1, 2, 3)).mean()
        assert float(with_r1[f"{name}_r1"].detach()) == pytest.approx(float(expected), rel=1e-8)
    for name in ("structure_generator", "style_generator"):
        assert all(p.grad is None for p in task.networks[name].parameters())


@pytest.mark.parametrize("image_losses", [{"reconstruction": 3.0}, {"style_weight": 2.0}, {"adversarial": 1.0}])
def test_the_images_gradient_trains_the_structure(image_losses: dict[str, float]) -> None:
    """Joint training: without any loss of its own the structure generator learns from the image alone."""
    fields = dict.fromkeys(("adversarial", "reconstruction", "structure_reconstruction", "style_weight"), 0.0) | image_losses
    task, batch = make(**fields), make_batch()
    if "adversarial" in image_losses:  # then its own judge says nothing
        nn.init.zeros_(task.networks["structure_discriminator"].judge.weight)
    run_phase(task, "generators", batch)
    structure = task.networks["structure_generator"]
    for part in (structure.encoder_in, structure.decoder_out):
        assert float(part.weight.grad.abs().max()) > 0


def test_fakes_are_kept_for_the_discriminators() -> None:
    """The same losses whether the fakes of the generators' phase are reused or made anew from the same weights."""
    batch = make_batch()
    found = []
    for reuse in (True, False):
        task = make(reuse_fakes=reuse)
        hold(task, batch)
        made: list[int] = []
        real = task.make
        task.make = lambda *a, real=real, made=made, **k: made.append(1) or real(*a, **k)  # type: ignore[method-assign]
        run_phase(task, "generators", batch)
        found.append(run_phase(task, "discriminators", batch))
        assert len(made) == (1 if reuse else 2)
        assert not task._made
    for name, loss in found[0].items():
        torch.testing.assert_close(loss, found[1][name])


def test_each_micro_batch_gets_its_own_fakes() -> None:
    task, first = make(), make_batch()
    second = replace(first, image=-first.image)
    for batch in (first, second):
        run_phase(task, "generators", batch, step=5)
    assert len(task._made) == 2
    expected = task._made.entries[0][2].images
    seen = []
    task.networks["image_discriminator"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run_phase(task, "discriminators", first, step=5)
    assert torch.equal(seen[0][COUNT:], expected) and len(task._made) == 1
    run_phase(task, "generators", first, step=6)  # what an interrupted step left behind goes
    assert [step for step, *_ in task._made.entries] == [6]


RECIPE: dict[str, Any] = {
    "image_discriminator": DiscriminatorConfig(4, kind="patches", norm="instance", spectral=False, layers=2, sees_map=True),
    "feature_matching": 2.0,
    "structure_cross_entropy": 3.0,
    "structure_dice": 0.5,
    "structure_balance": 4.0,
    "soften_real": 1,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"reconstruction": 0.0, "structure_reconstruction": 0.0, "style_weight": 0.0},  # adversarial only
        {"reconstruction": 0.0, "structure_reconstruction": 0.0},
        {"style_weight": 0.0},
        {"normalisation": "global"},
        {"coupled": "none"},
        {"adversarial": 0.0},
        {"r1": 0.0},
        RECIPE,
    ],
    ids=[
        "adversarial only",
        "no reconstruction",
        "no style",
        "global norm",
        "uncoupled",
        "no adversarial",
        "no R1",
        "recipe",
    ],
)
def test_one_step_in_each_ablation(fields: dict[str, Any]) -> None:
    task, batch = make(torch.float32, **fields), make_batch(torch.float32)
    for network in task.networks.values():
        network.train()
    for phase in task.phases:
        for name, network in task.networks.items():
            network.requires_grad_(name in task.phases[phase].networks)
        before = {name: [p.detach().clone() for p in network.parameters()] for name, network in task.networks.items()}
        parameters = [p for name in task.phases[phase].networks for p in task.networks[name].parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        losses = task.losses(phase, batch, 0)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        assert all(bool(torch.isfinite(loss)) for loss in losses.values())
        for name, network in task.networks.items():
            moved = any(not torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True))
            assert moved == (name in task.phases[phase].networks), name
        gone = {"structure_l1": "structure_reconstruction", "image_l1": "reconstruction", "style": "style_weight"}
        if phase == "generators":
            for loss, weight in gone.items():
                assert (loss in losses) == (fields.get(weight, 1.0) > 0)
            assert ("image_gan" in losses) == (fields.get("adversarial", 1.0) > 0)
        else:
            assert ("image_r1" in losses) == (fields.get("r1", 1.0) > 0)


@pytest.mark.parametrize("which", ["known", "both"])
def test_what_goes_beyond_the_paper_by_hand(tmp_path: Path, vgg16_file: Path, which: str) -> None:
    """Patches that see the map, feature matching and perceptual loss of images made anew, losses of compositions."""
    fields = RECIPE | {"vgg": 1.5, "vgg_weights": str(vgg16_file), "vgg_taps": 2, "r1_every": 1, "colour": 4.0}
    fields |= {"vgg_images": which, "feature_matching_images": which}
    task, batch = make(torch.float32, **fields, **WEIGHTS, **SHARES), make_batch(torch.float32)
    drawn = hold(task, batch)
    made_by = task.make(batch, task.networks, drawn)
    losses = run_phase(task, "generators", batch)
    judge, own = task.networks["image_discriminator"], batch.regions
    strongest = [RegionMap(part.argmax(1), 5) for part in made_by.compositions.chunk(2)]
    known, approximated, random = made_by.images.chunk(3)
    seen = [judge(image, where, all_layers=True) for image, where in
            ((batch.image, own), (known, own), (approximated, strongest[0]), (random, strongest[1]))]  # fmt: skip

    def over(logits: Any, term: Any) -> Tensor:
        return torch.stack([term(scale[-1]).mean() for scale in logits]).mean()

    fool = [over(each, lambda t: -torch.log(torch.sigmoid(t))) for each in seen]
    expected = {"image_gan": 0.7 * 0.55 * (0.2 * (fool[1] + fool[2]) + 0.8 * fool[3])}
    anew = {"known": (known,), "both": (known, approximated)}[which]
    apart = [(a - b).abs().mean() / len(anew) for other in seen[1 : 1 + len(anew)]
             for x, y in zip(seen[0], other, strict=True) for a, b in zip(x[:-1], y[:-1], strict=True)]  # fmt: skip
    expected["feature_matching"] = 2.0 * sum(apart) / 2  # type: ignore[assignment]
    expected["vgg"] = 1.5 * sum(task.perceptual(each, batch.image) for each in anew) / len(anew)  # type: ignore[misc]
    cells = (torch.stack((known, approximated)) - batch.image).unflatten(4, (2, 8)).unflatten(3, (2, 8)).mean((4, 6))
    expected["colour"] = 4.0 * cells.abs().mean()
    assert task.perceptual.taps == ("relu1_1", "relu2_1")  # type: ignore[union-attr]
    first, labels = made_by.compositions[:COUNT], own.labels_at()
    expected["structure_l1"] = 5.0 * composition_l1_loss(first, labels, 4.0)
    expected["structure_cross_entropy"] = 3.0 * composition_cross_entropy(first, labels, 4.0)
    expected["structure_dice"] = 0.5 * dice_loss(first, labels)
    assert losses.keys() == {*expected, "structure_gan", "image_l1", "style"}
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name
    found = task.judged(batch, 0)["image_"]
    torch.testing.assert_close(found.real_logits, mean_logits([scale[-1] for scale in seen[0]]).detach())
    images = made_by.images.detach().requires_grad_(True)
    alone = task.style_losses(batch, made_by._replace(images=images), others=False)
    assert alone.keys() == {"image_gan"}, "feature matching, whose gradient comes at once with it, counts with the others"
    (gradient,) = torch.autograd.grad(alone["image_gan"], images)
    expected_norms = gradient.flatten(1).norm(dim=1).view(3, COUNT).norm(dim=0)
    torch.testing.assert_close(found.adversarial, expected_norms)
    real = over(seen[0], lambda t: torch.log(torch.sigmoid(t)))
    fakes = [over(each, lambda t: torch.log(1 - torch.sigmoid(t))) for each in seen[1:]]
    equation_3 = 0.45 * real + 0.55 * (0.2 * (fakes[0] + fakes[1]) + 0.8 * fakes[2])
    softened_maps: list[Tensor] = []
    task.networks["structure_discriminator"].register_forward_pre_hook(lambda _, given: softened_maps.append(given[0]))
    losses = run_phase(task, "discriminators", batch, 0)
    assert float(losses["image_gan"].detach()) == pytest.approx(-float(equation_3.detach()), rel=1e-4)
    assert float(losses["image_r1"].detach()) > 0, "patches have a second derivative"
    kernel = torch.tensor([1.0, 2, 1]) / 4
    wide = nn.functional.pad(own.onehot(), (1, 1, 1, 1), mode="replicate")
    blurred = nn.functional.conv2d(wide.flatten(0, 1)[:, None], (kernel[:, None] * kernel)[None, None])[:, 0]
    torch.testing.assert_close(softened_maps[0][:COUNT], blurred.unflatten(0, (COUNT, 5)))


def photographs() -> Tensor:
    """Return eight photographs (8, 3, 128, 128) in [-1, 1], cut out of a sheet of the documents."""
    image = pytest.importorskip("PIL.Image").open(ROOT / "docs" / "pictures" / "sean_cmp_facade.jpg")
    sheet = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    cut = [sheet[:, y : y + 128, x : x + 128] for y in (16, 146, 276, 406) for x in (2, 262)]
    return torch.stack(cut).float() / 127.5 - 1


@pytest.mark.parametrize(
    ("own", "alive"),
    [
        (DiscriminatorConfig(24, 192), False),
        (DiscriminatorConfig(24, 192, spectral=False), True),
        (DiscriminatorConfig(24, 192, norm="instance"), True),
        (DiscriminatorConfig(24, kind="patches", norm="instance", spectral=False, sees_map=True), True),  # the recipe's
    ],
    ids=["paper", "no spectral norm", "instance norm", "patches"],
)
def test_an_untrained_discriminator_tells_photographs_apart(own: DiscriminatorConfig, alive: bool) -> None:
    torch.manual_seed(0)
    judge = image_discriminator(Config(classes=CLASSES, image_size=(128, 128), image_discriminator=own)).eval()
    one_map = RegionMap(torch.arange(128).div(32, rounding_mode="floor").expand(8, 128, 128), 5)
    with torch.no_grad():
        spread = float(mean_logits(judge(photographs(), one_map)).std())
    assert spread >= 1e-2 if alive else spread < 1e-3


def test_coupling_reaches_the_compositions() -> None:
    """Windows, sills and cornices come from one source, unless the switch says otherwise."""
    batch = make_batch()
    for coupled, expected in (("auto", True), ("none", False)):
        task, alike = make(coupled=coupled), []
        for _ in range(60):
            source = task._random(batch.regions).source[:, 1:4]
            alike += [len(set(row.tolist()) - {-1}) <= 1 for row in source]
        assert all(alike) == expected


def test_staged_training_learns_one_after_the_other() -> None:
    task, batch = make(training="staged", structure_steps=3), make_batch()

    def found(step: int) -> dict[str, set[str]]:
        due = [name for name, phase in task.phases.items() if phase.due(step)]
        return {phase: set(run_phase(task, phase, batch, step)) for phase in due}

    assert found(2) == {
        "structure_generator": {"structure_gan", "structure_l1"},
        "structure_discriminator": {"structure_gan"},
    }
    assert found(3) == {"style_generator": {"image_gan", "image_l1", "style"}, "image_discriminator": {"image_gan"}}
    run_phase(task, "structure_generator", batch, 2)
    assert all(p.grad is None for p in task.networks["style_generator"].parameters())
    run_phase(task, "style_generator", batch, 3)
    assert all(p.grad is None for p in task.networks["structure_generator"].parameters())
    assert task.networks["style_generator"].conv_in.weight.grad is not None
    assert make(training="staged", structure_steps=0).begins_with == ("structure_generator",)  # from an earlier run


def test_plain_pytorch_has_the_same_losses() -> None:
    """The plan and the kernels change no number of a step: `--plan dense --backend reference`."""
    batch = make_batch()
    found = []
    for plan, backend in (("auto", "auto"), ("dense", "reference")):
        task = make()
        hold(task, batch)
        with use_plan(plan), use_backend(backend):
            losses = [run_phase(task, phase, batch, 0) for phase in ("generators", "discriminators")]
        found.append({f"{i}{name}": loss for i, each in enumerate(losses) for name, loss in each.items()})
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        torch.testing.assert_close(loss, found[1][name], rtol=1e-7, atol=1e-10, msg=name)


def test_a_random_composition_of_one_picture_is_the_known_one() -> None:
    """Single source = reconstruction: the same composition, and the same codes as the picture's own."""
    task, batch = make(), make_batch()
    known = known_compositions(batch.regions.areas() > 0)
    made = task.make(batch, task.networks, known)
    torch.testing.assert_close(made.compositions[:COUNT], made.compositions[COUNT:])
    style = task.networks["style_generator"]
    torch.testing.assert_close(made.codes[COUNT:], style.encode(batch.image, batch.regions))


def test_looking_at_it() -> None:
    task, batch = make(torch.float32), make_batch(torch.float32)
    with torch.no_grad():
        figures = task.validate(batch, task.networks)
        again = task.validate(batch, task.networks)
        made = task.generate(batch, task.networks)
        rows = task.sheet(batch, task.networks)
    assert all(value.shape == (COUNT,) and torch.equal(value, again[name]) for name, value in figures.items())
    torch.testing.assert_close(figures["l1"], (made - batch.image).abs().mean((1, 2, 3)))
    structure = task.networks["structure_generator"](batch.regions)
    right = (structure.argmax(1) == batch.regions.labels_at()).float().mean((1, 2))
    torch.testing.assert_close(figures["structure_accuracy"], right)
    assert len(rows) == COUNT and all(len(row) == 7 for row in rows)
    assert all(cell.shape == (*SIZE, 3) for row in rows for cell in row)
    again_rows = task.sheet(batch, task.networks)
    assert all((a == b).all() for row, other in zip(rows, again_rows, strict=True) for a, b in zip(row, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_nearly_the_same_losses(dtype: torch.dtype) -> None:
    found = []
    for enabled in (False, True):
        task, batch = make(torch.float32), make_batch(torch.float32)
        hold(task, batch)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            found.append([task.losses(phase, batch, 0) for phase in task.phases])
    for exact, half in zip(*found, strict=True):
        for name, loss in exact.items():
            assert float(half[name].detach()) == pytest.approx(float(loss.detach()), rel=0.1, abs=0.02), name


def test_a_map_with_edges_trains_as_one_without() -> None:
    """Compositions know regions, no instances: a set with instance maps is no other set."""
    batch = make_batch()
    labels = batch.regions.labels_at()
    edged = replace(batch, regions=RegionMap(labels, 5, edges=labels % 2 == 0))
    found = []
    for each in (batch, edged):
        task = make()
        hold(task, batch)
        found.append([run_phase(task, phase, each, 0) for phase in task.phases])
        found[-1].append(task.validate(each, task.networks))
        assert len(task.sheet(each, task.networks)) == COUNT
    for plain, other in zip(*found, strict=True):
        for name, loss in plain.items():
            torch.testing.assert_close(other[name], loss)


def test_a_single_picture_cannot_be_mixed() -> None:
    task, batch = make(), make_batch()
    alone = Batch(batch.image[:1], RegionMap(batch.regions.labels_at()[:1], 5), ("a",), batch.index[:1])
    with pytest.raises(ValueError, match="batch_size: expected at least 2 pictures .* got 1"):
        task.losses("generators", alone, 0)
    assert task.generate(alone, task.networks).shape == (1, 3, *SIZE), "looking at one is no mixing"


def test_not_a_number_reaches_the_losses() -> None:
    """A run that diverges is told so by the loop, which looks at the losses, and not by an error about masks."""
    task, batch = make(), make_batch()
    nn.init.constant_(task.networks["structure_generator"].decoder_out.bias, float("nan"))
    losses = task.losses("generators", batch, 1)
    assert all(bool(torch.isnan(losses[name])) for name in ("structure_l1", "image_l1"))


def test_bad_phase_and_bare_task() -> None:
    task = make()
    with pytest.raises(ValueError, match="phase: expected one of generators, discriminators, got 'both'"):
        task.losses("both", make_batch(), 0)
    bare = TRAINABLES["mixsyn"].build(task.config, False)
    assert set(bare.networks) == {"structure_generator", "style_generator"}


# --- the command ------------------------------------------------------------------------------------------------------

COMMAND = (
    "train mixsyn --kind procedural_facades --count 12 --size 32 --batch-size 2 --workers 0 --sheet-images 2 "
    "--validate-images 2 --log-every 1 --structure.width 3 --structure.code-channels 4 --structure.decoder-width 8 "
    "--structure.decoder-smallest 4 --style.code-length 6 --style.encoder-width 3 --style.encoder-largest 6 "
    "--style.width 4 --style.largest 8 --style.hidden 4 --structure-discriminator.width 4 "
    "--structure-discriminator.largest 8 --image-discriminator.width 4 --image-discriminator.largest 8 --r1-every 2"
).split()  # fmt: skip


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a run's newest checkpoint."""
    saved = newest_valid(folder / "checkpoints")
    assert saved is not None
    return {f"{group}/{name}": t for group in saved.groups for name, t in saved.tensors(group).items()}


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*COMMAND, "--steps", "4", "--out", str(whole)]) == 0
    for steps in ("2", "4"):
        assert main([*COMMAND, "--steps", steps, "--out", str(parts)]) == 0
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not different
    config = json.loads((whole / "config.json").read_text())
    assert config["task"]["classes"] == config["classes"] and config["task"]["image_size"] == [32, 32]
    assert (whole / "samples").is_dir()
    last = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert {"validation/psnr", "validation/structure_accuracy"} <= last.keys()


def test_a_staged_run_holds_the_averaged_structure(tmp_path: Path) -> None:
    """Styles learn from the compositions that will be used; a run that has not come to them is no model."""
    words = [*COMMAND, "--training", "staged", "--structure-steps", "2", "--out", str(tmp_path)]
    assert main([*words, "--steps", "2"]) == 0
    with pytest.raises(ValueError, match="ended in its stage of structures, after step 2: images are learnt from step 3 on"):
        MixSyn.load(tmp_path)
    assert main([*words, "--steps", "4"]) == 0
    MixSyn.load(tmp_path)
    live, average = (load_trained(tmp_path, averaged=averaged).networks for averaged in (False, True))
    same = {
        name: all(torch.equal(a, b) for a, b in zip(live[name].parameters(), average[name].parameters(), strict=True))
        for name in GENERATORS
    }
    assert same == {"structure_generator": True, "style_generator": False}


def test_the_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "facades.yaml", "--kind", "procedural_facades", "--count", "2", "--steps", "9", "--print-config"]
    assert main(["train", "mixsyn", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"]["image_discriminator"]["kind"] == "patches" and found["task"]["style"]["noise"] is True
    assert found["options"]["steps"] == 9 and found["options"]["batch_size"] == 3 and found["data"]["size"] == [128]
    assert found["task"]["generator_lr"] == 2e-4 and found["task"]["vgg_taps"] == 3


def test_compact_types_are_what_a_run_learns(capsys: pytest.CaptureFixture[str]) -> None:
    """The ablation with few types: classes are merged before anything sees them."""
    assert main([*COMMAND, "--merge", "compact", "--steps", "1", "--print-config"]) == 0
    classes = json.loads(capsys.readouterr().out)["task"]["classes"]
    assert 2 <= len(classes) < 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "30"], "structure.code_size: expected 2 or more pixels that halving the image's 30 x 30"),
        (["--coupled", "window+roof"], "coupled: expected names among .*, got 'roof'"),
        (["--eta", "1.5"], r"eta: expected a number in \[0, 1\]"),
        (["--betas", "1.5,2"], r"betas: expected two numbers in \[0, 1\), got \(1.5, 2.0\)"),
        (
            ["--adversarial", "0", "--structure-reconstruction", "0", "--training", "staged"],
            "structure_reconstruction, .*: expected a weight above 0 for either stage",
        ),
    ],
)
def test_the_command_says_what_is_wrong(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, *options, "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_a_step_on_the_gpu_is_the_one_on_the_cpu() -> None:
    """Losses of both phases, R1 included, in float64 on both."""
    found = []
    for device in ("cpu", "cuda"):
        task, batch = make(), make_batch()
        drawn = hold(task, batch)
        task.to(torch.device(device))
        on_device = Composition(drawn.source.to(device))
        task._random = lambda regions, generator=None, made=on_device: made  # type: ignore[method-assign]
        batch = batch.to(device)
        losses = [run_phase(task, phase, batch, 0) for phase in task.phases]
        found.append({f"{i}{name}": loss.detach().cpu() for i, each in enumerate(losses) for name, loss in each.items()})
    for name, loss in found[0].items():
        torch.testing.assert_close(found[1][name], loss, rtol=1e-6, atol=1e-9, msg=name)


def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    """Two gloo processes that meet different regions: 1 + 1 steps are 2 steps, spectral norms included."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quiet = ["--validate-every", "0", "--sheet-every", "0", "--batch-size", "4", "--device", "cpu"]
    for folder, steps in ((whole, 2), (parts, 1), (parts, 2)):
        processes.run_ranks(processes.CLI, [*COMMAND, *quiet, "--steps", steps, "--out", folder])
    expected, found = tensors(whole), tensors(parts)
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not different
