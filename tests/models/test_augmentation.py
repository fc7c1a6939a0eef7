"""Augmentation of a discriminator's images: every transform against its own few lines, gradients, how p moves."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.augmentation import (
    AdaptiveProbability,
    Augmentation,
    AugmentConfig,
    Colors,
    Moves,
    color_matrix,
    deal,
    move_pixels,
    recolor,
    resample,
    sources,
)
from torch import Tensor

SIDE = 8
IMAGES = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
WIDE = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(1)) * 2 - 1
HALF_LOG = -40.0  # 2 ** -40: nothing is left


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(images: Tensor, **values: float) -> Tensor:
    """The matrix of some moves; the others are at rest."""
    batch = images.new_zeros(len(images))
    return sources(Moves(**{name: batch + values.get(name, 0.0) for name in Moves._fields}))


def colored(images: Tensor, **values: float) -> Tensor:
    batch = images.new_zeros(len(images))
    return recolor(images, color_matrix(Colors(**{name: batch + values.get(name, 0.0) for name in Colors._fields})))


def smooth(height: int, width: int, matrix: Tensor) -> Tensor:
    """A plane wave of low frequency at the places that a matrix gives for the pixels: (1, 3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    place = matrix.double() @ torch.stack([x, y, torch.ones_like(x)]).flatten(1).double()
    wave = torch.stack([(0.11 * place[0] + 0.05 * place[1] + phase).sin() for phase in (0.0, 1.0, 2.0)])
    return wave.view(1, 3, height, width)


def test_p_zero_gives_the_same_bits() -> None:
    assert Augmentation()(IMAGES, 0) is IMAGES
    assert Augmentation()(IMAGES, torch.tensor(0.0)) is IMAGES


def test_groups_that_are_off_deal_nothing() -> None:
    off = Augmentation(AugmentConfig(blit=False, geom=False, color=False))
    assert torch.equal(off(IMAGES, 1.0, seeded()), IMAGES)
    for group in ("blit", "geom", "color"):
        alone = {name: name == group for name in ("blit", "geom", "color")}
        dealt = deal(IMAGES, 1.0, AugmentConfig(**alone, quarter_turns=True), seeded())
        assert [bool(getattr(dealt, name).any()) for name in alone] == list(alone.values())
        for values, on in (
            (dealt.moves[:4], group == "blit"),
            (dealt.moves[4:], group == "geom"),
            (dealt.colors, group == "color"),
        ):
            assert any(bool(value.any()) for value in values) == on


def test_quarter_turns_are_off_by_default() -> None:
    many = torch.zeros(100, 3, 2, 2)
    assert not deal(many, 1.0, AugmentConfig(), seeded()).moves.turns.any()
    assert set(deal(many, 1.0, AugmentConfig(quarter_turns=True), seeded()).moves.turns.tolist()) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("images", [IMAGES, WIDE])
def test_flip_and_whole_pixels(images: Tensor) -> None:
    assert torch.equal(move_pixels(images, moved(images, flip=1)), images.flip(3))
    right, down = 2, -3
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    height, width = images.shape[2:]
    expected = padded[:, :, 3 - down : 3 - down + height, 3 - right : 3 - right + width]
    assert torch.equal(move_pixels(images, moved(images, shift_x=right, shift_y=down)), expected)
    # mirrored first, then moved
    both = F.pad(images.flip(3), (3, 3, 3, 3), mode="reflect")[:, :, 3 : 3 + height, 1 : 1 + width]
    assert torch.equal(move_pixels(images, moved(images, flip=1, shift_x=2)), both)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns(turns: int) -> None:
    expected = torch.rot90(IMAGES, -turns, (2, 3))  # torch turns the other way
    assert torch.equal(move_pixels(IMAGES, moved(IMAGES, turns=turns)), expected)
    angle = turns * math.pi / 2
    still = resample(IMAGES, moved(IMAGES))
    for name in ("before", "after"):
        turned = resample(IMAGES, moved(IMAGES, **{name: angle}))
        assert torch.allclose(turned, torch.rot90(still, -turns, (2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "inverse"),
    [
        ({"offset_x": 1.25, "offset_y": -0.5}, lambda x, y: (x - 1.25, y + 0.5)),
        ({"scale": 0.5}, lambda x, y: (x / 2**0.5, y / 2**0.5)),
        ({"stretch": 0.5}, lambda x, y: (x / 2**0.5, y * 2**0.5)),
        ({"before": 0.3}, lambda x, y: (math.cos(0.3) * x + math.sin(0.3) * y, math.cos(0.3) * y - math.sin(0.3) * x)),
        ({"flip": 1, "offset_x": 2.0}, lambda x, y: (2.0 - x, y)),
        ({"flip": 1, "shift_x": 2.0, "scale": 1.0}, lambda x, y: (2 - x / 2, y / 2)),
        ({"scale": 1.0, "offset_x": 2.0}, lambda x, y: ((x - 2) / 2, y / 2)),
        ({"before": math.pi / 2, "stretch": 1.0}, lambda x, y: (2 * y, -x / 2)),
        ({"stretch": 1.0, "after": math.pi / 2}, lambda x, y: (y / 2, -2 * x)),
    ],
)
def test_a_picture_is_where_the_moves_put_it(values: dict[str, float], inverse) -> None:
    """A function of the place is asked where each pixel of the result comes from, by hand; inside, away from the border."""
    size = 32
    columns = [torch.tensor(inverse(*place), dtype=torch.float64) for place in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))]
    matrix = torch.stack([columns[1] - columns[0], columns[2] - columns[0], columns[0]], 1)
    images = smooth(size, size, torch.eye(2, 3))
    source = moved(images, **values)
    assert torch.allclose(source[0], matrix, atol=1e-12)
    inside = slice(13, 19)
    error = (resample(images, source) - smooth(size, size, matrix))[:, :, inside, inside].abs().max()
    assert error < 4e-3  # bilinear: second derivative / 8


