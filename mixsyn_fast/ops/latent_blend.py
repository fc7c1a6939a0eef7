r"""Blending of two style codes with one coefficient per channel, for every layer of the S space at once.

.. math::

    s'_j = a_j + q_j\,(b_j - a_j), \qquad q_j = \sigma(\ell_{i(j)}), \qquad
    i(j) = \begin{cases} \arg\max_{i \in G(j)} \ell_i & b_j > a_j \\ \arg\min_{i \in G(j)} \ell_i & \text{else}\end{cases}

StyleFusion's Latent Blender (Eq. 2, Sec. 4.3, Appendix A.3; "StyleFusion: A Generative Model for Disentangling Spatial
Segments") blends the codes of every layer of the generator after nearest upsampling to D = 512 values, and max-pools the
result back to the layer's width c. Channel j of a layer owns the group :math:`G(j)` of g = D / c consecutive logits; a and b
are constant over it, so the maximum over the group of ``a + q (b - a)`` is reached at the largest q where ``b > a`` and at
the smallest where not, and the sigmoid is monotonic: one logit per channel decides, exactly.

``q_on="b"`` is the direction of the published weights (above). The paper's Eq. 2 writes the coefficient on the first input,
:math:`s' = b + q (a - b)` (``q_on="a"``); there the rule swaps: the smallest logit where ``b > a``, else the largest.

Gradient, with g and g_q those of s' and q: :math:`\partial a = g (1 - q)`, :math:`\partial b = g q` (exchanged for
``q_on="a"``), and :math:`\partial \ell_{i(j)} = q_j (1 - q_j) (g_j (b_j - a_j) + g_{q,j})`, zero at all other logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ._common import (
    Kernels,
    Op,
    acc_dtype,
    check_device,
    check_flag,
    check_integer,
    check_kernel_dtype,
    check_tensor,
    described,
    fail,
)

__all__ = ["StyleLayout", "latent_blend"]

KINDS = ("conv", "rgb")


# --- layout of a style code ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StyleLayer:
    """One layer of the S space.

    Attributes:
        channels: length of the layer's style vector, at least 1.
        kind: ``"conv"`` (a modulated convolution) or ``"rgb"`` (a conversion to RGB).
    """

    channels: int
    kind: str = "conv"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_integer("StyleLayer", "channels", self.channels, 1, None))
        if self.kind not in KINDS:
            fail("StyleLayer", "kind", "'conv' or 'rgb'", described(self.kind))


@dataclass(frozen=True)
class StyleLayout:
    """Order, widths and kinds of the layers whose vectors, side by side, make a style code (B, S).

    Attributes:
        layers: the layers in the order of the code.
    """

    layers: tuple[StyleLayer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not isinstance(layer, StyleLayer):
                raise TypeError(f"StyleLayout: layers: expected StyleLayer objects, got {type(layer).__name__}")

    @classmethod
    def of(cls, conv: Iterable[int], rgb: Iterable[int] = ()) -> StyleLayout:
        """Return the layout of conv layers of the given widths, then RGB layers."""
        return cls((*(StyleLayer(c, "conv") for c in conv), *(StyleLayer(c, "rgb") for c in rgb)))

    @classmethod
    def stylegan2(cls, size: int = 1024, channel_multiplier: int = 2) -> StyleLayout:
        """Layout of StyleGAN2: the input widths of its modulated convolutions, then of its RGB layers.

        At 1024 with multiplier 2: 17 conv layers (6,048 channels) and 9 RGB layers (3,040), S = 9,088.

        Args:
            size: side of the image, a power of two from 4 to 1024.
            channel_multiplier: 2 for the published models, 1 for the small ones.

        Raises:
            ValueError: another size or a multiplier below 1.
        """
        where, expected = "StyleLayout.stylegan2", "a power of two from 4 to 1024"
        size = check_integer(where, "size", size, 4, 1024, expected)
        if size.bit_count() != 1:
            fail(where, "size", expected, size)
        channel_multiplier = check_integer(where, "channel_multiplier", channel_multiplier, 1, None)
        sides = [4 * 2**i for i in range((size // 4).bit_length())]
        widths = {side: 512 if side <= 32 else 16384 // side * channel_multiplier for side in sides}
        conv = [widths[4]]
        for before, side in zip(sides, sides[1:], strict=False):
            conv += [widths[before], widths[side]]  # a convolution is modulated on its input channels
        return cls.of(conv, (widths[side] for side in sides))

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Width of every layer."""
        return tuple(layer.channels for layer in self.layers)

    @cached_property
    def size(self) -> int:
        """S, the length of a code."""
        return sum(self.channels)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First channel of every layer in the code."""
        return (0, *accumulate(self.channels))[: len(self.layers)]

    @cached_property
    def conv_layers(self) -> tuple[int, ...]:
        """Positions of the conv layers in ``layers``."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.kind == "conv")

    @cached_property
    def rgb_layers(self) -> tuple[int, ...]:
        """Positions of the RGB layers in ``layers``."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.kind == "rgb")

    def pack(self, conv: Sequence[Tensor], rgb: Sequence[Tensor] = ()) -> Tensor:
        """Lay the vectors of all layers side by side.

        Args:
            conv: one tensor (B, C) or (B, 1, C, 1, 1) per conv layer.
            rgb: likewise for the RGB layers.

        Returns:
            (B, S).

        Raises:
            ValueError: a wrong number of vectors, or a vector of another width.
        """
        for name, vectors, layers in (("conv", conv, self.conv_layers), ("rgb", rgb, self.rgb_layers)):
            if len(vectors) != len(layers):
                raise ValueError(f"StyleLayout.pack: {name}: expected {len(layers)} vectors, got {len(vectors)}")
        if not self.layers:
            raise ValueError("StyleLayout.pack: layers: expected at least one, got none")
        parts: list[Tensor | None] = [None] * len(self.layers)
        for vectors, layers in ((conv, self.conv_layers), (rgb, self.rgb_layers)):
            for vector, i in zip(vectors, layers, strict=True):
                if vector.dim() < 1 or vector.numel() != vector.shape[0] * self.channels[i]:
                    raise ValueError(
                        f"StyleLayout.pack: layer {i} ({self.layers[i].kind}): expected shape (B, {self.channels[i]}), "
                        f"got {tuple(vector.shape)}"
                    )
                parts[i] = vector.reshape(vector.shape[0], self.channels[i])
        return torch.cat([part for part in parts if part is not None], 1)

    def split(self, code: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the vectors (B, C) of the conv layers and those of the RGB layers, views of the code (B, S).

        Raises:
            ValueError: the code has another shape.
        """
        if code.dim() != 2 or code.shape[1] != self.size:
            raise ValueError(f"StyleLayout.split: code: expected shape (B, {self.size}), got {tuple(code.shape)}")
        parts = code.split(self.channels, 1) if self.layers else ()
        return [parts[i] for i in self.conv_layers], [parts[i] for i in self.rgb_layers]

    def select(self, layers: Sequence[int]) -> StyleLayout:
        """Return the layout of some of the layers, in the order given."""
        return StyleLayout(tuple(self.layers[i] for i in layers))


