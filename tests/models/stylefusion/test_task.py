"""Training of FusionNets: settings, losses against a second form, what moves and what does not, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mixsyn_fast.models.data.latents import LatentBatch, LatentDataset
from mixsyn_fast.models.losses import stylefusion as losses
from mixsyn_fast.models.stylefusion.config import Config
from mixsyn_fast.models.stylefusion.correlation import channel_weights, correlation
from mixsyn_fast.models.stylefusion.segments import Segments, find_segments
from mixsyn_fast.models.stylefusion.task import TRAINABLES, StyleFusionTask, fitted, load_generator
from mixsyn_fast.models.stylefusion.trees import CARS, FACES
from mixsyn_fast.models.stylegan2 import Generator
from mixsyn_fast.models.training import Options, checkpoint, command, train
from torch import Tensor

TREE = json.dumps(
    {
        "truncation": 0.8,
        "nodes": {
            "all": {"children": ["rest", "main"], "training": "favored", "favored": "main"},
            "main": {"children": ["left", "right"], "training": "regular"},
        },
    }
)


def settings(**changes: Any) -> Config:
    given: dict[str, Any] = {"tree": TREE, "hidden": 16, "stage1": 4, "stage2": 4, "stage3": 4, "lr": 0.3}
    return Config(**(given | changes))


def task(generator: Generator, segments: Segments, **changes: Any) -> StyleFusionTask:
    torch.manual_seed(1)
    return StyleFusionTask(settings(**changes), generator, segments)


def batch(made: StyleFusionTask, count: int = 2) -> LatentBatch:
    data = LatentDataset(count, made.code_size, seed=2)
    return data.collate()([data[i] for i in range(count)])


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_papers_schedule() -> None:
    """Appendix A.2: 25,000 steps a node, 15,000 where it is short; from the top down."""
    faces = Config().stages(FACES)
    assert faces[:4] == (
        ("all", 1, 0, 5000),
        ("all", 2, 5000, 15_000),
        ("all", 3, 15_000, 25_000),
        ("face", 1, 25_000, 30_000),
    )
    assert [(s.node, s.number) for s in faces if s.node == "face"] == [("face", 1), ("face", 2)]
    assert Config().steps(FACES) == 4 * 25_000 + 15_000 and Config().steps(CARS) == 25_000 + 2 * 15_000
    assert list(dict.fromkeys(s.node for s in faces)) == ["all", "face", "bg_hair_clothes", "skin_mouth", "bg_clothes"]
    assert Config(training="short").steps(FACES) == 5 * 15_000
    one = Config(nodes=("skin_mouth", "face"))
    assert one.trained_nodes(FACES) == ("face", "skin_mouth") and one.needed_nodes(FACES) == ("all",)
    assert Config().needed_nodes(FACES) == ()


@pytest.mark.parametrize(
    ("ablation", "numbers"),
    [("none", [1, 2, 3]), ("no_global", [2, 3]), ("no_stage1", [2, 3]), ("no_stage2", [1, 3]), ("no_stage3", [1, 2])],
)
def test_ablations(ablation: Any, numbers: list[int], generator: Generator, segments: Segments) -> None:
    made = task(generator, segments, nodes=("all",), ablation=ablation)
    assert [s.number for s in made.stages.values()] == numbers
    kinds = {name.split("_")[0] for name in made.networks}
    assert kinds == ({"fuse"} if ablation == "no_global" else {"align", "fuse"})
    found = made.losses(f"all_stage{numbers[-1]}", batch(made), 0)
    assert ("align_reg" in found) == (ablation not in ("no_global", "no_stage3"))
    sum(found.values()).backward()
    assert all(p.grad is not None for name in made.networks if "fuse" in name for p in made.networks[name].parameters())


def test_coefficients() -> None:
    config = Config()
    assert config.coefficients(FACES, "skin_mouth") == ((15_000, 15_000), (375, 375))
    assert config.coefficients(FACES, "all") == ((20_000, 10_000), (500, 250))  # the face comes first
    tree = settings().region_tree()
    assert config.coefficients(tree, "all") == ((10_000, 20_000), (250, 500))
    assert Config(training="regular").coefficients(FACES, "all").fusion == (375, 375)
    assert Config(training="favored").coefficients(FACES, "face").fusion == (500, 250)


def test_settings_that_do_not_fit(generator: Generator, segments: Segments, tmp_path: Path) -> None:
    for words, call in (
        ("epsilon: expected a number above 0, at most 1, got 0", lambda: Config(epsilon=0)),
        ("stage2: expected 0 or more, got -1", lambda: Config(stage2=-1)),
        ("fusion_other: expected 0 or more", lambda: Config(fusion_other=-1.0)),
        ("hidden: expected at least 1", lambda: Config(hidden=0)),
        ("truncation: expected 0 to 1, or none, got 2", lambda: Config(truncation=2.0)),
        ("lr: expected a positive number", lambda: Config(lr=0)),
        ("nodes: expected inner nodes among all, main, got left", lambda: task(generator, segments, nodes=("left",))),
        ("expected steps in one of them, got none", lambda: task(generator, segments, stage1=0, stage2=0, stage3=0)),
        (
            "segments: node 'main': regions: expected clusters named left, got none",
            lambda: task(generator, segments.named({"left": "x"})),
        ),
        ("segments: expected clusters of this generator", lambda: task(generator, replace(segments, generator="0" * 64))),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="generator: expected a StyleGAN2, got none"):
        fitted(settings(), (), (8, 8), False)
    with pytest.raises(ValueError, match="segments: expected a file of its segments, got none"):
        fitted(settings(generator="g"), (), (8, 8), False)
    with pytest.raises(FileNotFoundError, match="generator: expected a run folder of mixsyn-fast train stylegan2"):
        load_generator(tmp_path / "none")
    made = task(generator, segments)
    with pytest.raises(ValueError, match=r"expected 6 codes or more for node 'main', .B, n, z_dim., got \(2, 4, 8\)"):
        made.losses("main_stage2", replace(batch(made), latents=batch(made).latents[:, :4]), 0)


def test_a_run_folder_says_all_of_tree_and_segments(segments: Segments, tmp_path: Path) -> None:
    segments.save(tmp_path / "s.json")
    made = fitted(Config(tree="cars", generator="faces", segments=str(tmp_path / "s.json")), (), (8, 8), False)
    assert Segments.from_json(made.segments).names == segments.names and made.generator == "faces"
    assert fitted(made, (), (8, 8), False) == made
    assert made.region_tree().tree == CARS.tree and made.region_tree().layout == CARS.layout
    assert TRAINABLES["stylefusion"].config is Config and not TRAINABLES["stylefusion"].needs_regions


def test_a_task_of_files(tmp_path: Path) -> None:
    """A run folder of StyleGAN2 and a file of segments, as the options name them."""
    small = [
        "--generator.z-dim",
        "4",
        "--generator.w-dim",
        "4",
        "--generator.mapping-layers",
        "1",
        "--generator.channel-max",
    ]
    words = [*small, "4", "--kind", "procedural_faces", "--count", "2", "--size", "16", "--batch-size", "2", "--steps", "1"]
    assert command.run(["stylegan2", *words, "--workers", "0", "--validation", "none", "--out", str(tmp_path / "gan")]) == 0
    trained = load_generator(tmp_path / "gan")
    assert not trained.training and trained.config.size == 16
    find_segments(trained, clusters=2, images=2, pixels=40).named({0: "church", 1: "background"}).save(tmp_path / "s.json")
    files = {"generator": str(tmp_path / "gan"), "segments": str(tmp_path / "s.json")}
    made = TRAINABLES["stylefusion"].build(fitted(Config(tree="churches", hidden=4, **files), (), (16, 16), False), True)
    assert isinstance(made, StyleFusionTask) and made.truncation == 0.5 and made.code_size == (4, 4)
    assert torch.isfinite(made.losses("all_stage2", batch(made), 0)["fusion"])
    other = fitted(settings(**files), (), (16, 16), False)
    assert other.generator == str(tmp_path / "gan")
    with pytest.raises(ValueError, match="segments: node 'all': regions: expected clusters named rest, got none"):
        TRAINABLES["stylefusion"].build(other, True)
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(ValueError, match="s.json: expected a file of Segments.save"):
        fitted(settings(**files), (), (16, 16), False)


# --- losses -----------------------------------------------------------------------------------------------------------


def second_form(made: StyleFusionTask, node: str, number: int, z: Tensor) -> dict[str, Tensor]:
    """The losses of one pair of codes, image by image, through the hierarchy as it is used."""
    config, generator, net = made.config, made.generator, made.nets[node]
    first, second = made.tree.tree[node]
    s1, s2, s_align, s_rnd, *above = (generator.styles(generator.truncate(generator.map(code[None]), 0.8)) for code in z)
    tree = made.hierarchy()
    codes = {} if node == "all" else {"all": above[0], "rest": above[1]}

    def image(code: Tensor) -> tuple[Tensor, list[Tensor]]:
        return generator.activations(tree(codes | {node: code}))  # the node is bypassed: nothing below it has a code

    def masks(layers: list[Tensor]) -> Tensor:
        return made.segments.masks(layers, [made.tree.within(first), made.tree.within(second)])

    def weights(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for i, code in enumerate((a, b)):
            layers = generator.activations(code)[1]
            regions = [made.tree.within(first), made.tree.within(second)]
            found.append(channel_weights(correlation(layers, made.segments.hard_masks(layers, regions)))[:, i])
        return found[0], found[1]

    local, fusion = config.coefficients(made.tree, node)
    if number == 1:
        target, total, reg, made_of = masks(image(s_align)[1]), 0.0, 0.0, []
        for code in (s1, s2):
            aligned, q = net.align(code, s_align, rgb_bit=True)
            total, reg = total + losses.mask_loss(masks(image(aligned)[1]), target), reg + q.sum()
            made_of.append(aligned)
        w = weights(s1, s2)
        terms = [(w[i] * (made_of[i] - code)).norm() for i, code in enumerate((s1, s2))]
        return {
            "mask": config.mask * total,
            "align_reg": config.align_reg1 * reg,
            "fusion": fusion[0] * terms[0] + fusion[1] * terms[1],
        }
    fused = net.fuse(s1, s2, s_align)
    sources = fused.aligned if number == 2 else (s1, s2)
    w = weights(*sources)
    terms = [(w[i] * (fused.code - code)).norm() for i, code in enumerate(sources)]
    found = {"fusion": fusion[0] * terms[0] + fusion[1] * terms[1]}
    if number == 2:
        return found
    result, layers = image(fused.code)
    m = torch.nn.functional.interpolate(masks(layers), size=32, mode="bilinear")
    moved = [code + config.epsilon * (s_rnd - code) for code in (s1, s2)]
    changed = [image(net(moved[0], s2, s_align))[0], image(net(s1, moved[1], s_align))[0]]
    shares = [((result - changed[1 - i]) * m[:, i, None]).norm() / m[:, i].sum() for i in range(2)]
    found["local"] = local[0] * shares[0] + local[1] * shares[1]
    if config.mask3:
        found["mask"] = config.mask3 * losses.mask_loss(masks(layers), masks(image(s_align)[1]))
    found["align_reg"] = config.align_reg3 * (fused.q_align[0].sum() + fused.q_align[1].sum())
    return found


@pytest.mark.parametrize("node", ["all", "main"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_losses_against_a_second_form(node: str, number: int, generator: Generator, segments: Segments) -> None:
    made = task(generator, segments, mask3=10.0 if node == "main" else 0.0)
    given = batch(made)
    found = made.losses(f"{node}_stage{number}", given, 0)
    with torch.no_grad():
        each = [second_form(made, node, number, z) for z in given.latents]
    assert set(found) == set(each[0])
    for name, value in found.items():
        expected = sum(float(losses[name]) for losses in each) / len(each)
        assert expected > 0 and value.item() == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("name", ["align_reg", "fusion"])
def test_what_the_mask_loss_opposes_falls_when_it_stands_alone(name: str, generator: Generator, segments: Segments) -> None:
    """Aligning is what they hold back: in stage 1 of the run below they rise, for the mask loss falls."""
    off = {field: 0.0 for field in ("mask", "align_reg1", "fusion") if field.removesuffix("1") != name}
    made = task(generator, segments, **off)
    given, phase = batch(made), "main_stage1"
    weights = [p for network in made.phases[phase].networks for p in made.networks[network].parameters()]
    optimizer = torch.optim.Adam(weights, lr=0.5)
    values = []
    for _ in range(12):
        loss = made.losses(phase, given, 0)[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.97 * values[0], values


# --- the loop ---------------------------------------------------------------------------------------------------------


def options(folder: Path, steps: int, **changes: Any) -> Options:
    given: dict[str, Any] = {"device": "cpu", "batch_size": 2, "workers": 0, "log_every": 1, "validate_every": 0}
    return Options(out=str(folder), steps=steps, **(given | {"sheet_every": 0, "keep_last": 99} | changes))


def run(made: StyleFusionTask, folder: Path, steps: int, **changes: Any) -> None:
    data = LatentDataset(6, made.code_size, seed=3)
    train(made, options(folder, steps, **changes), data, data, config={"model": "stylefusion"})


def state(folder: Path, step: int) -> dict[str, dict[str, Tensor]]:
    saved = checkpoint.checkpoint_at(folder / "checkpoints", step)
    return {group: saved.tensors(group) for group in saved.groups if group != "random"}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[name]) for name, value in a.items())


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_fifty_steps_a_stage(generator: Generator, segments: Segments, tmp_path: Path) -> None:
    """The objective of every stage falls, and so does every loss but those that hold the alignment back."""
    weights = {"fusion": 30.0, "align_reg1": 2.0, "training": "regular"}
    made = task(generator, segments, nodes=("all",), hidden=32, stage1=50, stage2=50, stage3=50, **weights)
    first = {f"network.{n}": {k: v.clone() for k, v in net.state_dict().items()} for n, net in made.networks.items()}
    data = LatentDataset(4, made.code_size, seed=3)
    train(made, options(tmp_path, 150, batch_size=4, save_every=50), data)
    lines = log(tmp_path)
    for number, start in ((1, 0), (2, 50), (3, 100)):
        begin, end = lines[start], lines[start + 49]
        names = [name for name in begin if name.startswith(f"all_stage{number}/")]
        assert sum(end[name] for name in names) < 0.9 * sum(begin[name] for name in names)
        opposed = ["all_stage1/align_reg", "all_stage1/fusion"]
        assert all(end[name] < 0.99 * begin[name] for name in names if name not in opposed), (begin, end)
    saved = [first, *(state(tmp_path, step) for step in (50, 100, 150))]
    moved = [
        {name for name in first if not same(before[name], after[name])}
        for before, after in zip(saved, saved[1:], strict=False)
    ]
    assert moved == [{"network.align_all"}, {"network.fuse_all"}, {"network.align_all", "network.fuse_all"}]


def test_a_run_moves_one_stage_at_a_time_and_goes_on_bit_for_bit(
    generator: Generator, segments: Segments, tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in generator.state_dict().items()}
    fields = {"stage1": 3, "stage2": 2, "stage3": 2, "weight_decay": 0.1}
    made = task(generator, segments, **fields)
    assert made.config.steps(made.tree) == 14
    run(made, tmp_path / "whole", 14, save_every=1, sheet_every=7, validate_every=7, sheet_images=2)
    before_it = {f"network.{n}": dict(net.state_dict()) for n, net in task(generator, segments, **fields).networks.items()}
    for stage in made.stages.values():
        trained = {f"network.{name}" for name in made._trained(stage)}
        after = state(tmp_path / "whole", stage.stop)
        for group in before_it:
            # bit for bit, whatever weight decay and the moments of stages before would do
            assert same(before_it[group], after[group]) == (group not in trained), (stage, group)
        before_it = {group: after[group] for group in before_it}
    assert same(before, generator.state_dict())
    names = {name for line in log(tmp_path / "whole") for name in line}
    assert {"all_stage1/mask", "all_stage2/fusion", "main_stage3/local", "validation/mask", "validation/locality"} <= names
    assert len(list((tmp_path / "whole" / "samples").glob("*.png"))) == 2
    # in the middle of a stage
    run(task(generator, segments, **fields), tmp_path / "parts", 9, save_every=9)
    run(task(generator, segments, **fields), tmp_path / "parts", 14, save_every=14)
    for group, tensors in state(tmp_path / "parts", 14).items():
        assert same(tensors, state(tmp_path / "whole", 14)[group]), group
    # what comes out is what a hierarchy computes
    last = task(generator, segments, nodes=("main",), **fields)
    assert last.config.needed_nodes(last.tree) == ("all",) and list(last.stages) == [f"main_stage{i}" for i in (1, 2, 3)]
    run(last, tmp_path / "below", 1, init_from=str(tmp_path / "whole"), save_every=1)
    above = state(tmp_path / "below", 1)
    assert same(above["network.fuse_all"], state(tmp_path / "whole", 14)["network.fuse_all"])
    assert not same(above["network.align_main"], state(tmp_path / "whole", 14)["network.align_main"])


def test_images_and_figures(generator: Generator, segments: Segments) -> None:
    made = task(generator, segments)
    made.load_state({"node": "main"})
    assert made.node == "main" and made.state() == {"node": "main"}
    given = batch(made)
    with torch.no_grad():
        image = made.generate(given, made.networks)
        figures, rows = made.validate(given, made.networks), made.sheet(given, made.networks)
        context = made.context(given, "main")
        tree = made.hierarchy().eval()
        codes = {"all": context.above[0][0], "rest": context.above[0][1], "main": context.align}
        code = tree(codes | {"left": context.first, "right": context.second}, strict=True)
        assert torch.allclose(image, generator.synthesis(code), atol=1e-5)
    assert all(value.shape == (2,) and bool(torch.isfinite(value).all()) for value in figures.values())
    assert set(figures) == {"mask", "locality", "region_share"} and bool((figures["locality"] <= 1).all())
    assert len(rows) == 2 and len(rows[0]) == 6 and rows[0][0].shape == (32, 32, 3)


def test_half_precision(generator: Generator, segments: Segments) -> None:
    """Codes, whose differences are learnt from, keep their digits; every stage's losses and gradients are finite."""
    made = task(generator, segments)
    data = batch(made)
    with torch.autocast("cpu", torch.bfloat16):
        under = made.context(data, "all")
    plain = made.context(data, "all")
    assert torch.equal(under.first, plain.first) and under.align.dtype == torch.float32
    for name in made.stages:
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.stack([each.float() for each in made.losses(name, data, 0).values()]).sum()
        loss.backward()
    gradients = [p.grad for net in made.networks.values() for p in net.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