def test_resampling_passes_what_can_be_shown_and_does_not_alias() -> None:
    """Half the highest frequency passes at rest; stripes of the highest one, made half as large, become grey."""
    x = torch.arange(32)
    inside = slice(10, 22)
    wave = (math.pi / 2 * x + math.pi / 4).cos().expand(1, 3, 32, 32)
    still = resample(wave, moved(wave))[:, :, :, inside]
    assert 0.8 < float(still.square().mean() / wave[:, :, :, inside].square().mean()) ** 0.5 < 1.0
    stripes = (1.0 - 2 * (x % 2)).expand(1, 3, 32, 32)
    source = moved(stripes, scale=-1, offset_x=0.25)  # every second pixel exactly: one sample a pixel would see 1 everywhere
    assert resample(stripes, source)[:, :, :, inside].abs().max() < 1e-5


def test_images_without_a_move_that_resamples_keep_their_pixels() -> None:
    images = torch.rand(64, 3, SIDE, SIDE, generator=seeded())
    config = AugmentConfig(color=False)
    dealt = deal(images, 0.2, config, seeded(3))
    result = Augmentation(config)(images, 0.2, seeded(3))
    assert 0 < int(dealt.geom.sum()) < 64 and 0 < int((dealt.blit & ~dealt.geom).sum())
    for image, made, blit, geom in zip(images, result, dealt.blit, dealt.geom, strict=True):
        if not geom:
            assert set(made.flatten().tolist()) <= set(image.flatten().tolist())
        if not geom and not blit:
            assert torch.equal(made, image)
    # with both, one sampling: of the image, not of the moved image
    both = (dealt.blit & dealt.geom).nonzero()[0]
    once = resample(images[both], sources(dealt.moves)[both])
    assert torch.allclose(result[both], once, atol=1e-6)


def test_colors() -> None:
    assert torch.allclose(colored(IMAGES), IMAGES, atol=1e-6)
    assert torch.allclose(colored(IMAGES, brightness=0.3), IMAGES + 0.3, atol=1e-6)
    assert torch.allclose(colored(IMAGES, contrast=1.0), IMAGES * 2, atol=1e-6)
    mean = IMAGES.mean(1, keepdim=True)
    assert torch.allclose(colored(IMAGES, luma=1), IMAGES - 2 * mean, atol=1e-6)
    assert torch.allclose(colored(IMAGES, hue=2 * math.pi / 3), IMAGES.roll(1, 1), atol=1e-6)
    assert torch.allclose(colored(IMAGES, saturation=HALF_LOG), mean.expand_as(IMAGES), atol=1e-6)
    assert torch.allclose(colored(IMAGES, saturation=1.0), mean + 2 * (IMAGES - mean), atol=1e-6)


