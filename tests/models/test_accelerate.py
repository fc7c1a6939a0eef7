"""accelerate() on foreign models: the plain PyTorch published forms stand for somebody else's code."""

from __future__ import annotations

import copy
import enum
import gc
import importlib
import io
import pickle
import random
import threading
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import published as pub
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import use_plan
from mixsyn_fast.accelerate import AccelerationReport, accelerate, restore
from mixsyn_fast.backend import FallbackWarning

# the module: the package's attribute of this name is the function
implementation = importlib.import_module("mixsyn_fast.accelerate.maps")

K, NGF, STYLE = 6, 4, 24
SIZE = (64, 64)
LAYERS = {"sean": 18, "spade": 18, "clade": 18}


def build(family: str, dtype: torch.dtype = torch.float64, regions: int = K, **kw) -> nn.Module:
    """Return a published generator with random parameters, in eval mode."""
    torch.manual_seed(7)
    kw.setdefault("spectral", False)
    size = kw.pop("size", SIZE)
    if family == "sean":
        model = pub.SEANGenerator(NGF, regions, size, style=STYLE, hidden=16, width=4, **kw)
    elif family == "clade":
        model = pub.CLADEGenerator(NGF, regions, size, **kw)
    else:
        model = pub.SPADEGenerator(NGF, regions, size, hidden=16, **kw)
    return pub.randomise(model).to(dtype).eval()


def make_inputs(
    family: str,
    batch: int = 2,
    regions: int = K,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    size=SIZE,
):
    """Return the arguments of a published generator's forward."""
    onehot = pub.onehot(pub.blobs(batch, regions, *size, seed=seed, ignored=True), regions, dtype)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, *size, generator=generator).to(dtype)
    return (onehot, image) if family == "sean" else (onehot,)


def run(model: nn.Module, *args, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return model(*args)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fallback is an error unless a test says otherwise; layers as small as these would not take the table themselves."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with use_plan("table"):
        yield


@pytest.fixture
def analyses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that grows with every full-size map that is analysed."""
    seen: list[tuple[int, ...]] = []
    plain = implementation.analyse

    def counted(segmap: Tensor, *options):
        if segmap.shape[2:] == SIZE:  # not the small maps of the check inside accelerate()
            seen.append(tuple(segmap.shape))
        return plain(segmap, *options)

    monkeypatch.setattr(implementation, "analyse", counted)
    return seen


@pytest.mark.parametrize("family", ["sean", "spade", "clade"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("plan", ["table", "auto"])
def test_same_output_seed_for_seed(family: str, dtype: torch.dtype, plan: str, analyses: list) -> None:
    model = build(family, dtype)
    report = accelerate(model)
    fast = model
    model = build(family, dtype)
    assert isinstance(report, AccelerationReport)
    assert report.count(family) == LAYERS[family] and not report.left, str(report)
    assert report.count("style_encoder") == (family == "sean")
    with torch.no_grad():
        for batch, regions_seed in ((1, 0), (3, 1)):
            inputs = make_inputs(family, batch, dtype=dtype, seed=regions_seed)
            analyses.clear()
            with use_plan(plan):
                result = run(fast, *inputs)
            assert len(analyses) == 1
            assert close(result, run(model, *inputs), 1e-11 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("size", [(64, 128), (96, 64)])
def test_other_sizes_and_regions(size: tuple[int, int]) -> None:
    for family, regions in (("sean", 3), ("spade", 40)):
        plain, fast = build(family, size=size, regions=regions), build(family, size=size, regions=regions)
        accelerate(fast)
        inputs = make_inputs(family, 1, regions, size=size)
        with torch.no_grad():
            assert close(run(fast, *inputs), run(plain, *inputs))


@pytest.mark.parametrize("family", ["sean", "spade", "clade"])
def test_same_training_steps(family: str) -> None:
    """Two optimiser steps with batch norm in training: outputs, gradients, running statistics, parameters."""
    plain, fast = build(family, spectral=True).train(), build(family, spectral=True).train()
    report = accelerate(fast)
    assert report.count(family) == LAYERS[family]
    inputs = make_inputs(family)
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (plain, fast)]
    for step in range(2):
        outputs = []
        for model, optimiser in zip((plain, fast), optimisers, strict=True):
            optimiser.zero_grad()
            outputs.append(run(model, *inputs, seed=step))
            (outputs[-1] * torch.linspace(-1, 1, SIZE[1], dtype=torch.float64)).mean().backward()
        assert close(outputs[1], outputs[0], 1e-9)
        grads = dict(plain.named_parameters())
        for name, parameter in fast.named_parameters():
            a, b = parameter.grad, grads[name].grad
            if a is None or b is None:
                assert all(g is None or g.abs().max() == 0 for g in (a, b)), name
            else:
                assert (a - b).abs().max() <= 1e-7 * max(b.abs().max().item(), 1e-7), name
        for optimiser in optimisers:
            optimiser.step()
    for (name, a), b in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-7, atol=1e-10), name


def test_state_dict_attributes_and_restore() -> None:
    model = build("sean")
    before = {n: v.clone() for n, v in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    strides = [p.stride() for p in model.parameters()]
    inputs = make_inputs("sean")
    with torch.no_grad():
        expected = run(model, *inputs)
        accelerate(model)
        assert isinstance(model.up_0.ace_s, pub.ACE) and type(model.up_0.ace_s).__name__ == "ACE"
        accelerated = run(model, *inputs)
        assert list(model.state_dict()) == list(before)
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert restore(model) > 18
        assert [type(m) for m in model.modules()] == classes
        assert [set(vars(m)) for m in model.modules()] == attributes
        assert [p.stride() for p in model.parameters()] == strides
        assert torch.equal(run(model, *inputs), expected)
        assert close(accelerated, expected)
        assert restore(model) == 0


def test_idempotent_and_new_options() -> None:
    model = build("sean")
    first = accelerate(model)
    classes = [type(m) for m in model.modules()]
    second = accelerate(model)
    assert [type(m) for m in model.modules()] == classes
    assert first == second
    accelerate(model, noise="device")
    assert model.up_0.ace_0._mixsyn_options.noise == "device"
    without = accelerate(model, prepack=False)
    assert without.count("conv2d") == 0 and type(model.conv_img) is nn.Conv2d
    restore(model)
    assert type(model) is pub.SEANGenerator


def test_report_text() -> None:
    model = build("spade")
    for norm in (model.up_2.norm_0, model.up_2.norm_1, model.up_2.norm_s):
        norm.mlp_beta = nn.Conv2d(16, norm.mlp_beta.out_channels, 4, padding="same").double()
    model.up_3.norm_0.param_free_norm = nn.LayerNorm(3).double()
    model.up_1.norm_0.mlp_gamma.register_forward_hook(lambda *a: None)
    model.up_1.norm_1 = nn.utils.parametrizations.weight_norm(model.up_1.norm_1.mlp_beta) and model.up_1.norm_1
    report = accelerate(model)
    text = str(report)
    reasons = {entry.name: entry.note for entry in report.left}
    assert {n for n in reasons} == {
        "up_2.norm_0",
        "up_2.norm_1",
        "up_2.norm_s",
        "up_3.norm_0",
        "up_1.norm_0",
        "up_1.norm_1",
    }
    assert "unusual kernel" in reasons["up_2.norm_0"] and "hook" in reasons["up_1.norm_0"]
    assert "LayerNorm" in reasons["up_3.norm_0"]
    assert "12 x SPADE normalisation" in text and "unusual kernel" in text and "left as it was: 6" in text, text


def test_kernels_of_five() -> None:
    plain, fast = build("spade", ks=5), build("spade", ks=5)
    report = accelerate(fast)
    assert report.count("spade") == 18 and not report.left
    inputs = make_inputs("spade")
    with torch.no_grad():
        assert close(run(fast, *inputs), run(plain, *inputs))


class Scaled(pub.SPADE):
    """Has the attributes of SPADE but another formula."""

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        return 2 * super().forward(x, segmap)


class OtherSignature(pub.SPADE):
    """Needs one more argument."""

    def forward(self, x: Tensor, segmap: Tensor, edge: Tensor) -> Tensor:
        return super().forward(x, segmap) + edge


class PreResized(pub.SPADE):
    """Adds an optional argument."""

    def forward(self, x: Tensor, segmap: Tensor, bonus: float | None = None) -> Tensor:
        return super().forward(x, segmap) + (bonus or 0)


class MatrixAffine(pub.ClassAffine):
    """CLADE by a matrix product: pixels of no region give zero."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scale = torch.einsum("bkhw,kc->bchw", mask, self.weight)
        return x * scale + torch.einsum("bkhw,kc->bchw", mask, self.bias)


def test_the_formula_is_checked() -> None:
    holder = nn.ModuleDict({"a": Scaled(4, 3), "b": OtherSignature(4, 3), "c": PreResized(4, 3), "d": pub.SPADE(4, 3)})
    holder["e"] = pub.CLADE(4, 3)
    holder["e"].class_specified_affine = MatrixAffine(3, 4)
    state = {n: v.clone() for n, v in holder.state_dict().items()}
    rng = torch.get_rng_state()
    report = accelerate(holder)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[n]) for n, v in holder.state_dict().items())
    reasons = {entry.name: entry.note for entry in report.left}
    assert set(reasons) == {"a", "b", "e"}
    assert "formula" in reasons["a"] and "edge" in reasons["b"] and "formula" in reasons["e"]
    x, segmap = torch.randn(2, 4, 8, 8), pub.onehot(pub.blobs(2, 3, 16, 16, ignored=True), 3)
    with torch.no_grad():
        for name in "acd":
            plain = copy.deepcopy(holder[name])
            restore(plain)
            assert close(holder[name](x, segmap), plain(x, segmap), 1e-5)


