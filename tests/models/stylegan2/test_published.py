"""Published generators in all three forms give the images that their own formulas give; no code of a file runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.stylegan2 import Config, Discriminator, Generator
from mixsyn_fast.models.stylegan2.pickles import load_pickle
from mixsyn_fast.models.stylegan2.published import _tensorflow_rules, _torch_rules, config_from_state, read_state
from torch import Tensor, nn

from mixsyn_fast import models
from tests.models.stylegan2.official import (
    Module,
    Network,
    dumped,
    random_entries,
    tensorflow_image,
    tensorflow_variables,
    torch_image,
)

CONFIG = Config(16, z_dim=6, w_dim=5, mapping_layers=2, channel_base=96, channel_max=8)
ENTRIES = random_entries(16, 6, 5, 2, {4: 8, 8: 8, 16: 6})
VARIABLES = tensorflow_variables(ENTRIES)
Z = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IMAGE = torch_image(ENTRIES, Z, 0.7)


def torch_pickle(path: Path, entries: dict[str, Tensor] = ENTRIES, protocol: int = 3, **others: Any) -> Path:
    """Both networks hold other values, for the averaged one is wanted."""
    content = {
        "G": Module("Generator", {n: v + 1 for n, v in entries.items()}),
        "D": Module("D", {"a.weight": torch.ones(2)}),
    }
    content |= {"G_ema": Module("Generator", entries), "training_set_kwargs": {}, "augment_pipe": None}
    path.write_bytes(dumped(content | others, protocol))
    return path


def tensorflow_pickle(path: Path, variables: dict[str, Any] = VARIABLES, protocol: int = 4, nested: bool = True) -> Path:
    def network(values: dict[str, Any]) -> Network:
        # a variable without dimensions is a number there
        pairs = [(name, np.float32(value) if np.ndim(value) == 0 else value) for name, value in values.items()]
        if not nested:
            return Network("G", pairs)
        parts = {
            key: Network(f"G_{key}", [(n.split("/", 1)[1], v) for n, v in pairs if n.startswith(f"G_{key}/")])
            for key in ("mapping", "synthesis")
        }
        return Network("G", [(n, v) for n, v in pairs if "/" not in n], **parts)

    others = {name: value + 1 for name, value in variables.items()}
    discriminator = Network("D", [("4x4/Conv/weight", np.ones((3, 3, 1, 1), np.float32))])
    path.write_bytes(dumped((network(others), discriminator, network(variables)), protocol))
    return path


def port_file(path: Path, **changes: Any) -> Path:
    """A file of the port, from the PyTorch form's values."""
    state = read_state(torch_pickle(path.with_suffix(".pkl")))
    mean = state.pop("w_mean")
    state = {name: value[None] if name.endswith(".conv.weight") else value for name, value in state.items()}
    content = {
        "g_ema": state,
        "g": {n: v if "kernel" in n else v + 1 for n, v in state.items()},
        "latent_avg": mean,
    } | changes
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def image_of(path: Path) -> Tensor:
    model = models.load_published(path)
    assert isinstance(model, Generator) and not model.training
    assert model.config == CONFIG
    with torch.no_grad():
        return model.double()(Z[None], psi=0.7)


def test_the_forms_agree_before_anything_is_loaded() -> None:
    assert (tensorflow_image(VARIABLES, Z, 0.7) - IMAGE).abs().max() < 1e-6 * IMAGE.abs().max()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", [torch_pickle, tensorflow_pickle])
def test_official_pickles(form: Callable[..., Path], protocol: int, tmp_path: Path) -> None:
    path = form(tmp_path / "network.pkl", protocol=protocol)
    assert not {"dnnlib", "torch_utils"} & set(sys.modules)
    # the files are float32; epsilon is the one difference
    assert (image_of(path) - IMAGE).abs().max() < 1e-6 * IMAGE.abs().max()


def test_variables_in_one_list(tmp_path: Path) -> None:
    flat, nested = tensorflow_pickle(tmp_path / "a.pkl", nested=False), tensorflow_pickle(tmp_path / "b.pkl")
    assert torch.equal(image_of(flat), image_of(nested))


