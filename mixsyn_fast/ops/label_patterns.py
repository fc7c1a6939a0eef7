"""Distinct label neighbourhoods of a label map: the plan behind the tables of SPADE, SEAN and CLADE layers.

Two pixels with equal (2r+1) x (2r+1) label neighbourhoods get equal modulation from any stack of convolutions with that
receptive field, so one table row serves both. This op numbers the distinct neighbourhoods of a batch. All backends are
bit-identical: hashes may propose, labels decide; rows are in order of first appearance (image, y, x), for any thread count.

Codes in ``patterns``, with K = num_regions: region k is k; a pixel outside the image is K; a pixel of no region is K + 1
(another case than outside: a convolution's hidden value is relu(bias + ...) there and zero outside); a set edge bit adds
K + 2.

In three dimensions a neighbourhood is 2r + 1 neighbourhoods of slices, one behind the other: the kernel numbers those of all
slices, and their numbers are the key of a neighbourhood of the volume (:func:`_of_volumes`).

Where two stacked 3x3 convolutions see a 5x5 neighbourhood: SPADE's Sec. 3.1; the identity is derived in
docs/ops/label_patterns.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import (
    Op,
    check_device,
    check_flag,
    check_integer,
    check_labels,
    check_tensor,
    check_values,
    explain,
    fail,
    int32,
)

__all__ = ["label_patterns"]

MAX_REGIONS = 512


def label_codes(labels: Tensor, edges: Tensor | None, num_regions: int) -> Tensor:
    """Codes of the pixels, int64, as the labels: see the module's text."""
    codes = torch.where(labels < 0, num_regions + 1, labels.to(torch.int64))
    return codes if edges is None else codes + (num_regions + 2) * (edges != 0)


