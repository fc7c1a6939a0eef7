"""SPADE, CLADE and SEAN as tasks: losses and gradients against the published step, plans, settings from the data."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models import clade, sean, spade
from mixsyn_fast.models.data import Batch
from mixsyn_fast.models.discriminators import DiscriminatorConfig, MultiScaleDiscriminator
from mixsyn_fast.models.feature_networks import PERCEPTUAL_TAPS, FeatureNetwork
from mixsyn_fast.models.losses import masked_l1_loss, perceptual
from mixsyn_fast.models.losses.perceptual import perceptual_loss
from mixsyn_fast.models.reconstruction import (
    TRAINABLES,
    CLADEConfig,
    Config,
    ReconstructionTask,
    SEANConfig,
    SPADEConfig,
    fitted,
    initialise,
)
from torch import Tensor, nn

from mixsyn_fast import use_backend, use_plan
from mixsyn_fast.region_map import Plan, RegionMap

K, SIZE = 5, (64, 64)
CLASSES = tuple(f"class_{k}" for k in range(7))
FAMILIES = ("spade", "clade", "sean")


def settings(family: str, **fields: Any) -> Any:
    """Return small settings without a perceptual loss; names of the generator's own settings go there."""
    parts = {"spade": spade.Config, "clade": clade.Config, "sean": sean.Config}[family]
    own = {name: fields.pop(name) for name in list(fields) if name in parts.__dataclass_fields__}
    small: dict[str, Any] = {"ngf": 4, "spectral_norm": True} | ({} if family == "clade" else {"hidden": 8})
    if family == "sean":
        small |= {"style_length": 12, "encoder_width": 4}
    fields = {"vgg": 0.0, "discriminator": DiscriminatorConfig(ndf=4)} | fields
    return TRAINABLES[family].config(generator=parts(**(small | own)), **fields)


def make(family: str, size: tuple[int, int] = SIZE, edges: bool = False, **fields: Any) -> ReconstructionTask:
    """Return a task of a small model in float64 where nothing else is asked."""
    dtype = fields.pop("dtype", torch.float64)
    torch.manual_seed(2)
    task = TRAINABLES[family].build(fitted(settings(family, **fields), CLASSES[:K], size, edges), True)
    for network in task.networks.values():
        network.to(dtype).train()
    return task


def make_batch(
    size: tuple[int, int] = SIZE, count: int = 2, edges: bool = False, dtype: torch.dtype = torch.float64
) -> Batch:
    """Return a random batch with blocky labels, a few pixels of no region."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, K, (count, size[0] // 8, size[1] // 8), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :3, :5] = -1
    drawn = torch.rand(labels.shape, generator=generator) < 0.1 if edges else None
    image = torch.rand(count, 3, *size, generator=generator, dtype=dtype) * 2 - 1
    regions = RegionMap(labels, K, ignore_index=-1, edges=drawn)
    return Batch(image=image, regions=regions, names=("a",) * count, index=torch.arange(count))


def run_phase(task: ReconstructionTask, phase: str, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """Do what the loop does: freeze the others, losses, backward."""
    for name, network in task.networks.items():
        network.requires_grad_(name in task.phases[phase].networks)
        network.zero_grad()
    losses = task.losses(phase, batch, step)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Check each parameter's gradient, up to rounding of the largest (biases before a norm have none but rounding)."""
    expected = dict(theirs.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in expected.values() if p.grad is not None)
    assert scale > 0
    for name, parameter in ours.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None or not bool(parameter.grad.any()), name
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-6, atol=1e-9 * scale, msg=name)