class Locked(nn.BatchNorm2d):
    """A synchronised norm of somebody else: cannot be copied, and computes otherwise once it is parallel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.lock = threading.Lock()
        self._is_parallel = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self._is_parallel else 1)


@pytest.mark.parametrize("kind", ["spade", "clade", "sean"])
def test_a_group_norm_in_the_place_of_a_batch_norm(kind: str) -> None:
    """Without parameters: outputs and, in training, the gradient of x."""
    made = {"spade": pub.SPADE(8, K), "clade": pub.CLADE(8, K), "sean": pub.ACE(8, K, STYLE)}[kind]
    made.param_free_norm = nn.GroupNorm(4, 8, affine=False)
    plain = pub.randomise(made).double()
    layer = copy.deepcopy(plain)
    report = accelerate(layer)
    assert report.count(kind) == 1 and not report.left, str(report)
    x, segmap = torch.randn(2, 8, 8, 8).double(), pub.onehot(pub.blobs(2, K, 8, 8), K).double()
    given = [segmap, torch.randn(2, K, STYLE).double()] if kind == "sean" else [segmap]
    for training in (True, False):
        found = []
        for form in (layer.train(training), plain.train(training)):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(4)
            y = form(leaf, *given)
            found.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
        assert all(close(a, b, 1e-10) for a, b in zip(*found, strict=True))


def test_third_party_synchronised_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    layer, plain = pub.ACE(4, K, STYLE), pub.ACE(4, K, STYLE)
    plain.load_state_dict(layer.state_dict())
    layer.param_free_norm, layer.Spade.param_free_norm = Locked(4), Locked(4)
    report = accelerate(layer)
    assert report.count("sean") == 1, str(report)
    args = torch.randn(2, 4, 8, 8), pub.onehot(pub.blobs(2, K, 8, 8), K), torch.randn(2, K, STYLE)
    for training in (True, False):
        layer.train(training), plain.train(training)
        assert close(run(layer, *args), run(plain, *args), 1e-5)
    assert torch.allclose(layer.param_free_norm.running_var, plain.param_free_norm.running_var)
    layer.train()
    layer.param_free_norm._is_parallel = True
    with pytest.warns(FallbackWarning, match="between replicas"):
        parallel = run(layer, *args)
    restore(layer)
    assert torch.equal(parallel, run(layer, *args))


def test_further_arguments_run_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PreResized(4, 3).eval()
    accelerate(layer)
    x, segmap = torch.randn(1, 4, 8, 8), pub.onehot(pub.blobs(1, 3, 8, 8), 3)
    with torch.no_grad():
        expected = pub.SPADE.forward(layer, x, segmap)
        assert torch.allclose(layer(x, segmap=segmap), expected, atol=1e-5)
        assert torch.allclose(layer(segmap=segmap, x=x), expected, atol=1e-5)
        with pytest.raises(RuntimeError, match="further arguments"):
            layer(x, segmap, 1.0)
        monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
        monkeypatch.setattr("mixsyn_fast.backend._announced", set())
        with pytest.warns(FallbackWarning, match="further arguments"):
            assert torch.allclose(layer(x, segmap, 1.0), expected + 1, atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(x, segmap, 1.0)


@pytest.mark.parametrize("family", ["sean", "spade", "clade"])
def test_soft_maps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    plain, fast = build(family), build(family)
    accelerate(fast)
    onehot, *rest = make_inputs(family)
    soft = torch.softmax(torch.randn(onehot.shape, dtype=torch.float64) * 2, 1)
    negative = soft - 0.2
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error" if family == "spade" else "ignore")
        assert close(run(fast, soft, *rest), run(plain, soft, *rest))
        assert close(run(fast, negative, *rest), run(plain, negative, *rest))


def test_soft_map_blend_is_the_hard_form_at_the_corners() -> None:
    fast = build("sean")
    accelerate(fast, soft_masks="blend")
    onehot, image = make_inputs("sean")
    nearly = onehot.clone()
    nearly[:, 0] += 1e-13 * (onehot.sum(1) > 0) * (1 - onehot[:, 0])
    with torch.no_grad():
        assert close(run(fast, nearly, image), run(fast, onehot, image), 1e-9)


def test_map_that_requires_grad() -> None:
    plain, fast = build("spade"), build("spade")
    accelerate(fast)
    (onehot,) = make_inputs("spade")
    a, b = onehot.clone().requires_grad_(), onehot.clone().requires_grad_()
    expected, result = run(plain, a), run(fast, b)
    assert close(result, expected)
    expected.square().mean().backward()
    result.square().mean().backward()
    assert close(b.grad, a.grad, 1e-8)


def test_edges_are_found() -> None:
    plain, fast = build("spade", regions=K + 1), build("spade", regions=K + 1)
    other = build("spade", regions=K + 1)
    accelerate(fast)
    accelerate(other, num_regions=K)
    (onehot,) = make_inputs("spade")
    edges = (torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(3)) < 0.2).double()
    segmap = torch.cat([onehot, edges], 1)
    assert implementation.analyse(segmap, None).edges is not None
    assert implementation.analyse(segmap, K).edges is not None
    with torch.no_grad():
        expected = run(plain, segmap)
        assert close(run(fast, segmap), expected)
        assert close(run(other, segmap), expected)


def test_map_changed_between_and_within_calls(analyses: list) -> None:
    plain, fast = build("spade"), build("spade")
    accelerate(fast)
    (first,), (second,) = make_inputs("spade", seed=1), make_inputs("spade", seed=2)
    with torch.no_grad():
        for segmap in (first, second, first):
            assert close(run(fast, segmap), run(plain, segmap))
        first.copy_(second)  # the same tensor, other values
        assert close(run(fast, first), run(plain, second))
        first.numpy()[:] = first.flip(3).numpy()  # no version counter sees this
        assert close(run(fast, first), run(plain, second.flip(3)))
    assert len(analyses) == 5

    class Editing(nn.Module):
        """Edits the map in place between two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = pub.SPADE(4, K).double(), pub.SPADE(4, K).double()

        def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
            x = self.a(x, segmap)
            segmap.copy_(segmap.flip(2))
            return self.b(x, segmap)

    model = Editing().eval()
    x = torch.randn(2, 4, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x, second.clone())
        accelerate(model)
        assert close(model(x, second.clone()), expected)


