"""What the adversarial losses share: logits of one discriminator, or a list over the scales of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Logits = Tensor | Sequence[Tensor]
"""Logits of any shape, or one such tensor for each scale."""


def over_scales(term: Callable[..., Tensor], *logits: Logits) -> Tensor:
    """Return the mean over scales of `term`, a scalar of the logits of one scale.

    Every scale weighs the same, whatever its number of patches, as in the published SPADE. Half precision becomes float32.

    Raises:
        ValueError: no scale, or not as many scales in each of the arguments.
    """
    lists = [[each] if isinstance(each, Tensor) else list(each) for each in logits]
    counts = [len(each) for each in lists]
    if len(set(counts)) != 1 or counts[0] == 0:
        raise ValueError(f"logits: expected equally many scales, at least one, got {' and '.join(map(str, counts))}")
    values = [term(*(t.double() if t.dtype.itemsize == 8 else t.float() for t in at)) for at in zip(*lists, strict=True)]
    return sum(values[1:], values[0]) / len(values)
