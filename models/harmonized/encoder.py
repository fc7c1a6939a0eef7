r"""The multi-scale style encoder (Sec. 3.1): a code per region from the features of all layers.

.. math::

    F = \sum_i \alpha_i F_i, \qquad \alpha = \mathrm{softmax}(a) \tag{1, 2}

F_i being the maps of SEAN's encoder, brought to half the image's size and, by a 1 x 1 convolution, to the code's length; the
code of a region is the mean of F over it. Pooling, resizing and a 1 x 1 convolution without bias are linear, so every map is
pooled as it is and only the K means are projected and added: F is never made (docs/exact_algebra.md, 13).
`use_plan("dense")` computes as written.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mixsyn_fast import masked_roi_pool
from mixsyn_fast.backend import current_plan
from mixsyn_fast.ops.region_norm import region_norm
from mixsyn_fast.region_map import RegionMap

from ..blocks import SLOPE, make_conv

LAYERS = 5


class Projections(nn.ModuleList):
    """Linear maps of the lower levels' codes to the length of a code."""

    own_initialisation = True  # a small gain would make their parts of a code a twentieth of the last level's


class MultiScaleEncoder(nn.Module):
    """Image (B, 3, H, W) and its regions -> style codes (B, K, style_length); a region that is absent gets the zero code.

    Args:
        style_length: length of a code.
        width: channels of the first layer; the others have 2, 4 and 8 times as many, the last one the code's length.
        multi_scale: False: the last layer alone, as SEAN's encoder.
        softmax: False: the weights of the layers as they are, at first all the same (ablation).
        level_rate: learning rate of these weights in multiples of the others' (they are stored divided by it, and Adam's
            steps do not depend on a gradient's size).
        spectral: spectral norm on all convolutions (Sec. 4.2), for training.
    """

    def __init__(
        self,
        style_length: int = 512,
        width: int = 32,
        *,
        multi_scale: bool = True,
        softmax: bool = True,
        spectral: bool = False,
        level_rate: float = 1.0,
    ) -> None:
        super().__init__()
        w = width
        self.level_rate = level_rate
        self.softmax = softmax
        raised = nn.ConvTranspose2d(4 * w, 8 * w, 3, stride=2, padding=1, output_padding=1)
        self.convs = nn.ModuleList(
            (
                _without_padding(make_conv(3, w, 3, spectral=spectral)),
                _halving(make_conv(w, 2 * w, 3, spectral=spectral)),
                _halving(make_conv(2 * w, 4 * w, 3, spectral=spectral)),
                parametrizations.spectral_norm(raised) if spectral else raised,
                _without_padding(make_conv(8 * w, style_length, 3, spectral=spectral)),
            )
        )
        self.projections = Projections(
            nn.Linear(channels, style_length, bias=False) for channels in ((w, 2 * w, 4 * w, 8 * w) if multi_scale else ())
        )
        self.level_weights = nn.Parameter(torch.zeros(LAYERS) if softmax else torch.full((LAYERS,), 1 / LAYERS / level_rate))
        self.level_weights.requires_grad_(multi_scale)

    def alphas(self) -> Tensor:
        """Return the share of every layer, (5,): Eq. 1."""
        weights = self.level_weights * self.level_rate
        return torch.softmax(weights, 0) if self.softmax else weights

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the maps of the layers: (B, C_i, h_i, w_i), h_i being H, H / 2, H / 4, H / 2, H / 2.

        Raises:
            ValueError: no image, or a height or width that is no multiple of 4.
        """
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % 4 or image.shape[3] % 4:
            raise ValueError(f"image: expected shape (B, 3, H, W), H and W multiples of 4, got {tuple(image.shape)}")
        dense = current_plan() == "dense"
        x, found = image, []
        for i, conv in enumerate(self.convs):
            if i in (0, LAYERS - 1):
                x = F.pad(x, (1, 1, 1, 1), mode="reflect")
            x = conv(x)
            if i == LAYERS - 1:
                x = torch.tanh(x)
            elif dense:
                x = F.leaky_relu(F.instance_norm(x), SLOPE)
            else:
                x = region_norm(x, norm="instance", negative_slope=SLOPE)
            found.append(x)
        return found

    def forward(self, image: Tensor, regions: RegionMap) -> Tensor:
        """Return the style codes (B, K, style_length).

        Args:
            image: (B, 3, H, W) in [-1, 1].
            regions: hard or soft map of the images' regions.

        Raises:
            ValueError: see :meth:`maps`.
        """
        maps = self.maps(image)
        size = (image.shape[2] // 2, image.shape[3] // 2)
        if regions.is_soft:
            half = RegionMap.soft(regions.weights_at(size), check=False)
        else:
            half = RegionMap(regions.labels_at(size), regions.num_regions, ignore_index=-1)
        if not self.projections:
            return masked_roi_pool(maps[-1], half, mode="mean")[0]
        if current_plan() == "dense":
            return masked_roi_pool(self._summed(maps, size), half, mode="mean")[0]
        pooled = masked_roi_pool([maps[i] for i in (0, 1, 3, 4)], half, mode="mean")[0]
        pooled.insert(2, masked_roi_pool(maps[2], spread_weights(half), mode="mean")[0])
        alphas = self.alphas().to(pooled[-1].dtype).unbind()
        codes = alphas[-1] * pooled[-1]
        for alpha, projection, each in zip(alphas[:-1], self.projections, pooled[:-1], strict=True):
            codes = codes + alpha * projection(each)
        return codes

    def _summed(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """F of Eq. 2, (B, style_length, H / 2, W / 2)."""
        alphas = self.alphas().to(maps[-1].dtype).unbind()
        total = alphas[-1] * maps[-1]
        for alpha, projection, each in zip(alphas[:-1], self.projections, maps[:-1], strict=True):
            if each.shape[2] > size[0]:
                each = F.avg_pool2d(each, 2)
            elif each.shape[2] < size[0]:
                each = F.interpolate(each, size=size, mode="bilinear")
            total = total + alpha * F.conv2d(each, cast(Tensor, projection.weight)[:, :, None, None])
        return total


def spread_weights(regions: RegionMap) -> RegionMap:
    """Return a map for features of half the size that pools them as `regions` does after upsampling (bilinear, by 2).

    The mean of U x over a region is that of x with the weights U^T m, m being the region's mask: as U's rows sum to one,
    both means have the same sum of weights.

    Args:
        regions: hard or soft, (H, W) even.

    Returns:
        A soft map (B, K, H / 2, W / 2).
    """
    masks = regions.weights_at(regions.size) if regions.is_soft else regions.onehot(regions.size)
    batch, count, height, width = masks.shape
    shape = [batch, count, height // 2, width // 2]
    weights = torch.ops.aten.upsample_bilinear2d_backward(masks.contiguous(), [height, width], shape, False, 2.0, 2.0)
    return RegionMap.soft(weights, check=False)


def _without_padding(conv: nn.Conv2d) -> nn.Conv2d:
    conv.padding = (0, 0)
    return conv


def _halving(conv: nn.Conv2d) -> nn.Conv2d:
    conv.stride = (2, 2)
    return conv
