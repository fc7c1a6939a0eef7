r"""What follows a modulated convolution, in one pass: demodulation, noise, bias, leaky ReLU and gain.

.. math::

    u_{b,c,p} = x_{b,c,p}\, d_{b,c} + \sigma\, n_{b,p} + \beta_c, \qquad
    y = g \cdot \begin{cases} u & u \ge 0 \\ a\, u & \text{else} \end{cases}

with the scale d (the demodulation of the output channels), one noise value n per pixel with a learned strength sigma, the
bias beta, the slope a (0.2) and the gain g (square root of 2, which keeps the variance): StyleGAN2, Sec. 2.2 and Fig. 2d of
"Analyzing and Improving the Image Quality of StyleGAN" (Karras et al. 2020), where a factor of the output takes the
demodulation's place in the weights (Eq. 3).

Gradient, with :math:`h = g\, \partial L / \partial y` where y >= 0 and :math:`h = g a\, \partial L / \partial y` elsewhere:

.. math::

    \frac{\partial L}{\partial x} = h\, d, \quad
    \frac{\partial L}{\partial d_{b,c}} = \sum_p h\, x, \quad
    \frac{\partial L}{\partial \beta_c} = \sum_{b,p} h, \quad
    \frac{\partial L}{\partial n_{b,p}} = \sigma \sum_c h, \quad
    \frac{\partial L}{\partial \sigma} = \sum_{b,p} n \sum_c h

u is not needed, for y has its sign, and x only for the gradient of the scale. All of it is linear in the incoming gradient
and in x, d, n and sigma: a backward that has to be differentiated itself (R1 and path-length penalties) is this formula in
plain PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._common import (
    Kernels,
    Op,
    acc_dtype,
    check_device,
    check_floating,
    check_kernel_dtype,
    check_number,
    check_tensor,
    dense,
    fail,
)

__all__ = ["bias_act"]


# --- reference -------------------------------------------------------------------------------------------------------


def bias_act_reference(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    slope: float,
    gain: float,
) -> Tensor:
    """Plain differentiable PyTorch: the specification of the op ``mixsyn_fast::bias_act``.

    Args:
        x: (B, C, H, W) floating.
        bias: (C,) in the accumulation type, or None.
        scale: (B, C) likewise, or None.
        noise: (B or 1, 1, H, W) in x's dtype, or None.
        strength: (1,) in the accumulation type, with ``noise``.
        slope: of the leaky ReLU.
        gain: factor of the result.

    Returns:
        (B, C, H, W) in x's dtype.
    """
    u = x.to(acc_dtype(x.dtype))
    if scale is not None:
        u = u * scale[:, :, None, None]
    if noise is not None and strength is not None:
        u = u + noise.to(u.dtype) * strength
    if bias is not None:
        u = u + bias[:, None, None]
    return (torch.where(u >= 0, u, u * slope) * gain).to(x.dtype)


def _gradients(
    grad: Tensor,
    y: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    slope: float,
    gain: float,
    per_pixel: bool,
    with_bias: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, bias (``with_bias``) and scale (with ``x``), and (``per_pixel``) the sum of h over channels.

    Differentiable with respect to grad, x and scale: y gives its sign alone.
    """
    acc = acc_dtype(grad.dtype)
    high, low = (grad.new_full((), factor, dtype=acc) for factor in (gain, gain * slope))
    h = grad.to(acc) * torch.where(y >= 0, high, low)
    grad_x = h if scale is None else h * scale[:, :, None, None]
    return (
        grad_x.to(grad.dtype),
        h.sum((0, 2, 3)) if with_bias else None,
        None if x is None else (h * x.to(acc)).sum((2, 3)),
        h.sum(1, keepdim=True) if per_pixel else None,
    )


# --- the ops: Python bodies run where no kernel of the device is loaded ----------------------------------------------


