"""The demo at tiny scale: its outputs agree, its picture and its complaints are right."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mixsyn_fast import cli, demo

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

TINY = ["--size", "64", "--ngf", "2", "--repeat", "1", "--no-compile"]


def test_runs_on_drawn_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "demo.png"
    assert cli.main(["demo", *TINY, "--batch", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("plain PyTorch, dense", "mixsyn_fast,", "floor", "speed-up", "region norms", str(out)):
        assert text in printed
    with Image.open(out) as sheet:
        assert sheet.mode == "RGB" and sheet.width > 1300 and sheet.height > 700
        assert len(sheet.resize((200, 100)).getcolors(20000)) > 500


def test_runs_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mixsyn_fast.models.data import draw

    for part in ("images", "labels"):
        (tmp_path / "faces" / part).mkdir(parents=True)
    image, labels = draw("face", 3, (80, 100))
    Image.fromarray(image).save(tmp_path / "faces" / "images" / "a.jpg")
    Image.fromarray(labels).save(tmp_path / "faces" / "labels" / "a.png")
    out = tmp_path / "demo.png"
    assert cli.main(["demo", *TINY, "--data", str(tmp_path / "faces"), "--out", str(out)]) == 0
    assert out.is_file() and "/faces" in capsys.readouterr().out
    Image.fromarray(labels + 30).save(tmp_path / "faces" / "labels" / "a.png")
    assert cli.main(["demo", *TINY, "--data", str(tmp_path / "faces"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "--data" in error and "a.png" in error and "0..18" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "100"], "--size: expected a positive multiple of 32, got 100"),
        (["--batch", "0"], "--batch: expected at least 1"),
        (["--ngf", "-1"], "--ngf: expected at least 1"),
        (["--repeat", "0"], "--repeat: expected at least 1"),
        (["--seed", "-3"], "--seed: expected a non-negative integer"),
        (["--out", "x.jpg"], "--out: expected a file name ending in .png"),
        (["--device", "abacus"], "--device: expected cpu or cuda"),
        (["--data", "/nonexistent/folder"], "--data: /nonexistent/folder: no such folder"),
    ],
)
def test_complaints_name_the_argument(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    assert cli.main(["demo", *TINY, "--data", str(tmp_path)]) == 2
    assert "labels: no such folder" in capsys.readouterr().err
    (tmp_path / "labels").mkdir()
    assert cli.main(["demo", *TINY, "--data", str(tmp_path)]) == 2
    assert "holds no image" in capsys.readouterr().err


def _generator() -> tuple[torch.nn.Module, object, torch.Tensor]:
    from mixsyn_fast.models.data import draw_batch
    from mixsyn_fast.models.sean import Config, SEANGenerator

    from mixsyn_fast.region_map import RegionMap

    torch.manual_seed(0)
    images, labels = draw_batch("face", 1, 64)
    generator = SEANGenerator(Config(ngf=4, image_size=64, style_length=16, encoder_width=4))
    demo.randomise(generator, 0)
    image = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return generator.eval(), RegionMap(torch.from_numpy(labels).long(), 19), image


def test_variants_share_their_weights_and_agree() -> None:
    generator, regions, image = _generator()
    demo.calibrate(generator, regions, image, noise=None)
    plain, bare = demo.plain_copy(generator), demo.without_norms(generator)
    own = {id(p) for p in generator.parameters()}
    assert {id(p) for p in plain.parameters()} == own and {id(p) for p in bare.parameters()} < own
    assert not any(type(m).__name__ == "FastConv2d" for m in plain.modules())
    with torch.no_grad():
        fast = generator.forward_features(regions, image, noise=None)
        with demo.dense_reference():
            exact = plain.forward_features(regions, image, noise=None)
        assert bare.forward_features(regions, image, noise=None).shape == exact.shape
    assert 0.5 < float(exact.std()) < 0.7
    assert float((fast - exact).abs().max() / exact.abs().max()) < 1e-5


def test_fitting_the_last_layer_brings_the_output_near_the_image() -> None:
    generator, regions, image = _generator()
    demo.calibrate(generator, regions, image, noise=None)

    def distance() -> float:
        with torch.no_grad():
            return float((generator(regions, image, noise=None) - image).square().mean())

    before = distance()
    demo.fit_last_layer(generator, image, regions, image, noise=None)
    assert distance() < 0.5 * before


def test_parts_add_up() -> None:
    generator, regions, image = _generator()
    with torch.no_grad():
        parts = demo.time_parts(
            generator, lambda: generator.forward_features(regions, image, noise=None), torch.device("cpu")
        )
    assert set(parts) == set(demo.PARTS) and all(value >= 0 for value in parts.values())
    assert parts["region norms"] > 0 and parts["convolutions"] > 0 and parts["style encoder"] > 0


def test_time_limit() -> None:
    with demo.time_limit(5.0):
        pass
    with pytest.raises(TimeoutError, match="not finished after"), demo.time_limit(0.05):
        try:
            time.sleep(2.0)
        except Exception:  # the limit is no ordinary exception: compilers wrap those
            pytest.fail("the limit was caught")
    time.sleep(0.06)  # and it is off afterwards