def test_exception_leaves_nothing_behind(analyses: list) -> None:
    plain, fast = build("spade"), build("spade")
    accelerate(fast)
    (segmap,) = make_inputs("spade")
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*args, error=error):
            raise error("now")

        handle = fast.up_1.register_forward_hook(fail)
        with torch.no_grad(), pytest.raises(error):
            fast(segmap)
        handle.remove()
        assert implementation._thread.maps is None
    segmap.numpy()[:] = segmap.flip(3).numpy()
    with torch.no_grad():
        assert close(run(fast, segmap), run(plain, segmap))
    assert len(analyses) == 3


def test_parameters_changed_between_calls() -> None:
    """In-place edit, load_state_dict, EMA copy, optimiser, .to(), under no_grad and inference_mode."""
    for family in ("sean", "spade", "clade"):
        plain, fast = build(family, torch.float32), build(family, torch.float32)
        accelerate(fast)
        inputs = make_inputs(family, 1, dtype=torch.float32)

        def edit(model: nn.Module) -> None:
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.9)

        def load(model: nn.Module) -> None:
            model.load_state_dict({n: v * 1.05 if v.is_floating_point() else v for n, v in model.state_dict().items()})

        def ema(model: nn.Module) -> None:
            for p in model.parameters():
                p.data.lerp_(torch.full_like(p, 0.01), 0.1)

        def replace(model: nn.Module) -> None:
            for module in model.modules():
                for name, p in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(p.detach() * 1.1))

        def convert(model: nn.Module) -> None:
            model.to(torch.float64).to(torch.float32).to(memory_format=torch.channels_last)

        for mode in (torch.no_grad, torch.inference_mode):
            for change in (edit, load, ema, replace, convert):
                change(plain), change(fast)
                with mode():
                    assert close(run(fast, *inputs), run(plain, *inputs), 1e-4), (family, mode, change)