def test_the_port(tmp_path: Path) -> None:
    path = port_file(tmp_path / "550000.pt")
    assert (image_of(path) - IMAGE).abs().max() < 1e-6 * IMAGE.abs().max()
    # a file of a training: options and optimisers; the form of files before torch 1.6; without an average the live one
    training = port_file(tmp_path / "a.pt", args=argparse.Namespace(size=16, path="data"), g_optim={"state": {}}, d={})
    assert torch.equal(image_of(training), image_of(path))
    old = tmp_path / "old.pt"
    torch.save(torch.load(path), old, _use_new_zipfile_serialization=False)
    assert torch.equal(image_of(old), image_of(path))
    live = models.load_published(port_file(tmp_path / "live.pt", g_ema=None))
    assert torch.equal(live.input.input, models.load_published(path).input.input + 1)
    # into a network that is there
    mine = Generator(CONFIG)
    assert models.load_published(path, mine) is mine
    assert torch.equal(mine.w_mean, ENTRIES["mapping.w_avg"])
    # a plain state_dict, ours or the port's
    torch.save(mine.state_dict(), tmp_path / "plain.pt")
    assert torch.equal(image_of(tmp_path / "plain.pt"), image_of(path))


def test_a_file_without_a_mean_code_gets_one(tmp_path: Path) -> None:
    path = port_file(tmp_path / "g.pt", latent_avg=None)
    model = models.load_published(path)
    torch.manual_seed(3)
    assert torch.equal(models.load_published(path).w_mean, model.w_mean)
    z = torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.w_mean, model.map(z).mean(0), atol=1e-5)


def test_counts_and_names_of_the_contract() -> None:
    with torch.device("meta"):
        model = Generator(Config())
    state = model.state_dict()
    kernels = {name for name in state if name.endswith(".kernel")}
    assert len(set(state) - {"w_mean"}) == 171
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 3) == 30.370
    for rules in (_torch_rules, _tensorflow_rules):
        ours = [name for name, _, _ in rules(1024, 8)]
        assert len(ours) == len(set(ours)) and set(ours) | kernels | {"w_mean"} == set(state)
        theirs = [name for _, name, _ in rules(1024, 8)]
        assert len(theirs) == len(set(theirs))
    assert config_from_state(state) == Config()


@pytest.mark.parametrize(
    "config",
    [
        Config(256, channel_base=16384),
        Config(8, 3, 4, 1, channel_base=32, channel_max=8),
        Config(64, 512, 512, 8, 2048, 64, lr_mul=1.0),
        Config(32, channel_base=4096, channel_max=16),
    ],
)
def test_config_from_shapes(config: Config) -> None:
    with torch.device("meta"):
        state = Generator(config).state_dict()
    found = config_from_state(state, lr_mul=config.lr_mul)
    assert [found.channels(side) for side in found.sides] == [config.channels(side) for side in config.sides]
    assert (found.size, found.z_dim, found.w_dim, found.mapping_layers) == (
        config.size,
        config.z_dim,
        config.w_dim,
        config.mapping_layers,
    )


