"""Compositions: which source picture every region of a new picture comes from (MixSyn, section 3.1).

With the codes e of S source pictures and N regions, a composition takes one code for every region:

    known       M'_a = {r_0^a, r_1^a, ..., r_N^a}     all regions of one picture, to be reconstructed
    random      M''  = {r_0^a, r_1^b, ..., r_N^c}     each region from any picture of the batch, coupled regions from one
    user        a table region -> picture

A region that its source does not have is absent: its codes are zero ("If a region does not exist in a composition, we set
e = [0]").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.classes import left_right_pairs

ABSENT = -1
_COUPLED = (("window", "cornice", "sill"),)  # section 5.3: "for buildings, we coupled windows, cornices, and sills"

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Composition:
    """B compositions of the regions of S source pictures."""

    source: Tensor
    """(B, N) int64: index of the source picture of every region, -1 for an absent region."""

    @property
    def present(self) -> Tensor:
        """(B, N) bool: regions that the compositions have."""
        return self.source >= 0

    def gather(self, codes: Tensor) -> Tensor:
        """Return the codes of the compositions' regions, zero where a region is absent.

        Args:
            codes: (S, N, ...), a code per source picture and region.

        Returns:
            (B, N, ...), differentiable.
        """
        region = torch.arange(self.source.shape[1], device=self.source.device)
        taken = codes[self.source.clamp(min=0), region]
        return torch.where(self.present.view(*self.source.shape, *(1,) * (codes.dim() - 2)), taken, 0)


def coupled_groups(classes: Sequence[str], coupled: str = "auto") -> Groups:
    """Return the groups of regions that a random composition takes from one source; together they are 0 to N - 1.

    Args:
        classes: names of the N regions.
        coupled: "auto": left and right of the same thing (by name), and windows, cornices and sills; "none": every region
            for itself; or groups by name, "window+cornice+sill,l_eye+r_eye".

    Raises:
        ValueError: a name that is no region, or that stands in two groups.
    """
    index = {name: i for i, name in enumerate(classes)}
    if coupled == "auto":
        groups: list[tuple[int, ...]] = [*left_right_pairs(classes)]
        groups += [tuple(index[name] for name in names if name in index) for names in _COUPLED]
    else:
        named = [[part.strip() for part in group.split("+")] for group in coupled.split(",") if coupled not in ("none", "")]
        for name in (name for names in named for name in names):
            if name not in index:
                raise ValueError(f"coupled: expected names among {', '.join(classes)}, got {name!r}")
        groups = [tuple(index[name] for name in names) for names in named]
    taken = [i for group in groups for i in group]
    for i in taken:
        if taken.count(i) > 1:
            raise ValueError(f"coupled: expected every region once, got {classes[i]!r} more than once")
    groups += [(i,) for i in range(len(classes)) if i not in taken]
    return tuple(sorted(group for group in groups if group))


def known_compositions(present: Tensor) -> Composition:
    """Return the compositions of all regions of one picture, for every picture.

    Args:
        present: (S, N) bool, the regions that each picture has.
    """
    picture = torch.arange(len(present), device=present.device)[:, None]
    return Composition(torch.where(present.bool(), picture, ABSENT))


def random_compositions(present: Tensor, groups: Groups, generator: torch.Generator | None = None) -> Composition:
    """Return as many random compositions as there are pictures: every group of regions comes from one of them.

    Every group draws its source uniformly and for itself, the own picture included; what the source lacks is absent.

    Args:
        present: (S, N) bool, the regions that each picture has.
        groups: see :func:`coupled_groups`.
        generator: of the random numbers, on the CPU; None for torch's own.
    """
    count, regions = present.shape
    drawn = torch.randint(max(count, 1), (count, len(groups)), generator=generator)
    group_of = torch.zeros(regions, dtype=torch.int64)
    for g, group in enumerate(groups):
        group_of[list(group)] = g
    source = drawn[:, group_of].to(present.device)
    return Composition(torch.where(present.bool().gather(0, source), source, ABSENT))


def user_composition(
    table: Mapping[str, int],
    classes: Sequence[str],
    present: Tensor,
    base: int | None = None,
    names: Sequence[str] | None = None,
) -> Composition:
    """Return the composition (B = 1) that a table describes; regions are taken exactly as named, coupled or not.

    Args:
        table: name of a region -> index of its source picture.
        classes: names of the N regions.
        present: (S, N) bool, the regions that each picture has.
        base: picture of all regions that the table does not name; None: they are absent.
        names: of the S pictures, for messages; None: "picture 0" and so on.

    Raises:
        ValueError: no such region, no such picture, a picture without the region that is asked of it, or no region at all.
    """

    def shown(picture: int) -> str:
        return f"picture {picture}" if names is None else names[picture]

    count = len(present)
    if base is not None and not 0 <= base < count:
        raise ValueError(f"base: expected a picture in [0, {count}), got {base}")
    source = torch.full((1, len(classes)), ABSENT, dtype=torch.int64)
    here = present.bool().cpu()
    if base is not None:
        source[0, here[base]] = base
    for name, picture in table.items():
        if name not in classes:
            raise ValueError(f"regions: expected names among {', '.join(classes)}, got {name!r}")
        if not 0 <= picture < count:
            raise ValueError(f"regions: {name}: expected a picture in [0, {count}), got {picture}")
        region = list(classes).index(name)
        if not here[picture, region]:
            has = ", ".join(c for c, is_here in zip(classes, here[picture].tolist(), strict=True) if is_here)
            raise ValueError(f"regions: {name}: {shown(picture)} has no such region; it has {has or 'none'}")
        source[0, region] = picture
    if not (source >= 0).any():
        if base is not None:
            raise ValueError(f"base: {shown(base)} has no region")
        raise ValueError("regions: expected at least one region or a base, got none")
    return Composition(source.to(present.device))
