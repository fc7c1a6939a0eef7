r"""Training of StyleGAN2: images from nothing but noise, of a set of pictures with or without label maps.

    discriminator:  non-saturating loss, and every 16th step R1
    generator:      non-saturating loss, and every 4th step path length regularisation

Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020, with the adaptive augmentation of Karras
et al.: Training Generative Adversarial Networks with Limited Data, NeurIPS 2020, without which a few hundred pictures are
learnt by heart. Every regularisation is a phase with a period, which steps the optimiser of the phase that it regularises.
With a period of n the optimiser makes (n + 1) / n steps a step, so its learning rate is taken times n / (n + 1), its betas
to that power (lazy regularisation, appendix B of the first paper).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast.region_map import Size

from . import load_published, stylegan2
from .augmentation import AdaptiveProbability, Augmentation, AugmentConfig
from .losses import non_saturating, r1_penalty
from .losses.path_length import path_length_penalty, path_lengths
from .stylegan2.file import FILE
from .training import distributed
from .training.judged import Judged
from .training.task import Phase, Task, Trainable
from .training.trained import load_trained


@dataclass(frozen=True)
class Config:
    """Settings of the training of StyleGAN2; the size of the images is filled in by :func:`fitted`."""

    generator: stylegan2.Config = field(default_factory=stylegan2.Config)  # and of the discriminator
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    generator_lr: float = 0.002  # learning rate, before lazy regularisation's factor
    discriminator_lr: float = 0.002  # learning rate, before lazy regularisation's factor
    betas: tuple[float, float] = (0.0, 0.99)  # decay rates of Adam's moments, before lazy regularisation's power
    r1: float = 10.0  # gamma of R1; 0: none. The rule of the augmentation's paper: 0.0002 size^2 / batch
    r1_every: int = 16  # steps between two
    path_length: float = 2.0  # weight of path length regularisation; 0: none
    path_length_every: int = 4  # steps between two
    path_length_shrink: int = 2  # it takes a batch so many times smaller
    path_length_decay: float = 0.01  # of the running mean of path lengths
    mixing: float = 0.9  # probability that a batch's images mix two codes
    mean_decay: float = 0.995  # of the tracked mean of w

    def __post_init__(self) -> None:
        """Check every field once."""
        for name in ("generator_lr", "discriminator_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("r1", "path_length"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("r1_every", "path_length_every", "path_length_shrink"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        for name in ("path_length_decay", "mixing", "mean_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")


def fitted(config: Config, classes: Sequence[str], size: Size, edges: bool) -> Config:
    """Return the settings with the size of the images.

    Raises:
        ValueError: not a square, or its side no power of two from 8 to 1024.
    """
    del classes, edges  # images of noise know neither
    if size[0] != size[1]:
        raise ValueError(f"size: expected a square, got {size[0]} x {size[1]}")
    return replace(config, generator=replace(config.generator, size=int(size[0])))


def lazy(phase: Phase, every: int) -> Phase:
    """Return a phase with learning rate and betas as its optimiser wants them when a regularisation shares it."""
    ratio = every / (every + 1)
    return replace(phase, lr=phase.lr * ratio, betas=(phase.betas[0] ** ratio, phase.betas[1] ** ratio))


class StyleGAN2Task(Task):
    """Networks "generator" and "discriminator"; phases of the same names, "path_length" and "r1".

    Args:
        config: fitted settings (`fitted`).
        training: False builds the generator alone.
    """

    compiles = False  # map, styles and synthesis are called apart, which a compiled network's forward does not see
    best = ""  # quality of a set of images is no mean over images: `mixsyn-fast evaluate` has FID

    def __init__(self, config: Config, training: bool = True) -> None:
        self.config = config
        self.networks: dict[str, nn.Module] = {"generator": stylegan2.Generator(config.generator)}
        self.averaged = ("generator",)
        self.phases = {"generator": Phase(("generator",), lr=config.generator_lr, betas=config.betas)}
        self.mean_length = torch.zeros(())  # of paths, so far
        self.augment = Augmentation(config.augment)
        self.probability = AdaptiveProbability(config.augment)
        self._step = -1  # in which p moved last
        if not training:
            return
        self.networks["discriminator"] = stylegan2.Discriminator(config.generator)
        self.phases["discriminator"] = Phase(("discriminator",), lr=config.discriminator_lr, betas=config.betas)
        for name, owner, weight, every in (
            ("path_length", "generator", config.path_length, config.path_length_every),
            ("r1", "discriminator", config.r1, config.r1_every),
        ):
            if weight:
                self.phases[owner] = lazy(self.phases[owner], every)
                self.phases[name] = replace(self.phases[owner], every=every, shares=owner)

    # --- what the losses are made of ------------------------------------------------------------------------------------

    def _generator(self) -> stylegan2.Generator:
        generator = self.networks["generator"]
        assert isinstance(generator, stylegan2.Generator)
        return generator

    def codes(self, batch: int, like: Tensor, track: bool = False) -> Tensor:
        """Return w (batch, num_ws, w_dim) of fresh z: one code an image, or with probability `mixing` two."""
        generator = self._generator()
        w = generator.map(torch.randn(batch, generator.config.z_dim, device=like.device))
        if track:
            generator.track(w.detach(), self.config.mean_decay)
        last = generator.num_ws
        draws = torch.rand(2)  # on the CPU, so that nothing waits for the device
        crossover = last if draws[0] >= self.config.mixing else 1 + int(draws[1] * (last - 1))
        if crossover == last:
            return generator.mixed(w, w, last)
        other = generator.map(torch.randn(batch, generator.config.z_dim, device=like.device))
        return generator.mixed(w, other, crossover)

    def make(self, batch: int, like: Tensor, track: bool = False) -> tuple[Tensor, Tensor]:
        """Return fresh images (batch, 3, size, size) and their w."""
        w = self.codes(batch, like, track)
        return self._generator().synthesis(self._generator().styles(w), "random"), w

    def judge(self, images: Tensor) -> Tensor:
        """Return the discriminator's logits (B, 1) of augmented images."""
        logits: Tensor = self.networks["discriminator"](self.augment(images, self.probability.p))
        return logits

    # --- losses ---------------------------------------------------------------------------------------------------------

    def losses(self, phase: str, batch: Any, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of a phase (see the module's docstring)."""
        real = batch.image
        if phase == "generator":
            images, _ = self.make(len(real), real, track=True)
            return {"gan": non_saturating.generator_loss(self.judge(images))}
        if phase == "path_length":
            return self._path_length(real)
        if phase == "discriminator":
            with torch.no_grad():
                images, _ = self.make(len(real), real)
            if step != self._step:  # not for every micro-batch: within a step p stays
                self.probability.update()
                self._step = step
            of_fake, of_real = self.judge(images), self.judge(real)
            self.probability.observe(of_real.detach(), distributed.sum_over_ranks)
            return {"gan": non_saturating.discriminator_loss(of_real, of_fake)}
        if phase == "r1":
            config = self.config
            return {"r1": r1_penalty(self.judge, real, gamma=config.r1, interval=config.r1_every)}
        raise ValueError(f"phase: expected one of {', '.join(self.phases)}, got {phase!r}")

    def _path_length(self, real: Tensor) -> dict[str, Tensor]:
        """Return the penalty of path lengths, outside autocast as R1 is: it squares gradients."""
        config = self.config
        with torch.autocast(real.device.type, enabled=False):
            images, w = self.make(max(1, len(real) // config.path_length_shrink), real)
            lengths = path_lengths(images, w)
            penalty, mean = path_length_penalty(lengths, self.mean_length, config.path_length_decay)
        self.mean_length = distributed.mean_of_ranks(mean)  # what one process saves is everybody's
        return {"path_length": config.path_length * config.path_length_every * penalty}

    # --- looking at it --------------------------------------------------------------------------------------------------

    def generate(self, batch: Any, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return as many images (B, 3, size, size) as the batch has, of codes from torch's random numbers."""
        generator = networks["generator"]
        assert isinstance(generator, stylegan2.Generator)
        images: Tensor = generator(torch.randn(len(batch), generator.config.z_dim).to(generator.w_mean))
        return images

    def validate(self, batch: Any, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return the discriminator's logits of the batch's pictures, which it never learnt from, and of generated ones.

        Where those of pictures fall below those of training pictures (log: discriminator/gan), it learns these by heart.
        """
        judge = self.networks["discriminator"]
        logits = {"real_logit": batch.image, "generated_logit": self.generate(batch, networks)}
        return {name: judge(images)[:, 0].float() for name, images in logits.items()}

    @torch.no_grad()
    def judged(self, batch: Any, step: int) -> dict[str, Judged]:
        """Return the discriminator's logits of the batch's pictures; no other loss of the image is there to compare with."""
        return {"": Judged(self.networks["discriminator"](batch.image)[:, 0].float())}

    def sheet(self, batch: Any, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows: a real picture, then six generated images, the last three truncated by 0.7."""
        from .sheets import to_uint8

        generator = networks["generator"]
        assert isinstance(generator, stylegan2.Generator)
        z = torch.randn(len(batch), 6, generator.config.z_dim).to(generator.w_mean)
        columns = [batch.image, *(generator(z[:, i], 1.0 if i < 3 else 0.7) for i in range(6))]
        return [list(row) for row in zip(*(to_uint8(each) for each in columns), strict=True)]

    def state(self) -> dict[str, Any]:
        """Return the running mean of path lengths and the probability of augmentation."""
        return {"path_length": float(self.mean_length), "augment": self.probability.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.mean_length = torch.tensor(state["path_length"], dtype=torch.float32)
        self.probability.load_state(state["augment"])


def load_generator(source: str | os.PathLike[str], device: torch.device | str = "cpu") -> stylegan2.Generator:
    """Load a generator, in eval mode and without gradients.

    Args:
        source: a run folder of `mixsyn-fast train stylegan2` (averaged weights), a file of :func:`save_generator`, a
            published file (see `mixsyn_fast.models.load_published`), or the name of one that comes with the package:
            "facades", "faces".
        device: where to put it.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: of another model, or damaged; the message names it.
    """
    path = Path(source)
    named = path.name == str(source) and not path.suffix and str(source)
    if not path.exists() and not named:
        raise FileNotFoundError(
            "generator: expected a run folder of mixsyn-fast train stylegan2, a file of a generator, or the name of a "
            f"shipped one, got {os.fspath(source)!r}"
        )
    if path.is_dir() and str(source):
        network: Any = load_trained(path).networks.get("generator")
    elif path.suffix == ".safetensors":
        network = FILE.load(path, lambda config: {"generator": stylegan2.Generator(config)})[1]["generator"]
    elif named and not path.exists():
        shipped = FILE.shipped(path.name)
        network = FILE.load(shipped, lambda config: {"generator": stylegan2.Generator(config)})[1]["generator"]
    else:
        network = load_published(path)
    if not isinstance(network, stylegan2.Generator):
        raise ValueError(f"{path}: expected a StyleGAN2, got {type(network).__name__}")
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def save_generator(generator: stylegan2.Generator, path: str | os.PathLike[str], half: bool = False) -> None:
    """Write a generator to one file, whole or not at all; `half`: as float16.

    Raises:
        ValueError: `half`, and a weight that float16 cannot hold.
        OSError, ImportError: it cannot be written; safetensors is not installed.
    """
    FILE.save(path, generator.config, {"generator": generator}, half=half)


TRAINABLES = {"stylegan2": Trainable(Config, fitted, StyleGAN2Task, ("generator.size",), needs_regions=False)}
"""What `mixsyn-fast train` finds here by name."""