def test_copies_pickles_and_threads() -> None:
    model = build("sean")
    inputs = make_inputs("sean")
    with torch.no_grad():
        expected = run(model, *inputs)
        accelerate(model)
        run(model, *inputs)
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p.mul_(0.5)
        changed = run(twin, *inputs)
        assert not close(changed, expected, 1e-3)
        assert close(run(model, *inputs), expected)  # the copy's parameters are its own
        restore(twin)
        assert type(twin.up_0.ace_s) is pub.ACE
        assert close(run(twin, *inputs), changed)
        assert type(model.up_0.ace_s) is not pub.ACE

        loaded = pickle.loads(pickle.dumps(model))
        assert type(loaded.up_0.ace_s) is type(model.up_0.ace_s)
        assert close(run(loaded, *inputs), expected)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        fresh = build("sean")
        fresh.load_state_dict(torch.load(buffer, weights_only=True))
        assert close(run(fresh, *inputs), expected)

    spade = build("spade")
    accelerate(spade)
    maps = [make_inputs("spade", 1, seed=s)[0] for s in range(4)]
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(2):
                results[i] = spade(maps[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    restore(spade)
    with torch.no_grad():
        assert all(close(results[i], spade(maps[i])) for i in range(4))


def test_replicas_use_their_own_parameters() -> None:
    """What DataParallel does to a module: a shallow copy of the object whose parameters are replaced."""
    layer = pub.SPADE(4, K).double().eval()
    accelerate(layer)
    replica = layer._replicate_for_data_parallel()
    gamma = layer.mlp_gamma._replicate_for_data_parallel()
    gamma.weight, gamma.bias = layer.mlp_gamma.weight * 3, layer.mlp_gamma.bias * 3
    for name, child in layer._modules.items():
        setattr(replica, name, gamma if name == "mlp_gamma" else child)
    x, segmap = (
        torch.randn(1, 4, 9, 9, dtype=torch.float64),
        pub.onehot(pub.blobs(1, K, 9, 9), K, torch.float64),
    )
    plain = pub.SPADE(4, K).double().eval()
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert close(layer(x, segmap), plain(x, segmap))
        plain.mlp_gamma.weight *= 3
        plain.mlp_gamma.bias *= 3
        assert close(replica(x, segmap), plain(x, segmap))


def test_inside_data_parallel_and_as_a_part(analyses: list) -> None:
    plain, fast = build("spade"), build("spade")
    wrapped = nn.DataParallel(fast)
    report = accelerate(wrapped)
    assert report.count("root") == 1
    (segmap,) = make_inputs("spade")
    with torch.no_grad():
        assert close(wrapped(segmap), run(plain, segmap))
        assert len(analyses) == 1

        class Owner(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.netG = build("spade")

            def forward(self, segmap: Tensor) -> Tensor:
                return self.netG(segmap)

        owner = Owner()
        accelerate(owner)
        analyses.clear()
        assert close(owner(segmap), run(plain, segmap))
        assert len(analyses) == 1
        assert close(owner.netG(segmap), run(plain, segmap))  # called alone: right, though each layer looks for itself


class Modal(pub.ACE):
    """A SEAN layer with modes: "ui" reads codes from obj_dic, of the first image; "test" may write them where that says."""

    def __init__(self, *args, **kw) -> None:
        super().__init__(*args, **kw)
        self.status, self.writes, self.nested = "test", False, True

    def forward(self, x: Tensor, segmap: Tensor, style_codes: Tensor | None = None, obj_dic=None) -> Tensor:
        if self.status == "ui" and self.use_rgb:
            style_codes = torch.zeros(len(x), self.label_nc, self.style, dtype=x.dtype)
            for k in range(self.label_nc):
                if (segmap[0, k] != 0).any():
                    style_codes[0, k] = obj_dic[str(k)]["ACE"] if self.nested else obj_dic[k]
            if len(x) > 1:  # the published loop ends after the first image: no style at all in the others
                pairs = ((x[i : i + 1], segmap[i : i + 1] * (i == 0)) for i in range(len(x)))
                return torch.cat([super(Modal, self).forward(*pair, style_codes) for pair in pairs])
        elif self.writes and self.status == "test":
            with open(obj_dic[0], "w") as file:
                file.write("the codes")
        return super().forward(x, segmap, style_codes, obj_dic)


def modal(generator: nn.Module, status: str = "test") -> nn.Module:
    """Give the layers of a published SEAN generator their modes."""
    for layer in generator.modules():
        if isinstance(layer, pub.ACE):
            layer.__class__ = Modal
            layer.status, layer.writes, layer.nested = status, False, True
    return generator


def switch(model: nn.Module, **attributes) -> None:
    for layer in model.modules():
        if isinstance(layer, Modal):
            vars(layer).update(attributes)


def stored_codes(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    """Return what an editor keeps: a code per region, in a folder of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(STYLE, generator=generator).to(dtype)  # noqa: E731
    return {str(k): {"other": draw(), "ACE": draw(), "note": "text"} for k in range(K)}


@pytest.mark.parametrize("before", ["test", "ui"])
def test_codes_of_obj_dic_where_the_mode_reads_them(before: str) -> None:
    """SEAN as it is deployed: in interactive editing all 18 layers read obj_dic, whichever mode accelerate() found."""
    plain, fast = modal(build("sean"), before), modal(build("sean"), before)
    report = accelerate(fast)
    assert report.count("sean") == LAYERS["sean"] and not report.left, str(report)
    onehot, image = make_inputs("sean", 1)
    with torch.no_grad():
        for model in (plain, fast):
            switch(model, status="ui")
        for seed in (0, 1):
            assert close(run(fast, onehot, image, stored_codes(seed)), run(plain, onehot, image, stored_codes(seed)))
        assert not close(run(fast, onehot, image, stored_codes(0)), run(fast, onehot, image, stored_codes(1)), 1e-3)
        for model in (plain, fast):
            switch(model, status="test")
        inputs = make_inputs("sean", 2)
        assert close(run(fast, *inputs, ["a.jpg", "b.jpg"]), run(plain, *inputs, ["a.jpg", "b.jpg"]))


def test_codes_of_obj_dic_by_number_and_in_training() -> None:
    layer = pub.randomise(Modal(4, K, STYLE)).double()
    layer.status, layer.nested = "ui", False
    plain = copy.deepcopy(layer)
    assert accelerate(layer).count("sean") == 1
    codes = {k: torch.randn(STYLE, dtype=torch.float64) for k in range(K)}
    x, segmap = torch.randn(1, 4, 9, 9).double(), pub.onehot(pub.blobs(1, K, 9, 9), K, torch.float64)
    given = [{k: code.clone().requires_grad_() for k, code in codes.items()} for _ in "ab"]
    for model, obj_dic in zip((plain, layer), given, strict=True):
        run(model, x, segmap, None, obj_dic).square().mean().backward()
    for k in codes:
        a, b = (obj_dic[k].grad for obj_dic in given)
        assert (a is None) or close(b, a, 1e-8)
    assert any(code.grad is not None for code in given[0].values())


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fallback is a warning, each time."""
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    monkeypatch.setattr("mixsyn_fast.backend._announced", set())


def test_obj_dic_that_cannot_be_treated_runs_the_original(lenient: None, tmp_path) -> None:
    layer = pub.randomise(Modal(4, K, STYLE)).double().eval()
    plain = copy.deepcopy(layer)
    accelerate(layer)
    x, segmap = torch.randn(2, 4, 9, 9).double(), pub.onehot(pub.blobs(2, K, 9, 9), K, torch.float64)
    codes = torch.randn(2, K, STYLE).double()
    file = tmp_path / "codes"
    with torch.no_grad():
        switch(layer, writes=True)
        with pytest.warns(FallbackWarning, match="something else than the style codes"):
            assert close(run(layer, x, segmap, codes, [str(file)]), run(plain, x, segmap, codes))
        assert file.read_text() == "the codes"
        switch(layer, status="ui"), switch(plain, status="ui")
        # several images: the layer styles the first alone (the reason is the same, and was said)
        assert close(run(layer, x, segmap, codes, stored_codes()), run(plain, x, segmap, codes, stored_codes()))
        few = {key: value for key, value in stored_codes().items() if int(key) < 2}
        with pytest.warns(FallbackWarning, match="no style code of region 2"), pytest.raises(KeyError):
            run(layer, x[:1], segmap[:1], codes[:1], few)


def test_the_check_writes_no_file(lenient: None, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Modal(4, K, STYLE).eval()
    layer.writes = True
    monkeypatch.chdir(tmp_path)
    assert accelerate(layer).count("sean") == 1
    layer.status = "ui"
    with torch.no_grad(), pytest.warns(FallbackWarning), pytest.raises(TypeError):
        layer(torch.randn(1, 4, 8, 8), pub.onehot(pub.blobs(1, K, 8, 8), K), None, ["path"])
    assert not list(tmp_path.iterdir())


def test_the_old_option_is_warned_of() -> None:
    with pytest.warns(DeprecationWarning, match="ignore_obj_dic"):
        accelerate(build("sean"), ignore_obj_dic=True)


def test_device_noise_has_the_same_distribution() -> None:
    layer = pub.ACE(8, K, STYLE).eval()
    nn.init.constant_(layer.noise_var, 1.0)
    for p in (*layer.Spade.parameters(), *layer.conv_gamma.parameters(), *layer.conv_beta.parameters()):
        nn.init.zeros_(p)
    accelerate(layer, noise="device")
    segmap = pub.onehot(pub.blobs(1, K, 64, 64), K)
    with torch.no_grad():
        y = layer(torch.zeros(1, 8, 64, 64), segmap, torch.zeros(1, K, STYLE))
    assert torch.allclose(y, y[:, :1].expand_as(y), atol=1e-6)  # one value for a pixel, shared by the channels
    assert abs(y[:, 0].mean()) < 0.1 and abs(y[:, 0].std() - 1) < 0.1


def test_hook_added_later_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    layer = pub.SPADE(4, K).eval()
    accelerate(layer)
    seen = []
    layer.mlp_gamma.register_forward_hook(lambda m, a, y: seen.append(y.shape))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer(torch.randn(1, 4, 8, 8), pub.onehot(pub.blobs(1, K, 8, 8), K))
    assert len(seen) == 1


def test_hooks_on_a_swapped_layer_still_run() -> None:
    layer = pub.SPADE(4, K).eval()
    layer.register_forward_hook(lambda m, a, y: y * 2)
    plain = copy.deepcopy(layer)
    accelerate(layer)
    x, segmap = torch.randn(1, 4, 8, 8), pub.onehot(pub.blobs(1, K, 8, 8), K)
    with torch.no_grad():
        assert close(layer(x, segmap), plain(x, segmap), 1e-5)


def test_forward_that_needs_cuda() -> None:
    """The published layers call .cuda(): our form runs where theirs cannot, and the report says it is
    unchecked.
    """
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")

    class Hard(pub.SPADE):
        def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
            return super().forward(x, segmap.cuda())

    layer = Hard(4, K).eval()
    report = accelerate(layer)
    assert "unchecked" in report.changed[0].note
    x, segmap = torch.randn(1, 4, 8, 8), pub.onehot(pub.blobs(1, K, 8, 8), K)
    with torch.no_grad():
        assert close(layer(x, segmap), pub.SPADE.forward(layer, x, segmap), 1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module"):
        accelerate(3)
    with pytest.raises(ValueError, match="noise"):
        accelerate(nn.Identity(), noise="none")
    with pytest.raises(ValueError, match="soft_masks"):
        accelerate(nn.Identity(), soft_masks="hard")
    report = accelerate(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    assert not report.changed and not report.left and "changed: 0" in str(report)


def test_someone_else_subclasses_afterwards() -> None:
    model = build("clade")
    accelerate(model)
    layer = model.up_0.norm_0
    layer.__class__ = type("Sharded", (type(layer),), {})
    with pytest.raises(RuntimeError, match="Sharded"):
        restore(model)


def test_autocast_like_the_original() -> None:
    plain, fast = build("spade", torch.float32), build("spade", torch.float32)
    accelerate(fast)
    (segmap,) = make_inputs("spade", dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a, b = run(plain, segmap), run(fast, segmap)
    with torch.no_grad():
        exact = run(plain, segmap)
    assert (b.float() - exact).abs().mean() <= 2 * (a.float() - exact).abs().mean() + 1e-6


def test_torch_compile_runs() -> None:
    plain, fast = build("spade"), build("spade")
    accelerate(fast)
    compiled = torch.compile(fast, backend="eager")
    (segmap,) = make_inputs("spade")
    with torch.no_grad():
        assert close(compiled(segmap), run(plain, segmap))
        other = segmap.flip(3).contiguous()
        assert close(compiled(other), run(plain, other))


def test_interpolated_map_of_the_model() -> None:
    """A generator that resizes the map itself, once for each level."""

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (pub.SPADE(4, K).double() for _ in range(3))

        def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
            small = F.interpolate(segmap, size=x.shape[2:], mode="nearest")
            return self.c(self.b(self.a(x, small), small), segmap)

    model = Levels().eval()
    x = torch.randn(2, 4, 20, 20, dtype=torch.float64)
    (segmap,) = make_inputs("spade")
    with torch.no_grad():
        expected = model(x, segmap)
        accelerate(model)
        assert close(model(x, segmap), expected)


def test_spectral_norm_is_folded_and_followed() -> None:
    """Foreign models keep the hook in eval: we fold once, follow every change, and leave training to the hook."""
    plain, fast = build("spade", torch.float32, spectral=True), build("spade", torch.float32, spectral=True)
    report = accelerate(fast)
    assert report.count("spectral_conv2d") == 18 and not report.left
    inputs = make_inputs("spade", 1, dtype=torch.float32)

    def train(model: nn.Module) -> None:
        model.train()
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
        model(*inputs).square().mean().backward()
        optimiser.step()
        model.eval()

    def edit(model: nn.Module) -> None:
        with torch.no_grad():
            model.up_0.conv_0.weight_orig.mul_(1.3)
            model.up_0.conv_0.weight_orig[0].add_(0.1)
            model.up_1.conv_1.bias.add_(1)

    def load(model: nn.Module) -> None:
        state = model.state_dict()
        name = "up_2.conv_0.weight_u"
        model.load_state_dict(state | {name: F.normalize(state[name] + 0.3, dim=0)})

    def rebind(model: nn.Module) -> None:
        model.up_0.conv_1.weight_orig = nn.Parameter(model.up_0.conv_1.weight_orig.detach() + 0.05)
        model.up_0.conv_1.bias = nn.Parameter(model.up_0.conv_1.bias.detach() + 0.5)

    for mode in (torch.no_grad, torch.inference_mode):
        for change in (lambda model: None, edit, load, rebind, train):
            change(plain), change(fast)
            for _ in range(2):
                with mode():
                    assert close(run(fast, *inputs), run(plain, *inputs), 1e-4), (mode, change)
            assert torch.allclose(fast.up_0.conv_1.weight, plain.up_0.conv_1.weight, atol=1e-5)
        # gradients in eval go through the hook
        grads = []
        for model in (plain, fast):
            model.zero_grad()
            model(*inputs).square().mean().backward()
            grads.append(model.up_0.conv_1.weight_orig.grad)
        assert close(grads[1], grads[0], 1e-3)
    # a hook that comes later is honoured
    seen = []
    fast.up_0.conv_0.register_forward_hook(lambda m, a, y: seen.append(1))
    with torch.no_grad():
        fast(*inputs)
    assert seen == [1]
    assert set(fast.state_dict()) == set(plain.state_dict())
    restore(fast)
    assert type(fast.up_0.conv_0) is nn.Conv2d


def test_first_forward_in_inference_mode_then_training() -> None:
    plain, fast = build("sean", torch.float32), build("sean", torch.float32)
    accelerate(fast)
    inputs = make_inputs("sean", dtype=torch.float32)
    for model in (plain, fast):
        with torch.inference_mode():
            run(model, *inputs)
        model.train()
        run(model, *inputs).mean().backward()
    assert close(fast.up_2.ace_0.conv_gamma.weight.grad, plain.up_2.ace_0.conv_gamma.weight.grad, 1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_training_with_an_optimiser_that_is_already_running(fused: bool) -> None:
    """accelerate() between two steps: a fused optimiser walks parameter, gradient and state in storage order."""
    plain, fast = build("spade").train(), build("spade").train()
    inputs = make_inputs("spade")
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9, fused=fused) for m in (plain, fast)]
    for step in range(3):
        if step == 1:
            accelerate(fast)
        for model, optimiser in zip((plain, fast), optimisers, strict=True):
            optimiser.zero_grad()
            run(model, *inputs, seed=step).square().mean().backward()
            optimiser.step()
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), name


class _Viewed(nn.Module):
    """A SPADE layer outside of any residual block, followed by code that depends on the memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = pub.SPADE(4, 3)

    def forward(self, x, segmap):
        return self.norm(x, segmap).view(x.shape[0], -1)


def test_code_that_views_the_output_of_a_layer_still_runs():
    model = _Viewed().eval()
    labels = torch.randint(0, 3, (2, 8, 8))
    segmap = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    x = torch.randn(2, 4, 8, 8)
    expected = model(x, segmap)
    assert accelerate(model).count("spade") == 1
    torch.testing.assert_close(model(x, segmap), expected, atol=1e-5, rtol=1e-5)
    accelerate(model, channels_last=True)
    with pytest.raises(RuntimeError) as caught:
        model(x, segmap)
    assert any("channels_last=False" in note for note in caught.value.__notes__)


def patched(layer: nn.Module) -> nn.Module:
    """Give a layer a forward of the object's own."""
    layer.forward = lambda x, segmap: x  # type: ignore[method-assign]
    return layer


def without(layer: nn.Module, name: str) -> nn.Module:
    """Replace a part by one outside of the contract."""
    layer.set_submodule(name, nn.Identity())
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: patched(pub.SPADE(4, 3)), "patched by somebody else"),
        (lambda: without(pub.SPADE(4, 3), "mlp_shared"), "mlp_shared is Identity, no convolution"),
        (lambda: without(pub.SPADE(4, 3), "mlp_gamma"), "mlp_gamma is Identity, no convolution"),
        (lambda: without(pub.ACE(4, K, STYLE), "fc_mu1"), "fc_mu1 is not a Linear"),
        (lambda: without(pub.CLADE(4, 3), "class_specified_affine"), "does not hold weight and bias"),
        (lambda: pub.SPADE(4, 3).to("meta"), "meta device"),
    ],
    ids=["forward", "shared", "gamma", "linear", "affine", "meta"],
)
def test_why_a_layer_is_left(layer, words: str) -> None:
    report = accelerate(nn.ModuleDict({"a": layer()}))
    assert [entry.name for entry in report.left if entry.kind != "conv2d"] == ["a"]
    assert words in report.left[0].note


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda layer, x, m: layer(x, m.long()), "the map is not a float tensor of four dimensions"),
        (lambda layer, x, m: layer(x[0], m), "x is not a float tensor of four dimensions"),
        (lambda layer, x, m: layer(x, m[:1]), "differ in batch size or device"),
        (lambda layer, x, m: layer(x[:0], m[:0]), "an input is empty"),
        (lambda layer, x, m: layer(x, m[:, :2]), "the map has 2 channels, the layer 3"),
        (lambda layer, x, m: layer(x), "without its map"),
    ],
    ids=["dtype", "rank", "batch", "empty", "channels", "missing"],
)
def test_why_a_call_runs_the_original(call, words: str) -> None:
    layer = pub.SPADE(4, 3).eval()
    accelerate(layer)
    with torch.no_grad(), pytest.raises(RuntimeError, match=words):
        call(layer, torch.randn(2, 4, 8, 8), pub.onehot(pub.blobs(2, 3, 8, 8), 3))


