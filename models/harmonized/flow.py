r"""Continuous normalising flow on style codes (Sec. 3.5): to a Gaussian and back, for steps that stay on the manifold.

.. math::

    z_t = s(l_0) + \int_{l_0}^{l_1} f(s(l), l)\, dl \tag{7}
    \qquad
    s'_t = z'(l_1) + \int_{l_1}^{l_0} f(z'(l), l)\, dl \tag{8}

trained by likelihood, with the instantaneous change of variables (Chen et al., Neural Ordinary Differential Equations, 2018,
Eq. 8) and Hutchinson's estimate of the trace (Grathwohl et al., FFJORD, 2019, Eq. 7):

.. math::

    \log p(s_t) = \log N(z_t; 0, I) + \int_{l_0}^{l_1} \mathrm{tr} \frac{\partial f}{\partial s}\, dl

f is the stack of "concatsquash" layers of FFJORD and PointFlow, y = (W x + b) sigmoid(w_g l + b_g) + w_b l, with tanh
between. Codes are standardised first, each number by its mean and deviation over the training set, which is part of the flow
(and of its likelihood). Solvers are torchdiffeq's: adaptive (Dormand-Prince) or of fixed steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .config import FlowConfig

Solver = Literal["adaptive", "fixed"]


class ConcatSquash(nn.Module):
    """y = (W x + b) * sigmoid(w_g l + b_g) + w_b l."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, time: Tensor, x: Tensor) -> Tensor:
        """Return y (B, outputs) of x (B, inputs) at a time, a scalar."""
        l = time.reshape(1, 1).to(x.dtype)  # noqa: E741 - the paper's letter
        y: Tensor = self.linear(x) * torch.sigmoid(self.gate(l)) + self.shift(l)
        return y


