"""Training of harmonized transfer: settings, the losses of every stage, what a step of each moves, resume, ablations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.data import FACE_CLASSES, Batch, RegionDataset, Sample
from mixsyn_fast.models.discriminators import DiscriminatorConfig
from mixsyn_fast.models.harmonized.attention import composed_codes
from mixsyn_fast.models.harmonized.config import FlowConfig, GeneratorConfig, MappingConfig
from mixsyn_fast.models.harmonized.flow import StyleFlow
from mixsyn_fast.models.harmonized.task import TRAINABLES, Config, HarmonizedTask, fitted
from mixsyn_fast.models.losses import kld_loss
from mixsyn_fast.models.settings import to_dict
from mixsyn_fast.models.training import Options, train
from mixsyn_fast.models.training.command import limited, run
from mixsyn_fast.models.training.distributed import World
from mixsyn_fast.models.training.registry import trainable
from mixsyn_fast.models.training.trained import load_trained
from mixsyn_fast.models.training.trainer import Trainer
from torch import Tensor

from mixsyn_fast import RegionMap, use_backend, use_plan

CLASSES, SIZE = ("background", "skin", "nose", "hair"), (32, 32)
WORLD = World(0, 1, 0, torch.device("cpu"))
STEPS = {"reconstruction_steps": 2, "mapping_steps": 2, "flow_steps": 2, "flow_statistics": 1, "flow_solver": "fixed"}
FIRST, MAPPING, FLOW = {"generator", "attention"}, {"mapping_hair", "mapping_skin"}, {"flow_hair", "flow_skin"}
JUDGES = {"style_discriminator_hair", "style_discriminator_skin"}


class Faces:
    """Flat faces in noise; the first has no hair, the second no nose."""

    name, classes, swaps, default_size = "faces", CLASSES, (), SIZE

    def __init__(self, size: tuple[int, int] = SIZE, count: int = 4) -> None:
        self.size, self.count = size, count

    def __len__(self) -> int:
        return self.count

    def names(self) -> list[str]:
        return [f"face{i}" for i in range(self.count)]

    def read(self, index: int) -> Sample:
        height, width = self.size
        generator = np.random.default_rng(index)
        labels = np.zeros(self.size, np.int32)
        labels[height // 4 :, 4:-4] = 1
        if index != 1:
            labels[height // 2 : height // 2 + 6, width // 2 : width // 2 + 4] = 2
        if index != 0:
            labels[: height // 4, 2:-2] = 3
        colours = generator.integers(0, 256, (4, 3))
        image = (colours[labels] + generator.integers(-20, 20, (*self.size, 3))).clip(0, 255).astype(np.uint8)
        return Sample(image, labels, None, f"face{index}")


def settings(size: tuple[int, int] = SIZE, **fields: Any) -> Config:
    config = Config(
        generator=GeneratorConfig(ngf=2, hidden=4, style_length=6, encoder_width=2, spectral_norm=True),
        discriminator=DiscriminatorConfig(ndf=2, n_layers=2, scales=1),
        mapping=MappingConfig(z_dim=3, width=8, shared=1, own=1, judges=1),
        flow=FlowConfig(width=8, layers=1, steps=2),
        vgg=0.0,
        **(STEPS | fields),
    )
    return fitted(config, CLASSES, size, False)


def faces(*indices: int, size: tuple[int, int] = SIZE) -> Batch:
    """A batch of some of the faces."""
    dataset = RegionDataset(Faces(size), size)
    made: Batch = dataset.collate(())([dataset[i] for i in indices])
    return made


def options(out: Path, **fields: Any) -> Options:
    chosen = {"steps": 6, "batch_size": 2, "workers": 0, "log_every": 1, "sheet_every": 0, "validate_every": 0}
    return Options(out=str(out), **(chosen | {"save_every": 0, "ema_decay": 0.9} | fields))


def weights(task: HarmonizedTask) -> dict[str, dict[str, Tensor]]:
    return {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in task.networks.items()}


def moved(before: Mapping[str, Mapping[str, Tensor]], after: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    return {name for name in before if any(not torch.equal(before[name][k], after[name][k]) for k in before[name])}


@pytest.fixture
def task() -> HarmonizedTask:
    return HarmonizedTask(settings())


# --- settings --------------------------------------------------------------------------------------------------------------


def test_the_data_decides_groups_and_sizes() -> None:
    config = settings()
    assert config.groups == ("hair=hair", "skin=skin,nose") and config.classes == CLASSES
    assert config.group_regions() == {"hair": (3,), "skin": (1, 2)}
    assert config.attention.style_length == config.generator.style_length == 6
    assert config.generator.label_nc == 4 and config.generator.output_size == SIZE and config.betas == (0.5, 0.999)
    assert fitted(Config(vgg=0.0), FACE_CLASSES, (256, 256), True).groups == ("hair=hair", "skin=skin,nose")
    with pytest.warns(UserWarning, match="the data set has no hair, skin: groups are skin=nose"):
        assert fitted(Config(vgg=0.0), ("nose", "sky"), SIZE, False).groups == ("skin=nose",)
    assert fitted(Config(vgg=0.0, groups=("a=wall,door",)), ("wall", "door"), SIZE, False).group_regions() == {"a": (0, 1)}
    assert trainable("harmonized") is TRAINABLES["harmonized"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": ("hair",)}, "groups: expected NAME=REGION or NAME=REGION,REGION, the name without a dot, got 'hair'"),
        ({"groups": ("a.b=hair",)}, "groups: expected NAME=REGION"),
        ({"groups": ("a=hair", "a=skin")}, "groups: expected every name once, got a again in 'a=skin'"),
        ({"groups": ("a=hat",)}, "groups: a: expected regions out of background, skin, nose, hair; got 'hat'"),
        ({"mapping_by": "gan"}, "mapping_by: expected one of style, image, kl, got 'gan'"),
        ({"flow_lr": 0.0}, "flow_lr: expected a positive number, got 0.0"),
        ({"flow_statistics": 0}, "flow_statistics: expected at least 1, got 0"),
        ({"mapping_steps": -1}, "mapping_steps: expected at least 0, got -1"),
        (
            {"reconstruction_steps": 0, "mapping_steps": 0, "flow_steps": 0},
            "reconstruction_steps: expected a stage with steps",
        ),
        ({"keep": ("mapping",)}, "keep: expected no steps of stage 1 and of mapping, which comes with init_from; got some"),
    ],
    ids=str,
)
def test_bad_settings_say_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)


def test_a_set_without_these_regions_wants_groups() -> None:
    classes = ("wall", "door")
    with pytest.raises(ValueError, match="groups: expected groups of this data set's regions .* such as door=door, for"):
        fitted(Config(vgg=0.0), classes, SIZE, False)
    alone = fitted(Config(vgg=0.0, mapping_steps=0, flow_steps=0), classes, SIZE, False)
    assert alone.groups == () and not alone.has("mapping")


def test_networks_and_windows_follow_the_stages() -> None:
    task = HarmonizedTask(settings())
    assert set(task.networks) == FIRST | {"discriminator"} | MAPPING | JUDGES | FLOW
    assert set(task.averaged) == FIRST | MAPPING | FLOW and task.total_steps == 6 and task.best == ""
    windows = {name: (phase.start, phase.stop) for name, phase in task.phases.items()}
    assert windows == {
        "generator": (0, 2),
        "discriminator": (0, 2),
        "mapping": (2, 4),
        "mapping_discriminator": (2, 4),
        "flow": (4, 6),
    }
    rates = {name: phase.lr for name, phase in task.phases.items()}
    assert rates["generator"] == 1e-4 and rates["discriminator"] == 4e-4
    assert rates["mapping"] == rates["mapping_discriminator"] == 2e-4
    first = HarmonizedTask(settings(mapping_steps=0, flow_steps=0))
    assert set(first.networks) == FIRST | {"discriminator"} and first.best == "psnr" and not first.begins_with
    second = HarmonizedTask(settings(reconstruction_steps=0, flow_steps=0))
    assert set(second.networks) == FIRST | MAPPING | JUDGES and set(second.begins_with) == FIRST
    third = HarmonizedTask(settings(reconstruction_steps=0, mapping_steps=0, keep=("mapping",)))
    assert set(third.networks) == FIRST | MAPPING | FLOW and set(third.begins_with) == FIRST | MAPPING
    used = HarmonizedTask(settings(), training=False)
    assert set(used.networks) == FIRST | MAPPING | FLOW
    assert limited(Options(), task).steps == 6 and limited(Options(steps=4), task).steps == 4
    assert limited(Options(steps=40), task).steps == 6


# --- losses ----------------------------------------------------------------------------------------------------------------


def test_stage_1_reconstructs_and_agrees_with_the_dense_form() -> None:
    """Adversarial loss and feature matching in float64; the generator's gradient through attention and encoder."""
    found = []
    for plan, backend in (("table", "auto"), ("dense", "reference")):
        torch.manual_seed(1)
        task = HarmonizedTask(settings((32, 64)))
        for network in task.networks.values():
            network.double()
        batch = faces(0, 1, size=(32, 64))
        batch = replace(batch, image=batch.image.double())
        torch.manual_seed(2)
        with use_plan(plan), use_backend(backend):
            losses = task.losses("generator", batch, 0)
            sum(losses.values()).backward()
        found.append((losses, {n: p.grad for k in FIRST for n, p in task.networks[k].named_parameters(prefix=k)}))
    (losses, grads), (dense, expected) = found
    assert set(losses) == {"gan", "feature_matching"}
    for name, value in losses.items():
        assert torch.allclose(value, dense[name], rtol=1e-9), name
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, grad in grads.items():
        other = expected[name]
        assert (grad is None) == (other is None) == ("up_3" in name and "blending" in name), name  # a block without styles
        assert grad is None or other is None or (grad - other).abs().max() <= 1e-8 * largest, name
    for part in ("Zencoder.projections", "Zencoder.level_weights", "attention.value", "attention.alpha"):
        assert any(grad is not None and bool((grad != 0).any()) for name, grad in grads.items() if part in name), part


