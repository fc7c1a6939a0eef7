"""Patches of whole pictures, from which MSCA learns without pairs of one style (Sec. 3.4, Appendix F)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixsyn_fast.nearest import resize_nearest
from mixsyn_fast.region_map import RegionMap, Size

from ..discriminators import ExemplarPicture

Corner = tuple[int, int]
"""(top, left) of a box in pixels."""


@dataclass(frozen=True)
class Pair:
    """What an image is to become, and of what."""

    image: Tensor
    """x_p, (B, 3, h, w) in [-1, 1]: what is to be made."""
    regions: RegionMap
    """c_p: its label maps."""
    exemplar: ExemplarPicture
    """x_q and c_q, of which it is made; the very same objects where an image is made of itself (Eq. 10)."""

    @property
    def is_self(self) -> bool:
        """True for an image that is made of itself."""
        return self.exemplar.regions is self.regions

    @property
    def size(self) -> Size:
        """(h, w)."""
        return int(self.image.shape[2]), int(self.image.shape[3])


def draw(count: int) -> int:
    """Return an integer from 0 to count - 1, of torch's generator."""
    return int(torch.randint(count, ()))


def draw_box(whole: Size, size: Size) -> Corner:
    """Return the corner of a box that lies anywhere in a picture, each place as likely."""
    return draw(whole[0] - size[0] + 1), draw(whole[1] - size[1] + 1)


def overlap(first: Corner, second: Corner, size: Size) -> bool:
    """Say whether two boxes of a size have a pixel in common."""
    return abs(first[0] - second[0]) < size[0] and abs(first[1] - second[1]) < size[1]


def draw_apart(whole: Size, size: Size) -> tuple[Corner, Corner]:
    """Return the corners of two boxes that do not overlap: "random collision avoidance" of Appendix F.

    Two boxes are drawn anywhere. Where they overlap, a direction, horizontal or vertical, is drawn among those in which two
    boxes fit beside each other, and they are pushed apart in it until they touch: a random share of the way goes to either,
    as far as the picture's border lets it. Moving only one of them would not do: of two patches of half the side, as in the
    paper, the other one must be at the border as well.

    Raises:
        ValueError: two boxes do not fit into the picture.
    """
    directions = [axis for axis in (0, 1) if 2 * size[axis] <= whole[axis]]
    if not directions:
        raise ValueError(f"size: expected boxes of which two fit into {whole[0]} x {whole[1]}, got {size[0]} x {size[1]}")
    first, second = draw_box(whole, size), draw_box(whole, size)
    if not overlap(first, second, size):
        return first, second
    axis = directions[draw(len(directions))]
    ways = [first[axis], second[axis]]
    near = draw(2) if ways[0] == ways[1] else ways.index(min(ways))  # the box that goes towards 0
    missing = size[axis] - abs(ways[0] - ways[1])
    room = whole[axis] - size[axis] - ways[1 - near]  # how far the other one can go
    least, most = max(0, missing - room), min(ways[near], missing)
    share = least + draw(most - least + 1)
    ways[near] -= share
    ways[1 - near] += missing - share
    moved = [(way, corner[1]) if axis == 0 else (corner[0], way) for way, corner in zip(ways, (first, second), strict=True)]
    return moved[0], moved[1]


def resized_image(image: Tensor, size: Size) -> Tensor:
    """Return images (B, 3, H, W) at a size, bilinear with antialiasing, channels_last; themselves where it is theirs."""
    if tuple(image.shape[2:]) == size:
        return image
    made = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
    return made.contiguous(memory_format=torch.channels_last)


def resized_map(regions: RegionMap, size: Size) -> RegionMap:
    """Return hard label maps at a size by the nearest pixel, without edges; themselves where they are that."""
    regions = regions.without_edges()
    if regions.size == size:
        return regions
    return RegionMap(regions.labels_at(size), regions.num_regions, ignore_index=-1)


def cut(
    image: Tensor, regions: RegionMap, corners: list[Corner], box: Size, size: Size | None = None
) -> tuple[Tensor, RegionMap]:
    """Return a patch of every picture, with its labels.

    Args:
        image: (B, 3, H, W).
        regions: hard label maps of the same size.
        corners: of a box in every picture.
        box: (h, w) of the boxes.
        size: what they are resized to; None: they stay as they are.
    """
    size = size or box
    labels = regions.labels_at()
    places = [(slice(y, y + box[0]), slice(x, x + box[1])) for y, x in corners]
    patches = torch.stack([image[i, :, rows, columns] for i, (rows, columns) in enumerate(places)])
    found = torch.stack([resize_nearest(labels[i, rows, columns], size) for i, (rows, columns) in enumerate(places)])
    patches = resized_image(patches, size).contiguous(memory_format=torch.channels_last)
    return patches, RegionMap(found, regions.num_regions, ignore_index=-1)


def whole_pair(image: Tensor, regions: RegionMap, size: Size) -> Pair:
    """Return whole pictures at the patches' size, to be made of themselves (Eq. 10)."""
    image, regions = resized_image(image, size), resized_map(regions, size)
    return Pair(image, regions, ExemplarPicture(image, regions))


def mirrored(pair: Pair) -> Pair:
    """Return the same images to be made of their mirror images (the paper's mirroring task).

    The labels are mirrored as a map. Left and right classes do not change places: what is a left eye stays called so, in the
    image and in its exemplar, for the task is to find the same thing elsewhere.
    """
    labels = pair.regions.labels_at().flip(2)
    regions = RegionMap(labels, pair.regions.num_regions, ignore_index=-1)
    return Pair(pair.image, pair.regions, ExemplarPicture(pair.image.flip(3), regions))
