"""Settings of harmonized regional style transfer.

Wang, Tang, Zhang, Wu, Dong, "Towards Harmonized Regional Style Transfer and Manipulation for Facial Images", Computational
Visual Media 9(2), 2023. Defaults are the paper's where it says a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import sean
from ..settings import at_least


@dataclass(frozen=True)
class GeneratorConfig(sean.Config):
    """Settings of encoder and decoder: SEAN's, and those of the multi-scale encoder (Sec. 3.1)."""

    multi_scale: bool = True  # codes from all layers of the encoder (Eq. 2); False: from its last one, as SEAN's
    softmax: bool = True  # the layers' weights go through a softmax (Eq. 1); False: the ablation "w/o softmax"
    level_rate: float = 1.0  # learning rate of the layers' weights, in multiples of the others': short trainings need more

    def __post_init__(self) -> None:
        """Check every field once."""
        if not 0 < self.level_rate < float("inf"):
            raise ValueError(f"level_rate: expected a positive number, got {self.level_rate}")


@dataclass(frozen=True)
class AttentionConfig:
    """Settings of multi-region style attention (Sec. 3.2)."""

    style_length: int = 512  # length of a code
    alpha: float = 1.0  # alpha of Eq. 5, at first
    learned: bool = True  # alpha is trained with the rest; False: it stays


@dataclass(frozen=True)
class MappingConfig:
    """Settings of the regional style mapping networks and their discriminators (Sec. 3.1, 3.4)."""

    z_dim: int = 16  # length of a latent code
    width: int = 512  # of every hidden layer, the discriminator's too
    shared: int = 4  # hidden layers that the regions of a group share
    own: int = 3  # hidden layers of every region's own, before its output
    judges: int = 3  # hidden layers of a discriminator

    def __post_init__(self) -> None:
        """Check every field once."""
        at_least(self, z_dim=1, width=1, shared=1, own=0, judges=1)


@dataclass(frozen=True)
class FlowConfig:
    """Settings of the continuous normalising flow (Sec. 3.5)."""

    width: int = 512  # of every hidden layer of f
    layers: int = 3  # hidden layers of f
    time: float = 0.5  # l_1 - l_0 of Eq. 7
    tolerance: float = 1e-5  # absolute and relative error of the adaptive solver
    steps: int = 8  # of the fixed-step solver (Runge-Kutta of order four), for sliders
    noise: float = 0.05
    """deviation of the Gaussian noise that training, and it alone, adds to standardised codes; 0: none. Without it the
    likelihood of codes that take few values, or come again exactly, has no bound"""

    def __post_init__(self) -> None:
        """Check every field once."""
        at_least(self, width=1, layers=1, steps=1)
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise: expected a number, 0 or more, got {self.noise}")
        for name in ("time", "tolerance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")


def checked_groups(groups: dict[str, tuple[str, ...]], classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the regions of every group as numbers.

    Args:
        groups: group -> its regions; no region in two of them.
        classes: names of the K regions.

    Raises:
        ValueError: an empty group, an unknown region, or one in two groups; the message names it.
    """
    taken: dict[str, str] = {}
    for group, names in groups.items():
        if not names:
            raise ValueError(f"groups: {group}: expected at least one region, got none")
        for name in names:
            if name not in classes:
                raise ValueError(f"groups: {group}: expected regions out of {', '.join(classes)}; got {name!r}")
            if name in taken:
                raise ValueError(f"groups: expected every region in one group, got {name} in {taken[name]} and in {group}")
            taken[name] = group
    return {group: tuple(classes.index(name) for name in names) for group, names in groups.items()}
