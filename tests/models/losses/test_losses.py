"""Losses against their equations, written out or worked out by hand; gradients; bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models import losses
from mixsyn_fast.models.feature_networks import FeatureNetwork
from mixsyn_fast.models.losses import (
    ADVERSARIAL,
    PerceptualLoss,
    feature_matching_loss,
    gram,
    gram_style_loss,
    hinge,
    image_discriminator_loss,
    image_generator_loss,
    kld_loss,
    l1_loss,
    least_squares,
    log_loss,
    mask_discriminator_loss,
    mask_generator_loss,
    masked_l1_loss,
    non_saturating,
    r1_due,
    r1_penalty,
    style_code_loss,
)
from torch import Tensor, nn

REAL, FAKE = torch.tensor([[0.5, 2.0]]), torch.tensor([[-2.0, 0.25]])
ALL = [*ADVERSARIAL.values(), log_loss]


def sigmoid(t: float) -> float:
    """Return the logistic function."""
    return 1 / (1 + math.exp(-t))


# --- adversarial ------------------------------------------------------------------------------------------------------


def test_hinge_by_hand() -> None:
    assert hinge.discriminator_loss(REAL, FAKE).item() == pytest.approx((0.5 + 0) / 2 + (0 + 1.25) / 2)
    assert hinge.generator_loss(FAKE).item() == pytest.approx(1.75 / 2)


def test_least_squares_by_hand() -> None:
    assert least_squares.discriminator_loss(REAL, FAKE).item() == pytest.approx((0.25 + 1) / 4 + (4 + 0.0625) / 4)
    assert least_squares.generator_loss(FAKE).item() == pytest.approx((9 + 0.5625) / 4)


@pytest.mark.parametrize("module", [non_saturating, log_loss])
def test_logarithms_by_hand(module) -> None:
    real = -sum(math.log(sigmoid(t)) for t in (0.5, 2.0)) / 2
    fake = -sum(math.log(1 - sigmoid(t)) for t in (-2.0, 0.25)) / 2
    assert module.discriminator_loss(REAL, FAKE).item() == pytest.approx(real + fake, rel=1e-6)
    expected = -sum(math.log(sigmoid(t)) for t in (-2.0, 0.25)) / 2
    assert module.generator_loss(FAKE).item() == pytest.approx(expected, rel=1e-6)


def test_the_minimax_form() -> None:
    expected = sum(math.log(1 - sigmoid(t)) for t in (-2.0, 0.25)) / 2
    assert log_loss.generator_loss(FAKE, saturating=True).item() == pytest.approx(expected, rel=1e-6)


def expectation(logits: Tensor, of_fake: bool) -> float:
    """Return the mean of log D, or of log(1 - D), as the paper writes it."""
    d = torch.sigmoid(logits.double())
    return float(torch.log(1 - d if of_fake else d).mean())


@pytest.mark.parametrize("saturating", [False, True])
def test_equation_1(saturating: bool) -> None:
    real, known, random = (torch.randn(3, 1, 4, 4) for _ in range(3))
    alpha = 0.3
    value = expectation(real, False) + alpha * expectation(known, True) + (1 - alpha) * expectation(random, True)
    assert mask_discriminator_loss(real, known, random, alpha=alpha).item() == pytest.approx(-value, rel=1e-5)
    if saturating:
        fools = alpha * expectation(known, True) + (1 - alpha) * expectation(random, True)
    else:
        fools = -alpha * expectation(known, False) - (1 - alpha) * expectation(random, False)
    found = mask_generator_loss(known, random, alpha=alpha, saturating=saturating)
    assert found.item() == pytest.approx(fools, rel=1e-5)


@pytest.mark.parametrize("saturating", [False, True])
def test_equation_3(saturating: bool) -> None:
    real, known, near, random = (torch.randn(2, 1, 3, 3) for _ in range(4))
    beta, eta = 0.7, 0.2
    fakes = eta * (expectation(known, True) + expectation(near, True)) + (1 - eta) * expectation(random, True)
    value = beta * expectation(real, False) + (1 - beta) * fakes
    assert image_discriminator_loss(real, known, near, random, beta=beta, eta=eta).item() == pytest.approx(-value, rel=1e-5)
    if not saturating:
        fakes = -eta * (expectation(known, False) + expectation(near, False)) - (1 - eta) * expectation(random, False)
    found = image_generator_loss(known, near, random, beta=beta, eta=eta, saturating=saturating)
    assert found.item() == pytest.approx((1 - beta) * fakes, rel=1e-5)


def test_defaults_balance_the_kinds() -> None:
    """By default each kind of fake pulls as hard as the others, and all of them together as the real images."""
    logits = [torch.zeros(2, 1, requires_grad=True) for _ in range(7)]
    mask_discriminator_loss(*logits[:3]).backward()
    image_discriminator_loss(*logits[3:]).backward()
    pulls = [float(t.grad.sum()) for t in logits]
    assert pulls[0] == pytest.approx(-(pulls[1] + pulls[2])) and pulls[1] == pytest.approx(pulls[2])
    assert pulls[3] == pytest.approx(-(pulls[4] + pulls[5] + pulls[6]))
    assert pulls[4] == pytest.approx(pulls[5]) == pytest.approx(pulls[6])


@pytest.mark.parametrize("name", ["alpha", "beta", "eta"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_shares_out_of_range(name: str, value: float) -> None:
    functions = (mask_discriminator_loss, mask_generator_loss)
    counts = (3, 2)
    if name != "alpha":
        functions, counts = (image_discriminator_loss, image_generator_loss), (4, 3)
    for function, count in zip(functions, counts, strict=True):
        with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1\]"):
            function(*[REAL] * count, **{name: value})


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__.split(".")[-1])
def test_scales_weigh_the_same(module) -> None:
    """One large and one small scale: the mean of the two means, not the mean of all patches."""
    real, fake = ([torch.randn(2, 1, n, n) for n in (9, 3)] for _ in range(2))
    whole = module.discriminator_loss(real, fake)
    parts = [module.discriminator_loss(r, f) for r, f in zip(real, fake, strict=True)]
    assert whole.item() == pytest.approx(float(parts[0] + parts[1]) / 2, rel=1e-5)
    parts = [module.generator_loss(f) for f in fake]
    assert module.generator_loss(tuple(fake)).item() == pytest.approx(float(parts[0] + parts[1]) / 2, rel=1e-5)


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__.split(".")[-1])
def test_extreme_logits(module) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        far = torch.tensor([3e4, -3e4], dtype=dtype, requires_grad=True)
        value = module.discriminator_loss(far, far) + module.generator_loss(far)
        value.backward()
        assert value.dtype == torch.float32 and bool(value.isfinite()) and bool(far.grad.isfinite().all())
    assert module.discriminator_loss(REAL.double(), FAKE.double()).dtype == torch.float64


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__.split(".")[-1])
def test_the_right_direction(module) -> None:
    """The discriminator wants real logits up and fake ones down, the generator fake ones up."""
    real, fake, other = (torch.zeros(3, requires_grad=True) for _ in range(3))
    module.discriminator_loss(real, fake).backward()
    module.generator_loss(other).backward()
    assert bool((real.grad < 0).all()) and bool((other.grad < 0).all())
    assert bool((fake.grad > 0).all()) or module is least_squares  # zero is where least squares wants a fake to be


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__.split(".")[-1])
def test_numbers_of_scales_differ(module) -> None:
    with pytest.raises(ValueError, match="logits: expected .*at least one, got 0"):
        module.generator_loss([])
    if module is not log_loss:
        with pytest.raises(ValueError, match="logits: expected equally many scales, at least one, got 1 and 2"):
            module.discriminator_loss([REAL], [FAKE, FAKE])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9))
def test_hinge_is_what_it_says(values: list[float]) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    expected = sum(max(0, 1 - v) + max(0, 1 + v) for v in values) / len(values)
    assert hinge.discriminator_loss(logits, logits).item() == pytest.approx(expected, rel=1e-9)


# --- feature matching, L1, KLD ----------------------------------------------------------------------------------------


def test_feature_matching_by_hand() -> None:
    real = [[torch.zeros(1, 2, 2, 2), torch.ones(1, 1, 1, 1), torch.zeros(1)], [torch.zeros(1, 1, 4, 4), torch.zeros(1)]]
    fake = [[torch.full((1, 2, 2, 2), 0.5), torch.full((1, 1, 1, 1), -1.0), torch.full((1,), 99.0)]]
    fake.append([torch.full((1, 1, 4, 4), 0.25), torch.full((1,), 99.0)])
    assert feature_matching_loss(real, fake).item() == pytest.approx((0.5 + 2 + 0.25) / 2)


def test_feature_matching_moves_the_fakes_only() -> None:
    real, fake = ([[torch.randn(2, 3, requires_grad=True), torch.randn(2, 1, requires_grad=True)]] for _ in range(2))
    feature_matching_loss(real, fake).backward()
    assert fake[0][0].grad is not None and real[0][0].grad is None and fake[0][1].grad is None


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        ([], [], "features of at least one scales, got 0"),
        ([[REAL, REAL]], [], "features of 1 scales, got 0"),
        ([[REAL, REAL]], [[REAL]], "expected 2 features with the logits at scale 0, got 1"),
        ([[REAL]], [[REAL]], "expected 2 features"),
        ([[REAL, REAL]], [[REAL.T, REAL]], r"feature 0 of scale 0: expected shape \(1, 2\), got \(2, 1\)"),
    ],
)
def test_feature_matching_errors(real, fake, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_matching_loss(real, fake)


def test_l1() -> None:
    assert l1_loss(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 2.0])).item() == 2.5
    with pytest.raises(ValueError, match=r"fake: expected shape \(3, 1\) as real, got \(3,\)"):
        l1_loss(torch.zeros(3), torch.zeros(3, 1))


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (5, 7), (3, 3)], ids=str)
def test_masked_l1_weighs_every_difference(size: tuple[int, int]) -> None:
    """The mask at the size of the features is its mean over the area of every one."""
    fake, real = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    mask = torch.rand(2, 1, 8, 12, dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for y in range(size[0]):
            rows = slice(y * 8 // size[0], -(-(y + 1) * 8 // size[0]))
            for x in range(size[1]):
                columns = slice(x * 12 // size[1], -(-(x + 1) * 12 // size[1]))
                weight = float(mask[b, 0, rows, columns].mean())
                total += weight * float((fake - real)[b, :, y, x].abs().sum())
    fake.requires_grad_()
    loss = masked_l1_loss(fake, real, mask)
    assert loss.item() == pytest.approx(total / fake.numel(), rel=1e-12)
    loss.backward()
    assert fake.grad is not None and float(fake.grad.abs().sum()) > 0


def test_losses_without_a_mask_are_bit_identical() -> None:
    fake, real = torch.randn(2, 2, 3, 8, 8)
    assert torch.equal(masked_l1_loss(fake, real, None), F.l1_loss(fake, real))
    ones = torch.ones(2, 1, 8, 8)
    features = [[[x, x[:, :1, :5, :5], x] for _ in range(2)] for x in (real, fake)]
    plain = feature_matching_loss(*features)
    assert torch.equal(plain, feature_matching_loss(*features, None))
    assert feature_matching_loss(*features, ones).item() == pytest.approx(plain.item(), rel=1e-6)
    assert feature_matching_loss(*features, 0.25 * ones).item() == pytest.approx(plain.item() / 4, rel=1e-6)
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 1, H, W\), got \(2, 8, 8\)"):
        masked_l1_loss(fake, real, ones[:, 0])
    with pytest.raises(ValueError, match="fake: expected shape"):
        masked_l1_loss(fake, real[:1], ones)


def test_kld_against_torch() -> None:
    mean, log_variance = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    ours = kld_loss(mean, log_variance)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(1).mean()
    assert ours.item() == pytest.approx(float(theirs), rel=1e-12)
    assert kld_loss(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0
    assert torch.equal(kld_loss(mean.repeat(3, 1), log_variance.repeat(3, 1)), ours), "it must not grow with the batch"
    assert kld_loss(mean.bfloat16(), log_variance.bfloat16()).dtype == torch.float32
    assert kld_loss(mean[:0], log_variance[:0]).item() == 0
    with pytest.raises(ValueError, match="log_variance: expected shape"):
        kld_loss(mean, log_variance[:1])


# --- perceptual and style ---------------------------------------------------------------------------------------------


def test_perceptual_by_its_equation() -> None:
    network = FeatureNetwork("vgg19")
    loss = PerceptualLoss(network)
    real = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    fake = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    value = loss(fake, real)
    taps = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    pairs = zip(network(fake, taps), network(real, taps), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), strict=True)
    expected = sum(w * (f - r).abs().mean() for f, r, w in pairs)
    assert value.item() == pytest.approx(float(expected.detach()), rel=1e-5)
    value.backward()
    assert real.grad is None and float(fake.grad.abs().sum()) > 0
    assert loss(fake, fake).item() == 0
    mask = torch.rand(1, 1, 32, 32)
    pairs = zip(network(fake, taps), network(real, taps), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), strict=True)
    expected = sum(w * ((f - r).abs() * F.avg_pool2d(mask, 32 // f.shape[2])).mean() for f, r, w in pairs)
    assert loss(fake, real, mask).item() == pytest.approx(float(expected.detach()), rel=1e-5)


def test_perceptual_with_other_taps() -> None:
    network = FeatureNetwork("alexnet")
    loss = PerceptualLoss(network, taps=("relu2", "relu1"), weights=(3.0, 0.0))
    real, fake = torch.rand(2, 1, 3, 64, 64)
    (ours,), (theirs,) = network(fake, ("relu2",)), network(real, ("relu2",))
    assert loss(fake, real).item() == pytest.approx(3 * float((ours - theirs).abs().mean()), rel=1e-5)


def test_perceptual_errors() -> None:
    network = FeatureNetwork("alexnet")
    with pytest.raises(ValueError, match=r"taps: expected some of relu1, .*\(alexnet\), got relu1_1"):
        PerceptualLoss(network)
    with pytest.raises(ValueError, match="weights: expected 1, one for each tap, got 2"):
        PerceptualLoss(network, ("relu1",), (1, 2))
    with pytest.raises(ValueError, match="weights: expected at least one"):
        PerceptualLoss(network, (), ())
    with pytest.raises(ValueError, match="fake: expected shape"):
        PerceptualLoss(network, ("relu1",), (1,))(torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64))


def test_style_codes_by_hand() -> None:
    target = torch.zeros(2, 2, 2)
    codes = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert style_code_loss(codes, target).item() == pytest.approx((5 / 2 + 2 / 2) / 2)
    present = torch.tensor([[True, False], [True, True]])
    assert style_code_loss(codes, target, present).item() == pytest.approx((3 / 1 + 2 / 2) / 2)
    assert style_code_loss(codes, target, torch.zeros(2, 2)).item() == 0


def test_style_codes_at_the_target() -> None:
    codes = torch.randn(2, 3, 4).requires_grad_()
    style_code_loss(codes, codes.detach().clone()).backward()
    assert bool((codes.grad == 0).all()), "no direction, and no NaN, where nothing is wrong"
    absent = torch.full((1, 2, 3), math.nan)
    absent[:, 0] = 1
    assert style_code_loss(absent, torch.zeros(1, 2, 3), torch.tensor([[1, 0]])).isfinite()
    with pytest.raises(ValueError, match=r"codes: expected shape \(B, N, S\)"):
        style_code_loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"present: expected shape \(2, 3\), got \(2, 4\)"):
        style_code_loss(codes, codes, torch.ones(2, 4))


def test_gram_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]], [[3.0, 0.0]]]])  # C = 3, M = 2
    expected = torch.tensor([[5.0, -2.0, 3.0], [-2.0, 1.0, 0.0], [3.0, 0.0, 9.0]]) / 6
    torch.testing.assert_close(gram(features)[0], expected)
    other = torch.zeros(1, 3, 5, 5)  # another size is no obstacle
    value = gram_style_loss([features, features], [other, features], [2.0, 7.0])
    assert value.item() == pytest.approx(2 * float(expected.square().mean()))
    assert gram_style_loss([features], [other]).item() == pytest.approx(float(expected.square().mean()))


def test_gram_in_half_precision() -> None:
    features = torch.full((1, 4, 64, 64), 30.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert gram(features).dtype == torch.float32
    assert float(gram(features.half()).max()) == pytest.approx(900 / 4)  # the sum itself is beyond float16


def test_gram_errors() -> None:
    one = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"features: expected shape \(B, C, H, W\), got \(2, 3\)"):
        gram(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="fake: expected as many taps as real and weights, got 1, 2, 1"):
        gram_style_loss([one], [one, one])
    with pytest.raises(ValueError, match="got 0, 0, 0"):
        gram_style_loss([], [])
    with pytest.raises(ValueError, match=r"tap 0: expected \(B, C\) \(1, 4\), got \(1, 2\)"):
        gram_style_loss([one], [torch.zeros(1, 4, 3, 3)])
    with pytest.raises(ValueError, match="at least|as many"):
        gram_style_loss([one], [one], [1.0, 2.0])


# --- R1 ---------------------------------------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator() -> None:
    """D(x) = w x: the penalty is gamma / 2 |w|^2 for every image, its gradient gamma w."""
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    images = torch.randn(3, 5, dtype=torch.float64)
    penalty = r1_penalty(lambda x: x @ w, images, gamma=6.0)
    assert penalty.item() == pytest.approx(3 * float(w.detach().square().sum()), rel=1e-12)
    penalty.backward()
    torch.testing.assert_close(w.grad, 6 * w.detach())
    assert r1_penalty(lambda x: x @ w, images, gamma=6.0, interval=4).item() == pytest.approx(4 * penalty.item())
    assert images.grad is None and not images.requires_grad


def test_r1_averages_over_images_patches_and_scales() -> None:
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def judge(x: Tensor) -> list[Tensor]:
        return [x.square(), 2 * x[:, :, :2, :2]]  # 16 patches; 4 patches

    gradient = 2 * images / 16
    gradient[:, :, :2, :2] += 2 / 4
    gradient /= 2  # two scales
    expected = 0.5 * gradient.flatten(1).square().sum(1).mean()
    assert r1_penalty(judge, images, gamma=1.0).item() == pytest.approx(float(expected), rel=1e-12)


def test_r1_double_backward() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3)).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    r1_penalty(net, images, gamma=2.0).backward()
    weight = net[0].weight
    found, step = weight.grad[2, 0, 1, 1].item(), 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 0, 1, 1] += sign * step
        values.append(r1_penalty(net, images, gamma=2.0).item())
        with torch.no_grad():
            weight[2, 0, 1, 1] -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_r1_in_half_precision_and_without_gradients() -> None:
    net = nn.Conv2d(1, 1, 3)
    images = torch.randn(2, 1, 8, 8)
    exact = r1_penalty(net, images).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert r1_penalty(net, images).item() == exact
    with torch.no_grad():
        assert r1_penalty(net, images).item() == exact
    assert r1_penalty(net, images.half()).item() == pytest.approx(exact, rel=1e-2)


def test_r1_errors() -> None:
    images = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"discriminate: expected logits of 2 images, got \(1, 3\)"):
        r1_penalty(lambda x: x[:1], images)
    with pytest.raises(ValueError, match=r"discriminate: expected logits of 2 images, got \(\)"):
        r1_penalty(lambda x: x.sum(), images)
    with pytest.raises(ValueError, match="depend on the images, got constants"):
        r1_penalty(lambda x: torch.ones(2, 1), images)


def test_r1_when() -> None:
    assert [step for step in range(10) if r1_due(step, 4)] == [0, 4, 8]
    assert all(r1_due(step, 1) for step in range(3)) and not any(r1_due(step, 0) for step in range(3))


def test_public_names() -> None:
    assert sorted(losses.__all__) == losses.__all__ and all(hasattr(losses, name) for name in losses.__all__)
    assert set(ADVERSARIAL) == {"hinge", "non_saturating", "least_squares"}
    assert F.l1_loss(REAL, FAKE) == l1_loss(REAL, FAKE)


# --- compositions -----------------------------------------------------------------------------------------------------


def composition_case() -> tuple[Tensor, Tensor]:
    """Return soft weights (2, 3, 4, 5) and labels (2, 4, 5) with a rare region and a pixel of none."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64).add(0.1)
    labels = torch.zeros(2, 4, 5, dtype=torch.int32)
    labels[:, 2:], labels[1, 0, 1], labels[0, 0, 0] = 1, 2, -1
    return weights / weights.sum(1, keepdim=True), labels


