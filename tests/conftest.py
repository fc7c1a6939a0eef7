"""Set-up shared by all tests: threads, hypothesis profiles, where the data is, poisoned memory, seeds, the `gpu` marker.

HYPOTHESIS_PROFILE chooses how many examples a property test draws: `fast` (the default: few, the same ones in every run),
`thorough` (many, the same ones again: .ci/run judges a commit), `hunt` (very many new ones, by hand).
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

# One thread a process: at these sizes threads cost more than they save, and `make test` runs one process a core. The
# environment is for the processes that tests start; tests of threads set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)

settings.register_profile("fast", max_examples=20, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=80, deadline=None, derandomize=True)
settings.register_profile("hunt", max_examples=3000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are reported as skipped, with the reason, where there is no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU: run `make gpu-check` on a machine that has one")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _garbage_of_the_tests_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave what was imported and collected out of garbage collections: searching it takes a third of a second each time."""
    if len(request.session.items) > 3000:  # all tests: some compile, so torch's compiler comes in any case
        importlib.import_module("torch._inductor")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill uninitialised memory with NaN, in Python and C++, so that an element nobody wrote shows."""
    torch.manual_seed(0)
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import torch's compiler: two seconds
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real images with label maps; tests that use it are skipped without it."""
    folder = os.environ.get("MIXSYN_FAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real label maps: set MIXSYN_FAST_DATA to a folder that holds them")
    return Path(folder)