def without(entries: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names} | more


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            lambda p: torch_pickle(
                p, without(ENTRIES, "synthesis.b8.conv1.bias", **{"mapping.embed.weight": torch.ones(1)})
            ),
            r"16 x 16; .*Entries 1 missing:\n  synthesis.b8.conv1.bias\n1 unexpected:\n  mapping.embed.weight$",
        ),
        (
            lambda p: tensorflow_pickle(
                p, without(VARIABLES, "G_synthesis/noise2", **{"G_synthesis/8x8/Skip/w": np.ones(1)})
            ),
            r"Entries 1 missing:\n  G_synthesis/noise2\n1 unexpected:\n  G_synthesis/8x8/Skip/w$",
        ),
        (
            lambda p: torch_pickle(p, ENTRIES | {"synthesis.b8.resample_filter": torch.ones(4, 4) / 16}),
            r"synthesis.b8.resample_filter: expected the filter \[1, 3, 3, 1\]",
        ),
        (
            lambda p: torch_pickle(p, ENTRIES | {"synthesis.b8.torgb.bias": torch.ones(4)}),
            r"synthesis.b8.torgb.bias: expected the shape of to_rgbs.0.bias, in another order, got \(4,\)",
        ),
        (
            lambda p: torch_pickle(p, ENTRIES | {"synthesis.b8.conv0.weight": torch.ones(8, 8, 5, 5)}),
            r"1 of another shape:\n  convs.0.conv.weight: expected \(8, 8, 3, 3\), got \(8, 8, 5, 5\)",
        ),
        (
            lambda p: torch_pickle(p, ENTRIES | {"synthesis.b8.conv0.weight": torch.ones(7, 8, 3, 3)}),
            r"expected min\(channel_max, channel_base / side\) channels, got \{4: 8, 8: 7, 16: 6\} by side",
        ),
        (
            lambda p: torch_pickle(p, {"synthesis.L0_36_512.weight": torch.ones(1)}),
            r"of StyleGAN2, got entries \['synthesis.L0_36_512.weight'\]",
        ),
        (lambda p: p.write_bytes(dumped({"D": Module("D", {})}, 3)), "got a discriminator alone: only generators are read"),
        (lambda p: p.write_bytes(dumped(Network("D", []), 3)), "got a discriminator alone: only generators are read"),
        (lambda p: torch.save({"d": {"a": torch.ones(1)}}, p), "got a discriminator alone: only generators are read"),
        (
            lambda p: torch.save(Discriminator(Config(8, channel_base=8, channel_max=1)).state_dict(), p),
            "got a discriminator alone: only generators are read",
        ),
        (lambda p: p.write_bytes(pickle.dumps([1, 2])), "expected the weights of a generator, got a pickle of list"),
        (lambda p: p.write_bytes(pickle.dumps({"G_ema": 3})), "expected the weights of a generator, got a pickle of dict"),
        (
            lambda p: p.write_bytes(dumped({"G_ema": Network("x", [])}, 3)),
            "expected a module with parameters, buffers and modules",
        ),
        (
            lambda p: p.write_bytes(dumped(Network("G", [("dlatent_avg", "x")]), 3)),
            "dlatent_avg: expected an array, got str",
        ),
        (
            lambda p: p.write_bytes(torch_pickle(p).read_bytes()[:-2000]),
            "expected the weights of a generator, got a file that is none, or is damaged",
        ),
        (lambda p: p.write_bytes(b""), "got an empty file"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in</html>"), "got a web page"),
        (lambda p: port_file(p, g_ema={"style.1.weight": torch.ones(2, 2)}), "not a SPADE, CLADE, SEAN or StyleGAN2"),
    ],
)
def test_other_files(write: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    write(path)
    with pytest.raises(ValueError, match=words):
        models.load_published(path)


def test_wrong_entries_of_the_port(tmp_path: Path) -> None:
    state = read_state(torch_pickle(tmp_path / "a.pkl"))
    state["convs.9.noise.weight"] = state.pop("convs.1.noise.weight")
    torch.save({"g_ema": state}, tmp_path / "bad.pt")
    words = r"1 missing:\n  convs.1.noise.weight\n1 unexpected:\n  convs.9.noise.weight"
    with pytest.raises(ValueError, match=words):
        models.load_published(tmp_path / "bad.pt")
    state = read_state(tmp_path / "a.pkl")
    state["to_rgbs.0.upsample.kernel"] = torch.ones(4, 4) / 4
    torch.save({"g_ema": state}, tmp_path / "filter.pt")
    with pytest.raises(ValueError, match=r"to_rgbs.0.upsample.kernel: expected the filter \[1, 3, 3, 1\]"):
        models.load_published(tmp_path / "filter.pt")


def call(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls a function by its name."""
    return b"\x80\x03c" + f"{module}\n{name}\n".encode() + pickle.dumps(arguments, 3)[2:-1] + b"R."


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def inside_a_storage(command: str) -> bytes:
    """A storage of torch whose bytes are a pickle of their own."""
    file = io.BytesIO()
    torch.save(Evil(command), file, _use_new_zipfile_serialization=False)
    return call("torch.storage", "_load_from_bytes", file.getvalue())


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda c: pickle.dumps(Evil(c), 4), r"posix\.system"),
        (lambda c: pickle.dumps({"G_ema": [Evil(c)]}, 2), r"posix\.system"),
        (lambda c: call("builtins", "eval", f"__import__('os').system({c!r})"), r"builtins\.eval"),
        (lambda c: call("__builtin__", "exec", f"import os; os.system({c!r})"), r"__builtin__\.exec"),
        (lambda c: call("subprocess", "run", c, -1), r"subprocess\.run"),
        (lambda c: call("collections", "OrderedDict.__class__", c), r"collections\.OrderedDict\.__class__"),
        (lambda c: call("torch", "load", c), r"torch\.load"),
        (lambda c: call("torch.serialization", "load", c), r"torch\.serialization\.load"),
        (lambda c: call("numpy", "load", c), r"numpy\.load"),
        (lambda c: call("builtins", "getattr", c, "x"), r"builtins\.getattr"),
        (lambda c: call("dnnlib.util", "call_func_by_name", c), r"dnnlib\.util\.call_func_by_name"),
        (inside_a_storage, r"posix\.system"),
    ],
)
def test_a_hostile_file_runs_nothing(write: Callable[[str], bytes], name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "network.pkl"
    path.write_bytes(write(f"touch {mark}"))
    with pytest.raises(ValueError, match=rf"network.pkl: expected .*, got a file that names {name}: only tensors in plain"):
        models.load_published(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        # a state for what stands under a name: a function, a class, a container
        *(
            b"\x80\x03c" + name + b"\n}X\x01\x00\x00\x00aK\x01sb."
            for name in (
                b"torch._utils\n_rebuild_parameter",
                b"dnnlib.tflib.network\nNetwork",
                b"collections\nOrderedDict",
                b"numpy\nndarray",
            )
        ),
        b"\x80\x02}X\x01\x00\x00\x00aQ.",  # an object that lies elsewhere
        call("numpy", "dtype", "O"),
        call("numpy", "dtype", "f8,O"),
        call("torch.storage", "_load_from_bytes", b"nothing"),
        call("torch._utils", "_rebuild_tensor_v2", (1.0,), 0, (1,), (1,)),
    ],
)
def test_nothing_is_changed_by_a_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a pickle of networks, got a file that is none, or is damaged"):
        load_pickle(path)


def test_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    """Sizes of a file are not believed: what lies behind the storage is other memory."""
    whole = pickle.dumps(nn.Parameter(torch.ones(3)), 3)
    assert whole.count(b"K\x03\x85") == 1
    (tmp_path / "a.pkl").write_bytes(whole)
    assert torch.equal(load_pickle(tmp_path / "a.pkl"), torch.ones(3))
    (tmp_path / "b.pkl").write_bytes(whole.replace(b"K\x03\x85", b"K\x7f\x85"))
    with pytest.raises(ValueError, match="out of bounds"):
        load_pickle(tmp_path / "b.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_come_as_they_were(protocol: int, tmp_path: Path) -> None:
    transposed = torch.arange(6.0).view(2, 3).t()
    content = {
        "tensor": transposed,
        "half": nn.Parameter(torch.ones(2).half()),
        "array": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "whole": np.arange(3),
        "number": np.float64(2.5),
        "plain": [1, "a", (None, True), {2.5}, OrderedDict(a=1), b"x"],
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(path)
    assert torch.equal(found["tensor"], transposed) and found["half"].dtype == torch.float16
    assert torch.equal(found["array"].tensor, torch.arange(6.0).view(2, 3))
    assert torch.equal(found["whole"].tensor, torch.arange(3))
    assert found["number"] == 2.5 and type(found["number"]) is float
    assert found["plain"] == content["plain"]
    with pytest.raises(FileNotFoundError, match=r"none.pkl: no such file"):
        load_pickle(tmp_path / "none.pkl")
