"""Published StyleGAN2 generators: the common PyTorch port, and the official files in PyTorch's and TensorFlow's form.

All three become a state_dict of `Generator`, whose names are the port's:

* The port: a file of torch.save, a mapping with the state `g_ema` (and perhaps `g`, `d`, optimisers, `latent_avg`). Its
  convolutions have one more dimension, of 1, in front.
* Official, PyTorch (StyleGAN2-ADA): a pickle of a mapping with the networks `G`, `D`, `G_ema`. Its 3x3 convolutions have no
  factor 1 / sqrt(fan_in), which demodulation takes out again (but for its epsilon); its conversions to RGB have it on the
  style. The values are the port's.
* Official, TensorFlow: a pickle of three networks, the last of which is averaged. Convolutions are (k, k, I, O), those that
  enlarge are turned by half a turn, linear layers are (I, O), and the biases of styles lack the 1 that the network adds.

The pickles are read without their code (`pickles.py`). Discriminators are not read.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mixsyn_fast.layers.resample import filter_2d

from ..checkpoints import plain_state, read_content
from .config import SMALLEST, Config
from .generator import Generator
from .pickles import Array, Record, load_pickle

_EXPECTED = "the weights of a generator"
_TORCH_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save began before they were archives
_ALONE = "a discriminator alone: only generators are read"


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state_dict in a published file: of a `Generator`, or whatever plain state_dict there is.

    The mean code w_mean is the file's (`latent_avg`, `w_avg`, `dlatent_avg`); a generator's file without one gets the mean
    of 10,000 mapped codes, always the same ones.

    Args:
        path: a file of torch.save, .safetensors, or an official pickle.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of these, is damaged, names code, or holds a discriminator alone; entries are missing
            or unexpected in an official pickle; the file's filter is not [1, 3, 3, 1].
        ImportError: a .safetensors file, and safetensors is not installed.
    """
    where = os.fspath(path)
    if _is_pickle(path):
        state = _official(load_pickle(path, _EXPECTED), where)
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training files hold their options
            content = read_content(path)
        state = _port(content, where)
    if not recognises(state):
        if "final_linear.0.weight" in state and "convs.0.0.weight" in state:
            raise ValueError(f"{where}: expected {_EXPECTED}, got {_ALONE}")
        return state
    for name, value in state.items():
        if name.endswith((".blur.kernel", ".upsample.kernel")):
            _check_filter(name, value, 4.0, where)
        elif name.endswith(".conv.weight") and value.dim() == 5 and len(value) == 1:
            state[name] = value[0]
    if "w_mean" not in state and (mean := _mean_code(state)) is not None:
        state["w_mean"] = mean
    return state


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state_dict is a generator's, by the port's names."""
    return "style.1.weight" in state and "conv1.conv.modulation.weight" in state


def config_from_state(state: Mapping[str, Tensor], *, spectral_norm: bool = False, **fields: Any) -> Config:
    """Return the Config that the shapes imply; `fields` win (lr_mul, which no shape tells).

    Raises:
        ValueError: channels that are not min(channel_max, channel_base / side).
    """
    del spectral_norm  # there is none
    style = state["style.1.weight"]
    depth = sum(1 for name in state if re.fullmatch(r"style\.\d+\.weight", name))
    steps = 1 + max((int(found[1]) for name in state if (found := re.match(r"to_rgbs\.(\d+)\.", name))), default=0)
    size = SMALLEST << steps
    entries = {SMALLEST: "conv1.conv.weight"} | {SMALLEST << i + 1: f"convs.{2 * i}.conv.weight" for i in range(steps)}
    # what is missing or of another rank is for the loader to tell
    channels = {side: len(state[name]) for side, name in entries.items() if name in state and state[name].dim() == 4}
    highest = max(channels.values(), default=512)
    base = max((side * count for side, count in channels.items() if count < highest), default=highest * size)
    if any(count != min(highest, base // side) for side, count in channels.items()):
        raise ValueError(f"state: expected min(channel_max, channel_base / side) channels, got {channels} by side")
    found_fields = {"size": size, "z_dim": style.shape[1], "w_dim": style.shape[0], "mapping_layers": depth}
    return Config(**(found_fields | {"channel_base": base, "channel_max": highest} | fields))


def _is_pickle(path: str | os.PathLike[str]) -> bool:
    if not os.path.isfile(path) or os.fspath(path).endswith(".safetensors"):
        return False
    with open(path, "rb") as file:
        start = file.read(len(_TORCH_OLD))
    return start[:1] == b"\x80" and start != _TORCH_OLD


def _check_filter(name: str, value: Tensor, gain: float, where: str) -> None:
    if value.shape != (4, 4) or not torch.allclose(value.float(), filter_2d(gain), atol=1e-5):
        raise ValueError(
            f"{where}: {name}: expected the filter [1, 3, 3, 1], got {tuple(value.shape)} {value.flatten()[:4].tolist()}"
        )


def _mean_code(state: Mapping[str, Tensor]) -> Tensor | None:
    """Return the mean of the mapping network's codes; None where its entries are not whole (the loader tells)."""
    config = config_from_state(state)
    narrow = Config(8, config.z_dim, config.w_dim, config.mapping_layers, channel_base=8, channel_max=1)
    small = Generator(narrow)
    for name, value in small.style.state_dict().items():
        if f"style.{name}" not in state or state[f"style.{name}"].shape != value.shape:
            return None
        value.copy_(state[f"style.{name}"])
    return small.measure_mean()


