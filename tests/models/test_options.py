"""Every option of every command with its default, as they were before tyro read them: none is lost, none has changed."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mixsyn_fast import cli

# fmt: off
READER = {
    "--unknown-id": None, "--first-id": None, "--partition": None, "--names": None,
}
PICTURES = {
    "--model": None, "--device": "cpu", "--kind": "auto", "--unknown-id": None, "--first-id": None, "--merge": "auto",
    "--labels": [], "--parser": None,
}
PAIR = {
    **PICTURES,
    "--vgg-weights": "auto", "--image": None, "--label-map": None, "--exemplar": [], "--size": None, "--seed": 0,
    "--sheet": None, "--json": None,
}
LOOP = {
    **READER,
    "--data": "", "--kind": "auto", "--split": "train", "--validation": "auto", "--unknown": "class", "--size": [256],
    "--load-size": 0, "--crop": "center", "--flip": 0.5, "--count": 1000, "--merge": "none", "--also": "",
    "--balance": "auto", "--balance-classes": 5, "--colour-bandwidth": 0.0,
    "--on-error": "skip", "--out": "runs/latest", "--steps": 100000, "--batch-size": 8, "--accumulate": 1,
    "--workers": 1, "--seed": 0, "--device": "auto", "--amp": "none", "--channels-last": True, "--compile": False,
    "--clip-norm": 0.0, "--schedule.kind": "constant", "--schedule.start": 0.0, "--schedule.end": 0.0,
    "--schedule.warmup": 0, "--schedule.step-size": 10000, "--schedule.gamma": 0.1, "--ema-decay": 0.999,
    "--deterministic": False, "--log-every": 10, "--sheet-every": 500, "--sheet-images": 4, "--validate-every": 1000,
    "--validate-images": 64, "--save-every": 500, "--keep-last": 3, "--best": "auto", "--resume": "auto",
    "--drop-last": True, "--rename-classes": False, "--init-from": "",
    "--plan": "auto", "--backend": "auto", "--timeout": 600.0,
}
DATA = {
    "--unknown-id", "--first-id", "--partition", "--names", "--data", "--kind", "--split", "--validation", "--unknown",
    "--size", "--load-size", "--crop", "--flip", "--count", "--merge", "--also", "--balance", "--balance-classes",
    "--colour-bandwidth", "--on-error",
}
"""Options about data, which a model that makes its data itself does not have."""
RECONSTRUCTION = {
    "--generator.ngf": 64, "--generator.largest": 0,
    "--generator.num-upsampling-layers": "normal", "--generator.norm": "batch",
    "--generator.spectral-norm": True, "--discriminator.ndf": 64, "--discriminator.n-layers": 4,
    "--discriminator.scales": 2, "--discriminator.spectral-norm": True, "--discriminator.instance-norm": True,
    "--adversarial": "hinge", "--gan": 1.0, "--feature-matching": 10.0, "--vgg": 10.0, "--vgg-weights": "auto",
    "--l1": 0.0, "--kld": 0.05, "--r1": 0.0, "--r1-every": 16, "--generator-lr": 0.0001, "--discriminator-lr": 0.0004,
    "--betas": [0.0, 0.9], "--init-gain": 0.02, "--instance-edges": True, "--reuse-fakes": False,
    "--loss-mask": "none", "--loss-mask-scale": "mean",
}
JUDGED = {
    "--discriminator.ndf", "--discriminator.n-layers", "--discriminator.scales", "--discriminator.spectral-norm",
    "--discriminator.instance-norm", "--gan", "--feature-matching", "--vgg", "--vgg-weights", "--l1", "--r1", "--r1-every",
    "--init-gain", "--reuse-fakes",
}
"""What another wing shares of it."""
LATENT = {
    "--generator.use-vae": False, "--generator.z-dim": 256, "--encoder.ndf": 64, "--encoder.largest": 0,
    "--encoder.spectral-norm": True,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "doctor": {
        "--json": False, "--measure": False,
    },
    "demo": {
        **READER,
        "--data": None, "--kind": "auto", "--model": None, "--out": "outputs/demo.png", "--rows": 5, "--size": 256,
        "--batch": 1, "--ngf": 64, "--seed": 0, "--repeat": 3, "--seconds": 120.0, "--device": "cpu",
        "--compile": False, "--compile-seconds": 300.0,
    },
    "mixsyn compose": {
        **PICTURES,
        "--region": [], "--base": None, "--out": "composed.png", "--labels-out": None, "--sheet": None, "--compare": False,
    },
    "mixsyn edit": {
        **PICTURES,
        "--base": None, "--step": [], "--out": "edited.png", "--sheet": None, "--json": None, "--compare": False,
    },
    "mixsyn diversity": {
        **READER,
        "--data": None, "--kind": "auto", "--split": "all", "--regions": None, "--coupled": True, "--sources": 4,
        "--count": 12, "--seed": 0, "--model": None, "--device": "cpu", "--out": "diversity.png", "--compare": False,
    },
    "mixsyn study": {
        **READER,
        "--model": None, "--device": "cpu", "--data": None, "--kind": "auto", "--split": "all", "--pairs": 30,
        "--question": "Which picture looks more like a photograph?", "--answers": [], "--seed": 0, "--out": "study",
        "--sheet": None,
    },
    "mixsyn evaluate": {
        **READER,
        "--model": None, "--device": "cpu", "--data": "", "--kind": "auto", "--split": "val", "--unknown": "class",
        "--merge": None, "--limit": None, "--random": None, "--fid-regions": False, "--inception": None, "--batch-size": 4,
        "--seed": 0, "--json": None, "--markdown": None,
    },
    "clvae reconstruct": {
        **PICTURES,
        "--image": [], "--data": None, "--split": "all", "--limit": 8, "--out": "reconstructed", "--codes-out": None,
        "--sheet": None, "--json": None, "--seed": 0,
    },
    "clvae sample": {
        **PICTURES,
        "--image": None, "--label-map": None, "--count": 6, "--seed": 0, "--out": "samples", "--codes-out": None,
        "--sheet": None,
    },
    "clvae stylize": {
        **PICTURES,
        "--image": None, "--label-map": None, "--style": [], "--seed": 0, "--out": "stylized", "--sheet": None,
    },
    "clvae edit": {
        **PICTURES,
        "--image": None, "--step": [], "--levels": None, "--codes": None, "--keep": [], "--interpolate": 0,
        "--material": None, "--material-sheet": "material.png", "--out": "edited.png", "--codes-out": None,
        "--sheet": None, "--json": None, "--seed": 0,
    },
    "clvae evaluate": {
        **READER,
        "--model": None, "--device": "cpu", "--data": "", "--kind": "auto", "--split": "val", "--unknown": "class",
        "--merge": None, "--limit": None, "--inception": None, "--seed": 0, "--samples": 40, "--network": "alexnet",
        "--lpips": None, "--out": "evaluation",
    },
    "msca synthesize": {
        **PAIR,
        "--out": "synthesized",
    },
    "msca swap": {
        **PICTURES,
        "--vgg-weights": "auto", "--picture": [], "--exemplar": [], "--size": None, "--seed": 0, "--out": "swapped",
        "--sheet": None, "--json": None,
    },
    "msca interpolate": {
        **PAIR,
        "--weights": None, "--between": 3, "--out": "interpolated",
    },
    "msca spatial": {
        **PAIR,
        "--weight-map": [], "--direction": "horizontal", "--out": "spatial.png",
    },
    "msca extrapolate": {
        **{k: v for k, v in PAIR.items() if k != "--exemplar"},
        "--patch": None, "--others": 10, "--keep": False, "--out": "extrapolated.png",
    },
    "msca attention": {
        **PAIR,
        "--scales": [0], "--strongest": 6, "--out": "attended.png",
    },
    "msca evaluate": {
        **READER,
        "--model": None, "--device": "cpu", "--data": "", "--kind": "auto", "--split": "val", "--unknown": "class",
        "--merge": None, "--limit": None, "--inception": None, "--seed": 0, "--vgg-weights": "auto", "--compare": [],
        "--tasks": ["retrieving", "mirroring", "duplicating"], "--pool": None, "--candidates": 20,
        "--colour-correction": True, "--lpips": None, "--style": None, "--show": 4, "--out": "evaluation",
    },
    "msca transfer": {
        **READER,
        "--model": None, "--device": "cpu", "--data": "", "--kind": "auto", "--split": "val", "--unknown": "class",
        "--merge": None, "--limit": None, "--seed": 0, "--vgg-weights": "auto", "--scale": 0, "--gates": True,
        "--labels": 20, "--clustered": 25, "--linkage": "average", "--out": "transfer", "--json": None,
    },
    "harmonized transfer": {
        **PICTURES,
        "--image": [], "--reference": [], "--region": ["hair"], "--compare": False, "--out": "transferred", "--sheet": None,
        "--json": None, "--seed": 0,
    },
    "harmonized sample": {
        **PICTURES,
        "--image": [], "--region": ["hair"], "--count": 6, "--by": "mapping", "--seed": 0, "--out": "samples",
        "--sheet": None, "--json": None,
    },
    "harmonized tune": {
        **PICTURES,
        "--image": [], "--group": None, "--direction": [0], "--amounts": [-1.0, -0.5, 0.0, 0.5, 1.0], "--space": "z",
        "--solver": "fixed", "--out": "tuned", "--sheet": None, "--json": None, "--seed": 0,
    },
    "harmonized reshape": {
        **PICTURES,
        "--image": [], "--new-labels": [], "--reference": None, "--out": "reshaped.png", "--sheet": None, "--json": None,
        "--seed": 0,
    },
    "harmonized recolour": {
        **PICTURES,
        "--image": [], "--strokes": [], "--out": "recoloured.png", "--sheet": None, "--json": None, "--seed": 0,
    },
    "harmonized reconstruct": {
        **PICTURES,
        "--image": [], "--data": None, "--split": "all", "--limit": 8, "--out": "reconstructed", "--sheet": None,
        "--json": None, "--seed": 0,
    },
    "harmonized evaluate": {
        **READER,
        "--model": None, "--device": "cpu", "--data": "", "--kind": "auto", "--split": "val", "--unknown": "class",
        "--merge": None, "--limit": None, "--inception": None, "--seed": 0, "--compare": [], "--styles": 10,
        "--network": "alexnet", "--lpips": None, "--harmony": None, "--images": False, "--out": "evaluation",
        "--tasks": ["reconstruction", "transfer", "samples"], "--references": None, "--references-kind": "auto",
    },
    "harmonized study": {
        "--model": None, "--device": "cpu", "--method": [], "--shown": [], "--rows": 30, "--per-sheet": 6,
        "--question": "Which result looks best?", "--answers": [], "--seed": 0, "--out": "study", "--json": None,
    },
    "stylefusion generate": {
        "--model": None, "--device": "cpu", "--count": 6, "--seed": 0, "--out": "generated", "--codes-out": None,
        "--sheet": None,
    },
    "stylefusion fuse": {
        "--model": None, "--device": "cpu", "--image": "0", "--set": [], "--count": 5, "--seed": 1, "--out": None,
        "--codes-out": None, "--sheet": None, "--json": None,
    },
    "stylefusion pose": {
        "--model": None, "--device": "cpu", "--image": ["0", "1", "2"], "--node": None, "--seed": 10, "--count": 5,
        "--out": "poses", "--codes-out": None, "--sheet": None,
    },
    "stylefusion edit": {
        "--model": None, "--device": "cpu", "--image": None, "--direction": "1,2", "--region": [], "--strength": 1.0,
        "--seed": 0, "--out": None, "--codes-out": None, "--sheet": None,
    },
    "stylefusion heatmap": {
        "--model": None, "--device": "cpu", "--region": [], "--count": 500, "--base": None, "--seed": 0, "--batch": 8,
        "--sheet": None, "--json": None,
    },
    "stylefusion invert": {
        "--model": None, "--device": "cpu", "--image": [], "--space": "w", "--steps": 150, "--lr": 0.05, "--squared": 1.0,
        "--network": "auto", "--lpips": None, "--seed": 0, "--out": "inverted", "--codes-out": "inverted",
        "--sheet": None, "--json": None,
    },
    "stylefusion evaluate": {
        "--model": None, "--device": "cpu", "--compare": [], "--region": [], "--count": None, "--images": 64, "--seed": 0,
        "--batch": 8, "--out": "evaluation",
    },
    "stylefusion segments": {
        "--generator": None, "--segments": None, "--name": [], "--clusters": 12, "--images": 100, "--pixels": 4000,
        "--from-side": 16, "--truncation": 0.7, "--seed": 0, "--show": 6, "--out": None, "--sheet": None, "--json": None,
        "--device": "cpu",
    },
    "data inspect": {
        **READER,
        "directory": None, "--kind": "auto", "--split": "train", "--unknown": "class", "--limit": None, "--out": None,
        "--count": 8, "--size": 192, "--json": None,
    },
    "evaluate": {
        **READER,
        "--images": None, "--run": None, "--samples": None, "--reference": None, "--data": None, "--kind": None,
        "--split": None, "--unknown": None, "--size": None, "--limit": None,
        "--metrics": ["psnr", "ssim", "rmse", "lpips_vgg", "lpips_alex", "fid"], "--regions": False, "--step": "newest",
        "--live": False, "--draws": 8, "--diversity-network": "alexnet", "--diversity-rule": "masked", "--lpips-vgg": None,
        "--lpips-alex": None, "--style-vgg": None, "--inception": None, "--batch-size": 8, "--device": "cpu", "--seed": 0,
        "--out": "evaluation",
    },
    "parse": {
        "--size": 512, "--save-size": 1024, "--device": "cpu",
    },
    "train spade": {
        **LOOP,
        **RECONSTRUCTION,
        **LATENT,
        "--generator.hidden": 128, "--generator.kernel-size": 3,
    },
    "train clade": {
        **LOOP,
        **RECONSTRUCTION,
        **LATENT,
    },
    "train sean": {
        **LOOP,
        **RECONSTRUCTION,
        "--generator.hidden": 128, "--generator.style-length": 512, "--generator.encoder-width": 32,
        "--generator.unstyled": ["up_3"],
    },
    "train clvae": {
        **LOOP,
        **{k: v for k, v in (RECONSTRUCTION | LATENT).items() if k not in ("--instance-edges", "--generator.use-vae")},
        "--generator.hidden": 128, "--generator.kernel-size": 3, "--generator.code-length": 0, "--generator.num-levels": 6,
        "--generator.class-wise": True, "--generator.layer-wise": True, "--rates": "code",
        "--loss-mask": "auto",
    },
    "train msca": {
        **LOOP,
        **{k: v for k, v in RECONSTRUCTION.items() if k in JUDGED},
        "--generator.trunk": "vgg", "--generator.trunk-width": 32, "--generator.features": 64, "--generator.condition": 64,
        "--generator.maps": [8, 16, 16, 16, 16], "--generator.attention": "msca", "--generator.masking": True,
        "--generator.ngf": 64, "--generator.largest": 0, "--generator.hidden": 128, "--generator.norm": "batch",
        "--generator.spectral-norm": True, "--adversarial": "non_saturating", "--generator-lr": 0.0002,
        "--discriminator-lr": 0.0002, "--betas": [0.9, 0.999], "--vgg-kind": "auto", "--pretrain-steps": 33000,
        "--patch-steps": 33000, "--global-stage": True, "--global-weight": 1.0, "--generator-every": 5,
    },
    "train mixsyn": {
        **LOOP,
        "--coupled": "auto", "--structure.width": 16, "--structure.code-channels": 128, "--structure.code-size": 16,
        "--structure.decoder-width": 256, "--structure.decoder-smallest": 32, "--structure.spectral-norm": True,
        "--style.code-length": 512, "--style.encoder-width": 16, "--style.encoder-largest": 128,
        "--style.encoder-halvings": 4, "--style.width": 64, "--style.largest": 512, "--style.start-size": 8,
        "--style.hidden": 64, "--style.normalisation": "region_adaptive", "--style.spectral-norm": True,
        "--structure-discriminator.width": 32, "--structure-discriminator.largest": 256,
        "--structure-discriminator.end-size": 4, "--image-discriminator.width": 32, "--image-discriminator.largest": 512,
        "--image-discriminator.end-size": 4, "--adversarial": 1.0, "--reconstruction": 10.0,
        "--structure-reconstruction": 10.0, "--style-weight": 1.0, "--alpha": 0.5, "--beta": 0.6, "--eta": 0.5,
        "--saturating": False, "--r1": 1.0, "--r1-every": 16, "--vgg": 0.0, "--vgg-weights": "auto",
        "--generator-lr": 0.0001, "--discriminator-lr": 0.0003, "--betas": [0.0, 0.999], "--weight-decay": 0.0001,
        "--training": "joint", "--structure-steps": 1000, "--reuse-fakes": True, "--style.noise": False,
        "--style.noise-seed": 0, "--style.soft-resize": "nearest", "--style.painted": "soft",
        "--feature-matching": 0.0, "--vgg-taps": 5, "--colour": 0.0,
        "--vgg-images": "both", "--structure-cross-entropy": 0.0, "--structure-dice": 0.0, "--structure-balance": 1.0,
        "--soften-real": 0, "--feature-matching-images": "known",
        **{
            f"--{judge}-discriminator.{name}": value
            for judge in ("structure", "image")
            for name, value in (
                ("kind", "blocks"), ("spectral", True), ("norm", "none"), ("scales", 2), ("layers", 4),
                ("sees-map", False),
            )
        },
    },
    "train harmonized": {
        **LOOP,
        **{k: v for k, v in RECONSTRUCTION.items() if k != "--instance-edges"},
        "--generator.hidden": 128, "--generator.style-length": 512, "--generator.encoder-width": 32,
        "--generator.unstyled": ["up_3"], "--generator.multi-scale": True, "--generator.softmax": True,
        "--generator.level-rate": 1.0, "--betas": [0.5, 0.999],
        "--attention.alpha": 1.0, "--attention.learned": True, "--mapping.z-dim": 16,
        "--mapping.width": 512, "--mapping.shared": 4, "--mapping.own": 3, "--mapping.judges": 3, "--flow.width": 512,
        "--flow.layers": 3, "--flow.time": 0.5, "--flow.tolerance": 1e-5, "--flow.steps": 8, "--flow.noise": 0.05,
        "--attend": True, "--mapping-by": "style", "--groups": [], "--reconstruction-steps": 60000, "--mapping-steps": 20000,
        "--flow-steps": 20000, "--keep": [], "--mapping-lr": 0.0002, "--flow-lr": 0.001, "--flow-solver": "adaptive",
        "--flow-statistics": 200,
    },
    "train harmony": {
        **LOOP,
        "--classifier.width": 32, "--classifier.largest": 256, "--classifier.halvings": 4, "--smallest": 0.01,
        "--largest": 0.6, "--least-change": 0.05, "--lr": 0.0002, "--betas": [0.9, 0.999], "--weight-decay": 0.0001,
    },
    "train stylegan2": {
        **LOOP,
        "--generator.z-dim": 512, "--generator.w-dim": 512, "--generator.mapping-layers": 8,
        "--generator.channel-base": 32768, "--generator.channel-max": 512, "--generator.lr-mul": 0.01,
        "--augment.blit": True, "--augment.geom": True, "--augment.color": True, "--augment.quarter-turns": False,
        "--augment.target": 0.6, "--augment.speed": 100000, "--augment.interval": 4,
        "--generator-lr": 0.002, "--discriminator-lr": 0.002, "--betas": [0.0, 0.99], "--r1": 10.0, "--r1-every": 16,
        "--path-length": 2.0, "--path-length-every": 4, "--path-length-shrink": 2, "--path-length-decay": 0.01,
        "--mixing": 0.9, "--mean-decay": 0.995,
    },
    "train stylefusion": {
        **{k: v for k, v in LOOP.items() if k not in DATA},
        "--generator": "", "--segments": "", "--tree": "faces", "--nodes": [], "--training": "tree", "--ablation": "none",
        "--truncation": None, "--hidden": 1536, "--coarse": 5, "--q-on": "b", "--stage1": 5000, "--stage2": 10000,
        "--stage3": 10000, "--mask": 30000.0, "--local": 15000.0, "--local-favored": 20000.0, "--local-other": 10000.0,
        "--align-reg1": 6.0, "--align-reg3": 1.0, "--fusion": 375.0, "--fusion-favored": 500.0, "--fusion-other": 250.0,
        "--epsilon": 0.1, "--temperature": 0.0, "--lr": 0.01, "--betas": [0.9, 0.999], "--weight-decay": 0.0,
        "--local-norm": "paper", "--mask3": 0.0,
    },
}
# fmt: on
_IN_USE = {"--seed": 0, "--crop": "auto", "--out-size": "own", "--keep": False, "--coupled": False, "--beside": []}
NEW = {
    "mixsyn compose": {**_IN_USE, "--table": None, "--out-dir": None},
    "mixsyn edit": {**_IN_USE, "--out-dir": None, "--outside": "layers"},
    "mixsyn diversity": {"--sheet": None},
    "mixsyn evaluate": {"--lpips": None, "--beside": []},
}
"""What WING.md asks of every verb besides."""

NEEDED = {
    "stylefusion edit": ["--sheet", "s.png"],
    "stylefusion fuse": ["--sheet", "s.png"],
    "stylefusion segments": ["--sheet", "s.png"],
    "parse": ["x.jpg", "--weights", "w.pth", "--out", "o"],
    "evaluate": ["--images", "a", "--reference", "b"],
}
"""Words without which a command cannot run."""


def _names(values: dict[str, Any], kind: type, prefix: str = "") -> dict[str, Any]:
    """Give options of a command their names on the command line."""
    found: dict[str, Any] = {}
    how = {field.name: field.metadata.get("how") for field in dataclasses.fields(kind)}
    hints = importlib.import_module("mixsyn_fast.models.settings")._hints(kind)
    for name, value in values.items():
        spelled = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, dict):
            found |= _names(value, hints[name], prefix if how[name] == "flat" else f"{spelled}.")
        else:
            found[name if how[name] == "positional" else f"--{spelled}"] = value
    return found


def _dump(words: str, given: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main([*words.split(), *given, "--print-config"]) == 0
    return json.loads(capsys.readouterr().out)


def _command(words: str) -> type:
    return importlib.import_module(f"mixsyn_fast.{cli._BY_WORDS[words]}").Options


def test_every_command_is_in_the_table() -> None:
    assert {words for words in OPTIONS if not words.startswith("train ")} == set(cli._BY_WORDS) - {"train"}
    models = importlib.import_module("mixsyn_fast.models.training.registry").MODULES
    assert {words for words in OPTIONS if words.startswith("train ")} == {f"train {name}" for name in models}


@pytest.mark.parametrize("words", [words for words in OPTIONS if not words.startswith("train ")])
def test_names_and_defaults(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _names(_dump(words, NEEDED.get(words, []), capsys), _command(words))
    expected = OPTIONS[words] | NEW.get(words, {})
    given = {"photos", *NEEDED.get(words, [])}
    assert {k: v for k, v in found.items() if k not in given} == {k: v for k, v in expected.items() if k not in given}


@pytest.mark.parametrize("name", [words.split()[1] for words in OPTIONS if words.startswith("train ")])
def test_names_and_defaults_of_training(name: str) -> None:
    """Without a data set there is nothing that decides the rest: what the words give, before it is opened."""
    command = importlib.import_module("mixsyn_fast.models.training.command")
    settings = importlib.import_module("mixsyn_fast.models.settings")
    decided = importlib.import_module("mixsyn_fast.models.training.registry").trainable(name).decided
    kind = command.options_of(name)
    given, only_print = settings.read(kind, [], prog="train", fixed=decided)
    found = _names(settings.to_dict(given), kind)
    hidden = {"--" + one.replace("_", "-") for one in decided}
    assert not only_print and hidden <= set(found)
    assert {key: value for key, value in found.items() if key not in hidden} == OPTIONS[f"train {name}"]


@pytest.mark.parametrize("words", OPTIONS)
def test_every_option_is_explained(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main([*words.split(), "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "\x1b" not in said
    for name in (*OPTIONS[words], "--config", "--print-config"):
        if name.startswith("--"):
            assert f" {name}" in said, name
    for entry in re.split(r"\n  (?=--\w)", said)[1:]:
        text = " ".join(entry.partition("\n ---")[0].split())
        assert len(text.partition(" (default: ")[0].partition(" (required")[0].split()) > 3, text
    assert said.startswith(f"usage: mixsyn-fast {words}")


@pytest.mark.parametrize("words", [words for words in OPTIONS if not words.startswith("train ")])
def test_a_dump_is_a_config(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --print-config prints --config reads, and the command line wins."""
    dumped = _dump(words, NEEDED.get(words, []), capsys)
    name = {"doctor": "json", "data inspect": "count", "parse": "size"}.get(words, "seed")
    dumped[name] = True if words == "doctor" else 64
    file = tmp_path / "options.json"
    file.write_text(json.dumps(dumped))
    assert _dump(words, ["--config", str(file)], capsys) == dumped
    change = ["--no-json"] if words == "doctor" else [f"--{name}", "32"]
    assert _dump(words, [f"--config={file}", *change], capsys) == dumped | {name: False if words == "doctor" else 32}
    file.write_text(json.dumps({"sise": 1}))
    assert cli.main([*words.split(), "--config", str(file)]) == 2
    assert f"{file}: Options: unknown sise" in capsys.readouterr().err
    assert cli.main([*words.split(), "--config", "nowhere.json"]) == 2
    assert "nowhere.json: no such file" in capsys.readouterr().err


def test_a_file_need_not_be_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.json"
    file.write_text('{"weights": "w.pth", "size": 64}')
    assert _dump("parse", ["x.jpg", "--config", str(file), "--out", "o"], capsys) == {
        "photos": ["x.jpg"], "weights": "w.pth", "out": "o", "size": 64, "save_size": 1024, "device": "cpu",
    }  # fmt: skip
    file.write_text('{"size": "64"}')
    assert cli.main(["parse", "x.jpg", "--config", str(file)]) == 2
    assert "some.json: size: expected int, got '64'" in capsys.readouterr().err
