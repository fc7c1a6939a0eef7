"""Process-wide preparations: pay the one-time costs of the ops, and let CPU memory be reused."""

from __future__ import annotations

import ctypes
import sys
import time

import torch

from .backend import registered_ops, select_backend


def warmup(device: torch.device | str = "cpu") -> dict[str, float]:
    """Pay the one-time costs before the first request: load or build the extension, and torch's own first-op imports.

    Args:
        device: where the ops will run.

    Returns:
        Seconds of each part: ``extension`` (loading, or the just-in-time build) and ``first_call`` (about 1.5 s that torch
        spends on imports at the first call of any custom op).
    """
    from .ops import label_patterns, region_norm

    device = torch.device(device)
    start = time.perf_counter()
    for op in registered_ops():
        select_backend(op, device)
    loaded = time.perf_counter()
    labels = torch.zeros(1, 2, 2, dtype=torch.int32, device=device)
    index, _, _ = label_patterns(labels, 1, 0)
    x = torch.randn(1, 1, 2, 2, device=device, requires_grad=True)
    table = torch.ones(1, 2, device=device, requires_grad=True)
    region_norm(x, index, table).sum().backward()
    return {"extension": loaded - start, "first_call": time.perf_counter() - loaded}


def keep_memory() -> bool:
    """Keep freed CPU memory in the process, so that large results do not fault in fresh pages at every step.

    glibc returns blocks above 32 MB to the system as soon as they are freed; the next one of that size is mapped anew and
    each of its pages is zeroed at first touch, which costs several times what the kernels here take to fill it. This tells
    the allocator (``mallopt``) to keep such blocks. The process then holds on to its peak memory. It helps all of torch.

    Returns:
        True where the allocator took the setting (glibc on Linux), False elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
