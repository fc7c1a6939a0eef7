"""The device a Triton kernel is launched on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def device_of(x: Tensor) -> Iterator[None]:
    """Make the device of a tensor current: Triton launches on the current one."""
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            yield
    else:
        yield
