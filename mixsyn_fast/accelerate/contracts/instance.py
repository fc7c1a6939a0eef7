"""Modulation per image, class and instance: INADE and its kin."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ... import layers
from ...backend import current_plan
from ...layers.stacks import Conv, modulate
from ..instances import are_maps, modulation_by_instance
from ..maps import NotExact
from ..report import LayerWork, last_work
from .checks import (
    blocks,
    channels_of,
    check_map,
    check_norm,
    check_precision,
    is_norm,
    laid_out,
    original_class,
    regions_problem,
    required,
    structure,
)
from .contract import Contract, Options


def _work_of(rows: int, shape: Sequence[int], module: nn.Module) -> LayerWork:
    """Count the work of a call of x's shape with so many rows; products are those of the layer's convolutions."""
    pixels, size = shape[0] * prod(shape[2:]), next(module.parameters()).element_size()
    macs = sum(part.weight.numel() for part in module.modules() if isinstance(part, Conv))
    return LayerWork("table", pixels * macs, rows * macs, pixels * 2 * shape[1] * size, rows * 2 * shape[1] * size)


class _ByInstance(Contract):
    """INADE and its kin: a scale and a shift per (image, class, instance), made of parameters per class and further inputs.

    Which inputs there are is seen at a call, so the check is made at the first one, on inputs of the same kinds.
    """

    kind = "instance"
    attributes = ("param_free_norm",)
    arguments = 8
    known = ("",)
    shown_by_call = True
    told_apart = False

    def recognises(self, module: nn.Module) -> bool:
        several = self.norm(module) is not None and self.regions(module) is not None
        return several and required(original_class(module).forward) >= 3

    @staticmethod
    def norm(module: nn.Module) -> str | None:
        """Return the name of the one norm, beside which no convolution sees more than a pixel; None where that is not so."""
        norms = [name for name, child in module._modules.items() if is_norm(child) or name == "param_free_norm"]
        if len(norms) != 1:
            return None
        others = (part for name, child in module._modules.items() if child and name != norms[0] for part in child.modules())
        wide = any(isinstance(part, Conv) and set(part.kernel_size) != {1} for part in others)
        return None if wide else norms[0]

    @staticmethod
    def tables(module: nn.Module) -> list[nn.Parameter]:
        """Return the parameters with a row per class: of the layer itself, or of a part that is no layer of torch."""
        holders = [module, *(part for part in module.children() if not type(part).__module__.startswith("torch."))]
        return [p for part in holders for p in part._parameters.values() if p is not None and p.dim() > 1]

    def regions(self, module: Any) -> int | None:
        """Return K: two tables, at least, are (K, C, ...)."""
        wide = self.channels(module)
        counts = [table.shape[0] for table in self.tables(module) if table.shape[1] == wide]
        return counts[0] if len(counts) > 1 and len(set(counts)) == 1 and counts[0] > 1 else None

    def channels(self, module: Any) -> int:
        norm = module._modules.get(self.norm(module) or "")
        count = None if norm is None else channels_of(norm)
        return count if count is not None else next((table.shape[1] for table in self.tables(module)), 0)

    def signature_fits(self, count: int, least: int) -> bool:
        return least >= 3 and count <= self.arguments

    def problem(self, module: Any) -> str | None:
        name = self.norm(module)
        if name is None or self.regions(module) is None:
            return "its parts do not fit together"
        reason = layers.unsupported_norm(module._modules[name])
        return f"{name} is {reason}" if reason else regions_problem(self.regions(module) or 0)

    def taken(self, given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        if set(given) != set(names[: len(given)]):
            raise NotExact("it is called without an argument that stands before others")
        inputs = [given[name] for name in names[: len(given)]]
        check_map(*inputs[:2])
        return inputs

    def variant(self, given: Mapping[str, Any], names: Sequence[str]) -> Hashable:
        """Which inputs are maps, and what the others are like."""
        x, *others = self.taken(given, names)
        which = are_maps(others, x.shape[0])

        def described(value: Any, is_map: bool) -> Hashable:
            if not isinstance(value, Tensor):
                return structure(value)  # type: ignore[no-any-return]
            return is_map, value.dim(), value.dtype, value.shape[1 if is_map else -1] if value.dim() else 0

        return tuple(described(*each) for each in zip(others, which, strict=True))

    def like(self, given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        """Return small random inputs like those of a call: one-hot maps, others of values that occur, random numbers."""
        x, *others = self.taken(given, names)
        made: list[Any] = [torch.randn(len(x), x.shape[1], 7, 5)]
        for value, is_map in zip(others, are_maps(others, len(x)), strict=True):
            if not isinstance(value, Tensor):
                made.append(value)
            elif not is_map:
                made.append(torch.randn(value.shape) if value.is_floating_point() else value)
            elif value.dim() == 4 and value.shape[1] > 1:
                made.append(blocks(range(value.shape[1]), value.shape[1], len(x), (12, 11)))
            else:
                occurring = torch.unique(value)
                which = torch.randint(0, len(occurring), (len(x), *[1] * (value.dim() - 3), 12, 11))
                made.append(occurring[which.to(value.device)])
        return [
            t.to(old.device, old.dtype) if isinstance(t, Tensor) else t for t, old in zip(made, [x, *others], strict=True)
        ]

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Tensor:
        x, *others = inputs
        name = self.norm(module)
        assert name is not None
        if current_plan() == "dense":
            plain: Tensor = original_class(module).forward(module, *inputs)
            return plain
        norm = module._modules[name]
        check_norm(norm)
        check_precision(x, self.tables(module)[0])
        x = laid_out(x, options.channels_last)
        found = modulation_by_instance(module, original_class(module), name, x, others)
        assert found.table is not None
        last_work[module] = partial(_work_of, len(found.table), tuple(x.shape))
        return modulate(norm, x, found)


BY_INSTANCE: Contract = _ByInstance()
