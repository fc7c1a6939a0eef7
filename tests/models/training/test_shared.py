"""Two processes do what one does: each takes its part, figures are gathered. One start for all of it: it takes seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("PIL", reason="pillow is not installed")

from mixsyn_fast.models.data import ProceduralSource
from mixsyn_fast.models.evaluation.compare import Compared, Comparison
from mixsyn_fast.models.metrics.pixels import psnr, rmse
from mixsyn_fast.models.training import distributed, train
from mixsyn_fast.models.training.command import rarity_of_run
from mixsyn_fast.models.training.distributed import World
from mixsyn_fast.models.training.trainer import Trainer
from PIL import Image

from mixsyn_fast import cli
from tests.models.training.test_sets import Mapper, Painter, codes, log, options, pictures
from tests.processes import run_ranks

NAMES = ["e", "a", "d", "b", "c"]
FOLDERS = ("pictures", "codes")


class Means:
    """Features of a picture for FID: means of its rows and columns, noise added so that covariances are regular."""

    notes = ()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat((images.double().mean((1, 2)), images.double().mean((1, 3))), 1)[:, :3]


def judge(folder: Path, world: World) -> dict[str, dict[str, float]]:
    """Figures of the fresh networks: of three batches, and of one batch, which leaves nothing to the second process."""
    task = Painter(noise=0.2)
    trainer = Trainer(task, options(folder / "unused", batch_size=2), pictures(folder / "set"), world)
    found = {}
    for count in (5, 1):
        trainer.options = options(folder / "unused", batch_size=2, validate_images=count)
        found[str(count)] = trainer.validate(pictures(folder / "set"))
    trainer.close()
    return found


def compare(world: World, names: list[str]) -> dict[str, Any]:
    """Compare outputs with their targets, two at a time, best and worst among them."""
    comparison = Comparison({"rmse": rmse, "psnr": psnr}, ("x", "y"), Means(), True, keep=2)  # type: ignore[arg-type]
    mine = [names[i] for i in distributed.part(len(names), world, 2)]
    for name in mine:
        generator = np.random.default_rng(ord(name))
        output, target = generator.integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
        labels = generator.integers(0, 2, (6, 6)) * (name != "b")
        comparison.add([Compared(name, output, target, labels)])
    comparison.gather(names)
    return {
        "scores": {n: (s.names, s.values, np.stack(s.by_region).tolist()) for n, s in comparison.scores.items() if s.names},
        "fid": {name: result.value for name, result in comparison.fid().items()},
        "extremes": [[c.name for c in side] for side in comparison.extremes()],
        "count": comparison.count,
    }


def evaluate(folder: Path, world: World) -> dict[str, Any]:
    """Judge a folder by the command: files that are bad in the part of either process, one left over, and what it found."""
    names = ["a", "b", "c", "d", "e"]
    if not (folder / "outputs").exists():
        for place, seed in (("outputs", 0), ("reference", 1)):
            (folder / place).mkdir()
            for name in [*names, "zz"][: 6 - seed]:
                side = 13 if (place, name) == ("outputs", "d") else 12
                noise = np.random.default_rng([seed, ord(name[0])]).integers(0, 256, (side, 12, 3)).astype(np.uint8)
                Image.fromarray(noise).save(folder / place / f"{name}.png")
        (folder / "outputs" / "a.png").write_bytes(b"no picture")
    out = folder / f"report_{world.size}_{world.rank}"
    words = ["--images", folder / "outputs", "--reference", folder / "reference", "--batch-size", 2, "--out", out]
    status = cli.main(["evaluate", *map(str, words), "--metrics", "psnr,ssim,rmse"])
    files = sorted(p.name for p in out.iterdir())
    return {"status": status, "files": files, "report": json.loads((out / "report.json").read_text()) if files else None}


def work(folder: Path, world: World) -> dict[str, Any]:
    """Train on pictures and on codes, validate, compare; what one process has to say of it."""
    painter, mapper = Painter(), Mapper()
    own = folder / str(world.size)
    shared = {"validate_every": 4, "validate_images": 3, "save_every": 4, "workers": 0}
    train(painter, options(own / "pictures", **shared), pictures(folder / "set"), pictures(folder / "set"), world=world)
    train(mapper, options(own / "codes", **shared), codes(), codes(1), world=world)
    return {
        "rank": world.rank,
        "parts": [distributed.part(5, world), distributed.part(5, world, 2), distributed.part(1, world)],
        "gathered": distributed.gather({"rank": world.rank}),
        "chances": rarity_of_run(own / "rarity.json", ProceduralSource("procedural_facades", 6, size=16), 0.0, world)
        .chances()
        .tolist(),
        "seen": {"pictures": painter.seen, "codes": mapper.seen},
        "sums": [float(p.detach().double().sum()) for n in painter.networks.values() for p in n.parameters()],
        "judged": judge(folder, world),
        "compared": compare(world, NAMES),
        "alone": compare(world, NAMES[:1]),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """What one process says, and what each of two says."""
    folder = tmp_path_factory.mktemp("shared")
    pictures(folder / "set")
    alone = World(0, 1, 0, torch.device("cpu"))
    one = json.loads(json.dumps(work(folder, alone) | {"evaluated": evaluate(folder, alone)}))
    run_ranks("from tests.models.training.test_shared import main; main()", [folder])
    return folder, one, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_parts_are_disjoint_and_complete(results: Any) -> None:
    _, one, two = results
    assert one["parts"] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0]]
    assert [each["parts"] for each in two] == [[[0, 2, 4], [0, 1, 4], [0]], [[1, 3], [2, 3], []]]
    assert one["gathered"] == [{"rank": 0}]
    assert [each["gathered"] for each in two] == [[{"rank": 0}, {"rank": 1}], []]


def test_chances_of_pictures_are_the_same_in_every_process(results: Any) -> None:
    """The first process looks for rare colours, the others take what it found."""
    folder, one, two = results
    assert two[0]["chances"] == two[1]["chances"] == one["chances"] and len(set(one["chances"])) == 6
    assert [sorted(p.name for p in (folder / n).glob("rarity*")) for n in ("1", "2")] == [["rarity.json"]] * 2


@pytest.mark.parametrize("what", FOLDERS)
def test_processes_see_disjoint_parts_of_the_batches_of_one(results: Any, what: str) -> None:
    _, one, two = results
    assert len(one["seen"][what]) == len(two[0]["seen"][what]) == len(two[1]["seen"][what]) > 0
    for whole, first, second in zip(one["seen"][what], two[0]["seen"][what], two[1]["seen"][what], strict=True):
        assert whole[:2] == first[:2] == second[:2]  # phase and step
        assert first[2] + second[2] == whole[2] and len(first[2]) == len(second[2]) == 2


@pytest.mark.parametrize("what", FOLDERS)
def test_losses_and_validation_are_those_of_one_process(results: Any, what: str) -> None:
    """With phases of periods 1, 2 and 3, two of which move one network."""
    folder, _, two = results
    single, double = log(folder / "1" / what), log(folder / "2" / what)
    assert [line["step"] for line in single] == [1, 2, 3, 4, 4, 5, 6, 7, 7]
    for a, b in zip(single, double, strict=True):
        figures = [name for name in a if "/" in name and not name.startswith("lr/")]
        assert figures and a.keys() == b.keys()
        for name in figures:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), (a["step"], name)
    assert two[0]["sums"] == two[1]["sums"]
    kept = [sorted(p.name for p in (folder / n / what / "checkpoints").glob("step_*")) for n in ("1", "2")]
    assert kept[0] == kept[1]


def test_figures_are_those_of_one_process_to_the_last_digit(results: Any) -> None:
    _, one, two = results
    assert two[0]["judged"] == one["judged"] and two[1]["judged"] == {"5": {}, "1": {}}
    assert one["judged"]["5"].keys() == {"psnr", "ssim", "l1"} and one["judged"]["5"] != one["judged"]["1"]


@pytest.mark.parametrize("what", ["compared", "alone"])
def test_a_comparison_is_that_of_one_process(results: Any, what: str) -> None:
    """`alone`: the second process has nothing to compare."""
    _, one, two = results
    expected, found = one[what], two[0][what]
    assert found["scores"] == expected["scores"] and found["count"] == expected["count"]
    assert found["extremes"] == expected["extremes"]
    assert found["scores"]["psnr"][0] == (NAMES if what == "compared" else NAMES[:1])
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-9)
    assert found["fid"].keys() == ({"", "x", "y"} if what == "compared" else set())
    assert two[1][what]["count"] == (2 if what == "compared" else 0)


def test_the_command_evaluate_is_shared(results: Any) -> None:
    """The first process reports what one process does, the bad files of both named; the second one writes nothing."""
    _, one, two = results
    expected, found = one["evaluated"], two[0]["evaluated"]
    assert found["status"] == expected["status"] == 1 and "extremes.png" in found["files"]
    assert two[1]["evaluated"] == {"status": 0, "files": [], "report": None}
    problems = found["report"].pop("problems")
    assert sorted(problems) == sorted(expected["report"].pop("problems")) and len(problems) == 3
    assert [any(part in problem for problem in problems) for part in ("a.png", "d.png", "zz")] == [True] * 3
    assert found["report"] == expected["report"] and found["report"]["counts"] == {"pictures compared": 3}
    assert list(found["report"]["metrics"]["psnr"]["pictures"]) == ["b", "c", "e"]


def main() -> None:
    """Do a process' part; it says what it has found in a file."""
    folder, world = Path(sys.argv[1]), distributed.init("cpu", timeout=60)
    said = work(folder, world)
    with mock.patch.object(distributed, "init", lambda *_, **__: world):  # a process joins a group once
        said["evaluated"] = evaluate(folder, world)
    (folder / f"{world.rank}.json").write_text(json.dumps(said))
    distributed.shutdown()