# --- reference -------------------------------------------------------------------------------------------------------


def _decisive(a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool) -> Tensor:
    """Index (B, S) of the logit of its layer, in [0, D), that decides each channel: the first of equals."""
    parts = []
    offset = 0
    for layer, width in enumerate(channels):
        group = logits.shape[2] // width
        groups = logits[:, layer].unflatten(1, (width, group))
        channel = slice(offset, offset + width)
        # max and min return a NaN of the group, if it has one
        largest, smallest = groups.max(2).indices, groups.min(2).indices
        above = b[:, channel] > a[:, channel]
        within = torch.where(above, largest, smallest) if q_on_b else torch.where(above, smallest, largest)
        parts.append(within + torch.arange(width, device=a.device) * group)
        offset += width
    return torch.cat(parts, 1) if parts else a.new_empty(a.shape, dtype=torch.int64)


def _layer_of_channel(channels: Sequence[int], device: torch.device) -> Tensor:
    """The layer (S,) to which each channel belongs."""
    layers = torch.arange(len(channels), device=device)
    counts = torch.tensor(list(channels), dtype=torch.int64, device=device)
    return layers.repeat_interleave(counts, output_size=sum(channels))


def _flat_decisive(a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool) -> Tensor:
    """As :func:`_decisive`, counted over (L * D)."""
    index = _decisive(a.detach(), b.detach(), logits.detach(), channels, q_on_b)
    return index + _layer_of_channel(channels, a.device) * logits.shape[2]