def test_mapping_is_equation_6_on_the_codes_of_pictures_that_have_the_group(task: HarmonizedTask) -> None:
    batch = faces(0, 1, 2)  # hair in two, skin and nose together in two
    for network in task.networks.values():
        network.eval()
    with torch.no_grad():
        codes = task.networks["generator"].encode(batch.image, batch.regions)
    torch.manual_seed(5)
    fooled = task.losses("mapping", batch, 2)
    torch.manual_seed(5)
    judged = task.losses("mapping_discriminator", batch, 2)
    torch.manual_seed(5)
    for group, regions, pictures in (("hair", [3], [1, 2]), ("skin", [1, 2], [0, 2])):
        made = task.networks[f"mapping_{group}"](torch.randn(3, 3))
        judge = task.networks[f"style_discriminator_{group}"]
        real = judge(codes[pictures][:, regions]).sigmoid()
        fake = judge(made).sigmoid()
        assert torch.allclose(judged[group], -(real.log().mean() + (1 - fake).log().mean()), rtol=1e-5), group
        assert torch.allclose(fooled[group], -fake.log().mean(), rtol=1e-5), group


def test_a_batch_without_the_group_teaches_nothing(task: HarmonizedTask) -> None:
    """No picture has hair: loss and gradient of its discriminator and of its flow are zero, those of skin are not."""
    batch = faces(0, 0)
    for phase, kind, step in (("mapping_discriminator", "style_discriminator", 2), ("flow", "flow", 4)):
        losses = task.losses(phase, batch, step)
        sum(losses.values()).backward()
        for group, empty in (("hair", True), ("skin", False)):
            grads = [p.grad for p in task.networks[f"{kind}_{group}"].parameters()]
            assert all(grad is not None for grad in grads)
            assert all(bool((grad == 0).all()) for grad in grads if grad is not None) == empty, (phase, group)
        assert losses["hair"] == 0 and losses["skin"] != 0
    assert task.networks["flow_hair"].seen == 0 and task.networks["flow_skin"].seen == 2


