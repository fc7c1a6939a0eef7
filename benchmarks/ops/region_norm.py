"""region_norm at the inputs of the normalisation layers of the SEAN and SPADE generators, and of diffusion's blocks.

Contenders: `eager` (the reference), `compile` (torch.compile of it), the package's backends. Floor: passes over x and
the table that no implementation can avoid, at copy bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mixsyn_fast.models.data import NUM_CLASSES
from torch import Tensor

from mixsyn_fast.measure.contest import LAYOUTS, Function, Normal, Outputs
from mixsyn_fast.measure.ops.region_norm import NormContest
from mixsyn_fast.ops.region_norm import region_norm
from mixsyn_fast.region_map import RegionMap

from ..cases import DTYPES, Labels
from .base import OpBench, Target, Work, forward_and_backward

# (channels, side) of the generators at 256 x 256 with ngf 64
GENERATOR_SHAPES = ((128, 256), (64, 256), (256, 128), (512, 64), (1024, 32), (1024, 16))
_PICKED = ((128, 256), (512, 64), (1024, 16))
# of decoders and U-Nets: group norm of 32 groups with weight and bias, then SiLU
_GROUPS = 32
_GROUPED = ((128, 256), (128, 128), (320, 64), (512, 64), (1280, 16))


@dataclass(frozen=True)
class NormCase:
    """region_norm on one shape. Rows of the table: the distinct 5x5 label patterns of each image (as in SEAN)."""

    channels: int
    side: int
    batch: int = 1
    statistics: str = "batch"  # instance, batch, given (running statistics, as in eval), group
    layout: str = "channels_last"
    dtype: str = "float32"
    modulation: str = "table"  # "table", "maps" (dense scale and shift), "silu" (weight and bias, then SiLU; with group)
    negative_slope: float | None = 0.2
    labels: str = "face"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        shape = f"{self.batch}x{self.channels}x{self.side}x{self.side}"
        return f"region_norm/{self.modulation}/{self.statistics}/{shape}/{self.layout}/{self.dtype}"

    def passes(self, mode: str) -> int:
        """Passes over a tensor of x's size that no implementation can avoid.

        Computed statistics: 2 reads + 1 write forward, 4 reads + 1 write backward; given ones: one read less each.
        Dense maps: 2 reads more forward, and 2 reads + 2 writes more backward (the maps and their gradients).
        """
        fewer = self.statistics == "given"
        maps = self.modulation == "maps"
        forward = 3 - fewer + 2 * maps
        backward = 5 - fewer + 4 * maps
        return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


class NormBench(OpBench, NormContest):
    """One row of region_norm."""

    op = "region_norm"
    case: NormCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[NormCase]:
        """Every generator shape with batch statistics, the ends and the middle with the others."""
        if quick:
            return [NormCase(c, s, 1, kind, dtype=dtype) for c, s in ((64, 256), (1024, 16)) for kind in ("batch", "given")]
        grouped = [NormCase(c, s, 1, "group", layout, dtype, "silu") for c, s in _GROUPED for layout in LAYOUTS]
        if not every:
            rows = [NormCase(c, s, 1, dtype=dtype) for c, s in GENERATOR_SHAPES]
            rows += [NormCase(c, s, b, kind, dtype=dtype) for b, kind in ((4, "batch"), (1, "given")) for c, s in _PICKED]
            middle = _PICKED[1]
            rows += [NormCase(*middle, 1, "instance", dtype=dtype), NormCase(*middle, dtype=dtype, modulation="maps")]
            return rows + grouped
        rows = [NormCase(c, s, b, "batch", layout, dtype) for layout in LAYOUTS for b in (1, 4) for c, s in GENERATOR_SHAPES]
        kinds = ("instance", "given")
        rows += [NormCase(c, s, b, k, "channels_last", dtype) for k in kinds for b in (1, 4) for c, s in _PICKED]
        return rows + [NormCase(c, s, 1, "batch", "channels_last", dtype, "maps") for c, s in _PICKED] + grouped

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Table, maps and neither, with noise and without, every layout; half precision in one of its types."""

        def target(params: str, norm: str, channels: int, noisy: bool, layout: str, dtype: str) -> Callable[[], None]:
            generator = torch.Generator().manual_seed(1)
            index = torch.randint(0, 5, (2, 6, 10), generator=generator, dtype=torch.int32).to(device)
            noise = torch.randn(2, 1, 6, 10, generator=generator).to(device, DTYPES[dtype]) if noisy else None

            def make(normal: Normal) -> list[Tensor]:
                shape, memory = (2, channels, 6, 10), LAYOUTS[layout]
                modulation = [normal(7, 2 * channels)] if params == "table" else []
                modulation += [normal(*shape, layout=memory) for _ in range(2 if params == "maps" else 0)]
                modulation += [normal(channels) for _ in range(2 if params == "silu" else 0)]
                return [normal(*shape, layout=memory), *modulation, *([normal(channels)] if noisy else [])]

            def run(x: Tensor, *leaves: Tensor) -> Outputs:
                if params == "silu":
                    more = {"num_groups": channels // 2, "activation": "silu"}
                    return (region_norm(x, norm=norm, weight=leaves[0], bias=leaves[1], **more),)
                names = {"table": ("table",), "maps": ("scale", "shift"), "none": ()}[params]
                given = dict(zip((*names, *(("noise_scale",) if noisy else ())), leaves, strict=True))
                if params == "table":
                    given["index"] = index
                return (region_norm(x, **given, noise=noise, norm=norm, training=True, negative_slope=0.2),)

            return forward_and_backward(run, make, device, DTYPES[dtype])

        rows = (
            ("table", "batch", 16, True),
            ("table", "instance", 5, False),
            ("maps", "instance", 16, True),
            ("maps", "batch", 3, False),
            ("none", "batch", 16, False),
            ("silu", "group", 16, False),
            ("silu", "group", 6, False),
        )
        return {
            f"region_norm_{params}_{norm}_c{channels}_{layout}_{dtype}": target(params, norm, channels, noisy, layout, dtype)
            for params, norm, channels, noisy in rows
            for layout in LAYOUTS
            for dtype in ("bfloat16", "float32", "float64")
        }

    def prepare(self, labels: Labels) -> None:
        """Draw x, statistics, and the table of the label map's patterns or dense maps."""
        case = self.case
        normal, layout = Normal(self.device, DTYPES[case.dtype]), LAYOUTS[case.layout]
        shape = (case.batch, case.channels, case.side, case.side)
        self.inputs["x"] = normal(*shape, offset=0.3, layout=layout)
        grad = normal(*shape, layout=layout)
        self.statistics, self.negative_slope = case.statistics, case.negative_slope
        if case.statistics == "given":
            self.mean = normal(1, case.channels, scale=0.3).float()
            self.variance = normal(1, case.channels, scale=0.2).float().exp()
        if case.modulation == "silu":
            self.num_groups, self.negative_slope, self.same_as_reference = min(_GROUPS, case.channels // 2), None, ""
            self.inputs["weight"] = normal(case.channels, scale=0.3, offset=1.0)
            self.inputs["bias"] = normal(case.channels, scale=0.3)
        elif case.modulation == "table":
            classes = NUM_CLASSES[case.labels]
            _, maps = labels.tensors(case.labels, case.batch, 256, self.device)
            patterns = RegionMap(maps, classes).patterns((case.side, case.side), 2, per_image=True)
            self.index = patterns.index
            table = normal(patterns.patterns.shape[0], 2 * case.channels, scale=0.3)
            table[:, : case.channels] += 1
            self.inputs["table"] = table
        else:
            self.inputs["scale"] = normal(*shape, scale=0.3, offset=1.0, layout=layout)
            self.inputs["shift"] = normal(*shape, scale=0.3, layout=layout)
        self.output_grads = (self.off_the_kink(grad),)

    @property
    def _compiler_corrupts_memory(self) -> bool:
        """Torch 2.13's CPU compiler writes out of bounds on the plain reference with a table in contiguous layout.

        The heap check of the C library aborts the process ("invalid next size"), without any kernel of ours in it.
        """
        case = self.case
        return self.device.type == "cpu" and case.modulation == "table" and case.layout == "contiguous"

    def contenders(self, *, compiled: bool) -> dict[str, Function]:
        """Eager, compile, ours."""
        return super().contenders(compiled=compiled and not self._compiler_corrupts_memory)

    def work(self, mode: str) -> Work:
        """Passes over x, and over the table, which is not small: where regions meet, pixels rarely share a row.

        It is read by every pass that modulates (one forward, two backward), and its gradient is written once.
        """
        table = self.inputs["table"].nbytes if "table" in self.inputs else 0
        over_table = {"forward": 1, "backward": 3, "both": 4}[mode]
        return Work(copied=self.case.passes(mode) * self.inputs["x"].nbytes + over_table * table)

    @property
    def probe_bytes(self) -> int:
        """Of x."""
        return self.inputs["x"].nbytes

    def targets(self, mode: str) -> Sequence[Target]:
        """One and a half times the floor.

        With AVX2 at 64 pixels a side and above, backward twice. Group norm and SiLU: three times as fast as torch's own and
        1.3 times as fast as compiled too, in channels_last.
        """
        if self.bar is not None:
            return self.bar
        if self.isa == "avx2":
            most = {"forward": 1.5, "backward": 2.0}.get(mode) if self.case.side >= 64 else None
            return (Target("memory_floor", most=most),) if most else ()
        floor = Target("memory_floor", most=1.5)
        if self.case.modulation == "silu" and self.case.layout == "channels_last":
            return (
                floor,
                Target("eager", least=3.0),
                *((Target("compile", least=1.3),) if "compile" in self.functions else ()),
            )
        return (floor,)

    def facts(self) -> dict[str, int]:
        """Rows of the table."""
        return {"rows_of_table": self.inputs["table"].shape[0] if "table" in self.inputs else 0}
