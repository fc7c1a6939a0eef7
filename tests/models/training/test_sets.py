"""Training on what has no label maps (pictures, latent codes, anything with a collate function); phases with periods."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("PIL", reason="pillow is not installed")

from mixsyn_fast.models.data import (
    Collated,
    DataOptions,
    ImageBatch,
    LatentBatch,
    LatentDataset,
    Loader,
    Packed,
    RegionDataset,
    open_source,
)
from mixsyn_fast.models.training import Options, Phase, Task, Trainable, checkpoint, train
from mixsyn_fast.models.training.distributed import World
from mixsyn_fast.models.training.trainer import Trainer, check, groups
from PIL import Image

from mixsyn_fast import cli

SIZE = 12  # of the pictures: SSIM needs 11
WORLD = World(0, 1, 0, torch.device("cpu"))


class Painter(Task):
    """A generator that copies pictures, in every third step; a discriminator; R1 in every second step, on its network."""

    def __init__(self, noise: float = 0.0, every: int = 3) -> None:
        torch.manual_seed(3)
        self.networks = {
            "generator": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)),
            "discriminator": nn.Sequential(nn.Conv2d(3, 4, 4, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3)),
        }
        self.phases = {
            "discriminator": Phase(("discriminator",), lr=4e-3),
            "generator": Phase(("generator",), lr=1e-2, every=every),
            "r1": Phase(("discriminator",), lr=1e-3, every=2),
        }
        self.averaged = ("generator",)
        self.noise = noise
        self.seen: list[tuple[str, int, tuple[str, ...]]] = []

    def generate(self, batch: ImageBatch, networks: Any) -> Tensor:
        return networks["generator"](batch.image + self.noise * torch.randn_like(batch.image))

    def losses(self, phase: str, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        self.seen.append((phase, step, batch.names))
        judge = self.networks["discriminator"]
        if phase == "r1":
            real = batch.image.detach().requires_grad_()
            (slope,) = torch.autograd.grad(judge(real).sum(), real, create_graph=True)
            return {"penalty": slope.square().sum((1, 2, 3)).mean()}
        with torch.set_grad_enabled(phase == "generator"):
            fake = self.generate(batch, self.networks)
        if phase == "generator":
            return {"l1": 10 * (fake - batch.image).abs().mean(), "adversarial": -judge(fake).mean()}
        return {"hinge": torch.relu(1 - judge(batch.image)).mean() + torch.relu(1 + judge(fake)).mean()}


class Mapper(Task):
    """A network of latent codes: two of them come together, and their mean is to be found."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.networks = {"mapper": nn.Linear(12, 6)}
        self.phases = {"mapper": Phase(("mapper",), lr=1e-2, betas=(0.9, 0.99))}
        self.averaged = ()
        self.seen: list[tuple[str, int, tuple[str, ...]]] = []

    def generate(self, batch: LatentBatch, networks: Any) -> Tensor:
        return networks["mapper"](batch.latents.flatten(1))

    def losses(self, phase: str, batch: LatentBatch, step: int) -> dict[str, Tensor]:
        self.seen.append((phase, step, batch.names))
        return {"l2": (self.generate(batch, self.networks) - batch.latents.mean(1)).square().mean()}

    def validate(self, batch: LatentBatch, networks: Any) -> dict[str, Tensor]:
        return {"psnr": -(self.generate(batch, networks) - batch.latents.mean(1)).square().mean(1)}


def pictures(folder: Path, count: int = 10) -> RegionDataset:
    """Pictures in a folder and one inside it."""
    if not folder.exists():
        (folder / "more").mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (6, 7, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / ("more" if i % 2 else ".") / f"{i}.png")
    return RegionDataset(open_source(folder, "images"), SIZE, crop="random", flip=0.5, seed=5)


def codes(count: int = 10) -> LatentDataset:
    return LatentDataset(count, (2, 6), seed=7)


def options(folder: Path, **changes: Any) -> Options:
    plain = {"device": "cpu", "steps": 7, "batch_size": 4, "workers": 0, "log_every": 1, "save_every": 4}
    return Options(out=str(folder), **(plain | {"sheet_every": 0, "validate_every": 0, "ema_decay": 0.5} | changes))


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    saved = checkpoint.newest_valid(folder / "checkpoints")
    assert saved is not None
    return {f"{g}.{key}": value for g in saved.groups if g != "random" for key, value in saved.tensors(g).items()}


