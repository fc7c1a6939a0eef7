"""StyleFusion's layers: every plan and backend against an independent plain form, gradients, hierarchy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixsyn_fast import use_backend, use_plan
from mixsyn_fast.layers import fusion
from mixsyn_fast.layers.fusion import EqualizedLinear, FusionNet, LatentBlender, fuse_level
from mixsyn_fast.layers.fusion_hierarchy import FusionConfig, FusionHierarchy
from mixsyn_fast.ops.latent_blend import StyleLayout
from tests.compare import assert_within_rule, relative_error
from tests.layers import stylefusion_published as published
from tests.layers.stylefusion_published import PublishedFusionNet, as_lists

# as StyleGAN2's, in small: coarse layers of one width, later ones narrower
CONV, RGB = [64] * 6 + [32, 32, 16], [64, 64, 64, 64, 64, 32, 8]
LAYOUT, DEPTH, HIDDEN = StyleLayout.of(CONV, RGB), 64, 40
# widths that differ among the coarse layers as well, few layers
ODD_CONV, ODD_RGB = [12, 6, 12, 3], [4, 12, 1, 2, 6, 6]
LAYOUTS = {"regular": (CONV, RGB, 64), "odd": (ODD_CONV, ODD_RGB, 12), "no rgb": ([8, 4, 8], [], 8)}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights for which q takes all values, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * (130 if p.dim() == 2 else 60))
    return net


def pair(
    name: str = "regular", dtype: torch.dtype = torch.float64, on_b: bool = True, seed: int = 0
) -> tuple[FusionNet, PublishedFusionNet]:
    conv, rgb, depth = LAYOUTS[name]
    theirs = PublishedFusionNet(HIDDEN, on_b, depth).to(dtype)
    randomised(theirs, seed)
    ours = FusionNet(StyleLayout.of(conv, rgb), hidden=HIDDEN, depth=depth, q_on="b" if on_b else "a").to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def codes(size: int, batch: int = 3, dtype: torch.dtype = torch.float64, count: int = 3, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the batched products of GPUs on the CPU."""
    monkeypatch.setattr(fusion, "_takes_stack", lambda blenders, codes: fusion._alike(blenders))


def ways() -> Iterator[tuple[str, Callable[[], ExitStack]]]:
    def way(plan: str, backend: str) -> Callable[[], ExitStack]:
        def enter() -> ExitStack:
            stack = ExitStack()
            stack.enter_context(use_plan(plan))
            stack.enter_context(use_backend(backend))
            return stack

        return enter

    for plan, backend in (("auto", "auto"), ("auto", "reference"), ("dense", "native"), ("dense", "reference")):
        yield f"{plan} {backend}", way(plan, backend)


