"""Sums over groups of pixels in a fixed order: the pixels sorted by group, cut into pieces of bounded length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 128  # sorted pixels of one row that one program adds


class Pieces(NamedTuple):
    """Pixels by row, and their pieces; all int64.

    Attributes:
        order: (N,) pixels, sorted by row, stably.
        row: (P,) row of every piece; R where there are fewer pieces than the most there can be.
        begin: (P,) first of the piece's pixels in ``order``.
        end: (P,) one after the last; as ``begin`` without meaning where ``row`` is R.
        starts: (R + 1,) first piece of every row.
        counts: (R,) pixels of every row.
    """

    order: Tensor
    row: Tensor
    begin: Tensor
    end: Tensor
    starts: Tensor
    counts: Tensor


def pieces_of(rows_of_pixels: Tensor, rows: int) -> Pieces:
    """Cut pixels into pieces of one row and at most PIECE pixels, without a host synchronisation.

    Args:
        rows_of_pixels: (N,) integer in [0, rows), N at least 1.
        rows: R.
    """
    keys, order = torch.sort(rows_of_pixels, stable=True)
    numbers = torch.arange(rows + 1, device=keys.device)
    first = torch.searchsorted(keys, numbers.to(keys.dtype))  # (R + 1,)
    counts = first[1:] - first[:-1]
    starts = torch.zeros_like(first)
    starts[1:] = torch.cumsum((counts + (PIECE - 1)) // PIECE, 0)
    piece = torch.arange(min(rows, keys.numel()) + keys.numel() // PIECE, device=keys.device)
    row = torch.searchsorted(starts, piece, right=True) - 1
    begin = first[row] + (piece - starts[row]) * PIECE
    end = torch.minimum(begin + PIECE, first[(row + 1).clamp(max=rows)])
    return Pieces(order, row, begin, end, starts, counts)
