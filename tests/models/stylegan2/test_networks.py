"""StyleGAN2's networks against an independent form, and what they promise."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from mixsyn_fast.models.plain import dense_reference
from mixsyn_fast.models.stylegan2 import Config, Discriminator, Generator
from torch import Tensor

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers.modulated import demodulation, modulated_conv2d, modulated_conv2d_reference
from tests.compare import assert_within_rule
from tests.models.stylegan2 import plain

TINY = Config(size=16, z_dim=8, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8)


def _randomised(network: torch.nn.Module, seed: int = 0) -> None:
    """No noise strength and no bias stays 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias") or "noise.weight" in name:
                value.add_(torch.randn(value.shape, generator=rng, dtype=value.dtype) * 0.3)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(1)
    made = Generator(TINY).double().eval()
    _randomised(made)
    made.measure_mean(100)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def w(generator: Generator) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return generator.map(torch.randn(3 * generator.num_ws, 8, generator=rng, dtype=torch.float64)).unflatten(0, (3, -1))


@pytest.mark.parametrize("plan", ["auto", "dense"])
@pytest.mark.parametrize("noise", ["const", "none"])
def test_generator_is_the_independent_form(generator: Generator, w: Tensor, noise: str, plan: str) -> None:
    state = generator.state_dict()
    noises = [state[f"noises.noise_{i}"] for i in range(len(generator.noise_shapes()))] if noise == "const" else None
    expected = torch.cat([plain.synthesis(state, each, noises) for each in w])
    if plan == "dense":
        with dense_reference():
            image = generator.synthesis(generator.styles(w), noise)  # type: ignore[arg-type]
    else:
        image = generator.synthesis(generator.styles(w), noise)  # type: ignore[arg-type]
    assert image.shape == (3, 3, 16, 16)
    torch.testing.assert_close(image, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_all_gradients_are_those_of_weights_per_sample(memory: torch.memory_format) -> None:
    """Of the code and of every weight, in both layouts: the published form is what everything else is judged by."""
    torch.manual_seed(5)
    made = Generator(Config(size=16, z_dim=8, w_dim=6, mapping_layers=2, channel_base=512, channel_max=32)).double()
    _randomised(made)
    s = made.styles(torch.randn(2, 6, dtype=torch.float64)).detach()
    seen = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def gradients(network: Generator) -> dict[str, Tensor]:
        code = s.clone().requires_grad_()
        loss = (network.synthesis(code, "const") * seen).sum()
        wanted = {
            name: p for name, p in network.named_parameters() if not name.startswith("mapping") and "affine" not in name
        }
        found = torch.autograd.grad(loss, [code, *wanted.values()], allow_unused=True)
        return {name: each for name, each in zip(("s", *wanted), found, strict=True) if each is not None}

    with dense_reference():
        expected = gradients(copy.deepcopy(made))
    of_layout = copy.deepcopy(made).to(memory_format=memory)  # type: ignore[call-overload]
    with dense_reference():
        published = gradients(of_layout)
    for found in (published, gradients(of_layout)):
        assert found.keys() == expected.keys() and len(found) > 10
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max()), msg=name)


def test_mapping_and_truncation(generator: Generator) -> None:
    z = torch.randn(4, 8, dtype=torch.float64)
    w = plain.mapping(generator.state_dict(), z)
    torch.testing.assert_close(generator.map(z), w)
    assert generator.truncate(w, 1.0) is w
    torch.testing.assert_close(generator.truncate(w, 0.0), generator.w_mean.expand_as(w))
    torch.testing.assert_close(generator.truncate(w, 0.7), generator.w_mean + 0.7 * (w - generator.w_mean))
    torch.testing.assert_close(generator(z, 0.7), generator.synthesis(generator.styles(generator.truncate(w, 0.7))))


def test_discriminator_is_the_independent_form() -> None:
    torch.manual_seed(3)
    judge = Discriminator(TINY).double().requires_grad_(False)
    _randomised(judge)
    for batch in (1, 4, 8):
        image = torch.randn(batch, 3, 16, 16, dtype=torch.float64)
        torch.testing.assert_close(judge(image), plain.discriminator(judge.state_dict(), image), rtol=1e-11, atol=1e-11)
    assert judge(torch.randn(6, 3, 16, 16, dtype=torch.float64)).shape == (6, 1)  # groups of three
    assert judge(torch.randn(0, 3, 16, 16, dtype=torch.float64)).shape == (0, 1)


@pytest.mark.parametrize("up", [False, True])
def test_modulation_as_scaling_has_the_gradients_of_weights_per_sample(up: bool) -> None:
    torch.manual_seed(4)
    x, weight, style = (torch.randn(*size, dtype=torch.float64) for size in ((2, 4, 5, 5), (3, 4, 3, 3), (2, 4)))

    def derivatives(form: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [each.clone().requires_grad_() for each in (x, weight, style)]
        y = form(*leaves)
        seen = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        first = torch.autograd.grad((y.sin() * seen).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), y.new_zeros(())), leaves)
        return [y, *first, *second]

    ours = derivatives(lambda *a: modulated_conv2d(*a, up=up))
    theirs = derivatives(lambda *a: modulated_conv2d_reference(*a, True, up))
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_every_channel_of_s_scales_one_channel(generator: Generator, w: Tensor) -> None:
    s = generator.styles(w)
    image, found = generator.activations(s)
    torch.testing.assert_close(image, generator.synthesis(s))
    assert tuple(each.shape[1] for each in found) == generator.layout.channels
    layer = generator.layout.rgb_layers[1]
    channel = generator.layout.offsets[layer] + 2
    changed = s.clone()
    changed[:, channel] *= 3
    _, after = generator.activations(changed)
    for i, (old, new) in enumerate(zip(found, after, strict=True)):
        if i != layer:
            torch.testing.assert_close(new, old)  # an RGB layer feeds no other
    torch.testing.assert_close(after[layer][:, 2], 3 * found[layer][:, 2])
    torch.testing.assert_close(after[layer][:, :2], found[layer][:, :2])


