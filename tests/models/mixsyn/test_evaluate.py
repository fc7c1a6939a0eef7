"""Table 1: numbers known by hand, perfect generators, absent regions, and a command that says what it was given wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import (
    FACADE_CLASSES,
    Batch,
    Collate,
    ProceduralSource,
    RegionDataset,
    colorize,
    open_source,
    palette,
)
from mixsyn_fast.models.data.options import DataOptions
from mixsyn_fast.models.metrics import InceptionFeatures, psnr, rmse, ssim
from mixsyn_fast.models.mixsyn import evaluate
from mixsyn_fast.models.mixsyn.compositions import Composition, coupled_groups
from mixsyn_fast.models.mixsyn.config import Config, StructureConfig, StyleConfig
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.mixsyn.task import MixSynTask
from mixsyn_fast.models.pictures.files import save_image, save_labels
from mixsyn_fast.models.pictures.picture import Picture, fit, pictures_of
from torch import Tensor, nn

from mixsyn_fast import RegionMap
from mixsyn_fast.commands import run_command

Image = pytest.importorskip("PIL.Image", reason="reads and writes pictures")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIZE = 32
N = len(FACADE_CLASSES)


class Structure:
    """Codes are the masks themselves; a composition is right but for what it leaks to the next region."""

    def __init__(self, leak: float = 0.0) -> None:
        self.leak = leak

    def encode(self, regions: RegionMap) -> Tensor:
        return regions.onehot()[:, :, None]

    def decode(self, codes: Tensor) -> Tensor:
        masks = codes[:, :, 0]
        masks[:, 0] += masks.sum(1) == 0  # weights sum to one, also where there is no region
        masks = masks / masks.sum(1, keepdim=True)
        return (1 - self.leak) * masks + self.leak * masks.roll(1, 1)


class Style:
    """Gives back the pictures that it saw, brighter by `shift`."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def encode(self, image: Tensor, regions: RegionMap, present: Tensor | None = None) -> Tensor:
        assert regions.is_soft == (present is not None)  # a soft composition has some of every region
        self.image = image
        return torch.ones(len(image), regions.num_regions, 4)

    def __call__(self, regions: RegionMap, codes: Tensor) -> Tensor:
        return (self.image + self.shift).clamp(-1, 1)


def model_of(structure: Any, style: Any, classes: tuple[str, ...] = FACADE_CLASSES) -> Any:
    config = SimpleNamespace(groups=coupled_groups(classes))
    sees: dict[str, Any] = {"classes": classes, "size": (SIZE, SIZE), "crop": "center"}
    return SimpleNamespace(structure=structure, style=style, device="cpu", config=config, **sees)


def batch_of(count: int, first: int = 0) -> Batch:
    dataset = RegionDataset(ProceduralSource("procedural_facades", count, seed=first, size=SIZE), SIZE)
    return Collate(N)([dataset[i] for i in range(count)])


