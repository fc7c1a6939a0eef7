"""Odd arguments of every public op: an error of ours that names the argument, what was expected and what came."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import mixsyn_fast
from mixsyn_fast import StyleLayout, use_backend
from mixsyn_fast.ops._common import check_flag, check_integer, check_number, int32

X, LABELS, LAYOUT = torch.randn(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64), StyleLayout.of([4], [2])
TENSOR, OPTIONAL, INTEGER, NUMBER, POSITIVE, FLAG, CHOICE, OTHER = (
    "tensor optional integer number positive flag choice other".split()
)
MAPS = {"condition": torch.randn(2, 3, 3, 3), "weight": torch.randn(5, 3)}

# Per op a good call, and the kind of every argument it has.
CALLS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "region_norm": (
        {"x": X, "index": LABELS, "table": torch.randn(3, 8), "norm": "batch", "training": True, "eps": 1e-5}
        | {"running_mean": torch.zeros(4), "running_var": torch.ones(4), "momentum": 0.1, "negative_slope": 0.2}
        | {"noise": torch.randn(2, 1, 3, 3), "noise_scale": torch.randn(4)}
        | {"weight": torch.randn(4), "bias": torch.randn(4)}
        | {"sample_scale": torch.randn(2, 4), "sample_shift": torch.randn(2, 4)},
        {"x": TENSOR, "index": OPTIONAL, "table": OPTIONAL, "scale": OTHER, "shift": OTHER, "norm": CHOICE}
        | {"running_mean": OPTIONAL, "running_var": OPTIONAL, "training": FLAG, "momentum": POSITIVE, "eps": POSITIVE}
        | {"noise": OPTIONAL, "noise_scale": OPTIONAL, "negative_slope": NUMBER, "process_group": OTHER}
        | {"num_groups": OTHER, "weight": OPTIONAL, "bias": OPTIONAL, "activation": OTHER}
        | {"sample_scale": OPTIONAL, "sample_shift": OPTIONAL},
    ),
    "bias_act": (
        {"x": X, "bias": torch.randn(4), "scale": torch.randn(2, 4), "noise": torch.randn(2, 1, 3, 3)}
        | {"strength": torch.randn(1), "slope": 0.2, "gain": 1.5},
        {"x": TENSOR, "bias": OPTIONAL, "scale": OPTIONAL, "noise": OPTIONAL, "strength": OPTIONAL}
        | {"slope": POSITIVE, "gain": POSITIVE},
    ),
    "label_patterns": (
        {"labels": LABELS, "num_regions": 3, "radius": 1, "edges": LABELS.bool(), "per_image": False, "max_rows": 99},
        {"labels": TENSOR, "num_regions": INTEGER, "radius": INTEGER, "edges": OPTIONAL, "per_image": FLAG}
        | {"max_rows": OTHER},
    ),
    "masked_roi_pool": (
        {"features": X, "regions": LABELS, "num_regions": 3, "mode": "max"},
        {"features": TENSOR, "regions": TENSOR, "num_regions": INTEGER, "mode": CHOICE},
    ),
    "spatial_attention_pool": (
        {"features": X, "condition": MAPS["condition"], "weight_features": torch.randn(5, 4)}
        | {"weight_condition": MAPS["weight"], "mask": LABELS == 0, "return_maps": True},
        {"features": TENSOR, "condition": TENSOR, "weight_features": TENSOR, "weight_condition": TENSOR}
        | {"mask": OPTIONAL, "return_maps": FLAG},
    ),
    "channel_attention_spread": (
        MAPS | {"values": torch.randn(2, 5, 4)},
        {"values": TENSOR, "condition": TENSOR, "weight": TENSOR},
    ),
    "channel_attention_maps": (MAPS, {"condition": TENSOR, "weight": TENSOR}),
    "latent_blend": (
        {"a": torch.randn(2, 6), "b": torch.randn(2, 6), "logits": torch.randn(2, 2, 4), "layout": LAYOUT}
        | {"q_on": "b", "return_q": True},
        {"a": TENSOR, "b": TENSOR, "logits": TENSOR, "layout": CHOICE, "q_on": CHOICE, "return_q": FLAG},
    ),
}


def _odd(kind: str, good: Any) -> Iterator[tuple[Any, type[Exception], str]]:
    """Values that do not fit, their error and how the message shows them."""
    none = [(None, TypeError, "None")]
    if kind in (TENSOR, OPTIONAL):
        yield from ((3, TypeError, "3 (int)"), ("a", TypeError, "'a' (str)"), (np.zeros(3), TypeError, "ndarray"))
        yield from none if kind == TENSOR else ()
        yield good.to_sparse(), ValueError, "a tensor of layout torch.sparse_coo"
        yield torch.nested.nested_tensor([good[0], good[0]]), ValueError, "a nested tensor"
        yield good.to("meta"), ValueError, ""
    elif kind in (NUMBER, POSITIVE):
        yield from (("a", TypeError, "'a' (str)"), (True, TypeError, "True (bool)"), (1j, TypeError, "1j (complex)"))
        yield torch.zeros(2), TypeError, "a tensor of shape (2,) (torch.float32)"
        yield from ((math.nan, ValueError, "nan"), (math.inf, ValueError, "inf"), (np.float32("nan"), ValueError, "nan"))
        yield from [*none, (-1.0, ValueError, "-1.0"), (-1, ValueError, "-1.0")] if kind == POSITIVE else ()
    elif kind == INTEGER:
        yield from [*none, (2.5, TypeError, "2.5 (float)"), (2.0, TypeError, "2.0 (float)"), ("3", TypeError, "'3' (str)")]
        yield from ((True, TypeError, "True (bool)"), (np.float64(2), TypeError, "2.0 (float64)"), (-1, ValueError, "-1"))
        yield torch.tensor(True), TypeError, "a tensor of shape () (torch.bool)"
        yield torch.tensor([3]), TypeError, "a tensor of shape (1,) (torch.int64)"
    elif kind == FLAG:
        yield from [*none, (1, TypeError, "1 (int)"), ("no", TypeError, "'no' (str)")]
    elif kind == CHOICE:
        yield from ((3, Exception, "3 (int)"), ("x", Exception, "'x' (str)"), (None, Exception, "None"))
        yield [], Exception, "list"


ARGUMENTS = [(op, name) for op, (_, kinds) in CALLS.items() for name, kind in kinds.items() if kind != OTHER]


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_odd_arguments(op: str, name: str) -> None:
    good, kinds = CALLS[op]
    for value, error, shown in _odd(kinds[name], good.get(name)):
        with pytest.raises((TypeError, ValueError)) as caught:
            getattr(mixsyn_fast, op)(**(good | {name: value}))
        message = str(caught.value)
        assert re.match(rf"{op}: \w+: expected .*, got ", message), message
        if shown:
            assert message.startswith(f"{op}: {name}: ") and message.endswith(f", got {shown}"), (value, message)
            assert error is Exception or type(caught.value) is error


@pytest.mark.parametrize("op", CALLS)
def test_every_argument_is_tried(op: str) -> None:
    assert set(inspect.signature(getattr(mixsyn_fast, op)).parameters) == set(CALLS[op][1])


def test_every_op_is_tried() -> None:
    assert set(mixsyn_fast.backend.registered_ops()) <= set(CALLS)


@pytest.mark.parametrize("op", CALLS)
def test_numbers_of_numpy_and_of_tensors(op: str) -> None:
    """They give what Python's give, bit for bit."""
    good, kinds = CALLS[op]
    function: Callable[..., Any] = getattr(mixsyn_fast, op)

    def results(**change: Any) -> list[torch.Tensor]:
        arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in (good | change).items()}
        found = function(**arguments)
        return [found] if isinstance(found, torch.Tensor) else list(found)

    expected = results()
    for name, kind in kinds.items():
        others: list[Any] = []
        if kind == INTEGER:
            others = [np.int64(good[name]), np.uint8(good[name]), torch.tensor(good[name])]
        elif kind in (NUMBER, POSITIVE):
            others = [np.float64(good[name]), torch.tensor(good[name], dtype=torch.float64)]
        elif kind == FLAG:
            others = [np.bool_(good[name])]
        for other in others:
            assert all(map(torch.equal, results(**{name: other}), expected)), name


