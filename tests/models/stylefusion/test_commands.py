"""`mixsyn-fast stylefusion ...`: what every command writes, what it refuses; refusing leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.metrics import change_of_edit
from mixsyn_fast.models.model_file import digest_of
from mixsyn_fast.models.pictures.files import save_image
from mixsyn_fast.models.stylefusion import cluster
from mixsyn_fast.models.stylefusion import evaluate as evaluation
from mixsyn_fast.models.stylefusion import invert as inversion
from mixsyn_fast.models.stylefusion.model import Heat, StyleFusion
from mixsyn_fast.models.stylefusion.networks import make_net
from mixsyn_fast.models.stylefusion.pictures import load_codes, save_codes
from mixsyn_fast.models.stylefusion.segments import Segments
from mixsyn_fast.models.stylefusion.trees import RegionTree
from mixsyn_fast.models.stylegan2 import Generator
from mixsyn_fast.models.unconditional import load_generator, save_generator

from mixsyn_fast import cli

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
TREE = RegionTree({"all": ("both", "rest"), "both": ("left", "right")}, truncation=1.0)


@pytest.fixture(scope="module")
def fusion(generator: Generator, segments: Segments) -> StyleFusion:
    torch.manual_seed(0)
    nets = {node: make_net(generator, 16, 2, "b", True) for node in TREE.tree}
    for net in nets.values():
        for p in net.parameters():
            torch.nn.init.normal_(p, std=100.0 if p.dim() == 2 else 30.0)
    return StyleFusion(generator, TREE, nets, segments)


@pytest.fixture(scope="module")
def model(fusion: StyleFusion, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    fusion.save(path)
    return str(path)


def run(words: str, model: str, *more: str) -> int:
    return cli.main(["stylefusion", *words.split(), *(["--model", model] if model else []), *more])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate(model: str, fusion: StyleFusion, tmp_path: Path) -> None:
    assert (
        run(f"generate --seed 3 --count 2 --out {tmp_path}/o --codes-out {tmp_path}/c --sheet {tmp_path}/s.png", model) == 0
    )
    assert np.array_equal(pixels(tmp_path / "o" / "seed_4.png"), fusion.generate(4).image)
    codes = load_codes(fusion, tmp_path / "c" / "seed_4.safetensors", "codes")
    assert np.array_equal(fusion.generate(codes=codes).image, fusion.generate(4).image)
    assert pixels(tmp_path / "s.png").shape[0] > 64


def test_fuse(model: str, fusion: StyleFusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_codes(fusion, fusion.code(5), tmp_path / "five.safetensors")
    words = f"fuse --image 1 --set left=2 --set rest={tmp_path}/five.safetensors --out {tmp_path}/f.png"
    words += f" --codes-out {tmp_path}/f.safetensors --sheet {tmp_path}/s.png --json {tmp_path}/f.json"
    assert run(words, model) == 0
    expected = fusion.fuse(fusion.codes(1), {"left": 2, "rest": 5})
    assert np.array_equal(pixels(tmp_path / "f.png"), expected.image)
    again = load_codes(fusion, tmp_path / "f.safetensors", "codes")
    assert all(torch.equal(again[name], value) for name, value in expected.codes.items())
    shares = json.loads((tmp_path / "f.json").read_text())["share_of_the_change_inside"]
    assert set(shares) == {"left", "rest"} and all(0 < share < 1 for (share,) in shares.values())
    assert "% of the change inside" in capsys.readouterr().out
    assert run(f"fuse --count 2 --sheet {tmp_path}/all.png --json {tmp_path}/all.json", model) == 0
    shares = json.loads((tmp_path / "all.json").read_text())["share_of_the_change_inside"]
    assert {name: len(found) for name, found in shares.items()} == {"both": 2, "rest": 2, "left": 2, "right": 2}


def test_pose(model: str, fusion: StyleFusion, tmp_path: Path) -> None:
    words = f"pose --image 1,2 --seed 7 --count 2 --out {tmp_path}/p --codes-out {tmp_path}/c --sheet {tmp_path}/s.png"
    assert run(words, model) == 0
    assert np.array_equal(pixels(tmp_path / "p" / "2_8.png"), fusion.pose(fusion.codes(2), {"all": 8}).image)
    codes = load_codes(fusion, tmp_path / "c" / "2_8.safetensors", "codes")
    assert torch.equal(codes["all"], fusion.code(8)) and torch.equal(codes["left"], fusion.code(2))
    assert run(f"pose --image 1 --node both --count 1 --out {tmp_path}/q", model) == 0


def test_edit(model: str, fusion: StyleFusion, tmp_path: Path) -> None:
    words = f"edit --image 1 --direction 2,3 --region left --strength 0.5 --out {tmp_path}/e.png --sheet {tmp_path}/s.png"
    assert run(words, model) == 0
    expected = fusion.edit(fusion.codes(1), fusion.direction(2, 3), ["left"], 0.5)
    assert np.array_equal(pixels(tmp_path / "e.png"), expected.image)
    from safetensors.torch import save_file

    save_file({"d": fusion.direction(2, 3)}, tmp_path / "d.safetensors")
    words = f"edit --seed 1 --direction {tmp_path}/d.safetensors --region left --strength 0.5 --out {tmp_path}/d.png"
    assert run(words, model) == 0
    assert np.array_equal(pixels(tmp_path / "d.png"), expected.image)
    assert run(f"edit --sheet {tmp_path}/all.png", model) == 0


def test_heatmap(model: str, fusion: StyleFusion, tmp_path: Path) -> None:
    words = f"heatmap --count 3 --region left --region right --sheet {tmp_path}/h.png --json {tmp_path}/h.json"
    assert run(words.replace("--region left --region right", "--region left,right"), model) == 0
    table = json.loads((tmp_path / "h.json").read_text())
    heat = fusion.heatmap("left", 3)
    assert set(table) == {"left", "right"}
    assert table["left"]["inside"]["mean"] == pytest.approx(heat.shares.mean(), abs=1e-5)
    assert table["left"]["area"] == pytest.approx(heat.areas.mean(), abs=1e-5)
    assert run(f"heatmap --count 2 --base 4 --region rest --sheet {tmp_path}/b.png", model) == 0


def test_invert_finds_an_image_again(model: str, fusion: StyleFusion, tmp_path: Path) -> None:
    save_image(tmp_path / "photo.png", np.repeat(fusion.generate(3).image, 2, 1)[:, 16:48])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.png").rename(tmp_path / "photos" / "photo.png")
    words = f"invert --image {tmp_path}/photos --network none --steps 12 --out {tmp_path}/i --codes-out {tmp_path}/i"
    words += f" --sheet {tmp_path}/s.png --json {tmp_path}/i.json"
    assert run(words, model) == 0
    losses = json.loads((tmp_path / "i.json").read_text())["photo"]["losses"]
    assert len(losses) == 12 and min(losses) < losses[0]
    found = load_codes(fusion, tmp_path / "i" / "photo.safetensors", "codes")
    assert np.array_equal(fusion.generate(codes=found).image, pixels(tmp_path / "i" / "photo.png"))
    target = fusion.generate(3).image
    spaces = {space: inversion.invert(fusion.generator, target, space=space, steps=25) for space in ("w", "w+", "s")}  # type: ignore[arg-type]
    start = inversion.invert(fusion.generator, target, steps=1).losses[0]
    assert all(min(each.losses) < 0.6 * start for each in spaces.values())
    with pytest.raises(ValueError, match=r"image: expected \(32, 32, 3\) uint8, got \(8, 8, 3\) uint8"):
        inversion.invert(fusion.generator, np.zeros((8, 8, 3), np.uint8))


def test_segments(generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_generator(generator, tmp_path / "g.safetensors")
    words = f"segments --generator {tmp_path}/g.safetensors --clusters 3 --images 4 --pixels 100 --show 2"
    assert run(f"{words} --name 0=wall --out {tmp_path}/s.json --sheet {tmp_path}/s.png", "") == 0
    assert Segments.load(tmp_path / "s.json").names[0] == "wall"
    words = (
        f"segments --generator {tmp_path}/g.safetensors --segments {tmp_path}/s.json --name wall=sky --name cluster_1=sky"
    )
    assert run(f"{words} --out {tmp_path}/t.json --json {tmp_path}/figures.json", "") == 0
    figures, named = json.loads((tmp_path / "figures.json").read_text()), Segments.load(tmp_path / "t.json")
    assert [row["region"] for row in figures["clusters"]] == list(named.names) == ["sky", "sky", "cluster_2"]
    assert [row["share"] for row in figures["clusters"]] == pytest.approx(named.shares)
    assert figures["regions"]["sky"] == {"clusters": 2, "share": pytest.approx(sum(named.shares[:2]))}
    # layers below --from-side do not count
    assert [row["counted"] > 0 for row in figures["channels"]] == [False] * 4 + [True] * 3
    assert [row["channels"] for row in figures["channels"]] == list(named.channels)
    assert Segments.load(tmp_path / "t.json").names[0] == "sky"
    assert isinstance(load_generator(tmp_path / "g.safetensors"), Generator)
    for words, message in (
        ("--segments none.json --out o.json", "segments: none.json: no such file (expected a JSON file of Segments.save)"),
        ("--name 0=x", "--out: expected a file for the segments, or --sheet or --json, got none"),
        ("--out o.json --json o.json", "--json: expected another file than o.json"),
        ("--clusters 3 --name 3=x --out o.json", "--name: expected clusters 0 to 2, got 3=x"),
        ("--name wall=x --out o.json", "--name: expected clusters 0 to 11, got wall=x"),
        ("--name 1=x --name 1=y --out o.json", "--name: expected every cluster or region once"),
    ):
        assert run(f"segments --generator {tmp_path}/g.safetensors {words}", "") == 2
        assert message in capsys.readouterr().err
    assert cluster.Options(out=Path("x.json")).clusters == 12


def test_evaluate(model: str, fusion: StyleFusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "stylefusion", "--model", model, "--compare", f"again={model}", "--count", "3", "--images", "4"]
    assert cli.main([*words, "--region", "left,rest", "--out", str(tmp_path / "e")]) == 0
    found = json.loads((tmp_path / "e" / "report.json").read_text())
    ways = found["ways"]
    assert list(ways) == ["FusionNets", "again", "correlation", "blend"]
    assert ways["again"] == ways["FusionNets"] != ways["blend"]
    left = ways["FusionNets"]["regions"]["left"]
    assert list(ways["FusionNets"]["regions"]) == ["left", "rest"] and left["locality"]["count"] == 3
    assert left["locality"]["low"] < left["locality"]["mean"] < left["locality"]["high"]
    assert ways["FusionNets"]["whole"]["locality"]["mean"] == found["metrics"]["locality"]["mean"]
    heat = fusion.heatmap("left", 3)
    assert left["locality"]["mean"] == pytest.approx(heat.shares.mean(), abs=1e-6)
    assert left["region_share"]["mean"] == pytest.approx(heat.areas.mean(), abs=1e-6)
    assert len(found["not_computed"]) == 3 and found["counts"]["samples of each region"] == 3
    text = (tmp_path / "e" / "report.md").read_text()
    for part in (
        "| region | FusionNets | again | correlation | blend |",
        "| left |",
        "## Not computed",
        "![heat](heat.png)",
    ):
        assert part in text
    assert {path.name for path in (tmp_path / "e").iterdir()} >= {"heat.png", "scores.png", "regions.png"}
    capsys.readouterr()
    assert cli.main([*words, "--compare", f"blend={model}", "--out", str(tmp_path / "f")]) == 2
    assert "compare: expected other names" in capsys.readouterr().err and not (tmp_path / "f").exists()
    other = Generator(fusion.generator.config)
    StyleFusion(other, TREE, {}, replace(fusion.segments, generator=digest_of(other))).save(tmp_path / "o.safetensors")
    words = ["evaluate", "stylefusion", "--model", model, "--compare", f"other={tmp_path}/o.safetensors"]
    assert cli.main([*words, "--out", str(tmp_path / "f")]) == 2
    assert "other: expected generator, tree and truncation of the first model" in capsys.readouterr().err


def test_figures_of_a_heat_map_are_those_of_its_pixels() -> None:
    """A hard mask whose change is known: the figures are what `change_of_edit` says of 8-bit pictures."""
    before, region = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool)
    region[:2, :2] = True
    after = before.copy()
    after[region], after[3] = 51, 17
    change = np.abs(after.astype(float) - before).mean(2) / 255
    share = float(change[region].sum() / change.sum())
    # the second sample changes nothing
    heat = Heat(change / 2, np.array([share, np.nan]), np.array([0.25, 0.25]), np.array([change.mean(), 0.0]))
    found = evaluation.figures(heat)
    np.testing.assert_allclose(found[:, 0], change_of_edit(before, after, region))
    assert found[2, 0] == pytest.approx(51)
    np.testing.assert_array_equal(found[:, 1], [np.nan, 0.25, 0, 0])
    other = Heat(change, np.array([0.5, 0.5]), np.array([0.5, 0.5]), np.array([0.1, 0.1]))
    both = evaluation.scores({"left": heat, "rest": other})
    assert both["locality"].values == pytest.approx([(share + 0.5) / 2, 0.5])
    assert both["change_outside"].by_region[1].tolist() == pytest.approx([0, 25.5])
    report = evaluation.report({"FusionNets": {"left": heat, "rest": other}})
    assert report.counts["exchanges that changed nothing (no locality)"] == 1
    assert report.as_json()["ways"] == {} and report.as_json()["metrics"]["locality"]["regions"]["left"]["count"] == 1


def test_simpler_ways(fusion: StyleFusion) -> None:
    found = evaluation.channel_correlations(fusion, 4, 0)
    torch.testing.assert_close(found["all"], torch.ones_like(found["all"]))
    torch.testing.assert_close(found["left"] + found["right"], found["both"])
    torch.testing.assert_close(found["both"] + found["rest"], found["all"])
    own, other = torch.zeros(1, len(found["all"])), torch.ones(1, len(found["all"]))
    ways = evaluation.swaps(found, "both")
    assert torch.equal(ways["correlation"](own, other)[0] > 0, found["both"] > 0.5)
    assert torch.equal(ways["blend"](own, other), torch.full_like(own, 0.5))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fuse --set nose=1 --out x.png", "--set: unknown node 'nose'; the tree has all, both, rest, left, right"),
        ("fuse --set left --out x.png", "--set: expected NODE=SEED or NODE=codes.safetensors, got 'left'"),
        ("fuse --set left=1 --set left=2 --out x.png", "--set: expected every node once, got left twice"),
        ("fuse --image nothing --sheet x.png", "--image: expected a seed or a file of codes, got 'nothing'"),
        ("fuse --image none.safetensors --sheet x.png", "image: none.safetensors: no such file"),
        ("fuse --codes-out x.safetensors", "--codes-out: needs --set, got none"),
        ("fuse --out x.png --sheet y.png", "--out: needs --set, got none"),
        ("fuse", "--set: expected NODE=SEED or NODE=FILE, or --sheet for a sheet of all regions; got none"),
        ("fuse --set both=1 --set left=2", "--set: left lies below both, which changes whole"),
        ("generate --seed 9223372036854775808 --count 1", "seed: expected an integer, 0 or more and below 2^63"),
        ("generate --count 0", "--count: expected at least 1, got 0"),
        ("generate --sheet x.jpg", "--sheet: expected a file name ending in .png, got x.jpg"),
        ("pose --node left", "--node: expected inner nodes among all, both, got 'left'"),
        ("pose --image 3,x/3.safetensors", "--image: expected files of different names"),
        ("pose --image 1,1", "--image: expected different images, at least one, got 1, 1"),
        ("edit --out x.png", "--region: expected nodes of the tree, or --sheet"),
        ("edit --region nose --out x.png", "--region: unknown node 'nose'"),
        ("edit --region left --direction x --out x.png", "--direction: expected A,B (two seeds) or a file"),
        ("heatmap --region nose", "--region: unknown node 'nose'"),
        ("invert --image none.png --network none", "image: none.png: no such file (expected a photo, or a folder of them)"),
        ("invert --network none --squared 0", "--squared: expected a weight above 0 with --network none, got 0"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    words: str, message: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words, model) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_folder_of_codes(
    model: str, fusion: StyleFusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        save_codes(fusion, fusion.code(seed), f"codes/{seed}.safetensors")
    assert run("fuse --image codes --set left=3 --codes-out new --sheet f.png --json f.json", model) == 0
    assert len(json.loads(Path("f.json").read_text())["share_of_the_change_inside"]["left"]) == 2
    assert run("edit --image codes --direction 2,3 --region left --sheet e.png", model) == 0
    assert run("pose --image codes --seed 7 --count 1", model) == 0
    direction = fusion.direction(2, 3)
    for seed in (1, 2):
        fused = fusion.fuse(fusion.codes(seed), {"left": 3})
        assert np.array_equal(pixels(Path(f"fused/{seed}.png")), fused.image)
        assert torch.equal(load_codes(fusion, f"new/{seed}.safetensors", "codes")["left"], fusion.code(3))
        edited = fusion.edit(fusion.codes(seed), direction, ["left"])
        assert np.array_equal(pixels(Path(f"edited/{seed}.png")), edited.image)
        posed = fusion.pose(fusion.codes(seed), {"all": 7})
        assert np.array_equal(pixels(Path(f"poses/{seed}_7.png")), posed.image)
    there = sorted(tmp_path.rglob("*"))
    Path("codes/.hidden").mkdir()
    capsys.readouterr()
    for words, message in (
        ("fuse --image codes --set left=3 --out x.png", "out: expected a folder, as --image codes is one, got x.png"),
        ("edit --image codes --region left --codes-out codes", "codes/1.safetensors: it is an input"),
        ("edit --image codes/.hidden --region left", "image: codes/.hidden: expected files of codes in the folder"),
        ("pose --image codes/.hidden", "image: codes/.hidden: expected files of codes in the folder"),
        ("fuse --image codes/1.safetensors --set left=3 --out x", "out: expected a file name ending in .png, got x"),
    ):
        assert run(words, model) == 2
        assert message in capsys.readouterr().err, words
    Path("codes/.hidden").rmdir()
    assert sorted(tmp_path.rglob("*")) == there


def test_a_region_without_clusters_has_no_share(
    fusion: StyleFusion, segments: Segments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = segments.named({"left": "both", "right": "both"})
    StyleFusion(fusion.generator, TREE, dict(fusion.hierarchy.nets.items()), named).save(tmp_path / "m.safetensors")
    assert (
        run(f"fuse --set left=2 --set rest=3 --out {tmp_path}/f.png --json {tmp_path}/f.json", f"{tmp_path}/m.safetensors")
        == 0
    )
    said = capsys.readouterr().out
    assert "left: no clusters are named so" in said and "rest: " in said and "left: 0 %" not in said
    shares = json.loads((tmp_path / "f.json").read_text())["share_of_the_change_inside"]
    assert shares["left"] == [] and 0 < shares["rest"][0] < 1


def test_codes_of_another_generator_are_refused(fusion: StyleFusion, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_codes(fusion, fusion.code(1), path)
    other = Generator(fusion.generator.config)
    stranger = StyleFusion(other, TREE, {})
    with pytest.raises(ValueError, match="expected codes of the model's generator, got those of another one"):
        load_codes(stranger, path, "image")