class Means(nn.Module):
    """Stands for the feature network of FID: means of a 2 x 2 grid."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(Means()), str(tmp_path / "means.pt"))
    return tmp_path / "means.pt"


# ------------------------------------------------------------------------------------------------------ single numbers


def test_a_composition_is_drawn_in_the_mixed_colours_of_its_regions() -> None:
    labels = torch.tensor([[[0, 1], [2, -1]]])
    masks = (labels[:, None] == torch.arange(3)[:, None, None]).float()
    drawn = evaluate.render(masks, labels < 0)
    assert np.array_equal(drawn.movedim(1, -1).numpy(), colorize(labels.numpy(), 3))
    colours = palette(3).astype(float)
    soft = torch.tensor([0.25, 0.0, 0.75])[None, :, None, None].expand(1, 3, 2, 2)
    assert evaluate.render(soft)[0, :, 1, 1].tolist() == np.round(0.25 * colours[0] + 0.75 * colours[2]).tolist()


# ------------------------------------------------------------------------------------------------------ whole generators


def table_of(model: Any, batches: list[Batch], network: InceptionFeatures | None = None) -> evaluate.Table:
    judge = evaluate.Judge(model, network)
    for batch in batches:
        judge.add(batch)
    return evaluate.Table(tuple(model.classes), {}, judge.rows())


def test_perfect_generators(inception: Path) -> None:
    table = table_of(model_of(Structure(), Style()), [batch_of(3)], InceptionFeatures(inception))
    found = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert list(found["rows"]) == ["structure", "known", "composed", "approximated"]
    for name, row in found["rows"].items():
        metrics = row["metrics"]
        assert metrics["ssim"]["mean"] == pytest.approx(1) and metrics["rmse"]["mean"] == 0, name
        assert metrics["psnr"]["mean"] == "inf" and metrics["psnr"]["infinite"] == 3 and metrics["psnr"]["count"] == 0
        assert metrics["psnr"]["mean_over_regions"] == "inf" and metrics["ssim"]["mean_over_regions"] == pytest.approx(1)
        assert row["fid"]["value"] == pytest.approx(0, abs=1e-6) and (row["fid"]["first_count"] == 3)
    structure = found["rows"]["structure"]
    assert structure["pixel_accuracy"]["mean"] == 1 and structure["mean_iou"] == 1
    text = table.as_markdown()
    assert "| composition | 1 [1, 1] | 0 [0, 0] | inf, 3 infinite |" in text and "mean IoU 1." in text


def test_rows_are_told_apart_and_hold_the_functions_values() -> None:
    batch, shift = batch_of(3), 0.2
    table = table_of(model_of(Structure(leak=0.25), Style(shift)), [batch])
    real = evaluate._bytes(batch.image)
    made = evaluate._bytes((batch.image + shift).clamp(-1, 1))
    labels = batch.regions.labels_at()
    for name, metric in (("psnr", psnr), ("ssim", ssim), ("rmse", rmse)):
        for row in ("known", "composed", "approximated"):
            score = table.rows[row].scores[name]
            assert score.values == pytest.approx(metric(made, real, value_range=(0, 255)).tolist())
            expected = metric(made, real, labels, N, value_range=(0, 255)).numpy()
            np.testing.assert_allclose(np.stack(score.by_region), expected)
            assert score.names == list(batch.names)
    structure = table.rows["structure"]
    masks = batch.regions.onehot()
    drawn, truth = (evaluate.render(m) for m in (0.75 * masks + 0.25 * masks.roll(1, 1), masks))
    assert structure.scores["rmse"].values == pytest.approx(rmse(drawn, truth, value_range=(0, 255)).tolist())
    assert structure.accuracy is not None and structure.accuracy.values == [1, 1, 1]  # the largest weight is right
    shares = batch.regions.areas() / SIZE**2
    before = shares.roll(1, 1)
    expected = torch.where(shares > 0, 0.25 * (shares + before).sqrt(), math.nan)
    np.testing.assert_allclose(np.stack(structure.scores["rmse"].by_region), expected.numpy(), rtol=1e-5)


def test_batches_do_not_matter() -> None:
    model = model_of(Structure(leak=0.1), Style(0.1))
    whole = table_of(model, [batch_of(3)]).as_json()
    single = table_of(model, [batch_of(1, i) for i in range(3)]).as_json()
    assert json.dumps(whole) == json.dumps(single)


def test_processes_judge_together_what_one_judges(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process has two of five pictures, the third none."""
    model, network = model_of(Structure(leak=0.1), Style(0.1)), InceptionFeatures(inception)
    batches = [batch_of(1, i) for i in range(5)]
    order = [name for batch in batches for name in batch.names]
    expected = table_of(model, batches, network)
    judges = [evaluate.Judge(model, network) for _ in range(3)]
    for judge, mine in zip(judges, ((0, 2, 4), (1, 3), ()), strict=True):
        for i in mine:
            judge.add(batches[i])
    sent: list[Any] = []
    monkeypatch.setattr(evaluate.distributed, "gather", lambda value: sent.append(value) or [])
    for judge in judges:
        judge.gather(order)
    assert judges[0].names == [order[i] for i in (0, 2, 4)]
    monkeypatch.setattr(evaluate.distributed, "gather", lambda value: sent)
    judges[0].gather(order)
    found = evaluate.Table(tuple(model.classes), {}, judges[0].rows())
    assert judges[0].names == order
    for name, row in expected.rows.items():
        assert found.rows[name].fid[-1].value == pytest.approx(row.fid[-1].value)
        found.rows[name].fid = row.fid  # equal to rounding: the order of the features differs
    assert json.dumps(found.as_json()) == json.dumps(expected.as_json())


def test_one_picture_and_regions_that_nobody_has(inception: Path) -> None:
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.int32)
    labels[0, :, 20:] = 1
    labels[0, :4] = -1
    image = torch.zeros(1, 3, SIZE, SIZE)
    batch = Batch(image, RegionMap(labels, 4, ignore_index=-1), ("only",), torch.tensor([0]))
    model = model_of(Structure(), Style(0.4), ("a", "b", "c", "d"))
    table = table_of(model, [batch], InceptionFeatures(inception))
    found = table.as_json()
    assert found["rows"]["known"]["fid"] is None and found["rows"]["known"]["metrics"]["rmse"]["low"] == "nan"
    assert found["rows"]["known"]["metrics"]["rmse"]["mean"] == pytest.approx(50 / 255)  # 127.5 and 178.5 to even
    assert list(found["rows"]["known"]["metrics"]["rmse"]["regions"]) == ["a", "b"]
    assert found["rows"]["structure"]["metrics"]["rmse"]["mean"] == 0  # without a region: white on both sides
    assert found["rows"]["structure"]["iou"] == {"a": 1, "b": 1, "c": "nan", "d": "nan"}
    text = table.as_markdown()
    assert "In no picture: c, d." in text and "| c |" not in text and "nan" not in text


