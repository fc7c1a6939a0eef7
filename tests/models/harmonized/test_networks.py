"""Harmonized transfer's networks: every equation against a form of a few lines in float64, fast and dense plans."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models import sean
from mixsyn_fast.models.harmonized.attention import StyleAttention, composed_codes
from mixsyn_fast.models.harmonized.config import (
    AttentionConfig,
    FlowConfig,
    GeneratorConfig,
    MappingConfig,
    checked_groups,
)
from mixsyn_fast.models.harmonized.encoder import MultiScaleEncoder, spread_weights
from mixsyn_fast.models.harmonized.flow import StyleFlow
from mixsyn_fast.models.harmonized.generator import Generator
from mixsyn_fast.models.harmonized.mapping import CodeDistribution, MappingNetwork, StyleDiscriminator
from torch import Tensor

from mixsyn_fast import RegionMap, use_backend, use_plan

K, S = 5, 6
SIZES = [(2, 16, 16), (1, 16, 16), (2, 16, 32)]


def labels_of(batch: int, height: int, width: int) -> Tensor:
    """Region 0 to 2 in cells, unlabelled pixels, region 3 of one pixel in the first picture, region 4 nowhere."""
    cells = torch.randint(-1, 3, (batch, height // 4, width // 4))
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, 6, 10] = 3
    return labels


def map_of(kind: str, batch: int, height: int, width: int) -> tuple[RegionMap, Tensor]:
    """A map and its masks at half the size, (B, K, h, w) float64, by hand."""
    labels = labels_of(batch, height, width)
    if kind == "hard":
        masks = torch.stack([labels[:, ::2, ::2] == k for k in range(K)], 1).double()
        return RegionMap(labels, K, ignore_index=-1), masks
    weights = torch.rand(batch, K, height, width, dtype=torch.float64)
    weights[:, 4] = 0
    return RegionMap.soft(weights), weights[:, :, ::2, ::2]


def plain_codes(encoder: MultiScaleEncoder, image: Tensor, masks: Tensor) -> Tensor:
    """Eq. 1 and 2 as written: every map at half the image's size, projected, weighed, added; the mean over every region."""
    x, maps = image, []
    for i, conv in enumerate(encoder.convs):
        weight, bias = conv.weight, conv.bias
        if i in (0, 4):
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)
        elif i == 3:
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        else:
            x = F.conv2d(x, weight, bias, stride=2, padding=1)
        if i == 4:
            x = torch.tanh(x)
        else:
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
            x = F.leaky_relu((x - mean) / (variance + 1e-5).sqrt(), 0.2)
        maps.append(x)
    a = encoder.level_weights
    alphas = a.exp() / a.exp().sum() if encoder.softmax else a
    total = torch.zeros_like(maps[4])
    for i, each in enumerate(maps):
        resized = F.interpolate(each, maps[4].shape[2:], mode="bilinear", antialias=False)  # by 1/2: the mean of 2 x 2
        projected = resized if i == 4 else torch.einsum("bchw,sc->bshw", resized, encoder.projections[i].weight)
        total = total + alphas[i] * projected
    codes = torch.zeros(len(image), K, total.shape[1], dtype=total.dtype)
    for b, k in itertools.product(range(len(image)), range(K)):
        if masks[b, k].sum() > 0:
            codes[b, k] = (total[b] * masks[b, k]).sum((1, 2)) / masks[b, k].sum()
    return codes


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "raw"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_pooled_before_they_are_added(size: tuple[int, int, int], kind: str, softmax: bool) -> None:
    """Eq. 1 and 2 with region means: pooled level by level, dense with the reference, and by hand; gradients too."""
    encoder = MultiScaleEncoder(S, 2, softmax=softmax).double()
    torch.nn.init.normal_(encoder.level_weights)
    image = torch.rand(size[0], 3, *size[1:], dtype=torch.float64, requires_grad=True)
    regions, masks = map_of(kind, *size)
    wanted = torch.rand(size[0], K, S, dtype=torch.float64)
    inputs = [image, *encoder.parameters()]
    found = []
    for plan, backend in (("table", "auto"), ("dense", "reference")):
        with use_plan(plan), use_backend(backend):
            codes = encoder(image, regions)
            found.append((codes.detach(), torch.autograd.grad((codes * wanted).sum(), inputs)))
    expected = plain_codes(encoder, image, masks)
    gradients = torch.autograd.grad((expected * wanted).sum(), inputs)
    for codes, by in found:
        assert torch.allclose(codes, expected, rtol=1e-9, atol=1e-11)
        for ours, theirs in zip(by, gradients, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9)
    assert bool((expected[:, 4] == 0).all())  # absent: the zero code
    if kind == "hard":
        assert bool((expected[0, 3] != 0).any())  # one pixel: that pixel