class StyleFlow(nn.Module):
    """Codes (B, D) <-> z (B, D), D being the length of a group's codes laid end to end.

    Args:
        size: D.
        config: f and solvers.
    """

    mean: Tensor
    deviation: Tensor
    seen: Tensor

    def __init__(self, size: int, config: FlowConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FlowConfig()
        self.size = size
        widths = [size, *([config.width] * config.layers), size]
        self.layers = nn.ModuleList(ConcatSquash(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # codes that mean and deviation are of

    @torch.no_grad()
    def observe(self, codes: Tensor, total: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        """Take codes (N, D), N of any number, into mean and deviation, beside those of earlier calls (Chan et al., 1979).

        Args:
            codes: of this process.
            total: sum of a tensor over processes, all of which call this together.

        Raises:
            ValueError: another shape.
        """
        codes = self._checked(codes).double()
        sums = total(torch.cat((codes.new_tensor([len(codes)]), codes.sum(0))))
        count, before = sums[0], self.seen.double()
        if count == 0:
            return
        mean = sums[1:] / count
        spread = total((codes - mean).square().sum(0)) + self.deviation.double().square() * (before - 1).clamp(min=0)
        step = mean - self.mean
        whole = before + count
        spread += step.square() * (before * count / whole)
        self.mean.copy_(self.mean + step * (count / whole))
        self.seen.copy_(whole)
        if whole > 1:
            self.deviation.copy_((spread / (whole - 1)).sqrt())

    def standardise(self, codes: Tensor) -> None:
        """Take mean and deviation of every number over codes (N, D) alone; a number that never changes keeps its scale.

        Raises:
            ValueError: another shape, or fewer than two codes.
        """
        if codes.dim() != 2 or codes.shape[1] != self.size or len(codes) < 2:
            raise ValueError(f"codes: expected shape (N, {self.size}), N at least 2, got {tuple(codes.shape)}")
        self.mean.zero_()
        self.seen.zero_()
        self.observe(codes)

    def scale(self) -> Tensor:
        """Return what codes are divided by, (D,): the deviation, or 1 of a number that never changed."""
        return torch.where(self.deviation > 1e-6, self.deviation, 1.0)

    def noisy(self, codes: Tensor) -> Tensor:
        """Return codes (B, D) for training: with Gaussian noise of `config.noise` in every standardised number, drawn here.

        Where numbers take few values, as those of drawn faces do, or codes come again exactly, a density has no bound: ever
        narrower peaks are ever likelier, and f grows ever steeper. With noise the likeliest density is that of the codes
        under a Gaussian of this width, and no peak is narrower.
        """
        return codes + self.config.noise * self.scale() * torch.randn_like(codes)

    def change(self, time: Tensor, x: Tensor) -> Tensor:
        """Return f(x, l), (B, D)."""
        for i, layer in enumerate(self.layers):
            x = layer(time, torch.tanh(x) if i else x)
        return x

    def encode(self, codes: Tensor, solver: Solver = "adaptive") -> Tensor:
        """Return z (B, D) of codes (B, D): Eq. 7.

        Raises:
            ValueError: another shape.
        """
        return self._solved((self._checked(codes) - self.mean) / self.scale(), solver, forward=True)

    def decode(self, z: Tensor, solver: Solver = "adaptive") -> Tensor:
        """Return codes (B, D) of z (B, D): Eq. 8.

        Raises:
            ValueError: another shape.
        """
        return self._solved(self._checked(z), solver, forward=False) * self.scale() + self.mean

    def log_likelihood(self, codes: Tensor, solver: Solver = "adaptive", *, exact: bool = False) -> Tensor:
        """Return log p of codes (B, D) in nats, (B,).

        Args:
            codes: what it is asked of.
            solver: of the integral.
            exact: the trace itself, for small D; else Hutchinson's estimate with one Rademacher vector a call, drawn here.

        Raises:
            ValueError: another shape.
        """
        x = (self._checked(codes) - self.mean) / self.scale()
        direction = torch.empty_like(x).bernoulli_().mul_(2).sub_(1)

        def both(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                at = state[0].requires_grad_(True) if state[0].is_leaf else state[0]
                change = self.change(time, at)
                if exact:
                    diagonal = [_derivative(change[:, i], at)[:, i] for i in range(self.size)]
                    trace = torch.stack(diagonal).sum(0)
                else:
                    trace = (_derivative((change * direction).sum(1), at) * direction).sum(1)
            return change, trace

        start = (x, x.new_zeros(len(x)))
        z, gained = self._integral(both, start, solver, forward=True)
        likelihood: Tensor = gained - 0.5 * (z * z).sum(1) - 0.5 * self.size * math.log(2 * math.pi)
        return likelihood - self.scale().log().sum()

    def _checked(self, values: Tensor) -> Tensor:
        if values.dim() != 2 or values.shape[1] != self.size:
            raise ValueError(f"codes: expected shape (B, {self.size}), got {tuple(values.shape)}")
        return values

    def _solved(self, start: Tensor, solver: Solver, *, forward: bool) -> Tensor:
        if solver == "fixed" and not torch.is_grad_enabled():
            return self._stepped(start, forward=forward)
        found: Tensor = self._integral(self.change, start, solver, forward=forward)
        return found

    def _stepped(self, x: Tensor, *, forward: bool) -> Tensor:
        """What torchdiffeq's "rk4" (the 3/8 rule) gives, for a slider: gates and shifts of all its times are known at once.

        A layer is then (W x) gate + (b gate + shift), one product and one pass.
        """
        steps = self.config.steps
        step = (1 if forward else -1) * self.config.time / steps
        times = torch.arange(3 * steps + 1, dtype=x.dtype, device=x.device)[:, None] * (step / 3)
        times = times if forward else times + self.config.time
        layers = []
        for layer in cast("list[ConcatSquash]", list(self.layers)):
            gates = torch.sigmoid(layer.gate(times))
            layers.append((layer.linear.weight.t(), gates, layer.linear.bias * gates + layer.shift(times)))

        def change(at: int, x: Tensor) -> Tensor:
            for i, (weight, gates, shifts) in enumerate(layers):
                x = torch.addcmul(shifts[at], torch.tanh(x) @ weight if i else x @ weight, gates[at])
            return x

        for at in range(0, 3 * steps, 3):
            first = change(at, x)
            second = change(at + 1, x + step / 3 * first)
            third = change(at + 2, x + step * (second - first / 3))
            fourth = change(at + 3, x + step * (first - second + third))
            x = x + step / 8 * (first + 3 * (second + third) + fourth)
        return x

    def _integral(self, change: Callable[..., Any], start: Any, solver: Solver, *, forward: bool) -> Any:
        """The state at the other end of time; `start` is a tensor or a tuple of them."""
        from torchdiffeq import odeint

        first = start[0] if isinstance(start, tuple) else start
        ends = (0.0, self.config.time) if forward else (self.config.time, 0.0)
        times = torch.tensor(ends, dtype=first.dtype, device=first.device)
        if solver == "adaptive":
            tolerance = self.config.tolerance
            found = odeint(change, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
        elif solver == "fixed":
            found = odeint(change, start, times, method="rk4", options={"step_size": self.config.time / self.config.steps})
        else:
            raise ValueError(f"solver: expected adaptive or fixed, got {solver!r}")
        return tuple(each[-1] for each in found) if isinstance(start, tuple) else found[-1]


def _derivative(value: Tensor, x: Tensor) -> Tensor:
    """Gradient of the sum of `value` by x, differentiable itself."""
    return torch.autograd.grad(value.sum(), x, create_graph=True)[0]