def test_compositions_are_scored_where_there_are_labels() -> None:
    """A picture of which three quarters are unlabelled: those pixels agree whatever is made, and must not help."""
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.int32)
    labels[0, :, 16:] = 1
    image = torch.zeros(1, 3, SIZE, SIZE)
    found = []
    for unlabelled in (0, 24):
        labels[0, :unlabelled] = -1
        batch = Batch(image, RegionMap(labels.clone(), 3, ignore_index=-1), ("one",), torch.tensor([0]))
        found.append(table_of(model_of(Structure(leak=0.3), Style(), ("a", "b", "c")), [batch]).rows["structure"].scores)
    for name in ("rmse", "psnr"):
        assert found[0][name].values == pytest.approx(found[1][name].values)
        np.testing.assert_allclose(found[0][name].by_region, found[1][name].by_region)


def tiny() -> Config:
    structure = StructureConfig(width=2, code_channels=4, code_size=8, decoder_width=8, decoder_smallest=4)
    style = StyleConfig(code_length=8, encoder_width=2, encoder_largest=4, encoder_halvings=2, width=4, largest=8, hidden=4)
    return Config(classes=FACADE_CLASSES, image_size=(SIZE, SIZE), structure=structure, style=style)


def tiny_model() -> tuple[MixSynTask, Any]:
    torch.manual_seed(3)
    task = MixSynTask(tiny(), training=False)
    for network in task.networks.values():
        network.eval().requires_grad_(False)
    model = model_of(task.networks["structure_generator"], task.networks["style_generator"])
    model.config = task.config
    return task, model


