"""SEAN normalisation ("ACE"), with codes from an argument of their own or from ``obj_dic``."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import layers
from ...backend import current_plan
from ...layers.spade import prefers_table
from ...region_map import RegionMap
from ..maps import NotExact, regions_of
from ..report import LayerWork, last_work
from .checks import (
    check_map,
    check_norm,
    check_precision,
    conv_problem,
    laid_out,
    norm_problem,
    regions_problem,
    size_of,
    structure,
)
from .contract import BLENDED, Contract, Options


@dataclass(frozen=True)
class CodesAt:
    """Where in ``obj_dic`` a SEAN layer finds the code of a region: the keys, one of which is the region's number."""

    before: tuple[Hashable, ...]
    as_text: bool
    after: tuple[Hashable, ...]

    def code(self, obj_dic: Any, region: int) -> Tensor | None:
        """Return the code of a region, None where there is none."""
        at = obj_dic
        for key in (*self.before, str(region) if self.as_text else region, *self.after):
            try:
                at = at[key]
            except (KeyError, IndexError, TypeError):
                return None
        return at if isinstance(at, Tensor) else None


def _leaves(at: Any, path: tuple[Hashable, ...] = ()) -> Iterator[tuple[tuple[Hashable, ...], Tensor]]:
    if isinstance(at, Tensor):
        yield path, at
    elif len(path) < 4:
        pairs = at.items() if isinstance(at, Mapping) else enumerate(at) if isinstance(at, list | tuple) else ()
        for key, value in pairs:
            yield from _leaves(value, (*path, key))


def codes_in(obj_dic: Any, length: int) -> list[CodesAt]:
    """Return the places where ``obj_dic`` may hold codes of some length, one per region."""
    found: dict[CodesAt, None] = {}
    for path, leaf in _leaves(obj_dic):
        if leaf.numel() == length:
            for i, key in enumerate(path):
                if type(key) is int or (type(key) is str and key.isdigit()):
                    found[CodesAt(path[:i], type(key) is str, path[i + 1 :])] = None
    return list(found)


def _spade_problem(module: Any, prefix: str = "") -> str | None:
    shared = module.mlp_shared
    if not isinstance(shared, nn.Sequential) or len(shared) != 2 or not isinstance(shared[1], nn.ReLU):
        return f"{prefix}mlp_shared is not a convolution and a ReLU"
    named = (("mlp_shared.0", shared[0]), ("mlp_gamma", module.mlp_gamma), ("mlp_beta", module.mlp_beta))
    problems = (conv_problem(conv, prefix + name) for name, conv in named)
    return next(filter(None, problems), None) or regions_problem(module.mlp_shared[0].in_channels)


class _Counts(NamedTuple):
    """What decides the work of a call of a SEAN layer."""

    images: int
    pixels: int
    """Of all images."""
    codes: int
    """Of an image; 0 without styles."""
    rows: tuple[int, int, int] | None
    """Distinct 3x3 patterns of the batch, and of its images, and distinct 5x5 ones: of the table; None: convolutions."""
    published: bool
    """Convolutions as published, of the style map: else of the weights, with kernels for every code."""


def _counted(module: Any, regions: RegionMap, x: Tensor) -> _Counts:
    size, styled = size_of(x), bool(module.use_rgb)
    which = regions.num_regions if regions.is_soft else len(regions.present)
    rows = None
    if prefers_table(module.Spade, regions, (size[0], size[1]), current_plan(), styled):
        plan = regions.plan(size, per_image=styled)  # the layer's own
        rows = len(plan.hidden), len(plan.style), len(plan.rows)
    return _Counts(len(x), len(x) * prod(size), which if styled else 0, rows, current_plan() == "dense")


def _work_of(counts: _Counts, module: Any) -> LayerWork:
    """Count the work of a call, but for what both forms do alike: a linear layer for every code."""
    spade, (images, pixels, codes, rows, published) = module.Spade, counts
    first = spade.mlp_shared[0]
    size, hidden, first_macs = first.weight.element_size(), first.out_channels, first.weight.numel()
    wide = spade.mlp_gamma.out_channels + spade.mlp_beta.out_channels
    own = spade.mlp_gamma.weight.numel() + spade.mlp_beta.weight.numel()
    style = module.conv_gamma.weight.numel() + module.conv_beta.weight.numel() if codes else 0
    dense = pixels * (first_macs + own + style)
    dense_bytes = pixels * size * (hidden + wide + ((module.conv_gamma.in_channels + wide) if codes else 0))
    if rows is not None:
        near, near_images, distinct = rows
        kept = size * (near * hidden + (near_images * wide if codes else 0) + distinct * wide)
        return LayerWork("table", dense, near * own + images * codes * style, dense_bytes, kept)
    if published or not codes:
        return LayerWork("dense", dense, dense, dense_bytes, dense_bytes)
    macs = pixels * (first_macs + own + 9 * codes * wide) + images * codes * style
    return LayerWork("dense", dense, macs, dense_bytes, pixels * size * (hidden + 2 * wide))