class Pair(NamedTuple):
    """Two pictures."""

    first: Tensor
    second: Tensor


class Several(nn.Module):
    """A model that returns its pictures in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = pub.SPADE(4, 3)

    def forward(self, x: Tensor, segmap: Tensor):
        y = self.norm(x, segmap).contiguous(memory_format=torch.channels_last)
        return {"list": [y, y[0]], "named": Pair(y, y), "text": "as it is", "tuple": (y,)}


def test_pictures_in_containers_are_contiguous() -> None:
    model = Several().eval()
    accelerate(model)
    with torch.no_grad():
        found = model(torch.randn(2, 4, 8, 8), pub.onehot(pub.blobs(2, 3, 8, 8), 3))
    assert found["list"][0].is_contiguous() and found["tuple"][0].is_contiguous() and found["text"] == "as it is"
    assert isinstance(found["named"], Pair) and all(picture.is_contiguous() for picture in found["named"])
    assert list(found) == ["list", "named", "text", "tuple"] and type(found["tuple"]) is tuple


# --- a layer in another state than when it was checked --------------------------------------------------------------------


class Settled(pub.SPADE):
    """SPADE with a switch of its own."""

    factor = 1.0

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        return super().forward(x, segmap) * self.factor


def layer_inputs(regions: int = K, size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, pub.onehot(pub.blobs(2, regions, 2 * size, 2 * size, seed=seed, ignored=True), regions, torch.float64)


def change_part(layer: nn.Module) -> None:
    layer.mlp_shared[1] = nn.LeakyReLU(0.3)


def change_dilation(layer: nn.Module) -> None:
    layer.mlp_gamma.padding = layer.mlp_gamma.dilation = (2, 2)


def change_norm(layer: nn.Module) -> None:
    layer.param_free_norm = nn.InstanceNorm2d(4, eps=0.5).double().eval()


def reparametrise(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer.mlp_gamma)


def without_bias(layer: nn.Module) -> None:
    layer.mlp_beta.bias = None


def with_bias(layer: nn.Module) -> None:
    layer.mlp_beta.bias = nn.Parameter(torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        (lambda layer: setattr(layer, "factor", 2.0), False),
        (change_part, True),
        (change_dilation, False),
        (change_norm, True),
        (reparametrise, False),
        (without_bias, True),
        (with_bias, True),
    ],
    ids=["attribute", "part", "setting", "norm", "parametrised", "bias gone", "bias there"],
)
def test_a_layer_changed_after_the_check(change, ours: bool, lenient: None) -> None:
    """Our form goes on where the check holds in the new state too; else the layer's own forward runs."""
    plain = pub.randomise(Settled(4, K)).double().eval()
    if change is with_bias:
        without_bias(plain)
    fast = copy.deepcopy(plain)
    assert accelerate(fast).count("spade") == 1
    inputs = layer_inputs()
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert close(fast(*inputs), plain(*inputs))
        change(plain), change(fast)
        for _ in range(2):
            assert close(fast(*inputs), plain(*inputs))
    assert any(w.category is FallbackWarning for w in caught) is not ours


