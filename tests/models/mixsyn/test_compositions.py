"""Rules of compositions: known, random, user; coupling; absent regions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.data import FACADE_CLASSES, FACE_CLASSES
from mixsyn_fast.models.mixsyn.compositions import (
    Composition,
    coupled_groups,
    known_compositions,
    random_compositions,
    user_composition,
)

CLASSES = ("wall", "l_eye", "window", "r_eye", "cornice", "sill", "door")


@st.composite
def presence(draw: st.DrawFn) -> torch.Tensor:
    """Draw which of N regions each of S pictures has."""
    pictures, regions = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    bits = draw(st.lists(st.booleans(), min_size=pictures * regions, max_size=pictures * regions))
    return torch.tensor(bits).view(pictures, regions)


def test_groups_partition_the_regions() -> None:
    assert coupled_groups(CLASSES) == ((0,), (1, 3), (2, 4, 5), (6,))
    assert coupled_groups(CLASSES, "none") == tuple((i,) for i in range(7))
    assert coupled_groups(CLASSES, "door+wall, sill") == ((1,), (2,), (3,), (4,), (5,), (6, 0))
    window, cornice, sill = (FACADE_CLASSES.index(name) for name in ("window", "cornice", "sill"))
    assert (window, cornice, sill) in coupled_groups(FACADE_CLASSES)
    faces = coupled_groups(FACE_CLASSES)
    for left, right in (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")):
        assert (FACE_CLASSES.index(left), FACE_CLASSES.index(right)) in faces
    assert sorted(i for group in faces for i in group) == list(range(19))


@pytest.mark.parametrize("text", ["roof", "door+roof", "door+wall,wall+sill", "door+door", "door++wall"])
def test_groups_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="coupled: expected"):
        coupled_groups(CLASSES, text)


@given(presence())
def test_known_compositions_are_the_pictures(present: torch.Tensor) -> None:
    known = known_compositions(present)
    assert torch.equal(known.present, present)
    for picture, row in enumerate(known.source):
        assert set(row.tolist()) <= {picture, -1}


@given(presence(), st.integers(0, 1000), st.data())
def test_random_compositions(present: torch.Tensor, seed: int, data: st.DataObject) -> None:
    """Every region from a picture that has it, coupled ones from the same; what the source lacks is absent."""
    pictures, regions = present.shape
    cuts = sorted(data.draw(st.sets(st.integers(1, regions), max_size=4)) | {regions})
    groups = tuple(tuple(range(start, end)) for start, end in zip([0, *cuts], cuts, strict=False) if end > start)
    made = random_compositions(present, groups, torch.Generator().manual_seed(seed))
    assert made.source.shape == present.shape
    for row in made.source:
        for group in groups:
            drawn = {int(row[i]) for i in group} - {-1}
            assert len(drawn) <= 1
            assert drawn <= set(range(pictures))
            for source in drawn:  # all regions of the group that this source has, and no other
                assert [int(row[i]) >= 0 for i in group] == present[source, list(group)].tolist()
    again = random_compositions(present, groups, torch.Generator().manual_seed(seed))
    assert torch.equal(made.source, again.source)


def test_random_compositions_mix_all_pictures() -> None:
    present = torch.ones(4, 7, dtype=torch.bool)
    made = random_compositions(present, coupled_groups(CLASSES, "none"), torch.Generator().manual_seed(3)).source
    many = torch.cat([random_compositions(present, coupled_groups(CLASSES, "none")).source for _ in range(50)])
    for region in range(7):
        counts = torch.bincount(many[:, region], minlength=4)
        assert counts.min() > 25, "every picture is drawn about as often (50 of 200)"
    assert (made != made[:, :1]).any(), "regions come from different pictures"
    coupled = torch.cat([random_compositions(present, coupled_groups(CLASSES)).source for _ in range(20)])
    assert (coupled[:, 2] == coupled[:, 4]).all() and (coupled[:, 1] == coupled[:, 3]).all()
    assert (coupled[:, 1] != coupled[:, 2]).any()


@given(presence(), st.integers(0, 100))
def test_gather_takes_each_code_from_its_source(present: torch.Tensor, seed: int) -> None:
    made = random_compositions(present, coupled_groups([str(i) for i in range(present.shape[1])]), None)
    codes = torch.randn(*present.shape, 2, 3, generator=torch.Generator().manual_seed(seed))
    taken = made.gather(codes)
    for b, row in enumerate(made.source.tolist()):
        for i, source in enumerate(row):
            assert torch.equal(taken[b, i], codes[source, i] if source >= 0 else torch.zeros(2, 3))


def test_gather_has_a_gradient_and_keeps_nan_out_of_absent_regions() -> None:
    codes = torch.ones(2, 2, 3, requires_grad=True)
    Composition(torch.tensor([[1, -1], [1, 0]])).gather(codes).sum().backward()
    assert codes.grad is not None and codes.grad[..., 0].tolist() == [[0, 1], [2, 0]]
    poisoned = torch.full((2, 2, 3), float("nan"))
    assert not Composition(torch.full((1, 2), -1)).gather(poisoned).any()


def test_user_compositions() -> None:
    present = torch.tensor([[1, 1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    made = user_composition({"window": 1, "door": 0}, CLASSES, present, base=1)
    assert made.source.tolist() == [[1, 1, 1, 1, 1, 1, 0]]
    assert user_composition({"sill": 1}, CLASSES, present).source.tolist() == [[-1, -1, -1, -1, -1, 1, -1]]
    assert user_composition({"window": 1}, CLASSES, present, base=0).source.tolist() == [[0, 0, 1, 0, -1, -1, 0]], (
        "exactly what was asked for: cornice and sill do not come along"
    )


@pytest.mark.parametrize(
    ("table", "base", "message"),
    [
        ({"roof": 0}, None, "expected names among wall, l_eye, .*, got 'roof'"),
        ({"door": 2}, None, r"door: expected a picture in \[0, 2\), got 2"),
        ({"door": 0}, 5, r"base: expected a picture in \[0, 2\), got 5"),
        ({"sill": 0}, None, "sill: picture 0 has no such region; it has wall, door"),
        ({}, None, "at least one region or a base"),
    ],
)
def test_user_compositions_that_cannot_be(table: dict[str, int], base: int | None, message: str) -> None:
    present = torch.tensor([[1, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        user_composition(table, CLASSES, present, base)