_FORWARD = "(Tensor x, Tensor? bias, Tensor? scale, Tensor? noise, Tensor? strength, float slope, float gain) -> Tensor"
_BACKWARD = (
    "(Tensor grad, Tensor y, Tensor? x, Tensor? scale, float slope, float gain, bool per_pixel)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward_body(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x).copy_(bias_act_reference(x, *arguments))  # in x's layout


def _forward_fake(x: Tensor, *_arguments: Any) -> Tensor:
    return torch.empty_like(x)


def _backward_body(
    grad: Tensor, y: Tensor, x: Tensor | None, scale: Tensor | None, slope: float, gain: float, per_pixel: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, *sums = _gradients(grad, y, x, scale, slope, gain, per_pixel)
    grad_bias, grad_scale, per_pixel_sums = (y.new_empty(0, dtype=acc_dtype(y.dtype)) if t is None else t for t in sums)
    return torch.empty_like(y).copy_(grad_x), grad_bias, grad_scale, per_pixel_sums  # in y's layout


def _backward_fake(
    grad: Tensor, y: Tensor, x: Tensor | None, scale: Tensor | None, slope: float, gain: float, per_pixel: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = y.shape
    shapes = ((channels,), (0,) if x is None else (batch, channels), (batch, 1, height, width) if per_pixel else (0,))
    grad_bias, grad_scale, sums = (y.new_empty(shape, dtype=acc_dtype(y.dtype)) for shape in shapes)
    return torch.empty_like(y), grad_bias, grad_scale, sums


# --- gradient --------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, scale, noise, strength, slope, gain = inputs
    _, _, needs_scale, needs_noise, needs_strength, *_ = ctx.needs_input_grad
    # what no gradient needs is not kept: x is as large as y
    kept = (x if needs_scale else None, scale, noise if needs_strength else None, strength if needs_noise else None)
    ctx.save_for_backward(output, *kept)
    ctx.settings, ctx.noise_batch = (slope, gain), 0 if noise is None else noise.shape[0]


def _gradient(kernels: Kernels, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, x, scale, noise, strength = ctx.saved_tensors
    needs_x, needs_bias, needs_scale, needs_noise, needs_strength, *_ = ctx.needs_input_grad
    per_pixel, (slope, gain) = needs_noise or needs_strength, ctx.settings
    if torch.is_grad_enabled():  # create_graph=True: this backward will be differentiated
        found = _gradients(grad, y, x, scale, slope, gain, per_pixel, needs_bias)
    else:
        found = kernels.backward(dense(grad, y), y, x, scale, slope, gain, per_pixel)
    grad_x, grad_bias, grad_scale, sums = found
    grad_noise = grad_strength = None
    if needs_noise:
        assert sums is not None and strength is not None
        grad_noise = sums * strength
        if ctx.noise_batch != y.shape[0]:  # one noise for all images
            grad_noise = grad_noise.sum(0, keepdim=True)
        grad_noise = grad_noise.to(y.dtype)
    if needs_strength:
        assert sums is not None and noise is not None
        grad_strength = (sums * noise.to(sums.dtype)).sum().reshape(1)
    grads = (grad_x, grad_bias, grad_scale)
    wanted = (g if needed else None for g, needed in zip(grads, (needs_x, needs_bias, needs_scale), strict=True))
    return (*wanted, grad_noise, grad_strength, None, None)


_OP = Op(
    "bias_act",
    Kernels(
        torch.library.custom_op("mixsyn_fast::bias_act", _forward_body, mutates_args=(), schema=_FORWARD),
        torch.library.custom_op("mixsyn_fast::bias_act_backward", _backward_body, mutates_args=(), schema=_BACKWARD),
    ),
    Kernels(_forward_fake, _backward_fake),
    _gradient,
    _setup_context,
)


# --- public function -------------------------------------------------------------------------------------------------


def _check(x: Tensor, bias: Tensor | None, scale: Tensor | None, noise: Tensor | None, strength: Tensor | None) -> None:
    op = "bias_act"
    check_tensor(op, "x", x)
    if x.dim() != 4:
        fail(op, "x", "shape (B, C, H, W)", f"shape {tuple(x.shape)}")
    check_kernel_dtype(op, "x", x)
    batch, channels, height, width = x.shape
    if (noise is None) != (strength is None):
        fail(op, "noise and strength", "both or neither", f"{'strength' if noise is None else 'noise'} only")
    shapes = (
        ("bias", bias, (channels,)),
        ("scale", scale, (batch, channels)),
        ("noise", noise, (batch, 1, height, width)),
        ("strength", strength, (1,)),
    )
    for name, tensor, shape in shapes:
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        if tensor.shape != shape and not (name == "noise" and tensor.shape == (1, *shape[1:])):
            expected = f"{(1, *shape[1:])} or {shape}" if name == "noise" else shape
            fail(op, name, f"shape {expected}", f"shape {tuple(tensor.shape)}")
        check_floating(op, name, tensor)
        check_device(op, name, tensor, x.device)


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    slope: float = 0.2,
    gain: float = math.sqrt(2.0),
) -> Tensor:
    """Scale, add noise and bias, apply LeakyReLU and a gain, in one fused op.

    ``y = gain * leaky_relu(x * scale + noise * strength + bias)``, whatever is None being left out.

    Args:
        x: (B, C, H, W), float32, float64, float16 or bfloat16; contiguous and channels_last (the faster one) are read as
            they are, other strides are made dense first. B may be 0.
        bias: (C,) floating.
        scale: (B, C) floating: the demodulation of every image's output channels.
        noise: (B, 1, H, W), or (1, 1, H, W) for all images, floating; converted to x's dtype.
        strength: (1,) floating, the learned factor of the noise; with ``noise``, and only with it.
        slope: of LeakyReLU for negative values; positive and finite (1 for none: then only scale, noise, bias and gain).
        gain: positive and finite.

    Returns:
        (B, C, H, W), dtype and memory layout of ``x``.

    Raises:
        ValueError: a shape, a number, a combination of arguments or a device does not fit; the message names the argument.
        TypeError: a type or a dtype does not fit.

    Gradients reach x, bias, scale, noise and strength, and can be differentiated again on every backend: with
    ``create_graph=True`` the backward runs as plain PyTorch. At u = 0 the derivative is that of the positive side; in
    float16 it is so as well where a negative y is too small for the type. bias, scale and strength are used, and their
    gradients summed, in float32 (float64 for float64), so half precision loses nothing but the final rounding.
    Deterministic, for any number of threads.
    Under autocast the op runs in x's dtype.
    """
    slope = check_number("bias_act", "slope", slope, _LEAST, expected="a finite positive number")
    gain = check_number("bias_act", "gain", gain, _LEAST, expected="a finite positive number")
    _check(x, bias, scale, noise, strength)
    acc = acc_dtype(x.dtype)
    bias, scale, strength = (None if t is None else t.to(acc) for t in (bias, scale, strength))
    noise = None if noise is None else noise.to(x.dtype)
    kernels = _OP.kernels(x)
    if kernels is None:
        return bias_act_reference(x, bias, scale, noise, strength, slope, gain)
    bias, scale, noise = (None if t is None else t.contiguous() for t in (bias, scale, noise))
    y: Tensor = kernels.forward(dense(x), bias, scale, noise, strength, slope, gain)
    return y


_LEAST = torch.finfo(torch.float32).tiny  # the sign of y must be that of u
