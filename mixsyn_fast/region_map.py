"""RegionMap: the label map of a batch, with everything that depends on labels alone, made once and used by every layer.

A region map is *hard* (every pixel in one region, or in none) or *soft* (weights per region). From a hard map come, for
every size asked: nearest-resized labels, areas, distinct label patterns, and the :class:`PatternPlan` that turns SPADE's
and SEAN's convolutions into small tables (docs/exact_algebra.md). Sizes are always taken from the full resolution with the
pixel rule of ``F.interpolate(mode="nearest")``. Volumes (B, D, H, W) are maps as well: h, w stand for d, h, w then, and 27
neighbours for 9.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .nearest import resize_area, resize_nearest
from .ops._common import (
    FLOATING,
    check_flag,
    check_integer,
    check_labels,
    check_tensor,
    check_values,
    described,
    fail,
)
from .ops.label_patterns import MAX_REGIONS, label_patterns

Size = tuple[int, ...]
Kind = Literal["shared", "image", "classes", "labels"]
Resize = Literal["nearest", "area"]
_T = TypeVar("_T")
_LEAST_SAMPLE = 512  # pixels; smaller maps are analysed whole, in a fraction of a millisecond
_HARDLY_REPEATS = 0.85  # distinct patterns per pixel of a sample, above which the whole map is taken to be like it


class Patterns(NamedTuple):
    """Distinct (2r+1) x (2r+1) label neighbourhoods; see :func:`mixsyn_fast.ops.label_patterns`."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    """(B, h, w) int32: row of every pixel."""
    patterns: Tensor
    """(P, (2r+1)^2) int32 codes."""
    row_image: Tensor
    """(P,) int32: image of the row's first appearance."""


class PatternPlan(NamedTuple):
    """What SPADE's and SEAN's tables need from the labels at one size; index tensors of gather-sums, int32.

    With Q distinct 3x3 patterns of the batch, Z distinct 3x3 patterns per image, P rows (distinct 5x5 patterns):
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    """(B, h, w): row of every pixel, in [0, P)."""
    hidden: Tensor
    """(Q, 9): SPADE's first convolution, indices into its table of (9 taps x codes) rows."""
    rows: Tensor
    """(P, 9): SPADE's second convolution, indices into its table of ((Q + 1) patterns x 9 taps) rows; pattern Q is the
    zero hidden value outside the image."""
    style: Tensor
    """(Z, 9): SEAN's style convolution, indices into its table of ((B * N + 1) codes x 9 taps) rows, N being the number of
    regions present (:meth:`RegionMap.present`); code B * N is zero."""
    centre: Tensor
    """(P,): the 3x3 pattern, in [0, Z), at the centre of every row."""


