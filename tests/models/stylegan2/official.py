"""The official files and what they mean: pickles written as the official code writes them, images by its formulas.

Stand-ins bear the official names while a file is written, and are gone when it is read.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.stylegan2.plain import KERNEL, act, filtered

BUFFERS = ("noise_const", "resample_filter", "w_avg")


class EasyDict(dict):
    """A dictionary of theirs."""


class Network:
    """A network of the TensorFlow form: a list of variables, and components."""

    def __init__(self, name: str, variables: list[tuple[str, Any]], **components: Network) -> None:
        self.state = {
            "version": 4,
            "name": name,
            "static_kwargs": EasyDict(resample_kernel=[1, 3, 3, 1], gain=np.float32(2)),
            "components": EasyDict(components),
            "build_module_src": "raise SystemExit('source of a file was run')",
            "build_func_name": "G_main",
            "variables": variables,
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise SystemExit("an object of a file was built")


class Module:
    """A module of the PyTorch form, with its parameters, buffers and modules, from entries by dotted names."""

    def __init__(self, kind: str, entries: Mapping[str, Tensor]) -> None:
        self.kind = kind
        own = {name: value for name, value in entries.items() if "." not in name}
        inner: dict[str, dict[str, Tensor]] = {}
        for name, value in entries.items():
            if "." in name:
                head, _, rest = name.partition(".")
                inner.setdefault(head, {})[rest] = value
        self.state = {
            "training": False,
            "_parameters": OrderedDict((n, nn.Parameter(v)) for n, v in own.items() if n not in BUFFERS),
            "_buffers": OrderedDict((n, v) for n, v in own.items() if n in BUFFERS),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": OrderedDict(),
            "_modules": OrderedDict((name, Module(f"{kind}.{name}", each)) for name, each in inner.items()),
            "_init_kwargs": EasyDict(mapping_kwargs=EasyDict()),
            "weight_gain": 1 / np.sqrt(5),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit('source of a file was run')"}
        return _reconstruct_persistent_obj, (meta | {"class_name": self.kind, "state": self.state},)


@contextmanager
def official_names() -> Iterator[None]:
    """Give the stand-ins the official names, for as long as a file is written."""
    places = {
        EasyDict: "dnnlib.util",
        Network: "dnnlib.tflib.network",
        _reconstruct_persistent_obj: "torch_utils.persistence",
    }
    before = {thing: thing.__module__ for thing in places}
    made = {".".join(place.split(".")[:n]) for place in places.values() for n in range(1, place.count(".") + 2)}
    assert not made & set(sys.modules)
    for name in made:
        sys.modules[name] = types.ModuleType(name)
    try:
        for thing, place in places.items():
            thing.__module__ = place
            setattr(sys.modules[place], thing.__name__, thing)
        yield
    finally:
        for thing, place in before.items():
            thing.__module__ = place
        for name in made:
            del sys.modules[name]


def dumped(content: Any, protocol: int) -> bytes:
    """Return a pickle that names the official modules."""
    with official_names():
        return pickle.dumps(content, protocol)


def random_entries(size: int, z_dim: int, w_dim: int, depth: int, channels: Mapping[int, int]) -> dict[str, Tensor]:
    """Return a generator of the PyTorch form, by its names; nothing is at its first value."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=rng) * spread

    entries = {"mapping.w_avg": normal(w_dim)}
    for i in range(depth):
        entries[f"mapping.fc{i}.weight"] = normal(w_dim, w_dim if i else z_dim, spread=100.0)
        entries[f"mapping.fc{i}.bias"] = normal(w_dim, spread=30.0)
    entries["synthesis.b4.const"] = normal(channels[4], 4, 4)
    side = 4
    while side <= size:
        before, here, block = channels[max(side // 2, 4)], channels[side], f"synthesis.b{side}"
        entries[f"{block}.resample_filter"] = KERNEL.clone()
        for name, inner in (("conv0", before), ("conv1", here), ("torgb", here)):
            if name == "conv0" and side == 4:
                continue
            rgb = name == "torgb"
            entries[f"{block}.{name}.affine.weight"] = normal(inner, w_dim)
            entries[f"{block}.{name}.affine.bias"] = normal(inner, spread=0.3) + 1
            entries[f"{block}.{name}.weight"] = normal(3 if rgb else here, inner, *((1, 1) if rgb else (3, 3)))
            entries[f"{block}.{name}.bias"] = normal(3 if rgb else here)
            if not rgb:
                entries[f"{block}.{name}.noise_strength"] = normal(1)[0]
                entries[f"{block}.{name}.noise_const"] = normal(side, side)
                entries[f"{block}.{name}.resample_filter"] = KERNEL.clone()
        side *= 2
    return entries


def tensorflow_variables(entries: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the same network in TensorFlow's names and layouts."""
    found: dict[str, Any] = {}
    noises = 0
    for name, tensor in entries.items():
        value, parts = tensor.numpy(), name.split(".")
        if name == "mapping.w_avg":
            found["dlatent_avg"] = value
        elif parts[0] == "mapping":
            found[f"G_mapping/Dense{parts[1][2:]}/{parts[2]}"] = value.T
        elif parts[-1] == "const":
            found["G_synthesis/4x4/Const/const"] = value[None]
        elif parts[-1] == "noise_const":
            found[f"G_synthesis/noise{noises}"] = value[None, None]
            noises += 1
        elif parts[-1] != "resample_filter":
            side = parts[1][1:]
            layer = {"conv0": "Conv0_up", "conv1": "Conv" if side == "4" else "Conv1", "torgb": "ToRGB"}[parts[2]]
            if parts[-2] == "affine":
                value = value.T if parts[-1] == "weight" else value - 1
                parts[-1] = f"mod_{parts[-1]}"
            elif parts[-1] == "weight":
                # a convolution there is a correlation; only the PyTorch form turns it over where it enlarges
                value = (value[:, :, ::-1, ::-1] if parts[2] == "conv0" else value).transpose(2, 3, 1, 0)
            found[f"G_synthesis/{side}x{side}/{layer}/{parts[-1]}"] = value
    return found


def _modulated(x: Tensor, w: Tensor, affine: tuple[Tensor, Tensor], weight: Tensor, up: bool, demodulate: bool) -> Tensor:
    """One sample; weight (O, I, k, k), a correlation, with every factor."""
    style = affine[0] @ w / len(w) ** 0.5 + affine[1]
    weight = weight * style[None, :, None, None]
    if demodulate:
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if up:  # enlarged and filtered first, then convolved
        return F.conv2d(filtered(x, 2, 1, 3, 2, 4.0), weight)
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def torch_image(entries: Mapping[str, Tensor], z: Tensor, psi: float) -> Tensor:
    """One image (1, 3, H, W) of z (z_dim), as StyleGAN2-ADA's PyTorch form defines it."""
    e = {name: value.double() for name, value in entries.items()}
    x = z / (z.square().mean() + 1e-8).sqrt()
    i = 0
    while (layer := f"mapping.fc{i}") + ".weight" in e:
        weight = e[f"{layer}.weight"]
        x = act(weight @ x * 0.01 / weight.shape[1] ** 0.5 + e[f"{layer}.bias"] * 0.01)
        i += 1
    w = e["mapping.w_avg"] + psi * (x - e["mapping.w_avg"])

    def conv(name: str, x: Tensor, up: bool) -> Tensor:
        weight = e[f"{name}.weight"]
        if up:
            weight = weight.flip(2, 3)  # a convolution, not a correlation
        y = _modulated(x, w, (e[f"{name}.affine.weight"], e[f"{name}.affine.bias"]), weight, up, True)
        return act(y + e[f"{name}.noise_strength"] * e[f"{name}.noise_const"] + e[f"{name}.bias"][:, None, None])

    def rgb(name: str, x: Tensor) -> Tensor:
        weight = e[f"{name}.weight"]
        affine = e[f"{name}.affine.weight"], e[f"{name}.affine.bias"]
        y = _modulated(x, w, affine, weight / weight.shape[1] ** 0.5, False, False)
        return y + e[f"{name}.bias"][:, None, None]

    x = conv("synthesis.b4.conv1", e["synthesis.b4.const"][None], False)
    image, side = rgb("synthesis.b4.torgb", x), 8
    while f"synthesis.b{side}.conv0.weight" in e:
        x = conv(f"synthesis.b{side}.conv1", conv(f"synthesis.b{side}.conv0", x, True), False)
        image = filtered(image, 2, 1, 2, 1, 4.0) + rgb(f"synthesis.b{side}.torgb", x)
        side *= 2
    return image


def tensorflow_image(variables: Mapping[str, np.ndarray], z: Tensor, psi: float) -> Tensor:
    """The same, as the TensorFlow form defines it."""
    v = {name: torch.from_numpy(np.array(value)).double() for name, value in variables.items()}
    x = z / (z.square().mean() + 1e-8).sqrt()
    i = 0
    while (layer := f"G_mapping/Dense{i}") + "/weight" in v:
        weight = v[f"{layer}/weight"]
        x = act(x @ (weight * 0.01 / weight.shape[0] ** 0.5) + v[f"{layer}/bias"] * 0.01)
        i += 1
    w = v["dlatent_avg"] + psi * (x - v["dlatent_avg"])

    def layer_of(name: str, x: Tensor, up: bool, demodulate: bool) -> Tensor:
        weight = v[f"{name}/weight"] / v[f"{name}/weight"][..., 0].numel() ** 0.5
        affine = v[f"{name}/mod_weight"].t(), v[f"{name}/mod_bias"] + 1
        y = _modulated(x, w, affine, weight.permute(3, 2, 0, 1), up, demodulate)
        return y if not demodulate else y + v[f"{name}/noise_strength"] * v[f"G_synthesis/noise{noise.pop(0)}"]

    def conv(name: str, x: Tensor, up: bool = False) -> Tensor:
        return act(layer_of(name, x, up, True) + v[f"{name}/bias"][:, None, None])

    def rgb(name: str, x: Tensor) -> Tensor:
        return layer_of(name, x, False, False) + v[f"{name}/bias"][:, None, None]

    noise = list(range(100))
    x = conv("G_synthesis/4x4/Conv", v["G_synthesis/4x4/Const/const"])
    image, side = rgb("G_synthesis/4x4/ToRGB", x), 8
    while f"{(block := f'G_synthesis/{side}x{side}')}/Conv1/weight" in v:
        x = conv(f"{block}/Conv1", conv(f"{block}/Conv0_up", x, True))
        image = filtered(image, 2, 1, 2, 1, 4.0) + rgb(f"{block}/ToRGB", x)
        side *= 2
    return image
