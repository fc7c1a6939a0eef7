"""The attention of MSCA, spatial_attention_pool and channel_attention_spread, each alone and as a pair (Eq. 4, 5, 7, 8).

Contenders: `eager` (plain PyTorch as the equations read: concatenation, 1x1 convolution, softmax over positions, product;
1x1 convolution, softmax over maps, product), `compile` (torch.compile of it), the package's backends. Floor: the longer of
reading and writing every feature map once at copy bandwidth, and the operations at the best measured matrix rate.

"temporary" compares the memory that lives beside inputs and results with eager's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mixsyn_fast.measure.contest import LAYOUTS, Function, Normal, Outputs
from mixsyn_fast.measure.ops.channel_attention_spread import SpreadContest, eager_spread
from mixsyn_fast.measure.ops.spatial_attention_pool import PoolAttentionContest, eager_pool
from mixsyn_fast.ops.channel_attention_spread import channel_attention_spread, channel_attention_spread_reference
from mixsyn_fast.ops.spatial_attention_pool import spatial_attention_pool, spatial_attention_pool_reference

from ..cases import DTYPES, Labels
from .base import OpBench, Target, Work, forward_and_backward

_SANITIZED = ((1, 3, 5, True), (5, 7, 3, False), (16, 32, 16, True), (64, 40, 24, False))  # K, N, M, with a mask


@dataclass(frozen=True)
class AttentionCase:
    """K maps over N features and M condition channels, exemplar and target of one size."""

    op: str
    maps: int = 16
    features: int = 128
    condition: int = 64
    side: int = 128
    batch: int = 2
    layout: str = "channels_last"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Unique, readable, good for --cases."""
        channels = f"k{self.maps}/n{self.features}/m{self.condition}"
        return f"{self.op}/{channels}/{self.batch}x{self.side}x{self.side}/{self.layout}/{self.dtype}"

    @property
    def positions(self) -> int:
        """Of the batch."""
        return self.batch * self.side**2


class AttentionBench(OpBench):
    """What the three benches share."""

    case: AttentionCase

    @classmethod
    def cases(cls, *, quick: bool = False, every: bool = False, dtype: str = "float32") -> Sequence[AttentionCase]:
        """The row with a target first; the pair also with 8 maps, in the other layout, and at MSCA's other scales."""
        first = AttentionCase(cls.op, dtype=dtype)
        if quick:
            return [replace(first, side=32)]
        other = replace(first, layout="contiguous")
        if cls is not PairBench:
            return [first, other] if every else [first]
        scales = ((8, 512, 16), (16, 512, 32), (16, 256, 64), (16, 64, 256))
        rows = [first, other, replace(first, maps=8)]
        rows += [replace(first, maps=k, features=n, side=side) for k, n, side in scales]
        return rows + [replace(row, layout="contiguous") for row in rows[2:]] if every else rows

    @classmethod
    def compiles(cls, case: AttentionCase) -> bool:
        """At the shapes with a target."""
        return case.layout == "channels_last" and case.features == 128

    def prepare(self, labels: Labels) -> None:
        """Draw everything; the weights are such that the maps are neither flat nor single points."""
        case = self.case
        normal, layout = Normal(self.device, DTYPES[case.dtype]), LAYOUTS[case.layout]
        shape = (case.batch, case.features, case.side, case.side)
        condition_shape = (case.batch, case.condition, case.side, case.side)
        of_features = normal(case.maps, case.features, scale=(case.features + case.condition) ** -0.5)
        of_condition = normal(case.maps, case.condition, scale=(case.features + case.condition) ** -0.5)
        everything = {
            "features": normal(*shape, layout=layout),
            "condition": normal(*condition_shape, layout=layout),
            "weight_features": of_features,
            "weight_condition": of_condition,
            "values": normal(case.batch, case.maps, case.features),
            "target": normal(*condition_shape, layout=layout),
            "weight_target": normal(case.maps, case.condition, scale=2 * case.condition**-0.5),
        }
        self.inputs = {name: everything[name] for name in self.names}
        grads = {
            "values": normal(case.batch, case.maps, case.features),
            "mean": normal(case.batch, case.condition),
            "y": normal(*shape, layout=layout),
        }
        self.output_grads = tuple(grads[name] for name in self.outputs)

    names: ClassVar[tuple[str, ...]]

    def _pool_work(self, mode: str) -> Work:
        case = self.case
        size = self.inputs["features"].element_size() * case.positions
        both, k = case.features + case.condition, case.maps
        if mode == "forward":  # read F, C; logits, values
            return Work(copied=size * both, operations=2 * case.positions * k * (both + case.features))
        # read F, C, write both gradients; logits, d maps, two products for grad F, one for grad C, both weights
        return Work(
            copied=2 * size * both, operations=2 * case.positions * k * (both + 3 * case.features + case.condition + both)
        )

    def _spread_work(self, mode: str) -> Work:
        case = self.case
        size = self.inputs["target"].element_size() * case.positions
        n, m, k = case.features, case.condition, case.maps
        if mode == "forward":  # read C, write F; logits, mixture
            return Work(copied=size * (m + n), operations=2 * case.positions * k * (m + n))
        # read C and the gradient of F, write the gradient of C; logits, d maps, grad values, grad C, grad weight
        return Work(copied=size * (2 * m + n), operations=2 * case.positions * k * (3 * m + 2 * n))

    def targets(self, mode: str) -> Sequence[Target]:
        """No large temporary memory."""
        return (Target("temporary", most=0.05),)


