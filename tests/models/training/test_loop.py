"""The training loop on a small GAN: phases, resuming, accumulation, processes, and what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("PIL", reason="pillow is not installed")

from mixsyn_fast.models.data import RegionDataset, open_source
from mixsyn_fast.models.training import Options, Phase, Schedule, Task, checkpoint, train
from mixsyn_fast.models.training.distributed import World
from mixsyn_fast.models.training.initial import find_weights, read_weights
from mixsyn_fast.models.training.loop import begin
from mixsyn_fast.models.training.trainer import Trainer

from mixsyn_fast import cli
from tests import processes

SIZE = 32
WORLD = World(0, 1, 0, torch.device("cpu"))


class TinyGan(Task):
    """A generator of two convolutions with batch statistics, a discriminator of one, weighted losses, noise."""

    def __init__(self, *, norm: bool = True, at_step: dict[int, object] | None = None) -> None:
        torch.manual_seed(3)
        middle = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.networks = {
            "generator": nn.Sequential(
                nn.Conv2d(20, 8, 3, padding=1), middle, nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh()
            ),
            "discriminator": nn.Sequential(nn.Conv2d(3, 8, 4, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4)),
        }
        self.phases = {
            "generator": Phase(("generator",), lr=1e-3),
            "discriminator": Phase(("discriminator",), lr=4e-3, betas=(0.0, 0.99), weight_decay=1e-4),
        }
        self.averaged = ("generator",)
        self.num_regions = 19
        self.at_step = at_step or {}
        self.noise = norm
        self.seen: list[tuple[str, ...]] = []

    def generate(self, batch, networks):
        onehot = batch.regions.onehot()
        noise = torch.randn_like(onehot[:, :1]) if self.noise else torch.zeros_like(onehot[:, :1])
        return networks["generator"](torch.cat((onehot, noise), 1))

    def losses(self, phase: str, batch, step: int) -> dict[str, Tensor]:
        if phase == "generator":
            self.seen.append(batch.names)
            if step in self.at_step:
                self.at_step[step]()  # type: ignore[operator]
            fake = self.generate(batch, self.networks)
            return {
                "adversarial": -self.networks["discriminator"](fake).mean(),
                "l1": 10 * (fake - batch.image).abs().mean(),
            }
        with torch.no_grad():
            fake = self.generate(batch, self.networks)
        real = batch.image.detach().requires_grad_()
        score = self.networks["discriminator"](real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        return {
            "real": torch.relu(1 - score).mean(),
            "fake": torch.relu(1 + self.networks["discriminator"](fake)).mean(),
            "r1": 0.5 * slope.square().sum((1, 2, 3)).mean(),
        }


def faces(count: int = 12, **options) -> RegionDataset:
    return RegionDataset(open_source(None, kind="procedural_faces", count=count, seed=1), SIZE, flip=0.5, seed=5, **options)


def options(folder: Path, **changes) -> Options:
    plain = {
        "device": "cpu",
        "steps": 6,
        "batch_size": 4,
        "workers": 0,
        "log_every": 1,
        "save_every": 2,
        "sheet_every": 0,
        "validate_every": 0,
    }
    return Options(out=str(folder), **(plain | changes))


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    saved = checkpoint.newest_valid(folder / "checkpoints")
    assert saved is not None
    groups = [group for group in saved.groups if group != "random"]
    found = {f"{group}.{key}": value for group in groups for key, value in saved.tensors(group).items()}
    return found | {"step": torch.tensor(saved.step)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_training_learns_and_leaves_everything_behind(tmp_path):
    newest = train(
        TinyGan(),
        options(tmp_path, steps=30, sheet_every=15, validate_every=10),
        faces(),
        faces(6),
        config={"model": "tiny"},
    )
    lines = log(tmp_path)
    steps = [line for line in lines if "generator/l1" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert steps[-1]["generator/l1"] < 0.8 * steps[0]["generator/l1"]
    for name in (
        "generator/adversarial",
        "discriminator/real",
        "discriminator/r1",
        "images_per_second",
        "data_ms",
        "peak_gb",
    ):
        assert steps[0][name] == steps[0][name]
    judged = [line for line in lines if "validation/psnr" in line]
    assert [line["step"] for line in judged] == [10, 20, 30]
    assert judged[-1]["validation/psnr"] > judged[0]["validation/psnr"]
    assert newest.name == "step_00000030" and len(list((tmp_path / "samples").glob("*.png"))) == 2
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "tiny"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, workers):
    whole = TinyGan()
    train(whole, options(tmp_path / "whole", workers=workers), faces())
    stopped = TinyGan(at_step={2: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    train(stopped, options(tmp_path / "parts", workers=workers), faces())
    assert weights(tmp_path / "parts")["step"] == 3  # the step of the signal is finished and saved
    again = TinyGan()
    train(again, options(tmp_path / "parts", workers=workers), faces())
    assert stopped.seen + again.seen == whole.seen and len(again.seen) == 3
    same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [line["step"] for line in log(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        assert a["generator/l1"] == b["generator/l1"] and a["discriminator/r1"] == b["discriminator/r1"]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    train(TinyGan(), options(tmp_path / "whole"), faces())
    train(TinyGan(), options(tmp_path / "hurt"), faces())
    file = tmp_path / "hurt" / "checkpoints" / "step_00000006" / "network.generator.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    again = TinyGan()
    train(again, options(tmp_path / "hurt"), faces())
    assert len(again.seen) == 2  # from step 4
    assert "network.generator.safetensors" in "".join(capsys.readouterr())
    same(weights(tmp_path / "whole"), weights(tmp_path / "hurt"))


def test_phases_touch_their_own_networks_only(tmp_path):
    task = TinyGan()
    trainer = Trainer(task, options(tmp_path), faces(), WORLD)
    batch = next(trainer.loader)
    before = {name: [p.clone() for p in network.parameters()] for name, network in task.networks.items()}
    trainer.run_phase("discriminator", [batch])
    assert all(torch.equal(a, b) for a, b in zip(before["generator"], task.networks["generator"].parameters(), strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(before["discriminator"], task.networks["discriminator"].parameters(), strict=True)
    )
    assert all(p.grad is None for p in task.networks["generator"].parameters())
    trainer.close()


def test_no_gradient_reaches_the_networks_of_another_phase(tmp_path):
    """The generator's losses go through the discriminator, which is frozen meanwhile."""
    task = TinyGan()
    trainer = Trainer(task, options(tmp_path), faces(), WORLD)
    trainer.run_phase("generator", [next(trainer.loader)])
    assert all(p.grad is not None for p in task.networks["generator"].parameters())
    assert all(p.grad is None for p in task.networks["discriminator"].parameters())
    trainer.close()