def test_one_scale_is_seans_encoder() -> None:
    """Ablation: the last layer alone; SEAN's own encoder with the same weights."""
    ours, theirs = MultiScaleEncoder(S, 2, multi_scale=False).double(), sean.StyleEncoder(S, 2).double()
    with torch.no_grad():
        for conv, place in zip(ours.convs, (1, 4, 7, 10, 14), strict=True):
            theirs.model[place].weight.copy_(conv.weight)
            theirs.model[place].bias.copy_(conv.bias)
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    regions, _ = map_of("hard", 2, 16, 16)
    assert torch.allclose(ours(image, regions), theirs(image, regions), rtol=1e-9, atol=1e-12)
    assert not ours.level_weights.requires_grad and not list(ours.projections)


def test_a_spread_map_pools_as_upsampling_does() -> None:
    regions, masks = map_of("hard", 2, 16, 16)
    half = RegionMap(labels_at_half(regions), K, ignore_index=-1)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    spread = spread_weights(half).weights
    assert spread is not None and torch.allclose(spread.double().sum((2, 3)), masks.sum((2, 3)), atol=1e-4)
    upsampled = F.interpolate(x, scale_factor=2, mode="bilinear")
    expected = torch.einsum("bchw,bkhw->bkc", upsampled, masks)
    assert torch.allclose(torch.einsum("bchw,bkhw->bkc", x, spread.double()), expected, atol=1e-5)