# --- the port ---------------------------------------------------------------------------------------------------------


def _port(content: Any, where: str) -> dict[str, Tensor]:
    networks = [key for key in ("g_ema", "g", "d") if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
    if not networks:
        return plain_state(content, where)
    if networks == ["d"]:
        raise ValueError(f"{where}: expected {_EXPECTED}, got {_ALONE}")
    state = plain_state(content[networks[0]], where)
    if isinstance(content.get("latent_avg"), Tensor):
        state.setdefault("w_mean", content["latent_avg"].flatten())
    return state


# --- the official pickles ---------------------------------------------------------------------------------------------

Rule = tuple[str, str, Callable[[Tensor], Tensor]]
"""Entry of ours, entry of theirs, and what makes the one of the other."""


def _same(value: Tensor) -> Tensor:
    return value


def _layers(size: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield a layer's names: ours, PyTorch's, TensorFlow's, and the number of its noise ("" for a conversion to RGB)."""
    yield "conv1", "b4.conv1", "4x4/Conv", "0"
    yield "to_rgb1", "b4.torgb", "4x4/ToRGB", ""
    for i in range((size // SMALLEST).bit_length() - 1):
        side = SMALLEST << i + 1
        yield f"convs.{2 * i}", f"b{side}.conv0", f"{side}x{side}/Conv0_up", str(2 * i + 1)
        yield f"convs.{2 * i + 1}", f"b{side}.conv1", f"{side}x{side}/Conv1", str(2 * i + 2)
        yield f"to_rgbs.{i}", f"b{side}.torgb", f"{side}x{side}/ToRGB", ""


def _torch_rules(size: int, depth: int) -> Iterator[Rule]:
    for i in range(depth):
        for kind in ("weight", "bias"):
            yield f"style.{i + 1}.{kind}", f"mapping.fc{i}.{kind}", _same
    yield "input.input", "synthesis.b4.const", lambda value: value[None]
    for ours, theirs, _, noise in _layers(size):
        theirs = f"synthesis.{theirs}"
        yield f"{ours}.conv.weight", f"{theirs}.weight", _same
        for kind in ("weight", "bias"):
            yield f"{ours}.conv.modulation.{kind}", f"{theirs}.affine.{kind}", _same
        if noise:
            yield f"{ours}.activate.bias", f"{theirs}.bias", _same
            yield f"{ours}.noise.weight", f"{theirs}.noise_strength", lambda value: value.view(1)
            yield f"noises.noise_{noise}", f"{theirs}.noise_const", lambda value: value[None, None]
        else:
            yield f"{ours}.bias", f"{theirs}.bias", lambda value: value.view(1, 3, 1, 1)


def _tensorflow_rules(size: int, depth: int) -> Iterator[Rule]:
    for i in range(depth):
        yield f"style.{i + 1}.weight", f"G_mapping/Dense{i}/weight", Tensor.t
        yield f"style.{i + 1}.bias", f"G_mapping/Dense{i}/bias", _same
    yield "input.input", "G_synthesis/4x4/Const/const", _same
    for ours, _, theirs, noise in _layers(size):
        turned = theirs.endswith("Conv0_up")
        theirs = f"G_synthesis/{theirs}"

        def convolution(value: Tensor, turned: bool = turned) -> Tensor:
            value = value.permute(3, 2, 0, 1)
            return value.flip(2, 3) if turned else value

        yield f"{ours}.conv.weight", f"{theirs}/weight", convolution
        yield f"{ours}.conv.modulation.weight", f"{theirs}/mod_weight", Tensor.t
        yield f"{ours}.conv.modulation.bias", f"{theirs}/mod_bias", lambda value: value + 1
        if noise:
            yield f"{ours}.activate.bias", f"{theirs}/bias", _same
            yield f"{ours}.noise.weight", f"{theirs}/noise_strength", lambda value: value.view(1)
            yield f"noises.noise_{noise}", f"G_synthesis/noise{noise}", _same
        else:
            yield f"{ours}.bias", f"{theirs}/bias", lambda value: value.view(1, 3, 1, 1)


def _official(content: Any, where: str) -> dict[str, Tensor]:
    """Return the port's entries of the averaged generator in an official pickle."""
    if isinstance(content, Mapping):
        network, alone = content.get("G_ema", content.get("G")), "D" in content
        if isinstance(network, Record):
            found = dict(_entries(network, "", where))
            return _translated(found, r"synthesis\.b(\d+)\.", r"mapping\.fc(\d+)\.", "mapping.w_avg", _torch_rules, where)
    else:
        networks = [
            each for each in (content if isinstance(content, list | tuple) else [content]) if isinstance(each, Record)
        ]
        every = [dict(_variables(each, "", where)) for each in networks]
        generators = [found for found in every if "dlatent_avg" in found]
        alone = bool(networks)
        if generators:  # the last one is averaged
            found = generators[-1]
            return _translated(
                found, r"G_synthesis/(\d+)x", r"G_mapping/Dense(\d+)/", "dlatent_avg", _tensorflow_rules, where
            )
    got = _ALONE if alone else f"a pickle of {type(content).__name__}"
    raise ValueError(f"{where}: expected {_EXPECTED}, got {got}")


def _entries(network: Record, prefix: str, where: str) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers of a PyTorch module and of those inside it."""
    state = network.state
    if not isinstance(state, Mapping) or not all(
        isinstance(state.get(kind), Mapping) for kind in ("_parameters", "_buffers", "_modules")
    ):
        raise ValueError(f"{where}: {prefix or network.kind}: expected a module with parameters, buffers and modules")
    for name, value in [*state["_parameters"].items(), *state["_buffers"].items()]:
        if value is not None:
            yield f"{prefix}{name}", _value(f"{prefix}{name}", value, where)
    for name, inner in state["_modules"].items():
        if isinstance(inner, Record):
            yield from _entries(inner, f"{prefix}{name}.", where)


def _variables(network: Record, prefix: str, where: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the variables of a TensorFlow network and of its components, which are called mapping and synthesis."""
    state = network.state
    if not isinstance(state, Mapping) or not isinstance(state.get("variables"), list):
        raise ValueError(f"{where}: {prefix or 'network'}: expected a network with variables")
    for name, value in state["variables"]:
        yield f"{prefix}{name}", _value(f"{prefix}{name}", value, where)
    components = state.get("components")
    for name, inner in components.items() if isinstance(components, Mapping) else ():
        if isinstance(inner, Record):
            yield from _variables(inner, f"G_{name}/", where)


def _value(name: str, value: Any, where: str) -> Tensor:
    tensor = getattr(value, "tensor", None) if isinstance(value, Array) else value
    if isinstance(tensor, float | int):
        tensor = torch.tensor(float(tensor))
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{where}: {name}: expected an array, got {type(value).__name__}")
    return tensor.float()


def _translated(
    found: dict[str, Tensor],
    side: str,
    layer: str,
    mean: str,
    rules: Callable[[int, int], Iterator[Rule]],
    where: str,
) -> dict[str, Tensor]:
    """Return the port's entries; every entry of the file must have a place."""

    def highest(pattern: str) -> int:
        return max((int(number[1]) for name in found if (number := re.match(pattern, name))), default=-1)

    size, depth = highest(side), highest(layer) + 1
    if size < 2 * SMALLEST or size.bit_count() != 1 or not depth:
        raise ValueError(f"{where}: expected {_EXPECTED} of StyleGAN2, got entries {sorted(found)[:8]} ...")
    table = list(rules(size, depth))
    passed = {name for name in found if name.endswith("resample_filter")}
    for name in passed:
        _check_filter(name, found[name], 1.0, where)
    known = {theirs for _, theirs, _ in table} | {mean, "lod"} | passed
    problems = {
        "missing": [theirs for _, theirs, _ in table if theirs not in found],
        "unexpected": [name for name in found if name not in known],
    }
    if any(problems.values()):
        lines = "\n".join(f"{len(names)} {title}:\n  " + "\n  ".join(names) for title, names in problems.items() if names)
        raise ValueError(
            f"{where} does not fit a StyleGAN2 generator of {size} x {size}; nothing was loaded. Entries {lines}"
        )
    state = {}
    for ours, theirs, make in table:
        try:
            state[ours] = make(found[theirs]).contiguous()
        except (RuntimeError, IndexError) as error:  # as many dimensions as the rule's
            shape = tuple(found[theirs].shape)
            raise ValueError(f"{where}: {theirs}: expected the shape of {ours}, in another order, got {shape}") from error
    for i in range((size // SMALLEST).bit_length() - 1):
        state[f"convs.{2 * i}.conv.blur.kernel"] = state[f"to_rgbs.{i}.upsample.kernel"] = filter_2d(4.0)
    if mean in found:
        state["w_mean"] = found[mean].flatten()
    return state
