"""What depends only on unchanged input is kept from call to call: the values of the last few keys, keys made of arrays."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

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
