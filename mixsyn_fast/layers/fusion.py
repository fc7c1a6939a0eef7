"""StyleFusion's Latent Blender and FusionNet: two style codes fused into one by a small network per layer of the generator.

``s' = a + q (b - a)`` (Eq. 2 in the direction of the published weights; the paper writes q on the first input), where q
comes from five fully-connected layers that see one layer of the S space at a time (Appendix A.3). A FusionNet aligns both
codes to a third one on the coarse layers (Appendix A.4) and fuses the results (Fig. 5).

What the published form computes layer by layer and sample by sample is one chain of matrix products here, and the numbers
stay the same (docs/ops/latent_blend.md):

* nearest upsampling of a vector of c values before the first linear layer = summing groups of its columns;
* the indicator of the layer is constant = a bias per layer;
* equalised learning rates and the gain sqrt 2 of the activation are factors of the weights (leaky ReLU is homogeneous);
* rows of all layers, samples and both codes to be aligned go through the same product, so every weight is read once;
* blending at full length and max-pooling back is :func:`mixsyn_fast.ops.latent_blend.latent_blend`.

Folded weights are kept in eval (layers/derived.py); in training they are folded on the fly, differentiable.

Under ``use_plan("dense")`` the first layer is not folded; with ``use_backend("reference")`` as well the layers run as
published, layer by layer and sample by sample: the plain PyTorch form to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter, methodcaller
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import current_backend, current_plan
from ..ops._common import check_flag, check_integer, check_tensor, described, fail
from ..ops.latent_blend import StyleLayout, latent_blend
from .algebra import linear, packed
from .derived import derived, may_keep
from .equalized import SLOPE, EqualizedLinear

# Rows (samples x layers) up to which a GPU's products are bound by reading weights and by the number of launches: all nodes
# of a level then go through batched products without folding. Above, one folded chain per node does less arithmetic.
_FEW_ROWS = 1024


Codes = tuple[Tensor, Tensor, Tensor | None]  # a, b and, for some networks, a third input


def _each(make: Callable[[Tensor], Tensor], codes: Codes) -> Codes:
    a, b, extra = codes
    return make(a), make(b), None if extra is None else make(extra)


# --- layers of equal width ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Layers of one width that lie side by side in the code, all with or all without the extra input."""

    start: int  # first channel
    count: int  # layers
    extra: bool


