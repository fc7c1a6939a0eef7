"""Structure and style generator: absent regions, chosen encoders, soft = hard, plain = fast, gradients, bad input."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.mixsyn import blocks
from mixsyn_fast.models.mixsyn import structure as structure_module
from mixsyn_fast.models.mixsyn import style as style_module
from mixsyn_fast.models.mixsyn.blocks import Box, fold_convolutions, strongest
from mixsyn_fast.models.mixsyn.config import Config, DiscriminatorConfig, StructureConfig, StyleConfig, halvings
from mixsyn_fast.models.mixsyn.discriminator import Discriminator
from mixsyn_fast.models.mixsyn.structure import StructureGenerator
from mixsyn_fast.models.mixsyn.style import StyleGenerator, fixed_noise
from torch import Tensor, nn

from mixsyn_fast import RegionMap, use_backend, use_plan

SIZE, N = (16, 24), 4


def settings(**style: Any) -> Config:
    """Return the settings of tiny networks."""
    return Config(
        classes=("sky", "wall", "window", "door"),
        image_size=SIZE,
        structure=StructureConfig(width=3, code_channels=5, code_size=4, decoder_width=12, decoder_smallest=6),
        style=StyleConfig(
            **({"code_length": 7, "encoder_width": 3, "encoder_largest": 6, "encoder_halvings": 2, "width": 4, "largest": 8}
               | {"start_size": 4, "hidden": 5} | style)
        ),
        structure_discriminator=DiscriminatorConfig(4, 8, 4),
        image_discriminator=DiscriminatorConfig(4, 8, 4),
    )  # fmt: skip


def generators(**style: Any) -> tuple[StructureGenerator, StyleGenerator]:
    """Return both generators in float64, in eval, every parameter away from zero."""
    torch.manual_seed(3)
    config = settings(**style)
    made = StructureGenerator(config).double().eval(), StyleGenerator(config).double().eval()
    for network in made:
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.3)
            if "mlp_gamma" in name or "mlp_beta" in name:
                nn.init.normal_(parameter, std=0.3)
    return made


def labels(count: int = 2) -> Tensor:
    """Return blocky label maps; the second picture has no door."""
    made = torch.randint(0, N, (count, 4, 6), generator=torch.Generator().manual_seed(5))
    made = made.repeat_interleave(4, 1).repeat_interleave(4, 2)
    made[:, 0, :3], made[:, 1, :3] = 2, 3
    if count > 1:
        made[1][made[1] == 3] = 1
    return made


def pictures(count: int = 2) -> tuple[Tensor, RegionMap]:
    """Return images and their hard region maps."""
    generator = torch.Generator().manual_seed(6)
    return torch.rand(count, 3, *SIZE, generator=generator, dtype=torch.float64) * 2 - 1, RegionMap(labels(count), N)


def test_a_composition_is_a_softmax_over_the_regions() -> None:
    structure, _ = generators()
    _, regions = pictures()
    codes = structure.encode(regions)
    assert codes.shape == (2, N, 5, 4, 6)
    made = structure.decode(codes)
    assert made.shape == (2, N, *SIZE) and bool((made > 0).all())
    torch.testing.assert_close(made.sum(1), torch.ones(2, *SIZE, dtype=torch.float64))
    assert torch.equal(structure(regions), made)
    assert float(made.std()) > 1e-3


def test_absent_regions_have_zero_codes() -> None:
    structure, style = generators()
    image, regions = pictures()
    for codes in (structure.encode(regions), style.encode(image, regions)):
        zero = (codes.flatten(2) == 0).all(2)
        assert zero.tolist() == [[False] * 4, [False, False, False, True]]


def test_a_code_depends_on_its_own_region_alone() -> None:
    """Another picture in the batch, other regions, other encoders: the code stays the same."""
    structure, style = generators()
    image, regions = pictures()
    alone = RegionMap(labels()[:1], N)
    changed, other = image.clone(), labels()
    outside = other != 2
    changed.permute(0, 2, 3, 1)[outside] *= -0.5
    moved = RegionMap(torch.where(other == 0, 1, other), N)  # sky becomes wall; windows as they are
    for codes, single, some, same in (
        (structure.encode(regions), structure.encode(alone), structure.encode(regions, [3, 2]), structure.encode(moved)),
        (
            style.encode(image, regions),
            style.encode(image[:1], alone),
            style.encode(image, regions, [3, 2]),
            style.encode(changed, moved),
        ),
    ):
        torch.testing.assert_close(codes[:1], single, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(codes[:, [3, 2]], some, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(codes[:, 2], same[:, 2], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(codes[:, 1], same[:, 1])


def test_only_encoders_of_regions_that_are_there_run(monkeypatch: pytest.MonkeyPatch) -> None:
    structure, style = generators()
    image, _ = pictures()
    there = RegionMap(torch.where(labels() == 3, 1, labels()), N)  # nobody has a door
    seen: list[int] = []
    real = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: seen.append(k.get("groups", 1)) or real(*a, **k))
    for which, groups in ((None, 3), ([2], 1), ([0, 3], 2)):
        seen.clear()
        structure.encode(there, which)
        style.encode(image, there, which)
        assert seen and set(seen) == {groups}
    for network, arguments in ((structure, (there, [])), (style, (image, there, []))):
        assert network.encode(*arguments).shape[:2] == (2, 0)


@pytest.mark.parametrize("normalisation", ["region_adaptive", "global"])
def test_a_one_hot_soft_map_is_the_hard_map(normalisation: str) -> None:
    structure, style = generators(normalisation=normalisation)
    image, hard = pictures()
    soft = RegionMap.soft(hard.onehot(dtype=torch.float64))
    assert soft.is_soft and not hard.is_soft
    torch.testing.assert_close(structure.encode(soft), structure.encode(RegionMap.from_onehot(hard.onehot())))
    codes = style.encode(image, hard)
    torch.testing.assert_close(style.encode(image, soft), codes, rtol=1e-10, atol=1e-12)
    made = style(hard, codes)
    assert made.shape == image.shape and float(made.std()) > 1e-3
    torch.testing.assert_close(style(soft, codes), made, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_plain_pytorch_gives_the_same(kind: str) -> None:
    structure, style = generators()
    image, regions = pictures()
    with use_plan("dense"), use_backend("reference"):
        composition = structure(regions)
        given = regions if kind == "hard" else RegionMap.soft(composition)
        codes = style.encode(image, given)
        expected = style(given, codes)
    torch.testing.assert_close(structure(regions), composition, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(style.encode(image, given), codes, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(style(given, codes), expected, rtol=1e-9, atol=1e-12)


def test_a_soft_map_with_weights_like_a_blend() -> None:
    """Between two hard maps the image moves: the weights count, not only the strongest region."""
    _, style = generators()
    image, hard = pictures()
    codes = style.encode(image, hard)
    onehot = hard.onehot(dtype=torch.float64)
    weights = 0.6 * onehot + 0.4 * onehot.roll(1, 1)
    assert float((style(RegionMap.soft(weights), codes) - style(hard, codes)).abs().max()) > 1e-3


def test_a_code_modulates_its_own_region_alone() -> None:
    """One layer of normalisation: the region and one pixel around it (the style convolution is 3 x 3), nothing else."""
    _, style = generators()
    image, hard = pictures(1)
    norm, codes = style.blocks[-1].norm_1, style.encode(image, hard)
    other = codes.clone()
    other[:, 2] += 3
    x = torch.randn(1, 4, *SIZE, dtype=torch.float64)
    inside = (hard.labels_at()[0] == 2).double()[None]
    near = F.max_pool2d(inside, 3, stride=1, padding=1)[0] > 0
    for regions in (hard, RegionMap.soft(hard.onehot(dtype=torch.float64))):
        change = (norm(x, regions, other) - norm(x, regions, codes)).abs().mean(1)[0]
        assert float(change[inside[0] > 0].min()) > 1e-4
        assert float(change[~near].max()) < 1e-12


def test_global_normalisation_has_one_style_per_image() -> None:
    _, style = generators(normalisation="global")
    assert {plan.kind for plan in style.plans} == {"shared"}
    image, hard = pictures()
    codes = style.encode(image, hard)
    shuffled = codes[:, [1, 0, 2, 3]]
    torch.testing.assert_close(style(hard, codes), style(hard, shuffled))
    # a picture's mean is over the regions that it has
    twice = torch.cat((codes[1:, :1], codes[1:, :1], torch.zeros_like(codes[1:, :2])), 1)
    once = torch.cat((codes[1:, :1], torch.zeros_like(codes[1:, :3])), 1)
    hard_1 = RegionMap(labels()[1:], N)
    # the layout counts at every level, not at the first alone: cells of 4 x 4 pixels with the same shares, stirred
    mixed = labels(1)
    mixed[:, ::4], stirred = (mixed[:, ::4] + 1) % N, mixed.clone()
    stirred[:, 0::4], stirred[:, 1::4] = mixed[:, 1::4], mixed[:, 0::4]
    assert float((style(RegionMap(mixed, N), codes[:1]) - style(RegionMap(stirred, N), codes[:1])).abs().max()) > 1e-3
    torch.testing.assert_close(style(hard_1, twice), style(hard_1, once))


def test_the_images_gradient_reaches_the_structure_generator() -> None:
    structure, style = generators()
    image, regions = pictures()
    composition = structure(regions)
    soft = RegionMap.soft(composition)
    codes = style.encode(image, soft)
    loss = style(soft, codes).square().mean()
    for parameters in (structure.encoder_in.weight, structure.decoder_out.weight):
        (gradient,) = torch.autograd.grad(loss, parameters, retain_graph=True)
        assert float(gradient.abs().max()) > 0
    # against a finite difference in one weight of the decoder
    bias = structure.decoder_out.bias
    (gradient,) = torch.autograd.grad(loss, bias)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            bias[1] += step
            soft = RegionMap.soft(structure(regions))
            values.append(style(soft, style.encode(image, soft)).square().mean())
            bias[1] -= step
    assert float(gradient[1]) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-4)


def test_presence_is_the_compositions_not_the_weights() -> None:
    """A softmax gives every region some weight: an absent one is absent because its composition says so."""
    structure, style = generators()
    image, regions = pictures()
    soft = RegionMap.soft(structure(regions).detach())
    assert not (style.encode(image, soft) == 0).all(2).any()
    present = regions.areas() > 0
    codes = style.encode(image, soft, present=present)
    assert torch.equal((codes == 0).all(2), ~present)


def test_a_tiny_region_has_its_code() -> None:
    """One pixel of a region counts, also where a code's cell is four pixels wide."""
    _, style = generators()
    image, _ = pictures(1)
    map_ = torch.zeros(1, *SIZE, dtype=torch.int64)
    map_[0, 5, 7] = 2
    codes = style.encode(image, RegionMap(map_, N))
    darker = image.clone()
    darker[0, :, 5, 7] -= 1
    again = style.encode(darker, RegionMap(map_, N))
    assert bool((codes[0, 2] != 0).any()) and not torch.allclose(codes[0, 2], again[0, 2])
    torch.testing.assert_close(codes[0, 1], torch.zeros(7, dtype=torch.float64))