def test_flow_maximises_the_likelihood_of_standardised_codes(task: HarmonizedTask) -> None:
    batch, flow = faces(1, 2, 3), task.networks["flow_hair"]
    assert isinstance(flow, StyleFlow)
    task.networks["generator"].eval()
    with torch.no_grad():
        codes = task.networks["generator"].encode(batch.image, batch.regions)[:, 3]
    torch.manual_seed(3)
    loss = task.losses("flow", batch, 4)["hair"]
    assert torch.allclose(flow.mean, codes.mean(0), atol=1e-6) and torch.allclose(flow.deviation, codes.std(0), atol=1e-6)
    torch.manual_seed(3)
    assert torch.allclose(loss, -flow.log_likelihood(codes, "fixed").mean() / 6)
    kept = flow.mean.clone(), flow.seen.clone()
    task.losses("flow", faces(2, 3), 5)  # after flow_statistics steps they stay
    assert torch.equal(flow.mean, kept[0]) and flow.seen == kept[1] == 3


def test_a_small_gain_leaves_projections_and_attention_alone() -> None:
    """Of torch's own initialisation: uniform with a variance of 1 / (3 inputs), whatever the gain of all else."""
    made = HarmonizedTask(settings(init_gain=1e-3)).networks
    encoder = made["generator"].Zencoder
    for layer in (*encoder.projections, made["attention"].query, made["attention"].key, made["attention"].value):  # type: ignore[union-attr]
        assert layer.weight.std() > 0.3 * layer.in_features**-0.5
    assert encoder.convs[0].weight_orig.std() < 1e-3  # type: ignore[union-attr]


