r"""Regional style mapping (Sec. 3.1, 3.4): random codes of a group of related regions, learnt in style space.

.. math::

    s_r = \mathcal M(z) \tag{3}

    \min_{\mathcal M_j} \max_{\mathcal D_j} \; E[\log \mathcal D_j(s_s)] + E[\log(1 - \mathcal D_j(\mathcal M_j(z)))] \tag{6}

for every group j of regions, skin and nose say, s_s being the codes that the encoder finds in pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import SLOPE
from .config import MappingConfig


def _layers(first: int, width: int, count: int) -> nn.ModuleList:
    """Hidden layers that keep the variance (He et al., 2015).

    With torch's own initialisation seven of them leave a hundredth of z: all codes are one, and stay so.
    """
    layers = nn.ModuleList(nn.Linear(first if i == 0 else width, width) for i in range(count))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layers


class MappingNetwork(nn.Module):
    """z (B, z_dim) -> codes of a group's regions (B, n, style_length), as StarGAN v2's: shared layers, then own ones.

    Args:
        regions: n, how many regions the group has.
        style_length: length of a code.
        config: widths and depths.
    """

    def __init__(self, regions: int, style_length: int, config: MappingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MappingConfig()
        self.shared = _layers(config.z_dim, config.width, config.shared)
        self.own = nn.ModuleList(_layers(config.width, config.width, config.own) for _ in range(regions))
        self.last = nn.ModuleList(nn.Linear(config.width, style_length) for _ in range(regions))

    def forward(self, z: Tensor) -> Tensor:
        """Return the codes (B, n, style_length).

        Args:
            z: (B, z_dim), from N(0, I).

        Raises:
            ValueError: another shape.
        """
        if z.dim() != 2 or z.shape[1] != self.config.z_dim:
            raise ValueError(f"z: expected shape (B, {self.config.z_dim}), got {tuple(z.shape)}")
        x = z
        for layer in self.shared:
            x = F.relu(layer(x))
        found = []
        for own, last in zip(self.own, self.last, strict=True):
            y = x
            for layer in own:  # type: ignore[attr-defined]
                y = F.relu(layer(y))
            found.append(last(y))
        return torch.stack(found, 1)


class CodeDistribution(nn.Module):
    """Codes (B, K, style_length) -> mean and log-variance of a Gaussian for every region: the ablation by KL (GroupDNet).

    Two linear layers on the pooled codes, which are the same on F before the pooling: two 1 x 1 convolutions.
    """

    def __init__(self, style_length: int) -> None:
        super().__init__()
        self.mean = nn.Linear(style_length, style_length)
        self.log_variance = nn.Linear(style_length, style_length)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (B, K, style_length) each."""
        return self.mean(codes), self.log_variance(codes)


class StyleDiscriminator(nn.Module):
    """Codes of a group's regions (B, n, style_length) -> logits (B, 1): D_j of Eq. 6, of all of them together.

    Args:
        regions: n.
        style_length: length of a code.
        config: widths and depths.
    """

    def __init__(self, regions: int, style_length: int, config: MappingConfig | None = None) -> None:
        super().__init__()
        config = config or MappingConfig()
        self.shape = (regions, style_length)
        self.layers = _layers(regions * style_length, config.width, config.judges)
        self.last = nn.Linear(config.width, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the logits (B, 1).

        Raises:
            ValueError: codes of another shape.
        """
        if codes.dim() != 3 or tuple(codes.shape[1:]) != self.shape:
            raise ValueError(f"codes: expected shape (B, {self.shape[0]}, {self.shape[1]}), got {tuple(codes.shape)}")
        x = codes.flatten(1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        logits: Tensor = self.last(x)
        return logits