class ClassPlan(NamedTuple):
    """As :class:`PatternPlan` for SPADE on a map of vectors, one per image and region: all patterns are per image.

    With Z distinct 3x3 patterns per image and P rows (distinct 5x5 patterns per image):
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    """(B, h, w): row of every pixel, in [0, P)."""
    hidden: Tensor
    """(Z, 9): the first convolution, indices as :attr:`PatternPlan.style`."""
    rows: Tensor
    """(P, 9): the second convolution, indices into its table of ((Z + 1) patterns x 9 taps) rows; pattern Z is the zero
    hidden value outside the image."""


class Plan(NamedTuple):
    """An analysis of a hard map that a layer will ask for, to be made beforehand by :meth:`RegionMap.prepare`."""

    size: Size
    """(h, w)."""
    kind: Kind
    """"shared": :meth:`RegionMap.plan`, patterns of the batch (SPADE); "image": the same per image (SEAN's styles);
    "classes": :meth:`RegionMap.class_plan` (SPADE on vectors of classes); "labels": :meth:`RegionMap.labels_at` alone."""
    edges: bool = True
    """False: of the map without its edges, for networks that do not know them."""


class RegionMap:
    """Labels or soft weights of a batch of images, with a cache of what layers derive from them.

    Args:
        labels: (B, H, W), or (B, D, H, W), integer, values in [0, num_regions), or ``ignore_index``.
        num_regions: K, 1 to 512; an integer of Python or numpy, or a tensor of no dimensions.
        ignore_index: label of pixels that belong to no region (an all-zero one-hot). They add nothing to a neighbour but
            have a hidden value of their own, relu(bias + ...): another case than outside the image.
        edges: as labels, bool, integer or floating with values 0 and 1: one binary channel behind the one-hot map.

    Raises:
        ValueError: wrong rank or shape, labels out of range, edges not binary, sparse or meta tensors.
        TypeError: an argument of another type, labels not integer.

    Everything is checked once, here. Instances pickle (data-loader workers), move with :meth:`to` and pin with
    :meth:`pin_memory`; the cache travels too. Do not modify the tensors of a map: make a new map.
    """

    def __init__(
        self,
        labels: Tensor,
        num_regions: int,
        *,
        ignore_index: int | None = None,
        edges: Tensor | None = None,
    ) -> None:
        check_labels("RegionMap", "labels", labels, volumes=True)
        check_values("RegionMap", "labels", labels)
        num_regions = check_integer("RegionMap", "num_regions", num_regions, 1, MAX_REGIONS)
        if ignore_index is not None:
            ends = torch.iinfo(torch.int64)
            expected = "None or an integer of 64 bits"
            ignore_index = check_integer("RegionMap", "ignore_index", ignore_index, ends.min, ends.max, expected)
        wide = labels.to(torch.int64)
        ignored = wide == ignore_index if ignore_index is not None else None
        wrong = (wide < 0) | (wide >= num_regions)
        if ignored is not None:
            wrong &= ~ignored
        if bool(wrong.any()):
            at = tuple(wrong.nonzero()[0].tolist())
            also = f" or ignore_index {ignore_index}" if ignore_index is not None else ""
            fail("RegionMap", "labels", f"values in [0, {num_regions}){also}", f"{int(wide[at])} at {at}")
        if ignored is not None:
            wide = torch.where(ignored, -1, wide)
        self._setup(num_regions, labels=wide.to(torch.int32).contiguous(), edges=self._binary(edges, labels))

    @staticmethod
    def _binary(edges: Tensor | None, labels: Tensor) -> Tensor | None:
        if edges is None:
            return None
        check_tensor("RegionMap", "edges", edges)
        if edges.shape != labels.shape:
            fail("RegionMap", "edges", f"shape {tuple(labels.shape)}", f"shape {tuple(edges.shape)}")
        if edges.device != labels.device:
            fail("RegionMap", "edges", f"device {labels.device}", f"device {edges.device}")
        if edges.dtype != torch.bool and not bool(((edges == 0) | (edges == 1)).all()):
            fail("RegionMap", "edges", "values 0 and 1", "other values")
        return (edges != 0).contiguous()

    def _setup(
        self,
        num_regions: int,
        labels: Tensor | None = None,
        edges: Tensor | None = None,
        weights: Tensor | None = None,
        resize: Resize = "nearest",
    ) -> None:
        self.num_regions = num_regions
        self.resize: Resize = resize
        self.labels = labels
        self.edges = edges
        self.weights = weights
        self._cache: dict[Any, Any] = {}
        self._bare: RegionMap | None = None

    @classmethod
    def from_onehot(cls, mask: Tensor, *, num_regions: int | None = None, keep_mask: bool = False) -> RegionMap:
        """Read a one-hot mask; an all-zero pixel belongs to no region.

        Args:
            mask: (B, K, H, W) or (B, K, D, H, W), values 0 and 1, at most one 1 per pixel. With one channel more than
                ``num_regions`` the last one is the edge channel.
            num_regions: K; None for all channels.
            keep_mask: let the mask itself, if floating, be what :meth:`onehot` returns at full resolution.

        Returns:
            A hard map.

        Raises:
            ValueError: wrong rank, or a pixel that is not one-hot.
        """
        check_tensor("RegionMap", "mask", mask)
        if mask.dim() not in (4, 5):
            fail("RegionMap", "mask", "shape (B, K, H, W) or (B, K, D, H, W)", f"shape {tuple(mask.shape)}")
        check_values("RegionMap", "mask", mask)
        regions = check_integer(
            "RegionMap", "num_regions", mask.shape[1] if num_regions is None else num_regions, 1, MAX_REGIONS
        )
        if mask.shape[1] - regions not in (0, 1):
            fail("RegionMap", "mask", f"{regions} channels, or one more for edges", mask.shape[1])
        onehot = mask[:, :regions]
        found = labels_of_onehot(onehot)
        if found is None:
            fail(
                "RegionMap",
                "mask",
                "values 0 and 1, at most one 1 per pixel",
                "a soft or overlapping mask (see RegionMap.soft)",
            )
        assert found is not None
        made = cls.__new__(cls)
        made._setup(
            regions,
            labels=found,
            edges=cls._binary(mask[:, regions] if mask.shape[1] > regions else None, found),
        )
        if keep_mask and mask.is_floating_point():
            made._cache["onehot", made.size, mask.dtype] = mask
        return made

    @classmethod
    def soft(cls, weights: Tensor, *, check: bool = True, resize: Resize = "nearest") -> RegionMap:
        """Make a soft map: every pixel is a weighted mixture of regions. Gradients reach the weights.

        Args:
            weights: (B, K, H, W) or (B, K, D, H, W) floating, finite and not negative; they need not sum to one.
            check: look at the values, which waits for a GPU. False for what a network has just made by a softmax: values
                that are not finite then show in its losses.
            resize: how the weights are brought to another size: "nearest", the rule of hard maps, or "area", the mean over
                the pixels below, which loses no region and keeps every region's share (docs/exact_algebra.md, 5).

        Returns:
            A soft map.

        Raises:
            ValueError: wrong rank, a negative weight or one that is not finite, another `resize`.
            TypeError: weights not floating.
        """
        check_tensor("RegionMap", "weights", weights)
        check = check_flag("RegionMap.soft", "check", check)
        if resize not in get_args(Resize):
            fail("RegionMap", "resize", "'nearest' or 'area'", repr(resize))
        if weights.dim() not in (4, 5):
            fail("RegionMap", "weights", "shape (B, K, H, W) or (B, K, D, H, W)", f"shape {tuple(weights.shape)}")
        if weights.dtype not in FLOATING:
            fail("RegionMap", "weights", "a floating dtype", weights.dtype, TypeError)
        if not 1 <= weights.shape[1] <= MAX_REGIONS:
            fail("RegionMap", "weights", f"1 to {MAX_REGIONS} channels", weights.shape[1])
        if check:
            check_values("RegionMap", "weights", weights)
        if check and weights.numel() and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            fail("RegionMap", "weights", "finite values, not negative", "other values")
        if weights.is_inference():  # the map may be used in training later
            with torch.inference_mode(False):
                weights = weights.clone()
        made = cls.__new__(cls)
        made._setup(weights.shape[1], weights=weights, resize=resize)
        return made

    def without_edges(self) -> RegionMap:
        """Return the map for networks that do not know edges: itself where it has none, else always the same other map."""
        if self.edges is None:
            return self
        if self._bare is None:
            self._bare = RegionMap.__new__(RegionMap)
            self._bare._setup(self.num_regions, labels=self.labels)
        return self._bare

    # --- properties ---------------------------------------------------------------------------------------------------

    @property
    def _base(self) -> Tensor:
        base = self.labels if self.labels is not None else self.weights
        assert base is not None
        return base

    @property
    def is_soft(self) -> bool:
        """True for a map of weights."""
        return self.weights is not None

    @property
    def batch_size(self) -> int:
        """B."""
        return self._base.shape[0]

    @property
    def size(self) -> Size:
        """(H, W) of the full resolution."""
        return tuple(int(side) for side in self._base.shape[2 if self.is_soft else 1 :])

    @property
    def device(self) -> torch.device:
        """Device of the map."""
        return self._base.device

    @property
    def num_channels(self) -> int:
        """Channels of :meth:`onehot`: K, and one more with edges."""
        return self.num_regions + (self.edges is not None)

    def __repr__(self) -> str:
        kind = "soft" if self.is_soft else "hard"
        edges = ", edges" if self.edges is not None else ""
        return (
            f"RegionMap({kind}, batch={self.batch_size}, size={'x'.join(map(str, self.size))}, "
            f"num_regions={self.num_regions}{edges}, device={self.device}, cached={len(self._cache)})"
        )

    # --- movement -----------------------------------------------------------------------------------------------------

    def _mapped(self, function: Any) -> RegionMap:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*(apply(v) for v in value))
            return value

        made = RegionMap.__new__(RegionMap)
        made._setup(self.num_regions, apply(self.labels), apply(self.edges), apply(self.weights), self.resize)
        made._cache = {key: apply(value) for key, value in self._cache.items()}
        if self._bare is not None:
            bare = made.without_edges()
            bare._cache = {key: apply(value) for key, value in self._bare._cache.items()}
        return made

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> RegionMap:
        """Return the map, with all that is cached, on another device (itself when it is there already)."""
        if torch.device(device) == self.device:
            return self
        return self._mapped(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RegionMap:
        """Return the map in page-locked memory; data loaders with ``pin_memory=True`` call this."""
        return self._mapped(lambda t: t.pin_memory())

    # --- levels -------------------------------------------------------------------------------------------------------

    def _hard(self, what: str) -> Tensor:
        if self.labels is None:
            raise TypeError(f"RegionMap.{what}: expected a hard map (labels), got a soft one (weights)")
        return self.labels

    def _cached(self, key: Hashable, make: Callable[[], _T]) -> _T:
        if key not in self._cache:
            # a map cached while serving (inference_mode) may be used in training later
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = make()
        value: _T = self._cache[key]
        return value

    def _checked(self, size: Size | None) -> Size:
        if size is None:
            return self.size
        expected = "two positive integers (h, w)" if len(self.size) == 2 else "three positive integers (d, h, w)"
        if not isinstance(size, Sequence):
            fail("RegionMap", "size", expected, described(size), TypeError)
        if len(size) != len(self.size):
            fail("RegionMap", "size", expected, tuple(size))
        return tuple(check_integer("RegionMap", "size", side, 1, None, expected) for side in size)

    def labels_at(self, size: Size | None = None) -> Tensor:
        """Return (B, h, w) int32 labels at a size, -1 where a pixel belongs to no region."""
        labels, size = self._hard("labels_at"), self._checked(size)
        return self._cached(("labels", size), lambda: resize_nearest(labels, size))

    def edges_at(self, size: Size | None = None) -> Tensor | None:
        """Return (B, h, w) bool edges at a size, or None."""
        edges, size = self.edges, self._checked(size)
        return None if edges is None else self._cached(("edges", size), lambda: resize_nearest(edges, size))

    def weights_at(self, size: Size | None = None) -> Tensor:
        """Return (B, K, h, w) weights of a soft map at a size, resized as :attr:`resize` says; differentiable."""
        if self.weights is None:
            raise TypeError("RegionMap.weights_at: expected a soft map, got a hard one")
        weights, size = self.weights, self._checked(size)
        # not cached: the graph of the weights belongs to one forward pass
        return resize_nearest(weights, size) if self.resize == "nearest" else resize_area(weights, size)

    def onehot(self, size: Size | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (B, K, h, w), one more channel with edges: one-hot labels, or the weights of a soft map."""
        size = self._checked(size)
        if self.is_soft:
            return self.weights_at(size).to(dtype)

        def make() -> Tensor:
            labels = self.labels_at(size)
            regions = torch.arange(self.num_regions, device=labels.device, dtype=torch.int32)
            planes = labels[:, None] == regions.reshape(1, -1, *[1] * len(size))
            edges = self.edges_at(size)
            return (planes if edges is None else torch.cat((planes, edges[:, None]), 1)).to(dtype)

        return self._cached(("onehot", size, dtype), make)

    def areas(self, size: Size | None = None) -> Tensor:
        """Return (B, K) float32 pixels (or sum of weights) per region at a size."""
        size = self._checked(size)
        if self.is_soft:
            return self.weights_at(size).flatten(2).sum(2, dtype=torch.float32)

        def make() -> Tensor:
            labels = self.labels_at(size).to(torch.int64).flatten(1)
            counts = torch.zeros(self.batch_size, self.num_regions + 1, dtype=torch.float32, device=labels.device)
            counts.scatter_add_(1, labels + 1, torch.ones_like(labels, dtype=torch.float32))
            return counts[:, 1:].contiguous()

        return self._cached(("areas", size), make)

    @property
    def present(self) -> tuple[int, ...]:
        """Regions with at least one pixel in some image of the batch, at full resolution (one host synchronisation)."""
        labels = self._hard("present")

        def make() -> tuple[int, ...]:
            counts = torch.bincount((labels + 1).reshape(-1), minlength=self.num_regions + 1)[1:]
            return tuple(counts.nonzero()[:, 0].tolist())

        return self._cached(("present",), make)

    @property
    def present_index(self) -> Tensor:
        """:attr:`present` as a tensor (N,) int64 on the device of the map, to select rows by without waiting for it."""
        present = self.present
        return self._cached(("present_index",), lambda: torch.tensor(present, dtype=torch.int64, device=self.device))

    def patterns(self, size: Size | None = None, radius: int = 2, per_image: bool = False) -> Patterns:
        """Return the distinct label neighbourhoods at a size.

        Args:
            size: (h, w), None for full resolution.
            radius: 0, 1 or 2.
            per_image: rows are not shared between images.

        Raises:
            TypeError: on a soft map.
        """
        size = self._checked(size)
        labels = self.labels_at(size)
        # one image: both kinds are the same
        key = ("patterns", size, radius, per_image and self.batch_size > 1)
        return self._cached(
            key,
            lambda: Patterns(*label_patterns(labels, self.num_regions, radius, edges=self.edges_at(size), per_image=key[3])),
        )

    def distinct_share(self, size: Size | None = None, radius: int = 2) -> float:
        """Return a cheap estimate from below of the distinct label neighbourhoods per pixel at a size, in [0, 1].

        On a large map whose neighbourhoods, in a band of an eighth of its rows, nearly all differ (label noise), that share;
        otherwise 0, for a few rows say little of how often the others repeat theirs.

        Args:
            size: (h, w), None for full resolution.
            radius: 0, 1 or 2.
        """
        labels, size = self._hard("distinct_share"), self._checked(size)
        band = size[0] // 8
        if labels.shape[0] * band * prod(size[1:]) < _LEAST_SAMPLE:
            return 0.0

        def make() -> float:
            first = (size[0] - band) // 2
            sample = self.labels_at(size)[:, first : first + band].contiguous()
            edges = self.edges_at(size)
            edges = None if edges is None else edges[:, first : first + band].contiguous()
            share = len(label_patterns(sample, self.num_regions, radius, edges=edges)[1]) / sample.numel()
            return share if share > _HARDLY_REPEATS else 0.0

        return self._cached(("distinct_share", size, radius), make)

    def plan(self, size: Size | None = None, per_image: bool = False) -> PatternPlan:
        """Return the index tensors of SPADE's (and, ``per_image``, SEAN's) tables at a size; see :class:`PatternPlan`."""
        size = self._checked(size)
        key = ("plan", size, per_image and self.batch_size > 1)
        return self._cached(key, lambda: self._make_plan(size, key[2]))

    def class_plan(self, size: Size | None = None) -> ClassPlan:
        """Return the index tensors of SPADE's table on a map of per-image class vectors; see :class:`ClassPlan`."""
        size = self._checked(size)

        def make() -> ClassPlan:
            wide, own = self.patterns(size, 2, True), self.patterns(size, 1, True)
            pixel = self._pixel_of_row(wide)
            return ClassPlan(wide.index, self._style_index(own), self._row_index(pixel, size, own))

        return self._cached(("class_plan", size), make)

    def prepare(self, plans: Iterable[Plan]) -> None:
        """Make now what layers will ask for later. It is kept and travels with the map, as all that is cached.

        Args:
            plans: what they will ask for.

        Raises:
            TypeError: on a soft map.
            ValueError: a plan of another kind.
        """
        for size, kind, edges in plans:
            if kind not in get_args(Kind):
                fail("RegionMap", "plans", f"kinds among {', '.join(get_args(Kind))}", repr(kind))
            regions = self if edges else self.without_edges()
            regions.labels_at(size)
            if kind == "labels":
                continue
            if regions.distinct_share(size, 2):  # what a layer looks at before it asks for a plan
                regions.distinct_share(size, 1)
            if kind == "classes":
                regions.class_plan(size)
            else:
                regions.plan(size, kind == "image")

    @staticmethod
    def _pixel_of_row(wide: Patterns) -> Tensor:
        """Return (P,): a pixel of every row. Any pixel stands for its row: all have the same 5x5 labels."""
        pixel = torch.empty(len(wide.patterns), dtype=torch.int64, device=wide.index.device)
        flat = wide.index.reshape(-1).to(torch.int64)
        pixel[flat] = torch.arange(len(flat), device=flat.device)
        return pixel

    def _row_index(self, pixel: Tensor, size: Size, fine: Patterns) -> Tensor:
        """(P, 9) indices of the second convolution: the 3x3 patterns of ``fine`` around ``pixel``, times 9, plus the tap."""
        # a frame of one pixel holds the row of what is outside the image
        framed = F.pad(fine.index, (1, 1) * len(size), value=len(fine.patterns))
        offset = torch.arange(3, device=self.device)
        corner, around, pixels = pixel // prod(size), offset[:1], prod(size)
        for side in size:
            pixels //= side
            corner = corner * (side + 2) + pixel // pixels % side
            around = (around[:, None] * (side + 2) + offset).reshape(-1)
        return framed.reshape(-1)[corner[:, None] + around] * len(around) + self._taps(len(around))

    def _taps(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device, dtype=torch.int32)

    def _style_index(self, own: Patterns) -> Tensor:
        """(Z, 9) indices of a convolution of vectors per image and region; see :attr:`PatternPlan.style`."""
        regions, device = self.num_regions, self.device
        label = own.patterns % (regions + 2)  # a map of vectors does not see edges
        rank = torch.full((regions + 2,), -1, dtype=torch.int32, device=device)
        rank[self.present_index] = torch.arange(len(self.present), dtype=torch.int32, device=device)
        rank = rank[label.to(torch.int64)]
        owner = own.row_image[:, None] * len(self.present) + rank
        count = own.patterns.shape[1]
        return torch.where(rank >= 0, owner, self.batch_size * len(self.present)) * count + self._taps(count)

    def _make_plan(self, size: Size, per_image: bool) -> PatternPlan:
        wide = self.patterns(size, 2, per_image)
        shared = self.patterns(size, 1, False)
        own = self.patterns(size, 1, per_image)
        pixel = self._pixel_of_row(wide)
        codes = (self.num_regions + 2) * (2 if self.edges is not None else 1)
        hidden = shared.patterns + self._taps(shared.patterns.shape[1]) * codes
        centre = own.index.reshape(-1)[pixel]
        return PatternPlan(wide.index, hidden, self._row_index(pixel, size, shared), self._style_index(own), centre)


def labels_of_onehot(onehot: Tensor) -> Tensor | None:
    """Return (B, H, W) int32 labels (-1: all zero) of a one-hot mask, or None when it is not one.

    Args:
        onehot: (B, K, H, W) or (B, K, D, H, W) of any dtype.
    """
    batch, regions, *volume = onehot.shape
    if onehot.numel() == 0:
        return torch.full((batch, *volume), -1, dtype=torch.int32, device=onehot.device)
    # Of a one-hot mask, the sum of (k + 1) times channel k is the label and one. Whatever the mask, it is one-hot if and
    # only if there is a 1 in every channel that this names, and nothing in any other: two passes over the mask in all. The
    # sum is one of two digits, so that no precision of a matrix product (autocast, TF32) rounds it.
    mask = onehot if onehot.dtype in (torch.float32, torch.float64) else onehot.to(torch.float32)
    number = torch.arange(1, regions + 1, device=mask.device)
    digits = torch.stack((number // 32, number % 32)).to(mask.dtype)
    if mask.stride(1) == 1:
        named = torch.matmul(mask.movedim(1, -1).reshape(-1, regions), digits.t()).unflatten(0, (batch, -1)).mT
    else:
        named = torch.matmul(digits, mask.reshape(batch, regions, prod(volume)))
    tens, ones = named.to(torch.float32).nan_to_num(0).clamp(0, 32).to(torch.int64).unbind(1)
    labels: Tensor = (tens * 32 + ones).clamp(max=regions).view(batch, *volume) - 1
    there = mask.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    if not bool((torch.where(labels >= 0, there, 1) == 1).all() & (torch.count_nonzero(mask) == (labels >= 0).sum())):
        return None
    return labels.to(torch.int32)


def as_region_map(regions: RegionMap | Tensor, num_regions: int | None = None) -> RegionMap:
    """Return a RegionMap as it is, or make one from a one-hot or soft mask (B, K, H, W) or (B, K, D, H, W).

    Args:
        regions: a map, or a floating mask. A mask that needs a gradient, or is not one-hot, becomes a soft map. Where all
            channels are not one-hot but all except the last are, and the last is binary, that one is the edge channel.
        num_regions: K, where it is known.

    Raises:
        TypeError: anything else.
        ValueError: a sparse or a nested tensor.
    """
    if isinstance(regions, RegionMap):
        return regions
    check_tensor("as_region_map", "regions", regions, "a RegionMap or a tensor (B, K, H, W)")
    if regions.dim() in (4, 5) and not regions.requires_grad:
        channels = regions.shape[1]
        for count in (channels, channels - 1) if num_regions is None else (num_regions,):
            if count < 1 or channels - count not in (0, 1):
                continue
            labels = labels_of_onehot(regions[:, :count])
            edges = regions[:, count] if channels > count else None
            if labels is not None and (edges is None or bool(((edges == 0) | (edges == 1)).all())):
                made = RegionMap.__new__(RegionMap)
                made._setup(count, labels=labels, edges=None if edges is None else (edges != 0).contiguous())
                return made
    return RegionMap.soft(regions)