def test_the_encoder_rests_in_later_stages(task: HarmonizedTask) -> None:
    """Neither weights nor spectral norms nor batch statistics move, and no gradient reaches it."""
    batch, before = faces(1, 2), weights(task)
    for network in task.networks.values():
        network.train()
    for phase, step in (("mapping", 2), ("mapping_discriminator", 2), ("flow", 4)):
        sum(task.losses(phase, batch, step).values()).backward()
    assert not moved(before, weights(task)) & FIRST
    assert [set(task.judged(batch, step)) for step in (1, 2, 4)] == [{""}, set(), set()]
    assert all(p.grad is None for name in FIRST for p in task.networks[name].parameters())
    task.networks["generator"].train()
    task.losses("generator", batch, 0)
    assert moved(before, weights(task)) & FIRST  # in stage 1 they do: of its vectors of spectral norm


# --- steps -----------------------------------------------------------------------------------------------------------------


def steps(config: Config, tmp_path: Path) -> Iterator[tuple[int, set[str], dict[str, Tensor], Trainer]]:
    """Step, networks that it moved, its losses, the trainer, for every step of a run."""
    torch.manual_seed(0)
    task = HarmonizedTask(config)
    trainer = Trainer(task, options(tmp_path, steps=task.total_steps), RegionDataset(Faces(), SIZE), WORLD)
    for step in range(task.total_steps or 0):
        before = weights(task)
        losses = trainer.run_step()
        yield step, moved(before, weights(task)), losses, trainer
    trainer.close()


