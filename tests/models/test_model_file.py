"""The file of a trained model: exact, whole, verified, of one paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mixsyn_fast.models.mixsyn.model import FILE as MIXSYN
from mixsyn_fast.models.model_file import ModelFile
from torch import nn


@dataclass(frozen=True)
class Config:
    """Of a toy."""

    width: int = 3  # of both layers
    names: tuple[str, ...] = ("a", "b")  # something that JSON has no type for


FILE = ModelFile("toy", "Toy", Config)


def build(config: Config) -> dict[str, nn.Module]:
    return {"first": nn.Linear(config.width, 2), "second": nn.Linear(2, config.width)}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    config, networks = Config(5, ("x",)), build(Config(5))
    FILE.save(tmp_path / "new" / "toy.safetensors", config, networks)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    found, loaded = FILE.load(tmp_path / "new" / "toy.safetensors", build)
    assert torch.equal(torch.random.get_rng_state(), before)  # building drew weights, and nobody notices
    assert found == config and list(loaded) == ["first", "second"]
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(loaded[name].state_dict()[key], value)


def test_half_is_half_as_large_and_says_what_it_cannot_hold(tmp_path: Path) -> None:
    networks = {"n": nn.Linear(64, 64)}
    FILE.save(tmp_path / "whole", Config(), networks)
    FILE.save(tmp_path / "half", Config(), networks, half=True)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    loaded = FILE.load(tmp_path / "half", lambda config: {"n": nn.Linear(64, 64)})[1]["n"]
    assert loaded.weight.dtype == torch.float32 and torch.equal(loaded.weight, networks["n"].weight.half().float())
    networks["n"].weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"half: float16 cannot hold n\.weight, whose largest value is 1e\+06"):
        FILE.save(tmp_path / "half", Config(), networks, half=True)
    assert torch.equal(FILE.load(tmp_path / "half", lambda c: {"n": nn.Linear(64, 64)})[1]["n"].weight, loaded.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "whole"]


def test_a_file_of_another_paper_version_or_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    FILE.save(path, Config(), build(Config()))
    with pytest.raises(ValueError, match=r"file of Other.save with format 'mixsyn_fast.other', got 'mixsyn_fast.toy'"):
        ModelFile("other", "Other", Config).load(path, build)
    with pytest.raises(ValueError, match="with version '2', got '1'"):
        ModelFile("toy", "Toy", Config, version="2").load(path, build)
    with pytest.raises(ValueError, match="does not fit"):
        FILE.load(path, lambda config: {"first": nn.Linear(9, 9)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged: the SHA-256"):
        FILE.load(path, build)


def test_shipped_weights_are_found_or_named() -> None:
    assert MIXSYN.shipped("facades").is_file()
    with pytest.raises(FileNotFoundError, match=r"no such weights came with the package; there are: facades"):
        MIXSYN.shipped("faces")