def test_checks_return_plain_numbers() -> None:
    assert type(check_integer("f", "n", np.int32(3), 1, 5)) is type(check_integer("f", "n", torch.tensor(3), 1, 5)) is int
    assert type(check_number("f", "x", np.float32(0.5))) is type(check_number("f", "x", torch.tensor(1))) is float
    assert check_flag("f", "x", np.True_) is True
    with pytest.raises(ValueError, match=r"^f: n: expected 1 to 5, got 1267650600228229401496703205376$"):
        check_integer("f", "n", 2**100, 1, 5)
    with pytest.raises(TypeError, match=r"^f: n: expected 1 to 5, got '.{40,56}\.\.\. \(str\)$"):
        check_integer("f", "n", "x" * 999, 1, 5)


@pytest.mark.parametrize("op", CALLS)
def test_meta_tensors_alone_give_shapes_or_our_error(op: str) -> None:
    good, _ = CALLS[op]
    function: Callable[..., Any] = getattr(mixsyn_fast, op)
    on_meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in good.items()}
    if op in ("label_patterns", "masked_roi_pool"):
        with pytest.raises(ValueError, match=rf"^{op}: (labels|regions): expected a tensor with values, got .* device meta"):
            function(**on_meta)
        return
    shapes = []
    for arguments in (on_meta, good):
        given = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
        found = function(**given)
        shapes.append([t.shape for t in ([found] if isinstance(found, torch.Tensor) else found)])
    assert shapes[0] == shapes[1]