# --- periods ----------------------------------------------------------------------------------------------------------


def test_a_phase_runs_in_the_first_step_of_every_period(tmp_path: Path) -> None:
    task = Painter()
    train(task, options(tmp_path), pictures(tmp_path / "set"))
    steps = {name: [step for phase, step, _ in task.seen if phase == name] for name in task.phases}
    assert steps == {"discriminator": list(range(7)), "generator": [0, 3, 6], "r1": [0, 2, 4, 6]}
    batches = {step: names for phase, step, names in task.seen if phase == "discriminator"}
    assert all(batches[step] == names for _, step, names in task.seen)  # the batch of the step, whoever runs
    for line in log(tmp_path):
        step = int(line["step"]) - 1
        for name in ("generator/l1", "lr/generator"):
            assert (name in line) == (step % 3 == 0)
        assert ("r1/penalty" in line) == (step % 2 == 0) and "discriminator/hinge" in line


def test_means_of_the_log_are_over_the_steps_in_which_a_phase_ran(tmp_path: Path) -> None:
    train(Painter(), options(tmp_path / "one"), pictures(tmp_path / "set"))
    train(Painter(), options(tmp_path / "two", log_every=2), pictures(tmp_path / "set"))
    every = {line["step"]: line for line in log(tmp_path / "one")}
    for line in log(tmp_path / "two"):
        steps = [line["step"]] if line["step"] == 7 else [line["step"] - 1, line["step"]]
        for name in ("generator/l1", "discriminator/hinge", "r1/penalty"):
            single = [every[step][name] for step in steps if name in every[step]]
            assert (name in line) == bool(single)
            assert not single or line[name] == pytest.approx(sum(single) / len(single), rel=1e-6)
    assert "generator/l1" not in log(tmp_path / "two")[2] and "lr/generator" not in log(tmp_path / "two")[2]


def test_periods_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        Phase(("generator",), lr=1e-3, every=0)
    task = Painter()
    del task.phases["discriminator"]
    with pytest.raises(ValueError, match="phases: expected one that runs in every step, got generator, r1"):
        train(task, options(tmp_path / "run"), pictures(tmp_path / "set"))
    assert not (tmp_path / "run").exists()


def test_windows() -> None:
    """A phase with a first and a last step: the period counts from the first one."""
    phase = Phase(("generator",), lr=1e-3, every=3, start=2, stop=9)
    assert [step for step in range(20) if phase.due(step)] == [2, 5, 8]
    assert [step for step in (2, 5, 8) if phase.finished(step)] == [8]
    assert [step for step in (2, 5) if replace(phase, stop=8).finished(step)] == [5]  # 8 is no longer one of its steps
    endless = replace(phase, every=1, stop=None)
    assert [endless.due(step) for step in (0, 1, 2, 10**9)] == [False, False, True, True] and not endless.finished(10**9)
    for words, start, stop in (
        ("start: expected 0 or more, got -1", -1, None),
        ("stop: expected more than start 4, or none, got 4", 4, 4),
    ):
        with pytest.raises(ValueError, match=words):
            Phase(("generator",), lr=1e-3, start=start, stop=stop)


@pytest.mark.parametrize(
    ("windows", "gap"),
    [
        ([(0, 3), (3, None)], None),
        ([(3, None), (0, 4)], None),
        ([(1, None)], 0),
        ([(0, 3), (4, None)], 3),
        ([(0, 3), (3, 7)], 7),
    ],
)
def test_every_step_has_a_phase(windows: list[tuple[int, int | None]], gap: int | None, tmp_path: Path) -> None:
    task, data = Painter(), pictures(tmp_path / "set")
    judge = task.phases.pop("discriminator")
    task.phases |= {f"judge_{i}": replace(judge, start=start, stop=stop) for i, (start, stop) in enumerate(windows)}
    if gap is None:
        check(task, data)
        return
    with pytest.raises(ValueError, match=f"phases: expected one that runs in every step, got .*, none in step {gap}"):
        check(task, data)
    task.total_steps = gap
    check(task, data)


def test_moments_go_with_the_last_step_of_a_window(tmp_path: Path) -> None:
    task = Painter()
    task.phases["generator"] = replace(task.phases["generator"], every=2, stop=4)
    train(task, options(tmp_path / "long", save_every=1), pictures(tmp_path / "set"))
    steps = [step for phase, step, _ in task.seen if phase == "generator"]
    assert steps == [0, 2]
    saved = checkpoint.newest_valid(tmp_path / "long" / "checkpoints")
    assert saved is not None and not saved.tensors("optimizer.generator") and saved.tensors("optimizer.discriminator")