def latent_blend_reference(
    a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool
) -> tuple[Tensor, Tensor]:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::latent_blend``.

    Args:
        a: (B, S) floating, S = sum(channels).
        b: as ``a``.
        logits: (B, L, D), L = len(channels), D a multiple of every width.
        channels: the widths of the layers.
        q_on_b: True for ``a + q (b - a)``, False for ``b + q (a - b)``.

    Returns:
        the blended code and q, each (B, S) in a's dtype.
    """
    acc = acc_dtype(a.dtype)
    index = _flat_decisive(a, b, logits, channels, q_on_b)
    q = torch.sigmoid(logits.flatten(1).gather(1, index).to(acc))
    first, second = (a.to(acc), b.to(acc)) if q_on_b else (b.to(acc), a.to(acc))
    return (first + q * (second - first)).to(a.dtype), q.to(a.dtype)


# --- the ops: Python bodies run where no kernel of the device is loaded ----------------------------------------------


_FORWARD = "(Tensor a, Tensor b, Tensor logits, int[] channels, bool q_on_b) -> (Tensor, Tensor)"
_BACKWARD = (
    "(Tensor? grad, Tensor? grad_q, Tensor a, Tensor b, Tensor logits, int[] channels, bool q_on_b)"
    " -> (Tensor, Tensor, Tensor)"
)


_latent_blend_op = torch.library.custom_op(
    "mixsyn_fast::latent_blend", latent_blend_reference, mutates_args=(), schema=_FORWARD
)


def _latent_blend_fake(a: Tensor, b: Tensor, logits: Tensor, channels: Sequence[int], q_on_b: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape)


def _backward_reference(
    grad: Tensor | None,
    grad_q: Tensor | None,
    a: Tensor,
    b: Tensor,
    logits: Tensor,
    channels: Sequence[int],
    q_on_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = acc_dtype(a.dtype)
    index = _flat_decisive(a, b, logits, channels, q_on_b)
    q = torch.sigmoid(logits.flatten(1).gather(1, index).to(acc))
    first, second = (a.to(acc), b.to(acc)) if q_on_b else (b.to(acc), a.to(acc))
    g = torch.zeros_like(q) if grad is None else grad.to(acc)
    grad_logit = g * (second - first)
    if grad_q is not None:
        grad_logit = grad_logit + grad_q.to(acc)
    grad_logit = q * (1 - q) * grad_logit
    grad_logits = torch.zeros(logits.shape, dtype=acc, device=a.device)
    # a logit belongs to one channel, so nothing is added twice
    grad_logits.view(logits.shape[0], logits.shape[1] * logits.shape[2]).scatter_(1, index, grad_logit)
    grad_first, grad_second = (g * (1 - q)).to(a.dtype), (g * q).to(a.dtype)
    grad_a, grad_b = (grad_first, grad_second) if q_on_b else (grad_second, grad_first)
    return grad_a, grad_b, grad_logits.to(logits.dtype)


_backward_op = torch.library.custom_op(
    "mixsyn_fast::latent_blend_backward", _backward_reference, mutates_args=(), schema=_BACKWARD
)


def _backward_fake(
    grad: Tensor | None,
    grad_q: Tensor | None,
    a: Tensor,
    b: Tensor,
    logits: Tensor,
    channels: Sequence[int],
    q_on_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape), logits.new_empty(logits.shape)


# --- gradient --------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, b, logits, channels, q_on_b = inputs
    ctx.save_for_backward(a, b, logits)
    ctx.settings = (list(channels), q_on_b)
    ctx.set_materialize_grads(False)  # without the regulariser nobody wants q: no zeros for its gradient


def _gradient(kernels: Kernels, ctx: Any, grad: Tensor | None, grad_q: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None and grad_q is None:
        return (None,) * 5
    dense = [None if g is None else g.contiguous() for g in (grad, grad_q)]
    grads = kernels.backward(*dense, *ctx.saved_tensors, *ctx.settings)
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)), None, None)


_OP = Op(
    "latent_blend",
    Kernels(_latent_blend_op, _backward_op),
    Kernels(_latent_blend_fake, _backward_fake),
    _gradient,
    _setup_context,
)


# --- public function -------------------------------------------------------------------------------------------------


def _check(a: Tensor, b: Tensor, logits: Tensor, layout: StyleLayout, q_on: str) -> None:
    op = "latent_blend"
    if not isinstance(layout, StyleLayout):
        fail(op, "layout", "a StyleLayout", described(layout), TypeError)
    if q_on not in ("a", "b"):
        fail(op, "q_on", "'a' or 'b'", described(q_on))
    for name, tensor in (("a", a), ("b", b), ("logits", logits)):
        check_tensor(op, name, tensor)
    if a.dim() != 2 or a.shape[1] != layout.size:
        fail(op, "a", f"shape (B, {layout.size})", f"shape {tuple(a.shape)}")
    check_kernel_dtype(op, "a", a)
    if b.shape != a.shape:
        fail(op, "b", f"shape {tuple(a.shape)}", f"shape {tuple(b.shape)}")
    count = len(layout.layers)
    if logits.dim() != 3 or logits.shape[0] != a.shape[0] or logits.shape[1] != count:
        fail(op, "logits", f"shape ({a.shape[0]}, {count}, D)", f"shape {tuple(logits.shape)}")
    depth = logits.shape[2]
    for layer, width in enumerate(layout.channels):
        if depth < width or depth % width != 0:
            fail(op, "logits", f"a last dimension that is a multiple of the {width} channels of layer {layer}", depth)
    for name, tensor in (("b", b), ("logits", logits)):
        if tensor.dtype != a.dtype:
            fail(op, name, f"{a.dtype} as a", tensor.dtype, TypeError)
        check_device(op, name, tensor, a.device)


def latent_blend(
    a: Tensor, b: Tensor, logits: Tensor, layout: StyleLayout, *, q_on: str = "b", return_q: bool = False
) -> Any:
    """Blend two style codes, ``a + q (b - a)``, with ``q = sigmoid(logit)`` of each channel's decisive logit.

    Equal, value for value, to upsampling both codes to D, blending there with ``sigmoid(logits)`` and max-pooling back to
    the width of every layer, in one kernel for all layers.

    Args:
        a: (B, S) float32, float64, float16 or bfloat16, any strides (other than dense ones are made dense first). B may be
            0. S is the size of the layout: 9,088 for StyleGAN2 at 1024.
        b: as ``a``.
        logits: (B, L, D), dtype of ``a``: one row per layer; D (512 in the published models) is a multiple of every width.
        layout: the layers of the code.
        q_on: which code the coefficient multiplies: ``"b"`` (the published weights) or ``"a"`` (the paper's Eq. 2).
        return_q: return q as well, for the regulariser of the alignment (the paper's Eq. 6).

    Returns:
        the blended code (B, S) in a's dtype, or with ``return_q`` the pair (code, q (B, S)).

    Raises:
        ValueError: a shape or a device does not fit, or ``q_on`` is unknown; the message names the argument.
        TypeError: a dtype does not fit, or ``layout`` is none.
        RuntimeError: a second backward is asked of the kernels.

    Gradients reach a, b and logits; among equal logits of a group the first takes the gradient. The backward of the
    kernels cannot be differentiated again (a clear error); the ``reference`` backend can. Arithmetic is float32 (float64
    for float64). A NaN among the logits of a group makes the channel NaN. Deterministic on every backend: nothing is summed.
    """
    _check(a, b, logits, layout, q_on)
    check_flag("latent_blend", "return_q", return_q)
    on_b = q_on == "b"
    kernels = _OP.kernels(a)
    if kernels is None:
        blended, q = latent_blend_reference(a, b, logits, layout.channels, on_b)
    else:
        blended, q = kernels.forward(a.contiguous(), b.contiguous(), logits.contiguous(), list(layout.channels), on_b)
    return (blended, q) if return_q else blended