def test_integers_beyond_32_bits_stay_out_of_range() -> None:
    """On a GPU nothing is looked at on the way: the kernels' own check meets the ends."""
    wide = torch.tensor([2**32 + 1, -(2**32), -1, 5, 2**31 - 1, 2**63 - 1])
    assert int32(wide).tolist() == [2**31 - 1, -(2**31), -1, 5, 2**31 - 1, 2**31 - 1]
    assert int32(wide).dtype == torch.int32


def test_checks_are_traced() -> None:
    """Numbers that change from call to call under torch.compile, without graph break."""

    def f(eps: float, regions: int) -> torch.Tensor:
        y = mixsyn_fast.region_norm(X, LABELS, CALLS["region_norm"][0]["table"], eps=eps, negative_slope=eps)
        return y + mixsyn_fast.label_patterns(LABELS, regions, 1, max_rows=99)[0][:, None]

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for eps, regions in ((1e-5, 3), (1.0, 4), (3e-2, 5)):
        assert torch.equal(compiled(eps, regions), f(eps, regions))


def test_messages_of_kernels_name_no_source_file() -> None:
    """Called past the public functions, as compiled programs do."""
    with use_backend("native"):
        mixsyn_fast.masked_roi_pool(X, LABELS, 3)  # the kernels are loaded
    for call in (
        lambda: torch.ops.mixsyn_fast.masked_roi_pool(X, LABELS.int() + 3, 3, True),
        lambda: torch.ops.mixsyn_fast.masked_roi_pool(X, LABELS, 3, True),
        lambda: torch.ops.mixsyn_fast.masked_roi_pool(X.int(), LABELS.int(), 3, True),
    ):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value).startswith("mixsyn_fast::masked_roi_pool: "), caught.value
        assert ".cpp" not in str(caught.value).splitlines()[0] and "csrc" not in str(caught.value)
