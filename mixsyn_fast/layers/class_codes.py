"""Class- and layer-wise latent codes: the encoder's heads and the generator's class-wise semantics embedding (CSE).

"Diversifying Semantic Image Synthesis and Editing via Class- and Layer-wise VAEs" (Endo and Kanamori 2020): every class of
the label map has a latent code at every level of the encoder, so single objects can be edited, from texture to colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops._common import check_integer, check_number, check_tensor
from ..ops.masked_roi_pool import masked_roi_pool
from ..region_map import RegionMap, as_region_map


class ClassLatents(NamedTuple):
    """Normal distributions of the codes of every class, one entry per encoder level; Eq. 13."""

    mean: tuple[Tensor, ...]
    """(B, K, N) each; 0 for an absent class."""
    log_variance: tuple[Tensor, ...]
    """(B, K, N) each; 0 for an absent class, so that its code is drawn from the prior N(0, I)."""
    present: tuple[Tensor, ...]
    """(B, K) bool each: the class has a pixel at this level's size."""

    def sample(self, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Draw one code per class and level by the reparametrisation trick; absent classes come from the prior.

        Args:
            generator: source of the noise, on the device of the codes; None for torch's default.

        Returns:
            (B, K, N) per level.
        """
        codes = []
        for mean, log_variance in zip(self.mean, self.log_variance, strict=True):
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            codes.append(mean + torch.exp(0.5 * log_variance) * noise)
        return tuple(codes)

    def kld(self) -> Tensor:
        """Kullback-Leibler divergence from N(0, I): the second term of Eq. 18, as published.

        The paper divides by the number of classes of the mask; the published code, and this, by the number of classes that
        are left at the level's size, where a small one may have vanished.

        Returns:
            Scalar: the sum over levels and images of the mean over the classes present; an image without any adds nothing.
        """
        total = self.mean[0].new_zeros(())
        for mean, log_variance, present in zip(*self, strict=True):
            per_class = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(2)
            count = present.sum(1).clamp(min=1)
            total = total + (torch.where(present, per_class, 0).sum(1) / count).sum()
        return total


class ClassCodes(nn.Module):
    """Heads of the class- and layer-wise encoder: maximum over each region, LeakyReLU, linear maps shared by all classes.

    Eq. 14-17. The maximum is taken of the levels' values before their activation, over the nearest-resized label map; all
    levels are pooled with one shared region map. Parameters are ``fc_mu{l}`` and ``fc_var{l}`` with l from 1, the names of
    the published encoder.

    Args:
        channels: channels of each encoder level, from the finest.
        code_length: N, length of a code.
        negative_slope: of the LeakyReLU behind the pooling.
    """

    def __init__(self, channels: Sequence[int], code_length: int, *, negative_slope: float = 0.2) -> None:
        super().__init__()
        if len(channels) == 0:
            raise ValueError("ClassCodes: channels: expected at least one level, got none")
        self.channels = tuple(check_integer("ClassCodes", "channels", width, 1, None) for width in channels)
        self.code_length = check_integer("ClassCodes", "code_length", code_length, 1, None)
        self.negative_slope = check_number("ClassCodes", "negative_slope", negative_slope)
        for level, width in enumerate(self.channels, 1):
            setattr(self, f"fc_mu{level}", nn.Linear(width, self.code_length))
            setattr(self, f"fc_var{level}", nn.Linear(width, self.code_length))

    def forward(self, levels: Sequence[Tensor], regions: RegionMap | Tensor) -> ClassLatents:
        """Return the distributions of all codes.

        Args:
            levels: (B, C_l, H_l, W_l) per level, before their activations.
            regions: hard region map of the images, or a one-hot mask (B, K, h, w).

        Raises:
            ValueError: another number of levels or channels, a batch that differs, or a soft map.
        """
        if len(levels) != len(self.channels):
            raise ValueError(f"ClassCodes: levels: expected {len(self.channels)}, got {len(levels)}")
        for number, (level, width) in enumerate(zip(levels, self.channels, strict=True), 1):
            check_tensor("ClassCodes", f"levels[{number - 1}]", level)
            if level.dim() != 4 or level.shape[1] != width:
                raise ValueError(
                    f"ClassCodes: levels[{number - 1}]: expected shape (B, {width}, H, W), got {tuple(level.shape)}"
                )
        if isinstance(regions, Tensor):
            if regions.dim() != 4:
                raise ValueError(
                    f"ClassCodes: regions: expected a RegionMap or a mask (B, K, h, w), got shape {tuple(regions.shape)}"
                )
            regions = as_region_map(regions, num_regions=regions.shape[1])
        if regions.is_soft:
            raise ValueError("ClassCodes: regions: expected a hard map, got a soft one")
        pooled, positions = masked_roi_pool(levels, regions, mode="max")
        means: list[Tensor] = []
        log_variances: list[Tensor] = []
        presents: list[Tensor] = []
        dtype = next(self.parameters()).dtype
        for number, (values, position) in enumerate(zip(pooled, positions, strict=True), 1):
            present = position[:, :, 0] >= 0
            active = F.leaky_relu(values, self.negative_slope).to(dtype)
            for found, name in ((means, "fc_mu"), (log_variances, "fc_var")):
                found.append(torch.where(present[:, :, None], getattr(self, f"{name}{number}")(active), 0))
            presents.append(present)
        return ClassLatents(tuple(means), tuple(log_variances), tuple(presents))


class ClassEmbedding(nn.Embedding):
    r"""Class-wise semantics embedding (CSE), Eq. 12: a vector per class, the sum of its embedding and its latent code.

    .. math:: s(M, Z) = T^{-1}(Z\, T(M) + W\, T(M))

    The feature map ``s`` is constant over every region, so the vectors are all there is to compute: they go to
    ``SPADENorm(x, regions, class_vectors=...)``, which never makes the map. The parameter is ``weight`` (K, N), in the
    published generator ``embedding.weight``.

    Args:
        num_classes: K.
        code_length: N.
    """

    def __init__(self, num_classes: int, code_length: int) -> None:
        super().__init__(
            check_integer("ClassEmbedding", "num_classes", num_classes, 1, None),
            check_integer("ClassEmbedding", "code_length", code_length, 1, None),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, K, N) of latent codes (B, K, N).

        Raises:
            ValueError: the codes have another shape.
        """
        check_tensor("ClassEmbedding", "codes", codes)
        if codes.dim() != 3 or tuple(codes.shape[1:]) != tuple(self.weight.shape):
            shape = ", ".join(str(n) for n in self.weight.shape)
            raise ValueError(f"ClassEmbedding: codes: expected shape (B, {shape}), got {tuple(codes.shape)}")
        return self.weight + codes