def test_batch_of_none() -> None:
    structure, style = generators()
    empty = RegionMap(torch.zeros(0, *SIZE, dtype=torch.int64), N)
    assert structure(empty).shape == (0, N, *SIZE)
    codes = style.encode(torch.zeros(0, 3, *SIZE, dtype=torch.float64), empty)
    assert style(empty, codes).shape == (0, 3, *SIZE)


def test_bad_input_is_named() -> None:
    structure, style = generators()
    image, regions = pictures()
    small = RegionMap(labels()[:, :8], N)
    for call, message in (
        (lambda: structure.encode(small), "regions: expected a map of 16 x 24 pixels, got 8 x 24"),
        (lambda: structure.encode(RegionMap(labels(), 6)), "regions: expected 4 regions, got 6"),
        (lambda: structure.encode(regions, [4]), r"which: expected regions in \[0, 4\), got 4"),
        (
            lambda: structure.decode(torch.zeros(2, 4, 6, 4, 6)),
            r"codes: expected shape \(B, 4, 5, h, w\), got \(2, 4, 6, 4, 6\)",
        ),
        (lambda: style.encode(image[:1], regions), r"image: expected shape \(2, 3, 16, 24\), got \(1, 3, 16, 24\)"),
        (lambda: style(regions, torch.zeros(2, 4, 8)), r"codes: expected shape \(2, 4, 7\), got \(2, 4, 8\)"),
        (lambda: style(small, torch.zeros(2, 4, 7)), "regions: expected a map of 16 x 24"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_settings_that_cannot_be() -> None:
    config = settings()
    for fields, message in (
        ({"image_size": (16, 18)}, "structure.code_size: expected 2 or more pixels that halving the image's 16 x 18"),
        ({"structure": StructureConfig(code_size=5)}, "structure.code_size: .*got 5"),
        ({"structure": StructureConfig(code_size=16)}, "structure.code_size: expected less than the image's 16 pixels"),
        ({"style": StyleConfig(start_size=32)}, "style.start_size: .*got 32"),
        ({"style": StyleConfig(encoder_halvings=4)}, "style.encoder_halvings: .*got 1"),
        ({"classes": ("a", "a")}, "classes: expected two or more different names"),
        ({"coupled": "sky+roof"}, "coupled: expected names among sky, wall, window, door, got 'roof'"),
        ({"beta": 1.5}, r"beta: expected a number in \[0, 1\], got 1.5"),
        ({"generator_lr": 0.0}, "generator_lr: expected a positive number"),
        ({"vgg": -1.0}, "vgg: expected a number that is not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **fields)
    with pytest.raises(ValueError, match="width: expected a positive number"):
        StructureConfig(width=0)
    assert halvings((16, 24), 4, "x") == 2


@pytest.mark.parametrize("spectral", [True, False])
def test_folded_networks_do_the_same(spectral: bool) -> None:
    structure, style = generators(spectral_norm=spectral)
    image, regions = pictures()
    twins = copy.deepcopy(structure), copy.deepcopy(style)
    for twin in twins:
        fold_convolutions(twin)
    codes = style.encode(image, regions)
    torch.testing.assert_close(twins[0](regions), structure(regions), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        twins[1](regions, twins[1].encode(image, regions)), style(regions, codes), rtol=1e-9, atol=1e-12
    )


def test_a_discriminator_judges_each_alone() -> None:
    torch.manual_seed(0)
    judge = Discriminator(3, SIZE, DiscriminatorConfig(4, 8, 4)).double().eval()
    image, _ = pictures()
    logits = judge(image)
    assert logits.shape == (2, 1)
    torch.testing.assert_close(judge(image[1:]), logits[1:])
    image.requires_grad_()
    corner = image[:1, :, :8, :8].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(judge, (corner,), atol=1e-4, fast_mode=True)


def test_a_code_is_the_mean_of_its_regions_features() -> None:
    """Features of a cell count by how many of its pixels belong to the region."""
    _, style = generators()
    image, _ = pictures()
    map_ = torch.randint(0, N, (2, *SIZE), generator=torch.Generator().manual_seed(8))  # cells of several regions
    regions, seen = RegionMap(map_, N), []
    style.encoder[-1].register_forward_hook(lambda *parts: seen.append(parts[-1]))
    codes = style.encode(image, regions)
    features = F.leaky_relu(seen[0], 0.2).unflatten(1, (N, -1))  # (2, N, C, 4, 6)
    weight, bias = style.encoder_out.weight.view(N, 7, -1), style.encoder_out.bias.view(N, 7)
    for b in range(2):
        for i in range(N):
            pixels = (map_[b] == i).nonzero() // 4  # the cell of every pixel of the region
            mean = torch.stack([features[b, i, :, y, x] for y, x in pixels.tolist()]).mean(0)
            torch.testing.assert_close(codes[b, i], torch.tanh(weight[i] @ mean + bias[i]), rtol=1e-9, atol=1e-12)


def test_the_generator_begins_with_the_mean_composition_of_every_cell() -> None:
    _, style = generators()
    image, _ = pictures(1)
    map_ = torch.zeros(1, *SIZE, dtype=torch.int64)
    map_[0, 5, 7] = 2  # one pixel, which no nearest sampling to 4 x 6 would meet
    regions, seen = RegionMap(map_, N), []
    style.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    style(regions, style.encode(image, regions))
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1, 1] = 1 / 16
    torch.testing.assert_close(seen[0][0, 2], expected)
    torch.testing.assert_close(seen[0].sum(1), torch.ones(1, 4, 6, dtype=torch.float64))


def test_noise_is_fixed_in_use_and_drawn_in_training() -> None:
    _, plain = generators()
    _, noisy = generators(noise=True)
    noisy.load_state_dict(plain.state_dict())
    regions, codes = RegionMap(labels(), N), torch.randn(2, N, 7, dtype=torch.float64)
    assert not any(layer.requires_grad for name, layer in plain.named_parameters() if name.endswith("noise_var"))
    assert all(layer.requires_grad for name, layer in noisy.named_parameters() if name.endswith("noise_var"))
    first = noisy(regions, codes)
    assert torch.equal(first, noisy(regions, codes)), "an edit keeps it"
    assert not torch.allclose(first, plain(regions, codes))
    torch.testing.assert_close(noisy(RegionMap(labels()[1:], N), codes[1:]), first[1:])  # the same for every picture
    torch.manual_seed(0)
    noisy.train()
    assert not torch.allclose(noisy(regions, codes), noisy(regions, codes))
    _, other = generators(noise=True, noise_seed=1)
    other.load_state_dict(plain.state_dict())
    assert not torch.allclose(first, other(regions, codes))
    seen = fixed_noise((4, 6), 3, torch.device("cpu"), torch.float32)
    assert seen.shape == (1, 1, 4, 6) and torch.equal(seen, fixed_noise((4, 6), 3, torch.device("cpu"), torch.float32))


def test_the_strongest_region_is_the_first_of_equal_ones() -> None:
    weights = torch.randint(0, 3, (2, N, 9, 7)).float()
    assert torch.equal(strongest(weights), weights.argmax(1)) and torch.equal(strongest(weights[0], 0), weights[0].argmax(0))


def test_strongest_regions_are_painted_in_use_alone() -> None:
    """painted="hard": in eval mode the image is that of the strongest regions, bit for bit; training sees the weights."""
    _, soft = generators()
    _, hard = generators(painted="hard")
    hard.load_state_dict(soft.state_dict())
    codes = torch.randn(2, N, 7, dtype=torch.float64)
    weights = torch.softmax(2 * torch.randn(2, N, *SIZE, dtype=torch.float64), 1)
    of_weights = soft(RegionMap.soft(weights), codes)
    of_strongest = soft(RegionMap(weights.argmax(1), N), codes)
    assert torch.equal(hard(RegionMap.soft(weights), codes), of_strongest)
    assert not torch.allclose(of_weights, of_strongest)
    weights.requires_grad_(True)
    for network in (soft, hard):
        network.train()
    torch.manual_seed(0)
    expected = soft(RegionMap.soft(weights), codes)
    torch.manual_seed(0)
    made = hard(RegionMap.soft(weights), codes)
    torch.testing.assert_close(made, expected)
    (gradient,) = torch.autograd.grad(made.sum(), weights)
    assert float(gradient.abs().sum()) > 0


def test_soft_maps_by_area_in_every_plan() -> None:
    """Soft plan and dense plan agree; hard maps do not see the setting, bit for bit."""
    _, nearest = generators()
    _, area = generators(soft_resize="area")
    area.load_state_dict(nearest.state_dict())
    codes, hard = torch.randn(2, N, 7, dtype=torch.float64), RegionMap(labels(), N)
    assert torch.equal(nearest(hard, codes), area(hard, codes))
    weights = torch.softmax(2 * torch.randn(2, N, *SIZE, dtype=torch.float64), 1)
    made = area(RegionMap.soft(weights), codes)
    with use_plan("dense"), use_backend("reference"):
        torch.testing.assert_close(area(RegionMap.soft(weights), codes), made)
    assert not torch.allclose(nearest(RegionMap.soft(weights), codes), made)


def whole_frame(mask: Tensor, margin: int) -> Box | None:
    """What `box_of` would return if nothing were left out: the definition, without windows."""
    del margin
    return Box(0, 0, *mask.shape) if bool(mask.any()) else None


AREAS = ((0, 0, 3, 4), (6, 9, 9, 12), (13, 20, 16, 24), (4, 0, 8, 24), (0, 0, 16, 24))


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("painted", ["hard map", "soft map", "soft map, noise, area"])
def test_a_part_anew_is_its_definition(painted: str, area: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows change nothing: layer by layer where(mask, layer of the whole, what was kept), in float64."""
    options = {"noise": True, "soft_resize": "area"} if "area" in painted else {}
    structure, style = generators(**options)
    before, after = (RegionMap(labels(2)[i : i + 1], N) for i in range(2))
    top, left, bottom, right = area
    where = torch.zeros(SIZE, dtype=torch.bool)
    where[top:bottom, left:right] = True
    codes = structure.encode(before), structure.encode(after)
    styles = torch.tanh(torch.randn(2, 1, N, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    mixed = RegionMap(torch.where(where, labels(2)[1:], labels(2)[:1]), N)
    maps = (before, mixed)
    if painted != "hard map":
        blurred = [F.avg_pool2d(F.pad(m.onehot(dtype=torch.float64), (1, 1, 1, 1), mode="replicate"), 3, 1) for m in maps]
        maps = RegionMap.soft(blurred[0]), RegionMap.soft(torch.where(where, blurred[1], blurred[0]))
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad():
        made = structure.decode(codes[0], stages=kept[0]), style(maps[0], styles[0], stages=kept[1])
        assert torch.equal(made[0], kept[0][-1]) and torch.equal(made[1], kept[1][-1])
        found = structure.anew(codes[1], kept[0], where), style.anew(maps[1], styles[1], kept[1], where)
        for module in (blocks, structure_module, style_module):
            monkeypatch.setattr(module, "box_of", whole_frame)
        expected = structure.anew(codes[1], kept[0], where), style.anew(maps[1], styles[1], kept[1], where)
        plain = structure.decode(codes[1]), style(maps[1], styles[1])
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    if bool(where.all()):
        for ours, all_new in zip(found, plain, strict=True):
            torch.testing.assert_close(ours[-1], all_new, rtol=1e-9, atol=1e-10)
    else:
        for ours, old in zip(found, kept, strict=True):
            same = (ours[-1] == old[-1]).all(1)[0]
            assert bool(same.any()) and not bool(same.all())


def test_a_part_anew_of_nothing_and_of_a_global_style() -> None:
    structure, style = generators()
    regions, nowhere = RegionMap(labels(1), N), torch.zeros(SIZE, dtype=torch.bool)
    codes, kept = torch.rand(1, N, 7, dtype=torch.float64), ([], [])  # type: tuple[list[Tensor], list[Tensor]]
    with torch.no_grad():
        structure.decode(structure.encode(regions), stages=kept[0])
        style(regions, codes, stages=kept[1])
        found = (
            structure.anew(2 * structure.encode(regions), kept[0], nowhere),
            style.anew(regions, -codes, kept[1], nowhere),
        )
    for ours, old in zip(found, kept, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, old, strict=True))
    with pytest.raises(ValueError, match="codes: expected shape"):
        structure.anew(torch.rand(1, N + 1, 5, 4, 6), kept[0], nowhere)
    with pytest.raises(ValueError, match="codes: expected shape"):
        style.anew(regions, codes[:, :2], kept[1], nowhere)
    with pytest.raises(ValueError, match="expected a model with normalisation 'region_adaptive' for 'layers'"):
        generators(normalisation="global")[1].anew(regions, codes, kept[1], nowhere)