def test_a_step_of_every_stage_moves_its_networks_alone(tmp_path: Path) -> None:
    expected = [FIRST | {"discriminator"}, MAPPING | JUDGES, FLOW]
    for step, found, losses, trainer in steps(settings(), tmp_path):
        assert found == expected[step // 2], step
        assert all(math.isfinite(value) for value in losses.values())
        if step == 1:  # stage 1 is over: what follows rests on what will be used
            for name in FIRST:
                averages = trainer.networks()[name].parameters()
                pairs = zip(trainer.task.networks[name].parameters(), averages, strict=True)
                assert all(torch.equal(live, average) for live, average in pairs), name


@pytest.mark.parametrize(
    ("fields", "moves", "losses"),
    [
        (
            {"attend": False, "flow_steps": 0},
            [{"generator", "discriminator"}] * 2 + [MAPPING | JUDGES] * 2,
            {"mapping/hair", "mapping_discriminator/skin"},
        ),
        (
            {"mapping_by": "image", "flow_steps": 0},
            [FIRST | {"discriminator"}] * 2 + [MAPPING | {"discriminator"}] * 2,
            {"mapping/gan", "mapping_discriminator/gan"},
        ),
        (
            {"mapping_by": "kl", "flow_steps": 1},
            [FIRST | {"discriminator", "distribution"}] * 2 + [FLOW],
            {"generator/kld", "flow/hair"},
        ),
    ],
    ids=["no attention", "image space", "KL"],
)
def test_ablations(fields: dict[str, Any], moves: list[set[str]], losses: set[str], tmp_path: Path) -> None:
    found, said = [], set()
    for _, networks, names, _ in steps(settings(**fields), tmp_path):
        found.append(networks)
        said |= set(names)
    assert found == moves and losses <= said


def test_encoders_without_softmax_or_levels(tmp_path: Path) -> None:
    base = settings(mapping_steps=0, flow_steps=0, reconstruction_steps=1)
    for fields in ({"softmax": False}, {"multi_scale": False}):
        config = replace(base, generator=replace(base.generator, **fields))
        for _, networks, _, trainer in steps(config, tmp_path):
            assert networks == FIRST | {"discriminator"}
            weights_of_levels = trainer.task.networks["generator"].Zencoder.level_weights
            first = 0.2 if "softmax" in fields else 0.0
            assert bool((weights_of_levels != first).any()) == (
                "softmax" in fields
            )  # the last level alone has none to learn


def test_kl_draws_codes_of_the_regions_that_are_there() -> None:
    task = HarmonizedTask(settings(mapping_by="kl"))
    batch = faces(0, 1)
    regions = task.regions(batch)
    task.networks["generator"].eval()
    with torch.no_grad():
        target, losses = task.encode(batch.image, regions, task.networks)
        mean, log_variance = task.networks["distribution"](task.networks["generator"].encode(batch.image, regions))
    assert target.present.tolist() == [[True, True, True, False], [True, True, False, True]]
    there = [(mean[b, k], log_variance[b, k]) for b, k in target.present.nonzero().tolist()]
    each = [0.5 * (m**2 + v.exp() - 1 - v).sum() for m, v in there]
    assert torch.allclose(losses["kld"], 0.05 * torch.stack(each).mean())
    assert torch.allclose(target.codes, mean * target.present[..., None])
    drawn = [task.encode(batch.image, regions, task.networks, sample=True)[0].codes for _ in range(2)]
    assert bool((drawn[0] != drawn[1]).any(2)[target.present].all()) and bool((drawn[0][~target.present] == 0).all())
    assert kld_loss(mean[target.present], log_variance[target.present]) > 0


def test_mapped_images_change_the_groups_alone() -> None:
    """Random codes go where a picture has the region; all other codes stay."""
    task = HarmonizedTask(settings(mapping_by="image"))
    target = task.fixed(faces(0, 1))
    for kind in ("mapping", "flow"):
        with torch.no_grad():
            made = task.random_codes(target, task.networks, kind)
        changed = (made != target.codes).any(2)
        assert changed.tolist() == [[False, True, True, False], [False, True, False, True]], kind


# --- transfer, sheets, validation ------------------------------------------------------------------------------------------


def test_transfer_of_nothing_and_from_itself_is_the_reconstruction() -> None:
    config = settings(init_gain=0.0)  # weights large enough that codes show in the image
    task = HarmonizedTask(replace(config, generator=replace(config.generator, spectral_norm=False)))
    batch = faces(1, 2)
    for network in task.networks.values():
        network.eval()
    regions = task.regions(batch)
    with torch.no_grad():
        torch.nn.init.normal_(task.networks["attention"].value.weight)
        target, _ = task.encode(batch.image, regions, task.networks)
        other = target.codes.roll(1, 0), target.present.roll(1, 0)

        def made(codes: Tensor) -> Tensor:
            torch.manual_seed(4)  # SEAN's noise
            return task.decode(codes, target, regions, task.networks)

        torch.manual_seed(4)
        reconstruction = task.generate(batch, task.networks)
        assert torch.equal(made(composed_codes(target.codes, other[0], (), other[1])), reconstruction)
        assert torch.equal(made(composed_codes(target.codes, target.codes, range(4), target.present)), reconstruction)
        assert not torch.equal(made(composed_codes(target.codes, other[0], (3,), other[1])), reconstruction)


def test_sheets_and_figures(task: HarmonizedTask) -> None:
    batch = faces(0, 1, 2)
    for network in task.networks.values():
        network.eval()
    with torch.no_grad():
        rows, figures = task.sheet(batch, task.networks), task.validate(batch, task.networks)
        # picture, labels, reconstruction, transfer without and with attention, mapping, flow
        assert [len(row) for row in rows] == [7] * 3 and all(p.shape == (32, 32, 3) for row in rows for p in row)
        assert {name: tuple(value.shape) for name, value in figures.items()} == {
            **dict.fromkeys(("psnr", "ssim", "l1"), (3,)),
            "nats_hair": (2,),
            "nats_skin": (2,),
        }
        assert "nats_hair" not in task.validate(faces(0), task.networks)
        plain = HarmonizedTask(settings(attend=False, mapping_steps=0, flow_steps=0), training=False)
        assert len(plain.sheet(batch, plain.networks)[0]) == 4


# --- runs ------------------------------------------------------------------------------------------------------------------


def whole_config(config: Config) -> dict[str, Any]:
    return {"model": "harmonized", "task": to_dict(config), "classes": list(CLASSES)}


def trained(config: Config, chosen: Options) -> list[dict[str, float]]:
    """Train, and return the log without times."""
    torch.manual_seed(0)
    train(HarmonizedTask(config), chosen, RegionDataset(Faces(), SIZE), config=whole_config(config), world=WORLD)
    lines = [json.loads(line) for line in (Path(chosen.out) / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "_ms", "_per_second", "_gb")
    return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]


def test_resumed_bit_for_bit_in_every_stage(tmp_path: Path) -> None:
    """Interrupted within each stage, the flow's statistics among it: the log and all weights are those of one run."""
    config = settings(flow_statistics=2)
    whole = trained(config, options(tmp_path / "whole", save_every=6))
    for stop in (1, 3, 5, 6):
        parts = trained(config, options(tmp_path / "parts", save_every=6, steps=stop))
    assert parts == whole and [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]
    found = [load_trained(tmp_path / name) for name in ("whole", "parts")]
    for name, network in found[0].networks.items():
        other = found[1].networks[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in network.state_dict().items()), name
    assert set(found[0].networks) == FIRST | MAPPING | FLOW and found[0].networks["flow_skin"].seen > 0


def test_stages_alone_begin_with_a_run_of_stage_1(tmp_path: Path) -> None:
    """Stage 2 from stage 1, stage 3 from stage 2 with its mapping networks kept: all of it in the last run."""
    trained(settings(mapping_steps=0, flow_steps=0), options(tmp_path / "first", steps=2, save_every=2))
    second = settings(reconstruction_steps=0, flow_steps=0)
    with pytest.raises(ValueError, match="init_from: expected weights of generator, attention, on which what is trained"):
        trained(second, options(tmp_path / "none", steps=2))
    trained(second, options(tmp_path / "second", steps=2, save_every=2, init_from=str(tmp_path / "first")))
    third = settings(reconstruction_steps=0, mapping_steps=0, keep=("mapping",))
    with pytest.raises(ValueError, match="expected weights of .* got none of mapping_hair, mapping_skin"):
        trained(third, options(tmp_path / "none", steps=2, init_from=str(tmp_path / "first")))
    trained(third, options(tmp_path / "third", steps=2, save_every=2, init_from=str(tmp_path / "second")))
    states = [load_trained(tmp_path / name) for name in ("first", "second", "third")]
    for name in FIRST | MAPPING:
        before = states[0 if name in FIRST else 1].networks[name].state_dict()
        after = states[2].networks[name].state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before), name
    assert set(states[2].networks) == FIRST | MAPPING | FLOW


