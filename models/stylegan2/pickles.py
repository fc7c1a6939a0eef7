"""Pickles of whole networks, read as what they hold: numbers, text, plain containers, tensors. No code of a file runs.

The official files hold objects: of the classes of StyleGAN2-ADA's PyTorch form (their source lies in the file and would be
run), of the TensorFlow form's, numpy's arrays, torch's storages. An ordinary unpickler imports and calls whatever a file
names. This one looks every name up in a short list, which leads to functions of this file that make plain values; nothing is
imported, and any other name is an error.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import other_content, refuse_other_files


class Record:
    """An object of a class that was not imported.

    Attributes:
        kind: name of the class.
        state: what it held: mostly its attributes by name.
    """

    kind: str = "Network"
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        """Take what an object would have been filled with."""
        self.state = state


class Array:
    """An array of numpy, as a tensor."""

    tensor: Tensor

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        """Take numpy's description: version, shape, dtype, whether columns come first, bytes."""
        _, shape, dtype, columns_first, content = state
        self.fill(np.frombuffer(content, dtype.numpy()).reshape(shape, order="F" if columns_first else "C"))

    def fill(self, values: np.ndarray[Any, Any]) -> None:
        """Copy the values, in the machine's byte order."""
        self.tensor = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))


class _Dtype:
    """What numpy.dtype stands for, numbers alone."""

    def __init__(self, code: str) -> None:
        if not (isinstance(code, str) and re.fullmatch("f[248]|[iu][1248]|b1", code)):
            raise pickle.UnpicklingError(f"dtype: expected one of numbers, got {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        return np.dtype({"<": "<", ">": ">"}.get(self.order, "=") + self.code)


class _Function:
    """A function under the name of another; pickle cannot give it a state."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state for a function")


def _persistent(meta: Mapping[str, Any]) -> Record:
    record = Record()
    record.kind, record.state = str(meta["class_name"]), meta["state"]
    return record


def _storage(content: bytes) -> Tensor:
    """Return a storage, which lies in the file as a file of torch.save, as a flat tensor."""
    storage: torch.TypedStorage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)  # checks the bounds


def _array(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any, axes: Any = None) -> Array:
    """Return an array as pickles of protocol 5 have it; numpy 2.3 writes the order of the axes, K, beside the bytes."""
    values, array = np.frombuffer(content, dtype.numpy()), Array()
    array.fill(values.reshape(shape, order="C").transpose(axes) if order == "K" else values.reshape(shape, order=order))
    return array


def _parameter(tensor: Tensor, *rest: Any) -> Tensor:
    return tensor


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how bytes stand in a pickle of protocol 2


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,  # protocol 2
    "dnnlib.util.EasyDict": dict,
    "dnnlib.tflib.network.Network": Record,
    "torch_utils.persistence._reconstruct_persistent_obj": _Function(_persistent),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch.storage._load_from_bytes": _Function(_storage),
    "numpy.ndarray": None,  # an argument of the next one alone
    "numpy.core.multiarray._reconstruct": _Function(lambda *rest: Array()),
    "numpy.core.multiarray.scalar": _Function(lambda dtype, content: np.frombuffer(content, dtype.numpy())[0].item()),
    "numpy.core.numeric._frombuffer": _Function(_array),
    "numpy.dtype": _Function(lambda code, *rest: _Dtype(code)),
    "_codecs.encode": _Function(_bytes),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved its modules
        known = f"{module.replace('numpy._core.', 'numpy.core.')}.{name}"
        if known not in _NAMES:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return _NAMES[known]


def load_pickle(path: str | os.PathLike[str], expected: str = "a pickle of networks") -> Any:
    """Return what a pickle holds: tensors on the CPU, arrays as `Array`, other objects as `Record`.

    Args:
        path: the file.
        expected: the words of the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty file, a web page, another kind of file, one that ends early, or one that names anything that
            the official files are not made of; the message has the name.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file (expected {expected})")
    refuse_other_files(path, expected)
    with open(path, "rb") as file:
        try:
            return _Unpickler(file).load()
        except Exception as error:  # whatever pickle and the functions above raise on bytes that are not theirs
            raise ValueError(f"{os.fspath(path)}: expected {expected}, got {other_content(path, error)}") from error