@dataclass(frozen=True)
class _Group:
    """All layers of one width: their rows share one folded first weight."""

    width: int
    layers: tuple[int, ...]
    runs: tuple[_Run, ...]

    @property
    def extra(self) -> bool:
        return any(run.extra for run in self.runs)

    def rows(self, code: Tensor, extra: bool = False) -> Tensor:
        """(B, S) -> (B, layers, width); with ``extra`` zeros for the layers without the extra input."""
        parts = [
            code[:, run.start : run.start + run.count * self.width].unflatten(1, (run.count, self.width))
            if run.extra or not extra
            else code.new_zeros((code.shape[0], run.count, self.width))
            for run in self.runs
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _groups(layout: StyleLayout, extra_layers: tuple[int, ...]) -> tuple[_Group, ...]:
    groups = []
    for width in dict.fromkeys(layout.channels):
        layers = tuple(i for i, c in enumerate(layout.channels) if c == width)
        runs: list[_Run] = []
        for before, layer in zip((None, *layers), layers, strict=False):
            extra = layer in extra_layers
            if before == layer - 1 and runs[-1].extra == extra:
                runs[-1] = _Run(runs[-1].start, runs[-1].count + 1, extra)
            else:
                runs.append(_Run(layout.offsets[layer], 1, extra))
        groups.append(_Group(width, layers, tuple(runs)))
    return tuple(groups)


@dataclass(frozen=True)
class _Chain:
    """The folded network of a blender."""

    first: list[Tensor]  # per group (H, 2c + layers) or, with extra, (H, 3c + layers): the last columns are biases per layer
    later: list[tuple[Tensor, Tensor]]


def _activated(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear layer and leaky ReLU; one pass where the weight is packed and no gradient is wanted."""
    if weight.is_mkldnn and x.numel() > 0 and not (torch.is_grad_enabled() and x.requires_grad):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "leaky_relu", [SLOPE], "")
        return y
    return F.leaky_relu_(linear(x, weight, bias), SLOPE)


# --- one blender ------------------------------------------------------------------------------------------------------


class LatentBlender(nn.Module):
    """Latent Blender (Sec. 4.3, Appendix A.3): predicts q per channel from two codes and interpolates between them.

    The network sees, per layer of the layout and in this order, both vectors nearest-upsampled to ``depth``, with
    ``extra_layers`` a third one, and the indicator of the layer ((one-hot of ``num_layers``, RGB bit), ``repeats`` times as
    a whole; layers are counted within their own list, conv or RGB). Names and columns are those of the published weights:
    ``disentangle_net.{0..4}.{weight,bias}``.

    Args:
        layout: the layers that are blended.
        hidden: width of the three hidden layers: 2560 in the published weights, 1536 in the paper.
        depth: common length of the vectors; a multiple of every width.
        extra_layers: None for a network without the third input; else the positions of the layers that get one (the others
            get zeros).
        num_layers: length of the one-hot.
        repeats: of the indicator.
        lr_mul: of the linear layers.
        q_on: ``"b"`` (published weights) or ``"a"`` (the paper's Eq. 2): the code that q multiplies.

    Raises:
        ValueError: a width that does not divide ``depth``, more layers of a kind than ``num_layers``, an unknown ``q_on``.
    """

    indicator: Tensor
    order: Tensor

    def __init__(
        self,
        layout: StyleLayout,
        *,
        hidden: int = 2560,
        depth: int = 512,
        extra_layers: Sequence[int] | None = None,
        num_layers: int = 18,
        repeats: int = 10,
        lr_mul: float = 0.01,
        q_on: str = "b",
    ) -> None:
        super().__init__()
        own = "LatentBlender"
        if not isinstance(layout, StyleLayout):
            fail(own, "layout", "a StyleLayout", described(layout), TypeError)
        hidden = check_integer(own, "hidden", hidden, 1, None)
        depth = check_integer(own, "depth", depth, 1, None)
        num_layers = check_integer(own, "num_layers", num_layers, 1, None)
        repeats = check_integer(own, "repeats", repeats, 0, None)
        if not layout.layers:
            raise ValueError("LatentBlender: layout: expected at least one layer, got none")
        for layer, width in enumerate(layout.channels):
            if depth % width != 0:
                raise ValueError(f"LatentBlender: layout: expected widths that divide {depth}, got {width} at layer {layer}")
        for kind, layers in (("conv", layout.conv_layers), ("rgb", layout.rgb_layers)):
            if len(layers) > num_layers:
                raise ValueError(f"LatentBlender: layout: expected at most {num_layers} {kind} layers, got {len(layers)}")
        if extra_layers is not None:
            expected = f"positions in [0, {len(layout.layers)})"
            extra_layers = tuple(
                check_integer(own, "extra_layers", layer, 0, len(layout.layers) - 1, expected) for layer in extra_layers
            )
        if q_on not in ("a", "b"):
            raise ValueError(f"LatentBlender: q_on: expected 'a' or 'b', got {q_on!r}")
        self.layout, self.hidden, self.depth, self.q_on = layout, hidden, depth, q_on
        self.extra_layers = extra_layers
        self.num_layers, self.repeats = num_layers, repeats
        inputs = 2 * depth + (num_layers + 1) * repeats + (0 if extra_layers is None else depth)
        sizes = (inputs, hidden, hidden, hidden, depth, depth)
        self.disentangle_net = nn.Sequential(
            *(EqualizedLinear(i, o, lr_mul) for i, o in zip(sizes, sizes[1:], strict=False))
        )
        self.groups = _groups(layout, self.extra_layers or ())
        grouped = [layer for group in self.groups for layer in group.layers]
        self.in_order = grouped == sorted(grouped)
        self.register_buffer("order", torch.tensor(grouped, dtype=torch.int64).argsort(), persistent=False)
        # (2, L, I): without and with the RGB bit
        hot = torch.zeros(2, len(layout.layers), num_layers + 1)
        for layers in (layout.conv_layers, layout.rgb_layers):
            for number, layer in enumerate(layers):
                hot[:, layer, number] = 1
        hot[1, list(layout.rgb_layers), num_layers] = 1
        self.register_buffer("indicator", hot.repeat(1, 1, repeats), persistent=False)

    def extra_repr(self) -> str:
        """Say the sizes."""
        return f"S={self.layout.size}, layers={len(self.layout.layers)}, hidden={self.hidden}, q_on={self.q_on!r}"

    @property
    def linears(self) -> list[EqualizedLinear]:
        """The five linear layers."""
        return [layer for layer in self.disentangle_net if isinstance(layer, EqualizedLinear)]

    def columns(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split a first weight (H, inputs) into its parts for a, b, the extra input (possibly empty) and the indicator."""
        indicator = self.indicator.shape[2]
        rest = weight.shape[1] - 2 * self.depth - indicator
        a, b, extra, bits = weight.split([self.depth, self.depth, rest, indicator], 1)
        return a, b, extra, bits

    def fold(self, rgb_bit: bool, finish: Callable[[Tensor], Tensor]) -> _Chain:
        """Fold upsampling, indicator and all factors into the weights, differentiable; ``finish`` packs a matrix."""
        weights = [layer.folded() for layer in self.linears]
        weight, bias = weights[0]
        for_a, for_b, for_extra, for_indicator = self.columns(weight)

        def summed(part: Tensor, width: int) -> Tensor:
            return part if width == self.depth else part.unflatten(1, (width, self.depth // width)).sum(2)

        per_layer = bias + F.linear(self.indicator[int(rgb_bit)].to(weight.dtype), for_indicator)  # (L, H)
        first = []
        for group in self.groups:
            parts = [for_a, for_b, for_extra] if group.extra else [for_a, for_b]
            biases = torch.stack([per_layer[layer] for layer in group.layers], 1)
            first.append(finish(torch.cat([*(summed(part, group.width) for part in parts), biases], 1)))
        return _Chain(first, [(finish(w), b) for w, b in weights[1:]])

    def chain(self, rgb_bit: bool) -> _Chain:
        """Return the folded network, kept while the weights stay as they are."""
        parameters = tuple(self.parameters())
        if not may_keep(self, *parameters):
            return self.fold(rgb_bit, lambda matrix: matrix)
        return derived(self, ("chain", rgb_bit), parameters, lambda: self.fold(rgb_bit, packed))

    def folded_logits(self, codes: Codes, rgb_bit: bool) -> Tensor:
        """(B, S) each -> (B, L, depth): one chain of products for the rows of all layers and samples."""
        a, b, extra = codes
        chain = self.chain(rgb_bit)
        batch, depth = a.shape[0], self.depth
        hidden = []
        for group, weight in zip(self.groups, chain.first, strict=True):
            count = len(group.layers)
            parts = [group.rows(a), group.rows(b)]
            if group.extra:
                parts.append(torch.zeros_like(parts[0]) if extra is None else group.rows(extra, extra=True))
            parts.append(torch.eye(count, dtype=a.dtype, device=a.device).expand(batch, -1, -1))  # picks the layer's bias
            rows = _activated(torch.cat(parts, 2).flatten(0, 1), weight)
            hidden.append(rows.unflatten(0, (batch, count)))
        x = (hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)).flatten(0, 1)
        for weight, bias in chain.later:
            x = _activated(x, weight, bias)
        x = x.view(batch, len(self.layout.layers), depth)
        return x if self.in_order else x.index_select(1, self.order)

    def upsampled(self, codes: Codes, rgb_bit: bool) -> Iterator[list[Tensor]]:
        """Per layer the inputs of the network as published: a, b, extra and indicator, each (B, length)."""
        a, b, extra = codes
        for layer, (start, width) in enumerate(zip(self.layout.offsets, self.layout.channels, strict=True)):
            vectors = [a, b]
            if self.extra_layers is not None:
                vectors.append(extra if extra is not None and layer in self.extra_layers else torch.zeros_like(a))
            parts = [
                F.interpolate(v[:, None, start : start + width], size=self.depth, mode="nearest")[:, 0] for v in vectors
            ]
            hot = self.indicator[int(rgb_bit), layer].to(a.dtype).expand(a.shape[0], -1)
            yield [*parts, hot]

    def plain_blend(self, codes: Codes, rgb_bit: bool) -> tuple[Tensor, Tensor]:
        """As published: every layer of every sample through the network on its own, blended at ``depth``, max-pooled."""
        samples, samples_q = [codes[0][:0]], [codes[0][:0]]
        for i in range(codes[0].shape[0]):
            blended, qs = [], []
            inputs = self.upsampled(_each(itemgetter(slice(i, i + 1)), codes), rgb_bit)
            for width, parts in zip(self.layout.channels, inputs, strict=True):
                rows = torch.cat(parts, 1).to(self.linears[0].weight.dtype)
                q = torch.sigmoid(self.disentangle_net(rows)).to(parts[0].dtype)
                first, second = parts[:2] if self.q_on == "b" else (parts[1], parts[0])
                value, index = F.max_pool1d(first + q * (second - first), self.depth // width, return_indices=True)
                blended.append(value)
                qs.append(q.gather(1, index))
            samples.append(torch.cat(blended, 1))
            samples_q.append(torch.cat(qs, 1))
        return torch.cat(samples), torch.cat(samples_q)

    def forward(self, a: Tensor, b: Tensor, extra: Tensor | None = None, *, rgb_bit: bool = False) -> tuple[Tensor, Tensor]:
        """Blend two codes.

        Args:
            a: (B, S), S the size of the layout.
            b: as ``a``.
            extra: (B, S), read on ``extra_layers`` only; None for zeros.
            rgb_bit: set the RGB bit of the indicator for RGB layers (the first stage of training does, the published
                networks after it do not).

        Returns:
            the blended code and q, each (B, S), dtype of ``a``.

        Raises:
            ValueError: a shape does not fit, or an extra code is given to a network without that input.
        """
        codes = [("a", a), ("b", b), *([] if extra is None else [("extra", extra)])]
        _check_codes("LatentBlender", codes, self.layout)
        if extra is not None and self.extra_layers is None:
            raise ValueError("LatentBlender: extra: expected None (the network has no such input), got a tensor")
        blended, q = _blend((self,), _each(lambda code: code[None], (a, b, extra)), rgb_bit)
        return blended[0], q[0]


def _check_codes(where: str, codes: Sequence[tuple[str, Tensor]], layout: StyleLayout) -> None:
    for name, code in codes:
        check_tensor(where, name, code)
    name, like = codes[0]
    if like.dim() != 2 or like.shape[1] != layout.size:
        raise ValueError(f"{where}: {name}: expected shape (B, {layout.size}), got {tuple(like.shape)}")
    for name, code in codes[1:]:
        if code.shape != like.shape:
            raise ValueError(f"{where}: {name}: expected shape {tuple(like.shape)}, got {tuple(code.shape)}")
        if code.dtype != like.dtype:
            raise TypeError(f"{where}: {name}: expected {like.dtype} as {codes[0][0]}, got {code.dtype}")
        if code.device != like.device:
            raise ValueError(f"{where}: {name}: expected device {like.device} as {codes[0][0]}, got {code.device}")


# --- several blenders at once -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """The networks of several blenders without biases, for batched products: see :func:`_stack`."""

    index: Tensor  # (L * K): input of the first layer as positions in (a, b, extra, 0, 1)
    constant: Tensor  # (1, 1, 2): 0 and 1
    matrices: list[Tensor]  # (N, K, H), (N, H, H), ...


def _eights(n: int) -> int:
    return (n + 7) // 8 * 8  # matrix units want multiples of 8


def _stack(blenders: Sequence[LatentBlender], rgb_bit: bool, has_extra: bool) -> _Stack:
    """Write N networks as five batched matrices.

    Homogeneous coordinates: activations carry a constant 1 (leaky ReLU keeps it), so a bias is one more row of the matrix,
    and the bias per layer is a one-hot input. A chain is then five products and five activations, nothing else.
    """
    one = blenders[0]
    layout, depth, size = one.layout, one.depth, one.layout.size
    count = len(layout.layers)
    sources = 3 if has_extra else 2
    zero, unit = sources * size, sources * size + 1
    inputs = _eights(sources * depth + count)
    index = torch.full((count, inputs), zero)
    for layer, (start, width) in enumerate(zip(layout.offsets, layout.channels, strict=True)):
        channel = start + torch.arange(depth) // (depth // width)
        for source in range(sources):
            if source < 2 or layer in (one.extra_layers or ()):
                index[layer, source * depth : (source + 1) * depth] = channel + source * size
        index[layer, sources * depth + layer] = unit
    stacks: list[list[Tensor]] = [[] for _ in one.linears]
    for blender in blenders:
        weights = [layer.folded() for layer in blender.linears]
        weight, bias = weights[0]
        for_a, for_b, for_extra, for_indicator = blender.columns(weight)
        per_layer = bias + F.linear(blender.indicator[int(rgb_bit)].to(weight.dtype), for_indicator)  # (L, H)
        parts = [for_a, for_b, for_extra] if has_extra else [for_a, for_b]
        rows = torch.cat([*(part.t() for part in parts), per_layer])
        matrix = weight.new_zeros((inputs, _eights(weight.shape[0] + 1)))
        matrix[: rows.shape[0], : rows.shape[1]] = rows
        matrix[sources * depth : sources * depth + count, rows.shape[1]] = 1
        stacks[0].append(matrix)
        for number, (weight, bias) in enumerate(weights[1:], start=1):
            out, inner = weight.shape
            last = number == len(weights) - 1
            matrix = weight.new_zeros((_eights(inner + 1), out if last else _eights(out + 1)))
            matrix[:inner, :out] = weight.t()
            matrix[inner, :out] = bias
            if not last:
                matrix[inner, out] = 1
            stacks[number].append(matrix)
    constant = torch.tensor([[[0, 1]]], dtype=weight.dtype)
    return _Stack(index.flatten().to(weight.device), constant.to(weight.device), [torch.stack(m) for m in stacks])


def _stacked_logits(blenders: Sequence[LatentBlender], codes: Codes, rgb_bit: bool) -> Tensor:
    """(N, B, S) each -> (N, B, L, depth), all networks in the same batched products."""
    parameters = tuple(p for blender in blenders for p in blender.parameters())
    present = [code for code in codes if code is not None]
    name = ("stack", rgb_bit, len(present), tuple(id(blender) for blender in blenders))
    stack = derived(blenders[0], name, parameters, lambda: _stack(blenders, rgb_bit, len(present) == 3))
    nodes, batch, _ = present[0].shape
    layers, depth = len(blenders[0].layout.layers), blenders[0].depth
    x = torch.cat([*present, stack.constant.expand(nodes, batch, 2)], 2).index_select(2, stack.index)
    x = x.view(nodes, batch * layers, stack.index.numel() // layers)
    for matrix in stack.matrices:
        x = F.leaky_relu_(torch.bmm(x, matrix), SLOPE)
    return x.view(nodes, batch, layers, depth)


def _alike(blenders: Sequence[LatentBlender]) -> bool:
    one = blenders[0]
    return all(
        (b.layout, b.depth, b.hidden, b.extra_layers, b.num_layers, b.repeats)
        == (one.layout, one.depth, one.hidden, one.extra_layers, one.num_layers, one.repeats)
        and b.linears[0].weight.dtype == one.linears[0].weight.dtype
        for b in blenders
    )


def _takes_stack(blenders: Sequence[LatentBlender], codes: Codes) -> bool:
    """On a GPU, for few rows, without gradient: see :data:`_FEW_ROWS`."""
    rows = codes[0].shape[1] * len(blenders[0].layout.layers)
    if not codes[0].is_cuda or rows > _FEW_ROWS or not _alike(blenders):
        return False
    if torch.is_grad_enabled() and any(code is not None and code.requires_grad for code in codes):
        return False  # gathering inputs has a gradient by atomic additions
    return all(may_keep(blender, *blender.parameters()) for blender in blenders)


def _logits(blenders: Sequence[LatentBlender], codes: Codes, rgb_bit: bool) -> Tensor:
    """(N, B, S) each -> (N, B, L, depth) in the codes' dtype; blender n serves slice n."""
    dtype = codes[0].dtype
    if current_plan() != "dense" and _takes_stack(blenders, codes):
        weight = blenders[0].linears[0].weight
        return _stacked_logits(blenders, _each(lambda code: code.to(weight.dtype), codes), rgb_bit).to(dtype)
    # A loop costs nothing here: the weights of the nodes differ, so no product could serve two of them.
    results = []
    for n, blender in enumerate(blenders):
        own = _each(methodcaller("to", blender.linears[0].weight.dtype), _each(itemgetter(n), codes))
        if current_plan() == "dense":
            rows = [torch.cat(parts, 1) for parts in blender.upsampled(own, rgb_bit)]
            results.append(blender.disentangle_net(torch.stack(rows, 1)).to(dtype))
        else:
            results.append(blender.folded_logits(own, rgb_bit).to(dtype))
    return results[0][None] if len(results) == 1 else torch.stack(results)


def _blend(blenders: Sequence[LatentBlender], codes: Codes, rgb_bit: bool = False) -> tuple[Tensor, Tensor]:
    """(N, B, S) each -> blended codes and q, (N, B, S); one call of the op for all."""
    one = blenders[0]
    if current_plan() == "dense" and current_backend() == "reference":
        pairs = [blender.plain_blend(_each(itemgetter(n), codes), rgb_bit) for n, blender in enumerate(blenders)]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
    a, b, _ = codes
    logits = _logits(blenders, codes, rgb_bit)
    blended, q = latent_blend(
        a.flatten(0, 1), b.flatten(0, 1), logits.flatten(0, 1), one.layout, q_on=one.q_on, return_q=True
    )
    return blended.view(a.shape), q.view(a.shape)


# --- FusionNet --------------------------------------------------------------------------------------------------------


def _weight_of_second(q: Tensor, q_on: str) -> Tensor:
    """Eq. 6 keeps the weight of s_align small, which is the second code of an alignment, whatever q multiplies."""
    return q if q_on == "b" else 1 - q


class Fusion(NamedTuple):
    """What a FusionNet makes of two codes.

    Attributes:
        code: (B, S), the fused code.
        aligned: both codes aligned to s_align, each (B, S).
        q_align: weights of s_align in the two alignments, each (B, S_coarse), whatever ``q_on``: the regulariser's (Eq. 6);
            (B, 0) without a global code.
        q_fuse: (B, S).
    """

    code: Tensor
    aligned: tuple[Tensor, Tensor]
    q_align: tuple[Tensor, Tensor]
    q_fuse: Tensor


class FusionNet(nn.Module):
    """FusionNet (Fig. 5): align two codes to a third on the coarse layers, then fuse them.

    state_dict names are those of the published weights: ``blender_common`` aligns, ``blender_segments`` fuses.

    Args:
        layout: the S space; StyleGAN2 at 1024 by default.
        hidden: width of the hidden layers: 2560 in the published weights, 1536 in the paper.
        coarse: how many layers of the conv list and of the RGB list are aligned (5).
        depth: common length of the vectors.
        num_layers: length of the one-hot layer indicator.
        q_on: see :class:`LatentBlender`.
        global_code: False for the ablation "No Global" (Sec. 7): ``blender_segments`` alone, on codes that nothing aligned;
            ``s_align`` is then checked and not read.
    """

    def __init__(
        self,
        layout: StyleLayout | None = None,
        *,
        hidden: int = 2560,
        coarse: int = 5,
        depth: int = 512,
        num_layers: int = 18,
        q_on: str = "b",
        global_code: bool = True,
    ) -> None:
        super().__init__()
        self.layout = StyleLayout.stylegan2() if layout is None else layout
        self.q_on, self.global_code = q_on, check_flag("FusionNet", "global_code", global_code)
        if not isinstance(self.layout, StyleLayout):
            fail("FusionNet", "layout", "None or a StyleLayout", described(layout), TypeError)
        coarse = check_integer("FusionNet", "coarse", coarse, 1, None)
        self.coarse_layers = tuple(sorted(self.layout.conv_layers[:coarse] + self.layout.rgb_layers[:coarse]))
        common: dict[str, Any] = {"hidden": hidden, "depth": depth, "num_layers": num_layers, "q_on": q_on}
        if self.global_code:
            self.blender_common = LatentBlender(self.layout.select(self.coarse_layers), **common)
        extra_layers = self.coarse_layers if self.global_code else None
        self.blender_segments = LatentBlender(self.layout, extra_layers=extra_layers, **common)
        # channels of the code as runs of (coarse?, length)
        runs: list[tuple[bool, int]] = []
        for layer, width in enumerate(self.layout.channels):
            is_coarse = layer in self.coarse_layers
            if runs and runs[-1][0] == is_coarse:
                runs[-1] = (is_coarse, runs[-1][1] + width)
            else:
                runs.append((is_coarse, width))
        self.runs = tuple(runs)

    def coarse_part(self, code: Tensor) -> Tensor:
        """(..., S) -> (..., S_coarse): the channels of the coarse layers."""
        parts = code.split([length for _, length in self.runs], -1)
        return torch.cat([part for part, (is_coarse, _) in zip(parts, self.runs, strict=True) if is_coarse], -1)

    def with_coarse_part(self, code: Tensor, coarse: Tensor) -> Tensor:
        """Return a code (..., S) whose coarse layers are replaced."""
        new = iter(coarse.split([length for is_coarse, length in self.runs if is_coarse], -1))
        old = code.split([length for _, length in self.runs], -1)
        parts = [next(new) if is_coarse else part for part, (is_coarse, _) in zip(old, self.runs, strict=True)]
        return torch.cat(parts, -1)

    def align(self, code: Tensor, s_align: Tensor, *, rgb_bit: bool = False) -> tuple[Tensor, Tensor]:
        """Align a code to another one on the coarse layers; the others are copied (Appendix A.4).

        Args:
            code: (B, S).
            s_align: (B, S).
            rgb_bit: True in the first stage of training, which trains the alignment alone.

        Returns:
            the aligned code (B, S) and the weight of ``s_align`` in it (B, S_coarse), the regulariser's (Eq. 6).

        Raises:
            ValueError: a shape does not fit, or the network has no global code.
        """
        if not self.global_code:
            raise ValueError("FusionNet.align: expected a network with a global code, got one without")
        _check_codes("FusionNet.align", [("code", code), ("s_align", s_align)], self.layout)
        blended, q = self.blender_common(self.coarse_part(code), self.coarse_part(s_align), rgb_bit=rgb_bit)
        return self.with_coarse_part(code, blended), _weight_of_second(q, self.q_on)

    def fuse(self, s0: Tensor, s1: Tensor, s_align: Tensor) -> Fusion:
        """As :meth:`forward`, with the intermediate results that training needs."""
        _check_codes("FusionNet", [("s0", s0), ("s1", s1), ("s_align", s_align)], self.layout)
        code, aligned, q_align, q_fuse = fuse_level([self], torch.stack((s0, s1))[:, None], s_align[None])
        return Fusion(code[0], (aligned[0, 0], aligned[1, 0]), (q_align[0, 0], q_align[1, 0]), q_fuse[0])

    def forward(self, s0: Tensor, s1: Tensor, s_align: Tensor) -> Tensor:
        """Fuse two codes.

        Args:
            s0: (B, S), floating; code of the first region. B may be 0.
            s1: (B, S), code of the second region.
            s_align: (B, S), code that decides the layout of the image.

        Returns:
            (B, S), dtype of ``s0``.

        Raises:
            ValueError: a shape or device does not fit.
            TypeError: dtypes differ.
        """
        return self.fuse(s0, s1, s_align).code


def fuse_level(nets: Sequence[FusionNet], codes: Tensor, s_align: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Several FusionNets of one layout at once: two chains of products and two blends for all of them.

    Args:
        nets: N networks.
        codes: (2, N, B, S), the codes of the first and of the second regions.
        s_align: (N, B, S).

    Returns:
        code (N, B, S), aligned codes (2, N, B, S), weights of ``s_align`` in them (2, N, B, S_coarse), q of the fusion
        (N, B, S).
    """
    net, batch = nets[0], codes.shape[2]
    if not net.global_code:
        code, q_fuse = _blend([n.blender_segments for n in nets], (codes[0], codes[1], None))
        return code, codes, codes[..., :0], q_fuse
    # both codes of a node are rows of one product: (N, 2 B, S_coarse)
    first = net.coarse_part(codes.transpose(0, 1)).flatten(1, 2)
    second = net.coarse_part(s_align)[:, None].expand(-1, 2, -1, -1).flatten(1, 2)
    pair = [
        t.unflatten(1, (2, batch)).transpose(0, 1) for t in _blend([n.blender_common for n in nets], (first, second, None))
    ]
    aligned = net.with_coarse_part(codes, pair[0])
    code, q_fuse = _blend([n.blender_segments for n in nets], (aligned[0], aligned[1], s_align))
    return code, aligned, _weight_of_second(pair[1], net.q_on), q_fuse
