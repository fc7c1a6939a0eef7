"""The networks of the class- and layer-wise VAE against independent forms of the paper's equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.networks import (
    Codes,
    Encoder,
    Generator,
    config_from_state,
    encoder_config_from_state,
    encoder_recognises,
    recognises,
)
from torch import Tensor

from mixsyn_fast import RegionMap, use_backend, use_plan

K, SIZE = 5, 64


def labels(batch: int = 2, size: int = SIZE, seed: int = 0) -> Tensor:
    """Blocks of labels; class 4 is in the first image alone, and -1 (none) is there too."""
    cells = torch.randint(-1, K - 1, (batch, 8, 8), generator=torch.Generator().manual_seed(seed))
    cells[0, 3:5, 3:6] = 4
    return cells.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)


def region_map(batch: int = 2, size: int = SIZE) -> RegionMap:
    return RegionMap(labels(batch, size), K, ignore_index=-1)


def generator(**fields) -> Generator:
    torch.manual_seed(1)
    network = Generator(GeneratorConfig(label_nc=K, ngf=4, image_size=SIZE, hidden=8, z_dim=6, **fields)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(parameter[0].numel() if parameter.dim() > 1 else 4, 1) ** 0.5)
    return network


def encoder(**fields) -> Encoder:
    torch.manual_seed(2)
    return Encoder(EncoderConfig(ndf=4, z_dim=6, image_size=128, **({"code_length": K} | fields))).double().eval()


def test_entries_and_sizes_are_the_published_ones() -> None:
    """ADE20K, 151 classes: G 235 entries and 111.965 M parameters, E 42 and 10.909 M."""
    with torch.device("meta"):
        networks = Generator(GeneratorConfig(spectral_norm=True)), Encoder(EncoderConfig(spectral_norm=True))
    counts = [len(network.state_dict()) for network in networks]
    parameters = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
    assert counts == [235, 42]
    assert [f"{number:.3f}" for number in parameters] == ["111.965", "10.909"]


def test_settings_are_read_from_a_state_dict() -> None:
    made, encoding = generator(code_length=7), encoder(code_length=7)
    state, other = made.state_dict(), encoding.state_dict()
    assert recognises(state) and not recognises(other)
    assert encoder_recognises(other) and not encoder_recognises(state)
    assert config_from_state(state, image_size=SIZE) == made.config
    assert encoder_config_from_state(other) == encoding.config


def test_levels_of_blocks() -> None:
    """The table of the contract at L = 6; with fewer levels the coarsest blocks keep the coarsest codes (Eq. 10, 14)."""
    assert GeneratorConfig().level_of_block == {
        "head_0": 5,
        "G_middle_0": 4,
        "G_middle_1": 4,
        "up_0": 3,
        "up_1": 2,
        "up_2": 1,
    }
    assert GeneratorConfig(num_levels=3).level_of_block == {"head_0": 2, "G_middle_0": 1, "G_middle_1": 1}
    assert GeneratorConfig(num_levels=1).level_of_block == {}
    assert GeneratorConfig(layer_wise=False).level_of_block == {"up_0": 3}


def published_image(network: Generator, label: Tensor, codes: Codes) -> Tensor:
    """Eq. 10 and 12 as published: a dense map of vectors for every block, plain convolutions."""
    config, modules = network.config, dict(network.named_modules())

    def spade(name: str, x: Tensor, segmap: Tensor) -> Tensor:
        layer = modules[name]
        hidden = layer.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return layer.param_free_norm(x) * (1 + layer.mlp_gamma(hidden)) + layer.mlp_beta(hidden)

    onehot = torch.stack([(label == k) for k in range(K)], 1).double()
    level_of = {"head_0": 5, "G_middle_0": 4, "G_middle_1": 4, "up_0": 3, "up_1": 2, "up_2": 1}
    height, width = config.start_size
    x = network.fc(codes.z).view(-1, 16 * config.ngf, height, width)
    for name in ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3"):
        segmap = onehot
        if name in level_of:
            vectors = network.embedding.weight + codes.classes[level_of[name] - 1]
            segmap = torch.einsum("bkhw,bkn->bnhw", onehot, vectors)
        block = modules[name]
        shortcut = block.conv_s(spade(f"{name}.norm_s", x, segmap)) if block.learned_shortcut else x
        y = block.conv_0(F.leaky_relu(spade(f"{name}.norm_0", x, segmap), 0.2))
        x = shortcut + block.conv_1(F.leaky_relu(spade(f"{name}.norm_1", y, segmap), 0.2))
        if name not in ("G_middle_0", "up_3"):
            x = F.interpolate(x, scale_factor=2)
    return torch.tanh(network.conv_img(F.leaky_relu(x, 0.2)))


@pytest.mark.parametrize("plan", ["table", "dense", "auto"])
def test_the_image_is_that_of_dense_maps_of_codes(plan: str) -> None:
    network = generator()
    codes = network.prior(2, torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = published_image(network, labels(), codes)
        with use_plan(plan):
            found = network(region_map(), codes)
        assert (found - expected).abs().max() < 1e-12
        with use_plan("dense"), use_backend("reference"):
            assert (network(region_map(), codes) - expected).abs().max() < 1e-12
        soft = torch.stack([(labels() == k) for k in range(K)], 1).double()
        assert (network(RegionMap.soft(soft), codes) - expected).abs().max() < 1e-12


def test_gradients_reach_every_code_and_parameter() -> None:
    network, regions = generator().train(), region_map()
    codes = network.prior(2, torch.Generator().manual_seed(3))
    leaves = [codes.z, *(level.detach().clone() for level in codes.classes)]
    grads = []
    for plan in ("table", "dense"):
        given = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        network.zero_grad()
        with use_plan(plan):
            network(regions, Codes(given[0], tuple(given[1:]))).square().sum().backward()
        grads.append([leaf.grad for leaf in given] + [p.grad for p in network.parameters()])
    largest = max(float(b.abs().max()) for b in grads[1])  # a bias before a norm has a gradient of rounding alone
    for a, b in zip(*grads, strict=True):
        assert a is not None and (a - b).abs().max() <= 1e-12 * largest
    # of an absent class nothing depends on the code
    assert grads[0][1][1, 4].abs().max() == 0 and grads[0][1][0, 4].abs().max() > 0


def test_distributions_follow_the_equations() -> None:
    """Eq. 13 to 17, class by class: maxima of the values before the activation, over the nearest-resized label map."""
    network = encoder()
    image, label = torch.randn(2, 3, 128, 128).double(), labels(size=128)
    with torch.no_grad():
        found = network(image, RegionMap(label, K, ignore_index=-1))
        x = image
        for level in range(1, 6):
            before = getattr(network, f"layer{level}")(x)
            small = F.interpolate(label[:, None].double(), size=before.shape[2:])[:, 0]
            for b in range(2):
                for k in range(K):
                    member = small[b] == k
                    assert bool(found.classes.present[level - 1][b, k]) is bool(member.any())
                    mean = variance = torch.zeros(K).double()
                    if member.any():
                        pooled = F.leaky_relu(before[b][:, member].amax(1), 0.2)
                        mean = getattr(network, f"fc_mu{level}")(pooled)
                        variance = getattr(network, f"fc_var{level}")(pooled)
                    assert torch.allclose(found.classes.mean[level - 1][b, k], mean, atol=1e-12)
                    assert torch.allclose(found.classes.log_variance[level - 1][b, k], variance, atol=1e-12)
            x = F.leaky_relu(before, 0.2)
        assert torch.allclose(found.mean, network.fc_mu(x.flatten(1)))
        assert torch.allclose(found.log_variance, network.fc_var(x.flatten(1)))


def test_divergence_is_that_of_the_distributions() -> None:
    """Eq. 18 by torch.distributions: the mean over the classes present, summed over levels, averaged over images."""
    network = encoder()
    with torch.no_grad():
        found = network(torch.randn(2, 3, 128, 128).double(), RegionMap(labels(size=128), K, ignore_index=-1))
        prior = torch.distributions.Normal(0.0, 1.0)

        def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
            posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
            return torch.distributions.kl_divergence(posterior, prior).sum(-1)

        expected = divergence(found.mean, found.log_variance)
        for mean, log_variance, present in zip(*found.classes, strict=True):
            each = divergence(mean, log_variance)
            expected = expected + torch.stack([each[b][present[b]].mean() for b in range(2)])
        assert torch.allclose(found.kld(), expected.mean())


def test_codes_are_drawn_or_means() -> None:
    found = encoder()(torch.randn(2, 3, 128, 128).double(), RegionMap(labels(size=128), K, ignore_index=-1))
    means = found.codes(K, sample=False)
    assert torch.equal(means.z, found.mean) and torch.equal(means.classes[0], found.classes.mean[0])
    draws = torch.stack([found.codes(K, sample=True).classes[0] for _ in range(200)])
    absent = draws[:, 1, 4]  # of a class that is not there: the prior
    assert abs(absent.mean()) < 0.2 and abs(absent.std() - 1) < 0.1
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("num_levels", [1, 2, 3, 6])
@pytest.mark.parametrize("class_wise", [True, False])
@pytest.mark.parametrize("layer_wise", [True, False])
def test_ablations(num_levels: int, class_wise: bool, layer_wise: bool) -> None:
    switches = {"num_levels": num_levels, "class_wise": class_wise, "layer_wise": layer_wise}
    network, encoding = generator(**switches), encoder(**switches)
    latents = encoding(torch.randn(2, 3, 100, 70).double(), region_map())  # any size: resized
    codes = latents.codes(K, sample=True)
    assert len(codes.classes) == (num_levels - 1 if layer_wise else min(num_levels - 1, 1))
    for level in codes.classes:
        assert level.shape == (2, K, K)
        if not class_wise:
            assert torch.equal(level[:, :1].expand_as(level), level)
    (network(region_map(), codes).mean() + latents.kld()).backward()
    assert all(p.grad is not None for n, p in encoding.named_parameters())
    assert network(region_map()).shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GeneratorConfig(num_levels=0), "num_levels: expected 1 to 6, got 0"),
        (lambda: EncoderConfig(num_levels=7), "num_levels: expected 1 to 6, got 7"),
        (lambda: GeneratorConfig(code_length=-1), "code_length"),
        (lambda: EncoderConfig(code_length=0), "code_length"),
        (lambda: GeneratorConfig(use_vae=False), "use_vae"),
        (lambda: GeneratorConfig(edges=True), "edges"),
        (lambda: generator()(region_map(), Codes(torch.zeros(2, 6).double(), ())), "codes: expected 5 levels"),
        (lambda: generator()(region_map(), Codes(torch.zeros(2, 5).double(), generator().prior(2).classes)), "z: expected"),
        (lambda: generator()(region_map(), generator().prior(3)), "expected shape"),
    ],
)
def test_what_does_not_fit(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
