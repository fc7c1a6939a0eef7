"""SPADE normalisation and its kin: SPADE, OASIS, semantic diffusion, MONAI, spatial norms, face animation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ... import layers
from ...layers.dense_stacks import Folds
from ...layers.stacks import (
    Conv,
    Modulation,
    convolutions,
    folded_work,
    folds_of,
    is_padded_otherwise,
    latent_modulation,
    modulate,
    modulation,
    neighbourhoods_of,
    work,
)
from ..maps import NotExact, Sharing, columns_of, modulation_of
from ..report import LayerWork, last_work
from .checks import blocks, check_map, check_norm, check_precision, laid_out, size_of
from .contract import Contract, Options, Verdict
from .forms import SpadeForm, forms_of, stack_problem


def _work_of(
    form: SpadeForm, plan: tuple[int, ...] | Folds | None, taken: bool, shape: Sequence[int], onehot: bool, module: nn.Module
) -> LayerWork:
    """Count the work of a call.

    Args:
        form: of the layer.
        plan: rows of the stages of the table, or which convolutions ran at distinct positions, or None: all was kept.
        taken: what the shared stack makes was another layer's.
        shape: of x.
        onehot: whether the map's columns are.
        module: the layer.
    """
    layer, pixels = form.modulator(module), shape[0] * prod(shape[2:])
    counted = work(layer, () if plan is None or isinstance(plan, Folds) else plan, pixels, onehot)
    name, macs, size = "kept", 0, 0
    if isinstance(plan, Folds):
        if taken:
            layer, plan = replace(layer, shared=()), plan._replace(shared=())
        name = "polyphase" if plan.any else "dense"
        macs, size = folded_work(layer, plan, pixels, shape[0])
    elif plan is not None:
        name, macs, size = "table", counted.table_macs, counted.table_bytes
    return LayerWork(name, counted.dense_macs, macs, counted.dense_bytes, size)


class _Spade(Contract):
    """SPADE normalisation and its kin: a norm without a map, and stacks of convolutions of the map for scale and shift."""

    kind = "spade"
    attributes = ("param_free_norm", "mlp_shared", "mlp_gamma", "mlp_beta")
    arguments = 3
    known = ("",)
    several_forms = True

    def recognises(self, module: nn.Module) -> bool:
        return not self.missing(module) or bool(forms_of(module))

    def forms(self, module: nn.Module) -> list[SpadeForm]:
        """Return what the layer may compute, by its structure, the likeliest first."""
        return forms_of(module)

    def problem(self, module: Any) -> str | None:
        if not self.missing(module):
            if reason := layers.unsupported_norm(module.param_free_norm, affine=True):
                return f"param_free_norm is {reason}"
            problems = (stack_problem(name, getattr(module, name)) for name in self.attributes[1:])
            if problem := next(filter(None, problems), None):
                return problem
        forms = forms_of(module)
        if not forms:
            return "its parts do not fit together"
        reason = layers.unsupported_norm(module._modules[forms[0].norm], affine=True)
        return f"{forms[0].norm} is {reason}" if reason else None

    def unchecked(self, module: nn.Module, reason: str) -> Verdict:
        if self.missing(module):
            return Verdict(f"which formula of SPADE's kind it computes cannot be tried out: {reason}")
        return Verdict(None, f"unchecked: {reason}", found=forms_of(module)[0])

    def first(self, module: nn.Module) -> Conv:
        """Return the first convolution of the map."""
        layer = forms_of(module)[0].modulator(module)
        return convolutions((*layer.shared, *layer.scale))[0]

    def regions(self, module: Any) -> int | None:
        return self.first(module).in_channels

    def channels(self, module: Any) -> int:
        layer = forms_of(module)[0].modulator(module)
        count = convolutions(layer.scale)[-1].out_channels
        return count if layer.shift else count // 2

    def inputs(self, module: Any, batch: int, which: Sequence[int] | None = None, found: Any = None) -> list[Tensor | None]:
        """The one-hot map of the others; with a form for any map, dense numbers of both signs in the last image.

        Volumes have other sides; in x an odd number of frames.
        """
        x, segmap = super().inputs(module, batch, which)
        assert x is not None and segmap is not None
        if len(self.first(module).kernel_size) == 3:
            x = torch.randn(batch, x.shape[1], 5, 4, 3)
            segmap = blocks(range(segmap.shape[1]) if which is None else which, segmap.shape[1], batch, (3, 7, 5))
        if found is not None and found.any_map:
            segmap[-1] = torch.randn(segmap.shape[1:])
        return [x, segmap]

    def further(self, inputs: Sequence[Any]) -> list[list[Any]]:
        """Of volumes (video) also an even number of frames, and a single one."""
        x, segmap = inputs
        return [] if x.dim() == 4 else [[x[:, :, :4], segmap], [x[:, :, :1], segmap[:, :, :1]]]

    def output(self, found: Any, result: Any) -> Tensor | None:
        if found is None or found.caches is None:
            return super().output(found, result)
        features, kept = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
        if (
            not isinstance(kept, dict)
            or tuple(kept) != found.caches
            or not all(isinstance(t, Tensor) for t in kept.values())
        ):
            return None
        return super().output(found, features)

    def forward(self, module: Any, options: Options, found: Any, *inputs: Any) -> Any:
        x, segmap, cache = (*inputs, None)[:3]
        if cache is not None and found.caches is None:
            raise NotExact("it is called with further arguments")
        layer = found.modulator(module)
        first = convolutions((*layer.shared, *layer.scale))[0]
        check_map(x, segmap, first.in_channels, len(first.kernel_size))
        check_precision(x, first.weight)
        check_norm(layer.norm)
        size = size_of(x)
        axes = found.axes(segmap, size)
        known = columns_of(segmap, size, options.num_regions)
        columns = known.columns if axes is None else None
        if not found.any_map and (columns is None or columns.values is not None):
            raise NotExact("on maps that are not one-hot it computes something else than SPADE")
        x = laid_out(x, options.channels_last)

        channels_last = x.dim() == 4 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
        made: list[tuple[tuple[int, ...] | Folds, bool]] = []

        def make() -> Modulation:
            wanted, features = (
                None if columns is None else neighbourhoods_of(layer, columns, size),
                segmap.to(first.weight.dtype),
            )
            if wanted is not None:
                made.append((wanted.counts, False))
                return modulation(layer, features, columns, size, wanted)
            if len(size) == 3 or is_padded_otherwise(layer):
                latent = latent_modulation(layer, features, size, axes)
                stages = len(convolutions((*layer.shared, *layer.scale))) + 1
                whole = [(None,) * len(convolutions(stack)) for stack in (layer.shared, *layer.heads)]
                of_rows = Folds(whole[0], tuple(whole[1:])) if latent.table is None else (len(latent.table),) * stages
                made.append((of_rows, False))
                return latent
            folds = folds_of(layer, features, size)
            sharing = Sharing(segmap, layer.shared, size, channels_last)
            result = modulation(
                layer, features, columns, size, folds=folds, channels_last=channels_last, hidden_of=sharing.hidden
            )
            made.append((folds, sharing.taken))
            return result

        # what a check passes over, for it is read at every call
        eps = tuple(part.eps for stack in (layer.shared, *layer.heads) for part in stack if hasattr(part, "eps"))
        how = modulation_of(known, layer, (size, id(found), channels_last, eps), make)
        onehot = columns is not None and columns.values is None
        plan, taken = made[0] if made else (None, False)
        last_work[module] = partial(_work_of, found, plan, taken, tuple(x.shape), onehot)
        y = modulate(layer.norm, x, how)
        if found.caches is None:
            return y
        # The last frames before these that a kernel of one frame sees: none. (As published: a copy of all, never read.)
        empty = segmap.new_empty((*segmap.shape[:2], 0, *size[1:]))
        return y, dict.fromkeys(found.caches, empty)


SPADE: Contract = _Spade()