def test_a_layer_whose_state_never_comes_back(lenient: None) -> None:
    """It is not checked for ever."""
    plain = pub.randomise(Settled(4, K)).double().eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    inputs = layer_inputs()
    with torch.no_grad(), pytest.warns(FallbackWarning, match="change from call to call"):
        for count in range(12):
            fast.count = count
            assert close(fast(*inputs), plain(*inputs))


def test_a_folded_convolution_follows_its_settings() -> None:
    """The weight is kept, what it was packed for is not taken for granted."""
    for spectral in (False, True):
        plain = pub.maybe_spectral(nn.Conv2d(8, 8, 3, padding=1), spectral)
        model = nn.Sequential(plain).eval()
        fast = copy.deepcopy(model)
        accelerate(fast)
        x = torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            for name, value in (("stride", (2, 2)), ("padding", (3, 3)), ("dilation", (2, 2))):
                assert close(fast(x), model(x), 1e-5)
                setattr(model[0], name, value), setattr(fast[0], name, value)
                assert fast(x).shape == model(x).shape and close(fast(x), model(x), 1e-5)


# --- maps edited behind autograd's back -----------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """A model that edits its map between two layers."""

    def __init__(self, regions: int = K) -> None:
        super().__init__()
        self.a, self.b = (pub.randomise(pub.SPADE(4, regions)).double() for _ in range(2))

    def forward(self, x: Tensor, segmap: Tensor, edit) -> Tensor:
        x = self.a(x, segmap)
        edit(segmap)
        return self.b(x, segmap)


def other_labels(segmap: Tensor) -> Tensor:
    return segmap.roll(1, 1)


EDITS = {
    "copy": lambda m: m.copy_(other_labels(m)),
    ".data": lambda m: m.data.copy_(other_labels(m)),
    "numpy": lambda m: m.numpy().__setitem__(slice(None), other_labels(m).numpy()),
    "one pixel": lambda m: m.data[0, :, 5, 7].copy_(other_labels(m)[0, :, 5, 7]),
    "one pixel to none": lambda m: m.data[0, :, 5, 7].zero_(),
    "pixels of no region": lambda m: m.data[:, 2].add_((m.sum(1) == 0).to(m.dtype)),
    "soft": lambda m: m.data.mul_(0.5),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("permuted", [False, True])
def test_edit_of_the_map_within_a_forward(edit, permuted: bool) -> None:
    plain = TwoLayers().eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, segmap = layer_inputs(size=24)
    segmap = segmap[:, :, ::2, ::2]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            own, theirs = segmap.clone(), segmap.clone()
            if permuted:
                own = own.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
            assert close(fast(x, own, edit), plain(x, theirs, edit)), mode
            assert torch.equal(own, theirs) and not torch.equal(own, segmap)


def test_edit_of_the_edges_within_a_forward() -> None:
    plain = TwoLayers(K + 1).eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, segmap = layer_inputs()
    segmap = torch.cat((segmap, (torch.rand(2, 1, 24, 24) < 0.3).double()), 1)
    flip = lambda m: m.data[:, K].sub_(1).abs_()  # noqa: E731
    with torch.no_grad():
        assert close(fast(x, segmap.clone(), flip), plain(x, segmap.clone(), flip))


def test_a_map_that_stays_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = TwoLayers().eval(), []
    accelerate(model)
    original = implementation.analyse
    monkeypatch.setattr(implementation, "analyse", lambda *args: seen.append(1) or original(*args))
    with torch.no_grad():
        model(*layer_inputs(), lambda m: None)
    assert len(seen) == 1


# --- what is left is said -------------------------------------------------------------------------------------------------


def test_more_regions_than_ours() -> None:
    holder = nn.ModuleDict({"spade": pub.SPADE(4, 600, hidden=4), "clade": pub.CLADE(4, 600), "ace": pub.ACE(4, 520, 8)})
    report = accelerate(holder)
    assert report.count("spade") == 1  # on such maps by convolutions
    reasons = {entry.name: entry.note for entry in report.left}
    assert reasons == {
        "clade": "it has 600 regions, ours at most 512",
        "ace": "it has 520 regions, ours at most 512",
    }


class Named(pub.SPADE):
    """SPADE whose norm has another name, and parameters beyond SPADE's."""

    def __init__(self, channels: int, regions: int) -> None:
        super().__init__(channels, regions)
        self.first_norm, self.factor = self.param_free_norm, nn.Parameter(torch.ones(1))
        del self.param_free_norm

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return self.first_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden) * self.factor


