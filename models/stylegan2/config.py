"""Settings of StyleGAN2's networks."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 4  # side of the constant input


@dataclass(frozen=True)
class Config:
    """Settings of the generator and of the discriminator that judges it (defaults: the published ones for faces)."""

    size: int = 1024  # side of the image: a power of two from 8 to 1024
    z_dim: int = 512  # length of the code that is drawn
    w_dim: int = 512  # length of the code that the affine layers read
    mapping_layers: int = 8  # fully-connected layers from z to w
    channel_base: int = 32768  # channels at a side are channel_base / side: 32768 (multiplier 2 of the port), 16384 (1)
    channel_max: int = 512  # but at most so many
    lr_mul: float = 0.01  # factor of the mapping network's learning rate

    def __post_init__(self) -> None:
        """Check every field once."""
        if not 8 <= self.size <= 1024 or self.size.bit_count() != 1:
            raise ValueError(f"size: expected a power of two from 8 to 1024, got {self.size}")
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.lr_mul <= 1:
            raise ValueError(f"lr_mul: expected a number in (0, 1], got {self.lr_mul}")

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the feature maps, 4 to size."""
        return tuple(SMALLEST << i for i in range((self.size // SMALLEST).bit_length()))

    def channels(self, side: int) -> int:
        """Return the channels of the feature maps of a side; ValueError where channel_base leaves none."""
        if self.channel_base < side:  # the size may be filled in after the settings were read
            raise ValueError(f"channel_base: expected at least the side of the image, {side}, got {self.channel_base}")
        return min(self.channel_max, self.channel_base // side)
