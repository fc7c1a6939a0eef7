"""What depends only on unchanged input is kept from call to call: the values of the last few keys.

A key is made of arrays (:func:`digest`) and, where networks make the value, of weights and how they run (:func:`state`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from mixsyn_fast.backend import current_backend, current_plan

V = TypeVar("V")


class Memory(Generic[V]):
    """The values of the last few keys. Several threads may use one; what two ask for at once, either makes.

    Args:
        most: how many are kept.

    Attributes:
        made: how many were made so far.
    """

    def __init__(self, most: int) -> None:
        self.most, self.made = most, 0
        self._values: OrderedDict[bytes, V] = OrderedDict()

    def get(self, key: bytes, make: Callable[[], V]) -> V:
        """Return the value of a key, made by `make()` where it is not remembered."""
        try:
            value = self._values[key]
            self._values.move_to_end(key)
            return value
        except KeyError:  # never made, or another thread has just let it go
            value = make()
        self._values[key] = value
        self.made += 1
        while len(self._values) > self.most:
            self._values.popitem(last=False)
        return value


def digest(*arrays: np.ndarray) -> bytes:
    """Return the SHA-256 of arrays: shapes, dtypes and contents."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.shape}{array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.digest()


def state(networks: Iterable[nn.Module], device: torch.device) -> bytes:
    """Return what a value that networks make depends on beside its arrays: weights, plan, backend, precision of autocast.

    Weights by place and version, which every change through the tensor itself moves on (an optimiser, ``load_state_dict``,
    ``copy_``); one through ``.data`` is not seen.
    """
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    weights = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return f"{current_plan()} {current_backend()} {precision} {weights}".encode()
