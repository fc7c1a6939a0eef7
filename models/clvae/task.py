r"""Training of the class- and layer-wise VAE: the shared reconstruction training with codes of classes.

    generator and encoder:  L = hinge + 10 feature matching + 10 perceptual + 0.05 KLD                    (Eq. 7)
    KLD:                    of the global code, and the mean over the classes present, summed over levels (Eq. 18)

averaged over images, as the other losses are, so that it does not depend on how a batch is split over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from mixsyn_fast.region_map import Plan, RegionMap, Size

from .. import reconstruction
from ..training.task import Trainable
from .config import EncoderConfig, GeneratorConfig
from .networks import Encoder, Generator

if TYPE_CHECKING:
    from ..data import Batch

# (generator and encoder, discriminator)
RATES = {"code": (1e-4, 4e-4), "paper": (4e-4, 1e-4)}


@dataclass(frozen=True)
class Config(reconstruction.Config):
    """Settings of the class- and layer-wise VAE; what follows from the data is filled in by :func:`fitted`."""

    generator: GeneratorConfig = field(default_factory=lambda: GeneratorConfig(spectral_norm=True))
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(spectral_norm=True))
    loss_mask: Literal["auto", "none", "rare_colours"] = "auto"
    """what pixels weigh in feature matching, perceptual and L1 loss: all the same, or by how rare their class's colour is
    (conditional IMLE, as in Sec. 4.2); auto: the latter in street scenes"""
    rates: Literal["code", "paper", "own"] = "code"  # learning rates of the published code (as SPADE's: 1e-4, 4e-4), of the
    # paper's Sec. 4.2 (4e-4, 1e-4), or generator_lr and discriminator_lr

    def __post_init__(self) -> None:
        """Check every field once."""
        super().__post_init__()
        if self.rates not in (*RATES, "own"):
            raise ValueError(f"rates: expected one of {', '.join(RATES)}, own; got {self.rates!r}")


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with what the data and the other settings decide.

    Args:
        config: the settings.
        classes: names of the K classes.
        size: (H, W) of the images in pixels.
        edges: of no matter: a map of vectors has no channel of edges.

    Raises:
        ValueError: the generator cannot make images of this size.
    """
    del edges
    made = reconstruction.fitted(config, classes, size, False)
    generator = made.generator
    encoder = replace(
        made.encoder,
        code_length=generator.vector_length,
        num_levels=generator.num_levels,
        class_wise=generator.class_wise,
        layer_wise=generator.layer_wise,
    )
    made = replace(made, encoder=encoder)
    if made.rates == "own":
        return made
    rates = RATES[made.rates]
    return replace(made, generator_lr=rates[0], discriminator_lr=rates[1])


class CLVAETask(reconstruction.ReconstructionTask):
    """Networks "generator", "encoder" and "discriminator"."""

    config: Config

    def __init__(self, config: Config, training: bool = True) -> None:
        super().__init__(config, training)
        # the encoder pools over the labels at its levels' sizes
        sizes = [(side, side) for side in config.encoder.level_sizes] if config.encoder.class_wise else []
        self.plans += tuple(Plan(size, "labels", edges=False) for size in sizes)

    def make_generators(self) -> dict[str, nn.Module]:
        """Return the generator and the encoder."""
        return {"generator": Generator(self.config.generator), "encoder": Encoder(self.config.encoder)}

    def fake(
        self, batch: Batch, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images of a batch with the codes of its own images (drawn, or their means), and the KLD."""
        latents = networks["encoder"](batch.image, regions)
        codes = latents.codes(self.num_regions, sample=sample)
        return networks["generator"](regions, codes), {"kld": self.config.kld * latents.kld()}


_DECIDED = ("label_nc", "image_size", "aspect_ratio", "edges", "use_vae")
_SHARED = ("z_dim", "image_size", "code_length", "num_levels", "class_wise", "layer_wise")

TRAINABLES = {
    "clvae": Trainable(
        Config,
        fitted,
        CLVAETask,
        (
            *(f"generator.{name}" for name in _DECIDED),
            *(f"encoder.{name}" for name in _SHARED),
            "discriminator.label_nc",
            "discriminator.edges",
            "discriminator.exemplar",
            "instance_edges",
        ),
    )
}
"""What `mixsyn-fast train` finds here by name."""