class Block(nn.Module):
    """Takes (x, map) and hands them on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = layer

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        return self.norm(x, segmap)


class Optional(nn.Module):
    """Needs no map, and has no parameters."""

    def forward(self, x: Tensor, *, segmap: Tensor | None = None) -> Tensor:
        return x


def test_layers_that_take_a_map_and_are_not_known_are_listed() -> None:
    model = nn.ModuleDict(
        {"a": Block(Named(4, 3)), "b": Block(pub.SPADE(4, 3)), "c": Block(nn.Bilinear(2, 2, 2)), "d": Optional()}
    )
    report = accelerate(model)
    told = {entry.name: entry for entry in report.left}
    assert set(told) == {"a.norm", "c", "d"} and report.count("spade") == 1  # the innermost; torch's own are none
    assert told["a.norm"].kind == "unrecognised" and told["a.norm"].note.endswith("for SPADE it lacks param_free_norm")
    assert "takes (x, segmap)" in told["c"].note
    assert "layer that takes a map: its forward takes (x, segmap)" in str(report)
    assert [entry.name for entry in accelerate(Named(4, 3)).left] == [""]  # the model itself


def test_the_report_says_how_exact() -> None:
    report = accelerate(build("sean", torch.float32))
    by_kind = {entry.kind: entry for entry in report.changed}
    assert by_kind["root"].exactness == "bit-identical"
    assert by_kind["sean"].exactness == "same mathematics in another order"
    assert 0 < by_kind["sean"].error < 1e-5
    assert "same mathematics in another order (error in the check at most" in str(report)
    double = {entry.kind: entry for entry in accelerate(build("sean")).changed}
    assert 0 < double["sean"].error < 1e-13
    loose = accelerate(build("sean"), noise="device", soft_masks="blend")
    note = next(entry.note for entry in loose.changed if entry.kind == "sean")
    assert "another draw" in note and "another formula" in note


class Wide(pub.ACE):
    """Its forward knows its width by heart: a narrow copy of it does not run."""

    def forward(self, x: Tensor, segmap: Tensor, style_codes: Tensor | None = None, obj_dic: dict | None = None) -> Tensor:
        assert x.shape[1] == 20
        return super().forward(x, segmap, style_codes, obj_dic)


def test_what_a_narrow_copy_refuses_is_checked_at_full_width(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, seen = importlib.import_module("mixsyn_fast.accelerate.probe"), []
    original = probe._twin

    def recorded(module: nn.Module, small) -> nn.Module:
        seen.append(bool(small))
        return original(module, small)

    monkeypatch.setattr(probe, "_twin", recorded)
    assert accelerate(Wide(20, K, STYLE)).count("sean") == 1
    assert True in seen and False in seen
    seen.clear()
    assert accelerate(pub.ACE(20, K, STYLE)).count("sean") == 1 and all(seen)


# --- noise and counts of somebody else ------------------------------------------------------------------------------------


class OwnNoise(pub.ACE):
    """Draws its noise from a generator of its own; ``spoilt``: not as the paper says."""

    def __init__(self, *args, spoilt: str = "", **kw) -> None:
        super().__init__(*args, **kw)
        self.source, self.spoilt = torch.Generator().manual_seed(5), spoilt

    def forward(self, x: Tensor, segmap: Tensor, style_codes: Tensor | None = None, obj_dic: dict | None = None) -> Tensor:
        shape = (x.shape[0], x.shape[1] if self.spoilt == "channels" else 1, *x.shape[2:])
        noise = torch.randn(shape, generator=self.source).to(x.dtype) * (3 if self.spoilt == "scale" else 1)
        scale = self.noise_var[:, None, None]
        return (
            super().forward(x + noise * scale, segmap, style_codes)
            if self.spoilt == "twice"
            else self.own(x + noise * scale, segmap, style_codes)
        )

    def own(self, x: Tensor, segmap: Tensor, style_codes: Tensor | None) -> Tensor:
        kept, self.noise_var.data = self.noise_var.data, torch.zeros_like(self.noise_var)
        try:
            return super().forward(x, segmap, style_codes)
        finally:
            self.noise_var.data = kept


def test_noise_from_a_generator_of_its_own() -> None:
    layer = OwnNoise(8, K, STYLE).eval()
    before = layer.source.get_state()
    published = accelerate(nn.ModuleList([layer]))
    assert "noise='device'" in next(e.note for e in published.left if e.kind == "sean")
    assert accelerate(layer, noise="device").count("sean") == 1
    assert torch.equal(layer.source.get_state(), before)
    for spoilt, words in (("channels", "one number per pixel"), ("scale", "not drawn from N(0, 1)"), ("twice", "N(0, 1)")):
        report = accelerate(nn.ModuleList([OwnNoise(64, K, STYLE, spoilt=spoilt)]), noise="device")
        note = next(e.note for e in report.left if e.kind == "sean")
        assert words in note or "published formula" in note, (spoilt, note)


class Uncounted(nn.BatchNorm2d):
    """A batch norm of somebody else that does not count batches, and cannot be copied."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, self.momentum, self.eps)


def test_batches_are_counted_where_the_original_counts_them() -> None:
    for make, counted in ((Uncounted, 0), (lambda c: nn.BatchNorm2d(c, affine=False), 3)):
        plain, fast = pub.SPADE(4, K), pub.SPADE(4, K)
        fast.load_state_dict(plain.state_dict())
        plain.param_free_norm, fast.param_free_norm = make(4), make(4)
        assert accelerate(fast).count("spade") == 1
        x, segmap = (t.float() for t in layer_inputs())
        for _ in range(3):
            plain.train()(x, segmap), fast.train()(x, segmap)
        assert plain.param_free_norm.num_batches_tracked == fast.param_free_norm.num_batches_tracked == counted
        assert torch.allclose(plain.param_free_norm.running_var, fast.param_free_norm.running_var)


class Unchecked(pub.SPADE):
    """Of a class that no other test has checked."""


def test_our_form_failing_in_the_check_is_a_reason_not_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args, **kw):
        raise AssertionError("broken")

    monkeypatch.setattr(importlib.import_module("mixsyn_fast.accelerate.contracts.spade"), "modulate", failing)
    report = accelerate(nn.ModuleList([Unchecked(4, 3)]))
    assert report.left[0].note == "our form does not take it (AssertionError: broken)"


# --- what a review found --------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    A = 1
    B = 2


class Watched(pub.SPADE):
    """A layer whose output depends on something; which is its class's business."""

    def __init__(self, *args, **kw) -> None:
        super().__init__(*args, **kw)
        self.mode, self.opt, self.table = Mode.A, types.SimpleNamespace(factor=1.0, inner={"on": False}), {"factor": 1.0}
        self.names, self.number, self.plain = {"a"}, np.float32(1), torch.ones(1)
        self.register_buffer("switch", torch.tensor(False))

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        factor = self.opt.factor * self.table["factor"] * float(self.number) * float(self.plain)
        switches = self.mode is Mode.B, "b" in self.names, bool(self.switch), self.opt.inner["on"], hasattr(self, "later")
        return super().forward(x, segmap) * factor * (1 + sum(switches))


WATCHED = {
    "enum": lambda layer: setattr(layer, "mode", Mode.B),
    "field of an object": lambda layer: setattr(layer.opt, "factor", 2.0),
    "entry of an object's dict": lambda layer: layer.opt.inner.update(on=True),
    "entry of a dict": lambda layer: layer.table.update(factor=2.0),
    "set": lambda layer: layer.names.add("b"),
    "numpy": lambda layer: setattr(layer, "number", np.float32(2)),
    "tensor": lambda layer: layer.plain.fill_(2),
    "buffer": lambda layer: layer.switch.fill_(True),
    "new buffer": lambda layer: layer.register_buffer("later", torch.zeros(1)),
}