# --- one step against the published one -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_generators_step_is_the_published_one(family: str) -> None:
    """One pass of [generated | real] through the discriminator, in plain PyTorch: same losses, gradients and state."""
    task = make(family, gan=0.7, l1=2.0)
    twins = {name: copy.deepcopy(network) for name, network in task.networks.items()}
    batch = make_batch()
    torch.manual_seed(9)
    losses = run_phase(task, "generator", batch)

    torch.manual_seed(9)
    regions, real = batch.regions, batch.image
    with use_plan("dense"), use_backend("reference"):
        fake = twins["generator"](regions, real) if family == "sean" else twins["generator"](regions)
        features = twins["discriminator"].requires_grad_(False)(torch.cat((fake, real)), regions)
    half = len(real)
    expected = {"gan": 0.7 * sum(-scale[-1][:half].mean() for scale in features) / 2}
    matching = [F.l1_loss(f[:half], f[half:].detach()) for scale in features for f in scale[:-1]]
    expected["feature_matching"] = 10 * torch.stack(matching).sum() / 2
    expected["l1"] = 2 * (fake - real).abs().mean()
    assert set(losses) == set(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-9), name
    torch.stack(list(expected.values())).sum().backward()
    assert_same_gradients(task.networks["generator"], twins["generator"])
    assert all(p.grad is None for p in task.networks["discriminator"].parameters())
    for name, network in task.networks.items():  # spectral norms and running statistics
        for key, value in twins[name].state_dict().items():
            torch.testing.assert_close(network.state_dict()[key], value, rtol=1e-9, atol=1e-12, msg=f"{name}.{key}")