class PoolAttentionBench(AttentionBench, PoolAttentionContest):
    """One row of spatial_attention_pool."""

    op = "spatial_attention_pool"
    names = ("features", "condition", "weight_features", "weight_condition")

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Few and many maps, with a mask and the maps or without, every layout and dtype."""

        def target(k: int, n: int, m: int, masked: bool, layout: str, dtype: str) -> Callable[[], None]:
            mask = (torch.rand(2, 7, 19, generator=torch.Generator().manual_seed(1)) < 0.6).to(device) if masked else None
            return forward_and_backward(
                lambda *leaves: spatial_attention_pool(*leaves, mask=mask, return_maps=masked)[: 3 if masked else 2],
                lambda normal: [
                    *(normal(2, channels, 7, 19, layout=LAYOUTS[layout]) for channels in (n, m)),
                    *(normal(k, channels) for channels in (n, m)),
                ],
                device,
                DTYPES[dtype],
            )

        return {
            f"spatial_attention_pool_k{k}_n{n}_m{m}{'_masked' if masked else ''}_{layout}_{dtype}": target(
                k, n, m, masked, layout, dtype
            )
            for k, n, m, masked in _SANITIZED
            for layout in LAYOUTS
            for dtype in DTYPES
        }

    def work(self, mode: str) -> Work:
        """One pass over both maps, and the products."""
        return self._pool_work(mode)


class SpreadBench(AttentionBench, SpreadContest):
    """One row of channel_attention_spread."""

    op = "channel_attention_spread"
    names = ("values", "target", "weight_target")

    @classmethod
    def sanitizer_targets(cls, device: str) -> dict[str, Callable[[], None]]:
        """Few and many maps, every layout and dtype."""

        def target(k: int, n: int, m: int, layout: str, dtype: str) -> Callable[[], None]:
            return forward_and_backward(
                lambda *leaves: (channel_attention_spread(*leaves),),
                lambda normal: [normal(2, k, n), normal(2, m, 7, 19, layout=LAYOUTS[layout]), normal(k, m)],
                device,
                DTYPES[dtype],
            )

        return {
            f"channel_attention_spread_k{k}_n{n}_m{m}_{layout}_{dtype}": target(k, n, m, layout, dtype)
            for k, n, m, _ in _SANITIZED
            for layout in LAYOUTS
            for dtype in DTYPES
        }

    def work(self, mode: str) -> Work:
        """One pass over the condition and the result, and the products."""
        return self._spread_work(mode)

    @property
    def probe_bytes(self) -> int:
        """Of the result."""
        return self.output_grads[0].nbytes


class PairBench(AttentionBench):
    """Pool from an exemplar and spread to a target: one row."""

    op = "attention_pair"
    ops = ("spatial_attention_pool", "channel_attention_spread")
    names = ("features", "condition", "weight_features", "weight_condition", "target", "weight_target")

    def reference(self, *inputs: Tensor) -> Outputs:
        """The references of both ops, values in the accumulation type in between."""
        values = spatial_attention_pool_reference(*inputs[:4], None, False)[0]
        return (channel_attention_spread_reference(values, *inputs[4:]),)

    def ours(self, *inputs: Tensor) -> Outputs:
        """Both ops."""
        return (channel_attention_spread(spatial_attention_pool(*inputs[:4])[0], *inputs[4:]),)

    def plain(self) -> dict[str, Function]:
        """Both forms."""
        return {"eager": lambda *inputs: (eager_spread(eager_pool(*inputs[:4])[0], *inputs[4:]),)}

    def targets(self, mode: str) -> Sequence[Target]:
        """The goals of the headline shape, forward: five times eager and compile, three times the floor.

        With AVX2 there: 1.8 times eager and compile forward, 1.5 times backward.
        """
        case, goals = self.case, list(super().targets(mode))
        headline = (case.maps, case.features, case.condition, case.batch, case.side) == (16, 128, 64, 2, 128)
        if self.bar is not None:
            return [*goals, *self.bar]
        if self.isa == "avx2":
            least = {"forward": 1.8, "backward": 1.5}.get(mode)
            return [*goals, *(Target(name, least=least) for name in ("eager", "compile") if headline and least)]
        if headline and mode == "forward":
            on_gpu = self.device.type == "cuda"  # there: 60 % of the copy bandwidth
            floor = Target("memory_floor", most=1 / 0.6) if on_gpu else Target("floor", most=3.0)
            goals += [Target("eager", least=5.0), Target("compile", least=5.0), floor]
        return goals

    def work(self, mode: str) -> Work:
        """Of both ops."""
        pool, spread = self._pool_work(mode), self._spread_work(mode)
        return Work(copied=pool.copied + spread.copied, operations=pool.operations + spread.operations)
