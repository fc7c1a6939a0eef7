"""Sequential transfer against the networks called one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mixsyn_fast.models.mixsyn.config import Config, StructureConfig, StyleConfig
from mixsyn_fast.models.mixsyn.model import MixSyn
from mixsyn_fast.models.mixsyn.sequential import sequential
from mixsyn_fast.models.mixsyn.structure import StructureGenerator
from mixsyn_fast.models.mixsyn.style import StyleGenerator
from mixsyn_fast.models.pictures.copy_paste import copy_paste
from mixsyn_fast.models.pictures.picture import Picture
from mixsyn_fast.models.sheets import to_uint8

from mixsyn_fast import RegionMap

CLASSES = ("wall", "window", "door")


def flat(name: str, rows: list[str], level: int) -> Picture:
    """A picture of one grey level; every letter is a label ("." none)."""
    labels = np.array([[".wnd".index(letter) - 1 for letter in row] for row in rows], np.int32)
    return Picture(np.full((*labels.shape, 3), level, np.uint8), labels, name)


A = flat("a", ["wwww", "wnnw", "wwww", "wddw"], 10)
B = flat("b", ["nnww", "nnww", "wwww", "...."], 20)
C = flat("c", ["....", "....", "dddd", "dddd"], 30)


@pytest.fixture(scope="module")
def mixsyn() -> MixSyn:
    torch.manual_seed(0)
    config = Config(
        classes=CLASSES,
        image_size=(32, 32),
        structure=StructureConfig(width=4, code_channels=8, code_size=8, decoder_width=8, decoder_smallest=4),
        style=StyleConfig(
            code_length=8, encoder_width=4, encoder_largest=8, encoder_halvings=2, width=4, largest=8, hidden=4
        ),
    )
    return MixSyn(StructureGenerator(config), StyleGenerator(config), config)


def large(picture: Picture) -> Picture:
    labels = picture.labels.repeat(8, 0).repeat(8, 1)
    image = np.random.default_rng(len(picture.name) + picture.image[0, 0, 0]).integers(0, 256, (32, 32, 3), np.uint8)
    return Picture(image, labels, picture.name)


def drawn(mixsyn: MixSyn, target: Picture, mask: RegionMap, region: int, source: Picture) -> Picture:
    """One step of a single-source editor, from the networks."""

    def encoded(picture: Picture, labels: np.ndarray, which: tuple[int, ...]) -> torch.Tensor:
        image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].float() / 127.5 - 1
        map_ = RegionMap(torch.from_numpy(labels)[None], len(CLASSES), ignore_index=-1)
        codes = torch.zeros(1, len(CLASSES), 8)
        codes[:, list(which)] = mixsyn.style.encode(image, map_, which)
        return codes

    with torch.no_grad():
        style = encoded(target, target.labels, tuple(k for k in np.unique(target.labels).tolist() if k >= 0))
        style[:, region] = encoded(source, source.labels, (region,))[:, region]
        return Picture(to_uint8(mixsyn.style(mask, style))[0], target.labels, "step")


def test_each_result_is_the_next_target_on_the_same_mask(mixsyn: MixSyn) -> None:
    a, b, c = large(A), large(B), large(C)
    steps = sequential(mixsyn, a, [("window", b), ("door", c), ("window", a)])
    assert [step.name for step in steps] == ["a+b", "a+b+c", "a+b+c+a"]
    assert all(np.array_equal(step.labels, a.labels) and step.image.shape == (32, 32, 3) for step in steps)
    mask = RegionMap(torch.from_numpy(a.labels)[None], len(CLASSES), ignore_index=-1)
    target = a
    for step, (region, source) in zip(steps, ((1, b), (2, c), (1, a)), strict=True):
        target = drawn(mixsyn, target, mask, region, source)
        assert np.array_equal(step.image, target.image)


def test_an_editor_with_memory_keeps_the_other_codes(mixsyn: MixSyn) -> None:
    a, b, c = large(A), large(B), large(C)
    kept = sequential(mixsyn, a, {"window": b, "door": c}, anew=False)
    anew = sequential(mixsyn, a, {"window": b, "door": c})
    assert np.array_equal(kept[0].image, anew[0].image) and not np.array_equal(kept[1].image, anew[1].image)
    styles = mixsyn.styles(a, CLASSES)
    styles[1:2], styles[2:3] = mixsyn.styles(b, ["window"]), mixsyn.styles(c, ["door"])
    expected = to_uint8(mixsyn.generate(mixsyn.region_map(a), styles)[None])[0]
    assert np.array_equal(kept[1].image, expected)
    back = sequential(mixsyn, a, [("window", b), ("window", a)], anew=False)[-1]
    original = to_uint8(mixsyn.generate(mixsyn.region_map(a), mixsyn.styles(a, CLASSES))[None])[0]
    assert np.array_equal(back.image, original)


def test_a_region_without_a_place_in_the_mask_shows_no_change(mixsyn: MixSyn) -> None:
    b, c = large(B), large(C)
    steps = sequential(mixsyn, b, {"wall": large(A), "door": c}, anew=False)
    assert np.array_equal(steps[0].image, steps[1].image) and 2 not in steps[1].labels


def test_encoders_run_for_regions_that_the_mask_has(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encode = mixsyn.style.encode

    def counting(image: torch.Tensor, regions: RegionMap, which: tuple[int, ...]) -> torch.Tensor:
        seen.append(which)
        return encode(image, regions, which)

    monkeypatch.setattr(mixsyn.style, "encode", counting)
    sequential(mixsyn, large(B), {"window": large(A), "wall": large(A)})
    assert seen == [(1,), (0,), (0, 1), (0, 1)]  # two new styles, the base, the first result; no door anywhere
    with pytest.raises(ValueError, match="base: expected a picture with a region, got none in bare"):
        sequential(mixsyn, large(flat("bare", ["....", "....", "....", "...."], 9)), {"window": large(A)})


def test_sources_and_base_of_other_sizes(mixsyn: MixSyn) -> None:
    (step,) = sequential(mixsyn, A, {"window": B})
    assert step.image.shape == (32, 32, 3) and step.labels.shape == (32, 32)


@pytest.mark.parametrize(
    "replacements, words",
    [({}, "at least one"), ({"roof": A}, "got 'roof'"), ({"window": C}, "c has no region 'window'; it has: door")],
)
def test_wrong_replacements_say_why(mixsyn: MixSyn, replacements: dict[str, Picture], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sequential(mixsyn, A, replacements)


def test_a_composition_can_be_pasted(mixsyn: MixSyn) -> None:
    a, b = large(A), large(B)
    made = mixsyn.compose({"window": b}, base=a)
    pasted = copy_paste(made.sources, made.table, mixsyn.size, mixsyn.classes)
    assert np.array_equal(pasted.labels == 1, b.labels == 1)
    assert np.array_equal(pasted.image[pasted.labels == 2], a.image[a.labels == 2])