def test_the_command_takes_groups_and_makes_all_steps(tmp_path: Path) -> None:
    """Groups as words, the number of steps from the stages; --config of the run gives the same again."""
    words = ["--kind", "procedural_faces", "--count", "2", "--size", "32", "--batch-size", "2", "--workers", "0"]
    words += ["--validation", "none", "--vgg", "0", "--generator.ngf", "2", "--generator.hidden", "4", "--sheet-every", "0"]
    words += ["--generator.style-length", "4", "--generator.encoder-width", "2", "--mapping.width", "4", "--flow.width", "4"]
    words += ["--discriminator.ndf", "2", "--discriminator.n-layers", "2", "--discriminator.scales", "1"]
    words += ["--reconstruction-steps", "1", "--mapping-steps", "1", "--flow-steps", "1", "--flow-solver", "fixed"]
    words += ["--groups", "hair=hair", "--groups", "face=skin,nose", "--out", str(tmp_path / "run")]
    assert run(["harmonized", *words]) == 0
    found = load_trained(tmp_path / "run")
    assert found.step == 3 and found.config["options"]["steps"] == 3
    assert found.config["task"]["groups"] == ["hair=hair", "face=skin,nose"] and "flow_face" in found.networks
    assert run(["harmonized", "--config", str(tmp_path / "run" / "config.json")]) == 0  # nothing is left to do
    bad = [*words, "--groups", "more=hair", "--out", str(tmp_path / "bad")]
    with pytest.raises(ValueError, match="--groups: expected every region in one group, got hair in hair and in more"):
        run(["harmonized", *bad])
    assert not (tmp_path / "bad").exists()


