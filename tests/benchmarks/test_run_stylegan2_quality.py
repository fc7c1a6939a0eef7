"""The script that judges StyleGAN2: FID of what generators draw, against the pictures of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import DataOptions
from mixsyn_fast.models.metrics.fid import fid_of_features
from mixsyn_fast.models.pictures.files import save_image
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.stylegan2 import Config, Generator
from mixsyn_fast.models.training import command
from mixsyn_fast.models.training.run import read_log
from mixsyn_fast.models.unconditional import load_generator, save_generator
from torch import Tensor, nn

from benchmarks import plot_training, schema, tables
from benchmarks import run_stylegan2_quality as quality

pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TINY = Config(size=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


class Means(nn.Module):
    """Mean colour of the upper and the lower half: features that a test can make itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :150].mean((2, 3)), x[:, :, 150:].mean((2, 3))], 1)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("fid") / "means.pt"
    torch.jit.save(torch.jit.script(Means()), str(path))
    return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures without label maps, wider than high."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(9):
        colour = rng.integers(0, 255, 3)
        save_image(folder / f"{i}.png", np.clip(colour + rng.integers(-20, 20, (16, 24, 3)), 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "gan"
    words = ["stylegan2", "--data", str(photos), "--kind", "images", "--size", "16", "--steps", "2", "--batch-size", "2"]
    words += ["--generator.z-dim", "8", "--generator.w-dim", "8", "--generator.mapping-layers", "2", "--workers", "0"]
    words += ["--generator.channel-base", "64", "--generator.channel-max", "8", "--save-every", "1", "--validate-every", "1"]
    assert (
        command.run([*words, "--crop", "random", "--validation", "train", "--validate-images", "2", "--out", str(out)]) == 0
    )
    return out


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["case"].removeprefix("quality/photos/"): row for row in schema.load(path)["rows"]}


def features(images: np.ndarray) -> Tensor:
    """What the network sees, by hand."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False, antialias=True)
    made: Tensor = Means()((x - 128) / 128)
    return made


def test_from_random_weights_to_the_last(
    run: Path, photos: Path, inception: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = load_generator(run)
    save_generator(generator, tmp_path / "g.safetensors")
    words = [f"first={run}@1", f"last={run}", f"file={tmp_path}/g.safetensors", "--domain", "photos", "--count", "20"]
    assert quality.main([*words, "--inception", inception, "--seed", "3", "--out", str(tmp_path / "q.json")]) == 0
    rows = rows_of(tmp_path / "q.json")
    assert list(rows) == ["pictures", "start", "first", "last", "file"]
    assert [rows[name]["facts"].get("steps") for name in rows] == [None, 0, 1, 2, None]
    assert rows["last"]["facts"]["scores"] == rows["file"]["facts"]["scores"] != rows["first"]["facts"]["scores"]
    # the numbers of one row, by hand: pictures cut to their middle, images of the seed
    real = features(
        np.stack([item.image for item in quality.training_set(DataOptions(data=str(photos), kind="images"), 16)])
    )
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(3))
    made = features(to_uint8(generator(z)))
    expected = fid_of_features(made, real).value
    found = rows["last"]["facts"]
    assert found["scores"]["fid"] == {"mean": pytest.approx(expected, rel=1e-4), "count": 20} and found["pictures"] == 9
    distance, spread = (float(found["scores"][name]["mean"]) for name in ("distance", "spread"))
    assert distance == pytest.approx(float((made.mean(0) - real.mean(0)).square().sum()), rel=1e-4)
    assert spread == pytest.approx(float(made.var(0).sum() / real.var(0).sum()), rel=1e-4)
    assert any("fewer than 2048" in text for text in found["warnings"]) and "not verified" in found["warnings"][0]
    assert rows["pictures"]["facts"]["scores"]["fid"]["count"] == 4 and rows["pictures"]["facts"]["pictures"] == 5
    assert rows["last"]["settings"]["model"] == "runs/gan" and str(tmp_path) not in str(rows)
    text = (tmp_path / "q.json").read_text()
    assert str(run.parent) not in text and "first=runs/gan@1 last=runs/gan" in text
    assert tables.render_scores(schema.load(tmp_path / "q.json")) in capsys.readouterr().out


def test_pictures_are_those_of_the_training(run: Path, photos: Path) -> None:
    dataset = quality.training_set(DataOptions(data=str(photos), kind="images", crop="random", flip=1.0), 16)
    assert len(dataset) == 9
    from PIL import Image

    stored = np.asarray(Image.open(photos / "0.png"))
    assert np.array_equal(dataset[0].image, stored[:, 4:20])
    drawn = quality.training_set(DataOptions(kind="procedural_facades", count=3, also="procedural_facades"), 16)
    assert len(drawn) == 6


def test_random_weights_are_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (quality.start(TINY, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    z = torch.ones(1, 8)
    assert torch.equal(first(z), again(z)) and not torch.equal(first(z), other(z))


def test_what_training_logs_is_plotted(run: Path) -> None:
    names = plot_training.panels([read_log(run)])
    assert {"validation/real_logit", "validation/generated_logit"} <= set(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "models: expected NAME=FILE of other names than start and pictures"),
        (["start=FILE"], "models: expected NAME=FILE of other names than start and pictures"),
        (["a=FILE"], "data: expected --data or --kind, or a run folder"),
        (["a=none.safetensors"], "generator: expected a run folder"),
        (
            ["a=FILE", "b=OTHER", "--data", "PHOTOS"],
            "models: expected images of side 16 as the first one's, got others of b",
        ),
        (["a=RUN@9"], "no checkpoint of step 9; there are: 1, 2"),
        (["a=FILE", "--count", "1"], "count, seed: expected at least 2 and 0, got 1, 0"),
        (["a=FILE", "--inception", "none.pt"], "none.pt: no such file"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str],
    message: str,
    run: Path,
    photos: Path,
    inception: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_generator(Generator(TINY), tmp_path / "g.safetensors")
    save_generator(Generator(Config(32, 8, 8, 2, 64, 8)), tmp_path / "other.safetensors")
    places = {"FILE": tmp_path / "g.safetensors", "OTHER": tmp_path / "other.safetensors", "RUN": run, "PHOTOS": photos}
    given = ["--inception", inception, *words, "--domain", "x", "--out", str(tmp_path / "q.json")]
    for name, place in places.items():
        given = [word.replace(name, str(place)) for word in given]
    with pytest.raises(SystemExit):
        quality.main(given)
    assert message in capsys.readouterr().err and not (tmp_path / "q.json").exists()