@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_losses_of_compositions_pixel_by_pixel(bound: float) -> None:
    weights, labels = composition_case()
    areas = {k: int((labels == k).sum()) for k in range(3)}
    mean = sum(areas.values()) / 3
    raw = {k: min(bound, max(1 / bound, mean / area)) for k, area in areas.items()}
    scale = sum(areas.values()) / sum(raw[k] * areas[k] for k in areas)
    l1 = entropy = 0.0
    for b, y, x in itertools.product(range(2), range(4), range(5)):
        k = int(labels[b, y, x])
        if k >= 0:
            p = weights[b, :, y, x].tolist()
            l1 += raw[k] * scale * sum(abs(p[i] - (i == k)) for i in range(3))
            entropy -= raw[k] * scale * math.log(p[k])
    pixels = sum(areas.values())
    assert float(losses.composition_l1_loss(weights, labels, bound)) == pytest.approx(l1 / pixels)
    assert float(losses.composition_cross_entropy(weights, labels, bound)) == pytest.approx(entropy / pixels)
    balance = losses.pixel_balance(labels, 3, bound)
    assert float(balance.sum()) == pytest.approx(pixels) and float(balance[0, 0, 0]) == 0
    assert bound > 1 or float(balance.max()) == 1


def test_dice_counts_every_region_alike() -> None:
    weights, labels = composition_case()
    expected = 0.0
    for k in range(3):
        inside = [(float(weights[b, k, y, x]), int(labels[b, y, x]) == k) for b in range(2) for y in range(4)
                  for x in range(5) if labels[b, y, x] >= 0]  # fmt: skip
        both = sum(p for p, here in inside if here)
        expected += (1 - 2 * both / (sum(p for p, _ in inside) + sum(here for _, here in inside))) / 3
    assert float(losses.dice_loss(weights, labels)) == pytest.approx(expected)
    perfect = F.one_hot(labels.clamp(min=0).long(), 4).movedim(-1, 1).double()  # the fourth region is in no picture
    assert float(losses.dice_loss(perfect, labels)) == pytest.approx(0)


def test_the_cross_entropy_teaches_where_l1_does_not() -> None:
    """A softmax that is sure of the wrong region: 1e-30 for the right one."""
    logits = torch.tensor([[0.0, 69.0]]).view(1, 2, 1, 1).requires_grad_()
    labels = torch.zeros(1, 1, 1, dtype=torch.int32)
    gradients = [
        torch.autograd.grad(loss(torch.softmax(logits, 1), labels), logits)[0].flatten().tolist()
        for loss in (losses.composition_l1_loss, losses.composition_cross_entropy)
    ]
    assert max(map(abs, gradients[0])) < 1e-25
    assert gradients[1] == pytest.approx([-1, 1])


def test_losses_of_compositions_say_what_is_wrong() -> None:
    weights, labels = composition_case()
    for loss in (losses.composition_l1_loss, losses.composition_cross_entropy, losses.dice_loss):
        with pytest.raises(ValueError, match=r"labels: expected shape \(B, H, W\) .* got \(2, 3, 4, 5\) and \(2, 4, 4\)"):
            loss(weights, labels[..., 1:])
    with pytest.raises(ValueError, match=r"bound: expected at least 1, got 0\.5"):
        losses.composition_l1_loss(weights, labels, 0.5)