def test_noise(generator: Generator, w: Tensor) -> None:
    s = generator.styles(w)
    stored = [generator.noises.get_buffer(f"noise_{i}") for i in range(len(generator.noise_shapes()))]
    torch.testing.assert_close(generator.synthesis(s, stored), generator.synthesis(s))
    torch.manual_seed(0)
    first = generator.synthesis(s, "random")
    torch.manual_seed(0)
    assert torch.equal(generator.synthesis(s, "random"), first)
    assert not torch.equal(generator.synthesis(s, "random"), first)
    with pytest.raises(ValueError, match=r"noise: expected 5 tensors, got 1"):
        generator.synthesis(s, stored[:1])
    with pytest.raises(ValueError, match=r"noise\[1\]: expected shape \(3 or 1, 1, 8, 8\), got \(1, 1, 4, 4\)"):
        generator.synthesis(s, [stored[0]] * 5)
    with pytest.raises(ValueError, match="noise: expected const, random, none"):
        generator.synthesis(s, "some")  # type: ignore[arg-type]


def test_mixing(generator: Generator) -> None:
    a, b = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    mixed = generator.mixed(a, b, 2)
    assert torch.equal(mixed[:, 1], a) and torch.equal(mixed[:, 2], b)
    torch.testing.assert_close(generator.styles(generator.mixed(a, b, generator.num_ws)), generator.styles(a))
    with pytest.raises(ValueError, match="crossover: expected 0 to 6, got 7"):
        generator.mixed(a, b, 7)


def test_the_mean_of_w_is_tracked() -> None:
    generator = Generator(TINY)
    w = torch.randn(4, 6)
    generator.track(w, 0.9)
    torch.testing.assert_close(generator.w_mean, 0.1 * w.mean(0))


def test_counts_of_the_published_generator() -> None:
    with torch.device("meta"):
        generator = Generator(Config())
    state = {name: value for name, value in generator.state_dict().items() if name != "w_mean"}
    assert len(state) == 171
    assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 3) == 30.370
    assert generator.layout == StyleLayout.stylegan2(1024)
    assert (generator.layout.size, generator.num_ws) == (9088, 18)
    assert Generator(Config(size=32, channel_base=16384)).layout == StyleLayout.stylegan2(32, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 48}, "size: expected a power of two from 8 to 1024, got 48"),
        ({"size": 4}, "size: expected a power of two"),
        ({"w_dim": 0}, "w_dim: expected at least 1, got 0"),
        ({"channel_base": 100, "size": 128}, "channel_base: expected at least the side of the image, 128, got 100"),
        ({"lr_mul": 0.0}, r"lr_mul: expected a number in \(0, 1\], got 0.0"),
    ],
)
def test_bad_settings(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generator(Config(**fields))  # type: ignore[arg-type]


def test_bad_inputs(generator: Generator) -> None:
    with pytest.raises(ValueError, match=r"z: expected shape \(B, 8\), got \(2, 7\)"):
        generator.map(torch.randn(2, 7))
    with pytest.raises(ValueError, match=r"w: expected shape \(B, 6, 6\), got \(2, 5, 6\)"):
        generator.styles(torch.randn(2, 5, 6))
    with pytest.raises(ValueError, match=rf"s: expected shape \(B, {generator.layout.size}\), got \(2, 9\)"):
        generator.synthesis(torch.randn(2, 9))
    with pytest.raises(ValueError, match=r"image: expected shape \(B, 3, 16, 16\), got \(1, 3, 8, 8\)"):
        Discriminator(TINY)(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"style: expected shape \(1, 2\), as batch and channels of x, got \(1, 3\)"):
        modulated_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, I, H, W\), got \(2, 4, 4\)"):
        modulated_conv2d(torch.randn(2, 4, 4), torch.randn(3, 2, 3, 3), torch.randn(1, 2))
    with pytest.raises(ValueError, match=r"weight: expected shape \(O, I, k, k\), k 1 or 3, got \(3, 2, 5, 5\)"):
        modulated_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 5, 5), torch.randn(1, 2))


def test_an_empty_batch(generator: Generator) -> None:
    assert generator(torch.randn(0, 8, dtype=torch.float64)).shape == (0, 3, 16, 16)


def test_demodulation_keeps_its_digits_under_autocast() -> None:
    style, squares = torch.rand(2, 8) * 3, torch.rand(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = demodulation(style.bfloat16(), squares)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, demodulation(style.bfloat16().float(), squares))


def test_packed_weights_in_use() -> None:
    """In eval, in float32, weights are packed once: the right image, by the rule; an edit of the weights is noticed."""
    torch.manual_seed(5)
    network = Generator(TINY).eval().requires_grad_(False)
    _randomised(network)
    s = network.styles(network.map(torch.randn(2, 8)))
    exact = copy.deepcopy(network).double()
    with dense_reference():
        reference = network.synthesis(s)
    first = network.synthesis(s)
    assert_within_rule(first, reference, exact.synthesis(s.double()))
    assert torch.equal(network.synthesis(s), first)
    for name in ("convs.0.conv.weight", "convs.1.conv.weight"):  # one enlarges, one does not
        network.get_parameter(name).mul_(torch.rand(8, 1, 1, 1) + 0.5)
    exact = copy.deepcopy(network).double()
    with dense_reference():
        reference = network.synthesis(s)
    assert_within_rule(network.synthesis(s), reference, exact.synthesis(s.double()))
    assert not torch.equal(network.synthesis(s), first)