@pytest.mark.parametrize("change", WATCHED.values(), ids=WATCHED.keys())
def test_what_a_layer_holds_is_part_of_its_state(change, lenient: None) -> None:
    plain = pub.randomise(Watched(4, K)).double().eval()
    plain.switch.fill_(False)
    plain.opt.inner["on"] = False
    fast = copy.deepcopy(plain)
    assert accelerate(fast).count("spade") == 1
    inputs = layer_inputs()
    with torch.no_grad():
        assert close(fast(*inputs), plain(*inputs))
        change(plain), change(fast)
        with pytest.warns(FallbackWarning, match="published formula"):
            assert close(fast(*inputs), plain(*inputs))


def test_forwards_and_hooks_that_others_patch(lenient: None) -> None:
    plain = pub.randomise(pub.ACE(4, K, STYLE)).double().eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, segmap = layer_inputs()
    inputs = x, segmap, torch.randn(2, K, STYLE).double()
    with torch.no_grad():
        assert close(run(fast, *inputs), run(plain, *inputs))
        for layer in (plain, fast):
            layer.fc_mu0.forward = lambda code, layer=layer: 2 * F.linear(code, layer.fc_mu0.weight, layer.fc_mu0.bias)
        with pytest.warns(FallbackWarning):
            assert close(run(fast, *inputs), run(plain, *inputs))
        del plain.fc_mu0.forward, fast.fc_mu0.forward
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, y: y * 2 if isinstance(module, nn.Conv2d) else None
        )
        try:
            with pytest.warns(FallbackWarning, match="hook of all modules"):
                assert close(run(fast, *inputs), run(plain, *inputs))
        finally:
            handle.remove()


class Peeking(pub.ACE):
    """Uses obj_dic in a way of its own: `how`."""

    how = ""

    def forward(self, x: Tensor, segmap: Tensor, style_codes: Tensor | None = None, obj_dic=None) -> Tensor:
        codes = style_codes
        if self.how == "presence" and obj_dic is not None:
            codes = codes * 2
        elif self.how == "isinstance" and isinstance(obj_dic, dict):
            codes = torch.stack([obj_dic[str(k)]["ACE"] for k in range(self.label_nc)]).expand(len(x), -1, -1)
        elif self.how == "except":
            try:
                codes = torch.stack([obj_dic[str(k)]["ACE"] for k in range(self.label_nc)]).expand(len(x), -1, -1)
            except BaseException:
                pass
        elif self.how == "edited" and obj_dic is not None:
            codes = [obj_dic[str(k)].get("edited", obj_dic[str(k)]["ACE"]) for k in range(self.label_nc)]
            codes = torch.stack(codes).expand(len(x), -1, -1)
        elif self.how == "strength" and obj_dic is not None:
            codes = codes * obj_dic.get("strength", 1.0)
        return super().forward(x, segmap, codes)


@pytest.mark.parametrize("how", ["presence", "isinstance", "except", "edited", "strength"])
def test_obj_dic_used_in_other_ways(how: str, lenient: None) -> None:
    """Whatever a layer does with obj_dic, and whatever is added to it later: the layer's own numbers."""
    plain = pub.randomise(Peeking(4, K, STYLE)).double().eval()
    plain.how = how
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, segmap = layer_inputs()
    codes, stored = torch.randn(2, K, STYLE).double(), stored_codes()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            assert close(run(fast, x, segmap, codes, stored), run(plain, x, segmap, codes, stored))
            assert close(run(fast, x, segmap, codes), run(plain, x, segmap, codes)) or how == "edited"
        stored["strength"] = 0.5
        for k in range(K):
            stored[str(k)]["edited"] = torch.randn(STYLE).double()
        assert close(run(fast, x, segmap, codes, stored), run(plain, x, segmap, codes, stored))


class Detached(pub.SPADE):
    """The published output with other gradients."""

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class Writing(pub.SPADE):
    """Changes its input."""

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        return super().forward(x.clamp_(-1, 1), segmap)


class Counting(pub.SPADE):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x, segmap)


@pytest.mark.parametrize(
    ("layer", "words"), [(Detached, "gradients"), (Writing, "changes its input"), (Counting, "changes attributes")]
)
def test_effects_beyond_the_output_are_part_of_the_check(layer: type[pub.SPADE], words: str) -> None:
    assert words in accelerate(nn.ModuleList([layer(4, K)])).left[0].note


def test_frozen_norms_of_a_layer_in_training() -> None:
    plain = pub.randomise(pub.SPADE(4, K)).double().train()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    inputs = layer_inputs()
    for layer in (plain, fast):
        layer.param_free_norm.eval()
    assert close(fast(*inputs), plain(*inputs))
    assert torch.equal(fast.param_free_norm.running_mean, plain.param_free_norm.running_mean)


@pytest.mark.parametrize("edit", [lambda m: m.mul_(0.3), lambda m: m.copy_(F.one_hot(m.argmax(1), K).permute(0, 3, 1, 2))])
def test_soft_inference_map_edited_within_a_forward(edit) -> None:
    plain = TwoLayers().eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, segmap = layer_inputs()
    with torch.inference_mode():
        soft = torch.softmax(segmap, 1)
        assert close(fast(x, soft.clone(), edit), plain(x, soft.clone(), edit))


def test_models_that_only_look_like_a_style_encoder() -> None:
    class Conditional(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.model = nn.Sequential(*layers, nn.Tanh())

        def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
            return self.model(torch.cat((noise, labels), 1))

    assert "no convolution" in accelerate(Conditional(nn.Linear(4, 4))).left[0].note
    assert "no" in accelerate(Conditional(nn.ReLU())).left[0].note
    strange = nn.Sequential(nn.Conv2d(4, 4, 3)).eval()
    strange[0].dilation = strange[0].stride = 1  # legal for torch
    plain = copy.deepcopy(strange)
    accelerate(strange)
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert close(strange(x), plain(x), 1e-5)


def test_nothing_is_learned_from_an_empty_batch_or_inside_torch_func(lenient: None) -> None:
    layer = pub.randomise(Unchecked(4, K, hidden=8)).double().eval()
    layer.another = "state"
    plain = copy.deepcopy(layer)
    accelerate(layer)
    x, segmap = layer_inputs()
    layer.another = plain.another = "and yet another"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer(x[:0], segmap[:0])
        torch.func.vmap(lambda a, b: layer(a[None], b[None])[0])(x, segmap)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(layer(x, segmap), plain(x, segmap))
    with torch.autograd.forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(layer(dual, segmap)).tangent is not None


def test_the_check_leaves_nothing_behind() -> None:
    """No stream of random numbers moves, and nothing that a layer holds is kept alive."""

    class Owner:
        def act(self) -> None: ...

    class Drawing(pub.SPADE):
        def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
            random.random(), np.random.rand()
            return super().forward(x, segmap)

    layer, owner = Drawing(4, K), Owner()
    layer.act, layer.more = owner.act, [owner]
    before = random.getstate(), np.random.get_state()[1].copy()
    assert accelerate(layer).count("spade") == 1
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])
    alive = weakref.ref(owner)
    del layer, owner
    gc.collect()
    assert alive() is None


def test_the_first_call_finds_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = importlib.import_module("mixsyn_fast.accelerate.probe")
    layer = type("Fresh", (pub.SPADE,), {})(4, K).double().eval()
    accelerate(layer)
    monkeypatch.setattr(probe, "check", lambda *args: pytest.fail("checked again"))
    with torch.no_grad():
        layer(*layer_inputs())