def label_patterns_reference(
    labels: Tensor, edges: Tensor | None, num_regions: int, radius: int, per_image: bool, max_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch: the specification of the op ``mixsyn_fast::label_patterns``.

    Args:
        labels: (B, H, W) or (B, D, H, W) int32, region or -1.
        edges: as labels, bool or uint8, or None.
        num_regions: K.
        radius: 0, 1 or 2.
        per_image: rows are not shared between images.
        max_rows: fixed number of rows, or negative for as many as there are.

    Returns:
        index, patterns, row_image as :func:`label_patterns`.

    Raises:
        ValueError: a label is out of range, or there are more patterns than ``max_rows``.
    """
    wrong = (labels < -1) | (labels >= num_regions)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"mixsyn_fast::label_patterns: labels: expected values in [0, {num_regions}) or -1 for no region, "
            f"got {int(labels[at])} at {at}"
        )
    batch, *volume = labels.shape
    side = 2 * radius + 1
    size = side ** len(volume)
    codes = label_codes(labels, edges, num_regions)
    windows = torch.nn.functional.pad(codes, (radius,) * 2 * len(volume), value=num_regions)
    if labels.numel() == 0:
        windows = codes.new_empty((0, size))
    else:
        for dimension in range(1, labels.dim()):
            windows = windows.unfold(dimension, side, 1)
        windows = windows.reshape(-1, size)
    image = torch.arange(batch, device=labels.device).repeat_interleave(prod(volume))
    key = torch.cat((image[:, None], windows), 1) if per_image else windows
    unique, inverse = torch.unique(key, dim=0, return_inverse=True)
    pixel = torch.arange(len(key), device=labels.device)
    first = torch.full((len(unique),), len(key), device=labels.device).scatter_reduce(0, inverse, pixel, "amin")
    order = torch.argsort(first)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=labels.device)
    patterns = unique[order][:, 1:] if per_image else unique[order]
    row_image = image[first[order]]
    if max_rows >= 0:
        if len(patterns) > max_rows:
            raise ValueError(
                "mixsyn_fast::label_patterns: max_rows: expected at least the number of distinct patterns, "
                f"{len(patterns)}, got {max_rows}"
            )
        spare = max_rows - len(patterns)
        patterns = torch.cat((patterns, patterns.new_full((spare, size), num_regions)))
        row_image = torch.cat((row_image, row_image.new_full((spare,), -1)))
    index = rank[inverse].reshape(labels.shape)
    return index.to(torch.int32), patterns.to(torch.int32), row_image.to(torch.int32)


@torch.library.custom_op("mixsyn_fast::label_patterns", mutates_args=())
def _label_patterns_op(
    labels: Tensor, edges: Tensor | None, num_regions: int, radius: int, per_image: bool, max_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    return label_patterns_reference(labels, edges, num_regions, radius, per_image, max_rows)


def _label_patterns_fake(
    labels: Tensor, edges: Tensor | None, num_regions: int, radius: int, per_image: bool, max_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = max_rows if max_rows >= 0 else torch.library.get_ctx().new_dynamic_size()
    return (
        labels.new_empty(labels.shape, dtype=torch.int32),
        labels.new_empty((rows, (2 * radius + 1) ** 2), dtype=torch.int32),
        labels.new_empty((rows,), dtype=torch.int32),
    )


def _numbered(keys: Tensor) -> tuple[Tensor, int]:
    """Return the number of every key among the distinct ones (of the shape of the keys), and how many there are.

    Keys that repeat their predecessor, as most do, never reach the sort.
    """
    runs, of_key = torch.unique_consecutive(keys.reshape(-1), return_inverse=True)
    distinct, of_run = torch.unique(runs, return_inverse=True)
    return of_run[of_key].reshape(keys.shape), len(distinct)


def _of_volumes(
    forward: Callable[..., Any],
    labels: Tensor,
    edges: Tensor | None,
    num_regions: int,
    radius: int,
    per_image: bool,
    max_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Number the neighbourhoods of (B, D, H, W) labels, with the kernel of two dimensions; otherwise as the reference.

    Numbers of neighbourhoods below 2^31 make keys below 2^62, so nothing is decided by a hash. Memory beyond the result:
    60 to 90 bytes a voxel and at most 160 a row, for neither codes nor windows of the volume are made.
    """
    batch, depth, height, width = labels.shape
    slices, edges = labels.flatten(0, 1), None if edges is None else edges.flatten(0, 1)
    found, flat, _ = forward(slices, edges, num_regions, radius, False, -1)
    # a frame of slices outside of the volume, whose neighbourhood is one row more
    outside = len(flat)
    framed = torch.nn.functional.pad(found.reshape(labels.shape), (0, 0, 0, 0, radius, radius), value=outside)
    flat = torch.cat((flat, flat.new_full((1, flat.shape[1]), num_regions)))
    numbers, count, span = framed.to(torch.int64), outside + (radius > 0), 1
    while span < 2 * radius + 1:  # numbers of 2, 4 and at last of 2r + 1 slices
        step = min(span, 2 * radius + 1 - span)
        numbers, count = _numbered(numbers[:, :-step] * count + numbers[:, step:])
        span += step
    if per_image:
        numbers, count = _numbered(torch.arange(batch, device=labels.device)[:, None, None, None] * count + numbers)
    numbers = numbers.reshape(-1)
    voxel = torch.arange(len(numbers), device=labels.device)
    first = torch.full((count,), len(numbers), device=labels.device).scatter_reduce(0, numbers, voxel, "amin")
    order = torch.argsort(first)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count, device=labels.device)
    index = rank[numbers].to(torch.int32).reshape(labels.shape)
    first = first[order]
    if max_rows >= 0 and count > max_rows:
        raise ValueError(
            "mixsyn_fast::label_patterns: max_rows: expected at least the number of distinct patterns, "
            f"{count}, got {max_rows}"
        )
    plane = max(height * width, 1)
    row_image, in_image = first // max(depth * plane, 1), first % max(depth * plane, 1)
    behind = torch.arange(2 * radius + 1, device=labels.device)
    at = (row_image * (depth + 2 * radius) + in_image // plane)[:, None] + behind
    patterns = flat[framed.reshape(-1, plane)[at, (in_image % plane)[:, None]].to(torch.int64)].flatten(1)
    if max_rows >= 0:
        patterns = torch.nn.functional.pad(patterns, (0, 0, 0, max_rows - count), value=num_regions)
        row_image = torch.nn.functional.pad(row_image, (0, max_rows - count), value=-1)
    return index, patterns, row_image.to(torch.int32)


class _Kernels(NamedTuple):
    """The one kernel: patterns are integers and have no gradient."""

    forward: Callable[..., Any]


_OP = Op("label_patterns", _Kernels(_label_patterns_op), _Kernels(_label_patterns_fake), triton=())


def label_patterns(
    labels: Tensor,
    num_regions: int,
    radius: int,
    *,
    edges: Tensor | None = None,
    per_image: bool = False,
    max_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Number the distinct (2r+1) x (2r+1) label neighbourhoods of a batch of label maps, (2r+1)^3 of label volumes.

    Args:
        labels: (B, H, W), or (B, D, H, W), here and below, integer, values in [0, num_regions), or -1 for a pixel of no
            region. B, D, H or W may be 0.
        num_regions: K, 1 to 512.
        radius: r, 0, 1 or 2.
        edges: (B, H, W) bool or uint8: instance edges, part of the label; None for none.
        per_image: give every image rows of its own, even where two images share a neighbourhood.
        max_rows: None for exactly as many rows as there are patterns (on CUDA one host synchronisation, for that
            number); or a fixed number of rows, with no synchronisation, for CUDA graphs. Volumes synchronise a few times
            in either case.

    Returns:
        index (B, H, W) int32: the row of every pixel;
        patterns (P, (2r+1)^2), or (P, (2r+1)^3), int32: the codes of every row, window in row-major order;
        row_image (P,) int32: the image in which the row first appears. With ``max_rows``, unused rows hold K and -1.

    Raises:
        ValueError: wrong shape, ``num_regions`` or ``radius``; a device that differs; a label out of range (on CUDA a
            device-side assertion, under ``torch.compile`` a RuntimeError).
        TypeError: an argument of another type, labels not integer, edges neither bool nor uint8.
        RuntimeError: more patterns than ``max_rows`` (on CUDA a device-side assertion).

    Deterministic: rows are in order of first appearance in raster order (image, y, x), or (image, z, y, x).
    """
    op = "label_patterns"
    check_labels(op, "labels", labels, volumes=True)
    check_values(op, "labels", labels)
    num_regions = check_integer(op, "num_regions", num_regions, 1, MAX_REGIONS)
    radius = check_integer(op, "radius", radius, 0, 2, "0, 1 or 2")
    per_image = check_flag(op, "per_image", per_image)
    if edges is not None:
        check_tensor(op, "edges", edges)
        if edges.shape != labels.shape:
            fail(op, "edges", f"shape {tuple(labels.shape)}", f"shape {tuple(edges.shape)}")
        if edges.dtype not in (torch.bool, torch.uint8):
            fail(op, "edges", "bool or uint8", edges.dtype, TypeError)
        check_device(op, "edges", edges, labels.device)
        edges = edges.contiguous()
    cap = -1 if max_rows is None else check_integer(op, "max_rows", max_rows, 0, None, "None or a number of rows")
    given, labels = labels, int32(labels).contiguous()
    kernels = _OP.kernels(labels)
    forward = label_patterns_reference if kernels is None else kernels.forward
    if kernels is not None and labels.dim() == 4:
        forward = partial(_of_volumes, kernels.forward)
    try:
        index, patterns, row_image = forward(labels, edges, num_regions, radius, per_image, cap)
    except (RuntimeError, ValueError):
        explain(op, "labels", given, -1, num_regions, f"values in [0, {num_regions}) or -1 for no region")
        raise
    return index, patterns, row_image
