"""What MixSyn is compared with: copy and paste, and one segment after another on a constant mask (paper, Fig. 5 to 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..pictures.picture import Picture
from ..sheets import to_uint8
from .model import MixSyn


def sequential(
    mixsyn: MixSyn,
    base: Picture,
    replacements: Mapping[str, Picture] | Sequence[tuple[str, Picture]],
    *,
    anew: bool = True,
) -> list[Picture]:
    """Replace one segment after another, style by style, on the base's mask (paper, section 5.2 and Fig. 7).

    So do editors that know one source and one target: the mask never changes, and each result is the next step's target. A
    region that the base does not have has no place in the mask, so that step shows no change. The generator is this model's
    own, on the hard mask; no composition is made.

    Args:
        mixsyn: the model.
        base: the first target, whose mask (its label map at the model's size) all steps keep.
        replacements: region -> picture whose style it takes, in this order; pairs, where a region comes up twice.
        anew: encode each result anew for the next step, as such editors do; False: keep the codes of all regions but the
            replaced one, as an editor with memory would.

    Returns:
        One picture per step at the model's size: image (H, W, 3) uint8, labels of the base, name "base+source+source ...".

    Raises:
        ValueError: no replacement, an unknown region, or one that its source lacks (the message lists those that it has); a
            base without any region.
    """
    steps = list(replacements.items() if isinstance(replacements, Mapping) else replacements)
    if not steps:
        raise ValueError("replacements: expected at least one region, got none")
    new = []
    for name, picture in steps:
        style = mixsyn.styles(picture, [name])[0]
        has = mixsyn.regions_of(picture)
        if name not in has:
            raise ValueError(f"replacements: {picture.name} has no region {name!r}; it has: {', '.join(has) or 'none'}")
        new.append(style)
    target = mixsyn.fitted(base)
    mask = mixsyn.region_map(target)
    there = mixsyn.regions_of(target)
    if not there:
        raise ValueError(f"base: expected a picture with a region, got none in {base.name}")
    at = [mixsyn.classes.index(name) for name in there]

    def encoded(picture: Picture) -> Tensor:
        own = mixsyn.styles(picture, there)
        styles = own.new_zeros(len(mixsyn.classes), own.shape[1])
        styles[at] = own
        return styles

    styles = encoded(target)
    results: list[Picture] = []
    for (name, picture), style in zip(steps, new, strict=True):
        if results and anew:
            styles = encoded(results[-1])
        if name in there:
            styles[mixsyn.classes.index(name)] = style
        image = to_uint8(mixsyn.generate(mask, styles)[None])[0]
        before = results[-1].name if results else base.name
        results.append(Picture(image, target.labels, f"{before}+{picture.name}"))
    return results
