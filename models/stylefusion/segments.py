r"""Segments of the images of a generator: clusters of deep pixels, named by a person (Sec. 4.2, Appendix A.5).

A *deep pixel* is what all convolutions of the generator read at one place: the modulated inputs of the C channels, resized
to one side and laid side by side. With :math:`\sigma_j` the standard deviation of channel j, so that no layer
drowns the others, the distance of a deep pixel x to a cluster's centre :math:`c_k` is

.. math::

    d_k = \frac1C \sum_j \Bigl(\frac{x_j - c_{kj}}{\sigma_j}\Bigr)^2

A pixel belongs to the cluster of least distance, and softly to all of them by softmax of :math:`-d / T`. Neither needs
:math:`\sum_j x_j^2 / \sigma_j^2`, which all clusters share; what is left is linear in x, so a layer's part is one product
at the layer's own size and only K maps are resized (docs/exact_algebra.md, section 10). No deep pixel is ever made.

Clusters are found once per generator by Ward's method over a sample of deep pixels, looked at, and named; clusters of one
name are one region.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast.reading import read_text
from mixsyn_fast.writing import write_whole

from ..model_file import digest_of

if TYPE_CHECKING:
    from ..stylegan2 import Generator

Region = str | Collection[str]
"""A name of clusters, or several whose union is meant."""

_FORMAT, _VERSION = "mixsyn_fast.stylefusion.segments", 1
_ODDS = 10.0  # at the median pixel the nearest cluster is so many times as likely as the next one


def resized(maps: Tensor, side: int) -> Tensor:
    """Resize (B, C, h, w) to a side: bilinear to a larger one, means over areas to a smaller one. Linear in the maps."""
    if maps.shape[2:] == (side, side):
        return maps
    if maps.shape[2] > side:
        return F.interpolate(maps, size=(side, side), mode="area")
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


def deep_pixels(activations: Sequence[Tensor], side: int) -> Tensor:
    """Lay all activations side by side at one size: the dense form, 4 C side^2 bytes an image (99 MB at 64 and C = 6,048).

    Args:
        activations: (B, c, h, w) of the conv layers.
        side: of the result.

    Returns:
        (B, C, side, side) float32, C the sum of all c.
    """
    return torch.cat([resized(layer.float(), side) for layer in activations], 1)


@dataclass(frozen=True, eq=False)
class Segments:
    """Clusters of deep pixels of one generator, with their names.

    Attributes:
        centres: (K, C) float32, the mean deep pixel of every cluster, in the activations' own units.
        scale: (C,) float32, 1 / standard deviation of every channel; 0 for one that never changes.
        names: region of every cluster; clusters of one name are one region.
        channels: widths of the conv layers whose sum is C.
        side: of the maps, in pixels.
        temperature: T of the soft masks.
        generator: digest of the generator whose clusters these are, see :func:`digest_of`.
        shares: part of the sampled pixels that every cluster has.

    Raises:
        ValueError: sizes that do not fit each other, or a name that is empty.
    """

    centres: Tensor
    scale: Tensor
    names: tuple[str, ...]
    channels: tuple[int, ...]
    side: int
    temperature: float
    generator: str
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check sizes and names."""
        clusters, width = len(self.names), sum(self.channels)
        for name, shape, expected in (
            ("centres", tuple(self.centres.shape), (clusters, width)),
            ("scale", tuple(self.scale.shape), (width,)),
            ("shares", (len(self.shares),), (clusters,)),
        ):
            if shape != expected:
                raise ValueError(f"{name}: expected shape {expected}, got {shape}")
        if not all(isinstance(name, str) and name.strip() == name and name for name in self.names):
            raise ValueError(f"names: expected a name for every cluster, got {list(self.names)}")
        if self.side < 1 or not 0 < self.temperature < math.inf:
            raise ValueError(f"side, temperature: expected positive numbers, got {self.side}, {self.temperature}")

    def __repr__(self) -> str:
        return f"Segments({len(self.names)} clusters, regions={self.regions}, side={self.side})"

    # --- names ----------------------------------------------------------------------------------------------------------

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, in the order of their first clusters."""
        return tuple(dict.fromkeys(self.names))

    def named(self, names: Mapping[int | str, str]) -> Segments:
        """Give clusters, or all clusters of a region, another name; those that get one name are merged.

        Args:
            names: number of a cluster, or name of a region, to the new name.

        Raises:
            ValueError: there is no such cluster or region, or a name is empty.
        """
        for key in names:
            known = 0 <= key < len(self.names) if isinstance(key, int) else key in self.names
            if not known:
                expected = f"clusters 0 to {len(self.names) - 1} or regions among {', '.join(self.regions)}"
                raise ValueError(f"names: expected {expected}, got {key!r}")
        found = [names.get(i, names.get(name, name)) for i, name in enumerate(self.names)]
        return replace(self, names=tuple(found))

    def membership(self, regions: Sequence[Region] | None = None) -> Tensor:
        """Return which clusters make which region: (R, K) float32 of 0 and 1, on the CPU.

        Args:
            regions: names, or collections of names whose union is meant: names without a cluster add nothing. None: all.

        Raises:
            ValueError: a region without a cluster.
        """
        rows = []
        for region in self.regions if regions is None else regions:
            names = {region} if isinstance(region, str) else set(region)
            row = [float(name in names) for name in self.names]
            if not any(row):
                raise ValueError(
                    f"regions: expected clusters named {' or '.join(sorted(names))}, got none (there are "
                    f"{', '.join(self.regions)})"
                )
            rows.append(row)
        return torch.tensor(rows)

    # --- maps -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _products(self) -> list[tuple[Tensor, Tensor] | None]:
        """Per layer weight (K, c, 1, 1) and bias (K) on the centres' device: 2 c_k / (C sigma^2), -c_k^2 / (C sigma^2).

        None: a layer none of whose channels counts.
        """
        found: list[tuple[Tensor, Tensor] | None] = []
        for centres, scale in zip(
            self.centres.split(self.channels, 1), self.scale.double().square().split(self.channels), strict=True
        ):
            scaled = centres.double() * scale / self.scale.numel()
            bias = -(scaled * centres.double()).sum(1)
            counts = bool(scale.any())
            found.append(((2 * scaled).float()[:, :, None, None].contiguous(), bias.float()) if counts else None)
        return found

    def _check(self, activations: Sequence[Tensor]) -> list[Tensor]:
        """Return the activations of the conv layers, which come first."""
        widths = tuple(layer.shape[1] for layer in activations[: len(self.channels)])
        if widths != self.channels:
            raise ValueError(f"activations: expected conv layers of widths {self.channels} first, got {widths}")
        return list(activations[: len(self.channels)])

    def nearness(self, activations: Sequence[Tensor]) -> Tensor:
        """Return minus the distance of every pixel to every centre, up to what all clusters of a pixel share.

        Args:
            activations: of :meth:`Generator.activations`, (B, c, h, w) a layer, conv layers first; further layers are not
                read. Differentiable.

        Returns:
            (B, K, side, side) float32.

        Raises:
            ValueError: layers of other widths.
        """
        layers, sums = self._check(activations), dict[int, Tensor]()
        for layer, product in zip(layers, self._products, strict=True):
            if product is None:
                continue
            weight, bias = product
            with torch.autocast(layer.device.type, enabled=False):
                if layer.shape[2] > self.side:  # fewer pixels for the product
                    layer = resized(layer, self.side)
                part = F.conv2d(layer.float(), weight.to(layer.device), bias.to(layer.device))
            side = part.shape[2]
            sums[side] = sums[side] + part if side in sums else part  # resizing is linear: once per side
        if not sums:
            return layers[0].new_zeros((layers[0].shape[0], len(self.names), self.side, self.side), dtype=torch.float32)
        first, *others = (resized(part, self.side) for part in sums.values())
        return sum(others, first)

    def assign(self, activations: Sequence[Tensor]) -> Tensor:
        """Return the number of every pixel's nearest cluster, (B, side, side) int64; see :meth:`nearness`."""
        return self.nearness(activations).argmax(1)

    def masks(
        self,
        activations: Sequence[Tensor],
        regions: Sequence[Region] | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Return soft masks of regions (Appendix A.5): soft-min over the distances, summed over the clusters of a region.

        Args:
            activations: see :meth:`nearness`. Differentiable.
            regions: see :meth:`membership`; None: all of them, whose masks sum to 1.
            temperature: of the soft-min; None: the file's.

        Returns:
            (B, R, side, side) float32 in [0, 1].

        Raises:
            ValueError: layers of other widths, a region without a cluster, or a temperature that is not positive.
        """
        temperature = self.temperature if temperature is None else temperature
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        member = self.membership(regions)
        chances = torch.softmax(self.nearness(activations) / temperature, 1)
        return torch.einsum("rk,bkhw->brhw", member.to(chances.device), chances)

    def hard_masks(self, activations: Sequence[Tensor], regions: Sequence[Region] | None = None) -> Tensor:
        """Return masks of 0 and 1 by the nearest cluster, (B, R, side, side) float32; arguments as of :meth:`masks`."""
        member = self.membership(regions)
        nearest = self.assign(activations)
        return member.to(nearest.device)[:, nearest].movedim(0, 1)

    def to(self, device: torch.device | str) -> Segments:
        """Return the same on another device."""
        return replace(self, centres=self.centres.to(device), scale=self.scale.to(device))

    # --- file -----------------------------------------------------------------------------------------------------------

    def check(self, generator: nn.Module) -> None:
        """Raise ValueError when these are the clusters of another generator."""
        found = digest_of(generator)
        if found != self.generator:
            raise ValueError(
                f"segments: expected clusters of this generator ({found[:12]}), got those of another one "
                f"({self.generator[:12]}): find them anew"
            )

    def to_json(self) -> str:
        """Return the text of a file: a line per cluster, whose region people may edit, then the centres."""
        data = b"".join(_bytes(t) for t in (self.centres, self.scale))
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "generator": self.generator,
            "side": self.side,
            "temperature": self.temperature,
            "channels": self.channels,
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        rows = [
            json.dumps({"cluster": i, "region": name, "share": round(share, 4)}, ensure_ascii=False)
            for i, (name, share) in enumerate(zip(self.names, self.shares, strict=True))
        ]
        lines += [' "clusters": [', ",\n".join(f"  {row}" for row in rows), " ],"]
        lines += [f' "sha256": "{hashlib.sha256(data).hexdigest()}",', f' "data": "{base64.b64encode(data).decode()}"']
        return "\n".join(["{", *lines, "}"]) + "\n"

    @staticmethod
    def from_json(text: str) -> Segments:
        """Read the text of :meth:`to_json`, perhaps with other names of regions; ValueError names what is wrong in it."""
        return _read(text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, whole or not at all; raises OSError."""
        write_whole(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Segments:
        """Read a file of :meth:`save`, perhaps with other names of regions.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another file, or a damaged one; the message names the file, and what in it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{os.fspath(path)}: no such file (expected a JSON file of Segments.save)")
        try:
            return _read(read_text(path))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def _bytes(values: Tensor) -> bytes:
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype="<f4").tobytes()


def _read(text: str) -> Segments:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got other text in line {error.lineno} ({error.msg})") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(f"expected a file of Segments.save, format {_FORMAT} and version {_VERSION}, got another one")
    keys = {"format", "version", "generator", "side", "temperature", "channels", "clusters", "sha256", "data"}
    if set(content) != keys:
        missing, unknown = sorted(keys - set(content)), sorted(set(content) - keys)
        raise ValueError(f"expected the entries of Segments.save, got missing {missing}, unknown {unknown}")
    clusters, channels = content["clusters"], content["channels"]
    if not isinstance(clusters, list) or not all(isinstance(row, dict) for row in clusters):
        raise ValueError("clusters: expected a list of objects")
    for i, row in enumerate(clusters):
        if row.get("cluster") != i or not isinstance(row.get("region"), str) or not row["region"].strip():
            raise ValueError(f"clusters: expected cluster {i} with the name of its region, got {json.dumps(row)}")
    try:
        data = base64.b64decode(content["data"], validate=True)
    except (TypeError, binascii.Error):
        raise ValueError("data: expected base64, got something else: damaged") from None
    if hashlib.sha256(data).hexdigest() != content["sha256"]:
        raise ValueError("damaged: the SHA-256 of its centres is not that of what was written")
    try:
        width = sum(channels)
        numbers = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
        centres, scale = numbers.split([len(clusters) * width, width])
        return Segments(
            centres.view(-1, width).clone(),
            scale.clone(),
            tuple(row["region"].strip() for row in clusters),
            tuple(channels),
            content["side"],
            content["temperature"],
            str(content["generator"]),
            tuple(float(row.get("share", 0.0)) for row in clusters),
        )
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"expected {len(clusters)} centres of {channels} channels, got others ({error})") from None


# --- clustering ---------------------------------------------------------------------------------------------------------


def draw_codes(generator: Generator, count: int, truncation: float = 0.7, seed: int = 0, batch: int = 8) -> Iterator[Tensor]:
    """Yield style codes (b, S) of `count` random images, `batch` at a time; the same ones for the same seed and count."""
    device = next(generator.parameters()).device
    codes = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    for z in codes.split(batch):
        with torch.no_grad():
            yield generator.styles(generator.truncate(generator.map(z.to(device)), truncation))


@torch.no_grad()
def sample_deep_pixels(
    generator: Generator, codes: Iterable[Tensor], total: int, side: int, pixels: int, seed: int = 0
) -> Tensor:
    """Return a random sample of the deep pixels of images, layer by layer, so that memory stays that of the activations.

    Args:
        generator: makes the activations.
        codes: style codes (b, S), batch by batch.
        total: number of all codes.
        side: of the maps.
        pixels: P, at most total * side^2.
        seed: of the choice.

    Returns:
        (P, C) float32 on the CPU, in the order of images and places.

    Raises:
        ValueError: more pixels than there are.
    """
    there = total * side * side
    if not 1 <= pixels <= there:
        raise ValueError(f"pixels: expected 1 to {there} ({total} images of {side} x {side}), got {pixels}")
    chosen = np.sort(np.random.RandomState(seed).permutation(there)[:pixels])
    rows, first = [], 0
    for code in codes:
        last = first + code.shape[0] * side * side
        own = torch.from_numpy(chosen[(chosen >= first) & (chosen < last)] - first)
        _, activations = generator.activations(code)
        count = len(generator.layout.conv_layers)
        parts = []
        for layer in activations[:count]:
            flat = resized(layer.float(), side).movedim(1, 3).flatten(0, 2)
            parts.append(flat.index_select(0, own.to(flat.device)).cpu())
        rows.append(torch.cat(parts, 1))
        first = last
    return torch.cat(rows)


def ward(rows: Tensor, clusters: int) -> Tensor:
    """Return the cluster of every row by Ward's method, (P,) int64, numbered from the largest cluster down.

    Args:
        rows: (P, C). Distances are one matrix product, their tree needs 8 P^2 bytes.
        clusters: K, at most P.

    Raises:
        ValueError: a number of clusters out of range.
        ImportError: scipy is not installed.
    """
    if not 1 <= clusters <= rows.shape[0]:
        raise ValueError(f"clusters: expected 1 to {rows.shape[0]}, as many as pixels, got {clusters}")
    try:
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise ImportError("clusters need scipy: pip install 'mixsyn_fast[models]'") from error
    if clusters == 1 or rows.shape[0] == 1:
        return torch.zeros(rows.shape[0], dtype=torch.int64)
    centred = rows - rows.mean(0)
    squares = centred.square().sum(1)
    apart = (squares[:, None] + squares - 2 * centred @ centred.T).clamp_(min=0).sqrt_().fill_diagonal_(0)
    tree = hierarchy.linkage(squareform(apart.double().numpy(), checks=False), "ward")
    labels = torch.from_numpy(hierarchy.fcluster(tree, clusters, "maxclust").astype(np.int64)) - 1
    order = torch.bincount(labels).argsort(descending=True, stable=True)
    numbers = torch.empty_like(order)
    numbers[order] = torch.arange(len(order))
    return numbers[labels]


def find_segments(
    generator: Generator,
    *,
    clusters: int = 20,
    images: int = 100,
    pixels: int = 4000,
    side: int = 0,
    truncation: float = 0.7,
    seed: int = 0,
    batch: int = 4,
    from_side: int = 16,
) -> Segments:
    """Cluster the deep pixels of random images (Sec. 4.2). Regions are named cluster_0, cluster_1 ... by size.

    Args:
        generator: whose images they are.
        clusters: K.
        images: number of images.
        pixels: of all of them that are clustered; Ward's method takes memory and time by their square.
        side: of the maps; 0: 64, or the images' own where they are smaller.
        truncation: of the codes.
        seed: of codes and pixels.
        batch: images at a time.
        from_side: layers of a smaller side do not count (their scale is 0), for their pattern hardly differs between images,
            and clusters become places in the picture; 0: all layers, as the paper says.

    Raises:
        ValueError: a number out of range.
        ImportError: scipy is not installed.
    """
    side = side or min(64, generator.config.size)
    codes = draw_codes(generator, images, truncation, seed, batch)
    rows = sample_deep_pixels(generator, codes, images, side, pixels, seed)
    deviation = rows.std(0, unbiased=False)
    # rounding alone makes a constant channel's deviation about 1e-7 of its size
    constant = deviation <= 1e-5 * rows.abs().amax(0)
    scale = torch.where(constant, 0, 1 / deviation.clamp(min=torch.finfo(torch.float32).tiny))
    channels = tuple(generator.layout.channels[i] for i in generator.layout.conv_layers)
    sides = _sides(generator)
    for part, own in zip(scale.split(channels), sides, strict=True):
        part.mul_(float(own >= min(from_side, max(sides))))
    labels = ward(rows * scale, clusters)
    count = torch.bincount(labels)
    centres = torch.zeros(len(count), rows.shape[1]).index_add_(0, labels, rows) / count[:, None]
    found = Segments(
        centres,
        scale,
        tuple(f"cluster_{i}" for i in range(len(count))),
        channels,
        side,
        1.0,
        digest_of(generator),
        tuple((count / len(labels)).tolist()),
    )
    return replace(found, temperature=_temperature(found, rows))


def _sides(generator: Generator) -> list[int]:
    """Sides of what the convolutions read: 4, 4, 8, 8, 16 ..., for every second one doubles the side."""
    return [4 << (i // 2) for i in range(len(generator.layout.conv_layers))]


def _temperature(segments: Segments, rows: Tensor) -> float:
    """Return the temperature at which the median pixel's nearest cluster is _ODDS times as likely as the next one."""
    if len(segments.names) == 1:
        return 1.0
    layers: list[Any] = [part[:, :, None, None] for part in rows.split(segments.channels, 1)]
    near = torch.zeros(len(rows), len(segments.names))
    for layer, product in zip(layers, segments._products, strict=True):
        if product is not None:
            near += F.conv2d(layer, *product)[:, :, 0, 0]
    best = near.topk(2, 1).values
    gap = float((best[:, 0] - best[:, 1]).median())
    return max(gap, 1e-6) / math.log(_ODDS)
