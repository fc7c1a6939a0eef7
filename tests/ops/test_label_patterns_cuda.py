"""label_patterns on CUDA against the reference; without a GPU, the CUDA sources emulated."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mixsyn_fast.ops.label_patterns import label_patterns_reference
from tests.ops.gpu_kernels import NO_GPU, TARGETS, assert_dies, kernels_of


class Target(NamedTuple):
    """The op and the device it runs on."""

    device: str
    op: Any


@pytest.fixture(scope="module", params=TARGETS[:2])  # there is no Triton kernel
def target(request: pytest.FixtureRequest) -> Target:
    return Target(*kernels_of(request.param, "label_patterns", ("label_patterns",)))


def blobs(batch: int, height: int, width: int, regions: int, seed: int) -> Tensor:
    """Piecewise constant labels with -1 here and there."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-1, regions, (batch, 1, max(height // 4, 1), max(width // 3, 1)), generator=g)
    return torch.nn.functional.interpolate(coarse.float(), (height, width))[:, 0].to(torch.int32)


def compare(target: Target, labels: Tensor, edges: Tensor | None, *settings: Any) -> None:
    expected = label_patterns_reference(labels, edges, *settings)
    on_device = None if edges is None else edges.to(target.device)
    got = target.op(labels.to(target.device), on_device, *settings)
    for name, a, b in zip(("index", "patterns", "row_image"), got, expected, strict=True):
        assert a.dtype == torch.int32 and torch.equal(a.cpu(), b), name


@pytest.mark.parametrize("per_image", [False, True], ids=["shared", "per_image"])
@pytest.mark.parametrize("with_edges", [False, True], ids=["", "edges"])
@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 16, 18), (3, 7, 5), (1, 1, 1), (2, 1, 9), (1, 40, 33), (4, 3, 1)], ids=str)
def test_matches_reference(target: Target, shape: Any, radius: int, with_edges: bool, per_image: bool) -> None:
    labels = blobs(*shape, 5, seed=radius)
    labels[-1] = labels[0]  # images that share everything
    edges = None
    if with_edges:
        edges = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.2
        edges = edges if radius else edges.to(torch.uint8) * 3  # any non-zero byte is an edge
    for max_rows in (-1, labels.numel() + 3):
        compare(target, labels, edges, 5, radius, per_image, max_rows)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_noise_and_constant_maps(target: Target, radius: int) -> None:
    """Nearly as many rows as pixels; and one row in the inside of a constant map. Also 512 regions."""
    g = torch.Generator().manual_seed(0)
    compare(target, torch.randint(-1, 512, (2, 30, 41), generator=g, dtype=torch.int32), None, 512, radius, False, -1)
    compare(target, torch.zeros(2, 30, 41, dtype=torch.int32), None, 1, radius, False, -1)
    nowhere, everywhere = torch.full((1, 9, 9), -1, dtype=torch.int32), torch.ones(1, 9, 9, dtype=torch.bool)
    compare(target, nowhere, everywhere, 512, radius, True, 99)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)], ids=str)
def test_empty(target: Target, shape: Any) -> None:
    labels = torch.zeros(shape, dtype=torch.int32, device=target.device)
    for radius, max_rows in ((0, -1), (2, -1), (2, 0), (1, 5)):
        index, patterns, row_image = target.op(labels, None, 3, radius, True, max_rows)
        rows = max(max_rows, 0)
        assert index.shape == shape and index.dtype == torch.int32
        assert torch.equal(patterns.cpu(), torch.full((rows, (2 * radius + 1) ** 2), 3, dtype=torch.int32))
        assert torch.equal(row_image.cpu(), torch.full((rows,), -1, dtype=torch.int32))


def test_order_of_threads_plays_no_part(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = blobs(3, 24, 31, 4, seed=5).to(target.device)
    results = []
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
        results.append(target.op(labels, None, 4, 2, False, -1))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_errors_name_the_argument(target: Target) -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int32, device=target.device)
    with pytest.raises(RuntimeError, match="mixsyn_fast::label_patterns: labels: expected Int, got Long"):
        target.op(labels.long(), None, 3, 1, False, -1)
    with pytest.raises(RuntimeError, match="mixsyn_fast::label_patterns: radius: expected 0, 1 or 2, got 3"):
        target.op(labels, None, 3, 3, False, -1)
    with pytest.raises(RuntimeError, match="mixsyn_fast::label_patterns: num_regions: expected 1 to 512, got 513"):
        target.op(labels, None, 513, 1, False, -1)


ASSERTIONS = {
    "too large": ("[[0, 3]]", -1, "labels: expected"),
    "too small": ("[[0, -2]]", -1, "labels: expected"),
    "rows": ("[[0, 1]]", 1, "fewer rows than distinct patterns"),
}


@pytest.mark.parametrize("what", ASSERTIONS)
def test_device_assertions(target: Target, what: str) -> None:
    """A wrong label and too many patterns stop the kernel with a message: in its own process, which it ends."""
    labels, max_rows, message = ASSERTIONS[what]
    code = f"""
labels = torch.tensor([{labels}], dtype=torch.int32, device="{target.device}")
ops.label_patterns(labels, None, 3, 0, False, {max_rows})
"""
    assert_dies("emulated" if target.device == "cpu" else "native", target.device, code, message)


# --- only on a device ---


@pytest.mark.gpu
@NO_GPU
def test_real_size(target: Target) -> None:
    if target.device == "cpu":
        pytest.skip("too slow emulated")
    labels = blobs(4, 256, 256, 19, seed=2)
    for radius in (0, 1, 2):
        compare(target, labels, None, 19, radius, False, -1)
        compare(target, labels, None, 19, radius, True, labels.numel())


@pytest.mark.gpu
@NO_GPU
def test_cuda_graph_with_a_cap(target: Target) -> None:
    """With max_rows there is no synchronisation: the op can be captured; a replay reads the new labels."""
    if target.device == "cpu":
        pytest.skip("no graphs emulated")
    labels = blobs(2, 32, 32, 4, seed=1).cuda()
    settings = (None, 4, 1, False, 2048)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        target.op(labels, *settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = target.op(labels, *settings)
    labels.copy_(blobs(2, 32, 32, 4, seed=9))
    graph.replay()
    for a, b in zip(captured, target.op(labels, *settings), strict=True):
        assert torch.equal(a, b)
