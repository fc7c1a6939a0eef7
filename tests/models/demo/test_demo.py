"""The demo at tiny scale: pictures are composed, times are of forms that agree, complaints are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models import plain as forms
from mixsyn_fast.models.demo import command as demo
from mixsyn_fast.models.demo import speed
from mixsyn_fast.models.demo.budget import Budget

from mixsyn_fast import cli

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

TINY = ["--size", "64", "--ngf", "2", "--repeat", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a tiny MixSyn of facades, untrained."""
    from mixsyn_fast.models.data import FACADE_CLASSES

    return _tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", FACADE_CLASSES)


def _tiny_model(path: Path, classes: tuple[str, ...]) -> str:
    from mixsyn_fast.models.mixsyn.config import Config, StructureConfig, StyleConfig
    from mixsyn_fast.models.mixsyn.model import MixSyn
    from mixsyn_fast.models.mixsyn.structure import StructureGenerator
    from mixsyn_fast.models.mixsyn.style import StyleGenerator

    structure = StructureConfig(width=2, code_channels=4, code_size=8, decoder_width=8, decoder_smallest=4)
    style = StyleConfig(
        code_length=8, encoder_width=2, encoder_largest=4, encoder_halvings=2, width=4, largest=8, start_size=8, hidden=4
    )
    config = Config(classes=classes, image_size=(32, 32), structure=structure, style=style)
    torch.manual_seed(0)
    MixSyn(StructureGenerator(config), StyleGenerator(config), config).save(path)
    return str(path)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as sheet:
        assert sheet.mode == "RGB"
        return np.asarray(sheet)


def _write_set(folder: Path, kind: str, count: int, first: int = 0) -> None:
    from mixsyn_fast.models.data import draw

    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, labels = draw(kind, i, (80, 100))
        Image.fromarray(image).save(folder / "images" / f"{i}.jpg")
        Image.fromarray(labels + np.uint8(first)).save(folder / "labels" / f"{i}.png")