WAYS = dict(ways())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("on_b", [True, False], ids=["q on b", "q on a"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_published_form(name: str, on_b: bool, training: bool) -> None:
    ours, theirs = pair(name, on_b=on_b)
    ours.train(training)
    inputs = codes(ours.layout.size)
    with torch.no_grad():
        expected = theirs(*inputs, *LAYOUTS[name][:2])
        for way, enter in WAYS.items():
            with enter():
                fused = ours.fuse(*inputs)
            assert relative_error(fused.code, expected) < 1e-12, way
            lists = [as_lists(inputs[0][:1], *LAYOUTS[name][:2]), as_lists(inputs[2][:1], *LAYOUTS[name][:2])]
            aligned = theirs.align(*lists)
            assert relative_error(fused.aligned[0][:1], torch.cat([*aligned[0], *aligned[1]], 1)) < 1e-12, way
            q = torch.cat([fused.q_fuse.flatten(), fused.q_align[0].flatten(), fused.q_align[1].flatten()])
            assert float(q.min()) < 0.3 and float(q.max()) > 0.7, "the weights of this test say nothing"


@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_the_published_form_as_one_stack(name: str, stacked: None) -> None:
    nets, references = zip(*(pair(name, seed=seed) for seed in (1, 2, 3)), strict=True)
    size = nets[0].layout.size
    inputs = [torch.stack(codes(size, seed=seed)) for seed in (4, 5, 6)]
    pairs, s_align = torch.stack(inputs[:2]), inputs[2]
    with torch.no_grad():
        code, aligned, q_align, q_fuse = fuse_level([net.eval() for net in nets], pairs, s_align)
        assert q_align.shape[:3] == aligned.shape[:3] == (2, 3, 3) and q_fuse.shape == code.shape
        for n, theirs in enumerate(references):
            assert relative_error(code[n], theirs(*(i[n] for i in inputs), *LAYOUTS[name][:2])) < 1e-12
        assert fuse_level(nets, pairs[:, :, :0], s_align[:, :0])[0].shape == (3, 0, size)
        randomised(nets[1], 9)  # kept stacks notice
        references[1].load_state_dict(nets[1].state_dict())
        again = fuse_level(nets, pairs, s_align)[0]
        assert relative_error(again[1], references[1](*(i[1] for i in inputs), *LAYOUTS[name][:2])) < 1e-12
        assert torch.equal(again[0], code[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype: torch.dtype) -> None:
    """The 2x rule against float64, for the folded chain with and without kept weights."""
    rounded, theirs = pair(dtype=dtype)
    inputs = codes(LAYOUT.size, dtype=dtype)
    with torch.no_grad():
        exact = copy.deepcopy(theirs).double()(*(i.double() for i in inputs), CONV, RGB)
        reference = theirs(*inputs, CONV, RGB)
        for net in (rounded, rounded.eval()):
            assert_within_rule(net(*inputs), reference, exact)


def test_codes_of_another_dtype_than_the_weights() -> None:
    net, _ = pair(dtype=torch.float32)
    net.eval()
    inputs = codes(LAYOUT.size, dtype=torch.float32)
    with torch.no_grad():
        expected = net(*inputs)
        net.to(torch.bfloat16)
        for way, enter in WAYS.items():
            with enter():
                y = net(*inputs)
            assert y.dtype == torch.float32 and 0 < relative_error(y, expected) < 0.05, way


def gradients(net: nn.Module, inputs: list[Tensor], *arguments: Any) -> list[Tensor]:
    leaves = [i.clone().requires_grad_() for i in inputs]
    y = net(*leaves, *arguments)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return list(torch.autograd.grad((y * weight).sum(), [*leaves, *(p for _, p in sorted(net.named_parameters()))]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_equal_those_of_the_published_form(name: str) -> None:
    ours, theirs = pair(name)
    inputs = codes(ours.layout.size)
    expected = gradients(theirs, inputs, *LAYOUTS[name][:2])
    for way, enter in WAYS.items():
        with enter():
            for mine, reference in zip(gradients(ours, inputs), expected, strict=True):
                assert relative_error(mine, reference) < 1e-11, way


def test_gradients_in_float32() -> None:
    ours, theirs = pair(dtype=torch.float32)
    inputs = codes(LAYOUT.size, dtype=torch.float32)
    exact = gradients(copy.deepcopy(theirs).double(), [i.double() for i in inputs], CONV, RGB)
    reference = gradients(theirs, inputs, CONV, RGB)
    for net in (ours, ours.eval()):
        for mine, theirs_, value in zip(gradients(net, inputs), reference, exact, strict=True):
            assert_within_rule(mine, theirs_, value)


def test_a_frozen_network_passes_gradients_to_the_codes() -> None:
    """A parent in training of its child: kept weights, gradients of the inputs."""
    net, _ = pair(dtype=torch.float32)
    inputs = codes(LAYOUT.size, dtype=torch.float32)
    expected = gradients(net, inputs)[:3]
    net.eval().requires_grad_(False)
    leaves = [i.clone().requires_grad_() for i in inputs]
    for _ in range(2):
        y = net(*leaves)
        weight = torch.linspace(-1, 1, y.numel()).view_as(y)
        for mine, theirs in zip(torch.autograd.grad((y * weight).sum(), leaves), expected, strict=True):
            assert relative_error(mine, theirs) < 1e-5


def test_gradcheck() -> None:
    layout = StyleLayout.of([4, 2], [4])
    blender = LatentBlender(layout, hidden=5, depth=4, extra_layers=(0, 2)).double()
    randomised(blender)
    leaves = [t.requires_grad_() for t in codes(layout.size, 2)]
    parameters = list(blender.parameters())

    def f(a: Tensor, b: Tensor, extra: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip((name for name, _ in blender.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(blender, state, (a, b, extra), {"rgb_bit": True})

    assert torch.autograd.gradcheck(f, [*leaves, *parameters], fast_mode=True)


@pytest.mark.parametrize("first_stage", [False, True])
def test_alignment_alone(first_stage: bool) -> None:
    """The first stage of training sets the RGB bit; fine layers are copied."""
    ours, theirs = pair()
    code, s_align = codes(LAYOUT.size, count=2)
    results = []
    for way, enter in WAYS.items():
        with enter():
            aligned, q = ours.align(code, s_align, rgb_bit=first_stage)
        for i in range(len(code)):
            lists = theirs.align(as_lists(code[i : i + 1], CONV, RGB), as_lists(s_align[i : i + 1], CONV, RGB), first_stage)
            assert relative_error(aligned[i : i + 1], torch.cat([*lists[0], *lists[1]], 1)) < 1e-12, way
        assert q.shape == (len(code), sum(CONV[:5]) + sum(RGB[:5]))
        fine = slice(sum(CONV[:5]), sum(CONV))
        assert torch.equal(aligned[:, fine], code[:, fine])
        results.append(aligned)
    bit_matters = ours.align(code, s_align, rgb_bit=not first_stage)[0]
    assert relative_error(bit_matters, results[0]) > 1e-3
    ours.eval()
    with torch.no_grad():  # kept weights: one set per setting of the bit
        for bit, expected in ((first_stage, results[0]), (not first_stage, bit_matters), (first_stage, results[0])):
            assert relative_error(ours.align(code, s_align, rgb_bit=bit)[0], expected) < 1e-13
    conv_part = slice(0, sum(CONV))
    assert torch.equal(bit_matters[:, conv_part], ours.align(code, s_align, rgb_bit=first_stage)[0][:, conv_part])


def test_published_sizes() -> None:
    net, theirs = FusionNet(), PublishedFusionNet()
    state, other = net.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.items()}
    assert len(state) == 20 and sum(v.numel() for v in state.values()) == 36_903_936
    assert state["blender_segments.disentangle_net.0.weight"].shape == (2560, 1726)
    assert state["blender_common.disentangle_net.0.weight"].shape == (2560, 1214)
    assert 95 < float(state["blender_common.disentangle_net.1.weight"].std()) < 105
    assert not bool(state["blender_common.disentangle_net.1.bias"].any())
    paper = FusionNet(StyleLayout.stylegan2(64), hidden=24)
    assert paper.blender_common.disentangle_net[1].weight.shape == (24, 24)


def test_full_size_against_the_published_form() -> None:
    """One sample at 1024: S = 9,088, hidden 2,560, float32."""
    net, theirs = FusionNet().eval(), PublishedFusionNet()
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p.normal_(0, 30)
        theirs.load_state_dict(net.state_dict())
        inputs = codes(9088, 1, torch.float32)
        layout = net.layout
        lists = [layout.channels[:17], layout.channels[17:]]
        reference = theirs(*inputs, *lists)
        exact = theirs.double()(*(i.double() for i in inputs), *lists)
        assert_within_rule(net(*inputs), reference, exact)


def test_equalized_linear() -> None:
    layer = EqualizedLinear(16, 8, 0.5).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 16, dtype=torch.float64)
    y = torch.nn.functional.linear(x, layer.weight * 0.125, layer.bias * 0.5)
    expected = torch.where(y > 0, y, 0.2 * y) * 2**0.5
    assert relative_error(layer(x), expected) < 1e-15
    weight, bias = layer.folded()
    assert relative_error(torch.nn.functional.leaky_relu(x @ weight.t() + bias, 0.2), expected) < 1e-15


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_kept_weights_notice_changes_and_never_travel() -> None:
    net, _ = pair(dtype=torch.float32)
    net.eval()
    inputs = codes(LAYOUT.size, dtype=torch.float32)
    with torch.no_grad():
        before = net(*inputs)
        assert torch.equal(net(*inputs), before)
        net.blender_segments.disentangle_net[0].bias.add_(400)
        changed = net(*inputs)
        assert relative_error(changed, before) > 1e-3
        fresh = copy.deepcopy(net)
        assert torch.equal(fresh(*inputs), changed)
        assert torch.equal(pickle.loads(pickle.dumps(net))(*inputs), changed)
        assert len(net.state_dict()) == 20
        exact = copy.deepcopy(net).double()
        assert relative_error(changed, exact(*(i.double() for i in inputs))) < 1e-5
    with torch.inference_mode():
        assert relative_error(net(*inputs), changed) < 1e-6


def test_repeats_are_bitwise_equal() -> None:
    net, _ = pair(dtype=torch.float32)
    inputs = codes(LAYOUT.size, 5, torch.float32)
    first = gradients(net, inputs)
    assert all(map(torch.equal, gradients(net, inputs), first))


def test_compiles_without_graph_break() -> None:
    net, _ = pair(dtype=torch.float32)
    inputs = [i.requires_grad_() for i in codes(LAYOUT.size, 2, torch.float32)]
    for mode in (net.train(), net.eval()):
        compiled = torch.compile(mode, fullgraph=True, backend="aot_eager")
        expected = mode(*inputs)
        assert relative_error(compiled(*inputs), expected) < 1e-5
        grads = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, mode)]
        for ours, theirs in zip(*grads, strict=True):
            assert relative_error(ours, theirs) < 1e-5


def test_batch_sizes_and_strides() -> None:
    net, _ = pair()
    net.eval()
    inputs = codes(LAYOUT.size, 4)
    with torch.no_grad():
        whole = net(*inputs)
        for size in (0, 1, 3):
            part = net(*(i[:size] for i in inputs))
            assert part.shape == (size, LAYOUT.size) and relative_error(part, whole[:size]) < 1e-13
        wide = torch.stack([torch.stack((i, i), 2) for i in inputs])[:, :, :, 0]
        assert not wide[0].is_contiguous()
        assert torch.equal(net(*wide), whole)
        with use_plan("dense"), use_backend("reference"):
            assert net(*(i[:0] for i in inputs)).shape == (0, LAYOUT.size)


def test_extra_input() -> None:
    blender = LatentBlender(LAYOUT, hidden=8, depth=DEPTH, extra_layers=(0, 2, 9)).double()
    randomised(blender)
    a, b, extra = codes(LAYOUT.size)
    for way, enter in WAYS.items():
        with enter():
            zeros = blender(a, b, torch.zeros_like(a))
            assert relative_error(blender(a, b)[1], zeros[1]) < 1e-13, way
            changed = blender(a, b, extra)[1]
        differs = [
            not torch.equal(x, y)
            for x, y in zip(changed.split(LAYOUT.channels, 1), zeros[1].split(LAYOUT.channels, 1), strict=True)
        ]
        assert [i for i, d in enumerate(differs) if d] == [0, 2, 9], way


def test_columns_of_the_first_weight() -> None:
    """first, second, extra, indicator: published files of equal shapes would load in any other order without a word."""
    net = randomised(FusionNet(LAYOUT, hidden=8, depth=DEPTH).double())
    blender = net.blender_segments
    weight = blender.linears[0].weight
    assert weight.shape[1] == 3 * DEPTH + 190
    a, b, extra = codes(LAYOUT.size)
    conv, rgb = LAYOUT.conv_layers, LAYOUT.rgb_layers
    coarse = set(conv[:5] + rgb[:5])
    every = set(range(len(LAYOUT.layers)))
    indicator = 3 * DEPTH
    cases = (
        (slice(DEPTH), every),
        (slice(DEPTH, 2 * DEPTH), every),
        (slice(2 * DEPTH, 3 * DEPTH), coarse),
        (slice(indicator + 3, None, 19), {conv[3], rgb[3]}),  # ten repeats of (18 layers, RGB bit)
        (slice(indicator + 18, None, 19), set()),
    )
    for way, enter in WAYS.items():
        with enter(), torch.no_grad():
            before = blender(a, b, extra)[1].split(LAYOUT.channels, 1)
            for part, expected in cases:
                kept = weight[:, part].clone()
                weight[:, part] *= -1
                after = blender(a, b, extra)[1].split(LAYOUT.channels, 1)
                weight[:, part] = kept
                assert {i for i in every if not torch.equal(before[i], after[i])} == expected, (way, part)


# --- hierarchy -------------------------------------------------------------------------------------------------------


def hierarchy(dtype: torch.dtype = torch.float64, tree: dict[str, tuple[str, str]] = published.FACES) -> FusionHierarchy:
    nets = {}
    for seed, name in enumerate(tree):
        nets[name], _ = pair(dtype=dtype, seed=seed + 10)
    return FusionHierarchy(FusionConfig(tree, LAYOUT, HIDDEN), nets).eval()


def by_hand(tree: FusionHierarchy, given: dict[str, Tensor], name: str = "all") -> Tensor:
    """Recursion over the published form, with the published rule of bypasses."""
    children = published.FACES.get(name, ())
    if name not in tree.nets or not all(c in given for c in children):
        return given[name]
    theirs = PublishedFusionNet(HIDDEN, True, DEPTH).double()
    theirs.load_state_dict(tree.nets[name].state_dict())
    first, second = (by_hand(tree, given, c) for c in children)
    return theirs(first, second, given[name], CONV, RGB)


def every_code(tree: FusionHierarchy, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return dict(zip(tree.names, codes(LAYOUT.size, 2, dtype, len(tree.names)), strict=True))


# nodes without an entry -> an entry whose code then is of no matter, if any
LEFT_OUT = {
    (): None,
    ("mouth",): "skin",
    ("mouth", "skin"): None,
    ("eyes",): "mouth",  # the face passes its own code, whatever lies below skin_mouth
    ("skin_mouth",): "mouth",
    ("face",): "bg",  # a child that is a node itself: the root passes its own
    ("clothes", "bg", "eyes", "skin_mouth", "mouth", "skin"): None,
    tuple(n for n in ("face", "bg_hair_clothes", *published.FACES["face"], *published.FACES["bg_hair_clothes"])): "mouth",
}


@pytest.mark.parametrize("left_out", LEFT_OUT, ids=lambda names: "+".join(names) or "none")
def test_hierarchy_and_the_published_bypass(left_out: tuple[str, ...]) -> None:
    tree = hierarchy()
    given = {n: c for n, c in every_code(tree).items() if n not in left_out}
    ignored = LEFT_OUT[left_out]
    with torch.no_grad():
        expected = by_hand(tree, given)
        for way, enter in WAYS.items():
            with enter():
                assert relative_error(tree(given), expected) < 1e-12, way
        if ignored is None:
            assert torch.equal(tree(given, strict=True), tree(given))
            return
        assert torch.equal(tree(given | {ignored: -given[ignored]}), tree(given))
        with pytest.raises(ValueError, match="codes: expected an entry .*strict: .*" + ignored):
            tree(given, strict=True)


def test_a_node_without_a_network_passes_its_own() -> None:
    whole = hierarchy()
    nets = {name: net for name, net in whole.nets.items() if name != "face"}
    tree = FusionHierarchy(FusionConfig(published.FACES, LAYOUT, HIDDEN), nets).eval()
    assert tree.names == whole.names and "face" not in tree.nets
    given = every_code(tree)
    without = {n: c for n, c in given.items() if n not in tree.below("face")}
    with torch.no_grad():
        assert relative_error(tree(given), by_hand(tree, given)) < 1e-12
        assert torch.equal(tree(given), whole(without)) and torch.equal(tree(given), tree(without, strict=True))
        with pytest.raises(ValueError, match="no entry below 'face' .strict: 'face' has no network"):
            tree(given, strict=True)
        bare = FusionHierarchy(FusionConfig(published.FACES, LAYOUT, HIDDEN), {})
        assert torch.equal(bare(given), given["all"])


def test_without_a_global_code() -> None:
    """The ablation: the fusing blender alone, which has no third input, whatever s_align says."""
    torch.manual_seed(0)
    net = FusionNet(LAYOUT, hidden=HIDDEN, depth=DEPTH, global_code=False).double().eval()
    randomised(net)
    a, b, c = codes(LAYOUT.size)
    assert all(name.startswith("blender_segments") for name in net.state_dict())
    with torch.no_grad():
        for way, enter in WAYS.items():
            with enter():
                fused = net.fuse(a, b, c)
            assert torch.equal(fused.aligned[0], a) and fused.q_align[1].shape == (3, 0), way
            theirs = published.Blender(HIDDEN, False, DEPTH).double()
            theirs.load_state_dict(net.blender_segments.state_dict())
            vectors = zip(*(code[:1].split([*CONV, *RGB], 1) for code in (a, b)), strict=True)
            numbers = [*range(len(CONV)), *range(len(RGB))]
            rows = [theirs(x, y, n, False, None, True) for n, (x, y) in zip(numbers, vectors, strict=True)]
            assert relative_error(fused.code[:1], torch.cat(rows, 1)) < 1e-12, way
        tree = FusionHierarchy(FusionConfig({"x": ("y", "z")}, LAYOUT), {"x": net})
        assert torch.equal(tree({"x": c, "y": a, "z": b}), net(a, b, -c))
    with pytest.raises(ValueError, match="FusionNet.align: expected a network with a global code"):
        net.align(a, c)


def test_levels_run_together(monkeypatch: pytest.MonkeyPatch, stacked: None) -> None:
    """Five networks, three heights: six calls of the op, two per height; and the stacked form gives the same."""
    import mixsyn_fast.layers.fusion as module

    calls = []
    real = module.latent_blend
    monkeypatch.setattr(module, "latent_blend", lambda *a, **k: calls.append(a[0].shape[0]) or real(*a, **k))
    tree = hierarchy()
    given = dict(zip(tree.names, codes(LAYOUT.size, 3, count=len(tree.names)), strict=True))
    with torch.no_grad():
        y = tree(given)
        assert calls == [12, 6, 12, 6, 6, 3]
        assert relative_error(y, by_hand(tree, given)) < 1e-12
        monkeypatch.undo()
        assert relative_error(tree(given), y) < 1e-13


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_on_a_gpu_as_one_graph(batch: int) -> None:
    """No synchronisation and no allocation outside the pool: a pass can be captured and replayed on other codes."""
    tree = hierarchy(torch.float32).cuda()
    first, second = (
        dict(zip(tree.names, (c.cuda() for c in codes(LAYOUT.size, batch, torch.float32, 11, seed)), strict=True))
        for seed in (1, 2)
    )
    with torch.no_grad():
        expected = [by_hand(tree, {n: c.double().cpu() for n, c in given.items()}) for given in (first, second)]
        assert relative_error(tree(first), expected[0]) < 1e-5
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = tree(first)
        for name, code in first.items():
            code.copy_(second[name])
        graph.replay()
        assert relative_error(y, expected[1]) < 1e-5


@pytest.mark.gpu
def test_gradients_on_a_gpu() -> None:
    net, _ = pair(dtype=torch.float32)
    inputs = codes(LAYOUT.size, dtype=torch.float32)
    expected = gradients(copy.deepcopy(net).double(), [i.double() for i in inputs])
    net.cuda()
    on_gpu = [i.cuda() for i in inputs]
    first = gradients(net, on_gpu)
    for ours, theirs in zip(first, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-4
    assert all(map(torch.equal, gradients(net, on_gpu), first))


def test_networks_of_different_widths_in_one_level() -> None:
    nets = [FusionNet(LAYOUT, hidden=hidden, depth=DEPTH).double().eval() for hidden in (8, 24)]
    nets[1].float()
    pairs, s_align = torch.randn(2, 2, 3, LAYOUT.size, dtype=torch.float64), torch.randn(2, 3, LAYOUT.size).double()
    with torch.no_grad():
        code = fuse_level(nets, pairs, s_align)[0]
        for n, net in enumerate(nets):
            assert relative_error(code[n], net(pairs[0, n], pairs[1, n], s_align[n])) < 1e-13


def test_gradients_reach_every_code() -> None:
    tree = hierarchy().train()
    given = {n: c.requires_grad_() for n, c in zip(tree.names, codes(LAYOUT.size, 2, count=11), strict=True)}
    tree(given).sum().backward()
    assert all(c.grad is not None and bool(c.grad.any()) for c in given.values())
    assert all(p.grad is not None for p in tree.parameters())


def test_a_tree_from_a_mapping() -> None:
    """The other settings are the defaults: StyleGAN2 at 1024."""
    tree = FusionHierarchy({"x": ("y", "z")})
    assert len(tree.state_dict()) == 20 and tree.layout.size == 9088 and tree.names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": ("b", "c"), "b": ("d",)}, "two children of 'b'"),
        ({"a": "bc"}, "two children of 'a'"),
        ({"a": ("b", "c"), "d": ("e", "f")}, "one node that is no child, got 2"),
        ({"a": ("b", "b")}, "one parent per node"),
        ({"a": ("b", "c"), "b": ("c", "d")}, "'c' is a child of 'a'"),
        ({"a": ("b", "c"), "b": ("a", "d")}, "one node that is no child, got 0"),
        ({"a": ("b", "c"), "d": ("e", "f"), "e": ("d", "g")}, "a cycle of"),
        ({}, "one node that is no child, got 0"),
    ],
)
def test_bad_trees(tree: Any, words: str) -> None:
    with pytest.raises(ValueError, match="FusionHierarchy: tree: .*" + words):
        FusionHierarchy(FusionConfig(tree, LAYOUT, 8))


def test_bad_networks() -> None:
    net = FusionNet(LAYOUT, hidden=8, depth=DEPTH)
    leaves = {"car": ("car_body", "wheels"), "background": ("top", "bottom")}
    config = FusionConfig({"all": ("car", "background"), **leaves}, LAYOUT, 8)
    for nets, words in (
        ({"all": net, "moon": net}, r"expected inner nodes among all, car, background, got \['moon'\]"),
        ({"all": net, "car": FusionNet(LAYOUT, hidden=8, depth=DEPTH, global_code=False)}, "global_code True for 'car'"),
        ({"all": net, "car": net, "background": FusionNet(StyleLayout.of([4]), hidden=8, depth=4)}, "for 'background'"),
        ({"all": net, "car": net, "background": FusionNet(LAYOUT, hidden=8, depth=DEPTH, coarse=3)}, "coarse layers"),
        ({"all": net, "car": net, "background": FusionNet(LAYOUT, hidden=8, depth=DEPTH, q_on="a")}, "q_on 'b'"),
    ):
        with pytest.raises(ValueError, match="FusionHierarchy: nets: .*" + words):
            FusionHierarchy(config, nets)


def test_bad_codes() -> None:
    tree = hierarchy(torch.float32)
    given = every_code(tree, torch.float32)

    def fails(words: str, error: type[Exception] = ValueError, **change: Any) -> None:
        with pytest.raises(error, match="FusionHierarchy: codes" + words):
            tree({name: code for name, code in (given | change).items() if code is not None})

    fails(": expected an entry 'all', the root's, got none", all=None)
    fails(r": expected names among all, .*got \['nose'\]", nose=given["eyes"])
    fails(r"\['eyes'\]: expected batch 2 as codes\['all'\], got 1", eyes=given["eyes"][:1])
    fails(r"\['eyes'\]: expected shape \(B, 824\)", eyes=given["eyes"][:, :5])
    fails(r"\['eyes'\]: expected torch.float32 as", TypeError, eyes=given["eyes"].double())
    fails(r"\['eyes'\]: expected device cpu as", eyes=given["eyes"].to("meta"))
    with pytest.raises(ValueError, match="expected an entry 'all'"):
        tree({})


def test_bad_arguments() -> None:
    a, b, c = codes(LAYOUT.size, 2, torch.float32)
    net = FusionNet(LAYOUT, hidden=8, depth=DEPTH)
    for call, error, words in (
        (lambda: LatentBlender(StyleLayout.of([3]), hidden=8), ValueError, "widths that divide 512, got 3 at layer 0"),
        (lambda: LatentBlender(StyleLayout(()), hidden=8), ValueError, "at least one layer"),
        (lambda: LatentBlender(StyleLayout.of([4] * 19), hidden=8), ValueError, "at most 18 conv layers, got 19"),
        (lambda: LatentBlender(LAYOUT, hidden=8, extra_layers=(99,)), ValueError, "extra_layers: expected positions"),
        (lambda: LatentBlender(LAYOUT, hidden=8, q_on="x"), ValueError, "q_on: expected 'a' or 'b'"),
        (lambda: FusionNet(LAYOUT, hidden=8, coarse=0), ValueError, "coarse: expected an integer of at least 1"),
        (lambda: net(a, b, c[:1]), ValueError, r"FusionNet: s_align: expected shape \(2, 824\), got \(1, 824\)"),
        (lambda: net(a[:, :5], b, c), ValueError, r"FusionNet: s0: expected shape \(B, 824\)"),
        (lambda: net(a, b.double(), c), TypeError, "s1: expected torch.float32 as s0"),
        (lambda: net(a, b.to("meta"), c), ValueError, "s1: expected device cpu as s0"),
        (lambda: net.align(a, b[:, :4]), ValueError, "FusionNet.align: s_align: expected shape"),
        (lambda: net.blender_common(a, b), ValueError, r"LatentBlender: a: expected shape \(B, 640\)"),
        (lambda: net.blender_common(a[:, :640], a[:, :640], a[:, :640]), ValueError, "extra: expected None"),
    ):
        with pytest.raises(error, match=words):
            call()