def test_unknown_phase(task: HarmonizedTask) -> None:
    with pytest.raises(ValueError, match="phase: expected one of generator, discriminator, mapping, .* got 'other'"):
        task.losses("other", faces(0, 1), 0)


def test_half_precision(task: HarmonizedTask) -> None:
    """Every phase under autocast; the flow stays in float32."""
    batch = faces(1, 2)
    for phase, step in (("generator", 0), ("discriminator", 0), ("mapping", 2), ("mapping_discriminator", 2), ("flow", 4)):
        with torch.autocast("cpu", torch.bfloat16):
            losses = task.losses(phase, batch, step)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        assert bool(torch.isfinite(total)), phase
    grads = [p.grad for p in task.networks["flow_hair"].parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_initialised_behind_torchs_spectral_norm(task: HarmonizedTask) -> None:
    """The transposed convolution's weights are drawn with the gain of all others."""
    conv = task.networks["generator"].Zencoder.convs[3]
    weight = conv.parametrizations.weight.original
    fan = 9 * sum(weight.shape[:2])
    assert weight.std().item() == pytest.approx(0.02 * math.sqrt(2 / fan), rel=0.1)


def test_unlabelled_pictures_have_no_codes(task: HarmonizedTask) -> None:
    """A picture of no region at all: nothing to attend to, nothing to learn, an image all the same."""
    batch = faces(1, 2)
    labels = batch.regions.labels_at().clone()
    labels[0] = -1
    batch = replace(batch, regions=RegionMap(labels, 4, ignore_index=-1))
    assert not task.fixed(batch).present[0].any()
    for phase, step in (("generator", 0), ("mapping_discriminator", 2), ("flow", 4)):
        losses = task.losses(phase, batch, step)
        assert all(bool(torch.isfinite(loss)) for loss in losses.values()), phase
    assert F.mse_loss(task.generate(batch, task.networks), batch.image).isfinite()
