"""What PyTorch may do with a model, it may do with an accelerated one: every kind of layer, every transformation.

Nothing raises that does not raise on the original, and every number is the original's.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import published as pub
import pytest
import torch
import torch.nn.functional as F
from test_accelerate_kin import Inade, Kin, Monai, Padded, Spatial, close, columns, conv, features, instances, onehot
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from mixsyn_fast import use_plan
from mixsyn_fast.accelerate import accelerate, restore

K, C, STYLE = 5, 8, 6


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is announced; layers as small as these would not take the table themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    with use_plan("table"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Volume(nn.Module):
    """Images of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.shared = nn.GroupNorm(4, C), nn.Sequential(nn.Conv3d(K, 6, 3, padding=1), nn.LeakyReLU(0.01))
        self.gamma, self.beta = (nn.Conv3d(6, C, 3, padding=1) for _ in "ab")

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        hidden = self.shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)


class Convolutions(nn.Module):
    """Two that are packed in eval; ``spectral``: of which the norm is folded."""

    def __init__(self, spectral: bool) -> None:
        super().__init__()
        wrap: Callable[[nn.Module], nn.Module] = nn.utils.spectral_norm if spectral else lambda made: made
        self.a, self.b = (wrap(conv(C, C)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Case(NamedTuple):
    """A layer and its inputs, the features first."""

    layer: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    kind: str = "spade"
    dtype: torch.dtype = torch.float64


def packed_input() -> tuple[Tensor, ...]:
    return (features().float().contiguous(memory_format=torch.channels_last),)


def volume() -> tuple[Tensor, ...]:
    segmap = onehot(2, 12)[..., None].expand(-1, -1, -1, -1, 12).contiguous()
    return features()[:, :, :6, :6, None] + features(size=6, seed=3)[:, :, None], segmap


CASES = {
    "spade": Case(Kin, lambda: (features(), onehot())),
    "spade on columns": Case(Kin, lambda: (features(), columns())),
    "spade on features": Case(Kin, lambda: (features(), features(2, K, 3))),
    "monai": Case(lambda: Monai(nn.BatchNorm2d(C)), lambda: (features(), onehot())),
    "spatial norm": Case(Spatial, lambda: (features(), features(2, K, 3))),
    "padded": Case(lambda: Padded("replicate"), lambda: (features(), features(2, K, 3))),
    "volume": Case(Volume, volume),
    "clade": Case(lambda: pub.CLADE(C, K), lambda: (features(), onehot()), "clade"),
    "clade, positional": Case(
        lambda: pub.PositionalCLADE(C, K), lambda: (features(), onehot(), features(2, 2, 24, 4)), "clade"
    ),
    "sean": Case(
        lambda: pub.ACE(C, K, STYLE, hidden=7), lambda: (features(), onehot(), features(2, K, STYLE, 5)[:, :, 0]), "sean"
    ),
    "style encoder": Case(lambda: pub.Zencoder(STYLE, 4), lambda: (features(2, 3, 24), onehot()), "style_encoder"),
    "instance": Case(Inade, lambda: (features(), onehot(), instances(), features(2, 4, 6, 6)[..., 0]), "instance"),
    "convolutions": Case(lambda: Convolutions(False), packed_input, "conv2d", torch.float32),
    "spectral norm": Case(lambda: Convolutions(True), packed_input, "spectral_conv2d", torch.float32),
}

Call = Callable[[nn.Module, Sequence[Tensor]], Any]


def weighed(y: Tensor) -> Tensor:
    return (y.pow(3) * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()


def leaves(model: nn.Module, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs, of which features need a gradient, and all that do."""
    first = given[0].clone().requires_grad_()
    return [first, *given[1:]], [first, *model.parameters()]


def second_derivatives(model: nn.Module, given: Sequence[Tensor]) -> Any:
    inputs, wanted = leaves(model, given)
    first = torch.autograd.grad(weighed(model(*inputs)), wanted, create_graph=True, allow_unused=True)
    square = sum(g.square().sum() for g in first if g is not None)
    assert isinstance(square, Tensor)
    return torch.autograd.grad(square, wanted, allow_unused=True)


def checkpointed(model: nn.Module, given: Sequence[Tensor]) -> Any:
    inputs, wanted = leaves(model, given)
    return torch.autograd.grad(weighed(checkpoint(model, *inputs, use_reentrant=False)), wanted, allow_unused=True)


def of_parameters(model: nn.Module, given: Sequence[Tensor]) -> Any:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return list(grad(lambda p: weighed(functional_call(model, p, tuple(given))))(parameters).values())


def other_parameters(model: nn.Module, given: Sequence[Tensor]) -> Any:
    return functional_call(model, {name: p.detach() * 1.5 for name, p in model.named_parameters()}, tuple(given))


def ensemble(model: nn.Module, given: Sequence[Tensor]) -> Any:
    run = lambda p, b: functional_call(model, (p, b), tuple(given))  # noqa: E731
    return vmap(run, randomness="same")(*stack_module_state([model, model]))  # type: ignore[arg-type]


def dual_numbers(model: nn.Module, given: Sequence[Tensor]) -> Any:
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(model(forward_ad.make_dual(given[0], given[0] * 2), *given[1:])))


def on_meta(model: nn.Module, given: Sequence[Tensor]) -> Any:
    made = copy.deepcopy(model).to("meta")(*(t.to("meta") for t in given))
    return torch.tensor(made.shape)


def on_fakes(model: nn.Module, given: Sequence[Tensor]) -> Any:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = model(*(mode.from_tensor(t) for t in given))
    return torch.tensor(tuple(made.shape))


def traced(model: nn.Module, given: Sequence[Tensor]) -> Any:
    """And saved, as a weight that is packed cannot be."""
    made = torch.jit.trace(model, tuple(given), check_trace=False)
    torch.jit.save(made, io.BytesIO())
    return made(*given)


TRANSFORMS: dict[str, Call] = {
    "call": lambda f, given: f(*given),
    "second derivatives": second_derivatives,
    "checkpoint": checkpointed,
    "func.grad": lambda f, given: grad(lambda q: weighed(f(q, *given[1:])))(given[0]),
    "func.grad of parameters": of_parameters,
    "functional_call": other_parameters,
    "func.jvp": lambda f, given: jvp(lambda q: f(q, *given[1:]), (given[0],), (given[0],)),
    "func.vmap": lambda f, given: vmap(f, randomness="same")(*(t[:, None] for t in given)),
    "vmap of models": ensemble,
    "forward mode": dual_numbers,
    "jit.trace": traced,
    "jit.script": lambda f, given: torch.jit.script(f)(*given),
    "fx": lambda f, given: symbolic_trace(f)(*given),
    "make_fx": lambda f, given: make_fx(lambda *t: f(*t))(*given)(*given),
    "meta": on_meta,
    "fake": on_fakes,
    "half an input": lambda f, given: f(given[0].bfloat16(), *given[1:]),
    "no image": lambda f, given: f(*(t[:0] for t in given)),
}


def flat(found: Any) -> list[Tensor | None]:
    if isinstance(found, tuple | list):
        return [each for part in found for each in flat(part)]
    return [found]


def tried(transform: Call, model: nn.Module, given: Sequence[Tensor], gradients: bool) -> list[Tensor | None] | Exception:
    torch.manual_seed(1)
    try:
        with torch.set_grad_enabled(gradients):
            return flat(transform(model, given))
    except Exception as error:
        return error


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kind_under_every_transformation(case: Case, training: bool) -> None:
    torch.manual_seed(0)
    plain = pub.randomise(case.layer()).to(case.dtype).train(training)
    for name, transform in TRANSFORMS.items():
        for gradients in (True, False):
            own, fast, given = copy.deepcopy(plain), copy.deepcopy(plain), case.inputs()
            report = accelerate(fast)
            assert report.count(case.kind) >= 1, str(report)
            expected = tried(transform, own, given, gradients)
            if isinstance(expected, Exception):
                continue
            found = tried(transform, fast, given, gradients)
            assert not isinstance(found, Exception), f"{name}, gradients {gradients}: {found!r}"
            largest = max((float(t.abs().max()) for t in expected if t is not None and t.numel()), default=0.0)
            for a, b in zip(expected, found, strict=True):
                where = f"{name}, gradients {gradients}"
                if a is None or b is None:  # of a style layer whose region has no pixel: docs/accelerate.md
                    assert a is b or (case.kind == "sean" and not bool((b if a is None else a).any())), where
                    continue
                unit = 1e-4 if torch.float32 in (a.dtype, case.dtype) else 1e-9 if a.dtype == torch.float64 else 2e-2
                assert (a.shape, a.dtype) == (b.shape, b.dtype), where
                assert a.numel() == 0 or (a - b).abs().max() <= unit * largest, where
            restore(fast)
            assert [type(m) for m in fast.modules()] == [type(m) for m in own.modules()]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kind_is_copied_pickled_saved_and_restored(case: Case) -> None:
    """Behind a call, which is when something could be kept on a module."""
    torch.manual_seed(0)
    plain = pub.randomise(case.layer()).to(case.dtype).eval()
    fast, given = copy.deepcopy(plain), case.inputs()
    assert accelerate(fast).count(case.kind) >= 1

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            result: Tensor = model(*given)
        return result

    expected, unit = run(plain), 1e-4 if case.dtype == torch.float32 else 1e-10
    twins = [fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    run(fast)
    twins += [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), copy.copy(fast)]
    written = io.BytesIO()
    torch.save(fast, written)
    written.seek(0)
    twins.append(torch.load(written, weights_only=False))
    for twin in twins:
        assert close(run(twin), expected, unit)
        assert list(twin.state_dict()) == list(plain.state_dict()) and isinstance(twin, type(plain))
        twin.load_state_dict(plain.state_dict())
        plain.load_state_dict(twin.state_dict())
    other = {name: value * 1.5 if value.is_floating_point() else value for name, value in plain.state_dict().items()}
    plain.load_state_dict(other), fast.load_state_dict(other)
    assert close(run(fast), run(plain), unit) and not close(run(twins[1]), run(plain), unit)
    for twin in twins[:5]:
        assert restore(twin) >= 1
        assert [type(m) for m in twin.modules()] == [type(m) for m in plain.modules()]
        twin.load_state_dict(other)
        assert torch.equal(run(twin), run(plain))


@pytest.mark.parametrize("name", ["volume", "clade, positional", "instance", "spectral norm"])
def test_other_kinds_as_one_graph(name: str) -> None:
    """Compiled whole, with gradients as well, and exported."""
    case = CASES[name]
    torch.manual_seed(0)
    plain = pub.randomise(case.layer()).to(case.dtype).eval()
    fast, given = copy.deepcopy(plain), case.inputs()
    accelerate(fast)
    torch._dynamo.reset()
    (inputs, wanted), (own, of_own) = leaves(fast, given), leaves(plain, given)
    whole = torch.compile(fast, fullgraph=True, backend="aot_eager")
    exact = torch.autograd.grad(weighed(plain(*own)), of_own, allow_unused=True)
    grads = torch.autograd.grad(weighed(whole(*inputs)), wanted, allow_unused=True)
    for a, b in zip(exact, grads, strict=True):
        assert (a is None) is (b is None) and (a is None or b is None or close(b, a, 1e-4))
    with torch.no_grad():
        exported = torch.export.export(fast, tuple(given)).module()
        assert close(exported(*given), plain(*given), 1e-4)


# --- a model of several layers --------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers of one model, a convolution with spectral norm and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (pub.randomise(Kin()) for _ in "ab")
        self.conv = nn.utils.spectral_norm(conv(C, C))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.b(self.conv(self.a(x, cond)), cond)


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module]:
    """A model, and its accelerated copy."""
    torch.manual_seed(3)
    plain = Net().double().eval()
    fast = copy.deepcopy(plain)
    assert accelerate(fast).count("spade") == 2
    return plain, fast


def test_one_graph(nets: tuple[nn.Module, nn.Module]) -> None:
    """Compiled whole, exported or traced: for any map, not for the one that it was traced with."""
    plain, fast = nets
    x, segmap = features(), onehot()
    torch._dynamo.reset()
    with torch.no_grad():
        made = {
            "fullgraph": torch.compile(fast, fullgraph=True, backend="eager"),
            "export": torch.export.export(fast, (x, segmap)).module(),
            "trace": torch.jit.trace(fast, (x, segmap), check_trace=False),
        }
        for name, form in made.items():
            for cond in (segmap, columns()):
                assert close(form(x, cond), plain(x, cond)), name
        torch.jit.save(made["trace"], io.BytesIO())
        fake = torch.device("meta")
        assert copy.deepcopy(fast).to(fake)(x.to(fake), segmap.to(fake)).shape == x.shape


def test_second_derivatives(nets: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for net in nets:
        z = features().requires_grad_()
        (g,) = torch.autograd.grad(net(z, onehot()).pow(3).sum(), z, create_graph=True)
        found.append(torch.autograd.grad(g.pow(2).sum(), [z, *net.parameters()]))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-8 * max(float(g.abs().max()) for g in found[0])
