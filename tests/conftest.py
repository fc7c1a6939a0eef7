"""Set-up shared by all tests: where the data is, poisoned memory, seeds, and the `gpu` marker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are reported as skipped, with the reason, where there is no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU: run `make gpu-check` on a machine that has one")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill uninitialised memory with NaN, in Python and C++, so that an element nobody wrote shows."""
    torch.manual_seed(0)
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real images with label maps; tests that use it are skipped without it."""
    folder = os.environ.get("MIXSYN_FAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real label maps: set MIXSYN_FAST_DATA to a folder that holds them")
    return Path(folder)
