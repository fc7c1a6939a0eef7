"""masked_roi_pool at the levels of the class-wise VAE's encoder and at the end of SEAN's style encoder.

Contenders, all of torch given int64 labels outside the clock:

* per-class: a loop over all classes, masked_fill(-inf) and amax, or a masked sum;
* scatter: scatter_reduce(amax) on an index expanded to all channels, or scatter_add;
* compile: torch.compile of scatter;
* the package's backends.

Floor: reading the features (forward), writing their gradient (backward), at the bandwidth of reading and of writing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mixsyn_fast.models.data import NUM_CLASSES
from torch import Tensor

from mixsyn_fast.measure.contest import LAYOUTS, Normal
from mixsyn_fast.measure.ops.masked_roi_pool import PoolContest, plant_maxima
from mixsyn_fast.ops.masked_roi_pool import masked_roi_pool
from mixsyn_fast.region_map import RegionMap

from ..cases import DTYPES, Labels
from .base import OpBench, Target, Work, forward_and_backward

LARGE = (64, 128)  # channels, side


@dataclass(frozen=True)
class PoolCase:
    """masked_roi_pool on one shape and one kind of label maps."""

    channels: int
    side: int
    batch: int = 4
    labels: str = "street"  # 151 classes; face: 19; cells: random contiguous regions, `cells` of them
    mode: str = "max"
    layout: str = "channels_last"
    dtype: str = "float32"
    cells: int = 0

    @property
    def regions(self) -> int:
        """K."""
        return self.cells if self.labels == "cells" else NUM_CLASSES[self.labels]

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        shape = f"{self.batch}x{self.channels}x{self.side}x{self.side}"
        return f"masked_roi_pool/{self.mode}/k{self.regions}/{shape}/{self.layout}/{self.dtype}"


def draw_cells(batch: int, side: int, count: int, seed: int = 5) -> Tensor:
    """(batch, side, side) int32 Voronoi cells of `count` random pixels: contiguous regions, none empty."""
    generator = torch.Generator().manual_seed(seed)
    where = torch.arange(side, dtype=torch.float32)
    maps = []
    for _ in range(batch):
        pixel = torch.randperm(side * side, generator=generator)[:count]
        squares = [(where[:, None] - centre).square() for centre in (pixel // side, pixel % side)]
        maps.append(torch.stack([(squares[0][y, None] + squares[1]).argmin(1) for y in range(side)]))
    return torch.stack(maps).to(torch.int32)


class PoolBench(OpBench, PoolContest):
    """One row of masked_roi_pool."""

    op = "masked_roi_pool"
    baseline = compiles_from = "scatter"
    case: PoolCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[PoolCase]:
        """Two levels of the class-wise VAE's encoder, streets and faces, and SEAN's style encoder."""
        if quick:
            return [PoolCase(256, 32, dtype=dtype), PoolCase(256, 32, labels="face", mode="mean", dtype=dtype)]
        shapes, kinds = (LARGE, (256, 32)), (("street", "max"), ("street", "mean"), ("face", "max"), ("face", "mean"))
        rows = [PoolCase(c, s, 4, k, m, dtype=dtype) for c, s in shapes for k, m in kinds]
        rows += [PoolCase(*LARGE, 1, "street", "max", dtype=dtype), PoolCase(256, 32, 1, "face", "max", dtype=dtype)]
        rows += [PoolCase(512, 128, 1, "face", "mean", dtype=dtype)]
        other = "contiguous"
        if every:
            rows += [PoolCase(c, s, b, k, m, other, dtype) for c, s in shapes for b in (1, 4) for k, m in kinds]
        else:
            rows += [PoolCase(*LARGE, 4, "street", "max", other, dtype), PoolCase(256, 32, 4, "face", "mean", other, dtype)]
        return [*rows, PoolCase(512, 128, 1, "face", "mean", other, dtype)]

    @classmethod
    def compiles(cls, case: PoolCase) -> bool:
        """In channels_last."""
        return case.layout == "channels_last"

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Both modes, few and many regions, every layout and dtype."""

        def target(mode: str, channels: int, regions: int, layout: str, dtype: str) -> Callable[[], None]:
            generator = torch.Generator().manual_seed(1)
            labels = torch.randint(-1, regions, (2, 29, 40), generator=generator, dtype=torch.int32).to(device)
            return forward_and_backward(
                lambda features: masked_roi_pool(features, labels, regions, mode)[:1],
                lambda normal: [normal(2, channels, 29, 40, layout=LAYOUTS[layout])],
                device,
                DTYPES[dtype],
            )

        sizes = (("max", 5, 6), ("max", 32, 300), ("mean", 5, 6), ("mean", 32, 300))
        return {
            f"masked_roi_pool_{mode}_c{channels}_k{regions}_{layout}_{dtype}": target(mode, channels, regions, layout, dtype)
            for mode, channels, regions in sizes
            for layout in LAYOUTS
            for dtype in DTYPES
        }

    def prepare(self, labels: Labels) -> None:
        """Draw features; label maps at 256 x 256 are nearest-resized to them."""
        case = self.case
        self.regions, self.maximum = case.regions, case.mode == "max"
        if case.labels == "cells":
            self.labels = draw_cells(case.batch, case.side, case.cells).to(self.device)
        else:
            _, maps = labels.tensors(case.labels, case.batch, 256, self.device)
            self.labels = RegionMap(maps, self.regions).labels_at((case.side, case.side)).contiguous()
        self.wide = self.labels.to(torch.int64)
        normal = Normal(self.device, DTYPES[case.dtype])
        features = normal(case.batch, case.channels, case.side, case.side, layout=LAYOUTS[case.layout])
        if case.mode == "max":
            plant_maxima(features, self.wide, self.regions)
        self.inputs["features"] = features
        self.output_grads = (normal(case.batch, self.regions, case.channels),)

    def work(self, mode: str) -> Work:
        """Every feature is read once; every gradient is written once."""
        size = self.inputs["features"].nbytes
        return Work(read=size) if mode == "forward" else Work(written=size)

    def targets(self, mode: str) -> Sequence[Target]:
        """Forward: three times the floor, 20 times per-class; at the large shape five times scatter; ahead of compile.

        With AVX2, for the maximum: twice scatter, 20 times per-class.
        """
        if self.device.type == "cuda":  # 70 % of the bandwidth, for tensors that no cache holds
            return (Target("memory_floor", most=1 / 0.7),)
        if self.bar is not None:
            return self.bar
        if self.isa == "avx2":
            wanted = self.maximum and mode == "forward"
            return (Target("scatter", least=2.0), Target("per-class", least=20.0)) if wanted else ()
        goals = [Target("floor", most=3.0)]
        if mode == "forward":
            goals += [Target("per-class", least=20.0), Target("compile", least=1.0)]
            if (self.case.channels, self.case.side, self.case.batch) == (*LARGE, 4):
                goals.append(Target("scatter", least=5.0))
        return goals

    def facts(self) -> dict[str, int]:
        """Regions present in the batch."""
        return {"regions_present": int(self.labels.unique().numel())}
