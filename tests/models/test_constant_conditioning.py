"""constant_conditioning: a sampler's map is read once, its tables are made once, and nothing else differs."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator

import published as pub
import pytest
import torch
from torch import Tensor, nn

from mixsyn_fast import accelerate, constant_conditioning, use_plan
from mixsyn_fast.layers import forget

maps = importlib.import_module("mixsyn_fast.accelerate.maps")
stacks = importlib.import_module("mixsyn_fast.layers.stacks")
K, C = 5, 8


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is an error; layers as small as these would not take the table themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with use_plan("table"):
        yield


class Denoiser(nn.Module):
    """Two SPADE layers around a convolution, one of them at half size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (pub.SPADE(C, K, "instance", 8) for _ in "ab")
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(self.conv(self.a(x, segmap)), 2)
        return torch.tanh(x + nn.functional.interpolate(self.b(small, segmap), scale_factor=2))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = pub.randomise(Denoiser()).eval().requires_grad_(False)
    made.report = accelerate(made)
    assert made.report.count("spade") == 2 and not made.report.work()
    return made


def onehot(seed: int = 0) -> Tensor:
    return pub.onehot(pub.blobs(1, K, 16, 16, seed=seed), K)


def noise(batch: int = 1) -> Tensor:
    return torch.randn(batch, C, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names what is done: "map" for an analysis, "table" for the rows of a layer."""
    seen: list[str] = []
    analyse, table = maps.analyse, stacks._Evaluation.table
    monkeypatch.setattr(maps, "analyse", lambda *a: seen.append("map") or analyse(*a))
    monkeypatch.setattr(stacks._Evaluation, "table", lambda self: seen.append("table") or table(self))
    return seen


def sample(model: nn.Module, steps: int, new_tensors: bool = True) -> Tensor:
    """Classifier-free guidance: two maps in turn, as new tensors at every step."""
    x, segmap = noise(), onehot()
    with torch.no_grad():
        for _ in range(steps):
            given = segmap.clone() if new_tensors else segmap
            x = 1.5 * model(x, given) - 0.5 * model(x, torch.zeros_like(segmap))
    return x


@pytest.mark.parametrize("new_tensors", [True, False])
def test_fifty_steps_bit_for_bit(model: nn.Module, made: list[str], new_tensors: bool) -> None:
    expected = sample(model, 50)
    assert len(made) == 50 * 2 * 3
    made.clear()
    with constant_conditioning(model) as kept:
        result = sample(model, 50, new_tensors)
        assert (kept.misses, kept.hits) == (4, 196) and kept.bytes > 0
        assert "196 of 200" in str(kept) and "98%" in str(kept) and "2 maps" in str(kept)
    assert model.report.kept() == (196, 200) and "196 of 200 scales and shifts kept" in str(model.report)
    assert torch.equal(result, expected) and {of.plan for of in model.report.work().values()} == {"kept"}
    assert sorted(made) == ["map"] * 2 + ["table"] * 4
    assert kept.bytes == 0
    with constant_conditioning(model):
        assert model.report.kept() == (0, 0)
    made.clear()
    assert torch.equal(sample(model, 1), sample(model, 1)) and len(made) == 12  # nothing is left


def edited(model: nn.Module) -> None:
    model.a.mlp_gamma.weight.mul_(1.5)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})


def averaged(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.lerp_(torch.ones_like(p), 0.1)


def replaced(model: nn.Module) -> None:
    model.b.mlp_shared[0].bias = None


def activation(model: nn.Module) -> None:
    model.a.mlp_shared[1] = nn.LeakyReLU(0.3)


def in_part(model: nn.Module) -> None:
    """Where no sample of the values sees it."""
    model.a.mlp_gamma.weight.data[1, 1, 1, 1:2].add_(9)
    forget(model)


@pytest.mark.parametrize("change", [edited, loaded, averaged, replaced, activation, in_part])
def test_nothing_outlives_a_change(model: nn.Module, change: Callable[[nn.Module], None]) -> None:
    twin = copy.deepcopy(model)
    with torch.no_grad(), constant_conditioning(model):
        first = model(noise(), onehot())
        change(model), change(twin)
        result = model(noise(), onehot())
    with torch.no_grad():
        assert torch.equal(result, twin(noise(), onehot())) and not torch.equal(result, first)


def test_nothing_outlives_a_change_of_a_norm() -> None:
    """Of its parameters, and of what a norm inside of scale or shift adds to the variance."""

    class Normed(pub.SPADE):
        def __init__(self) -> None:
            super().__init__(C, K, "instance", 8)
            self.param_free_norm = nn.GroupNorm(4, C)
            self.mlp_gamma, self.mlp_beta = (nn.Sequential(nn.Conv2d(8, C, 3, 1, 1), nn.InstanceNorm2d(C)) for _ in "ab")

    plain = pub.randomise(Normed()).eval().requires_grad_(False)
    fast = copy.deepcopy(plain)
    assert accelerate(fast).count("spade") == 1
    with constant_conditioning(fast) as kept:
        for change in (
            lambda layer: layer.param_free_norm.weight.data.mul_(1.5),
            lambda layer: setattr(layer.param_free_norm, "eps", 0.1),
            lambda layer: setattr(layer.mlp_gamma[1], "eps", 0.5),
            lambda layer: layer.load_state_dict({k: v * 1.5 for k, v in layer.state_dict().items()}, assign=True),
            lambda layer: nn.utils.parametrizations.weight_norm(layer.mlp_gamma[0]),
        ):
            fast(noise(), onehot())
            change(plain), change(fast)
            expected = plain(noise(), onehot())
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the last is no layer of ours any more
                patch.setenv("MIXSYN_FAST_STRICT", "0")
                assert (fast(noise(), onehot()) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert kept.misses == 5


def test_a_map_edited_between_steps(model: nn.Module) -> None:
    segmap, x = onehot(), noise()
    with torch.no_grad():
        expected = model(x, onehot(3))
        with constant_conditioning(model) as kept:
            model(x, segmap)
            for edit in (
                lambda: segmap.copy_(onehot(3)),
                lambda: segmap.data.copy_(onehot(4)),
                lambda: segmap.numpy().fill(0),
            ):
                edit()
                result = model(x, segmap)
                assert torch.equal(result, expected) is (kept.misses == 4)
            assert kept.misses == 8


def test_bounded_and_least_recently_used(model: nn.Module) -> None:
    x = noise()
    with torch.no_grad():
        with constant_conditioning(model) as kept:
            model(x, onehot())
            one = kept.bytes
        with constant_conditioning(model, limit=2 * one) as kept:
            for seed in (0, 1, 0, 2, 0, 3, 0):
                model(x, onehot(seed))
                assert kept.bytes <= 2 * one
            assert kept.hits >= 2
        with constant_conditioning(model, limit=1) as kept:
            assert torch.equal(model(x, onehot()), model(x, onehot())) and kept.hits == 0


def test_what_needs_gradients_is_not_kept(model: nn.Module) -> None:
    x = noise().requires_grad_()
    with constant_conditioning(model) as kept:
        (frozen,) = torch.autograd.grad(model(x, onehot()).sum(), x)  # the weights are: guidance by a classifier
        (again,) = torch.autograd.grad(model(x, onehot()).sum(), x)
        assert torch.equal(frozen, again) and kept.hits == 2
        model.requires_grad_(True)
        model(x, onehot()).sum().backward()
        model.train()(x, onehot()).sum().backward()
        assert (kept.hits, kept.misses) == (2, 2) and model.a.mlp_beta.weight.grad is not None
        segmap = onehot().requires_grad_()
        model.requires_grad_(False).eval()(x, segmap).sum().backward()
        assert segmap.grad is not None and kept.hits == 2


def test_layers_called_alone_precision_and_nesting(model: nn.Module, made: list[str]) -> None:
    x, segmap = noise(), onehot()
    with torch.no_grad(), constant_conditioning(model) as outer:
        expected = model.a(x, segmap)
        assert torch.equal(model.a(x, segmap), expected) and outer.hits == 1
        with constant_conditioning(model) as inner:
            model.a(x, segmap)
            assert (inner.hits, inner.misses) == (0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            model.a(x, segmap)
        assert (outer.hits, outer.misses) == (1, 2)
        with use_plan("dense"):
            model.a(x, segmap)
        assert outer.misses == 3
        with torch.inference_mode():
            assert torch.equal(model.a(x, segmap), expected)
        assert outer.hits == 2


def test_wrong_arguments(model: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module"):
        constant_conditioning(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected an accelerated model"):
        constant_conditioning(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="limit: expected a positive number"):
        constant_conditioning(model, limit=0)