def test_every_step_draws_other_numbers(tmp_path):
    drawn: list[float] = []
    task = TinyGan(at_step={step: lambda: drawn.append(float(torch.rand(()))) for step in range(5)})
    train(task, options(tmp_path, steps=4), faces())
    assert len(drawn) == len(set(drawn)) == 4


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    trained = {}
    for pieces in (1, 2, 4):
        task = TinyGan(norm=False)
        trainer = Trainer(task, options(tmp_path, accumulate=pieces), faces(), WORLD)
        batches = [next(trainer.loader) for _ in range(pieces)]
        assert sum(len(batch) for batch in batches) == 4
        trainer.run_phase("generator", batches)
        trained[pieces] = [p.grad.double() for p in task.networks["generator"].parameters()]
        trainer.close()
    for pieces in (2, 4):
        for a, b in zip(trained[1], trained[pieces], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_schedule_and_learning_rates(tmp_path):
    schedule = Schedule(kind="linear", start=0.5)
    train(TinyGan(), options(tmp_path, steps=8, clip_norm=1e-3, schedule=schedule), faces())
    lines = log(tmp_path)
    assert all(line["generator/gradient_norm"] > 1e-3 for line in lines)  # the norm before clipping
    rates = [line["lr/discriminator"] for line in lines]
    assert rates[:4] == [4e-3] * 4 and rates[4] >= rates[5] > rates[6] > rates[7] > 0
    assert lines[0]["lr/generator"] == 1e-3


@pytest.mark.parametrize(
    "changes", [{"amp": "bf16"}, {"amp": "fp16"}, {"channels_last": False}, {"ema_decay": 0.0}, {"deterministic": True}]
)
def test_switches(tmp_path, changes):
    train(TinyGan(), options(tmp_path, steps=3, **changes), faces())
    assert len(log(tmp_path)) == 3 and weights(tmp_path / ".")["step"] == 3


def compiles_second_derivatives() -> bool:
    """Whether this torch does, asked with a network of one weight."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Softplus())
    net.compile()
    x = torch.ones(1, 1, requires_grad=True)
    try:
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        slope.sum().backward()
    except RuntimeError as error:
        assert "double backward" in str(error) or "create_graph=False" in str(error)
        return False
    return True


@pytest.mark.slow
def test_compiled_networks_train_alike(tmp_path):
    train(TinyGan(), options(tmp_path / "plain", steps=2), faces())
    if not compiles_second_derivatives():  # torch 2.14
        with pytest.raises(ValueError, match=r"compile: torch 2\..* phase 'discriminator' takes them .* --no-compile"):
            train(TinyGan(), options(tmp_path / "compiled", steps=2, compile=True), faces())
        return
    train(TinyGan(), options(tmp_path / "compiled", steps=2, compile=True), faces())
    for a, b in zip(log(tmp_path / "plain"), log(tmp_path / "compiled"), strict=True):
        assert a["generator/l1"] == pytest.approx(b["generator/l1"], rel=1e-4)
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task = TinyGan()
    task.at_step = {4: lambda: task.networks["generator"][0].weight.data.fill_(float("nan"))}
    with pytest.raises(FloatingPointError, match=r"step 5: .*generator/l1.* not finite"):
        train(task, options(tmp_path), faces())
    assert weights(tmp_path)["step"] == 4  # the last good state
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """Whatever the log's interval: a checkpoint comes after a check of the losses."""
    task = TinyGan()
    task.at_step = {3: lambda: task.networks["generator"][0].weight.data.fill_(float("nan"))}
    with pytest.raises(FloatingPointError, match="step 4"):
        train(task, options(tmp_path, log_every=100), faces())
    assert weights(tmp_path)["step"] == 2


def test_an_infinite_gradient_under_a_loss_scale_is_no_failure(tmp_path):
    task = TinyGan()
    train(task, options(tmp_path, amp="fp16", clip_norm=1.0, steps=4), faces())
    lines = log(tmp_path)
    assert len(lines) == 4 and all(line["loss_scale/generator"] > 0 for line in lines)


def test_a_signal_to_the_whole_group_saves(tmp_path):
    """As Ctrl-C, `timeout` and batch systems send it: the data workers get it too."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('here', sys.argv[1])\n"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)\n"
        "from pathlib import Path\n"
        "options = here.options(Path(sys.argv[2]), workers=2, steps=10**6, save_every=10**6)\n"
        "here.train(here.TinyGan(), options, here.faces())\n"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        process = subprocess.Popen(  # a program of its own, as users start it
            [sys.executable, "-c", code, __file__, str(folder)],
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        while not (folder / "log.jsonl").exists() or len(log(folder)) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert weights(folder)["step"] >= 3 and "stopped as asked" in said


def test_a_stop_at_the_best_step_keeps_it_the_best(tmp_path):
    task = TinyGan(at_step={1: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    figures = iter([1.0, 3.0])
    task.validate = lambda batch, networks: {"psnr": torch.full((len(batch),), next(figures))}  # type: ignore[method-assign]
    train(task, options(tmp_path, validate_every=1, save_every=100, keep_last=1), faces(), faces(4))
    best = checkpoint.newest_valid(tmp_path / "checkpoints", best=True)
    assert best is not None and best.step == 2


def test_settings_of_the_optimisers_may_change_on_resume(tmp_path):
    train(TinyGan(), options(tmp_path, steps=2), faces())
    task = TinyGan()
    task.phases["generator"] = dataclasses.replace(task.phases["generator"], lr=5e-4, betas=(0.5, 0.9), weight_decay=0.1)
    trainer = Trainer(task, options(tmp_path), faces(), WORLD)
    trainer.load(checkpoint.newest_valid(tmp_path / "checkpoints"))
    group = trainer.optimizers["generator"].param_groups[0]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.5, 0.9), 0.1, 5e-4)
    assert trainer.optimizers["generator"].state  # the moments are those of the checkpoint
    trainer.close()


def test_an_average_and_a_loss_scale_may_begin_on_resume(tmp_path, capsys):
    train(TinyGan(), options(tmp_path, steps=2, ema_decay=0.0), faces())
    train(TinyGan(), options(tmp_path, steps=4, ema_decay=0.9, amp="fp16"), faces())
    assert "no averaged weights" in capsys.readouterr().err
    assert any(name.startswith("average.") for name in weights(tmp_path))


def test_a_checkpoint_of_another_model(tmp_path):
    train(TinyGan(), options(tmp_path, steps=2), faces())
    other = TinyGan()
    other.networks["generator"][3] = nn.Conv2d(8, 3, 1)
    with pytest.raises(ValueError, match="(?s)step_00000002: does not fit this model or its data .*size mismatch"):
        train(other, options(tmp_path, steps=4), faces())
    assert weights(tmp_path)["step"] == 2


def test_room_that_checkpoints_take_already_is_not_asked_for_again(tmp_path, monkeypatch):
    train(TinyGan(), options(tmp_path, steps=4, save_every=1), faces())
    asked = []
    monkeypatch.setattr(checkpoint, "preflight", lambda folder, needed: asked.append(needed))
    train(TinyGan(), options(tmp_path, steps=5, save_every=1), faces())
    train(TinyGan(), options(tmp_path / "new", steps=1, save_every=1), faces())
    assert asked[0] < 0.7 * asked[1]


def test_nothing_is_overwritten(tmp_path):
    train(TinyGan(), options(tmp_path, steps=2), faces())
    with pytest.raises(FileExistsError, match="resume"):
        train(TinyGan(), options(tmp_path, steps=2, resume="no"), faces())
    assert weights(tmp_path)["step"] == 2


@pytest.mark.parametrize(
    ("count", "changes", "words"),
    [
        (16, {}, "the data order begins anew: 12 -> 16 pictures"),
        (12, {"batch_size": 6}, "the data order begins anew: batches of 4 -> 6 pictures"),
        (12, {"workers": 1}, ""),
    ],
)
def test_more_pictures_and_another_batch_size(tmp_path, capsys, count, changes, words):
    """Weights, moments, average and step go on, the data order begins anew, a note says so once."""
    train(TinyGan(), options(tmp_path, steps=2), faces())
    before = weights(tmp_path)
    trainer = Trainer(TinyGan(), options(tmp_path, steps=4, **changes), faces(count), WORLD)
    notes = trainer.load(checkpoint.newest_valid(tmp_path / "checkpoints"))
    assert trainer.step == 2 and [note for note in notes if "anew" in note] == ([words] if words else [])
    tensors, _ = trainer.state()
    there = {f"{group}.{key}": value for group, entries in tensors.items() for key, value in entries.items()}
    same(before, {key: there.get(key, value) for key, value in before.items()})
    trainer.close()
    capsys.readouterr()
    again = TinyGan()
    train(again, options(tmp_path, steps=4, **changes), faces(count))
    assert len(again.seen) == 2 and capsys.readouterr().err.count("begins anew") == bool(words)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4]
    if words:
        train(TinyGan(), options(tmp_path, steps=5, **changes), faces(count))  # and then it goes on exactly
        assert "begins anew" not in capsys.readouterr().err


def named(*classes: str) -> TinyGan:
    task = TinyGan()
    task.classes = classes
    return task


def test_other_class_names_are_refused_unless_told_to(tmp_path, capsys):
    train(named("sky", "door"), options(tmp_path, steps=2), faces())
    for classes, words in (
        (("sky", "window"), r"step_00000002: its classes have other names \(1: door -> window\): .*rename_classes=True"),
        (("door", "sky"), r"0: sky -> door, 1: door -> sky"),
        (("sky", "door", "tree"), r"expected its 2 classes \(sky, door\), got 3 \(sky, door, tree\)"),
    ):
        with pytest.raises(ValueError, match=words):
            train(named(*classes), options(tmp_path, steps=4), faces())
    with pytest.raises(ValueError, match="expected its 2 classes"):
        train(named("sky"), options(tmp_path, steps=4, rename_classes=True), faces())
    assert weights(tmp_path)["step"] == 2
    train(named("sky", "window"), options(tmp_path, steps=4, rename_classes=True), faces())
    assert "classes renamed: 1: door -> window" in capsys.readouterr().err
    train(named("sky", "window"), options(tmp_path, steps=5), faces())  # the new names stand in the checkpoint
    assert weights(tmp_path)["step"] == 5


def test_classes_of_a_checkpoint_without_them_are_those_of_its_run(tmp_path):
    train(TinyGan(), options(tmp_path, steps=2), faces(), config={"classes": ["sky", "door"]})
    saved = checkpoint.newest_valid(tmp_path / "checkpoints")
    del saved.state["classes"]
    trainer = Trainer(named("sky", "window"), options(tmp_path), faces(), WORLD)
    with pytest.raises(ValueError, match="1: door -> window"):
        trainer.load(saved)
    trainer.close()


def test_weights_alone(tmp_path, capsys):
    """--init-from: averaged weights where there are, step 0, fresh moments; the same command then goes on."""
    train(TinyGan(), options(tmp_path / "a", steps=3, ema_decay=0.9), faces())
    old = weights(tmp_path / "a")
    for source in ("a", "a/checkpoints/step_00000003"):
        trainer = Trainer(TinyGan(), options(tmp_path / "b"), faces(14), WORLD)
        notes = trainer.begin_with(
            read_weights(find_weights(tmp_path / source), trainer.task.networks, trainer.task.averaged)
        )
        assert trainer.step == 0 and not any(optimizer.state for optimizer in trainer.optimizers.values())
        assert notes[0].endswith("step_00000003: generator (averaged), discriminator") and len(notes) == 1
        new = nn.ModuleDict(trainer.task.networks).state_dict()
        for key, value in new.items():
            part = "average" if key.startswith("generator") else "network"
            assert torch.equal(value, old[f"{part}.{key}"]), key
        for key, value in trainer.ema.state_dict().items():
            assert torch.equal(value, new[key])
        trainer.close()
    run = options(tmp_path / "b", steps=2, init_from=str(tmp_path / "a"))
    task = TinyGan()
    train(task, run, faces(14))
    assert len(task.seen) == 2 and weights(tmp_path / "b")["step"] == 2
    assert "begins with the weights of" in capsys.readouterr().err
    again = TinyGan()
    train(again, dataclasses.replace(run, steps=3), faces(14))  # the same command goes on, from its own checkpoint
    assert len(again.seen) == 1 and "resumed from" in capsys.readouterr().err
    train(TinyGan(), options(tmp_path / "b", steps=4), faces(14))  # without the option, too
    for folder in ("b", "a"):  # of runs that began otherwise it is refused
        with pytest.raises(ValueError, match="init_from: expected .* got elsewhere: choose another --out"):
            train(TinyGan(), options(tmp_path / folder, steps=9, init_from="elsewhere"), faces(14))


def test_weights_of_a_file(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(8)
    other = TinyGan().networks
    for p in (p for network in other.values() for p in network.parameters()):
        torch.nn.init.normal_(p)
    save_file(nn.ModuleDict({"generator": other["generator"]}).state_dict(), tmp_path / "model.safetensors")
    torch.save(other["discriminator"].state_dict(), tmp_path / "latest_net_D.pth")
    for file, there, fresh in (
        ("model.safetensors", "generator", "discriminator"),
        ("latest_net_D.pth", "discriminator", "generator"),
    ):
        trainer = Trainer(TinyGan(), options(tmp_path / "run"), faces(), WORLD)
        kept = {key: value.clone() for key, value in trainer.task.networks[fresh].state_dict().items()}
        notes = begin(trainer, str(tmp_path / file))
        assert notes == [
            f"begins with the weights of {tmp_path / file}: {there}",
            f"not there, begun with random weights: {fresh}",
        ]
        same(dict(trainer.task.networks[there].state_dict()), dict(other[there].state_dict()))
        same(dict(trainer.task.networks[fresh].state_dict()), kept)
        trainer.close()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: None, FileNotFoundError, "no such file or folder .expected a run folder, a checkpoint folder or a"),
        (lambda path: path.mkdir(), FileNotFoundError, "no valid checkpoint there"),
        (lambda path: path.write_text("<!DOCTYPE html><html>"), ValueError, "got a web page"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), ValueError, "of generator, discriminator, got none of them"),
        (lambda path: torch.save({"generator.0.weight": torch.zeros(1)}, path), ValueError, "(?s)does not fit .* missing"),
    ],
)
def test_weights_that_cannot_be_begun_with(tmp_path, make, error, words):
    make(tmp_path / "there")
    with pytest.raises(error, match=words):
        train(TinyGan(), options(tmp_path / "run", init_from=str(tmp_path / "there")), faces())
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_epoch_smaller_than_a_batch(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size: expected at most the 3 pictures there are \(or drop_last=False\), got 4"
    ):
        train(TinyGan(), options(tmp_path, steps=2), faces(3))
    task = TinyGan()
    train(task, options(tmp_path, steps=2, drop_last=False), faces(3))
    assert len(task.seen) == 2


def test_resume_from_a_folder_of_another_run(tmp_path):
    train(TinyGan(), options(tmp_path / "a", steps=2, save_every=1), faces())
    start = tmp_path / "a" / "checkpoints" / "step_00000001"
    task = TinyGan()
    train(task, options(tmp_path / "b", steps=2, resume=str(start)), faces())
    assert len(task.seen) == 1
    same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_best_checkpoint_outlives_the_newest(tmp_path):
    task = TinyGan()
    figures = iter([1.0, 3.0, 2.0, 2.5, 2.9, 2.0])
    task.validate = lambda batch, networks: {"psnr": torch.full((len(batch),), next(figures))}  # type: ignore[method-assign]
    train(task, options(tmp_path, validate_every=1, save_every=1, keep_last=1), faces(), faces(4))
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == ["step_00000002", "step_00000006"]


def test_the_best_is_one_of_the_last_stage(tmp_path):
    """What came before does not count, also for a run that goes on from there."""
    figures = iter([1.0, 9.0, 2.0, 2.5, 2.4])
    for steps in (2, 5):
        task = TinyGan()
        task.best_from = 2
        task.validate = lambda batch, networks: {"psnr": torch.full((len(batch),), next(figures))}  # type: ignore[method-assign]
        train(task, options(tmp_path, steps=steps, validate_every=1, save_every=1, keep_last=1), faces(), faces(4))
        assert (checkpoint.newest_valid(tmp_path / "checkpoints", best=True) is None) == (steps == 2)
    best = checkpoint.newest_valid(tmp_path / "checkpoints", best=True)
    assert best is not None and best.step == 4


def test_no_checkpoints_when_none_are_wanted(tmp_path):
    train(TinyGan(), options(tmp_path, save_every=0), faces())
    assert not list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"batch_size": 5, "accumulate": 2}, "batch_size: expected a multiple of accumulate 2, got 5"),
        ({"workers": -1}, "workers"),
        ({"sheet_images": 0}, "sheet_images"),
        ({"timeout": 0.0}, "timeout"),
        ({"init_from": "a", "resume": "b"}, "init_from: expected none with resume b, got a"),
    ],
)
def test_options_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        options(tmp_path, **changes)


def test_best_names_a_figure_of_the_validation(tmp_path):
    with pytest.raises(ValueError, match="best: expected one of psnr"):
        train(TinyGan(), options(tmp_path, validate_every=2, best="beauty"), faces(), faces(4))


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"amp": "fp16"}, {"amp": "bf16"}, {"workers": 1}, {"channels_last": False}])
def test_on_a_gpu(tmp_path, changes):
    """Trains, and a resumed run sees the data and the losses of an uninterrupted one (sums may differ in the last bits)."""
    whole, gpu = TinyGan(), {"device": "cuda", "clip_norm": 5.0, **changes}
    train(whole, options(tmp_path / "whole", **gpu), faces())
    first, second = TinyGan(at_step={2: lambda: os.kill(os.getpid(), signal.SIGTERM)}), TinyGan()
    for task in (first, second):
        train(task, options(tmp_path / "parts", **gpu), faces())
    assert first.seen + second.seen == whole.seen
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        assert a["generator/l1"] == pytest.approx(b["generator/l1"], rel=1e-2)
    assert log(tmp_path / "whole")[-1]["generator/l1"] < log(tmp_path / "whole")[0]["generator/l1"]


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["spade", "clade", "sean"])
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_the_models_train_on_a_gpu(tmp_path, model, amp):
    arguments = [
        "train",
        model,
        *SMALL,
        "--device",
        "cuda",
        "--workers",
        "1",
        "--amp",
        amp,
        "--r1",
        "1",
        "--sheet-every",
        "2",
    ]
    assert cli.main([*arguments, "--sheet-every", "2", "--out", str(tmp_path)]) == 0
    assert len(log(tmp_path)) == 2 and len(list((tmp_path / "samples").glob("*.png"))) == 1


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = [
    *(
        "--kind",
        "procedural_facades",
        "--size",
        "32",
        "--batch-size",
        "4",
        "--steps",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
    ),
    *("--log-every", "1", "--sheet-every", "0", "--validate-every", "0", "--save-every", "2", "--seed", "4"),
    *("--generator.ngf", "2", "--generator.hidden", "8", "--discriminator.ndf", "4", "--vgg", "0"),
]


def test_the_command_trains_and_prints_its_configuration(tmp_path, capsys):
    assert cli.main(["train", "spade", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip().endswith("step_00000002")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["model"] == "spade" and written["options"]["seed"] == 4 and written["task"]["generator"]["ngf"] == 2
    assert written["task"]["generator"]["label_nc"] == 12 == len(written["classes"])
    again = ["train", "spade", "--config", str(tmp_path / "run" / "config.json"), "--steps", "9", "--print-config"]
    assert cli.main(again) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["options"].pop("steps") == 9 and written["options"].pop("steps") == 2
    assert printed == written


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train"], "model"),
        (["train", "dream"], "dream"),
        (["train", "spade", "--step", "3"], "--step"),
        (["train", "spade", "--steps", "many"], "--steps"),
        (["train", "spade", *SMALL, "--steps", "0"], "steps: expected at least 1"),
        (["train", "spade", *SMALL, "--data", "/nonexistent", "--kind", "folder"], "/nonexistent"),
        (["train", "spade", *SMALL, "--config", "/nonexistent.json"], "/nonexistent.json"),
    ],
)
def test_bad_commands(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # nothing was begun


def own_set(folder: Path, *, spoil: bool = False) -> Path:
    """A set of one's own: two splits, ids 1 and 2, 255 where nothing is known."""
    from PIL import Image

    (folder / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("wall\nwindow\n")
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / split / part).mkdir(parents=True)
        for i in range(4):
            labels = torch.randint(1, 3, (4, 4), dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
            labels[:4] = 255
            Image.fromarray((labels * 60).numpy()).convert("RGB").save(folder / split / "images" / f"{i}.jpg")
            Image.fromarray(labels.numpy()).save(folder / split / "labels" / f"{i}.png")
    if spoil:
        for i in range(4):
            (folder / "val" / "labels" / f"{i}.png").unlink()
    return folder


def test_a_set_of_ones_own_with_unknown_pixels(tmp_path, capsys):
    where = ["--data", str(own_set(tmp_path / "set")), "--kind", "folder", "--unknown-id", "255", "--first-id", "1"]
    small = [*SMALL, *where, "--validate-every", "2"]
    assert cli.main(["train", "spade", *small, "--out", str(tmp_path / "run")]) == 0
    assert any("validation/psnr" in line for line in log(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"] == ["wall", "window", "unknown"]
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(tmp_path / "set"), *where[2:]]) == 0
    assert "0 bad of 4" in capsys.readouterr().out


def test_a_set_of_ones_own_grows_and_its_classes_are_renamed(tmp_path, capsys):
    """More pictures, a batch larger than an epoch, other names, and another run begun with the weights."""
    folder = own_set(tmp_path / "set")
    where = ["--data", str(folder), "--kind", "folder", "--unknown-id", "255", "--first-id", "1", "--validation", "none"]
    command = ["train", "spade", *SMALL, *where, "--ema-decay", "0.9", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    for part, kind in (("images", "jpg"), ("labels", "png")):
        (folder / "train" / part / f"9.{kind}").write_bytes((folder / "train" / part / f"0.{kind}").read_bytes())
    assert cli.main([*command, "--steps", "4"]) == 0
    assert "the data order begins anew: 4 -> 5 pictures" in capsys.readouterr().err
    (folder / "classes.txt").write_text("wall\ndoor\n")
    assert cli.main([*command, "--steps", "6"]) == 2
    message = capsys.readouterr().err
    assert "1: window -> door" in message and "--rename-classes" in message
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"][1] == "window"
    assert cli.main([*command, "--steps", "6", "--rename-classes", "--batch-size", "8"]) == 2
    assert "--batch-size: expected at most the 5 pictures there are (or --no-drop-last), got 8" in capsys.readouterr().err
    assert cli.main([*command, "--steps", "6", "--rename-classes", "--batch-size", "8", "--no-drop-last"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"][1] == "door"
    assert [line["step"] for line in log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    capsys.readouterr()
    other = [*command[:-1], str(tmp_path / "other"), "--init-from", str(tmp_path / "run")]
    assert cli.main(other) == 0
    assert "step_00000006: generator (averaged), discriminator" in capsys.readouterr().err
    assert cli.main([*other, "--generator.ngf", "4", "--out", str(tmp_path / "wide")]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_a_validation_set_that_cannot_be_opened_is_said(tmp_path):
    where = [
        "--data",
        str(own_set(tmp_path / "set", spoil=True)),
        "--kind",
        "folder",
        "--unknown-id",
        "255",
        "--first-id",
        "1",
    ]
    with pytest.warns(UserWarning, match=r"no validation.*0\.jpg"):
        assert cli.main(["train", "spade", *SMALL, *where, "--out", str(tmp_path / "run")]) == 0
    bad = [*SMALL, *where, "--validation", "val", "--out", str(tmp_path / "other")]
    assert cli.main(["train", "spade", *bad]) == 2


@pytest.mark.parametrize("model, steps", [("spade", 3), ("sean", 1)])
def test_two_processes_lose_what_one_loses(tmp_path, model, steps):
    """Same global batch, same weights: statistics and gradients are those of the whole batch.

    SEAN's noise is drawn per process, so only its first forward, where noise has no weight yet, is compared. Its layers of
    regions that are absent from one process' part of the batch must not hold up the others.
    """
    base = [model, *SMALL, "--steps", str(steps), "--save-every", "0", "--init-gain", "0"]
    if model == "sean":
        base += ["--generator.style-length", "16", "--generator.encoder-width", "4"]
    processes.run_ranks(processes.CLI, ["train", *base, "--out", tmp_path / "one"], size=1)
    processes.run_ranks(processes.CLI, ["train", *base, "--out", tmp_path / "two"])
    single, double = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(single) == len(double) == steps
    for a, b in zip(single, double, strict=True):
        losses = [name for name in a if "/" in name and (model != "sean" or name.startswith("generator/"))]
        assert losses and a.keys() == b.keys()
        for name in losses:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), (a["step"], name)


def test_options_cover_the_loop():
    """Every field of Options is read somewhere in the loop."""
    folder = Path(sys.modules[Options.__module__].__file__ or "").parent
    text = "".join((folder / name).read_text() for name in ("loop.py", "trainer.py", "meter.py", "command.py"))
    for entry in dataclasses.fields(Options):
        assert f"options.{entry.name}" in text, entry.name