def test_phases_that_share_a_network_are_one_module() -> None:
    """Else DistributedDataParallel takes a parameter for used that another phase's backward pass touched."""
    names = {"a": ("x",), "b": ("y",), "c": ("z",), "d": ("y", "z"), "e": ("x",)}
    found = groups({name: Phase(networks, lr=1.0) for name, networks in names.items()})
    assert sorted(sorted(phases) for phases, _ in found) == [["a", "e"], ["b", "c", "d"]]
    assert {tuple(sorted(networks)) for _, networks in found} == {("x",), ("y", "z")}


# --- pictures and codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, workers", [(Painter, 0), (Painter, 1), (Mapper, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, make: type[Painter] | type[Mapper], workers: int) -> None:
    """Stopped within a period: the generator runs in steps 0, 3 and 6, the run is cut behind step 4."""
    dataset: Any = codes() if make is Mapper else pictures(tmp_path / "set")
    whole, first, second = make(), make(), make()
    train(whole, options(tmp_path / "whole", workers=workers), dataset)
    train(first, options(tmp_path / "parts", workers=workers, steps=5), dataset)
    train(second, options(tmp_path / "parts", workers=workers), dataset)
    assert first.seen + second.seen == whole.seen and len(second.seen) == 2 * len(make().phases) - (make is Painter) * 2
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_plain_pictures_learn_and_are_shown(tmp_path: Path) -> None:
    train(
        Painter(every=1),
        options(tmp_path, steps=30, sheet_every=30, validate_every=30, validate_images=5),
        pictures(tmp_path / "set"),
        RegionDataset(open_source(tmp_path / "set", "images"), SIZE),
    )
    lines = log(tmp_path)
    assert lines[29]["generator/l1"] < 0.8 * lines[0]["generator/l1"]
    assert lines[30]["validation/psnr"] > 0 and len(list((tmp_path / "samples").glob("*.png"))) == 1


def test_batches_of_plain_pictures(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "set")
    assert dataset.num_regions == 0 and dataset.source.classes == ()
    assert dataset.source.names() == ["0", "2", "4", "6", "8", *(f"more/{i}" for i in (1, 3, 5, 7, 9))]
    batch, again = (next(Loader(dataset, 4, seed=2, workers=workers)) for workers in (0, 1))
    assert isinstance(batch, ImageBatch) and batch.names == again.names and torch.equal(batch.image, again.image)
    assert batch.image.shape == (4, 3, SIZE, SIZE) and batch.image.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="regions: expected a data set with label maps, got plain pictures"):
        _ = batch.regions