def labels_at_half(regions: RegionMap) -> Tensor:
    """The labels of a map at half its size."""
    return regions.labels_at((regions.size[0] // 2, regions.size[1] // 2))


def test_spectral_norm_of_every_convolution() -> None:
    """Sec. 4.2: in training, after a few power iterations, the largest singular value of every convolution is 1."""
    encoder = MultiScaleEncoder(S, 2, spectral=True)
    image, (regions, _) = torch.rand(1, 3, 16, 16), map_of("hard", 1, 16, 16)
    for _ in range(30):
        encoder(image, regions)
    encoder.eval()
    for i, conv in enumerate(encoder.convs):
        weight = conv.normalised_weight() if hasattr(conv, "normalised_weight") else conv.weight
        matrix = weight.transpose(0, 1) if i == 3 else weight  # (in, out, kh, kw) of the transposed one
        assert torch.linalg.matrix_norm(matrix.flatten(1), 2).item() == pytest.approx(1, abs=1e-3), i


# --- attention -------------------------------------------------------------------------------------------------------------


def plain_attention(module: StyleAttention, composed: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 5, a row after the other over the regions that are there."""
    out, matrix = composed.clone(), torch.zeros(*present.shape, present.shape[1], dtype=composed.dtype)
    for b, i in itertools.product(range(present.shape[0]), range(present.shape[1])):
        there = present[b].nonzero()[:, 0]
        if not len(there):
            continue
        query = module.query.weight @ composed[b, i]
        logits = torch.stack([query @ (module.key.weight @ target[b, j]) for j in there])
        row = logits.exp() / logits.exp().sum()
        matrix[b, i, there] = row
        if present[b, i]:
            values = torch.stack([module.value.weight @ target[b, j] for j in there])
            out[b, i] = composed[b, i] + module.alpha * (row[:, None] * values).sum(0)
    return out, matrix


@pytest.fixture
def attention() -> StyleAttention:
    """With logits far from zero."""
    module = StyleAttention(AttentionConfig(S, alpha=0.7)).double()
    with torch.no_grad():
        module.query.weight.mul_(3)
    return module


def test_attention_is_equations_4_and_5(attention: StyleAttention) -> None:
    composed, target = torch.randn(2, 4, K, S, dtype=torch.float64)
    present = torch.rand(4, K) > 0.4
    present[0], present[1], present[2] = True, False, torch.arange(K) == 2
    ours = attention(composed, target, present)
    expected, matrix = plain_attention(attention, composed, target, present)
    assert torch.allclose(ours, expected, rtol=1e-10)
    assert torch.allclose(attention.matrix(composed, target, present), matrix, rtol=1e-10)
    assert torch.equal(ours[~present], composed[~present]) and bool((ours[present] != composed[present]).any(1).all())
    (ours**2).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in attention.parameters())
    assert attention.alpha.grad is not None and attention.alpha.grad != 0


def test_absent_regions_attend_to_nothing_and_are_attended_to_by_none(attention: StyleAttention) -> None:
    composed, target = torch.randn(2, 2, K, S, dtype=torch.float64)
    present = torch.tensor([[True, False, True, True, False], [True, True, True, False, True]])
    before = attention(composed, target, present)
    other, others = composed.clone(), target.clone()
    other[~present], others[~present] = 100.0, -100.0
    after = attention(other, others, present)
    assert torch.equal(after[present], before[present]) and torch.equal(after[~present], other[~present])


def test_alpha_may_stay() -> None:
    assert not StyleAttention(AttentionConfig(S, learned=False)).alpha.requires_grad
    assert StyleAttention(AttentionConfig(S, alpha=0.25)).alpha.item() == 0.25


def test_composed_codes_take_what_the_reference_has() -> None:
    target, reference = torch.randn(2, 2, K, S)
    has = torch.ones(2, K, dtype=torch.bool)
    has[1, 2] = False
    made = composed_codes(target, reference, (1, 2), has)
    for b, k in itertools.product(range(2), range(K)):
        taken = k == 1 or (k == 2 and b == 0)
        assert torch.equal(made[b, k], (reference if taken else target)[b, k]), (b, k)
    assert torch.equal(composed_codes(target, reference, (), has), target)
    assert torch.equal(composed_codes(target, target, range(K), has), target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(1, K, S), torch.zeros(1, K, 3), torch.ones(1, K)),
            r"target: expected shape \(B, K, 6\), got \(1, 5, 3\)",
        ),
        (
            (torch.zeros(1, 2, S), torch.zeros(1, K, S), torch.ones(1, K)),
            r"composed: expected shape \(1, 5, 6\) as target, got",
        ),
        ((torch.zeros(1, K, S), torch.zeros(1, K, S), torch.ones(1, 2)), r"present: expected shape \(1, 5\), got \(1, 2\)"),
    ],
)
def test_attention_refuses_what_does_not_fit(arguments: tuple[Tensor, Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleAttention(AttentionConfig(S))(*arguments)


# --- mapping ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 2])
def test_mapping_is_shared_layers_then_own_ones(own: int) -> None:
    """Eq. 3: as many codes as the group has regions, related by the shared layers."""
    network = MappingNetwork(3, S, MappingConfig(z_dim=4, width=8, shared=2, own=own)).double()
    z = torch.randn(5, 4, dtype=torch.float64)
    made = network(z)
    assert made.shape == (5, 3, S)
    x = z
    for layer in network.shared:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    for i in range(3):
        y = x
        for layer in network.own[i]:
            y = (y @ layer.weight.T + layer.bias).clamp(min=0)
        assert torch.allclose(made[:, i], y @ network.last[i].weight.T + network.last[i].bias), i
    made.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_random_codes_begin_apart() -> None:
    """Codes that begin as one stay one: what z moves must not be lost on the way through the layers."""
    torch.manual_seed(0)
    with torch.no_grad():
        codes = MappingNetwork(2, 32)(torch.randn(64, 16))
        logits = StyleDiscriminator(2, 32)(torch.randn(64, 2, 32))
    assert codes.std(0).mean() > 0.2 and logits.std() > 0.2


def test_a_style_discriminator_judges_all_codes_of_a_group_together() -> None:
    judge = StyleDiscriminator(2, S, MappingConfig(width=8, judges=2)).double()
    codes = torch.randn(3, 2, S, dtype=torch.float64)
    x = codes.reshape(3, 2 * S)
    for layer in judge.layers:
        x = x @ layer.weight.T + layer.bias
        x = torch.where(x > 0, x, 0.2 * x)
    assert torch.allclose(judge(codes), x @ judge.last.weight.T + judge.last.bias)
    assert len(judge.layers) == 2 and judge(codes).shape == (3, 1)


def test_distribution_by_linear_layers_is_two_convolutions_before_the_pooling() -> None:
    heads = CodeDistribution(S).double()
    features = torch.randn(1, S, 4, 4, dtype=torch.float64)
    mask = torch.rand(4, 4) > 0.5
    pooled = features[0, :, mask].mean(1)[None, None]
    for ours, layer in zip(heads(pooled), (heads.mean, heads.log_variance), strict=True):
        convolved = F.conv2d(features, layer.weight[:, :, None, None], layer.bias)
        assert torch.allclose(ours[0, 0], convolved[0, :, mask].mean(1))


def test_mapping_refuses_what_does_not_fit() -> None:
    config = MappingConfig(z_dim=4, width=8)
    with pytest.raises(ValueError, match=r"z: expected shape \(B, 4\), got \(2, 5\)"):
        MappingNetwork(1, S, config)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"codes: expected shape \(B, 2, 6\), got \(2, 1, 6\)"):
        StyleDiscriminator(2, S, config)(torch.zeros(2, 1, S))
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        MappingConfig(width=0)


# --- flow ------------------------------------------------------------------------------------------------------------------

D = 3


@pytest.fixture
def flow() -> StyleFlow:
    """Far from the identity, standardised."""
    made = StyleFlow(D, FlowConfig(width=5, layers=2, tolerance=1e-9, steps=16)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.8)
    made.standardise(torch.randn(20, D, dtype=torch.float64) * torch.tensor([2.0, 0.5, 1.0]) + 3)
    return made


def plain_change(flow: StyleFlow, time: float, x: Tensor) -> Tensor:
    """f: y = (W x + b) sigmoid(w_g l + b_g) + w_b l, tanh between."""
    for i, layer in enumerate(flow.layers):
        x = torch.tanh(x) if i else x
        gate = torch.sigmoid(layer.gate.weight[:, 0] * time + layer.gate.bias)
        x = (x @ layer.linear.weight.T + layer.linear.bias) * gate + layer.shift.weight[:, 0] * time
    return x


def test_fixed_steps_are_runge_kutta(flow: StyleFlow) -> None:
    """Eq. 7 by the fixed-step solver: the 3/8 rule, which is torchdiffeq's rk4, a step after the other."""
    codes = torch.randn(4, D, dtype=torch.float64) + 3
    x, h = (codes - flow.mean) / flow.deviation, flow.config.time / flow.config.steps
    for step in range(flow.config.steps):
        l = step * h  # noqa: E741 - the paper's letter
        k1 = plain_change(flow, l, x)
        k2 = plain_change(flow, l + h / 3, x + h * k1 / 3)
        k3 = plain_change(flow, l + 2 * h / 3, x + h * (k2 - k1 / 3))
        k4 = plain_change(flow, l + h, x + h * (k1 - k2 + k3))
        x = x + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
    assert torch.allclose(flow.encode(codes, "fixed"), x, rtol=1e-9)
    assert torch.allclose(flow.encode(codes), x, rtol=1e-4, atol=1e-5)  # the adaptive one: another solver, the same integral


@torch.no_grad()
def test_round_trip(flow: StyleFlow) -> None:
    """Eq. 8 takes Eq. 7 back: adaptive within its tolerance, fixed steps within theirs."""
    codes = torch.randn(4, D, dtype=torch.float64) + 3
    error = {s: float((flow.decode(flow.encode(codes, s), s) - codes).abs().max()) for s in ("adaptive", "fixed")}
    assert error["adaptive"] < 1e-7 and error["fixed"] < 1e-4
    assert float((flow.encode(codes) - codes).abs().max()) > 0.1  # it did go somewhere


class Affine(StyleFlow):
    """f(x, l) = A x + b."""

    def __init__(self, exact_tolerance: float = 1e-9) -> None:
        super().__init__(D, FlowConfig(width=1, layers=1, tolerance=exact_tolerance))
        self.double()
        self.matrix, self.bias = torch.randn(D, D, dtype=torch.float64), torch.randn(D, dtype=torch.float64)

    def change(self, time: Tensor, x: Tensor) -> Tensor:
        return x @ self.matrix.T + self.bias


@pytest.mark.parametrize("exact", [True, False], ids=["trace", "Hutchinson"])
def test_likelihood_of_a_gaussian(exact: bool) -> None:
    """An affine flow makes a Gaussian of the Gaussian: its density is known, its trace is the same everywhere."""
    flow = Affine()
    flow.standardise(torch.randn(9, D, dtype=torch.float64) * 2 + 1)
    if not exact:  # the estimate v A v, v of +-1, is the trace itself where A is diagonal
        flow.matrix = torch.diag(flow.matrix.diagonal())
    # z = E x + c with the exponential of the augmented matrix
    augmented = torch.zeros(D + 1, D + 1, dtype=torch.float64)
    augmented[:D, :D], augmented[:D, D] = flow.matrix, flow.bias
    whole = torch.linalg.matrix_exp(augmented * flow.config.time)
    linear, offset = whole[:D, :D], whole[:D, D]
    codes = torch.randn(5, D, dtype=torch.float64) * 2 + 1
    assert torch.allclose(flow.encode(codes), (codes - flow.mean) / flow.deviation @ linear.T + offset, rtol=1e-6)
    # z = G s + g is N(0, I), so s = G^-1 (z - g) is a Gaussian
    backward = torch.linalg.inv(linear / flow.deviation)
    mean = backward @ (linear @ (flow.mean / flow.deviation) - offset)
    known = torch.distributions.MultivariateNormal(mean, backward @ backward.T)
    assert torch.allclose(flow.log_likelihood(codes, exact=exact), known.log_prob(codes), rtol=1e-6, atol=1e-6)


def test_likelihood_is_the_jacobian_of_the_map(flow: StyleFlow) -> None:
    """Change of variables with autograd's Jacobian of the whole encoding, mean and deviation included."""
    code = torch.randn(D, dtype=torch.float64) + 3
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.encode(x[None])[0], code)
    z = flow.encode(code[None])[0]
    expected = -0.5 * z @ z - 0.5 * D * math.log(2 * math.pi) + torch.linalg.slogdet(jacobian).logabsdet
    assert flow.log_likelihood(code[None], exact=True).item() == pytest.approx(expected.item(), abs=1e-6)


def test_hutchinsons_mean_is_the_trace(flow: StyleFlow) -> None:
    """A row has a vector of its own, so a batch of one code repeated averages them."""
    code = torch.randn(1, D, dtype=torch.float64) + 3
    exact = flow.log_likelihood(code, "fixed", exact=True).item()
    found = flow.log_likelihood(code.repeat(4096, 1), "fixed").detach()
    assert float(found.std()) > 1e-3
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / 64


def test_likelihood_teaches_every_weight(flow: StyleFlow) -> None:
    codes = torch.randn(4, D, dtype=torch.float64) + 3
    flow.log_likelihood(codes, "fixed").sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in flow.parameters())


def test_noise_bounds_the_likelihood_of_codes_that_come_again() -> None:
    """One code alone, f = a x: without noise a steeper f is ever likelier, with it best at 1 / noise = exp(a l)."""
    flow, codes = Affine(), torch.full((3000, D), 7.0, dtype=torch.float64)
    flow.standardise(codes)
    found: dict[float, list[float]] = {}
    for noise in (0.0, 0.05):
        flow.config = replace(flow.config, noise=noise)
        for stretch in (5.0, 20.0, 80.0):
            flow.matrix = torch.eye(D, dtype=torch.float64) * math.log(stretch) / flow.config.time
            flow.bias = torch.zeros(D, dtype=torch.float64)
            likelihood = flow.log_likelihood(flow.noisy(codes), "fixed", exact=True).detach()
            found.setdefault(noise, []).append(float(likelihood.mean()))
            expected = D * (math.log(stretch) - 0.5 * math.log(2 * math.pi) - 0.5 * (noise * stretch) ** 2)
            assert float(likelihood.mean()) == pytest.approx(expected, rel=0.05), (noise, stretch)
    assert found[0.0] == sorted(found[0.0]) and max(found[0.05]) == found[0.05][1]


def test_noise_is_of_standardised_codes() -> None:
    codes = torch.randn(6000, D) * torch.tensor([4.0, 0.1, 0.0]) + 2
    flow = StyleFlow(D, FlowConfig(noise=0.05))
    flow.standardise(codes)
    off = flow.noisy(codes) - codes
    assert torch.allclose(off.std(0), 0.05 * torch.tensor([4.0, 0.1, 1.0]), rtol=0.05)  # one that never changes: scale 1
    assert torch.equal(StyleFlow(D, FlowConfig(noise=0.0)).noisy(codes), codes)
    with pytest.raises(ValueError, match="noise: expected a number, 0 or more, got -1"):
        FlowConfig(noise=-1)


def test_standardised_in_parts_as_at_once() -> None:
    codes = torch.randn(12, D, dtype=torch.float64) * 3 + 5
    codes[:, 1] = 4.0
    whole, parts = StyleFlow(D).double(), StyleFlow(D).double()
    whole.standardise(codes)
    for part in (codes[:1], codes[1:4], codes[:0], codes[4:]):
        parts.observe(part)
    assert torch.allclose(whole.mean, codes.mean(0)) and torch.allclose(parts.mean, codes.mean(0))
    assert torch.allclose(whole.deviation, codes.std(0)) and torch.allclose(parts.deviation, codes.std(0))
    assert whole.seen == parts.seen == 12
    assert whole.scale()[1] == 1 and torch.equal(whole.scale()[[0, 2]], whole.deviation[[0, 2]])
    whole.standardise(codes[:2] + 1)  # anew: what was seen is forgotten
    assert torch.allclose(whole.mean, codes[:2].mean(0) + 1) and whole.seen == 2
    doubled = StyleFlow(D).double()  # two processes that saw the same: twice the sums
    doubled.observe(codes, lambda values: 2 * values)
    assert doubled.seen == 24 and torch.allclose(doubled.mean, codes.mean(0))
    assert torch.allclose(doubled.deviation, codes.repeat(2, 1).std(0))
    assert {"mean", "deviation", "seen"} <= set(doubled.state_dict())


def test_flow_refuses_what_does_not_fit(flow: StyleFlow) -> None:
    wrong = torch.zeros(2, D + 1, dtype=torch.float64)
    for call in (flow.encode, flow.decode, flow.log_likelihood, flow.observe):
        with pytest.raises(ValueError, match=r"codes: expected shape \(B, 3\), got \(2, 4\)"):
            call(wrong)
    with pytest.raises(ValueError, match=r"codes: expected shape \(N, 3\), N at least 2, got \(1, 3\)"):
        flow.standardise(torch.zeros(1, D, dtype=torch.float64))
    with pytest.raises(ValueError, match="solver: expected adaptive or fixed, got 'quick'"):
        flow.encode(wrong[:, :D], "quick")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance: expected a positive number, got 0"):
        FlowConfig(tolerance=0)


# --- generator -------------------------------------------------------------------------------------------------------------


def test_generator_is_seans_decoder_behind_the_encoder() -> None:
    config = GeneratorConfig(label_nc=K, ngf=2, image_size=32, hidden=4, style_length=S, encoder_width=2)
    ours = Generator(config).eval()
    theirs = sean.SEANGenerator(sean.Config(**{f: getattr(config, f) for f in sean.Config.__dataclass_fields__})).eval()
    decoder = {name: value for name, value in ours.state_dict().items() if not name.startswith("Zencoder.")}
    own = {name for name in theirs.state_dict() if not name.startswith("Zencoder.")}
    assert set(decoder) == own and isinstance(ours.Zencoder, MultiScaleEncoder)
    theirs.load_state_dict(decoder, strict=False)
    image, regions = torch.rand(1, 3, 32, 32), RegionMap(labels_of(1, 32, 32), K, ignore_index=-1)
    with torch.no_grad():
        codes = ours.encode(image, regions)
        assert torch.equal(codes, ours.Zencoder(image, regions))
        made = ours(regions, style_codes=codes, noise=None)
        assert torch.equal(made, theirs(regions, style_codes=codes, noise=None))
        assert torch.equal(made, ours(regions, image, noise=None))


def test_present_is_what_has_a_code() -> None:
    """A pixel between those that nearest resizing keeps is no region at half the size."""
    ours = Generator(GeneratorConfig(label_nc=K, ngf=2, image_size=32, hidden=4, style_length=S, encoder_width=2))
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    labels[0, 4, 4], labels[0, 5, 5], labels[1] = 1, 2, -1
    expected = [[True, True, False, False, False], [False] * 5]
    assert ours.present(RegionMap(labels, K, ignore_index=-1)).tolist() == expected
    weights = torch.stack([(labels == k).float() for k in range(K)], 1)
    assert ours.present(RegionMap.soft(weights)).tolist() == expected


def test_encoder_refuses_sizes_that_it_cannot_halve_twice() -> None:
    regions = RegionMap(torch.zeros(1, 16, 18, dtype=torch.int64), K)
    with pytest.raises(
        ValueError, match=r"image: expected shape \(B, 3, H, W\), H and W multiples of 4, got \(1, 3, 16, 18\)"
    ):
        MultiScaleEncoder(S, 2)(torch.zeros(1, 3, 16, 18), regions)


def test_groups_name_regions_once() -> None:
    classes = ("background", "skin", "nose", "hair")
    assert checked_groups({"hair": ("hair",), "face": ("skin", "nose")}, classes) == {"hair": (3,), "face": (1, 2)}
    with pytest.raises(ValueError, match="groups: hair: expected regions out of background, skin, nose, hair; got 'hat'"):
        checked_groups({"hair": ("hair", "hat")}, classes)
    with pytest.raises(ValueError, match="groups: expected every region in one group, got nose in a and in b"):
        checked_groups({"a": ("nose",), "b": ("nose",)}, classes)
    with pytest.raises(ValueError, match="groups: a: expected at least one region, got none"):
        checked_groups({"a": ()}, classes)