def test_approximated_images_are_those_of_the_training_task() -> None:
    task, model = tiny_model()
    batch = batch_of(2)
    soft, image, _, approximated = evaluate.known(model, batch)
    assert soft.shape == (2, N, SIZE, SIZE) and image.shape == approximated.shape == (2, 3, SIZE, SIZE)
    torch.testing.assert_close(approximated, task.generate(batch, task.networks), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(image, approximated)


def test_composed_images_are_those_of_compose() -> None:
    task, model = tiny_model()
    batch = batch_of(2)
    soft, known, composed, approximated = evaluate.known(model, batch)
    mixsyn = MixSyn(task.networks["structure_generator"], task.networks["style_generator"], task.config)
    images, labels = evaluate._bytes(batch.image).movedim(1, -1).numpy(), batch.regions.labels_at().int().numpy()
    for i, made in enumerate(evaluate._bytes(composed).movedim(1, -1).numpy()):
        expected = mixsyn.compose({}, Picture(images[i], labels[i], "base"))
        np.testing.assert_allclose(soft[i].numpy(), expected.composition, atol=1e-5)
        assert np.abs(made.astype(int) - expected.image).max() <= 1
    assert not torch.allclose(composed, known) and not torch.allclose(composed, approximated)


def test_random_images_are_held_against_their_sources() -> None:
    """Where the composition's region lies there in its source: that source's pixels; elsewhere nothing."""
    batch = batch_of(3)
    labels = batch.regions.labels_at()
    soft = torch.softmax(5 * batch.regions.onehot().roll(1, 0), 1)  # of picture 2, 0, 1
    source = torch.randint(-1, 3, (3, N), generator=torch.Generator().manual_seed(2))
    pictures, found = evaluate.from_sources(soft, Composition(source), batch)
    real = evaluate._bytes(batch.image)
    for b, y, x in ((b, y, x) for b in range(3) for y in range(0, SIZE, 3) for x in range(0, SIZE, 3)):
        region = int(labels[(b - 1) % 3, y, x])
        taken = int(source[b, region])
        assert int(found[b, y, x]) == (region if taken >= 0 and int(labels[taken, y, x]) == region else -1)
        if taken >= 0:
            assert torch.equal(pictures[b, :, y, x], real[taken, :, y, x])
    assert 0.2 < float((found >= 0).float().mean()) < 1
    judge = evaluate.Judge(model_of(Structure(), Style()))
    judge.add_random(batch, torch.Generator().manual_seed(0), 2)
    row = judge.rows()["random"]
    assert row.scores["ssim"].names == ["random 0", "random 1"] and len(row.scores["psnr"].by_region) == 2


def test_random_compositions_follow_the_seed() -> None:
    _, model = tiny_model()
    first, again, other = (evaluate.random(model, batch_of(3), torch.Generator().manual_seed(seed))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with a given model in place of the shipped one."""

    def run(*words: object, model: Any = None) -> int:
        found = model if model is not None else model_of(Structure(), Style(0.1))
        monkeypatch.setattr(MixSyn, "shipped", lambda device: found)
        return run_command(evaluate, [str(word) for word in words], "mixsyn evaluate")

    return run


DRAWN = ("--kind", "procedural_facades", "--batch-size", "2")


def test_the_command_prints_and_writes_one_table(command: Any, tmp_path: Path, inception: Path, capsys: Any) -> None:
    files = ("--json", tmp_path / "new" / "table.json", "--markdown", tmp_path / "new" / "table.md")
    words = (*DRAWN, "--limit", 3, "--random", 5, "--inception", inception, "--fid-regions", *files)
    assert command(*words) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "new" / "table.md").read_text()
    found = json.loads((tmp_path / "new" / "table.json").read_text())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["table.json", "table.md"]
    assert list(found["rows"]) == ["structure", "known", "composed", "approximated", "random_structure", "random"]
    assert found["settings"]["model"] == "shipped"
    assert found["settings"]["random compositions"] == 5 and found["not_computed"] == {} and found["problems"] == []
    for name in ("random_structure", "random"):
        assert found["rows"][name]["fid"]["first_count"] == 5 and found["rows"][name]["fid"]["second_count"] == 3
    assert found["rows"]["known"]["fid_regions"]["window"]["first_count"] == 3
    assert len(found["rows"]["known"]["metrics"]["psnr"]["pictures"]) == 3
    assert "| random image | – | – | – |" in printed and "Cross-dataset" not in printed
    assert "Paper, Table 1" in printed and "RMSE, of the value range ↓" in printed


def test_random_images_are_as_many_as_pictures_unless_said(command: Any, tmp_path: Path, inception: Path) -> None:
    for more, expected in (((), 4), (("--random", 0), None), (("--batch-size", 1), None)):
        words = (*DRAWN, "--limit", 4, "--inception", inception, "--json", tmp_path / "t.json", *more)
        assert command(*words) == 0
        found = json.loads((tmp_path / "t.json").read_text())
        assert found["settings"]["random compositions"] == expected
        assert ("random compositions" in found["not_computed"]) == ("--batch-size" in more)


def test_without_a_network_fid_is_left_out_with_its_reason(command: Any, capsys: Any) -> None:
    assert command(*DRAWN, "--limit", 2) == 0
    assert "not computed: FID, random compositions: FID needs a feature network" in capsys.readouterr().out
    for more in (("--random", 3), ("--fid-regions",), ("--inception", "nowhere.pt")):
        with pytest.raises(FileNotFoundError):
            command(*DRAWN, *more)


def test_a_set_with_other_classes(command: Any) -> None:
    with pytest.raises(ValueError, match="12 classes, got 19 of procedural_faces: it lacks .*window.*; it has skin"):
        command("--kind", "procedural_faces")
    turned = (FACADE_CLASSES[1], FACADE_CLASSES[0], *FACADE_CLASSES[2:])
    with pytest.raises(ValueError, match=f"order, class 0 is {FACADE_CLASSES[1]}, not {FACADE_CLASSES[0]}"):
        command(*DRAWN, model=model_of(Structure(), Style(), turned))
    with pytest.raises(ValueError, match="expected the model's 11 classes, got 12 of .*: it has .* instead$"):
        command(*DRAWN, model=model_of(Structure(), Style(), FACADE_CLASSES[:-1]))


def test_classes_are_merged_as_the_models_were(command: Any, tmp_path: Path) -> None:
    types = DataOptions(kind="procedural_faces", merge="meta", size=(SIZE,)).source("val").classes
    model = model_of(Structure(), Style(), types)
    words = ("--kind", "procedural_faces", "--limit", 1, "--json", tmp_path / "t.json")
    assert command(*words, model=model) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert len(found["classes"]) == 15
    with pytest.raises(ValueError, match="expected the model's 15 classes, got 19"):
        command(*words, "--merge", "none", model=model)


@pytest.mark.parametrize("crop", ["center", "none"])
def test_pictures_are_seen_as_the_model_was_trained(command: Any, data_of_its_own: Path, crop: str) -> None:
    """`--crop none`: all of a picture, squeezed, and not its middle."""
    style, model = Style(), model_of(Structure(), Style())
    model.style, model.crop = style, crop
    assert command("--data", data_of_its_own, "--kind", "folder", "--split", "all", model=model) == 0
    (picture,) = pictures_of(open_source(data_of_its_own, "folder"))
    seen = torch.from_numpy(fit(picture, SIZE, crop).image.copy()).movedim(-1, 0) / 127.5 - 1  # type: ignore[arg-type]
    torch.testing.assert_close(style.image[0], seen)


@pytest.fixture
def data_of_its_own(tmp_path: Path) -> Path:
    """A folder with one picture twice as wide as high, of the shipped model's classes."""
    generator = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    labels = generator.integers(0, N, (4, 8)).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1).astype(np.uint8)
    save_image(tmp_path / "images" / "a.png", generator.integers(0, 256, (*labels.shape, 3), dtype=np.uint8))
    save_labels(tmp_path / "labels" / "a.png", labels, N)
    (tmp_path / "classes.txt").write_text("\n".join(FACADE_CLASSES))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", 0), "--limit: expected at least 1, got 0"),
        (("--batch-size", 0), "--batch-size: expected at least 1"),
        (("--seed", -1), "--seed: expected at least 0"),
        (("--random", -1), "--random: expected at least 0"),
        (("--split", "none"), "--split: expected train"),
        (("--random", 2, "--batch-size", 1), "--batch-size: expected at least 2 for random"),
        (("--json", "."), "--json: expected a file, got the folder"),
        (("--json", "t.md", "--markdown", "./t.md"), "--markdown: expected another file than t.md: it is .* --json"),
        (("--device", "foo"), "--device: expected cpu or cuda"),
        (("--device", "meta"), "--device: expected cpu or cuda"),
        (("--device", f"cuda:{torch.cuda.device_count()}"), "--device: cuda:. asked for, but torch sees"),
        (("--kind", "nonsense"), "kind: expected auto or one of"),
    ],
)
def test_bad_options(command: Any, words: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(*DRAWN, *words)


def test_bad_pictures_are_named(command: Any, tmp_path: Path, capsys: Any) -> None:
    source = ProceduralSource("procedural_facades", 3, size=SIZE)
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
    for i, name in enumerate(("a", "b", "c")):
        sample = source.read(i)
        Image.fromarray(sample.image).save(tmp_path / "val" / "images" / f"{name}.png")
        Image.fromarray(sample.labels.astype(np.uint8)).save(tmp_path / "val" / "labels" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(FACADE_CLASSES))
    (tmp_path / "val" / "images" / "b.png").write_bytes(b"no picture")
    assert command("--data", tmp_path) == 1
    captured = capsys.readouterr()
    assert "b.png" in captured.err and "2 of 3 pictures" in captured.out and "## Problems (1)" in captured.out
    for name in "ac":
        (tmp_path / "val" / "images" / f"{name}.png").write_bytes(b"no picture")
    assert command("--data", tmp_path) == 1
    captured = capsys.readouterr()
    assert "no picture is readable and has a region" in captured.err and captured.out.startswith("# Compositions")


def test_pictures_without_any_region_are_left_out_and_named(command: Any, tmp_path: Path, capsys: Any) -> None:
    source = ProceduralSource("procedural_facades", 2, size=SIZE)
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
    for i, name in enumerate("ab"):
        sample = source.read(i)
        labels = sample.labels if name == "a" else np.full_like(sample.labels, 255)
        Image.fromarray(sample.image).save(tmp_path / "val" / "images" / f"{name}.png")
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "val" / "labels" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(FACADE_CLASSES))
    words = ("--data", tmp_path, "--unknown-id", 255, "--unknown", "none", "--json", tmp_path / "t.json")
    assert command(*words) == 1
    captured = capsys.readouterr()
    assert captured.err == "b: no pixel of its label map has a region\n" and "1 of 2 pictures" in captured.out
    found = json.loads((tmp_path / "t.json").read_text())
    assert list(found["rows"]["structure"]["pixel_accuracy"]) and found["rows"]["structure"]["metrics"]["rmse"]["count"] == 1


def test_a_saved_model_is_judged(tmp_path: Path, capsys: Any) -> None:
    task, _ = tiny_model()
    networks = task.networks["structure_generator"], task.networks["style_generator"]
    MixSyn(*networks, task.config).save(tmp_path / "m.safetensors")
    assert run_command(evaluate, ["--model", str(tmp_path / "m.safetensors"), *DRAWN, "--limit", "2"], "evaluate") == 0
    assert "| approximated image | " in capsys.readouterr().out