def test_colors_in_their_order() -> None:
    """One matrix is the five in a row, each written as the paper has it: 4 x 4, on homogeneous colours."""
    v = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(3)
    outer, eye = torch.outer(v, v), torch.eye(4, dtype=torch.float64)
    bright = eye.clone()
    bright[:3, 3] = 0.2
    contrast = torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0], dtype=torch.float64))
    a = 1 / math.sqrt(3)
    cross = torch.tensor([[0, -a, a, 0], [a, 0, -a, 0], [-a, a, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    hue = torch.linalg.matrix_exp(0.7 * cross)
    saturation = outer + (eye - outer) * 0.5
    saturation[3, 3] = 1.0
    expected = saturation @ hue @ (eye - 2 * outer) @ contrast @ bright
    values = {"brightness": 0.2, "contrast": math.log2(1.5), "luma": 1.0, "hue": 0.7, "saturation": -1.0}
    found = color_matrix(Colors(**{name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}))
    assert torch.allclose(found[0], expected[:3], atol=1e-12)


def test_share_of_images_and_spread() -> None:
    """Appendix B: each transform with p, both rotations together with p; half of the mirrored are mirrored."""
    count, p = 20_000, 0.3
    dealt = deal(torch.zeros(count, 3, 2, 4, dtype=torch.float64), p, AugmentConfig(quarter_turns=True), seeded())
    turning = 1 - math.sqrt(1 - p)

    def close(value: float, expected: float, spread: float = 0.5) -> bool:
        return abs(value - expected) < 4 * spread / math.sqrt(count)

    def share(mask: Tensor) -> float:
        return mask.double().mean().item()

    moves, colors = dealt.moves, dealt.colors
    assert close(share(moves.flip != 0), p / 2) and close(share(moves.turns != 0), p * 3 / 4)
    for name in ("scale", "stretch", "offset_x", "offset_y"):
        assert close(share(getattr(moves, name) != 0), p), name
    for name in ("before", "after"):
        assert close(share(getattr(moves, name) != 0), turning), name
    assert close(share((moves.before != 0) | (moves.after != 0)), p)
    assert torch.equal(moves.offset_x != 0, moves.offset_y != 0)
    for name in ("brightness", "contrast", "hue", "saturation"):
        assert close(share(getattr(colors, name) != 0), p), name
    assert close(share(colors.luma != 0), p / 2)
    assert close(share(dealt.blit), 1 - (1 - p) ** 3)
    assert close(share(dealt.geom), 1 - (1 - p) ** 4) and close(share(dealt.color), 1 - (1 - p) ** 5)
    everything = deal(torch.zeros(count, 3, 8, 16, dtype=torch.float64), 1.0, AugmentConfig(), seeded())
    moves, colors = everything.moves, everything.colors
    deviations = {"scale": 0.2, "stretch": 0.2, "before": math.pi / math.sqrt(3), "offset_x": 2.0, "offset_y": 1.0}
    for name, value in deviations.items():
        assert getattr(moves, name).std().item() == pytest.approx(value, rel=0.03), name
    for name, value in {"brightness": 0.2, "contrast": 0.5, "saturation": 1.0, "hue": math.pi / math.sqrt(3)}.items():
        assert getattr(colors, name).std().item() == pytest.approx(value, rel=0.03), name
    assert set(moves.shift_x.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0} and set(moves.shift_y.tolist()) == {-1.0, 0.0, 1.0}


def test_a_seed_repeats_and_the_images_do_not_matter() -> None:
    augment = Augmentation()
    first = augment(IMAGES, 0.8, seeded(5))
    assert torch.equal(augment(IMAGES, torch.tensor(0.8), seeded(5)), first)
    assert not torch.equal(augment(IMAGES, 0.8, seeded(6)), first)
    torch.manual_seed(5)
    assert torch.equal(augment(IMAGES, 0.8), first)
    # linear in the images, but for the brightness
    zero = augment(torch.zeros_like(IMAGES), 0.8, seeded(5))
    assert torch.allclose(augment(2 * IMAGES, 0.8, seeded(5)) - zero, 2 * (first - zero), atol=1e-5)


def test_dtypes_and_autocast() -> None:
    augment = Augmentation()
    exact = augment(IMAGES, 0.9, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(IMAGES, 0.9, seeded()), exact)
    half = augment(IMAGES.bfloat16(), 0.9, seeded())
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), exact, atol=0.1)
    assert augment(IMAGES[:0], 0.9, seeded()).shape == (0, 3, SIDE, SIDE)
    channels_last = IMAGES.to(memory_format=torch.channels_last)
    assert torch.allclose(augment(channels_last, 0.9, seeded()), exact, atol=1e-6)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_gradients(p: float) -> None:
    images = torch.rand(3, 3, 3, 4, dtype=torch.float64, generator=seeded(), requires_grad=True)
    augment = Augmentation()

    def function(x: Tensor) -> Tensor:
        return augment(x, p, seeded(2)).tanh()  # linear alone has no second derivative to check

    assert torch.autograd.gradcheck(function, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (images,), fast_mode=True)


def test_p_follows_the_signs() -> None:
    p = AdaptiveProbability(AugmentConfig(target=0.5, speed=100, interval=2))
    real = torch.tensor([[1.0], [2.0], [0.5], [3.0], [1.0]])
    for expected in (0.0, 0.1, 0.1, 0.2):
        p.observe(real)
        assert p.update() == p.p == pytest.approx(expected, abs=1e-12)
    for expected in (0.2, 0.1, 0.1, 0.0, 0.0, 0.0):
        p.observe(-real)
        assert p.update() == pytest.approx(expected, abs=1e-12)
    top = AdaptiveProbability(AugmentConfig(speed=3, interval=1), p=0.5)
    top.observe(real)
    assert top.update() == 1.0
    assert top.update() == 1.0  # nothing was observed
    # the mean sign is compared, 0.6 here, not the logits, and of every patch
    for target, expected in ((0.7, 0.45), (0.5, 0.55), (0.6, 0.5)):
        level = AdaptiveProbability(AugmentConfig(target=target, speed=100, interval=1), p=0.5)
        level.observe(torch.tensor([1.0, 9, 1, 1, -100]).view(5, 1, 1, 1).expand(5, 1, 2, 2))
        assert level.update() == pytest.approx(expected)


def test_p_resumes_bit_for_bit() -> None:
    config = AugmentConfig(target=0.2, speed=1000, interval=3)
    logits = [torch.randn(7, 1, generator=seeded(step)) + 0.5 for step in range(12)]
    whole, first = AdaptiveProbability(config), AdaptiveProbability(config)
    values = []
    for each in logits:
        whole.observe(each)
        values.append(whole.update())
    for each in logits[:4]:
        first.observe(each)
        first.update()
    second = AdaptiveProbability(config)
    second.load_state(json.loads(json.dumps(first.state())))
    for each, expected in zip(logits[4:], values[4:], strict=True):
        second.observe(each)
        assert second.update() == expected
    assert len(set(values)) > 2


def test_p_adds_up_over_processes() -> None:
    """Every process has the state of one that sees all images, so what the first one saves is everybody's."""
    config = AugmentConfig(target=0.2, speed=1000, interval=3)
    alone, *parts = (AdaptiveProbability(config) for _ in range(3))
    for step in range(6):
        logits = torch.randn(7, 1, generator=seeded(step)) + 0.5
        alone.observe(logits)
        shares = (logits[:3], logits[3:])
        sums: list[Tensor] = []
        for share in shares:
            AdaptiveProbability(config).observe(share, lambda own, found=sums: found.append(own) or own)
        for part, share in zip(parts, shares, strict=True):
            part.observe(share, lambda own, found=sums: found[0] + found[1])
        assert [part.state() for part in parts] == [alone.state()] * 2
        expected = alone.update()
        assert [part.update() for part in parts] == [expected, expected]
    assert alone.p > 0


@pytest.mark.parametrize(
    ("images", "p", "config", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 0.5, {}, r"images: expected a floating-point tensor, got torch.uint8"),
        (torch.zeros(3, 4, 4), 0.5, {}, r"images: expected \(B, 3, H, W\).*got \(3, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4), 0.5, {}, r"images: expected \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 1, 4), 0.5, {}, r"at least 2, got \(2, 3, 1, 4\)"),
        (IMAGES, 1.5, {}, r"p: expected 0 to 1, got 1.5"),
        (IMAGES, math.nan, {}, r"p: expected 0 to 1, got nan"),
        (IMAGES, torch.zeros(2), {}, r"p: expected a number or a tensor of no dimension, got shape \(2,\)"),
        (WIDE, 0.5, {"quarter_turns": True}, r"images: expected square ones for quarter turns, got \(6, 9\)"),
    ],
)
def test_bad_arguments(images: Tensor, p: float, config: dict[str, bool], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Augmentation(AugmentConfig(**config))(images, p)


def test_bad_numbers() -> None:
    for values, message in (({"target": 1.0}, "target"), ({"speed": 0}, "speed"), ({"interval": 0}, "interval")):
        with pytest.raises(ValueError, match=f"{message}: expected"):
            AugmentConfig(**values)
    with pytest.raises(ValueError, match="p: expected 0 to 1, got -0.1"):
        AdaptiveProbability(p=-0.1)
    with pytest.raises(ValueError, match="real_logits: expected the batch first"):
        AdaptiveProbability().observe(torch.tensor(1.0))