def test_composes_drawn_pictures(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "demo.png"
    assert cli.main(["demo", *TINY, "--model", model, "--rows", "2", "--no-compile", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("One composition", "4 pictures", "plain PyTorch, dense", "mixsyn_fast,", "floor", "speed-up", str(out)):
        assert text in printed
    for part in ("encoders", "decoder", "generator", "region norms", "label map"):
        assert part in printed
    assert "torch.compile" not in printed
    sheet = _pixels(out)
    assert sheet.shape[1] > 7 * 160 and sheet.shape[0] > 2 * 180 + 400
    for colour in ((242, 0, 0), (0, 97, 242), (242, 145, 0)):  # outlines of the first three sources
        assert (sheet == colour).all(2).sum() > 300
    assert [path.name for path in out.parent.iterdir()] == ["demo.png"]


def test_composes_pictures_of_a_folder(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    _write_set(tmp_path / "fronts", "facade", 3, first=1)
    out = tmp_path / "demo.png"
    given = ["demo", *TINY, "--model", model, "--out", str(out), "--rows", "1", "--data", str(tmp_path / "fronts")]
    assert cli.main([*given, "--kind", "cmp_facade"]) == 0
    printed = capsys.readouterr().out
    assert "/fronts" in printed and "of 3 pictures" in printed and "12 regions, ngf 2" in printed


def test_ids_of_a_folder_may_begin_at_one_and_be_unknown(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mixsyn_fast.models.data import FACADE_CLASSES

    _write_set(tmp_path / "fronts", "facade", 2, first=1)
    (tmp_path / "fronts/classes.txt").write_text("\n".join(FACADE_CLASSES))
    with Image.open(tmp_path / "fronts/labels/0.png") as opened:
        labels = np.array(opened)
    labels[:20] = 255
    Image.fromarray(labels).save(tmp_path / "fronts/labels/0.png")
    given = ["demo", *TINY, "--model", model, "--rows", "1", "--data", str(tmp_path / "fronts")]
    assert cli.main([*given, "--out", str(tmp_path / "demo.png")]) == 2
    assert "0.png" in capsys.readouterr().err
    assert cli.main([*given, "--out", str(tmp_path / "demo.png"), "--first-id", "1", "--unknown-id", "255"]) == 0
    assert "of 2 pictures" in capsys.readouterr().out


def test_a_model_with_a_class_of_unknown_pixels_composes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set is opened with a last class "unknown" where the model has one."""
    from mixsyn_fast.models.data import FACADE_CLASSES

    path = _tiny_model(tmp_path / "tiny.safetensors", (*FACADE_CLASSES, "unknown"))
    _write_set(tmp_path / "fronts", "facade", 2, first=1)
    out = str(tmp_path / "demo.png")
    given = ["--data", str(tmp_path / "fronts"), "--kind", "folder", "--first-id", "1", "--unknown-id", "0"]
    (tmp_path / "fronts/classes.txt").write_text("\n".join(FACADE_CLASSES))
    assert cli.main(["demo", *TINY, "--model", path, "--rows", "1", "--out", out, *given]) == 0
    assert "One composition" in capsys.readouterr().out


def test_a_set_with_other_regions_is_timed_and_told_how_to_train(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mixsyn_fast.models.data import FACE_CLASSES

    faces = tmp_path / "faces"
    _write_set(faces, "face", 1)
    out = tmp_path / "demo.png"
    given = ["demo", *TINY, "--model", model, "--data", str(faces), "--out", str(out)]
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    assert "does not say what its regions are" in printed and "19 regions" in printed and "One composition" not in printed
    assert _pixels(out).shape[0] < 500  # charts alone
    (faces / "classes.txt").write_text("\n".join(FACE_CLASSES))
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    assert "has not the model's regions: 19 classes instead of 12" in printed
    assert "background, facade, window" in printed
    assert f"mixsyn-fast train mixsyn --data {faces} --size 32" in printed
    assert "region norms" in printed


def test_bad_files_of_a_folder_are_named(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["demo", *TINY, "--model", model, "--data", str(tmp_path), "--out", str(tmp_path / "demo.png")]
    (tmp_path / "images").mkdir()
    assert cli.main(given) == 2
    assert "expected folders images/ and labels/" in capsys.readouterr().err
    (tmp_path / "labels").mkdir()
    assert cli.main(given) == 2
    assert "holds no picture" in capsys.readouterr().err
    _write_set(tmp_path, "face", 1, first=30)
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert "--data" in error and "0.png" in error and "0..18" in error
    assert cli.main([*given, "--kind", "cmp_facade"]) == 2
    error = capsys.readouterr().err
    assert "--data" in error and "0.png" in error and "1..12" in error
    _write_set(tmp_path, "facade", 1, first=1)
    assert cli.main([*given, "--kind", "cmp_facade"]) == 2
    assert "--data: cmp_facade: expected at least 2 pictures to compose from, got 1" in capsys.readouterr().err
    assert not (tmp_path / "demo.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "100"], "--size: expected a positive multiple of 32, got 100"),
        (["--rows", "0"], "--rows: expected at least 1"),
        (["--batch", "0"], "--batch: expected at least 1"),
        (["--ngf", "-1"], "--ngf: expected at least 1"),
        (["--seconds", "0"], "--seconds: expected a positive number, got 0"),
        (["--repeat", "0"], "--repeat: expected at least 1"),
        (["--seed", "-3"], "--seed: expected a non-negative integer"),
        (["--out", "x.jpg"], "--out: expected a file name ending in .png"),
        (["--device", "abacus"], "--device: expected cpu or cuda"),
        (["--device", "meta"], "--device: expected cpu or cuda"),
        (["--first-id", "1"], "--first-id: needs --data DIR"),
        (["--data", "/nonexistent/folder"], "--data: /nonexistent/folder: no such folder"),
        (["--model", "/nonexistent/file"], "/nonexistent/file: no such file"),
    ],
)
def test_complaints_name_the_argument(
    arguments: list[str], message: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", *TINY, "--model", model, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_regions_are_shared_out(model: str) -> None:
    from mixsyn_fast.models.data import ProceduralSource
    from mixsyn_fast.models.mixsyn import demo as composing
    from mixsyn_fast.models.mixsyn.model import MixSyn

    mixsyn = MixSyn.load(model)
    pictures = composing.pool(mixsyn, ProceduralSource("procedural_facades", 30, 5, 32), seed=1)
    assert len({picture.name for picture in pictures}) == 24 and pictures[0].labels.shape == (32, 32)
    for count in (2, 3, 6):
        for seed in range(5):
            chosen = pictures[seed : seed + count]
            table = composing.share_out(mixsyn, chosen, np.random.default_rng(seed))
            assert {id(picture) for picture in table.values()} == {id(picture) for picture in chosen}
            assert all(name in mixsyn.regions_of(picture) for name, picture in table.items())
            assert len({id(table[name]) for name in ("window", "cornice", "sill") if name in table}) == 1
            for name in ("background", "facade"):
                assert name in table
    made = composing.compositions(mixsyn, pictures, 5, seed=0)
    assert [len(one.sources) for one in made] == [3, 4, 5, 6, 3]
    assert len(composing.compositions(mixsyn, pictures[:2], 1, seed=0)[0].sources) == 2


def test_cost_of_a_composition(model: str) -> None:
    from mixsyn_fast.models.data import ProceduralSource
    from mixsyn_fast.models.mixsyn import demo as composing
    from mixsyn_fast.models.mixsyn.model import MixSyn

    mixsyn = MixSyn.load(model)
    pictures = composing.pool(mixsyn, ProceduralSource("procedural_facades", 3, 5, 32), seed=1)
    composed = composing.compositions(mixsyn, pictures, 1, seed=0)[0]
    cost = composing.cost(mixsyn, composed, Budget(60).rounds(1))
    assert (cost.sources, cost.regions, cost.repeated) == (3, len(composed.table), 1)
    assert cost.plain.encode > 0 and cost.fast.generate > 0 and cost.fast.total > cost.fast.decode
    assert 0 <= cost.relative <= 1e-4 and 0 <= cost.difference <= 1e-4
    first = composing.cost(mixsyn, composed, Budget(-1).rounds(5))  # no time at all: the first runs count
    assert first.repeated == 0 and first.plain.total > 0 and first.relative == cost.relative


def test_a_pass_that_is_timed_is_the_one_that_compose_makes(model: str) -> None:
    from mixsyn_fast.models.data import ProceduralSource
    from mixsyn_fast.models.mixsyn import demo as composing
    from mixsyn_fast.models.mixsyn.model import MixSyn

    mixsyn = MixSyn.load(model)
    pictures = composing.pool(mixsyn, ProceduralSource("procedural_facades", 3, 5, 32), seed=1)
    composed = composing.compositions(mixsyn, pictures, 1, seed=0)[0]
    regions = {name: composed.sources[index] for name, index in composed.table.items()}
    composition, _, seconds = composing._pass(mixsyn, regions)
    np.testing.assert_allclose(composition.numpy(), composed.composition, atol=1e-6)
    assert seconds.total > 0


class Clock:
    """Tells the time that it was given."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    "runs, most, expected",
    [
        ([5.0] * 9, 3, [0, 1, 2, 3]),  # time enough
        ([40.0] * 9, 3, [0, 1, 2]),  # a third repetition would end at 160
        ([120.0] * 9, 3, [0]),
        ([500.0] * 9, 3, [0]),  # what is slower than all the time there is runs once
        ([90.0, 10.0, 10.0, 10.0], 3, [0]),  # after 90 nothing says that the next is faster
        ([50.0, 10.0, 10.0, 90.0, 1.0], 9, [0, 1, 2, 3]),  # the last one counts, not the first, which pays for more
        ([5.0], 0, [0]),
    ],
)
def test_repetitions_fit_the_budget(runs: list[float], most: int, expected: list[int]) -> None:
    clock = Clock()
    budget = Budget(120.0, clock)
    done = []
    for turn in budget.rounds(most):
        done.append(turn)
        clock.seconds += runs[turn]
    assert done == expected


def test_shares_of_a_budget() -> None:
    clock = Clock()
    budget = Budget(120.0, clock)
    clock.seconds += 20
    part = budget.share(0.2)
    assert budget.left() == pytest.approx(100) and part.left() == pytest.approx(20)
    clock.seconds += 150
    assert budget.left() < 0 and budget.share(0.5).left() == 0
    assert list(budget.rounds(3)) == [0]


def test_nothing_runs_twice_and_the_table_says_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of a form per round: what is compared, timed and split into parts is the same run."""
    from mixsyn_fast.models.data import draw_batch
    from mixsyn_fast.models.sean import SEANGenerator

    calls = []
    original = SEANGenerator.forward_features

    def counted(self: SEANGenerator, *given: object, **more: object) -> torch.Tensor:
        calls.append(self)
        return original(self, *given, **more)

    monkeypatch.setattr(SEANGenerator, "forward_features", counted)
    images, labels = draw_batch("face", 1, 64)
    budget = Budget(-1)
    outcomes = speed.measure_sean(images, labels, 19, ngf=2, rounds=budget.rounds(3))
    calibration = 2
    assert len(calls) == calibration + len(outcomes) == 5
    assert [o.repeated for o in outcomes] == [0, 0, 0] and outcomes[1].relative is not None
    assert all(sum(o.parts.values()) == pytest.approx(o.seconds) for o in outcomes)
    said = speed.table(outcomes).splitlines()
    assert said[0].split()[:2] == ["runs", "time"] and all(" first " in line for line in said[1:])
    calls.clear()
    outcomes = speed.measure_sean(images, labels, 19, ngf=2, rounds=range(3))
    assert len(calls) == calibration + 3 * len(outcomes) and [o.repeated for o in outcomes] == [2, 2, 2]
    assert all(" 2 " in line for line in speed.table(outcomes).splitlines()[1:])


def test_a_difference_is_found(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forms that disagree end the demo with status 1, whichever comparison it is."""
    outcomes = [speed.Outcome("plain PyTorch, dense", 2.0, 1, 1.0, 0.0, 0.0, parts={"rest": 2.0})]
    outcomes.append(speed.Outcome("mixsyn_fast", 1.0, 1, 2.0, 0.5, 0.5, parts={"rest": 1.0}))
    monkeypatch.setattr(demo, "measure_composition", lambda *_: outcomes)
    given = ["demo", *TINY, "--rows", "1", "--model", model, "--out", str(tmp_path / "demo.png")]
    assert cli.main(given) == 1


def _generator() -> tuple[torch.nn.Module, object, torch.Tensor]:
    from mixsyn_fast.models.data import draw_batch
    from mixsyn_fast.models.sean import Config, SEANGenerator

    from mixsyn_fast.region_map import RegionMap

    torch.manual_seed(0)
    images, labels = draw_batch("face", 1, 64)
    generator = SEANGenerator(Config(ngf=4, image_size=64, style_length=16, encoder_width=4))
    forms.randomise(generator, 0)
    image = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return generator.eval(), RegionMap(torch.from_numpy(labels).long(), 19), image


def test_variants_share_their_weights_and_agree() -> None:
    generator, regions, image = _generator()
    forms.calibrate(generator, regions, image, noise=None)
    plain, bare = forms.plain_copy(generator), forms.without_norms(generator)
    own = {id(p) for p in generator.parameters()}
    assert {id(p) for p in plain.parameters()} == own and {id(p) for p in bare.parameters()} < own
    assert not any(type(m).__name__ == "FastConv2d" for m in plain.modules())
    with torch.no_grad():
        fast = generator.forward_features(regions, image, noise=None)
        with forms.dense_reference():
            exact = plain.forward_features(regions, image, noise=None)
        assert bare.forward_features(regions, image, noise=None).shape == exact.shape
    assert 0.5 < float(exact.std()) < 0.7
    assert float((fast - exact).abs().max() / exact.abs().max()) < 1e-5


def test_parts_add_up() -> None:
    generator, regions, image = _generator()
    with torch.no_grad():
        _, parts = speed.time_parts(
            generator, lambda: generator.forward_features(regions, image, noise=None), torch.device("cpu")
        )
    assert set(parts) == set(speed.PARTS) and all(value >= 0 for value in parts.values())
    assert parts["region norms"] > 0 and parts["convolutions"] > 0 and parts["style encoder"] > 0