class _Sean(Contract):
    """SEAN normalisation ("ACE")."""

    kind = "sean"
    attributes = ("Spade", "noise_var", "blending_gamma", "param_free_norm")
    arguments = 4
    known = ("Spade.mlp_shared.0.", "Spade.mlp_gamma.", "Spade.mlp_beta.", "blending_", "noise_var", "fc_mu", "conv_")
    noisy = True
    reads_obj_dic = True

    def notes(self, options: Options) -> list[str]:
        drawn = ["its noise is another draw from the same distribution"] if options.noise == "device" else []
        return drawn + ([BLENDED] if options.soft_masks == "blend" else [])

    def signature_fits(self, count: int, least: int) -> bool:
        return least in (2, 3, 4) and count >= 3

    def problem(self, module: Any) -> str | None:
        names = ("mlp_shared", "mlp_gamma", "mlp_beta")
        if not all(hasattr(module.Spade, name) for name in names) or not hasattr(module, "use_rgb"):
            return "it lacks attributes of the published layer"
        problem = norm_problem(module.param_free_norm) or _spade_problem(module.Spade, "Spade.")
        if problem is None and module.use_rgb:
            problem = conv_problem(module.conv_gamma, "conv_gamma") or conv_problem(module.conv_beta, "conv_beta")
            for k in range(module.Spade.mlp_shared[0].in_channels):
                if type(getattr(module, f"fc_mu{k}", None)) is not nn.Linear:
                    problem = problem or f"fc_mu{k} is not a Linear"
        return problem

    def regions(self, module: Any) -> int | None:
        count: int = module.Spade.mlp_shared[0].in_channels
        return count

    def channels(self, module: Any) -> int:
        count: int = module.Spade.mlp_gamma.out_channels
        return count

    def code_length(self, module: Any) -> int:
        """Return S."""
        length: int = module.conv_gamma.in_channels
        return length

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        x, segmap = super().inputs(module, batch, which)
        codes = torch.randn(batch, self.regions(module) or 0, self.code_length(module)) if module.use_rgb else None
        return [x, segmap, codes]

    def variant(self, given: Mapping[str, Any], names: Sequence[str]) -> Hashable:
        """What is in obj_dic, roughly (paths, codes), and whether there are several images: the published layer's mode for
        interactive editing knows one.
        """
        obj_dic = given.get(names[3]) if len(names) > 3 else None
        if obj_dic is None:
            return None
        several = isinstance(x := given.get(names[0]), Tensor) and x.shape[0] > 1
        return several, structure(obj_dic)

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        x, segmap, codes, obj_dic = (*inputs, None)[:4]
        count = self.regions(module)
        assert count is not None
        check_map(x, segmap, count)
        check_precision(x, module.Spade.mlp_gamma.weight)
        check_norm(module.param_free_norm)
        regions = regions_of(segmap, size_of(x), options.num_regions, edges=False)
        if module.use_rgb:
            if (regions.is_soft or regions.edges is not None) and options.soft_masks == "published":
                raise NotExact("the map is soft (accelerate(..., soft_masks='blend') mixes the styles by weight instead)")
            if isinstance(found, CodesAt):
                wanted = range(count) if regions.is_soft else regions.present
                codes = self._stacked(module, found, obj_dic, wanted, x.shape[0])
            shape = (x.shape[0], count, self.code_length(module))
            if not isinstance(codes, Tensor) or codes.shape != shape:
                raise NotExact(f"the style codes are not of shape {shape}")
        last_work[module] = partial(_work_of, _counted(module, regions, x))
        return layers.sean_norm(module, laid_out(x, options.channels_last), regions, codes, noise=options.noise)

    def _stacked(self, module: Any, at: CodesAt, obj_dic: Any, wanted: Iterable[int], batch: int) -> Tensor:
        """The codes of obj_dic, (B, K, S); zeros for regions that no pixel has."""
        weight, length = module.conv_gamma.weight, self.code_length(module)
        codes = list(weight.new_zeros((self.regions(module) or 0, length)))
        for region in wanted:
            code = at.code(obj_dic, region)
            if code is None:
                raise NotExact(f"obj_dic has no style code of region {region}")
            if code.numel() != length or code.dtype != weight.dtype or code.device != weight.device:
                raise NotExact(f"obj_dic's code of region {region} is not {length} numbers of the layer's dtype and device")
            codes[region] = code.reshape(length)
        return torch.stack(codes).expand(batch, -1, -1)


SEAN: Contract = _Sean()
