"""Modulation that acts on every pixel alone: a row per (image, class, instance), by a layer's own forward on a palette.

Instance-adaptive denormalisation (INADE, Tan et al., CVPR 2021) gives every instance of a class a scale and a shift of its
own. How it comes by them differs between forms (a distribution per class, codes or noise per instance, a linear layer), but
each is ``norm(x) * s(m) + t(m)`` with ``s`` and ``t`` functions of what the maps hold at that pixel. So the layer itself,
with nothing in place of its norm, run on an image of one pixel per distinct class and instance (the palette), gives all of
both: ``t = f(0)``, and ``s`` is its derivative by x, exact because the layer is affine in x. Formula and names need not be
known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.stacks import Modulation
from ..nearest import nearest_source, resize_nearest
from .maps import NotExact

_MOST_ROWS = 0.25  # of the pixels: beyond, the palette is hardly smaller than the image
_FEW_ROWS = 64  # of an image: so many are always taken


def are_maps(arguments: Sequence[Any], batch: int) -> list[bool]:
    """Say which arguments of a layer are maps: those of the batch with as many rows and columns as the first of them.

    Args:
        arguments: of a forward, without x.
        batch: B.
    """
    size = arguments[0].shape[-2:]
    return [
        isinstance(value, Tensor) and value.dim() in (3, 4) and value.shape[0] == batch and value.shape[-2:] == size
        for value in arguments
    ]


def _numbered(segmap: Tensor, size: tuple[int, ...]) -> Tensor:
    """Number the distinct values (or columns of zeros and ones) of a map at a size: (B, h, w) int64.

    Raises:
        NotExact: the map has several channels and is not one-hot.
    """
    small = resize_nearest(segmap, size)
    if small.dim() == 4 and small.shape[1] > 1:
        if not bool(((small == 0) | (small == 1)).all()) or bool((small.sum(1) > 1).any()):
            raise NotExact("the map is not one-hot")
        return torch.where(small.any(1), small.argmax(1) + 1, 0)
    inverse: Tensor = torch.unique(small.reshape(len(small), *size), return_inverse=True)[1]
    return inverse


class Palette:
    """The distinct pixels of some maps, image by image.

    Attributes:
        index: (B, h, w) int32: the slot of every pixel, images one after another.
        maps: of every map what it holds there, (B, [D,] 1, slots); an image with fewer repeats its last.
    """

    def __init__(self, segmaps: Sequence[Tensor], size: tuple[int, ...]) -> None:
        batch, device = segmaps[0].shape[0], segmaps[0].device
        key = torch.arange(batch, device=device)[:, None, None].expand(batch, *size)
        for segmap in segmaps:
            number = _numbered(segmap, size)
            key = key * (number.max() + 1) + number
        found, row = torch.unique(key, return_inverse=True)  # sorted: the rows of an image stand side by side
        pixels = size[0] * size[1]
        if len(found) > batch * max(_FEW_ROWS, _MOST_ROWS * pixels):
            raise NotExact("nearly every pixel is an instance of its own")
        pixel = torch.zeros(len(found), dtype=torch.int64, device=device)
        pixel[row.reshape(-1)] = torch.arange(batch * pixels, device=device)
        counts = torch.bincount(pixel // pixels, minlength=batch)
        begins, slots = counts.cumsum(0) - counts, int(counts.max())
        image = torch.arange(batch, device=device)[:, None]
        self.index = (row + (image * slots - begins[:, None])[..., None]).to(torch.int32)
        slot = torch.minimum(torch.arange(slots, device=device), counts[:, None] - 1)
        place = pixel[begins[:, None] + slot] % pixels
        self.maps = []
        for segmap in segmaps:
            at = [nearest_source(side, full, device) for side, full in zip(size, segmap.shape[-2:], strict=True)]
            down, across = at[0][place // size[1]], at[1][place % size[1]]
            taken = segmap[image, down, across] if segmap.dim() == 3 else segmap[image, :, down, across].transpose(1, 2)
            self.maps.append(taken.unsqueeze(-2))


def _bare(module: nn.Module, cls: type[nn.Module], norm: str) -> nn.Module:
    """The layer, of the class given, without its norm; tensors and parts are those of the layer."""
    bare = copy.copy(module)
    bare.__class__ = cls
    bare.__dict__["_modules"] = {**module._modules, norm: nn.Identity()}
    return bare


def modulation_by_instance(
    module: nn.Module, cls: type[nn.Module], norm: str, x: Tensor, arguments: Sequence[Any]
) -> Modulation:
    """Return scale and shift of a layer as rows, one per distinct pixel of its maps and image.

    Args:
        module: ``norm(x) * s + t`` with ``s`` and ``t`` functions of the maps at a pixel, nearest-resized to x.
        cls: its own class.
        norm: name of its norm.
        x: (B, C, H, W).
        arguments: the others of its forward in order, a map first; what is no map is handed on.

    Returns:
        A table (B * slots, 2C) and the index; differentiable in parameters and in what is no map.

    Raises:
        NotExact: the maps have a gradient, are not one-hot, or distinguish nearly every pixel.
    """
    training = torch.is_grad_enabled()
    which = are_maps(arguments, x.shape[0])
    segmaps = [value for value, is_map in zip(arguments, which, strict=True) if is_map]
    if training and any(segmap.requires_grad for segmap in segmaps):
        raise NotExact("a map has a gradient")
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise NotExact("its parameters were made in inference mode")
    with torch.inference_mode(False), torch.no_grad():
        palette = Palette(segmaps, (int(x.shape[2]), int(x.shape[3])))
    taken = iter(palette.maps)
    # Under activation checkpointing nothing is kept of a forward until it is needed, and this is needed now.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        given = [next(taken) if is_map else _usable(value) for value, is_map in zip(arguments, which, strict=True)]
        zero = torch.zeros(*x.shape[:2], 1, palette.maps[0].shape[-1], dtype=x.dtype, device=x.device, requires_grad=True)
        forward: Callable[..., Any] = cls.forward
        shift = forward(_bare(module, cls, norm), zero, *given)
        if not isinstance(shift, Tensor) or shift.shape != zero.shape:
            raise NotExact("its forward returns something else than features")
        (scale,) = torch.autograd.grad(shift, zero, torch.ones_like(shift), create_graph=training)
        table = torch.cat((scale, shift), 1).movedim(1, -1).reshape(-1, 2 * x.shape[1])
    return Modulation(palette.index, table if training else table.detach())


def _usable(value: Any) -> Any:
    """A tensor that autograd may keep."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
