"""Nested state as tensors and JSON and back, exactly; optimisers and random numbers go on bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.training.checkpoint import (
    newest_valid,
    pack,
    pack_optimizer,
    rng_state,
    save_checkpoint,
    set_rng_state,
    unpack,
    unpack_optimizer,
)
from torch import nn


def silent(text: str) -> None:
    raise AssertionError(f"no message was expected: {text}")


def problem() -> tuple[nn.Module, Callable[[nn.Module, torch.optim.Optimizer], None]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()

    return net, step


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.0, 0.9)),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2), amsgrad=True, foreach=False),
        lambda p: torch.optim.AdamW([{"params": [q]} for q in p], lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=1e-2),
    ],
    ids=["adam", "amsgrad", "adamw", "momentum", "sgd"],
)
def test_a_resumed_optimiser_goes_on_bit_for_bit(tmp_path: Path, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    net, step = problem()
    optimizer = make(net.parameters())
    for _ in range(3):
        step(net, optimizer)
    tensors, state = pack_optimizer(optimizer.state_dict())
    random_tensors, random_state = rng_state()
    groups = {"net": net.state_dict(), "optimizer": tensors, "rng": random_tensors}
    save_checkpoint(tmp_path, 3, groups, {"optimizer": state, "rng": random_state})
    expected_state = optimizer.state_dict()
    again = unpack_optimizer(tensors, json.loads(json.dumps(state)))
    assert again["param_groups"] == expected_state["param_groups"]  # tuples are tuples again
    assert list(again["state"]) == list(expected_state["state"])  # and indices integers
    for _ in range(3):
        step(net, optimizer)

    torch.manual_seed(99)
    resumed, _ = problem()
    other = make(resumed.parameters())
    found = newest_valid(tmp_path, silent)
    assert found is not None
    resumed.load_state_dict(found.tensors("net"))
    other.load_state_dict(unpack_optimizer(found.tensors("optimizer"), found.state["optimizer"]))
    set_rng_state(found.tensors("rng"), found.state["rng"])
    for _ in range(3):
        step(resumed, other)
    for a, b in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_random_numbers_go_on(tmp_path: Path) -> None:
    random.seed(3)
    np.random.seed(3)
    random.gauss(0, 1)  # leaves a second value in store
    np.random.standard_normal()
    tensors, state = rng_state()
    save_checkpoint(tmp_path, 1, {"rng": tensors}, {"rng": state})

    def draw() -> tuple[Any, ...]:
        return (random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.randn(3).tolist())

    expected = draw()
    draw()
    found = newest_valid(tmp_path, silent)
    assert found is not None
    set_rng_state(found.tensors("rng"), found.state["rng"])
    assert draw() == expected


@pytest.mark.gpu
def test_random_numbers_of_the_gpu_go_on() -> None:
    torch.randn(3, device="cuda")
    tensors, state = rng_state()
    expected = torch.randn(3, device="cuda")
    torch.randn(3, device="cuda")
    set_rng_state(tensors, state)
    assert torch.equal(torch.randn(3, device="cuda"), expected)


def test_pack_there_and_back() -> None:
    tensor = torch.randn(2)
    tree = {"a": [1, (2, (3.5, None)), {}], 7: {"x": tensor, "$tensor": "t"}, "b": {"$tuple": ()}, "c": (), "t": (tensor,)}
    tensors, state = pack(tree)
    assert set(tensors) == {"7.x", "t.0"}
    assert repr(unpack(tensors, json.loads(json.dumps(state)))) == repr(tree)
    alone = pack(tensor)
    assert unpack(*alone) is tensor


def test_pack_refuses_what_it_cannot_keep() -> None:
    with pytest.raises(ValueError, match="a.0: expected a tensor, number, text, list, tuple or dict, got set"):
        pack({"a": [{1}]})
    with pytest.raises(ValueError, match=r"a: expected keys that are int or str, got \(1, 2\)"):
        pack({"a": {(1, 2): 3}})
    with pytest.raises(ValueError, match="a.b: two entries have this name"):
        pack({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)})
    with pytest.raises(ValueError, match="a: the tensor is missing"):
        unpack({}, {"$tensor": "a"})
    with pytest.raises(ValueError, match=r"expected the keys state and param_groups, got \['weight'\]"):
        pack_optimizer({"weight": torch.zeros(1)})
