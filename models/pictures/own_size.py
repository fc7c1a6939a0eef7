"""What a model made at its own size, brought back to the size and shape of the picture that it was made of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from .picture import Picture, crop_box

Crop = Literal["center", "none"]


def at_own_size(
    image: np.ndarray,
    composition: np.ndarray,
    base: Picture,
    *,
    crop: Crop = "center",
    keep: Collection[int] | None = None,
) -> Picture:
    """Bring an image and its soft composition to the size and shape of the picture that they were made of.

    The composition is resized bilinear, weight by weight, and its strongest region taken at the full size; the image is
    resized bicubic. What the crop has cut off stays as the picture has it, pixels and labels.

    Args:
        image: (h, w, 3) uint8, of the model's size.
        composition: (N, h, w) weights.
        base: the picture, as it was stored.
        crop: what of it the model has seen (:func:`~.picture.fit`).
        keep: regions that come from the picture itself: where one of these is and was, the pixels are the picture's own, at
            full resolution, blended at the border over two of the model's pixels. A paste of the old picture there, and no
            longer what the model made. None: every pixel is the model's.

    Returns:
        Image (H, W, 3) and labels (H, W) of the picture's size, under its name.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if image.shape != (*composition.shape[1:], 3) or image.dtype != np.uint8:
        raise ValueError(f"image: expected {(*composition.shape[1:], 3)} uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    upper, left, rows, columns = _whole_box(base, (height, width), crop)
    weights = torch.from_numpy(np.ascontiguousarray(composition, np.float32))
    best = torch.full((rows, columns), -1.0)
    labels = torch.zeros(rows, columns, dtype=torch.int32)
    for region, weight in enumerate(weights):  # one at a time: N maps of a photograph's size would be gigabytes
        full = F.interpolate(weight[None, None], (rows, columns), mode="bilinear", antialias=True)[0, 0]
        more = full > best
        best, labels = torch.where(more, full, best), torch.where(more, region, labels)
    made = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float()
    if (rows, columns) != (height, width):
        made = F.interpolate(made, (rows, columns), mode="bicubic", antialias=True)
    made = made[0].movedim(0, -1)
    at = slice(upper, upper + rows), slice(left, left + columns)
    if keep is not None:
        own_labels = torch.from_numpy(np.array(base.labels[at]))
        stays = (own_labels == labels) & torch.isin(labels, torch.tensor(sorted(keep), dtype=torch.int32))
        share = inside_weights(stays, max(round(2 * rows / height), 1))[..., None]
        made = share * torch.from_numpy(np.array(base.image[at])).float() + (1 - share) * made
        labels = torch.where(stays, own_labels, labels)
    whole, map_ = base.image.copy(), base.labels.copy()
    whole[at] = made.round().clamp(0, 255).to(torch.uint8).numpy()
    map_[at] = labels.numpy()
    return Picture(whole, map_, base.name)


def _whole_box(base: Picture, size: tuple[int, int], crop: Crop) -> tuple[int, int, int, int]:
    """Return what of a picture a model of a size has seen in whole pixels: upper, left, height, width."""
    left, upper, right, lower = crop_box(base.labels.shape[:2], size, crop)
    first = round(upper), round(left)
    return (*first, max(round(lower) - first[0], 1), max(round(right) - first[1], 1))


def inside_weights(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Return weights in [0, 1] that are 0 outside a mask (H, W) and rise to 1 within 2 `radius` pixels of its border."""
    side = 2 * radius + 1
    outside = (~mask)[None, None].float()
    for pad, window in (((0, 0, radius, radius), (side, 1)), ((radius, radius, 0, 0), (1, side))):  # boxes, so one way each
        outside = F.max_pool2d(F.pad(outside, pad), window, stride=1)  # the frame of the picture is no border
    weights = 1 - outside
    for pad, window in (((0, 0, radius, radius), (side, 1)), ((radius, radius, 0, 0), (1, side))):
        weights = F.avg_pool2d(F.pad(weights, pad, mode="replicate"), window, stride=1)
    return torch.where(mask, weights[0, 0], 0)
