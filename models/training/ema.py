"""Exponential moving averages of networks (Polyak and Juditsky, 1992), as GAN papers evaluate them.

    p_ema <- d_t p_ema + (1 - d_t) p,     d_t = min(decay, (1 + t) / (10 + t))  while warming up

Karras et al., "Progressive Growing of GANs" (ICLR 2018), average the generator with decay 0.999. The warm-up lets the
average forget the random start: without it a short run is judged by its initialisation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


class EMA:
    """Averaged copies of some networks, in eval mode and without gradients.

    Parameters are averaged; buffers (running statistics, the vectors of spectral norm) are copied, for an average of
    counters or of unit vectors has no meaning. Make it when the networks are on their device.

    Attributes:
        networks: name -> averaged copy.
        decay: the largest d_t.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float, *, warmup: bool = True) -> None:
        """Copy the networks.

        Args:
            networks: name -> the live network; kept, and read by :meth:`update`. Not a DDP wrapper: its module.
            decay: in [0, 1): 0 is the live network itself, 0.999 averages over about the last 1000 steps.
            warmup: begin with a smaller decay, as above.

        Raises:
            ValueError: decay out of range, or a name with a dot in it.
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay!r}")
        for name in networks:
            if "." in name:
                raise ValueError(f"networks: expected names without a dot, got {name!r}")
        self.decay = decay
        self.warmup = warmup
        self._live = dict(networks)
        self.networks = {name: deepcopy(network).eval().requires_grad_(False) for name, network in networks.items()}

    def decay_at(self, step: int) -> float:
        """Return d_t of step t >= 0 (updates before this one)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int, begins: Mapping[str, int] | None = None) -> None:
        """Take the live networks in, after the optimisers' step number `step` (from 0 on).

        Args:
            step: the step.
            begins: network -> the step in which it moves for the first time, 0 where it is missing. Its warm-up begins
                there: else a network of a later stage is averaged with its random start for thousands of steps.
        """
        for name, live in self._live.items():
            average = self.networks[name]
            own = step - (begins or {}).get(name, 0)
            # looked up each time: parameters are replaced by load_state_dict(assign=True), buffers by layers that rebind
            old, new = list(average.parameters()), [p.detach() for p in live.parameters()]
            if old and own >= 0:
                torch._foreach_lerp_(old, new, 1.0 - self.decay_at(own))
            old, new = list(average.buffers()), list(live.buffers())
            if old:
                torch._foreach_copy_(old, new)

    @torch.no_grad()
    def settle(self, names: Collection[str]) -> None:
        """Give live networks of these names their averaged weights: nothing trains them any more."""
        for name in names:
            for live, average in zip(self._live[name].parameters(), self.networks[name].parameters(), strict=True):
                live.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """Return "network.entry" -> tensor (shared with the averaged copies, not cloned)."""
        return {f"{name}.{key}": value for name, net in self.networks.items() for key, value in net.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what :meth:`state_dict` returned into the averaged networks, all of it or nothing.

        Raises:
            ValueError: entries missing, unexpected or of another shape, each named.
        """
        own = self.state_dict()
        problems = [f"missing {key}" for key in own if key not in state]
        problems += [f"unexpected {key}" for key in state if key not in own]
        problems += [
            f"{key}: expected shape {tuple(own[key].shape)}, got {tuple(state[key].shape)}"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ]
        if problems:
            raise ValueError("state: does not fit the averaged networks; nothing was loaded:\n  " + "\n  ".join(problems))
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])