def test_what_the_discriminator_teaches() -> None:
    """The adversarial loss's part of the image's gradient, that of all others, logits of real pictures; nothing moves."""
    task, batch = make("spade", gan=0.7, l1=2.0), make_batch()
    for network in task.networks.values():
        network.eval().requires_grad_(False)
    before = {key: value.clone() for key, value in task.networks["discriminator"].state_dict().items()}
    found = task.judged(batch, 0)[""]
    with use_plan("dense"), use_backend("reference"):
        image = task.networks["generator"](batch.regions).requires_grad_(True)
        features = task.networks["discriminator"](torch.cat((image, batch.image)), batch.regions)
    matching = [F.l1_loss(f[:2], f[2:]) for scale in features for f in scale[:-1]]
    rest = 10 * torch.stack(matching).sum() / 2 + 2 * (image - batch.image).abs().mean()
    gan = 0.7 * sum(-scale[-1][:2].mean() for scale in features) / 2
    for norms, loss in ((found.adversarial, gan), (found.reconstruction, rest)):
        (gradient,) = torch.autograd.grad(loss, image, retain_graph=True)
        torch.testing.assert_close(norms, gradient.flatten(1).norm(dim=1).float(), rtol=1e-4, atol=0)
    logits = sum(scale[-1][2:].mean((1, 2, 3)) for scale in features) / 2
    torch.testing.assert_close(found.real_logits, logits.detach().float())
    assert all(torch.equal(value, before[key]) for key, value in task.networks["discriminator"].state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_discriminators_step_is_the_published_one(family: str) -> None:
    task = make(family)
    twins = {name: copy.deepcopy(network) for name, network in task.networks.items()}
    batch = make_batch()
    torch.manual_seed(9)
    (name, loss), *more = run_phase(task, "discriminator", batch).items()
    assert name == "gan" and not more
    torch.manual_seed(9)
    with torch.no_grad(), use_plan("dense"), use_backend("reference"):
        inputs = (batch.regions, batch.image) if family == "sean" else (batch.regions,)
        fake = twins["generator"](*inputs)
    with use_plan("dense"), use_backend("reference"):
        features = twins["discriminator"](torch.cat((fake, batch.image)), batch.regions)
    terms = [F.relu(1 + s[-1][:2]).mean() + F.relu(1 - s[-1][2:]).mean() for s in features]
    assert loss.item() == pytest.approx((sum(terms) / 2).item(), rel=1e-9)
    (sum(terms) / 2).backward()
    assert_same_gradients(task.networks["discriminator"], twins["discriminator"])
    assert all(p.grad is None for p in task.networks["generator"].parameters())
    for key, value in twins["generator"].state_dict().items():  # running statistics move in this step too
        torch.testing.assert_close(task.networks["generator"].state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_without_feature_matching_one_pass_iterates_once() -> None:
    task = make("spade", feature_matching=0.0)
    before = copy.deepcopy(task.networks["discriminator"].state_dict())
    losses = run_phase(task, "generator", make_batch())
    assert set(losses) == {"gan"}
    after = task.networks["discriminator"].state_dict()
    key = "discriminator_0.model1.0.0.weight"
    matrix = before[f"{key}_orig"].flatten(1)
    v = F.normalize(matrix.t() @ before[f"{key}_u"], dim=0)
    torch.testing.assert_close(after[f"{key}_v"], v)
    assert task.networks["discriminator"].training


# --- options ----------------------------------------------------------------------------------------------------------


def test_reused_images_save_a_pass() -> None:
    task = make("spade", reuse_fakes=True)
    calls = []
    task.networks["generator"].register_forward_hook(lambda *_: calls.append(1))
    first, second = make_batch(), make_batch((64, 64), count=1)
    for batch in (first, second):  # two micro-batches, as with gradient accumulation
        run_phase(task, "generator", batch)
    judged = [run_phase(task, "discriminator", batch)["gan"] for batch in (second, first)]
    assert len(calls) == 2 and not task._fakes
    assert all(bool(loss.isfinite()) for loss in judged)
    run_phase(task, "discriminator", first)
    assert len(calls) == 3, "images that nobody kept are made"
    run_phase(task, "generator", first, step=1)
    run_phase(task, "generator", second, step=2)
    assert len(task._fakes) == 1, "images of a step that is over are let go"


def test_reused_images_are_those_of_the_generators_step() -> None:
    task = make("sean", reuse_fakes=True)
    kept = []
    task.networks["generator"].register_forward_hook(lambda _, __, output: kept.append(output.detach().clone()))
    batch = make_batch()
    run_phase(task, "generator", batch)
    seen = []
    task.networks["discriminator"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run_phase(task, "discriminator", batch)
    assert len(kept) == 1 and torch.equal(seen[0], torch.cat((kept[0], batch.image)))


@pytest.mark.parametrize("name", ["gan", "feature_matching", "l1"])
def test_weights_are_weights(name: str) -> None:
    values = []
    for weight in (1.0, 3.0):
        task = make("clade", **{name: weight})
        values.append(run_phase(task, "generator", make_batch())[name].item())
    assert values[1] == pytest.approx(3 * values[0], rel=1e-9)


@pytest.mark.parametrize("name", ["non_saturating", "least_squares"])
def test_other_adversarial_losses(name: str) -> None:
    task = make("clade", adversarial=name)
    zero = MultiScaleDiscriminator(task.config.discriminator).double()
    for parameter in zero.parameters():  # every logit is 0
        nn.init.zeros_(parameter)
    for buffer in zero.buffers():
        nn.init.ones_(buffer)
    nn.init.ones_(zero.discriminator_0.model1[0][0].weight_orig)
    for scale in (zero.discriminator_0, zero.discriminator_1):
        for i in (1, 2, 3):
            nn.init.ones_(getattr(scale, f"model{i}")[0][0].weight_orig)
    task.networks["discriminator"] = zero
    expected = {"non_saturating": (0.6931472, 1.3862944), "least_squares": (0.5, 0.5)}[name]
    assert run_phase(task, "generator", make_batch())["gan"].item() == pytest.approx(expected[0], rel=1e-6)
    assert run_phase(task, "discriminator", make_batch())["gan"].item() == pytest.approx(expected[1], rel=1e-6)


def test_r1_is_lazy() -> None:
    task = make("clade", r1=4.0, r1_every=3)
    found = [run_phase(task, "discriminator", make_batch(), step) for step in range(4)]
    assert ["r1" in losses for losses in found] == [True, False, False, True]
    assert found[0]["r1"].item() > 0
    assert task.networks["discriminator"].discriminator_0.model2[0][0].weight_orig.grad is not None


@pytest.mark.parametrize("family", ["spade", "clade"])
def test_vae(family: str) -> None:
    encoder = spade.EncoderConfig(ndf=2, spectral_norm=True)
    task = make(family, use_vae=True, z_dim=6, encoder=encoder, kld=0.5, init_gain=0.5)
    assert task.averaged == ("generator", "encoder") == task.phases["generator"].networks
    assert task.networks["encoder"].config.z_dim == 6 and task.networks["encoder"].config.image_size == 128
    batch = make_batch()
    losses = run_phase(task, "generator", batch)
    encoder_grads = [p.grad for p in task.networks["encoder"].parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in encoder_grads)
    networks = {name: network.eval() for name, network in task.networks.items()}
    with torch.no_grad():
        mean, log_variance = networks["encoder"](batch.image)
        expected = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        images = [task.generate(batch, networks) for _ in range(2)]
        assert torch.equal(*images), "the code of generate is the mean"
        assert torch.equal(images[0], networks["generator"](batch.regions, mean))
        fakes = [task.fake(batch, batch.regions, networks, sample=True)[0] for _ in range(2)]
        assert not torch.equal(*fakes), "training samples the code"
    assert losses["kld"].item() > 0 and expected.item() > 0
    for network in networks.values():
        network.train()
    assert "kld" not in run_phase(task, "discriminator", batch)


def test_kld_value() -> None:
    task = make("clade", use_vae=True, z_dim=6, encoder=spade.EncoderConfig(ndf=2), kld=0.5)
    for name, value in (("fc_mu", 2.0), ("fc_var", 0.0)):
        layer = getattr(task.networks["encoder"], name)
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)
    losses = run_phase(task, "generator", make_batch())
    assert losses["kld"].item() == pytest.approx(0.5 * 6 * 0.5 * 4)  # weight * length * mean^2 / 2


def test_sean_takes_the_style_of_the_image() -> None:
    task = make("sean", spectral_norm=False)
    networks = {name: network.eval() for name, network in task.networks.items()}
    batch = make_batch()
    other = replace(batch, image=batch.image.flip(2))
    with torch.no_grad():
        images = []
        for each in (batch, batch, other):
            torch.manual_seed(1)
            images.append(task.generate(each, networks))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


@pytest.mark.parametrize(("family", "reads"), [("spade", True), ("clade", True), ("sean", False)])
def test_instance_edges(family: str, reads: bool) -> None:
    batch = make_batch(edges=True)
    task = make(family, edges=True)
    assert task.config.discriminator.edges == reads
    assert (task.regions(batch).edges is not None) == reads
    assert set(run_phase(task, "generator", batch)) == {"gan", "feature_matching"}
    run_phase(task, "discriminator", batch)
    without = make(family, edges=True, instance_edges=False)
    assert without.regions(batch).edges is None and without.config.discriminator.edges is False
    assert torch.equal(without.regions(batch).labels_at(), batch.regions.labels_at())
    run_phase(without, "discriminator", batch)


# --- rare colours -----------------------------------------------------------------------------------------------------


def test_rare_colours_weigh_what_is_per_pixel() -> None:
    """L1 by its formula, feature matching and perceptual loss by their scale; the adversarial loss as without a mask."""
    plain, weighed = make("spade", l1=2.0), make("spade", l1=2.0, loss_mask="rare_colours")
    for task in (plain, weighed):  # a perceptual loss whose features are the pixels
        task.config = replace(task.config, vgg=3.0)
        task.perceptual = lambda fake, real, mask, targets: masked_l1_loss(fake, real, mask)  # type: ignore[assignment]
    batch = make_batch()
    torch.manual_seed(9)
    expected = run_phase(plain, "generator", batch)
    torch.manual_seed(9)
    fake = plain.fake(batch, batch.regions, make("spade").networks, sample=True)[0].detach()
    for weights in (torch.full((2, K + 1), 0.25), torch.zeros(2, K + 1), torch.rand(2, K + 1)):
        torch.manual_seed(9)
        losses = run_phase(copy.deepcopy(weighed), "generator", replace(batch, class_weights=weights))
        assert losses["gan"].item() == pytest.approx(expected["gan"].item(), rel=1e-12)
        of_pixels = torch.stack([w[labels.long()] for w, labels in zip(weights, batch.regions.labels_at(), strict=True)])
        found = ((fake - batch.image).abs() * of_pixels[:, None]).mean().item()  # label -1: the last weight, of no class
        assert losses["l1"].item() == pytest.approx(2 * found, rel=1e-5)
        assert losses["vgg"].item() == pytest.approx(3 * found, rel=1e-5)
        ratio = losses["feature_matching"].item() / expected["feature_matching"].item()
        least, largest = weights.min().item(), weights.max().item()
        assert ratio == pytest.approx(least, rel=1e-6) if least == largest else least < ratio < largest


def test_losses_without_the_mask_do_not_see_weights() -> None:
    found = []
    for weights in (None, torch.rand(2, K + 1)):
        torch.manual_seed(9)
        losses = run_phase(make("spade", l1=2.0), "generator", replace(make_batch(), class_weights=weights))
        found.append({name: value.item() for name, value in losses.items()})
    assert found[0] == found[1]


def test_who_weighs_rare_colours() -> None:
    streets = ("sky", "building", "road", "car", "unknown")
    for classes, mask in ((streets, "rare_colours"), (CLASSES, "none")):
        assert fitted(settings("spade", loss_mask="auto"), classes, SIZE, False).loss_mask == mask
        assert fitted(settings("spade"), classes, SIZE, False).loss_mask == "none"  # as published
        assert fitted(settings("spade", loss_mask="rare_colours"), classes, SIZE, False).loss_mask == "rare_colours"
    with pytest.raises(ValueError, match="loss_mask: expected one of auto, none, rare_colours, got 'all'"):
        settings("spade", loss_mask="all")
    with pytest.raises(ValueError, match="loss_mask_scale: expected one of mean, maximum, got 'sum'"):
        settings("spade", loss_mask_scale="sum")
    with pytest.raises(ValueError, match=r"loss_mask: expected none or rare_colours \(`fitted` decides\), got 'auto'"):
        TRAINABLES["spade"].build(settings("spade", loss_mask="auto"), True)
    task = make("spade", loss_mask="rare_colours")
    with pytest.raises(ValueError, match="class_weights: expected a batch with weights of classes"):
        run_phase(task, "generator", make_batch())


# --- label analyses for the workers -----------------------------------------------------------------------------------


PLANNED: list[tuple[str, tuple[int, int], dict[str, Any]]] = [
    ("spade", (64, 64), {}),
    ("clade", (64, 64), {}),
    ("sean", (64, 64), {}),
    ("sean", (64, 64), {"unstyled": ("up_2", "up_3")}),
    ("spade", (64, 128), {"num_upsampling_layers": "more"}),
    ("sean", (128, 128), {"num_upsampling_layers": "most"}),
    ("spade", (64, 64), {"kernel_size": 5}),
    ("spade", (64, 64), {"edges": True}),
    ("sean", (64, 64), {"edges": True}),  # the data has them, SEAN does not read them
]


@pytest.mark.parametrize(("family", "size", "fields"), PLANNED, ids=str)
def test_plans_are_what_a_step_asks_for(
    family: str, size: tuple[int, int], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = fields.pop("edges", False)
    task, batch = make(family, size, edges, **fields), make_batch(size, edges=edges)
    reads = edges and family == "spade"
    asked = set()
    whole = RegionMap.plan

    def plan(self: RegionMap, size: Any = None, per_image: bool = False) -> Any:
        assert (self.edges is not None) == reads
        asked.add(Plan(size, "image" if per_image else "shared", reads))
        return whole(self, size, per_image)

    monkeypatch.setattr(RegionMap, "plan", plan)
    with use_plan("table"):  # which networks so small would not take by themselves
        run_phase(task, "generator", batch)
        run_phase(task, "discriminator", batch)
    assert asked == set(task.plans) and len(task.plans) == len(asked)
    assert bool(task.plans) == (family != "clade" and fields.get("kernel_size") != 5)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_follow_the_data(family: str) -> None:
    found = fitted(settings(family), CLASSES, (64, 128), True)
    assert found.generator.label_nc == found.discriminator.label_nc == 7
    assert found.generator.output_size == (64, 128)
    assert getattr(found.generator, "edges", False) == found.discriminator.edges == (family != "sean")
    task = TRAINABLES[family].build(found, True)
    assert task.num_regions == 7 and type(found) is TRAINABLES[family].config
    assert list(task.phases) == ["generator", "discriminator"]
    assert task.phases["generator"].lr == 1e-4 and task.phases["discriminator"].lr == 4e-4
    assert task.phases["generator"].betas == (0.0, 0.9)
    assert task.phases["discriminator"].networks == ("discriminator",)


def test_published_defaults() -> None:
    for kind in (SPADEConfig, CLADEConfig, SEANConfig):
        config = kind()
        assert (config.feature_matching, config.vgg, config.kld, config.adversarial) == (10, 10, 0.05, "hinge")
        assert config.generator.spectral_norm and config.generator.ngf == 64 == config.discriminator.ndf
        assert (config.discriminator.scales, config.discriminator.n_layers) == (2, 4) and not config.reuse_fakes


@pytest.mark.parametrize("size", [(60, 64), (64, 60), (16, 64), (33, 33)])
def test_sizes_that_the_generator_cannot_make(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size: expected|image_size: expected"):
        fitted(settings("spade"), CLASSES[:K], size, False)
    with pytest.raises(ValueError, match="size: expected two positive numbers"):
        fitted(settings("spade"), CLASSES[:K], (0, 64), False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vgg": -1.0}, "vgg: expected a number that is not negative, got -1.0"),
        ({"l1": float("nan")}, "l1: expected"),
        ({"generator_lr": 0.0}, "generator_lr: expected a positive number, got 0.0"),
        ({"r1_every": 0}, "r1_every: expected a positive number"),
        ({"adversarial": "log"}, "adversarial: expected one of hinge, non_saturating, least_squares, got 'log'"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_unknown_phase() -> None:
    with pytest.raises(ValueError, match="phase: expected one of generator, discriminator, got 'encoder'"):
        make("clade").losses("encoder", make_batch(), 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_training_only_what_generates(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "find_weights", lambda kind: None)
    trained = make(family)
    config = replace(trained.config, vgg=10.0)  # no VGG is at hand, and none is needed
    task = TRAINABLES[family].build(config, False)
    assert set(task.networks) == set(trained.averaged) and list(task.phases) == ["generator"]
    task.networks["generator"].load_state_dict(trained.networks["generator"].state_dict())
    networks = {"generator": task.networks["generator"].double().eval()}
    with torch.no_grad():
        assert task.generate(make_batch(), networks).shape == (2, 3, *SIZE)


# --- VGG --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a VGG-16 of random weights in the usual form."""
    torch.manual_seed(1)
    network, state, index = FeatureNetwork("vgg16"), {}, 0
    for layer, tap in zip(network.convolutions, network.taps, strict=True):
        index += tap.endswith("_1") and tap != "relu1_1"
        state |= {f"features.{index}.weight": layer.weight.contiguous(), f"features.{index}.bias": layer.bias}
        index += 2
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_perceptual_loss_of_a_file(vgg_file: Path) -> None:
    task = make("clade", vgg=3.0, vgg_weights=str(vgg_file), dtype=torch.float32)
    batch = make_batch(dtype=torch.float32)
    fakes = []
    task.networks["generator"].register_forward_hook(lambda _, __, output: fakes.append(output.detach()))
    losses = run_phase(task, "generator", batch)
    network = task.perceptual.network
    pairs = zip(network(fakes[0], PERCEPTUAL_TAPS), network(batch.image, PERCEPTUAL_TAPS), strict=True)
    expected = 3 * sum(w * (f - r).abs().mean() for (f, r), w in zip(pairs, (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), strict=True))
    assert losses["vgg"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert "vgg" not in run_phase(task, "discriminator", batch)
    assert not any(network is each for each in task.networks.values()), "a checkpoint does not hold VGG"
    task.to(torch.device("meta"))
    assert all(t.is_meta for t in (*network.parameters(), *network.buffers()))
    assert next(task.networks["discriminator"].parameters()).is_meta


def test_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = replace(settings("clade"), vgg=10.0)
    monkeypatch.setattr(perceptual, "find_weights", lambda kind: None)
    with pytest.warns(UserWarning, match="no VGG weights on this machine: .*--vgg-weights"):
        assert fitted(config, CLASSES[:K], SIZE, False).vgg == 0
    with pytest.raises(FileNotFoundError, match="vgg_weights: no VGG weights"):
        perceptual_loss(config)
    missing = replace(config, vgg_weights=str(tmp_path / "no.pth"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(missing, CLASSES[:K], SIZE, False).vgg == 10, "a file that was named is not dropped silently"
        assert perceptual_loss(replace(config, vgg=0.0)) is None
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        TRAINABLES["clade"].build(fitted(missing, CLASSES[:K], SIZE, False), True)


def test_vgg_19_before_vgg_16_and_no_alexnet(monkeypatch: pytest.MonkeyPatch, vgg_file: Path) -> None:
    asked = []
    monkeypatch.setattr(perceptual, "find_weights", lambda kind: asked.append(kind) or None)
    with pytest.raises(FileNotFoundError):
        perceptual_loss(Config())
    assert asked == ["vgg19", "vgg16"]
    monkeypatch.setattr(perceptual, "find_weights", lambda kind: vgg_file if kind == "vgg16" else None)
    assert perceptual_loss(Config()).network.kind == "vgg16"
    monkeypatch.setattr(perceptual, "load_feature_network", lambda path, kind: FeatureNetwork("alexnet"))
    with pytest.raises(ValueError, match="expected VGG-19 or VGG-16, got AlexNet"):
        perceptual_loss(Config())


# --- weights at the start, and learning -------------------------------------------------------------------------------


def test_initialisation() -> None:
    network = nn.ModuleList([nn.Conv2d(32, 64, 3), nn.ConvTranspose2d(64, 32, 3), nn.Linear(400, 300)])
    initialise(network, 0.5)
    for layer, fans in zip(network, ((32 + 64) * 9, (64 + 32) * 9, 700), strict=True):
        assert float(layer.weight.detach().std()) == pytest.approx(0.5 * (2 / fans) ** 0.5, rel=0.03)
        assert not bool(layer.bias.any())
    task = make("clade")
    head = task.networks["generator"].head_0
    assert 0 < float(head.conv_0.weight_orig.detach().std()) < 0.01 and not bool(head.conv_0.bias.any())
    affine = head.norm_0.class_specified_affine.weight.detach()
    assert float(affine.min()) >= 0 and float(affine.max()) > 0.5, "CLADE's tables keep their own"
    assert bool(make("clade", init_gain=0.0).networks["generator"].conv_img.bias.any())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns(family: str) -> None:
    """A few steps on one batch: the generated images come nearer, and every loss stays finite."""
    task = make(family, dtype=torch.float32, l1=10.0, generator_lr=2e-3, init_gain=0.5)
    batch = make_batch(dtype=torch.float32)
    batch = replace(
        batch, image=F.one_hot(batch.regions.labels_at().clamp(min=0).long(), K)[..., :3].movedim(3, 1) * 1.6 - 0.8
    )
    optimizers = {
        name: torch.optim.Adam([p for n in phase.networks for p in task.networks[n].parameters()], phase.lr, phase.betas)
        for name, phase in task.phases.items()
    }
    history = []
    for step in range(25):
        for name, optimizer in optimizers.items():
            losses = run_phase(task, name, batch, step)
            assert all(bool(loss.isfinite()) for loss in losses.values())
            optimizer.step()
            if name == "generator":
                history.append(losses["l1"].item())
    assert min(history[-3:]) < 0.6 * history[0], history


def test_bfloat16_autocast() -> None:
    task = make("sean", dtype=torch.float32, spectral_norm=False)
    batch = make_batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for phase in task.phases:
            losses = task.losses(phase, batch, 0)
            assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in losses.values())
            torch.stack(list(losses.values())).sum().backward()