def test_folders_of_plain_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "set")
    assert len(open_source(tmp_path / "set", "images", "all")) == 10
    with pytest.raises(FileNotFoundError, match="val: no such folder of pictures; there is: train"):
        open_source(tmp_path / "set", "images", "val")
    (tmp_path / "set").rename(tmp_path / "train")
    pictures(tmp_path / "val" / "images", 4)
    (tmp_path / "val" / "labels").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "val" / "labels" / "0.png")
    assert len(open_source(tmp_path, "images", "train")) == 10
    assert open_source(tmp_path, "images", "val").names() == ["0", "2", "more/1", "more/3"]
    assert "val/images/more/3" in open_source(tmp_path, "images", "all").names()
    assert len(DataOptions(data=str(tmp_path), kind="images").validation_set() or ()) == 4
    (tmp_path / "train" / "0.jpg").write_bytes((tmp_path / "train" / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"expected one picture per name, got 0\.jpg and 0\.png"):
        open_source(tmp_path, "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: holds no picture"):
        open_source(tmp_path / "empty", "images")


def test_a_bad_file_among_plain_pictures(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "set")
    (tmp_path / "set" / "more" / "3.png").write_bytes(b"no picture")
    loader = Loader(dataset, 10, workers=1)
    with pytest.warns(UserWarning, match=r"skipped more/3: .*3\.png: not a readable image file"):
        batch = next(loader)
    assert batch.skipped == ("more/3",) and sorted(batch.names).count("more/5") == 2


def test_codes_are_the_same_for_ever() -> None:
    dataset = LatentDataset(5, 3, seed=1)
    index, code = dataset[2]
    assert index == 2 and code.dtype == np.float32 and np.array_equal(code, dataset[(9, 2)][1])
    assert code.tolist() == pytest.approx([1.0092027, 0.04183615, -0.8120757], rel=1e-6)
    assert not np.array_equal(code, dataset[3][1]) and not np.array_equal(code, LatentDataset(5, 3, seed=2)[2][1])
    many = np.stack([LatentDataset(2000, 4)[i][1] for i in range(2000)])
    assert abs(many.mean()) < 0.06 and abs(many.std() - 1) < 0.04 and abs(np.corrcoef(many.T) - np.eye(4)).max() < 0.1
    for wrong in ({"length": 0}, {"size": 0}, {"size": ()}, {"seed": -1}):
        with pytest.raises(ValueError, match="length, size, seed: expected at least 1, 1 and 0"):
            LatentDataset(**({"length": 2, "size": 3} | wrong))
    with pytest.raises(IndexError, match="index: expected 0 to 4, got 5"):
        dataset[5]


def test_batches_of_codes_are_one_piece_of_memory() -> None:
    here, there = (next(Loader(codes(), 4, workers=workers)) for workers in (0, 1))
    assert isinstance(there, LatentBatch) and there.latents.shape == (4, 2, 6) and here.names == there.names
    assert torch.equal(here.latents, there.latents) and torch.equal(here.index, there.index)
    assert there.latents.untyped_storage().data_ptr() == there.index.untyped_storage().data_ptr()
    moved = there.to("meta")
    assert moved.latents.device.type == "meta" and moved.index is there.index and moved.names == there.names
    assert there.to("cpu") is there


@dataclass(frozen=True, eq=False)
class Rows(Packed):
    rows: dict[str, Tensor]
    names: tuple[str, ...]
    index: Tensor
    skipped: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def rows(items: list[tuple[Tensor, ...]]) -> Rows:
    at = torch.tensor([int(number) for _, number in items])
    return Rows({"x": torch.stack([x for x, _ in items])}, tuple(map(str, at.tolist())), at)


def test_any_data_set_with_a_collate_function(tmp_path: Path) -> None:
    class Regression(Mapper):
        def generate(self, batch: Any, networks: Any) -> Tensor:
            return networks["mapper"](batch.rows["x"])

        def losses(self, phase: str, batch: Any, step: int) -> dict[str, Tensor]:
            return {"l2": (self.generate(batch, self.networks) - batch.rows["x"][:, :6]).square().mean()}

    generator = torch.Generator().manual_seed(0)
    dataset = torch.utils.data.TensorDataset(torch.randn(9, 12, generator=generator), torch.arange(9))
    train(Regression(), options(tmp_path, steps=40, workers=1), Collated(dataset, rows))
    lines = log(tmp_path)
    assert len(lines) == 40 and lines[-1]["mapper/l2"] < 0.7 * lines[0]["mapper/l2"]


def test_a_task_that_needs_regions_says_so_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Painter()
    task.num_regions = 19
    with pytest.raises(ValueError, match=r"dataset: expected label maps of 19 regions, got none \(kind images\)"):
        train(task, options(tmp_path / "run"), pictures(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"dataset: expected label maps of 19 regions, got none \(kind latents\)"):
        Trainer(task, options(tmp_path / "run"), codes(), WORLD)
    facades = RegionDataset(open_source(None, "procedural_facades", count=4, size=8), 8)
    with pytest.raises(ValueError, match=r"expected label maps of 19 regions, got 12 \(kind procedural_facades\)"):
        train(task, options(tmp_path / "run"), facades)
    source = open_source(tmp_path / "set", "images")
    with pytest.raises(ValueError, match="kind: expected a data set with label maps, which spade learns from, got images"):
        Trainable(dict, lambda *_: None, lambda *_: task).check("spade", source)
    Trainable(dict, lambda *_: None, lambda *_: task, needs_regions=False).check("fusion", source)
    capsys.readouterr()
    words = ["--kind", "images", "--data", str(tmp_path / "set"), "--size", "16", "--device", "cpu"]
    assert cli.main(["train", "spade", *words, "--out", str(tmp_path / "run")]) == 2
    assert "kind: expected a data set with label maps, which spade learns from, got images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_inspecting_plain_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "set")
    assert cli.main(["data", "inspect", str(tmp_path / "set"), "--kind", "images", "--out", str(tmp_path / "s.png")]) == 0
    assert "10 pictures, 0 classes" in capsys.readouterr().out and (tmp_path / "s.png").is_file()
