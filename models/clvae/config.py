"""Settings of the class- and layer-wise VAE.

Endo and Kanamori, "Diversifying Semantic Image Synthesis and Editing via Class- and Layer-wise VAEs", 2020. Defaults are the
paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import spade

# groups of blocks, from the coarsest: the codes of encoder level L - 1 go to the first, of level L - 2 to the second, ...
BLOCKS = (("head_0",), ("G_middle_0", "G_middle_1"), ("up_0",), ("up_1",), ("up_2",))
MOST_LEVELS = 1 + len(BLOCKS)


def code_levels(num_levels: int, layer_wise: bool) -> tuple[int, ...]:
    """Return the encoder's levels, from 1 (the finest), that give codes of classes.

    Args:
        num_levels: L, the global code's level included.
        layer_wise: False: the middle one of them alone (Sec. 4.3.1).
    """
    levels = tuple(range(1, num_levels))
    return levels if layer_wise or not levels else (levels[len(levels) // 2],)


def _check_levels(num_levels: int) -> None:
    if not 1 <= num_levels <= MOST_LEVELS:
        raise ValueError(f"num_levels: expected 1 to {MOST_LEVELS}, got {num_levels}")


@dataclass(frozen=True)
class GeneratorConfig(spade.Config):
    """Settings of the generator: SPADE's, whose maps hold vectors of classes (Sec. 3.2.1)."""

    use_vae: bool = True  # z_1: the first layer is a Linear of the global code (Eq. 10)
    code_length: int = 0  # N, length of a code of a class; 0: as many as there are classes (Sec. 4.2)
    num_levels: int = MOST_LEVELS  # L: levels with a code, the global one included; 1: a VAE with a global code alone
    class_wise: bool = True  # False: one code for all classes at every level (ablation, Table 5)
    layer_wise: bool = True  # False: codes at the middle level alone (ablation, Table 5)

    def __post_init__(self) -> None:
        """Check every field once."""
        super().__post_init__()
        _check_levels(self.num_levels)
        if self.code_length < 0:
            raise ValueError(
                f"code_length: expected a positive number, or 0 for the number of classes, got {self.code_length}"
            )
        if not self.use_vae:
            raise ValueError("use_vae: expected True, for the first code is the global one (Eq. 10); got False")
        if self.edges:
            raise ValueError("edges: expected False, for a map of vectors has no channel of instance edges; got True")

    @property
    def vector_length(self) -> int:
        """N."""
        return self.code_length or self.label_nc

    @property
    def levels(self) -> tuple[int, ...]:
        """Encoder levels, from 1 (the finest), whose codes the blocks read."""
        return code_levels(self.num_levels, self.layer_wise)

    @property
    def level_of_block(self) -> dict[str, int]:
        """Block -> encoder level of its codes; the blocks that are missing read the one-hot map."""
        found = {name: self.num_levels - 1 - i for i, group in enumerate(BLOCKS) for name in group}
        return {name: level for name, level in found.items() if level in self.levels}


@dataclass(frozen=True)
class EncoderConfig(spade.EncoderConfig):
    """Settings of the encoder (Sec. 3.2.2); those that the generator shares follow from its settings."""

    code_length: int = 151  # N
    num_levels: int = MOST_LEVELS  # L
    class_wise: bool = True  # False: the maximum over the whole image
    layer_wise: bool = True  # False: codes of the middle level alone

    def __post_init__(self) -> None:
        """Check every field once."""
        super().__post_init__()
        _check_levels(self.num_levels)
        if self.code_length < 1:
            raise ValueError(f"code_length: expected a positive number, got {self.code_length}")

    @property
    def depth(self) -> int:
        """Number of strided convolutions: one a level; at 128 pixels the fifth serves the global code too."""
        return min(self.num_levels, 5 if self.image_size == 128 else 6)

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels, from 1 (the finest), that give codes of classes."""
        return code_levels(self.num_levels, self.layer_wise)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Side of each of these levels in pixels."""
        return tuple(self.image_size >> level for level in self.levels)
