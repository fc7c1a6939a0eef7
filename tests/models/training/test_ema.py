"""Averaged weights: the recursion by hand, buffers, warm-up, state, and a generator that sees each update."""

from __future__ import annotations

import pytest
import torch
from mixsyn_fast.models import spade
from mixsyn_fast.models.training.ema import EMA
from torch import Tensor, nn

from mixsyn_fast.region_map import RegionMap


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 1, bias=False))


def move(net: nn.Module, seed: int) -> None:
    """Change every weight and statistic, as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
        for b in net.buffers():
            b.add_(seed + 1)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_recursion(warmup: bool) -> None:
    net = network()
    ema = EMA({"G": net}, 0.9, warmup=warmup)
    expected = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for step in range(200):
        move(net, step)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        for name, p in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    scale = max(p.abs().max().item() for p in net.parameters())  # float32 rounds relative to what is added
    for name, p in ema.networks["G"].named_parameters():
        assert (p - expected[name]).abs().max() <= 20 * torch.finfo(torch.float32).eps * scale
    for ours, theirs in zip(ema.networks["G"].buffers(), net.buffers(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()


def test_a_network_of_a_later_stage_warms_up_when_it_begins_to_move() -> None:
    live = {"early": nn.Linear(2, 2), "late": nn.Linear(2, 2)}
    average = EMA(live, 0.999)
    start = {name: network.weight.detach().clone() for name, network in live.items()}
    with torch.no_grad():
        for network in live.values():
            network.weight += 1
    average.update(999, {"late": 1000})
    assert torch.equal(average.networks["late"].weight, start["late"])  # type: ignore[arg-type]
    average.update(1000, {"late": 1000})
    moved = average.networks["late"].weight - start["late"]  # type: ignore[operator]
    torch.testing.assert_close(moved, torch.full((2, 2), 0.9))  # d_0 = 0.1: the start is nearly forgotten
    torch.testing.assert_close(
        average.networks["early"].weight - start["early"], torch.full((2, 2), 0.016), rtol=0.2, atol=0
    )


def test_decay_while_warming_up() -> None:
    ema = EMA({}, 0.999)
    assert [ema.decay_at(t) for t in (0, 8, 10**6)] == [0.1, 0.5, 0.999]
    assert EMA({}, 0.999, warmup=False).decay_at(0) == 0.999


def test_no_decay_is_the_live_network() -> None:
    net = network()
    ema = EMA({"G": net}, 0.0)
    move(net, 3)
    ema.update(0)
    assert all(torch.equal(a, b) for a, b in zip(ema.networks["G"].parameters(), net.parameters(), strict=True))


def test_copies_are_apart_from_the_live_network() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ema = EMA({"G": net}, 0.5, warmup=False)
    copy = ema.networks["G"]
    assert not any(m.training for m in copy.modules()) and not any(p.requires_grad for p in copy.parameters())
    ema.update(0)
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    move(net, 1)
    assert torch.equal(copy.state_dict()["0.weight"], before["0.weight"])


def test_replaced_parameters_and_buffers_are_followed() -> None:
    net = network()
    ema = EMA({"G": net}, 0.0)
    net.load_state_dict({name: torch.full_like(value, 7) for name, value in net.state_dict().items()}, assign=True)
    net[1].running_mean = torch.full((3,), 5.0)
    ema.update(0)
    state = ema.state_dict()
    assert torch.all(state["G.0.weight"] == 7) and torch.all(state["G.1.running_mean"] == 5)


def test_state_there_and_back() -> None:
    net = network()
    first, second = EMA({"G": net, "E": nn.Linear(1, 1)}, 0.9), EMA({"G": network(), "E": nn.Linear(1, 1)}, 0.9)
    move(net, 1)
    first.update(0)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert list(first.state_dict())[0] == "G.0.weight" and list(first.state_dict())[-1] == "E.bias"
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_state_that_does_not_fit_loads_nothing() -> None:
    ema = EMA({"G": nn.Linear(2, 1)}, 0.9)
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    bad: dict[str, Tensor] = {"G.weight": torch.zeros(1, 3), "G.extra": torch.zeros(1)}
    with pytest.raises(ValueError) as caught:
        ema.load_state_dict(bad)
    for part in ("missing G.bias", "unexpected G.extra", r"G.weight: expected shape (1, 2), got (1, 3)"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="missing G.bias"):
        ema.load_state_dict({"G.weight": torch.zeros(1, 2)})
    assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\)"):
        EMA({}, decay)


def test_bad_name() -> None:
    with pytest.raises(ValueError, match="networks: expected names without a dot, got 'a.b'"):
        EMA({"a.b": nn.Linear(1, 1)}, 0.5)


def test_a_generator_sees_every_update() -> None:
    """Layers keep what they derive from weights in eval: an update must be noticed, and training must not disturb."""
    torch.manual_seed(0)
    net = spade.SPADEGenerator(spade.Config(label_nc=3, ngf=4, image_size=32, spectral_norm=True)).train()
    regions = RegionMap(torch.randint(0, 3, (2, 32, 32), dtype=torch.int32), 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema = EMA({"G": net}, 0.5, warmup=False)
    pictures = []
    for step in range(3):
        optimizer.zero_grad()
        net(regions).square().mean().backward()
        optimizer.step()
        ema.update(step)
        with torch.no_grad():
            pictures.append(ema.networks["G"](regions))
            fresh = spade.SPADEGenerator(net.config).eval()
            fresh.load_state_dict(ema.networks["G"].state_dict())
            assert torch.equal(fresh(regions), pictures[-1])
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
